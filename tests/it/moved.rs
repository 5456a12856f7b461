//! The directory is moved, removed, replaced or restored while a store has it open.
//!
//! Invariants: it is noticed before the next manifest is switched to, in words that say what happened; from then on
//! nothing is written; known keys are answered; nothing at the path is created, renamed or removed; and any store that is
//! there now is unharmed.

use crate::child::small;
use crate::process::files;
use onlyonce::testing::Sim;
use onlyonce::{Claim, ClaimGuard, Error, ErrorKind, Store, StoreBuilder, admin::Health};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Marks until that fails. Returns how many succeeded, and the error.
fn mark_on(store: &Store) -> (u32, Error) {
    let mut marked = 0;
    loop {
        match store.mark(format!("{marked:0>900}")) {
            Ok(mark) => assert!(mark.is_first()),
            Err(e) => return (marked, e),
        }
        marked += 1;
        assert!(marked < 1000, "nothing was noticed");
    }
}

/// Uses a store whose directory is no longer at its path. Returns how many marks it acknowledged.
fn check_noticed(store: Store, dir: &Path, words: &str) -> u32 {
    let Claim::Acquired(claim) = store.claim("in flight").unwrap() else { panic!() };
    let (marked, error) = mark_on(&store);
    let check = |error: &Error| {
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error:?}");
        let message = error.to_string();
        for word in [words, dir.to_str().unwrap(), "close this store", "open it again"] {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
        let is_near = |path: &Path| path.starts_with(dir) || dir.starts_with(path);
        assert!(error.path().is_some_and(is_near), "{error:?}");
    };
    check(&error);
    check(&store.mark("another").unwrap_err());
    check(&store.forget("before").unwrap_err());
    assert_eq!(store.compact(u64::MAX).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(store.rebuild_index().unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(claim.complete("done").unwrap_err().kind(), ErrorKind::Poisoned);
    assert_ne!(store.health(), Health::Writable);
    assert!(matches!(store.claim("before").unwrap(), Claim::Completed(_)));
    assert!((0..marked).all(|n| store.get(format!("{n:0>900}")).unwrap().is_some()));
    let _ = store.step();
    check(&store.close(Duration::ZERO).unwrap_err());
    marked
}

/// Everything acknowledged is in the store that was moved.
fn check_kept(dir: &Path, marked: u32) {
    let store = small().open(dir).unwrap();
    assert!(matches!(store.claim("before").unwrap(), Claim::Completed(_)));
    assert!((0..marked).all(|n| !store.mark(format!("{n:0>900}")).unwrap().is_first()));
    assert!(matches!(store.claim("in flight").unwrap(), Claim::Interrupted(_)));
    assert!(store.verify().unwrap().is_whole());
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

/// An open store with some keys in `keys`, and an earlier backup of it in `backup`.
fn life(dir: &Path) -> (Store, PathBuf, PathBuf) {
    let (keys, backup) = (dir.join("keys"), dir.join("backup"));
    let store = small().open_or_create(&keys).unwrap();
    assert!(store.mark("backed up").unwrap().is_first());
    store.close(Duration::ZERO).unwrap();
    copy(&keys, &backup);
    let store = small().manual_maintenance(true).open(&keys).unwrap();
    assert!(store.mark("before").unwrap().is_first());
    (store, keys, backup)
}

const GONE: &str = "was moved or removed";
const REPLACED: &str = "was replaced by another one";

#[test]
fn a_moved_or_removed_directory_is_noticed_and_not_created_again() {
    for is_moved in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (store, keys, _) = life(dir.path());
        let moved = dir.path().join("moved");
        match is_moved {
            true => std::fs::rename(&keys, &moved).unwrap(),
            false => std::fs::remove_dir_all(&keys).unwrap(),
        }
        let marked = check_noticed(store, &keys, GONE);
        assert!(!keys.exists(), "something was made there");
        if is_moved {
            check_kept(&moved, marked);
        }
    }
}

/// Both wrote one manifest: the old process exchanged the one it had prepared with that of the new store, and each then
/// reported the other's as Corrupt.
#[test]
fn a_store_moved_to_the_path_of_an_open_one_leaves_both_unharmed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, keys, _) = life(dir.path());
    let moved = dir.path().join("moved");
    std::fs::rename(&keys, &moved).unwrap();
    let other = small().manual_maintenance(true).open_or_create(&keys).unwrap();
    assert!(other.mark("of the other").unwrap().is_first());
    let before = files(&keys);
    let marked = check_noticed(store, &keys, REPLACED);
    assert!(files(&keys) == before, "the other store was touched");
    assert!((0..200).all(|n| other.mark(format!("{n:0>800}")).unwrap().is_first()));
    other.compact(u64::MAX).unwrap();
    assert!(other.verify().unwrap().is_whole());
    other.close(Duration::ZERO).unwrap();
    let other = small().open(&keys).unwrap();
    assert!(other.get("of the other").unwrap().is_some() && other.get("before").unwrap().is_none());
    drop(other);
    check_kept(&moved, marked);
}

/// The directory again, or only its contents.
#[test]
fn a_backup_restored_under_an_open_store_is_not_changed() {
    for is_whole in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (store, keys, backup) = life(dir.path());
        if is_whole {
            std::fs::remove_dir_all(&keys).unwrap();
        } else {
            std::fs::remove_dir_all(keys.join("log")).unwrap();
            std::fs::remove_file(keys.join("MANIFEST")).unwrap();
        }
        copy(&backup, &keys);
        let before = files(&keys);
        check_noticed(store, &keys, REPLACED);
        assert!(files(&keys) == before, "the restored store was touched");
        let restored = small().open(&keys).unwrap();
        assert!(restored.get("backed up").unwrap().is_some());
        assert!(restored.get("before").unwrap().is_none());
        assert!(restored.verify().unwrap().is_whole());
    }
}

/// Only its log is moved: no open would find what is written.
#[test]
fn a_moved_log_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, keys, _) = life(dir.path());
    let (log, moved) = (keys.join("log"), dir.path().join("log"));
    std::fs::rename(&log, &moved).unwrap();
    let marked = check_noticed(store, &log, GONE);
    assert!(!log.exists());
    std::fs::rename(&moved, &log).unwrap();
    check_kept(&keys, marked);
}

/// The first switch of an open clears the clean flag.
#[test]
fn an_open_store_that_has_not_written_yet_notices_a_move_at_its_first_write() {
    for is_replaced in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (store, keys, _) = life(dir.path());
        drop(store);
        let store = small().open(&keys).unwrap();
        std::fs::rename(&keys, dir.path().join("moved")).unwrap();
        let mut before = BTreeMap::new();
        if is_replaced {
            drop(small().open_or_create(&keys).unwrap());
            before = files(&keys);
        }
        let error = store.mark("first").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
        assert!(error.to_string().contains(if is_replaced { REPLACED } else { GONE }), "{error}");
        assert!(matches!(store.claim("before").unwrap(), Claim::Completed(_)));
        let _ = store.close(Duration::ZERO);
        assert_eq!(keys.exists(), is_replaced);
        assert!(!is_replaced || files(&keys) == before);
        drop(small().open(dir.path().join("moved")).unwrap());
    }
}

#[test]
fn a_move_on_the_simulated_disk_is_noticed_too() {
    for fate in 0..4 {
        let sim = Sim::new(7);
        let open = || sim.open_with(small());
        drop(open().unwrap());
        let backup = sim.contents().unwrap();
        let store = open().unwrap();
        assert!(store.mark("before").unwrap().is_first());
        let restore = || {
            sim.make_dirs().unwrap();
            for (name, bytes) in &backup {
                sim.write_file(Path::new("/store").join(name), bytes).unwrap();
            }
        };
        match fate {
            0 => sim.rename("/store", "/moved").unwrap(),
            1 => sim.remove("/store").unwrap(),
            2 => {
                sim.rename("/store", "/moved").unwrap();
                restore();
            }
            _ => {
                sim.remove("/store").unwrap();
                restore();
            }
        }
        let is_replaced = fate > 1;
        let words = if is_replaced { REPLACED } else { GONE };
        check_noticed(store, Path::new("/store"), words);
        let here = sim.contents().unwrap();
        assert!(here == if is_replaced { backup.clone() } else { Vec::new() }, "{fate}");
        if is_replaced {
            let other = open().unwrap();
            assert!(other.mark("before").unwrap().is_first() && other.verify().unwrap().is_whole());
        }
        if fate == 0 || fate == 2 {
            let _ = sim.remove("/store");
            sim.rename("/moved", "/store").unwrap();
            let store = open().unwrap();
            assert!(matches!(store.claim("before").unwrap(), Claim::Completed(_)));
            assert!(matches!(store.claim("in flight").unwrap(), Claim::Interrupted(_)));
        }
    }
}

fn shared() -> StoreBuilder {
    small().shared(true).open_timeout(PATIENCE)
}

/// A session ends a moment after the last handle is dropped.
const PATIENCE: Duration = Duration::from_secs(20);

/// A store that this process hosts, its guest, a claim of the guest, and the directory.
fn shared_life(dir: &Path) -> (Store, Store, ClaimGuard, PathBuf) {
    let keys = dir.join("keys");
    let (host, guest) = (shared().open_or_create(&keys).unwrap(), shared().open(&keys).unwrap());
    assert!(guest.mark("before").unwrap().is_first());
    let Claim::Acquired(claim) = guest.claim("in flight").unwrap() else { panic!() };
    (host, guest, claim, keys)
}

fn check_refused(store: &Store, words: &str) {
    let error = store.mark("after").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned, "{error:?}");
    assert!(error.to_string().contains(words), "{words:?} is not in: {error}");
    assert_ne!(store.health(), Health::Writable);
}

/// The guest learns by its first call that its host has gone, and hosts nothing.
fn check_over(guest: &Store, words: &str) {
    let told = guest.get("before").unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Poisoned, "{told:?}");
    check_refused(guest, words);
}

/// Both would go on: the one writes what no open at its path finds, the other is sure to be at the right one.
#[test]
fn a_guest_that_comes_to_the_new_path_of_a_store_shows_that_it_was_moved() {
    let dir = tempfile::tempdir().unwrap();
    let (host, guest, claim, keys) = shared_life(dir.path());
    let moved = dir.path().join("moved");
    std::fs::rename(&keys, &moved).unwrap();
    let third = shared().open(&moved).unwrap();
    for store in [&host, &guest, &third] {
        check_refused(store, GONE);
        assert!(matches!(store.claim("before").unwrap(), Claim::Completed(_)));
    }
    assert_eq!(claim.complete("done").unwrap_err().kind(), ErrorKind::Poisoned);
    drop(host);
    check_over(&guest, GONE);
    drop(guest);
    assert!(!keys.exists(), "something was made there");
    assert!(matches!(third.claim("before").unwrap(), Claim::Completed(_)));
    assert!(matches!(third.claim_wait("in flight", PATIENCE).unwrap(), Claim::Interrupted(_)));
    assert!(third.mark("after").unwrap().is_first());
}

/// The next host would be that of the other store, in which each key is new.
#[test]
fn a_guest_never_hosts_what_was_put_in_the_place_of_its_store() {
    for is_there in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (host, guest, claim, keys) = shared_life(dir.path());
        std::fs::rename(&keys, dir.path().join("moved")).unwrap();
        let mut before = BTreeMap::new();
        if is_there {
            let other = small().open_or_create(&keys).unwrap();
            assert!(other.mark("of the other").unwrap().is_first());
            drop(other);
            before = files(&keys);
        }
        drop(host);
        check_over(&guest, if is_there { REPLACED } else { GONE });
        assert_eq!(claim.complete("done").unwrap_err().kind(), ErrorKind::Poisoned);
        drop(guest);
        assert_eq!(keys.exists(), is_there);
        if is_there {
            assert!(files(&keys) == before, "the other store was touched");
        }
        let moved = shared().open(dir.path().join("moved")).unwrap();
        assert!(matches!(moved.claim("before").unwrap(), Claim::Completed(_)));
        assert!(matches!(moved.claim_wait("in flight", PATIENCE).unwrap(), Claim::Interrupted(_)));
    }
}

/// A newcomer makes another file of sessions, in which the host doesn't see that it lives: its claims would be given to others.
#[test]
fn a_host_whose_file_of_sessions_was_removed_grants_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (host, guest, claim, keys) = shared_life(dir.path());
    std::fs::remove_file(keys.join("sessions")).unwrap();
    let third = shared().open(&keys).unwrap();
    for store in [&host, &guest, &third] {
        check_refused(store, "sessions was ");
    }
    drop(host);
    // The next host can't know whether it lives.
    check_over(&guest, "has lost its claims");
    assert_eq!(claim.complete("done").unwrap_err().kind(), ErrorKind::ClaimLost);
    assert!(matches!(third.claim_wait("in flight", PATIENCE).unwrap(), Claim::Interrupted(_)));
    assert!(third.mark("after").unwrap().is_first());
}
