//! JSON by `serde_json`, and [`Json`] around any serde type.
//!
//! Promises: a number is decoded as the number that was encoded, to its last bit, and no bytes are left over. Memory
//! grows with the bytes that are there, not with what they claim, and their nesting is limited.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::typed::{decode_serde, encode_serde, type_name};
use super::{Codec, Format};
use crate::{Decode, Encode, Error, Payload, Result};

/// Wraps any serde type as a value in JSON, version 0, without an `impl`: `Json(17u64)`, `Json(vec)`,
/// `Json(serde_json::json!({"paid": true}))`.
///
/// Other programs can read the recorded bytes, and fields may be added as for any JSON (`#[serde(default)]`). The type
/// must own its parts (`String`, not `&str`), because it must be possible to decode it. Nesting is limited to 127
/// levels.
///
/// ```
/// use onlyonce::Encode;
/// use onlyonce::value::{Codec, Json};
///
/// let mut bytes = Vec::new();
/// let format = Json(vec![Some(17), None]).encode(&mut bytes)?;
/// assert_eq!((&bytes[..], format.codec), (&b"[17,null]"[..], Codec::Json));
/// # Ok::<(), onlyonce::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Json<T>(pub T);

const FORMAT: Format = Format { codec: Codec::Json, version: 0 };

impl<T: Serialize + DeserializeOwned> Encode for Json<T> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
        encode_serde(&self.0, FORMAT, out)
    }
}

impl<T: DeserializeOwned> Decode for Json<T> {
    fn decode(payload: &Payload, format: Format) -> Result<Self> {
        decode_serde(payload, format, FORMAT).map(Json)
    }
}

pub(super) fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<()> {
    serde_json::to_writer(out, value).map_err(|error| {
        Error::invalid(format!("{} does not encode in JSON: {error}", type_name::<T>()))
    })
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let why = match error.classify() {
            // serde quotes the value that it found, and no error shows a result.
            Category::Data => {
                let (line, column) = (error.line(), error.column());
                format!("what ends at line {line} column {column} does not fit the type")
            }
            Category::Syntax | Category::Eof | Category::Io => error.to_string(),
        };
        Error::undecodable(format!("not {} in JSON: {why}", type_name::<T>()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;
    use crate::value::encode;

    fn recorded<V: Encode>(value: &V) -> Payload {
        let (format, bytes) = encode(value).unwrap();
        Payload::new(bytes, format)
    }

    fn json(bytes: &[u8]) -> Payload {
        Payload::new(bytes.to_vec(), FORMAT)
    }

    proptest! {
        /// serde_json alone is off by the last bit for some numbers.
        #[test]
        fn a_number_decodes_to_its_last_bit(number: f64, text: String, large: u64) {
            let value = Json((number, text, large));
            prop_assert_eq!(recorded(&value).decode::<Json<(f64, String, u64)>>().unwrap(), value);
        }

        #[test]
        fn hostile_bytes_decode_or_are_undecodable(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let kind = json(&bytes).decode::<Json<serde_json::Value>>().err().map(|e| e.kind());
            prop_assert!(matches!(kind, None | Some(ErrorKind::Undecodable)));
        }
    }

    #[test]
    fn bytes_left_over_and_deep_nesting_are_undecodable() {
        let deep = [vec![b'['; 1 << 20], vec![b']'; 1 << 20]].concat();
        for bytes in [&b"17 18"[..], b"", b"{", b"\xff", b"\"\xff\"", &deep] {
            let error = json(bytes).decode::<Json<serde_json::Value>>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Undecodable);
        }
    }

    #[test]
    fn a_value_that_fails_to_encode_leaves_no_bytes() {
        let map = std::collections::BTreeMap::from([((1, 2), 3)]); // the names of a JSON object are text
        let mut out = b"before".to_vec();
        let error = Json(map).encode(&mut out).unwrap_err();
        assert_eq!((error.kind(), &out[..]), (ErrorKind::Invalid, &b"before"[..]));
    }
}
