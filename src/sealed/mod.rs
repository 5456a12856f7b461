//! Files written once, in one pass, and never changed: tables, and files of expired keys.
//!
//! Promises: entries are sorted in pages, and each page's checksum is checked before the page is used, so that damage
//! is an error and never a missing entry. Read through a map or by plain reads. Never: knows a key, or which of two
//! entries counts; [`ListedFile`] and [`Paged`] define what differs between the kinds.

pub(crate) mod listed;
mod merge;
mod write;

pub(crate) use merge::{EntryCursor, Merge};
pub(crate) use write::{Pace, Writer};

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits;
use crate::storage::{self, Access, File, Map, Storage};
use crate::types::{StoreId, in_memory};
use crate::{Error, Result};
use listed::ListedFile;

/// What a page holds before its checksum.
pub(crate) trait PageBody:
    FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy
{
}

impl<B: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy> PageBody for B {}

/// The pages of one kind of file.
pub(crate) trait Paged: ListedFile {
    type Entry: Copy;
    /// A page without its checksum. All zeros: a page without an entry.
    type Body: PageBody;
    /// Entries are sorted by it.
    type Rank: Ord;
    /// Decides which entries a merge leaves out.
    type Rule;

    /// Entries of a full page.
    const PAGE_ENTRIES: usize;
    /// Distinguishes the checksums of its pages from those of another kind.
    const SEED: &'static [u8];
    /// Name of a damaged page, for messages.
    const DAMAGED: &'static str;

    fn pages(&self) -> u64;
    fn body_of(entries: &[Self::Entry]) -> Self::Body;
    fn entry(body: &Self::Body, at: usize) -> Option<Self::Entry>;
    fn rank(entry: &Self::Entry) -> Self::Rank;
    /// Sorts entries. Among equal ranks, the one that was given last comes first.
    fn sort(entries: &mut [Self::Entry]);
    /// Whether a merge keeps the entry. Called once for each, in order.
    fn keeps(rule: &mut Self::Rule, entry: &Self::Entry) -> bool;

    /// The first page that may hold an entry.
    fn home_of(&self, entry: &Self::Entry) -> u64;
    /// The least number of pages, even if they are empty.
    fn homes(&self) -> u64;
    /// Counts an entry of the file.
    fn count(&mut self, entry: &Self::Entry);
    /// Notes the number of pages, once all entries are written.
    fn end(&mut self, pages: u64);

    /// Whether a writer could have made a page.
    fn is_possible(_page: &Self::Body) -> bool {
        true
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Page<B> {
    body: B,
    /// Over the body, then the page's number, starting from the file's seed.
    sum: U32,
}

impl<B: IntoBytes + Immutable> Page<B> {
    fn of(body: B, number: u64, seed: u32) -> Self {
        let mut page = Page { body, sum: 0.into() };
        page.sum = page.expected_sum(number, seed).into();
        page
    }

    fn expected_sum(&self, number: u64, seed: u32) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(self.body.as_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.finalize()
    }
}

/// The start value of page checksums. It makes a page valid only in its own file.
fn seed_of<L: Paged>(store: StoreId, number: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&store.0);
    hasher.update(L::SEED);
    hasher.update(&number.to_le_bytes());
    hasher.finalize()
}

/// The offset of a page in its file.
fn place_of<L: Paged>(number: u64) -> u64 {
    let bytes = size_of::<Page<L::Body>>() as u64;
    number * bytes + L::HEADER_BYTES as u64
}

/// An open file.
#[derive(Debug)]
pub(crate) struct SealedFile<L> {
    pub(crate) listed: L,
    store: StoreId,
    seed: u32,
    path: PathBuf,
    bytes: Bytes,
}

/// The source of its bytes. A map stays valid after its file is closed, so it keeps no file open.
#[derive(Debug)]
enum Bytes {
    Map(Arc<dyn Map>),
    File(Arc<dyn File>),
}

impl<L: Paged> SealedFile<L> {
    /// Opens a listed file and checks that it is the one listed. Its pages are checked as they are read.
    pub(crate) fn open(
        storage: &dyn Storage,
        dir: &Path,
        listed: L,
        store: StoreId,
        map: bool,
    ) -> Result<Self> {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
        let (path, what) = (dir.join(L::file_name(listed.number())), L::WHAT);
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
        if read_header::<L>(&*file, &path)? != (store, listed) {
            let what = format_args!("{} than the manifest lists", L::ANOTHER);
            return Err(Error::corrupt(&path, 0, what));
        }
        let len = file.len().map_err(|e| Error::io("reading", &path, e))?;
        if len != listed.bytes() {
            return Err(Error::corrupt(&path, len, format_args!("another length of {what}")));
        }
        // If mapping fails, plain reads are used: the format is the same.
        let bytes = match if map { file.map(len).ok() } else { None } {
            Some(map) => Bytes::Map(map),
            None => Bytes::File(file),
        };
        let seed = seed_of::<L>(store, listed.number());
        Ok(SealedFile { listed, store, seed, path, bytes })
    }

    /// Opens the file with that number whatever it holds: only whole pages of it are used. `listed` returns the item
    /// that its length implies. `None`: there is no file.
    pub(crate) fn open_damaged(
        storage: &dyn Storage,
        dir: &Path,
        number: u32,
        store: StoreId,
        listed: impl FnOnce(u64) -> L,
    ) -> Result<Option<Self>> {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
        let path = dir.join(L::file_name(number));
        let file = match storage.open(&path, Access::Read) {
            Err(e) if matches!(e.kind(), NotFound | IsADirectory | NotADirectory) => {
                return Ok(None);
            }
            opened => opened.map_err(|e| Error::io("opening", &path, e))?,
        };
        let len = file.len().map_err(|e| Error::io("reading", &path, e))?;
        let (listed, seed) = (listed(len), seed_of::<L>(store, number));
        Ok(Some(SealedFile { listed, store, seed, path, bytes: Bytes::File(file) }))
    }

    /// Opens the file again by its name, for reads by calls. Checks that its header still matches.
    pub(crate) fn reopened(&self, storage: &dyn Storage) -> Result<Self> {
        let dir = self.path.parent().unwrap_or(Path::new(""));
        SealedFile::open(storage, dir, self.listed, self.store, false)
    }

    /// Checks one page, and passes it to `look`.
    pub(crate) fn look_into<R>(&self, number: u64, look: impl FnOnce(&L::Body) -> R) -> Result<R> {
        let looked = self.read(number, |page: &Page<L::Body>| {
            let is_whole = page.sum.get() == page.expected_sum(number, self.seed);
            (is_whole && L::is_possible(&page.body)).then(|| look(&page.body))
        })?;
        looked.flatten().ok_or_else(|| self.damaged(number))
    }

    /// The same for a page of another content, after the file's own pages.
    pub(crate) fn look_into_as<B: PageBody, R>(
        &self,
        number: u64,
        look: impl FnOnce(&B) -> R,
    ) -> Result<R> {
        let looked = self.read(number, |page: &Page<B>| {
            let is_whole = page.sum.get() == page.expected_sum(number, self.seed);
            is_whole.then(|| look(&page.body))
        })?;
        looked.flatten().ok_or_else(|| self.damaged(number))
    }

    /// Passes one unchecked page to `look`; `None` after the end.
    pub(crate) fn look_unchecked<R>(
        &self,
        number: u64,
        look: impl FnOnce(&L::Body) -> R,
    ) -> Result<Option<R>> {
        self.read(number, |page: &Page<L::Body>| look(&page.body))
    }

    /// A mapped page isn't copied: a copy in pieces can't be summed before it has reached the cache, which costs more
    /// than the sum.
    fn read<B: PageBody, R>(
        &self,
        number: u64,
        look: impl FnOnce(&Page<B>) -> R,
    ) -> Result<Option<R>> {
        const { assert!(size_of::<B>() == size_of::<L::Body>()) };
        let at = place_of::<L>(number);
        match &self.bytes {
            Bytes::Map(map) => {
                let bytes = map.bytes(at, size_of::<Page<B>>());
                Ok(bytes.and_then(|bytes| Page::ref_from_bytes(bytes).ok()).map(look))
            }
            Bytes::File(file) => {
                let mut page = Page::<B>::new_zeroed();
                let have = storage::read_full_at(&**file, page.as_mut_bytes(), at)
                    .map_err(|e| Error::io("reading", &self.path, e).offset_at(at))?;
                Ok((have == size_of::<Page<B>>()).then(|| look(&page)))
            }
        }
    }

    /// Returns the error for a page that fails its checksum, or is missing.
    pub(crate) fn damaged(&self, number: u64) -> Error {
        Error::corrupt(&self.path, place_of::<L>(number), L::DAMAGED)
    }

    /// Reads a byte of each mapped page, so that its cache line is loaded for later; does nothing without a map. It
    /// takes so few instructions per page that a processor has many of these reads under way at once.
    pub(crate) fn touch_pages(&self, numbers: impl Iterator<Item = u64>) -> u8 {
        let Bytes::Map(map) = &self.bytes else { return 0 };
        let Some(all) = map.bytes(0, in_memory(self.listed.bytes())) else { return 0 };
        let touched = numbers.filter_map(|number| all.get(in_memory(place_of::<L>(number))));
        touched.fold(0, |sum, byte| sum ^ byte)
    }

    /// Reads ahead for a walk: maps don't do so themselves.
    fn read_ahead(&self, number: u64) {
        if let Bytes::Map(map) = &self.bytes {
            map.read_ahead(place_of::<L>(number), limits::TABLE_PIECE_BYTES);
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads the header of the file at `path`.
fn read_header<L: ListedFile>(file: &dyn File, path: &Path) -> Result<(StoreId, L)> {
    let mut header = vec![0; L::HEADER_BYTES];
    let have =
        storage::read_full_at(file, &mut header, 0).map_err(|e| Error::io("reading", path, e))?;
    L::decode(header.split_at(have).0, path)
}

/// Reads the list item of the file with that number in `dir` from its header, for when there is no manifest.
pub(crate) fn listed_by_itself<L: ListedFile>(
    storage: &dyn Storage,
    dir: &Path,
    number: u32,
) -> Result<L> {
    let path = dir.join(L::file_name(number));
    let file = match storage.open(&path, Access::Read) {
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
            let what = format_args!("a directory in place of {}:", L::WHAT);
            return Err(Error::corrupt(&path, 0, what).because(e));
        }
        opened => opened.map_err(|e| Error::io("opening", &path, e))?,
    };
    let (_, listed) = read_header::<L>(&*file, &path)?;
    if listed.number() != number {
        return Err(Error::corrupt(&path, 0, format_args!("{} of another file", L::WHAT)));
    }
    Ok(listed)
}

/// Consecutive damaged pieces, of which only the first is reported: a zeroed file has millions.
#[derive(Default, Debug)]
pub(crate) struct Stretch {
    end: Option<u64>,
}

impl Stretch {
    /// Adds a damaged piece of so many bytes. Returns whether the piece before it isn't damaged.
    pub(crate) fn begins(&mut self, at: Option<u64>, bytes: usize) -> bool {
        let end = at.map(|at| at + bytes as u64);
        let before = std::mem::replace(&mut self.end, end);
        at.is_none() || before != at
    }
}
