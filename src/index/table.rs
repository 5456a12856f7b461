//! A sealed hash table: immutable, written once in hash order, read through a map or by plain reads.
//!
//! Promises: every bucket's checksum is checked before the bucket is used, so damage is an error and never a missing
//! key. A miss costs one cache line, seldom two. All slots under a hash's prefix are candidates: the caller compares
//! the key in the record. Never: knows a log file, or which of two records is still needed. Format: `docs/format.md`,
//! "Table".
//!
//! Slots are sorted by prefix, each in the bucket that its prefix points to or, if that is full, in the next: linear
//! probing (Knuth, TAOCP 3, 6.4) in the order of hashes, so that a search ends at the first greater prefix, and a
//! merge is one pass over both tables.

use std::cmp::Reverse;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Result;
use crate::limits;
use crate::sealed::listed::{BUCKET_BYTES, ListedTable, SLOTS};
use crate::sealed::{Paged, SealedFile};
use crate::types::{KeyHash, Lsn, Spot};

/// Bits of a hash that a slot keeps. Those that don't follow from the bucket's number distinguish keys in a bucket:
/// twelve bits with 100 million keys, so that one miss in a thousand reads a record in vain.
const PREFIX_BITS: u32 = 37;

/// Bits of a slot's offset, in units of `record::ALIGN`: a segment has 2^30 bytes at most.
const OFFSET_BITS: u32 = 27;

const _: () = assert!(PREFIX_BITS + OFFSET_BITS == u64::BITS);
const _: () = assert!(limits::SEGMENT_BYTES_MOST >> OFFSET_BITS <= crate::record::ALIGN as u64);
const _: () = assert!(size_of::<[RawSlot; SLOTS]>() + 4 == BUCKET_BYTES);

/// One key's record. Order: by prefix; for the same prefix, the newest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    prefix: u64,
    pub(crate) spot: Spot,
}

impl Slot {
    pub(crate) fn new(hash: KeyHash, spot: Spot) -> Self {
        Slot { prefix: prefix_of(hash), spot }
    }

    pub(crate) fn prefix(&self) -> u64 {
        self.prefix
    }

    /// Returns the key by which slots are sorted. Ordinals grow with positions in the log.
    pub(crate) fn rank(&self) -> (u64, Reverse<Spot>) {
        (self.prefix, Reverse(self.spot))
    }
}

/// Returns the bits of a hash that a slot keeps.
pub(crate) fn prefix_of(hash: KeyHash) -> u64 {
    hash.high >> OFFSET_BITS
}

/// Returns the first and the last hash with a prefix.
pub(crate) fn hashes_of(prefix: u64) -> (KeyHash, KeyHash) {
    let high = prefix << OFFSET_BITS;
    let last = KeyHash { high: high | ((1 << OFFSET_BITS) - 1), low: u64::MAX };
    (KeyHash { high, low: 0 }, last)
}

/// Returns the bucket, out of `homes`, that a prefix points to.
fn home_of(prefix: u64, homes: u64) -> u64 {
    let product = u128::from(prefix) * u128::from(homes);
    // Less than `homes`.
    (product >> PREFIX_BITS) as u64
}

/// All zeros: no slot. No record begins at offset 0.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawSlot {
    /// The prefix above the offset.
    word: U64,
    ordinal: U32,
}

impl RawSlot {
    const NONE: RawSlot = RawSlot { word: U64::ZERO, ordinal: U32::ZERO };

    fn of(slot: &Slot) -> Self {
        let offset = slot.spot.offset / crate::record::ALIGN as u64;
        debug_assert!(offset * crate::record::ALIGN as u64 == slot.spot.offset, "{slot:?}");
        debug_assert!(offset < 1 << OFFSET_BITS, "{slot:?}");
        let word = slot.prefix << OFFSET_BITS | offset & ((1 << OFFSET_BITS) - 1);
        RawSlot { word: word.into(), ordinal: slot.spot.ordinal.into() }
    }

    fn slot(self) -> Option<Slot> {
        let word = self.word.get();
        let offset = (word & ((1 << OFFSET_BITS) - 1)) * crate::record::ALIGN as u64;
        let spot = Spot { ordinal: self.ordinal.get(), offset };
        (offset != 0).then_some(Slot { prefix: word >> OFFSET_BITS, spot })
    }
}

impl Paged for ListedTable {
    type Entry = Slot;
    /// A bucket.
    type Body = [RawSlot; SLOTS];
    type Rank = (u64, Reverse<Spot>);
    /// Slots of segments before that ordinal are left out: a slot dies with its segment, so no slot that a younger
    /// one hides can return.
    type Rule = u32;

    const PAGE_ENTRIES: usize = SLOTS;
    const SEED: &'static [u8] = b"";
    const DAMAGED: &'static str = "a damaged bucket of the index";

    fn pages(&self) -> u64 {
        self.buckets
    }

    fn body_of(slots: &[Slot]) -> [RawSlot; SLOTS] {
        let mut bucket = [RawSlot::NONE; SLOTS];
        for (raw, slot) in bucket.iter_mut().zip(slots) {
            *raw = RawSlot::of(slot);
        }
        bucket
    }

    fn entry(bucket: &[RawSlot; SLOTS], at: usize) -> Option<Slot> {
        bucket.get(at).and_then(|raw| raw.slot())
    }

    fn rank(slot: &Slot) -> (u64, Reverse<Spot>) {
        slot.rank()
    }

    fn sort(slots: &mut [Slot]) {
        slots.sort_unstable_by_key(Slot::rank);
    }

    fn keeps(head: &mut u32, slot: &Slot) -> bool {
        slot.spot.ordinal >= *head
    }

    fn home_of(&self, slot: &Slot) -> u64 {
        home_of(slot.prefix, self.homes)
    }

    fn homes(&self) -> u64 {
        self.homes
    }

    fn count(&mut self, _: &Slot) {
        self.slots += 1;
    }

    fn end(&mut self, buckets: u64) {
        self.buckets = buckets;
    }
}

impl ListedTable {
    /// Returns a table that is about to be written, for at most so many slots.
    pub(crate) fn empty(number: u32, from: Lsn, to: Lsn, slots: u64) -> Self {
        let homes = (10 * slots / limits::TABLE_KEYS_PER_TEN_BUCKETS).max(1);
        ListedTable { number, from, to, slots: 0, homes, buckets: 0, open: 0 }
    }
}

/// An open table.
pub(crate) type Table = SealedFile<ListedTable>;

impl Table {
    /// Adds the places of all slots under a hash, the newest first.
    pub(crate) fn find(&self, hash: KeyHash, found: &mut Vec<Spot>) -> Result<()> {
        let prefix = prefix_of(hash);
        let mut number = home_of(prefix, self.listed.homes);
        while number < self.listed.buckets {
            let goes_on = self.look_into(number, |bucket| {
                let mut slots = 0;
                for slot in slots_of(bucket) {
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
            number += 1;
        }
        Ok(())
    }

    /// Reads a byte of the bucket that each hash points to, which brings it into the cache for a later lookup. The
    /// result means nothing.
    pub(crate) fn touch(&self, hashes: &[KeyHash]) -> u8 {
        let homes = self.listed.homes;
        self.touch_pages(hashes.iter().map(|hash| home_of(prefix_of(*hash), homes)))
    }

    /// Returns the bucket from which on a hash may lie.
    pub(crate) fn home(&self, hash: KeyHash) -> u64 {
        home_of(prefix_of(hash), self.listed.homes)
    }

    /// Returns the slots of one bucket.
    pub(crate) fn slots_in(&self, bucket: u64) -> Result<Vec<Slot>> {
        self.look_into(bucket, |bucket| slots_of(bucket).collect())
    }
}

/// Returns the slots of a bucket: those in use come first.
fn slots_of(bucket: &[RawSlot; SLOTS]) -> impl Iterator<Item = Slot> + '_ {
    bucket.iter().map_while(|raw| raw.slot())
}
