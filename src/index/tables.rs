//! The sealed tables of one manifest, shared by lookups.
//!
//! Promises: the tables cover the log from its head to `covered` without a gap, and a lookup returns the positions of a
//! hash from the newest to the oldest. The tables are replaced as a whole; a holder of the old ones can continue to
//! read them. There are few tables at any time: `engine::merge` merges neighbours as soon as the older one is no larger
//! than all newer ones together, as the digits of a binary counter carry.

use std::sync::Arc;

use super::table::Table;
use crate::Result;
use crate::remembered::{Memory, MemoryFile};
use crate::sealed::listed::ListedTable;
use crate::sealed::{EntryCursor, Paged};
use crate::types::{KeyHash, Lsn, Spot, StoreMillis};

/// A list of tables, the newest first.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) list: Vec<Arc<Table>>,
    /// The log is covered up to here.
    pub(crate) covered: Lsn,
    /// The oldest segment: slots that name an older one are dead.
    pub(crate) head: u32,
    /// Files of keys that expired and left the log, the newest first.
    pub(crate) expired: Vec<Arc<MemoryFile>>,
}

impl Tables {
    pub(crate) fn new(
        list: Vec<Arc<Table>>,
        covered: Lsn,
        head: u32,
        expired: Vec<Arc<MemoryFile>>,
    ) -> Arc<Self> {
        Arc::new(Tables { list, covered, head, expired })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty() && self.expired.is_empty()
    }

    /// Returns the newest memory of a hash that has not passed, for a key that is no longer in the log.
    pub(crate) fn memory_of(&self, hash: KeyHash, now: StoreMillis) -> Result<Option<Memory>> {
        for file in &self.expired {
            let memory = file.find(hash)?.filter(|memory| memory.until() > now);
            if memory.is_some() {
                return Ok(memory);
            }
        }
        Ok(None)
    }

    /// Returns cursors over all slots, the newest table's last.
    pub(crate) fn cursors(&self) -> Vec<EntryCursor<ListedTable>> {
        self.list.iter().rev().map(|table| EntryCursor::new(Arc::clone(table))).collect()
    }

    /// The same over all slots whose hashes have the prefix of that hash or a greater one, and some others before them.
    pub(crate) fn cursors_from(&self, hash: KeyHash) -> Vec<EntryCursor<ListedTable>> {
        let newest_last = self.list.iter().rev();
        newest_last.map(|table| EntryCursor::at(Arc::clone(table), table.home(hash))).collect()
    }

    /// Reads a byte of each bucket that the hashes point to. Most keys are in no table: each table costs a wait for
    /// memory, and the waits of independent reads overlap.
    pub(crate) fn touch(&self, hashes: &[KeyHash]) {
        let touched = self.list.iter().fold(0, |sum, table| sum ^ table.touch(hashes));
        std::hint::black_box(touched);
    }

    /// Returns the places of all slots under a hash, the newest first, except those of removed segments.
    pub(crate) fn find(&self, hash: KeyHash) -> Result<Vec<Spot>> {
        self.touch(&[hash]);
        let mut found = Vec::new();
        for table in &self.list {
            table.find(hash, &mut found)?;
        }
        found.retain(|spot| spot.ordinal >= self.head);
        Ok(found)
    }
}

/// Counts the slots of some tables that a merge keeps: those whose segments are not before `head`. A table's size is
/// fixed before its first slot is written, so a table sized for all slots would be too large by those that the merge
/// drops.
pub(crate) struct Survivors {
    tables: Vec<EntryCursor<ListedTable>>,
    head: u32,
    count: u64,
}

impl Survivors {
    pub(crate) fn new(tables: &[Arc<Table>], head: u32) -> Self {
        let tables = tables.iter().map(|table| EntryCursor::new(Arc::clone(table))).collect();
        Survivors { tables, head, count: 0 }
    }

    /// Checks at most `slots` more slots. Returns the count once all are checked.
    pub(crate) fn advance(&mut self, slots: u64) -> Result<Option<u64>> {
        for _ in 0..slots {
            let Some(cursor) = self.tables.last_mut() else { return Ok(Some(self.count)) };
            let Some(slot) = cursor.peek()? else {
                self.tables.pop();
                continue;
            };
            cursor.advance();
            let is_kept = ListedTable::keeps(&mut self.head, &slot);
            self.count += u64::from(is_kept);
        }
        Ok(None)
    }
}
