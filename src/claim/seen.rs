//! Converts the state found of a key into the types of the public API.

use std::fmt;
use std::sync::Arc;

use super::{Attempt, Expired, Recorded};
use crate::backend::Shared;
use crate::engine::{Applied, Found, Seen, Stored};
use crate::protocol::{
    Answer, Asker, KeyState, Phase, Presence, Sight, is_being_decided, is_expired, phase_shown,
    shown,
};
use crate::types::StoreMillis;
use crate::{Error, ErrorKind, Key, Result};

/// The state of a key, as [`Store::get`](crate::Store::get) returns it.
///
/// `Display` and `Debug` describe the attempt or the record, and never show a result. Two states are equal if the store told the
/// same at the same time: an attempt's lease, for example, is part of it. To learn whether a key changed, let
/// [`forget`](crate::Store::forget) or [`resolve`](crate::Store::resolve) compare.
///
/// ```
/// # use onlyonce::{State, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # drop(store.claim("task-42")?);
/// match store.get("task-42")? {
///     Some(State::Interrupted(a) | State::Held(a)) => println!("look into it: {a}"),
///     Some(State::Completed(done)) => println!("{} bytes", done.result().len()),
///     other => println!("{other:?}"),
/// }
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum State {
    /// The key's owner is at work, or a claimant decides about an interrupted attempt
    /// ([`is_being_decided`](Attempt::is_being_decided)).
    InProgress(Attempt),
    /// An attempt ended without an outcome, and no claimant decides about it right now.
    Interrupted(Attempt),
    /// The key is held until it is resolved.
    Held(Attempt),
    /// The last attempt had no effect, according to its owner; the next claim is granted.
    Aborted(Attempt),
    /// A result is recorded.
    Completed(Recorded),
    /// A final failure is recorded.
    Failed(Recorded),
    /// The work was done, its result is no longer kept, and the key is still remembered.
    Expired(Expired),
}

impl State {
    /// Returns the key whose state it is.
    ///
    /// ```
    /// # use onlyonce::{Key, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let _ = store.mark("message-7")?;
    /// let seen = store.get("message-7")?.expect("it was marked");
    /// assert_eq!(seen.key(), &Key::from("message-7"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn key(&self) -> &Key<'static> {
        self.stored_key().shown()
    }

    /// The key as it is stored: in its namespace.
    pub(crate) fn stored_key(&self) -> &Key<'static> {
        match self {
            State::InProgress(attempt)
            | State::Interrupted(attempt)
            | State::Held(attempt)
            | State::Aborted(attempt) => attempt.stored_key(),
            State::Completed(record) | State::Failed(record) => record.stored_key(),
            State::Expired(expired) => &expired.key,
        }
    }

    /// What tells it from every other state of its key.
    pub(crate) fn sight(&self) -> Sight {
        let (done, phase) = match self {
            State::InProgress(attempt)
            | State::Interrupted(attempt)
            | State::Held(attempt)
            | State::Aborted(attempt) => return attempt.sight(),
            State::Completed(done) => (done, Phase::Completed),
            State::Failed(failed) => (failed, Phase::Failed),
            State::Expired(expired) => return Sight::Expired { until: expired.until },
        };
        Sight::Record { token: done.token(), phase, time: done.time }
    }
}

impl fmt::Display for State {
    /// Shows no recorded value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::InProgress(attempt) => write!(f, "in progress: {attempt}"),
            State::Interrupted(attempt) => write!(f, "interrupted: {attempt}"),
            State::Held(attempt) => write!(f, "held: {attempt}"),
            State::Aborted(attempt) => write!(f, "aborted: {attempt}"),
            State::Completed(done) => write!(f, "completed: {done}"),
            State::Failed(failed) => write!(f, "failed for good: {failed}"),
            State::Expired(expired) => write!(f, "expired: {expired}"),
        }
    }
}

/// The error for an answer that the rules never give to that call.
#[cold]
pub(crate) fn unexpected(shared: &Shared, call: &str, answer: Answer) -> Error {
    shared.bug(format_args!("{call} was answered {answer:?}"))
}

/// The error for an answer that lacks what belongs to it.
#[cold]
pub(crate) fn lacking(shared: &Shared, what: &str) -> Error {
    shared.bug(format_args!("an answer lacks {what}"))
}

/// What the answer is about.
fn state_found<'f>(shared: &Shared, found: Option<&'f Found>) -> Result<&'f KeyState> {
    let state = found.and_then(|found| found.state.as_ref());
    state.ok_or_else(|| lacking(shared, "the state of its key"))
}

/// `instead`: what the caller can do besides waiting.
pub(crate) fn in_progress(key: &Key<'_>, instead: &str) -> Error {
    let message = format!("{key} is claimed right now: wait for its owner, or {instead}");
    Error::new(ErrorKind::InProgress, message)
}

pub(crate) fn seen_attempt(key: &Key<'_>, applied: &Applied, shared: &Shared) -> Result<Attempt> {
    let found = applied.found.as_deref();
    let mut state = state_found(shared, found)?.clone();
    let (presence, lease_until, asker) = found.map_or((Presence::Nobody, None, None), |found| {
        (found.presence, found.lease_until, found.asker.as_ref())
    });
    let on_it = shown(&mut state, presence, lease_until, applied.now);
    // Others see the claimant that was asked on the key, and not the attempt that is over.
    let is_decided = is_being_decided(&state, on_it.0) && applied.answer == Answer::InProgress;
    let is_claimed = phase_shown(&state, on_it.0) == Phase::Claimed;
    let lease_until = on_it.1.filter(|_| is_decided || is_claimed);
    let attempt = Attempt::new(key, state, (on_it.0, lease_until), applied.now, shared.secret());
    Ok(match asker.filter(|_| is_decided) {
        Some(asker) => attempt.being_decided(asker),
        None => attempt,
    })
}

#[inline]
pub(crate) fn recorded(key: &Key<'_>, applied: Applied, shared: &Shared) -> Result<Recorded> {
    let mut found = applied.found;
    let outcome = found.as_mut().and_then(|found| found.outcome.take());
    Recorded::read(shared, key, state_found(shared, found.as_deref())?, outcome)
}

pub(crate) fn expired(key: &Key<'_>, applied: &Applied, shared: &Shared) -> Result<Expired> {
    Expired::new(shared, key, state_found(shared, applied.found.as_deref())?)
}

pub(crate) fn shown_state(key: &Key<'_>, applied: Applied, shared: &Shared) -> Result<State> {
    let found = applied.found.map(|found| *found).unwrap_or_default();
    let mut state = found.state.ok_or_else(|| lacking(shared, "the state of its key"))?;
    let on_it = shown(&mut state, found.presence, found.lease_until, applied.now);
    state_in(key, state, on_it, found.asker.as_ref(), found.outcome, applied.now, shared)
}

/// Converts the state found of a key into the public one.
pub(crate) fn state_of(key: &Key<'_>, seen: Seen, shared: &Shared) -> Result<State> {
    let on_it = (seen.presence, seen.lease_until);
    state_in(key, seen.state, on_it, seen.asker.as_ref(), seen.outcome, seen.now, shared)
}

fn state_in(
    key: &Key<'_>,
    state: KeyState,
    (presence, lease_until): (Presence, Option<StoreMillis>),
    asker: Option<&Arc<Asker>>,
    outcome: Option<Stored>,
    now: StoreMillis,
    shared: &Shared,
) -> Result<State> {
    if is_expired(&state, now) {
        return Expired::new(shared, key, &state).map(State::Expired);
    }
    let phase = phase_shown(&state, presence);
    let asker = asker.filter(|_| is_being_decided(&state, presence));
    let lease_until = lease_until.filter(|_| phase == Phase::Claimed || asker.is_some());
    let attempt = |state| Attempt::new(key, state, (presence, lease_until), now, shared.secret());
    if let Some(asker) = asker {
        return Ok(State::InProgress(attempt(state).being_decided(asker)));
    }
    Ok(match phase {
        Phase::Claimed => State::InProgress(attempt(state)),
        Phase::Interrupted => State::Interrupted(attempt(state)),
        Phase::Held => State::Held(attempt(state)),
        Phase::Aborted => State::Aborted(attempt(state)),
        Phase::Completed => State::Completed(Recorded::read(shared, key, &state, outcome)?),
        Phase::Failed => State::Failed(Recorded::read(shared, key, &state, outcome)?),
    })
}
