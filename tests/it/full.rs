//! A full store, and the way back: forgets and compaction have their space.

use std::time::Duration;

use onlyonce::admin::Health;
use onlyonce::testing::Sim;
use onlyonce::{Claim, Durability, ErrorKind, Operation, Store, StoreBuilder};

/// The limit that is used up.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Full {
    Disk,
    Budget,
}

const BOTH: [Full; 2] = [Full::Disk, Full::Budget];

const MOST: u64 = 1536 << 10;

fn builder(full: Full) -> StoreBuilder {
    let builder = Store::builder().segment_bytes(64 << 10).result_bytes_max(8 << 10);
    let builder = builder.index_memory_max(1 << 20);
    if full == Full::Budget { builder.disk_bytes_max(MOST) } else { builder }
}

/// What fills it: marks, whose copies are longer than the originals, or results.
#[derive(Clone, Copy, PartialEq, Debug)]
enum What {
    Marks,
    Results,
}

fn put(store: &Store, what: What, n: u64) -> onlyonce::Result<()> {
    let op = Operation::new(key(what, n)).durability(Durability::Flush);
    match what {
        What::Marks => store.mark(op).map(|mark| assert!(mark.is_first())),
        What::Results => match store.claim(op.claim_durability(Durability::Flush))? {
            Claim::Acquired(claim) => claim.complete(&[7_u8; 400][..]),
            other => panic!("{other}"),
        },
    }
}

fn key(what: What, n: u64) -> String {
    match what {
        What::Marks => format!("{n:0>8}"),
        What::Results => format!("{n:0>36}"),
    }
}

fn fill(store: &Store, what: What, from: u64) -> u64 {
    for n in from.. {
        if n % 50 == 0 {
            // Like a background, which finds out early that there is no space.
            let _ = store.step();
        }
        if let Err(e) = put(store, what, n) {
            assert_eq!(e.kind(), ErrorKind::StorageFull, "{e}");
            return n;
        }
    }
    unreachable!()
}

fn filled(full: Full, what: What) -> (Sim, Store, u64) {
    let sim = Sim::new(1);
    if full == Full::Disk {
        sim.set_disk_bytes_max(MOST);
    }
    let store = sim.open_with(builder(full)).unwrap();
    let count = fill(&store, what, 0);
    // Other records that still fit, and once more after the background had its turn.
    for _ in 0..20 {
        let _ = store.step();
        sim.advance(Duration::from_secs(1));
    }
    let count = fill(&store, what, count);
    assert!(count > 1000, "{full:?}, {what:?}: {count}");
    assert!(sim.disk_bytes() > MOST / 2);
    (sim, store, count)
}

/// It was refused sixty times of sixty, and `compact` as well, while the message said "forget keys".
#[test]
fn forgetting_half_of_a_full_store_frees_its_space() {
    for full in BOTH {
        let (context, what) = (format!("{full:?}"), What::Results);
        let (sim, store, count) = filled(full, what);
        for n in (0..count).step_by(2) {
            let forgotten = store.forget(key(what, n));
            assert!(forgotten.unwrap_or_else(|e| panic!("{context}: forget {n} of {count}: {e}")));
        }
        let done = store.compact(u64::MAX).unwrap_or_else(|e| panic!("{context}: {e}"));
        assert!(done.is_complete());
        let more = fill(&store, what, count) - count;
        assert!(more > count / 4, "{context}: {more} new keys after {} were forgotten", count / 2);
        assert!(sim.disk_bytes() <= MOST + (256 << 10));
        drop(store);
        let store = sim.open_with(builder(full)).unwrap();
        for n in 0..count + more {
            let is_kept = n >= count || n % 2 == 1;
            assert_eq!(store.get(key(what, n)).unwrap().is_some(), is_kept, "{context}: {n}");
        }
        assert!(store.verify().unwrap().is_whole());
        println!("{context}: {count} keys, {more} after half of them were forgotten");
    }
}

/// Nothing calls `compact`: the forget that finds no space waits for the reclaim of forgotten keys.
#[test]
fn single_forgets_free_space_without_a_compaction_call() {
    for full in BOTH {
        let (context, what) = (format!("{full:?}"), What::Results);
        let (_, store, count) = filled(full, what);
        // The youngest first: the oldest segments are live as a whole.
        for n in (0..count).rev() {
            let forgotten = store.forget(key(what, n));
            assert!(forgotten.unwrap_or_else(|e| panic!("{context}: forget {n} of {count}: {e}")));
        }
        let again = fill(&store, what, count);
        assert!(again > count + count / 2, "{context}: {} of {count}", again - count);
    }
}

/// All of it is live: a compaction uses its reserve, gains nothing, and leaves the store as it was.
#[test]
fn compaction_of_a_full_store_of_live_records_changes_no_answer() {
    for full in BOTH {
        let (sim, store, count) = filled(full, What::Results);
        for _ in 0..3 {
            let done = store.compact(u64::MAX).unwrap_or_else(|e| panic!("{full:?}: {e}"));
            assert!(done.is_complete());
        }
        assert!(store.forget(key(What::Results, 3)).unwrap());
        sim.kill();
        let store = sim.open_with(builder(full)).unwrap();
        for n in 0..count {
            assert_eq!(
                store.get(key(What::Results, n)).unwrap().is_some(),
                n != 3,
                "{full:?}: {n}"
            );
        }
        assert!(store.verify().unwrap().is_whole());
    }
}

/// A mark takes no more than its forget does, so forgets free no space until they are reclaimed themselves. They have a
/// reserve; a compaction goes as far as it can, and reports so.
#[test]
fn a_store_full_of_marks_can_forget_some_and_stays_whole() {
    for full in BOTH {
        let (sim, store, count) = filled(full, What::Marks);
        let forgotten = (0..count).find(|n| store.forget(key(What::Marks, 7 * n % count)).is_err());
        // A quarter of a segment is kept, and a forget takes 56 bytes.
        let kept = (64 << 10) / 4 / 56;
        assert!(forgotten.is_none_or(|n| n >= kept), "{full:?}: {forgotten:?} of {count}");
        let forgotten = forgotten.unwrap_or(count);
        for _ in 0..3 {
            match store.compact(u64::MAX) {
                Ok(done) => assert!(done.is_complete()),
                Err(e) => assert_eq!(e.kind(), ErrorKind::StorageFull, "{full:?}"),
            }
        }
        let mut expected: Vec<_> = (0..count).map(|_| true).collect();
        (0..forgotten).for_each(|n| expected[(7 * n % count) as usize] = false);
        sim.kill();
        sim.set_disk_bytes_max(2 * MOST);
        let store = sim.open_with(builder(full).disk_bytes_max(2 * MOST)).unwrap();
        assert!(store.compact(u64::MAX).unwrap().is_complete(), "{full:?}");
        for n in 0..count {
            let found = store.get(key(What::Marks, n)).unwrap().is_some();
            assert_eq!(found, expected[n as usize], "{full:?}: {n}");
        }
        assert!(store.verify().unwrap().is_whole());
    }
}

/// The log is one segment, and there is one spare: live records move into that.
#[test]
fn a_disk_of_two_segments_can_be_emptied() {
    let sim = Sim::new(1);
    let small = || Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let store = sim.open_with(small()).unwrap();
    assert!(store.mark("first").unwrap().is_first());
    while store.step().unwrap() == Duration::ZERO {}
    // The index takes a little.
    sim.set_disk_bytes_max(sim.disk_bytes() + (16 << 10));
    let count = fill(&store, What::Results, 0);
    for n in 0..count {
        assert!(store.forget(key(What::Results, n)).unwrap(), "{n} of {count}");
    }
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    let again = fill(&store, What::Results, count) - count;
    assert!(again * 2 > count, "{again} of {count}");
    assert!(!store.mark("first").unwrap().is_first());
}

/// The reserve of compaction serves for the file of remembered keys, too.
#[test]
fn expired_keys_can_be_remembered_on_a_full_disk() {
    for full in BOTH {
        let sim = Sim::new(1);
        if full == Full::Disk {
            sim.set_disk_bytes_max(MOST);
        }
        let store = sim.open_with(builder(full)).unwrap();
        let kept = Duration::from_secs(60);
        let key = |n: u64| format!("{n:0>200}");
        let op = |n: u64| Operation::new(key(n)).durability(Durability::Flush).retention(kept);
        let op = |n: u64| op(n).remember_expired(1000 * kept);
        let full_at = |from: u64| (from..).find(|n| store.mark(op(*n)).is_err()).unwrap();
        let count = full_at(0);
        sim.set_disk_bytes_max(sim.disk_bytes().min(MOST));
        sim.advance(2 * kept);
        let more = full_at(count) - count;
        assert!(more > count / 4, "{full:?}: {more} of {count}");
        for n in [0, 1, count / 2, count - 1] {
            assert!(matches!(store.claim(key(n)).unwrap(), Claim::Expired(_)), "{full:?}: {n}");
        }
    }
}

/// Each refused mark took a sample of the log, some thousand reads.
#[test]
fn a_refusal_reads_nothing_of_the_log() {
    for full in BOTH {
        let (sim, store, count) = filled(full, What::Results);
        drop(store);
        // Reads of maps are no calls.
        let store = sim.open_with(builder(full).map(false)).unwrap();
        let count = fill(&store, What::Marks, count);
        let calls = sim.calls_of(|| {
            for n in 0..100 {
                assert!(put(&store, What::Marks, count + n).is_err());
            }
        });
        let reads =
            calls.iter().filter(|(call, path)| call == "Read" && path.starts_with("/store/log"));
        let reads: Vec<_> = reads.collect();
        assert!(reads.is_empty(), "{full:?}: {} reads", reads.len());
    }
}

/// On a full disk `health` said `Writable`, and the background reported no trouble.
#[test]
fn the_status_shows_that_space_is_missing_and_that_it_is_back() {
    for full in BOTH {
        let sim = Sim::new(1);
        let most = if full == Full::Disk { MOST } else { u64::MAX };
        sim.set_disk_bytes_max(most);
        let store = sim.open_with(builder(full)).unwrap();
        assert!(store.health().is_writable());
        let work = || while store.step().unwrap() == Duration::ZERO {};
        let (mut warned, mut told_early) = (false, 0);
        let mut count = 0;
        while let Ok(()) = put(&store, What::Results, count) {
            work();
            // Before any call is refused, and before the last few that need less than others.
            warned |= store.stats().background_error.is_some();
            told_early += u64::from(!store.health().is_writable());
            count += 1;
        }
        assert!(warned && told_early < 20, "{full:?}: {told_early}");
        let told = store.stats().background_error.unwrap();
        let since = match store.health() {
            Health::Full { since, cause } => {
                assert!(told.contains("forget keys and compact"), "{full:?}: {told}");
                assert!(cause.contains("forget keys and compact"), "{full:?}: {cause}");
                since
            }
            other => panic!("{full:?}: {other:?}"),
        };
        sim.advance(Duration::from_secs(5));
        work();
        assert!(matches!(store.health(), Health::Full { since: still, .. } if still == since));
        assert!(!store.health().is_writable());
        // A call that needs less space gets it.
        for n in 0..count / 2 {
            assert!(store.forget(key(What::Results, n)).unwrap());
        }
        assert!(store.compact(u64::MAX).unwrap().is_complete());
        sim.advance(Duration::from_secs(1));
        work();
        assert_eq!(store.health(), Health::Writable, "{full:?}");
        assert_eq!(store.stats().background_error, None);
        fill(&store, What::Results, count);
        sim.advance(Duration::from_secs(1));
        work();
        assert!(!store.health().is_writable());
        if full == Full::Disk {
            sim.set_disk_bytes_max(u64::MAX);
            sim.advance(Duration::from_secs(1));
            work();
            assert!(store.health().is_writable() && store.stats().background_error.is_none());
        }
    }
}

/// The note that says how far the log is durable is the first record that may be missing: no call is answered from it
/// before it is durable.
#[test]
fn an_unsynced_tail_gives_no_answer_without_space_for_its_copy() {
    let sim = Sim::new(1);
    let store = sim.open_with(builder(Full::Disk)).unwrap();
    assert!(store.mark("synced").unwrap().is_first());
    for key in ["unsynced", "the last"] {
        let op = Operation::new(key).durability(Durability::Flush);
        assert!(store.mark(op).unwrap().is_first());
    }
    sim.kill();
    drop(store);
    for (path, _) in sim.files() {
        if path.to_string_lossy().contains("spare-") {
            sim.remove(path).unwrap();
        }
    }
    sim.set_disk_bytes_max(sim.disk_bytes());
    let store = sim.open_with(builder(Full::Disk)).unwrap();
    assert!(store.get("synced").unwrap().is_some());
    for key in ["unsynced", "the last"] {
        assert_eq!(store.get(key).unwrap_err().kind(), ErrorKind::StorageFull, "{key}");
    }
    sim.set_disk_bytes_max(u64::MAX);
    for key in ["synced", "unsynced", "the last"] {
        assert!(!store.mark(key).unwrap().is_first());
        assert!(store.get(key).unwrap().is_some());
    }
}
