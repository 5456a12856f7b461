//! The log: segments, appending, group commit, recovery, reading one record by LSN.
//!
//! Promises: records lie in the order in which they were placed; `written` and `durable` are prefixes of that order;
//! any later open finds durable records again, or reports their loss. After a failed write or sync, nothing more is
//! written. Never: interprets what a record says about its key.
//!
//! Its rules are numbered in `docs/durability.md`. `commit` decides which thread syncs, `room` what a full disk may
//! still take, `recovery` what an open finds, `survey` what a damaged log still holds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::{Clock, StoreClock};
use crate::entropy::Entropy;
use crate::events::Events;
use crate::manifest;
use crate::sealed::Pace;
use crate::storage::{self, Failure, Storage};
use crate::sync::{AtomicU64, Mutex};
use crate::types::{Lsn, StoreId, StoreMillis, WallMillis};
use crate::{Error, ErrorKind, Result};

mod census;
mod commit;
mod format;
mod growth;
pub(crate) mod open;
mod pool;
#[cfg(any(test, feature = "testing"))]
mod probe;
mod read;
mod reader;
pub(crate) mod repair;
mod room;
mod segment;
pub(crate) mod survey;
#[cfg(test)]
mod tests;
mod upkeep;
mod write;

use census::Census;
pub(crate) use census::Span;
pub(crate) use commit::Placed;
use commit::{CommitQueue, Failed};
use open::lifecycle::{self, Gate, Inside, KeptOut};
#[cfg(any(test, feature = "testing"))]
pub(crate) use probe::probe_segment;
pub(crate) use read::{Segments, StoreMoment};
pub(crate) use reader::Scrubbed;
use room::{Keeper, Leaving};
pub(crate) use room::{NoRoom, Room};
use segment::Segment;
pub(crate) use segment::{
    Backing, file_name as segment_file_name, ordinal_of as segment_ordinal_of,
};
pub(crate) use upkeep::Due;
use write::{LogWriter, Tail};

/// The outside world, as one store uses it.
#[derive(Clone, Debug)]
pub(crate) struct Seams {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

/// Sizes a store was opened with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// The first segment; later ones grow with the log, up to `segment_bytes_max`.
    pub(crate) segment_bytes_first: u64,
    pub(crate) segment_bytes_max: u64,
    /// The longest record: a segment holds at least one.
    pub(crate) record_bytes_max: u64,
    /// The most bytes that all files of the store may use; `u64::MAX`: as many as the disk has.
    pub(crate) disk_bytes_max: u64,
    pub(crate) map: bool,
}

/// An open log.
pub(crate) struct Log {
    /// Its storage passes the gate.
    seams: Seams,
    /// The same without the gate, for what is not the store's own.
    outside: Arc<dyn Storage>,
    dir: PathBuf,
    store: StoreId,
    gate: Arc<Gate>,
    sizes: Sizes,
    tail: Mutex<Tail>,
    /// Locked only through the queue: the thread that releases it wakes threads that wait for it.
    writer: Mutex<LogWriter>,
    queue: CommitQueue,
    keeper: Mutex<Keeper>,
    /// The listed segments, for readers; replaced as a whole.
    segments: Mutex<Arc<Vec<Arc<Segment>>>>,
    /// Opens full segments.
    pool: Arc<pool::Pool>,
    /// While the gate is unsettled, records at or after it can't be read: they wait for space to be made durable.
    unsettled_from: Lsn,
    /// How far tokens run ahead of LSNs. It doesn't change while LSNs may be taken.
    ahead: AtomicU64,
    store_clock: StoreClock,
    pub(crate) events: Events,
    /// Since when space is missing, and why; `None` once some could be prepared.
    full: Mutex<Option<(WallMillis, Error)>>,
    upkeep: upkeep::Upkeep,
    growth: growth::Growth,
    /// Bytes of tables and expired keys: they share the log's budget.
    pub(crate) index_bytes: AtomicU64,
    /// Counts for `stats`: syncs, and nanoseconds spent in them.
    pub(crate) syncs: Arc<AtomicU64>,
    pub(crate) sync_nanos: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
}

impl Log {
    /// Returns the number of records about keys placed since the open.
    pub(crate) fn records(&self) -> u64 {
        self.tail.lock().records
    }

    /// Returns the place of the next record.
    pub(crate) fn end(&self) -> Lsn {
        self.tail.lock().end()
    }

    /// Returns the end of the last record about a key, among those placed since the log last moved its tail.
    pub(crate) fn keyed_end(&self) -> Lsn {
        self.tail.lock().keyed_end
    }

    /// Returns the start of the oldest segment.
    pub(crate) fn head_base(&self) -> Lsn {
        self.keeper.lock().manifest.segments.first().map_or(Lsn::ZERO, |oldest| oldest.base)
    }

    /// Returns the bytes of the listed segments from `lsn` on: the whole of full ones, and the used part of the last
    /// one.
    pub(crate) fn bytes_since(&self, lsn: Lsn) -> u64 {
        let end = self.end();
        let segments = Arc::clone(&self.segments.lock());
        let bytes = segments.iter().map(|segment| {
            let from = segment.base().max(lsn);
            // The next one begins after the log's end.
            segment.identity.listed().end.min(end).max(from).since(from)
        });
        bytes.sum()
    }

    /// Returns why nothing is written any more, if so.
    pub(crate) fn poison_cause(&self) -> Option<Error> {
        self.gate.cause()
    }

    /// Returns the gate, which every call passes.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Lets the calling thread in. `Closed` once a close has begun, `Forked` in a fork of the process that opened the
    /// store.
    pub(crate) fn enter(&self) -> Result<Inside<'_>> {
        self.gate.enter().map_err(|refused| match refused {
            KeptOut::Closed => self.closed(),
            KeptOut::Forked => self.forked(),
        })
    }

    pub(crate) fn forked(&self) -> Error {
        lifecycle::forked(&self.dir)
    }

    pub(crate) fn closed(&self) -> Error {
        if self.gate.is_passed_on() {
            return self.poisoned();
        }
        Error::new(ErrorKind::Closed, "the store was closed: open it again").at(&self.dir)
    }

    /// Checked by all long work: a close waits for it, and after a failure it is useless.
    pub(crate) fn may_go_on(&self) -> Result<()> {
        if self.gate.must_leave() {
            return Err(self.closed());
        }
        if self.is_poisoned() {
            return Err(self.poisoned());
        }
        Ok(())
    }

    /// Returns the error to report for `error`: if the gate refused a change, that the store was poisoned or closed
    /// before.
    #[cold]
    pub(crate) fn explained(&self, error: Error) -> Error {
        match lifecycle::disk::Shut::is_cause_of(&error) {
            true if self.is_poisoned() => self.poisoned(),
            true => self.closed(),
            false => error,
        }
    }

    /// Returns the error of every call that would write after a failure.
    pub(crate) fn poisoned(&self) -> Error {
        let cause = self.poison_cause();
        let what = cause.as_ref().map_or_else(|| "a failure".to_owned(), Error::in_full);
        let error = Error::new(
            ErrorKind::Poisoned,
            format!("the store takes no writes since an earlier one failed ({what}); reopen it"),
        )
        .at(&self.dir);
        match cause {
            Some(cause) => error.because(cause),
            None => error,
        }
    }

    /// Returns the error of calls whose bytes were in flight when a write or sync failed.
    pub(crate) fn indeterminate(&self) -> Error {
        let error = self.poisoned();
        let message = format!(
            "it may or may not be on disk: reopen the store and ask for the key's state ({error})"
        );
        Error::new(ErrorKind::Indeterminate, message).at(&self.dir).because(error)
    }

    /// Runs `work`, which changes files; a panic in it poisons, because it is unknown how far it came.
    pub(crate) fn guarded<T>(&self, work: impl FnOnce() -> T) -> T {
        let unwinding = PoisonOnUnwind(self);
        let done = work();
        std::mem::forget(unwinding);
        done
    }

    /// Records the first failure; from now on nothing is written.
    fn poison(&self, cause: Error) -> Failed {
        let told = cause.again();
        if self.gate.poison(Some(cause)) {
            self.events.poisoned(&told);
        }
        self.queue.poison();
        Failed
    }

    /// Poisons the store because an invariant of ours doesn't hold, and returns the error.
    #[cold]
    pub(crate) fn bug(&self, what: impl std::fmt::Display) -> Error {
        self.failed(Failure::Poison(Error::bug(&self.dir, what)))
    }

    /// Returns the error of a change that failed, and poisons the log if the failure requires it.
    pub(crate) fn failed(&self, failure: Failure) -> Error {
        match failure {
            Failure::Before(e) => e,
            // The gate refused the change: an earlier failure poisoned the store.
            Failure::Poison(_) if self.is_poisoned() => self.poisoned(),
            Failure::Poison(e) => {
                self.poison(e.again());
                e
            }
        }
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.gate.is_poisoned()
    }

    pub(crate) fn now(&self) -> StoreMillis {
        self.store_clock.now(&*self.seams.clock)
    }

    /// Whether the log is being synced. Only a hint.
    pub(crate) fn is_syncing(&self) -> bool {
        self.queue.is_led()
    }

    pub(crate) fn durable(&self) -> Lsn {
        self.queue.durable()
    }

    pub(crate) fn written(&self) -> Lsn {
        self.queue.written()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn store(&self) -> StoreId {
        self.store
    }

    /// Whether files that are no longer written are read through maps.
    pub(crate) fn maps(&self) -> bool {
        self.sizes.map
    }

    pub(crate) fn seams(&self) -> &Seams {
        &self.seams
    }

    /// Returns the pace at which tables and expired keys are written while this log is in use.
    pub(crate) fn pace(&self) -> Pace {
        Pace::beside(&self.syncs)
    }

    /// Returns the seams for changes of other directories than the store's, which also work once this store takes no
    /// writes any more.
    pub(crate) fn seams_outside(&self) -> Seams {
        Seams { storage: Arc::clone(&self.outside), ..self.seams.clone() }
    }

    /// Returns the oldest segment, if nothing is written to it any more.
    pub(crate) fn oldest(&self) -> Option<Oldest> {
        let active = Arc::clone(&self.tail.lock().active);
        let segments = Arc::clone(&self.segments.lock());
        // Its end may still be in the buffer.
        let written = self.queue.written();
        let is_whole = segments.get(1).is_some_and(|next| next.base() < written);
        let oldest = segments.first().filter(|oldest| is_whole && oldest.base() < active.base())?;
        Some(Oldest {
            ordinal: oldest.identity.ordinal,
            base: oldest.base(),
            newest: active.identity.ordinal,
            newest_capacity: active.identity.capacity,
        })
    }

    /// Whether all records in the segment that begins at `base`, to which nothing is written any more, are dead, and
    /// stay so whatever a crash undoes. `false` if the segment isn't counted.
    pub(crate) fn is_spent(&self, base: Lsn) -> bool {
        let (now, durable) = (self.now(), self.durable());
        self.tail.lock().census.is_spent(base, now, durable)
    }

    /// Returns the milliseconds until the segment that begins at `base` is spent, if that takes no further record.
    pub(crate) fn spent_in(&self, base: Lsn) -> Option<u64> {
        let at = self.tail.lock().census.spent_at(base)?;
        Some(at.since(self.now()))
    }

    /// Ends the active segment, unless it is empty, and continues in the next, which may use the space that `room`
    /// allows. Returns the base of the segment in which the log continues. `StorageFull` if the reserves would not
    /// fit there.
    pub(crate) fn roll_over(&self, room: Room) -> Result<Lsn> {
        loop {
            {
                let mut tail = self.tail.lock();
                let is_empty = tail.at <= format::SEGMENT_HEADER_BYTES as u64;
                let stays = is_empty || !self.gate.has_begun();
                if stays || tail.may_roll(room) && tail.roll(self.queue.durable()) {
                    return Ok(tail.active.base());
                }
            }
            self.rooms().make_room_to_roll(room)?;
        }
    }

    /// Removes the oldest segment from the list, durably, and then its file. Tables that cover nothing after it are
    /// unlisted, too. `told` is called in between: from then on no lookup may read the segment. Returns the bytes
    /// that it used.
    ///
    /// `change` updates the rest of the manifest in the same switch.
    pub(crate) fn drop_oldest(
        &self,
        ordinal: u32,
        change: impl FnOnce(&mut manifest::Manifest),
        told: impl FnOnce(Lsn, u32),
    ) -> Result<u64> {
        let mut keeper = self.keeper.lock();
        self.rooms().may_switch()?;
        // One after the other: if a forget's file were removed while the file of the forgotten key came back, a log
        // without a manifest would still hold the key.
        self.remove_leaving(&mut keeper)?;
        let mut manifest = keeper.manifest.clone();
        let [gone, head, ..] = manifest.segments[..] else {
            return Err(self
                .bug(format_args!("segment {ordinal} was to be removed, and no other is listed")));
        };
        if gone.ordinal != ordinal {
            let oldest = gone.ordinal;
            return Err(
                self.bug(format_args!("segment {ordinal} was to be removed before {oldest}"))
            );
        }
        manifest.segments.remove(0);
        manifest.tables.retain(|table| table.to > head.base);
        change(&mut manifest);
        let left = self.guarded(|| {
            self.rooms().prepare_switch(&mut keeper)?;
            self.rooms().switch_to(&mut keeper, manifest)?;
            // A panic here would leave lookups a segment that is no longer listed.
            told(head.base, head.ordinal);
            let mut list = self.segments.lock();
            let (left, kept): (Vec<_>, Vec<_>) =
                list.iter().cloned().partition(|segment| segment.identity.ordinal == ordinal);
            *list = Arc::new(kept);
            Ok(left)
        })?;
        self.tail.lock().census.drop_before(head.base);
        self.release_held(&keeper);
        keeper.leaving.push(Leaving { ordinal, segment: left.into_iter().next() });
        // The segment is unlisted even if its file can't be removed: then the next drop or an open tries again.
        let _ = self.remove_leaving(&mut keeper);
        let bytes = gone.end.since(gone.base);
        self.guarded(|| self.rooms().restore_kept(&mut keeper, bytes));
        self.events.reclaimed(ordinal, bytes);
        Ok(bytes)
    }

    /// Removes the files of unlisted segments and syncs the directory.
    pub(crate) fn remove_dropped(&self) -> Result<()> {
        let mut keeper = self.keeper.lock();
        self.rooms().may_switch()?;
        self.remove_leaving(&mut keeper)
    }

    fn remove_leaving(&self, keeper: &mut Keeper) -> Result<()> {
        if keeper.may_lack_leaving {
            self.resuming().add_unlisted(keeper)?;
        }
        // A leftover that couldn't be removed may have the ordinal and name of a segment listed since.
        let Keeper { leaving, manifest, .. } = keeper;
        leaving.retain(|left| manifest.segments.iter().all(|item| item.ordinal != left.ordinal));
        if keeper.leaving.is_empty() {
            return Ok(());
        }
        let (storage, log_dir) = (&*self.seams.storage, self.rooms().log_dir());
        for Leaving { ordinal, segment } in &keeper.leaving {
            // Readers that began before it was unlisted can continue.
            if let Some(segment) = segment.as_ref().filter(|left| Arc::strong_count(left) > 1) {
                segment.pin()?;
            }
            let path = log_dir.join(segment::file_name(*ordinal));
            match storage.remove(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("removing", &path, e));
                }
                _ => {}
            }
        }
        let synced = storage.sync_dir(&log_dir).map_err(|e| Error::io("syncing", &log_dir, e));
        synced.map_err(|e| self.failed(storage::Failure::Poison(e)))?;
        keeper.leaving.clear();
        Ok(())
    }

    /// Returns an error if `bytes` more would exceed the store's budget.
    pub(crate) fn check_budget(&self, bytes: u64) -> Result<()> {
        self.rooms().check_budget_of(&self.keeper.lock(), bytes)
    }

    /// Returns the bytes that the store's files use, and the most they may use.
    pub(crate) fn budget(&self) -> (u64, u64) {
        (self.rooms().bytes_used(&self.keeper.lock()), self.sizes.disk_bytes_max)
    }
}

/// The oldest segment, as compaction needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Oldest {
    pub(crate) ordinal: u32,
    pub(crate) base: Lsn,
    /// Ordinal of the segment being written to.
    pub(crate) newest: u32,
    pub(crate) newest_capacity: u64,
}

struct PoisonOnUnwind<'a>(&'a Log);

impl Drop for PoisonOnUnwind<'_> {
    fn drop(&mut self) {
        let message = "a panic while files were being changed";
        let _ = self.0.poison(Error::new(ErrorKind::Io, message).at(&self.0.dir));
    }
}
