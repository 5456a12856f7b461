//! Long work on the index, and calls during it: they write, close the store or set the clock.
//!
//! A read or a sync is held back, so that the moment is the same in each run.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use onlyonce::admin::{Health, Verification};
use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{Claim, Durability, ErrorKind, Operation, Result, State, Store};

use crate::index::{files, is_marked, long, mark, open, rest, work};

/// Every read goes to the disk, so that one can be held back.
fn open_unmapped(sim: &Sim, keys: u64) -> Store {
    let builder = Store::builder().segment_bytes(16 << 10).result_bytes_max(2048);
    sim.open_with(builder.index_memory_max(64 * keys).map(false)).unwrap()
}

/// Four keys in a table, none in memory.
fn sealed(sim: &Sim) -> Store {
    let store = open_unmapped(sim, 4);
    (0..4).for_each(|n| mark(&store, "k", n));
    rest(sim, &store);
    assert_eq!(store.stats().keys_in_memory, 0);
    store
}

/// A key is missing in the tables. Meanwhile it is marked, sealed, and removed from memory: its absence from both proves
/// nothing.
#[test]
fn a_miss_in_older_tables_grants_nothing() {
    let mut held = 0;
    for after in 0..4 {
        let sim = Sim::small(7);
        // One bucket for all, so that the read is sure.
        sim.mask_hashes(0, 0);
        let store = sealed(&sim);
        let gate = sim.hold_read(after);
        std::thread::scope(|scope| {
            let late = scope.spawn(|| store.mark("new").unwrap().is_first());
            if gate.wait_arrived(Duration::from_secs(5)) {
                held += 1;
                assert!(store.mark("new").unwrap().is_first());
                (0..4).for_each(|n| mark(&store, "l", n));
                rest(&sim, &store);
                assert_eq!(store.stats().keys_in_memory, 0);
                gate.open();
                assert!(!late.join().unwrap(), "granted twice, read {after}");
            }
        });
    }
    assert!(held > 1, "{held}");
}

/// A checkpoint included a small table while that was being merged with larger ones. The merge then listed its table next
/// to the one that already covered the same part of the log, and no open accepted that manifest.
#[test]
fn a_checkpoint_includes_a_table_that_is_being_merged() {
    let sim = Sim::small(7);
    let store = open(&sim, 8);
    let mut marked = 0;
    let mut checkpoint = |count: u64| {
        (marked..marked + count).for_each(|n| mark(&store, "k", n));
        marked += count;
        let tables = store.stats().tables;
        for _ in 0..50 {
            store.step().unwrap();
            if store.stats().keys_in_memory == 0 {
                return (marked, tables);
            }
        }
        panic!("no checkpoint");
    };
    checkpoint(18);
    checkpoint(12);
    checkpoint(8);
    // The merge of all three begins, and is not done in one step.
    store.step().unwrap();
    let (marked, _) = checkpoint(8);
    rest(&sim, &store);
    sim.kill();
    let store = open(&sim, 8);
    assert!((0..marked).all(|n| is_marked(&store, "k", n)));
    assert_eq!(store.iter().count() as u64, marked);
    assert!(store.verify().unwrap().is_whole());
}

/// Tables in a merge were removed with their segment. Had the merge listed its table, it would have come after younger
/// ones, and no open would have accepted their ranges.
#[test]
fn a_merge_of_tables_removed_with_their_segment_is_abandoned() {
    let sim = Sim::small(7);
    let store = open(&sim, 8);
    let hour = Duration::from_secs(3600);
    let mut marked = 0;
    for count in [18, 12, 9] {
        for n in marked..marked + count {
            let op = Operation::new(("k", n)).retention(hour).durability(Durability::Flush);
            assert!(store.mark(op).unwrap().is_first());
        }
        marked += count;
        while store.stats().keys_in_memory > 0 {
            store.step().unwrap();
        }
    }
    assert_eq!(store.stats().tables, 3);
    // It begins, and is not done in one step.
    while files(&sim, "tab").len() < 4 {
        store.step().unwrap();
    }
    assert_eq!(store.stats().tables, 3);
    // The rest of the first segment expires, too.
    for n in 3..11 {
        let key = long(n);
        assert!(store.mark(Operation::new(&key).retention(hour)).unwrap().is_first());
    }
    (0..3).for_each(|n| assert!(store.mark(long(n)).unwrap().is_first()));
    // A younger table, some of which will be left.
    while store.stats().keys_in_memory > 0 {
        store.step().unwrap();
    }
    assert_eq!(store.stats().tables, 4);
    sim.advance(2 * hour);
    let oldest = files(&sim, "log")[0].clone();
    assert!(!store.compact(1).unwrap().is_complete());
    assert!(!files(&sim, "log").contains(&oldest));
    assert_eq!(store.stats().tables, 1);
    let check = |store: &Store| {
        assert!((0..11).all(|n| store.get(long(n)).unwrap().is_some() == (n < 3)));
        assert_eq!(store.iter().filter_map(Result::ok).count(), 3);
        assert!(store.verify().unwrap().is_whole());
        assert_eq!(store.stats().tables_mended, 0);
    };
    for _ in 0..20 {
        store.step().unwrap();
        check(&sim.copy().open_with(Store::builder().segment_bytes(16 << 10)).unwrap());
    }
    rest(&sim, &store);
    check(&store);
    (0..9).for_each(|n| mark(&store, "new", n));
    rest(&sim, &store);
    sim.kill();
    let store = open(&sim, 8);
    (0..9).for_each(|n| assert!(store.forget(("new", n)).unwrap()));
    check(&store);
}

/// A checkpoint has copied the keys in memory, and waits for its sync. Keys written meanwhile are not in its table, and
/// don't leave memory with the others.
#[test]
fn records_written_while_memory_is_sealed_stay_in_memory() {
    let sim = Sim::small(7);
    let store = open(&sim, 1000);
    (0..4).for_each(|n| mark(&store, "k", n));
    let gate = sim.hold_sync();
    std::thread::scope(|scope| {
        let seals = scope.spawn(|| store.merge_index());
        assert!(gate.wait_arrived(Duration::from_secs(5)));
        mark(&store, "new", 0);
        gate.open();
        seals.join().unwrap().unwrap();
    });
    assert_eq!((store.stats().tables, store.stats().keys_in_memory), (1, 1));
    assert!(is_marked(&store, "new", 0));
    assert!((0..4).all(|n| is_marked(&store, "k", n)));
}

/// An aborted key was read, taken over by another caller, and judged at the time of the read, by which the abort had
/// expired: a forget found nothing, with a claim in flight.
#[test]
fn a_record_is_judged_by_the_time_at_which_it_was_read() {
    let mut held = 0;
    for after in 0..4 {
        let sim = Sim::small(7);
        sim.mask_hashes(0, 0);
        let store = open_unmapped(&sim, 4);
        let op = || Operation::new("job").retention(Duration::from_millis(300));
        let Claim::Acquired(claim) = store.claim(op()).unwrap() else { panic!() };
        claim.abort("not now").unwrap();
        (0..4).for_each(|n| mark(&store, "k", n));
        work(&store).unwrap();
        let gate = sim.hold_read(after);
        std::thread::scope(|scope| {
            let forgets = scope.spawn(|| store.forget("job"));
            if gate.wait_arrived(Duration::from_secs(5)) {
                held += 1;
                let Claim::Acquired(claim) = store.claim(op()).unwrap() else { panic!() };
                sim.advance(Duration::from_millis(400));
                gate.open();
                let told = forgets.join().unwrap().unwrap_err();
                assert_eq!(told.kind(), ErrorKind::InProgress, "read {after}");
                claim.complete(b"done").unwrap();
            }
        });
    }
    assert!(held > 0, "{held}");
}

/// Compaction has looked a key up in a table, and the key is forgotten before the copy is placed: a copy after the forget
/// would bring it back.
#[test]
fn a_key_forgotten_while_it_is_moved_stays_forgotten() {
    let mut held = 0;
    for after in 0..6 {
        let sim = Sim::small(7);
        let store = sealed(&sim);
        let gate = sim.hold_read(after);
        std::thread::scope(|scope| {
            let compacts = scope.spawn(|| store.compact(u64::MAX).unwrap());
            if gate.wait_arrived(Duration::from_secs(5)) {
                held += 1;
                (0..4).for_each(|n| assert!(store.forget(("k", n)).unwrap()));
                gate.open();
            }
            let _ = compacts.join().unwrap();
        });
        let gone = store.iter().count();
        sim.kill();
        let left = open(&sim, 4).iter().count();
        assert_eq!(gone, left, "read {after}: what is found differs from what is read");
        assert!(left == 0 || left == 4, "read {after}: {left} keys");
        assert!(left == 0 || held == 0 || after > 3, "read {after}: a forgotten key is back");
    }
    assert!(held > 1, "{held}");
}

/// Reading everything takes time, and other threads merge, compact and mend meanwhile: files they remove are not missing.
#[test]
fn segments_removed_during_a_verify_are_no_damage() {
    for after in 0..12 {
        let sim = Sim::small(7);
        let store = open(&sim, 8);
        let mut n = 0;
        for count in [36, 20, 9] {
            (n..n + count).for_each(|n| mark(&store, "k", n));
            n += count;
            while store.stats().keys_in_memory > 0 {
                store.step().unwrap();
            }
        }
        (0..20).for_each(|n| assert!(store.mark(long(n)).unwrap().is_first()));
        (0..15).for_each(|n| assert!(store.forget(long(n)).unwrap()));
        assert!(store.stats().tables > 1, "{:?}", store.stats());
        let mut pieces = 0;
        let found = store.verify_with(|_| {
            if pieces == after {
                assert!(store.compact(u64::MAX).unwrap().is_complete());
            }
            pieces += 1;
            std::ops::ControlFlow::Continue(())
        });
        let damages = found.unwrap().damages;
        assert!(damages.is_empty(), "after {after} files: {damages:?}");
        assert!(store.verify().unwrap().is_whole());
    }
}

/// Long work on the index, by name.
type Long = (&'static str, fn(&Store) -> Result<()>);

const LONG: [Long; 5] = [
    ("compact", |store| store.compact(u64::MAX).map(drop)),
    ("compact some", |store| store.compact(1).map(drop)),
    ("rebuild_index", |store| store.rebuild_index()),
    ("merge_index", |store| store.merge_index()),
    ("verify", |store| store.verify().map(drop)),
];

/// A store with tables, with segments to be reclaimed, and with a remembered key.
fn with_work(sim: &Sim) -> Store {
    let store = open_unmapped(sim, 8);
    let hour = Duration::from_secs(3600);
    let op = Operation::new("remembered").retention(hour).remember_expired(10 * hour);
    assert!(store.mark(op).unwrap().is_first());
    (0..20).for_each(|n| mark(&store, "k", n));
    work(&store).unwrap();
    (0..8).for_each(|n| assert!(store.mark(long(n)).unwrap().is_first()));
    (0..6).for_each(|n| assert!(store.forget(long(n)).unwrap()));
    sim.advance(2 * hour);
    store
}

fn check_work(store: &Store, context: &str) {
    assert!((0..20).all(|n| is_marked(store, "k", n)), "{context}");
    assert!((0..8).all(|n| store.get(long(n)).unwrap().is_some() == (n >= 6)), "{context}");
    assert!(matches!(store.claim("remembered").unwrap(), Claim::Expired(_)), "{context}");
    assert!(store.verify().unwrap().is_whole(), "{context}");
}

/// A close waits for what is under way, or ends it; either way the store is closed clean, and whole.
#[test]
fn a_close_during_long_work_is_clean_and_loses_nothing() {
    let mut held = 0;
    for (name, long_work) in LONG {
        for after in 0..40_u64 {
            let context = format!("{name}, held at call {after}");
            let sim = Sim::small(7);
            let store = with_work(&sim);
            let gate = match after.checked_sub(1) {
                None => sim.hold_sync(),
                Some(reads) => sim.hold_read(reads),
            };
            let has_met = std::thread::scope(|scope| {
                let busy = scope.spawn(|| long_work(&store));
                let has_met = loop {
                    if gate.wait_arrived(Duration::from_millis(1)) {
                        break true;
                    }
                    if busy.is_finished() {
                        break false;
                    }
                };
                let closes = scope.spawn(|| store.close(Duration::from_secs(60)));
                while store.health() != Health::Closed {
                    std::thread::yield_now();
                }
                gate.open();
                if let Err(e) = busy.join().unwrap() {
                    assert_eq!(e.kind(), ErrorKind::Closed, "{context}: {e:?}");
                }
                closes.join().unwrap().unwrap_or_else(|e| panic!("{context}: {e:?}"));
                has_met
            });
            drop(store);
            let store = open_unmapped(&sim, 8);
            assert!(store.stats().opening.was_clean, "{context}");
            check_work(&store, &context);
            held += u32::from(has_met);
            if !has_met && after > 0 {
                break;
            }
        }
    }
    println!("closes: {held} during long work");
    assert!(held > 40, "{held}");
}

/// Compaction reads a record, and before it has judged it, or before it has moved it, hours pass or the clock is set.
/// Nothing expires by the wall clock, and keys that expire meanwhile are still remembered.
#[test]
fn a_clock_jump_during_compaction_loses_no_key_and_no_memory() {
    let hour = Duration::from_secs(3600);
    let day = 86_400_000_i64;
    let mut held = 0;
    for (hours, jump) in [(0, 3 * day), (0, -3 * day), (2, 0), (2, -3 * day), (20, 3 * day)] {
        for after in 0..60 {
            let context = format!("{hours} hours, {jump} ms, at read {after}");
            let sim = Sim::small(7);
            let store = open_unmapped(&sim, 8);
            let keep = |name: &str, n: u64| {
                let op = Operation::new((name, n)).retention(hour).durability(Durability::Flush);
                let op = if name == "r" { op.remember_expired(10 * hour) } else { op };
                assert!(store.mark(op).unwrap().is_first());
            };
            for n in 0..6 {
                keep("r", n);
                keep("e", n);
                mark(&store, "k", n);
            }
            work(&store).unwrap();
            let gate = sim.hold_read(after);
            let has_met = std::thread::scope(|scope| {
                let compacts = scope.spawn(|| store.compact(u64::MAX).unwrap());
                let has_met = loop {
                    if gate.wait_arrived(Duration::from_millis(1)) {
                        break true;
                    }
                    if compacts.is_finished() {
                        break false;
                    }
                };
                sim.jump_wall_clock(jump);
                sim.advance(hour * hours);
                gate.open();
                assert!(compacts.join().unwrap().is_complete(), "{context}");
                has_met
            });
            let check = |store: &Store| {
                for n in 0..6 {
                    let (r, e) = (store.get(("r", n)).unwrap(), store.get(("e", n)).unwrap());
                    let fits = match hours {
                        0 => matches!(r, Some(State::Completed(_))) && e.is_some(),
                        2 => matches!(r, Some(State::Expired(_))) && e.is_none(),
                        _ => r.is_none() && e.is_none(),
                    };
                    assert!(fits, "{context}: {r:?} {e:?}");
                    assert!(is_marked(store, "k", n), "{context}");
                }
                assert!(store.verify().unwrap().is_whole(), "{context}");
            };
            check(&store);
            assert!(store.compact(u64::MAX).unwrap().is_complete(), "{context}");
            check(&store);
            sim.kill();
            check(&open_unmapped(&sim, 8));
            if !has_met {
                break;
            }
            held += 1;
        }
    }
    println!("clocks: {held} jumps during a compaction");
    assert!(held > 20, "{held}");
}

/// While everything is read, a file of remembered keys is merged into another: the file is removed, and nothing is
/// missing.
#[test]
fn remembered_keys_merged_during_a_verify_are_no_damage() {
    let sim = Sim::small(7);
    let store = open(&sim, 8);
    let hour = Duration::from_secs(3600);
    let remember = |from: u64| {
        for n in from..from + 4 {
            let op = Operation::new(("r", n)).retention(hour).remember_expired(100 * hour);
            assert!(store.mark(op).unwrap().is_first());
        }
        sim.advance(2 * hour);
    };
    mark(&store, "k", 0);
    remember(0);
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    remember(4);
    assert_eq!(store.stats().tables, 1);
    let before = files(&sim, "exp");
    let found = store.verify_with(|found| {
        // A table was read, of one moment with the files.
        if found.bytes > 0 {
            assert!(store.compact(u64::MAX).unwrap().is_complete());
        }
        ControlFlow::Continue(())
    });
    assert!(!before.iter().all(|file| files(&sim, "exp").contains(file)), "{before:?} is there");
    let damages = found.unwrap().damages;
    assert!(damages.is_empty(), "{damages:?}");
}

/// An abandoned merge left its file until some later open wrote.
#[test]
fn a_close_during_a_merge_leaves_no_file_of_it() {
    let sim = Sim::small(7);
    let store = open(&sim, 8);
    for n in 0..200 {
        mark(&store, "k", n);
        let _ = store.step().unwrap();
        if files(&sim, "tab").len() as u64 > store.stats().tables {
            break;
        }
    }
    assert!(files(&sim, "tab").len() as u64 > store.stats().tables, "no merge began");
    store.close(Duration::ZERO).unwrap();
    drop(store);
    let store = open(&sim, 8);
    assert_eq!(files(&sim, "tab").len() as u64, store.stats().tables);
}

/// Memory is copied shard by shard. A key that came to a shard after its copy is not in the table, and must stand after
/// its end, or it would still leave memory. Nothing can be held back during the copy, so there is much to copy.
#[test]
fn a_key_marked_while_memory_is_copied_for_a_table_is_found() {
    let sim = Sim::small(7);
    let store = sim.open_with(Store::builder().index_memory_max(64 << 20)).unwrap();
    let mut marked = 0;
    let mark_next = |n: &mut u64| {
        assert!(store.mark(Operation::new(*n).durability(Durability::Lazy)).unwrap().is_first());
        *n += 1;
    };
    for round in 0..4 {
        (0..10_000).for_each(|_| mark_next(&mut marked));
        std::thread::scope(|scope| {
            let seals = scope.spawn(|| store.merge_index().unwrap());
            while !seals.is_finished() {
                mark_next(&mut marked);
            }
        });
        for n in 0..marked {
            assert!(store.get(n).unwrap().is_some(), "round {round}: {n} of {marked} is missing");
        }
    }
}

/// It continued without the lock, and removed a table that the next opener had made under the same number.
#[test]
fn a_rebuild_overtaken_by_a_close_changes_nothing() {
    let sim = Sim::small(7);
    let store = open(&sim, 8);
    (0..30).for_each(|n| mark(&store, "k", n));
    store.close(Duration::from_secs(60)).unwrap();
    let store = open(&sim, 8);
    let most = Duration::from_secs(10);
    let switch = sim.hold_exchange();
    std::thread::scope(|scope| {
        // The rebuild begins to write, and holds the manifest.
        let rebuilds = scope.spawn(|| store.rebuild_index());
        assert!(switch.wait_arrived(most));
        // The close holds the index, and waits for the manifest.
        let closes = scope.spawn(|| store.close(Duration::from_secs(60)));
        while store.get("k").is_ok() {
            std::thread::yield_now();
        }
        (0..10_000).for_each(|_| std::thread::yield_now());
        let table = sim.hold_create();
        switch.open();
        closes.join().unwrap().unwrap();
        while !rebuilds.is_finished() {
            assert!(!table.wait_arrived(Duration::from_millis(10)), "it makes a table");
        }
        assert_eq!(rebuilds.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
    });
}

/// One reported that all is durable while the other, which was to sync it, failed.
#[test]
fn neither_of_two_closes_succeeds_if_the_sync_fails() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let Claim::Acquired(guard) = store.claim("in flight").unwrap() else { panic!() };
    assert!(store.mark(Operation::new("k").durability(Durability::Lazy)).unwrap().is_first());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| store.close(Duration::from_secs(60)));
        while store.claim("other").is_ok() {
            std::thread::yield_now();
        }
        sim.fail_sync(0, DiskFault::Io);
        assert!(store.close(Duration::ZERO).is_err());
        assert_eq!(waits.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
    });
    drop(guard);
}

/// A store of several segments whose process was killed: its end is a note that nothing covers, so the first write
/// continues in another segment and cuts this one.
fn killed_with_a_note(sim: &Sim) {
    let store = open_unmapped(sim, 8);
    (0..10).for_each(|n| assert!(store.mark(long(n)).unwrap().is_first()));
    rest(sim, &store);
    let listed = files(sim, "log").len();
    assert!(listed > 2, "{listed}");
    sim.kill();
}

/// Runs `meanwhile` while a `verify` is held at a read. Returns its findings, if there are that many reads.
fn verify_held_at(
    sim: &Sim,
    store: &Store,
    after: u64,
    meanwhile: impl FnOnce(),
) -> Option<Result<Verification>> {
    let gate = sim.hold_read(after);
    let found = std::thread::scope(|scope| {
        let verifies = scope.spawn(|| store.verify());
        let is_held = loop {
            if gate.wait_arrived(Duration::from_millis(1)) {
                break true;
            }
            if verifies.is_finished() {
                break false;
            }
        };
        if is_held {
            meanwhile();
        }
        gate.open();
        let found = verifies.join().unwrap();
        is_held.then_some(found)
    });
    sim.heal();
    found
}

/// The first write after a kill cuts the segment in use while everything is read. By the earlier list the segment was too
/// short, and a healthy store was reported damaged.
#[test]
fn the_tail_cut_by_the_first_write_after_a_kill_is_no_damage() {
    for after in 0.. {
        let sim = Sim::small(7);
        killed_with_a_note(&sim);
        let store = open_unmapped(&sim, 8);
        let write = || mark(&store, "first", 0);
        let Some(found) = verify_held_at(&sim, &store, after, write) else {
            println!("{after} reads");
            assert!(after > 10);
            break;
        };
        let found = found.unwrap();
        assert!(found.is_whole(), "at read {after}: {found:?}");
        assert_eq!(found.records, 10, "at read {after}");
    }
}

/// The same where the unsynced tail of the last open had no space: the first write that finds some moves it.
#[test]
fn the_leftovers_of_a_moved_unsynced_tail_are_no_damage() {
    for after in 0.. {
        let sim = Sim::small(7);
        let store = open_unmapped(&sim, 8);
        (0..10).for_each(|n| assert!(store.mark(long(n)).unwrap().is_first()));
        let late = Operation::new("late").durability(Durability::Flush);
        assert!(store.mark(late).unwrap().is_first());
        sim.kill();
        drop(store);
        let is_spare = |path: &PathBuf| path.to_str().unwrap().contains("spare");
        for spare in sim.files().into_iter().map(|(path, _)| path).filter(is_spare) {
            sim.remove(spare).unwrap();
        }
        sim.set_disk_bytes_max(sim.disk_bytes());
        let store = open_unmapped(&sim, 8);
        assert_eq!(store.health(), Health::WaitsForSpace);
        // Not read, and not damaged.
        let found = store.verify().unwrap();
        assert!(found.damages.is_empty(), "{found:?}");
        let write = || {
            sim.set_disk_bytes_max(u64::MAX);
            mark(&store, "first", 0);
        };
        let Some(found) = verify_held_at(&sim, &store, after, write) else {
            assert!(after > 10, "{after}");
            break;
        };
        let found = found.unwrap();
        assert!(found.damages.is_empty(), "at read {after}: {found:?}");
        assert!(store.verify().unwrap().is_whole());
    }
}

/// A `verify` overtaken by a close may find files that the next open changed.
#[test]
fn a_verify_overtaken_by_a_close_says_so_and_finds_no_damage() {
    let mut reopened = 0;
    for after in 0.. {
        let sim = Sim::small(7);
        killed_with_a_note(&sim);
        let store = open_unmapped(&sim, 8);
        let close_and_go_on = || {
            std::thread::scope(|scope| {
                scope.spawn(|| store.close(Duration::ZERO));
                while store.health() != Health::Closed {
                    std::thread::yield_now();
                }
                // It may wait for the end of the read.
                let opened = sim.open_existing(Store::builder().segment_bytes(16 << 10), false);
                let Ok(next) = opened else { return };
                reopened += 1;
                (0..10).for_each(|n| assert!(next.forget(long(n)).unwrap()));
                assert!(next.compact(u64::MAX).unwrap().is_complete());
            });
        };
        let Some(found) = verify_held_at(&sim, &store, after, close_and_go_on) else {
            assert!(after > 10);
            break;
        };
        match found {
            Ok(found) => assert!(found.is_whole(), "at read {after}: {found:?}"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Closed, "at read {after}: {e:?}"),
        }
    }
    println!("{reopened} openings meanwhile");
}

/// A refusal of the system says nothing about the bytes: it was listed as damage.
#[test]
fn an_unreadable_file_is_reported_separately_and_is_no_damage() {
    let mut refused = 0;
    for fault in [DiskFault::Io, DiskFault::TooManyOpen, DiskFault::Denied] {
        for lasting in [false, true] {
            for after in 0.. {
                let context = format!("{fault:?} at call {after}, lasting: {lasting}");
                let sim = Sim::small(7);
                let store = with_work(&sim);
                assert!(store.compact(u64::MAX).unwrap().is_complete());
                match lasting {
                    true => sim.fail_calls_from(after, fault),
                    false => sim.fail_call(after, fault),
                }
                let found = store.verify().unwrap();
                let met = sim.faults_met();
                sim.heal();
                assert!(found.damages.is_empty(), "{context}: {found:?}");
                assert_eq!(found.is_whole(), met == 0, "{context}: {found:?}");
                for unread in &found.unread {
                    assert_eq!(unread.kind(), ErrorKind::Io, "{context}: {unread:?}");
                    assert!(unread.path().is_some(), "{context}: {unread:?}");
                }
                assert!(store.verify().unwrap().is_whole(), "{context}");
                if met == 0 {
                    break;
                }
                refused += 1;
            }
        }
    }
    println!("{refused} refusals");
    assert!(refused > 100, "{refused}");
}

/// A record that a failed write left in memory can't be read, and was reported as damaged.
#[test]
fn a_record_left_in_memory_by_a_failed_write_is_no_damage() {
    let sim = Sim::small(7);
    let store = open_unmapped(&sim, 8);
    (0..6).for_each(|n| mark(&store, "k", n));
    rest(&sim, &store);
    let op = Operation::new("k").durability(Durability::Lazy);
    let Claim::Acquired(claim) = store.claim(op).unwrap() else { panic!() };
    claim.complete("late").unwrap();
    sim.fail_write(0, DiskFault::Io);
    assert_eq!(store.sync().unwrap_err().kind(), ErrorKind::Indeterminate);
    let found = store.verify().unwrap();
    assert!(found.damages.is_empty(), "{found:?}");
    assert_eq!(found.records, 7);
    assert_eq!(found.unread.len(), 1, "{found:?}");
    assert_eq!(found.unread[0].kind(), ErrorKind::Indeterminate);
}

/// A claim looks its key up while a close interrupts all claims in flight: a key granted from then on would be in no
/// list.
#[test]
fn a_claim_overtaken_by_a_close_is_refused_or_reported_by_the_close() {
    let mut overtaken = 0;
    for after in 0..3 {
        let sim = Sim::new(7);
        // One bucket for all, so that the reads are sure.
        sim.mask_hashes(0, 0);
        let store = open_unmapped(&sim, 4);
        let Claim::Acquired(first) = store.claim("key").unwrap() else { panic!() };
        first.abort("not yet").unwrap();
        (0..4).for_each(|n| mark(&store, "k", n));
        rest(&sim, &store);
        assert_eq!(store.stats().keys_in_memory, 0);
        mark(&store, "to be sealed", 0);
        let read = sim.hold_read(after);
        std::thread::scope(|scope| {
            let lazily = Operation::new("key").claim_durability(Durability::Lazy);
            let claim = scope.spawn(|| store.claim(lazily));
            assert!(read.wait_arrived(Duration::from_secs(10)), "read {after}");
            let sync = sim.hold_sync();
            let close = scope.spawn(|| store.close(Duration::from_secs(60)));
            // It syncs after it has interrupted all; it may as well wait for the claim first.
            overtaken += u32::from(sync.wait_arrived(Duration::from_secs(1)));
            read.open();
            let claimed = claim.join().unwrap();
            sync.open();
            let left = close.join().unwrap().unwrap();
            match claimed {
                Err(e) => assert_eq!(e.kind(), ErrorKind::Closed),
                Ok(Claim::Acquired(_guard)) => assert_eq!(left.len(), 1, "granted in secret"),
                Ok(other) => panic!("{other}"),
            }
        });
    }
    println!("{overtaken} claims overtaken");
}
