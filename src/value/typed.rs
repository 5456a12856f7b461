//! Types of serde as values: [`Typed`] for your own, [`Bincode`] around any other.
//!
//! Promises: a length that the bytes claim is compared with a limit before memory is taken for it, and no bytes
//! are left over. Never: decodes a version that the type doesn't name.

use bincode::config::{Config, standard};
use bincode::enc::write::Writer;
use bincode::error::EncodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, Format};
use crate::limits::RESULT_BYTES_MAX;
use crate::{Decode, Encode, Error, Payload, Result};

/// A serde type of your own that can be recorded: implementing `Typed` gives it [`Encode`] and [`Decode`].
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
/// bincode stores no field names, so raise [`VERSION`](Typed::VERSION) whenever a field is added, removed or moved. A
/// result of another version is then refused as `Undecodable` instead of being decoded wrongly. To read both versions,
/// record an enum of the old and the new form, or implement [`Decode`] by hand.
///
/// A value is decoded by the codec that encoded it, so changing only [`CODEC`](Typed::CODEC) is safe.
///
/// # What bincode can't do
/// bincode needs to know each type in advance: values with `#[serde(untagged)]`, `flatten`, `tag` or
/// `skip_serializing_if` encode, but then don't decode. Test that a value decodes after it was encoded.
///
/// Decoding does not limit the number of elements that take no bytes (`Vec<()>`), or the depth of a recursive type.
/// Don't record such types if others can choose the bytes.
pub trait Typed: Serialize + DeserializeOwned {
    /// The codec of the type, [`Codec::Bincode`]. Any other codec is refused as `Invalid`.
    const CODEC: Codec;

    /// The version of the type, recorded with each value.
    const VERSION: u32 = 0;
}

/// Wraps any serde type as a value in bincode, version 0, without an `impl`: `Bincode(17u64)`, `Bincode(vec)`.
///
/// The limits of bincode described at [`Typed`] apply here too.
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

/// bincode counts what it reads by the sizes in memory, at most 16 for one byte (a small `u128`, in short form), and
/// refuses a length beyond its limit before it allocates. The limit is a constant, so there are two: the usual results
/// can't request more than 16 MiB.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::ErrorKind;
    use crate::value::encode;

    #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
    enum Answer {
        Nothing,
        One(u128),
        Many { names: Vec<String>, sizes: BTreeMap<u16, Option<Vec<u64>>> },
    }

    impl Typed for Answer {
        const CODEC: Codec = Codec::Bincode;
        const VERSION: u32 = 2;
    }

    fn answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            Just(Answer::Nothing),
            any::<u128>().prop_map(Answer::One),
            (
                vec(".{0,9}", 0..9),
                btree_map(any::<u16>(), proptest::option::of(vec(any::<u64>(), 0..9)), 0..9)
            )
                .prop_map(|(names, sizes)| Answer::Many { names, sizes }),
        ]
    }

    fn recorded<V: Encode>(value: &V) -> Payload {
        let (format, bytes) = encode(value).unwrap();
        Payload::from_vec(bytes, format)
    }

    fn bincode(bytes: Vec<u8>, version: u32) -> Payload {
        Payload::from_vec(bytes, Format { codec: Codec::Bincode, version })
    }

    fn kind<T: Decode>(payload: &Payload) -> Option<ErrorKind> {
        payload.decode::<T>().err().map(|error| error.kind())
    }

    proptest! {
        #[test]
        fn a_typed_value_decodes_to_what_was_recorded(answer in answer()) {
            prop_assert_eq!(&recorded(&answer).decode::<Answer>().unwrap(), &answer);
            prop_assert_eq!(&recorded(&Bincode(answer.clone())).decode::<Bincode<Answer>>().unwrap().0, &answer);
        }

        #[test]
        fn hostile_bytes_decode_or_are_undecodable(bytes in vec(any::<u8>(), 0..64)) {
            let kind = kind::<Answer>(&bincode(bytes, Answer::VERSION));
            prop_assert!(matches!(kind, None | Some(ErrorKind::Undecodable)));
        }

        #[test]
        fn a_damaged_value_decodes_or_is_undecodable(answer in answer(), place in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = recorded(&answer).to_vec();
            let place = place.index(bytes.len());
            bytes[place] = byte;
            prop_assert!(matches!(kind::<Answer>(&bincode(bytes.clone(), 2)), None | Some(ErrorKind::Undecodable)));
            bytes.truncate(place);
            prop_assert!(matches!(kind::<Answer>(&bincode(bytes, 2)), None | Some(ErrorKind::Undecodable)));
        }
    }

    #[test]
    fn the_encoding_never_changes() {
        let value =
            Answer::Many { names: vec!["a".into()], sizes: BTreeMap::from([(300, Some(vec![1]))]) };
        let payload = recorded(&value);
        assert_eq!(&payload[..], [2, 1, 1, b'a', 1, 251, 44, 1, 1, 1, 1]);
        assert_eq!(payload.format, Format { codec: Codec::Bincode, version: 2 });
    }

    /// A length of 2^40 in a few bytes: refused before anything is allocated for it.
    #[test]
    fn a_claimed_length_allocates_nothing() {
        let length = [&[253][..], &(1u64 << 40).to_le_bytes()].concat();
        assert_eq!(
            kind::<Bincode<String>>(&bincode(length.clone(), 0)),
            Some(ErrorKind::Undecodable)
        );
        assert_eq!(
            kind::<Bincode<Vec<u64>>>(&bincode(length.clone(), 0)),
            Some(ErrorKind::Undecodable)
        );
        assert_eq!(
            kind::<Bincode<BTreeMap<u64, u64>>>(&bincode(length, 0)),
            Some(ErrorKind::Undecodable)
        );
    }

    /// The limit counts sizes in memory; a value encoded within the limits on results must still decode.
    #[test]
    fn the_densest_values_stay_within_the_limit() {
        for count in [1000, (1 << 20) - 5, 1 << 20] {
            let value = Bincode(vec![1u128; count]);
            assert_eq!(recorded(&value).decode::<Bincode<Vec<u128>>>().unwrap(), value);
        }
    }

    #[test]
    fn bytes_left_over_are_undecodable() {
        let mut bytes = recorded(&Answer::Nothing).to_vec();
        bytes.push(0);
        assert_eq!(kind::<Answer>(&bincode(bytes, 2)), Some(ErrorKind::Undecodable));
    }

    #[test]
    fn another_version_or_codec_is_undecodable_and_named() {
        let old = bincode(recorded(&Answer::Nothing).to_vec(), 1).decode::<Answer>().unwrap_err();
        assert_eq!(old.kind(), ErrorKind::Undecodable);
        assert!(
            old.to_string().contains("version 1") && old.to_string().contains("version 2"),
            "{old}"
        );

        for codec in [Codec::Bytes, Codec::Json, Codec::Custom(1)] {
            let payload = Payload::from_vec(vec![0], Format { codec, version: 2 });
            assert_eq!(kind::<Answer>(&payload), Some(ErrorKind::Undecodable), "{codec:?}");
        }
    }

    #[test]
    fn a_codec_without_serde_is_refused() {
        #[derive(Serialize, Deserialize)]
        struct AsJson;
        impl Typed for AsJson {
            const CODEC: Codec = Codec::Json;
        }
        #[derive(Serialize, Deserialize)]
        struct AsBytes;
        impl Typed for AsBytes {
            const CODEC: Codec = Codec::Bytes;
        }
        let json = encode(&AsJson).unwrap_err();
        assert_eq!(json.kind(), ErrorKind::Invalid);
        assert!(json.to_string().contains("feature `json`"), "{json}");
        assert_eq!(encode(&AsBytes).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_value_that_fails_to_encode_leaves_no_bytes() {
        struct Broken;
        impl Serialize for Broken {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                use serde::ser::{Error as _, SerializeTuple};
                to.serialize_tuple(1)?.serialize_element(&7u64)?;
                Err(S::Error::custom("no more"))
            }
        }
        let mut out = b"before".to_vec();
        let error = Bincode(Broken).encode(&mut out).unwrap_err();
        assert_eq!((error.kind(), out.as_slice()), (ErrorKind::Invalid, &b"before"[..]));
    }
}
