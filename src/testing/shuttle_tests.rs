//! Runs the whole engine under shuttle: threads at work, a disk that fails, a close, and the next open while threads of
//! the closed store return late. Schedules are random or chosen by PCT, which delays one thread for long.
//!
//! The answers that each thread got are compared with the answers to all others: see [`Testimony`]. Nothing may ever be
//! corrupt. No time passes, so a lost wake-up is a deadlock, which shuttle reports.
//!
//! `RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR=target/shuttle cargo test --profile explore --lib shuttle_`;
//! `ONLYONCE_SCHEDULES` sets the number of schedules of each test. A failure prints its schedule, which
//! `ONLYONCE_SCHEDULE` runs again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::thread::{self, JoinHandle};

use super::Sim;
use super::told::Testimony;
use crate::log::Room;
use crate::storage::faulty::{CallFailure, Calls, Class, Effect, Fault, Hold};
use crate::storage::fork;
use crate::{Claim, ClaimGuard, Durability, Error, ErrorKind, Operation, Store};

/// Few, so that threads and opens contend for them.
const KEYS: u64 = 3;

/// A close, an open and some claims take about so many steps: a slow call may outlast them.
const SLOW_TURNS: u64 = 2000;

/// Every random choice is drawn from the schedule, so that it repeats with it.
fn roll(sides: u64) -> u64 {
    shuttle::rand::thread_rng().gen_range(0..sides)
}

/// Counts how the schedules of a test ended, to show what they reached.
#[derive(Default)]
struct Seen {
    schedules: AtomicU64,
    clean: AtomicU64,
    poisoned: AtomicU64,
    late: AtomicU64,
    granted: AtomicU64,
    completed: AtomicU64,
    indeterminate: AtomicU64,
    forked: AtomicU64,
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

struct World {
    sim: Sim,
    told: Testimony,
    seen: Arc<Seen>,
    /// Threads that have finished all their acts.
    done: AtomicU64,
}

/// What a thread does with the store.
#[derive(Clone, Copy)]
enum Act {
    Claim(Durability),
    /// On a key that no other act uses.
    New(Durability),
    Background,
    Fork,
}

/// What the disk does to the first open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Perhaps one call is slow.
    Slow,
    /// Perhaps one call is slow, and perhaps one fails.
    Fails,
}

impl World {
    fn open(&self) -> Store {
        let builder = Store::builder().segment_bytes(16 << 10).result_bytes_max(256);
        self.sim.open_with(builder.index_memory_max(64 * 64)).unwrap()
    }

    fn act(&self, store: &Store, act: Act) {
        let done = match act {
            Act::Claim(level) => self.claim(store, roll(KEYS), level),
            Act::New(level) => self.claim(store, KEYS, level),
            Act::Background => self.background(store),
            Act::Fork => return self.fork(store),
        };
        let Err(e) = done else { return };
        let expected =
            [ErrorKind::Closed, ErrorKind::Poisoned, ErrorKind::Indeterminate, ErrorKind::Io];
        assert!(expected.contains(&e.kind()), "{e}: {e:?}");
        if e.kind() == ErrorKind::Indeterminate {
            count(&self.seen.indeterminate, 1);
        }
    }

    fn background(&self, store: &Store) -> Result<(), Error> {
        match roll(7) {
            0 => store.iter().find_map(Result::err).map_or(Ok(()), Err),
            1 => {
                let found = store.verify()?;
                // After a failure, records that were not made durable may be missing.
                assert!(found.is_whole() || !store.health().is_writable(), "{:?}", found.damages);
                Ok(())
            }
            2 => store.compact(4096).map(drop),
            3 => store.rebuild_index(),
            4 => store.merge_index(),
            5 => store.step().map(drop),
            _ => store.sync(),
        }
    }

    /// A child has the store's memory of one moment, and none of its threads: a lock that one of them held stays
    /// locked. So every call answers `Forked`, and none takes a lock, changes the disk or reads it.
    fn fork(&self, store: &Store) {
        let handle = store.clone();
        fork::become_child();
        // Each access to a lock or an atomic is a switch.
        let switches = shuttle::current::context_switches();
        let told = [
            store.claim(0_u64).map(drop),
            store.mark(0_u64).map(drop),
            store.get(0_u64).map(drop),
            store.forget(0_u64).map(drop),
            store.iter().next().map_or(Ok(()), |met| met.map(drop)),
            store.verify().map(drop),
            store.compact(u64::MAX).map(drop),
            store.rebuild_index(),
            store.merge_index(),
            store.step().map(drop),
            store.sync(),
            store.close(Duration::from_secs(3600)).map(drop),
        ];
        drop(handle);
        assert_eq!(shuttle::current::context_switches(), switches, "the child may wait for ever");
        for told in told {
            assert_eq!(told.map_err(|e| e.kind()), Err(ErrorKind::Forked));
        }
        count(&self.seen.forked, 1);
    }

    fn claim(&self, store: &Store, key: u64, level: Durability) -> Result<(), Error> {
        // A close and a kill keep what was acknowledged at `Flush`, and there is no other end here.
        let op = Operation::new(key).durability(level).claim_durability(level);
        self.told.claim(store, key, op, 0, &mut roll)
    }

    fn start(self: &Arc<Self>, store: &Store, acts: &'static [Act]) -> JoinHandle<()> {
        let (world, store) = (Arc::clone(self), store.clone());
        thread::spawn(move || {
            acts.iter().for_each(|act| world.act(&store, *act));
            count(&world.done, 1);
        })
    }

    fn break_disk(&self, trouble: Trouble) {
        let fault = Effect::Fail(CallFailure::IO);
        let slow = [None, Some(Class::Sync), Some(Class::Write), Some(Class::Read)];
        if let Some(class) = slow[roll(4) as usize] {
            let slow = Effect::Slow(roll(SLOW_TURNS));
            self.sim.inject(Fault::once(Calls::Of(class), roll(3), slow));
        }
        let failing = [Calls::Changing, Calls::Of(Class::Sync), Calls::Of(Class::Write)];
        if trouble == Trouble::Fails {
            self.sim.inject(Fault::once(failing[roll(3) as usize], roll(6), fault));
        }
    }

    fn close(&self, store: Store, patience: Duration) {
        match store.close(patience) {
            Ok(_) => count(&self.seen.clean, 1),
            Err(e) => {
                let expected = [ErrorKind::Poisoned, ErrorKind::Indeterminate, ErrorKind::Io];
                assert!(expected.contains(&e.kind()), "{e}: {e:?}");
                count(&self.seen.poisoned, 1);
            }
        }
        drop(store);
        self.sim.heal();
    }

    /// One more open finds everything that was acknowledged.
    fn end_of_it(&self) -> Store {
        let third = self.open();
        self.told.check(&third, usize::MAX);
        assert!(third.verify().unwrap().is_whole());
        let [granted, _, completed] = self.told.counts();
        count(&self.seen.schedules, 1);
        count(&self.seen.granted, granted);
        count(&self.seen.completed, completed);
        third
    }
}

fn world(seen: &Arc<Seen>) -> Arc<World> {
    Arc::new(World {
        sim: Sim::small(7),
        told: Testimony::default(),
        seen: Arc::clone(seen),
        done: AtomicU64::new(0),
    })
}

/// Two opens with the same keys; threads of the first may return while the second is at work. A third one checks.
fn lives(seen: &Arc<Seen>, threads: &[&'static [Act]], trouble: Trouble) {
    let world = world(seen);
    let first = world.open();
    // A record of an earlier round, and something for the background to do.
    world.act(&first, Act::Claim(Durability::Flush));
    world.break_disk(trouble);
    let workers: Vec<_> = threads.iter().map(|acts| world.start(&first, acts)).collect();
    // No time passes, so it never ends.
    world.close(first, Duration::from_secs(3600));
    count(&seen.late, usize::from(world.done.load(Ordering::Relaxed) < workers.len() as u64));

    let second = world.open();
    world.told.check(&second, usize::MAX);
    let beside = world.start(&second, &[Act::Claim(Durability::Flush), Act::Background]);
    for _ in 0..2 {
        world.act(&second, Act::Claim(Durability::Sync));
    }
    for worker in workers.into_iter().chain([beside]) {
        worker.join().unwrap();
    }
    world.told.check(&second, usize::MAX);
    // The last handle closes it.
    drop(second);
    drop(world.end_of_it());
}

/// The records that the failing thread had taken are lost. A thread that checks for the poison just before, and gets
/// the writer just after, finds nothing left to write: that doesn't mean that all is written, and its claim is not
/// granted.
fn a_write_fails(seen: &Arc<Seen>) {
    let world = world(seen);
    let store = world.open();
    world.act(&store, Act::Claim(Durability::Flush));
    let fault = Effect::Fail(CallFailure::IO);
    world.sim.inject(Fault::once(Calls::Of(Class::Write), 0, fault));
    let acts: [&[Act]; 2] = [&[Act::New(Durability::Flush)], &[Act::Claim(Durability::Flush)]];
    let threads = acts.map(|acts| world.start(&store, acts));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    world.close(store, Duration::ZERO);
    let next = world.end_of_it();
    for key in 0..=KEYS {
        // No key that was granted is granted afresh.
        world.claim(&next, key, Durability::Flush).unwrap();
    }
}

/// A device takes for ever over the sync of a segment's end, with more to be written into the next one. Meanwhile
/// another call fails, and the poisoned store is closed, which waits for no sync. The sync returns during the next
/// open, or before it: nothing may be done with it, above all may the rest not be written.
///
/// Three checks are between the leader and that write, and each would suffice: the queue reports that it was overtaken,
/// it checks for the poison before each segment, and the gate refuses the write. Without all three this fails.
fn held_beyond_a_close(seen: &Arc<Seen>) {
    let world = world(seen);
    let first = world.open();
    world.act(&first, Act::Claim(Durability::Flush));
    // Two segments: the end of one and what follows it are written together.
    first.engine().log.roll_over(Room::Free).unwrap();
    while first.step().unwrap().is_zero() {}
    let hold = Arc::new(Hold::new());
    let held = Effect::Held(Arc::clone(&hold));
    world.sim.inject(Fault::once(Calls::Of(Class::Sync), 0, held));
    let leader = world.start(&first, &[Act::New(Durability::Sync)]);
    let beside =
        world.start(&first, &[Act::Claim(Durability::Flush), Act::Claim(Durability::Sync)]);
    hold.wait_arrived();
    // Without any table it is only a switch of manifests.
    let fault = Effect::Fail(CallFailure::IO);
    world.sim.inject(Fault::once(Calls::Of(Class::Exchange), 0, fault));
    first.rebuild_index().unwrap_err();
    assert!(!first.health().is_writable());
    // The leader's claim is in flight, and is not waited for.
    world.close(first, Duration::ZERO);
    count(&seen.late, 1);
    let mut threads = vec![leader, beside];
    if roll(4) == 0 {
        // No other thread changes anything.
        let before = world.sim.changes();
        hold.open();
        threads.drain(..).for_each(|thread| thread.join().unwrap());
        assert_eq!(world.sim.changes(), before, "a closed store writes");
    } else {
        threads.push(thread::spawn(move || hold.open()));
    }
    let second = world.open();
    world.told.check(&second, usize::MAX);
    threads.push(world.start(&second, &[Act::Claim(Durability::Flush), Act::Background]));
    world.act(&second, Act::Claim(Durability::Sync));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    world.told.check(&second, usize::MAX);
    drop(second);
    drop(world.end_of_it());
}

/// Claims that wait for their key sleep without a deadline here. Whatever an owner does with the key, each of them is woken, however
/// late it went to sleep, and gets its turn.
fn claims_wait(seen: &Arc<Seen>) {
    count(&seen.schedules, 1);
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let Claim::Acquired(first) = store.claim("k").unwrap() else { panic!("the key is new") };
    let waiting = [0; 2].map(|_| {
        let (store, seen) = (store.clone(), Arc::clone(seen));
        thread::spawn(move || {
            let granted = match store.claim_wait("k", Duration::from_secs(3600)).unwrap() {
                Claim::Acquired(claim) => claim,
                Claim::Interrupted(question) => question.take_over().unwrap(),
                Claim::Completed(_) => return count(&seen.completed, 1),
                other => panic!("{other}"),
            };
            count(&seen.granted, 1);
            end(granted);
        })
    });
    end(first);
    waiting.into_iter().for_each(|thread| thread.join().unwrap());
}

/// As the schedule has it.
fn end(claim: ClaimGuard) {
    match roll(3) {
        0 => claim.complete("done").unwrap(),
        1 => claim.abort("nothing was done").unwrap(),
        _ => drop(claim),
    }
}

fn run(
    name: &str,
    scheduler: impl Scheduler + 'static,
    threads: &'static [&'static [Act]],
    trouble: Trouble,
) -> Arc<Seen> {
    let seen = explore(name, scheduler, move |seen| lives(seen, threads, trouble));
    let [clean, completed, poisoned] =
        [&seen.clean, &seen.completed, &seen.poisoned].map(|one| one.load(Ordering::Relaxed));
    assert!(clean > 0 && completed > 0);
    assert!(trouble == Trouble::Slow || poisoned > 0);
    seen
}

fn explore(
    name: &str,
    scheduler: impl Scheduler + 'static,
    body: impl Fn(&Arc<Seen>) + Send + Sync + 'static,
) -> Arc<Seen> {
    let mut config = shuttle::Config::new();
    // The engine's frames are deeper than shuttle's 32 KiB.
    config.stack_size = 1 << 20;
    let seen = Arc::new(Seen::default());
    let counts = Arc::clone(&seen);
    let body = move || body(&counts);
    match std::env::var("ONLYONCE_SCHEDULE") {
        Ok(schedule) => {
            shuttle::Runner::new(ReplayScheduler::new_from_encoded(&schedule), config).run(body)
        }
        Err(_) => shuttle::Runner::new(scheduler, config).run(body),
    };
    let [schedules, clean, poisoned, late, granted, completed, indeterminate] = [
        &seen.schedules,
        &seen.clean,
        &seen.poisoned,
        &seen.late,
        &seen.granted,
        &seen.completed,
        &seen.indeterminate,
    ]
    .map(|counter| counter.load(Ordering::Relaxed));
    println!(
        "{name}: {schedules} schedules: {clean} closes were clean, {poisoned} of a poisoned store, {late} with threads \
         left; {granted} grants, {completed} results, {indeterminate} indeterminate"
    );
    seen
}

fn schedules(few: usize) -> usize {
    let asked = std::env::var("ONLYONCE_SCHEDULES").ok();
    asked.map_or(few, |asked| asked.parse().unwrap())
}

const CLAIMS: &[&[Act]] = &[
    &[Act::Claim(Durability::Sync), Act::Claim(Durability::Flush)],
    &[Act::Claim(Durability::Flush), Act::Claim(Durability::Sync)],
];
const MIXED: &[&[Act]] = &[
    &[Act::Claim(Durability::Sync), Act::Claim(Durability::Flush)],
    &[Act::Background, Act::Background],
    &[Act::Claim(Durability::Sync), Act::Background],
];
const FORKS: &[&[Act]] = &[
    &[Act::Claim(Durability::Sync), Act::Background],
    &[Act::Fork],
    &[Act::Claim(Durability::Flush), Act::Fork],
];

/// `SHUTTLE_RANDOM_SEED` sets another one.
const SEED: u64 = 1;
/// Preemptions by PCT.
const DEPTH: usize = 3;

#[test]
fn shuttle_claims_during_a_close() {
    let few = schedules(200);
    run("random", RandomScheduler::new_from_seed(SEED, few), CLAIMS, Trouble::Slow);
    run("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), CLAIMS, Trouble::Slow);
}

#[test]
fn shuttle_claims_on_a_failing_disk_during_a_close() {
    let few = schedules(200);
    run("random", RandomScheduler::new_from_seed(SEED, few), CLAIMS, Trouble::Fails);
    run("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), CLAIMS, Trouble::Fails);
}

#[test]
fn shuttle_everything_during_a_close() {
    let few = schedules(200);
    run("random", RandomScheduler::new_from_seed(SEED, few), MIXED, Trouble::Slow);
    run("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), MIXED, Trouble::Slow);
}

#[test]
fn shuttle_everything_on_a_failing_disk_during_a_close() {
    let few = schedules(200);
    run("random", RandomScheduler::new_from_seed(SEED, few), MIXED, Trouble::Fails);
    run("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), MIXED, Trouble::Fails);
}

#[test]
fn shuttle_flushed_claims_during_a_write_that_fails() {
    let few = schedules(2000);
    for seen in [
        explore("random", RandomScheduler::new_from_seed(SEED, few), a_write_fails),
        explore("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), a_write_fails),
    ] {
        assert!(seen.poisoned.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn shuttle_a_sync_held_beyond_the_close_of_a_poisoned_store() {
    let few = schedules(200);
    for seen in [
        explore("random", RandomScheduler::new_from_seed(SEED, few), held_beyond_a_close),
        explore("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), held_beyond_a_close),
    ] {
        let [late, poisoned] = [&seen.late, &seen.poisoned].map(|one| one.load(Ordering::Relaxed));
        assert!(late > 0 && poisoned == late);
    }
}

#[test]
fn shuttle_forks_during_everything_and_a_close() {
    let few = schedules(200);
    let seen = run("random", RandomScheduler::new_from_seed(SEED, few), FORKS, Trouble::Fails);
    assert!(seen.forked.load(Ordering::Relaxed) > 0);
    run("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), FORKS, Trouble::Fails);
}

#[test]
fn shuttle_claims_that_wait_for_their_key() {
    let few = schedules(500);
    for seen in [
        explore("random", RandomScheduler::new_from_seed(SEED, few), claims_wait),
        explore("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), claims_wait),
    ] {
        let [granted, replayed] =
            [&seen.granted, &seen.completed].map(|one| one.load(Ordering::Relaxed));
        assert!(granted > 0 && replayed > 0);
    }
}
