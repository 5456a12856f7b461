//! A recorded value, and the traits between it and the types of a program: [`Payload`], [`Encode`], [`Decode`].
//!
//! Promises: a payload's bytes are those that were recorded, and passed their checksum; it decodes only as
//! the format they were recorded in. Never: prints contents. Strings and bytes are here, other types in `typed`.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::{Format, ValueBytes};
use crate::{Error, ErrorKind, Result};

/// A recorded value: a result, or a failure.
///
/// A payload derefs to its bytes, and [`decode`](Payload::decode) turns them into a type. A clone shares the bytes. A
/// payload borrows nothing and may be sent to any thread; `bytes::Bytes::from_owner(payload)` takes it without a copy. If no result was kept, the payload has no bytes and doesn't
/// decode: see [`Recorded::missing`](crate::Recorded::missing). The same holds for a result that was compressed, in a
/// build without the feature `lz4`: the payload has no bytes, and `decode` fails as `Undecodable`.
///
/// # What a payload holds
/// A result of more than 4 KiB is not copied: the payload shows it where the store read it, after its checksum was
/// verified. A full segment is read through a map, which the payload keeps; anything else was read into memory, which
/// the payload owns. A payload of a map stays readable after compaction has removed the segment, after the store is
/// closed, and after its directory is removed. While it lives:
///
/// - The space of the segment's file, up to [`segment_bytes`](crate::StoreBuilder::segment_bytes), is freed on the disk
///   only when the last such payload is dropped. [`disk_bytes_max`](crate::StoreBuilder::disk_bytes_max) doesn't count
///   removed segments.
/// - The map counts as the process's memory (as cache, which the system may drop), and there may be as many maps as
///   payloads of different segments.
/// - If the device can't read the page, or another program truncates the file, the process dies of SIGBUS, as with any
///   read through a map. [`StoreBuilder::map(false)`](crate::StoreBuilder::map) avoids that.
///
/// `payload.to_vec()` copies the bytes and lets go. Do that with payloads that you keep for long, such as in a cache.
///
/// `Display` and `Debug` show the length and the format, never the contents. Payloads are equal if they have the same bytes in
/// the same format.
///
/// ```
/// # use onlyonce::{Claim, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
/// claim.complete("text")?;
/// let Claim::Completed(done) = store.claim("k")? else { unreachable!() };
/// assert_eq!(&done.result()[..], b"text");
/// assert_eq!(done.result().decode::<String>()?, "text");
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    content: PayloadContent,
    /// `None`: in a codec that this version doesn't know.
    format: Option<Format>,
}

#[derive(Clone, PartialEq, Eq)]
enum PayloadContent {
    Bytes(ValueBytes),
    /// Nothing was kept, for that reason.
    NotKept(Arc<str>),
    /// It was kept, and this build can't read it, for that reason.
    Unreadable(Arc<str>),
}

/// A type whose values can be recorded. The trait turns a value into bytes.
///
/// Strings, bytes and `()` implement this trait. For other types see `Typed` in [`value`](crate::value), or implement
/// both traits by hand:
///
/// ```
/// use onlyonce::value::{Codec, Format};
/// use onlyonce::{Decode, Encode, Error, Payload, Result};
///
/// struct Receipt(u64);
///
/// const FORMAT: Format = Format { codec: Codec::Custom(1), version: 0 };
///
/// impl Encode for Receipt {
///     fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
///         out.extend_from_slice(&self.0.to_le_bytes());
///         Ok(FORMAT)
///     }
/// }
///
/// impl Decode for Receipt {
///     fn decode(payload: &Payload, format: Format) -> Result<Self> {
///         let bytes = <[u8; 8]>::try_from(&payload[..]).ok().filter(|_| format == FORMAT);
///         let bytes = bytes.ok_or_else(|| Error::undecodable("not a receipt"))?;
///         Ok(Receipt(u64::from_le_bytes(bytes)))
///     }
/// }
/// ```
pub trait Encode {
    /// Appends the encoded value to `out` and returns its format. The bytes that `out` already holds must stay.
    ///
    /// This method is called once for each outcome, before the store is used.
    ///
    /// ```
    /// use onlyonce::Encode;
    ///
    /// let mut bytes = Vec::new();
    /// let format = "text".encode(&mut bytes)?;
    /// assert_eq!((&bytes[..], format.version), (&b"text"[..], 0));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// Any reason why the value can't be encoded. The call that was to record the value then returns the claim in its
    /// error.
    fn encode(&self, out: &mut Vec<u8>) -> Result<Format>;
}

/// A type that a recorded value can be decoded as.
///
/// Strings, bytes and `()` implement this trait. For other types see `Typed` in [`value`](crate::value), or implement
/// the trait by hand:
///
/// ```
/// use onlyonce::value::Format;
/// use onlyonce::{Decode, Error, Payload, Result};
///
/// #[derive(PartialEq, Debug)]
/// enum Color {
///     Red,
///     Green,
/// }
///
/// impl Decode for Color {
///     fn decode(payload: &Payload, format: Format) -> Result<Self> {
///         match String::decode(payload, format)?.as_str() {
///             "red" => Ok(Color::Red),
///             "green" => Ok(Color::Green),
///             other => Err(Error::undecodable(format!("no color: {other:?}"))),
///         }
///     }
/// }
/// # let store = onlyonce::testing::Sim::new(1).open()?;
/// # let onlyonce::Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
/// # claim.complete("green")?;
/// # let onlyonce::Claim::Completed(done) = store.claim("k")? else { unreachable!() };
/// # assert_eq!(done.decode::<Color>()?, Color::Green);
/// # onlyonce::Result::<()>::Ok(())
/// ```
pub trait Decode: Sized {
    /// Decodes the value in `payload`, which was recorded in `format`.
    ///
    /// The bytes may have been recorded by another version of the program: check the format first, and trust no length
    /// in the bytes.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// claim.complete("text")?;
    /// let Claim::Completed(done) = store.claim("k")? else { unreachable!() };
    /// let text: String = done.decode()?; // calls it, with the format that was recorded
    /// assert_eq!(text, "text");
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `Undecodable` if the format or the bytes are not this type's.
    fn decode(payload: &Payload, format: Format) -> Result<Self>;
}

/// The bytes of a value and their format; a format that can't be stored is refused here.
pub(crate) fn encode<V: Encode + ?Sized>(value: &V) -> Result<(Format, Vec<u8>)> {
    let mut bytes = Vec::new();
    let format = value.encode(&mut bytes)?;
    format.to_stored()?;
    Ok((format, bytes))
}

impl Payload {
    /// No bytes, as `()` is recorded.
    pub(crate) fn empty() -> Self {
        Payload::new(ValueBytes::default(), Format::BYTES)
    }

    #[inline]
    pub(crate) fn new(bytes: impl Into<ValueBytes>, format: impl Into<Option<Format>>) -> Self {
        Payload { content: PayloadContent::Bytes(bytes.into()), format: format.into() }
    }

    /// The payload if no result was kept, for that reason.
    pub(crate) fn not_kept(reason: Arc<str>) -> Self {
        Payload { content: PayloadContent::NotKept(reason), format: None }
    }

    /// The payload if a result was kept and can't be read, for that reason.
    pub(crate) fn unreadable(reason: Arc<str>) -> Self {
        Payload { content: PayloadContent::Unreadable(reason), format: None }
    }

    pub(crate) fn missing(&self) -> Option<&str> {
        match &self.content {
            PayloadContent::NotKept(reason) => Some(reason),
            PayloadContent::Bytes(_) | PayloadContent::Unreadable(_) => None,
        }
    }

    /// Decodes the value into `T`, which must be the type that was recorded.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// claim.complete(&vec![1, 2, 3])?;
    /// let Claim::Completed(done) = store.claim("k")? else { unreachable!() };
    /// let payload = done.result().clone(); // shares the bytes
    /// assert_eq!(payload.decode::<Vec<u8>>()?, [1, 2, 3]);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `Undecodable` if the value was recorded as another type, in another version, or by a codec that this build
    /// lacks. The bytes themselves can still be read. `NotKept` if no result was kept; the message gives the reason.
    ///
    /// # Cost
    /// Reads nothing from the disk. Strings and bytes are copied once.
    pub fn decode<T: Decode>(&self) -> Result<T> {
        match (&self.content, self.format) {
            (PayloadContent::Bytes(_), Some(format)) => T::decode(self, format),
            (PayloadContent::Bytes(_), None) => Err(Error::undecodable(
                "recorded in a codec that this version of onlyonce does not know: decode it with the version that recorded it, or take the payload's bytes",
            )),
            (PayloadContent::Unreadable(reason), _) => Err(Error::undecodable(&**reason)),
            (PayloadContent::NotKept(reason), _) => Err(Error::new(
                ErrorKind::NotKept,
                format!("the work was done, and its result was not kept: {reason}"),
            )),
        }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.content {
            PayloadContent::Bytes(bytes) => bytes,
            PayloadContent::NotKept(_) | PayloadContent::Unreadable(_) => &[],
        }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Display for Payload {
    /// Shows the length and the format, never the contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.content, self.format) {
            (PayloadContent::Bytes(bytes), Some(format)) => {
                write!(f, "{} bytes, {format}", bytes.len())
            }
            (PayloadContent::Bytes(bytes), None) => {
                write!(f, "{} bytes, an unknown codec", bytes.len())
            }
            (PayloadContent::NotKept(reason), _) => write!(f, "not kept: {reason}"),
            (PayloadContent::Unreadable(reason), _) => write!(f, "unreadable: {reason}"),
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({self})")
    }
}

/// Values that are their own bytes. References are listed one by one, because an impl for every `&T` would overlap with
/// that for every `Typed`.
macro_rules! encode_as_bytes {
    ($($type:ty),*) => {$(
        impl Encode for $type {
            fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
                encode_bytes(self.as_ref(), out)
            }
        }
    )*};
}

encode_as_bytes!(str, &str, String, &String, [u8], &[u8], Vec<u8>, &Vec<u8>);

impl<const N: usize> Encode for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
        encode_bytes(self, out)
    }
}

impl<const N: usize> Encode for &[u8; N] {
    fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
        encode_bytes(*self, out)
    }
}

fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) -> Result<Format> {
    if out.is_empty() {
        *out = bytes.to_vec();
    } else {
        out.extend_from_slice(bytes);
    }
    Ok(Format::BYTES)
}

impl Encode for () {
    fn encode(&self, _out: &mut Vec<u8>) -> Result<Format> {
        Ok(Format::BYTES)
    }
}

impl Decode for Vec<u8> {
    fn decode(payload: &Payload, format: Format) -> Result<Self> {
        expect_bytes("bytes", format)?;
        Ok(payload.to_vec())
    }
}

impl Decode for String {
    fn decode(payload: &Payload, format: Format) -> Result<Self> {
        expect_bytes("text", format)?;
        match std::str::from_utf8(payload) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(Error::undecodable(
                "recorded as bytes that are not UTF-8: decode them as Vec<u8>",
            )
            .because(error)),
        }
    }
}

impl Decode for () {
    fn decode(payload: &Payload, format: Format) -> Result<Self> {
        expect_bytes("nothing", format)?;
        match payload.len() {
            0 => Ok(()),
            len => Err(Error::undecodable(format!(
                "recorded as {len} bytes, asked for as nothing: decode them as Vec<u8>"
            ))),
        }
    }
}

fn expect_bytes(wanted: &str, found: Format) -> Result<()> {
    if found == Format::BYTES {
        return Ok(());
    }
    Err(Error::undecodable(format!(
        "recorded in {found}, asked for as {wanted} in {}: decode it as the type it was recorded as, or take the payload's bytes",
        Format::BYTES
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Codec;

    fn recorded<V: Encode + ?Sized>(value: &V) -> Payload {
        let (format, bytes) = encode(value).unwrap();
        Payload::new(bytes, format)
    }

    fn kind<T: Decode>(payload: &Payload) -> ErrorKind {
        payload.decode::<T>().err().map(|error| error.kind()).unwrap()
    }

    #[test]
    fn strings_and_bytes_decode_to_what_was_recorded() {
        let text = String::from("grün");
        for payload in [recorded("grün"), recorded(&"grün"), recorded(&text), recorded(&&text)] {
            assert_eq!(payload.decode::<String>().unwrap(), text);
        }
        let bytes = vec![0xff, 0];
        let same = [
            recorded(&bytes),
            recorded(&&bytes),
            recorded(&bytes[..]),
            recorded(&[0xff, 0]),
            recorded(&&[0xff, 0]),
        ];
        for payload in same {
            assert_eq!(&payload[..], &bytes[..]);
            assert_eq!(payload.decode::<Vec<u8>>().unwrap(), bytes);
        }
        recorded(&()).decode::<()>().unwrap();
        assert_eq!(Payload::empty().decode::<String>().unwrap(), "");
    }

    #[test]
    fn a_value_recorded_as_another_type_is_undecodable() {
        assert_eq!(kind::<String>(&recorded(b"\xff")), ErrorKind::Undecodable);
        assert_eq!(kind::<()>(&recorded("x")), ErrorKind::Undecodable);
        for (codec, version) in
            [(Codec::Bincode, 0), (Codec::Json, 0), (Codec::Custom(1), 0), (Codec::Bytes, 1)]
        {
            let payload = Payload::new(Vec::new(), Format { codec, version });
            assert_eq!(kind::<String>(&payload), ErrorKind::Undecodable);
            assert_eq!(kind::<Vec<u8>>(&payload), ErrorKind::Undecodable);
            assert_eq!(kind::<()>(&payload), ErrorKind::Undecodable);
        }
    }

    #[test]
    fn debug_shows_no_contents() {
        assert_eq!(format!("{:?}", recorded("secret")), "Payload(6 bytes, Bytes, version 0)");
    }

    /// The state of its key is known nevertheless.
    #[test]
    fn a_value_in_an_unknown_codec_has_bytes_and_does_not_decode() {
        let payload = Payload::new(b"x".to_vec(), Format::from_stored(4, 7));
        assert_eq!((&payload[..], payload.missing()), (&b"x"[..], None));
        assert_eq!(kind::<String>(&payload), ErrorKind::Undecodable);
        assert_eq!(payload.to_string(), "1 bytes, an unknown codec");
    }

    #[test]
    fn a_payload_is_send_and_sync() {
        fn check<T: Send + Sync + Clone + AsRef<[u8]> + 'static>() {}
        check::<Payload>();
    }
}
