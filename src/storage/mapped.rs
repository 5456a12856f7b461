//! A file that is read through its map alone.
//!
//! Promises: reads as the file did when it was mapped, and needs no open file. Never: writes. What it costs: where
//! the device can't give a page, a call would fail, but a map ends the process; so whoever looks for damage reads by
//! calls.

use std::io;
use std::sync::Arc;

use super::{File, Map};

/// See the module.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Arc<dyn Map>,
    len: u64,
}

impl MappedFile {
    /// `map` has the first `len` bytes of a file to which nothing is written any more.
    pub(crate) fn new(map: Arc<dyn Map>, len: u64) -> Self {
        MappedFile { map, len }
    }
}

impl File for MappedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), self.map.bytes(offset, len)) {
            to.copy_from_slice(from);
            return Ok(len);
        }
        Ok(0)
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// What is mapped was synced before: nothing is left to do.
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn Map>> {
        if len > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Arc::clone(&self.map))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::memory::MemoryStorage;
    use crate::storage::{Storage, read_full_at, write_all_at};

    #[test]
    fn reads_as_the_file_did_and_writes_nothing() {
        let disk = MemoryStorage::new();
        let file = disk.create(Path::new("/f")).unwrap();
        write_all_at(&*file, b"0123456789", 0).unwrap();
        let mapped = MappedFile::new(file.map(8).unwrap(), 8);
        drop(file);
        let mut buf = [0; 16];
        assert_eq!(read_full_at(&mapped, &mut buf, 2).unwrap(), 6);
        assert_eq!(&buf[..6], b"234567");
        assert_eq!(read_full_at(&mapped, &mut buf, 8).unwrap(), 0);
        assert_eq!(read_full_at(&mapped, &mut buf, u64::MAX).unwrap(), 0);
        assert_eq!(mapped.map(8).unwrap().bytes(0, 2), Some(&b"01"[..]));
        assert!(mapped.map(9).is_err() && mapped.write_at(b"x", 0).is_err());
        assert!(mapped.truncate(1).is_err());
    }
}
