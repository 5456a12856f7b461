//! The public face: [`Store`], and what is called on it.
//!
//! Promises: a handle is cheap to clone and may go to any thread; dropping the last one (guards included) closes the
//! store. Never: decides; `protocol` decides what a call does to a key, and `engine` the order of writes.

mod open;
#[cfg(feature = "backend")]
mod served;
pub(crate) mod run;

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::{Compaction, Estimate, Gathering, Health, Iter, Stats, Verification};
#[cfg(feature = "backend")]
use crate::backend::{Backend, Request, Sent};
use crate::backend::{InFlight, Shared};
use crate::claim::seen::{in_progress, state_of};
use crate::claim::{Attempt, Claim, Mark, Resolution, State, granting};
use crate::engine::{Batch, EncodedOutcome, Engine, Writing};
use crate::limits;
use crate::log::Due;
use crate::operation::{Settings, encode_meta};
use crate::protocol::{Answer, Call, Conditions, Wants};
use crate::types::{KeyHash, Token};
use crate::{Error, ErrorKind, Key, Operation, Policy, Result};

/// An open store, which remembers the outcomes of operations by their keys.
///
/// A clone is the same store. Dropping the last handle closes it. A claim counts as a handle, so it keeps the store open.
/// One process opens a store at a time; a second one gets `Locked`.
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
    /// Returns a handle to the same keys with other defaults: `policy`, and this handle's where it is unset.
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
    /// Works in memory only. A policy that can't work is refused, as `Invalid`, by the call that uses it.
    pub fn with_policy(&self, policy: Policy) -> Store {
        Store { shared: Arc::clone(&self.shared), policy: policy.or(&self.policy) }
    }

    /// Claims a key. The answer says whether to do the work, to replay its result, or to keep out.
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
    /// A grant is durable on return at the claim's level. Every other answer except `InProgress` waits until the record
    /// that it rests on is durable at that record's level.
    ///
    /// # Errors
    /// `StorageFull` before anything was done; `Indeterminate` if the write or sync failed (the store is then
    /// poisoned); `Poisoned`, `Closed`, `Forked`; `Corrupt` if the key's record is damaged; `Invalid` or `TooLarge` for a
    /// key or policy that isn't valid.
    ///
    /// # Cost
    /// A grant: one write, and one sync at `Sync`. A replay: one read.
    pub fn claim<'k>(&self, op: impl Into<Operation<'k>>) -> Result<Claim> {
        self.claim_as(&op.into(), false)
    }

    pub(crate) fn claim_as(&self, op: &Operation<'_>, reconciles: bool) -> Result<Claim> {
        let key = op.key();
        key.check()?;
        let settings = op.policy().or(&self.policy).resolve()?;
        let fingerprint = op.fingerprint_given();
        let wants = Wants {
            fingerprint,
            on_interrupted: settings.on_interrupted,
            attempts_max: settings.attempts_max,
            reconciles,
        };
        let hash = self.shared.hash(key);
        let writing = granting(self.shared.result_bytes_max(), &settings, key, fingerprint);
        let applied = self.shared.apply(key, hash, Call::Claim(wants), &writing)?;
        Claim::answered(&self.shared, key, hash, settings, fingerprint, applied)
    }

    /// Marks a key as done before the work, so that the work is done at most once. The first call answers `First`.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// if store.mark("message-7")?.is_first() { /* handle it */ }
    /// assert!(!store.mark("message-7")?.is_first());
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// Durable on return at the level of [`durability`](Policy::durability).
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    ///
    /// # Cost
    /// One write, and one sync at `Sync`; nothing for a key that was seen before.
    pub fn mark<'k>(&self, op: impl Into<Operation<'k>>) -> Result<Mark> {
        let op = op.into();
        let key = op.key();
        key.check()?;
        let settings = op.policy().or(&self.policy).resolve()?;
        let (call, writing) = marking(&op, &settings);
        Mark::answered(key, self.shared.apply(key, self.shared.hash(key), call, &writing)?)
    }

    /// Marks many keys: one write and one sync for all of them, an answer for each, in their order.
    ///
    /// Not a transaction: after a crash any prefix of the batch may exist. A key that occurs twice is `First` once.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let messages = ["message-7", "message-8", "message-7"];
    /// let mut handled = 0;
    /// for mark in store.mark_many(messages)? {
    ///     if mark?.is_first() {
    ///         handled += 1;
    ///     }
    /// }
    /// assert_eq!(handled, 2);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// All of them are durable on return, each at the level of its [`durability`](Policy::durability).
    ///
    /// # Errors
    /// For one key, in its place: `TooLarge` or `Invalid`, `Corrupt` if its record is damaged, `StorageFull`. That key
    /// was not marked; the others were. For all keys: `Indeterminate` if the write or sync failed, and any of them may be
    /// on disk; `Poisoned`, `Closed` or `Forked` before any was marked.
    ///
    /// # Cost
    /// One write, and one sync at `Sync`, for each segment that the batch reaches into: mostly one.
    pub fn mark_many<'k, O: Into<Operation<'k>>>(
        &self,
        ops: impl IntoIterator<Item = O>,
    ) -> Result<Vec<Result<Mark>>> {
        match &*self.shared {
            Shared::Embedded(engine) => self.mark_embedded(engine, ops),
            #[cfg(feature = "backend")]
            Shared::Other(backend) => Ok(self.mark_elsewhere(&**backend, ops)),
        }
    }

    fn mark_embedded<'k, O: Into<Operation<'k>>>(
        &self,
        engine: &Engine,
        ops: impl IntoIterator<Item = O>,
    ) -> Result<Vec<Result<Mark>>> {
        let inside = engine.enter()?;
        if engine.log.is_poisoned() {
            return Err(engine.log.poisoned());
        }
        let mut batch = Batch::default();
        let mut ops = ops.into_iter().map(|op| {
            let op = op.into();
            let hash = op.key().check().map(|()| engine.hash(op.key()));
            (op, hash)
        });
        let mut place = |op: &Operation<'_>, hash: KeyHash| -> Result<Mark> {
            let settings = op.policy().or(&self.policy).resolve()?;
            let (call, writing) = marking(op, &settings);
            let done = engine.place(&inside, op.key(), hash, call, &writing)?;
            batch.add(&done, settings.durability);
            Mark::answered(op.key(), done.into_applied())
        };
        let mut marks = Vec::with_capacity(ops.size_hint().0);
        loop {
            let next: Vec<_> = ops.by_ref().take(limits::LOOK_AHEAD_KEYS).collect();
            if next.is_empty() {
                break;
            }
            if let Err(e) = engine.log.may_go_on() {
                marks.extend(next.into_iter().map(|_| Err(e.again())));
                continue;
            }
            let hashes: Vec<_> =
                next.iter().filter_map(|(_, hash)| hash.as_ref().ok().copied()).collect();
            engine.look_ahead(&hashes);
            marks.extend(next.into_iter().map(|(op, hash)| place(&op, hash?)));
        }
        // Closed or poisoned halfway: the records placed before are in flight, or their fate is unknown.
        let is_of_all = |e: &Error| {
            matches!(e.kind(), ErrorKind::Closed | ErrorKind::Poisoned | ErrorKind::Forked)
        };
        let first_is_refused = matches!(marks.first(), Some(Err(e)) if is_of_all(e));
        if first_is_refused {
            return marks.swap_remove(0).map(|_| Vec::new());
        }
        engine.settle_batch(&inside, &batch)?;
        Ok(marks)
    }

    /// Sends all before it waits for the first.
    #[cfg(feature = "backend")]
    fn mark_elsewhere<'k, O: Into<Operation<'k>>>(
        &self,
        backend: &dyn Backend,
        ops: impl IntoIterator<Item = O>,
    ) -> Vec<Result<Mark>> {
        let send = |op: O| -> Result<(Key<'static>, Box<dyn Sent>)> {
            let op = op.into();
            op.key().check()?;
            let settings = op.policy().or(&self.policy).resolve()?;
            let (call, writing) = marking(&op, &settings);
            let request = Request::of(op.key(), call, &writing);
            Ok((op.key().clone().into_owned(), backend.send(request)))
        };
        let sent: Vec<_> = ops.into_iter().map(send).collect();
        let wait = |sent: Result<(Key<'static>, Box<dyn Sent>)>| {
            let (key, sent) = sent?;
            Mark::answered(&key, sent.wait()?.into_applied())
        };
        sent.into_iter().map(wait).collect()
    }

    /// Returns the state of a key; `None` if it is absent: never claimed, forgotten, or past its retention.
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
    /// `Corrupt` if its record is damaged; `Closed`, `Forked`, `Indeterminate`.
    ///
    /// # Cost
    /// One read; none for a key in progress. Nothing is written, unless the index is damaged there: then it is mended
    /// first, which reads the part of the log that its table covers.
    pub fn get<'k>(&self, key: impl Into<Key<'k>>) -> Result<Option<State>> {
        let key = key.into();
        key.check()?;
        match self.shared.look(&key, self.shared.hash(&key))? {
            Some(seen) => state_of(&key, seen).map(Some),
            None => Ok(None),
        }
    }

    /// Resolves an interrupted or held attempt as you found out: with an outcome, or for a retry. An aborted attempt can be
    /// resolved too, because its key is held once [`attempts_max`](Policy::attempts_max) is reached. Answers `false` if the
    /// key has moved on from the attempt you saw; then nothing was changed.
    ///
    /// After [`Retry`](Resolution::Retry) the next claim is granted, and `attempts_max` counts anew. The numbers of
    /// attempts continue.
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
    /// Durable on return, always at `Sync`.
    ///
    /// # Errors
    /// `InProgress` if its owner is still at work; `TooLarge` for an outcome beyond a limit; as `claim`.
    ///
    /// # Cost
    /// One write and one sync; nothing where it answers `false`.
    pub fn resolve(&self, attempt: &Attempt, resolution: Resolution) -> Result<bool> {
        let key = attempt.key();
        let hash = self.shared.hash(key);
        let seen = attempt.token();
        let settings = self.policy.resolve()?;
        let retention = settings.retention_ms;
        let applied = match resolution {
            Resolution::Retry => {
                let conditions = Conditions {
                    retention_ms: retention,
                    reason: Some("resolved: to be tried again"),
                    ..Conditions::default()
                };
                let writing = Writing { conditions, ..Writing::default() };
                self.shared.apply(key, hash, Call::ResolveRetry(seen), &writing)?
            }
            Resolution::Record(outcome) => {
                let parts = outcome.into_parts(self.shared.result_bytes_max())?;
                let (codec, version) = (parts.codec, parts.version);
                let meta = encode_meta(&parts.meta);
                let writing = Writing {
                    conditions: Conditions {
                        retention_ms: parts.retention_ms.or(retention),
                        remember_ms: settings.remember_ms,
                        reason: Some(parts.missing.as_deref().unwrap_or("resolved")),
                        ..Conditions::default()
                    },
                    outcome: Some(EncodedOutcome {
                        codec,
                        version,
                        meta: &meta,
                        bytes: &parts.bytes,
                    }),
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

    /// Forgets a key in any state, so that the next claim is the first. Answers `false` if there was nothing to forget.
    ///
    /// Durable on return, always at `Sync`: one write and one sync. Its bytes stay in the log until it is compacted.
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
    /// `InProgress` if the key is claimed: see [`forget_claimed`](Self::forget_claimed). As `claim`.
    pub fn forget<'k>(&self, key: impl Into<Key<'k>>) -> Result<bool> {
        let key = key.into();
        key.check()?;
        let hash = self.shared.hash(&key);
        let applied = self.shared.apply(&key, hash, Call::Forget, &Writing::default())?;
        match applied.answer {
            Answer::Done => Ok(true),
            Answer::Unchanged => Ok(false),
            _ => Err(in_progress(&key)),
        }
    }

    /// Forgets a key that is claimed right now, named by its owner's token. The owner is fenced off, and nothing records
    /// what it has done. For the brave.
    ///
    /// Durable on return, always at `Sync`: one write and one sync.
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
    /// `ClaimLost` if the key isn't claimed under that token. As `claim`.
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

    /// Walks over all keys and their states, in no order. Changes made meanwhile may or may not be seen.
    ///
    /// Expired keys are not shown, even if they are remembered, because only the hash of a remembered key is left. Ask
    /// [`get`](Self::get) about one.
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
    /// One read a key. Nothing is written, unless the index is damaged, as in [`get`](Self::get).
    pub fn iter(&self) -> Iter {
        Iter::new(Arc::clone(&self.shared))
    }

    /// Makes everything acknowledged so far durable, whatever its level. Costs one sync.
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
    /// Nothing is written. It can't be undone.
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

    /// Refuses new claims, waits up to `deadline` for those in flight, makes everything durable and closes the store, so
    /// that the next open has nothing to recover. Returns the claims that were left interrupted.
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
    /// store answers `Closed`.
    ///
    /// # Errors
    /// `Poisoned` or `Indeterminate` if a write or sync failed, now or before; the store is closed all the
    /// same, and the next opening recovers what is durable. `StorageFull` if there was no room for the manifest
    /// of a clean end, which is no loss either. `InProgress` if calls on the store still wait for the disk at the deadline, or
    /// 200 ms after the first call was refused, whichever is later; or if the disk takes longer over what the close itself
    /// writes, which it has two seconds for at least: the store takes no calls, its directory stays locked, and a later
    /// `close` goes on, or learns what became of it. `Closed` if it is closed already, or another call is at it; `Forked`.
    ///
    /// # Cost
    /// The wait; a write and a sync for what is not durable yet; a table of the keys since the last checkpoint, 16 bytes
    /// each; a new manifest, which is a few small writes and
    /// syncs and a rename; and what it reclaims of two segments at most, until the deadline or for 200 ms. A thread that
    /// writes this. A store that wrote nothing writes nothing.
    pub fn close(&self, deadline: Duration) -> Result<Vec<Attempt>> {
        let left = self.shared.close(deadline)?;
        let attempt = |left: InFlight| Attempt::new(&left.key, left.state, None, left.now);
        Ok(left.into_iter().map(attempt).collect())
    }

    /// Says whether the store takes writes, and if not, why.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// assert!(store.health().is_writable());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Space is judged for a claim under this handle's policy.
    ///
    /// # Cost
    /// A look at a few flags. The disk is not read.
    #[must_use]
    pub fn health(&self) -> Health {
        match &*self.shared {
            Shared::Embedded(engine) => Health::of(engine, self.policy.reserved()),
            #[cfg(feature = "backend")]
            Shared::Other(backend) => Health::of_backend(backend.check().err().as_ref()),
        }
    }

    /// Returns counts, and what the last open found.
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
    /// Counts an embedded store only: on a store made by `with_backend`, every figure is zero.
    ///
    /// # Cost
    /// No disk, but not free. It looks at all keys in memory, under the lock of each of their 64 shards in turn, which takes
    /// a millisecond or two for each million keys, and copies the list of segments. It waits while a segment is prepared
    /// ahead or a manifest is exchanged.
    #[must_use]
    pub fn stats(&self) -> Stats {
        match &*self.shared {
            Shared::Embedded(engine) => Stats::of(engine),
            #[cfg(feature = "backend")]
            Shared::Other(_) => Stats::default(),
        }
    }

    /// Estimates how much of the store is alive, and how many keys are in each state. It samples about a thousand keys, so it
    /// is right to some percent, and less well if a few results are far larger than the rest. A store with fewer keys is
    /// counted exactly.
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
    /// Some hundred random reads.
    pub fn estimate(&self) -> Result<Estimate> {
        Estimate::of(self.shared.embedded()?)
    }

    /// Reads every file of the store and reports damage: in each record, in each bucket of the index, and where the index
    /// doesn't lead to a key. Damaged neighbours are reported as one. Changes nothing; other calls continue meanwhile.
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
    /// Records that are not yet durable are left out: call [`sync`](Self::sync) first to have everything read. Bytes that
    /// can't be read now are not damage and are listed in [`unread`](Verification::unread): call again once the cause is
    /// gone.
    ///
    /// # Errors
    /// `Closed`, also if a [`close`](Self::close) comes meanwhile; `Forked`. Damage is not an error of this call.
    ///
    /// # Cost
    /// Reads everything once, and each key's newest record once more.
    pub fn verify(&self) -> Result<Verification> {
        self.verify_with(|_| ControlFlow::Continue(()))
    }

    /// As [`verify`](Self::verify). After each file it calls `progress` with what was found so far, which may end the
    /// reading.
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
    /// As [`verify`](Self::verify).
    pub fn verify_with(
        &self,
        mut progress: impl FnMut(&Verification) -> ControlFlow<()>,
    ) -> Result<Verification> {
        let mut gathering = Gathering { found: Verification::default(), progress: &mut progress };
        self.shared.embedded()?.verify(&mut gathering)?;
        Ok(gathering.found)
    }

    /// Reclaims dead records: moves the live records of the log to its end, and removes the files they were in. Moves about
    /// `budget` bytes at most; the next call continues where the budget ran out.
    ///
    /// The background does the same by itself once the store is twice as large as its live bytes. When this call says that
    /// it is complete, no file of the store holds the bytes of anything forgotten, expired or overwritten before the call,
    /// and the index is one table, if there is space for it. A call that continues others vouches for what was dead before
    /// the first of them; a call with `u64::MAX` continues none. One thing stays: a forgotten key with
    /// [`remember_expired`](crate::Policy::remember_expired), without its result, until its memory would have passed.
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
    /// Durable on return. Other calls continue meanwhile.
    ///
    /// # Errors
    /// `StorageFull` if the space that is kept for moving records isn't enough: see `docs/durability.md`, "A full store".
    /// `Corrupt` if a record is damaged: its segment stays. As `sync`.
    ///
    /// # Cost
    /// Reads the log and writes its live records.
    pub fn compact(&self, budget: u64) -> Result<Compaction> {
        self.shared.embedded()?.compaction().compact(budget).map(Compaction::new)
    }

    /// Makes the index again from the log. Damage that a lookup or an open notices is mended at once without this call. Use
    /// it when no part of the index can be trusted any more.
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
    /// Durable on return. Other calls continue meanwhile.
    ///
    /// # Errors
    /// `Corrupt` if the log is damaged: see [`repair`](crate::admin::repair). `StorageFull`; as `sync`.
    ///
    /// # Cost
    /// Reads the log up to the last checkpoint, writes 16 bytes a key, some of them several times.
    pub fn rebuild_index(&self) -> Result<()> {
        self.shared.embedded()?.mending().rebuild_index()
    }

    /// Seals what memory holds and merges the index into one table, without moving the log. For this crate's own
    /// benches; may change at any time.
    #[doc(hidden)]
    pub fn merge_index(&self) -> Result<()> {
        self.shared.embedded()?.merges().merge_index()
    }

    /// Does one piece of background work, if one is due, and returns the time until the next may be due.
    ///
    /// Only for a store opened with [`manual_maintenance`](crate::StoreBuilder::manual_maintenance); otherwise two
    /// threads do this work. It syncs bytes written a second ago, covers them with a watermark, prepares segments, seals keys in tables,
    /// merges tables, and reclaims dead records.
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
    /// At most one piece of work: a write; a sync; a segment, of which each page is written; a checkpoint, which writes 16
    /// bytes for each key since the last one; or a piece of a merge or of compaction, some hundred KiB.
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

/// The call that marks a key, and what its record says.
fn marking<'a>(op: &Operation<'_>, settings: &'a Settings) -> (Call, Writing<'a>) {
    let writing = Writing {
        level: Some(settings.durability),
        conditions: Conditions {
            retention_ms: settings.retention_ms,
            remember_ms: settings.remember_ms,
            fingerprint: op.fingerprint_given(),
            owner: settings.owner.as_deref(),
            ..Conditions::default()
        },
        ..Writing::default()
    };
    (Call::Mark(op.fingerprint_given()), writing)
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
