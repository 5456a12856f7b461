//! Marks N keys, in batches, and prints what that cost.

use std::path::Path;
use std::time::Instant;

use onlyonce::{Durability, Store};

use crate::machine::{self, Io, Watch};
use crate::progress::Progress;
use crate::work::{Args, FILLED, close, key, mib, open, seconds};

/// Fills a store at each level in turn; the last store stays.
pub fn run(args: &Args, dir: &Path, keys: u64) {
    let memory_before = machine::own_memory();
    for (nth, level) in crate::levels(args).into_iter().enumerate() {
        if nth > 0 {
            std::fs::remove_dir_all(dir).unwrap();
        }
        run_at(args, dir, keys, level, memory_before);
    }
}

fn run_at(args: &Args, dir: &Path, keys: u64, level: Durability, memory_before: u64) {
    let batch = args.number("--batch", 1000);
    println!("\n{keys} keys of 36 bytes, marked at {level:?} in batches of {batch}\n");
    let watch = Watch::begin();
    let before = Io::now();
    let store = open(dir, level);
    let mut tenths = Vec::new();
    let mut progress = Progress::new(keys, "keys");
    let began = Instant::now();
    for tenth in 0..10 {
        let from = keys * tenth / 10;
        let to = keys * (tenth + 1) / 10;
        let took = seconds(|| mark(&store, from..to, batch, &mut |done| progress.show(done)));
        tenths.push(Tenth {
            rate: (to - from) as f64 / took,
            memory: watch.take_peak().saturating_sub(memory_before),
        });
    }
    let total = began.elapsed().as_secs_f64();
    progress.clear();
    print_tenths(&tenths);
    print_totals(&store, keys, total, before, &tenths);
    if !args.has("--unmerged") {
        let took = seconds(|| store.merge_index().unwrap());
        let index = store.stats().index_bytes;
        println!(
            "| index a key, sealed and merged into one table | {:.2} bytes, after {took:.2} s |",
            index as f64 / keys as f64
        );
    }
    let took = seconds(|| close(store));
    println!("| closing | {took:.2} s |");
}

/// Marks the keys of a range. `told` gets the number done, now and then.
pub fn mark(store: &Store, keys: std::ops::Range<u64>, batch: u64, told: &mut dyn FnMut(u64)) {
    let mut next = keys.start;
    while next < keys.end {
        let until = (next + batch).min(keys.end);
        let names: Vec<_> = (next..until).map(|n| key(FILLED, n)).collect();
        for mark in store.mark_many(&names).unwrap() {
            assert!(mark.unwrap().is_first());
        }
        next = until;
        told(next);
    }
}

/// A store of so many marked keys, closed.
pub fn make(dir: &Path, keys: u64, level: Durability) {
    let store = open(dir, level);
    mark(&store, 0..keys, 1000, &mut |_| {});
    store.merge_index().unwrap();
    close(store);
}

struct Tenth {
    rate: f64,
    /// The most private memory that the process gained.
    memory: u64,
}

fn print_tenths(tenths: &[Tenth]) {
    println!("| tenth | keys/s | memory MiB |");
    println!("|---:|---:|---:|");
    for (number, tenth) in tenths.iter().enumerate() {
        println!("| {} | {:.0} | {:.1} |", number + 1, tenth.rate, mib(tenth.memory));
    }
}

fn print_totals(store: &Store, keys: u64, total: f64, before: Io, tenths: &[Tenth]) {
    let stats = store.stats();
    let per_key = |bytes: u64| bytes as f64 / keys as f64;
    let written = Io::now().since(before).written;
    let memory = |tenth: usize| tenths[tenth].memory as f64;
    let million_keys = keys as f64 / 1e6;
    println!("\n| what | figure |\n|---|---:|");
    println!("| all | {total:.1} s, {:.0} keys/s |", keys as f64 / total);
    println!("| last tenth / first | {:.2} |", tenths[9].rate / tenths[0].rate);
    println!("| records a key | {:.1} bytes |", per_key(stats.bytes_written));
    println!("| log a key, room ahead included | {:.1} bytes |", per_key(stats.log_bytes));
    println!(
        "| index a key, as it is | {:.2} bytes in {} tables; {:.1} % of the keys in memory |",
        stats.index_bytes as f64 / (keys - stats.keys_in_memory.min(keys - 1)) as f64,
        stats.tables,
        100.0 * stats.keys_in_memory as f64 / keys as f64
    );
    let peak = tenths.iter().map(|tenth| tenth.memory).max().unwrap_or(0);
    println!("| memory of its own, at most | {:.1} MiB |", mib(peak));
    println!(
        "| its growth per million keys, from the fifth tenth to the last | {:.1} KiB |",
        (memory(9) - memory(4)) / 1024.0 / (million_keys * 0.5)
    );
    println!("| page tables | {:.1} MiB |", mib(machine::page_tables()));
    println!(
        "| written to the device / bytes of records | {:.2} |",
        written as f64 / stats.bytes_written as f64
    );
    println!("| syncs of the log | {} |", stats.syncs);
}
