//! The log: segments, appending, group commit, recovery, reading one record by LSN.
//!
//! Promises: records stand in the order they were placed; `written` and `durable` are prefixes of that order;
//! what was durable is found again by any later opening, or its loss is reported. After a failed write or
//! sync nothing is written any more. Never: looks into what a record says of its key.
//!
//! The rules it keeps are numbered in `docs/durability.md`. `commit` decides who syncs, `room` what a full
//! disk may still take, `recovery` what an opening finds, `survey` what a damaged log still holds.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::{Clock, StoreClock, TimeNote};
use crate::entropy::Entropy;
use crate::limits;
use crate::manifest;
use crate::operation::Durability;
use crate::record::{Draft, Kind, Record};
use crate::sealed::Pace;
use crate::storage::{self, Storage};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::types::{Lsn, Spot, StoreId, StoreMillis, WallMillis};
use crate::{Error, ErrorKind, Result};

mod census;
mod commit;
mod format;
mod growth;
pub(crate) mod open;
mod pool;
#[cfg(any(test, feature = "testing"))]
mod probe;
mod reader;
pub(crate) mod repair;
mod room;
mod segment;
pub(crate) mod survey;
#[cfg(test)]
mod tests;
mod upkeep;

use census::Census;
pub(crate) use census::Span;
pub(crate) use commit::Placed;
use commit::{CommitQueue, Failed, Sink, Write};
use open::gate::{self, Gate, Inside, Refused};
#[cfg(any(test, feature = "testing"))]
pub(crate) use probe::probe_segment;
pub(crate) use reader::Scrubbed;
use room::{Keeper, Leaving};
pub(crate) use room::{NoRoom, Room};
use segment::Segment;
pub(crate) use upkeep::Due;

/// The outside world, as one store sees it.
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
    /// What all files of the store may take; `u64::MAX`: whatever the disk has.
    pub(crate) disk_bytes_max: u64,
    pub(crate) map: bool,
}

/// An open log.
pub(crate) struct Log {
    /// Its storage is behind the gate.
    seams: Seams,
    dir: PathBuf,
    store: StoreId,
    gate: Arc<Gate>,
    sizes: Sizes,
    tail: Mutex<Tail>,
    /// For those alone who go through the queue: who has had it wakes who waits for it.
    writer: Mutex<Writer>,
    queue: CommitQueue,
    keeper: Mutex<Keeper>,
    /// What is listed, for readers; replaced as a whole.
    segments: Mutex<Arc<Vec<Arc<Segment>>>>,
    /// Opens those that are full.
    pool: Arc<pool::Pool>,
    /// While the gate is unsettled records at or past it can't be read: they wait for room to be made durable.
    unsettled_from: Lsn,
    /// How far tokens run ahead of LSNs; it stands while LSNs may be taken.
    ahead: AtomicU64,
    store_clock: StoreClock,
    /// Since when room is missing, and why; until some could be prepared.
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

/// Where the next record goes. Behind the log lock.
struct Tail {
    active: Arc<Segment>,
    /// File offset in `active`.
    at: u64,
    /// Listed, empty: where the log goes when `active` is full.
    next: Option<Arc<Segment>>,
    /// Placed, not yet taken by a writer; in order.
    pieces: VecDeque<Piece>,
    buffered: u64,
    /// An emptied buffer, to be filled again.
    free: Vec<u8>,
    round: u32,
    room: room::Reserves,
    census: Census,
    /// The greatest watermark that a placed record carries.
    marked: Lsn,
    /// End of the last record that is about a key.
    keyed_end: Lsn,
    last: Placed,
    /// Records placed since the opening, the log's own apart.
    records: u64,
    last_time_note: TimeNote,
}

/// A run of placed bytes in one segment.
struct Piece {
    segment: Arc<Segment>,
    at: u64,
    bytes: Vec<u8>,
    /// An end-of-segment record is its last: the segment is synced whole before anything follows.
    ends_segment: bool,
}

/// Behind the writer's lock: who holds it hands bytes to the system.
struct Writer {
    /// The segment written to last: what a sync is for.
    current: Arc<Segment>,
    /// What it took from the tail. This and the tail's change places, so that no write allocates.
    pieces: VecDeque<Piece>,
    /// A buffer that it emptied, for the tail.
    free: Vec<u8>,
}

impl Writer {
    fn of(current: Arc<Segment>) -> Self {
        Writer { current, pieces: VecDeque::new(), free: Vec::new() }
    }
}

impl Tail {
    fn end(&self) -> Lsn {
        self.active.base().plus(self.at)
    }

    /// Appends a record to the active segment, which has room for it.
    fn append(&mut self, draft: Draft, durable: Lsn) -> Placed {
        let (lsn, kind, len) = (self.end(), draft.kind(), draft.len());
        let seal = self.active.seal;
        let is_new = self.pieces.back().is_none_or(|piece| piece.ends_segment);
        if is_new {
            let bytes = std::mem::take(&mut self.free);
            let (segment, at) = (Arc::clone(&self.active), self.at);
            self.pieces.push_back(Piece { segment, at, bytes, ends_segment: false });
        }
        if let Some(piece) = self.pieces.back_mut() {
            draft.seal(&mut piece.bytes, lsn, durable, &seal);
            piece.ends_segment = kind == Kind::SegmentEnd;
        }
        self.at = self.at.saturating_add(len);
        self.buffered = self.buffered.saturating_add(len);
        self.marked = self.marked.max(durable);
        if kind.is_about_key() {
            self.records = self.records.saturating_add(1);
            self.keyed_end = self.end();
        }
        self.last = Placed { lsn, round: self.round };
        self.last
    }

    /// Hands what was placed to the writer. Gives the log's end, up to which it is all.
    fn hand_over(&mut self, writer: &mut Writer) -> Lsn {
        // A write that failed left some: the store is poisoned, and they are never written.
        writer.pieces.clear();
        std::mem::swap(&mut self.pieces, &mut writer.pieces);
        if self.free.capacity() == 0 {
            std::mem::swap(&mut self.free, &mut writer.free);
        }
        self.buffered = 0;
        self.end()
    }

    /// Ends the active segment and goes on in the next, if there is one.
    fn roll(&mut self, durable: Lsn) -> bool {
        let Some(next) = self.next.take() else { return false };
        self.append(Draft::segment_end(), durable);
        self.census.begin(next.base());
        self.active = next;
        self.at = format::SEGMENT_HEADER_BYTES as u64;
        true
    }
}

impl Log {
    /// As [`place_for`](Self::place_for), for what only another record ends, or that is about no key.
    pub(crate) fn place(&self, draft: Draft, room: Room) -> Result<Placed, NoRoom> {
        self.place_for(draft, room, Span::default())
    }

    /// Places a record: gives it its LSN and its watermark. Nothing is written yet. Called under the key's
    /// shard lock, so that the order of a key's records is the order of its states; does no I/O.
    pub(crate) fn place_for(&self, draft: Draft, room: Room, span: Span) -> Result<Placed, NoRoom> {
        let mut tail = self.tail.lock();
        if !self.gate.takes_lsns() {
            return Err(NoRoom::NotWriting);
        }
        let durable = self.queue.durable();
        let end = tail.end().token(self.ahead.load(Ordering::Relaxed));
        if end.get() >= limits::LSN_MAX - 4 * limits::SEGMENT_BYTES_MOST {
            return Err(NoRoom::Full);
        }
        tail.admit(draft.len(), room, durable)?;
        let is_about_key = draft.kind().is_about_key();
        let placed = tail.append(draft, durable);
        let is_counted = !is_about_key || tail.census.place(placed.lsn, span);
        drop(tail);
        if !is_counted {
            // The log is poisoned by it: whoever waits for the record is told.
            let _ = self.bug(format_args!("the record at {} ends one that had ended", placed.lsn));
        }
        Ok(placed)
    }

    /// Gives back what a claim had reserved, when it ends without a record.
    pub(crate) fn release(&self, reserved: u64) {
        self.tail.lock().room.release(reserved);
    }

    /// Waits until what was placed there holds at `level`.
    pub(crate) fn commit(&self, placed: Placed, level: Durability) -> Result<()> {
        let done = match level {
            Durability::Sync => self.queue.wait_durable(placed, self),
            Durability::Flush => self.queue.wait_written(placed, self),
            Durability::Lazy => self.write_if_much_is_buffered(),
        };
        done.map_err(|Failed| self.indeterminate())
    }

    /// Whether the record at `lsn` already holds at `level`.
    pub(crate) fn holds(&self, lsn: Lsn, level: Durability) -> bool {
        match level {
            Durability::Sync => self.queue.durable() > lsn,
            Durability::Flush => self.queue.written() > lsn,
            Durability::Lazy => true,
        }
    }

    /// Waits until the record at `lsn`, placed earlier by anyone, holds at `level`.
    pub(crate) fn commit_earlier(&self, lsn: Lsn, level: Durability) -> Result<()> {
        if self.holds(lsn, level) {
            return Ok(());
        }
        // Its round may have ended, or is the open one: the open one covers it in either case.
        let round = self.tail.lock().round;
        let placed = Placed { lsn, round };
        if level == Durability::Sync {
            let done = self.queue.wait_durable_earlier(placed, self);
            return done.map_err(|Failed| self.indeterminate());
        }
        self.commit(placed, level)
    }

    /// Makes everything placed so far durable.
    pub(crate) fn sync(&self) -> Result<()> {
        if !self.gate.has_begun() {
            // Nothing was placed.
            return Ok(());
        }
        let last = self.tail.lock().last;
        self.commit(last, Durability::Sync)
    }

    /// Lazy leaves the write to the background, but for a bound on what is buffered.
    fn write_if_much_is_buffered(&self) -> Result<(), Failed> {
        if self.tail.lock().buffered < limits::BUFFERED_BYTES_MAX {
            return Ok(());
        }
        self.write_out()
    }

    /// Hands everything placed so far to the system.
    fn write_out(&self) -> Result<(), Failed> {
        let last = self.tail.lock().last;
        self.queue.wait_written(last, self)
    }

    /// Reads the record at `lsn`.
    pub(crate) fn read<T>(
        &self,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        self.prepare_read(lsn)?;
        self.read_listed(lsn, use_of)
    }

    /// The same, in segments that were listed at an earlier moment.
    pub(crate) fn read_in<T>(
        &self,
        segments: &Segments,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        self.prepare_read(lsn)?;
        self.read_of(&segments.0, lsn, use_of)
    }

    /// Makes sure that the record at `lsn` is in its file.
    fn prepare_read(&self, lsn: Lsn) -> Result<()> {
        if self.gate.is_unsettled() && lsn >= self.unsettled_from {
            return Err(Error::new(
                ErrorKind::StorageFull,
                "what the last opening left unsynced has no room to be made durable: free some space and call again",
            )
            .at(&self.dir));
        }
        if lsn >= self.queue.written() && self.gate.has_begun() {
            self.write_out().map_err(|Failed| self.indeterminate())?;
        }
        Ok(())
    }

    /// Reads a record that was handed to the system, in whatever is listed.
    fn read_listed<T>(&self, lsn: Lsn, use_of: impl FnOnce(Record<'_>) -> Result<T>) -> Result<T> {
        let segments = Arc::clone(&self.segments.lock());
        self.read_of(&segments, lsn, use_of)
    }

    fn read_of<T>(
        &self,
        segments: &[Arc<Segment>],
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        let after = segments.partition_point(|segment| segment.base() <= lsn);
        let segment = after.checked_sub(1).and_then(|index| segments.get(index));
        let Some(segment) = segment else {
            return Err(Error::corrupt(&self.dir, 0, format_args!("no segment holds lsn {lsn}")));
        };
        segment.read(lsn, use_of)
    }

    /// Records about keys placed since the opening.
    pub(crate) fn records(&self) -> u64 {
        self.tail.lock().records
    }

    /// Where the next record would go.
    pub(crate) fn end(&self) -> Lsn {
        self.tail.lock().end()
    }

    /// End of the last record that is about a key, of those placed since the log went on where it is now.
    pub(crate) fn keyed_end(&self) -> Lsn {
        self.tail.lock().keyed_end
    }

    /// Where the oldest segment begins.
    pub(crate) fn head_base(&self) -> Lsn {
        self.keeper.lock().manifest.segments.first().map_or(Lsn::ZERO, |oldest| oldest.base)
    }

    /// Bytes that the listed segments have room for from `lsn` on, and those taken of the last one.
    pub(crate) fn bytes_since(&self, lsn: Lsn) -> u64 {
        let end = self.end();
        let segments = Arc::clone(&self.segments.lock());
        let bytes = segments.iter().map(|segment| {
            let whole = segment.base().plus(segment.identity.capacity);
            whole.min(end).since(segment.base().max(lsn))
        });
        bytes.sum()
    }

    /// Shows every record about a key from `from` to `to`, in order, all of which is durable.
    pub(crate) fn walk(
        &self,
        from: Lsn,
        to: Lsn,
        visit: &mut open::recovery::Visit<'_>,
    ) -> Result<()> {
        let segments = Arc::clone(&self.segments.lock());
        let ends = self.listed();
        let reopen = |item: &_| self.reopened(item);
        open::recovery::walk(&segments, &ends, from, to, &reopen, visit)
    }

    /// The segments as they are listed now, to find records in by position or by segment.
    pub(crate) fn segments(&self) -> Segments {
        Segments(Arc::clone(&self.segments.lock()))
    }

    /// Why nothing is written any more, if so.
    pub(crate) fn poison_cause(&self) -> Option<Error> {
        self.gate.cause()
    }

    /// The gate, which every call passes.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Lets the calling thread in: `Closed` once a close has begun, `Forked` in a fork of the process that opened the store.
    pub(crate) fn enter(&self) -> Result<Inside<'_>> {
        self.gate.enter().map_err(|refused| match refused {
            Refused::Closed => self.closed(),
            Refused::Forked => Error::new(
                ErrorKind::Forked,
                "this process is a fork of the one that opened the store: use it in the parent, or, once the parent has closed it or ended, open it here",
            )
            .at(&self.dir),
        })
    }

    pub(crate) fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "the store was closed: open it again").at(&self.dir)
    }

    /// Asked by everything that takes long: a close waits for it, and after a failure it leads nowhere.
    pub(crate) fn may_go_on(&self) -> Result<()> {
        if self.gate.must_leave() {
            return Err(self.closed());
        }
        if self.is_poisoned() {
            return Err(self.poisoned());
        }
        Ok(())
    }

    /// What the caller is told of `error`: where the gate refused a change, that the store was poisoned or closed
    /// before.
    #[cold]
    pub(crate) fn explained(&self, error: Error) -> Error {
        match gate::disk::Shut::is_cause_of(&error) {
            true if self.is_poisoned() => self.poisoned(),
            true => self.closed(),
            false => error,
        }
    }

    /// The error of every call that would write after a failure.
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

    /// The error of those whose bytes were on their way when a write or sync failed.
    fn indeterminate(&self) -> Error {
        let error = self.poisoned();
        let message = format!(
            "it may or may not be on disk: reopen the store and ask for the key's state ({error})"
        );
        Error::new(ErrorKind::Indeterminate, message).at(&self.dir).because(error)
    }

    /// Does `work`, which changes files; a panic in it poisons, for nobody knows how far it came.
    pub(crate) fn guarded<T>(&self, work: impl FnOnce() -> T) -> T {
        let unwinding = PoisonOnUnwind(self);
        let done = work();
        std::mem::forget(unwinding);
        done
    }

    /// Remembers the first failure; from now on nothing is written.
    fn poison(&self, cause: Error) -> Failed {
        self.gate.poison(Some(cause));
        self.queue.poison();
        Failed
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.gate.is_poisoned()
    }

    pub(crate) fn now(&self) -> StoreMillis {
        self.store_clock.now(&*self.seams.clock)
    }

    /// Whether the log is just being synced. Only a hint.
    pub(crate) fn is_syncing(&self) -> bool {
        self.queue.is_led()
    }

    pub(crate) fn durable(&self) -> Lsn {
        self.queue.durable()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn store(&self) -> StoreId {
        self.store
    }

    /// Whether files that nobody writes any more are read through maps.
    pub(crate) fn maps(&self) -> bool {
        self.sizes.map
    }

    pub(crate) fn seams(&self) -> &Seams {
        &self.seams
    }

    /// How tables and expired keys are to be written beside this log.
    pub(crate) fn pace(&self) -> Pace {
        Pace::beside(&self.syncs)
    }

    /// The oldest segment, if nothing is written to it any more.
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

    /// Whether all that stands in the segment that begins at `base`, to which nothing is written any more, is dead, and
    /// stays so whatever a crash takes back. `false` if nothing is known of it.
    pub(crate) fn is_spent(&self, base: Lsn) -> bool {
        let (now, durable) = (self.now(), self.durable());
        self.tail.lock().census.is_spent(base, now, durable)
    }

    /// Shows the records about keys of a segment, in order, from `at` on and about `bytes` of them, as many at once as are
    /// read at once. Gives the place behind them; `None` if that is the segment's end. A bad record is `Corrupt`: all of it
    /// was durable. That the segment isn't listed is no end of it.
    pub(crate) fn walk_some(
        &self,
        ordinal: u32,
        at: Lsn,
        bytes: u64,
        visit: &mut dyn FnMut(Vec<Record<'_>>) -> Result<()>,
    ) -> Result<Option<Lsn>> {
        let listed = self.listed();
        let Some(item) = listed.iter().find(|item| item.ordinal == ordinal) else {
            return Err(self.bug(format_args!("segment {ordinal} was to be read and isn't listed")));
        };
        reader::walk_some(&self.reopened(item)?, at, item.end, bytes, visit)
    }

    /// A listed segment, to be read by calls: where the device can't give something, they fail, while a map would end
    /// the process.
    fn reopened(&self, item: &manifest::Listed) -> Result<Segment> {
        let (storage, store) = (&*self.seams.storage, self.store());
        Segment::open(storage, &self.log_dir(), item, store, storage::Access::Read)
    }

    /// Ends the active segment, unless it is empty, and goes on in the next, for which `room` says what may be used. Gives
    /// the base of the one gone on in. `StorageFull` if what is reserved would not have its room there.
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
            self.make_room_to_roll(room)?;
        }
    }

    /// Takes the oldest segment off the list, durably, and its file away. Its tables go with it. `told` comes in
    /// between: from then on nobody may look for anything in it. Gives the bytes that it took.
    ///
    /// `change` brings the rest of the manifest up to date along with it.
    pub(crate) fn drop_oldest(
        &self,
        ordinal: u32,
        change: impl FnOnce(&mut manifest::Manifest),
        told: impl FnOnce(Lsn, u32),
    ) -> Result<u64> {
        let mut keeper = self.keeper.lock();
        self.may_switch()?;
        // One after the other: were a forget's file gone and that of what it forgets back, a log without a manifest would
        // say that it is there.
        self.remove_leaving(&mut keeper)?;
        let mut manifest = keeper.manifest.clone();
        let [gone, head, ..] = manifest.segments[..] else {
            return Err(
                self.bug(format_args!("segment {ordinal} was to go, and no other is listed"))
            );
        };
        if gone.ordinal != ordinal {
            let oldest = gone.ordinal;
            return Err(self.bug(format_args!("segment {ordinal} was to go before {oldest}")));
        }
        manifest.segments.remove(0);
        manifest.tables.retain(|table| table.to > head.base);
        change(&mut manifest);
        let left = self.guarded(|| {
            self.prepare_switch(&mut keeper)?;
            self.switch_to(&mut keeper, manifest)?;
            // A panic here would leave a segment to be found that the manifest lists no more.
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
        // The segment is given back, whatever comes of its file: if that stays, the next drop tries again, or an opening.
        let _ = self.remove_leaving(&mut keeper);
        let bytes = gone.end.since(gone.base);
        self.guarded(|| self.restore_kept(&mut keeper, bytes));
        Ok(bytes)
    }

    /// Has the files of all segments that left the list gone, durably.
    pub(crate) fn remove_dropped(&self) -> Result<()> {
        let mut keeper = self.keeper.lock();
        self.may_switch()?;
        self.remove_leaving(&mut keeper)
    }

    fn remove_leaving(&self, keeper: &mut Keeper) -> Result<()> {
        // A leftover that couldn't be removed may have lent its number and name to a segment since.
        let Keeper { leaving, manifest, .. } = keeper;
        leaving.retain(|left| manifest.segments.iter().all(|item| item.ordinal != left.ordinal));
        if keeper.leaving.is_empty() {
            return Ok(());
        }
        let (storage, log_dir) = (&*self.seams.storage, self.log_dir());
        for Leaving { ordinal, segment } in &keeper.leaving {
            // Who began to read in it before it left the list reads on.
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

    /// Refuses where `bytes` more would go past the store's budget.
    pub(crate) fn check_budget(&self, bytes: u64) -> Result<()> {
        self.check_budget_of(&self.keeper.lock(), bytes)
    }

    /// Bytes that the store's files take, and what they may take.
    pub(crate) fn budget(&self) -> (u64, u64) {
        (self.bytes_used(&self.keeper.lock()), self.sizes.disk_bytes_max)
    }

    /// Whether the manifest on disk is the one that stands, or says the same.
    pub(crate) fn check_manifest(&self) -> Result<()> {
        let path = manifest::path(&self.dir);
        let standing = || self.keeper.lock().manifest.generation;
        loop {
            let before = standing();
            let found = manifest::load(&*self.seams.storage, &self.dir);
            // A switch changes the file under whoever reads it.
            if standing() != before {
                continue;
            }
            return match found? {
                Some(found) if found.generation >= before => Ok(()),
                Some(_) => Err(Error::corrupt(&path, 0, "an older manifest than the one in use")),
                None => Err(Error::corrupt(&path, 0, "the manifest is missing:")),
            };
        }
    }

    /// A listed segment, and where what is durable of it ends; `None` if it isn't listed, or nothing of it is.
    fn durable_part(&self, ordinal: u32) -> Option<(manifest::Listed, Lsn)> {
        // Of one moment: the first write after a crash cuts segments and moves on how far the log is durable.
        let keeper = self.keeper.lock();
        let item = keeper.manifest.segments.iter().find(|item| item.ordinal == ordinal)?;
        let mut durable = self.durable();
        if self.gate.is_unsettled() {
            durable = durable.min(self.unsettled_from);
        }
        let end = item.end.min(durable);
        (end > item.base).then_some((*item, end))
    }

    /// Reads all segments as far as they are durable, and goes on behind damage.
    pub(crate) fn scrub(&self, told: &mut reader::Told<'_>) {
        for item in self.listed() {
            if self.scrub_segment(item.ordinal, told).is_break() {
                return;
            }
        }
    }

    fn scrub_segment(&self, ordinal: u32, told: &mut reader::Told<'_>) -> ControlFlow<()> {
        let Some((mut item, mut end)) = self.durable_part(ordinal) else {
            return ControlFlow::Continue(());
        };
        let segment = loop {
            let error = match self.reopened(&item) {
                Ok(segment) => break segment,
                Err(error) => error,
            };
            match self.durable_part(ordinal) {
                // Compaction has taken it away meanwhile.
                None => return ControlFlow::Continue(()),
                // The first write of this opening has cut it meanwhile: it is read as it is listed now.
                Some(now) if now.0 != item => (item, end) = now,
                Some(_) => {
                    let is_damaged = error.kind() == ErrorKind::Corrupt;
                    told(Scrubbed::Failed(error))?;
                    // What there is of it is read all the same.
                    let path = self.log_dir().join(segment::file_name(ordinal));
                    match self.seams.storage.open(&path, storage::Access::Read) {
                        Ok(file) if is_damaged => {
                            let identity = format::Identity::of(&item);
                            break Segment::unchecked(identity, self.store, path, file);
                        }
                        _ => return ControlFlow::Continue(()),
                    }
                }
            }
        };
        reader::scrub(&segment, end.since(item.base), &mut |found| match found {
            Scrubbed::Failed(error) if !self.is_in_log(ordinal, &error) => {
                ControlFlow::Continue(())
            }
            found => told(found),
        })
    }

    /// Whether a scrub that begins now, and met `listed`, comes to the place in a segment that an error names.
    pub(crate) fn scrubs(&self, listed: &[manifest::Listed], error: &Error) -> bool {
        let name = error.path().and_then(Path::file_name).and_then(|name| name.to_str());
        let ordinal = name.and_then(segment::ordinal_of);
        ordinal.is_some_and(|ordinal| {
            let is_listed = listed.iter().any(|item| item.ordinal == ordinal);
            is_listed && error.offset().is_some() && self.is_in_log(ordinal, error)
        })
    }

    /// Whether the place that an error names in a segment is a part of the log still: what compaction takes away, and
    /// what the first write after a crash cuts off, is none.
    fn is_in_log(&self, ordinal: u32, error: &Error) -> bool {
        self.durable_part(ordinal).is_some_and(|(item, end)| {
            error.offset().is_none_or(|offset| item.base.plus(offset) < end)
        })
    }

    /// The segments listed, oldest first.
    pub(crate) fn listed(&self) -> Vec<manifest::Listed> {
        self.keeper.lock().manifest.segments.clone()
    }
}

/// The oldest segment, as compaction sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Oldest {
    pub(crate) ordinal: u32,
    pub(crate) base: Lsn,
    /// Of the segment being written to.
    pub(crate) newest: u32,
    pub(crate) newest_capacity: u64,
}

/// The listed segments of one moment.
pub(crate) struct Segments(Arc<Vec<Arc<Segment>>>);

impl Segments {
    /// Where the record at `lsn` stands; `None` if no segment holds it.
    pub(crate) fn spot_of(&self, lsn: Lsn) -> Option<Spot> {
        let after = self.0.partition_point(|segment| segment.base() <= lsn);
        let segment = after.checked_sub(1).and_then(|index| self.0.get(index))?;
        Some(Spot { ordinal: segment.identity.ordinal, offset: segment.offset(lsn) })
    }

    /// The position of what stands at `spot`; `None` if no segment has that ordinal.
    pub(crate) fn lsn_of(&self, spot: Spot) -> Option<Lsn> {
        let index = self.0.partition_point(|segment| segment.identity.ordinal < spot.ordinal);
        let segment = self.0.get(index).filter(|found| found.identity.ordinal == spot.ordinal)?;
        Some(segment.base().plus(spot.offset))
    }
}

struct PoisonOnUnwind<'a>(&'a Log);

impl Drop for PoisonOnUnwind<'_> {
    fn drop(&mut self) {
        let message = "a panic while files were being changed";
        let _ = self.0.poison(Error::new(ErrorKind::Io, message).at(&self.0.dir));
    }
}

impl Sink for Log {
    fn write_round(&self) -> Result<(u32, Lsn), Failed> {
        let mut writer = self.writer.lock();
        let (round, end) = {
            let mut tail = self.tail.lock();
            let round = tail.round;
            tail.round = round.wrapping_add(1);
            (round, tail.hand_over(&mut writer))
        };
        self.guarded(|| self.write_pieces(&mut writer, end))?;
        Ok((round, end))
    }

    fn try_write(&self) -> Result<Write, Failed> {
        let Some(mut writer) = self.writer.try_lock() else { return Ok(Write::Busy) };
        let end = {
            let mut tail = self.tail.lock();
            if tail.pieces.iter().any(|piece| piece.ends_segment) {
                return Ok(Write::NeedsSync);
            }
            tail.hand_over(&mut writer)
        };
        self.guarded(|| self.write_pieces(&mut writer, end))?;
        Ok(Write::Done)
    }

    fn sync(&self) -> Result<(), Failed> {
        let segment = Arc::clone(&self.writer.lock().current);
        self.sync_segment(&segment)
    }

    fn nanos(&self) -> u64 {
        self.seams.clock.monotonic_nanos()
    }
}

impl Log {
    /// Writes what the tail handed over, up to `end`. At a segment's end the old one is synced whole
    /// before anything is written into the next, at every level.
    fn write_pieces(&self, writer: &mut Writer, end: Lsn) -> Result<(), Failed> {
        // Whoever had the writer before may have failed, and what it took from the tail is lost: then there may be nothing
        // left to write, and not all is written.
        if self.is_poisoned() {
            return Err(Failed);
        }
        while let Some(piece) = writer.pieces.pop_front() {
            // Something else may have failed while this one synced a segment's end.
            if self.is_poisoned() {
                return Err(Failed);
            }
            let Piece { segment, at, mut bytes, ends_segment } = piece;
            let file = segment.file().map_err(|e| self.poison(e))?;
            storage::write_all_at(&*file, &bytes, at)
                .map_err(|e| self.poison(Error::io("writing", &segment.path, e).offset_at(at)))?;
            self.bytes_written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if ends_segment {
                self.sync_segment(&segment)?;
            }
            writer.current = segment;
            if bytes.capacity() as u64 <= 4 * limits::BUFFERED_BYTES_MAX {
                bytes.clear();
                writer.free = bytes;
            }
        }
        self.queue.set_written(end);
        Ok(())
    }

    fn sync_segment(&self, segment: &Segment) -> Result<(), Failed> {
        let file = segment.file().map_err(|e| self.poison(e))?;
        let began = self.nanos();
        // A device may take for ever over it, and a close of a poisoned store must not wait for that.
        let done = self.guarded(|| self.gate.outside(|| file.sync_data()));
        let done = done.map_err(|gate::Overtaken| Failed)?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_nanos.fetch_add(self.nanos().saturating_sub(began), Ordering::Relaxed);
        done.map_err(|e| self.poison(Error::io("syncing", &segment.path, e)))
    }
}
