//! The engine in this process, and its threads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::Shared;
use super::serving::Serving;
use crate::engine::{Engine, Legacy, Threads, Unended};
use crate::sync::{self, AtomicBool, Mutex, Ordering, SetOnce};
use crate::types::SessionId;
use crate::{Error, Result};

/// An engine and its threads. Dropping it closes the store.
pub(crate) struct Embedded {
    engine: Arc<Engine>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    pub(super) serving: Arc<Serving>,
    /// What a close does before it refuses calls: it ends the connections to guests.
    parts: Arc<Mutex<Option<Parting>>>,
    sharing: Arc<Mutex<Sharing>>,
    reopening: Arc<Reopening>,
    /// Its handles don't count: dropping it closes nothing.
    is_view: bool,
}

type Parting = Box<dyn FnOnce() + Send>;

/// The next open of a poisoned store in the same process.
struct Reopening {
    /// The store on which calls are made from then on. Once it is set, the engine before it is closed.
    successor: SetOnce<Arc<Shared>>,
    /// How the store is opened again, and what a failed reopening has kept for the next try. A reopening holds this lock.
    state: Mutex<ReopeningState>,
    askers: Mutex<Askers>,
    is_at_work: AtomicBool,
}

#[derive(Default)]
struct ReopeningState {
    open: Option<OpenAgain>,
    legacy: Option<Legacy>,
}

/// The calls of guests that have asked for a reopening, by session and number.
type Askers = BTreeSet<(SessionId, u64)>;

/// Opens a store once more, with what the engine before has left.
type OpenAgain = Box<dyn Fn(&Embedded, &Legacy) -> Result<Embedded> + Send>;

/// Whether other processes can share a store.
enum Sharing {
    /// The store was opened for this process alone.
    No,
    /// The store was opened with `shared`, but this process can't listen, for that reason.
    CanNot(String),
    Served(ServedGuests),
}

/// The other processes that a store serves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServedGuests {
    pub(crate) joined: u64,
    /// The greatest value of this process and of its guests.
    pub(crate) result_bytes_max: u32,
}

impl Embedded {
    pub(crate) fn new(engine: Engine) -> Self {
        let serving = Serving::new();
        Embedded {
            engine: Arc::new(engine),
            threads: Arc::new(Mutex::new(Vec::new())),
            serving,
            parts: Arc::new(Mutex::new(None)),
            sharing: Arc::new(Mutex::new(Sharing::No)),
            reopening: Arc::new(Reopening {
                successor: SetOnce::new(),
                state: Mutex::new(ReopeningState::default()),
                askers: Mutex::new(Askers::new()),
                is_at_work: AtomicBool::new(false),
            }),
            is_view: false,
        }
    }

    /// An engine on a disk whose changes stay in memory: it has no threads, and a close would write to memory alone.
    pub(crate) fn reader(engine: Engine) -> Self {
        let mut reader = Embedded::new(engine);
        reader.is_view = true;
        reader
    }

    /// Returns a view of the same store, which doesn't keep it open.
    pub(crate) fn view(&self) -> Self {
        Embedded {
            engine: Arc::clone(&self.engine),
            threads: Arc::clone(&self.threads),
            serving: Arc::clone(&self.serving),
            parts: Arc::clone(&self.parts),
            sharing: Arc::clone(&self.sharing),
            reopening: Arc::clone(&self.reopening),
            is_view: true,
        }
    }

    /// Has a close call `parting` before it refuses calls.
    pub(crate) fn at_close(&self, parting: impl FnOnce() + Send + 'static) {
        *self.parts.lock() = Some(Box::new(parting));
    }

    /// Sets how [`reopen`](Self::reopen) opens the store.
    pub(crate) fn reopened_by(
        &self,
        open: impl Fn(&Embedded, &Legacy) -> Result<Embedded> + Send + 'static,
    ) {
        self.reopening.state.lock().open = Some(Box::new(open));
    }

    /// The open of this process that has taken the place of this one, if any has.
    #[inline]
    pub(super) fn successor(&self) -> Option<&Arc<Shared>> {
        self.reopening.successor.get()
    }

    /// Notes a guest's call that asks for a reopening. Returns whether this open sees the call for the first time: each call reopens once.
    pub(crate) fn reopens_for(&self, session: SessionId, request: u64) -> bool {
        self.reopening.askers.lock().insert((session, request))
    }

    /// Waits until no reopening is in progress.
    #[cold]
    pub(super) fn await_reopening(&self) {
        drop(self.reopening.state.lock());
    }

    /// Whether a claim of this open may go on in the next one. Callers that wait are woken once a reopening has ended.
    pub(super) fn may_go_on_elsewhere(&self) -> bool {
        let is_at_work = self.reopening.is_at_work.load(Ordering::SeqCst);
        is_at_work || self.successor().is_some()
    }

    /// Opens the poisoned store again. Calls on this open are made on the next one from then on.
    pub(super) fn reopen(&self) -> Result<()> {
        let mut state = self.reopening.state.lock();
        if self.successor().is_some() {
            return Ok(());
        }
        self.reopening.is_at_work.store(true, Ordering::SeqCst);
        let reopened = self.reopen_with(&mut state);
        self.reopening.is_at_work.store(false, Ordering::SeqCst);
        drop(state);
        // Callers that wait for a time, and owners that wait for the end of their claims, find out which open they are on.
        let _ = self.engine.waits.fire(u64::MAX);
        self.engine.waits.tell_all();
        reopened
    }

    fn reopen_with(&self, state: &mut ReopeningState) -> Result<()> {
        let legacy = match state.legacy.take() {
            Some(legacy) => {
                // A reopening has failed before, and since then this open answered guests that it is poisoned: ends these connections.
                self.part();
                legacy
            }
            None if self.engine.is_closing() => return Err(self.engine.log.closed()),
            None if !self.engine.log.is_poisoned() => return Ok(()),
            None if state.open.is_none() => {
                return Err(Error::invalid("this store can't be reopened: open it anew"));
            }
            None => self.engine.pass_on(self)?,
        };
        self.serving.drain_commits(&self.engine);
        let Some(open) = &state.open else {
            return Err(self.engine.log.bug("a store was passed on and can't be opened"));
        };
        match open(self, &legacy) {
            Ok(next) => {
                let engine = next.engine();
                // The next open has the claims from here on, so owners that end their claims do it there.
                self.reopening.successor.set(Arc::new(Shared::Embedded(next)));
                self.engine.set_heir(&engine);
                if self.engine.log.gate().is_draining() {
                    engine.drain();
                }
                Ok(())
            }
            Err(e) => {
                let message = format!("it could not be reopened: {e}");
                let cause = Error::new(e.kind(), message).because(e.again());
                self.engine.log.gate().not_reopened(cause);
                state.legacy = Some(legacy);
                Err(e)
            }
        }
    }

    /// The guests that this store serves; `None`: it takes none.
    pub(crate) fn guests(&self) -> Option<ServedGuests> {
        match &*self.sharing.lock() {
            Sharing::Served(guests) => Some(*guests),
            Sharing::No | Sharing::CanNot(_) => None,
        }
    }

    pub(crate) fn set_guests(&self, guests: ServedGuests) {
        *self.sharing.lock() = Sharing::Served(guests);
    }

    /// Other processes can't share this store, though they should.
    pub(crate) fn serve_nobody(&self, why: &Error) {
        *self.sharing.lock() = Sharing::CanNot(why.to_string());
    }

    /// Why other processes can't share this store, though they should.
    pub(crate) fn serves_nobody(&self) -> Option<String> {
        match &*self.sharing.lock() {
            Sharing::CanNot(why) => Some(why.clone()),
            Sharing::No | Sharing::Served(_) => None,
        }
    }

    pub(crate) fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine)
    }

    /// Starts the background threads: one for the log, whose work is short and never waits, and one for the index.
    pub(crate) fn start_upkeep(&self) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        self.start("onlyonce-log", move || engine.run_log(&|| engine.is_closing()))?;
        let engine = Arc::clone(&self.engine);
        self.start("onlyonce-index", move || engine.run_index(&|| engine.is_closing()))?;
        self.serving.allow_threads();
        Ok(())
    }

    pub(super) fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let dir = self.engine.dir();
        let thread = sync::spawn(name, body)
            .map_err(|e| Error::io("starting a background thread for", &dir, e))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// See [`Engine::close`].
    pub(crate) fn close(&self, deadline: Option<u64>) -> Result<Unended> {
        // After a failed reopening, the engine is closed, and the lock was kept for the next try.
        if self.reopening.state.try_lock().and_then(|mut state| state.legacy.take()).is_some() {
            self.part();
            return Err(self.engine.log.poisoned());
        }
        let closed = self.engine.close(deadline, self);
        self.serving.drain_commits(&self.engine);
        closed
    }
}

impl Threads for Embedded {
    fn part(&self) {
        let parting = self.parts.lock().take();
        if let Some(parting) = parting {
            parting();
        }
    }

    fn join(&self) {
        self.serving.wake();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads.into_iter().filter(|thread| !sync::is_current(thread)) {
            // A join fails only if the thread panicked, and there is no caller to report that to.
            let _ = thread.join();
        }
        self.serving.drain_jobs(&self.engine);
    }

    fn start(&self, work: Box<dyn FnOnce() + Send>) -> bool {
        let (serving, engine) = (Arc::clone(&self.serving), self.engine());
        let work = move || {
            work();
            // The close may have returned before this work ended.
            serving.drain_commits(&engine);
        };
        self.start("onlyonce-close", work).is_ok()
    }
}

impl std::ops::Deref for Embedded {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if self.is_view || self.successor().is_some() {
            return;
        }
        if self.engine.is_foreign() {
            // The threads are the parent's. Descriptors detect the fork themselves.
            std::mem::forget(std::mem::take(&mut *self.threads.lock()));
            return;
        }
        // An ending that was sent goes on, also without its caller.
        self.serving.finish_jobs(&self.engine);
        // A drop can't report an error; what was acknowledged is on disk, and the next open recovers.
        let _ = self.close(None);
    }
}
