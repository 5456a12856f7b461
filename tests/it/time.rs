//! Store time over reopens: where it continues after the machine was off, and what expires by it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{Abort, Claim, ClaimGuard, ErrorKind, Operation, Store};

use crate::child::{child, small};
use crate::index::rest;

const HOUR: Duration = Duration::from_secs(3600);
const DAY_MILLIS: i64 = 86_400_000;

fn mark_for(store: &Store, key: &str, kept: Duration) {
    assert!(store.mark(Operation::new(key).retention(kept)).unwrap().is_first());
}

/// By the clocks before the jump the machine would have been off for a month.
#[test]
fn a_wall_clock_set_forward_before_a_power_loss_expires_nothing_early() {
    let sim = Sim::small(7);
    let store = sim.open().unwrap();
    mark_for(&store, "k", 12 * HOUR);
    rest(&sim, &store);
    sim.jump_wall_clock(30 * DAY_MILLIS);
    rest(&sim, &store);
    // Records synced together with it survive the power loss, and so does the note of the clocks.
    assert!(store.mark("other").unwrap().is_first());
    sim.power_loss();
    drop(store);
    let store = sim.open().unwrap();
    assert!(store.get("k").unwrap().is_some());
    sim.advance(12 * HOUR);
    assert!(store.get("k").unwrap().is_none());
}

/// By the clocks of the first write the machine would have been off for longer than a reboot may count.
#[test]
fn the_time_off_counts_from_the_last_hour_of_a_store_open_for_a_day() {
    let sim = Sim::small(7);
    let store = sim.open().unwrap();
    mark_for(&store, "k", 36 * HOUR);
    for _ in 0..24 {
        sim.advance(HOUR);
        rest(&sim, &store);
    }
    assert!(store.mark("other").unwrap().is_first());
    sim.power_loss();
    drop(store);
    sim.advance(20 * HOUR);
    let store = sim.open().unwrap();
    assert!(store.get("k").unwrap().is_none());
}

/// The clocks were noted half an hour before the last record, and after the power loss the wall clock is an hour behind.
#[test]
fn store_time_is_never_before_a_record() {
    let sim = Sim::new(7);
    let store = sim.open().unwrap();
    mark_for(&store, "early", HOUR);
    sim.advance(HOUR / 2);
    mark_for(&store, "late", HOUR / 6);
    sim.power_loss();
    sim.jump_wall_clock(-3_600_000);
    drop(store);
    let store = sim.open().unwrap();
    // Ten minutes from its record on, not from the note.
    assert!(store.get("late").unwrap().is_some());
    sim.advance(HOUR / 6);
    assert!(store.get("late").unwrap().is_none() && store.get("early").unwrap().is_some());
    sim.advance(HOUR / 3);
    assert!(store.get("early").unwrap().is_none());
}

fn acquired(claim: Claim) -> ClaimGuard {
    match claim {
        Claim::Acquired(guard) => guard,
        other => panic!("{other}"),
    }
}

/// The wall clock jumps a month forward and back, in an open store and across a reboot: leases of detached claims, the
/// delays of aborts and the time of a question last as long as they were given, by the clock that nobody sets. Across the
/// reboot a day more may count at most.
#[test]
fn a_wall_clock_that_jumps_ends_no_lease_no_delay_and_no_question() {
    const LASTS: Duration = Duration::from_secs(36 * 3600);
    for jump in [30 * DAY_MILLIS, -30 * DAY_MILLIS] {
        let sim = Sim::small(7);
        let store = sim.open().unwrap();
        let ticket = acquired(store.claim("far").unwrap()).detach(LASTS).unwrap();
        let delay = Abort::new("busy").retry_in(LASTS);
        acquired(store.claim("again").unwrap()).abort(delay).unwrap();
        drop(acquired(store.claim("asked").unwrap()));
        let Claim::Interrupted(question) =
            store.claim(Operation::new("asked").lease(LASTS)).unwrap()
        else {
            panic!()
        };
        // The question lives in memory, and its time is that of the process.
        let is_as_given = |store: &Store, is_asked: bool| {
            assert!(matches!(store.claim("far").unwrap(), Claim::InProgress(a) if a.is_detached()));
            assert!(matches!(store.claim("again").unwrap(), Claim::Delayed(_)));
            match store.claim("asked").unwrap() {
                Claim::InProgress(asked) => assert!(is_asked && asked.is_being_decided()),
                other => assert!(!is_asked && matches!(other, Claim::Interrupted(_)), "{other}"),
            }
        };
        sim.jump_wall_clock(jump);
        is_as_given(&store, true);
        rest(&sim, &store);
        sim.advance(HOUR);
        is_as_given(&store, true);
        drop(question);
        sim.power_loss();
        sim.jump_wall_clock(-jump);
        drop(store);
        let store = sim.open().unwrap();
        is_as_given(&store, false);
        sim.jump_wall_clock(jump);
        is_as_given(&store, false);
        // The ticket is as good as before, and all of it ends when its time has passed.
        drop(store.attach(&ticket).unwrap());
        sim.advance(LASTS);
        assert!(matches!(store.claim("far").unwrap(), Claim::Interrupted(_)));
        acquired(store.claim("again").unwrap()).complete("at last").unwrap();
    }
}

/// A question's time passes by the clock of the process, and a suspended machine counts.
#[test]
fn a_question_ends_after_its_time_though_the_wall_clock_stands_back() {
    let sim = Sim::small(7);
    let store = sim.open().unwrap();
    drop(acquired(store.claim("k").unwrap()));
    let Claim::Interrupted(first) = store.claim(Operation::new("k").lease(HOUR)).unwrap() else {
        panic!()
    };
    sim.jump_wall_clock(-30 * DAY_MILLIS);
    assert!(matches!(store.claim("k").unwrap(), Claim::InProgress(_)));
    first.renew(2 * HOUR).unwrap();
    sim.advance(HOUR);
    assert!(matches!(store.claim("k").unwrap(), Claim::InProgress(_)));
    sim.advance(HOUR);
    let Claim::Interrupted(second) = store.claim("k").unwrap() else { panic!() };
    // Both know the attempt: the first word counts.
    second.take_over().unwrap().complete("done").unwrap();
    assert_eq!(first.take_over().unwrap_err().kind(), ErrorKind::ClaimLost);
}

/// The role of a process in a time namespace whose boot clock is eleven days ahead.
pub(crate) fn later(dir: &Path) {
    let store = small().open(dir).unwrap();
    println!("known {}", store.get("k").unwrap().is_some());
    let _ = store.mark(Operation::new("later").retention(HOUR)).unwrap();
}

/// A container may see its machine's boot clock off by any amount, under the same boot id: keys kept for an hour expired
/// at once.
#[test]
fn another_time_namespace_expires_nothing_early() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    mark_for(&small().open_or_create(&keys).unwrap(), "k", HOUR);
    let role = child("later", &keys);
    let mut other = Command::new("unshare");
    other.args(["--time", "--boottime", "1000000"]).arg(role.get_program()).args(role.get_args());
    other.envs(role.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let Ok(output) = other.output() else {
        println!("there is no `unshare`");
        return;
    };
    let told = String::from_utf8_lossy(&output.stdout);
    if !told.contains("known ") {
        println!("no time namespace may be made here: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert!(told.contains("known true"), "{told}");
    // And back again: its clock is different, too.
    let store = small().open(&keys).unwrap();
    assert!(store.get("k").unwrap().is_some() && store.get("later").unwrap().is_some());
}
