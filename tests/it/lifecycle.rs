//! A close during everything else: it waits for the calls inside, and only then releases the directory.
//!
//! A sync, a read or a new file is held back, so that the moment is the same in each run.

use std::ops::ControlFlow;
use std::time::Duration;

use onlyonce::admin::Health;
use onlyonce::testing::{DiskFault, Sim, SimGate};
use onlyonce::{
    Claim, ClaimGuard, Durability, ErrorKind, Operation, Result, State, Store, StoreBuilder,
};

use crate::index::{is_marked, mark, open, rest};

/// A call on a store, and its name.
type Named = (&'static str, fn(&Store) -> Result<()>);

const SOON: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_secs(3600);

fn small() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(256)
}

fn acquire(store: &Store, key: &str) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    }
}

/// A store whose next record of 200 bytes of key begins the next segment.
fn about_to_roll(sim: &Sim) -> Store {
    let fill = |n: u64| Operation::new(format!("{n:0>200}")).durability(Durability::Flush);
    let begin = |sim: &Sim| {
        let store = sim.open_with(small()).unwrap();
        let _ = store.mark("first").unwrap();
        for _ in 0..8 {
            store.step().unwrap();
        }
        store
    };
    let dry = begin(&Sim::new(1));
    let mut fits = 0;
    loop {
        let syncs = dry.stats().syncs;
        let _ = dry.mark(fill(fits)).unwrap();
        if dry.stats().syncs > syncs {
            break;
        }
        fits += 1;
    }
    let store = begin(sim);
    (0..fits).for_each(|n| drop(store.mark(fill(n)).unwrap()));
    store
}

/// The background fails, which poisons the store.
fn poison(sim: &Sim, store: &Store) {
    sim.fail_sync(0, DiskFault::Io);
    assert!((0..3).any(|_| store.step().is_err()));
    sim.heal();
    assert!(!store.health().is_writable());
}

fn held(gate: &SimGate) {
    assert!(gate.wait_arrived(Duration::from_secs(30)), "nothing came to the gate");
}

/// A claim led the sync of a full segment when another call failed. The close released the directory, the next open
/// granted the key, and then the leader came back, wrote after its recovery, and was granted the key as well.
#[test]
fn a_sync_that_outlasts_a_poisoned_store_grants_nothing() {
    let sim = Sim::new(1);
    let store = about_to_roll(&sim);
    let key = format!("{:0>200}", "pay-17");
    std::thread::scope(|scope| {
        // In here, so that a panic opens the gate.
        let gate = sim.hold_sync();
        let first = scope.spawn(|| store.claim(key.as_str()));
        held(&gate);
        poison(&sim, &store);
        assert_eq!(store.close(SOON).unwrap_err().kind(), ErrorKind::Poisoned);
        let second = sim.open_with(small()).unwrap();
        let claim = acquire(&second, &key);
        let changes = sim.changes();
        gate.open();
        assert_eq!(first.join().unwrap().unwrap_err().kind(), ErrorKind::Indeterminate);
        assert_eq!(sim.changes(), changes, "written by the old handle");
        claim.complete("receipt").unwrap();
        drop(second);
        let third = sim.open_with(small()).unwrap();
        assert!(matches!(third.claim(key.as_str()).unwrap(), Claim::Completed(_)));
    });
}

/// The same for an outcome: it was acknowledged, and lost.
#[test]
fn a_sync_that_outlasts_a_poisoned_store_acknowledges_nothing() {
    let sim = Sim::new(1);
    let store = about_to_roll(&sim);
    let key = format!("{:0>100}", "p");
    let op = Operation::new(key.as_str()).claim_durability(Durability::Flush);
    let Claim::Acquired(claim) = store.claim(op).unwrap() else { panic!() };
    std::thread::scope(|scope| {
        // In here, so that a panic opens the gate.
        let gate = sim.hold_sync();
        let completes = scope.spawn(move || claim.complete(&[7_u8; 150][..]));
        held(&gate);
        poison(&sim, &store);
        assert_eq!(store.close(SOON).unwrap_err().kind(), ErrorKind::Poisoned);
        let second = sim.open_with(small()).unwrap();
        // Whether the outcome was written by then or not: an answer once shown stays.
        let shown = || match second.get(key.as_str()).unwrap() {
            Some(State::Interrupted(_)) => "interrupted",
            Some(State::Completed(_)) => "completed",
            other => panic!("{other:?}"),
        };
        let before = shown();
        gate.open();
        assert_eq!(completes.join().unwrap().unwrap_err().kind(), ErrorKind::Indeterminate);
        assert_eq!(shown(), before);
    });
}

/// The close of a poisoned store waits for no sync, whichever thread is in it and whatever that thread holds. It waited
/// for the index's lock, which a merge of tables held, and for the store's own thread.
#[test]
fn the_close_of_a_poisoned_store_waits_for_no_sync_of_a_merge_or_the_background() {
    let flushed = |n: u32| Operation::new(n).durability(Durability::Flush);
    for merges in [true, false] {
        let sim = Sim::new(1);
        let large = || Store::builder().segment_bytes(1 << 20).result_bytes_max(256);
        // Segments ahead are prepared, so that the first sync of the background is one of the log.
        let prepared = sim.open_with(large()).unwrap();
        mark(&prepared, "first", 0);
        rest(&sim, &prepared);
        drop(prepared);
        let store = sim.open_existing(large(), !merges).unwrap();
        (0..20).for_each(|n| assert!(store.mark(flushed(n)).unwrap().is_first()));
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            // In here, so that a panic opens the gate.
            let gate = sim.hold_sync();
            let merging = store.clone();
            if merges {
                scope.spawn(move || merging.merge_index());
            } else {
                drop(merging);
                // The background syncs within a second what was written at `Flush`.
                for n in 20.. {
                    sim.advance(Duration::from_secs(2));
                    let _ = store.mark(flushed(n));
                    if gate.wait_arrived(Duration::from_millis(50)) {
                        break;
                    }
                }
            }
            held(&gate);
            sim.fail_write(0, DiskFault::Io);
            store.mark(flushed(u32::MAX)).unwrap_err();
            sim.heal();
            let closing = store.clone();
            scope.spawn(move || tell.send(closing.close(SOON).map(drop)));
            let closed = told.recv_timeout(Duration::from_secs(30)).expect("it hangs");
            let closed = closed.unwrap_err();
            assert_eq!(closed.kind(), ErrorKind::Poisoned, "merges: {merges}, {closed}");
            // The last handle doesn't wait for it either.
            drop(store);
            drop(sim.open_with(large()).unwrap());
            gate.open();
        });
    }
}

/// While the store is sound, everything that a sync makes durable is acknowledged. So the close reports that it waits,
/// and the directory stays locked.
#[test]
fn a_close_whose_deadline_passes_during_a_sync_says_so_and_keeps_the_lock() {
    let sim = Sim::new(1);
    let store = sim.open_with(small()).unwrap();
    let _ = store.mark("first").unwrap();
    std::thread::scope(|scope| {
        // In here, so that a panic opens the gate.
        let gate = sim.hold_sync();
        let marks = scope.spawn(|| store.mark("k"));
        held(&gate);
        let told = store.close(SOON).unwrap_err();
        assert_eq!(told.kind(), ErrorKind::InProgress, "{told}");
        assert!(told.to_string().contains("stays locked"), "{told}");
        assert_eq!(sim.open_with(small()).unwrap_err().kind(), ErrorKind::Locked);
        // It admits no further call.
        assert_eq!(store.get("first").unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(store.mark("l").unwrap_err().kind(), ErrorKind::Closed);
        gate.open();
        assert!(marks.join().unwrap().unwrap().is_first());
    });
    assert!(store.close(SOON).unwrap().is_empty());
    assert_eq!(store.close(SOON).unwrap_err().kind(), ErrorKind::Closed);
    let next = sim.open_with(small()).unwrap();
    assert!(next.stats().opening.was_clean);
    assert!(!next.mark("k").unwrap().is_first());
}

/// The device hangs while the close itself writes: `close` waited as long as that lasted, whatever its deadline.
#[test]
fn a_close_whose_own_writes_hang_says_so_and_keeps_the_lock() {
    let holds: [fn(&Sim) -> SimGate; 2] = [Sim::hold_sync, Sim::hold_exchange];
    std::thread::scope(|scope| {
        for hold in holds {
            scope.spawn(move || hang_in_close(hold));
        }
    });
}

fn hang_in_close(hold: fn(&Sim) -> SimGate) {
    let sim = Sim::new(1);
    let store = sim.open_with(small()).unwrap();
    let _ = store.mark(Operation::new("first").durability(Durability::Flush)).unwrap();
    let claim = acquire(&store, "k");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // In here, so that a panic opens the gate.
        let gate = hold(&sim);
        let closing = store.clone();
        scope.spawn(move || tell.send(closing.close(SOON)));
        held(&gate);
        let told = told.recv_timeout(Duration::from_secs(30)).expect("it hangs").unwrap_err();
        assert_eq!(told.kind(), ErrorKind::InProgress, "{told}");
        assert!(told.to_string().contains("the close itself"), "{told}");
        assert_eq!(sim.open_with(small()).unwrap_err().kind(), ErrorKind::Locked);
        assert_eq!(store.get("first").unwrap_err().kind(), ErrorKind::Closed);
        gate.open();
    });
    // It gets the result of that sync, and of the first close.
    let left = store.close(LONG).unwrap();
    assert_eq!(left.iter().map(|left| left.token()).collect::<Vec<_>>(), [claim.token()]);
    assert_eq!(store.close(SOON).unwrap_err().kind(), ErrorKind::Closed);
    let next = sim.open_with(small()).unwrap();
    assert!(next.stats().opening.was_clean);
    assert!(!next.mark("first").unwrap().is_first());
    assert!(matches!(next.claim("k").unwrap(), Claim::Interrupted(_)));
}

/// The close was in its last sync, and the device failed: the later close reports it, and the lock is free.
#[test]
fn a_close_whose_sync_hangs_and_fails_reports_it_to_the_next_close() {
    let sim = Sim::new(1);
    let store = sim.open_with(small()).unwrap();
    let _ = store.mark("first").unwrap();
    let _ = store.mark(Operation::new("last").durability(Durability::Flush)).unwrap();
    {
        let gate = sim.hold_sync();
        assert_eq!(store.close(SOON).unwrap_err().kind(), ErrorKind::InProgress);
        sim.fail_changes_from(0, DiskFault::Io);
        gate.open();
    }
    let told = store.close(LONG).unwrap_err();
    assert!(
        matches!(told.kind(), ErrorKind::Poisoned | ErrorKind::Indeterminate | ErrorKind::Io),
        "{told}"
    );
    assert_eq!(store.close(LONG).unwrap_err().kind(), ErrorKind::Closed);
    sim.heal();
    let next = sim.open_with(small()).unwrap();
    assert!(!next.mark("first").unwrap().is_first());
}

/// It reclaimed two segments whatever the deadline.
#[test]
fn a_close_reclaims_no_longer_than_its_deadline() {
    let reclaimed = |passes: bool| {
        let sim = Sim::new(1);
        let store = sim.open_with(small()).unwrap();
        let fill = |n: u64| Operation::new(format!("{n:0>200}")).durability(Durability::Flush);
        let keep = Operation::new("kept").durability(Durability::Flush);
        let _ = store.mark(keep).unwrap();
        for n in 0..600 {
            let _ = store.mark(fill(n)).unwrap();
            store.forget(format!("{n:0>200}")).unwrap();
        }
        let before = store.stats().bytes_reclaimed;
        std::thread::scope(|scope| {
            // In here, so that a panic opens the gate.
            let gate = sim.hold_sync();
            let closing = scope.spawn(|| store.close(LONG));
            held(&gate);
            if passes {
                sim.advance(2 * LONG);
            }
            gate.open();
            // The remaining writes take no time, whatever the clock shows.
            closing.join().unwrap().or_else(|_| store.close(LONG)).unwrap();
        });
        let reclaimed = store.stats().bytes_reclaimed - before;
        drop(store);
        assert!(sim.open_with(small()).unwrap().stats().opening.was_clean);
        reclaimed
    };
    // The deadline passed in the middle of one.
    let (all, less) = (reclaimed(false), reclaimed(true));
    assert!(less < all, "{less} bytes of {all}");
}

/// A lookup was in the middle of a read when the store was poisoned, closed and opened twice more: by then the file it
/// read was cut short.
#[test]
fn a_close_of_a_poisoned_store_waits_for_readers() {
    let sim = Sim::new(1);
    let store = sim.open_with(small().map(false)).unwrap();
    let _ = store.mark("k").unwrap();
    poison_by_mark(&sim, &store);
    std::thread::scope(|scope| {
        // In here, so that a panic opens the gate.
        let gate = sim.hold_read(0);
        let reads = scope.spawn(|| store.get("k"));
        held(&gate);
        assert_eq!(store.close(SOON).unwrap_err().kind(), ErrorKind::InProgress);
        assert_eq!(sim.open_with(small()).unwrap_err().kind(), ErrorKind::Locked);
        gate.open();
        assert!(matches!(reads.join().unwrap().unwrap(), Some(State::Completed(_))));
    });
    assert_eq!(store.close(SOON).unwrap_err().kind(), ErrorKind::Poisoned);
    assert!(sim.open_with(small()).unwrap().get("k").unwrap().is_some());
}

fn poison_by_mark(sim: &Sim, store: &Store) {
    sim.fail_call(0, DiskFault::Io);
    assert_eq!(store.mark("fails").unwrap_err().kind(), ErrorKind::Indeterminate);
}

/// A walk held over a close reads nothing afterwards: its files belong to the next open.
#[test]
fn a_walk_held_over_a_close_ends_with_closed() {
    for poisoned in [false, true] {
        let sim = Sim::new(1);
        let store = sim.open_with(small()).unwrap();
        (0..100_u64).for_each(|n| assert!(store.mark(n).unwrap().is_first()));
        if poisoned {
            poison_by_mark(&sim, &store);
        }
        let mut walk = store.iter();
        assert!(walk.next().unwrap().is_ok());
        assert_eq!(store.close(SOON).is_err(), poisoned);
        for _ in 0..2 {
            let next = sim.open_with(small()).unwrap();
            let _ = next.mark("next").unwrap();
            sim.kill();
        }
        let calls = sim.calls();
        assert_eq!(walk.next().unwrap().unwrap_err().kind(), ErrorKind::Closed);
        assert!(walk.next().is_none());
        assert_eq!(sim.calls(), calls, "it read on");
    }
}

/// Long work stops when a close waits for it, and leaves nothing that the next open could miss. It used to continue
/// without the lock, or to keep the close waiting until it was done.
#[test]
fn long_work_stops_for_a_close() {
    let builder = || small().index_memory_max(64 * 8).map(false);
    let works: [Named; 5] = [
        ("rebuild", Store::rebuild_index),
        ("merge", Store::merge_index),
        ("compact", |store| store.compact(u64::MAX).map(drop)),
        ("verify", |store| store.verify().map(drop)),
        ("walk", |store| store.iter().collect::<Result<Vec<_>>>().map(drop)),
    ];
    for (name, work) in works {
        let prepared = || {
            let sim = Sim::new(7);
            let store = sim.open_with(builder()).unwrap();
            for count in [18, 12, 9] {
                let from = store.stats().keys;
                (from..from + count).for_each(|n| mark(&store, "k", n));
                rest(&sim, &store);
            }
            // Something to seal.
            mark(&store, "k", store.stats().keys);
            (sim, store)
        };
        let (sim, store) = prepared();
        let keys = store.stats().keys;
        let calls = sim.calls_of(|| work(&store).unwrap());
        let reads = calls.iter().filter(|(class, _)| class == "Read").count() as u64;
        // A merge reads by maps; the test can hold the creation of its file.
        let (held_calls, hold): (u64, fn(&Sim, u64) -> SimGate) = match reads {
            0 => (1, |sim, _| sim.hold_create()),
            reads => (reads, Sim::hold_read),
        };
        let (mut left, mut cases) = (0, 0);
        for after in (0..held_calls).step_by((held_calls / 12).max(1) as usize) {
            let (sim, store) = prepared();
            let worked = std::thread::scope(|scope| {
                let gate = hold(&sim, after);
                let works = scope.spawn(|| work(&store));
                held(&gate);
                let closes = scope.spawn(|| store.close(LONG));
                while store.health() != Health::Closed {
                    std::thread::yield_now();
                }
                gate.open();
                assert!(closes.join().unwrap().unwrap().is_empty());
                works.join().unwrap()
            });
            cases += 1;
            if let Err(e) = worked {
                assert_eq!(e.kind(), ErrorKind::Closed, "{name}, read {after}: {e}");
                left += 1;
            }
            let next = sim.open_with(builder()).unwrap();
            assert!(next.stats().opening.was_clean, "{name}, read {after}");
            assert_eq!(next.stats().tables_mended, 0, "{name}, read {after}");
            assert!((0..keys).all(|n| is_marked(&next, "k", n)), "{name}, read {after}");
            assert!(next.verify().unwrap().is_whole(), "{name}, read {after}");
        }
        println!("{name}: {cases} of {held_calls} calls, left at {left}");
        assert!(left * 3 >= cases && left > 0, "{name}: left at {left} of {cases}");
    }
}

/// The caller's own code runs outside the gate: it may close the store.
#[test]
fn a_verify_returns_closed_when_its_caller_closes_the_store() {
    let sim = Sim::new(7);
    let store = open(&sim, 8);
    (0..20).for_each(|n| mark(&store, "k", n));
    rest(&sim, &store);
    let mut told = 0;
    let verified = store.verify_with(|_| {
        told += 1;
        assert!(store.close(LONG).unwrap().is_empty());
        ControlFlow::Continue(())
    });
    assert_eq!((verified.unwrap_err().kind(), told), (ErrorKind::Closed, 1));
}

/// A claim whose sync failed was reported as in progress until the store was closed, though its caller got the error and
/// holds nothing.
#[test]
fn a_claim_answered_with_an_error_has_no_owner() {
    let claims: [Named; 3] = [
        ("claim", |store| store.claim("new").map(drop)),
        ("take over", |store| match store.claim("old")? {
            Claim::Interrupted(lost) => lost.take_over().map(drop),
            other => panic!("{other}"),
        }),
        ("not applied", |store| match store.claim("old")? {
            Claim::Interrupted(lost) => lost.not_applied().map(drop),
            other => panic!("{other}"),
        }),
    ];
    for (name, claim) in claims {
        for writes in [false, true] {
            let sim = Sim::new(1);
            let store = sim.open_with(small()).unwrap();
            drop(acquire(&store, "old"));
            store.sync().unwrap();
            match writes {
                true => sim.fail_write(0, DiskFault::Io),
                false => sim.fail_sync(0, DiskFault::Io),
            }
            assert_eq!(claim(&store).unwrap_err().kind(), ErrorKind::Indeterminate, "{name}");
            let stats = store.stats();
            assert_eq!((stats.in_flight, stats.oldest_claim), (0, None), "{name}");
            let key = if name == "claim" { "new" } else { "old" };
            // The state on the disk is unknown, and the key has no owner.
            assert_eq!(store.get(key).unwrap_err().kind(), ErrorKind::Indeterminate, "{name}");
            let told = store.claim(key).map(drop).unwrap_err();
            assert!(
                matches!(told.kind(), ErrorKind::Indeterminate | ErrorKind::Poisoned),
                "{name}: {told}"
            );
            assert_eq!(store.close(LONG).unwrap_err().kind(), ErrorKind::Poisoned, "{name}");
        }
    }
}

/// A question whose answer failed is asked again.
#[test]
fn a_failed_hold_or_mark_keeps_no_key_in_memory() {
    let sim = Sim::new(1);
    let store = sim.open_with(small()).unwrap();
    drop(acquire(&store, "old"));
    store.sync().unwrap();
    let Claim::Interrupted(lost) = store.claim("old").unwrap() else { panic!() };
    sim.fail_sync(0, DiskFault::Io);
    assert_eq!(lost.hold("held by a test").unwrap_err().kind(), ErrorKind::Indeterminate);
    assert_eq!(store.get("old").unwrap_err().kind(), ErrorKind::Indeterminate);
    assert_eq!(store.get("other").unwrap().map(drop), None);
}
