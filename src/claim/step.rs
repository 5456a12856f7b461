//! Steps of a claim: [`Step`], each of which is done once across the attempts at a key.
//!
//! Promises: a step that has ended is not run again in the life of its key, and its result is replayed; a step that may have
//! run before is marked so (`may_have_run`) before its work runs. The calls of a step follow one another in [`StepRun`], whether a
//! thread blocks on each or a future polls it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::downstream::{Purpose, downstream_key};
use super::{ClaimHandle, KeyCall, Pending, Recorded, make, send};
use crate::backend::Shared;
use crate::claim::seen::{lacking, unexpected};
use crate::engine::{Applied, Asks, Claimed, EncodedOutcome, Stored, Writing};
use crate::limits::{ANNOUNCED_MAX, STEP_NAME_BYTES_MAX};
use crate::operation::{OutcomeParts, cut_label};
use crate::protocol::{Answer, Call, CallExtras, Conditions, KeyState, OpenStep, differs};
use crate::sync::Mutex;
use crate::types::{KeyHash, Token};
use crate::{Decode, Encode, Error, ErrorKind, Fingerprint, Key, Outcome, Result};

/// One step of a claim's work. See [`ClaimHandle::step`].
///
/// A name is from 1 to 255 bytes long, and belongs to one step of a key: use a number or an id in the name if the work has
/// several steps of a kind.
///
/// ```
/// use onlyonce::{Fingerprint, Step};
///
/// let plan = Step::new("plan").input(Fingerprint::of("tidy up"));
/// let send = Step::new(format!("send-{}", 3)).announced();
/// # drop((plan, send));
/// ```
#[must_use = "a step does nothing until it is run"]
#[derive(Clone, Debug)]
pub struct Step {
    name: String,
    input: Option<Fingerprint>,
    is_announced: bool,
}

impl Step {
    /// Makes a step with this name.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, Step, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("task")? else { unreachable!() };
    /// let plan = claim.step(Step::new("plan"), |_step| Ok::<_, Error>("1, 2, 3".to_owned()))?;
    /// let same = claim.step("plan", |_step| -> Result<String, Error> { unreachable!("it has a result") })?;
    /// assert_eq!(plan, same);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn new(name: impl Into<String>) -> Self {
        Step { name: name.into(), input: None, is_announced: false }
    }

    /// Sets the fingerprint of the step's input. If the step was recorded or [announced](Self::announced) with another input,
    /// running it is an `Invalid` error, and the step is neither replayed nor run: the recorded result, or what the step that
    /// was announced may have done, belongs to other input.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, ErrorKind, Fingerprint, Step, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("task")? else { unreachable!() };
    /// let plan = |prompt: &str| Step::new("plan").input(Fingerprint::of(prompt));
    /// claim.step(plan("tidy up"), |_step| Ok::<_, Error>("7".to_owned()))?;
    /// let other = claim.step(plan("burn it down"), |_step| Ok::<_, Error>("8".to_owned()));
    /// assert_eq!(other.unwrap_err().kind(), ErrorKind::Invalid);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn input(mut self, input: Fingerprint) -> Self {
        self.input = Some(input);
        self
    }

    /// Announces the step: its beginning is durable before its work runs, at the level of
    /// [`claim_durability`](crate::Policy::claim_durability). It costs one more write, and one more sync at `Sync`.
    ///
    /// After a crash, an operator and a reconcile hook see an announced step that did not end as
    /// [`Attempt::open_step`](crate::Attempt::open_step). If `claim_durability` is `Sync`, [`StepHandle::may_have_run`] is false
    /// only if the step did not begin. Announce the step from the first release that runs it: an attempt of an earlier release
    /// left no announcement. If an attempt aborts while an announced step is open, it is interrupted and its fate stays open. At
    /// most 16 steps of a key are open at a time.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, State, Step, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// let _ = claim.step(Step::new("send").announced(), |_step| -> Result<(), Error> {
    ///     Err(Error::invalid("timed out"))
    /// });
    /// drop(claim);
    /// let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// assert_eq!(lost.open_step(), Some("send"));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn announced(mut self) -> Self {
        self.is_announced = true;
        self
    }

    fn check(&self) -> Result<()> {
        match self.name.len() {
            0 => Err(Error::invalid("the name of a step is empty: give each step its own")),
            len if len > STEP_NAME_BYTES_MAX => {
                let message = format!(
                    "the name of a step has {len} bytes, at most {STEP_NAME_BYTES_MAX}: put what it says into its input"
                );
                Err(Error::new(ErrorKind::TooLarge, message))
            }
            _ => Ok(()),
        }
    }
}

impl From<&str> for Step {
    fn from(name: &str) -> Self {
        Step::new(name)
    }
}

impl From<String> for Step {
    fn from(name: String) -> Self {
        Step::new(name)
    }
}

impl From<&String> for Step {
    fn from(name: &String) -> Self {
        Step::new(name)
    }
}

/// What a step's work is given: the step's name, its downstream key, and whether it may have run before.
///
/// ```
/// # use onlyonce::{Claim, Error, Step, StepHandle, testing::Sim};
/// # fn ask_outbox(_: &str) -> Option<String> { None }
/// # fn send_mail(_: String) -> Result<String, Error> { Ok("17".to_owned()) }
/// # let store = Sim::new(1).open()?;
/// # let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
/// let number = claim.step(Step::new("send").announced(), |step: &StepHandle| {
///     if step.may_have_run() {
///         if let Some(number) = ask_outbox(&step.downstream_key()) {
///             return Ok(number); // it was sent, and the crash came before its end was recorded
///         }
///     }
///     send_mail(step.downstream_key())
/// })?;
/// # assert_eq!(number, "17");
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone)]
pub struct StepHandle {
    claim: ClaimHandle,
    name: Arc<str>,
    may_have_run: bool,
}

impl StepHandle {
    /// Returns the name of the step.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("task")? else { unreachable!() };
    /// claim.step("plan", |step| {
    ///     assert_eq!(step.name(), "plan");
    ///     Ok::<_, Error>(())
    /// })?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a key for another service, by which that service recognizes a repeated call of this step: 32 hexadecimal digits,
    /// the same in every attempt, different for each step and key, and impossible to guess. Each store has its own; a copy made
    /// by backup or restore has the same. Repair and compaction don't change it. Forgetting the key doesn't either: to do an
    /// operation anew, use another key. Computes one hash; nothing is read or written.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// let request = claim.step("charge", |step| {
    ///     Ok::<_, Error>(format!("POST /charges\nIdempotency-Key: {}", step.downstream_key()))
    /// })?;
    /// # assert_eq!(request.len(), 31 + 32);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn downstream_key(&self) -> String {
        let inner = &self.claim.0;
        downstream_key(inner.shared.secret(), &inner.key, Purpose::Step, &self.name)
    }

    /// Returns whether the work of this step may have run before, in this or in an earlier attempt, although no end of it is
    /// recorded. Ask the other side, or [`hold`](Self::hold).
    ///
    /// An [announced](Step::announced) step may have run if it was announced before, and no claimant has said since that it was
    /// not applied. Any other step may have run if the claim follows an interrupted attempt, if it was attached by its ticket,
    /// or if this attempt began the step before.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// # let Claim::Interrupted(lost) = store.claim("mail-1")? else { unreachable!() };
    /// let claim = lost.take_over()?; // an attempt before this one ended without a word
    /// claim.step("send", |step| {
    ///     assert!(step.may_have_run());
    ///     Ok::<_, Error>(())
    /// })?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn may_have_run(&self) -> bool {
        self.may_have_run
    }

    /// Holds the claim's key, because nobody can say whether the step ran: no claim is granted until the key is
    /// [resolved](crate::Store::resolve). Returns the error that the work must return. `Held`: the key is held, and the claim has
    /// ended; its guard's endings are refused as `Held`, too. `ClaimLost`: another attempt took over, or the claim had ended. Any other kind: the error that
    /// [`ClaimGuard::hold`](crate::ClaimGuard::hold) would return; the key is not held, or for `Indeterminate` may be.
    ///
    /// The hold is durable on return, always at `Sync`. It costs one write and one sync. A reason of more than 512 bytes is
    /// cut.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, ErrorKind, Step, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// # let Claim::Interrupted(lost) = store.claim("mail-1")? else { unreachable!() };
    /// let claim = lost.take_over()?;
    /// let sent = claim.step("send", |step| {
    ///     if step.may_have_run() {
    ///         return Err(step.hold("the mailer can't be asked"));
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(sent.unwrap_err().kind(), ErrorKind::Held);
    /// assert!(matches!(store.claim("mail-1")?, Claim::Held(_)));
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use = "the work has to return this error"]
    pub fn hold(&self, reason: impl Into<String>) -> Error {
        let (shared, holding) = (&self.claim.0.shared, self.holding(reason.into()));
        make(shared, holding).unwrap_or_else(|e| e)
    }

    /// As [`hold`](Self::hold), and gives the error later: for the work of [`step_async`](ClaimHandle::step_async).
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, ErrorKind, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// # let sent = claim.step("send", |step: &onlyonce::StepHandle| -> Result<(), Error> {
    /// Err(step.hold_async("the mailer can't be asked").wait()?) // or `.await?`
    /// # });
    /// # assert_eq!(sent.unwrap_err().kind(), ErrorKind::Held);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// Why the key could not be held, as the answer.
    pub fn hold_async(&self, reason: impl Into<String>) -> Pending<Error> {
        send(&Arc::clone(&self.claim.0.shared), Ok(self.holding(reason.into())))
    }

    fn holding(&self, reason: String) -> Holding {
        Holding { step: self.clone(), reason: cut_label(reason) }
    }
}

impl fmt::Debug for StepHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepHandle")
            .field("claim", &self.claim)
            .field("name", &self.name)
            .field("may_have_run", &self.may_have_run)
            .finish()
    }
}

impl ClaimHandle {
    /// Runs `work` as a step of this claim, and records its result. Once that is recorded, the step is not run again: a later
    /// call with the same name, in this or in a later attempt, returns the recorded result.
    ///
    /// So work of several steps goes on where it was interrupted, after a crash or an abort. If the claim ends with an
    /// outcome, or the key is forgotten, its steps are dropped. Steps with different names can run concurrently.
    ///
    /// If `work` returns an error or panics, or its result can't be recorded, the step has not ended: the next call runs it
    /// again, and [`StepHandle::may_have_run`] returns `true`. The announcement of an announced step stays.
    ///
    /// The result is durable on return at the level of [`durability`](crate::Policy::durability).
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # let Claim::Acquired(claim) = store.claim("task-42")? else { unreachable!() };
    /// let plan = claim.step("plan", |_step| Ok::<_, Error>("a, b".to_owned()))?; // a paid model call, say
    /// # drop((plan, claim, store));
    /// # sim.kill();
    /// # let store = sim.open()?;
    /// // A crash. The next attempt:
    /// let Claim::Interrupted(lost) = store.claim("task-42")? else { unreachable!() };
    /// let claim = lost.take_over()?;
    /// let plan = claim.step("plan", |_step| -> Result<String, Error> { unreachable!("paid before") })?;
    /// assert_eq!(plan, "a, b");
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// The error of `work`. Before it runs: `ClaimLost` if the claim is no longer this attempt's, `InProgress` if
    /// the step is running in another thread or task of this claim, `Invalid` for an empty name, another
    /// [input](Step::input) or a 17th open step, `TooLarge` for a longer name, `StorageFull` if there is no space for a result,
    /// `Undecodable` if the recorded result is of another type. After it ran: `ClaimLost`, `TooLarge`, `StorageFull` and the
    /// errors of [`complete`](crate::ClaimGuard::complete), which never return a guard here; after `Indeterminate` the result may be
    /// recorded, and before the work the step may be announced.
    ///
    /// # Cost
    /// One write, and one sync at `Sync`; a second of each if the step is [announced](Step::announced). An attempt after the
    /// first, or a repeated call, first looks the step up. A replay costs that lookup and one read.
    pub fn step<T, E>(
        &self,
        step: impl Into<Step>,
        work: impl FnOnce(&StepHandle) -> Result<T, E>,
    ) -> Result<T, E>
    where
        T: Encode + Decode,
        E: From<Error>,
    {
        let mut run = StepRun::begin(self, step.into())?;
        while let Some(call) = run.next_call() {
            let told = call.make();
            run.told(told)?;
        }
        if let Some(value) = run.recorded()? {
            return Ok(value);
        }
        let value = work(&run.handle)?;
        run.has_run(&value)?;
        while let Some(call) = run.next_call() {
            let told = call.make();
            run.told(told)?;
        }
        Ok(run.recorded()?.unwrap_or(value))
    }

    /// Runs a step as [`step`](Self::step) does, without blocking. `work` makes a future, which is polled as a part of the
    /// returned one. Nothing happens until that is polled. If the future is dropped before the work has returned, the step is
    /// left as after a crash at that point. If it is dropped later, the result is still recorded.
    ///
    /// ```
    /// # use onlyonce::{Claim, ClaimHandle, Error, testing::Sim};
    /// # async fn ask_model(_: &str, _: String) -> Result<String, Error> { Ok("a, b".to_owned()) }
    /// async fn plan(claim: &ClaimHandle, prompt: &str) -> Result<String, Error> {
    ///     claim.step_async("plan", |step| async move { ask_model(prompt, step.downstream_key()).await }).await
    /// }
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("task")? else { unreachable!() };
    /// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// # let mut planning = std::pin::pin!(plan(&claim, "tidy up"));
    /// # loop {
    /// #     if let std::task::Poll::Ready(plan) = planning.as_mut().poll(&mut context) {
    /// #         break assert_eq!(plan?, "a, b");
    /// #     }
    /// # }
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// Durability and cost are those of [`step`](Self::step).
    ///
    /// # Errors
    /// The errors of [`step`](Self::step).
    pub async fn step_async<T, E, F>(
        &self,
        step: impl Into<Step>,
        work: impl FnOnce(StepHandle) -> F,
    ) -> Result<T, E>
    where
        T: Encode + Decode,
        E: From<Error>,
        F: Future<Output = Result<T, E>>,
    {
        let mut run = StepRun::begin(self, step.into())?;
        while let Some(call) = run.next_call() {
            let told = call.send().await;
            run.told(told)?;
        }
        if let Some(value) = run.recorded()? {
            return Ok(value);
        }
        let value = work(run.handle.clone()).await?;
        run.has_run(&value)?;
        while let Some(call) = run.next_call() {
            let told = call.send().await;
            run.told(told)?;
        }
        Ok(run.recorded()?.unwrap_or(value))
    }

    /// Returns a key for another service, under which that service can recognize a repeated call of this claim. `label` says
    /// what it is for: each label has another key, and a step of the same name has another one, too. Like [`StepHandle::downstream_key`], it is the same in every attempt.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// let first = claim.downstream_key("psp");
    /// drop(claim);
    /// let Claim::Interrupted(lost) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(lost.attempt().downstream_key("psp"), first); // to ask whether it was charged
    /// assert_eq!(lost.take_over()?.downstream_key("psp"), first);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn downstream_key(&self, label: &str) -> String {
        downstream_key(self.0.shared.secret(), &self.0.key, Purpose::Label, label)
    }
}

/// What is known of the steps of earlier attempts when a claim is granted.
#[derive(Default)]
pub(crate) struct EarlierSteps {
    /// A step of which nothing is recorded may have run before.
    pub(super) is_suspect: bool,
    /// Announced, and not ended.
    pub(super) announced: Vec<OpenStep>,
}

impl EarlierSteps {
    /// The steps of an interrupted attempt, from the state before the grant. `None`: its announcements no longer count.
    pub(super) fn of_open(state: Option<&KeyState>) -> Self {
        let announced = state.map_or(Vec::new(), |state| state.announced().to_vec());
        EarlierSteps { is_suspect: true, announced }
    }
}

/// What an owner knows of the steps of its claim.
pub(super) struct Steps {
    /// The key's life, in which they count.
    life: Token,
    /// An earlier attempt may have recorded steps.
    has_earlier: bool,
    /// A step that nothing was recorded of may have run before.
    is_suspect: bool,
    /// Announced by earlier attempts, and not ended when the claim was granted.
    announced: Vec<OpenStep>,
    /// Begun by this owner.
    begun: Mutex<BegunSteps>,
}

/// Boxed: most claims have no steps, and every claim makes and drops this.
type BegunSteps = Option<Box<BTreeMap<Arc<str>, Begun>>>;

#[derive(Clone, Copy, Default)]
struct Begun {
    is_running: bool,
    is_announced: bool,
    /// Its work was about to run.
    may_have_run: bool,
}

impl Steps {
    /// The steps of a claim that begins, with what earlier attempts left.
    #[inline]
    pub(super) fn new(claimed: Claimed, before: EarlierSteps) -> Self {
        let Claimed { life, token, .. } = claimed;
        let EarlierSteps { is_suspect, announced } = before;
        let begun = Mutex::new(None);
        Steps { life, has_earlier: is_suspect || life != token, is_suspect, announced, begun }
    }
}

/// A step on its way. Dropped, it is no longer running.
struct StepRun {
    handle: StepHandle,
    step: Step,
    next: NextCall,
    /// It has to be announced, and is not.
    is_unannounced: bool,
    recorded: Option<Recorded>,
}

/// The call that has to be made next.
enum NextCall {
    /// Asks whether the claim is still this attempt's, and has space for a result.
    Check,
    /// Asks whether the step has ended.
    Look,
    Announce,
    /// The work runs, or the result is known.
    None,
    End(OutcomeParts),
    /// The work ran, and the step had ended meanwhile: that result counts.
    LookAgain,
}

impl StepRun {
    fn begin(claim: &ClaimHandle, step: Step) -> Result<Self> {
        step.check()?;
        if !claim.0.liveness.is_live() {
            return Err(claim.lost());
        }
        let name: Arc<str> = step.name.as_str().into();
        let steps = &claim.0.steps;
        let before = {
            let mut begun = steps.begun.lock();
            let begun = begun.get_or_insert_default();
            let known = begun.get(&name).copied();
            if known.is_some_and(|begun| begun.is_running) {
                let message = format!(
                    "the step {name:?} of {} is running in another thread or task: wait for it",
                    claim.0.key
                );
                return Err(Error::new(ErrorKind::InProgress, message));
            }
            let now = Begun { is_running: true, ..known.unwrap_or_default() };
            begun.insert(Arc::clone(&name), now);
            known
        };
        let is_it = |step: &OpenStep| step.name == name;
        let was_announced =
            before.is_some_and(|begun| begun.is_announced) || steps.announced.iter().any(is_it);
        let is_suspect = steps.is_suspect && !step.is_announced;
        let has_begun = before.is_some_and(|begun| begun.may_have_run);
        let may_have_run = has_begun || was_announced || is_suspect;
        let is_unannounced = step.is_announced && !was_announced;
        let handle = StepHandle { claim: claim.clone(), name, may_have_run };
        Ok(StepRun { handle, step, next: NextCall::Check, is_unannounced, recorded: None })
    }

    /// The call that has to be made next.
    fn next_call(&mut self) -> Option<StepCall> {
        let does = match std::mem::replace(&mut self.next, NextCall::None) {
            NextCall::Check => Does::Check,
            NextCall::Look => Does::Look,
            NextCall::Announce => Does::Announce,
            NextCall::None => return None,
            NextCall::End(parts) => Does::End(Box::new(parts)),
            NextCall::LookAgain => Does::LookAgain,
        };
        Some(StepCall { step: self.handle.clone(), input: self.step.input, does })
    }

    /// Takes the answer to that call.
    fn told(&mut self, told: Result<StepTold>) -> Result<()> {
        let claim = &self.handle.claim;
        let told = told?;
        let is_before_work =
            matches!(told, StepTold::Checked | StepTold::NotEnded | StepTold::Announced);
        let before_work = if self.is_unannounced { NextCall::Announce } else { NextCall::None };
        match told {
            StepTold::Checked => {
                let may_have_ended = claim.0.steps.has_earlier || self.handle.may_have_run;
                self.next = if may_have_ended { NextCall::Look } else { before_work };
            }
            StepTold::NotEnded => self.next = before_work,
            StepTold::Announced => self.note(|begun| begun.is_announced = true),
            StepTold::Ended(recorded) if differs(recorded.fingerprint(), self.step.input) => {
                return Err(self.other_input());
            }
            StepTold::Ended(recorded) => self.recorded = Some(*recorded),
            StepTold::Recorded => {}
            StepTold::EndedMeanwhile => self.next = NextCall::LookAgain,
            StepTold::TooMany => {
                return Err(Error::invalid(format!(
                    "{ANNOUNCED_MAX} steps of {} are announced and have not ended: let one of them end first",
                    claim.0.key
                )));
            }
            StepTold::OtherInput => return Err(self.other_input()),
            StepTold::Lost => return Err(claim.lost()),
        }
        if is_before_work && matches!(self.next, NextCall::None) {
            // A handle may outlive its guard: another one may have gone on meanwhile.
            if !claim.0.liveness.is_live() {
                return Err(claim.lost());
            }
            self.note(|begun| begun.may_have_run = true);
        }
        Ok(())
    }

    /// The work has returned that value, which is to be recorded.
    fn has_run<T: Encode + Decode>(&mut self, value: &T) -> Result<()> {
        let outcome = Outcome::success(value).replayed_as::<T>();
        self.next = NextCall::End(outcome.into_parts(self.handle.claim.0.shared.keeping())?);
        Ok(())
    }

    /// The result, if the step had ended.
    fn recorded<T: Decode>(&mut self) -> Result<Option<T>> {
        self.recorded.take().map(|recorded| recorded.decode()).transpose()
    }

    fn note(&self, change: impl FnOnce(&mut Begun)) {
        let mut begun = self.handle.claim.0.steps.begun.lock();
        if let Some(begun) = begun.as_mut().and_then(|begun| begun.get_mut(&self.handle.name)) {
            change(begun);
        }
    }

    fn other_input(&self) -> Error {
        Error::invalid(format!(
            "the step {:?} of {} was begun with another input: give each step its own name",
            self.handle.name, self.handle.claim.0.key
        ))
    }
}

impl Drop for StepRun {
    fn drop(&mut self) {
        self.note(|begun| begun.is_running = false);
    }
}

/// One call of a step.
struct StepCall {
    step: StepHandle,
    input: Option<Fingerprint>,
    does: Does,
}

enum Does {
    Check,
    Look,
    Announce,
    End(Box<OutcomeParts>),
    LookAgain,
}

enum StepTold {
    Checked,
    NotEnded,
    Ended(Box<Recorded>),
    Announced,
    Recorded,
    EndedMeanwhile,
    TooMany,
    OtherInput,
    Lost,
}

impl StepCall {
    fn make(self) -> Result<StepTold> {
        let shared = Arc::clone(&self.step.claim.0.shared);
        if !self.is_look() {
            return make(&shared, self);
        }
        let claim = &self.step.claim.0;
        let seen = shared.look_at_step(&claim.key, claim.steps.life, &self.step.name)?;
        self.seen(seen.map(|seen| (seen.state, seen.outcome)))
    }

    fn send(self) -> Pending<StepTold> {
        let shared = Arc::clone(&self.step.claim.0.shared);
        if !self.is_look() {
            return send(&shared, Ok(self));
        }
        let claim = &self.step.claim.0;
        let looking = shared.send_look_at_step(&claim.key, claim.steps.life, &self.step.name);
        Pending::new(looking, move |told| {
            let found = told?.found;
            self.seen(found.and_then(|found| {
                let found = *found;
                found.state.map(|state| (state, found.outcome))
            }))
        })
    }

    fn is_look(&self) -> bool {
        matches!(self.does, Does::Look | Does::LookAgain)
    }

    fn seen(&self, found: Option<(KeyState, Option<Stored>)>) -> Result<StepTold> {
        let claim = &self.step.claim.0;
        match (found, &self.does) {
            (Some((state, outcome)), _) => {
                let recorded = Recorded::read(&claim.shared, &claim.key, &state, outcome)?;
                Ok(StepTold::Ended(Box::new(recorded)))
            }
            (None, Does::LookAgain) => Err(lacking(&claim.shared, "the step that had ended")),
            (None, Does::Look | Does::Check | Does::Announce | Does::End(_)) => {
                Ok(StepTold::NotEnded)
            }
        }
    }
}

impl Asks for StepCall {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let claim = &self.step.claim.0;
        let settings = &claim.settings;
        let extras = CallExtras { step: Some(&self.step.name), ..CallExtras::default() };
        let extras = Some(&extras);
        let conditions = Conditions { extras, fingerprint: self.input, ..Conditions::default() };
        let (call, level, outcome) = match &self.does {
            Does::End(parts) => {
                let call = Call::EndStep { token: claim.token, life: claim.steps.life };
                (call, settings.durability, Some(EncodedOutcome::of(parts)))
            }
            Does::Announce => (Call::Announce(claim.token), settings.claim_durability, None),
            Does::Check | Does::Look | Does::LookAgain => {
                (Call::BeginStep(claim.token), settings.claim_durability, None)
            }
        };
        let reserve = claim.reserve();
        let level = Some(level);
        with(&claim.key, call, &Writing { level, reserve, conditions, outcome, sending: None })
    }
}

impl KeyCall for StepCall {
    type Answer = StepTold;

    fn key(&self) -> &Key<'_> {
        &self.step.claim.0.key
    }

    fn answered(self, shared: &Arc<Shared>, _: KeyHash, told: Result<Applied>) -> Result<StepTold> {
        Ok(match (told?.answer, &self.does) {
            (Answer::Done, Does::Check) => StepTold::Checked,
            (Answer::Done, Does::Announce) => StepTold::Announced,
            (Answer::Done, Does::End(_)) => StepTold::Recorded,
            (Answer::Unchanged, Does::End(_)) => StepTold::EndedMeanwhile,
            (Answer::TooManySteps, Does::Announce) => StepTold::TooMany,
            (Answer::OtherInput, Does::Check | Does::Announce) => StepTold::OtherInput,
            (Answer::Lost, _) => StepTold::Lost,
            (other, _) => return Err(unexpected(shared, "a call of a step", other)),
        })
    }
}

/// A claim that is about to be held because of one of its steps.
struct Holding {
    step: StepHandle,
    reason: String,
}

impl Asks for Holding {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let claim = &self.step.claim.0;
        let conditions = Conditions { reason: Some(&self.reason), ..Conditions::default() };
        let writing = Writing { conditions, ..Writing::default() };
        with(&claim.key, Call::Park(claim.token), &writing)
    }
}

impl KeyCall for Holding {
    type Answer = Error;

    fn key(&self) -> &Key<'_> {
        &self.step.claim.0.key
    }

    fn answered(self, shared: &Arc<Shared>, _: KeyHash, done: Result<Applied>) -> Result<Error> {
        let claim = &self.step.claim.0;
        match done?.answer {
            Answer::Done => claim.liveness.hold_by_step(),
            Answer::Lost => {
                claim.liveness.end();
                return Err(claim.lost());
            }
            other => return Err(unexpected(shared, "a hold", other)),
        }
        claim.liveness.hold_by_step();
        let message = format!(
            "{} is held, because of its step {:?}: {}; resolve it",
            claim.key, self.step.name, self.reason
        );
        Ok(Error::new(ErrorKind::Held, message))
    }

    /// The hold goes on without its caller.
    fn left(&self) {
        self.step.claim.0.liveness.hold_by_step();
    }
}
