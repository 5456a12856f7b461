//! The promises of the API, call by call, on a simulated disk.

use onlyonce::testing::Sim;
use onlyonce::{Claim, OnInterrupted, Operation, State, Store};
use std::time::Duration;

fn acquired(claim: Claim) -> onlyonce::ClaimGuard {
    match claim {
        Claim::Acquired(guard) => guard,
        other => panic!("not acquired: {other}"),
    }
}

fn claim(store: &Store, key: &str) -> Claim {
    store.claim(key).unwrap()
}

#[test]
fn a_completed_key_is_replayed_even_after_power_loss() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    acquired(claim(&store, "k")).complete("result").unwrap();
    for _ in 0..3 {
        sim.power_loss();
        let store = sim.open().unwrap();
        let Claim::Completed(done) = claim(&store, "k") else { panic!() };
        assert_eq!(done.decode::<String>().unwrap(), "result");
        acquired(claim(&store, "other")).abort("no").unwrap();
    }
}

#[test]
fn a_dropped_claim_is_interrupted_and_can_be_taken_over() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let first = acquired(claim(&store, "k"));
    let token = first.token();
    assert!(matches!(claim(&store, "k"), Claim::InProgress(_)));
    drop(first);
    let Claim::Interrupted(lost) = claim(&store, "k") else { panic!() };
    assert!(matches!(claim(&store, "k"), Claim::InProgress(_)));
    let second = lost.take_over().unwrap();
    assert!(second.token() > token);
    assert_eq!(second.attempt(), 2);
    second.abort("nothing done by me").unwrap();
    assert!(matches!(store.get("k").unwrap(), Some(State::Interrupted(_))));
    let Claim::Interrupted(lost) = claim(&store, "k") else { panic!() };
    lost.not_applied().unwrap().complete(&()).unwrap();
    assert!(matches!(claim(&store, "k"), Claim::Completed(_)));
}

#[test]
fn leases_lapse_and_late_owners_are_fenced() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let op = Operation::new("k").lease(Duration::from_secs(30));
    let first = acquired(store.claim(&op).unwrap());
    sim.advance(Duration::from_secs(31));
    let Claim::Interrupted(lost) = store.claim(&op).unwrap() else { panic!() };
    let second = lost.take_over().unwrap();
    let error = first.complete("late").unwrap_err();
    assert_eq!(error.kind(), onlyonce::ErrorKind::ClaimLost);
    second.complete("in time").unwrap();
    let held = Operation::new("h").on_interrupted(OnInterrupted::Hold);
    drop(store.claim(&held).unwrap());
    assert!(matches!(store.claim("h").unwrap(), Claim::Held(_)));
}

#[test]
fn many_keys_over_many_segments_are_found_again() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    for n in 0..3000_u64 {
        acquired(store.claim(n).unwrap()).complete(&n.to_le_bytes()[..]).unwrap();
    }
    assert!(store.stats().segments > 3, "{:?}", store.stats());
    let check = |store: &Store| {
        for n in 0..3000_u64 {
            let Claim::Completed(done) = store.claim(n).unwrap() else { panic!() };
            assert_eq!(&done.result()[..], n.to_le_bytes());
        }
        assert_eq!(store.iter().count(), 3000);
    };
    check(&store);
    sim.kill();
    check(&sim.open().unwrap());
    let store = sim.open().unwrap();
    store.close(Duration::ZERO).unwrap();
    let trace = sim.trace();
    check(&sim.open().unwrap());
    assert_eq!(trace, sim.trace(), "a clean opening that only reads writes nothing");
}
