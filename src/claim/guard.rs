//! The owner's side of a claim: [`ClaimGuard`], which ends it, and [`ClaimHandle`].
//!
//! Promises: nothing borrows the store; an ending consumes its guard; a guard that is dropped without an ending leaves
//! the attempt interrupted, just as a crash at that point would. See `docs/protocol.md`, "What each ending leaves".

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Attempt, KeyCall, Pending, Ticket, progress, reserve, send};
use crate::backend::Shared;
use crate::engine::{Applied, Asks, Claimed, EncodedOutcome, Writing};
use crate::operation::{OutcomeParts, Settings, cut_label, encode_meta};
use crate::protocol::{Answer, Call, CallExtras, Conditions, KeyState, Presence};
use crate::sync::{self, AtomicBool, Mutex, Ordering};
use crate::types::{KeyHash, Token};
use crate::{Abort, Encode, Error, ErrorKind, Key, OnDrop, OnUnkept, Outcome, Payload, Result};

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

/// A handle to a granted claim, for everything except ending it. A clone refers to the same claim.
///
/// After the claim has ended, the handle can only be read: every change is refused as `ClaimLost`.
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
pub struct ClaimHandle(Arc<ClaimInner>);

struct ClaimInner {
    shared: Arc<Shared>,
    key: Key<'static>,
    hash: KeyHash,
    token: Token,
    attempt: u32,
    settings: Settings,
    interruption: Option<Attempt>,
    /// What was saved last.
    progress: Mutex<Option<Arc<[u8]>>>,
    /// It was attached by a ticket: a drop leaves it as it was.
    is_attached: bool,
    /// What a drop means from now on.
    drop_aborts: AtomicBool,
    has_ended: AtomicBool,
}

/// What came before a grant.
#[derive(Default)]
pub(crate) struct Before {
    pub(crate) interruption: Option<Attempt>,
    pub(crate) progress: Option<Arc<[u8]>>,
}

impl ClaimGuard {
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
                key: key.clone().into_owned(),
                hash,
                token: claimed.token,
                attempt: claimed.attempt,
                settings,
                interruption: before.interruption,
                progress: Mutex::new(before.progress),
                is_attached: false,
                drop_aborts,
                has_ended: AtomicBool::new(false),
            })),
        }
    }

    /// The guard of a claim that was attached by its ticket.
    pub(crate) fn attached(
        shared: Arc<Shared>,
        key: &Key<'_>,
        hash: KeyHash,
        state: &KeyState,
        settings: Settings,
    ) -> Self {
        let claimed = Claimed { token: state.token, attempt: state.attempt };
        let progress = state.extras.as_ref().and_then(|extras| extras.progress.clone());
        let before = Before { interruption: None, progress };
        let mut guard = ClaimGuard::new(shared, key, hash, claimed, settings, before);
        if let Some(inner) = Arc::get_mut(&mut guard.handle.0) {
            inner.is_attached = true;
        }
        guard
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
    /// - `ClaimLost`: another attempt took over. Nothing was changed.
    /// - `TooLarge`, `StorageFull`, `Io`, or a value that did not encode: nothing was written, and
    ///   [`Error::into_claim`] returns the guard. Dropping the error with the guard in it interrupts the attempt,
    ///   whatever [`OnDrop`] is set, because the effect may have happened.
    /// - `Indeterminate`: the result may or may not be recorded. Reopen the store and call `get`.
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
        self.ending(outcome)?.make()
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

    /// Ends the claim as one that had no effect, so that the next claim is granted. If an earlier attempt's fate is
    /// still open, the key is interrupted again, because an abort says nothing about the earlier attempt.
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
        self.aborting(why.into()).make()
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
        self.aborting(why.into()).send()
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
        self.park(&cut_label(reason.into()))
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
        let lease_ms = match lease_millis(lease) {
            Ok(lease_ms) => lease_ms,
            Err(e) => return Err(e.giving_back(self)),
        };
        let inner = &self.0;
        let reserve = inner.reserve();
        let extras = Some(&CallExtras { reserve, ..CallExtras::default() });
        let conditions = Conditions { lease_ms: Some(lease_ms), extras, ..Conditions::default() };
        let writing = Writing { conditions, reserve, ..Writing::default() };
        let call = Call::Detach(inner.token);
        let done = inner.shared.apply(&inner.key, inner.hash, call, &writing);
        let ticket =
            inner.shared.secret().map(|secret| Ticket::new(&secret, &inner.key, inner.token));
        if matches!(&done, Ok(applied) if applied.answer == Answer::Held) {
            return Err(inner.held().giving_back(self));
        }
        self.ended(done)?;
        ticket
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

    /// As a drop, with another reason.
    pub(crate) fn leave(self, reason: &str) {
        self.0.leave(reason);
    }

    /// Ends it without the outcome that could not be recorded, for that reason, as the policy says.
    pub(crate) fn end_unkept(self, reason: &Error, failure: bool) -> Result<()> {
        let reason = cut_label(reason.to_string());
        if self.0.settings.on_unkept == OnUnkept::Complete {
            let outcome = Outcome::without_result(reason);
            return self.record(if failure { outcome.into_failure() } else { outcome });
        }
        self.park(&reason)
    }

    /// The ending with this outcome, to be made; or why it can't be recorded, with the guard.
    #[inline]
    pub(crate) fn ending(self, outcome: Outcome) -> Result<EndingCall> {
        self.is_past_its_effect();
        match outcome.into_parts(self.0.shared.keeping()) {
            Ok(parts) => {
                let meta = encode_meta(&parts.meta);
                Ok(EndingCall { guard: self, how: How::Outcome { parts, meta } })
            }
            Err(e) => Err(e.giving_back(self)),
        }
    }

    pub(crate) fn aborting(self, why: Abort) -> EndingCall {
        EndingCall { guard: self, how: How::Abort(why) }
    }

    /// Always at `Sync`: a held key must not be granted after a crash.
    fn park(self, reason: &str) -> Result<()> {
        let conditions = Conditions { reason: Some(reason), ..Conditions::default() };
        let writing = Writing { conditions, ..Writing::default() };
        let call = Call::Park(self.0.token);
        let done = self.0.shared.apply(&self.0.key, self.0.hash, call, &writing);
        self.ended(done)
    }

    /// An outcome exists, or is about to, so the effect may have happened: from here on a drop can't mean that nothing
    /// happened.
    fn is_past_its_effect(&self) {
        self.on_drop(OnDrop::Interrupt);
    }

    fn ended(self, done: Result<Applied>) -> Result<()> {
        match done {
            Ok(applied) => {
                self.0.has_ended.store(true, Ordering::SeqCst);
                if applied.answer == Answer::Done { Ok(()) } else { Err(self.lost()) }
            }
            // Space was needed and could not be made: nothing was written.
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::Io) => {
                Err(e.giving_back(self))
            }
            Err(e) => {
                // Placed, and it is unknown whether it is durable: this claim can't be ended another way.
                let is_unknown = e.kind() == ErrorKind::Indeterminate;
                self.0.has_ended.fetch_or(is_unknown, Ordering::SeqCst);
                Err(e)
            }
        }
    }
}

/// An ending that is about to be recorded. Dropped before that, it is as its guard dropped.
pub(crate) struct EndingCall {
    guard: ClaimGuard,
    how: How,
}

enum How {
    Outcome { parts: OutcomeParts, meta: Vec<u8> },
    Abort(Abort),
}

impl EndingCall {
    fn send(self) -> Pending<()> {
        let shared = Arc::clone(&self.guard.0.shared);
        send(&shared, self, None)
    }

    #[inline]
    fn make(self) -> Result<()> {
        let (shared, hash) = (&self.guard.0.shared, self.guard.0.hash);
        let done = self.ask(|key, call, writing| shared.apply(key, hash, call, writing));
        self.guard.ended(done)
    }
}

impl Asks for EndingCall {
    #[inline]
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let inner = &self.guard.0;
        let (settings, level) = (&inner.settings, Some(inner.settings.durability));
        match &self.how {
            How::Outcome { parts, meta } => {
                let writing = Writing {
                    level,
                    conditions: Conditions {
                        retention_ms: parts.retention_ms.or(settings.retention_ms),
                        remember_ms: settings.remember_ms,
                        reason: parts.missing.as_deref(),
                        ..Conditions::default()
                    },
                    outcome: Some(EncodedOutcome::of(parts, meta)),
                    ..Writing::default()
                };
                let token = inner.token;
                let call = if parts.failure { Call::Fail(token) } else { Call::Complete(token) };
                with(&inner.key, call, &writing)
            }
            How::Abort(why) => {
                let extras = CallExtras { retry_ms: why.retry_ms(), ..CallExtras::default() };
                let writing = Writing {
                    level,
                    conditions: Conditions {
                        retention_ms: settings.retention_ms,
                        reason: Some(why.reason()),
                        extras: Some(&extras),
                        ..Conditions::default()
                    },
                    ..Writing::default()
                };
                with(&inner.key, Call::Abort(inner.token), &writing)
            }
        }
    }
}

impl KeyCall for EndingCall {
    type Answer = ();

    fn key(&self) -> &Key<'_> {
        &self.guard.0.key
    }

    fn shared(&self) -> Option<&Arc<Shared>> {
        Some(&self.guard.0.shared)
    }

    fn answered(self, _: &Arc<Shared>, _: KeyHash, done: Result<Applied>) -> Result<()> {
        self.guard.ended(done)
    }

    fn refused(self, error: Error) -> Error {
        error.giving_back(self.guard)
    }

    /// The ending goes on without its caller.
    fn left(&self) {
        self.guard.0.has_ended.store(true, Ordering::SeqCst);
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

/// The reason recorded for an attempt whose guard was dropped without an ending.
const DROPPED: &str = "dropped without a word";

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        self.handle.0.leave(if sync::is_panicking() { "its owner panicked" } else { DROPPED });
    }
}

impl ClaimInner {
    /// The owner leaves without an ending: an interruption, or the abort that `OnDrop::Abort` requested beforehand.
    fn leave(&self, reason: &str) {
        if self.has_ended.swap(true, Ordering::SeqCst) {
            return;
        }
        let abort = !self.is_attached && self.drop_aborts.load(Ordering::SeqCst);
        self.let_go(abort, if abort { "dropped before it had an effect" } else { reason });
    }

    fn let_go(&self, abort: bool, reason: &str) {
        let level = if abort { self.settings.durability } else { self.settings.claim_durability };
        let retention_ms = self.settings.retention_ms;
        let conditions = Conditions { retention_ms, ..Conditions::default() };
        let writing = Writing { level: Some(level), conditions, ..Writing::default() };
        let call = if abort { Call::Abort(self.token) } else { Call::Interrupt(self.token) };
        self.shared.let_go(&self.key, self.hash, call, reason, &writing);
    }

    /// Bytes that the claim reserves for its ending.
    fn reserve(&self) -> u64 {
        let result_bytes_max = self.shared.result_bytes_max();
        reserve(result_bytes_max, self.settings.reserve_bytes, self.key.bytes().len())
    }

    fn lost(&self) -> Error {
        let message = format!(
            "the claim on {} with token {} is lost: it has ended, or somebody took over; change nothing more",
            self.key, self.token
        );
        Error::new(ErrorKind::ClaimLost, message)
    }

    fn held(&self) -> Error {
        let message = format!("{} is held: its owner may still complete or abort", self.key);
        Error::new(ErrorKind::Held, message)
    }
}

/// Limited to a `u64`, which store time never reaches.
pub(super) fn lease_millis(lease: Duration) -> Result<u64> {
    match u64::try_from(lease.as_millis()).unwrap_or(u64::MAX) {
        0 => Err(Error::invalid("a lease of zero lapses at once: give a longer one")),
        millis => Ok(millis),
    }
}

impl fmt::Debug for ClaimGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClaimGuard").field(&self.handle).finish()
    }
}

impl ClaimHandle {
    /// Returns the key.
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

    /// Returns the claim's fencing token. Pass the token to the resource that the work changes, so that the resource
    /// can refuse a stale owner, too.
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

    /// Returns the number of the attempt. The first attempt since the key was absent has the number 1.
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

    /// Returns the interrupted attempt that this attempt follows, if there is one.
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

    /// Renews the lease, which then runs for `lease` from now.
    ///
    /// A lease is kept only in memory, so the renewal doesn't have to be durable: the next open of the store finds the
    /// attempt interrupted, even if its lease has not lapsed. The lease of a [detached](ClaimGuard::detach) claim, which
    /// was attached by its ticket, is recorded: its renewal is durable on return at the level of
    /// [`claim_durability`](crate::Policy::claim_durability).
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
    /// // Too late: it lapsed, and another attempt took over.
    /// let Claim::Interrupted(lost) = store.claim(&op)? else { unreachable!() };
    /// let new_owner = lost.take_over()?;
    /// assert_eq!(claim.renew(Duration::from_secs(30)).unwrap_err().kind(), ErrorKind::ClaimLost);
    /// # drop(new_owner);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if another attempt took over, or the claim has ended. `Held` if the key was held. `Invalid` for a
    /// lease of zero. If a record is written (see Cost), also the errors of [`Store::claim`](crate::Store::claim).
    ///
    /// # Cost
    /// Usually nothing is written, and the call doesn't wait. If the lease had lapsed and a claimant noticed, or the claim
    /// was attached, the claim is written again: one write, and one sync if the claim is at `Sync`. That record is durable
    /// on return.
    pub fn renew(&self, lease: Duration) -> Result<()> {
        let (inner, lease_ms) = (&self.0, lease_millis(lease)?);
        if inner.has_ended.load(Ordering::SeqCst) {
            return Err(self.lost());
        }
        let reserve = inner.reserve();
        let extras = Some(&CallExtras { reserve, ..CallExtras::default() });
        let writing = Writing {
            level: Some(inner.settings.claim_durability),
            reserve,
            conditions: Conditions { lease_ms: Some(lease_ms), extras, ..Conditions::default() },
            ..Writing::default()
        };
        let applied =
            inner.shared.apply(&inner.key, inner.hash, Call::Renew(inner.token), &writing)?;
        match applied.answer {
            // The guard was dropped meanwhile, so no guard is left to end the renewed claim.
            Answer::Done if inner.has_ended.load(Ordering::SeqCst) => {
                inner.let_go(false, DROPPED);
                Err(self.lost())
            }
            Answer::Done => Ok(()),
            Answer::Held => Err(inner.held()),
            _ => Err(self.lost()),
        }
    }

    /// Saves how far the work has come: `value` replaces what was saved before. It is shown to the next attempt, if this
    /// one is interrupted or aborted, and to operators; an outcome removes it.
    ///
    /// The progress is durable on return at the level of [`claim_durability`](crate::Policy::claim_durability). It costs
    /// one write, and one sync at `Sync`.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("import")? else { unreachable!() };
    /// claim.save_progress("3 of 9")?; // files imported
    /// drop(claim); // a crash, say
    /// let Claim::Interrupted(lost) = store.claim("import")? else { unreachable!() };
    /// let claim = lost.take_over()?;
    /// let done = claim.progress().map(|saved| saved.decode::<String>()).transpose()?;
    /// assert_eq!(done.as_deref(), Some("3 of 9"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if another attempt took over, the claim has ended, or its lease has lapsed and a claimant was asked about it
    /// (a [renewal](Self::renew) may still get it back). `TooLarge` for more than 16 KiB, or more than the longest result. Also
    /// the errors of [`Store::claim`](crate::Store::claim).
    pub fn save_progress<V: Encode + ?Sized>(&self, value: &V) -> Result<()> {
        let inner = &self.0;
        let saved = progress::encode(value, inner.shared.result_bytes_max())?;
        if inner.has_ended.load(Ordering::SeqCst) {
            return Err(self.lost());
        }
        // Words of one claim go one after another: an older progress must not replace a newer one.
        let mut newest = inner.progress.lock();
        let extras = Some(&CallExtras { progress: Some(&saved), ..CallExtras::default() });
        let writing = Writing {
            level: Some(inner.settings.claim_durability),
            reserve: inner.reserve() + saved.len() as u64,
            conditions: Conditions { extras, ..Conditions::default() },
            ..Writing::default()
        };
        let call = Call::Progress(inner.token);
        let applied = inner.shared.apply(&inner.key, inner.hash, call, &writing)?;
        if applied.answer != Answer::Done {
            return Err(self.lost());
        }
        *newest = Some(saved.into());
        Ok(())
    }

    /// Returns what was saved last, by this attempt or by one before it.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("import")? else { unreachable!() };
    /// assert!(claim.progress().is_none());
    /// claim.save_progress("3 of 9")?;
    /// assert_eq!(claim.progress().unwrap().decode::<String>()?, "3 of 9");
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn progress(&self) -> Option<Payload> {
        self.0.progress.lock().as_deref().and_then(progress::decode)
    }

    /// Returns whether the claim is still this attempt's: it has not ended, its lease has not passed, and nobody took over
    /// or revoked it. Work that takes long asks now and then, and stops.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("import")? else { unreachable!() };
    /// assert!(claim.is_live());
    /// let Some(State::InProgress(attempt)) = store.get("import")? else { unreachable!() };
    /// store.interrupt(&attempt, "the wrong file")?; // an operator
    /// assert!(!claim.is_live());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Cost
    /// A look into memory. Once the claim is no longer live, up to one read.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let inner = &self.0;
        if inner.has_ended.load(Ordering::SeqCst) {
            return false;
        }
        match inner.shared.look(&inner.key, inner.hash) {
            Ok(Some(seen)) => seen.presence == Presence::Owner && seen.state.token == inner.token,
            // Closed, or poisoned: the work can record nothing more.
            _ => false,
        }
    }

    /// Waits until the claim is no longer this attempt's: it has ended, its lease has passed, somebody took over or revoked it,
    /// or the store was closed. The answer comes as soon as [`is_live`](Self::is_live) is false. Work that can be stopped waits
    /// for this beside the work.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("import")? else { unreachable!() };
    /// let ended = claim.ended(); // in a select!, beside the work
    /// # let State::InProgress(attempt) = store.get("import")?.unwrap() else { unreachable!() };
    /// # store.interrupt(&attempt, "the wrong file")?;
    /// ended.wait()?;
    /// assert!(!claim.is_live());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Cost
    /// A look into memory, and one more for each change of the key.
    pub fn ended(&self) -> Pending<()> {
        let inner = &self.0;
        if inner.has_ended.load(Ordering::SeqCst) {
            return Pending::ready(Ok(()));
        }
        Pending::new(inner.shared.send_watch(&inner.key, inner.token), |told| told.map(|_| ()))
    }

    /// Sets what dropping the guard means from now on. Set it to [`OnDrop::Interrupt`] just before the effect. The
    /// setting is kept in memory only; nothing is written.
    ///
    /// ```
    /// # use onlyonce::{Claim, OnDrop, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let op = Operation::new("charge-7").on_drop(OnDrop::Abort); // until the first effect, a drop is harmless
    /// if let Claim::Acquired(claim) = store.claim(op)? {
    ///     claim.on_drop(OnDrop::Interrupt); // from here on: unknown
    ///     claim.complete("charged")?;
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn on_drop(&self, on_drop: OnDrop) {
        self.0.drop_aborts.store(on_drop == OnDrop::Abort, Ordering::SeqCst);
    }

    fn lost(&self) -> Error {
        self.0.lost()
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
