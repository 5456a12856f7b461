//! Values and their codecs: how a result is encoded as bytes and decoded again.
//!
//! Strings and bytes are kept as they are. A type of your own becomes a value in one line with `Typed` (feature
//! `bincode`), or by hand with [`Encode`](crate::Encode) and [`Decode`](crate::Decode). Every record names the
//! [`Format`] of its value, so a value is never decoded wrongly: decoding it as a type that doesn't fit fails with
//! [`Undecodable`](crate::ErrorKind::Undecodable).

mod codec;
pub(crate) mod payload;
#[cfg(feature = "bincode")]
mod typed;

pub(crate) use codec::NOT_KEPT;
pub use codec::{Codec, Format};
pub(crate) use payload::encode;
#[cfg(feature = "bincode")]
pub use typed::{Bincode, Typed};
