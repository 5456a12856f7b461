//! How a store is opened or made: [`StoreBuilder`], and what stands in the way.
//!
//! Promises: the directory is locked before anything in it is read or created; `open` never creates; a
//! refusal says what happened and what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::SystemClock;
use crate::engine::{Engine, Opening};
use crate::entropy::OsEntropy;
use crate::limits;
use crate::log::{Seams, Sizes, birth, recovery};
use crate::manifest::{self, Manifest};
use crate::repair::{self, AcceptLoss, RepairReport};
use crate::shared::Shared;
use crate::storage::{Locked, OsStorage, Storage};
use crate::{Error, ErrorKind, Policy, Result, Store};

/// How a store is opened. Unset, each setting has the default that its method names.
///
/// ```
/// use onlyonce::{OnInterrupted, Policy, Store};
/// use std::time::Duration;
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let keys = dir.path().join("keys");
/// let week = Duration::from_secs(7 * 86_400);
/// let store = Store::builder()
///     .policy(Policy::new().retention(week).on_interrupted(OnInterrupted::Hold))
///     .result_bytes_max(64 << 10)
///     .open_or_create(&keys)?;
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "a builder opens nothing until told to"]
#[derive(Clone, Debug)]
pub struct StoreBuilder {
    policy: Policy,
    segment_bytes: Option<u64>,
    result_bytes_max: u32,
    index_memory_max: u64,
    disk_bytes_max: u64,
    map: bool,
    manual_maintenance: bool,
    allow_network_fs: bool,
}

impl Default for StoreBuilder {
    fn default() -> Self {
        StoreBuilder {
            policy: Policy::new(),
            segment_bytes: None,
            result_bytes_max: limits::RESULT_BYTES_MAX_DEFAULT,
            index_memory_max: limits::INDEX_MEMORY_DEFAULT,
            disk_bytes_max: u64::MAX,
            map: true,
            manual_maintenance: false,
            allow_network_fs: false,
        }
    }
}

impl StoreBuilder {
    /// Defaults for every operation of the store.
    ///
    /// An operation, or a handle from [`with_policy`](Store::with_policy), may say otherwise.
    ///
    /// ```
    /// # use onlyonce::{Policy, Store};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let day = std::time::Duration::from_secs(86_400);
    /// let store = Store::builder().policy(Policy::new().retention(day)).open_or_create(&keys)?;
    /// # let _ = store.mark("k")?;
    /// # let Some(onlyonce::State::Completed(done)) = store.get("k")? else { unreachable!() };
    /// # assert!(done.expires_at().is_some());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Largest size of a log segment, from 16 KiB to 1 GiB. Default: 64 MiB.
    ///
    /// The first one has 1 MiB, later ones an eighth of the log so far. Whatever is said here, a segment
    /// holds two of the longest records.
    ///
    /// May be another one at each opening: segments that are there stay as they are.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, Store};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let builder = Store::builder().segment_bytes(4 << 20);
    /// let store = builder.open_or_create(&keys)?;
    /// let too_small = Store::builder().segment_bytes(4096).open(&keys);
    /// assert_eq!(too_small.unwrap_err().kind(), ErrorKind::Invalid);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = Some(bytes);
        self
    }

    /// Longest result that may be recorded, at most 48 MiB. Default: 512 KiB.
    ///
    /// A segment holds at least two of the longest records, so a large value makes large files. What is recorded
    /// already stays readable under a smaller one.
    ///
    /// ```
    /// # use onlyonce::{Claim, ErrorKind, Store};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let store = Store::builder().result_bytes_max(1000).open_or_create(&keys)?;
    /// let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// assert_eq!(claim.complete(&[0; 1001]).unwrap_err().kind(), ErrorKind::TooLarge);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn result_bytes_max(mut self, bytes: u32) -> Self {
        self.result_bytes_max = bytes;
        self
    }

    /// Memory that the index may take for keys that no sealed table holds yet, 64 bytes each. Default: 64 MiB, a
    /// million keys. When it is used up, a checkpoint moves them to disk; claims in flight stay.
    ///
    /// ```
    /// # use onlyonce::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let store = Store::builder().index_memory_max(8 << 20).open_or_create(&keys)?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn index_memory_max(mut self, bytes: u64) -> Self {
        self.index_memory_max = bytes;
        self
    }

    /// Bytes that all files of the store may take. Default: whatever the disk has.
    ///
    /// When it is used up, dead records are given back before the next claim; if all are alive, claims answer
    /// `StorageFull` before anything is done, while those in flight can end, results are replayed, and keys can be
    /// forgotten and compacted away. It takes four segments at least, and should be twice what is alive and
    /// some. A table or a file of remembered keys counts once
    /// it is finished: while one is written, the store may take that much more.
    ///
    /// ```
    /// # use onlyonce::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let store = Store::builder().disk_bytes_max(1 << 30).open_or_create(&keys)?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn disk_bytes_max(mut self, bytes: u64) -> Self {
        self.disk_bytes_max = bytes;
        self
    }

    /// Whether full segments and the index are read through memory maps. Default: yes. Without, plain reads of the
    /// same files.
    ///
    /// A file cut short by somebody else while it is mapped ends the process with SIGBUS; a plain read of it is
    /// `Corrupt`.
    ///
    /// ```
    /// # use onlyonce::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let store = Store::builder().map(false).open_or_create(&keys)?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn map(mut self, map: bool) -> Self {
        self.map = map;
        self
    }

    /// No background thread: the program calls [`Store::step`] itself.
    ///
    /// Without it being called, what is acknowledged at `Lazy` or `Flush` may stay unsynced for longer than a second,
    /// and a claim that needs a new segment prepares it itself.
    ///
    /// ```
    /// # use onlyonce::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let store = Store::builder().manual_maintenance(true).open_or_create(&keys)?;
    /// let wait = store.step()?; // in the program's own loop
    /// assert!(!wait.is_zero()); // nothing was written yet, so there is nothing to do
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn manual_maintenance(mut self, manual: bool) -> Self {
        self.manual_maintenance = manual;
        self
    }

    /// Opens on file systems whose locks and flushes can't be relied on (NFS, SMB, FUSE …), which is refused
    /// by default.
    ///
    /// What the store promises then hangs on what that file system does.
    ///
    /// ```
    /// # use onlyonce::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let store = Store::builder().allow_network_fs(true).open_or_create(&keys)?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn allow_network_fs(mut self, allow: bool) -> Self {
        self.allow_network_fs = allow;
        self
    }

    /// Opens the store in `dir`, which must exist. See [`Store::open`], its cost too.
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
    /// As [`Store::open`]; `Invalid` for settings that can't be.
    pub fn open(self, dir: impl AsRef<Path>) -> Result<Store> {
        let dir = absolute(dir.as_ref())?;
        self.open_on(system(&dir)?, &dir, false)
    }

    /// Opens the store in `dir`, or makes one there; a new one is durable on return. See
    /// [`Store::open_or_create`], its cost too.
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
    /// As [`Store::open_or_create`]; `Invalid` for settings that can't be.
    pub fn open_or_create(self, dir: impl AsRef<Path>) -> Result<Store> {
        let dir = absolute(dir.as_ref())?;
        self.open_on(system(&dir)?, &dir, true)
    }

    /// Opens on any disk, clock and dice.
    pub(crate) fn open_on(self, seams: Seams, dir: &Path, create: bool) -> Result<Store> {
        let sizes = self.sizes()?;
        self.policy.resolve()?;
        let Locked { lock, storage } = match seams.storage.lock_dir(dir) {
            Ok(locked) => locked,
            Err(e) if create && e.kind() == io::ErrorKind::NotFound => {
                create_dirs(&*seams.storage, dir)?;
                seams.storage.lock_dir(dir).map_err(|e| not_locked(&seams, dir, e))?
            }
            Err(e) => return Err(not_locked(&seams, dir, e)),
        };
        // From here on all is done in the directory that is locked.
        let seams = Seams { storage: Arc::clone(&storage), ..seams };
        let network_fs = storage
            .network_fs(dir)
            .map_err(|e| Error::io("asking for the file system of", dir, e))?;
        if let Some(name) = network_fs {
            if !self.allow_network_fs {
                let message = format!(
                    "{} lies on {name}, whose locks and flushes can't be relied on: use a local disk, or allow_network_fs",
                    dir.display()
                );
                return Err(Error::invalid(message).at(dir));
            }
        }
        let manifest = load_or_create(&seams, dir, &sizes, create)?;
        let keys = self.index_memory_max / limits::INDEX_BYTES_PER_KEY;
        let checkpoint_keys = usize::try_from(keys).unwrap_or(usize::MAX).max(1);
        let result_bytes_max = self.result_bytes_max;
        let opening = Opening { seams, dir, sizes, result_bytes_max, checkpoint_keys };
        let engine = Engine::open(&opening, manifest, lock)?;
        let shared = Shared::new(engine);
        if !self.manual_maintenance {
            shared.start_upkeep()?;
        }
        Ok(Store::new(shared, self.policy))
    }

    /// See [`admin::repair`](crate::admin::repair).
    pub(crate) fn repair(self, dir: &Path, accept: AcceptLoss) -> Result<RepairReport> {
        let dir = absolute(dir)?;
        self.repair_on(&system(&dir)?, &dir, accept)
    }

    pub(crate) fn repair_on(
        self,
        seams: &Seams,
        dir: &Path,
        accept: AcceptLoss,
    ) -> Result<RepairReport> {
        let sizes = self.sizes()?;
        let locked = seams.storage.lock_dir(dir).map_err(|e| not_locked(seams, dir, e))?;
        let Locked { lock, storage } = locked;
        let report = repair::run(&Seams { storage, ..seams.clone() }, dir, &sizes, accept);
        drop(lock);
        report
    }

    fn sizes(&self) -> Result<Sizes> {
        if self.result_bytes_max > limits::RESULT_BYTES_MAX {
            let most = limits::RESULT_BYTES_MAX;
            return Err(Error::invalid(format!("result_bytes_max is at most {most} bytes")));
        }
        let most = self.segment_bytes.unwrap_or(limits::SEGMENT_BYTES_MAX_DEFAULT);
        if !(limits::SEGMENT_BYTES_LEAST..=limits::SEGMENT_BYTES_MOST).contains(&most) {
            let (least, greatest) = (limits::SEGMENT_BYTES_LEAST, limits::SEGMENT_BYTES_MOST);
            let message = format!("segment_bytes is from {least} to {greatest} bytes");
            return Err(Error::invalid(message));
        }
        let page = limits::PAGE_BYTES as u64;
        let labels =
            2 * limits::LABEL_BYTES_MAX + limits::KEY_BYTES_MAX + limits::META_BYTES_MAX + 512;
        Ok(Sizes {
            segment_bytes_first: limits::SEGMENT_BYTES_FIRST.min(most / page * page),
            segment_bytes_max: most / page * page,
            record_bytes_max: u64::from(self.result_bytes_max).saturating_add(labels as u64),
            disk_bytes_max: self.disk_bytes_max,
            map: self.map,
        })
    }
}

fn system(dir: &Path) -> Result<Seams> {
    let clock = SystemClock::new().map_err(|e| Error::io("reading the clocks for", dir, e))?;
    Ok(Seams {
        storage: Arc::new(OsStorage::default()),
        clock: Arc::new(clock),
        entropy: Arc::new(OsEntropy),
    })
}

/// Creates what is missing of the path. `make_path_durable` comes later, at the birth of the store.
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

/// The same path wherever the process goes meanwhile: a store must not follow it into another directory.
fn absolute(dir: &Path) -> Result<PathBuf> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    std::path::absolute(dir).map_err(|e| Error::io("finding", dir, e))
}

/// Syncs every directory that leads to `dir`. Not only those created just now: an opener that was killed
/// here may have left a name that only the page cache knows, and the whole store would go with it.
fn make_path_durable(storage: &dyn Storage, dir: &Path) -> Result<()> {
    let mut below = dir.to_path_buf();
    loop {
        let parent = parent_of(&below);
        if parent == below {
            return Ok(());
        }
        match storage.sync_dir(&parent) {
            Ok(()) => below = parent,
            // Whose names we may not list are not ours to sync, nor are those above.
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

/// Why a directory could not be locked, in words that help.
fn not_locked(seams: &Seams, dir: &Path, error: io::Error) -> Error {
    let storage = &*seams.storage;
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
        io::ErrorKind::WouldBlock => {
            let holder = storage.lock_holder(dir);
            let opener = manifest::load(storage, dir).ok().flatten();
            let opener = opener.filter(|manifest| manifest.clean.is_none()).map(|m| m.opener);
            let pid = holder.or(opener.map(|opener| opener.pid));
            let who =
                pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            let since = opener.filter(|opener| Some(opener.pid) == pid).map_or_else(
                String::new,
                |opener| {
                    format!(
                        ", for {} s",
                        seams.clock.wall().0.saturating_sub(opener.since.0) / 1000
                    )
                },
            );
            Error::new(
                ErrorKind::Locked,
                format!(
                    "{} is open in {who}{since}: one process opens a store at a time",
                    dir.display()
                ),
            )
            .at(dir)
            .because(error)
        }
        _ => Error::io("locking", dir, error),
    }
}

fn load_or_create(seams: &Seams, dir: &Path, sizes: &Sizes, create: bool) -> Result<Manifest> {
    let storage = &*seams.storage;
    if let Some(manifest) = manifest::load(storage, dir)? {
        return Ok(manifest);
    }
    let path = manifest::path(dir);
    if recovery::holds_records(storage, dir)? {
        return Err(Error::corrupt(&path, 0, "the manifest is missing beside a log:"));
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

/// What a birth that was cut short may leave, and what file systems put into a fresh volume.
fn is_ours(name: &str) -> bool {
    matches!(name, "log" | "MANIFEST.next" | "lost+found")
}
