//! Room: what may still be placed, which segments lie ahead, and what a full disk leaves possible.
//!
//! Promises: a claim is granted only while its result's reserve, and those of all claims in flight, fit into
//! segments that are prepared already; so whoever was granted a key can record an outcome, disk full or not.
//! The last spare is never taken by claims: it is for recovery. Room that comes back is used without a reopen.

use std::path::PathBuf;
use std::sync::Arc;

use super::format::{Identity, SEGMENT_HEADER_BYTES};
use super::recovery::Plan;
use super::segment::Spare;
use super::{Log, Sizes, Tail};
use crate::limits;
use crate::manifest::{Manifest, Switch};
use crate::record::HEADER_BYTES;
use crate::storage::Failure;
use crate::sync::Ordering;
use crate::types::Lsn;
use crate::{Error, ErrorKind, Result};

/// Always kept free at a segment's end: an end-of-segment record, and room for notes.
pub(super) const KEPT_FREE: u64 = HEADER_BYTES as u64 + NOTE_SHARE;
const NOTE_SHARE: u64 = 128;

/// What a record may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// Free room, and from now on keep so many bytes for the ending.
    Reserve(u64),
    /// What was reserved; more only if it is free.
    Spend(u64),
    /// Free room only.
    Free,
    /// A note's share of what is always kept.
    Note,
}

/// Why a record has no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoRoom {
    /// Segments must be prepared first: `make_room`, then try again.
    Wanted { bytes: u64, room: Room },
    /// The log has not begun to write, or is poisoned or closed.
    NotWriting,
    /// LSNs have run out.
    Full,
}

/// Bytes kept for the endings of claims in flight.
#[derive(Debug, Default)]
pub(crate) struct Reserves {
    total: u64,
    /// The largest since none was in flight: what one segment's rest may be too small for.
    largest: u64,
    /// Rooms of the spares set aside, all but the last; kept by the keeper.
    set_aside: Vec<u64>,
}

impl Reserves {
    fn take(&mut self, bytes: u64) {
        self.total = self.total.saturating_add(bytes);
        self.largest = self.largest.max(bytes);
    }

    pub(crate) fn release(&mut self, bytes: u64) {
        self.total = self.total.saturating_sub(bytes);
        if self.total == 0 {
            self.largest = 0;
        }
    }
}

impl Tail {
    /// Lets a record of `bytes` in, rolling to the next segment if it must, or says what is missing.
    pub(super) fn admit(&mut self, bytes: u64, room: Room, durable: Lsn) -> Result<(), NoRoom> {
        if !self.has_room(bytes, room) {
            return Err(NoRoom::Wanted { bytes, room });
        }
        if room != Room::Note && bytes > free(self.active.identity.capacity, self.at) {
            self.roll(durable);
        }
        match room {
            Room::Reserve(more) => self.room.take(more),
            Room::Spend(own) => self.room.release(own),
            Room::Free | Room::Note => {}
        }
        Ok(())
    }

    /// Whether a record of `bytes` has its place, and all that is reserved, by then, its own.
    fn has_room(&self, bytes: u64, room: Room) -> bool {
        let (reserve_after, largest) = match room {
            Room::Reserve(more) => {
                (self.room.total.saturating_add(more), self.room.largest.max(more))
            }
            Room::Spend(own) => (self.room.total.saturating_sub(own), self.room.largest),
            Room::Free | Room::Note => (self.room.total, self.room.largest),
        };
        let here = free(self.active.identity.capacity, self.at);
        if room == Room::Note {
            // All but the end-of-segment record's room: a segment that records filled exactly has a share left, too.
            let rest = self.active.identity.capacity.saturating_sub(self.at);
            return bytes <= rest.saturating_sub(HEADER_BYTES as u64);
        }
        let fits_here = bytes <= here;
        let next = self
            .next
            .as_ref()
            .map(|next| free(next.identity.capacity, SEGMENT_HEADER_BYTES as u64));
        if !fits_here && next.is_none_or(|next| bytes > next) {
            return false;
        }
        if matches!(room, Room::Spend(own) if bytes <= own) {
            return true;
        }
        let left = |segment: u64| segment.saturating_sub(largest);
        let ahead = match (fits_here, next) {
            (true, next) => left(here - bytes).saturating_add(next.map_or(0, left)),
            (false, Some(next)) => left(next - bytes),
            (false, None) => 0,
        };
        let aside: u64 = self.room.set_aside.iter().map(|&spare| left(spare)).sum();
        ahead.saturating_add(aside) >= reserve_after
    }

    /// Whether all that is reserved has its room behind the active segment.
    pub(super) fn may_roll(&self) -> bool {
        let left = |segment: u64| segment.saturating_sub(self.room.largest);
        let next = self
            .next
            .as_ref()
            .map_or(0, |next| left(free(next.identity.capacity, SEGMENT_HEADER_BYTES as u64)));
        let aside: u64 = self.room.set_aside.iter().map(|&spare| left(spare)).sum();
        self.next.is_some() && next.saturating_add(aside) >= self.room.total
    }

    /// Whether segments should be prepared ahead of need.
    pub(super) fn lacks_next(&self) -> bool {
        self.next.is_none()
    }
}

/// Bytes that records may take in a segment of `capacity` from file offset `at` on.
fn free(capacity: u64, at: u64) -> u64 {
    capacity.saturating_sub(at).saturating_sub(KEPT_FREE)
}

/// What changes seldom, and by I/O: the manifest and the spares. Never taken under a shard lock.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) manifest: Manifest,
    pub(super) switch: Switch,
    pub(super) spares: Vec<Spare>,
    pub(super) spare_number: u32,
    /// Segments that left the list, and whose files may still be there, or come back after a power loss.
    pub(super) leaving: Vec<u32>,
    /// What `begin_writing` does, or has done.
    pub(super) plan: Plan,
}

impl Sizes {
    /// The least size: two of the longest record. With room for one alone, a record that just doesn't fit
    /// into a segment's rest could waste all of a segment, and no number of them would hold the reserves.
    pub(super) fn segment_bytes_least(&self) -> u64 {
        (SEGMENT_HEADER_BYTES as u64)
            .saturating_add(self.record_bytes_max.saturating_mul(2))
            .saturating_add(KEPT_FREE)
            .next_multiple_of(limits::PAGE_BYTES as u64)
    }

    /// Whether a spare of that size, found by an opening, can become a segment.
    pub(super) fn suits(&self, spare_bytes: u64) -> bool {
        (self.segment_bytes_least()..=limits::SEGMENT_BYTES_MOST).contains(&spare_bytes)
            && spare_bytes % limits::PAGE_BYTES as u64 == 0
    }

    pub(super) fn first(&self) -> u64 {
        self.segment_bytes_first.max(self.segment_bytes_least())
    }

    /// What records that are copied may take of one segment, whatever they are for: of a larger one no manifest tells.
    pub(super) fn copies_bytes_most(&self) -> u64 {
        free(self.segment_bytes_max.max(self.segment_bytes_least()), SEGMENT_HEADER_BYTES as u64)
    }

    /// The size of a segment to be prepared for a log of so many bytes: a part of it, so that sizes grow as the log
    /// does, and what lies ahead stays little beside it.
    fn for_log_of(&self, bytes: u64) -> u64 {
        let page = limits::PAGE_BYTES as u64;
        (bytes / limits::SEGMENTS_OF_A_LOG / page * page)
            .min(self.segment_bytes_max)
            .max(self.first())
    }
}

impl Log {
    pub(super) fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Prepares segments until a record of `bytes` has its place beside what is reserved. `StorageFull` if the
    /// disk has none; nothing is lost then, and a later call tries again.
    pub(crate) fn make_room(&self, bytes: u64, room: Room) -> Result<()> {
        let mut keeper = self.keeper.lock();
        self.may_go_on()?;
        self.guarded(|| self.make_room_in(&mut keeper, bytes, room))
    }

    fn make_room_in(&self, keeper: &mut Keeper, bytes: u64, room: Room) -> Result<()> {
        loop {
            // Asked anew each time: while this one waited for the keeper, others may have ended and given back
            // what they had reserved.
            let (lacks_next, has_room) = {
                let tail = self.tail.lock();
                (tail.lacks_next(), tail.has_room(bytes, room))
            };
            if lacks_next && keeper.spares.len() > 1 {
                self.list_next(keeper)?;
            } else if has_room {
                return Ok(());
            } else {
                // Without it no spare counts, however many there are.
                self.prepare_switch(keeper)?;
                self.prepare_spare(keeper)?;
            }
        }
    }

    /// Prepares and lists the segment that the log goes on in next, unless there is one, and as many spares as what is
    /// reserved needs.
    pub(super) fn make_room_to_roll(&self) -> Result<()> {
        let mut keeper = self.keeper.lock();
        self.may_go_on()?;
        self.guarded(|| {
            loop {
                let (lacks_next, may_roll) = {
                    let tail = self.tail.lock();
                    (tail.lacks_next(), tail.may_roll())
                };
                if lacks_next && keeper.spares.len() > 1 {
                    self.list_next(&mut keeper)?;
                } else if may_roll {
                    return Ok(());
                } else {
                    self.prepare_switch(&mut keeper)?;
                    self.prepare_spare(&mut keeper)?;
                }
            }
        })
    }

    /// One piece of work ahead of need: a spare, or the next segment. Whether there was any.
    pub(super) fn prepare_ahead(&self) -> Result<bool> {
        let mut keeper = self.keeper.lock();
        if self.may_go_on().is_err() || !self.gate.has_begun() {
            return Ok(false);
        }
        if !keeper.switch.is_prepared() {
            self.guarded(|| self.prepare_switch(&mut keeper))?;
            self.set_aside(&keeper);
            return Ok(true);
        }
        let lacks_next = self.tail.lock().lacks_next();
        let wanted = if lacks_next { 2 } else { 1 };
        if keeper.spares.len() < wanted {
            if !self.may_grow(&keeper) {
                return Ok(false);
            }
            self.guarded(|| self.prepare_spare(&mut keeper))?;
        } else if lacks_next {
            self.guarded(|| self.list_next(&mut keeper))?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn prepare_spare(&self, keeper: &mut Keeper) -> Result<()> {
        let mut bytes = self.next_spare_bytes(keeper);
        if self.check_budget_of(keeper, bytes).is_err() {
            // A smaller one may do where a large one doesn't fit.
            bytes = self.sizes.first();
            self.check_budget_of(keeper, bytes)?;
        }
        keeper.spare_number = keeper.spare_number.wrapping_add(1);
        let spare =
            Spare::prepare(&*self.seams.storage, &self.log_dir(), keeper.spare_number, bytes);
        keeper.spares.push(spare.map_err(|e| self.failed(e))?);
        self.set_aside(keeper);
        Ok(())
    }

    pub(super) fn next_spare_bytes(&self, keeper: &Keeper) -> u64 {
        let listed = &keeper.manifest.segments;
        self.sizes.for_log_of(listed.iter().map(|item| item.end.since(item.base)).sum())
    }

    pub(super) fn bytes_used(&self, keeper: &Keeper) -> u64 {
        let segments = keeper.manifest.segments.iter().map(|item| item.end.since(item.base));
        let spares = keeper.spares.iter().map(|spare| spare.bytes);
        let manifests = 2 * keeper.manifest.next_file_bytes() as u64;
        segments
            .chain(spares)
            .sum::<u64>()
            .saturating_add(manifests)
            .saturating_add(self.index_bytes.load(Ordering::Relaxed))
    }

    pub(super) fn check_budget_of(&self, keeper: &Keeper, bytes: u64) -> Result<()> {
        let (used, most) = (self.bytes_used(keeper), self.sizes.disk_bytes_max);
        if used.saturating_add(bytes) <= most {
            return Ok(());
        }
        let message = format!(
            "the store takes {used} bytes of its disk_bytes_max, {most}: forget keys, keep results for less long, or raise it"
        );
        Err(Error::new(ErrorKind::StorageFull, message).at(&self.dir))
    }

    /// As `make_room`, for compaction of a segment in which `live` bytes are alive: if no other room is left, they may
    /// go into the last spare, since the segment's own room then makes the next one.
    pub(crate) fn make_room_to_move(&self, bytes: u64, room: Room, live: u64) -> Result<()> {
        let full = match self.make_room(bytes, room) {
            Err(e) if e.kind() == ErrorKind::StorageFull => e,
            other => return other,
        };
        let mut keeper = self.keeper.lock();
        self.may_go_on()?;
        let lacks_next = self.tail.lock().lacks_next();
        let is_enough = keeper
            .spares
            .first()
            .is_some_and(|spare| free(spare.bytes, SEGMENT_HEADER_BYTES as u64) >= live);
        if !lacks_next || !is_enough {
            return Err(full);
        }
        self.guarded(|| self.list_next(&mut keeper))
    }

    /// Whether a spare is what it was prepared as. One that isn't goes: what stood in it would stand behind
    /// the log's end.
    pub(super) fn is_usable(&self, keeper: &mut Keeper, index: usize) -> Result<bool> {
        let storage = &*self.seams.storage;
        match keeper.spares.get_mut(index) {
            Some(spare) if spare.is_found && !spare.is_zeros(storage)? => {
                // If it stays, the next opening finds it again.
                let _ = storage.remove(&keeper.spares.remove(index).path);
                self.set_aside(keeper);
                Ok(false)
            }
            Some(spare) => {
                spare.is_found = false;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Makes the oldest spare the next segment and lists it, durably, before any LSN in it is taken. Does
    /// nothing more if that spare turns out not to be usable.
    fn list_next(&self, keeper: &mut Keeper) -> Result<()> {
        if !self.is_usable(keeper, 0)? {
            return Ok(());
        }
        self.prepare_switch(keeper)?;
        keeper.manifest.check_room(1).map_err(|e| e.at(&self.dir))?;
        let salt = self.seams.draw_u64()?;
        let Some(spare) = keeper.spares.first() else { return Ok(()) };
        let identity = Identity {
            ordinal: keeper.manifest.next_ordinal,
            base: keeper.manifest.extent,
            capacity: spare.bytes,
            salt,
        };
        let manifest = &keeper.manifest;
        let segment = spare
            .activate(
                &*self.seams.storage,
                &self.log_dir(),
                identity,
                manifest.store,
                &manifest.secrets,
            )
            .map_err(|e| self.failed(e))?;
        keeper.spares.remove(0);
        let mut manifest = keeper.manifest.clone();
        manifest.next_ordinal = manifest.next_ordinal.saturating_add(1);
        manifest.segments.push(identity.listed());
        manifest.extent = manifest.extent.max(identity.listed().end);
        self.switch_to(keeper, manifest)?;
        let segment = Arc::new(segment);
        if !self.sizes.map {
            segment.without_map();
        }
        let mut list = self.segments.lock();
        let mut segments = Vec::clone(&list);
        segments.push(Arc::clone(&segment));
        *list = Arc::new(segments);
        drop(list);
        self.set_aside(keeper);
        self.tail.lock().next = Some(segment);
        self.growth.note();
        Ok(())
    }

    /// Tells the tail how much room the spares hold, the last one apart.
    /// They hold none while the next manifest's file is missing: without it no spare can be listed.
    pub(super) fn set_aside(&self, keeper: &Keeper) {
        let usable = if keeper.switch.is_prepared() { keeper.spares.len() } else { 0 };
        let all_but_last = usable.saturating_sub(1);
        let rooms = keeper.spares.iter().take(all_but_last);
        let rooms = rooms.map(|spare| free(spare.bytes, SEGMENT_HEADER_BYTES as u64)).collect();
        self.tail.lock().room.set_aside = rooms;
    }

    /// Swaps a manifest in, with the clocks and the watermark as they stand.
    pub(super) fn switch_to(&self, keeper: &mut Keeper, mut manifest: Manifest) -> Result<()> {
        manifest.generation = manifest.generation.saturating_add(1);
        manifest.durable = manifest.durable.max(self.durable());
        manifest.time = self.store_clock.note(&*self.seams.clock).into();
        keeper.switch.to(&manifest).map_err(|e| self.failed(e))?;
        keeper.manifest = manifest;
        // Made now, while there may be room; if there is none, the background tries again.
        let _ = self.prepare_switch(keeper);
        self.set_aside(keeper);
        Ok(())
    }

    /// Makes the file of the manifest to come.
    pub(super) fn prepare_switch(&self, keeper: &mut Keeper) -> Result<()> {
        keeper.switch.prepare(keeper.manifest.next_file_bytes()).map_err(|e| self.failed(e))
    }

    /// A number for a table, which no other has or had.
    pub(crate) fn take_table_number(&self) -> Result<u32> {
        let mut keeper = self.keeper.lock();
        let number = keeper.manifest.next_table;
        keeper.manifest.next_table = number.checked_add(1).ok_or_else(|| {
            Error::new(ErrorKind::StorageFull, "the index has used up its numbers").at(&self.dir)
        })?;
        Ok(number)
    }

    /// Swaps in a manifest whose list of tables `change` has brought up to date. Durable on return.
    pub(crate) fn list_tables(&self, change: impl FnOnce(&mut Manifest)) -> Result<()> {
        let mut keeper = self.keeper.lock();
        self.may_go_on()?;
        self.guarded(|| {
            self.prepare_switch(&mut keeper)?;
            let mut manifest = keeper.manifest.clone();
            change(&mut manifest);
            self.switch_to(&mut keeper, manifest)
        })
    }

    /// The error of a change that failed, after the log was poisoned if it has to be.
    pub(crate) fn failed(&self, failure: Failure) -> Error {
        match failure {
            Failure::Before(e) => e,
            // The gate refused it: something else failed before.
            Failure::Poison(_) if self.is_poisoned() => self.poisoned(),
            Failure::Poison(e) => {
                self.poison(e.again());
                e
            }
        }
    }
}
