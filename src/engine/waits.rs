//! Callers that wait for a key: claimants until it is free, and owners until their claim is no longer theirs.
//!
//! Promises: a caller that joined before it looked at the key is woken by every change that may concern it. Claimants have their
//! turn in the order in which they joined: a change that may make a key free wakes the first of them, which goes on waiting
//! at its place if it finds the key taken, and wakes the next one if it leaves; an outcome wakes all. No waker is called under a
//! lock. Never: looks at a key, or knows why it changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;

use hashbrown::HashTable;

use crate::limits::SHARDS;
use crate::operation::Key;
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, WakeWord, wake};
use crate::types::{KeyHash, in_memory};

/// All callers that wait.
pub(crate) struct Waits {
    shards: Vec<WaitShard>,
    /// Those that are to be woken at a time, by the monotonic clock in nanoseconds.
    timers: Mutex<BTreeMap<(u64, u64), Arc<Waiter>>>,
    /// The thread that wakes them sleeps on it.
    timer_word: WakeWord,
    next: AtomicU64,
}

struct WaitShard {
    /// Callers in this shard: endings of keys that nobody waits for look no further.
    callers: AtomicU32,
    queues: Mutex<HashTable<Queue>>,
}

/// The callers that wait for one key, in the order in which they joined.
struct Queue {
    hash: KeyHash,
    key_kind: u8,
    key: Box<[u8]>,
    claimants: BTreeMap<u64, Arc<Waiter>>,
    owners: BTreeMap<u64, Arc<Waiter>>,
}

/// One caller: a thread that sleeps, or a future.
pub(crate) struct Waiter {
    waker: Mutex<Option<Waker>>,
    word: WakeWord,
}

impl Waiter {
    fn wake(&self) {
        let waker = self.waker.lock().take();
        self.word.wake_all();
        if let Some(waker) = waker {
            wake(waker);
        }
    }
}

/// What a caller waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WaitsTo {
    /// Claim the key.
    Claim,
    /// Learn that a claim is no longer its own.
    End,
}

/// Which claimants a change wakes. It wakes all owners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wakes {
    /// The key may be free for one.
    First,
    /// The key has an answer for all.
    All,
}

impl Waits {
    pub(crate) fn new() -> Arc<Self> {
        let shard =
            || WaitShard { callers: AtomicU32::new(0), queues: Mutex::new(HashTable::new()) };
        Arc::new(Waits {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            timers: Mutex::new(BTreeMap::new()),
            timer_word: WakeWord::new(),
            next: AtomicU64::new(0),
        })
    }

    fn shard(&self, hash: KeyHash) -> Option<&WaitShard> {
        self.shards.get(in_memory(hash.low % SHARDS as u64))
    }

    /// Joins the callers that wait for a key, at the end.
    pub(crate) fn join(self: &Arc<Self>, key: &Key<'_>, hash: KeyHash, to: WaitsTo) -> Turn {
        let turn = Turn { alarm: Alarm::new(self), hash, to };
        if let Some(shard) = self.shard(hash) {
            let mut queues = shard.queues.lock();
            shard.callers.fetch_add(1, Ordering::SeqCst);
            let is_key = |queue: &Queue| queue.is_of(key);
            let queue = match queues.find_mut(hash.high, is_key) {
                Some(queue) => queue,
                None => {
                    let queue = Queue {
                        hash,
                        key_kind: key.kind(),
                        key: key.bytes().into(),
                        claimants: BTreeMap::new(),
                        owners: BTreeMap::new(),
                    };
                    queues.insert_unique(hash.high, queue, |queue| queue.hash.high).into_mut()
                }
            };
            queue.callers_mut(to).insert(turn.alarm.number, Arc::clone(&turn.alarm.waiter));
        }
        turn
    }

    /// Whether anybody waits whom a change of that key may concern. Asked after the change, on the way of every call.
    #[inline]
    pub(super) fn may_concern(&self, hash: KeyHash) -> bool {
        // A caller joins before it looks at the key under the lock that the change was made under.
        self.shard(hash).is_some_and(|shard| shard.callers.load(Ordering::SeqCst) > 0)
    }

    /// Wakes callers after a change of a key. Called without a lock.
    #[cold]
    pub(super) fn tell(&self, key: &Key<'_>, hash: KeyHash, wakes: Wakes) {
        let Some(shard) = self.shard(hash).filter(|_| self.may_concern(hash)) else { return };
        let mut woken: Vec<Arc<Waiter>> = Vec::new();
        {
            let queues = shard.queues.lock();
            let Some(queue) = queues.find(hash.high, |queue| queue.is_of(key)) else { return };
            let most = if wakes == Wakes::All { usize::MAX } else { 1 };
            woken.extend(queue.claimants.values().take(most).cloned());
            woken.extend(queue.owners.values().cloned());
        }
        woken.iter().for_each(|waiter| waiter.wake());
    }

    /// Returns the number of callers that wait.
    pub(super) fn callers(&self) -> u64 {
        self.shards.iter().map(|shard| u64::from(shard.callers.load(Ordering::Relaxed))).sum()
    }

    /// Wakes everybody: what changed may concern any key. Called without a lock.
    pub(crate) fn tell_all(&self) {
        for shard in &self.shards {
            let queues = shard.queues.lock();
            let all = queues.iter().flat_map(|queue| {
                queue.claimants.values().chain(queue.owners.values()).cloned().collect::<Vec<_>>()
            });
            let all: Vec<_> = all.collect();
            drop(queues);
            all.iter().for_each(|waiter| waiter.wake());
        }
        self.timer_word.wake_all();
    }

    /// Wakes those whose time has come. Returns in how many milliseconds the next one's comes.
    pub(crate) fn fire(&self, now: u64) -> Option<u64> {
        loop {
            let mut timers = self.timers.lock();
            let first = timers.first_entry()?;
            let (due, _) = *first.key();
            if due > now {
                // Rounded up: woken early, it would sleep again at once.
                return Some((due - now).div_ceil(1_000_000));
            }
            let waiter = first.remove();
            drop(timers);
            waiter.wake();
        }
    }

    /// The body of the thread that wakes those whose time has come: until `stop` says so.
    pub(crate) fn run_timers(&self, nanos: &dyn Fn() -> u64, stop: &dyn Fn() -> bool) {
        loop {
            let seen = self.timer_word.read();
            if stop() {
                return;
            }
            let millis = self.fire(nanos());
            self.timer_word.wait(seen, millis);
        }
    }

    fn leave(&self, turn: &Turn) -> Option<Arc<Waiter>> {
        let shard = self.shard(turn.hash)?;
        let mut queues = shard.queues.lock();
        let is_in = |queue: &Queue| queue.callers(turn.to).contains_key(&turn.alarm.number);
        let mut found = queues.find_entry(turn.hash.high, is_in).ok()?;
        let queue = found.get_mut();
        let callers = queue.callers_mut(turn.to);
        let first = callers.first_key_value().map(|(number, _)| *number);
        callers.remove(&turn.alarm.number)?;
        shard.callers.fetch_sub(1, Ordering::SeqCst);
        let next = queue.claimants.first_key_value().map(|(_, waiter)| Arc::clone(waiter));
        if queue.claimants.is_empty() && queue.owners.is_empty() {
            found.remove();
        }
        next.filter(|_| turn.to == WaitsTo::Claim && first == Some(turn.alarm.number))
    }
}

impl Queue {
    fn is_of(&self, key: &Key<'_>) -> bool {
        self.key_kind == key.kind() && *self.key == *key.bytes()
    }

    fn callers(&self, to: WaitsTo) -> &BTreeMap<u64, Arc<Waiter>> {
        match to {
            WaitsTo::Claim => &self.claimants,
            WaitsTo::End => &self.owners,
        }
    }

    fn callers_mut(&mut self, to: WaitsTo) -> &mut BTreeMap<u64, Arc<Waiter>> {
        match to {
            WaitsTo::Claim => &mut self.claimants,
            WaitsTo::End => &mut self.owners,
        }
    }
}

/// A place among the callers that wait for a key. Dropped, it is given up, and the next claimant is woken: it may be answered
/// differently, or has to learn of another lease. It knows its queue by its own number, and keeps no copy of the key.
pub(crate) struct Turn {
    alarm: Alarm,
    hash: KeyHash,
    to: WaitsTo,
}

impl Turn {
    /// Whether it is the first: only the first claimant looks at the key when a lease or a delay has passed.
    pub(crate) fn is_first(&self) -> bool {
        let Some(shard) = self.alarm.waits.shard(self.hash) else { return false };
        let queues = shard.queues.lock();
        let is_first = |queue: &Queue| {
            let first = queue.callers(self.to).first_key_value();
            first.is_some_and(|(number, _)| *number == self.alarm.number)
        };
        queues.find(self.hash.high, is_first).is_some()
    }

    /// What is to be read before the key is looked at: a wake-up after that ends [`wait`](Self::wait) at once.
    pub(crate) fn read(&self) -> u32 {
        self.alarm.waiter.word.read()
    }

    /// Sleeps until it is woken, at most `millis`. Returns whether the time was up.
    pub(crate) fn wait(&self, seen: u32, millis: Option<u64>) -> bool {
        self.alarm.waiter.word.wait(seen, millis)
    }

    /// See [`Alarm::set_waker`].
    pub(crate) fn set_waker(&self, waker: &Waker) -> bool {
        self.alarm.set_waker(waker)
    }

    /// See [`Alarm::set_due`].
    pub(crate) fn set_due(&mut self, due: Option<u64>) -> bool {
        self.alarm.set_due(due)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(next) = self.alarm.waits.leave(self) {
            next.wake();
        }
    }
}

/// Wakes a caller at a time. Dropped, it is called off.
pub(crate) struct Alarm {
    waits: Arc<Waits>,
    number: u64,
    waiter: Arc<Waiter>,
    /// When it is woken in any case.
    due: Option<u64>,
}

impl Alarm {
    pub(crate) fn new(waits: &Arc<Waits>) -> Self {
        let number = waits.next.fetch_add(1, Ordering::Relaxed);
        let waiter = Arc::new(Waiter { waker: Mutex::new(None), word: WakeWord::new() });
        Alarm { waits: Arc::clone(waits), number, waiter, due: None }
    }

    pub(crate) fn is_of(&self, waits: &Arc<Waits>) -> bool {
        Arc::ptr_eq(&self.waits, waits)
    }

    /// Has `waker` woken instead of a thread. Returns whether none was kept: then the key is to be looked at once more, since it
    /// may have changed before.
    pub(crate) fn set_waker(&self, waker: &Waker) -> bool {
        let mut kept = self.waiter.waker.lock();
        match &mut *kept {
            Some(kept) => {
                kept.clone_from(waker);
                false
            }
            none => {
                *none = Some(waker.clone());
                true
            }
        }
    }

    /// Sets when it is woken in any case, by the monotonic clock in nanoseconds. Returns whether a thread has to see to that
    /// from now on.
    pub(crate) fn set_due(&mut self, due: Option<u64>) -> bool {
        if self.due == due {
            return due.is_some();
        }
        let mut timers = self.waits.timers.lock();
        if let Some(before) = self.due.take() {
            timers.remove(&(before, self.number));
        }
        let Some(due) = due else { return false };
        self.due = Some(due);
        timers.insert((due, self.number), Arc::clone(&self.waiter));
        let is_first = timers.first_key_value().is_some_and(|(first, _)| first.1 == self.number);
        drop(timers);
        if is_first {
            self.waits.timer_word.wake_all();
        }
        true
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.set_due(None);
    }
}
