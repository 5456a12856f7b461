//! The settings for opening a store: [`StoreBuilder`].
//!
//! Never: opens a store; `store::open` does.

use std::time::Duration;

use crate::limits;
use crate::log::Sizes;
use crate::{Error, Policy, Result};

/// Settings for opening a store. Each method names the default of its setting.
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
    pub(crate) policy: Policy,
    pub(crate) segment_bytes: Option<u64>,
    pub(crate) result_bytes_max: u32,
    pub(crate) compress_over: Option<u32>,
    pub(crate) index_memory_max: u64,
    pub(crate) disk_bytes_max: u64,
    pub(crate) map: bool,
    pub(crate) manual_maintenance: bool,
    pub(crate) allow_network_fs: bool,
    pub(crate) open_timeout: Duration,
    pub(crate) shared: bool,
}

impl Default for StoreBuilder {
    fn default() -> Self {
        StoreBuilder {
            policy: Policy::new(),
            segment_bytes: None,
            result_bytes_max: limits::RESULT_BYTES_MAX_DEFAULT,
            compress_over: None,
            index_memory_max: limits::INDEX_MEMORY_DEFAULT,
            disk_bytes_max: u64::MAX,
            map: true,
            manual_maintenance: false,
            allow_network_fs: false,
            open_timeout: limits::OPEN_TIMEOUT,
            shared: false,
        }
    }
}

impl StoreBuilder {
    /// Sets the defaults for every operation of the store.
    ///
    /// An operation, or a handle from [`with_policy`](crate::Store::with_policy), may override them.
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

    /// Sets the largest size of a log segment, from 16 KiB to 1 GiB. Default: 64 MiB.
    ///
    /// The first segment has 1 MiB, and later ones have an eighth of the log's size so far. Whatever this setting is, a
    /// segment has space for two of the longest records.
    ///
    /// The setting may change from one open to the next: existing segments keep their size.
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

    /// Sets the length of the longest result that may be recorded, at most 48 MiB. Default: 512 KiB.
    ///
    /// A segment holds at least two of the longest records, so a large value makes large files. Longer results that are
    /// recorded already stay readable under a smaller limit.
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

    /// Compresses results and recorded failures of more than `bytes` bytes in their records, by LZ4, if that makes them
    /// shorter. Default: none is compressed. Needs the feature `lz4`.
    ///
    /// Compression takes about a nanosecond per byte when a result is recorded, before the log is locked, and less when
    /// it is replayed, into memory of its own. [`result_bytes_max`](Self::result_bytes_max) limits the length before
    /// compression, and so does the space that a claim reserves ([`reserve_bytes`](crate::Policy::reserve_bytes)).
    ///
    /// The setting may change from one open to the next: each record says whether its result is compressed. A build
    /// without the feature opens such a store and knows the state of each key; decoding a compressed result fails there
    /// as `Undecodable`, and its payload has no bytes. A store on another backend compresses nothing.
    ///
    /// ```
    /// # use onlyonce::{Claim, Store};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let store = Store::builder().compress_over(1024).open_or_create(&keys)?;
    /// let Claim::Acquired(claim) = store.claim("page-7")? else { unreachable!() };
    /// claim.complete(&"all work and no play ".repeat(1000))?;
    /// # store.sync()?;
    /// assert!(store.stats().bytes_written < 2000);
    /// let Claim::Completed(done) = store.claim("page-7")? else { unreachable!() };
    /// assert_eq!(done.result().len(), 21_000);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[cfg(feature = "lz4")]
    pub fn compress_over(mut self, bytes: u32) -> Self {
        self.compress_over = Some(bytes);
        self
    }

    /// Sets the memory that the index may take for keys that no sealed table holds yet, at 64 bytes each. Default: 64
    /// MiB, enough for a million keys. When this memory is used up, a checkpoint moves the keys to disk, except for
    /// claims in flight.
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

    /// Sets how many bytes all files of the store together may take. Default: no limit except the disk's size.
    ///
    /// When the limit is reached, dead records are reclaimed before the next claim. If all records are live, claims
    /// fail with `StorageFull` before anything is done; claims in flight can still end, results are replayed, and keys
    /// can be forgotten and compacted away. The minimum is four segments; choose more than twice the live bytes. A
    /// table or a file of remembered keys counts only once it is finished, so the store may exceed the limit by the
    /// size of such a file while it is written.
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

    /// Sets whether full segments and the index are read through memory maps. Default: yes. Without maps, the same
    /// files are read by plain reads.
    ///
    /// If another program truncates a mapped file, the process dies of SIGBUS; a plain read of such a file fails with
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

    /// Sets whether the program calls [`Store::step`](crate::Store::step) itself, so that no background threads are
    /// started.
    ///
    /// If it doesn't, records acknowledged at `Lazy` or `Flush` may stay unsynced for longer than a second, and a claim that
    /// needs a new segment prepares it itself.
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

    /// Allows file systems whose locks and flushes can't be relied on (NFS, SMB, FUSE …). They are refused by default.
    ///
    /// The store's promises then depend on that file system.
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

    /// Shares the store with other processes of this machine that open it so, too. By default a store is opened by one process.
    ///
    /// One of the processes *hosts* the store: it has the files. The others are its *guests*: their calls go to the host. Nothing has
    /// to be started or configured: the process that opens the store first hosts it. When the host closes or ends, in whatever way, a
    /// guest takes its place, and the claims of all other processes live on. Every call of a store works in each process;
    /// [`Stats::hosting`](crate::admin::Stats::hosting) says which process hosts the store. See the page `processes` of the documentation.
    ///
    /// With [`manual_maintenance`](Self::manual_maintenance) a store is never shared.
    ///
    /// ```
    /// # use onlyonce::{Claim, Store};
    /// # let dir = tempfile::tempdir()?;
    /// let store = Store::builder().shared(true).open_or_create(dir.path().join("keys"))?;
    /// // Here, or in any other process:
    /// let other = Store::builder().shared(true).open(dir.path().join("keys"))?;
    /// let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// assert!(matches!(other.claim("order-17")?, Claim::InProgress(_)));
    /// claim.complete("paid")?;
    /// assert!(matches!(other.claim("order-17")?, Claim::Completed(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shared(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// Sets how long an opening waits while another process has the store open, before it returns `Locked`. Default: one
    /// second, so that short processes that open a store one after the other don't refuse each other. Zero: it doesn't wait.
    ///
    /// Processes that wait are not served in order. A [`Reader`](crate::Reader) makes no opening fail: one that comes while a
    /// reader checks the lock waits some milliseconds, whatever the timeout. A store that was opened earlier in this process
    /// counts as another one, so a thread that has the store open itself waits in vain.
    ///
    /// With [`shared`](Self::shared), an opening waits only until it can host the store or join its host. If a host has accepted the
    /// connection and doesn't answer, the opening waits up to ten seconds for it, even if the timeout is shorter.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, Store};
    /// # use std::time::Duration;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let keys = dir.path().join("keys");
    /// let old = Store::open_or_create(&keys)?;
    /// let at_once = Store::builder().open_timeout(Duration::ZERO).open(&keys);
    /// assert_eq!(at_once.unwrap_err().kind(), ErrorKind::Locked);
    ///
    /// std::thread::spawn(move || old.close(Duration::from_secs(20)));
    /// let new = Store::builder().open_timeout(Duration::from_secs(30)).open(&keys)?;
    /// assert!(new.mark("k")?.is_first());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = timeout;
        self
    }

    pub(crate) fn sizes(&self) -> Result<Sizes> {
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
            record_bytes_max: u64::from(self.result_bytes_max) + labels as u64,
            disk_bytes_max: self.disk_bytes_max,
            map: self.map,
        })
    }
}
