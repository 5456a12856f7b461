//! Numbers about a store: [`Stats`], [`Estimate`], and what the opening found.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Hosting;
use crate::Result;
use crate::backend::Embedded;
use crate::claim::wall;
use crate::engine::{Alive, Engine, KeyCounts};
use crate::sealed::listed::ListedFile;
use crate::sync::Ordering;
use crate::types::Lsn;

/// Counts since the store was opened. See [`Store::stats`](crate::Store::stats).
///
/// ```
/// # use onlyonce::{Durability, Operation, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # let _ = store.mark("first")?;
/// let before = store.stats();
/// for n in 0..100_u64 {
///     let _ = store.mark(Operation::new(n).durability(Durability::Flush))?;
/// }
/// store.sync()?;
/// let after = store.stats();
/// assert_eq!((after.keys - before.keys, after.syncs - before.syncs), (100, 1));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Default, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Known keys, including expired ones, and steps that have ended, until compaction removes them. A key may be counted twice if it changed after it was sealed, or if it was
    /// forgotten but is not yet compacted away.
    pub keys: u64,
    /// Claims in flight: granted ones that have not ended, and those that were told of an interruption and have not decided.
    /// A detached claim counts while a guard of it is attached.
    pub in_flight: u64,
    /// Keys that are interrupted now: an attempt ended without an outcome, or its lease has lapsed, and no claimant decides
    /// about it right now. This is not an estimate.
    pub interrupted: u64,
    /// Keys that are held now, and wait to be resolved. This is not an estimate.
    pub held: u64,
    /// Claims that are detached now: a ticket stands for them, and their lease has not passed. This is not an estimate,
    /// except that a claim whose record can't be read is not counted: [`Store::verify`](crate::Store::verify) reports it.
    pub detached: u64,
    /// Keys whose last attempt had no effect and asked for a delay that has not passed, counted as `detached` is.
    pub delayed: u64,
    /// Segments of the log.
    pub segments: u64,
    /// Bytes of the log's segments, including the space prepared ahead.
    pub log_bytes: u64,
    /// The time at which the oldest claim in flight was granted, or the oldest open question was asked, whichever is earlier.
    pub oldest_claim: Option<SystemTime>,
    /// Bytes of the log written after the last checkpoint. Opening the store after a crash has to read them.
    pub log_bytes_since_checkpoint: u64,
    /// When the last checkpoint was made; `None` if there was none since the store was opened.
    pub last_checkpoint: Option<SystemTime>,
    /// An estimate of live bytes and of keys by state, made at the last checkpoint, or up to a second or an eighth of
    /// the log before it. For a current estimate, see [`Store::estimate`](crate::Store::estimate).
    pub estimate_at_checkpoint: Option<Estimate>,
    /// Bytes that all files together take.
    pub disk_bytes: u64,
    /// Bytes that all files together may take: `u64::MAX` if `disk_bytes_max` is not set.
    pub disk_bytes_max: u64,
    /// Bytes that compaction moved since the store was opened.
    pub bytes_moved: u64,
    /// Bytes of segments that compaction reclaimed.
    pub bytes_reclaimed: u64,
    /// Files of remembered keys.
    pub expired_files: u64,
    /// Keys in the files of remembered keys.
    pub expired_keys: u64,
    /// Sealed tables of the index.
    pub tables: u64,
    /// Bytes of the sealed tables of the index.
    pub index_bytes: u64,
    /// Keys that are only in memory, which the next checkpoint seals, and claims in flight.
    pub keys_in_memory: u64,
    /// Why background work can't prepare space or make checkpoints: a damaged record (see
    /// [`admin::repair`](crate::admin::repair)), or a full disk. The work is retried, and this is `None` once it
    /// succeeds.
    pub background_error: Option<String>,
    /// Tables that were found damaged or missing, at the open or later, and were rebuilt from the log.
    pub tables_mended: u64,
    /// Syncs of the log since the store was opened.
    pub syncs: u64,
    /// Time spent in these syncs.
    pub sync_time: std::time::Duration,
    /// Records placed since the store was opened. Divided by `syncs`, this is the average number of records that share
    /// a sync.
    pub records: u64,
    /// Bytes of records written since the store was opened.
    pub bytes_written: u64,
    /// Which process hosts the store, and how many use it through that one. `None` if it is opened by this process alone.
    pub hosting: Option<Hosting>,
    /// What the open found.
    pub opening: Opening,
}

impl Stats {
    pub(crate) fn of(embedded: &Embedded) -> Self {
        let engine: &Engine = embedded;
        // In a fork a lock may be held for ever; the counts are the parent's anyway.
        let in_flight = if engine.is_foreign() { 0 } else { engine.in_flight() };
        let inside = engine.enter().ok();
        if inside.is_some() {
            // A key whose record can't be read isn't counted; a walk reports it.
            let _ = engine.decide_hints();
        }
        let counts = match engine.is_foreign() {
            true => KeyCounts::default(),
            false => engine.count_keys(inside.as_ref()),
        };
        if inside.is_some() {
            engine.tell_gauges(&counts);
        }
        drop(inside);
        let listed = if engine.is_foreign() { Vec::new() } else { engine.log.reading().listed() };
        let is_ours = !engine.is_foreign();
        let index = is_ours.then(|| engine.tables());
        let (tables, expired) = index
            .as_ref()
            .map(|index| (index.list.clone(), index.expired.clone()))
            .unwrap_or_default();
        let covered = index.as_ref().map(|index| index.covered);
        let since_checkpoint = covered.map_or(0, |covered| engine.log.bytes_since(covered));
        let (disk_bytes, disk_bytes_max) =
            if is_ours { engine.log.budget() } else { (0, u64::MAX) };
        let checkpoint = if is_ours { engine.last_checkpoint() } else { None };
        let report = &engine.report;
        Stats {
            keys: tables.iter().map(|table| table.listed.slots).sum::<u64>() + counts.unsealed,
            in_flight: in_flight + counts.open.asked,
            interrupted: counts.open.interrupted,
            held: counts.open.held,
            detached: counts.open.detached,
            delayed: counts.open.delayed,
            segments: listed.len() as u64,
            oldest_claim: counts.oldest_claim.map(|(since, offset)| wall(since, offset)),
            log_bytes_since_checkpoint: since_checkpoint,
            last_checkpoint: checkpoint.map(|made| wall(made.now, made.offset)),
            estimate_at_checkpoint: checkpoint
                .and_then(|made| made.sample)
                .map(|sample| Estimate::from_sample(sample.alive, sample.log_bytes)),
            disk_bytes,
            disk_bytes_max,
            bytes_moved: engine.moved.load(Ordering::Relaxed),
            bytes_reclaimed: engine.reclaimed.load(Ordering::Relaxed),
            expired_files: expired.len() as u64,
            expired_keys: expired.iter().map(|file| file.listed.entries).sum(),
            tables: tables.len() as u64,
            index_bytes: tables.iter().map(|table| table.listed.bytes()).sum(),
            keys_in_memory: counts.unsealed + counts.sealed_live,
            background_error: if is_ours { engine.trouble() } else { None },
            tables_mended: engine.mended.load(Ordering::Relaxed),
            log_bytes: listed.iter().map(|segment| segment.end.since(segment.base)).sum(),
            syncs: engine.log.syncs.load(Ordering::Relaxed),
            sync_time: std::time::Duration::from_nanos(
                engine.log.sync_nanos.load(Ordering::Relaxed),
            ),
            records: if is_ours { engine.log.records() } else { 0 },
            bytes_written: engine.log.bytes_written.load(Ordering::Relaxed),
            hosting: if is_ours { Hosting::of(embedded) } else { None },
            opening: Opening {
                was_clean: report.was_clean,
                records_read: report.records,
                records_resynced: report.copied,
                cut: report.cut.as_ref().map(|cut| Cut {
                    path: cut.path.clone(),
                    offset: cut.offset,
                    bytes: cut.bytes,
                    whole_records: cut.whole_records,
                }),
            },
        }
    }
}

/// An estimate of what is live in a store. See [`Store::estimate`](crate::Store::estimate).
///
/// ```
/// # let store = onlyonce::testing::Sim::new(1).open()?;
/// let estimate = store.estimate()?;
/// if estimate.held > 0 {
///     println!("about {} keys wait for somebody to resolve them", estimate.held);
/// }
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Estimate {
    /// Bytes of live records. A record is live if it is the newest of its key and has not expired.
    pub live_bytes: u64,
    /// All other bytes of the log, which compaction could reclaim.
    pub dead_bytes: u64,
    /// Keys claimed or interrupted: counted, not estimated.
    pub open: u64,
    /// Keys held: counted, not estimated.
    pub held: u64,
    /// Keys whose last attempt had no effect.
    pub aborted: u64,
    /// Keys with a result.
    pub completed: u64,
    /// Keys with a recorded failure.
    pub failed: u64,
}

impl Estimate {
    pub(crate) fn of(engine: &Engine) -> Result<Self> {
        let _inside = engine.enter()?;
        let _ = engine.decide_hints();
        let log_bytes = engine.log.bytes_since(Lsn::ZERO);
        Ok(Estimate::from_sample(engine.sampling().estimate()?, log_bytes))
    }

    fn from_sample(alive: Alive, log_bytes: u64) -> Self {
        let [claimed, interrupted, held, aborted, completed, failed] = alive.keys;
        Estimate {
            live_bytes: alive.bytes,
            // A sample may count more than the log holds.
            dead_bytes: log_bytes.saturating_sub(alive.bytes),
            open: claimed + interrupted,
            held,
            aborted,
            completed,
            failed,
        }
    }
}

/// What an open found.
///
/// ```
/// # use onlyonce::testing::Sim;
/// # let sim = Sim::new(1);
/// # let _ = sim.open()?.mark("k")?;
/// # let _ = sim.open()?.mark("l")?;
/// let opening = sim.open()?.stats().opening; // of a store that was closed
/// assert!(opening.was_clean && opening.records_read < 10); // a close leaves a short log without a table
/// assert!(opening.records_resynced == 0 && opening.cut.is_none());
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Default, Debug)]
#[non_exhaustive]
pub struct Opening {
    /// Whether the last owner closed the store.
    pub was_clean: bool,
    /// Records read.
    pub records_read: u64,
    /// Records in the tail that no watermark covered, and that the open made durable again.
    pub records_resynced: u64,
    /// The torn tail that the open cut off: a last write that was never finished.
    pub cut: Option<Cut>,
}

/// A torn tail that an open cut off. Nothing acknowledged at [`Sync`](crate::Durability::Sync) was in it.
///
/// ```
/// # use onlyonce::{Durability, Operation, testing::Sim};
/// # let sim = Sim::new(1);
/// # let store = sim.open()?;
/// # for n in 0..500_u64 { let _ = store.mark(Operation::new(n).durability(Durability::Flush))?; }
/// # sim.power_loss_keeping_some(7);
/// let store = sim.open()?; // after a power cut
/// if let Some(cut) = store.stats().opening.cut {
///     println!("{} bytes cut off in {}", cut.bytes(), cut.path().display());
/// }
/// # assert!(store.stats().opening.cut.is_some());
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) whole_records: u64,
}

impl Cut {
    /// Returns the path of the segment.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # for n in 0..500_u64 { let _ = store.mark(Operation::new(n).durability(Durability::Flush))?; }
    /// # sim.power_loss_keeping_some(7);
    /// let cut = sim.open()?.stats().opening.cut.unwrap();
    /// assert!(cut.path().starts_with("/store/log"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the offset in the segment at which the log ended.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # for n in 0..500_u64 { let _ = store.mark(Operation::new(n).durability(Durability::Flush))?; }
    /// # sim.power_loss_keeping_some(7);
    /// let cut = sim.open()?.stats().opening.cut.unwrap();
    /// println!("the log ends at byte {} of {}", cut.offset(), cut.path().display());
    /// # assert!(cut.offset() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns how many bytes after that offset held data.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # for n in 0..500_u64 { let _ = store.mark(Operation::new(n).durability(Durability::Flush))?; }
    /// # sim.power_loss_keeping_some(7);
    /// let cut = sim.open()?.stats().opening.cut.unwrap();
    /// assert!(cut.bytes() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how many whole records the cut tail contained. There may be some, because devices persist writes out of
    /// order.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # for n in 0..500_u64 { let _ = store.mark(Operation::new(n).durability(Durability::Flush))?; }
    /// # sim.power_loss_keeping_some(7);
    /// let cut = sim.open()?.stats().opening.cut.unwrap();
    /// println!("{} bytes, with {} whole records", cut.bytes(), cut.whole_records());
    /// # assert!(cut.whole_records() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn whole_records(&self) -> u64 {
        self.whole_records
    }
}
