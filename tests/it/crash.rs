//! Power lost, and the process killed, at every change of the disk: of work, and of the recovery after it.
//!
//! "Checked" means: reopened, every acknowledged operation is there and right at its level, no operation that was never
//! begun is there, no token comes twice, and a second reopen sees the same.

use crate::script::{
    Flush, Keys, Lazy, Ledger, Loss, Op, Sync, World, check_answers, greatest_token, is_of_index,
    look, stride, tiny,
};
use onlyonce::testing::{Sim, SimCrash};
use onlyonce::{Claim, Durability, ErrorKind, Operation, Result, State, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Default)]
pub(crate) struct Tried {
    points: u64,
    reopenings: u64,
    /// The machines met so far, with what was expected of them: hashes, for there are hundreds of thousands.
    seen: BTreeSet<u64>,
}

impl Tried {
    /// False for a machine with the same files as an earlier one of which the same was expected: a check answers alike.
    pub(crate) fn is_new(&mut self, sim: &Sim, expected: impl Hash) -> bool {
        let mut hasher = DefaultHasher::new();
        (sim.contents().unwrap(), expected).hash(&mut hasher);
        self.seen.insert(hasher.finish())
    }
}

fn is_long() -> bool {
    std::env::var_os("ONLYONCE_LONG").is_some()
}

/// Claims at all levels, with every ending.
fn endings() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    let mut ops = Vec::new();
    for (n, (claim, outcome)) in
        [(Sync, Sync), (Flush, Sync), (Lazy, Lazy), (Sync, Flush), (Lazy, Sync), (Flush, Lazy)]
            .into_iter()
            .enumerate()
    {
        let name = format!("k{n}");
        ops.push(Op::Claim(name.clone(), claim, outcome));
        ops.push(match n % 3 {
            0 => Op::Complete(name, format!("result {n}")),
            1 => Op::Fail(name, format!("failure {n}")),
            _ => Op::Abort(name),
        });
    }
    ops.extend([
        Op::Mark(key("m1"), Sync),
        Op::Mark(key("m2"), Lazy),
        Op::Claim(key("k2"), Flush, Flush),
        Op::Step,
        Op::Mark(key("m3"), Flush),
        Op::DropAsAbort(key("k2")),
        Op::Claim(key("k2"), Sync, Sync),
        Op::Renew(key("k2")),
        Op::Complete(key("k2"), key("at last")),
    ]);
    ops
}

/// Attempts that end without a record, and all ways to resolve them.
fn fates() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    vec![
        Op::Claim(key("a"), Sync, Sync),
        Op::Drop(key("a")),
        Op::TakeOver(key("a"), Flush),
        Op::Abort(key("a")),
        Op::TakeOver(key("a"), Sync),
        Op::Complete(key("a"), key("done")),
        Op::ClaimHold(key("h")),
        Op::Drop(key("h")),
        Op::ResolveRetry(key("h")),
        Op::Claim(key("h"), Lazy, Flush),
        Op::Lapse(key("h")),
        Op::NotApplied(key("h"), Lazy),
        Op::Stale(key("h")),
        Op::Abort(key("h")),
        Op::Claim(key("h"), Flush, Sync),
        Op::Drop(key("h")),
        Op::Hold(key("h")),
        Op::Resolve(key("h"), key("paid")),
        Op::Forget(key("h")),
        Op::Claim(key("h"), Sync, Sync),
        Op::Lapse(key("h")),
        Op::TakeOver(key("h"), Lazy),
        Op::Stale(key("h")),
        Op::Sync,
        Op::Complete(key("h"), key("again")),
        Op::Forget(key("a")),
    ]
}

/// Rolls with mixed levels: long keys fill a segment in four records.
fn rolls() -> Vec<Op> {
    let mut ops = Vec::new();
    for n in 1..=14_u32 {
        let level = [Lazy, Flush, Lazy, Sync, Flush][n as usize % 5];
        ops.push(Op::Mark(format!("#{n}"), level));
        if n % 5 == 2 {
            ops.extend([Op::Claim("c".to_owned(), Lazy, Flush), Op::Abort("c".to_owned())]);
        }
        if n % 6 == 5 {
            ops.push(Op::Step);
        }
    }
    ops
}

/// Clean closes, kills and power cuts in between.
fn openings() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    vec![
        Op::Mark(key("m1"), Flush),
        Op::Close,
        Op::Claim(key("a"), Flush, Sync),
        Op::Reopen,
        Op::TakeOver(key("a"), Sync),
        Op::Kill,
        Op::TakeOver(key("a"), Flush),
        Op::Complete(key("a"), key("done")),
        Op::Mark(key("m2"), Lazy),
        Op::PowerLoss,
        Op::Reopen,
        Op::Mark(key("m3"), Sync),
        Op::Mark(key("m4"), Flush),
        Op::Kill,
        Op::Step,
        Op::Claim(key("b"), Sync, Flush),
        Op::Step,
        Op::Complete(key("b"), key("done")),
        Op::Close,
        Op::Claim(key("c"), Sync, Sync),
    ]
}

/// Checkpoints of a few keys each, merges, a forget that hides an entry of a table, rotten tables, and closes.
pub(crate) fn tables() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    let marks = |from: u32, to: u32| {
        (from..to).map(|n| Op::Mark(format!("m{n}"), [Sync, Flush, Lazy][n as usize % 3]))
    };
    let mut ops = vec![
        Op::Claim(key("c"), Sync, Sync),
        Op::Claim(key("d"), Flush, Flush),
        Op::Complete(key("d"), key("done")),
        Op::Claim(key("e"), Sync, Sync),
        Op::Drop(key("e")),
    ];
    ops.extend(marks(0, 4));
    ops.push(Op::Rest);
    ops.extend([Op::Forget(key("m0")), Op::TakeOver(key("e"), Flush), Op::Forget(key("d"))]);
    ops.extend(marks(4, 7));
    ops.push(Op::Rest);
    ops.extend([Op::Look, Op::Abort(key("e")), Op::Complete(key("c"), key("late"))]);
    ops.extend(marks(7, 14));
    ops.extend([Op::Rest, Op::Rot, Op::Look, Op::Mark(key("m0"), Flush), Op::Rest]);
    ops.extend(marks(14, 16));
    ops.extend([Op::Close, Op::Look, Op::Rot, Op::Forget(key("m5"))]);
    ops.extend(marks(16, 21));
    ops.extend([Op::Kill, Op::Look]);
    ops.extend(marks(21, 23));
    ops.extend([Op::Rest, Op::Look]);
    ops
}

/// Segments that are removed: live records move, claims in flight among them, and dead ones stay dead.
pub(crate) fn compactions() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    let marks = |from: u32, to: u32| {
        (from..to).map(|n| Op::Mark(format!("#{n}"), [Lazy, Flush, Sync][n as usize % 3]))
    };
    let forgets = |from: u32, to: u32| (from..to).map(|n| Op::Forget(format!("#{n}")));
    let mut ops = vec![
        Op::Claim(key("c"), Sync, Sync),
        Op::Mark(key("m"), Sync),
        Op::Claim(key("i"), Flush, Flush),
        Op::Drop(key("i")),
        Op::Mark(key("f"), Sync),
        Op::Forget(key("f")),
    ];
    ops.extend(marks(1, 5));
    ops.extend(forgets(1, 3));
    ops.extend([Op::Step, Op::Compact(u64::MAX), Op::Look]);
    ops.extend(marks(5, 10));
    ops.extend(forgets(5, 9));
    ops.extend([Op::Rest, Op::TakeOver(key("i"), Sync), Op::Forget(key("m")), Op::Rest, Op::Look]);
    ops.extend([Op::Complete(key("c"), key("moved")), Op::Compact(2000), Op::Abort(key("i"))]);
    ops.extend(marks(10, 12));
    ops.extend([Op::Kill, Op::Forget(key("#10")), Op::Compact(u64::MAX), Op::Rot, Op::Look]);
    ops.extend([Op::Mark(key("f"), Flush), Op::Forget(key("c")), Op::Rest]);
    ops.extend([Op::Close, Op::Compact(u64::MAX), Op::Look]);
    ops
}

/// Keys that are remembered after they left the log: their files are written, merged, and removed when all their memories
/// have passed. Some keys are forgotten and marked again meanwhile. Between them the index is merged and rebuilt.
pub(crate) fn memories() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    let remember = |n: u32| Op::Remember(format!("r{n}"), [Sync, Flush, Lazy][n as usize % 3]);
    let mut ops = vec![Op::Claim(key("c"), Sync, Sync), Op::Mark(key("m"), Flush)];
    ops.extend((0..4).map(remember));
    ops.extend([Op::Hours(2), Op::Compact(u64::MAX), Op::Look]);
    // In addition to the file of four, and then two of one.
    ops.extend([remember(4), Op::Forget(key("r0")), Op::Hours(2), Op::Compact(u64::MAX), Op::Look]);
    ops.extend([remember(5), remember(6), Op::Mark(key("r0"), Flush), Op::Rest, Op::Hours(2)]);
    ops.extend([
        Op::Compact(1),
        Op::Compact(u64::MAX),
        Op::Verify,
        Op::Forget(key("r5")),
        Op::Forget(key("r0")),
    ]);
    ops.extend([remember(7), remember(8), Op::Hours(2), Op::Compact(0)]);
    ops.extend([Op::Complete(key("c"), key("late")), Op::Kill]);
    ops.extend([Op::Compact(u64::MAX), Op::Look]);
    // The first four have passed, except for later records of them.
    ops.extend([Op::Close, Op::Hours(2), remember(9), Op::Forget(key("m")), Op::Hours(2)]);
    ops.extend([Op::Compact(u64::MAX), remember(1), Op::MergeIndex, Op::Look, Op::Rebuild]);
    ops.extend([Op::Mark(key("n"), Lazy), Op::MergeIndex, Op::Hours(2), Op::Compact(u64::MAX)]);
    ops.extend([Op::Mark(key("r4"), Sync), Op::Hours(10), Op::Compact(u64::MAX), remember(2)]);
    ops.extend([Op::Look, Op::Hours(2), Op::Look]);
    ops
}

/// Claims that are handed over, revoked, questioned, and say how far they came; outcomes without a claim.
fn hand_overs() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    vec![
        Op::Claim(key("p"), Sync, Sync),
        Op::Progress(key("p"), key("a third")),
        Op::Progress(key("p"), key("half")),
        Op::Record(key("r1"), key("seen elsewhere"), Flush),
        Op::Revoke(key("p")),
        Op::Stale(key("p")),
        Op::Ask(key("p")),
        Op::TakeOver(key("p"), Sync),
        Op::Progress(key("p"), key("two thirds")),
        Op::Detach(key("p"), 5),
        Op::Claim(key("d"), Sync, Flush),
        Op::Detach(key("d"), 3),
        Op::Record(key("r2"), key("late"), Sync),
        Op::Attach(key("d")),
        Op::RenewDetached(key("d"), 7),
        Op::Kill,
        Op::Attach(key("d")),
        Op::Hours(4),
        Op::Mark(key("m"), Lazy),
        Op::Reopen,
        Op::Attach(key("p")),
        Op::Complete(key("p"), key("by its ticket")),
        Op::Hours(4),
        Op::Ask(key("d")),
        Op::TakeOver(key("d"), Flush),
        Op::Park(key("d")),
        Op::Record(key("r3"), key("unsynced"), Lazy),
        Op::Resolve(key("d"), key("approved")),
    ]
}

/// Batches: of one kind and mixed, within a segment and over several, at one level and at many.
fn batches() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    let marks =
        |from: u32, to: u32, level| (from..to).map(move |n| Op::Mark(format!("#{n}"), level));
    let claims = |names: &[&str], level| -> Vec<Op> {
        names.iter().map(|name| Op::Claim((*name).to_owned(), level, Sync)).collect()
    };
    vec![
        Op::Batch(claims(&["a", "b", "c"], Sync)),
        Op::Batch(vec![
            Op::Complete(key("a"), key("done")),
            Op::Abort(key("b")),
            Op::Mark(key("m1"), Sync),
        ]),
        Op::Batch(marks(1, 7, Flush).collect()),
        Op::Drop(key("c")),
        Op::Batch(vec![
            Op::TakeOver(key("c"), Sync),
            // The same key twice: aborted above, claimed now.
            Op::Claim(key("b"), Sync, Sync),
            Op::Forget(key("m1")),
            Op::Mark(key("m1"), Lazy),
            Op::Forget(key("m1")),
            Op::Mark(key("m1"), Sync),
        ]),
        Op::Step,
        Op::Batch(marks(7, 10, Lazy).chain(marks(10, 12, Sync)).collect()),
        Op::Batch(vec![
            Op::Complete(key("c"), key("late")),
            Op::Complete(key("b"), key("again")),
            Op::Forget(key("a")),
        ]),
        Op::Kill,
        Op::Batch(vec![
            Op::Forget(key("#1")),
            Op::Forget(key("#2")),
            Op::Claim(key("#1"), Flush, Sync),
        ]),
    ]
}

pub(crate) fn workloads() -> [(&'static str, Vec<Op>); 9] {
    [
        ("hand-overs", hand_overs()),
        ("batches", batches()),
        ("endings", endings()),
        ("fates", fates()),
        ("rolls", rolls()),
        ("openings", openings()),
        ("tables", tables()),
        ("compactions", compactions()),
        ("memories", memories()),
    ]
}

/// Runs `ops` from an empty disk until power is lost at change number `cut`. `None`: it never was.
pub(crate) fn run_until(ops: &[Op], cut: u64) -> Option<(Sim, Ledger)> {
    let sim = Sim::small(7);
    let mut world = World::new(&sim);
    world.cut_power_at(cut);
    let run = world.run(ops);
    let was_cut = sim.power_is_cut();
    // Under a cut, it doesn't matter whether a call failed or continued without noticing: the ledger knows.
    assert!(was_cut || run.is_ok(), "{run:?}");
    let ledger = world.forget();
    was_cut.then_some((sim, ledger))
}

/// Opens, checks, and does something new; the first two must succeed unless power is lost again.
fn recover(sim: &Sim, ledger: &mut Ledger, context: &str) -> Result<(Store, Keys)> {
    let store = sim.open_with(tiny())?;
    let mut keys = look(&store)?;
    keys.remove("probe");
    ledger.saw(greatest_token(&store));
    if let Claim::Acquired(guard) = store.claim("probe")? {
        let (token, greatest) = (guard.token().get(), ledger.token);
        assert!(token > greatest, "{context}: token {token} after {greatest}");
        ledger.saw(guard.token().get());
        guard.complete("probed")?;
    }
    Ok((store, keys))
}

/// The whole check of one machine after its crash.
fn check(sim: &Sim, ledger: &Ledger, loss: Loss, context: &str, tried: &mut Tried) {
    let mut ledger = ledger.clone();
    let (store, keys) =
        recover(sim, &mut ledger, context).unwrap_or_else(|e| panic!("{context}: {e:?}"));
    assert!(
        ledger.position(&keys, loss).is_some(),
        "{context}: found {keys:?}\nwhich is not {}",
        ledger.describe(loss)
    );
    let opening = store.stats().opening;
    assert!(opening.cut.is_none_or(|cut| cut.bytes() > 0), "{context}");
    // A listed table that isn't whole would be rebuilt, hiding that the crash had taken it.
    let mended = store.stats().tables_mended;
    assert!(mended == 0 || ledger.has_rotted, "{context}: {mended} tables were not whole");
    sim.power_loss();
    drop(store);
    let (store, again) =
        recover(sim, &mut ledger, context).unwrap_or_else(|e| panic!("{context}, again: {e:?}"));
    let probed =
        matches!(store.get("probe"), Ok(Some(State::Completed(_) | State::Interrupted(_))));
    assert!(probed, "{context}: the probe was synced");
    assert_eq!(again, keys, "{context}: a second reopen sees other keys");
    drop(store);
    tried.reopenings += 2;
}

/// The files of expired keys that existed at some crash point, with the hours in which each was there first and last.
#[derive(Default)]
struct ExpiredFiles {
    seen: BTreeMap<PathBuf, (u64, u64)>,
    left: usize,
}

impl ExpiredFiles {
    fn see(&mut self, sim: &Sim, hour: u64) {
        let paths = sim.files().into_iter().map(|(path, _)| path);
        let paths: Vec<_> = paths.filter(|path| path.starts_with("/store/expired")).collect();
        self.left = paths.len();
        for path in paths {
            self.seen.entry(path).or_insert((hour, hour)).1 = hour;
        }
    }

    /// Those removed while their memories still counted, and those removed as a whole.
    fn counts(&self) -> (usize, usize) {
        let gone = self.seen.len() - self.left;
        let whole = self.seen.values().filter(|(first, last)| last - first >= 8).count();
        (gone.saturating_sub(whole), whole)
    }

    fn check(&self) {
        let (merged, whole) = self.counts();
        assert!(self.seen.len() >= 6 && merged >= 3 && whole >= 2, "{self:?}: {:?}", self.seen);
    }
}

impl std::fmt::Debug for ExpiredFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (merged, whole) = self.counts();
        let written = self.seen.len();
        write!(f, "{written} files of expired keys, {merged} merged, {whole} removed as a whole")
    }
}

#[test]
fn power_lost_at_any_change_loses_nothing_synced() {
    let (mut tried, mut expired) = (Tried::default(), ExpiredFiles::default());
    for (name, ops) in workloads() {
        for cut in 0.. {
            let Some((sim, ledger)) = run_until(&ops, cut) else { break };
            tried.points += 1;
            expired.see(&sim, ledger.hour);
            // By default every sixth way, another sixth at each point.
            let (seeds, stride) = if is_long() { (24, 1) } else { (6, 6) };
            let first = usize::try_from(cut).unwrap() % stride;
            let crashes = sim.crashes(seeds).into_iter().skip(first).step_by(stride);
            for crash in crashes {
                let machine = sim.after(crash);
                if !tried.is_new(&machine, &ledger) {
                    continue;
                }
                let context = format!("{name}, cut at change {cut}, {crash:?}");
                check(&machine, &ledger, Loss::Power, &context, &mut tried);
            }
        }
    }
    println!("power: {} crash points, {} reopenings; {expired:?}", tried.points, tried.reopenings);
    assert!(tried.reopenings > 1000);
    expired.check();
}

#[test]
fn a_kill_at_any_change_loses_nothing_flushed() {
    let mut tried = Tried::default();
    for (name, ops) in workloads() {
        for cut in 0.. {
            let Some((sim, ledger)) = run_until(&ops, cut) else { break };
            tried.points += 1;
            let context = format!("{name}, killed at change {cut}");
            check(&sim.copy(), &ledger, Loss::Kill, &context, &mut tried);
        }
    }
    println!("kill: {} crash points, {} reopenings", tried.points, tried.reopenings);
    assert!(tried.points > 300);
}

/// The recovery from a crash at change `k` loses power at its change `j`, for all `(k, j)`; it must show again what it
/// showed before.
#[test]
fn power_lost_at_any_change_of_a_recovery_loses_nothing_more() {
    lose_power_in_recoveries(
        |name| !matches!(name, "tables" | "compactions" | "memories"),
        is_long(),
    );
}

/// The same where the recovery meets tables and moved records. Those workloads are long, so each of their points is
/// crashed in one way.
#[test]
fn power_lost_at_any_change_of_a_recovery_with_tables_loses_nothing_more() {
    lose_power_in_recoveries(|name| matches!(name, "tables" | "compactions" | "memories"), false);
}

fn lose_power_in_recoveries(is_meant: impl Fn(&str) -> bool, in_all_ways: bool) {
    let mut tried = Tried::default();
    for (name, ops) in workloads().into_iter().filter(|(name, _)| is_meant(name)) {
        let stride = stride(2, 5);
        for cut in (0..).step_by(stride) {
            let Some((sim, ledger)) = run_until(&ops, cut) else { break };
            let crash = [SimCrash::ALL, SimCrash::seeded(cut), SimCrash::NONE][cut as usize % 3];
            if in_all_ways && !tried.is_new(&sim.after(crash), &ledger) {
                continue;
            }
            for again in 0.. {
                let machine = sim.after(crash);
                machine.cut_power_at(again);
                let mut ledger = ledger.clone();
                let context = format!("{name}, cut at change {cut} and {again} of the recovery");
                let shown = recover(&machine, &mut ledger, &context);
                if !machine.power_is_cut() {
                    break;
                }
                tried.points += 1;
                let shown = shown.map(|(store, keys)| {
                    drop(store);
                    keys
                });
                let thirds = if in_all_ways {
                    machine.crashes(2)
                } else {
                    let ways = [SimCrash::NONE, SimCrash::ALL, SimCrash::seeded(again)];
                    vec![ways[(cut / stride as u64 + again) as usize % 3]]
                };
                for third in thirds {
                    let machine = machine.after(third);
                    if tried.is_new(&machine, (&ledger, shown.as_ref().ok())) {
                        let context = format!("{context}, {third:?}");
                        check_shown(&machine, &ledger, &shown, &context, &mut tried);
                    }
                }
            }
        }
    }
    println!("recovery: {} crash points, {} reopenings", tried.points, tried.reopenings);
    assert!(tried.points > 300 && tried.reopenings > 1000);
}

fn check_shown(sim: &Sim, ledger: &Ledger, shown: &Result<Keys>, context: &str, tried: &mut Tried) {
    if let Ok(shown) = shown {
        let machine = sim.copy();
        let store = machine.open_with(tiny()).unwrap_or_else(|e| panic!("{context}: {e:?}"));
        let mut found = look(&store).unwrap();
        found.remove("probe");
        assert_eq!(found, *shown, "{context}: the interrupted recovery had shown other keys");
        tried.reopenings += 1;
    }
    check(sim, ledger, Loss::Power, context, tried);
}

/// The page cache lies: a sync fails once, the bytes it should have written count as clean, later syncs succeed. The
/// batch gets Indeterminate, and nothing acknowledged is lost to a reopen in the same boot, with the cache still warm or
/// evicted, nor to a power cut after it.
#[test]
fn a_sync_that_fails_once_poisons_and_loses_nothing() {
    let mut tried = Tried::default();
    for (name, ops) in workloads() {
        for lie in 0.. {
            let sim = Sim::small(7);
            sim.lie_at_sync(lie);
            let mut world = World::new(&sim);
            let Err(failed) = world.run(&ops) else { break };
            tried.points += 1;
            let context = format!("{name}, sync {lie} lies ({})", failed.message);
            assert!(
                matches!(
                    failed.kind,
                    ErrorKind::Indeterminate | ErrorKind::Poisoned | ErrorKind::Io
                ) || is_of_index(failed.path.as_deref()),
                "{context}: {failed:?}"
            );
            assert!(failed.path.is_some(), "{context}");
            if let Some(store) = &world.store {
                // Durable records are still answered; nothing is granted.
                check_answers(store, &world.ledger, &context);
                let refused = store.claim("another").unwrap_err();
                let rotten = is_of_index(refused.path());
                assert!(rotten || refused.kind() == ErrorKind::Poisoned, "{context}: {refused:?}");
            }
            let killed = sim.copy();
            let cold = sim.copy();
            cold.evict_lost();
            let dark = sim.after(SimCrash::NONE);
            let ledger = world.forget();
            check(&killed, &ledger, Loss::Kill, &format!("{context}, warm"), &mut tried);
            check(&cold, &ledger, Loss::Power, &format!("{context}, cold"), &mut tried);
            check(&dark, &ledger, Loss::Power, &format!("{context}, power cut"), &mut tried);
        }
    }
    println!("lying syncs: {} fault points, {} reopenings", tried.points, tried.reopenings);
    assert!(tried.points > 60);
}

/// The output of a killed process: nothing else records it.
#[derive(Default)]
struct Record {
    keys: BTreeMap<String, Said>,
    tokens: BTreeSet<u64>,
    /// The greatest of the rounds before this one.
    greatest: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Said {
    Claims,
    Claimed,
    Completes,
    Completed,
}

impl Record {
    fn take(&mut self, line: &str) {
        let mut words = line.split(' ');
        let said = match words.next() {
            Some("claims") => Said::Claims,
            Some("claimed") => Said::Claimed,
            Some("completes") => Said::Completes,
            Some("completed") => Said::Completed,
            _ => return,
        };
        let key = words.next().unwrap();
        if let Some(token) = words.next() {
            let token = token.parse().unwrap();
            assert!(token > self.greatest, "{key}: token {token} after {}", self.greatest);
            assert!(self.tokens.insert(token), "{key}: token {token} twice");
        }
        self.keys.insert(key.to_owned(), said);
    }

    fn end_round(&mut self) {
        self.greatest = self.tokens.last().copied().unwrap_or(0);
    }

    fn check(&self, store: &Store) {
        let mut found = BTreeMap::new();
        for entry in store.iter() {
            let (key, state) = entry.unwrap();
            found.insert(key.to_string(), state);
        }
        for (key, said) in &self.keys {
            let state = found.remove(key);
            let is_done = matches!(&state, Some(State::Completed(done)) if done.result()[..] == *key.as_bytes());
            let is_open = matches!(state, Some(State::Interrupted(_)));
            let fits = match said {
                Said::Claims => state.is_none() || is_open,
                Said::Claimed => is_open,
                Said::Completes => is_open || is_done,
                Said::Completed => is_done,
            };
            assert!(fits, "{key}: said {said:?}, found {state:?}");
        }
        assert!(found.is_empty(), "never begun: {found:?}");
    }
}

/// Real processes, killed at random moments of work and of recovery; the other end of a pipe keeps the record.
#[test]
fn killed_processes_lose_nothing_they_acknowledged() {
    let rounds = if is_long() { 250 } else { 30 };
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut lot = seed.subsec_nanos();
    let mut below = |bound: u32| {
        lot = lot.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (lot >> 8) % bound
    };
    let mut record = Record::default();
    let mut opening_kills = 0;
    for round in 0..rounds {
        let mut process = crate::child::child(&format!("pairs:{round}"), &keys).spawn().unwrap();
        let stdout = process.stdout.take().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let lines: Vec<String> = BufReader::new(stdout)
                .lines()
                .map_while(std::result::Result::ok)
                .inspect(|line| {
                    let _ = tell.send(line.ends_with("opening"));
                })
                .collect();
            lines
        });
        while !told.recv_timeout(Duration::from_secs(60)).expect("it never opens") {}
        if round % 2 == 0 {
            // After this many lines: in the middle of its work.
            let lines = told.iter().take(1 + below(600) as usize).count();
            assert!(lines > 0, "it ends by itself");
        } else {
            // In its recovery, or soon after it.
            (0..below(4_000)).for_each(|_| std::thread::yield_now());
        }
        process.kill().unwrap();
        let end = process.wait().unwrap();
        assert!(!end.success());
        use std::os::unix::process::ExitStatusExt;
        let lines = reader.join().unwrap();
        assert_eq!(end.signal(), Some(9), "round {round}: {lines:?}");
        opening_kills += u32::from(!lines.iter().any(|line| line == "open"));
        lines.iter().for_each(|line| record.take(line));
        record.end_round();
        if round % 3 == 2 || round == rounds - 1 {
            record.check(&crate::child::small().open_or_create(&keys).unwrap());
        }
    }
    let (keys, done) = (record.keys.len(), record.keys.values());
    let done = done.filter(|said| **said == Said::Completed).count();
    println!(
        "kill -9: {rounds} rounds, {opening_kills} of them while opening, {keys} keys, {done} acknowledged"
    );
    assert!(done > 20);
}

/// The unsynced part of a large segment was copied into one as large as it took: beyond the largest that a manifest may
/// list, so no open accepted it any more. The current settings bound these segments like all others.
#[test]
fn an_unsynced_suffix_longer_than_a_segment_is_copied_into_several() {
    let sim = Sim::new(7);
    let key = |n: u64| format!("{n:0>200}");
    let store = sim.open_with(Store::builder()).unwrap();
    for n in 0..500 {
        let op = Operation::new(key(n)).durability(Durability::Flush);
        assert!(store.mark(op).unwrap().is_first());
    }
    sim.kill();
    drop(store);
    let builder = || Store::builder().segment_bytes(16 << 10).result_bytes_max(256);
    let before: Vec<_> = sim.files().into_iter().map(|(path, _)| path).collect();
    let check = |sim: &Sim, context: &str| {
        let store = sim.open_with(builder()).unwrap_or_else(|e| panic!("{context}: {e:?}"));
        assert!((0..500).all(|n| store.get(key(n)).unwrap().is_some()), "{context}");
        assert!(store.verify().unwrap().is_whole(), "{context}");
        store
    };
    let mut points = 0;
    for cut in 0.. {
        let machine = sim.copy();
        machine.cut_power_at(cut);
        let opened = machine.open_with(builder());
        drop(opened);
        if !machine.power_is_cut() {
            break;
        }
        points += 1;
        // The process died, and the machine's cache kept what it had written.
        for way in [SimCrash::ALL, SimCrash::NONE, SimCrash::seeded(cut)] {
            let crashed = machine.after(way);
            if way == SimCrash::ALL {
                drop(check(&crashed, &format!("cut at {cut}")));
            } else {
                drop(crashed.open_with(builder()).unwrap());
            }
        }
        drop(check(&machine.copy(), &format!("killed at {cut}")));
    }
    let store = check(&sim, "whole");
    let new = sim.files().into_iter().filter(|(path, _)| !before.contains(path));
    let new: Vec<_> =
        new.filter(|(path, _)| path.extension().is_some_and(|e| e == "log")).collect();
    println!("{points} crash points, {} new segments", new.len());
    assert!(new.len() > 3 && new.iter().all(|(_, bytes)| *bytes < 64 << 10), "{new:?}");
    for n in 500..600 {
        assert!(store.mark(key(n)).unwrap().is_first());
    }
    sim.power_loss();
    let store = check(&sim, "later");
    assert!((500..600).all(|n| store.get(key(n)).unwrap().is_some()));
}
