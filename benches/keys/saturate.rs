//! Does reclaim keep up when writers leave no processor idle? Compares files with their bound, second by second.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use onlyonce::Policy;

use crate::levels;
use crate::machine::Sizes;
use crate::work::{Args, Times, close, cores, fresh_kind, key, mib, open, pair, scratch};

/// Bytes of the record of a completion with 256 bytes and a retention.
const END_BYTES: u64 = 352;

pub fn run(args: &Args) {
    let writers = args.number("--writers", (2 * cores() as u64).max(4));
    let kept = Duration::from_millis(args.number("--kept-millis", 2000));
    let seconds = args.number("--seconds", 24);
    // Pairs a second of all writers; 0: no limit.
    let rate = args.number("--rate", 0);
    for level in levels(args) {
        let (scratch, kind) = (scratch(), fresh_kind());
        let dir = scratch.path().join("keys");
        let store = open(&dir, level)
            .with_policy(Policy::new().claim_durability(level).durability(level).retention(kept));
        let (pairs, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        println!(
            "\n{writers} writers at {level:?} on {} processors, results kept for {kept:?}\n",
            cores()
        );
        println!(
            "| second | pairs/s | alive MiB | files MiB | 2 x alive + 2 segments | written MiB | reclaimed MiB | moved MiB |"
        );
        println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
        let (mut most, mut most_of_bound, mut least) = (0, 0.0_f64, u64::MAX);
        let times = thread::scope(|scope| {
            let (pairs, is_over, store) = (&pairs, &is_over, &store);
            let threads: Vec<_> = (0..writers)
                .map(|writer| {
                    scope.spawn(move || {
                        let (mut times, mut n, began) = (Times::default(), 0, Instant::now());
                        while !is_over.load(Ordering::Relaxed) {
                            if rate > 0 {
                                let due =
                                    Duration::from_secs_f64((n * writers) as f64 / rate as f64);
                                thread::sleep(due.saturating_sub(began.elapsed()));
                            }
                            let key = key(kind, writer << 40 | n);
                            times.time(|| pair(store, &key));
                            pairs.fetch_add(1, Ordering::Relaxed);
                            n += 1;
                        }
                        times
                    })
                })
                .collect();
            // The state so many tenths ago.
            let mut done = vec![0_u64];
            let began = Instant::now();
            for tenth in 1..=seconds * 10 {
                thread::sleep(
                    (began + Duration::from_millis(tenth * 100))
                        .saturating_duration_since(Instant::now()),
                );
                let now = pairs.load(Ordering::Relaxed);
                done.push(now);
                let kept_tenths = kept.as_millis().div_ceil(100) as usize;
                let before = done.len().checked_sub(1 + kept_tenths).map_or(0, |at| done[at]);
                let alive = (now - before) * END_BYTES;
                let sizes = Sizes::of(&dir);
                let bound = 2 * alive + 2 * sizes.segment;
                if began.elapsed() > 2 * kept {
                    most = most.max(sizes.all);
                    least = least.min(sizes.all);
                    most_of_bound = most_of_bound.max(sizes.all as f64 / bound as f64);
                }
                if tenth % 10 == 0 {
                    let stats = store.stats();
                    println!(
                        "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
                        tenth / 10,
                        now - done[done.len() - 11],
                        mib(alive),
                        mib(sizes.all),
                        mib(bound),
                        mib(stats.bytes_written),
                        mib(stats.bytes_reclaimed),
                        mib(stats.bytes_moved),
                    );
                }
            }
            is_over.store(true, Ordering::Relaxed);
            let mut all = Times::default();
            threads.into_iter().for_each(|thread| all.append(thread.join().unwrap()));
            all
        });
        let mut times = times;
        let reclaimed = store.stats().bytes_reclaimed;
        println!(
            "\nonce twice that time has passed: files from {:.1} to {:.1} MiB, at most {most_of_bound:.2} of 2 x alive + 2 segments; \
             {:.1} MiB reclaimed; pairs: p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us, most {:.1} ms",
            mib(least),
            mib(most),
            mib(reclaimed),
            times.at(0.5) / 1000.0,
            times.at(0.99) / 1000.0,
            times.at(0.999) / 1000.0,
            times.at(1.0) / 1e6,
        );
        close(store);
    }
}
