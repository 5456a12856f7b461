//! The header with which every file of a store begins: magic, format version, feature bits, store id.
//!
//! Promises: a header with its own checksum, whose layout no later version changes, so that a file of another version
//! is distinguished from a damaged one. Format: `docs/format.md`, "File header".

use std::path::Path;

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::types::StoreId;
use crate::{Error, ErrorKind, Result};

/// First bytes of every file. Not text, and changed by a transfer that converts line ends.
pub(crate) const MAGIC: [u8; 8] = *b"\x891once\r\n";

/// The version this code writes, and the only one it reads.
pub(crate) const VERSION: u16 = 1;

pub(crate) const FILE_HEADER_BYTES: usize = 40;

/// What kind of file it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum FileKind {
    Manifest = 1,
    Segment = 2,
    Table = 3,
    Expired = 4,
}

/// The first bytes of every file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
pub(crate) struct FileHeader {
    magic: [u8; 8],
    version: U16,
    kind: U16,
    /// Bits that a reader may ignore.
    compatible: U32,
    /// Bits that a reader must know.
    incompatible: U32,
    store: [u8; 16],
    /// Over all bytes before it.
    sum: U32,
}

const _: () = assert!(size_of::<FileHeader>() == FILE_HEADER_BYTES);

/// The checksum over all bytes of a header except the last four, which hold it.
pub(crate) fn sum_before_last<T: IntoBytes + Immutable>(header: &T) -> u32 {
    const { assert!(size_of::<T>() > 4) };
    let (summed, _) = header.as_bytes().split_at(size_of::<T>() - 4);
    crc32fast::hash(summed)
}

impl FileHeader {
    /// The header of a file of that kind.
    pub(crate) fn bytes(kind: FileKind, store: StoreId) -> [u8; FILE_HEADER_BYTES] {
        zerocopy::transmute!(FileHeader::new(kind, store))
    }

    fn new(kind: FileKind, store: StoreId) -> Self {
        let mut header = FileHeader {
            magic: MAGIC,
            version: VERSION.into(),
            kind: (kind as u16).into(),
            compatible: 0.into(),
            incompatible: 0.into(),
            store: store.0,
            sum: 0.into(),
        };
        header.sum = header.expected_sum().into();
        header
    }

    fn expected_sum(&self) -> u32 {
        sum_before_last(self)
    }

    /// Reads and checks the header at the start of `bytes`, the beginning of the file at `path`.
    pub(crate) fn check(bytes: &[u8], kind: FileKind, path: &Path) -> Result<StoreId> {
        let (header, _) = FileHeader::read_from_prefix(bytes)
            .map_err(|_| Error::corrupt(path, 0, "no file header, the file is too short"))?;
        if header.magic != MAGIC || header.sum.get() != header.expected_sum() {
            return Err(Error::corrupt(path, 0, "a file header that fails its checksum"));
        }
        if header.version.get() != VERSION || header.incompatible.get() != 0 {
            let age = if header.version.get() < VERSION { "an older" } else { "a newer" };
            let message = format!(
                "{} is in {age} format (version {}, features {:#x}); this build reads version {VERSION}: \
                 use the release that wrote it, or restore a backup made by this one",
                path.display(),
                header.version.get(),
                header.incompatible.get(),
            );
            return Err(Error::new(ErrorKind::Incompatible, message).at(path));
        }
        if header.kind.get() != kind as u16 {
            return Err(Error::corrupt(path, 10, "another kind of file"));
        }
        Ok(StoreId(header.store))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_of(version: u16, incompatible: u32) -> Vec<u8> {
        let mut header = FileHeader::new(FileKind::Segment, StoreId([3; 16]));
        header.version = version.into();
        header.incompatible = incompatible.into();
        header.sum = header.expected_sum().into();
        header.as_bytes().to_vec()
    }

    #[test]
    fn another_version_is_incompatible_and_says_which() {
        let path = Path::new("store/x");
        for (version, bits, word) in [(2, 0, "newer"), (0, 0, "older"), (1, 4, "newer")] {
            let error =
                FileHeader::check(&header_of(version, bits), FileKind::Segment, path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Incompatible);
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn every_flipped_bit_is_damage() {
        let bytes = header_of(VERSION, 0);
        let path = Path::new("store/x");
        assert_eq!(FileHeader::check(&bytes, FileKind::Segment, path).unwrap(), StoreId([3; 16]));
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            let error = FileHeader::check(&bad, FileKind::Segment, path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }
}
