//! A call on the embedded engine that is sent first and waited for later, by a thread or by a task.
//!
//! Promises: [`SentCall::poll`] does no I/O and doesn't wait, where the store has threads; a call whose caller is gone is
//! withdrawn if it can be, and an ending goes on. Never: decides; `protocol` does.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::desk::{Desk, Seat};
use super::{Ask, Reply, Request, Sent};
use super::{Embedded, Entering, Shared, Terms};
use crate::engine::{
    Applied, Asks, Done, Engine, Needs, PlacedFate, Placing, Progress, Turn, WaitsTo, Writing,
};
use crate::limits;
use crate::operation::Key;
use crate::protocol::{Answer, Call};
use crate::sync::wake;
use crate::types::{KeyHash, Token};
use crate::{Error, ErrorKind, Result};

/// The reason recorded for an attempt whose grant was never waited for.
pub(super) const UNDELIVERED: &str = "granted, and not waited for";

/// What a request asks, once it is a call.
pub(super) struct Owned {
    pub(super) key: Key<'static>,
    pub(super) call: Call,
    pub(super) terms: Box<Terms>,
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
    course: Course,
}

/// How far a call has come: one owned state, which a thread that blocks or the polls of a task carry on.
struct Course {
    hash: KeyHash,
    way: Way,
}

enum Way {
    /// The namespace of its key has to be found or made.
    Entering(Entering, OnceEntered),
    Placing(Placing<Owned>),
    /// Its record is placed; it may have a seat among those that wait for the disk.
    Placed(Owned, Done, Option<Arc<Seat>>),
    /// Whether it is for another process.
    Look(Key<'static>, bool),
    /// Waits until a claim is no longer live.
    Watch(Watch),
    /// Waits until everything placed before it is durable.
    Sync(Needs, Option<Arc<Seat>>),
    /// Another thread does what it waits for.
    Working(Arc<Desk<Course>>),
    Told(Result<Applied>),
    /// It was refused before its record was placed.
    Refused(Owned, Error),
    Over,
}

/// What is to be done with a key once it is in its namespace.
enum OnceEntered {
    Call(Owned),
    Look(Key<'static>),
}

/// What a call waits for.
enum Awaits {
    /// Nothing: this is the answer.
    Answer(Result<Applied>),
    /// Work that may block.
    Work,
    /// Another thread, which does that work.
    Desk(Arc<Desk<Course>>),
    /// A change of its key, or the end of a time.
    Turn,
    /// Its records, to be written and synced.
    Disk(Needs),
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

impl Course {
    /// Goes on as far as that takes neither I/O nor waiting.
    fn go_on(&mut self, engine: &Engine) -> Awaits {
        loop {
            self.way = match std::mem::replace(&mut self.way, Way::Over) {
                Way::Told(told) => return Awaits::Answer(told),
                Way::Refused(owned, e) => return Awaits::Answer(Err(owned.refusal(e))),
                Way::Over => {
                    let twice = engine.log.bug("a call was asked for its answer twice");
                    return Awaits::Answer(Err(twice));
                }
                Way::Working(desk) => match desk.take() {
                    Some(course) => {
                        self.hash = course.hash;
                        course.way
                    }
                    None => {
                        self.way = Way::Working(Arc::clone(&desk));
                        return Awaits::Desk(desk);
                    }
                },
                Way::Placed(owned, done, seat) => {
                    let is_guests = owned.terms.is_guests();
                    let needs = || engine.needs(&done, owned.terms.durability, is_guests);
                    match engine.fate_of_placed(needs, done.applied().lasts(owned.call)) {
                        PlacedFate::Met => return Awaits::Answer(Ok(done.into_applied())),
                        PlacedFate::Unmet(needs) => {
                            self.way = Way::Placed(owned, done, seat);
                            return Awaits::Disk(needs);
                        }
                        PlacedFate::Lost(e) => {
                            engine.take_back_outside(
                                &owned.key,
                                self.hash,
                                owned.call,
                                done.applied(),
                            );
                            return Awaits::Answer(Err(e));
                        }
                    }
                }
                Way::Sync(needs, seat) => {
                    let unmet = || (!engine.are_met(needs)).then_some(needs);
                    match engine.fate_of_placed(unmet, true) {
                        PlacedFate::Met => {
                            return Awaits::Answer(Ok(Applied::done(engine.log.now())));
                        }
                        PlacedFate::Unmet(needs) => {
                            self.way = Way::Sync(needs, seat);
                            return Awaits::Disk(needs);
                        }
                        PlacedFate::Lost(e) => return Awaits::Answer(Err(e)),
                    }
                }
                Way::Placing(placing) if placing.is_untried() => try_to_place(engine, placing),
                Way::Placing(placing) if placing.is_turn() => {
                    self.way = Way::Placing(placing);
                    return Awaits::Turn;
                }
                Way::Watch(watch) => {
                    self.way = Way::Watch(watch);
                    return Awaits::Turn;
                }
                way @ (Way::Entering(..) | Way::Placing(_) | Way::Look(..)) => {
                    self.way = way;
                    return Awaits::Work;
                }
            };
        }
    }

    /// Does the work that it waits for.
    fn work(&mut self, engine: &Engine) {
        self.way = match std::mem::replace(&mut self.way, Way::Over) {
            Way::Entering(entering, wanted) => self.enter(engine, &entering, wanted),
            Way::Placing(mut placing) => {
                let waited = engine
                    .enter()
                    .and_then(|_inside| placing.wait(engine).map_err(|e| engine.log.explained(e)));
                match waited {
                    Ok(()) => try_to_place(engine, placing),
                    Err(e) => Way::Refused(placing.into_asks(), e),
                }
            }
            Way::Look(key, is_guests) => looked(engine, &key, self.hash, is_guests),
            way @ (Way::Placed(..)
            | Way::Watch(_)
            | Way::Sync(..)
            | Way::Working(_)
            | Way::Told(_)
            | Way::Refused(..)
            | Way::Over) => way,
        };
    }

    /// Finds or makes the namespace of the call, and goes on with the call in it.
    fn enter(&mut self, engine: &Engine, entering: &Entering, wanted: OnceEntered) -> Way {
        let (OnceEntered::Call(Owned { key, .. }) | OnceEntered::Look(key)) = &wanted;
        let key = match entering.place(engine, key) {
            Ok(key) => key,
            Err(e) => return Way::Told(Err(e)),
        };
        self.hash = engine.hash(&key);
        match wanted {
            OnceEntered::Call(owned) => begin(engine, Owned { key, ..owned }, self.hash),
            OnceEntered::Look(_) => looked(engine, &key, self.hash, false),
        }
    }

    /// Sleeps until its key may have changed, or the time is up.
    fn wait_turn(&mut self, engine: &Engine) {
        match &mut self.way {
            Way::Placing(placing) => placing.wait_turn(&|| engine.nanos()),
            Way::Watch(watch) => match watch.look(engine, self.hash, None) {
                (_, _, None) => self.way = Way::Told(Ok(Applied::done(engine.log.now()))),
                (turn, seen, Some(left)) => {
                    turn.wait(seen, left);
                }
            },
            // It goes on.
            Way::Entering(..)
            | Way::Placed(..)
            | Way::Look(..)
            | Way::Sync(..)
            | Way::Working(_)
            | Way::Told(_)
            | Way::Refused(..)
            | Way::Over => {}
        }
    }

    /// Has `waker` woken instead of a thread that sleeps. Returns whether that is all there is to do; otherwise it goes on: the
    /// key may have changed before. `has_looked`: it was looked at since the waker was set.
    fn set_alarm(&mut self, engine: &Embedded, waker: &Waker, has_looked: bool) -> bool {
        match &mut self.way {
            Way::Placing(placing) => {
                let (is_new, is_timed) = placing.await_turn(waker, engine.nanos());
                if is_timed {
                    engine.keep_time();
                }
                let is_set = has_looked && !is_new;
                if !is_set {
                    // From here on the waker is woken by what changes.
                    placing.look_again();
                }
                is_set
            }
            Way::Watch(watch) => {
                let (turn, _, live) = watch.look(engine, self.hash, Some(waker));
                let Some(left) = live else {
                    if engine.may_go_on_elsewhere() {
                        if engine.successor().is_some() {
                            wake(waker.clone());
                        }
                        return true;
                    }
                    self.way = Way::Told(Ok(Applied::done(engine.log.now())));
                    return false;
                };
                let after =
                    |millis: u64| engine.nanos().saturating_add(millis.saturating_mul(1_000_000));
                let due = left.map(after);
                if turn.set_due(due) {
                    engine.keep_time();
                }
                true
            }
            Way::Entering(..)
            | Way::Placed(..)
            | Way::Look(..)
            | Way::Sync(..)
            | Way::Working(_)
            | Way::Told(_)
            | Way::Refused(..)
            | Way::Over => false,
        }
    }

    /// Goes on until it has its answer, or only the disk is left to wait for.
    fn until_placed(&mut self, engine: &Engine) -> ControlFlow<Result<Applied>, Needs> {
        loop {
            match self.go_on(engine) {
                Awaits::Work => self.work(engine),
                Awaits::Turn => self.wait_turn(engine),
                Awaits::Desk(desk) => *self = desk.wait(),
                Awaits::Answer(told) => return ControlFlow::Break(told),
                Awaits::Disk(needs) => return ControlFlow::Continue(needs),
            }
        }
    }
}

impl SentCall {
    /// Begins a call. Does no I/O and doesn't wait. `entering`: the namespace of the key, unless it is known.
    pub(crate) fn send(
        shared: &Arc<Shared>,
        engine: &Embedded,
        key: Key<'static>,
        call: Call,
        terms: Box<Terms>,
        entering: Option<Entering>,
    ) -> Self {
        if let Some(entering) = entering {
            let wanted = OnceEntered::Call(Owned { key, call, terms });
            return SentCall::enter(shared, engine, entering, wanted);
        }
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
                let course = Course { hash, way: Way::Told(Err(e)) };
                return SentCall { shared, course };
            }
        };
        let hash = engine.hash(&key);
        let way = begin(engine, Owned { key, call, terms }, hash);
        SentCall { shared: Arc::clone(shared), course: Course { hash, way } }
    }

    /// Begins a call whose namespace has to be found or made: by another thread, or, if there is none, by a poll.
    fn enter(
        shared: &Arc<Shared>,
        engine: &Embedded,
        entering: Entering,
        wanted: OnceEntered,
    ) -> Self {
        // Its own hash isn't known before its namespace is.
        let course = Course { hash: NO_HASH, way: Way::Entering(entering, wanted) };
        let mut sent = SentCall { shared: Arc::clone(shared), course };
        if engine.has_threads() {
            sent.hand_over(engine);
        }
        sent
    }

    /// Begins a read of a key's state. `entering`: the namespace of the key, unless it is known.
    pub(crate) fn look(
        shared: &Arc<Shared>,
        engine: &Embedded,
        key: Key<'static>,
        entering: Option<Entering>,
    ) -> Self {
        if let Some(entering) = entering {
            return SentCall::enter(shared, engine, entering, OnceEntered::Look(key));
        }
        let hash = engine.hash(&key);
        SentCall { shared: Arc::clone(shared), course: Course { hash, way: Way::Look(key, false) } }
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
        SentCall { shared: Arc::clone(shared), course: Course { hash, way } }
    }

    /// Begins to wait until everything placed so far is durable.
    pub(crate) fn sync(shared: &Arc<Shared>, engine: &Embedded) -> Self {
        let begun = engine.enter().and_then(|_inside| match engine.log.is_poisoned() {
            true => Err(engine.log.poisoned()),
            false => Ok(Way::Sync(engine.needs_of_all(), None)),
        });
        let way = begun.unwrap_or_else(|e| Way::Told(Err(e)));
        SentCall { shared: Arc::clone(shared), course: Course { hash: NO_HASH, way } }
    }

    /// Begins to wait until everything placed so far is written.
    fn written(shared: &Arc<Shared>, engine: &Embedded) -> Self {
        let way = Way::Sync(engine.needs_to_outlive(), None);
        SentCall { shared: Arc::clone(shared), course: Course { hash: NO_HASH, way } }
    }

    /// A claim goes on in the open that replaces this one, and so does whoever waits for its end.
    fn follow(&mut self) {
        let current = self.shared.current_arc();
        if let Way::Watch(watch) = &mut self.course.way {
            if !Arc::ptr_eq(current, &self.shared) {
                watch.turn = None;
                self.shared = Arc::clone(current);
            }
        }
    }

    /// Waits until a claim is no longer live.
    fn wait_for_end(mut self) -> Result<Applied> {
        loop {
            self.follow();
            let shared = Arc::clone(&self.shared);
            let engine = shared.begun_on()?;
            if engine.is_foreign() {
                return Err(engine.log.forked());
            }
            let Course { hash, way: Way::Watch(watch) } = &mut self.course else {
                return Err(engine.log.bug("a call that was to wait for an end is another"));
            };
            match watch.look(engine, *hash, None) {
                (turn, seen, Some(left)) => drop(turn.wait(seen, left)),
                (turn, seen, None) if engine.may_go_on_elsewhere() => {
                    if engine.successor().is_none() {
                        turn.wait(seen, None);
                    }
                }
                (_, _, None) => return Ok(Applied::done(engine.log.now())),
            }
        }
    }

    /// Waits for the answer.
    pub(crate) fn wait(mut self) -> Result<Applied> {
        if matches!(self.course.way, Way::Watch(_)) {
            return self.wait_for_end();
        }
        let shared = Arc::clone(&self.shared);
        let engine = shared.begun_on()?;
        if engine.is_foreign() {
            // A lock may be held by a thread that the fork doesn't have.
            return Err(engine.log.forked());
        }
        loop {
            match self.course.until_placed(engine) {
                ControlFlow::Break(told) => return told,
                ControlFlow::Continue(needs) => engine.provide_inside(needs),
            }
        }
    }

    /// Returns the answer once it is there; until then, has the task woken when there is more to do.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Applied>> {
        self.follow();
        let shared = Arc::clone(&self.shared);
        let engine = match shared.begun_on() {
            Ok(engine) => engine,
            Err(e) => return Poll::Ready(Err(e)),
        };
        if engine.is_foreign() {
            return Poll::Ready(Err(engine.log.forked()));
        }
        let waker = context.waker();
        let mut has_looked = false;
        loop {
            match self.course.go_on(engine) {
                Awaits::Answer(told) => return Poll::Ready(told),
                Awaits::Work => self.hand_over(engine),
                Awaits::Desk(desk) => {
                    if desk.set_waker(waker) {
                        return Poll::Pending;
                    }
                }
                Awaits::Turn => {
                    if self.course.set_alarm(engine, waker, has_looked) {
                        return Poll::Pending;
                    }
                    has_looked = true;
                }
                Awaits::Disk(needs) => {
                    if let Way::Placed(_, _, seat) | Way::Sync(_, seat) = &mut self.course.way {
                        engine.commit_for(needs, seat, waker);
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Has a thread do what the call waits for.
    fn hand_over(&mut self, engine: &Embedded) {
        let (desk, hash) = (Desk::new(), self.course.hash);
        let way = std::mem::replace(&mut self.course.way, Way::Working(Arc::clone(&desk)));
        engine.do_job(Box::new(move |engine| {
            let mut course = Course { hash, way };
            // A panic is the caller's, which doesn't run this: it is told of a bug, and the thread goes on.
            if catch_unwind(AssertUnwindSafe(|| course.work(engine))).is_err() {
                course.way = Way::Told(Err(engine.log.bug("a call panicked")));
            }
            if let Some(course) = desk.put(course) {
                give_up(engine, course);
            }
        }));
    }
}

/// For a call that is on no key, or not yet.
const NO_HASH: KeyHash = KeyHash { high: 0, low: 0 };

/// Begins a call whose key is known.
fn begin(engine: &Engine, owned: Owned, hash: KeyHash) -> Way {
    let placing = match owned.terms.wait_millis {
        Some(millis) => Placing::patient(owned, hash, millis, engine),
        None => Placing::new(owned, hash),
    };
    // What is in flight is bounded: beyond that, a call is placed when it is waited for. A question that is dropped has no
    // record, and nobody may wait for that call.
    let is_placed_now = matches!(placing.asks().call, Call::DropQuestion(_))
        || engine.log.buffered() < limits::IN_FLIGHT_BYTES_MAX;
    match is_placed_now {
        true => try_to_place(engine, placing),
        false => Way::Placing(placing),
    }
}

fn looked(engine: &Engine, key: &Key<'_>, hash: KeyHash, is_guests: bool) -> Way {
    let seen = match is_guests {
        true => engine.look_for_guest(key, hash),
        false => engine.look(key, hash),
    };
    Way::Told(seen.map(|seen| Applied::of_seen(seen, engine.log.now())))
}

/// Goes on with a call as far as that takes neither I/O nor waiting.
fn try_to_place(engine: &Engine, mut placing: Placing<Owned>) -> Way {
    let gone_on = engine.enter().and_then(|_inside| {
        placing.asks().ask(|_, call, writing| engine.begins(call, writing))?;
        placing.go_on(engine).map_err(|e| engine.log.explained(e))
    });
    match gone_on {
        Ok(Progress::Placed(done)) => {
            engine.log.wake_upkeep();
            Way::Placed(placing.into_asks(), done, None)
        }
        Ok(Progress::Waits) => Way::Placing(placing),
        Err(e) => Way::Refused(placing.into_asks(), e),
    }
}

/// Ends a call whose caller is gone, on a thread that may wait: an owner's word continues, and what was granted is released.
fn give_up(engine: &Engine, mut course: Course) {
    let hash = course.hash;
    if let Way::Placing(placing) = &course.way {
        let (key, call) = (placing.asks().key.clone(), placing.asks().call);
        if call.of_owner().is_none() {
            return;
        }
        let placed = course.until_placed(engine);
        engine.log.wake_upkeep();
        if let ControlFlow::Break(Err(_)) = placed {
            let refused = Owned { key, call, terms: Box::default() }.refused();
            refused.into_iter().for_each(|last| last.make(engine, hash));
        }
        return;
    }
    last_call(course.way).into_iter().for_each(|last| last.make(engine, hash));
}

/// The call to make if nobody takes the answer of a call that isn't waited for any more.
fn last_call(way: Way) -> Option<LastCall> {
    match way {
        Way::Placed(owned, done, _) => owned.releasing(done.applied()),
        Way::Refused(owned, _) => owned.refused(),
        // Nothing was granted, or another thread sees to it.
        Way::Entering(..) | Way::Placing(_) | Way::Look(..) | Way::Watch(_) | Way::Sync(..) => None,
        Way::Told(_) | Way::Working(_) | Way::Over => None,
    }
}

/// The last call on behalf of a caller that is gone.
pub(super) struct LastCall(Owned);

impl LastCall {
    /// Makes it, on a thread that may wait.
    pub(super) fn make(&self, engine: &Engine, hash: KeyHash) {
        self.try_to_make(engine, hash, true);
    }

    /// Makes it on the thread of a caller, or has another thread make it if it has to wait.
    pub(super) fn send(self, engine: &Embedded, hash: KeyHash) {
        if !self.try_to_make(engine, hash, false) {
            engine.do_job(Box::new(move |engine| self.make(engine, hash)));
        }
    }

    fn try_to_make(&self, engine: &Engine, hash: KeyHash, may_wait: bool) -> bool {
        let Owned { key, call, terms } = &self.0;
        if let Call::DropQuestion(question) = *call {
            engine.unask(key, hash, question);
            return true;
        }
        let (extras, reason) = (terms.extras(), terms.reason().unwrap_or_default());
        engine.let_go(key, hash, *call, reason, &terms.writing(&extras), may_wait)
    }
}

impl Embedded {
    /// Makes the call that ends a claim whose caller is gone. A withdrawal doesn't wait where the store has threads.
    pub(super) fn leave(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        reason: &str,
        writing: &Writing<'_>,
    ) {
        if !self.let_go(key, hash, call, reason, writing, false) {
            let (key, terms) = (key.clone().into_owned(), Box::new(Terms::of(writing)));
            Owned { key, call, terms }.with(call, reason).send(self, hash);
        }
    }
}

impl Owned {
    /// Releases what an answer that nobody takes has granted.
    pub(super) fn releasing(self, applied: &Applied) -> Option<LastCall> {
        let call = match (self.call, applied.claimed) {
            (_, Some(claimed)) => Call::Withdraw(claimed.token),
            // It stays detached.
            (Call::Attach(token), None) if applied.answer == Answer::Done => Call::Interrupt(token),
            _ if applied.answer == Answer::Asked => Call::DropQuestion(applied.question),
            _ => return None,
        };
        Some(self.with(call, UNDELIVERED))
    }

    /// The error of a call that was not made here: one that another host was sent before may have been made there.
    fn refusal(&self, e: Error) -> Error {
        let is_its_own = matches!(e.kind(), ErrorKind::Closed | ErrorKind::Forked);
        if is_its_own || !self.terms.is_again() {
            return e;
        }
        let message = format!("whether this call was made is unknown, and {e}");
        Error::new(ErrorKind::Indeterminate, message).because(e)
    }

    /// An ending that was refused leaves nobody who could end the claim.
    pub(super) fn refused(self) -> Option<LastCall> {
        let token = self.call.ends()?;
        Some(self.with(Call::Interrupt(token), "its ending failed"))
    }

    fn with(self, call: Call, reason: &str) -> LastCall {
        let Owned { key, mut terms, .. } = self;
        let details = terms.details_mut();
        (details.reason, details.outcome) = (Some(reason.to_owned()), None);
        // It is a call of its own: taken for the one before, sent again, it would count as done.
        details.sending = None;
        LastCall(Owned { key, call, terms })
    }
}

impl Drop for SentCall {
    fn drop(&mut self) {
        let Ok(engine) = self.shared.begun_on() else { return };
        let Course { hash, ref mut way } = self.course;
        let way = std::mem::replace(way, Way::Over);
        if engine.is_foreign() {
            // Its locks may be held by threads that the fork doesn't have.
            return std::mem::forget(way);
        }
        let Course { hash, way } = match way {
            Way::Working(desk) => match desk.abandon() {
                Some(course) => course,
                None => return,
            },
            way => Course { hash, way },
        };
        match way {
            Way::Placing(placing) if placing.asks().call.of_owner().is_some() => {
                let course = Course { hash, way: Way::Placing(placing) };
                engine.do_job(Box::new(move |engine| give_up(engine, course)));
            }
            way => last_call(way).into_iter().for_each(|last| last.send(engine, hash)),
        }
    }
}

/// Begins a request on the embedded engine of `shared`. Does no I/O and doesn't wait.
pub(crate) fn send(shared: &Arc<Shared>, request: Request) -> Box<dyn Sent> {
    Box::new(begun(shared, request, false))
}

/// The same for another process.
pub(crate) fn send_for_guest(shared: &Arc<Shared>, request: Request) -> Box<dyn Sent> {
    Box::new(begun(shared, request, true))
}

/// Begins to wait until everything that was placed so far outlives this process, for another one.
pub(crate) fn outlives(shared: &Arc<Shared>) -> Box<dyn Sent> {
    let shared = shared.current_arc();
    let written = shared.begun_on().map(|engine| SentCall::written(shared, engine));
    Box::new(written.unwrap_or_else(|e| failed(shared, e)))
}

fn begun(shared: &Arc<Shared>, request: Request, is_guests: bool) -> SentCall {
    let shared = shared.current_arc();
    let looks = |engine: &Embedded, key: Key<'static>| {
        let (hash, shared) = (engine.hash(&key), Arc::clone(shared));
        SentCall { shared, course: Course { hash, way: Way::Look(key, is_guests) } }
    };
    let sent = shared.begun_on().map(|engine| match request.ask {
        Ask::Look => looks(engine, request.key),
        Ask::Step { life, name } => looks(engine, Key::of_step(&request.key, life, &name)),
        Ask::Ended(token) => SentCall::watch(shared, engine, request.key, token),
        Ask::Call(call, terms) => SentCall::send(shared, engine, request.key, call, terms, None),
    });
    sent.unwrap_or_else(|e| failed(shared, e))
}

fn failed(shared: &Arc<Shared>, e: Error) -> SentCall {
    let course = Course { hash: NO_HASH, way: Way::Told(Err(e)) };
    SentCall { shared: Arc::clone(shared), course }
}

impl Sent for SentCall {
    fn wait(self: Box<Self>) -> Result<Reply> {
        (*self).wait().map(Reply::of_applied)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Reply>> {
        SentCall::poll(self, context).map(|told| told.map(Reply::of_applied))
    }
}
