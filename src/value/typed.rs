//! Types of serde as values: [`Typed`] for your own, [`Bincode`] around any other.
//!
//! Promises: decoding takes memory in proportion to the bytes decoded, whatever lengths they claim, and leaves
//! none of them over. Never: decodes a version that the type doesn't name.

use bincode::config::{Config, standard};
use bincode::enc::write::Writer;
use bincode::error::EncodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, Format};
use crate::limits::RESULT_BYTES_MAX;
use crate::{Decode, Encode, Error, Payload, Result};

/// A type of your own as a value, by serde: gives it [`Encode`] and [`Decode`].
///
/// ```
/// use onlyonce::Encode;
/// use onlyonce::value::{Codec, Format, Typed};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Receipt {
///     order: u64,
///     paid: bool,
/// }
///
/// impl Typed for Receipt {
///     const CODEC: Codec = Codec::Bincode;
/// }
///
/// let mut bytes = Vec::new();
/// let format = Receipt { order: 17, paid: true }.encode(&mut bytes)?;
/// assert_eq!((bytes, format), (vec![17, 1], Format { codec: Codec::Bincode, version: 0 }));
/// # Ok::<(), onlyonce::Error>(())
/// ```
/// # Changing the type
/// With bincode the bytes hold no names: raise [`VERSION`](Typed::VERSION) whenever a field is added,
/// removed or moved. A result of another version is then refused as `Undecodable`, where it could have been
/// read wrongly. To read both, keep an enum of the old and the new form, or implement [`Decode`] by hand.
///
/// A value is read by the codec it was recorded with, so a changed [`CODEC`](Typed::CODEC) alone is safe.
///
/// # What bincode can't do
/// It must be told each type: `#[serde(untagged)]`, `flatten`, `tag` and `skip_serializing_if` encode and
/// then don't decode. Test that a value comes back.
pub trait Typed: Serialize + DeserializeOwned {
    /// How it is encoded: [`Codec::Bincode`]. Another one is refused as `Invalid`.
    const CODEC: Codec;

    /// The version of the type, recorded with each value.
    const VERSION: u32 = 0;
}

/// Any serde type as a value in bincode, version 0, without an `impl`: `Bincode(17u64)`, `Bincode(vec)`.
///
/// The caveats of [`Typed`] hold here too.
///
/// ```
/// use onlyonce::Outcome;
/// use onlyonce::value::Bincode;
///
/// let outcome = Outcome::success(&Bincode(("order", 17u64)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Bincode<T>(pub T);

impl<T: Typed> Encode for T {
    fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
        match T::CODEC {
            Codec::Bincode => encode_bincode(self, out)?,
            Codec::Json => {
                return Err(Error::invalid(format!("{}: {JSON_MISSING}", type_name::<T>())));
            }
            Codec::Bytes | Codec::Custom(_) => {
                return Err(Error::invalid(format!(
                    "{} names the codec {:?}, which does not encode by serde: name Codec::Bincode, or implement Encode and Decode by hand",
                    type_name::<T>(),
                    T::CODEC
                )));
            }
        }
        Ok(Format { codec: T::CODEC, version: T::VERSION })
    }
}

impl<T: Typed> Decode for T {
    fn decode(payload: &Payload, format: Format) -> Result<Self> {
        decode_serde(payload, format, T::VERSION)
    }
}

impl<T: Serialize> Encode for Bincode<T> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
        encode_bincode(&self.0, out)?;
        Ok(Format { codec: Codec::Bincode, version: 0 })
    }
}

impl<T: DeserializeOwned> Decode for Bincode<T> {
    fn decode(payload: &Payload, format: Format) -> Result<Self> {
        decode_serde(payload, format, 0).map(Bincode)
    }
}

const JSON_MISSING: &str =
    "JSON needs the feature `json`, which this version does not have yet: use Codec::Bincode";

/// Appends to a vector; `bincode` has no such writer without `std`.
struct Append<'o>(&'o mut Vec<u8>);

impl Writer for Append<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn encode_bincode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<()> {
    let before = out.len();
    bincode::serde::encode_into_writer(value, Append(out), standard()).map_err(|error| {
        out.truncate(before);
        Error::invalid(format!("{} does not encode in bincode: {error}", type_name::<T>()))
    })
}

fn decode_serde<T: DeserializeOwned>(payload: &Payload, found: Format, version: u32) -> Result<T> {
    let name = type_name::<T>();
    match found.codec {
        Codec::Bincode if found.version == version => decode_bincode(payload),
        Codec::Bincode => Err(Error::undecodable(format!(
            "recorded as version {}, {name} is version {version}",
            found.version
        ))),
        Codec::Json => Err(Error::undecodable(format!("recorded in {found}: {JSON_MISSING}"))),
        Codec::Bytes | Codec::Custom(_) => {
            Err(Error::undecodable(format!("recorded in {found}, which does not decode as {name}")))
        }
    }
}

/// bincode counts what it reads by the sizes in memory, at most 16 for one byte (a small `u128`, in
/// short form), and refuses a length beyond its limit before it allocates. The limit is a constant, so
/// there are two: the usual results can't ask for more than 16 MiB.
fn decode_bincode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    const SMALL: usize = 1 << 20;
    if bytes.len() <= SMALL {
        decode_within(bytes, standard().with_limit::<{ 16 * SMALL }>())
    } else {
        decode_within(bytes, standard().with_limit::<{ 16 * RESULT_BYTES_MAX as usize }>())
    }
}

fn decode_within<T: DeserializeOwned>(bytes: &[u8], config: impl Config) -> Result<T> {
    let name = type_name::<T>();
    match bincode::serde::decode_from_slice(bytes, config) {
        Ok((value, read)) if read == bytes.len() => Ok(value),
        Ok((_, read)) => {
            let left = bytes.len() - read;
            Err(Error::undecodable(format!(
                "{left} bytes are left after {name}: another type or version was recorded"
            )))
        }
        Err(error) => Err(Error::undecodable(format!("not {name} in bincode: {error}"))),
    }
}

fn type_name<T>() -> &'static str {
    std::any::type_name::<T>()
}
