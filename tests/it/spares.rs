//! Spares that an earlier opening left.

use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{Mark, Store};

/// A flipped bit in a spare became a byte behind the log's clean end once the spare was a segment; the store
/// then refused to open, although nothing was lost. Now a spare is looked at before it is used.
#[test]
fn a_damaged_spare_is_not_used() {
    let builder = || Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10);
    let sim = Sim::new(1);
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
