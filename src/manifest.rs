//! The manifest: which segments make up the log, and what is known about them. It is replaced atomically.
//!
//! Promises: a manifest is written whole to a file prepared beforehand and swapped in by [`Switch`], so that a valid
//! manifest exists at every moment; a damaged one is `Corrupt`, and its contents are never guessed. Format:
//! `docs/format.md`, "Manifest".

mod switch;

pub(crate) use switch::{Switch, check_standing, misplaced};

use std::path::{Path, PathBuf};

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::header::{FILE_HEADER_BYTES, FileHeader, FileKind};
use crate::limits;
use crate::record::TimeField;
use crate::sealed::listed::{ListedFile, ListedMemories, ListedTable, MemoriesItem, TableItem};
use crate::storage::{self, Access, Storage};
use crate::types::{Lsn, StoreId, WallMillis, in_memory};
use crate::{Error, ErrorKind, Result};

/// The manifest of a store in `dir`.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("MANIFEST")
}

/// Everything a manifest says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Manifest {
    pub(crate) store: StoreId,
    pub(crate) secrets: Secrets,
    pub(crate) generation: u64,
    /// Set by a clean close: where the log ends. Cleared, durably, before the next LSN is taken.
    pub(crate) clean: Option<Lsn>,
    /// Counts as a watermark.
    pub(crate) durable: Lsn,
    /// At least the end of every segment ever listed; never decreases.
    pub(crate) extent: Lsn,
    /// What is added to a record's LSN to make its token, in segments listed so far. The sum never decreases, so no
    /// token is issued twice, and each is below the extent plus this.
    pub(crate) ahead: u64,
    pub(crate) next_ordinal: u32,
    pub(crate) time: TimeField,
    pub(crate) opener: Opener,
    pub(crate) segments: Vec<Listed>,
    /// The index covers the log up to here; an open reads the log from here on.
    pub(crate) covered: Lsn,
    pub(crate) next_table: u32,
    /// The oldest first, without a gap.
    pub(crate) tables: Vec<ListedTable>,
    /// Keys remembered after they left the log, the oldest first. Numbered as tables are.
    pub(crate) expired: Vec<ListedMemories>,
}

/// Random values drawn once, when the store is made; repeated in every segment's header.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Secrets {
    /// Key of the keyed hash.
    pub(crate) hash_key: [u8; 16],
    /// Key for values derived for downstream systems and tickets.
    pub(crate) derivation: [u8; 32],
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// The process that opened the store for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Opener {
    pub(crate) pid: u32,
    pub(crate) since: WallMillis,
}

/// One segment of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Listed {
    pub(crate) ordinal: u32,
    pub(crate) base: Lsn,
    /// Bytes at or past it are never part of the log.
    pub(crate) end: Lsn,
    pub(crate) capacity: u64,
    pub(crate) salt: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct ManifestHead {
    file: [u8; FILE_HEADER_BYTES],
    generation: U64,
    /// 0, or the end of the log at a clean close.
    clean_end: U64,
    durable: U64,
    extent: U64,
    secrets: Secrets,
    time: TimeField,
    opened_wall: U64,
    opener_pid: U32,
    next_ordinal: U32,
    covered: U64,
    next_table: U32,
    segment_count: U32,
    table_count: U32,
    expired_count: U32,
    ahead: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Item {
    base: U64,
    end: U64,
    capacity: U64,
    salt: U64,
    ordinal: U32,
}

const HEAD_BYTES: usize = size_of::<ManifestHead>();
const ITEM_BYTES: usize = size_of::<Item>();
const TABLE_ITEM_BYTES: usize = size_of::<TableItem>();
const EXPIRED_ITEM_BYTES: usize = size_of::<MemoriesItem>();
const _: () = assert!(HEAD_BYTES == 208 && ITEM_BYTES == 36);

/// A count as a manifest keeps it. One that doesn't fit exceeds the limit, and so does the value written then, which
/// `Switch` refuses to write.
fn count(files: usize) -> U32 {
    U32::new(u32::try_from(files).unwrap_or(u32::MAX))
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let head = ManifestHead {
            file: FileHeader::bytes(FileKind::Manifest, self.store),
            generation: self.generation.into(),
            clean_end: self.clean.map_or(0, Lsn::get).into(),
            durable: self.durable.get().into(),
            extent: self.extent.get().into(),
            secrets: self.secrets,
            time: self.time,
            opened_wall: self.opener.since.0.into(),
            opener_pid: self.opener.pid.into(),
            next_ordinal: self.next_ordinal.into(),
            covered: self.covered.get().into(),
            next_table: self.next_table.into(),
            segment_count: count(self.segments.len()),
            table_count: count(self.tables.len()),
            expired_count: count(self.expired.len()),
            ahead: self.ahead.into(),
        };
        let mut out = head.as_bytes().to_vec();
        for listed in &self.segments {
            let item = Item {
                base: listed.base.get().into(),
                end: listed.end.get().into(),
                capacity: listed.capacity.into(),
                salt: listed.salt.into(),
                ordinal: listed.ordinal.into(),
            };
            out.extend_from_slice(item.as_bytes());
        }
        for table in &self.tables {
            out.extend_from_slice(table.item().as_bytes());
        }
        for expired in &self.expired {
            out.extend_from_slice(expired.item().as_bytes());
        }
        let sum = crc32fast::hash(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a manifest from the whole of its file.
    pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let store = FileHeader::check(bytes, FileKind::Manifest, path)?;
        let bad = |at: usize, what: &str| Error::corrupt(path, at as u64, what);
        let (head, rest) = ManifestHead::read_from_prefix(bytes)
            .map_err(|_| bad(FILE_HEADER_BYTES, "a manifest cut short"))?;
        let (count, tables) = (head.segment_count.get() as usize, head.table_count.get() as usize);
        let expired = head.expired_count.get() as usize;
        if count > limits::SEGMENTS_MAX
            || tables > limits::TABLES_MAX
            || expired > limits::TABLES_MAX
        {
            return Err(bad(HEAD_BYTES, "a manifest with an impossible number of files"));
        }
        let cut_short = || bad(HEAD_BYTES, "a manifest cut short");
        let split = |rest, bytes| <[u8]>::split_at_checked(rest, bytes).ok_or_else(cut_short);
        let (items, rest) = split(rest, count * ITEM_BYTES)?;
        let (table_items, rest) = split(rest, tables * TABLE_ITEM_BYTES)?;
        let (expired_items, rest) = split(rest, expired * EXPIRED_ITEM_BYTES)?;
        let (stored, zeros) = U32::read_from_prefix(rest).map_err(|_| cut_short())?;
        let (summed, _) = split(bytes, bytes.len() - rest.len())?;
        if crc32fast::hash(summed) != stored.get() {
            return Err(bad(FILE_HEADER_BYTES, "a manifest that fails its checksum"));
        }
        if let Some(at) = zeros.iter().position(|&byte| byte != 0) {
            return Err(bad(summed.len() + 4 + at, "bytes behind a manifest's end"));
        }
        let mut segments = Vec::with_capacity(count);
        for item in items.chunks_exact(ITEM_BYTES) {
            let item = Item::read_from_bytes(item).map_err(|_| bad(HEAD_BYTES, "a bad entry"))?;
            segments.push(Listed {
                ordinal: item.ordinal.get(),
                base: Lsn::new(item.base.get()),
                end: Lsn::new(item.end.get()),
                capacity: item.capacity.get(),
                salt: item.salt.get(),
            });
        }
        let manifest = Manifest {
            store,
            secrets: head.secrets,
            generation: head.generation.get(),
            clean: Some(Lsn::new(head.clean_end.get())).filter(|end| *end != Lsn::ZERO),
            durable: Lsn::new(head.durable.get()),
            extent: Lsn::new(head.extent.get()),
            ahead: head.ahead.get(),
            next_ordinal: head.next_ordinal.get(),
            time: head.time,
            opener: Opener {
                pid: head.opener_pid.get(),
                since: WallMillis(head.opened_wall.get()),
            },
            segments,
            covered: Lsn::new(head.covered.get()),
            next_table: head.next_table.get(),
            tables: listed_in(table_items, path)?,
            expired: listed_in(expired_items, path)?,
        };
        if manifest.is_sound() {
            Ok(manifest)
        } else {
            Err(bad(HEAD_BYTES, "a manifest that contradicts itself"))
        }
    }

    /// The list is in order, without overlaps, and within the extent. An open refuses any other.
    pub(crate) fn is_sound(&self) -> bool {
        let mut before = Lsn::ZERO;
        self.segments.iter().all(|listed| {
            let fits = listed.base >= before
                && listed.base.get() % 8 == 0
                && listed.end > listed.base
                && listed.end.since(listed.base) <= listed.capacity
                && listed.capacity <= limits::SEGMENT_BYTES_MOST
                && listed.end.get() <= limits::LSN_MAX
                && listed.ordinal < self.next_ordinal;
            before = listed.end;
            fits
        }) && before <= self.extent
            // New segments begin at the extent.
            && self.extent.get() % 8 == 0
            && self.tokens_end().is_some()
            // A next one exists.
            && self.generation < u64::MAX
            && !self.segments.is_empty()
            && self.index_is_sound()
    }

    /// Tables cover the log without a gap, and only its durable part.
    fn index_is_sound(&self) -> bool {
        let mut before = None;
        self.tables.iter().all(|table| {
            let fits = before.is_none_or(|before| before == table.from)
                && table.is_sound()
                && table.number < self.next_table;
            before = Some(table.to);
            fits
        }) && before.is_none_or(|to| to == self.covered)
            && self.covered <= self.durable
            && self
                .expired
                .iter()
                .all(|expired| expired.number < self.next_table && expired.is_sound())
    }

    /// Bytes of the file it is written to.
    pub(crate) fn file_bytes(&self) -> usize {
        bytes_for(self.segments.len(), self.tables.len(), self.expired.len())
    }

    /// The same for the next one, which may list one file more of each kind.
    pub(crate) fn next_file_bytes(&self) -> usize {
        bytes_for(self.segments.len() + 1, self.tables.len() + 1, self.expired.len() + 1)
    }

    /// Returns a number past every token issued so far, and past every one that may be issued before the next switch.
    /// Refuses if there is none.
    pub(crate) fn check_tokens(&self) -> Result<u64> {
        self.tokens_end().ok_or_else(|| {
            let message = "the store has used up its tokens: begin a new one";
            Error::new(ErrorKind::StorageFull, message)
        })
    }

    fn tokens_end(&self) -> Option<u64> {
        self.extent.get().checked_add(self.ahead).filter(|end| *end <= limits::LSN_MAX)
    }

    /// Refuses if not so many more segments may be listed.
    pub(crate) fn check_room(&self, more: usize) -> Result<()> {
        let has_places = self.segments.len() + more <= limits::SEGMENTS_MAX;
        let has_numbers = more <= (u32::MAX - self.next_ordinal) as usize;
        // Checked last: segments that fit the list take no more LSNs than there are.
        let has_lsns = || {
            let lsns = more as u64 * limits::SEGMENT_BYTES_MOST;
            self.tokens_end().is_some_and(|end| end + lsns <= limits::LSN_MAX)
        };
        if has_places && has_numbers && has_lsns() {
            return Ok(());
        }
        let message = "the log has as many segments or positions as it may: begin a new store";
        Err(Error::new(ErrorKind::StorageFull, message))
    }
}

/// Sealed files of one kind, as a manifest lists them.
fn listed_in<L: ListedFile>(items: &[u8], path: &Path) -> Result<Vec<L>> {
    let items = items.chunks_exact(size_of::<L::Item>());
    let read = |item| match L::Item::read_from_bytes(item) {
        Ok(item) => Ok(L::of_item(&item)),
        Err(_) => Err(Error::corrupt(path, HEAD_BYTES as u64, "a bad entry")),
    };
    items.map(read).collect()
}

/// Reads the manifest in `dir`; `None` if there is none.
pub(crate) fn load(storage: &dyn Storage, dir: &Path) -> Result<Option<Manifest>> {
    let path = path(dir);
    let file = match storage.open(&path, Access::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::IsADirectory => {
            return Err(Error::corrupt(&path, 0, "a directory where the manifest should be"));
        }
        Err(e) => return Err(Error::io("opening", &path, e)),
    };
    let len = file.len().map_err(|e| Error::io("reading", &path, e))?;
    if len > manifest_bytes_max() {
        return Err(Error::corrupt(&path, manifest_bytes_max(), "a manifest that is too long"));
    }
    let mut bytes = vec![0; in_memory(len)];
    let read =
        storage::read_full_at(&*file, &mut bytes, 0).map_err(|e| Error::io("reading", &path, e))?;
    bytes.truncate(read);
    Manifest::decode(&bytes, &path).map(Some)
}

/// Reads the id of the store that `dir` is; `None` if it has no file that begins as a manifest does. A switch that happens
/// meanwhile doesn't change the id.
pub(crate) fn store_in(storage: &dyn Storage, dir: &Path) -> Result<Option<StoreId>> {
    use std::io::ErrorKind as Io;
    let path = path(dir);
    let file = match storage.open(&path, Access::Read) {
        Ok(file) => file,
        Err(e) => match e.kind() {
            Io::NotFound | Io::NotADirectory | Io::PermissionDenied => return Ok(None),
            Io::IsADirectory | Io::InvalidInput => return Ok(None),
            _ => return Err(Error::io("opening", &path, e)),
        },
    };
    let mut header = [0; FILE_HEADER_BYTES];
    let read = storage::read_full_at(&*file, &mut header, 0)
        .map_err(|e| Error::io("reading", &path, e))?;
    Ok(FileHeader::check(header.split_at(read).0, FileKind::Manifest, &path).ok())
}

/// Reads the first bytes of the manifest in `dir`, unchecked. Every switch changes them, since they have the generation.
/// `None`: there is no such file.
pub(crate) fn head_in(storage: &dyn Storage, dir: &Path) -> Result<Option<Vec<u8>>> {
    use std::io::ErrorKind as Io;
    let path = path(dir);
    let file = match storage.open(&path, Access::Read) {
        Err(e) if matches!(e.kind(), Io::NotFound | Io::IsADirectory | Io::InvalidInput) => {
            return Ok(None);
        }
        opened => opened.map_err(|e| Error::io("opening", &path, e))?,
    };
    let mut head = vec![0; HEAD_BYTES];
    let read =
        storage::read_full_at(&*file, &mut head, 0).map_err(|e| Error::io("reading", &path, e))?;
    head.truncate(read);
    Ok(Some(head))
}

fn manifest_bytes_max() -> u64 {
    bytes_for(limits::SEGMENTS_MAX, limits::TABLES_MAX, limits::TABLES_MAX) as u64
}

fn bytes_for(segments: usize, tables: usize, expired: usize) -> usize {
    let items = segments * ITEM_BYTES + tables * TABLE_ITEM_BYTES + expired * EXPIRED_ITEM_BYTES;
    (HEAD_BYTES + items + 4).next_multiple_of(limits::PAGE_BYTES)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample() -> Manifest {
        let table = |number, from, to| ListedTable {
            number,
            from: Lsn::new(from),
            to: Lsn::new(to),
            slots: 11,
            homes: 3,
            buckets: 4,
            open: 5,
        };
        let listed = |ordinal, base: u64, len| Listed {
            ordinal,
            base: Lsn::new(base),
            end: Lsn::new(base + len),
            capacity: 1 << 16,
            salt: 77 + base,
        };
        Manifest {
            store: StoreId(*b"0123456789abcdef"),
            secrets: Secrets { hash_key: [1; 16], derivation: [2; 32] },
            generation: 9,
            clean: None,
            durable: Lsn::new(1 << 21),
            extent: Lsn::new(1 << 22),
            ahead: 3 << 40,
            next_ordinal: 8,
            time: TimeField {
                boot_id: [5; 16],
                boot_millis: 6.into(),
                store_millis: 7.into(),
                wall_millis: 8.into(),
            },
            opener: Opener { pid: 4242, since: WallMillis(1_700_000_000_000) },
            segments: vec![listed(3, 1 << 20, 4096), listed(7, 1 << 21, 1 << 16)],
            covered: Lsn::new(1 << 21),
            next_table: 12,
            tables: vec![table(9, 1 << 20, (1 << 20) + 800), table(11, (1 << 20) + 800, 1 << 21)],
            expired: vec![ListedMemories { number: 4, entries: 1000, until_most: 28_000_000 }],
        }
    }

    #[test]
    fn a_manifest_decodes_to_what_was_encoded() {
        let path = Path::new("m");
        let open = sample();
        assert_eq!(Manifest::decode(&open.encode(), path).unwrap(), open);
        let clean = Manifest { clean: Some(Lsn::new((1 << 21) + 64)), ..sample() };
        assert_eq!(Manifest::decode(&clean.encode(), path).unwrap(), clean);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_corrupt() {
        let mut bytes = sample().encode();
        bytes.resize(512, 0);
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            let error = Manifest::decode(&bad, Path::new("m")).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt, "bit {at}");
            assert!(error.path().is_some() && error.offset().is_some());
        }
        for len in 0..sample().encode().len() {
            assert!(Manifest::decode(&bytes[..len], Path::new("m")).is_err(), "cut at {len}");
        }
    }

    /// Version 1 of the format, as `docs/format.md` draws it. A change here is another version.
    #[test]
    fn the_bytes_of_a_manifest_never_change() {
        let hex: String = sample().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "89316f6e63650d0a010001000000000000000000303132333435363738396162636465666a6d370d\
             09000000000000000000000000000000000020000000000000004000000000000101010101010101\
             01010101010101010202020202020202020202020202020202020202020202020202020202020202\
             05050505050505050505050505050505060000000000000007000000000000000800000000000000\
             0068e5cf8b010000921000000800000000002000000000000c000000020000000200000001000000\
             00000000000300000000100000000000001010000000000000000100000000004d00100000000000\
             030000000000200000000000000021000000000000000100000000004d0020000000000007000000\
             000010000000000020031000000000000b0000000000000003000000000000000400000000000000\
             050000000000000009000000200310000000000000002000000000000b0000000000000003000000\
             00000000040000000000000005000000000000000b000000e80300000000000004000000003fab01\
             ec19bac9"
        );
    }

    /// Manifests that contradict themselves, each in one way.
    pub(crate) fn contradictions() -> Vec<Manifest> {
        let edited = |edit: fn(&mut Listed)| {
            let mut manifest = sample();
            edit(&mut manifest.segments[1]);
            manifest
        };
        let first = sample().segments[0];
        vec![
            Manifest { segments: Vec::new(), ..sample() },
            Manifest { extent: Lsn::new(1 << 20), ..sample() },
            // The next segment would begin there: past all LSNs, with none left.
            Manifest { extent: Lsn::new(u64::MAX), ..sample() },
            Manifest { extent: Lsn::new((1 << 22) + 1), ..sample() },
            // Its tokens would exceed the range of numbers.
            Manifest { ahead: u64::MAX, ..sample() },
            Manifest { ahead: limits::LSN_MAX, ..sample() },
            Manifest { next_ordinal: 7, ..sample() },
            Manifest { next_table: 11, ..sample() },
            Manifest { covered: Lsn::new((1 << 21) + 8), ..sample() },
            Manifest { durable: Lsn::new(1 << 20), ..sample() },
            Manifest { segments: vec![first; limits::SEGMENTS_MAX + 1], ..sample() },
            Manifest { tables: vec![sample().tables[0]; limits::TABLES_MAX + 1], ..sample() },
            Manifest { expired: vec![sample().expired[0]; limits::TABLES_MAX + 1], ..sample() },
            edited(|listed| listed.base = Lsn::new((1 << 21) + 4)),
            edited(|listed| listed.base = Lsn::new(1 << 20)),
            edited(|listed| listed.end = listed.base),
            edited(|listed| listed.capacity = 8),
            edited(|listed| listed.capacity = limits::SEGMENT_BYTES_MOST + 4096),
            edited(|listed| listed.capacity = u64::MAX),
            // Its size would exceed the range of numbers.
            Manifest {
                expired: vec![ListedMemories { entries: u64::MAX, ..sample().expired[0] }],
                ..sample()
            },
            // No other could follow it.
            Manifest { generation: u64::MAX, ..sample() },
        ]
    }

    /// The checksum of each is valid: only a program that writes its own manifests makes them.
    #[test]
    fn a_manifest_that_contradicts_itself_is_corrupt() {
        for manifest in contradictions() {
            let error = Manifest::decode(&manifest.encode(), Path::new("m")).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
        }
    }

    #[test]
    fn no_segment_is_listed_beyond_what_a_manifest_holds() {
        sample().check_room(1).unwrap();
        let spent = Manifest { next_ordinal: u32::MAX, ..sample() };
        assert_eq!(spent.check_room(1).unwrap_err().kind(), crate::ErrorKind::StorageFull);
        let far = Manifest { extent: Lsn::new(limits::LSN_MAX), ..sample() };
        assert_eq!(far.check_room(1).unwrap_err().kind(), crate::ErrorKind::StorageFull);
        let far = Manifest { ahead: limits::LSN_MAX - (1 << 23), ..sample() };
        assert_eq!(far.check_room(1).unwrap_err().kind(), crate::ErrorKind::StorageFull);
        let segments = vec![sample().segments[0]; limits::SEGMENTS_MAX - 1];
        let full = Manifest { segments, ..sample() };
        full.check_room(1).unwrap();
        assert_eq!(full.check_room(2).unwrap_err().kind(), crate::ErrorKind::StorageFull);
        let segments = vec![sample().segments[0]; limits::SEGMENTS_MAX];
        let full = Manifest { segments, ..sample() };
        assert_eq!(full.check_room(1).unwrap_err().kind(), crate::ErrorKind::StorageFull);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Manifest::decode(&bytes, Path::new("m"));
        }
    }
}
