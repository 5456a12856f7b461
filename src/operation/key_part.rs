//! One part of a key, and how parts become bytes and are read back.
//!
//! Promises: a list of parts has one encoding, and an encoding that is read back was made of one list: only the
//! shortest form of a length is read. A list's encoding begins with that of each shorter list it begins with.
//! Never: allocates to read.
//!
//! Parts are encoded one after the other: a tag, then for bytes their length in LEB128 (the shortest form
//! only) and the bytes, for a number eight little-endian bytes. `("a", 17)` is
//! `01 01 61  02 11 00 00 00 00 00 00 00`.

use std::borrow::Cow;
use std::fmt;

/// Tags of parts.
const PART_BYTES: u8 = 1;
const PART_NUMBER: u8 = 2;

/// One part of a [`Key`](crate::Key): bytes, text or a number, by `From`. Text is its UTF-8 bytes.
///
/// Text and bytes are borrowed where they can be; a part allocates nothing.
///
/// ```
/// use onlyonce::{Key, KeyPart};
///
/// let mut parts: Vec<KeyPart<'_>> = vec!["tenant-7".into(), 17_u64.into()];
/// parts.push(b"\xff\x00".into());
/// assert_eq!(Key::from_parts(parts).to_string(), r#"("tenant-7", 17, 0xff00)"#);
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyPart<'k>(Part<'k>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Part<'k> {
    Bytes(Cow<'k, [u8]>),
    Number(u64),
}

impl KeyPart<'_> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match &self.0 {
            Part::Bytes(bytes) => {
                out.push(PART_BYTES);
                let mut rest = bytes.len();
                while rest >= 0x80 {
                    out.push(rest as u8 | 0x80);
                    rest >>= 7;
                }
                out.push(rest as u8);
                out.extend_from_slice(bytes);
            }
            Part::Number(number) => {
                out.push(PART_NUMBER);
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
    }

    /// The first part and what follows it.
    fn decode(encoded: &[u8]) -> Option<(KeyPart<'_>, &[u8])> {
        let (tag, rest) = encoded.split_first()?;
        match *tag {
            PART_BYTES => {
                let (len, rest) = decode_length(rest)?;
                let (bytes, rest) = rest.split_at_checked(len)?;
                Some((KeyPart(Part::Bytes(Cow::Borrowed(bytes))), rest))
            }
            PART_NUMBER => {
                let (number, rest) = rest.split_first_chunk()?;
                Some((KeyPart(Part::Number(u64::from_le_bytes(*number))), rest))
            }
            _ => None,
        }
    }
}

/// A length in LEB128 and what follows it. Only the shortest form: one key must not have two encodings.
fn decode_length(encoded: &[u8]) -> Option<(usize, &[u8])> {
    let mut len = 0usize;
    let mut shift = 0u32;
    let mut rest = encoded;
    loop {
        let (byte, after) = rest.split_first()?;
        let bits = usize::from(byte & 0x7f);
        if shift >= usize::BITS || (bits << shift) >> shift != bits {
            return None;
        }
        len |= bits << shift;
        shift += 7;
        rest = after;
        if byte & 0x80 == 0 {
            return (bits != 0 || shift == 7).then_some((len, rest));
        }
    }
}

/// The parts of an encoded key, in order; `None` once, at the end, if the rest is no part.
pub(super) struct Parts<'k>(pub(super) &'k [u8]);

impl<'k> Iterator for Parts<'k> {
    type Item = Option<KeyPart<'k>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let decoded = KeyPart::decode(self.0);
        self.0 = decoded.as_ref().map_or(&[], |(_, rest)| rest);
        Some(decoded.map(|(part, _)| part))
    }
}

impl From<u64> for KeyPart<'_> {
    fn from(number: u64) -> Self {
        KeyPart(Part::Number(number))
    }
}

/// Text and bytes become a key, and a part, in the same ways.
macro_rules! from_bytes {
    ($name:ident, $wrap:expr) => {
        impl<'k> From<&'k str> for $name<'k> {
            fn from(text: &'k str) -> Self {
                $name($wrap(Cow::Borrowed(text.as_bytes())))
            }
        }

        impl<'k> From<&'k String> for $name<'k> {
            fn from(text: &'k String) -> Self {
                $name($wrap(Cow::Borrowed(text.as_bytes())))
            }
        }

        impl From<String> for $name<'_> {
            fn from(text: String) -> Self {
                $name($wrap(Cow::Owned(text.into_bytes())))
            }
        }

        impl<'k> From<&'k [u8]> for $name<'k> {
            fn from(bytes: &'k [u8]) -> Self {
                $name($wrap(Cow::Borrowed(bytes)))
            }
        }

        impl<'k, const N: usize> From<&'k [u8; N]> for $name<'k> {
            fn from(bytes: &'k [u8; N]) -> Self {
                $name($wrap(Cow::Borrowed(bytes)))
            }
        }

        impl From<Vec<u8>> for $name<'_> {
            fn from(bytes: Vec<u8>) -> Self {
                $name($wrap(Cow::Owned(bytes)))
            }
        }
    };
}

from_bytes!(KeyPart, Part::Bytes);

impl fmt::Display for KeyPart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Part::Bytes(bytes) => fmt_quoted(bytes, f),
            Part::Number(number) => number.fmt(f),
        }
    }
}

impl fmt::Debug for KeyPart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPart({self})")
    }
}

pub(super) fn fmt_quoted(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match std::str::from_utf8(bytes) {
        Ok(text) => write!(f, "{text:?}"),
        Err(_) => fmt_hex(bytes, f),
    }
}

pub(super) fn fmt_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("0x")?;
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

pub(super) use from_bytes;
