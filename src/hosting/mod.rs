//! Several processes on one store: the threads and connections by which one hosts it, and the others are its guests.
//!
//! - `host`: the thread that serves guests.
//! - `guest`: a store that another process hosts, and how this process takes its place.
//!
//! What they send each other, and what that means, is in [`processes`](crate::processes).

mod guest;
mod host;
#[cfg(all(test, not(any(loom, shuttle))))]
mod handover_tests;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

pub(crate) use guest::{Guest, Joiner};
pub(crate) use host::Guests;
