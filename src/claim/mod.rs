//! The answers to a claim ([`Claim`]), to a mark and to a resolution.
//!
//! - `guard`: the owner's side of a claim; `ending` is the call that ends it.
//! - `handle`: what the work may do with its claim.
//! - `progress`: what the work saves on the way.
//! - `step`: the steps of a claim, each done once across attempts.
//! - `downstream`: the keys for calls on other services.
//! - `keep_alive`: renews a claim in the background.
//! - `ticket`: hands a claim over to another task, process or request.
//! - `interrupted`: the side of a claimant that has to decide about an interrupted attempt.
//! - `key_call`: one call on a key, made alone or with others.
//! - `operator_call`: one call on a key that doesn't come from its claimants.
//! - `pending`: a call whose answer comes later.
//! - `attempt` and `recorded`: what other callers see.
//! - `seen`: converts the state found of a key into these types; `date` converts its times.
//! - `answer`: converts a decision of the rules into the answer.

mod answer;
mod attempt;
mod date;
mod downstream;
mod ending;
mod guard;
mod handle;
mod interrupted;
mod keep_alive;
mod key_call;
mod operator_call;
mod pending;
mod progress;
mod recorded;
pub(crate) mod seen;
mod step;
mod ticket;

pub use attempt::Attempt;
pub(crate) use date::{shown, wall, wall_millis};
pub(crate) use ending::EndingCall;
pub use guard::ClaimGuard;
pub(crate) use handle::Before;
pub use handle::ClaimHandle;
pub use interrupted::Interrupted;
pub(crate) use interrupted::Word;
pub use key_call::ToForget;
pub(crate) use key_call::{
    Claiming, Forgetting, KeyCall, Marking, Recording, claiming, has_entered, in_space, make,
    marking, send, send_in,
};
pub(crate) use operator_call::{Attaching, ForgettingClaimed, Resolving, Revoking};
pub use pending::Pending;
pub use recorded::{Expired, Recorded};
pub use seen::State;
pub use step::{Step, StepHandle};
pub use ticket::Ticket;

use std::fmt;

use crate::engine::Writing;
use crate::operation::Settings;
use crate::protocol::Conditions;
use crate::{Key, Outcome};

/// The answer to a claim: do the work, replay the record, or stay away.
///
/// The enum is exhaustive on purpose: a `match` needs no `_` arm in which a second run could hide. `Display` names the
/// owner of the key, how long the owner has been at work, and what to do.
///
/// ```
/// use onlyonce::{Claim, Store};
///
/// /// One operation, with every answer thought of.
/// fn answer(store: &Store, key: &str) -> Result<String, Box<dyn std::error::Error>> {
///     let claim = match store.claim(key)? {
///         Claim::Acquired(claim) => claim,
///         Claim::Interrupted(lost) => lost.take_over()?,
///         Claim::Completed(done) => return Ok(done.decode()?),
///         Claim::InProgress(attempt) => return Ok(format!("try again later: {attempt}")),
///         Claim::Mismatch(_) => return Err("this key was used for another request".into()),
///         other => return Err(other.refused().into()), // failed, held, delayed, expired
///     };
///     claim.complete("done")?;
///     Ok("done".to_owned())
/// }
/// # let store = onlyonce::testing::Sim::new(1).open()?;
/// # assert_eq!(answer(&store, "k").unwrap(), "done");
/// # assert_eq!(answer(&store, "k").unwrap(), "done");
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "a grant that is dropped leaves the key interrupted"]
#[derive(Debug)]
pub enum Claim {
    /// The key is yours, and no earlier attempt's effect is unknown: do the work and end the claim.
    Acquired(ClaimGuard),
    /// An earlier attempt ended without an outcome, so its effect is unknown. Nothing is granted yet: you decide.
    Interrupted(Interrupted),
    /// The work was done before; this is its result.
    Completed(Recorded),
    /// The work failed for good; this is the recorded failure.
    Failed(Recorded),
    /// The key's owner is at work, or a claimant decides about an interrupted attempt
    /// ([`is_being_decided`](Attempt::is_being_decided)).
    InProgress(Attempt),
    /// No claim of the key is granted until the key is resolved: after an interrupted attempt under
    /// [`OnInterrupted::Hold`](crate::OnInterrupted::Hold), after a call of `hold`, or beyond
    /// [`attempts_max`](crate::Policy::attempts_max). [`Attempt::reason`] names the cause.
    Held(Attempt),
    /// The last owner aborted, and asked that the next attempt wait ([`Abort::retry_in`](crate::Abort::retry_in)).
    /// [`Attempt::retry_in`] says for how long.
    Delayed(Attempt),
    /// The key was used for another request: the fingerprints differ. Don't show the recorded state to the client.
    Mismatch(State),
    /// The work was done, its result is no longer kept, and the key is still remembered: see
    /// [`remember_expired`](crate::Policy::remember_expired).
    Expired(Expired),
}

impl Claim {
    /// Turns an answer that is not a grant into an error, for `?`.
    ///
    /// An `Acquired` or `Interrupted` answer is released, as if it had been dropped.
    ///
    /// ```
    /// # use onlyonce::{RefusedKind, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let first = store.claim("nightly")?;
    /// let refused = store.claim("nightly")?.refused();
    /// assert_eq!(refused.kind(), RefusedKind::InProgress);
    /// assert_eq!(refused.to_string(), "in progress: attempt 1, since 0 s");
    /// # drop(first);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Cost
    /// Formats the message, and reads nothing. For a grant, add the cost of dropping it.
    #[must_use]
    pub fn refused(self) -> Refused {
        let (message, kind) = (self.to_string(), self.kind());
        let attempt = match self {
            Claim::InProgress(attempt) | Claim::Held(attempt) | Claim::Delayed(attempt) => {
                Some(attempt)
            }
            Claim::Interrupted(lost) => Some(lost.attempt().clone()),
            Claim::Acquired(_)
            | Claim::Completed(_)
            | Claim::Failed(_)
            | Claim::Mismatch(_)
            | Claim::Expired(_) => None,
        };
        Refused { message, kind, attempt }
    }

    fn kind(&self) -> RefusedKind {
        match self {
            Claim::Acquired(_) => RefusedKind::LetGo,
            Claim::Interrupted(_) => RefusedKind::Interrupted,
            Claim::Completed(_) => RefusedKind::Completed,
            Claim::Failed(_) => RefusedKind::Failed,
            Claim::InProgress(_) => RefusedKind::InProgress,
            Claim::Held(_) => RefusedKind::Held,
            Claim::Delayed(_) => RefusedKind::Delayed,
            Claim::Mismatch(_) => RefusedKind::Mismatch,
            Claim::Expired(_) => RefusedKind::Expired,
        }
    }
}

const OTHER_REQUEST: &str = "the key was already used for another request";
const NO_LONGER_KEPT: &str = "done before, and its result is no longer kept";

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Acquired(guard) => write!(f, "acquired: attempt {}", guard.attempt()),
            Claim::Interrupted(lost) => write!(
                f,
                "interrupted: {}; take over, say that it was not applied, or hold",
                lost.attempt()
            ),
            Claim::Completed(done) => {
                write!(f, "completed by attempt {}", done.attempt())?;
                done.missing().map_or(Ok(()), |why| write!(f, "; its result was not kept: {why}"))
            }
            Claim::Failed(done) => write!(f, "failed for good in attempt {}", done.attempt()),
            Claim::InProgress(attempt) => write!(f, "in progress: {attempt}"),
            Claim::Held(attempt) => {
                write!(f, "held: {attempt}; it waits for someone to resolve it")
            }
            Claim::Delayed(attempt) => write!(f, "delayed: {attempt}"),
            Claim::Mismatch(_) => f.write_str(OTHER_REQUEST),
            Claim::Expired(_) => f.write_str(NO_LONGER_KEPT),
        }
    }
}

/// A claim that was not granted, as an error.
///
/// ```
/// # use onlyonce::{Claim, Store};
/// # fn work() {}
/// fn once(store: &Store) -> Result<(), Box<dyn std::error::Error>> {
///     match store.claim("nightly")? {
///         Claim::Acquired(claim) => Ok(claim.complete(&())?),
///         Claim::Completed(_) => Ok(()),
///         other => Err(other.refused().into()), // "in progress: attempt 1, since 20 s"
///     }
/// }
/// ```
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    message: String,
    kind: RefusedKind,
    attempt: Option<Attempt>,
}

/// The answer that a [`Refused`] was made from.
///
/// ```
/// # use onlyonce::{RefusedKind, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # drop(store.claim("charge-7")?);
/// match store.claim("charge-7")?.refused().kind() {
///     RefusedKind::InProgress | RefusedKind::Delayed => println!("409, and try again"),
///     RefusedKind::Interrupted | RefusedKind::Held => println!("409, and a person looks into it"),
///     RefusedKind::Mismatch => println!("422"),
///     other => println!("{other:?}"),
/// }
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum RefusedKind {
    /// The answer was a grant, and `refused` released it.
    LetGo,
    /// An earlier attempt's fate is unknown, and no policy decides what to do.
    Interrupted,
    /// The work is recorded as completed.
    Completed,
    /// The work is recorded as failed.
    Failed,
    /// The key's owner is at work.
    InProgress,
    /// The key is held until it is resolved.
    Held,
    /// The next attempt has to wait.
    Delayed,
    /// The key was used for another request.
    Mismatch,
    /// The work was done, and its result is no longer kept.
    Expired,
}

impl Refused {
    /// Returns which answer the claim got.
    ///
    /// ```
    /// # use onlyonce::{RefusedKind, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("charge-7")?);
    /// let refused = store.claim("charge-7")?.refused();
    /// assert_eq!(refused.kind(), RefusedKind::Interrupted);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn kind(&self) -> RefusedKind {
        self.kind
    }

    /// Returns the attempt that the key was refused for: the one in progress, interrupted, held, or delayed. `None` for any
    /// other answer.
    ///
    /// ```
    /// # use onlyonce::{Abort, Error, Run, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # let onlyonce::Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// claim.abort(Abort::new("the server is busy").retry_in(Duration::from_secs(30)))?;
    /// let run = store.run("mail-1", |_claim| Ok::<_, Error>("sent".to_owned()))?;
    /// let Run::Refused(refused) = run else { unreachable!() };
    /// let retry_after = refused.attempt().and_then(|attempt| attempt.retry_in());
    /// assert_eq!(retry_after, Some(Duration::from_secs(30)));
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn attempt(&self) -> Option<&Attempt> {
        self.attempt.as_ref()
    }

    /// The same refusal with a hint of what would have helped.
    pub(crate) fn hinting(mut self, hint: &str) -> Self {
        self.message = format!("{} ({hint})", self.message);
        self
    }
}

/// The answer to a mark. See [`Store::mark`](crate::Store::mark).
///
/// `Display` says what is known of the key, and never shows a result.
///
/// ```
/// # use onlyonce::{Mark, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// match store.mark("message-7")? {
///     Mark::First => println!("handle it"),
///     Mark::Again => println!("seen before"),
///     Mark::InProgress(attempt) | Mark::Interrupted(attempt) => println!("claimed by others: {attempt}"),
///     other => println!("{other:?}"),
/// }
/// # assert!(matches!(store.mark("message-7")?, Mark::Again));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "the work is to be done only if the mark was the first"]
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Mark {
    /// The key was not seen before, and is marked now.
    First,
    /// The key was marked or completed before.
    Again,
    /// The key is claimed, and its owner is at work.
    InProgress(Attempt),
    /// An attempt ended without an outcome, or the key is held.
    Interrupted(Attempt),
    /// The last owner aborted, and asked that the next attempt wait.
    Delayed(Attempt),
    /// The key was used for another request: the fingerprints differ.
    Mismatch(State),
    /// The work was done, and its result is no longer kept.
    Expired(Expired),
}

impl Mark {
    /// Returns whether this mark was the first, so that the work is to be done.
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// let messages = ["a", "b", "a"];
    /// let mut handled = Vec::new();
    /// for message in messages {
    ///     if store.mark(message)?.is_first() {
    ///         handled.push(message);
    ///     }
    /// }
    /// assert_eq!(handled, ["a", "b"]);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn is_first(&self) -> bool {
        matches!(self, Mark::First)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mark::First => f.write_str("marked: the first"),
            Mark::Again => f.write_str("marked or completed before"),
            Mark::InProgress(attempt) => write!(f, "in progress: {attempt}"),
            Mark::Interrupted(attempt) => write!(f, "interrupted or held: {attempt}"),
            Mark::Delayed(attempt) => write!(f, "delayed: {attempt}"),
            Mark::Mismatch(_) => f.write_str(OTHER_REQUEST),
            Mark::Expired(_) => f.write_str(NO_LONGER_KEPT),
        }
    }
}

/// An operator's decision about an interrupted or held attempt. See [`Store::resolve`](crate::Store::resolve).
///
/// ```
/// # use onlyonce::{Claim, Resolution, State, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # drop(store.claim("mail-1")?);
/// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
/// // The outbox has no such mail, so it was not sent.
/// assert!(store.resolve(&lost, Resolution::retry("the outbox has no such mail"))?);
/// assert!(matches!(store.claim("mail-1")?, Claim::Acquired(_)));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "nothing is resolved before `resolve` is given it"]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Resolution {
    /// Records this outcome, because the effect happened, or never will happen.
    Record(Outcome),
    /// Allows a retry, because the effect did not happen: the next claim is granted, however many attempts there were.
    /// The text says why, for people; [`retry`](Resolution::retry) makes one.
    ///
    /// That claim may be one with another [`fingerprint`](crate::Operation::fingerprint): a request that had no effect may be
    /// corrected. So if the decision was about the request, too, say so in the request's key, or compare
    /// [`Attempt::fingerprint`] with the request before the claim is made.
    Retry(String),
}

impl Resolution {
    /// Makes a [`Retry`](Resolution::Retry) with this reason.
    ///
    /// ```
    /// # use onlyonce::{Resolution, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// store.resolve(&lost, Resolution::retry("the outbox has no such mail"))?;
    /// let Some(State::Aborted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// assert_eq!(lost.reason(), Some("the outbox has no such mail"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn retry(reason: impl Into<String>) -> Self {
        Resolution::Retry(reason.into())
    }
}

/// What a grant's record says, and the space it reserves for its ending.
pub(crate) fn granting<'a>(
    result_bytes_max: u32,
    settings: &'a Settings,
    key: &Key<'_>,
    fingerprint: Option<crate::Fingerprint>,
) -> Writing<'a> {
    Writing {
        level: Some(settings.claim_durability),
        reserve: reserve(result_bytes_max, settings.reserve_bytes, key.bytes().len()),
        conditions: Conditions {
            lease_ms: settings.lease_ms,
            fingerprint,
            hold: settings.on_interrupted == Some(crate::OnInterrupted::Hold),
            owner: settings.owner.as_deref(),
            // For the abort of a grant that is never delivered.
            retention_ms: settings.retention_ms,
            ..Conditions::default()
        },
        outcome: None,
        sending: None,
    }
}

/// Space for the ending's record: the result as declared, or at least an abort's labels; the key; the fixed fields. What is
/// saved of its progress comes on top.
pub(crate) fn reserve(result_bytes_max: u32, reserve_bytes: u32, key_bytes: usize) -> u64 {
    let labels = 3 * crate::limits::LABEL_BYTES_MAX as u64;
    let content = u64::from(reserve_bytes.min(result_bytes_max)).max(labels);
    content + key_bytes as u64 + 256
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{KEY_BYTES_MAX, LABEL_BYTES_MAX, STORE_MILLIS_MAX};
    use crate::record::{Body, Draft, Ending, Rare};
    use crate::testing::Sim;
    use crate::types::{Origin, SessionId, StoreMillis, Token};
    use crate::value::NOT_KEPT;

    /// A record that ends a claim without a result has space on a full disk, however little was reserved.
    #[test]
    fn an_ending_without_a_result_is_within_every_reserve() {
        let store = Sim::small(1).open().unwrap();
        let label = "r".repeat(LABEL_BYTES_MAX);
        let session = SessionId::new(1).unwrap();
        let origin = Some(Origin { session, request: u64::MAX, item: u32::MAX });
        for key_bytes in [1, 36, KEY_BYTES_MAX] {
            let key = Key::from(vec![b'k'; key_bytes]);
            let longest = Body {
                key_kind: key.kind(),
                key: key.bytes(),
                time: StoreMillis(STORE_MILLIS_MAX),
                token: Some(Token(u64::MAX)),
                life: Some(Token(u64::MAX)),
                open_fate: Some(Token(u64::MAX)),
                attempt: u32::MAX,
                since: Some(StoreMillis(u64::MAX)),
                expires_at: Some(StoreMillis(u64::MAX)),
                memory_until: Some(StoreMillis(u64::MAX)),
                remembers: true,
                wall_offset: i64::MIN,
                fingerprint: Some([0xff; 16]),
                hold: true,
                owner: &label,
                reason: &label,
                codec: NOT_KEPT,
                rare: Some(Box::new(Rare { by: &label, origin, ..Rare::default() })),
                ..Body::default()
            };
            for reserve_bytes in [0, 1, 4096] {
                let room = reserve(store.result_bytes_max(), reserve_bytes, key.bytes().len());
                for ending in [Ending::Completed, Ending::Failed, Ending::Held] {
                    let len = Draft::end(ending, &longest).len();
                    assert!(len <= room, "{ending:?} of {len} bytes, {room} kept");
                }
            }
        }
    }
}
