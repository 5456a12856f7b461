//! Group commit: which thread writes, which syncs, and which are woken.
//!
//! Promises: at most one sync in flight; a waiter returns only when its record is durable (or written), or the log is
//! poisoned; a leader that fails or panics wakes all waiters; no wake-up is lost. A single thread pays for no
//! hand-over: one write, one sync, no wait. Never: reorders or retries.
//!
//! Leader and followers, as in RocksDB's write group, with two additions that measurements justify: the leader
//! *gathers* (it yields for up to half a sync's time, so that the threads just released can join the round and two
//! cohorts don't take turns), and each batch, called a round, sleeps on its own word, which one call wakes. Explored
//! under loom; see the tests.

use std::sync::Arc;

use super::open::lifecycle::Gate;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, WakeWord, fence, yield_now};
use crate::types::Lsn;

/// What the queue drives: the log's buffer and its files.
pub(crate) trait Sink {
    /// Hands everything placed so far to the system and closes the round. Returns the round and its end.
    fn write_round(&self) -> Result<(u32, Lsn), Failed>;

    /// Hands everything placed so far to the system without closing the round, unless another thread is writing.
    fn try_write(&self) -> Result<Write, Failed>;

    /// Syncs what `write_round` handed over.
    fn sync(&self) -> Result<(), Failed>;

    /// A clock for durations, in nanoseconds.
    fn nanos(&self) -> u64;
}

/// A write or a sync failed. The sink knows why, and poisons the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failed;

/// How an attempt to write without a sync went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Write {
    Done,
    /// Another thread is writing.
    Busy,
    /// The buffer crosses into another segment, which requires a sync of the old one.
    NeedsSync,
}

/// Where a record was placed, and the round that will make it durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Placed {
    pub(crate) lsn: Lsn,
    pub(crate) round: u32,
}

/// Yields before a waiter sleeps, where many wait and syncs are short.
const YIELDS: u32 = 3;
const YIELD_WAITERS: u32 = 8;
const YIELD_SYNC_NANOS: u64 = 200_000;
/// Yields before a waiter for a write sleeps: a write is soon over, but the writer may be syncing a segment's end.
/// None under loom and shuttle: they are to explore the sleep.
const WRITE_YIELDS: u32 = if cfg!(any(loom, shuttle)) { 0 } else { 64 };
/// After so many rounds of gathering in vain, the next [`GATHER_SKIP`] don't gather.
const GATHER_MISSES: u32 = 3;
const GATHER_SKIP: u32 = 64;
/// A clock that stands still over so many yields is driven by a test: gathering doesn't wait for it.
const GATHER_STILL: u32 = 64;

/// The state all waiters share. Rounds alternate between two slots.
pub(crate) struct CommitQueue {
    /// End of what was handed to the system.
    written: AtomicU64,
    /// The value `written` had before the last successful sync began.
    durable: AtomicU64,
    leading: AtomicBool,
    /// Knows whether the store is poisoned.
    gate: Arc<Gate>,
    rounds: [Round; 2],
    /// Threads that found another thread writing sleep on it.
    writing: WakeWord,
    write_sleepers: AtomicU32,
    /// How many waiters to gather: those that the last round released, and those that waited for the next round by
    /// then.
    target: AtomicU32,
    /// Moving average of a sync's time.
    sync_nanos: AtomicU64,
    misses: AtomicU32,
    skip: AtomicU32,
}

struct Round {
    word: WakeWord,
    sleepers: AtomicU32,
    /// Waiters for this round's sync.
    arrived: AtomicU32,
}

impl Round {
    fn new() -> Self {
        Round { word: WakeWord::new(), sleepers: AtomicU32::new(0), arrived: AtomicU32::new(0) }
    }
}

impl CommitQueue {
    /// A queue over a log that is durable up to `end`.
    pub(crate) fn new(end: Lsn, gate: Arc<Gate>) -> Self {
        CommitQueue {
            written: AtomicU64::new(end.get()),
            durable: AtomicU64::new(end.get()),
            leading: AtomicBool::new(false),
            gate,
            rounds: [Round::new(), Round::new()],
            writing: WakeWord::new(),
            write_sleepers: AtomicU32::new(0),
            target: AtomicU32::new(0),
            sync_nanos: AtomicU64::new(0),
            misses: AtomicU32::new(0),
            skip: AtomicU32::new(0),
        }
    }

    pub(crate) fn written(&self) -> Lsn {
        Lsn::new(self.written.load(Ordering::SeqCst))
    }

    pub(crate) fn durable(&self) -> Lsn {
        Lsn::new(self.durable.load(Ordering::SeqCst))
    }

    /// Whether there is a leader: others may be waiting for a sync. Only a hint.
    pub(crate) fn is_led(&self) -> bool {
        self.leading.load(Ordering::Relaxed)
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.gate.is_poisoned()
    }

    /// Notes that the sink has written up to `end`. Called with the writer's lock held, so that it only grows.
    pub(crate) fn set_written(&self, end: Lsn) {
        debug_assert!(self.written() <= end, "{} to {end}", self.written());
        self.written.store(end.get(), Ordering::SeqCst);
    }

    /// Restarts at `end`, where a log continues in another segment; everything up to there is durable.
    pub(crate) fn restart_at(&self, end: Lsn) {
        self.written.store(end.get(), Ordering::SeqCst);
        self.durable.store(end.get(), Ordering::SeqCst);
    }

    /// Poisons the queue: nothing is written any more, and all waiters return.
    pub(crate) fn poison(&self) {
        self.gate.poison(None);
        for round in &self.rounds {
            round.word.wake_all();
        }
        self.writing.wake_all();
    }

    fn round(&self, number: u32) -> &Round {
        let [even, odd] = &self.rounds;
        if number % 2 == 0 { even } else { odd }
    }

    /// Waits until the record placed there is handed to the system, where it outlives the process.
    pub(crate) fn wait_written(&self, placed: Placed, sink: &impl Sink) -> Result<(), Failed> {
        let mut yields = 0_u32;
        loop {
            if self.written() > placed.lsn {
                return Ok(());
            }
            if self.is_poisoned() {
                return Err(Failed);
            }
            let write = if yields < WRITE_YIELDS {
                self.try_write(sink)?
            } else {
                self.try_write_or_wait(placed, sink)?
            };
            match write {
                Write::Done => {}
                Write::Busy => {
                    yields += 1;
                    yield_now();
                }
                // The record may belong to a round that has ended.
                Write::NeedsSync => return self.wait_durable_earlier(placed, sink),
            }
        }
    }

    fn try_write(&self, sink: &impl Sink) -> Result<Write, Failed> {
        let unwinding = PoisonOnDrop { queue: self };
        let write = sink.try_write();
        std::mem::forget(unwinding);
        if write != Ok(Write::Busy) {
            self.let_others_write();
        }
        write
    }

    /// Writes, or sleeps until the writing thread has released the writer.
    ///
    /// The order is that of [`wait_for_lead`](Self::wait_for_lead): announce the sleep, read the word, try again. The
    /// thread that held the writer at that try looks for sleepers after its release, and changes the word.
    fn try_write_or_wait(&self, placed: Placed, sink: &impl Sink) -> Result<Write, Failed> {
        self.write_sleepers.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let seen = self.writing.read();
        let write = self.try_write(sink);
        if write == Ok(Write::Busy) && self.written() <= placed.lsn && !self.is_poisoned() {
            self.writing.wait(seen, None);
        }
        self.write_sleepers.fetch_sub(1, Ordering::SeqCst);
        write
    }

    /// Wakes threads that wait for the writer. Called by the thread that released it.
    fn let_others_write(&self) {
        fence(Ordering::SeqCst);
        if self.write_sleepers.load(Ordering::SeqCst) > 0 {
            self.writing.wake_all();
        }
    }

    /// Waits until the record placed there is durable.
    pub(crate) fn wait_durable(&self, placed: Placed, sink: &impl Sink) -> Result<(), Failed> {
        if self.durable() > placed.lsn {
            return Ok(());
        }
        let round = self.round(placed.round);
        round.arrived.fetch_add(1, Ordering::SeqCst);
        let mut yields = 0;
        loop {
            // What became durable before the poison stays acknowledged.
            if self.durable() > placed.lsn {
                return Ok(());
            }
            if self.is_poisoned() {
                return Err(Failed);
            }
            if self.try_lead() {
                if self.durable() > placed.lsn {
                    self.pass_lead_on();
                    return Ok(());
                }
                self.lead(placed.round, sink)?;
                continue;
            }
            if yields < self.yields_worthwhile(round) {
                yields += 1;
                yield_now();
                continue;
            }
            self.wait_for_lead(placed, round);
        }
    }

    /// As [`wait_durable`](Self::wait_durable), for a record of an earlier round than `placed` says, the open one.
    ///
    /// It sleeps among the open round's waiters, and may be woken to lead them. Its own record is durable then, so it
    /// passes the wake-up on.
    pub(crate) fn wait_durable_earlier(
        &self,
        placed: Placed,
        sink: &impl Sink,
    ) -> Result<(), Failed> {
        let done = self.wait_durable(placed, sink);
        if !self.leading.load(Ordering::SeqCst) {
            self.wake_a_leader();
        }
        done
    }

    fn try_lead(&self) -> bool {
        self.leading.compare_exchange(false, true, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Sleeps until the round's word changes, unless there is nothing to wait for.
    ///
    /// The order makes it safe: the thread announces its sleep, then reads the word, then the state. The thread that
    /// ends a round changes the state first and looks for sleepers afterwards. Both have a fence in between, so that
    /// one of the two sees the other.
    fn wait_for_lead(&self, placed: Placed, round: &Round) {
        round.sleepers.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let seen = round.word.read();
        let must_wait = self.durable() <= placed.lsn
            && !self.is_poisoned()
            && self.leading.load(Ordering::SeqCst);
        if must_wait {
            round.word.wait(seen, None);
        }
        round.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn yields_worthwhile(&self, round: &Round) -> u32 {
        let many = round.arrived.load(Ordering::Relaxed) > YIELD_WAITERS;
        let short = self.sync_nanos.load(Ordering::Relaxed) < YIELD_SYNC_NANOS;
        if many && short { YIELDS } else { 0 }
    }

    /// Writes and syncs one round, and wakes the waiters it covered. The caller has the lead.
    fn lead(&self, open_round: u32, sink: &impl Sink) -> Result<(), Failed> {
        let lead = Lead { queue: self };
        self.gather(open_round, sink);
        let (round, end) = sink.write_round()?;
        self.let_others_write();
        let began = sink.nanos();
        sink.sync()?;
        // The sync took the writer's lock for a moment, to learn which file to sync.
        self.let_others_write();
        // Another operation failed meanwhile. The durable end stays as it was then, for all waiters.
        if self.is_poisoned() {
            return Err(Failed);
        }
        self.took(sink.nanos() - began);
        debug_assert!(self.durable() <= end && end <= self.written(), "{end}");
        // Stored only after the sync: everything up to `end` was handed over before the sync began.
        self.durable.store(end.get(), Ordering::SeqCst);
        std::mem::forget(lead);
        self.stop_leading(round);
        Ok(())
    }

    /// Releases the lead after `round`: wakes the waiters it covered, and one of the next round to lead it.
    fn stop_leading(&self, round: u32) {
        let (ended, next) = (self.round(round), self.round(round.wrapping_add(1)));
        let released = ended.arrived.swap(0, Ordering::SeqCst);
        let waiting = next.arrived.load(Ordering::SeqCst);
        self.target.store(released + waiting, Ordering::Relaxed);
        self.leading.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if ended.sleepers.load(Ordering::SeqCst) > 0 {
            ended.word.wake_all();
        }
        if next.sleepers.load(Ordering::SeqCst) > 0 {
            next.word.wake_one();
        }
    }

    /// Releases the lead unused: a thread that sleeps because the lead was taken may lead instead.
    fn pass_lead_on(&self) {
        self.leading.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.wake_a_leader();
    }

    fn wake_a_leader(&self) {
        for round in &self.rounds {
            if round.sleepers.load(Ordering::SeqCst) > 0 {
                round.word.wake_one();
            }
        }
    }

    /// Yields until as many wait as the last round released and left waiting, or half a sync's time is over.
    fn gather(&self, round: u32, sink: &impl Sink) {
        let target = self.target.load(Ordering::Relaxed);
        let arrived = &self.round(round).arrived;
        if target < 2 || arrived.load(Ordering::SeqCst) >= target {
            return;
        }
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
            return;
        }
        let window = self.sync_nanos.load(Ordering::Relaxed) / 2;
        let began = sink.nanos();
        let (mut now, mut still) = (began, 0);
        while now - began < window && still < GATHER_STILL {
            yield_now();
            let last = std::mem::replace(&mut now, sink.nanos());
            still = if now == last { still + 1 } else { 0 };
            if arrived.load(Ordering::SeqCst) >= target {
                self.misses.store(0, Ordering::Relaxed);
                return;
            }
        }
        let misses = self.misses.load(Ordering::Relaxed) + 1;
        let give_up = misses >= GATHER_MISSES;
        self.misses.store(if give_up { 0 } else { misses }, Ordering::Relaxed);
        self.skip.store(if give_up { GATHER_SKIP } else { 0 }, Ordering::Relaxed);
    }

    fn took(&self, nanos: u64) {
        let average = self.sync_nanos.load(Ordering::Relaxed);
        let next = if average == 0 { nanos } else { average - average / 8 + nanos / 8 };
        self.sync_nanos.store(next, Ordering::Relaxed);
    }
}

/// Held while writing without the lead: a panic would lose the bytes on their way to the file, so it poisons the
/// queue.
struct PoisonOnDrop<'a> {
    queue: &'a CommitQueue,
}

impl Drop for PoisonOnDrop<'_> {
    fn drop(&mut self) {
        self.queue.poison();
    }
}

/// Held by a leader: dropped before its round is durable, by an error or a panic, it poisons the queue.
struct Lead<'a> {
    queue: &'a CommitQueue,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.queue.gate.poison(None);
        self.queue.leading.store(false, Ordering::SeqCst);
        self.queue.poison();
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
