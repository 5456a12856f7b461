//! Owners and claimants that leave a key without an ending of their own: dropped guards and questions, grants that nobody took.

use super::Engine;
use super::applied::Applied;
use super::call::Writing;
use super::placing::{Asked, Placing, Progress, Stop};
use super::waits::Wakes;
use crate::Result;
use crate::index::recent::Live;
use crate::operation::{Durability, Key};
use crate::protocol::{self, Answer, Call, Conditions, Presence};
use crate::sync::Ordering;
use crate::types::{KeyHash, Origin, Token};

/// Why a claim is withdrawn whose grant was answered with an error.
pub(crate) const UNTOLD: &str = "granted, and the answer was an error";

/// What to say for a caller that isn't told that it owns a claim, and the claim's token; `None`: it owns none.
fn leaving(call: Call, applied: &Applied) -> Option<(Call, Token)> {
    match (call, applied.claimed) {
        (_, Some(claimed)) => Some((Call::Withdraw(claimed.token), claimed.token)),
        // It stays detached.
        (Call::Attach(token), None) if applied.answer == Answer::Done => {
            Some((Call::Interrupt(token), token))
        }
        _ => None,
    }
}

impl Engine {
    /// Drops the claim or question of a call that returns an error: its caller holds neither, whatever became of the
    /// record.
    #[cold]
    pub(crate) fn take_back(&self, key: &Key<'_>, hash: KeyHash, call: Call, applied: &Applied) {
        if applied.answer == Answer::Asked {
            self.drop_question(key, hash, applied.question);
        }
        if let Some((word, token)) = leaving(call, applied) {
            if self.log.is_poisoned() && matches!(word, Call::Withdraw(_)) {
                self.tell_heir(key, word, UNTOLD, None);
            }
            self.forget_owner(key, hash, token);
        }
    }

    /// The same for a call that has waited outside the gate. A close ends by itself what is in flight.
    #[cold]
    pub(crate) fn take_back_outside(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        applied: &Applied,
    ) {
        match (self.enter(), leaving(call, applied)) {
            (Ok(_inside), _) => self.take_back(key, hash, call, applied),
            (Err(_), Some((word, _))) if self.log.gate().is_passed_on() => {
                self.tell_heir(key, word, UNTOLD, None);
            }
            (Err(_), _) => {}
        }
    }

    /// Notes that an owner or a claimant left a key without a record.
    pub(super) fn left(&self, live: &Live) {
        if live.presence == Presence::Owner {
            self.log.release(live.reserved);
            self.ended_one(live.owner().is_some());
        }
    }

    /// Notes that a claim is in flight; whether it is another process's.
    pub(super) fn begun_one(&self, is_guests: bool) {
        // In this order, and ended in the reverse one: a close never takes a claim of this process for a guest's.
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        if is_guests {
            self.in_flight_of_guests.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub(super) fn ended_one(&self, is_guests: bool) {
        if is_guests {
            self.in_flight_of_guests.fetch_sub(1, Ordering::SeqCst);
        }
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
        let Ok(_inside) = self.enter() else {
            // A close interrupts claims in flight itself, or hands them on.
            if self.log.gate().is_passed_on() {
                self.tell_heir(key, call, reason, Some(writing));
            }
            return true;
        };
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
                    self.lose_owner(key, hash, (call, token), reason, &writing);
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
                self.lose_owner(key, hash, (call, token), reason, &writing);
                return true;
            }
        }
    }

    /// The owner left, and that can't be recorded: in a poisoned store, until it is reopened.
    fn lose_owner(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        (call, token): (Call, Token),
        reason: &str,
        writing: &Writing<'_>,
    ) {
        if self.log.is_poisoned() && !matches!(call, Call::Interrupt(_)) {
            self.tell_heir(key, call, reason, Some(writing));
        }
        self.forget_owner(key, hash, token);
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

    pub(super) fn forget_owner(&self, key: &Key<'_>, hash: KeyHash, token: Token) {
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

    /// Withdraws the claim that a call of another process was granted, if it was, on behalf of a caller that doesn't know that and
    /// never will. That is written on return.
    pub(crate) fn disown(&self, key: &Key<'_>, call: Origin) -> Result<()> {
        let inside = self.enter()?;
        if self.log.is_poisoned() {
            // What memory knows no longer is what the next host finds.
            return Err(self.log.poisoned());
        }
        let hash = self.hash(key);
        let found = self.look_in_memory(&*self.shard(hash)?, key, hash);
        drop(inside);
        let token = found.and_then(|(found, _)| {
            let made_by = found.guest.as_ref().and_then(|guest| guest.origin);
            let is_its = found.presence == Presence::Owner && made_by == Some(call);
            found.state.as_ref().filter(|_| is_its).map(|state| state.token)
        });
        let Some(token) = token else { return Ok(()) };
        let reason = Some("granted, and the answer was lost");
        let conditions = Conditions { reason, ..Conditions::default() };
        let level = Some(Durability::Flush);
        let writing = Writing { level, conditions, ..Writing::default() };
        self.apply(key, hash, Call::Withdraw(token), &writing).map(drop)
    }

    /// Removes a question that was dropped without a decision: the next claimant is asked. Doesn't wait.
    pub(crate) fn unask(&self, key: &Key<'_>, hash: KeyHash, question: u64) {
        if let Ok(_inside) = self.enter() {
            self.drop_question(key, hash, question);
        }
    }

    pub(super) fn drop_question(&self, key: &Key<'_>, hash: KeyHash, question: u64) {
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
