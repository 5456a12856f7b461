//! Sizes that change between two opens.

use onlyonce::testing::Sim;
use onlyonce::{Claim, ClaimGuard, Store};
use std::time::Duration;

/// A store written with small segments was closed with one of them listed ahead, and opened with a larger
/// `result_bytes_max`. A result longer than that segment did not fit, and spares were prepared one after the other until
/// the disk was full. Now the log skips a segment that is too small.
#[test]
fn a_result_longer_than_the_segments_of_an_earlier_open_fits() {
    let sim = Sim::small(1);
    let small = Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let store = sim.open_with(small).unwrap();
    let _ = store.mark("first").unwrap();
    // Background work lists a segment ahead and keeps a spare.
    for _ in 0..10 {
        store.step().unwrap();
    }
    store.close(Duration::ZERO).unwrap();

    sim.set_disk_bytes_max(64 << 20);
    let store = sim.open_with(Store::builder()).unwrap();
    let Claim::Acquired(claim) = store.claim("large").unwrap() else { panic!() };
    claim.complete(&[7; 300 << 10][..]).unwrap();
    assert!(sim.disk_bytes() < 16 << 20, "{}", sim.disk_bytes());
    sim.kill();
    let store = sim.open_with(Store::builder()).unwrap();
    let Claim::Completed(done) = store.claim("large").unwrap() else { panic!() };
    assert_eq!(done.result().len(), 300 << 10);
    assert!(!store.mark("first").unwrap().is_first());
}

fn claimed(store: &Store, key: &str) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{key}: {other}"),
    }
}

fn rest(sim: &Sim, store: &Store) {
    for _ in 0..400 {
        let wait = store.step().unwrap();
        if wait > Duration::from_secs(60) {
            return;
        }
        sim.advance(wait);
    }
}

fn largest_segment(sim: &Sim) -> u64 {
    let files = sim.files().into_iter();
    let segments = files.filter(|(path, _)| path.extension().is_some_and(|end| end == "log"));
    segments.map(|(_, len)| len).max().unwrap()
}

/// The oldest segment has a result longer than later settings allow. Spares too small for it were prepared one after the
/// other until the disk was full, and the segment stayed for ever.
#[test]
fn a_record_longer_than_the_current_settings_moves_into_a_segment_of_its_size() {
    let sim = Sim::new(1);
    let store = sim.open_with(Store::builder().result_bytes_max(900 << 10)).unwrap();
    claimed(&store, "large").complete(&vec![7_u8; 800 << 10]).unwrap();
    store.close(Duration::ZERO).unwrap();
    drop(store);
    let before = sim.disk_bytes();
    sim.set_disk_bytes_max(before + (64 << 20));
    let small = || Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let store = sim.open_with(small()).unwrap();
    for _ in 0..3 {
        assert!(store.compact(u64::MAX).unwrap().is_complete());
        assert!(sim.disk_bytes() < before + (8 << 20), "{} bytes", sim.disk_bytes());
    }
    drop(store);
    sim.kill();
    let store = sim.open_with(small()).unwrap();
    let Claim::Completed(done) = store.claim("large").unwrap() else { panic!() };
    assert!(done.result().len() == 800 << 10 && store.verify().unwrap().is_whole());
}

/// Segments of each size are followed by those of each other, twice, with a result of maximal length in each open; then
/// the oldest is removed, and the store falls silent.
#[test]
fn sizes_may_shrink_and_grow_between_opens_in_any_order() {
    let sizes: [(u64, u32); 3] = [(16 << 10, 1 << 10), (64 << 10, 20 << 10), (256 << 10, 90 << 10)];
    let mut most = 0.0_f64;
    for number in 0..sizes.len().pow(3) {
        let order = [number % 3, number / 3 % 3, number / 9];
        let ending = ["close", "kill"][number % 2];
        let context = format!("{order:?}, {ending}");
        let sim = Sim::new(1);
        sim.set_disk_bytes_max(64 << 20);
        let mut alive = 0;
        for (life, size) in order.into_iter().enumerate() {
            let (segment, result) = sizes[size];
            let builder = Store::builder().segment_bytes(segment).result_bytes_max(result);
            let store = sim.open_with(builder).unwrap();
            for n in 0..3 {
                let key = format!("{life} {n}");
                claimed(&store, &key).complete(&vec![7_u8; result as usize]).unwrap();
                alive += u64::from(result) + 500;
                if n == 1 {
                    assert!(store.forget(&*key).unwrap());
                    alive -= u64::from(result) + 500;
                }
            }
            (0..50_u64).for_each(|n| {
                let _ = store.mark((life as u64, n)).unwrap();
            });
            rest(&sim, &store);
            assert!(store.compact(u64::MAX).unwrap().is_complete(), "{context}");
            rest(&sim, &store);
            sim.advance(Duration::from_secs(30));
            rest(&sim, &store);
            let (used, segment) =
                (sim.disk_bytes(), largest_segment(&sim).max(segment.min(1 << 20)));
            let bound = 2 * alive + 4 * segment + (64 << 10);
            most = most.max(used as f64 / bound as f64);
            assert!(used <= bound, "{context}: {used} bytes of {bound}, {alive} alive");
            assert!(store.verify().unwrap().is_whole(), "{context}");
            if ending == "close" {
                store.close(Duration::ZERO).unwrap();
            } else {
                sim.kill();
            }
        }
        let store = sim.open_with(Store::builder()).unwrap();
        for life in 0..3 {
            for n in 0..3 {
                let found = store.get(&*format!("{life} {n}")).unwrap();
                assert_eq!(found.is_some(), n != 1, "{context}: {life} {n}");
            }
        }
    }
    println!("at most {most:.2} of the bound");
}

/// The next segment is listed, empty and too small for the next record. On a disk without space for both it is removed
/// first.
#[test]
fn a_next_segment_that_is_too_small_is_replaced() {
    let sim = Sim::new(1);
    let store = sim.open_with(Store::builder().result_bytes_max(900 << 10)).unwrap();
    for n in 0..4 {
        claimed(&store, &format!("large {n}")).complete(&vec![7_u8; 800 << 10]).unwrap();
    }
    store.close(Duration::ZERO).unwrap();
    drop(store);
    let small = || Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let store = sim.open_with(small()).unwrap();
    // Background work lists one ahead, of the size in the current settings, after each record that moved.
    for _ in 0..4 {
        rest(&sim, &store);
        let segments = store.stats().segments;
        store.compact(600 << 10).unwrap();
        assert!(store.stats().segments <= segments + 2);
    }
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    rest(&sim, &store);
    assert!(sim.disk_bytes() < 9 << 20, "{} bytes", sim.disk_bytes());
    sim.kill();
    let store = sim.open_with(small()).unwrap();
    assert!((0..4).all(|n| store.get(&*format!("large {n}")).unwrap().is_some()));
    assert!(store.verify().unwrap().is_whole());
}
