//! A position in a walk from the oldest key on, which a later request continues from.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::types::WallMillis;
use crate::{Error, Key, Result};

/// A position in a walk in the order of age: the time since which a key is in its attempt, and the key. See
/// [`Iter::after`](super::Iter::after).
///
/// `Display` writes a cursor as text, for a link or a form, and `FromStr` parses that text. The text contains the key.
///
/// ```
/// use onlyonce::admin::Cursor;
/// # use onlyonce::{admin::StateKind, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # drop(store.claim("mail-1")?);
///
/// let mut walk = store.iter().in_states(&[StateKind::Interrupted]).oldest_first();
/// assert!(walk.next().is_some());
/// let text = walk.cursor().unwrap().to_string();
/// let cursor: Cursor = text.parse()?;
/// assert_eq!(store.iter().in_states(&[StateKind::Interrupted]).after(&cursor).count(), 0);
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cursor {
    since: WallMillis,
    key: Key<'static>,
}

impl Cursor {
    pub(crate) fn new(since: WallMillis, key: Key<'static>) -> Self {
        Cursor { since, key }
    }

    pub(crate) fn since(&self) -> WallMillis {
        self.since
    }

    pub(crate) fn key(&self) -> &Key<'static> {
        &self.key
    }

    fn rank(&self) -> (u64, u8, &[u8]) {
        (self.since.0, self.key.kind(), self.key.bytes())
    }
}

/// By time; at the same time, by key.
///
/// ```
/// use onlyonce::admin::Cursor;
///
/// let [older, newer]: [Cursor; 2] = ["1000:b".parse()?, "1001:a".parse()?];
/// assert!(older < newer);
/// # onlyonce::Result::<()>::Ok(())
/// ```
impl Ord for Cursor {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Cursor {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.since.0, self.key)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once(':').and_then(|(since, key)| Some((since.parse().ok()?, key)));
        let Some((since, key)) = parsed else {
            return Err(Error::invalid(format!(
                "{text:?} is not a cursor: a cursor is written as milliseconds, a colon and a key"
            )));
        };
        Ok(Cursor::new(WallMillis(since), key.parse()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_parsed_from_its_text_and_nothing_else_is() {
        let keys: [Key<'static>; 5] =
            ["a:b".into(), 17.into(), ("a", 17).into(), Key::from(&b"\xff"[..]), " ".into()];
        for key in keys {
            let cursor = Cursor::new(WallMillis(1_767_225_600_000), key);
            assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor, "{cursor}");
        }
        for text in ["", ":", "1", "1:", ":k", "-1:k", "1.5:k", "x:k", "1:\"k"] {
            let error = text.parse::<Cursor>().unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Invalid, "{text}");
        }
    }

    #[test]
    fn cursors_are_ordered_by_time_then_by_key() {
        let cursor = |since, key: &str| Cursor::new(WallMillis(since), Key::from(key).into_owned());
        let mut sorted = [cursor(2, "a"), cursor(1, "b"), cursor(1, "a"), cursor(10, "")];
        sorted.sort();
        let shown: Vec<_> = sorted.iter().map(|cursor| cursor.since.0).collect();
        assert_eq!(shown, [1, 1, 2, 10]);
        assert!(sorted[0] < sorted[1] && sorted[0].key.bytes() == b"a");
    }
}
