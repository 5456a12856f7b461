//! Bit rot, and files that were cut, emptied, removed or exchanged: in log, manifest, tables and files of expired keys,
//! after a clean close and after a kill.
//!
//! Never a wrong answer, never a completed key that looks absent, never a panic. A refusal names the file and the byte.

use crate::script::{Flush, Found, Keys, Lazy, Ledger, Op, Sync, World, look, stride, tiny};
use onlyonce::testing::Sim;
use onlyonce::{Claim, Error, ErrorKind};
use std::path::{Path, PathBuf};

/// Every kind of record, in one segment.
fn one_segment() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    vec![
        Op::Claim(key("a"), Sync, Sync),
        Op::Complete(key("a"), key("result")),
        Op::ClaimHold(key("p")),
        Op::Claim(key("h"), Sync, Sync),
        Op::Drop(key("h")),
        Op::Hold(key("h")),
        Op::Claim(key("f"), Flush, Lazy),
        Op::Fail(key("f"), key("failure")),
        Op::Mark(key("m"), Sync),
        Op::Forget(key("m")),
        Op::Claim(key("b"), Sync, Sync),
        Op::Abort(key("b")),
        Op::Claim(key("i"), Sync, Sync),
        Op::Drop(key("i")),
        Op::TakeOver(key("i"), Sync),
    ]
}

/// The same with rolls.
fn segments() -> Vec<Op> {
    let mut ops = one_segment();
    ops.extend((1..=8).map(|n| Op::Mark(format!("#{n}"), [Sync, Flush][n % 2])));
    ops
}

/// Two files of expired keys, the second of them in the second half; one of the keys is forgotten.
fn memories() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    let mut ops = vec![Op::Claim(key("a"), Sync, Sync), Op::Complete(key("a"), key("result"))];
    ops.extend((0..4).map(|n| Op::Remember(format!("r{n}"), Sync)));
    ops.extend([Op::Hours(2), Op::Compact(u64::MAX), Op::Forget(key("r0"))]);
    ops.extend([Op::Mark(key("m"), Flush), Op::Remember(key("r4"), Sync), Op::Hours(2)]);
    ops.extend([Op::Compact(u64::MAX), Op::Mark(key("n"), Sync)]);
    ops
}

/// Records after the last watermark of a killed store.
fn tail() -> Vec<Op> {
    let key = |name: &str| name.to_owned();
    vec![
        Op::Mark(key("t1"), Flush),
        Op::Claim(key("t2"), Sync, Flush),
        Op::Complete(key("t2"), key("late")),
        Op::Mark(key("t3"), Flush),
    ]
}

/// A machine with a store on it, and the answers it must give.
struct Case {
    name: &'static str,
    sim: Sim,
    ledger: Ledger,
    /// This many changes are covered by a watermark.
    covered: usize,
    /// The same files earlier in the store's life.
    older: Vec<(PathBuf, Vec<u8>)>,
}

impl Case {
    fn closed(name: &'static str, ops: &[Op]) -> Self {
        let sim = Sim::small(7);
        let mut world = World::new(&sim);
        world.run(&ops[..ops.len() / 2]).unwrap();
        world.run(&[Op::Sync]).unwrap();
        let older = files(&sim);
        world.run(&ops[ops.len() / 2..]).unwrap();
        let ledger = world.forget();
        let covered = ledger.len();
        Case { name, sim: sim.copy(), ledger, covered, older }
    }

    fn killed(name: &'static str, ops: &[Op]) -> Self {
        let sim = Sim::small(7);
        let mut world = World::new(&sim);
        world.run(&ops[..ops.len() / 2]).unwrap();
        world.run(&[Op::Step]).unwrap();
        let older = files(&sim);
        world.run(&ops[ops.len() / 2..]).unwrap();
        world.run(&[Op::Step]).unwrap();
        let covered = world.ledger.len();
        world.run(&tail()).unwrap();
        let killed = sim.copy();
        Case { name, sim: killed, ledger: world.forget(), covered, older }
    }

    fn all() -> [Case; 6] {
        [
            Case::closed("closed", &one_segment()),
            Case::killed("killed", &one_segment()),
            Case::closed("closed after rolls", &segments()),
            Case::killed("killed after rolls", &segments()),
            Case::closed("closed with memories", &memories()),
            Case::killed("killed with memories", &memories()),
        ]
    }

    fn ops(&self) -> Vec<Op> {
        match self.name.split_whitespace().last() {
            Some("rolls") => segments(),
            Some("memories") => memories(),
            _ => one_segment(),
        }
    }

    fn is_closed(&self) -> bool {
        self.name.starts_with("closed")
    }
}

fn files(sim: &Sim) -> Vec<(PathBuf, Vec<u8>)> {
    let read = |path: PathBuf| {
        let bytes = sim.read_file(&path).unwrap();
        (path, bytes)
    };
    sim.files().into_iter().map(|(path, _)| read(path)).collect()
}

/// The result of an open and of reading everything.
enum Outcome {
    Refused(Error),
    /// `said`: damage was mended from the log, or found by reading everything.
    Found {
        keys: Keys,
        was_cut: bool,
        said: Vec<PathBuf>,
    },
}

fn open(sim: &Sim) -> Outcome {
    let store = match sim.open_existing(tiny(), false) {
        Ok(store) => store,
        Err(e) => return Outcome::Refused(e),
    };
    match look(&store) {
        Ok(keys) => {
            let stats = store.stats();
            let damages = store.verify().unwrap().damages;
            let mut said: Vec<_> =
                damages.iter().map(|e| e.path().unwrap().to_path_buf()).collect();
            said.extend((stats.tables_mended > 0).then(|| PathBuf::from("/store/index")));
            Outcome::Found { keys, was_cut: stats.opening.cut.is_some(), said }
        }
        Err(e) => {
            let damages = store.verify().unwrap().damages;
            let is_it = |damage: &Error| damage.path() == e.path();
            assert!(damages.iter().any(is_it), "not found by reading everything: {e:?}");
            Outcome::Refused(e)
        }
    }
}

/// Returns whether damage was noticed. Checks that it was reported rightly, and that no answer was wrong.
fn check(case: &Case, sim: &Sim, damaged: &Path, least: usize, context: &str) -> bool {
    let is_manifest = |path: &Path| path.ends_with("MANIFEST");
    match open(sim) {
        // A directory in place of a file that holds nothing yet: reported, and no loss.
        Outcome::Refused(e) if e.kind() == ErrorKind::Io && is_ahead(damaged) => {
            assert_eq!(e.path(), Some(damaged), "{context}: {e:?}");
            true
        }
        Outcome::Refused(e) => {
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{context}: {e:?}");
            assert!(e.path().is_some() && e.offset().is_some(), "{context}: {e:?}");
            assert!(e.to_string().contains(e.path().unwrap().to_str().unwrap()), "{context}: {e}");
            let named = e.path().unwrap();
            // A damaged list and a damaged file of it may each be reported as the other.
            assert!(
                named == damaged || is_manifest(damaged) || is_manifest(named),
                "{context}: {e:?}"
            );
            true
        }
        Outcome::Found { keys, was_cut, said } => {
            for path in &said {
                // An older manifest lists tables that have been merged since: they are mended, too.
                let is_it = path == damaged || damaged.starts_with(path) || is_manifest(damaged);
                assert!(is_it, "{context}: {} was blamed", path.display());
            }
            let found = case.ledger.position_from(&keys, least);
            assert!(found.is_some(), "{context}: {keys:?}");
            let is_all = keys == case.ledger.last();
            assert!(is_all || was_cut || least == 0, "{context}: an unreported cut");
            was_cut && !is_all || !said.is_empty()
        }
    }
}

/// Returns whether a file is an empty spare.
fn is_ahead(path: &Path) -> bool {
    path.ends_with("MANIFEST.next") || path.to_str().unwrap().contains("spare")
}

/// Bytes up to the last one that is not zero: a file is zeros from there on.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

#[test]
fn every_flipped_byte_is_noticed_or_harmless() {
    let (mut flips, mut seen) = (0_u64, 0_u64);
    for case in Case::all() {
        let is_larger = case.name.contains(' ');
        for (path, bytes) in files(&case.sim) {
            let used = used(&bytes);
            for at in 0..bytes.len() {
                // By default every byte in use of the smallest store, and a choice of the others. All of a file of
                // expired keys is in use; its entries are at the beginning of a page. The zeros behind are alike: a
                // seventh of them is enough for the long run.
                let is_dense = path.starts_with("/store/expired") && at % 4096 < 128;
                let stride = match at < used {
                    true if is_larger && !is_dense => stride(3, 23),
                    true => 1,
                    false => stride(7, 211),
                };
                if at % stride != 0 {
                    continue;
                }
                let context =
                    format!("{}, byte {at} of {} ({used} in use)", case.name, path.display());
                let mask = 1 << (at % 8);
                let is_index = path.starts_with("/store/index");
                // Damage to the index is mended, which changes it.
                let noticed = if case.is_closed() && !is_index {
                    // Opening and reading a closed store changes nothing, so it can be restored and used again.
                    case.sim.flip_byte(&path, at as u64, mask).unwrap();
                    let noticed = check(&case, &case.sim, &path, case.covered, &context);
                    case.sim.flip_byte(&path, at as u64, mask).unwrap();
                    assert!(noticed || at >= used || is_ahead(&path), "{context}: not seen");
                    noticed
                } else {
                    let machine = case.sim.copy();
                    machine.flip_byte(&path, at as u64, mask).unwrap();
                    let noticed = check(&case, &machine, &path, case.covered, &context);
                    assert!(noticed || !is_index || at >= used, "{context}: not seen");
                    noticed
                };
                flips += 1;
                seen += u64::from(noticed);
            }
        }
    }
    println!("flips: {flips} fault points and reopenings, {seen} seen");
    assert!(seen > 5000, "{seen}");
}

/// What can happen to a whole file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    CutTo(usize),
    Emptied,
    Grown,
    Deleted,
    Directory,
    Exchanged,
    Older,
    /// The contents of another file of this store, of the same kind.
    Neighbour,
    /// One page of zeros over other bytes.
    PageLost(usize),
}

fn damage(machine: &Sim, case: &Case, other: &Case, path: &Path, how: Damage) -> bool {
    let bytes = machine.read_file(path).unwrap();
    let set = |bytes: &[u8]| machine.write_file(path, bytes).unwrap();
    match how {
        Damage::CutTo(len) => set(&bytes[..len.min(bytes.len())]),
        Damage::Emptied => set(&[]),
        Damage::Grown => set(&[&bytes[..], &[0xa5; 4096]].concat()),
        Damage::Deleted => machine.remove(path).unwrap(),
        Damage::Directory => machine.replace_by_dir(path).unwrap(),
        Damage::Exchanged => match other.sim.read_file(path) {
            Ok(theirs) => set(&theirs),
            Err(_) => return false,
        },
        Damage::Older => match case.older.iter().find(|(older, _)| older == path) {
            Some((_, older)) if *older != bytes => set(older),
            _ => return false,
        },
        Damage::Neighbour => {
            let is_one = |other: &PathBuf| {
                other != path
                    && other.extension() == path.extension()
                    && other.parent() == path.parent()
            };
            let mut paths = machine.files().into_iter().map(|(other, _)| other);
            match paths.find(is_one) {
                Some(other) => set(&machine.read_file(other).unwrap()),
                None => return false,
            }
        }
        Damage::PageLost(page) => {
            let mut bytes = bytes;
            let Some(page) = bytes.get_mut(page * 4096..).filter(|rest| !rest.is_empty()) else {
                return false;
            };
            let len = page.len().min(4096);
            page[..len].fill(0);
            set(&bytes);
        }
    }
    true
}

/// Uses up the segments prepared ahead, rolls, closes, and finds everything again.
fn use_it(machine: &Sim, keys: &Keys, context: &str) {
    let store = machine.open_existing(tiny(), false).unwrap_or_else(|e| panic!("{context}: {e:?}"));
    for n in 0..14_u64 {
        let marked = store.mark(format!("new-{n:0>3900}"));
        let mark = marked.and_then(|mark| store.step().map(|_| mark));
        assert!(mark.unwrap_or_else(|e| panic!("{context}: {e:?}")).is_first());
    }
    drop(store);
    let store = machine.open_existing(tiny(), false).unwrap_or_else(|e| panic!("{context}: {e:?}"));
    let shown = keys.values().filter(|found| **found != Found::Expired).count();
    assert_eq!(store.iter().count(), shown + 14, "{context}");
}

#[test]
fn a_file_cut_emptied_deleted_or_exchanged_is_noticed_or_without_effect() {
    let (mut points, mut seen) = (0_u64, 0_u64);
    let others = Case::all().map(|case| {
        // Another store with the same history: other ids.
        let sim = Sim::small(8);
        let mut world = World::new(&sim);
        world.run(&case.ops()).unwrap();
        Case { sim: sim.copy(), ledger: world.forget(), ..case }
    });
    for (case, other) in Case::all().into_iter().zip(&others) {
        for (path, bytes) in files(&case.sim) {
            let used = used(&bytes);
            let mut ways = vec![
                Damage::Emptied,
                Damage::Grown,
                Damage::Deleted,
                Damage::Directory,
                Damage::Exchanged,
                Damage::Older,
                Damage::Neighbour,
            ];
            ways.extend((0..bytes.len() / 4096).map(Damage::PageLost));
            let cuts = [1, 39, 40, 95, 96, 500, 4095, 4096, used / 2, used.saturating_sub(1), used];
            ways.extend(
                cuts.into_iter()
                    .chain([used + 1, bytes.len().saturating_sub(1)])
                    .map(Damage::CutTo),
            );
            for how in ways {
                let context = format!("{}, {}: {how:?}", case.name, path.display());
                let machine = case.sim.copy();
                if !damage(&machine, &case, other, &path, how) {
                    continue;
                }
                points += 1;
                // Exempt: an older version of the segment in use, of a killed store.
                let is_segment = path.extension().is_some_and(|end| end == "log");
                let is_exempt = matches!(how, Damage::Older) && is_segment && !case.is_closed();
                let least = if is_exempt { 0 } else { case.covered };
                let looked = machine.copy();
                if check(&case, &looked, &path, least, &context) {
                    seen += 1;
                }
                if let Outcome::Found { keys, .. } = open(&looked) {
                    use_it(&machine, &keys, &context);
                }
            }
        }
    }
    println!("whole files: {points} fault points, {seen} seen");
    assert!(seen > 100, "{seen}");
}

/// The scrub reported it, and so did a lookup of the key's older record, to which the index pointed.
#[test]
fn a_damaged_newest_record_is_reported_once() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let Claim::Acquired(claim) = store.claim("pay-17").unwrap() else { panic!() };
    claim.complete("receipt-of-17").unwrap();
    assert!(store.mark("after").unwrap().is_first());
    let path = "/store/log/0000000001.log";
    let bytes = sim.read_file(path).unwrap();
    let at = bytes.windows(13).position(|window| window == b"receipt-of-17").unwrap();
    sim.flip_byte(path, at as u64, 1).unwrap();
    let found = store.verify().unwrap();
    assert_eq!(found.damages.len(), 1, "{:?}", found.damages);
    assert_eq!(found.damages[0].path(), Some(Path::new(path)));
    assert!(found.unread.is_empty(), "{:?}", found.unread);
}
