//! What the work may do with its claim: [`ClaimHandle`].
//!
//! Promises: a handle can't end its claim; once the claim has ended, every change by a handle is refused.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::keep_alive::{KeptAlive, Renewer};
use super::seen::unexpected;
use super::step::{EarlierSteps, Steps};
use super::{Attempt, KeyCall, Pending, make, progress, reserve, send};
use crate::backend::Shared;
use crate::engine::{Applied, Asks, UNTOLD, Writing};
use crate::operation::Settings;
use crate::protocol::{Answer, Call, CallExtras, Conditions};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::types::{KeyHash, Lsn, Token};
use crate::{Encode, Error, ErrorKind, Key, OnDrop, Payload, Result};

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
pub struct ClaimHandle(pub(super) Arc<ClaimInner>);

pub(super) struct ClaimInner {
    pub(super) shared: Arc<Shared>,
    pub(super) key: Key<'static>,
    pub(super) hash: KeyHash,
    pub(super) token: Token,
    pub(super) attempt: u32,
    pub(super) settings: Settings,
    pub(super) interruption: Option<Attempt>,
    /// The fate of an earlier attempt is open.
    pub(super) is_earlier_fate_open: bool,
    /// What was saved last.
    pub(super) progress: Mutex<Saved>,
    /// Counts the calls that save progress.
    pub(super) saves: AtomicU64,
    /// It was attached by a ticket: a drop leaves it as it was.
    pub(super) is_attached: bool,
    /// What a drop means from now on.
    pub(super) drop_aborts: AtomicBool,
    pub(super) liveness: Liveness,
    pub(super) steps: Steps,
    /// What renews it in the background, if it is to be kept alive.
    pub(super) kept_alive: Mutex<Option<KeptAlive>>,
}

/// What was saved of its progress.
pub(super) struct Saved {
    /// Later calls have a greater one: the record that each replaced, and its number among those of this guard. Another backend
    /// names no records.
    pub(super) order: (Option<Lsn>, u64),
    pub(super) value: Option<Arc<[u8]>>,
}

/// What came before a grant.
#[derive(Default)]
pub(crate) struct Before {
    pub(crate) interruption: Option<Attempt>,
    pub(crate) is_fate_open: bool,
    pub(crate) progress: Option<Arc<[u8]>>,
    pub(crate) steps: EarlierSteps,
    /// The claim was detached, and is attached by its ticket.
    pub(crate) is_attached: bool,
}

/// Whether the claim can still be ended, as far as its guard and its handles know.
pub(super) struct Liveness(AtomicU32);

/// Nobody said a word that ends it.
const LIVE: u32 = 0;
/// Its guard ended it, handed it over or was dropped, or one of its steps was told that it is lost.
const OVER: u32 = 1;
/// One of its steps held it, or sent that hold.
const HELD_BY_STEP: u32 = 2;
/// Its detach was sent: the token goes on, and is not this guard's any more.
const HANDED_OVER: u32 = 3;

impl Liveness {
    pub(super) fn new() -> Self {
        Liveness(AtomicU32::new(LIVE))
    }

    #[inline]
    pub(super) fn is_live(&self) -> bool {
        self.0.load(Ordering::SeqCst) == LIVE
    }

    fn is_held_by_step(&self) -> bool {
        self.0.load(Ordering::SeqCst) == HELD_BY_STEP
    }

    /// Returns whether it was live until now.
    pub(super) fn end(&self) -> bool {
        self.0.compare_exchange(LIVE, OVER, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Its detach is sent. From now on nothing is renewed, and nobody leaves: that would be said of whoever attaches the claim.
    pub(super) fn hand_over(&self) {
        let _ = self.0.compare_exchange(LIVE, HANDED_OVER, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// It was not detached.
    pub(super) fn take_back(&self) {
        let _ = self.0.compare_exchange(HANDED_OVER, LIVE, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn is_handed_over(&self) -> bool {
        self.0.load(Ordering::SeqCst) == HANDED_OVER
    }

    /// The word of a step counts unless the claim was over before.
    pub(super) fn hold_by_step(&self) {
        let _ = self.0.compare_exchange(LIVE, HELD_BY_STEP, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// The reason recorded for an attempt whose guard was dropped without an ending.
pub(super) const DROPPED: &str = "dropped without a word";

impl ClaimInner {
    /// The owner leaves without an ending: an interruption, or the abort that `OnDrop::Abort` requested beforehand.
    pub(super) fn leave(&self, reason: &str) {
        if !self.liveness.end() {
            return;
        }
        let abort = !self.is_attached && self.drop_aborts.load(Ordering::SeqCst);
        self.let_go(abort, if abort { "dropped before it had an effect" } else { reason });
    }

    pub(super) fn let_go(&self, abort: bool, reason: &str) {
        let level = if abort { self.settings.durability } else { self.settings.claim_durability };
        let retention_ms = self.settings.retention_ms;
        let conditions = Conditions { retention_ms, ..Conditions::default() };
        let writing = Writing { level: Some(level), conditions, ..Writing::default() };
        let call = if abort { Call::Abort(self.token) } else { Call::Interrupt(self.token) };
        self.shared.let_go(&self.key, self.hash, call, reason, &writing);
    }

    /// Gives the claim back of which nobody was told.
    pub(super) fn withdraw(&self) {
        if self.liveness.end() {
            let (call, writing) = (Call::Withdraw(self.token), Writing::default());
            self.shared.let_go(&self.key, self.hash, call, UNTOLD, &writing);
        }
    }

    /// Bytes that the claim reserves for its ending.
    pub(super) fn reserve(&self) -> u64 {
        let result_bytes_max = self.shared.result_bytes_max();
        reserve(result_bytes_max, self.settings.reserve_bytes, self.key.bytes().len())
    }

    pub(super) fn lost(&self) -> Error {
        let message = format!(
            "the claim on {} with token {} is lost: it has ended, or somebody took over; change nothing more",
            self.key, self.token
        );
        Error::new(ErrorKind::ClaimLost, message)
    }

    /// Why a claim that is no longer live takes no ending.
    #[cold]
    pub(super) fn not_live(&self) -> Error {
        if !self.liveness.is_held_by_step() {
            return self.lost();
        }
        let message = format!("{} is held by one of its steps: resolve it", self.key);
        Error::new(ErrorKind::Held, message)
    }

    pub(super) fn held(&self) -> Error {
        let message = format!("{} is held: its owner may still complete or abort", self.key);
        Error::new(ErrorKind::Held, message)
    }
}

pub(super) fn lease_millis(lease: Duration) -> Result<u64> {
    let millis = whole_millis(lease);
    millis.ok_or_else(|| Error::invalid("a lease of zero lapses at once: give a longer one"))
}

/// `None`: less than one. Limited to a `u64`, which store time never reaches.
fn whole_millis(time: Duration) -> Option<u64> {
    Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).filter(|millis| *millis > 0)
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
        self.0.key.shown()
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
    /// Only the claimant that decided about that attempt knows it: after [`attach`](crate::Store::attach) this is always `None`,
    /// also in the same process, because a ticket and its record don't carry it. To learn whether an effect may have happened
    /// before, ask [`is_earlier_fate_open`](Self::is_earlier_fate_open).
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

    /// Returns whether the fate of an earlier attempt is open: it was interrupted, this attempt or one before took over, and
    /// nobody has said since that it was not applied. So its effect may have happened, and an
    /// [`abort`](crate::ClaimGuard::abort) of this attempt leads back to interrupted.
    ///
    /// Unlike [`interruption`](Self::interruption), this also holds for a claim that was attached by its ticket.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("refund-7")?);
    /// # let Claim::Interrupted(lost) = store.claim("refund-7")? else { unreachable!() };
    /// let claim = lost.take_over()?;
    /// let ticket = claim.detach(Duration::from_secs(900))?;
    /// let claim = store.attach(&ticket)?; // in the webhook
    /// if claim.is_earlier_fate_open() {
    ///     println!("it may have been refunded before: ask the bank");
    /// }
    /// # assert!(claim.is_earlier_fate_open());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn is_earlier_fate_open(&self) -> bool {
        self.0.is_earlier_fate_open
    }

    /// Renews the lease, which then runs for `lease` from now.
    ///
    /// A lease is kept only in memory, so the renewal doesn't have to be durable: the next open of the store finds the
    /// attempt interrupted, even if its lease has not lapsed. The lease of a [detached](crate::ClaimGuard::detach) claim, which
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
        make(&self.0.shared, self.renewing(lease)?)
    }

    /// Renews the lease as [`renew`](Self::renew) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # let op = Operation::new("long").lease(Duration::from_secs(30));
    /// # let Claim::Acquired(claim) = store.claim(op)? else { unreachable!() };
    /// claim.renew_async(Duration::from_secs(30)).wait()?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`renew`](Self::renew), as the answer.
    pub fn renew_async(&self, lease: Duration) -> Pending<()> {
        send(&self.0.shared, self.renewing(lease))
    }

    fn renewing(&self, lease: Duration) -> Result<Renewing> {
        let lease_ms = lease_millis(lease)?;
        self.may_change()?;
        Ok(Renewing { handle: self.clone(), lease_ms })
    }

    /// As [`renew_async`](Self::renew_async), in milliseconds.
    pub(super) fn renew_for(&self, lease_ms: u64) -> Pending<()> {
        let renewing = self.may_change().map(|()| Renewing { handle: self.clone(), lease_ms });
        send(&self.0.shared, renewing)
    }

    /// Renews the lease in the background from now on, each time by the lease of the claim's operation, until `ceiling` has
    /// passed since this call. The claim isn't renewed beyond that: its lease then passes, as if its owner had stopped renewing. A
    /// claim without a lease gets one that lasts until the ceiling. A further call begins anew, with another ceiling. A longer
    /// [renewal](Self::renew) of your own is replaced by the next one in the background.
    ///
    /// A claim that was attached by its ticket is renewed by the lease of the policy of the handle that attached it. If that
    /// policy has none, it is renewed by the length of the lease that was recorded last: by
    /// [`detach`](crate::ClaimGuard::detach), or by a renewal.
    ///
    /// Use it if the work has a known maximum time, but others should not wait that long after a crash. The work calls
    /// [`is_live`](Self::is_live), or waits for [`ended`](Self::ended), to learn that it lost the claim.
    ///
    /// The renewals end with the claim, or when its guard is dropped. They take no thread for each claim: one thread of the store
    /// keeps the time for all of them, and with [`manual_maintenance`](crate::StoreBuilder::manual_maintenance)
    /// [`step`](crate::Store::step) does.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// let op = Operation::new("import").lease(Duration::from_secs(30));
    /// let Claim::Acquired(claim) = store.claim(op)? else { unreachable!() };
    /// claim.keep_alive(Duration::from_secs(3600))?; // an import takes no longer
    /// # for _ in 0..4 { sim.advance(Duration::from_secs(15)); store.step()?; }
    /// assert!(claim.is_live()); // a minute later
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if the claim has ended. `Invalid` for a ceiling of zero. `Io` if a store on another backend can't start a
    /// thread. A renewal that fails later ends the renewals: the work learns of it when the lease has passed.
    ///
    /// # Cost
    /// Nothing is written, except for a claim that was attached by its ticket: each of its renewals is a record. A renewal is made
    /// whenever half of the lease has passed.
    pub fn keep_alive(&self, ceiling: Duration) -> Result<()> {
        let ceiling_ms = whole_millis(ceiling)
            .ok_or_else(|| Error::invalid("a ceiling of zero renews nothing: give a longer one"))?;
        self.may_change()?;
        let kept = Renewer::begin(self, self.0.settings.lease_ms, ceiling_ms)?;
        // The one before ends outside the lock.
        let before = self.0.kept_alive.lock().replace(kept);
        drop(before);
        Ok(())
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
    /// (a [renewal](Self::renew) may still get it back). `TooLarge` for a value of more than 16,378 bytes, or more than
    /// the longest result. Also the errors of [`Store::claim`](crate::Store::claim).
    pub fn save_progress<V: Encode + ?Sized>(&self, value: &V) -> Result<()> {
        make(&self.0.shared, self.saving(value)?)
    }

    /// Saves how far the work has come as [`save_progress`](Self::save_progress) does, and gives the answer later.
    ///
    /// Calls in flight at the same time may be recorded in any order.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("import")? else { unreachable!() };
    /// claim.save_progress_async("3 of 9").wait()?;
    /// assert_eq!(claim.progress().unwrap().decode::<String>()?, "3 of 9");
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`save_progress`](Self::save_progress), as the answer.
    pub fn save_progress_async<V: Encode + ?Sized>(&self, value: &V) -> Pending<()> {
        send(&self.0.shared, self.saving(value))
    }

    fn saving<V: Encode + ?Sized>(&self, value: &V) -> Result<Saving> {
        let saved = progress::encode(value, self.0.shared.result_bytes_max())?;
        self.may_change()?;
        let number = self.0.saves.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Saving { handle: self.clone(), saved, number })
    }

    /// A claim that has ended can't be changed.
    fn may_change(&self) -> Result<()> {
        if self.0.liveness.is_live() { Ok(()) } else { Err(self.lost()) }
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
        self.0.progress.lock().value.as_deref().map(progress::decode)
    }

    /// Returns whether the claim is still this attempt's: it has not ended, its lease has not passed, nobody took over or
    /// revoked it, and the store is open. Work that takes long asks now and then, and stops.
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
    /// A look into memory: the call never waits for the disk. A store on another backend asks that backend, and waits for the
    /// answer; a task waits for [`ended`](Self::ended) instead.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let inner = &self.0;
        inner.liveness.is_live() && inner.shared.is_live(&inner.key, inner.hash, inner.token)
    }

    /// Waits until the claim is no longer this attempt's: it has ended, its lease has passed, somebody took over or revoked it,
    /// or the store was closed. The answer comes as soon as [`is_live`](Self::is_live) is false. A task that can
    /// stop its work waits for this and the work at the same time.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("import")? else { unreachable!() };
    /// let ended = claim.ended(); // in a select!, next to the work
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
        if !inner.liveness.is_live() {
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

    /// Whether the claim has ended by a word of its owner, or by a drop of its guard, or was found to be lost.
    pub(crate) fn has_ended(&self) -> bool {
        !self.0.liveness.is_live()
    }

    pub(super) fn lost(&self) -> Error {
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

/// A lease that is about to be renewed.
struct Renewing {
    handle: ClaimHandle,
    lease_ms: u64,
}

impl Asks for Renewing {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let inner = &self.handle.0;
        let (lease_ms, reserve) = (Some(self.lease_ms), inner.reserve());
        let extras = Some(&CallExtras { reserve, ..CallExtras::default() });
        let writing = Writing {
            level: Some(inner.settings.claim_durability),
            reserve,
            conditions: Conditions { lease_ms, extras, ..Conditions::default() },
            ..Writing::default()
        };
        let call = Call::Renew { token: inner.token, attached: inner.is_attached };
        with(&inner.key, call, &writing)
    }
}

impl KeyCall for Renewing {
    type Answer = ();

    fn key(&self) -> &Key<'_> {
        &self.handle.0.key
    }

    fn answered(self, _: &Arc<Shared>, _: KeyHash, applied: Result<Applied>) -> Result<()> {
        let inner = &self.handle.0;
        match applied?.answer {
            Answer::Done if !inner.liveness.is_live() => {
                self.left();
                Err(inner.lost())
            }
            Answer::Done => Ok(()),
            Answer::Held => Err(inner.held()),
            Answer::Lost => Err(inner.lost()),
            other => Err(unexpected(&inner.shared, "a renewal", other)),
        }
    }

    /// If the guard was dropped meanwhile, none is left to end the renewed claim. One that was handed over is another guard's.
    fn left(&self) {
        let liveness = &self.handle.0.liveness;
        if !liveness.is_live() && !liveness.is_handed_over() {
            self.handle.0.let_go(false, DROPPED);
        }
    }
}

/// Progress that is about to be saved.
struct Saving {
    handle: ClaimHandle,
    saved: Vec<u8>,
    number: u64,
}

impl Asks for Saving {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let inner = &self.handle.0;
        let extras = Some(&CallExtras { progress: Some(&self.saved), ..CallExtras::default() });
        let writing = Writing {
            level: Some(inner.settings.claim_durability),
            reserve: inner.reserve(),
            conditions: Conditions { extras, ..Conditions::default() },
            ..Writing::default()
        };
        with(&inner.key, Call::Progress(inner.token), &writing)
    }
}

impl KeyCall for Saving {
    type Answer = ();

    fn key(&self) -> &Key<'_> {
        &self.handle.0.key
    }

    fn answered(self, _: &Arc<Shared>, _: KeyHash, applied: Result<Applied>) -> Result<()> {
        let (inner, applied) = (&self.handle.0, applied?);
        match applied.answer {
            Answer::Done => {}
            Answer::Lost => return Err(inner.lost()),
            other => return Err(unexpected(&inner.shared, "saved progress", other)),
        }
        // An older progress must not replace a newer one.
        let replaced = applied.found.as_ref().and_then(|found| found.recorded_at());
        let order = (replaced, self.number);
        let mut newest = inner.progress.lock();
        if order >= newest.order {
            *newest = Saved { order, value: Some(self.saved.into()) };
        }
        Ok(())
    }
}
