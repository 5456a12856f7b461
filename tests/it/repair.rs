//! What `repair` saves of a store that lost a file or a few bytes, and what it says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use onlyonce::admin::AcceptLoss;
use onlyonce::testing::Sim;
use onlyonce::{Claim, ErrorKind, Operation, State, Store, StoreBuilder};

const KEPT: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn builder() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(256).index_memory_max(4096)
}

fn key(n: u64) -> String {
    format!("{n:0>200}")
}

/// Each key in one word.
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
    let walk = || -> onlyonce::Result<Keys> {
        let found = store.iter().map(|entry| entry.map(|(key, s)| (key.to_string(), word(&s))));
        found.collect()
    };
    // A damaged bucket of the index is mended by the walk that meets it.
    let mut keys = walk().or_else(|_| walk()).unwrap();
    for key in among {
        let state = store.get(key.as_str()).unwrap();
        assert_eq!(keys.contains_key(key), state.as_ref().is_some_and(|s| word(s) != "expired"));
        keys.extend(state.map(|state| (key.clone(), word(&state))));
    }
    keys
}

fn all_keys() -> Vec<String> {
    (0..200).map(key).collect()
}

/// A store over several segments and tables, with moved records and remembered keys, and what is known of its keys.
fn work(closed: bool) -> (Sim, Keys) {
    let sim = Sim::new(5);
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

fn listed(sim: &Sim) -> Vec<PathBuf> {
    let paths = sim.files().into_iter().map(|(path, _)| path);
    paths
        .filter(|path| {
            !path.to_str().unwrap().contains("spare") && !path.ends_with("MANIFEST.next")
        })
        .collect()
}

/// What a key may be after its newest record was lost.
fn is_older(was: Option<&String>, is: &str) -> bool {
    let Some(was) = was else { return true };
    match is {
        "interrupted 1" => was.starts_with("completed") || was == "aborted",
        _ => false,
    }
}

/// Repairs, opens and compares. What was lost, as the report has it.
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
        // What is lost of a dead record changes nothing.
        assert!(changed <= 2 * lost, "{context}: {changed} changed, {lost} told");
    }
    for key in &report.keys {
        // One was forgotten, and that may be what is lost of it.
        let name = key.to_string();
        assert!(known.contains_key(&name) || name == self::key(61), "{context}: {key}");
    }
    assert!(store.verify().unwrap().is_whole(), "{context}");
    // And it goes on.
    assert!(store.mark("one more").unwrap().is_first());
    drop(store);
    let store = sim.open_existing(builder(), false).unwrap();
    assert!(!store.mark("one more").unwrap().is_first());
    u64::from(is_loss)
}

#[test]
fn a_lost_manifest_is_made_again_from_the_segments() {
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

#[test]
fn a_whole_store_needs_no_repair_and_is_left_alone() {
    let (sim, _) = work(true);
    let before = sim.contents().unwrap();
    let report = sim.repair(builder(), AcceptLoss::Yes).unwrap();
    assert!(report.is_repaired && !report.is_loss && report.damages.is_empty(), "{report:?}");
    assert_eq!(sim.contents().unwrap(), before);
}

#[test]
fn every_file_deleted_emptied_or_cut_is_repaired_and_the_loss_is_told() {
    let (mut points, mut losses) = (0_u64, 0);
    for closed in [true, false] {
        let (sim, known) = work(closed);
        for path in listed(&sim) {
            let bytes = sim.read_file(&path).unwrap();
            for damage in ["deleted", "emptied", "cut", "a directory"] {
                let machine = sim.copy();
                match damage {
                    "deleted" => machine.remove(&path).unwrap(),
                    "emptied" => machine.write_file(&path, b"").unwrap(),
                    "cut" => machine.write_file(&path, &bytes[..bytes.len() / 2]).unwrap(),
                    _ if path.ends_with("MANIFEST") => continue,
                    _ => machine.replace_by_dir(&path).unwrap(),
                }
                let context = format!("closed: {closed}, {}: {damage}", path.display());
                points += 1;
                losses += repair_and_compare(&machine, &known, &path, &context);
            }
        }
    }
    println!("repair: {points} files damaged, {losses} losses told");
    assert!(points > 40 && losses > 10, "{points} {losses}");
}

#[test]
fn bytes_flipped_anywhere_are_repaired_and_the_loss_is_told() {
    let is_long = std::env::var_os("ONLYONCE_LONG").is_some();
    let (mut points, mut losses) = (0_u64, 0);
    for closed in [true, false] {
        let (sim, known) = work(closed);
        for path in listed(&sim) {
            let bytes = sim.read_file(&path).unwrap();
            let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            for at in (0..used).step_by(if is_long { 11 } else { 397 }) {
                let machine = sim.copy();
                machine.flip_byte(&path, at as u64, 1 << (at % 8)).unwrap();
                let context = format!("closed: {closed}, byte {at} of {}", path.display());
                points += 1;
                losses += repair_and_compare(&machine, &known, &path, &context);
            }
        }
    }
    println!("repair: {points} bytes flipped, {losses} losses told");
    assert!(points > 200 && losses > 50, "{points} {losses}");
}

#[test]
fn a_store_that_is_open_or_missing_is_not_touched() {
    let sim = Sim::new(1);
    assert_eq!(sim.repair(builder(), AcceptLoss::Yes).unwrap_err().kind(), ErrorKind::NotFound);
    let store = sim.open_with(builder()).unwrap();
    assert_eq!(sim.repair(builder(), AcceptLoss::Yes).unwrap_err().kind(), ErrorKind::Locked);
    drop(store);
}
