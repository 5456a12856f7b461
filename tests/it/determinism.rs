//! The same seed gives the same run, byte for byte: without that, no failure of a simulated disk can be repeated.

use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{Claim, Durability, Operation, Store};

/// One of two writers: its claim, and its progress.
#[derive(Default)]
struct Writer {
    claims: Vec<onlyonce::ClaimGuard>,
    next: u64,
}

impl Writer {
    fn step(&mut self, store: &Store, name: &str, draw: u64) {
        let level = [Durability::Sync, Durability::Flush, Durability::Lazy][(draw % 3) as usize];
        if let (true, Some(claim)) = (draw % 2 == 0, self.claims.pop()) {
            match draw % 5 {
                0 => drop(claim),
                1 => claim.abort("why").unwrap(),
                _ => claim.complete(&vec![draw as u8; (draw % 3000) as usize]).unwrap(),
            }
            return;
        }
        self.next += 1;
        let op = Operation::new((name, self.next)).claim_durability(level).durability(level);
        let Claim::Acquired(claim) = store.claim(op).unwrap() else { panic!("a key of its own") };
        self.claims.push(claim);
    }
}

/// Two writers interleaved by a seed, over several segments, to a close. Returns what the disk saw, and every token.
fn trace(disk_seed: u64, order_seed: u64) -> (u64, Vec<u64>) {
    let sim = Sim::small(disk_seed);
    let builder =
        Store::builder().segment_bytes(16 << 10).result_bytes_max(4096).index_memory_max(512);
    let store = sim.open_with(builder).unwrap();
    let mut writers = [Writer::default(), Writer::default()];
    let mut random = order_seed;
    for _ in 0..400 {
        // Knuth's MMIX generator; its high bits are good enough to choose by.
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let draw = random >> 33;
        let turn = (draw % 7 % 2) as usize;
        writers[turn].step(&store, ["a", "b"][turn], draw / 7);
        if draw % 11 == 0 {
            store.step().unwrap();
            sim.advance(Duration::from_millis(draw % 2000));
        }
    }
    assert!(store.stats().segments > 3, "it rolls: {:?}", store.stats());
    let mut tokens: Vec<u64> =
        writers.iter().flat_map(|writer| &writer.claims).map(|claim| claim.token().get()).collect();
    let left = store.close(Duration::ZERO).unwrap();
    tokens.extend(left.iter().map(|left| left.token().get()));
    (sim.trace(), tokens)
}

#[test]
fn a_seed_decides_everything_that_reaches_the_disk() {
    let first = trace(1, 1);
    assert_eq!(first, trace(1, 1), "the same run twice");
    assert_ne!(first.0, trace(1, 2).0, "another order");
    assert_ne!(first.0, trace(2, 1).0, "other ids and salts");
}
