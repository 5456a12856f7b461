//! Compares the answers that all threads got about their keys, across all opens of the store: a key is granted afresh
//! once, a token is issued once, and an acknowledged result is found in every later open.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use crate::{Claim, ClaimGuard, Error, ErrorKind, Operation, State, Store};

/// The record of the answers. No call of the store is made while its lock is held, since that lock is not shuttle's.
#[derive(Default)]
pub(super) struct Testimony(Mutex<Answers>);

#[derive(Default)]
struct Answers {
    granted: BTreeSet<u64>,
    tokens: BTreeSet<u64>,
    completed: BTreeMap<u64, Vec<u8>>,
}

/// Draws one of so many.
pub(super) type Roll<'a> = &'a mut dyn FnMut(u64) -> u64;

impl Testimony {
    /// Claims `key` by `op`, and mostly completes it, with a result of `more` bytes than it needs.
    pub(super) fn claim(
        &self,
        store: &Store,
        key: u64,
        op: Operation<'_>,
        more: usize,
        roll: Roll<'_>,
    ) -> Result<(), Error> {
        let before = self.0.lock().completed.get(&key).cloned();
        let claim = store.claim(op)?;
        if let Some(before) = before {
            let Claim::Completed(done) = claim else { panic!("{key} was completed: {claim}") };
            assert_eq!(done.result()[..], before, "{key}");
            return Ok(());
        }
        match claim {
            Claim::Acquired(claim) => {
                assert!(self.0.lock().granted.insert(key), "{key} was granted twice");
                self.end(key, claim, more, roll)
            }
            Claim::Interrupted(lost) if roll(2) == 0 => {
                let claim = lost.take_over()?;
                self.end(key, claim, more, roll)
            }
            Claim::Completed(done) => {
                let mut told = self.0.lock();
                // Its owner may not have got the answer yet, or not a certain one.
                let known = told.completed.entry(key).or_insert_with(|| done.result().to_vec());
                assert_eq!(done.result()[..], known[..], "{key}");
                Ok(())
            }
            Claim::Interrupted(_) | Claim::InProgress(_) => Ok(()),
            other => panic!("{other}"),
        }
    }

    fn end(&self, key: u64, claim: ClaimGuard, more: usize, roll: Roll<'_>) -> Result<(), Error> {
        let token = claim.token().get();
        assert!(self.0.lock().tokens.insert(token), "token {token} was given out twice");
        if roll(8) == 0 {
            return Ok(());
        }
        let mut result = token.to_le_bytes().to_vec();
        result.resize(result.len() + more, 7);
        match claim.complete(&result[..]) {
            Err(e) if e.kind() == ErrorKind::ClaimLost => Ok(()),
            Err(e) => Err(e),
            Ok(()) => {
                let known = self.0.lock().completed.insert(key, result.clone());
                assert!(known.is_none_or(|known| known == result), "{key} has two results");
                Ok(())
            }
        }
    }

    /// Checks that everything acknowledged is there, for the `most` newest keys.
    pub(super) fn check(&self, store: &Store, most: usize) {
        let newest: Vec<_> = {
            let told = self.0.lock();
            told.completed.iter().rev().take(most).map(|(k, v)| (*k, v.clone())).collect()
        };
        for (key, result) in newest {
            let Some(State::Completed(done)) = store.get(key).unwrap() else {
                panic!("the result of {key} is gone")
            };
            assert_eq!(done.result()[..], result, "{key}");
        }
    }

    /// Numbers of keys granted, tokens given, and keys completed.
    pub(super) fn counts(&self) -> [usize; 3] {
        let told = self.0.lock();
        [told.granted.len(), told.tokens.len(), told.completed.len()]
    }
}
