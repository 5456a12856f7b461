//! Tests of the commit queue that loom can't do: how long a thread waits awake.

use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// A sink whose writer is busy until a test ends that.
struct Writing {
    queue: CommitQueue,
    is_over: AtomicBool,
    tries: AtomicU32,
}

impl Sink for Writing {
    fn write_round(&self) -> Result<(u32, Lsn), Failed> {
        Err(Failed)
    }

    fn try_write(&self) -> Result<Write, Failed> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        if !self.is_over.load(Ordering::SeqCst) {
            return Ok(Write::Busy);
        }
        self.queue.set_written(Lsn::new(1));
        Ok(Write::Done)
    }

    fn sync(&self) -> Result<(), Failed> {
        Err(Failed)
    }

    fn nanos(&self) -> u64 {
        0
    }
}

/// Waiters at `Flush` used to yield for as long as a roll synced the old segment: each used up a processor, for up to
/// a second.
#[test]
fn a_thread_sleeps_while_it_waits_for_a_long_write() {
    let writing = Writing {
        queue: CommitQueue::new(Lsn::ZERO, Arc::new(Gate::new())),
        is_over: AtomicBool::new(false),
        tries: AtomicU32::new(0),
    };
    let tries = || writing.tries.load(Ordering::SeqCst);
    let placed = Placed { lsn: Lsn::ZERO, round: 0 };
    thread::scope(|scope| {
        let waiter = scope.spawn(|| writing.queue.wait_written(placed, &writing));
        let begun = Instant::now();
        while tries() <= WRITE_YIELDS && begun.elapsed() < Duration::from_secs(10) {
            thread::yield_now();
        }
        // A thread that spins would try again at each of these turns.
        (0..10_000).for_each(|_| thread::yield_now());
        let before = tries();
        writing.is_over.store(true, Ordering::SeqCst);
        writing.queue.let_others_write();
        assert_eq!(waiter.join().unwrap(), Ok(()));
        assert_eq!((before, tries()), (WRITE_YIELDS + 1, WRITE_YIELDS + 2));
    });
}

/// A leader whose sync is held, and a roll that comes while a thread waits at `Flush` for a record of its round.
struct Rolling {
    queue: CommitQueue,
    rounds: AtomicU32,
    may_sync: AtomicBool,
}

impl Sink for Rolling {
    fn write_round(&self) -> Result<(u32, Lsn), Failed> {
        let round = self.rounds.fetch_add(1, Ordering::SeqCst);
        let end = Lsn::new(u64::from(round) + 1);
        if round > 0 {
            self.queue.set_written(end);
        }
        Ok((round, end))
    }

    /// The leader released the writer just before, and the records placed since cross into the next segment.
    fn try_write(&self) -> Result<Write, Failed> {
        self.queue.set_written(Lsn::new(1));
        Ok(Write::NeedsSync)
    }

    fn sync(&self) -> Result<(), Failed> {
        while !self.may_sync.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        Ok(())
    }

    fn nanos(&self) -> u64 {
        0
    }
}

/// Such a wait slept among the waiters for the open round's sync, was woken to lead them, and left.
#[test]
fn a_wait_at_flush_for_an_earlier_record_passes_the_wake_up_on() {
    let sink = Rolling {
        queue: CommitQueue::new(Lsn::ZERO, Arc::new(Gate::new())),
        rounds: AtomicU32::new(0),
        may_sync: AtomicBool::new(false),
    };
    let queue = &sink.queue;
    let [_, open] = &queue.rounds;
    let until_they_wait = |count: u32| {
        while open.sleepers.load(Ordering::SeqCst) < count {
            thread::yield_now();
        }
        (0..10_000).for_each(|_| thread::yield_now());
    };
    let (tell, told) = std::sync::mpsc::channel();
    let woken = thread::scope(|scope| {
        let sink = &sink;
        // The leader of round 0, whose sync takes its time.
        scope.spawn(|| queue.wait_durable(Placed { lsn: Lsn::ZERO, round: 0 }, sink));
        while sink.rounds.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        // `Log::commit_earlier` at `Flush`: the record of round 0, and the round that is open now.
        let earlier = scope.spawn(|| queue.wait_written(Placed { lsn: Lsn::ZERO, round: 1 }, sink));
        until_they_wait(1);
        // A record of the open round, at `Sync`.
        scope.spawn(move || {
            tell.send(queue.wait_durable(Placed { lsn: Lsn::new(1), round: 1 }, sink)).unwrap();
        });
        until_they_wait(2);
        sink.may_sync.store(true, Ordering::SeqCst);
        assert_eq!(earlier.join().unwrap(), Ok(()));
        let woken = told.recv_timeout(Duration::from_secs(5));
        queue.poison();
        woken
    });
    assert_eq!(woken, Ok(Ok(())), "no thread woke it");
}

/// A leader whose sync takes the writer's lock for a moment, in which a thread at `Flush` goes to sleep.
struct SyncTakesWriter {
    queue: CommitQueue,
    is_taken: AtomicBool,
}

impl Sink for SyncTakesWriter {
    fn write_round(&self) -> Result<(u32, Lsn), Failed> {
        self.queue.set_written(Lsn::new(1));
        Ok((0, Lsn::new(1)))
    }

    fn try_write(&self) -> Result<Write, Failed> {
        if self.is_taken.load(Ordering::SeqCst) {
            return Ok(Write::Busy);
        }
        self.queue.set_written(Lsn::new(2));
        Ok(Write::Done)
    }

    /// Takes the writer's lock, as a log does to learn which file to sync.
    fn sync(&self) -> Result<(), Failed> {
        self.is_taken.store(true, Ordering::SeqCst);
        while self.queue.write_sleepers.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        (0..10_000).for_each(|_| thread::yield_now());
        self.is_taken.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn nanos(&self) -> u64 {
        0
    }
}

/// No other thread writes afterwards, so only the leader can wake it.
#[test]
fn a_leader_wakes_threads_that_found_the_writer_taken_during_its_sync() {
    let sink = SyncTakesWriter {
        queue: CommitQueue::new(Lsn::ZERO, Arc::new(Gate::new())),
        is_taken: AtomicBool::new(false),
    };
    let queue = &sink.queue;
    let (tell, told) = std::sync::mpsc::channel();
    let woken = thread::scope(|scope| {
        let sink = &sink;
        let leader = scope.spawn(|| queue.wait_durable(Placed { lsn: Lsn::ZERO, round: 0 }, sink));
        while !sink.is_taken.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        scope.spawn(move || {
            tell.send(queue.wait_written(Placed { lsn: Lsn::new(1), round: 1 }, sink)).unwrap();
        });
        assert_eq!(leader.join().unwrap(), Ok(()));
        let woken = told.recv_timeout(Duration::from_secs(5));
        queue.poison();
        woken
    });
    assert_eq!(woken, Ok(Ok(())), "no thread woke it");
}
