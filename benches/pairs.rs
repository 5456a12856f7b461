//! How many claim-and-complete pairs a second, compared with the floor? One question, one table of ratios.
//!
//! `cargo bench --bench pairs` runs every contender in turn, several rounds, and prints medians.
//! `-- --case sync-1 --pairs 1000` runs one case of the store alone, for `strace -c -f` and `callgrind`;
//! `-- --marks 1000` and `-- --replays 1000` make so many marks of new keys, and claims of a hundred completed keys, at `Flush`.
//! With `--shared` the store can be shared with other processes, of which there are none.
//!
//! The work: claim a new 36-byte key with a 16-byte fingerprint, complete it with 256 bytes.
//! `bare` is a loop of write and fdatasync of the same bytes on a file of written zeros. `floor` adds plain
//! leader/follower group commit under a mutex and a condition variable, and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    missing_docs
)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use onlyonce::{Claim, Durability, Fingerprint, Operation, Policy, Store};

/// Bytes of the two records of a pair, as `record` lays them out.
const CLAIM_BYTES: usize = 88;
const END_BYTES: usize = 352;
const FILE_BYTES: u64 = 64 << 20;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1).cloned()
    };
    let number =
        |name: &str, default: u64| value(name).map_or(default, |text| text.parse().unwrap());
    if let Some(case) = value("--case") {
        let case = *CASES.iter().find(|known| known.name == case).expect("a case of the table");
        let dir = scratch();
        let figures = store_pairs(&dir.path().join("keys"), case, number("--pairs", 1000), None);
        println!("{}: {figures:?}", case.name);
        return;
    }
    for (name, calls) in [("--marks", marks as fn(&Store, u64)), ("--replays", replays)] {
        if value(name).is_some() {
            calls(&open(&scratch().path().join("keys"), CASES[5]), number(name, 1000));
            return;
        }
    }
    let rounds = number("--rounds", 5) as usize;
    let seconds = Duration::from_millis(number("--millis", 400));
    println!("{} processors, {rounds} rounds of {seconds:?} each, in turn; medians", cores());
    println!(
        "| case | bare /s | floor /s | onlyonce /s | floor/bare | onlyonce/floor | syncs per pair | p50 us | p99 us |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for case in CASES {
        table_row(*case, rounds, seconds);
    }
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    threads: usize,
    claim: Durability,
    outcome: Durability,
}

const CASES: &[Case] = &[
    Case { name: "sync-1", threads: 1, claim: Durability::Sync, outcome: Durability::Sync },
    Case { name: "mixed-1", threads: 1, claim: Durability::Flush, outcome: Durability::Sync },
    Case { name: "sync-2", threads: 2, claim: Durability::Sync, outcome: Durability::Sync },
    Case { name: "sync-8", threads: 8, claim: Durability::Sync, outcome: Durability::Sync },
    Case { name: "sync-64", threads: 64, claim: Durability::Sync, outcome: Durability::Sync },
    Case { name: "flush-1", threads: 1, claim: Durability::Flush, outcome: Durability::Flush },
    Case { name: "flush-8", threads: 8, claim: Durability::Flush, outcome: Durability::Flush },
    Case { name: "lazy-1", threads: 1, claim: Durability::Lazy, outcome: Durability::Lazy },
];

fn table_row(case: Case, rounds: usize, time: Duration) {
    let (mut bare, mut floor, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        // Reversed every other round, so that drift of the machine favours none.
        let mut runs: [&mut dyn FnMut(); 3] = [
            &mut || bare.push(bare_pairs(case, time)),
            &mut || floor.push(floor_pairs(case, time)),
            &mut || {
                ours.push(store_pairs(&scratch().path().join("keys"), case, u64::MAX, Some(time)))
            },
        ];
        if round % 2 == 1 {
            runs.reverse();
        }
        runs.into_iter().for_each(|run| run());
    }
    let ratio =
        |a: &[Figures], b: &[Figures]| median(a.iter().zip(b).map(|(a, b)| a.rate / b.rate));
    println!(
        "| {} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} | {:.3} | {:.0} | {:.0} |",
        case.name,
        median(bare.iter().map(|f| f.rate)),
        median(floor.iter().map(|f| f.rate)),
        median(ours.iter().map(|f| f.rate)),
        ratio(&floor, &bare),
        ratio(&ours, &floor),
        median(ours.iter().map(|f| f.syncs_per_pair)),
        median(ours.iter().map(|f| f.p50)),
        median(ours.iter().map(|f| f.p99)),
    );
}

/// The result of one run; times in microseconds, of single operations.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    rate: f64,
    syncs_per_pair: f64,
    p50: f64,
    p99: f64,
}

/// Runs `operation` (one pair) on each thread until the time or the count is used up.
fn run(
    threads: usize,
    pairs: u64,
    time: Option<Duration>,
    pair: impl Fn(usize, u64) + Sync,
) -> Figures {
    let began = Instant::now();
    let counts: Vec<Vec<u64>> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let pair = &pair;
                scope.spawn(move || {
                    let mut nanos = Vec::with_capacity(1 << 16);
                    let mut n = 0;
                    while n < pairs && time.is_none_or(|time| began.elapsed() < time) {
                        let start = Instant::now();
                        pair(thread, n);
                        nanos.push(start.elapsed().as_nanos() as u64);
                        n += 1;
                    }
                    nanos
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let elapsed = began.elapsed().as_secs_f64();
    let mut all: Vec<u64> = counts.into_iter().flatten().collect();
    all.sort_unstable();
    let at = |part: f64| all[((all.len() - 1) as f64 * part) as usize] as f64 / 2000.0;
    Figures { rate: all.len() as f64 / elapsed, syncs_per_pair: 0.0, p50: at(0.5), p99: at(0.99) }
}

fn open(dir: &Path, case: Case) -> Store {
    let policy = Policy::new().claim_durability(case.claim).durability(case.outcome);
    let is_shared = std::env::args().any(|arg| arg == "--shared");
    let store = Store::builder().policy(policy).shared(is_shared).open_or_create(dir).unwrap();
    // The first write of an open clears the clean flag, which is not part of a pair.
    store.mark("warm").map(drop).unwrap();
    store
}

fn key(thread: usize, n: u64) -> String {
    format!("{thread:08}-0000-0000-0000-{n:015}")
}

fn claim(store: &Store, key: &str) -> Claim {
    let operation = Operation::new(key).fingerprint(Fingerprint::from_bytes([9; 16]));
    store.claim(operation).unwrap()
}

fn pair(store: &Store, thread: usize, n: u64) {
    let Claim::Acquired(claim) = claim(store, &key(thread, n)) else { panic!("not granted") };
    claim.complete(&[7_u8; 256]).unwrap();
}

fn marks(store: &Store, count: u64) {
    for n in 0..count {
        assert!(store.mark(key(0, n).as_str()).unwrap().is_first());
    }
}

fn replays(store: &Store, count: u64) {
    (0..100).for_each(|n| pair(store, 0, n));
    for n in 0..count {
        assert!(matches!(claim(store, &key(0, n % 100)), Claim::Completed(_)));
    }
}

fn store_pairs(dir: &Path, case: Case, pairs: u64, time: Option<Duration>) -> Figures {
    let store = open(dir, case);
    let before = store.stats().syncs;
    let figures = run(case.threads, pairs, time, |thread, n| pair(&store, thread, n));
    let syncs = store.stats().syncs - before;
    let total = figures.rate * time.map_or(1.0, |time| time.as_secs_f64());
    let total = if time.is_some() { total } else { (pairs * case.threads as u64) as f64 };
    Figures { syncs_per_pair: syncs as f64 / total, ..figures }
}

/// A file of written zeros, synced, as a segment is.
fn zeros(dir: &Path) -> File {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(dir.join("zeros"))
        .unwrap();
    for at in (0..FILE_BYTES).step_by(4096) {
        file.write_all_at(&[0; 4096], at).unwrap();
    }
    file.sync_data().unwrap();
    file
}

fn bare_pairs(case: Case, time: Duration) -> Figures {
    let dir = scratch();
    let file = zeros(dir.path());
    let at = Mutex::new(0_u64);
    let record = [1_u8; END_BYTES];
    run(case.threads, u64::MAX, Some(time), |_, _| {
        for (len, level) in [(CLAIM_BYTES, case.claim), (END_BYTES, case.outcome)] {
            let mut at = at.lock().unwrap();
            if *at + len as u64 > FILE_BYTES {
                *at = 0;
            }
            file.write_all_at(&record[..len], *at).unwrap();
            *at += len as u64;
            if level == Durability::Sync {
                file.sync_data().unwrap();
            }
        }
    })
}

/// Plain group commit: a thread that finds no leader writes and syncs everything placed; the threads that wait when
/// that ends go with the next batch.
struct Floor {
    file: File,
    state: Mutex<FloorState>,
    /// One for each of two batches, taken in turn: a thread that is not covered sleeps again.
    done: [Condvar; 2],
}

#[derive(Default)]
struct FloorState {
    buffer: Vec<u8>,
    spare: Vec<u8>,
    placed: u64,
    written: u64,
    durable: u64,
    leading: bool,
    batch: usize,
    at: u64,
}

impl Floor {
    fn append(&self, record: &[u8], level: Durability) {
        let mut state = self.state.lock().unwrap();
        state.buffer.extend_from_slice(record);
        state.placed += record.len() as u64;
        let (mine, batch) = (state.placed, state.batch);
        let holds = |state: &FloorState| match level {
            Durability::Sync => state.durable >= mine,
            _ => state.written >= mine,
        };
        while !holds(&state) {
            if state.leading {
                state = self.done[batch % 2].wait(state).unwrap();
                continue;
            }
            state.leading = true;
            let spare = std::mem::take(&mut state.spare);
            let bytes = std::mem::replace(&mut state.buffer, spare);
            let end = state.placed;
            let ended = state.batch;
            state.batch += 1;
            if state.at + bytes.len() as u64 > FILE_BYTES {
                state.at = 0;
            }
            let at = state.at;
            state.at += bytes.len() as u64;
            drop(state);
            self.file.write_all_at(&bytes, at).unwrap();
            if level == Durability::Sync {
                self.file.sync_data().unwrap();
            }
            state = self.state.lock().unwrap();
            state.spare = bytes;
            state.spare.clear();
            state.written = end;
            if level == Durability::Sync {
                state.durable = end;
            }
            state.leading = false;
            self.done[ended % 2].notify_all();
            self.done[(ended + 1) % 2].notify_one();
        }
    }
}

fn floor_pairs(case: Case, time: Duration) -> Figures {
    let dir = scratch();
    let floor = Arc::new(Floor {
        file: zeros(dir.path()),
        state: Mutex::default(),
        done: Default::default(),
    });
    let record = [1_u8; END_BYTES];
    run(case.threads, u64::MAX, Some(time), |_, _| {
        floor.append(&record[..CLAIM_BYTES], case.claim);
        floor.append(&record, case.outcome);
    })
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(std::env::var_os("ONLYONCE_BENCH_DIR").unwrap_or_else(|| ".".into()))
        .unwrap()
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
