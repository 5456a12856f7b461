//! Background work of the log, one piece at a time: a thread, a test or a host without threads calls `step`.
//!
//! Promises: bytes handed to the system are synced after a second or 4 MiB, at every level; a watermark covers every
//! durable record soon after the last one; an idle store does no more I/O once a watermark covers all of it. Segments
//! are prepared before they are needed. Nothing is done once the log is poisoned.

use super::{Log, Room};
use crate::clock::TimeNote;
use crate::limits;
use crate::record::Draft;
use crate::sync::{AtomicBool, Mutex, Ordering, WakeWord};
use crate::types::Lsn;
use crate::{Error, Result};

/// When `step` wants to be called again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// There was work, and there may be more.
    Now,
    /// In so many milliseconds.
    In(u64),
}

impl Due {
    pub(crate) fn wait(self) -> std::time::Duration {
        match self {
            Due::Now => std::time::Duration::ZERO,
            Due::In(millis) => std::time::Duration::from_millis(millis),
        }
    }
}

/// What the background remembers between steps.
pub(super) struct Upkeep {
    state: Mutex<UpkeepState>,
    /// The thread that calls `step`, if there is one, sleeps on it.
    word: WakeWord,
    is_asleep: AtomicBool,
    /// The error that keeps it from preparing space.
    trouble: Mutex<Option<Error>>,
}

#[derive(Default)]
struct UpkeepState {
    seen_end: Lsn,
    changed_at: u64,
    unsynced_since: Option<u64>,
}

impl Upkeep {
    pub(super) fn new() -> Self {
        Upkeep {
            state: Mutex::new(UpkeepState::default()),
            word: WakeWord::new(),
            is_asleep: AtomicBool::new(false),
            trouble: Mutex::new(None),
        }
    }
}

/// State of the tail, read at once, from which the due work follows.
struct TailView {
    end: Lsn,
    keyed_end: Lsn,
    marked: Lsn,
    buffered: u64,
    last_time_note: TimeNote,
}

impl Log {
    /// Does one piece of background work, if one is due.
    pub(crate) fn step(&self) -> Result<Due> {
        let idle = Due::In(limits::TIME_NOTE_MILLIS);
        if self.may_go_on().is_err() || !self.is_writing() {
            return Ok(idle);
        }
        let prepared = self.rooms().prepare_ahead();
        *self.upkeep.trouble.lock() = prepared.as_ref().err().map(Error::again);
        let retry = match prepared {
            Ok(Due::Now) => return Ok(Due::Now),
            Ok(due) => due,
            Err(e) if self.is_poisoned() => return Err(e),
            // A full disk, or no file descriptor left: claims report it, and records already placed are synced
            // nevertheless. A later step notices when it is over.
            Err(_) => Due::In(limits::UNSYNCED_MILLIS_MAX),
        };
        let view = self.view();
        let due = self.step_at(&view)?;
        Ok(match (due, retry) {
            (Due::In(a), Due::In(b)) => Due::In(a.min(b)),
            (due, _) => due,
        })
    }

    /// Returns the error that keeps the background from preparing space, if it failed the last time.
    pub(crate) fn trouble(&self) -> Option<Error> {
        self.upkeep.trouble.lock().as_ref().map(Error::again)
    }

    fn step_at(&self, view: &TailView) -> Result<Due> {
        let mut state = self.upkeep.state.lock();
        // Read under the lock, so that no time in `state` is later.
        let now = self.seams.clock.monotonic_nanos() / 1_000_000;
        if view.end != state.seen_end {
            state.seen_end = view.end;
            state.changed_at = now;
        }
        let durable = self.durable();
        if view.keyed_end > durable {
            let since = *state.unsynced_since.get_or_insert(now);
            let waited = now - since;
            let is_due = waited >= limits::UNSYNCED_MILLIS_MAX
                || view.end.since(durable) >= limits::UNSYNCED_BYTES_MAX;
            if is_due {
                state.unsynced_since = None;
                state.changed_at = now;
                drop(state);
                return self.sync().map(|()| Due::Now);
            }
        } else {
            state.unsynced_since = None;
        }
        let rested = now - state.changed_at;
        // A sync made a record durable that no watermark covers yet.
        let unmarked = durable.min(view.keyed_end) > view.marked;
        if rested < limits::IDLE_NOTE_MILLIS {
            return Ok(Due::In(limits::IDLE_NOTE_MILLIS - rested));
        }
        if unmarked || self.is_time_note_due(view) {
            let draft = if self.is_time_note_due(view) { None } else { Some(Draft::note(None)) };
            let placed = match draft {
                None => self.resuming().note_time(),
                Some(draft) => self.place(draft, Room::Note).is_ok(),
            };
            if placed {
                // Not a change that calls for another note.
                state.seen_end = self.view().end;
                drop(state);
                self.write_out().map_err(|_| self.poisoned())?;
                return Ok(Due::Now);
            }
        }
        if view.buffered > 0 {
            drop(state);
            self.write_out().map_err(|_| self.poisoned())?;
            return Ok(Due::Now);
        }
        let sync_in = state.unsynced_since.map(|since| {
            // No sync was due above, so this can't underflow.
            limits::UNSYNCED_MILLIS_MAX - (now - since)
        });
        Ok(Due::In(sync_in.unwrap_or(limits::TIME_NOTE_MILLIS)))
    }

    fn view(&self) -> TailView {
        let tail = self.tail.lock();
        TailView {
            end: tail.end(),
            keyed_end: tail.keyed_end,
            marked: tail.marked,
            buffered: tail.buffered,
            last_time_note: tail.last_time_note,
        }
    }

    /// A note is due once an hour, and whenever wall time and store time have drifted apart by a second.
    fn is_time_note_due(&self, view: &TailView) -> bool {
        let age = self.now().since(view.last_time_note.store);
        age >= limits::TIME_NOTE_MILLIS
            || self.store_clock.drifted(&*self.seams.clock, &view.last_time_note)
    }

    /// The body of the background thread: steps until `stop` returns true. `after` runs other work of the thread
    /// after each step.
    pub(crate) fn run_upkeep(&self, stop: &dyn Fn() -> bool, after: &dyn Fn()) {
        while !stop() {
            // A failure has poisoned the log, or is reported to the next claim, so it is dropped here. A panic ends
            // this thread, without which Lazy records would never be written: so it poisons.
            let Ok(inside) = self.enter() else { return };
            let due = self.guarded(|| self.step());
            after();
            drop(inside);
            let due = due.unwrap_or(Due::In(limits::UNSYNCED_MILLIS_MAX));
            let Due::In(millis) = due else { continue };
            let seen = self.upkeep.word.read();
            let end = self.view().end;
            // A short sleep ends by itself: busy threads should not pay for a wake-up.
            self.upkeep.is_asleep.store(millis > limits::IDLE_NOTE_MILLIS, Ordering::SeqCst);
            // Read after the announcement: a thread that places from then on sees it.
            if self.view().end == end && !stop() {
                self.upkeep.word.wait(seen, Some(millis));
            }
            self.upkeep.is_asleep.store(false, Ordering::SeqCst);
        }
    }

    /// Whether the background thread sleeps until it is woken, with nothing left to sync.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.upkeep.is_asleep.load(Ordering::SeqCst) && self.view().keyed_end <= self.durable()
    }

    /// Wakes the background thread so that it checks its `stop`.
    pub(crate) fn stop_upkeep(&self) {
        self.upkeep.word.wake_all();
    }

    /// Wakes the background thread, if it sleeps, because there is new work.
    pub(crate) fn wake_upkeep(&self) {
        if self.upkeep.is_asleep.load(Ordering::Relaxed)
            && self.upkeep.is_asleep.swap(false, Ordering::SeqCst)
        {
            self.upkeep.word.wake_one();
        }
    }
}
