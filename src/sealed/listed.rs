//! What the manifest lists of a sealed file, and the header in which the file says the same of itself.
//!
//! Promises: a header that decodes passed its checksum and is possible. Never: opens a file. Formats: `docs/format.md`,
//! "Table" and "Expired keys".

use std::path::Path;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::header::{FILE_HEADER_BYTES, FileHeader, FileKind};
use crate::limits;
use crate::types::{Lsn, StoreId, StoreMillis};
use crate::{Error, Result};

/// Slots of a table's bucket.
pub(crate) const SLOTS: usize = 5;
pub(crate) const BUCKET_BYTES: usize = 64;
pub(crate) const TABLE_HEADER_BYTES: usize = 128;

/// Entries of a full page of expired keys.
pub(crate) const ENTRIES: usize = 204;
const PAGE: usize = limits::PAGE_BYTES;
/// Memories pass at the end of one.
pub(crate) const MINUTE: u64 = 60_000;

const _: () = assert!(size_of::<TableHeader>() == TABLE_HEADER_BYTES);
const _: () = assert!(size_of::<MemoriesHeader>() == 128);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct TableHeader {
    file: [u8; FILE_HEADER_BYTES],
    from: U64,
    to: U64,
    slots: U64,
    homes: U64,
    buckets: U64,
    number: U32,
    reserved: [u8; 40],
    /// Over all bytes before it.
    sum: U32,
}

/// What a table is, except its slots; as the manifest lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ListedTable {
    /// Names the file; never used again.
    pub(crate) number: u32,
    /// It holds the keys whose newest record before `to` stands at or past `from`.
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    pub(crate) slots: u64,
    /// Buckets that prefixes point to.
    pub(crate) homes: u64,
    /// All buckets: behind the last home there may be some more.
    pub(crate) buckets: u64,
}

impl ListedTable {
    pub(crate) fn bytes(&self) -> u64 {
        self.buckets.saturating_mul(BUCKET_BYTES as u64).saturating_add(TABLE_HEADER_BYTES as u64)
    }

    pub(crate) fn encode(&self, store: StoreId) -> [u8; TABLE_HEADER_BYTES] {
        let file = FileHeader::new(FileKind::Table, store);
        let mut header = TableHeader {
            file: file.as_bytes().try_into().unwrap_or([0; FILE_HEADER_BYTES]),
            from: self.from.get().into(),
            to: self.to.get().into(),
            slots: self.slots.into(),
            homes: self.homes.into(),
            buckets: self.buckets.into(),
            number: self.number.into(),
            reserved: [0; 40],
            sum: 0.into(),
        };
        header.sum = header.expected_sum().into();
        header.as_bytes().try_into().unwrap_or([0; TABLE_HEADER_BYTES])
    }

    /// Reads and checks the header at the start of `bytes`, the beginning of the file at `path`.
    pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<(StoreId, Self)> {
        let store = FileHeader::check(bytes, FileKind::Table, path)?;
        let bad = |what| Error::corrupt(path, FILE_HEADER_BYTES as u64, what);
        let (header, _) =
            TableHeader::read_from_prefix(bytes).map_err(|_| bad("a table header cut short"))?;
        if header.sum.get() != header.expected_sum() || header.reserved != [0; 40] {
            return Err(bad("a table header that fails its checksum"));
        }
        let listed = ListedTable {
            number: header.number.get(),
            from: Lsn::new(header.from.get()),
            to: Lsn::new(header.to.get()),
            slots: header.slots.get(),
            homes: header.homes.get(),
            buckets: header.buckets.get(),
        };
        if listed.is_sound() { Ok((store, listed)) } else { Err(bad("an impossible table")) }
    }

    pub(crate) fn is_sound(&self) -> bool {
        let slots_most = self.buckets.saturating_mul(SLOTS as u64);
        self.from <= self.to
            && (1..=self.buckets).contains(&self.homes)
            && self.buckets <= limits::TABLE_BUCKETS_MAX
            && self.slots <= slots_most
    }
}

impl TableHeader {
    fn expected_sum(&self) -> u32 {
        crc32fast::hash(self.as_bytes().get(..TABLE_HEADER_BYTES - 4).unwrap_or_default())
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct MemoriesHeader {
    file: [u8; FILE_HEADER_BYTES],
    entries: U64,
    number: U32,
    until_most: U32,
    reserved: [u8; 68],
    /// Over all bytes before it.
    sum: U32,
}

/// A file of memories, as the manifest lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ListedMemories {
    /// Names the file; never used again.
    pub(crate) number: u32,
    pub(crate) entries: u64,
    /// Minute of store time at which the last of its memories passes.
    pub(crate) until_most: u32,
}

impl ListedMemories {
    pub(crate) fn pages(&self) -> u64 {
        self.entries.div_ceil(ENTRIES as u64)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.pages().saturating_add(1).saturating_mul(PAGE as u64)
    }

    pub(crate) fn is_passed(&self, now: StoreMillis) -> bool {
        u64::from(self.until_most).saturating_mul(MINUTE) <= now.0
    }

    pub(crate) fn encode(&self, store: StoreId) -> Vec<u8> {
        let file = FileHeader::new(FileKind::Expired, store);
        let mut header = MemoriesHeader {
            file: file.as_bytes().try_into().unwrap_or([0; FILE_HEADER_BYTES]),
            entries: self.entries.into(),
            number: self.number.into(),
            until_most: self.until_most.into(),
            reserved: [0; 68],
            sum: 0.into(),
        };
        header.sum = header.expected_sum().into();
        let mut page = header.as_bytes().to_vec();
        page.resize(PAGE, 0);
        page
    }

    /// Reads and checks the first page of the file at `path`.
    pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<(StoreId, Self)> {
        let store = FileHeader::check(bytes, FileKind::Expired, path)?;
        let bad = |at: usize, what| Error::corrupt(path, at as u64, what);
        let (header, rest) = MemoriesHeader::read_from_prefix(bytes)
            .map_err(|_| bad(FILE_HEADER_BYTES, "a header of expired keys cut short"))?;
        if header.sum.get() != header.expected_sum() || header.reserved != [0; 68] {
            return Err(bad(FILE_HEADER_BYTES, "a header of expired keys that fails its checksum"));
        }
        if let Some(at) = rest.iter().position(|&byte| byte != 0) {
            return Err(bad(at.saturating_add(128), "bytes behind a header of expired keys"));
        }
        let listed = ListedMemories {
            number: header.number.get(),
            entries: header.entries.get(),
            until_most: header.until_most.get(),
        };
        Ok((store, listed))
    }
}

impl MemoriesHeader {
    fn expected_sum(&self) -> u32 {
        crc32fast::hash(self.as_bytes().get(..124).unwrap_or_default())
    }
}
