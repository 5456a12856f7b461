//! An attempt as others see it: [`Attempt`].

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::date::wall;
use crate::Key;
use crate::protocol::KeyState;
use crate::types::{StoreMillis, Token};

/// One attempt at a key, as callers other than its owner see it. It is a snapshot, and does not change.
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
    // Boxed: most answers have none, and each answer of a batch would take its space.
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

    /// Returns the key.
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

    /// Returns the number of the attempt. The first attempt since the key was absent has the number 1.
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

    /// Returns the fencing token, which identifies the attempt. If the work passed the token on to a resource, that
    /// resource can report what the attempt did.
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

    /// Returns the time of the claim, as the wall clock showed it then.
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

    /// Returns the owner's label, if the claim had one.
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

    /// Returns how much of the lease was left when the attempt was read; `None` without a lease.
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

    /// Returns why the attempt ended, or why the key is held.
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

    /// Returns whether the attempt asked that its key be held after an interruption.
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
