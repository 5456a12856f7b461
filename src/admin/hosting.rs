//! Which process hosts a shared store: [`Hosting`].

use std::time::SystemTime;

use crate::backend::Embedded;

/// Which process hosts a store that is opened with [`shared`](crate::StoreBuilder::shared), and how many use it through that one.
///
/// The options of a whole store that count are those of the process that hosts it: the sizes of files, the limit of the disk space,
/// the memory of the index, the compression of results. Only [`result_bytes_max`](Hosting::result_bytes_max) is the greatest of all
/// openings.
///
/// ```
/// use onlyonce::Store;
///
/// # let dir = tempfile::tempdir().unwrap();
/// let open = || Store::builder().shared(true).open_or_create(dir.path());
/// let (first, second) = (open()?, open()?);
/// # if cfg!(target_os = "linux") {
/// let hosting = second.stats().hosting.unwrap();
/// assert_eq!((hosting.process, hosting.guests), (std::process::id(), 1));
/// assert!(!hosting.is_here && first.stats().hosting.unwrap().is_here);
/// # }
/// # drop(first);
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Hosting {
    /// The number of the process that hosts the store, in its own namespace of processes.
    pub process: u32,
    /// Whether this opening hosts the store.
    pub is_here: bool,
    /// Openings that use the store through the one that hosts it right now.
    pub guests: u64,
    /// The greatest length of a result, in bytes, that may be recorded while these openings last.
    pub result_bytes_max: u32,
    /// When the process that hosts the store was heard last, if it doesn't answer. The other figures are then those of that time, and
    /// no other is known.
    pub silent_since: Option<SystemTime>,
}

impl Hosting {
    /// Of a host that doesn't answer.
    pub(crate) fn silent(process: u32, result_bytes_max: u32, since: SystemTime) -> Self {
        let silent_since = Some(since);
        Hosting { process, is_here: false, guests: 0, result_bytes_max, silent_since }
    }

    /// Of a store in this process; `None`: it serves no guests.
    pub(crate) fn of(embedded: &Embedded) -> Option<Self> {
        let guests = embedded.guests()?;
        Some(Hosting {
            process: std::process::id(),
            is_here: true,
            guests: guests.joined,
            result_bytes_max: guests.result_bytes_max,
            silent_since: None,
        })
    }
}
