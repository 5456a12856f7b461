//! What the handles of one open store share: the engine, and the threads that work for it.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::engine::Engine;
use crate::protocol::KeyState;
use crate::sync::{self, Mutex};
use crate::{Error, Key, Result};

/// An engine, and the threads that work for it. Dropped with the last handle or guard: that closes the store.
pub(crate) struct Shared {
    engine: Arc<Engine>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    pub(crate) fn new(engine: Engine) -> Self {
        Shared { engine: Arc::new(engine), threads: Mutex::new(Vec::new()) }
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
    pub(crate) fn close(&self, deadline: Option<u64>) -> Result<Vec<(Key<'static>, KeyState)>> {
        self.engine.close(deadline, &|| self.join_threads())
    }

    /// Waits for the threads, none of which is inside the gate any more.
    fn join_threads(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads.into_iter().filter(|thread| !sync::is_current(thread)) {
            // It can only have panicked, and then there is nobody to tell.
            let _ = thread.join();
        }
    }
}

impl std::ops::Deref for Shared {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for Shared {
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
