//! New entries and sealed files on their way to be one file.
//!
//! Promises: one pass over all of them in the order of their ranks. Reads no record, and leaves out nothing but what the
//! kind's own rule says; a damaged page is an error, and what was written goes.

use std::iter::Peekable;
use std::sync::Arc;
use std::vec;

use zerocopy::FromZeros;

use super::{Page, Paged, SealedFile, Writer};
use crate::storage::Failure;
use crate::{ErrorKind, Result, limits};

/// A walk through a file's entries, in order.
pub(crate) struct Cursor<L: Paged> {
    file: Arc<SealedFile<L>>,
    /// Damaged pages are left out, and are no errors.
    is_salvage: bool,
    /// The page behind the one it stands in.
    next: u64,
    page: L::Body,
    at: usize,
}

impl<L: Paged> Cursor<L> {
    /// Pages that a walk has read ahead.
    const PIECE_PAGES: u64 = (limits::TABLE_PIECE_BYTES / size_of::<Page<L::Body>>()) as u64;

    pub(crate) fn new(file: Arc<SealedFile<L>>) -> Self {
        let page = L::Body::new_zeroed();
        Cursor { file, is_salvage: false, next: 0, page, at: L::PAGE_ENTRIES }
    }

    /// The entry it stands at; `None` past the last one. An error stands for one page.
    pub(crate) fn peek(&mut self) -> Result<Option<L::Entry>> {
        loop {
            if let Some(entry) = L::entry(&self.page, self.at) {
                return Ok(Some(entry));
            }
            if self.next >= self.file.listed.pages() {
                return Ok(None);
            }
            // Behind a damaged page it goes on: who asks again must not meet it for ever.
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
    /// The newest first: of entries of one rank, that of the newest comes first.
    files: Vec<Cursor<L>>,
    rule: L::Rule,
    writer: Writer<L>,
}

impl<L: Paged> Merge<L> {
    /// Entries that are newer than those of all files, the later behind the earlier, and files, the newest first.
    pub(crate) fn new(
        mut fresh: Vec<L::Entry>,
        files: &[Arc<SealedFile<L>>],
        rule: L::Rule,
        writer: Writer<L>,
    ) -> Self {
        L::sort(&mut fresh);
        let files = files.iter().map(|file| Cursor::new(Arc::clone(file))).collect();
        Merge { fresh: fresh.into_iter().peekable(), files, rule, writer }
    }

    /// All that is left of files that may be damaged, the newest first.
    pub(crate) fn salvage(files: &[Arc<SealedFile<L>>], rule: L::Rule, writer: Writer<L>) -> Self {
        let mut merge = Merge::new(Vec::new(), files, rule, writer);
        merge.files.iter_mut().for_each(|cursor| cursor.is_salvage = true);
        merge
    }

    /// Merges at most `count` entries more. Whether all are. With a failure, what was written goes; a file that can't be
    /// read stays as it is.
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

    /// The next entry, and in which file it stands; past all of them if it is a new one.
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

    /// Gives up: what was written goes.
    pub(crate) fn discard(self) {
        self.writer.discard();
    }
}
