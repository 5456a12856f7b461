//! How background work slows down claims: p99 of a pair, idle and during that work.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use onlyonce::{Durability, Policy, Store};

use crate::expire::{Expiring, Kept};
use crate::levels;
use crate::machine;
use crate::progress::Progress;
use crate::work::{Args, Times, close, fresh_kind, key, median, open, open_with, pair, scratch};

pub fn run(args: &Args) {
    let (keys, rounds) = (args.number("--round-keys", 1_000_000), args.rounds());
    let idle = Duration::from_millis(args.number("--millis", 2000));
    println!("\n{keys} keys with 256 bytes; {rounds} rounds: idle, meanwhile, idle; medians\n");
    println!(
        "| pairs, 1 thread | idle p99 us | meanwhile p99 us | ratio | at most | seconds | pairs meanwhile | tables written |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    let only = args.value("--only");
    let is_asked_for = |what: &Meanwhile| {
        let name = format!("{what:?}").to_lowercase();
        only.as_ref().is_none_or(|only| only.split(',').any(|asked| asked == name))
    };
    let asked_for: Vec<_> = Meanwhile::ALL.into_iter().filter(is_asked_for).collect();
    let scratch = scratch();
    let alive = Expiring::fill(args, &scratch.path().join("alive"), keys, Kept::All);
    let expired = scratch.path().join("expired");
    let expired = match asked_for.iter().any(|what| what.is_reclaim()) {
        true => Some(Expiring::fill(args, &expired, keys, Kept::OneInTen)),
        false => None,
    };
    expired.iter().for_each(Expiring::wait);
    let stage = Stage {
        idle,
        alive: &alive.dir,
        expired: expired.as_ref().map(|expired| expired.dir.as_path()),
        copy: &scratch.path().join("copy"),
    };
    let named = args.value("--level");
    let levels: Vec<_> = [(Durability::Flush, 2), (Durability::Sync, 3)]
        .into_iter()
        .filter(|(level, _)| named.is_none() || levels(args).contains(level))
        .collect();
    let mut progress = Progress::new((levels.len() * asked_for.len() * rounds) as u64, "rounds");
    let mut done = 0;
    for (level, most) in levels {
        let mut seen: Vec<_> = asked_for.iter().map(|what| (*what, Vec::new())).collect();
        for _ in 0..rounds {
            for (what, figures) in &mut seen {
                figures.push(stage.round(*what, level));
                done += 1;
                progress.show(done);
            }
        }
        progress.clear();
        for (what, figures) in &seen {
            let of = |get: fn(&Round) -> f64| median(figures.iter().map(get));
            println!(
                "| {level:?}, {what:?} | {:.1} | {:.1} | {:.2} | {most} | {:.1} | {:.0} | {:.0} |",
                of(|round| round.idle),
                of(|round| round.meanwhile),
                of(|round| round.meanwhile / round.idle),
                of(|round| round.seconds),
                of(|round| round.pairs as f64),
                of(|round| f64::from(round.tables)),
            );
        }
    }
}

/// The work during the pairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meanwhile {
    /// A call of `compact`, in another thread, while nine keys in ten have expired.
    Compact,
    /// The same, by the store's own thread.
    Background,
    /// Checkpoints by the store's own thread, one after the other.
    Checkpoints,
    /// Merges of all tables, in another thread.
    Merges,
}

impl Meanwhile {
    const ALL: [Meanwhile; 4] =
        [Meanwhile::Compact, Meanwhile::Background, Meanwhile::Checkpoints, Meanwhile::Merges];

    fn is_reclaim(self) -> bool {
        matches!(self, Meanwhile::Compact | Meanwhile::Background)
    }
}

/// Stores of as many keys: one where no key expires, and one that is copied for each round.
struct Stage<'p> {
    idle: Duration,
    alive: &'p Path,
    expired: Option<&'p Path>,
    copy: &'p Path,
}

struct Round {
    idle: f64,
    meanwhile: f64,
    seconds: f64,
    pairs: usize,
    tables: u32,
}

impl Stage<'_> {
    fn round(&self, what: Meanwhile, level: Durability) -> Round {
        let before = self.idle(level);
        let dir = if what.is_reclaim() { self.copy } else { self.alive };
        if let (true, Some(expired)) = (what.is_reclaim(), self.expired) {
            machine::copy_synced(expired, dir);
        }
        let tables = || newest_table(dir);
        let tables_before = tables();
        let store = match what {
            // As many as are claimed in some hundredths of a second.
            Meanwhile::Checkpoints => open_with(dir, level, |builder| {
                builder.index_memory_max(if level == Durability::Sync { 64 << 8 } else { 64 << 12 })
            }),
            // Pairs expire too: the background leaves a log of which half is live.
            Meanwhile::Background => open_with(dir, level, |builder| {
                let policy = Policy::new().claim_durability(level).durability(level);
                builder.policy(policy.retention(Duration::from_secs(1)))
            }),
            _ => open(dir, level),
        };
        let began = Instant::now();
        let mut times = beside(&store, || match what {
            Meanwhile::Compact => assert!(store.compact(u64::MAX).unwrap().is_complete()),
            Meanwhile::Background => watch_background(&store),
            Meanwhile::Checkpoints => thread::sleep(self.idle),
            Meanwhile::Merges => {
                let began = Instant::now();
                while began.elapsed() < self.idle {
                    store.merge_index().unwrap();
                }
            }
        });
        let seconds = began.elapsed().as_secs_f64();
        close(store);
        let tables = tables() - tables_before;
        if what.is_reclaim() {
            std::fs::remove_dir_all(dir).unwrap();
        }
        Round {
            idle: (before + self.idle(level)) / 2.0,
            meanwhile: times.at(0.99) / 1000.0,
            seconds,
            pairs: times.len(),
            tables,
        }
    }

    fn idle(&self, level: Durability) -> f64 {
        let store = open(self.alive, level);
        // Merges left over from the last round would not be idle.
        store.merge_index().unwrap();
        let mut times = beside(&store, || thread::sleep(self.idle));
        close(store);
        times.at(0.99) / 1000.0
    }
}

/// Runs pairs while `work` runs in another thread.
fn beside(store: &Store, work: impl FnOnce() + Send) -> Times {
    let kind = fresh_kind();
    let mut times = Times::default();
    thread::scope(|scope| {
        // Ends on a panic too: otherwise the pairs would continue until the disk is full.
        let work = scope.spawn(work);
        while !work.is_finished() {
            let key = key(kind, times.len() as u64);
            times.time(|| pair(store, &key));
        }
    });
    times
}

/// Waits until half of the log has been reclaimed: the rest is still in progress then.
fn watch_background(store: &Store) {
    let half = store.stats().log_bytes / 2;
    let (mut reclaimed, mut since) = (0, Instant::now());
    while reclaimed < half {
        assert!(since.elapsed() < Duration::from_secs(60), "nothing more is given back");
        // Not more often: `stats` looks at all keys in memory, which would slow down the pairs.
        thread::sleep(Duration::from_millis(100));
        let now = store.stats().bytes_reclaimed;
        if std::mem::replace(&mut reclaimed, now) != now {
            since = Instant::now();
        }
    }
}

fn newest_table(dir: &Path) -> u32 {
    let names = std::fs::read_dir(dir.join("index")).unwrap();
    let names = names.map(|entry| entry.unwrap().path());
    let number = |path: std::path::PathBuf| path.file_stem()?.to_str()?.parse().ok();
    names.filter_map(number).max().unwrap_or(0)
}
