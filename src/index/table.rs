//! A sealed hash table: immutable, written once in hash order, read through a map or by plain reads.
//!
//! Promises: every bucket is checked before it is believed, so damage is an error and never a missing key. A miss
//! costs one cache line, seldom two. All slots under a hash's prefix are candidates: the caller compares the key in
//! the record. Never: knows a log file, or which of two records is still of use. Format: `docs/format.md`, "Table".
//!
//! Slots stand sorted by prefix, each in the bucket its prefix points to or, where that is full, in the next: linear
//! probing (Knuth, TAOCP 3, 6.4) in the order of hashes, so that a search ends at the first greater prefix, and a merge
//! is one pass over both.

use std::path::Path;
use std::sync::Arc;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits;
use crate::sealed::Sealed;
use crate::sealed::listed::{BUCKET_BYTES, ListedFile, ListedTable, SLOTS};
use crate::storage::Storage;
use crate::types::{KeyHash, Spot, StoreId};
use crate::{Error, Result};

/// How much of a hash a slot keeps. What the bucket's number doesn't say of it tells keys in a bucket apart: with
/// 100 million keys twelve bits, so that one miss in a thousand reads a record for nothing.
const PREFIX_BITS: u32 = 37;

/// Bits of a slot's offset, in units of `record::ALIGN`: a segment has 2^30 bytes at most.
const OFFSET_BITS: u32 = 27;

const _: () = assert!(PREFIX_BITS + OFFSET_BITS == u64::BITS);
const _: () = assert!(limits::SEGMENT_BYTES_MOST >> OFFSET_BITS <= crate::record::ALIGN as u64);
const _: () = assert!(size_of::<Bucket>() == BUCKET_BYTES);

/// One key's record. Order: by prefix; of one prefix the newest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub(super) prefix: u64,
    pub(crate) spot: Spot,
}

impl Slot {
    pub(crate) fn new(hash: KeyHash, spot: Spot) -> Self {
        Slot { prefix: prefix_of(hash), spot }
    }

    pub(crate) fn prefix(&self) -> u64 {
        self.prefix
    }

    /// What slots are sorted by. Ordinals grow with positions in the log.
    pub(crate) fn rank(&self) -> (u64, std::cmp::Reverse<Spot>) {
        (self.prefix, std::cmp::Reverse(self.spot))
    }
}

/// What a slot keeps of a hash.
pub(crate) fn prefix_of(hash: KeyHash) -> u64 {
    hash.high >> OFFSET_BITS
}

/// The bucket that a prefix points to, of `homes`.
pub(super) fn home_of(prefix: u64, homes: u64) -> u64 {
    let product = u128::from(prefix) * u128::from(homes);
    u64::try_from(product >> PREFIX_BITS).unwrap_or(u64::MAX)
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct Bucket {
    slots: [RawSlot; SLOTS],
    /// Over the slots, then the bucket's number, from the table's seed on.
    sum: U32,
}

/// All zeros: none. No record begins at offset 0.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSlot {
    /// The prefix above the offset.
    word: U64,
    ordinal: U32,
}

impl RawSlot {
    const NONE: RawSlot = RawSlot { word: U64::ZERO, ordinal: U32::ZERO };

    fn of(slot: &Slot) -> Self {
        let offset = slot.spot.offset / crate::record::ALIGN as u64;
        let word = slot.prefix << OFFSET_BITS | offset & ((1 << OFFSET_BITS) - 1);
        RawSlot { word: word.into(), ordinal: slot.spot.ordinal.into() }
    }

    fn slot(self) -> Option<Slot> {
        let word = self.word.get();
        let offset = (word & ((1 << OFFSET_BITS) - 1)).saturating_mul(crate::record::ALIGN as u64);
        let spot = Spot { ordinal: self.ordinal.get(), offset };
        (offset != 0).then_some(Slot { prefix: word >> OFFSET_BITS, spot })
    }
}

impl Bucket {
    pub(super) fn of(slots: &[Slot], number: u64, seed: u32) -> Self {
        let mut bucket = Bucket { slots: [RawSlot::NONE; SLOTS], sum: 0.into() };
        for (raw, slot) in bucket.slots.iter_mut().zip(slots) {
            *raw = RawSlot::of(slot);
        }
        bucket.sum = bucket.expected_sum(number, seed).into();
        bucket
    }

    fn expected_sum(&self, number: u64, seed: u32) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(self.slots.as_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.finalize()
    }

    fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.slots.iter().map_while(|raw| raw.slot())
    }
}

/// Makes a bucket of one table none of another.
pub(super) fn seed_of(store: StoreId, number: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&store.0);
    hasher.update(&number.to_le_bytes());
    hasher.finalize()
}

/// An open table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) listed: ListedTable,
    store: StoreId,
    seed: u32,
    file: Sealed,
}

impl Table {
    /// Opens a listed table and checks that it is the one listed. Its buckets are checked as they are read.
    pub(crate) fn open(
        storage: &dyn Storage,
        index_dir: &Path,
        listed: ListedTable,
        store: StoreId,
        map: bool,
    ) -> Result<Self> {
        let path = index_dir.join(ListedTable::file_name(listed.number));
        let check = |header: &[u8], path: &Path| {
            if ListedTable::decode(header, path)? != (store, listed) {
                return Err(Error::corrupt(path, 0, "another table than the manifest lists"));
            }
            Ok(listed.bytes())
        };
        let file =
            Sealed::open(storage, path, ListedTable::WHAT, ListedTable::HEADER_BYTES, map, check)?;
        Ok(Table { listed, store, file, seed: seed_of(store, listed.number) })
    }

    /// Whether the file still says that it is this table: read anew, by its name.
    pub(crate) fn check_header(&self, storage: &dyn Storage) -> Result<()> {
        let store = self.store;
        let dir = self.path().parent().unwrap_or(Path::new(""));
        Table::open(storage, dir, self.listed, store, false).map(drop)
    }

    /// Adds the places of all slots under a hash, the newest first.
    pub(crate) fn find(&self, hash: KeyHash, found: &mut Vec<Spot>) -> Result<()> {
        let prefix = prefix_of(hash);
        let mut number = home_of(prefix, self.listed.homes);
        while number < self.listed.buckets {
            let goes_on = self.look_into(number, |bucket| {
                let mut slots = 0;
                for slot in bucket.slots() {
                    if slot.prefix > prefix {
                        return false;
                    }
                    if slot.prefix == prefix {
                        found.push(slot.spot);
                    }
                    slots += 1;
                }
                slots == SLOTS
            })?;
            if !goes_on {
                return Ok(());
            }
            number = number.saturating_add(1);
        }
        Ok(())
    }

    /// Reads a byte of the bucket that each hash points to, so that it is at hand when it is looked into. No use else.
    pub(crate) fn touch(&self, hashes: &[KeyHash]) -> u8 {
        let homes = self.listed.homes;
        let places = hashes.iter().map(|hash| place_of(home_of(prefix_of(*hash), homes)));
        self.file.touch(self.listed.bytes(), places)
    }

    /// The slots of one bucket.
    pub(crate) fn slots_in(&self, bucket: u64) -> Result<Vec<Slot>> {
        self.look_into(bucket, |bucket| bucket.slots().collect())
    }

    /// Looks into one bucket, once it is checked.
    fn look_into<R>(&self, number: u64, look: impl FnOnce(&Bucket) -> R) -> Result<R> {
        let at = place_of(number);
        let looked = self.file.read(at, |bucket: &Bucket| {
            (bucket.sum.get() == bucket.expected_sum(number, self.seed)).then(|| look(bucket))
        })?;
        looked.flatten().ok_or_else(|| self.file.damaged(at, "a damaged bucket of the index"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }
}

/// Where a bucket stands in the file.
fn place_of(number: u64) -> u64 {
    number.saturating_mul(BUCKET_BYTES as u64).saturating_add(ListedTable::HEADER_BYTES as u64)
}

/// Buckets that a walk has read ahead.
const PIECE_BUCKETS: u64 = (limits::TABLE_PIECE_BYTES / BUCKET_BYTES) as u64;

/// A walk through a table's slots, in order.
pub(crate) struct Cursor {
    table: Arc<Table>,
    /// The bucket behind `bucket`.
    next: u64,
    bucket: Bucket,
    at: usize,
}

impl Cursor {
    pub(crate) fn new(table: Arc<Table>) -> Self {
        Cursor {
            table,
            next: 0,
            bucket: Bucket { slots: [RawSlot::NONE; SLOTS], sum: 0.into() },
            at: 0,
        }
    }

    /// The slot it stands at; `None` past the last one. An error stands for one bucket.
    pub(crate) fn peek(&mut self) -> Result<Option<Slot>> {
        loop {
            if let Some(slot) = self.bucket.slots.get(self.at).and_then(|raw| raw.slot()) {
                return Ok(Some(slot));
            }
            if self.next >= self.table.listed.buckets {
                return Ok(None);
            }
            // Behind a damaged bucket it goes on: who asks again must not meet it for ever.
            let number = self.next;
            self.next = number.saturating_add(1);
            self.at = SLOTS;
            if number % PIECE_BUCKETS == 0 {
                self.table.file.read_ahead(place_of(number));
            }
            self.bucket = self.table.look_into(number, |bucket| *bucket)?;
            self.at = 0;
        }
    }

    pub(crate) fn advance(&mut self) {
        self.at = self.at.saturating_add(1);
    }
}
