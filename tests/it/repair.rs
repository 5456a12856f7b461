//! What `repair` saves of a store that lost a file or a few bytes, and what it reports.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::script::stride;
use onlyonce::admin::AcceptLoss;
use onlyonce::testing::{DiskFault, Sim, SimCrash};
use onlyonce::{Claim, ErrorKind, Operation, State, Store, StoreBuilder};

const KEPT: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn builder() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(256).index_memory_max(4096)
}

fn key(n: u64) -> String {
    format!("{n:0>200}")
}

/// Describes each key in one word.
type Keys = BTreeMap<String, String>;

fn word(state: &State) -> String {
    match state {
        State::Completed(done) => format!("completed {:?} by {}", done.result(), done.attempt()),
        State::Failed(_) => "failed".into(),
        State::Interrupted(a) | State::InProgress(a) => format!("interrupted {}", a.number()),
        State::Held(_) => "held".into(),
        State::Aborted(_) => "aborted".into(),
        State::Expired(_) => "expired".into(),
        _ => panic!("{state:?}"),
    }
}

fn look(store: &Store, among: &[String]) -> Keys {
    try_look(store, among).unwrap()
}

fn try_look(store: &Store, among: &[String]) -> onlyonce::Result<Keys> {
    let walk = || -> onlyonce::Result<Keys> {
        let found = store.iter().map(|entry| entry.map(|(key, s)| (key.to_string(), word(&s))));
        found.collect()
    };
    // A damaged bucket of the index is mended by the walk that meets it.
    let mut keys = walk().or_else(|_| walk())?;
    for key in among {
        let state = store.get(key.as_str())?;
        assert_eq!(keys.contains_key(key), state.as_ref().is_some_and(|s| word(s) != "expired"));
        keys.extend(state.map(|state| (key.clone(), word(&state))));
    }
    Ok(keys)
}

fn all_keys() -> Vec<String> {
    (0..200).map(key).collect()
}

/// A store over several segments and tables, with moved records and remembered keys, and the expected state of its keys.
fn work(closed: bool) -> (Sim, Keys) {
    let sim = Sim::small(5);
    let store = sim.open_with(builder()).unwrap();
    for n in 0..60 {
        let op = Operation::new(key(n)).retention(KEPT).remember_expired(YEAR);
        assert!(store.mark(op).unwrap().is_first());
    }
    sim.advance(2 * KEPT);
    for n in 60..120 {
        let Claim::Acquired(claim) = store.claim(key(n)).unwrap() else { panic!() };
        claim.complete(&[1; 50][..]).unwrap();
    }
    while !store.compact(u64::MAX).unwrap().is_complete() {}
    for n in 120..180 {
        let Claim::Acquired(claim) = store.claim(key(n)).unwrap() else { panic!() };
        match n % 4 {
            0 => claim.abort("nothing happened").unwrap(),
            1 => drop(claim),
            _ => claim.complete(&[2; 50][..]).unwrap(),
        }
    }
    assert!(store.forget(key(61)).unwrap());
    store.sync().unwrap();
    while store.step().unwrap() == Duration::ZERO {}
    sim.advance(Duration::from_secs(1));
    while store.step().unwrap() == Duration::ZERO {}
    let known = look(&store, &all_keys());
    assert_eq!(known.len(), 179);
    if closed {
        store.close(Duration::ZERO).unwrap();
    } else {
        sim.kill();
    }
    drop(store);
    (sim.copy(), known)
}

/// Keys that have expired and are remembered, in a file of their own or merged with those of smaller files.
fn remember(sim: &Sim, store: &Store, keys: std::ops::Range<u64>) {
    for n in keys {
        let op = Operation::new(n).retention(KEPT).remember_expired(YEAR);
        assert!(store.mark(op).unwrap().is_first());
    }
    sim.advance(2 * KEPT);
    while !store.compact(u64::MAX).unwrap().is_complete() {}
}

fn count_remembered(store: &Store, keys: std::ops::Range<u64>) -> usize {
    let is_expired = |n: &u64| matches!(store.get(*n).unwrap(), Some(State::Expired(_)));
    keys.filter(is_expired).count()
}

fn expired_files(sim: &Sim) -> Vec<PathBuf> {
    listed(sim).into_iter().filter(|path| path.starts_with("/store/expired")).collect()
}

fn listed(sim: &Sim) -> Vec<PathBuf> {
    let paths = sim.files().into_iter().map(|(path, _)| path);
    paths
        .filter(|path| {
            !path.to_str().unwrap().contains("spare") && !path.ends_with("MANIFEST.next")
        })
        .collect()
}

/// The states that a key may have after its newest record was lost.
fn is_older(was: Option<&String>, is: &str) -> bool {
    let Some(was) = was else { return true };
    match is {
        "interrupted 1" => was.starts_with("completed") || was == "aborted",
        _ => false,
    }
}

/// Repairs, opens and compares. Returns the losses as reported.
fn repair_and_compare(sim: &Sim, known: &Keys, damaged: &Path, context: &str) -> u64 {
    let before = sim.contents().unwrap();
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    if report.is_loss {
        assert!(!report.is_repaired && !report.damages.is_empty(), "{context}: {report:?}");
        assert_eq!(sim.contents().unwrap(), before, "{context}: changed without a word");
        let is_named = report.damages.iter().any(|e| e.path() == Some(damaged));
        assert!(is_named, "{context}: {report:?}");
    } else {
        assert!(report.is_repaired, "{context}: {report:?}");
    }
    let is_loss = report.is_loss;
    let report = sim.repair(builder(), AcceptLoss::Yes).unwrap();
    assert!(report.is_repaired, "{context}: {report:?}");
    let store = sim.open_existing(builder(), false).unwrap_or_else(|e| panic!("{context}: {e:?}"));
    let now = look(&store, &all_keys());
    let mut changed = 0;
    for key in known.keys().chain(now.keys()) {
        let (was, is) = (known.get(key), now.get(key));
        if was == is {
            continue;
        }
        changed += 1;
        assert!(is_loss, "{context}: {key} was {was:?} and is {is:?}, and nothing was lost");
        assert!(
            is.is_none_or(|is| is_older(was, is)),
            "{context}: {key} was {was:?} and is {is:?}"
        );
    }
    if let (Some(lost), true) = (report.keys_lost, report.memories_lost == 0) {
        // The loss of a dead record changes nothing.
        assert!(changed <= 2 * lost, "{context}: {changed} changed, {lost} reported");
    }
    for key in &report.keys {
        // One was forgotten, and that forget may be what is lost.
        let name = key.to_string();
        assert!(known.contains_key(&name) || name == self::key(61), "{context}: {key}");
    }
    assert!(store.verify().unwrap().is_whole(), "{context}");
    // The store continues.
    assert!(store.mark("one more").unwrap().is_first());
    drop(store);
    let store = sim.open_existing(builder(), false).unwrap();
    assert!(!store.mark("one more").unwrap().is_first());
    u64::from(is_loss)
}

#[test]
fn a_lost_manifest_is_rebuilt_from_the_segments() {
    for closed in [true, false] {
        let (sim, known) = work(closed);
        let path = Path::new("/store/MANIFEST");
        for damage in 0..3 {
            let sim = sim.copy();
            match damage {
                0 => sim.remove(path).unwrap(),
                1 => sim.flip_byte(path, 50, 1).unwrap(),
                _ => sim.write_file(path, b"").unwrap(),
            }
            let refused = sim.open_existing(builder(), false).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Corrupt);
            let context = format!("closed: {closed}, damage {damage}");
            assert_eq!(repair_and_compare(&sim, &known, path, &context), 0, "{context}");
        }
    }
}

/// It was taken for whole, and the store could not be opened: its segments hold more than it lists.
#[test]
fn a_manifest_older_than_the_log_is_rebuilt_from_the_segments() {
    let sim = Sim::small(5);
    let store = sim.open_with(builder()).unwrap();
    let mark = |n| assert!(store.mark(key(n)).unwrap().is_first());
    (0..30).for_each(mark);
    let path = Path::new("/store/MANIFEST");
    let older = sim.read_file(path).unwrap();
    (30..200).for_each(mark);
    store.close(Duration::ZERO).unwrap();
    drop(store);
    sim.write_file(path, &older).unwrap();
    assert_eq!(sim.open_existing(builder(), false).unwrap_err().kind(), ErrorKind::Corrupt);
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_repaired && !report.is_loss, "{report:?}");
    assert_eq!(report.damages[0].path(), Some(path));
    let store = sim.open_existing(builder(), false).unwrap();
    assert_eq!(look(&store, &all_keys()).len(), 200);
}

#[test]
fn a_whole_store_needs_no_repair_and_is_left_alone() {
    let (sim, _) = work(true);
    let before = sim.contents().unwrap();
    let report = sim.repair(builder(), AcceptLoss::Yes).unwrap();
    assert!(report.is_repaired && !report.is_loss && report.damages.is_empty(), "{report:?}");
    assert_eq!(sim.contents().unwrap(), before);
}

fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

#[test]
fn every_file_deleted_emptied_cut_or_exchanged_is_repaired_and_the_loss_reported() {
    let (mut points, mut losses) = (0_u64, 0);
    for closed in [true, false] {
        let (sim, known) = work(closed);
        for path in listed(&sim) {
            let bytes = sim.read_file(&path).unwrap();
            let used = used(&bytes);
            let damages = [
                "deleted",
                "emptied",
                "cut to a quarter",
                "cut to three quarters",
                "cut to half of its room",
                "zeroed",
                "another's",
                "a directory",
            ];
            for damage in damages {
                let machine = sim.copy();
                match damage {
                    "deleted" => machine.remove(&path).unwrap(),
                    "emptied" => machine.write_file(&path, b"").unwrap(),
                    "cut to a quarter" => machine.write_file(&path, &bytes[..used / 4]).unwrap(),
                    "cut to three quarters" => {
                        machine.write_file(&path, &bytes[..used / 4 * 3]).unwrap();
                    }
                    "cut to half of its room" => {
                        machine.write_file(&path, &bytes[..bytes.len() / 2]).unwrap();
                    }
                    "zeroed" => machine.write_file(&path, &vec![0; bytes.len()]).unwrap(),
                    "another's" => {
                        let all = listed(&sim);
                        let is_like = |other: &&PathBuf| {
                            **other != path && other.extension() == path.extension()
                        };
                        let Some(other) = all.iter().rev().find(is_like) else { continue };
                        machine.write_file(&path, &sim.read_file(other).unwrap()).unwrap();
                    }
                    _ if path.ends_with("MANIFEST") => continue,
                    _ => machine.replace_by_dir(&path).unwrap(),
                }
                let context = format!("closed: {closed}, {}: {damage}", path.display());
                points += 1;
                losses += repair_and_compare(&machine, &known, &path, &context);
            }
        }
    }
    println!("repair: {points} files damaged, {losses} losses reported");
    assert!(points > 40 && losses > 10, "{points} {losses}");
}

#[test]
fn bytes_flipped_anywhere_are_repaired_and_the_loss_reported() {
    let (mut points, mut losses) = (0_u64, 0);
    for closed in [true, false] {
        let (sim, known) = work(closed);
        for path in listed(&sim) {
            let bytes = sim.read_file(&path).unwrap();
            // Bytes after the end count, too.
            let used = (used(&bytes) + 8192).min(bytes.len());
            for at in (0..used).step_by(stride(37, 397)) {
                let machine = sim.copy();
                machine.flip_byte(&path, at as u64, 1 << (at % 8)).unwrap();
                let context = format!("closed: {closed}, byte {at} of {}", path.display());
                points += 1;
                losses += repair_and_compare(&machine, &known, &path, &context);
            }
        }
    }
    println!("repair: {points} bytes flipped, {losses} losses reported");
    assert!(points > 200 && losses > 50, "{points} {losses}");
}

/// No watermark reports yet what became durable last. In a segment that was cut or exchanged, it was taken for a torn
/// tail: the repair reported nothing, results were lost, and forgotten keys were back.
#[test]
fn a_damaged_last_segment_of_a_killed_store_is_given_up_only_on_explicit_consent() {
    for damage in ["emptied", "cut to a header", "cut in the midst", "cut in its room", "zeroed"] {
        let sim = Sim::small(7);
        let store = sim.open_with(builder()).unwrap();
        for n in 0..100 {
            assert!(store.mark(key(n)).unwrap().is_first());
        }
        assert!((0..50).all(|n| store.forget(key(n)).unwrap()));
        sim.kill();
        drop(store);
        let segments =
            listed(&sim).into_iter().filter(|path| path.extension().is_some_and(|e| e == "log"));
        let path = segments.filter(|path| used(&sim.read_file(path).unwrap()) > 128).max().unwrap();
        let bytes = sim.read_file(&path).unwrap();
        let used = used(&bytes);
        match damage {
            "emptied" => sim.write_file(&path, b"").unwrap(),
            "cut to a header" => sim.write_file(&path, &bytes[..128]).unwrap(),
            "cut in the midst" => sim.write_file(&path, &bytes[..used / 2]).unwrap(),
            "cut in its room" => sim.write_file(&path, &bytes[..used]).unwrap(),
            _ => sim.write_file(&path, &vec![0; bytes.len()]).unwrap(),
        }
        assert_eq!(sim.open_with(builder()).unwrap_err().kind(), ErrorKind::Corrupt, "{damage}");
        let report = sim.repair(builder(), AcceptLoss::No).unwrap();
        assert!(report.is_loss && !report.is_repaired, "{damage}: {report:?}");
        assert_eq!(report.keys_lost, None, "{damage}");
        let report = sim.repair(builder(), AcceptLoss::Yes).unwrap();
        assert!(report.is_loss && report.is_repaired, "{damage}: {report:?}");
        drop(sim.open_with(builder()).unwrap());
    }
}

/// Without a manifest the segments themselves show that a later one is missing, or that they were cut.
#[test]
fn without_a_manifest_a_missing_or_cut_segment_is_a_loss() {
    for closed in [true, false] {
        let sim = Sim::small(7);
        let store = sim.open_with(builder()).unwrap();
        for n in 0..700 {
            assert!(store.mark(key(n)).unwrap().is_first());
        }
        if !closed {
            sim.kill();
        }
        drop(store);
        let mut segments = listed(&sim);
        segments.retain(|path| path.extension().is_some_and(|end| end == "log"));
        segments.retain(|path| used(&sim.read_file(path).unwrap()) > 128);
        assert!(segments.len() > 2, "{segments:?}");
        for damage in ["gone", "cut"] {
            for path in &segments {
                // Reclaimed segments aren't there either, so the first one is not missing.
                if damage == "gone" && *path == segments[0] {
                    continue;
                }
                let context = format!("closed: {closed}, {}: {damage}", path.display());
                let machine = sim.copy();
                machine.remove("/store/MANIFEST").unwrap();
                match damage {
                    "gone" => machine.remove(path).unwrap(),
                    _ => {
                        let bytes = sim.read_file(path).unwrap();
                        machine.write_file(path, &bytes[..used(&bytes) / 2]).unwrap();
                    }
                }
                let report = machine.repair(builder(), AcceptLoss::No).unwrap();
                assert!(report.is_loss && !report.is_repaired, "{context}: {report:?}");
                let is_named = report.damages.iter().any(|e| e.path() == Some(path));
                assert!(is_named && report.keys_lost.is_none(), "{context}: {report:?}");
                let report = machine.repair(builder(), AcceptLoss::Yes).unwrap();
                assert!(report.is_repaired, "{context}: {report:?}");
                drop(machine.open_with(builder()).unwrap_or_else(|e| panic!("{context}: {e:?}")));
            }
        }
    }
}

/// Four lives, each ended by a kill, each with a segment of its own.
fn killed_lives() -> (Sim, Vec<PathBuf>) {
    let sim = Sim::small(7);
    for life in 0..4 {
        let store = sim.open_with(builder()).unwrap();
        (0..20).for_each(|n| assert!(store.mark(key(life * 20 + n)).unwrap().is_first()));
        sim.kill();
    }
    let mut segments = listed(&sim);
    segments.retain(|path| path.extension().is_some_and(|end| end == "log"));
    segments.retain(|path| used(&sim.read_file(path).unwrap()) > 128);
    (sim, segments)
}

/// A segment cut by a recovery doesn't say that another one follows; the records of that one do.
#[test]
fn without_a_manifest_a_missing_segment_after_a_recovery_s_cut_is_reported() {
    let (sim, segments) = killed_lives();
    assert_eq!(segments.len(), 4, "{segments:?}");
    let repair = |machine: &Sim| machine.repair(builder(), AcceptLoss::No).unwrap();
    for path in &segments {
        let bytes = sim.read_file(path).unwrap();
        let half = bytes[..used(&bytes) / 2].iter().rposition(|&byte| byte == b'1').unwrap() - 1;
        for damage in ["none", "gone", "zeroed from the midst"] {
            let machine = sim.copy();
            machine.remove("/store/MANIFEST").unwrap();
            match damage {
                "none" => {}
                "gone" => machine.remove(path).unwrap(),
                _ => {
                    let mut zeroed = bytes.clone();
                    zeroed[half..].fill(0);
                    machine.write_file(path, &zeroed).unwrap();
                }
            }
            // Reclaimed segments are before all others, and nothing follows the last one.
            let is_told = match damage {
                "gone" => *path != segments[0],
                "none" => false,
                _ => *path != segments[3],
            };
            let report = repair(&machine);
            let context = format!("{}: {damage}: {report:?}", path.display());
            if is_told || damage == "none" {
                assert_eq!((report.is_loss, report.is_repaired), (is_told, !is_told), "{context}");
            }
            if damage == "none" {
                let store = machine.open_with(builder()).unwrap();
                assert!((0..80).all(|n| store.get(key(n)).unwrap().is_some()), "{context}");
            }
        }
    }
}

fn killed_with_200_keys() -> Sim {
    let sim = Sim::small(7);
    let store = sim.open_with(builder()).unwrap();
    (0..200).for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
    sim
}

fn log_path(ordinal: u32) -> PathBuf {
    PathBuf::from(format!("/store/log/{ordinal:010}.log"))
}

/// Files were believed by their headers, and removed by their names.
#[test]
fn without_a_manifest_a_renamed_segment_is_saved() {
    let (sim, log) = (killed_with_200_keys(), log_path);
    let bytes = |ordinal| sim.read_file(log(ordinal)).unwrap();
    for damage in ["moved", "exchanged", "copied"] {
        let machine = sim.copy();
        machine.remove("/store/MANIFEST").unwrap();
        match damage {
            "moved" => {
                machine.remove(log(2)).unwrap();
                machine.write_file(log(90), &bytes(2)).unwrap();
            }
            "exchanged" => {
                machine.write_file(log(1), &bytes(2)).unwrap();
                machine.write_file(log(2), &bytes(1)).unwrap();
            }
            _ => machine.write_file(log(1), &bytes(2)).unwrap(),
        }
        let report = machine.repair(builder(), AcceptLoss::No).unwrap();
        let is_loss = damage == "copied";
        assert_eq!((report.is_loss, report.is_repaired), (is_loss, !is_loss), "{report:?}");
        if !is_loss {
            let store = machine.open_with(builder()).unwrap();
            assert!((0..200).all(|n| store.get(key(n)).unwrap().is_some()), "{damage}");
            assert!(store.verify().unwrap().is_whole());
        }
    }
}

/// The new segment took the last number as well, and with it the place of the file to be copied.
#[test]
fn no_repair_overwrites_a_segment_with_the_last_possible_name() {
    let (sim, last) = (killed_with_200_keys(), log_path(u32::MAX));
    let bytes = sim.read_file(log_path(2)).unwrap();
    sim.remove("/store/MANIFEST").unwrap();
    sim.remove(log_path(2)).unwrap();
    sim.write_file(&last, &bytes).unwrap();
    let error = sim.repair(builder(), AcceptLoss::Yes).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Corrupt, Some(last.as_path())), "{error}");
    assert_eq!(sim.read_file(&last).unwrap(), bytes);
    // A name that leaves numbers free lets it be saved.
    sim.write_file(log_path(90), &bytes).unwrap();
    sim.remove(&last).unwrap();
    assert!(sim.repair(builder(), AcceptLoss::No).unwrap().is_repaired);
    let store = sim.open_with(builder()).unwrap();
    assert!((0..200).all(|n| store.get(key(n)).unwrap().is_some()));
}

/// With other settings a segment ahead is omitted, and its number with it: that is no loss.
#[test]
fn without_a_manifest_an_unused_number_is_not_reported_missing() {
    let sim = Sim::small(7);
    for larger in [256, 4096] {
        let store = sim.open_with(builder().result_bytes_max(larger)).unwrap();
        for n in 0..200 {
            assert!(store.mark(key(u64::from(larger) * 1000 + n)).unwrap().is_first());
            store.step().unwrap();
        }
    }
    sim.remove("/store/MANIFEST").unwrap();
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_repaired && !report.is_loss, "{report:?}");
    drop(sim.open_with(builder()).unwrap());
}

/// It was reported as damaged, and not as a loss.
#[test]
fn without_a_manifest_expired_keys_overwritten_by_others_are_a_loss() {
    let sim = Sim::small(7);
    let store = sim.open_with(builder()).unwrap();
    remember(&sim, &store, 0..300);
    remember(&sim, &store, 300..400);
    drop(store);
    let files = expired_files(&sim);
    assert_eq!(files.len(), 2);
    sim.remove("/store/MANIFEST").unwrap();
    sim.write_file(&files[0], &sim.read_file(&files[1]).unwrap()).unwrap();
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_loss && !report.is_repaired && report.memories_lost > 0, "{report:?}");
    assert!(report.damages.iter().any(|e| e.path() == Some(&files[0])), "{report:?}");
    let report = sim.repair(builder(), AcceptLoss::Yes).unwrap();
    assert!(report.is_loss && report.is_repaired, "{report:?}");
    let store = sim.open_existing(builder(), false).unwrap();
    assert_eq!(count_remembered(&store, 0..400), 100);
}

/// A flipped byte in one page lost all keys of its file.
#[test]
fn whole_pages_of_a_damaged_file_of_expired_keys_are_saved() {
    let sim = Sim::small(7);
    // Keys that expire together are in one segment, and so in one file.
    let builder = || builder().segment_bytes(1 << 20);
    let store = sim.open_with(builder()).unwrap();
    remember(&sim, &store, 0..3000);
    remember(&sim, &store, 3000..3100);
    drop(store);
    let files = expired_files(&sim);
    assert_eq!(files.len(), 2);
    // The place, and how many keys it loses: with the manifest, and without.
    let page = 4096 + 5 * 4096;
    let damages: [(&str, &[u64], u64, u64); 5] = [
        ("a page", &[page], 204, 204),
        ("the last page", &[15 * 4096], 144, 144),
        ("two pages", &[page, page + 8192], 408, 408),
        ("the header", &[45], 0, 1),
        ("header and pages", &[45, page, 15 * 4096], 348, 408),
    ];
    for (what, places, lost, estimate) in damages {
        for has_manifest in [true, false] {
            let context = format!("{what}, manifest: {has_manifest}");
            let machine = sim.copy();
            places.iter().for_each(|at| machine.flip_byte(&files[0], *at, 1).unwrap());
            if !has_manifest {
                machine.remove("/store/MANIFEST").unwrap();
            }
            let told = if has_manifest { lost } else { estimate };
            let report = machine.repair(builder(), AcceptLoss::No).unwrap();
            assert_eq!(report.memories_lost, told, "{context}: {report:?}");
            assert_eq!((report.is_loss, report.is_repaired), (told > 0, told == 0), "{context}");
            let is_named = |e: &onlyonce::Error| e.path() == Some(&files[0]);
            assert!(report.damages.iter().any(is_named), "{context}: {report:?}");
            let report = machine.repair(builder(), AcceptLoss::Yes).unwrap();
            assert!(report.is_repaired, "{context}: {report:?}");
            let store = machine.open_existing(builder(), false).unwrap();
            assert_eq!(count_remembered(&store, 0..3100) as u64, 3100 - lost, "{context}");
            assert_eq!(store.stats().expired_keys, 3100 - lost, "{context}");
            assert!(store.verify().unwrap().is_whole(), "{context}");
        }
    }
}

#[test]
fn a_repair_does_not_touch_an_open_or_missing_store() {
    let sim = Sim::small(1);
    assert_eq!(sim.repair(builder(), AcceptLoss::Yes).unwrap_err().kind(), ErrorKind::NotFound);
    let store = sim.open_with(builder()).unwrap();
    assert_eq!(sim.repair(builder(), AcceptLoss::Yes).unwrap_err().kind(), ErrorKind::Locked);
    drop(store);
}

/// Ways in which a part of a store is lost: one for each kind of file, and those without a manifest to show what there
/// was.
const LOSSES: [&str; 12] = [
    "manifest gone",
    "segment gone",
    "segment's header rotten",
    "record rotten",
    "table gone",
    "expired keys gone",
    "expired keys' header rotten",
    "manifest gone, expired keys' header rotten",
    "manifest gone, segment's header rotten",
    "manifest gone, last segment's header rotten",
    "manifest gone, record rotten",
    "manifest and a segment gone, and expired keys rotten",
];

fn lose(sim: &Sim, loss: &str) {
    let of = |end: &str| -> Vec<PathBuf> {
        let is_one = |path: &PathBuf| path.to_str().unwrap().ends_with(end);
        listed(sim).into_iter().filter(is_one).collect()
    };
    let (manifest, segments, expired) = (Path::new("/store/MANIFEST"), of(".log"), of(".exp"));
    let flip = |path: &PathBuf, at: u64| sim.flip_byte(path, at, 1).unwrap();
    let rot_header = |at: usize| flip(&segments[at], 50);
    match loss {
        "manifest gone" => sim.remove(manifest).unwrap(),
        "segment gone" => sim.remove(&segments[1]).unwrap(),
        "segment's header rotten" => rot_header(segments.len() / 2),
        "record rotten" => flip(&segments[0], 5000),
        "table gone" => sim.remove(&of(".tab")[0]).unwrap(),
        "expired keys gone" => sim.remove(&expired[0]).unwrap(),
        "expired keys' header rotten" => flip(&expired[0], 50),
        "manifest gone, expired keys' header rotten" => {
            sim.remove(manifest).unwrap();
            flip(&expired[0], 50);
        }
        "manifest gone, segment's header rotten" => {
            sim.remove(manifest).unwrap();
            rot_header(segments.len() / 2);
        }
        "manifest gone, record rotten" => {
            sim.remove(manifest).unwrap();
            flip(&segments[0], 5000);
        }
        "manifest gone, last segment's header rotten" => {
            sim.remove(manifest).unwrap();
            rot_header(segments.len() - 1);
        }
        _ => {
            sim.remove(manifest).unwrap();
            sim.remove(&segments[2]).unwrap();
            flip(&expired[0], 4096 + 9);
        }
    }
}

/// The answers of the store on a machine; `None` if it reports damage.
fn opened(sim: &Sim, context: &str) -> Option<Keys> {
    let opened = sim.open_existing(builder(), false);
    match opened.and_then(|store| try_look(&store, &all_keys())) {
        Ok(keys) => Some(keys),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{context}: {e:?}");
            None
        }
    }
}

/// A store damaged in each way, and its state after an undisturbed repair.
fn damaged() -> Vec<(String, Sim, Keys)> {
    let mut stores = Vec::new();
    for closed in [true, false] {
        let (sim, _) = work(closed);
        for loss in LOSSES {
            let machine = sim.copy();
            lose(&machine, loss);
            let context = format!("{loss}, closed: {closed}");
            let repaired = machine.copy();
            let told = repaired.repair(builder(), AcceptLoss::No).unwrap();
            let harmless = [
                "manifest gone",
                "table gone",
                "segment's header rotten",
                "expired keys' header rotten",
            ];
            let is_loss = !harmless.contains(&loss);
            assert_eq!(
                (told.is_loss, told.is_repaired),
                (is_loss, !is_loss),
                "{context}: {told:?}"
            );
            assert!(repaired.repair(builder(), AcceptLoss::Yes).unwrap().is_repaired, "{context}");
            let keys = opened(&repaired, &context).unwrap();
            assert!(keys.len() > 100, "{context}");
            stores.push((context, machine, keys));
        }
    }
    stores
}

/// Repaired once more, the store opens in the state that an undisturbed repair leaves.
fn repair_again(machine: &Sim, keys: &Keys, context: &str) {
    let again = machine.repair(builder(), AcceptLoss::Yes);
    let again = again.unwrap_or_else(|e| panic!("{context}: {e:?}"));
    assert!(again.is_repaired, "{context}: {again:?}");
    let found = opened(machine, context).unwrap_or_else(|| panic!("{context}: it doesn't open"));
    assert_same(&found, keys, context);
    let store = machine.open_existing(builder(), false).unwrap();
    assert!(store.verify().unwrap().is_whole(), "{context}");
    assert!(store.mark("one more").unwrap().is_first(), "{context}");
}

fn assert_same(found: &Keys, keys: &Keys, context: &str) {
    for key in found.keys().chain(keys.keys()) {
        assert_eq!(found.get(key), keys.get(key), "{context}: {key}");
    }
}

/// A repair loses power, or its process, at every change of the disk. The store may open without another repair only in
/// the state that the finished repair leaves.
#[test]
fn a_repair_that_crashes_anywhere_is_finished_by_the_next() {
    let is_long = std::env::var_os("ONLYONCE_LONG").is_some();
    let (mut points, mut reopenings) = (0_u64, 0_u64);
    for (context, damaged, keys) in damaged() {
        for cut in 0.. {
            let machine = damaged.copy();
            machine.cut_power_at(cut);
            let _ = machine.repair(builder(), AcceptLoss::Yes);
            if !machine.power_is_cut() {
                break;
            }
            points += 1;
            let ways = [SimCrash::NONE, SimCrash::ALL, SimCrash::seeded(cut)];
            let crashed = ways.map(|way| (format!("{way:?}"), machine.after(way))).into_iter();
            let crashed = crashed.chain([("killed".to_owned(), machine.copy())]);
            let at = usize::try_from(cut).unwrap();
            let (skip, stride) = if is_long { (0, 1) } else { (at % 4, 4) };
            for (way, machine) in crashed.skip(skip).step_by(stride) {
                let context = format!("{context}, cut at change {cut}, {way}");
                if let Some(found) = opened(&machine.copy(), &context) {
                    assert_same(&found, &keys, &context);
                }
                repair_again(&machine, &keys, &context);
                reopenings += 2;
            }
        }
    }
    println!("repairs crashed: {points} crash points, {reopenings} reopenings");
    assert!(points > 200, "{points}");
}

/// A failed call is no damage: a repair that took it for damage would give up whole bytes.
#[test]
fn a_repair_with_a_failed_call_gives_nothing_up() {
    use DiskFault::{Full, Interrupted, Io, ReadOnly, Short, TooManyOpen};
    let once = [Io, Full, TooManyOpen, Short].map(|fault| (fault, false));
    let lasting = [Io, ReadOnly, TooManyOpen, Short].map(|fault| (fault, true));
    let mut points = 0_u64;
    for (context, damaged, keys) in damaged() {
        for (fault, lasts) in once.into_iter().chain(lasting).chain([(Interrupted, false)]) {
            for n in (0..).step_by(stride(3, 7)) {
                let context = format!("{context}, {fault:?} at call {n}, lasting: {lasts}");
                let machine = damaged.copy();
                match (fault, lasts) {
                    (Interrupted, _) => {
                        machine.fail_read(n, fault);
                        machine.fail_write(n, fault);
                    }
                    (_, true) => machine.fail_calls_from(n, fault),
                    (_, false) => machine.fail_call(n, fault),
                }
                let repaired = machine.repair(builder(), AcceptLoss::Yes);
                if machine.faults_met() == 0 {
                    break;
                }
                points += 1;
                match repaired {
                    Ok(report) => assert!(report.is_repaired, "{context}: {report:?}"),
                    Err(e) => {
                        let is_typed = matches!(e.kind(), ErrorKind::Io | ErrorKind::StorageFull);
                        let is_visible = !matches!(fault, Short | Interrupted);
                        assert!(is_typed && is_visible && e.path().is_some(), "{context}: {e:?}");
                    }
                }
                machine.heal();
                repair_again(&machine, &keys, &context);
            }
        }
    }
    println!("repairs with failing calls: {points} fault points and reopenings");
    assert!(points > 500, "{points}");
}

/// Segments with records, and one ahead.
fn segments_of(sim: &Sim) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let paths = sim.files().into_iter().map(|(path, _)| path);
    let logs = paths.filter(|path| path.extension().is_some_and(|end| end == "log"));
    logs.partition(|path| sim.read_file(path).unwrap().iter().skip(128).any(|&byte| byte != 0))
}

/// 1,500 keys marked in batches, at Sync, and a clean close.
fn marked_in_batches_of(size: u64) -> Sim {
    let sim = Sim::small(7);
    let store = sim.open_with(builder()).unwrap();
    let keys: Vec<_> = (0..1500).map(key).collect();
    for batch in keys.chunks(size as usize) {
        let marks = store.mark_many(batch.iter().map(String::as_str)).unwrap();
        assert!(marks.iter().all(|mark| mark.as_ref().unwrap().is_first()));
    }
    while store.step().unwrap().is_zero() {}
    store.close(Duration::ZERO).unwrap();
    sim
}

/// The sync that ends a segment moved no watermark that covers it. Records written since the one before were taken for a
/// torn tail, in the middle of the log, and their keys were first again.
#[test]
fn without_a_manifest_damage_anywhere_in_a_full_segment_is_reported() {
    let (mut tried, mut places) = (0, Vec::new());
    for size in [5, 900] {
        let sim = marked_in_batches_of(size);
        let (mut full, _) = segments_of(&sim);
        full.pop();
        assert!(full.len() > 4);
        sim.remove("/store/MANIFEST").unwrap();
        for path in &full {
            let bytes = sim.read_file(path).unwrap();
            let starts = (128..bytes.len()).step_by(8);
            let records: Vec<_> = starts.filter(|at| bytes[*at..].starts_with(b"O1")).collect();
            let [first, .., last, _end] = records[..] else { panic!("{records:?}") };
            for at in [first, last] {
                let machine = sim.copy();
                machine.flip_byte(path, at as u64 + 60, 1).unwrap();
                tried += 1;
                if !machine.repair(builder(), AcceptLoss::No).unwrap().is_loss {
                    places.push((size, path.clone(), at));
                }
            }
        }
    }
    println!("{tried} records damaged");
    assert!(places.is_empty(), "of {tried} {} are denied: {places:?}", places.len());
}

#[test]
fn a_missing_empty_segment_after_a_clean_close_is_no_loss() {
    let sim = marked_in_batches_of(5);
    let (_, ahead) = segments_of(&sim);
    for path in &ahead {
        sim.remove(path).unwrap();
    }
    assert!(!ahead.is_empty());
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(!report.is_loss && report.is_repaired, "{report:?}");
    let store = sim.open_with(builder()).unwrap();
    (0..1500).for_each(|n| assert!(!store.mark(key(n)).unwrap().is_first()));
}

/// Copies of a repair say that they are durable, which was taken for a missing segment.
#[test]
fn a_crashed_repair_without_loss_reports_no_loss_the_second_time() {
    let (sim, log) = (killed_with_200_keys(), log_path);
    let (one, two) = (sim.read_file(log(1)).unwrap(), sim.read_file(log(2)).unwrap());
    sim.remove("/store/MANIFEST").unwrap();
    sim.write_file(log(1), &two).unwrap();
    sim.write_file(log(2), &one).unwrap();
    sim.advance(KEPT);
    let (mut told, mut points) = (Vec::new(), 0);
    for cut in 0.. {
        let machine = sim.copy();
        machine.cut_power_at(cut);
        let _ = machine.repair(builder(), AcceptLoss::No);
        if !machine.power_is_cut() {
            break;
        }
        let crashes = [machine.copy(), machine.after(SimCrash::ALL), machine.after(SimCrash::NONE)];
        for crashed in crashes {
            points += 1;
            let again = crashed.repair(builder(), AcceptLoss::No).unwrap();
            told.extend(again.is_loss.then_some((cut, again.damages)));
        }
    }
    println!("{points} crashes");
    assert!(told.is_empty(), "of {points} crashes {} report a loss: {:?}", told.len(), told[0]);
}

/// It was called whole, or repaired, and no open accepted it.
#[test]
fn a_directory_in_place_of_a_spare_is_reported_before_any_repair() {
    for has_manifest in [true, false] {
        let sim = killed_with_200_keys();
        sim.kill();
        let is_spare = |path: &PathBuf| path.to_str().unwrap().contains("/spare-");
        let spare = sim.files().into_iter().map(|(path, _)| path).find(is_spare).unwrap();
        sim.replace_by_dir(&spare).unwrap();
        if !has_manifest {
            sim.remove("/store/MANIFEST").unwrap();
        }
        let before = sim.contents().unwrap();
        for accept in [AcceptLoss::No, AcceptLoss::Yes] {
            let refused = sim.repair(builder(), accept).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Io, "{refused:?}");
            assert_eq!(refused.path(), Some(&*spare), "{refused:?}");
            assert_eq!(sim.contents().unwrap(), before);
        }
        sim.remove(&spare).unwrap();
        let report = sim.repair(builder(), AcceptLoss::No).unwrap();
        assert!(report.is_repaired && !report.is_loss, "{report:?}");
        let store = sim.open_existing(builder(), false).unwrap();
        assert!((0..200).all(|n| store.get(key(n)).unwrap().is_some()));
    }
}

/// An open after a repair of the manifest has no table to begin from, and took all keys into memory.
#[test]
fn an_open_loads_no_more_keys_than_memory_allows() {
    // 64 keys; as many records at Flush after the last watermark, some of them of earlier keys.
    let most = 4096 / 64;
    for (closed, late) in [(true, 0), (false, 0), (false, 40), (false, 100)] {
        let sim = Sim::small(7);
        let store = sim.open_with(builder()).unwrap();
        for n in 0..500 {
            assert!(store.mark(key(n)).unwrap().is_first());
            store.step().unwrap();
        }
        assert!((0..50).all(|n| store.forget(key(n)).unwrap()));
        while store.step().unwrap().is_zero() {}
        for n in 0..late {
            let op = Operation::new(key(n)).durability(onlyonce::Durability::Flush);
            assert!(store.mark(op).unwrap().is_first() == (n < 50));
        }
        match closed {
            true => drop(store),
            false => sim.kill(),
        }
        let known = |store: &Store, n| store.get(key(n)).unwrap().is_some();
        let context = format!("closed: {closed}, late: {late}");
        let check = |store: &Store| {
            assert!((0..500).all(|n| known(store, n) == (n >= 50 || n < late)), "{context}");
            assert!(store.verify().unwrap().is_whole(), "{context}");
        };
        sim.remove("/store/MANIFEST").unwrap();
        assert!(sim.repair(builder(), AcceptLoss::No).unwrap().is_repaired);
        let before = sim.copy();
        let store = sim.open_existing(builder(), false).unwrap();
        let stats = store.stats();
        assert!(stats.tables == 1 && stats.keys_in_memory <= most, "{context}: {stats:?}");
        check(&store);
        // The next one has a table to begin from.
        sim.power_loss();
        let store = sim.open_existing(builder(), false).unwrap();
        assert!(store.stats().opening.records_read <= late + 10, "{context}");
        check(&store);
        drop(store);
        // Without space for a table the keys stay in memory.
        let sim = before;
        sim.set_disk_bytes_max(sim.disk_bytes());
        let store = sim.open_existing(builder(), false).unwrap();
        assert_eq!(store.stats().tables, 0, "{context}");
        assert!((100..500).all(|n| known(&store, n)), "{context}");
        sim.set_disk_bytes_max(u64::MAX);
        assert!(store.mark("one more").unwrap().is_first());
        check(&store);
    }
}

/// That open loses power at every change of the disk.
#[test]
fn an_open_that_seals_while_reading_may_crash_anywhere() {
    let sim = Sim::small(7);
    let store = sim.open_with(builder()).unwrap();
    (0..150).for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
    for n in 140..160 {
        let op = Operation::new(key(n)).durability(onlyonce::Durability::Flush);
        assert!(store.mark(op).unwrap().is_first() == (n >= 150));
    }
    assert!((0..10).all(|n| store.forget(key(n)).unwrap()));
    for n in 0..5 {
        let op = Operation::new(key(n)).durability(onlyonce::Durability::Flush);
        assert!(store.mark(op).unwrap().is_first());
    }
    sim.kill();
    drop(store);
    sim.remove("/store/MANIFEST").unwrap();
    assert!(sim.repair(builder(), AcceptLoss::No).unwrap().is_repaired);
    let mut points = 0;
    for cut in 0.. {
        let machine = sim.copy();
        machine.cut_power_at(cut);
        drop(machine.open_existing(builder(), false));
        if !machine.power_is_cut() {
            break;
        }
        points += 1;
        let ways = [SimCrash::NONE, SimCrash::ALL, SimCrash::seeded(cut)];
        for machine in ways.map(|way| machine.after(way)).into_iter().chain([machine.copy()]) {
            let store = machine.open_existing(builder(), false).unwrap();
            for n in 0..160 {
                let is_known = store.get(key(n)).unwrap().is_some();
                assert!(is_known == (n >= 10) || n < 5, "cut {cut}: {n} {is_known}");
            }
            assert!(store.verify().unwrap().is_whole());
        }
    }
    println!("{points} crash points");
    assert!(points > 10, "{points}");
}

/// Three lives, each in segments of its own. A note covers all of a life before its process is killed, so the next one
/// copies nothing of it. Returns the keys of the second one, too.
fn lives_covered_by_notes() -> (Sim, std::ops::Range<u64>) {
    let sim = Sim::new(7);
    for keys in [0..100, 100..104, 104..106] {
        let store = sim.open_with(builder()).unwrap();
        keys.for_each(|n| assert!(store.mark(long_key(n)).unwrap().is_first()));
        for _ in 0..3 {
            while store.step().unwrap().is_zero() {}
            sim.advance(Duration::from_millis(20));
        }
        sim.kill();
    }
    (sim, 100..104)
}

/// So long that seven fill a segment: most records are live, and nothing is compacted.
fn long_key(n: u64) -> String {
    format!("{n:0>3900}")
}

/// The segment of the record of a long key, and the offset of that record.
fn place_of_long_key(sim: &Sim, n: u64) -> (PathBuf, usize) {
    let end = format!("{n:0>20}").into_bytes();
    let place = |path: PathBuf| {
        let bytes = sim.read_file(&path).unwrap();
        let at = bytes.windows(end.len()).position(|window| window == end)?;
        let start = bytes[..at].windows(2).rposition(|window| window == b"O1")?;
        Some((path, start))
    };
    segments_of(sim).0.into_iter().find_map(place).unwrap()
}

/// No record referred to earlier segments, and a whole life was lost unreported.
#[test]
fn without_a_manifest_the_missing_only_segment_of_a_killed_process_is_reported() {
    let (sim, second) = lives_covered_by_notes();
    let whole = sim.copy();
    whole.remove("/store/MANIFEST").unwrap();
    let report = whole.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_repaired && !report.is_loss && report.records_moved == 0, "{report:?}");
    let store = whole.open_existing(builder(), false).unwrap();
    assert!((0..106).all(|n| store.get(long_key(n)).unwrap().is_some()));
    let middle = sim.copy();
    middle.remove("/store/MANIFEST").unwrap();
    middle.remove(place_of_long_key(&sim, second.start + 1).0).unwrap();
    let report = middle.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_loss && !report.is_repaired, "{report:?}");
    assert!(middle.repair(builder(), AcceptLoss::Yes).unwrap().is_repaired);
    let store = middle.open_existing(builder(), false).unwrap();
    assert!((0..106).all(|n| store.get(long_key(n)).unwrap().is_some() != second.contains(&n)));
}

/// Only the base of the next life, at the cut of this one, shows that everything before the cut was durable; no record
/// says so.
#[test]
fn without_a_manifest_the_missing_end_of_a_segment_cut_by_a_recovery_is_reported() {
    let (sim, second) = lives_covered_by_notes();
    let (path, record) = place_of_long_key(&sim, second.end - 1);
    sim.remove("/store/MANIFEST").unwrap();
    let mut zeroed = sim.read_file(&path).unwrap();
    zeroed[record..].fill(0);
    sim.write_file(&path, &zeroed).unwrap();
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_loss && !report.is_repaired, "{report:?}");
    assert!(report.damages.iter().any(|e| e.path() == Some(&*path)), "{report:?}");
}

/// A recovery copies records of several segments, cuts the first of them and unlists the others; and its process dies
/// before their files are removed. What is left of them doesn't show that anything is missing.
#[test]
fn without_a_manifest_the_leftovers_of_a_recovery_are_no_loss() {
    // At `Lazy` several segments are placed before the first is synced, so no watermark covers any of them.
    for level in [onlyonce::Durability::Flush, onlyonce::Durability::Lazy] {
        let sim = Sim::new(7);
        let store = sim.open_with(builder()).unwrap();
        for n in 0..300 {
            // Covered records stay in place.
            let level = if n < 10 { onlyonce::Durability::Sync } else { level };
            let op = Operation::new(key(n)).durability(level);
            assert!(store.mark(op).unwrap().is_first());
        }
        store.sync().unwrap();
        sim.kill();
        drop(store);
        let (mut told, mut left_behind) = (Vec::new(), 0);
        for cut in 0.. {
            let machine = sim.copy();
            machine.cut_power_at(cut);
            drop(machine.open_existing(builder(), false));
            let was_cut = machine.power_is_cut();
            let killed = machine.copy();
            killed.remove("/store/MANIFEST").unwrap();
            left_behind = left_behind.max(segments_of(&killed).0.len());
            let report = killed.repair(builder(), AcceptLoss::No).unwrap();
            if report.is_loss {
                told.push((cut, report));
            } else {
                let store = killed.open_existing(builder(), false).unwrap();
                assert!((0..300).all(|n| store.get(key(n)).unwrap().is_some()), "cut {cut}");
            }
            if !was_cut {
                println!("{level:?}: {cut} crash points, up to {left_behind} segments");
                assert!(cut > 20);
                break;
            }
        }
        assert!(told.is_empty(), "{level:?}: {} losses reported: {:?}", told.len(), told[0]);
    }
}

/// A segment that lost its end and its last records looked like one cut by a recovery. A segment lost as a whole within
/// the range of one sync was missed by no watermark.
#[test]
fn without_a_manifest_a_full_segment_cut_or_missing_is_reported() {
    for size in [5, 900] {
        let sim = marked_in_batches_of(size);
        let (mut full, _) = segments_of(&sim);
        full.pop();
        sim.remove("/store/MANIFEST").unwrap();
        for (index, path) in full.iter().enumerate() {
            let bytes = sim.read_file(path).unwrap();
            let starts = (128..bytes.len()).step_by(8);
            let records: Vec<_> = starts.filter(|at| bytes[*at..].starts_with(b"O1")).collect();
            for from in [records[1], records[records.len() - 2], records[records.len() - 1]] {
                let machine = sim.copy();
                let mut zeroed = bytes.clone();
                zeroed[from..].fill(0);
                machine.write_file(path, &zeroed).unwrap();
                let report = machine.repair(builder(), AcceptLoss::No).unwrap();
                let context = format!("{size}, {} from {from}: {report:?}", path.display());
                assert!(report.is_loss && !report.is_repaired, "{context}");
                assert!(report.damages.iter().any(|e| e.path() == Some(path)), "{context}");
            }
            let machine = sim.copy();
            machine.remove(path).unwrap();
            let report = machine.repair(builder(), AcceptLoss::No).unwrap();
            // Segments before the first one may have been reclaimed.
            assert_eq!(report.is_loss, index > 0, "{size}, {}: {report:?}", path.display());
        }
    }
}

/// A clean close at the position of its first record shows that a segment held nothing.
#[test]
fn a_missing_segment_without_records_is_no_loss() {
    let sim = Sim::new(7);
    sim.open_with(builder()).unwrap().close(Duration::ZERO).unwrap();
    sim.remove(log_path(1)).unwrap();
    assert_eq!(sim.open_existing(builder(), false).unwrap_err().kind(), ErrorKind::Corrupt);
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_repaired && !report.is_loss, "{report:?}");
    assert_eq!(report.damages.len(), 1, "{report:?}");
    assert!(sim.open_existing(builder(), false).unwrap().mark("k").unwrap().is_first());
}

/// Copies of a recovery are the only ones once it has cut off the originals.
#[test]
fn without_a_manifest_copies_without_originals_are_kept() {
    let sim = Sim::new(7);
    let store = sim.open_with(builder()).unwrap();
    (0..20).for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
    for n in 20..30 {
        let op = Operation::new(key(n)).durability(onlyonce::Durability::Flush);
        assert!(store.mark(op).unwrap().is_first());
    }
    sim.kill();
    drop(store);
    let recovered = sim.open_with(builder()).unwrap();
    sim.kill();
    drop(recovered);
    sim.remove("/store/MANIFEST").unwrap();
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_repaired && !report.is_loss, "{report:?}");
    let store = sim.open_existing(builder(), false).unwrap();
    assert!((0..30).all(|n| store.get(key(n)).unwrap().is_some()));
}

/// Whole records after a torn one were never acknowledged at `Sync`. An open cuts them off, and so does a repair that
/// rewrites everything for another reason: a completion must not be there without its claim.
#[test]
fn bytes_after_a_torn_tail_are_not_rewritten() {
    let sim = killed_with_200_keys();
    let store = sim.open_with(builder()).unwrap();
    assert!(store.mark("go on").unwrap().is_first());
    for n in 200..204 {
        let op = Operation::new(key(n)).durability(onlyonce::Durability::Flush);
        assert!(store.mark(op).unwrap().is_first());
    }
    sim.kill();
    let (used, _) = segments_of(&sim);
    let last = used.last().unwrap();
    let bytes = sim.read_file(last).unwrap();
    let place = |n| bytes.windows(200).position(|window| window == key(n).as_bytes()).unwrap();
    assert!(place(200) < place(201) && place(201) < place(203));
    sim.flip_byte(last, place(201) as u64, 1).unwrap();
    sim.flip_byte(&used[0], 50, 1).unwrap();
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_repaired && !report.is_loss && report.records_moved > 200, "{report:?}");
    let store = sim.open_existing(builder(), false).unwrap();
    assert!((0..204).all(|n| store.get(key(n)).unwrap().is_some() == (n < 201)));
}

/// The directory may contain numbers that no manifest has given out.
#[test]
fn a_repair_takes_no_number_in_use_by_any_file() {
    let sim = killed_with_200_keys();
    sim.kill();
    let logs = listed(&sim).into_iter().filter(|path| path.extension().is_some_and(|e| e == "log"));
    let logs: Vec<_> = logs.collect();
    let next = log_path(logs.len() as u32 + 1);
    assert!(!logs.contains(&next) && logs.contains(&log_path(logs.len() as u32)), "{logs:?}");
    sim.write_file(&next, b"").unwrap();
    sim.replace_by_dir(&next).unwrap();
    sim.flip_byte(&logs[0], 50, 1).unwrap();
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_repaired && !report.is_loss && report.records_moved > 0, "{report:?}");
    let store = sim.open_existing(builder(), false).unwrap();
    assert!((0..200).all(|n| store.get(key(n)).unwrap().is_some()));
}

/// The younger file says until when a key that expired twice is remembered.
#[test]
fn the_younger_of_two_memories_joined_by_a_repair_counts() {
    let sim = Sim::new(7);
    let day = Duration::from_secs(86_400);
    let builder = || builder().segment_bytes(1 << 20);
    let store = sim.open_with(builder()).unwrap();
    let remember = |keys: std::ops::Range<u64>, memory: Duration| {
        for n in keys {
            let op = Operation::new(n).retention(KEPT).remember_expired(memory);
            assert!(store.mark(op).unwrap().is_first());
        }
        sim.advance(2 * KEPT);
        while !store.compact(u64::MAX).unwrap().is_complete() {}
    };
    remember(0..3000, 10 * day);
    assert!(store.forget(7).unwrap());
    remember(7..8, YEAR);
    drop(store);
    let files = expired_files(&sim);
    assert_eq!(files.len(), 2);
    sim.flip_byte(&files[0], 45, 1).unwrap();
    let report = sim.repair(builder(), AcceptLoss::No).unwrap();
    assert!(report.is_repaired && !report.is_loss, "{report:?}");
    assert_eq!(expired_files(&sim).len(), 3, "one of both, and the old ones");
    sim.advance(11 * day);
    let store = sim.open_existing(builder(), false).unwrap();
    assert_eq!(count_remembered(&store, 0..3000), 1);
    assert!(matches!(store.get(7).unwrap(), Some(State::Expired(_))));
}
