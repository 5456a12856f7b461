//! Merges of tables, piece by piece.
//!
//! Promises: a merged table is durable before it is listed; the file of a merge that isn't continued is removed. A table's
//! list of open keys is written last: no crash can open a key that it lacks.

use std::sync::Arc;

use super::Engine;
use super::background::Work;
use super::checkpoint::{TableChange, as_listed};
use crate::index::open::OpenKey;
use crate::index::recent::Recent;
use crate::index::table::Table;
use crate::index::tables::Survivors;
use crate::limits;
use crate::sealed::listed::ListedTable;
use crate::sealed::{Merge, Paged, SealedFile, Writer};
use crate::storage::Failure;
use crate::types::Lsn;
use crate::{Error, Result};

/// A merge of tables under way.
pub(super) struct Merging {
    pub(super) stage: Stage,
    /// The merged tables, the newest first.
    pub(super) of: Vec<Arc<Table>>,
}

pub(super) enum Stage {
    /// Some slots have died with their segments: the remaining ones are counted first.
    Counting(Survivors),
    Writing(Box<Merge<ListedTable>>),
}

/// How far a piece of a merge came.
pub(super) enum Advanced {
    Some(Merging),
    /// Durable, but not listed.
    Done {
        table: Arc<Table>,
        of: Vec<Arc<Table>>,
    },
}

impl Merging {
    /// Drops a merge that no step continues, and removes its file.
    fn discard(self) {
        if let Stage::Writing(merge) = self.stage {
            merge.discard();
        }
    }
}

/// Merges of tables, a part of the engine.
#[derive(Clone, Copy)]
pub(crate) struct Merges<'e>(&'e Engine);

impl std::ops::Deref for Merges<'_> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.0
    }
}

impl Engine {
    pub(crate) fn merges(&self) -> Merges<'_> {
        Merges(self)
    }
}

/// Where the open keys of a table are known from.
#[derive(Clone, Copy)]
pub(super) enum OpenFrom<'a> {
    /// The engine's memory, which has all of them.
    Memory,
    /// The log, read up to the table's end.
    Log(&'a Recent),
}

impl Merges<'_> {
    pub(super) fn merge_to_end(
        &self,
        mut merging: Merging,
        from: OpenFrom<'_>,
    ) -> Result<Arc<Table>> {
        loop {
            match self.advance_merge(merging, from)? {
                Advanced::Done { table, .. } => return Ok(table),
                Advanced::Some(more) => match self.log.may_go_on() {
                    Ok(()) => merging = more,
                    Err(e) => {
                        more.discard();
                        return Err(e);
                    }
                },
            }
        }
    }

    /// Does one piece of a merge. On an error the merge's file is removed.
    pub(super) fn advance_merge(&self, merging: Merging, from: OpenFrom<'_>) -> Result<Advanced> {
        let Merging { stage, of } = merging;
        let stage = match stage {
            Stage::Counting(mut survivors) => match survivors.advance(self.merge_slots())? {
                Some(count) => self.begin_writing_merge(&of, count)?,
                None => Stage::Counting(survivors),
            },
            Stage::Writing(mut merge) => match merge.advance(self.merge_slots()) {
                Ok(true) => {
                    return Ok(Advanced::Done { table: self.finish_table(*merge, from)?, of });
                }
                Ok(false) => Stage::Writing(merge),
                Err(failure) => return Err(self.log.failed(failure)),
            },
        };
        Ok(Advanced::Some(Merging { stage, of }))
    }

    /// Begins to write a table for `slots` slots of `of`, whose first table is the newest.
    fn begin_writing_merge(&self, of: &[Arc<Table>], slots: u64) -> Result<Stage> {
        let from = of.last().map_or(Lsn::ZERO, |oldest| oldest.listed.from);
        let to = of.first().map_or(from, |newest| newest.listed.to);
        let writer = self.create_table(from, to, slots)?;
        let merge = Merge::new(Vec::new(), of, self.tables().head, writer);
        Ok(Stage::Writing(Box::new(merge)))
    }

    /// Returns the slots that one step of a merge moves: no more than memory holds.
    pub(super) fn merge_slots(&self) -> u64 {
        limits::MERGE_SLOTS.min(self.checkpoint_keys as u64)
    }

    pub(super) fn create_table(
        &self,
        from: Lsn,
        to: Lsn,
        slots: u64,
    ) -> Result<Writer<ListedTable>> {
        let (storage, dir) = (&self.log.seams().storage, self.index_dir());
        self.log.check_budget(slots * limits::TABLE_BYTES_PER_KEY)?;
        self.make_dir(&dir)?;
        let empty = ListedTable::empty(self.log.rooms().take_table_number()?, from, to, slots);
        Writer::create(storage, &dir, self.log.store(), empty, self.log.pace())
            .map_err(|e| self.log.failed(e))
    }

    /// Lists the open keys at the end of a table, finishes it, and opens the file.
    fn finish_table(&self, merge: Merge<ListedTable>, from: OpenFrom<'_>) -> Result<Arc<Table>> {
        let writer = merge.into_writer();
        let listed = self.open_keys_of(writer.listed(), from);
        let listed = listed.inspect_err(|_| writer.discard())?;
        self.opened(writer.finish_with(&listed))
    }

    /// Returns the open keys whose newest record a table has. Once it returns, no crash can open another: the records
    /// that ended or moved the others are durable.
    fn open_keys_of(&self, table: ListedTable, from: OpenFrom<'_>) -> Result<Vec<OpenKey>> {
        let (mut open, segments) = (Vec::new(), self.log.reading().segments());
        let known = match from {
            OpenFrom::Memory => {
                // The hints first: one that is found to be open meanwhile goes to memory.
                let mut known = self.hints_in(table.from, table.to);
                known.extend(self.recent.open_in(table.from, table.to));
                self.log.sync()?;
                known
            }
            OpenFrom::Log(read) => read.open_in(table.from, table.to),
        };
        for (hash, place) in known {
            let spot = segments.spot_of(place.lsn()).ok_or_else(|| {
                let what = format_args!("no segment holds lsn {}", place.lsn());
                Error::corrupt(self.log.dir(), 0, what)
            })?;
            open.extend(place.open().map(|state| OpenKey { hash, spot, open: state }));
        }
        OpenKey::sort(&mut open);
        Ok(open)
    }

    /// Finishes a merge of expired keys, and opens the file it has written.
    pub(super) fn finish_merge<L: Paged>(&self, merge: Merge<L>) -> Result<Arc<SealedFile<L>>> {
        self.opened(merge.finish())
    }

    /// Opens a file that was just written.
    fn opened<L: Paged>(&self, written: Result<L, Failure>) -> Result<Arc<SealedFile<L>>> {
        let listed = written.map_err(|failure| self.log.failed(failure))?;
        let (storage, dir) = (&*self.log.seams().storage, self.log.dir().join(L::DIR));
        let file = SealedFile::open(storage, &dir, listed, self.log.store(), self.log.maps());
        if file.is_err() {
            self.remove_files(&[listed]);
        }
        file.map(Arc::new)
    }

    /// Discards the merge under way.
    pub(super) fn give_up_merge(&self, work: &mut Work) {
        if let Some(merging) = work.merge.take() {
            merging.discard();
        }
    }

    /// Discards the merge under way if its tables are no longer listed, because they died with their segments or were
    /// merged.
    pub(super) fn drop_stale_merge(&self, work: &mut Work) {
        let tables = self.tables();
        let is_there =
            |table: &Arc<Table>| tables.list.iter().any(|other| Arc::ptr_eq(table, other));
        let is_stale = |merging: &mut Merging| !merging.of.iter().all(is_there);
        if let Some(merging) = work.merge.take_if(is_stale) {
            merging.discard();
        }
    }

    pub(super) fn begin_merge(&self, work: &Work) -> Result<Option<Merging>> {
        let tables = self.tables();
        let mut listed = as_listed(&tables.list);
        // Tables younger than an unreadable one are merged among themselves, or their number would grow without
        // bound.
        let whole = listed.iter().take_while(|table| !work.unmendable.contains(&table.number));
        listed.truncate(whole.count());
        let (due, _) = tables.list.split_at(merge_due(&listed));
        self.begin_merge_of(due)
    }

    pub(super) fn begin_merge_of(&self, of: &[Arc<Table>]) -> Result<Option<Merging>> {
        if of.is_empty() {
            return Ok(None);
        }
        let head_base = self.log.head_base();
        let stage = if of.iter().any(|table| table.listed.from < head_base) {
            Stage::Counting(Survivors::new(of, self.tables().head))
        } else {
            self.begin_writing_merge(of, of.iter().map(|table| table.listed.slots).sum())?
        };
        Ok(Some(Merging { stage, of: of.to_vec() }))
    }

    /// See [`Store::merge_index`](crate::Store::merge_index).
    pub(crate) fn merge_index(&self) -> Result<()> {
        let _inside = self.enter()?;
        let merge = || {
            self.begin_writing()?;
            self.merge_all()
        };
        merge().map_err(|e| self.log.explained(e))
    }

    /// Seals what memory holds and merges all tables into one.
    pub(super) fn merge_all(&self) -> Result<()> {
        let mut work = self.work.lock();
        self.give_up_merge(&mut work);
        self.checkpoint(&mut work)?;
        loop {
            let tables = self.tables();
            if tables.list.len() < 2 {
                return Ok(());
            }
            let Some(merging) = self.begin_merge_of(&tables.list)? else { return Ok(()) };
            match self.merge_to_end(merging, OpenFrom::Memory) {
                Err(e) if self.mending().names_table(&e) => self.mending().mend(&mut work, e)?,
                merged => {
                    let change =
                        TableChange { replaced: as_listed(&tables.list), by: vec![merged?] };
                    return self.switch_index(&change);
                }
            }
        }
    }
}

/// Returns how many of the newest tables are to be merged into one, or 0. `listed` has the newest first.
pub(super) fn merge_due(listed: &[ListedTable]) -> usize {
    let (mut newer, mut due) = (0_u64, 0);
    for (index, table) in listed.iter().enumerate() {
        if index > 0 && table.slots <= newer {
            due = index + 1;
        }
        newer += table.slots;
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Lsn;

    #[test]
    fn tables_merge_like_the_digits_of_a_counter() {
        let listed = |slots| ListedTable {
            number: 1,
            from: Lsn::ZERO,
            to: Lsn::ZERO,
            slots,
            homes: 1,
            buckets: 1,
            open: 0,
        };
        let due = |slots: &[u64]| merge_due(&slots.iter().map(|n| listed(*n)).collect::<Vec<_>>());
        assert_eq!(due(&[]), 0);
        assert_eq!(due(&[10]), 0);
        assert_eq!(due(&[10, 11]), 0);
        assert_eq!(due(&[10, 10]), 2);
        assert_eq!(due(&[10, 40, 50]), 3);
        assert_eq!(due(&[10, 40, 51]), 0);
        assert_eq!(due(&[10, 5, 100]), 2);
        // A store that seals a thousand keys at a time never has many tables.
        let mut tables: Vec<u64> = Vec::new();
        let (mut most, mut rewritten) = (0, 0);
        for _ in 0..1000 {
            tables.insert(0, 1000);
            let merged = due(&tables);
            if merged > 0 {
                let sum: u64 = tables.drain(..merged).sum();
                rewritten += sum;
                tables.insert(0, sum);
            }
            most = most.max(tables.len());
        }
        assert!(most <= 10 && rewritten <= 10_000_000, "{most} tables, {rewritten} rewritten");
    }
}
