//! Sealing what memory holds into tables, merging tables, and mending them from the log.
//!
//! Promises: a table reaches no further than what is durable; it is listed by one manifest switch, and only then do the
//! entries it holds leave memory, in the same step in which lookups learn of it; a crash anywhere leaves the tables of
//! one manifest, and unlisted files. Claims and completions continue meanwhile: no lock of theirs is held longer
//! than it takes to copy or drop a shard's entries. Never: decides which record of a key is the newest; the order of
//! positions says that.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::compact::{Alive, Compacting, LiveEstimate, Pass, Turns};
use super::{Engine, rebuild};
use crate::index::recent::Recent;
use crate::index::table::{Slot, Table};
use crate::index::tables::{Survivors, Tables, merge_due};
use crate::limits;
use crate::log::Due;
use crate::log::open::recovery::Earlier;
use crate::manifest::Manifest;
use crate::record::Record;
use crate::remembered::MemoryFile;
use crate::sealed::listed::{ListedFile, ListedMemories, ListedTable};
use crate::sealed::{Merge, Paged, SealedFile, Writer};
use crate::storage::{Failure, Storage};
use crate::sync::Ordering;
use crate::types::{KeyHash, Lsn, StoreMillis};
use crate::{Error, ErrorKind, Result};

/// What the background remembers of its work on the index. One party at a time.
#[derive(Default)]
pub(super) struct Work {
    merge: Option<Merging>,
    pub(super) compacting: Option<Compacting>,
    /// Where calls of `compact` that ran out of budget are to come to.
    pub(super) compact_until: Option<Lsn>,
    /// Calls of `compact` under way: the background leaves reclaim to them.
    pub(super) compact_calls: u32,
    pub(super) estimate: Option<LiveEstimate>,
    /// What goes through all of the log, in the background.
    pub(super) pass: Option<Pass>,
    pub(super) turns: Turns,
    /// Numbers of tables that can't be made again, for the log is damaged, too. Nobody tries that a second time: each
    /// try reads the log of all its keys and writes as much.
    unmendable: BTreeSet<u32>,
    has_swept: bool,
}

/// Tables on their way to be one.
struct Merging {
    stage: Stage,
    /// The tables that go into it, the newest first.
    of: Vec<Arc<Table>>,
}

enum Stage {
    /// Some slots have died with their segments: those that are left are counted first.
    Counting(Survivors),
    Writing(Box<Merge<ListedTable>>),
}

/// How far a piece of a merge came.
enum Advanced {
    Some(Merging),
    /// Durable, but not listed.
    Done {
        table: Arc<Table>,
        of: Vec<Arc<Table>>,
    },
}

impl Merging {
    /// No step continues it.
    fn discard(self) {
        if let Stage::Writing(merge) = self.stage {
            merge.discard();
        }
    }
}

/// Tables that are durable and not listed yet, and those they stand in for.
pub(super) struct Change {
    replaced: Vec<ListedTable>,
    /// The oldest first.
    by: Vec<Arc<Table>>,
}

impl Change {
    fn replaces(&self, listed: &ListedTable) -> bool {
        self.replaced.iter().any(|replaced| replaced.number == listed.number)
    }

    /// Brings the manifest's list up to date.
    pub(super) fn apply(&self, manifest: &mut Manifest) {
        let tables = &mut manifest.tables;
        // Where the first one stood that goes, or behind all.
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

/// What an opening must make before anybody is answered.
pub(super) struct Lacking {
    /// Tables that are damaged or missing, and that memory can't stand in for.
    pub(super) damaged: Vec<ListedTable>,
    /// From there on no table covers the log, and it holds more keys than memory may.
    pub(super) uncovered: Option<Lsn>,
}

/// When a checkpoint was made, and what was alive then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checkpointed {
    pub(crate) now: StoreMillis,
    pub(crate) offset: i64,
    pub(crate) sample: Option<Sample>,
}

/// What a sample said was alive, of a log of so many bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    at_millis: u64,
    pub(crate) log_bytes: u64,
    pub(crate) alive: Alive,
}

/// The listed tables that are whole, the newest first, and those that are damaged or missing: they are to be made
/// again before anybody is answered. If memory can hold the keys of all from the oldest of these on, `memory_keys`, they go
/// and nothing is written: the opening reads that part of the log again, and memory stands in until it is sealed anew.
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
        match Table::open(storage, &index_dir, *listed, manifest.store, map) {
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
        // No log makes them again, so a damaged one is a loss.
        let file = MemoryFile::open(storage, &expired_dir, *listed, manifest.store, map)?;
        expired.push(Arc::new(file));
    }
    Ok((Tables::new(list, manifest.covered, head, expired), damaged))
}

fn as_listed(tables: &[Arc<Table>]) -> Vec<ListedTable> {
    tables.iter().map(|table| table.listed).collect()
}

/// Whether a table is not what was written; nor can it be where the device gives none of it. The log has it all.
fn is_damage(error: &Error) -> bool {
    error.kind() == ErrorKind::Corrupt || error.is_by_device()
}

impl Engine {
    pub(super) fn expired_dir(&self) -> PathBuf {
        self.log.dir().join(ListedMemories::DIR)
    }

    pub(super) fn index_dir(&self) -> PathBuf {
        self.log.dir().join(ListedTable::DIR)
    }

    /// Whether the background has work on the index that can't wait for it to look by itself.
    pub(crate) fn is_checkpoint_due(&self) -> bool {
        let since = self.log.bytes_since(self.tables.lock().covered);
        // Claims in flight stay in memory: they alone are no reason for another checkpoint.
        let new = since / limits::RECORD_BYTES_LEAST;
        since >= limits::CHECKPOINT_BYTES
            || (new >= self.checkpoint_keys as u64 && self.recent.len() >= self.checkpoint_keys)
    }

    /// The body of the thread that keeps the log.
    pub(crate) fn run_log(&self, stop: &dyn Fn() -> bool) {
        self.log.run_upkeep(stop, &|| {
            if self.is_checkpoint_due() || self.log.is_look_due() {
                self.index_word.wake_one();
            }
        });
    }

    /// The body of the thread that keeps the index: steps until `stop` says so.
    pub(crate) fn run_index(&self, stop: &dyn Fn() -> bool) {
        loop {
            // Before `stop` is asked: who sets it changes the word afterwards.
            let seen = self.index_word.read();
            if stop() {
                return;
            }
            let Ok(inside) = self.enter() else { return };
            // A failed write has poisoned the log. A panic in the midst of a table does, too: without this thread
            // memory would grow for ever.
            let due = self.log.guarded(|| self.step_index());
            drop(inside);
            let due = due.unwrap_or(Due::In(limits::UNSYNCED_MILLIS_MAX));
            if let Due::In(millis) = due {
                self.index_word.wait(seen, Some(millis));
            }
        }
    }

    /// Wakes the threads to look at their `stop`.
    pub(crate) fn wake_background(&self) {
        self.log.stop_upkeep();
        self.index_word.wake_all();
    }

    /// One piece of background work, the log's first.
    pub(crate) fn step(&self) -> Result<Due> {
        let _inside = self.enter()?;
        self.step_inside().map_err(|e| self.log.explained(e))
    }

    fn step_inside(&self) -> Result<Due> {
        match self.log.step()? {
            Due::Now => Ok(Due::Now),
            Due::In(log) => {
                let was_held = self.log.is_held();
                Ok(match self.step_index()? {
                    Due::In(index) if !was_held || self.log.is_held() => Due::In(log.min(index)),
                    _ => Due::Now,
                })
            }
        }
    }

    /// Does one piece of work on the index, if one is due.
    pub(crate) fn step_index(&self) -> Result<Due> {
        match self.try_step_index() {
            // Told to leave by a close: no trouble of the store.
            Err(e) if self.log.may_go_on().is_err() => Err(e),
            // A full disk, no file descriptor left, a record that can't be read: told by `stats`, and tried again. What
            // is damaged doesn't mend itself, so not so soon.
            Err(e) => {
                let is_damage = e.kind() == ErrorKind::Corrupt;
                *self.trouble.lock() = Some(e);
                Ok(Due::In(match is_damage {
                    true => limits::ESTIMATE_MILLIS,
                    false => limits::UNSYNCED_MILLIS_MAX,
                }))
            }
            done => {
                self.trouble.lock().take();
                done
            }
        }
    }

    fn try_step_index(&self) -> Result<Due> {
        let idle = Due::In(limits::TIME_NOTE_MILLIS);
        let mut work = self.work.lock();
        if self.log.may_go_on().is_err() || !self.log.is_writing() {
            return Ok(idle);
        }
        let is_called = work.compact_calls > 0;
        self.step_work(&mut work, !is_called)
    }

    /// The background's work, done by whoever needs the next segment while the files are larger than they may be. So writers
    /// are slowed by as much as reclaim, checkpoints and merges lag behind, however seldom the background gets a processor.
    pub(super) fn help(&self) -> Result<()> {
        while self.log.is_overgrown() {
            let mut work = self.work.lock();
            if self.log.may_go_on().is_err() || !self.log.is_writing() {
                return Ok(());
            }
            // Others may have done it while this one waited for them.
            if !self.log.is_overgrown() {
                return Ok(());
            }
            match self.step_work(&mut work, true) {
                Err(e) if self.log.is_poisoned() => return Err(e),
                // A close waits for this call.
                Err(_) if self.log.gate().must_leave() => return Ok(()),
                // Told by `stats`, as if the background had met it. It doesn't keep the log from going on.
                Err(e) => {
                    *self.trouble.lock() = Some(e);
                    return Ok(());
                }
                Ok(Due::In(_)) if self.waits_for_sync(&work) => {
                    drop(work);
                    // Nothing of this call was placed yet.
                    self.log.sync().map_err(|_| self.log.poisoned())?;
                }
                Ok(Due::In(_)) if work.compacting.is_none() => return Ok(()),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// One piece of each kind of work on the index that is due; of reclaim only if `reclaims`.
    fn step_work(&self, work: &mut Work, reclaims: bool) -> Result<Due> {
        self.log.take_look();
        if !std::mem::replace(&mut work.has_swept, true) {
            self.sweep();
        }
        // What fails here is tried again, and keeps nothing else from being done: it may be what makes room.
        let mut failed = None;
        if self.is_checkpoint_due() {
            match self.checkpoint(work) {
                Ok(true) => return Ok(Due::Now),
                Ok(false) => {}
                Err(e) if self.log.may_go_on().is_err() => return Err(e),
                Err(e) => failed = Some(e),
            }
        }
        if work.merge.is_none() && failed.is_none() {
            match self.begin_merge(work) {
                Ok(merge) => work.merge = merge,
                Err(e) => failed = Some(e),
            }
        }
        let compacted = match if reclaims { self.step_compaction(work) } else { Ok(None) } {
            Err(e) if self.names_table(&e) => self.mend(work, e).map(|()| Some(Due::Now)),
            other => other,
        };
        let compacted = compacted.unwrap_or_else(|e| {
            failed.get_or_insert(e);
            None
        });
        let Some(merging) = work.merge.take() else {
            return match (failed, compacted) {
                (_, Some(Due::Now)) => Ok(Due::Now),
                (Some(e), _) => Err(e),
                (None, Some(due)) => Ok(due),
                (None, None) => Ok(Due::In(limits::ESTIMATE_MILLIS)),
            };
        };
        match self.advance_merge(merging) {
            Ok(Advanced::Some(merging)) => work.merge = Some(merging),
            Ok(Advanced::Done { table, of }) => {
                self.switch_index(&Change { replaced: as_listed(&of), by: vec![table] })?;
            }
            Err(e) if self.names_table(&e) => self.mend(work, e)?,
            Err(e) => return Err(e),
        }
        Ok(Due::Now)
    }

    /// Removes sealed files that no manifest lists: what openings left that ended before a switch.
    fn sweep(&self) {
        let tables = self.tables();
        self.remove_unlisted(&as_listed(&tables.list));
        let expired: Vec<_> = tables.expired.iter().map(|file| file.listed).collect();
        self.remove_unlisted(&expired);
    }

    fn remove_unlisted<L: ListedFile>(&self, listed: &[L]) {
        let (storage, dir) = (&*self.log.seams().storage, self.log.dir().join(L::DIR));
        let is_listed = |number| listed.iter().any(|listed| listed.number() == number);
        // Where the directory can't be listed, the next opening tries again, as well.
        for entry in storage.list(&dir).unwrap_or_default() {
            if L::number_of(&entry.name).is_some_and(|number| !is_listed(number)) {
                // If it stays, the next opening tries again.
                let _ = storage.remove(&dir.join(&entry.name));
            }
        }
    }

    /// Seals what memory holds, lists the table, and lets the entries go. Durable on return. Whether there were any.
    fn checkpoint(&self, work: &mut Work) -> Result<bool> {
        let Some(change) = self.seal()? else { return Ok(false) };
        self.switch_index(&change)?;
        // It may have taken in a table that was being merged.
        self.drop_stale_merge(work);
        let (now, sample) = (self.log.now(), self.sample());
        *self.checkpointed.lock() =
            Some(Checkpointed { now, offset: self.wall_offset(now), sample });
        Ok(true)
    }

    /// What is alive at a checkpoint: by the last one's sample, if that is young. Where checkpoints follow each other fast,
    /// a sample's reads all over the log cost claims more than the tables do.
    fn sample(&self) -> Option<Sample> {
        let at_millis = self.log.seams().clock.monotonic_nanos() / 1_000_000;
        let log_bytes = self.log.bytes_since(Lsn::ZERO);
        let last = self.last_checkpoint().and_then(|last| last.sample).filter(|last| {
            at_millis - last.at_millis < limits::SAMPLE_MILLIS
                && log_bytes.abs_diff(last.log_bytes) <= log_bytes / 8
        });
        last.or_else(|| self.estimate().ok().map(|alive| Sample { at_millis, log_bytes, alive }))
    }

    /// The last checkpoint since the opening.
    pub(crate) fn last_checkpoint(&self) -> Option<Checkpointed> {
        *self.checkpointed.lock()
    }

    /// Writes a table of all keys in memory that none covers yet. Durable on return, but not listed.
    pub(super) fn seal(&self) -> Result<Option<Change>> {
        let tables = self.tables();
        let (from, to) = (tables.covered, self.log.end());
        let entries = self.recent.between(from, to);
        if entries.is_empty() {
            return Ok(None);
        }
        // After the entries were copied: a record that took the place of one of them before is covered, too, so that
        // no crash can bring the older one back.
        self.log.sync()?;
        let small = absorbed(&tables, entries.len() as u64, self.merge_slots());
        if tables.list.len() - small.len() >= limits::TABLES_MAX {
            // No opening would believe a longer list. Merges make it shorter.
            return Ok(None);
        }
        let slots = self.slots_of(entries)?;
        if small.is_empty() {
            return self.write_table(from, to, slots, small).map(Some);
        }
        match self.write_table(from, to, slots.clone(), small) {
            // One of the small ones can't be read: it stays for whoever mends it.
            Err(e) if is_damage(&e) => self.write_table(from, to, slots, Vec::new()).map(Some),
            other => other.map(Some),
        }
    }

    /// What stands for entries in a table. As large as they, so they are made in their place.
    fn slots_of(&self, entries: Vec<(KeyHash, Lsn)>) -> Result<Vec<Slot>> {
        let segments = self.log.segments();
        let slot = |(hash, lsn)| {
            let spot = segments.spot_of(lsn).ok_or_else(|| {
                Error::corrupt(self.log.dir(), 0, format_args!("no segment holds lsn {lsn}"))
            })?;
            Ok(Slot::new(hash, spot))
        };
        entries.into_iter().map(slot).collect()
    }

    /// Writes a table of `slots`, whose records stand in `from..to`, with those of `absorbed`, the tables before.
    fn write_table(
        &self,
        from: Lsn,
        to: Lsn,
        slots: Vec<Slot>,
        absorbed: Vec<Arc<Table>>,
    ) -> Result<Change> {
        let mut survivors = Survivors::new(&absorbed, self.tables().head);
        let old = loop {
            // They are small.
            if let Some(count) = survivors.advance(self.merge_slots())? {
                break count;
            }
        };
        let from = absorbed.last().map_or(from, |oldest| oldest.listed.from);
        let writer = self.create_table(from, to, old + slots.len() as u64)?;
        let merge = Merge::new(slots, &absorbed, self.tables().head, writer);
        let table = self.merge_to_end(Merging {
            stage: Stage::Writing(Box::new(merge)),
            of: absorbed.clone(),
        })?;
        Ok(Change { replaced: as_listed(&absorbed), by: vec![table] })
    }

    fn merge_to_end(&self, mut merging: Merging) -> Result<Arc<Table>> {
        loop {
            match self.advance_merge(merging)? {
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

    /// One piece of a merge. What was written of it goes with an error.
    fn advance_merge(&self, merging: Merging) -> Result<Advanced> {
        let Merging { stage, of } = merging;
        let stage = match stage {
            Stage::Counting(mut survivors) => match survivors.advance(self.merge_slots())? {
                Some(count) => self.begin_writing_merge(&of, count)?,
                None => Stage::Counting(survivors),
            },
            Stage::Writing(mut merge) => match merge.advance(self.merge_slots()) {
                Ok(true) => return Ok(Advanced::Done { table: self.finish_merge(*merge)?, of }),
                Ok(false) => Stage::Writing(merge),
                Err(failure) => return Err(self.log.failed(failure)),
            },
        };
        Ok(Advanced::Some(Merging { stage, of }))
    }

    /// The writing of a table for `slots` of some tables, the newest of which is the first.
    fn begin_writing_merge(&self, of: &[Arc<Table>], slots: u64) -> Result<Stage> {
        let from = of.last().map_or(Lsn::ZERO, |oldest| oldest.listed.from);
        let to = of.first().map_or(from, |newest| newest.listed.to);
        let writer = self.create_table(from, to, slots)?;
        let merge = Merge::new(Vec::new(), of, self.tables().head, writer);
        Ok(Stage::Writing(Box::new(merge)))
    }

    /// Slots that one step of a merge moves: no more than memory holds.
    fn merge_slots(&self) -> u64 {
        limits::MERGE_SLOTS.min(self.checkpoint_keys as u64)
    }

    fn create_table(&self, from: Lsn, to: Lsn, slots: u64) -> Result<Writer<ListedTable>> {
        let (storage, dir) = (&self.log.seams().storage, self.index_dir());
        self.log.check_budget(slots * limits::TABLE_BYTES_PER_KEY)?;
        self.make_dir(&dir)?;
        let empty = ListedTable::empty(self.log.take_table_number()?, from, to, slots);
        Writer::create(storage, &dir, self.log.store(), empty, self.log.pace())
            .map_err(|e| self.log.failed(e))
    }

    /// Makes a directory of the store, if there is none. Durable on return.
    pub(super) fn make_dir(&self, dir: &Path) -> Result<()> {
        self.log.check_standing()?;
        let storage = &self.log.seams().storage;
        let made = match storage.create_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.is_file(dir) => {
                storage.remove(dir).and_then(|()| storage.create_dir(dir))
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        made.map_err(|e| Error::io("creating", dir, e))?;
        // If it was there, too: whoever made it may have ended before it was durable.
        let synced = storage.sync_dir(self.log.dir());
        let failed = |e| Failure::Poison(Error::io("syncing", self.log.dir(), e));
        synced.map_err(|e| self.log.failed(failed(e)))
    }

    /// Whether something else has taken a directory's place.
    fn is_file(&self, dir: &Path) -> bool {
        let listed = self.log.seams().storage.list(dir);
        listed.is_err_and(|e| e.kind() == io::ErrorKind::NotADirectory)
    }

    /// Ends a merge, and opens what it has made.
    pub(super) fn finish_merge<L: Paged>(&self, merge: Merge<L>) -> Result<Arc<SealedFile<L>>> {
        let listed = merge.finish().map_err(|failure| self.log.failed(failure))?;
        let (storage, dir) = (&*self.log.seams().storage, self.log.dir().join(L::DIR));
        let file = SealedFile::open(storage, &dir, listed, self.log.store(), self.log.maps());
        if file.is_err() {
            self.remove_files(&[listed]);
        }
        file.map(Arc::new)
    }

    /// Lists the change, and has lookups use it.
    fn switch_index(&self, change: &Change) -> Result<()> {
        let listed = self.log.list_tables(|manifest| change.apply(manifest));
        if let Err(e) = listed {
            if !self.log.is_poisoned() {
                self.remove_files(&as_listed(&change.by));
            }
            return Err(e);
        }
        self.install(change);
        Ok(())
    }

    /// Has lookups use a change that is listed. The files it stands in for go; who reads in them reads on.
    pub(super) fn install(&self, change: &Change) {
        let new = {
            let mut tables = self.tables.lock();
            *tables = change.tables(&tables);
            Arc::clone(&tables)
        };
        self.recent.install(&new, Lsn::ZERO);
        self.count_bytes(&new);
        self.remove_files(&change.replaced);
    }

    /// The segments below `head` are about to leave the log, as the manifest says already.
    /// `expired` takes their remembered keys over.
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
        self.remove_expired(&old.expired, &new.expired);
    }

    pub(super) fn count_bytes(&self, tables: &Tables) {
        let sealed = tables.list.iter().map(|table| table.listed.bytes());
        let expired = tables.expired.iter().map(|file| file.listed.bytes());
        let bytes = sealed.chain(expired).sum();
        self.log.index_bytes.store(bytes, Ordering::Relaxed);
    }

    /// No step will continue the merge under way.
    pub(super) fn give_up_merge(&self, work: &mut Work) {
        if let Some(merging) = work.merge.take() {
            merging.discard();
        }
    }

    /// A merge of tables that have gone, with their segments or into another, has nothing to stand in for.
    pub(super) fn drop_stale_merge(&self, work: &mut Work) {
        let tables = self.tables();
        let is_there =
            |table: &Arc<Table>| tables.list.iter().any(|other| Arc::ptr_eq(table, other));
        let is_stale = |merging: &mut Merging| !merging.of.iter().all(is_there);
        if let Some(merging) = work.merge.take_if(is_stale) {
            merging.discard();
        }
    }

    pub(super) fn remove_files<L: ListedFile>(&self, files: &[L]) {
        for file in files {
            // If it stays, the next opening removes it: no manifest lists it.
            let path = self.log.dir().join(L::DIR).join(L::file_name(file.number()));
            let _ = self.log.seams().storage.remove(&path);
        }
    }

    fn begin_merge(&self, work: &Work) -> Result<Option<Merging>> {
        let tables = self.tables();
        let mut listed = as_listed(&tables.list);
        // Those younger than one that can't be read are merged by themselves, or there would be more and more of them.
        let whole = listed.iter().take_while(|table| !work.unmendable.contains(&table.number));
        listed.truncate(whole.count());
        let (due, _) = tables.list.split_at(merge_due(&listed));
        self.begin_merge_of(due)
    }

    fn begin_merge_of(&self, of: &[Arc<Table>]) -> Result<Option<Merging>> {
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
            match self.merge_to_end(merging) {
                Err(e) if self.names_table(&e) => self.mend(&mut work, e)?,
                merged => {
                    let change = Change { replaced: as_listed(&tables.list), by: vec![merged?] };
                    return self.switch_index(&change);
                }
            }
        }
    }

    /// Whether an error is about a table in use.
    pub(super) fn names_table(&self, error: &Error) -> bool {
        self.tables().list.iter().any(|table| Some(table.path()) == error.path())
    }

    /// A lookup met a damaged table: makes it again from the log. The error stands if it can't be.
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
            // Somebody else has mended it.
            return Ok(());
        };
        let number = bad.listed.number;
        self.log.may_go_on()?;
        if work.unmendable.contains(&number) {
            return Err(error);
        }
        self.give_up_merge(work);
        if let Err(e) = self.make_again(&[bad.listed]) {
            if e.kind() == ErrorKind::Corrupt {
                work.unmendable.insert(number);
            }
            return Err(e.because(error));
        }
        self.mended.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Makes tables that follow each other again from the log, as one, and lists that.
    fn make_again(&self, tables: &[ListedTable]) -> Result<()> {
        self.switch_index(&self.made_again(tables)?)
    }

    /// Makes tables that follow each other again from the log, as one. Durable on return, but not listed.
    fn made_again(&self, tables: &[ListedTable]) -> Result<Change> {
        let mut change = Change { replaced: tables.to_vec(), by: Vec::new() };
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

    /// Makes what an opening lacks: the tables that it could not use, each by itself, and one of the log that none covers,
    /// where that is more than memory may hold.
    pub(super) fn make_all(&self, lacking: &Lacking) -> Result<()> {
        if lacking.damaged.is_empty() && lacking.uncovered.is_none() {
            return Ok(());
        }
        // All of them before the log is written to: for want of room the opening is to be as if it had not been, for the
        // next one needs what is kept for a fork.
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
                // It takes the room that the log needs to go on.
                Err(_) => self.remove_files(&as_listed(&change.by)),
            }
        }
        made
    }

    /// Makes a table of the log from there on, of which memory could not hold all. It reaches no further than what is
    /// durable where it stands; what lies behind that is little, and memory takes it. Durable on return, but not listed.
    fn sealed_as_read(&self, from: Lsn) -> Result<Option<Change>> {
        let to = self.log.settled_end();
        let mut visit = |record: &Record<'_>, earlier: &Earlier<'_>| {
            rebuild::take_in(&self.recent, &self.hasher, self.log.dir(), record, earlier).map(drop)
        };
        self.log.walk(to, self.log.end(), &mut visit)?;
        if to <= from {
            return Ok(None);
        }
        if self.tables().list.len() >= limits::TABLES_MAX {
            // No opening would believe a longer list. Merges make it shorter.
            let message = "the index has as many tables as it may";
            return Err(Error::new(ErrorKind::StorageFull, message).at(&self.index_dir()));
        }
        let mut by = Vec::new();
        let made = self.rebuild(from, to, &mut by);
        if made.is_err() {
            self.remove_files(&as_listed(&by));
        }
        made.map(|()| Some(Change { replaced: Vec::new(), by }))
    }

    /// Makes all tables again from the log, as one.
    pub(crate) fn rebuild_index(&self) -> Result<()> {
        let _inside = self.enter()?;
        let rebuild = || {
            self.begin_writing()?;
            let mut work = self.work.lock();
            self.log.may_go_on()?;
            self.give_up_merge(&mut work);
            self.make_again(&as_listed(&self.tables().list))
        };
        rebuild().map_err(|e| self.log.explained(e))
    }

    /// Makes a table for what the log holds in `from..to`: in pieces, so that memory is bounded, which are merged as
    /// they come, so that they are few. What is left of them in `by` at an error is to be removed.
    fn rebuild(&self, from: Lsn, to: Lsn, by: &mut Vec<Arc<Table>>) -> Result<()> {
        let none = Tables::new(Vec::new(), Lsn::ZERO, 0, Vec::new());
        let (mut piece, mut piece_from) = (Recent::new(&none), from);
        let mut keys = 0;
        let mut visit = |record: &Record<'_>, earlier: &Earlier<'_>| {
            self.log.may_go_on()?;
            if keys >= self.checkpoint_keys {
                keys = 0;
                let full = std::mem::replace(&mut piece, Recent::new(&none));
                let slots = self.slots_of(full.between(Lsn::ZERO, record.lsn))?;
                let change = self.write_table(piece_from, record.lsn, slots, Vec::new())?;
                by.extend(change.by);
                piece_from = record.lsn;
                let mut newest_first = as_listed(by);
                newest_first.reverse();
                self.merge_pieces(by, merge_due(&newest_first))?;
            }
            keys += 1;
            rebuild::take_in(&piece, &self.hasher, self.log.dir(), record, earlier).map(drop)
        };
        self.log.walk(from, to, &mut visit)?;
        let slots = self.slots_of(piece.between(Lsn::ZERO, to))?;
        let change = self.write_table(piece_from, to, slots, Vec::new())?;
        by.extend(change.by);
        self.merge_pieces(by, by.len())
    }

    /// Merges the last `count` of unlisted tables.
    fn merge_pieces(&self, by: &mut Vec<Arc<Table>>, count: usize) -> Result<()> {
        if count < 2 {
            return Ok(());
        }
        let first = by.len() - count;
        let of: Vec<_> = by.iter().skip(first).rev().cloned().collect();
        let Some(merging) = self.begin_merge_of(&of)? else { return Ok(()) };
        let merged = self.merge_to_end(merging)?;
        self.remove_files(&as_listed(&of));
        by.truncate(first);
        by.push(merged);
        Ok(())
    }
}

/// The newest tables that are so small, `most` slots each, that a new one of `slots` takes them in at once: a store
/// that is opened and closed again and again would have one for each time.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::Sim;
    use crate::{Operation, Store};

    /// A lookup met a rotten table and waited for its turn to mend it, until the store was closed. The files may be the next
    /// opening's: nothing of them is even read.
    #[test]
    fn a_mend_that_a_close_overtook_does_not_touch_the_directory() {
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
        assert!(engine.names_table(&met()));
        let calls = sim.calls();
        let told = [engine.heal(met()), engine.mend(&mut engine.work.lock(), met())];
        assert_eq!(told.map(|told| told.map_err(|e| e.kind())), [Err(ErrorKind::Closed); 2]);
        assert_eq!(sim.calls(), calls);
        assert_eq!(engine.mended.load(Ordering::Relaxed), 0);
        drop(store);
        let store = sim.open_with(builder()).unwrap();
        assert!((0..300_u64).all(|n| store.get(n).unwrap().is_some()));
    }
}
