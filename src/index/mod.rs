//! Maps a key to its position in the log. Knows positions, never the log's files.
//!
//! Promises: a key is identified by itself, not by its hash: all positions under one hash are candidates, and the
//! caller compares the key in the record. The index is derived: it can be rebuilt from the log at any time.

pub(crate) mod open;
pub(crate) mod recent;
pub(crate) mod table;
pub(crate) mod tables;
#[cfg(test)]
mod tests;

use std::hash::Hasher as _;

use siphasher::sip128::{Hash128, Hasher128, SipHasher13};

use crate::limits::SHARDS;
use crate::manifest::Secrets;
use crate::operation::Key;
use crate::types::KeyHash;

/// The length of a short key and its kind.
const SHORT_BYTES: usize = 64;

/// The keyed hash of the index: SipHash-1-3, 128 bits in one call (Aumasson and Bernstein, 2012).
#[derive(Clone)]
pub(crate) struct Hasher {
    key: [u8; 16],
    /// The part of a hash that is used.
    #[cfg(any(test, feature = "testing"))]
    mask: KeyHash,
}

impl Hasher {
    pub(crate) fn new(secrets: &Secrets) -> Self {
        Hasher {
            key: secrets.hash_key,
            #[cfg(any(test, feature = "testing"))]
            mask: KeyHash { high: u64::MAX, low: u64::MAX },
        }
    }

    /// A poor hash, under which keys collide.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn masked(self, mask: KeyHash) -> Self {
        Hasher { mask, ..self }
    }

    /// The kind is hashed, too, so that keys of different kinds never hash the same bytes. A step is in the shard of its
    /// claim's key, so that the claim is checked and the step recorded under one lock.
    pub(crate) fn hash(&self, key: &Key<'_>) -> KeyHash {
        let hash = self.hash_bytes(key.kind(), key.bytes());
        #[cfg(any(test, feature = "testing"))]
        let hash = Hash128 { h1: hash.h1 & self.mask.high, h2: hash.h2 & self.mask.low };
        let hash = KeyHash { high: hash.h1, low: hash.h2 };
        if key.is_step() { self.in_shard_of_claim(hash, key) } else { hash }
    }

    /// Most keys are short, and are hashed behind their kind from one copy: in two pieces it would take more instructions.
    #[inline]
    fn hash_bytes(&self, kind: u8, bytes: &[u8]) -> Hash128 {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        let mut short = [kind; SHORT_BYTES];
        match short.get_mut(1..=bytes.len()) {
            Some(copy) => {
                copy.copy_from_slice(bytes);
                hasher.hash(short.split_at(1 + bytes.len()).0)
            }
            None => {
                hasher.write_u8(kind);
                hasher.write(bytes);
                hasher.finish128()
            }
        }
    }

    #[cold]
    fn in_shard_of_claim(&self, hash: KeyHash, step: &Key<'_>) -> KeyHash {
        let of = step.as_step().map_or(hash, |of| self.hash(&of.key));
        let shards = SHARDS as u64;
        KeyHash { low: hash.low - hash.low % shards + of.low % shards, ..hash }
    }
}
