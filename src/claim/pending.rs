//! A call whose answer comes later: [`Pending`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::backend::Underway;
use crate::clock::nanos;
use crate::engine::Applied;
use crate::sync::WakeWord;
use crate::{Error, ErrorKind, Result};

/// Makes the public answer of what the store told.
type Answering<T> = Box<dyn FnOnce(Result<Applied>) -> Result<T> + Send>;

/// A call that was made, and whose answer comes later. It is a future, for any executor; without one, [`wait`](Self::wait)
/// waits for the answer.
///
/// The call is made when the method is called, and not when this value is first polled. So a program sends many calls and
/// waits for all of them at the end: they share writes and syncs. What is in flight is bounded to 4 MiB: a call beyond that is
/// made when it is polled or waited for.
///
/// Polling never blocks: other threads of the store write and sync (`onlyonce-commit`), and do what a call waits for before it
/// can be made (`onlyonce-call`): reads of the disk, and the preparing of space. They are started by the first call that needs
/// them. A store with [`manual_maintenance`](crate::StoreBuilder::manual_maintenance) has no threads; there a poll does that work
/// itself.
///
/// Dropped before its answer was taken:
///
/// - A claim is withdrawn, or the grant that nobody took is released by an abort that is no attempt: no work can have begun.
/// - The ending of a claim goes on. The claim is not the caller's any more.
/// - Any other call may or may not have been made.
///
/// ```
/// # use onlyonce::{Mark, Pending, Result, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// let sent: Vec<Pending<Mark>> = (0..64_u64).map(|n| store.mark_async(n)).collect();
/// for answer in sent {
///     assert!(answer.wait()?.is_first()); // one sync for all of them
/// }
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "the answer is lost; a grant that nobody takes is released"]
pub struct Pending<T> {
    state: Course<T>,
}

enum Course<T> {
    Ready(Result<T>),
    Underway(Underway, Answering<T>),
    Over,
}

// The parts are never pinned in place.
impl<T> Unpin for Pending<T> {}

impl<T> Pending<T> {
    /// An answer that is there already.
    pub(crate) fn ready(told: Result<T>) -> Self {
        Pending { state: Course::Ready(told) }
    }

    /// `finish` makes the answer; dropped without being called, it ends what the call was given.
    pub(crate) fn new(
        underway: Underway,
        finish: impl FnOnce(Result<Applied>) -> Result<T> + Send + 'static,
    ) -> Self {
        Pending { state: Course::Underway(underway, Box::new(finish)) }
    }

    /// Waits for the answer, as the call's blocking twin does.
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// let first = store.mark_async("a"); // sent
    /// let second = store.mark_async("b");
    /// assert!(first.wait()?.is_first() && second.wait()?.is_first());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of the call. `Indeterminate` if the store was closed meanwhile.
    pub fn wait(self) -> Result<T> {
        match self.state {
            Course::Ready(told) => told,
            Course::Underway(underway, finish) => finish(underway.wait()),
            Course::Over => Err(taken()),
        }
    }

    /// Waits for the answer at most so long. Returns `None` if the time is up: the call goes on, and can be waited for again.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// let mut sent = store.mark_async("a");
    /// match sent.wait_timeout(Duration::from_secs(2)) {
    ///     Some(mark) => println!("{:?}", mark?),
    ///     None => println!("a slow disk: the fate of the call is unknown so far"),
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of the call.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<T>> {
        let sleeper = Arc::new(Sleeper { word: WakeWord::new() });
        let waker = Waker::from(Arc::clone(&sleeper));
        let mut context = Context::from_waker(&waker);
        // Limited to a `u64`: what is longer is for ever.
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let began = nanos();
        loop {
            let seen = sleeper.word.read();
            if let Poll::Ready(told) = Pin::new(&mut *self).poll(&mut context) {
                return Some(told);
            }
            let left = millis.saturating_sub((nanos() - began) / 1_000_000);
            if left == 0 {
                return None;
            }
            sleeper.word.wait(seen, Some(left));
        }
    }
}

/// A thread that waits for a future.
struct Sleeper {
    word: WakeWord,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.word.wake_all();
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        match std::mem::replace(&mut self.state, Course::Over) {
            Course::Ready(told) => Poll::Ready(told),
            Course::Underway(mut underway, finish) => match underway.poll(context) {
                Poll::Ready(told) => Poll::Ready(finish(told)),
                Poll::Pending => {
                    self.state = Course::Underway(underway, finish);
                    Poll::Pending
                }
            },
            Course::Over => Poll::Ready(Err(taken())),
        }
    }
}

fn taken() -> Error {
    Error::new(
        ErrorKind::Invalid,
        "the answer of this call was taken already: a future is polled until it is ready",
    )
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            Course::Ready(_) => "Pending(answered)",
            Course::Underway(..) => "Pending(underway)",
            Course::Over => "Pending(taken)",
        })
    }
}
