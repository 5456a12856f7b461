//! Spares that an earlier open left.

use std::path::PathBuf;
use std::time::Duration;

use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{Claim, Durability, ErrorKind, Mark, Operation, Store, StoreBuilder};

/// A flipped bit in a spare became a byte after the clean end of the log once the spare was a segment. The store then
/// refused to open, although nothing was lost. Now a spare is checked before it is used.
#[test]
fn a_damaged_spare_is_not_used() {
    let builder = || Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let sim = Sim::small(1);
    let store = sim.open_with(builder()).unwrap();
    let _ = store.mark("first").unwrap();
    while store.step().unwrap().is_zero() {}
    store.close(Duration::ZERO).unwrap();
    let spare = |sim: &Sim| {
        let files = sim.files().into_iter();
        files.map(|(path, _)| path).find(|path| path.to_string_lossy().contains("spare-"))
    };
    let damaged = spare(&sim).expect("a spare lies ahead");
    for offset in (0..16 << 10).step_by(512) {
        sim.flip_byte(&damaged, offset, 1).unwrap();
    }

    let store = sim.open_with(builder()).unwrap();
    let is_there = |sim: &Sim| sim.files().iter().any(|(path, _)| *path == damaged);
    let mut marked = 0_u64;
    // Until it is used, and some more.
    for _ in 0..2 {
        let wanted = store.stats().segments + 1;
        while store.stats().segments < wanted {
            let _ = store.mark(marked).unwrap();
            marked += 1;
            while store.step().unwrap().is_zero() {}
        }
    }
    assert!(!is_there(&sim));
    store.close(Duration::ZERO).unwrap();
    let store = sim.open_with(builder()).unwrap();
    assert!(matches!(store.mark("first").unwrap(), Mark::Again));
}

fn builder() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(256).index_memory_max(1 << 20)
}

fn key(n: u64) -> String {
    format!("{n:0>200}")
}

fn logs(sim: &Sim) -> Vec<PathBuf> {
    let paths = sim.files().into_iter().map(|(path, _)| path);
    paths.filter(|path| path.extension().is_some_and(|end| end == "log")).collect()
}

/// A segment that was prepared and never listed exists next to a clean manifest, and its removal fails once. Its number
/// is the next segment's, which was removed in its place, with all its records.
#[test]
fn the_retried_removal_of_a_leftover_spares_the_next_segment_of_its_number() {
    let sim = Sim::small(7);
    let store = sim.open_with(builder()).unwrap();
    (0..200).for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
    store.close(Duration::ZERO).unwrap();
    drop(store);
    let listed = logs(&sim);
    // The file of the next segment, if the process had ended before its manifest.
    let other = sim.copy();
    let store = other.open_with(builder()).unwrap();
    for n in 1000.. {
        if logs(&other).len() > listed.len() {
            break;
        }
        assert!(store.mark(key(n)).unwrap().is_first());
        while store.step().unwrap() == Duration::ZERO {}
    }
    let new: Vec<_> = logs(&other).into_iter().filter(|path| !listed.contains(path)).collect();
    assert_eq!(new.len(), 1, "{new:?}");
    let mut header = other.read_file(&new[0]).unwrap();
    header[128..].fill(0);
    sim.write_file(&new[0], &header).unwrap();
    drop(store);
    let (mut tried, mut gone) = (0, Vec::new());
    for n in 0..120 {
        let machine = sim.copy();
        let store = machine.open_existing(builder(), false).unwrap();
        machine.fail_call(n, DiskFault::Io);
        if !matches!(store.mark("begins"), Ok(mark) if mark.is_first()) {
            continue;
        }
        machine.heal();
        tried += 1;
        (2000..2200).for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
        (0..200).for_each(|n| assert!(store.forget(key(n)).unwrap()));
        if store.compact(1).is_err() {
            continue;
        }
        machine.kill();
        drop(store);
        if let Err(e) = machine.open_existing(builder(), false) {
            gone.push(format!("call {n}: {e}"));
        }
    }
    assert!(tried > 0);
    assert!(gone.is_empty(), "of {tried} runs {} don't open again: {gone:?}", gone.len());
}

/// Claims that are in flight at once, ended.
fn burst(store: &Store, round: u64, count: u64) {
    let claims: Vec<_> = (0..count)
        .map(|n| match store.claim((round, n)).unwrap() {
            Claim::Acquired(claim) => claim,
            other => panic!("{other}"),
        })
        .collect();
    claims.into_iter().for_each(|claim| claim.abort("it was only a burst").unwrap());
}

fn spares(sim: &Sim) -> Vec<(PathBuf, u64)> {
    let files = sim.files().into_iter();
    files.filter(|(path, _)| path.to_string_lossy().contains("spare-")).collect()
}

/// Does the background's work for a while.
fn pass(sim: &Sim, store: &Store, millis: u64) {
    let mut left = millis;
    while left > 0 {
        let wait = (store.step().unwrap().as_millis() as u64).min(left);
        sim.advance(Duration::from_millis(wait));
        left -= wait;
    }
}

/// Spares prepared for the endings of claims in flight stayed on the disk for ever after these had ended.
#[test]
fn spares_of_a_burst_are_removed() {
    let sim = Sim::new(1);
    let store = sim.open_with(Store::builder()).unwrap();
    burst(&store, 0, 10);
    pass(&sim, &store, 60_000);
    let before = sim.disk_bytes();
    burst(&store, 1, 3000);
    assert!(sim.disk_bytes() > before + (10 << 20), "{} bytes", sim.disk_bytes());
    // A while later, not at once; and with nothing to wake it but the time it asked for.
    pass(&sim, &store, 5_000);
    assert!(sim.disk_bytes() > before + (10 << 20));
    pass(&sim, &store, 20_000);
    assert!(sim.disk_bytes() < before + (3 << 20), "{} bytes, {before} before", sim.disk_bytes());
    assert_eq!(spares(&sim).len(), 1, "{:?}", spares(&sim));
    // A close removes them, and so does an open after a kill, with its first write.
    burst(&store, 2, 3000);
    store.close(Duration::ZERO).unwrap();
    drop(store);
    assert!(sim.disk_bytes() < before + (4 << 20), "{} bytes after a close", sim.disk_bytes());
    let store = sim.open_with(Store::builder()).unwrap();
    burst(&store, 3, 3000);
    sim.kill();
    drop(store);
    let store = sim.open_with(Store::builder()).unwrap();
    assert!(store.mark("begins").unwrap().is_first());
    assert!(sim.disk_bytes() < before + (5 << 20), "{} bytes after a kill", sim.disk_bytes());
}

/// Each spare is synced by itself: ten thousand claims in flight waited for more than forty, one after the other.
#[test]
fn a_burst_of_claims_is_given_room_in_few_pieces() {
    let sim = Sim::new(1);
    let store = sim.open_with(Store::builder()).unwrap();
    let claims: Vec<_> = (0..10_000_u64).map(|n| store.claim(n).unwrap()).collect();
    let spares = spares(&sim);
    let bytes: u64 = spares.iter().map(|(_, bytes)| bytes).sum();
    // Each keeps 4 KiB and more, and no spare is larger than four times the first segment.
    assert!(bytes > 10_000 * 4096, "{bytes} bytes");
    let least = spares.iter().map(|(_, bytes)| *bytes).min().unwrap();
    assert!(spares.iter().all(|(_, bytes)| *bytes <= 4 * least), "{spares:?}");
    assert!(spares.len() < 22, "{} spares", spares.len());
    assert!(bytes < 10_000 * 4500 * 5 / 4, "{bytes} bytes");
    drop(claims);
}

/// A load that goes up and down keeps what it needs: nothing is prepared and removed in turn.
#[test]
fn spares_of_a_recurring_load_are_prepared_once() {
    let sim = Sim::new(1);
    let store =
        sim.open_with(Store::builder().segment_bytes(64 << 10).result_bytes_max(4096)).unwrap();
    let newest = || {
        let numbers = spares(&sim).into_iter().map(|(path, _)| {
            path.file_name().unwrap().to_string_lossy()["spare-".len()..].parse::<u64>().unwrap()
        });
        numbers.max().unwrap_or(0)
    };
    burst(&store, 0, 300);
    pass(&sim, &store, 4_000);
    let (first, log_bytes) = (newest(), store.stats().log_bytes);
    for round in 1..40 {
        burst(&store, round, 300);
        pass(&sim, &store, 4_000);
    }
    // One for each segment that was filled meanwhile, and those of a growing log.
    let filled = (store.stats().log_bytes + store.stats().bytes_reclaimed - log_bytes) / (32 << 10);
    assert!(newest() <= first + filled + 5, "{first}, {} after {filled} segments", newest());
}

/// A killed process left records that a sync covers, and a suffix that none does.
fn killed() -> Sim {
    let sim = Sim::new(1);
    let store = sim.open_with(large()).unwrap();
    (0..20).for_each(|n| complete(&store, &format!("synced {n}")));
    store.sync().unwrap();
    pass(&sim, &store, 3_000);
    (0..3).for_each(|n| complete(&store, &format!("unsynced {n}")));
    sim.kill();
    sim
}

fn large() -> StoreBuilder {
    Store::builder().segment_bytes(64 << 10).result_bytes_max(8 << 10).index_memory_max(1 << 20)
}

fn complete(store: &Store, key: &str) {
    let op = Operation::new(key).durability(Durability::Flush);
    match store.claim(op.claim_durability(Durability::Flush)).unwrap() {
        Claim::Acquired(claim) => claim.complete(&[7; 1000][..]).unwrap(),
        other => panic!("{other}"),
    }
}

/// The store is recovered, and written to.
fn check_recovered(store: &Store, context: &str) {
    assert!(store.forget("synced 1").unwrap_or_else(|e| panic!("{context}: {e}")), "{context}");
    for n in 0..3 {
        assert!(store.get(&*format!("unsynced {n}")).unwrap().is_some(), "{context}: {n}");
    }
    assert!(store.verify().unwrap().is_whole(), "{context}");
}

/// A call failed once for want of space on a full disk, when the spare had become an unlisted segment. No later attempt,
/// in that open or in another, had space for a recovery.
#[test]
fn a_failed_recovery_leaves_its_spare_to_the_next_attempt() {
    let sim = killed();
    let bytes = sim.disk_bytes();
    let next = |sim: &Sim, context: &str| {
        let next = sim.copy();
        next.set_disk_bytes_max(bytes);
        let store = next.open_with(large()).unwrap_or_else(|e| panic!("{context}: {e}"));
        check_recovered(&store, context);
    };
    for (of, fail) in
        [("write", Sim::fail_write as fn(&Sim, u64, DiskFault)), ("sync", Sim::fail_sync)]
    {
        let (mut count, mut served, mut refused) = (0, 0, 0);
        loop {
            let context = format!("{of} {count}, at the open");
            let sim = sim.copy();
            sim.set_disk_bytes_max(bytes);
            fail(&sim, count, DiskFault::Full);
            let opened = sim.open_with(large());
            if sim.faults_met() == 0 {
                break;
            }
            count += 1;
            sim.heal();
            next(&sim, &format!("{context}, the next one"));
            match opened {
                Ok(store) => {
                    served += 1;
                    check_recovered(&store, &context);
                }
                // A write within reserved space failed.
                Err(e) => {
                    refused += 1;
                    assert_eq!(e.kind(), ErrorKind::StorageFull, "{context}: {e}");
                }
            }
        }
        assert!(served > 2 && refused > 1, "{of}: {served} and {refused} of {count}");
        for after in 0..count {
            let context = format!("{of} {after}, at the first write");
            let sim = sim.copy();
            sim.set_disk_bytes_max(bytes);
            sim.fail_write(0, DiskFault::Full);
            let store = sim.open_with(large()).unwrap();
            sim.heal();
            fail(&sim, after, DiskFault::Full);
            let forgot = store.forget("synced 0").map_err(|e| e.kind());
            assert!(
                matches!(forgot, Ok(true) | Err(ErrorKind::StorageFull)),
                "{context}: {forgot:?}"
            );
            assert_eq!(sim.faults_met(), 2, "{context}");
            sim.heal();
            next(&sim, &format!("{context}, the next open"));
            if store.health().is_writable() {
                check_recovered(&store, &context);
            }
        }
    }
}

/// A suffix of several segments, with space for some of them: the spares prepared or found for these remain for the next
/// attempt, whatever failed the first.
#[test]
fn a_failed_recovery_into_several_segments_leaves_all_its_spares_to_the_next_attempt() {
    let sim = Sim::new(7);
    let key = |n: u64| format!("{n:0>200}");
    let store = sim.open_with(Store::builder()).unwrap();
    for n in 0..200 {
        let op = Operation::new(key(n)).durability(Durability::Flush);
        assert!(store.mark(op).unwrap().is_first());
    }
    sim.kill();
    drop(store);
    for path in spares(&sim).into_iter().map(|(path, _)| path) {
        sim.remove(path).unwrap();
    }
    let open = |more: u64| {
        let sim = sim.copy();
        sim.set_disk_bytes_max(sim.disk_bytes() + more);
        let store = sim.open_with(builder().map(false)).unwrap();
        (sim, store)
    };
    let page = 4 << 10;
    let enough = (0..).step_by(page).find(|&more| open(more).1.forget(key(0)).is_ok()).unwrap();
    assert!(enough > 3 * (16 << 10), "{enough}");
    for more in (0..enough).step_by(page) {
        let (machine, store) = open(more);
        assert_eq!(store.forget(key(0)).unwrap_err().kind(), ErrorKind::StorageFull, "{more}");
        machine.set_disk_bytes_max(sim.disk_bytes() + enough);
        let forgot = store.forget(key(0));
        assert!(forgot.unwrap_or_else(|e| panic!("{more} of {enough}: {e}")));
    }
    let mut failed = 0;
    for after in (0..).step_by(7) {
        let (machine, store) = open(0);
        machine.set_disk_bytes_max(sim.disk_bytes() + enough);
        machine.fail_read(after, DiskFault::Io);
        let forgot = store.forget(key(0));
        if machine.faults_met() == 0 {
            break;
        }
        failed += u64::from(forgot.is_err());
        machine.heal();
        let forgot = store.forget(key(1));
        assert!(forgot.unwrap_or_else(|e| panic!("read {after}: {e}")));
        assert!(store.verify().unwrap().is_whole(), "read {after}");
    }
    assert!(failed > 20, "{failed}");
}
