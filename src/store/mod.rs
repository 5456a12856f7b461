//! The public interface: [`Store`] and its methods. `open`, `keys`, `space`, `batch`, `run` and `upkeep` have those of one subject
//! each. `shared` opens a store that several processes share. `served` makes a store of a backend, and a backend of a store.
//! `reader` reads a store without writing.
//!
//! Promises: a handle is cheap to clone and may go to any thread; dropping the last one (guards included) closes the
//! store. Never: decides; `protocol` decides what a call does to a key, and `engine` the order of writes.

pub(crate) mod batch;
mod keys;
mod open;
pub(crate) mod reader;
pub(crate) mod run;
pub(crate) mod shared;
mod space;
#[cfg(feature = "backend")]
mod served;
mod upkeep;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::Hosted;
use crate::backend::{InFlight, Shared, Space};
use crate::claim::{
    Attempt, Claim, Claiming, Mark, Marking, Pending, Recording, claiming, make, marking, send_in,
};
use crate::protocol::Presence;
use crate::types::Secret;
use crate::{Operation, Outcome, Policy, Result};

/// An open store, which remembers the outcomes of operations by their keys.
///
/// A clone is another handle to the same store, and dropping the last handle closes the store. A claim counts as a
/// handle, so it keeps the store open. By default one process opens a store at a time: a second one waits for a second and then
/// gets `Locked`. With [`shared`](crate::StoreBuilder::shared), several processes of one machine have a store open.
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
    /// `None`: the root of the store.
    space: Option<Arc<Space>>,
    /// Makes the operators' calls, if another process hosts the store.
    host: Option<Arc<dyn Hosted>>,
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
    #[must_use = "the handle is the only thing that this call makes"]
    pub fn with_policy(&self, policy: Policy) -> Store {
        Store { policy: policy.or(&self.policy), ..self.clone() }
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
    /// then poisoned); `Poisoned`, `Closed` or `Forked` (see [`ErrorKind`](crate::ErrorKind)); `Corrupt` if the key's record
    /// is damaged; `Invalid` or `TooLarge` if the key or the policy is not valid.
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
    /// about an interruption. Waiters for one key are served in order of arrival, and all of them are answered once
    /// a result is recorded. A claim that doesn't wait may come in between.
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
    /// those that wait. `Superseded` if the namespace of the key is dropped meanwhile. Both come at once.
    ///
    /// # Cost
    /// That of [`claim`](Self::claim), once more for each time that it is woken.
    pub fn claim_wait<'k>(&self, op: impl Into<Operation<'k>>, timeout: Duration) -> Result<Claim> {
        self.claim_wait_async(op, timeout).wait()
    }

    /// As [`claim_wait`](Self::claim_wait), and gives the answer later. Any number of tasks may wait: each takes about
    /// 700 bytes beside what the executor takes, and none a thread.
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
        let claiming = Claiming::new(&self.shared, op.into_owned(), &self.policy);
        send_in(&self.shared, self.space.as_ref(), claiming, patience)
    }

    pub(crate) fn claim_as(&self, op: &Operation<'_>, reconciles: bool) -> Result<Claim> {
        let placed;
        let op = match &self.space {
            None => op,
            Some(space) => {
                placed = op.on(space::key_in(space, &self.shared, op.key())?);
                &placed
            }
        };
        let key = op.key();
        key.check()?;
        let settings = op.policy().resolve_over(&self.policy)?;
        let fingerprint = op.fingerprint_given();
        let hash = self.shared.hash(key);
        let result_bytes_max = self.shared.result_bytes_max();
        let (call, writing) = claiming(result_bytes_max, key, fingerprint, &settings, reconciles);
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
        let mut op = op.into();
        self.place(&mut op)?;
        let key = op.key();
        key.check()?;
        let settings = op.policy().resolve_over(&self.policy)?;
        let (call, writing) = marking(op.fingerprint_given(), &settings);
        let applied = self.shared.apply(key, self.shared.hash(key), call, &writing)?;
        Mark::answered(key, applied, &self.shared)
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
        self.send(Marking::new(op.into().into_owned(), &self.policy))
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
        let mut op = op.into();
        self.place(&mut op)?;
        make(&self.shared, Recording::new(&self.shared, op, outcome, &self.policy)?)
    }

    /// Records an outcome for a key as [`record`](Self::record) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::{Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// assert!(store.record_async("rate-2024-05-01", Outcome::success("1.0823")).wait()?.is_first());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`record`](Self::record), as the answer.
    pub fn record_async<'k>(
        &self,
        op: impl Into<Operation<'k>>,
        outcome: Outcome,
    ) -> Pending<Mark> {
        let op = op.into().into_owned();
        self.send(Recording::new(&self.shared, op, outcome, &self.policy))
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

    /// Makes everything acknowledged so far durable as [`sync`](Self::sync) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.mark(Operation::new("message-7").durability(Durability::Lazy))?;
    /// store.sync_async().wait()?;
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`sync`](Self::sync), as the answer.
    pub fn sync_async(&self) -> Pending<()> {
        Pending::new(self.shared.send_sync(), |told| told)
    }

    /// Refuses new claims from now on, also those that wait for their key; claims in flight continue. See
    /// [`close`](Self::close).
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
    /// store is refused as `Closed`. A call `…_async` whose record was placed before has its answer, even if the caller waits for it
    /// later. Only a grant or a question is then answered `Indeterminate`, because the close has ended it.
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
    /// - `Forked`: see [`ErrorKind`](crate::ErrorKind).
    ///
    /// # Cost
    /// In addition to the wait: a write and a sync of what is not durable yet; a table of the keys since the last
    /// checkpoint, 16 bytes each, if the log since then is 64 KiB or longer; and a new manifest, which costs a small write,
    /// two syncs and a rename. The close
    /// also reclaims up to two segments, until the deadline or for 200 ms, whichever is longer. Another thread does
    /// these writes. If the store wrote nothing while it was open, the close writes nothing.
    pub fn close(&self, deadline: Duration) -> Result<Vec<Attempt>> {
        let secret = self.shared.secret();
        self.shared.close(deadline).map(|left| left_in_flight(left, secret))
    }

    /// Closes the store as [`close`](Self::close) does, and gives the answer later. A thread of its own waits for the claims in
    /// flight; the close goes on if this value is dropped.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// assert!(store.close_async(Duration::from_secs(10)).wait()?.is_empty());
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`close`](Self::close), as the answer.
    pub fn close_async(&self, deadline: Duration) -> Pending<Vec<Attempt>> {
        let secret = self.shared.secret();
        Pending::new(self.shared.send_close(deadline), move |left| {
            left.map(|left| left_in_flight(left, secret))
        })
    }

    pub(crate) fn new(shared: Shared, policy: Policy) -> Self {
        Store { shared: Arc::new(shared), policy, space: None, host: None }
    }

    /// A store that another process hosts, whose operators' calls `host` makes.
    pub(crate) fn hosted(shared: Shared, policy: Policy, host: Arc<dyn Hosted>) -> Self {
        Store { host: Some(host), ..Store::new(shared, policy) }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    #[cfg(test)]
    pub(crate) fn engine(&self) -> &crate::engine::Engine {
        self.shared.embedded().unwrap()
    }

    pub(crate) fn result_bytes_max(&self) -> u32 {
        self.shared.result_bytes_max()
    }
}

fn left_in_flight(left: Vec<InFlight>, secret: Secret) -> Vec<Attempt> {
    // Nobody is on a key any more, so each is shown as interrupted.
    let nobody = (Presence::Nobody, None);
    let attempt = |left: InFlight| Attempt::new(&left.key, left.state, nobody, left.now, secret);
    left.into_iter().map(attempt).collect()
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
