//! The rules of a key's life, pure: state × call → answer and next state.
//!
//! Promises: no I/O, no clock, no memory; every backend calls it. The table it implements stands in
//! `docs/protocol.md`, and a test walks every cell. Never: knows a log, a lock or a thread.

use std::sync::Arc;

use crate::limits::MEMORY_MILLIS;
use crate::operation::{Fingerprint, OnInterrupted};
use crate::types::{StoreMillis, Token};

/// What the newest record says of a key, except its result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyState {
    /// What the record leaves the key in.
    pub phase: Phase,
    /// The attempt's fencing token.
    pub token: Token,
    /// Token of the key's first claim since it was absent.
    pub life: Token,
    /// Token of the oldest attempt whose fate is open, except the current one.
    pub open_fate: Option<Token>,
    /// The attempt's number since the key was absent, from 1.
    pub attempt: u32,
    /// Attempts up to this one no longer count for `attempts_max`: the key was resolved for a retry.
    pub forgiven: u32,
    /// When the attempt was claimed.
    pub since: StoreMillis,
    /// When the record was made: of an ending, when the attempt ended.
    pub time: StoreMillis,
    /// When an outcome or an abort is no longer kept; `None`: it is kept for ever.
    pub expires_at: Option<StoreMillis>,
    /// When the key's memory passes, in store time: that of this outcome once it has expired, if it `remembers`; otherwise
    /// that which an older outcome may have left, and which this state hides.
    pub memory_until: Option<StoreMillis>,
    /// An outcome that is no longer kept is answered `Expired` until the memory passes.
    pub remembers: bool,
    /// Wall time minus store time, in milliseconds; only to show times.
    pub wall_offset: i64,
    /// The request's fingerprint, if one was given.
    pub fingerprint: Option<Fingerprint>,
    /// The attempt asked that its interruption be held.
    pub hold: bool,
    /// Who claimed.
    pub owner: Option<Arc<str>>,
    /// Why the attempt ended so, for people.
    pub reason: Option<Arc<str>>,
}

/// What a record leaves its key in. A claim whose process is gone reads `Claimed` and is interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// An attempt began and has no ending.
    Claimed,
    /// An attempt ended without an outcome: its fate is open.
    Interrupted,
    /// Granted to nobody until it is resolved.
    Held,
    /// The attempt had no effect, or was resolved for a retry.
    Aborted,
    /// Done, with a result.
    Completed,
    /// Failed for good, with a recorded failure.
    Failed,
}

/// What memory adds to a record: who is on the key right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Presence {
    /// Nobody.
    #[default]
    Nobody,
    /// An owner of this process holds the claim, and its lease has not lapsed unnoticed.
    Owner,
    /// A claimant was told of the interruption and has not decided.
    Asked,
}

/// One call on a key, as far as the rules care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// A claimant asks for the key.
    Claim(Wants),
    /// The key is marked as done, unless it was seen before.
    Mark(Option<Fingerprint>),
    /// Word of a claimant that was asked, naming the attempt it saw: the key is granted, and the earlier fate stays open.
    TakeOver(Token),
    /// The attempt had no effect, nor had any before it: the key is granted, and all fates are closed.
    NotApplied(Token),
    /// The key is held until it is resolved.
    Hold(Token),
    /// The owner's ending: done, with a result.
    Complete(Token),
    /// It failed for good.
    Fail(Token),
    /// It had no effect.
    Abort(Token),
    /// Done, but its result is not kept: no claim is granted until the key is resolved.
    Park(Token),
    /// The owner dropped its guard without an ending.
    Interrupt(Token),
    /// The owner renews its lease.
    Renew(Token),
    /// An operator's word, naming the attempt it saw: done, with a result.
    ResolveComplete(Token),
    /// It failed for good.
    ResolveFail(Token),
    /// It had no effect, and is to be tried again.
    ResolveRetry(Token),
    /// The key is to be as if it had never been, unless its owner is at work.
    Forget,
    /// The same of a key that is claimed under this token.
    ForgetClaimed(Token),
}

impl Call {
    /// The token of the owner whose call it is.
    pub(crate) fn of_owner(self) -> Option<Token> {
        match self {
            Call::Complete(token)
            | Call::Fail(token)
            | Call::Abort(token)
            | Call::Park(token)
            | Call::Interrupt(token)
            | Call::Renew(token) => Some(token),
            _ => None,
        }
    }
}

/// What a claimant asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wants {
    /// The request's fingerprint: another one under the same key is a mismatch.
    pub fingerprint: Option<Fingerprint>,
    /// What the claimant does about an interruption; `None`: it is asked.
    pub on_interrupted: Option<OnInterrupted>,
    /// At how many attempts no further one is granted.
    pub attempts_max: Option<u32>,
    /// The claimant can find out what became of an attempt, so it is asked where it would be refused.
    pub reconciles: bool,
}

/// What a call answers, and what becomes of the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Decision {
    pub(crate) answer: Answer,
    /// `None`: nothing is written.
    pub(crate) next: Option<Next>,
}

/// What a call is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The key is the caller's. Of a mark: it was the first.
    Granted,
    /// Told of the interruption; the key waits in memory for a word.
    Asked,
    /// Another attempt is at work.
    InProgress,
    /// Nobody is granted the key until it is resolved.
    Held,
    /// As `Held`, because the next attempt would be beyond `attempts_max`.
    TooManyAttempts,
    /// Done before; of a mark: marked before.
    Completed,
    /// Failed for good before.
    Failed,
    /// The key was used for another request.
    Mismatch,
    /// Done, and its result is no longer kept.
    Expired,
    /// Of `mark`: an attempt's fate is open.
    Interrupted,
    /// The call did what it says.
    Done,
    /// There was nothing to do, or it is no longer what the caller saw.
    Unchanged,
    /// Another attempt has the key, or the claim has ended.
    Lost,
}

/// The record to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// A claim with a token of its own.
    Claimed {
        attempt: u32,
        forgiven: u32,
        life: Option<Token>,
        open_fate: Option<Token>,
    },
    /// A mark: completed by a record that is its own token.
    Marked {
        attempt: u32,
        life: Option<Token>,
    },
    /// The same attempt, in another phase; its token stays, unless `spent`.
    Same {
        phase: Phase,
        open_fate: Option<Token>,
        spent: bool,
        /// No attempt so far counts for `attempts_max` any more.
        forgives: bool,
    },
    Absent,
}

/// Decides one call on one key. `state` is `None` for an absent key.
pub(crate) fn decide(
    state: Option<&KeyState>,
    presence: Presence,
    call: Call,
    now: StoreMillis,
) -> Decision {
    if state.is_some_and(|state| is_remembered(state, now)) {
        return remembered(call);
    }
    let state = state.filter(|state| !is_expired(state, now));
    match call {
        Call::Claim(wants) => claim(state, presence, wants),
        Call::Mark(fingerprint) => mark(state, presence, fingerprint),
        Call::TakeOver(seen) => word(state, presence, seen, |state| Next::Claimed {
            attempt: state.attempt.saturating_add(1),
            forgiven: state.forgiven,
            life: Some(state.life),
            open_fate: Some(state.open_fate.unwrap_or(state.token)),
        }),
        Call::NotApplied(seen) => word(state, presence, seen, |state| Next::Claimed {
            attempt: state.attempt.saturating_add(1),
            forgiven: state.forgiven,
            life: Some(state.life),
            open_fate: None,
        }),
        Call::Hold(seen) => word(state, presence, seen, |state| same(state, Phase::Held)),
        Call::Complete(token) => ending(state, token, |_| completed(Phase::Completed)),
        Call::Fail(token) => ending(state, token, |_| completed(Phase::Failed)),
        Call::Abort(token) => ending(state, token, aborted),
        Call::Park(token) => ending(state, token, |state| same(state, Phase::Held)),
        Call::Interrupt(token) => interrupt(state, presence, token),
        Call::Renew(token) => renew(state, presence, token),
        Call::ResolveComplete(seen) => resolve(state, presence, seen, completed(Phase::Completed)),
        Call::ResolveFail(seen) => resolve(state, presence, seen, completed(Phase::Failed)),
        Call::ResolveRetry(seen) => resolve(state, presence, seen, tried_again()),
        Call::Forget => match (state, presence) {
            (None, _) => told(Answer::Unchanged),
            (Some(state), Presence::Owner) if state.phase == Phase::Claimed => {
                told(Answer::InProgress)
            }
            (Some(_), _) => done(Next::Absent),
        },
        Call::ForgetClaimed(token) => match state {
            Some(state)
                if state.token == token && phase_shown(state, presence) == Phase::Claimed =>
            {
                done(Next::Absent)
            }
            _ => told(Answer::Lost),
        },
    }
}

/// Whether a result's or an abort's retention has passed. Claims, interrupted and held keys never expire.
pub(crate) fn is_expired(state: &KeyState, now: StoreMillis) -> bool {
    let may_expire = matches!(state.phase, Phase::Completed | Phase::Failed | Phase::Aborted);
    may_expire && state.expires_at.is_some_and(|at| at <= now)
}

/// From when on what a record says of its key is dead, whatever follows; `None`: until another record says otherwise.
/// `phase` is what it leaves the key in, `None` that it forgets it. Until its memory passes it is needed: it leaves one, or
/// hides an older one.
pub(crate) fn ends_at(
    phase: Option<Phase>,
    expires_at: Option<StoreMillis>,
    memory_until: Option<StoreMillis>,
) -> Option<StoreMillis> {
    let own = match phase {
        None => StoreMillis(0),
        Some(Phase::Completed | Phase::Failed | Phase::Aborted) => expires_at?,
        Some(Phase::Claimed | Phase::Interrupted | Phase::Held) => return None,
    };
    Some(memory_until.map_or(own, |until| own.max(until)))
}

/// Whether the outcome has expired, and a late retry is to be told so.
pub(crate) fn is_remembered(state: &KeyState, now: StoreMillis) -> bool {
    let is_outcome = matches!(state.phase, Phase::Completed | Phase::Failed);
    let is_kept = state.memory_until.is_some_and(|until| until > now);
    is_outcome && state.remembers && is_kept && is_expired(state, now)
}

/// When a memory passes that is to last until then: at the end of that minute, wherever it is kept. Files of expired keys
/// count in minutes: were it to pass earlier in the log, a key could be forgotten there and be told by the file for the
/// rest of the minute.
pub(crate) fn passes_at(until: StoreMillis) -> StoreMillis {
    let minutes = until.0.div_ceil(MEMORY_MILLIS).min(u64::from(u32::MAX));
    StoreMillis(minutes * MEMORY_MILLIS)
}

/// A memory answers those who would do the work, and can be forgotten. To all others the key is absent.
fn remembered(call: Call) -> Decision {
    match call {
        Call::Claim(_) | Call::Mark(_) => told(Answer::Expired),
        Call::Forget => done(Next::Absent),
        _ => decide(None, Presence::Nobody, call, StoreMillis(0)),
    }
}

/// The state in which the key is shown.
pub(crate) fn phase_shown(state: &KeyState, presence: Presence) -> Phase {
    match (state.phase, presence) {
        (Phase::Claimed, Presence::Owner) => Phase::Claimed,
        (Phase::Claimed, _) => Phase::Interrupted,
        (phase, _) => phase,
    }
}

fn claim(state: Option<&KeyState>, presence: Presence, wants: Wants) -> Decision {
    let Some(state) = state else {
        return granted(Next::Claimed { attempt: 1, forgiven: 0, life: None, open_fate: None });
    };
    let phase = phase_shown(state, presence);
    // A client may mend a request that had no effect.
    if phase != Phase::Aborted && differs(state.fingerprint, wants.fingerprint) {
        return told(Answer::Mismatch);
    }
    let attempt = state.attempt.saturating_add(1);
    // What was forgiven is no more than there were: a record that says otherwise doesn't parse.
    let too_many = wants.attempts_max.is_some_and(|max| attempt - state.forgiven > max);
    match phase {
        Phase::Claimed => told(Answer::InProgress),
        Phase::Completed => told(Answer::Completed),
        Phase::Failed => told(Answer::Failed),
        Phase::Held => told(Answer::Held),
        Phase::Aborted if too_many => told(Answer::TooManyAttempts),
        Phase::Aborted => {
            let (life, forgiven) = (Some(state.life), state.forgiven);
            granted(Next::Claimed { attempt, forgiven, life, open_fate: None })
        }
        // One is asked at a time; to all others the key is busy.
        Phase::Interrupted if presence == Presence::Asked => told(Answer::InProgress),
        Phase::Interrupted if too_many => told(Answer::TooManyAttempts),
        Phase::Interrupted => {
            let hold = state.hold || wants.on_interrupted == Some(OnInterrupted::Hold);
            told(if hold && !wants.reconciles { Answer::Held } else { Answer::Asked })
        }
    }
}

/// Two requests are known to differ only if both said what they are.
fn differs(recorded: Option<Fingerprint>, given: Option<Fingerprint>) -> bool {
    matches!((recorded, given), (Some(recorded), Some(given)) if recorded != given)
}

fn mark(
    state: Option<&KeyState>,
    presence: Presence,
    fingerprint: Option<Fingerprint>,
) -> Decision {
    let Some(state) = state else {
        return granted(Next::Marked { attempt: 1, life: None });
    };
    let phase = phase_shown(state, presence);
    if phase != Phase::Aborted && differs(state.fingerprint, fingerprint) {
        return told(Answer::Mismatch);
    }
    match phase {
        Phase::Claimed => told(Answer::InProgress),
        Phase::Completed | Phase::Failed => told(Answer::Completed),
        Phase::Interrupted | Phase::Held => told(Answer::Interrupted),
        Phase::Aborted => granted(Next::Marked {
            attempt: state.attempt.saturating_add(1),
            life: Some(state.life),
        }),
    }
}

/// A word about an interrupted attempt counts only while it is still the attempt that was seen.
fn word(
    state: Option<&KeyState>,
    presence: Presence,
    seen: Token,
    next: impl FnOnce(&KeyState) -> Next,
) -> Decision {
    match state {
        Some(state)
            if state.token == seen && phase_shown(state, presence) == Phase::Interrupted =>
        {
            Decision { answer: Answer::Granted, next: Some(next(state)) }
        }
        _ => told(Answer::Lost),
    }
}

/// The owner's ending counts while its token is the key's, lapsed or not: position orders, the token fences.
fn ending(
    state: Option<&KeyState>,
    token: Token,
    next: impl FnOnce(&KeyState) -> Next,
) -> Decision {
    match state {
        Some(state) if state.token == token && is_open(state.phase) => done(next(state)),
        _ => told(Answer::Lost),
    }
}

fn is_open(phase: Phase) -> bool {
    matches!(phase, Phase::Claimed | Phase::Interrupted | Phase::Held)
}

/// An outcome, or an operator's word, closes every fate that was open.
fn completed(phase: Phase) -> Next {
    Next::Same { phase, open_fate: None, spent: false, forgives: false }
}

/// An operator's word that the work is to be done again, however often it was tried.
fn tried_again() -> Next {
    Next::Same { phase: Phase::Aborted, open_fate: None, spent: false, forgives: true }
}

/// An abort speaks for its own attempt only: an older open fate leads back to interrupted, and a hold stays
/// one until it is resolved. Either way the token is spent, so the record is a token of its own.
fn aborted(state: &KeyState) -> Next {
    match (state.phase, state.open_fate) {
        (Phase::Held, open_fate) => {
            Next::Same { phase: Phase::Held, open_fate, spent: true, forgives: false }
        }
        (_, open_fate @ Some(_)) => {
            Next::Same { phase: Phase::Interrupted, open_fate, spent: true, forgives: false }
        }
        (_, None) => completed(Phase::Aborted),
    }
}

fn interrupt(state: Option<&KeyState>, presence: Presence, token: Token) -> Decision {
    match state {
        Some(state) if state.token == token && phase_shown(state, presence) == Phase::Claimed => {
            done(same(state, Phase::Interrupted))
        }
        _ => told(Answer::Unchanged),
    }
}

fn renew(state: Option<&KeyState>, presence: Presence, token: Token) -> Decision {
    match state {
        Some(state) if state.token == token => match phase_shown(state, presence) {
            // The lease of a claim that was not detached lives in memory only.
            Phase::Claimed => told(Answer::Done),
            Phase::Interrupted => done(same(state, Phase::Claimed)),
            Phase::Held => told(Answer::Held),
            _ => told(Answer::Lost),
        },
        _ => told(Answer::Lost),
    }
}

fn resolve(state: Option<&KeyState>, presence: Presence, seen: Token, next: Next) -> Decision {
    match state {
        Some(state) if state.token == seen => match phase_shown(state, presence) {
            // Aborted: beyond `attempts_max` nobody but an operator gets the key any further.
            Phase::Interrupted | Phase::Held | Phase::Aborted => done(next),
            Phase::Claimed => told(Answer::InProgress),
            Phase::Completed | Phase::Failed => told(Answer::Unchanged),
        },
        _ => told(Answer::Unchanged),
    }
}

fn same(state: &KeyState, phase: Phase) -> Next {
    Next::Same { phase, open_fate: state.open_fate, spent: false, forgives: false }
}

fn granted(next: Next) -> Decision {
    Decision { answer: Answer::Granted, next: Some(next) }
}

fn done(next: Next) -> Decision {
    Decision { answer: Answer::Done, next: Some(next) }
}

fn told(answer: Answer) -> Decision {
    Decision { answer, next: None }
}

impl KeyState {
    /// What is left of a key that expired and is remembered.
    pub(crate) fn of_memory(completed: StoreMillis, until: StoreMillis) -> Self {
        let none = Token(0);
        KeyState {
            phase: Phase::Completed,
            token: none,
            life: none,
            open_fate: None,
            attempt: 1,
            forgiven: 0,
            since: completed,
            time: completed,
            expires_at: Some(StoreMillis(0)),
            memory_until: Some(until),
            remembers: true,
            wall_offset: 0,
            fingerprint: None,
            hold: false,
            owner: None,
            reason: None,
        }
    }
}

#[cfg(test)]
mod tests;
