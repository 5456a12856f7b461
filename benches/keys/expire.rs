//! What it takes to give back the room of expired keys, and what those who claim meanwhile feel of it.
//!
//! Nine keys in ten have a retention that passes before the measurement begins; no clock is turned.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use onlyonce::{Durability, Policy, Store};

use crate::fill;
use crate::machine::Io;
use crate::work::{Args, Times, close, fresh_kind, key, median, mib, open, pair, scratch};

/// Bytes of the record of a completion with 256 bytes.
const END_BYTES: u64 = 352;

pub fn run(args: &Args) {
    let keys = args.number("--expire-keys", 1_000_000);
    let rounds = args.rounds();
    println!("\n{keys} keys with 256 bytes, nine in ten of them expired\n");
    println!("| given back by `compact` | figure |\n|---|---:|");
    reclaim(keys);
    println!("\n{rounds} rounds in turn; medians\n");
    println!("| pairs, 1 thread, p99 us | before | meanwhile | ratio |\n|---|---:|---:|---:|");
    for level in [Durability::Flush, Durability::Sync] {
        let mut seen = Meanwhile::ALL.map(|what| (what, Vec::new()));
        for _ in 0..rounds {
            for (what, figures) in &mut seen {
                figures.push(round(*what, level, keys));
            }
        }
        for (what, figures) in &seen {
            println!(
                "| {level:?}, {what:?} | {:.1} | {:.1} | {:.2} |",
                median(figures.iter().map(|(before, _)| *before)),
                median(figures.iter().map(|(_, meanwhile)| *meanwhile)),
                median(figures.iter().map(|(before, meanwhile)| meanwhile / before)),
            );
        }
    }
}

/// What goes on beside the pairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meanwhile {
    /// A call of `compact`, in another thread.
    Compact,
    /// The same, by the store's own thread.
    Background,
    /// Checkpoints, and merges of all tables.
    Merges,
}

impl Meanwhile {
    const ALL: [Meanwhile; 3] = [Meanwhile::Compact, Meanwhile::Background, Meanwhile::Merges];
}

/// A store most of whose keys expire at a known time.
struct Expiring {
    dir: PathBuf,
    at: Instant,
}

impl Expiring {
    fn make(dir: &Path, keys: u64, retention: Duration) -> Self {
        let dir = dir.join("keys");
        let store = open(&dir, Durability::Flush);
        let short = store.with_policy(Policy::new().retention(retention));
        let kind = fresh_kind();
        for n in 0..keys {
            pair(if n % 10 == 0 { &store } else { &short }, &key(kind, n));
        }
        let at = Instant::now() + retention + Duration::from_millis(10);
        drop(short);
        close(store);
        Expiring { dir, at }
    }

    fn wait(&self) {
        thread::sleep(self.at.saturating_duration_since(Instant::now()));
    }
}

fn reclaim(keys: u64) {
    let scratch = scratch();
    let expiring = Expiring::make(scratch.path(), keys, Duration::from_secs(1));
    expiring.wait();
    // By hand: so that nobody else begins with it.
    let store = Store::builder().manual_maintenance(true).open(&expiring.dir).unwrap();
    let before = store.stats();
    let (io, began) = (Io::now(), Instant::now());
    let done = store.compact(u64::MAX).unwrap();
    let (took, io) = (began.elapsed(), Io::now().since(io));
    let after = store.stats();
    let live = keys.div_ceil(10) * END_BYTES;
    assert!(done.is_complete());
    println!("| time | {:.2} s |", took.as_secs_f64());
    println!("| read, by calls | {:.1} MiB |", mib(io.asked));
    println!("| written to the device | {:.1} MiB |", mib(io.written));
    println!("| moved | {:.1} MiB |", mib(done.bytes_moved()));
    println!("| log before | {:.1} MiB |", mib(before.log_bytes));
    println!("| log after | {:.1} MiB in {} segments |", mib(after.log_bytes), after.segments);
    println!("| live | {:.1} MiB |", mib(live));
}

/// The p99 of pairs, in microseconds: alone, and while something goes on.
fn round(what: Meanwhile, level: Durability, keys: u64) -> (f64, f64) {
    let scratch = scratch();
    if what == Meanwhile::Merges {
        let dir = scratch.path().join("keys");
        fill::make(&dir, keys, Durability::Flush);
        let before = alone(&dir, level);
        let store = open(&dir, level);
        let began = Instant::now();
        let work = || {
            while began.elapsed() < ALONE {
                store.merge_index().unwrap();
            }
        };
        return (before, beside(&store, work));
    }
    // Long enough that nothing has expired when the pairs alone are over: 100,000 pairs a second are sure.
    let retention = Duration::from_millis(2500 + keys / 100);
    let expiring = Expiring::make(scratch.path(), keys, retention);
    let before = alone(&expiring.dir, level);
    expiring.wait();
    let store = open(&expiring.dir, level);
    let meanwhile = match what {
        Meanwhile::Compact => {
            beside(&store, || assert!(store.compact(u64::MAX).unwrap().is_complete()))
        }
        _ => beside(&store, || watch_background(&expiring.dir)),
    };
    (before, meanwhile)
}

const ALONE: Duration = Duration::from_secs(1);

fn alone(dir: &Path, level: Durability) -> f64 {
    let store = open(dir, level);
    let p99 = beside(&store, || thread::sleep(ALONE));
    close(store);
    p99
}

/// The p99 of pairs while `work` goes on in another thread.
fn beside(store: &Store, work: impl FnOnce() + Send) -> f64 {
    let is_over = AtomicBool::new(false);
    let kind = fresh_kind();
    let mut times = Times::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            work();
            is_over.store(true, Ordering::SeqCst);
        });
        while !is_over.load(Ordering::SeqCst) {
            let key = key(kind, times.len() as u64);
            times.time(|| pair(store, &key));
        }
    });
    times.at(0.99) / 1000.0
}

/// Returns when the oldest segment has gone and none has followed it for a while.
fn watch_background(dir: &Path) {
    let (began, first) = (Instant::now(), oldest_segment(dir));
    let (mut seen, mut changed) = (first.clone(), None);
    loop {
        thread::sleep(Duration::from_millis(10));
        let now = oldest_segment(dir);
        if now != seen {
            (seen, changed) = (now, Some(Instant::now()));
        }
        assert!(began.elapsed() < Duration::from_secs(60), "nothing was compacted within a minute");
        if changed.is_some_and(|changed| changed.elapsed() > Duration::from_millis(100)) {
            return;
        }
    }
}

fn oldest_segment(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir.join("log")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".log")).min()
}
