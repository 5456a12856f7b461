//! The engine in this process, and its threads.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::serving::Serving;
use crate::engine::{Engine, Threads, Unended};
use crate::sync::{self, Mutex};
use crate::{Error, Result};

/// An engine and its threads. Dropping it closes the store.
pub(crate) struct Embedded {
    engine: Arc<Engine>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    pub(super) serving: Arc<Serving>,
    /// What a close does before it lets nothing in any more: other processes are sent away.
    parts: Mutex<Option<Parting>>,
    sharing: Arc<Mutex<Sharing>>,
    /// Its handles don't count: dropping it closes nothing.
    is_view: bool,
}

type Parting = Box<dyn FnOnce() + Send>;

/// Whether other processes can share a store.
enum Sharing {
    /// It was opened for this process alone.
    No,
    /// It was to be shared, and this process can't listen. Why.
    CanNot(String),
    Served(ServedGuests),
}

/// The other processes that a store serves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServedGuests {
    pub(crate) joined: u64,
    /// The greatest of this process and of theirs.
    pub(crate) result_bytes_max: u32,
}

impl Embedded {
    pub(crate) fn new(engine: Engine) -> Self {
        let serving = Serving::new();
        Embedded {
            engine: Arc::new(engine),
            threads: Arc::new(Mutex::new(Vec::new())),
            serving,
            parts: Mutex::new(None),
            sharing: Arc::new(Mutex::new(Sharing::No)),
            is_view: false,
        }
    }

    /// An engine on a disk whose changes stay in memory: it has no threads, and a close would write to memory alone.
    pub(crate) fn reader(engine: Engine) -> Self {
        let mut reader = Embedded::new(engine);
        reader.is_view = true;
        reader
    }

    /// The same store for callers that don't keep it open.
    pub(crate) fn view(&self) -> Self {
        Embedded {
            engine: Arc::clone(&self.engine),
            threads: Arc::clone(&self.threads),
            serving: Arc::clone(&self.serving),
            parts: Mutex::new(None),
            sharing: Arc::clone(&self.sharing),
            is_view: true,
        }
    }

    /// Has a close call `parting` before it lets nothing in any more.
    pub(crate) fn at_close(&self, parting: impl FnOnce() + Send + 'static) {
        *self.parts.lock() = Some(Box::new(parting));
    }

    /// The guests that it serves; `None`: it takes none.
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

    pub(super) fn engine(&self) -> Arc<Engine> {
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
            // The close may have given up waiting for it.
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
        if self.is_view {
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
