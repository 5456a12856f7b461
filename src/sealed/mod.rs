//! Files that are written once, in one pass, and never changed: tables, and files of expired keys.
//!
//! Promises: on return of `finish` the file and its name are durable, and it is not listed yet; a crash before leaves a
//! file without consequence, since its header is written last. Reading goes through a map or by plain reads, and
//! forms what it reads of bytes that the caller then checks. Never: knows what stands in them.

pub(crate) mod listed;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits;
use crate::storage::{self, Access, Failure, File, Map, Storage};
use crate::sync::{AtomicU64, Ordering};
use crate::{Error, Result};

/// An open file.
#[derive(Debug)]
pub(crate) struct Sealed {
    path: PathBuf,
    bytes: Bytes,
}

/// Where its bytes come from. A map needs no open file.
#[derive(Debug)]
enum Bytes {
    Map(Arc<dyn Map>),
    File(Arc<dyn File>),
}

impl Sealed {
    /// Opens a listed file, `what` it is in words. `check` is shown its first bytes, and says how long it must be.
    pub(crate) fn open(
        storage: &dyn Storage,
        path: PathBuf,
        what: &str,
        header_bytes: usize,
        map: bool,
        check: impl FnOnce(&[u8], &Path) -> Result<u64>,
    ) -> Result<Self> {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
        let file = match storage.open(&path, Access::Read) {
            Ok(file) => file,
            Err(e) => {
                let problem = match e.kind() {
                    NotFound => "a missing file, listed as",
                    IsADirectory => "a directory in place of",
                    NotADirectory => "a file in place of the directory of",
                    _ => return Err(Error::io("opening", &path, e)),
                };
                return Err(Error::corrupt(&path, 0, format_args!("{problem} {what}")).because(e));
            }
        };
        let mut header = vec![0; header_bytes];
        let have = storage::read_full_at(&*file, &mut header, 0)
            .map_err(|e| Error::io("reading", &path, e))?;
        let expected = check(header.get(..have).unwrap_or_default(), &path)?;
        let len = file.len().map_err(|e| Error::io("reading", &path, e))?;
        if len != expected {
            return Err(Error::corrupt(&path, len, format_args!("another length of {what}")));
        }
        // Where mapping fails, plain reads serve: the format is the same.
        let bytes = match if map { file.map(len).ok() } else { None } {
            Some(map) => Bytes::Map(map),
            None => Bytes::File(file),
        };
        Ok(Sealed { path, bytes })
    }

    /// Opens a file whatever it holds, and says how long it is; `None` if there is none.
    pub(crate) fn open_damaged(
        storage: &dyn Storage,
        path: PathBuf,
    ) -> Result<Option<(Self, u64)>> {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
        let file = match storage.open(&path, Access::Read) {
            Err(e) if matches!(e.kind(), NotFound | IsADirectory | NotADirectory) => {
                return Ok(None);
            }
            opened => opened.map_err(|e| Error::io("opening", &path, e))?,
        };
        let len = file.len().map_err(|e| Error::io("reading", &path, e))?;
        Ok(Some((Sealed { path, bytes: Bytes::File(file) }, len)))
    }

    /// Looks at what stands at an offset; `None` behind the end. Of a map nothing is copied: a copy in pieces can't be
    /// summed before it has reached the cache, which costs more than the sum.
    pub(crate) fn read<T, R>(&self, at: u64, look: impl FnOnce(&T) -> R) -> Result<Option<R>>
    where
        T: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned,
    {
        match &self.bytes {
            Bytes::Map(map) => {
                let bytes = map.bytes(at, size_of::<T>());
                Ok(bytes.and_then(|bytes| T::ref_from_bytes(bytes).ok()).map(look))
            }
            Bytes::File(file) => {
                let mut value = T::new_zeroed();
                let have = storage::read_full_at(&**file, value.as_mut_bytes(), at)
                    .map_err(|e| Error::io("reading", &self.path, e).offset_at(at))?;
                Ok((have == size_of::<T>()).then(|| look(&value)))
            }
        }
    }

    /// Reads a byte at each place, of a map of `len` bytes, so that their cache lines are at hand later; nothing where
    /// there is no map. So few instructions for each that a processor has many of these reads under way at once.
    pub(crate) fn touch(&self, len: u64, places: impl Iterator<Item = u64>) -> u8 {
        let Bytes::Map(map) = &self.bytes else { return 0 };
        let all = usize::try_from(len).ok().and_then(|len| map.bytes(0, len)).unwrap_or_default();
        places.fold(0, |sum, at| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            sum ^ all.get(at).copied().unwrap_or(0)
        })
    }

    /// What a walk comes to next: maps are read without looking ahead.
    pub(crate) fn read_ahead(&self, at: u64) {
        if let Bytes::Map(map) = &self.bytes {
            map.read_ahead(at, limits::TABLE_PIECE_BYTES);
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn damaged(&self, at: u64, what: &str) -> Error {
        Error::corrupt(&self.path, at, what)
    }
}

/// Damaged pieces that follow each other, of which the first is reported: a file that was zeroed has millions.
#[derive(Default, Debug)]
pub(crate) struct Stretch {
    end: Option<u64>,
}

impl Stretch {
    /// A damaged piece of so many bytes. Whether the one before it isn't damaged.
    pub(crate) fn begins(&mut self, at: Option<u64>, bytes: usize) -> bool {
        let end = at.map(|at| at.saturating_add(bytes as u64));
        let before = std::mem::replace(&mut self.end, end);
        at.is_none() || before != at
    }
}

/// When a file that is being written is synced: in small pieces while others sync the log, for each of them shares the
/// device with one; in larger ones else, for each sync of a growing file makes the file system commit its metadata, too.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Counts those of the log.
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

    /// So many bytes more were written. Whether to sync them now, along with those before.
    pub(crate) fn is_due(&mut self, bytes: u64) -> bool {
        self.unsynced = self.unsynced.saturating_add(bytes);
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

/// A file that is being written, front to back; its header last.
pub(crate) struct Writer {
    storage: Arc<dyn Storage>,
    file: Arc<dyn File>,
    path: PathBuf,
    buffer: Vec<u8>,
    written: u64,
    pace: Pace,
}

impl Writer {
    pub(crate) fn create(
        storage: &Arc<dyn Storage>,
        path: PathBuf,
        header_bytes: usize,
        pace: Pace,
    ) -> Result<Self, Failure> {
        let before = |doing: &str, e| Failure::Before(Error::io(doing, &path, e));
        let file = match storage.create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // Written by an opening that ended before its manifest listed it.
                storage.remove(&path).map_err(|e| before("removing", e))?;
                storage.create(&path)
            }
            other => other,
        };
        let file = file.map_err(|e| before("creating", e))?;
        Ok(Writer {
            storage: Arc::clone(storage),
            file,
            path,
            buffer: Vec::with_capacity(limits::TABLE_PIECE_BYTES),
            written: header_bytes as u64,
            pace,
        })
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= limits::TABLE_PIECE_BYTES { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<(), Failure> {
        let written = storage::write_all_at(&*self.file, &self.buffer, self.written);
        written.map_err(|e| self.failed("writing", e))?;
        let len = self.buffer.len() as u64;
        self.written = self.written.saturating_add(len);
        self.buffer.clear();
        if self.pace.is_due(len) {
            let synced = self.file.sync_data();
            synced.map_err(|e| self.failed("syncing", e))?;
        }
        Ok(())
    }

    /// Ends the file. Durable on return, its name included.
    pub(crate) fn finish(mut self, header: &[u8]) -> Result<(), Failure> {
        self.write_out()?;
        let dir = self.path.parent().unwrap_or(Path::new(""));
        storage::write_all_at(&*self.file, header, 0)
            .and_then(|()| self.file.sync_data())
            .and_then(|()| self.storage.sync_dir(dir))
            .map_err(|e| self.failed("finishing", e))
    }

    pub(crate) fn discard(&self) {
        // If it stays, the next opening removes it: no manifest lists it.
        let _ = self.storage.remove(&self.path);
    }

    /// What was written goes at once: on a full disk others need the room.
    fn failed(&self, doing: &str, e: io::Error) -> Failure {
        self.discard();
        Failure::full_or_poison(e, |e| Error::io(doing, &self.path, e))
    }
}

/// Why a merge of such files stopped.
pub(crate) enum Stopped {
    Writing(Failure),
    /// One of those that are merged is damaged, or can't be read.
    Reading(Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_small_while_others_sync_and_large_else() {
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
