//! What the handles of one store share: the engine in this process, or another backend, such as a store that another process hosts.
//! After a reopening, calls are made on the next open ([`Shared::current`]).
//!
//! Promises: an embedded store pays nothing for other backends, neither a copy nor an indirect call.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::desk::Desk;
use super::sent::{Owned, SentCall};
use super::sent_batch::SentElsewhere;
use super::sent_batch::{ManyUnderway, SentBatch};
use super::space::SentAfter;
use super::space::{Entering, Space, SpaceKnown};
use super::{Ask, Backend, Reply, Request, Sent};
use super::{Embedded, Terms};
use crate::clock::nanos;
use crate::engine::Waits;
use crate::engine::{Alarm, Applied, Asks, Engine, Named, Seen, Writing};
use crate::operation::{Keeping, Key};
use crate::protocol::{Call, KeyState};
use crate::protocol::{Conditions, Presence};
use crate::sync;
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::types::{KeyHash, Lsn, Secret, StoreMillis, Token};
use crate::{Error, Result};

/// A claim that was in flight when the store closed.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// The key.
    pub key: Key<'static>,
    /// The state that the close leaves it in: interrupted, or still claimed if that could not be recorded.
    pub state: KeyState,
    /// Store time at the close.
    pub now: StoreMillis,
}

/// What the handles of one store share. It is dropped with the last handle or guard, and then closes the store.
pub(crate) enum Shared {
    /// Inline, so that a call costs no more than one on the engine.
    Embedded(Embedded),
    Other(Elsewhere),
}

/// Another backend, and what the handles need in addition.
pub(crate) struct Elsewhere {
    backend: Box<dyn Backend>,
    /// The calls that a thread of the store wakes at a time. `None`: there were none yet.
    timers: Mutex<Option<Arc<Waits>>>,
    is_over: Arc<AtomicBool>,
}

impl Elsewhere {
    pub(crate) fn new(backend: Box<dyn Backend>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        Elsewhere { backend, timers: Mutex::new(None), is_over }
    }

    /// The timers, for which a thread is started when they are first needed.
    fn timers(&self) -> Result<Arc<Waits>> {
        let mut timers = self.timers.lock();
        if let Some(timers) = &*timers {
            return Ok(Arc::clone(timers));
        }
        let (new, is_over) = (Waits::new(), Arc::clone(&self.is_over));
        let theirs = Arc::clone(&new);
        let body = move || theirs.run_timers(&nanos, &|| is_over.load(Ordering::SeqCst));
        let started = sync::spawn("onlyonce-time", body);
        started.map_err(|e| {
            let message = format!("starting the thread that keeps the time of a store: {e}");
            Error::new(crate::ErrorKind::Io, message).because(e)
        })?;
        *timers = Some(Arc::clone(&new));
        Ok(new)
    }
}

impl std::ops::Deref for Elsewhere {
    type Target = dyn Backend;

    fn deref(&self) -> &(dyn Backend + 'static) {
        &*self.backend
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(timers) = &*self.timers.lock() {
            timers.tell_all();
        }
    }
}

impl Shared {
    /// An alarm, by the clock of [`nanos`](Self::nanos).
    pub(crate) fn alarm(&self) -> Result<Alarm> {
        Ok(match self.current() {
            Shared::Embedded(embedded) => Alarm::new(&embedded.waits),
            Shared::Other(backend) => Alarm::new(&backend.timers()?),
        })
    }

    /// Whether that alarm belongs to the open on which calls are made now.
    pub(crate) fn times(&self, alarm: &Alarm) -> bool {
        match self.current() {
            Shared::Embedded(embedded) => alarm.is_of(&embedded.waits),
            Shared::Other(_) => true,
        }
    }

    /// A clock for durations, in nanoseconds.
    pub(crate) fn nanos(&self) -> u64 {
        match self.current() {
            Shared::Embedded(embedded) => embedded.nanos(),
            Shared::Other(_) => nanos(),
        }
    }

    /// Makes sure that a thread runs that lets alarms go off.
    pub(crate) fn keep_time(&self) {
        match self.current() {
            Shared::Embedded(embedded) => embedded.keep_time(),
            // Its thread runs since the first alarm.
            Shared::Other(_) => {}
        }
    }

    /// Store time.
    pub(crate) fn now(&self) -> StoreMillis {
        match self.current() {
            Shared::Embedded(embedded) => embedded.log.now(),
            Shared::Other(_) => StoreMillis(0),
        }
    }

    /// How far the log is written: up to here it survives if this process is killed.
    pub(crate) fn written(&self) -> Option<Lsn> {
        match self.current() {
            Shared::Embedded(embedded) => Some(embedded.log.written()),
            Shared::Other(_) => None,
        }
    }

    /// The open on which calls are made now: after a reopening, the next one.
    #[inline]
    pub(crate) fn current(&self) -> &Shared {
        match self {
            Shared::Embedded(embedded) => match embedded.successor() {
                None => self,
                Some(successor) => successor.current(),
            },
            Shared::Other(_) => self,
        }
    }

    /// The same, for calls that are waited for later.
    pub(crate) fn current_arc(self: &Arc<Self>) -> &Arc<Self> {
        match &**self {
            Shared::Embedded(embedded) => match embedded.successor() {
                None => self,
                Some(successor) => successor.current_arc(),
            },
            Shared::Other(_) => self,
        }
    }

    /// See [`Store::reopen`](crate::Store::reopen).
    pub(crate) fn reopen(&self) -> Result<()> {
        match self.current() {
            Shared::Embedded(embedded) => embedded.reopen(),
            Shared::Other(backend) => backend.reopen(),
        }
    }

    /// The engine of this process, for calls that concern no key.
    pub(crate) fn embedded(&self) -> Result<&Embedded> {
        self.current().begun_on()
    }

    /// The engine of this process on which a call was begun, whether it was reopened since or not.
    pub(crate) fn begun_on(&self) -> Result<&Embedded> {
        match self {
            Shared::Embedded(embedded) => Ok(embedded),
            Shared::Other(_) => {
                let message =
                    "this store is answered by another backend, which this call has to be made on";
                Err(Error::invalid(message))
            }
        }
    }

    pub(crate) fn is_embedded(&self) -> bool {
        matches!(self, Shared::Embedded(_))
    }

    /// An invariant of ours doesn't hold: from now on nothing is written. If another backend answers, its reply breaks the
    /// rules, and only the call fails.
    #[cold]
    pub(crate) fn bug(&self, what: impl fmt::Display) -> Error {
        match self.current() {
            Shared::Embedded(embedded) => embedded.log.bug(what),
            Shared::Other(_) => {
                let message = format!(
                    "{what}: this is a bug of onlyonce or of the backend that answers, please report it"
                );
                Error::new(crate::ErrorKind::Bug, message)
            }
        }
    }

    pub(crate) fn result_bytes_max(&self) -> u32 {
        match self {
            Shared::Embedded(embedded) => embedded.result_bytes_max,
            Shared::Other(backend) => backend.result_bytes_max(),
        }
    }

    /// The store's secret, from which tickets and downstream keys are made.
    pub(crate) fn secret(&self) -> Secret {
        Secret(match self {
            Shared::Embedded(embedded) => embedded.secret,
            Shared::Other(backend) => backend.secret(),
        })
    }

    /// How long an outcome may be, and from where on it is compressed. Another backend compresses by itself, if at all.
    pub(crate) fn keeping(&self) -> Keeping {
        let compress_over = match self {
            Shared::Embedded(embedded) => embedded.compress_over,
            Shared::Other(_) => None,
        };
        Keeping { result_bytes_max: self.result_bytes_max(), compress_over }
    }

    /// The hash by which the engine finds a key; other backends have none.
    pub(crate) fn hash(&self, key: &Key<'_>) -> KeyHash {
        match self {
            Shared::Embedded(embedded) => embedded.hash(key),
            Shared::Other(_) => KeyHash { high: 0, low: 0 },
        }
    }

    /// Does one call on one key, and waits until its answer is durable.
    pub(crate) fn apply(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        writing: &Writing<'_>,
    ) -> Result<Applied> {
        match self.current() {
            Shared::Embedded(embedded) => embedded.apply(key, hash, call, writing),
            Shared::Other(backend) => {
                let request = Request::of(key, call, writing);
                backend.send(request).wait().map(Reply::into_applied)
            }
        }
    }

    /// Returns the state found of a key.
    pub(crate) fn look(&self, key: &Key<'_>, hash: KeyHash) -> Result<Option<Seen>> {
        match self.current() {
            Shared::Embedded(embedded) => embedded.look(key, hash),
            Shared::Other(backend) => {
                let request = Request { key: key.to_static(), ask: Ask::Look };
                backend.send(request).wait().map(Reply::into_seen)
            }
        }
    }

    /// Whether the claim of that token is its owner's. An engine knows that without a read: a live claim is in memory.
    pub(crate) fn is_live(&self, key: &Key<'_>, hash: KeyHash, token: Token) -> bool {
        match self.current() {
            Shared::Embedded(embedded) => {
                match embedded.enter() {
                    Ok(_inside) => embedded.is_live(key, hash, token).is_some(),
                    Err(_) if embedded.log.gate().is_passed_on() => {
                        embedded.await_reopening();
                        // A closed store has no live claim.
                        embedded.successor().is_some_and(|next| next.is_live(key, hash, token))
                    }
                    Err(_) => false,
                }
            }
            Shared::Other(_) => {
                let seen = self.look(key, hash).ok().flatten();
                seen.is_some_and(|seen| {
                    seen.presence == Presence::Owner && seen.state.token == token
                })
            }
        }
    }

    /// Returns what is recorded of a step of a claim on a key in that life, if the step has ended.
    pub(crate) fn look_at_step(
        &self,
        key: &Key<'_>,
        life: Token,
        name: &str,
    ) -> Result<Option<Seen>> {
        match self.current() {
            Shared::Embedded(embedded) => {
                let step = Key::of_step(key, life, name);
                embedded.look(&step, embedded.hash(&step))
            }
            Shared::Other(backend) => {
                let ask = Ask::Step { life, name: name.to_owned() };
                let request = Request { key: key.to_static(), ask };
                backend.send(request).wait().map(Reply::into_seen)
            }
        }
    }

    /// Returns the namespace of that name, in the one of the given id or in none.
    pub(crate) fn named(&self, parent: Option<Token>, name: &str) -> Result<Option<Named>> {
        match self.current() {
            Shared::Embedded(embedded) => embedded.named(parent, name),
            Shared::Other(_) => {
                let key = Key::of_space(parent, name);
                let seen = self.look(&key, self.hash(&key))?;
                Ok(seen.as_ref().and_then(Named::of_seen))
            }
        }
    }

    /// What is known of a namespace without I/O and without waiting. `makes`: it is wanted in any case. Of another backend nothing
    /// is known.
    pub(crate) fn known(&self, space: &Space, makes: bool) -> Result<SpaceKnown> {
        match self.current() {
            Shared::Embedded(embedded) => space.known(embedded, makes),
            Shared::Other(_) => Ok(SpaceKnown::Unknown),
        }
    }

    /// Begins to drop a namespace.
    pub(crate) fn send_forget_space(self: &Arc<Self>, space: &Arc<Space>) -> ForgettingSpace {
        let space = Arc::clone(space);
        let this = self.current_arc();
        match &**this {
            Shared::Embedded(embedded) => {
                let work = move |engine: &Engine| space.forget(engine);
                ForgettingSpace::Embedded(EngineErrand::begin(this, embedded, work))
            }
            Shared::Other(_) => {
                let work = move |shared: &Shared| space.forget(shared);
                ForgettingSpace::Other(Errand::run(this, "onlyonce-forget", work))
            }
        }
    }

    /// Begins one call on one key. `patience`: how long a claim waits for its key, in milliseconds. `entering`: the key's namespace,
    /// unless it is known.
    pub(crate) fn send(
        self: &Arc<Self>,
        key: &Key<'_>,
        call: Call,
        writing: &Writing<'_>,
        patience: Option<u64>,
        entering: Option<Entering>,
    ) -> Underway {
        let terms = Box::new(Terms { wait_millis: patience, ..Terms::of(writing) });
        let key = key.to_static();
        let this = self.current_arc();
        match &**this {
            Shared::Embedded(embedded) => {
                let sent = SentCall::send(this, embedded, key, call, terms, entering);
                Underway::Embedded(sent)
            }
            Shared::Other(backend) => {
                let request = Request { key, ask: Ask::Call(call, terms) };
                this.send_after(&**backend, entering, request)
            }
        }
    }

    fn send_after(
        self: &Arc<Self>,
        backend: &dyn Backend,
        entering: Option<Entering>,
        request: Request,
    ) -> Underway {
        let Some(entering) = entering else { return Underway::Other(backend.send(request)) };
        SentAfter::send(self, backend, entering, request)
            .map_or_else(Underway::Refused, Underway::Other)
    }

    /// Begins calls that are made in their order, and waited for together. `entering`: the namespace of those of them that lie
    /// nowhere.
    pub(crate) fn send_many<'i, A: Asks + 'i>(
        self: &Arc<Self>,
        items: impl Iterator<Item = &'i A>,
        entering: Option<Entering>,
    ) -> ManyUnderway {
        let this = self.current_arc();
        match &**this {
            Shared::Embedded(embedded) => {
                let owned = |key: &Key<'_>, call, writing: &Writing<'_>| Owned {
                    key: key.to_static(),
                    call,
                    terms: Box::new(Terms::of(writing)),
                };
                let calls = items.map(|item| item.ask(owned)).collect();
                ManyUnderway::Embedded(SentBatch::send(this, embedded, calls, entering))
            }
            Shared::Other(backend) => {
                let calls = items.map(|item| item.ask(Request::of)).collect();
                ManyUnderway::Other(SentElsewhere::send(this, &**backend, calls, entering))
            }
        }
    }

    /// The other backend.
    pub(super) fn other(&self) -> Result<&dyn Backend> {
        match self {
            Shared::Other(backend) => Ok(&**backend),
            Shared::Embedded(_) => Err(self.bug("an embedded store was taken for another backend")),
        }
    }

    /// Begins to wait until everything acknowledged so far is durable.
    pub(crate) fn send_sync(self: &Arc<Self>) -> Syncing {
        let this = self.current_arc();
        match &**this {
            Shared::Embedded(embedded) => Syncing::Embedded(SentCall::sync(this, embedded)),
            Shared::Other(_) => Syncing::Other(Errand::run(this, "onlyonce-sync", Shared::sync)),
        }
    }

    /// Begins to close the store.
    pub(crate) fn send_close(self: &Arc<Self>, deadline: Duration) -> Errand<Vec<InFlight>> {
        Errand::run(self, "onlyonce-close", move |shared| shared.close(deadline))
    }

    /// Begins a read of a key's state. `entering`: the key's namespace, unless it is known.
    pub(crate) fn send_look(
        self: &Arc<Self>,
        key: &Key<'_>,
        entering: Option<Entering>,
    ) -> Underway {
        let key = key.to_static();
        let this = self.current_arc();
        match &**this {
            Shared::Embedded(embedded) => {
                Underway::Embedded(SentCall::look(this, embedded, key, entering))
            }
            Shared::Other(backend) => {
                this.send_after(&**backend, entering, Request { key, ask: Ask::Look })
            }
        }
    }

    /// Begins to read a step, as [`look_at_step`](Self::look_at_step).
    pub(crate) fn send_look_at_step(
        self: &Arc<Self>,
        key: &Key<'_>,
        life: Token,
        name: &str,
    ) -> Underway {
        let this = self.current_arc();
        match &**this {
            Shared::Embedded(embedded) => {
                let step = Key::of_step(key, life, name);
                Underway::Embedded(SentCall::look(this, embedded, step, None))
            }
            Shared::Other(backend) => {
                let ask = Ask::Step { life, name: name.to_owned() };
                Underway::Other(backend.send(Request { key: key.to_static(), ask }))
            }
        }
    }

    /// Begins to wait until the claim of that token is no longer live.
    pub(crate) fn send_watch(self: &Arc<Self>, key: &Key<'_>, token: Token) -> Underway {
        let key = key.to_static();
        let this = self.current_arc();
        match &**this {
            Shared::Embedded(embedded) => {
                Underway::Embedded(SentCall::watch(this, embedded, key, token))
            }
            Shared::Other(backend) => {
                Underway::Other(backend.send(Request { key, ask: Ask::Ended(token) }))
            }
        }
    }

    /// Makes the call that ends a claim whose guard was dropped. Doesn't wait.
    pub(crate) fn let_go(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        reason: &str,
        writing: &Writing<'_>,
    ) {
        match self.current() {
            Shared::Embedded(embedded) => embedded.leave(key, hash, call, reason, writing),
            Shared::Other(backend) => {
                let conditions = Conditions { reason: Some(reason), ..writing.conditions };
                let writing = Writing { conditions, ..*writing };
                drop(backend.send(Request::of(key, call, &writing)));
            }
        }
    }

    /// Ends a question without an answer. Doesn't wait.
    pub(crate) fn unask(&self, key: &Key<'_>, hash: KeyHash, question: u64) {
        match self.current() {
            Shared::Embedded(embedded) => embedded.unask(key, hash, question),
            Shared::Other(backend) => {
                let call = Call::DropQuestion(question);
                drop(backend.send(Request::of(key, call, &Writing::default())));
            }
        }
    }

    /// See [`Store::close`](crate::Store::close).
    pub(crate) fn close(&self, deadline: Duration) -> Result<Vec<InFlight>> {
        match self.current() {
            Shared::Embedded(embedded) => {
                if embedded.is_foreign() {
                    return Err(embedded.log.forked());
                }
                // Limited to a `u64`: what is longer is for ever.
                let millis = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                let now = embedded.log.now();
                let mut closed = embedded.close(Some(millis));
                if closed.is_err() && embedded.log.gate().is_passed_on() {
                    embedded.await_reopening();
                    match embedded.successor() {
                        Some(next) => return next.close(deadline),
                        None => closed = embedded.close(Some(millis)),
                    }
                }
                let left = closed?;
                Ok(left.into_iter().map(|(key, state)| InFlight { key, state, now }).collect())
            }
            Shared::Other(backend) => backend.close(deadline),
        }
    }

    /// See [`Store::sync`](crate::Store::sync).
    pub(crate) fn sync(&self) -> Result<()> {
        match self.current() {
            Shared::Embedded(embedded) => {
                let _inside = embedded.enter()?;
                if embedded.log.is_poisoned() {
                    return Err(embedded.log.poisoned());
                }
                embedded.log.sync()
            }
            Shared::Other(backend) => backend.sync(),
        }
    }

    /// See [`Store::drain`](crate::Store::drain).
    pub(crate) fn drain(&self) {
        match self.current() {
            Shared::Embedded(embedded) => {
                embedded.drain();
                // It may have been reopened before it was told.
                if let Some(next) = embedded.successor() {
                    next.drain();
                }
            }
            Shared::Other(backend) => backend.drain(),
        }
    }
}

/// A call on the whole store, which waits in a thread of its own. Without a thread to be had, the caller waits.
pub(crate) struct Errand<T>(Arc<Desk<Result<T>>>);

impl<T: Send + 'static> Errand<T> {
    pub(crate) fn run(
        shared: &Arc<Shared>,
        name: &str,
        body: impl FnOnce(&Shared) -> Result<T> + Clone + Send + 'static,
    ) -> Self {
        let desk = Desk::new();
        let (theirs, their_shared) = (Arc::clone(&desk), Arc::clone(shared));
        let their_body = body.clone();
        let work = move || {
            // A panic is the caller's, which doesn't run this.
            let told = catch_unwind(AssertUnwindSafe(|| their_body(&their_shared)));
            let told =
                told.unwrap_or_else(|_| Err(their_shared.bug("a call on the store panicked")));
            drop(their_shared);
            // Dropped if nobody waits for it any more.
            let _ = theirs.put(told);
        };
        if sync::spawn(name, work).is_err() {
            let _ = desk.put(body(shared));
        }
        Errand(desk)
    }

    pub(crate) fn wait(self) -> Result<T> {
        self.0.wait()
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<T>> {
        loop {
            if let Some(told) = self.0.take() {
                return Poll::Ready(told);
            }
            if self.0.set_waker(context.waker()) {
                return Poll::Pending;
            }
        }
    }
}

/// A sync that was begun, on whichever backend.
pub(crate) enum Syncing {
    Embedded(SentCall),
    Other(Errand<()>),
}

impl Syncing {
    pub(crate) fn wait(self) -> Result<()> {
        match self {
            Syncing::Embedded(sent) => SentCall::wait(sent).map(|_done| ()),
            Syncing::Other(errand) => errand.wait(),
        }
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        match self {
            Syncing::Embedded(sent) => {
                SentCall::poll(sent, context).map(|told| told.map(|_done| ()))
            }
            Syncing::Other(errand) => errand.poll(context),
        }
    }
}

/// Work on the engine by the thread of calls. Without threads, the caller does the work when it waits or first polls.
pub(crate) struct EngineErrand<T> {
    shared: Arc<Shared>,
    stage: ErrandStage<T>,
}

type EngineWork<T> = Box<dyn FnOnce(&Engine) -> Result<T> + Send>;

enum ErrandStage<T> {
    Unbegun(EngineWork<T>),
    Working(Arc<Desk<Result<T>>>),
}

impl<T: Send + 'static> EngineErrand<T> {
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        engine: &Embedded,
        work: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Self {
        let stage = ErrandStage::Unbegun(Box::new(work));
        let mut errand = EngineErrand { shared: Arc::clone(shared), stage };
        if engine.has_threads() {
            errand.hand_over(engine);
        }
        errand
    }

    /// Returns where the result will lie.
    fn hand_over(&mut self, engine: &Embedded) -> Arc<Desk<Result<T>>> {
        let desk = match &self.stage {
            ErrandStage::Working(desk) => return Arc::clone(desk),
            ErrandStage::Unbegun(_) => Desk::new(),
        };
        let working = ErrandStage::Working(Arc::clone(&desk));
        if let ErrandStage::Unbegun(work) = std::mem::replace(&mut self.stage, working) {
            let desk = Arc::clone(&desk);
            engine.do_job(Box::new(move |engine| {
                // A panic is the caller's, which doesn't run this.
                let told = catch_unwind(AssertUnwindSafe(|| work(engine)));
                let panicked = |_| Err(engine.log.bug("a call panicked"));
                // Dropped if nobody waits for it any more.
                let _ = desk.put(told.unwrap_or_else(panicked));
            }));
        }
        desk
    }

    pub(crate) fn wait(mut self) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        let engine = shared.begun_on()?;
        if engine.is_foreign() {
            // The thread that does it is the parent's. Returns why a fork may do nothing.
            engine.enter().map(drop)?;
        }
        self.hand_over(engine).wait()
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<T>> {
        let shared = Arc::clone(&self.shared);
        let engine = match shared.begun_on() {
            Ok(engine) => engine,
            Err(e) => return Poll::Ready(Err(e)),
        };
        if engine.is_foreign() {
            if let Err(e) = engine.enter().map(drop) {
                return Poll::Ready(Err(e));
            }
        }
        let desk = self.hand_over(engine);
        loop {
            if let Some(told) = desk.take() {
                return Poll::Ready(told);
            }
            if desk.set_waker(context.waker()) {
                return Poll::Pending;
            }
        }
    }
}

/// A drop of a namespace that was begun, on whichever backend.
pub(crate) enum ForgettingSpace {
    Embedded(EngineErrand<bool>),
    Other(Errand<bool>),
}

impl ForgettingSpace {
    pub(crate) fn wait(self) -> Result<bool> {
        match self {
            ForgettingSpace::Embedded(errand) => errand.wait(),
            ForgettingSpace::Other(errand) => errand.wait(),
        }
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<bool>> {
        match self {
            ForgettingSpace::Embedded(errand) => errand.poll(context),
            ForgettingSpace::Other(errand) => errand.poll(context),
        }
    }
}

/// A call that was begun, on whichever backend.
pub(crate) enum Underway {
    Embedded(SentCall),
    Other(Box<dyn Sent>),
    /// It was not made.
    Refused(Error),
}

impl Underway {
    /// Waits for the answer.
    pub(crate) fn wait(self) -> Result<Applied> {
        match self {
            Underway::Embedded(sent) => SentCall::wait(sent),
            Underway::Other(sent) => sent.wait().map(Reply::into_applied),
            Underway::Refused(e) => Err(e),
        }
    }

    /// Returns the answer once it is there.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Applied>> {
        match self {
            Underway::Embedded(sent) => SentCall::poll(sent, context),
            Underway::Other(sent) => sent.poll(context).map(|told| told.map(Reply::into_applied)),
            Underway::Refused(e) => Poll::Ready(Err(e.again())),
        }
    }
}
