//! A call whose answer comes later: [`Pending`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::backend::{EngineErrand, Errand, ForgettingSpace, ManyUnderway, Syncing, Underway};
use crate::clock::nanos;
use crate::engine::Applied;
use crate::sync::WakeWord;
use crate::{Error, ErrorKind, Result};

/// What was begun in the store, and will be told of.
pub(crate) trait Awaited: Send {
    type Told;

    /// Waits for it.
    fn wait(self) -> Self::Told;

    /// Returns it once it is there.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Self::Told>;
}

macro_rules! begun {
    ($($what:ty => $told:ty),+ $(,)?) => {
        $(impl Awaited for $what {
            type Told = $told;

            fn wait(self) -> $told {
                <$what>::wait(self)
            }

            fn poll(&mut self, context: &mut Context<'_>) -> Poll<$told> {
                <$what>::poll(self, context)
            }
        })+
    };
}

begun! {
    Underway => Result<Applied>,
    ManyUnderway => Result<Vec<Result<Applied>>>,
    Syncing => Result<()>,
    ForgettingSpace => Result<bool>,
    EngineErrand<Vec<String>> => Result<Vec<String>>,
}

impl<T: Send + 'static> Awaited for Errand<T> {
    type Told = Result<T>;

    fn wait(self) -> Result<T> {
        Errand::wait(self)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<T>> {
        Errand::poll(self, context)
    }
}

/// What is made of a call's answer may be made of in turn.
impl<T: Send + 'static> Awaited for Pending<T> {
    type Told = Result<T>;

    fn wait(self) -> Result<T> {
        Pending::wait(self)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<T>> {
        Future::poll(Pin::new(self), context)
    }
}

/// What was begun, and how its answer is made.
struct Answered<B, F> {
    begun: B,
    /// `None`: the answer was made.
    finish: Option<F>,
}

trait Answering<T>: Send {
    fn wait(self: Box<Self>) -> Result<T>;
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<T>>;
}

impl<T, B, F> Answering<T> for Answered<B, F>
where
    B: Awaited,
    F: FnOnce(B::Told) -> Result<T> + Send,
{
    fn wait(self: Box<Self>) -> Result<T> {
        let Answered { begun, finish } = *self;
        let told = begun.wait();
        finish.map_or_else(|| Err(taken()), |finish| finish(told))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<T>> {
        let Answered { begun, finish } = self;
        begun.poll(context).map(|told| match finish.take() {
            Some(finish) => finish(told),
            None => Err(taken()),
        })
    }
}

/// A call that was made, and whose answer comes later. It is a future, for any executor; without one, [`wait`](Self::wait)
/// waits for the answer.
///
/// The call is made when the method is called, and not when this value is first polled. So a program sends many calls and
/// waits for all of them at the end: they share writes and syncs. What is in flight is bounded to 4 MiB: a call beyond that is
/// made when it is polled or waited for.
///
/// Polling never blocks: other threads of the store write and sync (`onlyonce-commit`), and do what a call waits for before it
/// can be made (`onlyonce-call`): reads of the disk, the preparing of space, and the finding or making of its
/// [namespace](crate::Store::namespace). They are started by the first call that needs them. A store with [`manual_maintenance`](crate::StoreBuilder::manual_maintenance) has no threads; there a poll does that work
/// itself.
///
/// Dropped before its answer was taken:
///
/// - A claim is withdrawn: no work can have begun, so a grant that nobody took doesn't count for
///   [`attempts_max`](crate::Policy::attempts_max). After `take_over_async`, the key is interrupted, as it was before. A claim
///   that was attached is detached again.
/// - The ending of a claim goes on, and so do its hand-over by [`detach`](crate::ClaimGuard::detach), a batch, and a close. The
///   claim is not the caller's any more. That is done even if the last handle of the store is dropped right after; a
///   [`close`](crate::Store::close) waits for it until its deadline.
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
    state: PendingState<T>,
}

enum PendingState<T> {
    /// Boxed: rare, and a call that waits would carry room for it.
    Ready(Box<Result<T>>),
    Underway(Box<dyn Answering<T>>),
    Over,
}

// The parts are never pinned in place.
impl<T> Unpin for Pending<T> {}

impl<T> Pending<T> {
    /// An answer that is there already.
    pub(crate) fn ready(told: Result<T>) -> Self {
        Pending { state: PendingState::Ready(Box::new(told)) }
    }

    /// `finish` makes the answer; dropped without being called, it ends what the call was given.
    pub(crate) fn new<B: Awaited + 'static>(
        begun: B,
        finish: impl FnOnce(B::Told) -> Result<T> + Send + 'static,
    ) -> Self {
        let answered = Answered { begun, finish: Some(finish) };
        Pending { state: PendingState::Underway(Box::new(answered)) }
    }

    /// The same call, with another answer made of its own.
    pub(crate) fn map<U>(self, make: impl FnOnce(T) -> U + Send + 'static) -> Pending<U>
    where
        T: Send + 'static,
    {
        Pending::new(self, move |told| told.map(make))
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
    /// The errors of the call. A close answers what was placed before it, once that is durable; `Indeterminate` if it could not
    /// make that durable or has given up, or if it has ended the claim that was granted. `Invalid` if the answer was taken
    /// before, by polling or by [`wait_timeout`](Self::wait_timeout).
    pub fn wait(self) -> Result<T> {
        match self.state {
            PendingState::Ready(told) => *told,
            PendingState::Underway(answered) => answered.wait(),
            PendingState::Over => Err(taken()),
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
    /// The errors of [`wait`](Self::wait).
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
        match std::mem::replace(&mut self.state, PendingState::Over) {
            PendingState::Ready(told) => Poll::Ready(*told),
            PendingState::Underway(mut answered) => match answered.poll(context) {
                Poll::Ready(told) => Poll::Ready(told),
                Poll::Pending => {
                    self.state = PendingState::Underway(answered);
                    Poll::Pending
                }
            },
            PendingState::Over => Poll::Ready(Err(taken())),
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
            PendingState::Ready(_) => "Pending(answered)",
            PendingState::Underway(_) => "Pending(underway)",
            PendingState::Over => "Pending(taken)",
        })
    }
}
