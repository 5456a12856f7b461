//! Values and their codecs: how a result is encoded as bytes and decoded again.
//!
//! Strings and bytes are kept as they are. A type of your own becomes a value in one line with `Typed` (features
//! `bincode` and `json`), or by hand with [`Encode`](crate::Encode) and [`Decode`](crate::Decode). Every record names the
//! [`Format`] of its value, so a value is never decoded wrongly: decoding it as a type that doesn't fit fails with
//! [`Undecodable`](crate::ErrorKind::Undecodable).

#[cfg(feature = "bincode")]
mod bincode;
pub(crate) mod bytes;
mod codec;
#[cfg(feature = "json")]
mod json;
pub(crate) mod packed;
pub(crate) mod payload;
#[cfg(any(feature = "bincode", feature = "json"))]
mod typed;

#[cfg(feature = "bincode")]
pub use bincode::Bincode;
pub(crate) use bytes::ValueBytes;
pub(crate) use codec::NOT_KEPT;
pub use codec::{Codec, Format};
#[cfg(feature = "json")]
pub use json::Json;
pub(crate) use payload::encode;
#[cfg(any(feature = "bincode", feature = "json"))]
pub use typed::Typed;
