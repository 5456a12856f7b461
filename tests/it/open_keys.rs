//! Open keys (in progress, detached, interrupted, held, delayed) are listed without a walk over all keys, and none is missing.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use onlyonce::admin::{Cursor, StateKind};
use onlyonce::testing::Sim;
use onlyonce::{
    Abort, Claim, ClaimGuard, Durability, Key, OnInterrupted, Operation, Outcome, Policy,
    Resolution, State, Store,
};

use crate::index::{files, open, rest, work};
use crate::script::rot_tables;

const OPEN: [StateKind; 5] = [
    StateKind::InProgress,
    StateKind::Detached,
    StateKind::Interrupted,
    StateKind::Held,
    StateKind::Delayed,
];

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
        State::InProgress(attempt) if attempt.is_detached() => Some("detached"),
        State::InProgress(_) => Some("in progress"),
        State::Aborted(attempt) => attempt.retry_in().map(|_| "delayed"),
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
    let count = |kind| listed.values().filter(|listed| **listed == kind).count() as u64;
    let stats = store.stats();
    let counted = [stats.interrupted, stats.held, stats.detached, stats.delayed];
    assert_eq!(counted, ["interrupted", "held", "detached", "delayed"].map(count), "{context}");
    for (state, kind) in [
        (StateKind::Detached, "detached"),
        (StateKind::Delayed, "delayed"),
        (StateKind::Held, "held"),
    ] {
        let listed: Vec<_> = store.iter().in_states(&[state]).collect();
        assert_eq!(listed.len() as u64, count(kind), "{kind}, {context}");
    }
    let (aged, _) = page(store, None, usize::MAX);
    let mut names: Vec<_> = aged.iter().map(|(_, name)| name.clone()).collect();
    assert!(aged.is_sorted(), "{context}: {aged:?}");
    names.sort_unstable();
    assert_eq!(names, listed.into_keys().collect::<Vec<_>>(), "{context}");
}

/// Open keys after a cursor, the oldest first, each with the time since which it is in its attempt; and the next cursor.
fn page(
    store: &Store,
    after: Option<&str>,
    most: usize,
) -> (Vec<(SystemTime, String)>, Option<String>) {
    let mut walk = store.iter().in_states(&OPEN).oldest_first();
    if let Some(after) = after {
        walk = walk.after(&after.parse().unwrap());
    }
    let shown = |entry: Result<_, _>| match entry.unwrap() {
        (
            key,
            State::InProgress(attempt)
            | State::Interrupted(attempt)
            | State::Held(attempt)
            | State::Aborted(attempt),
        ) => (attempt.since(), Key::to_string(&key)),
        (key, state) => panic!("{key}: {state:?}"),
    };
    let found: Vec<_> = walk.by_ref().take(most).map(shown).collect();
    (found, walk.cursor().map(Cursor::to_string))
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
                1 => lost.hold("held by a test").unwrap(),
                2 => end(lost.not_applied().unwrap(), dice, kept),
                _ => end(lost.take_over().unwrap(), dice, kept),
            },
            _ => {}
        },
        5 => match store.get(&key).unwrap() {
            Some(State::Held(lost) | State::Interrupted(lost)) => {
                let resolution = match dice.below(2) {
                    0 => Resolution::retry("to be tried again"),
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
    let soon = Duration::from_secs(dice.below(4) * 100);
    match dice.below(11) {
        0..3 => guard.complete("done").unwrap(),
        3 => guard.fail("for good").unwrap(),
        4 => guard.abort("nothing").unwrap(),
        5 => guard.abort(Abort::new("busy").retry_in(soon)).unwrap(),
        6 => drop(guard.detach(soon + Duration::from_secs(1)).unwrap()),
        7 => kept.push(guard),
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
        // Leases and delays pass.
        sim.advance(Duration::from_secs(dice.below(3) * 50));
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
    let lives = if std::env::var_os("ONLYONCE_LONG").is_some() { 200 } else { 16 };
    for seed in 0..lives {
        let mask =
            [None, None, Some((0, u64::MAX)), Some((0, 0))][usize::try_from(seed % 4).unwrap()];
        live(seed, mask);
    }
}

/// Many completed keys, and five that are open: two interrupted, two held, one in progress.
fn five_among(sim: &Sim, filler: u64) -> (Store, ClaimGuard) {
    let builder = || Store::builder().segment_bytes(64 << 10).index_memory_max(64 * 500).map(false);
    let store = sim.open_with(builder()).unwrap();
    let acquired = |name: &'static str| match store
        .claim(Operation::new(name).on_interrupted(OnInterrupted::Hold))
        .unwrap()
    {
        Claim::Acquired(guard) => guard,
        other => panic!("{other}"),
    };
    for n in 0..filler {
        if n == filler / 3 {
            drop(acquired("b"));
            sim.advance(Duration::from_secs(1));
            drop(acquired("a"));
            sim.advance(Duration::from_secs(1));
            drop(store.claim("d").unwrap());
            let Claim::Interrupted(lost) = store.claim("d").unwrap() else { panic!() };
            lost.hold("held by a test").unwrap();
            sim.advance(Duration::from_secs(1));
            drop(store.claim("c").unwrap());
        }
        let op = Operation::new(n).durability(Durability::Flush);
        assert!(store.mark(op).unwrap().is_first());
        while n % 100 == 0 && store.step().unwrap() == Duration::ZERO {}
    }
    store.close(Duration::ZERO).unwrap();
    drop(store);
    let store = sim.open_with(builder()).unwrap();
    sim.advance(Duration::from_secs(1));
    let Claim::Acquired(last) = store.claim("e").unwrap() else { panic!() };
    (store, last)
}

fn reads(sim: &Sim, work: impl FnOnce()) -> usize {
    sim.calls_of(work).iter().filter(|(class, _)| class == "Read").count()
}

/// The walk used to read each key of the store, and a sample missed them.
#[test]
fn five_open_keys_are_listed_and_counted_by_few_reads_in_a_store_of_any_size() {
    let counts = [600, 6000].map(|filler| {
        let sim = Sim::new(1);
        let (store, _last) = five_among(&sim, filler);
        let opened = reads(&sim, || {
            assert_eq!((store.stats().interrupted, store.stats().held), (3, 1));
        });
        assert_eq!(opened, 0, "stats reads no disk");
        let estimate = store.estimate().unwrap();
        assert_eq!((estimate.open, estimate.held), (4, 1));
        let names = |found: Vec<(SystemTime, String)>| -> String {
            found.into_iter().map(|(_, name)| name).collect()
        };
        let listed = reads(&sim, || assert_eq!(names(page(&store, None, 10).0), "badce"));
        let unsorted = reads(&sim, || assert_eq!(store.iter().in_states(&OPEN).count(), 5));
        let all = reads(&sim, || assert_eq!(store.iter().count() as u64, filler + 5));
        assert!(all as u64 > filler, "{all}");
        assert!(listed <= 5 * 4 && unsorted <= 5 * 4, "{listed}, {unsorted}");
        (listed, unsorted)
    });
    assert_eq!(counts[0], counts[1]);
}

/// All open keys were read, whatever state was asked for.
#[test]
fn keys_of_one_state_are_listed_without_reading_those_of_the_others() {
    let sim = Sim::small(1);
    let store = open(&sim, 1000);
    for n in 0..200_u64 {
        drop(store.claim(("interrupted", n)).unwrap());
    }
    for n in 0..2_u64 {
        let Claim::Acquired(claim) = store.claim(("held", n)).unwrap() else { panic!() };
        claim.hold("a person decides").unwrap();
    }
    let Claim::Acquired(claim) = store.claim("delayed").unwrap() else { panic!() };
    claim.abort(Abort::new("busy").retry_in(Duration::from_secs(600))).unwrap();
    let Claim::Acquired(claim) = store.claim("detached").unwrap() else { panic!() };
    claim.detach(Duration::from_secs(600)).unwrap();
    store.close(Duration::ZERO).unwrap();
    drop(store);
    let store = open(&sim, 1000);
    let many = [
        (StateKind::Held, 2),
        (StateKind::Delayed, 1),
        (StateKind::Detached, 1),
        (StateKind::Interrupted, 200),
    ];
    for (state, count) in many {
        let read = reads(&sim, || assert_eq!(store.iter().in_states(&[state]).count(), count));
        assert!(state == StateKind::Interrupted || read <= 4 * count, "{state:?}: {read} reads");
    }
}

/// Pages of any size, each read by another request, after a crash, and while keys change.
#[test]
fn pages_of_the_oldest_keys_follow_each_other() {
    let sim = Sim::small(3);
    let mut dice = Dice(7);
    let store = open(&sim, 8);
    for n in 0..60_u64 {
        drop(store.claim(format!("job-{:06}-{n}", dice.below(1_000_000))).unwrap());
        if dice.below(3) == 0 {
            sim.advance(Duration::from_millis(dice.below(5000)));
        }
        work(&store).unwrap();
    }
    let (all, _) = page(&store, None, 1000);
    assert!(all.len() == 60 && all.is_sorted());
    for most in [1, 7, 59, 60, 61] {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let (more, next) = page(&store, cursor.as_deref(), most);
            let is_last = more.len() < most;
            found.extend(more);
            if is_last {
                assert_eq!(next, found.last().map(|_| next.clone().unwrap()), "it stays");
                break;
            }
            cursor = next;
        }
        assert_eq!(found, all, "{most} a page");
    }
    // Between two pages the store is killed, and keys before and after the cursor end or begin anew.
    let (first, cursor) = page(&store, None, 20);
    assert_eq!(first, all[..20]);
    sim.kill();
    drop(store);
    let store = open(&sim, 8);
    sim.advance(Duration::from_secs(1));
    let key = |at: usize| all[at].1.parse::<Key<'static>>().unwrap();
    let over = |at: usize| match store.claim(key(at)).unwrap() {
        Claim::Interrupted(lost) => lost.take_over().unwrap(),
        other => panic!("{other}"),
    };
    over(3).complete("done").unwrap();
    over(30).complete("done").unwrap();
    drop(over(5));
    drop(over(40));
    let (second, _) = page(&store, cursor.as_deref(), 1000);
    let names: Vec<_> = second.iter().map(|(_, name)| name.clone()).collect();
    let stayed = (20..60).filter(|at| ![30, 40].contains(at));
    let mut expected: Vec<_> = stayed.map(|at| all[at].1.clone()).collect();
    expected.sort();
    // Those that began anew have moved to the end.
    let mut last: Vec<_> = names[38..].to_vec();
    last.sort();
    let mut anew = [all[5].1.clone(), all[40].1.clone()];
    anew.sort();
    assert_eq!(last, anew);
    let mut before = names[..38].to_vec();
    before.sort();
    assert_eq!(before, expected);
}

/// In the order of age, a walk over all keys shows outcomes by the time at which they were recorded.
#[test]
fn a_walk_over_all_keys_can_be_sorted_by_age_too() {
    let sim = Sim::small(3);
    let store = open(&sim, 8);
    for n in [3, 1, 2_u64] {
        let Claim::Acquired(claim) = store.claim(n).unwrap() else { panic!() };
        sim.advance(Duration::from_secs(1));
        claim.complete("done").unwrap();
        work(&store).unwrap();
    }
    let shown = |walk: onlyonce::admin::Iter| -> Vec<String> {
        walk.map(|entry| entry.unwrap().0.to_string()).collect()
    };
    let mut walk = store.iter().oldest_first();
    assert!(walk.next().is_some());
    let cursor = walk.cursor().unwrap().clone();
    assert_eq!(shown(walk), ["1", "2"]);
    assert_eq!(shown(store.iter().after(&cursor).prefix(2)), ["2"]);
    assert_eq!(store.iter().cursor(), None);
    store.close(Duration::ZERO).unwrap();
    assert_eq!(store.iter().oldest_first().filter_map(Result::err).count(), 1);
}

/// A record that can't be read hides whether its key is open, or what of it. The walk reports that after all other keys.
#[test]
fn a_walk_of_open_keys_reports_a_damaged_record_and_shows_the_others() {
    let sim = Sim::small(3);
    let store = open(&sim, 8);
    for n in 0..5_u64 {
        drop(store.claim(format!("open-{n}-padding-so-that-it-is-found")).unwrap());
        sim.advance(Duration::from_secs(1));
    }
    store.close(Duration::ZERO).unwrap();
    drop(store);
    // Its newest record.
    let name = b"open-2-padding-so-that-it-is-found";
    let (path, at) = files(&sim, "log")
        .into_iter()
        .filter_map(|path| {
            let bytes = sim.read_file(&path).unwrap();
            let at = bytes.windows(name.len()).rposition(|window| window == name)?;
            Some((path, at as u64))
        })
        .max()
        .unwrap();
    sim.flip_byte(&path, at, 1).unwrap();
    let store = open(&sim, 8);
    let entries: Vec<_> = store.iter().in_states(&OPEN).oldest_first().collect();
    let found: Vec<_> = entries.iter().filter_map(|entry| entry.as_ref().ok()).collect();
    assert_eq!((entries.len(), found.len()), (5, 4));
    let error = entries.last().unwrap().as_ref().unwrap_err();
    assert_eq!(error.kind(), onlyonce::ErrorKind::Corrupt);
    assert_eq!(store.iter().in_states(&OPEN).filter(Result::is_err).count(), 1);
}
