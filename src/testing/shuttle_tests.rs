//! The whole engine under shuttle: threads at work, a disk that fails, a close, and the next opening beside threads of
//! the closed one that come back late; in random schedules and by PCT, which delays a thread for long.
//!
//! What the threads were told is held against what all others were told, as in `torture`: a key is granted afresh once, a
//! token is given out once, a result that was acknowledged is there in every later opening, and nothing is ever corrupt.
//! No time passes, so a wake-up that is lost is a deadlock, which shuttle reports.
//!
//! `RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR=target/shuttle cargo test --release --lib shuttle_`;
//! `ONLYONCE_SCHEDULES` sets the number of schedules of each test. A failure prints its schedule, which
//! `ONLYONCE_SCHEDULE` runs again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::thread::{self, JoinHandle};

use super::Sim;
use crate::storage::faulty::{Calls, Class, Effect, Failure, Fault};
use crate::{Claim, ClaimGuard, Durability, Error, ErrorKind, Operation, Store};

/// Few, so that threads and openings meet at them.
const KEYS: u64 = 3;

/// A close, an opening and some claims take about so many steps: a slow call may outlast them.
const SLOW_TURNS: u64 = 2000;

/// Whatever a schedule may come to by chance is drawn from the schedule, so that it runs again alike.
fn roll(sides: u64) -> u64 {
    shuttle::rand::thread_rng().gen_range(0..sides)
}

/// What the threads were told, of all openings.
#[derive(Default)]
struct Told {
    granted: BTreeSet<u64>,
    tokens: BTreeSet<u64>,
    completed: BTreeMap<u64, Vec<u8>>,
}

/// How the schedules of a test went, so that one sees what they reached.
#[derive(Default)]
struct Seen {
    schedules: AtomicU64,
    clean: AtomicU64,
    poisoned: AtomicU64,
    late: AtomicU64,
    granted: AtomicU64,
    completed: AtomicU64,
    indeterminate: AtomicU64,
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

struct World {
    sim: Sim,
    /// Its lock is not shuttle's: nothing of the store is called while it is held.
    told: Mutex<Told>,
    seen: Arc<Seen>,
    /// Threads that are done with all their acts.
    done: AtomicU64,
}

/// What a thread does with the store.
#[derive(Clone, Copy)]
enum Act {
    Claim(Durability),
    Background,
}

impl World {
    fn open(&self) -> Store {
        let builder = Store::builder().segment_bytes(16 << 10).result_bytes_max(256);
        self.sim.open_with(builder.index_memory_max(64 * 64)).unwrap()
    }

    fn act(&self, store: &Store, act: Act) {
        let done = match act {
            Act::Claim(level) => self.claim(store, roll(KEYS), level),
            Act::Background => self.background(store),
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
                // After a failure what was not made durable may be missing.
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

    fn claim(&self, store: &Store, key: u64, level: Durability) -> Result<(), Error> {
        // A close and a kill keep what was acknowledged at `Flush`, and there is no other end here.
        let op = Operation::new(key).durability(level).claim_durability(level);
        let before = self.told.lock().completed.get(&key).cloned();
        let claim = store.claim(op)?;
        if let Some(before) = before {
            let Claim::Completed(done) = claim else { panic!("{key} was completed: {claim}") };
            assert_eq!(done.result()[..], before, "{key}");
            return Ok(());
        }
        match claim {
            Claim::Acquired(claim) => {
                assert!(self.told.lock().granted.insert(key), "{key} was granted twice");
                self.end(key, claim)
            }
            Claim::Interrupted(lost) if roll(2) == 0 => {
                let claim = lost.take_over()?;
                self.end(key, claim)
            }
            Claim::Completed(done) => {
                let mut told = self.told.lock();
                // Its owner may not have been told yet, or not for sure.
                let known = told.completed.entry(key).or_insert_with(|| done.result().to_vec());
                assert_eq!(done.result()[..], known[..], "{key}");
                Ok(())
            }
            Claim::Interrupted(_) | Claim::InProgress(_) => Ok(()),
            other => panic!("{other}"),
        }
    }

    fn end(&self, key: u64, claim: ClaimGuard) -> Result<(), Error> {
        let token = claim.token().get();
        assert!(self.told.lock().tokens.insert(token), "token {token} was given out twice");
        if roll(8) == 0 {
            return Ok(());
        }
        let result = token.to_le_bytes().to_vec();
        match claim.complete(&result[..]) {
            Err(e) if e.kind() == ErrorKind::ClaimLost => Ok(()),
            Err(e) => Err(e),
            Ok(()) => {
                let known = self.told.lock().completed.insert(key, result.clone());
                assert!(known.is_none_or(|known| known == result), "{key} has two results");
                Ok(())
            }
        }
    }

    /// All that was acknowledged is there.
    fn check(&self, store: &Store) {
        let completed = self.told.lock().completed.clone();
        for (key, result) in completed {
            let Some(crate::State::Completed(done)) = store.get(key).unwrap() else {
                panic!("the result of {key} is gone")
            };
            assert_eq!(done.result()[..], result, "{key}");
        }
    }

    fn start(self: &Arc<Self>, store: &Store, acts: &'static [Act]) -> JoinHandle<()> {
        let (world, store) = (Arc::clone(self), store.clone());
        thread::spawn(move || {
            acts.iter().for_each(|act| world.act(&store, *act));
            count(&world.done, 1);
        })
    }

    /// Perhaps one call of the disk is slow, and perhaps one fails.
    fn break_disk(&self, fails: bool) {
        let slow = [None, Some(Class::Sync), Some(Class::Write), Some(Class::Read)];
        if let Some(class) = slow[roll(4) as usize] {
            let slow = Effect::Slow(roll(SLOW_TURNS));
            self.sim.inject(Fault::once(Calls::Of(class), roll(3), slow));
        }
        let failing = [Calls::Changing, Calls::Of(Class::Sync), Calls::Of(Class::Write)];
        if fails {
            let fault = Effect::Fail(Failure::IO);
            self.sim.inject(Fault::once(failing[roll(3) as usize], roll(6), fault));
        }
    }
}

/// Two openings with the same keys; threads of the first may come back when the second is at work. A third one checks.
fn lives(seen: &Arc<Seen>, threads: &[&'static [Act]], fails: bool) {
    let world = Arc::new(World {
        sim: Sim::small(7),
        told: Mutex::default(),
        seen: Arc::clone(seen),
        done: AtomicU64::new(0),
    });
    let first = world.open();
    // A record of an earlier round, and something for the background to do.
    world.act(&first, Act::Claim(Durability::Flush));
    world.break_disk(fails);
    let workers: Vec<_> = threads.iter().map(|acts| world.start(&first, acts)).collect();
    // No time passes, so it is never over.
    match first.close(Duration::from_secs(3600)) {
        Ok(_) => count(&seen.clean, 1),
        Err(e) => {
            let expected = [ErrorKind::Poisoned, ErrorKind::Indeterminate, ErrorKind::Io];
            assert!(expected.contains(&e.kind()), "{e}: {e:?}");
            count(&seen.poisoned, 1);
        }
    }
    drop(first);
    world.sim.heal();
    count(&seen.late, usize::from(world.done.load(Ordering::Relaxed) < workers.len() as u64));

    let second = world.open();
    world.check(&second);
    let beside = world.start(&second, &[Act::Claim(Durability::Flush), Act::Background]);
    for _ in 0..2 {
        world.act(&second, Act::Claim(Durability::Sync));
    }
    for worker in workers.into_iter().chain([beside]) {
        worker.join().unwrap();
    }
    world.check(&second);
    // The last handle closes it.
    drop(second);

    let third = world.open();
    world.check(&third);
    assert!(third.verify().unwrap().is_whole());
    let told = world.told.lock();
    count(&seen.schedules, 1);
    count(&seen.granted, told.granted.len());
    count(&seen.completed, told.completed.len());
}

fn run(
    name: &str,
    scheduler: impl Scheduler + 'static,
    threads: &'static [&'static [Act]],
    fails: bool,
) {
    let mut config = shuttle::Config::new();
    // The engine's frames are deeper than shuttle's 32 KiB.
    config.stack_size = 1 << 20;
    let seen = Arc::new(Seen::default());
    let counts = Arc::clone(&seen);
    let body = move || lives(&counts, threads, fails);
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
    assert!(clean > 0 && completed > 0);
    assert!(!fails || poisoned > 0);
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

/// `SHUTTLE_RANDOM_SEED` sets another one.
const SEED: u64 = 1;
/// Preemptions by PCT.
const DEPTH: usize = 3;

#[test]
fn shuttle_claims_beside_a_close() {
    let few = schedules(200);
    run("random", RandomScheduler::new_from_seed(SEED, few), CLAIMS, false);
    run("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), CLAIMS, false);
}

#[test]
fn shuttle_claims_on_a_failing_disk_beside_a_close() {
    let few = schedules(200);
    run("random", RandomScheduler::new_from_seed(SEED, few), CLAIMS, true);
    run("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), CLAIMS, true);
}

#[test]
fn shuttle_everything_beside_a_close() {
    let few = schedules(200);
    run("random", RandomScheduler::new_from_seed(SEED, few), MIXED, false);
    run("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), MIXED, false);
}

#[test]
fn shuttle_everything_on_a_failing_disk_beside_a_close() {
    let few = schedules(200);
    run("random", RandomScheduler::new_from_seed(SEED, few), MIXED, true);
    run("PCT", PctScheduler::new_from_seed(SEED, DEPTH, few), MIXED, true);
}
