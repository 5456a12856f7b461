//! Several processes on one store: what the process that hosts it and its guests send each other.
//!
//! - `codec`: how plain data becomes bytes, and is read back.
//! - `frame`: the frames, and which of them each side sends.
//! - `drawn`: values of all these types, for tests.
//!
//! Promises: pure. Bytes in, values out, and the reverse; the same value gives the same bytes. What arrives is hostile until
//! it is read: it is an error or a value within the limits, never a panic, and takes no more memory than its bytes
//! justify. Never: does I/O, waits, or decides about a key.

mod codec;
#[cfg(any(test, feature = "testing"))]
mod drawn;
mod frame;

pub(crate) use codec::{Malformed, Taking, Travels};
#[cfg(any(test, feature = "testing"))]
pub(crate) use drawn::{Drawn, Draws};
pub(crate) use frame::{
    ErrandReply, Frames, FromGuest, FromHost, HeldClaim, Hello, HostErrand, KeyPage, KeyPrefix,
    ListedKey, Listing, PageAt, TooLong, Versioned, WIRE_VERSION, Welcome, frame_bytes_max,
    put_frame,
};
