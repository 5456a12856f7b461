//! What the handles of one open store share: the engine, and the threads that work for it.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::engine::Engine;
use crate::sync::{self, AtomicBool, Mutex, Ordering};
use crate::{Error, ErrorKind, Result};

/// An engine, and the threads that work for it. Dropped with the last handle or guard: that closes the store.
pub(crate) struct Shared {
    engine: Arc<Engine>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    is_stopping: Arc<AtomicBool>,
}

impl Shared {
    pub(crate) fn new(engine: Engine) -> Self {
        Shared {
            engine: Arc::new(engine),
            threads: Mutex::new(Vec::new()),
            is_stopping: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Starts the background threads: one for the log, whose work is short and can't wait, and one for the index.
    pub(crate) fn start_upkeep(&self) -> Result<()> {
        let (engine, stop) = (Arc::clone(&self.engine), Arc::clone(&self.is_stopping));
        self.start("onlyonce-log", move || engine.run_log(&|| stop.load(Ordering::SeqCst)))?;
        let (engine, stop) = (Arc::clone(&self.engine), Arc::clone(&self.is_stopping));
        self.start("onlyonce-index", move || engine.run_index(&|| stop.load(Ordering::SeqCst)))
    }

    fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = sync::spawn(name, body)
            .map_err(|e| Error::new(ErrorKind::Io, "starting a background thread").because(e))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    pub(crate) fn stop_upkeep(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.engine.wake_background();
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
            // The thread and the lock are the parent's.
            self.engine.abandon();
            std::mem::forget(std::mem::take(&mut *self.threads.lock()));
            return;
        }
        self.stop_upkeep();
        // Nobody is left to tell; what was acknowledged is on disk, and the next opening recovers.
        let _ = self.engine.close();
    }
}
