//! `onlyonce run`, killed at each of its steps: the work is never done twice by itself.
//!
//! A run is made to wait at a step: by a store that is open here, by a pipe that is full, by a command that waits, by an
//! output that somebody holds open.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::time::Duration;

use crate::store::{TestStore, has_ended, wait_until};

const WORK: &str = "echo done >> effects; echo $$ > pid; until test -e go; do sleep 0.01; done";

fn effects(store: &TestStore) -> usize {
    let effects = std::fs::read_to_string(store.dir().join("effects"));
    effects.map_or(0, |lines| lines.lines().count())
}

fn kill(mut run: Child) {
    run.kill().unwrap();
    run.wait().unwrap();
}

/// Killed here, an attempt has left the key like this; the next run must not do the work.
fn check(store: &TestStore, state: &str, had_effect: bool) {
    assert_eq!((store.state("k").as_str(), effects(store)), (state, usize::from(had_effect)));
    std::fs::write(store.dir().join("go"), "").unwrap();
    let code = store.ends(["run", "k", "--open-timeout", "60", "--", "sh", "-c", WORK]);
    match state {
        "absent" => assert_eq!((code, effects(store)), (0, 1)),
        "completed" => assert_eq!((code, effects(store)), (0, 1)),
        _ => assert_eq!((code, effects(store)), (76, usize::from(had_effect))),
    }
}

#[test]
fn before_the_claim() {
    let store = TestStore::new();
    let here = store.open();
    let words = ["run", "k", "--open-timeout", "60", "--", "sh", "-c", WORK];
    let run = store.command(words).spawn().unwrap();
    wait_until(|| is_asleep(&run));
    kill(run);
    drop(here);
    check(&store, "absent", false);
}

fn is_asleep(run: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", run.id())).unwrap();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim().starts_with('S'))
}

fn pipe() -> (File, File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

/// Makes it a pipe into which nothing more fits.
fn fill(pipe: &File) {
    let flags = rustix::fs::fcntl_getfl(pipe).unwrap();
    rustix::fs::fcntl_setfl(pipe, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut writer = pipe;
    for bytes in [&[b'x'; 4096][..], b"x"] {
        while writer.write(bytes).is_ok() {}
    }
    rustix::fs::fcntl_setfl(pipe, flags).unwrap();
}

#[test]
fn claimed_and_the_command_not_started() {
    let store = TestStore::new();
    let (_reader, writer) = pipe();
    fill(&writer);
    let mut command = store.command(["run", "k", "--json", "--", "sh", "-c", WORK]);
    let run = command.stdout(writer).spawn().unwrap();
    // It prints that it begins, and the pipe is full.
    wait_until(|| waits_for_a_pipe(&run));
    kill(run);
    check(&store, "interrupted", false);
}

fn waits_for_a_pipe(run: &Child) -> bool {
    let wchan = std::fs::read_to_string(format!("/proc/{}/wchan", run.id())).unwrap_or_default();
    wchan.contains("pipe_write")
}

#[test]
fn while_the_command_runs() {
    let store = TestStore::new();
    let run = store.command(["run", "k", "--", "sh", "-c", WORK]).spawn().unwrap();
    store.wait_for("pid");
    let pid = pid(&store);
    kill(run);
    wait_until(|| has_ended(&pid)); // it dies with its parent
    check(&store, "interrupted", true);
}

fn pid(store: &TestStore) -> String {
    let mut pid = String::new();
    wait_until(|| {
        File::open(store.dir().join("pid")).is_ok_and(|file| file.metadata().unwrap().len() > 1)
    });
    File::open(store.dir().join("pid")).unwrap().read_to_string(&mut pid).unwrap();
    pid
}

#[test]
fn the_command_has_ended_and_nothing_is_recorded() {
    let store = TestStore::new();
    let work = "echo done >> effects; sleep 60 & echo $! > left; echo $$ > pid";
    let run = store.command(["run", "k", "--", "sh", "-c", work]).spawn().unwrap();
    store.wait_for("pid");
    let pid = pid(&store);
    wait_until(|| has_ended(&pid));
    kill(run);
    let left = std::fs::read_to_string(store.dir().join("left")).unwrap();
    assert!(Command::new("kill").arg(left.trim()).status().unwrap().success());
    check(&store, "interrupted", true);
}

#[test]
fn recorded_and_the_run_has_not_ended() {
    let store = TestStore::new();
    let (mut reader, writer) = pipe();
    let mut command = store.command(["run", "k", "--json", "--", "sh", "-c", WORK]);
    let run = command.stdout(writer.try_clone().unwrap()).spawn().unwrap();
    store.wait_for("pid");
    let mut begun = [0; 10];
    reader.read_exact(&mut begun).unwrap();
    fill(&writer);
    std::fs::write(store.dir().join("go"), "").unwrap();
    wait_until(|| waits_for_a_pipe(&run)); // it prints how it ended
    kill(run);
    check(&store, "completed", true);
}

#[test]
fn while_the_command_that_finds_out_runs() {
    let store = TestStore::new();
    assert_eq!(store.ends(["run", "k", "--", "sh", "-c", "kill -KILL $$"]), 137);
    let ask = "ask:echo $$ > pid; while test -e pid; do sleep 0.01; done";
    let words = ["run", "k", "--on-interrupted", ask, "--", "sh", "-c", WORK];
    let run = store.command(words).spawn().unwrap();
    pid(&store);
    kill(run);
    check(&store, "interrupted", false);
}

/// Wherever else it may be.
#[test]
fn at_any_time() {
    let rounds = if std::env::var_os("ONLYONCE_LONG").is_some() { 100 } else { 40 };
    let store = TestStore::new();
    std::fs::write(store.dir().join("go"), "").unwrap();
    for round in 0..rounds {
        let key = format!("k{round}");
        let work = format!("echo done >> effects.{key}");
        let run = store.command(["run", &key, "--", "sh", "-c", &work]).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(round * 20_000 / rounds));
        kill(run);
        let state = store.state(&key);
        // The command may have been killed before its effect, never after more than one.
        wait_until(|| !is_at_work(&key));
        let effects = std::fs::read_to_string(store.dir().join(format!("effects.{key}")));
        let effects = effects.map_or(0, |lines| lines.lines().count());
        match state.as_str() {
            "absent" => assert_eq!(effects, 0),
            "completed" => assert_eq!(effects, 1),
            "interrupted" => assert!(effects <= 1),
            other => panic!("{other}"),
        }
    }
}

/// Whether a process is left whose words name this key's file.
fn is_at_work(key: &str) -> bool {
    let name = format!("effects.{key}\0");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut words = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    words.any(|words| words.windows(name.len()).any(|part| part == name.as_bytes()))
}
