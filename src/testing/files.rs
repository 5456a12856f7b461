//! The files of a simulated disk, as bytes: for tests that damage them, and for those that keep them.

use std::io;
use std::path::{Path, PathBuf};

use super::{DIR, Sim};
use crate::storage::{self, Access, Storage};

#[doc(hidden)]
impl Sim {
    /// Each file of the store by its path in it, as a program sees it now.
    pub fn files(&self) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let memory = self.disk.lock().memory.clone();
        let mut files = Vec::new();
        for dir in [Path::new(""), Path::new("log")] {
            let entries = match memory.list(&Path::new(DIR).join(dir)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for entry in entries.into_iter().filter(|entry| entry.is_file) {
                let path = dir.join(entry.name);
                let file = memory.open(&Path::new(DIR).join(&path), Access::Read)?;
                let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
                storage::read_full_at(&*file, &mut bytes, 0)?;
                files.push((path, bytes));
            }
        }
        Ok(files)
    }

    /// Makes a file what `bytes` are, durable; the store must be closed.
    pub fn set_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let memory = self.disk.lock().memory.clone();
        let path = Path::new(DIR).join(path);
        for dir in [Path::new(DIR).to_path_buf(), Path::new(DIR).join("log")] {
            match memory.create_dir(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        match memory.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = memory.create(&path)?;
        storage::write_all_at(&*file, bytes, 0)?;
        file.sync_data()?;
        for dir in [Path::new("/"), Path::new(DIR), &Path::new(DIR).join("log")] {
            memory.sync_dir(dir)?;
        }
        Ok(())
    }
}
