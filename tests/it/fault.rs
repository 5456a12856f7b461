//! Disk calls that fail, fall short or panic, one after the other; disks that are full; and user code that panics.
//!
//! What must hold: a typed error that names the file, nothing acknowledged lost, nobody waits for ever.

use crate::script::{
    Failed, Flush, Lazy, Ledger, Loss, Op, Sync, World, check_answers, look, tiny,
};
use onlyonce::testing::{DiskFault, Sim, SimCrash};
use onlyonce::{Claim, ClaimGuard, Error, ErrorKind, Operation, Run, State, Store, admin::Health};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

fn is_long() -> bool {
    std::env::var_os("ONLYONCE_LONG").is_some()
}

/// Every kind of record, a roll, a clean close and an opening, in few calls.
fn workload() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    vec![
        Op::Claim(key("a"), Sync, Sync),
        Op::Mark(key("m"), Flush),
        Op::Complete(key("a"), key("done")),
        Op::Claim(key("b"), Flush, Lazy),
        Op::Drop(key("b")),
        Op::TakeOver(key("b"), Sync),
        Op::Mark(key("#1"), Lazy),
        Op::Mark(key("#2"), Sync),
        Op::Step,
        Op::Mark(key("#3"), Flush),
        Op::Fail(key("b"), key("no")),
        Op::Mark(key("#4"), Sync),
        Op::Claim(key("c"), Lazy, Flush),
        Op::Close,
        Op::NotApplied(key("c"), Sync),
        Op::Mark(key("#5"), Lazy),
        Op::Abort(key("c")),
        Op::Step,
        Op::Claim(key("c"), Sync, Sync),
        Op::Reopen,
        Op::Forget(key("m")),
    ]
}

/// Reopened after a kill and after a power cut, the store is what the ledger allows.
fn check_reopened(sim: &Sim, ledger: &Ledger, context: &str) {
    for (machine, loss) in [(sim.copy(), Loss::Kill), (sim.after(SimCrash::NONE), Loss::Power)] {
        let store = machine.open_with(tiny()).unwrap_or_else(|e| panic!("{context}: {e:?}"));
        let keys = look(&store).unwrap_or_else(|e| panic!("{context}: {e:?}"));
        let known = ledger.position(&keys, loss).is_some();
        assert!(known, "{context}, {loss:?}: {keys:?}\nis not {}", ledger.describe(loss));
        assert!(store.mark("new").unwrap().is_first());
    }
}

fn check_typed(failed: &Failed, fault: DiskFault, context: &str) {
    use ErrorKind::{Indeterminate, Io, Poisoned, StorageFull};
    let full = fault == DiskFault::Full && failed.kind == StorageFull;
    let fits = full || matches!(failed.kind, Io | Indeterminate | Poisoned);
    assert!(fits && failed.path.is_some(), "{context}: {failed:?}");
    assert!(failed.message.contains("/store"), "{context}: {failed:?}");
}

/// Runs the workload with the call number `n` failing; `false`: it never came to that.
fn fail_at(n: u64, fault: DiskFault, lasting: bool) -> bool {
    let context = format!("{fault:?} at call {n}, lasting: {lasting}");
    let sim = Sim::new(7);
    if lasting {
        sim.fail_calls_from(n, fault);
    } else {
        sim.fail_call(n, fault);
    }
    let mut world = World::new(&sim);
    let mut failures = 0;
    let mut ops = workload();
    while !ops.is_empty() {
        let next = ops[0].clone();
        let Err(failed) = world.run(std::slice::from_ref(&next)) else {
            ops.remove(0);
            continue;
        };
        failures += 1;
        check_typed(&failed, fault, &format!("{context}, {next:?}"));
        // Nothing was written of it: the very next try goes well, without reopening. But an ending that failed
        // on a call before its write gives its guard back; a store that did not open is opened again.
        let harmless = matches!(failed.kind, ErrorKind::Io | ErrorKind::StorageFull);
        let is_ending = matches!(next, Op::Complete(..) | Op::Fail(..) | Op::Abort(..));
        let health = world.store.as_ref().map(Store::health);
        if harmless && failures == 1 && matches!(health, None | Some(Health::Writable)) {
            assert!(!is_ending || failed.gave_back, "{context}, {next:?}: {failed:?}");
            sim.heal();
            if matches!(next, Op::Close | Op::Reopen) {
                ops.remove(0);
            }
            continue;
        }
        break;
    }
    if failures == 0 {
        assert!(!lasting, "{context}: nobody noticed");
        // Retried, short, or of no consequence.
        if sim.calls() <= n {
            return false;
        }
    }
    if let Some(store) = &world.store {
        if store.health() != Health::Writable {
            sim.heal();
            check_answers(store, &world.ledger, &context);
            let kind = store.claim("another").unwrap_err().kind();
            assert_eq!(kind, ErrorKind::Poisoned, "{context}");
        }
    }
    sim.heal();
    let copy = sim.copy();
    let ledger = world.forget();
    check_reopened(&copy, &ledger, &context);
    true
}

fn sweep(fault: DiskFault, lasting: bool) -> u64 {
    // Calls of one fault differ little from their neighbours'; by default every second is tried.
    let stride = if is_long() { 1 } else { 2 };
    let mut points = 0;
    for n in (0..).step_by(stride) {
        if !fail_at(n, fault, lasting) {
            break;
        }
        points += 1;
        assert!(n < 5000, "{fault:?}: a run without end");
    }
    points
}

#[test]
fn any_call_that_fails_once_is_a_typed_error_and_loses_nothing() {
    let faults = [DiskFault::Io, DiskFault::Full, DiskFault::TooManyOpen];
    let points: u64 = faults.map(|fault| sweep(fault, false)).into_iter().sum();
    println!("calls failing once: {points} fault points, {} reopenings", points * 2);
    assert!(points > 300);
}
