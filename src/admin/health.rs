//! Whether a store takes claims: [`Health`].

use std::path::Path;
use std::time::SystemTime;

use crate::ErrorKind;
use crate::backend::Embedded;
use crate::claim::{reserve, shown};
use crate::engine::Engine;
use crate::types::WallMillis;
use crate::{Error, limits};

/// Whether a store accepts writes. See [`Store::health`](crate::Store::health).
///
/// Raise an alarm if it isn't [`is_writable`](Self::is_writable), because claims are then refused. `Full` and `WaitsForSpace` end as
/// soon as there is space; `Poisoned` ends when the store is reopened. [`Stats::background_error`](super::Stats::background_error) is set earlier,
/// because the space that is prepared ahead lasts for a while.
///
/// ```
/// # use onlyonce::{admin::Health, testing::{DiskFault, Sim}};
/// # let sim = Sim::new(1);
/// # let store = sim.open()?;
/// # let _ = store.mark("k")?;
/// # sim.fail_call(0, DiskFault::Io);
/// # let _ = store.mark("l");
/// match store.health() {
///     Health::Writable => println!("ok"),
///     Health::Poisoned { cause } => println!("call `Store::reopen`: {cause}"),
///     Health::Full { since, cause } => println!("no space for claims since {since:?}: {cause}"),
///     Health::WaitsForSpace => println!("the disk is full"),
///     other => println!("{other:?}"),
/// }
/// # assert!(matches!(store.health(), Health::Poisoned { .. }));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Health {
    /// The store accepts writes.
    Writable,
    /// The store accepts writes. It was opened with [`shared`](crate::StoreBuilder::shared), but this process can't listen for others,
    /// which are refused as `Locked` while this one has the store open.
    Alone {
        /// Why it can't.
        cause: String,
    },
    /// A write or sync failed. Results are still replayed, but nothing is written until the store is reopened.
    Poisoned {
        /// What failed, and where.
        cause: String,
    },
    /// Records that the last open found unsynced can't be synced without space: free some.
    WaitsForSpace,
    /// Only new claims are refused, as `StorageFull`: claims in flight can end, results are replayed, and keys can be
    /// forgotten and compacted away. Background work checks for space once a second.
    Full {
        /// When the space ran out.
        since: SystemTime,
        /// What could not be prepared, and what to do about it.
        cause: String,
    },
    /// The store was closed.
    Closed,
    /// This process is a fork of the one that opened the store.
    Forked,
    /// The store has another backend, which refuses claims.
    Refused {
        /// Why the backend refuses claims, and what to do about it.
        cause: String,
    },
    /// Another process hosts the store, and doesn't answer: it is stopped, or its machine is overloaded. Calls wait for it, as they
    /// would for a disk that hangs. When it ends, another process takes its place.
    Silent {
        /// The number of that process, in its own namespace of processes.
        process: u32,
        /// When it was heard last.
        since: SystemTime,
    },
}

impl Health {
    /// Judges a claim that reserves so many bytes.
    pub(crate) fn of(embedded: &Embedded, reserve_bytes: u32) -> Self {
        let engine: &Engine = embedded;
        // First: in a fork, a lock that another thread of the parent held is never released.
        if engine.is_foreign() {
            return Health::Forked;
        }
        if engine.is_closing() {
            return Health::Closed;
        }
        match engine.log.poison_cause() {
            Some(cause) => Health::Poisoned { cause: cause.to_string() },
            None if engine.log.has_unsettled_tail() => Health::WaitsForSpace,
            None => match Health::room(engine, reserve_bytes) {
                Some((since, cause)) => {
                    Health::Full { since: shown(since), cause: cause.to_string() }
                }
                None => match embedded.serves_nobody() {
                    Some(cause) => Health::Alone { cause },
                    None => Health::Writable,
                },
            },
        }
    }

    /// Judges by what another backend says of a claim now.
    pub(crate) fn of_backend(refused: Option<&Error>) -> Self {
        let Some(error) = refused else { return Health::Writable };
        match error.kind() {
            ErrorKind::Closed => Health::Closed,
            ErrorKind::Forked => Health::Forked,
            ErrorKind::Poisoned => Health::Poisoned { cause: error.to_string() },
            _ => Health::Refused { cause: error.to_string() },
        }
    }

    /// The answer that a claim would get now on the store in `dir`.
    pub(crate) fn as_result(&self, dir: &Path) -> crate::Result<()> {
        let (kind, why) = match self {
            Health::Writable | Health::Alone { .. } => return Ok(()),
            Health::Poisoned { cause } => {
                let why = format!(
                    "the store takes no writes since an earlier one failed ({cause}); reopen it"
                );
                (ErrorKind::Poisoned, why)
            }
            Health::Closed => (ErrorKind::Closed, "the store was closed: open it again".into()),
            Health::Forked => {
                let why =
                    "this process is a fork of the one that opened the store: open it here".into();
                (ErrorKind::Forked, why)
            }
            Health::WaitsForSpace => {
                let why = "the unsynced records that the last open found wait for space: free some";
                (ErrorKind::StorageFull, why.into())
            }
            Health::Full { cause, .. } | Health::Refused { cause } => {
                (ErrorKind::StorageFull, cause.clone())
            }
            Health::Silent { process, .. } => {
                let why = format!(
                    "process {process} hosts the store and doesn't answer: it is stopped, or waits for its disk"
                );
                (ErrorKind::InProgress, why)
            }
        };
        Err(Error::new(kind, why).at(dir))
    }

    /// Since when an ordinary claim has no space, and why, if so.
    fn room(engine: &Engine, reserve_bytes: u32) -> Option<(WallMillis, Error)> {
        let reserve = reserve(engine.result_bytes_max, reserve_bytes, limits::ORDINARY_KEY_BYTES);
        let besides = engine.owed_bytes();
        engine.log.rooms().is_full_for(limits::ORDINARY_CLAIM_BYTES, reserve + besides)
    }

    /// Returns whether the store accepts writes.
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// assert!(store.health().is_writable());
    /// store.close(std::time::Duration::ZERO)?;
    /// assert!(!store.health().is_writable());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn is_writable(&self) -> bool {
        matches!(self, Health::Writable | Health::Alone { .. })
    }
}
