//! Open keys (in progress, interrupted, held) are listed without a walk over all keys, and none is missing.

use std::collections::BTreeMap;
use std::time::Duration;

use onlyonce::admin::StateKind;
use onlyonce::testing::Sim;
use onlyonce::{
    Claim, ClaimGuard, Durability, Operation, Outcome, Policy, Resolution, State, Store,
};

use crate::index::{files, open, rest, work};
use crate::script::rot_tables;

const OPEN: [StateKind; 3] = [StateKind::InProgress, StateKind::Interrupted, StateKind::Held];

pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn kind(state: &State) -> Option<&'static str> {
    match state {
        State::InProgress(_) => Some("in progress"),
        State::Interrupted(_) => Some("interrupted"),
        State::Held(_) => Some("held"),
        _ => None,
    }
}

type Listed = BTreeMap<String, &'static str>;

/// By a walk over all keys. The walk that meets damage of the index reports it, and has it mended for the next.
fn by_walk(store: &Store) -> Listed {
    for _ in 0..20 {
        let entries: Result<Vec<_>, _> = store.iter().collect();
        if let Ok(entries) = entries {
            let open = entries
                .into_iter()
                .filter_map(|(key, state)| Some((key.to_string(), kind(&state)?)));
            return open.collect();
        }
    }
    panic!("{:?}", store.iter().find_map(Result::err));
}

fn by_list(store: &Store) -> Listed {
    let mut listed = Listed::new();
    for entry in store.iter().in_states(&OPEN) {
        let (key, state) = entry.unwrap();
        assert!(listed.insert(key.to_string(), kind(&state).unwrap()).is_none(), "{key} twice");
    }
    listed
}

fn check(store: &Store, context: &str) {
    let listed = by_list(store);
    assert_eq!(listed, by_walk(store), "{context}");
    assert_eq!(by_list(store), listed, "{context}");
}

/// One step of a life: a call on one of a few keys.
fn call(store: &Store, dice: &mut Dice, kept: &mut Vec<ClaimGuard>, filler: &mut u64) {
    let level = [Durability::Lazy, Durability::Flush, Durability::Sync]
        [usize::try_from(dice.below(3)).unwrap()];
    let store = store.with_policy(Policy::new().claim_durability(level).durability(level));
    let key = format!("key-{}", dice.below(30));
    match dice.below(10) {
        0..5 => match store.claim(Operation::new(key).lease(Duration::from_secs(3600))).unwrap() {
            Claim::Acquired(guard) => end(guard, dice, kept),
            Claim::Interrupted(lost) => match dice.below(5) {
                0 => drop(lost),
                1 => lost.hold().unwrap(),
                2 => end(lost.not_applied().unwrap(), dice, kept),
                _ => end(lost.take_over().unwrap(), dice, kept),
            },
            _ => {}
        },
        5 => match store.get(&key).unwrap() {
            Some(State::Held(lost) | State::Interrupted(lost)) => {
                let resolution = match dice.below(2) {
                    0 => Resolution::Retry,
                    _ => Resolution::Record(Outcome::success("found")),
                };
                let _ = store.resolve(&lost, resolution).unwrap();
            }
            Some(_) => drop(store.forget(key)),
            None => {}
        },
        6 if !kept.is_empty() => {
            let at = usize::try_from(dice.below(kept.len() as u64)).unwrap();
            let _ = kept.swap_remove(at).complete("late");
        }
        _ => {
            *filler += 1;
            let _ = store.mark(("filler", *filler)).unwrap();
        }
    }
}

fn end(guard: ClaimGuard, dice: &mut Dice, kept: &mut Vec<ClaimGuard>) {
    match dice.below(8) {
        0..3 => guard.complete("done").unwrap(),
        3 => guard.fail("for good").unwrap(),
        4 => guard.abort("nothing").unwrap(),
        5 => kept.push(guard),
        _ => drop(guard),
    }
}

/// One thing that moves keys between memory, tables and segments.
fn upheave(
    sim: &Sim,
    store: Store,
    dice: &mut Dice,
    kept: &mut Vec<ClaimGuard>,
) -> (Store, &'static str) {
    let keys = [8, 8, 64, 1000][usize::try_from(dice.below(4)).unwrap()];
    let name = match dice.below(12) {
        0..2 => {
            work(&store).unwrap();
            return (store, "work");
        }
        2 => {
            store.merge_index().unwrap();
            return (store, "merge");
        }
        3 => {
            let _ = store.compact(u64::MAX).unwrap();
            return (store, "compact");
        }
        4 => {
            let _ = store.compact(1 << 10).unwrap();
            return (store, "compact a little");
        }
        5 => {
            store.rebuild_index().unwrap();
            return (store, "rebuild");
        }
        6 => {
            rot_tables(sim);
            return (store, "rot");
        }
        7 => {
            store.close(Duration::ZERO).unwrap();
            "close"
        }
        8 => {
            sim.kill();
            "kill"
        }
        9 => {
            sim.power_loss_keeping_some(dice.below(1000));
            "power loss"
        }
        10 => {
            sim.kill();
            rot_tables(sim);
            "kill and rot"
        }
        _ => {
            store.close(Duration::ZERO).unwrap();
            for path in files(sim, "tab") {
                if dice.below(2) == 0 {
                    let len = sim.read_file(&path).unwrap().len() as u64;
                    // The list of open keys, or the last bucket.
                    sim.flip_byte(&path, len - 1 - dice.below(60), 4).unwrap();
                }
            }
            "close and rot of a list"
        }
    };
    kept.clear();
    drop(store);
    (open(sim, keys), name)
}

fn live(seed: u64, mask: Option<(u64, u64)>) {
    let sim = Sim::small(seed);
    if let Some((high, low)) = mask {
        sim.mask_hashes(high, low);
    }
    let mut dice = Dice(seed);
    let (mut store, mut kept, mut filler) = (open(&sim, 8), Vec::new(), 0);
    let mut past = String::new();
    for _ in 0..30 {
        for _ in 0..dice.below(40) {
            call(&store, &mut dice, &mut kept, &mut filler);
        }
        let name;
        (store, name) = upheave(&sim, store, &mut dice, &mut kept);
        past = format!("{past}, {name}");
        // What an open leaves undecided is decided by a look: several upheavals may come before one.
        if dice.below(3) == 0 {
            check(&store, &format!("seed {seed}, {mask:?}{past}"));
        }
    }
    check(&store, &format!("seed {seed}, {mask:?}{past}"));
    rest(&sim, &store);
    let found = store.verify().unwrap();
    assert!(found.unread.is_empty(), "{seed}: {found:?}");
}

/// Lives with checkpoints, merges, compaction, crashes, damage and mending; of keys whose hashes are as usual, share a
/// prefix, or are all the same.
#[test]
fn no_open_key_is_missing_after_whatever_moves_the_index() {
    let lives = if std::env::var_os("ONLYONCE_LONG").is_some() { 1000 } else { 24 };
    for seed in 0..lives {
        let mask =
            [None, None, Some((0, u64::MAX)), Some((0, 0))][usize::try_from(seed % 4).unwrap()];
        live(seed, mask);
    }
}
