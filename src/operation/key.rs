//! The name of an operation: [`Key`] and its parts.
//!
//! Promises: two keys are equal only if their kinds and bytes are equal; a list of parts never equals plain bytes, and
//! parts never run together; a key of a namespace equals none outside it, and the name of a namespace equals no key. Never:
//! hashes, or knows which namespaces there are. On disk, a key is its [`kind`](Key::kind) and its
//! [`bytes`](Key::bytes); only [`Key::from_stored`] makes a key from them. How parts become bytes: `key_part`.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use super::key_part::{KeyPart, Number, Parts, fmt_hex, fmt_quoted, from_values};
use super::key_text;
use super::step_key::StepKey;
use crate::limits::KEY_BYTES_MAX;
use crate::types::Token;
use crate::{Error, ErrorKind, Result};

/// Kinds of keys, as stored in four bits. 0 is no kind, so that zeros are never a key.
const KIND_RAW: u8 = 1;
const KIND_NUMBER: u8 = 2;
const KIND_PARTS: u8 = 3;
const KIND_NEGATIVE: u8 = 4;
const KIND_LARGE: u8 = 5;
const KIND_STEP: u8 = 6;
/// A key of a namespace: the namespace's id, then the kind and the bytes of the key in it.
const KIND_SPACED: u8 = 7;
/// A namespace: the id of the one that it lies in (0: none), then its name.
const KIND_SPACE: u8 = 8;

/// The bytes of a namespace's id.
const ID_BYTES: usize = 8;
/// The longest key in a namespace: the namespace's id and the key's kind come before it.
const KEY_BYTES_MAX_IN_SPACE: usize = KEY_BYTES_MAX - ID_BYTES - 1;

/// The name of an operation. The same key means the same operation, which is done once.
///
/// A key is bytes, a number, or a tuple of up to five such parts:
///
/// - **Bytes**: `"task-42"`, `b"\x01\x02"`, a `String`, a `Vec<u8>`, the `[u8; 16]` of an id. Text counts as its UTF-8
///   bytes, so `"a"` and `b"a"` are the same key.
/// - **A number**: `42`, as `u64`, `u32`, `i64`, `i32` or `u128`. Its value counts, not its type: `42_u32` and `42_i64`
///   are the same key. The number 42 and the text `"42"` are different keys.
/// - **Parts**: `("tenant-7", "charge", 42)`, or [`from_parts`](Key::from_parts) for a list. Parts
///   never run together (`("ab", "c")` is not `("a", "bc")`) and never equal a key of bytes, so a
///   client that chooses one part can't reach the keys of another tenant.
///
/// Use parts if any part of the key comes from outside your program.
///
/// Bytes and text are borrowed and cost no allocation; parts cost one. A key has from 1 to 4096 bytes. In a key of
/// parts, each part of text or bytes takes two or three bytes in addition to its contents, and each number takes nine
/// or seventeen bytes. An empty part is invalid like an empty key, so that a missing tenant name is noticed. A call
/// with an invalid key fails with `TooLarge` or `Invalid`.
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
/// `Display` writes a key for people, and `FromStr` parses that text. A key of text is written as it is if it can't be
/// mistaken for another form. Otherwise it is quoted, and characters that could forge a log line are escaped. Bytes
/// that are not UTF-8 are written in hexadecimal. Different keys are written differently.
///
/// ```
/// # use onlyonce::{Key, Result};
/// let keys = [Key::from("task-42"), Key::from("42"), Key::from(42), Key::from(("a", -1)), Key::from(b"\xff")];
/// let read = keys.each_ref().map(|key| key.to_string());
/// assert_eq!(read, ["task-42", "\"42\"", "42", "(\"a\", -1)", "0xff"]);
/// let back = read.iter().map(|text| text.parse()).collect::<Result<Vec<Key<'static>>>>()?;
/// assert_eq!(back, keys);
/// # Ok::<(), onlyonce::Error>(())
/// ```
#[derive(Clone)]
pub struct Key<'k>(Form<'k>);

#[derive(Clone)]
enum Form<'k> {
    Raw(Cow<'k, [u8]>),
    Number(Number),
    /// Encoded as described at the top of the module.
    Parts(Cow<'k, [u8]>),
    /// A step of a claim, which only the store names. Encoded as a [`StepKey`].
    Step(Cow<'k, [u8]>),
    /// Boxed, because most keys are in no namespace.
    Spaced(Box<Spaced>),
    /// A namespace, as a key.
    Space(Box<[u8]>),
}

/// A key of a namespace.
#[derive(Clone)]
struct Spaced {
    bytes: Box<[u8]>,
    /// The key in it, as it is shown.
    inner: Key<'static>,
}

/// Where a key lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lies {
    /// In no namespace.
    InRoot,
    /// In the namespace of that id.
    In(Token),
    /// It is no key of a caller, but names a namespace, in that of the given id, or in none.
    Names(Option<Token>),
}

impl<'k> Key<'k> {
    /// Makes a key of any number of parts. A tuple and the list of its parts are the same key.
    ///
    /// This call never fails: a key that is too long, or has no part, is refused by the call that uses the key. The
    /// parts are copied into one growing allocation.
    ///
    /// ```
    /// use onlyonce::{Key, KeyPart};
    ///
    /// let path = ["eu", "shop", "cart"];
    /// assert_eq!(Key::from_parts(path), Key::from(("eu", "shop", "cart")));
    /// assert_eq!(Key::from_parts([KeyPart::from("cart"), 17.into()]), Key::from(("cart", 17)));
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

    /// Returns the same key without borrowed data.
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
    /// One allocation if the key borrows text or bytes; otherwise none.
    #[must_use]
    #[inline]
    pub fn into_owned(self) -> Key<'static> {
        Key(match self.0 {
            Form::Raw(bytes) => Form::Raw(Cow::Owned(bytes.into_owned())),
            Form::Number(number) => Form::Number(number),
            Form::Parts(bytes) => Form::Parts(Cow::Owned(bytes.into_owned())),
            Form::Step(bytes) => Form::Step(Cow::Owned(bytes.into_owned())),
            Form::Spaced(spaced) => Form::Spaced(spaced),
            Form::Space(bytes) => Form::Space(bytes),
        })
    }

    /// A copy that borrows nothing.
    pub(crate) fn to_static(&self) -> Key<'static> {
        let owned = |bytes: &Cow<'_, [u8]>| Cow::Owned(bytes.to_vec());
        Key(match &self.0 {
            Form::Raw(bytes) => Form::Raw(owned(bytes)),
            Form::Number(number) => Form::Number(*number),
            Form::Parts(bytes) => Form::Parts(owned(bytes)),
            Form::Step(bytes) => Form::Step(owned(bytes)),
            Form::Spaced(spaced) => Form::Spaced(spaced.clone()),
            Form::Space(bytes) => Form::Space(bytes.clone()),
        })
    }

    /// The stored key of a step of a claim on `key`.
    pub(crate) fn of_step(key: &Key<'_>, life: Token, name: &str) -> Key<'static> {
        debug_assert!(!key.is_step(), "{key:?}");
        Key(Form::Step(Cow::Owned(StepKey { life, name, key: key.into() }.encode())))
    }

    pub(crate) fn is_step(&self) -> bool {
        matches!(self.0, Form::Step(_))
    }

    /// `None`: it is no step.
    pub(crate) fn as_step(&self) -> Option<StepKey<'_>> {
        match &self.0 {
            Form::Step(bytes) => StepKey::decode(bytes),
            _ => None,
        }
    }

    /// This key in the namespace of that id.
    pub(crate) fn in_space(&self, id: Token) -> Key<'static> {
        let inner = self.to_static();
        let mut bytes = Vec::with_capacity(ID_BYTES + 1 + inner.bytes().len());
        bytes.extend(id.0.to_le_bytes());
        bytes.push(inner.kind());
        bytes.extend(inner.bytes());
        Key(Form::Spaced(Box::new(Spaced { bytes: bytes.into(), inner })))
    }

    /// The namespace of that name, in the one of the given id or in none.
    pub(crate) fn of_space(parent: Option<Token>, name: &str) -> Key<'static> {
        let mut bytes = Vec::with_capacity(ID_BYTES + name.len());
        bytes.extend(parent.map_or(0, |parent| parent.0).to_le_bytes());
        bytes.extend(name.as_bytes());
        Key(Form::Space(bytes.into()))
    }

    #[inline]
    pub(crate) fn lies(&self) -> Lies {
        match &self.0 {
            Form::Raw(_) | Form::Number(_) | Form::Parts(_) => Lies::InRoot,
            Form::Spaced(spaced) => Lies::In(id_in(&spaced.bytes)),
            // As its claim's key.
            Form::Step(bytes) => {
                StepKey::decode(bytes).map_or(Lies::InRoot, |step| step.key.lies())
            }
            Form::Space(bytes) => {
                let parent = id_in(bytes);
                Lies::Names((parent.0 != 0).then_some(parent))
            }
        }
    }

    /// The id of the namespace that the key lies in.
    pub(crate) fn namespace(&self) -> Option<u64> {
        match self.lies() {
            Lies::In(id) | Lies::Names(Some(id)) => Some(id.0),
            Lies::InRoot | Lies::Names(None) => None,
        }
    }

    /// Whether keys of that kind name namespaces. All their records are found without knowing their names: also that which
    /// forgets one, as long as the log may have a key of it.
    pub(crate) fn is_kind_of_space(kind: u8) -> bool {
        kind == KIND_SPACE
    }

    /// The name of the namespace, if it names one.
    pub(crate) fn space_name(&self) -> Option<&str> {
        match &self.0 {
            Form::Space(bytes) => std::str::from_utf8(bytes.get(ID_BYTES..)?).ok(),
            _ => None,
        }
    }

    /// The key as its callers know it: without its namespace.
    pub(crate) fn shown(&self) -> &Key<'k> {
        match &self.0 {
            Form::Spaced(spaced) => &spaced.inner,
            _ => self,
        }
    }

    pub(super) fn of_number(number: Number) -> Self {
        Key(Form::Number(number))
    }

    /// The kind of the key, in four bits and never 0.
    pub(crate) fn kind(&self) -> u8 {
        match self.0 {
            Form::Raw(_) => KIND_RAW,
            Form::Number(Number::Natural(_)) => KIND_NUMBER,
            Form::Number(Number::Negative(_)) => KIND_NEGATIVE,
            Form::Number(Number::Large(_)) => KIND_LARGE,
            Form::Parts(_) => KIND_PARTS,
            Form::Step(_) => KIND_STEP,
            Form::Spaced(_) => KIND_SPACED,
            Form::Space(_) => KIND_SPACE,
        }
    }

    /// The key's bytes, which together with the kind identify the key.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Form::Raw(bytes) | Form::Parts(bytes) | Form::Step(bytes) => bytes,
            Form::Number(number) => number.bytes(),
            Form::Spaced(spaced) => &spaced.bytes,
            Form::Space(bytes) => bytes,
        }
    }

    /// The key with that kind and those bytes; `None` if they are not the one form of a key.
    pub(crate) fn from_stored(kind: u8, bytes: &'k [u8]) -> Option<Key<'k>> {
        if kind == KIND_STEP {
            let is_step = StepKey::decode(bytes).is_some();
            return is_step.then_some(Key(Form::Step(Cow::Borrowed(bytes))));
        }
        if bytes.is_empty() || bytes.len() > KEY_BYTES_MAX {
            return None;
        }
        match kind {
            KIND_RAW => Some(Key(Form::Raw(Cow::Borrowed(bytes)))),
            KIND_NUMBER => Number::natural(bytes).map(|number| Key(Form::Number(number))),
            KIND_NEGATIVE => Number::negative(bytes).map(|number| Key(Form::Number(number))),
            KIND_LARGE => Number::large(bytes).map(|number| Key(Form::Number(number))),
            KIND_PARTS => Parts(bytes)
                .all(|part| part.is_some_and(|part| !part.is_empty()))
                .then_some(Key(Form::Parts(Cow::Borrowed(bytes)))),
            KIND_SPACED => {
                let (kind, inner) = bytes.get(ID_BYTES..)?.split_first()?;
                let is_key =
                    id_in(bytes).0 != 0 && !matches!(*kind, KIND_STEP | KIND_SPACED | KIND_SPACE);
                let inner = Key::from_stored(*kind, inner).filter(|_| is_key)?.into_owned();
                Some(Key(Form::Spaced(Box::new(Spaced { bytes: bytes.into(), inner }))))
            }
            KIND_SPACE => {
                let name = bytes.get(ID_BYTES..).filter(|name| !name.is_empty())?;
                let is_text = std::str::from_utf8(name).is_ok();
                is_text.then(|| Key(Form::Space(bytes.into())))
            }
            _ => None,
        }
    }

    /// Makes what keys are compared with by [`starts_with`](Self::starts_with) from its parts. Other than a key, it may be
    /// empty, have empty parts, and be longer than keys are.
    pub(crate) fn from_prefix(kind: u8, bytes: &[u8]) -> Option<Key<'static>> {
        match kind {
            KIND_RAW => Some(Key(Form::Raw(Cow::Owned(bytes.to_vec())))),
            KIND_PARTS => Parts(bytes)
                .all(|part| part.is_some())
                .then(|| Key(Form::Parts(Cow::Owned(bytes.to_vec())))),
            _ => Key::from_stored(kind, bytes).map(Key::into_owned),
        }
    }

    /// Whether the key can be stored. Every call checks this first.
    pub(crate) fn check(&self) -> Result<()> {
        let len = self.bytes().len();
        if len == 0 {
            return Err(Error::invalid(
                "the key is empty: every call without a name would be the same operation",
            ));
        }
        if len > KEY_BYTES_MAX {
            return Err(match &self.0 {
                Form::Spaced(spaced) => too_long(&spaced.inner, KEY_BYTES_MAX_IN_SPACE),
                Form::Space(name) => {
                    let (len, most) = (name.len() - ID_BYTES, KEY_BYTES_MAX - ID_BYTES);
                    let message = format!("a namespace's name of {len} bytes, at most {most}");
                    Error::new(ErrorKind::TooLarge, message)
                }
                Form::Raw(_) | Form::Number(_) | Form::Parts(_) | Form::Step(_) => {
                    too_long(self, KEY_BYTES_MAX)
                }
            });
        }
        match &self.0 {
            Form::Parts(encoded) => self.check_parts(encoded),
            Form::Spaced(spaced) => spaced.inner.check(),
            Form::Raw(_) | Form::Number(_) | Form::Space(_) => Ok(()),
            Form::Step(_) => {
                Err(Error::invalid("the key of a step can't be passed: pass the key of its claim"))
            }
        }
    }

    /// Whether the key, which lies in no namespace yet, can be stored in one.
    pub(crate) fn check_in_space(&self) -> Result<()> {
        match self.bytes().len() > KEY_BYTES_MAX_IN_SPACE {
            true => Err(too_long(self, KEY_BYTES_MAX_IN_SPACE)),
            false => self.check(),
        }
    }

    fn check_parts(&self, encoded: &[u8]) -> Result<()> {
        if Parts(encoded).flatten().any(|part| part.is_empty()) {
            return Err(Error::invalid(format!(
                "a part of the key {self} is empty: callers without that name would share their operations"
            )));
        }
        Ok(())
    }

    /// Whether the key begins as `prefix` does: bytes by bytes, parts by whole parts; a number only equals itself.
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
    /// Borrows the key, without an allocation.
    fn from(key: &'k Key<'_>) -> Self {
        Key(match &key.0 {
            Form::Raw(bytes) => Form::Raw(Cow::Borrowed(bytes)),
            Form::Number(number) => Form::Number(*number),
            Form::Parts(bytes) => Form::Parts(Cow::Borrowed(bytes)),
            Form::Step(bytes) => Form::Step(Cow::Borrowed(bytes)),
            Form::Spaced(spaced) => Form::Spaced(spaced.clone()),
            Form::Space(bytes) => Form::Space(bytes.clone()),
        })
    }
}

from_values!(Key, Form::Raw, Form::Number);

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
                Ok(text) if key_text::is_plain(text) => fmt_unquoted(text, f),
                Ok(text) => write!(f, "{text:?}"),
                Err(_) => fmt_hex(bytes, f),
            },
            Form::Number(number) => number.fmt(f),
            Form::Parts(bytes) => fmt_parts(bytes, f),
            Form::Step(bytes) => fmt_step(bytes, f),
            Form::Spaced(spaced) => spaced.inner.fmt(f),
            Form::Space(_) => write!(f, "namespace {:?}", self.space_name().unwrap_or_default()),
        }
    }
}

/// Parses the text that `Display` writes.
///
/// ```
/// use onlyonce::Key;
///
/// let key: Key<'static> = r#"("order", 17)"#.parse()?;
/// assert_eq!(key, Key::from(("order", 17)));
/// assert!("(\"order\", 17".parse::<Key<'static>>().is_err());
/// # Ok::<(), onlyonce::Error>(())
/// ```
impl FromStr for Key<'static> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let key = key_text::read(text)?;
        key.check()?;
        Ok(key)
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
            Form::Number(number) => write!(f, "({number})"),
            Form::Parts(bytes) => fmt_parts(bytes, f),
            Form::Step(bytes) => fmt_step(bytes, f),
            Form::Spaced(spaced) => {
                write!(f, "({:?} of namespace {})", spaced.inner, id_in(&spaced.bytes))
            }
            Form::Space(_) => write!(f, "({self})"),
        }
    }
}

/// For messages and events.
fn fmt_step(encoded: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match StepKey::decode(encoded) {
        Some(StepKey { name, key, .. }) => write!(f, "the step {name:?} of {key}"),
        None => fmt_hex(encoded, f),
    }
}

/// The id at the beginning of the bytes of a key of a namespace, or of a namespace. No such key is shorter.
fn id_in(bytes: &[u8]) -> Token {
    Token(bytes.first_chunk().map_or(0, |id| u64::from_le_bytes(*id)))
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

/// Escaped as in a string literal, except quotes, which need none here.
fn fmt_unquoted(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Fast path for nearly every key: writing each character by a call would cost as much as reading its record.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'\\') {
        return f.write_str(text);
    }
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

fn too_long(key: &Key<'_>, most: usize) -> Error {
    let message = format!(
        "a key of {} bytes, at most {most}: name the operation by an id or a hash, and put what it says into the \
         fingerprint",
        key.bytes().len()
    );
    Error::new(ErrorKind::TooLarge, message)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What a key means, compared plainly.
    #[derive(Clone, PartialEq, Debug)]
    enum Meaning {
        Raw(Vec<u8>),
        Number(i128),
        Parts(Vec<Meaning>),
    }

    /// In one of the types that hold the number.
    macro_rules! in_some_type {
        ($number:expr) => {{
            let number = $number;
            match (u64::try_from(number), i64::try_from(number)) {
                (_, Ok(small)) if small < 0 && small % 2 == 0 => {
                    i32::try_from(small).map_or_else(|_| small.into(), Into::into)
                }
                (_, Ok(small)) if small % 2 == 1 || small < 0 => small.into(),
                (Ok(small), _) if small % 4 == 0 => {
                    u32::try_from(small).map_or_else(|_| small.into(), Into::into)
                }
                (Ok(small), _) => small.into(),
                _ => u128::try_from(number).unwrap().into(),
            }
        }};
    }

    impl Meaning {
        fn key(&self) -> Key<'static> {
            match self {
                Meaning::Raw(bytes) => Key::from(bytes.clone()),
                Meaning::Number(number) => in_some_type!(*number),
                Meaning::Parts(parts) => Key::from_parts(parts.iter().map(Meaning::part)),
            }
        }

        fn part(&self) -> KeyPart<'static> {
            match self {
                Meaning::Raw(bytes) => KeyPart::from(bytes.clone()),
                Meaning::Number(number) => in_some_type!(*number),
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
            "\\PC{1,9}|[-0-9x\"'(), \\\\]{1,9}|[\u{0}-\u{7f}]{1,9}"
                .prop_map(|text| Meaning::Raw(text.into_bytes())),
            prop_oneof![
                -300i128..300,
                any::<u64>().prop_map(i128::from),
                any::<i64>().prop_map(i128::from),
                (-3i128..3).prop_map(|more| i128::from(u64::MAX) + more),
                (-3i128..3).prop_map(|more| i128::from(i64::MAX) + more),
                0..i128::MAX,
            ]
            .prop_map(Meaning::Number)
        ]
    }

    fn meaning() -> impl Strategy<Value = Meaning> {
        prop_oneof![part(), vec(part(), 0..5).prop_map(Meaning::Parts)]
    }

    /// Other meanings that are likely to be confused with the first: its own bytes as another kind.
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

    #[test]
    fn a_key_of_a_namespace_equals_no_other_whatever_its_bytes() {
        let (one, other) = (Token(8), Token(16));
        let key = Key::from("k").in_space(one);
        assert_ne!(key, Key::from("k"));
        assert_ne!(key, Key::from("k").in_space(other));
        // Bytes that look like it, at the root and in a namespace.
        let forged = Key::from(key.bytes().to_vec());
        assert_ne!(key, forged);
        assert_ne!(key.bytes(), forged.in_space(one).bytes());
        assert_ne!(Key::of_space(None, "k"), Key::from(Key::of_space(None, "k").bytes().to_vec()));
        assert_ne!(Key::of_space(Some(one), "k"), Key::of_space(None, "k"));
        let keys = [Key::from("k"), Key::from(-7), Key::from(("a", 1)), Key::from(u128::MAX)];
        for key in keys.iter().map(|key| key.in_space(one)).chain([Key::of_space(Some(one), "ä")])
        {
            let read = Key::from_stored(key.kind(), key.bytes()).unwrap();
            assert_eq!((&read, read.lies()), (&key, key.lies()));
            assert_eq!(read.shown(), key.shown());
        }
        assert_eq!(Key::from(("a", 1)).in_space(one).to_string(), r#"("a", 1)"#);
        assert_eq!(Key::from("k").in_space(one).lies(), Lies::In(one));
        assert_eq!(Key::of_space(Some(one), "k").lies(), Lies::Names(Some(one)));
        assert_eq!(Key::of_space(None, "k").lies(), Lies::Names(None));
        // One of a later version, of no namespace, in a namespace within its bytes, or without a name.
        let nested = Key::from("k").in_space(one).in_space(other);
        assert!(Key::from_stored(7, nested.bytes()).is_none());
        for (kind, bytes) in [(7, &[0; 10][..]), (7, &[1; 9]), (8, &[0; 8]), (8, &[0xff; 9])] {
            assert!(Key::from_stored(kind, bytes).is_none(), "{kind} {bytes:?}");
        }
    }

    /// Version 1 of the format.
    #[test]
    fn the_bytes_of_keys_of_namespaces_never_change() {
        let key = Key::from("k").in_space(Token(0x0102));
        assert_eq!((key.kind(), key.bytes()), (7, &b"\x02\x01\0\0\0\0\0\0\x01k"[..]));
        let name = Key::of_space(Some(Token(0x0102)), "k");
        assert_eq!((name.kind(), name.bytes()), (8, &b"\x02\x01\0\0\0\0\0\0k"[..]));
        assert_eq!(Key::of_space(None, "k").bytes(), b"\0\0\0\0\0\0\0\0k");
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

        /// A displayed key reads back, and different keys are displayed differently.
        #[test]
        fn a_displayed_key_reads_back(a in meaning(), b in meaning()) {
            for meaning in lookalike(&a).into_iter().chain([b, a.clone()]) {
                let key = meaning.key();
                let text = key.to_string();
                let read = text.parse::<Key<'static>>();
                prop_assert_eq!(read.as_ref().ok(), key.check().is_ok().then_some(&key), "{}", text);
                prop_assert_eq!(meaning == a, text == a.key().to_string());
            }
        }

        /// Any text is either refused or is a key that displays and reads back.
        #[test]
        fn hostile_text_is_refused_or_is_a_key(text in "\\PC{0,20}|[-0-9xabu{}\"'(), \\\\\n]{0,20}|\\((\"[a\\\\\"]{0,4}\"|-?[0-9]{1,40}|0x[0-9a-fA-F]{0,4}|,? ?){0,6}\\)?") {
            match text.parse::<Key<'static>>() {
                Ok(key) => prop_assert_eq!(key.to_string().parse::<Key<'static>>().unwrap(), key),
                Err(e) => prop_assert!(matches!(e.kind(), ErrorKind::Invalid | ErrorKind::TooLarge)),
            }
        }

        /// Any stored bytes are either refused or are the one form of some key, which can be displayed.
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
        fn a_prefix_matches_whole_parts(parts in vec(part(), 0..5), other in vec(part(), 0..3), cut in 0usize..5) {
            let key = Meaning::Parts(parts.clone()).key();
            for prefix in [other, parts.iter().take(cut).cloned().collect()] {
                let expected = parts.starts_with(&prefix);
                prop_assert_eq!(key.starts_with(&Meaning::Parts(prefix).key()), expected);
            }
        }
    }

    #[test]
    fn stored_forms_never_change() {
        let cases: [(Key<'_>, u8, &[u8]); 12] = [
            (Key::from("task-42"), 1, b"task-42"),
            (Key::from(b"\xff\x00"), 1, b"\xff\x00"),
            (Key::from(42), 2, b"\x2a\0\0\0\0\0\0\0"),
            (Key::from(("a", 17)), 3, b"\x01\x01a\x02\x11\0\0\0\0\0\0\0"),
            (Key::from(-2), 4, b"\xfe\xff\xff\xff\xff\xff\xff\xff"),
            (Key::from(1u128 << 64), 5, b"\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0"),
            (Key::from([7; 16]), 1, &[7; 16]),
            (Key::from(("a", -2)), 3, b"\x01\x01a\x03\xfe\xff\xff\xff\xff\xff\xff\xff"),
            (Key::from_parts([1u128 << 64]), 3, b"\x04\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0"),
            (Key::from_parts([[7; 16]]), 3, &[&[1, 16][..], &[7; 16]].concat()),
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
    fn stored_bytes_that_are_not_a_key_are_refused() {
        let cases: [(u8, &[u8]); 19] = [
            (0, b"a"),
            (4, b"a"),
            (1, b""),
            (1, &[b'a'; KEY_BYTES_MAX + 1]),
            (2, b"1234567"),
            (3, b""),
            (3, b"\x03"),
            (3, b"\x01\x02a"),
            (3, b"\x01\x00"),
            (3, b"\x01\x00\x01\x01b"),
            // A number has one form.
            (4, b"\x02\0\0\0\0\0\0\0"),
            (4, b"\xff\xff\xff\xff\xff\xff\xff"),
            (5, b"\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\0"),
            (5, b"\0\0\0\0\0\0\0\0\x01"),
            (3, b"\x03\x02\0\0\0\0\0\0\0"),
            (3, b"\x04\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\0"),
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
        assert_ne!(Key::from(42), Key::from(-42));
        assert_ne!(Key::from(7u128 << 64), Key::from((7u128 << 64).to_le_bytes()));
        // A number is its value, whatever the type.
        for same in [Key::from(42u32), Key::from(42i64), Key::from(42u128), Key::from(42u64)] {
            assert_eq!(same, Key::from(42i32));
        }
        for same in [Key::from(("a", 42u32)), Key::from(("a", 42i64)), Key::from(("a", 42u128))] {
            assert_eq!(same, Key::from(("a", 42u64)));
        }
        assert_eq!(Key::from(-42i32), Key::from(-42i64));
    }

    #[test]
    fn text_that_is_not_a_key_is_refused_with_the_position() {
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        let cases = [
            "",
            "\"",
            "\"a",
            "\"a\"b",
            "\"\"",
            "a\\",
            "a\\q",
            "\\u{110000}",
            "\\u{41",
            "\\u41",
            "0x",
            "0x1",
            "0xgg",
            "(",
            "()",
            "(,)",
            "(1)",
            "(1,",
            "(1,)x",
            "(1, 2",
            "(1 2)",
            "(1,2)",
            "(1, 2,)",
            "(1, (2, 3))",
            "(a,)",
            "(\"\", 1)",
            "(0x, 1)",
            "(007,)",
            "(-0,)",
            "(-,)",
            "(-9223372036854775809,)",
            "(340282366920938463463374607431768211456,)",
            &long,
        ];
        for text in cases {
            let e = text.parse::<Key<'static>>().expect_err(text);
            assert!(matches!(e.kind(), ErrorKind::Invalid | ErrorKind::TooLarge), "{text}: {e}");
            assert!(!e.to_string().contains(|c: char| c.is_control()), "{text}: {e}");
        }
        // Text that is not the displayed form of a number is text, and is displayed as it is.
        for text in ["-", "007", "-0", "340282366920938463463374607431768211456", "1_000", "+1"] {
            let key = text.parse::<Key<'static>>().unwrap();
            assert_eq!((&key, key.to_string().as_str()), (&Key::from(text), text));
        }
    }

    #[test]
    fn keys_read_well_and_forge_no_log_lines() {
        let cases = [
            (Key::from("task-42"), "task-42", r#"Key("task-42")"#),
            (Key::from("it's \"so\"\n"), r#"it's "so"\n"#, r#"Key("it's \"so\"\n")"#),
            (Key::from("\u{202e}übung"), r"\u{202e}übung", r#"Key("\u{202e}übung")"#),
            (Key::from(b"\xff\x0a"), "0xff0a", "Key(0xff0a)"),
            (Key::from(42), "42", "Key(42)"),
            (Key::from("42"), r#""42""#, r#"Key("42")"#),
            (Key::from("-42"), r#""-42""#, r#"Key("-42")"#),
            (Key::from("0xff"), r#""0xff""#, r#"Key("0xff")"#),
            (Key::from("(a)"), r#""(a)""#, r#"Key("(a)")"#),
            (Key::from("\"a"), r#""\"a""#, r#"Key("\"a")"#),
            (Key::from("2026-01-01 a"), "2026-01-01 a", r#"Key("2026-01-01 a")"#),
            (Key::from(-42), "-42", "Key(-42)"),
            (
                Key::from(u128::MAX),
                "340282366920938463463374607431768211455",
                "Key(340282366920938463463374607431768211455)",
            ),
            (Key::from(("a", -1, b"\xff\xff")), r#"("a", -1, 0xffff)"#, r#"Key("a", -1, 0xffff)"#),
            (Key::from(("a", 17)), r#"("a", 17)"#, r#"Key("a", 17)"#),
            (Key::from_parts(["a\n"]), r#"("a\n",)"#, r#"Key("a\n",)"#),
            (Key::from_parts::<[u64; 0]>([]), "()", "Key()"),
        ];
        for (key, display, debug) in cases {
            assert_eq!((key.to_string().as_str(), format!("{key:?}").as_str()), (display, debug));
        }
    }

    #[test]
    fn a_key_too_long_or_empty_is_refused_with_advice() {
        let longest = Key::from(vec![b'k'; KEY_BYTES_MAX]);
        assert!(longest.check().is_ok());

        let long = Key::from(vec![b'k'; KEY_BYTES_MAX + 1]).check().unwrap_err();
        assert_eq!(long.kind(), ErrorKind::TooLarge);
        assert!(
            long.to_string().contains("4096") && long.to_string().contains("fingerprint"),
            "{long}"
        );

        for empty in [Key::from(""), Key::from_parts::<[u64; 0]>([]), Key::from(&[0; 0])] {
            assert_eq!(empty.check().unwrap_err().kind(), ErrorKind::Invalid);
        }
        // A tenant without a name would share its keys with all other such tenants.
        for empty in [Key::from(("", "")), Key::from(("", "b")), Key::from(("a", 1, ""))] {
            let e = empty.check().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid);
            assert!(e.to_string().contains(&empty.to_string()), "{e}");
        }
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
