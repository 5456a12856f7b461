//! Running a closure once: [`Store::run`], and [`Runner`] with its hooks.

use std::fmt;

use crate::claim::{
    Attempt, Claim, ClaimGuard, ClaimHandle, Interrupted, Recorded, Refused, Resolution,
};
use crate::store::Store;
use crate::{
    Abort, Decode, Encode, Error, ErrorKind, OnDrop, OnInterrupted, Operation, Outcome, Result,
};

/// How a run went.
#[must_use = "a refusal means that the work was not done"]
#[non_exhaustive]
#[derive(Debug)]
pub enum Run<T> {
    /// The closure ran, and its result is recorded.
    Done(T),
    /// It was done before: the recorded result.
    Replayed(T),
    /// It failed before, for good.
    Failed(Recorded),
    /// It was not run.
    Refused(Refused),
}

impl<T> Run<T> {
    /// The result, of this run or the recorded one; everything else as an error.
    ///
    /// # Errors
    /// A recorded failure or a refusal, in words.
    pub fn value(self) -> Result<T, Refused> {
        match self {
            Run::Done(value) | Run::Replayed(value) => Ok(value),
            Run::Failed(failed) => Err(Claim::Failed(failed).refused()),
            Run::Refused(refused) => Err(refused),
        }
    }
}

/// What a reconcile hook found out about an interrupted attempt.
#[derive(Debug)]
pub enum Reconciled<T> {
    /// It had its effect, and this is the result: it is recorded, nothing runs.
    Applied(T),
    /// It had no effect: the closure runs.
    NotApplied,
    /// Nobody can tell: the policy decides.
    Unknown,
}

/// What an error of the closure means for the key.
#[derive(Debug)]
pub enum Verdict {
    /// Nothing happened: the next claim is granted.
    Abort(Abort),
    /// It is final: recorded, and answered to every later claim.
    Fail(Outcome),
    /// Something may have happened: the attempt is interrupted.
    Unknown,
}

impl Store {
    /// Runs `work` under a claim and records its result; a repeat gets the recorded one.
    ///
    /// ```
    /// # use onlyonce::{Error, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// for _ in 0..2 {
    ///     let result = store.run("task-42", |_claim| Ok::<_, Error>("done".to_owned()))?;
    ///     assert_eq!(result.value().unwrap(), "done");
    /// }
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// An `Err` aborts, for nothing happened, unless the operation's policy is
    /// [`Hold`](OnInterrupted::Hold): then it leaves the attempt interrupted, as a panic always does (but
    /// under [`OnDrop::Abort`]). An interrupted attempt is taken over under [`Retry`](OnInterrupted::Retry),
    /// and refused otherwise. [`runner`](Self::runner) has hooks for both.
    ///
    /// Durable on return as [`claim`](Self::claim) and [`complete`](ClaimGuard::complete) say. The closure's
    /// result is lost to the caller if it could not be recorded; the attempt is then interrupted.
    ///
    /// # Errors
    /// The closure's, and those of claiming and recording.
    pub fn run<'k, T, E>(
        &self,
        op: impl Into<Operation<'k>>,
        work: impl FnOnce(&ClaimHandle) -> Result<T, E>,
    ) -> Result<Run<T>, E>
    where
        T: Encode + Decode,
        E: From<Error>,
    {
        self.runner(op).run(work)
    }

    /// [`run`](Self::run) with hooks: who finds out what became of an interrupted attempt, and what an error means.
    ///
    /// ```
    /// # use onlyonce::{Error, Outcome, Reconciled, Run, Verdict, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let run = store
    ///     .runner("order-1")
    ///     .reconcile(|_lost| Ok(Reconciled::<String>::Unknown))
    ///     .on_error(|_e: &Error| Verdict::Unknown)
    ///     .run(|claim| Ok(format!("receipt {}", claim.attempt())))?;
    /// assert!(matches!(run, Run::Done(receipt) if receipt == "receipt 1"));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    pub fn runner<'s, 'k, T, E>(&'s self, op: impl Into<Operation<'k>>) -> Runner<'s, 'k, T, E> {
        Runner { store: self, op: op.into(), reconcile: None, on_error: None }
    }
}

type Reconcile<'s, T, E> = Box<dyn FnOnce(&Attempt) -> Result<Reconciled<T>, E> + 's>;
type OnError<'s, E> = Box<dyn FnOnce(&E) -> Verdict + 's>;

/// A run to be. See [`Store::runner`].
#[must_use = "nothing runs until `run`"]
pub struct Runner<'s, 'k, T, E> {
    store: &'s Store,
    op: Operation<'k>,
    reconcile: Option<Reconcile<'s, T, E>>,
    on_error: Option<OnError<'s, E>>,
}

impl<'s, T, E> Runner<'s, '_, T, E>
where
    T: Encode + Decode,
    E: From<Error>,
{
    /// Asked about an interrupted attempt, under every policy: ask whoever was to feel the effect.
    pub fn reconcile(
        mut self,
        hook: impl FnOnce(&Attempt) -> Result<Reconciled<T>, E> + 's,
    ) -> Self {
        self.reconcile = Some(Box::new(hook));
        self
    }

    /// Judges an error of the closure.
    pub fn on_error(mut self, hook: impl FnOnce(&E) -> Verdict + 's) -> Self {
        self.on_error = Some(Box::new(hook));
        self
    }

    /// Runs `work` if it is to be run. See [`Store::run`].
    ///
    /// # Errors
    /// The closure's and the hooks', and those of claiming and recording.
    pub fn run(mut self, work: impl FnOnce(&ClaimHandle) -> Result<T, E>) -> Result<Run<T>, E> {
        let claim = self.store.claim_as(&self.op, self.reconcile.is_some())?;
        let guard = match claim {
            Claim::Acquired(guard) => guard,
            Claim::Completed(done) => return Ok(Run::Replayed(done.decode()?)),
            Claim::Failed(failed) => return Ok(Run::Failed(failed)),
            Claim::Interrupted(lost) => match self.after_interruption(lost)? {
                Resumed::Granted(guard) => guard,
                Resumed::Over(run) => return Ok(run),
            },
            other => return Ok(Run::Refused(other.refused())),
        };
        match work(guard.handle_ref()) {
            Ok(value) => {
                guard.complete(&value)?;
                Ok(Run::Done(value))
            }
            Err(e) => {
                self.judge(guard, &e)?;
                Err(e)
            }
        }
    }

    fn after_interruption(&mut self, lost: Interrupted) -> Result<Resumed<T>, E> {
        if let Some(reconcile) = self.reconcile.take() {
            match reconcile(lost.attempt())? {
                Reconciled::NotApplied => return Ok(Resumed::Granted(lost.not_applied()?)),
                Reconciled::Applied(value) => return self.record_found(&lost, value),
                Reconciled::Unknown => {}
            }
        }
        let policy = self.op.policy().or(self.store.policy()).resolve()?.on_interrupted;
        if lost.attempt().asked_for_hold() || policy == Some(OnInterrupted::Hold) {
            let held = lost.attempt().clone();
            return Ok(Resumed::Over(Run::Refused(Claim::Held(held).refused())));
        }
        if policy == Some(OnInterrupted::Retry) {
            return Ok(Resumed::Granted(lost.take_over()?));
        }
        let hint = "choose OnInterrupted::Retry or Hold for the operation, or give the runner a reconcile hook";
        Ok(Resumed::Over(Run::Refused(Claim::Interrupted(lost).refused().hinting(hint))))
    }

    fn record_found(&self, lost: &Interrupted, value: T) -> Result<Resumed<T>, E> {
        let outcome = Outcome::success(&value);
        if self
            .store
            .with_policy(self.op.policy().clone())
            .resolve(lost.attempt(), Resolution::Record(outcome))?
        {
            return Ok(Resumed::Over(Run::Replayed(value)));
        }
        Err(Error::new(
            ErrorKind::ClaimLost,
            "the attempt changed while it was reconciled: run again",
        )
        .into())
    }

    fn judge(&mut self, guard: ClaimGuard, error: &E) -> Result<(), E> {
        let verdict = match self.on_error.take() {
            Some(judge) => judge(error),
            None if guard.holds() => Verdict::Unknown,
            None => Verdict::Abort(Abort::new("the closure returned an error")),
        };
        match verdict {
            Verdict::Abort(why) => guard.abort(why)?,
            Verdict::Fail(outcome) => guard.record(outcome.into_failure())?,
            Verdict::Unknown => {
                guard.on_drop(OnDrop::Interrupt);
                drop(guard);
            }
        }
        Ok(())
    }
}

enum Resumed<T> {
    Granted(ClaimGuard),
    Over(Run<T>),
}

impl<T, E> fmt::Debug for Runner<'_, '_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("op", &self.op).finish_non_exhaustive()
    }
}
