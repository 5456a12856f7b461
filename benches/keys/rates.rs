//! Batches of marks next to a floor of the same bytes, and pairs on a filled store next to those on an empty one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use onlyonce::{Durability, Store};

use crate::fill;
use crate::work::{Args, FILLED, Times, close, fresh_kind, key, median, open, pair, scratch};

/// Bytes of the record of a mark of a 36-byte key.
const MARK_BYTES: u64 = 72;
const FILE_BYTES: u64 = 64 << 20;

pub fn run(args: &Args) {
    let time = Duration::from_millis(args.number("--millis", 500));
    let rounds = args.rounds();
    println!("\n{rounds} rounds of {time:?} each, in turn; medians\n");
    println!("| marks | floor keys/s | onlyonce keys/s | onlyonce/floor |\n|---|---:|---:|---:|");
    for level in [Durability::Sync, Durability::Flush] {
        for batch in [1, 100, 1000] {
            marks(level, batch, rounds, time);
        }
    }
    let keys = args.number("--store-keys", 1_000_000);
    println!("\n| pairs | empty /s | on {keys} keys /s | ratio | p99 us empty | p99 us |");
    println!("|---|---:|---:|---:|---:|---:|");
    let filled = scratch();
    let filled = filled.path().join("keys");
    fill::make(&filled, keys, Durability::Flush);
    for level in [Durability::Flush, Durability::Sync] {
        pairs(&filled, level, rounds, time);
    }
}

fn marks(level: Durability, batch: u64, rounds: usize, time: Duration) {
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Reversed every other round, so that drift of the machine favours neither.
        let mut runs: [&mut dyn FnMut(); 2] =
            [&mut || floor.push(floor_marks(level, batch, time)), &mut || {
                ours.push(store_marks(level, batch, time))
            }];
        if round % 2 == 1 {
            runs.reverse();
        }
        runs.into_iter().for_each(|run| run());
    }
    let ratios: Vec<f64> = ours.iter().zip(&floor).map(|(ours, floor)| ours / floor).collect();
    println!(
        "| {level:?}, {batch} a batch | {:.0} | {:.0} | {:.2} |",
        median(floor),
        median(ours),
        median(ratios)
    );
}

/// One write of the same bytes for each batch, and one sync at `Sync`, on a file of written zeros.
fn floor_marks(level: Durability, batch: u64, time: Duration) -> f64 {
    let dir = scratch();
    let file = File::options().create_new(true).write(true).open(dir.path().join("zeros")).unwrap();
    for at in (0..FILE_BYTES).step_by(4096) {
        file.write_all_at(&[0; 4096], at).unwrap();
    }
    file.sync_data().unwrap();
    let bytes = vec![1; (batch * MARK_BYTES) as usize];
    let mut at = 0;
    repeat(time, batch, |_| {
        if at + bytes.len() as u64 > FILE_BYTES {
            at = 0;
        }
        file.write_all_at(&bytes, at).unwrap();
        at += bytes.len() as u64;
        if level == Durability::Sync {
            file.sync_data().unwrap();
        }
    })
}

fn store_marks(level: Durability, batch: u64, time: Duration) -> f64 {
    let dir = scratch();
    let store = open(&dir.path().join("keys"), level);
    repeat(time, batch, |n| {
        let names = (n * batch..(n + 1) * batch).map(|n| key(FILLED, n));
        // Operations borrow their keys, so the keys are collected first.
        let names: Vec<_> = names.collect();
        assert_eq!(store.mark_many(&names).unwrap().len() as u64, batch);
    })
}

/// Keys a second, over as many batches as the time allows.
fn repeat(time: Duration, batch: u64, mut work: impl FnMut(u64)) -> f64 {
    let began = Instant::now();
    let mut batches = 0;
    while began.elapsed() < time {
        work(batches);
        batches += 1;
    }
    (batches * batch) as f64 / began.elapsed().as_secs_f64()
}

fn pairs(filled: &Path, level: Durability, rounds: usize, time: Duration) {
    let (mut empty, mut full) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let dir = scratch();
        let on = |dir: &Path| {
            let store = open(dir, level);
            let figures = some_pairs(&store, time);
            close(store);
            figures
        };
        if round % 2 == 0 {
            empty.push(on(&dir.path().join("keys")));
            full.push(on(filled));
        } else {
            full.push(on(filled));
            empty.push(on(&dir.path().join("keys")));
        }
    }
    let ratios: Vec<f64> = full.iter().zip(&empty).map(|(full, empty)| full.0 / empty.0).collect();
    println!(
        "| {level:?}, 1 thread | {:.0} | {:.0} | {:.2} | {:.1} | {:.1} |",
        median(empty.iter().map(|figures| figures.0)),
        median(full.iter().map(|figures| figures.0)),
        median(ratios),
        median(empty.iter().map(|figures| figures.1)),
        median(full.iter().map(|figures| figures.1)),
    );
}

/// Pairs a second, and the time in microseconds that one in a hundred exceeds.
fn some_pairs(store: &Store, time: Duration) -> (f64, f64) {
    let (kind, mut times) = (fresh_kind(), Times::default());
    let began = Instant::now();
    while began.elapsed() < time {
        let key = key(kind, times.len() as u64);
        times.time(|| pair(store, &key));
    }
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    (rate, times.at(0.99) / 1000.0)
}
