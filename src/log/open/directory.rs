//! Finds, creates and locks a store's directory, refuses an unreliable one, and reports whether it contains a store.
//!
//! Promises: the directory is locked before anything in it is read or created, and all later work is done in the
//! locked directory; a refusal names its cause.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{birth, scan};
use crate::clock::{SystemClock, nanos};
use crate::entropy::OsEntropy;
use crate::limits;
use crate::log::{Seams, Sizes};
use crate::manifest::{self, Manifest};
use crate::storage::{Access, DirLock, OsStorage, Storage, TakenDir};
use crate::sync::WakeWord;
use crate::{Error, ErrorKind, Result};

/// Locks the directory, and makes it first if `create` is set. While another process has the lock, waits at most `timeout`.
/// Returns the lock with the seams to use in the directory.
pub(crate) fn lock(
    seams: Seams,
    dir: &Path,
    create: bool,
    timeout: Duration,
) -> Result<(Seams, Box<dyn DirLock>)> {
    let waited = timeout.as_millis();
    let why = format!(
        "one process opens a store at a time, and this one has waited for {waited} ms (open_timeout)"
    );
    lock_or(seams, dir, create, timeout, &why)
}

/// The same; `why` goes into the error of a directory that another process has locked.
pub(crate) fn lock_or(
    seams: Seams,
    dir: &Path,
    create: bool,
    timeout: Duration,
    why: &str,
) -> Result<(Seams, Box<dyn DirLock>)> {
    let TakenDir { lock, storage } = match lock_within(&seams, dir, timeout)? {
        Ok(locked) => locked,
        Err(e) if create && e.kind() == io::ErrorKind::NotFound => {
            create_dirs(&*seams.storage, dir)?;
            lock_within(&seams, dir, timeout)?.map_err(|e| not_locked(&seams, dir, why, e))?
        }
        Err(e) => return Err(not_locked(&seams, dir, why, e)),
    };
    Ok((Seams { storage, ..seams }, lock))
}

/// Holds the directory open without its lock, to read the store in it. Returns the seams to use there.
pub(crate) fn hold(seams: Seams, dir: &Path) -> Result<Seams> {
    match seams.storage.hold_dir(dir) {
        Ok(storage) => Ok(Seams { storage, ..seams }),
        Err(e) => Err(not_entered(dir, "opening", e)),
    }
}

/// The system has no lock that is waited for with a time limit, so the lock is tried again and again. The processor's time is
/// measured by the real clock: that of a test may stand still.
///
/// A reader that checks whether the lock is free has it shared for an instant. That makes no opening fail: once the timeout
/// has passed, the lock is tried further while it is shared, so even an opening that doesn't wait gets it.
fn lock_within(seams: &Seams, dir: &Path, timeout: Duration) -> Result<io::Result<TakenDir>> {
    // A longer time than the clock's range is for ever.
    let nanos_most = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    let began = nanos();
    let pause = WakeWord::new();
    loop {
        let locked = seams.storage.lock_dir(dir);
        let waited = nanos() - began;
        let left = nanos_most.saturating_sub(waited);
        let is_taken = locked.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        if !is_taken {
            return Ok(locked);
        }
        if left == 0 {
            // A reader may be stopped in that instant.
            let may_be_read = waited < nanos_most.saturating_add(limits::READER_NANOS_MAX);
            if !may_be_read || seams.storage.is_locked(dir).unwrap_or(true) {
                return Ok(locked);
            }
        }
        let millis = 1 + seams.draw_u64()? % limits::LOCK_TRY_MILLIS_MAX;
        pause.wait(pause.read(), Some(millis.min(left.div_ceil(1_000_000).max(1))));
    }
}

/// Refuses a directory on a network file system: its lock and its syncs promise nothing.
pub(crate) fn refuse_network_fs(seams: &Seams, dir: &Path) -> Result<()> {
    let name = seams.storage.network_fs(dir);
    match name.map_err(|e| Error::io("determining the file system of", dir, e))? {
        Some(name) => {
            let message = format!(
                "{} lies on {name}, whose locks and flushes can't be relied on: use a local disk, or allow_network_fs",
                dir.display()
            );
            Err(Error::invalid(message).at(dir))
        }
        None => Ok(()),
    }
}

pub(crate) fn system(dir: &Path) -> Result<Seams> {
    let clock = SystemClock::new().map_err(|e| Error::io("reading the clocks for", dir, e))?;
    Ok(Seams {
        storage: Arc::new(OsStorage::default()),
        clock: Arc::new(clock),
        entropy: Arc::new(OsEntropy),
    })
}

/// Creates the missing directories of the path. `make_path_durable` comes later, at the birth of the store.
fn create_dirs(storage: &dyn Storage, dir: &Path) -> Result<()> {
    match storage.create_dir(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.parent().is_some() => {
            create_dirs(storage, &parent_of(dir))?;
            match storage.create_dir(dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    Err(Error::io("creating", dir, e))
                }
                _ => Ok(()),
            }
        }
        Err(e) => Err(Error::io("creating", dir, e)),
    }
}

/// Returns the path independent of the process's working directory: a store must not change when that does.
pub(crate) fn absolute(dir: &Path) -> Result<PathBuf> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    std::path::absolute(dir).map_err(|e| Error::io("finding", dir, e))
}

/// Syncs every directory that leads to `dir`. Not only those just created: a process that was killed here may have
/// left a name that is only in the page cache, and the whole store would be lost with it.
pub(crate) fn make_path_durable(storage: &dyn Storage, dir: &Path) -> Result<()> {
    let mut below = dir.to_path_buf();
    loop {
        let parent = parent_of(&below);
        if parent == below {
            return Ok(());
        }
        match storage.sync_dir(&parent) {
            Ok(()) => below = parent,
            // Directories that we may not list are not ours to sync, nor are those above.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            Err(e) => return Err(Error::io("syncing", &parent, e)),
        }
    }
}

fn parent_of(dir: &Path) -> PathBuf {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        None => dir.to_path_buf(),
        Some(_) => PathBuf::from("."),
    }
}

/// Returns the error of a directory that could not be locked, with its cause and the next step.
fn not_locked(seams: &Seams, dir: &Path, why: &str, error: io::Error) -> Error {
    if error.kind() != io::ErrorKind::WouldBlock {
        return not_entered(dir, "locking", error);
    }
    locked_by(seams, dir, why).because(error)
}

/// Returns the error of a directory that another process has locked, which it names as far as that is known.
pub(crate) fn locked_by(seams: &Seams, dir: &Path, why: impl std::fmt::Display) -> Error {
    let holder = seams.storage.lock_holder(dir);
    let opener = manifest::load(&*seams.storage, dir).ok().flatten();
    let opener = opener.filter(|manifest| manifest.clean.is_none()).map(|m| m.opener);
    let pid = holder.or(opener.map(|opener| opener.pid));
    let who = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    let since =
        opener.filter(|opener| Some(opener.pid) == pid).map_or_else(String::new, |opener| {
            // Only displayed: 0 if the clock was set back since.
            format!(", for {} s", seams.clock.wall().0.saturating_sub(opener.since.0) / 1000)
        });
    let message = format!("{} is open in {who}{since}: {why}", dir.display());
    Error::new(ErrorKind::Locked, message).at(dir)
}

/// Returns the error of a directory that could not be opened, with the next step.
fn not_entered(dir: &Path, doing: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(
            ErrorKind::NotFound,
            format!(
                "there is no store at {}: open_or_create makes one, unless the path is a link that leads nowhere",
                dir.display()
            ),
        )
        .at(dir)
        .because(error),
        io::ErrorKind::NotADirectory => {
            Error::invalid(format!("{} is no directory: a store is one", dir.display()))
                .at(dir)
                .because(error)
        }
        _ => Error::io(doing, dir, error),
    }
}

pub(crate) fn load_or_create(
    seams: &Seams,
    dir: &Path,
    sizes: &Sizes,
    create: bool,
) -> Result<Manifest> {
    let storage = &*seams.storage;
    if let Some(manifest) = manifest::load(storage, dir)? {
        return Ok(manifest);
    }
    refuse_unfinished(storage, dir)?;
    let path = manifest::path(dir);
    if scan::holds_records(storage, dir)? {
        return Err(Error::corrupt(&path, 0, "the manifest of a log is missing:"));
    }
    if !create {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("{} holds no store: open_or_create makes one", dir.display()),
        )
        .at(dir));
    }
    let entries = storage.list(dir).map_err(|e| Error::io("listing", dir, e))?;
    if let Some(other) = entries.iter().find(|entry| !is_ours(&entry.name)) {
        let message = format!(
            "{} holds {:?} and no store: give the store a directory of its own",
            dir.display(),
            other.name
        );
        return Err(Error::invalid(message).at(dir));
    }
    make_path_durable(storage, dir)?;
    birth::create(seams, dir, sizes)?;
    manifest::load(storage, dir)?
        .ok_or_else(|| Error::corrupt(&path, 0, "the manifest just written is missing:"))
}

/// The file that marks a directory in which a backup was begun, until the backup has its manifest.
pub(crate) fn unfinished_path(dir: &Path) -> PathBuf {
    dir.join("backup.unfinished")
}

/// Refuses a directory without a manifest in which a backup was begun: its log may lack any number of records.
pub(crate) fn refuse_unfinished(storage: &dyn Storage, dir: &Path) -> Result<()> {
    let mark = unfinished_path(dir);
    match storage.open(&mark, Access::Read) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("opening", &mark, e)),
        Ok(_) => {
            let message = format!(
                "{} holds no store, but a backup that was not finished: make it again, or remove the directory",
                dir.display()
            );
            Err(Error::new(ErrorKind::NotFound, message).at(dir))
        }
    }
}

/// Whether an interrupted birth may have left the name, or a file system puts it into a fresh volume.
fn is_ours(name: &str) -> bool {
    matches!(name, "log" | "MANIFEST.next" | "lost+found" | "sessions" | "socket")
}
