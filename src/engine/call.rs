//! One call on one key: looks up the key, decides, writes the record, and waits until it is durable at its level.

use std::sync::Arc;

use super::compose::{compose, state_of};
use super::placing::{Asked, Placing, Progress, Stop, WaitsFor};
use super::waits::Wakes;
use super::{Engine, Seen};
use crate::index::recent::{Entry, Live, Place, Shard};
use crate::index::tables::Tables;
use crate::log::open::lifecycle::Inside;
use crate::log::{Backing, NoRoom, Placed, Room, Segments, Span};
use crate::operation::{Durability, Key, OutcomeParts};
use crate::protocol::{
    self, Answer, Asker, Becomes, Call, Conditions, Current, KeyState, Moment, Next, OpenAs, Phase,
    Presence,
};
use crate::record::{Body, Record};
use crate::sync::Ordering;
use crate::types::{KeyHash, Lsn, Spot, StoreMillis, Token};
use crate::value::ValueBytes;
use crate::{Error, ErrorKind, Result};

/// What a call writes and requires, in addition to its kind.
#[derive(Clone, Copy, Default)]
pub(crate) struct Writing<'a> {
    /// Level of the record; `None`: `Sync`.
    pub(crate) level: Option<Durability>,
    /// Bytes to reserve for the ending, if the claim is granted.
    pub(crate) reserve: u64,
    /// The conditions that the rules check.
    pub(crate) conditions: Conditions<'a>,
    pub(crate) outcome: Option<EncodedOutcome<'a>>,
}

/// A result or a recorded failure, encoded.
#[derive(Clone, Copy)]
pub(crate) struct EncodedOutcome<'a> {
    pub(crate) codec: u16,
    pub(crate) version: u32,
    pub(crate) meta: &'a [u8],
    /// The bytes are compressed, and are this many without.
    pub(crate) packed: Option<u32>,
    pub(crate) bytes: &'a [u8],
}

impl<'a> EncodedOutcome<'a> {
    pub(crate) fn of(parts: &'a OutcomeParts) -> Self {
        let OutcomeParts { codec, version, packed, .. } = *parts;
        EncodedOutcome { codec, version, meta: &parts.meta, packed, bytes: &parts.bytes }
    }
}

/// A recorded outcome, read back.
#[derive(Clone, Debug)]
pub struct Stored {
    /// How the bytes are encoded, as docs/format.md numbers it.
    pub codec: u16,
    /// The version of the type, for codecs that have one.
    pub version: u32,
    /// Names and values that go with it, encoded.
    pub meta: Vec<u8>,
    /// The length of the value if its bytes are compressed, as one LZ4 block; `None`: they aren't.
    pub packed: Option<u32>,
    /// The value.
    pub bytes: ValueBytes,
}

/// The result of a call.
pub(crate) struct Applied {
    pub(crate) answer: Answer,
    /// What was found of the key; `None`: nothing. Boxed, because it is passed on many times, and a new key has none.
    pub(crate) found: Option<Box<Found>>,
    /// The attempt that was claimed.
    pub(crate) claimed: Option<Claimed>,
    pub(crate) now: StoreMillis,
    /// Identifies the question of `Asked`.
    pub(crate) question: u64,
}

impl Applied {
    /// Whether that answer to `call` still holds once the store is closed. A close ends the claims and questions in flight: an
    /// answer by which a caller would go on working doesn't outlast it.
    pub(crate) fn lasts(&self, call: Call) -> bool {
        let works_on = match call {
            Call::Attach(_)
            | Call::BeginStep(_)
            | Call::Announce(_)
            | Call::Renew(_)
            | Call::RenewQuestion(_) => self.answer == Answer::Done,
            _ => self.claimed.is_some() || self.answer == Answer::Asked,
        };
        !works_on
    }

    /// The answer to a call that was carried out, about which nothing else is to be told.
    pub(crate) fn done(now: StoreMillis) -> Self {
        Applied { answer: Answer::Done, found: None, claimed: None, now, question: 0 }
    }

    /// What a look saw, as the answer to a call.
    pub(crate) fn of_seen(seen: Option<Seen>, now: StoreMillis) -> Self {
        let now = seen.as_ref().map_or(now, |seen| seen.now);
        let found = seen.map(|seen| {
            let Seen { state, presence, lease_until, asker, outcome, .. } = seen;
            Box::new(Found::elsewhere(state, presence, lease_until, asker, outcome))
        });
        Applied { found, ..Applied::done(now) }
    }
}

/// An attempt that begins.
#[derive(Clone, Copy, Debug)]
pub struct Claimed {
    /// Its fencing token.
    pub token: Token,
    /// The token of the key's first claim since it was absent: the key's life.
    pub life: Token,
    /// Its number in the life of the key.
    pub attempt: u32,
}

/// What was found of a key.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) state: Option<KeyState>,
    pub(crate) presence: Presence,
    pub(super) place: Option<Place>,
    pub(crate) lease_until: Option<StoreMillis>,
    pub(super) reserved: u64,
    pub(crate) asker: Option<Arc<Asker>>,
    pub(crate) outcome: Option<Stored>,
    /// When the memory passes that the key has or may have from an older life.
    pub(super) memory_until: Option<StoreMillis>,
    /// The hashes of the announced steps that had not ended when the record was read, with what memory had under each.
    pub(super) open_steps: Vec<(KeyHash, Vec<Place>)>,
}

impl Found {
    /// A key as another backend found it, or a look.
    pub(crate) fn elsewhere(
        state: KeyState,
        presence: Presence,
        lease_until: Option<StoreMillis>,
        asker: Option<Arc<Asker>>,
        outcome: Option<Stored>,
    ) -> Self {
        Found { state: Some(state), presence, lease_until, asker, outcome, ..Found::default() }
    }

    /// The position of the record that was found, if it was found in this store's log.
    pub(crate) fn recorded_at(&self) -> Option<Lsn> {
        self.place.map(Place::lsn)
    }

    pub(super) fn current(&self) -> Current<'_> {
        let Found { presence, lease_until, memory_until, .. } = *self;
        let question = self.asker.as_ref().map_or(0, |asker| asker.question);
        let (state, step_has_ended) = (self.state.as_ref(), false);
        Current { state, memory_until, presence, lease_until, question, step_has_ended }
    }

    /// In how many milliseconds the key may be free without a call: a lease or a delay passes.
    pub(super) fn free_in(&self, now: StoreMillis) -> Option<u64> {
        let mut state = self.state.clone()?;
        let (_, until) = protocol::shown(&mut state, self.presence, self.lease_until, now);
        let until = until.or(state.retry_at().filter(|_| protocol::is_delayed(&state, now)))?;
        Some(until.since(now))
    }

    /// Whether it has an owner that came by a ticket.
    fn is_attached(&self) -> bool {
        let is_detached = self.state.as_ref().is_some_and(|state| state.detached().is_some());
        self.presence == Presence::Owner && is_detached
    }

    /// Returns its record, if only another record ends it.
    fn endless(&self) -> Option<Lsn> {
        let state = self.state.as_ref()?;
        let ends = protocol::ends_at(Some(state.phase), state.expires_at, self.memory_until);
        self.place.filter(|_| ends.is_none()).map(Place::lsn)
    }
}

/// For an unknown key.
pub(super) static NOTHING: Found = Found {
    state: None,
    presence: Presence::Nobody,
    place: None,
    lease_until: None,
    reserved: 0,
    asker: None,
    outcome: None,
    memory_until: None,
    open_steps: Vec::new(),
};

/// A call that is decided and its record, if any, placed.
pub(crate) struct Done {
    pub(crate) applied: Applied,
    placed: Option<Placed>,
    /// The key is no longer as it was found, or somebody else is on it.
    pub(super) has_changed: bool,
}

impl Done {
    pub(crate) fn applied(&self) -> &Applied {
        &self.applied
    }

    pub(crate) fn into_applied(self) -> Applied {
        self.applied
    }

    /// The same, with the record that was placed for it.
    pub(super) fn with(self, placed: Option<Placed>) -> Self {
        Done { placed, ..self }
    }

    /// Where its record is.
    pub(super) fn placed(&self) -> Option<Lsn> {
        self.placed.map(|placed| placed.lsn)
    }

    /// The record that the answer is derived from.
    fn prior(&self) -> Option<Place> {
        self.applied.found.as_ref().and_then(|found| found.place)
    }
}

/// How far the log has to be synced, and written, before an answer may be shown.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Needs {
    synced: Option<Lsn>,
    written: Option<Lsn>,
}

impl Needs {
    /// What both need.
    pub(crate) fn and(self, other: Needs) -> Needs {
        Needs { synced: self.synced.max(other.synced), written: self.written.max(other.written) }
    }
}

/// What has become of placed records.
pub(crate) enum PlacedFate {
    /// Their answers may be shown.
    Met,
    /// The disk has to have more.
    Unmet(Needs),
    /// The store was closed or poisoned before.
    Lost(Error),
}

/// The answer to a call whose record was placed, and whose fate a close left open.
pub(crate) fn outlived(e: Error) -> Error {
    let message = "the store was closed before this call was waited for: open it, and ask what became of the key";
    Error::new(ErrorKind::Indeterminate, message).because(e)
}

/// Calls that were placed one after the other and are waited for together.
#[derive(Default)]
pub(crate) struct PlacedBatch {
    /// The last record placed at each level: it covers all before it.
    placed: [Option<Placed>; 3],
    /// The newest record that an answer is derived from, at each level.
    priors: [Option<Lsn>; 3],
    sees_absence: bool,
}

const LEVELS: [Durability; 3] = [Durability::Lazy, Durability::Flush, Durability::Sync];

fn at_level<T>([lazy, flush, sync]: &mut [T; 3], level: Durability) -> &mut T {
    match level {
        Durability::Lazy => lazy,
        Durability::Flush => flush,
        Durability::Sync => sync,
    }
}

impl PlacedBatch {
    pub(crate) fn add(&mut self, done: &Done, level: Durability) {
        if let Some(placed) = done.placed {
            *at_level(&mut self.placed, level) = Some(placed);
        }
        match done.prior() {
            _ if done.applied.answer == Answer::InProgress => {}
            Some(prior) => {
                let newest = at_level(&mut self.priors, prior.level());
                *newest = (*newest).max(Some(prior.lsn()));
            }
            None => self.sees_absence = true,
        }
    }
}

/// Work that a call needs before it can be placed, and that isn't done under a shard lock.
pub(super) enum Again {
    Room {
        bytes: u64,
        room: Room,
    },
    NotWriting,
    Changed,
    NoMoreLsns,
    /// The contents of the records that may be the newest of a step's claim.
    Claim(Known),
    Bug(&'static str),
}

impl Again {
    pub(super) fn of(no_room: NoRoom) -> Self {
        match no_room {
            NoRoom::Wanted { bytes, room } => Again::Room { bytes, room },
            NoRoom::NotWriting => Again::NotWriting,
            NoRoom::Full => Again::NoMoreLsns,
        }
    }
}

impl Engine {
    /// Does one call on one key: looks it up, decides, writes the record, and waits until a crash can't undo the
    /// answer at its level.
    pub(crate) fn apply(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        writing: &Writing<'_>,
    ) -> Result<Applied> {
        let inside = self.enter()?;
        let done = self.place(&inside, key, hash, call, writing)?;
        self.settled(key, hash, done, writing.level)
    }

    /// Returns the answer of a call placed at `level`, once a crash can't undo it.
    #[inline]
    pub(crate) fn settled(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        done: Done,
        level: Option<Durability>,
    ) -> Result<Applied> {
        let settled = self.settle(&done, level.unwrap_or(Durability::Sync));
        if settled.is_err() {
            self.take_back(key, hash, &done.applied);
        }
        settled.map(|()| done.applied)
    }

    /// Drops the claim or question of a call that returns an error: its caller holds neither, whatever became of the
    /// record.
    #[cold]
    pub(crate) fn take_back(&self, key: &Key<'_>, hash: KeyHash, applied: &Applied) {
        if applied.answer == Answer::Asked {
            self.drop_question(key, hash, applied.question);
        }
        if let Some(claimed) = applied.claimed {
            self.forget_owner(key, hash, claimed.token);
        }
    }

    /// The record that the answer is derived from, besides the placed one, and the level at which it has to hold. A crash
    /// may undo only `InProgress`. An absence is derived from the newest forget.
    #[inline]
    fn rests_on(&self, done: &Done) -> Option<(Lsn, Durability)> {
        match done.prior() {
            _ if done.applied.answer == Answer::InProgress => None,
            Some(prior) => Some((prior.lsn(), prior.level())),
            None => self.newest_forget().map(|lsn| (lsn, Durability::Sync)),
        }
    }

    /// Waits for the placed record, and for the one that the answer is derived from.
    #[inline]
    fn settle(&self, done: &Done, level: Durability) -> Result<()> {
        if let Some(placed) = done.placed {
            self.log.wake_upkeep();
            self.log.commit(placed, level)?;
        }
        match self.rests_on(done) {
            Some((lsn, level)) => self.log.commit_earlier(lsn, level),
            None => Ok(()),
        }
    }

    /// What has to be written or synced before the answer of a call placed at `level` may be shown; `None`: nothing more. As
    /// [`settle`](Self::settle), for a caller that doesn't block.
    pub(crate) fn needs(&self, done: &Done, level: Option<Durability>) -> Option<Needs> {
        let mut needs = Needs::default();
        if let Some(placed) = done.placed {
            self.log.wake_upkeep();
            match level.unwrap_or(Durability::Sync) {
                // What is left to the background is bounded.
                Durability::Lazy if self.log.is_much_buffered() => {
                    self.need(&mut needs, placed.lsn, Durability::Flush);
                }
                level => self.need(&mut needs, placed.lsn, level),
            }
        }
        if let Some((lsn, level)) = self.rests_on(done) {
            self.need(&mut needs, lsn, level);
        }
        (needs != Needs::default()).then_some(needs)
    }

    fn need(&self, needs: &mut Needs, lsn: Lsn, level: Durability) {
        if self.log.holds(lsn, level) {
            return;
        }
        match level {
            Durability::Sync => needs.synced = needs.synced.max(Some(lsn)),
            Durability::Flush => needs.written = needs.written.max(Some(lsn)),
            Durability::Lazy => {}
        }
    }

    /// What everything that was placed so far needs to be durable.
    pub(crate) fn needs_of_all(&self) -> Needs {
        Needs { synced: self.log.last_placed(), written: None }
    }

    /// Whether there is nothing more to write or sync for that.
    pub(crate) fn are_met(&self, needs: Needs) -> bool {
        let holds = |lsn: Option<Lsn>, level| lsn.is_none_or(|lsn| self.log.holds(lsn, level));
        holds(needs.synced, Durability::Sync) && holds(needs.written, Durability::Flush)
    }

    /// What has become of the records that need that, if anything. Judged by the log first: a close makes durable what was placed
    /// before it. `lasts`: the answer holds also once the store is closed.
    pub(crate) fn fate_of_placed(
        &self,
        needs: impl FnOnce() -> Option<Needs>,
        lasts: bool,
    ) -> PlacedFate {
        let inside = self.enter();
        // Before the log is asked: once the close is over, it stays as it is.
        let is_at_close = self.is_at_close();
        match (needs(), inside) {
            (None, Ok(_)) => PlacedFate::Met,
            (None, Err(_)) if lasts => PlacedFate::Met,
            (Some(_), _) if self.log.is_poisoned() => PlacedFate::Lost(self.log.indeterminate()),
            (Some(needs), Ok(_)) => PlacedFate::Unmet(needs),
            (Some(needs), Err(_)) if is_at_close => PlacedFate::Unmet(needs),
            (_, Err(e)) => PlacedFate::Lost(outlived(e)),
        }
    }

    /// As [`provide`](Self::provide), for callers outside the gate. A store that closes syncs everything itself: they wait for
    /// that.
    pub(crate) fn provide_inside(&self, needs: Needs) {
        if !self.try_to_provide(needs) {
            self.await_close();
        }
    }

    /// The same, without waiting for a close. Returns whether it was not closed.
    pub(crate) fn try_to_provide(&self, needs: Needs) -> bool {
        let inside = self.enter();
        if inside.is_ok() {
            self.provide(needs);
        }
        inside.is_ok()
    }

    /// Writes and syncs what the callers of a round need. If that fails, the store is poisoned, and each of them finds that.
    fn provide(&self, needs: Needs) {
        if let Some(lsn) = needs.synced {
            let _ = self.log.commit_earlier(lsn, Durability::Sync);
        }
        if let Some(lsn) = needs.written {
            let _ = self.log.commit_earlier(lsn, Durability::Flush);
        }
    }

    /// What has to be written or synced before the answers of a batch may be shown: as [`settle_batch`](Self::settle_batch), for
    /// a caller that doesn't block.
    pub(crate) fn needs_of_batch(&self, batch: &PlacedBatch) -> Needs {
        let mut needs = Needs::default();
        for (level, placed) in LEVELS.into_iter().zip(batch.placed) {
            let level = match level {
                // What is left to the background is bounded.
                Durability::Lazy if self.log.is_much_buffered() => Durability::Flush,
                level => level,
            };
            if let Some(placed) = placed {
                self.need(&mut needs, placed.lsn, level);
            }
        }
        for (level, prior) in LEVELS.into_iter().zip(batch.priors) {
            if let Some(prior) = prior {
                self.need(&mut needs, prior, level);
            }
        }
        if let Some(lsn) = self.newest_forget().filter(|_| batch.sees_absence) {
            self.need(&mut needs, lsn, Durability::Sync);
        }
        needs
    }

    /// Waits for a whole batch, whose records share writes and syncs.
    pub(crate) fn settle_batch(&self, _inside: &Inside<'_>, batch: &PlacedBatch) -> Result<()> {
        self.log.wake_upkeep();
        for (level, placed) in LEVELS.into_iter().zip(batch.placed).rev() {
            if let Some(placed) = placed {
                self.log.commit(placed, level)?;
            }
        }
        for (level, prior) in LEVELS.into_iter().zip(batch.priors).rev() {
            if let Some(prior) = prior {
                self.log.commit_earlier(prior, level)?;
            }
        }
        if batch.sees_absence { self.settle_absence() } else { Ok(()) }
    }

    fn newest_forget(&self) -> Option<Lsn> {
        match self.forgotten.load(Ordering::SeqCst) {
            0 => None,
            lsn => Some(Lsn::new(lsn)),
        }
    }

    /// Waits until no absence that was found depends on a forget that a crash could undo.
    pub(crate) fn settle_absence(&self) -> Result<()> {
        self.newest_forget().map_or(Ok(()), |lsn| self.log.commit_earlier(lsn, Durability::Sync))
    }

    /// Loads the table buckets of some keys into the cache before they are looked up.
    pub(crate) fn look_ahead(&self, hashes: &[KeyHash]) {
        self.tables().touch(hashes);
    }

    /// As `apply`, but doesn't wait for the record: the answer must not be shown before its batch is settled.
    pub(crate) fn place(
        &self,
        _inside: &Inside<'_>,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        writing: &Writing<'_>,
    ) -> Result<Done> {
        self.begins(call, writing)?;
        if let Call::EndStep { life, .. } = call {
            return self.place_step(key, life, call, writing);
        }
        let asked = Asked { key, call, writing };
        // Most calls are placed at once. What a call waits for is kept only for the others.
        let waits_for = match self.try_at_once(&asked, hash) {
            Ok(done) => return Ok(done),
            Err(stop) => self.stopped(stop).map_err(|e| self.log.explained(e))?,
        };
        self.place_to_end(asked, hash, waits_for)
    }

    /// The end of a step is placed under the step's own key.
    #[cold]
    fn place_step(
        &self,
        key: &Key<'_>,
        life: Token,
        call: Call,
        writing: &Writing<'_>,
    ) -> Result<Done> {
        let step = self.step_of(key, life, writing)?;
        let hash = self.hash(&step);
        self.place_to_end(Asked { key: &step, call, writing }, hash, WaitsFor::Nothing)
    }

    #[inline(never)]
    fn place_to_end(&self, asked: Asked<'_>, hash: KeyHash, waits_for: WaitsFor) -> Result<Done> {
        let mut placing = Placing::tried(asked, hash, waits_for);
        loop {
            let gone_on = match placing.is_untried() {
                true => placing.go_on(self),
                false => placing.wait(self).map(|()| Progress::Waits),
            };
            if let Progress::Placed(done) = gone_on.map_err(|e| self.log.explained(e))? {
                return Ok(done);
            }
        }
    }

    /// Returns an error if a call of that kind may not begin.
    #[inline]
    pub(crate) fn begins(&self, call: Call, writing: &Writing<'_>) -> Result<()> {
        match call {
            Call::Claim(_) | Call::Record { .. } => match self.log.gate().is_draining() {
                true => {
                    let message = "the store is draining: it takes no new claims";
                    Err(Error::new(ErrorKind::Closed, message).at(self.log.dir()))
                }
                false => Ok(()),
            },
            // Another backend's client may leave it out.
            call if call.names_lease() && writing.conditions.lease_ms.is_none() => {
                Err(Error::invalid("this call has to name a lease"))
            }
            _ => Ok(()),
        }
    }

    /// Decides by what was found and writes the record, under the shard lock. `now` was read under it, too: a later
    /// call must not be judged by an earlier time.
    #[expect(clippy::too_many_arguments, reason = "one step, all of it under the shard lock")]
    pub(super) fn act(
        &self,
        shard: &mut Shard,
        key: &Key<'_>,
        hash: KeyHash,
        found: Option<Box<Found>>,
        call: Call,
        writing: &Writing<'_>,
        now: StoreMillis,
    ) -> Result<Done, Again> {
        let known = found.as_deref().unwrap_or(&NOTHING);
        let moment = self.moment(now);
        let decision = protocol::decide(&known.current(), call, &writing.conditions, moment);
        let (placed, claimed, question) = match &decision.next {
            None => {
                if matches!(call, Call::BeginStep(_)) && decision.answer == Some(Answer::Done) {
                    // On a full disk the step is refused before its work, and not after that.
                    self.log.reserve(writing.reserve).map_err(Again::of)?;
                    self.log.release(writing.reserve);
                }
                (None, None, 0)
            }
            Some(next @ Next { becomes: None, .. }) => {
                (None, None, self.note(shard, key, hash, known, call, next, writing, now)?)
            }
            Some(next @ Next { becomes: Some(becomes), .. }) => {
                let lapse;
                let writing = match decision.answer {
                    Some(_) => writing,
                    None => {
                        // A lapse is as durable as its claim.
                        let level = known.place.map(Place::level);
                        lapse = Writing { level, ..Writing::default() };
                        &lapse
                    }
                };
                let (placed, claimed) =
                    self.write(shard, key, hash, known, becomes, next, moment, writing)?;
                (Some(placed), claimed, 0)
            }
        };
        let Some(answer) = decision.answer else { return Err(Again::Changed) };
        let has_changed = decision.next.is_some();
        Ok(Done { applied: Applied { answer, found, claimed, now, question }, placed, has_changed })
    }

    /// Changes who is on a key, and until when: that is only in memory. Returns the question's number if a claimant is
    /// asked.
    // Not inlined: `act` is on the way of every call, and this of few.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "one step, all of it under the shard lock")]
    fn note(
        &self,
        shard: &mut Shard,
        key: &Key<'_>,
        hash: KeyHash,
        found: &Found,
        call: Call,
        next: &Next<'_>,
        writing: &Writing<'_>,
        now: StoreMillis,
    ) -> Result<u64, Again> {
        // Only what was recorded has anybody on it.
        let (Some(place), Some(state)) = (found.place, &found.state) else {
            return Err(Again::Bug("somebody was to be on a key of which nothing is recorded"));
        };
        let begins = match next.presence {
            Presence::Nobody | Presence::Detached => {
                let live = shard.let_go(hash, place.lsn());
                let live = live.ok_or(Again::Bug("nobody was on a key that was to be left"))?;
                self.left(&live);
                return Ok(0);
            }
            Presence::Asked => !matches!(call, Call::RenewQuestion(_)),
            Presence::Owner => found.presence != Presence::Owner,
        };
        if !begins {
            let live = shard.entry_at(hash, place.lsn()).and_then(|entry| entry.live.as_mut());
            let live = live.ok_or(Again::Bug("nobody was on a key whose lease was renewed"))?;
            live.lease_until = next.lease_until;
            return Ok(0);
        }
        let (mut question, mut asker, mut reserved) = (0, None, 0);
        if next.presence == Presence::Asked {
            question = self.questions.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            let owner = writing.conditions.owner.filter(|owner| !owner.is_empty()).map(Arc::from);
            asker = Some(Arc::new(Asker { question, owner, since: now }));
        } else {
            // The ending of a detached claim has room like any other, from when it is attached.
            reserved = state.detached().map_or(0, |lease| lease.reserve) + state.carried_bytes();
            match self.log.reserve(reserved) {
                // Its effect may have happened, so it has to end even if there is no space for its result: `ending_room`.
                Err(NoRoom::Wanted { .. }) if self.log.rooms().is_full() => reserved = 0,
                made => made.map_err(Again::of)?,
            }
            self.in_flight.fetch_add(1, Ordering::SeqCst);
        }
        let live = Some(Box::new(Live {
            key_kind: key.kind(),
            key: key.bytes().into(),
            state: state.clone(),
            presence: next.presence,
            lease_until: next.lease_until,
            reserved,
            asker,
        }));
        match shard.entry_at(hash, place.lsn()) {
            Some(entry) => entry.live = live,
            // Only a table had it.
            None => {
                let place = Place::new(place.lsn(), place.level(), state.open_as());
                shard.insert(Entry { hash, place, live });
            }
        }
        Ok(question)
    }

    /// Notes that an owner or a claimant left a key without a record.
    pub(super) fn left(&self, live: &Live) {
        if live.presence == Presence::Owner {
            self.log.release(live.reserved);
            self.ended_one();
        }
    }

    pub(super) fn shard(&self, hash: KeyHash) -> Result<crate::sync::MutexGuard<'_, Shard>> {
        self.recent.shard(hash).ok_or_else(|| self.log.bug("the index has no shard for a key"))
    }

    /// Handles a failed read. The record may have moved meanwhile; then it isn't damage, and the key is looked up
    /// again. The same if the index could be mended, or an unsettled tail settled. Otherwise returns the error.
    pub(super) fn look_failed(&self, hash: KeyHash, known: &Known, error: Error) -> Result<()> {
        if !self.is_unchanged(hash, known)? {
            return Ok(());
        }
        if known.tables.list.iter().any(|table| Some(table.path()) == error.path()) {
            return self.mending().heal(error);
        }
        self.settle_tail(error)
    }

    pub(super) fn is_unchanged(&self, hash: KeyHash, known: &Known) -> Result<bool> {
        let shard = self.shard(hash)?;
        let is_there = |place: &Place| shard.candidates(hash).any(|e| e.place == *place);
        Ok(known.places.iter().all(is_there) && Arc::ptr_eq(shard.tables(), &known.tables))
    }

    /// Returns the key's state if its entry has a claim or question, and the time by which that was judged: the
    /// answer must use the same time, or a claim in progress is shown with nothing left of its lease.
    // Every call looks here first.
    #[inline(always)]
    pub(super) fn look_in_memory(
        &self,
        shard: &Shard,
        key: &Key<'_>,
        hash: KeyHash,
    ) -> Option<(Box<Found>, StoreMillis)> {
        let is_key = |live: &&Live| live.is_key(key.kind(), key.bytes());
        shard.candidates(hash).find_map(|entry| {
            let live = entry.live.as_deref().filter(is_key)?;
            let found = Box::new(Found {
                state: Some(live.state.clone()),
                presence: live.presence,
                lease_until: live.lease_until,
                place: Some(entry.place),
                reserved: live.reserved,
                asker: live.asker.clone(),
                outcome: None,
                memory_until: live.state.memory_until,
                open_steps: Vec::new(),
            });
            Some((found, self.log.now()))
        })
    }

    /// Finds the key among the records with its hash: those of memory, then those of the tables from the newest on.
    pub(super) fn look_recorded(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        known: &Known,
    ) -> Result<Option<Box<Found>>> {
        match self.look_without_steps(key, hash, known)? {
            Some(found) => self.without_ended_steps(key, found).map(Some),
            None => Ok(None),
        }
    }

    /// The same, with the announced steps as the record has them.
    // Inlined into the other: every replay passes both.
    #[inline(always)]
    pub(super) fn look_without_steps(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        known: &Known,
    ) -> Result<Option<Box<Found>>> {
        let found = self.look_in_log(key, &known.places)?;
        if found.is_some() || known.tables.is_empty() {
            return Ok(found);
        }
        let spots = known.tables.find(hash)?;
        if !spots.is_empty() {
            let segments = self.log.reading().segments();
            for spot in spots {
                let place = self.place_of(&segments, spot)?;
                let found = self.look_in_log(key, &[place])?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        if known.tables.expired.is_empty() {
            return Ok(None);
        }
        let memory = known.tables.memory_of(hash, known.now)?;
        Ok(memory.map(|memory| {
            let completed = StoreMillis(memory.completed_wall());
            Box::new(Found {
                state: Some(KeyState::of_memory(completed, memory.until())),
                memory_until: Some(memory.until()),
                ..Found::default()
            })
        }))
    }

    /// Returns the place of a table's slot. Records that tables cover were durable before the tables were listed.
    pub(super) fn place_of(&self, segments: &Segments, spot: Spot) -> Result<Place> {
        let Some(lsn) = segments.lsn_of(spot) else {
            let what =
                format_args!("the index names segment {}, which isn't listed,", spot.ordinal);
            return Err(Error::corrupt(self.log.dir(), 0, what));
        };
        Ok(Place::new(lsn, Durability::Sync, None))
    }

    /// Finds the key among the records at some places.
    pub(super) fn look_in_log(
        &self,
        key: &Key<'_>,
        candidates: &[Place],
    ) -> Result<Option<Box<Found>>> {
        for &place in candidates {
            let found = self.log.reading().read_to_keep(
                self.compaction().place_to_read(place.lsn()),
                |record, backing| {
                    let body = self.body_of(&record)?;
                    if (body.key_kind, body.key) != (key.kind(), key.bytes()) {
                        return Ok(None);
                    }
                    // Filled in where it stays: a state is large to move.
                    let mut found = Box::new(Found {
                        state: state_of(&record, &body),
                        place: Some(place),
                        memory_until: body.memory_until,
                        ..Found::default()
                    });
                    match &mut found.state {
                        Some(state)
                            if state.phase == Phase::Claimed && state.detached().is_none() =>
                        {
                            // A claim without an ending, and without an owner in memory.
                            state.reason = Some(self.why_gone(state.since).into());
                        }
                        Some(KeyState { phase: Phase::Completed | Phase::Failed, .. }) => {
                            found.outcome = Some(Stored {
                                codec: body.codec,
                                version: body.version,
                                meta: body.meta.to_vec(),
                                packed: body.rare.as_ref().and_then(|rare| rare.packed),
                                bytes: self.value_of(&record, &body, backing)?,
                            });
                        }
                        _ => {}
                    }
                    Ok(Some(found))
                },
            )?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    #[inline]
    fn value_of(
        &self,
        record: &Record<'_>,
        body: &Body<'_>,
        backing: &Backing<'_>,
    ) -> Result<ValueBytes> {
        let hold = || backing.hold_tail(record, body.result.len());
        let bytes = ValueBytes::of_record(body.result, hold);
        bytes.ok_or_else(|| self.log.bug("a result does not lie in its record"))
    }

    pub(super) fn body_of<'a>(&self, record: &Record<'a>) -> Result<Body<'a>> {
        let mut body = record.body().map_err(|bad| {
            Error::corrupt(self.log.dir(), 0, format_args!("{bad} at lsn {}", record.lsn))
        })?;
        // Other writers may have stored it to the millisecond.
        body.memory_until = body.memory_until.map(protocol::passes_at);
        Ok(body)
    }

    /// Places the record in the log and changes the key's entry, in one step. Returns the attempt that it grants.
    #[expect(clippy::too_many_arguments, reason = "one step, all of it under the shard lock")]
    fn write(
        &self,
        shard: &mut Shard,
        key: &Key<'_>,
        hash: KeyHash,
        found: &Found,
        becomes: &Becomes<'_>,
        next: &Next<'_>,
        moment: Moment,
        writing: &Writing<'_>,
    ) -> Result<(Placed, Option<Claimed>), Again> {
        // Read before the body is composed: the first write after an open may change it.
        let Some(ahead) = self.log.ahead() else { return Err(Again::NotWriting) };
        let draft = compose(key, becomes, ahead, moment, writing.outcome.as_ref());
        let (state, until) = match becomes {
            Becomes::State(state) => {
                let phase = Some(state.phase);
                (Some(state), protocol::ends_at(phase, state.expires_at, state.memory_until))
            }
            Becomes::Absent { memory_until } => {
                (None, protocol::ends_at(None, None, *memory_until))
            }
            // It is written under the step's key.
            Becomes::Step(_) => return Err(Again::Bug("a step was to be written as its claim's")),
        };
        let carried = state.and_then(|state| state.extras.as_ref());
        let reserve = writing.reserve + carried.map_or(0, |extras| extras.carried_bytes());
        let room = match state.map(|state| state.phase) {
            // What the claim has reserved already stays.
            Some(Phase::Claimed) if next.presence == Presence::Owner => {
                Room::Reserve(reserve.saturating_sub(found.reserved))
            }
            // An outcome without a claim has no reserve.
            Some(Phase::Completed | Phase::Failed)
                if state.is_some_and(|state| state.token.is_none()) =>
            {
                Room::Free
            }
            None | Some(Phase::Aborted) => Room::Clear(found.reserved),
            Some(_) => ending_room(found, writing.outcome.as_ref()),
        };
        let span = Span { until, ends: found.endless() };
        let placed = self.log.place_for(draft, room, span).map_err(Again::of)?;
        if state.is_none() {
            self.forgotten.fetch_max(placed.lsn.get(), Ordering::SeqCst);
        }
        // A new token is derived from the record's LSN.
        let own = placed.lsn.token(ahead);
        let level = writing.level.unwrap_or(Durability::Sync);
        let is_timed = state
            .and_then(|state| state.extras.as_ref())
            .is_some_and(|extras| extras.detached.is_some() || extras.retry_at.is_some());
        let open = match Key::is_kind_of_space(key.kind()) {
            true => Some(OpenAs::Space),
            false => protocol::open_as(state.map(|state| state.phase), is_timed),
        };
        let place = Place::new(placed.lsn, level, open);
        let live = state.filter(|_| next.presence == Presence::Owner).map(|state| {
            Box::new(Live {
                key_kind: key.kind(),
                key: key.bytes().into(),
                state: state.stored(own),
                presence: next.presence,
                lease_until: next.lease_until,
                reserved: reserve.max(found.reserved),
                asker: None,
            })
        });
        match (found.presence == Presence::Owner, live.is_some()) {
            (false, true) => {
                self.in_flight.fetch_add(1, Ordering::SeqCst);
            }
            (true, false) => self.ended_one(),
            _ => {}
        }
        let granted = state.filter(|state| state.is_grant());
        let claimed = granted.map(|state| Claimed {
            token: own,
            life: state.life.unwrap_or(own),
            attempt: state.attempt,
        });
        // A forget keeps its entry, too: a table may have an older record of the key.
        shard.put(found.place.map(Place::lsn), Entry { hash, place, live });
        Ok((placed, claimed))
    }

    pub(super) fn ended_one(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if self.log.gate().is_draining() {
            self.ended.wake_all();
        }
    }

    /// Makes the call that ends a claim whose guard was dropped without an ending, or whose grant nobody waited for. Returns
    /// false, and has done nothing, if that has to wait and may not: a withdrawal for space, or any but an interruption for a
    /// read, since the key has no owner in memory. The claim stays in flight until another thread has made the call. An abort
    /// waits for space, since whoever dropped the guard may claim next. An interruption needs neither: without a record, the
    /// key reads interrupted.
    #[must_use]
    pub(crate) fn let_go(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        reason: &str,
        writing: &Writing<'_>,
        may_wait: bool,
    ) -> bool {
        let Some(token) = call.of_owner() else { return true };
        // A close interrupts claims in flight itself.
        let Ok(_inside) = self.enter() else { return true };
        let conditions = Conditions { reason: Some(reason), ..writing.conditions };
        let writing = Writing { conditions, ..*writing };
        let mut placing = Placing::new(Asked { key, call, writing: &writing }, hash);
        loop {
            match placing.go_on(self) {
                Ok(Progress::Placed(_)) => {
                    self.log.wake_upkeep();
                    return true;
                }
                Ok(Progress::Waits) => {}
                Err(_) => {
                    self.forget_owner(key, hash, token);
                    return true;
                }
            }
            let needs_record = !matches!(call, Call::Interrupt(_));
            if placing.is_read() && !needs_record {
                // It changes nothing where the owner isn't in memory, whatever the record says.
                return true;
            }
            if (placing.is_read() || matches!(call, Call::Withdraw(_))) && !may_wait {
                return false;
            }
            if !needs_record || placing.wait(self).is_err() {
                // No space, or nothing may be written: by the claim's own record the next call finds it interrupted.
                self.forget_owner(key, hash, token);
                return true;
            }
        }
    }

    /// Whether the claim of that token has a live owner here; then, in how many milliseconds its lease passes.
    pub(crate) fn is_live(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        token: Token,
    ) -> Option<Option<u64>> {
        let shard = self.recent.shard(hash)?;
        let (found, now) = self.look_in_memory(&shard, key, hash)?;
        drop(shard);
        let mut state = found.state?;
        let (presence, until) = protocol::shown(&mut state, found.presence, found.lease_until, now);
        let is_live = presence == Presence::Owner && state.token == token;
        is_live.then(|| until.map(|until| until.since(now)))
    }

    fn forget_owner(&self, key: &Key<'_>, hash: KeyHash, token: Token) {
        let Some(mut shard) = self.recent.shard(hash) else { return };
        let place = shard.candidates(hash).find_map(|entry| {
            let live = entry.live.as_ref()?;
            (live.is_key(key.kind(), key.bytes())
                && live.presence == Presence::Owner
                && live.state.token == token)
                .then_some(entry.place.lsn())
        });
        let Some(lsn) = place else { return };
        if let Some(live) = shard.let_go(hash, lsn) {
            self.left(&live);
        }
        drop(shard);
        self.log.events.left(key, key.namespace(), token.get());
        self.waits.tell(key, hash, Wakes::First);
    }

    /// Removes a question that was dropped without a decision: the next claimant is asked. Doesn't wait.
    pub(crate) fn unask(&self, key: &Key<'_>, hash: KeyHash, question: u64) {
        if let Ok(_inside) = self.enter() {
            self.drop_question(key, hash, question);
        }
    }

    fn drop_question(&self, key: &Key<'_>, hash: KeyHash, question: u64) {
        let call = Call::DropQuestion(question);
        let Some(mut shard) = self.recent.shard(hash) else { return };
        // Only memory knows a question.
        let Some((found, now)) = self.look_in_memory(&shard, key, hash) else { return };
        let tried = self.act(&mut shard, key, hash, Some(found), call, &Writing::default(), now);
        drop(shard);
        let tried = tried.map_err(Stop::Again);
        self.tell_change(key, hash, call, &tried);
        if matches!(&tried, Ok(done) if done.has_changed) {
            self.log.events.unasked(key, key.namespace());
        }
    }
}

/// The space for the record of an ending. A claim that was attached when there was no space has no reserve: without a result,
/// it may use the space that is kept for forgets and aborts, since it frees its key in the same way.
#[inline]
fn ending_room(found: &Found, outcome: Option<&EncodedOutcome<'_>>) -> Room {
    let is_bare =
        |outcome: &EncodedOutcome<'_>| outcome.bytes.is_empty() && outcome.meta.is_empty();
    match found.reserved == 0 && found.is_attached() && outcome.is_none_or(is_bare) {
        true => Room::Clear(0),
        false => Room::Spend(found.reserved),
    }
}

/// The places of a hash's records, as read under the shard lock, to be read without it.
pub(super) struct Known {
    /// In memory, without a claim or question.
    places: Vec<Place>,
    tables: Arc<Tables>,
    /// Records read from it are judged by this time: by a later one a record may have expired, and the key may be
    /// claimed again.
    pub(super) now: StoreMillis,
}

impl Known {
    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    pub(super) fn of(shard: &Shard, hash: KeyHash, now: StoreMillis) -> Self {
        Known { places: Known::places_of(shard, hash), tables: Arc::clone(shard.tables()), now }
    }

    /// What has to be read before it is known what became of a key that memory doesn't answer for. `None`: nothing, it is absent.
    #[inline]
    pub(super) fn to_read(shard: &Shard, hash: KeyHash, now: StoreMillis) -> Option<Self> {
        let places = Known::places_of(shard, hash);
        let is_nothing = places.is_empty() && shard.tables().is_empty();
        (!is_nothing).then(|| Known { places, tables: Arc::clone(shard.tables()), now })
    }

    fn places_of(shard: &Shard, hash: KeyHash) -> Vec<Place> {
        let entries = shard.candidates(hash).filter(|entry| entry.live.is_none());
        entries.map(|entry| entry.place).collect()
    }
}

/// Whether what was read outside the lock is still complete for the key. A miss in the tables holds only for those
/// tables: entries that a checkpoint took out of memory meanwhile are in others.
pub(super) fn is_as_read(shard: &Shard, key: &Key<'_>, hash: KeyHash, known: &Known) -> bool {
    let is_live = |entry: &Entry| {
        entry.live.as_ref().is_some_and(|live| live.is_key(key.kind(), key.bytes()))
    };
    let entries = shard.candidates(hash).filter(|entry| entry.live.is_none());
    Arc::ptr_eq(shard.tables(), &known.tables)
        && entries.map(|entry| &entry.place).eq(&known.places)
        && !shard.candidates(hash).any(is_live)
}

pub(super) fn told(found: Option<Box<Found>>, answer: Answer, now: StoreMillis) -> Done {
    let applied = Applied { answer, found, claimed: None, now, question: 0 };
    Done { applied, placed: None, has_changed: false }
}
