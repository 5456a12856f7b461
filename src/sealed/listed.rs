//! The manifest's list item of a sealed file, and the file's header, which contains the same item.
//!
//! Promises: each fact is stored once, in the item that both contain; a header that decodes passed its checksum and
//! is possible. Never: opens a file. Formats: `docs/format.md`, "Table" and "Expired keys".

use std::fmt;
use std::path::Path;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::header::{FILE_HEADER_BYTES, FileHeader, FileKind, sum_before_last};
use crate::limits;
use crate::types::{Lsn, StoreId, StoreMillis};
use crate::{Error, Result};

/// Slots of a table's bucket.
pub(crate) const SLOTS: usize = 5;
pub(crate) const BUCKET_BYTES: usize = 64;

/// Open keys in a page of a table's list of them. Such a page is as long as a bucket.
pub(crate) const OPEN_KEYS: usize = 2;

/// Entries of a full page of expired keys.
pub(crate) const ENTRIES: usize = 204;
/// Milliseconds in a minute; memories pass at the end of one.
pub(crate) const MINUTE: u64 = crate::limits::MEMORY_MILLIS;

/// Bytes of a header, except for the zeros that may follow it.
const HEAD_BYTES: usize = 128;
const ITEM_BYTES_MAX: usize = HEAD_BYTES - FILE_HEADER_BYTES - 4;

/// The beginning of a sealed file. Zeros follow up to its first page.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct SealedHeader {
    file: [u8; FILE_HEADER_BYTES],
    /// The item that the manifest lists, then zeros.
    item: [u8; ITEM_BYTES_MAX],
    /// Over all bytes before it.
    sum: U32,
}

const _: () = assert!(size_of::<SealedHeader>() == HEAD_BYTES);

impl SealedHeader {
    fn expected_sum(&self) -> u32 {
        sum_before_last(self)
    }
}

/// A sealed file of one kind, as the manifest lists it.
pub(crate) trait ListedFile: Copy + PartialEq + fmt::Debug {
    /// The same on disk: in the manifest's list, and in the file's header.
    type Item: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned;

    const KIND: FileKind;
    /// The directory of such files, within the store's directory.
    const DIR: &'static str;
    /// The end of their names.
    const SUFFIX: &'static str;
    /// The offset of the first page.
    const HEADER_BYTES: usize;
    /// Name of such a file, for messages.
    const WHAT: &'static str;
    /// Name of another such file, for messages.
    const ANOTHER: &'static str;
    /// Name of its header, for messages.
    const HEADER: &'static str;

    fn item(&self) -> Self::Item;
    fn of_item(item: &Self::Item) -> Self;
    /// The number that names the file; never used again.
    fn number(&self) -> u32;
    /// The file's length.
    fn bytes(&self) -> u64;
    /// Whether a writer could have made it.
    fn is_sound(&self) -> bool;

    /// The name of the file with that number.
    fn file_name(number: u32) -> String {
        format!("{number:010}.{}", Self::SUFFIX)
    }

    /// Returns the number in a file name; `None` if it names no file of this kind.
    fn number_of(name: &str) -> Option<u32> {
        let number = name.strip_suffix(Self::SUFFIX)?.strip_suffix('.')?.parse().ok()?;
        (Self::file_name(number) == name).then_some(number)
    }

    /// The file's bytes up to its first page.
    fn encode(&self, store: StoreId) -> Vec<u8> {
        let mut header = SealedHeader {
            file: FileHeader::bytes(Self::KIND, store),
            item: [0; ITEM_BYTES_MAX],
            sum: 0.into(),
        };
        for (byte, item) in header.item.iter_mut().zip(self.item().as_bytes()) {
            *byte = *item;
        }
        header.sum = header.expected_sum().into();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(Self::HEADER_BYTES, 0);
        bytes
    }

    /// Reads and checks the header at the start of `bytes`, the beginning of the file at `path`.
    fn decode(bytes: &[u8], path: &Path) -> Result<(StoreId, Self)> {
        let bytes = bytes.get(..Self::HEADER_BYTES).unwrap_or(bytes);
        let store = FileHeader::check(bytes, Self::KIND, path)?;
        let (what, at) = (Self::HEADER, FILE_HEADER_BYTES as u64);
        let short = |_| Error::corrupt(path, at, format_args!("{what} cut short"));
        let (header, zeros) = SealedHeader::read_from_prefix(bytes).map_err(short)?;
        let (item, reserved) =
            Self::Item::read_from_prefix(&header.item).map_err(|_| Error::bug(path, what))?;
        if header.sum.get() != header.expected_sum() || reserved.iter().any(|&byte| byte != 0) {
            return Err(Error::corrupt(path, at, format_args!("{what} that fails its checksum")));
        }
        if let Some(behind) = zeros.iter().position(|&byte| byte != 0) {
            let at = (HEAD_BYTES + behind) as u64;
            return Err(Error::corrupt(path, at, format_args!("bytes after {what}")));
        }
        let listed = Self::of_item(&item);
        if listed.is_sound() {
            Ok((store, listed))
        } else {
            Err(Error::corrupt(path, at, format_args!("{what} that contradicts itself")))
        }
    }
}

/// A table without its slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ListedTable {
    pub(crate) number: u32,
    /// It holds the keys whose newest record before `to` lies at or after `from`.
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    pub(crate) slots: u64,
    /// Buckets that prefixes point to.
    pub(crate) homes: u64,
    /// All buckets: some may follow the last home.
    pub(crate) buckets: u64,
    /// Keys in the list of open keys after the buckets.
    pub(crate) open: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct TableItem {
    from: U64,
    to: U64,
    slots: U64,
    homes: U64,
    buckets: U64,
    open: U64,
    number: U32,
}

const _: () = assert!(size_of::<TableItem>() == 52);
const _: () = assert!(size_of::<TableItem>() <= ITEM_BYTES_MAX);

impl ListedFile for ListedTable {
    type Item = TableItem;

    const KIND: FileKind = FileKind::Table;
    const DIR: &'static str = "index";
    const SUFFIX: &'static str = "tab";
    const HEADER_BYTES: usize = HEAD_BYTES;
    const WHAT: &'static str = "a table";
    const ANOTHER: &'static str = "another table";
    const HEADER: &'static str = "a table header";

    fn item(&self) -> TableItem {
        TableItem {
            from: self.from.get().into(),
            to: self.to.get().into(),
            slots: self.slots.into(),
            homes: self.homes.into(),
            buckets: self.buckets.into(),
            open: self.open.into(),
            number: self.number.into(),
        }
    }

    fn of_item(item: &TableItem) -> Self {
        ListedTable {
            number: item.number.get(),
            from: Lsn::new(item.from.get()),
            to: Lsn::new(item.to.get()),
            slots: item.slots.get(),
            homes: item.homes.get(),
            buckets: item.buckets.get(),
            open: item.open.get(),
        }
    }

    fn number(&self) -> u32 {
        self.number
    }

    fn bytes(&self) -> u64 {
        (self.buckets + self.open_pages()) * BUCKET_BYTES as u64 + HEAD_BYTES as u64
    }

    fn is_sound(&self) -> bool {
        self.from <= self.to
            && (1..=self.buckets).contains(&self.homes)
            && self.buckets <= limits::TABLE_BUCKETS_MAX
            && self.slots <= self.buckets * SLOTS as u64
            // Each open key has a slot, too.
            && self.open <= self.slots
    }
}

impl ListedTable {
    /// Pages of the list of open keys.
    pub(crate) fn open_pages(&self) -> u64 {
        self.open.div_ceil(OPEN_KEYS as u64)
    }
}

/// A file of memories without the memories.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ListedMemories {
    pub(crate) number: u32,
    pub(crate) entries: u64,
    /// Minute of store time at which the last of its memories passes.
    pub(crate) until_most: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct MemoriesItem {
    entries: U64,
    number: U32,
    until_most: U32,
}

const _: () = assert!(size_of::<MemoriesItem>() == 16);

impl ListedMemories {
    pub(crate) fn is_passed(&self, now: StoreMillis) -> bool {
        u64::from(self.until_most) * MINUTE <= now.0
    }
}

impl ListedFile for ListedMemories {
    type Item = MemoriesItem;

    const KIND: FileKind = FileKind::Expired;
    const DIR: &'static str = "expired";
    const SUFFIX: &'static str = "exp";
    const HEADER_BYTES: usize = limits::PAGE_BYTES;
    const WHAT: &'static str = "expired keys";
    const ANOTHER: &'static str = "other expired keys";
    const HEADER: &'static str = "a header of expired keys";

    fn item(&self) -> MemoriesItem {
        MemoriesItem {
            entries: self.entries.into(),
            number: self.number.into(),
            until_most: self.until_most.into(),
        }
    }

    fn of_item(item: &MemoriesItem) -> Self {
        ListedMemories {
            number: item.number.get(),
            entries: item.entries.get(),
            until_most: item.until_most.get(),
        }
    }

    fn number(&self) -> u32 {
        self.number
    }

    fn bytes(&self) -> u64 {
        let page = limits::PAGE_BYTES as u64;
        (self.entries.div_ceil(ENTRIES as u64) + 1) * page
    }

    /// The file must be as long as its entries say, too.
    fn is_sound(&self) -> bool {
        self.entries <= limits::MEMORIES_MAX
    }
}
