//! Changes the simulated disk from inside, for tests of damage.
//!
//! Promises: changes both planes at once, as damage found later would be. Before a change everything pending is made
//! durable, so that no crash undoes the damage. Never: counts as a call, needs space, or takes locks.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::content::Content;
use super::disk::{MemoryDisk, Node, ROOT};
use super::{MemoryStorage, content};

impl MemoryStorage {
    /// Every file with its length, sorted by path.
    pub(crate) fn files(&self) -> Vec<(PathBuf, u64)> {
        let disk = self.disk.lock();
        let mut files = Vec::new();
        let mut queue = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, id)) = queue.pop() {
            match disk.nodes.get(&id) {
                Some(Node::File(file)) => files.push((path, file.seen.len())),
                Some(Node::Dir(dir)) => {
                    queue.extend(dir.seen.iter().map(|(name, below)| (path.join(name), *below)));
                }
                None => {}
            }
        }
        files.sort();
        files
    }

    /// A file's bytes as the program sees them.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut disk = self.disk.lock();
        let node = disk.find(path)?;
        Ok(disk.file(node)?.seen.snapshot().to_vec())
    }

    /// The bytes that the device holds of the file the program sees at `path`.
    pub(crate) fn read_device(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut disk = self.disk.lock();
        let node = disk.find(path)?;
        Ok(disk.file(node)?.device.snapshot().to_vec())
    }

    /// Makes everything durable, as idling for a minute would.
    pub(crate) fn settle(&self) {
        settle(&mut self.disk.lock());
    }

    /// Overwrites the bytes at `offset`, growing the file if need be.
    pub(crate) fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset.saturating_add(bytes.len() as u64) > content::FILE_BYTES_MAX {
            return Err(Errno::FBIG.into());
        }
        self.damage(path, |content| content.write(offset, bytes))
    }

    /// Flips the bits of `mask` in one byte.
    pub(crate) fn flip(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut inside = false;
        self.damage(path, |content| {
            let byte = content.slice(offset, 1).and_then(<[u8]>::first).copied();
            inside = byte.is_some();
            if let Some(byte) = byte {
                content.write(offset, &[byte ^ mask]);
            }
        })?;
        if inside { Ok(()) } else { Err(Errno::INVAL.into()) }
    }

    /// Cuts or extends the file.
    pub(crate) fn set_len(&self, path: &Path, len: u64) -> io::Result<()> {
        self.damage(path, |content| content.resize(len))
    }

    /// Replaces the file's bytes, or makes a file with them.
    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        without_limits(&mut self.disk.lock(), |disk| match disk.find(path) {
            Ok(_) => Ok(()),
            Err(_) => disk.create(path).map(drop),
        })?;
        self.damage(path, |content| {
            content.resize(0);
            content.write(0, bytes);
        })
    }

    /// Exchanges the bytes of two files.
    pub(crate) fn exchange_bytes(&self, a: &Path, b: &Path) -> io::Result<()> {
        let (bytes_a, bytes_b) = (self.read(a)?, self.read(b)?);
        self.write_file(a, &bytes_b)?;
        self.write_file(b, &bytes_a)
    }

    /// Removes a file or a whole directory.
    pub(crate) fn delete(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.unlink(path)?;
        settle(&mut disk);
        Ok(())
    }

    /// Replaces a file by an empty directory.
    pub(crate) fn replace_by_dir(&self, path: &Path) -> io::Result<()> {
        self.delete(path)?;
        let mut disk = self.disk.lock();
        without_limits(&mut disk, |disk| disk.create_dir(path))?;
        settle(&mut disk);
        Ok(())
    }

    fn damage(&self, path: &Path, change: impl FnOnce(&mut Content)) -> io::Result<()> {
        let mut disk = self.disk.lock();
        settle(&mut disk);
        let id = disk.find(path)?;
        let file = disk.file(id)?;
        change(&mut file.seen);
        file.device = file.seen.clone();
        Ok(())
    }
}

fn without_limits<T>(disk: &mut MemoryDisk, change: impl FnOnce(&mut MemoryDisk) -> T) -> T {
    let limits = (disk.bytes_max, disk.nodes_max);
    (disk.bytes_max, disk.nodes_max) = (u64::MAX, u64::MAX);
    let result = change(disk);
    (disk.bytes_max, disk.nodes_max) = limits;
    result
}

/// Everything seen is on the device. Names removed from the program's view are removed for good.
fn settle(disk: &mut MemoryDisk) {
    disk.names.clear();
    for node in disk.nodes.values_mut() {
        match node {
            Node::File(file) => file.sync(),
            Node::Dir(dir) => dir.device = dir.seen.clone(),
        }
    }
    disk.collect();
}
