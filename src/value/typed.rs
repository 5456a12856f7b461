//! Types of serde as values: [`Typed`].
//!
//! Promises: a value is decoded by the codec that its record names, and only in the version that the type names. In
//! debug builds a value that would not decode again is refused when it is recorded. Never: knows a codec's bytes;
//! `bincode` and `json` do.

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "bincode")]
use super::bincode;
#[cfg(feature = "json")]
use super::json;
use super::{Codec, Format};
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
///     const CODEC: Codec = Codec::Json;
///     const VERSION: u32 = 1;
/// }
///
/// let mut bytes = Vec::new();
/// let format = Receipt { order: 17, paid: true }.encode(&mut bytes)?;
/// assert_eq!(bytes, br#"{"order":17,"paid":true}"#);
/// assert_eq!(format, Format { codec: Codec::Json, version: 1 });
/// # Ok::<(), onlyonce::Error>(())
/// ```
/// # Changing the type
/// A result of another version is refused as `Undecodable` instead of being decoded wrongly. To read both versions,
/// record an enum of the old and the new form, or implement [`Decode`] by hand.
///
/// bincode stores no field names, so raise [`VERSION`](Typed::VERSION) whenever a field is added, removed or moved. JSON
/// names its fields: a field with `#[serde(default)]` may be added without a new version, and any change that older
/// records don't fit needs one.
///
/// A value is decoded by the codec that encoded it, so changing only [`CODEC`](Typed::CODEC) is safe, while the features
/// of both codecs are on.
///
/// # What doesn't decode again
/// bincode needs to know each type in advance: values with `#[serde(untagged)]`, `flatten`, `tag` or
/// `skip_serializing_if`, and values without a type of their own (`serde_json::Value`), encode, but then don't decode.
/// JSON has no number for infinity or NaN, and its nesting is limited to 127 levels.
///
/// In builds with debug assertions, each value is decoded once when it is recorded, and a value that doesn't decode is
/// refused as `Invalid`, so tests find such types; a run returns it as [`Run::Unrecorded`](crate::Run::Unrecorded). Other builds
/// don't spend that time, and record the value.
///
/// bincode does not limit the number of elements that take no bytes (`Vec<()>`), or the depth of a recursive type. Don't
/// record such types in bincode if others can choose the bytes.
pub trait Typed: Serialize + DeserializeOwned {
    /// The codec of the type: [`Codec::Bincode`] or [`Codec::Json`], by the feature of that name. Any other codec is
    /// refused as `Invalid`.
    const CODEC: Codec;

    /// The version of the type, recorded with each value.
    const VERSION: u32 = 0;
}

fn format_of<T: Typed>() -> Format {
    Format { codec: T::CODEC, version: T::VERSION }
}

impl<T: Typed> Encode for T {
    fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
        encode_serde(self, format_of::<T>(), out)
    }
}

impl<T: Typed> Decode for T {
    fn decode(payload: &Payload, format: Format) -> Result<Self> {
        decode_serde(payload, format, format_of::<T>())
    }
}

/// Appends a value in `format`; appends nothing if that fails.
pub(super) fn encode_serde<T: Serialize + DeserializeOwned>(
    value: &T,
    format: Format,
    out: &mut Vec<u8>,
) -> Result<Format> {
    let before = out.len();
    let encoded = match format.codec {
        #[cfg(feature = "bincode")]
        Codec::Bincode => bincode::encode(value, out),
        #[cfg(feature = "json")]
        Codec::Json => json::encode(value, out),
        codec => Err(Error::invalid(format!("{} names {}", type_name::<T>(), no_codec(codec)))),
    };
    let encoded = encoded.and_then(|()| check_decodes::<T>(out.split_at(before).1, format));
    if encoded.is_err() {
        out.truncate(before);
    }
    encoded.map(|()| format)
}

/// What was just encoded must decode again, or it would be recorded and never replayed. Checked in debug builds only:
/// it depends on the type, seldom on the value, so that tests find it.
fn check_decodes<T: DeserializeOwned>(bytes: &[u8], format: Format) -> Result<()> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    let decoded = decode_serde::<T>(bytes, format, format);
    decoded.map(drop).map_err(|why| {
        Error::not_decodable_again(format!(
            "{} encodes in {format} and does not decode again, so it would never be replayed: {why}",
            type_name::<T>()
        ))
    })
}

/// `found` is the recorded format, `own` that of the type.
pub(super) fn decode_serde<T: DeserializeOwned>(
    bytes: &[u8],
    found: Format,
    own: Format,
) -> Result<T> {
    let name = type_name::<T>();
    let mismatch = |why: &str| {
        let message = format!("recorded in {found}, asked for as {name} in {own}{why}");
        Err(Error::undecodable(message))
    };
    match found.codec {
        Codec::Bytes | Codec::Custom(_) => mismatch(": decode it as the type it was recorded as"),
        _ if found.version != own.version => {
            mismatch(": decode it as the version it was recorded as")
        }
        #[cfg(feature = "bincode")]
        Codec::Bincode => bincode::decode(bytes),
        #[cfg(feature = "json")]
        Codec::Json => json::decode(bytes),
        #[cfg(not(all(feature = "bincode", feature = "json")))]
        codec => mismatch(&format!("; this build lacks {}", no_codec(codec))),
    }
}

/// Why a codec doesn't encode types of serde in this build.
fn no_codec(codec: Codec) -> String {
    match codec {
        Codec::Bincode => "the codec Bincode, which needs the feature `bincode`".to_owned(),
        Codec::Json => "the codec Json, which needs the feature `json`".to_owned(),
        Codec::Bytes | Codec::Custom(_) => format!(
            "the codec {codec:?}, which does not encode by serde: name Codec::Json or Codec::Bincode, or implement Encode and Decode by hand"
        ),
    }
}

pub(super) fn type_name<T>() -> &'static str {
    std::any::type_name::<T>()
}

#[cfg(all(test, feature = "bincode", feature = "json"))]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::ErrorKind;
    use crate::value::{Bincode, Json, encode};

    #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
    struct Receipt {
        order: u64,
        note: Option<String>,
    }

    impl Typed for Receipt {
        const CODEC: Codec = Codec::Json;
        const VERSION: u32 = 3;
    }

    fn receipt() -> Receipt {
        Receipt { order: 17, note: None }
    }

    fn payload(bytes: &[u8], codec: Codec, version: u32) -> Payload {
        Payload::new(bytes.to_vec(), Format { codec, version })
    }

    fn error<T: Decode>(payload: &Payload) -> Error {
        payload.decode::<T>().err().unwrap()
    }

    #[test]
    fn a_type_is_recorded_in_its_codec_and_version() {
        let (format, bytes) = encode(&receipt()).unwrap();
        assert_eq!(format, Format { codec: Codec::Json, version: 3 });
        assert_eq!(bytes, br#"{"order":17,"note":null}"#);
        assert_eq!(Payload::new(bytes, format).decode::<Receipt>().unwrap(), receipt());
    }

    /// A type whose codec changed reads its older records.
    #[test]
    fn a_value_is_decoded_by_the_codec_that_encoded_it() {
        let (_, bytes) = encode(&Bincode(receipt())).unwrap();
        assert_eq!(payload(&bytes, Codec::Bincode, 3).decode::<Receipt>().unwrap(), receipt());
        let json = payload(br#"{"order":17}"#, Codec::Json, 0);
        assert_eq!(json.decode::<Bincode<Receipt>>().unwrap(), Bincode(receipt()));
        assert_eq!(json.decode::<Json<Receipt>>().unwrap(), Json(receipt()));
    }

    #[test]
    fn an_error_of_another_codec_or_version_names_both() {
        let cases = [
            (Codec::Json, 2, "recorded in Json, version 2"),
            (Codec::Bincode, 0, "recorded in Bincode, version 0"),
            (Codec::Bytes, 3, "recorded in Bytes, version 3"),
            (Codec::Custom(7), 3, "recorded in Custom(7), version 3"),
        ];
        for (codec, version, words) in cases {
            let error = error::<Receipt>(&payload(br#"{"order":17}"#, codec, version));
            assert_eq!(error.kind(), ErrorKind::Undecodable);
            let message = error.to_string();
            assert!(message.contains(words), "{message}");
            assert!(message.contains("Receipt in Json, version 3"), "{message}");
        }
        let error = error::<String>(&payload(b"{}", Codec::Json, 3));
        let message = error.to_string();
        assert!(message.contains("recorded in Json, version 3"), "{message}");
        assert!(message.contains("text in Bytes, version 0"), "{message}");
    }

    #[test]
    fn no_error_shows_a_result() {
        let json = error::<Receipt>(&payload(br#"{"order":"secret"}"#, Codec::Json, 3));
        let message = format!("{json} {json:?}");
        assert!(message.contains("line 1 column 17") && !message.contains("secret"), "{message}");
        // An address is not "secret", and serde would say what it is.
        let (_, bytes) = encode(&Bincode("secret".to_owned())).unwrap();
        let bincode = error::<Bincode<Strict>>(&payload(&bytes, Codec::Bincode, 0));
        let message = format!("{bincode} {bincode:?}");
        assert!(message.contains("not ") && !message.contains("secret"), "{message}");
    }

    /// Names what it refuses.
    #[derive(Debug)]
    struct Strict;

    impl<'de> Deserialize<'de> for Strict {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            let text = String::deserialize(from)?;
            Err(serde::de::Error::custom(format!("unexpected {text:?}")))
        }
    }

    #[test]
    fn a_codec_without_serde_is_refused() {
        #[derive(Serialize, Deserialize)]
        struct AsBytes;
        impl Typed for AsBytes {
            const CODEC: Codec = Codec::Bytes;
        }
        let error = encode(&AsBytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("AsBytes names the codec Bytes"), "{error}");
    }

    /// These encode, and nothing could ever decode them: a store recorded them, and no later claim got a result.
    #[cfg(debug_assertions)]
    #[test]
    fn a_value_that_does_not_decode_again_is_refused_when_it_is_encoded() {
        #[derive(Serialize, Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            Number(u64),
        }
        #[derive(Serialize, Deserialize)]
        struct Skips {
            #[serde(skip_serializing_if = "Option::is_none")]
            note: Option<String>,
            order: u64,
        }
        impl Typed for Skips {
            const CODEC: Codec = Codec::Bincode;
        }
        fn refused<V: Encode>(value: V) -> String {
            let mut out = b"before".to_vec();
            let error = value.encode(&mut out).unwrap_err();
            assert_eq!((error.kind(), &out[..]), (ErrorKind::Invalid, &b"before"[..]));
            assert!(error.to_string().contains("does not decode again"), "{error}");
            error.to_string()
        }
        let value = serde_json::json!({"paid": true});
        let message = refused(Bincode(value.clone()));
        assert!(message.contains("Value") && message.contains("Bincode, version 0"), "{message}");
        refused(Bincode(Untagged::Number(1)));
        refused(Skips { note: None, order: 1 });
        refused(Json(f64::NAN));
        // What has no fixed form is at home in JSON.
        encode(&Json(value)).unwrap();
        encode(&Json(Untagged::Number(1))).unwrap();
    }

    /// Nothing is decoded, and nothing refused, where debug assertions are off.
    #[cfg(not(debug_assertions))]
    #[test]
    fn without_debug_assertions_a_value_is_not_decoded_when_it_is_encoded() {
        encode(&Bincode(serde_json::json!({"paid": true}))).unwrap();
    }
}
