//! Backups of an open store.
//!
//! Invariants: a backup is the store at one moment of the call; its directory holds no store before that is whole and
//! durable; the store is unharmed whatever becomes of the backup, and the backup whatever becomes of the store.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use onlyonce::admin::{AcceptLoss, Health};
use onlyonce::testing::{DiskFault, Sim, SimCrash};
use onlyonce::{
    Claim, ClaimGuard, Durability, Error, ErrorKind, Key, OnInterrupted, Operation, State, Store,
    StoreBuilder,
};

use crate::process::files;

const HOUR: Duration = Duration::from_secs(3600);
const LONG: Duration = Duration::from_secs(60);
const BACKUP: &str = "/backup";

fn builder() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10)
}

/// So long that about twenty fill a segment.
fn long(n: u64) -> String {
    format!("{n:0>700}")
}

fn mark(store: &Store, keys: std::ops::Range<u64>) {
    for n in keys {
        let op = Operation::new(long(n)).durability(Durability::Flush);
        assert!(store.mark(op).unwrap().is_first(), "{n}");
    }
}

fn granted(store: &Store, key: &str) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{key}: {other}"),
    }
}

/// Another machine with the disk as it is now, where the backup takes the store's place.
fn restored(sim: &Sim) -> Sim {
    let other = sim.copy();
    let _ = other.remove("/store");
    other.rename(BACKUP, "/store").unwrap();
    other
}

/// Opens a backup. It is whole, nothing was cut, and it has all these keys.
fn check_whole(restored: &Sim, keys: std::ops::Range<u64>) -> Store {
    let store = restored.open_existing(builder(), false).unwrap();
    assert_eq!(store.stats().opening.cut, None);
    let verified = store.verify().unwrap();
    assert!(verified.is_whole(), "{:?}", verified.damages);
    for n in keys {
        assert!(store.get(long(n)).unwrap().is_some(), "{n}");
    }
    store
}

/// The segments in a directory.
fn segments(sim: &Sim, store: &str) -> BTreeSet<PathBuf> {
    let log = Path::new(store).join("log");
    let files = sim.files().into_iter().map(|(path, _)| path);
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|end| end == "log");
    files.filter(|path| path.parent() == Some(&log) && is_segment(path)).collect()
}

/// Several segments, tables, and files of remembered keys. Closed.
fn aged(seed: u64) -> Sim {
    let sim = Sim::new(seed);
    let store = sim.open_with(builder()).unwrap();
    let kept = |n: u64| Operation::new(long(n)).retention(HOUR).remember_expired(100 * HOUR);
    for n in 1000..1060 {
        assert!(store.mark(kept(n)).unwrap().is_first());
    }
    sim.advance(2 * HOUR);
    mark(&store, 0..40);
    store.compact(u64::MAX).unwrap();
    mark(&store, 40..100);
    store.close(Duration::ZERO).unwrap();
    let all = sim.files();
    let has = |end: &str| all.iter().any(|(path, _)| path.to_string_lossy().ends_with(end));
    assert!(has(".tab") && has(".exp") && segments(&sim, "/store").len() > 2, "{all:?}");
    sim
}

#[test]
fn a_backup_has_every_state_as_it_was() {
    let sim = Sim::new(1);
    let store = sim.open_with(builder()).unwrap();
    let kept = Operation::new("remembered").retention(HOUR).remember_expired(100 * HOUR);
    assert!(store.mark(kept).unwrap().is_first());
    mark(&store, 0..100);
    sim.advance(2 * HOUR);
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    granted(&store, "completed").complete("a result").unwrap();
    granted(&store, "failed").fail("why").unwrap();
    granted(&store, "aborted").abort("busy").unwrap();
    let hold = Operation::new("held").on_interrupted(OnInterrupted::Hold);
    drop(store.claim(hold).unwrap());
    let in_flight = granted(&store, "in flight");
    in_flight.save_progress("half").unwrap();
    let made = in_flight.step("first", |_| Ok::<_, Error>("made".to_owned())).unwrap();
    let downstream = in_flight.downstream_key("psp");
    let ticket = granted(&store, "detached").detach(HOUR).unwrap();
    let acme = store.namespace("acme");
    granted(&acme, "completed").complete("theirs").unwrap();
    let lazy = Operation::new("lazy").durability(Durability::Lazy);
    assert!(store.mark(lazy).unwrap().is_first());
    store.forget(long(99)).unwrap();

    let backup = store.backup_async(BACKUP).wait().unwrap();
    assert!(backup.bytes_linked() > 0 && backup.bytes_copied() > 0, "{backup:?}");
    // What comes later is not in it.
    in_flight.complete("done").unwrap();
    store.attach(&ticket).unwrap().complete("done").unwrap();
    assert!(store.mark("later").unwrap().is_first());

    let other = restored(&sim);
    let restored = check_whole(&other, 0..99);
    assert!(!restored.stats().opening.was_clean);
    assert_eq!(restored.stats().opening.records_resynced, 0);
    for key in ["later", "never"] {
        assert_eq!(restored.get(key).unwrap(), None);
    }
    assert_eq!(restored.get(long(99)).unwrap(), None);
    assert!(matches!(restored.get("lazy").unwrap(), Some(State::Completed(_))));
    assert!(matches!(restored.claim("remembered").unwrap(), Claim::Expired(_)));
    assert!(matches!(restored.get("failed").unwrap(), Some(State::Failed(_))));
    assert!(matches!(restored.get("aborted").unwrap(), Some(State::Aborted(_))));
    let hold = Operation::new("held").on_interrupted(OnInterrupted::Hold);
    assert!(matches!(restored.claim(hold).unwrap(), Claim::Held(_)));
    let Claim::Completed(done) = restored.claim("completed").unwrap() else { panic!() };
    assert_eq!(done.decode::<String>().unwrap(), "a result");
    let acme = restored.namespace("acme");
    let Claim::Completed(done) = acme.claim("completed").unwrap() else { panic!() };
    assert_eq!(done.decode::<String>().unwrap(), "theirs");
    assert_eq!(restored.namespaces().unwrap(), ["acme"]);
    // The claim in flight has lost its process, and the detached one waits for its ticket, by the same secret.
    let Claim::Interrupted(lost) = restored.claim("in flight").unwrap() else { panic!() };
    assert_eq!(lost.attempt().progress().unwrap().decode::<String>().unwrap(), "half");
    let claim = lost.take_over().unwrap();
    assert_eq!(claim.downstream_key("psp"), downstream);
    let replayed = claim.step("first", |_| -> Result<String, Error> { panic!("done before") });
    assert_eq!(replayed.unwrap(), made);
    claim.complete("again").unwrap();
    restored.attach(&ticket).unwrap().complete("there").unwrap();
}

/// Each thread marks its keys in order, and forgets those from 200 before. So in a backup each has an unbroken run of keys:
/// from the last one marked 200 back, or one more. Segments leave the log all the time.
#[test]
fn a_backup_beside_calls_is_one_moment_and_lacks_nothing_acknowledged_before() {
    const KEPT: u64 = 200;
    let key = |thread: u64, n: u64| Key::from((thread, n, "x".repeat(500).as_str())).into_owned();
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let small = || builder().segment_bytes(64 << 10);
    let store = small().open_or_create(&keys).unwrap();
    let is_over = AtomicBool::new(false);
    let marked = [AtomicU64::new(0), AtomicU64::new(0)];
    let rounds = if std::env::var_os("ONLYONCE_LONG").is_some() { 200 } else { 12 };
    std::thread::scope(|scope| {
        for (thread, marked) in marked.iter().enumerate() {
            let (store, is_over, key) = (&store, &is_over, &key);
            scope.spawn(move || {
                for n in 0.. {
                    if is_over.load(Ordering::SeqCst) {
                        return;
                    }
                    let level =
                        [Durability::Sync, Durability::Flush, Durability::Lazy][n as usize % 3];
                    let op = Operation::new(key(thread as u64, n)).durability(level);
                    assert!(store.mark(op).unwrap().is_first());
                    marked.store(n + 1, Ordering::SeqCst);
                    if let Some(old) = n.checked_sub(KEPT) {
                        assert!(store.forget(key(thread as u64, old)).unwrap());
                    }
                }
            });
        }
        let mut check = |round: u32| {
            let backup = dir.path().join(format!("backup-{round}"));
            let before = [0, 1].map(|thread| marked[thread].load(Ordering::SeqCst));
            store.backup(&backup).unwrap();
            let after = [0, 1].map(|thread| marked[thread].load(Ordering::SeqCst));
            let restored = small().open(&backup).unwrap();
            for thread in 0..2 {
                let has = |n: u64| restored.get(key(thread as u64, n)).unwrap().is_some();
                // One may be marked and not counted yet.
                let there: Vec<_> = (0..=after[thread]).map(has).collect();
                let count = there.iter().rposition(|is_there| *is_there).map_or(0, |last| last + 1);
                assert!(count as u64 >= before[thread], "{round}: {count} of {before:?}");
                // The last forget may be missing, or the one that belongs to the last mark be there.
                let edge = count.checked_sub(KEPT as usize + 1);
                for (n, is_there) in there.into_iter().enumerate() {
                    let is_kept = n < count && n + KEPT as usize >= count;
                    assert!(is_there == is_kept || Some(n) == edge, "{round}: {n} of {count}");
                }
            }
            assert!(restored.verify().unwrap().is_whole());
            drop(restored);
            std::fs::remove_dir_all(&backup).unwrap();
        };
        let checked = catch_unwind(AssertUnwindSafe(|| (0..rounds).for_each(&mut check)));
        is_over.store(true, Ordering::SeqCst);
        checked.unwrap();
    });
    assert!(store.verify().unwrap().is_whole());
}

#[test]
fn a_restored_backup_issues_tokens_beyond_those_that_the_store_issued_since() {
    let sim = Sim::new(3);
    let mut newest = 0;
    let mut store = sim.open_with(builder()).unwrap();
    newest = newest.max(granted(&store, "before").token().get());
    store.backup(BACKUP).unwrap();
    for life in 0..4 {
        for n in 0..100 {
            let claim = granted(&store, &format!("{life}-{n}"));
            assert!(claim.token().get() > newest);
            newest = claim.token().get();
            claim.complete(&[7; 500]).unwrap();
        }
        sim.advance(Duration::from_millis(1));
        match life % 2 {
            0 => sim.kill(),
            _ => drop(store.close(Duration::ZERO).unwrap()),
        }
        store = sim.open_with(builder()).unwrap();
    }
    for again in 1..3 {
        let other = restored(&sim);
        other.advance(Duration::from_millis(again));
        let restored = check_whole(&other, 0..0);
        let Claim::Interrupted(lost) = restored.claim("before").unwrap() else { panic!() };
        let first = lost.take_over().unwrap().token().get();
        assert!(first > newest, "{first} {newest}");
        newest = first;
    }
}

/// Every segment that the backup was about to take has left the log meanwhile, and its live records are in others.
#[test]
fn a_backup_goes_on_when_the_store_removes_what_it_is_to_take() {
    for (links, after) in [(true, 0), (true, 3), (false, 0), (false, 3)] {
        let sim = Sim::new(4);
        let store = sim.open_with(builder()).unwrap();
        mark(&store, 0..240);
        let gate = if links {
            sim.hold_link(after)
        } else {
            sim.refuse_links();
            sim.hold_read(after)
        };
        let backup = std::thread::scope(|scope| {
            let backup = scope.spawn(|| store.backup(BACKUP));
            assert!(gate.wait_arrived(LONG));
            let before = segments(&sim, "/store");
            // Dropped before the threads are joined, so that a failure here ends the test.
            let gate = gate;
            for n in (0..240).step_by(2) {
                assert!(store.forget(long(n)).unwrap());
            }
            mark(&store, 300..340);
            assert!(store.compact(u64::MAX).unwrap().is_complete());
            assert!(before.is_disjoint(&segments(&sim, "/store")));
            gate.open();
            backup.join().unwrap().unwrap()
        });
        assert_eq!(backup.bytes_linked() > 0, links, "{after} {backup:?}");
        sim.heal();
        let kept = |n: u64| n % 2 == 1 || n >= 300;
        let other = restored(&sim);
        let restored = check_whole(&other, 300..340);
        for n in 0..240 {
            assert_eq!(restored.get(long(n)).unwrap().is_some(), kept(n), "{links} {after} {n}");
        }
        // Nothing of the first moment is left: the log is that of the store at the second one.
        let name = |path: &PathBuf| path.file_name().unwrap().to_owned();
        let there: BTreeSet<_> = segments(&other, "/store").iter().map(name).collect();
        let here: BTreeSet<_> = segments(&sim, "/store").iter().map(name).collect();
        assert!(there.is_subset(&here), "{there:?} {here:?}");
        mark(&store, 400..410);
        assert!(store.verify().unwrap().is_whole());
    }
}

/// A store and its backup share files, and each outlives what the other does.
#[test]
fn a_backup_shares_full_segments_and_both_stay_whole() {
    let dir = tempfile::tempdir().unwrap();
    let [keys, backup, beside] = ["keys", "a/backup", "beside"].map(|name| dir.path().join(name));
    let store = builder().manual_maintenance(true).open_or_create(&keys).unwrap();
    mark(&store, 0..100);
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    mark(&store, 100..150);
    let made = store.backup(&backup).unwrap();
    let names = |dir: &Path| {
        let files =
            files(dir).into_keys().filter(|path| path.is_relative() || path.starts_with(dir));
        files
            .map(|path| path.strip_prefix(dir).unwrap_or(&path).to_owned())
            .collect::<BTreeSet<_>>()
    };
    let inode = |dir: &Path, name: &Path| std::fs::metadata(dir.join(name)).unwrap().ino();
    let (mut shared, mut own) = (0, Vec::new());
    for name in names(&backup) {
        match keys.join(&name).exists() && inode(&keys, &name) == inode(&backup, &name) {
            true => shared += std::fs::metadata(backup.join(&name)).unwrap().len(),
            false => own.push(name.to_string_lossy().into_owned()),
        }
    }
    assert_eq!(made.bytes_linked(), shared);
    assert!(own.len() == 2 && own.iter().any(|name| name == "MANIFEST"), "{own:?}");
    assert!(shared > 4 * (16 << 10), "{made:?}");

    // The backup is used, and the store's files are as they were.
    crate::moved::copy(&backup, &beside);
    let before = files(&keys);
    let used = builder().manual_maintenance(true).open(&backup).unwrap();
    mark(&used, 500..700);
    for n in 0..150 {
        assert!(used.forget(long(n)).unwrap(), "{n}");
    }
    assert!(used.compact(u64::MAX).unwrap().is_complete());
    used.close(Duration::ZERO).unwrap();
    assert!(files(&keys) == before, "the store's files have changed");
    drop(used);

    // The store is used, and another backup of it is as it was.
    std::fs::remove_dir_all(&backup).unwrap();
    store.backup(&backup).unwrap();
    let before = files(&backup);
    mark(&store, 200..400);
    for n in 0..150 {
        assert!(store.forget(long(n)).unwrap(), "{n}");
    }
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    assert!(store.verify().unwrap().is_whole());
    assert!(files(&backup) == before, "the backup's files have changed");
    for dir in [&backup, &beside] {
        let restored = builder().open(dir).unwrap();
        assert!(restored.verify().unwrap().is_whole());
        assert!((0..150).all(|n| restored.get(long(n)).unwrap().is_some()));
        assert_eq!(restored.get(long(200)).unwrap(), None);
    }
}

/// To memory, where the machine has such a directory: usually another file system than that of the store.
#[test]
fn a_backup_on_another_file_system_is_copied() {
    let sim = Sim::new(5);
    let store = sim.open_with(builder()).unwrap();
    mark(&store, 0..100);
    sim.refuse_links();
    let made = store.backup(BACKUP).unwrap();
    assert_eq!(made.bytes_linked(), 0);
    sim.heal();
    for path in segments(&sim, "/store") {
        sim.flip_byte(&path, 300, 1).unwrap();
    }
    drop(check_whole(&restored(&sim), 0..100));

    let (dir, memory) = (tempfile::tempdir().unwrap(), Path::new("/dev/shm"));
    let Ok(other) = tempfile::tempdir_in(memory) else { return };
    let store = builder().open_or_create(dir.path()).unwrap();
    mark(&store, 0..100);
    let backup = other.path().join("backup");
    let made = store.backup(&backup).unwrap();
    let device = |dir: &Path| std::fs::metadata(dir).unwrap().dev();
    assert_eq!(made.bytes_linked() > 0, device(dir.path()) == device(&backup));
    let restored = builder().open(&backup).unwrap();
    assert!(restored.verify().unwrap().is_whole());
    assert!((0..100).all(|n| restored.get(long(n)).unwrap().is_some()));
}

/// Whether the backup's directory holds a store. If not, an open says so, and a repair makes none of it.
fn holds_a_store(sim: &Sim, case: &dyn std::fmt::Debug) -> bool {
    let other = sim.copy();
    other.remove("/store").unwrap();
    if other.rename(BACKUP, "/store").is_err() {
        return false;
    }
    match other.open_existing(builder(), false) {
        Ok(store) => {
            drop(store);
            drop(check_whole(&other, 0..100));
            true
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::NotFound, "{case:?}: {e}");
            let repaired = other.repair(builder(), AcceptLoss::Yes);
            assert!(repaired.is_err(), "{case:?}: {repaired:?}");
            false
        }
    }
}

#[test]
fn power_lost_at_each_change_leaves_no_store_there_or_a_whole_one() {
    let (first, seeds) = match std::env::var_os("ONLYONCE_LONG") {
        Some(_) => (aged(6), 12),
        None => (aged(6), 1),
    };
    let (mut cuts, mut whole) = (0, 0);
    for links in [true, false] {
        for cut in 0.. {
            let sim = first.copy();
            let store = sim.open_with(builder()).unwrap();
            mark(&store, 100..110);
            store.sync().unwrap();
            if !links {
                sim.refuse_links();
            }
            sim.cut_power_at(cut);
            let made = store.backup(BACKUP);
            if !sim.power_is_cut() {
                made.unwrap();
                break;
            }
            cuts += 1;
            let crashes = sim.crashes(seeds);
            let some = crashes.len().div_ceil(if seeds > 1 { 60 } else { 5 });
            for crash in crashes.into_iter().step_by(some).chain([SimCrash::NONE, SimCrash::ALL]) {
                let case = (links, cut, crash);
                let after = sim.after(crash);
                let is_store = holds_a_store(&after, &case);
                whole += u32::from(is_store);
                // A backup that was acknowledged is there.
                assert!(is_store || made.is_err(), "{case:?}");
                let store = check_whole(&after, 0..110);
                // The next one begins where this one ended.
                if !is_store {
                    store.backup(BACKUP).unwrap();
                    assert!(holds_a_store(&after, &case), "{case:?}");
                }
            }
        }
    }
    println!("{cuts} cuts, {whole} whole");
    assert!(cuts > 40 && whole > 0);
}

#[test]
fn a_backup_that_fails_leaves_the_store_healthy_and_can_be_made_again() {
    let first = aged(7);
    let faults = [
        DiskFault::Io,
        DiskFault::Full,
        DiskFault::TooManyOpen,
        DiskFault::Denied,
        DiskFault::Panic,
        DiskFault::Short,
        DiskFault::Interrupted,
    ];
    let calls = |links: bool| {
        let sim = first.copy();
        let store = sim.open_with(builder()).unwrap();
        mark(&store, 100..110);
        store.sync().unwrap();
        if !links {
            sim.refuse_links();
        }
        let before = sim.calls();
        store.backup(BACKUP).unwrap();
        sim.calls() - before
    };
    let step = if std::env::var_os("ONLYONCE_LONG").is_some() { 1 } else { 7 };
    let mut failures = 0;
    for ((index, fault), links) in
        (0..).zip(faults).flat_map(|fault| [(fault, true), (fault, false)])
    {
        // With the first fault each call fails, also in a short run.
        let (from, step) = if index == 0 { (0, 1) } else { (index % step, step) };
        for call in (from..calls(links)).step_by(usize::try_from(step).unwrap()) {
            let sim = first.copy();
            let store = sim.open_with(builder()).unwrap();
            mark(&store, 100..110);
            store.sync().unwrap();
            if !links {
                sim.refuse_links();
            }
            sim.fail_call(call, fault);
            let made = catch_unwind(AssertUnwindSafe(|| store.backup(BACKUP)));
            sim.heal();
            let case = (fault, links, call);
            let is_made = matches!(made, Ok(Ok(_)));
            if let Ok(Err(e)) = &made {
                assert!(
                    matches!(e.kind(), ErrorKind::Io | ErrorKind::StorageFull),
                    "{case:?}: {e}"
                );
                failures += 1;
            }
            assert_eq!(store.health(), Health::Writable, "{case:?}");
            // After a panic nothing is removed, and the last calls are no longer needed.
            let is_store = holds_a_store(&sim, &case);
            assert!(is_store == is_made || fault == DiskFault::Panic && is_store, "{case:?}");
            if !is_store {
                store.backup(BACKUP).unwrap();
                assert!(holds_a_store(&sim, &case), "{case:?}");
            }
            assert!(store.mark("goes on").unwrap().is_first());
        }
    }
    println!("{failures} failures");
    assert!(failures > 100, "{failures}");
}

#[test]
fn a_full_disk_refuses_the_backup_and_nothing_else() {
    let sim = aged(8);
    let store = sim.open_with(builder()).unwrap();
    mark(&store, 100..105);
    let before = sim.files();
    for links in [true, false] {
        if !links {
            sim.refuse_links();
        }
        // Links take no space of files.
        for more in if links { [0, 0] } else { [4096, 4 * 4096] } {
            sim.set_disk_bytes_max(sim.disk_bytes() + more);
            let full = match store.backup(BACKUP) {
                Err(full) => full,
                Ok(_) => panic!("{links} {more}"),
            };
            assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
            assert_eq!(store.health(), Health::Writable);
            sim.set_disk_bytes_max(u64::MAX);
            // What was made is removed, except the mark.
            let left: Vec<_> =
                sim.files().into_iter().filter(|file| !before.contains(file)).collect();
            assert!(
                left.iter().all(|(path, len)| path.ends_with("backup.unfinished") && *len == 0),
                "{left:?}"
            );
        }
    }
    store.backup(BACKUP).unwrap();
    drop(check_whole(&restored(&sim), 0..105));

    // A store that is full itself can be backed up where there is space.
    let dir = tempfile::tempdir().unwrap();
    let store =
        builder().disk_bytes_max(256 << 10).open_or_create(dir.path().join("keys")).unwrap();
    let full_at = (0..).find(|n| store.mark(long(*n)).is_err()).unwrap();
    store.backup(dir.path().join("backup")).unwrap();
    let restored = builder().open(dir.path().join("backup")).unwrap();
    assert!((0..full_at).all(|n| restored.get(long(n)).unwrap().is_some()));
}

#[test]
fn a_poisoned_store_is_backed_up_as_far_as_it_was_durable() {
    let sim = aged(9);
    let store = sim.open_with(builder()).unwrap();
    mark(&store, 100..110);
    store.sync().unwrap();
    sim.fail_sync(0, DiskFault::Io);
    let lost = store.mark("lost").unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Indeterminate);
    store.backup(BACKUP).unwrap();
    let restored = check_whole(&restored(&sim), 0..110);
    assert_eq!(restored.get("lost").unwrap(), None);
    // The failure of a backup's own sync of the store is told as that.
    let store = check_whole(&sim.copy(), 0..110);
    drop(store);
    let sim = aged(10);
    let store = sim.open_with(builder()).unwrap();
    let lazy = Operation::new("lazy").durability(Durability::Lazy);
    assert!(store.mark(lazy).unwrap().is_first());
    sim.fail_sync(0, DiskFault::Io);
    assert_eq!(store.backup(BACKUP).unwrap_err().kind(), ErrorKind::Poisoned);
    store.backup(BACKUP).unwrap();
}

#[test]
fn a_close_ends_a_backup() {
    let sim = aged(11);
    let store = sim.open_with(builder()).unwrap();
    let gate = sim.hold_link(1);
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| store.backup(BACKUP));
        assert!(gate.wait_arrived(LONG));
        let close = scope.spawn(|| store.close(LONG));
        while store.get("k").is_ok() {
            std::thread::yield_now();
        }
        gate.open();
        assert_eq!(backup.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
        close.join().unwrap().unwrap();
    });
    assert!(!holds_a_store(&sim, &"closed"));
    assert_eq!(store.backup("/another").unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn only_a_missing_or_an_empty_directory_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let [keys, other, full, file] =
        ["keys", "other", "full", "file"].map(|name| dir.path().join(name));
    let store = builder().manual_maintenance(true).open_or_create(&keys).unwrap();
    mark(&store, 0..5);
    drop(builder().open_or_create(&other).unwrap());
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("precious"), "x").unwrap();
    std::fs::write(&file, "x").unwrap();
    let backup = dir.path().join("backup");
    store.backup(&backup).unwrap();
    let before = files(dir.path());
    let within =
        [keys.clone(), keys.join("index"), keys.join("a/b"), backup.clone(), backup.join("a")];
    for refused in [other, full, file].into_iter().chain(within) {
        let error = store.backup(&refused).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(refused.to_str().unwrap()), "{error}");
    }
    assert!(files(dir.path()) == before);
    // Whoever has it locked would see half a backup.
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    store.backup(&empty).unwrap();
    assert!(builder().open(&empty).unwrap().verify().unwrap().is_whole());
}

/// The same for a store that has written nothing since it was opened: new, closed, or killed.
#[test]
fn a_store_that_writes_nothing_is_backed_up() {
    let sim = Sim::new(12);
    let store = sim.open_with(builder()).unwrap();
    store.backup(BACKUP).unwrap();
    let empty = restored(&sim);
    mark(&check_whole(&empty, 0..0), 0..50);
    drop(store);
    for kills in [false, true] {
        let sim = Sim::new(13);
        let store = sim.open_with(builder()).unwrap();
        mark(&store, 0..50);
        if kills {
            sim.kill();
        } else {
            store.close(Duration::ZERO).unwrap();
        }
        let store = sim.open_with(builder()).unwrap();
        let before = sim.files();
        store.backup(BACKUP).unwrap();
        let here = |(path, _): &(PathBuf, u64)| path.starts_with("/store");
        let after: Vec<_> = sim.files().into_iter().filter(here).collect();
        assert_eq!(after, before, "{kills}");
        let other = restored(&sim);
        let again = check_whole(&other, 0..50);
        mark(&again, 50..100);
        again.backup(BACKUP).unwrap();
        drop(again);
        drop(check_whole(&restored(&other), 0..100));
    }
}

#[test]
fn a_store_or_a_backup_that_is_moved_meanwhile_is_noticed() {
    for (moved, kind) in [("/store", ErrorKind::Poisoned), (BACKUP, ErrorKind::Io)] {
        let sim = aged(14);
        let store = sim.open_with(builder()).unwrap();
        let gate = sim.hold_link(2);
        std::thread::scope(|scope| {
            let backup = scope.spawn(|| store.backup(BACKUP));
            assert!(gate.wait_arrived(LONG));
            sim.rename(moved, "/moved").unwrap();
            gate.open();
            let error = backup.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(moved), "{error}");
        });
        let is_there = |path: &str| sim.files().iter().any(|(file, _)| file.starts_with(path));
        assert!(!is_there(moved), "{moved}");
        sim.rename("/moved", moved).unwrap();
        drop(store);
        assert!(!holds_a_store(&sim, &moved));
        drop(check_whole(&sim.copy(), 0..100));
    }
}

/// Without these words somebody would look for the damage.
#[test]
fn a_listed_file_that_is_missing_is_named() {
    let sim = aged(15);
    let store = sim.open_with(builder()).unwrap();
    let first = segments(&sim, "/store").into_iter().next().unwrap();
    sim.remove(&first).unwrap();
    let error = store.backup(BACKUP).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Corrupt, Some(&*first)));
}
