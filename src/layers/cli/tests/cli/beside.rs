//! Commands beside a service that shares its store, and `serve`, which does nothing else.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout};
use std::time::Duration;

use onlyonce::{Claim, Store};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::store::{TestStore, is_ignored, objects, wait_until};

fn shared(store: &TestStore) -> Store {
    let builder = Store::builder().shared(true).open_timeout(Duration::from_secs(60));
    builder.open_or_create(store.path()).unwrap()
}

fn acquired(store: &Store, key: &str) -> onlyonce::ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    }
}

#[test]
fn every_command_works_beside_a_service() {
    let store = TestStore::new();
    let service = shared(&store);
    let working = acquired(&service, "working");
    acquired(&service, "done").complete("result").unwrap();
    drop(acquired(&service, "lost"));
    drop(acquired(&service.namespace("acme"), "lost"));

    let (lines, code) = store.json(["list", "--oldest-first"]);
    let mut states: Vec<_> = lines.iter().map(|line| line["state"].as_str().unwrap()).collect();
    // Those of one millisecond come in any order.
    states.sort_unstable();
    assert_eq!((states.as_slice(), code), (&["completed", "in_progress", "interrupted"][..], 0));
    assert_eq!(store.json(["list", "--all"]).0.len(), 4);
    assert_eq!(store.prints(["show", "done", "--output"]).0, "result");
    let (stats, code) = store.json(["stats", "--estimate"]);
    assert_eq!(
        (&stats[0]["in_flight"], &stats[0]["health"], code),
        (&1.into(), &"writable".into(), 0)
    );
    let hosting = &stats[0]["hosting"];
    assert_eq!(hosting["process"], std::process::id());
    assert_eq!((&hosting["is_here"], &hosting["guests"]), (&false.into(), &1.into()));
    assert!(store.prints(["stats"]).0.contains(&format!("process {}", std::process::id())));
    assert_eq!(store.json(["verify"]).0[0]["whole"], true);
    assert_eq!(store.ends(["rebuild-index"]), 0);
    assert_eq!(store.json(["compact"]).0[0]["complete"], true);
    let (checks, code) = store.json(["doctor"]);
    let level = |name: &str| {
        let check = checks.iter().find(|line| line["check"] == name).unwrap();
        check["level"].as_str().unwrap().to_owned()
    };
    assert_eq!((level("health"), level("stuck_keys"), code), ("ok".into(), "warning".into(), 1));

    // A path of the command's own directory, not of the service's.
    assert_eq!(store.ends(["backup", "copy"]), 0);
    let copy = Store::open(store.dir().join("copy")).unwrap();
    assert_eq!(copy.iter().count(), 3);
    let exported = store.output(["export"]).stdout;
    assert_eq!(objects(&exported).len(), 4);
    let imported = store.with_input(&["--json", "import"], b"imported\n");
    assert_eq!(imported.status.code(), Some(0));
    assert!(!service.mark("imported").unwrap().is_first());

    assert_eq!(store.ends(["resolve", "lost", "retry"]), 0);
    assert_eq!(store.ends(["interrupt", "working"]), 0);
    assert_eq!(working.complete("late").unwrap_err().kind(), onlyonce::ErrorKind::ClaimLost);
    assert_eq!(store.ends(["forget", "done"]), 0);
    assert!(service.mark("done").unwrap().is_first());
    assert_eq!(store.ends(["watch", "done"]), 0);
    assert_eq!(store.prints(["run", "report", "--", "echo", "made"]).0, "made\n");
    assert!(matches!(service.claim("report").unwrap(), Claim::Completed(_)));
}

/// `serve`, and what it has printed first.
struct Server {
    process: Child,
    _output: BufReader<ChildStdout>,
    says: Value,
}

impl Server {
    fn start(store: &TestStore) -> Self {
        let mut process = store.command(["--json", "serve"]).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let says = objects(line.as_bytes()).remove(0);
        Server { process, _output: output, says }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// A test that fails leaves none behind.
impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn serve_hosts_the_store_until_a_signal() {
    let store = TestStore::new();
    let mut first = Server::start(&store);
    assert_eq!(first.says["process"], first.process.id());
    let mut second = Server::start(&store);
    assert_eq!(
        (&second.says["process"], &second.says["is_here"]),
        (&first.says["process"], &false.into())
    );
    assert_eq!(store.prints(["run", "k", "--", "echo", "once"]).0, "once\n");
    assert_eq!(store.json(["stats"]).0[0]["hosting"]["process"], first.process.id());

    // It takes the place of one that was killed by itself.
    first.kill();
    let exclusive = || Store::builder().open_timeout(Duration::ZERO).open(store.path());
    let hosts = || store.json(["stats"]).0[0]["hosting"]["process"] == second.process.id();
    wait_until(hosts);
    assert_eq!(store.prints(["run", "k", "--", "echo", "twice"]).0, "once\n");
    assert_eq!(exclusive().unwrap_err().kind(), onlyonce::ErrorKind::Locked);

    assert_eq!(store.ends(["run", "new", "--", "true"]), 0);
    second.kill();
    let (checks, _) = store.json(["doctor"]);
    let last = checks.iter().find(|line| line["check"] == "last_process").unwrap();
    assert_eq!(last["level"], "warning");

    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        if is_ignored(signal.as_raw()) {
            continue;
        }
        let mut server = Server::start(&store);
        kill_process(Pid::from_child(&server.process), signal).unwrap();
        assert_eq!(server.process.wait().unwrap().code(), Some(0));
        assert!(exclusive().unwrap().stats().opening.was_clean);
    }
}

#[test]
fn serve_says_why_a_store_is_not_shared() {
    let store = TestStore::new();
    std::fs::write(store.path().join("socket"), "in its place").unwrap();
    let (lines, code) = store.json(["serve"]);
    assert_eq!(code, 74);
    assert!(lines[0]["message"].as_str().unwrap().contains("not a socket"), "{lines:?}");
    let (lines, _) = store.json(["stats"]);
    assert_eq!((lines[0]["health"].as_str(), lines[0].get("hosting")), (Some("alone"), None));
}
