//! What the fuzz targets call, and the tests that replay their corpora: they take bytes, and panic if a promise is
//! broken.
//!
//! Checksums reject most random bytes, so each target tests its input twice: as it is, and with every checksum made
//! valid, which only a hostile program would write. The offsets repeat those of `docs/format.md` on purpose. Not part
//! of the API.

#![expect(clippy::indexing_slicing, reason = "a harness; all lengths are checked before")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::index::table::Table;
use crate::log::probe_segment;
use crate::manifest::Manifest;
use crate::processes::{
    Drawn, Draws, Frames, FromGuest, FromHost, Travels, frame_bytes_max, put_frame,
};
use crate::record::{Draft, Ending, Kind, Record, Seal};
use crate::remembered::MemoryFile;
use crate::sealed::EntryCursor;
use crate::sealed::listed::{ListedFile, ListedMemories, ListedTable};
use crate::storage::memory::MemoryStorage;
use crate::testing::Sim;
use crate::types::{KeyHash, Lsn, StoreId, in_memory};
use crate::value::packed as compression;
use crate::{Claim, Key, Mark, Store, StoreBuilder};

const SEAL: Seal = Seal { store: StoreId([7; 16]), salt: 0x0123_4567_89ab_cdef };
const AT: Lsn = Lsn::new(1 << 40);

/// The sizes with which the directory target opens its stores.
pub fn builder() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10).index_memory_max(512)
}

/// One record at the start of `data`.
pub fn record(data: &[u8]) {
    one_record(data);
    let mut sealed = data.to_vec();
    seal_record(&mut sealed, AT.get(), SEAL.salt, &SEAL.store.0);
    one_record(&sealed);
}

fn one_record(data: &[u8]) {
    let Ok(record) = Record::parse(data, AT, &SEAL) else { return };
    assert!(record.len() <= data.len() as u64 && record.len() % 8 == 0);
    assert!(record.watermark <= AT);
    let _ = record.time();
    let Ok(body) = record.body() else { return };
    // What was decoded is encoded as another record that says the same.
    let draft = match (record.kind, record.ending()) {
        (Kind::Claim, _) => Draft::claim(&body),
        (Kind::Update, _) => Draft::update(&body),
        (Kind::Forget, _) => Draft::forget(&body),
        (_, ending) => Draft::end(ending.unwrap_or(Ending::Completed), &body),
    };
    let mut again = Vec::new();
    draft.seal(&mut again, AT, record.watermark, &SEAL);
    let again = Record::parse(&again, AT, &SEAL).map(|again| (again.kind, again.ending()));
    assert_eq!(again, Ok((record.kind, record.ending())));
}

/// A key as a record would hold it: its kind, and its bytes.
pub fn key(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let Some(key) = Key::from_stored(*kind, bytes) else { return };
    assert_eq!((key.kind(), key.bytes()), (*kind, bytes), "a key has one form");
    assert!(key.check().is_ok());
    assert!(!format!("{key} {key:?}").is_empty());
    assert!(key.starts_with(&key) && key == key.clone().into_owned());
}

/// A whole manifest.
pub fn manifest(data: &[u8]) {
    one_manifest(data);
    let mut sealed = data.to_vec();
    seal_manifest(&mut sealed);
    one_manifest(&sealed);
}

fn one_manifest(data: &[u8]) {
    let path = Path::new("MANIFEST");
    let Ok(manifest) = Manifest::decode(data, path) else { return };
    let again = Manifest::decode(&manifest.encode(), path);
    assert!(again.is_ok_and(|again| again == manifest));
}

/// A whole segment.
pub fn segment(data: &[u8]) {
    probe_segment(data);
    let mut sealed = data.to_vec();
    seal_segment(&mut sealed);
    probe_segment(&sealed);
}

/// A whole table of the index.
pub fn table(data: &[u8]) {
    one_table(data);
    let mut sealed = data.to_vec();
    seal_table(&mut sealed);
    one_table(&sealed);
}

fn one_table(data: &[u8]) {
    let Ok((store, listed)) = ListedTable::decode(data, Path::new("t")) else { return };
    let (storage, dir) = (MemoryStorage::new(), Path::new("/"));
    if storage.write_file(&dir.join(ListedTable::file_name(listed.number)), data).is_err() {
        return;
    }
    for map in [true, false] {
        let Ok(table) = Table::open(&storage, dir, listed, store, map) else { return };
        let table = Arc::new(table);
        let mut cursor = EntryCursor::new(Arc::clone(&table));
        let mut found = Vec::new();
        // Each damaged bucket is an error, and there are no more of them than the file has.
        for _ in 0..data.len() {
            match cursor.peek() {
                Ok(None) => break,
                Ok(Some(slot)) => {
                    let high = slot.prefix() << 27;
                    let _ = table.find(KeyHash { high, low: 0 }, &mut found);
                    cursor.advance();
                }
                Err(_) => {}
            }
        }
        assert!(matches!(cursor.peek(), Ok(None)), "an endless walk");
        let mut pages = 0;
        table.open_keys(&mut |_| {
            pages += 1;
            true
        });
        assert_eq!(pages, listed.open_pages());
    }
}

/// A compressed result: the length that it claims, in four bytes, then its block.
pub fn packed(data: &[u8]) {
    let Some((len, block)) = data.split_first_chunk::<4>() else { return };
    let len = u32::from_le_bytes(*len);
    for len in [len, len % 4096] {
        if let Ok(value) = compression::unpack(block, len) {
            assert_eq!(value.len(), in_memory(u64::from(len)));
        }
    }
    if let Some(packed) = compression::pack(data) {
        assert!(packed.len() < data.len());
        assert_eq!(compression::unpack(&packed, data.len() as u32).ok().as_deref(), Some(data));
    }
}

/// What one process sends another, in two ways: the length of a piece, then a stream that arrives in pieces of that length;
/// and a frame made of the same bytes, which is sent.
pub fn frames(data: &[u8]) {
    let Some((piece, stream)) = data.split_first() else { return };
    received::<FromGuest>(stream, usize::from(*piece));
    received::<FromHost>(stream, usize::from(*piece));
    let draws = &mut Draws(stream);
    sent(&FromGuest::drawn(draws));
    sent(&FromHost::drawn(draws));
}

fn received<T: Travels + std::fmt::Debug>(stream: &[u8], piece: usize) {
    let mut frames = Frames::new(frame_bytes_max(0));
    for piece in stream.chunks(piece.max(1)) {
        frames.arrived(piece);
        loop {
            match frames.next::<T>() {
                Ok(Some(frame)) => sent(&frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(frames.buffered() <= stream.len());
    }
}

/// An input of the target `frames`: what a guest sends, or the host, made of these bytes.
pub fn stream(by_guest: bool, draws: &[u8]) -> Vec<u8> {
    let (draws, mut out) = (&mut Draws(draws), vec![7]);
    for _ in 0..3 {
        let put = match by_guest {
            true => put_frame(&FromGuest::drawn(draws), frame_bytes_max(0), &mut out),
            false => put_frame(&FromHost::drawn(draws), frame_bytes_max(0), &mut out),
        };
        assert!(put.is_ok());
    }
    out
}

/// What is sent arrives.
fn sent<T: Travels + std::fmt::Debug>(frame: &T) {
    let (most, mut bytes) = (frame_bytes_max(0), Vec::new());
    assert!(put_frame(frame, most, &mut bytes).is_ok());
    let mut frames = Frames::new(most);
    frames.arrived(&bytes);
    let arrived = frames.next::<T>().ok().flatten();
    assert_eq!(format!("{arrived:?}"), format!("{:?}", Some(frame)));
    assert!(!frames.is_within());
    let mut again = Vec::new();
    assert!(arrived.is_some_and(|frame| put_frame(&frame, most, &mut again).is_ok()));
    assert_eq!(again, bytes);
}

/// A whole file of expired keys.
pub fn expired(data: &[u8]) {
    one_expired(data);
    let mut sealed = data.to_vec();
    seal_expired(&mut sealed);
    one_expired(&sealed);
}

fn one_expired(data: &[u8]) {
    let Ok((store, listed)) = ListedMemories::decode(data, Path::new("e")) else { return };
    let (storage, dir) = (MemoryStorage::new(), Path::new("/"));
    if storage.write_file(&dir.join(ListedMemories::file_name(listed.number)), data).is_err() {
        return;
    }
    for map in [true, false] {
        let Ok(file) = MemoryFile::open(&storage, dir, listed, store, map) else { return };
        let _ = file.verify(&storage, store, &|| Ok(()), &mut drop);
        for high in [0, 1, 1 << 63, u64::MAX].into_iter().chain((0..64).map(|bit| 1 << bit)) {
            let _ = file.find(KeyHash { high, low: high });
        }
    }
}

/// A whole store: one byte that says whether checksums are made valid, then files: for each, its name in one byte, its
/// length in four, the length of its content in two, and the content; zeros follow up to its length.
pub fn directory(data: &[u8]) {
    let Some((&sealed, files)) = data.split_first() else { return };
    let sim = Sim::small(1);
    sim.set_disk_bytes_max(4 << 20);
    if sim.make_dirs().is_err() {
        return;
    }
    for (path, mut bytes) in unpack(files) {
        if sealed & 1 == 1 {
            match path.iter().next().and_then(|part| part.to_str()) {
                Some("log") => seal_segment(&mut bytes),
                Some("index") => seal_table(&mut bytes),
                Some("expired") => seal_expired(&mut bytes),
                _ => seal_manifest(&mut bytes),
            }
        }
        if sim.write_file(Path::new("/store").join(path), &bytes).is_err() {
            return;
        }
    }
    let Ok(store) = sim.open_with(builder()) else { return };
    let marked = use_all(&store);
    if store.close(Duration::ZERO).is_err() {
        return;
    }
    drop(store);
    // A store that opened and was closed opens again, and has what was recorded.
    let again = sim.open_with(builder());
    assert!(again.is_ok(), "{:?}", again.err());
    if let (true, Ok(store)) = (marked, again) {
        assert!(matches!(store.mark("fuzz"), Ok(Mark::Again)));
    }
}

/// Looks up every key, claims some, marks one: returns whether that was marked.
fn use_all(store: &Store) -> bool {
    let mut keys = Vec::new();
    for entry in store.iter().take(1000) {
        let Ok((key, state)) = entry else { continue };
        assert!(!format!("{key} {state:?} {:?}", store.get(&key).is_ok()).is_empty());
        keys.push(key);
    }
    for key in keys.iter().take(8) {
        let granted = match store.claim(key) {
            Ok(Claim::Acquired(guard)) => Ok(guard),
            Ok(Claim::Interrupted(lost)) => lost.take_over(),
            _ => continue,
        };
        let _ = granted.and_then(|guard| guard.complete("fuzzed"));
    }
    for _ in 0..3 {
        let _ = store.step();
    }
    let _ = (store.verify(), store.compact(1 << 20), store.rebuild_index());
    matches!(store.mark("fuzz"), Ok(Mark::First | Mark::Again))
}

/// Packs the files of a store in the form that the directory target reads.
pub fn pack(files: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![0];
    for (path, bytes) in files {
        let Some(name) = (0..=u8::MAX).find(|name| file_path(*name) == *path) else { continue };
        let held = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let held = held.min(usize::from(u16::MAX));
        out.push(name);
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(&(held as u16).to_le_bytes());
        out.extend_from_slice(&bytes[..held]);
    }
    out
}

fn unpack(mut data: &[u8]) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    while data.len() >= 7 && files.len() < 12 {
        let (name, len) = (data[0], number(data, 1, 4));
        let held = in_memory(number(data, 5, 2)).min(data.len() - 7);
        let mut bytes = data[7..7 + held].to_vec();
        bytes.resize(in_memory(len.min(128 << 10)), 0);
        files.push((file_path(name), bytes));
        data = &data[7 + held..];
    }
    files
}

fn file_path(name: u8) -> PathBuf {
    match name {
        0 => PathBuf::from("MANIFEST"),
        1 => PathBuf::from("MANIFEST.next"),
        2..=69 => PathBuf::from(format!("log/{:010}.log", name - 1)),
        70..=84 => PathBuf::from(format!("index/{:010}.tab", name - 69)),
        85..=99 => PathBuf::from(format!("expired/{:010}.exp", name - 84)),
        100..=199 => PathBuf::from(format!("log/spare-{}", name - 100)),
        _ => PathBuf::from("log/spare.new"),
    }
}

/// Makes all checksums of a segment valid, for as many records as follow each other.
fn seal_segment(bytes: &mut [u8]) {
    if bytes.len() < 128 {
        return;
    }
    seal_file_header(bytes);
    put_sum(bytes, 0..124, &[]);
    let (base, salt) = (number(bytes, 40, 8), number(bytes, 56, 8));
    let mut store = [0; 16];
    store.copy_from_slice(&bytes[20..36]);
    let mut at = 128;
    while at < bytes.len() {
        let lsn = base.wrapping_add(at as u64);
        let Some(len) = seal_record(&mut bytes[at..], lsn, salt, &store) else { return };
        at += len;
    }
}

/// Makes both checksums of the record at the start of `bytes` valid; returns its length with padding, if it has one.
fn seal_record(bytes: &mut [u8], lsn: u64, salt: u64, store: &[u8; 16]) -> Option<usize> {
    if bytes.len() < 24 || &bytes[..2] != b"O1" {
        return None;
    }
    let body = in_memory(number(bytes, 4, 4)).min(bytes.len() - 24);
    bytes[4..8].copy_from_slice(&(body as u32).to_le_bytes());
    let mut place = lsn.to_le_bytes().to_vec();
    place.extend_from_slice(&salt.to_le_bytes());
    place.extend_from_slice(store);
    let summed = [&bytes[24..24 + body], &place[..]].concat();
    bytes[16..20].copy_from_slice(&crc32fast::hash(&summed).to_le_bytes());
    put_sum(bytes, 0..20, &place);
    let end = (24 + body).next_multiple_of(8);
    let padded = end.min(bytes.len());
    bytes[24 + body..padded].fill(0);
    Some(end)
}

/// Makes the checksums of a table valid: its header's, and each bucket's.
fn seal_table(bytes: &mut [u8]) {
    if bytes.len() < 128 {
        return;
    }
    seal_file_header(bytes);
    put_sum(bytes, 0..124, &[]);
    let seed = crc32fast::hash(&[&bytes[20..36], &bytes[80..84]].concat());
    for (number, bucket) in (0_u64..).zip(bytes[128..].chunks_exact_mut(64)) {
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(&bucket[..60]);
        hasher.update(&number.to_le_bytes());
        bucket[60..].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
}

/// The same for a file of expired keys and its pages.
fn seal_expired(bytes: &mut [u8]) {
    if bytes.len() < 4096 {
        return;
    }
    seal_file_header(bytes);
    put_sum(bytes, 0..124, &[]);
    let seed = crc32fast::hash(&[&bytes[20..36], &b"expired"[..], &bytes[48..52]].concat());
    for (number, page) in (0_u64..).zip(bytes[4096..].chunks_exact_mut(4096)) {
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(&page[..4092]);
        hasher.update(&number.to_le_bytes());
        page[4092..].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
}

fn seal_manifest(bytes: &mut [u8]) {
    if bytes.len() < 212 {
        return;
    }
    seal_file_header(bytes);
    let items = [(188, 36), (192, 52), (196, 16)];
    let end =
        208 + items.map(|(at, len)| in_memory(number(bytes, at, 4)) * len).iter().sum::<usize>();
    if end + 4 <= bytes.len() {
        put_sum(bytes, 0..end, &[]);
        bytes[end + 4..].fill(0);
    }
}

fn seal_file_header(bytes: &mut [u8]) {
    put_sum(bytes, 0..36, &[]);
}

/// Writes the checksum of a range and of its place after the range.
fn put_sum(bytes: &mut [u8], range: std::ops::Range<usize>, place: &[u8]) {
    let sum = crc32fast::hash(&[&bytes[range.clone()], place].concat());
    bytes[range.end..range.end + 4].copy_from_slice(&sum.to_le_bytes());
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
