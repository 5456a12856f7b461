//! What it takes to reclaim the space of expired keys.
//!
//! Results of 256 bytes really expire before the measurement begins; no clock is set. So a fill has to end before its
//! first key expires: `--fill-rate` pairs a second are assumed.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use onlyonce::{Durability, Policy, Store};

use crate::machine::{self, Io, Sizes};
use crate::progress::Progress;
use crate::work::{Args, close, fresh_kind, key, mib, open, pair, scratch};

/// Bytes of the record of a completion with 256 bytes, and of one with a retention.
const END_BYTES: u64 = 352;

pub fn run(args: &Args) {
    let keys = args.number("--expire-keys", 1_000_000);
    println!("\n{keys} keys with 256 bytes, given back by `compact`\n");
    for kept in [Kept::OneInTen, Kept::None] {
        reclaim(args, keys, kept);
    }
}

/// Which keys have no retention.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// Every tenth key, so that some of each segment is live.
    OneInTen,
    /// Whole segments die.
    None,
    All,
}

/// A store whose keys expire at a known time.
pub struct Expiring {
    pub dir: PathBuf,
    at: Instant,
}

impl Expiring {
    pub fn fill(args: &Args, dir: &Path, keys: u64, kept: Kept) -> Self {
        let (dir, kind) = (dir.join("keys"), fresh_kind());
        let seconds = 2.0 + keys as f64 / args.number("--fill-rate", 50_000) as f64;
        let retention = Duration::from_secs_f64(seconds);
        let store = open(&dir, Durability::Flush);
        let short = store.with_policy(Policy::new().retention(retention));
        let (began, mut progress) = (Instant::now(), Progress::new(keys, "keys"));
        for n in 0..keys {
            let is_kept = match kept {
                Kept::OneInTen => n % 10 == 0,
                Kept::None => false,
                Kept::All => true,
            };
            pair(if is_kept { &store } else { &short }, &key(kind, n));
            progress.show(n + 1);
        }
        progress.clear();
        store.merge_index().unwrap();
        let at = Instant::now() + retention + Duration::from_millis(10);
        assert!(kept == Kept::All || began.elapsed() < retention, "too slow: --fill-rate");
        drop(short);
        close(store);
        Expiring { dir, at }
    }

    pub fn wait(&self) {
        thread::sleep(self.at.saturating_duration_since(Instant::now()));
    }
}

fn reclaim(args: &Args, keys: u64, kept: Kept) {
    let scratch = scratch();
    let expiring = Expiring::fill(args, scratch.path(), keys, kept);
    expiring.wait();
    // By hand, so that the background doesn't start first.
    let store = Store::builder().manual_maintenance(true).open(&expiring.dir).unwrap();
    if !args.has("--warm") {
        machine::forget_cached(&expiring.dir);
    }
    let before = Sizes::of(&expiring.dir);
    let (io, faults, began) = (Io::now(), machine::major_faults(), Instant::now());
    let done = store.compact(u64::MAX).unwrap();
    let (took, io) = (began.elapsed().as_secs_f64(), Io::now().since(io));
    let after = Sizes::of(&expiring.dir);
    assert!(done.is_complete());
    let live = if kept == Kept::OneInTen { keys.div_ceil(10) * END_BYTES } else { 0 };
    let (given, moved) = (mib(done.bytes_reclaimed()), mib(done.bytes_moved()));
    println!("| kept: {kept:?} | figure |\n|---|---:|");
    println!("| time | {took:.2} s, {:.0} MiB/s of what is given back |", given / took);
    println!("| given back, in whole segments | {given:.1} MiB |");
    println!("| moved | {moved:.1} MiB, {:.3} of that |", moved / given);
    println!(
        "| read from the device | {:.1} MiB, {} faults |",
        mib(io.read),
        machine::major_faults() - faults
    );
    println!("| read, by calls | {:.1} MiB |", mib(io.asked));
    println!(
        "| written to the device | {:.1} MiB, {:.3} of what is given back |",
        mib(io.written),
        mib(io.written) / given
    );
    for (name, sizes) in [("before", before), ("after", after)] {
        println!(
            "| all files {name} | {:.1} MiB: segments {:.1}, spares {:.1}, index {:.1} |",
            mib(sizes.all),
            mib(sizes.segments),
            mib(sizes.spares),
            mib(sizes.index)
        );
    }
    println!("| alive | {:.1} MiB |", mib(live));
    let most = live as f64 * 1.15 + 2.0 * after.segment as f64;
    println!(
        "| all files / (1.15 x alive + 2 segments of {:.0} MiB), at most 1 | {:.2} |\n",
        mib(after.segment),
        after.all as f64 / most
    );
}
