//! What is left of the files of remembered keys.
//!
//! Promises: every whole page is kept, those of damaged files in a new one that is durable before anything lists it.
//! Memory is bounded. Never: changes a file that is there.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::list;
use crate::limits;
use crate::log::Seams;
use crate::log::survey::Survey;
use crate::remembered::{self, MemoryFile, Merge, Writer};
use crate::sealed::listed::{ENTRIES, ListedMemories};
use crate::sealed::{Pace, Stopped};
use crate::storage::{Access, Failure, Storage, read_full_at};
use crate::types::StoreId;
use crate::{Error, ErrorKind, Result};

/// The files in which anything is left, the oldest first.
pub(super) struct Remembered {
    files: Vec<Left>,
    /// How many memories the damaged pages and the missing files held.
    pub(super) lost: u64,
}

struct Left {
    file: Arc<MemoryFile>,
    is_whole: bool,
}

impl Remembered {
    pub(super) fn survey(storage: &dyn Storage, dir: &Path, found: &mut Survey) -> Result<Self> {
        let dir = &dir.join("expired");
        let mut remembered = Remembered { files: Vec::new(), lost: 0 };
        match found.manifest.as_ref().map(|manifest| manifest.expired.clone()) {
            Some(listed) => {
                for listed in listed {
                    remembered.look_at(storage, dir, listed.number, Some(listed), found)?;
                }
            }
            None => remembered.look_at_all(storage, dir, found)?,
        }
        Ok(remembered)
    }

    /// Which of the files were listed, nobody knows any more. Those that weren't say nothing wrong: the log goes before
    /// them.
    fn look_at_all(&mut self, storage: &dyn Storage, dir: &Path, found: &mut Survey) -> Result<()> {
        if storage.list(dir).is_err_and(|e| e.kind() == io::ErrorKind::NotADirectory) {
            let what = "a file in place of the directory of expired keys";
            found.damages.push(Error::corrupt(dir, 0, what));
            self.lost = 1;
        }
        let entries = list(storage, dir)?;
        let mut numbers: Vec<_> =
            entries.iter().filter_map(|entry| remembered::number_of(&entry.name)).collect();
        numbers.sort_unstable();
        for number in numbers {
            let listed = match read_header(storage, dir, number) {
                Ok(listed) => Some(listed),
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    found.damages.push(e);
                    None
                }
                Err(e) => return Err(e),
            };
            self.look_at(storage, dir, number, listed, found)?;
        }
        Ok(())
    }

    /// Looks at one file. Where nobody knows what was listed, that was told.
    fn look_at(
        &mut self,
        storage: &dyn Storage,
        dir: &Path,
        number: u32,
        listed: Option<ListedMemories>,
        found: &mut Survey,
    ) -> Result<()> {
        let store = found.store;
        let opened = listed.map(|listed| MemoryFile::open(storage, dir, listed, store, false));
        match opened.transpose() {
            Ok(None) => {}
            Ok(Some(file)) => return self.take(file, true, listed, &mut |e| found.damages.push(e)),
            Err(e) if e.kind() == ErrorKind::Corrupt => found.damages.push(e),
            Err(e) => return Err(e),
        }
        match MemoryFile::open_damaged(storage, dir, number, store)? {
            // Its pages aren't told one by one: all of them may be another file's.
            Some(file) => self.take(file, false, listed, &mut drop),
            None => {
                self.count_lost(listed.map_or(1, |listed| listed.entries));
                Ok(())
            }
        }
    }

    fn take(
        &mut self,
        file: MemoryFile,
        is_headed: bool,
        listed: Option<ListedMemories>,
        told: &mut dyn FnMut(Error),
    ) -> Result<()> {
        let (damaged, entries) = file.check_pages(&|| Ok(()), told)?;
        let is_whole = is_headed && damaged == 0;
        if !is_whole {
            let full_pages = damaged.saturating_mul(ENTRIES as u64);
            let lost = listed.map(|listed| listed.entries.saturating_sub(entries));
            self.count_lost(lost.unwrap_or(full_pages.max(1)));
        }
        if is_whole || entries > 0 {
            self.files.push(Left { file: Arc::new(file), is_whole });
        }
        Ok(())
    }

    fn count_lost(&mut self, memories: u64) {
        self.lost = self.lost.saturating_add(memories);
    }

    /// Writes what is left of damaged files into a new one of that number. What is to be listed, the oldest first.
    ///
    /// The files behind a damaged one are taken in: of two, that of the greater number must be the younger. They are
    /// smaller than it, for so they are merged.
    pub(super) fn save(
        &self,
        seams: &Seams,
        dir: &Path,
        store: StoreId,
        number: u32,
    ) -> Result<Vec<ListedMemories>> {
        let whole = self.files.iter().take_while(|left| left.is_whole);
        let mut listed: Vec<_> = whole.map(|left| left.file.listed).collect();
        let rest = self.files.iter().skip(listed.len()).rev();
        let newest_first: Vec<_> = rest.map(|left| Arc::clone(&left.file)).collect();
        if newest_first.is_empty() {
            return Ok(listed);
        }
        let only = |failure| match failure {
            Failure::Before(e) | Failure::Poison(e) => e,
        };
        let (storage, dir) = (&seams.storage, dir.join("expired"));
        let writer = Writer::create(storage, &dir, store, number, Pace::alone()).map_err(only)?;
        let mut merge = Merge::salvage(&newest_first, writer);
        loop {
            match merge.advance(limits::MERGE_SLOTS) {
                Ok(true) => break,
                Ok(false) => {}
                Err(Stopped::Writing(failure)) => return Err(only(failure)),
                Err(Stopped::Reading(e)) => {
                    merge.discard();
                    return Err(e);
                }
            }
        }
        listed.push(merge.finish().map_err(only)?);
        Ok(listed)
    }
}

/// What the header of the file with that number says.
fn read_header(storage: &dyn Storage, dir: &Path, number: u32) -> Result<ListedMemories> {
    let path = dir.join(remembered::file_name(number));
    let file = match storage.open(&path, Access::Read) {
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
            let what = "a directory in place of expired keys:";
            return Err(Error::corrupt(&path, 0, what).because(e));
        }
        opened => opened.map_err(|e| Error::io("opening", &path, e))?,
    };
    let mut header = vec![0; limits::PAGE_BYTES];
    let have = read_full_at(&*file, &mut header, 0).map_err(|e| Error::io("reading", &path, e))?;
    let (_, listed) = ListedMemories::decode(header.get(..have).unwrap_or_default(), &path)?;
    if listed.number != number {
        return Err(Error::corrupt(&path, 0, "expired keys of another file"));
    }
    Ok(listed)
}
