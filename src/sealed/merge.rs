//! Merges new entries and sealed files into one file.
//!
//! Promises: one pass over all of them in the order of their ranks. Reads no record, and leaves out only the entries
//! that the kind's own rule excludes; a damaged page is an error, and the new file is removed.

use std::iter::Peekable;
use std::sync::Arc;
use std::vec;

use zerocopy::FromZeros;

use super::{Page, Paged, SealedFile, Writer};
use crate::storage::Failure;
use crate::{ErrorKind, Result, limits};

/// A walk through a file's entries, in order.
pub(crate) struct EntryCursor<L: Paged> {
    file: Arc<SealedFile<L>>,
    /// Damaged pages are skipped, and are no errors.
    is_salvage: bool,
    /// The page after the current one.
    next: u64,
    page: L::Body,
    at: usize,
}

impl<L: Paged> EntryCursor<L> {
    /// Pages that a walk reads ahead.
    const PIECE_PAGES: u64 = (limits::TABLE_PIECE_BYTES / size_of::<Page<L::Body>>()) as u64;

    pub(crate) fn new(file: Arc<SealedFile<L>>) -> Self {
        EntryCursor::at(file, 0)
    }

    /// Begins with that page.
    pub(crate) fn at(file: Arc<SealedFile<L>>, number: u64) -> Self {
        let page = L::Body::new_zeroed();
        EntryCursor { file, is_salvage: false, next: number, page, at: L::PAGE_ENTRIES }
    }

    /// Returns the current entry; `None` after the last one. An error stands for one page.
    pub(crate) fn peek(&mut self) -> Result<Option<L::Entry>> {
        loop {
            if let Some(entry) = L::entry(&self.page, self.at) {
                return Ok(Some(entry));
            }
            if self.next >= self.file.listed.pages() {
                return Ok(None);
            }
            // It continues after a damaged page: another call must not return the same error for ever.
            let number = self.next;
            self.next = number + 1;
            self.at = L::PAGE_ENTRIES;
            if number % Self::PIECE_PAGES == 0 {
                self.file.read_ahead(number);
            }
            match self.file.look_into(number, |page| *page) {
                Err(e) if self.is_salvage && e.kind() == ErrorKind::Corrupt => {}
                page => (self.page, self.at) = (page?, 0),
            }
        }
    }

    pub(crate) fn advance(&mut self) {
        self.at += 1;
    }
}

/// See the module.
pub(crate) struct Merge<L: Paged> {
    /// In order.
    fresh: Peekable<vec::IntoIter<L::Entry>>,
    /// The newest first: among entries of the same rank, that of the newest file comes first.
    files: Vec<EntryCursor<L>>,
    rule: L::Rule,
    writer: Writer<L>,
}

impl<L: Paged> Merge<L> {
    /// Merges entries that are newer than those of all files, in the order in which they came, and files, the newest
    /// first.
    pub(crate) fn new(
        mut fresh: Vec<L::Entry>,
        files: &[Arc<SealedFile<L>>],
        rule: L::Rule,
        writer: Writer<L>,
    ) -> Self {
        L::sort(&mut fresh);
        let files = files.iter().map(|file| EntryCursor::new(Arc::clone(file))).collect();
        Merge { fresh: fresh.into_iter().peekable(), files, rule, writer }
    }

    /// Merges the whole pages of files that may be damaged, the newest first.
    pub(crate) fn salvage(files: &[Arc<SealedFile<L>>], rule: L::Rule, writer: Writer<L>) -> Self {
        let mut merge = Merge::new(Vec::new(), files, rule, writer);
        merge.files.iter_mut().for_each(|cursor| cursor.is_salvage = true);
        merge
    }

    /// Merges at most `count` more entries. Returns whether all are merged. On a failure the new file is removed; a
    /// file that can't be read stays as it is.
    pub(crate) fn advance(&mut self, count: u64) -> Result<bool, Failure> {
        for _ in 0..count {
            let least = self.least().inspect_err(|_| self.writer.discard());
            let Some((index, entry)) = least.map_err(Failure::Before)? else { return Ok(true) };
            match self.files.get_mut(index) {
                Some(cursor) => cursor.advance(),
                None => drop(self.fresh.next()),
            }
            if L::keeps(&mut self.rule, &entry) {
                self.writer.push(entry)?;
            }
        }
        Ok(false)
    }

    /// Returns the next entry and the index of its file, which is after all files for a new entry.
    fn least(&mut self) -> Result<Option<(usize, L::Entry)>> {
        let mut least = self.fresh.peek().map(|entry| (usize::MAX, *entry));
        for (index, cursor) in self.files.iter_mut().enumerate() {
            let Some(entry) = cursor.peek()? else { continue };
            if least.as_ref().is_none_or(|(_, least)| L::rank(&entry) < L::rank(least)) {
                least = Some((index, entry));
            }
        }
        Ok(least)
    }

    /// See [`Writer::finish`].
    pub(crate) fn finish(self) -> Result<L, Failure> {
        self.writer.finish()
    }

    /// Ends the merge. The caller finishes the file.
    pub(crate) fn into_writer(self) -> Writer<L> {
        self.writer
    }

    /// Gives up, and removes the new file.
    pub(crate) fn discard(self) {
        self.writer.discard();
    }
}
