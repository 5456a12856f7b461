//! The list of open keys at the end of a sealed table: those that the table's newest records leave open.
//!
//! Promises: each page's checksum is checked before the page is used, as a bucket's is; the list is read only at an open,
//! which brings the keys into memory. An item is a hint: its key may have a newer record, in a younger table or after all
//! tables. But a key that is open, and whose newest record the table has, is never missing. Format: `docs/format.md`,
//! "Table".

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::table::Table;
use crate::protocol::OpenAs;
use crate::record;
use crate::sealed::Writer;
use crate::sealed::listed::{BUCKET_BYTES, ListedTable, OPEN_KEYS};
use crate::storage::Failure;
use crate::types::{KeyHash, Spot};
use crate::{Error, Result};

/// A key, by its hash, whose record leaves it open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpenKey {
    pub(crate) hash: KeyHash,
    pub(crate) spot: Spot,
    pub(crate) open: OpenAs,
}

impl OpenKey {
    /// Returns the key by which the list is sorted.
    fn rank(&self) -> (u64, u64, Spot) {
        (self.hash.high, self.hash.low, self.spot)
    }

    /// Sorts a list and drops what comes twice.
    pub(crate) fn sort(list: &mut Vec<OpenKey>) {
        list.sort_unstable_by_key(OpenKey::rank);
        list.dedup();
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawOpenKey {
    high: U64,
    low: U64,
    /// In units of `record::ALIGN`.
    offset: U32,
    ordinal: U32,
    /// 0 in an item that isn't used.
    state: u8,
    reserved: [u8; 3],
}

const _: () = assert!(size_of::<OpenPage>() + 4 == BUCKET_BYTES);

/// A page of the list, which takes the place of a bucket: those in use first, then zeros.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct OpenPage {
    keys: [RawOpenKey; OPEN_KEYS],
    reserved: [u8; 4],
}

fn code_of(open: OpenAs) -> u8 {
    match open {
        OpenAs::Attempt => 1,
        OpenAs::Held => 2,
        OpenAs::Detached => 3,
        OpenAs::Delayed => 4,
        OpenAs::Space => 5,
    }
}

impl RawOpenKey {
    const NONE: RawOpenKey = RawOpenKey {
        high: U64::ZERO,
        low: U64::ZERO,
        offset: U32::ZERO,
        ordinal: U32::ZERO,
        state: 0,
        reserved: [0; 3],
    };

    fn of(key: &OpenKey) -> Self {
        let units = key.spot.offset / record::ALIGN as u64;
        debug_assert!(units * record::ALIGN as u64 == key.spot.offset, "{key:?}");
        debug_assert!(units <= u64::from(u32::MAX), "{key:?}");
        RawOpenKey {
            high: key.hash.high.into(),
            low: key.hash.low.into(),
            // A segment has 2^27 such units at most.
            offset: U32::new(units as u32),
            ordinal: key.spot.ordinal.into(),
            state: code_of(key.open),
            reserved: [0; 3],
        }
    }

    /// `None`: no writer could have made it.
    fn key(&self) -> Option<OpenKey> {
        let open = match self.state {
            1 => OpenAs::Attempt,
            2 => OpenAs::Held,
            3 => OpenAs::Detached,
            4 => OpenAs::Delayed,
            5 => OpenAs::Space,
            _ => return None,
        };
        let offset = u64::from(self.offset.get()) * record::ALIGN as u64;
        let hash = KeyHash { high: self.high.get(), low: self.low.get() };
        let spot = Spot { ordinal: self.ordinal.get(), offset };
        (offset != 0 && self.reserved == [0; 3]).then_some(OpenKey { hash, spot, open })
    }
}

impl Writer<ListedTable> {
    /// Ends a table with the list of its open keys, which are sorted. It is durable on return, including its name.
    pub(crate) fn finish_with(self, open: &[OpenKey]) -> Result<ListedTable, Failure> {
        debug_assert!(open.is_sorted_by_key(OpenKey::rank));
        let pages = open.chunks(OPEN_KEYS).map(|keys| {
            let mut page = OpenPage { keys: [RawOpenKey::NONE; OPEN_KEYS], reserved: [0; 4] };
            for (raw, key) in page.keys.iter_mut().zip(keys) {
                *raw = RawOpenKey::of(key);
            }
            page
        });
        self.finish_after(pages, |listed| listed.open = open.len() as u64)
    }
}

impl Table {
    /// Reads the list of open keys, page by page, and passes the keys of each to `visit`. A damaged page is an error in
    /// place of its keys; `visit` returns whether the reading continues.
    pub(crate) fn open_keys(&self, visit: &mut dyn FnMut(Result<Vec<OpenKey>>) -> bool) {
        let mut left = self.listed.open;
        let mut last = None;
        for number in self.listed.buckets..self.listed.buckets + self.listed.open_pages() {
            let used = left.min(OPEN_KEYS as u64);
            left -= used;
            let page = self.look_into_as(number, |page: &OpenPage| keys_of(page, used));
            let keys = page.and_then(|keys| keys.ok_or_else(|| self.damaged(number)));
            let keys = keys.and_then(|keys| {
                let is_sorted = keys.iter().all(|key| {
                    let before = last.replace(key.rank());
                    before.is_none_or(|before| before < key.rank())
                });
                if is_sorted { Ok(keys) } else { Err(self.damaged(number)) }
            });
            if !visit(keys) {
                return;
            }
        }
    }

    /// Returns the whole list.
    pub(crate) fn all_open_keys(&self) -> Result<Vec<OpenKey>> {
        let (mut all, mut failed) = (Vec::new(), None::<Error>);
        self.open_keys(&mut |page| {
            match page {
                Ok(keys) => all.extend(keys),
                Err(e) => failed = Some(e),
            }
            failed.is_none()
        });
        failed.map_or(Ok(all), Err)
    }
}

/// Returns the keys of a page whose first `used` items are in use; `None` if no writer could have made it.
fn keys_of(page: &OpenPage, used: u64) -> Option<Vec<OpenKey>> {
    let (mut keys, mut is_possible) = (Vec::new(), page.reserved == [0; 4]);
    for (at, raw) in (0..).zip(&page.keys) {
        match raw.key() {
            Some(key) if at < used => keys.push(key),
            None if at >= used && raw.as_bytes().iter().all(|byte| *byte == 0) => {}
            _ => is_possible = false,
        }
    }
    is_possible.then_some(keys)
}
