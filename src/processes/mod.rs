//! Several processes on one store: what the process that hosts it and its guests send each other.
//!
//! - `codec`: how plain data becomes bytes, and is read back.
//! - `frame`: the frames, and which of them each side sends.
//! - `errand`: the engine's calls by which the host does something on the whole store for a guest.
//! - `requests`: the guest's side, and `server`: the host's.
//! - `drawn`: values of all these types, for tests.
//!
//! Promises: pure. Bytes in, values out, and the reverse; the same value gives the same bytes. What arrives is hostile until
//! it is read: it is an error or a value within the limits, never a panic, and takes no more memory than its bytes
//! justify. Never: does I/O, waits, or decides about a key.

mod codec;
#[cfg(any(test, feature = "testing"))]
mod drawn;
mod errand;
mod frame;
mod requests;
mod server;

#[cfg(any(test, feature = "testing"))]
pub(crate) use codec::Travels;
#[cfg(any(test, feature = "testing"))]
pub(crate) use drawn::{Drawn, Draws};
pub(crate) use errand::run_errand;
pub(crate) use frame::{ErrandReply, FromGuest, HostErrand, Welcome, put_frame};
#[cfg(any(test, feature = "testing"))]
pub(crate) use frame::{Frames, FromHost, frame_bytes_max};
pub(crate) use requests::{ClaimTerms, HostTold, News, Question, Requests, refused};
pub(crate) use server::{LineId, Server};
