//! Saves the files of remembered keys.
//!
//! Promises: every whole page is kept; the whole pages of damaged files are copied into new files that are durable
//! before they are listed. Memory is bounded, and so is the number of open files. Never: changes an existing file.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::list;
use crate::limits;
use crate::log::survey::Survey;
use crate::remembered::{MemoryFile, Newest};
use crate::sealed::listed::{ENTRIES, ListedFile, ListedMemories};
use crate::sealed::{self, Merge, Pace, Writer};
use crate::storage::{Failure, Storage};
use crate::types::{StoreId, StoreMillis};
use crate::{Error, ErrorKind, Result};

/// Files merged at a time: each is open, and takes a page of memory.
const OPEN_MOST: usize = 8;

/// The files with any whole page, the oldest first.
pub(super) struct Remembered {
    files: Vec<Left>,
    /// The number of memories in damaged pages and missing files.
    pub(super) lost: u64,
}

/// A file that was read through, and closed.
struct Left {
    listed: ListedMemories,
    /// Whether its header is valid.
    is_headed: bool,
    is_whole: bool,
}

impl Left {
    fn open(&self, storage: &dyn Storage, dir: &Path, store: StoreId) -> Result<MemoryFile> {
        if self.is_headed {
            return MemoryFile::open(storage, dir, self.listed, store, false);
        }
        MemoryFile::open_whatever(storage, dir, self.listed.number, store)?.ok_or_else(|| {
            let path = dir.join(ListedMemories::file_name(self.listed.number));
            Error::corrupt(&path, 0, "expired keys that were there when the repair began:")
        })
    }
}

impl Remembered {
    pub(super) fn survey(
        storage: &dyn Storage,
        dir: &Path,
        found: &mut Survey<'_>,
    ) -> Result<Self> {
        let dir = &dir.join(ListedMemories::DIR);
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

    /// Reads all files, where it is unknown which of them were listed. Unlisted ones do no harm: the log takes
    /// precedence over them.
    fn look_at_all(
        &mut self,
        storage: &dyn Storage,
        dir: &Path,
        found: &mut Survey<'_>,
    ) -> Result<()> {
        if storage.list(dir).is_err_and(|e| e.kind() == io::ErrorKind::NotADirectory) {
            let what = "a file in place of the directory of expired keys";
            found.damages.push(Error::corrupt(dir, 0, what));
            self.lost = 1;
        }
        let entries = list(storage, dir)?;
        let mut numbers: Vec<_> =
            entries.iter().filter_map(|entry| ListedMemories::number_of(&entry.name)).collect();
        numbers.sort_unstable();
        for number in numbers {
            let listed = match sealed::listed_by_itself(storage, dir, number) {
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

    /// Reads one file. `listed` is `None` if it isn't known what was listed, which was reported before.
    fn look_at(
        &mut self,
        storage: &dyn Storage,
        dir: &Path,
        number: u32,
        listed: Option<ListedMemories>,
        found: &mut Survey<'_>,
    ) -> Result<()> {
        let store = found.store;
        let opened = listed.map(|listed| MemoryFile::open(storage, dir, listed, store, false));
        match opened.transpose() {
            Ok(None) => {}
            Ok(Some(file)) => return self.take(file, true, listed, &mut |e| found.damages.push(e)),
            Err(e) if e.kind() == ErrorKind::Corrupt => found.damages.push(e),
            Err(e) => return Err(e),
        }
        match MemoryFile::open_whatever(storage, dir, number, store)? {
            // Its pages aren't reported one by one: all of them may belong to another file.
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
            let full_pages = damaged * ENTRIES as u64;
            // 0 if it is longer than listed.
            let lost = listed.map(|listed| listed.entries.saturating_sub(entries));
            self.count_lost(lost.unwrap_or(full_pages.max(1)));
        }
        if is_whole || entries > 0 {
            self.files.push(Left { listed: file.listed, is_headed, is_whole });
        }
        Ok(())
    }

    fn count_lost(&mut self, memories: u64) {
        self.lost += memories;
    }

    /// Writes the whole pages of damaged files into new files, numbered from `number` on. Returns the files to be
    /// listed, the oldest first, and the next free number.
    ///
    /// The files after a damaged one are merged, too, because a greater number must mean a younger file. Merges make
    /// them smaller than it.
    pub(super) fn save(
        &self,
        storage: &Arc<dyn Storage>,
        dir: &Path,
        store: StoreId,
        mut number: u32,
    ) -> Result<(Vec<ListedMemories>, u32)> {
        let whole = self.files.iter().take_while(|left| left.is_whole);
        let mut listed: Vec<_> = whole.map(|left| left.listed).collect();
        let dir = &dir.join(ListedMemories::DIR);
        for some in self.files.split_at(listed.len()).1.chunks(OPEN_MOST) {
            listed.push(merge(storage, dir, store, number, some)?);
            number = number.checked_add(1).ok_or_else(|| {
                Error::new(ErrorKind::StorageFull, "expired keys have used up their numbers")
                    .at(dir)
            })?;
        }
        Ok((listed, number))
    }
}

/// Writes the whole pages of some files into one. The files are open meanwhile.
fn merge(
    storage: &Arc<dyn Storage>,
    dir: &Path,
    store: StoreId,
    number: u32,
    oldest_first: &[Left],
) -> Result<ListedMemories> {
    let newest_first = oldest_first.iter().rev();
    let files = newest_first.map(|left| left.open(&**storage, dir, store).map(Arc::new));
    let files = files.collect::<Result<Vec<_>>>()?;
    let written = || {
        let empty = ListedMemories::empty(number);
        let writer = Writer::create(storage, dir, store, empty, Pace::alone())?;
        let mut merge = Merge::salvage(&files, Newest::at(StoreMillis(0)), writer);
        while !merge.advance(limits::MERGE_SLOTS)? {}
        merge.finish()
    };
    written().map_err(|failure| match failure {
        Failure::Before(e) | Failure::Poison(e) => e,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remembered::Memory;
    use crate::storage::memory::MemoryStorage;
    use crate::types::KeyHash;

    const STORE: StoreId = StoreId([5; 16]);
    const MINUTE: u64 = 60_000;

    /// All of them used to be open at once. Listed files are few, because they are merged, but the number of unlisted
    /// ones is not bounded.
    #[test]
    fn a_save_of_many_damaged_files_opens_few_and_keeps_the_newest_memory_of_a_key() {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let (store_dir, dir) = (Path::new("/"), Path::new("/expired"));
        storage.create_dir(dir).unwrap();
        let hash = |n: u32| KeyHash { high: u64::from(n) << 40, low: 0 };
        let count = 5 * OPEN_MOST as u32 + 3;
        let mut files = Vec::new();
        for number in 1..=count {
            // A key that all files remember, and one that only this file does.
            let until = StoreMillis(1000 * MINUTE);
            let memory = |key| Memory::new(hash(key), u64::from(number) * MINUTE, until);
            let empty = ListedMemories::empty(number);
            let writer = Writer::create(&storage, dir, STORE, empty, Pace::alone()).ok().unwrap();
            let new = vec![memory(0), memory(number)];
            let mut merge = Merge::new(new, &[], Newest::at(StoreMillis(0)), writer);
            assert!(merge.advance(10).ok().unwrap());
            let listed = merge.finish().ok().unwrap();
            // The first two are whole; the rest is written anew from the third on.
            files.push(Left { listed, is_headed: number % 2 == 0, is_whole: number != 3 });
        }
        let remembered = Remembered { files, lost: 0 };
        let (listed, next) = remembered.save(&storage, store_dir, STORE, 100).unwrap();
        let numbers: Vec<_> = listed.iter().map(|listed| listed.number).collect();
        assert_eq!(numbers, [1, 2, 100, 101, 102, 103, 104, 105]);
        assert_eq!(next, 106);
        let open =
            |listed: &ListedMemories| MemoryFile::open(&*storage, dir, *listed, STORE, false);
        let saved: Vec<_> = listed.iter().map(|listed| open(listed).unwrap()).collect();
        // Searched as a store does: the newest file first.
        let completed = |key: u32| {
            let found = saved.iter().rev().find_map(|file| file.find(hash(key)).unwrap());
            found.map(|memory| memory.completed_wall() / MINUTE)
        };
        assert_eq!(completed(0), Some(u64::from(count)));
        assert!((1..=count).all(|key| completed(key) == Some(u64::from(key))));
        assert_eq!(saved[2].find(hash(0)).unwrap().unwrap().completed_wall(), 10 * MINUTE);
    }
}
