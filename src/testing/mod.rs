//! For your own tests: [`Sim`], a store in memory with a manual clock, power loss and a failing disk.
//!
//! Nothing here uses a real disk or a real clock, and the same seed gives the same run.

pub mod conformance;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
#[cfg(all(test, not(loom)))]
mod told;
#[cfg(all(test, not(any(loom, shuttle))))]
mod torture;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::admin::{AcceptLoss, RepairReport};
use crate::clock::ManualClock;
use crate::entropy::SeededEntropy;
use crate::log::Seams;
use crate::repair;
use crate::storage::Storage;
use crate::storage::faulty::{CallFailure, CallGate, Calls, Class, Effect, Fault, FaultyStorage};
use crate::storage::memory::{Crash, MemoryStorage};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::types::{KeyHash, WallMillis};
use crate::{Reader, Result, Store, StoreBuilder};

/// A simulated disk and clock, on which a test opens a store, crashes it and opens it again.
///
/// ```
/// use onlyonce::{Claim, Operation, testing::Sim};
/// use std::time::Duration;
///
/// # fn main() -> onlyonce::Result<()> {
/// let day = Duration::from_secs(86_400);
/// let sim = Sim::new(1);
/// if let Claim::Acquired(claim) = sim.open()?.claim(Operation::new("k").retention(day))? {
///     claim.complete("v")?;
/// }
/// sim.power_loss();
/// assert!(matches!(sim.open()?.claim("k")?, Claim::Completed(_)));
/// sim.advance(2 * day);
/// assert!(matches!(sim.open()?.claim("k")?, Claim::Acquired(_)));
/// # Ok(())
/// # }
/// ```
///
/// A store on a simulated disk has the same limits and defaults as one on a real disk. It has no background thread:
/// call [`Store::step`] to do background work.
///
/// # Cost
/// The simulation takes memory and does no I/O. A new store takes about 2 MiB, as on a real disk, and less with smaller
/// values of [`segment_bytes`](StoreBuilder::segment_bytes) and [`result_bytes_max`](StoreBuilder::result_bytes_max). A
/// crash copies everything on the disk, and [`read_file`](Sim::read_file) copies one file; the other calls only look up
/// or set a value.
#[derive(Debug)]
pub struct Sim {
    disk: Mutex<SimDisk>,
    clock: Arc<ManualClock>,
    seed: u64,
    openings: AtomicU64,
    /// Stores are small, for this crate's own tests.
    is_small: bool,
    copies: AtomicU64,
    /// The bits of keys' hashes that count.
    hash_mask: Mutex<KeyHash>,
}

#[derive(Debug)]
struct SimDisk {
    memory: MemoryStorage,
    faulty: FaultyStorage,
}

impl SimDisk {
    fn new(memory: MemoryStorage) -> Self {
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        SimDisk { memory, faulty }
    }
}

/// How a call to the simulated disk fails.
///
/// See [`Sim::fail_call`], [`Sim::fail_calls_from`] and [`Sim::fail_changes_from`].
///
/// ```
/// # use onlyonce::{ErrorKind, testing::{DiskFault, Sim}};
/// let sim = Sim::new(1);
/// let store = sim.open()?;
/// let claim = store.claim("k")?;
/// sim.fail_calls_from(0, DiskFault::Full);
/// # let onlyonce::Claim::Acquired(claim) = claim else { unreachable!() };
/// assert_eq!(claim.complete("v").unwrap_err().kind(), ErrorKind::Indeterminate); // in the midst of a write
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DiskFault {
    /// The device fails (`EIO`), and the call has no effect.
    Io,
    /// The disk is full (`ENOSPC`).
    Full,
    /// The process has too many open files (`EMFILE`). Only calls that open a file are counted, and only they fail.
    TooManyOpen,
    /// The system is out of memory (`ENOMEM`). Only calls that open or map a file are counted, and only they fail.
    NoMemory,
    /// The file system is mounted read-only (`EROFS`).
    ReadOnly,
    /// The process has no permission (`EACCES`).
    Denied,
    /// A signal interrupts the call (`EINTR`), and the caller repeats it.
    Interrupted,
    /// A read or write transfers only part of its bytes; other calls are not affected.
    Short,
    /// The call panics, as it might because of a bug in onlyonce or in a driver.
    Panic,
}

impl DiskFault {
    fn calls(self) -> Calls {
        match self {
            DiskFault::TooManyOpen => Calls::Opening,
            DiskFault::NoMemory => Calls::Taking,
            _ => Calls::Any,
        }
    }

    fn effect(self) -> Effect {
        use rustix::io::Errno;
        let errno = |errno: Errno| Effect::Fail(CallFailure::Errno(errno.raw_os_error()));
        match self {
            DiskFault::Io => errno(Errno::IO),
            DiskFault::Full => errno(Errno::NOSPC),
            DiskFault::TooManyOpen => errno(Errno::MFILE),
            DiskFault::NoMemory => errno(Errno::NOMEM),
            DiskFault::ReadOnly => errno(Errno::ROFS),
            DiskFault::Denied => errno(Errno::ACCESS),
            DiskFault::Interrupted => errno(Errno::INTR),
            DiskFault::Short => Effect::Short(100),
            DiskFault::Panic => Effect::Panic,
        }
    }
}

/// The path of the store on a simulated disk.
pub(crate) const DIR: &str = "/store";

impl Sim {
    /// Makes an empty disk, and a clock that starts at the beginning of 2026. All random values are drawn from `seed`.
    ///
    /// No memory is allocated ahead: a store takes memory only for what it writes to the disk.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim, Token};
    /// fn token(seed: u64) -> onlyonce::Result<Token> {
    ///     let Claim::Acquired(claim) = Sim::new(seed).open()?.claim("k")? else { unreachable!() };
    ///     Ok(claim.token())
    /// }
    /// assert_eq!(token(7)?, token(7)?); // the same run again
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Sim {
            disk: Mutex::new(SimDisk::new(MemoryStorage::new())),
            clock: Arc::new(ManualClock::new(WallMillis(1_767_225_600_000))),
            seed,
            openings: AtomicU64::new(0),
            is_small: false,
            copies: AtomicU64::new(0),
            hash_mask: Mutex::new(KeyHash { high: u64::MAX, low: u64::MAX }),
        }
    }

    /// Opens the store on the disk, or creates it, with the default settings of [`Store::builder`].
    ///
    /// The call counts as one from another process: it fails with `Locked` while a handle from an earlier open exists.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, testing::Sim};
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// assert_eq!(sim.open().unwrap_err().kind(), ErrorKind::Locked);
    /// # let onlyonce::Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// # claim.complete(&vec![7; 512 << 10])?; // the longest result by default
    /// # assert!(sim.disk_bytes() < 7 << 19, "{}", sim.disk_bytes());
    /// drop(store);
    /// let store = sim.open()?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Store::open_or_create`].
    pub fn open(&self) -> Result<Store> {
        let builder = Store::builder();
        self.open_with(if self.is_small {
            builder.segment_bytes(64 << 10).result_bytes_max(16 << 10)
        } else {
            builder
        })
    }

    /// Opens or creates the store like [`open`](Self::open), with your own settings. There is never a background
    /// thread, and an opening doesn't wait for another one.
    ///
    /// ```
    /// # use onlyonce::{Claim, ErrorKind, Store, testing::Sim};
    /// let sim = Sim::new(1);
    /// let store = sim.open_with(Store::builder().result_bytes_max(100))?;
    /// let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// assert_eq!(claim.complete(&[0; 101]).unwrap_err().kind(), ErrorKind::TooLarge);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// Those of [`StoreBuilder::open_or_create`].
    pub fn open_with(&self, builder: StoreBuilder) -> Result<Store> {
        let builder = builder.manual_maintenance(true).open_timeout(Duration::ZERO);
        builder.open_on(self.seams(), Path::new(DIR), true)
    }

    /// Opens the store on the disk for reading.
    ///
    /// ```
    /// # use onlyonce::{State, testing::Sim};
    /// let sim = Sim::new(1);
    /// let claim = sim.open()?.claim("k")?; // and the process dies on it
    /// sim.kill();
    /// let (reader, changes) = (sim.open_reader()?, sim.changes());
    /// assert!(matches!(reader.get("k")?, Some(State::Interrupted(_))));
    /// assert_eq!(changes, 0);
    /// # drop(claim);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Reader::open`].
    pub fn open_reader(&self) -> Result<Reader> {
        Reader::open_on(self.seams(), PathBuf::from(DIR))
    }

    /// Calls of the disk that read.
    #[cfg(test)]
    pub(crate) fn reads(&self) -> u64 {
        self.disk.lock().memory.reads()
    }

    pub(crate) fn seams(&self) -> Seams {
        let opening = self.openings.fetch_add(1, Ordering::Relaxed);
        Seams {
            storage: Arc::new(self.disk.lock().faulty.clone()),
            clock: Arc::clone(&self.clock) as Arc<dyn crate::clock::Clock>,
            entropy: Arc::new(SeededEntropy::with_hash_mask(
                self.seed ^ opening.rotate_left(32),
                *self.hash_mask.lock(),
            )),
        }
    }

    /// Cuts the power: all unsynced bytes are lost. Existing handles return errors from now on.
    ///
    /// The machine reboots at once, and its clock does not advance.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let _ = store.mark("a")?; // at Sync
    /// let _ = store.mark(Operation::new("b").durability(Durability::Flush))?;
    /// sim.power_loss();
    /// let store = sim.open()?;
    /// assert!(store.get("a")?.is_some() && store.get("b")?.is_none());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn power_loss(&self) {
        self.crash(|memory| memory.crash_clone(Crash::NONE));
        self.clock.reboot(0);
    }

    /// Cuts the power: a random part of the unsynced bytes, determined by `seed`, survives.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// for n in 0..100_u64 {
    ///     let _ = store.mark(Operation::new(n).durability(Durability::Flush))?;
    /// }
    /// sim.power_loss_keeping_some(3);
    /// let left = sim.open()?.iter().count(); // some of the hundred, as after a real crash
    /// assert!(left <= 100);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn power_loss_keeping_some(&self, seed: u64) {
        self.crash(|memory| memory.crash_clone(Crash::seeded(seed)));
        self.clock.reboot(0);
    }

    /// Kills the process: everything written to the operating system is kept. Existing handles return errors from now
    /// on.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let claim = store.claim("k")?; // and the process dies on it
    /// sim.kill();
    /// assert!(matches!(sim.open()?.claim("k")?, Claim::Interrupted(_)));
    /// # drop(claim);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn kill(&self) {
        self.crash(MemoryStorage::kill_clone);
    }

    fn crash(&self, after: impl FnOnce(&MemoryStorage) -> MemoryStorage) {
        let mut disk = self.disk.lock();
        disk.faulty.cut_power();
        *disk = SimDisk::new(after(&disk.memory));
    }

    /// Advances the clock by `time`.
    ///
    /// The clock counts whole milliseconds. Advancing it starts no background work, which waits for [`Store::step`].
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # use std::time::Duration;
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let op = Operation::new("k").lease(Duration::from_secs(30));
    /// let claim = store.claim(&op)?;
    /// sim.advance(Duration::from_secs(31));
    /// assert!(matches!(store.claim(&op)?, Claim::Interrupted(_)));
    /// # drop(claim);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn advance(&self, time: Duration) {
        self.clock.advance(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// Sets the wall clock forward or back by `millis`; the other clocks do not change.
    ///
    /// ```
    /// # use onlyonce::{Operation, testing::Sim};
    /// # use std::time::Duration;
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let day = Duration::from_secs(86_400);
    /// let _ = store.mark(Operation::new("k").retention(day))?;
    /// sim.jump_wall_clock(7 * 86_400_000);
    /// assert!(store.get("k")?.is_some()); // nothing expires because somebody set the clock
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn jump_wall_clock(&self, millis: i64) {
        self.clock.jump_wall(millis);
    }

    /// Advances store time by `millis` at each reading of the clock. With 0, the initial value, store time stands
    /// still.
    #[doc(hidden)]
    pub fn run_on(&self, millis: u64) {
        self.clock.run_on(millis);
    }

    /// Limits the size of the disk, in bytes; bytes already written are kept. `u64::MAX`, the default, means no limit.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, testing::Sim};
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// sim.set_disk_bytes_max(sim.disk_bytes()); // full
    /// let refused = (0..100_000_u64).find_map(|n| store.mark(n).err()).unwrap();
    /// assert_eq!(refused.kind(), ErrorKind::StorageFull);
    /// sim.set_disk_bytes_max(u64::MAX); // room again, and no need to reopen
    /// assert!(store.mark("k")?.is_first());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn set_disk_bytes_max(&self, bytes: u64) {
        self.disk.lock().memory.set_bytes_max(bytes);
    }

    /// Limits the number of files and directories; existing ones are kept.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, testing::Sim};
    /// let sim = Sim::new(1);
    /// sim.set_disk_files_max(0);
    /// assert_eq!(sim.open().unwrap_err().kind(), ErrorKind::StorageFull);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn set_disk_files_max(&self, files: u64) {
        self.disk.lock().memory.set_nodes_max(files);
    }

    /// Returns the number of bytes on the disk.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// let sim = Sim::new(1);
    /// let before = sim.disk_bytes();
    /// let store = sim.open()?;
    /// assert!(sim.disk_bytes() > before); // a segment, written ahead
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk.lock().memory.bytes_used()
    }

    /// Returns the number of files and directories on the disk.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// assert!(sim.disk_files() >= 4); // the directory, MANIFEST, log/ and a segment
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn disk_files(&self) -> u64 {
        self.disk.lock().memory.nodes_used()
    }

    /// Returns a hash of all changes made to the disk so far. The same run gives the same hash.
    ///
    /// ```
    /// # use onlyonce::{Result, testing::Sim};
    /// fn run(seed: u64) -> Result<u64> {
    ///     let sim = Sim::new(seed);
    ///     let _ = sim.open()?.mark("k")?;
    ///     Ok(sim.trace())
    /// }
    /// assert_eq!(run(7)?, run(7)?);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.disk.lock().memory.trace()
    }

    /// Lets `after` disk calls succeed and makes the next one fail. Later calls succeed.
    ///
    /// ```
    /// # use onlyonce::{Claim, ErrorKind, testing::{DiskFault, Sim}};
    /// # fn main() -> onlyonce::Result<()> {
    /// # let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// sim.fail_call(0, DiskFault::Io);
    /// assert_eq!(claim.complete("v").unwrap_err().kind(), ErrorKind::Indeterminate);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fail_call(&self, after: u64, fault: DiskFault) {
        self.inject(Fault::once(fault.calls(), after, fault.effect()));
    }

    /// Lets `after` disk calls succeed and makes all later ones fail, until [`heal`](Self::heal) is called.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, testing::{DiskFault, Sim}};
    /// let sim = Sim::new(1);
    /// sim.fail_calls_from(0, DiskFault::TooManyOpen);
    /// assert_eq!(sim.open().unwrap_err().kind(), ErrorKind::Io);
    /// sim.heal();
    /// sim.open()?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn fail_calls_from(&self, after: u64, fault: DiskFault) {
        self.inject(Fault::from(fault.calls(), after, fault.effect()));
    }

    /// Acts like [`fail_calls_from`](Self::fail_calls_from), but only on calls that change the disk: reads succeed.
    ///
    /// ```
    /// # use onlyonce::testing::{DiskFault, Sim};
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let _ = store.mark("k")?;
    /// sim.fail_changes_from(0, DiskFault::ReadOnly);
    /// assert!(store.mark("l").is_err());
    /// assert!(store.get("k")?.is_some()); // what is durable is still answered
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn fail_changes_from(&self, after: u64, fault: DiskFault) {
        self.inject(Fault::from(Calls::Changing, after, fault.effect()));
    }

    /// Removes all faults that were set before.
    ///
    /// A store that a fault has poisoned stays poisoned until it is reopened.
    ///
    /// ```
    /// # use onlyonce::testing::{DiskFault, Sim};
    /// let sim = Sim::new(1);
    /// sim.fail_calls_from(0, DiskFault::Io);
    /// assert!(sim.open().is_err());
    /// sim.heal();
    /// sim.open()?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn heal(&self) {
        self.disk.lock().faulty.heal();
    }

    /// Lets the next `after` changes to the disk succeed, then cuts the power: no change after those has an effect. Once
    /// the power is cut, call [`power_loss`](Self::power_loss): it drops from the disk what was not synced.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// // Whatever the place of the crash, an acknowledged mark is there afterwards.
    /// for place in 0.. {
    ///     let sim = Sim::new(1);
    ///     sim.cut_power_at(place);
    ///     let acknowledged = sim.open().and_then(|store| store.mark("k")).is_ok();
    ///     if !sim.power_is_cut() {
    ///         break; // no change is left to crash at
    ///     }
    ///     sim.power_loss();
    ///     assert!(!acknowledged || sim.open()?.get("k")?.is_some());
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn cut_power_at(&self, after: u64) {
        self.inject(Fault::once(Calls::Changing, after, Effect::PowerCut { bytes_kept: 0 }));
    }

    /// Returns whether the power cut that [`cut_power_at`](Self::cut_power_at) set has happened.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// sim.cut_power_at(0);
    /// assert!(!sim.power_is_cut()); // nothing was changed yet
    /// assert!(store.mark("k").is_err());
    /// assert!(sim.power_is_cut());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn power_is_cut(&self) -> bool {
        self.disk.lock().faulty.power_is_cut()
    }

    /// Returns the number of disk calls since the last crash.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let _ = store.mark("k")?;
    /// let before = sim.calls();
    /// let _ = store.get("k")?;
    /// assert_eq!(sim.calls() - before, 1); // one read
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.disk.lock().faulty.count(Calls::Any)
    }

    /// Returns the number of disk calls since the last crash that changed the disk, or failed to.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let _ = store.mark("k")?;
    /// let before = sim.changes();
    /// let _ = store.mark("l")?;
    /// assert_eq!(sim.changes() - before, 2); // one write, one sync
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.disk.lock().faulty.count(Calls::Changing)
    }

    /// Returns every file with its length, sorted by path.
    ///
    /// The store is in `/store`.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let paths: Vec<_> = sim.files().into_iter().map(|(path, _len)| path).collect();
    /// assert!(paths.contains(&"/store/MANIFEST".into()));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.disk.lock().memory.files()
    }

    /// Returns a file's bytes, as a program would read them.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let manifest = sim.read_file("/store/MANIFEST").unwrap();
    /// assert!(!manifest.is_empty());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// Those of a real file system: `NotFound`, `IsADirectory`.
    pub fn read_file(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        self.disk.lock().memory.read(path.as_ref())
    }

    /// Replaces a file's bytes, or creates the file, without the store's knowledge. The change is durable at once.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, testing::Sim};
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// drop(store);
    /// sim.write_file("/store/MANIFEST", b"").unwrap();
    /// assert_eq!(sim.open().unwrap_err().kind(), ErrorKind::Corrupt); // emptied, and noticed
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// Those of a real file system.
    pub fn write_file(&self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        self.disk.lock().memory.write_file(path.as_ref(), bytes)
    }

    /// Flips the bits of `mask` in one byte of a file, as bit rot would.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, testing::Sim};
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// drop(store);
    /// sim.flip_byte("/store/MANIFEST", 100, 0x80).unwrap();
    /// assert_eq!(sim.open().unwrap_err().kind(), ErrorKind::Corrupt);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// Those of a real file system; `InvalidInput` if `offset` is past the end of the file.
    pub fn flip_byte(&self, path: impl AsRef<Path>, offset: u64, mask: u8) -> io::Result<()> {
        self.disk.lock().memory.flip(path.as_ref(), offset, mask)
    }

    /// Removes a file, or a directory with everything in it. The change is durable at once.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, testing::Sim};
    /// let sim = Sim::new(1);
    /// let store = sim.open()?;
    /// let _ = store.mark("k")?;
    /// drop(store);
    /// sim.remove("/store/MANIFEST").unwrap();
    /// assert_eq!(sim.open().unwrap_err().kind(), ErrorKind::Corrupt); // the log is still there: no fresh start
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// Those of a real file system.
    pub fn remove(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.disk.lock().memory.delete(path.as_ref())
    }

    fn inject(&self, fault: Fault) {
        self.disk.lock().faulty.inject(fault);
    }
}

/// For this crate's own tests; may change at any time.
#[doc(hidden)]
impl Sim {
    /// Makes a simulation with small stores, in which few writes fill a segment and a result has at most 16 KiB.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        Sim { is_small: true, ..Sim::new(seed) }
    }

    /// Makes the directories of a store, without files.
    pub fn make_dirs(&self) -> io::Result<()> {
        let memory = self.disk.lock().memory.clone();
        memory.create_dir(Path::new(DIR))?;
        for part in ["log", "index", "expired"] {
            memory.create_dir(&Path::new(DIR).join(part))?;
        }
        memory.settle();
        Ok(())
    }

    /// Renames a file or a directory without the store's knowledge, durably.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        let memory = self.disk.lock().memory.clone();
        memory.rename(from.as_ref(), to.as_ref())?;
        memory.settle();
        Ok(())
    }

    /// Returns the store's files with their bytes, each with its path relative to the store.
    pub fn contents(&self) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let inside = |path: &Path| path.strip_prefix(DIR).map(Path::to_path_buf).ok();
        let files = self.files().into_iter();
        files
            .filter_map(|(path, _)| Some((inside(&path)?, path)))
            .map(|(name, path)| Ok((name, self.read_file(path)?)))
            .collect()
    }

    /// Returns another machine with the same clock and the same disk, as the next process would find it. The new
    /// machine draws its own random values.
    #[must_use]
    pub fn copy(&self) -> Sim {
        let copies = self.copies.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let seed = self.seed.wrapping_add(copies << 48);
        Sim { seed, ..self.with(self.disk.lock().memory.kill_clone(), false) }
    }

    /// Returns the ways in which the power can be lost now: see `after`.
    #[must_use]
    pub fn crashes(&self, seeds: u64) -> Vec<SimCrash> {
        self.disk.lock().memory.crashes(seeds).into_iter().map(SimCrash).collect()
    }

    /// Returns the machine as it is after the given crash.
    #[must_use]
    pub fn after(&self, crash: SimCrash) -> Sim {
        self.with(self.disk.lock().memory.crash_clone(crash.0), true)
    }

    fn with(&self, memory: MemoryStorage, reboots: bool) -> Sim {
        let clock = self.clock.copy();
        if reboots {
            clock.reboot(0);
        }
        Sim {
            disk: Mutex::new(SimDisk::new(memory)),
            clock: Arc::new(clock),
            seed: self.seed,
            openings: AtomicU64::new(self.openings.load(Ordering::Relaxed)),
            is_small: self.is_small,
            copies: AtomicU64::new(0),
            hash_mask: Mutex::new(*self.hash_mask.lock()),
        }
    }

    /// Uses only these bits of a key's hash from the next open on, so that keys share a hash or a bucket.
    pub fn mask_hashes(&self, high: u64, low: u64) {
        *self.hash_mask.lock() = KeyHash { high, low };
    }

    /// Returns how often a fault took effect.
    #[must_use]
    pub fn faults_met(&self) -> u64 {
        self.disk.lock().faulty.hits()
    }

    /// Lets `after` syncs of files succeed and makes the next one fail, after which the bytes it didn't write count as
    /// clean.
    pub fn lie_at_sync(&self, after: u64) {
        self.disk.lock().memory.lie_at_sync(after);
    }

    /// Drops the bytes that such a sync didn't write from the page cache.
    pub fn evict_lost(&self) {
        self.disk.lock().memory.evict_lost();
    }

    /// Replaces a file by an empty directory.
    pub fn replace_by_dir(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.disk.lock().memory.replace_by_dir(path.as_ref())
    }

    /// Acts like `fail_call`, but only on syncs of files; the two functions below do so on writes and on reads.
    pub fn fail_sync(&self, after: u64, fault: DiskFault) {
        self.inject(Fault::once(Calls::Of(Class::Sync), after, fault.effect()));
    }

    pub fn fail_write(&self, after: u64, fault: DiskFault) {
        self.inject(Fault::once(Calls::Of(Class::Write), after, fault.effect()));
    }

    pub fn fail_read(&self, after: u64, fault: DiskFault) {
        self.inject(Fault::once(Calls::Of(Class::Read), after, fault.effect()));
    }

    /// Makes every map fail from now on.
    pub fn fail_maps(&self) {
        self.inject(Fault::from(Calls::Of(Class::Map), 0, DiskFault::NoMemory.effect()));
    }

    /// Makes the next sync of a file wait until the gate opens.
    #[must_use]
    pub fn hold_sync(&self) -> SimGate {
        let gate = Arc::new(CallGate::default());
        self.inject(Fault::once(Calls::Of(Class::Sync), 0, Effect::Wait(Arc::clone(&gate))));
        SimGate(gate)
    }

    /// Makes the next creation of a file wait until the gate opens.
    #[must_use]
    pub fn hold_create(&self) -> SimGate {
        let gate = Arc::new(CallGate::default());
        self.inject(Fault::once(Calls::Of(Class::Create), 0, Effect::Wait(Arc::clone(&gate))));
        SimGate(gate)
    }

    /// Makes the next exchange of two names wait until the gate opens.
    #[must_use]
    pub fn hold_exchange(&self) -> SimGate {
        let gate = Arc::new(CallGate::default());
        self.inject(Fault::once(Calls::Of(Class::Exchange), 0, Effect::Wait(Arc::clone(&gate))));
        SimGate(gate)
    }

    /// Lets `after` links succeed and makes the next one wait until the gate opens.
    #[must_use]
    pub fn hold_link(&self, after: u64) -> SimGate {
        let gate = Arc::new(CallGate::default());
        self.inject(Fault::once(Calls::Of(Class::Link), after, Effect::Wait(Arc::clone(&gate))));
        SimGate(gate)
    }

    /// Refuses every link from now on, as between two file systems.
    pub fn refuse_links(&self) {
        let refused = CallFailure::Errno(rustix::io::Errno::XDEV.raw_os_error());
        self.inject(Fault::from(Calls::Of(Class::Link), 0, Effect::Fail(refused)));
    }

    /// Runs `work` and returns the disk calls that all threads made meanwhile, by kind and file.
    pub fn calls_of(&self, work: impl FnOnce()) -> Vec<(String, PathBuf)> {
        let faulty = self.disk.lock().faulty.clone();
        faulty.log_calls(true);
        work();
        faulty.log_calls(false);
        faulty.take_log().into_iter().map(|op| (format!("{:?}", op.class), op.path)).collect()
    }

    /// Lets `after` reads succeed and makes the next one wait until the gate opens.
    #[must_use]
    pub fn hold_read(&self, after: u64) -> SimGate {
        let gate = Arc::new(CallGate::default());
        self.inject(Fault::once(Calls::Of(Class::Read), after, Effect::Wait(Arc::clone(&gate))));
        SimGate(gate)
    }

    /// Opens an existing store, with a background thread if requested.
    pub fn open_existing(&self, builder: StoreBuilder, thread: bool) -> Result<Store> {
        let builder = builder.manual_maintenance(!thread).open_timeout(Duration::ZERO);
        builder.open_on(self.seams(), Path::new(DIR), false)
    }

    /// Repairs the store on the simulated disk.
    pub fn repair(&self, builder: StoreBuilder, accept: AcceptLoss) -> Result<RepairReport> {
        repair::run(self.seams(), Path::new(DIR), &builder.sizes()?, accept)
    }

    /// Sets the name of the network file system that the disk reports, if it is one.
    pub fn set_network_fs(&self, name: Option<&'static str>) {
        self.disk.lock().memory.set_network_fs(name);
    }
}

/// One way to lose power.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimCrash(Crash);

#[doc(hidden)]
impl SimCrash {
    pub const NONE: SimCrash = SimCrash(Crash::NONE);
    pub const ALL: SimCrash = SimCrash(Crash::ALL);

    #[must_use]
    pub fn seeded(seed: u64) -> SimCrash {
        SimCrash(Crash::seeded(seed))
    }
}

/// Blocks a call of the disk.
#[doc(hidden)]
#[derive(Debug)]
pub struct SimGate(Arc<CallGate>);

#[doc(hidden)]
impl SimGate {
    /// Waits until a call reaches the gate, for `most` at longest, and returns whether one did.
    #[must_use]
    pub fn wait_arrived(&self, most: Duration) -> bool {
        self.0.wait_arrived(1, most)
    }

    pub fn open(&self) {
        self.0.open();
    }
}

impl Drop for SimGate {
    fn drop(&mut self) {
        self.0.open();
    }
}
