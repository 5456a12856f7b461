//! Batches: an answer each, one write and one sync for all.

use std::time::Duration;

use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{
    Claim, ClaimGuard, Durability, Error, ErrorKind, Mark, OnDrop, Operation, Outcome, Policy,
    State, Store,
};

/// The grants among the answers, which must be all.
fn granted(claims: Vec<Result<Claim, Error>>) -> Vec<ClaimGuard> {
    let guard = |claim: Result<Claim, Error>| match claim.unwrap() {
        Claim::Acquired(guard) => guard,
        other => panic!("{other}"),
    };
    claims.into_iter().map(guard).collect()
}

fn acquired(store: &Store, key: &str) -> ClaimGuard {
    granted(vec![store.claim(key)]).remove(0)
}

/// Each with the same outcome.
fn ends(guards: Vec<ClaimGuard>) -> Vec<(ClaimGuard, Outcome)> {
    guards.into_iter().map(|guard| (guard, Outcome::success("v"))).collect()
}

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

#[test]
fn claims_and_completions_of_a_batch_take_one_write_and_one_sync_each() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    assert!(store.mark("first").unwrap().is_first());
    let before = (store.stats().syncs, sim.changes());
    let guards = granted(store.claim_many(0..100_u64).unwrap());
    assert_eq!((store.stats().syncs, sim.changes()), (before.0 + 1, before.1 + 2));
    assert!(store.complete_many(ends(guards)).unwrap().iter().all(Result::is_ok));
    assert_eq!((store.stats().syncs, sim.changes()), (before.0 + 2, before.1 + 4));
    let replayed = store.claim_many(0..100_u64).unwrap();
    assert!(replayed.iter().all(|claim| matches!(claim, Ok(Claim::Completed(_)))));
    assert_eq!(sim.changes(), before.1 + 4, "nothing for what is recorded");
    sim.power_loss();
    drop((replayed, store));
    let store = sim.open().unwrap();
    for n in 0..100_u64 {
        assert!(
            matches!(store.claim(n).unwrap(), Claim::Completed(done) if done.token().get() > 0)
        );
    }
    assert!(store.mark("second").unwrap().is_first());
    let before = (store.stats().syncs, sim.changes());
    let forgotten = store.forget_many((0..100_u64).chain([7])).unwrap();
    let forgotten: Vec<bool> = forgotten.into_iter().map(Result::unwrap).collect();
    assert_eq!(forgotten, [[true; 100].as_slice(), &[false]].concat());
    assert_eq!((store.stats().syncs, sim.changes()), (before.0 + 1, before.1 + 2));
    sim.power_loss();
    drop(store);
    let store = sim.open().unwrap();
    assert!((0..100_u64).all(|n| store.get(n).unwrap().is_none()));
}

#[test]
fn claims_are_answered_in_order_each_by_its_own_operation() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    acquired(&store, "done").complete("v").unwrap();
    acquired(&store, "failed").fail("no").unwrap();
    drop(acquired(&store, "dropped"));
    let owner = acquired(&store, "claimed");
    let too_long = "k".repeat(5000);
    let hour = Duration::from_secs(3600);
    let ops = [
        Operation::new("a").lease(hour).owner("host-3"),
        Operation::new("done"),
        Operation::new("failed"),
        Operation::new("a"),
        Operation::new("dropped"),
        Operation::new("claimed"),
        Operation::new(too_long.as_str()),
        Operation::new("b").lease(Duration::ZERO),
        Operation::new("c"),
    ];
    let claims = store.claim_many(&ops).unwrap();
    let [
        Ok(Claim::Acquired(first)),
        Ok(Claim::Completed(_)),
        Ok(Claim::Failed(_)),
        Ok(Claim::InProgress(second)),
        Ok(Claim::Interrupted(_)),
        Ok(Claim::InProgress(_)),
        Err(too_large),
        Err(invalid),
        Ok(Claim::Acquired(_)),
    ] = claims.as_slice()
    else {
        panic!("{claims:?}")
    };
    assert_eq!((first.token(), second.owner()), (second.token(), Some("host-3")));
    assert_eq!(too_large.kind(), ErrorKind::TooLarge);
    assert_eq!(invalid.kind(), ErrorKind::Invalid);
    // Not taken: all are as after a drop.
    drop(claims);
    assert!(matches!(store.get("a").unwrap(), Some(State::Interrupted(_))));
    assert!(matches!(store.claim("dropped").unwrap(), Claim::Interrupted(_)));
    owner.complete("v").unwrap();
}

#[test]
fn a_refused_completion_of_a_batch_gives_its_guard_back() {
    let sim = Sim::small(1);
    let store = sim.open_with(Store::builder().result_bytes_max(1000)).unwrap();
    let other = Sim::small(2).open().unwrap();
    let mut guards = granted(store.claim_many(["a", "b", "c", "lost", "e"]).unwrap());
    let Some(State::InProgress(lost)) = store.get("lost").unwrap() else { panic!() };
    assert!(store.interrupt(&lost, "revoked").unwrap());
    let mut ends: Vec<(ClaimGuard, Outcome)> = Vec::new();
    let large = vec![0; 1001];
    for (n, guard) in guards.drain(..).enumerate() {
        let outcome = if n == 1 { Outcome::success(&large) } else { Outcome::success("v") };
        ends.push((guard, outcome));
    }
    ends.push((acquired(&other, "a"), Outcome::success("v")));
    let ended = store.complete_many(ends).unwrap();
    let kinds: Vec<_> = ended.iter().map(|ended| ended.as_ref().err().map(Error::kind)).collect();
    let (too_large, lost) = (Some(ErrorKind::TooLarge), Some(ErrorKind::ClaimLost));
    assert_eq!(kinds, [None, too_large, None, lost, None, Some(ErrorKind::Invalid)]);
    let mut back: Vec<_> =
        ended.into_iter().filter_map(|ended| ended.err()?.into_claim()).collect();
    assert_eq!(back.len(), 2);
    back.pop().unwrap().complete("of the other store").unwrap();
    back.pop().unwrap().complete("smaller").unwrap();
    for key in ["a", "b", "c", "e"] {
        assert!(matches!(store.get(key).unwrap(), Some(State::Completed(_))), "{key}");
    }
    assert!(matches!(other.get("a").unwrap(), Some(State::Completed(_))));
}

#[test]
fn a_failed_sync_grants_nothing_and_leaves_every_ending_undecided() {
    for at in [0, 1] {
        let sim = Sim::small(1);
        let store = sim.open().unwrap();
        let guards = granted(store.claim_many(["a", "b"]).unwrap());
        sim.fail_call(at, DiskFault::Io);
        let ended = store.complete_many(ends(guards));
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Indeterminate);
        assert_eq!(store.claim_many(["c"]).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(store.forget_many(["c"]).unwrap_err().kind(), ErrorKind::Poisoned);
        sim.kill();
        drop(store);
        // A crash may leave any prefix, and never a free key.
        let states = ["a", "b"].map(|key| sim.open().unwrap().get(key).unwrap());
        let is_done = states.map(|state| match state {
            Some(State::Completed(_)) => true,
            Some(State::Interrupted(_)) => false,
            other => panic!("{other:?}"),
        });
        assert!(is_done[0] || !is_done[1], "not a prefix");
    }
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    assert!(store.mark("first").unwrap().is_first());
    sim.fail_sync(0, DiskFault::Io);
    let op = |key: &'static str| Operation::new(key).on_drop(OnDrop::Abort);
    let claimed = store.claim_many([op("a"), op("b")]);
    assert_eq!(claimed.unwrap_err().kind(), ErrorKind::Indeterminate);
    assert!(!matches!(store.get("a"), Ok(Some(State::InProgress(_)))));
    sim.kill();
    drop(store);
    let store = sim.open().unwrap();
    for key in ["a", "b"] {
        // On disk or not: if it is, nobody said that it had no effect.
        assert!(matches!(store.get(key).unwrap(), None | Some(State::Interrupted(_))));
    }
}

#[test]
fn claims_of_a_batch_that_a_close_meets_are_interrupted() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let guards = granted(store.claim_many(["a", "b"]).unwrap());
    store.drain();
    assert_eq!(store.claim_many(["c"]).unwrap_err().kind(), ErrorKind::Closed);
    let left = store.close(Duration::ZERO).unwrap();
    assert_eq!(left.len(), 2);
    assert_eq!(store.complete_many(ends(guards)).unwrap_err().kind(), ErrorKind::Closed);
    drop(store);
    let store = sim.open().unwrap();
    let claims = store.claim_many(["a", "b"]).unwrap();
    assert!(claims.iter().all(|claim| matches!(claim, Ok(Claim::Interrupted(_)))));
}

/// The keys come while the batch is made: a program that computes them may close the store meanwhile.
#[test]
fn a_batch_that_is_closed_halfway_ends_what_it_began() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let keys = (0..100_u64).inspect(|n| {
        if *n == 50 {
            store.drain();
        }
    });
    let claims = store.claim_many(keys).unwrap();
    let closed: Vec<bool> = claims.iter().map(Result::is_err).collect();
    let first = closed.iter().position(|closed| *closed).unwrap();
    // Items are looked ahead for a few at a time.
    assert!((32..=50).contains(&first) && closed[first..].iter().all(|closed| *closed));
    let guards = granted(claims.into_iter().take(first).collect());
    assert!(store.complete_many(ends(guards)).unwrap().iter().all(Result::is_ok));
    sim.power_loss();
    drop(store);
    let store = sim.open().unwrap();
    for n in 0..100 {
        assert_eq!(store.get(n as u64).unwrap().is_some(), n < first, "{n}");
    }
}

#[test]
fn a_batch_of_claims_longer_than_a_segment_continues_in_the_next() {
    let sim = Sim::small(1);
    let builder = Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let store = sim.open_with(builder.clone()).unwrap();
    let keys: Vec<String> = (0..200).map(|n| format!("{n:0>500}")).collect();
    let guards = granted(store.claim_many(keys.iter()).unwrap());
    let segments = store.stats().segments;
    assert!(segments > 2);
    assert!(store.complete_many(ends(guards)).unwrap().iter().all(Result::is_ok));
    sim.power_loss();
    drop(store);
    let store = sim.open_with(builder).unwrap();
    let claims = store.claim_many(keys.iter()).unwrap();
    assert!(claims.iter().all(|claim| matches!(claim, Ok(Claim::Completed(_)))));
}
