//! The commit queue under loom: every schedule of a few threads, up to a bound of preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --profile explore --lib loom_`; `LOOM_MAX_PREEMPTIONS` sets another bound. A lost
//! wake-up shows as a deadlock, which loom reports. At a bound of three the tests pass too, in two minutes.

use std::sync::Arc;

use loom::thread;

use super::*;
use crate::sync::Mutex;

/// A log of bare LSNs, one per record: the ends of the placed, the written and the durable part.
struct Model {
    queue: CommitQueue,
    tail: Mutex<Tail>,
    /// The end of the written part. The thread that holds the lock writes.
    writer: Mutex<u64>,
    device: AtomicU64,
    is_syncing: AtomicBool,
    syncs: AtomicU32,
    fault: Fault,
}

struct Tail {
    end: u64,
    taken: u64,
    round: u32,
    /// Records after this one lie in the next segment.
    segment_end: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The sync with this number fails, and so does each later one.
    Sync(u32),
    Write,
    PanickingSync,
    PanickingWrite,
}

impl Model {
    fn new(fault: Fault) -> Arc<Self> {
        Model::rolling(fault, None)
    }

    fn rolling(fault: Fault, segment_end: Option<u64>) -> Arc<Self> {
        Arc::new(Model {
            queue: CommitQueue::new(Lsn::new(0), Arc::new(Gate::new())),
            tail: Mutex::new(Tail { end: 0, taken: 0, round: 0, segment_end }),
            writer: Mutex::new(0),
            device: AtomicU64::new(0),
            is_syncing: AtomicBool::new(false),
            syncs: AtomicU32::new(0),
            fault,
        })
    }

    fn place(&self) -> Placed {
        let mut tail = self.tail.lock();
        let lsn = Lsn::new(tail.end);
        tail.end += 1;
        Placed { lsn, round: tail.round }
    }

    fn sync_now(&self, end: u64) -> Result<(), Failed> {
        assert!(!self.is_syncing.swap(true, Ordering::SeqCst), "two syncs in flight");
        let number = self.syncs.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Fault::Sync(first) if number >= first => {
                self.queue.poison();
                return Err(Failed);
            }
            Fault::PanickingSync => std::panic::resume_unwind(Box::new("the sync panicked")),
            _ => {}
        }
        self.device.fetch_max(end, Ordering::SeqCst);
        self.is_syncing.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn write(&self, written: &mut u64, from: u64, end: u64) -> Result<(), Failed> {
        if self.queue.is_poisoned() {
            return Err(Failed);
        }
        if self.fault == Fault::Write && end > from {
            self.queue.poison();
            return Err(Failed);
        }
        if self.fault == Fault::PanickingWrite && end > from {
            std::panic::resume_unwind(Box::new("the write panicked"));
        }
        assert_eq!(*written, from, "what is written is a prefix");
        *written = end;
        self.queue.set_written(Lsn::new(end));
        Ok(())
    }

    /// Commits a record and checks that it is durable exactly if the queue says so. Returns whether it is.
    fn commit(&self) -> bool {
        let placed = self.place();
        let done = self.queue.wait_durable(placed, self);
        if done.is_ok() {
            assert!(
                self.device.load(Ordering::SeqCst) > placed.lsn.get(),
                "acknowledged too early"
            );
        } else {
            assert!(self.queue.is_poisoned());
        }
        done.is_ok()
    }

    /// As `commit`, at the level of a write.
    fn flush(&self) -> bool {
        let placed = self.place();
        let done = self.queue.wait_written(placed, self);
        if done.is_ok() {
            assert!(*self.writer.lock() > placed.lsn.get(), "acknowledged too early");
        } else {
            assert!(self.queue.is_poisoned());
        }
        done.is_ok()
    }
}

impl Sink for Model {
    fn write_round(&self) -> Result<(u32, Lsn), Failed> {
        let mut written = self.writer.lock();
        let (round, from, end, segment_end) = {
            let mut tail = self.tail.lock();
            let round = tail.round;
            tail.round += 1;
            let (end, mut crossed) = (tail.end, tail.segment_end.take());
            if crossed.is_some_and(|at| at >= end) {
                tail.segment_end = crossed.take();
            }
            (round, std::mem::replace(&mut tail.taken, end), end, crossed)
        };
        if let Some(at) = segment_end {
            // The old segment is synced whole before the next is written.
            self.write(&mut written, from, at)?;
            self.sync_now(at)?;
            self.write(&mut written, at, end)?;
        } else {
            self.write(&mut written, from, end)?;
        }
        Ok((round, Lsn::new(end)))
    }

    fn try_write(&self) -> Result<Write, Failed> {
        let Some(mut written) = self.writer.try_lock() else { return Ok(Write::Busy) };
        let (from, end) = {
            let mut tail = self.tail.lock();
            if tail.segment_end.is_some_and(|at| at < tail.end) {
                return Ok(Write::NeedsSync);
            }
            let end = tail.end;
            (std::mem::replace(&mut tail.taken, end), end)
        };
        self.write(&mut written, from, end)?;
        Ok(Write::Done)
    }

    fn sync(&self) -> Result<(), Failed> {
        let end = *self.writer.lock();
        self.sync_now(end)
    }

    fn nanos(&self) -> u64 {
        0
    }
}

/// Explores `body`. Two preemptions find a missing wake-up or a wrong order, at a bearable cost.
fn explore(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(body);
}

fn spawn(model: &Arc<Model>, body: fn(&Model) -> bool) -> thread::JoinHandle<bool> {
    let model = Arc::clone(model);
    thread::spawn(move || body(&model))
}

#[test]
fn loom_two_threads_at_sync_are_both_durable() {
    explore(|| {
        let model = Model::new(Fault::None);
        let other = spawn(&model, Model::commit);
        assert!(model.commit());
        assert!(other.join().unwrap());
        assert!(model.syncs.load(Ordering::SeqCst) <= 2);
    });
}

#[test]
fn loom_three_threads_at_sync_are_all_durable() {
    explore(|| {
        let model = Model::new(Fault::None);
        let others = [spawn(&model, Model::commit), spawn(&model, Model::commit)];
        assert!(model.commit());
        assert!(others.map(|other| other.join().unwrap()).into_iter().all(|done| done));
    });
}

#[test]
fn loom_a_thread_that_commits_twice_next_to_another_never_hangs() {
    explore(|| {
        let model = Model::new(Fault::None);
        let other = spawn(&model, |model| model.commit() && model.commit());
        assert!(model.commit());
        assert!(other.join().unwrap());
    });
}

#[test]
fn loom_three_threads_at_flush_sleep_and_are_woken() {
    explore(|| {
        let model = Model::new(Fault::None);
        let others = [spawn(&model, Model::flush), spawn(&model, Model::flush)];
        assert!(model.flush());
        assert!(others.map(|other| other.join().unwrap()).into_iter().all(|done| done));
    });
}

#[test]
fn loom_sync_and_flush_mix() {
    explore(|| {
        let model = Model::new(Fault::None);
        let others = [spawn(&model, Model::commit), spawn(&model, Model::flush)];
        assert!(model.flush());
        assert!(others.map(|other| other.join().unwrap()).into_iter().all(|done| done));
    });
}

#[test]
fn loom_a_roll_syncs_at_flush_too() {
    explore(|| {
        let model = Model::rolling(Fault::None, Some(1));
        let other = spawn(&model, Model::flush);
        assert!(model.flush());
        assert!(other.join().unwrap());
        // The second of the two crossed into the next segment.
        assert!(model.device.load(Ordering::SeqCst) >= 1);
    });
}

#[test]
fn loom_a_roll_under_sync_and_flush() {
    explore(|| {
        let model = Model::rolling(Fault::None, Some(1));
        let others = [spawn(&model, Model::commit), spawn(&model, Model::flush)];
        assert!(model.commit());
        assert!(others.map(|other| other.join().unwrap()).into_iter().all(|done| done));
    });
}

#[test]
fn loom_a_failed_sync_is_reported_to_all_waiters() {
    explore(|| {
        let model = Model::new(Fault::Sync(0));
        let others = [spawn(&model, Model::commit), spawn(&model, Model::commit)];
        assert!(!model.commit());
        assert!(others.map(|other| other.join().unwrap()).into_iter().all(|done| !done));
        assert!(model.queue.is_poisoned());
    });
}

#[test]
fn loom_records_durable_before_a_failed_sync_stay_acknowledged() {
    explore(|| {
        let model = Model::new(Fault::Sync(1));
        let other = spawn(&model, Model::commit);
        let (mine, theirs) = (model.commit(), other.join().unwrap());
        // One sync for both, or the first alone.
        assert!(mine || theirs);
    });
}

#[test]
fn loom_a_failed_write_is_reported_to_all_waiters() {
    explore(|| {
        let model = Model::new(Fault::Write);
        let others = [spawn(&model, Model::commit), spawn(&model, Model::flush)];
        assert!(!model.flush());
        assert!(others.map(|other| other.join().unwrap()).into_iter().all(|done| !done));
    });
}

#[test]
fn loom_a_panic_of_the_leader_is_reported_to_all_waiters() {
    explore(|| {
        let model = Model::new(Fault::PanickingSync);
        let commit = |model: &Model| {
            let commit = std::panic::AssertUnwindSafe(|| model.commit());
            std::panic::catch_unwind(commit).unwrap_or(false)
        };
        let others = [spawn(&model, commit), spawn(&model, commit)];
        assert!(!commit(&model));
        assert!(others.map(|other| other.join().unwrap()).into_iter().all(|done| !done));
        assert!(model.queue.is_poisoned());
    });
}

#[test]
fn loom_a_panic_in_a_write_is_reported_to_all_waiters() {
    explore(|| {
        let model = Model::new(Fault::PanickingWrite);
        let flush = |model: &Model| {
            let flush = std::panic::AssertUnwindSafe(|| model.flush());
            std::panic::catch_unwind(flush).unwrap_or(false)
        };
        let other = spawn(&model, flush);
        assert!(!flush(&model));
        assert!(!other.join().unwrap());
        assert!(model.queue.is_poisoned());
    });
}

/// A wait for a record of an earlier round sleeps among the open round's waiters. Woken to lead their round, it found
/// its own record durable and left, while they slept on. Now it passes the wake-up on.
#[test]
fn loom_a_wait_for_an_earlier_record_passes_the_wake_up_on() {
    explore(|| {
        let model = Model::new(Fault::None);
        let first = model.place();
        let others = [
            spawn(&model, |model| {
                let round = model.tail.lock().round;
                let earlier = Placed { lsn: Lsn::ZERO, round };
                model.queue.wait_durable_earlier(earlier, model).is_ok()
            }),
            spawn(&model, Model::commit),
        ];
        assert!(model.queue.wait_durable(first, &*model).is_ok());
        assert!(others.map(|other| other.join().unwrap()).into_iter().all(|done| done));
    });
}
