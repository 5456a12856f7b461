//! Closing: waits for claims in flight, then for all calls inside; the last writes may take longer than the close waits.
//!
//! Promises: the directory's lock is released only when nothing is inside the gate and nothing more is written. A close
//! with a deadline returns whatever the disk does: another thread does its writes, and a later close gets the result.
//! Never: acknowledges anything.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use super::Engine;
use super::compose::compose;
use super::heir::{Claims, Legacy};
use crate::index::recent::{Entry, Live, Place};
use crate::limits;
use crate::log::Room;
use crate::operation::Key;
use crate::protocol::{self, Becomes, Call, Conditions, Current, KeyState, OpenAs, Presence};
use crate::storage::DirLock;
use crate::sync::{Mutex, Ordering, WakeWord};
use crate::types::StoreMillis;
use crate::{Error, ErrorKind, Result};

/// Keys whose claims a close interrupted.
pub(crate) type Unended = Vec<(Key<'static>, KeyState)>;

/// State of the directory's lock.
pub(super) enum LockState {
    Open(Box<dyn DirLock>),
    /// A close does its last part, or gave up waiting for it.
    Finishing(Arc<Finish>),
    Released,
}

impl LockState {
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, LockState::Released)
    }
}

/// The last part of a close, which takes as long as the disk does.
pub(super) struct Finish {
    lock: Mutex<Option<Box<dyn DirLock>>>,
    state: Mutex<FinishState>,
    ended: WakeWord,
    /// When reclaim must stop, by the monotonic clock.
    reclaim_until: Option<u64>,
    /// The lock and the claims go to another open of this process.
    passes_on: bool,
}

enum FinishState {
    Due,
    Running,
    Over(Result<Unended>),
    Panicked(Box<dyn Any + Send>),
}

impl Finish {
    fn set(&self, state: FinishState) {
        *self.state.lock() = state;
        self.ended.wake_all();
    }
}

/// A store's threads, as a close uses them.
pub(crate) trait Threads {
    /// Sends those away whom the store answers besides its own handles. Before the gate closes.
    fn part(&self);
    /// Waits for the threads that have nothing more to do.
    fn join(&self);
    /// Runs `work` on another thread. Returns whether one could be started.
    fn start(&self, work: Box<dyn FnOnce() + Send>) -> bool;
}

impl Engine {
    pub(crate) fn drain(&self) {
        if !self.log.gate().is_draining() {
            self.log.events.draining();
        }
        self.log.gate().drain();
        // Claims that wait for their key are refused now.
        self.waits.tell_all();
    }

    /// Takes no new claims, waits for those in flight at most `deadline` milliseconds, and lets nothing in any more. Once
    /// nothing is inside, the claims still in flight are interrupted, everything is made durable, the log is closed, and
    /// the directory's lock is released. Says which claims were interrupted.
    ///
    /// If something is still inside at the deadline, or [`CLOSE_MILLIS_LEAST`](limits::CLOSE_MILLIS_LEAST) after the
    /// gate began to close, the lock is kept, and a later close continues. The same if the close's own writes haven't
    /// ended by the deadline, or [`CLOSE_WRITES_MILLIS_LEAST`](limits::CLOSE_WRITES_MILLIS_LEAST) after they began.
    /// `None`: waits for as long as it takes.
    pub(crate) fn close(
        self: &Arc<Self>,
        deadline: Option<u64>,
        threads: &dyn Threads,
    ) -> Result<Unended> {
        self.close_as(deadline, threads, false)
    }

    pub(super) fn close_as(
        self: &Arc<Self>,
        deadline: Option<u64>,
        threads: &dyn Threads,
        passes_on: bool,
    ) -> Result<Unended> {
        if self.is_foreign() {
            return Ok(Vec::new());
        }
        let nanos = || self.log.seams().clock.monotonic_nanos();
        let began = nanos();
        let left = |least: u64| {
            let waited = (nanos() - began) / 1_000_000;
            // 0 once the deadline has passed.
            deadline.map(|millis| millis.saturating_sub(waited).max(least))
        };
        let gate = self.log.gate();
        if !passes_on {
            self.drain();
        }
        // Another close may have an earlier deadline.
        let of_guests = || self.in_flight_of_guests.load(Ordering::SeqCst);
        let may_end = || self.in_flight.load(Ordering::SeqCst) <= of_guests() || gate.is_closing();
        if deadline.is_some() {
            self.ended.wait_until(deadline, &nanos, &may_end);
        }
        // Another close is at work, and may fail.
        let Some(mut locked) = self.lock.try_lock() else { return Err(self.log.closed()) };
        let finish = match locked.take() {
            LockState::Released => return Err(self.log.closed()),
            // An earlier close has waited in vain.
            LockState::Finishing(finish) => finish,
            LockState::Open(lock) => {
                threads.part();
                // Before the gate closes: a call that finds it closed waits for this close, or finds it over.
                self.is_at_close.store(true, Ordering::SeqCst);
                if passes_on {
                    gate.pass_on();
                }
                gate.begin_closing();
                self.ended.wake_all();
                self.wake_background();
                let most = left(limits::CLOSE_MILLIS_LEAST);
                if !gate.left().wait_until(most, &nanos, &|| gate.is_quiet()) {
                    *locked = LockState::Open(lock);
                    self.is_over();
                    return Err(self.not_closed());
                }
                // In a poisoned store a thread may be in a sync, which is not waited for; it ends by itself.
                if !self.log.is_poisoned() {
                    threads.join();
                }
                let millis = left(limits::CLOSE_MILLIS_LEAST);
                Arc::new(Finish {
                    lock: Mutex::new(Some(lock)),
                    state: Mutex::new(FinishState::Due),
                    ended: WakeWord::new(),
                    // A deadline beyond the clock's range is none.
                    reclaim_until: millis
                        .and_then(|millis| nanos().checked_add(millis.checked_mul(1_000_000)?)),
                    passes_on,
                })
            }
        };
        *locked = LockState::Finishing(Arc::clone(&finish));
        let is_due = matches!(*finish.state.lock(), FinishState::Due);
        if is_due {
            finish.set(FinishState::Running);
            let may_wait = deadline.is_none() || !self.writes_at_close();
            if may_wait || !self.start_finish(&finish, threads) {
                self.run_finish(&finish);
            }
        }
        let most = left(limits::CLOSE_WRITES_MILLIS_LEAST);
        let is_running = || matches!(*finish.state.lock(), FinishState::Running);
        if !finish.ended.wait_until(most, &nanos, &|| !is_running()) {
            return Err(self.not_closed());
        }
        // In a poisoned store one of them may still be in a sync.
        if !gate.is_syncing() {
            threads.join();
        }
        let ended = std::mem::replace(&mut *finish.state.lock(), FinishState::Due);
        match ended {
            FinishState::Over(closed) => {
                *locked = LockState::Released;
                closed
            }
            // The store is poisoned: a later close has nothing to write.
            FinishState::Panicked(panic) => resume_unwind(panic),
            FinishState::Due | FinishState::Running => {
                Err(self.log.bug("a close that ended and has no end"))
            }
        }
    }

    /// Returns the error of a close that would have to wait longer.
    fn not_closed(&self) -> Error {
        let message = "calls on the store, its background, or the close itself still wait for the disk: it takes no new calls, \
             and its directory stays locked until close is called again and they have returned, or the process ends";
        Error::new(ErrorKind::InProgress, message).at(self.log.dir())
    }

    fn writes_at_close(&self) -> bool {
        self.log.is_writing() && !self.log.is_poisoned()
    }

    fn start_finish(self: &Arc<Self>, finish: &Arc<Finish>, threads: &dyn Threads) -> bool {
        let (engine, finish) = (Arc::clone(self), Arc::clone(finish));
        threads.start(Box::new(move || engine.run_finish(&finish)))
    }

    /// Runs the last part. A panic is passed on to the thread that waits for it.
    fn run_finish(&self, finish: &Finish) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.finish(finish)));
        self.is_over();
        finish.set(match ended {
            Ok(closed) => FinishState::Over(closed),
            Err(panic) => FinishState::Panicked(panic),
        });
    }

    /// A close has made durable what it could, or has given up.
    fn is_over(&self) {
        self.is_at_close.store(false, Ordering::SeqCst);
        self.ended.wake_all();
    }

    /// Waits until no close is at work. Called from outside the gate.
    pub(super) fn await_close(&self) {
        self.ended.wait_until(None, &|| self.nanos(), &|| !self.is_at_close());
    }

    /// Does the last part of a close, once nothing is inside.
    fn finish(&self, finish: &Finish) -> Result<Unended> {
        let gate = self.log.gate();
        gate.finish();
        let _span = self.log.events.closing();
        let (left, claims) = match finish.passes_on || self.is_on_trial() {
            true => (Vec::new(), self.take_claims()),
            false => (self.interrupt_all(), Claims::default()),
        };
        for (key, state) in &left {
            self.log.events.interrupted_by_close(key, key.namespace(), state.token.get());
        }
        let closed = self.log.guarded(|| self.close_log(finish.reclaim_until));
        gate.end();
        self.log.events.closed(left.len(), closed.as_ref().err());
        // A sync of the poisoned store may have returned just before. Its thread notices the poison, and leaves.
        let nanos = || self.log.seams().clock.monotonic_nanos();
        gate.left().wait_until(None, &nanos, &|| gate.is_quiet());
        let lock = finish.lock.lock().take();
        if let (true, Some(lock)) = (finish.passes_on, lock) {
            self.bequeath(Legacy::new(lock, claims));
        }
        closed.map(|()| left)
    }

    /// Seals the index in memory, so that the next open has little to read, and closes the log.
    fn close_log(&self, reclaim_until: Option<u64>) -> Result<()> {
        if !self.writes_at_close() {
            // Without locking `work`: in a poisoned store a thread that holds it may hang in a sync.
            return self.log.resuming().close(|_| {});
        }
        let mut work = self.work.lock();
        self.merges().give_up_merge(&mut work);
        // The close is clean even if reclaim fails.
        let _ = self.compaction().reclaim_at_close(&mut work, reclaim_until);
        // Without a table the log closes nevertheless, and the next open reads it: where there is no space for one, and where
        // reading is sooner done.
        let change = if self.is_soon_read() { None } else { self.seal().ok().flatten() };
        let done = self.log.resuming().close(|manifest| {
            if let Some(change) = &change {
                change.apply(manifest);
            }
        });
        if let (Some(change), Ok(())) = (&change, &done) {
            self.install(change);
        }
        done
    }

    /// Whether the next open reads the records that no table covers sooner than this close would write a table of them, and
    /// has the memory for them. A short life then costs the fewest syncs.
    fn is_soon_read(&self) -> bool {
        let bytes = self.log.bytes_since(self.tables.lock().covered);
        let keys = bytes / limits::RECORD_BYTES_LEAST;
        bytes < limits::UNSEALED_AT_CLOSE_BYTES && keys < self.checkpoint_keys as u64
    }

    pub(super) fn interrupt_all(&self) -> Vec<(Key<'static>, KeyState)> {
        let mut left = Vec::new();
        for index in 0..limits::SHARDS {
            let Some(mut shard) = self.recent.nth_shard(index) else { break };
            let now = self.log.now();
            for entry in shard.iter_mut() {
                let Some(live) = entry.live.take() else { continue };
                let Some(key) = Key::from_stored(live.key_kind, &live.key).map(Key::into_owned)
                else {
                    let _ = self.log.bug("a claim in memory has an impossible key");
                    continue;
                };
                if live.owner().is_some() {
                    // It lives on: its record says so to whoever hosts next.
                    self.ended_one(true);
                } else if live.presence == Presence::Owner {
                    self.ended_one(false);
                    // A detached claim outlives the process: its ticket attaches again.
                    left.extend(
                        self.interrupt_for_close(&key, entry, &live, now).map(|state| (key, state)),
                    );
                }
            }
        }
        left
    }

    /// Returns the state in which the key is left if the claim is interrupted. Recording that is best effort: without the
    /// record, the next open concludes the same from the claim's record.
    fn interrupt_for_close(
        &self,
        key: &Key<'_>,
        entry: &mut Entry,
        live: &Live,
        now: StoreMillis,
    ) -> Option<KeyState> {
        let current = Current {
            state: Some(&live.state),
            memory_until: live.state.memory_until,
            presence: live.presence,
            lease_until: live.lease_until,
            question: 0,
            step_has_ended: false,
        };
        let reason = Some("the store was closed");
        let conditions = Conditions { reason, ..Conditions::default() };
        let call = Call::Interrupt(live.state.token);
        let moment = self.moment(now);
        let next = protocol::decide(&current, call, &conditions, moment).next;
        let becomes = next.and_then(|next| next.becomes)?;
        // The token stays, so that none is issued.
        let draft = compose(key, &becomes, 0, moment, None, None);
        let Ok(placed) = self.log.place(draft, Room::Spend(live.reserved)) else {
            return Some(live.state.clone());
        };
        entry.place = Place::new(placed.lsn, entry.place.level(), Some(OpenAs::Attempt));
        match becomes {
            Becomes::State(interrupted) => Some(interrupted.stored(live.state.token)),
            // An interruption is a state of the key.
            Becomes::Step(_) | Becomes::Absent { .. } => {
                let _ = self.log.bug("a claim that the close interrupts becomes something else");
                None
            }
        }
    }
}
