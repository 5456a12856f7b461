//! Seals the keys in memory into tables, and switches from the listed tables to others.
//!
//! Promises: a table covers only durable records; it is listed by one manifest switch, and only then do the entries
//! it holds leave memory, in the same step in which lookups begin to use it; a crash at any point leaves the tables
//! of one manifest, and unlisted files. Claims and completions continue meanwhile: none of their locks is held longer
//! than it takes to copy or drop a shard's entries. Never: decides which record of a key is the newest; the order of
//! positions does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Engine;
use super::background::Work;
use super::mend::is_damage;
use super::merge::{Merging, OpenFrom, Stage};
use super::sample::Alive;
use crate::index::table::{Slot, Table};
use crate::index::tables::{Survivors, Tables};
use crate::limits;
use crate::manifest::Manifest;
use crate::remembered::MemoryFile;
use crate::sealed::Merge;
use crate::sealed::listed::{ListedFile, ListedMemories, ListedTable};
use crate::storage::Failure;
use crate::sync::Ordering;
use crate::types::{KeyHash, Lsn, StoreMillis};
use crate::{Error, Result};

/// Durable tables that are not listed yet, and the tables they replace.
pub(super) struct TableChange {
    pub(super) replaced: Vec<ListedTable>,
    /// The oldest first.
    pub(super) by: Vec<Arc<Table>>,
}

impl TableChange {
    fn replaces(&self, listed: &ListedTable) -> bool {
        self.replaced.iter().any(|replaced| replaced.number == listed.number)
    }

    /// Updates the manifest's list.
    pub(super) fn apply(&self, manifest: &mut Manifest) {
        let tables = &mut manifest.tables;
        // The position of the first replaced table, or the end.
        let at = tables.iter().take_while(|listed| !self.replaces(listed)).count();
        tables.retain(|listed| !self.replaces(listed));
        tables.splice(at..at, self.by.iter().map(|table| table.listed));
        manifest.covered = tables.last().map_or(manifest.covered, |last| last.to);
    }

    /// The same for the list that lookups use.
    fn tables(&self, old: &Tables) -> Arc<Tables> {
        let kept = old.list.iter().filter(|table| !self.replaces(&table.listed));
        let mut list: Vec<_> = kept.chain(&self.by).cloned().collect();
        list.sort_by_key(|table| std::cmp::Reverse(table.listed.to));
        let covered = list.first().map_or(old.covered, |newest| newest.listed.to);
        Tables::new(list, covered, old.head, old.expired.clone())
    }
}

/// When a checkpoint was made, and the live bytes then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checkpointed {
    pub(crate) now: StoreMillis,
    pub(crate) offset: i64,
    pub(crate) sample: Option<Sample>,
}

/// The live bytes by a sample, and the length of the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    at_millis: u64,
    pub(crate) log_bytes: u64,
    pub(crate) alive: Alive,
}

pub(super) fn as_listed(tables: &[Arc<Table>]) -> Vec<ListedTable> {
    tables.iter().map(|table| table.listed).collect()
}

impl Engine {
    pub(super) fn expired_dir(&self) -> PathBuf {
        self.log.dir().join(ListedMemories::DIR)
    }

    pub(super) fn index_dir(&self) -> PathBuf {
        self.log.dir().join(ListedTable::DIR)
    }

    /// Whether the background has work on the index that can't wait until it checks by itself.
    pub(crate) fn is_checkpoint_due(&self) -> bool {
        let since = self.log.bytes_since(self.tables.lock().covered);
        // Claims in flight stay in memory: they alone are no reason for another checkpoint.
        let new = since / limits::RECORD_BYTES_LEAST;
        since >= limits::CHECKPOINT_BYTES
            || (new >= self.checkpoint_keys as u64 && self.recent.len() >= self.checkpoint_keys)
    }

    /// Seals the keys in memory, lists the table, and drops the entries. Durable on return. Returns whether there
    /// were any.
    pub(super) fn checkpoint(&self, work: &mut Work) -> Result<bool> {
        let _span = self.log.events.checkpointing();
        let began = self.nanos();
        let Some(change) = self.seal()? else { return Ok(false) };
        self.switch_index(&change)?;
        self.log.events.checkpointed(self.nanos() - began);
        // The new table may have absorbed one that was being merged.
        self.merges().drop_stale_merge(work);
        let (now, sample) = (self.log.now(), self.sample());
        *self.checkpointed.lock() =
            Some(Checkpointed { now, offset: self.wall_offset(now), sample });
        Ok(true)
    }

    /// Returns a sample for a checkpoint: the last one's, if that is recent. Where checkpoints follow each other
    /// fast, a sample's reads all over the log cost claims more than the tables do.
    fn sample(&self) -> Option<Sample> {
        let at_millis = self.log.seams().clock.monotonic_nanos() / 1_000_000;
        let log_bytes = self.log.bytes_since(Lsn::ZERO);
        let last = self.last_checkpoint().and_then(|last| last.sample).filter(|last| {
            at_millis - last.at_millis < limits::SAMPLE_MILLIS
                && log_bytes.abs_diff(last.log_bytes) <= log_bytes / 8
        });
        last.or_else(|| {
            self.sampling().estimate().ok().map(|alive| Sample { at_millis, log_bytes, alive })
        })
    }

    /// Returns the last checkpoint since the open.
    pub(crate) fn last_checkpoint(&self) -> Option<Checkpointed> {
        *self.checkpointed.lock()
    }

    /// Writes a table of all keys in memory that no table covers yet. Durable on return, but not listed.
    pub(super) fn seal(&self) -> Result<Option<TableChange>> {
        let tables = self.tables();
        let (from, to) = (tables.covered, self.log.end());
        let entries = self.recent.between(from, to);
        if entries.is_empty() {
            return Ok(None);
        }
        // Synced after the entries were copied: a record that replaced one of them is covered, too, so that no crash
        // can bring the older one back.
        self.log.sync()?;
        let small = absorbed(&tables, entries.len() as u64, self.merges().merge_slots());
        if tables.list.len() - small.len() >= limits::TABLES_MAX {
            // No open would accept a longer list. Merges make it shorter.
            return Ok(None);
        }
        let slots = self.slots_of(entries)?;
        if small.is_empty() {
            return self.write_table(from, to, slots, small, OpenFrom::Memory).map(Some);
        }
        match self.write_table(from, to, slots.clone(), small, OpenFrom::Memory) {
            // One of the small ones can't be read: it stays until it is mended.
            Err(e) if is_damage(&e) => {
                self.write_table(from, to, slots, Vec::new(), OpenFrom::Memory).map(Some)
            }
            other => other.map(Some),
        }
    }

    /// Converts entries to a table's slots. Both have the same size, so this allocates nothing.
    pub(super) fn slots_of(&self, entries: Vec<(KeyHash, Lsn)>) -> Result<Vec<Slot>> {
        let segments = self.log.reading().segments();
        let slot = |(hash, lsn)| {
            let spot = segments.spot_of(lsn).ok_or_else(|| {
                Error::corrupt(self.log.dir(), 0, format_args!("no segment holds lsn {lsn}"))
            })?;
            Ok(Slot::new(hash, spot))
        };
        entries.into_iter().map(slot).collect()
    }

    /// Writes a table of `slots`, whose records lie in `from..to`, and of the slots of `absorbed`, the tables before.
    pub(super) fn write_table(
        &self,
        from: Lsn,
        to: Lsn,
        slots: Vec<Slot>,
        absorbed: Vec<Arc<Table>>,
        open: OpenFrom<'_>,
    ) -> Result<TableChange> {
        let mut survivors = Survivors::new(&absorbed, self.tables().head);
        let old = loop {
            // The absorbed tables are small.
            if let Some(count) = survivors.advance(self.merges().merge_slots())? {
                break count;
            }
        };
        let from = absorbed.last().map_or(from, |oldest| oldest.listed.from);
        let writer = self.merges().create_table(from, to, old + slots.len() as u64)?;
        let merge = Merge::new(slots, &absorbed, self.tables().head, writer);
        let merging = Merging { stage: Stage::Writing(Box::new(merge)), of: absorbed.clone() };
        let table = self.merges().merge_to_end(merging, open)?;
        Ok(TableChange { replaced: as_listed(&absorbed), by: vec![table] })
    }

    /// Makes a directory of the store, if there is none. Durable on return.
    pub(super) fn make_dir(&self, dir: &Path) -> Result<()> {
        self.log.rooms().check_standing()?;
        let storage = &self.log.seams().storage;
        let made = match storage.create_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.is_file(dir) => {
                storage.remove(dir).and_then(|()| storage.create_dir(dir))
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        made.map_err(|e| Error::io("creating", dir, e))?;
        // Also if it existed: the process that made it may have ended before it was durable.
        let synced = storage.sync_dir(self.log.dir());
        let failed = |e| Failure::Poison(Error::io("syncing", self.log.dir(), e));
        synced.map_err(|e| self.log.failed(failed(e)))
    }

    /// Whether a file is in a directory's place.
    fn is_file(&self, dir: &Path) -> bool {
        let listed = self.log.seams().storage.list(dir);
        listed.is_err_and(|e| e.kind() == io::ErrorKind::NotADirectory)
    }

    /// Lists the change, and makes lookups use it.
    pub(super) fn switch_index(&self, change: &TableChange) -> Result<()> {
        let listed = self.log.rooms().list_tables(|manifest| change.apply(manifest));
        if let Err(e) = listed {
            if !self.log.is_poisoned() {
                self.remove_files(&as_listed(&change.by));
            }
            return Err(e);
        }
        self.install(change);
        Ok(())
    }

    /// Makes lookups use a listed change, and removes the files it replaces; readers of these can continue.
    pub(super) fn install(&self, change: &TableChange) {
        let new = {
            let mut tables = self.tables.lock();
            *tables = change.tables(&tables);
            Arc::clone(&tables)
        };
        self.recent.install(&new, Lsn::ZERO);
        self.count_bytes(&new);
        self.remove_files(&change.replaced);
    }

    /// Makes lookups ignore the segments before `head`, which the manifest no longer lists and which are about to be
    /// removed. `expired` holds their remembered keys.
    pub(super) fn install_head(&self, head_base: Lsn, head: u32, expired: Vec<Arc<MemoryFile>>) {
        let (new, old) = {
            let mut tables = self.tables.lock();
            let is_kept = |table: &&Arc<Table>| table.listed.to > head_base;
            let kept = tables.list.iter().filter(is_kept).cloned().collect();
            let new = Tables::new(kept, tables.covered, head, expired);
            (Arc::clone(&new), std::mem::replace(&mut *tables, new))
        };
        self.recent.install(&new, head_base);
        self.count_bytes(&new);
        let mut dead = as_listed(&old.list);
        dead.retain(|table| table.to <= head_base);
        self.remove_files(&dead);
        self.compaction().remove_expired(&old.expired, &new.expired);
    }

    pub(super) fn count_bytes(&self, tables: &Tables) {
        let sealed = tables.list.iter().map(|table| table.listed.bytes());
        let expired = tables.expired.iter().map(|file| file.listed.bytes());
        let bytes = sealed.chain(expired).sum();
        self.log.index_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove_files<L: ListedFile>(&self, files: &[L]) {
        for file in files {
            // If it stays, the next open removes it: no manifest lists it.
            let path = self.log.dir().join(L::DIR).join(L::file_name(file.number()));
            let _ = self.log.seams().storage.remove(&path);
        }
    }
}

/// Returns the newest tables that are so small, at most `most` slots each, that a new one of `slots` absorbs them at
/// once: otherwise a store that is opened and closed repeatedly would have one for each time.
fn absorbed(tables: &Tables, slots: u64, most: u64) -> Vec<Arc<Table>> {
    let (mut sum, mut count) = (slots, 0);
    for (index, table) in tables.list.iter().enumerate() {
        if table.listed.slots > sum || table.listed.slots > most {
            break;
        }
        sum += table.listed.slots;
        count = index + 1;
    }
    tables.list.iter().take(count).cloned().collect()
}
