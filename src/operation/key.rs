//! What an operation is called: [`Key`] and its parts.
//!
//! Promises: two keys are equal only if kind and bytes are; a list of parts never equals plain bytes, and
//! parts never run together. Never: hashes, or knows of namespaces. What a key is on disk is its
//! [`kind`](Key::kind) and its [`bytes`](Key::bytes); [`Key::from_stored`] is their only way back.
//!
//! Parts are encoded one after the other: a tag, then for bytes their length in LEB128 (the shortest form
//! only) and the bytes, for a number eight little-endian bytes. `("a", 17)` is
//! `01 01 61  02 11 00 00 00 00 00 00 00`.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::limits::KEY_BYTES_MAX;
use crate::{Error, ErrorKind, Result};

/// Kinds of keys, as stored in four bits. 0 is none, so that zeros are never a key.
const KIND_RAW: u8 = 1;
const KIND_NUMBER: u8 = 2;
const KIND_PARTS: u8 = 3;

/// Tags of parts.
const PART_BYTES: u8 = 1;
const PART_NUMBER: u8 = 2;

/// What an operation is called. The same key means the same operation, done once.
///
/// A key is bytes, a number, or a tuple of up to five such parts:
///
/// - **Bytes**: `"task-42"`, `b"\x01\x02"`, a `String`, a `Vec<u8>`. Text is its UTF-8 bytes, so `"a"` and
///   `b"a"` are the same key.
/// - **A number**: `42u64`. It is not the text `"42"`.
/// - **Parts**: `("tenant-7", "charge", 42u64)`, or [`from_parts`](Key::from_parts) for a list. Parts
///   never run together (`("ab", "c")` is not `("a", "bc")`) and never equal a key of bytes, so a
///   client that chooses one part can't reach the keys of another tenant.
///
/// Use parts wherever some of the key comes from outside.
///
/// Bytes and text are borrowed and cost no allocation; parts cost one. A key has at most 4096 bytes (for
/// parts: in all, with two or three bytes for each part's tag and length, nine for a number) and at
/// least one; the call that uses it refuses another one: `TooLarge`, `Invalid`. An empty part is allowed.
///
/// Your own types become keys with one `impl`:
/// ```
/// use onlyonce::{Key, Operation};
///
/// struct OrderId(u64);
///
/// impl From<&OrderId> for Key<'_> {
///     fn from(order: &OrderId) -> Self {
///         Key::from(("order", order.0))
///     }
/// }
///
/// let operation = Operation::new(&OrderId(17));
/// assert_eq!(Key::from(&OrderId(17)).to_string(), r#"("order", 17)"#);
/// ```
/// `Display` is for people: text is escaped where a log line could be forged, bytes that are no UTF-8
/// are hexadecimal. Different keys may read the same.
#[derive(Clone)]
pub struct Key<'k>(Form<'k>);

#[derive(Clone)]
enum Form<'k> {
    Raw(Cow<'k, [u8]>),
    Number([u8; 8]),
    /// Encoded as the module says.
    Parts(Cow<'k, [u8]>),
}

/// One part of a [`Key`]: bytes or a number, by `From`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyPart<'k>(Part<'k>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Part<'k> {
    Bytes(Cow<'k, [u8]>),
    Number(u64),
}

impl<'k> Key<'k> {
    /// A key of any number of parts. A tuple is the same key as the list of its parts.
    ///
    /// ```
    /// use onlyonce::{Key, KeyPart};
    ///
    /// let path = ["eu", "shop", "cart"];
    /// assert_eq!(Key::from_parts(path), Key::from(("eu", "shop", "cart")));
    /// assert_eq!(Key::from_parts([KeyPart::from("cart"), KeyPart::from(17)]), Key::from(("cart", 17)));
    /// ```
    #[must_use]
    pub fn from_parts<I>(parts: I) -> Key<'static>
    where
        I: IntoIterator,
        I::Item: Into<KeyPart<'k>>,
    {
        let mut encoded = Vec::new();
        for part in parts {
            part.into().encode(&mut encoded);
        }
        Key(Form::Parts(Cow::Owned(encoded)))
    }

    /// The same key, borrowing nothing.
    #[must_use]
    pub fn into_owned(self) -> Key<'static> {
        Key(match self.0 {
            Form::Raw(bytes) => Form::Raw(Cow::Owned(bytes.into_owned())),
            Form::Number(bytes) => Form::Number(bytes),
            Form::Parts(bytes) => Form::Parts(Cow::Owned(bytes.into_owned())),
        })
    }

    /// What kind of key it is, in four bits and never 0.
    pub(crate) fn kind(&self) -> u8 {
        match self.0 {
            Form::Raw(_) => KIND_RAW,
            Form::Number(_) => KIND_NUMBER,
            Form::Parts(_) => KIND_PARTS,
        }
    }

    /// The key's bytes; with the kind they are the key.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Form::Raw(bytes) | Form::Parts(bytes) => bytes,
            Form::Number(bytes) => bytes,
        }
    }

    /// The key with that kind and those bytes; `None` if there can't be one, so that a key has one form.
    pub(crate) fn from_stored(kind: u8, bytes: &'k [u8]) -> Option<Key<'k>> {
        if bytes.is_empty() || bytes.len() > KEY_BYTES_MAX {
            return None;
        }
        match kind {
            KIND_RAW => Some(Key(Form::Raw(Cow::Borrowed(bytes)))),
            KIND_NUMBER => bytes.try_into().ok().map(|bytes| Key(Form::Number(bytes))),
            KIND_PARTS => Parts(bytes)
                .all(|part| part.is_some())
                .then_some(Key(Form::Parts(Cow::Borrowed(bytes)))),
            _ => None,
        }
    }

    /// Whether it can be stored. Every call asks before it does anything else.
    pub(crate) fn check(&self) -> Result<()> {
        let len = self.bytes().len();
        if len == 0 {
            return Err(Error::invalid(
                "the key is empty: every call without a name would be the same operation",
            ));
        }
        if len > KEY_BYTES_MAX {
            let message = format!(
                "a key of {len} bytes, at most {KEY_BYTES_MAX}: name the operation by an id or a hash, \
                 and put what it says into the fingerprint"
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(())
    }

    /// Whether the key begins as `prefix` does: bytes by bytes, parts by whole parts; a number only as itself.
    pub(crate) fn starts_with(&self, prefix: &Key<'_>) -> bool {
        match (&self.0, &prefix.0) {
            (Form::Number(own), Form::Number(other)) => own == other,
            _ => self.kind() == prefix.kind() && self.bytes().starts_with(prefix.bytes()),
        }
    }
}

impl PartialEq<Key<'_>> for Key<'_> {
    fn eq(&self, other: &Key<'_>) -> bool {
        self.kind() == other.kind() && self.bytes() == other.bytes()
    }
}

impl Eq for Key<'_> {}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind().hash(state);
        self.bytes().hash(state);
    }
}

impl<'k> From<&'k Key<'_>> for Key<'k> {
    /// The same key, borrowed: no allocation.
    fn from(key: &'k Key<'_>) -> Self {
        Key(match &key.0 {
            Form::Raw(bytes) => Form::Raw(Cow::Borrowed(bytes)),
            Form::Number(bytes) => Form::Number(*bytes),
            Form::Parts(bytes) => Form::Parts(Cow::Borrowed(bytes)),
        })
    }
}

impl From<u64> for Key<'_> {
    fn from(number: u64) -> Self {
        Key(Form::Number(number.to_le_bytes()))
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

from_bytes!(Key, Form::Raw);
from_bytes!(KeyPart, Part::Bytes);

macro_rules! from_tuple {
    ($($part:ident),+) => {
        impl<'k, $($part: Into<KeyPart<'k>>),+> From<($($part,)+)> for Key<'k> {
            #[expect(non_snake_case, reason = "each part is named as its type")]
            fn from(($($part,)+): ($($part,)+)) -> Self {
                Key::from_parts([$($part.into()),+])
            }
        }
    };
}

from_tuple!(A, B);
from_tuple!(A, B, C);
from_tuple!(A, B, C, D);
from_tuple!(A, B, C, D, E);

impl KeyPart<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
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
struct Parts<'k>(&'k [u8]);

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

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Raw(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => fmt_unquoted(text, f),
                Err(_) => fmt_hex(bytes, f),
            },
            Form::Number(bytes) => u64::from_le_bytes(*bytes).fmt(f),
            Form::Parts(bytes) => fmt_parts(bytes, f),
        }
    }
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")?;
        match &self.0 {
            Form::Raw(bytes) => {
                f.write_str("(")?;
                fmt_quoted(bytes, f)?;
                f.write_str(")")
            }
            Form::Number(bytes) => write!(f, "({})", u64::from_le_bytes(*bytes)),
            Form::Parts(bytes) => fmt_parts(bytes, f),
        }
    }
}

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

/// As a tuple of Rust: `("a", 17)`, `("a",)`, `()`.
fn fmt_parts(encoded: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("(")?;
    let mut count = 0;
    for part in Parts(encoded).flatten() {
        write!(f, "{}{part}", if count == 0 { "" } else { ", " })?;
        count += 1;
    }
    f.write_str(if count == 1 { ",)" } else { ")" })
}

fn fmt_quoted(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match std::str::from_utf8(bytes) {
        Ok(text) => write!(f, "{text:?}"),
        Err(_) => fmt_hex(bytes, f),
    }
}

/// Escaped as in a string literal, but for quotes, which need none here.
fn fmt_unquoted(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for piece in text.split_inclusive(['"', '\'']) {
        let quote = piece.chars().next_back().filter(|last| matches!(last, '"' | '\''));
        let plain = piece.strip_suffix(['"', '\'']).unwrap_or(piece);
        write!(f, "{}", plain.escape_debug())?;
        if let Some(quote) = quote {
            fmt::Write::write_char(f, quote)?;
        }
    }
    Ok(())
}

fn fmt_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("0x")?;
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}
