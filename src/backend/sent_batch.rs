//! Many calls that are sent together, and waited for together: one write and one sync for all of them.
//!
//! Promises: the calls are decided in their order; polling does no I/O and doesn't wait, where the store has threads; dropped,
//! the batch goes on, and what its calls were granted is released.

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use super::desk::{Desk, Seat};
use super::sent::{LastCall, Owned};
use super::space::SearchElsewhere;
use super::space::moved;
use super::{Ask, Backend, Reply, Request, Sent};
use super::{Embedded, Entering, NOWHERE, Shared};
use crate::engine::Writing;
use crate::engine::{Applied, Asks, Engine, Inside, PlacedBatch, PlacedFate, outlived};
use crate::limits;
use crate::operation::Key;
use crate::operation::{Durability, Lies};
use crate::protocol::{Answer, Call, Conditions};
use crate::types::KeyHash;
use crate::types::Token;
use crate::{Error, Result};

/// The answers to the calls, in their order.
type ManyAnswers = Vec<Result<Applied>>;

/// Calls on the embedded engine, and their progress. They count as one handle of their store.
pub(crate) struct SentBatch {
    shared: Arc<Shared>,
    way: BatchWay,
}

enum BatchWay {
    /// What is in flight is bounded: beyond that, calls are placed when they are waited for. So are those whose namespace has to
    /// be found or made first, where no other thread does that.
    Unsent(Vec<Owned>, Option<Entering>),
    /// Another thread places them.
    Working(Arc<Desk<BatchWay>>),
    Placed(PlacedCalls, Option<Arc<Seat>>),
    Failed(Error),
    Over,
}

/// Calls whose records are placed.
struct PlacedCalls {
    calls: Vec<PlacedCall>,
    batch: PlacedBatch,
}

/// An error: it was not made.
type PlacedCall = Result<(Owned, KeyHash, Result<Applied>)>;

impl SentBatch {
    /// Begins the calls. Does no I/O and doesn't wait. `entering`: the namespace of those that lie [`NOWHERE`].
    pub(super) fn send(
        shared: &Arc<Shared>,
        engine: &Embedded,
        calls: Vec<Owned>,
        entering: Option<Entering>,
    ) -> Self {
        let may_wait = entering.is_none() || engine.has_threads();
        let way = match may_wait && engine.log.buffered() < limits::IN_FLIGHT_BYTES_MAX {
            true => placed_by_another(engine, calls, entering),
            false => BatchWay::Unsent(calls, entering),
        };
        SentBatch { shared: Arc::clone(shared), way }
    }

    pub(super) fn wait(mut self) -> Result<ManyAnswers> {
        let shared = Arc::clone(&self.shared);
        let engine = shared.begun_on()?;
        if engine.is_foreign() {
            return Err(engine.log.forked());
        }
        loop {
            self.way = match std::mem::replace(&mut self.way, BatchWay::Over) {
                BatchWay::Unsent(calls, entering) => place(engine, calls, entering.as_ref()),
                BatchWay::Working(desk) => desk.wait(),
                BatchWay::Placed(placed, seat) => {
                    let needs = engine.needs_of_batch(&placed.batch);
                    if !engine.are_met(needs) && !engine.log.is_poisoned() {
                        engine.provide_inside(needs);
                    }
                    match told(engine, placed) {
                        ControlFlow::Break(told) => return told,
                        ControlFlow::Continue(placed) => BatchWay::Placed(placed, seat),
                    }
                }
                BatchWay::Failed(e) => return Err(e),
                BatchWay::Over => return Err(asked_twice(engine)),
            };
        }
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<ManyAnswers>> {
        let shared = Arc::clone(&self.shared);
        let engine = match shared.begun_on() {
            Ok(engine) => engine,
            Err(e) => return Poll::Ready(Err(e)),
        };
        if engine.is_foreign() {
            return Poll::Ready(Err(engine.log.forked()));
        }
        loop {
            self.way = match std::mem::replace(&mut self.way, BatchWay::Over) {
                BatchWay::Unsent(calls, entering) => placed_by_another(engine, calls, entering),
                BatchWay::Working(desk) => match desk.take() {
                    Some(way) => way,
                    None => {
                        let is_set = desk.set_waker(context.waker());
                        self.way = BatchWay::Working(desk);
                        if is_set {
                            return Poll::Pending;
                        }
                        continue;
                    }
                },
                BatchWay::Placed(placed, mut seat) => match told(engine, placed) {
                    ControlFlow::Break(told) => return Poll::Ready(told),
                    ControlFlow::Continue(placed) => {
                        let needs = engine.needs_of_batch(&placed.batch);
                        engine.commit_for(needs, &mut seat, context.waker());
                        self.way = BatchWay::Placed(placed, seat);
                        return Poll::Pending;
                    }
                },
                BatchWay::Failed(e) => return Poll::Ready(Err(e)),
                BatchWay::Over => return Poll::Ready(Err(asked_twice(engine))),
            };
        }
    }
}

fn asked_twice(engine: &Engine) -> Error {
    engine.log.bug("a batch was asked for its answers twice")
}

/// The answers, if the disk has what they need; otherwise the calls are returned.
fn told(engine: &Engine, placed: PlacedCalls) -> ControlFlow<Result<ManyAnswers>, PlacedCalls> {
    let needs = engine.needs_of_batch(&placed.batch);
    let needs = || (!engine.are_met(needs)).then_some(needs);
    let e = match engine.fate_of_placed(needs, true) {
        PlacedFate::Met => return ControlFlow::Break(Ok(answers(engine, placed))),
        PlacedFate::Unmet(_) => return ControlFlow::Continue(placed),
        PlacedFate::Lost(e) => e,
    };
    for (call, hash, applied) in placed.calls.iter().flatten() {
        if let Ok(applied) = applied {
            engine.take_back_outside(&call.key, *hash, call.call, applied);
        }
    }
    ControlFlow::Break(Err(e))
}

/// The answers, once the disk has what they need.
fn answers(engine: &Engine, placed: PlacedCalls) -> ManyAnswers {
    let closed = engine.enter().err();
    let answer = |call: Result<(Owned, KeyHash, Result<Applied>)>| {
        let (call, _, applied) = call?;
        match (&closed, applied?) {
            (Some(e), applied) if !applied.lasts(call.call) => Err(outlived(e.again())),
            (_, applied) => Ok(applied),
        }
    };
    placed.calls.into_iter().map(answer).collect()
}

/// Has the thread of calls place them, if there is one.
fn placed_by_another(engine: &Embedded, calls: Vec<Owned>, entering: Option<Entering>) -> BatchWay {
    let desk = Desk::new();
    let way = BatchWay::Working(Arc::clone(&desk));
    engine.do_job(Box::new(move |engine| {
        // A panic is the caller's, which doesn't run this: it is told of a bug, and the thread goes on.
        let placed = catch_unwind(AssertUnwindSafe(|| place(engine, calls, entering.as_ref())));
        let placed = placed
            .unwrap_or_else(|_| BatchWay::Failed(engine.log.bug("a batch of calls panicked")));
        if let Some(placed) = desk.put(placed) {
            release(placed, |last, hash| last.make(engine, hash));
        }
    }));
    way
}

fn place(engine: &Engine, calls: Vec<Owned>, entering: Option<&Entering>) -> BatchWay {
    let entered = entering.map(|entering| entering.find(engine));
    let inside = match engine.enter() {
        Ok(inside) => inside,
        Err(e) => return BatchWay::Failed(e),
    };
    if engine.log.is_poisoned() {
        return BatchWay::Failed(engine.log.poisoned());
    }
    let mut placed = Vec::with_capacity(calls.len());
    let in_its_space = |owned: Owned| match &entered {
        Some(found) if owned.key.lies() == Lies::In(NOWHERE) => {
            let found = found.as_ref().map_err(Error::again)?;
            Ok(Owned { key: moved(&owned.key, *found), ..owned })
        }
        _ => Ok(owned),
    };
    let calls = calls.into_iter().map(in_its_space);
    let batch = place_all(engine, &inside, calls, |call| placed.push(call));
    engine.log.wake_upkeep();
    BatchWay::Placed(PlacedCalls { calls: placed, batch }, None)
}

/// Places calls in their order, and waits for space and reads where they need that. Calls `each` with every one and its answer,
/// which isn't to be shown before the batch is settled; an item that is an error stays one.
pub(crate) fn place_all<A: Asks>(
    engine: &Engine,
    inside: &Inside<'_>,
    mut items: impl Iterator<Item = Result<A>>,
    mut each: impl FnMut(Result<(A, KeyHash, Result<Applied>)>),
) -> PlacedBatch {
    let mut batch = PlacedBatch::default();
    loop {
        let hashed = |item: A| {
            let hash = item.ask(|key, _, _| engine.hash(key));
            (item, hash)
        };
        let ahead = items.by_ref().take(limits::LOOK_AHEAD_KEYS);
        let next: Vec<_> = ahead.map(|item| item.map(hashed)).collect();
        if next.is_empty() {
            return batch;
        }
        if let Err(e) = engine.log.may_go_on() {
            // Closed or poisoned half-way: the records placed before are in flight, or their fate is unknown.
            let refused = |(item, hash)| (item, hash, Err(e.again()));
            next.into_iter().for_each(|item| each(item.map(refused)));
            continue;
        }
        let hashes: Vec<_> = next.iter().flatten().map(|(_, hash)| *hash).collect();
        engine.look_ahead(&hashes);
        for item in next {
            each(item.map(|(item, hash)| {
                let applied = item.ask(|key, call, writing| {
                    let done = engine.place(inside, key, hash, call, writing)?;
                    batch.add(&done, writing.level.unwrap_or(Durability::Sync));
                    Ok(done.into_applied())
                });
                (item, hash, applied)
            }));
        }
    }
}

/// Releases what the calls of a batch that nobody waits for were granted.
fn release(way: BatchWay, mut make: impl FnMut(LastCall, KeyHash)) {
    if let BatchWay::Placed(placed, _) = way {
        for (call, hash, told) in placed.calls.into_iter().flatten() {
            let last = match &told {
                Ok(applied) => call.releasing(applied),
                Err(_) => call.refused(),
            };
            last.into_iter().for_each(|last| make(last, hash));
        }
    }
}

impl Drop for SentBatch {
    fn drop(&mut self) {
        let Ok(engine) = self.shared.begun_on() else { return };
        let way = std::mem::replace(&mut self.way, BatchWay::Over);
        if engine.is_foreign() {
            // Its locks may be held by threads that the fork doesn't have.
            return std::mem::forget(way);
        }
        match way {
            BatchWay::Working(desk) => {
                if let Some(way) = desk.abandon() {
                    release(way, |last, hash| last.send(engine, hash));
                }
            }
            // The endings among them go on, and so does the rest: each may depend on those before it.
            BatchWay::Unsent(calls, entering) => engine.do_job(Box::new(move |engine| {
                let placed = place(engine, calls, entering.as_ref());
                release(placed, |last, hash| last.make(engine, hash));
            })),
            way => release(way, |last, hash| last.send(engine, hash)),
        }
    }
}

/// Calls on another backend. All are sent before the first is waited for; only a call on a key that is among them waits for
/// those before it.
pub(crate) struct SentElsewhere {
    shared: Arc<Shared>,
    /// The namespace of those that lie [`NOWHERE`] is asked for first.
    search: Option<SearchElsewhere>,
    /// It was found; or the reason why it wasn't.
    found: Result<Token>,
    rest: VecDeque<Request>,
    sent: Vec<SentRequest>,
    /// The keys of what was sent and isn't known to be answered.
    keys: HashSet<Key<'static>>,
    /// How many of those that were sent are answered.
    answered: usize,
}

/// One of these calls.
struct SentRequest {
    key: Key<'static>,
    /// For the release of a grant that nobody takes.
    level: Option<Durability>,
    retention_ms: Option<u64>,
    sent: Option<Box<dyn Sent>>,
    told: Option<Result<Applied>>,
}

impl SentElsewhere {
    pub(super) fn send(
        shared: &Arc<Shared>,
        backend: &dyn Backend,
        calls: Vec<Request>,
        entering: Option<Entering>,
    ) -> Self {
        let search = entering.map(|entering| SearchElsewhere::send(backend, entering)).transpose();
        let (search, found) = match search {
            Ok(search) => (search, Ok(NOWHERE)),
            Err(e) => (None, Err(e)),
        };
        let mut batch = SentElsewhere {
            shared: Arc::clone(shared),
            search,
            found,
            rest: calls.into(),
            sent: Vec::new(),
            keys: HashSet::new(),
            answered: 0,
        };
        if batch.search.is_none() {
            batch.send_more(backend);
        }
        batch
    }

    fn send_more(&mut self, backend: &dyn Backend) {
        if self.answered == self.sent.len() {
            self.keys.clear();
        }
        while let Some(mut request) = self.rest.pop_front() {
            if request.key.lies() == Lies::In(NOWHERE) {
                match &self.found {
                    Ok(found) => request.key = moved(&request.key, *found),
                    Err(e) => {
                        let (level, retention_ms) = request.kept();
                        let (key, told) = (request.key, Some(Err(e.again())));
                        self.sent.push(SentRequest { key, level, retention_ms, sent: None, told });
                        continue;
                    }
                }
            }
            if !self.keys.insert(request.key.clone()) {
                return self.rest.push_front(request);
            }
            let (level, retention_ms) = request.kept();
            let key = request.key.clone();
            let sent = Some(backend.send(request));
            self.sent.push(SentRequest { key, level, retention_ms, sent, told: None });
        }
    }

    pub(super) fn wait(mut self) -> Result<ManyAnswers> {
        let shared = Arc::clone(&self.shared);
        let backend = shared.other()?;
        if let Some(mut search) = self.search.take() {
            self.found = search.wait(backend);
            self.send_more(backend);
        }
        while self.answered < self.sent.len() {
            if let Some(next) = self.sent.get_mut(self.answered) {
                if let Some(sent) = next.sent.take() {
                    next.told = Some(sent.wait().map(Reply::into_applied));
                }
            }
            self.answered += 1;
            self.send_more(backend);
        }
        self.take_answers()
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<ManyAnswers>> {
        let shared = Arc::clone(&self.shared);
        let backend = match shared.other() {
            Ok(backend) => backend,
            Err(e) => return Poll::Ready(Err(e)),
        };
        if let Some(search) = &mut self.search {
            let Poll::Ready(found) = search.poll(backend, context) else { return Poll::Pending };
            (self.found, self.search) = (found, None);
            self.send_more(backend);
        }
        while let Some(next) = self.sent.get_mut(self.answered) {
            if let Some(sent) = &mut next.sent {
                match sent.poll(context) {
                    Poll::Ready(told) => next.told = Some(told.map(Reply::into_applied)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            next.sent = None;
            self.answered += 1;
            self.send_more(backend);
        }
        Poll::Ready(self.take_answers())
    }

    fn take_answers(&mut self) -> Result<ManyAnswers> {
        let sent = std::mem::take(&mut self.sent).into_iter();
        self.answered = 0;
        let twice = || self.shared.bug("a batch was asked for its answers twice");
        sent.map(|sent| sent.told.ok_or_else(twice)).collect()
    }
}

/// What was granted and answered is released; a call that wasn't answered is the backend's to release. The endings that were
/// not sent yet are.
impl Drop for SentElsewhere {
    fn drop(&mut self) {
        if let Ok(backend) = self.shared.other() {
            for request in self.rest.drain(..) {
                if matches!(&request.ask, Ask::Call(call, _) if call.of_owner().is_some()) {
                    drop(backend.send(request));
                }
            }
        }
        let hash = KeyHash { high: 0, low: 0 };
        for request in &self.sent {
            let Some(Ok(applied)) = &request.told else { continue };
            if let Some(claimed) = applied.claimed {
                let retention_ms = request.retention_ms;
                let conditions = Conditions { retention_ms, ..Conditions::default() };
                let writing = Writing { level: request.level, conditions, ..Writing::default() };
                let call = Call::Withdraw(claimed.token);
                self.shared.let_go(&request.key, hash, call, super::sent::UNDELIVERED, &writing);
            } else if applied.answer == Answer::Asked {
                self.shared.unask(&request.key, hash, applied.question);
            }
        }
    }
}

/// Many calls that were begun, on whichever backend.
pub(crate) enum ManyUnderway {
    Embedded(SentBatch),
    Other(SentElsewhere),
}

impl ManyUnderway {
    /// Waits for the answers.
    pub(crate) fn wait(self) -> Result<ManyAnswers> {
        match self {
            ManyUnderway::Embedded(sent) => sent.wait(),
            ManyUnderway::Other(sent) => sent.wait(),
        }
    }

    /// Returns the answers once they are there.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<ManyAnswers>> {
        match self {
            ManyUnderway::Embedded(sent) => sent.poll(context),
            ManyUnderway::Other(sent) => sent.poll(context),
        }
    }
}
