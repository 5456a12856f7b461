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

use crate::limits::SHARDS;
use crate::manifest::Secrets;
use crate::operation::Key;
use crate::types::KeyHash;

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
        use std::hash::Hasher as _;
        let mut hasher = siphasher::sip128::SipHasher13::new_with_key(&self.key);
        hasher.write_u8(key.kind());
        hasher.write(key.bytes());
        let hash = siphasher::sip128::Hasher128::finish128(&hasher);
        #[cfg(any(test, feature = "testing"))]
        let hash = siphasher::sip128::Hash128 {
            h1: hash.h1 & self.mask.high,
            h2: hash.h2 & self.mask.low,
        };
        let hash = KeyHash { high: hash.h1, low: hash.h2 };
        if key.is_step() { self.in_shard_of_claim(hash, key) } else { hash }
    }

    #[cold]
    fn in_shard_of_claim(&self, hash: KeyHash, step: &Key<'_>) -> KeyHash {
        let of = step.as_step().map_or(hash, |of| self.hash(&of.key));
        let shards = SHARDS as u64;
        KeyHash { low: hash.low - hash.low % shards + of.low % shards, ..hash }
    }
}
