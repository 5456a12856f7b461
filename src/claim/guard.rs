//! The owner's side of a claim: [`ClaimGuard`], which ends it.
//!
//! Promises: nothing borrows the store; an ending consumes its guard; a guard that is dropped without an ending leaves
//! the attempt interrupted, just as a crash at that point would. See `docs/protocol.md`, "What each ending leaves".

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::ending::{Detaching, How, recording};
use super::handle::{ClaimInner, DROPPED, Liveness, Saved, lease_millis};
use super::seen::unexpected;
use super::step::{EarlierSteps, Steps};
use super::{Before, ClaimHandle, EndingCall, Pending, Ticket, make, send};
use crate::backend::Shared;
use crate::engine::{Applied, Claimed};
use crate::operation::{Settings, cut_label};
use crate::protocol::{Answer, KeyState};
use crate::sync::{self, AtomicBool, AtomicU64, Mutex};
use crate::types::KeyHash;
use crate::{Abort, Encode, Error, ErrorKind, Key, OnDrop, OnUnkept, Outcome, Result};

/// A granted claim, which owns the key until you end the claim. Each ending consumes the guard.
///
/// The guard derefs to [`ClaimHandle`], which has the calls that the work may make. Dropping the guard without an
/// ending (by a `?`, a panic, a cancelled future) interrupts the attempt, as a crash at that point would;
/// [`OnDrop::Abort`] changes that.
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

impl ClaimGuard {
    // Every granted claim passes here, and its parts are large to hand on.
    #[inline(always)]
    pub(crate) fn new(
        shared: Arc<Shared>,
        key: &Key<'_>,
        hash: KeyHash,
        claimed: Claimed,
        settings: Settings,
        before: Before,
    ) -> Self {
        let drop_aborts = AtomicBool::new(settings.on_drop == OnDrop::Abort);
        ClaimGuard {
            handle: ClaimHandle(Arc::new(ClaimInner {
                shared,
                key: key.to_static(),
                hash,
                token: claimed.token,
                attempt: claimed.attempt,
                settings,
                interruption: before.interruption,
                is_earlier_fate_open: before.is_fate_open,
                progress: Mutex::new(Saved { order: (None, 0), value: before.progress }),
                saves: AtomicU64::new(0),
                is_attached: before.is_attached,
                drop_aborts,
                liveness: Liveness::new(),
                steps: Steps::new(claimed, before.steps),
                kept_alive: Mutex::new(None),
            })),
        }
    }

    /// The guard of a claim that was attached by its ticket.
    pub(crate) fn attached(
        shared: Arc<Shared>,
        key: &Key<'_>,
        hash: KeyHash,
        state: &KeyState,
        mut settings: Settings,
    ) -> Self {
        let claimed = Claimed { token: state.token, life: state.life, attempt: state.attempt };
        // The operation that set the lease is not known here, but its claim's record is.
        let recorded = state.detached().map(|lease| lease.millis);
        settings.lease_ms = settings.lease_ms.or(recorded);
        let progress = state.extras.as_ref().and_then(|extras| extras.progress.clone());
        // Another process may have begun steps of this attempt.
        let steps = EarlierSteps::of_open(Some(state));
        let is_fate_open = state.open_fate.is_some();
        let before =
            Before { interruption: None, is_fate_open, progress, steps, is_attached: true };
        ClaimGuard::new(shared, key, hash, claimed, settings, before)
    }

    /// Ends the claim with a result, which every later claim replays.
    ///
    /// The ending is durable on return at the level of [`durability`](crate::Policy::durability). It costs one write,
    /// and one sync at `Sync`.
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
    /// - `ClaimLost`: another attempt took over, or the claim was revoked. Nothing was changed.
    /// - `Held`: a step held the claim ([`StepHandle::hold`](crate::StepHandle::hold)). Resolve the key.
    /// - `TooLarge`, `StorageFull`, `Io`, or a value that did not encode: nothing was written, and
    ///   [`Error::into_claim`] returns the guard. Dropping the error with the guard in it interrupts the attempt,
    ///   whatever [`OnDrop`] is set, because the effect may have happened.
    /// - `Indeterminate`: the result may or may not be recorded. Reopen the store and call `get`.
    /// - `Poisoned`, `Closed` or `Forked` (see [`ErrorKind`]): nothing was written by this call.
    pub fn complete<V: Encode + ?Sized>(self, value: &V) -> Result<()> {
        self.is_past_its_effect();
        self.record(Outcome::success(value))
    }

    /// Ends the claim with a final failure, which every later claim replays.
    ///
    /// Durability and cost are those of [`complete`](Self::complete).
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
    /// The errors of [`complete`](Self::complete).
    pub fn fail<V: Encode + ?Sized>(self, value: &V) -> Result<()> {
        self.is_past_its_effect();
        self.record(Outcome::failure(value))
    }

    /// Ends the claim with an outcome that has metadata or a retention of its own.
    ///
    /// Durability and cost are those of [`complete`](Self::complete).
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
    /// The errors of [`complete`](Self::complete).
    pub fn record(self, outcome: Outcome) -> Result<()> {
        self.may_end()?;
        self.is_past_its_effect();
        // Without an `EndingCall`: every completion passes here, and one is large to move.
        match outcome.into_parts(self.0.shared.keeping()) {
            Ok(parts) => {
                let inner = &self.0;
                let (call, writing) = recording(inner.token, &inner.settings, &parts);
                let done = inner.shared.apply(&inner.key, inner.hash, call, &writing);
                self.ended(done)
            }
            Err(e) => Err(e.giving_back(self)),
        }
    }

    /// Ends the claim as [`complete`](Self::complete) does, and gives the answer later.
    ///
    /// The ending is sent at once. If this value is dropped before the answer is there, the ending goes on, and the claim is
    /// not the caller's any more.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// # async fn end(claim: onlyonce::ClaimGuard) -> onlyonce::Result<()> {
    /// claim.complete_async("paid").await?;
    /// # Ok(())
    /// # }
    /// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// # let mut ending = std::pin::pin!(end(claim));
    /// # while ending.as_mut().poll(&mut context).is_pending() {}
    /// # assert!(matches!(store.claim("order-17")?, Claim::Completed(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`complete`](Self::complete), as the answer.
    pub fn complete_async<V: Encode + ?Sized>(self, value: &V) -> Pending<()> {
        self.is_past_its_effect();
        self.record_async(Outcome::success(value))
    }

    /// Ends the claim as [`fail`](Self::fail) does, and gives the answer later, as
    /// [`complete_async`](Self::complete_async) does.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.fail_async("card declined").wait()?;
    /// assert!(matches!(store.claim("order-17")?, Claim::Failed(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`complete`](Self::complete), as the answer.
    pub fn fail_async<V: Encode + ?Sized>(self, value: &V) -> Pending<()> {
        self.is_past_its_effect();
        self.record_async(Outcome::failure(value))
    }

    /// Ends the claim as [`record`](Self::record) does, and gives the answer later, as
    /// [`complete_async`](Self::complete_async) does.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// claim.record_async(Outcome::success("created").meta("status", 201)).wait()?;
    /// assert!(matches!(store.claim("k")?, Claim::Completed(done) if done.meta("status") == Some("201")));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`complete`](Self::complete), as the answer.
    pub fn record_async(self, outcome: Outcome) -> Pending<()> {
        match self.ending(outcome) {
            Ok(ending) => ending.send(),
            Err(e) => Pending::ready(Err(e)),
        }
    }

    /// Ends the claim as one that had no effect, so that the next claim is granted. The key is interrupted instead if an
    /// earlier attempt's fate is still open, or if an [announced](crate::Step::announced) step has not ended: the abort says
    /// nothing about either.
    ///
    /// The ending is durable on return at the level of [`durability`](crate::Policy::durability). It costs one write,
    /// and one sync at `Sync`.
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
    /// The errors of [`complete`](Self::complete).
    pub fn abort(self, why: impl Into<Abort>) -> Result<()> {
        self.aborting(why.into())?.make()
    }

    /// Ends the claim as [`abort`](Self::abort) does, and gives the answer later, as
    /// [`complete_async`](Self::complete_async) does.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.abort_async("the other side is down, nothing was sent").wait()?;
    /// assert!(matches!(store.claim("order-17")?, Claim::Acquired(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`complete`](Self::complete), as the answer.
    pub fn abort_async(self, why: impl Into<Abort>) -> Pending<()> {
        match self.aborting(why.into()) {
            Ok(ending) => ending.send(),
            Err(e) => Pending::ready(Err(e)),
        }
    }

    /// Ends the claim without an outcome and holds its key: no claim is granted, under any policy, until the key is
    /// [resolved](crate::Store::resolve). For work that needs a person: an approval, or an effect of which nobody can say
    /// whether it happened. What was [saved](ClaimHandle::save_progress) is shown to that person.
    ///
    /// The hold is durable on return, always at `Sync`. It costs one write and one sync. A reason of more than 512 bytes is
    /// cut.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("refund-7")? else { unreachable!() };
    /// claim.save_progress("500 EUR to Ada")?;
    /// claim.hold("above 100 EUR somebody has to approve it")?;
    /// let Claim::Held(attempt) = store.claim("refund-7")? else { unreachable!() };
    /// assert_eq!(attempt.reason(), Some("above 100 EUR somebody has to approve it"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`complete`](Self::complete).
    pub fn hold(self, reason: impl Into<String>) -> Result<()> {
        self.parking(cut_label(reason.into()))?.make()
    }

    /// Holds the key as [`hold`](Self::hold) does, and gives the answer later, as [`complete_async`](Self::complete_async)
    /// does.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("refund-7")? else { unreachable!() };
    /// claim.hold_async("above 100 EUR somebody has to approve it").wait()?;
    /// assert!(matches!(store.claim("refund-7")?, Claim::Held(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`complete`](Self::complete), as the answer.
    pub fn hold_async(self, reason: impl Into<String>) -> Pending<()> {
        match self.parking(cut_label(reason.into())) {
            Ok(ending) => ending.send(),
            Err(e) => Pending::ready(Err(e)),
        }
    }

    /// Hands the claim over: from now on it lasts until `lease` has passed, whatever becomes of this process, and its
    /// ticket [attaches](crate::Store::attach) it again in any task, process or request. For work that ends elsewhere: a
    /// job that calls back, a page that a person submits.
    ///
    /// Others see the key in progress meanwhile. Once the lease has passed without an ending, the key is interrupted, and
    /// the ticket still counts until somebody took over.
    ///
    /// The lease is durable on return, always at `Sync`. It costs one write and one sync.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # let Claim::Acquired(claim) = store.claim("job-7")? else { unreachable!() };
    /// let ticket = claim.detach(Duration::from_secs(3600))?;
    /// # drop(store);
    /// let store = sim.open()?; // after a restart
    /// assert!(matches!(store.claim("job-7")?, Claim::InProgress(_)));
    /// store.attach(&ticket)?.complete("done")?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// - `ClaimLost`: another attempt took over. Nothing was changed.
    /// - `Held` if the key was held meanwhile, `Invalid` for a lease of zero, `StorageFull`, `Io`: nothing was written, and
    ///   [`Error::into_claim`] returns the guard.
    /// - `Indeterminate`: the claim may or may not be detached. Reopen the store and call `get`.
    pub fn detach(self, lease: Duration) -> Result<Ticket> {
        let shared = Arc::clone(&self.0.shared);
        make(&shared, self.detaching(lease)?)
    }

    /// Hands the claim over as [`detach`](Self::detach) does, and gives the ticket later.
    ///
    /// If this value is dropped before the answer is there, the claim is detached nevertheless, and nobody has its ticket: the
    /// key is interrupted once the lease has passed.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("job-7")? else { unreachable!() };
    /// let ticket = claim.detach_async(Duration::from_secs(3600)).wait()?;
    /// store.attach(&ticket)?.complete("done")?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`detach`](Self::detach), as the answer.
    pub fn detach_async(self, lease: Duration) -> Pending<Ticket> {
        let shared = Arc::clone(&self.0.shared);
        send(&shared, self.detaching(lease))
    }

    fn detaching(self, lease: Duration) -> Result<Detaching> {
        self.may_end()?;
        match lease_millis(lease) {
            Ok(lease_ms) => Ok(Detaching { guard: self, lease_ms }),
            Err(e) => Err(e.giving_back(self)),
        }
    }

    /// Returns a handle for the work. The handle can do everything except end the claim.
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

    /// Its caller is told an error instead of the grant, so no work began.
    pub(crate) fn untold(self) {
        self.0.withdraw();
    }

    /// As a drop, with another reason.
    pub(crate) fn leave(self, reason: &str) {
        self.0.leave(reason);
    }

    /// The ending without the outcome that could not be recorded, for that reason, as the policy says.
    pub(crate) fn unkept(self, reason: &Error, failure: bool) -> Result<EndingCall> {
        let reason = cut_label(reason.to_string());
        if self.0.settings.on_unkept == OnUnkept::Complete {
            let outcome = Outcome::without_result(reason);
            return self.ending(if failure { outcome.into_failure() } else { outcome });
        }
        self.parking(reason)
    }

    /// The ending with this outcome, to be made; or why it can't be recorded, with the guard.
    pub(crate) fn ending(self, outcome: Outcome) -> Result<EndingCall> {
        self.may_end()?;
        self.is_past_its_effect();
        match outcome.into_parts(self.0.shared.keeping()) {
            Ok(parts) => Ok(EndingCall { guard: self, how: How::Outcome(parts) }),
            Err(e) => Err(e.giving_back(self)),
        }
    }

    /// The abort, to be made.
    pub(crate) fn aborting(self, why: Abort) -> Result<EndingCall> {
        self.may_end()?;
        Ok(EndingCall { guard: self, how: How::Abort(why) })
    }

    /// The hold for that reason, to be made.
    fn parking(self, reason: String) -> Result<EndingCall> {
        self.may_end()?;
        Ok(EndingCall { guard: self, how: How::Park(reason) })
    }

    /// Refuses an ending after a step has held the claim, which is the owner's word on it until somebody resolves the key; and
    /// after a step was told that the claim is lost.
    #[inline]
    pub(super) fn may_end(&self) -> Result<()> {
        if self.0.liveness.is_live() { Ok(()) } else { Err(self.0.not_live()) }
    }

    /// An outcome exists, or is about to, so the effect may have happened: from here on a drop can't mean that nothing
    /// happened.
    fn is_past_its_effect(&self) {
        self.on_drop(OnDrop::Interrupt);
    }

    pub(super) fn ended(self, done: Result<Applied>) -> Result<()> {
        match done {
            Ok(applied) => {
                self.0.liveness.end();
                match applied.answer {
                    Answer::Done => Ok(()),
                    Answer::Lost => Err(self.lost()),
                    other => Err(unexpected(&self.0.shared, "an ending", other)),
                }
            }
            // Space was needed and could not be made: nothing was written.
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::Io) => {
                Err(e.giving_back(self))
            }
            Err(e) => {
                // Placed, and it is unknown whether it is durable: this claim can't be ended another way.
                if e.kind() == ErrorKind::Indeterminate {
                    self.0.liveness.end();
                }
                Err(e)
            }
        }
    }
}

impl Error {
    /// Returns the claim if its ending was refused before anything was written: with `TooLarge`, `StorageFull` or `Io`,
    /// or because a value didn't encode. The key is still yours. Record something smaller, or no result
    /// ([`Outcome::without_result`](crate::Outcome::without_result)), or wait for space.
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
        self.handle.0.leave(if sync::is_panicking() { "its owner panicked" } else { DROPPED });
    }
}

impl fmt::Debug for ClaimGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClaimGuard").field(&self.handle).finish()
    }
}
