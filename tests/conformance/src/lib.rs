//! A custom backend: the store of another thread, which receives requests and sends replies, like one in another process.
//! The tests run the suite on it and on the two backends of the library.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the seams are the library's own"
)]

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use onlyonce::backend::{Backend, InFlight, Reply, Request, Sent};
use onlyonce::{Error, ErrorKind, Result, Store};

/// A request to the other thread.
type Letter = (Request, Sender<Result<Reply>>);

/// A store that another thread answers for. Dropped, it ends that thread.
pub struct Elsewhere {
    letters: Sender<Letter>,
    store: Store,
}

impl Elsewhere {
    /// Serves `store` from a thread of its own.
    #[must_use]
    pub fn new(store: Store) -> Self {
        let (letters, letterbox) = channel::<Letter>();
        let answering = store.clone();
        thread::spawn(move || {
            for (request, answer) in letterbox {
                // The caller may have stopped waiting.
                let _ = answer.send(answering.send(request).wait());
            }
        });
        Elsewhere { letters, store }
    }
}

struct Answer(Receiver<Result<Reply>>);

impl Sent for Answer {
    fn wait(self: Box<Self>) -> Result<Reply> {
        let gone = "the thread that answers is gone: what became of the key is to be asked anew";
        self.0.recv().unwrap_or_else(|_| Err(Error::with_kind(ErrorKind::Indeterminate, gone)))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Reply>> {
        match self.0.try_recv() {
            Ok(told) => Poll::Ready(told),
            Err(TryRecvError::Empty) => {
                // The thread knows no waker: the task looks again and again.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Err(TryRecvError::Disconnected) => {
                let gone =
                    "the thread that answers is gone: what became of the key is to be asked anew";
                Poll::Ready(Err(Error::with_kind(ErrorKind::Indeterminate, gone)))
            }
        }
    }
}

impl Backend for Elsewhere {
    fn send(&self, request: Request) -> Box<dyn Sent> {
        let (answer, answered) = channel();
        // If the thread has ended, `wait` reports it.
        let _ = self.letters.send((request, answer));
        Box::new(Answer(answered))
    }

    fn result_bytes_max(&self) -> u32 {
        Backend::result_bytes_max(&self.store)
    }

    fn secret(&self) -> [u8; 32] {
        self.store.secret()
    }

    fn check(&self) -> Result<()> {
        self.store.check()
    }

    fn sync(&self) -> Result<()> {
        Backend::sync(&self.store)
    }

    fn drain(&self) {
        Backend::drain(&self.store);
    }

    fn close(&self, deadline: Duration) -> Result<Vec<InFlight>> {
        Backend::close(&self.store, deadline)
    }
}
