//! The operator's view: a walk over the keys, health and counts.

mod cursor;
mod health;
mod hosted;
mod hosting;
mod iter;
mod stats;
mod work;

pub use crate::repair::{AcceptLoss, RepairReport};
pub use cursor::Cursor;
pub use health::Health;
pub(crate) use hosted::{Hosted, KeyPage, KeyPrefix, ListedKey, Listing, PageAt};
pub use hosting::Hosting;
pub(crate) use iter::Scope;
pub use iter::{Iter, StateKind};
pub use stats::{Cut, Estimate, Opening, Stats};
pub(crate) use work::Gathering;
pub use work::{Backup, Compaction, Verification};

use crate::Result;
use crate::builder::StoreBuilder;
use crate::log::open::directory;
use std::path::Path;

/// Repairs the store in `dir`, which no process may have open. Rebuilds a lost manifest, and drops damaged records if
/// `accept` allows it. No other call ever accepts a loss.
///
/// The repair first reads everything. If no acknowledged record is lost (only a manifest or a header is), it repairs
/// the store. Otherwise it reports the loss and accepts it only with [`AcceptLoss::Yes`]: it then writes all whole
/// records anew, and they make up the store. A key that lost its newest record afterwards has the state of its newest
/// whole record, or is absent. A remembered key is kept if its page passes its checksum. Copy the directory before the
/// call.
///
/// Without the manifest, only the segments show what the store contained. Three things are then unknown: whether
/// segments before the first one were reclaimed or are missing, whether anything followed the last record, and whether
/// a file of remembered keys is missing.
///
/// ```
/// use onlyonce::admin::{AcceptLoss, repair};
/// use onlyonce::Store;
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let keys = dir.path().join("keys");
/// # drop(Store::open_or_create(&keys)?);
/// std::fs::remove_file(keys.join("MANIFEST")).unwrap();
/// assert!(Store::open(&keys).is_err());
/// let report = repair(&keys, AcceptLoss::No)?;
/// assert!(report.is_repaired && !report.is_loss);
/// # drop(Store::open(&keys)?);
/// # onlyonce::Result::<()>::Ok(())
/// ```
///
/// The repair is durable when the call returns.
///
/// # Errors
/// `Locked` if a process has the store open; `Corrupt` if neither a manifest nor any segment's header is whole;
/// `Incompatible`; `StorageFull` if there is no space to write the whole records anew; `Io`, also if a directory has
/// the name of a file that the store prepares ahead. After `StorageFull`, and if such a directory is the cause, nothing
/// was changed.
///
/// # Cost
/// Reads everything. If records are lost, it reads everything a second time and writes every whole record, which needs
/// space in addition to the old records. Finally it reads the result as an open does, and only then reports the store
/// as repaired.
pub fn repair(dir: impl AsRef<Path>, accept: AcceptLoss) -> Result<RepairReport> {
    let dir = directory::absolute(dir.as_ref())?;
    crate::repair::run(directory::system(&dir)?, &dir, &StoreBuilder::default().sizes()?, accept)
}
