//! The stored key of a step: the life of its claim's key, its name, and that key.
//!
//! Promises: a step's key equals no key that a program can name. Never: knows what a step is; `protocol` decides. Format:
//! `docs/format.md`, "Keys".

use super::Key;
use crate::limits::{STEP_KEY_BYTES_MAX, STEP_NAME_BYTES_MAX};
use crate::types::Token;

/// The parts of a step's stored key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StepKey<'k> {
    /// Token of the claim's key's first claim since it was absent: the step counts only in that life.
    pub(crate) life: Token,
    pub(crate) name: &'k str,
    /// The key of the claim.
    pub(crate) key: Key<'k>,
}

impl<'k> StepKey<'k> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (name, key) = (self.name.as_bytes(), self.key.bytes());
        debug_assert!(
            !name.is_empty() && name.len() <= STEP_NAME_BYTES_MAX,
            "{} bytes",
            name.len()
        );
        let mut out = Vec::with_capacity(10 + name.len() + key.len());
        out.extend_from_slice(&self.life.0.to_le_bytes());
        out.push(self.key.kind());
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        out.extend_from_slice(key);
        out
    }

    /// `None`: these are not the bytes of a step's key.
    pub(crate) fn decode(bytes: &'k [u8]) -> Option<Self> {
        if bytes.len() > STEP_KEY_BYTES_MAX {
            return None;
        }
        let (life, rest) = bytes.split_first_chunk::<8>()?;
        let ([kind, len], rest) = rest.split_first_chunk::<2>()?;
        let (name, key) = rest.split_at_checked(usize::from(*len))?;
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
        let key = Key::from_stored(*kind, key).filter(|key| !key.is_step())?;
        Some(StepKey { life: Token(u64::from_le_bytes(*life)), name, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::KEY_BYTES_MAX;

    #[test]
    fn the_key_of_a_step_is_read_back() {
        let long = "n".repeat(STEP_NAME_BYTES_MAX);
        for key in
            [Key::from("k"), Key::from(7), Key::from(("a", 1)), vec![b'k'; KEY_BYTES_MAX].into()]
        {
            for name in ["plan", "ü", &long] {
                let step = Key::of_step(&key, Token(808), name);
                let StepKey { life, name: read, key: of } = step.as_step().unwrap();
                assert_eq!((life, read, of), (Token(808), name, key.clone()));
                let stored = Key::from_stored(step.kind(), step.bytes()).unwrap();
                assert_eq!(stored, step);
                assert_ne!(step.kind(), key.kind());
            }
        }
    }

    #[test]
    fn steps_of_other_names_keys_and_lives_are_other_keys() {
        let of = |key: &str, life, name| Key::of_step(&Key::from(key), Token(life), name);
        let all = [
            of("k", 8, "a"),
            of("k", 8, "ak"),
            of("ak", 8, "a"),
            of("k", 16, "a"),
            of("kk", 8, "a"),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(all.iter().skip(n + 1).all(|other| other != one), "{one:?}");
        }
        assert_ne!(
            Key::of_step(&Key::from(1), Token(8), "a"),
            Key::of_step(&Key::from(&1_u64.to_le_bytes()[..]), Token(8), "a")
        );
    }

    #[test]
    fn what_is_no_key_of_a_step_is_none() {
        let step = Key::of_step(&Key::from("k"), Token(8), "plan");
        let nested = [&[0; 8][..], &[step.kind(), 1], b"n", step.bytes()].concat();
        let unnamed = [&[0; 8][..], &[1, 0], b"k"].concat();
        let no_text = [&[0; 8][..], &[1, 1, 0xff], b"k"].concat();
        let long = [&[0; 8][..], &[1, 1], b"n", &[b'k'; KEY_BYTES_MAX + 1]].concat();
        for bytes in [&b""[..], &step.bytes()[..13], &nested, &unnamed, &no_text, &long] {
            assert_eq!(Key::from_stored(step.kind(), bytes), None, "{bytes:?}");
        }
    }
}
