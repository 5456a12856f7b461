//! What is shown while a forget, or a close, is still on its way to the disk.

use std::sync::mpsc;
use std::time::Duration;

use onlyonce::admin::Health;
use onlyonce::testing::{DiskFault, Sim, SimCrash};
use onlyonce::{Claim, Durability, ErrorKind, Operation};

/// A forget removed the key from the index when it was placed. While its sync was still in flight, other calls saw the
/// key as absent, and a claim at `Flush` was granted; a power loss then brought the key back.
#[test]
fn absence_by_a_forget_is_shown_only_once_the_forget_is_durable() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    assert!(store.mark("k").unwrap().is_first());
    let gate = sim.hold_sync();
    std::thread::scope(|scope| {
        let forget = scope.spawn(|| store.forget("k"));
        assert!(gate.wait_arrived(Duration::from_secs(10)));
        let (told, answers) = mpsc::channel();
        for call in 0..5 {
            let (told, store) = (told.clone(), store.clone());
            scope.spawn(move || {
                let quick = Operation::new("k").claim_durability(Durability::Flush);
                match call {
                    0 => assert!(store.get("other").unwrap().is_none()),
                    1 => assert!(!store.forget("other").unwrap()),
                    2 => assert!(!store.forget_many(["other"]).unwrap().remove(0).unwrap()),
                    3 => {
                        let mut batch = store.batch();
                        batch.forget("other");
                        let told = batch.commit_async().wait().unwrap();
                        assert!(matches!(told.forgotten.as_slice(), [Ok(false)]));
                    }
                    _ => assert!(matches!(store.claim(quick).unwrap(), Claim::Acquired(_))),
                }
                told.send(()).unwrap();
            });
        }
        let is_early = answers.recv_timeout(Duration::from_millis(100)).is_ok();
        let after = sim.after(SimCrash::NONE).open().unwrap().get("k").unwrap();
        gate.open();
        assert!(!is_early && after.is_some(), "shown too early");
        assert!(forget.join().unwrap().unwrap());
        (0..5).for_each(|_| answers.recv().unwrap());
    });
}

#[test]
fn absence_by_a_forget_that_failed_is_not_shown() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    assert!(store.mark("k").unwrap().is_first());
    sim.fail_sync(0, DiskFault::Io);
    assert_eq!(store.forget("k").unwrap_err().kind(), ErrorKind::Indeterminate);
    assert_eq!(store.get("k").unwrap_err().kind(), ErrorKind::Indeterminate);
    assert_eq!(store.iter().next().unwrap().unwrap_err().kind(), ErrorKind::Indeterminate);
    assert!(sim.after(SimCrash::NONE).open().unwrap().get("k").unwrap().is_some());
}

/// A close checked whether the log was writing before it waited for calls about to begin that. The claim was then granted
/// by a store that had released its directory.
#[test]
fn a_close_during_the_first_write_grants_nothing_afterwards() {
    let sim = Sim::small(1);
    drop(sim.open().unwrap());
    let store = sim.open().unwrap();
    let gate = sim.hold_sync();
    let (closed, claimed) = std::thread::scope(|scope| {
        let claim = scope.spawn(|| store.claim("k"));
        assert!(gate.wait_arrived(Duration::from_secs(10)));
        let close = scope.spawn(|| store.close(Duration::from_secs(60)));
        while store.health() != Health::Closed {
            std::thread::yield_now();
        }
        gate.open();
        (close.join().unwrap().unwrap(), claim.join().unwrap())
    });
    match claimed {
        Err(e) => assert_eq!((e.kind(), closed.len()), (ErrorKind::Closed, 0)),
        Ok(Claim::Acquired(_)) => assert_eq!(closed.len(), 1, "granted, and not listed"),
        Ok(other) => panic!("{other}"),
    }
    assert!(sim.copy().open().unwrap().stats().opening.was_clean);
}
