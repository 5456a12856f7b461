//! Opens a store thousands of times. Each time, threads work while a disk fails, a sync is slow, and the store is
//! closed.
//!
//! The answers that each thread got are compared with the answers to all others: see [`Testimony`].
//!
//! `ONLYONCE_LIVES=20000 cargo test --release --lib torture -- --nocapture` sets the number of opens; with
//! `ONLYONCE_WHOLE=1` there are two thousand. A failure prints its seed; set `ONLYONCE_SEED` to it to start with that
//! seed.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::told::Testimony;
use crate::clock::SystemClock;
use crate::entropy::SeededEntropy;
use crate::log::Seams;
use crate::storage::faulty::{CallFailure, CallGate, Calls, Class, Effect, Fault, FaultyStorage};
use crate::storage::memory::MemoryStorage;
use crate::storage::{OsStorage, Storage};
use crate::{Durability, Error, ErrorKind, Operation, Store};

const THREADS: u64 = 4;

struct World {
    disk: FaultyStorage,
    dir: PathBuf,
    told: Testimony,
    indeterminate: AtomicU64,
    /// Keys below it may have been claimed.
    keys: AtomicU64,
    ops: AtomicU64,
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

impl World {
    fn new(inner: Arc<dyn Storage>, dir: PathBuf) -> Self {
        let (keys, ops) = (AtomicU64::new(10), AtomicU64::new(0));
        let (told, indeterminate) = (Testimony::default(), AtomicU64::new(0));
        World { disk: FaultyStorage::new(inner), dir, told, indeterminate, keys, ops }
    }

    fn open(&self, seed: u64) -> Store {
        let seams = Seams {
            storage: Arc::new(self.disk.clone()),
            clock: Arc::new(SystemClock::new().unwrap()),
            entropy: Arc::new(SeededEntropy::new(seed)),
        };
        let builder = Store::builder().segment_bytes(16 << 10).result_bytes_max(256);
        builder.index_memory_max(64 * 64).open_on(seams, &self.dir, true).unwrap()
    }

    /// One thread's work on one open store, until that store is closed.
    fn work(&self, store: &Store, mut dice: Dice) {
        let mut is_over = false;
        while !is_over {
            self.ops.fetch_add(1, Ordering::Relaxed);
            let (call, done) = match dice.roll(40) {
                0 => ("iter", store.iter().take(20).find_map(Result::err).map_or(Ok(()), Err)),
                1 => ("verify", self.verify(store)),
                2 => ("compact", store.compact(4096).map(drop)),
                3 => ("rebuild_index", store.rebuild_index()),
                4 => ("merge_index", store.merge_index()),
                5 => ("sync", store.sync()),
                6 => ("stats", store.stats().keys.checked_add(1).map_or(Ok(()), |_| Ok(()))),
                _ => ("claim", self.claim(store, &mut dice)),
            };
            if let Err(e) = done {
                let expected = [ErrorKind::Closed, ErrorKind::Poisoned, ErrorKind::Indeterminate];
                // `Io`: from the call that met the fault first.
                assert!(
                    expected.contains(&e.kind()) || e.kind() == ErrorKind::Io,
                    "{call}: {e}: {e:?}"
                );
                assert!(!e.to_string().contains("no writes any more"), "{e}");
                if e.kind() == ErrorKind::Indeterminate {
                    self.indeterminate.fetch_add(1, Ordering::Relaxed);
                }
                is_over = true;
            }
        }
    }

    fn verify(&self, store: &Store) -> Result<(), Error> {
        let found = store.verify()?;
        // After a failure, records that were not durable may be missing; so may a file that was being made.
        assert!(found.is_whole() || !store.health().is_writable(), "{:?}", found.damages);
        Ok(())
    }

    fn claim(&self, store: &Store, dice: &mut Dice) -> Result<(), Error> {
        let newest = match dice.roll(3) {
            0 => self.keys.fetch_add(1, Ordering::SeqCst),
            _ => self.keys.load(Ordering::SeqCst),
        };
        let key = newest - dice.roll(10);
        let level = [Durability::Sync, Durability::Flush][dice.roll(2) as usize];
        // A close and a kill keep grants at `Flush`, and there is no other end here.
        let op = Operation::new(key).claim_durability(level);
        self.told.claim(store, key, op, 100, &mut |sides| dice.roll(sides))
    }

    /// Lets the threads begin some more calls. All of them may wait for a blocked sync, so not for long.
    fn let_go_on(&self, more: u64) {
        let until = self.ops.load(Ordering::Relaxed) + more;
        for _ in 0..2000 {
            if self.ops.load(Ordering::Relaxed) >= until {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// Threads of an open that was closed, and the sync that some of them may be in.
struct Past {
    workers: Vec<JoinHandle<()>>,
    gate: Arc<CallGate>,
}

impl Past {
    fn end(self) {
        self.gate.open();
        for worker in self.workers {
            worker.join().unwrap();
        }
    }
}

fn lives(few: u64) -> u64 {
    let asked = std::env::var("ONLYONCE_LIVES").ok().and_then(|lives| lives.parse().ok());
    let is_long = std::env::var_os("ONLYONCE_WHOLE").is_some();
    asked.unwrap_or(if is_long { 10 * few } else { few })
}

/// Runs one life after the other, over a disk that fails now and then.
fn torture(world: &Arc<World>, lives: u64) {
    let asked = std::env::var("ONLYONCE_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = asked.unwrap_or(1);
    let mut past = VecDeque::new();
    let (mut poisoned, mut waited, mut clean) = (0, 0, 0);
    for seed in first..first + lives {
        if seed % 500 == 0 {
            println!("{seed}: {} calls", world.ops.load(Ordering::Relaxed));
        }
        let mut dice = Dice(seed << 8);
        let case = Case(seed);
        let store = world.open(seed);
        world.told.check(&store, if seed % 100 == 0 { usize::MAX } else { 5 });
        let workers = (0..THREADS).map(|n| {
            let (world, store, dice) =
                (Arc::clone(world), store.clone(), Dice((seed << 8) + n + 1));
            std::thread::spawn(move || world.work(&store, dice))
        });
        let now = Past { workers: workers.collect(), gate: Arc::default() };
        world.let_go_on(dice.roll(30));
        if past.len() > 2 {
            // Syncs of opens that were closed since return now.
            past.pop_front().into_iter().for_each(Past::end);
        }
        let io = Effect::Fail(CallFailure::IO);
        let slow = || Effect::Wait(Arc::clone(&now.gate));
        let (after, kind) = (dice.roll(20), dice.roll(8));
        match kind {
            0 | 1 => world.disk.inject(Fault::once(Calls::Changing, after, io)),
            2 => world.disk.inject(Fault::once(Calls::Of(Class::Sync), after / 4, io)),
            3 | 4 => {
                // One sync is blocked, and another call fails meanwhile.
                world.disk.inject(Fault::once(Calls::Of(Class::Sync), after / 8, slow()));
                world.disk.inject(Fault::once(Calls::Of(Class::Write), after, io));
            }
            5 if seed % 4 == 0 => world.disk.inject(Fault::once(Calls::Of(Class::Sync), 0, slow())),
            _ => {}
        }
        world.let_go_on(dice.roll(8));
        let mut closed = std::thread::scope(|scope| {
            // The blocked sync may be the close's own.
            let (tell, told) = std::sync::mpsc::channel();
            let gate = &now.gate;
            scope.spawn(move || {
                if told.recv_timeout(Duration::from_millis(400)).is_err() {
                    gate.open();
                }
            });
            let closed = store.close(Duration::from_millis(dice.roll(3)));
            // It may have ended already.
            let _ = tell.send(());
            closed
        });
        if matches!(&closed, Err(e) if e.kind() == ErrorKind::InProgress) {
            waited += 1;
            assert!(
                matches!(crate::Store::builder()
                        .open_timeout(Duration::ZERO)
                        .open_on(seams_of(world), &world.dir, false),
                Err(e) if e.kind() == ErrorKind::Locked),
                "{case:?}"
            );
            now.gate.open();
            world.disk.heal();
            closed = store.close(Duration::from_secs(3600));
        }
        world.disk.heal();
        match closed {
            Ok(_) => clean += 1,
            Err(e) => {
                let expected = [ErrorKind::Poisoned, ErrorKind::Indeterminate, ErrorKind::Io];
                assert!(expected.contains(&e.kind()), "{case:?}: {e}");
                poisoned += 1;
            }
        }
        past.push_back(now);
        std::mem::forget(case);
    }
    past.into_iter().for_each(Past::end);
    let store = world.open(0);
    world.told.check(&store, usize::MAX);
    assert!(store.verify().unwrap().is_whole());
    let [granted, tokens, completed] = world.told.counts();
    println!(
        "{lives} lives: {clean} closed cleanly, {poisoned} poisoned, {waited} closes waited for a sync; {} grants, {} tokens, \
         {} results, {} indeterminate",
        granted,
        tokens,
        completed,
        world.indeterminate.load(Ordering::Relaxed)
    );
    assert!(clean > 0 && poisoned > 0 && completed > 0);
}

fn seams_of(world: &World) -> Seams {
    Seams {
        storage: Arc::new(world.disk.clone()),
        clock: Arc::new(SystemClock::new().unwrap()),
        entropy: Arc::new(SeededEntropy::new(0)),
    }
}

/// Reports the life in which a panic happened.
#[derive(Debug)]
struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        eprintln!("ONLYONCE_SEED={}", self.0);
    }
}

#[test]
fn torture_of_a_simulated_disk_grants_nothing_twice_and_loses_nothing() {
    let disk = MemoryStorage::new();
    torture(&Arc::new(World::new(Arc::new(disk), PathBuf::from("/store"))), lives(200));
}

#[test]
fn torture_of_a_real_disk_grants_nothing_twice_and_loses_nothing() {
    let mut dir = tempfile::tempdir().unwrap();
    // After a panic the directory stays: threads still work in it, and would find its files missing.
    dir.disable_cleanup(true);
    torture(
        &Arc::new(World::new(Arc::new(OsStorage::default()), dir.path().join("store"))),
        lives(100),
    );
    dir.disable_cleanup(false);
}
