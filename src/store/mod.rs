//! The public interface: [`Store`] and its methods.
//!
//! Promises: a handle is cheap to clone and may go to any thread; dropping the last one (guards included) closes the
//! store. Never: decides; `protocol` decides what a call does to a key, and `engine` the order of writes.

pub(crate) mod batch;
mod open;
#[cfg(feature = "backend")]
mod served;
pub(crate) mod run;

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::{Compaction, Estimate, Gathering, Health, Iter, Stats, Verification};
use crate::backend::{InFlight, Shared};
use crate::claim::seen::{broken, in_progress, shown_state, state_of};
use crate::claim::{
    Attempt, Claim, ClaimGuard, Claiming, Forgetting, Mark, Marking, Pending, Recording,
    Resolution, State, Ticket, claiming, make, send,
};
use crate::engine::{EncodedOutcome, Writing};
use crate::log::Due;
use crate::operation::{cut_label, encode_meta};
use crate::protocol::{Answer, Call, CallExtras, Conditions};
use crate::types::Token;
use crate::{Error, ErrorKind, Key, Operation, Outcome, Policy, Result};

/// An open store, which remembers the outcomes of operations by their keys.
///
/// A clone is another handle to the same store, and dropping the last handle closes the store. A claim counts as a
/// handle, so it keeps the store open. Only one process can open a store at a time; a second one gets `Locked`.
///
/// ```
/// # use onlyonce::{Store, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// /// Whatever needs the store takes a handle: threads share it, and no call needs `&mut`.
/// fn handle(store: &Store, message: u64) -> onlyonce::Result<bool> {
///     Ok(store.mark(("feed", message))?.is_first())
/// }
///
/// let workers: Vec<_> = (0..4)
///     .map(|_| store.clone())
///     .map(|store| std::thread::spawn(move || handle(&store, 17)))
///     .collect();
/// let firsts = workers.into_iter().map(|worker| worker.join().unwrap());
/// assert_eq!(firsts.filter(|first| matches!(first, Ok(true))).count(), 1); // one of four did it
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    policy: Policy,
}

impl Store {
    /// Returns a handle to the same store that takes its defaults from `policy`, and from this handle where `policy`
    /// sets nothing.
    ///
    /// ```
    /// # use onlyonce::{Durability, Policy, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let quick = store.with_policy(Policy::new().durability(Durability::Flush));
    /// assert!(quick.mark("message-7")?.is_first());
    /// assert!(!store.mark("message-7")?.is_first()); // one store
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// Nothing is written. An invalid policy is refused as `Invalid` by the call that uses it, not by this call.
    pub fn with_policy(&self, policy: Policy) -> Store {
        Store { shared: Arc::clone(&self.shared), policy: policy.or(&self.policy) }
    }

    /// Claims a key. The answer says whether to do the work, to replay its result, or to stay away.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Sim::new(1).open()?;
    /// let claim = match store.claim("task-42")? {
    ///     Claim::Acquired(claim) => claim,
    ///     Claim::Interrupted(lost) => lost.take_over()?, // an attempt died half-way; we choose: again
    ///     Claim::Completed(done) => return Ok(println!("done before: {}", done.decode::<String>()?)),
    ///     other => return Err(other.refused().into()),
    /// };
    /// claim.complete("what came of it")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A grant is durable on return at the level of [`claim_durability`](Policy::claim_durability). Every other answer
    /// except `InProgress` is based on a record, and waits until that record is durable at its own level.
    ///
    /// # Errors
    /// `StorageFull` if there is no space (nothing was done); `Indeterminate` if the write or sync failed (the store is
    /// then poisoned); `Poisoned`, `Closed` or `Forked` (see [`ErrorKind`]); `Corrupt` if the key's record is damaged;
    /// `Invalid` or `TooLarge` if the key or the policy is not valid.
    ///
    /// # Cost
    /// A grant costs one write, and one sync at `Sync`. A replay costs one read.
    pub fn claim<'k>(&self, op: impl Into<Operation<'k>>) -> Result<Claim> {
        self.claim_as(&op.into(), false)
    }

    /// Claims a key as [`claim`](Self::claim) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::{Claim, Store};
    /// async fn price(store: &Store, sku: u64) -> Result<String, Box<dyn std::error::Error>> {
    ///     let claim = match store.claim_async(("price", sku)).await? {
    ///         Claim::Acquired(claim) => claim,
    ///         Claim::Completed(done) => return Ok(done.decode()?),
    ///         other => return Err(other.refused().into()),
    ///     };
    ///     let price = "17.50"; // ask the shop; cancelled here, the attempt is interrupted
    ///     claim.complete_async(price).await?;
    ///     Ok(price.to_owned())
    /// }
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// # let mut price = std::pin::pin!(price(&store, 7));
    /// # while price.as_mut().poll(&mut context).is_pending() {}
    /// # assert!(matches!(store.claim(("price", 7))?, Claim::Completed(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`claim`](Self::claim), as the answer.
    ///
    /// # Cost
    /// That of [`claim`](Self::claim), and a copy of the key and the settings.
    pub fn claim_async<'k>(&self, op: impl Into<Operation<'k>>) -> Pending<Claim> {
        self.send_claim(op.into(), None)
    }

    /// Claims a key, and waits while it is in progress or delayed, at most `timeout`. Then the answer says what is known: it is
    /// `InProgress` or `Delayed` only if the time is up.
    ///
    /// The call is woken by whatever may free the key: its owner's ending, a lease that passes, the end of a delay, a decision
    /// about an interruption. Those that wait for one key have their turn in the order in which they came. Every claimant
    /// that waits is answered once a result is recorded. A claim that doesn't wait may come in between.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(owner) = store.claim("report")? else { unreachable!() };
    /// # let waiting = store.clone();
    /// # let waiter = std::thread::spawn(move || -> onlyonce::Result<()> {
    /// # let store = waiting;
    /// match store.claim_wait("report", Duration::from_secs(5))? {
    ///     Claim::Completed(done) => println!("{} bytes", done.result().len()), // its owner has just ended
    ///     Claim::InProgress(attempt) => println!("still at work after 5 s: {attempt}"),
    ///     other => println!("{other}"),
    /// }
    /// # Ok(())
    /// # });
    /// # owner.complete("a report")?;
    /// # waiter.join().unwrap()?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`claim`](Self::claim). `Closed` if the store is closed meanwhile, or drained: a close doesn't wait for
    /// those that wait.
    ///
    /// # Cost
    /// That of [`claim`](Self::claim), once more for each time that it is woken.
    pub fn claim_wait<'k>(&self, op: impl Into<Operation<'k>>, timeout: Duration) -> Result<Claim> {
        self.claim_wait_async(op, timeout).wait()
    }

    /// As [`claim_wait`](Self::claim_wait), and gives the answer later. Any number of tasks may wait: each takes less than
    /// 1 KiB, and none a thread.
    ///
    /// ```
    /// # use onlyonce::{Claim, Result, Store};
    /// # use std::time::Duration;
    /// async fn report(store: Store) -> Result<Option<Vec<u8>>> {
    ///     match store.claim_wait_async("report", Duration::from_secs(5)).await? {
    ///         Claim::Completed(done) => Ok(Some(done.result().to_vec())),
    ///         _ => Ok(None),
    ///     }
    /// }
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// # let Claim::Acquired(owner) = store.claim("report")? else { unreachable!() };
    /// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// # let mut waiting = std::pin::pin!(report(store.clone()));
    /// # assert!(waiting.as_mut().poll(&mut context).is_pending());
    /// # owner.complete("a report")?;
    /// # loop {
    /// #     if let std::task::Poll::Ready(told) = waiting.as_mut().poll(&mut context) {
    /// #         assert_eq!(told?.as_deref(), Some(&b"a report"[..]));
    /// #         break;
    /// #     }
    /// # }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`claim_wait`](Self::claim_wait), as the answer.
    pub fn claim_wait_async<'k>(
        &self,
        op: impl Into<Operation<'k>>,
        timeout: Duration,
    ) -> Pending<Claim> {
        // Limited to a `u64`: what is longer is for ever.
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.send_claim(op.into(), Some(millis))
    }

    fn send_claim(&self, op: Operation<'_>, patience: Option<u64>) -> Pending<Claim> {
        match Claiming::new(&self.shared, op.into_owned(), &self.policy) {
            Ok(claiming) => send(&self.shared, claiming, patience),
            Err(e) => Pending::ready(Err(e)),
        }
    }

    pub(crate) fn claim_as(&self, op: &Operation<'_>, reconciles: bool) -> Result<Claim> {
        let key = op.key();
        key.check()?;
        let settings = op.policy().or(&self.policy).resolve()?;
        let fingerprint = op.fingerprint_given();
        let hash = self.shared.hash(key);
        let result_bytes_max = self.shared.result_bytes_max();
        let (call, writing) = claiming(result_bytes_max, op, &settings, reconciles);
        let applied = self.shared.apply(key, hash, call, &writing)?;
        Claim::answered(&self.shared, key, hash, settings, fingerprint, applied)
    }

    /// Marks a key as done before the work starts, so that the work is done at most once. The first call for a key
    /// returns `First`.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// if store.mark("message-7")?.is_first() { /* handle it */ }
    /// assert!(!store.mark("message-7")?.is_first());
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// The mark is durable on return at the level of [`durability`](Policy::durability).
    ///
    /// # Errors
    /// The errors of [`claim`](Self::claim).
    ///
    /// # Cost
    /// One write, and one sync at `Sync`. A key that was seen before costs no write and no sync.
    pub fn mark<'k>(&self, op: impl Into<Operation<'k>>) -> Result<Mark> {
        make(&self.shared, Marking::new(op.into(), &self.policy)?)
    }

    /// Marks a key as [`mark`](Self::mark) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let sent = [store.mark_async("message-7"), store.mark_async("message-8")];
    /// for mark in sent {
    ///     if mark.wait()?.is_first() { /* handle it */ }
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`claim`](Self::claim), as the answer.
    pub fn mark_async<'k>(&self, op: impl Into<Operation<'k>>) -> Pending<Mark> {
        match Marking::new(op.into().into_owned(), &self.policy) {
            Ok(marking) => send(&self.shared, marking, None),
            Err(e) => Pending::ready(Err(e)),
        }
    }

    /// Records an outcome for a key without a claim, unless the key was seen before: a mark with a result. For a result that
    /// exists already, or that came from elsewhere. A later claim replays it.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// assert!(store.record("rate-2024-05-01", Outcome::success("1.0823"))?.is_first());
    /// assert!(!store.record("rate-2024-05-01", Outcome::success("1.0801"))?.is_first());
    /// let Claim::Completed(rate) = store.claim("rate-2024-05-01")? else { unreachable!() };
    /// assert_eq!(rate.decode::<String>()?, "1.0823");
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// The answers are those of [`mark`](Self::mark): [`First`](Mark::First) if it was recorded now,
    /// [`Again`](Mark::Again) if the key has an outcome, and nothing is recorded in every other case. The outcome is durable on
    /// return at the level of [`durability`](Policy::durability).
    ///
    /// # Errors
    /// `TooLarge` if the outcome exceeds a limit, `Invalid` if its value did not encode, and the errors of
    /// [`claim`](Self::claim).
    ///
    /// # Cost
    /// One write, and one sync at `Sync`. A key that was seen before costs no write and no sync.
    pub fn record<'k>(&self, op: impl Into<Operation<'k>>, outcome: Outcome) -> Result<Mark> {
        make(&self.shared, Recording::new(&self.shared, op.into(), outcome, &self.policy)?)
    }

    /// Returns the state of a key, or `None` if the key is absent: never claimed, forgotten, or past its retention.
    ///
    /// ```
    /// # use onlyonce::{State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.mark("message-7")?;
    /// assert!(matches!(store.get("message-7")?, Some(State::Completed(_))));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Corrupt` if the key's record is damaged; `Closed`, `Forked`, `Indeterminate`.
    ///
    /// # Cost
    /// One read, or none for a key in progress. Nothing is written, unless the lookup finds a table of the index
    /// damaged. Then that table is mended first, which reads the part of the log that the table covers.
    pub fn get<'k>(&self, key: impl Into<Key<'k>>) -> Result<Option<State>> {
        let key = key.into();
        key.check()?;
        match self.shared.look(&key, self.shared.hash(&key))? {
            Some(seen) => state_of(&key, seen).map(Some),
            None => Ok(None),
        }
    }

    /// Returns the state of a key as [`get`](Self::get) does, later.
    ///
    /// ```
    /// # use onlyonce::{State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.mark("message-7")?;
    /// assert!(matches!(store.get_async("message-7").wait()?, Some(State::Completed(_))));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`get`](Self::get), as the answer.
    pub fn get_async<'k>(&self, key: impl Into<Key<'k>>) -> Pending<Option<State>> {
        let key = key.into().into_owned();
        if let Err(e) = key.check() {
            return Pending::ready(Err(e));
        }
        let underway = self.shared.send_look(&key);
        Pending::new(underway, move |told| {
            let applied = told?;
            match applied.found {
                Some(_) => shown_state(&key, applied).map(Some),
                None => Ok(None),
            }
        })
    }

    /// Resolves an interrupted or held attempt with what you found out: records an outcome, or lets the work be
    /// retried. An aborted attempt can be resolved too, because its key is held once
    /// [`attempts_max`](Policy::attempts_max) is reached. Returns `false`, and changes nothing, if the key is no longer
    /// in the state that you saw.
    ///
    /// The owner label of this handle's policy is recorded as the one that decided it, see
    /// [`Attempt::decided_by`](crate::Attempt::decided_by).
    ///
    /// After [`Retry`](Resolution::Retry) the next claim is granted, and `attempts_max` counts from zero again. Attempt
    /// numbers are not reset.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, Resolution, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("task-42")?);
    /// if let Some(State::Interrupted(a) | State::Held(a)) = store.get("task-42")? {
    ///     store.resolve(&a, Resolution::Record(Outcome::success("paid")))?;
    /// }
    /// assert!(matches!(store.claim("task-42")?, Claim::Completed(_)));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// The change is durable on return, always at `Sync`.
    ///
    /// # Errors
    /// `InProgress` if the attempt's owner is still at work; `TooLarge` if the outcome exceeds a limit; the errors of
    /// [`claim`](Self::claim).
    ///
    /// # Cost
    /// One write and one sync, or neither if the call returns `false`.
    pub fn resolve(&self, attempt: &Attempt, resolution: Resolution) -> Result<bool> {
        let key = attempt.key();
        let hash = self.shared.hash(key);
        let seen = attempt.token();
        let settings = self.policy.resolve()?;
        let retention = settings.retention_ms;
        let extras = CallExtras { by: settings.owner.as_deref(), ..CallExtras::default() };
        let extras = Some(&extras);
        let applied = match resolution {
            Resolution::Retry(reason) => {
                let reason = cut_label(reason);
                let conditions = Conditions {
                    retention_ms: retention,
                    reason: Some(&reason),
                    extras,
                    ..Conditions::default()
                };
                let writing = Writing { conditions, ..Writing::default() };
                self.shared.apply(key, hash, Call::ResolveRetry(seen), &writing)?
            }
            Resolution::Record(outcome) => {
                let parts = outcome.into_parts(self.shared.keeping())?;
                let meta = encode_meta(&parts.meta);
                let writing = Writing {
                    conditions: Conditions {
                        retention_ms: parts.retention_ms.or(retention),
                        remember_ms: settings.remember_ms,
                        reason: Some(parts.missing.as_deref().unwrap_or("resolved")),
                        extras,
                        ..Conditions::default()
                    },
                    outcome: Some(EncodedOutcome::of(&parts, &meta)),
                    ..Writing::default()
                };
                let call = if parts.failure {
                    Call::ResolveFail(seen)
                } else {
                    Call::ResolveComplete(seen)
                };
                self.shared.apply(key, hash, call, &writing)?
            }
        };
        match applied.answer {
            Answer::Done => Ok(true),
            Answer::Unchanged => Ok(false),
            _ => Err(in_progress(key)),
        }
    }

    /// Revokes a live claim: the attempt is interrupted, with this reason, and its owner can do nothing more. Returns
    /// `false`, and changes nothing, if the key is no longer claimed by the attempt that you saw.
    ///
    /// The work itself isn't stopped: its owner learns of it by [`is_live`](crate::ClaimHandle::is_live), or by the
    /// `ClaimLost` of its next call. What the work has done until then is unknown, so the next claimant is told of an
    /// interrupted attempt. The claim's token is spent: a resource that remembers the greatest token it has seen refuses the
    /// revoked owner once the next one has come.
    ///
    /// The change is durable on return, always at `Sync`, and costs one write and one sync. A reason of more than 512 bytes is
    /// cut; the owner label of this handle's policy is recorded as the one that decided it.
    ///
    /// ```
    /// # use onlyonce::{Claim, ErrorKind, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("import")? else { unreachable!() };
    /// let Some(State::InProgress(attempt)) = store.get("import")? else { unreachable!() };
    /// assert!(store.interrupt(&attempt, "it has been stuck since Monday")?);
    /// assert!(matches!(store.claim("import")?, Claim::Interrupted(_)));
    /// assert_eq!(claim.complete("late").unwrap_err().kind(), ErrorKind::ClaimLost);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`claim`](Self::claim).
    pub fn interrupt(&self, attempt: &Attempt, reason: impl Into<String>) -> Result<bool> {
        let (key, reason) = (attempt.key(), cut_label(reason.into()));
        let settings = self.policy.resolve()?;
        let extras = CallExtras { by: settings.owner.as_deref(), ..CallExtras::default() };
        let extras = Some(&extras);
        let conditions = Conditions { reason: Some(&reason), extras, ..Conditions::default() };
        let writing = Writing { conditions, ..Writing::default() };
        let call = Call::Revoke(attempt.token());
        let applied = self.shared.apply(key, self.shared.hash(key), call, &writing)?;
        Ok(applied.answer == Answer::Done)
    }

    /// Attaches a claim that was [detached](crate::ClaimGuard::detach), and returns its guard: the same attempt, under the
    /// same token. This handle's policy supplies the guard's durability, retention and the like.
    ///
    /// The claim keeps its lease, which [`renew`](crate::ClaimHandle::renew) extends. Dropping the guard without an ending
    /// leaves the claim as it was, whatever [`OnDrop`](crate::OnDrop) says: the lease runs, and the ticket attaches again. After
    /// the lease has passed the ticket still counts, as long as nobody took over.
    ///
    /// ```
    /// # use onlyonce::{Claim, ErrorKind, Ticket, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("job-7")? else { unreachable!() };
    /// # let text = claim.detach(Duration::from_secs(900))?.to_string();
    /// let ticket: Ticket = text.parse()?;
    /// match store.attach(&ticket) {
    ///     Ok(claim) => claim.complete("done")?,
    ///     Err(e) if e.kind() == ErrorKind::ClaimLost => println!("too late: {e}"),
    ///     Err(e) => return Err(e),
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if the ticket is not of this store, somebody took over, the claim has ended, or a guard of it is attached
    /// already. `StorageFull` if there is no space for its ending. Also the errors of [`claim`](Self::claim).
    ///
    /// # Cost
    /// One read. Nothing is written, unless the store has written nothing yet since it was opened.
    pub fn attach(&self, ticket: &Ticket) -> Result<ClaimGuard> {
        let lost = |why| Err(Error::new(ErrorKind::ClaimLost, format!("{}: {why}", ticket.key())));
        if !ticket.is_of(&self.shared.secret()?) {
            return lost("the ticket is not of this store");
        }
        let (key, settings) = (ticket.key(), self.policy.resolve()?);
        let hash = self.shared.hash(key);
        let call = Call::Attach(ticket.token());
        let applied = self.shared.apply(key, hash, call, &Writing::default())?;
        if applied.answer != Answer::Done {
            return lost("the claim has ended, somebody took over, or it is attached already");
        }
        let state = applied.found.and_then(|found| found.state).ok_or_else(broken)?;
        Ok(ClaimGuard::attached(Arc::clone(&self.shared), key, hash, &state, settings))
    }

    /// Forgets a key that is not claimed right now; the next claim treats the key as new. Returns `false` if there was
    /// nothing to forget.
    ///
    /// The change is durable on return, always at `Sync`, and costs one write and one sync. The key's bytes stay in the
    /// log until the log is compacted.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.mark("message-7")?;
    /// assert!(store.forget("message-7")?);
    /// assert!(store.mark("message-7")?.is_first());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `InProgress` if the key is claimed: see [`forget_claimed`](Self::forget_claimed). Also the errors of
    /// [`claim`](Self::claim).
    pub fn forget<'k>(&self, key: impl Into<Key<'k>>) -> Result<bool> {
        make(&self.shared, Forgetting::new(key.into())?)
    }

    /// Forgets a key that is claimed right now under `token`. The owner is fenced off, and nothing records what the
    /// owner has done: use this call with care.
    ///
    /// The change is durable on return, always at `Sync`, and costs one write and one sync.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("stuck")?);
    /// let Claim::Interrupted(lost) = store.claim("stuck")? else { unreachable!() };
    /// let claim = lost.take_over()?;
    /// store.forget_claimed("stuck", claim.token())?;
    /// assert!(claim.complete("too late").is_err());
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if the key isn't claimed under `token`. Also the errors of [`claim`](Self::claim).
    pub fn forget_claimed<'k>(&self, key: impl Into<Key<'k>>, token: Token) -> Result<()> {
        let key = key.into();
        key.check()?;
        let hash = self.shared.hash(&key);
        let call = Call::ForgetClaimed(token);
        let applied = self.shared.apply(&key, hash, call, &Writing::default())?;
        match applied.answer {
            Answer::Done => Ok(()),
            _ => Err(Error::new(
                ErrorKind::ClaimLost,
                format!("{key} is not claimed under token {token}"),
            )),
        }
    }

    /// Returns an iterator over all keys and their states, in no particular order. Changes made during the iteration
    /// may or may not be seen.
    ///
    /// The iterator leaves out expired keys, even remembered ones, because only the hash of a remembered key is stored.
    /// Call [`get`](Self::get) for the state of a remembered key.
    ///
    /// ```
    /// # use onlyonce::{admin::StateKind, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// for entry in store.iter().in_states(&[StateKind::Interrupted, StateKind::Held]) {
    ///     let (key, state) = entry?;
    ///     println!("{key}: {state:?}");
    /// }
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Cost
    /// One read per key; if only open states are requested, as in the example, a read or two per open key (see
    /// [`Iter`]). Nothing is written, unless the index is damaged, as in [`get`](Self::get).
    pub fn iter(&self) -> Iter {
        Iter::new(Arc::clone(&self.shared))
    }

    /// Makes everything acknowledged so far durable, whatever its level. The call costs one sync.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// for n in 0..100_u64 {
    ///     let _ = store.mark(Operation::new(n).durability(Durability::Lazy))?;
    /// }
    /// store.sync()?; // all hundred, by one sync
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Indeterminate` if the sync failed; `Poisoned`, `Closed`, `Forked`.
    pub fn sync(&self) -> Result<()> {
        self.shared.sync()
    }

    /// Refuses new claims from now on; claims in flight continue. See [`close`](Self::close).
    ///
    /// Nothing is written. A drain can't be undone.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// store.drain();
    /// assert_eq!(store.claim("k").unwrap_err().kind(), ErrorKind::Closed);
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Refuses new claims, waits up to `deadline` for the claims in flight, makes everything durable and closes the
    /// store, so that the next open has nothing to recover. Returns the claims that were still in flight and are now
    /// interrupted.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// for left in store.close(Duration::from_secs(10))? {
    ///     eprintln!("left interrupted: {}", left.key());
    /// }
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// Everything acknowledged is durable on return, whatever its level. Every later call on a handle or guard of this
    /// store is refused as `Closed`.
    ///
    /// # Errors
    /// - `Poisoned` or `Indeterminate`: a write or sync failed, now or earlier. The store is closed nevertheless, and
    ///   the next open recovers what is durable.
    /// - `StorageFull`: there was no space for the manifest that marks a clean close. The store is closed nevertheless,
    ///   and nothing is lost.
    /// - `InProgress`: calls on the store still wait for the disk at the deadline, or 200 ms after the store began to
    ///   refuse calls, whichever is later. Or the close's own writes have not ended by the deadline, or two seconds
    ///   after they began, whichever is later. In both cases the store accepts no more calls, and its directory stays
    ///   locked. A later `close` continues, or returns the result.
    /// - `Closed`: the store is closed already, or another `close` is running.
    /// - `Forked`: see [`ErrorKind`].
    ///
    /// # Cost
    /// In addition to the wait: a write and a sync of what is not durable yet; a table of the keys since the last
    /// checkpoint, 16 bytes each; and a new manifest, which costs a few small writes and syncs and a rename. The close
    /// also reclaims up to two segments, until the deadline or for 200 ms, whichever is longer. Another thread does
    /// these writes. If the store wrote nothing while it was open, the close writes nothing.
    pub fn close(&self, deadline: Duration) -> Result<Vec<Attempt>> {
        let left = self.shared.close(deadline)?;
        let attempt = |left: InFlight| Attempt::new(&left.key, left.state, None, left.now);
        Ok(left.into_iter().map(attempt).collect())
    }

    /// Returns whether the store accepts writes and, if not, why.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// assert!(store.health().is_writable());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// The free space is compared with what a claim under this handle's policy needs.
    ///
    /// # Cost
    /// Checks a few flags. The disk is not read.
    #[must_use]
    pub fn health(&self) -> Health {
        match &*self.shared {
            Shared::Embedded(engine) => Health::of(engine, self.policy.reserved()),
            #[cfg(feature = "backend")]
            Shared::Other(backend) => Health::of_backend(backend.check().err().as_ref()),
        }
    }

    /// Returns counts, and what was found when the store was opened.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let stats = store.stats();
    /// if let Some(cut) = &stats.opening.cut {
    ///     println!("{} bytes of a torn write cut off in {}", cut.bytes(), cut.path().display());
    /// }
    /// assert_eq!((stats.keys, stats.in_flight), (0, 0));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Only an embedded store is counted: on a store made by `with_backend`, every figure is zero.
    ///
    /// # Cost
    /// The disk is not read, except by the first call after an open, which may read a few records to decide which keys are
    /// open. But the call is not free. It visits all keys in memory, under the locks of their 64 shards
    /// one after the other, which takes a millisecond or two per million keys, and it copies the list of segments. It
    /// waits while a segment is prepared ahead or a manifest is replaced.
    #[must_use]
    pub fn stats(&self) -> Stats {
        match &*self.shared {
            Shared::Embedded(engine) => Stats::of(engine),
            #[cfg(feature = "backend")]
            Shared::Other(_) => Stats::default(),
        }
    }

    /// Estimates how much of the store is alive, and how many keys are in each state. The estimate is based on about a
    /// thousand sampled keys, so it is accurate to a few percent, and less so if a few results are far larger than the
    /// rest. In a store with fewer keys, every key is counted. Open keys (claimed, interrupted or held) are always counted.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// # let _ = store.mark("k")?;
    /// let estimate = store.estimate()?;
    /// println!("{} bytes could be given back", estimate.dead_bytes);
    /// # assert_eq!((estimate.completed, estimate.held), (1, 0));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `Corrupt` if a bucket of the index is damaged; `Closed`, `Forked`, `Indeterminate`.
    ///
    /// # Cost
    /// A few hundred random reads.
    pub fn estimate(&self) -> Result<Estimate> {
        Estimate::of(self.shared.embedded()?)
    }

    /// Reads every file of the store and reports damage: damaged records, damaged buckets of the index, and keys that
    /// the index doesn't lead to. Adjacent damage is reported as one. Nothing is changed, and other calls continue
    /// meanwhile.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let found = store.verify()?;
    /// for damage in &found.damages {
    ///     eprintln!("{damage}");
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Records that are not yet durable are left out: call [`sync`](Self::sync) first to include them. Bytes that can't
    /// be read now don't count as damage, and are listed in [`unread`](Verification::unread): call `verify` again once
    /// the cause is gone.
    ///
    /// # Errors
    /// `Closed`, also if the store is closed meanwhile; `Forked`. Damage is not an error of this call.
    ///
    /// # Cost
    /// Reads every file once, and each key's newest record once more.
    pub fn verify(&self) -> Result<Verification> {
        self.verify_with(|_| ControlFlow::Continue(()))
    }

    /// Does the same as [`verify`](Self::verify), and calls `progress` after each file with what was found so far.
    /// `progress` may end the reading.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # use std::ops::ControlFlow;
    /// # let store = Sim::new(1).open()?;
    /// let all = store.stats().log_bytes + store.stats().index_bytes;
    /// store.verify_with(|found| {
    ///     eprintln!("{} of {all} bytes", found.bytes);
    ///     ControlFlow::Continue(())
    /// })?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`verify`](Self::verify).
    pub fn verify_with(
        &self,
        mut progress: impl FnMut(&Verification) -> ControlFlow<()>,
    ) -> Result<Verification> {
        let mut gathering = Gathering { found: Verification::default(), progress: &mut progress };
        self.shared.embedded()?.verify(&mut gathering)?;
        Ok(gathering.found)
    }

    /// Reclaims dead records: moves the live records to the end of the log, and removes the files that held them. One
    /// call moves at most about `budget` bytes; the next call continues where the budget ran out.
    ///
    /// Background threads do the same once the store is twice as large as its live bytes. When
    /// [`is_complete`](Compaction::is_complete) returns `true`, no file of the store holds the bytes of anything
    /// forgotten, expired or overwritten before the call, and the index is one table, if there is space for it. If the
    /// call continued earlier calls, this guarantee covers only what was dead before the first of them; a call with
    /// `u64::MAX` continues none.
    ///
    /// There is one exception: a key that was forgotten under [`remember_expired`](crate::Policy::remember_expired)
    /// stays on the disk, without its result, until the time for which it would have been remembered has passed.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// # let _ = store.mark("message-7")?;
    /// store.forget("message-7")?;
    /// assert!(store.compact(u64::MAX)?.is_complete());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// The changes are durable on return. Other calls continue meanwhile.
    ///
    /// # Errors
    /// `StorageFull` if the space reserved for moving records isn't enough: see `docs/durability.md`, "A full store".
    /// `Corrupt` if a record is damaged; its segment stays. Also the errors of [`sync`](Self::sync).
    ///
    /// # Cost
    /// Reads the log and writes its live records.
    pub fn compact(&self, budget: u64) -> Result<Compaction> {
        self.shared.embedded()?.compaction().compact(budget).map(Compaction::new)
    }

    /// Rebuilds the index from the log. A lookup or an open mends the damage that it notices, so this call is needed
    /// only when no part of the index can be trusted any more.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// # let _ = store.mark("k")?;
    /// if !store.verify()?.is_whole() {
    ///     store.rebuild_index()?;
    /// }
    /// # store.rebuild_index()?;
    /// # assert!(!store.mark("k")?.is_first());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// The changes are durable on return. Other calls continue meanwhile.
    ///
    /// # Errors
    /// `Corrupt` if the log is damaged: see [`repair`](crate::admin::repair). `StorageFull`, and the errors of
    /// [`sync`](Self::sync).
    ///
    /// # Cost
    /// Reads the log up to the last checkpoint and writes 16 bytes per key, for some keys several times.
    pub fn rebuild_index(&self) -> Result<()> {
        self.shared.embedded()?.mending().rebuild_index()
    }

    /// Seals what memory holds and merges the index into one table, without moving the log. For this crate's own
    /// benches; may change at any time.
    #[doc(hidden)]
    pub fn merge_index(&self) -> Result<()> {
        self.shared.embedded()?.merges().merge_index()
    }

    /// Does one piece of background work, if one is due, and returns the time until the next piece may be due.
    ///
    /// Call it only on a store opened with [`manual_maintenance`](crate::StoreBuilder::manual_maintenance); in any
    /// other store two threads do this work. The work syncs bytes written a second ago, covers them with a watermark,
    /// prepares segments, seals keys in tables, merges tables, and reclaims dead records.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?; // a simulated store is always stepped by hand
    /// let next = store.step()?;
    /// println!("nothing more to do for {next:?}");
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Indeterminate` if a write or sync failed; `Closed`, `Forked`.
    ///
    /// # Cost
    /// At most one piece of work: a write; a sync; the preparation of a segment, which writes each of its pages; a
    /// checkpoint, which writes 16 bytes for each key since the previous checkpoint; or a part of a merge or of
    /// compaction, a few hundred KiB.
    pub fn step(&self) -> Result<Duration> {
        self.shared.embedded()?.step().map(Due::wait)
    }

    pub(crate) fn new(shared: Shared, policy: Policy) -> Self {
        Store { shared: Arc::new(shared), policy }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    #[cfg(test)]
    pub(crate) fn engine(&self) -> &crate::engine::Engine {
        self.shared.embedded().unwrap()
    }

    pub(crate) fn result_bytes_max(&self) -> u32 {
        self.shared.result_bytes_max()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.shared.embedded().map(|engine| engine.dir()).ok();
        f.debug_struct("Store").field("dir", &dir).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    use super::*;
    use crate::engine::Engine;
    use crate::testing::Sim;

    /// Without this, the thread that keeps the index slept for an hour, and a close waited for it.
    #[test]
    fn a_thread_stops_if_asked_right_after_its_check() {
        let store = Sim::small(1).open().unwrap();
        for body in [Engine::run_log as fn(&Engine, &dyn Fn() -> bool), Engine::run_index] {
            let is_stopping = AtomicBool::new(false);
            let stop = || {
                let seen = is_stopping.swap(true, Ordering::SeqCst);
                if !seen {
                    store.engine().wake_background();
                }
                seen
            };
            let (tell, told) = channel();
            let has_stopped = std::thread::scope(|scope| {
                scope.spawn(|| {
                    body(store.engine(), &stop);
                    tell.send(()).unwrap();
                });
                let has_stopped = told.recv_timeout(Duration::from_secs(10)).is_ok();
                store.engine().wake_background();
                has_stopped
            });
            assert!(has_stopped, "it sleeps");
        }
    }

    /// Without this, the thread of the log slept for an hour, and the records moved by compaction were not synced.
    #[test]
    fn compaction_of_an_idle_store_wakes_the_thread_that_syncs() {
        let sim = Sim::small(1);
        let builder = Store::builder().segment_bytes(16 << 10).result_bytes_max(256);
        let store = sim.open_with(builder).unwrap();
        let key = |n: u32| format!("{n:0>200}");
        (0..400).for_each(|n| assert!(store.mark(key(n)).unwrap().is_first()));
        for n in (0..400).filter(|n| n % 6 != 0) {
            assert!(store.forget(key(n)).unwrap());
        }
        let is_stopping = AtomicBool::new(false);
        let engine = store.engine();
        std::thread::scope(|scope| {
            scope.spawn(|| engine.run_log(&|| is_stopping.load(Ordering::SeqCst)));
            let drive = |is_over: &dyn Fn() -> bool| {
                let most = std::time::Instant::now() + Duration::from_secs(30);
                while !is_over() && std::time::Instant::now() < most {
                    sim.advance(Duration::from_millis(10));
                    std::thread::yield_now();
                }
                is_over()
            };
            let rests = drive(&|| engine.log.is_at_rest());
            let goes_on = rests
                && drive(&|| {
                    engine.step_index().unwrap();
                    store.stats().bytes_reclaimed > 0
                });
            is_stopping.store(true, Ordering::SeqCst);
            engine.wake_background();
            assert!(rests && goes_on, "rests: {rests}, continues: {goes_on}");
        });
    }
}
