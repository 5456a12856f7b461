//! A read-only memory map behind the safe trait [`Map`].
//!
//! Promises: never reads outside the map, and forms a reference only to the bytes asked for, so other
//! parts of the file may be written meanwhile. Never: writes, grows or follows a file that grows.
//!
//! The map can't prevent two things: if another process or an administrator truncates a mapped file, the next access
//! raises SIGBUS; if one changes bytes, they change under a borrow. The store's directory is locked and its files are
//! private to their owner; a process that writes there nevertheless can do both. Where that is a risk, plain reads are
//! the alternative.

use std::fs;
use std::io;
use std::sync::Arc;

use super::{HeldBytes, Map};

/// The first `len` bytes of `file`, which must have them.
pub(super) fn map_file(file: &fs::File, len: u64) -> io::Result<Arc<dyn Map>> {
    if len > file.metadata()?.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // A system refuses to map zero bytes.
    let raw = if len == 0 {
        None
    } else {
        Some(memmap2::MmapOptions::new().len(len).map_raw_read_only(file)?)
    };
    if let Some(raw) = &raw {
        // Records and buckets are looked up in random order: read-ahead, megabytes on some machines, would be wasted
        // and would evict useful pages. Without this advice lookups are only slower.
        let _ = raw.advise(memmap2::Advice::Random);
    }
    Ok(Arc::new(FileMap { raw, len }))
}

#[derive(Debug)]
struct FileMap {
    raw: Option<memmap2::MmapRaw>,
    len: usize,
}

impl Map for FileMap {
    fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(len)? > self.len {
            return None;
        }
        let Some(raw) = &self.raw else { return Some(&[]) };
        Some(slice(raw, offset, len))
    }

    fn hold(self: Arc<Self>, offset: u64, len: usize) -> Option<HeldBytes> {
        self.bytes(offset, len)?;
        let offset = usize::try_from(offset).ok()?;
        Some(Arc::new(MapPart { map: self, offset, len }))
    }

    fn read_ahead(&self, offset: u64, len: usize) {
        let (Some(raw), Ok(offset)) = (&self.raw, usize::try_from(offset)) else { return };
        if offset < self.len {
            let len = len.min(self.len - offset);
            let _ = raw.advise_range(memmap2::Advice::WillNeed, offset, len);
        }
    }
}

/// A part of a map, which it keeps.
struct MapPart {
    map: Arc<FileMap>,
    /// `FileMap::hold` checked that this and the length lie in the map, which keeps its length.
    offset: usize,
    len: usize,
}

impl AsRef<[u8]> for MapPart {
    fn as_ref(&self) -> &[u8] {
        match &self.map.raw {
            Some(raw) => slice(raw, self.offset, self.len),
            // A map of no bytes has no other part.
            None => &[],
        }
    }
}

/// `offset + len` must lie in the map, which [`FileMap::bytes`] has checked, now or when a part was made.
#[expect(unsafe_code, reason = "a map's bytes are reached through a pointer")]
fn slice(raw: &memmap2::MmapRaw, offset: usize, len: usize) -> &[u8] {
    debug_assert!(offset.checked_add(len).is_some_and(|end| end <= raw.len()));
    // SAFETY: `offset <= raw.len()` by the check in `FileMap::bytes`, so the sum stays in the one mapping that
    // `raw` owns.
    let start = unsafe { raw.as_ptr().add(offset) };
    // SAFETY: the `len` bytes from `start` lie in the mapping, which is readable and lives as long as `raw`,
    // which the result borrows. The file has these bytes: `map_file` checked its length, and `File::map`'s
    // caller keeps it from becoming shorter. They don't change while borrowed: `Map::bytes`'s caller asks only
    // for bytes that are never written again.
    unsafe { std::slice::from_raw_parts(start, len) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn file(bytes: &[u8]) -> fs::File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn a_map_gives_only_bytes_inside_it() {
        let map = map_file(&file(b"0123456789"), 8).unwrap();
        assert_eq!(map.bytes(0, 8).unwrap(), b"01234567");
        assert_eq!(map.bytes(3, 2).unwrap(), b"34");
        assert_eq!(map.bytes(8, 0).unwrap(), b"");
        for (offset, len) in
            [(8, 1), (0, 9), (9, 0), (u64::MAX, 1), (1, usize::MAX), (u64::MAX, usize::MAX)]
        {
            assert_eq!(map.bytes(offset, len), None, "{offset} {len}");
        }
    }

    #[test]
    fn a_part_keeps_its_map_and_lies_inside_it() {
        let file = file(b"0123456789");
        let map = map_file(&file, 8).unwrap();
        let parts: Vec<_> = [(0, 8), (3, 2), (8, 0)]
            .map(|(offset, len)| Arc::clone(&map).hold(offset, len).unwrap())
            .into();
        for (offset, len) in [(8, 1), (9, 0), (u64::MAX, 1), (1, usize::MAX)] {
            assert!(Arc::clone(&map).hold(offset, len).is_none(), "{offset} {len}");
        }
        let address = map.bytes(3, 2).unwrap().as_ptr();
        drop((map, file));
        let seen: Vec<&[u8]> = parts.iter().map(|part| (**part).as_ref()).collect();
        assert_eq!(seen, [&b"01234567"[..], b"34", b""]);
        assert_eq!(seen[1].as_ptr(), address, "nothing was copied");
        let empty = map_file(&tempfile::tempfile().unwrap(), 0).unwrap().hold(0, 0).unwrap();
        assert_eq!((*empty).as_ref(), b"");
    }

    #[test]
    fn a_map_longer_than_its_file_is_refused() {
        assert_eq!(map_file(&file(b"0123"), 5).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(
            map_file(&file(b"0123"), u64::MAX).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn an_empty_map_is_a_map() {
        let map = map_file(&file(b""), 0).unwrap();
        assert_eq!(map.bytes(0, 0).unwrap(), b"");
        assert_eq!(map.bytes(0, 1), None);
    }

    #[test]
    fn read_ahead_stays_inside_the_map() {
        let map = map_file(&file(b"0123456789"), 8).unwrap();
        for (offset, len) in [(0, 8), (7, 1 << 20), (8, 1), (u64::MAX, usize::MAX)] {
            map.read_ahead(offset, len);
        }
        assert_eq!(map.bytes(0, 8).unwrap(), b"01234567");
    }

    #[test]
    fn a_map_outlives_its_file_and_shows_later_writes_elsewhere() {
        let file = file(b"0123456789");
        let map = map_file(&file, 10).unwrap();
        let early = map.bytes(0, 4).unwrap();
        file.write_all_at(b"xyz", 5).unwrap();
        assert_eq!(map.bytes(4, 5).unwrap(), b"4xyz8");
        drop(file);
        assert_eq!(early, b"0123");
    }
}
