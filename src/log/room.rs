//! Space in the log: which records may still be placed, which segments are prepared, and what a full disk allows.
//!
//! Promises: a claim is granted only while its result's reserve and the reserves of all claims in flight fit into
//! prepared segments; so the owner of a key can record an outcome even on a full disk. One spare is kept that claims
//! never use: recovery and compaction of the oldest segment need it. Some bytes are kept for forgets. So a full store
//! can be emptied. Space is prepared by the size of the record to be placed, and for many claims in flight by their
//! reserves: at most a quarter more than they need. It is released once no record needs it. Space that becomes free is used
//! without a reopen.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::format::{Identity, SEGMENT_HEADER_BYTES};
use super::open::recovery::Plan;
use super::segment::{Segment, Spare};
use super::upkeep::Due;
use super::{Log, Sizes, Tail};
use crate::limits;
use crate::manifest::{self, Listed, Manifest, Switch};
use crate::record::HEADER_BYTES;
use crate::sync::Ordering;
use crate::types::{Lsn, WallMillis};
use crate::{Error, ErrorKind, Result};

/// Bytes always kept free at a segment's end: for an end-of-segment record and for notes.
pub(super) const KEPT_FREE: u64 = HEADER_BYTES as u64 + NOTE_SHARE;
const NOTE_SHARE: u64 = 128;

/// The space that a record may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// Free space; from then on so many bytes are kept for the ending.
    Reserve(u64),
    /// What was reserved; more only if it is free.
    Spend(u64),
    /// The same, for a record that frees space in the end: more also from the space kept for such records.
    Clear(u64),
    /// Free space only.
    Free,
    /// Free space and the kept spare: for compaction, after it checked that everything it has to move fits there.
    Move,
    /// A note's share of the space that is always kept.
    Note,
}

impl Room {
    /// Whether it gets no space until the spare for compaction is kept.
    fn waits_for_kept(self) -> bool {
        matches!(self, Room::Reserve(_) | Room::Free)
    }
}

/// Where a record fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fit {
    Here,
    /// In the next segment.
    Next,
    /// In no segment that is listed.
    Nowhere,
    /// It fits, but then some reserve would not.
    Reserved,
}

/// Why a record has no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoRoom {
    /// Segments must be prepared first: `make_room`, then try again.
    Wanted { bytes: u64, room: Room },
    /// The log has not begun to write, or is poisoned or closed.
    NotWriting,
    /// All LSNs are used up.
    Full,
}

/// Bytes kept for the endings of claims in flight, and for records that free space.
#[derive(Debug, Default)]
pub(crate) struct Reserves {
    total: u64,
    /// The largest reserve since none was in flight: the rest of one segment may be too small for it.
    largest: u64,
    /// The greatest total since the background last read it.
    peak: u64,
    /// Bytes that compaction, when it uses the kept spare, has yet to move.
    moving: u64,
    /// Whether the last attempt to prepare space failed: then `clearing` is kept for forgets and aborts.
    is_full: bool,
    /// Set by the keeper, as are the fields that follow.
    clearing: u64,
    /// Space in each spare that is set aside, except the kept one.
    set_aside: Vec<u64>,
    /// Space in the kept spare.
    kept: u64,
}

impl Reserves {
    fn take(&mut self, bytes: u64) {
        self.total += bytes;
        self.largest = self.largest.max(bytes);
        self.peak = self.peak.max(self.total);
    }

    /// Releases a reserve. Returns whether so much was reserved: see [`covers`](Self::covers).
    #[must_use]
    pub(super) fn release(&mut self, bytes: u64) -> bool {
        let Some(left) = self.total.checked_sub(bytes) else { return false };
        self.total = left;
        if left == 0 {
            self.largest = 0;
        }
        true
    }

    /// Whether the bytes that a record of `bytes` uses by `room` were kept for it. If not, a reserve was released
    /// twice, and the space that others rely on is no longer kept: a bug of ours.
    pub(super) fn covers(&self, bytes: u64, room: Room) -> bool {
        match room {
            Room::Spend(own) | Room::Clear(own) => own <= self.total,
            // Some counted records may have died since, but none was added.
            Room::Move => bytes <= self.moving,
            Room::Reserve(_) | Room::Free | Room::Note => true,
        }
    }

    /// Returns the bytes that must fit after a record that uses `room` is placed, and the largest reserve then.
    fn after(&self, room: Room) -> (u64, u64) {
        let (total, moving) = (self.total, self.moving);
        let clearing = if self.is_full { self.clearing } else { 0 };
        let bytes = match room {
            Room::Reserve(more) => total + more + moving + clearing,
            // While space is made for an ending, an operator or the owner itself may have ended the claim otherwise: then its
            // reserve is gone. A record that is placed is checked before, see `covers`.
            Room::Spend(own) => total.saturating_sub(own) + moving + clearing,
            Room::Clear(own) => total.saturating_sub(own) + moving,
            Room::Free => total + moving + clearing,
            Room::Move | Room::Note => total,
        };
        let largest = match room {
            Room::Reserve(more) => self.largest.max(more),
            _ => self.largest,
        };
        (bytes, largest)
    }

    /// Space for reserves of at most `largest` in the spares that `room` may use.
    fn aside(&self, room: Room, largest: u64) -> u64 {
        let aside: u64 = self.set_aside.iter().map(|&spare| sure(spare, largest)).sum();
        if room == Room::Move { aside + sure(self.kept, largest) } else { aside }
    }
}

impl Tail {
    /// Admits a record of `bytes`, rolling to the next segment if it must, or returns what is missing. The caller has
    /// checked that its reserve is [covered](Reserves::covers).
    pub(super) fn admit(&mut self, bytes: u64, room: Room, durable: Lsn) -> Result<(), NoRoom> {
        match self.fit(bytes, room) {
            Fit::Here => {}
            Fit::Next => {
                self.roll(durable);
            }
            Fit::Nowhere | Fit::Reserved => return Err(NoRoom::Wanted { bytes, room }),
        }
        match room {
            Room::Reserve(more) => self.room.take(more),
            Room::Spend(own) | Room::Clear(own) => {
                let is_own = self.room.release(own);
                debug_assert!(is_own, "`covers` was checked before");
            }
            Room::Move => self.room.moving -= bytes,
            Room::Free | Room::Note => {}
        }
        Ok(())
    }

    /// Where a record of `bytes` fits, if all reserves still fit afterwards.
    fn fit(&self, bytes: u64, room: Room) -> Fit {
        let here = free(self.active.identity.capacity, self.at);
        if room == Room::Note {
            // A note may use everything except the end-of-segment record's bytes: a segment that records filled
            // exactly still has a note's share.
            let rest = self.active.identity.capacity - self.at;
            let fits = bytes + HEADER_BYTES as u64 <= rest;
            return if fits { Fit::Here } else { Fit::Nowhere };
        }
        let (reserved, largest) = self.room.after(room);
        let left = |segment: u64| sure(segment, largest);
        let next = self.next_room();
        let (fit, ahead) = match next {
            _ if bytes <= here => (Fit::Here, left(here - bytes) + next.map_or(0, left)),
            Some(next) if bytes <= next => (Fit::Next, left(next - bytes)),
            _ => return Fit::Nowhere,
        };
        let is_own = matches!(room, Room::Spend(own) | Room::Clear(own) if bytes <= own);
        let has_room = ahead + self.room.aside(room, largest) >= reserved;
        if is_own || has_room { fit } else { Fit::Reserved }
    }

    /// Whether all reserves fit after the active segment.
    pub(super) fn may_roll(&self, room: Room) -> bool {
        let largest = self.room.largest;
        let next = self.next_room().map(|next| sure(next, largest));
        let aside = self.room.aside(room, largest);
        next.is_some_and(|next| next + aside >= self.room.total)
    }

    fn next_room(&self) -> Option<u64> {
        let next = self.next.as_ref()?;
        Some(free(next.identity.capacity, SEGMENT_HEADER_BYTES as u64))
    }

    /// Whether segments should be prepared ahead of need.
    pub(super) fn lacks_next(&self) -> bool {
        self.next.is_none()
    }
}

/// Space for the records that compaction has to move, in the order in which it is used.
#[derive(Debug)]
pub(crate) struct MovingRoom {
    rooms: VecDeque<u64>,
    reserved: u64,
    largest: u64,
    bytes: u64,
    is_enough: bool,
}

impl MovingRoom {
    /// Places one record.
    pub(crate) fn take(&mut self, bytes: u64) {
        self.bytes += bytes;
        while let Some(room) = self.rooms.front_mut() {
            if let Some(left) = room.checked_sub(bytes) {
                *room = left;
                return;
            }
            self.rooms.pop_front();
        }
        self.is_enough = false;
    }

    /// Returns the bytes of all placed records, if they fit in addition to the reserves.
    pub(crate) fn enough_for(&self) -> Option<u64> {
        let left = self.rooms.iter().map(|&room| sure(room, self.largest));
        (self.is_enough && left.sum::<u64>() >= self.reserved).then_some(self.bytes)
    }
}

/// Returns the bytes that records may take in a segment of `capacity` from file offset `at` on. 0 once notes have
/// used some of the bytes that are kept free.
fn free(capacity: u64, at: u64) -> u64 {
    (capacity - at).saturating_sub(KEPT_FREE)
}

/// Returns the bytes of reserves that a segment with space for `bytes` holds in any case: the `largest` may just not
/// fit into its rest. 0 if the segment is no larger than that reserve.
fn sure(bytes: u64, largest: u64) -> u64 {
    bytes.saturating_sub(largest)
}

/// Bytes that records may take in a spare, once it is a segment.
fn room_of(spare: &Spare) -> u64 {
    free(spare.bytes, SEGMENT_HEADER_BYTES as u64)
}

/// The size of the smallest segment that holds `bytes` of records.
fn segment_bytes_for(bytes: u64) -> u64 {
    (SEGMENT_HEADER_BYTES as u64 + bytes + KEPT_FREE).next_multiple_of(limits::PAGE_BYTES as u64)
}

/// Sizes that spares should have.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    /// Size of the next segment to prepare.
    next: u64,
    /// Least size of the kept spare.
    kept: u64,
}

/// How much a spare should hold.
#[derive(Clone, Copy, Debug)]
struct Ample {
    least: u64,
    /// More than this would be of no use for now.
    enough: u64,
}

impl Ample {
    fn for_record(bytes: u64) -> Self {
        Ample { least: bytes, enough: bytes }
    }

    /// For reserves of so many bytes, some of which have no space. Each spare holds some in at least half of its space. A burst
    /// of claims gets a quarter more than it has: each spare is synced by itself, and ten thousand claims in flight would wait
    /// for forty.
    fn for_reserves(bytes: u64, largest: u64) -> Self {
        Ample { least: 2 * largest, enough: bytes / 4 }
    }
}

impl Wanted {
    /// Whether a spare, made with other settings or for a far larger log, is too large to be kept or to be the next
    /// segment.
    fn is_too_large(self, bytes: u64) -> bool {
        bytes > self.bytes_most()
    }

    fn bytes_most(self) -> u64 {
        4 * self.next.max(self.kept)
    }

    /// Returns the spare that is kept: the smallest that is large enough, or the largest if none is. The newest of
    /// equal ones, so that each has its turn.
    fn kept_of(self, spares: &[Spare]) -> Option<usize> {
        let all = || spares.iter().enumerate();
        let enough = all().rev().filter(|(_, spare)| spare.bytes >= self.kept);
        let kept = enough.min_by_key(|(_, spare)| spare.bytes);
        let kept = kept.or_else(|| all().max_by_key(|(_, spare)| spare.bytes));
        kept.map(|(index, _)| index)
    }

    fn has_kept(self, spares: &[Spare]) -> bool {
        spares.iter().any(|spare| spare.bytes >= self.kept)
    }

    /// Returns the largest spare that is not needed: it is not kept, won't be the next segment, and the others hold
    /// `reserved` bytes without it.
    fn excess(
        self,
        spares: &[Spare],
        next: Option<u64>,
        reserved: u64,
        largest: u64,
    ) -> Option<usize> {
        let kept = self.kept_of(spares)?;
        let mut others: Vec<_> =
            spares.iter().enumerate().filter(|(index, _)| *index != kept).collect();
        others.sort_by_key(|(_, spare)| spare.bytes);
        let left = |room: u64| sure(room, largest);
        let (mut held, mut lacks_next) = (next.map_or(0, left), next.is_none());
        for (_, spare) in &others {
            let comes_next = lacks_next && !self.is_too_large(spare.bytes);
            if !comes_next && held >= reserved {
                return others.last().map(|(index, _)| *index);
            }
            lacks_next &= !comes_next;
            held += left(room_of(spare));
        }
        None
    }
}

/// State that changes seldom, and by I/O: the manifest and the spares. Its lock is never taken under a shard lock.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) manifest: Manifest,
    pub(super) switch: Switch,
    pub(super) spares: Vec<Spare>,
    pub(super) spare_number: u32,
    /// Unlisted segments whose files may still exist, or come back after a power loss.
    pub(super) leaving: Vec<Leaving>,
    /// The open couldn't list the directory: it may hold more such segments.
    pub(super) may_lack_leaving: bool,
    /// The greatest total of reserves in the last period, and when the current period began.
    pub(super) peak: u64,
    pub(super) peak_since: u64,
    /// What `begin_writing` does, or did.
    pub(super) plan: Plan,
}

/// A segment whose file is to be removed.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) ordinal: u32,
    /// A reader may still use it.
    pub(super) segment: Option<Arc<Segment>>,
}

impl Sizes {
    /// The least size: two of the longest record. With space for one alone, a record that just doesn't fit into a
    /// segment's rest could waste a whole segment, and no number of segments would hold the reserves.
    pub(super) fn segment_bytes_least(&self) -> u64 {
        segment_bytes_for(2 * self.record_bytes_max)
    }

    /// Whether a spare of that size, found by an open, can become a segment.
    pub(super) fn suits(&self, spare_bytes: u64) -> bool {
        (self.segment_bytes_least()..=limits::SEGMENT_BYTES_MOST).contains(&spare_bytes)
            && spare_bytes % limits::PAGE_BYTES as u64 == 0
    }

    pub(super) fn first(&self) -> u64 {
        self.segment_bytes_first.max(self.segment_bytes_least())
    }

    /// The most bytes that copied records may take in one segment: no manifest lists a larger one.
    pub(super) fn copies_bytes_most(&self) -> u64 {
        free(self.segment_bytes_max.max(self.segment_bytes_least()), SEGMENT_HEADER_BYTES as u64)
    }

    /// The size of a segment to be prepared for a log of so many bytes: a fraction of it, so that segments grow with
    /// the log, and the prepared ones stay small in comparison.
    fn for_log_of(&self, bytes: u64) -> u64 {
        let page = limits::PAGE_BYTES as u64;
        (bytes / limits::SEGMENTS_OF_A_LOG / page * page)
            .min(self.segment_bytes_max)
            .max(self.first())
    }
}

/// Room for records, as a part of the log: which segments lie ahead, and what may be placed.
#[derive(Clone, Copy)]
pub(crate) struct Rooms<'l>(&'l Log);

impl std::ops::Deref for Rooms<'_> {
    type Target = Log;

    fn deref(&self) -> &Log {
        self.0
    }
}

impl Log {
    pub(crate) fn rooms(&self) -> Rooms<'_> {
        Rooms(self)
    }
}

impl Rooms<'_> {
    pub(super) fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Prepares segments until a record of `bytes` fits in addition to the reserves. `StorageFull` if the disk has no
    /// space; nothing is lost then, and a later call tries again.
    pub(crate) fn make_room(&self, bytes: u64, room: Room) -> Result<()> {
        let mut keeper = self.keeper.lock();
        self.may_go_on()?;
        // Of many calls that waited for the keeper, the first has made room for others. They leave the disk alone.
        if self.fits(bytes, room) {
            return Ok(());
        }
        self.check_standing()?;
        let made = self.guarded(|| self.make_room_in(&mut keeper, bytes, room));
        if room.waits_for_kept() {
            self.note_room(made.as_ref().err());
        }
        made
    }

    /// Notes whether there is space for claims, by the result of preparing some.
    fn note_room(&self, failed: Option<&Error>) {
        let mut full = self.full.lock();
        let was_full = full.is_some();
        match failed.filter(|e| e.kind() == ErrorKind::StorageFull) {
            Some(e) => {
                let (since, _) =
                    full.take().unwrap_or_else(|| (self.seams.clock.wall(), e.again()));
                *full = Some((since, e.again()));
            }
            None if failed.is_none() => *full = None,
            None => {}
        }
        let is_full = full.is_some();
        self.tail.lock().room.is_full = is_full;
        drop(full);
        match failed {
            Some(e) if is_full && !was_full => self.events.full(e),
            _ if was_full && !is_full => self.events.has_space_again(),
            _ => {}
        }
    }

    /// Whether the last attempt to prepare space failed.
    pub(crate) fn is_full(&self) -> bool {
        self.tail.lock().room.is_full
    }

    /// Returns since when there is no space for a claim's record of `bytes` that reserves so much, and why; `None` if
    /// there is space.
    pub(crate) fn is_full_for(&self, bytes: u64, reserve: u64) -> Option<(WallMillis, Error)> {
        let full = self.full.lock();
        let (since, cause) = full.as_ref()?;
        let fits = self.fits(bytes, Room::Reserve(reserve));
        (!fits).then(|| (*since, cause.again()))
    }

    fn fits(&self, bytes: u64, room: Room) -> bool {
        matches!(self.tail.lock().fit(bytes, room), Fit::Here | Fit::Next)
    }

    fn make_room_in(&self, keeper: &mut Keeper, bytes: u64, room: Room) -> Result<()> {
        loop {
            // Read again each time: while this thread waited for the keeper, other claims may have ended and released
            // their reserves.
            let (fit, lacks_next, (reserved, largest)) = {
                let tail = self.tail.lock();
                (tail.fit(bytes, room), tail.lacks_next(), tail.room.after(room))
            };
            let wanted = match fit {
                Fit::Here | Fit::Next => return Ok(()),
                Fit::Nowhere => Ample::for_record(bytes),
                Fit::Reserved => Ample::for_reserves(reserved, largest),
            };
            let listable = self.listable(keeper, bytes, room);
            if let Some(index) = listable.filter(|_| lacks_next || fit == Fit::Nowhere) {
                if !self.is_usable(keeper, index)? {
                    continue;
                }
                let too_small = if lacks_next { None } else { self.withdraw_next(room) };
                if lacks_next || too_small.is_some() {
                    self.list_next(keeper, index, too_small)?;
                    continue;
                }
            }
            // Without it no spare counts, however many there are.
            self.prepare_switch(keeper)?;
            self.prepare_for(keeper, wanted, room)?;
        }
    }

    /// Returns the smallest spare that may be the next segment and holds `bytes`.
    fn listable(&self, keeper: &Keeper, bytes: u64, room: Room) -> Option<usize> {
        let wanted = self.wanted(keeper);
        if room.waits_for_kept() && !wanted.has_kept(&keeper.spares) {
            return None;
        }
        let kept = wanted.kept_of(&keeper.spares);
        // Reserves come first: which spare is kept changes with the oldest segment.
        let may_use_kept = match room {
            Room::Spend(own) | Room::Clear(own) => bytes <= own,
            Room::Move => true,
            Room::Reserve(_) | Room::Free | Room::Note => false,
        };
        let fits = |&(index, spare): &(usize, &Spare)| {
            let is_lent = Some(index) != kept || may_use_kept;
            let is_larger =
                wanted.is_too_large(spare.bytes) && !wanted.is_too_large(segment_bytes_for(bytes));
            is_lent && room_of(spare) >= bytes && !(room.waits_for_kept() && is_larger)
        };
        let found = keeper.spares.iter().enumerate().filter(fits);
        let found = found.min_by_key(|(index, spare)| (Some(*index) == kept, spare.bytes));
        found.map(|(index, _)| index)
    }

    /// Withdraws the next segment before anything is placed in it: it is too small for the record to come. `None` if
    /// the reserves don't fit without it.
    fn withdraw_next(&self, room: Room) -> Option<Arc<Segment>> {
        let mut tail = self.tail.lock();
        let aside = tail.room.aside(room, tail.room.largest);
        if aside >= tail.room.total { tail.next.take() } else { None }
    }

    /// Prepares and lists the next segment, unless there is one, and as many spares as the reserves need.
    pub(super) fn make_room_to_roll(&self, room: Room) -> Result<()> {
        let mut keeper = self.keeper.lock();
        self.may_switch()?;
        self.guarded(|| {
            loop {
                let (lacks_next, may_roll, reserved, largest) = {
                    let tail = self.tail.lock();
                    let Reserves { total, largest, .. } = tail.room;
                    (tail.lacks_next(), tail.may_roll(room), total, largest)
                };
                let listable = self.listable(&keeper, 0, room).filter(|_| lacks_next);
                if let Some(index) = listable {
                    if self.is_usable(&mut keeper, index)? {
                        self.list_next(&mut keeper, index, None)?;
                    }
                } else if may_roll {
                    return Ok(());
                } else {
                    self.prepare_switch(&mut keeper)?;
                    let wanted = Ample::for_reserves(reserved, largest);
                    self.prepare_for(&mut keeper, wanted, room)?;
                }
            }
        })
    }

    /// Does one piece of work ahead of need: prepares a spare, lists the next segment, or removes a spare. Returns
    /// when to call again.
    pub(super) fn prepare_ahead(&self) -> Result<Due> {
        let done = self.try_prepare_ahead();
        self.note_room(done.as_ref().err());
        done
    }

    fn try_prepare_ahead(&self) -> Result<Due> {
        let idle = Due::In(limits::TIME_NOTE_MILLIS);
        let mut keeper = self.keeper.lock();
        if self.may_switch().is_err() || !self.gate.has_begun() {
            return Ok(idle);
        }
        if !keeper.switch.is_prepared() {
            self.guarded(|| self.prepare_switch(&mut keeper))?;
            self.set_aside(&keeper);
            return Ok(Due::Now);
        }
        let wanted = self.wanted(&keeper);
        let kept_sizes = [wanted.kept.max(wanted.next), wanted.kept];
        let kept = wanted.kept_of(&keeper.spares);
        let kept = kept.and_then(|index| Some((index, keeper.spares.get(index)?)));
        let (is_kept, is_too_large) = kept.map_or((false, false), |(_, spare)| {
            (spare.bytes >= wanted.kept, wanted.is_too_large(spare.bytes))
        });
        if !is_kept {
            if !self.may_grow(&keeper) {
                return Ok(idle);
            }
            self.guarded(|| self.prepare_spare(&mut keeper, kept_sizes))?;
        } else if self.tail.lock().lacks_next() {
            // A spare that an open found is checked before it is needed; at a roll, so that a short-lived process
            // reads none of it.
            let found = kept.filter(|(_, spare)| spare.is_found).map(|(index, _)| index);
            match (found, self.listable(&keeper, 0, Room::Free)) {
                (Some(index), _) => {
                    self.guarded(|| self.is_usable(&mut keeper, index))?;
                }
                (None, Some(index)) => {
                    self.guarded(|| match self.is_usable(&mut keeper, index)? {
                        true => self.list_next(&mut keeper, index, None),
                        false => Ok(()),
                    })?
                }
                (None, None) if !self.may_grow(&keeper) => return Ok(idle),
                (None, None) => self
                    .guarded(|| self.prepare_for(&mut keeper, Ample::for_record(0), Room::Free))?,
            }
        } else if is_too_large {
            match self.guarded(|| self.prepare_spare(&mut keeper, kept_sizes)) {
                // The large one stays in use.
                Err(e) if e.kind() == ErrorKind::StorageFull => {
                    return Ok(self.give_back(&mut keeper));
                }
                // The large one is removed next.
                prepared => prepared?,
            }
        } else {
            return Ok(self.give_back(&mut keeper));
        }
        Ok(Due::Now)
    }

    /// Returns an error if names in the store's directory may not be changed.
    pub(super) fn may_switch(&self) -> Result<()> {
        self.may_go_on()?;
        self.check_standing()
    }

    /// Poisons the store if its path no longer names the store's directory.
    pub(crate) fn check_standing(&self) -> Result<()> {
        let standing = manifest::check_standing(&*self.seams.storage, &self.dir);
        standing.map_err(|e| self.failed(e))
    }

    /// Removes a spare that was needed in a burst and not since for a while. Not sooner: spares for load that comes
    /// and goes would be prepared and removed in turn.
    fn give_back(&self, keeper: &mut Keeper) -> Due {
        let idle = Due::In(limits::TIME_NOTE_MILLIS);
        if keeper.spares.len() < 2 {
            return idle;
        }
        let now = self.seams.clock.monotonic_nanos() / 1_000_000;
        let mut waited = now - keeper.peak_since;
        let mut tail = self.tail.lock();
        if waited >= limits::SPARES_MILLIS {
            keeper.peak = tail.room.peak;
            tail.room.peak = tail.room.total;
            (keeper.peak_since, waited) = (now, 0);
        }
        let peak = keeper.peak.max(tail.room.peak);
        let (next, largest, total) = (tail.next_room(), tail.room.largest, tail.room.total);
        let besides = tail.room.clearing + tail.room.moving;
        let wanted = self.wanted(keeper);
        let excess =
            |reserved: u64| wanted.excess(&keeper.spares, next, reserved + besides, largest);
        let Some(index) = excess(peak) else {
            let is_to_go = excess(total).is_some();
            return if is_to_go { Due::In(limits::SPARES_MILLIS - waited) } else { idle };
        };
        let spare = keeper.spares.remove(index);
        // Under the tail's lock, before any record relies on the spare again.
        self.tell_aside(&mut tail, keeper);
        drop(tail);
        // If it stays, the next open finds it again.
        let _ = self.seams.storage.remove(&spare.path);
        Due::Now
    }

    /// Takes the spares that no claim in flight needs out of the keeper; the caller removes their files. At a close only claims of
    /// other processes are in flight, and the next host has to have what they need.
    pub(super) fn take_excess(&self, keeper: &mut Keeper) -> Vec<Spare> {
        let wanted = self.wanted(keeper);
        let (next, reserved, largest) = {
            let tail = self.tail.lock();
            (tail.next_room(), tail.room.total, tail.room.largest)
        };
        let mut taken = Vec::new();
        while let Some(index) = wanted.excess(&keeper.spares, next, reserved, largest) {
            taken.push(keeper.spares.remove(index));
        }
        taken
    }

    fn wanted(&self, keeper: &Keeper) -> Wanted {
        let listed = &keeper.manifest.segments;
        let bytes = |item: &Listed| item.end.since(item.base);
        let oldest = listed.first().map_or(0, bytes);
        // The kept spare holds everything alive in the oldest segment, however much that is.
        let kept = oldest.next_multiple_of(limits::PAGE_BYTES as u64).max(self.sizes.first());
        Wanted { next: self.next_spare_bytes(keeper), kept }
    }

    /// Prepares a spare that holds so much; first the one to be kept, where `room` waits for that.
    fn prepare_for(&self, keeper: &mut Keeper, ample: Ample, room: Room) -> Result<()> {
        let wanted = self.wanted(keeper);
        if room.waits_for_kept() && !wanted.has_kept(&keeper.spares) {
            return self.prepare_spare(keeper, [wanted.kept.max(wanted.next), wanted.kept]);
        }
        let least = self.sizes.first().max(segment_bytes_for(ample.least));
        // It may become a segment.
        let most = wanted.bytes_most().min(self.sizes.segment_bytes_max);
        let enough = segment_bytes_for(ample.enough).min(most);
        self.prepare_spare(keeper, [wanted.next.max(least).max(enough), least])
    }

    /// Prepares a spare of the first of two sizes, or of the second if the first exceeds the budget.
    fn prepare_spare(&self, keeper: &mut Keeper, [large, small]: [u64; 2]) -> Result<()> {
        let bytes = if self.check_budget_of(keeper, large).is_ok() { large } else { small };
        self.check_budget_of(keeper, bytes)?;
        keeper.spare_number = keeper.spare_number.wrapping_add(1);
        let spare =
            Spare::prepare(&*self.seams.storage, &self.log_dir(), keeper.spare_number, bytes);
        let spare = spare.map_err(|e| self.failed(e)).map_err(|e| match e.kind() {
            ErrorKind::StorageFull => {
                let message = format!(
                    "no space left for another segment of {bytes} bytes in {}: free some and call again, or forget keys and compact",
                    self.dir.display()
                );
                Error::new(ErrorKind::StorageFull, message).at(&self.dir).because(e)
            }
            _ => e,
        });
        let mut spare = spare?;
        if keeper.spares.len() >= limits::OPEN_SPARES {
            spare.file = None;
        }
        keeper.spares.push(spare);
        self.set_aside(keeper);
        self.note_prepared(keeper);
        self.events.prepared(bytes);
        Ok(())
    }

    pub(super) fn next_spare_bytes(&self, keeper: &Keeper) -> u64 {
        let listed = &keeper.manifest.segments;
        self.sizes.for_log_of(listed.iter().map(|item| item.end.since(item.base)).sum())
    }

    /// Prepares a new kept spare after compaction removed a segment of `gone` bytes, if compaction used the one
    /// before. The removed segment's space serves for it before anything can take that.
    pub(super) fn restore_kept(&self, keeper: &mut Keeper, gone: u64) {
        if keeper.spares.is_empty() {
            let kept = self.wanted(keeper).kept;
            let gone = gone.max(self.sizes.first()).next_multiple_of(limits::PAGE_BYTES as u64);
            // If there is space for neither, the background tries again.
            let _ = match self.prepare_spare(keeper, [kept, gone]) {
                Err(e) if e.kind() == ErrorKind::StorageFull => {
                    self.prepare_spare(keeper, [gone, gone])
                }
                prepared => prepared,
            };
        }
    }

    /// Removes the kept spare, to free space for the files that compaction has to write outside the log. Returns
    /// whether it did: it does not where others are set aside, one of which would have to replace it.
    pub(crate) fn lend_kept(&self) -> Result<bool> {
        let mut keeper = self.keeper.lock();
        self.may_go_on()?;
        if keeper.spares.len() != 1 {
            return Ok(false);
        }
        let spare = keeper.spares.remove(0);
        self.set_aside(&keeper);
        Ok(self.seams.storage.remove(&spare.path).is_ok())
    }

    pub(super) fn bytes_used(&self, keeper: &Keeper) -> u64 {
        let segments = keeper.manifest.segments.iter().map(|item| item.end.since(item.base));
        let spares = keeper.spares.iter().map(|spare| spare.bytes);
        let manifests = 2 * keeper.manifest.next_file_bytes() as u64;
        let log: u64 = segments.chain(spares).sum();
        log + manifests + self.index_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn check_budget_of(&self, keeper: &Keeper, bytes: u64) -> Result<()> {
        let (used, most) = (self.bytes_used(keeper), self.sizes.disk_bytes_max);
        if used + bytes <= most {
            return Ok(());
        }
        let message = format!(
            "the store takes {used} bytes of its disk_bytes_max, {most}: forget keys and compact, keep results for less long, or raise it"
        );
        Err(Error::new(ErrorKind::StorageFull, message).at(&self.dir))
    }

    /// Returns the space for the records that compaction has to move out of the oldest segment, including the kept
    /// spare's. `of_active`: the oldest segment is the active one.
    pub(crate) fn moving_room(&self, of_active: bool) -> MovingRoom {
        let tail = self.tail.lock();
        let here = free(tail.active.identity.capacity, tail.at);
        let mut aside = tail.room.set_aside.clone();
        aside.sort_unstable();
        let here = Some(here).filter(|_| !of_active);
        let ahead = here.into_iter().chain(tail.next_room());
        MovingRoom {
            rooms: ahead.chain(aside).chain([tail.room.kept]).collect(),
            reserved: tail.room.total,
            largest: tail.room.largest,
            bytes: 0,
            is_enough: true,
        }
    }

    /// Returns the error of a compaction whose first step fails because the disk is full.
    pub(crate) fn has_no_room_to_move(&self) -> Error {
        let message = format!(
            "no space left in {} but what is kept for compaction, which is too little for the live records of the oldest segment: free some and call again",
            self.dir.display()
        );
        Error::new(ErrorKind::StorageFull, message).at(&self.dir)
    }

    /// Keeps so many bytes for the records that compaction moves. 0: it has moved them all, or given up.
    pub(crate) fn keep_for_moving(&self, bytes: u64) {
        self.tail.lock().room.moving = bytes;
    }

    /// Whether a spare is still as it was prepared. If not, it is removed: its bytes would follow the log's end.
    pub(super) fn is_usable(&self, keeper: &mut Keeper, index: usize) -> Result<bool> {
        let storage = &*self.seams.storage;
        let Some(spare) = keeper.spares.get_mut(index) else { return Ok(false) };
        if spare.is_found && !spare.is_zeros(storage)? {
            // If it stays, the next open finds it again.
            let _ = storage.remove(&keeper.spares.remove(index).path);
            self.set_aside(keeper);
            return Ok(false);
        }
        spare.is_found = false;
        Ok(true)
    }

    /// Makes a spare the next segment and lists it, durably, before any LSN in it is taken. It replaces `instead`, a
    /// segment that was withdrawn. If that fails before anything is changed, the withdrawn one is the next segment
    /// again.
    fn list_next(
        &self,
        keeper: &mut Keeper,
        index: usize,
        instead: Option<Arc<Segment>>,
    ) -> Result<()> {
        let listed = self.try_list_next(keeper, index, instead.as_deref());
        match (&listed, instead) {
            (Err(_), Some(withdrawn)) => self.tail.lock().next = Some(withdrawn),
            (Ok(()), Some(withdrawn)) => {
                keeper.leaving.push(Leaving { ordinal: withdrawn.identity.ordinal, segment: None });
                // If its file stays, the next drop or an open tries again.
                let _ = self.remove_leaving(keeper);
            }
            (_, None) => {}
        }
        listed
    }

    fn try_list_next(
        &self,
        keeper: &mut Keeper,
        index: usize,
        instead: Option<&Segment>,
    ) -> Result<()> {
        self.prepare_switch(keeper)?;
        keeper.manifest.check_room(1).map_err(|e| e.at(&self.dir))?;
        let is_kept = |ordinal: u32| instead.is_none_or(|it| it.identity.ordinal != ordinal);
        let mut manifest = keeper.manifest.clone();
        let (base, before) = (manifest.extent, manifest.segments.last());
        let follows = before.map_or(Lsn::ZERO, |before| Identity::of(before).start());
        manifest.segments.retain(|item| is_kept(item.ordinal));
        let Some(spare) = keeper.spares.get_mut(index) else {
            return Err(self.bug("a spare that doesn't exist was to be listed"));
        };
        let segment = self.add_segment(spare, &mut manifest, base, follows)?;
        keeper.spares.remove(index);
        self.switch_to(keeper, manifest)?;
        let segment = Arc::new(segment);
        let mut list = self.segments.lock();
        let mut segments: Vec<_> =
            list.iter().filter(|old| is_kept(old.identity.ordinal)).cloned().collect();
        self.pool_full(&mut segments, &keeper.manifest.segments);
        segments.push(Arc::clone(&segment));
        *list = Arc::new(segments);
        drop(list);
        let mut tail = self.tail.lock();
        self.tell_aside(&mut tail, keeper);
        tail.next = Some(segment);
        drop(tail);
        self.growth.note();
        Ok(())
    }

    /// Makes a spare the next segment of `manifest`, which is not written yet. The segment begins at `base` and
    /// follows the log up to `follows`. Its header and name are durable on return.
    pub(super) fn add_segment(
        &self,
        spare: &mut Spare,
        manifest: &mut Manifest,
        base: Lsn,
        follows: Lsn,
    ) -> Result<Segment> {
        // Two segments with the same ordinal would have the same name.
        let next_ordinal = manifest.next_ordinal.checked_add(1);
        let next_ordinal = next_ordinal
            .ok_or_else(|| self.bug("a segment was to be made, and no ordinal is left for it"))?;
        let salt = self.seams.draw_u64()?;
        let identity =
            Identity { ordinal: manifest.next_ordinal, base, capacity: spare.bytes, salt };
        let (storage, log_dir) = (&*self.seams.storage, self.log_dir());
        let (store, secrets) = (manifest.store, &manifest.secrets);
        let activated = spare.activate(storage, &log_dir, identity, store, secrets, follows);
        let segment = activated.map_err(|e| self.failed(e))?;
        let listed = identity.listed();
        manifest.segments.push(listed);
        manifest.next_ordinal = next_ordinal;
        manifest.extent = manifest.extent.max(listed.end);
        Ok(segment)
    }

    /// Hands full segments to the pool: records after them are durable, so they are durable as a whole. Earlier
    /// segments were handed over when they became so.
    fn pool_full(&self, segments: &mut [Arc<Segment>], listed: &[Listed]) {
        let durable = self.durable();
        let count = segments.iter().take_while(|segment| segment.base() < durable).count();
        let [full @ .., _] = segments.split_at_mut(count).0 else { return };
        for segment in full.iter_mut().rev() {
            let item = listed.iter().rfind(|item| item.ordinal == segment.identity.ordinal);
            let Some(pooled) = item.and_then(|item| segment.pooled(&self.pool, item.end)) else {
                return;
            };
            *segment = Arc::new(pooled);
        }
    }

    /// Updates how much space the tail counts in the spares. They count as none while the next manifest's file is
    /// missing: without it no spare can be listed.
    pub(super) fn set_aside(&self, keeper: &Keeper) {
        self.tell_aside(&mut self.tail.lock(), keeper);
    }

    fn tell_aside(&self, tail: &mut Tail, keeper: &Keeper) {
        let wanted = self.wanted(keeper);
        tail.room.clearing = wanted.next / limits::CLEARING_OF_A_SEGMENT;
        (tail.room.kept, tail.room.set_aside) = (0, Vec::new());
        if !keeper.switch.is_prepared() {
            return;
        }
        let kept = wanted.kept_of(&keeper.spares);
        for (index, spare) in keeper.spares.iter().enumerate() {
            match Some(index) == kept {
                true => tail.room.kept = room_of(spare),
                false => tail.room.set_aside.push(room_of(spare)),
            }
        }
    }

    /// Switches to a manifest, with the current clocks and watermark.
    pub(super) fn switch_to(&self, keeper: &mut Keeper, mut manifest: Manifest) -> Result<()> {
        manifest.generation += 1;
        manifest.durable = manifest.durable.max(self.durable());
        manifest.time = self.store_clock.note(&*self.seams.clock).into();
        keeper.switch.to(&manifest).map_err(|e| self.failed(e))?;
        keeper.manifest = manifest;
        // Made now, while there may be space; if there is none, the background tries again.
        let _ = self.prepare_switch(keeper);
        self.set_aside(keeper);
        Ok(())
    }

    /// Makes the file of the next manifest.
    pub(super) fn prepare_switch(&self, keeper: &mut Keeper) -> Result<()> {
        keeper.switch.prepare(keeper.manifest.next_file_bytes()).map_err(|e| self.failed(e))
    }

    /// Returns a number for a table that no other table has or had.
    pub(crate) fn take_table_number(&self) -> Result<u32> {
        let mut keeper = self.keeper.lock();
        let number = keeper.manifest.next_table;
        keeper.manifest.next_table = number.checked_add(1).ok_or_else(|| {
            Error::new(ErrorKind::StorageFull, "the index has used up its numbers").at(&self.dir)
        })?;
        Ok(number)
    }

    /// Switches to a manifest whose list of tables `change` has updated. Durable on return.
    pub(crate) fn list_tables(&self, change: impl FnOnce(&mut Manifest)) -> Result<()> {
        let mut keeper = self.keeper.lock();
        self.may_switch()?;
        self.guarded(|| {
            self.prepare_switch(&mut keeper)?;
            let mut manifest = keeper.manifest.clone();
            change(&mut manifest);
            self.switch_to(&mut keeper, manifest)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Sim;

    /// What a call waits for, another may have made meanwhile. Each of ten thousand tasks looked at the directory nevertheless.
    #[test]
    fn room_that_is_there_is_given_without_a_look_at_the_disk() {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        assert!(store.mark("first").unwrap().is_first());
        let engine = store.engine();
        let calls = sim.calls_of(|| {
            engine.log.rooms().make_room(64, Room::Reserve(4096)).unwrap();
        });
        assert!(calls.is_empty(), "{calls:?}");
    }
}
