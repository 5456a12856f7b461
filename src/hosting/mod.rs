//! Several processes on one store: the threads and connections by which one hosts it, and the others are its guests.
//!
//! - `host`: the thread that serves guests.
//! - `guest`: a store that another process hosts, and how this process takes the place of that one.
//!
//! [`processes`](crate::processes) has what host and guests send each other, and what it means. `store::shared` decides whether an
//! opening hosts or joins.

mod guest;
mod host;
#[cfg(all(test, not(any(loom, shuttle))))]
mod handover_tests;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

pub(crate) use guest::{Guest, Joiner};
pub(crate) use host::Guests;
