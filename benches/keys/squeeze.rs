//! Reads from the device per key, with less memory than the index takes.

use std::path::{Path, PathBuf};
use std::process::Command;

use onlyonce::{Durability, Store};

use crate::machine::{self, Io, MemoryGroup};
use crate::work::{Args, FILLED, NEW, Random, close, key, mib, open};

const LOOKUPS: u64 = 2_000;

pub fn run(args: &Args, dir: &Path, keys: u64) {
    let store = open(dir, Durability::Flush);
    store.merge_index().unwrap();
    let index = store.stats().index_bytes;
    close(store);
    let bytes = index / 4 + (64 << 20);
    println!("\nmemory for a quarter of the index and 64 MiB: {:.1} MiB", mib(bytes));
    let group = match MemoryGroup::create(bytes) {
        Ok(group) => group,
        Err(e) => return println!("no memory group here: {e}"),
    };
    println!("\n| finding | device reads: mean | p50 | p99 | KiB read: mean | p50 | p99 |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    machine::forget_cached(dir);
    let lookups = args.number("--lookups", LOOKUPS).to_string();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--child", "lookups", "--door"])
        .arg(group.door())
        .arg("--dir")
        .arg(dir)
        .args(["--keys", &keys.to_string(), "--lookups", &lookups])
        .status()
        .unwrap();
    assert!(status.success());
}

/// Joins the group, then looks keys up. The first half of the lookups fills its memory and isn't counted.
pub fn look_up_in_child(args: &Args) {
    std::fs::write(args.value("--door").unwrap(), "0").unwrap();
    let dir = PathBuf::from(args.value("--dir").unwrap());
    let (keys, lookups) = (args.number("--keys", 1), args.number("--lookups", LOOKUPS));
    let store = Store::open(&dir).unwrap();
    for (name, kind) in [("known", FILLED), ("new", NEW)] {
        let mut random = Random(u64::from(kind));
        let (mut reads, mut bytes) = (Vec::new(), Vec::new());
        for n in 0..2 * lookups {
            let key = key(kind, random.below(keys));
            let (io, faults) = (Io::now(), machine::major_faults());
            assert_eq!(store.get(&key).unwrap().is_some(), kind == FILLED);
            if n >= lookups {
                let read = Io::now().since(io).read;
                // Without maps, reads are calls, which cause no faults.
                let faults = machine::major_faults() - faults;
                reads.push(faults.max(u64::from(read > 0)));
                bytes.push(read >> 10);
            }
        }
        let [reads, bytes] = [reads, bytes].map(spread);
        println!(
            "| {name} | {:.2} | {} | {} | {:.0} | {} | {} |",
            reads.0, reads.1, reads.2, bytes.0, bytes.1, bytes.2
        );
    }
}

/// Mean, median, and the value that one in a hundred exceeds.
fn spread(mut values: Vec<u64>) -> (f64, u64, u64) {
    values.sort_unstable();
    let mean = values.iter().sum::<u64>() as f64 / values.len() as f64;
    (mean, values[values.len() / 2], values[values.len() * 99 / 100])
}
