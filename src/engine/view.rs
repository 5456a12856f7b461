//! Looking at keys without changing them.

use super::{Engine, Stored};
use crate::Result;
use crate::index::recent::{Entry, Live, Place};
use crate::operation::Key;
use crate::protocol::{self, KeyState, Phase, Presence};
use crate::types::{KeyHash, StoreMillis};
/// A key as it was found.
pub(crate) struct Seen {
    pub(crate) state: KeyState,
    pub(crate) presence: Presence,
    pub(crate) lease_until: Option<StoreMillis>,
    pub(crate) outcome: Option<Stored>,
    pub(crate) now: StoreMillis,
    place: Place,
}

impl Engine {
    /// What is known of a key, without changing anything.
    pub(crate) fn look(&self, key: &Key<'_>, hash: KeyHash) -> Result<Option<Seen>> {
        self.check_usable()?;
        loop {
            let shard = self.shard(hash)?;
            let now = self.log.now();
            let live = shard.candidates(hash).find_map(|entry| {
                let live = entry.live.as_ref()?;
                live.is_key(key.kind(), key.bytes()).then(|| seen_live(entry, live, now))
            });
            if let Some(seen) = live {
                drop(shard);
                return self.shown(seen).map(Some);
            }
            let candidates: Vec<Place> = shard.candidates(hash).map(|entry| entry.place).collect();
            drop(shard);
            let found = match self.look_in_log(key, &candidates) {
                Ok(found) => found,
                Err(_) if !self.is_unchanged(hash, &candidates)? => continue,
                Err(e) => {
                    self.settle_tail(e)?;
                    continue;
                }
            };
            let (Some(state), Some(place)) = (found.state, found.place) else {
                return self.settle_absence().map(|()| None);
            };
            if protocol::is_expired(&state, now) {
                return self.log.commit_earlier(place.lsn(), place.level()).map(|()| None);
            }
            let seen = Seen {
                state,
                presence: Presence::Nobody,
                lease_until: None,
                outcome: found.outcome,
                now,
                place,
            };
            return self.shown(seen).map(Some);
        }
    }

    /// Waits until what is to be shown can't be taken back, a claim in progress apart.
    fn shown(&self, seen: Seen) -> Result<Seen> {
        if protocol::phase_shown(&seen.state, seen.presence) != Phase::Claimed {
            self.log.commit_earlier(seen.place.lsn(), seen.place.level())?;
        }
        Ok(seen)
    }

    /// The places of all keys in the nth shard, for a walk; `None` past the last.
    pub(crate) fn places(&self, shard: usize) -> Option<Vec<(KeyHash, Place)>> {
        if self.log.has_unsettled_tail() && self.check_usable().is_ok() {
            // It moves keys; so before the walk rather than under it. If there is no room yet, the reads say so.
            let _ = self.begin_writing();
        }
        let shard = self.recent.nth_shard(shard)?;
        Some(shard.iter().map(|entry| (entry.hash, entry.place)).collect())
    }

    /// The key whose newest record was seen at a place by a walk; `None` if it has changed since.
    pub(crate) fn key_at(&self, hash: KeyHash, place: Place) -> Result<Option<Key<'static>>> {
        let read = self.log.read(place.lsn(), |record| {
            let body = self.body_of(&record)?;
            Ok(Key::from_stored(body.key_kind, body.key).map(Key::into_owned))
        });
        match read {
            Err(_) if !self.is_unchanged(hash, &[place])? => Ok(None),
            other => other,
        }
    }
}

fn seen_live(entry: &Entry, live: &Live, now: StoreMillis) -> Seen {
    // A lease that has passed is none, as whoever notices it will be told.
    let (presence, lease_until) = match live.has_lapsed(now) {
        true => (Presence::Nobody, None),
        false => (live.presence, live.lease_until),
    };
    Seen {
        state: live.state.clone(),
        presence,
        lease_until,
        outcome: None,
        now,
        place: entry.place,
    }
}
