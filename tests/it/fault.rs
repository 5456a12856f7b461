//! Disk calls that fail, fall short or panic, one after the other; disks that are full; and user code that panics.
//!
//! Invariants: a typed error that names the file, nothing acknowledged lost, no thread waits for ever.

use crate::errors::Mounted;
use crate::script::{
    Failed, Flush, Lazy, Ledger, Loss, Op, Sync, World, check_answers, is_of_index, look, stride,
    tiny,
};
use onlyonce::testing::{DiskFault, Sim, SimCrash};
use onlyonce::{
    Claim, ClaimGuard, Decode, Encode, Error, ErrorKind, OnUnkept, Operation, Payload, Run, State,
    Store, admin::Health, value::Format,
};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

fn is_long() -> bool {
    std::env::var_os("ONLYONCE_LONG").is_some()
}

/// Every kind of record, a roll, a clean close and an open, in few calls.
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

/// The same calls, and those of checkpoints, merges, mending, compaction and expired keys. Without crashes: they would end the fault.
fn workloads() -> [(&'static str, Vec<Op>); 4] {
    let without_kills = |ops: Vec<Op>| ops.into_iter().filter(|op| !matches!(op, Op::Kill));
    [
        ("calls", workload()),
        ("tables", without_kills(crate::crash::tables()).collect()),
        ("compactions", without_kills(crate::crash::compactions()).collect()),
        ("memories", without_kills(crate::crash::memories()).collect()),
    ]
}

/// Reopened after a kill and after a power cut, the store is what the ledger allows.
fn check_reopened(sim: &Sim, ledger: &Ledger, context: &str) {
    check_reopened_as(sim, &[ledger], context);
}

/// Like `check_reopened`, where one of several ledgers may be the true one.
fn check_reopened_as(sim: &Sim, ledgers: &[&Ledger], context: &str) {
    for (machine, loss) in [(sim.copy(), Loss::Kill), (sim.after(SimCrash::NONE), Loss::Power)] {
        let store = machine.open_with(tiny()).unwrap_or_else(|e| panic!("{context}: {e:?}"));
        let keys = look(&store).unwrap_or_else(|e| panic!("{context}: {e:?}"));
        let known = ledgers.iter().any(|ledger| ledger.position(&keys, loss).is_some());
        let allowed: Vec<_> = ledgers.iter().map(|ledger| ledger.describe(loss)).collect();
        assert!(known, "{context}, {loss:?}: {keys:?}\nis not {}", allowed.join("\nnor "));
        assert!(store.mark("new").unwrap().is_first());
    }
}

fn check_typed(failed: &Failed, fault: DiskFault, context: &str) {
    use ErrorKind::{Indeterminate, Io, Poisoned, StorageFull};
    let full = fault == DiskFault::Full && failed.kind == StorageFull;
    let rotten = is_of_index(failed.path.as_deref()) && failed.kind == ErrorKind::Corrupt;
    let fits = full || rotten || matches!(failed.kind, Io | Indeterminate | Poisoned);
    assert!(fits && failed.path.is_some(), "{context}: {failed:?}");
    // At creation it may be a directory above the store.
    assert!(failed.message.contains('/'), "{context}: {failed:?}");
}

/// A call that failed for want of a descriptor or memory has changed nothing, and doesn't stop writes.
fn check_harmless(store: Option<&Store>, fault: DiskFault, context: &str) {
    if matches!(fault, DiskFault::TooManyOpen | DiskFault::NoMemory) {
        assert!(store.is_none_or(|store| store.health() == Health::Writable), "{context}");
    }
}

/// Runs a workload with call number `n` failing; `false`: it was never reached.
fn fail_at(name: &str, ops: &[Op], n: u64, fault: DiskFault, lasting: bool) -> bool {
    let context = format!("{name}, {fault:?} at call {n}, lasting: {lasting}");
    let sim = Sim::small(7);
    if lasting {
        sim.fail_calls_from(n, fault);
    } else {
        sim.fail_call(n, fault);
    }
    let mut world = World::new(&sim);
    let mut failures = 0;
    let mut ops = ops.to_vec();
    while !ops.is_empty() {
        let next = ops[0].clone();
        let Err(failed) = world.run(std::slice::from_ref(&next)) else {
            ops.remove(0);
            continue;
        };
        failures += 1;
        check_harmless(world.store.as_ref(), fault, &context);
        check_typed(&failed, fault, &format!("{context}, {next:?}"));
        // Nothing was written: the very next attempt succeeds, without a reopen. But an ending that failed on a call
        // before its write returns its guard; a store that did not open is opened again.
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
        if sim.faults_met() == 0 {
            return false;
        }
        // The call prepared something ahead of need, so its failure has no effect yet. But if it lasts, the next one has.
        check_harmless(world.store.as_ref(), fault, &context);
        if lasting && !matches!(fault, DiskFault::TooManyOpen | DiskFault::NoMemory) {
            assert!(world.run_one(&Op::Mark("last".to_owned(), Sync)).is_err(), "{context}");
        }
    }
    if let Some(store) = &world.store {
        // A full disk is reported until a call has asked for space once more.
        if !matches!(store.health(), Health::Writable | Health::Full { .. }) {
            sim.heal();
            check_answers(store, &world.ledger, &context);
            let refused = store.claim("another").unwrap_err();
            let rotten = is_of_index(refused.path());
            assert!(rotten || refused.kind() == ErrorKind::Poisoned, "{context}: {refused:?}");
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
    let mut points = 0;
    for (name, ops) in workloads() {
        let stride = match (is_long(), name) {
            (true, _) => 1,
            (false, "calls") => 2,
            (false, _) => 7,
        };
        for n in (0..).step_by(stride) {
            if !fail_at(name, &ops, n, fault, lasting) {
                break;
            }
            points += 1;
            assert!(n < 5000, "{name}, {fault:?}: a run without end");
        }
    }
    points
}

#[test]
fn any_call_that_fails_once_is_a_typed_error_and_loses_nothing() {
    let faults = [DiskFault::Io, DiskFault::Full, DiskFault::TooManyOpen, DiskFault::NoMemory];
    let points: u64 = faults.map(|fault| sweep(fault, false)).into_iter().sum();
    println!("calls failing once: {points} fault points, {} reopenings", points * 2);
    assert!(points > 200);
}

#[test]
fn calls_that_keep_failing_are_typed_errors_and_lose_nothing() {
    let faults = [DiskFault::Io, DiskFault::TooManyOpen, DiskFault::NoMemory, DiskFault::ReadOnly];
    let points: u64 = faults.map(|fault| sweep(fault, true)).into_iter().sum();
    println!("calls failing for good: {points} fault points, {} reopenings", points * 2);
    assert!(points > 200);
}

/// Partial reads and writes, and those that a signal interrupts, are invisible.
#[test]
fn short_calls_and_signals_are_invisible() {
    let mut points = 0;
    for (name, ops) in workloads() {
        let undisturbed = |prepare: &dyn Fn(&Sim)| {
            let sim = Sim::small(7);
            prepare(&sim);
            let mut world = World::new(&sim);
            world.run(&ops).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            (look(world.store()).unwrap(), sim.calls())
        };
        let (keys, calls) = undisturbed(&|_| {});
        let stride = stride(2, if name == "calls" { 4 } else { 29 });
        for n in (0..calls).step_by(stride) {
            let short = undisturbed(&|sim| sim.fail_calls_from(n, DiskFault::Short));
            assert_eq!(short.0, keys, "{name}, short from call {n} on");
            let interrupted = undisturbed(&|sim| {
                sim.fail_read(n, DiskFault::Interrupted);
                sim.fail_write(n, DiskFault::Interrupted);
            });
            assert_eq!(interrupted.0, keys, "{name}, a signal at read and write {n}");
            points += 2;
        }
    }
    println!("short and interrupted calls: {points} fault points");
}

fn key_of(op: &Op) -> Option<&String> {
    match op {
        Op::Claim(key, ..) | Op::ClaimHold(key) | Op::Complete(key, _) | Op::Fail(key, _) => {
            Some(key)
        }
        Op::Abort(key) | Op::Drop(key) | Op::DropAsAbort(key) | Op::TakeOver(key, _) => Some(key),
        Op::NotApplied(key, _) | Op::Forget(key) => Some(key),
        Op::Mark(key, _) | Op::Remember(key, _) => Some(key),
        _ => None,
    }
}

/// Continues with `ops` on a disk that may be full: only endings must succeed. The consequences of a refused operation
/// are skipped. Returns how many were refused.
fn go_on(world: &mut World<'_>, ops: &[Op], context: &str) -> u64 {
    let mut refused: Vec<String> = Vec::new();
    for op in ops {
        if key_of(op).is_some_and(|key| refused.contains(key)) {
            continue;
        }
        let Err(failed) = world.run_one(op) else { continue };
        assert_eq!(failed.kind, ErrorKind::StorageFull, "{context}, {op:?}: {failed:?}");
        if matches!(op, Op::Compact(_) | Op::Rebuild | Op::MergeIndex) {
            continue;
        }
        let is_ending = matches!(op, Op::Complete(..) | Op::Fail(..) | Op::Abort(..));
        assert!(!is_ending, "{context}: an ending within its reserve was refused: {failed:?}");
        let key = key_of(op).unwrap_or_else(|| panic!("{context}, {op:?}: {failed:?}"));
        refused.push(key.clone());
    }
    refused.len() as u64
}

/// The disk is full from some operation on: claims are refused before any effect, claims in flight end, replays continue,
/// closing and opening work. When space is back everything works, without a reopen.
#[test]
fn a_disk_full_from_any_operation_on_refuses_only_claims() {
    let key = |name: &str| name.to_owned();
    let mut ops = vec![
        Op::Claim(key("a"), Sync, Sync),
        Op::Claim(key("b"), Flush, Flush),
        Op::Mark(key("m"), Sync),
        Op::Claim(key("c"), Lazy, Lazy),
    ];
    ops.extend((1..14).map(|n| Op::Mark(format!("#{n}"), [Sync, Flush, Lazy][n % 3])));
    ops.extend([
        Op::Complete(key("a"), "x".repeat(256)),
        Op::Claim(key("d"), Sync, Sync),
        Op::Step,
        Op::Abort(key("b")),
        Op::Fail(key("c"), key("no")),
        Op::Close,
        Op::Mark(key("m2"), Sync),
        Op::Claim(key("e"), Flush, Sync),
        Op::Reopen,
        Op::Kill,
        Op::NotApplied(key("e"), Flush),
        Op::Complete(key("e"), key("done")),
        Op::PowerLoss,
        Op::Forget(key("m")),
    ]);
    let (mut refused, mut points) = (0, 0);
    for at in 0..ops.len() {
        refused += full_from(&ops, at, &mut points);
    }
    // A table that rots on a full disk can't be mended; and a refused key is not there to be forgotten.
    let index = |ops: Vec<Op>| ops.into_iter().filter(|op| !matches!(op, Op::Rot)).collect();
    let index: [Vec<Op>; 3] =
        [crate::crash::tables(), crate::crash::compactions(), crate::crash::memories()].map(index);
    for ops in index {
        for at in (0..ops.len()).step_by(if is_long() { 1 } else { 3 }) {
            refused += full_from(&ops, at, &mut points);
        }
    }
    println!("full disks: {points} fault points, {refused} refusals, {} reopenings", points * 2);
    assert!(refused > 100);
}

/// How many operations were refused.
fn full_from(ops: &[Op], at: usize, points: &mut u64) -> u64 {
    let key = |name: &str| name.to_owned();
    let mut refused = 0;
    for inodes in [false, true] {
        let context = format!("full after {at} operations, inodes: {inodes}");
        let sim = Sim::small(7);
        let mut world = World::new(&sim);
        world.run(&ops[..at]).unwrap();
        if inodes {
            sim.set_disk_files_max(sim.disk_files());
        } else {
            sim.set_disk_bytes_max(sim.disk_bytes());
        }
        refused += go_on(&mut world, &ops[at..], &context);
        check_answers(world.store(), &world.ledger, &context);
        sim.set_disk_bytes_max(u64::MAX);
        sim.set_disk_files_max(u64::MAX);
        let room = [Op::Claim(key("z"), Sync, Sync), Op::Complete(key("z"), key("room again"))];
        world.run(&room).unwrap_or_else(|e| panic!("{context}, with space again: {e:?}"));
        let ledger = world.forget();
        check_reopened(&sim.copy(), &ledger, &context);
        *points += 1;
    }
    refused
}

/// From a disk too small for a store to one that holds the whole workload, page by page.
#[test]
fn a_disk_of_any_size_suffices_or_is_reported_full() {
    let mut enough = false;
    let mut points = 0;
    for pages in 0..60 {
        let context = format!("a disk of {pages} pages");
        let sim = Sim::small(7);
        sim.set_disk_bytes_max(pages * 4096);
        let store = match sim.open_with(tiny()) {
            Ok(store) => store,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::StorageFull, "{context}: {e:?}");
                sim.set_disk_bytes_max(u64::MAX);
                sim.open_with(tiny()).unwrap_or_else(|e| panic!("{context}: {e:?}"))
            }
        };
        let mut world = World::new(&sim);
        world.store = Some(store);
        let refused = go_on(&mut world, &workload(), &context);
        enough = refused == 0;
        check_answers(world.store(), &world.ledger, &context);
        let ledger = world.forget();
        check_reopened_on(&sim, &ledger, &context);
        points += 1;
    }
    assert!(enough);
    println!("small disks: {points} fault points");
}

/// Like `check_reopened`, on a disk that may be too full for anything new.
fn check_reopened_on(sim: &Sim, ledger: &Ledger, context: &str) {
    for (machine, loss) in [(sim.copy(), Loss::Kill), (sim.after(SimCrash::NONE), Loss::Power)] {
        let store = machine.open_with(tiny()).unwrap_or_else(|e| panic!("{context}: {e:?}"));
        machine.set_disk_bytes_max(u64::MAX);
        let _ = store.mark("new").unwrap();
        let mut keys = look(&store).unwrap_or_else(|e| panic!("{context}: {e:?}"));
        keys.remove("new");
        let known = ledger.position(&keys, loss).is_some();
        assert!(known, "{context}, {loss:?}: {keys:?}\nis not {}", ledger.describe(loss));
    }
}

fn acquired(claim: Claim) -> ClaimGuard {
    match claim {
        Claim::Acquired(guard) => guard,
        other => panic!("not acquired: {other}"),
    }
}

/// Takes the remaining space.
fn fill(sim: &Sim, store: &Store) {
    sim.set_disk_bytes_max(sim.disk_bytes());
    for n in 1000 * store.stats().keys.. {
        match store.mark(n) {
            Ok(mark) => assert!(mark.is_first()),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::StorageFull);
                return;
            }
        }
    }
}

#[test]
fn a_result_beyond_a_limit_returns_the_guard_and_a_smaller_one_is_recorded() {
    let sim = Sim::small(7);
    let store = sim.open_with(tiny().result_bytes_max(5000)).unwrap();
    let claim = acquired(store.claim("large").unwrap());
    let token = claim.token();
    let error = claim.complete(&[7; 5001]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("5001") && error.to_string().contains("5000"), "{error}");
    let claim = error.into_claim().unwrap();
    assert_eq!(claim.token(), token);
    assert!(matches!(store.claim("large").unwrap(), Claim::InProgress(_)));
    claim.complete(&[7; 5000]).unwrap();

    let claim = acquired(store.claim(Operation::new("reserved").reserve_bytes(100)).unwrap());
    fill(&sim, &store);
    let error = claim.complete(&[7; 5000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let claim = error.into_claim().unwrap();
    claim.complete(&[7; 100]).unwrap();
    let Claim::Completed(done) = store.claim("reserved").unwrap() else { panic!() };
    assert_eq!(done.result()[..], [7; 100]);

    // The error was dropped with the guard in it: interrupted, for the effect may have happened.
    sim.set_disk_bytes_max(u64::MAX);
    let claim = acquired(store.claim(Operation::new("lost").reserve_bytes(100)).unwrap());
    fill(&sim, &store);
    drop(claim.complete(&[7; 5000]).unwrap_err());
    assert!(matches!(store.get("lost").unwrap(), Some(State::Interrupted(_))));
}

/// An ending that needs space beyond its reserve, while the process has too many open files.
#[test]
fn an_ending_that_fails_before_its_write_returns_the_guard() {
    let mut failed = 0;
    for records in 0..24 {
        let sim = Sim::small(7);
        let store = sim.open_with(tiny().result_bytes_max(9000)).unwrap();
        let claim = acquired(store.claim(Operation::new("k").reserve_bytes(0)).unwrap());
        for n in 0..records {
            let _ = store.mark(format!("{n:0>4000}")).unwrap();
        }
        sim.fail_calls_from(0, DiskFault::TooManyOpen);
        if let Err(error) = claim.complete(&[7; 9000]) {
            failed += 1;
            assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
            sim.heal();
            error.into_claim().unwrap().complete(&[7; 9000]).unwrap();
        }
        sim.power_loss();
        assert!(matches!(sim.open().unwrap().claim("k").unwrap(), Claim::Completed(_)));
    }
    assert!(failed > 0);
}

/// Claims of all sizes in flight when the disk fills up: each one can record exactly what it reserved, in any order.
#[test]
fn a_reserved_result_can_be_recorded_on_a_full_disk() {
    let (mut ended, mut refused) = (0, 0);
    for seed in 0..if is_long() { 3000 } else { 100 } {
        let mut lot = Lot(seed);
        let sim = Sim::small(seed);
        let store = sim.open_with(tiny().result_bytes_max(8000)).unwrap();
        sim.set_disk_bytes_max(sim.disk_bytes() + 4096 * lot.below(60));
        let mut claims: Vec<(ClaimGuard, usize)> = Vec::new();
        let end_one = |claims: &mut Vec<(ClaimGuard, usize)>, lot: &mut Lot| {
            let (claim, reserve) = claims.swap_remove(lot.below(claims.len() as u64) as usize);
            claim.complete(&vec![7; reserve]).unwrap_or_else(|e| panic!("seed {seed}: {e:?}"));
        };
        let mut refusals = 0;
        for n in 0..80 {
            let reserve = usize::try_from(lot.below(8001)).unwrap();
            let key = format!("{n:0>width$}", width = 1 + lot.below(4000) as usize);
            let answer = match lot.below(8) {
                0 | 1 => store.mark(&key).map(|mark| assert!(mark.is_first())),
                2 if !claims.is_empty() => {
                    end_one(&mut claims, &mut lot);
                    Ok(())
                }
                3 => store.step().map(drop),
                _ => store
                    .claim(Operation::new(&key).reserve_bytes(reserve as u32))
                    .map(|claim| claims.push((acquired(claim), reserve))),
            };
            if let Err(e) = answer {
                assert_eq!(e.kind(), ErrorKind::StorageFull, "seed {seed}");
                refusals += 1;
            }
            if refusals > 8 {
                break;
            }
        }
        refused += u64::from(refusals > 0);
        ended += claims.len();
        while !claims.is_empty() {
            end_one(&mut claims, &mut lot);
        }
        store.close(Duration::ZERO).unwrap();
    }
    println!("reserves: {ended} claims ended on {refused} full disks");
    assert!(ended > 300 && refused > 50);
}

struct Lot(u64);

impl Lot {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Runs `work` on a thread of its own; a hang is a failure that names itself.
fn within<T: Send + 'static>(
    seconds: u64,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (tell, told) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = tell.send(work());
    });
    match told.recv_timeout(Duration::from_secs(seconds)) {
        Ok(done) => done,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
    }
}

#[test]
fn a_panic_in_the_users_closure_interrupts_only_its_key() {
    let sim = Sim::small(7);
    let store = sim.open().unwrap();
    let panics = |op: Operation<'_>| {
        let run = || store.run(op, |_| -> Result<String, Error> { panic!("the user's") });
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    };
    panics(Operation::new("k"));
    assert!(matches!(store.get("k").unwrap(), Some(State::Interrupted(_))));
    panics(Operation::new("a").on_drop(onlyonce::OnDrop::Abort));
    assert!(matches!(store.get("a").unwrap(), Some(State::Aborted(_))));
    let hook = || {
        store
            .runner("k")
            .reconcile(|_| -> Result<_, Error> { panic!("the hook's") })
            .run(|_| Ok(String::new()))
    };
    assert!(catch_unwind(AssertUnwindSafe(hook)).is_err());
    assert!(matches!(store.claim("k").unwrap(), Claim::Interrupted(_)));
    let run = store.run("other", |_| Ok::<_, Error>("fine".to_owned())).unwrap();
    assert!(matches!(run, Run::Done(_)));
    assert_eq!(store.health(), Health::Writable);
    drop(store);
    let store = sim.open().unwrap();
    assert!(matches!(store.claim("k").unwrap(), Claim::Interrupted(_)));
}

/// A value that panics while it is encoded, and one that panics while it is read back.
struct Panics;

impl Encode for Panics {
    fn encode(&self, _: &mut Vec<u8>) -> onlyonce::Result<Format> {
        panic!("the codec's")
    }
}

impl Decode for Panics {
    fn decode(_: &Payload, _: Format) -> onlyonce::Result<Self> {
        panic!("the codec's")
    }
}

/// Encoding a result, a progress or a batch's item panics, and so does reading one back: only the call's own key is
/// interrupted, the lease of nobody else is held, and the store goes on.
#[test]
fn a_panic_in_a_codec_interrupts_only_its_key() {
    let sim = Sim::small(7);
    let store = sim.open().unwrap();
    let panics = |what: &str, call: &mut dyn FnMut()| {
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err(), "{what}");
    };
    let other = acquired(store.claim("other").unwrap());
    let mut guard = Some(acquired(store.claim("complete").unwrap()));
    panics("complete", &mut || guard.take().unwrap().complete(&Panics).unwrap());
    assert!(matches!(store.claim("complete").unwrap(), Claim::Interrupted(_)));

    let guard = acquired(store.claim("progress").unwrap());
    panics("progress", &mut || guard.save_progress(&Panics).unwrap());
    // The guard is the caller's still.
    guard.save_progress("half").unwrap();
    guard.complete("done").unwrap();

    let mut guard = Some(acquired(store.claim("batch").unwrap()));
    panics("batch", &mut || {
        let mut batch = store.batch();
        batch.mark("before").complete(guard.take().unwrap(), &Panics);
    });
    assert!(matches!(store.claim("batch").unwrap(), Claim::Interrupted(_)));
    assert!(store.get("before").unwrap().is_none(), "nothing was committed");

    panics("run", &mut || drop(store.run("run", |_| Ok::<_, Error>(Panics))));
    assert!(matches!(store.get("run").unwrap(), Some(State::Interrupted(_))));
    panics("replay", &mut || {
        let Claim::Completed(done) = store.claim("progress").unwrap() else { panic!("not done") };
        drop(done.decode::<Panics>());
    });
    other.complete("undisturbed").unwrap();
    assert_eq!(store.health(), Health::Writable);
    assert_eq!(store.stats().in_flight, 0);
    assert!(store.close(Duration::ZERO).unwrap().is_empty());
}

/// The waker of one task panics: the ending that woke it has happened, its caller gets the panic or the answer, the others are
/// woken, and the store goes on.
#[test]
fn a_panic_in_a_waker_loses_no_ending_and_no_other_task() {
    struct PanickingWaker;
    impl std::task::Wake for PanickingWaker {
        fn wake(self: std::sync::Arc<Self>) {
            panic!("the waker's");
        }
    }
    within(60, "after a waker's panic", || {
        let sim = Sim::small(7);
        let store = sim.open().unwrap();
        let guard = acquired(store.claim("k").unwrap());
        let minute = Duration::from_secs(60);
        let mut panics = store.claim_wait_async("k", minute);
        let waker = std::task::Waker::from(std::sync::Arc::new(PanickingWaker));
        let mut context = std::task::Context::from_waker(&waker);
        assert!(
            std::future::Future::poll(std::pin::Pin::new(&mut panics), &mut context).is_pending()
        );
        let other = store.claim_wait_async("k", minute);
        let _ = catch_unwind(AssertUnwindSafe(|| guard.complete("done")));
        assert!(matches!(store.get("k").unwrap(), Some(State::Completed(_))));
        assert!(matches!(other.wait().unwrap(), Claim::Completed(_)));
        assert!(matches!(panics.wait().unwrap(), Claim::Completed(_)));
        assert_eq!(store.health(), Health::Writable);
        acquired(store.claim("next").unwrap()).complete("done").unwrap();
        assert!(store.close(Duration::ZERO).unwrap().is_empty());

        // The same on the threads that work for tasks: the next task is served.
        let store = sim.open_existing(tiny(), true).unwrap();
        let op = Operation::new("later").durability(Flush);
        for mut sent in [store.mark_async("a"), store.mark_async(op)] {
            let pinned = std::pin::Pin::new(&mut sent);
            let _ = std::future::Future::poll(pinned, &mut context);
            assert!(sent.wait().unwrap().is_first());
        }
        let count = (0..100_u64).filter(|n| {
            let told = futures_executor::block_on(store.mark_async(("served", *n)));
            told.unwrap().is_first()
        });
        assert_eq!(count.count(), 100);
        assert!(store.close(Duration::ZERO).unwrap().is_empty());
    });
}

/// A sync stands still for as long as it likes: a wait with a deadline ends in time, whether it waits for a key or for the
/// disk; replays, refusals, looks, progress at `Flush` and questions are answered meanwhile.
#[test]
fn waits_with_a_deadline_end_while_the_disk_stands_still() {
    within(60, "a wait beside a disk that stands still", || {
        let sim = Sim::small(7);
        drop(sim.open().unwrap());
        // With the threads that wait for the disk in place of tasks.
        let store = sim.open_existing(tiny(), true).unwrap();
        acquired(store.claim("done").unwrap()).complete("result").unwrap();
        drop(acquired(store.claim("lost").unwrap()));
        store.sync().unwrap();
        let flushed = Operation::new("flushed").claim_durability(Flush).durability(Flush);
        let worker = acquired(store.claim(flushed).unwrap());
        // The background may sync a segment that it prepares: then the next sync is held instead.
        let held = (0..100_u64).find_map(|n| {
            let gate = sim.hold_sync();
            let mut slow = store.mark_async(("slow", n));
            match slow.wait_timeout(Duration::from_millis(100)) {
                None => Some((gate, slow)),
                Some(_) => {
                    gate.open();
                    None
                }
            }
        });
        let (gate, slow) = held.expect("the disk stands still");
        assert!(gate.wait_arrived(Duration::from_secs(30)));
        let short = Duration::from_millis(5);
        // For the disk.
        let mut sent = store.mark_async("also slow");
        assert!(sent.wait_timeout(short).is_none());
        let mut claim = store.claim_async("new");
        assert!(claim.wait_timeout(short).is_none());
        // For a key.
        assert!(matches!(store.claim_wait("flushed", short).unwrap(), Claim::InProgress(_)));
        // Without the disk.
        assert!(matches!(store.claim("done").unwrap(), Claim::Completed(_)));
        assert!(matches!(store.claim_wait("done", short).unwrap(), Claim::Completed(_)));
        assert!(matches!(store.claim("flushed").unwrap(), Claim::InProgress(_)));
        let Claim::Interrupted(question) = store.claim("lost").unwrap() else { panic!() };
        question.renew(Duration::from_secs(1)).unwrap();
        drop(question);
        worker.save_progress("half").unwrap();
        worker.complete("flushed").unwrap();
        gate.open();
        assert!(slow.wait().unwrap().is_first() && sent.wait().unwrap().is_first());
        assert!(matches!(claim.wait().unwrap(), Claim::Acquired(_)));
    });
}

/// A result finds the disk full, and then each call in turn fails while the key is ended without it. The caller has the
/// value, and the key is ended, or the caller gets Indeterminate; the key is never free.
#[test]
fn a_result_without_space_frees_no_key_whatever_fails() {
    let value = || vec![7_u8; 12 << 10];
    let key = |n: u64| format!("{n:0>4000}");
    let (mut kept, mut unknown, mut refused) = (0, 0, 0);
    for on_unkept in [OnUnkept::Complete, OnUnkept::Hold] {
        for fault in [DiskFault::Io, DiskFault::Full, DiskFault::TooManyOpen, DiskFault::Short] {
            for place in 0.. {
                let sim = Sim::small(7);
                let store = sim.open().unwrap();
                let op = Operation::new("k").reserve_bytes(0).on_unkept(on_unkept);
                let began = std::cell::Cell::new(0);
                let ran = store.run(&op, |_| {
                    sim.set_disk_bytes_max(sim.disk_bytes());
                    while store.mark(key(store.stats().keys)).is_ok() {}
                    began.set(sim.calls());
                    sim.fail_call(place, fault);
                    Ok::<_, Error>(value())
                });
                if sim.calls() - began.get() < place {
                    break;
                }
                sim.heal();
                let context = format!("{on_unkept:?}, {fault:?} at {place}: {ran:?}");
                let is_done = matches!(&ran, Ok(Run::Done(v)) if *v == value());
                match &ran {
                    Ok(Run::Done(_)) => assert!(is_done, "{context}"),
                    Ok(Run::Unrecorded(kept, why)) => {
                        assert_eq!(*kept, value(), "the caller has the value: {context}");
                        match why.kind() {
                            ErrorKind::Indeterminate => unknown += 1,
                            // The device failed on the way, or not even that record could be placed.
                            ErrorKind::Poisoned | ErrorKind::StorageFull | ErrorKind::Io => {
                                refused += 1;
                            }
                            _ => panic!("{context}"),
                        }
                    }
                    _ => panic!("{context}"),
                }
                sim.power_loss();
                sim.set_disk_bytes_max(u64::MAX);
                let state = sim.open().unwrap().get("k").unwrap();
                let is_as_told = match &state {
                    Some(State::Completed(done)) => {
                        on_unkept == OnUnkept::Complete && done.missing().is_some()
                    }
                    Some(State::Held(_)) => on_unkept == OnUnkept::Hold,
                    Some(State::Interrupted(_)) => !is_done,
                    _ => false,
                };
                assert!(is_as_told, "{context}, and then {state:?}");
                kept += u32::from(is_done);
            }
        }
    }
    println!("unkept results: {kept} ended, {unknown} unknown, {refused} refused");
    assert!(kept > 0 && unknown > 0);
}

/// Every disk call in turn panics, as by a bug of ours or of a driver. Later calls succeed or get a typed error, and
/// nothing acknowledged is lost, even if it was acknowledged after the panic.
#[test]
fn a_panic_at_any_call_hangs_no_thread_and_loses_nothing() {
    let points = within(120, "a panic at a call", || {
        let mut points = 0;
        for (name, ops) in workloads() {
            let stride = match (is_long(), name) {
                (true, _) => 1,
                (false, "calls") => 2,
                (false, _) => 13,
            };
            for n in (0..).step_by(stride) {
                if !panic_at(name, &ops, n) {
                    break;
                }
                points += 1;
            }
        }
        points
    });
    println!("panics: {points} fault points, {} reopenings", points * 2);
    assert!(points > 100);
}

/// `false`: that call was never reached.
fn panic_at(name: &str, ops: &[Op], n: u64) -> bool {
    let context = format!("{name}, a panic at call {n}");
    let sim = Sim::small(7);
    sim.fail_call(n, DiskFault::Panic);
    let mut world = World::new(&sim);
    // A call that panicked may have done all of it or nothing.
    let mut undone = None;
    for op in ops {
        let before = world.ledger.clone();
        match catch_unwind(AssertUnwindSafe(|| world.run(std::slice::from_ref(op)))) {
            Ok(done) => done.unwrap_or_else(|e| panic!("{context}: {e:?}")),
            Err(_) => {
                undone = Some(before);
                break;
            }
        }
    }
    if sim.faults_met() == 0 {
        sim.heal();
        return false;
    }
    let mut undone = undone.unwrap_or_else(|| panic!("{context}: not noticed"));
    for (key, level) in [("z1", Flush), ("z2", Lazy), ("z3", Sync)] {
        if world.store.is_none() {
            break;
        }
        let mark = Op::Mark(key.to_owned(), level);
        match world.run_one(&mark) {
            Ok(()) => undone.did(&mark, Some(level)),
            Err(failed) => {
                use ErrorKind::{Closed, Indeterminate, Poisoned};
                let typed = matches!(failed.kind, Poisoned | Indeterminate | Closed);
                let typed = typed || is_of_index(failed.path.as_deref());
                assert!(typed, "{context}: {failed:?}");
                if failed.kind == Indeterminate {
                    undone.did(&mark, None);
                }
            }
        }
    }
    let copy = sim.copy();
    let done = world.forget();
    check_reopened_as(&copy, &[&done, &undone], &context);
    true
}

/// One of many threads leads a write or a sync, and panics in it.
#[test]
fn followers_of_a_leader_that_panics_get_a_typed_error() {
    for (write, at) in [(false, 0), (false, 3), (true, 0), (true, 5)] {
        let what = format!("a panicking leader, write: {write}, number {at}");
        let sim = std::sync::Arc::new(Sim::small(7));
        let store = sim.open().unwrap();
        let _ = store.mark("before").unwrap();
        if write {
            sim.fail_write(at, DiskFault::Panic);
        } else {
            sim.fail_sync(at, DiskFault::Panic);
        }
        let ends = within(60, &what, {
            let store = store.clone();
            move || {
                let threads: Vec<_> = (0..8_u64)
                    .map(|thread| {
                        let store = store.clone();
                        std::thread::spawn(move || {
                            for n in 0..500 {
                                let claim = store.claim((thread, n))?;
                                acquired(claim).complete("done")?;
                            }
                            Ok::<_, Error>(())
                        })
                    })
                    .collect();
                threads.into_iter().map(std::thread::JoinHandle::join).collect::<Vec<_>>()
            }
        });
        assert_eq!(ends.iter().filter(|end| end.is_err()).count(), 1, "{what}: one leader");
        for end in ends.into_iter().flatten() {
            let kind = end.unwrap_err().kind();
            assert!(
                matches!(kind, ErrorKind::Indeterminate | ErrorKind::Poisoned),
                "{what}: {kind:?}"
            );
        }
        assert!(matches!(store.health(), Health::Poisoned { .. }));
        assert!(matches!(store.claim("before").unwrap(), Claim::Completed(_)));
        assert_eq!(store.claim("new").unwrap_err().kind(), ErrorKind::Poisoned);
        within(60, &what, move || store.close(Duration::ZERO).unwrap_err());
        sim.kill();
        let store = sim.open().unwrap();
        assert!(matches!(store.claim("before").unwrap(), Claim::Completed(_)));
    }
}

/// Without its background thread a store would never write what was claimed at Lazy, and never report it.
#[test]
fn a_panic_in_the_background_thread_is_reported() {
    let sim = Sim::small(7);
    drop(sim.open().unwrap());
    let store = sim.open_existing(tiny(), true).unwrap();
    let claim = acquired(store.claim("k").unwrap());
    sim.fail_write(0, DiskFault::Panic);
    assert!(store.mark(Operation::new("lazy").durability(Lazy)).unwrap().is_first());
    let began = std::time::Instant::now();
    while store.health() == Health::Writable {
        sim.advance(Duration::from_millis(200));
        std::thread::yield_now();
        assert!(began.elapsed() < Duration::from_secs(30), "the panic is not reported");
    }
    assert_eq!(claim.complete("late").unwrap_err().kind(), ErrorKind::Poisoned);
    within(30, "closing after it", move || store.close(Duration::from_secs(1)).unwrap_err());
}

/// During a slow sync, replays and Flush continue, and other claims learn at once that the key is taken.
#[test]
fn a_slow_sync_stalls_no_other_call() {
    within(60, "a call beside a slow sync", || {
        let sim = Sim::small(7);
        let store = sim.open().unwrap();
        acquired(store.claim("done").unwrap()).complete("result").unwrap();
        let gate = sim.hold_sync();
        let slow = std::thread::spawn({
            let store = store.clone();
            move || acquired(store.claim("slow").unwrap()).complete("at last").unwrap()
        });
        assert!(gate.wait_arrived(Duration::from_secs(30)));
        assert!(matches!(store.claim("done").unwrap(), Claim::Completed(_)));
        assert!(matches!(store.get("done").unwrap(), Some(State::Completed(_))));
        assert!(matches!(store.claim("slow").unwrap(), Claim::InProgress(_)));
        let quick = Operation::new("quick").claim_durability(Flush).durability(Flush);
        acquired(store.claim(quick).unwrap()).complete("flushed").unwrap();
        assert!(!slow.is_finished());
        gate.open();
        slow.join().unwrap();
        assert!(matches!(store.claim("slow").unwrap(), Claim::Completed(_)));
    });
}

/// Real file systems of a few hundred KiB, where this user may mount one: the simulated disk could be wrong about a full
/// one, and no simulation raises SIGBUS.
#[test]
fn full_real_file_systems_refuse_only_claims() {
    let dir = tempfile::tempdir().unwrap();
    let (at, image) = (dir.path().join("mnt"), dir.path().join("image"));
    std::fs::create_dir(&at).unwrap();
    let tmpfs =
        |options: &str| Mounted::new(&["-t", "tmpfs", "-o", options], "none".as_ref(), &at, None);
    let mut tried = 0;
    for (name, options) in
        [("tmpfs", "size=700k"), ("tmpfs without inodes", "size=8m,nr_inodes=14")]
    {
        let Some(_mounted) = tmpfs(options) else {
            println!("note: no {name} can be mounted here");
            continue;
        };
        fill_a_real_disk(name, &at);
        tried += 1;
    }
    std::fs::File::create(&image).unwrap().set_len(2 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).output();
    let mounted = made
        .is_ok_and(|made| made.status.success())
        .then(|| Mounted::new(&["-o", "loop"], &image, &at, None))
        .flatten();
    match mounted {
        Some(_mounted) => {
            fill_a_real_disk("ext4", &at);
            tried += 1;
        }
        None => println!("note: no ext4 can be mounted here"),
    }
    println!("real full disks: {tried}");
}

fn fill_a_real_disk(name: &str, at: &Path) {
    let keys = at.join("keys");
    let open =
        || Store::builder().segment_bytes(32 << 10).result_bytes_max(4 << 10).open_or_create(&keys);
    let store = open().unwrap();
    acquired(store.claim("done").unwrap()).complete("result").unwrap();
    let claims: Vec<_> = (0..5)
        .map(|n| acquired(store.claim(Operation::new(("open", n)).reserve_bytes(2000)).unwrap()))
        .collect();
    // Others use up the rest: blocks, or names.
    let others = at.join("others");
    std::fs::create_dir(&others).unwrap();
    let full = (0..)
        .map(|n| std::fs::write(others.join(n.to_string()), [7; 50_000]))
        .find_map(Result::err);
    assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull, "{name}");
    let rest = std::fs::File::create(others.join("0"));
    let _ = rest.map(|mut rest| while rest.write_all(&[7; 512]).is_ok() {});
    let mut marked = 0_u64;
    let refused = loop {
        match store.mark(marked) {
            Ok(mark) => assert!(mark.is_first()),
            Err(e) => break e,
        }
        marked += 1;
        assert!(marked < 100_000, "{name}: never full");
    };
    assert_eq!(refused.kind(), ErrorKind::StorageFull, "{name}: {refused:?}");
    assert!(store.get(marked).unwrap().is_none());
    for claim in claims {
        claim.complete(&[7; 2000]).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    }
    let replay = |store: &Store| {
        assert!(matches!(store.claim("done").unwrap(), Claim::Completed(_)), "{name}");
        for n in 0..marked {
            assert!(!store.mark(n).unwrap().is_first(), "{name}");
        }
        for n in 0..5 {
            let Claim::Completed(done) = store.claim(("open", n)).unwrap() else {
                panic!("{name}")
            };
            assert_eq!(done.result()[..], [7; 2000], "{name}");
        }
    };
    replay(&store);
    drop(store);
    let store = open().unwrap_or_else(|e| panic!("{name}: {e:?}"));
    // The writes of a close have their reserve, whatever others have taken.
    assert!(store.stats().opening.was_clean, "{name}");
    replay(&store);
    assert_eq!(refuse(&store, marked), ErrorKind::StorageFull, "{name}");
    std::fs::remove_dir_all(&others).unwrap();
    for n in 0..200 {
        let claim = acquired(store.claim(("new", n)).unwrap_or_else(|e| panic!("{name}: {e:?}")));
        claim.complete("room again").unwrap();
    }
    replay(&store);
}

/// Marks until there is no space.
fn refuse(store: &Store, from: u64) -> ErrorKind {
    (from..from + 100_000).find_map(|n| store.mark(n).err()).expect("never full").kind()
}
