//! Many calls with one write and one sync: `claim_many`, `complete_many`, `mark_many`, `forget_many`, and [`Batch`].
//!
//! Promises: the calls are decided in the order given, and each is answered; none is shown before all are durable at
//! their levels. Never: a transaction. After a crash any prefix of the calls may stand.

#[cfg(feature = "backend")]
use std::collections::HashSet;
use std::sync::Arc;

use super::Store;
#[cfg(feature = "backend")]
use crate::backend::{Backend, Reply, Request, Sent};
use crate::backend::{Embedded, Shared};
use crate::claim::{Claiming, Forgetting, KeyCall, Marking};
use crate::engine::PlacedBatch;
use crate::limits;
use crate::types::KeyHash;
use crate::{
    Claim, ClaimGuard, Durability, Error, ErrorKind, Key, Mark, Operation, Outcome, Result,
};

impl Store {
    /// Claims many keys with one write and one sync. Returns an answer for each key, in the order of the keys.
    ///
    /// The batch is not a transaction: after a crash, any prefix of it may exist. The claims are decided one after the
    /// other, so a key that occurs twice is granted only once, and the second answer is `InProgress`.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let messages = ["message-7", "message-8", "message-7"];
    /// let mut done = Vec::new();
    /// for (message, claim) in messages.iter().zip(store.claim_many(messages)?) {
    ///     if let Claim::Acquired(claim) = claim? {
    ///         /* handle it */
    ///         done.push((claim, onlyonce::Outcome::success(message)));
    ///     }
    /// }
    /// assert_eq!(done.len(), 2);
    /// for ended in store.complete_many(done)? {
    ///     ended?;
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Every grant is durable on return, at the level of its operation's
    /// [`claim_durability`](crate::Policy::claim_durability).
    ///
    /// # Errors
    /// The errors of [`mark_many`](Self::mark_many). If the whole call fails, none of the keys is claimed by you: where a
    /// grant is on disk nevertheless, the key is interrupted.
    ///
    /// # Cost
    /// One write, and one sync at `Sync`, for each segment that the batch spans: usually one. A key that needs no grant
    /// costs a read at most.
    pub fn claim_many<'k, O: Into<Operation<'k>>>(
        &self,
        ops: impl IntoIterator<Item = O>,
    ) -> Result<Vec<Result<Claim>>> {
        let claiming = |op: O| Claiming::new(&self.shared, op.into(), &self.policy);
        make_all(&self.shared, ops.into_iter().map(claiming))
    }

    /// Ends many claims, each with its outcome, with one write and one sync. Returns an answer for each claim, in the order
    /// of the claims.
    ///
    /// The batch is not a transaction: after a crash, any prefix of it may exist.
    ///
    /// ```
    /// # use onlyonce::{Claim, ClaimGuard, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let mut claims = Vec::new();
    /// # for claim in store.claim_many(["a", "b"])? {
    /// #     if let Claim::Acquired(claim) = claim? { claims.push(claim) }
    /// # }
    /// let ends: Vec<(ClaimGuard, Outcome)> =
    ///     claims.into_iter().map(|claim| (claim, Outcome::success("done"))).collect();
    /// for ended in store.complete_many(ends)? {
    ///     ended?;
    /// }
    /// assert!(matches!(store.claim("b")?, Claim::Completed(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Every ending is durable on return, at the level of its claim's [`durability`](crate::Policy::durability).
    ///
    /// # Errors
    /// An error for one claim is returned at that claim's position, with the others recorded: those of
    /// [`ClaimGuard::complete`](ClaimGuard::complete), and `Invalid` for a claim of another store.
    /// [`Error::into_claim`] returns the guard of an ending that was refused before anything was written. The whole call
    /// fails with `Indeterminate` if the write or sync failed; any of the outcomes may then be recorded. It fails with
    /// `Poisoned`, `Closed` or `Forked` before any is recorded. The guards are gone then.
    ///
    /// # Cost
    /// One write, and one sync at `Sync`, for each segment that the batch spans: usually one.
    pub fn complete_many(
        &self,
        ends: impl IntoIterator<Item = (ClaimGuard, Outcome)>,
    ) -> Result<Vec<Result<()>>> {
        let ending = |(guard, outcome): (ClaimGuard, Outcome)| guard.ending(outcome);
        make_all(&self.shared, ends.into_iter().map(ending))
    }

    /// Forgets many keys with one write and one sync. Returns for each key, in the order of the keys, whether there was
    /// anything to forget.
    ///
    /// The batch is not a transaction: after a crash, any prefix of it may exist.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.mark("message-7")?;
    /// let forgotten: Result<Vec<bool>, _> =
    ///     store.forget_many(["message-7", "message-8"])?.into_iter().collect();
    /// assert_eq!(forgotten?, [true, false]);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// The changes are durable on return, always at `Sync`.
    ///
    /// # Errors
    /// At a key's position: `InProgress` if the key is claimed, and otherwise the errors of
    /// [`mark_many`](Self::mark_many).
    ///
    /// # Cost
    /// One write and one sync for each segment that the batch spans: usually one.
    pub fn forget_many<'k, K: Into<Key<'k>>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Result<bool>>> {
        make_all(&self.shared, keys.into_iter().map(|key| Forgetting::new(key.into())))
    }

    /// Marks many keys with one write and one sync. Returns an answer for each key, in the order of the keys.
    ///
    /// The batch is not a transaction: after a crash, any prefix of it may exist. A key that occurs twice is `First`
    /// only once.
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
    /// Every mark is durable on return, at the level of its operation's [`durability`](crate::Policy::durability).
    ///
    /// # Errors
    /// An error for one key is returned at that key's position: `TooLarge` or `Invalid`, `Corrupt` if the key's record
    /// is damaged, or `StorageFull`. That key was not marked, but the others were. The whole call fails with
    /// `Indeterminate` if the write or sync failed, and any of the marks may then be on disk. It fails with `Poisoned`,
    /// `Closed` or `Forked` before any key is marked.
    ///
    /// # Cost
    /// One write, and one sync at `Sync`, for each segment that the batch spans: usually one.
    pub fn mark_many<'k, O: Into<Operation<'k>>>(
        &self,
        ops: impl IntoIterator<Item = O>,
    ) -> Result<Vec<Result<Mark>>> {
        let marking = |op: O| Marking::new(op.into(), &self.policy);
        make_all(&self.shared, ops.into_iter().map(marking))
    }
}

/// Makes the calls in their order, and waits for all of them together. An item that can't be made is answered with its
/// error.
fn make_all<I: KeyCall>(
    shared: &Arc<Shared>,
    items: impl Iterator<Item = Result<I>>,
) -> Result<Vec<Result<I::Answer>>> {
    let items = items.map(|item| item.and_then(|item| of_this_store(shared, item)));
    match &**shared {
        Shared::Embedded(engine) => make_embedded(shared, engine, items),
        #[cfg(feature = "backend")]
        Shared::Other(backend) => Ok(make_elsewhere(shared, &**backend, items)),
    }
}

/// A claim of another store under the same key may even have the same token.
fn of_this_store<I: KeyCall>(shared: &Arc<Shared>, item: I) -> Result<I> {
    match item.shared() {
        Some(of) if !Arc::ptr_eq(of, shared) => {
            let message =
                format!("the claim on {} is of another store: end it by itself", item.key());
            Err(item.refused(Error::invalid(message)))
        }
        _ => Ok(item),
    }
}

fn make_embedded<I: KeyCall>(
    shared: &Arc<Shared>,
    engine: &Embedded,
    mut items: impl Iterator<Item = Result<I>>,
) -> Result<Vec<Result<I::Answer>>> {
    let inside = engine.enter()?;
    if engine.log.is_poisoned() {
        return Err(engine.log.poisoned());
    }
    let mut batch = PlacedBatch::default();
    let mut make = |(item, hash): (I, KeyHash)| {
        let applied = item.ask(|key, call, writing| {
            let done = engine.place(&inside, key, hash, call, writing)?;
            batch.add(&done, writing.level.unwrap_or(Durability::Sync));
            Ok(done.into_applied())
        });
        item.answered(shared, hash, applied)
    };
    let mut answers = Vec::with_capacity(items.size_hint().0);
    loop {
        let hashed = |item: Result<I>| {
            item.map(|item| {
                let hash = engine.hash(item.key());
                (item, hash)
            })
        };
        let next: Vec<_> = items.by_ref().take(limits::LOOK_AHEAD_KEYS).map(hashed).collect();
        if next.is_empty() {
            break;
        }
        if let Err(e) = engine.log.may_go_on() {
            answers.extend(next.into_iter().map(|_| Err(e.again())));
            continue;
        }
        let hashes: Vec<_> = next.iter().flatten().map(|(_, hash)| *hash).collect();
        engine.look_ahead(&hashes);
        answers.extend(next.into_iter().map(|item| make(item?)));
    }
    // Closed or poisoned halfway: the records placed before are in flight, or their fate is unknown.
    let is_of_all =
        |e: &Error| matches!(e.kind(), ErrorKind::Closed | ErrorKind::Poisoned | ErrorKind::Forked);
    let first_is_refused = matches!(answers.first(), Some(Err(e)) if is_of_all(e));
    if first_is_refused && !answers.iter().any(Result::is_ok) {
        return answers.swap_remove(0).map(|_| Vec::new());
    }
    engine.settle_batch(&inside, &batch)?;
    Ok(answers)
}

/// Sends all before it waits for the first; only a call on a key that is among them waits for those before it.
#[cfg(feature = "backend")]
fn make_elsewhere<I: KeyCall>(
    shared: &Arc<Shared>,
    backend: &dyn Backend,
    items: impl Iterator<Item = Result<I>>,
) -> Vec<Result<I::Answer>> {
    let wait = |sent: Result<(I, Box<dyn Sent>)>| {
        let (item, sent) = sent?;
        let hash = shared.hash(item.key());
        item.answered(shared, hash, sent.wait().map(Reply::into_applied))
    };
    let (mut answers, mut sent, mut keys) = (Vec::new(), Vec::new(), HashSet::new());
    for item in items {
        if let Ok(item) = &item {
            let key = item.key().clone().into_owned();
            if keys.contains(&key) {
                answers.extend(sent.drain(..).map(wait));
                keys.clear();
            }
            keys.insert(key);
        }
        sent.push(item.map(|item| {
            let sent = item.ask(|key, call, writing| backend.send(Request::of(key, call, writing)));
            (item, sent)
        }));
    }
    answers.extend(sent.into_iter().map(wait));
    answers
}
