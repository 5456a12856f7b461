//! What a claim is answered with, and what its owner may do: [`Claim`], [`ClaimGuard`], [`Interrupted`].
//!
//! Promises: nothing borrows the store; an ending consumes its guard; a guard that goes without a word leaves
//! the attempt interrupted, as a crash at that place would. What each ending leaves stands in
//! `docs/protocol.md`, "What each ending leaves".

pub(crate) mod seen;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::engine::{Claimed, Engine, Outcome as EncodedOutcome, Stored, Writing};
use crate::operation::{Settings, cut_label, decode_meta, encode_meta};
use crate::protocol::{Answer, Call, KeyState};
use crate::shared::Shared;
use crate::sync::{AtomicBool, Ordering};
use crate::types::{KeyHash, StoreMillis, Token, WallMillis};
use crate::value::{Format, NOT_KEPT};
use crate::{Abort, Encode, Error, ErrorKind, Key, OnDrop, OnUnkept, Outcome, Payload, Result};

/// The answer to a claim: do the work, replay what was recorded, or stay away.
///
/// Exhaustive on purpose: there is no `_` arm in which a second run could hide. `Display` says who is on
/// the key, since when, and what to do.
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
    /// Yours, and no attempt's fate is open: do the work and end the claim.
    Acquired(ClaimGuard),
    /// An earlier attempt ended without a word, and what became of it is unknown. Nothing is granted yet:
    /// you decide.
    Interrupted(Interrupted),
    /// Done before: here is the result.
    Completed(Recorded),
    /// It failed before, for good: here is the recorded failure.
    Failed(Recorded),
    /// Somebody is on it.
    InProgress(Attempt),
    /// Nobody is granted the key until someone resolves it: an interrupted attempt under
    /// [`OnInterrupted::Hold`](crate::OnInterrupted::Hold), a key held by word, or an attempt beyond
    /// [`attempts_max`](crate::Policy::attempts_max). The reason is in the attempt.
    Held(Attempt),
    /// The last owner asked that the next attempt wait. Not built yet: no call of this version asks for it.
    Delayed(Attempt),
    /// The key was used for another request: the fingerprints differ. What is recorded is not for the
    /// client's eyes.
    Mismatch(State),
    /// It was done, its result is no longer kept, and the key is still remembered: see
    /// [`remember_expired`](crate::Policy::remember_expired).
    Expired(Expired),
}

impl Claim {
    /// Everything but a grant as an error, for `?`.
    ///
    /// Of a grant (`Acquired`, `Interrupted`) it lets go, as dropping it would.
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
    /// Formats the message; nothing is read. Of a grant, as dropping it.
    #[must_use]
    pub fn refused(self) -> Refused {
        Refused { message: self.to_string(), kind: self.kind() }
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
            Claim::Mismatch(_) => f.write_str("the key was already used for another request"),
            Claim::Expired(_) => f.write_str("done before, and its result is no longer kept"),
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
}

/// Which answer a [`Refused`] was.
///
/// ```
/// # use onlyonce::{RefusedKind, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # drop(store.claim("charge-7")?);
/// match store.claim("charge-7")?.refused().kind() {
///     RefusedKind::InProgress | RefusedKind::Delayed => println!("409, and try again"),
///     RefusedKind::Interrupted | RefusedKind::Held => println!("409, and somebody looks into it"),
///     RefusedKind::Mismatch => println!("422"),
///     other => println!("{other:?}"),
/// }
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum RefusedKind {
    /// It was a grant, and the caller let go of it.
    LetGo,
    /// An earlier attempt's fate is unknown, and no policy says what to do.
    Interrupted,
    /// Recorded as completed.
    Completed,
    /// Recorded as failed.
    Failed,
    /// Somebody is on it.
    InProgress,
    /// It waits for someone to resolve it.
    Held,
    /// The next attempt has to wait.
    Delayed,
    /// Another request used the key.
    Mismatch,
    /// Its result is no longer kept.
    Expired,
}

impl Refused {
    /// Which answer it was.
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

    /// The same refusal with a hint of what would have helped.
    pub(crate) fn hinting(mut self, hint: &str) -> Self {
        self.message = format!("{} ({hint})", self.message);
        self
    }
}

/// One attempt at a key, as others may see it. Plain data: it does not change.
///
/// ```
/// # use onlyonce::{Claim, Operation, testing::Sim};
/// # use std::time::Duration;
/// # let store = Sim::new(1).open()?;
/// let op = Operation::new("nightly").owner("host-3").lease(Duration::from_secs(60));
/// let mine = store.claim(&op)?;
/// let Claim::InProgress(attempt) = store.claim(&op)? else { unreachable!() };
/// assert_eq!((attempt.number(), attempt.owner()), (1, Some("host-3")));
/// assert_eq!(attempt.lease_left(), Some(Duration::from_secs(60)));
/// # drop(mine);
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Attempt {
    // Boxed: most answers have none, and each of a batch would take its room all the same.
    seen: Box<SeenAttempt>,
}

#[derive(Clone, PartialEq, Eq)]
struct SeenAttempt {
    key: Key<'static>,
    state: KeyState,
    lease_until: Option<StoreMillis>,
    now: StoreMillis,
    reason: Option<Arc<str>>,
}

impl Attempt {
    pub(crate) fn new(
        key: &Key<'_>,
        state: KeyState,
        lease_until: Option<StoreMillis>,
        now: StoreMillis,
    ) -> Self {
        let (key, reason) = (key.clone().into_owned(), state.reason.clone());
        Attempt { seen: Box::new(SeenAttempt { key, state, lease_until, now, reason }) }
    }

    pub(crate) fn because(mut self, reason: &str) -> Self {
        self.seen.reason = Some(reason.into());
        self
    }

    /// The key it is an attempt at.
    ///
    /// ```
    /// # use onlyonce::{Key, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// assert_eq!(lost.key(), &Key::from("mail-1"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn key(&self) -> &Key<'static> {
        &self.seen.key
    }

    /// 1 for the first since the key was absent.
    ///
    /// ```
    /// # use onlyonce::{State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// assert_eq!(lost.number(), 1);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn number(&self) -> u32 {
        self.seen.state.attempt
    }

    /// Names the attempt; a resource that was shown it can tell what it did.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// let outbox = vec![(claim.token(), "dear customer")]; // the effect, with the token beside it
    /// drop(claim);
    /// let Claim::Interrupted(lost) = store.claim("mail-1")? else { unreachable!() };
    /// let was_sent = outbox.iter().any(|(token, _)| *token == lost.attempt().token());
    /// assert!(was_sent);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn token(&self) -> Token {
        self.seen.state.token
    }

    /// When it was claimed, by the wall clock of then.
    ///
    /// ```
    /// # use onlyonce::{State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// println!("claimed {:?} ago", lost.since().elapsed());
    /// # let year_2026 = std::time::Duration::from_secs(1_767_225_600);
    /// assert!(lost.since() >= std::time::UNIX_EPOCH + year_2026);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn since(&self) -> SystemTime {
        wall(self.seen.state.since, self.seen.state.wall_offset)
    }

    /// Who claimed it, where the claim said so.
    ///
    /// ```
    /// # use onlyonce::{Operation, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim(Operation::new("mail-1").owner("host-3"))?);
    /// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// assert_eq!(lost.owner(), Some("host-3"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.seen.state.owner.as_deref()
    }

    /// How long its lease still runs; `None` without one.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// let op = Operation::new("mail-1").lease(Duration::from_secs(60));
    /// let mine = store.claim(&op)?;
    /// # sim.advance(Duration::from_secs(20));
    /// let Claim::InProgress(attempt) = store.claim(&op)? else { unreachable!() }; // 20 s later
    /// assert_eq!(attempt.lease_left(), Some(Duration::from_secs(40)));
    /// # drop(mine);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn lease_left(&self) -> Option<Duration> {
        self.seen.lease_until.map(|until| Duration::from_millis(until.since(self.seen.now)))
    }

    /// Why it ended, or is held.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// claim.abort("the server is down")?;
    /// let Some(State::Aborted(attempt)) = store.get("mail-1")? else { unreachable!() };
    /// assert_eq!(attempt.reason(), Some("the server is down"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.seen.reason.as_deref()
    }

    /// Whether its interruption is to be held rather than asked about.
    ///
    /// ```
    /// # use onlyonce::{Claim, OnInterrupted, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim(Operation::new("charge-7").on_interrupted(OnInterrupted::Hold))?);
    /// let Claim::Held(attempt) = store.claim("charge-7")? else { unreachable!() };
    /// assert!(attempt.asked_for_hold()); // its own wish, whatever this claimant's policy says
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn asked_for_hold(&self) -> bool {
        self.seen.state.hold
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attempt {}", self.number())?;
        if let Some(owner) = self.owner() {
            write!(f, " by {owner}")?;
        }
        write!(f, ", since {} s", self.seen.now.since(self.seen.state.since) / 1000)?;
        if let Some(left) = self.lease_left() {
            write!(f, ", {} s left", left.as_secs())?;
        }
        if let Some(reason) = self.reason() {
            write!(f, ", {reason}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attempt({}: {self}; token {}", self.key(), self.token())?;
        f.write_str(if self.asked_for_hold() { ", asked to be held)" } else { ")" })
    }
}

/// A recorded outcome: a result, or a failure that is final.
///
/// ```
/// # use onlyonce::{Claim, Outcome, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
/// claim.record(Outcome::success("paid").meta("status", 201))?;
/// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
/// assert_eq!(done.decode::<String>()?, "paid");
/// assert_eq!((done.meta("status"), done.attempt()), (Some("201"), 1));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone)]
pub struct Recorded {
    payload: Payload,
    meta: Vec<(String, String)>,
    attempt: u32,
    token: Token,
    completed_at: SystemTime,
    expires_at: Option<SystemTime>,
}

impl Recorded {
    pub(crate) fn read(state: &KeyState, stored: Option<Stored>) -> Result<Self> {
        let unreadable = |what: &str| Error::undecodable(format!("{what} of a recorded outcome"));
        let (payload, meta) = match stored {
            Some(stored) => {
                let meta = decode_meta(&stored.meta).ok_or_else(|| unreadable("bad metadata"))?;
                let payload = if stored.codec == NOT_KEPT {
                    Payload::not_kept(state.reason.clone().unwrap_or_default())
                } else {
                    let format = Format::from_stored(stored.codec, stored.version)
                        .ok_or_else(|| unreadable("an unknown codec"))?;
                    Payload::from_vec(stored.bytes, format)
                };
                (payload, meta)
            }
            None => (Payload::empty(), Vec::new()),
        };
        Ok(Recorded {
            payload,
            meta,
            attempt: state.attempt,
            token: state.token,
            completed_at: wall(state.time, state.wall_offset),
            expires_at: state.expires_at.map(|at| wall(at, state.wall_offset)),
        })
    }

    /// Why its result was not kept; `None` where it was, or where there is none to keep, as of a mark.
    ///
    /// The work was done all the same: a later caller gets along without the result, and doesn't do it again.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.run("export-7", |_claim| Ok::<_, Error>(vec![0; 1 << 20]))?; // more than result_bytes_max
    /// let Claim::Completed(done) = store.claim("export-7")? else { unreachable!() };
    /// assert!(done.missing().is_some_and(|why| why.starts_with("a result of 1048576 bytes")));
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn missing(&self) -> Option<&str> {
        self.payload.missing()
    }

    /// The recorded bytes; none where the result is [`missing`](Self::missing).
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid"))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(&done.result()[..], b"paid");
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn result(&self) -> &Payload {
        &self.payload
    }

    /// The recorded value, as the type it was recorded as.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid"))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(done.decode::<String>()?, "paid");
    /// assert!(done.decode::<()>().is_err()); // recorded as something else
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `Undecodable` if it was recorded as something else; `NotKept` if it is [`missing`](Self::missing).
    ///
    /// # Cost
    /// No read of the disk; strings and bytes are copied once.
    pub fn decode<T: crate::Decode>(&self) -> Result<T> {
        self.payload.decode()
    }

    /// The metadata recorded under a name.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid").meta("status", 201))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!((done.meta("status"), done.meta("location")), (Some("201"), None));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Cost
    /// A search of at most 64 names.
    #[must_use]
    pub fn meta(&self, name: &str) -> Option<&str> {
        self.meta.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Which attempt recorded it.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid"))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(done.attempt(), 1);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The token of that attempt.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// let mine = claim.token();
    /// claim.complete("paid")?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(done.token(), mine);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn token(&self) -> Token {
        self.token
    }

    /// When it was recorded, by the wall clock of then.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid"))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// println!("done {:?} ago", done.completed_at().elapsed());
    /// assert!(done.expires_at().is_none_or(|end| end > done.completed_at()));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn completed_at(&self) -> SystemTime {
        self.completed_at
    }

    /// When it is no longer kept; `None`: for ever.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// let day = std::time::Duration::from_secs(86_400);
    /// claim.record(Outcome::success("paid").retention(day))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(done.expires_at(), Some(done.completed_at() + day));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }
}

impl fmt::Debug for Recorded {
    /// Names of the metadata, and nothing of what was recorded.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorded(attempt {}, {:?}", self.attempt, self.payload)?;
        for (at, (name, _)) in self.meta.iter().enumerate() {
            write!(f, "{}{name:?}", if at == 0 { ", with " } else { " " })?;
        }
        write!(f, ", at {}", Date(self.completed_at))?;
        if let Some(end) = self.expires_at {
            write!(f, ", kept until {}", Date(end))?;
        }
        write!(f, "; token {})", self.token)
    }
}

/// A key whose result is no longer kept, but which is remembered: its outcome was recorded under
/// [`remember_expired`](crate::Policy::remember_expired).
///
/// ```
/// use onlyonce::{Claim, Store};
///
/// fn is_done(store: &Store, key: &str) -> onlyonce::Result<bool> {
///     Ok(match store.claim(key)? {
///         Claim::Completed(_) => true,
///         Claim::Expired(expired) => {
///             println!("done at {:?}; what came of it is no longer kept", expired.completed_at());
///             true
///         }
///         _ => false,
///     })
/// }
/// # assert!(!is_done(&onlyonce::testing::Sim::new(1).open()?, "k")?);
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Expired {
    completed_at: SystemTime,
    remembered_until: SystemTime,
}

impl Expired {
    pub(crate) fn new(state: &KeyState) -> Self {
        let minutes = |time: StoreMillis| StoreMillis(time.0 / 60_000 * 60_000);
        let until = state.memory_until.unwrap_or(state.time);
        Expired {
            completed_at: wall(minutes(state.time), state.wall_offset),
            remembered_until: wall(until, state.wall_offset),
        }
    }

    /// When its outcome was recorded, to the minute.
    ///
    /// ```
    /// use onlyonce::Expired;
    ///
    /// fn words(expired: &Expired) -> String {
    ///     format!("done at {:?}", expired.completed_at())
    /// }
    /// ```
    #[must_use]
    pub fn completed_at(&self) -> SystemTime {
        self.completed_at
    }

    /// Until when it is remembered; after that the key is as good as new.
    ///
    /// ```
    /// use onlyonce::Expired;
    ///
    /// /// How long a late retry is still told so.
    /// fn left(expired: &Expired) -> Option<std::time::Duration> {
    ///     expired.remembered_until().duration_since(std::time::SystemTime::now()).ok()
    /// }
    /// ```
    #[must_use]
    pub fn remembered_until(&self) -> SystemTime {
        self.remembered_until
    }
}

impl fmt::Debug for Expired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [at, until] = [self.completed_at, self.remembered_until].map(Date);
        write!(f, "Expired(done at {at}, remembered until {until})")
    }
}

/// What a key is in, as [`Store::get`](crate::Store::get) tells it.
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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum State {
    /// Somebody is on it.
    InProgress(Attempt),
    /// An attempt ended without a word.
    Interrupted(Attempt),
    /// It waits for someone to resolve it.
    Held(Attempt),
    /// The last attempt had no effect, as its owner said; the next claim is granted.
    Aborted(Attempt),
    /// A result is recorded.
    Completed(Recorded),
    /// A final failure is recorded.
    Failed(Recorded),
    /// It was done, its result is no longer kept, and the key is still remembered.
    Expired(Expired),
}

/// The answer to a mark. See [`Store::mark`](crate::Store::mark).
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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Mark {
    /// Not seen before, and marked now.
    First,
    /// Marked or completed before.
    Again,
    /// Somebody has claimed it and is on it.
    InProgress(Attempt),
    /// An attempt ended without a word, or the key is held.
    Interrupted(Attempt),
    /// The key was used for another request: the fingerprints differ.
    Mismatch(State),
    /// It was done, and its result is no longer kept.
    Expired(Expired),
}

impl Mark {
    /// Whether the work is to be done: the key was not seen before.
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

/// What an operator found out about an interrupted or held attempt. See [`Store::resolve`](crate::Store::resolve).
///
/// ```
/// # use onlyonce::{Claim, Resolution, State, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # drop(store.claim("mail-1")?);
/// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
/// // The outbox has no such mail, so it was not sent.
/// assert!(store.resolve(&lost, Resolution::Retry)?);
/// assert!(matches!(store.claim("mail-1")?, Claim::Acquired(_)));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Debug)]
pub enum Resolution {
    /// It did happen, or never will: record this.
    Record(Outcome),
    /// It did not happen: the next claim is granted, however many attempts there were.
    Retry,
}

/// An attempt whose fate is unknown, for you to decide on. While you hold it, others see `InProgress`.
///
/// Nothing is granted yet, and the late owner may still complete or abort. Dropped without a word, the
/// attempt stays interrupted, nothing is written, and the next claimant is asked.
///
/// ```
/// # use onlyonce::{Claim, State, testing::Sim};
/// # fn was_charged(_by: onlyonce::Token) -> Option<bool> { Some(false) }
/// # let store = Sim::new(1).open()?;
/// # drop(store.claim("charge-7")?);
/// if let Claim::Interrupted(lost) = store.claim("charge-7")? {
///     match was_charged(lost.attempt().token()) {
///         Some(false) => lost.not_applied()?.complete("charged now")?, // its fate is closed
///         Some(true) => lost.take_over()?.complete("charged before")?, // an outcome closes it, too
///         None => lost.hold()?,                                        // for a person to resolve
///     }
/// }
/// # assert!(matches!(store.get("charge-7")?, Some(State::Completed(_))));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "dropped without a word, the attempt stays interrupted"]
pub struct Interrupted {
    shared: Arc<Shared>,
    hash: KeyHash,
    attempt: Attempt,
    settings: Settings,
    fingerprint: Option<crate::Fingerprint>,
    question: u64,
}

impl Interrupted {
    pub(crate) fn new(
        shared: Arc<Shared>,
        hash: KeyHash,
        attempt: Attempt,
        settings: Settings,
        fingerprint: Option<crate::Fingerprint>,
        question: u64,
    ) -> Self {
        Interrupted { shared, hash, attempt, settings, fingerprint, question }
    }

    /// The attempt that was interrupted.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim(Operation::new("mail-1").owner("host-3"))?);
    /// let Claim::Interrupted(lost) = store.claim("mail-1")? else { unreachable!() };
    /// assert_eq!((lost.attempt().number(), lost.attempt().owner()), (1, Some("host-3")));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// Runs it again, although the earlier attempt may have had its effect: at least once. Its fate stays
    /// open until this attempt, or one after it, ends with an outcome; aborting leads back to interrupted.
    ///
    /// Durable on return at the claim's level. Costs one write, and one sync at `Sync`.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// let claim = lost.take_over()?;
    /// assert_eq!(claim.attempt(), 2);
    /// claim.abort("found no way")?; // its own fate; the first one is still open
    /// assert!(matches!(store.get("k")?, Some(State::Interrupted(_))));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if it is no longer the attempt you saw: its late owner ended it, or renewed its lease.
    pub fn take_over(self) -> Result<ClaimGuard> {
        self.decide(Call::TakeOver(self.attempt.token()))
    }

    /// You found out that nothing was done, by that attempt or any before it: all their fates are closed, and
    /// you are granted the key.
    ///
    /// Durable on return at the claim's level. Costs one write, and one sync at `Sync`.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// lost.not_applied()?.abort("found no way")?;
    /// assert!(matches!(store.claim("k")?, Claim::Acquired(_)));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`take_over`](Self::take_over).
    pub fn not_applied(self) -> Result<ClaimGuard> {
        self.decide(Call::NotApplied(self.attempt.token()))
    }

    /// Nobody is granted the key, under any policy, until someone resolves it.
    ///
    /// Durable on return, always at `Sync`.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// lost.hold()?;
    /// assert!(matches!(store.claim("k")?, Claim::Held(_)));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`take_over`](Self::take_over).
    pub fn hold(self) -> Result<()> {
        self.hold_because("held by word")
    }

    pub(crate) fn hold_because(&self, reason: &str) -> Result<()> {
        let writing = Writing { reason: Some(reason), ..Writing::default() };
        let applied = self.shared.apply(
            self.attempt.key(),
            self.hash,
            Call::Hold(self.attempt.token()),
            &writing,
        )?;
        if applied.answer == Answer::Granted { Ok(()) } else { Err(self.lost()) }
    }

    fn decide(&self, call: Call) -> Result<ClaimGuard> {
        let key = self.attempt.key();
        let writing = granting(&self.shared, &self.settings, key, self.fingerprint);
        let applied = self.shared.apply(key, self.hash, call, &writing)?;
        match (applied.answer, applied.claimed) {
            (Answer::Granted, Some(claimed)) => Ok(ClaimGuard::new(
                Arc::clone(&self.shared),
                key,
                self.hash,
                claimed,
                self.settings.clone(),
                Some(self.attempt.clone()),
            )),
            _ => Err(self.lost()),
        }
    }

    fn lost(&self) -> Error {
        let key = self.attempt.key();
        let message =
            format!("{key} is no longer what you saw: claim it again to learn what became of it");
        Error::new(ErrorKind::ClaimLost, message)
    }
}

impl Drop for Interrupted {
    fn drop(&mut self) {
        self.shared.unask(self.hash, self.question);
    }
}

impl fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interrupted").field(&self.attempt).finish()
    }
}

/// What a grant's record says, and the room it keeps for its ending.
pub(crate) fn granting<'a>(
    engine: &Engine,
    settings: &'a Settings,
    key: &Key<'_>,
    fingerprint: Option<crate::Fingerprint>,
) -> Writing<'a> {
    Writing {
        level: Some(settings.claim_durability),
        reserve: reserve(engine, settings.reserve_bytes, key.bytes().len()),
        lease_ms: settings.lease_ms,
        fingerprint,
        hold: settings.on_interrupted == Some(crate::OnInterrupted::Hold),
        owner: settings.owner.as_deref(),
        ..Writing::default()
    }
}

/// The ending's record: the result as declared, or at least an abort's labels; the key; the fixed fields.
pub(crate) fn reserve(engine: &Engine, reserve_bytes: u32, key_bytes: usize) -> u64 {
    let labels = 2 * crate::limits::LABEL_BYTES_MAX as u64;
    let content = u64::from(reserve_bytes.min(engine.result_bytes_max)).max(labels);
    content.saturating_add(key_bytes as u64).saturating_add(256)
}

/// A claim that is yours: it owns the key until you end it. Each ending consumes it.
///
/// It derefs to [`ClaimHandle`]: what the work may do. Dropped without a word (a `?`, a panic, a cancelled
/// future), the attempt is interrupted, as by a crash at that place; [`OnDrop::Abort`] changes that.
///
/// ```
/// # use onlyonce::{Claim, State, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// if let Claim::Acquired(claim) = store.claim("mail-1")? {
///     println!("attempt {} under token {}", claim.attempt(), claim.token());
///     drop(claim); // or a `?` that returned
/// }
/// assert!(matches!(store.get("mail-1")?, Some(State::Interrupted(_))));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "dropped without a word, the attempt is interrupted"]
pub struct ClaimGuard {
    handle: ClaimHandle,
}

/// What the work may do with its claim; it can't end it. A clone is the same claim.
///
/// After the claim has ended it is good for nothing but reading: what would change something is refused as
/// `ClaimLost`.
///
/// ```
/// # use onlyonce::{Claim, ClaimHandle, Result, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # use std::time::Duration;
/// fn work(claim: &ClaimHandle) -> Result<String> {
///     claim.renew(Duration::from_secs(60))?; // it takes long
///     Ok(format!("done under token {}", claim.token()))
/// }
///
/// let Claim::Acquired(claim) = store.claim("task-42")? else { unreachable!() };
/// let result = work(&claim)?; // a guard is also a handle
/// claim.complete(&result)?;
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone)]
pub struct ClaimHandle(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    key: Key<'static>,
    hash: KeyHash,
    token: Token,
    attempt: u32,
    settings: Settings,
    interruption: Option<Attempt>,
    /// What a drop means from now on.
    drop_aborts: AtomicBool,
    has_ended: AtomicBool,
}

impl ClaimGuard {
    pub(crate) fn new(
        shared: Arc<Shared>,
        key: &Key<'_>,
        hash: KeyHash,
        claimed: Claimed,
        settings: Settings,
        interruption: Option<Attempt>,
    ) -> Self {
        let drop_aborts = AtomicBool::new(settings.on_drop == OnDrop::Abort);
        ClaimGuard {
            handle: ClaimHandle(Arc::new(Inner {
                shared,
                key: key.clone().into_owned(),
                hash,
                token: claimed.token,
                attempt: claimed.attempt,
                settings,
                interruption,
                drop_aborts,
                has_ended: AtomicBool::new(false),
            })),
        }
    }

    /// The work is done: records its result, which every later claim is answered with.
    ///
    /// Durable on return at the outcome's level. Costs one write, and one sync at `Sync`.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # fn main() -> onlyonce::Result<()> {
    /// # let store = Sim::new(1).open()?;
    /// if let Claim::Acquired(claim) = store.claim("order-17")? {
    ///     claim.complete("paid")?;
    /// }
    /// assert!(matches!(store.claim("order-17")?, Claim::Completed(done) if &done.result()[..] == b"paid"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - `ClaimLost`: somebody took over. Nothing was changed.
    /// - `TooLarge`, `StorageFull`, `Io`, or a value that did not encode: nothing was written, and
    ///   [`Error::into_claim`] gives the guard back; the error dropped with the guard in it leaves the attempt
    ///   interrupted, whatever [`OnDrop`] says, for the effect may have happened.
    /// - `Indeterminate`: it may or may not be recorded; reopen and ask.
    pub fn complete<V: Encode + ?Sized>(self, value: &V) -> Result<()> {
        self.is_past_its_effect();
        self.record(Outcome::success(value))
    }

    /// The work failed for good: records the failure, which every later claim is answered with.
    ///
    /// Durable on return at the outcome's level. Errors and cost as [`complete`](Self::complete).
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.fail("card declined")?;
    /// assert!(matches!(store.claim("order-17")?, Claim::Failed(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub fn fail<V: Encode + ?Sized>(self, value: &V) -> Result<()> {
        self.is_past_its_effect();
        self.record(Outcome::failure(value))
    }

    /// Records an outcome with metadata or a retention of its own.
    ///
    /// Durable on return at the outcome's level. Errors and cost as [`complete`](Self::complete).
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// claim.record(Outcome::success("created").meta("status", 201))?;
    /// assert!(matches!(store.claim("k")?, Claim::Completed(done) if done.meta("status") == Some("201")));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub fn record(self, outcome: Outcome) -> Result<()> {
        self.is_past_its_effect();
        let parts = match outcome.into_parts(self.0.shared.result_bytes_max) {
            Ok(parts) => parts,
            Err(e) => return Err(e.giving_back(self)),
        };
        let (codec, version) = (parts.codec, parts.version);
        let meta = encode_meta(&parts.meta);
        let settings = &self.0.settings;
        let writing = Writing {
            level: Some(settings.durability),
            retention_ms: parts.retention_ms.or(settings.retention_ms),
            remember_ms: settings.remember_ms,
            reason: parts.missing.as_deref(),
            outcome: Some(EncodedOutcome { codec, version, meta: &meta, bytes: &parts.bytes }),
            ..Writing::default()
        };
        let token = self.0.token;
        let call = if parts.failure { Call::Fail(token) } else { Call::Complete(token) };
        let done = self.0.shared.apply(&self.0.key, self.0.hash, call, &writing);
        self.ended(done)
    }

    /// This attempt had no effect: the next claim is granted. (If an earlier attempt's fate is still open,
    /// the key is interrupted again: you can't speak for that one.)
    ///
    /// Durable on return at the outcome's level. Costs one write, and one sync at `Sync`.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.abort("the other side is down, nothing was sent")?;
    /// assert!(matches!(store.claim("order-17")?, Claim::Acquired(again) if again.attempt() == 2));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub fn abort(self, why: impl Into<Abort>) -> Result<()> {
        let why = why.into();
        let settings = &self.0.settings;
        let writing = Writing {
            level: Some(settings.durability),
            retention_ms: settings.retention_ms,
            reason: Some(why.reason()),
            ..Writing::default()
        };
        let call = Call::Abort(self.0.token);
        let done = self.0.shared.apply(&self.0.key, self.0.hash, call, &writing);
        self.ended(done)
    }

    /// A handle for the work: it may do everything but end the claim.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// let handle = claim.handle();
    /// claim.complete("done")?;
    /// assert!(handle.renew(std::time::Duration::from_secs(9)).is_err()); // ended
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    #[must_use]
    pub fn handle(&self) -> ClaimHandle {
        self.handle.clone()
    }

    pub(crate) fn handle_ref(&self) -> &ClaimHandle {
        &self.handle
    }

    /// Ends it without the outcome that could not be recorded, for that reason: as the policy says.
    pub(crate) fn end_unkept(self, reason: &Error, failure: bool) -> Result<()> {
        let reason = cut_label(reason.to_string());
        if self.0.settings.on_unkept == OnUnkept::Complete {
            let outcome = Outcome::without_result(reason);
            return self.record(if failure { outcome.into_failure() } else { outcome });
        }
        // Always at `Sync`: nobody may be granted what is held.
        let writing = Writing { reason: Some(&reason), ..Writing::default() };
        let call = Call::Park(self.0.token);
        let done = self.0.shared.apply(&self.0.key, self.0.hash, call, &writing);
        self.ended(done)
    }

    /// There is an outcome, or is about to be, so the effect may have happened: from here on a drop can't mean
    /// "nothing did".
    fn is_past_its_effect(&self) {
        self.on_drop(OnDrop::Interrupt);
    }

    fn ended(self, done: Result<crate::engine::Applied>) -> Result<()> {
        match done {
            Ok(applied) => {
                self.0.has_ended.store(true, Ordering::SeqCst);
                if applied.answer == Answer::Done { Ok(()) } else { Err(self.lost()) }
            }
            // Room was wanted and could not be made: nothing was written.
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::Io) => {
                Err(e.giving_back(self))
            }
            Err(e) => {
                // Placed, and nobody knows whether it stands: nothing more may be said for this claim.
                let is_unknown = e.kind() == ErrorKind::Indeterminate;
                self.0.has_ended.fetch_or(is_unknown, Ordering::SeqCst);
                Err(e)
            }
        }
    }
}

impl Error {
    /// The claim, where an ending was refused before anything was written: `TooLarge`, `StorageFull`, `Io`,
    /// or a value that didn't encode. The key is still yours: record something smaller, or that there is no result
    /// ([`Outcome::without_result`](crate::Outcome::without_result)), or wait for room.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// let too_large = vec![0; 1 << 20];
    /// if let Some(claim) = claim.complete(&too_large).unwrap_err().into_claim() {
    ///     claim.complete("see bucket/17")?;
    /// }
    /// assert!(matches!(store.claim("k")?, Claim::Completed(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn into_claim(self) -> Option<ClaimGuard> {
        self.into_back()
    }
}

impl std::ops::Deref for ClaimGuard {
    type Target = ClaimHandle;

    fn deref(&self) -> &ClaimHandle {
        &self.handle
    }
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        let inner = &self.handle.0;
        if inner.has_ended.swap(true, Ordering::SeqCst) {
            return;
        }
        inner.let_go(inner.drop_aborts.load(Ordering::SeqCst));
    }
}

impl Inner {
    /// The owner goes without a word, or with the one that `OnDrop::Abort` gave beforehand.
    fn let_go(&self, abort: bool) {
        let reason =
            if abort { "dropped before it had an effect" } else { "dropped without a word" };
        let level = if abort { self.settings.durability } else { self.settings.claim_durability };
        let retention_ms = self.settings.retention_ms;
        let writing = Writing { level: Some(level), retention_ms, ..Writing::default() };
        self.shared.let_go(&self.key, self.hash, self.token, abort, reason, &writing);
    }
}

impl fmt::Debug for ClaimGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClaimGuard").field(&self.handle).finish()
    }
}

impl ClaimHandle {
    /// The key.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let Claim::Acquired(claim) = store.claim(("order", 17))? else { unreachable!() };
    /// assert_eq!(claim.key().to_string(), r#"("order", 17)"#);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn key(&self) -> &Key<'static> {
        &self.0.key
    }

    /// The claim's fencing token: hand it to whatever the work changes, so that a stale owner is refused there too.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let Claim::Acquired(claim) = store.claim(("order", 17))? else { unreachable!() };
    /// let request = format!("POST /charges?fence={}", claim.token());
    /// # assert!(request.ends_with(&claim.token().get().to_string()));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn token(&self) -> Token {
        self.0.token
    }

    /// 1 for the first attempt since the key was absent.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let Claim::Acquired(claim) = store.claim(("order", 17))? else { unreachable!() };
    /// assert_eq!(claim.attempt(), 1);
    /// claim.abort("not yet")?;
    /// let Claim::Acquired(claim) = store.claim(("order", 17))? else { unreachable!() };
    /// assert_eq!(claim.attempt(), 2);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// The interrupted attempt that this one follows, if it does.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("order-17")?);
    /// # let Claim::Interrupted(lost) = store.claim("order-17")? else { unreachable!() };
    /// let claim = lost.take_over()?;
    /// if let Some(before) = claim.interruption() {
    ///     println!("may have been done already: {before}"); // ask the other side about before.token()
    /// }
    /// assert_eq!(claim.interruption().map(|before| before.number()), Some(1));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn interruption(&self) -> Option<&Attempt> {
        self.0.interruption.as_ref()
    }

    /// Lets the lease run for so long from now.
    ///
    /// The lease of a claim lives in memory, so there is nothing to be durable: whoever opens the store next
    /// finds the attempt interrupted, however long its lease was to run.
    ///
    /// ```
    /// # use onlyonce::{Claim, ErrorKind, Operation, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// let op = Operation::new("long").lease(Duration::from_secs(30));
    /// let Claim::Acquired(claim) = store.claim(&op)? else { unreachable!() };
    /// claim.renew(Duration::from_secs(30))?; // while the work goes on
    /// # sim.advance(Duration::from_secs(31));
    /// // Too late: it lapsed, and somebody took over.
    /// let Claim::Interrupted(lost) = store.claim(&op)? else { unreachable!() };
    /// let new_owner = lost.take_over()?;
    /// assert_eq!(claim.renew(Duration::from_secs(30)).unwrap_err().kind(), ErrorKind::ClaimLost);
    /// # drop(new_owner);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if somebody took over meanwhile, or the claim has ended. `Held` if the key was held.
    /// `Invalid` for a lease of zero. Where a record is written, those of [`Store::claim`](crate::Store::claim) too.
    ///
    /// # Cost
    /// Nothing is written, and nothing waits. If the lease had lapsed and somebody noticed: one write, and one
    /// sync where the claim is at `Sync`, and the claim is durable again on return.
    pub fn renew(&self, lease: Duration) -> Result<()> {
        let inner = &self.0;
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        if lease_ms == 0 {
            return Err(Error::invalid("a lease of zero lapses at once: renew for longer"));
        }
        if inner.has_ended.load(Ordering::SeqCst) {
            return Err(self.lost());
        }
        let settings = &inner.settings;
        let writing = Writing {
            level: Some(settings.claim_durability),
            reserve: reserve(&inner.shared, settings.reserve_bytes, inner.key.bytes().len()),
            lease_ms: Some(lease_ms),
            ..Writing::default()
        };
        let applied =
            inner.shared.apply(&inner.key, inner.hash, Call::Renew(inner.token), &writing)?;
        match applied.answer {
            // The guard went meanwhile, and there is nobody left to end what was taken up again.
            Answer::Done if inner.has_ended.load(Ordering::SeqCst) => {
                inner.let_go(false);
                Err(self.lost())
            }
            Answer::Done => Ok(()),
            Answer::Held => Err(Error::new(
                ErrorKind::Held,
                format!("{} is held: its owner may still complete or abort", inner.key),
            )),
            _ => Err(self.lost()),
        }
    }

    /// What a drop without a word means from now on. Flip it to [`OnDrop::Interrupt`] just before the effect.
    /// In memory; nothing is written.
    ///
    /// ```
    /// # use onlyonce::{Claim, OnDrop, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let op = Operation::new("charge-7").on_drop(OnDrop::Abort); // until the first effect, a drop is harmless
    /// if let Claim::Acquired(claim) = store.claim(op)? {
    ///     claim.on_drop(OnDrop::Interrupt); // from here on nobody can say
    ///     claim.complete("charged")?;
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn on_drop(&self, on_drop: OnDrop) {
        self.0.drop_aborts.store(on_drop == OnDrop::Abort, Ordering::SeqCst);
    }

    fn lost(&self) -> Error {
        let message = format!(
            "the claim on {} with token {} is lost: it has ended, or somebody took over; change nothing more",
            self.0.key, self.0.token
        );
        Error::new(ErrorKind::ClaimLost, message)
    }
}

impl fmt::Debug for ClaimHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClaimHandle")
            .field("key", &self.0.key)
            .field("token", &self.0.token)
            .field("attempt", &self.0.attempt)
            .finish_non_exhaustive()
    }
}

/// A time for people: `2026-01-01T00:00:00Z`.
struct Date(SystemTime);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never before it: times are stored as milliseconds since then.
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (days, second) = (since / 86_400, since % 86_400);
        let (year, month, day) = date_of(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Year, month and day of the Gregorian calendar, so many days after 1970-01-01. Years are counted from March on, so that
/// the leap day is the last.
fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097); // of 400 years
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, is_next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + is_next, month, day)
}

/// A store time as the wall clock showed it.
pub(crate) fn wall(time: StoreMillis, offset: i64) -> SystemTime {
    let millis = i128::from(time.0) + i128::from(offset);
    let millis = u64::try_from(millis.max(0)).unwrap_or(u64::MAX);
    shown(WallMillis(millis))
}

pub(crate) fn shown(time: WallMillis) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_millis(time.0))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{KEY_BYTES_MAX, LABEL_BYTES_MAX};
    use crate::record::{Body, Draft, Ending};
    use crate::testing::Sim;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ];
        for (seconds, text) in cases {
            let date = Date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(date.to_string(), text);
        }
    }

    /// What ends a claim without its result has room on a full disk, however little was reserved for that.
    #[test]
    fn an_ending_without_a_result_is_within_every_reserve() {
        let store = Sim::small(1).open().unwrap();
        let label = "r".repeat(LABEL_BYTES_MAX);
        for key_bytes in [1, 36, KEY_BYTES_MAX] {
            let key = Key::from(vec![b'k'; key_bytes]);
            let longest = Body {
                key_kind: key.kind(),
                key: key.bytes(),
                time: StoreMillis(u64::MAX),
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
                ..Body::default()
            };
            for reserve_bytes in [0, 1, 4096] {
                let room = reserve(store.engine(), reserve_bytes, key.bytes().len());
                for ending in [Ending::Completed, Ending::Failed, Ending::Held] {
                    let len = Draft::end(ending, &longest).len();
                    assert!(len <= room, "{ending:?} of {len} bytes, {room} kept");
                }
            }
        }
    }
}
