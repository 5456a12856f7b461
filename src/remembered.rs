//! Keys remembered after they expired: files of sorted hashes, searched by interpolation.
//!
//! Promises: these files can't be rebuilt, so every page is checked before it is used, and damage is an error and
//! never a forgotten key. They take no memory per key. A file is written once, merged with its neighbours by size, and
//! removed as a whole when all its memories have passed. Never: knows a key. Only the answer "expired" rests on a hash
//! alone. Format: `docs/format.md`, "Expired keys".

use std::path::Path;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits;
use crate::protocol::passes_at;
use crate::sealed::listed::{ENTRIES, ListedMemories, MINUTE};
use crate::sealed::{Paged, SealedFile, Stretch};
use crate::storage::Storage;
use crate::types::{KeyHash, StoreId, StoreMillis};
use crate::{Error, ErrorKind, Result};

const PAGE: usize = limits::PAGE_BYTES;

const _: () = assert!(size_of::<Memories>() + 4 == PAGE);

/// A key that was done, and is no longer kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    /// The first 96 bits of the key's hash.
    hash: u128,
    /// When it completed: store time plus the wall offset, in minutes. Only displayed.
    completed: u32,
    /// Store time at which the memory passes, in minutes, rounded up.
    until: u32,
}

impl Memory {
    pub(crate) fn new(hash: KeyHash, completed_wall: u64, until: StoreMillis) -> Self {
        let until = minutes(passes_at(until).0);
        Memory { hash: hash_of(hash), completed: minutes(completed_wall), until }
    }

    pub(crate) fn completed_wall(&self) -> u64 {
        u64::from(self.completed) * MINUTE
    }

    pub(crate) fn until(&self) -> StoreMillis {
        StoreMillis(u64::from(self.until) * MINUTE)
    }

    fn is_passed(&self, now: StoreMillis) -> bool {
        self.until() <= now
    }
}

/// Limited to the field's maximum, the year 10136: a longer memory ends then.
fn minutes(millis: u64) -> u32 {
    u32::try_from(millis / MINUTE).unwrap_or(u32::MAX)
}

fn hash_of(hash: KeyHash) -> u128 {
    u128::from(hash.high) << 32 | u128::from(hash.low >> 32)
}

/// A page without its checksum.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct Memories {
    entries: [RawMemory; ENTRIES],
    reserved: [u8; 10],
    count: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawMemory {
    high: U64,
    low: U32,
    completed: U32,
    until: U32,
}

impl RawMemory {
    const NONE: RawMemory =
        RawMemory { high: U64::ZERO, low: U32::ZERO, completed: U32::ZERO, until: U32::ZERO };

    fn of(memory: &Memory) -> Self {
        RawMemory {
            high: ((memory.hash >> 32) as u64).into(),
            low: (memory.hash as u32).into(),
            completed: memory.completed.into(),
            until: memory.until.into(),
        }
    }

    fn memory(&self) -> Memory {
        Memory {
            hash: u128::from(self.high.get()) << 32 | u128::from(self.low.get()),
            completed: self.completed.get(),
            until: self.until.get(),
        }
    }
}

impl Memories {
    /// Returns none if the count exceeds the page's capacity: unchecked pages are read, too.
    fn used(&self) -> &[RawMemory] {
        self.entries.get(..usize::from(self.count.get())).unwrap_or_default()
    }
}

impl Paged for ListedMemories {
    type Entry = Memory;
    type Body = Memories;
    /// The hash.
    type Rank = u128;
    type Rule = Newest;

    const PAGE_ENTRIES: usize = ENTRIES;
    const SEED: &'static [u8] = b"expired";
    const DAMAGED: &'static str = "a damaged page of expired keys";

    fn pages(&self) -> u64 {
        self.entries.div_ceil(ENTRIES as u64)
    }

    fn body_of(memories: &[Memory]) -> Memories {
        debug_assert!(memories.len() <= ENTRIES);
        let mut page = Memories {
            entries: [RawMemory::NONE; ENTRIES],
            reserved: [0; 10],
            count: (memories.len() as u16).into(),
        };
        for (raw, memory) in page.entries.iter_mut().zip(memories) {
            *raw = RawMemory::of(memory);
        }
        page
    }

    fn entry(page: &Memories, at: usize) -> Option<Memory> {
        page.used().get(at).map(RawMemory::memory)
    }

    fn rank(memory: &Memory) -> u128 {
        memory.hash
    }

    fn sort(memories: &mut [Memory]) {
        // The sort below is stable.
        memories.reverse();
        memories.sort_by_key(|memory| memory.hash);
    }

    fn keeps(rule: &mut Newest, memory: &Memory) -> bool {
        let is_newest = rule.last.replace(memory.hash) != Some(memory.hash);
        is_newest && !memory.is_passed(rule.now)
    }

    fn home_of(&self, _: &Memory) -> u64 {
        0
    }

    fn homes(&self) -> u64 {
        0
    }

    fn count(&mut self, memory: &Memory) {
        self.entries += 1;
        self.until_most = self.until_most.max(memory.until);
    }

    fn end(&mut self, pages: u64) {
        debug_assert_eq!(pages, self.pages());
    }

    fn is_possible(page: &Memories) -> bool {
        usize::from(page.count.get()) <= ENTRIES
    }
}

impl ListedMemories {
    /// Returns a file that is about to be written.
    pub(crate) fn empty(number: u32) -> Self {
        ListedMemories { number, entries: 0, until_most: 0 }
    }
}

/// The rule of a merge: it keeps the newest memory of each hash, which comes first, if that has not passed.
pub(crate) struct Newest {
    now: StoreMillis,
    last: Option<u128>,
}

impl Newest {
    pub(crate) fn at(now: StoreMillis) -> Self {
        Newest { now, last: None }
    }
}

/// An open file of memories.
pub(crate) type MemoryFile = SealedFile<ListedMemories>;

impl MemoryFile {
    /// Opens a file whose header or length may be damaged: it is assumed to hold as many pages as fit its length.
    pub(crate) fn open_whatever(
        storage: &dyn Storage,
        dir: &Path,
        number: u32,
        store: StoreId,
    ) -> Result<Option<Self>> {
        MemoryFile::open_damaged(storage, dir, number, store, |len| {
            // A file that is cut within its header has no pages.
            let pages = len.div_ceil(PAGE as u64).saturating_sub(1);
            let entries = pages * ENTRIES as u64;
            ListedMemories { number, entries, until_most: 0 }
        })
    }

    /// Returns the memory of a hash, passed or not.
    ///
    /// Interpolation search (Peterson, 1957): hashes are uniform, so the page is guessed from the hash, and each page
    /// read narrows the range. In the worst case, which no writer produces, it halves the range. On the way only the
    /// ends of a page are read, unchecked. The pages that the answer depends on are checked: the page whose range
    /// contains the hash, or the two between which the hash would lie, which are those that narrowed the range last.
    pub(crate) fn find(&self, hash: KeyHash) -> Result<Option<Memory>> {
        let hash = hash_of(hash);
        let (mut low, mut high) = (0, self.listed.pages());
        let mut guess = share_of(hash, self.listed.pages());
        let mut probes = 0_u32;
        while low < high {
            guess = guess.clamp(low, high - 1);
            let Some((first, last)) = self.ends_of(guess)? else {
                return Err(self.damaged(guess));
            };
            if hash < first {
                high = guess;
            } else if hash > last {
                low = guess + 1;
            } else {
                return self.look_into(guess, |page| {
                    let memories = page.used();
                    let at = memories.partition_point(|raw| raw.memory().hash < hash);
                    let found = memories.get(at).map(RawMemory::memory);
                    found.filter(|memory| memory.hash == hash)
                });
            }
            probes += 1;
            guess = if probes > limits::INTERPOLATION_PROBES_MAX {
                low.midpoint(high)
            } else {
                // The distance of the hash from this page's first one, in pages.
                let off = share_of(hash.abs_diff(first), self.listed.pages()).max(1);
                // Hashes are not perfectly even: a guess before the first page becomes 0.
                if hash < first { guess.saturating_sub(off) } else { guess + off }
            };
        }
        // There is no page before the first and none after the last.
        for page in low.saturating_sub(1)..(low + 1).min(self.listed.pages()) {
            self.look_into(page, |_| ())?;
        }
        Ok(None)
    }

    /// Returns the first and the last hash of a page, unchecked; `None` if its count is 0.
    fn ends_of(&self, number: u64) -> Result<Option<(u128, u128)>> {
        let ends = self.look_unchecked(number, |page| {
            let memories = page.used();
            Some((memories.first()?.memory().hash, memories.last()?.memory().hash))
        })?;
        Ok(ends.flatten())
    }

    /// Reads everything, and reports damage. Calls `may_go_on` at each page.
    pub(crate) fn verify(
        &self,
        storage: &dyn Storage,
        store: StoreId,
        may_go_on: &dyn Fn() -> Result<()>,
        damaged: &mut dyn FnMut(Error),
    ) -> Result<()> {
        let file = match self.reopened(storage) {
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                damaged(e);
                let dir = self.path().parent().unwrap_or(Path::new(""));
                MemoryFile::open_whatever(storage, dir, self.listed.number, store)?
            }
            opened => Some(opened?),
        };
        file.map_or(Ok(()), |file| file.check_pages(may_go_on, damaged).map(drop))
    }

    /// Reads all pages, and reports each damaged stretch. Returns the number of damaged pages, and of memories in the
    /// others.
    pub(crate) fn check_pages(
        &self,
        may_go_on: &dyn Fn() -> Result<()>,
        damaged: &mut dyn FnMut(Error),
    ) -> Result<(u64, u64)> {
        let (mut bad, mut entries, mut stretch) = (0_u64, 0_u64, Stretch::default());
        for number in 0..self.listed.pages() {
            may_go_on()?;
            match self.look_into(number, |page| page.used().len() as u64) {
                Ok(count) => entries += count,
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    bad += 1;
                    if stretch.begins(e.offset(), PAGE) {
                        damaged(e);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok((bad, entries))
    }
}

/// Returns the one of `pages` that a hash falls on, if hashes are distributed evenly.
fn share_of(hash: u128, pages: u64) -> u64 {
    // A hash has 96 bits, so the result is less than `pages`.
    (((hash >> 32) * u128::from(pages)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::entropy::SplitMix64;
    use crate::sealed::listed::ListedFile;
    use crate::sealed::{Merge, Pace, Writer};
    use crate::storage::memory::MemoryStorage;

    const STORE: StoreId = StoreId([5; 16]);

    fn dir() -> &'static Path {
        Path::new("/expired")
    }

    fn disk() -> (MemoryStorage, Arc<dyn Storage>) {
        let memory = MemoryStorage::new();
        memory.create_dir(dir()).unwrap();
        (memory.clone(), Arc::new(memory))
    }

    fn hash(dice: &mut SplitMix64) -> KeyHash {
        KeyHash { high: dice.next(), low: dice.next() }
    }

    fn merged(
        storage: &Arc<dyn Storage>,
        number: u32,
        new: Vec<Memory>,
        files: &[Arc<MemoryFile>],
        now: u64,
    ) -> Arc<MemoryFile> {
        let empty = ListedMemories::empty(number);
        let writer = Writer::create(storage, dir(), STORE, empty, Pace::alone()).ok().unwrap();
        let mut merge = Merge::new(new, files, Newest::at(StoreMillis(now)), writer);
        while !merge.advance(7).ok().unwrap() {}
        let listed = merge.finish().ok().unwrap();
        Arc::new(MemoryFile::open(&**storage, dir(), listed, STORE, number % 2 == 0).unwrap())
    }

    #[test]
    fn exactly_the_remembered_keys_are_found_in_few_probes() {
        for count in [0_u64, 1, 203, 204, 205, 5000, 50_000] {
            let (memory, storage) = disk();
            let mut dice = SplitMix64::new(count);
            let keys: Vec<KeyHash> = (0..count).map(|_| hash(&mut dice)).collect();
            let memories = keys.iter().enumerate().map(|(n, key)| {
                Memory::new(*key, n as u64 * MINUTE, StoreMillis(MINUTE * 1000 + n as u64))
            });
            let file = merged(&storage, 1, memories.collect(), &[], 0);
            assert_eq!(file.listed.entries, count);
            let before = memory.reads();
            for (n, key) in keys.iter().enumerate() {
                let found = file.find(*key).unwrap().unwrap();
                assert_eq!(found.completed_wall(), n as u64 * MINUTE);
                assert!(found.until().0 >= MINUTE * 1000 + n as u64, "rounded up");
            }
            let reads = memory.reads() - before;
            assert!(reads <= count * 3, "{reads} reads for {count} keys");
            for _ in 0..500 {
                assert_eq!(file.find(hash(&mut dice)).unwrap(), None);
            }
            assert!(count < 1000 || file.listed.bytes() <= 24 * count);
        }
    }

    #[test]
    fn a_merge_keeps_the_newest_memory_of_a_hash_unless_it_has_passed() {
        let (_, storage) = disk();
        let mut dice = SplitMix64::new(1);
        let [a, b, c, d] = [(); 4].map(|()| hash(&mut dice));
        let memory =
            |key, at: u64, until: u64| Memory::new(key, at * MINUTE, StoreMillis(until * MINUTE));
        let old =
            merged(&storage, 1, vec![memory(a, 1, 50), memory(b, 2, 20), memory(c, 3, 99)], &[], 0);
        let new = merged(&storage, 2, vec![memory(a, 10, 60)], &[], 0);
        let twice = vec![memory(d, 30, 70), memory(d, 31, 71)];
        let all = merged(&storage, 3, twice, &[new, old], 20 * MINUTE);
        let at = |key| all.find(key).unwrap().map(|memory| memory.completed_wall() / MINUTE);
        assert_eq!([at(a), at(b), at(c), at(d)], [Some(10), None, Some(3), Some(31)]);
        assert_eq!((all.listed.entries, all.listed.until_most), (3, 99));
        assert!(!all.listed.is_passed(StoreMillis(98 * MINUTE)));
        assert!(all.listed.is_passed(StoreMillis(99 * MINUTE)));
    }

    /// Version 1 of the format, as `docs/format.md` draws it. A change here is another version.
    #[test]
    fn the_bytes_of_expired_keys_never_change() {
        use std::hash::Hasher as _;
        let (memory, storage) = disk();
        let mut dice = SplitMix64::new(6);
        let new = (0..500_u64)
            .map(|n| Memory::new(hash(&mut dice), n * MINUTE, StoreMillis((1000 + n) * MINUTE)));
        merged(&storage, 7, new.collect(), &[], 0);
        let bytes = memory.read(&dir().join("0000000007.exp")).unwrap();
        let header: String = bytes[40..128].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            header,
            "f40100000000000007000000db050000000000000000000000000000000000000000000000000000\
             00000000000000000000000000000000000000000000000000000000000000000000000000000000\
             00000000defb6761"
        );
        // Not the same checksum: over bytes that end with their own checksum, its result is constant.
        let mut hasher = siphasher::sip::SipHasher13::new();
        hasher.write(&bytes);
        assert_eq!((bytes.len(), hasher.finish()), (16_384, 18_283_560_100_562_661_503));
    }

    /// A close used to wait until all of it was read.
    #[test]
    fn a_verification_checks_at_each_page_whether_it_may_go_on() {
        let (_, storage) = disk();
        let mut dice = SplitMix64::new(3);
        let memories = (0..1000).map(|_| Memory::new(hash(&mut dice), 0, StoreMillis(MINUTE)));
        let file = merged(&storage, 1, memories.collect(), &[], 0);
        assert!(file.listed.pages() > 3);
        let asked = std::cell::Cell::new(0);
        let closes = || {
            asked.set(asked.get() + 1);
            let closed = Error::new(crate::ErrorKind::Closed, "a close waits");
            if asked.get() < 3 { Ok(()) } else { Err(closed) }
        };
        let ended = file.verify(&*storage, STORE, &closes, &mut |e| panic!("{e}")).unwrap_err();
        assert_eq!((ended.kind(), asked.get()), (crate::ErrorKind::Closed, 3));
    }

    /// Only a hostile program writes such a page. It used to be read as an empty one, and a merge lost its keys.
    #[test]
    fn a_page_whose_count_exceeds_its_capacity_is_damaged_though_its_checksum_holds() {
        let (memory, storage) = disk();
        let mut dice = SplitMix64::new(3);
        let keys: Vec<KeyHash> = (0..300).map(|_| hash(&mut dice)).collect();
        let memories = keys.iter().map(|key| Memory::new(*key, 0, StoreMillis(MINUTE)));
        let file = merged(&storage, 1, memories.collect(), &[], 0);
        let path = dir().join(ListedMemories::file_name(1));
        let mut bytes = memory.read(&path).unwrap();
        let page = &mut bytes[PAGE..2 * PAGE];
        page[PAGE - 6..PAGE - 4].copy_from_slice(&(ENTRIES as u16 + 1).to_le_bytes());
        let seed = crc32fast::hash(&[&STORE.0[..], b"expired", &1_u32.to_le_bytes()].concat());
        let mut sum = crc32fast::Hasher::new_with_initial(seed);
        sum.update(&page[..PAGE - 4]);
        sum.update(&0_u64.to_le_bytes());
        page[PAGE - 4..].copy_from_slice(&sum.finalize().to_le_bytes());
        memory.write_file(&path, &bytes).unwrap();
        let mut noticed = Vec::new();
        file.verify(&*storage, STORE, &|| Ok(()), &mut |e| noticed.push(e)).unwrap();
        assert_eq!(noticed.len(), 1);
        assert_eq!(noticed[0].offset(), Some(PAGE as u64));
        let empty = ListedMemories::empty(3);
        let writer = Writer::create(&storage, dir(), STORE, empty, Pace::alone()).ok().unwrap();
        let mut merge = Merge::new(Vec::new(), &[file], Newest::at(StoreMillis(0)), writer);
        assert!(merge.advance(1000).is_err());
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let (memory, storage) = disk();
        let mut dice = SplitMix64::new(2);
        let keys: Vec<KeyHash> = (0..300).map(|_| hash(&mut dice)).collect();
        let memories = keys.iter().map(|key| Memory::new(*key, 0, StoreMillis(MINUTE)));
        let listed = merged(&storage, 1, memories.collect(), &[], 0).listed;
        let path = dir().join(ListedMemories::file_name(1));
        let bytes = memory.read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            memory.write_file(&path, &bad).unwrap();
            let opened = MemoryFile::open(&*storage, dir(), listed, STORE, at % 2 == 0);
            let mut noticed = Vec::new();
            match opened {
                Ok(file) => {
                    file.verify(&*storage, STORE, &|| Ok(()), &mut |e| noticed.push(e)).unwrap()
                }
                Err(e) => noticed.push(e),
            }
            assert_eq!(noticed.len(), 1, "byte {at}");
            let error = &noticed[0];
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt, "byte {at}");
            assert_eq!(error.path(), Some(&*path));
        }
        for len in (0..bytes.len()).step_by(97) {
            memory.write_file(&path, &bytes[..len]).unwrap();
            assert!(
                MemoryFile::open(&*storage, dir(), listed, STORE, true).is_err(),
                "cut at {len}"
            );
        }
    }

    /// A search doesn't check the pages it passes; so a page whose ends are damaged must not hide keys in it or in
    /// its neighbours.
    #[test]
    fn no_damage_makes_a_remembered_key_look_absent() {
        let (memory, storage) = disk();
        let mut dice = SplitMix64::new(3);
        let keys: Vec<KeyHash> = (0..1500).map(|_| hash(&mut dice)).collect();
        let others: Vec<KeyHash> = (0..500).map(|_| hash(&mut dice)).collect();
        let memories = keys.iter().map(|key| Memory::new(*key, 0, StoreMillis(MINUTE)));
        let listed = merged(&storage, 1, memories.collect(), &[], 0).listed;
        let path = dir().join(ListedMemories::file_name(1));
        let bytes = memory.read(&path).unwrap();
        let (mut refused, mut flips) = (0, 0);
        for page in 1..=listed.pages() as usize {
            let (first, last) = (0..12, 4096 - 36..4096);
            for at in first.chain(last).map(|at| page * PAGE + at) {
                let mut bad = bytes.clone();
                bad[at] ^= 0x80 >> (at % 8);
                memory.write_file(&path, &bad).unwrap();
                let file = MemoryFile::open(&*storage, dir(), listed, STORE, true).unwrap();
                let found = keys.iter().map(|key| (file.find(*key), true));
                for (found, is_there) in
                    found.chain(others.iter().map(|key| (file.find(*key), false)))
                {
                    match found {
                        Ok(found) => assert_eq!(found.is_some(), is_there, "byte {at}"),
                        Err(e) => {
                            refused += 1;
                            assert_eq!(e.kind(), crate::ErrorKind::Corrupt, "byte {at}");
                        }
                    }
                }
                flips += 1;
            }
        }
        assert!(refused > 100 * flips, "{refused} of {flips} flips");
    }

    /// No writer makes such a file, but a forged one must not keep a lookup busy.
    #[test]
    fn a_search_ends_however_the_hashes_lie() {
        let (_, storage) = disk();
        let crowded = |n: u64| KeyHash { high: n, low: n << 32 };
        let memories = (0..20_000).map(|n| Memory::new(crowded(n), 0, StoreMillis(MINUTE)));
        let file = merged(&storage, 1, memories.collect(), &[], 0);
        for n in (0..20_000).step_by(7) {
            assert!(file.find(crowded(n)).unwrap().is_some());
        }
        assert_eq!(file.find(KeyHash { high: u64::MAX, low: 0 }).unwrap(), None);
    }
}
