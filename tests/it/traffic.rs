//! Traffic of days on a simulated disk and clock: claims that are completed and kept for an hour, a day, a week, a month
//! or a year. It knows the live bytes exactly. A test and a bench compare the size of the store with them.

use std::collections::BTreeMap;
use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{Claim, Durability, Fingerprint, Operation, Policy, Store, StoreBuilder};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Retentions of results, and how many of a hundred have each.
const RETENTIONS: [(u64, u64); 5] =
    [(HOUR, 40), (DAY, 25), (7 * DAY, 15), (30 * DAY, 10), (365 * DAY, 10)];

pub struct Traffic {
    sim: Sim,
    store: Store,
    /// Milliseconds since the start.
    now: u64,
    pairs: u64,
    /// Bytes of results by the time at which they expire.
    expiring: BTreeMap<u64, u64>,
    live: u64,
    /// Bytes of all records written by calls, without those of compaction.
    new: u64,
    claim_bytes: u64,
    end_bytes: u64,
}

/// Sizes at one moment.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sample {
    pub live: u64,
    /// All files.
    pub disk: u64,
    /// The largest segment.
    pub segment: u64,
    /// Bytes of records since the start: written by calls, moved by compaction, and reclaimed.
    pub new: u64,
    pub moved: u64,
    pub reclaimed: u64,
}

impl Sample {
    /// The size of the store as a fraction of its bound: twice the live bytes, and two segments.
    pub fn share_of_bound(&self) -> f64 {
        self.disk as f64 / (2 * self.live + 2 * self.segment) as f64
    }
}

impl Traffic {
    pub fn new(builder: StoreBuilder) -> Self {
        let sim = Sim::small(1);
        let flush = Policy::new().claim_durability(Durability::Flush).durability(Durability::Flush);
        let store = sim.open_with(builder.policy(flush)).unwrap();
        let mut traffic = Traffic {
            sim,
            store,
            now: 0,
            pairs: 0,
            expiring: BTreeMap::new(),
            live: 0,
            new: 0,
            claim_bytes: 0,
            end_bytes: 0,
        };
        traffic.measure_records();
        traffic
    }

    /// One pair, to measure its records: all are equally long.
    fn measure_records(&mut self) {
        let (operation, written) = (self.operation(), || self.store.stats().bytes_written);
        let before = written();
        let Claim::Acquired(claim) = self.store.claim(&operation).unwrap() else { panic!() };
        self.claim_bytes = written() - before;
        claim.complete(&[7_u8; 256]).unwrap();
        self.end_bytes = written() - before - self.claim_bytes;
        self.count();
    }

    /// An hour with this many pairs a minute, with the background work of the store done when it is due.
    pub fn hour(&mut self, pairs_a_minute: u64) -> Sample {
        for _ in 0..60 {
            for _ in 0..pairs_a_minute {
                let operation = self.operation();
                let Claim::Acquired(claim) = self.store.claim(operation).unwrap() else { panic!() };
                claim.complete(&[7_u8; 256]).unwrap();
                self.count();
            }
            self.pass(MINUTE);
        }
        self.sample()
    }

    fn operation(&self) -> Operation<'static> {
        let key = format!("{:0>36}", self.pairs).into_bytes();
        let retention = Duration::from_millis(self.retention());
        Operation::new(key).fingerprint(Fingerprint::from_bytes([9; 16])).retention(retention)
    }

    /// The retention of the next result. 61 and 100 have no common divisor, so each hundred pairs has all of them, well
    /// mixed.
    fn retention(&self) -> u64 {
        let mut lot = self.pairs * 61 % 100;
        for (retention, weight) in RETENTIONS {
            match lot.checked_sub(weight) {
                Some(left) => lot = left,
                None => return retention,
            }
        }
        unreachable!("the weights are a hundred in all")
    }

    fn count(&mut self) {
        let until = self.now + self.retention();
        *self.expiring.entry(until).or_default() += self.end_bytes;
        self.live += self.end_bytes;
        self.new += self.claim_bytes + self.end_bytes;
        self.pairs += 1;
    }

    fn pass(&mut self, millis: u64) {
        let until = self.now + millis;
        while self.now < until {
            let wait = self.store.step().unwrap().as_millis() as u64;
            let wait = wait.min(until - self.now);
            self.sim.advance(Duration::from_millis(wait));
            self.now += wait;
        }
        while let Some(first) = self.expiring.first_entry().filter(|first| *first.key() <= self.now)
        {
            self.live -= first.remove();
        }
    }

    pub fn sample(&self) -> Sample {
        let files = self.sim.files();
        let segments =
            files.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "log"));
        let stats = self.store.stats();
        Sample {
            live: self.live,
            disk: files.iter().map(|(_, len)| len).sum(),
            segment: segments.map(|(_, len)| *len).max().unwrap_or(0),
            new: self.new,
            moved: stats.bytes_moved,
            reclaimed: stats.bytes_reclaimed,
        }
    }
}
