//! Where one side waits for what another thread does: a [`Desk`] for a result, a [`Seat`] for the disk.
//!
//! Promises: a caller that asks often replaces its waker, and no more.

use std::sync::Arc;
use std::task::Waker;

use crate::sync::{Mutex, WakeWord, wake};

/// Where a thread that works for a caller leaves the result.
pub(super) struct Desk<T> {
    state: Mutex<DeskState<T>>,
    word: WakeWord,
}

struct DeskState<T> {
    result: Option<T>,
    waker: Option<Waker>,
    is_abandoned: bool,
}

impl<T> Desk<T> {
    pub(super) fn new() -> Arc<Self> {
        let state = DeskState { result: None, waker: None, is_abandoned: false };
        Arc::new(Desk { state: Mutex::new(state), word: WakeWord::new() })
    }

    /// Leaves the result. Returns it if nobody waits for it any more.
    pub(super) fn put(&self, result: T) -> Option<T> {
        let mut state = self.state.lock();
        if state.is_abandoned {
            return Some(result);
        }
        state.result = Some(result);
        let waker = state.waker.take();
        drop(state);
        self.word.wake_all();
        if let Some(waker) = waker {
            wake(waker);
        }
        None
    }

    pub(super) fn take(&self) -> Option<T> {
        self.state.lock().result.take()
    }

    /// Has `waker` woken by the result. Returns false if it is there.
    pub(super) fn set_waker(&self, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        if state.result.is_none() {
            keep(&mut state.waker, waker);
            return true;
        }
        false
    }

    pub(super) fn wait(&self) -> T {
        loop {
            let seen = self.word.read();
            if let Some(result) = self.take() {
                return result;
            }
            self.word.wait(seen, None);
        }
    }

    /// Nobody waits for the result any more. Returns it if it is there.
    pub(super) fn abandon(&self) -> Option<T> {
        let mut state = self.state.lock();
        state.is_abandoned = true;
        state.result.take()
    }
}

/// A caller's place among those that wait for the disk.
pub(super) struct Seat(Mutex<SeatState>);

/// `None`: it was served.
type SeatState = Option<Waker>;

impl Seat {
    pub(super) fn new(waker: &Waker) -> Arc<Self> {
        Arc::new(Seat(Mutex::new(Some(waker.clone()))))
    }

    /// Has `waker` woken instead of the one before. Returns false if it was served meanwhile.
    pub(super) fn set_waker(&self, waker: &Waker) -> bool {
        let mut kept = self.0.lock();
        let is_queued = kept.is_some();
        if is_queued {
            keep(&mut kept, waker);
        }
        is_queued
    }

    /// The disk has what the caller waits for, or never will.
    pub(super) fn serve(&self) {
        let waker = self.0.lock().take();
        if let Some(waker) = waker {
            wake(waker);
        }
    }
}

fn keep(kept: &mut Option<Waker>, waker: &Waker) {
    match kept {
        Some(kept) => kept.clone_from(waker),
        none => *none = Some(waker.clone()),
    }
}
