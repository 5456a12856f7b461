//! The disk as an open store uses it: through the gate.
//!
//! Promises: after a failure or a close, no call of any part of the store changes the disk. Reads continue. Never:
//! decides or retries.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Gate;
use crate::storage::{Access, DirEntry, File, Map, Standing, Storage, TakenDir};

/// A storage whose changes must pass the gate.
pub(crate) struct GatedStorage {
    inner: Arc<dyn Storage>,
    gate: Arc<Gate>,
}

impl GatedStorage {
    pub(crate) fn new(inner: Arc<dyn Storage>, gate: Arc<Gate>) -> Self {
        GatedStorage { inner, gate }
    }

    fn open(&self, file: io::Result<Arc<dyn File>>) -> io::Result<Arc<dyn File>> {
        file.map(|inner| {
            Arc::new(GatedFile { inner, gate: Arc::clone(&self.gate) }) as Arc<dyn File>
        })
    }
}

impl std::fmt::Debug for GatedStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

/// The error of a change that the gate refuses. Callers get the failure or the close as the reason instead: see
/// [`Log::explained`](crate::log::Log::explained).
#[derive(thiserror::Error, Debug)]
#[error("the store takes no writes any more")]
pub(crate) struct Shut;

impl Shut {
    /// Whether this error caused another one.
    pub(crate) fn is_cause_of(error: &crate::Error) -> bool {
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.get_ref().is_some_and(|inner| inner.is::<Shut>());
            }
            source = error.source();
        }
        false
    }
}

fn pass(gate: &Gate) -> io::Result<()> {
    if gate.may_change() { Ok(()) } else { Err(io::Error::other(Shut)) }
}

impl Storage for GatedStorage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        pass(&self.gate)?;
        self.inner.create_dir(path)
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<TakenDir> {
        self.inner.lock_dir(dir)
    }

    fn hold_dir(&self, dir: &Path) -> io::Result<Arc<dyn Storage>> {
        self.inner.hold_dir(dir)
    }

    fn is_locked(&self, dir: &Path) -> io::Result<bool> {
        self.inner.is_locked(dir)
    }

    fn standing(&self, dir: &Path) -> io::Result<Standing> {
        self.inner.standing(dir)
    }

    fn lock_holder(&self, dir: &Path) -> Option<u32> {
        self.inner.lock_holder(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        pass(&self.gate)?;
        self.open(self.inner.create(path))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>> {
        self.open(self.inner.open(path, access))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        pass(&self.gate)?;
        self.inner.rename(from, to)
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        pass(&self.gate)?;
        self.inner.exchange(a, b)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        pass(&self.gate)?;
        self.inner.link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        pass(&self.gate)?;
        self.inner.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.inner.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        pass(&self.gate)?;
        self.inner.sync_dir(dir)
    }

    fn files_max(&self) -> Option<u64> {
        self.inner.files_max()
    }

    fn network_fs(&self, dir: &Path) -> io::Result<Option<&'static str>> {
        self.inner.network_fs(dir)
    }
}

#[derive(Debug)]
struct GatedFile {
    inner: Arc<dyn File>,
    gate: Arc<Gate>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl File for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        pass(&self.gate)?;
        self.inner.write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        pass(&self.gate)?;
        self.inner.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        pass(&self.gate)?;
        self.inner.truncate(len)
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn Map>> {
        self.inner.map(len)
    }
}
