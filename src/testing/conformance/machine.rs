//! Runs the calls of `spec` on a store, and finds guards by their tokens and questions by their numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{
    Abort, Attempt, Claim, ClaimGuard, ClaimHandle, Committed, Error, ErrorKind, Fingerprint,
    Interrupted, Mark, OnDrop, OnInterrupted, Operation, Outcome, Recorded, Resolution, Result,
    State, Step, Store,
};

use super::spec::{Ask, Call, End, Ran, Shown, Told, View, Word};

/// A store, and everything that its callers hold.
pub struct Machine {
    pub store: Store,
    pub guards: BTreeMap<u64, ClaimGuard>,
    /// Handles outlive their guards.
    pub handles: BTreeMap<u64, ClaimHandle>,
    pub questions: BTreeMap<u64, Interrupted>,
    /// The texts of tickets, by token.
    pub tickets: BTreeMap<u64, String>,
    /// What the last look at a key has shown.
    pub looked: BTreeMap<String, State>,
    /// Every attempt that was shown to a caller, by token.
    pub seen: BTreeMap<u64, Attempt>,
}

/// The answer, and the token of the claim if one was granted.
pub type Said = (Told, Option<u64>);

impl Machine {
    pub fn new(store: Store, seen: BTreeMap<u64, Attempt>) -> Self {
        Machine {
            store,
            guards: BTreeMap::new(),
            handles: BTreeMap::new(),
            questions: BTreeMap::new(),
            tickets: BTreeMap::new(),
            looked: BTreeMap::new(),
            seen,
        }
    }

    /// The handle and the key that a script means by `space/key`. A space may have a version: `space@version`.
    pub fn within<'k>(&self, path: &'k str) -> (Store, &'k str) {
        let (mut store, mut rest) = (self.store.clone(), path);
        while let Some((space, key)) = rest.split_once('/') {
            let (name, version) = space.split_once('@').unwrap_or((space, ""));
            store = store.namespace(name);
            if !version.is_empty() {
                store = store.version(version);
            }
            rest = key;
        }
        (store, rest)
    }

    pub fn call(&mut self, path: &str, call: &Call) -> Result<Said> {
        match self.make(path, call) {
            Err(e) if e.kind() == ErrorKind::Superseded => Ok((Told::Superseded, None)),
            said => said,
        }
    }

    fn make(&mut self, path: &str, call: &Call) -> Result<Said> {
        let (store, key) = self.within(path);
        let told = match call {
            Call::Claim { ask, question } => return self.claim(&store, key, ask, *question),
            Call::Mark { ask } => {
                let marked = store.mark(operation(key, ask));
                self.marked(marked?)
            }
            Call::Record { ask, how } => {
                let marked = store.record(operation(key, ask), outcome(how));
                self.marked(marked?)
            }
            Call::Word { word, question, .. } => return self.word(*word, *question),
            Call::DropQuestion { question } => {
                drop(self.questions.remove(question));
                Told::Yes
            }
            Call::RenewQuestion { question, lease } => {
                let lease = Duration::from_millis(*lease);
                yes_or_lost(self.questions[question].renew(lease))?
            }
            Call::End { token, how, ask } => {
                let guard = self.guards.remove(token).expect("a guard");
                match how {
                    End::Nothing => yes_or_lost(guard.abort(abort(ask)))?,
                    how => yes_or_lost(guard.record(outcome(how)))?,
                }
            }
            Call::Park { token } => {
                let guard = self.guards.remove(token).expect("a guard");
                yes_or_lost(guard.hold("held by its owner"))?
            }
            Call::Withdraw { .. } => panic!("no call of the API says just that"),
            Call::Progress { token, value, .. } => {
                yes_or_lost(self.handles[token].save_progress(value))?
            }
            Call::Step { token, name, input, is_announced, value, .. } => {
                self.step(*token, *name, *input, *is_announced, value.as_ref())?
            }
            Call::BeginStep { .. } | Call::Announce { .. } | Call::EndStep { .. } => {
                panic!("no call of the API says just that")
            }
            Call::Detach { token, lease } => {
                let guard = self.guards.remove(token).expect("a guard");
                match guard.detach(Duration::from_millis(*lease)) {
                    Ok(ticket) => {
                        self.tickets.insert(*token, ticket.to_string());
                        Told::Yes
                    }
                    Err(e) if e.kind() == ErrorKind::Held => {
                        self.guards.insert(*token, e.into_claim().expect("the guard comes back"));
                        Told::IsHeld
                    }
                    Err(e) if e.kind() == ErrorKind::ClaimLost => Told::Lost,
                    Err(e) => return Err(e),
                }
            }
            Call::Attach { token } => {
                let ticket = self.tickets[token].parse().expect("a ticket");
                match store.attach(&ticket) {
                    Ok(guard) => {
                        assert_eq!(guard.token().get(), *token);
                        self.handles.insert(*token, guard.handle());
                        self.guards.insert(*token, guard);
                        Told::Yes
                    }
                    Err(e) if e.kind() == ErrorKind::ClaimLost => Told::Lost,
                    Err(e) if e.kind() == ErrorKind::InProgress => Told::Busy,
                    Err(e) if e.kind() == ErrorKind::Invalid => Told::Invalid,
                    Err(e) => return Err(e),
                }
            }
            Call::Revoke { seen } => {
                let attempt = &self.seen[&seen.expect("a token")];
                yes_or_no(self.store.interrupt(attempt, "an operator says so")?)
            }
            Call::Drop { token, .. } => {
                drop(self.guards.remove(token));
                Told::Yes
            }
            Call::Renew { token, lease, .. } => {
                match self.handles[token].renew(Duration::from_millis(*lease)) {
                    Err(e) if e.kind() == ErrorKind::Held => Told::IsHeld,
                    done => yes_or_lost(done)?,
                }
            }
            Call::Resolve { seen, how } => {
                let resolution = match how {
                    End::Nothing => Resolution::retry("to be tried again"),
                    how => Resolution::Record(outcome(how)),
                };
                let attempt = &self.seen[&seen.expect("a token")];
                yes_or_busy(self.store.resolve(attempt, resolution))?
            }
            Call::Forget => yes_or_busy(store.forget(key))?,
            Call::ForgetSeen => match self.looked.get(path) {
                None => Told::No,
                Some(seen) => yes_or_busy(self.store.forget(seen))?,
            },
            Call::ForgetClaimed { token } => {
                let token = self.handles[token].token();
                yes_or_lost(store.forget_claimed(key, token))?
            }
            Call::Get => {
                let seen = store.get(key)?;
                match seen.clone() {
                    Some(state) => drop(self.looked.insert(path.to_owned(), state)),
                    None => drop(self.looked.remove(path)),
                }
                Told::State(seen.map(|state| self.shown(state)))
            }
        };
        Ok((told, None))
    }

    fn step(
        &mut self,
        token: u64,
        name: u8,
        input: Option<u8>,
        is_announced: bool,
        value: Option<&Vec<u8>>,
    ) -> Result<Told> {
        let step = Step::new(name.to_string());
        let step = input.into_iter().fold(step, |step, input| step.input(Fingerprint::of([input])));
        let step = if is_announced { step.announced() } else { step };
        let mut ran = Ran::Not;
        let done = self.handles[&token].step(step, |step| {
            ran = if step.may_have_run() { Ran::MayBeAgain } else { Ran::First };
            value.cloned().ok_or(StepFault(None))
        });
        match done {
            Ok(value) => Ok(Told::Step { value: Some(value), ran }),
            Err(StepFault(None)) => Ok(Told::Step { value: None, ran }),
            Err(StepFault(Some(e))) if e.kind() == ErrorKind::ClaimLost => Ok(Told::Lost),
            Err(StepFault(Some(e))) if e.kind() == ErrorKind::Invalid => Ok(Told::OtherInput),
            Err(StepFault(Some(e))) => Err(e),
        }
    }

    /// Whether [`batch`](Self::batch) can make that call.
    pub fn can_batch(call: &Call) -> bool {
        match call {
            Call::Word { word, .. } => *word != Word::Hold,
            call => matches!(
                call,
                Call::Claim { .. } | Call::Mark { .. } | Call::End { .. } | Call::Forget
            ),
        }
    }

    /// Makes calls together, and returns their answers in order. Calls of one kind are made by the method for that kind.
    pub fn batch(&mut self, calls: &[(String, Call)]) -> Result<Vec<Said>> {
        let store = self.store.clone();
        let all = |is_kind: fn(&Call) -> bool| calls.iter().all(|(_, call)| is_kind(call));
        let operations = || {
            calls.iter().map(|(key, call)| match call {
                Call::Claim { ask, .. } | Call::Mark { ask } => operation(key, ask),
                call => panic!("{call:?}"),
            })
        };
        let mut committed = Committed::default();
        if all(|call| matches!(call, Call::Claim { .. })) {
            committed.claims = store.claim_many(operations())?;
        } else if all(|call| matches!(call, Call::Mark { .. })) {
            committed.marks = store.mark_many(operations())?;
        } else if all(|call| matches!(call, Call::Forget)) {
            committed.forgotten = store.forget_many(calls.iter().map(|(key, _)| key.as_str()))?;
        } else if all(|call| matches!(call, Call::End { how, .. } if *how != End::Nothing)) {
            let ends = calls.iter().map(|(_, call)| match call {
                Call::End { token, how, .. } => {
                    (self.guards.remove(token).expect("a guard"), outcome(how))
                }
                call => panic!("{call:?}"),
            });
            committed.endings = store.complete_many(ends)?;
        } else {
            committed = self.mixed(calls)?;
        }
        let Committed { claims, taken, endings, marks, forgotten } = committed;
        let (mut claims, mut taken) = (claims.into_iter(), taken.into_iter());
        let (mut endings, mut marks) = (endings.into_iter(), marks.into_iter());
        let mut forgotten = forgotten.into_iter();
        let mut said = Vec::new();
        for (_, call) in calls {
            let told = match call {
                Call::Claim { question, .. } => {
                    said.push(self.claimed(claims.next().expect("an answer"), *question)?);
                    continue;
                }
                Call::Word { .. } => {
                    said.push(self.taken(taken.next().expect("an answer"))?);
                    continue;
                }
                Call::Mark { .. } => self.marked(marks.next().expect("an answer")?),
                Call::End { .. } => yes_or_lost(endings.next().expect("an answer"))?,
                _ => yes_or_busy(forgotten.next().expect("an answer"))?,
            };
            said.push((told, None));
        }
        let is_over = claims.next().is_none() && taken.next().is_none() && marks.next().is_none();
        assert!(is_over && endings.next().is_none() && forgotten.next().is_none());
        Ok(said)
    }

    fn mixed(&mut self, calls: &[(String, Call)]) -> Result<Committed> {
        let mut batch = self.store.batch();
        for (key, call) in calls {
            match call {
                Call::Claim { ask, .. } => batch.claim(operation(key, ask)),
                Call::Mark { ask } => batch.mark(operation(key, ask)),
                Call::Forget => batch.forget(key.as_str()),
                Call::Word { word, question, .. } => {
                    let lost = self.questions.remove(question).expect("a question");
                    match word {
                        Word::TakeOver => batch.take_over(lost),
                        _ => batch.not_applied(lost),
                    }
                }
                Call::End { token, how, ask } => {
                    let guard = self.guards.remove(token).expect("a guard");
                    match how {
                        End::Nothing => batch.abort(guard, abort(ask)),
                        how => batch.record(guard, outcome(how)),
                    }
                }
                call => panic!("{call:?}"),
            };
        }
        batch.commit()
    }

    /// Only `get` shows the kind of a mark's token.
    fn marked(&mut self, mark: Mark) -> Told {
        match mark {
            Mark::First => Told::First,
            Mark::Again => Told::Again,
            Mark::InProgress(attempt) => Told::InProgress(self.view(attempt)),
            Mark::Delayed(attempt) => Told::Delayed(self.view(attempt)),
            Mark::Interrupted(attempt) => Told::Unsure(self.view(attempt)),
            Mark::Mismatch(state) => Told::Mismatch(self.shown(state)),
            Mark::Expired(_) => Told::Expired,
        }
    }

    fn claim(&mut self, store: &Store, key: &str, ask: &Ask, question: u64) -> Result<Said> {
        let claim = store.claim(operation(key, ask));
        self.claimed(claim, question)
    }

    fn claimed(&mut self, claim: Result<Claim>, question: u64) -> Result<Said> {
        let claim = match claim {
            Err(e) if e.kind() == ErrorKind::Invalid => return Ok((Told::Invalid, None)),
            claim => claim?,
        };
        let told = match claim {
            Claim::Acquired(guard) => return Ok(self.granted(guard)),
            Claim::Interrupted(lost) => {
                let view = self.view(lost.attempt().clone());
                self.questions.insert(question, lost);
                Told::Asked(view)
            }
            Claim::Completed(done) => Told::Recorded(recorded(&done, false)),
            Claim::Failed(done) => Told::Recorded(recorded(&done, true)),
            Claim::InProgress(attempt) => Told::InProgress(self.view(attempt)),
            Claim::Delayed(attempt) => Told::Delayed(self.view(attempt)),
            Claim::Held(attempt) => {
                let too_many =
                    attempt.reason().is_some_and(|reason| reason.contains("attempts_max"));
                let view = self.view(attempt);
                if too_many { Told::TooMany(view) } else { Told::Held(view) }
            }
            Claim::Mismatch(state) => Told::Mismatch(self.shown(state)),
            Claim::Expired(_) => Told::Expired,
        };
        Ok((told, None))
    }

    fn word(&mut self, word: Word, question: u64) -> Result<Said> {
        let lost = self.questions.remove(&question).expect("a question");
        let attempt = lost.attempt().number();
        let guard = match word {
            Word::TakeOver => lost.take_over(),
            Word::NotApplied => lost.not_applied(),
            Word::Hold => return Ok((yes_or_lost(lost.hold("held by a test"))?, None)),
        };
        if let Ok(guard) = &guard {
            let before = guard.interruption().expect("an interruption").number();
            assert_eq!(before, attempt, "the guard names the attempt it follows");
        }
        self.taken(guard)
    }

    fn taken(&mut self, guard: Result<ClaimGuard>) -> Result<Said> {
        match guard {
            Ok(guard) => Ok(self.granted(guard)),
            Err(e) if e.kind() == ErrorKind::ClaimLost => Ok((Told::Lost, None)),
            Err(e) => Err(e),
        }
    }

    fn granted(&mut self, guard: ClaimGuard) -> Said {
        let (token, attempt) = (guard.token().get(), guard.attempt());
        self.handles.insert(token, guard.handle());
        self.guards.insert(token, guard);
        (Told::Granted { attempt }, Some(token))
    }

    fn view(&mut self, attempt: Attempt) -> View {
        let view = View {
            attempt: attempt.number(),
            token: Some(attempt.token().get()),
            hold: attempt.asked_for_hold(),
            left: attempt.lease_left().map(|left| left.as_millis().try_into().unwrap()),
            is_detached: attempt.is_detached(),
            progress: attempt.progress().map(|saved| saved.to_vec()),
            open_steps: attempt.open_steps().map(|name| name.parse().expect("a number")).collect(),
            is_being_decided: attempt.is_being_decided(),
            is_delayed: attempt.retry_in().is_some(),
        };
        self.seen.insert(attempt.token().get(), attempt);
        view
    }

    pub fn shown(&mut self, state: State) -> Shown {
        match state {
            State::InProgress(attempt) => Shown::Running(self.view(attempt)),
            State::Interrupted(attempt) => Shown::Interrupted(self.view(attempt)),
            State::Held(attempt) => Shown::Held(self.view(attempt)),
            State::Aborted(attempt) => Shown::Aborted(self.view(attempt)),
            State::Completed(done) => recorded(&done, false),
            State::Failed(done) => recorded(&done, true),
            State::Expired(_) => Shown::Expired,
        }
    }
}

/// Why a step has no result: its work said so, or the store did.
struct StepFault(Option<Error>);

impl From<Error> for StepFault {
    fn from(error: Error) -> Self {
        StepFault(Some(error))
    }
}

fn recorded(done: &Recorded, failed: bool) -> Shown {
    let (value, attempt) = (done.result().to_vec(), done.attempt());
    let token = Some(done.token().get());
    if failed {
        Shown::Failure { value, attempt, token }
    } else {
        Shown::Success { value, attempt, token }
    }
}

fn yes_or_lost(done: Result<()>) -> Result<Told> {
    match done {
        Ok(()) => Ok(Told::Yes),
        Err(e) if e.kind() == ErrorKind::ClaimLost => Ok(Told::Lost),
        Err(e) => Err(e),
    }
}

fn yes_or_busy(done: Result<bool>) -> Result<Told> {
    match done {
        Err(e) if e.kind() == ErrorKind::InProgress => Ok(Told::Busy),
        done => Ok(yes_or_no(done?)),
    }
}

fn abort(ask: &Ask) -> Abort {
    let abort = Abort::new("nothing happened");
    match ask.delay {
        Some(delay) => abort.retry_in(Duration::from_millis(delay)),
        None => abort,
    }
}

fn yes_or_no(done: bool) -> Told {
    if done { Told::Yes } else { Told::No }
}

pub fn operation<'k>(key: &'k str, ask: &Ask) -> Operation<'k> {
    let mut op = Operation::new(key).durability(ask.level).claim_durability(ask.claim_level);
    if let Some(print) = ask.print {
        op = op.fingerprint(Fingerprint::of([print]));
    }
    if let Some(lease) = ask.lease {
        op = op.lease(Duration::from_millis(lease));
    }
    if let Some(hold) = ask.hold {
        op = op.on_interrupted(if hold { OnInterrupted::Hold } else { OnInterrupted::Retry });
    }
    if let Some(max) = ask.max {
        op = op.attempts_max(max);
    }
    if let Some(keep) = ask.keep {
        op = op.retention(Duration::from_millis(keep));
    }
    if let Some(remember) = ask.remember {
        op = op.remember_expired(Duration::from_millis(remember));
    }
    op.on_drop(if ask.drop_aborts { OnDrop::Abort } else { OnDrop::Interrupt })
}

fn outcome(how: &End) -> Outcome {
    let (outcome, keep) = match how {
        End::Success { value, keep } => (Outcome::success(value), keep),
        End::Failure { value, keep } => (Outcome::failure(value), keep),
        End::Nothing => unreachable!(),
    };
    match keep {
        Some(keep) => outcome.retention(Duration::from_millis(*keep)),
        None => outcome,
    }
}
