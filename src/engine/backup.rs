//! Makes another store of one moment of this one, while calls go on.
//!
//! Promises: the backup is the durable part of the store at one moment during the call, and everything acknowledged before
//! the call is in it. Its directory is no store until its manifest is there, which is written last, when everything else is
//! durable. Files that are never written again get a second name; where they can't, and of the segment in use, a copy is
//! made. Never: takes a byte that is not durable, keeps a file of this store from being removed, or changes anything in the
//! store's directory. No lock is held during I/O, except the keeper's while a segment is opened.
//!
//! A segment or table may be removed before it is taken. Then the moment moves: what was taken stays, and what was
//! listed since is taken. The newest files are taken first, and the oldest segment is removed first, so a second round
//! mostly suffices. Explained in `docs/durability.md`, "Backups".

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use crate::limits;
use crate::log::open::directory;
use crate::log::{StoreMoment, segment_file_name, segment_ordinal_of};
use crate::manifest::{self, Manifest, Switch};
use crate::sealed::listed::{ListedFile, ListedMemories, ListedTable};
use crate::storage::{self, Access, Failure, File, Standing, Storage};
use crate::types::in_memory;
use crate::{Error, ErrorKind, Result};

/// How much of a backup shares the store's space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct BackedUp {
    pub(crate) linked: u64,
    pub(crate) copied: u64,
}

/// The directories of a store.
const DIRS: [&str; 3] = ["log", ListedTable::DIR, ListedMemories::DIR];

/// A file of a backup.
struct BackupPart {
    /// Relative to the store's directory.
    path: PathBuf,
    /// Bytes of it that a store reads.
    bytes: u64,
}

impl Engine {
    /// Makes a backup in `dir`, which is missing or empty, or holds a backup that was not finished.
    pub(crate) fn backup(&self, dir: &Path) -> Result<BackedUp> {
        let _inside = self.enter()?;
        self.refuse_own(dir)?;
        let (seams, _lock) = directory::lock(self.log.seams_outside(), dir, true, Duration::ZERO)?;
        let mut target = Target {
            engine: self,
            storage: seams.storage,
            dir,
            taken: BTreeSet::new(),
            done: BackedUp::default(),
        };
        target.prepare()?;
        let filled = target.fill();
        if filled.is_err() {
            target.clear();
        }
        filled.map(|()| target.done)
    }

    /// Refuses a directory within this store's, or within a backup of it.
    fn refuse_own(&self, dir: &Path) -> Result<()> {
        let storage = self.log.seams_outside().storage;
        for above in dir.ancestors() {
            if manifest::store_in(&*storage, above)? == Some(self.log.store()) {
                let message = format!(
                    "{} lies in {}, which is this store or a backup of it: give the backup a directory of its own",
                    dir.display(),
                    above.display()
                );
                return Err(Error::invalid(message).at(dir));
            }
        }
        Ok(())
    }

    /// Makes everything placed so far durable, and returns the store as of then.
    fn moment_now(&self) -> Result<StoreMoment> {
        // A poisoned store has no more durable records than before, and these are backed up.
        if !self.log.is_poisoned() {
            self.log.rooms().check_standing()?;
            self.log.sync().map_err(|_| self.log.poisoned())?;
        }
        self.log.reading().moment()
    }
}

/// Returns the files of a manifest that are never written again: all but the last segment. Those that may be removed first come
/// last.
fn parts_of(manifest: &Manifest) -> Vec<BackupPart> {
    fn sealed<L: ListedFile>(files: &[L]) -> impl Iterator<Item = BackupPart> + '_ {
        let part = |file: &L| BackupPart {
            path: Path::new(L::DIR).join(L::file_name(file.number())),
            bytes: file.bytes(),
        };
        files.iter().map(part)
    }
    let full = manifest.segments.iter().rev().skip(1).map(|item| BackupPart {
        path: segment_path(item.ordinal),
        bytes: item.end.since(item.base),
    });
    sealed(&manifest.expired).chain(sealed(&manifest.tables)).chain(full).collect()
}

fn segment_path(ordinal: u32) -> PathBuf {
    Path::new("log").join(segment_file_name(ordinal))
}

/// The directory of a backup, locked.
struct Target<'b> {
    engine: &'b Engine,
    /// Leads into the store's directory, and into this one.
    storage: Arc<dyn Storage>,
    dir: &'b Path,
    /// The parts that are here.
    taken: BTreeSet<PathBuf>,
    done: BackedUp,
}

impl Target<'_> {
    /// Marks the directory, if it is empty, as a backup that is not finished. The mark is durable before any file of a log
    /// is here.
    fn prepare(&self) -> Result<()> {
        let (storage, dir) = (&*self.storage, self.dir);
        let mark = directory::unfinished_path(dir);
        let entries = storage.list(dir).map_err(|e| Error::io("listing", dir, e))?;
        let is_named = |path: &Path, name: &str| path.file_name().is_some_and(|own| own == name);
        let is_store = entries.iter().any(|entry| is_named(&manifest::path(dir), &entry.name));
        let is_begun = entries.iter().any(|entry| is_named(&mark, &entry.name));
        // A file system puts it into a fresh volume.
        let other = entries.iter().find(|entry| entry.name != "lost+found");
        match other {
            Some(other) if is_store || !is_begun => {
                let message = format!(
                    "{} is not empty: it holds {:?}; give the backup a directory of its own",
                    dir.display(),
                    other.name
                );
                return Err(Error::invalid(message).at(dir));
            }
            Some(_) => self.clear(),
            None => {
                storage.create(&mark).map_err(|e| Error::io("creating", &mark, e))?;
            }
        }
        directory::make_path_durable(storage, dir)?;
        self.sync_dir(dir)
    }

    /// Takes all files of one moment, and then makes the directory a store.
    fn fill(&mut self) -> Result<()> {
        for name in DIRS {
            let dir = self.dir.join(name);
            match self.storage.create_dir(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io("creating", &dir, e));
                }
                _ => {}
            }
        }
        let mut gone = None;
        let StoreMoment { manifest, end, last } = loop {
            let moment = self.engine.moment_now()?;
            let parts = parts_of(&moment.manifest);
            if let Some(path) = gone.filter(|gone| parts.iter().any(|part| part.path == *gone)) {
                // It was listed all the time.
                let path = self.engine.log.dir().join(path);
                return Err(Error::corrupt(&path, 0, "a listed file is missing:"));
            }
            gone = self.take_all(&parts)?;
            if gone.is_none() {
                self.drop_others(&parts)?;
                break moment;
            }
        };
        let Some(item) = manifest.segments.last() else {
            return Err(self.engine.log.bug("a backup without a segment"));
        };
        // Zeros follow, as a crash would leave them in a prepared segment: nothing is written there again.
        let (path, bytes) = (segment_path(item.ordinal), end.since(item.base));
        self.copy(&*last, &path, bytes, item.end.since(item.base))?;
        for name in DIRS {
            self.sync_dir(&self.dir.join(name))?;
        }
        self.sync_dir(self.dir)?;
        if !self.engine.log.is_poisoned() {
            self.engine.log.rooms().check_standing()?;
        }
        self.check_standing()?;
        self.engine.may_stay()?;
        let made = Switch::new(Arc::clone(&self.storage), self.dir).first(&manifest);
        if let Err(Failure::Before(e) | Failure::Poison(e)) = made {
            return self.check_standing().and(Err(e));
        }
        // With a manifest the mark has no meaning.
        let _ = self.storage.remove(&directory::unfinished_path(self.dir));
        let _ = self.storage.sync_dir(self.dir);
        Ok(())
    }

    /// Takes the parts that are not here yet. Returns one that the store has removed meanwhile, if there is one.
    fn take_all(&mut self, parts: &[BackupPart]) -> Result<Option<PathBuf>> {
        for part in parts.iter().filter(|part| !self.taken.contains(&part.path)).collect::<Vec<_>>()
        {
            self.engine.may_stay()?;
            if !self.take(part)? {
                return Ok(Some(part.path.clone()));
            }
            self.taken.insert(part.path.clone());
        }
        Ok(None)
    }

    /// Links a part, or copies it. Returns `false` if the store has removed it.
    fn take(&mut self, part: &BackupPart) -> Result<bool> {
        let (from, to) = (self.engine.log.dir().join(&part.path), self.dir.join(&part.path));
        match self.storage.link(&from, &to) {
            Ok(()) => {
                self.done.linked += part.bytes;
                return Ok(true);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return self.check_standing().map(|()| false);
            }
            Err(e) if storage::cannot_link(&e) => {}
            Err(e) => return Err(Error::io("linking", &to, e)),
        }
        match self.storage.open(&from, Access::Read) {
            Ok(file) => self.copy(&*file, &part.path, part.bytes, part.bytes).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("opening", &from, e)),
        }
    }

    /// Copies the first `bytes` of a file of the store to a new one of length `len`. Durable on return, except for the name.
    fn copy(&mut self, source: &dyn File, path: &Path, bytes: u64, len: u64) -> Result<()> {
        let (from, to) = (&self.engine.log.dir().join(path), &self.dir.join(path));
        let file = self.storage.create(to).map_err(|e| Error::io("creating", to, e))?;
        let mut window = vec![0; limits::BACKUP_PIECE_BYTES];
        let mut at = 0;
        while at < bytes {
            self.engine.may_stay()?;
            let piece = (bytes - at).min(limits::BACKUP_PIECE_BYTES as u64);
            let (piece, _) = window.split_at_mut(in_memory(piece));
            let read = storage::read_full_at(source, piece, at);
            let read = read.map_err(|e| Error::io("reading", from, e).offset_at(at))?;
            if read < piece.len() {
                return Err(Error::corrupt(from, at + read as u64, "a file cut short"));
            }
            let written = storage::write_all_at(&*file, piece, at);
            written.map_err(|e| Error::io("writing", to, e).offset_at(at))?;
            at += piece.len() as u64;
        }
        let ended = if len > bytes { file.truncate(len) } else { Ok(()) };
        ended.and_then(|()| file.sync_data()).map_err(|e| Error::io("syncing", to, e))?;
        self.done.copied += bytes;
        Ok(())
    }

    /// Removes what was taken at an earlier moment and is not part of this one.
    fn drop_others(&mut self, parts: &[BackupPart]) -> Result<()> {
        let listed: BTreeSet<_> = parts.iter().map(|part| &part.path).collect();
        for other in self.taken.iter().filter(|path| !listed.contains(path)) {
            let path = self.dir.join(other);
            self.storage.remove(&path).map_err(|e| Error::io("removing", &path, e))?;
        }
        Ok(())
    }

    /// Whether what is written reaches the directory at the backup's path.
    fn check_standing(&self) -> Result<()> {
        for dir in [self.dir.to_path_buf(), self.dir.join("log")] {
            let standing = self.storage.standing(&dir);
            if standing.map_err(|e| Error::io("looking at", &dir, e))? != Standing::Here {
                let message = format!(
                    "{} was moved, removed or replaced while a backup was made there: nothing at that path was changed since",
                    dir.display()
                );
                return Err(Error::new(ErrorKind::Io, message).at(&dir));
            }
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.storage.sync_dir(dir).map_err(|e| Error::io("syncing", dir, e))
    }

    /// Removes the files of a backup that was not finished, as far as that succeeds. The mark stays.
    fn clear(&self) {
        let (storage, manifest) = (&*self.storage, manifest::path(self.dir));
        for file in [manifest.with_extension("next"), manifest] {
            match storage.remove(&file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return,
                _ => {}
            }
        }
        // A manifest must not come back without the files it lists.
        if storage.sync_dir(self.dir).is_err() {
            return;
        }
        for name in DIRS {
            let dir = self.dir.join(name);
            for entry in storage.list(&dir).unwrap_or_default() {
                let is_ours = segment_ordinal_of(&entry.name).is_some()
                    || ListedTable::number_of(&entry.name).is_some()
                    || ListedMemories::number_of(&entry.name).is_some();
                if is_ours {
                    let _ = storage.remove(&dir.join(&entry.name));
                }
            }
        }
    }
}
