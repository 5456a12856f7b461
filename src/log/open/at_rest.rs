//! The files of a store that no process has open, as a reader uses them.
//!
//! Promises: [`AtRest::check`] succeeds only if no process has the store open, and none has changed its files since
//! [`AtRest::begin`]. So what was read in between is what an opening would have found. Never: writes, creates a file, or keeps
//! a lock.
//!
//! The directory's lock tells that a process has the store open, and the manifest that one had: a process changes nothing
//! that a manifest lists before it has switched to another one, and each manifest has a generation of its own. A process
//! that opened the store and changed nothing leaves no trace, and needs none.
//!
//! The lock is tried shared, for an instant, since the system has no call that only looks: `F_OFD_GETLK` sees no lock of
//! `flock`, and `/proc/locks` leaves out what lies outside a container. That fails exactly if the lock is held exclusively; an
//! opening that comes in that instant tries again (`directory`).

use std::path::PathBuf;

use super::{directory, lifecycle};
use crate::log::Seams;
use crate::manifest;
use crate::storage::{Standing, fork};
use crate::{Error, ErrorKind, Result};

/// See the module.
#[derive(Debug)]
pub(crate) struct AtRest {
    /// Its storage leads into the directory, whatever is at its path by now.
    seams: Seams,
    dir: PathBuf,
    /// The beginning of the manifest; `None`: there is none.
    head: Option<Vec<u8>>,
    fork_generation: u32,
}

impl AtRest {
    /// Notes which files there are. `seams` lead into the directory.
    pub(crate) fn begin(seams: Seams, dir: PathBuf) -> Result<Self> {
        let head = manifest::head_in(&*seams.storage, &dir)?;
        Ok(AtRest { seams, dir, head, fork_generation: fork::generation() })
    }

    /// Returns an error if what was read since [`begin`](Self::begin) doesn't count.
    ///
    /// Without a read of more than a page of the manifest, whatever the store's size.
    pub(crate) fn check(&self) -> Result<()> {
        let (storage, dir) = (&*self.seams.storage, &self.dir);
        if fork::generation() != self.fork_generation {
            return Err(lifecycle::forked(dir));
        }
        let is_locked = storage.is_locked(dir);
        if is_locked.map_err(|e| Error::io("determining whether a process has locked", dir, e))? {
            let why =
                "a reader answers from the files alone, and only while no process has them open";
            return Err(directory::locked_by(&self.seams, dir, why));
        }
        let standing = storage.standing(dir);
        match standing.map_err(|e| Error::io("finding", dir, e))? {
            Standing::Here => {}
            Standing::Gone => return Err(self.superseded("was moved or removed")),
            Standing::Another => return Err(self.superseded("was replaced by another directory")),
        }
        if manifest::head_in(storage, dir)? != self.head {
            return Err(self.superseded("was opened and written by a process"));
        }
        Ok(())
    }

    /// Returns `answer` if it counts. If it doesn't, that is the error, even in place of another one: files that are changed
    /// while they are read may look damaged.
    pub(crate) fn vouch<T>(&self, answer: Result<T>) -> Result<T> {
        self.check()?;
        answer
    }

    fn superseded(&self, what: &str) -> Error {
        let message =
            format!("{} {what} since this reader was opened: open another one", self.dir.display());
        Error::new(ErrorKind::Superseded, message).at(&self.dir)
    }
}
