//! The state shown of a key: why an attempt is over, in `Debug` as in words, and what a walk omits.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{Claim, Error, Operation, Outcome, State, Store};

const DAY: Duration = Duration::from_secs(86_400);
const LEASE: Duration = Duration::from_secs(30);

fn reason(store: &Store, key: &str) -> String {
    match store.get(key).unwrap() {
        Some(State::Interrupted(attempt)) => attempt.reason().unwrap_or("none").to_owned(),
        other => panic!("{other:?}"),
    }
}

/// "Its process is gone, or its lease passed" was reported for both.
#[test]
fn the_reasons_for_the_end_of_an_attempt_are_distinguished() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let claim = |key| store.claim(Operation::new(key).lease(LEASE)).unwrap();
    let held = [claim("seen"), claim("noticed"), claim("lives")];
    sim.advance(LEASE);
    assert_eq!(reason(&store, "seen"), "its lease passed", "no call has noticed it yet");
    let Claim::Interrupted(lost) = store.claim("noticed").unwrap() else { panic!() };
    assert_eq!(lost.attempt().reason(), Some("its lease passed"));
    drop(lost);
    drop(store.claim("dropped").unwrap());
    assert_eq!(reason(&store, "dropped"), "dropped without a word");
    let panics = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let _claim = store.claim("panicked").unwrap();
        panic!("on purpose");
    }));
    assert!(panics.is_err());
    assert_eq!(reason(&store, "panicked"), "its owner panicked");
    let failed = store.run("failed", |_| Err::<Vec<u8>, _>(Error::invalid("on purpose")));
    assert!(failed.is_err());
    assert_eq!(reason(&store, "failed"), "its closure returned an error");
    sim.kill();
    drop(held);
    let store = sim.open().unwrap();
    assert_eq!(reason(&store, "lives"), "its process is gone");
    assert_eq!(reason(&store, "noticed"), "its lease passed");
    let Claim::Interrupted(lost) = store.claim("lives").unwrap() else { panic!() };
    assert_eq!(lost.attempt().reason(), Some("its process is gone"));
    assert!(lost.attempt().to_string().ends_with("its process is gone"));
    // The thread that asked holds it meanwhile, and sees the same.
    assert_eq!(reason(&store, "lives"), "its process is gone");
}

#[test]
fn debug_output_equals_display_output() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let op = Operation::new("mail-1").owner("host-3").lease(LEASE);
    let Claim::Acquired(claim) = store.claim(&op).unwrap() else { panic!() };
    let token = claim.token();
    sim.advance(Duration::from_secs(20));
    let attempt =
        format!("Attempt(mail-1: attempt 1 by host-3, since 20 s, 10 s left; token {token})");
    let claimed = store.claim(&op).unwrap();
    assert_eq!(format!("{claimed:?}"), format!("InProgress({attempt})"));
    let seen = store.get("mail-1").unwrap();
    assert_eq!(format!("{seen:?}"), format!("Some(InProgress({attempt}))"));
    claim.record(Outcome::success("secret").meta("status", "hidden").retention(DAY)).unwrap();
    let done = format!("{:?}", store.claim(&op).unwrap());
    assert_eq!(
        done,
        format!(
            "Completed(Recorded(attempt 1, Payload(6 bytes, Bytes, version 0), with \"status\", \
             at 2026-01-01T00:00:20Z, kept until 2026-01-02T00:00:20Z; token {token}))"
        )
    );
}

/// Only its hash is left, at the latest when its segment is removed, so no walk can name it.
#[test]
fn a_walk_shows_no_expired_key_and_get_does() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let op = |key: &'static str| Operation::new(key).retention(DAY);
    assert!(store.mark(op("remembered").remember_expired(9 * DAY)).unwrap().is_first());
    assert!(store.mark(op("forgotten")).unwrap().is_first());
    assert!(store.mark("kept").unwrap().is_first());
    assert_eq!(store.iter().count(), 3);
    sim.advance(2 * DAY);
    let left: Vec<_> = store.iter().map(|entry| entry.unwrap().0.to_string()).collect();
    assert_eq!(left, ["kept"]);
    let expired = store.get("remembered").unwrap().unwrap();
    assert_eq!(
        format!("{expired:?}"),
        "Expired(Expired(done at 2026-01-01T00:00:00Z, remembered until 2026-01-11T00:00:00Z))"
    );
    assert!(store.get("forgotten").unwrap().is_none());
}
