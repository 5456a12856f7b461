//! From a draft to the device: records are placed, written and synced.
//!
//! Promises: no I/O under the tail's lock; a full segment is durable before anything is written after it. `commit`
//! decides which thread writes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::census::{Census, Span};
use super::commit::{Failed, Placed, Sink, Write};
use super::open::lifecycle;
use super::room::{self, NoRoom, Room};
use super::segment::Segment;
use super::{Log, format};
use crate::clock::TimeNote;
use crate::operation::Durability;
use crate::record::{Draft, Kind};
use crate::sync::Ordering;
use crate::types::Lsn;
use crate::{Error, Result, limits, storage};

/// The place of the next record. Under the log's lock.
pub(super) struct Tail {
    pub(super) active: Arc<Segment>,
    /// File offset in `active`.
    pub(super) at: u64,
    /// A listed, empty segment, in which the log continues when `active` is full.
    pub(super) next: Option<Arc<Segment>>,
    /// Placed bytes that no writer has taken yet, in order.
    pub(super) pieces: VecDeque<Piece>,
    pub(super) buffered: u64,
    /// An empty buffer for reuse.
    pub(super) free: Vec<u8>,
    pub(super) round: u32,
    pub(super) room: room::Reserves,
    pub(super) census: Census,
    /// The greatest watermark that a placed record carries.
    pub(super) marked: Lsn,
    /// End of the last record about a key.
    pub(super) keyed_end: Lsn,
    pub(super) last: Placed,
    /// Records placed since the open, except the log's own.
    pub(super) records: u64,
    pub(super) last_time_note: TimeNote,
}

/// A run of placed bytes in one segment.
pub(super) struct Piece {
    pub(super) segment: Arc<Segment>,
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
    /// Its last record is an end-of-segment record: the whole segment is synced before anything follows.
    pub(super) ends_segment: bool,
}

/// Under the writer's lock: the thread that holds it hands bytes to the system.
pub(super) struct LogWriter {
    /// The segment written to last, which a sync syncs.
    pub(super) current: Arc<Segment>,
    /// Pieces taken from the tail. Swapped with the tail's, so that no write allocates.
    pub(super) pieces: VecDeque<Piece>,
    /// An empty buffer for the tail.
    pub(super) free: Vec<u8>,
}

impl LogWriter {
    pub(super) fn of(current: Arc<Segment>) -> Self {
        LogWriter { current, pieces: VecDeque::new(), free: Vec::new() }
    }
}

impl Tail {
    pub(super) fn end(&self) -> Lsn {
        self.active.base().plus(self.at)
    }

    /// Appends a record to the active segment, which has space for it.
    pub(super) fn append(&mut self, draft: Draft, durable: Lsn) -> Placed {
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
        self.at += len;
        debug_assert!(self.at <= self.active.identity.capacity, "{kind:?} after a segment's end");
        self.buffered += len;
        self.marked = self.marked.max(durable);
        if kind.is_about_key() {
            self.records += 1;
            self.keyed_end = self.end();
        }
        self.last = Placed { lsn, round: self.round };
        self.last
    }

    /// Hands all placed bytes to the writer. Returns the log's end, up to which they reach.
    pub(super) fn hand_over(&mut self, writer: &mut LogWriter) -> Lsn {
        // Pieces left by a failed write: the store is poisoned, and they are never written.
        writer.pieces.clear();
        std::mem::swap(&mut self.pieces, &mut writer.pieces);
        if self.free.capacity() == 0 {
            std::mem::swap(&mut self.free, &mut writer.free);
        }
        self.buffered = 0;
        self.end()
    }

    /// Ends the active segment and continues in the next, if there is one.
    pub(super) fn roll(&mut self, durable: Lsn) -> bool {
        let Some(next) = self.next.take() else { return false };
        self.append(Draft::segment_end(), durable);
        debug_assert!(self.end() <= next.base(), "LSNs grow: {} to {}", self.end(), next.base());
        self.census.begin(next.base());
        self.active = next;
        self.at = format::SEGMENT_HEADER_BYTES as u64;
        true
    }
}

impl Log {
    /// As [`place_for`](Self::place_for), for a record that only another record ends, or that is about no key.
    pub(crate) fn place(&self, draft: Draft, room: Room) -> Result<Placed, NoRoom> {
        self.place_for(draft, room, Span::default())
    }

    /// Places a record: assigns its LSN and its watermark. Nothing is written yet. Called under the key's shard lock,
    /// so that the order of a key's records is the order of its states; does no I/O.
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
        if !tail.room.covers(draft.len(), room) {
            drop(tail);
            let _ = self.bug("a record was to use more than is reserved for it");
            return Err(NoRoom::NotWriting);
        }
        tail.admit(draft.len(), room, durable)?;
        let is_about_key = draft.kind().is_about_key();
        let placed = tail.append(draft, durable);
        let is_counted = !is_about_key || tail.census.place(placed.lsn, span);
        drop(tail);
        if !is_counted {
            // This poisons the log, which is reported to waiters for the record.
            let _ = self.bug(format_args!("the record at {} ends one that had ended", placed.lsn));
        }
        Ok(placed)
    }

    /// Reserves space for the ending of a claim that has its record already.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), NoRoom> {
        let mut tail = self.tail.lock();
        if !self.gate.takes_lsns() {
            return Err(NoRoom::NotWriting);
        }
        tail.admit(0, Room::Reserve(bytes), self.queue.durable())
    }

    /// Releases the reserve of a claim that ends without a record.
    pub(crate) fn release(&self, reserved: u64) {
        let mut tail = self.tail.lock();
        if !tail.room.release(reserved) {
            drop(tail);
            let _ = self.bug(format_args!("{reserved} bytes were released that were not reserved"));
        }
    }

    /// Waits until the record placed there holds at `level`.
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

    /// Waits until the record at `lsn`, placed earlier by any thread, holds at `level`.
    pub(crate) fn commit_earlier(&self, lsn: Lsn, level: Durability) -> Result<()> {
        if self.holds(lsn, level) {
            return Ok(());
        }
        // Its round has ended or is the open one: the open one covers it in either case.
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
            // Nothing was placed since the open.
            return Ok(());
        }
        let last = self.tail.lock().last;
        self.commit(last, Durability::Sync)
    }

    /// The last record placed since the open; `None`: there is none.
    pub(crate) fn last_placed(&self) -> Option<Lsn> {
        self.gate.has_begun().then(|| self.tail.lock().last.lsn)
    }

    /// Writes if much is buffered: `Lazy` leaves the write to the background, but the buffer is bounded.
    fn write_if_much_is_buffered(&self) -> Result<(), Failed> {
        if self.is_much_buffered() { self.write_out() } else { Ok(()) }
    }

    /// Whether a writer at `Lazy` has to write what is buffered.
    pub(crate) fn is_much_buffered(&self) -> bool {
        self.buffered() >= limits::BUFFERED_BYTES_MAX
    }

    /// Bytes that were placed and not handed to the system yet.
    pub(crate) fn buffered(&self) -> u64 {
        self.tail.lock().buffered
    }

    /// Hands everything placed so far to the system.
    pub(super) fn write_out(&self) -> Result<(), Failed> {
        let last = self.tail.lock().last;
        self.queue.wait_written(last, self)
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
    /// Writes the bytes that the tail handed over, up to `end`. At a segment's end the whole segment is synced before
    /// anything is written into the next, at every level.
    fn write_pieces(&self, writer: &mut LogWriter, end: Lsn) -> Result<(), Failed> {
        // The thread that had the writer before may have failed, and the pieces it took from the tail are lost: then
        // nothing may be left to write although not everything is written.
        if self.is_poisoned() {
            return Err(Failed);
        }
        // Where the next piece must begin; unknown after a segment's end.
        let mut reached = Some(self.queue.written());
        while let Some(piece) = writer.pieces.pop_front() {
            // Another operation may have failed while this thread synced a segment's end.
            if self.is_poisoned() {
                return Err(Failed);
            }
            let Piece { segment, at, mut bytes, ends_segment } = piece;
            let from = segment.base().plus(at);
            if reached.is_some_and(|reached| reached != from) {
                return Err(self.misses(from));
            }
            reached = Some(from.plus(bytes.len() as u64)).filter(|_| !ends_segment);
            let file = segment.file().map_err(|e| self.poison(e))?;
            storage::write_all_at(&*file, &bytes, at)
                .map_err(|e| self.poison(Error::io("writing", &segment.path, e).offset_at(at)))?;
            self.bytes_written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.events.written(bytes.len() as u64);
            if ends_segment {
                self.sync_segment(&segment)?;
                self.events.rolled(segment.identity.ordinal);
            }
            writer.current = segment;
            if bytes.capacity() as u64 <= 4 * limits::BUFFERED_BYTES_MAX {
                bytes.clear();
                writer.free = bytes;
            }
        }
        if reached.is_some_and(|reached| reached != end) {
            return Err(self.misses(end));
        }
        self.queue.set_written(end);
        Ok(())
    }

    /// Poisons the log: everything before the end of a write is acknowledged, so nothing may be left out.
    #[cold]
    fn misses(&self, lsn: Lsn) -> Failed {
        self.poison(Error::bug(&self.dir, format_args!("bytes before lsn {lsn} were not written")))
    }

    fn sync_segment(&self, segment: &Segment) -> Result<(), Failed> {
        let file = segment.file().map_err(|e| self.poison(e))?;
        let began = self.nanos();
        // A device may never return from it, and a close of a poisoned store must not wait for that.
        let done = self.guarded(|| self.gate.outside(|| file.sync_data()));
        let done = done.map_err(|lifecycle::Overtaken| Failed)?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let nanos = self.nanos() - began;
        self.sync_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.events.synced(nanos);
        done.map_err(|e| self.poison(Error::io("syncing", &segment.path, e)))
    }
}
