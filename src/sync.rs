//! The sync seam: every lock, atomic, thread and park of the crate.
//!
//! A normal build uses `parking_lot`, `std` and the futex. Under `cfg(loom)` the same names are loom's, which explores
//! the commit queue and the gate schedule by schedule; under `cfg(shuttle)` they are shuttle's, which explores the
//! whole engine. Lints forbid bypassing this file.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "this is the seam")]

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// Lets other threads run first.
pub(crate) fn yield_now() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
    #[cfg(not(any(loom, shuttle)))]
    std::thread::yield_now();
}

/// Goes between two sequentially consistent operations on different words. They need no fence by themselves, but loom
/// models the total order of fences only.
pub(crate) fn loom_fence() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// A small number of the calling thread, to spread per-thread counts over several cache lines.
pub(crate) fn thread_number() -> usize {
    #[cfg(loom)]
    return 0;
    #[cfg(shuttle)]
    return shuttle::current::me().into();
    #[cfg(not(any(loom, shuttle)))]
    {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        thread_local! {
            static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        // A thread that is ending no longer has one; sharing a number is harmless.
        NUMBER.try_with(|number| *number).unwrap_or(0)
    }
}

/// Wakes a task. A waker is its executor's code: should it panic, which the panic hook reports, the thread that woke it goes on,
/// because other tasks depend on it.
pub(crate) fn wake(waker: std::task::Waker) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| waker.wake()));
}

/// A value that is set once. Nobody waits for it, so there are no schedules to explore.
pub(crate) struct SetOnce<T>(std::sync::OnceLock<T>);

impl<T> SetOnce<T> {
    pub(crate) fn new() -> Self {
        SetOnce(std::sync::OnceLock::new())
    }

    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        self.0.get()
    }

    /// The first value stays.
    pub(crate) fn set(&self, value: T) {
        let _ = self.0.set(value);
    }
}

/// A value that is made when it is first needed. Making it waits for nothing, so it has no schedules to explore.
pub(crate) struct Lazy<T>(std::sync::LazyLock<T>);

impl<T> Lazy<T> {
    pub(crate) const fn new(make: fn() -> T) -> Self {
        Lazy(std::sync::LazyLock::new(make))
    }

    pub(crate) fn get(&self) -> &T {
        &self.0
    }
}

/// A mutex that is never poisoned: a panic inside is handled where it happens.
#[derive(Debug)]
pub(crate) struct Mutex<T>(Inner<T>);

#[cfg(not(any(loom, shuttle)))]
type Inner<T> = parking_lot::Mutex<T>;
#[cfg(not(any(loom, shuttle)))]
pub(crate) type MutexGuard<'a, T> = parking_lot::MutexGuard<'a, T>;

#[cfg(shuttle)]
type Inner<T> = shuttle::sync::Mutex<T>;
#[cfg(shuttle)]
pub(crate) type MutexGuard<'a, T> = shuttle::sync::MutexGuard<'a, T>;

#[cfg(loom)]
type Inner<T> = loom::sync::Mutex<T>;
#[cfg(loom)]
pub(crate) type MutexGuard<'a, T> = loom::sync::MutexGuard<'a, T>;

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(Inner::new(value))
    }

    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock()
    }

    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock()
    }

    #[cfg(any(loom, shuttle))]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    #[cfg(any(loom, shuttle))]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

/// A lock that many may read at once, as little poisoned as [`Mutex`].
#[derive(Debug)]
pub(crate) struct RwLock<T>(InnerRw<T>);

#[cfg(not(any(loom, shuttle)))]
type InnerRw<T> = parking_lot::RwLock<T>;
#[cfg(not(any(loom, shuttle)))]
pub(crate) type ReadGuard<'a, T> = parking_lot::RwLockReadGuard<'a, T>;
#[cfg(not(any(loom, shuttle)))]
pub(crate) type WriteGuard<'a, T> = parking_lot::RwLockWriteGuard<'a, T>;

#[cfg(any(loom, shuttle))]
type InnerRw<T> = explored::RwLock<T>;
#[cfg(any(loom, shuttle))]
pub(crate) type ReadGuard<'a, T> = explored::RwLockReadGuard<'a, T>;
#[cfg(any(loom, shuttle))]
pub(crate) type WriteGuard<'a, T> = explored::RwLockWriteGuard<'a, T>;

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        RwLock(InnerRw::new(value))
    }

    pub(crate) fn read(&self) -> ReadGuard<'_, T> {
        #[cfg(not(any(loom, shuttle)))]
        return self.0.read();
        #[cfg(any(loom, shuttle))]
        return self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner());
    }

    pub(crate) fn write(&self) -> WriteGuard<'_, T> {
        #[cfg(not(any(loom, shuttle)))]
        return self.0.write();
        #[cfg(any(loom, shuttle))]
        return self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    }
}

#[cfg(loom)]
use loom::sync as explored;
#[cfg(shuttle)]
use shuttle::sync as explored;

/// A word that many threads wait on and one call wakes.
///
/// A waiter reads the word, checks that it has to wait, and sleeps only while the word is unchanged; a waker changes
/// the word first. So no wake-up is lost between the check and the sleep. A wake-up may arrive late, at a waiter that
/// already sleeps on a later value.
pub(crate) struct WakeWord {
    #[cfg(not(any(loom, shuttle)))]
    word: AtomicU32,
    #[cfg(all(not(any(loom, shuttle)), not(target_os = "linux")))]
    parked: (std::sync::Mutex<()>, std::sync::Condvar),
    #[cfg(any(loom, shuttle))]
    inner: (explored::Mutex<u32>, explored::Condvar),
}

#[cfg(not(any(loom, shuttle)))]
impl WakeWord {
    pub(crate) fn new() -> Self {
        WakeWord {
            word: AtomicU32::new(0),
            #[cfg(not(target_os = "linux"))]
            parked: Default::default(),
        }
    }

    pub(crate) fn read(&self) -> u32 {
        self.word.load(Ordering::SeqCst)
    }
}

#[cfg(all(not(any(loom, shuttle)), target_os = "linux"))]
impl WakeWord {
    /// Sleeps while the word is `seen`, at most `millis`. May wake spuriously. Returns whether the time was up.
    pub(crate) fn wait(&self, seen: u32, millis: Option<u64>) -> bool {
        let timeout = millis.map(|millis| rustix::thread::futex::Timespec {
            // Neither number is large enough to become negative.
            tv_sec: (millis / 1000) as i64,
            tv_nsec: ((millis % 1000) * 1_000_000) as i64,
        });
        let woken = rustix::thread::futex::wait(
            &self.word,
            rustix::thread::futex::Flags::PRIVATE,
            seen,
            timeout.as_ref(),
        );
        // Every other error (changed, interrupted) means: check again.
        woken == Err(rustix::io::Errno::TIMEDOUT)
    }

    pub(crate) fn wake_all(&self) {
        self.word.fetch_add(1, Ordering::SeqCst);
        let _ = rustix::thread::futex::wake(
            &self.word,
            rustix::thread::futex::Flags::PRIVATE,
            i32::MAX as u32,
        );
    }

    pub(crate) fn wake_one(&self) {
        self.word.fetch_add(1, Ordering::SeqCst);
        let _ = rustix::thread::futex::wake(&self.word, rustix::thread::futex::Flags::PRIVATE, 1);
    }
}

#[cfg(all(not(any(loom, shuttle)), not(target_os = "linux")))]
impl WakeWord {
    /// Sleeps while the word is `seen`, at most `millis`. May wake spuriously. Returns whether the time was up.
    pub(crate) fn wait(&self, seen: u32, millis: Option<u64>) -> bool {
        let (lock, condvar) = &self.parked;
        let guard = lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.reading().read() != seen {
            return false;
        }
        let Some(millis) = millis else {
            drop(condvar.wait(guard));
            return false;
        };
        let woken = condvar.wait_timeout(guard, std::time::Duration::from_millis(millis));
        woken.unwrap_or_else(|poisoned| poisoned.into_inner()).1.timed_out()
    }

    pub(crate) fn wake_all(&self) {
        let (lock, condvar) = &self.parked;
        let _guard = lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.word.fetch_add(1, Ordering::SeqCst);
        condvar.notify_all();
    }

    pub(crate) fn wake_one(&self) {
        let (lock, condvar) = &self.parked;
        let _guard = lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.word.fetch_add(1, Ordering::SeqCst);
        condvar.notify_one();
    }
}

#[cfg(any(loom, shuttle))]
impl WakeWord {
    pub(crate) fn new() -> Self {
        WakeWord { inner: (explored::Mutex::new(0), explored::Condvar::new()) }
    }

    fn word(&self) -> explored::MutexGuard<'_, u32> {
        self.inner.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn read(&self) -> u32 {
        *self.word()
    }

    /// No time passes: a wait that only its deadline would end is a deadlock, and is reported as one.
    pub(crate) fn wait(&self, seen: u32, _millis: Option<u64>) -> bool {
        let word = self.word();
        if *word == seen {
            drop(self.inner.1.wait(word).unwrap_or_else(|poisoned| poisoned.into_inner()));
        }
        false
    }

    pub(crate) fn wake_all(&self) {
        *self.word() += 1;
        self.inner.1.notify_all();
    }

    pub(crate) fn wake_one(&self) {
        *self.word() += 1;
        self.inner.1.notify_one();
    }
}

impl WakeWord {
    /// Waits until `is_done`, whose changes wake the word, at most `millis` by the clock `nanos`. Returns the final
    /// `is_done`.
    pub(crate) fn wait_until(
        &self,
        millis: Option<u64>,
        nanos: &dyn Fn() -> u64,
        is_done: &dyn Fn() -> bool,
    ) -> bool {
        let began = nanos();
        loop {
            let seen = self.read();
            if is_done() {
                return true;
            }
            let waited = (nanos() - began) / 1_000_000;
            // 0 once the time is up.
            let left = millis.map(|millis| millis.saturating_sub(waited));
            if left == Some(0) {
                return false;
            }
            // A manual clock stands still meanwhile: then the wait itself is the deadline.
            if self.wait(seen, left) {
                return is_done();
            }
        }
    }
}

/// Whether this thread is unwinding.
pub(crate) fn is_panicking() -> bool {
    std::thread::panicking()
}

/// Starts a thread of a store. Fails under loom and shuttle, which explore their own threads.
pub(crate) fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    if cfg!(any(loom, shuttle)) {
        return Err(std::io::ErrorKind::Unsupported.into());
    }
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

pub(crate) use std::thread::ThreadId;

/// The calling thread.
pub(crate) fn thread_id() -> ThreadId {
    std::thread::current().id()
}

/// Whether the calling thread is that of `handle`.
pub(crate) fn is_current(handle: &std::thread::JoinHandle<()>) -> bool {
    handle.thread().id() == thread_id()
}

#[cfg(all(test, not(any(loom, shuttle)), target_os = "linux"))]
mod tests {
    use super::*;

    /// A wake-up for a value that was read earlier.
    fn wake_late(word: &WakeWord) {
        let private = rustix::thread::futex::Flags::PRIVATE;
        let _ = rustix::thread::futex::wake(&word.word, private, 1);
    }

    /// With a manual clock, which stands still, a late wake-up was taken for the deadline: a close answered
    /// `InProgress` at once.
    #[test]
    fn a_late_wake_up_is_not_the_deadline() {
        let (word, asked, is_over) = (WakeWord::new(), AtomicU32::new(0), AtomicBool::new(false));
        let hour = Some(3_600_000);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    wake_late(&word);
                    yield_now();
                }
            });
            // Woken spuriously three times.
            let is_done = || asked.fetch_add(1, Ordering::SeqCst) == 3;
            let waited = word.wait_until(hour, &|| 7, &is_done);
            is_over.store(true, Ordering::SeqCst);
            assert!(waited);
        });
        assert!(!word.wait(word.read().wrapping_add(1), hour), "the word had changed");
        assert!(word.wait(word.read(), Some(1)), "the time was up");
        assert!(!word.wait_until(Some(1), &|| 7, &|| false));
    }
}
