//! One file of the log: spare, active or sealed.
//!
//! A spare is a file of zeros without identity, written page by page and synced ahead of need: writing into allocated
//! but unwritten blocks would make every later sync commit file system metadata, too. Activation gives it a header
//! and a name; only then may a manifest list it. A segment is never recycled.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use super::format::SegmentHeader;
use super::format::{Identity, SEGMENT_HEADER_BYTES};
use super::pool::{Pool, Pooled, SegmentBytes};
use crate::limits;
use crate::manifest::{Listed, Secrets};
use crate::record::{self, Record, Seal};
use crate::storage::{self, Access, Failure, File, HeldBytes, Map, Storage};
use crate::types::{Lsn, StoreId, in_memory};
use crate::{Error, Result};

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) identity: Identity,
    pub(crate) seal: Seal,
    pub(crate) path: PathBuf,
    source: Source,
}

/// The source of its bytes.
#[derive(Debug)]
enum Source {
    /// It is or will be written to; or it was opened to be read once.
    File(Arc<dyn File>),
    /// Nothing is written to it any more.
    Pooled(Pooled),
}

/// A prepared file of zeros.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// An open found it: before use it must be checked that it is still zeros.
    pub(crate) is_found: bool,
    /// Kept open, so that it can become a segment when no descriptor is left.
    pub(crate) file: Option<Arc<dyn File>>,
}

const SPARE_PREFIX: &str = "spare-";

/// Returns the name of the segment with that ordinal.
pub(crate) fn file_name(ordinal: u32) -> String {
    format!("{ordinal:010}.log")
}

/// Returns the ordinal in a file name; `None` if it names no segment.
pub(crate) fn ordinal_of(name: &str) -> Option<u32> {
    let ordinal = name.strip_suffix(".log")?.parse().ok()?;
    (file_name(ordinal) == name).then_some(ordinal)
}

impl Spare {
    /// Returns the number of a prepared spare; `None` for any other name. A spare has its name only once its zeros
    /// are durable.
    pub(crate) fn number_of(name: &str) -> Option<u32> {
        name.strip_prefix(SPARE_PREFIX)?.parse().ok()
    }

    /// Returns the path of a spare that is being made.
    pub(crate) fn draft_path(log_dir: &Path) -> PathBuf {
        log_dir.join("spare.new")
    }

    /// Writes `bytes` zeros into a file of `log_dir`, and names it `spare-{number}`. Durable on return, except for
    /// the name.
    pub(crate) fn prepare(
        storage: &dyn Storage,
        log_dir: &Path,
        number: u32,
        bytes: u64,
    ) -> Result<Self, Failure> {
        let draft = Spare::draft_path(log_dir);
        let before = |doing: &str, e| Failure::Before(Error::io(doing, &draft, e));
        let file = match storage.create(&draft) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                storage.remove(&draft).map_err(|e| before("removing", e))?;
                storage.create(&draft)
            }
            other => other,
        };
        let file = file.map_err(|e| before("creating", e))?;
        let path = log_dir.join(format!("{SPARE_PREFIX}{number}"));
        if let Err(e) = fill_with_zeros(&*file, bytes).and_then(|()| storage.rename(&draft, &path))
        {
            // Releases the allocated space at once: other files may need it. A failure changes nothing.
            let _ = storage.remove(&draft);
            return Err(Failure::full_or_poison(e, |e| Error::io("preparing", &path, e)));
        }
        Ok(Spare { path, bytes, is_found: false, file: Some(file) })
    }

    /// Whether it still has the name of a spare.
    pub(crate) fn is_spare(&self) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.and_then(Spare::number_of).is_some()
    }

    fn file(&mut self, storage: &dyn Storage) -> Result<Arc<dyn File>> {
        if let Some(file) = &self.file {
            return Ok(Arc::clone(file));
        }
        let file = storage
            .open(&self.path, Access::ReadWrite)
            .map_err(|e| Error::io("opening", &self.path, e))?;
        Ok(Arc::clone(self.file.insert(file)))
    }

    /// Whether it is still all zeros.
    pub(crate) fn is_zeros(&mut self, storage: &dyn Storage) -> Result<bool> {
        let file = self.file(storage)?;
        let mut window = vec![0; 1 << 16];
        let mut at = 0;
        while at < self.bytes {
            let have = storage::read_full_at(&*file, &mut window, at)
                .map_err(|e| Error::io("reading", &self.path, e).offset_at(at))?;
            let is_short = have < window.len() && at + (have as u64) < self.bytes;
            if is_short || window.iter().take(have).any(|&byte| byte != 0) {
                return Ok(false);
            }
            at += window.len() as u64;
        }
        Ok(true)
    }

    /// Gives the spare a header and its name as a segment. `follows` is the log before it: see `SegmentHeader`.
    /// Durable on return, but not listed.
    pub(crate) fn activate(
        &mut self,
        storage: &dyn Storage,
        log_dir: &Path,
        identity: Identity,
        store: StoreId,
        secrets: &Secrets,
        follows: Lsn,
    ) -> Result<Segment, Failure> {
        let path = log_dir.join(file_name(identity.ordinal));
        let file = self.file(storage).map_err(Failure::Before)?;
        let activating = |e| Error::io("activating", &path, e);
        // Until a manifest lists it, nothing depends on it: the next try writes the header anew.
        storage::write_all_at(&*file, &identity.encode(store, secrets, follows), 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| storage.rename(&self.path, &path))
            .map_err(|e| Failure::scarce_or_poison(e, activating))?;
        self.path.clone_from(&path);
        storage.sync_dir(log_dir).map_err(|e| Failure::Poison(activating(e)))?;
        Ok(Segment::new(identity, store, path, file))
    }
}

fn fill_with_zeros(file: &dyn File, bytes: u64) -> io::Result<()> {
    let zeros = [0; limits::PAGE_BYTES];
    let mut at = 0;
    while at < bytes {
        let (page, _) = zeros.split_at(in_memory(bytes - at).min(zeros.len()));
        storage::write_all_at(file, page, at)?;
        at += page.len() as u64;
    }
    file.sync_data()
}

impl Segment {
    fn new(identity: Identity, store: StoreId, path: PathBuf, file: Arc<dyn File>) -> Self {
        Segment { identity, seal: identity.seal(store), path, source: Source::File(file) }
    }

    /// Returns a segment whose header has not been checked.
    pub(crate) fn unchecked(
        identity: Identity,
        store: StoreId,
        path: PathBuf,
        file: Arc<dyn File>,
    ) -> Self {
        Segment::new(identity, store, path, file)
    }

    /// Opens a listed segment and checks that it is the one listed.
    pub(crate) fn open(
        storage: &dyn Storage,
        log_dir: &Path,
        listed: &Listed,
        store: StoreId,
        access: Access,
    ) -> Result<Self> {
        let path = log_dir.join(file_name(listed.ordinal));
        let file = match storage.open(&path, access) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::corrupt(&path, 0, "a listed segment is missing:").because(e));
            }
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
                return Err(
                    Error::corrupt(&path, 0, "a directory in place of a segment:").because(e)
                );
            }
            Err(e) => return Err(Error::io("opening", &path, e)),
        };
        let found = read_identity(&*file, &path)?;
        if found.0 != store {
            return Err(Error::corrupt(&path, 0, "a segment of another store"));
        }
        if found.1 != Identity::of(listed) {
            return Err(Error::corrupt(&path, 0, "another segment than the manifest lists"));
        }
        let len = file.len().map_err(|e| Error::io("reading", &path, e))?;
        if len < listed.end.since(listed.base) {
            return Err(Error::corrupt(&path, len, "a segment cut short"));
        }
        Ok(Segment::new(found.1, store, path, file))
    }

    /// Returns the segment handed to the pool: nothing is written before its listed `end` any more, and all of it is
    /// durable. `None` if it was pooled before.
    pub(crate) fn pooled(&self, pool: &Arc<Pool>, end: Lsn) -> Option<Segment> {
        let Source::File(file) = &self.source else { return None };
        let source = Source::Pooled(pool.take(&self.path, self.offset(end), Arc::clone(file)));
        Some(Segment { identity: self.identity, seal: self.seal, path: self.path.clone(), source })
    }

    /// Returns its file, for writes, and for reads by calls.
    pub(crate) fn file(&self) -> Result<Arc<dyn File>> {
        match &self.source {
            Source::File(file) => Ok(Arc::clone(file)),
            Source::Pooled(pooled) => {
                pooled.file().map_err(|e| Error::io("opening", &self.path, e))
            }
        }
    }

    /// Keeps it readable for walks that hold it, before its file is removed.
    pub(crate) fn pin(&self) -> Result<()> {
        match &self.source {
            Source::File(_) => Ok(()),
            Source::Pooled(pooled) => {
                pooled.pin().map_err(|e| Error::io("keeping open", &self.path, e))
            }
        }
    }

    /// Whether the bytes after file offset `end` may be cut off: not if a map reaches further.
    pub(crate) fn cut_to(&self, end: u64) -> bool {
        match &self.source {
            Source::File(_) => true,
            Source::Pooled(pooled) => pooled.cut_to(end),
        }
    }

    pub(crate) fn base(&self) -> Lsn {
        self.identity.base
    }

    /// Returns the file offset of `lsn`, which lies in this segment.
    pub(crate) fn offset(&self, lsn: Lsn) -> u64 {
        lsn.since(self.base())
    }

    /// Reads the record at `lsn`, which is completely written. What the record lies in can be kept.
    pub(crate) fn read<T>(
        &self,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>, &Backing<'_>) -> Result<T>,
    ) -> Result<T> {
        let pooled = match &self.source {
            Source::File(file) => return self.read_by_calls(&**file, lsn, use_of),
            Source::Pooled(pooled) => pooled,
        };
        let map = match pooled.bytes().map_err(|e| Error::io("opening", &self.path, e))? {
            SegmentBytes::File(file) => return self.read_by_calls(&*file, lsn, use_of),
            SegmentBytes::Map(map) => map,
        };
        let offset = self.offset(lsn);
        let corrupt = |bad: record::Bad| Error::corrupt(&self.path, offset, bad);
        // A record after the map's end, as a damaged table may claim, counts as cut short.
        let head = map.bytes(offset, record::HEADER_BYTES).unwrap_or_default();
        let head = record::parse_head(head, lsn, &self.seal).map_err(corrupt)?;
        let bytes = map.bytes(offset, head.len()).unwrap_or_default();
        let record = Record::behind(head, bytes, lsn, &self.seal).map_err(corrupt)?;
        use_of(record, &Backing::Mapped { map: &map, offset })
    }

    /// The same, from its file: this fails where the device can't read.
    pub(crate) fn read_by_calls<T>(
        &self,
        file: &dyn File,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>, &Backing<'_>) -> Result<T>,
    ) -> Result<T> {
        let offset = self.offset(lsn);
        let corrupt = |bad: record::Bad| Error::corrupt(&self.path, offset, bad);
        // One read for most records: header and body together.
        let mut bytes = vec![0; FIRST_READ_BYTES];
        let read = |bytes: &mut [u8]| {
            storage::read_full_at(file, bytes, offset)
                .map_err(|e| Error::io("reading", &self.path, e).offset_at(offset))
        };
        let have = read(&mut bytes)?;
        bytes.truncate(have);
        let head = record::parse_head(&bytes, lsn, &self.seal).map_err(corrupt)?;
        if head.len() <= bytes.len() {
            let record = Record::behind(head, &bytes, lsn, &self.seal).map_err(corrupt)?;
            return use_of(record, &Backing::Brief);
        }
        // Made anew: growing would copy what is read again.
        let mut bytes = vec![0; head.len()];
        let have = read(&mut bytes)?;
        bytes.truncate(have);
        let bytes = Arc::new(bytes);
        let record = Record::behind(head, &bytes, lsn, &self.seal).map_err(corrupt)?;
        use_of(record, &Backing::Read(&bytes))
    }
}

/// The bytes that a plain read of a record asks for first.
const FIRST_READ_BYTES: usize = 1024;
// What such a read holds is too short to be held.
const _: () = assert!(FIRST_READ_BYTES <= limits::RESULT_COPIED_MAX);

/// What the bytes of a record lie in while it is used.
pub(crate) enum Backing<'b> {
    Mapped {
        map: &'b Arc<dyn Map>,
        /// The record's.
        offset: u64,
    },
    Read(&'b Arc<Vec<u8>>),
    /// A buffer that is gone afterwards.
    Brief,
}

impl Backing<'_> {
    /// Holds the last `len` bytes of the record's body, without a copy. `None` if they can't be held: for bytes of
    /// another record, and for a brief buffer.
    pub(crate) fn hold_tail(&self, record: &Record<'_>, len: usize) -> Option<HeldBytes> {
        let at = record.tail_at(len)?;
        match self {
            Backing::Mapped { map, offset } => Arc::clone(map).hold(offset + at as u64, len),
            Backing::Read(bytes) => storage::hold_read(bytes, at, len),
            Backing::Brief => None,
        }
    }
}

/// Reads the header of the segment file at `path`.
pub(crate) fn read_header(file: &dyn File, path: &Path) -> Result<SegmentHeader> {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    let have =
        storage::read_full_at(file, &mut header, 0).map_err(|e| Error::io("reading", path, e))?;
    Identity::decode_all(header.split_at(have).0, path)
}

/// Reads the identity of the segment file at `path`.
pub(crate) fn read_identity(file: &dyn File, path: &Path) -> Result<(StoreId, Identity)> {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    let have =
        storage::read_full_at(file, &mut header, 0).map_err(|e| Error::io("reading", path, e))?;
    Identity::decode(header.split_at(have).0, path)
}
