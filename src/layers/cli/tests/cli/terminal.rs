//! What is different on a terminal: colours, bars of progress, and Ctrl-C.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;

use pty_process::blocking::{Command, Pty, open};

use crate::store::{TestStore, is_ignored};

const SIGINT: i32 = 2;

/// Starts a command on a terminal of its own.
fn on_terminal(
    store: &TestStore,
    words: &[&str],
    variable: Option<(&str, &str)>,
) -> (Pty, std::process::Child) {
    let (terminal, other_end) = open().unwrap();
    terminal.resize(pty_process::Size::new(40, 200)).unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_onlyonce")).args(words);
    let command = command.env("ONLYONCE_STORE", store.path()).env("TERM", "xterm");
    let command = command.env_remove("NO_COLOR").current_dir(store.dir());
    let command = match variable {
        Some((name, value)) => command.env(name, value),
        None => command,
    };
    let child = command.spawn(other_end).unwrap();
    (terminal, child)
}

/// All that it prints. A terminal whose other end is closed fails to read.
fn rest(mut terminal: &Pty) -> String {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    while let Ok(count @ 1..) = terminal.read(&mut part) {
        bytes.extend_from_slice(&part[..count]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn shown(store: &TestStore, words: &[&str], variable: Option<(&str, &str)>) -> String {
    let (terminal, mut child) = on_terminal(store, words, variable);
    let shown = rest(&terminal);
    assert!(child.wait().unwrap().success(), "{shown}");
    println!("{shown:?}");
    shown
}

#[test]
fn colours_are_for_terminals() {
    let store = TestStore::new();
    assert_eq!(store.ends(["run", "k", "--", "true"]), 0);
    assert!(shown(&store, &["list"], None).contains("\x1b["));
    assert!(!shown(&store, &["list"], Some(("NO_COLOR", "1"))).contains("\x1b["));
    assert!(!shown(&store, &["list", "--color", "never"], None).contains("\x1b["));
    assert!(!store.prints(["list"]).0.contains('\x1b'));
    assert!(store.prints(["list", "--color", "always"]).0.contains('\x1b'));
}

#[test]
fn progress_is_for_terminals() {
    let store = TestStore::new();
    assert_eq!(store.ends(["run", "k", "--", "true"]), 0);
    assert!(shown(&store, &["verify"], None).contains("verifying"));
    assert!(!shown(&store, &["verify", "-q"], None).contains("verifying"));
    assert!(!shown(&store, &["verify", "--json"], None).contains("verifying"));
    assert_eq!(store.prints(["verify"]).1, "");
}

/// What somebody else wrote must not steer the operator's terminal.
#[test]
fn texts_of_others_reach_the_terminal_without_their_control_characters() {
    let store = TestStore::new();
    let words = ["run", "k", "--owner", "a\x1b[2Jb", "--", "sh", "-c", "kill -9 $$"];
    assert_eq!(store.ends(words), 137);
    for words in [&["list"][..], &["show", "k"], &["--color", "always", "show", "k"]] {
        assert!(!store.prints(words).0.contains("\x1b[2J"), "{words:?}");
    }
    let refused = store.prints(["run", "k", "--", "true"]);
    assert!(!refused.1.contains("\x1b[2J"), "{}", refused.1);
}

/// The terminal sends SIGINT to the whole group: passed on, it would come twice.
#[test]
fn ctrl_c_reaches_the_command_once() {
    if is_ignored(SIGINT) {
        return;
    }
    let store = TestStore::new();
    let work = "trap 'n=$((n+1)); echo > got' INT; echo begun; until test -e go; do :; done; echo \"got $n\"";
    let (terminal, mut child) = on_terminal(&store, &["run", "k", "--", "sh", "-c", work], None);
    let mut begun = [0; 5];
    (&terminal).read_exact(&mut begun).unwrap();
    (&terminal).write_all(b"\x03").unwrap();
    store.wait_for("got");
    // Long enough for a second signal, if one is sent.
    std::thread::sleep(std::time::Duration::from_millis(200));
    std::fs::write(store.dir().join("go"), "").unwrap();
    let shown = rest(&terminal);
    assert!(shown.contains("got 1"), "{shown:?}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn ctrl_c_ends_the_command_and_leaves_its_key_interrupted() {
    if is_ignored(SIGINT) {
        return;
    }
    let store = TestStore::new();
    let work = "echo begun; while true; do sleep 0.01; done";
    let (terminal, mut child) = on_terminal(&store, &["run", "k", "--", "sh", "-c", work], None);
    let mut begun = [0; 5];
    (&terminal).read_exact(&mut begun).unwrap();
    (&terminal).write_all(b"\x03").unwrap();
    let shown = rest(&terminal);
    assert_eq!(child.wait().unwrap().signal(), Some(2), "{shown:?}");
    assert_eq!(store.state("k"), "interrupted");
}
