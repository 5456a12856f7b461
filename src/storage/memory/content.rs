//! One simulated file: its bytes as the program sees them, as the device holds them, and what lies between.
//!
//! Promises: the device's bytes change only by [`FileNode::sync`]. What is unsynced is kept as changes in
//! the order they were made, so that `crash` can keep any lawful part of them.
//! Never: knows names, paths or limits.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;

/// What a device writes whole or not at all.
pub(super) const SECTOR: u64 = 512;
/// What a file system allocates.
pub(super) const BLOCK: u64 = 4096;
/// More than any test needs; a wild offset must not exhaust the machine's memory.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 32;

/// Bytes, and which blocks of them are allocated on the device. The rest is holes, read as zeros.
#[derive(Clone, Default, Debug)]
pub(super) struct Content {
    bytes: Arc<Vec<u8>>,
    blocks: Arc<BTreeSet<u64>>,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The bytes as they are now; later changes don't show in it.
    pub(super) fn snapshot(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.bytes)
    }

    /// Whether nothing changed since that snapshot. Needs no comparison: a change copies what a snapshot holds.
    pub(super) fn is_still(&self, snapshot: &Arc<Vec<u8>>) -> bool {
        Arc::ptr_eq(&self.bytes, snapshot)
    }

    pub(super) fn slice(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let left = usize::try_from(self.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        if let (Some(from), Some(to)) = (self.slice(offset, len), buf.get_mut(..len)) {
            to.copy_from_slice(from);
        }
        len
    }

    /// Grows as needed; what lies between the old end and `offset` becomes a hole.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset.saturating_add(data.len() as u64);
        if data.is_empty() || end > FILE_BYTES_MAX {
            return;
        }
        if end > self.len() {
            self.grow(end);
        }
        let start = index(offset);
        if let Some(to) =
            Arc::make_mut(&mut self.bytes).get_mut(start..start.saturating_add(data.len()))
        {
            to.copy_from_slice(data);
        }
        if self.blocks_missing(offset, end).next().is_some() {
            Arc::make_mut(&mut self.blocks).extend(blocks_of(offset, end));
        }
    }

    pub(super) fn resize(&mut self, len: u64) {
        if len > FILE_BYTES_MAX {
            return;
        }
        if len >= self.len() {
            self.grow(len);
            return;
        }
        Arc::make_mut(&mut self.bytes).truncate(index(len));
        Arc::make_mut(&mut self.blocks).split_off(&len.div_ceil(BLOCK));
    }

    pub(super) fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Blocks that writing `[offset, end)` would have to allocate.
    pub(super) fn blocks_missing(&self, offset: u64, end: u64) -> impl Iterator<Item = u64> + '_ {
        blocks_of(offset, end).filter(|block| !self.blocks.contains(block))
    }

    fn grow(&mut self, len: u64) {
        if len > self.len() {
            Arc::make_mut(&mut self.bytes).resize(index(len), 0);
        }
    }
}

/// Offsets are checked against `FILE_BYTES_MAX` first; where that exceeds the address space, nothing fits anyway.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn blocks_of(offset: u64, end: u64) -> std::ops::Range<u64> {
    offset / BLOCK..end.div_ceil(BLOCK)
}

/// The sectors that `[offset, end)` touches.
pub(super) fn sectors_of(offset: u64, end: u64) -> std::ops::Range<u64> {
    offset / SECTOR..end.div_ceil(SECTOR)
}

/// One unsynced change.
#[derive(Clone, Debug)]
pub(super) enum Unsynced {
    Write { offset: u64, bytes: Arc<[u8]> },
    Resize { len: u64 },
}

#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Its place among all changes of the disk.
    pub(super) seq: u64,
    pub(super) change: Unsynced,
}

#[derive(Clone, Default, Debug)]
pub(super) struct FileNode {
    pub(super) seen: Content,
    pub(super) device: Content,
    pub(super) pending: Vec<Kept>,
    /// Sectors whose write-back failed: clean in the cache, never on the device, until rewritten.
    lost: BTreeSet<u64>,
    /// How many write-back errors there were, and whether the last one was reported.
    errors: u64,
    error_told: bool,
    /// Number of names that lead here, as the program sees it.
    pub(super) names: u64,
    /// Number of open files and maps.
    pub(super) opens: u64,
}

impl FileNode {
    /// A file as it is after a boot.
    pub(super) fn booted(content: Content) -> Self {
        FileNode { seen: content.clone(), device: content, names: 1, ..FileNode::default() }
    }

    pub(super) fn write(&mut self, seq: u64, offset: u64, data: &[u8]) {
        self.seen.write(offset, data);
        let (offset, bytes) = self.redirtied(offset, data);
        self.pending.push(Kept { seq, change: Unsynced::Write { offset, bytes } });
    }

    pub(super) fn resize(&mut self, seq: u64, len: u64) {
        self.seen.resize(len);
        self.lost.split_off(&len.div_ceil(SECTOR));
        self.pending.push(Kept { seq, change: Unsynced::Resize { len } });
    }

    /// Everything written so far reaches the device, except what was lost before.
    pub(super) fn sync(&mut self) {
        for pending in self.pending.drain(..) {
            match pending.change {
                Unsynced::Write { offset, bytes } => self.device.write(offset, &bytes),
                Unsynced::Resize { len } => self.device.resize(len),
            }
        }
    }

    /// Write-back fails: the cache keeps the bytes and marks them clean. Lengths set by `resize` are in the file
    /// system's journal and stay unsynced.
    pub(super) fn fail_writeback(&mut self) {
        let lost = &mut self.lost;
        self.pending.retain(|pending| match &pending.change {
            Unsynced::Write { offset, bytes } => {
                lost.extend(sectors_of(*offset, offset.saturating_add(bytes.len() as u64)));
                false
            }
            Unsynced::Resize { len } => {
                lost.split_off(&len.div_ceil(SECTOR));
                true
            }
        });
        self.errors = self.errors.saturating_add(1);
        self.error_told = false;
    }

    /// The cache drops the bytes it marked clean: reads show the device's bytes again. The length stays.
    pub(super) fn evict(&mut self) {
        for sector in std::mem::take(&mut self.lost) {
            let offset = sector.saturating_mul(SECTOR);
            let len = self.seen.len().saturating_sub(offset).min(SECTOR);
            let mut bytes = vec![0; index(len)];
            self.device.read(offset, &mut bytes);
            self.seen.write(offset, &bytes);
        }
    }

    /// The count of errors that a new open file counts as known: all reported ones.
    pub(super) fn errors_known(&self) -> u64 {
        if self.error_told { self.errors } else { self.errors.saturating_sub(1) }
    }

    /// Reports a write-back error to an open file, once.
    pub(super) fn tell_error(&mut self, known: &mut u64) -> io::Result<()> {
        if *known == self.errors {
            return Ok(());
        }
        *known = self.errors;
        self.error_told = true;
        Err(Errno::IO.into())
    }

    /// Writing into a lost sector makes all of it dirty again.
    fn redirtied(&mut self, offset: u64, data: &[u8]) -> (u64, Arc<[u8]>) {
        let end = offset.saturating_add(data.len() as u64);
        let sectors = sectors_of(offset, end);
        let first = self.lost.remove(&sectors.start);
        let last = self.lost.remove(&sectors.end.saturating_sub(1))
            || (first && sectors.end - sectors.start == 1);
        for sector in sectors.clone() {
            self.lost.remove(&sector);
        }
        let from = if first { sectors.start.saturating_mul(SECTOR) } else { offset };
        let to = if last { sectors.end.saturating_mul(SECTOR).min(self.seen.len()) } else { end };
        match self.seen.slice(from, index(to.saturating_sub(from))) {
            Some(bytes) if first || last => (from, bytes.into()),
            _ => (offset, data.into()),
        }
    }
}
