//! The threads that do for calls of tasks what would block their executor. Each is started by the first call that needs it.
//!
//! `onlyonce-commit` writes and syncs for all calls that wait for the disk, many with one sync. `onlyonce-call` does what a call
//! waits for before it is placed: reads, and the preparing of space. `onlyonce-time` wakes claims whose time to wait is up,
//! and renews claims that are kept alive.
//! A store with manual maintenance has no threads: there the task itself does that work, and
//! [`Store::step`](crate::Store::step) does that of `onlyonce-time`.
//!
//! Never: decides, or changes a key by itself.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;

use super::Embedded;
use super::desk::Seat;
use crate::engine::{Engine, Needs};
use crate::sync::{self, AtomicBool, AtomicU32, Mutex, Ordering, ThreadId, WakeWord, wake};

/// A piece of work for the thread of calls.
pub(super) type Job = Box<dyn FnOnce(&Engine) + Send>;

/// What these threads share with the calls.
pub(super) struct Serving {
    has_threads: AtomicBool,
    commits: Lane<(Needs, Arc<Seat>)>,
    jobs: Lane<Job>,
    jobs_done: JobsDone,
    timers: Lane<()>,
}

/// What [`Serving::finish_jobs`] waits for.
struct JobsDone {
    /// Threads that do jobs, or look for one.
    at_work: AtomicU32,
    /// The thread of jobs, once it has started.
    thread: Mutex<Option<ThreadId>>,
    is_awaited: AtomicBool,
}

/// A thread's queue.
struct Lane<T> {
    queue: Mutex<VecDeque<T>>,
    word: WakeWord,
    is_started: Mutex<bool>,
}

impl<T> Lane<T> {
    fn new() -> Self {
        Lane {
            queue: Mutex::new(VecDeque::new()),
            word: WakeWord::new(),
            is_started: Mutex::new(false),
        }
    }

    fn put(&self, item: T) {
        let mut queue = self.queue.lock();
        queue.push_back(item);
        let was_empty = queue.len() == 1;
        drop(queue);
        // Otherwise the thread is awake, or about to be.
        if was_empty {
            self.word.wake_all();
        }
    }

    fn take_all(&self) -> VecDeque<T> {
        std::mem::take(&mut *self.queue.lock())
    }

    fn take_one(&self) -> Option<T> {
        self.queue.lock().pop_front()
    }

    /// Waits until something is queued. `false`: nothing is, and `stop` says that nothing will be.
    fn await_some(&self, stop: &dyn Fn() -> bool) -> bool {
        loop {
            let seen = self.word.read();
            if !self.queue.lock().is_empty() {
                return true;
            }
            if stop() {
                return false;
            }
            self.word.wait(seen, None);
        }
    }
}

impl Serving {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Serving {
            has_threads: AtomicBool::new(false),
            commits: Lane::new(),
            jobs: Lane::new(),
            jobs_done: JobsDone {
                at_work: AtomicU32::new(0),
                thread: Mutex::new(None),
                is_awaited: AtomicBool::new(false),
            },
            timers: Lane::new(),
        })
    }

    /// From now on threads may be started.
    pub(super) fn allow_threads(&self) {
        self.has_threads.store(true, Ordering::SeqCst);
    }

    /// Wakes the threads, so that they notice that the store closes.
    pub(super) fn wake(&self) {
        self.commits.word.wake_all();
        self.jobs.word.wake_all();
        self.timers.word.wake_all();
    }

    fn run_commits(&self, engine: &Engine) {
        while self.commits.await_some(&|| engine.is_closing()) {
            if !self.commit_all(engine) {
                // The close waits for this thread, syncs everything, and answers them.
                return self.drain_commits(engine);
            }
        }
    }

    /// Writes and syncs for all calls that are queued. `false`: the store closes.
    fn commit_all(&self, engine: &Engine) -> bool {
        let calls = self.commits.take_all();
        let all = calls.iter().fold(Needs::default(), |all, (needs, _)| all.and(*needs));
        if !engine.try_to_provide(all) {
            self.commits.queue.lock().extend(calls);
            return false;
        }
        calls.into_iter().for_each(|(_, seat)| seat.serve());
        true
    }

    fn run_jobs(&self, engine: &Engine) {
        *self.jobs_done.thread.lock() = Some(sync::thread_id());
        while self.jobs.await_some(&|| engine.is_closing()) {
            self.do_jobs(engine);
        }
    }

    /// Does all jobs that are queued, one after the other.
    fn do_jobs(&self, engine: &Engine) {
        let done = &self.jobs_done;
        // Before one is taken: as long as a job is neither queued nor done, a thread is at work.
        done.at_work.fetch_add(1, Ordering::SeqCst);
        while let Some(job) = self.jobs.take_one() {
            // Its caller is gone, and learns of no panic.
            if catch_unwind(AssertUnwindSafe(|| job(engine))).is_err() {
                let _ = engine.log.bug("a call whose caller is gone panicked");
            }
        }
        done.at_work.fetch_sub(1, Ordering::SeqCst);
        if done.is_awaited.load(Ordering::SeqCst) {
            engine.log.gate().left().wake_all();
        }
    }

    /// Does what callers that are gone have left to be done, and waits for what the thread of jobs is doing. Nothing is queued
    /// any more meanwhile.
    pub(super) fn finish_jobs(&self, engine: &Engine) {
        self.do_jobs(engine);
        let done = &self.jobs_done;
        // A job that wakes a task may have it drop the last handle: that job ends after this.
        let own = u32::from(*done.thread.lock() == Some(sync::thread_id()));
        done.is_awaited.store(true, Ordering::SeqCst);
        // In a poisoned store it may hang in a sync, which is not waited for.
        let are_done = || done.at_work.load(Ordering::SeqCst) <= own || engine.log.is_poisoned();
        engine.log.gate().left().wait_until(None, &|| engine.nanos(), &are_done);
    }

    /// Does the jobs that came when their thread had ended, because the store closes. Called by the close once the threads
    /// have ended, and by each call that sees the close after it was queued: one of the two comes last.
    pub(super) fn drain_jobs(&self, engine: &Engine) {
        self.do_jobs(engine);
    }

    /// Wakes the calls that still wait for the disk when no close is at work any more. Called by the close at its end, and by
    /// each call that sees it after it was queued: one of the two comes last.
    pub(super) fn drain_commits(&self, engine: &Engine) {
        if engine.is_at_close() {
            return;
        }
        let calls = self.commits.take_all();
        calls.into_iter().for_each(|(_, seat)| seat.serve());
    }
}

impl Embedded {
    /// Has the log written and synced as far as a call needs, and then `waker` woken. A call that has a seat in the queue keeps
    /// it.
    pub(super) fn commit_for(&self, needs: Needs, seat: &mut Option<Arc<Seat>>, waker: &Waker) {
        if seat.as_ref().is_some_and(|seat| seat.set_waker(waker)) {
            return;
        }
        let serving = &self.serving;
        let is_served = self.serves(&serving.commits, "onlyonce-commit", |serving, engine| {
            serving.run_commits(engine);
        });
        if is_served || self.is_closing() {
            let new = Seat::new(waker);
            *seat = Some(Arc::clone(&new));
            serving.commits.put((needs, new));
            if self.is_closing() {
                serving.drain_commits(self);
            }
        } else {
            self.provide_inside(needs);
            wake(waker.clone());
        }
    }

    /// Whether there are threads that work for calls, or will be.
    pub(super) fn has_threads(&self) -> bool {
        self.serving.has_threads.load(Ordering::Relaxed) && !self.is_closing()
    }

    /// Does a piece of work that may block, on another thread if there is one.
    pub(super) fn do_job(&self, job: Job) {
        let serving = &self.serving;
        let is_served = self.serves(&serving.jobs, "onlyonce-call", |serving, engine| {
            serving.run_jobs(engine);
        });
        if !is_served {
            return job(self);
        }
        serving.jobs.put(job);
        if self.is_closing() {
            serving.drain_jobs(self);
        }
    }

    /// From now on the test does what the threads that work for calls would do, and there are none.
    #[cfg(test)]
    pub(crate) fn serve_by_hand(&self) {
        let Serving { commits, jobs, timers, .. } = &*self.serving;
        for is_started in [&commits.is_started, &jobs.is_started, &timers.is_started] {
            *is_started.lock() = true;
        }
        self.serving.allow_threads();
    }

    /// How many calls wait for the disk, and how many for other work.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> (usize, usize) {
        (self.serving.commits.queue.lock().len(), self.serving.jobs.queue.lock().len())
    }

    #[cfg(test)]
    pub(crate) fn commit_queued(&self) {
        self.serving.commit_all(self);
    }

    #[cfg(test)]
    pub(crate) fn work_queued(&self) {
        self.serving.do_jobs(self);
    }

    /// Sees to it that claims which wait are woken when their time is up.
    pub(super) fn keep_time(&self) {
        self.serves(&self.serving.timers, "onlyonce-time", |_, engine| {
            engine.waits.run_timers(&|| engine.nanos(), &|| engine.is_closing());
        });
    }

    /// Starts a lane's thread, unless it runs. Returns whether it does.
    fn serves<T>(
        &self,
        lane: &Lane<T>,
        name: &str,
        body: impl FnOnce(&Serving, &Engine) + Send + 'static,
    ) -> bool {
        let may_start = self.has_threads();
        let mut is_started = lane.is_started.lock();
        if !*is_started && may_start {
            let (serving, engine) = (Arc::clone(&self.serving), self.engine());
            // Without a thread to be had, the caller does the work itself, and the next call tries again.
            *is_started = self.start(name, move || body(&serving, &engine)).is_ok();
        }
        // A store that closes has no use for its threads any more.
        *is_started && may_start
    }
}
