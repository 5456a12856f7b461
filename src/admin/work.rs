//! What work on a whole store found and did: [`Backup`], [`Compaction`] and [`Verification`].

use std::ops::ControlFlow;

use crate::Error;
use crate::engine::{BackedUp, Compacted, Inspector};

/// What [`Store::backup`](crate::Store::backup) made: see there.
///
/// ```
/// # let sim = onlyonce::testing::Sim::new(1);
/// # let store = sim.open()?;
/// let made = store.backup("/backups/monday")?;
/// println!("{} of {} bytes were copied", made.bytes_copied(), made.bytes_copied() + made.bytes_linked());
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backup {
    made: BackedUp,
}

impl Backup {
    pub(crate) fn new(made: BackedUp) -> Self {
        Backup { made }
    }

    /// Returns the bytes of files that the backup shares with the store. They take no space of their own while the store has
    /// them, too.
    ///
    /// ```
    /// # let sim = onlyonce::testing::Sim::new(1);
    /// # let store = sim.open()?;
    /// assert_eq!(store.backup("/backups/monday")?.bytes_linked(), 0); // all of it is in the segment in use
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn bytes_linked(&self) -> u64 {
        self.made.linked
    }

    /// Returns the bytes of files that were copied.
    ///
    /// ```
    /// # let sim = onlyonce::testing::Sim::new(1);
    /// # let store = sim.open()?;
    /// # let _ = store.mark("k")?;
    /// assert!(store.backup("/backups/monday")?.bytes_copied() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn bytes_copied(&self) -> u64 {
        self.made.copied
    }
}

/// What [`Store::compact`](crate::Store::compact) did.
///
/// ```
/// # let store = onlyonce::testing::Sim::new(1).open()?;
/// let done = store.compact(u64::MAX)?;
/// println!("{} bytes reclaimed, {} moved for it", done.bytes_reclaimed(), done.bytes_moved());
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compaction {
    done: Compacted,
}

impl Compaction {
    pub(crate) fn new(done: Compacted) -> Self {
        Compaction { done }
    }

    /// Returns the bytes of live records that were moved.
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// assert_eq!(store.compact(u64::MAX)?.bytes_moved(), 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn bytes_moved(&self) -> u64 {
        self.done.moved
    }

    /// Returns the bytes of reclaimed segments, including moved records.
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// # let _ = store.mark("k")?;
    /// assert!(store.compact(u64::MAX)?.bytes_reclaimed() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn bytes_reclaimed(&self) -> u64 {
        self.done.reclaimed
    }

    /// Returns whether compaction has reached the end of the log. If so, nothing that was dead before the call is still
    /// on the disk. If earlier calls ran out of budget, this holds for what was dead before the first of those calls.
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// while !store.compact(1 << 20)?.is_complete() { /* let others have the disk for a while */ }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.done.is_complete
    }
}

/// What [`Store::verify`](crate::Store::verify) found.
///
/// ```
/// # let store = onlyonce::testing::Sim::new(1).open()?;
/// # let _ = store.mark("k")?;
/// let found = store.verify()?;
/// assert_eq!((found.records, found.damages.len()), (1, 0));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Verification {
    /// Whole records about keys.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// All damage; each error names file and offset.
    pub damages: Vec<Error>,
    /// What could not be read, so that it may be whole or damaged. The kind of the error is the reason: the device
    /// failed or no file descriptor was free (`Io`), a failed write left the record in memory (`Indeterminate`), or the
    /// record waits for space (`StorageFull`). There is one error for each kind and file.
    pub unread: Vec<Error>,
}

impl Verification {
    /// Returns whether everything was read and nothing is damaged.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// assert!(store.verify()?.is_whole());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damages.is_empty() && self.unread.is_empty()
    }
}

/// Collects what a verification finds, and reports its progress.
pub(crate) struct Gathering<'p> {
    pub(crate) found: Verification,
    pub(crate) progress: &'p mut dyn FnMut(&Verification) -> ControlFlow<()>,
}

impl Inspector for Gathering<'_> {
    fn damage(&mut self, error: Error) {
        self.found.damages.push(error.listed());
    }

    fn unread(&mut self, error: Error) {
        // A failing device would otherwise be reported for each record.
        let is_it = |known: &Error| (known.kind(), known.path()) == (error.kind(), error.path());
        if !self.found.unread.iter().any(is_it) {
            self.found.unread.push(error);
        }
    }

    fn record(&mut self) {
        self.found.records += 1;
    }

    fn read(&mut self, bytes: u64) -> ControlFlow<()> {
        self.found.bytes += bytes;
        (self.progress)(&self.found)
    }
}
