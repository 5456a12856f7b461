//! Which system calls claims make while checkpoints are under way, by `strace` on a child.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use onlyonce::Durability;

use crate::work::{Args, close, fresh_kind, key, open_with, pair, scratch};

pub fn run(args: &Args) {
    for (level, name) in [(Durability::Flush, "flush"), (Durability::Sync, "sync")] {
        let pairs = args.number("--pairs", if level == Durability::Sync { 5_000 } else { 50_000 });
        let scratch = scratch();
        let trace = scratch.path().join("trace");
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-s", "0", "-e", "trace=%file,%desc", "-o"]).arg(&trace);
        command.arg(std::env::current_exe().unwrap()).args(["--child", "claims", "--level", name]);
        command.args(["--pairs", &pairs.to_string(), "--dir"]).arg(scratch.path().join("keys"));
        let output = match command.output() {
            Ok(output) => output,
            Err(e) => return println!("\nno strace here: {e}"),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let claiming = String::from_utf8(output.stdout).unwrap();
        let trace = std::fs::read_to_string(&trace).unwrap();
        print_calls(level, pairs, claiming.trim(), &trace);
    }
}

/// Claims and completes in a thread of its own and prints its id, while checkpoints run because few keys fit memory.
pub fn claims_in_child(args: &Args) {
    let (level, pairs) = (crate::levels(args)[0], args.number("--pairs", 1));
    let dir = PathBuf::from(args.value("--dir").unwrap());
    let store = open_with(&dir, level, |builder| builder.index_memory_max(pairs / 20 * 64));
    let kind = fresh_kind();
    thread::scope(|scope| {
        scope.spawn(|| {
            let itself = std::fs::read_link("/proc/thread-self").unwrap();
            println!("{}", itself.file_name().unwrap().to_str().unwrap());
            (0..pairs).for_each(|n| pair(&store, &key(kind, n)));
        });
    });
    close(store);
}

/// Calls by thread, call and file, from the making of a table's file to the switch of manifests that lists it.
fn print_calls(level: Durability, pairs: u64, claiming: &str, trace: &str) {
    let mut calls = BTreeMap::<_, u64>::new();
    let (mut under_way, mut checkpoints) = (None, 0);
    let mut has_begun = false;
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, rest)) = call.trim_start().split_once('(') else { continue };
        // The second half of a call that another thread's interrupted, and ends of threads.
        if name.starts_with(['<', '+', '-']) {
            continue;
        }
        // Starts at the thread's id.
        has_begun |= thread == claiming && rest.contains("thread-self");
        if has_begun && name == "openat" && rest.contains("O_CREAT") && rest.contains("/index/") {
            under_way = Some(thread);
        }
        let Some(by) = under_way else { continue };
        let who = match thread {
            _ if thread == claiming => "claims",
            _ if thread == by => "checkpoint",
            _ => "log's upkeep",
        };
        *calls.entry((who, name, file_of(rest))).or_default() += 1;
        if thread == by && name == "renameat2" {
            (under_way, checkpoints) = (None, checkpoints + 1);
        }
    }
    println!("\n{pairs} pairs at {level:?}; calls during {checkpoints} checkpoints and merges\n");
    println!("| thread | call | on | calls |\n|---|---|---|---:|");
    for ((who, name, file), count) in &calls {
        println!("| {who} | {name} | {file} | {count} |");
    }
    let is_foreign = |(who, _, file): &(&str, &str, &str)| *who == "claims" && *file != "a segment";
    let foreign: u64 = calls.iter().filter(|(of, _)| is_foreign(of)).map(|(_, count)| count).sum();
    println!("\ncalls of claims on anything but a segment: {foreign}");
}

/// The file that a call concerns, by the first path that it names.
fn file_of(rest: &str) -> &'static str {
    // The directory that relative paths start from is not part of the path.
    let rest = rest
        .strip_prefix("AT_FDCWD<")
        .map_or(rest, |rest| rest.split_once('>').map_or(rest, |(_, rest)| rest));
    let path = rest.split(['<', '>', '"']).find(|part| part.contains('/')).unwrap_or_default();
    let path = Path::new(path);
    let is_in = |dir: &str| path.components().any(|part| part.as_os_str() == dir);
    let has = |part: &str| rest.contains(part);
    match () {
        () if has("MANIFEST") => "the manifest",
        () if is_in("index") => "the index",
        () if is_in("log") && has("spare") => "a spare",
        () if is_in("log") && has(".log") => "a segment",
        () if is_in("log") || is_in("keys") => "a directory",
        () => "else",
    }
}
