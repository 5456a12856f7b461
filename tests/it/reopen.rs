//! A poisoned store that is opened again under its handles: what its guards, callers and iterators meet.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use onlyonce::admin::Health;
use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{
    Claim, ClaimGuard, Durability, Error, ErrorKind, OnDrop, Operation, State, Store, Ticket,
};

const SECOND: Duration = Duration::from_secs(1);

fn acquired(store: &Store, operation: Operation<'_>) -> ClaimGuard {
    match store.claim(operation).unwrap() {
        Claim::Acquired(guard) => guard,
        other => panic!("{other}"),
    }
}

fn poison(sim: &Sim, store: &Store) {
    // The first record after an opening fails before it is placed.
    let poisons = store.stats().keys;
    let _ = store.mark(format!("poisoned with {poisons}")).unwrap();
    sim.fail_sync(0, DiskFault::Io);
    let failed = store.mark(format!("poison with {poisons}")).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Indeterminate, "{failed}");
    assert!(matches!(store.health(), Health::Poisoned { .. }));
}

fn is_completed(store: &Store, key: &str) -> bool {
    matches!(store.claim(key).unwrap(), Claim::Completed(_))
}

/// On all handles, and as often as it happens.
#[test]
fn a_reopened_store_goes_on_under_its_handles_and_guards() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let other = store.clone();
    let space = store.namespace("space");
    store.reopen().unwrap();
    let (one, two) = (acquired(&store, "one".into()), acquired(&space, "two".into()));
    let token = one.token();
    for round in 0..3 {
        assert!(store.mark(format!("done {round}")).unwrap().is_first());
        poison(&sim, &store);
        assert_eq!(other.mark("refused").unwrap_err().kind(), ErrorKind::Poisoned);
        other.reopen().unwrap();
        assert_eq!(store.health(), Health::Writable);
        assert!(one.is_live() && two.is_live());
        assert_eq!(store.stats().in_flight, 2);
        let State::InProgress(attempt) = store.get("one").unwrap().unwrap() else { panic!() };
        assert_eq!(attempt.token(), token);
        assert!(!store.mark(format!("done {round}")).unwrap().is_first());
        one.save_progress(&format!("{round}")).unwrap();
    }
    let step: String = one.step("step", |_| Ok::<_, Error>("done".to_owned())).unwrap();
    assert_eq!(step, "done");
    one.complete("v").unwrap();
    two.complete("w").unwrap();
    assert!(is_completed(&store, "one") && is_completed(&space, "two"));
    assert!(store.close(SECOND).unwrap().is_empty());
    drop((store, other, space));
    let store = sim.open().unwrap();
    assert!(is_completed(&store, "one"));
}

/// No work began: whoever asks next is granted the first attempt.
#[test]
fn a_claim_that_was_answered_indeterminate_is_given_back() {
    for twin in [false, true] {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let _ = store.mark("first").unwrap();
        sim.fail_sync(0, DiskFault::Io);
        let failed = match twin {
            false => store.claim("k").unwrap_err(),
            true => store.claim_async("k").wait().unwrap_err(),
        };
        assert_eq!(failed.kind(), ErrorKind::Indeterminate, "{failed}");
        store.reopen().unwrap();
        assert_eq!(store.stats().in_flight, 0);
        let State::Aborted(_) = store.get("k").unwrap().unwrap() else { panic!("{twin}") };
        let _ = acquired(&store, Operation::new("k").attempts_max(1));
    }
}

/// The same when nobody has asked for the answer before the store is opened again.
#[test]
fn a_claim_whose_answer_is_taken_late_is_given_back() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let _ = store.mark("first").unwrap();
    let (late, dropped) = (store.claim_async("late"), store.claim_async("dropped"));
    poison(&sim, &store);
    store.reopen().unwrap();
    assert_eq!(late.wait().unwrap_err().kind(), ErrorKind::Indeterminate);
    drop(dropped);
    assert_eq!(store.stats().in_flight, 0);
    for key in ["late", "dropped"] {
        let _ = acquired(&store, Operation::new(key).attempts_max(1));
    }
}

#[test]
fn a_claim_that_was_not_recovered_is_lost() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let _ = store.mark("first").unwrap();
    let claim = acquired(&store, Operation::new("k").claim_durability(Durability::Lazy));
    sim.fail_write(0, DiskFault::Io);
    assert_eq!(store.mark("poison").unwrap_err().kind(), ErrorKind::Indeterminate);
    store.reopen().unwrap();
    assert!(!claim.is_live());
    assert_eq!(store.get("k").unwrap(), None);
    assert_eq!(claim.complete("v").unwrap_err().kind(), ErrorKind::ClaimLost);
    assert_eq!(store.stats().in_flight, 0);
}

/// What can't be recorded when they leave is recorded once the store is open again.
#[test]
fn owners_that_left_a_poisoned_store_have_left() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let dropped = acquired(&store, "dropped".into());
    let aborting = acquired(&store, Operation::new("aborting").on_drop(OnDrop::Abort));
    let refused = acquired(&store, "refused".into());
    let kept = acquired(&store, "kept".into());
    poison(&sim, &store);
    drop((dropped, aborting));
    assert_eq!(refused.complete("v").unwrap_err().kind(), ErrorKind::Poisoned);
    store.reopen().unwrap();
    assert_eq!(store.stats().in_flight, 1);
    let state = |key: &str| store.get(key).unwrap().unwrap();
    assert!(matches!(state("dropped"), State::Interrupted(_)));
    assert!(matches!(state("refused"), State::Interrupted(_)));
    assert!(matches!(state("aborting"), State::Aborted(_)), "{:?}", state("aborting"));
    assert!(matches!(state("kept"), State::InProgress(_)));
    kept.complete("v").unwrap();
}

/// It keeps the directory and its claims, and tries again.
#[test]
fn a_reopening_that_fails_can_be_tried_again() {
    for ends_well in [true, false] {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let claim = acquired(&store, "k".into());
        let iter = store.iter();
        poison(&sim, &store);
        sim.fail_calls_from(0, DiskFault::Io);
        for _ in 0..2 {
            assert_eq!(store.reopen().unwrap_err().kind(), ErrorKind::Io);
            for refused in [store.get("k").err(), store.mark("m").err(), store.sync().err()] {
                assert_eq!(refused.unwrap().kind(), ErrorKind::Poisoned);
            }
        }
        sim.heal();
        assert_eq!(sim.open().unwrap_err().kind(), ErrorKind::Locked);
        if ends_well {
            store.reopen().unwrap();
            assert!(claim.is_live());
            claim.complete("v").unwrap();
            assert!(is_completed(&store, "k"));
        } else {
            assert_eq!(store.close(SECOND).unwrap_err().kind(), ErrorKind::Poisoned);
            let again = sim.open().unwrap();
            assert!(matches!(again.claim("k").unwrap(), Claim::Interrupted(_)));
            assert!(!claim.is_live());
        }
        for entry in iter {
            assert_eq!(entry.unwrap_err().kind(), ErrorKind::Poisoned);
        }
    }
}

/// A dropped handle gives up the directory, whatever became of the reopening.
#[test]
fn the_last_handle_closes_a_reopened_store() {
    for fails in [false, true] {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        poison(&sim, &store);
        if fails {
            sim.fail_calls_from(0, DiskFault::Io);
            assert!(store.reopen().is_err());
            sim.heal();
        } else {
            store.reopen().unwrap();
        }
        drop(store);
        let store = sim.open().unwrap();
        assert!(store.stats().opening.cut.is_none(), "{fails}");
    }
}

#[test]
fn a_closed_store_is_not_reopened() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    poison(&sim, &store);
    let _ = store.close(SECOND);
    assert_eq!(store.reopen().unwrap_err().kind(), ErrorKind::Closed);
    sim.open().unwrap();
}

#[test]
fn a_store_that_drained_before_takes_no_claims_afterwards() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = acquired(&store, "k".into());
    let _ = store.mark("first").unwrap();
    sim.fail_sync(0, DiskFault::Io);
    store.drain();
    assert_eq!(claim.save_progress("p").unwrap_err().kind(), ErrorKind::Indeterminate);
    store.reopen().unwrap();
    assert_eq!(store.claim("other").unwrap_err().kind(), ErrorKind::Closed);
    claim.complete("v").unwrap();
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What they waited for happened in the store of before.
#[test]
fn callers_that_wait_for_a_key_are_told() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = acquired(&store, "k".into());
    let mut waiting = pin!(store.claim_wait_async("k", 3600 * SECOND));
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    poison(&sim, &store);
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    woken.0.store(false, Ordering::SeqCst);
    // Even if it is never reopened.
    sim.fail_calls_from(0, DiskFault::Io);
    store.reopen().unwrap_err();
    sim.heal();
    assert!(woken.0.load(Ordering::SeqCst));
    let Poll::Ready(told) = waiting.as_mut().poll(&mut context) else { panic!("it waits on") };
    assert_eq!(told.unwrap_err().kind(), ErrorKind::Poisoned);
    store.reopen().unwrap();
    claim.complete("v").unwrap();
}

/// With threads: whichever comes first, the directory is free afterwards.
#[test]
fn a_close_beside_a_reopening_closes() {
    for round in 0..20 {
        let sim = Sim::new(round);
        let store = sim.open().unwrap();
        let claim = acquired(&store, "k".into());
        poison(&sim, &store);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if let Err(e) = store.reopen() {
                    assert_eq!(e.kind(), ErrorKind::Closed, "{e}");
                }
            });
            match store.close(Duration::ZERO) {
                Ok(left) => assert!(left.len() <= 1),
                Err(e) => assert_eq!(e.kind(), ErrorKind::Poisoned, "{e}"),
            }
        });
        assert!(!claim.is_live());
        let again = sim.open().unwrap();
        assert!(matches!(again.claim("k").unwrap(), Claim::Interrupted(_)));
    }
}

/// Leases, renewals in the background and tickets go on.
#[test]
fn leases_run_on_over_a_reopening() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let leased = |key: &'static str| acquired(&store, Operation::new(key).lease(10 * SECOND));
    let (lapses, kept) = (leased("lapses"), leased("kept"));
    kept.keep_alive(60 * SECOND).unwrap();
    let ticket: Ticket = leased("ticket").detach(60 * SECOND).unwrap();
    let attached = store.attach(&leased("attached").detach(60 * SECOND).unwrap()).unwrap();
    sim.advance(4 * SECOND);
    poison(&sim, &store);
    // A renewal falls due meanwhile.
    sim.advance(3 * SECOND);
    store.step().unwrap();
    store.reopen().unwrap();
    let State::InProgress(attempt) = store.get("lapses").unwrap().unwrap() else { panic!() };
    assert_eq!(attempt.lease_left(), Some(3 * SECOND));
    for _ in 0..4 {
        sim.advance(3 * SECOND);
        store.step().unwrap();
    }
    assert!(!lapses.is_live());
    assert!(kept.is_live());
    kept.complete("v").unwrap();
    store.attach(&ticket).unwrap().complete("v").unwrap();
    attached.complete("v").unwrap();
    for key in ["kept", "ticket", "attached"] {
        assert!(is_completed(&store, key), "{key}");
    }
}

/// With threads: calls made meanwhile are refused or done, and none hangs.
#[test]
fn calls_beside_a_reopening_are_done_or_refused() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claims: Vec<_> =
        (0..64).map(|n| acquired(&store, Operation::new(format!("c{n}")))).collect();
    for round in 0..20 {
        poison(&sim, &store);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for n in 0..50 {
                        let key = format!("{round} {thread} {n}");
                        match store.claim(Operation::new(key.clone())) {
                            Ok(Claim::Acquired(claim)) => claim.complete("v").unwrap(),
                            Ok(other) => panic!("{other}"),
                            Err(e) => assert_eq!(e.kind(), ErrorKind::Poisoned, "{e}"),
                        }
                    }
                });
            }
            store.reopen().unwrap();
        });
    }
    assert_eq!(store.stats().in_flight, 64);
    for claim in claims {
        claim.complete("v").unwrap();
    }
    assert_eq!(store.stats().in_flight, 0);
}

/// Also the claims of a batch, and what one of it took over: nothing is claimed by its caller.
#[test]
fn the_claims_of_a_batch_that_was_answered_indeterminate_are_given_back() {
    for twin in [false, true] {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let _ = store.mark("first").unwrap();
        sim.fail_sync(0, DiskFault::Io);
        let failed = match twin {
            false => store.claim_many(["a", "b"]).unwrap_err(),
            true => store.claim_many_async(["a", "b"]).wait().unwrap_err(),
        };
        assert_eq!(failed.kind(), ErrorKind::Indeterminate, "{failed}");
        store.reopen().unwrap();
        assert_eq!(store.stats().in_flight, 0);
        for key in ["a", "b"] {
            let state = store.get(key).unwrap().unwrap();
            assert!(matches!(state, State::Aborted(_)), "{twin} {state:?}");
            let _ = acquired(&store, Operation::new(key).attempts_max(1));
        }
    }
}

/// The claim stays detached: nobody has it.
#[test]
fn a_ticket_whose_attachment_was_answered_indeterminate_attaches_again() {
    for twin in [false, true] {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let ticket: Ticket = acquired(&store, "k".into()).detach(3600 * SECOND).unwrap();
        let attached = store.attach(&ticket).unwrap();
        // It rests on a record that isn't synced.
        let saved = attached.save_progress_async("p");
        drop(attached);
        sim.fail_sync(0, DiskFault::Io);
        let failed = match twin {
            false => store.attach(&ticket).unwrap_err(),
            true => store.attach_async(&ticket).wait().unwrap_err(),
        };
        assert_eq!(failed.kind(), ErrorKind::Indeterminate, "{failed}");
        drop(saved);
        store.reopen().unwrap();
        assert_eq!(store.stats().in_flight, 0);
        store.attach(&ticket).unwrap().complete("v").unwrap();
    }
}

/// The work goes on as long as its claim does.
#[test]
fn owners_that_wait_for_the_end_of_their_claims_wait_on() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = acquired(&store, "k".into());
    let mut ended = pin!(claim.ended());
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    assert!(ended.as_mut().poll(&mut context).is_pending());
    for _ in 0..2 {
        poison(&sim, &store);
        store.reopen().unwrap();
        assert!(claim.is_live());
        assert!(ended.as_mut().poll(&mut context).is_pending());
    }
    woken.0.store(false, Ordering::SeqCst);
    let State::InProgress(attempt) = store.get("k").unwrap().unwrap() else { panic!() };
    store.interrupt(&attempt, "by an operator").unwrap();
    assert!(woken.0.load(Ordering::SeqCst));
    let Poll::Ready(told) = ended.as_mut().poll(&mut context) else { panic!("it waits on") };
    told.unwrap();
}

/// The same with threads, on which a thread waits.
#[test]
fn threads_that_wait_for_the_end_of_their_claims_wait_on() {
    for fails in [false, true] {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let claim = acquired(&store, "k".into());
        let ended = claim.ended();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| ended.wait().unwrap());
            poison(&sim, &store);
            if fails {
                // Until it is reopened, it may be live no more.
                sim.fail_calls_from(0, DiskFault::Io);
                store.reopen().unwrap_err();
            } else {
                store.reopen().unwrap();
                std::thread::sleep(Duration::from_millis(50));
                assert!(!waits.is_finished() && claim.is_live());
                claim.complete("v").unwrap();
            }
        });
    }
}
