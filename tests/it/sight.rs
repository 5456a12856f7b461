//! A word counts only for the state that its speaker saw, wherever that was shown and whatever became of its record.

use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{
    Attempt, Claim, ClaimGuard, Error, ErrorKind, OnInterrupted, Operation, Outcome, Reconciled,
    Resolution, State, Store,
};

const LEASE: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(1);

fn granted(store: &Store, key: &str) -> ClaimGuard {
    let Claim::Acquired(claim) = store.claim(Operation::new(key).lease(LEASE)).unwrap() else {
        panic!()
    };
    claim
}

fn attempt(store: &Store, key: &str) -> Attempt {
    match store.get(key).unwrap() {
        Some(State::InProgress(a) | State::Interrupted(a) | State::Held(a) | State::Aborted(a)) => {
            a
        }
        other => panic!("{other:?}"),
    }
}

fn retries(store: &Store, seen: &Attempt) -> bool {
    store.resolve(seen, Resolution::retry("nothing happened")).unwrap()
}

/// Moves every record of the store, and merges its tables.
fn move_all(sim: &Sim, store: &Store) {
    for n in 0..2000_u64 {
        assert!(store.mark(("filler", n)).unwrap().is_first());
    }
    for n in 0..2000_u64 {
        assert!(store.forget(("filler", n)).unwrap());
    }
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    for _ in 0..500 {
        if store.step().unwrap() > Duration::ZERO {
            sim.advance(Duration::from_secs(1));
        }
    }
}

/// The last hold of a key, the retry of another and a noticed lapse of a third are compacted, merged, rebuilt, closed over
/// and lost power over. What was seen before is what is there.
#[test]
fn neither_compaction_nor_a_rebuild_nor_a_crash_changes_what_was_seen() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    granted(&store, "held").hold("a person decides").unwrap();
    granted(&store, "aborted").abort("the server is down").unwrap();
    let late = granted(&store, "lapsed");
    sim.advance(LEASE);
    let lapsed = attempt(&store, "lapsed");
    sim.advance(MOMENT);
    assert!(matches!(store.claim("lapsed").unwrap(), Claim::Interrupted(_)));
    let state = store.get("lapsed").unwrap().unwrap();
    let (held, aborted) = (attempt(&store, "held"), attempt(&store, "aborted"));
    move_all(&sim, &store);
    store.rebuild_index().unwrap();
    sim.power_loss();
    drop((store, late));
    let store = sim.open().unwrap();
    move_all(&sim, &store);
    let _ = store.close(Duration::ZERO).unwrap();
    let store = sim.open().unwrap();
    assert!(retries(&store, &held));
    assert!(!retries(&store, &held), "it was resolved");
    assert!(store.resolve(&aborted, Resolution::Record(Outcome::success("done"))).unwrap());
    assert!(retries(&store, &lapsed), "it was seen before the lapse was noticed");
    assert!(!store.forget(&state).unwrap(), "it is no longer interrupted");
}

/// `close` names the claims that it interrupts: what it returns is how the next process finds them, whether the close could
/// record that or not.
#[test]
fn an_attempt_that_a_close_left_can_be_resolved() {
    let sim = Sim::small(2);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    let before = attempt(&store, "k");
    sim.advance(MOMENT);
    let left = store.close(Duration::ZERO).unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].reason(), Some("the store was closed"));
    drop(claim);
    let store = sim.open().unwrap();
    assert!(!retries(&store, &before), "it was seen in progress");
    assert!(retries(&store, &left[0]));
}

/// The record of the close is lost with the power: the claim's own tells the same, and another time.
#[test]
fn an_attempt_whose_record_was_lost_is_another_one() {
    let sim = Sim::small(3);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    sim.advance(MOMENT);
    claim.handle().save_progress("half").unwrap();
    drop(claim);
    let seen = attempt(&store, "k");
    sim.power_loss();
    drop(store);
    let store = sim.open().unwrap();
    let again = attempt(&store, "k");
    assert_eq!(retries(&store, &seen), seen.ended_at() == again.ended_at());
}

/// A claimant that found out what happened records that on what it was shown, and overrules no operator.
#[test]
fn a_claimant_records_what_it_found_only_on_what_it_was_shown() {
    let sim = Sim::small(4);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    sim.advance(LEASE);
    let run = store
        .runner(Operation::new("k").lease(LEASE))
        .reconcile(|_lost| {
            // Meanwhile an operator has another word.
            assert!(retries(&store, &attempt(&store, "k")));
            Ok::<_, Error>(Reconciled::Applied("found".to_owned()))
        })
        .run(|_claim| Ok::<_, Error>("done again".to_owned()));
    assert_eq!(run.unwrap_err().kind(), ErrorKind::ClaimLost);
    assert!(matches!(store.get("k").unwrap(), Some(State::Aborted(_))));
    drop(claim);
}

/// The claim that notices a lapse shows the attempt as its record leaves it, asked about it or not.
#[test]
fn what_a_claim_shows_after_a_lapse_can_be_resolved() {
    let sim = Sim::small(5);
    let store = sim.open().unwrap();
    let owners = ["asked", "held"].map(|key| granted(&store, key));
    sim.advance(LEASE);
    let Claim::Interrupted(lost) = store.claim("asked").unwrap() else { panic!() };
    let asked = lost.attempt().clone();
    drop(lost);
    let op = Operation::new("held").on_interrupted(OnInterrupted::Hold);
    let Claim::Held(held) = store.claim(op).unwrap() else { panic!() };
    sim.advance(MOMENT);
    assert!(retries(&store, &asked));
    assert!(store.resolve_async(&held, Resolution::retry("nothing happened")).wait().unwrap());
    assert!(!store.resolve_async(&held, Resolution::retry("once more")).wait().unwrap());
    drop(owners);
}
