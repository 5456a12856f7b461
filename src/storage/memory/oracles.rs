//! Crashes after random work on the simulated disk, judged by oracles that don't know its implementation; and that
//! every run can be repeated.

use std::collections::{BTreeMap, BTreeSet};

use super::tests::{data, names, p, synced};
use super::{Crash, DataFate, MemoryStorage};
use crate::entropy::SplitMix64;
use crate::storage::{Access, Storage};

fn random_work(disk: &MemoryStorage, seed: u64, steps: u64) {
    let mut lot = SplitMix64::new(seed);
    let paths = ["/a", "/b", "/d/a", "/d/b"];
    let _ = disk.create_dir(p("/d"));
    for _ in 0..steps {
        let path = p(paths[lot.below(4) as usize]);
        let other = p(paths[lot.below(4) as usize]);
        let (offset, len, byte) = (lot.below(2000), lot.below(1200) as usize, lot.next() as u8);
        let _ = match lot.below(13) {
            12 => disk.exchange(path, other),
            0 | 1 => disk.create(path).map(drop),
            2 => disk.rename(path, other),
            3 => disk.remove(path),
            4 => disk.sync_dir(path.parent().unwrap()),
            5 => disk.open(path, Access::ReadWrite).and_then(|file| file.truncate(offset)),
            6 | 7 => disk.open(path, Access::ReadWrite).and_then(|file| file.sync_data()),
            _ => disk
                .open(path, Access::ReadWrite)
                .and_then(|file| file.write_at(&vec![byte; len], offset).map(drop)),
        };
    }
}

#[test]
fn the_same_calls_give_the_same_trace_and_the_same_crashes() {
    let run = |seed| {
        let disk = MemoryStorage::new();
        random_work(&disk, seed, 60);
        let crashes: Vec<_> = disk
            .crashes(20)
            .into_iter()
            .map(|crash| {
                let after = disk.crash_clone(crash);
                (
                    crash,
                    after
                        .files()
                        .into_iter()
                        .map(|(path, _)| after.read(&path).unwrap())
                        .collect::<Vec<_>>(),
                )
            })
            .collect();
        (disk.trace(), disk.changes(), disk.reads(), crashes)
    };
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed));
        assert_ne!(run(seed).0, run(seed + 100).0);
    }
}

#[test]
fn every_part_of_a_call_is_in_the_trace() {
    let trace = |work: &dyn Fn(&MemoryStorage)| {
        let disk = MemoryStorage::new();
        let file = disk.create(p("/a")).unwrap();
        file.write_at(b"x", 0).unwrap();
        work(&disk);
        disk.trace()
    };
    let write = |bytes: &'static [u8], offset| {
        move |disk: &MemoryStorage| {
            disk.open(p("/a"), Access::ReadWrite).unwrap().write_at(bytes, offset).unwrap();
        }
    };
    let traces = BTreeSet::from([
        trace(&|_| {}),
        trace(&write(b"x", 0)),
        trace(&write(b"y", 0)),
        trace(&write(b"x", 1)),
        trace(&|disk| drop(disk.create(p("/b")))),
        trace(&|disk| drop(disk.create(p("/c")))),
        trace(&|disk| disk.create_dir(p("/b")).unwrap()),
        trace(&|disk| disk.sync_dir(p("/")).unwrap()),
        trace(&|disk| disk.rename(p("/a"), p("/b")).unwrap()),
        trace(&|disk| disk.rename(p("/a"), p("/c")).unwrap()),
        trace(&|disk| disk.exchange(p("/a"), p("/a")).unwrap()),
        trace(&|disk| drop(disk.exchange(p("/a"), p("/c")))),
        trace(&|disk| disk.remove(p("/a")).unwrap()),
    ]);
    assert_eq!(traces.len(), 13);
    assert_eq!(
        trace(&|disk| drop(disk.open(p("/a"), Access::Read))),
        trace(&|_| {}),
        "reads are not"
    );
}

#[test]
fn the_list_of_crashes_is_distinct_and_bounded() {
    let disk = MemoryStorage::new();
    assert_eq!(disk.crashes(0).len(), 3);
    let file = disk.create(p("/a")).unwrap();
    for page in 0..1000 {
        file.write_at(&[1; 4096], page * 4096).unwrap();
    }
    let crashes = disk.crashes(10);
    assert!(crashes.len() < 1000, "{}", crashes.len());
    for (index, crash) in crashes.iter().enumerate() {
        assert!(!crashes[..index].contains(crash));
    }
    assert!(
        crashes.contains(&data(DataFate::OneLost(7999))),
        "the last sector is among the chosen"
    );
}

/// For any work and any crash: a second crash changes nothing, and after everything is durable no crash does.
#[test]
fn after_a_crash_nothing_is_unsynced() {
    for seed in 0..60 {
        let disk = MemoryStorage::new();
        random_work(&disk, seed, 40);
        assert_eq!(disk.crash_clone(Crash::ALL).files(), disk.files(), "seed {seed}");
        for crash in disk.crashes(30) {
            let after = disk.crash_clone(crash);
            assert_eq!(after.crashes(0).len(), 3, "seed {seed} {crash:?}");
            assert_eq!(
                after.crash_clone(Crash::NONE).files(),
                after.files(),
                "seed {seed} {crash:?}"
            );
        }
        disk.settle();
        for crash in disk.crashes(5) {
            assert_eq!(disk.crash_clone(crash).files(), disk.files());
        }
    }
}

/// An oracle independent of the simulation: every state that a file had since its sync. After a crash each sector must
/// be that sector of one of them, and the length between the first and the last.
#[test]
fn every_sector_after_a_crash_is_one_that_was_seen_since_the_sync() {
    for seed in 0..10 {
        let mut lot = SplitMix64::new(seed);
        let disk = MemoryStorage::new();
        let files = ["/a", "/b"].map(|path| (path, synced(&disk, path, b"")));
        let mut states = [vec![Vec::new()], vec![Vec::new()]];
        for step in 0..30 {
            let which = lot.below(2) as usize;
            let (path, file) = &files[which];
            if lot.below(5) == 0 {
                file.sync_data().unwrap();
                states[which] = vec![disk.read(p(path)).unwrap()];
            } else {
                let byte = lot.next() as u8;
                file.write_at(&vec![byte; lot.below(1500) as usize], lot.below(2000)).unwrap();
                states[which].push(disk.read(p(path)).unwrap());
            }
            for crash in disk.crashes(8) {
                if matches!(crash.data, DataFate::Prefix { bytes, .. } if bytes > 0) {
                    continue;
                }
                let after = disk.crash_clone(crash);
                for ((path, _), states) in files.iter().zip(&states) {
                    let bytes = after.read(p(path)).unwrap();
                    let (first, last) = (states[0].len(), states[states.len() - 1].len());
                    assert!(
                        (first..=last).contains(&bytes.len()),
                        "seed {seed} step {step} {crash:?}"
                    );
                    for (number, sector) in bytes.chunks(512).enumerate() {
                        let same = |state: &Vec<u8>| {
                            let there =
                                |at: usize| state.get(number * 512 + at).copied().unwrap_or(0);
                            sector.iter().enumerate().all(|(at, byte)| *byte == there(at))
                        };
                        assert!(
                            states.iter().any(same),
                            "seed {seed} step {step} {crash:?} {path} {number}"
                        );
                    }
                }
            }
        }
    }
}

/// The same for names: a file has only names that it had since the last sync, and one that always had a name has
/// exactly one.
#[test]
fn every_name_after_a_crash_is_one_the_file_had_since_the_sync() {
    let paths = ["/a", "/b", "/c", "/d"];
    for seed in 0..100 {
        let mut lot = SplitMix64::new(seed);
        let disk = MemoryStorage::new();
        let mut standing = BTreeMap::<&str, u8>::new();
        // Where each file was since the sync; and those that had a name all the time.
        let mut stood = BTreeSet::<(u8, &str)>::new();
        let mut always = BTreeSet::<u8>::new();
        for step in 0..14_u8 {
            let (path, other) = (paths[lot.below(4) as usize], paths[lot.below(4) as usize]);
            match lot.below(7) {
                6 if path != other && disk.exchange(p(path), p(other)).is_ok() => {
                    let (a, b) = (standing[path], standing[other]);
                    standing.extend([(path, b), (other, a)]);
                    stood.extend([(b, path), (a, other)]);
                }
                0 => {
                    disk.sync_dir(p("/")).unwrap();
                    stood = standing.iter().map(|(path, id)| (*id, *path)).collect();
                    always = standing.values().copied().collect();
                }
                1 if disk.remove(p(path)).is_ok() => {
                    always.remove(&standing.remove(path).unwrap());
                }
                2 | 3 if path != other && disk.rename(p(path), p(other)).is_ok() => {
                    let id = standing.remove(path).unwrap();
                    if let Some(gone) = standing.insert(other, id) {
                        always.remove(&gone);
                    }
                    stood.insert((id, other));
                }
                _ => {
                    if let Ok(file) = disk.create(p(path)) {
                        file.write_at(&[step], 0).unwrap();
                        file.sync_data().unwrap();
                        standing.insert(path, step);
                        stood.insert((step, path));
                    }
                }
            }
            for crash in disk.crashes(12) {
                let after = disk.crash_clone(crash);
                let found: Vec<u8> =
                    names(&after).iter().map(|name| after.read(p(name)).unwrap()[0]).collect();
                for (name, id) in names(&after).iter().zip(&found) {
                    assert!(
                        stood.contains(&(*id, name)),
                        "seed {seed} step {step} {crash:?}: {id} at {name}"
                    );
                }
                let once: BTreeSet<u8> = found.iter().copied().collect();
                assert_eq!(once.len(), found.len(), "seed {seed} step {step} {crash:?}: twice");
                assert!(
                    once.is_superset(&always),
                    "seed {seed} step {step} {crash:?}: {once:?} {always:?}"
                );
            }
        }
    }
}
