//! Sizes that change between two openings.

use onlyonce::testing::Sim;
use onlyonce::{Claim, Store};
use std::time::Duration;

/// A store written with small segments was closed with one of them listed ahead, and opened with a larger
/// `result_bytes_max`. A result longer than that segment found no place in it, and spares were prepared one
/// after the other until the disk was full. Now the log passes over what is too small.
#[test]
fn a_result_longer_than_the_segments_of_an_earlier_opening_finds_room() {
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
