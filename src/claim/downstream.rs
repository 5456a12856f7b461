//! The keys under which other services recognize the calls of one claim or step.
//!
//! Promises: equal in every attempt, also after repair, backup, restore and compaction; different for each purpose, key and
//! store; not to be guessed without the store's secret.

use std::fmt::Write as _;

use crate::Key;
use crate::types::Secret;

/// What a key is for. A label and a step of the same name have different keys.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Label = 1,
    Step = 2,
}

/// Bytes of a key: two of the same store are never equal by chance.
const BYTES: usize = 16;

/// BLAKE2b (RFC 7693), keyed, with a personalization of its own; in hexadecimal digits.
pub(super) fn downstream_key(
    secret: Secret,
    key: &Key<'_>,
    purpose: Purpose,
    name: &str,
) -> String {
    let mut params = blake2b_simd::Params::new();
    params.hash_length(BYTES).key(&secret.0).personal(b"onlyonce downkey");
    let mut state = params.to_state();
    let name_bytes = (name.len() as u64).to_le_bytes();
    state.update(&[purpose as u8]).update(&name_bytes).update(name.as_bytes());
    state.update(&[key.kind()]).update(key.bytes());
    let mut out = String::with_capacity(2 * BYTES);
    for byte in state.finalize().as_bytes() {
        // Writing to a string doesn't fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_purpose_name_key_and_store_alone() {
        let secret = Secret([5; 32]);
        let (a, b) = (Key::from("a"), Key::from("b"));
        let of = |secret, key: &Key<'_>, purpose, name| downstream_key(secret, key, purpose, name);
        let mut all = vec![of(Secret([6; 32]), &a, Purpose::Label, "x")];
        for purpose in [Purpose::Label, Purpose::Step] {
            for name in ["", "x", "xa", "y"] {
                for key in [&a, &b, &Key::from(97), &Key::from("xa")] {
                    all.push(of(secret, key, purpose, name));
                    assert_eq!(all.last(), Some(&of(secret, key, purpose, name)));
                }
            }
        }
        assert!(all.iter().all(|key| key.len() == 32));
        all.sort_unstable();
        let many = all.len();
        all.dedup();
        assert_eq!(all.len(), many);
    }

    /// Other services have seen it: it must stay the same in every release. Computed with Python's hashlib.
    #[test]
    fn a_key_is_the_same_in_every_release() {
        let key = downstream_key(Secret([5; 32]), &Key::from("order-17"), Purpose::Label, "psp");
        assert_eq!(key, "3fe8248a1ece076f07813c7322b65bcc");
        let key = downstream_key(Secret([5; 32]), &Key::from("order-17"), Purpose::Step, "psp");
        assert_eq!(key, "db1988c35ce15425420378f3427d3197");
    }
}
