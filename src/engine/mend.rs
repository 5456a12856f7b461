//! Rebuilds tables from the log, which contains everything that is in them: damaged and missing tables, or all on
//! request.
//!
//! Promises: a table is replaced by one manifest switch; a table that can't be rebuilt is tried once.

use std::path::Path;
use std::sync::Arc;

use super::background::Work;
use super::checkpoint::{TableChange, as_listed};
use super::merge::{OpenFrom, merge_due};
use super::{Engine, rebuild};
use crate::index::recent::Recent;
use crate::index::table::Table;
use crate::index::tables::Tables;
use crate::limits;
use crate::log::open::steps::Earlier;
use crate::manifest::Manifest;
use crate::record::Record;
use crate::remembered::MemoryFile;
use crate::sealed::listed::{ListedFile as _, ListedMemories, ListedTable};
use crate::storage::Storage;
use crate::sync::Ordering;
use crate::types::Lsn;
use crate::{Error, ErrorKind, Result};

/// Tables that an open must make before it answers any call.
pub(super) struct Lacking {
    /// Damaged or missing tables that memory can't replace.
    pub(super) damaged: Vec<ListedTable>,
    /// Start of the part of the log that no table covers, if it holds more keys than memory may.
    pub(super) uncovered: Option<Lsn>,
}

/// Opens the listed tables. Returns the whole ones, the newest first, and those that are damaged or missing: they
/// must be made again before any call is answered. If memory can hold, by `memory_keys`, the keys of all tables from
/// the oldest of these on, those are dropped and nothing is written: the open reads that part of the log again, and
/// memory replaces them until it is sealed.
pub(super) fn open_tables(
    storage: &dyn Storage,
    dir: &Path,
    map: bool,
    memory_keys: usize,
    manifest: &mut Manifest,
) -> Result<(Arc<Tables>, Vec<ListedTable>)> {
    let index_dir = dir.join(ListedTable::DIR);
    let mut list = Vec::with_capacity(manifest.tables.len());
    let mut damaged = Vec::new();
    for listed in &manifest.tables {
        let opened = Table::open(storage, &index_dir, *listed, manifest.store, map);
        // Its list of open keys is needed, too.
        match opened.and_then(|table| table.all_open_keys().map(|_| table)) {
            Ok(table) => list.insert(0, Arc::new(table)),
            Err(e) if is_damage(&e) => damaged.push(*listed),
            Err(e) => return Err(e),
        }
    }
    if let Some(from) = damaged.first().map(|oldest| oldest.from) {
        let newer = manifest.tables.iter().filter(|listed| listed.from >= from);
        if newer.map(|listed| listed.slots).sum::<u64>() <= memory_keys as u64 {
            manifest.covered = from;
            manifest.tables.retain(|listed| listed.from < from);
            list.retain(|table| table.listed.from < from);
            damaged.clear();
        }
    }
    let head = manifest.segments.first().map_or(0, |listed| listed.ordinal);
    let expired_dir = dir.join(ListedMemories::DIR);
    let mut expired = Vec::with_capacity(manifest.expired.len());
    for listed in manifest.expired.iter().rev() {
        // The log can't make them again, so a damaged one is a loss.
        let file = MemoryFile::open(storage, &expired_dir, *listed, manifest.store, map)?;
        expired.push(Arc::new(file));
    }
    Ok((Tables::new(list, manifest.covered, head, expired), damaged))
}

/// Whether an error means that a table is damaged or can't be read at all. The log holds everything in it.
pub(super) fn is_damage(error: &Error) -> bool {
    error.kind() == ErrorKind::Corrupt || error.is_by_device()
}

/// Mending of tables, a part of the engine.
#[derive(Clone, Copy)]
pub(crate) struct Mending<'e>(&'e Engine);

impl std::ops::Deref for Mending<'_> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.0
    }
}

impl Engine {
    pub(crate) fn mending(&self) -> Mending<'_> {
        Mending(self)
    }
}

impl Mending<'_> {
    /// Whether an error is about a table in use.
    pub(super) fn names_table(&self, error: &Error) -> bool {
        self.tables().list.iter().any(|table| Some(table.path()) == error.path())
    }

    /// Makes a damaged table that a lookup found again from the log. Returns the error if that fails.
    pub(super) fn heal(&self, error: Error) -> Result<()> {
        let mut work = self.work.lock();
        if self.log.is_poisoned() {
            return Err(error);
        }
        if !self.log.is_writing() {
            self.begin_writing()?;
        }
        self.mend(&mut work, error)
    }

    pub(super) fn mend(&self, work: &mut Work, error: Error) -> Result<()> {
        let tables = self.tables();
        let is_bad = |table: &&Arc<Table>| Some(table.path()) == error.path();
        let Some(bad) = tables.list.iter().find(is_bad) else {
            // Another thread has mended it.
            return Ok(());
        };
        let number = bad.listed.number;
        self.log.may_go_on()?;
        if work.unmendable.contains(&number) {
            return Err(error);
        }
        self.merges().give_up_merge(work);
        if let Err(e) = self.make_again(&[bad.listed]) {
            if e.kind() == ErrorKind::Corrupt {
                work.unmendable.insert(number);
            }
            return Err(e.because(error));
        }
        self.mended.fetch_add(1, Ordering::Relaxed);
        self.log.events.mended(&error);
        Ok(())
    }

    /// Makes consecutive tables again from the log, as one table, and lists it.
    fn make_again(&self, tables: &[ListedTable]) -> Result<()> {
        self.switch_index(&self.made_again(tables)?)
    }

    /// Makes consecutive tables again from the log, as one table. Durable on return, but not listed.
    fn made_again(&self, tables: &[ListedTable]) -> Result<TableChange> {
        let mut change = TableChange { replaced: tables.to_vec(), by: Vec::new() };
        let (from, to) = (
            tables.iter().map(|table| table.from).min(),
            tables.iter().map(|table| table.to).max(),
        );
        let (Some(from), Some(to)) = (from, to) else { return Ok(change) };
        let made = self.rebuild(from, to, &mut change.by);
        if made.is_err() {
            self.remove_files(&as_listed(&change.by));
        }
        made.map(|()| change)
    }

    /// Makes the tables that an open lacks: each one that it could not use, and one for the part of the log that none
    /// covers, if that is more than memory may hold.
    pub(super) fn make_all(&self, lacking: &Lacking) -> Result<()> {
        if lacking.damaged.is_empty() && lacking.uncovered.is_none() {
            return Ok(());
        }
        // All are made before the log is written: an open that finds too little space must change nothing, because
        // the next one needs the space that is kept for a fork.
        let mut changes = Vec::with_capacity(lacking.damaged.len());
        let mut made = Ok(());
        for table in &lacking.damaged {
            made =
                made.and_then(|()| self.made_again(&[*table]).map(|change| changes.push(change)));
        }
        if let Some(from) = lacking.uncovered {
            made = made.and_then(|()| {
                changes.extend(self.sealed_as_read(from)?);
                Ok(())
            });
        }
        if made.is_ok() && !self.log.is_writing() {
            made = self.begin_writing();
        }
        for change in &changes {
            match made {
                Ok(()) => made = self.switch_index(change),
                // They take space that the log needs to continue.
                Err(_) => self.remove_files(&as_listed(&change.by)),
            }
        }
        made
    }

    /// Makes a table of the log from `from` on, which is too much for memory. It covers only records that are durable
    /// in place; the few after them go into memory. Durable on return, but not listed.
    fn sealed_as_read(&self, from: Lsn) -> Result<Option<TableChange>> {
        let to = self.log.settled_end();
        let mut visit = |record: &Record<'_>, earlier: &Earlier<'_>| {
            rebuild::take_in(&self.recent, &self.hasher, self.log.dir(), record, earlier).map(drop)
        };
        self.log.reading().walk(to, self.log.end(), &mut visit)?;
        if to <= from {
            return Ok(None);
        }
        if self.tables().list.len() >= limits::TABLES_MAX {
            // No open would accept a longer list. Merges make it shorter.
            let message = "the index has as many tables as it may";
            return Err(Error::new(ErrorKind::StorageFull, message).at(&self.index_dir()));
        }
        let mut by = Vec::new();
        let made = self.rebuild(from, to, &mut by);
        if made.is_err() {
            self.remove_files(&as_listed(&by));
        }
        made.map(|()| Some(TableChange { replaced: Vec::new(), by }))
    }

    /// Makes all tables again from the log, as one table.
    pub(crate) fn rebuild_index(&self) -> Result<()> {
        let _inside = self.enter()?;
        let rebuild = || {
            self.begin_writing()?;
            let mut work = self.work.lock();
            self.log.may_go_on()?;
            self.merges().give_up_merge(&mut work);
            self.make_again(&as_listed(&self.tables().list))
        };
        rebuild().map_err(|e| self.log.explained(e))
    }

    /// Makes a table for the records in `from..to`: in pieces, so that memory is bounded, which are merged as they
    /// are made, so that they stay few. On an error the caller removes the pieces in `by`.
    fn rebuild(&self, from: Lsn, to: Lsn, by: &mut Vec<Arc<Table>>) -> Result<()> {
        let none = Tables::new(Vec::new(), Lsn::ZERO, 0, Vec::new());
        // Keeps the open keys of all pieces, and the others of one.
        let (piece, mut piece_from) = (Recent::new(&none), from);
        let mut keys = 0;
        let mut visit = |record: &Record<'_>, earlier: &Earlier<'_>| {
            self.log.may_go_on()?;
            if keys >= self.checkpoint_keys {
                keys = 0;
                self.write_piece(&piece, piece_from, record.lsn, by)?;
                piece_from = record.lsn;
                piece.drop_ended();
                let mut newest_first = as_listed(by);
                newest_first.reverse();
                self.merge_pieces(by, merge_due(&newest_first), &piece)?;
            }
            keys += 1;
            rebuild::take_in(&piece, &self.hasher, self.log.dir(), record, earlier).map(drop)
        };
        self.log.reading().walk(from, to, &mut visit)?;
        self.write_piece(&piece, piece_from, to, by)?;
        self.merge_pieces(by, by.len(), &piece)
    }

    /// Writes a table of what was read in `from..to`.
    fn write_piece(
        &self,
        read: &Recent,
        from: Lsn,
        to: Lsn,
        by: &mut Vec<Arc<Table>>,
    ) -> Result<()> {
        let slots = self.slots_of(read.between(from, to))?;
        let change = self.write_table(from, to, slots, Vec::new(), OpenFrom::Log(read))?;
        by.extend(change.by);
        Ok(())
    }

    /// Merges the last `count` of unlisted tables, whose open keys are in `read`.
    fn merge_pieces(&self, by: &mut Vec<Arc<Table>>, count: usize, read: &Recent) -> Result<()> {
        if count < 2 {
            return Ok(());
        }
        let first = by.len() - count;
        let of: Vec<_> = by.iter().skip(first).rev().cloned().collect();
        let Some(merging) = self.merges().begin_merge_of(&of)? else { return Ok(()) };
        let merged = self.merges().merge_to_end(merging, OpenFrom::Log(read))?;
        self.remove_files(&as_listed(&of));
        by.truncate(first);
        by.push(merged);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::Sim;
    use crate::{Operation, Store};

    /// A lookup found a rotten table and waited for its turn to mend it, until the store was closed. The files may
    /// belong to the next open: they must not even be read.
    #[test]
    fn mending_after_a_close_does_not_touch_the_directory() {
        let sim = Sim::new(1);
        let builder = || Store::builder().segment_bytes(16 << 10).result_bytes_max(256);
        let store = sim.open_with(builder()).unwrap();
        for n in 0..300_u64 {
            assert!(store.mark(Operation::new(n)).unwrap().is_first());
        }
        store.merge_index().unwrap();
        let engine = store.engine();
        store.clone().close(Duration::ZERO).unwrap();
        let rotten = engine.tables().list[0].path().to_owned();
        let met = || Error::corrupt(&rotten, 0, "a bad bucket");
        assert!(engine.mending().names_table(&met()));
        let calls = sim.calls();
        let told =
            [engine.mending().heal(met()), engine.mending().mend(&mut engine.work.lock(), met())];
        assert_eq!(told.map(|told| told.map_err(|e| e.kind())), [Err(ErrorKind::Closed); 2]);
        assert_eq!(sim.calls(), calls);
        assert_eq!(engine.mended.load(Ordering::Relaxed), 0);
        drop(store);
        let store = sim.open_with(builder()).unwrap();
        assert!((0..300_u64).all(|n| store.get(n).unwrap().is_some()));
    }
}
