//! What loom can't see of the commit queue: how long somebody waits awake.

use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// Somebody is writing, until told otherwise.
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

/// Waiters at `Flush` used to yield for as long as a roll synced the old segment: a processor each, for what may
/// take a second.
#[test]
fn a_wait_for_a_long_write_is_slept_through() {
    let writing = Writing {
        queue: CommitQueue::new(Lsn::ZERO),
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
        // Whoever spun would try again at each of these turns.
        (0..10_000).for_each(|_| thread::yield_now());
        let before = tries();
        writing.is_over.store(true, Ordering::SeqCst);
        writing.queue.let_others_write();
        assert_eq!(waiter.join().unwrap(), Ok(()));
        assert_eq!((before, tries()), (WRITE_YIELDS + 1, WRITE_YIELDS + 2));
    });
}
