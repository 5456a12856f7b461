//! Writes a sealed file, in one pass.
//!
//! Promises: writes are sequential, and when `finish` returns the file is durable but not listed; a crash before that
//! leaves a file without effect, since its header is written last.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::{Page, PageBody, Paged, seed_of};
use crate::storage::{self, Failure, File, Storage};
use crate::sync::{AtomicU64, Ordering};
use crate::types::StoreId;
use crate::{Error, Result, limits};

/// A sealed file that is being written. Entries are pushed in order.
pub(crate) struct Writer<L: Paged> {
    output: Output,
    store: StoreId,
    seed: u32,
    listed: L,
    /// The page being filled, and its number.
    page: Vec<L::Entry>,
    number: u64,
}

impl<L: Paged> Writer<L> {
    /// Begins a file. `empty` is its list item while it holds no entry.
    pub(crate) fn create(
        storage: &Arc<dyn Storage>,
        dir: &Path,
        store: StoreId,
        empty: L,
        pace: Pace,
    ) -> Result<Self, Failure> {
        let path = dir.join(L::file_name(empty.number()));
        let output = Output::create(storage, path, L::HEADER_BYTES, pace)?;
        let seed = seed_of::<L>(store, empty.number());
        let page = Vec::with_capacity(L::PAGE_ENTRIES);
        Ok(Writer { output, store, seed, listed: empty, page, number: 0 })
    }

    /// Adds an entry, whose rank is not less than those before it.
    pub(crate) fn push(&mut self, entry: L::Entry) -> Result<(), Failure> {
        let home = self.listed.home_of(&entry);
        while self.number < home || self.page.len() == L::PAGE_ENTRIES {
            self.end_page()?;
        }
        // Readers rely on that order.
        debug_assert!(self.page.last().is_none_or(|last| L::rank(last) <= L::rank(&entry)));
        self.page.push(entry);
        self.listed.count(&entry);
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), Failure> {
        let page = Page::of(L::body_of(&self.page), self.number, self.seed);
        self.page.clear();
        self.number += 1;
        self.output.append(page.as_bytes())
    }

    /// Ends the file. It is durable on return, including its name.
    pub(crate) fn finish(self) -> Result<L, Failure> {
        self.finish_after(std::iter::empty::<L::Body>(), |_| {})
    }

    /// Ends the file with pages of another content, which `note` notes in the list item.
    pub(crate) fn finish_after<B: PageBody>(
        mut self,
        pages: impl Iterator<Item = B>,
        note: impl FnOnce(&mut L),
    ) -> Result<L, Failure> {
        const { assert!(size_of::<B>() == size_of::<L::Body>()) };
        while !self.page.is_empty() || self.number < self.listed.homes() {
            self.end_page()?;
        }
        self.listed.end(self.number);
        for (number, page) in (self.number..).zip(pages) {
            self.output.append(Page::of(page, number, self.seed).as_bytes())?;
        }
        note(&mut self.listed);
        if !self.listed.is_sound() {
            let what = format_args!("{} that no open would accept was written", L::WHAT);
            return Err(Failure::Poison(Error::bug(&self.output.path, what)));
        }
        self.output.finish(&self.listed.encode(self.store))?;
        Ok(self.listed)
    }

    /// Returns its list item as far as it is known.
    pub(crate) fn listed(&self) -> L {
        self.listed
    }

    /// Gives up, and removes the file.
    pub(crate) fn discard(&self) {
        self.output.discard();
    }
}

/// Decides when a file that is being written is synced: in small pieces while other threads sync the log, because
/// each of their syncs shares the device with one of these; otherwise in larger ones, because each sync of a growing
/// file makes the file system commit its metadata, too.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Counts the log's syncs.
    syncs: Arc<AtomicU64>,
    seen: u64,
    unsynced: u64,
}

impl Pace {
    pub(crate) fn beside(syncs: &Arc<AtomicU64>) -> Self {
        Pace { syncs: Arc::clone(syncs), seen: syncs.load(Ordering::Relaxed), unsynced: 0 }
    }

    pub(crate) fn alone() -> Self {
        Pace::beside(&Arc::new(AtomicU64::new(0)))
    }

    /// Counts written bytes. Returns whether they are to be synced now, with those before.
    pub(crate) fn is_due(&mut self, bytes: u64) -> bool {
        self.unsynced += bytes;
        if self.unsynced < limits::PIECE_BESIDE_SYNCS {
            return false;
        }
        let syncs = self.syncs.load(Ordering::Relaxed);
        let log_syncs = std::mem::replace(&mut self.seen, syncs) != syncs;
        let is_due = log_syncs || self.unsynced >= limits::UNSYNCED_BYTES_MAX;
        if is_due {
            self.unsynced = 0;
        }
        is_due
    }
}

/// The bytes of a file that is being written, front to back; its header last.
struct Output {
    storage: Arc<dyn Storage>,
    file: Arc<dyn File>,
    path: PathBuf,
    buffer: Vec<u8>,
    written: u64,
    pace: Pace,
}

impl Output {
    fn create(
        storage: &Arc<dyn Storage>,
        path: PathBuf,
        header_bytes: usize,
        pace: Pace,
    ) -> Result<Self, Failure> {
        let before = |doing: &str, e| Failure::Before(Error::io(doing, &path, e));
        let file = match storage.create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // Written by a process that ended before its manifest listed it.
                storage.remove(&path).map_err(|e| before("removing", e))?;
                storage.create(&path)
            }
            other => other,
        };
        let file = file.map_err(|e| before("creating", e))?;
        Ok(Output {
            storage: Arc::clone(storage),
            file,
            path,
            buffer: Vec::with_capacity(limits::TABLE_PIECE_BYTES),
            written: header_bytes as u64,
            pace,
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= limits::TABLE_PIECE_BYTES { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<(), Failure> {
        let written = storage::write_all_at(&*self.file, &self.buffer, self.written);
        written.map_err(|e| self.failed("writing", e))?;
        let len = self.buffer.len() as u64;
        self.written += len;
        self.buffer.clear();
        if self.pace.is_due(len) {
            let synced = self.file.sync_data();
            synced.map_err(|e| self.failed("syncing", e))?;
        }
        Ok(())
    }

    fn finish(mut self, header: &[u8]) -> Result<(), Failure> {
        self.write_out()?;
        let dir = self.path.parent().unwrap_or(Path::new(""));
        storage::write_all_at(&*self.file, header, 0)
            .and_then(|()| self.file.sync_data())
            .and_then(|()| self.storage.sync_dir(dir))
            .map_err(|e| self.failed("finishing", e))
    }

    fn discard(&self) {
        // If it stays, the next open removes it: no manifest lists it.
        let _ = self.storage.remove(&self.path);
    }

    /// Removes the file at once: on a full disk other files need the space.
    fn failed(&self, doing: &str, e: io::Error) -> Failure {
        self.discard();
        Failure::full_or_poison(e, |e| Error::io(doing, &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_small_during_syncs_of_the_log_and_large_otherwise() {
        let syncs = Arc::new(AtomicU64::new(7));
        let mut pace = Pace::beside(&syncs);
        let piece = limits::PIECE_BESIDE_SYNCS;
        let most = limits::UNSYNCED_BYTES_MAX / piece;
        for _ in 0..2 {
            assert!((1..most).all(|_| !pace.is_due(piece)));
            assert!(pace.is_due(piece));
        }
        for _ in 0..3 {
            syncs.fetch_add(1, Ordering::Relaxed);
            assert!(!pace.is_due(piece - 1));
            assert!(pace.is_due(1));
        }
        assert!(!pace.is_due(piece));
    }
}
