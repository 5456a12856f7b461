//! One call of many that are made together: what it asks, and what becomes of its answer.
//!
//! Promises: nothing is done before the call is made; an item that is dropped before that is as what it holds dropped.

use std::sync::Arc;

use super::{Claim, Mark, Pending, State, granting};
use crate::backend::{Entered, Entering, NOWHERE, Shared, Space, SpaceGoal, SpaceKnown, is_in};
use crate::claim::seen::{in_progress, unexpected};
use crate::engine::{Applied, Asks, EncodedOutcome, Writing};
use crate::operation::{
    Fingerprint, Key, Lies, Operation, Outcome, OutcomeParts, Policy, Settings,
};
use crate::protocol::{Answer, Call, Conditions, Sight, Wants};
use crate::types::{KeyHash, Token};
use crate::{Error, Result};

/// A call on one key that is about to be made, alone or with others.
pub(crate) trait KeyCall: Asks {
    type Answer;

    fn key(&self) -> &Key<'_>;

    /// What the call wants of the namespace of its handle; `None`: its key is that of the store already.
    fn goal(&self) -> Option<SpaceGoal> {
        None
    }

    /// Moves its key to the namespace of that id, unless it is that of the store already.
    fn enter(&mut self, _space: Token) {}

    /// The store of the claim or the question that it holds, if it holds one.
    fn shared(&self) -> Option<&Arc<Shared>> {
        None
    }

    /// Whether the claim that it holds still takes the call.
    fn may_be_made(&self) -> Result<()> {
        Ok(())
    }

    /// The answer, once the call is made. Not to be shown before a crash can't undo it.
    fn answered(
        self,
        shared: &Arc<Shared>,
        hash: KeyHash,
        applied: Result<Applied>,
    ) -> Result<Self::Answer>;

    /// Its caller is gone after it was sent, and before its answer was taken.
    fn left(&self) {}

    /// The answer is not shown: its caller is told an error instead, and has nothing of what was granted.
    fn untold(_answer: Self::Answer) {}

    /// Drops it without a call. The error takes along the guard, if there is one.
    fn refused(self, error: Error) -> Error
    where
        Self: Sized,
    {
        error
    }
}

/// Makes one call by itself, and waits until a crash can't undo its answer.
#[inline]
pub(crate) fn make<I: KeyCall>(shared: &Arc<Shared>, item: I) -> Result<I::Answer> {
    let hash = shared.hash(item.key());
    let applied = item.ask(|key, call, writing| shared.apply(key, hash, call, writing));
    item.answered(shared, hash, applied)
}

/// Sends one call on a key that is that of the store. Its answer comes later.
pub(crate) fn send<I: KeyCall + Send + 'static>(
    shared: &Arc<Shared>,
    item: Result<I>,
) -> Pending<I::Answer> {
    send_in(shared, None, item, None)
}

/// As [`send`], in the namespace of a handle. `patience`: how long a claim waits for its key, in milliseconds.
///
/// Nothing here does I/O or waits. A namespace that memory doesn't know is found or made where the call does what it waits for.
pub(crate) fn send_in<I: KeyCall + Send + 'static>(
    shared: &Arc<Shared>,
    space: Option<&Arc<Space>>,
    item: Result<I>,
    patience: Option<u64>,
) -> Pending<I::Answer> {
    let mut entering = None;
    let item = match item.and_then(|item| in_space(shared, space, item, &mut entering)) {
        Ok(item) => item,
        Err(e) => return Pending::ready(Err(e)),
    };
    let hash = shared.hash(item.key());
    let entered = entering.as_ref().map(Entering::entered);
    let begin = |key: &Key<'_>, call, writing: &Writing<'_>| {
        shared.send(key, call, writing, patience, entering)
    };
    let underway = item.ask(begin);
    let (shared, mut sent) = (Arc::clone(shared), SentItem(Some(item)));
    Pending::new(underway, move |told| match (sent.0.take(), entered) {
        (Some(item), None) => item.answered(&shared, hash, told),
        (Some(item), Some(entered)) => {
            let item = has_entered(item, &entered);
            let hash = shared.hash(item.key());
            item.answered(&shared, hash, told)
        }
        (None, _) => Err(shared.bug("a call was answered twice")),
    })
}

/// Moves a call to the namespace of its handle, if memory knows that. Otherwise its key lies nowhere, until it is placed together
/// with what `entering` says.
pub(crate) fn in_space<I: KeyCall>(
    shared: &Shared,
    space: Option<&Arc<Space>>,
    mut item: I,
    entering: &mut Option<Entering>,
) -> Result<I> {
    let Some(goal) = item.goal() else { return Ok(item) };
    let known = match (space, &*entering) {
        (None, _) => None,
        (Some(_), Some(_)) => Some(SpaceKnown::Unknown),
        (Some(space), None) => Some(shared.known(space, goal == SpaceGoal::Enter)?),
    };
    let is_placed = match (goal, known) {
        (SpaceGoal::Check, None) => is_in(item.key(), None),
        (SpaceGoal::Check, Some(SpaceKnown::It(id))) => is_in(item.key(), Some(id)),
        (SpaceGoal::Check, Some(_)) => false,
        (_, None) => true,
        (_, Some(SpaceKnown::It(id))) => {
            item.enter(id);
            true
        }
        (_, Some(SpaceKnown::Nowhere)) => {
            item.enter(NOWHERE);
            true
        }
        (_, Some(SpaceKnown::Unknown)) => {
            item.enter(NOWHERE);
            false
        }
    };
    item.key().check()?;
    if !is_placed {
        entering.get_or_insert_with(|| Entering::new(space, goal)).join(goal);
    }
    Ok(item)
}

/// A call that was placed together with what was to be found out about its namespace.
pub(crate) fn has_entered<I: KeyCall>(mut item: I, entered: &Entered) -> I {
    if let Some(id) = entered.id().filter(|_| item.key().lies() == Lies::In(NOWHERE)) {
        item.enter(id);
    }
    item
}

/// A call that was sent. Dropped before its answer was taken, it tells the item.
struct SentItem<I: KeyCall>(Option<I>);

impl<I: KeyCall> Drop for SentItem<I> {
    fn drop(&mut self) {
        if let Some(item) = &self.0 {
            item.left();
        }
    }
}

fn enter(key: &mut Key<'_>, space: Token) {
    *key = key.shown().in_space(space);
}

/// The parts of an operation that a call keeps, with its policy resolved. Fails if its key is too long.
fn resolved<'k>(
    op: Operation<'k>,
    defaults: &Policy,
) -> Result<(Key<'k>, Option<Fingerprint>, Settings)> {
    op.key().check()?;
    let settings = op.policy().resolve_over(defaults)?;
    let (key, fingerprint) = op.into_parts();
    Ok((key, fingerprint, settings))
}

/// A claim of a key.
pub(crate) struct Claiming<'k> {
    key: Key<'k>,
    fingerprint: Option<Fingerprint>,
    settings: Settings,
    result_bytes_max: u32,
    reconciles: bool,
}

impl<'k> Claiming<'k> {
    /// `defaults`: what counts where the operation sets nothing.
    pub(crate) fn new(shared: &Shared, op: Operation<'k>, defaults: &Policy) -> Result<Self> {
        let (key, fingerprint, settings) = resolved(op, defaults)?;
        let result_bytes_max = shared.result_bytes_max();
        Ok(Claiming { key, fingerprint, settings, result_bytes_max, reconciles: false })
    }

    /// `reconciles`: the claimant can find out what became of an attempt.
    pub(crate) fn reconciling(self, reconciles: bool) -> Self {
        Claiming { reconciles, ..self }
    }
}

impl Asks for Claiming<'_> {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let Claiming { key, fingerprint, settings, result_bytes_max, reconciles } = self;
        let (call, writing) = claiming(*result_bytes_max, key, *fingerprint, settings, *reconciles);
        with(key, call, &writing)
    }
}

impl KeyCall for Claiming<'_> {
    type Answer = Claim;

    fn key(&self) -> &Key<'_> {
        &self.key
    }

    fn goal(&self) -> Option<SpaceGoal> {
        Some(SpaceGoal::Enter)
    }

    fn enter(&mut self, space: Token) {
        enter(&mut self.key, space);
    }

    fn answered(
        self,
        shared: &Arc<Shared>,
        hash: KeyHash,
        applied: Result<Applied>,
    ) -> Result<Claim> {
        let Claiming { key, fingerprint, settings, .. } = self;
        Claim::answered(shared, &key, hash, settings, fingerprint, applied?)
    }

    fn untold(answer: Claim) {
        if let Claim::Acquired(claim) = answer {
            claim.untold();
        }
    }
}

/// A mark of a key.
pub(crate) struct Marking<'k> {
    key: Key<'k>,
    fingerprint: Option<Fingerprint>,
    settings: Settings,
}

impl<'k> Marking<'k> {
    pub(crate) fn new(op: Operation<'k>, defaults: &Policy) -> Result<Self> {
        let (key, fingerprint, settings) = resolved(op, defaults)?;
        Ok(Marking { key, fingerprint, settings })
    }
}

impl Asks for Marking<'_> {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let (call, writing) = marking(self.fingerprint, &self.settings);
        with(&self.key, call, &writing)
    }
}

impl KeyCall for Marking<'_> {
    type Answer = Mark;

    fn key(&self) -> &Key<'_> {
        &self.key
    }

    fn goal(&self) -> Option<SpaceGoal> {
        Some(SpaceGoal::Enter)
    }

    fn enter(&mut self, space: Token) {
        enter(&mut self.key, space);
    }

    fn answered(self, shared: &Arc<Shared>, _: KeyHash, applied: Result<Applied>) -> Result<Mark> {
        Mark::answered(&self.key, applied?, shared)
    }
}

/// An outcome that is recorded without a claim: a mark with a result.
pub(crate) struct Recording<'k> {
    marking: Marking<'k>,
    parts: OutcomeParts,
}

impl<'k> Recording<'k> {
    pub(crate) fn new(
        shared: &Shared,
        op: Operation<'k>,
        outcome: Outcome,
        defaults: &Policy,
    ) -> Result<Self> {
        let marking = Marking::new(op, defaults)?;
        let parts = outcome.into_parts(shared.keeping())?;
        Ok(Recording { marking, parts })
    }
}

impl Asks for Recording<'_> {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let Recording { marking, parts } = self;
        marking.ask(|key, _mark, writing| {
            let fingerprint = writing.conditions.fingerprint;
            let writing = Writing {
                conditions: Conditions {
                    retention_ms: parts.retention_ms.or(writing.conditions.retention_ms),
                    reason: parts.missing.as_deref(),
                    ..writing.conditions
                },
                outcome: Some(EncodedOutcome::of(parts)),
                ..*writing
            };
            with(key, Call::Record { fingerprint, failure: parts.failure }, &writing)
        })
    }
}

impl KeyCall for Recording<'_> {
    type Answer = Mark;

    fn key(&self) -> &Key<'_> {
        self.marking.key()
    }

    fn goal(&self) -> Option<SpaceGoal> {
        self.marking.goal()
    }

    fn enter(&mut self, space: Token) {
        self.marking.enter(space);
    }

    fn answered(
        self,
        shared: &Arc<Shared>,
        hash: KeyHash,
        applied: Result<Applied>,
    ) -> Result<Mark> {
        self.marking.answered(shared, hash, applied)
    }
}

/// What to forget: a key, or a key in the state in which it was seen.
///
/// [`Store::forget`](crate::Store::forget) takes both, as do [`forget_many`](crate::Store::forget_many) and
/// [`Batch::forget`](crate::Batch::forget).
///
/// ```
/// # use onlyonce::{ToForget, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # let _ = store.mark_many(["message-7", "message-8"])?;
/// let seen = store.get("message-7")?.expect("it was marked");
/// let both: [ToForget<'_>; 2] = [(&seen).into(), "message-8".into()];
/// for forgotten in store.forget_many(both)? {
///     assert!(forgotten?);
/// }
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "nothing is forgotten before the call that takes it"]
#[derive(Clone, Debug)]
pub struct ToForget<'k> {
    key: Key<'k>,
    /// `None`: whatever its state.
    sight: Option<Sight>,
}

impl<'k, K: Into<Key<'k>>> From<K> for ToForget<'k> {
    fn from(key: K) -> Self {
        ToForget { key: key.into(), sight: None }
    }
}

impl<'k> From<&'k State> for ToForget<'k> {
    /// The key, unless it has changed since: see [`Store::forget`](crate::Store::forget).
    fn from(seen: &'k State) -> Self {
        ToForget { key: seen.stored_key().into(), sight: Some(seen.sight()) }
    }
}

impl<'k> ToForget<'k> {
    pub(crate) fn into_owned(self) -> ToForget<'static> {
        ToForget { key: self.key.into_owned(), sight: self.sight }
    }
}

/// A key to be forgotten.
pub(crate) struct Forgetting<'k>(ToForget<'k>);

impl<'k> Forgetting<'k> {
    pub(crate) fn new(what: ToForget<'k>) -> Result<Self> {
        what.key.check()?;
        Ok(Forgetting(what))
    }
}

impl Asks for Forgetting<'_> {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let ToForget { key, sight } = &self.0;
        with(key, sight.map_or(Call::Forget, Call::ForgetSeen), &Writing::default())
    }
}

impl KeyCall for Forgetting<'_> {
    type Answer = bool;

    fn key(&self) -> &Key<'_> {
        &self.0.key
    }

    /// A state knows its key in the store.
    fn goal(&self) -> Option<SpaceGoal> {
        self.0.sight.is_none().then_some(SpaceGoal::Find)
    }

    fn enter(&mut self, space: Token) {
        if self.0.sight.is_none() {
            self.0.key = self.0.key.shown().in_space(space);
        }
    }

    fn answered(self, shared: &Arc<Shared>, _: KeyHash, applied: Result<Applied>) -> Result<bool> {
        match applied?.answer {
            Answer::Done => Ok(true),
            Answer::Unchanged => Ok(false),
            Answer::InProgress => Err(in_progress(
                &self.0.key,
                "revoke its claim with `interrupt` and forget it then, or forget it at once with `forget_claimed`",
            )),
            other => Err(unexpected(shared, "a forget", other)),
        }
    }
}

/// The call that marks a key, and what its record says.
#[inline]
pub(crate) fn marking(
    fingerprint: Option<Fingerprint>,
    settings: &Settings,
) -> (Call, Writing<'_>) {
    let conditions = Conditions {
        fingerprint,
        owner: settings.owner.as_deref(),
        retention_ms: settings.retention_ms,
        remember_ms: settings.remember_ms,
        ..Conditions::default()
    };
    let writing = Writing { level: Some(settings.durability), conditions, ..Writing::default() };
    (Call::Record { fingerprint, failure: false }, writing)
}

/// The call that claims a key, and what its record says. `reconciles`: the claimant can find out what became of an
/// attempt.
#[inline]
pub(crate) fn claiming<'a>(
    result_bytes_max: u32,
    key: &Key<'_>,
    fingerprint: Option<Fingerprint>,
    settings: &'a Settings,
    reconciles: bool,
) -> (Call, Writing<'a>) {
    let wants = Wants {
        fingerprint,
        on_interrupted: settings.on_interrupted,
        attempts_max: settings.attempts_max,
        reconciles,
    };
    let writing = granting(result_bytes_max, settings, key, fingerprint);
    (Call::Claim(wants), writing)
}
