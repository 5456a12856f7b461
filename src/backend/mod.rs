//! The backend that answers the calls on a store's keys: the engine embedded in this process, or another implementation
//! that gives the same answers.
//!
//! **Unstable**: this module needs the feature `backend` and may change in any release. It is for crates that keep keys
//! in other storage or in another process.
//!
//! A [`Request`] is one call on one key, and a [`Reply`] is the complete reply to it. Both are plain owned data, so
//! they can be sent to another thread or process. [`Backend::send`] returns at once, and the caller waits for the reply
//! separately. [`Store::with_backend`](crate::Store::with_backend) makes a store from a backend, and every
//! [`Store`](crate::Store) is itself a backend:
//!
//! ```
//! use std::sync::mpsc;
//! use std::task::{Context, Poll};
//! use onlyonce::backend::{Backend, Reply, Request, Sent};
//! use onlyonce::{Claim, Key, Policy, Result, Store, testing::Sim};
//! # use std::time::Duration;
//!
//! /// A store that another thread answers for.
//! struct Elsewhere {
//!     calls: mpsc::Sender<(Request, mpsc::Sender<Result<Reply>>)>,
//! #   store: Store,
//! }
//!
//! struct Answer(mpsc::Receiver<Result<Reply>>);
//!
//! impl Sent for Answer {
//!     fn wait(self: Box<Self>) -> Result<Reply> {
//!         self.0.recv().unwrap()
//!     }
//!
//!     fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Reply>> {
//!         match self.0.try_recv() {
//!             Ok(reply) => Poll::Ready(reply),
//!             // Simple, and it keeps a processor busy: a real one keeps the waker, and wakes it with the reply.
//!             Err(_) => {
//!                 context.waker().wake_by_ref();
//!                 Poll::Pending
//!             }
//!         }
//!     }
//! }
//!
//! impl Backend for Elsewhere {
//!     fn send(&self, request: Request) -> Box<dyn Sent> {
//!         let (tell, told) = mpsc::channel();
//!         self.calls.send((request, tell)).unwrap();
//!         Box::new(Answer(told))
//!     }
//!     // and the calls that are about no key
//! #   fn result_bytes_max(&self) -> u32 { self.store.result_bytes_max() }
//! #   fn secret(&self) -> [u8; 32] { self.store.secret() }
//! #   fn check(&self) -> Result<()> { self.store.check() }
//! #   fn sync(&self) -> Result<()> { Backend::sync(&self.store) }
//! #   fn drain(&self) { self.store.drain() }
//! #   fn close(&self, deadline: Duration) -> Result<Vec<onlyonce::backend::InFlight>> { Backend::close(&self.store, deadline) }
//! }
//!
//! let store = Sim::new(1).open()?;
//! let (calls, called) = mpsc::channel::<(Request, mpsc::Sender<Result<Reply>>)>();
//! # let elsewhere = Elsewhere { calls, store: store.clone() };
//! # /*
//! let elsewhere = Elsewhere { calls };
//! # */
//! std::thread::spawn(move || {
//!     for (request, tell) in called {
//!         let _ = tell.send(store.send(request).wait());
//!     }
//! });
//! let store = Store::with_backend(elsewhere, Policy::new());
//! let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
//! claim.complete("v")?;
//! assert!(matches!(store.claim("k")?, Claim::Completed(_)));
//! # onlyonce::Result::<()>::Ok(())
//! ```

mod contract;
mod desk;
mod embedded;
mod sent;
mod sent_batch;
mod serving;
mod shared;
mod space;
mod terms;

#[cfg(feature = "backend")]
pub use crate::engine::{Claimed, Stored};
#[cfg(feature = "backend")]
pub use crate::protocol::{
    Answer, Asker, Call, Extras, KeyState, Lease, OpenStep, Phase, Presence, Sight, Wants,
};
#[cfg(feature = "backend")]
pub use crate::types::StoreMillis;
#[cfg(feature = "backend")]
pub use crate::value::bytes::ValueBytes;
#[cfg(feature = "backend")]
pub use contract::{Ask, Backend, KeyView, Reply, Request, Sent};
#[cfg(feature = "backend")]
pub use shared::InFlight;
#[cfg(feature = "backend")]
pub use terms::{Details, Terms};

#[cfg(not(feature = "backend"))]
pub(crate) use contract::{Ask, Backend, KeyView, Reply, Request, Sent};
pub(crate) use embedded::{Embedded, ServedGuests};
pub(crate) use sent::{outlives, send, send_for_guest};
pub(crate) use sent_batch::{ManyUnderway, place_all};
#[cfg(not(feature = "backend"))]
pub(crate) use shared::InFlight;
pub(crate) use shared::{
    Elsewhere, EngineErrand, Errand, ForgettingSpace, Shared, Syncing, Underway,
};
pub(crate) use space::{
    Entered, Entering, NOWHERE, Space, SpaceGoal, SpaceKnown, elsewhere, is_in,
};
#[cfg(not(feature = "backend"))]
pub(crate) use terms::{Details, Terms};
