//! A guest of a store on simulated seams, over real sockets: the suite of all backends.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::guest::OpenAsHost;
use super::{Guest, Guests, Joiner};
use crate::admin::Health;
use crate::backend::{Elsewhere, Shared};
use crate::log::Seams;
use crate::log::open::directory;
use crate::neighbours::{Neighbours, OsNeighbours};
use crate::storage::faulty::{CallFailure, Calls, Class, Effect, Fault, FaultyStorage};
use crate::testing::DiskFault;
use crate::testing::Sim;
use crate::testing::conformance::{Subject, check};
use crate::types::SessionId;
use crate::{Claim, ClaimGuard, Error, ErrorKind, Policy, State, Store};

/// The engine in a host, asked by a guest.
struct Asked {
    sim: Sim,
    dir: TempDir,
    session: u64,
    host: Option<(Store, Guests)>,
}

impl Asked {
    fn new() -> Self {
        Asked { sim: Sim::small(1), dir: tempfile::tempdir().unwrap(), session: 0, host: None }
    }

    /// Its thread would serve on, and keep its files open.
    fn stop(&mut self) {
        if let Some((_, guests)) = self.host.take() {
            guests.stop();
        }
    }

    /// Opens the store in a host that may have so many files open.
    fn serve(&mut self, files_max: Option<u64>) {
        self.stop();
        let store = self.sim.open().unwrap();
        let neighbours = || Arc::new(OsNeighbours::new(self.dir.path()).unwrap());
        let listener = neighbours().listen().unwrap();
        let view = Arc::new(Shared::Embedded(store.shared().embedded().unwrap().view()));
        let guests = Guests::serve(view, neighbours(), listener, Vec::new(), files_max).unwrap();
        self.host = Some((store, guests));
    }

    /// Joins the host, by [`join`].
    fn join(&mut self, hosts: OpenAsHost) -> Store {
        self.session += 1;
        join(self.dir.path(), self.session, hosts)
    }
}

/// Joins the host that listens there. `hosts`: what the guest meets when it tries to become the host itself.
fn join(dir: &Path, session: u64, host: OpenAsHost) -> Store {
    let neighbours = Arc::new(OsNeighbours::new(dir).unwrap());
    let connection = neighbours.connect().unwrap().unwrap();
    let joiner = Joiner {
        dir: dir.to_owned(),
        session: neighbours.begin(SessionId::new(session).unwrap()).unwrap().unwrap(),
        neighbours,
        host,
        draw: Box::new(|| 0),
        result_bytes_max: 1 << 10,
    };
    let guest = Guest::join(joiner, connection).unwrap();
    let operator = guest.operator();
    let shared = Shared::Other(Elsewhere::new(Box::new(guest)));
    Store::hosted(shared, Policy::new(), operator)
}

/// What its own handles left is not to be waited for once the host has died.
fn nobody() -> OpenAsHost {
    Box::new(|| Err(Error::new(ErrorKind::Incompatible, "nobody hosts it again")))
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Subject for Asked {
    fn open(&mut self) -> Store {
        self.serve(None);
        self.join(nobody())
    }

    fn wait(&mut self, time: Duration) {
        self.sim.advance(time);
    }

    fn die(&mut self) {
        self.sim.kill();
        self.stop();
    }
}

#[test]
fn a_guest_conforms() {
    println!("{} cases", check(Asked::new));
}

/// A short process joins, works, and goes: the disk does no more for it than for a pair of the host's own.
#[test]
fn a_short_life_of_a_guest_takes_no_more_of_the_disk_than_its_pair() {
    let mut asked = Asked::new();
    drop(asked.open());
    let pair = |store: &Store, key: &str| {
        let Claim::Acquired(claim) = store.claim(key).unwrap() else { panic!() };
        claim.complete("done").unwrap();
    };
    let (host, _) = asked.host.as_ref().unwrap();
    let host = host.clone();
    // The first write of an opening prepares more.
    pair(&host, "first");
    let changes = |mut calls: Vec<(String, PathBuf)>| {
        calls.retain(|(class, _)| class != "Stat");
        calls
    };
    let sim = &asked.sim;
    let own = changes(sim.calls_of(|| pair(&host, "own")));
    let dir = asked.dir.path();
    let guests = changes(sim.calls_of(|| {
        let guest = join(dir, 99, nobody());
        pair(&guest, "guest's");
        guest.close(Duration::from_secs(5)).unwrap();
    }));
    assert_eq!(own.iter().filter(|(class, _)| class == "Sync").count(), 2, "{own:?}");
    assert_eq!(guests, own);
}

/// Another process would meet the same disk: the host keeps its guests, who read on, and are told which process that is. They live on
/// when it opens the store anew.
#[test]
fn a_poisoned_host_keeps_its_guests() {
    let mut asked = Asked::new();
    let guest = asked.open();
    assert!(guest.mark("done").unwrap().is_first());
    let Claim::Acquired(claim) = guest.claim("claimed").unwrap() else { panic!() };
    asked.sim.fail_call(0, DiskFault::Io);
    let failed = guest.mark("lost").unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Indeterminate, "{failed}");

    let host = format!("process {}", std::process::id());
    let refused = guest.mark("refused").unwrap_err();
    assert!(
        refused.kind() == ErrorKind::Poisoned && refused.to_string().contains(&host),
        "{refused}"
    );
    let Health::Poisoned { cause } = guest.health() else { panic!("{:?}", guest.health()) };
    assert!(cause.contains(&host), "{cause}");
    let refused = guest.sync().unwrap_err();
    assert!(
        refused.kind() == ErrorKind::Poisoned && refused.to_string().contains(&host),
        "{refused}"
    );
    assert!(matches!(guest.claim("done").unwrap(), Claim::Completed(_)));
    assert!(matches!(guest.get("claimed").unwrap(), Some(State::InProgress(_))));
    let keys: Vec<crate::Result<String>> =
        guest.iter().map(|entry| Ok(entry?.0.to_string())).collect();
    let listed: Vec<&str> = keys.iter().flatten().map(String::as_str).collect();
    assert_eq!(listed.len(), 2, "{keys:?}");
    let (store, _) = asked.host.as_ref().unwrap();
    assert!(matches!(store.health(), Health::Poisoned { .. }));
    assert_eq!(guest.stats().hosting.unwrap().guests, 1);

    // The process that hosts it opens it anew, while this guest lives.
    let (store, guests) = asked.host.take().unwrap();
    guests.stop();
    let _ = store.close(Duration::ZERO);
    drop(store);
    let other = asked.open();
    assert_eq!(guest.health(), Health::Writable);
    claim.complete("late").unwrap();
    assert!(matches!(other.claim("claimed").unwrap(), Claim::Completed(_)));
}

/// A store that processes share, on a disk that a test makes fail.
fn shared_on(dir: &TempDir) -> (FaultyStorage, Store) {
    let seams = directory::system(dir.path()).unwrap();
    let disk = FaultyStorage::new(Arc::clone(&seams.storage));
    let seams = Seams { storage: Arc::new(disk.clone()), ..seams };
    let builder = Store::builder().shared(true);
    (disk, builder.open_on(seams, dir.path(), true).unwrap())
}

fn acquired(store: &Store, key: &str) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    }
}

fn poison(disk: &FaultyStorage, store: &Store, round: u32) {
    assert!(store.mark(format!("before {round}")).unwrap().is_first());
    disk.inject(Fault::once(Calls::Of(Class::Sync), 0, Effect::Fail(CallFailure::IO)));
    let failed = store.mark(format!("poison {round}")).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Indeterminate, "{failed}");
}

/// Whoever calls it: the host does it, and its guests stay.
#[test]
fn a_poisoned_host_is_reopened_under_its_guests() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, host) = shared_on(&dir);
    let guest = Store::builder().shared(true).open(dir.path()).unwrap();
    assert!(!guest.stats().hosting.unwrap().is_here);
    let (own, theirs) = (acquired(&host, "own"), acquired(&guest, "theirs"));
    for round in 0..4 {
        let caller = [&host, &guest][round as usize % 2];
        poison(&disk, &guest, round);
        assert_eq!(guest.mark("refused").unwrap_err().kind(), ErrorKind::Poisoned);
        caller.reopen().unwrap();
        assert_eq!((host.health(), guest.health()), (Health::Writable, Health::Writable));
        assert!(own.is_live() && theirs.is_live(), "{round}");
        assert_eq!(host.stats().in_flight, 2);
        assert_eq!(guest.stats().hosting.unwrap().guests, 1);
        assert!(!guest.mark(format!("before {round}")).unwrap().is_first());
    }
    // Nobody else may take the directory in between.
    poison(&disk, &host, 4);
    disk.inject(Fault::from(Calls::Any, 0, Effect::Fail(CallFailure::IO)));
    let refused = guest.reopen().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Poisoned);
    assert!(refused.to_string().contains("could not be reopened"), "{refused}");
    assert_eq!(guest.get("own").unwrap_err().kind(), ErrorKind::Poisoned);
    disk.heal();
    host.reopen().unwrap();
    own.complete("v").unwrap();
    theirs.complete("v").unwrap();
    for key in ["own", "theirs"] {
        assert!(matches!(guest.claim(key).unwrap(), Claim::Completed(_)), "{key}");
    }
}

/// The same for a host that was a guest before.
#[test]
fn a_guest_that_has_become_the_host_is_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::builder().shared(true).open_or_create(dir.path()).unwrap();
    let (disk, second) = shared_on(&dir);
    let third = Store::builder().shared(true).open(dir.path()).unwrap();
    let (claim, theirs) = (acquired(&second, "k"), acquired(&third, "theirs"));
    first.close(Duration::from_secs(1)).unwrap();
    while !second.stats().hosting.is_some_and(|hosting| hosting.is_here) {
        // The other may have become it: then it goes, too.
        if third.stats().hosting.is_some_and(|hosting| hosting.is_here) {
            return;
        }
    }
    poison(&disk, &second, 0);
    third.reopen().unwrap();
    assert!(claim.is_live() && theirs.is_live());
    claim.complete("v").unwrap();
    theirs.complete("v").unwrap();
    assert!(matches!(third.claim("k").unwrap(), Claim::Completed(_)));
}

/// The next host may have fewer files open than the one before. Calls waited without a word until another guest left.
#[test]
fn calls_of_a_guest_that_the_next_host_refuses_are_told_so() {
    let mut asked = Asked::new();
    asked.serve(None);
    let guest = asked.join(Box::new(|| Ok(None)));
    assert!(guest.mark("before").unwrap().is_first());
    let Claim::Acquired(claim) = guest.claim("claimed").unwrap() else { panic!() };
    asked.serve(Some(0));
    // It was sent before the guest knew that its host had gone.
    let unknown = guest.mark("unknown").unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Indeterminate, "{unknown}");
    let refused = guest.mark("refused").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked, "{refused}");
    assert!(refused.to_string().contains("ulimit -n"), "{refused}");
    // An owner that leaves is not waited for by anybody: its word waits for the next host.
    drop(claim);
    asked.serve(None);
    // The last answer of the host before may be on its way.
    let marked = std::iter::repeat_with(|| guest.mark("refused")).find_map(Result::ok).unwrap();
    assert!(marked.is_first());
    guest.sync().unwrap();
    assert!(matches!(guest.get("claimed").unwrap(), Some(State::Interrupted(_))));
}

/// It has the whole time of the deadline, and takes no more of it than the claims do.
#[test]
fn a_guest_that_closes_waits_for_its_claims_to_end() {
    const FAR: Duration = Duration::from_secs(60);
    let mut asked = Asked::new();
    let guest = asked.open();
    let Claim::Acquired(claim) = guest.claim("k").unwrap() else { panic!() };
    let (tell, closed) = std::sync::mpsc::channel();
    let closing = guest.clone();
    let thread = std::thread::spawn(move || tell.send(closing.close(60 * FAR)));
    while guest.mark("drained?").is_ok() {}
    claim.complete("done").unwrap();
    let left = closed.recv_timeout(FAR).expect("the close ends").unwrap();
    assert!(left.is_empty(), "{left:?}");
    thread.join().unwrap().unwrap();
}
