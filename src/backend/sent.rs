//! A call on the embedded engine that is sent first and waited for later, by a thread or by a task.
//!
//! Promises: [`SentCall::poll`] does no I/O and doesn't wait, where the store has threads; a call whose caller is gone is
//! withdrawn if it can be, and an ending goes on. Never: decides; `protocol` does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

#[cfg(feature = "backend")]
use super::{Ask, Reply, Request, Sent};
use super::{Embedded, Shared, Terms};
use crate::engine::{Applied, Asks, Done, Engine, Placing, Progress, Turn, WaitsTo, Writing};
use crate::limits;
use crate::operation::Key;
use crate::protocol::{Answer, Call};
use crate::sync::{Mutex, WakeWord, wake};
use crate::types::{KeyHash, Token};
use crate::{Error, ErrorKind, Result};

/// The reason recorded for an attempt whose grant was never waited for.
const UNDELIVERED: &str = "granted, and not waited for";

/// What a request asks, once it is a call.
struct Owned {
    key: Key<'static>,
    call: Call,
    terms: Box<Terms>,
}

impl Asks for Owned {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let extras = self.terms.extras();
        with(&self.key, self.call, &self.terms.writing(&extras))
    }
}

/// A call, and its progress. It counts as a handle of its store.
pub(crate) struct SentCall {
    shared: Arc<Shared>,
    hash: KeyHash,
    way: Way,
}

enum Way {
    Placing(Placing<Owned>),
    Placed(Owned, Done),
    Look(Key<'static>),
    /// Waits until a claim is no longer live.
    Watch(Watch),
    /// Another thread does what it waits for.
    Working(Arc<Desk>),
    Told(Result<Applied>),
    Over,
}

/// An owner that waits for the end of its claim.
struct Watch {
    key: Key<'static>,
    token: Token,
    turn: Option<Turn>,
}

impl Watch {
    /// Joins those that wait, and then looks. Returns the turn's word before that, and in how many milliseconds the claim's
    /// lease passes, if it is live.
    fn look(
        &mut self,
        engine: &Engine,
        hash: KeyHash,
        waker: Option<&Waker>,
    ) -> (&mut Turn, u32, Option<Option<u64>>) {
        let join = || engine.waits.join(&self.key, hash, WaitsTo::End);
        let turn = self.turn.get_or_insert_with(join);
        if let Some(waker) = waker {
            turn.set_waker(waker);
        }
        let seen = turn.read();
        // A closed store has no live claim.
        let inside = engine.enter().ok();
        let live = inside.and_then(|_inside| engine.is_live(&self.key, hash, self.token));
        (turn, seen, live)
    }
}

/// Where the thread that works for a call leaves the result.
struct Desk {
    hash: KeyHash,
    state: Mutex<DeskState>,
    word: WakeWord,
}

#[derive(Default)]
struct DeskState {
    result: Option<Way>,
    waker: Option<Waker>,
    is_abandoned: bool,
}

impl Desk {
    fn new(hash: KeyHash) -> Arc<Self> {
        Arc::new(Desk { hash, state: Mutex::new(DeskState::default()), word: WakeWord::new() })
    }

    fn put(&self, engine: &Engine, way: Way) {
        let mut state = self.state.lock();
        if state.is_abandoned {
            drop(state);
            return give_up(engine, self.hash, way);
        }
        state.result = Some(way);
        let waker = state.waker.take();
        drop(state);
        self.word.wake_all();
        if let Some(waker) = waker {
            wake(waker);
        }
    }

    fn poll(&self, waker: &Waker) -> Option<Way> {
        let mut state = self.state.lock();
        let result = state.result.take();
        if result.is_none() {
            state.waker = Some(waker.clone());
        }
        result
    }

    fn wait(&self) -> Way {
        loop {
            let seen = self.word.read();
            if let Some(way) = self.state.lock().result.take() {
                return way;
            }
            self.word.wait(seen, None);
        }
    }

    /// Nobody waits for the result any more. Returns it if it is there.
    fn abandon(&self) -> Option<Way> {
        let mut state = self.state.lock();
        state.is_abandoned = true;
        state.result.take()
    }
}

impl SentCall {
    /// Begins a call. Does no I/O and doesn't wait.
    pub(crate) fn send(
        shared: &Arc<Shared>,
        engine: &Embedded,
        key: Key<'static>,
        call: Call,
        terms: Box<Terms>,
    ) -> Self {
        let step = match call {
            Call::EndStep { life, .. } => {
                let extras = terms.extras();
                Some(engine.step_of(&key, life, &terms.writing(&extras)))
            }
            _ => None,
        };
        let key = match step {
            None => key,
            Some(Ok(step)) => step,
            Some(Err(e)) => {
                let (shared, hash) = (Arc::clone(shared), engine.hash(&key));
                return SentCall { shared, hash, way: Way::Told(Err(e)) };
            }
        };
        let hash = engine.hash(&key);
        let way = match call {
            Call::DropQuestion(question) => {
                engine.unask(&key, hash, question);
                Way::Told(Ok(Applied::done(engine.log.now())))
            }
            Call::Interrupt(_) => {
                let reason = terms.reason.as_deref().unwrap_or_default();
                let extras = terms.extras();
                engine.let_go(&key, hash, call, reason, &terms.writing(&extras));
                Way::Told(Ok(Applied::done(engine.log.now())))
            }
            call => {
                let patience = terms.wait_millis;
                let owned = Owned { key, call, terms };
                let placing = match patience {
                    Some(millis) => Placing::patient(owned, hash, millis, engine),
                    None => Placing::new(owned, hash),
                };
                // What is in flight is bounded: beyond that, a call is placed when it is waited for.
                match engine.log.buffered() < limits::IN_FLIGHT_BYTES_MAX {
                    true => try_to_place(engine, placing),
                    false => Way::Placing(placing),
                }
            }
        };
        SentCall { shared: Arc::clone(shared), hash, way }
    }

    /// Begins a read of a key's state.
    pub(crate) fn look(shared: &Arc<Shared>, engine: &Embedded, key: Key<'static>) -> Self {
        let hash = engine.hash(&key);
        SentCall { shared: Arc::clone(shared), hash, way: Way::Look(key) }
    }

    /// Begins to wait until the claim of that token is no longer live.
    pub(crate) fn watch(
        shared: &Arc<Shared>,
        engine: &Embedded,
        key: Key<'static>,
        token: Token,
    ) -> Self {
        let hash = engine.hash(&key);
        let way = Way::Watch(Watch { key, token, turn: None });
        SentCall { shared: Arc::clone(shared), hash, way }
    }

    /// Waits for the answer.
    pub(crate) fn wait(mut self) -> Result<Applied> {
        if let Ok(engine) = self.shared.embedded() {
            if engine.is_foreign() {
                return engine.enter().map(|_inside| Applied::done(engine.log.now()));
            }
        }
        let way = std::mem::replace(&mut self.way, Way::Over);
        let way = match way {
            Way::Working(desk) => desk.wait(),
            way => way,
        };
        let engine = self.shared.embedded()?;
        match advance(engine, self.hash, way) {
            Way::Placed(owned, done) => {
                // A close has ended what was in flight, and synced what it could.
                let _inside = engine.enter().map_err(outlived)?;
                engine.settled(&owned.key, self.hash, done, owned.terms.durability)
            }
            Way::Told(told) => told,
            _ => Err(Error::new(ErrorKind::Bug, "a call was waited for twice")),
        }
    }

    /// Returns the answer once it is there; until then, has the task woken when there is more to do.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Applied>> {
        let shared = Arc::clone(&self.shared);
        let engine = match shared.embedded() {
            Ok(engine) => engine,
            Err(e) => return Poll::Ready(Err(e)),
        };
        if engine.is_foreign() {
            // A lock may be held by a thread that the fork doesn't have.
            return Poll::Ready(engine.enter().map(|_inside| Applied::done(engine.log.now())));
        }
        let waker = context.waker();
        let mut has_looked = false;
        loop {
            match std::mem::replace(&mut self.way, Way::Over) {
                Way::Told(told) => return Poll::Ready(told),
                Way::Over => {
                    let message = "a call was polled after its answer";
                    return Poll::Ready(Err(Error::new(ErrorKind::Bug, message)));
                }
                Way::Working(desk) => match desk.poll(waker) {
                    Some(way) => self.way = way,
                    None => {
                        self.way = Way::Working(desk);
                        return Poll::Pending;
                    }
                },
                Way::Placed(owned, done) => {
                    let _inside = match engine.enter().map_err(outlived) {
                        Ok(inside) => inside,
                        Err(e) => return Poll::Ready(Err(e)),
                    };
                    let Some(needs) = engine.needs(&done, owned.terms.durability) else {
                        return Poll::Ready(Ok(done.into_applied()));
                    };
                    if engine.log.is_poisoned() {
                        engine.take_back(&owned.key, self.hash, done.applied());
                        return Poll::Ready(Err(engine.log.indeterminate()));
                    }
                    self.way = Way::Placed(owned, done);
                    engine.commit_for(needs, waker);
                    return Poll::Pending;
                }
                Way::Watch(mut watch) => {
                    let (turn, _, live) = watch.look(engine, self.hash, Some(waker));
                    let Some(left) = live else {
                        return Poll::Ready(Ok(Applied::done(engine.log.now())));
                    };
                    let due = left.map(|millis| engine.nanos().saturating_add(millis * 1_000_000));
                    if turn.set_due(due) {
                        engine.keep_time();
                    }
                    self.way = Way::Watch(watch);
                    return Poll::Pending;
                }
                Way::Placing(mut placing) if placing.is_turn() => {
                    let (is_new, is_timed) = placing.await_turn(waker, engine.nanos());
                    if is_timed {
                        engine.keep_time();
                    }
                    if has_looked && !is_new {
                        self.way = Way::Placing(placing);
                        return Poll::Pending;
                    }
                    // From here on the waker is woken by what changes.
                    has_looked = true;
                    placing.look_again();
                    self.way = try_to_place(engine, placing);
                }
                Way::Placing(placing) if placing.is_untried() => {
                    self.way = try_to_place(engine, placing);
                }
                way @ (Way::Placing(_) | Way::Look(_)) => self.hand_over(engine, way),
            }
        }
    }

    /// Has a thread do what the call waits for.
    fn hand_over(&mut self, engine: &Embedded, way: Way) {
        let (desk, hash) = (Desk::new(self.hash), self.hash);
        self.way = Way::Working(Arc::clone(&desk));
        engine.do_job(Box::new(move |engine| {
            // A panic is the caller's, who doesn't run this: it is told of a bug, and the thread goes on.
            let way = catch_unwind(AssertUnwindSafe(|| advance_once(engine, hash, way)));
            let way = way.unwrap_or_else(|_| Way::Told(Err(engine.log.bug("a call panicked"))));
            desk.put(engine, way);
        }));
    }
}

fn outlived(e: Error) -> Error {
    let message = "the store was closed before this call was waited for: open it, and ask what became of the key";
    Error::new(ErrorKind::Indeterminate, message).because(e)
}

/// Goes on with a call as far as that takes neither I/O nor waiting.
fn try_to_place(engine: &Engine, mut placing: Placing<Owned>) -> Way {
    let gone_on = engine.enter().and_then(|_inside| {
        engine.begins(placing.asks().call)?;
        placing.go_on(engine).map_err(|e| engine.log.explained(e))
    });
    match gone_on {
        Ok(Progress::Placed(done)) => {
            engine.log.wake_upkeep();
            Way::Placed(placing.into_asks(), done)
        }
        Ok(Progress::Waits) => Way::Placing(placing),
        Err(e) => Way::Told(Err(e)),
    }
}

/// Does what a call waits for, unless that is its turn.
fn advance_once(engine: &Engine, hash: KeyHash, way: Way) -> Way {
    match way {
        Way::Placing(mut placing) => {
            let waited = engine
                .enter()
                .and_then(|_inside| placing.wait(engine).map_err(|e| engine.log.explained(e)));
            match waited {
                Ok(()) => try_to_place(engine, placing),
                Err(e) => Way::Told(Err(e)),
            }
        }
        Way::Look(key) => {
            let seen = engine.look(&key, hash);
            Way::Told(seen.map(|seen| Applied::of_seen(seen, engine.log.now())))
        }
        way => way,
    }
}

/// Goes on with a call until it is placed.
fn advance(engine: &Engine, hash: KeyHash, mut way: Way) -> Way {
    loop {
        way = match way {
            Way::Placing(mut placing) if placing.is_turn() => {
                placing.wait_turn(&|| engine.nanos());
                try_to_place(engine, placing)
            }
            Way::Watch(mut watch) => match watch.look(engine, hash, None) {
                (_, _, None) => Way::Told(Ok(Applied::done(engine.log.now()))),
                (turn, seen, Some(left)) => {
                    turn.wait(seen, left);
                    Way::Watch(watch)
                }
            },
            way @ (Way::Placing(_) | Way::Look(_)) => advance_once(engine, hash, way),
            way => return way,
        };
    }
}

/// Ends a call whose caller is gone: an ending continues, and what was granted is released.
fn give_up(engine: &Engine, hash: KeyHash, way: Way) {
    match way {
        Way::Placing(placing) if placing.asks().call.of_owner().is_some() => {
            let (key, token) = (placing.asks().key.clone(), placing.asks().call.of_owner());
            let placed = advance(engine, hash, Way::Placing(placing));
            engine.log.wake_upkeep();
            // Refused, it leaves nobody who could end the claim.
            if let (Way::Told(Err(_)), Some(token)) = (placed, token) {
                let call = Call::Interrupt(token);
                engine.let_go(&key, hash, call, "its ending failed", &Writing::default());
            }
        }
        Way::Placed(owned, done) => {
            if let Some(claimed) = done.applied().claimed {
                let call = Call::Withdraw(claimed.token);
                let extras = owned.terms.extras();
                let writing = owned.terms.writing(&extras);
                engine.let_go(&owned.key, hash, call, UNDELIVERED, &writing);
            } else if done.applied().answer == Answer::Asked {
                engine.unask(&owned.key, hash, done.applied().question);
            }
        }
        _ => {}
    }
}

impl Drop for SentCall {
    fn drop(&mut self) {
        let Ok(engine) = self.shared.embedded() else { return };
        let hash = self.hash;
        if engine.is_foreign() {
            // Its locks may be held by threads that the fork doesn't have.
            std::mem::forget(std::mem::replace(&mut self.way, Way::Over));
            return;
        }
        let way = match std::mem::replace(&mut self.way, Way::Over) {
            Way::Working(desk) => match desk.abandon() {
                Some(way) => way,
                None => return,
            },
            way => way,
        };
        match way {
            Way::Placing(ref placing) if placing.asks().call.of_owner().is_some() => {
                engine.do_job(Box::new(move |engine| give_up(engine, hash, way)));
            }
            way => give_up(engine, hash, way),
        }
    }
}

/// Begins a request on the embedded engine of `shared`. Does no I/O and doesn't wait.
#[cfg(feature = "backend")]
pub(crate) fn send(shared: &Arc<Shared>, request: Request) -> Box<dyn Sent> {
    let sent = shared.embedded().map(|engine| match request.ask {
        Ask::Look => SentCall::look(shared, engine, request.key),
        Ask::Step { life, name } => {
            SentCall::look(shared, engine, Key::of_step(&request.key, life, &name))
        }
        Ask::Ended(token) => SentCall::watch(shared, engine, request.key, token),
        Ask::Call(call, terms) => SentCall::send(shared, engine, request.key, call, terms),
    });
    let hash = KeyHash { high: 0, low: 0 };
    let failed = |e| SentCall { shared: Arc::clone(shared), hash, way: Way::Told(Err(e)) };
    Box::new(sent.unwrap_or_else(failed))
}

#[cfg(feature = "backend")]
impl Sent for SentCall {
    fn wait(self: Box<Self>) -> Result<Reply> {
        (*self).wait().map(Reply::of_applied)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Reply>> {
        SentCall::poll(self, context).map(|told| told.map(Reply::of_applied))
    }
}
