//! The entropy seam: where ids, salts and hash keys come from.
//!
//! Promises: [`OsEntropy`] asks the operating system every time and keeps no state, so a forked child repeats nothing.
//! `SeededEntropy` gives the same bytes for the same seed, on every machine.
//! Never: serves anything except names and keys; no decision of the store is random.

#![expect(clippy::disallowed_methods, reason = "this is the entropy seam")]

use std::fmt;
use std::io;

#[cfg(any(test, feature = "testing"))]
use crate::types::KeyHash;

/// A source of random bytes.
pub(crate) trait Entropy: Send + Sync + fmt::Debug {
    /// Fills all of `bytes`.
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()>;

    /// The bits of a key's hash that count. For tests: a mask makes different keys share a hash.
    #[cfg(any(test, feature = "testing"))]
    fn hash_mask(&self) -> KeyHash {
        KeyHash { high: u64::MAX, low: u64::MAX }
    }
}

/// The operating system's generator.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(|e| {
            e.raw_os_error()
                .map_or_else(|| io::Error::other(e.to_string()), io::Error::from_raw_os_error)
        })
    }
}

#[cfg(any(test, feature = "testing"))]
pub(crate) use seeded::{SeededEntropy, SplitMix64};

#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "the public simulator needs only part of it"))]
#[expect(clippy::disallowed_types, reason = "part of the seam")]
mod seeded {
    use super::{Entropy, KeyHash};
    use std::io;

    /// Reproducible bytes for tests.
    #[derive(Debug)]
    pub(crate) struct SeededEntropy {
        generator: parking_lot::Mutex<SplitMix64>,
        hash_mask: KeyHash,
    }

    impl SeededEntropy {
        pub(crate) fn new(seed: u64) -> Self {
            let all = KeyHash { high: u64::MAX, low: u64::MAX };
            SeededEntropy::with_hash_mask(seed, all)
        }

        pub(crate) fn with_hash_mask(seed: u64, hash_mask: KeyHash) -> Self {
            let generator = parking_lot::Mutex::new(SplitMix64::new(seed));
            SeededEntropy { generator, hash_mask }
        }
    }

    impl Entropy for SeededEntropy {
        fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
            let mut generator = self.generator.lock();
            for part in bytes.chunks_mut(8) {
                for (to, from) in part.iter_mut().zip(generator.next().to_le_bytes()) {
                    *to = from;
                }
            }
            Ok(())
        }

        fn hash_mask(&self) -> KeyHash {
            self.hash_mask
        }
    }

    /// Steele, Lea and Flood's generator: one addition and three mixes, good enough to choose test cases.
    #[derive(Clone, Debug)]
    pub(crate) struct SplitMix64(u64);

    impl SplitMix64 {
        pub(crate) fn new(seed: u64) -> Self {
            SplitMix64(seed)
        }

        pub(crate) fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        /// A number below `bound`; 0 if there is none. The bias is below 2^-32 for bounds below 2^32.
        pub(crate) fn below(&mut self, bound: u64) -> u64 {
            self.next().checked_rem(bound).unwrap_or(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_generator_fills_every_length_and_repeats_nothing() {
        let (mut a, mut b) = ([0u8; 33], [0u8; 33]);
        OsEntropy.fill(&mut a).unwrap();
        OsEntropy.fill(&mut b).unwrap();
        assert_ne!(a, b);
        OsEntropy.fill(&mut []).unwrap();
    }

    #[test]
    fn the_seed_determines_every_byte() {
        let draw = |seed| {
            let entropy = SeededEntropy::new(seed);
            let mut bytes = [0u8; 21];
            entropy.fill(&mut bytes).unwrap();
            entropy.fill(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn split_mix_matches_the_published_generator() {
        let mut generator = SplitMix64::new(1_234_567);
        assert_eq!(generator.next(), 6_457_827_717_110_365_317);
        assert_eq!(generator.next(), 3_203_168_211_198_807_973);
        assert_eq!(generator.below(0), 0);
    }
}
