//! An attempt as others see it: [`Attempt`].

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::date::wall;
use super::downstream::{Purpose, downstream_key};
use super::progress;
use crate::protocol::{Asker, KeyState, Phase, Presence, Sight, is_delayed, phase_shown};
use crate::types::{Secret, StoreMillis, Token};
use crate::{Fingerprint, Key, Payload};

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
    /// The state in which the key was shown.
    phase: Phase,
    lease_until: Option<StoreMillis>,
    now: StoreMillis,
    reason: Option<Arc<str>>,
    /// The claimant that decides about it.
    asker: Option<Arc<Asker>>,
    /// The store's.
    secret: Secret,
}

impl Attempt {
    pub(crate) fn new(
        key: &Key<'_>,
        state: KeyState,
        (presence, lease_until): (Presence, Option<StoreMillis>),
        now: StoreMillis,
        secret: Secret,
    ) -> Self {
        let (key, reason) = (key.to_static(), state.reason.clone());
        let phase = phase_shown(&state, presence);
        let seen = SeenAttempt { key, state, phase, lease_until, now, reason, asker: None, secret };
        Attempt { seen: Box::new(seen) }
    }

    /// The same attempt, as others see it while a claimant decides about it.
    pub(crate) fn being_decided(mut self, asker: &Arc<Asker>) -> Self {
        self.seen.asker = Some(Arc::clone(asker));
        self
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
        self.seen.key.shown()
    }

    /// The key as it is stored: in its namespace.
    pub(crate) fn stored_key(&self) -> &Key<'static> {
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
    /// let outbox = vec![(claim.token(), "dear customer")]; // the effect, with the token next to it
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

    /// What tells the state in which it was shown from every other state of its key.
    pub(super) fn sight(&self) -> Sight {
        let SeenAttempt { state, phase, .. } = &*self.seen;
        Sight::Record { token: state.token, phase: *phase, time: state.time }
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
        wall(self.begun(), self.seen.state.wall_offset)
    }

    fn begun(&self) -> StoreMillis {
        self.seen.asker.as_ref().map_or(self.seen.state.since, |asker| asker.since)
    }

    /// Returns whether a claimant is deciding about this interrupted attempt. Then
    /// [`owner`](Self::owner), [`since`](Self::since) and [`lease_left`](Self::lease_left) are those of that claimant, and the
    /// number, the token and the reason those of the interrupted attempt.
    ///
    /// An operator may [resolve](crate::Store::resolve) the attempt nevertheless: then the claimant's decision is lost. Once the
    /// question has ended without a decision, the key is interrupted again, and the attempt that was seen here still resolves it.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim(Operation::new("mail-1").owner("host-3"))?);
    /// let op = Operation::new("mail-1").owner("host-4").lease(Duration::from_secs(60));
    /// let asked = store.claim(&op)?; // Interrupted, and host-4 looks into it
    /// let Claim::InProgress(attempt) = store.claim("mail-1")? else { unreachable!() };
    /// assert!(attempt.is_being_decided());
    /// assert_eq!((attempt.number(), attempt.owner()), (1, Some("host-4")));
    /// assert_eq!(attempt.lease_left(), Some(Duration::from_secs(60)));
    /// # drop(asked);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn is_being_decided(&self) -> bool {
        self.seen.asker.is_some()
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
        match &self.seen.asker {
            Some(asker) => asker.owner.as_deref(),
            None => self.seen.state.owner.as_deref(),
        }
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

    /// Returns the label of the claimant or operator that held, interrupted or resolved the key by a word: the owner label
    /// of its operation, or of the policy of its handle.
    ///
    /// ```
    /// # use onlyonce::{Claim, Policy, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// let ann = store.with_policy(Policy::new().owner("ann"));
    /// let Claim::Interrupted(lost) = ann.claim("mail-1")? else { unreachable!() };
    /// lost.hold("the outbox can't be asked before Monday")?;
    /// let Claim::Held(attempt) = store.claim("mail-1")? else { unreachable!() };
    /// assert_eq!(attempt.decided_by(), Some("ann"));
    /// assert_eq!(attempt.reason(), Some("the outbox can't be asked before Monday"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn decided_by(&self) -> Option<&str> {
        self.seen.state.by()
    }

    /// Returns when the attempt ended, as the wall clock showed it then: when it was aborted, held, or noticed to be
    /// interrupted. `None` while it is claimed, or if no record tells: for example, if its process died.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// claim.abort("the server is down")?;
    /// let Some(State::Aborted(attempt)) = store.get("mail-1")? else { unreachable!() };
    /// assert!(attempt.ended_at() >= Some(attempt.since()));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn ended_at(&self) -> Option<SystemTime> {
        let state = &self.seen.state;
        (state.phase != Phase::Claimed).then(|| wall(state.time, state.wall_offset))
    }

    /// Returns the fingerprint of the attempt's request, if it had one.
    ///
    /// ```
    /// # use onlyonce::{Claim, Fingerprint, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let request = Fingerprint::of("POST /mails {…}");
    /// let mine = store.claim(Operation::new("mail-1").fingerprint(request))?;
    /// let Claim::InProgress(attempt) = store.claim("mail-1")? else { unreachable!() };
    /// assert_eq!(attempt.fingerprint(), Some(request));
    /// # drop(mine);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.seen.state.fingerprint
    }

    /// Returns what the attempt, or one before it, saved last of its progress.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("import")? else { unreachable!() };
    /// claim.save_progress("file 3 of 9")?;
    /// drop(claim);
    /// let Some(State::Interrupted(lost)) = store.get("import")? else { unreachable!() };
    /// let progress = lost.progress().map(|saved| saved.decode::<String>()).transpose()?;
    /// assert_eq!(progress.as_deref(), Some("file 3 of 9"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn progress(&self) -> Option<Payload> {
        self.seen.state.progress().map(progress::decode)
    }

    /// Returns the name of the step that was [announced](crate::Step::announced) last and has not ended, by this attempt or by
    /// one before it whose fate is open. That step may have run.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, State, Step, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// claim.step(Step::new("render").announced(), |_step| Ok::<_, Error>(()))?;
    /// let _ = claim.step(Step::new("send").announced(), |_step| Err::<(), _>(Error::invalid("timed out")));
    /// drop(claim);
    /// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// assert_eq!(lost.open_step(), Some("send")); // "render" has ended
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn open_step(&self) -> Option<&str> {
        self.seen.state.announced().last().map(|step| &*step.name)
    }

    /// Returns the names of all steps that were announced and have not ended, in the order of their announcements. See
    /// [`open_step`](Self::open_step).
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// assert_eq!(lost.open_steps().count(), 0);
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    pub fn open_steps(&self) -> impl Iterator<Item = &str> {
        self.seen.state.announced().iter().map(|step| &*step.name)
    }

    /// Returns the key that [`ClaimHandle::downstream_key`](crate::ClaimHandle::downstream_key) returned to the attempt for
    /// that label: to ask another service what became of its call.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # fn psp_has(_: &str) -> bool { true }
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("order-17")?);
    /// let Some(State::Interrupted(lost)) = store.get("order-17")? else { unreachable!() };
    /// let was_charged = psp_has(&lost.downstream_key("psp"));
    /// # assert!(was_charged);
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    #[must_use]
    pub fn downstream_key(&self, label: &str) -> String {
        downstream_key(self.seen.secret, &self.seen.key, Purpose::Label, label)
    }

    /// Returns the key that [`StepHandle::downstream_key`](crate::StepHandle::downstream_key) returned to the attempt for the
    /// step of that name.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// let key = claim.step("send", |step| Ok::<_, Error>(step.downstream_key()))?;
    /// drop(claim);
    /// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// assert_eq!(lost.downstream_key_of_step("send"), key);
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    #[must_use]
    pub fn downstream_key_of_step(&self, name: &str) -> String {
        downstream_key(self.seen.secret, &self.seen.key, Purpose::Step, name)
    }

    /// Returns for how long the next attempt has to wait, counted from when this attempt was read; `None` if it need not
    /// wait. See [`Abort::retry_in`](crate::Abort::retry_in).
    ///
    /// ```
    /// # use onlyonce::{Abort, Claim, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// claim.abort(Abort::new("the server is busy").retry_in(Duration::from_secs(30)))?;
    /// # sim.advance(Duration::from_secs(10));
    /// let Claim::Delayed(attempt) = store.claim("mail-1")? else { unreachable!() }; // 10 s later
    /// assert_eq!(attempt.retry_in(), Some(Duration::from_secs(20)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn retry_in(&self) -> Option<Duration> {
        let (state, now) = (&self.seen.state, self.seen.now);
        let at = state.retry_at().filter(|_| is_delayed(state, now))?;
        Some(Duration::from_millis(at.since(now)))
    }

    /// Returns whether the claim is detached: it lasts until its lease passes, whatever becomes of its process. See
    /// [`ClaimGuard::detach`](crate::ClaimGuard::detach).
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("job-7")? else { unreachable!() };
    /// let _ticket = claim.detach(Duration::from_secs(900))?;
    /// let Claim::InProgress(attempt) = store.claim("job-7")? else { unreachable!() };
    /// assert!(attempt.is_detached());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn is_detached(&self) -> bool {
        // One whose lease has passed is interrupted like any other, and is shown without a lease.
        let is_claimed = self.seen.lease_until.is_some() && !self.is_being_decided();
        is_claimed && self.seen.state.detached().is_some()
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
        if self.is_being_decided() {
            f.write_str(" being decided")?;
        }
        if let Some(owner) = self.owner() {
            write!(f, " by {owner}")?;
        }
        write!(f, ", since {} s", self.seen.now.since(self.begun()) / 1000)?;
        if let Some(left) = self.lease_left() {
            match left.as_secs() {
                0 => write!(f, ", {} ms left", left.as_millis())?,
                seconds => write!(f, ", {seconds} s left")?,
            }
        }
        if let Some(delay) = self.retry_in() {
            write!(f, ", to be tried again in {} s", delay.as_secs_f64().ceil())?;
        }
        // What follows is about the attempt, and not about the claimant that decides.
        if self.is_being_decided() {
            write!(f, "; attempt {} was interrupted", self.number())?;
        }
        if let Some(reason) = self.reason() {
            let colon = if self.is_being_decided() { ":" } else { "," };
            write!(f, "{colon} {reason}")?;
        }
        if let Some(by) = self.decided_by() {
            write!(f, ", said by {by}")?;
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
