//! Steps of claims: their records, and which of them a claim has announced.
//!
//! Promises: a step is a key of its own, named by its claim's key, that key's life and its name, in the same shard; so the
//! claim is checked and the step recorded in one step. A step ends once: its first result stays. Never: decides; `protocol`
//! does.

use super::Engine;
use super::applied::{Done, Found, told};
use super::call::{Again, Writing};
use super::compose::{Stamp, compose};
use super::look::{Known, is_as_read};
use super::placing::{ReadClaim, Stop, WaitsFor};
use crate::index::recent::{Entry, Place, Shard};
use crate::log::{Room, Span};
use crate::operation::{Durability, Key, StepKey};
use crate::protocol::{self, Becomes, Call, Current, KeyState, OpenStep};
use crate::types::{KeyHash, StoreMillis, Token};
use crate::{Error, Result};

impl Engine {
    /// Returns the stored key of the call's step.
    pub(crate) fn step_of(
        &self,
        key: &Key<'_>,
        life: Token,
        writing: &Writing<'_>,
    ) -> Result<Key<'static>> {
        let name = writing.conditions.extras.and_then(|extras| extras.step);
        let name = name.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Error::invalid("this call has to name a step"))?;
        Ok(Key::of_step(key, life, name))
    }

    /// Tries once to record that a step has ended. `read`: the step's own record, if it was read; otherwise memory is asked.
    #[cold]
    pub(super) fn try_to_end_step(
        &self,
        step: &Key<'_>,
        hash: KeyHash,
        read: Option<(Known, Option<Box<Found>>)>,
        claim: Option<&ReadClaim>,
        call: Call,
        writing: &Writing<'_>,
    ) -> Result<Done, Stop> {
        let of = step.as_step().ok_or_else(|| self.log.bug("a step without a step's key"))?;
        let mut shard = self.shard(hash)?;
        let found = match read {
            Some((seen, found)) => {
                if !is_as_read(&shard, step, hash, &seen) {
                    return Err(Stop::WaitsFor(WaitsFor::Nothing));
                }
                found
            }
            None => {
                if let Some(known) = Known::to_read(&shard, hash, self.log.now()) {
                    return Err(Stop::WaitsFor(WaitsFor::Read(known)));
                }
                None
            }
        };
        let now = self.log.now();
        let ended = self.end_step(&mut shard, step, hash, &of, found, claim, call, writing, now);
        ended.map_err(Stop::Again)
    }

    /// Checks the claim and records its step, under the lock of the shard that has both.
    #[expect(clippy::too_many_arguments, reason = "one step, all of it under the shard lock")]
    fn end_step(
        &self,
        shard: &mut Shard,
        step: &Key<'_>,
        hash: KeyHash,
        of: &StepKey<'_>,
        found: Option<Box<Found>>,
        claim: Option<&ReadClaim>,
        call: Call,
        writing: &Writing<'_>,
        now: StoreMillis,
    ) -> Result<Done, Again> {
        let claim_hash = self.hash(&of.key);
        let nothing = Found::default();
        let live = self.look_in_memory(shard, &of.key, claim_hash).map(|(found, _)| found);
        let owned = match (&live, claim) {
            (Some(live), _) => &**live,
            (None, Some(read)) if is_as_read(shard, &of.key, claim_hash, &read.seen) => {
                read.found.as_deref().unwrap_or(&nothing)
            }
            (None, _) => {
                if let Some(known) = Known::to_read(shard, claim_hash, now) {
                    return Err(Again::Claim(known));
                }
                &nothing
            }
        };
        let current = Current { step_has_ended: found.is_some(), ..owned.current() };
        let moment = self.moment(now);
        let decision = protocol::decide(&current, call, &writing.conditions, moment);
        let Some(answer) = decision.answer else {
            return Err(Again::Bug("a step's end came upon a lapse"));
        };
        let placed = match decision.next {
            None => None,
            Some(next) => {
                let Some(Becomes::Step(state)) = next.becomes else {
                    return Err(Again::Bug("a step's end changes its claim"));
                };
                // Read before the body is composed: the first write after an open may change it.
                let Some(ahead) = self.log.ahead() else { return Err(Again::NotWriting) };
                let becomes = Becomes::State(state);
                let stamp =
                    writing.sending.map(|sending| Stamp { origin: sending.origin, tenure: None });
                let outcome = writing.outcome.as_ref();
                let draft = compose(step, &becomes, ahead, moment, outcome, stamp);
                // Only compaction can tell from when on a step is dead.
                let span = Span { until: None, ends: None };
                let placed = self.log.place_for(draft, Room::Free, span).map_err(Again::of)?;
                let level = writing.level.unwrap_or(Durability::Sync);
                let place = Place::new(placed.lsn, level, None);
                shard.insert(Entry { hash, place, live: None });
                let place = owned.place;
                let entry = place.and_then(|place| shard.entry_at(claim_hash, place.lsn()));
                if let Some(live) = entry.and_then(|entry| entry.live.as_mut()) {
                    live.state.end_step(of.name);
                }
                Some(placed)
            }
        };
        Ok(told(None, answer, now).with(placed))
    }

    /// Reads the newest record of the key of a step's claim. `None`: it has changed meanwhile.
    pub(super) fn read_claim(&self, step: &Key<'_>, seen: Known) -> Result<Option<ReadClaim>> {
        let of = step.as_step().ok_or_else(|| self.log.bug("a step without a step's key"))?;
        let hash = self.hash(&of.key);
        match self.look_recorded(&of.key, hash, &seen) {
            Ok(found) => Ok(Some(ReadClaim { seen, found })),
            Err(e) => self.look_failed(hash, &seen, e).map(|()| None),
        }
    }

    /// Removes the steps that have ended from those that the record of their claim names: nothing is written about them in
    /// that record. Waits until a crash can't undo their ends.
    pub(super) fn without_ended_steps(
        &self,
        key: &Key<'_>,
        mut found: Box<Found>,
    ) -> Result<Box<Found>> {
        let Some(state) = found.state.as_mut().filter(|state| !state.announced().is_empty()) else {
            return Ok(found);
        };
        for OpenStep { name, .. } in state.announced().to_vec() {
            let step = Key::of_step(key, state.life, &name);
            let hash = self.hash(&step);
            // Before it is looked up: an end that comes later is noticed by it.
            let places = places_under(&*self.shard(hash)?, hash);
            match self.find(&step, hash)? {
                Some(seen) => {
                    self.log.commit_earlier(seen.place.lsn(), seen.place.level())?;
                    state.end_step(&name);
                }
                None => found.open_steps.push((hash, places)),
            }
        }
        Ok(found)
    }

    /// Whether an attempt may still use the result of a step: its claim's key has the same life, and no outcome. Once that
    /// is false, it stays so.
    pub(super) fn needs_step(&self, step: &Key<'_>) -> Result<bool> {
        let of = step.as_step().ok_or_else(|| self.log.bug("a step without a step's key"))?;
        let hash = self.hash(&of.key);
        loop {
            self.may_stay()?;
            let (known, now) = {
                let shard = self.shard(hash)?;
                let now = self.log.now();
                if let Some((found, _)) = self.look_in_memory(&shard, &of.key, hash) {
                    let is_needed = |state: &KeyState| state.needs_steps_of(of.life, now);
                    return Ok(found.state.as_ref().is_some_and(is_needed));
                }
                (Known::of(&shard, hash, now), now)
            };
            let found = self.look_without_steps(&of.key, hash, &known);
            // What was read holds for these tables and places only.
            if !is_as_read(&*self.shard(hash)?, &of.key, hash, &known) {
                continue;
            }
            let is_needed = |state: &KeyState| state.needs_steps_of(of.life, now);
            return found
                .map(|found| found.and_then(|found| found.state).as_ref().is_some_and(is_needed));
        }
    }
}

fn places_under(shard: &Shard, hash: KeyHash) -> Vec<Place> {
    shard.candidates(hash).map(|entry| entry.place).collect()
}

/// Whether the announced steps of what was read are still open: none of them has ended since. They are in the claim's shard.
pub(super) fn has_open_steps(shard: &Shard, found: Option<&Found>) -> bool {
    let mut steps = found.into_iter().flat_map(|found| &found.open_steps);
    steps.all(|(hash, places)| places_under(shard, *hash) == *places)
}
