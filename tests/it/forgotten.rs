//! A forget, and the memory of its key: from then on the key is absent, wherever its records move.

use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{Operation, Store, StoreBuilder};

const MINUTE: Duration = Duration::from_secs(60);

fn builder() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10).index_memory_max(4096)
}

/// Work that moves records between a forget and the lookup of its key.
#[derive(Clone, Copy, Debug)]
enum Way {
    Stay,
    Checkpoint,
    Compact,
    Reopen,
    Kill,
}

const WAYS: [Way; 5] = [Way::Stay, Way::Checkpoint, Way::Compact, Way::Reopen, Way::Kill];

struct World {
    sim: Sim,
    store: Option<Store>,
}

impl World {
    fn new() -> Self {
        let sim = Sim::small(11);
        let store = Some(sim.open_with(builder()).unwrap());
        World { sim, store }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn go(&mut self, way: Way) {
        match way {
            Way::Stay => {}
            Way::Checkpoint => self.store().merge_index().unwrap(),
            Way::Compact => assert!(self.store().compact(u64::MAX).unwrap().is_complete()),
            Way::Reopen => {
                self.store().close(Duration::ZERO).unwrap();
                self.store = None;
                self.store = Some(self.sim.open_with(builder()).unwrap());
            }
            Way::Kill => {
                self.sim.kill();
                self.store = Some(self.sim.open_with(builder()).unwrap());
            }
        }
    }
}

#[test]
fn a_forgotten_key_stays_absent() {
    let kept = Duration::from_millis(7_001);
    let remembered = MINUTE + Duration::from_millis(1_234);
    // During its retention, once it expired, in the last minute of its memory, and after that.
    let moments = [1_000, 7_500, 66_000, 68_234, 68_236, 69_000, 90_000, 119_000, 121_000];
    let mut seen = 0;
    for before in WAYS {
        for after in WAYS {
            for moment in moments {
                for pause in [0, 1_000, 20_000, 52_000] {
                    let mut world = World::new();
                    let context = format!("{before:?}, {moment} ms, {after:?}, {pause} ms");
                    let op = || Operation::new("k").retention(kept).remember_expired(remembered);
                    assert!(world.store().mark(op()).unwrap().is_first());
                    world.sim.advance(Duration::from_millis(7_100.min(moment)));
                    world.go(before);
                    world.sim.advance(Duration::from_millis(moment - 7_100.min(moment)));
                    let _ = world.store().forget("k").unwrap();
                    let check = |world: &World, when: &str| {
                        let state = world.store().get("k").unwrap();
                        assert!(state.is_none(), "{context}, {when}: {state:?}");
                    };
                    check(&world, "at once");
                    world.go(after);
                    check(&world, "on its way");
                    world.sim.advance(Duration::from_millis(pause));
                    check(&world, "later");
                    world.go(after);
                    check(&world, "in the end");
                    assert!(world.store().mark("k").unwrap().is_first(), "{context}");
                    seen += 1;
                }
            }
        }
    }
    println!("{seen} lives of a forgotten key");
}

/// In the log a memory passed to the millisecond; in a file, at the end of its minute. A key judged to be remembered and
/// then forgotten, before its segment was removed, was reported by the file as expired for the rest of that minute.
#[test]
fn forgets_during_a_compaction_hide_the_memories_it_makes() {
    let name = |n: u64| format!("{n:0>400}");
    let mut midway = 0;
    for moment in (500..121_000).step_by(4_000) {
        let sim = Sim::small(5);
        let store = sim.open_with(builder()).unwrap();
        for n in 0..400 {
            let op = Operation::new(name(n)).retention(Duration::from_millis(250));
            assert!(store.mark(op.remember_expired(MINUTE)).unwrap().is_first());
        }
        sim.advance(Duration::from_millis(moment));
        let mut forgotten = Vec::new();
        let check = |forgotten: &[u64], when: &str| {
            for &n in forgotten {
                let state = store.get(name(n)).unwrap();
                assert!(state.is_none(), "{moment} ms, {n}, {when}: {state:?}");
            }
        };
        // A key of each segment after each step: some are judged to be remembered, and their segment is still there.
        for step in 0..60 {
            let before = store.stats().segments;
            store.step().unwrap();
            for n in (step..400).step_by(60) {
                let _ = store.forget(name(n)).unwrap();
                forgotten.push(n);
            }
            midway += u64::from(store.stats().segments < before);
            check(&forgotten, "at once");
            sim.advance(Duration::from_millis(20));
        }
        for _ in 0..5 {
            assert!(store.compact(u64::MAX).unwrap().is_complete());
            check(&forgotten, "in the end");
            sim.advance(Duration::from_secs(13));
        }
    }
    println!("{midway} segments were removed between forgets");
    assert!(midway > 50, "{midway}");
}
