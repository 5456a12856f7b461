//! Opening the filled store, after a clean close and after kill -9, and finding keys in it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use onlyonce::{Durability, Store};

use crate::fill;
use crate::machine::{self, Io};
use crate::work::scratch;
use crate::work::{
    Args, FILLED, NEW, Random, Times, close, fresh_kind, key, median, mib, open, pair,
};

/// Looked up once to map files and warm caches; then as many others are measured.
const LOOKUPS: u64 = 200_000;
const SMALL_KEYS: u64 = 1_000_000;

pub fn openings(args: &Args, dir: &Path) {
    clean(dir);
    for pairs in [10_000, 100_000, 400_000] {
        killed(dir, pairs, args.rounds().min(3));
    }
}

pub fn findings(dir: &Path, keys: u64) {
    let small = scratch();
    let small = small.path().join("keys");
    fill::make(&small, SMALL_KEYS.min(keys), Durability::Flush);
    lookups(dir, keys, &small, SMALL_KEYS.min(keys));
}

/// What one open took, in a process of its own.
struct Opened {
    millis: f64,
    /// Private memory that the process gained.
    memory: u64,
    records_read: u64,
    written: u64,
}

impl Opened {
    fn again(dir: &Path) -> Self {
        let mut child = in_child("open", dir, 0);
        let line = line_of(&mut child);
        assert!(child.wait().unwrap().success());
        let words: Vec<f64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        Opened {
            millis: words[0],
            memory: words[1] as u64,
            records_read: words[2] as u64,
            written: words[3] as u64,
        }
    }
}

/// Opens the store, prints what that took, and closes it, sealing what was read.
pub fn open_in_child(args: &Args) {
    let dir = PathBuf::from(args.value("--dir").unwrap());
    let (had, before) = (machine::own_memory(), Io::now());
    let began = Instant::now();
    let store = Store::open(&dir).unwrap();
    let millis = began.elapsed().as_secs_f64() * 1000.0;
    let memory = machine::own_memory().saturating_sub(had);
    let written = Io::now().since(before).written;
    let opening = store.stats().opening;
    if !opening.was_clean {
        store.mark("sealed").map(drop).unwrap();
    }
    close(store);
    println!("{millis} {memory} {} {written}", opening.records_read);
}

fn clean(dir: &Path) {
    let opened: Vec<_> = (0..9).map(|_| Opened::again(dir)).collect();
    println!(
        "\n| opening | ms, median | memory KiB | bytes since the checkpoint | records read | bytes written |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    print_opened("closed cleanly, 9 times", 0, &opened);
}

/// A child writes pairs and is killed; then the store is opened.
fn killed(dir: &Path, pairs: u64, rounds: usize) {
    let mut since = 0;
    let rounds = (0..rounds).map(|_| {
        since = write_and_die(dir, pairs);
        Opened::again(dir)
    });
    let opened: Vec<_> = rounds.collect();
    let name = format!("kill -9 after {pairs} pairs, {} times", opened.len());
    print_opened(&name, since, &opened);
}

fn print_opened(name: &str, since: u64, opened: &[Opened]) {
    println!(
        "| {name} | {:.2} | {:.0} | {since} | {} | {} |",
        median(opened.iter().map(|opened| opened.millis)),
        median(opened.iter().map(|opened| opened.memory as f64)) / 1024.0,
        opened[0].records_read,
        opened[0].written,
    );
}

fn write_and_die(dir: &Path, pairs: u64) -> u64 {
    let mut child = in_child("pairs", dir, pairs);
    let line = line_of(&mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    line.parse().unwrap()
}

fn in_child(what: &str, dir: &Path, pairs: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--child", what, "--dir"])
        .arg(dir)
        .args(["--pairs", &pairs.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Returns the one line that the child prints.
fn line_of(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Writes pairs at Flush, prints how many bytes that were, and waits to be killed.
pub fn pairs_in_child(args: &Args) {
    let dir = PathBuf::from(args.value("--dir").unwrap());
    let store = open(&dir, Durability::Flush);
    let kind = fresh_kind();
    for n in 0..args.number("--pairs", 1) {
        pair(&store, &key(kind, n));
    }
    println!("{}", store.stats().bytes_written);
    std::thread::sleep(Duration::from_secs(60));
}

fn lookups(dir: &Path, keys: u64, small: &Path, small_keys: u64) {
    println!("\n| finding, ns | keys | tables | p50 | p99 | mean |");
    println!("|---|---:|---:|---:|---:|---:|");
    let stores = [(small, small_keys), (dir, keys)];
    let found = stores.map(|(dir, keys)| {
        let store = Store::open(dir).unwrap();
        let tables = store.stats().tables;
        [("known", FILLED), ("new", NEW)].map(|(name, kind)| {
            let mut times = look_up(&store, kind, keys);
            let (p50, p99, mean) = (times.at(0.5), times.at(0.99), times.mean());
            println!("| {name} | {keys} | {tables} | {p50:.0} | {p99:.0} | {mean:.0} |");
            (p50, p99, mean)
        })
    });
    for (name, which) in [("known", 0), ("new", 1)] {
        let (small, big) = (found[0][which], found[1][which]);
        println!(
            "| {name}, ratio | | | {:.2} | {:.2} | {:.2} |",
            big.0 / small.0,
            big.1 / small.1,
            big.2 / small.2
        );
    }
    println!("\nindex {:.1} MiB", mib(Store::open(dir).unwrap().stats().index_bytes));
}

fn look_up(store: &Store, kind: u32, keys: u64) -> Times {
    let mut random = Random(u64::from(kind));
    let mut times = Times::default();
    for n in 0..2 * LOOKUPS {
        let key = key(kind, random.below(keys));
        if n == LOOKUPS {
            // The calls before have mapped the files and warmed the caches.
            times = Times::default();
        }
        let state = times.time(|| store.get(&key).unwrap());
        assert_eq!(state.is_some(), kind == FILLED);
    }
    times
}
