//! Guests that lack what they count on: their descriptors, the rights of the directory's owner, room at the host.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use onlyonce::{Claim, ErrorKind, Operation, State, Store};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::process::files;
use crate::processes::{Peer, acquired, open, peer, shared};

/// A session whose lock went with the descriptors would end with the next handover, and its claims with it.
#[test]
fn a_guest_that_closes_descriptors_it_doesn_t_know_keeps_what_it_claims_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let host = open(dir.path());
    let mut daemon = Peer::start("peer", dir.path());
    assert!(daemon.ask("claim before").starts_with("acquired"));
    assert_eq!(daemon.ask("close descriptors"), "closed");
    assert!(daemon.ask("claim after").starts_with("acquired"));
    let next = open(dir.path());
    drop(host);
    assert!(matches!(next.claim("after").unwrap(), Claim::InProgress(_)));
    // Nobody has claimed it meanwhile.
    assert_eq!(daemon.ask("complete before"), "done");
    assert_eq!(daemon.ask("complete after"), "done");
    assert_eq!(daemon.ask("close descriptors"), "closed");
    drop(next);
    // It hosts the store now.
    assert_eq!(daemon.ask("claim after"), "completed");
    assert!(matches!(open(dir.path()).claim("before").unwrap(), Claim::Completed(_)));
}

/// A user that owns nothing.
const OTHER: u32 = 54321;

/// The role of a peer that another user runs than the directory's owner.
#[expect(unsafe_code, reason = "std can't change the user of a process that runs")]
pub(crate) fn peer_of_another_user(dir: &Path) {
    // SAFETY: changes ids of this process, nothing in memory.
    let changed = unsafe { (libc::setgroups(0, std::ptr::null()), libc::setgid(OTHER)) };
    // SAFETY: as above.
    assert_eq!((changed, unsafe { libc::setuid(OTHER) }), ((0, 0), 0));
    if let Err(e) = shared().open_timeout(Duration::ZERO).open(dir) {
        println!("peer: refused {:?} {e}", e.kind());
    }
    peer(dir);
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What it wrote as the host would be closed to the owner.
#[test]
fn another_user_than_the_directory_s_owner_joins_and_never_hosts() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    for name in ["sessions", "socket"] {
        let _ = std::fs::remove_file(dir.path().join(name));
    }
    let before = files(dir.path());
    let mut other = Peer::start_unready("peer-of-another-user", dir.path());
    let refused = other.hear("refused ");
    assert!(
        refused.starts_with("Locked") && refused.contains("belongs to another user"),
        "{refused}"
    );
    assert!(files(dir.path()) == before, "it has left something");
    let host = open(dir.path());
    other.hear("open");
    assert!(other.ask("claim k").starts_with("acquired"));
    // A handover, during which nobody may host for a while.
    drop(host);
    other.order("claim l");
    let host = open(dir.path());
    assert!(other.hear("told ").starts_with("acquired"));
    assert!(matches!(host.claim("k").unwrap(), Claim::InProgress(_)));
    assert_eq!(other.ask("complete k"), "done");
    drop(host);
    let owners = files(dir.path()).into_keys().map(|path| path.metadata().unwrap().uid());
    assert!(owners.into_iter().all(|owner| owner == 0));
}

/// The directory is not the other user's to change.
#[test]
fn a_user_without_the_right_to_write_is_told_so() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _host = open(dir.path());
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut other = Peer::start_unready("peer-of-another-user", dir.path());
    let refused = other.hear("refused ");
    assert!(refused.starts_with("Io") && refused.contains("no permission"), "{refused}");
}

/// The role of a host that may have few files open.
pub(crate) fn host_of_few_files(dir: &Path) {
    let most = Rlimit { current: Some(FEW_FILES), maximum: Some(FEW_FILES) };
    setrlimit(Resource::Nofile, most).unwrap();
    peer(dir);
}

const FEW_FILES: u64 = 96;

/// They would leave it no descriptor to roll its log with.
#[test]
fn guests_take_at_most_half_of_the_host_s_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Peer::start("host-of-few-files", dir.path());
    let mut guests: Vec<Store> = (0..FEW_FILES / 2).map(|_| open(dir.path())).collect();
    let refused = shared().open_timeout(Duration::ZERO).open(dir.path()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    for words in [&host.pid().to_string(), "48 guests", "96 files", "ulimit -n"] {
        assert!(refused.to_string().contains(words), "{words:?} is not in: {refused}");
    }
    let Claim::Acquired(claim) = guests[0].claim("k").unwrap() else { panic!() };
    assert!(guests.iter().all(|guest| guest.get("k").unwrap().is_some()));
    assert_eq!(host.ask("claim k"), "in progress");
    claim.complete("done").unwrap();
    // There is room again, and an opening waits for it.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| open(dir.path()));
        drop(guests.pop());
        assert!(waits.join().unwrap().mark("m").unwrap().is_first());
    });
}

/// Calls that nobody answers take no more and more memory.
#[test]
fn a_guest_of_a_stopped_host_says_which_process_it_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Peer::start("peer", dir.path());
    let guest = open(dir.path());
    host.stop();
    let mut waiting: Vec<_> = (0..1024).map(|n| guest.mark_async(n)).collect();
    let refused = guest.mark("one more").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InProgress);
    assert!(refused.to_string().contains(&format!("process {}", host.pid())), "{refused}");
    host.go_on();
    assert!(waiting.drain(..).all(|call| call.wait().unwrap().is_first()));
    assert!(guest.mark("one more").unwrap().is_first());
    assert_eq!(host.ask("claim k").split(' ').next(), Some("acquired"));
}

/// Whoever waits with a deadline goes on, and is told which process that is. What was given up is given back.
#[test]
fn waits_with_a_deadline_end_while_the_host_is_stopped() {
    let brief = Duration::from_millis(50);
    let dir = tempfile::tempdir().unwrap();
    let mut host = Peer::start("peer", dir.path());
    let (guest, closes) = (open(dir.path()), open(dir.path()));
    assert!(host.ask("claim held").starts_with("acquired"));
    let claim = acquired(&closes, "of one that closes");
    let host_s = format!("process {}", host.pid());
    host.stop();
    let mut mark = guest.mark_async("m");
    assert!(mark.wait_timeout(brief).is_none());
    let waits: [&(dyn Fn() -> onlyonce::Error + Sync); 4] = [
        &|| guest.claim_wait("held", brief).unwrap_err(),
        &|| guest.claim_wait_async("free", brief).wait().unwrap_err(),
        &|| {
            let mut polled = guest.claim_wait_async("free", brief);
            polled.wait_timeout(Duration::from_secs(90)).unwrap().unwrap_err()
        },
        &|| closes.close(brief).unwrap_err(),
    ];
    let errors = std::thread::scope(|scope| {
        let waits = waits.map(|wait| scope.spawn(wait));
        let began = std::time::Instant::now();
        while !waits.iter().all(|wait| wait.is_finished()) {
            if began.elapsed() > Duration::from_secs(60) {
                host.go_on();
                panic!("the waits outlast their deadlines");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        waits.map(|wait| wait.join().unwrap())
    });
    for error in errors {
        let says = error.to_string();
        assert!(error.kind() == ErrorKind::InProgress && says.contains(&host_s), "{error:?}");
    }
    host.go_on();
    assert!(mark.wait().unwrap().is_first());
    acquired(&guest, "free").complete("done").unwrap();
    // Its session ends with the last handle.
    drop((claim, closes));
    let interrupted = guest.claim_wait("of one that closes", Duration::from_secs(60)).unwrap();
    assert!(matches!(interrupted, Claim::Interrupted(_)), "{interrupted}");
    assert_eq!(host.ask("complete held"), "done");
}

/// At random moments, for less and for longer than a call takes.
#[test]
fn each_call_has_its_effect_once_though_the_host_stops_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let host = Peer::start("peer", dir.path());
    let guests = [open(dir.path()), open(dir.path())];
    let rounds = if std::env::var_os("ONLYONCE_LONG").is_some() { 50 } else { 20 };
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let goes_on = || !is_over.load(std::sync::atomic::Ordering::SeqCst);
    let made: u64 = std::thread::scope(|scope| {
        let work = |thread: u64| {
            let guest = &guests[thread as usize % 2];
            let mut made = 0;
            while goes_on() {
                let claim = acquired(guest, &format!("claimed {thread} {made}"));
                let mut marked = guest.mark_async(("marked", thread, made));
                claim.complete("done").unwrap();
                let told = marked.wait_timeout(Duration::from_millis(1));
                assert!(told.unwrap_or_else(|| marked.wait()).unwrap().is_first());
                made += 1;
            }
            made
        };
        let working: Vec<_> = (0..4).map(|thread| scope.spawn(move || work(thread))).collect();
        let mut dice = 1_u64;
        let mut millis = || {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            Duration::from_micros((dice >> 33) % 10_000)
        };
        for _ in 0..rounds {
            std::thread::sleep(millis());
            host.stop();
            std::thread::sleep(millis());
            host.go_on();
        }
        is_over.store(true, std::sync::atomic::Ordering::SeqCst);
        working.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(made > 0);
    let completed = |entry: onlyonce::Result<(onlyonce::Key<'static>, State)>| {
        matches!(entry.unwrap().1, State::Completed(_))
    };
    let all = guests[0].iter().map(completed).filter(|is_completed| *is_completed).count();
    assert_eq!(all as u64, 2 * made);
    println!("{made} pairs and marks, {rounds} stops");
}

/// One that doesn't read its answers, and one whose lease passes meanwhile.
#[test]
fn a_stopped_guest_holds_up_nobody_and_keeps_its_claims() {
    let dir = tempfile::tempdir().unwrap();
    let (host, other) = (open(dir.path()), open(dir.path()));
    let mut stopped = Peer::start("peer", dir.path());
    acquired(&host, "big").complete(&"x".repeat(64 << 10)).unwrap();
    assert!(stopped.ask("claim kept").starts_with("acquired"));
    assert_eq!(stopped.ask("lease brief"), "leased");
    stopped.order("flood big");
    stopped.hear("flooding");
    stopped.stop();
    for n in 0..100 {
        assert!(host.mark(("host", n)).unwrap().is_first());
        assert!(other.mark(("other", n)).unwrap().is_first());
    }
    let lapsed = other.claim_wait("brief", Duration::from_secs(60)).unwrap();
    let Claim::Interrupted(lapsed) = lapsed else { panic!("{lapsed}") };
    lapsed.take_over().unwrap().complete("by another").unwrap();
    assert!(matches!(other.claim("kept").unwrap(), Claim::InProgress(_)));
    stopped.go_on();
    assert_eq!(stopped.hear("told "), "500 answers");
    assert_eq!(stopped.ask("complete kept"), "done");
    assert_eq!(stopped.ask("complete brief"), "ClaimLost");
}

/// Renewals are not in the log: the next host would go by the lease that the claim was granted with.
#[test]
fn what_is_left_of_a_lease_outlives_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let (host, next, other) = (open(dir.path()), open(dir.path()), open(dir.path()));
    let hour = Duration::from_secs(3600);
    let claim = |store: &Store, key: &'static str| {
        let Claim::Acquired(claim) = store.claim(Operation::new(key).lease(hour)).unwrap() else {
            panic!("{key}")
        };
        claim.renew(hour / 4).unwrap();
        claim
    };
    let _claims = (claim(&next, "of the next host"), claim(&other, "of another guest"));
    drop(host);
    let left = |key: &str| {
        let Some(State::InProgress(attempt)) = next.get(key).unwrap() else { panic!("{key}") };
        attempt.lease_left().unwrap()
    };
    assert!(left("of the next host") <= hour / 4);
    // Until its owner joins, which may take longer than what is left.
    assert!(left("of another guest") > hour / 2);
    assert!(other.mark("it has joined").unwrap().is_first());
    assert!(left("of another guest") <= hour / 2);
}

/// The role of a process that forks while it hosts a store, is a guest of another process, or hosts what it was a guest of.
#[expect(unsafe_code, reason = "a real fork is what this is about")]
pub(crate) fn forks(dir: &Path, role: &str) {
    let store = open(dir);
    let store = match role {
        "heir" => {
            let guest = open(dir);
            drop(store);
            assert!(guest.mark("it hosts").unwrap().is_first());
            guest
        }
        _ => store,
    };
    let claim = |key: &str| {
        let Claim::Acquired(claim) = store.claim(key).unwrap() else { panic!("{key}") };
        claim
    };
    let (ended, held) = (claim("ended"), claim("held"));
    // SAFETY: the child allocates and makes system calls, which glibc allows after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // A child that waits for a thread of its parent gets no error.
        // SAFETY: as above.
        unsafe { libc::alarm(60) };
        let told = [
            store.claim("new").map(drop),
            store.mark("new").map(drop),
            store.get("ended").map(drop),
            store.forget("ended").map(drop),
            store.sync(),
            store.mark_async("new").wait().map(drop),
            store.iter().next().map_or(Ok(()), |met| met.map(drop)),
            ended.complete("by the child"),
            store.close(Duration::ZERO).map(drop),
        ];
        let is_forked = |told: &onlyonce::Result<()>| {
            told.as_ref().is_err_and(|e| e.kind() == ErrorKind::Forked)
        };
        let is_refused = told.iter().all(is_forked);
        if !is_refused {
            println!("told {told:?}");
        }
        let _ = (store.health(), store.stats());
        drop((held, store));
        let own = open(dir);
        let lives = matches!(own.claim("held"), Ok(Claim::InProgress(_)));
        let can_use = own.mark("by the child").is_ok_and(|mark| mark.is_first());
        drop(own);
        let code = i32::from(!is_refused) + 2 * i32::from(!lives) + 4 * i32::from(!can_use);
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(code) };
    }
    let mut status = -1;
    // SAFETY: `status` is a valid place for one int.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "{role}");
    let other = open(dir);
    for key in ["ended", "held"] {
        assert!(matches!(other.claim(key).unwrap(), Claim::InProgress(_)), "{role}: {key}");
    }
    assert!(!other.mark("by the child").unwrap().is_first());
    ended.complete("by the parent").unwrap();
    held.complete("by the parent").unwrap();
    println!("peer: fine");
}

/// Its copies of the session's lock, the directory's lock and the sockets are none of the child's.
#[test]
fn a_forked_child_ends_no_session_and_joins_by_an_opening_of_its_own() {
    for role in ["host", "guest", "heir"] {
        let dir = tempfile::tempdir().unwrap();
        let host = (role == "guest").then(|| open(dir.path()));
        let mut forks = Peer::start_unready(&format!("forks:{role}"), dir.path());
        forks.hear("fine");
        drop(forks);
        drop(host);
        let store = open(dir.path());
        assert!(matches!(store.claim("held").unwrap(), Claim::Completed(_)), "{role}");
    }
}
