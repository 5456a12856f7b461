//! For your own tests: [`Sim`], a store in memory with a hand-driven clock, power loss and a failing disk.
//!
//! Nothing here touches a real disk or the real time, and the same seed gives the same run.

mod files;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::ManualClock;
use crate::entropy::SeededEntropy;
use crate::log::Seams;
use crate::storage::faulty::FaultyStorage;
use crate::storage::memory::{Crash, MemoryStorage};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::types::WallMillis;
use crate::{Result, Store, StoreBuilder};

/// A simulated disk and clock, on which a store is opened, crashed and opened again.
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
/// A store opened on it has no background thread: call [`Store::step`] where you want its work done.
#[derive(Debug)]
pub struct Sim {
    disk: Mutex<Disk>,
    clock: Arc<ManualClock>,
    seed: u64,
    openings: AtomicU64,
}

#[derive(Debug)]
struct Disk {
    memory: MemoryStorage,
    faulty: FaultyStorage,
}

impl Disk {
    fn new(memory: MemoryStorage) -> Self {
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        Disk { memory, faulty }
    }
}

/// Where the store lies on a simulated disk.
const DIR: &str = "/store";

impl Sim {
    /// An empty disk, and a clock at the beginning of 2026. Everything random is drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Sim {
            disk: Mutex::new(Disk::new(MemoryStorage::new())),
            clock: Arc::new(ManualClock::new(WallMillis(1_767_225_600_000))),
            seed,
            openings: AtomicU64::new(0),
        }
    }

    /// Opens the store on the disk, or makes it.
    ///
    /// # Errors
    /// As [`Store::open_or_create`].
    pub fn open(&self) -> Result<Store> {
        self.open_with(Store::builder().segment_bytes(64 << 10).result_bytes_max(16 << 10))
    }

    /// As [`open`](Self::open), with settings of your own. There is never a background thread.
    ///
    /// # Errors
    /// As [`StoreBuilder::open_or_create`].
    pub fn open_with(&self, builder: StoreBuilder) -> Result<Store> {
        let opening = self.openings.fetch_add(1, Ordering::Relaxed);
        let seams = Seams {
            storage: Arc::new(self.disk.lock().faulty.clone()),
            clock: Arc::clone(&self.clock) as Arc<dyn crate::clock::Clock>,
            entropy: Arc::new(SeededEntropy::new(self.seed ^ opening.rotate_left(32))),
        };
        builder.manual_maintenance(true).open_on(seams, Path::new(DIR), true)
    }

    /// Cuts the power: whatever was not synced is gone. Handles opened before get errors from now on.
    pub fn power_loss(&self) {
        self.crash(|memory| memory.crash_clone(Crash::NONE));
        self.clock.reboot(0);
    }

    /// Cuts the power: of what was not synced, some survives, as `seed` draws it.
    pub fn power_loss_keeping_some(&self, seed: u64) {
        self.crash(|memory| memory.crash_clone(Crash::seeded(seed)));
        self.clock.reboot(0);
    }

    /// Kills the process: what was handed to the system stays. Handles opened before get errors from now on.
    pub fn kill(&self) {
        self.crash(MemoryStorage::kill_clone);
    }

    fn crash(&self, after: impl FnOnce(&MemoryStorage) -> MemoryStorage) {
        let mut disk = self.disk.lock();
        disk.faulty.cut_power();
        *disk = Disk::new(after(&disk.memory));
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.clock.advance(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// Sets the wall clock forward or back by milliseconds; other clocks go on as they were.
    pub fn jump_wall_clock(&self, millis: i64) {
        self.clock.jump_wall(millis);
    }

    /// Bounds the disk, in bytes; what is written already stays.
    pub fn set_disk_bytes_max(&self, bytes: u64) {
        self.disk.lock().memory.set_bytes_max(bytes);
    }

    /// Bytes the disk holds.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk.lock().memory.bytes_used()
    }

    /// A hash of every change made to the disk so far: the same run gives the same hash.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.disk.lock().memory.trace()
    }
}
