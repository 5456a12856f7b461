//! Reclaim: the oldest segment's live records move to the tail, then the segment is removed.
//!
//! Promises: the log is first in, first out, so a record that hides another is always younger, and no hidden record
//! returns. A segment is removed only when everything placed until its last record was judged is durable: the copies,
//! and the records that made the others dead. A bad record keeps its segment, and is reported. A move is checked and
//! placed in one step under the shard lock, as any other change of a key. Never: moves records of the newest segment,
//! or decides about a record by an estimate.

use std::sync::Arc;

use hashbrown::HashTable;

use super::Engine;
use super::background::Work;
use super::compose::state_of;
use super::look::Known;
use super::sample::LiveEstimate;
use crate::index::recent::{Entry, Place};
use crate::limits;
use crate::log::{Due, NoRoom, Oldest, Room, Span};
use crate::operation::{Durability, Key};
use crate::protocol::{self, KeyState, OpenAs};
use crate::record::{Body, Draft, Record};
use crate::remembered::{Memory, MemoryFile, Newest};
use crate::sealed::listed::{ListedFile, ListedMemories};
use crate::sealed::{Merge, Writer};
use crate::sync::{Ordering, yield_now};
use crate::types::{KeyHash, Lsn, StoreMillis};
use crate::{Error, ErrorKind, Result};

/// A segment that is being reclaimed.
pub(super) struct Compacting {
    ordinal: u32,
    /// The next record to be judged; `None`: all are.
    at: Option<Lsn>,
    /// The end that must be durable before the segment is removed.
    judged: Lsn,
    /// Its expired keys that are to be remembered.
    memories: Vec<Memory>,
    /// The space that its live records may use: at first only free space.
    room: Room,
}

/// One pass of compaction over everything that was in the log when it began, and the bytes moved and reclaimed by
/// then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    until: Lsn,
    moved: u64,
    reclaimed: u64,
}

/// When compaction last yielded the processor to other threads.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Turns {
    /// Bytes judged since the last check, and when that was.
    judged: u64,
    since: u64,
    /// Nanoseconds that it has to work before it yields again: as long as the last yield took.
    owed: u64,
}

impl Turns {
    /// Counts judged bytes. Returns whether it is time to check if it should yield.
    fn judged(&mut self, bytes: u64) -> bool {
        self.judged += bytes;
        let is_time = self.judged >= limits::COMPACTION_YIELD_BYTES;
        if is_time {
            self.judged = 0;
        }
        is_time
    }

    /// Whether it may yield: not before it has worked for as long as the last yield took. Where all processors are
    /// busy, other threads take many slices at once, and compaction would never end.
    fn may_lend(&mut self, now: u64) -> bool {
        let worked = now - std::mem::replace(&mut self.since, now);
        // 0 once it has worked for longer than that.
        self.owed = self.owed.saturating_sub(worked);
        self.owed == 0
    }

    /// Notes that a yield ended at `now`.
    fn lent(&mut self, now: u64) {
        self.owed = now - std::mem::replace(&mut self.since, now);
    }
}

/// What a call of `compact` did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Compacted {
    pub(crate) moved: u64,
    pub(crate) reclaimed: u64,
    pub(crate) is_complete: bool,
}

/// What becomes of a record whose segment is reclaimed, if it is its key's newest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It moves as it is.
    Alive,
    /// It has expired, and its key is remembered until the given time.
    Remembered(StoreMillis),
    /// It is dead, but hides an older memory of its key until that has passed.
    Hides(StoreMillis),
    Dead,
}

impl Fate {
    fn of(state: Option<&KeyState>, body: &Body<'_>, now: StoreMillis) -> Self {
        let memory = body.memory_until.filter(|until| *until > now);
        match state {
            Some(state) if !protocol::is_expired(state, now) => Fate::Alive,
            Some(state) if protocol::is_remembered(state, now) => {
                memory.map_or(Fate::Dead, Fate::Remembered)
            }
            _ => memory.map_or(Fate::Dead, Fate::Hides),
        }
    }

    /// Returns the draft that replaces the record at the log's end, if it moves.
    fn moves(self, record: &Record<'_>, body: &Body<'_>) -> Option<Draft> {
        match self {
            Fate::Alive => Some(Draft::moved(record, body)),
            Fate::Hides(until) => Some(Draft::forget(&Body {
                key_kind: body.key_kind,
                key: body.key,
                time: body.time,
                attempt: 1,
                memory_until: Some(until),
                ..Body::default()
            })),
            Fate::Remembered(_) | Fate::Dead => None,
        }
    }
}

/// A record that is to be judged.
struct Keyed<'a> {
    record: &'a Record<'a>,
    /// `None`: a later record is its key's newest.
    key: Option<(Key<'a>, KeyHash)>,
}

/// Where a record stands in its key's life, according to the index.
pub(super) enum RecordStanding {
    Newest,
    Superseded,
    Unknown,
}

/// Reclaim, a part of the engine: it uses the whole engine, and adds its own steps.
#[derive(Clone, Copy)]
pub(crate) struct Reclaim<'e>(&'e Engine);

impl std::ops::Deref for Reclaim<'_> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.0
    }
}

impl Engine {
    pub(crate) fn compaction(&self) -> Reclaim<'_> {
        Reclaim(self)
    }
}

impl Reclaim<'_> {
    /// Does one piece of compaction, if one is due; `None` if not.
    pub(super) fn step_compaction(&self, work: &mut Work) -> Result<Option<Due>> {
        if work.compacting.is_none() {
            self.end_pass(work);
            let oldest = self.log.oldest().map(|oldest| oldest.base);
            let is_spent = oldest.is_some_and(|oldest| self.log.is_spent(oldest));
            if !is_spent && !self.is_compaction_due(work)? {
                work.pass = None;
                // In an idle store a segment is removed when its records expire, not up to a minute later.
                let spent_in = oldest.and_then(|oldest| self.log.spent_in(oldest));
                return Ok(spent_in.map(|millis| {
                    Due::In(millis.clamp(limits::UNSYNCED_MILLIS_MAX, limits::ESTIMATE_MILLIS))
                }));
            }
        }
        work.pass.get_or_insert_with(|| self.begin_pass());
        let Some(moved) = self.advance(work, limits::COMPACTION_PIECE_BYTES)? else {
            // The copies wait for a sync, which happens within a second.
            return Ok(Some(Due::In(limits::IDLE_NOTE_MILLIS)));
        };
        // A bounded rate: claims and completions share the log with compaction.
        let pause = moved / limits::COMPACTION_BYTES_PER_MILLI;
        Ok(Some(if pause == 0 { Due::Now } else { Due::In(pause) }))
    }

    pub(super) fn begin_pass(&self) -> Pass {
        let count = |count: &crate::sync::AtomicU64| count.load(Ordering::Relaxed);
        Pass { until: self.log.end(), moved: count(&self.moved), reclaimed: count(&self.reclaimed) }
    }

    /// Whether the bytes reclaimed since a pass began were worth the bytes moved.
    fn has_gained(&self, pass: &Pass) -> bool {
        let now = self.begin_pass();
        let (reclaimed, moved) = (now.reclaimed - pass.reclaimed, now.moved - pass.moved);
        reclaimed > moved + reclaimed / 8
    }

    /// Ends a pass that has covered all of the log. A sample can miss the few results that hold nearly all bytes. If
    /// a pass reclaimed next to nothing, everything was alive, whatever the sample says; so the log is left alone
    /// until it has grown, or for an hour.
    fn end_pass(&self, work: &mut Work) {
        let is_through = |pass: &mut Pass| self.log.head_base() >= pass.until;
        let Some(pass) = work.pass.take_if(is_through) else { return };
        if !self.has_gained(&pass) {
            let log_bytes = self.log.bytes_since(Lsn::ZERO);
            let now = self.log.seams().clock.monotonic_nanos() / 1_000_000;
            let at_millis = now + limits::FUTILE_MILLIS;
            work.estimate = Some(LiveEstimate {
                live: log_bytes,
                log_bytes,
                at_millis,
                newest: None,
                is_rough: false,
            });
        }
    }

    /// Whether the store is too large for its live bytes. Sets how large the log may become before that is checked
    /// again.
    fn is_compaction_due(&self, work: &mut Work) -> Result<bool> {
        let (is_due, most) = match self.log.oldest() {
            Some(oldest) => self.weigh(work, oldest)?,
            None => (false, 0),
        };
        self.log.allow(most, !is_due);
        Ok(is_due)
    }

    /// The same, and the most bytes that all files may use.
    fn weigh(&self, work: &mut Work, oldest: Oldest) -> Result<(bool, u64)> {
        let log_bytes = self.log.bytes_since(Lsn::ZERO);
        let (used, most) = self.log.budget();
        // Remembered keys are alive, too.
        let remembered: u64 = self.tables().expired.iter().map(|file| file.listed.bytes()).sum();
        let outside = used - remembered;
        // The store may use two segments in addition to twice the live bytes; one of them is left for records that
        // move.
        let slack = oldest.newest_capacity;
        if outside <= slack {
            return Ok((false, 0));
        }
        let now = self.log.seams().clock.monotonic_nanos() / 1_000_000;
        let is_fresh = work.estimate.is_some_and(|seen| {
            // 0 while the log is left alone: see `end_pass`.
            let age = now.saturating_sub(seen.at_millis);
            let is_same = seen.newest.is_none_or(|newest| newest == oldest.newest);
            log_bytes.abs_diff(seen.log_bytes) <= log_bytes / 8
                && age < limits::ESTIMATE_MILLIS
                // A log of the same length may hold entirely different records.
                && (is_same || age < limits::SAMPLE_MILLIS)
        });
        let is_due = |live: u64| {
            // Near its budget the store doesn't wait until half of its log is dead.
            let is_tight = used > most / 4 * 3 && log_bytes > live + live / 8;
            // Prepared segments count: they are on the disk. In a store so small that they are much larger than the
            // live bytes, moving nearly all of the log again and again would gain little.
            let is_large = outside > 2 * live + slack && log_bytes > live + live / 4;
            is_tight || is_large
        };
        let live = match work.estimate.filter(|_| is_fresh) {
            // A sample of a few keys never starts a move: it may have missed the few results that hold most bytes.
            Some(seen) if seen.is_rough && is_due(seen.live) => {
                // Everything written since may be alive; 0 if the log has shrunk. A sample may find less than that.
                let since = log_bytes.saturating_sub(seen.log_bytes);
                let live = self.sampling().estimate()?.bytes.saturating_sub(since);
                work.estimate = Some(LiveEstimate { live, is_rough: false, ..seen });
                live
            }
            Some(seen) => seen.live,
            None => {
                let few = self.sampling().sample_of(limits::ESTIMATE_SAMPLES_FEW)?;
                let is_rough = few.is_even() && !is_due(few.alive.bytes);
                let live =
                    if is_rough { few.alive.bytes } else { self.sampling().estimate()?.bytes };
                let newest = Some(oldest.newest);
                work.estimate =
                    Some(LiveEstimate { live, log_bytes, at_millis: now, newest, is_rough });
                live
            }
        };
        // A small store's segments are more than twice its live bytes: the active one, the next one, a spare, and one
        // that is being reclaimed.
        let most = (2 * live + 2 * slack).max(live + 5 * slack) + remembered;
        Ok((is_due(live), most))
    }

    /// Judges about `bytes` of the oldest segment's records, and removes the segment once all are judged. Returns the
    /// bytes moved; `None` if it waits for a sync.
    fn advance(&self, work: &mut Work, bytes: u64) -> Result<Option<u64>> {
        let Some(oldest) = self.log.oldest() else {
            work.compacting = None;
            return Ok(Some(0));
        };
        let mut compacting = match work.compacting.take() {
            Some(compacting) if compacting.ordinal == oldest.ordinal => compacting,
            _ => Compacting {
                ordinal: oldest.ordinal,
                at: Some(oldest.base),
                judged: Lsn::ZERO,
                memories: Vec::new(),
                room: Room::Free,
            },
        };
        if compacting.at.is_some() && self.log.is_spent(oldest.base) {
            // It is removed unread: the records that made its own dead are durable, and its memories have passed.
            (compacting.at, compacting.judged) = (None, Lsn::ZERO);
            compacting.memories.clear();
        }
        let Some(at) = compacting.at else {
            if self.log.durable() < compacting.judged {
                work.compacting = Some(compacting);
                return Ok(None);
            }
            let dropped = self.drop_oldest(work, compacting);
            self.log.rooms().keep_for_moving(0);
            return dropped.map(|()| Some(0));
        };
        let durable = self.log.durable();
        self.copies.lock().retain(|(copy, _)| *copy >= durable);
        let mut moved = 0_u64;
        let (memories, room) = (&mut compacting.memories, &mut compacting.room);
        let turns = &mut work.turns;
        let walked = self.log.reading().walk_some(oldest.ordinal, at, bytes, &mut |run| {
            for judged in self.with_keys(&run)? {
                if let Some((key, hash)) = judged.key {
                    let judged = self.judge(judged.record, &key, hash, memories, room)?;
                    moved += judged;
                }
                if turns.judged(judged.record.len()) {
                    self.let_others_go_first(turns);
                }
            }
            Ok(())
        });
        self.moved.fetch_add(moved, Ordering::Relaxed);
        if moved > 0 {
            // In an idle store the log's thread sleeps, and the segment waits until that thread syncs the copies.
            self.log.wake_upkeep();
        }
        compacting.at = walked.inspect_err(|_| self.log.rooms().keep_for_moving(0))?;
        if compacting.at.is_none() {
            // Notes after it don't count: nothing requests their sync.
            compacting.judged = self.log.keyed_end();
        }
        work.compacting = Some(compacting);
        Ok(Some(moved))
    }

    /// Reclaims at a close, for stores that are open too briefly for the background. If a segment was begun since
    /// reclaim was considered last, up to two segments are removed, as far as there is time `until` then.
    pub(super) fn reclaim_at_close(&self, work: &mut Work, until: Option<u64>) -> Result<()> {
        if !self.log.take_look() {
            return Ok(());
        }
        for _ in 0..2 {
            // Until the segment is judged, synced and removed.
            while self.step_compaction(work)?.is_some() && work.compacting.is_some() {
                if until.is_some_and(|until| self.log.seams().clock.monotonic_nanos() >= until) {
                    return Ok(());
                }
                if self.waits_for_sync(work) {
                    self.log.sync()?;
                }
            }
            if work.pass.is_none() {
                // Nothing is due any more.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reclaims the two oldest segments if kills have left many scraps, however much is alive in them. After each
    /// kill an open begins a segment without checking for space, and the one before is cut to a scrap.
    pub(super) fn gather_scraps(&self) -> Result<()> {
        let mut work = self.work.lock();
        let mut gather = || -> Result<()> {
            for _ in 0..2 {
                let head = self.log.head_base();
                while self.log.begins_with_scraps()
                    && self.log.oldest().is_some_and(|oldest| oldest.base == head)
                {
                    if self.advance(&mut work, limits::COMPACTION_PIECE_BYTES)?.is_none() {
                        self.log.sync()?;
                    }
                }
            }
            Ok(())
        };
        // Other errors are no reason to refuse the open: they are reported where they matter.
        gather().or_else(|e| if self.log.is_poisoned() { Err(e) } else { Ok(()) })
    }

    /// Yields during a sync: a thread that returns from it on this processor would otherwise wait for the end of the
    /// time slice, as long as several syncs.
    fn let_others_go_first(&self, turns: &mut Turns) {
        let nanos = || self.log.seams().clock.monotonic_nanos();
        if turns.may_lend(nanos()) && self.log.is_syncing() {
            yield_now();
            turns.lent(nanos());
        }
    }

    /// Whether the oldest segment is judged and can be removed once the log is synced.
    pub(super) fn waits_for_sync(&self, work: &Work) -> bool {
        work.compacting.as_ref().is_some_and(|compacting| {
            compacting.at.is_none() && self.log.durable() < compacting.judged
        })
    }

    /// Reclaims the oldest segments that were in the log when `pass` began, because space is missing. Returns whether
    /// any was reclaimed. For a record that frees space it doesn't matter whether that is worth it: a forget may wait
    /// for one pass over the whole log.
    pub(super) fn reclaim(&self, pass: &Pass, room: Room) -> bool {
        let mut work = self.work.lock();
        let clears = matches!(room, Room::Clear(_));
        if !clears && !self.is_worth_reclaiming(&mut work) {
            return false;
        }
        let gone = || self.reclaimed.load(Ordering::Relaxed);
        let before = gone();
        while self.log.may_go_on().is_ok() && self.log.head_base() < pass.until {
            let went_on = match self.log.oldest() {
                Some(_) => self.advance(&mut work, limits::COMPACTION_PIECE_BYTES),
                None if clears => match self.roll_into_kept() {
                    // The log is empty.
                    Ok(base) if base == self.log.head_base() => return false,
                    rolled => rolled.and_then(|_| self.log.sync()).map(|()| Some(0)),
                },
                None => return false,
            };
            let went_on = match went_on {
                Ok(Some(_)) => true,
                Ok(None) => self.log.sync().is_ok(),
                Err(_) => false,
            };
            let is_enough = if clears { gone() > before } else { self.has_gained(pass) };
            if !went_on || work.compacting.is_none() && is_enough {
                break;
            }
        }
        gone() > before
    }

    /// Whether enough of the log is dead, by a sample. One is taken at most once a second: refused callers ask again,
    /// and the live bytes change only as the log does, and as results expire.
    fn is_worth_reclaiming(&self, work: &mut Work) -> bool {
        let now = self.log.seams().clock.monotonic_nanos() / 1_000_000;
        let log_bytes = self.log.bytes_since(Lsn::ZERO);
        let is_fresh = work.estimate.is_some_and(|seen| {
            seen.log_bytes == log_bytes && now.abs_diff(seen.at_millis) < limits::SAMPLE_MILLIS
        });
        if !is_fresh {
            let Ok(live) = self.sampling().estimate().map(|alive| alive.bytes) else {
                return false;
            };
            let newest = self.log.oldest().map(|oldest| oldest.newest);
            let is_rough = false;
            work.estimate =
                Some(LiveEstimate { live, log_bytes, at_millis: now, newest, is_rough });
        }
        work.estimate.is_some_and(|seen| seen.live + seen.live / 8 < log_bytes)
    }

    /// Ends the active segment on a full disk, if everything alive in it fits into the kept spare.
    fn roll_into_kept(&self) -> Result<Lsn> {
        let bytes =
            self.moving_bytes(None)?.ok_or_else(|| self.log.rooms().has_no_room_to_move())?;
        self.log.rooms().keep_for_moving(bytes);
        let rolled = self.log.roll_over(Room::Move);
        rolled.inspect_err(|_| self.log.rooms().keep_for_moving(0))
    }

    /// Returns the bytes of a segment's live records, if they fit into all that is prepared, including the kept
    /// spare. `None` for the ordinal: the active segment, whose records must fit after it.
    fn moving_bytes(&self, ordinal: Option<u32>) -> Result<Option<u64>> {
        let mut moving = self.log.rooms().moving_room(ordinal.is_none());
        let from = match ordinal {
            Some(ordinal) => {
                self.log.reading().listed().into_iter().find(|item| item.ordinal == ordinal)
            }
            None => self.log.reading().listed().into_iter().find(|item| item.end > self.log.end()),
        };
        let Some(from) = from else { return Ok(None) };
        let to = self.log.end();
        // The active segment can be read as far as it is written.
        self.log.sync()?;
        self.log.reading().walk(from.base, from.end.min(to), &mut |record, _| {
            self.log.may_go_on()?;
            let body = self.body_of(record)?;
            let fate = Fate::of(state_of(record, &body).as_ref(), &body, self.log.now());
            let Some(draft) = fate.moves(record, &body) else { return Ok(()) };
            let key = self.key_of(&body, record.lsn)?;
            let is_newest = self.newest_of(&key)? == Some(record.lsn);
            let is_needed = !self.is_known_as_dropped(&key);
            if is_newest && is_needed && (!key.is_step() || self.needs_step(&key)?) {
                moving.take(draft.len());
            }
            Ok(())
        })?;
        Ok(moving.enough_for())
    }

    /// Pairs consecutive records with their keys, except records that a later one among them supersedes: these are
    /// dead without a lookup or a read. Most claims are such records, followed by their completion.
    fn with_keys<'a>(&self, run: &'a [Record<'_>]) -> Result<Vec<Keyed<'a>>> {
        let mut newest = HashTable::<(Key<'a>, KeyHash)>::with_capacity(run.len());
        let mut keyed = Vec::with_capacity(run.len());
        for record in run.iter().rev() {
            let body = self.body_of(record)?;
            let key = self.key_of(&body, record.lsn)?;
            let hash = self.hash(&key);
            let is_last = newest.find(hash.high, |(later, _)| *later == key).is_none();
            if is_last {
                newest.insert_unique(hash.high, (key.clone(), hash), |(_, hash)| hash.high);
            }
            keyed.push(Keyed { record, key: is_last.then_some((key, hash)) });
        }
        keyed.reverse();
        Ok(keyed)
    }

    /// Moves one record to the tail, if it is alive, or notes that its key is to be remembered. Returns the bytes
    /// moved.
    fn judge(
        &self,
        record: &Record<'_>,
        key: &Key<'_>,
        hash: KeyHash,
        memories: &mut Vec<Memory>,
        room: &mut Room,
    ) -> Result<u64> {
        if self.is_known_as_dropped(key) {
            return Ok(0);
        }
        let body = self.body_of(record)?;
        if key.is_step() && !self.needs_step(key)? {
            return Ok(0);
        }
        let state = state_of(record, &body);
        loop {
            let mut shard = self.shard(hash)?;
            let now = self.log.now();
            let fate = Fate::of(state.as_ref(), &body, now);
            if fate == Fate::Dead {
                // Its entry stays until the segment is removed: it may hide an older record of the same segment.
                return Ok(0);
            }
            let mut known = None;
            if shard.entry_at(hash, record.lsn).is_none() {
                let is_key = |entry: &Entry| {
                    entry.live.as_ref().is_some_and(|live| live.is_key(key.kind(), key.bytes()))
                };
                if shard.candidates(hash).any(is_key) {
                    return Ok(0);
                }
                let seen = Known::of(&shard, hash, now);
                drop(shard);
                match self.standing(key, hash, record.lsn, &seen)? {
                    RecordStanding::Superseded => return Ok(0),
                    RecordStanding::Unknown => {
                        let what =
                            format_args!("the index doesn't know the record at lsn {}", record.lsn);
                        return Err(Error::corrupt(&self.index_dir(), 0, what));
                    }
                    RecordStanding::Newest => {}
                }
                shard = self.shard(hash)?;
                if !super::look::is_as_read(&shard, key, hash, &seen) {
                    continue;
                }
                known = Some(seen);
            }
            if let Fate::Remembered(until) = fate {
                // Only displayed: a wall clock before the epoch shows as the epoch.
                let wall = body.time.0.saturating_add_signed(body.wall_offset);
                memories.push(Memory::new(hash, wall, until));
            }
            let Some(draft) = fate.moves(record, &body) else { return Ok(0) };
            let len = draft.len();
            let span = Span {
                until: match fate {
                    Fate::Hides(until) => Some(until),
                    _ => {
                        let phase = state.as_ref().map(|state| state.phase);
                        protocol::ends_at(phase, body.expires_at, body.memory_until)
                    }
                },
                ends: None,
            };
            match self.log.place_for(draft, *room, span) {
                Ok(placed) => {
                    debug_assert!(record.lsn < placed.lsn, "a copy is younger than its original");
                    // The copy counts as durable: its original stays listed until it is.
                    let alive = state.as_ref().filter(|_| fate == Fate::Alive);
                    let open = match Key::is_kind_of_space(key.kind()) {
                        true => Some(OpenAs::Space),
                        false => alive.and_then(KeyState::open_as),
                    };
                    let place = Place::new(placed.lsn, Durability::Lazy, open);
                    match shard.entry_at(hash, record.lsn) {
                        // A copy is as open as its original.
                        Some(entry) => entry.place = place,
                        None if known.is_some() => {
                            shard.insert(Entry { hash, place, live: None });
                        }
                        None => {}
                    }
                    self.copies.lock().push((placed.lsn, record.lsn));
                    return Ok(len);
                }
                Err(NoRoom::Wanted { bytes, .. }) => {
                    drop(shard);
                    match self.log.rooms().make_room(bytes, *room) {
                        // Either all the rest of the segment moves into the kept spare or none of it: with half of it
                        // moved there would be less space than before.
                        Err(e) if e.kind() == ErrorKind::StorageFull && *room == Room::Free => {
                            let oldest = self.log.oldest().map(|oldest| oldest.ordinal);
                            let moving = oldest.map_or(Ok(None), |it| self.moving_bytes(Some(it)));
                            let Some(bytes) = moving? else {
                                return Err(self.log.rooms().has_no_room_to_move().because(e));
                            };
                            self.log.rooms().keep_for_moving(bytes);
                            *room = Room::Move;
                        }
                        made => made?,
                    }
                }
                Err(NoRoom::NotWriting) => {
                    self.log.may_go_on()?;
                    return Err(self.log.poisoned());
                }
                Err(NoRoom::Full) => {
                    let message = "the log has used up its positions";
                    return Err(Error::new(ErrorKind::StorageFull, message).at(self.log.dir()));
                }
            }
        }
    }

    /// Returns where to read the record at `lsn`. After a failure it may be a copy that never reached the disk: its
    /// original is still listed, and durable.
    pub(super) fn place_to_read(&self, lsn: Lsn) -> Lsn {
        if !self.log.is_poisoned() || self.log.holds(lsn, Durability::Sync) {
            return lsn;
        }
        let copies = self.copies.lock();
        let found = copies.binary_search_by_key(&lsn, |(copy, _)| *copy);
        found.ok().and_then(|index| copies.get(index)).map_or(lsn, |(_, original)| *original)
    }

    /// Whether the record at `lsn` is its key's newest, given what was known of the hash.
    pub(super) fn standing(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        lsn: Lsn,
        known: &Known,
    ) -> Result<RecordStanding> {
        let is_key =
            |place: Place| -> Result<bool> { Ok(self.look_in_log(key, &[place])?.is_some()) };
        for &place in known.places() {
            if place.lsn() > lsn && is_key(place)? {
                return Ok(RecordStanding::Superseded);
            }
        }
        let segments = self.log.reading().segments();
        for spot in known.tables().find(hash)? {
            let place = self.place_of(&segments, spot)?;
            if place.lsn() == lsn {
                return Ok(RecordStanding::Newest);
            }
            if place.lsn() < lsn {
                break;
            }
            if is_key(place)? {
                return Ok(RecordStanding::Superseded);
            }
        }
        Ok(RecordStanding::Unknown)
    }

    /// Removes the oldest segment from the list, and its file. Lookups are updated first.
    fn drop_oldest(&self, work: &mut Work, compacting: Compacting) -> Result<()> {
        let remembered = match self.remember(compacting.memories.clone()) {
            // The removed segment's space will serve for another spare.
            Err(e) if e.kind() == ErrorKind::StorageFull && self.log.rooms().lend_kept()? => {
                self.remember(compacting.memories)?
            }
            remembered => remembered?,
        };
        let dropped = self.log.drop_oldest(
            compacting.ordinal,
            |manifest| manifest.expired = remembered.iter().rev().map(|file| file.listed).collect(),
            |head_base, head| self.install_head(head_base, head, remembered.clone()),
        );
        let bytes = match dropped {
            Ok(bytes) => bytes,
            Err(e) => {
                if !self.log.is_poisoned() {
                    self.remove_expired(&remembered, &self.tables().expired);
                }
                return Err(e);
            }
        };
        self.reclaimed.fetch_add(bytes, Ordering::Relaxed);
        self.merges().drop_stale_merge(work);
        Ok(())
    }

    /// Makes the files of remembered keys durable with `new` added, and returns them as they are to be listed, the
    /// newest first. Files whose memories have all passed are left out, and small ones are merged.
    fn remember(&self, new: Vec<Memory>) -> Result<Vec<Arc<MemoryFile>>> {
        let now = self.log.now();
        let tables = self.tables();
        let is_kept = |file: &&Arc<MemoryFile>| !file.listed.is_passed(now);
        let mut files: Vec<_> = tables.expired.iter().filter(is_kept).cloned().collect();
        if new.is_empty() {
            return Ok(files);
        }
        // As with tables: a file absorbs the preceding ones that are no larger.
        let (mut sum, mut count) = (new.len() as u64, 0);
        while let Some(file) = files.get(count).filter(|file| file.listed.entries <= sum) {
            sum += file.listed.entries;
            count += 1;
        }
        let merged: Vec<_> = files.drain(..count).collect();
        let (dir, store) = (self.expired_dir(), self.log.store());
        self.make_dir(&dir)?;
        let storage = &self.log.seams().storage;
        let number = self.log.rooms().take_table_number()?;
        let writer =
            Writer::create(storage, &dir, store, ListedMemories::empty(number), self.log.pace())
                .map_err(|failure| self.log.failed(failure))?;
        let mut merge = Merge::new(new, &merged, Newest::at(now), writer);
        while !merge.advance(limits::MERGE_SLOTS).map_err(|failure| self.log.failed(failure))? {
            if let Err(e) = self.log.may_go_on() {
                merge.discard();
                return Err(e);
            }
        }
        files.insert(0, self.merges().finish_merge(merge)?);
        Ok(files)
    }

    /// Removes the files of `gone` that are not in `kept`.
    pub(super) fn remove_expired(&self, gone: &[Arc<MemoryFile>], kept: &[Arc<MemoryFile>]) {
        let is_kept = |file: &&Arc<MemoryFile>| kept.iter().any(|other| Arc::ptr_eq(file, other));
        for file in gone.iter().filter(|file| !is_kept(file)) {
            // If it stays, the next open removes it: no manifest lists it.
            let _ = self.log.seams().storage.remove(file.path());
        }
    }

    /// Moves all records that are now alive in the log, up to `budget` bytes, reclaims the rest, and leaves the index
    /// in one table.
    pub(crate) fn compact(&self, budget: u64) -> Result<Compacted> {
        let _inside = self.enter()?;
        let _span = self.log.events.compacting();
        // If they can't be read, nothing of theirs is known to be dead.
        let _ = self.read_spaces();
        // The background leaves reclaim to this call: two threads that take turns in the log are no faster than one,
        // and take two processors from writers.
        self.work.lock().compact_calls += 1;
        let done = self.compact_inside(budget);
        self.work.lock().compact_calls -= 1;
        self.index_word.wake_one();
        done.map_err(|e| self.log.explained(e))
    }

    fn compact_inside(&self, budget: u64) -> Result<Compacted> {
        if !self.log.is_writing() {
            self.begin_writing()?;
        }
        let (moved, reclaimed) =
            (self.moved.load(Ordering::Relaxed), self.reclaimed.load(Ordering::Relaxed));
        let done = |is_complete| Compacted {
            moved: self.moved.load(Ordering::Relaxed) - moved,
            reclaimed: self.reclaimed.load(Ordering::Relaxed) - reclaimed,
            is_complete,
        };
        // The records that a call has moved lie after its target, so the next call keeps that target. It takes a new
        // one if the background has reached the old one meanwhile.
        let head = self.log.head_base();
        let gone_on_with = self.work.lock().compact_until;
        let gone_on_with = gone_on_with.filter(|until| budget < u64::MAX && *until > head);
        let end = self.log.end();
        let mut until = gone_on_with;
        loop {
            let head = self.log.head_base();
            if until.is_some_and(|until| head >= until) {
                break;
            }
            let mut work = self.work.lock();
            self.log.may_go_on()?;
            if until.is_some() && done(false).moved >= budget {
                work.compact_until = until;
                return Ok(done(false));
            }
            if until.is_none() && work.compacting.is_none() {
                let rolled = match self.log.roll_over(Room::Free) {
                    // On a full disk the segments that were full before are reclaimed first, which frees space to
                    // continue.
                    Err(e) if e.kind() == ErrorKind::StorageFull => match self.log.oldest() {
                        Some(_) if head < end && done(false).moved < budget => None,
                        Some(_) if head < end => return Ok(done(false)),
                        _ => Some(self.roll_into_kept()?),
                    },
                    rolled => Some(rolled?),
                };
                if rolled.is_some() {
                    until = rolled;
                    drop(work);
                    self.log.sync()?;
                    continue;
                }
            }
            // `None`: another thread has just rolled again, and the end of that segment is not yet durable.
            let advanced = match self.log.oldest() {
                Some(_) => self.advance(&mut work, limits::COMPACTION_PIECE_BYTES),
                None => Ok(None),
            };
            match advanced {
                Err(e) if self.mending().names_table(&e) => self.mending().mend(&mut work, e)?,
                Ok(None) => {
                    drop(work);
                    self.log.sync()?;
                }
                advanced => drop(advanced?),
            }
        }
        self.log.may_go_on()?;
        match self.merges().merge_all() {
            // The background seals and merges once there is space.
            Err(e) if e.kind() == ErrorKind::StorageFull => {}
            merged => merged?,
        }
        self.log.remove_dropped()?;
        self.work.lock().compact_until = None;
        Ok(done(true))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::Sim;
    use crate::{Claim, ClaimGuard, Operation, Policy, Store, StoreBuilder};

    const KEPT: Duration = Duration::from_secs(60);

    fn builder() -> StoreBuilder {
        Store::builder().segment_bytes(16 << 10).result_bytes_max(256)
    }

    fn key(n: u64) -> String {
        format!("{n:0>100}")
    }

    fn claim(store: &Store, n: u64) -> ClaimGuard {
        let op = Operation::new(key(n)).retention(KEPT);
        let Claim::Acquired(claim) = store.claim(op).unwrap() else { panic!("{n}") };
        claim
    }

    fn flush() -> Policy {
        Policy::new().claim_durability(Durability::Flush).durability(Durability::Flush)
    }

    /// With four writers on two processors, compaction got only one time slice in five per 16 KiB.
    #[test]
    fn compaction_yields_no_longer_than_it_works() {
        let (mut turns, mut now, mut worked, mut lent) = (Turns::default(), 0, 0, 0);
        for n in 0..10_000 {
            let work = 60_000;
            (now, worked) = (now + work, worked + work);
            if turns.may_lend(now) {
                let took = if n % 3 == 0 { 16_000_000 } else { 300 };
                (now, lent) = (now + took, lent + took);
                turns.lent(now);
            }
        }
        assert!(lent > worked / 2 && lent <= worked + 16_000_000, "{worked} worked, {lent} lent");
    }

    /// A sample of a few keys may miss the few results that hold most bytes: a whole sample decides.
    #[test]
    fn a_sample_of_few_keys_alone_moves_nothing() {
        let sim = Sim::new(1);
        let store = sim.open_with(builder().policy(flush())).unwrap();
        // Everything is alive.
        (0..600).for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
        let engine = store.engine();
        let mut work = engine.work.lock();
        let log_bytes = engine.log.bytes_since(Lsn::ZERO);
        let at_millis = engine.log.seams().clock.monotonic_nanos() / 1_000_000;
        for is_rough in [false, true] {
            let oldest = engine.log.oldest().unwrap();
            let (live, newest) = (log_bytes / 8, Some(oldest.newest));
            work.estimate = Some(LiveEstimate { live, log_bytes, at_millis, newest, is_rough });
            let (is_due, _) = engine.compaction().weigh(&mut work, oldest).unwrap();
            assert_eq!(is_due, !is_rough);
        }
        let told = work.estimate.unwrap();
        assert!(!told.is_rough && told.live > log_bytes / 2, "{told:?}");
    }

    /// The background used to take turns with a call of `compact`: no faster, and on two processors.
    #[test]
    fn the_background_leaves_reclaim_to_a_call_of_compact() {
        let sim = Sim::new(1);
        let store = sim.open_with(builder().policy(flush())).unwrap();
        (0..600).for_each(|n| claim(&store, n).complete(&[7_u8; 200]).unwrap());
        sim.advance(2 * KEPT);
        let engine = store.engine();
        let steps = || {
            for _ in 0..20 {
                while engine.step().unwrap() == Due::Now {}
                sim.advance(Duration::from_secs(1));
            }
            store.stats().bytes_reclaimed
        };
        engine.work.lock().compact_calls = 1;
        assert_eq!(steps(), 0);
        engine.work.lock().compact_calls = 0;
        assert!(steps() > 0);
        let _ = store.compact(u64::MAX).unwrap();
        assert_eq!(engine.work.lock().compact_calls, 0);
    }

    /// The background used to check once a minute, and an idle store kept expired records until then.
    #[test]
    fn an_idle_store_removes_records_when_they_expire() {
        let sim = Sim::new(1);
        let store = sim.open_with(builder().policy(flush())).unwrap();
        let kept = Duration::from_secs(5);
        let engine = store.engine();
        // Does what the index thread does, alone.
        let sleep_for = |most: Duration| {
            let mut slept = Duration::ZERO;
            while slept < most {
                if let Due::In(millis) = engine.step_index().unwrap() {
                    let nap = Duration::from_millis(millis).min(most - slept);
                    sim.advance(nap);
                    slept += nap;
                }
            }
            store.stats().segments
        };
        let burst = |from: u64| {
            for n in from..from + 600 {
                let op = Operation::new(key(n)).retention(kept);
                let Claim::Acquired(claim) = store.claim(op).unwrap() else { panic!("{n}") };
                claim.complete(&[7; 100]).unwrap();
            }
            engine.log.sync().unwrap();
            store.stats().segments
        };
        // The first segment isn't counted since the open: it is removed after a minute.
        burst(0);
        assert!(sleep_for(10 * KEPT) <= 3);
        let (before, after) = (burst(1000), sleep_for(2 * kept));
        assert!(before > 5 && after <= 3, "{after} of {before}");
    }

    /// All records in them have expired or durably ended. Such segments used to be read nevertheless.
    #[test]
    fn segments_whose_records_have_all_ended_are_removed_unread() {
        let sim = Sim::new(1);
        let store = sim.open_with(builder().policy(flush())).unwrap();
        // Long claims in flight, as many as fill some segments.
        let mut in_flight = std::collections::VecDeque::new();
        for n in 0..2000 {
            in_flight.push_back(claim(&store, n));
            if in_flight.len() > 200 {
                in_flight.pop_front().unwrap().complete(&[7; 100]).unwrap();
            }
        }
        in_flight.into_iter().for_each(|claim| claim.complete(&[7; 100]).unwrap());
        store.engine().log.sync().unwrap();
        sim.advance(2 * KEPT);
        let all = store.stats().segments;
        // The first segment isn't counted since the open.
        while store.stats().segments == all {
            store.engine().step_index().unwrap();
        }
        let calls = sim.calls_of(|| {
            while store.stats().segments > 3 {
                store.engine().step_index().unwrap();
            }
        });
        assert!(all > 20, "{all}");
        let is_log = |path: &std::path::Path| path.extension().is_some_and(|end| end == "log");
        let reads = calls.iter().filter(|(class, path)| class == "Read" && is_log(path));
        assert_eq!(reads.count(), 0, "{all} segments");
        assert_eq!(store.stats().bytes_moved, 0);
        assert!(store.verify().unwrap().is_whole());
    }

    /// Endings that are not durable may be lost, and then the claims are alive again.
    #[test]
    fn a_segment_of_ended_claims_stays_until_the_endings_are_durable() {
        let sim = Sim::new(1);
        let store = sim.open_with(builder()).unwrap();
        let engine = store.engine();
        let (mut claims, mut late, mut n) = (Vec::new(), Vec::new(), 0);
        while store.stats().segments < 5 {
            let op = Operation::new(key(n)).retention(KEPT);
            let level = if n % 50 == 0 { Durability::Lazy } else { Durability::Sync };
            let Claim::Acquired(claim) = store.claim(op.durability(level)).unwrap() else {
                panic!()
            };
            if n % 50 == 0 {
                late.push(claim)
            } else {
                claims.push(claim)
            }
            n += 1;
            while engine.log.step().unwrap() == Due::Now {}
        }
        claims.into_iter().for_each(|claim| claim.complete(&[7; 1]).unwrap());
        sim.advance(2 * KEPT);
        // The first segment is read: it isn't counted since the open.
        let first = engine.log.head_base();
        while engine.log.head_base() == first {
            engine.step_index().unwrap();
            engine.log.sync().unwrap();
        }
        late.into_iter().for_each(|claim| claim.complete(&[7; 1]).unwrap());
        sim.advance(2 * KEPT);
        for _ in 0..100 {
            engine.step_index().unwrap();
        }
        sim.power_loss();
        let store = sim.open_with(builder()).unwrap();
        let lost = (0..n).step_by(50).filter(|n| store.get(key(*n)).unwrap().is_none());
        assert_eq!(lost.collect::<Vec<_>>(), Vec::<u64>::new(), "of claims up to {n}");
    }

    /// The log thread used to prepare segments while the index thread got no processor: files grew for as long as
    /// that lasted.
    #[test]
    fn the_log_thread_prepares_no_segment_that_reclaim_has_not_allowed() {
        let sim = Sim::new(1);
        let store = sim.open_with(builder().policy(flush())).unwrap();
        let (mut most, mut bytes, segment) = (0, 0, 16 << 10);
        for n in 0..20_000 {
            let claim = claim(&store, n);
            let before = store.stats().bytes_written;
            claim.complete(&[7; 100]).unwrap();
            if n == 0 {
                bytes = store.stats().bytes_written - before;
            }
            sim.advance(KEPT / 1000);
            while store.engine().log.step().unwrap() == Due::Now {}
            most = most.max(sim.disk_bytes());
        }
        let alive = 1000 * bytes;
        // The live bytes are known from a sample of a thousand keys.
        assert!(most <= 2 * alive / 100 * 105 + 2 * segment, "{most} bytes for {alive}");
    }

    /// Each claim used to be looked up, and its completion read, to find that it is dead.
    #[test]
    fn dead_claims_cost_no_read_of_their_completions() {
        let sim = Sim::new(1);
        let builder = || builder().segment_bytes(1 << 20).map(false).policy(flush());
        let store = sim.open_with(builder()).unwrap();
        let pairs = 5000;
        (0..pairs).for_each(|n| claim(&store, n).complete(&[7; 100]).unwrap());
        store.close(Duration::ZERO).unwrap();
        drop(store);
        // Records written before the open aren't counted.
        let store = sim.open_with(builder()).unwrap();
        assert!(store.mark("begins").unwrap().is_first());
        let engine = store.engine();
        let until = engine.log.roll_over(Room::Free).unwrap();
        engine.log.sync().unwrap();
        let reads = sim.reads();
        while engine.log.head_base() < until {
            engine.compaction().advance(&mut engine.work.lock(), u64::MAX).unwrap();
            engine.log.sync().unwrap();
        }
        let reads = sim.reads() - reads;
        // One or two reads of the index per completion, to check that it is its key's newest record.
        assert!(reads < pairs * 2, "{reads} reads for {pairs} pairs");
    }
}
