//! Crashes: kill and power loss at every call, during recovery too.

use std::collections::HashSet;

use super::*;
use crate::storage::faulty::{Calls, Effect, Fault};
use crate::storage::memory::Crash;

/// Seeded parts of what is unsynced, at each point.
const SEEDS: u64 = 64;

/// How much was tried.
#[derive(Default, Debug)]
struct Tried {
    points: u64,
    crashes: u64,
    /// States that differ, the only ones worth an opening.
    states: u64,
    openings: u64,
}

/// Runs `ops` until the power is cut at changing call `point`, of which `kept` bytes are written. `None`: it
/// ran to its end before.
fn run_until(point: u64, kept: usize, ops: &[Op]) -> Option<Player> {
    let mut player = Player::new(World::new());
    player.world.faulty.inject(Fault::once(
        Calls::Changing,
        point,
        Effect::PowerCut { bytes_kept: kept },
    ));
    match player.play(ops) {
        Ok(()) if !player.world.faulty.power_is_cut() => None,
        Ok(()) | Err(Wrong::World(_)) if player.world.faulty.power_is_cut() => Some(player),
        other => panic!("point {point}: {other:?}"),
    }
}

fn for_each_point(ops: &[Op], mut at_point: impl FnMut(u64, &Player)) -> u64 {
    for point in 0.. {
        let Some(player) = run_until(point, 0, ops) else { return point };
        at_point(point, &player);
    }
    unreachable!()
}

#[test]
fn power_lost_at_every_call_loses_nothing_synced() {
    let mut tried = Tried::default();
    let mut known = HashSet::new();
    tried.points = for_each_point(&workload(), |point, player| {
        for crash in player.world.disk.crashes(SEEDS) {
            tried.crashes += 1;
            let disk = player.world.disk.crash_clone(crash);
            if !known.insert(fingerprint(&disk, &player.history)) {
                continue;
            }
            tried.states += 1;
            match check(&disk, &player.history, Fate::PowerLost) {
                Ok(checked) => tried.openings += checked.openings,
                Err(what) => panic!("call {point}, {crash:?}: {what}\n{:?}", player.history),
            }
        }
    });
    println!("{tried:?}");
    assert!(tried.points > 100 && tried.crashes > 1000 && tried.openings > 1000, "{tried:?}");
}
