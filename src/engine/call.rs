//! One call on one key: looks up the key, decides, writes the record, and waits until it is durable at its level.

use std::sync::Arc;

use super::Engine;
use super::applied::{Applied, Claimed, Done, EncodedOutcome, Found, NOTHING};
use super::compose::{Stamp, compose};
use super::look::Known;
use super::placing::{Asked, Placing, Progress, WaitsFor};
use crate::index::recent::{Entry, Live, OfGuest, Place, Shard};
use crate::log::open::lifecycle::Inside;
use crate::log::{NoRoom, Placed, Room, Span};
use crate::operation::{Durability, Key};
use crate::protocol::{
    self, Answer, Asker, Becomes, Call, Conditions, Decision, Moment, NewestIs, Next, OpenAs,
    Phase, Presence,
};
use crate::record::Tenure;
use crate::sync::Ordering;
use crate::types::{KeyHash, Lsn, Origin, StoreMillis, Token};
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
    /// Which call of another process it is; `None`: it is this process's.
    pub(crate) sending: Option<&'a Sending>,
}

/// Which call of another process a call is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sending {
    pub(crate) origin: Origin,
    /// If it is sent again, because its answer was lost: the end of the log as its process had last heard of it when it was sent
    /// first.
    pub(crate) heard: Option<Lsn>,
}

/// Work that a call needs before it can be placed, and that isn't done under a shard lock.
pub(super) enum Again {
    Room {
        bytes: u64,
        room: Room,
    },
    /// Kept claims lack their reserves, and come first.
    Owed(Room),
    NotWriting,
    Changed,
    NoMoreLsns,
    /// The contents of the records that may be the newest of a step's claim.
    Claim(Known),
    /// Whether the call was made can't be known.
    Indeterminate,
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
        self.settled(key, hash, call, done, writing.level)
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
    pub(super) fn place_step(
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
    pub(super) fn place_to_end(
        &self,
        asked: Asked<'_>,
        hash: KeyHash,
        waits_for: WaitsFor,
    ) -> Result<Done> {
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
            // The close of one process's handle sends no other process away before its time.
            Call::Claim(_) | Call::Record { .. } if writing.sending.is_none() => {
                match self.log.gate().is_draining() {
                    true => {
                        let message = "the store is draining: it takes no new claims";
                        Err(Error::new(ErrorKind::Closed, message).at(self.log.dir()))
                    }
                    false => Ok(()),
                }
            }
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
        let decision = self.decide(known, call, writing, moment)?;
        let (placed, claimed, question) = match &decision.next {
            None => {
                if matches!(call, Call::BeginStep(_)) && decision.answer == Some(Answer::Done) {
                    // On a full disk the step is refused before its work, and not after that.
                    self.log.reserve(writing.reserve).map_err(Again::of)?;
                    self.log.release(writing.reserve);
                }
                // Only an answer that was lost grants without a record.
                let is_granted = decision.answer == Some(Answer::Granted);
                (None, known.state.as_ref().filter(|_| is_granted).and_then(Claimed::of), 0)
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

    /// Decides a call by what was found of its key.
    // The call of another process that is sent again is rare.
    #[inline]
    pub(super) fn decide<'a>(
        &self,
        found: &'a Found,
        call: Call,
        writing: &Writing<'a>,
        moment: Moment,
    ) -> Result<Decision<'a>, Again> {
        let current = found.current();
        let Some(sending) = writing.sending.filter(|sending| sending.heard.is_some()) else {
            return Ok(protocol::decide(&current, call, &writing.conditions, moment));
        };
        let newest = self.newest(found, call, sending);
        let decided = protocol::decide_again(newest, &current, call, &writing.conditions, moment);
        decided.ok_or(Again::Indeterminate)
    }

    /// What a call that is sent again finds of its first sending.
    #[cold]
    fn newest(&self, found: &Found, call: Call, sending: &Sending) -> NewestIs {
        let guest = found.guest.as_deref();
        let made = match call {
            Call::Attach(_) => guest.and_then(|guest| guest.attached),
            _ => guest.and_then(|guest| guest.origin),
        };
        if made == Some(sending.origin) {
            return NewestIs::Own;
        }
        let Origin { session, request, item } = sending.origin;
        let is_later =
            |of: Origin| (of.session, of.request) == (session, request) && of.item > item;
        if guest.and_then(|guest| guest.origin).is_some_and(is_later) {
            return NewestIs::LaterItem;
        }
        // The record of an absence may be gone: then whatever was forgotten since the open counts.
        let newest = found.place.map(Place::lsn).or_else(|| self.newest_forget());
        let is_heard = newest.is_none_or(|lsn| Some(lsn) < sending.heard);
        if is_heard { NewestIs::Heard } else { NewestIs::Unheard }
    }

    /// Changes who is on a key, and until when: that is only in memory. Returns the question's number if a claimant is
    /// asked.
    // Not inlined: `act` is on the way of every call, and this of few.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "one step, all of it under the shard lock")]
    pub(super) fn note(
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
            if let Some(guest) = &mut live.guest {
                guest.lease_millis = writing.conditions.lease_ms;
            }
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
            self.begun_one(writing.sending.is_some());
        }
        let attached = writing.sending.map(|sending| sending.origin);
        let attached = attached.filter(|_| next.presence == Presence::Owner);
        let mut guest = found.guest.clone();
        if attached.is_some() {
            guest.get_or_insert_default().attached = attached;
        }
        let live = Some(Box::new(Live {
            key_kind: key.kind(),
            key: key.bytes().into(),
            state: state.clone(),
            presence: next.presence,
            lease_until: next.lease_until,
            reserved,
            asker,
            guest,
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

    pub(super) fn shard(&self, hash: KeyHash) -> Result<crate::sync::MutexGuard<'_, Shard>> {
        self.recent.shard(hash).ok_or_else(|| self.log.bug("the index has no shard for a key"))
    }

    /// Places the record in the log and changes the key's entry, in one step. Returns the attempt that it grants.
    #[expect(clippy::too_many_arguments, reason = "one step, all of it under the shard lock")]
    pub(super) fn write(
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
        let stamp = writing.sending.map(|sending| {
            let held = state.filter(|_| next.presence == Presence::Owner);
            let goes_on = held.is_some_and(|state| !state.is_grant())
                && next.lease_until == found.lease_until;
            let lease_millis = match goes_on {
                true => found.guest.as_ref().and_then(|guest| guest.lease_millis),
                false => writing.conditions.lease_ms,
            };
            let tenure = Tenure { lease_millis, reserve: reserve.max(found.reserved) };
            Stamp { origin: sending.origin, tenure: held.map(|_| tenure) }
        });
        let draft = compose(key, becomes, ahead, moment, writing.outcome.as_ref(), stamp);
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
        let is_new = matches!(room, Room::Reserve(_) | Room::Free);
        if is_new && found.presence != Presence::Owner && self.owed.are_owed() {
            return Err(Again::Owed(room));
        }
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
                guest: stamp.map(|stamp| {
                    let lease_millis = stamp.tenure.and_then(|tenure| tenure.lease_millis);
                    let attached = found.guest.as_ref().and_then(|guest| guest.attached);
                    Box::new(OfGuest { origin: Some(stamp.origin), lease_millis, attached })
                }),
            })
        });
        match (found.presence == Presence::Owner, &live) {
            (false, Some(live)) => self.begun_one(live.owner().is_some()),
            (true, None) => self.ended_one(found.is_guests()),
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
}
