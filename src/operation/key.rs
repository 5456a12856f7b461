//! What an operation is called: [`Key`] and its parts.
//!
//! Promises: two keys are equal only if kind and bytes are; a list of parts never equals plain bytes, and
//! parts never run together. Never: hashes, or knows of namespaces. What a key is on disk is its
//! [`kind`](Key::kind) and its [`bytes`](Key::bytes); [`Key::from_stored`] is their only way back. How parts become bytes: `key_part`.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};

use super::key_part::{KeyPart, Parts, fmt_hex, fmt_quoted, from_bytes};
use crate::limits::KEY_BYTES_MAX;
use crate::{Error, ErrorKind, Result};

/// Kinds of keys, as stored in four bits. 0 is none, so that zeros are never a key.
const KIND_RAW: u8 = 1;
const KIND_NUMBER: u8 = 2;
const KIND_PARTS: u8 = 3;

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
///
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

impl<'k> Key<'k> {
    /// A key of any number of parts. A tuple is the same key as the list of its parts.
    ///
    /// Never fails: a key that is too long, or has no part, is refused by the call that uses it. Its parts are
    /// copied into one allocation that grows.
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
    ///
    /// ```
    /// use onlyonce::Key;
    ///
    /// /// Outlives the request it was read from.
    /// fn queued(id: &str) -> Key<'static> {
    ///     Key::from(("job", id)).into_owned()
    /// }
    /// assert_eq!(queued("17"), Key::from(("job", "17")));
    /// ```
    ///
    /// # Cost
    /// One allocation for a key that borrows text or bytes, none for any other.
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

from_bytes!(Key, Form::Raw);

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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What a key means, told apart by plain comparison.
    #[derive(Clone, PartialEq, Debug)]
    enum Meaning {
        Raw(Vec<u8>),
        Number(u64),
        Parts(Vec<Meaning>),
    }

    impl Meaning {
        fn key(&self) -> Key<'static> {
            match self {
                Meaning::Raw(bytes) => Key::from(bytes.clone()),
                Meaning::Number(number) => Key::from(*number),
                Meaning::Parts(parts) => Key::from_parts(parts.iter().map(Meaning::part)),
            }
        }

        fn part(&self) -> KeyPart<'static> {
            match self {
                Meaning::Raw(bytes) => KeyPart::from(bytes.clone()),
                Meaning::Number(number) => KeyPart::from(*number),
                Meaning::Parts(_) => unreachable!("parts don't nest"),
            }
        }
    }

    /// Bytes that look like tags, lengths and each other, so that near misses are common.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            9 => vec(prop_oneof![0u8..4, Just(0x61), Just(0x80), Just(0xff), any::<u8>()], 0..12),
            1 => vec(any::<u8>(), 120..300),
        ]
    }

    fn part() -> impl Strategy<Value = Meaning> {
        prop_oneof![
            bytes().prop_map(Meaning::Raw),
            prop_oneof![0u64..300, any::<u64>()].prop_map(Meaning::Number)
        ]
    }

    fn meaning() -> impl Strategy<Value = Meaning> {
        prop_oneof![part(), vec(part(), 0..5).prop_map(Meaning::Parts)]
    }

    /// Another meaning that is likely to be confused with the first: its own bytes as something else.
    fn lookalike(of: &Meaning) -> Vec<Meaning> {
        let bytes = of.key().bytes().to_vec();
        let mut others =
            vec![Meaning::Raw(bytes.clone()), Meaning::Parts(vec![Meaning::Raw(bytes)])];
        if let Meaning::Parts(parts) = of {
            let joined =
                parts.iter().map(|part| part.key().bytes().to_vec()).collect::<Vec<_>>().concat();
            others.push(Meaning::Parts(vec![Meaning::Raw(joined)]));
            others.push(Meaning::Parts(parts.iter().take(1).cloned().collect()));
        }
        others
    }

    fn stored(key: &Key<'_>) -> (u8, Vec<u8>) {
        (key.kind(), key.bytes().to_vec())
    }

    proptest! {
        #[test]
        fn keys_are_equal_only_if_they_mean_the_same(a in meaning(), b in meaning()) {
            for b in lookalike(&a).into_iter().chain([b, a.clone()]) {
                prop_assert_eq!(a == b, a.key() == b.key());
                prop_assert_eq!(a == b, stored(&a.key()) == stored(&b.key()));
            }
        }

        #[test]
        fn a_stored_key_comes_back(meaning in meaning()) {
            let key = meaning.key();
            let (kind, bytes) = stored(&key);
            prop_assert!((1..16).contains(&kind), "kind {} in four bits", kind);
            let back = Key::from_stored(kind, &bytes);
            prop_assert_eq!(back.as_ref(), key.check().is_ok().then_some(&key));
            if let Some(back) = back {
                prop_assert_eq!(back.to_string(), key.to_string());
            }
        }

        /// Whatever is stored, it is refused or is the one form of some key; showing it ends.
        #[test]
        fn hostile_bytes_are_refused_or_are_a_key(kind in 0u8..16, bytes in bytes()) {
            if let Some(key) = Key::from_stored(kind, &bytes) {
                prop_assert_eq!(stored(&key), (kind, bytes.clone()));
                prop_assert!(key.check().is_ok());
                if let Form::Parts(encoded) = &key.0 {
                    let again = Key::from_parts(Parts(encoded).map(|part| part.unwrap()));
                    prop_assert_eq!(&again, &key);
                }
                prop_assert!(!key.to_string().contains(|c: char| c.is_control()));
            }
        }

        #[test]
        fn a_prefix_is_whole_parts(parts in vec(part(), 0..5), other in vec(part(), 0..3), cut in 0usize..5) {
            let key = Meaning::Parts(parts.clone()).key();
            for prefix in [other, parts.iter().take(cut).cloned().collect()] {
                let expected = parts.starts_with(&prefix);
                prop_assert_eq!(key.starts_with(&Meaning::Parts(prefix).key()), expected);
            }
        }
    }

    #[test]
    fn stored_forms_never_change() {
        let cases: [(Key<'_>, u8, &[u8]); 6] = [
            (Key::from("task-42"), 1, b"task-42"),
            (Key::from(b"\xff\x00"), 1, b"\xff\x00"),
            (Key::from(42), 2, b"\x2a\0\0\0\0\0\0\0"),
            (Key::from(("a", 17)), 3, b"\x01\x01a\x02\x11\0\0\0\0\0\0\0"),
            (Key::from(("", "b")), 3, b"\x01\x00\x01\x01b"),
            (
                Key::from_parts([[b'x'; 200].as_slice()]),
                3,
                &[&[1, 0xc8, 0x01][..], &[b'x'; 200]].concat(),
            ),
        ];
        for (key, kind, bytes) in cases {
            assert_eq!((key.kind(), key.bytes()), (kind, bytes), "{key:?}");
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let cases: [(u8, &[u8]); 11] = [
            (0, b"a"),
            (4, b"a"),
            (1, b""),
            (1, &[b'a'; KEY_BYTES_MAX + 1]),
            (2, b"1234567"),
            (3, b""),
            (3, b"\x03"),
            (3, b"\x01\x02a"),
            (3, b"\x01\x80\x00"),
            (3, b"\x02\x01\x02\x03"),
            (3, b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ];
        for (kind, bytes) in cases {
            assert_eq!(Key::from_stored(kind, bytes), None, "{kind} {bytes:?}");
        }
    }

    #[test]
    fn text_and_bytes_are_one_key_and_a_number_is_another() {
        assert_eq!(Key::from("a"), Key::from(b"a"));
        assert_eq!(Key::from(String::from("a")), Key::from(vec![b'a']));
        assert_eq!(Key::from(("a", 1)), Key::from((b"a", 1)));
        assert_ne!(Key::from("42"), Key::from(42));
        assert_ne!(Key::from(("42", "x")), Key::from((42, "x")));
        assert_ne!(Key::from(42), Key::from_parts([42]));
    }

    #[test]
    fn keys_read_well_and_forge_no_log_lines() {
        let cases = [
            (Key::from("task-42"), "task-42", r#"Key("task-42")"#),
            (Key::from("it's \"so\"\n"), r#"it's "so"\n"#, r#"Key("it's \"so\"\n")"#),
            (Key::from("\u{202e}übung"), r"\u{202e}übung", r#"Key("\u{202e}übung")"#),
            (Key::from(b"\xff\x0a"), "0xff0a", "Key(0xff0a)"),
            (Key::from(42), "42", "Key(42)"),
            (Key::from(("a", 17)), r#"("a", 17)"#, r#"Key("a", 17)"#),
            (Key::from_parts(["a\n"]), r#"("a\n",)"#, r#"Key("a\n",)"#),
            (Key::from_parts::<[u64; 0]>([]), "()", "Key()"),
        ];
        for (key, display, debug) in cases {
            assert_eq!((key.to_string().as_str(), format!("{key:?}").as_str()), (display, debug));
        }
    }

    #[test]
    fn a_key_too_long_or_empty_is_refused_with_the_way_out() {
        let longest = Key::from(vec![b'k'; KEY_BYTES_MAX]);
        assert!(longest.check().is_ok());

        let long = Key::from(vec![b'k'; KEY_BYTES_MAX + 1]).check().unwrap_err();
        assert_eq!(long.kind(), ErrorKind::TooLarge);
        assert!(
            long.to_string().contains("4096") && long.to_string().contains("fingerprint"),
            "{long}"
        );

        for empty in [Key::from(""), Key::from_parts::<[u64; 0]>([])] {
            assert_eq!(empty.check().unwrap_err().kind(), ErrorKind::Invalid);
        }
        assert!(Key::from(("", "")).check().is_ok());
    }

    #[test]
    fn a_borrowed_key_is_not_copied() {
        let text = String::from("task-42");
        let key = Key::from(&text);
        assert_eq!(key.bytes().as_ptr(), text.as_ptr());
        assert_eq!(Key::from(&key).bytes().as_ptr(), text.as_ptr());
        assert_eq!(key.into_owned(), Key::from("task-42"));
    }
}
