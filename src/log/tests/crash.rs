//! Crashes: kill and power loss at every call, during recovery too.
//!
//! A crash is tried at every call that changes the disk, with every part of the unsynced bytes and names that
//! [`MemoryStorage::crashes`] lists. States that equal an earlier one, record of acknowledgements included, are
//! counted and not opened again.

use std::collections::HashSet;

use super::*;
use crate::entropy::SplitMix64;
use crate::storage::faulty::{Calls, Effect, Fault};
use crate::storage::memory::{Crash, DataFate, NameFate};

/// Number of random parts of the unsynced bytes, at each point.
const SEEDS: u64 = 64;

/// The number of tries.
#[derive(Default, Debug)]
struct Tried {
    points: u64,
    crashes: u64,
    /// Distinct states: the only ones worth an open.
    states: u64,
    openings: u64,
}

/// Tries crashes, each state once.
#[derive(Default)]
struct Trial {
    tried: Tried,
    known: HashSet<u64>,
}

impl Trial {
    /// Returns whether that state is new.
    fn is_new(&mut self, disk: &MemoryStorage, history: &History) -> bool {
        self.tried.crashes += 1;
        let is_new = self.known.insert(fingerprint(disk, history));
        self.tried.states += u64::from(is_new);
        is_new
    }

    fn check(
        &mut self,
        disk: &MemoryStorage,
        history: &History,
        fate: Fate,
        case: &dyn std::fmt::Debug,
    ) {
        if !self.is_new(disk, history) {
            return;
        }
        match check(disk, history, fate) {
            Ok(checked) => self.tried.openings += checked.openings,
            Err(what) => panic!("{case:?}: {what}\n{history:?}"),
        }
    }

    fn report(&self, name: &str) {
        println!("{name}: {:?}", self.tried);
    }
}

/// Runs `ops` on `world` until power is lost at changing call `point`, of which `kept` bytes are written. `None`: it ran
/// to its end before.
fn run_until(player: Player, point: u64, kept: usize, ops: &[Op]) -> Option<Player> {
    let mut player = player;
    let cut = Effect::PowerCut { bytes_kept: kept };
    player.world.faulty.inject(Fault::once(Calls::Changing, point, cut));
    let end = player.play(ops);
    match end {
        Err(Wrong::Claim(what)) => panic!("before call {point}: {what}"),
        _ if player.world.faulty.power_is_cut() => Some(player),
        Ok(()) => None,
        Err(Wrong::World(error)) => panic!("before call {point}: {error:?}"),
    }
}

fn for_each_point(
    world: fn() -> World,
    kept: usize,
    ops: &[Op],
    mut at_point: impl FnMut(u64, &Player),
) -> u64 {
    for point in 0.. {
        let Some(player) = run_until(Player::new(world()), point, kept, ops) else {
            return point;
        };
        at_point(point, &player);
    }
    unreachable!()
}

#[test]
fn power_lost_at_every_call_loses_nothing_synced() {
    let mut trial = Trial::default();
    trial.tried.points = for_each_point(World::new, 0, &workload(), |point, player| {
        for crash in player.world.disk.crashes(SEEDS) {
            let disk = player.world.disk.crash_clone(crash);
            trial.check(&disk, &player.history, Fate::PowerLost, &(point, crash));
        }
    });
    trial.report("power lost at every call");
    let Tried { points, crashes, openings, .. } = trial.tried;
    assert!(points > 150 && crashes > 10_000 && openings > 3000);
}

#[test]
fn a_kill_at_every_call_loses_nothing_written() {
    let mut trial = Trial::default();
    // A kill may leave any part of the write it interrupts.
    for kept in [0, 1, 8, 24, 100, 511, 512, 700] {
        trial.tried.points += for_each_point(World::new, kept, &workload(), |point, player| {
            let disk = player.world.disk.kill_clone();
            trial.check(&disk, &player.history, Fate::Killed, &(point, kept));
        });
    }
    trial.report("killed at every call");
    assert!(trial.tried.points > 1000 && trial.tried.openings > 500);
}

#[test]
fn a_power_loss_after_a_kill_loses_nothing_synced() {
    let mut trial = Trial::default();
    trial.tried.points = for_each_point(World::new, 0, &workload(), |point, player| {
        // The next process opens, settles what it finds, and continues; then power is lost.
        let disk = player.world.disk.kill_clone();
        let next = World::over(disk, 500);
        let mut next = Player::after(next, player.history.clone(), Fate::Killed);
        next.play(&[Op::Claim(Sync), Op::End(Flush, 300)]).unwrap();
        for crash in next.world.disk.crashes(if is_long() { SEEDS } else { 4 }) {
            let disk = next.world.disk.crash_clone(crash);
            trial.check(&disk, &next.history, Fate::PowerLost, &(point, crash));
        }
    });
    trial.report("killed at every call, then power lost");
    assert!(trial.tried.states > 500);
}

/// Where a file system can't exchange names, the manifest is renamed.
#[test]
fn power_lost_and_kills_at_every_call_lose_nothing_without_an_exchange() {
    let mut trial = Trial::default();
    trial.tried.points =
        for_each_point(World::without_exchange, 0, &workload(), |point, player| {
            for crash in player.world.disk.crashes(if is_long() { SEEDS } else { 4 }) {
                let disk = player.world.disk.crash_clone(crash);
                trial.check(&disk, &player.history, Fate::PowerLost, &(point, crash));
            }
            let disk = player.world.disk.kill_clone();
            trial.check(&disk, &player.history, Fate::Killed, &point);
        });
    trial.report("power lost or killed at every call, without an exchange");
    assert!(trial.tried.points > 150 && trial.tried.openings > 1000);
}

/// The crashes tried where their number is squared: the ends, and some at random.
fn few_crashes(disk: &MemoryStorage, seeds: u64) -> Vec<Crash> {
    if is_long() {
        return disk.crashes(8);
    }
    let mut crashes = vec![Crash::NONE, Crash::ALL];
    if seeds > 1 {
        crashes.push(Crash { data: DataFate::Zeros, names: NameFate::All });
        crashes.push(Crash { data: DataFate::None, names: NameFate::All });
        crashes.push(Crash { data: DataFate::All, names: NameFate::None });
    }
    crashes.extend((0..seeds).map(Crash::seeded));
    crashes
}

/// The calls of a recovery, and the first writes after it.
const RECOVERY: [Op; 3] = [Op::Claim(Sync), Op::Pass(20), Op::End(Flush, 200)];

#[test]
fn power_lost_during_recovery_and_again_loses_nothing() {
    let mut first = Trial::default();
    let mut second = Trial::default();
    let mut third = Trial::default();
    let mut recovery_points = 0;
    first.tried.points = for_each_point(World::new, 0, &workload(), |k, player| {
        for crash in few_crashes(&player.world.disk, 2) {
            let disk = player.world.disk.crash_clone(crash);
            if !first.is_new(&disk, &player.history) {
                continue;
            }
            for j in 0.. {
                let world = World::over(disk.crash_clone(Crash::ALL), 300);
                let again = Player::after(world, player.history.clone(), Fate::PowerLost);
                let Some(again) = run_until(again, j, 0, &RECOVERY) else { break };
                recovery_points += 1;
                for (index, crash_again) in
                    few_crashes(&again.world.disk, 1).into_iter().enumerate()
                {
                    let disk = again.world.disk.crash_clone(crash_again);
                    let case = ((k, crash), (j, crash_again));
                    second.check(&disk, &again.history, Fate::PowerLost, &case);
                    // A third crash, on a sample.
                    let sampled = (k * 31 + j * 7 + index as u64).is_multiple_of(601);
                    if sampled || is_long() && (k + j).is_multiple_of(11) {
                        crash_a_third_time(&mut third, &disk, &again.history, &case);
                    }
                }
            }
        }
    });
    second.tried.points = recovery_points;
    first.report("power lost at every call");
    second.report("power lost during the recovery from it");
    third.report("and during the recovery from that");
    assert!(recovery_points > 1000 && second.tried.openings > 1000 && third.tried.openings > 100);
}

fn crash_a_third_time(
    trial: &mut Trial,
    disk: &MemoryStorage,
    history: &History,
    case: &dyn std::fmt::Debug,
) {
    for point in 0.. {
        let world = World::over(disk.crash_clone(Crash::ALL), 400);
        let player = Player::after(world, history.clone(), Fate::PowerLost);
        let Some(player) = run_until(player, point, 0, &RECOVERY) else { return };
        trial.tried.points += 1;
        for crash in few_crashes(&player.world.disk, 2) {
            let disk = player.world.disk.crash_clone(crash);
            trial.check(&disk, &player.history, Fate::PowerLost, &(case, point, crash));
        }
    }
}

/// A random workload.
fn any_workload(seed: u64, ops: u64) -> Vec<Op> {
    let mut lot = SplitMix64::new(seed);
    let mut in_flight = 0_u64;
    let level = |lot: &mut SplitMix64| [Sync, Flush, Lazy][lot.below(3) as usize];
    (0..ops)
        .map(|_| match lot.below(16) {
            0..5 if in_flight < 4 => {
                in_flight += 1;
                Op::Claim(level(&mut lot))
            }
            0..8 if in_flight > 0 => {
                in_flight -= 1;
                Op::End(level(&mut lot), lot.below(880) as usize)
            }
            8 | 9 => Op::Update(level(&mut lot)),
            10 => Op::Forget(level(&mut lot)),
            11 => Op::Batch(lot.below(900) as usize),
            12 => Op::Pass([1, 11, 1001, 3_600_001][lot.below(4) as usize]),
            13 => Op::SyncAll,
            14 => {
                in_flight = 0;
                [Op::Reopen, Op::Look, Op::Kill][lot.below(3) as usize]
            }
            _ => Op::Batch(10),
        })
        .collect()
}

#[test]
fn random_workloads_survive_random_crashes() {
    let mut trial = Trial::default();
    let workloads = if is_long() { 2000 } else { 60 };
    let first = std::env::var("ONLYONCE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + workloads {
        let ops = any_workload(seed, 40);
        let mut whole = Player::new(World::new());
        whole.play(&ops).unwrap_or_else(|wrong| panic!("ONLYONCE_SEED={seed}: {wrong:?}"));
        let calls = whole.world.disk.changes();
        let mut lot = SplitMix64::new(seed);
        for _ in 0..12 {
            let (point, kept) = (lot.below(calls), lot.below(900) as usize);
            let Some(player) = run_until(Player::new(World::new()), point, kept, &ops) else {
                continue;
            };
            trial.tried.points += 1;
            let killed = player.world.disk.kill_clone();
            let case = format!("ONLYONCE_SEED={seed}, call {point}, {kept} bytes kept");
            trial.check(&killed, &player.history, Fate::Killed, &case);
            for crash in (0..8).map(|_| Crash::seeded(lot.next())).chain([Crash::NONE]) {
                let disk = player.world.disk.crash_clone(crash);
                trial.check(&disk, &player.history, Fate::PowerLost, &(&case, crash));
            }
        }
    }
    trial.report("workloads by lot");
}
