//! How a value is encoded: [`Codec`] and [`Format`], and the numbers that stand for them on disk.
//!
//! Promises: a number that was assigned to a codec is never used for another. Never: encodes or decodes a value.

use std::fmt;

use crate::{Error, Result};

/// The number stored if no result was kept: no codec, and no bytes follow.
pub(crate) const NOT_KEPT: u16 = 3;

/// The stored number of a custom codec has this bit.
const CUSTOM: u16 = 0x8000;

/// How a value is encoded as bytes.
///
/// ```
/// use onlyonce::value::{Codec, Format};
/// use onlyonce::{Encode, Result};
///
/// struct Message(Vec<u8>); // protobuf, say
///
/// impl Encode for Message {
///     fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
///         out.extend_from_slice(&self.0);
///         Ok(Format { codec: Codec::Custom(7), version: 0 })
///     }
/// }
/// # assert_eq!(Message(vec![1]).encode(&mut Vec::new())?.codec, Codec::Custom(7));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Codec {
    /// The value's own bytes, or the UTF-8 of a string.
    Bytes,
    /// bincode 2 in its standard configuration. Needs the feature `bincode`.
    Bincode,
    /// JSON, as UTF-8. Needs the feature `json`.
    Json,
    /// Your own codec, with hand-written [`Encode`](crate::Encode) and [`Decode`](crate::Decode). Its number is at most
    /// 32767; a greater number is refused as `Invalid` when the value is recorded.
    Custom(u16),
}

/// What is recorded with each value: its codec, and the version of its type.
///
/// Raise the version when the bytes of the type change; `decode` gets the recorded version.
///
/// ```
/// use onlyonce::value::Format;
/// use onlyonce::{Decode, Error, Payload, Result};
///
/// struct Name(String);
///
/// impl Decode for Name {
///     fn decode(payload: &Payload, format: Format) -> Result<Self> {
///         match format.version {
///             0 => Ok(Name(String::decode(payload, format)?)),
///             _ => Err(Error::undecodable(format!("a name recorded in {format}"))),
///         }
///     }
/// }
/// # let store = onlyonce::testing::Sim::new(1).open()?;
/// # let onlyonce::Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
/// # claim.complete("Ada")?;
/// # let onlyonce::Claim::Completed(done) = store.claim("k")? else { unreachable!() };
/// # assert_eq!(done.decode::<Name>()?.0, "Ada");
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Format {
    /// How the value is encoded.
    pub codec: Codec,
    /// The version of the type's encoding; 0 for strings and bytes.
    pub version: u32,
}

impl Format {
    /// Strings and bytes as they are.
    pub(crate) const BYTES: Format = Format { codec: Codec::Bytes, version: 0 };

    /// Codec and version as stored. `Invalid` for a custom number that is too large.
    pub(crate) fn to_stored(self) -> Result<(u16, u32)> {
        let codec = match self.codec {
            Codec::Bytes => 0,
            Codec::Bincode => 1,
            Codec::Json => 2,
            Codec::Custom(number) if number < CUSTOM => CUSTOM | number,
            Codec::Custom(number) => {
                return Err(Error::invalid(format!(
                    "the custom codec number {number}: at most {}",
                    CUSTOM - 1
                )));
            }
        };
        Ok((codec, self.version))
    }

    /// The format with those numbers; `None` for a codec this version does not know.
    pub(crate) fn from_stored(codec: u16, version: u32) -> Option<Format> {
        let codec = match codec {
            0 => Codec::Bytes,
            1 => Codec::Bincode,
            2 => Codec::Json,
            custom if custom & CUSTOM != 0 => Codec::Custom(custom & !CUSTOM),
            _ => return None,
        };
        Some(Format { codec, version })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, version {}", self.codec, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn stored_numbers_are_fixed_and_decode_again() {
        let numbers = [
            (Codec::Bytes, 0),
            (Codec::Bincode, 1),
            (Codec::Json, 2),
            (Codec::Custom(0), 0x8000),
            (Codec::Custom(0x7fff), 0xffff),
        ];
        for (codec, number) in numbers {
            let format = Format { codec, version: 7 };
            assert_eq!(format.to_stored().unwrap(), (number, 7));
            assert_eq!(Format::from_stored(number, 7), Some(format));
        }
        assert_eq!((NOT_KEPT, Format::from_stored(NOT_KEPT, 0)), (3, None));
        assert_eq!(Format::from_stored(4, 0), None);
    }

    #[test]
    fn a_custom_number_too_large_is_refused() {
        let error = Format { codec: Codec::Custom(0x8000), version: 0 }.to_stored().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
