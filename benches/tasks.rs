//! What calls cost that wait together: tasks that wait for one key, pairs of tasks beside pairs of threads, and what one
//! thread gains by batches and by calls in flight.
//!
//! `cargo bench --bench tasks -- waiters [TASKS]`: so many tasks on one thread wait for one completion. Prints the memory that
//! each call takes, that of an idle task of the executor, and how long it takes until all are answered.
//! `cargo bench --bench tasks -- pairs [TASKS]`: so many tasks at once make a claim and its completion at `Sync`, on an executor
//! of two threads; then 64 threads make as many. Prints the rates, and the syncs a pair.
//! `cargo bench --bench tasks -- one-thread [SIZE]`: one thread makes pairs at `Sync` one by one, then in batches of that size,
//! then with so many `Pending` in flight. Prints the rates, and each as a multiple of the first.
//! `cargo bench --bench tasks -- batches COUNT`: so many batches of 100 claims and 100 completions, for `strace -f -c`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::disallowed_methods)]
#![allow(missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use onlyonce::{Claim, ClaimGuard, Outcome, Pending, Store};

const HOUR: Duration = Duration::from_secs(3600);
const THREADS: u64 = 64;
const KEY: (&str, &str, &str, i32) = ("price", "of", "the", 17);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let number = |default: u64| words.get(1).map_or(default, |word| word.parse().unwrap());
    match words.first().map(String::as_str) {
        Some("waiters") => waiters(number(10_000)),
        Some("pairs") => pairs(number(10_000)),
        Some("one-thread") => one_thread(number(64), Duration::from_millis(500)),
        Some("batches") => batches(number(1000)),
        // `cargo test --benches` and the like: a short run of each.
        _ => {
            waiters(100);
            pairs(100);
            one_thread(64, Duration::from_millis(10));
        }
    }
}

fn store(dir: &tempfile::TempDir) -> Store {
    Store::open_or_create(dir.path().join("keys")).unwrap()
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn waiters(tasks: u64) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let Claim::Acquired(owner) = store.claim(KEY).unwrap() else { panic!() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let begun = Arc::new(AtomicU64::new(0));
        let wait = || {
            let (begun, waiting) = (Arc::clone(&begun), store.claim_wait_async(KEY, HOUR));
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                matches!(waiting.await.unwrap(), Claim::Completed(_))
            }
        };
        // An executor polls some tasks, and then the one that began them.
        let until_all_wait = async |count| {
            while begun.load(Ordering::Relaxed) < count {
                tokio::task::yield_now().await;
            }
        };
        // So that threads and allocator have what they need before it is measured.
        let mut waiting: Vec<_> = (0..10).map(|_| tokio::spawn(wait())).collect();
        until_all_wait(10).await;
        waiting.reserve(usize::try_from(tasks).unwrap());
        // What the executor takes for a task that waits for something else.
        let before = resident();
        let idle: Vec<_> = (0..tasks).map(|_| tokio::spawn(std::future::pending::<bool>())).collect();
        let of_executor = (resident() - before) / tasks;
        // Not ended before the measurement: their memory would be used again.
        let before = resident();
        waiting.extend((0..tasks).map(|_| tokio::spawn(wait())));
        until_all_wait(10 + tasks).await;
        let each = (resident() - before) / tasks;
        let began = Instant::now();
        owner.complete_async("17.50").await.unwrap();
        let mut answered = 0;
        for task in waiting {
            answered += u64::from(task.await.unwrap());
        }
        assert_eq!(answered, tasks + 10);
        idle.iter().for_each(|task| task.abort());
        println!(
            "{tasks} tasks on one thread: {} bytes each for the call, {of_executor} for an idle task; all answered {:.1} ms after \
             the completion began",
            each.saturating_sub(of_executor),
            began.elapsed().as_secs_f64() * 1000.0
        );
    });
}

fn pairs(tasks: u64) {
    let in_tasks = |store: Store| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let pair = |store: Store, n: u64| async move {
                let Claim::Acquired(claim) = store.claim_async(("task", n)).await.unwrap() else {
                    panic!()
                };
                claim.complete_async(&[7_u8; 256]).await.unwrap();
            };
            let pairs: Vec<_> = (0..tasks).map(|n| tokio::spawn(pair(store.clone(), n))).collect();
            for pair in pairs {
                pair.await.unwrap();
            }
        });
    };
    let in_threads = |store: Store| {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let store = &store;
                scope.spawn(move || {
                    for n in (thread..tasks).step_by(usize::try_from(THREADS).unwrap()) {
                        let Claim::Acquired(claim) = store.claim(("thread", n)).unwrap() else {
                            panic!()
                        };
                        claim.complete(&[7_u8; 256]).unwrap();
                    }
                });
            }
        });
    };
    for round in 1..=3 {
        let mut rates = Vec::new();
        for (name, work) in [("tasks", &in_tasks as &dyn Fn(Store)), ("threads", &in_threads)] {
            let dir = tempfile::tempdir().unwrap();
            let store = store(&dir);
            let _first = store.mark("first").unwrap();
            let (syncs, began) = (store.stats().syncs, Instant::now());
            work(store.clone());
            let rate = tasks as f64 / began.elapsed().as_secs_f64();
            let a_pair = (store.stats().syncs - syncs) as f64 / tasks as f64;
            println!("round {round}, {name}: {rate:.0} pairs a second, {a_pair:.4} syncs a pair");
            rates.push(rate);
        }
        if let [in_tasks, in_threads] = rates[..] {
            println!(
                "round {round}: {:.2} of the rate of {THREADS} threads",
                in_tasks / in_threads
            );
        }
    }
}

const VALUE: &[u8; 256] = &[7; 256];

fn granted(claim: Claim) -> ClaimGuard {
    match claim {
        Claim::Acquired(guard) => guard,
        other => panic!("{other}"),
    }
}

fn one_by_one(store: &Store, keys: &[(u64, u64)]) {
    for key in keys {
        granted(store.claim(*key).unwrap()).complete(VALUE).unwrap();
    }
}

/// One call claims all keys, and one completes all.
fn in_a_batch(store: &Store, keys: &[(u64, u64)]) {
    let claims = store.claim_many(keys.iter().copied()).unwrap();
    let ends = claims.into_iter().map(|claim| (granted(claim.unwrap()), Outcome::success(VALUE)));
    store.complete_many(ends).unwrap().into_iter().for_each(Result::unwrap);
}

/// Sends all claims before the first is waited for, then all completions.
fn in_flight(store: &Store, keys: &[(u64, u64)]) {
    let claims: Vec<Pending<Claim>> = keys.iter().map(|key| store.claim_async(*key)).collect();
    let ends: Vec<ClaimGuard> =
        claims.into_iter().map(|claim| granted(claim.wait().unwrap())).collect();
    let ends: Vec<Pending<()>> = ends.into_iter().map(|end| end.complete_async(VALUE)).collect();
    ends.into_iter().for_each(|end| end.wait().unwrap());
}

type Work = fn(&Store, &[(u64, u64)]);
const WAYS: [(&str, Work); 3] =
    [("one by one", one_by_one), ("in batches", in_a_batch), ("in flight", in_flight)];

fn one_thread(size: u64, time: Duration) {
    let rounds = 5;
    let mut gains = vec![Vec::new(); WAYS.len()];
    for round in 1..=rounds {
        let mut rates = Vec::new();
        for (name, work) in WAYS {
            let dir = tempfile::tempdir_in(".").unwrap();
            let store = store(&dir);
            let _first = store.mark("first").unwrap();
            let (syncs, began, mut batches) = (store.stats().syncs, Instant::now(), 0);
            while began.elapsed() < time {
                let keys: Vec<(u64, u64)> = (0..size).map(|n| (batches, n)).collect();
                work(&store, &keys);
                batches += 1;
            }
            let pairs = (batches * size) as f64;
            let rate = pairs / began.elapsed().as_secs_f64();
            let a_pair = (store.stats().syncs - syncs) as f64 / pairs;
            println!("round {round}, {name}: {rate:.0} pairs a second, {a_pair:.4} syncs a pair");
            rates.push(rate);
        }
        for (gain, rate) in gains.iter_mut().zip(&rates) {
            gain.extend(rates.first().map(|first| rate / first));
        }
    }
    for ((name, _), mut gain) in WAYS.into_iter().zip(gains).skip(1) {
        gain.sort_by(f64::total_cmp);
        if let (Some(least), Some(median)) = (gain.first(), gain.get(gain.len() / 2)) {
            println!(
                "{size} {name}: {median:.1} times the rate of one by one, at least {least:.1}"
            );
        }
    }
}

fn batches(count: u64) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let store = store(&dir);
    let before = store.stats().syncs;
    for batch in 0..count {
        let keys: Vec<(u64, u64)> = (0..100).map(|n| (batch, n)).collect();
        in_a_batch(&store, &keys);
    }
    let syncs = store.stats().syncs - before;
    println!("{count} batches of 100 claims and of 100 completions: {syncs} syncs");
}
