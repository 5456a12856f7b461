//! One part of a key, and how parts become bytes and are read back.
//!
//! Promises: a list of parts has one encoding, and an encoding that is read back was made of one list: only the
//! shortest form of a length is read, and only one form of a number. The encoding of a list begins with that of each of
//! its prefixes. Never: allocates to read.
//!
//! Parts are encoded one after the other: a tag, then for bytes their length in LEB128 (the shortest form
//! only) and the bytes, for a number its little-endian bytes: `02` and eight for one from 0 to 2^64 - 1, `03` and eight
//! for a negative one, in two's complement, `04` and sixteen for a greater one. `("a", 17)` is
//! `01 01 61  02 11 00 00 00 00 00 00 00`.

use std::borrow::Cow;
use std::fmt;

/// Tags of parts.
const PART_BYTES: u8 = 1;
const PART_NUMBER: u8 = 2;
const PART_NEGATIVE: u8 = 3;
const PART_LARGE: u8 = 4;

/// One part of a [`Key`](crate::Key): bytes, text or a number, made by `From`. Text counts as its UTF-8 bytes.
///
/// A number counts by its value, whatever its type: `17_u32` and `17_i64` are the same part.
///
/// Text and bytes given by reference stay borrowed. Making a part allocates nothing, except for the 16 bytes of an id
/// given by value.
///
/// ```
/// use onlyonce::{Key, KeyPart};
///
/// let mut parts: Vec<KeyPart<'_>> = vec!["tenant-7".into(), 17.into()];
/// parts.push(b"\xff\x00".into());
/// assert_eq!(Key::from_parts(parts).to_string(), r#"("tenant-7", 17, 0xff00)"#);
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyPart<'k>(PartForm<'k>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum PartForm<'k> {
    Bytes(Cow<'k, [u8]>),
    Number(Number),
}

/// Digits of `u128::MAX`: longer text is not a number.
const LONGEST_NUMBER: usize = u128::MAX.ilog10() as usize + 1;

/// A whole number, in the one form of its value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Number {
    Natural([u8; 8]),
    /// Below 0, in two's complement.
    Negative([u8; 8]),
    /// Past `u64::MAX`.
    Large([u8; 16]),
}

impl Number {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Number::Natural(bytes) | Number::Negative(bytes) => bytes,
            Number::Large(bytes) => bytes,
        }
    }

    /// The number with those bytes, if they are the form of some number.
    pub(super) fn natural(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Number::Natural)
    }

    pub(super) fn negative(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.try_into().ok()?;
        (i64::from_le_bytes(bytes) < 0).then_some(Number::Negative(bytes))
    }

    pub(super) fn large(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.try_into().ok()?;
        (u128::from_le_bytes(bytes) > u128::from(u64::MAX)).then_some(Number::Large(bytes))
    }

    /// Parses the displayed form: no sign except a minus, no leading zeros.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() > LONGEST_NUMBER {
            return None;
        }
        let number = match text.strip_prefix('-') {
            Some(_) => Number::from(text.parse::<i64>().ok()?),
            None => Number::from(text.parse::<u128>().ok()?),
        };
        (number.to_string() == text).then_some(number)
    }
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Number::Natural(number.to_le_bytes())
    }
}

impl From<u32> for Number {
    fn from(number: u32) -> Self {
        Number::from(u64::from(number))
    }
}

impl From<i64> for Number {
    fn from(number: i64) -> Self {
        u64::try_from(number).map_or(Number::Negative(number.to_le_bytes()), Number::from)
    }
}

impl From<i32> for Number {
    fn from(number: i32) -> Self {
        Number::from(i64::from(number))
    }
}

impl From<u128> for Number {
    fn from(number: u128) -> Self {
        u64::try_from(number).map_or(Number::Large(number.to_le_bytes()), Number::from)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Natural(bytes) => u64::from_le_bytes(*bytes).fmt(f),
            Number::Negative(bytes) => i64::from_le_bytes(*bytes).fmt(f),
            Number::Large(bytes) => u128::from_le_bytes(*bytes).fmt(f),
        }
    }
}

impl<'k> KeyPart<'k> {
    pub(super) fn of_number(number: Number) -> Self {
        KeyPart(PartForm::Number(number))
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.0, PartForm::Bytes(bytes) if bytes.is_empty())
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match &self.0 {
            PartForm::Bytes(bytes) => {
                out.push(PART_BYTES);
                let mut rest = bytes.len();
                while rest >= 0x80 {
                    out.push(rest as u8 | 0x80);
                    rest >>= 7;
                }
                out.push(rest as u8);
                out.extend_from_slice(bytes);
            }
            PartForm::Number(number) => {
                out.push(match number {
                    Number::Natural(_) => PART_NUMBER,
                    Number::Negative(_) => PART_NEGATIVE,
                    Number::Large(_) => PART_LARGE,
                });
                out.extend_from_slice(number.bytes());
            }
        }
    }

    /// The first part and the bytes after it.
    fn decode(encoded: &'k [u8]) -> Option<(Self, &'k [u8])> {
        let (tag, rest) = encoded.split_first()?;
        let number = |bytes: usize, read: fn(&[u8]) -> Option<Number>| {
            let (number, rest) = rest.split_at_checked(bytes)?;
            Some((KeyPart(PartForm::Number(read(number)?)), rest))
        };
        match *tag {
            PART_BYTES => {
                let (len, rest) = decode_length(rest)?;
                let (bytes, rest) = rest.split_at_checked(len)?;
                Some((KeyPart(PartForm::Bytes(Cow::Borrowed(bytes))), rest))
            }
            PART_NUMBER => number(8, Number::natural),
            PART_NEGATIVE => number(8, Number::negative),
            PART_LARGE => number(16, Number::large),
            _ => None,
        }
    }
}

/// A length in LEB128 and the bytes after it. Only the shortest form: one key must not have two encodings.
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

/// The parts of an encoded key, in order; `None` once, at the end, if the rest is not a part.
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

/// Text, bytes and numbers become a key, and a part, in the same ways.
macro_rules! from_values {
    ($name:ident, $wrap:expr, $number:expr) => {
        from_values!(@number $name, $number, u64, u32, i64, i32, u128);

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

        /// Copies the 16 bytes of an id. A reference to such bytes is borrowed instead.
        impl From<[u8; 16]> for $name<'_> {
            fn from(bytes: [u8; 16]) -> Self {
                $name($wrap(Cow::Owned(bytes.to_vec())))
            }
        }

        impl From<Vec<u8>> for $name<'_> {
            fn from(bytes: Vec<u8>) -> Self {
                $name($wrap(Cow::Owned(bytes)))
            }
        }
    };
    (@number $name:ident, $number:expr, $($type:ty),+) => {$(
        impl From<$type> for $name<'_> {
            fn from(number: $type) -> Self {
                $name($number(Number::from(number)))
            }
        }
    )+};
}

from_values!(KeyPart, PartForm::Bytes, PartForm::Number);

impl fmt::Display for KeyPart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            PartForm::Bytes(bytes) => fmt_quoted(bytes, f),
            PartForm::Number(number) => number.fmt(f),
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

pub(super) use from_values;
