//! Reclaim: the oldest segment's live records move to the tail, then the segment is removed.
//!
//! Promises: the log is first in, first out, so what hides a record is always younger than it and nothing comes back. A
//! segment goes only when everything placed until its last record was judged is durable: the copies, and whatever made
//! the others dead. A bad record keeps its segment, and is reported. Moving is checked and placed in one step under the
//! shard lock, as any other change of a key. Never: moves what is in the newest segment, or decides by an estimate.

use std::sync::Arc;

use hashbrown::HashTable;

use super::Engine;
use super::background::Work;
use super::call::Known;
use super::compose::state_of;
use super::sample::LiveEstimate;
use crate::index::recent::{Entry, Place};
use crate::limits;
use crate::log::{Due, NoRoom, Oldest, Room, Span};
use crate::operation::{Durability, Key};
use crate::protocol::{self, KeyState};
use crate::record::{Body, Draft, Record};
use crate::remembered::{Memory, MemoryFile, Newest};
use crate::sealed::listed::{ListedFile, ListedMemories};
use crate::sealed::{Merge, Writer};
use crate::sync::{Ordering, yield_now};
use crate::types::{KeyHash, Lsn, StoreMillis};
use crate::{Error, ErrorKind, Result};

/// A segment on its way out.
pub(super) struct Compacting {
    ordinal: u32,
    /// The next record to be judged; `None`: all are.
    at: Option<Lsn>,
    /// What must be durable before it goes.
    judged: Lsn,
    /// Keys that expired in it and are to be remembered.
    memories: Vec<Memory>,
    /// What its live records may use: at first what is free.
    room: Room,
}

/// Compaction's way through all that stood in the log when it began, and what it had moved and given back by then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    until: Lsn,
    moved: u64,
    reclaimed: u64,
}

/// When compaction last let others have the processor.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Turns {
    /// Bytes judged since it was asked last, and when that was.
    judged: u64,
    since: u64,
    /// Nanoseconds that it is to work before the next turn: as long as others took for the last one.
    owed: u64,
}

impl Turns {
    /// So many bytes more were judged. Whether it is time to look whether others are to go first.
    fn judged(&mut self, bytes: u64) -> bool {
        self.judged += bytes;
        let is_time = self.judged >= limits::COMPACTION_YIELD_BYTES;
        if is_time {
            self.judged = 0;
        }
        is_time
    }

    /// Whether others may go first: not before it has worked for as long as they took the last time. Where all processors
    /// are busy they take many slices at once, and it would never come to its end.
    fn may_lend(&mut self, now: u64) -> bool {
        let worked = now - std::mem::replace(&mut self.since, now);
        // Nothing, once it has worked for longer than that.
        self.owed = self.owed.saturating_sub(worked);
        self.owed == 0
    }

    /// They went first, until `now`.
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

/// What becomes of a record whose segment goes, if it is its key's newest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It moves as it is.
    Alive,
    /// It has expired, and its key is remembered until then.
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

    /// What stands for the record at the log's end.
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

/// A record on its way to be judged.
struct Keyed<'a> {
    record: &'a Record<'a>,
    /// `None`: a later record is its key's newest.
    key: Option<(Key<'a>, KeyHash)>,
}

/// Where a record stands in its key's life, by the index.
enum RecordStanding {
    Newest,
    Superseded,
    Unknown,
}

/// Reclaim, as a part of the engine: it has all of it, and steps of its own.
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
    /// One piece of compaction, if it is due; `None` if not.
    pub(super) fn step_compaction(&self, work: &mut Work) -> Result<Option<Due>> {
        if work.compacting.is_none() {
            self.end_pass(work);
            let oldest = self.log.oldest().map(|oldest| oldest.base);
            let is_spent = oldest.is_some_and(|oldest| self.log.is_spent(oldest));
            if !is_spent && !self.is_compaction_due(work)? {
                work.pass = None;
                // What has expired in an idle store goes then, and not when a minute has passed.
                let spent_in = oldest.and_then(|oldest| self.log.spent_in(oldest));
                return Ok(spent_in.map(|millis| {
                    Due::In(millis.clamp(limits::UNSYNCED_MILLIS_MAX, limits::ESTIMATE_MILLIS))
                }));
            }
        }
        work.pass.get_or_insert_with(|| self.begin_pass());
        let Some(moved) = self.advance(work, limits::COMPACTION_PIECE_BYTES)? else {
            // Its copies wait for a sync, which comes within a second.
            return Ok(Some(Due::In(limits::IDLE_NOTE_MILLIS)));
        };
        // A bounded rate: those who claim and complete meanwhile share the log with it.
        let pause = moved / limits::COMPACTION_BYTES_PER_MILLI;
        Ok(Some(if pause == 0 { Due::Now } else { Due::In(pause) }))
    }

    pub(super) fn begin_pass(&self) -> Pass {
        let count = |count: &crate::sync::AtomicU64| count.load(Ordering::Relaxed);
        Pass { until: self.log.end(), moved: count(&self.moved), reclaimed: count(&self.reclaimed) }
    }

    /// Whether what was given back since a pass began was worth what was moved for it.
    fn has_gained(&self, pass: &Pass) -> bool {
        let now = self.begin_pass();
        let (reclaimed, moved) = (now.reclaimed - pass.reclaimed, now.moved - pass.moved);
        reclaimed > moved + reclaimed / 8
    }

    /// A sample can miss the few results in which nearly all bytes are. If all of the log was gone through for next to
    /// nothing, all of it was alive, whatever the sample says; so it is left alone until it has grown, or for an hour.
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

    /// Whether the store has outgrown what is alive in it. Tells the log how large it may become before that is asked again.
    fn is_compaction_due(&self, work: &mut Work) -> Result<bool> {
        let (is_due, most) = match self.log.oldest() {
            Some(oldest) => self.weigh(work, oldest)?,
            None => (false, 0),
        };
        self.log.allow(most, !is_due);
        Ok(is_due)
    }

    /// The same, and what all files may take at most.
    fn weigh(&self, work: &mut Work, oldest: Oldest) -> Result<(bool, u64)> {
        let log_bytes = self.log.bytes_since(Lsn::ZERO);
        let (used, most) = self.log.budget();
        // What is remembered is alive, too.
        let remembered: u64 = self.tables().expired.iter().map(|file| file.listed.bytes()).sum();
        let outside = used - remembered;
        // Of the two segments that the store may take beside twice what is alive one is left for what moves.
        let slack = oldest.newest_capacity;
        if outside <= slack {
            return Ok((false, 0));
        }
        let now = self.log.seams().clock.monotonic_nanos() / 1_000_000;
        let is_fresh = work.estimate.is_some_and(|seen| {
            // 0 while it is left alone: see `end_pass`.
            let age = now.saturating_sub(seen.at_millis);
            let is_same = seen.newest.is_none_or(|newest| newest == oldest.newest);
            log_bytes.abs_diff(seen.log_bytes) <= log_bytes / 8
                && age < limits::ESTIMATE_MILLIS
                // A log that stays as long as it is may be another one altogether.
                && (is_same || age < limits::SAMPLE_MILLIS)
        });
        let is_due = |live: u64| {
            // Near its budget the store doesn't wait for its log to be half dead.
            let is_tight = used > most / 4 * 3 && log_bytes > live + live / 8;
            // What lies ahead counts: it is on the disk. In a store so small that it is much beside what is alive, moving
            // nearly all of the log again and again would gain little.
            let is_large = outside > 2 * live + slack && log_bytes > live + live / 4;
            is_tight || is_large
        };
        let live = match work.estimate.filter(|_| is_fresh) {
            // Nothing is moved on the word of a few keys: they may have missed the few results in which most bytes are.
            Some(seen) if seen.is_rough && is_due(seen.live) => {
                // What was written since may all be alive; nothing was, if the log has shrunk. And a sample may tell of
                // less than that.
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
        // A small store has more ahead than twice what is alive: what is written, the next, a spare, and one that is
        // just being given back.
        let most = (2 * live + 2 * slack).max(live + 5 * slack) + remembered;
        Ok((is_due(live), most))
    }

    /// Judges about `bytes` of the oldest segment's records, and lets it go when all are. Gives the bytes moved;
    /// `None` if it waits for a sync.
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
            // It goes unread: what made its records dead is durable, and what they left to be remembered has passed.
            (compacting.at, compacting.judged) = (None, Lsn::ZERO);
            compacting.memories.clear();
        }
        let Some(at) = compacting.at else {
            if self.log.durable() < compacting.judged {
                work.compacting = Some(compacting);
                return Ok(None);
            }
            let dropped = self.drop_oldest(work, compacting);
            self.log.keep_for_moving(0);
            return dropped.map(|()| Some(0));
        };
        let durable = self.log.durable();
        self.copies.lock().retain(|(copy, _)| *copy >= durable);
        let mut moved = 0_u64;
        let (memories, room) = (&mut compacting.memories, &mut compacting.room);
        let turns = &mut work.turns;
        let walked = self.log.walk_some(oldest.ordinal, at, bytes, &mut |run| {
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
            // In an idle store it sleeps, and the segment waits for its sync of the copies.
            self.log.wake_upkeep();
        }
        compacting.at = walked.inspect_err(|_| self.log.keep_for_moving(0))?;
        if compacting.at.is_none() {
            // Not behind notes: nobody calls for their sync.
            compacting.judged = self.log.keyed_end();
        }
        work.compacting = Some(compacting);
        Ok(Some(moved))
    }

    /// What the background of a short opening doesn't come to: if a segment was begun since reclaim was looked at last, as
    /// many as two leave for it, as far as that goes `until` then.
    pub(super) fn reclaim_at_close(&self, work: &mut Work, until: Option<u64>) -> Result<()> {
        if !self.log.take_look() {
            return Ok(());
        }
        for _ in 0..2 {
            // Until all of it is judged, it waits to leave, and it has left.
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

    /// After each kill an opening begins a segment without asking for room, and the one before is cut to a scrap. Where that
    /// has happened many times the two oldest leave, and what is alive in them moves, whatever there is of it.
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
        // Whatever else keeps it from that is no reason not to open: it is met, and told, where it matters.
        gather().or_else(|e| if self.log.is_poisoned() { Err(e) } else { Ok(()) })
    }

    /// Whoever comes back from a sync on this processor would wait for the end of its slice, several syncs long. Without a
    /// sync nobody comes back.
    fn let_others_go_first(&self, turns: &mut Turns) {
        let nanos = || self.log.seams().clock.monotonic_nanos();
        if turns.may_lend(nanos()) && self.log.is_syncing() {
            yield_now();
            turns.lent(nanos());
        }
    }

    /// Whether the oldest segment is judged, and goes as soon as the log is synced.
    pub(super) fn waits_for_sync(&self, work: &Work) -> bool {
        work.compacting.as_ref().is_some_and(|compacting| {
            compacting.at.is_none() && self.log.durable() < compacting.judged
        })
    }

    /// Gives back the oldest segments that stood in the log when `pass` began, for want of room. Whether there may be some
    /// now. What makes room itself doesn't ask whether that is worth it: a forget may wait for all of the log to be gone
    /// through, once.
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
                    // Nothing stands in the log.
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

    /// Whether enough of the log is dead, by a sample. One is taken at most once a second: whoever is refused asks again,
    /// and what is alive changes only as the log does, and as results expire.
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

    /// Ends the active segment on a full disk, if all that is alive in it has room in the spare that is kept.
    fn roll_into_kept(&self) -> Result<Lsn> {
        let bytes = self.moving_bytes(None)?.ok_or_else(|| self.log.has_no_room_to_move())?;
        self.log.keep_for_moving(bytes);
        let rolled = self.log.roll_over(Room::Move);
        rolled.inspect_err(|_| self.log.keep_for_moving(0))
    }

    /// Bytes that moving the live records of a segment takes, if they have room in all that is prepared, the spare that
    /// is kept included. Of the active one: behind it.
    fn moving_bytes(&self, ordinal: Option<u32>) -> Result<Option<u64>> {
        let mut moving = self.log.moving_room(ordinal.is_none());
        let from = match ordinal {
            Some(ordinal) => self.log.listed().into_iter().find(|item| item.ordinal == ordinal),
            None => self.log.listed().into_iter().find(|item| item.end > self.log.end()),
        };
        let Some(from) = from else { return Ok(None) };
        let to = self.log.end();
        // The active one is read as far as it is written.
        self.log.sync()?;
        self.log.walk(from.base, from.end.min(to), &mut |record, _| {
            self.log.may_go_on()?;
            let body = self.body_of(record)?;
            let fate = Fate::of(state_of(record, &body).as_ref(), &body, self.log.now());
            let Some(draft) = fate.moves(record, &body) else { return Ok(()) };
            let key = Key::from_stored(body.key_kind, body.key);
            let newest = key.map_or(Ok(None), |key| self.newest_of(&key))?;
            if newest == Some(record.lsn) {
                moving.take(draft.len());
            }
            Ok(())
        })?;
        Ok(moving.enough_for())
    }

    /// The keys of records that follow each other, without those that a later one among them supersedes: they are dead, and
    /// nothing has to be looked up or read to know it. Most claims are such records, followed by their completion.
    fn with_keys<'a>(&self, run: &'a [Record<'_>]) -> Result<Vec<Keyed<'a>>> {
        let mut newest = HashTable::<(Key<'a>, KeyHash)>::with_capacity(run.len());
        let mut keyed = Vec::with_capacity(run.len());
        for record in run.iter().rev() {
            let body = self.body_of(record)?;
            let Some(key) = Key::from_stored(body.key_kind, body.key) else {
                let what = format_args!("an impossible key at lsn {}", record.lsn);
                return Err(Error::corrupt(self.log.dir(), 0, what));
            };
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

    /// Moves one record to the tail, if it is alive, or notes that its key is to be remembered. Gives the bytes that
    /// moving took.
    fn judge(
        &self,
        record: &Record<'_>,
        key: &Key<'_>,
        hash: KeyHash,
        memories: &mut Vec<Memory>,
        room: &mut Room,
    ) -> Result<u64> {
        let body = self.body_of(record)?;
        let state = state_of(record, &body);
        loop {
            let mut shard = self.shard(hash)?;
            let now = self.log.now();
            let fate = Fate::of(state.as_ref(), &body, now);
            if fate == Fate::Dead {
                // Its entry stays until the segment goes: it may hide an older record of the same segment.
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
                if !super::call::is_as_read(&shard, key, hash, &seen) {
                    continue;
                }
                known = Some(seen);
            }
            if let Fate::Remembered(until) = fate {
                // Only shown: of a wall clock that was set to before the epoch, the epoch.
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
                    debug_assert!(
                        record.lsn < placed.lsn,
                        "what hides a record is younger than it"
                    );
                    // It counts as durable: its original stays listed until it is.
                    let place = Place::new(placed.lsn, Durability::Lazy);
                    match shard.entry_at(hash, record.lsn) {
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
                    match self.log.make_room(bytes, *room) {
                        // All that is left of the segment goes into what is kept for it, or nothing does: with half of
                        // it moved there would be less room than before.
                        Err(e) if e.kind() == ErrorKind::StorageFull && *room == Room::Free => {
                            let oldest = self.log.oldest().map(|oldest| oldest.ordinal);
                            let moving = oldest.map_or(Ok(None), |it| self.moving_bytes(Some(it)));
                            let Some(bytes) = moving? else {
                                return Err(self.log.has_no_room_to_move().because(e));
                            };
                            self.log.keep_for_moving(bytes);
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

    /// Where to read what stands at `lsn`. After a failure it may be a copy that never comes to the disk: its original
    /// is listed still, and durable.
    pub(super) fn place_to_read(&self, lsn: Lsn) -> Lsn {
        if !self.log.is_poisoned() || self.log.holds(lsn, Durability::Sync) {
            return lsn;
        }
        let copies = self.copies.lock();
        let found = copies.binary_search_by_key(&lsn, |(copy, _)| *copy);
        found.ok().and_then(|index| copies.get(index)).map_or(lsn, |(_, original)| *original)
    }

    /// Whether the record at `lsn` is its key's newest, by what was known of the hash.
    fn standing(
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
        let segments = self.log.segments();
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

    /// Takes the oldest segment off the list, and its file away. Lookups learn of it first.
    fn drop_oldest(&self, work: &mut Work, compacting: Compacting) -> Result<()> {
        let remembered = match self.remember(compacting.memories.clone()) {
            // The segment's room will make another spare.
            Err(e) if e.kind() == ErrorKind::StorageFull && self.log.lend_kept()? => {
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

    /// The files of remembered keys as they are to be listed once `new` have joined them, the newest first: durable,
    /// those whose memories have all passed left out, and small ones merged.
    fn remember(&self, new: Vec<Memory>) -> Result<Vec<Arc<MemoryFile>>> {
        let now = self.log.now();
        let tables = self.tables();
        let is_kept = |file: &&Arc<MemoryFile>| !file.listed.is_passed(now);
        let mut files: Vec<_> = tables.expired.iter().filter(is_kept).cloned().collect();
        if new.is_empty() {
            return Ok(files);
        }
        // As with tables: a file takes those before it in that are no larger.
        let (mut sum, mut count) = (new.len() as u64, 0);
        while let Some(file) = files.get(count).filter(|file| file.listed.entries <= sum) {
            sum += file.listed.entries;
            count += 1;
        }
        let merged: Vec<_> = files.drain(..count).collect();
        let (dir, store) = (self.expired_dir(), self.log.store());
        self.make_dir(&dir)?;
        let storage = &self.log.seams().storage;
        let number = self.log.take_table_number()?;
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
            // If it stays, the next opening removes it: no manifest lists it.
            let _ = self.log.seams().storage.remove(file.path());
        }
    }

    /// Moves all live records of what is in the log now, as far as `budget` bytes go, gives everything else back, and
    /// leaves the index in one table.
    pub(crate) fn compact(&self, budget: u64) -> Result<Compacted> {
        let _inside = self.enter()?;
        // Two that go through the log in turn are no faster than one, and take two processors from those who write.
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
        // What a call has moved lies behind where it aims; so the next one must not aim behind that.
        // Unless the background has come there meanwhile: nothing is left to go on with.
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
                    // On a full disk what was full before goes first, and makes room to go on in.
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
            // None: others have just rolled again, and its end is on its way.
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
            // The background seals and merges once there is room.
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

    /// Four writers on two processors left compaction one slice in five each 16 KiB.
    #[test]
    fn compaction_lends_no_more_time_than_it_works() {
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

    /// A few keys may have missed the few results in which most bytes are: a whole sample has the last word.
    #[test]
    fn nothing_is_moved_on_the_word_of_a_few_keys() {
        let sim = Sim::new(1);
        let store = sim.open_with(builder().policy(flush())).unwrap();
        // All of it is alive.
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

    /// The background went through the log in turn with a call of `compact`: no faster, and on two processors.
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

    /// The background looked once a minute, and a store that had become idle kept all of it until then.
    #[test]
    fn what_expires_in_an_idle_store_goes_when_it_has() {
        let sim = Sim::new(1);
        let store = sim.open_with(builder().policy(flush())).unwrap();
        let kept = Duration::from_secs(5);
        let engine = store.engine();
        // As the thread does that keeps the index, alone.
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
        // What stood in the first segment when it was opened nobody knows: it goes when a minute has passed.
        burst(0);
        assert!(sleep_for(10 * KEPT) <= 3);
        let (before, after) = (burst(1000), sleep_for(2 * kept));
        assert!(before > 5 && after <= 3, "{after} of {before}");
    }

    /// All that is in them has expired or has ended, and what ended it is durable. They were read, all the same.
    #[test]
    fn segments_in_which_all_has_ended_go_unread() {
        let sim = Sim::new(1);
        let store = sim.open_with(builder().policy(flush())).unwrap();
        // Some in flight for long, as many as fill some segments.
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
        // What stood in the first one when it was opened nobody knows.
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

    /// What ended its records may be lost yet: then they stand again.
    #[test]
    fn a_segment_whose_claims_ended_stays_until_the_endings_are_durable() {
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
        // The first one is read: nobody knows what stood in it when it was opened.
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

    /// The thread of the log prepared segments, that of the index got no processor: files grew for as long as that lasted.
    #[test]
    fn the_log_alone_prepares_no_segment_that_reclaim_has_not_allowed() {
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
        // What is alive is known from a sample of a thousand keys.
        assert!(most <= 2 * alive / 100 * 105 + 2 * segment, "{most} bytes for {alive}");
    }

    /// Each claim was looked up, and the record of its completion read, to find that it is dead.
    #[test]
    fn dead_claims_cost_no_read_of_their_completions() {
        let sim = Sim::new(1);
        let builder = || builder().segment_bytes(1 << 20).map(false).policy(flush());
        let store = sim.open_with(builder()).unwrap();
        let pairs = 5000;
        (0..pairs).for_each(|n| claim(&store, n).complete(&[7; 100]).unwrap());
        store.close(Duration::ZERO).unwrap();
        drop(store);
        // Of what an earlier opening wrote nothing is known.
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
        // One of the index for each completion, or two, to see that it is its key's newest record.
        assert!(reads < pairs * 2, "{reads} reads for {pairs} pairs");
    }
}
