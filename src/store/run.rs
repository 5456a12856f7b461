//! Running a closure once: [`Store::run`], and [`Runner`] with its hooks.

use std::fmt;
use std::future::{Future, ready};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use crate::backend::Shared;
use crate::claim::{
    Attempt, Claim, ClaimGuard, ClaimHandle, Claiming, Interrupted, KeyCall, Recorded, Refused,
    Resolution, Resolving, make, send,
};
use crate::operation::cut_label;
use crate::store::Store;
use crate::{
    Abort, Decode, Encode, Error, ErrorKind, OnDrop, OnInterrupted, OnUnkept, Operation, Outcome,
    Result,
};

/// How a run ended.
///
/// `Display` and `Debug` say how, and never show a result.
///
/// ```
/// # use onlyonce::{Error, Run, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// match store.run("order-17", |_claim| Ok::<_, Error>("paid".to_owned()))? {
///     Run::Done(receipt) => assert_eq!(receipt, "paid"),
///     Run::Replayed(receipt, done) => println!("{receipt}, at {:?}", done.completed_at()),
///     Run::Failed(failed) => println!("declined: {}", failed.decode::<String>()?),
///     Run::Refused(refused) => println!("not now: {refused}"),
///     other => println!("{other:?}"),
/// }
/// # Ok::<(), Error>(())
/// ```
#[must_use = "a refusal means that the work was not done"]
#[non_exhaustive]
pub enum Run<T> {
    /// The work is done, and this run recorded its result: the closure ran, or the hook of [`Runner::reconcile`] found
    /// out that an earlier attempt had its effect ([`Reconciled::Applied`]). If the result can't be kept, the policy decides what is recorded
    /// instead ([`OnUnkept`]), and [`Runner::on_unrecorded`] is called.
    Done(T),
    /// The closure ran, but recording its result failed. If the error is `Indeterminate`, the record may or may not
    /// exist; after any other error, the key is in the state interrupted. In both cases the key is not free. After a
    /// failed write or sync the store accepts no more writes: reopen the store, and call [`Store::get`] for the key's
    /// state.
    ///
    /// In builds with debug assertions, this is also the answer for a value that encodes and does not decode again (the error is
    /// `Invalid`), so that a test which runs once fails. The key is left as for [`Done`](Run::Done) with a result that can't be
    /// kept.
    Unrecorded(T, Error),
    /// The work was done before; this is the recorded result, and its record.
    Replayed(T, Recorded),
    /// The work was done before, but its result was not kept; [`Recorded::missing`] returns the reason.
    NotKept(Recorded),
    /// An earlier attempt failed for good; this is the recorded failure.
    Failed(Recorded),
    /// The closure was not run.
    Refused(Refused),
}

impl<T> Run<T> {
    /// Returns the result, whether it is new or replayed, and everything else as an error.
    ///
    /// A result that this run could not record is returned too, because the work was done. To notice that case, match
    /// [`Unrecorded`](Run::Unrecorded) or set [`Runner::on_unrecorded`].
    ///
    /// ```
    /// # use onlyonce::{Error, testing::Sim};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Sim::new(1).open()?;
    /// let receipt = store.run("order-17", |_claim| Ok::<_, Error>("paid".to_owned()))?.value()?;
    /// assert_eq!(receipt, "paid");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A recorded failure, a result that was not kept, or a refusal.
    pub fn value(self) -> Result<T, Refused> {
        match self {
            Run::Done(value) | Run::Unrecorded(value, _) | Run::Replayed(value, _) => Ok(value),
            Run::NotKept(done) => Err(Claim::Completed(done).refused()),
            Run::Failed(failed) => Err(Claim::Failed(failed).refused()),
            Run::Refused(refused) => Err(refused),
        }
    }
}

impl<T> fmt::Display for Run<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Run::Done(_) => f.write_str("done"),
            Run::Unrecorded(_, why) => write!(f, "done, and not recorded: {why}"),
            Run::Replayed(_, done) => write!(f, "done before: {done}"),
            Run::NotKept(done) => write!(f, "done before: {done}"),
            Run::Failed(failed) => write!(f, "failed for good: {failed}"),
            Run::Refused(refused) => write!(f, "refused: {refused}"),
        }
    }
}

impl<T> fmt::Debug for Run<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Run::Done(_) => f.write_str("Done(..)"),
            Run::Unrecorded(_, why) => write!(f, "Unrecorded(.., {why:?})"),
            Run::Replayed(_, done) => write!(f, "Replayed(.., {done:?})"),
            Run::NotKept(done) => write!(f, "NotKept({done:?})"),
            Run::Failed(failed) => write!(f, "Failed({failed:?})"),
            Run::Refused(refused) => write!(f, "Refused({refused:?})"),
        }
    }
}

/// What a reconcile hook found out about an interrupted attempt. `Debug` never shows the result.
///
/// ```
/// # use onlyonce::{Attempt, Error, Reconciled, Run, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # drop(store.claim("mail-1")?);
/// let outbox = vec!["mail-1"]; // the effect, which can be asked
/// let look = |lost: &Attempt| {
///     let was_sent = outbox.iter().any(|mail| *mail == lost.key().to_string());
///     Ok(if was_sent { Reconciled::Applied(()) } else { Reconciled::NotApplied })
/// };
/// let run = store.runner("mail-1").reconcile(look).run(|_| unreachable!("it was sent"))?;
/// assert!(matches!(run, Run::Done(())));
/// # Ok::<(), Error>(())
/// ```
#[must_use = "a run learns of it only if the hook returns it"]
#[non_exhaustive]
pub enum Reconciled<T> {
    /// The attempt had its effect, with this result. The result is recorded, the closure does not run, and the run
    /// answers [`Run::Done`].
    Applied(T),
    /// The attempt had no effect: the closure runs.
    NotApplied,
    /// It is unknown whether the attempt had an effect: the policy decides.
    Unknown,
}

impl<T> fmt::Debug for Reconciled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reconciled::Applied(_) => "Applied(..)",
            Reconciled::NotApplied => "NotApplied",
            Reconciled::Unknown => "Unknown",
        })
    }
}

/// What an error of the closure means for the key. The hook of [`Runner::on_error`] returns it.
///
/// Without a verdict, an error says nothing about the effect, so the key is interrupted.
///
/// ```
/// # use onlyonce::{Abort, Error, Outcome, Verdict};
/// # enum Fault { Declined(String), Busy, Timeout, Store(Error) }
/// fn judge(fault: &Fault) -> Verdict {
///     match fault {
///         Fault::Declined(why) => Verdict::Fail(Outcome::failure(why)), // final: replayed
///         Fault::Busy => Verdict::Abort(Abort::new("busy")),            // nothing happened
///         Fault::Timeout | Fault::Store(_) => Verdict::Unknown,         // it may have happened
///     }
/// }
/// # assert!(matches!(judge(&Fault::Busy), Verdict::Abort(_)));
/// ```
#[must_use = "a run learns of it only if the hook returns it"]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// The closure had no effect: the next claim is granted, unless an announced step is open or an earlier attempt's fate is.
    Abort(Abort),
    /// The failure is final: it is recorded, and replayed to every later claim.
    Fail(Outcome),
    /// The closure may have had an effect: the attempt is interrupted.
    Unknown,
}

/// The reason recorded for an attempt whose closure failed without a verdict, or with an unknown one.
const RETURNED_AN_ERROR: &str = "its closure returned an error";

impl Store {
    /// Runs `work` under a claim and records its result. A later call for the same key gets the recorded result.
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
    /// If `work` returns an `Err` or panics, the key is interrupted, as if a [`ClaimGuard`] had been dropped: a closure
    /// that charged a card and then timed out must not run twice unnoticed. Three settings change that:
    ///
    /// - [`OnInterrupted::Retry`]: the next `run` does the work again, so it is done **at least once**. Choose it if a
    ///   second execution does no harm.
    /// - [`on_error`](Runner::on_error): a hook returns a verdict for each error, for example that nothing happened.
    /// - [`OnDrop::Abort`]: you declare that an error or a panic occurs only before the effect, so each of them frees
    ///   the key.
    ///
    /// Without any of these settings the next `run` is refused, and the refusal names the choices. Under
    /// [`Hold`](OnInterrupted::Hold) the key is held until it is resolved ([`resolve`](Store::resolve)).
    ///
    /// ```
    /// # use onlyonce::{Error, OnInterrupted, Operation, Run, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let op = Operation::new("report-7").on_interrupted(OnInterrupted::Retry); // at least once
    /// assert!(store.run(&op, |_claim| Err::<String, _>(Error::invalid("timed out"))).is_err());
    /// let again = store.run(&op, |claim| Ok::<_, Error>(format!("attempt {}", claim.attempt())))?;
    /// assert!(matches!(again, Run::Done(report) if report == "attempt 2"));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// If the result is too large, doesn't encode, or doesn't fit on the disk, the work is not done again. You get the
    /// value, and the key is completed without a result, or held ([`OnUnkept`]). If the disk fails or the store is
    /// closed during the work, you get the value and the reason why it is not recorded ([`Run::Unrecorded`]).
    ///
    /// The claim and the result are durable like those of [`claim`](Self::claim) and
    /// [`complete`](ClaimGuard::complete), except for `Run::Unrecorded`. After an `Err`, the call doesn't wait for the
    /// record of the interruption: a crash before that record is written leaves the same state.
    ///
    /// # Errors
    /// The closure's error, whatever happens to the key, and the errors of [`claim`](Self::claim). `ClaimLost` if
    /// another attempt took the key over meanwhile; then that attempt's result counts. `Undecodable` if the recorded
    /// result is of another type.
    ///
    /// # Cost
    /// A run costs a claim and an ending: two writes, and two syncs at `Sync`. A replay costs one read and the
    /// decoding.
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

    /// Runs the future of `work` under a claim and records its result, as [`run`](Self::run) does. It runs your code, so nothing
    /// happens before it is polled. It works on any executor, and blocks none.
    ///
    /// A future that is dropped before it is ready leaves what a panic leaves: the attempt is interrupted, or aborted under
    /// [`OnDrop::Abort`]. Once the work is done and its result is sent to the disk, the recording goes on without the future.
    ///
    /// ```
    /// # use onlyonce::{Error, Run, Store};
    /// # async fn ask(_sku: u64) -> Result<String, Error> { Ok("17.50".to_owned()) }
    /// async fn price(store: Store, sku: u64) -> Result<Run<String>, Error> {
    ///     store.run_async(("price", sku), |_claim| async move { ask(sku).await }).await
    /// }
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// # let mut running = std::pin::pin!(price(store.clone(), 7));
    /// # loop {
    /// #     if let std::task::Poll::Ready(run) = running.as_mut().poll(&mut context) {
    /// #         assert!(matches!(run?, Run::Done(price) if price == "17.50"));
    /// #         break;
    /// #     }
    /// # }
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`run`](Self::run).
    pub async fn run_async<'k, T, E, F>(
        &self,
        op: impl Into<Operation<'k>>,
        work: impl FnOnce(ClaimHandle) -> F,
    ) -> Result<Run<T>, E>
    where
        T: Encode + Decode,
        E: From<Error>,
        F: Future<Output = Result<T, E>>,
    {
        self.runner(op).run_async(work).await
    }

    /// Prepares a [`run`](Self::run) with hooks that find out about an interrupted attempt or judge an error.
    ///
    /// ```
    /// # use onlyonce::{Error, Reconciled, Run, Verdict, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let run = store
    ///     .runner("order-1")
    ///     .reconcile(|_lost| Ok(Reconciled::<String>::Unknown))
    ///     .on_error(|_e: &Error| Verdict::Unknown)
    ///     .run(|claim| Ok(format!("receipt {}", claim.attempt())))?;
    /// assert!(matches!(run, Run::Done(receipt) if receipt == "receipt 1"));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// Nothing is claimed before [`Runner::run`].
    pub fn runner<'s, 'k, T, E>(&'s self, op: impl Into<Operation<'k>>) -> Runner<'s, 'k, T, E> {
        Runner {
            store: self,
            op: op.into(),
            outcome: None,
            reconcile: None,
            on_error: None,
            on_unrecorded: None,
        }
    }
}

// They are sent along with the future of a run.
type ToOutcome<'s, T> = Box<dyn FnOnce(&T) -> Outcome + Send + 's>;
type OnError<'s, E> = Box<dyn FnOnce(&E) -> Verdict + Send + 's>;
type OnUnrecorded<'s> = Box<dyn FnOnce(&Error) + Send + 's>;
type FutureOf<'s, T> = Pin<Box<dyn Future<Output = T> + Send + 's>>;
type Reconciling<'s, T, E> = Box<dyn FnOnce(&Attempt) -> Result<Reconciled<T>, E> + Send + 's>;
type ReconcilingLater<'s, T, E> =
    Box<dyn FnOnce(Attempt) -> FutureOf<'s, Result<Reconciled<T>, E>> + Send + 's>;

enum Reconcile<'s, T, E> {
    Now(Reconciling<'s, T, E>),
    Later(ReconcilingLater<'s, T, E>),
}

/// What waits while a run waits for the store.
#[derive(Clone, Copy)]
enum RunBy {
    Thread,
    Task,
}

impl RunBy {
    /// Makes a call, and waits for its answer.
    async fn make<I>(self, store: &Store, item: Result<I>) -> Result<I::Answer>
    where
        I: KeyCall + Send + 'static,
    {
        match self {
            RunBy::Thread => make(&store.shared, item?),
            RunBy::Task => send(&store.shared, item).await,
        }
    }
}

/// A run by a thread waits inside the calls that it makes, so its first poll is its last.
fn at_once<T, E: From<Error>>(
    shared: &Shared,
    run: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match pin!(run).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(told) => told,
        Poll::Pending => Err(shared.bug("a run by a thread waits").into()),
    }
}

/// A prepared run with its hooks. See [`Store::runner`].
///
/// ```
/// # use onlyonce::{Error, OnInterrupted, Operation, Reconciled, Run, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// let op = Operation::new("charge-7").on_interrupted(OnInterrupted::Hold);
/// let run = store
///     .runner(op)
///     .reconcile(|_lost| Ok::<_, Error>(Reconciled::Unknown)) // the other side can't be asked: held
///     .run(|_claim| Ok("charged".to_owned()))?;
/// assert!(matches!(run, Run::Done(_)));
/// # Ok::<(), Error>(())
/// ```
#[must_use = "nothing runs until `run`"]
pub struct Runner<'s, 'k, T, E> {
    store: &'s Store,
    op: Operation<'k>,
    outcome: Option<ToOutcome<'s, T>>,
    reconcile: Option<Reconcile<'s, T, E>>,
    on_error: Option<OnError<'s, E>>,
    on_unrecorded: Option<OnUnrecorded<'s>>,
}

impl<'s, T, E> Runner<'s, '_, T, E>
where
    T: Encode + Decode,
    E: From<Error>,
{
    /// Sets the hook that makes the outcome to record for a value: with metadata, with a retention of its own, or as a
    /// failure. Without the hook, the value is recorded as a success.
    ///
    /// The hook is called at most once, after the closure has returned a value, or [`reconcile`](Self::reconcile) has
    /// found one. The run gives its caller the value in any case, so an outcome that is a failure, or has another value,
    /// concerns later callers only. A later run decodes what was recorded as `T`. If the hook panics, the attempt is
    /// interrupted, under [`OnDrop::Abort`] too.
    ///
    /// ```
    /// # use onlyonce::{Error, Outcome, Run, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let get = || {
    ///     let run = store.runner("page-1").outcome(|page: &String| Outcome::success(page).meta("status", 200));
    ///     run.run(|_claim| Ok::<_, Error>("hello".to_owned()))
    /// };
    /// assert!(matches!(get()?, Run::Done(_)));
    /// let Run::Replayed(page, done) = get()? else { unreachable!() };
    /// assert_eq!((&*page, done.meta("status")), ("hello", Some("200")));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn outcome(mut self, hook: impl FnOnce(&T) -> Outcome + Send + 's) -> Self {
        self.outcome = Some(Box::new(hook));
        self
    }

    /// Sets the hook that finds out whether an interrupted attempt had its effect. The hook should ask the system in
    /// which the effect would be visible. It is called under every policy.
    ///
    /// The hook is called at most once, before `work`, while other callers see the key in progress. If the hook returns
    /// an error, [`run`](Self::run) returns that error, and the attempt stays interrupted.
    ///
    /// ```
    /// # use onlyonce::{Error, Reconciled, Run, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// let run = store
    ///     .runner("mail-1")
    ///     .reconcile(|_lost| Ok::<_, Error>(Reconciled::NotApplied)) // the outbox has no such mail
    ///     .run(|claim| Ok(claim.attempt().to_string()))?;
    /// assert!(matches!(run, Run::Done(attempt) if attempt == "2"));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn reconcile(
        mut self,
        hook: impl FnOnce(&Attempt) -> Result<Reconciled<T>, E> + Send + 's,
    ) -> Self {
        self.reconcile = Some(Reconcile::Now(Box::new(hook)));
        self
    }

    /// Sets the hook of [`reconcile`](Self::reconcile) as a future, for a run by [`run_async`](Self::run_async). It replaces a
    /// hook that was set before.
    ///
    /// ```
    /// # use onlyonce::{Attempt, Error, Reconciled, Run, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// # async fn outbox_has(_lost: &Attempt) -> Result<bool, Error> { Ok(true) }
    /// # let run = async {
    /// let look = |lost: Attempt| async move {
    ///     let was_sent = outbox_has(&lost).await?;
    ///     Ok(if was_sent { Reconciled::Applied(()) } else { Reconciled::NotApplied })
    /// };
    /// let run = store.runner("mail-1").reconcile_async(look);
    /// let run = run.run_async(|_claim| async { unreachable!("it was sent") }).await?;
    /// assert!(matches!(run, Run::Done(())));
    /// # Ok::<(), Error>(())
    /// # };
    /// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// # let mut run = std::pin::pin!(run);
    /// # loop {
    /// #     if let std::task::Poll::Ready(run) = run.as_mut().poll(&mut context) {
    /// #         break run?;
    /// #     }
    /// # }
    /// # Ok::<(), Error>(())
    /// ```
    pub fn reconcile_async<F>(mut self, hook: impl FnOnce(Attempt) -> F + Send + 's) -> Self
    where
        F: Future<Output = Result<Reconciled<T>, E>> + Send + 's,
    {
        self.reconcile = Some(Reconcile::Later(Box::new(|lost| Box::pin(hook(lost)))));
        self
    }

    /// Sets the hook that judges an error of the closure. Without the hook, an error interrupts the attempt, or aborts
    /// it under [`OnDrop::Abort`].
    ///
    /// [`run`](Self::run) returns the closure's error in any case. If the verdict can't be recorded, the key stays
    /// interrupted, and the hook of [`on_unrecorded`](Self::on_unrecorded) gets the reason.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, Outcome, Verdict, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let run = store
    ///     .runner("order-17")
    ///     .on_error(|e: &Error| Verdict::Fail(Outcome::failure(&e.to_string()))) // no use to try again
    ///     .run(|_claim| Err::<(), _>(Error::invalid("card expired")));
    /// assert!(run.is_err());
    /// assert!(matches!(store.claim("order-17")?, Claim::Failed(_)));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn on_error(mut self, hook: impl FnOnce(&E) -> Verdict + Send + 's) -> Self {
        self.on_error = Some(Box::new(hook));
        self
    }

    /// Sets the hook that gets the reason why an outcome could not be recorded as it was.
    ///
    /// There are three cases:
    ///
    /// - The result can't be kept, which includes a value that doesn't encode: the caller of [`run`](Self::run) gets the result, and no later caller does.
    /// - Recording the result failed ([`Run::Unrecorded`]).
    /// - The verdict on the closure's error could not be recorded: the caller still gets the closure's error, and the
    ///   key is interrupted.
    ///
    /// Use the hook to write a log line, to keep the value elsewhere, or to reopen a poisoned store. The hook is called
    /// at most once.
    ///
    /// ```
    /// # use onlyonce::{Error, ErrorKind, Outcome, Verdict, testing::{DiskFault, Sim}};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// let mut why = None;
    /// let run = store
    ///     .runner("order-17")
    ///     .on_error(|_: &Error| Verdict::Fail(Outcome::failure("card expired")))
    ///     .on_unrecorded(|e| why = Some(e.kind()))
    ///     .run(|_claim| {
    ///         sim.fail_sync(0, DiskFault::Io); // the disk dies meanwhile
    ///         Err::<(), _>(Error::invalid("card expired"))
    ///     });
    /// assert_eq!(run.unwrap_err().to_string(), "card expired");
    /// assert_eq!(why, Some(ErrorKind::Indeterminate));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn on_unrecorded(mut self, hook: impl FnOnce(&Error) + Send + 's) -> Self {
        self.on_unrecorded = Some(Box::new(hook));
        self
    }

    /// Runs `work` if the claim is granted. See [`Store::run`], also for durability and cost.
    ///
    /// ```
    /// # use onlyonce::{Error, OnInterrupted, Operation, Run, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("report")?);
    /// let op = Operation::new("report").on_interrupted(OnInterrupted::Retry); // twice does no harm
    /// let run = store.runner(op).run(|claim| Ok::<_, Error>(claim.attempt().to_string()))?;
    /// assert!(matches!(run, Run::Done(attempt) if attempt == "2"));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// The closure's error, whatever happens to the key; the errors of the hooks; and the errors of [`Store::run`].
    pub fn run(self, work: impl FnOnce(&ClaimHandle) -> Result<T, E>) -> Result<Run<T>, E> {
        if let Some(Reconcile::Later(_)) = &self.reconcile {
            let message = "a hook of reconcile_async is a future: use run_async";
            return Err(Error::invalid(message).into());
        }
        let shared = &self.store.shared;
        at_once(shared, self.run_by(RunBy::Thread, |guard| ready(work(guard.handle_ref()))))
    }

    /// Runs the future of `work` if the claim is granted, as [`run`](Self::run) does. See [`Store::run_async`].
    ///
    /// ```
    /// # use onlyonce::{Error, Run, Store, Verdict};
    /// # async fn charge(_key: String) -> Result<String, Error> { Ok("receipt".to_owned()) }
    /// async fn once(store: &Store) -> Result<Run<String>, Error> {
    ///     let run = store.runner("charge-7").on_error(|_e| Verdict::Unknown);
    ///     run.run_async(|claim| async move { charge(claim.token().to_string()).await }).await
    /// }
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// # let mut running = std::pin::pin!(once(&store));
    /// # while running.as_mut().poll(&mut context).is_pending() {}
    /// # assert!(matches!(store.claim("charge-7")?, onlyonce::Claim::Completed(_)));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`run`](Self::run).
    pub async fn run_async<F>(self, work: impl FnOnce(ClaimHandle) -> F) -> Result<Run<T>, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.run_by(RunBy::Task, |guard| work(guard.handle())).await
    }

    async fn run_by<F>(
        mut self,
        by: RunBy,
        work: impl FnOnce(&ClaimGuard) -> F,
    ) -> Result<Run<T>, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let guard = match self.claim(by).await? {
            Claim::Acquired(guard) => guard,
            Claim::Completed(done) if done.missing().is_some() => return Ok(Run::NotKept(done)),
            Claim::Completed(done) => return Ok(Run::Replayed(done.decode()?, done)),
            Claim::Failed(failed) => return Ok(Run::Failed(failed)),
            Claim::Interrupted(lost) => match self.after_interruption(by, lost).await? {
                Resumed::Granted(guard) => guard,
                Resumed::Over(run) => return Ok(run),
            },
            other => return Ok(Run::Refused(other.refused())),
        };
        match work(&guard).await {
            Ok(value) => {
                // The work is done: from here on not even a panic of the hook means that nothing happened.
                guard.on_drop(OnDrop::Interrupt);
                let outcome = self.outcome_of(&value);
                let done = self.end(by, guard, outcome).await;
                Ok(self.done_or_unrecorded(done, value)?)
            }
            Err(e) => {
                // A step held the claim: that is the word on it.
                if guard.has_ended() {
                    return Err(e);
                }
                // An error without a verdict counts as a `?` in the caller's own code would; the guard knows what a drop means.
                match self.on_error.take().map(|judge| judge(&e)) {
                    None => guard.leave(RETURNED_AN_ERROR),
                    Some(verdict) => self.carry_out(by, guard, verdict).await,
                }
                Err(e)
            }
        }
    }

    // `&mut`: the hooks can be sent to another thread, but not shared with one.
    async fn claim(&mut self, by: RunBy) -> Result<Claim> {
        let reconciles = self.reconcile.is_some();
        match by {
            RunBy::Thread => self.store.claim_as(&self.op, reconciles),
            RunBy::Task => {
                let op = self.op.clone().into_owned();
                let claiming = Claiming::new(&self.store.shared, op, &self.store.policy);
                let claiming = claiming.map(|claiming| claiming.reconciling(reconciles));
                self.store.send(claiming).await
            }
        }
    }

    async fn after_interruption(&mut self, by: RunBy, lost: Interrupted) -> Result<Resumed<T>, E> {
        let found = match self.reconcile.take() {
            None => Reconciled::Unknown,
            Some(Reconcile::Now(hook)) => hook(lost.attempt())?,
            Some(Reconcile::Later(hook)) => hook(lost.attempt().clone()).await?,
        };
        match found {
            Reconciled::NotApplied => {
                let guard = by.make(self.store, Ok(lost.disclaiming())).await?;
                return Ok(Resumed::Granted(guard));
            }
            Reconciled::Applied(value) => return self.record_found(by, lost, value).await,
            Reconciled::Unknown => {}
        }
        let policy = self.op.policy().resolve_over(self.store.policy())?.on_interrupted;
        if lost.attempt().asked_for_hold() || policy == Some(OnInterrupted::Hold) {
            let held = lost.attempt().clone();
            return Ok(Resumed::Over(Run::Refused(Claim::Held(held).refused())));
        }
        if policy == Some(OnInterrupted::Retry) {
            return Ok(Resumed::Granted(by.make(self.store, Ok(lost.taking_over())).await?));
        }
        let hint = "choose OnInterrupted::Retry or Hold for the operation, or give the runner a reconcile hook";
        Ok(Resumed::Over(Run::Refused(Claim::Interrupted(lost).refused().hinting(hint))))
    }

    async fn record_found(
        &mut self,
        by: RunBy,
        lost: Interrupted,
        value: T,
    ) -> Result<Resumed<T>, E> {
        let store = self.store.with_policy(self.op.policy().clone());
        let mut outcome = self.outcome_of(&value);
        let failure = outcome.is_failure();
        let unkept = outcome.refusal(store.result_bytes_max());
        if let Some(why) = &unkept {
            let reason = cut_label(why.to_string());
            if store.policy().resolve()?.on_unkept == OnUnkept::Hold {
                let held = by.make(&store, Ok(lost.holding(reason))).await;
                let held = held.and_then(|()| self.without_result(why));
                return Ok(Resumed::Over(self.done_or_unrecorded(held, value)?));
            }
            outcome = Outcome::without_result(reason);
            if failure {
                outcome = outcome.into_failure();
            }
        }
        let resolution = Resolution::Record(outcome);
        let resolving = Resolving::new(&store.shared, lost.attempt(), resolution, store.policy());
        let recorded = match by.make(&store, resolving).await {
            Ok(true) => unkept.as_ref().map_or(Ok(()), |why| self.without_result(why)),
            Ok(false) => Err(Error::new(
                ErrorKind::ClaimLost,
                "the attempt changed while it was reconciled: run again",
            )),
            Err(e) => Err(e),
        };
        Ok(Resumed::Over(self.done_or_unrecorded(recorded, value)?))
    }

    fn outcome_of(&mut self, value: &T) -> Outcome {
        let outcome = match self.outcome.take() {
            Some(hook) => hook(value),
            None => Outcome::success(value),
        };
        outcome.replayed_as::<T>()
    }

    /// The work was done, so the caller gets the value whatever happened to the record, unless another attempt took the
    /// key over: then that attempt's value counts.
    fn done_or_unrecorded(&mut self, recorded: Result<()>, value: T) -> Result<Run<T>> {
        match recorded {
            Ok(()) => Ok(Run::Done(value)),
            Err(lost) if lost.kind() == ErrorKind::ClaimLost => Err(lost),
            Err(why) => {
                self.tell(&why);
                Ok(Run::Unrecorded(value, why))
            }
        }
    }

    /// The caller gets the error, whatever happens to the verdict: a verdict that could not be recorded leaves the key
    /// interrupted.
    async fn carry_out(&mut self, by: RunBy, guard: ClaimGuard, verdict: Verdict) {
        let recorded = match verdict {
            Verdict::Abort(why) => by.make(self.store, guard.aborting(why)).await,
            Verdict::Fail(outcome) => self.end(by, guard, outcome.into_failure()).await,
            Verdict::Unknown => {
                guard.on_drop(OnDrop::Interrupt);
                return guard.leave(RETURNED_AN_ERROR);
            }
        };
        if let Err(why) = recorded {
            self.tell(&why);
        }
    }

    /// Ends the claim with the outcome. If that is refused before anything was written, the returned claim is ended without it.
    /// The error remains if none was returned, or that can't be written either.
    async fn end(&mut self, by: RunBy, guard: ClaimGuard, outcome: Outcome) -> Result<()> {
        let failure = outcome.is_failure();
        let Err(refused) = by.make(self.store, guard.ending(outcome)).await else { return Ok(()) };
        let why = refused.again();
        let Some(guard) = refused.into_claim() else { return Err(why) };
        // Without the guard that may be in it: no caller is left to end that.
        let ended = by.make(self.store, guard.unkept(&why, failure)).await;
        ended.map_err(|e| e.again())?;
        self.without_result(&why)
    }

    /// The attempt ended without its result, because of `why`. A type that never decodes is a fault of the program, which its
    /// first run has to show.
    fn without_result(&mut self, why: &Error) -> Result<()> {
        if why.is_not_decodable_again() {
            return Err(why.again());
        }
        self.tell(why);
        Ok(())
    }

    fn tell(&mut self, why: &Error) {
        if let Some(tell) = self.on_unrecorded.take() {
            tell(why);
        }
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
