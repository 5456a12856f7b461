//! The sharded in-memory table of all keys since the last checkpoint, and of the claims in flight.
//!
//! Promises: one lock per shard, never held during I/O. An entry changes only under its shard's lock, in the same
//! step in which its record is placed in the log; so the order of a key's records is the order of its states. An
//! entry is removed only when a sealed table has it, and never while its key is claimed.

use std::sync::Arc;

use hashbrown::HashTable;

use super::tables::Tables;
use crate::limits::{self, SHARDS};
use crate::operation::Durability;
use crate::protocol::{KeyState, Presence};
use crate::sync::{Mutex, MutexGuard};
use crate::types::{KeyHash, Lsn, StoreMillis, in_memory};

/// The place of a key's newest record, and the durability level that its answers wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place(u64);

impl Place {
    pub(crate) fn new(lsn: Lsn, level: Durability) -> Self {
        let level = match level {
            Durability::Lazy => 0,
            Durability::Flush => 1,
            Durability::Sync => 2,
        };
        // Records start at multiples of 8, so three bits are free.
        Place(lsn.get() & !7 | level)
    }

    pub(crate) fn lsn(self) -> Lsn {
        Lsn::new(self.0 & !7)
    }

    pub(crate) fn level(self) -> Durability {
        match self.0 & 7 {
            0 => Durability::Lazy,
            1 => Durability::Flush,
            _ => Durability::Sync,
        }
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
    /// Store time at which the lease lapses; `None`: it lapses with the guard.
    pub(crate) lease_until: Option<StoreMillis>,
    /// Bytes kept in the log for the ending.
    pub(crate) reserved: u64,
    /// Distinguishes one question from the next.
    pub(crate) question: u64,
}

impl Live {
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
    /// Tables to look up keys that aren't in memory. Replaced in the same step in which the keys they hold leave
    /// memory.
    tables: Arc<Tables>,
}

impl Recent {
    pub(crate) fn new(tables: &Arc<Tables>) -> Self {
        let shard = || Shard { table: HashTable::new(), tables: Arc::clone(tables) };
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

    /// Has lookups use `tables`, and removes the entries that they hold from memory. Removes entries below
    /// `head_base`, too: their segment is about to be removed.
    pub(crate) fn install(&self, tables: &Arc<Tables>, head_base: Lsn) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.tables = Arc::clone(tables);
            let covered = tables.covered.max(head_base);
            shard.table.retain(|entry| entry.live.is_some() || entry.place.lsn() >= covered);
            // Releases the memory of a burst of keys, except for what the next checkpoint's keys need.
            let room = (2 * shard.table.len()).max(limits::SHARD_KEYS_LEAST);
            shard.table.shrink_to(room, |entry| entry.hash.high);
        }
    }

    /// Removes all entries, and releases their memory.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            shard.lock().table = HashTable::new();
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
        self.table.insert_unique(entry.hash.high, entry, |entry| entry.hash.high);
    }

    /// Removes the claim or question from a key's entry. If a sealed table has the key, the entry leaves memory.
    pub(crate) fn let_go(&mut self, hash: KeyHash, lsn: Lsn) -> Option<Box<Live>> {
        let is_it = |entry: &Entry| entry.hash == hash && entry.place.lsn() == lsn;
        let mut found = self.table.find_entry(hash.high, is_it).ok()?;
        let live = found.get_mut().live.take();
        if lsn < self.tables.covered {
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

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.table.iter_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }
}
