//! Writing a table: from memory, or from older tables merged into one.
//!
//! Promises: sequential writes, and on return of `finish` a durable file that no manifest lists yet; a crash before
//! leaves a file without consequence. The header is written last. Merging reads no record and decides nothing but which
//! segments are gone: a slot dies with its segment, so nothing that a younger slot hides can come back.

use std::path::Path;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::table::{Bucket, Cursor, Slot, Table, home_of, seed_of};
use crate::Result;
use crate::limits;
use crate::sealed::listed::{ListedFile, ListedTable, SLOTS};
use crate::sealed::{self, Pace, Stopped};
use crate::storage::{Failure, Storage};
use crate::types::{Lsn, StoreId};

/// What a table about to be written is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    pub(crate) number: u32,
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    /// At least as many as will be pushed, and better no more.
    pub(crate) slots: u64,
}

/// A table that is being written. Slots are pushed in order.
pub(crate) struct Writer {
    file: sealed::Writer,
    store: StoreId,
    seed: u32,
    /// `slots` and `buckets` count what was written.
    listed: ListedTable,
    /// The bucket being filled, whose number is `listed.buckets`.
    bucket: Vec<Slot>,
}

impl Writer {
    pub(crate) fn create(
        storage: &Arc<dyn Storage>,
        index_dir: &Path,
        store: StoreId,
        plan: Plan,
        pace: Pace,
    ) -> Result<Self, Failure> {
        let path = index_dir.join(ListedTable::file_name(plan.number));
        let file = sealed::Writer::create(storage, path, ListedTable::HEADER_BYTES, pace)?;
        let homes = (plan.slots.saturating_mul(10) / limits::TABLE_KEYS_PER_TEN_BUCKETS).max(1);
        let listed = ListedTable {
            number: plan.number,
            from: plan.from,
            to: plan.to,
            slots: 0,
            homes,
            buckets: 0,
        };
        let seed = seed_of(store, plan.number);
        Ok(Writer { file, store, seed, listed, bucket: Vec::with_capacity(SLOTS) })
    }

    /// Adds a slot, whose rank is above those of all before.
    pub(crate) fn push(&mut self, slot: Slot) -> Result<(), Failure> {
        let home = home_of(slot.prefix, self.listed.homes);
        while self.listed.buckets < home || self.bucket.len() == SLOTS {
            self.end_bucket()?;
        }
        self.bucket.push(slot);
        self.listed.slots = self.listed.slots.saturating_add(1);
        Ok(())
    }

    fn end_bucket(&mut self) -> Result<(), Failure> {
        let bucket = Bucket::of(&self.bucket, self.listed.buckets, self.seed);
        self.bucket.clear();
        self.listed.buckets = self.listed.buckets.saturating_add(1);
        self.file.append(bucket.as_bytes())
    }

    /// Ends the table. Durable on return, its name included.
    pub(crate) fn finish(mut self) -> Result<ListedTable, Failure> {
        while !self.bucket.is_empty() || self.listed.buckets < self.listed.homes {
            self.end_bucket()?;
        }
        self.file.finish(&self.listed.encode(self.store))?;
        Ok(self.listed)
    }
}

/// Counts the slots of some tables whose segments are not before `head`: those that a merge keeps. A table's size is fixed
/// before its first slot is written, so one that was made for all would be too large by what dies in the merge.
pub(crate) struct Survivors {
    tables: Vec<Cursor>,
    head: u32,
    count: u64,
}

impl Survivors {
    pub(crate) fn new(tables: &[Arc<Table>], head: u32) -> Self {
        let tables = tables.iter().map(|table| Cursor::new(Arc::clone(table))).collect();
        Survivors { tables, head, count: 0 }
    }

    /// Looks at `slots` more of them at most. Gives their number once it has seen all.
    pub(crate) fn advance(&mut self, slots: u64) -> Result<Option<u64>> {
        for _ in 0..slots {
            let Some(cursor) = self.tables.last_mut() else { return Ok(Some(self.count)) };
            let Some(slot) = cursor.peek()? else {
                self.tables.pop();
                continue;
            };
            cursor.advance();
            self.count = self.count.saturating_add(u64::from(slot.spot.ordinal >= self.head));
        }
        Ok(None)
    }
}

/// Slots from memory and several tables, on their way to be one table.
pub(crate) struct Merge {
    /// In order.
    memory: std::iter::Peekable<std::vec::IntoIter<Slot>>,
    tables: Vec<Cursor>,
    /// Slots of older segments are left out.
    head: u32,
    writer: Writer,
}

impl Merge {
    pub(crate) fn new(
        mut memory: Vec<Slot>,
        tables: &[Arc<Table>],
        head: u32,
        writer: Writer,
    ) -> Self {
        memory.sort_unstable_by_key(Slot::rank);
        let tables = tables.iter().map(|table| Cursor::new(Arc::clone(table))).collect();
        Merge { memory: memory.into_iter().peekable(), tables, head, writer }
    }

    /// Merges at most `slots` more of them. Whether all are.
    pub(crate) fn advance(&mut self, slots: u64) -> Result<bool, Stopped> {
        for _ in 0..slots {
            let mut least = self.memory.peek().map(|slot| (usize::MAX, *slot));
            for (index, cursor) in self.tables.iter_mut().enumerate() {
                let Some(slot) = cursor.peek().map_err(Stopped::Reading)? else { continue };
                if least.is_none_or(|(_, least)| slot.rank() < least.rank()) {
                    least = Some((index, slot));
                }
            }
            let Some((index, slot)) = least else { return Ok(true) };
            match self.tables.get_mut(index) {
                Some(cursor) => cursor.advance(),
                None => drop(self.memory.next()),
            }
            if slot.spot.ordinal >= self.head {
                self.writer.push(slot).map_err(Stopped::Writing)?;
            }
        }
        Ok(false)
    }

    /// See [`Writer::finish`].
    pub(crate) fn finish(self) -> Result<ListedTable, Failure> {
        self.writer.finish()
    }

    /// Gives up: what was written goes.
    pub(crate) fn discard(self) {
        self.writer.file.discard();
    }
}
