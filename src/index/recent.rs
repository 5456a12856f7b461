//! The sharded in-memory table of all keys since the last checkpoint, and of the claims in flight.
//!
//! Promises: one lock per shard, never held during I/O. An entry changes only under its shard's lock, in the same
//! step in which its record is placed in the log; so the order of a key's records is the order of its states. An
//! entry is removed only when a sealed table has it, and never while its key is open: so all open keys of the store are
//! here, and are found without reading any table.

use std::sync::Arc;

use hashbrown::HashTable;

use super::tables::Tables;
use crate::limits::{self, SHARDS};
use crate::operation::Durability;
use crate::protocol::{Asker, KeyState, OpenAs, Presence};
use crate::sync::{Mutex, MutexGuard};
use crate::types::{KeyHash, Lsn, Origin, SessionId, StoreMillis, in_memory};

/// The place of a key's newest record, the durability level that its answers wait for, and whether it leaves its key open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place(u64);

/// The bits of a place that hold no LSN. Records start at multiples of 8, and no LSN is past 2^63.
const HIGH: u64 = 1 << 63;
const LOW: u64 = 7;
const LEVELS: u64 = 3;
/// The code of a namespace's record, which is always placed at `Sync`.
const SPACE: u64 = 15;

impl Place {
    #[inline]
    pub(crate) fn new(lsn: Lsn, level: Durability, open: Option<OpenAs>) -> Self {
        debug_assert!(lsn.get() & (HIGH | LOW) == 0, "{lsn}");
        let level = match level {
            Durability::Lazy => 0,
            Durability::Flush => 1,
            Durability::Sync => 2,
        };
        // Four bits hold up to five pairs of a state and a level, and one more.
        let code = match open {
            Some(OpenAs::Space) => SPACE,
            None => level,
            Some(OpenAs::Attempt) => level + LEVELS,
            Some(OpenAs::Held) => level + 2 * LEVELS,
            Some(OpenAs::Detached) => level + 3 * LEVELS,
            Some(OpenAs::Delayed) => level + 4 * LEVELS,
        };
        Place(lsn.get() & !(HIGH | LOW) | code & LOW | code >> 3 << 63)
    }

    fn code(self) -> u64 {
        self.0 & LOW | self.0 >> 63 << 3
    }

    pub(crate) fn lsn(self) -> Lsn {
        Lsn::new(self.0 & !(HIGH | LOW))
    }

    pub(crate) fn level(self) -> Durability {
        match self.code() % LEVELS {
            _ if self.code() == SPACE => Durability::Sync,
            0 => Durability::Lazy,
            1 => Durability::Flush,
            _ => Durability::Sync,
        }
    }

    pub(crate) fn open(self) -> Option<OpenAs> {
        match self.code() / LEVELS {
            0 => None,
            1 => Some(OpenAs::Attempt),
            2 => Some(OpenAs::Held),
            3 => Some(OpenAs::Detached),
            4 => Some(OpenAs::Delayed),
            _ => Some(OpenAs::Space),
        }
    }

    #[inline]
    pub(crate) fn is_open(self) -> bool {
        self.code() >= LEVELS
    }
}

/// One key's newest record.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) hash: KeyHash,
    pub(crate) place: Place,
    /// State that is only in memory: a claim in flight or a question.
    pub(crate) live: Option<Box<Live>>,
}

/// A claim in flight, or a question that waits for an answer.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) key_kind: u8,
    pub(crate) key: Box<[u8]>,
    pub(crate) state: KeyState,
    pub(crate) presence: Presence,
    /// Store time at which the lease of the owner or the claimant lapses; `None`: it lapses with the guard.
    pub(crate) lease_until: Option<StoreMillis>,
    /// Bytes kept in the log for the ending.
    pub(crate) reserved: u64,
    /// The claimant that was asked.
    pub(crate) asker: Option<Arc<Asker>>,
    /// What is known of the other process that made the key's newest record, or has the claim; `None`: there is none.
    pub(crate) guest: Option<Box<OfGuest>>,
}

/// What is known of a key whose newest record goes back to the call of another process, or whose claim is that process's.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct OfGuest {
    /// The call that made the record.
    pub(crate) origin: Option<Origin>,
    /// For how long its lease was given, if it has one.
    pub(crate) lease_millis: Option<u64>,
    /// The call that attached the detached claim, which makes no record.
    pub(crate) attached: Option<Origin>,
}

impl Live {
    /// The session that has the claim; `None`: the process itself.
    pub(crate) fn owner(&self) -> Option<SessionId> {
        let guest = self.guest.as_ref().filter(|_| self.presence == Presence::Owner)?;
        let origin = if self.state.detached().is_some() { guest.attached } else { guest.origin };
        origin.map(|origin| origin.session)
    }

    pub(crate) fn is_key(&self, kind: u8, key: &[u8]) -> bool {
        self.key_kind == kind && *self.key == *key
    }
}

/// The table.
pub(crate) struct Recent {
    shards: Vec<Mutex<Shard>>,
}

/// The keys whose hashes share some bits.
pub(crate) struct Shard {
    table: HashTable<Entry>,
    /// The number of its open keys.
    open: usize,
    /// Tables to look up keys that aren't in memory. Replaced in the same step in which the keys they hold leave
    /// memory.
    tables: Arc<Tables>,
}

impl Recent {
    pub(crate) fn new(tables: &Arc<Tables>) -> Self {
        let shard = || Shard { table: HashTable::new(), open: 0, tables: Arc::clone(tables) };
        Recent { shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect() }
    }

    /// Locks the shard of a hash.
    pub(crate) fn shard(&self, hash: KeyHash) -> Option<MutexGuard<'_, Shard>> {
        // The low word chooses the shard, the high one the bucket: they are independent.
        let index = in_memory(hash.low % SHARDS as u64);
        self.shards.get(index).map(Mutex::lock)
    }

    /// Returns all entries whose record lies in `from..to`, for a checkpoint to seal.
    pub(crate) fn between(&self, from: Lsn, to: Lsn) -> Vec<(KeyHash, Lsn)> {
        // Capacity for all of them: a list that grows would be in memory twice while it is copied.
        let mut found = Vec::with_capacity(self.len() + self.len() / 8);
        for shard in &self.shards {
            let shard = shard.lock();
            let places = shard.iter().map(|entry| (entry.hash, entry.place.lsn()));
            found.extend(places.filter(|(_, lsn)| (from..to).contains(lsn)));
        }
        found
    }

    /// Returns the open keys whose newest record lies in `from..to`. Takes time in proportion to their number, and to
    /// the entries of the shards that have any.
    pub(crate) fn open_in(&self, from: Lsn, to: Lsn) -> Vec<(KeyHash, Place)> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let places = shard.open_entries().map(|entry| (entry.hash, entry.place));
            found.extend(places.filter(|(_, place)| (from..to).contains(&place.lsn())));
        }
        found
    }

    /// Has lookups use `tables`, and removes the entries that they hold from memory, except those of open keys. Removes
    /// entries below `head_base`, too: their segment is about to be removed.
    pub(crate) fn install(&self, tables: &Arc<Tables>, head_base: Lsn) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.tables = Arc::clone(tables);
            let mut open = 0;
            shard.table.retain(|entry| {
                let least = if entry.place.is_open() { Lsn::ZERO } else { tables.covered };
                let stays = entry.live.is_some() || entry.place.lsn() >= least.max(head_base);
                open += usize::from(stays && entry.place.is_open());
                stays
            });
            shard.open = open;
            // Releases the memory of a burst of keys, except for what the next checkpoint's keys need.
            let room = (2 * shard.table.len()).max(limits::SHARD_KEYS_LEAST);
            shard.table.shrink_to(room, |entry| entry.hash.high);
        }
    }

    /// Removes all entries, except those of open keys.
    pub(crate) fn drop_ended(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.table.retain(|entry| entry.place.is_open());
            shard.table.shrink_to(0, |entry| entry.hash.high);
        }
    }

    /// Removes all entries, and releases their memory.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            (shard.table, shard.open) = (HashTable::new(), 0);
        }
    }

    /// Returns the places of about `most` entries, evenly from all shards.
    pub(crate) fn sample(&self, most: u64) -> Vec<Lsn> {
        let share = in_memory(most) / SHARDS;
        let places = self.shards.iter().flat_map(|shard| {
            let shard = shard.lock();
            shard.iter().take(share.max(1)).map(|entry| entry.place.lsn()).collect::<Vec<_>>()
        });
        places.collect()
    }

    /// Returns the number of entries in memory.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Locks the nth shard, for walks over everything.
    pub(crate) fn nth_shard(&self, index: usize) -> Option<MutexGuard<'_, Shard>> {
        self.shards.get(index).map(Mutex::lock)
    }
}

impl Shard {
    /// Returns all entries under a hash: candidates, at most one of which is the key's.
    pub(crate) fn candidates(&self, hash: KeyHash) -> impl Iterator<Item = &Entry> {
        self.table.iter_hash(hash.high).filter(move |entry| entry.hash == hash)
    }

    /// Returns the entry of a hash at a place.
    pub(crate) fn entry_at(&mut self, hash: KeyHash, lsn: Lsn) -> Option<&mut Entry> {
        self.table.find_mut(hash.high, |entry| entry.hash == hash && entry.place.lsn() == lsn)
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        self.open += usize::from(entry.place.is_open());
        self.table.insert_unique(entry.hash.high, entry, |entry| entry.hash.high);
    }

    /// Puts an entry in the place of its key's entry for the record at `old`, or adds it if there is none.
    #[inline]
    pub(crate) fn put(&mut self, old: Option<Lsn>, entry: Entry) {
        let hash = entry.hash;
        let found = old.and_then(|at| {
            self.table.find_mut(hash.high, |old| old.hash == hash && old.place.lsn() == at)
        });
        match found {
            Some(old) => {
                self.open += usize::from(entry.place.is_open());
                self.open -= usize::from(old.place.is_open());
                (old.place, old.live) = (entry.place, entry.live);
            }
            None => self.insert(entry),
        }
    }

    /// Removes the claim or question from a key's entry. The entry leaves memory if a sealed table has the key and it is
    /// not open.
    pub(crate) fn let_go(&mut self, hash: KeyHash, lsn: Lsn) -> Option<Box<Live>> {
        let is_it = |entry: &Entry| entry.hash == hash && entry.place.lsn() == lsn;
        let mut found = self.table.find_entry(hash.high, is_it).ok()?;
        let live = found.get_mut().live.take();
        if lsn < self.tables.covered && !found.get().place.is_open() {
            found.remove();
        }
        live
    }

    pub(crate) fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.table.iter()
    }

    /// Returns the entries of open keys. Stops at the last of them.
    pub(crate) fn open_entries(&self) -> impl Iterator<Item = &Entry> {
        self.table.iter().filter(|entry| entry.place.is_open()).take(self.open)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.table.iter_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_OPEN: [Option<OpenAs>; 5] = [
        None,
        Some(OpenAs::Attempt),
        Some(OpenAs::Held),
        Some(OpenAs::Detached),
        Some(OpenAs::Delayed),
    ];

    fn hash(n: u64) -> KeyHash {
        KeyHash { high: n.wrapping_mul(0x9e37_79b9_7f4a_7c15), low: n }
    }

    fn entry(n: u64, lsn: u64, open: Option<OpenAs>) -> Entry {
        let place = Place::new(Lsn::new(lsn), Durability::Sync, open);
        Entry { hash: hash(n), place, live: None }
    }

    #[test]
    fn a_place_keeps_lsn_level_and_openness_apart() {
        for lsn in [0, 8, 1 << 20, (1 << 63) - 8].map(Lsn::new) {
            for level in [Durability::Lazy, Durability::Flush, Durability::Sync] {
                for open in EVERY_OPEN {
                    let place = Place::new(lsn, level, open);
                    assert_eq!((place.lsn(), place.level(), place.open()), (lsn, level, open));
                    assert_eq!(place.is_open(), open.is_some());
                }
            }
        }
    }

    /// They are shown to operators without reading the tables, so they must never leave memory with a checkpoint.
    #[test]
    fn open_keys_stay_in_memory_and_are_found_alone() {
        let none = |covered| Tables::new(Vec::new(), Lsn::new(covered), 0, Vec::new());
        let recent = Recent::new(&none(0));
        let shard = |n| recent.shard(hash(n)).unwrap();
        for n in 0..1000_u64 {
            let open = EVERY_OPEN[in_memory(n % 3)].filter(|_| n % 10 == 0);
            shard(n).insert(entry(n, 8 + n * 8, open));
        }
        let open = |from, to| {
            let mut found: Vec<u64> = recent
                .open_in(Lsn::new(from), Lsn::new(to))
                .into_iter()
                .map(|(hash, _)| hash.low)
                .collect();
            found.sort_unstable();
            found
        };
        let expected =
            |least| (least..1000).filter(|n| n % 10 == 0 && n % 3 > 0).collect::<Vec<u64>>();
        assert_eq!(open(0, u64::MAX), expected(0));
        assert_eq!(open(808, u64::MAX), expected(100));
        recent.install(&none(u64::MAX), Lsn::ZERO);
        assert_eq!(recent.len(), expected(0).len());
        assert_eq!(open(0, u64::MAX), expected(0));
        // One ends, one is interrupted, one moves.
        shard(10).put(Some(Lsn::new(88)), entry(10, 80_000, None));
        shard(11).put(None, entry(11, 80_008, Some(OpenAs::Attempt)));
        shard(20).put(Some(Lsn::new(168)), entry(20, 80_016, Some(OpenAs::Held)));
        let mut now = expected(0);
        now.retain(|n| *n != 10);
        now.insert(0, 11);
        now.sort_unstable();
        assert_eq!(open(0, u64::MAX), now);
        // The segment of all others is removed.
        recent.install(&none(u64::MAX), Lsn::new(80_000));
        assert_eq!(open(0, u64::MAX), [11, 20]);
        recent.clear();
        assert_eq!(open(0, u64::MAX), Vec::<u64>::new());
    }
}
