//! Claims handed over by a ticket: what the new owner is told, and for how long it keeps them.

use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{Claim, ClaimGuard, ErrorKind, Operation, Outcome, Policy, State, Store};

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

/// Records until neither a claim nor a mark has space.
fn fill(store: &Store, round: u64) {
    let is_full = |done: onlyonce::Result<()>| match done {
        Ok(()) => false,
        Err(e) if e.kind() == ErrorKind::StorageFull => true,
        Err(e) => panic!("{e}"),
    };
    let claimed = |n: u64| acquired_or(store.claim(("report", round, n)))?.complete(&[7; 2000]);
    (0..).find(|n| is_full(claimed(*n))).unwrap();
    let marked = |n: u64| store.mark(("mark", round, n)).map(|mark| assert!(mark.is_first()));
    (0..).find(|n| is_full(marked(*n))).unwrap();
}

fn acquired_or(claim: onlyonce::Result<Claim>) -> onlyonce::Result<ClaimGuard> {
    claim.map(acquired)
}

/// "Claims in flight can still end": those that were detached were refused as `StorageFull` when they were attached.
#[test]
fn a_detached_claim_ends_on_a_full_disk() {
    for reopens in [false, true] {
        let sim = Sim::new(5);
        let open = || {
            let builder = Store::builder().segment_bytes(64 << 10).result_bytes_max(4096);
            sim.open_with(builder.disk_bytes_max(1 << 20)).unwrap()
        };
        let mut store = open();
        let claim = |key: &str| acquired(store.claim(key).unwrap());
        let mut tickets: Vec<_> = ["result", "aborted", "held", "left"]
            .map(|key| claim(key).detach(HOUR).unwrap())
            .into();
        let late = claim("late");
        fill(&store, 0);
        // It frees what the claim had reserved, as an opening does.
        tickets.push(late.detach(HOUR).unwrap());
        if reopens {
            drop(store);
            store = open();
        }
        fill(&store, 1);
        assert_eq!(store.claim("new").unwrap_err().kind(), ErrorKind::StorageFull);
        for ticket in &tickets {
            let key = ticket.key().to_string();
            let claim = match key.as_str() {
                "left" => store.attach_async(ticket).wait(),
                _ => store.attach(ticket),
            };
            let claim = claim.unwrap_or_else(|e| panic!("{key}: {e}"));
            match key.as_str() {
                "aborted" => claim.abort("not yet").unwrap(),
                "held" => claim.hold("see the other system").unwrap(),
                "left" => drop(claim),
                _ => {
                    let refused = claim.complete(&[1; 2000]).unwrap_err();
                    assert_eq!(refused.kind(), ErrorKind::StorageFull);
                    let claim = refused.into_claim().expect("the guard comes back");
                    claim.record(Outcome::without_result("see the other system")).unwrap();
                }
            }
        }
        let shown = |key| store.get(key).unwrap().unwrap();
        for key in ["result", "late"] {
            assert!(matches!(shown(key), State::Completed(_)), "{}", shown(key));
        }
        assert!(matches!(shown("aborted"), State::Aborted(_)));
        assert!(matches!(shown("held"), State::Held(_)));
        assert!(matches!(shown("left"), State::InProgress(seen) if seen.is_detached()));
        assert!(store.forget("aborted").unwrap(), "space is left for that");
    }
}

/// A renewal that was answered after the hand-over sent the guard away that had attached the claim by then: a second one could
/// attach it, too. And one that was made in between replaced the lease of the ticket by its own.
#[test]
fn a_claim_is_renewed_by_nobody_once_its_detach_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_or_create(dir.path().join("keys")).unwrap();
    let claim = acquired(store.claim(Operation::new("k").lease(30 * SECOND)).unwrap());
    let handle = claim.handle();
    let before = handle.renew_async(30 * SECOND);
    let detached = claim.detach_async(HOUR);
    let after = handle.renew_async(SECOND);
    assert_eq!(handle.renew(SECOND).unwrap_err().kind(), ErrorKind::ClaimLost);
    let ticket = detached.wait().unwrap();
    let attached = store.attach(&ticket).unwrap();
    assert_eq!(before.wait().unwrap_err().kind(), ErrorKind::ClaimLost, "answered too late");
    assert_eq!(after.wait().unwrap_err().kind(), ErrorKind::ClaimLost);
    assert!(attached.is_live());
    assert_eq!(store.attach(&ticket).unwrap_err().kind(), ErrorKind::InProgress);
    let Some(State::InProgress(seen)) = store.get("k").unwrap() else { panic!() };
    assert!(seen.lease_left().unwrap() > HOUR - 60 * SECOND, "{:?}", seen.lease_left());
    attached.complete("done").unwrap();
}

/// A claim was attached, its lease passed, and another call recorded that: the renewal after it was in memory only, and the drop
/// of the guard interrupted a claim whose ticket was still out.
#[test]
fn an_attached_claim_is_renewed_in_the_log_however_late() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let ticket = acquired(store.claim("k").unwrap()).detach(SECOND).unwrap();
    let claim = store.attach(&ticket).unwrap();
    sim.advance(2 * SECOND);
    drop(interrupted(&store, "k"));
    claim.renew(HOUR).unwrap();
    drop(claim);
    let Some(State::InProgress(seen)) = store.get("k").unwrap() else { panic!() };
    assert!(seen.is_detached());
    sim.kill();
    drop(store);
    let store = sim.open().unwrap();
    store.attach(&ticket).unwrap().complete("done").unwrap();
}

/// Each renewal of an attached claim is a record: one that reserved anew each time would soon have no space.
#[test]
fn an_attached_claim_reserves_once() {
    let sim = Sim::small(1);
    let store = sim.open_with(Store::builder().result_bytes_max(64 << 10)).unwrap();
    let op = Operation::new("k").reserve_bytes(16 << 10);
    let ticket = acquired(store.claim(op).unwrap()).detach(HOUR).unwrap();
    let policy = Policy::new().reserve_bytes(16 << 10);
    let claim = store.with_policy(policy).attach(&ticket).unwrap();
    sim.set_disk_bytes_max(sim.disk_bytes() + (256 << 10));
    (0..100).for_each(|_| claim.renew(HOUR).unwrap());
    claim.complete(&vec![7_u8; 16 << 10]).unwrap();
}

/// Its progress goes with the record of its ending, so it has to be reserved for as well.
#[test]
fn an_attached_claim_has_space_for_its_progress() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let claim = acquired(store.claim(Operation::new("k").reserve_bytes(0)).unwrap());
    claim.save_progress(&vec![7_u8; 12 << 10]).unwrap();
    let ticket = claim.detach(HOUR).unwrap();
    let claim = store.attach(&ticket).unwrap();
    sim.set_disk_bytes_max(sim.disk_bytes());
    let full = (0..100_000_u64).find_map(|n| store.mark(n).err()).expect("a full disk");
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    claim.hold("a person has to look").unwrap();
}

/// What is refused leaves the claim to its guard, as live as before.
#[test]
fn a_claim_that_was_not_detached_is_its_guard_s() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let claim = acquired(store.claim(Operation::new("k").reserve_bytes(0)).unwrap());
    sim.set_disk_bytes_max(sim.disk_bytes());
    let full = (0..100_000_u64).find_map(|n| store.mark(n).err()).expect("a full disk");
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    match claim.detach(HOUR) {
        // What is left suffices for a record this short.
        Ok(ticket) => store.attach(&ticket).unwrap().abort("it had space").unwrap(),
        Err(e) => {
            let claim = e.into_claim().expect("the claim is given back");
            assert!(claim.is_live());
            claim.abort("no space").unwrap();
        }
    }
}
