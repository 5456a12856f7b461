//! What all parts share: arguments, keys, pairs, times.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use onlyonce::{Claim, Durability, Fingerprint, Operation, Policy, Store, StoreBuilder};

/// The command line: `--name value`, and `--name` alone.
pub struct Args(Vec<String>);

impl Args {
    pub fn new() -> Self {
        Args(std::env::args().collect())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|arg| arg == name)
    }

    pub fn value(&self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|arg| arg == name)?;
        self.0.get(at + 1).cloned()
    }

    pub fn number(&self, name: &str, default: u64) -> u64 {
        self.value(name).map_or(default, |text| text.parse().unwrap())
    }

    pub fn rounds(&self) -> usize {
        self.number("--rounds", 5) as usize
    }
}

/// Keys that are filled in, and keys that no store has: the kind is a key's first eight digits.
pub const FILLED: u32 = 0;
pub const NEW: u32 = 1;

/// A kind that no earlier run used.
pub fn fresh_kind() -> u32 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    (nanos / 1000) as u32 | 1 << 31
}

/// The nth key of a kind: 36 bytes, as a UUID has.
pub fn key(kind: u32, n: u64) -> [u8; 36] {
    let mut key = *b"00000000-0000-4000-8000-000000000000";
    let mut put = |from: usize, len: usize, mut value: u64| {
        for at in (from..from + len).rev() {
            key[at] = b"0123456789abcdef"[(value & 15) as usize];
            value >>= 4;
        }
    };
    put(0, 8, u64::from(kind));
    put(24, 12, n);
    key
}

/// Pseudo-random numbers: splitmix64 (Steele, Lea and Flood, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Claims a new key with a 16-byte fingerprint and completes it with 256 bytes.
pub fn pair(store: &Store, key: &[u8; 36]) {
    let operation = Operation::new(key).fingerprint(Fingerprint::from_bytes([9; 16]));
    let Claim::Acquired(claim) = store.claim(operation).unwrap() else { panic!("not granted") };
    claim.complete(&[7_u8; 256]).unwrap();
}

/// Opens a store whose calls are all at one level. Makes the first write of the open too.
pub fn open(dir: &Path, level: Durability) -> Store {
    open_with(dir, level, |builder| builder)
}

pub fn open_with(
    dir: &Path,
    level: Durability,
    settings: impl FnOnce(StoreBuilder) -> StoreBuilder,
) -> Store {
    let policy = Policy::new().claim_durability(level).durability(level);
    let store = settings(Store::builder().policy(policy)).open_or_create(dir).unwrap();
    store.mark("warm").map(drop).unwrap();
    store
}

pub fn close(store: Store) {
    store.close(Duration::ZERO).unwrap();
}

/// Durations of many operations.
#[derive(Default)]
pub struct Times(Vec<u64>);

impl Times {
    pub fn time<T>(&mut self, operation: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = operation();
        self.0.push(began.elapsed().as_nanos() as u64);
        done
    }

    pub fn append(&mut self, mut other: Times) {
        self.0.append(&mut other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The time in nanoseconds within which `part` of them ended.
    pub fn at(&mut self, part: f64) -> f64 {
        self.0.sort_unstable();
        self.0[((self.0.len() - 1) as f64 * part) as usize] as f64
    }

    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<u64>() as f64 / self.0.len() as f64
    }
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn seconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(std::env::var_os("ONLYONCE_BENCH_DIR").unwrap_or_else(|| ".".into()))
        .unwrap()
}
