//! Several processes on one store: what the process that hosts it and its guests send each other.
//!
//! - `codec`: turns plain data into bytes, and reads it back.
//! - `frame`: the frames, and which of them each side sends; the version that both sides must agree on.
//! - `errand`: the calls on the whole store that the host makes for a guest.
//! - `requests`: the guest's side: which calls are sent again to the next host, and which grants are given back.
//! - `server`: the host's side: calls on the engine, and what becomes of the claims of a session that has ended.
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
