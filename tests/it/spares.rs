//! Spares that an earlier opening left.

use std::path::PathBuf;
use std::time::Duration;

use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{Mark, Store, StoreBuilder};

/// A flipped bit in a spare became a byte behind the log's clean end once the spare was a segment; the store
/// then refused to open, although nothing was lost. Now a spare is looked at before it is used.
#[test]
fn a_damaged_spare_is_not_used() {
    let builder = || Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let sim = Sim::small(1);
    let store = sim.open_with(builder()).unwrap();
    let _ = store.mark("first").unwrap();
    while store.step().unwrap().is_zero() {}
    store.close(Duration::ZERO).unwrap();
    let spare = |sim: &Sim| {
        let files = sim.files().into_iter();
        files.map(|(path, _)| path).find(|path| path.to_string_lossy().contains("spare-"))
    };
    let damaged = spare(&sim).expect("a spare lies ahead");
    for offset in (0..16 << 10).step_by(512) {
        sim.flip_byte(&damaged, offset, 1).unwrap();
    }

    let store = sim.open_with(builder()).unwrap();
    let is_there = |sim: &Sim| sim.files().iter().any(|(path, _)| *path == damaged);
    let mut marked = 0_u64;
    // Until its turn has come, and a bit on.
    for _ in 0..2 {
        let wanted = store.stats().segments + 1;
        while store.stats().segments < wanted {
            let _ = store.mark(marked).unwrap();
            marked += 1;
            while store.step().unwrap().is_zero() {}
        }
    }
    assert!(!is_there(&sim));
    store.close(Duration::ZERO).unwrap();
    let store = sim.open_with(builder()).unwrap();
    assert!(matches!(store.mark("first").unwrap(), Mark::Again));
}

fn builder() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(256).index_memory_max(1 << 20)
}

fn key(n: u64) -> String {
    format!("{n:0>200}")
}

fn logs(sim: &Sim) -> Vec<PathBuf> {
    let paths = sim.files().into_iter().map(|(path, _)| path);
    paths.filter(|path| path.extension().is_some_and(|end| end == "log")).collect()
}

/// A segment that was prepared and never listed lies beside a clean manifest, and its removal fails once. Its number is
/// the next segment's, which was removed in its place, with all that stood in it.
#[test]
fn a_leftover_whose_removal_failed_does_not_take_the_next_segment_of_its_number_along() {
    let sim = Sim::small(7);
    let store = sim.open_with(builder()).unwrap();
    (0..200).for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
    store.close(Duration::ZERO).unwrap();
    drop(store);
    let listed = logs(&sim);
    // What the next segment would look like, had the process ended before its manifest.
    let other = sim.copy();
    let store = other.open_with(builder()).unwrap();
    for n in 1000.. {
        if logs(&other).len() > listed.len() {
            break;
        }
        assert!(store.mark(key(n)).unwrap().is_first());
        while store.step().unwrap() == Duration::ZERO {}
    }
    let new: Vec<_> = logs(&other).into_iter().filter(|path| !listed.contains(path)).collect();
    assert_eq!(new.len(), 1, "{new:?}");
    let mut header = other.read_file(&new[0]).unwrap();
    header[128..].fill(0);
    sim.write_file(&new[0], &header).unwrap();
    drop(store);
    let (mut tried, mut gone) = (0, Vec::new());
    for n in 0..120 {
        let machine = sim.copy();
        let store = machine.open_existing(builder(), false).unwrap();
        machine.fail_call(n, DiskFault::Io);
        if !matches!(store.mark("begins"), Ok(mark) if mark.is_first()) {
            continue;
        }
        machine.heal();
        tried += 1;
        (2000..2200).for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
        (0..200).for_each(|n| assert!(store.forget(key(n)).unwrap()));
        if store.compact(1).is_err() {
            continue;
        }
        machine.kill();
        drop(store);
        if let Err(e) = machine.open_existing(builder(), false) {
            gone.push(format!("call {n}: {e}"));
        }
    }
    assert!(tried > 0);
    assert!(gone.is_empty(), "of {tried} runs {} don't open again: {gone:?}", gone.len());
}
