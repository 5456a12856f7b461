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

/// The endings were refused as a whole, and nothing said so to the claims: their guards were gone, and each still read live.
#[test]
fn endings_that_a_poisoned_store_refuses_end_their_claims() {
    for is_mixed in [false, true] {
        let sim = Sim::small(1);
        let store = sim.open().unwrap();
        let guards = granted(store.claim_many(["a", "b"]).unwrap());
        let handles: Vec<_> = guards.iter().map(|guard| guard.handle()).collect();
        sim.fail_sync(0, DiskFault::Io);
        assert_eq!(store.mark("lost").unwrap_err().kind(), ErrorKind::Indeterminate);
        let refused = match is_mixed {
            false => store.complete_many_async(ends(guards)).wait().map(|_| ()),
            true => {
                let mut batch = store.batch();
                for guard in guards {
                    batch.complete(guard, "v");
                }
                batch.commit_async().wait().map(|_| ())
            }
        };
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Poisoned);
        assert!(!handles.iter().any(|handle| handle.is_live()), "{is_mixed}");
        assert_eq!(store.stats().in_flight, 0, "{is_mixed}");
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

/// How a key is shown.
fn shown(store: &Store, key: &str) -> &'static str {
    match store.get(key).unwrap() {
        None => "absent",
        Some(State::InProgress(_)) => "in progress",
        Some(State::Interrupted(_)) => "interrupted",
        Some(State::Aborted(_)) => "aborted",
        Some(State::Completed(_)) => "completed",
        Some(State::Failed(_)) => "failed",
        Some(other) => panic!("{other}"),
    }
}

/// Makes every kind of call, several on one key, and describes the answers.
fn mixed(store: &Store) -> Vec<String> {
    let lost = |key: &str| {
        drop(acquired(store, key));
        let Claim::Interrupted(lost) = store.claim(key).unwrap() else { panic!() };
        lost
    };
    let mut batch = store.batch();
    batch
        .claim("new")
        .mark("new")
        .complete(acquired(store, "done"), "v")
        .claim("done")
        .record(acquired(store, "failed"), Outcome::failure("no"))
        .claim("failed")
        .abort(acquired(store, "aborted"), "nothing was sent")
        .claim("aborted")
        .take_over(lost("taken"))
        .claim("taken")
        .not_applied(lost("not applied"))
        .forget("done")
        .forget("done")
        .claim("done")
        .forget("new")
        .mark("marked")
        .mark("marked")
        .forget("marked")
        .mark("marked")
        .claim("");
    let committed = batch.commit().unwrap();
    let mut seen = Vec::new();
    let said = |e: &Error| format!("{:?}", e.kind());
    for claim in &committed.claims {
        seen.push(claim.as_ref().map_or_else(said, |claim| claim.to_string()));
    }
    for taken in &committed.taken {
        seen.push(taken.as_ref().map_or_else(said, |guard| format!("taken {}", guard.attempt())));
    }
    for ended in &committed.endings {
        seen.push(ended.as_ref().map_or_else(said, |()| "ended".to_owned()));
    }
    for mark in &committed.marks {
        seen.push(mark.as_ref().map_or_else(said, |mark| mark.is_first().to_string()));
    }
    for forgotten in &committed.forgotten {
        seen.push(forgotten.as_ref().map_or_else(said, ToString::to_string));
    }
    seen
}

#[test]
fn the_calls_of_a_batch_are_decided_in_order_each_by_those_before_it() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let expected = [
        "acquired: attempt 1",
        "completed by attempt 1",
        "failed for good in attempt 1",
        "acquired: attempt 2",
        "in progress: attempt 2, since 0 s",
        "acquired: attempt 1",
        "Invalid",
        "taken 2",
        "taken 2",
        "ended",
        "ended",
        "ended",
        "false",
        "true",
        "false",
        "true",
        "true",
        "false",
        "InProgress",
        "true",
    ];
    assert_eq!(mixed(&store), expected);
    // All of its grants were dropped.
    assert_eq!(shown(&store, "taken"), "interrupted");
    // Another backend, which may place calls late, gives the same answers.
    let elsewhere = Sim::small(2).open().unwrap();
    elsewhere.merge_index().unwrap();
    assert_eq!(mixed(&Store::with_backend(elsewhere, Policy::new())), expected);
}

#[test]
fn a_batch_of_a_hundred_is_one_write_and_one_sync() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let guards = granted(store.claim_many(0..25_u64).unwrap());
    assert!(store.mark_many(200..225_u64).unwrap().iter().all(is_first));
    let before = (store.stats().syncs, sim.changes());
    let mut batch = store.batch();
    for (n, guard) in (25_u64..).zip(guards) {
        batch.complete(guard, "v").claim(n).mark(n + 100).forget(n + 175);
    }
    let committed = batch.commit().unwrap();
    assert_eq!((store.stats().syncs, sim.changes()), (before.0 + 1, before.1 + 2));
    assert!(committed.endings.iter().all(Result::is_ok) && committed.marks.iter().all(is_first));
    assert!(committed.forgotten.iter().all(|forgotten| matches!(forgotten, Ok(true))));
    assert_eq!(granted(committed.claims).len(), 25);
}

#[test]
fn a_batch_that_is_not_committed_drops_what_it_holds() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    drop(acquired(&store, "asked"));
    let Claim::Interrupted(lost) = store.claim("asked").unwrap() else { panic!() };
    let op = Operation::new("aborts").on_drop(OnDrop::Abort);
    let Claim::Acquired(aborts) = store.claim(&op).unwrap() else { panic!() };
    let op = Operation::new("past").on_drop(OnDrop::Abort);
    let Claim::Acquired(past) = store.claim(op).unwrap() else { panic!() };
    let ended = acquired(&store, "ended");
    let changes = sim.changes();
    let mut batch = store.batch();
    batch.complete(ended, "v").take_over(lost).claim("new").mark("marked");
    batch.abort(aborts, "nothing was sent").complete(past, "v").forget("asked");
    assert_eq!(sim.changes(), changes, "nothing is done before it is committed");
    drop(batch);
    for key in ["ended", "asked", "past"] {
        assert_eq!(shown(&store, key), "interrupted", "{key}");
    }
    assert_eq!(shown(&store, "aborts"), "aborted");
    for key in ["new", "marked"] {
        assert_eq!(shown(&store, key), "absent", "{key}");
    }
    assert!(matches!(store.claim("asked").unwrap(), Claim::Interrupted(_)));
}

#[test]
fn an_error_in_a_batch_is_in_its_place_and_gives_its_guard_back() {
    let sim = Sim::small(1);
    let store = sim.open_with(Store::builder().result_bytes_max(1000)).unwrap();
    let other = Sim::small(2).open().unwrap();
    drop(acquired(&other, "k"));
    let Claim::Interrupted(of_other) = other.claim("k").unwrap() else { panic!() };
    drop(acquired(&store, "lost"));
    let Claim::Interrupted(lost) = store.claim("lost").unwrap() else { panic!() };
    let Some(State::InProgress(attempt)) = store.get("lost").unwrap() else { panic!() };
    assert!(attempt.is_being_decided());
    assert!(store.resolve(&attempt, onlyonce::Resolution::retry("never sent")).unwrap());
    let mut batch = store.batch();
    batch
        .complete(acquired(&store, "a"), "v")
        .complete(acquired(&store, "b"), &vec![0; 1001])
        .take_over(lost)
        .not_applied(of_other)
        .abort(acquired(&other, "a"), "of another store")
        .mark("k".repeat(5000))
        .complete(acquired(&store, "c"), "v");
    let committed = batch.commit().unwrap();
    let kinds = |e: &Error| e.kind();
    let taken: Vec<_> = committed.taken.iter().map(|t| t.as_ref().err().map(kinds)).collect();
    assert_eq!(taken, [Some(ErrorKind::ClaimLost), Some(ErrorKind::Invalid)]);
    let marks: Vec<_> = committed.marks.iter().map(|m| m.as_ref().err().map(kinds)).collect();
    assert_eq!(marks, [Some(ErrorKind::TooLarge)]);
    let ended: Vec<_> = committed.endings.iter().map(|e| e.as_ref().err().map(kinds)).collect();
    assert_eq!(ended, [None, Some(ErrorKind::TooLarge), Some(ErrorKind::Invalid), None]);
    let mut back: Vec<_> =
        committed.endings.into_iter().filter_map(|ended| ended.err()?.into_claim()).collect();
    back.pop().unwrap().abort("nothing was sent").unwrap();
    back.pop().unwrap().complete("smaller").unwrap();
    assert_eq!((shown(&other, "a"), shown(&other, "k")), ("aborted", "interrupted"));
    assert!(["a", "b", "c"].iter().all(|key| shown(&store, key) == "completed"));
}

#[test]
fn a_batch_on_a_draining_store_still_ends_its_claims() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let guard = acquired(&store, "k");
    store.drain();
    let mut batch = store.batch();
    batch.claim("new").complete(guard, "v").mark("new");
    let committed = batch.commit().unwrap();
    assert_eq!(committed.claims[0].as_ref().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(committed.marks[0].as_ref().unwrap_err().kind(), ErrorKind::Closed);
    committed.endings[0].as_ref().unwrap();
    sim.power_loss();
    drop(store);
    assert_eq!(shown(&sim.open().unwrap(), "k"), "completed");
}

#[test]
fn what_fits_of_a_batch_on_a_full_disk_is_granted_and_can_end() {
    let sim = Sim::small(1);
    let builder = Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let store = sim.open_with(builder).unwrap();
    assert!(store.mark("first").unwrap().is_first());
    sim.set_disk_bytes_max(sim.disk_bytes() + (64 << 10));
    let claims = store.claim_many(0..400_u64).unwrap();
    let (granted_, refused): (Vec<_>, Vec<_>) = claims.into_iter().partition(Result::is_ok);
    assert!(granted_.len() > 3 && !refused.is_empty());
    let is_full =
        |e: &Result<Claim, Error>| matches!(e, Err(e) if e.kind() == ErrorKind::StorageFull);
    assert!(refused.iter().all(is_full));
    let ended = store.complete_many(ends(granted(granted_))).unwrap();
    assert!(ended.iter().all(Result::is_ok));
}

/// What each call of a batch makes of its key: as it was before, and as it is after.
type Effects = Vec<(String, &'static str, &'static str)>;

/// The batches of the life below. Each is longer than what is left of a segment.
fn effects() -> [Effects; 2] {
    let key = |kind: &str, n: usize| format!("{kind}{n:0>400}");
    let first = (0..30).map(|n| (key("claim", n), "absent", "interrupted"));
    let second = (0..30).flat_map(|n| {
        let ended = if n % 2 == 0 { "completed" } else { "aborted" };
        [
            (key("claim", n), "interrupted", ended),
            (key("next", n), "absent", "interrupted"),
            (key("mark", n), "absent", "completed"),
        ]
    });
    [first.collect(), second.collect()]
}

/// Commits both batches, and counts those of which every call was acknowledged.
fn live(sim: &Sim, acknowledged: &mut usize) -> Result<(), Error> {
    let builder = Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let store = sim.open_with(builder)?;
    let [first, second] = effects();
    let mut batch = store.batch();
    for (key, ..) in &first {
        batch.claim(key);
    }
    let claims: Result<Vec<Claim>, Error> = batch.commit()?.claims.into_iter().collect();
    let mut guards = claims?.into_iter();
    *acknowledged += 1;
    let mut batch = store.batch();
    for (key, before, after) in &second {
        match (*before, *after) {
            ("absent", "completed") => batch.mark(key),
            ("absent", _) => batch.claim(key),
            _ => {
                let Claim::Acquired(guard) = guards.next().unwrap() else { panic!() };
                match *after {
                    "completed" => batch.complete(guard, "v"),
                    _ => batch.abort(guard, "nothing was sent"),
                }
            }
        };
    }
    let committed = batch.commit()?;
    committed.claims.into_iter().try_for_each(|claim| claim.map(drop))?;
    committed.endings.into_iter().collect::<Result<(), Error>>()?;
    for mark in committed.marks {
        assert!(mark?.is_first());
    }
    *acknowledged += 1;
    Ok(())
}

/// After a crash at any change a prefix of each batch stands, and all of one that was acknowledged.
#[test]
fn power_lost_inside_a_batch_leaves_a_prefix_of_it() {
    let (mut points, mut reopenings, mut partial) = (0, 0, 0);
    for cut in 0.. {
        let sim = Sim::small(3);
        sim.cut_power_at(cut);
        let mut acknowledged = 0;
        let lived = live(&sim, &mut acknowledged);
        if !sim.power_is_cut() {
            lived.unwrap();
            break;
        }
        points += 1;
        for crash in sim.crashes(3) {
            let machine = sim.after(crash);
            let store = machine.open().unwrap();
            reopenings += 1;
            let mut is_whole = true;
            for (n, effects) in effects().iter().enumerate() {
                let mut stood = Vec::new();
                for (key, before, after) in effects {
                    let now = shown(&store, key);
                    let is_later = n == 0 && now != "absent";
                    let is_not_begun = !is_whole && now == "absent";
                    assert!(
                        now == *before || now == *after || is_later || is_not_begun,
                        "{key}: {now}"
                    );
                    stood.push(now == *after || is_later);
                }
                let prefix = stood.iter().take_while(|stood| **stood).count();
                let context = format!("cut at {cut}, batch {n}: {stood:?}");
                assert!(!stood[prefix..].contains(&true), "not a prefix, {context}");
                assert!(n >= acknowledged || prefix == stood.len(), "acknowledged, {context}");
                assert!(
                    is_whole || prefix == 0,
                    "after an earlier one that is not whole, {context}"
                );
                is_whole = prefix == stood.len();
                partial += u32::from(!is_whole && prefix > 0);
            }
        }
    }
    println!("{points} crash points, {reopenings} reopenings, {partial} with a part of a batch");
    assert!(partial > 0 && points > 10);
}
