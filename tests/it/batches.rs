//! Batches of marks: an answer each, one write and one sync for all.

use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{Claim, Durability, ErrorKind, Mark, Operation, Policy, Store};

fn is_first(mark: &onlyonce::Result<Mark>) -> bool {
    mark.as_ref().unwrap().is_first()
}

#[test]
fn answers_come_in_the_order_of_the_items() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let Claim::Acquired(owner) = store.claim("claimed").unwrap() else { panic!() };
    let Claim::Acquired(dropped) = store.claim("dropped").unwrap() else { panic!() };
    drop(dropped);
    let too_long = "k".repeat(5000);
    let marks =
        store.mark_many(["a", "b", "a", "claimed", "dropped", too_long.as_str(), "c"]).unwrap();
    assert!(matches!(
        marks.as_slice(),
        [
            Ok(Mark::First),
            Ok(Mark::First),
            Ok(Mark::Again),
            Ok(Mark::InProgress(_)),
            Ok(Mark::Interrupted(_)),
            Err(_),
            Ok(Mark::First)
        ]
    ));
    assert_eq!(marks[5].as_ref().unwrap_err().kind(), ErrorKind::TooLarge);
    owner.complete("done").unwrap();
    assert!(store.mark_many(Vec::<&str>::new()).unwrap().is_empty());
}

#[test]
fn a_batch_at_sync_takes_one_sync_and_is_durable() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    assert!(store.mark("first").unwrap().is_first());
    let before = (store.stats().syncs, sim.changes());
    assert!(store.mark_many(0..100_u64).unwrap().iter().all(is_first));
    assert_eq!(store.stats().syncs, before.0 + 1);
    assert_eq!(sim.changes(), before.1 + 2, "one write and one sync");
    assert!(!store.mark_many(0..100_u64).unwrap().iter().any(is_first));
    assert_eq!(sim.changes(), before.1 + 2, "nothing for what was seen");
    sim.power_loss();
    drop(store);
    assert!(!sim.open().unwrap().mark_many(0..100_u64).unwrap().iter().any(is_first));
}

#[test]
fn each_item_is_durable_at_its_own_level() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let levels = [Durability::Flush, Durability::Sync, Durability::Lazy, Durability::Flush];
    let ops = |levels: &[Durability]| -> Vec<_> {
        let op = |(n, level): (usize, &Durability)| Operation::new(n as u64).durability(*level);
        levels.iter().enumerate().map(op).collect()
    };
    assert!(store.mark_many(ops(&levels)).unwrap().iter().all(is_first));
    let syncs = store.stats().syncs;
    assert!(
        store.mark_many(ops(&[Durability::Flush; 8])[4..].to_vec()).unwrap().iter().all(is_first)
    );
    assert_eq!(store.stats().syncs, syncs, "none at Flush");
    sim.kill();
    drop(store);
    let store = sim.open().unwrap();
    for n in [0_u64, 1, 3, 4, 5, 6, 7] {
        assert!(store.get(n).unwrap().is_some(), "{n}");
    }
}

#[test]
fn a_batch_longer_than_a_segment_continues_in_the_next() {
    let sim = Sim::small(1);
    let builder = Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let store = sim.open_with(builder.clone()).unwrap();
    let keys: Vec<String> = (0..200).map(|n| format!("{n:0>500}")).collect();
    assert!(store.mark_many(keys.iter()).unwrap().iter().all(is_first));
    assert!(store.stats().segments > 2);
    sim.power_loss();
    drop(store);
    let store = sim.open_with(builder).unwrap();
    assert!(!store.mark_many(keys.iter()).unwrap().iter().any(is_first));
}

#[test]
fn a_failed_sync_leaves_the_whole_batch_undecided() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    assert!(store.mark("first").unwrap().is_first());
    sim.fail_sync(0, DiskFault::Io);
    assert_eq!(store.mark_many(["a", "b"]).unwrap_err().kind(), ErrorKind::Indeterminate);
    assert_eq!(store.mark_many(["c"]).unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn the_defaults_of_store_and_operation_apply() {
    let sim = Sim::small(1);
    let hour = std::time::Duration::from_secs(3600);
    let store = sim.open().unwrap().with_policy(Policy::new().retention(hour));
    let ops = [Operation::new("short"), Operation::new("long").retention(hour * 24)];
    assert!(store.mark_many(ops).unwrap().iter().all(is_first));
    sim.advance(hour * 2);
    assert!(store.mark("short").unwrap().is_first());
    assert!(!store.mark("long").unwrap().is_first());
}

#[test]
fn a_closed_store_marks_nothing() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    store.drain();
    assert_eq!(store.mark_many(["a"]).unwrap_err().kind(), ErrorKind::Closed);
}
