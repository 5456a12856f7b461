//! What does one call cost, at each level? Criterion benches of claim, complete, replay and mark, next to the floor
//! (the same bytes written, and synced at `Sync`). `cargo bench --bench calls`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    missing_docs
)]

use std::cell::Cell;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use onlyonce::{Claim, Durability, Fingerprint, Operation, Policy, Store};

const LEVELS: [Durability; 3] = [Durability::Sync, Durability::Flush, Durability::Lazy];

fn key(n: u64) -> String {
    format!("00000000-0000-0000-0000-{n:012}")
}

fn operation(key: &str) -> Operation<'_> {
    Operation::new(key).fingerprint(Fingerprint::from_bytes([9; 16]))
}

fn open(level: Durability) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let policy = Policy::new().claim_durability(level).durability(level);
    let store = Store::builder().policy(policy).open_or_create(dir.path().join("keys")).unwrap();
    (dir, store)
}

fn claims(c: &mut Criterion) {
    let mut group = c.benchmark_group("claim");
    for level in LEVELS {
        let (_dir, store) = open(level);
        let n = Cell::new(0);
        let next = || {
            n.set(n.get() + 1);
            key(n.get())
        };
        // The measured closure's result is dropped outside the measured time.
        group.bench_function(BenchmarkId::from_parameter(format!("{level:?}")), |b| {
            b.iter_batched(
                next,
                |key| store.claim(operation(&key)).unwrap(),
                BatchSize::PerIteration,
            );
        });
        group.bench_function(BenchmarkId::new("floor", format!("{level:?}")), |b| {
            floor(b, 88, level)
        });
    }
    group.finish();
}

fn completions(c: &mut Criterion) {
    let mut group = c.benchmark_group("complete");
    for level in LEVELS {
        let (_dir, store) = open(level);
        let n = Cell::new(0);
        let next = || {
            n.set(n.get() + 1);
            match store.claim(operation(&key(n.get()))).unwrap() {
                Claim::Acquired(claim) => claim,
                other => panic!("{other}"),
            }
        };
        group.bench_function(BenchmarkId::from_parameter(format!("{level:?}")), |b| {
            b.iter_batched(
                next,
                |claim| claim.complete(&[7_u8; 256]).unwrap(),
                BatchSize::PerIteration,
            );
        });
        group.bench_function(BenchmarkId::new("floor", format!("{level:?}")), |b| {
            floor(b, 352, level)
        });
    }
    group.finish();
}

fn marks(c: &mut Criterion) {
    let mut group = c.benchmark_group("mark");
    for level in LEVELS {
        let (_dir, store) = open(level);
        let n = Cell::new(0);
        group.bench_function(BenchmarkId::from_parameter(format!("{level:?}")), |b| {
            b.iter(|| {
                n.set(n.get() + 1);
                assert!(store.mark(key(n.get()).as_str()).unwrap().is_first());
            });
        });
        group.bench_function(BenchmarkId::new("floor", format!("{level:?}")), |b| {
            floor(b, 72, level)
        });
    }
    group.finish();
}

fn replays(c: &mut Criterion) {
    const KEYS: u64 = 100_000;
    let mut group = c.benchmark_group("replay");
    let (_dir, store) = open(Durability::Lazy);
    for n in 0..KEYS {
        let Claim::Acquired(claim) = store.claim(operation(&key(n))).unwrap() else { panic!() };
        claim.complete(&[7_u8; 256]).unwrap();
    }
    store.sync().unwrap();
    let n = Cell::new(0_u64);
    group.bench_function("random of 100,000", |b| {
        b.iter(|| {
            n.set(n.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            let key = key((n.get() >> 33) % KEYS);
            assert!(matches!(store.claim(operation(&key)).unwrap(), Claim::Completed(_)));
        });
    });
    // Results that are not copied, from maps of full segments.
    const LARGE: u64 = 1000;
    let large = |n| format!("large-{n}");
    for n in 0..LARGE {
        let Claim::Acquired(claim) = store.claim(large(n).as_str()).unwrap() else { panic!() };
        claim.complete(&[7_u8; 64 << 10][..]).unwrap();
    }
    store.sync().unwrap();
    group.bench_function("64 KiB each, random of 1,000", |b| {
        b.iter(|| {
            n.set(n.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            let key = large((n.get() >> 33) % LARGE);
            assert!(matches!(store.claim(key.as_str()).unwrap(), Claim::Completed(_)));
        });
    });
    group.finish();
}

/// Writes the same bytes into a file of written zeros, and syncs it at `Sync`. At `Lazy` nothing is written at once.
fn floor(b: &mut criterion::Bencher<'_>, bytes: usize, level: Durability) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let path = dir.path().join("zeros");
    let file = OpenOptions::new().create_new(true).write(true).open(path).unwrap();
    let len = 16_u64 << 20;
    for at in (0..len).step_by(4096) {
        file.write_all_at(&[0; 4096], at).unwrap();
    }
    file.sync_data().unwrap();
    let (record, mut at, mut buffer) = (vec![1_u8; bytes], 0_u64, Vec::with_capacity(1 << 18));
    b.iter(|| {
        if at + (1 << 18) > len {
            at = 0;
        }
        match level {
            Durability::Lazy => {
                buffer.extend_from_slice(&record);
                if buffer.len() + bytes > 1 << 18 {
                    file.write_all_at(&buffer, at).unwrap();
                    at += buffer.len() as u64;
                    buffer.clear();
                }
            }
            _ => {
                file.write_all_at(&record, at).unwrap();
                at += bytes as u64;
                if level == Durability::Sync {
                    file.sync_data().unwrap();
                }
            }
        }
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(300));
    targets = claims, completions, marks, replays
}
criterion_main!(benches);
