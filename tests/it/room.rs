//! A store whose space runs out: its budget, or the disk.

use std::time::Duration;

use onlyonce::admin::Health;
use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{Claim, Durability, ErrorKind, Operation, Store, StoreBuilder};

use crate::child::child;
use crate::traffic::Traffic;

const KEPT: Duration = Duration::from_secs(60);

fn builder() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10).index_memory_max(4096)
}

fn key(n: u64) -> String {
    format!("{n:0>500}")
}

fn bytes_on_disk(sim: &Sim) -> u64 {
    sim.files().iter().map(|(_, len)| len).sum()
}

/// A year of marks, each kept for a minute, in a store that may take no more than a few hundred of them.
#[test]
fn expired_records_free_enough_space_to_keep_the_budget() {
    let sim = Sim::small(1);
    let most = 400 << 10;
    let store = sim.open_with(builder().disk_bytes_max(most)).unwrap();
    for n in 0..5000 {
        let op = Operation::new(key(n)).retention(KEPT);
        assert!(store.mark(op).unwrap().is_first(), "{n}");
        sim.advance(Duration::from_secs(1));
        if n % 50 == 0 {
            assert!(bytes_on_disk(&sim) <= most, "{n}: {} bytes", bytes_on_disk(&sim));
            assert!(!store.mark(key(n)).unwrap().is_first(), "{n} is kept");
        }
    }
    assert!(store.verify().unwrap().is_whole());
}

#[test]
fn a_store_full_of_live_records_refuses_only_claims_until_some_expire() {
    let sim = Sim::small(1);
    let store = sim.open_with(builder().disk_bytes_max(300 << 10)).unwrap();
    let Claim::Acquired(owner) = store.claim("in flight").unwrap() else { panic!() };
    let mut n = 0;
    let refused = loop {
        match store.mark(Operation::new(key(n)).retention(KEPT)) {
            Ok(mark) => assert!(mark.is_first()),
            Err(e) => break e,
        }
        n += 1;
    };
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    assert!(refused.to_string().contains("disk_bytes_max"), "{refused}");
    assert!(n > 200, "{n} fitted");
    assert!(bytes_on_disk(&sim) <= 300 << 10);
    assert!(!store.mark(key(0)).unwrap().is_first(), "replays continue");
    owner.complete(&[1; 1000][..]).unwrap();
    sim.advance(2 * KEPT);
    for n in 0..n / 2 {
        assert!(store.mark(key(n)).unwrap().is_first(), "{n}");
    }
    assert!(store.get("in flight").unwrap().is_some());
    assert!(bytes_on_disk(&sim) <= 300 << 10);
}

/// The disk itself is full, and has space for only a few segments.
#[test]
fn expired_records_free_space_on_a_full_disk() {
    let sim = Sim::small(1);
    sim.set_disk_bytes_max(300 << 10);
    let store = sim.open_with(builder()).unwrap();
    for n in 0..3000 {
        let op = Operation::new(key(n)).retention(KEPT);
        assert!(store.mark(op).unwrap().is_first(), "{n}");
        sim.advance(Duration::from_secs(1));
    }
    for n in 2950..3000 {
        assert!(!store.mark(key(n)).unwrap().is_first(), "{n} is kept");
    }
    assert!(store.health().is_writable());
}

#[test]
fn an_erasing_compaction_leaves_no_bytes_of_forgotten_keys_in_any_file() {
    let sim = Sim::small(1);
    let store = sim.open_with(builder()).unwrap();
    let secret = b"4242 4242 4242 4242";
    for n in 0..100 {
        let Claim::Acquired(claim) = store.claim(key(n)).unwrap() else { panic!() };
        claim.complete(if n == 17 { &secret[..] } else { &b"other"[..] }).unwrap();
    }
    let holds = |needle: &[u8]| {
        sim.files()
            .iter()
            .filter(|(path, _)| {
                let bytes = sim.read_file(path).unwrap();
                bytes.windows(needle.len()).any(|window| window == needle)
            })
            .count()
    };
    assert!(store.forget(key(17)).unwrap());
    assert_eq!(holds(secret), 1);
    let done = store.compact(u64::MAX).unwrap();
    assert!(done.is_complete() && done.bytes_moved() > 0);
    assert_eq!((holds(secret), holds(key(17).as_bytes())), (0, 0));
    for n in 0..100 {
        assert_eq!(store.get(key(n)).unwrap().is_some(), n != 17, "{n}");
    }
}

/// A store with one forgotten result, and whether its bytes are in a file.
fn forgotten(secret: &[u8]) -> (Sim, Store, impl Fn(&Sim) -> bool) {
    let sim = Sim::small(3);
    let store = sim.open_with(builder()).unwrap();
    (0..60).for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
    let Claim::Acquired(claim) = store.claim("told in confidence").unwrap() else { panic!() };
    claim.complete(secret).unwrap();
    assert!(store.mark(key(60)).unwrap().is_first());
    assert!(store.forget("told in confidence").unwrap());
    let secret = secret.to_vec();
    let holds = move |sim: &Sim| {
        let holds = |path| sim.read_file(path).unwrap().windows(secret.len()).any(|w| w == secret);
        sim.files().iter().any(|(path, _)| holds(path))
    };
    (sim, store, holds)
}

/// Names of removed segments were not synced: a power loss brought their bytes back.
#[test]
fn erased_bytes_stay_erased_after_power_loss() {
    for seed in 0..60 {
        let (sim, store, holds) = forgotten(b"4242 4242 4242 4242");
        assert!(holds(&sim));
        assert!(store.compact(u64::MAX).unwrap().is_complete());
        sim.power_loss_keeping_some(seed);
        assert!(!holds(&sim), "{seed}");
    }
}

#[test]
fn an_erasure_with_a_failed_call_is_not_reported_complete_early() {
    let mut failed = 0;
    for call in 0.. {
        let (sim, store, holds) = forgotten(b"4242 4242 4242 4242");
        sim.fail_call(call, DiskFault::Io);
        let told = store.compact(u64::MAX);
        if sim.faults_met() == 0 {
            break;
        }
        sim.heal();
        let again = || store.compact(u64::MAX);
        failed += u64::from(told.is_err());
        if told.or_else(|_| again()).is_ok_and(|done| done.is_complete()) {
            assert!(!holds(&sim), "call {call}");
        }
    }
    assert!(failed > 10, "{failed}");
}

/// Ninety of a hundred results expire: the files take little more than the rest.
#[test]
fn a_compaction_leaves_little_more_than_the_live_bytes() {
    let sim = Sim::small(1);
    let store = sim.open_with(builder()).unwrap();
    for n in 0..2000 {
        let op = Operation::new(key(n));
        let op = if n % 10 == 0 { op } else { op.retention(KEPT) };
        assert!(store.mark(op).unwrap().is_first());
    }
    sim.advance(2 * KEPT);
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    let (segment, live) = (40 << 10, 200 * 560);
    let left = bytes_on_disk(&sim);
    assert!(left < live * 115 / 100 + 2 * segment, "{left} bytes for {live}");
    for n in 0..2000 {
        assert_eq!(store.get(key(n)).unwrap().is_some(), n % 10 == 0, "{n}");
    }
}

/// A remembered key takes 24 bytes of disk at most, and no memory.
#[test]
fn a_remembered_key_takes_few_bytes_and_answers_late_retries() {
    let sim = Sim::small(1);
    let year = Duration::from_secs(365 * 86_400);
    let store = sim.open_with(builder()).unwrap();
    let count = 20_000;
    for n in 0..count {
        let op = Operation::new(n).retention(KEPT).remember_expired(year);
        assert!(store.mark(op).unwrap().is_first());
    }
    sim.advance(2 * KEPT);
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    let stats = store.stats();
    assert_eq!(stats.expired_keys, count);
    assert_eq!((stats.keys_in_memory, stats.keys), (0, 0));
    let files = sim.files().into_iter().filter(|(path, _)| path.starts_with("/store/expired"));
    let bytes: u64 = files.map(|(_, len)| len).sum();
    assert!(bytes <= 24 * count, "{bytes} bytes for {count} keys");
    drop(store);
    let store = sim.open_with(builder()).unwrap();
    for n in 0..count {
        assert!(matches!(store.claim(n).unwrap(), Claim::Expired(_)), "{n}");
    }
    assert!(matches!(store.claim(count).unwrap(), Claim::Acquired(_)));
    // A file is removed as a whole when all its memories have passed.
    sim.advance(year);
    assert!(store.mark("one more").unwrap().is_first());
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    assert_eq!(store.stats().expired_keys, 0);
    assert!(matches!(store.claim(0_u64).unwrap(), Claim::Acquired(_)));
}

/// A file of expired keys that could be written and not opened stayed, and each further attempt left one more.
#[test]
fn a_compaction_that_fails_leaves_no_file_of_expired_keys() {
    // Several segments, each of which is opened, as is the file of its expired keys.
    let keys = 1000;
    let filled = || {
        let sim = Sim::small(1);
        let store = sim.open_with(builder()).unwrap();
        for n in 0..keys {
            let op = Operation::new(n).retention(KEPT).remember_expired(100 * KEPT);
            assert!(store.mark(op).unwrap().is_first());
        }
        sim.advance(2 * KEPT);
        (sim, store)
    };
    let files = |sim: &Sim| {
        let is_expired = |path: &std::path::PathBuf| path.starts_with("/store/expired");
        sim.files().into_iter().filter(|(path, _)| is_expired(path)).collect::<Vec<_>>()
    };
    let (sim, store) = filled();
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    let undisturbed = files(&sim).len();
    let mut tries = 0;
    for call in 0.. {
        let (sim, store) = filled();
        sim.fail_call(call, DiskFault::TooManyOpen);
        let _ = store.compact(u64::MAX);
        if sim.faults_met() == 0 {
            break;
        }
        tries += 1;
        sim.heal();
        // Otherwise nothing is written any more.
        if store.compact(u64::MAX).is_ok() {
            let files = files(&sim);
            assert_eq!(files.len(), undisturbed, "call {call}: {files:?}");
            assert_eq!(store.stats().expired_keys, keys);
        }
    }
    println!("{tries} calls took a descriptor");
    assert!(tries > 9, "{tries}");
}

/// Each call aimed at the end of the log at that time, after what the one before had moved: with more live bytes than the
/// budget no number of calls was enough.
#[test]
fn compaction_in_steps_ends_and_erases_what_was_forgotten_before() {
    let sim = Sim::small(1);
    let store = sim.open_with(builder()).unwrap();
    for n in 0..200 {
        assert!(store.mark(key(n)).unwrap().is_first());
    }
    assert!(store.forget(key(7)).unwrap());
    let mut calls = 0;
    while !store.compact(10 << 10).unwrap().is_complete() {
        calls += 1;
        assert!(calls < 100, "it never ends");
    }
    let stands = |n: u64| {
        let name = key(n).into_bytes();
        let holds =
            |(path, _)| sim.read_file(path).unwrap().windows(name.len()).any(|bytes| bytes == name);
        sim.files().into_iter().any(holds)
    };
    assert!(!stands(7) && stands(9));
    // Omissions don't count where everything is asked for.
    assert!(!store.compact(10 << 10).unwrap().is_complete());
    assert!(store.forget(key(10)).unwrap());
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    assert!(!stands(10));
    assert!(calls > 2, "{calls}");
    // Omissions also stop counting once the background reaches the end: the next call aims anew.
    assert!(!store.compact(1).unwrap().is_complete());
    assert!((11..200).all(|n| store.forget(key(n)).unwrap()));
    for _ in 0..20 {
        sim.advance(Duration::from_secs(61));
        while store.step().unwrap() == Duration::ZERO {}
    }
    assert!(store.mark(key(500)).unwrap().is_first());
    assert!(store.forget(key(500)).unwrap());
    assert!(store.compact(1 << 30).unwrap().is_complete());
    assert!(!stands(500));
}

/// A store of many marks, and after each `every` of them a result of `bytes`. Returns the bytes of all.
fn uneven(sim: &Sim, every: u64, bytes: usize) -> (Store, u64) {
    let store = sim.open_with(Store::builder().index_memory_max(64 * 4096)).unwrap();
    for n in 0..40_000_u64 {
        let op = Operation::new(n).durability(Durability::Flush);
        if n % every == 0 {
            let Claim::Acquired(claim) = store.claim(op).unwrap() else { panic!() };
            claim.complete(&vec![7; bytes][..]).unwrap();
        } else {
            assert!(store.mark(op).unwrap().is_first());
        }
        while n % 1000 == 0 && store.step().unwrap() == Duration::ZERO {}
    }
    let stats = store.stats();
    (store, stats.bytes_written - stats.bytes_moved)
}

/// Three bytes of four are in one key of four hundred, which a sample of a few hundred keys missed.
#[test]
fn an_estimate_includes_large_results_among_many_small_ones() {
    let (store, alive) = uneven(&Sim::small(3), 400, 60 << 10);
    let found = store.estimate().unwrap();
    assert!(found.live_bytes > alive / 2 && found.live_bytes < 2 * alive, "{found:?}, {alive}");
}

/// Where a sample misses them anyway, everything looks dead, and was moved again and again.
#[test]
fn live_records_are_not_moved_repeatedly_whatever_a_sample_says() {
    let sim = Sim::small(3);
    let (store, alive) = uneven(&sim, 8000, 500 << 10);
    for _ in 0..60 {
        while store.step().unwrap() == Duration::ZERO {}
        sim.advance(Duration::from_secs(60));
    }
    let moved = store.stats().bytes_moved;
    assert!(moved > 0 && moved <= 3 * alive, "{moved} bytes were moved of {alive}");
}

/// The bound that an operator plans by, at the default settings. When spares did not count, and segments were half of the
/// log each, the files together took 1.65 times as much.
#[test]
fn days_of_mixed_retention_take_at_most_twice_the_live_bytes_and_two_segments() {
    let mut traffic = Traffic::new(Store::builder());
    let mut sample = traffic.sample();
    let first_segment = sample.segment;
    for hour in 1..=3 * 24 {
        sample = traffic.hour(10);
        // With fewer live bytes than that, the three segments ahead are more.
        let is_warm = sample.live > first_segment;
        assert!(!is_warm || sample.share_of_bound() <= 1.0, "after {hour} hours {sample:?}");
    }
    let written = (sample.new + sample.moved) as f64 / sample.new as f64;
    assert!(sample.reclaimed > 0 && written < 2.0, "{written} bytes written for one: {sample:?}");
}

#[test]
fn an_estimate_counts_live_keys_by_state() {
    let sim = Sim::small(1);
    let store = sim.open_with(builder()).unwrap();
    for n in 0..3000 {
        let op = Operation::new(key(n));
        let op = if n % 3 == 0 { op } else { op.retention(KEPT) };
        assert!(store.mark(op).unwrap().is_first());
        while n % 100 == 0 && store.step().unwrap() == Duration::ZERO {}
    }
    for n in 0..10_u64 {
        drop(store.claim(n).unwrap());
    }
    sim.advance(2 * KEPT);
    let found = store.estimate().unwrap();
    let near = |value: u64, expected: u64| value.abs_diff(expected) * 5 < expected;
    assert!(near(found.completed, 1000), "{found:?}");
    assert!(near(found.live_bytes, 1000 * 560), "{found:?}");
    assert!(
        found.dead_bytes > found.live_bytes && found.open > 0 && found.failed == 0,
        "{found:?}"
    );
    // As it was before anything expired.
    let stats = store.stats();
    let then = stats.estimate_at_checkpoint.unwrap();
    assert!(stats.last_checkpoint.unwrap() > std::time::UNIX_EPOCH);
    assert!(near(then.completed, 3000) && then.live_bytes > found.live_bytes, "{then:?}");
    store.close(Duration::ZERO).unwrap();
    assert!(sim.open_with(builder()).unwrap().stats().last_checkpoint.is_none());
}

/// The reads of a sample at each of fifty checkpoints a second tripled the p99 of pairs.
#[test]
fn checkpoints_in_fast_succession_share_a_sample() {
    let sim = Sim::small(1);
    let store = sim.open_with(builder()).unwrap();
    let completed_at_checkpoint = |keys: std::ops::Range<u64>| {
        keys.for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
        store.merge_index().unwrap();
        store.stats().estimate_at_checkpoint.unwrap().completed
    };
    assert_eq!(completed_at_checkpoint(0..100), 100);
    assert_eq!(completed_at_checkpoint(100..105), 100);
    // Unless the log has grown by more than an eighth.
    assert_eq!(completed_at_checkpoint(105..120), 120);
    assert_eq!(completed_at_checkpoint(120..125), 120);
    sim.advance(Duration::from_secs(1));
    assert_eq!(completed_at_checkpoint(125..126), 126);
}

/// Ten stores in one process cost little while they hold little.
#[test]
fn ten_empty_stores_take_four_mebibytes_and_few_threads_and_files_each() {
    let dir = tempfile::tempdir().unwrap();
    let output = child("ten", dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| Some(line.split_once("each: ")?.1)).expect("figures");
    let figures: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
    let [threads, files] = figures[..] else { panic!("{line}") };
    for n in 0..10 {
        let mut bytes = 0;
        for part in ["", "log", "index"] {
            let entries = std::fs::read_dir(dir.path().join(n.to_string()).join(part));
            for entry in entries.into_iter().flatten() {
                let meta = entry.unwrap().metadata().unwrap();
                bytes += if meta.is_file() { meta.len() } else { 0 };
            }
        }
        assert!(bytes <= 4 << 20, "{bytes} bytes");
    }
    assert!(threads <= 2 && files <= 16, "{threads} threads, {files} files");
}

/// The process of that test: prints the cost of each of ten stores.
pub(crate) fn ten(dir: &std::path::Path) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let before = (count("task"), count("fd"));
    let stores: Vec<Store> = (0..10)
        .map(|n| {
            let store = Store::open_or_create(dir.join(n.to_string())).unwrap();
            assert!(store.mark("k").unwrap().is_first());
            store
        })
        .collect();
    // Spares are prepared by then.
    let has_spare = |n: usize| {
        let entries = std::fs::read_dir(dir.join(n.to_string()).join("log")).unwrap();
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("spare-"))
    };
    while !(0..10).all(has_spare) {
        std::thread::yield_now();
    }
    let each = |now: usize, before: usize| (now - before).div_ceil(stores.len());
    println!("each: {} {}", each(count("task"), before.0), each(count("fd"), before.1));
}

/// Full and sealed segments are read through maps: a log of any length needs few open files, to open it too.
#[cfg(target_os = "linux")]
#[test]
fn a_log_of_many_segments_keeps_few_files_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("keys");
    let builder = || {
        let small = Store::builder().segment_bytes(16 << 10).result_bytes_max(256);
        small.index_memory_max(64 << 10).manual_maintenance(true)
    };
    let files = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let links = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
        links.filter(|link| link.starts_with(&path)).count()
    };
    let store = builder().open_or_create(&path).unwrap();
    let mut most = 0;
    for n in 0..4000 {
        let op = Operation::new(format!("{n:0>400}")).durability(Durability::Flush);
        assert!(store.mark(op).unwrap().is_first());
        while store.step().unwrap() == Duration::ZERO {}
        most = most.max(files());
    }
    assert!(store.stats().segments > 50, "{} segments", store.stats().segments);
    assert!(store.get(format!("{:0>400}", 7)).unwrap().is_some());
    store.close(Duration::ZERO).unwrap();
    let store = builder().open(&path).unwrap();
    let opened = files();
    for n in 0..4000 {
        assert!(store.get(format!("{n:0>400}")).unwrap().is_some());
    }
    assert!(store.verify().unwrap().damages.is_empty());
    println!(
        "{} segments: {most} files while filled, {opened} opened, {} then",
        store.stats().segments,
        files()
    );
    assert!(most.max(opened).max(files()) <= 24, "{most}, {opened}, {} files", files());
}

/// A disk is full of claims, and the process dies: records that no watermark covers need a segment of their own to become
/// durable. Its space was reserved, so the store opens whole, and continues as soon as there is more.
#[test]
fn a_disk_filled_by_claims_has_space_for_its_recovery() {
    let mut resynced = 0;
    for disk_kib in [160, 200, 256, 300] {
        let sim = Sim::small(1);
        sim.set_disk_bytes_max(disk_kib << 10);
        let store = sim.open_with(builder()).unwrap();
        let marked = (0..3000).find(|n| store.mark(key(*n)).is_err()).unwrap();
        assert_eq!(store.mark(key(marked)).unwrap_err().kind(), ErrorKind::StorageFull);
        sim.kill();
        let store = sim.open_with(builder()).unwrap();
        assert!(store.health().is_writable(), "{disk_kib} KiB: {:?}", store.health());
        resynced += store.stats().opening.records_resynced;
        assert!((0..marked).all(|n| store.get(key(n)).unwrap().is_some()), "{disk_kib} KiB");
        sim.set_disk_bytes_max(u64::MAX);
        assert!(store.mark(key(marked)).unwrap().is_first());
    }
    println!("{resynced} records made durable on full disks");
    assert!(resynced > 0);
}

/// A log of short keys has filled the budget; the table of all of them would take a quarter as much again.
#[test]
fn a_checkpoint_beyond_the_budget_is_refused() {
    let sim = Sim::small(1);
    let most = 400 << 10;
    let builder = builder().index_memory_max(1 << 20).disk_bytes_max(most);
    let store = sim.open_with(builder.clone()).unwrap();
    let marked = (0_u64..).find(|n| store.mark(*n).is_err()).unwrap();
    assert_eq!(store.mark(marked).unwrap_err().kind(), ErrorKind::StorageFull);
    let merged = store.merge_index();
    assert!(bytes_on_disk(&sim) <= most, "{} bytes", bytes_on_disk(&sim));
    assert_eq!(merged.unwrap_err().kind(), ErrorKind::StorageFull);
    assert!(matches!(store.health(), Health::Full { .. }));
    assert!((0..marked).all(|n| store.get(n).unwrap().is_some()));
    drop(store);
    assert!(bytes_on_disk(&sim) <= most, "{} bytes", bytes_on_disk(&sim));
    let store = sim.open_with(builder.disk_bytes_max(2 * most)).unwrap();
    store.merge_index().unwrap();
    assert_eq!((store.stats().tables, store.stats().keys), (1, marked));
}
