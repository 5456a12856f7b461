//! Opens a store, or creates one.
//!
//! Promises: `open` never creates; a refusal says what happened and what to do.

use std::path::Path;
use std::sync::Arc;

use super::{Store, shared};
use crate::Result;
use crate::backend::{Embedded, Shared};
use crate::builder::StoreBuilder;
use crate::engine::{Engine, EngineOpening};
use crate::events::Events;
use crate::limits;
use crate::log::Seams;
use crate::log::open::directory;
use crate::storage::DirLock;
use crate::types::in_memory;

impl Store {
    /// Opens the store in `dir`, which must exist.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, Store};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// assert_eq!(Store::open(&keys).unwrap_err().kind(), ErrorKind::NotFound); // never creates
    /// Store::open_or_create(&keys)?;
    /// let store = Store::open(&keys)?;
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// After a clean close, opening writes nothing. After a crash, opening first makes durable the records that no
    /// watermark covered, cuts off a torn tail, and reports the cut in [`stats`](Self::stats).
    ///
    /// # Errors
    /// `NotFound` if there is no store; `Locked` if another process has the store open for longer than
    /// [`open_timeout`](StoreBuilder::open_timeout), which is one second by default (the error names that process);
    /// `Corrupt` if bytes that were once durable are damaged or missing; `Incompatible` if the store was written in
    /// another version of the format; `Io` if the operating system reports an error.
    ///
    /// # Cost
    /// After a clean close, opening reads the headers of all files, whatever the number of keys, and at most 64 KiB of the
    /// log. After a crash, it reads the log since the last checkpoint, and makes the records durable that no watermark covered. If a table of
    /// the index is damaged, opening reads the part of the log that the table covers, and writes the table anew if its
    /// keys don't fit into the memory that the index may use. The first write after opening also rewrites the manifest:
    /// a small write and two syncs, once. A program that opens a store, makes one claim and its completion at `Sync`, and
    /// closes it costs six syncs: two for this, two of its own, and two for the close.
    pub fn open(dir: impl AsRef<Path>) -> Result<Store> {
        Store::builder().open(dir)
    }

    /// Opens the store in `dir`, or creates one if the directory is missing or empty.
    ///
    /// Don't use it for a path that may be an unmounted volume: it would create a store there in which every key is
    /// new.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let store = onlyonce::Store::open_or_create(&keys)?;
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// The new store is durable on return.
    ///
    /// # Errors
    /// The errors of [`open`](Self::open); `Invalid` if the directory holds something else; `StorageFull`.
    ///
    /// # Cost
    /// The cost of `open`. Creating a store writes about 1 MiB of zeros and makes about ten syncs, of files and of each
    /// directory on the path.
    pub fn open_or_create(dir: impl AsRef<Path>) -> Result<Store> {
        Store::builder().open_or_create(dir)
    }

    /// Returns a builder that opens a store with settings of your own.
    ///
    /// ```
    /// # use onlyonce::{Durability, Policy, Store};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let store = Store::builder()
    ///     .policy(Policy::new().claim_durability(Durability::Flush))
    ///     .result_bytes_max(1 << 20)
    ///     .open_or_create(&keys)?;
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    pub fn builder() -> StoreBuilder {
        StoreBuilder::default()
    }
}

impl StoreBuilder {
    /// Opens the store in `dir`, which must exist. See [`Store::open`], also for the cost.
    ///
    /// ```
    /// # use onlyonce::{Durability, Policy, Store};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// # Store::open_or_create(&keys)?;
    /// let quick = Policy::new().durability(Durability::Flush);
    /// let store = Store::builder().policy(quick).open(&keys)?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`Store::open`]; `Invalid` if the settings are not valid.
    pub fn open(self, dir: impl AsRef<Path>) -> Result<Store> {
        let dir = directory::absolute(dir.as_ref())?;
        let exclusive = !self.shared;
        let store = self.open_on(directory::system(&dir)?, &dir, false)?;
        if exclusive { shared::alone(store, &dir) } else { Ok(store) }
    }

    /// Opens the store in `dir`, or creates one. A new store is durable on return. See [`Store::open_or_create`], also
    /// for the cost.
    ///
    /// ```
    /// # use onlyonce::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("var/lib/keys");
    /// let store = Store::builder().result_bytes_max(1 << 20).open_or_create(&keys)?;
    /// assert!(keys.join("MANIFEST").exists());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`Store::open_or_create`]; `Invalid` if the settings are not valid.
    pub fn open_or_create(self, dir: impl AsRef<Path>) -> Result<Store> {
        let dir = directory::absolute(dir.as_ref())?;
        let exclusive = !self.shared;
        let store = self.open_on(directory::system(&dir)?, &dir, true)?;
        if exclusive { shared::alone(store, &dir) } else { Ok(store) }
    }

    /// Opens on any storage, clock and entropy.
    pub(crate) fn open_on(self, seams: Seams, dir: &Path, create: bool) -> Result<Store> {
        let _span = Events::opening(dir);
        let opened = self.try_to_open_on(seams, dir, create);
        if let Err(e) = &opened {
            Events::refused(dir, e);
        }
        opened
    }

    fn try_to_open_on(self, seams: Seams, dir: &Path, create: bool) -> Result<Store> {
        self.sizes()?;
        self.policy.resolve()?;
        if self.shared && !self.manual_maintenance {
            return shared::open(self, seams, dir, create);
        }
        let began = seams.clock.monotonic_nanos();
        let (seams, lock) = directory::lock(seams, dir, create, self.open_timeout)?;
        let policy = self.policy.clone();
        let embedded = self.open_locked(seams.clone(), lock, dir, create, began)?;
        if !self.manual_maintenance {
            embedded.start_upkeep()?;
        }
        self.reopen_alone(&embedded, seams, dir);
        Ok(Store::new(Shared::Embedded(embedded), policy))
    }

    /// Sets how [`Store::reopen`] opens a store that isn't shared.
    fn reopen_alone(self, embedded: &Embedded, seams: Seams, dir: &Path) {
        let dir = dir.to_owned();
        embedded.reopened_by(move |before, legacy| {
            let began = seams.clock.monotonic_nanos();
            let lock = legacy.share_lock();
            let embedded = self.open_locked(seams.clone(), lock, &dir, false, began)?;
            embedded.inherit(before, legacy)?;
            if !self.manual_maintenance {
                embedded.start_upkeep()?;
            }
            self.clone().reopen_alone(&embedded, seams.clone(), &dir);
            Ok(embedded)
        });
    }

    /// Opens the store of a directory that is locked, without its threads.
    pub(super) fn open_locked(
        &self,
        seams: Seams,
        lock: Box<dyn DirLock>,
        dir: &Path,
        create: bool,
        began: u64,
    ) -> Result<Embedded> {
        let clock = Arc::clone(&seams.clock);
        let sizes = self.sizes()?;
        if !self.allow_network_fs {
            directory::refuse_network_fs(&seams, dir)?;
        }
        let manifest = directory::load_or_create(&seams, dir, &sizes, create)?;
        let keys = self.index_memory_max / limits::INDEX_BYTES_PER_KEY;
        let checkpoint_keys = in_memory(keys).max(1);
        let (result_bytes_max, compress_over) = (self.result_bytes_max, self.compress_over);
        let opening =
            EngineOpening { seams, dir, sizes, result_bytes_max, compress_over, checkpoint_keys };
        let engine = Engine::open(&opening, manifest, lock)?;
        engine.tell_opened(clock.monotonic_nanos() - began);
        Ok(Embedded::new(engine))
    }
}
