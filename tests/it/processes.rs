//! Several processes on one store. Within one process, a second opening is a guest of the first.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};

use onlyonce::admin::{Health, Iter, StateKind};
use onlyonce::{Claim, ClaimGuard, ErrorKind, Mark, Operation, Reader, State, Store, StoreBuilder};

use crate::child::child;

pub(crate) fn shared() -> StoreBuilder {
    Store::builder().shared(true).open_timeout(Duration::from_secs(20))
}

pub(crate) fn open(dir: &Path) -> Store {
    shared().open_or_create(dir).unwrap()
}

pub(crate) fn acquired(store: &Store, key: &str) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    }
}

#[test]
fn a_guest_s_calls_are_answered_by_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let (host, guest) = (open(dir.path()), open(dir.path()));
    let claim = acquired(&guest, "k");
    assert!(matches!(host.claim("k").unwrap(), Claim::InProgress(_)));
    claim.complete("done").unwrap();
    for store in [&host, &guest] {
        let Claim::Completed(done) = store.claim("k").unwrap() else { panic!() };
        assert_eq!(done.decode::<String>().unwrap(), "done");
        assert!(matches!(store.get("k").unwrap(), Some(State::Completed(_))));
    }
    assert!(matches!(guest.mark("m").unwrap(), Mark::First));
    assert!(!host.mark("m").unwrap().is_first());
    drop(acquired(&guest, "dropped"));
    guest.sync().unwrap();
    assert!(matches!(host.claim("dropped").unwrap(), Claim::Interrupted(_)));
    assert!(guest.close(Duration::from_secs(5)).unwrap().is_empty());
    assert_eq!(guest.claim("k").unwrap_err().kind(), ErrorKind::Closed);
    assert!(matches!(host.claim("k").unwrap(), Claim::Completed(_)));
}

/// The host closes: the guest hosts from then on, its claims live on, and a third opening is its guest.
#[test]
fn a_guest_takes_the_place_of_a_host_that_closes() {
    let dir = tempfile::tempdir().unwrap();
    let (host, guest) = (open(dir.path()), open(dir.path()));
    let claim = acquired(&guest, "k");
    let own = acquired(&host, "own");
    assert_eq!(host.close(Duration::ZERO).unwrap().len(), 1);
    drop(own);
    assert!(matches!(guest.claim("k").unwrap(), Claim::InProgress(_)), "its own claim");
    assert!(matches!(guest.claim("own").unwrap(), Claim::Interrupted(_)));
    let third = open(dir.path());
    assert!(matches!(third.claim("k").unwrap(), Claim::InProgress(_)));
    claim.complete("done").unwrap();
    assert!(matches!(third.claim("k").unwrap(), Claim::Completed(_)));
    drop(guest);
    assert!(matches!(third.claim("k").unwrap(), Claim::Completed(_)));
}

/// An opening for this process alone would take the claims of guests that look for a host.
#[test]
fn a_store_with_guests_is_not_opened_exclusively() {
    let dir = tempfile::tempdir().unwrap();
    let (host, guest) = (open(dir.path()), open(dir.path()));
    let claim = acquired(&guest, "k");
    drop(host);
    let refused = Store::builder().open(dir.path()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked, "{refused}");
    claim.complete("done").unwrap();
    drop(guest);
    let alone = Store::open(dir.path()).unwrap();
    assert!(matches!(alone.claim("k").unwrap(), Claim::Completed(_)));
    let patience = Duration::from_millis(30);
    let refused = Store::builder().shared(true).open_timeout(patience).open(dir.path());
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    let words = refused.to_string();
    assert!(words.contains("waited for 30 ms (open_timeout)"), "{words}");
    assert!(words.contains("takes no guests") && !words.contains("one process opens"), "{words}");
}

/// Waiting is woken across processes, and by a handover.
#[test]
fn a_guest_waits_for_a_claim_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let (host, guest) = (open(dir.path()), open(dir.path()));
    let claim = acquired(&host, "k");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.claim_wait("k", Duration::from_secs(60)).unwrap());
        let others = scope.spawn(|| {
            for n in 0..100 {
                assert!(guest.mark(("other", n)).unwrap().is_first());
            }
        });
        others.join().unwrap();
        claim.complete("done").unwrap();
        assert!(matches!(waiting.join().unwrap(), Claim::Completed(_)));
    });
}

#[test]
fn tasks_of_a_guest_are_woken() {
    let dir = tempfile::tempdir().unwrap();
    let (host, guest) = (open(dir.path()), open(dir.path()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let claim = acquired(&host, "k");
        let waiting: Vec<_> = (0..50)
            .map(|_| tokio::spawn(guest.claim_wait_async("k", Duration::from_secs(60))))
            .collect();
        for n in 0..50 {
            assert!(guest.mark_async(n).await.unwrap().is_first());
        }
        // The host goes while they wait.
        drop(claim);
        drop(host);
        let mut asked = 0;
        for task in waiting {
            match task.await.unwrap().unwrap() {
                Claim::Interrupted(interrupted) => {
                    // A question ends with the host that has asked it: then another task is asked.
                    asked += 1;
                    match interrupted.take_over_async().await {
                        Ok(claim) => claim.complete("x").unwrap(),
                        Err(e) => assert_eq!(e.kind(), ErrorKind::ClaimLost),
                    }
                }
                Claim::Completed(_) => {}
                other => panic!("{other}"),
            }
        }
        assert!(asked >= 1);
        assert!(matches!(guest.claim("k").unwrap(), Claim::Completed(_)));
    });
}

/// A child of this test that plays a role, and its lines.
pub(crate) struct Peer {
    process: Child,
    lines: BufReader<ChildStdout>,
    orders: ChildStdin,
}

impl Peer {
    pub(crate) fn start(role: &str, dir: &Path) -> Self {
        let mut peer = Peer::start_unready(role, dir);
        peer.hear("open");
        peer
    }

    /// Starts it, and doesn't wait until it has the store open.
    pub(crate) fn start_unready(role: &str, dir: &Path) -> Self {
        let mut process = child(role, dir).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap());
        let orders = process.stdin.take().unwrap();
        Peer { process, lines, orders }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Until it is told to go on, it does nothing, and holds what it has.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let pid = Pid::from_child(&self.process);
        let stopped = rustix::process::waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(stopped.1.stopped(), "{stopped:?}");
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn order(&mut self, what: &str) {
        writeln!(self.orders, "{what}").unwrap();
    }

    /// Waits for a line with that beginning, and returns the rest of it.
    pub(crate) fn hear(&mut self, begins: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "ended before {begins}");
            if let Some((_, rest)) = line.split_once(&format!("peer: {begins}")) {
                return rest.trim().to_owned();
            }
        }
    }

    pub(crate) fn ask(&mut self, what: &str) -> String {
        self.order(what);
        self.hear("told ")
    }

    /// Returns how it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// As its drop does.
    pub(crate) fn kill(self) {}
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Opens the store, and does what it is told by its input, line by line.
pub(crate) fn peer(dir: &Path) {
    let store = shared().open_or_create(dir).unwrap();
    println!("peer: open");
    let mut held = std::collections::HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let (what, key) = line.split_once(' ').unwrap();
        let told = match what {
            "claim" => match store.claim(key).unwrap() {
                Claim::Acquired(claim) => {
                    let token = claim.token();
                    held.insert(key.to_owned(), claim);
                    format!("acquired {token}")
                }
                Claim::InProgress(_) => "in progress".to_owned(),
                Claim::Completed(_) => "completed".to_owned(),
                Claim::Interrupted(_) => "interrupted".to_owned(),
                other => format!("{other}"),
            },
            "complete" => match held.remove(key).unwrap().complete(key) {
                Ok(_) => "done".to_owned(),
                Err(e) => format!("{:?}", e.kind()),
            },
            "lease" => {
                let lease = Duration::from_millis(100);
                let Claim::Acquired(claim) = store.claim(Operation::new(key).lease(lease)).unwrap()
                else {
                    panic!("{key}")
                };
                held.insert(key.to_owned(), claim);
                "leased".to_owned()
            }
            "flood" => {
                let sent: Vec<_> = (0..500).map(|_| store.get_async(key)).collect();
                println!("peer: flooding");
                let is_right = |found: State| matches!(found, State::Completed(_));
                let told = sent.into_iter().map(|sent| sent.wait().unwrap());
                format!(
                    "{} answers",
                    told.flatten().filter(|found| is_right(found.clone())).count()
                )
            }
            "close" => {
                close_descriptors();
                "closed".to_owned()
            }
            "leave" => {
                store.close(Duration::ZERO).unwrap();
                "left".to_owned()
            }
            "drop" => {
                drop(held.remove(key));
                "dropped".to_owned()
            }
            other => panic!("{other}"),
        };
        println!("peer: told {told}");
    }
}

/// What a program does that becomes a daemon.
#[expect(unsafe_code, reason = "std closes no descriptor that it doesn't know")]
fn close_descriptors() {
    for number in 3..1024 {
        // SAFETY: the store is to notice that its descriptors are gone; nothing else in this process has any.
        unsafe { libc::close(number) };
    }
}

#[test]
fn a_killed_guest_s_claims_are_interrupted_and_all_others_live_on() {
    let dir = tempfile::tempdir().unwrap();
    let host = open(dir.path());
    let mut killed = Peer::start("peer", dir.path());
    let mut lives = Peer::start("peer", dir.path());
    assert!(killed.ask("claim a").starts_with("acquired"));
    assert!(lives.ask("claim b").starts_with("acquired"));
    killed.kill();
    let began = Instant::now();
    loop {
        match host.claim("a").unwrap() {
            Claim::Interrupted(_) => break,
            Claim::InProgress(_) if began.elapsed() < Duration::from_secs(60) => {
                std::thread::yield_now();
            }
            other => panic!("{other}"),
        }
    }
    assert!(matches!(host.claim("b").unwrap(), Claim::InProgress(_)));
    assert_eq!(lives.ask("complete b"), "done");
    assert!(matches!(host.claim("b").unwrap(), Claim::Completed(_)));
}

/// Again and again: the host is killed, one of its guests hosts, and the claims of all others live on.
/// Processes that end at the same time close the store one after the other, each as its host for a moment. The last of them took
/// them for hosts that something kills, and would not host the store itself.
#[test]
fn hosts_that_close_one_after_the_other_are_followed_by_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut others: Vec<_> = (0..4).map(|_| Peer::start("peer", dir.path())).collect();
    let mut last = Peer::start("peer", dir.path());
    for (n, host) in others.iter_mut().enumerate() {
        // It hosts the store from this call on, and the last joins it.
        assert!(host.ask(&format!("claim host-{n}")).starts_with("acquired"));
        assert!(last.ask(&format!("claim last-{n}")).starts_with("acquired"));
        assert_eq!(host.ask("leave now"), "left");
    }
    assert!(last.ask("claim end").starts_with("acquired"));
}

#[test]
fn the_claims_of_guests_outlive_killed_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Peer::start("peer", dir.path());
    let mut guests: Vec<Peer> = (0..3).map(|_| Peer::start("peer", dir.path())).collect();
    let rounds = if std::env::var_os("ONLYONCE_LONG").is_some() { 20 } else { 3 };
    for round in 0..rounds {
        assert!(host.ask(&format!("claim host-{round}")).starts_with("acquired"));
        for (n, guest) in guests.iter_mut().enumerate() {
            assert!(guest.ask(&format!("claim {n}-{round}")).starts_with("acquired"));
        }
        // Who has seen three hosts end within a second hosts no more.
        std::thread::sleep(Duration::from_millis(1100));
        host.kill();
        // The first that calls hosts, so that the next round kills it.
        host = guests.remove(0);
        assert_eq!(host.ask(&format!("claim 1-{round}")), "in progress");
        assert_eq!(host.ask(&format!("claim host-{round}")), "interrupted");
        assert_eq!(host.ask(&format!("complete 0-{round}")), "done");
        for (n, guest) in guests.iter_mut().enumerate() {
            assert_eq!(guest.ask(&format!("complete {}-{round}", n + 1)), "done");
        }
        let mut new = Peer::start("peer", dir.path());
        for n in 0..3 {
            assert_eq!(new.ask(&format!("claim {n}-{round}")), "completed");
        }
        guests.push(new);
    }
    // The new host knows whose the claims are that it has found.
    let mut owner = guests.remove(0);
    assert!(owner.ask("claim last").starts_with("acquired"));
    std::thread::sleep(Duration::from_millis(1100));
    host.kill();
    let mut host = guests.remove(0);
    assert_eq!(host.ask("claim last"), "in progress");
    owner.kill();
    let began = Instant::now();
    while host.ask("claim last") == "in progress" && began.elapsed() < Duration::from_secs(30) {
        std::thread::yield_now();
    }
    assert_eq!(host.ask("claim last"), "interrupted");
}

/// What an operator can learn of a store, in words.
fn shown(store: &Store) -> Vec<String> {
    let line = |entry: onlyonce::Result<(onlyonce::Key<'static>, State)>| {
        let (key, state) = entry.unwrap();
        match state {
            State::InProgress(attempt) => format!("{key} in progress {}", attempt.token()),
            State::Interrupted(attempt) => format!("{key} interrupted {}", attempt.token()),
            State::Held(attempt) => format!("{key} held {}", attempt.token()),
            State::Completed(done) => {
                format!("{key} completed {}", done.decode::<String>().unwrap())
            }
            State::Aborted(attempt) => format!("{key} aborted {}", attempt.token()),
            other => panic!("{key} {other:?}"),
        }
    };
    let sorted = |walk: Iter| {
        let mut lines: Vec<_> = walk.map(line).collect();
        lines.sort();
        lines
    };
    let acme = store.namespace("acme");
    let mut all = sorted(store.iter());
    all.push("open".to_owned());
    all.extend(sorted(store.iter().in_states(&[StateKind::InProgress, StateKind::Held])));
    all.push("prefix".to_owned());
    all.extend(sorted(store.iter().prefix(("many", 1))));
    all.push("acme".to_owned());
    all.extend(sorted(acme.iter()));
    all.push("nowhere".to_owned());
    all.extend(sorted(store.namespace("nowhere").iter()));
    all.push("oldest first".to_owned());
    let mut walk = store.iter().oldest_first();
    all.extend(walk.by_ref().take(3).map(line));
    let cursor = walk.cursor().unwrap().clone();
    all.push(format!("after {cursor}"));
    all.extend(walk.map(line));
    let rest: Vec<_> = store.iter().after(&cursor).map(line).collect();
    assert!(!rest.is_empty());
    assert_same(all.get(all.len().saturating_sub(rest.len())..).unwrap(), &rest);
    let (root, inner) = (store.namespaces().unwrap(), acme.namespaces().unwrap());
    assert_eq!(store.namespaces_async().wait().unwrap(), root);
    all.push(format!("{root:?} {inner:?} {:?}", store.namespace("nowhere").namespaces().unwrap()));
    let mut estimate = store.estimate().unwrap();
    // The log grows by itself.
    assert!(std::mem::take(&mut estimate.dead_bytes) > 0);
    all.push(format!("{estimate:?} {:?}", store.health()));
    let mut told = 0;
    let found = store
        .verify_with(|_| {
            told += 1;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert!(found.is_whole() && told > 0);
    assert!(found.bytes > 0);
    all.push(format!("{} records", found.records));
    let stats = store.stats();
    let hosting = stats.hosting.unwrap();
    assert_eq!(hosting.process, std::process::id());
    assert_eq!(hosting.silent_since, None);
    all.push(format!(
        "{} {} {} {} {} {} {:?}",
        stats.keys,
        stats.in_flight,
        stats.interrupted,
        stats.held,
        stats.segments,
        hosting.guests,
        stats.oldest_claim
    ));
    all
}

/// Shows the first lines that differ, not all of them.
fn assert_same(one: &[String], other: &[String]) {
    let differing: Vec<_> = one.iter().zip(other).filter(|(one, other)| one != other).collect();
    assert!(differing.is_empty(), "{:#?}", differing.get(..4).unwrap_or(&differing));
    assert_eq!(one.len(), other.len());
}

/// The whole interface, not only the calls on keys.
#[test]
fn operators_calls_through_a_guest_give_what_they_give_on_the_host() {
    let (dir, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (host, guest) = (open(dir.path()), open(dir.path()));
    // Of the guest, so that they outlive the host.
    let claim = acquired(&guest, "in progress");
    drop(acquired(&guest, "interrupted"));
    acquired(&guest, "held").hold("look at it").unwrap();
    acquired(&guest, "aborted").abort("nothing was done").unwrap();
    let fill = |from: u64| {
        for n in from..from + 100 {
            let Claim::Acquired(claim) = guest.claim(("many", n % 3, n)).unwrap() else { panic!() };
            claim.complete(&format!("result {n}")).unwrap();
        }
    };
    fill(0);
    let acme = guest.namespace("acme");
    acquired(&acme, "in acme").complete("there").unwrap();
    acquired(&acme.namespace("plans"), "in plans").complete("there").unwrap();
    host.sync().unwrap();
    let seen = shown(&host);
    assert!(seen.len() > 200, "{seen:#?}");
    assert_same(&shown(&guest), &seen);
    assert!(host.stats().hosting.unwrap().is_here && !guest.stats().hosting.unwrap().is_here);
    assert_eq!(guest.stats().hosting.unwrap().guests, 1);

    // In tables and in memory.
    guest.merge_index().unwrap();
    assert!(guest.stats().tables > 0);
    fill(100);
    assert_same(&shown(&guest), &shown(&host));
    guest.rebuild_index().unwrap();
    assert!(guest.step().unwrap() > Duration::ZERO);
    let (one, other) = (made.path().join("one"), made.path().join("other"));
    assert!(guest.backup(&one).unwrap().bytes_copied() > 0);
    assert!(guest.backup_async(&other).wait().unwrap().bytes_copied() > 0);
    assert_eq!(guest.backup(&one).unwrap_err().kind(), ErrorKind::Invalid);
    for backup in [one, other] {
        let restored = Store::open(backup).unwrap();
        assert_eq!(restored.iter().count(), host.iter().count());
    }
    while !guest.compact(u64::MAX).unwrap().is_complete() {}
    assert!(guest.namespace("acme").namespace("plans").forget_all().unwrap());
    assert!(!host.namespace("acme").namespace("plans").forget_all().unwrap());
    assert!(acme.namespaces().unwrap().is_empty());

    let before = shown(&guest);
    assert_same(&before, &shown(&host));
    drop(host);
    // The first that calls hosts the store.
    assert!(matches!(guest.claim("held").unwrap(), Claim::Held(_)));
    let third = open(dir.path());
    assert!(guest.stats().hosting.unwrap().is_here);
    let of_keys = |lines: &[String]| lines.get(..lines.len() - 3).unwrap().to_vec();
    assert_same(&of_keys(&shown(&guest)), &of_keys(&before));
    assert_same(&shown(&third), &shown(&guest));
    claim.complete("done").unwrap();
    guest.close(Duration::from_secs(5)).unwrap();
    let closed = |error: onlyonce::Error| error.kind() == ErrorKind::Closed;
    assert!(guest.iter().next().unwrap().is_err_and(closed));
    assert!(guest.estimate().is_err_and(closed) && guest.verify().is_err_and(closed));
    assert_eq!(guest.health(), Health::Closed);
}

/// A page says where the next begins, so the next host continues a walk: each key comes once.
#[test]
fn a_walk_goes_on_with_the_next_host() {
    let dir = tempfile::tempdir().unwrap();
    let host = Peer::start("peer", dir.path());
    let guest = open(dir.path());
    // More than the first pages have.
    for n in 0..400_u64 {
        assert!(guest.mark(n).unwrap().is_first());
        if n == 200 {
            guest.merge_index().unwrap();
        }
    }
    let mut walks = [guest.iter(), guest.iter().oldest_first()];
    let mut seen = walks.each_mut().map(|walk| {
        walk.by_ref().take(70).map(|entry| entry.unwrap().0.to_string()).collect::<Vec<_>>()
    });
    host.kill();
    for (walk, seen) in walks.into_iter().zip(&mut seen) {
        seen.extend(walk.map(|entry| entry.unwrap().0.to_string()));
        seen.sort();
        let mut all: Vec<_> = (0..400).map(|n| n.to_string()).collect();
        all.sort();
        assert_eq!(*seen, all);
    }
    assert!(guest.stats().hosting.unwrap().is_here);
}

/// A stopped host holds up its guests as a disk that hangs would. They can say which process that is.
#[test]
fn a_stopped_host_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let host = Peer::start("peer", dir.path());
    let guest = open(dir.path());
    assert_eq!(guest.health(), Health::Writable);
    let pid = host.process.id();
    let signal = |what: &str| {
        let sent = std::process::Command::new("kill").args([what, &pid.to_string()]).status();
        assert!(sent.unwrap().success());
    };
    signal("-STOP");
    // It may answer until the signal has arrived.
    let named = loop {
        if let Health::Silent { process, .. } = guest.health() {
            break process;
        }
    };
    assert_eq!(named, pid);
    let hosting = guest.stats().hosting.unwrap();
    assert!(hosting.process == pid && hosting.silent_since.is_some(), "{hosting:?}");
    signal("-CONT");
    // The answers to what was asked before come first.
    while guest.health() != Health::Writable {}
    assert!(guest.mark("k").unwrap().is_first());
    assert_eq!(guest.stats().hosting.unwrap().silent_since, None);
}

/// A file in the socket's place. Nothing else is wrong with the store, so it opens, and says why nobody can join.
#[test]
fn a_process_that_cannot_listen_opens_the_store_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let socket = dir.path().join("socket");
    std::fs::write(&socket, "not a socket").unwrap();
    let alone = open(dir.path());
    let Health::Alone { cause } = alone.health() else { panic!("{:?}", alone.health()) };
    assert!(cause.contains("not a socket") && alone.health().is_writable(), "{cause}");
    assert_eq!(alone.stats().hosting, None);
    assert!(alone.mark("k").unwrap().is_first());
    let refused = shared().open_timeout(Duration::ZERO).open(dir.path()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    let own = format!("process {}", std::process::id());
    let says = refused.to_string();
    assert!(says.contains(&own) && says.contains("can't listen"), "{says}");
    drop(alone);
    std::fs::remove_file(&socket).unwrap();
    let (host, guest) = (open(dir.path()), open(dir.path()));
    assert_eq!((host.health(), guest.health()), (Health::Writable, Health::Writable));

    // Guests that live could never join a process that can't listen.
    let claim = acquired(&guest, "claim");
    drop(host);
    std::fs::write(&socket, "not a socket").unwrap();
    let refused = shared().open_timeout(Duration::ZERO).open(dir.path()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked, "{refused}");
    std::fs::remove_file(&socket).unwrap();
    claim.complete("done").unwrap();
}

/// A reader asks the host, and the next one. It leaves no trace: no file, and nobody that an opening waits for.
#[test]
fn a_reader_asks_the_process_that_hosts_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Peer::start("peer", dir.path());
    assert!(host.ask("claim claimed").starts_with("acquired"));
    let reader = Reader::open(dir.path()).unwrap();
    let look = |pid: u32| {
        let keys: Vec<_> = reader.iter().map(|entry| entry.unwrap().0.to_string()).collect();
        assert_eq!(keys, ["claimed"]);
        assert!(reader.get("absent").unwrap().is_none());
        assert!(reader.namespace("acme").get("k").unwrap().is_none());
        assert!(reader.namespaces().unwrap().is_empty());
        assert!(reader.verify().unwrap().is_whole());
        assert_eq!(reader.stats().unwrap().hosting.unwrap().process, pid);
    };
    assert!(matches!(reader.get("claimed").unwrap(), Some(State::InProgress(_))));
    look(host.process.id());
    assert!(!dir.path().join("sessions").exists());

    let mut next = Peer::start("peer", dir.path());
    host.kill();
    assert_eq!(next.ask("claim claimed"), "interrupted");
    assert!(matches!(reader.get("claimed").unwrap(), Some(State::Interrupted(_))));
    look(next.process.id());

    // A host that can't be reached is refused, as any process that has the store open.
    let socket = dir.path().join("socket");
    std::fs::rename(&socket, dir.path().join("hidden")).unwrap();
    assert_eq!(Reader::open(dir.path()).unwrap_err().kind(), ErrorKind::Locked);
    std::fs::rename(dir.path().join("hidden"), &socket).unwrap();

    next.kill();
    let gone = reader.get("claimed").unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Superseded, "{gone}");
    assert_eq!(reader.stats().unwrap_err().kind(), ErrorKind::Superseded);
    let other = Reader::open(dir.path()).unwrap();
    assert!(matches!(other.get("claimed").unwrap(), Some(State::Interrupted(_))));
    drop(Store::open(dir.path()).unwrap());
}
