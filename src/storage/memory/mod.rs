//! The simulated disk, with two planes: what the program sees and what the device holds.
//!
//! Promises: a name is durable only after the sync of its directory, bytes and length only after the sync of their
//! file, and nothing else makes them so. A crash keeps any part of the rest that a device and a journaling file system
//! could keep (`crash`). The same calls always give the same trace. Never: touches a real file, reads a clock, or draws
//! random values except from a given seed. `against_os` tests that it shows a program the same as real files do.

#![expect(clippy::disallowed_types, reason = "part of the storage seam")]
#![cfg_attr(
    not(test),
    allow(dead_code, unused_imports, reason = "the public simulator needs only part of it")
)]

#[cfg(test)]
mod against_os;
mod content;
mod crash;
mod disk;
#[cfg(test)]
mod oracles;
mod raw;
#[cfg(test)]
mod tests;

pub(crate) use crash::{Crash, DataFate, NameFate};

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{Access, DirEntry, DirLock, File, HeldBytes, Map, Standing, Storage, TakenDir};
use crate::limits;
use disk::{At, MemoryDisk, Node};

/// A disk in memory. Clones are handles of the same disk; paths start at its root, which always exists.
#[derive(Clone)]
pub(crate) struct MemoryStorage {
    disk: Arc<Mutex<MemoryDisk>>,
    locked: Vec<Arc<RootedDir>>,
}

/// A directory that a handle is rooted in, as `storage::os` holds it open.
struct RootedDir {
    path: PathBuf,
    node: u64,
    /// The used directories directly below it.
    below: Mutex<BTreeMap<PathBuf, u64>>,
}

impl MemoryStorage {
    /// An empty disk without limits.
    pub(crate) fn new() -> Self {
        MemoryStorage::of(MemoryDisk::new())
    }

    fn of(disk: MemoryDisk) -> Self {
        MemoryStorage { disk: Arc::new(Mutex::new(disk)), locked: Vec::new() }
    }

    /// The locked directory that `path` names or lies in, and the rest of the path, as `storage::os` finds them.
    fn locked_above<'p>(&self, path: &'p Path) -> Option<(&Arc<RootedDir>, &'p Path)> {
        let all = self.locked.iter();
        let above = all.filter_map(|locked| Some((locked, path.strip_prefix(&locked.path).ok()?)));
        above.min_by_key(|(_, rest)| rest.as_os_str().len())
    }

    /// Where a path leads from: below a locked directory, from the nodes held of it.
    fn at<'p>(&self, disk: &MemoryDisk, path: &'p Path) -> io::Result<At<'p>> {
        let Some((locked, path)) = self.locked_above(path) else { return Ok(path.into()) };
        let mut names = path.components();
        match (names.next(), names.as_path()) {
            (Some(dir), rest) if rest != Path::new("") => {
                let from = locked.held(disk, Path::new(&dir))?;
                Ok(At { from, path: rest })
            }
            _ => Ok(At { from: locked.node, path }),
        }
    }

    /// The same storage, which leads into one more directory.
    fn rooted(&self, path: &Path, node: u64) -> Self {
        let mut storage = self.clone();
        let dir = RootedDir { path: path.to_owned(), node, below: Mutex::default() };
        storage.locked.push(Arc::new(dir));
        storage
    }

    /// The same for a directory itself.
    fn dir_at<'p>(&self, disk: &MemoryDisk, dir: &'p Path) -> io::Result<At<'p>> {
        let at = self.at(disk, dir)?;
        match self.locked_above(dir) {
            Some((locked, _)) if at.from == locked.node && at.path != Path::new("") => {
                let from = locked.held(disk, at.path)?;
                Ok(At { from, path: Path::new("") })
            }
            _ => Ok(at),
        }
    }

    /// Calls so far that changed something or tried to: the time axis of a crash test.
    pub(crate) fn changes(&self) -> u64 {
        self.disk.lock().changes
    }

    /// All other calls so far.
    pub(crate) fn reads(&self) -> u64 {
        self.disk.lock().reads
    }

    /// A hash of every change so far: its kind, path, offset and bytes, in order.
    pub(crate) fn trace(&self) -> u64 {
        self.disk.lock().trace
    }

    /// Limits the space for data, counted in blocks of 4 KiB. Space already taken stays.
    pub(crate) fn set_bytes_max(&self, bytes: u64) {
        self.disk.lock().bytes_max = bytes;
    }

    /// Limits the number of files and directories, not counting the root.
    pub(crate) fn set_nodes_max(&self, nodes: u64) {
        self.disk.lock().nodes_max = nodes;
    }

    /// Space taken, in bytes.
    pub(crate) fn bytes_used(&self) -> u64 {
        self.disk.lock().blocks_used().saturating_mul(content::BLOCK)
    }

    /// Files and directories that count against the limit.
    pub(crate) fn nodes_used(&self) -> u64 {
        self.disk.lock().nodes_used()
    }

    /// The page cache lies: after `after` more syncs of files, one fails with `EIO`, once per open file. What it should
    /// have written stays visible and counts as clean: later syncs succeed without writing it, unless it is written
    /// anew (by whole sectors). A kill keeps it, a power loss does not.
    pub(crate) fn lie_at_sync(&self, after: u64) {
        self.disk.lock().lie_after = Some(after);
    }

    /// The cache drops what the lie left in it: reads show what the device holds.
    pub(crate) fn evict_lost(&self) {
        for node in self.disk.lock().nodes.values_mut() {
            if let Node::File(file) = node {
                file.evict();
            }
        }
    }

    /// Write-back in the background fails: as [`lie_at_sync`](Self::lie_at_sync), reported to the next sync of each
    /// open file of `path`.
    pub(crate) fn fail_writeback(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let node = disk.find(path)?;
        disk.file(node)?.fail_writeback();
        Ok(())
    }

    /// What [`network_fs`](Storage::network_fs) answers from now on.
    pub(crate) fn set_network_fs(&self, name: Option<&'static str>) {
        self.disk.lock().network_fs = name;
    }

    /// Makes [`exchange`](Storage::exchange) fail, as on a file system that lacks it.
    pub(crate) fn set_no_exchange(&self) {
        self.disk.lock().no_exchange = true;
    }

    fn open_node(
        &self,
        disk: &mut MemoryDisk,
        node: u64,
        path: &Path,
        writable: bool,
    ) -> io::Result<Arc<dyn File>> {
        let file = disk.file(node)?;
        let known = file.errors_known();
        file.opens = file.opens.saturating_add(1);
        let handle = Handle { disk: Arc::clone(&self.disk), node };
        Ok(Arc::new(OpenFile {
            handle,
            path: path.to_owned(),
            writable,
            errors_known: Mutex::new(known),
        }))
    }
}

impl RootedDir {
    fn held(&self, disk: &MemoryDisk, name: &Path) -> io::Result<u64> {
        let mut below = self.below.lock();
        if let Some(node) = below.get(name) {
            return Ok(*node);
        }
        let node = disk.find(At { from: self.node, path: name })?;
        if !matches!(disk.nodes.get(&node), Some(Node::Dir(_))) {
            return Err(Errno::NOTDIR.into());
        }
        below.insert(name.to_owned(), node);
        Ok(node)
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.disk.lock();
        f.debug_struct("MemoryStorage")
            .field("changes", &disk.changes)
            .field("trace", &disk.trace)
            .finish()
    }
}

impl Storage for MemoryStorage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count("create_dir", &[path], 0, &[]);
        let at = self.at(&disk, path)?;
        disk.create_dir(at)?;
        let is_in = |locked: &&Arc<RootedDir>| path.parent() == Some(&locked.path);
        if let Some(locked) = self.locked.iter().find(is_in) {
            locked.below.lock().remove(at.path);
        }
        Ok(())
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<TakenDir> {
        let mut disk = self.disk.lock();
        disk.reads = disk.reads.saturating_add(1);
        let node = disk.find(dir)?;
        if !matches!(disk.nodes.get(&node), Some(Node::Dir(_))) {
            return Err(Errno::NOTDIR.into());
        }
        if !disk.locks.insert(node) {
            return Err(Errno::WOULDBLOCK.into());
        }
        Ok(TakenDir {
            lock: Box::new(MemoryLock { disk: Arc::clone(&self.disk), node }),
            storage: Arc::new(self.rooted(dir, node)),
        })
    }

    fn hold_dir(&self, dir: &Path) -> io::Result<Arc<dyn Storage>> {
        let mut disk = self.disk.lock();
        disk.reads = disk.reads.saturating_add(1);
        let node = disk.find(dir)?;
        if !matches!(disk.nodes.get(&node), Some(Node::Dir(_))) {
            return Err(Errno::NOTDIR.into());
        }
        Ok(Arc::new(self.rooted(dir, node)))
    }

    fn is_locked(&self, dir: &Path) -> io::Result<bool> {
        let mut disk = self.disk.lock();
        disk.reads = disk.reads.saturating_add(1);
        let node = disk.find(self.dir_at(&disk, dir)?)?;
        Ok(disk.locks.contains(&node))
    }

    fn standing(&self, dir: &Path) -> io::Result<Standing> {
        let mut disk = self.disk.lock();
        disk.reads = disk.reads.saturating_add(1);
        let Some((locked, name)) = self.locked_above(dir) else { return Ok(Standing::Here) };
        let (held, now) = if dir == locked.path {
            (locked.node, disk.find(dir))
        } else {
            let Some(held) = locked.below.lock().get(name).copied() else {
                return Ok(Standing::Here);
            };
            (held, disk.find(At { from: locked.node, path: name }))
        };
        Ok(match now {
            Ok(node) if node == held => Standing::Here,
            Ok(_) => Standing::Another,
            Err(_) => Standing::Gone,
        })
    }

    fn lock_holder(&self, dir: &Path) -> Option<u32> {
        let disk = self.disk.lock();
        let node = disk.find(dir).ok()?;
        disk.locks.contains(&node).then(std::process::id)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk.lock();
        disk.count("create", &[path], 0, &[]);
        let at = self.at(&disk, path)?;
        let node = disk.create(at)?;
        self.open_node(&mut disk, node, path, true)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk.lock();
        disk.reads = disk.reads.saturating_add(1);
        let node = disk.find(self.at(&disk, path)?)?;
        self.open_node(&mut disk, node, path, access == Access::ReadWrite)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count("rename", &[from, to], 0, &[]);
        let (from, to) = (self.at(&disk, from)?, self.at(&disk, to)?);
        disk.rename(from, to)
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count("exchange", &[a, b], 0, &[]);
        let (a, b) = (self.at(&disk, a)?, self.at(&disk, b)?);
        disk.exchange(a, b)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count("link", &[from, to], 0, &[]);
        let (from, to) = (self.at(&disk, from)?, self.at(&disk, to)?);
        disk.link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count("remove", &[path], 0, &[]);
        let at = self.at(&disk, path)?;
        disk.remove(at)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut disk = self.disk.lock();
        disk.reads = disk.reads.saturating_add(1);
        disk.list(self.at(&disk, dir)?)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count("sync_dir", &[dir], 0, &[]);
        let at = self.dir_at(&disk, dir)?;
        if self.locked_above(dir).is_some() && !disk.nodes.contains_key(&at.from) {
            // It was removed, and has no names.
            return Ok(());
        }
        disk.sync_dir(at)
    }

    fn files_max(&self) -> Option<u64> {
        None
    }

    fn network_fs(&self, dir: &Path) -> io::Result<Option<&'static str>> {
        let mut disk = self.disk.lock();
        disk.reads = disk.reads.saturating_add(1);
        disk.find(self.at(&disk, dir)?)?;
        Ok(disk.network_fs)
    }
}

#[derive(Debug)]
struct MemoryLock {
    disk: Arc<Mutex<MemoryDisk>>,
    node: u64,
}

impl DirLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.disk.lock().locks.remove(&self.node);
    }
}

/// Keeps a node alive, with or without a name.
struct Handle {
    disk: Arc<Mutex<MemoryDisk>>,
    node: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        let Ok(file) = disk.file(self.node) else { return };
        file.opens = file.opens.saturating_sub(1);
        if file.opens == 0 && file.names == 0 {
            disk.collect();
        }
    }
}

struct OpenFile {
    handle: Handle,
    path: PathBuf,
    writable: bool,
    errors_known: Mutex<u64>,
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryFile").field(&self.path).finish()
    }
}

impl File for OpenFile {
    fn len(&self) -> io::Result<u64> {
        let mut disk = self.handle.disk.lock();
        disk.reads = disk.reads.saturating_add(1);
        Ok(disk.file(self.handle.node)?.seen.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.handle.disk.lock();
        disk.reads = disk.reads.saturating_add(1);
        Ok(disk.file(self.handle.node)?.seen.read(offset, buf))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.handle.disk.lock();
        disk.count("write", &[&self.path], offset, buf);
        if !self.writable {
            return Err(Errno::BADF.into());
        }
        disk.write(self.handle.node, offset, buf)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.handle.disk.lock();
        disk.count("sync", &[&self.path], 0, &[]);
        disk.sync(self.handle.node, &mut self.errors_known.lock())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.handle.disk.lock();
        disk.count("truncate", &[&self.path], len, &[]);
        if !self.writable {
            return Err(Errno::INVAL.into());
        }
        disk.truncate(self.handle.node, len)
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn Map>> {
        let mut disk = self.handle.disk.lock();
        disk.reads = disk.reads.saturating_add(1);
        let file = disk.file(self.handle.node)?;
        if len > file.seen.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.opens = file.opens.saturating_add(1);
        let snapshot = file.seen.snapshot();
        let handle = Handle { disk: Arc::clone(&self.handle.disk), node: self.handle.node };
        Ok(Arc::new(MemoryMap { handle, len, snapshot, later: OnceLock::new() }))
    }
}

/// Shows the file as it is now, as a real map does. Bytes that changed since the map was made come from copies, which
/// live as long as the map because they may be borrowed.
struct MemoryMap {
    handle: Handle,
    len: u64,
    snapshot: Arc<Vec<u8>>,
    later: OnceLock<Box<LaterCopy>>,
}

struct LaterCopy {
    offset: u64,
    bytes: Vec<u8>,
    next: OnceLock<Box<LaterCopy>>,
}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryMap").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Map for MemoryMap {
    #[expect(clippy::panic, reason = "what a real disk does is to end the process")]
    fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        if offset.checked_add(len as u64)? > self.len {
            return None;
        }
        let mut disk = self.handle.disk.lock();
        let seen = &disk.file(self.handle.node).ok()?.seen;
        // The last page of a file can be read whole.
        let whole = seen.len().next_multiple_of(limits::PAGE_BYTES as u64);
        if offset.saturating_add(len as u64) > whole {
            std::panic::panic_any("a file was cut short under its map: a SIGBUS");
        }
        let now = seen.slice(offset, len)?;
        let start = usize::try_from(offset).ok()?;
        let then = self.snapshot.get(start..start.checked_add(len)?);
        // A map may be asked for all of a large file at each lookup.
        if let Some(then) = then.filter(|then| seen.is_still(&self.snapshot) || *then == now) {
            return Some(then);
        }
        let mut place = &self.later;
        loop {
            let copied = place.get_or_init(|| {
                Box::new(LaterCopy { offset, bytes: now.to_vec(), next: OnceLock::new() })
            });
            if copied.offset == offset && copied.bytes == now {
                return Some(&copied.bytes);
            }
            place = &copied.next;
        }
    }

    fn hold(self: Arc<Self>, offset: u64, len: usize) -> Option<HeldBytes> {
        self.bytes(offset, len)?;
        Some(Arc::new(MemoryMapPart { map: self, offset, len }))
    }
}

struct MemoryMapPart {
    map: Arc<MemoryMap>,
    offset: u64,
    len: usize,
}

impl AsRef<[u8]> for MemoryMapPart {
    #[expect(clippy::panic, reason = "what a real disk does is to end the process")]
    fn as_ref(&self) -> &[u8] {
        let bytes = self.map.bytes(self.offset, self.len);
        bytes.unwrap_or_else(|| panic!("a file is gone under its map"))
    }
}
