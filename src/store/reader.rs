//! A store, read without its lock and without a write: [`Reader`].
//!
//! Promises: nothing is written, created, locked or mapped. An answer counts only if no process had the files open when it was
//! read ([`AtRest`]), or if the process that hosts the store gave it. Never: recovers in a way of its own. An engine opens the files as
//! for a [`Store`], over an [`Overlay`], which keeps in memory what an opening writes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Store, shared};
use crate::admin::{Iter, Stats, Verification};
use crate::backend::{Embedded, Shared};
use crate::claim::State;
use crate::engine::{Engine, EngineOpening};
use crate::limits;
use crate::log::Seams;
use crate::log::open::at_rest::AtRest;
use crate::log::open::directory;
use crate::storage::overlay::{NoLock, Overlay};
use crate::types::in_memory;
use crate::{Error, ErrorKind, Key, Policy, Result};

/// Reads the store in a directory without its lock and without a write: on a read-only mount, in a snapshot or a backup, or
/// after a crash, before anything is changed.
///
/// ```
/// use onlyonce::admin::StateKind;
/// use onlyonce::{Reader, State, Store};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let keys = dir.path().join("keys");
/// let store = Store::open_or_create(&keys)?;
/// # let backup = dir.path().join("monday");
/// # assert!(store.mark("message-7")?.is_first());
/// # drop(store.claim("mail-1")?);
/// store.backup(&backup)?;
///
/// let reader = Reader::open(&backup)?;
/// assert!(matches!(reader.get("message-7")?, Some(State::Completed(_))));
/// for entry in reader.iter().in_states(&[StateKind::Interrupted, StateKind::Held]) {
///     let (key, state) = entry?;
///     println!("{key}: {state:?}");
/// }
/// assert!(reader.verify()?.is_whole());
/// # onlyonce::Result::<()>::Ok(())
/// ```
///
/// The answers are those that [`Store::open`] would give on a copy of the directory. After a crash, the log's tail is read as
/// an opening reads it: a torn write at its end is left out and reported in [`stats`](Self::stats), and an attempt without an
/// end is interrupted. Results expire, and the leases of detached claims pass, by the same clocks.
///
/// # While a process has the store open
///
/// If processes share the store ([`shared`](crate::StoreBuilder::shared)), the reader asks the process that hosts it, and its answers
/// are those of a guest: see [`docs::processes`](crate::docs::processes). The reader goes on with the next host, but never hosts the
/// store itself: once no process hosts it, calls return `Superseded`. A reader hinders no other process, not even an opening for one
/// process alone.
///
/// If any other process has the store open, a reader returns no answer: the newest records may be in that process's memory, and its
/// files change. Every call checks this after it has read. It returns `Locked` if a process has the store open at that moment, with
/// the number of the process if the system knows it, and `Superseded` if a process has had the store open and changed it since the
/// reader was opened. After `Locked`, the same reader can be asked again; after `Superseded`, open another one.
///
/// For the check, the directory's lock is tried as a shared one, for an instant. That never makes an opening fail: an opening
/// that comes in that instant tries again, even with an [`open_timeout`](crate::StoreBuilder::open_timeout) of zero. The directory
/// may be on a network file system. There, the lock of a process on another machine may be invisible, but a change that it made is
/// noticed.
///
/// # What is not written
///
/// Nothing: no file is created or changed, and none is synced. Files are read by plain reads, never through memory maps, so
/// a file that is cut short meanwhile is an error and doesn't end the process. Read permission is enough.
///
/// So a reader makes nothing durable either. It shows what is in the files now. If the power is lost before the next opening,
/// records that no sync had covered may be gone; the level of a record's [`Durability`](crate::Durability) is all that it
/// promises. An opening makes such records durable before it shows them.
///
/// # Memory
///
/// After a clean close, next to nothing: neither the log nor the index is copied, and each lookup reads a bucket of the index
/// and the record. After a crash, an entry for each key since the last checkpoint, as in a store, and the records that no watermark
/// covered, usually less than 4 MiB. A table of the index that is damaged is made again in memory, 16 bytes for each of its
/// keys.
#[derive(Clone)]
pub struct Reader {
    /// `None`: a process hosts the store, and answers the calls.
    files: Option<Arc<AtRest>>,
    /// An open store over the files, whose writes stay in memory; or what asks the host.
    store: Store,
}

impl Reader {
    /// Opens the store in `dir` for reading.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, Reader, Store};
    /// # use std::time::Duration;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let store = Store::open_or_create(&keys)?;
    /// assert_eq!(Reader::open(&keys).unwrap_err().kind(), ErrorKind::Locked); // ask that process
    /// store.close(Duration::from_secs(20))?;
    ///
    /// let reader = Reader::open(&keys)?;
    /// let store = Store::open(&keys)?; // a reader hinders no opening
    /// # let _ = store.mark("k")?;
    /// # drop(store);
    /// # assert_eq!(reader.get("k").unwrap_err().kind(), ErrorKind::Superseded);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `NotFound` if there is no store; `Locked` at once if a process has the store open and can't be asked, and after ten
    /// seconds if it hosts the store and doesn't answer; `Superseded` if a process changed the store meanwhile; `Corrupt` if
    /// bytes that were once durable are damaged or missing; `Incompatible`; `Io`.
    ///
    /// # Cost
    /// That of [`Store::open`], without the writes and syncs: after a clean close, the headers of all files; after a crash, the
    /// log since the last checkpoint. If a process hosts the store: a connection to that process.
    pub fn open(dir: impl AsRef<Path>) -> Result<Reader> {
        let dir = directory::absolute(dir.as_ref())?;
        let seams = directory::system(&dir)?;
        match Reader::open_on(seams.clone(), dir.clone()) {
            // While a process has the store open, the files have no answer. If that process hosts the store, it is asked.
            Err(e) if e.kind() == ErrorKind::Locked => match shared::join_to_read(&seams, &dir)? {
                Some(store) => Ok(Reader { files: None, store }),
                None => Err(e),
            },
            opened => opened,
        }
    }

    /// Opens on any storage, clock and entropy.
    pub(crate) fn open_on(seams: Seams, dir: PathBuf) -> Result<Reader> {
        let seams = directory::hold(seams, &dir)?;
        let files = Arc::new(AtRest::begin(seams.clone(), dir.clone())?);
        files.check()?;
        let store = files.vouch(read_in(seams, &dir))?;
        Ok(Reader { files: Some(files), store })
    }

    /// Returns the state of a key, or `None` if the key is absent. See [`Store::get`].
    ///
    /// ```
    /// # use onlyonce::{State, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let _ = sim.open()?.mark("message-7")?;
    /// let reader = sim.open_reader()?;
    /// assert!(matches!(reader.get("message-7")?, Some(State::Completed(_))));
    /// assert!(reader.get("message-8")?.is_none());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `Locked` or `Superseded` if a process has the store open, or changed it since the reader was opened: see [`Reader`].
    /// `Corrupt` if the key's record is damaged; `Invalid` or `TooLarge` if the key is not valid; `Forked`, `Io`.
    ///
    /// # Cost
    /// A read for each table of the index, usually a few, and one of the record. The check takes ten short system calls, in all
    /// about ten microseconds.
    pub fn get<'k>(&self, key: impl Into<Key<'k>>) -> Result<Option<State>> {
        self.vouch(self.store.get(key))
    }

    /// Returns an iterator over all keys and their states, as [`Store::iter`] does.
    ///
    /// ```
    /// # use onlyonce::{admin::StateKind, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # drop(sim.open()?.claim("mail-1")?);
    /// for entry in sim.open_reader()?.iter().in_states(&[StateKind::Interrupted]) {
    ///     let (key, state) = entry?;
    ///     println!("{key}: {state:?}");
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Sixteen keys at a time are read and then checked, and so is the end. If they don't count, the walk returns that error,
    /// `Locked` or `Superseded`, and ends: the keys shown before were right when they were checked, but others are missing.
    ///
    /// # Cost
    /// That of [`Store::iter`], and the check of [`get`](Self::get) for sixteen keys together, whose results are in memory until they
    /// are shown. In the order of age, for each key.
    pub fn iter(&self) -> Iter {
        match &self.files {
            Some(files) => self.store.iter().at_rest(files),
            None => self.store.iter(),
        }
    }

    /// Returns a reader of a namespace, as [`Store::namespace`] does. Does nothing and never fails.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let sim = Sim::new(1);
    /// # let _ = sim.open()?.namespace("acme").mark("task-42")?;
    /// let reader = sim.open_reader()?;
    /// assert!(reader.namespace("acme").get("task-42")?.is_some());
    /// assert!(reader.get("task-42")?.is_none());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use = "the reader is the only thing that this call makes"]
    pub fn namespace(&self, name: impl Into<String>) -> Reader {
        Reader { files: self.files.clone(), store: self.store.namespace(name) }
    }

    /// Returns the names of the namespaces that lie directly in this one, or at the root of the store, in alphabetical order.
    /// See [`Store::namespaces`].
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let sim = Sim::new(1);
    /// # let _ = sim.open()?.namespace("acme").mark("task-42")?;
    /// assert_eq!(sim.open_reader()?.namespaces()?, ["acme"]);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `Locked` or `Superseded` as in [`get`](Self::get); `Corrupt` if the record of a namespace is damaged; `Forked`, `Io`.
    pub fn namespaces(&self) -> Result<Vec<String>> {
        self.vouch(self.store.namespaces())
    }

    /// Returns counts, and what was found when the reader was opened. See [`Store::stats`].
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let sim = Sim::new(1);
    /// # drop(sim.open()?.claim("mail-1")?);
    /// let stats = sim.open_reader()?.stats()?;
    /// assert_eq!((stats.keys, stats.interrupted), (1, 1));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// The figures are those of a store that has just been opened. After a crash, they count what an opening would have
    /// written, though it is only in memory here.
    ///
    /// # Errors
    /// `Locked` or `Superseded` as in [`get`](Self::get).
    pub fn stats(&self) -> Result<Stats> {
        let stats = self.store.stats();
        match &self.store.host {
            Some(host) => host.check_open().map(|()| stats),
            None => self.vouch(Ok(stats)),
        }
    }

    /// Reads all files, and returns all damage. See [`Store::verify`].
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let sim = Sim::new(1);
    /// # let _ = sim.open()?.mark("k")?;
    /// assert!(sim.open_reader()?.verify()?.is_whole());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Damage that an opening mends, as that of a table of the index, was mended in memory and is not among it;
    /// [`tables_mended`](Stats::tables_mended) counts such tables.
    ///
    /// # Errors
    /// `Locked` or `Superseded` as in [`get`](Self::get), after everything was read.
    pub fn verify(&self) -> Result<Verification> {
        self.vouch(self.store.verify())
    }

    /// Returns `answer` if it counts. What a host says counts.
    fn vouch<T>(&self, answer: Result<T>) -> Result<T> {
        match &self.files {
            Some(files) => files.vouch(answer),
            None => answer,
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Opens an engine over the files in `dir`, to which `seams` lead.
fn read_in(seams: Seams, dir: &Path) -> Result<Store> {
    let builder = Store::builder().map(false);
    let sizes = builder.sizes()?;
    let seams = Seams { storage: Arc::new(Overlay::new(seams.storage)), ..seams };
    let manifest = directory::load_or_create(&seams, dir, &sizes, false)?;
    let keys = builder.index_memory_max / limits::INDEX_BYTES_PER_KEY;
    let opening = EngineOpening {
        seams,
        dir,
        sizes,
        result_bytes_max: builder.result_bytes_max,
        compress_over: None,
        checkpoint_keys: in_memory(keys).max(1),
    };
    let engine = Engine::open(&opening, manifest, Box::new(NoLock)).map_err(|e| unread(dir, e))?;
    Ok(Store::new(Shared::Embedded(Embedded::reader(engine)), Policy::new()))
}

/// Returns the error of an opening in the reader's terms: writes go to memory and can't fail, so a failed write is one that
/// needed a read.
fn unread(dir: &Path, error: Error) -> Error {
    if error.kind() != ErrorKind::Poisoned {
        return error;
    }
    let message = format!("a file in {} can't be read: {error}", dir.display());
    Error::new(ErrorKind::Io, message).at(dir).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Sim;

    /// A process opened the store after an answer was read and before it was checked.
    #[test]
    fn an_answer_that_was_read_before_another_opening_does_not_count() {
        let sim = Sim::small(1);
        assert!(sim.open().unwrap().mark("k").unwrap().is_first());
        let reader = sim.open_reader().unwrap();
        let mut opened = None;
        let read = reader.store.get("k").inspect(|_| opened = Some(sim.open().unwrap()));
        assert!(matches!(read, Ok(Some(_))));
        assert_eq!(reader.vouch(read).unwrap_err().kind(), ErrorKind::Locked);

        let read = reader.store.get("k");
        let store = opened.take().unwrap();
        assert!(store.forget("k").unwrap());
        drop(store);
        assert!(matches!(read, Ok(Some(_))));
        assert_eq!(reader.vouch(read).unwrap_err().kind(), ErrorKind::Superseded);
        // What looked damaged may have been changed while it was read.
        let damaged = Err::<(), _>(Error::corrupt(Path::new("/store"), 0, "damage"));
        assert_eq!(reader.vouch(damaged).unwrap_err().kind(), ErrorKind::Superseded);
        assert!(sim.open_reader().unwrap().get("k").unwrap().is_none());
    }
}
