//! Claims handed over by a ticket: what the new owner is told, and for how long it keeps them.

use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{Claim, ClaimGuard, ErrorKind, Operation, Policy, State, Store};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn acquired(claim: Claim) -> ClaimGuard {
    match claim {
        Claim::Acquired(guard) => guard,
        other => panic!("{other}"),
    }
}

fn interrupted(store: &Store, key: &str) -> onlyonce::Interrupted {
    match store.claim(key).unwrap() {
        Claim::Interrupted(question) => question,
        other => panic!("{other}"),
    }
}

/// The lease was renewed to the ceiling at once, so that others waited for an hour if its process died.
#[test]
fn an_attached_claim_is_kept_alive_by_the_recorded_lease() {
    for (policy, passes) in [(None, 30), (Some(10 * SECOND), 10)] {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let op = Operation::new("job").lease(30 * SECOND);
        let ticket = acquired(store.claim(op).unwrap()).detach(30 * SECOND).unwrap();
        let handle = match policy {
            Some(lease) => store.with_policy(Policy::new().lease(lease)),
            None => store.clone(),
        };
        let claim = handle.attach(&ticket).unwrap();
        claim.keep_alive(HOUR).unwrap();
        let Some(State::InProgress(seen)) = store.get("job").unwrap() else { panic!() };
        assert_eq!(seen.lease_left(), Some(passes * SECOND));
        sim.kill();
        drop((claim, handle, store));
        let store = sim.open().unwrap();
        let Some(State::InProgress(_)) = store.get("job").unwrap() else { panic!() };
        sim.advance(passes * SECOND);
        drop(interrupted(&store, "job"));
    }
}

/// `interruption` is `None` after a hand-over, as if nothing could have happened before.
#[test]
fn a_claim_says_whether_an_earlier_fate_is_open_however_it_was_got() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let handed_over = |claim: ClaimGuard| {
        let ticket = claim.detach(HOUR).unwrap();
        let claim = store.attach(&ticket).unwrap();
        assert!(claim.interruption().is_none(), "no record has it");
        claim
    };
    let claim = handed_over(acquired(store.claim("k").unwrap()));
    assert!(!claim.is_earlier_fate_open(), "nothing was before");
    claim.abort("not yet").unwrap();
    let claim = acquired(store.claim("k").unwrap());
    assert!(!claim.is_earlier_fate_open(), "it was aborted");
    drop(claim);
    let claim = interrupted(&store, "k").take_over().unwrap();
    assert!(claim.is_earlier_fate_open());
    let claim = handed_over(claim);
    assert!(claim.is_earlier_fate_open());
    claim.abort("nothing sent").unwrap();
    let claim = interrupted(&store, "k").not_applied().unwrap();
    assert!(!claim.is_earlier_fate_open(), "somebody has found out");
    let claim = handed_over(claim);
    assert!(!claim.is_earlier_fate_open());
    claim.abort("nothing sent").unwrap();
    assert!(matches!(store.get("k").unwrap(), Some(State::Aborted(_))));
}

/// The second of two deliveries at once was told that the claim is lost, although the first may still leave it as it was.
#[test]
fn a_claim_that_is_attached_right_now_is_told_from_one_that_has_ended() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let ticket = acquired(store.claim("job").unwrap()).detach(HOUR).unwrap();
    let refused = || store.attach(&ticket).unwrap_err();
    let claim = store.attach(&ticket).unwrap();
    assert_eq!(refused().kind(), ErrorKind::InProgress);
    assert!(refused().to_string().contains("attached by another guard"), "{}", refused());
    assert_eq!(store.attach_async(&ticket).wait().unwrap_err().kind(), ErrorKind::InProgress);
    drop(claim); // it could not do it
    let claim = store.attach(&ticket).unwrap();
    assert_eq!(refused().kind(), ErrorKind::InProgress);
    claim.complete("done").unwrap();
    assert_eq!(refused().kind(), ErrorKind::ClaimLost);
}
