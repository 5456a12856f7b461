//! Tests of tables alone: every key is found, damage is noticed, and merges lose nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::open::OpenKey;
use super::table::{Slot, Table};
use super::tables::Tables;
use crate::entropy::SplitMix64;
use crate::protocol::OpenAs;
use crate::sealed::listed::{ListedFile, ListedTable, SLOTS};
use crate::sealed::{EntryCursor, Merge, Pace, Writer};
use crate::storage::Storage;
use crate::storage::memory::MemoryStorage;
use crate::types::{KeyHash, Lsn, Spot, StoreId};

const STORE: StoreId = StoreId([5; 16]);

fn dir() -> &'static Path {
    Path::new("/index")
}

fn disk() -> (MemoryStorage, Arc<dyn Storage>) {
    let memory = MemoryStorage::new();
    memory.create_dir(dir()).unwrap();
    (memory.clone(), Arc::new(memory))
}

fn empty(number: u32, slots: usize) -> ListedTable {
    let from = u64::from(number) * 1000;
    ListedTable::empty(number, Lsn::new(from), Lsn::new(from + 1000), slots as u64)
}

fn write(storage: &Arc<dyn Storage>, number: u32, slots: &mut [Slot]) -> ListedTable {
    write_with(storage, number, slots, &[])
}

fn write_with(
    storage: &Arc<dyn Storage>,
    number: u32,
    slots: &mut [Slot],
    open: &[OpenKey],
) -> ListedTable {
    slots.sort_by_key(Slot::rank);
    let empty = empty(number, slots.len());
    let mut writer = Writer::create(storage, dir(), STORE, empty, Pace::alone()).ok().unwrap();
    for slot in slots {
        writer.push(*slot).ok().unwrap();
    }
    writer.finish_with(open).ok().unwrap()
}

/// Every so manieth of some keys, as a list of open ones.
fn open_of(keys: &[(KeyHash, Spot)], step: usize) -> Vec<OpenKey> {
    let state = |n: usize| if n % 3 == 0 { OpenAs::Held } else { OpenAs::Attempt };
    let open = keys.iter().enumerate().step_by(step);
    let mut open: Vec<_> = open
        .map(|(n, (hash, spot))| OpenKey { hash: *hash, spot: *spot, open: state(n) })
        .collect();
    OpenKey::sort(&mut open);
    open
}

fn open(storage: &Arc<dyn Storage>, listed: ListedTable, map: bool) -> crate::Result<Table> {
    Table::open(&**storage, dir(), listed, STORE, map)
}

fn hash(high: u64) -> KeyHash {
    KeyHash { high, low: 0 }
}

/// So many distinct hashes, each with a distinct place.
fn random(count: u64, seed: u64) -> Vec<(KeyHash, Spot)> {
    let mut dice = SplitMix64::new(seed);
    let spot =
        |n: u64| Spot { ordinal: u32::try_from(1 + n / 100).unwrap(), offset: 128 + n % 100 * 8 };
    (0..count).map(|n| (hash(dice.next()), spot(n))).collect()
}

fn slots(keys: &[(KeyHash, Spot)]) -> Vec<Slot> {
    keys.iter().map(|(hash, spot)| Slot::new(*hash, *spot)).collect()
}

fn find(table: &Table, hash: KeyHash) -> Vec<Spot> {
    let mut found = Vec::new();
    table.find(hash, &mut found).unwrap();
    found
}

#[test]
fn a_table_finds_exactly_its_keys() {
    for count in [0, 1, 4, 5, 6, 41, 1000, 20_000] {
        let (_, storage) = disk();
        let keys = random(count, count);
        let listed = write(&storage, 1, &mut slots(&keys));
        assert_eq!(listed.slots, count);
        for map in [true, false] {
            let table = open(&storage, listed, map).unwrap();
            for (hash, spot) in &keys {
                assert_eq!(find(&table, *hash), [*spot]);
            }
            let strangers = random(2000, count + 1);
            let met = strangers.iter().filter(|(hash, _)| !find(&table, *hash).is_empty()).count();
            // 25 bits of the hash distinguish keys in the smallest tables, and no more in any.
            assert!(met <= 2, "{met} false candidates");
        }
    }
}

#[test]
fn a_key_takes_no_more_than_sixteen_bytes() {
    let (_, storage) = disk();
    let listed = write(&storage, 1, &mut slots(&random(50_000, 3)));
    assert!(listed.bytes() <= 16 * listed.slots, "{} for {}", listed.bytes(), listed.slots);
}

#[test]
fn thousands_of_slots_under_one_hash_are_all_found_newest_first() {
    let (_, storage) = disk();
    let mut keys: Vec<_> = random(500, 9);
    keys.extend((0..3000).map(|n| {
        (hash(1 << 63), Spot { ordinal: 1000 + n / 7, offset: 128 + 8 * u64::from(n % 7) })
    }));
    keys.extend((0..20).map(|n| (hash(u64::MAX), Spot { ordinal: 5000 + n, offset: 128 })));
    let listed = write(&storage, 1, &mut slots(&keys));
    let table = open(&storage, listed, true).unwrap();
    let found = find(&table, hash(1 << 63));
    assert_eq!(found.len(), 3000);
    assert!(found.is_sorted_by(|a, b| a > b), "not the newest first");
    assert_eq!(find(&table, hash(u64::MAX)).len(), 20);
    for (hash, spot) in random(500, 9) {
        assert_eq!(find(&table, hash), [spot]);
    }
}

#[test]
fn a_merge_has_the_slots_of_both_tables_except_those_of_removed_segments() {
    let (_, storage) = disk();
    let (old, new) = (random(1500, 1), random(700, 2));
    let shift = |spot: Spot| Spot { ordinal: spot.ordinal + 100, ..spot };
    let new: Vec<_> = new.iter().map(|(hash, spot)| (*hash, shift(*spot))).collect();
    // Some keys are in both.
    let both: Vec<_> =
        old.iter().take(50).map(|(hash, spot)| (*hash, shift(shift(*spot)))).collect();
    let new = [new, both].concat();
    let tables = [(2, &new), (1, &old)].map(|(number, keys)| {
        let listed = write(&storage, number, &mut slots(keys));
        Arc::new(open(&storage, listed, true).unwrap())
    });
    let head = 4;
    let total = old.len() + new.len();
    let writer =
        Writer::create(&storage, dir(), STORE, empty(3, total), Pace::alone()).ok().unwrap();
    let mut merge = Merge::new(Vec::new(), &tables, head, writer);
    while !merge.advance(7).ok().unwrap() {}
    let merged = open(&storage, merge.finish().ok().unwrap(), true).unwrap();
    let mut expected: BTreeMap<u64, Vec<Spot>> = BTreeMap::new();
    for (hash, spot) in new.iter().chain(&old) {
        expected.entry(hash.high).or_default().extend((spot.ordinal >= head).then_some(*spot));
    }
    for (high, mut spots) in expected {
        spots.sort_by_key(|spot| std::cmp::Reverse(*spot));
        assert_eq!(find(&merged, hash(high)), spots);
    }
    let set = Tables { list: tables.to_vec(), covered: Lsn::ZERO, head: 0, expired: Vec::new() };
    let (twice, _) = old[0];
    let found = set.find(twice).unwrap();
    assert!(found.len() == 2 && found[0] > found[1], "{found:?}");
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let (memory, storage) = disk();
    let keys = random(60, 4);
    let listed = write(&storage, 1, &mut slots(&keys));
    let path = dir().join(ListedTable::file_name(1));
    let bytes = memory.read(&path).unwrap();
    let mut noticed = 0;
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        memory.write_file(&path, &bad).unwrap();
        let Ok(table) = open(&storage, listed, bit % 2 == 0) else {
            noticed += 1;
            continue;
        };
        let mut errors = 0;
        for (hash, spot) in &keys {
            let mut found = Vec::new();
            match table.find(*hash, &mut found) {
                Ok(()) => assert_eq!(found, [*spot], "bit {bit}"),
                Err(e) => {
                    assert_eq!((e.kind(), e.path()), (crate::ErrorKind::Corrupt, Some(&*path)));
                    errors += 1;
                }
            }
        }
        // Only lookups of absent keys read a bucket without keys, but a walk reads it, too.
        let mut cursor = EntryCursor::new(Arc::new(table));
        let walked = loop {
            match cursor.peek() {
                Ok(Some(_)) => cursor.advance(),
                other => break other,
            }
        };
        assert!(errors > 0 || walked.is_err(), "bit {bit} was not noticed");
        assert!(walked.is_err(), "bit {bit}");
        noticed += 1;
    }
    assert_eq!(noticed, bytes.len() * 8);
    for len in 0..bytes.len() {
        memory.write_file(&path, &bytes[..len]).unwrap();
        let error = open(&storage, listed, true).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Corrupt, "cut at {len}");
    }
}

#[test]
fn a_bucket_that_moved_or_belongs_to_another_table_is_damage() {
    let (memory, storage) = disk();
    let keys = random(60, 4);
    let listed = [1, 2].map(|number| write(&storage, number, &mut slots(&keys)));
    let paths = [1, 2].map(|number| dir().join(ListedTable::file_name(number)));
    let [one, two] = paths.each_ref().map(|path| memory.read(path).unwrap());
    let bucket = |n: usize| 128 + n * 64..128 + (n + 1) * 64;
    for (into, from, from_bytes) in [(0, 1, &one), (3, 3, &two)] {
        let mut bad = one.clone();
        bad[bucket(into)].copy_from_slice(&from_bytes[bucket(from)]);
        memory.write_file(&paths[0], &bad).unwrap();
        let table = Arc::new(open(&storage, listed[0], true).unwrap());
        let mut cursor = EntryCursor::new(table);
        let mut damaged = 0;
        loop {
            match cursor.peek() {
                Ok(Some(_)) => cursor.advance(),
                Ok(None) => break,
                Err(_) => damaged += 1,
            }
        }
        assert_eq!(damaged, 1, "reported once, and the walk continues after it");
    }
    // A whole table in another's place.
    memory.write_file(&paths[0], &two).unwrap();
    assert_eq!(open(&storage, listed[0], true).unwrap_err().kind(), crate::ErrorKind::Corrupt);
}

#[test]
fn a_table_returns_the_open_keys_that_were_listed() {
    for count in [0, 1, 2, 3, 1000] {
        let (_, storage) = disk();
        let keys = random(count, count);
        let all = open_of(&keys, 1);
        let listed = write_with(&storage, 1, &mut slots(&keys), &all);
        assert_eq!(listed.open, count);
        for map in [true, false] {
            let table = open(&storage, listed, map).unwrap();
            assert_eq!(table.all_open_keys().unwrap(), all);
            assert!(keys.iter().all(|(hash, spot)| find(&table, *hash) == [*spot]));
        }
    }
}

#[test]
fn every_changed_byte_of_a_list_of_open_keys_is_noticed() {
    let (memory, storage) = disk();
    let keys = random(100, 3);
    let listed = write_with(&storage, 1, &mut slots(&keys), &open_of(&keys, 20));
    let path = dir().join("0000000001.tab");
    let whole = memory.read(&path).unwrap();
    assert_eq!((listed.open, listed.open_pages()), (5, 3));
    for at in whole.len() - 3 * 64..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        memory.write_file(&path, &bad).unwrap();
        let table = open(&storage, listed, true).unwrap();
        let error = table.all_open_keys().unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
        let page = (at - 128) / 64 * 64 + 128;
        assert_eq!((error.path(), error.offset()), (Some(&*path), Some(page as u64)));
        let mut read = 0;
        table.open_keys(&mut |page| {
            read += page.map_or(0, |keys| keys.len());
            true
        });
        assert!((3..=4).contains(&read), "the other pages are read: {read}");
    }
    // A page in the place of another, and a bucket in its place.
    for (from, to) in [(2, 1), (3, 2), (1, 2), (10, 1)] {
        let mut bad = whole.clone();
        let (from, to) = (whole.len() - from * 64, whole.len() - to * 64);
        bad.copy_within(from..from + 64, to);
        memory.write_file(&path, &bad).unwrap();
        assert!(open(&storage, listed, true).unwrap().all_open_keys().is_err());
    }
}

/// Version 1 of the format, as `docs/format.md` draws it. A change here is another version.
#[test]
fn the_bytes_of_a_table_never_change() {
    use std::hash::Hasher as _;
    let (memory, storage) = disk();
    let keys = random(1000, 4);
    write_with(&storage, 7, &mut slots(&keys), &open_of(&keys, 400));
    let bytes = memory.read(&dir().join("0000000007.tab")).unwrap();
    let header: String = bytes[40..128].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        header,
        "581b000000000000401f000000000000e803000000000000f300000000000000f300000000000000\
             03000000000000000700000000000000000000000000000000000000000000000000000000000000\
             000000002793a9b3"
    );
    // Not the same checksum: over bytes that end with their own checksum, its result is constant.
    let mut hasher = siphasher::sip::SipHasher13::new();
    hasher.write(&bytes);
    assert_eq!((bytes.len(), hasher.finish()), (15_808, 1_837_038_836_864_981_507));
}

proptest! {
    #[test]
    fn hostile_headers_are_errors(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ListedTable::decode(&bytes, Path::new("t"));
    }

    #[test]
    fn slots_are_returned_in_order(highs in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (_, storage) = disk();
        // Few values, so that many share a bucket, and many share a prefix.
        let spot = |n: usize| Spot { ordinal: 1, offset: 128 + 8 * n as u64 };
        let high = |byte: u8| u64::from(byte).pow(2) << 48;
        let keys: Vec<_> =
            highs.iter().enumerate().map(|(n, byte)| (hash(high(*byte)), spot(n))).collect();
        let mut sorted = slots(&keys);
        let listed = write(&storage, 1, &mut sorted);
        let table = Arc::new(open(&storage, listed, true).unwrap());
        let mut cursor = EntryCursor::new(Arc::clone(&table));
        let mut walked = Vec::new();
        while let Some(slot) = cursor.peek().unwrap() {
            walked.push(slot);
            cursor.advance();
        }
        prop_assert_eq!(&walked, &sorted);
        for (hash, _) in &keys {
            let mut expected: Vec<Spot> =
                keys.iter().filter(|(other, _)| other == hash).map(|(_, spot)| *spot).collect();
            expected.sort_by_key(|spot| std::cmp::Reverse(*spot));
            prop_assert_eq!(find(&table, *hash), expected);
        }
        prop_assert!(listed.buckets >= listed.homes && SLOTS as u64 * listed.buckets >= listed.slots);
    }
}

/// Short keys are hashed in one piece and long ones in two: both as the hash of the same bytes.
#[test]
fn a_hash_does_not_depend_on_the_length_up_to_which_keys_are_copied() {
    use siphasher::sip128::{Hasher128 as _, SipHasher13};
    use std::hash::Hasher as _;

    use super::Hasher;
    use crate::manifest::Secrets;
    use crate::operation::Key;

    let secrets = Secrets { hash_key: [3; 16], derivation: [0; 32] };
    for len in 1..200 {
        let bytes: Vec<u8> = (0..len).collect();
        let key = Key::from(bytes.clone());
        let mut expected = SipHasher13::new_with_key(&[3; 16]);
        expected.write_u8(key.kind());
        expected.write(&bytes);
        let (high, low) = expected.finish128().as_u64();
        assert_eq!(Hasher::new(&secrets).hash(&key), KeyHash { high, low }, "{len} bytes");
    }
}
