//! Values and their codecs: how a result becomes bytes, and how those are known again.
//!
//! Strings and bytes are kept as they are. A type of your own becomes a value in one line with `Typed`
//! (feature `bincode`), or by hand with [`Encode`](crate::Encode) and [`Decode`](crate::Decode). Every
//! record names the [`Format`] of its value, so a value is never read as what it is not: a type that
//! doesn't fit is [`Undecodable`](crate::ErrorKind::Undecodable).

mod codec;
pub(crate) mod payload;
#[cfg(feature = "bincode")]
mod typed;

pub(crate) use codec::NOT_KEPT;
pub use codec::{Codec, Format};
pub(crate) use payload::encode;
#[cfg(feature = "bincode")]
pub use typed::{Bincode, Typed};
