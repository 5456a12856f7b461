//! Fencing tokens: each open continues above all that the store issued before, and above the clock, so that a restored
//! copy issues tokens above those that its original issued meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use onlyonce::admin::AcceptLoss;
use onlyonce::testing::Sim;
use onlyonce::{Claim, ClaimGuard, Durability, ErrorKind, Policy, State, Store, StoreBuilder};

/// The first reading of the simulated clock, and the tokens of a millisecond.
const START_MILLIS: u64 = 1_767_225_600_000;
const A_MILLI: u64 = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);
const YEARS_MILLIS: i64 = 30 * 365 * 86_400_000;

fn builder() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10)
}

fn acquired(store: &Store, key: u64) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(guard) => guard,
        other => panic!("{other}"),
    }
}

/// Claims and completes `count` new keys; returns the tokens, which grow.
fn pairs(store: &Store, from: u64, count: u64) -> Vec<u64> {
    let mut tokens = Vec::new();
    for key in from..from + count {
        let guard = acquired(store, key);
        tokens.push(guard.token().get());
        guard.complete("done").unwrap();
    }
    assert!(tokens.is_sorted_by(|a, b| a < b));
    tokens
}

/// How a life ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Kill,
    PowerLoss,
}

/// One life: opens, does some pairs, ends.
fn live(sim: &Sim, from: u64, count: u64, end: End) -> Vec<u64> {
    let store = sim.open_with(builder()).unwrap();
    let quick = store.with_policy(Policy::new().durability(Durability::Flush));
    let tokens = pairs(&quick, from, count);
    match end {
        End::Close => drop(store.close(Duration::ZERO).unwrap()),
        End::Kill => sim.kill(),
        End::PowerLoss => sim.power_loss(),
    }
    tokens
}

/// A backup is a closed store, copied. Its clean end made it continue at the LSNs at which the original had continued,
/// and tokens were LSNs: a key was granted under a token that another claim held already.
#[test]
fn a_restored_copy_issues_tokens_above_those_of_its_original() {
    for backed_up in [End::Close, End::Kill, End::PowerLoss] {
        for lost in [End::Close, End::Kill, End::PowerLoss] {
            let original = Sim::new(1);
            live(&original, 0, 3, backed_up);
            let backup = original.copy();
            let mut newest = 0;
            // It continues, over rolls and opens, and is lost.
            for life in 1..4 {
                original.advance(Duration::from_millis(1));
                newest = *live(&original, 1000 * life, 40, lost).last().unwrap();
            }
            // Restored twice, in place and at another path; the restored one is backed up and restored, too.
            for again in 1..3 {
                let restored = backup.copy();
                restored.advance(Duration::from_millis(3 + again));
                let tokens = live(&restored, 9000, 40, lost);
                assert!(tokens[0] > newest, "{backed_up:?} {lost:?}: {} {newest}", tokens[0]);
                let copy = restored.copy();
                copy.advance(Duration::from_millis(1));
                let then = live(&copy, 99_000, 1, lost);
                assert!(then[0] > tokens[39], "{backed_up:?} {lost:?}: {} {}", then[0], tokens[39]);
                newest = tokens[39];
            }
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Until the clock shows another millisecond.
fn a_milli_passes() {
    let millis = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let began = millis();
    while millis() == began {
        std::thread::yield_now();
    }
}

/// The same with the files and clocks of the machine: in the original's place, and at another path.
#[test]
fn a_directory_copied_back_issues_tokens_above_those_of_the_replaced_one() {
    let dir = tempfile::tempdir().unwrap();
    let [path, backup, beside] = ["keys", "backup", "beside"].map(|name| dir.path().join(name));
    let open = |path: &Path| builder().open_or_create(path).unwrap();
    let store = open(&path);
    pairs(&store, 0, 1);
    store.close(Duration::ZERO).unwrap();
    drop(store);
    copy_dir(&path, &backup);
    let mut newest = 0;
    for restored in [&path, &path, &beside] {
        if newest > 0 {
            let _ = fs::remove_dir_all(restored);
            copy_dir(&backup, restored);
        }
        a_milli_passes();
        let store = open(restored);
        let tokens = pairs(&store, 100, 3);
        assert!(tokens[0] > newest, "{tokens:?} {newest}");
        newest = tokens[2];
        a_milli_passes();
    }
}

/// Without a clock a copy can't know what its original has issued. Each open takes a random step, so that the tokens of
/// two of them most probably differ.
#[test]
fn copies_with_a_clock_in_the_past_continue_at_different_tokens() {
    for end in [End::Close, End::Kill] {
        let original = Sim::new(2);
        let before = live(&original, 0, 3, end)[2];
        original.jump_wall_clock(-YEARS_MILLIS);
        let mut seen = BTreeSet::new();
        for _ in 0..50 {
            let copy = original.copy();
            let mut newest = before;
            for life in 0..3 {
                let tokens = live(&copy, 100 + 100 * life, 2, end);
                assert!(tokens[0] > newest, "{tokens:?} {newest}");
                // About a minute by the earlier clock.
                assert!(tokens[0] < newest + (1 << 36) + A_MILLI, "{tokens:?} {newest}");
                newest = tokens[1];
                assert!(tokens.into_iter().all(|token| seen.insert(token)), "{end:?}");
            }
        }
    }
}

/// Two copies that are opened in the same millisecond.
#[test]
fn copies_with_a_stopped_clock_continue_at_different_tokens() {
    for end in [End::Close, End::Kill] {
        let original = Sim::new(3);
        live(&original, 0, 1, end);
        original.advance(DAY);
        let first: BTreeSet<u64> = (0..20).map(|_| live(&original.copy(), 9, 1, end)[0]).collect();
        assert_eq!(first.len(), 20);
        let milli = (START_MILLIS + 86_400_000) * A_MILLI;
        assert!(first.iter().all(|token| (milli..milli + 2 * A_MILLI).contains(token)));
    }
}

/// Opens in faster succession than the ticks of the clock push tokens past it: by a millisecond each, at most. When the
/// clock ticks again, they wait for it.
#[test]
fn tokens_of_many_short_lives_stay_near_the_clock() {
    let lives = if std::env::var_os("ONLYONCE_LONG").is_some() { 4000 } else { 1000 };
    let sim = Sim::new(4);
    let mut newest = 0;
    let mut ahead_of_clock = |from: u64, millis_each: u64| {
        for life in 0..lives {
            sim.advance(Duration::from_millis(millis_each));
            let end = if life % 7 == 0 { End::Kill } else { End::Close };
            let token = live(&sim, from + life, 1, end)[0];
            assert!(token > newest, "{token} {newest}");
            newest = token;
        }
        (newest / A_MILLI).saturating_sub(START_MILLIS)
    };
    let standing = ahead_of_clock(0, 0);
    assert!(standing <= lives, "{standing} ms after {lives} lives in one");
    // By then it has caught up.
    let going = ahead_of_clock(lives, 2);
    assert!(going <= 2 * lives + 2, "{going} ms after as many with 2 ms each");
}

/// Past the hour at which a clock is taken for wrong, too: the step is larger then, and still bounded.
#[test]
fn tokens_follow_a_corrected_clock() {
    let sim = Sim::new(5);
    live(&sim, 0, 1, End::Close);
    sim.jump_wall_clock(-YEARS_MILLIS);
    let mut newest = 0;
    for life in 1..20 {
        newest = live(&sim, life, 1, End::Close)[0];
    }
    sim.jump_wall_clock(YEARS_MILLIS);
    sim.advance(DAY);
    let token = live(&sim, 99, 1, End::Close)[0];
    let milli = (START_MILLIS + 86_400_000) * A_MILLI;
    assert!(token > newest && (milli..milli + 2 * A_MILLI).contains(&token), "{token}");
}

fn token_of(store: &Store, key: u64) -> u64 {
    match store.get(key).unwrap() {
        Some(State::Interrupted(attempt) | State::InProgress(attempt)) => attempt.token().get(),
        Some(State::Completed(done)) => done.token().get(),
        other => panic!("{other:?}"),
    }
}

/// A record keeps its token wherever it is moved.
#[test]
fn a_token_is_unchanged_in_copies_and_after_repairs() {
    let sim = Sim::new(6);
    live(&sim, 0, 1, End::Close);
    sim.advance(DAY);
    let store = sim.open_with(builder()).unwrap();
    let guard = acquired(&store, 1);
    let first = guard.token().get();
    assert!(first >= (START_MILLIS + 86_400_000) * A_MILLI);
    assert_eq!(token_of(&store, 1), first);
    assert!(store.mark(2).unwrap().is_first());
    let marked = token_of(&store, 2);
    assert!(marked > first);
    sim.kill();
    drop((guard, store));
    let check = |what: &str| {
        let store = sim.open_with(builder()).unwrap();
        assert_eq!((token_of(&store, 1), token_of(&store, 2)), (first, marked), "{what}");
        store
    };
    // Copied by a recovery.
    drop(check("killed"));
    // Moved by compaction.
    let store = check("closed");
    pairs(&store, 100, 200);
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    drop(store);
    drop(check("compacted"));
    // Listed anew.
    sim.remove("/store/MANIFEST").unwrap();
    assert!(sim.repair(builder(), AcceptLoss::No).unwrap().is_repaired);
    let store = check("repaired");
    // The token distinguishes the owner presumed lost from the next.
    let Claim::Interrupted(lost) = store.claim(1).unwrap() else { panic!() };
    assert_eq!(lost.attempt().token().get(), first);
    assert!(lost.take_over().unwrap().token().get() > marked);
}

/// No manifest shows then how far tokens ran ahead of positions; the records do.
#[test]
fn a_repair_continues_above_all_tokens_whatever_the_clock_says() {
    for (end, damage) in [(End::Close, false), (End::Kill, false), (End::Close, true)] {
        for keeps_manifest in [false, true] {
            let sim = Sim::new(7);
            live(&sim, 0, 10, End::Close);
            sim.advance(10 * DAY);
            let newest = *live(&sim, 100, 10, end).last().unwrap();
            if !keeps_manifest {
                sim.remove("/store/MANIFEST").unwrap();
            }
            if damage {
                sim.flip_byte("/store/log/0000000001.log", 200, 1).unwrap();
            }
            sim.jump_wall_clock(-YEARS_MILLIS);
            let report = sim.repair(builder(), AcceptLoss::Yes).unwrap();
            assert!(report.is_repaired && report.is_loss == damage);
            let case = (end, damage, keeps_manifest);
            let mut before = newest;
            for life in 0..3 {
                let tokens = live(&sim, 1000 + life * 100, 3, End::Close);
                assert!(tokens[0] > before, "{case:?}: {tokens:?} {before}");
                before = tokens[2];
            }
        }
    }
}

/// A manifest was put back, of an open whose tokens were less far ahead. It lists the same segments, so only the records'
/// tokens show it.
#[test]
fn a_manifest_older_than_the_tokens_is_noticed_and_repaired() {
    let sim = Sim::new(8);
    live(&sim, 0, 1, End::Close);
    let store = sim.open_with(builder()).unwrap();
    pairs(&store, 1, 1);
    let older = sim.read_file("/store/MANIFEST").unwrap();
    store.close(Duration::ZERO).unwrap();
    drop(store);
    sim.advance(DAY);
    let newest = live(&sim, 10, 2, End::Kill)[1];
    sim.jump_wall_clock(-YEARS_MILLIS);
    sim.write_file("/store/MANIFEST", &older).unwrap();
    let error = sim.open_with(builder()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("the manifest is older than the log"), "{error}");
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_repaired && !report.is_loss && report.damages.len() == 1, "{report:?}");
    let token = live(&sim, 20, 1, End::Close)[0];
    assert!(token > newest, "{token} {newest}");
    assert!(sim.open_with(builder()).unwrap().verify().unwrap().damages.is_empty());
}
