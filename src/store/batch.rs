//! Many calls with one write and one sync: `claim_many`, `complete_many`, `mark_many`, `forget_many`, and [`Batch`].
//!
//! Promises: the calls are decided in the order given, and each is answered; none is shown before all are durable at
//! their levels. Never: a transaction. After a crash any prefix of the calls may stand.

use std::fmt;
use std::sync::Arc;

use super::Store;
use crate::backend::{Embedded, Entering, Shared, SpaceGoal, place_all};
use crate::claim::seen::lacking;
use crate::claim::{
    Claiming, EndingCall, Forgetting, KeyCall, Marking, Pending, Word, has_entered, in_space,
};
use crate::engine::{Applied, Asks, Writing};
use crate::protocol::Call;
use crate::types::{KeyHash, Token};
use crate::{
    Abort, Claim, ClaimGuard, Encode, Error, ErrorKind, Interrupted, Key, Mark, Operation, Outcome,
    Result, ToForget,
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
        let claiming = |op: O| {
            let mut op = op.into();
            self.place(&mut op)?;
            Claiming::new(&self.shared, op, &self.policy)
        };
        make_all(&self.shared, ops.into_iter().map(claiming))
    }

    /// Claims many keys as [`claim_many`](Self::claim_many) does, and gives the answers later, all together. Dropped before
    /// that, the grants are released.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let claims = store.claim_many_async(["message-7", "message-8"]).wait()?;
    /// assert!(claims.iter().all(|claim| matches!(claim, Ok(Claim::Acquired(_)))));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`claim_many`](Self::claim_many), as the answer.
    pub fn claim_many_async<'k, O: Into<Operation<'k>>>(
        &self,
        ops: impl IntoIterator<Item = O>,
    ) -> Pending<Vec<Result<Claim>>> {
        let claiming = |op: O| Claiming::new(&self.shared, op.into().into_owned(), &self.policy);
        send_all(self, ops.into_iter().map(claiming))
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

    /// Ends many claims as [`complete_many`](Self::complete_many) does, and gives the answers later, all together. Dropped
    /// before that, the endings go on.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// let ended = store.complete_many_async([(claim, Outcome::success("paid"))]).wait()?;
    /// assert!(matches!(ended.as_slice(), [Ok(())]));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`complete_many`](Self::complete_many), as the answer.
    pub fn complete_many_async(
        &self,
        ends: impl IntoIterator<Item = (ClaimGuard, Outcome)>,
    ) -> Pending<Vec<Result<()>>> {
        let ending = |(guard, outcome): (ClaimGuard, Outcome)| guard.ending(outcome);
        send_all(self, ends.into_iter().map(ending))
    }

    /// Forgets many keys with one write and one sync. Returns for each key, in the order of the keys, whether there was
    /// anything to forget. Takes keys, or the states in which they were seen, as [`forget`](Self::forget) does.
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
    pub fn forget_many<'k, K: Into<ToForget<'k>>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Result<bool>>> {
        let forgetting = |key: K| self.found(Forgetting::new(key.into())?);
        make_all(&self.shared, keys.into_iter().map(forgetting))
    }

    /// Forgets many keys as [`forget_many`](Self::forget_many) does, and gives the answers later, all together.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.mark("message-7")?;
    /// let forgotten = store.forget_many_async(["message-7", "message-8"]).wait()?;
    /// assert!(matches!(forgotten.as_slice(), [Ok(true), Ok(false)]));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`forget_many`](Self::forget_many), as the answer.
    pub fn forget_many_async<'k, K: Into<ToForget<'k>>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Pending<Vec<Result<bool>>> {
        let forgetting = |key: K| Forgetting::new(key.into().into_owned());
        send_all(self, keys.into_iter().map(forgetting))
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
        let marking = |op: O| {
            let mut op = op.into();
            self.place(&mut op)?;
            Marking::new(op, &self.policy)
        };
        make_all(&self.shared, ops.into_iter().map(marking))
    }

    /// Marks many keys as [`mark_many`](Self::mark_many) does, and gives the answers later, all together.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let sent = store.mark_many_async(["message-7", "message-8"]); // meanwhile: the next poll
    /// for mark in sent.wait()? {
    ///     assert!(mark?.is_first());
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`mark_many`](Self::mark_many), as the answer.
    pub fn mark_many_async<'k, O: Into<Operation<'k>>>(
        &self,
        ops: impl IntoIterator<Item = O>,
    ) -> Pending<Vec<Result<Mark>>> {
        let marking = |op: O| Marking::new(op.into().into_owned(), &self.policy);
        send_all(self, ops.into_iter().map(marking))
    }
}

/// Calls of several kinds that are made together, with one write and one sync: see [`Store::batch`].
///
/// The calls are decided in the order in which they were added, each by what the calls before it have left: a claim after a
/// completion of the same key is answered `Completed`. [`Committed`] has an answer for each. A batch is not a transaction:
/// after a crash, any prefix of it may exist.
///
/// Nothing is done before [`commit`](Self::commit). Dropping a batch drops its claims and questions: the attempts of the
/// claims are interrupted, and the questions stay unanswered.
///
/// ```
/// # use onlyonce::{Claim, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # let poll = |n: u64| vec![("message", n), ("message", n + 1)];
/// // Each round ends the claims of the last one, and makes those of the next.
/// let mut batch = store.batch();
/// for round in 0..3 {
///     let messages = poll(10 * round);
///     for message in &messages {
///         batch.claim(*message);
///     }
///     let committed = batch.commit()?; // one write; the last round's messages may now be acknowledged
///     batch = store.batch();
///     for claim in committed.claims {
///         match claim? {
///             Claim::Acquired(claim) => batch.complete(claim, "handled"),
///             Claim::Interrupted(lost) => batch.take_over(lost), // handled in the round after
///             _ => &mut batch,                                   // handled before
///         };
///     }
/// }
/// batch.commit()?;
/// assert!(matches!(store.claim(("message", 21))?, Claim::Completed(_)));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "nothing is done before it is committed"]
pub struct Batch {
    store: Store,
    /// What is to be done, with the list of the answers that its answer goes to.
    items: Vec<(AnswerList, Result<Mixed>)>,
}

/// The answers to the calls of a [`Batch`]: those of each kind in the order in which these were added.
///
/// ```
/// # use onlyonce::{Claim, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// let mut batch = store.batch();
/// batch.mark("message-7").claim("task-42").mark("message-7");
/// let committed = batch.commit()?;
/// let firsts: Result<Vec<_>, _> =
///     committed.marks.into_iter().map(|mark| mark.map(|mark| mark.is_first())).collect();
/// assert_eq!(firsts?, [true, false]);
/// assert!(matches!(committed.claims.as_slice(), [Ok(Claim::Acquired(_))]));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "a grant that is dropped leaves the key interrupted"]
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Committed {
    /// Answers to [`Batch::claim`].
    pub claims: Vec<Result<Claim>>,
    /// Grants of [`Batch::take_over`] and [`Batch::not_applied`].
    pub taken: Vec<Result<ClaimGuard>>,
    /// Answers to [`Batch::complete`], [`Batch::record`] and [`Batch::abort`].
    pub endings: Vec<Result<()>>,
    /// Answers to [`Batch::mark`].
    pub marks: Vec<Result<Mark>>,
    /// Answers to [`Batch::forget`]: whether there was anything to forget.
    pub forgotten: Vec<Result<bool>>,
}

/// A field of [`Committed`].
#[derive(Clone, Copy)]
enum AnswerList {
    Claims,
    Taken,
    Endings,
    Marks,
    Forgotten,
}

/// A call of a batch.
enum Mixed {
    Claim(Claiming<'static>),
    Word(Word),
    Ending(EndingCall),
    Mark(Marking<'static>),
    Forget(Forgetting<'static>),
}

/// Its answer.
enum MixedAnswer {
    Claim(Claim),
    Taken(ClaimGuard),
    Ended,
    Mark(Mark),
    Forgotten(bool),
}

impl Store {
    /// Begins a batch: calls of several kinds that are made together when it is committed. This handle's policy supplies what
    /// the operations don't set.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("step-1")? else { unreachable!() };
    /// let mut batch = store.batch();
    /// batch.complete(claim, "done").claim("step-2");
    /// let committed = batch.commit()?; // one write and one sync
    /// assert!(matches!(committed.endings.as_slice(), [Ok(())]));
    /// assert!(matches!(committed.claims.as_slice(), [Ok(Claim::Acquired(_))]));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn batch(&self) -> Batch {
        Batch { store: self.clone(), items: Vec::new() }
    }
}

impl Batch {
    /// Adds a claim, as [`Store::claim`].
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let mut batch = store.batch();
    /// batch.claim("a").claim(Operation::new("b").owner("host-3")).claim("a");
    /// let claims = batch.commit()?.claims;
    /// assert!(matches!(claims.as_slice(), [Ok(Claim::Acquired(_)), Ok(_), Ok(Claim::InProgress(_))]));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn claim<'k>(&mut self, op: impl Into<Operation<'k>>) -> &mut Self {
        let op = op.into().into_owned();
        let claiming = Claiming::new(&self.store.shared, op, &self.store.policy);
        self.add(AnswerList::Claims, claiming.map(Mixed::Claim))
    }

    /// Adds an ending with a result, as [`ClaimGuard::complete`]. A value that doesn't encode is reported by the commit.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// let mut batch = store.batch();
    /// batch.complete(claim, "paid");
    /// batch.commit()?;
    /// assert!(matches!(store.claim("order-17")?, Claim::Completed(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn complete<V: Encode + ?Sized>(&mut self, claim: ClaimGuard, value: &V) -> &mut Self {
        self.record(claim, Outcome::success(value))
    }

    /// Adds an ending with an outcome, as [`ClaimGuard::record`].
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// let mut batch = store.batch();
    /// batch.record(claim, Outcome::failure("declined").meta("status", 402));
    /// batch.commit()?;
    /// assert!(matches!(store.claim("order-17")?, Claim::Failed(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn record(&mut self, claim: ClaimGuard, outcome: Outcome) -> &mut Self {
        self.add(AnswerList::Endings, claim.ending(outcome).map(Mixed::Ending))
    }

    /// Adds an ending as an attempt that had no effect, as [`ClaimGuard::abort`].
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// let mut batch = store.batch();
    /// batch.abort(claim, "the other side is down").claim("order-17");
    /// assert!(matches!(batch.commit()?.claims.as_slice(), [Ok(Claim::Acquired(_))]));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn abort(&mut self, claim: ClaimGuard, why: impl Into<Abort>) -> &mut Self {
        self.add(AnswerList::Endings, claim.aborting(why.into()).map(Mixed::Ending))
    }

    /// Adds a take-over, as [`Interrupted::take_over`].
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim_many(["a", "b"])?);
    /// let mut batch = store.batch();
    /// for claim in store.claim_many(["a", "b"])? {
    ///     if let Claim::Interrupted(lost) = claim? {
    ///         batch.take_over(lost);
    ///     }
    /// }
    /// for claim in batch.commit()?.taken {
    ///     claim?.complete("done")?;
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn take_over(&mut self, lost: Interrupted) -> &mut Self {
        self.add(AnswerList::Taken, Ok(Mixed::Word(lost.taking_over())))
    }

    /// Adds the word that neither this attempt nor any earlier one had an effect, as [`Interrupted::not_applied`].
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// let mut batch = store.batch();
    /// batch.not_applied(lost);
    /// assert_eq!(batch.commit()?.taken.len(), 1);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn not_applied(&mut self, lost: Interrupted) -> &mut Self {
        self.add(AnswerList::Taken, Ok(Mixed::Word(lost.disclaiming())))
    }

    /// Adds a mark, as [`Store::mark`].
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let mut batch = store.batch();
    /// batch.mark("message-7").mark("message-8");
    /// for mark in batch.commit()?.marks {
    ///     if mark?.is_first() { /* handle it */ }
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn mark<'k>(&mut self, op: impl Into<Operation<'k>>) -> &mut Self {
        let marking = Marking::new(op.into().into_owned(), &self.store.policy);
        self.add(AnswerList::Marks, marking.map(Mixed::Mark))
    }

    /// Adds a key to forget, as [`Store::forget`].
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// # let _ = store.mark("message-7")?;
    /// let mut batch = store.batch();
    /// batch.forget("message-7").mark("message-7");
    /// let committed = batch.commit()?;
    /// assert!(matches!(committed.forgotten.as_slice(), [Ok(true)]));
    /// assert!(matches!(committed.marks.as_slice(), [Ok(mark)] if mark.is_first()));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn forget<'k>(&mut self, what: impl Into<ToForget<'k>>) -> &mut Self {
        let forgetting = Forgetting::new(what.into().into_owned());
        self.add(AnswerList::Forgotten, forgetting.map(Mixed::Forget))
    }

    /// Makes the calls, in the order in which they were added.
    ///
    /// Each change is durable on return, at the level at which the call by itself would be.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let mut batch = store.batch();
    /// for n in 0..100_u64 {
    ///     batch.mark(n);
    /// }
    /// let syncs = store.stats().syncs;
    /// assert_eq!(batch.commit()?.marks.len(), 100);
    /// assert!(store.stats().syncs <= syncs + 2); // one, and one that an open begins with
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// An error of one call is in its place in [`Committed`], with the others made: those of the call by itself, and
    /// `Invalid` for a claim or a question of another store. [`Error::into_claim`] returns the guard of an ending that was
    /// refused before anything was written. The commit itself fails with `Indeterminate` if the write or sync failed: any
    /// of the changes may then be on disk, nothing is claimed by you, and the guards of the batch are gone. It fails with
    /// `Poisoned`, `Closed` or `Forked` before anything is done.
    ///
    /// # Cost
    /// One write, and one sync at `Sync`, for each segment that the batch spans: usually one. A call that changes nothing
    /// costs a read at most. A call on a key that an earlier call of the batch completed, marked or aborted reads that record
    /// back, which writes what was placed until then: one write more.
    pub fn commit(self) -> Result<Committed> {
        let Batch { store, items } = self;
        let (lists, items): (Vec<AnswerList>, Vec<Result<Mixed>>) = items.into_iter().unzip();
        let found = items.into_iter().map(|item| item.and_then(|item| store.found(item)));
        Ok(Committed::of(lists, make_all(&store.shared, found)?))
    }

    /// Makes the calls as [`commit`](Self::commit) does, and gives the answers later, all together.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let mut batch = store.batch();
    /// batch.mark("message-7").mark("message-8");
    /// let sent = batch.commit_async(); // meanwhile: the next messages
    /// assert_eq!(sent.wait()?.marks.len(), 2);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// If this value is dropped before the answers are there, the calls are made nevertheless: the endings count, and what was
    /// granted is released.
    ///
    /// # Errors
    /// The errors of [`commit`](Self::commit), as the answer.
    pub fn commit_async(self) -> Pending<Committed> {
        let Batch { store, items } = self;
        let (lists, items): (Vec<AnswerList>, Vec<Result<Mixed>>) = items.into_iter().unzip();
        let sent = send_all(&store, items.into_iter());
        sent.map(move |answers| Committed::of(lists, answers))
    }

    fn add(&mut self, list: AnswerList, item: Result<Mixed>) -> &mut Self {
        self.items.push((list, item));
        self
    }
}

impl Committed {
    /// The answers to the calls that were added for those lists.
    fn of(lists: Vec<AnswerList>, answers: Vec<Result<MixedAnswer>>) -> Self {
        let mut all = Committed::default();
        for (list, answer) in lists.into_iter().zip(answers) {
            match (list, answer) {
                (_, Ok(MixedAnswer::Claim(claim))) => all.claims.push(Ok(claim)),
                (_, Ok(MixedAnswer::Taken(claim))) => all.taken.push(Ok(claim)),
                (_, Ok(MixedAnswer::Ended)) => all.endings.push(Ok(())),
                (_, Ok(MixedAnswer::Mark(mark))) => all.marks.push(Ok(mark)),
                (_, Ok(MixedAnswer::Forgotten(was))) => all.forgotten.push(Ok(was)),
                (AnswerList::Claims, Err(e)) => all.claims.push(Err(e)),
                (AnswerList::Taken, Err(e)) => all.taken.push(Err(e)),
                (AnswerList::Endings, Err(e)) => all.endings.push(Err(e)),
                (AnswerList::Marks, Err(e)) => all.marks.push(Err(e)),
                (AnswerList::Forgotten, Err(e)) => all.forgotten.push(Err(e)),
            }
        }
        all
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("calls", &self.items.len()).finish_non_exhaustive()
    }
}

impl Asks for Mixed {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        match self {
            Mixed::Claim(claiming) => claiming.ask(with),
            Mixed::Word(word) => word.ask(with),
            Mixed::Ending(ending) => ending.ask(with),
            Mixed::Mark(marking) => marking.ask(with),
            Mixed::Forget(forgetting) => forgetting.ask(with),
        }
    }
}

impl KeyCall for Mixed {
    type Answer = MixedAnswer;

    fn key(&self) -> &Key<'_> {
        match self {
            Mixed::Claim(claiming) => claiming.key(),
            Mixed::Word(word) => word.key(),
            Mixed::Ending(ending) => ending.key(),
            Mixed::Mark(marking) => marking.key(),
            Mixed::Forget(forgetting) => forgetting.key(),
        }
    }

    fn goal(&self) -> Option<SpaceGoal> {
        match self {
            Mixed::Claim(claiming) => claiming.goal(),
            Mixed::Word(_) | Mixed::Ending(_) => None,
            Mixed::Mark(marking) => marking.goal(),
            Mixed::Forget(forgetting) => forgetting.goal(),
        }
    }

    fn enter(&mut self, space: Token) {
        match self {
            Mixed::Claim(claiming) => claiming.enter(space),
            Mixed::Word(_) | Mixed::Ending(_) => {}
            Mixed::Mark(marking) => marking.enter(space),
            Mixed::Forget(forgetting) => forgetting.enter(space),
        }
    }

    fn shared(&self) -> Option<&Arc<Shared>> {
        match self {
            Mixed::Word(word) => word.shared(),
            Mixed::Ending(ending) => ending.shared(),
            Mixed::Claim(_) | Mixed::Mark(_) | Mixed::Forget(_) => None,
        }
    }

    fn may_be_made(&self) -> Result<()> {
        match self {
            Mixed::Ending(ending) => ending.may_be_made(),
            Mixed::Claim(_) | Mixed::Word(_) | Mixed::Mark(_) | Mixed::Forget(_) => Ok(()),
        }
    }

    fn answered(
        self,
        shared: &Arc<Shared>,
        hash: KeyHash,
        applied: Result<Applied>,
    ) -> Result<MixedAnswer> {
        match self {
            Mixed::Claim(claiming) => {
                claiming.answered(shared, hash, applied).map(MixedAnswer::Claim)
            }
            Mixed::Word(word) => word.answered(shared, hash, applied).map(MixedAnswer::Taken),
            Mixed::Ending(ending) => {
                ending.answered(shared, hash, applied).map(|()| MixedAnswer::Ended)
            }
            Mixed::Mark(marking) => marking.answered(shared, hash, applied).map(MixedAnswer::Mark),
            Mixed::Forget(forgetting) => {
                forgetting.answered(shared, hash, applied).map(MixedAnswer::Forgotten)
            }
        }
    }

    fn untold(answer: MixedAnswer) {
        match answer {
            MixedAnswer::Claim(claim) => Claiming::untold(claim),
            MixedAnswer::Taken(claim) => Word::untold(claim),
            MixedAnswer::Ended | MixedAnswer::Mark(_) | MixedAnswer::Forgotten(_) => {}
        }
    }

    fn refused(self, error: Error) -> Error {
        match self {
            Mixed::Ending(ending) => ending.refused(error),
            Mixed::Claim(_) | Mixed::Word(_) | Mixed::Mark(_) | Mixed::Forget(_) => error,
        }
    }
}

/// Makes the calls in their order, and waits for all of them together. An item that can't be made is answered with its
/// error.
fn make_all<I: KeyCall>(
    shared: &Arc<Shared>,
    items: impl Iterator<Item = Result<I>>,
) -> Result<Vec<Result<I::Answer>>> {
    let items = items.map(|item| item.and_then(|item| checked(shared, item)));
    match shared.current() {
        Shared::Embedded(engine) => make_embedded(shared, engine, items),
        Shared::Other(_) => {
            let items: Vec<_> = items.collect();
            let told = shared.send_many(items.iter().flatten(), None).wait()?;
            Ok(answered(shared, items, told))
        }
    }
}

/// Sends the calls, whose answers come later, all together.
fn send_all<I: KeyCall + Send + 'static>(
    store: &Store,
    items: impl Iterator<Item = Result<I>>,
) -> Pending<Vec<Result<I::Answer>>> {
    let (shared, space, mut entering) = (&store.shared, store.space.as_ref(), None);
    let mut ready =
        |item| checked(shared, item).and_then(|item| in_space(shared, space, item, &mut entering));
    let items = items.map(|item| item.and_then(&mut ready));
    let mut sent = SentItems(items.collect());
    let entered = entering.as_ref().map(Entering::entered);
    let underway = shared.send_many(sent.0.iter().flatten(), entering);
    let shared = Arc::clone(shared);
    Pending::new(underway, move |told| {
        // Before an error of all of them: their endings don't go on, so each lets its claim go.
        let mut items = std::mem::take(&mut sent.0);
        let told = told?;
        if let Some(entered) = entered {
            let placed = items.into_iter().map(|item| item.map(|item| has_entered(item, &entered)));
            items = placed.collect();
        }
        let mut answers = answered(&shared, items, told);
        refused_whole(&mut answers)?;
        Ok(answers)
    })
}

/// Calls that were sent. Dropped before their answers were taken, it tells the items.
struct SentItems<I: KeyCall>(Vec<Result<I>>);

impl<I: KeyCall> Drop for SentItems<I> {
    fn drop(&mut self) {
        self.0.iter().flatten().for_each(KeyCall::left);
    }
}

/// The answers to the items, in their order. `told`: those to the items that could be made.
fn answered<I: KeyCall>(
    shared: &Arc<Shared>,
    items: Vec<Result<I>>,
    told: Vec<Result<Applied>>,
) -> Vec<Result<I::Answer>> {
    let mut told = told.into_iter();
    let answer = |item: I| {
        let hash = shared.hash(item.key());
        item.answered(shared, hash, told.next().ok_or_else(|| lacking(shared, "one of its calls"))?)
    };
    let mut answer = answer;
    items.into_iter().map(|item| item.and_then(&mut answer)).collect()
}

/// Returns the error of the first call, if all were refused because nothing could be done.
fn refused_whole<T>(answers: &mut Vec<Result<T>>) -> Result<()> {
    let is_of_all =
        |e: &Error| matches!(e.kind(), ErrorKind::Closed | ErrorKind::Poisoned | ErrorKind::Forked);
    let first_is_refused = matches!(answers.first(), Some(Err(e)) if is_of_all(e));
    match first_is_refused && !answers.iter().any(Result::is_ok) {
        true => answers.swap_remove(0).map(|_| ()),
        false => Ok(()),
    }
}

/// Refuses the call on a claim of another store, which under the same key may even have the same token, and the ending of a claim
/// that is over since it was added.
fn checked<I: KeyCall>(shared: &Arc<Shared>, item: I) -> Result<I> {
    if item.shared().is_some_and(|of| !Arc::ptr_eq(of, shared)) {
        let key = item.key();
        let message =
            format!("the claim or question about {key} is of another store: make the call there");
        return Err(item.refused(Error::invalid(message)));
    }
    item.may_be_made()?;
    Ok(item)
}

fn make_embedded<I: KeyCall>(
    shared: &Arc<Shared>,
    engine: &Embedded,
    items: impl Iterator<Item = Result<I>>,
) -> Result<Vec<Result<I::Answer>>> {
    let inside = engine.enter()?;
    if engine.log.is_poisoned() {
        return Err(engine.log.poisoned());
    }
    let mut answers = Vec::with_capacity(items.size_hint().0);
    let batch = place_all(engine, &inside, items, |made| {
        let made = made.and_then(|(item, hash, applied)| item.answered(shared, hash, applied));
        answers.push(made);
    });
    refused_whole(&mut answers)?;
    if let Err(e) = engine.settle_batch(&inside, &batch) {
        answers.into_iter().flatten().for_each(I::untold);
        return Err(e);
    }
    Ok(answers)
}
