//! What the handles of one open store share: the engine, and the thread that works for it.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::engine::Engine;
use crate::sync::{self, AtomicBool, Mutex, Ordering};
use crate::{Error, ErrorKind, Result};

/// An engine, and the thread that works for it. Dropped with the last handle or guard: that closes the store.
pub(crate) struct Shared {
    engine: Arc<Engine>,
    upkeep: Mutex<Option<JoinHandle<()>>>,
    is_stopping: Arc<AtomicBool>,
}

impl Shared {
    pub(crate) fn new(engine: Engine) -> Self {
        Shared {
            engine: Arc::new(engine),
            upkeep: Mutex::new(None),
            is_stopping: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Starts the background thread.
    pub(crate) fn start_upkeep(&self) -> Result<()> {
        let (engine, stop) = (Arc::clone(&self.engine), Arc::clone(&self.is_stopping));
        let body = move || engine.log.run_upkeep(&|| stop.load(Ordering::SeqCst));
        let thread = sync::spawn("onlyonce-upkeep", body)
            .map_err(|e| Error::new(ErrorKind::Io, "starting the background thread").because(e))?;
        *self.upkeep.lock() = Some(thread);
        Ok(())
    }

    pub(crate) fn stop_upkeep(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.engine.log.stop_upkeep();
        let thread = self.upkeep.lock().take();
        if let Some(thread) = thread.filter(|thread| !sync::is_current(thread)) {
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
            std::mem::forget(self.upkeep.lock().take());
            return;
        }
        self.stop_upkeep();
        // Nobody is left to tell; what was acknowledged is on disk, and the next opening recovers.
        let _ = self.engine.close();
    }
}
