//! From one manifest to the next.
//!
//! Promises: the next manifest is written whole to a file prepared beforehand and swapped in by rename.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{HEAD_BYTES, ITEM_BYTES, Manifest, path};
use crate::Error;
use crate::limits;
use crate::storage::{self, Access, Failure, File, Storage};

/// The next manifest's file, made and synced beforehand so that a full disk can't stop a switch.
fn next_path(dir: &Path) -> PathBuf {
    dir.join("MANIFEST.next")
}

/// Swaps manifests in.
#[derive(Debug)]
pub(crate) struct Switch {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    next: Option<Arc<dyn File>>,
}

impl Switch {
    pub(crate) fn new(storage: Arc<dyn Storage>, dir: &Path) -> Self {
        Switch { storage, dir: dir.to_path_buf(), next: None }
    }

    /// Whether the next manifest's file is there.
    pub(crate) fn is_prepared(&self) -> bool {
        self.next.is_some()
    }

    /// Makes the next manifest's file, so that the switch itself needs no room.
    pub(crate) fn prepare(&mut self, segments: usize) -> Result<(), Failure> {
        let bytes =
            (HEAD_BYTES + segments * ITEM_BYTES + 4).next_multiple_of(limits::PAGE_BYTES) as u64;
        let path = next_path(&self.dir);
        let fits = |file: &Arc<dyn File>| file.len().is_ok_and(|len| len >= bytes);
        if self.next.as_ref().is_some_and(fits) {
            return Ok(());
        }
        let (file, doing) = match self.storage.create(&path) {
            Ok(file) => (Ok(file), "creating"),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                (self.storage.open(&path, Access::ReadWrite), "opening")
            }
            Err(e) => (Err(e), "creating"),
        };
        let file = file.map_err(|e| Failure::Before(Error::io(doing, &path, e)))?;
        fill_with_zeros(&*file, bytes)
            .map_err(|e| Failure::full_or_poison(e, |e| Error::io("preparing", &path, e)))?;
        self.next = Some(file);
        Ok(())
    }

    /// Makes `manifest` the one that stands. Durable on return.
    pub(crate) fn to(&mut self, manifest: &Manifest) -> Result<(), Failure> {
        self.prepare(manifest.segments.len())?;
        let next = next_path(&self.dir);
        let Some(file) = self.next.take() else {
            return Err(Failure::Before(Error::invalid("no next manifest was prepared")));
        };
        let poison = |doing: &str, path: &Path, e| Failure::Poison(Error::io(doing, path, e));
        storage::write_all_at(&*file, &manifest.encode(), 0)
            .map_err(|e| poison("writing", &next, e))?;
        file.sync_data().map_err(|e| poison("syncing", &next, e))?;
        self.storage.rename(&next, &path(&self.dir)).map_err(|e| poison("renaming", &next, e))?;
        self.storage.sync_dir(&self.dir).map_err(|e| poison("syncing", &self.dir, e))
    }
}

fn fill_with_zeros(file: &dyn File, bytes: u64) -> std::io::Result<()> {
    let zeros = [0; limits::PAGE_BYTES];
    let mut at = 0;
    while at < bytes {
        storage::write_all_at(file, &zeros, at)?;
        at = at.saturating_add(zeros.len() as u64);
    }
    if file.len()? > at {
        file.truncate(at)?;
    }
    file.sync_data()
}
