//! bincode 2 in its standard configuration, and [`Bincode`] around any serde type.
//!
//! Promises: a length that the bytes claim is compared with a limit before memory is taken for it, and no bytes are left
//! over. Proof: the golden bytes in the tests.

use bincode::config::{Config, standard};
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::typed::{decode_serde, encode_serde, type_name};
use super::{Codec, Format};
use crate::limits::RESULT_BYTES_MAX;
use crate::{Decode, Encode, Error, Payload, Result};

/// Wraps any serde type as a value in bincode, version 0, without an `impl`: `Bincode(17u64)`, `Bincode(vec)`.
///
/// The limits of bincode described at [`Typed`](super::Typed) apply here too. The type must own its parts (`String`, not
/// `&str`), because it must be possible to decode it.
///
/// ```
/// use onlyonce::Outcome;
/// use onlyonce::value::Bincode;
///
/// let outcome = Outcome::success(&Bincode(("order".to_owned(), 17u64)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Bincode<T>(pub T);

const FORMAT: Format = Format { codec: Codec::Bincode, version: 0 };

impl<T: Serialize + DeserializeOwned> Encode for Bincode<T> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
        encode_serde(&self.0, FORMAT, out)
    }
}

impl<T: DeserializeOwned> Decode for Bincode<T> {
    fn decode(payload: &Payload, format: Format) -> Result<Self> {
        decode_serde(payload, format, FORMAT).map(Bincode)
    }
}

/// Appends to a vector; `bincode` has no such writer without `std`.
struct Append<'o>(&'o mut Vec<u8>);

impl Writer for Append<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

pub(super) fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<()> {
    bincode::serde::encode_into_writer(value, Append(out), standard()).map_err(|error| {
        Error::invalid(format!("{} does not encode in bincode: {error}", type_name::<T>()))
    })
}

/// bincode counts what it reads by the sizes in memory, at most 16 for one byte (a small `u128`, in short form), and
/// refuses a length beyond its limit before it allocates. The limit is a constant, so there are two: the usual results
/// can't request more than 16 MiB.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
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
        // serde quotes the value that it found, and no error shows a result.
        Err(DecodeError::OtherString(_)) => {
            Err(Error::undecodable(format!("not {name} in bincode: a value does not fit the type")))
        }
        Err(error) => Err(Error::undecodable(format!("not {name} in bincode: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::ErrorKind;
    use crate::value::{Typed, encode};

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
        Payload::new(bytes, format)
    }

    fn bincode(bytes: Vec<u8>, version: u32) -> Payload {
        Payload::new(bytes, Format { codec: Codec::Bincode, version })
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
        assert_eq!(payload.to_string(), "11 bytes, Bincode, version 2");
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
    fn a_value_that_fails_to_encode_leaves_no_bytes() {
        #[derive(Deserialize)]
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
