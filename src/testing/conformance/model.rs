//! A backend in memory that answers by the rules of `spec` and uses no code of the engine to decide.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::spec::{self, Ask, Call, End, Is, Now, OnIt, PLAIN, Shown, Told, View, Word};
use crate::backend::{
    self, Answer, Asker, Backend, Claimed, Extras, InFlight, KeyState, KeyView, Lease, OpenStep,
    Phase, Presence, Reply, Request, Sent, Sight, StoreMillis, Stored, Terms,
};
use crate::operation::Lies;
use crate::sync::Mutex;
use crate::{Durability, Error, ErrorKind, Fingerprint, Key, OnInterrupted, Result, Token};

/// A simple, slow store in memory with a manual clock. [`open`](Self::open) returns its backend.
///
/// The model has its own version of the rules, written independently of the engine, so that another implementation can
/// be compared with the model.
///
/// ```
/// use onlyonce::testing::conformance::Model;
/// use onlyonce::{Claim, Policy, Store};
///
/// let store = Store::with_backend(Model::default().open(), Policy::new());
/// assert!(store.mark("k")?.is_first());
/// assert!(matches!(store.claim("k")?, Claim::Completed(_)));
/// # onlyonce::Result::<()>::Ok(())
/// ```
pub struct Model(Arc<Mutex<Everything>>);

impl Default for Model {
    fn default() -> Self {
        Model(Arc::new(Mutex::new(Everything::default())))
    }
}

#[derive(Default)]
struct Everything {
    keys: BTreeMap<(u8, Vec<u8>), Option<spec::Key>>,
    /// When each key was last changed by a call, other than by a question.
    changed: BTreeMap<(u8, Vec<u8>), u64>,
    /// Recorded outcomes. In `keys`, a number represents each of them.
    outcomes: Vec<Stored>,
    /// Fingerprints, which numbers represent in the same way.
    prints: Vec<Fingerprint>,
    /// Names of steps, likewise.
    names: Vec<String>,
    now: u64,
    tokens: u64,
    questions: u64,
    /// Processes that died.
    deaths: u64,
    /// Whether the current process refuses new claims.
    is_draining: bool,
}

/// One process's view of a [`Model`].
pub struct OpenModel {
    memory: Arc<Mutex<Everything>>,
    /// The number of processes that died before this one.
    process: u64,
}

impl Model {
    /// Opens the store in a simulated process.
    #[must_use]
    pub fn open(&self) -> OpenModel {
        OpenModel { memory: Arc::clone(&self.0), process: self.0.lock().deaths }
    }

    /// Lets `time` pass.
    pub fn wait(&self, time: Duration) {
        self.0.lock().now += time.as_millis() as u64;
    }

    /// Kills the simulated process that owns the claims in flight.
    pub fn die(&self) {
        self.0.lock().die();
    }
}

/// A reply that is ready at once.
struct Ready(Result<Reply>);

impl Sent for Ready {
    fn wait(self: Box<Self>) -> Result<Reply> {
        self.0
    }

    fn poll(&mut self, _context: &mut Context<'_>) -> Poll<Result<Reply>> {
        match &self.0 {
            Ok(reply) => Poll::Ready(Ok(reply.clone())),
            Err(e) => Poll::Ready(Err(e.again())),
        }
    }
}

/// A claim that waits for its key, or an owner that waits for its claim's end. Nothing wakes it: it looks again and again.
struct Waiting {
    process: OpenModel,
    request: Request,
    until: Option<u64>,
}

impl Sent for Waiting {
    fn wait(self: Box<Self>) -> Result<Reply> {
        loop {
            if let Some(told) = self.process.answer(&self.request, self.until) {
                return told;
            }
            crate::sync::yield_now();
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Reply>> {
        match self.process.answer(&self.request, self.until) {
            Some(told) => Poll::Ready(told),
            None => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl OpenModel {
    /// The answer to a request; `None`: it waits, at most until that time.
    fn answer(&self, request: &Request, until: Option<u64>) -> Option<Result<Reply>> {
        let mut memory = self.memory.lock();
        if let Err(e) = self.may_call(&memory) {
            return Some(Err(e));
        }
        let (ask, is_watch) = match request.ask {
            backend::Ask::Ended(_) => (backend::Ask::Look, true),
            ref ask => (ask.clone(), false),
        };
        let told = memory.answer(&Request { key: request.key.clone(), ask });
        let waits = match (&told, &request.ask) {
            (Ok(reply), backend::Ask::Ended(token)) => reply
                .found
                .as_ref()
                .is_some_and(|view| view.presence == Presence::Owner && view.state.token == *token),
            (Ok(reply), _) => {
                let is_taken = matches!(reply.answer, Answer::InProgress | Answer::Delayed);
                is_taken && until.is_some_and(|until| memory.now < until)
            }
            (Err(_), _) => false,
        };
        if waits {
            return None;
        }
        Some(told.map(|reply| if is_watch { Reply::done(reply.now) } else { reply }))
    }

    fn may_call(&self, memory: &Everything) -> Result<()> {
        match memory.deaths == self.process {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Closed, "the process that had this open is gone")),
        }
    }
}

impl Backend for OpenModel {
    fn send(&self, request: Request) -> Box<dyn Sent> {
        let process = OpenModel { memory: Arc::clone(&self.memory), process: self.process };
        let until = match &request.ask {
            backend::Ask::Call(_, terms) => terms.wait_millis,
            _ => None,
        };
        let until = until.map(|millis| self.memory.lock().now.saturating_add(millis));
        match process.answer(&request, until) {
            Some(told) => Box::new(Ready(told)),
            None => Box::new(Waiting { process, request, until }),
        }
    }

    fn result_bytes_max(&self) -> u32 {
        1 << 20
    }

    fn secret(&self) -> [u8; 32] {
        [7; 32]
    }

    fn check(&self) -> Result<()> {
        self.may_call(&self.memory.lock())
    }

    fn sync(&self) -> Result<()> {
        self.may_call(&self.memory.lock())
    }

    fn drain(&self) {
        self.memory.lock().is_draining = true;
    }

    fn close(&self, _deadline: Duration) -> Result<Vec<InFlight>> {
        let mut memory = self.memory.lock();
        self.may_call(&memory)?;
        let in_flight = memory.in_flight();
        memory.die();
        Ok(in_flight)
    }
}

impl Everything {
    fn die(&mut self) {
        self.deaths += 1;
        self.is_draining = false;
        for key in self.keys.values_mut().flatten() {
            key.on_it = OnIt::Nobody;
        }
    }

    /// Claims with an owner.
    fn in_flight(&self) -> Vec<InFlight> {
        let now = StoreMillis(self.now);
        let held = self.keys.iter().filter_map(|((kind, bytes), key)| {
            let key = key.as_ref().filter(|key| matches!(key.on_it, OnIt::Owner(_)))?;
            let view = plain(key.attempt, key.token, key.hold);
            let mut state = self.view(Phase::Claimed, Presence::Owner, &view, None).state;
            state.time = StoreMillis(*self.changed.get(&(*kind, bytes.clone()))?);
            let key = Key::from_stored(*kind, bytes)?.into_owned();
            Some(InFlight { key, state, now })
        });
        held.collect()
    }

    fn answer(&mut self, request: &Request) -> Result<Reply> {
        let call = match &request.ask {
            backend::Ask::Step { life, name } => {
                let name = self.named(name);
                return Ok(self.step(&request.key, *life, name));
            }
            backend::Ask::Look | backend::Ask::Ended(_) => Call::Get,
            backend::Ask::Call(call, terms) => {
                let is_new = matches!(call, backend::Call::Claim(_) | backend::Call::Record { .. });
                if is_new && self.is_draining {
                    return Err(Error::new(ErrorKind::Closed, "it takes no new claims"));
                }
                self.call(*call, terms)?
            }
        };
        self.tokens += 2;
        let (tick, fresh) = (self.now, self.tokens);
        let now = Now { tick, store: (tick, tick) };
        let name = (request.key.kind(), request.key.bytes().to_vec());
        if self.is_dropped(&request.key) {
            let mut nothing = None;
            let told = spec::call(&mut nothing, now, &call, Some(fresh));
            if nothing.is_some() {
                return Err(Error::new(ErrorKind::Superseded, "the namespace was dropped"));
            }
            let mut reply = Reply::done(StoreMillis(tick));
            self.put(&mut reply, &call, told, (fresh, fresh), None);
            return Ok(reply);
        }
        if let backend::Ask::Call(asked, terms) = &request.ask {
            use backend::Call as Asked;
            let drops = matches!(asked, Asked::Forget | Asked::ForgetSeen(_) | Asked::Replace(_));
            if drops && self.is_busy(&request.key) {
                return Ok(Reply { answer: Answer::InProgress, ..Reply::done(StoreMillis(tick)) });
            }
            if let Asked::Replace(seen) = asked {
                let mut reply = Reply::done(StoreMillis(tick));
                let old = self.keys.get(&name).and_then(Option::as_ref);
                let is_it = old.is_some_and(|old| {
                    old.token == Some(seen.get()) && matches!(old.is, Is::Success(_))
                });
                if is_it {
                    let (ask, value) = (self.ask(terms), self.keep(terms));
                    let how = End::Success { value, keep: None };
                    let mut new = None;
                    spec::call(&mut new, now, &Call::Record { ask, how }, Some(fresh));
                    self.changed.insert(name.clone(), tick);
                    self.keys.insert(name, new);
                } else {
                    reply.answer = Answer::Unchanged;
                }
                return Ok(reply);
            }
        }
        let slot = self.keys.entry(name.clone()).or_default();
        let is_over = |times: Option<(u64, u64)>| times.is_some_and(|(at, _)| at <= tick);
        if let Some(key) = slot.as_mut().filter(|key| is_over(key.gone_at)) {
            if key.memory.is_none() || is_over(key.memory) {
                *slot = None;
            } else {
                key.is = Is::Expired;
            }
        }
        if let Some(key) = slot {
            spec::settle(key, |(at, _)| at <= tick);
        }
        let shown_before = match spec::call(&mut slot.clone(), now, &Call::Get, None) {
            Told::State(shown) => shown,
            other => panic!("a look is answered {other:?}"),
        };
        let before = slot.clone();
        let changed = self.changed.entry(name).or_default();
        let told = match sight_of(&request.ask) {
            Some(sight) if !is_as_seen(slot.as_ref(), now, *changed, sight) => Told::No,
            _ => spec::call(slot, now, &call, Some(fresh)),
        };
        if spec::has_changed(&before, slot, now, &call, &told) {
            *changed = tick;
        }
        let phase = phase_shown(slot.as_ref(), now);
        let time = StoreMillis(*changed);
        let print = slot.as_ref().and_then(|key| key.print);
        // The guard by a ticket goes on with what is recorded.
        let is_attached = matches!(call, Call::Attach { .. }) && told == Told::Yes;
        let attached = slot.as_ref().filter(|_| is_attached).map(|key| spec::shown(key, now));
        let until = slot.as_ref().and_then(|key| key.memory).map(|(_, until)| until);
        if let Some(key) = slot {
            // One whose token was spent.
            key.token.get_or_insert(fresh + 1);
            key.life.get_or_insert(fresh);
        }
        let life = slot.as_ref().and_then(|key| key.life).unwrap_or_default();
        let question = if matches!(told, Told::Asked(_)) { self.questions } else { 0 };
        let mut reply = Reply::done(StoreMillis(tick));
        reply.question = question;
        let granted = shown_before.filter(|_| matches!(told, Told::Granted { .. }));
        reply.found = attached.or(granted).and_then(|shown| self.shown(shown, until));
        self.put(&mut reply, &call, told, (fresh, life), until);
        if let Some(found) = &mut reply.found {
            // Whatever the claimant is told, an operator sees the key as it is.
            let may_differ = matches!(
                reply.answer,
                Answer::Held | Answer::TooManyAttempts | Answer::Interrupted
            );
            if let Some(phase) = phase.filter(|_| may_differ) {
                found.state.phase = phase;
            }
            found.state.time = time;
            found.state.fingerprint =
                print.and_then(|print| self.prints.get(usize::from(print)).copied());
        }
        Ok(reply)
    }

    /// The namespace of that id, as a key.
    fn space(&self, id: Token) -> Option<Key<'static>> {
        self.keys.iter().find_map(|((kind, bytes), key)| {
            let is_it = key.as_ref().is_some_and(|key| key.token == Some(id.get()));
            let key = Key::from_stored(*kind, bytes).filter(|_| is_it)?;
            matches!(key.lies(), Lies::Names(_)).then(|| key.into_owned())
        })
    }

    /// Whether a key lies in a namespace that was dropped, or in one that lay in such a one.
    fn is_dropped(&self, key: &Key<'_>) -> bool {
        match key.lies() {
            Lies::InRoot | Lies::Names(None) => false,
            Lies::In(id) | Lies::Names(Some(id)) => {
                self.space(id).is_none_or(|space| self.is_dropped(&space))
            }
        }
    }

    /// Whether a key in the namespace of that name, or in one in it, is claimed.
    fn is_busy(&self, name: &Key<'_>) -> bool {
        let is_within = |key: &Key<'_>| {
            let mut key = key.clone().into_owned();
            while let Lies::In(id) | Lies::Names(Some(id)) = key.lies() {
                let Some(space) = self.space(id) else { return false };
                if space == *name {
                    return true;
                }
                key = space;
            }
            false
        };
        let now = Now { tick: self.now, store: (self.now, self.now) };
        self.keys.iter().any(|((kind, bytes), key)| {
            let mut key = key.clone();
            if let Some(key) = &mut key {
                spec::settle(key, |(at, _)| at <= now.tick);
            }
            let shown = spec::call(&mut key, now, &Call::Get, None);
            matches!(shown, Told::State(Some(Shown::Running(view))) if !view.is_being_decided)
                && Key::from_stored(*kind, bytes).is_some_and(|key| is_within(&key))
        })
    }

    /// Converts the call into one of `spec`.
    fn call(&mut self, call: backend::Call, terms: &Terms) -> Result<Call> {
        use backend::Call as Asked;
        let ask = self.ask(terms);
        let word =
            |word, seen: Token| Call::Word { word, seen: Some(seen.get()), ask, question: 0 };
        Ok(match call {
            Asked::Claim(wants) => {
                self.questions += 1;
                let hold = wants.on_interrupted.map(|wanted| wanted == OnInterrupted::Hold);
                let ask = Ask { hold, max: wants.attempts_max, ..ask };
                Call::Claim { ask, question: self.questions }
            }
            Asked::Record { .. } if outcome_of(terms).is_none() => Call::Mark { ask },
            Asked::Record { failure, .. } => {
                let (value, keep) = (self.keep(terms), None);
                let how = match failure {
                    true => End::Failure { value, keep },
                    false => End::Success { value, keep },
                };
                Call::Record { ask, how }
            }
            Asked::TakeOver(seen) => word(Word::TakeOver, seen),
            Asked::NotApplied(seen) => word(Word::NotApplied, seen),
            Asked::Hold(seen) => word(Word::Hold, seen),
            Asked::Complete(token) => {
                let how = End::Success { value: self.keep(terms), keep: None };
                Call::End { token: token.get(), how, ask }
            }
            Asked::Fail(token) => {
                let how = End::Failure { value: self.keep(terms), keep: None };
                Call::End { token: token.get(), how, ask }
            }
            Asked::Abort(token) => Call::End { token: token.get(), how: End::Nothing, ask },
            Asked::Withdraw(token) => Call::Withdraw { token: token.get(), ask },
            Asked::RenewQuestion(question) => {
                let lease = terms.lease_millis.ok_or_else(|| Error::invalid("no lease"))?;
                Call::RenewQuestion { question, lease }
            }
            Asked::DropQuestion(question) => Call::DropQuestion { question },
            Asked::Progress(token) => {
                let value = terms.details.as_ref().and_then(|details| details.progress.clone());
                let value = value.ok_or_else(|| Error::invalid("no progress"))?;
                Call::Progress { token: token.get(), value, ask }
            }
            Asked::BeginStep(token) => {
                let name = self.named(step_of(terms)?);
                Call::BeginStep { token: token.get(), name, input: ask.print }
            }
            Asked::Announce(token) => {
                let name = self.named(step_of(terms)?);
                Call::Announce { token: token.get(), name, input: ask.print, ask }
            }
            Asked::EndStep { token, .. } => {
                let (name, value) = (self.named(step_of(terms)?), self.keep(terms));
                Call::EndStep { token: token.get(), name, input: ask.print, value }
            }
            Asked::Detach(token) => {
                let lease = terms.lease_millis.ok_or_else(|| Error::invalid("no lease"))?;
                Call::Detach { token: token.get(), lease }
            }
            Asked::Attach(token) => Call::Attach { token: token.get() },
            Asked::Revoke(seen) => Call::Revoke { seen: Some(seen.get()) },
            Asked::Interrupt(token) => Call::Drop { token: token.get(), aborts: false, ask },
            Asked::Renew { token, .. } => {
                let lease = terms.lease_millis.ok_or_else(|| Error::invalid("no lease"))?;
                Call::Renew { token: token.get(), lease, ask }
            }
            Asked::ResolveComplete(sight) => {
                let how = End::Success { value: self.keep(terms), keep: terms.retention_millis };
                Call::Resolve { seen: token_of(sight), how }
            }
            Asked::ResolveFail(sight) => {
                let how = End::Failure { value: self.keep(terms), keep: terms.retention_millis };
                Call::Resolve { seen: token_of(sight), how }
            }
            Asked::ResolveRetry(sight) => {
                Call::Resolve { seen: token_of(sight), how: End::Nothing }
            }
            Asked::Forget | Asked::ForgetSeen(_) => Call::Forget,
            // Answered by `answer`.
            Asked::Replace(_) => Call::Get,
            Asked::ForgetClaimed(token) => Call::ForgetClaimed { token: token.get() },
            Asked::Park(token) => Call::Park { token: token.get() },
        })
    }

    /// The number that represents the name of a step.
    fn named(&mut self, name: &str) -> u8 {
        let known = self.names.iter().position(|known| known == name);
        let at = known.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        u8::try_from(at).expect("the model knows 256 names at most")
    }

    /// The reply to a look at a step.
    fn step(&self, key: &Key<'_>, life: Token, name: u8) -> Reply {
        let mut reply = Reply::done(StoreMillis(self.now));
        let slot = self.keys.get(&(key.kind(), key.bytes().to_vec())).and_then(Option::as_ref);
        let in_life = slot.filter(|key| key.life == Some(life.get()));
        if let Some((input, value)) = in_life.and_then(|key| key.steps.get(&name)) {
            let shown = Shown::Success { value: value.clone(), attempt: 1, token: None };
            reply.found = self.shown(shown, None).map(|mut view| {
                let print = |input| self.prints.get(usize::from(input)).copied();
                view.state.fingerprint = input.and_then(print);
                view
            });
        }
        reply
    }

    fn ask(&mut self, terms: &Terms) -> Ask {
        let level = terms.durability.unwrap_or(Durability::Sync);
        let print = terms.fingerprint.map(|given| {
            let known = self.prints.iter().position(|print| *print == given);
            let at = known.unwrap_or_else(|| {
                self.prints.push(given);
                self.prints.len() - 1
            });
            u8::try_from(at).expect("the model knows 256 fingerprints at most")
        });
        Ask {
            print,
            lease: terms.lease_millis,
            hold: Some(terms.hold),
            keep: terms.retention_millis,
            remember: terms.remember_millis,
            delay: terms.details.as_ref().and_then(|details| details.retry_millis),
            claim_level: level,
            level,
            ..PLAIN
        }
    }

    /// Keeps an outcome. Returns the bytes that represent it in `spec`.
    fn keep(&mut self, terms: &Terms) -> Vec<u8> {
        self.outcomes.extend(outcome_of(terms).cloned());
        self.outcomes.len().to_string().into_bytes()
    }

    /// Converts an answer of `spec` into a reply.
    fn put(
        &self,
        reply: &mut Reply,
        call: &Call,
        told: Told,
        (fresh, life): (u64, u64),
        until: Option<u64>,
    ) {
        let mut found = |phase, presence, view: &View| {
            reply.found = Some(self.view(phase, presence, view, None));
        };
        reply.answer = match told {
            Told::Granted { attempt } => {
                let token = Token::new(fresh);
                reply.claimed = Some(Claimed { token, life: Token::new(life), attempt });
                Answer::Granted
            }
            Told::First => Answer::Granted,
            // An answer that an interruption is to be held is a grant of the request.
            Told::Yes if matches!(call, Call::Word { .. }) => Answer::Granted,
            Told::Yes => Answer::Done,
            Told::No => Answer::Unchanged,
            Told::Busy => Answer::InProgress,
            Told::IsHeld => Answer::Held,
            Told::Lost => Answer::Lost,
            Told::OtherInput => Answer::OtherInput,
            Told::Again => Answer::Completed,
            Told::Asked(view) => {
                found(Phase::Claimed, Presence::Asked, &view);
                Answer::Asked
            }
            Told::InProgress(view) => {
                let is_decided = view.is_being_decided;
                let presence = if is_decided { Presence::Asked } else { Presence::Owner };
                found(Phase::Claimed, presence, &view);
                Answer::InProgress
            }
            Told::Delayed(view) => {
                found(Phase::Aborted, Presence::Nobody, &view);
                Answer::Delayed
            }
            Told::Held(view) => {
                found(Phase::Held, Presence::Nobody, &view);
                Answer::Held
            }
            Told::TooMany(view) => {
                found(Phase::Aborted, Presence::Nobody, &view);
                Answer::TooManyAttempts
            }
            Told::Unsure(view) => {
                found(Phase::Interrupted, Presence::Nobody, &view);
                Answer::Interrupted
            }
            Told::Recorded(shown) => {
                let is_failure = matches!(shown, Shown::Failure { .. });
                reply.found = self.shown(shown, until);
                if is_failure { Answer::Failed } else { Answer::Completed }
            }
            Told::Mismatch(shown) => {
                reply.found = self.shown(shown, until);
                Answer::Mismatch
            }
            Told::Expired => {
                reply.found = self.shown(Shown::Expired, until);
                Answer::Expired
            }
            Told::State(shown) => {
                reply.found = shown.and_then(|shown| self.shown(shown, until));
                Answer::Done
            }
            Told::Step { .. } => panic!("the calls of a step come one by one"),
            Told::Invalid | Told::Superseded => {
                panic!("a store refuses that before it asks a backend")
            }
        };
    }

    fn view(
        &self,
        phase: Phase,
        presence: Presence,
        view: &View,
        outcome: Option<Stored>,
    ) -> KeyView {
        let (now, token) = (StoreMillis(self.now), Token::new(view.token.unwrap_or_default()));
        let state = KeyState {
            phase,
            token,
            life: token,
            open_fate: None,
            attempt: view.attempt,
            forgiven: 0,
            since: now,
            time: now,
            expires_at: None,
            memory_until: None,
            remembers: false,
            wall_offset: 0,
            fingerprint: None,
            hold: view.hold,
            owner: None,
            reason: None,
            extras: Some(Arc::new(Extras {
                detached: view.left.filter(|_| view.is_detached).map(|left| Lease {
                    until: now.plus(left),
                    millis: left,
                    reserve: 0,
                }),
                retry_at: view.is_delayed.then(|| now.plus(1)),
                by: None,
                progress: view.progress.as_deref().map(Arc::from),
                before_lapse: None,
                announced: {
                    let name = |name: &u8| self.names.get(usize::from(*name));
                    view.open_steps
                        .iter()
                        .filter_map(name)
                        .map(|name| OpenStep { name: name.as_str().into(), input: None })
                        .collect()
                },
            })),
        };
        let lease_until = view.left.map(|left| now.plus(left));
        let asker =
            view.is_being_decided.then(|| Arc::new(Asker { question: 0, owner: None, since: now }));
        KeyView { state, presence, lease_until, asker, outcome }
    }

    fn shown(&self, shown: Shown, until: Option<u64>) -> Option<KeyView> {
        let plain = |attempt, token| plain(attempt, token, false);
        let outcome = |value: &[u8]| {
            let number: usize = String::from_utf8_lossy(value).parse().ok()?;
            self.outcomes.get(number.checked_sub(1)?).cloned()
        };
        let nobody = Presence::Nobody;
        Some(match shown {
            Shown::Running(view) => {
                let is_decided = view.is_being_decided;
                let presence = if is_decided { Presence::Asked } else { Presence::Owner };
                self.view(Phase::Claimed, presence, &view, None)
            }
            Shown::Interrupted(view) => self.view(Phase::Interrupted, nobody, &view, None),
            Shown::Held(view) => self.view(Phase::Held, nobody, &view, None),
            Shown::Aborted(view) => self.view(Phase::Aborted, nobody, &view, None),
            Shown::Success { value, attempt, token } => {
                self.view(Phase::Completed, nobody, &plain(attempt, token), outcome(&value))
            }
            Shown::Failure { value, attempt, token } => {
                self.view(Phase::Failed, nobody, &plain(attempt, token), outcome(&value))
            }
            Shown::Expired => {
                let mut view = self.view(Phase::Completed, nobody, &plain(1, None), None);
                view.state.expires_at = Some(StoreMillis(0));
                view.state.memory_until = until.map(StoreMillis);
                view.state.remembers = true;
                view
            }
        })
    }
}

fn outcome_of(terms: &Terms) -> Option<&Stored> {
    terms.details.as_ref().and_then(|details| details.outcome.as_ref())
}

fn step_of(terms: &Terms) -> Result<&str> {
    let step = terms.details.as_ref().and_then(|details| details.step.as_deref());
    step.ok_or_else(|| Error::invalid("no step"))
}

/// Whether a key is still as a caller saw it. `changed`: when it was changed last.
fn is_as_seen(key: Option<&spec::Key>, now: Now, changed: u64, sight: Sight) -> bool {
    let token = key.and_then(|key| key.token).map(Token::new);
    match (sight, phase_shown(key, now)) {
        (Sight::Record { token: seen, phase: as_phase, time }, Some(phase)) => {
            let is_same = token == Some(seen) && phase == as_phase;
            is_same && (phase == Phase::Claimed || time.0 == changed)
        }
        (Sight::Expired { until: seen }, None) => {
            let until = key.and_then(|key| key.memory).map(|(_, until)| StoreMillis(until));
            Some(seen) == until
        }
        _ => false,
    }
}

/// The state in which a key is shown; `None`: it is absent or expired.
fn phase_shown(key: Option<&spec::Key>, now: Now) -> Option<Phase> {
    let Told::State(shown) = spec::call(&mut key.cloned(), now, &Call::Get, None) else {
        return None;
    };
    match shown?.without_question() {
        Shown::Running(_) => Some(Phase::Claimed),
        Shown::Interrupted(_) => Some(Phase::Interrupted),
        Shown::Held(_) => Some(Phase::Held),
        Shown::Aborted(_) => Some(Phase::Aborted),
        Shown::Success { .. } => Some(Phase::Completed),
        Shown::Failure { .. } => Some(Phase::Failed),
        Shown::Expired => None,
    }
}

/// What the caller of a request saw, if it says so.
fn sight_of(ask: &backend::Ask) -> Option<Sight> {
    use backend::Call as Asked;
    match ask {
        backend::Ask::Call(
            Asked::ForgetSeen(sight)
            | Asked::ResolveComplete(sight)
            | Asked::ResolveFail(sight)
            | Asked::ResolveRetry(sight),
            _,
        ) => Some(*sight),
        _ => None,
    }
}

fn token_of(sight: Sight) -> Option<u64> {
    match sight {
        Sight::Record { token, .. } => Some(token.get()),
        Sight::Expired { .. } => None,
    }
}

/// An attempt of which nothing else is to be shown.
fn plain(attempt: u32, token: Option<u64>, hold: bool) -> View {
    View {
        attempt,
        token,
        hold,
        left: None,
        is_detached: false,
        progress: None,
        open_steps: Vec::new(),
        is_being_decided: false,
        is_delayed: false,
    }
}
