//! The engine in this process, and the threads that work for it.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::engine::{Engine, Threads, Unended};
use crate::sync::{self, Mutex};
use crate::{Error, Result};

/// An engine, and the threads that work for it. Dropping it closes the store.
pub(crate) struct Embedded {
    engine: Arc<Engine>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Embedded {
    pub(crate) fn new(engine: Engine) -> Self {
        Embedded { engine: Arc::new(engine), threads: Mutex::new(Vec::new()) }
    }

    /// Starts the background threads: one for the log, whose work is short and can't wait, and one for the index.
    pub(crate) fn start_upkeep(&self) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        self.start("onlyonce-log", move || engine.run_log(&|| engine.is_closing()))?;
        let engine = Arc::clone(&self.engine);
        self.start("onlyonce-index", move || engine.run_index(&|| engine.is_closing()))
    }

    fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let dir = self.engine.dir();
        let thread = sync::spawn(name, body)
            .map_err(|e| Error::io("starting a background thread for", &dir, e))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// See [`Engine::close`].
    pub(crate) fn close(&self, deadline: Option<u64>) -> Result<Unended> {
        self.engine.close(deadline, self)
    }
}

impl Threads for Embedded {
    fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads.into_iter().filter(|thread| !sync::is_current(thread)) {
            // It can only have panicked, and then there is nobody to tell.
            let _ = thread.join();
        }
    }

    fn start(&self, work: Box<dyn FnOnce() + Send>) -> bool {
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
        if self.engine.is_foreign() {
            // The threads are the parent's. Descriptors know by themselves that they are, too.
            std::mem::forget(std::mem::take(&mut *self.threads.lock()));
            return;
        }
        // Nobody is left to tell; what was acknowledged is on disk, and the next opening recovers.
        let _ = self.close(None);
    }
}
