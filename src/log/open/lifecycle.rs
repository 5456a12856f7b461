//! The gate: the lifecycle of an open log, and the threads inside it.
//!
//! Promises: every call, background step and walk is inside the gate while it works. A close admits nothing more and
//! waits until nothing is inside; only then may the directory's lock be released. So the next open cuts or removes no
//! file that this one reads or writes. After a failure or a close nothing reaches the disk: [`disk`] refuses every
//! change. Never: does I/O, or knows what it guards.
//!
//! States and transitions: `docs/architecture.md`, "Lifecycle". Explored under loom alone, and under shuttle with the
//! whole engine.

pub(in crate::log) mod disk;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

use std::path::Path;

use crate::sync::{self, AtomicU32, AtomicU64, Mutex, Ordering, WakeWord};
use crate::{Error, ErrorKind};

/// LSNs may be taken: everything that must precede the first one is durable.
const BEGUN: u32 = 1 << 0;
/// A tail that no watermark covers is not yet durable; its records can't be read yet.
const UNSETTLED: u32 = 1 << 1;
/// New claims are refused. All other calls go on.
const DRAINING: u32 = 1 << 2;
/// Nothing may enter any more; calls inside end.
const CLOSING: u32 = 1 << 3;
/// Only the close is inside, and does the rest.
const FINISHING: u32 = 1 << 6;
/// Nothing is inside, and nothing will be. Another open may own the directory.
const CLOSED: u32 = 1 << 4;
/// A write or a sync failed, or a bug of ours was detected: nothing is written any more.
const POISONED: u32 = 1 << 5;

/// The close hands the directory's lock to another open of this process, which calls are about to be made on.
const PASSED_ON: u32 = 1 << 7;

/// Threads count themselves in separate slots, as far as there are enough, so that they share no cache line.
const SLOTS: usize = if cfg!(any(loom, shuttle)) { 2 } else { 16 };

/// One thread inside, and one that is outside for the length of a sync.
const INSIDE: u64 = 1;
const SYNCING: u64 = 1 << 32;

#[repr(align(128))]
struct Counter(AtomicU64);

/// Why the gate refuses a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeptOut {
    /// This process is a fork of the one that opened the store.
    Forked,
    Closed,
}

/// Returns the error of a call in a forked child on what its parent opened in `dir`.
pub(in crate::log) fn forked(dir: &Path) -> Error {
    let message = "this process is a fork of the one that opened the store: use it in the parent, or, once the parent has closed it or ended, open it here";
    Error::new(ErrorKind::Forked, message).at(dir)
}

/// A sync outlasted the close of a poisoned store: its result must not be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::log) struct Overtaken;

/// See the module.
pub(crate) struct Gate {
    state: AtomicU32,
    slots: [Counter; SLOTS],
    /// Changes when a thread leaves while the gate closes, and when the store is poisoned.
    left: WakeWord,
    /// The first failure.
    cause: Mutex<Option<Error>>,
    fork_generation: u32,
}

/// Held by a thread inside. Proves to functions that must be called from inside that they are.
#[must_use]
pub(crate) struct Inside<'g> {
    gate: &'g Gate,
    slot: usize,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Gate {
            state: AtomicU32::new(0),
            slots: std::array::from_fn(|_| Counter(AtomicU64::new(0))),
            left: WakeWord::new(),
            cause: Mutex::new(None),
            fork_generation: crate::storage::fork::generation(),
        }
    }

    fn is(&self, bits: u32) -> bool {
        self.state.load(Ordering::SeqCst) & bits != 0
    }

    /// Whether this process is a fork of the one that opened the store: then nothing may be touched.
    pub(crate) fn is_foreign(&self) -> bool {
        crate::storage::fork::generation() != self.fork_generation
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.is(BEGUN)
    }

    /// Whether LSNs may be taken and their records still be written.
    pub(crate) fn takes_lsns(&self) -> bool {
        self.state.load(Ordering::SeqCst) & (BEGUN | POISONED | CLOSED) == BEGUN
    }

    pub(crate) fn is_unsettled(&self) -> bool {
        self.is(UNSETTLED)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is(DRAINING)
    }

    /// Whether the gate is closing or closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.is(CLOSING | CLOSED)
    }

    /// Whether a close waits for the threads inside. Long loops check it, so that a close waits for them 50 ms at
    /// most.
    pub(crate) fn must_leave(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state & CLOSED != 0 || state & (CLOSING | FINISHING) == CLOSING
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.is(POISONED)
    }

    /// Whether the disk may be changed.
    pub(crate) fn may_change(&self) -> bool {
        !self.is(POISONED | CLOSED)
    }

    /// The first failure, if there was one.
    pub(crate) fn cause(&self) -> Option<Error> {
        self.cause.lock().as_ref().map(Error::again)
    }

    /// Notes that the open found a tail that must be made durable before it is read.
    pub(crate) fn leave_unsettled(&self) {
        self.state.fetch_or(UNSETTLED, Ordering::SeqCst);
    }

    /// Notes that the tail is durable and may be read.
    pub(crate) fn settle(&self) {
        self.state.fetch_and(!UNSETTLED, Ordering::SeqCst);
    }

    /// Allows LSNs to be taken.
    pub(crate) fn begin(&self) {
        debug_assert!(!self.is(UNSETTLED | CLOSED));
        self.state.fetch_or(BEGUN, Ordering::SeqCst);
    }

    /// Refuses new claims from now on.
    pub(crate) fn drain(&self) {
        self.state.fetch_or(DRAINING, Ordering::SeqCst);
    }

    /// Refuses all writes from now on. The first cause is kept.
    pub(crate) fn poison(&self, cause: Option<Error>) -> bool {
        let mut is_first = false;
        if let Some(cause) = cause {
            // Set before the state, so that a thread that finds the store poisoned also finds the cause.
            let mut first = self.cause.lock();
            is_first = first.is_none();
            first.get_or_insert(cause);
        }
        self.state.fetch_or(POISONED, Ordering::SeqCst);
        // Wakes a close, which waits for no sync from now on.
        self.left.wake_all();
        is_first
    }

    /// Notes why the next open of this process failed, which is from now on why nothing is written.
    pub(crate) fn not_reopened(&self, cause: Error) {
        *self.cause.lock() = Some(cause);
    }

    fn slot(&self, index: usize) -> Option<&AtomicU64> {
        self.slots.get(index).map(|slot| &slot.0)
    }

    /// Lets the calling thread in.
    ///
    /// The thread first counts itself, then reads the state; a close changes the state first and reads the counts
    /// afterwards. So one of the two sees the other.
    pub(crate) fn enter(&self) -> Result<Inside<'_>, KeptOut> {
        if self.is_foreign() {
            return Err(KeptOut::Forked);
        }
        let slot = sync::thread_number() % SLOTS;
        self.add(slot, INSIDE);
        sync::loom_fence();
        let inside = Inside { gate: self, slot };
        if self.is_closing() {
            return Err(KeptOut::Closed);
        }
        Ok(inside)
    }

    fn add(&self, slot: usize, what: u64) {
        if let Some(slot) = self.slot(slot) {
            slot.fetch_add(what, Ordering::SeqCst);
        }
    }

    fn take(&self, slot: usize, what: u64) {
        if let Some(slot) = self.slot(slot) {
            let before = slot.fetch_sub(what, Ordering::SeqCst);
            debug_assert!(before >= what, "a thread leaves that never came in");
        }
        sync::loom_fence();
        if self.is(CLOSING) {
            self.left.wake_all();
        }
    }

    /// Runs `sync`, and nothing else, outside the gate: a device may never return from it. Returns `Overtaken` if a
    /// close of the poisoned store did not wait for it: then its result must not be used.
    ///
    /// Only a sync may run so: it changes nothing that a later open could miss or find.
    pub(in crate::log) fn outside<T>(&self, sync: impl FnOnce() -> T) -> Result<T, Overtaken> {
        let slot = sync::thread_number() % SLOTS;
        self.add(slot, SYNCING);
        self.take(slot, INSIDE);
        let back = Back { gate: self, slot };
        let done = sync();
        drop(back);
        sync::loom_fence();
        if self.is(CLOSED) { Err(Overtaken) } else { Ok(done) }
    }

    /// Threads inside, and threads outside for a sync.
    fn counts(&self) -> (u64, u64) {
        sync::loom_fence();
        let slots = self.slots.iter().map(|slot| slot.0.load(Ordering::SeqCst));
        slots.fold((0, 0), |(inside, syncing), slot| {
            (inside + slot % SYNCING, syncing + slot / SYNCING)
        })
    }

    /// Lets nothing in from now on.
    pub(crate) fn begin_closing(&self) {
        // Claims that come while the store is reopened are refused because it is poisoned.
        let drains = if self.is_passed_on() { 0 } else { DRAINING };
        self.state.fetch_or(drains | CLOSING, Ordering::SeqCst);
        self.left.wake_all();
    }

    /// Notes that this close hands the store to another open of this process.
    pub(crate) fn pass_on(&self) {
        self.state.fetch_or(PASSED_ON, Ordering::SeqCst);
    }

    pub(crate) fn is_passed_on(&self) -> bool {
        self.is(PASSED_ON)
    }

    /// The word that a close sleeps on until [`is_quiet`](Self::is_quiet).
    pub(crate) fn left(&self) -> &WakeWord {
        &self.left
    }

    /// Whether nothing is inside. Unless the store is poisoned, a close also waits for syncs: they are acknowledged
    /// afterwards.
    pub(crate) fn is_quiet(&self) -> bool {
        let (inside, syncing) = self.counts();
        inside == 0 && (syncing == 0 || self.is_poisoned())
    }

    /// Whether a thread is outside for a sync.
    pub(crate) fn is_syncing(&self) -> bool {
        self.counts().1 > 0
    }

    /// Begins the last part of a close, once the gate was quiet. The counts may be above zero again: a thread that is
    /// being refused is counted for a moment, and a sync of the poisoned store may return.
    pub(crate) fn finish(&self) {
        debug_assert!(self.is(CLOSING));
        self.state.fetch_or(FINISHING, Ordering::SeqCst);
    }

    /// Closes the gate for good: a sync that returns from now on is overtaken. One of a poisoned store may have
    /// returned before, and its thread be inside; so the directory's lock must be kept until the gate [is
    /// quiet](Self::is_quiet) once more.
    pub(crate) fn end(&self) {
        debug_assert!(self.is(FINISHING));
        self.state.fetch_or(CLOSED, Ordering::SeqCst);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.gate.take(self.slot, INSIDE);
    }
}

/// Brings the thread back inside, also when the sync panicked.
struct Back<'g> {
    gate: &'g Gate,
    slot: usize,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.gate.add(self.slot, INSIDE);
        self.gate.take(self.slot, SYNCING);
    }
}
