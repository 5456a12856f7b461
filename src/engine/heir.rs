//! What a poisoned open of a store leaves to the next open of the same process: the directory's lock, the claims in flight, and the
//! endings that owners send meanwhile.
//!
//! Promises: a claim stays with its owner, under the same token, if the owner was told of the grant and the record was recovered. A
//! claim whose grant was answered with an error is withdrawn. No other process opens the store between the two opens. Never: decides;
//! `protocol` does.

use std::sync::Arc;

use super::Engine;
use super::call::Writing;
use super::close::Threads;
use super::tenure::KeptTerms;
use crate::Result;
use crate::operation::{Durability, Key};
use crate::protocol::{Call, Conditions, Presence};
use crate::storage::DirLock;
use crate::types::{StoreMillis, Token};

/// What a poisoned open leaves when it is closed for a reopening.
pub(crate) struct Legacy {
    /// Kept until the next open succeeds, however often it is tried.
    pub(crate) lock: Arc<dyn DirLock>,
    claims: Vec<LeftClaim>,
}

/// A claim of this process, in flight.
struct LeftClaim {
    key: Key<'static>,
    token: Token,
    lease_until: Option<StoreMillis>,
    reserved: u64,
}

/// The call that ends a claim whose owner has left.
struct LastWord {
    key: Key<'static>,
    call: Call,
    reason: String,
    level: Option<Durability>,
    retention_ms: Option<u64>,
}

/// The next open of the same process.
#[derive(Default)]
pub(super) struct Heir {
    legacy: Option<Legacy>,
    /// Calls to be made on the next open, in their order.
    last_words: Vec<Arc<LastWord>>,
    engine: Option<Arc<Engine>>,
    /// This open is the next one of a poisoned open, and has not replaced that open yet. If it closes before, it ends no claim.
    is_on_trial: bool,
}

impl Legacy {
    pub(super) fn new(lock: Box<dyn DirLock>, claims: Claims) -> Self {
        Legacy { lock: lock.into(), claims: claims.0 }
    }

    /// Returns a share of the lock, for an open that may fail.
    pub(crate) fn share_lock(&self) -> Box<dyn DirLock> {
        Box::new(SharedLock { _lock: Arc::clone(&self.lock) })
    }
}

/// A share of the directory's lock, which is released with the last share.
#[derive(Debug)]
struct SharedLock {
    _lock: Arc<dyn DirLock>,
}

impl DirLock for SharedLock {}

/// See [`Engine::take_claims`].
#[derive(Default)]
pub(super) struct Claims(Vec<LeftClaim>);

impl Engine {
    /// Closes the poisoned store, and keeps the directory's lock and the claims in flight for another open of this process. Waits
    /// until the calls inside have returned.
    pub(crate) fn pass_on(self: &Arc<Self>, threads: &dyn Threads) -> Result<Legacy> {
        let closed = self.close_as(None, threads, true);
        let legacy = self.heir.lock().legacy.take();
        legacy.ok_or_else(|| match closed {
            Err(e) => e,
            Ok(_) => self.log.bug("a store that was passed on has left nothing"),
        })
    }

    /// Takes the claims that have an owner out of memory, and returns those of this process. The next open finds the claims of other
    /// processes by their records.
    pub(super) fn take_claims(&self) -> Claims {
        let mut claims = Vec::new();
        for index in 0..crate::limits::SHARDS {
            let Some(mut shard) = self.recent.nth_shard(index) else { break };
            for live in shard.iter_mut().filter_map(|entry| entry.live.take()) {
                if live.presence != Presence::Owner {
                    continue;
                }
                self.ended_one(live.owner().is_some());
                let key = Key::from_stored(live.key_kind, &live.key).map(Key::into_owned);
                let Some(key) = key.filter(|_| live.owner().is_none()) else { continue };
                claims.push(LeftClaim {
                    key,
                    token: live.state.token,
                    lease_until: live.lease_until,
                    reserved: live.reserved,
                });
            }
        }
        Claims(claims)
    }

    pub(super) fn bequeath(&self, legacy: Legacy) {
        self.heir.lock().legacy = Some(legacy);
    }

    /// Has the next open of this process make a call that ends a claim, because this open takes no more writes.
    #[cold]
    pub(super) fn tell_heir(
        &self,
        key: &Key<'_>,
        call: Call,
        reason: &str,
        writing: Option<&Writing<'_>>,
    ) {
        let word = Arc::new(LastWord {
            key: key.clone().into_owned(),
            call,
            reason: reason.to_owned(),
            level: writing.and_then(|writing| writing.level),
            retention_ms: writing.and_then(|writing| writing.conditions.retention_ms),
        });
        let mut heir = self.heir.lock();
        match heir.engine.clone() {
            None => heir.last_words.push(word),
            Some(engine) => {
                drop(heir);
                word.make(&engine);
            }
        }
    }

    /// Gives the claims that `from` has left back to their owners. Called before any call is let in.
    pub(crate) fn inherit(&self, from: &Engine, legacy: &Legacy) -> Result<()> {
        self.heir.lock().is_on_trial = true;
        let gone = from.heir.lock().last_words.clone();
        if legacy.claims.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let _inside = self.enter()?;
        self.prepare_keeping()?;
        for claim in &legacy.claims {
            let keeping = KeptTerms { reserve: claim.reserved, lease_until: claim.lease_until };
            self.keep_own(&claim.key, claim.token, keeping)?;
        }
        for word in gone {
            // The owner left while the store was poisoned, so the claim is no longer in memory.
            if let Some(token) = word.call.of_owner() {
                self.keep_own(&word.key, token, KeptTerms::default())?;
            }
            // Made now, before another process sends again the call that was granted this claim. If this open fails, the next one makes
            // the word again.
            word.make(self);
        }
        Ok(())
    }

    pub(super) fn is_on_trial(&self) -> bool {
        self.heir.lock().is_on_trial
    }

    /// Makes the calls that were left for `heir` on it. Endings of this open go to `heir` from now on.
    pub(crate) fn set_heir(&self, heir: &Arc<Engine>) {
        heir.heir.lock().is_on_trial = false;
        loop {
            let last_words = {
                let mut own = self.heir.lock();
                let last_words = std::mem::take(&mut own.last_words);
                if last_words.is_empty() {
                    own.engine = Some(Arc::clone(heir));
                    return;
                }
                last_words
            };
            last_words.iter().for_each(|word| word.make(heir));
        }
    }
}

impl LastWord {
    fn make(&self, engine: &Engine) {
        let conditions = Conditions { retention_ms: self.retention_ms, ..Conditions::default() };
        let writing = Writing { level: self.level, conditions, ..Writing::default() };
        let hash = engine.hash(&self.key);
        let is_made = engine.let_go(&self.key, hash, self.call, &self.reason, &writing, true);
        debug_assert!(is_made, "it may wait for whatever it needs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DiskFault, Sim};
    use crate::{Claim, OnDrop, Operation, State};

    #[derive(Debug)]
    struct NoLock;

    impl DirLock for NoLock {}

    /// Another process that asks once more for what was granted to it finds what became of that.
    #[test]
    fn what_was_left_is_done_before_calls_are_let_in() {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let op = Operation::new("left").on_drop(OnDrop::Abort);
        let Claim::Acquired(left) = store.claim(op).unwrap() else { panic!() };
        let Claim::Acquired(kept) = store.claim("kept").unwrap() else { panic!() };
        sim.fail_sync(0, DiskFault::Io);
        store.mark("poison").unwrap_err();
        drop(left);
        let embedded = store.shared().embedded().unwrap();
        let Legacy { lock, claims } = embedded.engine().pass_on(embedded).unwrap();
        drop(lock);
        let legacy = Legacy { lock: Arc::new(NoLock), claims };
        let next = sim.open().unwrap();
        next.engine().inherit(store.engine(), &legacy).unwrap();
        assert!(matches!(next.get("left").unwrap(), Some(State::Aborted(_))));
        assert_eq!(next.stats().in_flight, 1);
        // A reopening that fails afterwards closes it, and the next one has the claim still.
        drop(next);
        let next = sim.open().unwrap();
        next.engine().inherit(store.engine(), &legacy).unwrap();
        assert_eq!(next.stats().in_flight, 1);
        drop(kept);
    }
}
