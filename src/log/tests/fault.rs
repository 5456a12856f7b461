//! Calls that fail: each call in turn fails once, or all calls from it on fail; and syncs that lie.

use super::*;
use crate::storage::faulty::{CallFailure, Calls, Class, Effect, Fault};
use crate::storage::memory::Crash;

#[derive(Default, Debug)]
struct Tried {
    faults: u64,
    errors: u64,
    openings: u64,
}

/// An error that a failing disk may cause: typed, and naming the file or the directory.
fn is_fit(error: &Error) -> bool {
    let kind_fits = matches!(
        error.kind(),
        ErrorKind::Io | ErrorKind::StorageFull | ErrorKind::Poisoned | ErrorKind::Indeterminate
    );
    let names = error.path().is_some_and(|path| error.to_string().contains(path.to_str().unwrap()))
        || error.to_string().contains("/store");
    kind_fits && names
}

/// After a failed write or sync the process writes, syncs and switches nothing. The exception is a full disk, where a
/// call prepares something that nothing depends on yet.
fn falls_silent(calls: &[faulty::Op], is_full: bool) -> Result<(), String> {
    use Class::{Create, Exchange, Rename, Sync, SyncDir, Truncate, Write};
    let prepared = ["spare.new", "MANIFEST.next", "MANIFEST.new"];
    let is_prepared = |path: &Path| prepared.iter().any(|name| path.ends_with(name));
    let failed = calls.iter().position(|call| {
        let writes = matches!(call.class, Write | Sync | SyncDir);
        writes && !call.ok && !(is_full && is_prepared(&call.path))
    });
    let Some(failed) = failed else { return Ok(()) };
    let is_loud =
        |class| matches!(class, Create | Exchange | Rename | Sync | SyncDir | Truncate | Write);
    let loud = calls.iter().skip(failed + 1).find(|call| is_loud(call.class));
    match loud {
        None => Ok(()),
        Some(loud) => Err(format!("after {:?} failed came {loud:?}", calls[failed])),
    }
}

/// Runs the workload with `fault`, to its end; then checks what is left, for a kill and a power loss. Returns whether the
/// fault was met.
fn try_fault(world: World, fault: &Fault, ops: &[Op], tried: &mut Tried) -> bool {
    let mut player = Player::new(world);
    player.world.faulty.log_calls(true);
    player.world.faulty.inject(fault.clone());
    player.play_on(ops).unwrap_or_else(|what| panic!("{fault:?}: {what}"));
    if player.world.faulty.hits() == 0 {
        assert!(player.errors.is_empty(), "{fault:?}: {:?}", player.errors);
        return false;
    }
    tried.faults += 1;
    tried.errors += player.errors.len() as u64;
    for error in &player.errors {
        assert!(is_fit(error), "{fault:?}: {error:?}");
    }
    player.end_process(Fate::Killed);
    let is_full = matches!(&fault.effect, Effect::Fail(CallFailure::FULL));
    for calls in &player.calls {
        falls_silent(calls, is_full).unwrap_or_else(|what| panic!("{fault:?}: {what}"));
    }
    let disk = &player.world.disk;
    let mut trials = vec![(disk.kill_clone(), Fate::Killed)];
    for crash in [Crash::NONE, Crash::ALL, Crash::seeded(1), Crash::seeded(2)] {
        trials.push((disk.crash_clone(crash), Fate::PowerLost));
    }
    for (disk, fate) in trials {
        match check(&disk, &player.history, fate) {
            Ok(checked) => tried.openings += checked.openings,
            Err(what) => panic!("{fault:?}, {fate:?}: {what}\n{:?}", player.errors),
        }
    }
    true
}

fn try_every_call(name: &str, fault: impl Fn(u64) -> Fault) -> Tried {
    try_every_call_in(World::new, name, fault)
}

fn try_every_call_in(world: fn() -> World, name: &str, fault: impl Fn(u64) -> Fault) -> Tried {
    let mut tried = Tried::default();
    let ops = workload();
    let met = (0..).take_while(|n| try_fault(world(), &fault(*n), &ops, &mut tried)).count();
    assert_eq!(met as u64, tried.faults);
    println!("{name}: {tried:?}");
    assert!(tried.faults > 300, "{tried:?}");
    tried
}

#[test]
fn any_call_may_fail_once() {
    let fault = |n| Fault::once(Calls::Any, n, Effect::Fail(CallFailure::IO));
    try_every_call("any call fails once", fault);
}

#[test]
fn any_call_may_fail_and_all_after_it() {
    let fault = |n| Fault::from(Calls::Any, n, Effect::Fail(CallFailure::IO));
    try_every_call("any call fails, and all after it", fault);
}

#[test]
fn any_call_may_take_effect_and_still_fail() {
    let fault = |n| Fault::once(Calls::Any, n, Effect::FailAfter(CallFailure::IO));
    try_every_call("any call is done and fails", fault);
}

#[test]
fn any_call_may_find_too_many_files_open() {
    let fault = |n| Fault::once(Calls::Any, n, Effect::Fail(CallFailure::TOO_MANY_OPEN));
    try_every_call("any call fails with EMFILE", fault);
}

#[test]
fn any_call_may_find_the_disk_full() {
    let fault = |n| Fault::once(Calls::Any, n, Effect::Fail(CallFailure::FULL));
    try_every_call("any call fails with ENOSPC", fault);
    let fault = |n| Fault::from(Calls::Any, n, Effect::Fail(CallFailure::FULL));
    try_every_call("any call fails with ENOSPC, and all after it", fault);
}

#[test]
fn any_call_may_fail_without_an_exchange_of_names() {
    for effect in [Effect::Fail(CallFailure::IO), Effect::Fail(CallFailure::FULL)] {
        for fault in [Fault::once, Fault::from] {
            let fault = |n| fault(Calls::Any, n, effect.clone());
            try_every_call_in(World::without_exchange, "without an exchange", fault);
        }
    }
}

#[test]
fn short_and_interrupted_calls_are_completed() {
    for effect in [Effect::Short(1), Effect::Short(100), Effect::Fail(CallFailure::INTERRUPTED)] {
        for n in 0.. {
            let mut player = Player::new(World::new());
            for class in [Class::Write, Class::Read] {
                player.world.faulty.inject(Fault::once(Calls::Of(class), n, effect.clone()));
            }
            player.play(&workload()).unwrap();
            check(&player.world.disk.kill_clone(), &player.history, Fate::Killed).unwrap();
            if player.world.faulty.hits() == 0 {
                assert!(n > 50);
                break;
            }
        }
    }
}

/// The page cache lies: a sync fails once, the bytes it should have written stay visible and count as clean, and later
/// syncs succeed without them. Reopened in the same boot, the records are seen, and must be made durable again.
#[test]
fn a_sync_that_fails_once_and_then_succeeds_loses_nothing_acknowledged() {
    let mut tried = Tried::default();
    let ops = workload();
    let mut whole = Player::new(World::new());
    whole.play(&ops).unwrap();
    let syncs = whole.world.faulty.count(Calls::Of(Class::Sync));
    for n in 0..syncs {
        let mut player = Player::new(World::new());
        player.world.disk.lie_at_sync(n);
        player.play_on(&ops).unwrap_or_else(|what| panic!("sync {n}: {what}"));
        // Some are not reported: preparations for a later switch, when the process has no more to write.
        tried.faults += u64::from(!player.errors.is_empty());
        tried.errors += player.errors.len() as u64;
        assert!(player.errors.iter().all(is_fit), "sync {n}: {:?}", player.errors);
        player.end_process(Fate::Killed);
        let disk = &player.world.disk;
        let trials = [
            (disk.kill_clone(), Fate::Killed),
            (disk.crash_clone(Crash::NONE), Fate::PowerLost),
            (disk.crash_clone(Crash::ALL), Fate::PowerLost),
            (disk.crash_clone(Crash::seeded(n)), Fate::PowerLost),
        ];
        for (disk, fate) in trials {
            match check(&disk, &player.history, fate) {
                Ok(checked) => tried.openings += checked.openings,
                Err(what) => panic!("sync {n}, {fate:?}: {what}\n{:?}", player.errors),
            }
        }
    }
    println!("a sync lies: {tried:?}");
    assert!(tried.faults >= syncs - 3 && tried.openings > 500, "{syncs} syncs");
}
