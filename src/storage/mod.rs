//! The file seam: everything the store asks of a file system.
//!
//! Promises: nothing above this module touches a file but through [`Storage`] and [`File`], so a test can replace the
//! disk (`memory`), fail any call (`faulty`) and cut the power between any two. Never: retries, caches or interprets.
//! Each call documents what "durable" means for it.

#[cfg(any(test, feature = "testing"))]
pub(crate) mod faulty;
pub(crate) mod fork;
mod map;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod memory;
mod os;
pub(crate) mod overlay;

pub(crate) use os::OsStorage;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

/// A directory tree on some disk.
///
/// A created, renamed, exchanged or removed name is durable only after [`sync_dir`](Storage::sync_dir) of its
/// directory; a file's bytes and length only after [`sync_data`](File::sync_data).
pub(crate) trait Storage: Send + Sync + fmt::Debug {
    /// Creates one directory, readable by its owner only. `AlreadyExists` if something has the name.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes the exclusive lock of the directory itself, or fails with `WouldBlock` at once. What this storage has locked
    /// before stays locked, and the returned storage leads into it, too.
    fn lock_dir(&self, dir: &Path) -> io::Result<TakenDir>;

    /// Holds the directory open without its lock, to be read. The returned storage leads into it, whatever is at its path by
    /// then, as that of [`lock_dir`](Self::lock_dir) does.
    fn hold_dir(&self, dir: &Path) -> io::Result<Arc<dyn Storage>>;

    /// Whether a storage has the exclusive lock of the directory.
    ///
    /// Takes that lock shared for an instant, and only if nothing has it exclusively, because the system has no other call
    /// that tells. A [`lock_dir`](Self::lock_dir) in that instant fails, as if the directory were locked.
    fn is_locked(&self, dir: &Path) -> io::Result<bool>;

    /// Whether a directory is still the one at its path: one that is locked or held, or one directly below it that this
    /// storage has used. `Here` where nothing is.
    fn standing(&self, dir: &Path) -> io::Result<Standing>;

    /// The process that holds the lock of `dir`, as far as the system tells.
    fn lock_holder(&self, dir: &Path) -> Option<u32>;

    /// Creates a file for reading and writing (mode 0600). `AlreadyExists` if something has the name.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens an existing regular file. Each call gives an open file of its own, so that a write-back
    /// error is reported to each party that syncs. A directory is `IsADirectory`.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>>;

    /// Renames, replacing what is at `to`. Atomic for every observer, durable after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Exchanges two names: for every observer, and after a power loss too, both have changed or neither. Durable after
    /// `sync_dir`. A file system that doesn't support it answers with an error that [`cannot_exchange`] recognises, and
    /// does nothing.
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()>;

    /// Gives the file at `from` a second name, `to`. `AlreadyExists` if something has that name. Both names are the same
    /// file, so it is only for files that are never written again. Durable after `sync_dir`. [`cannot_link`] recognises
    /// the error of a file that can't have that name; nothing was done then.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name. Open files of it live on.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// How many files this process may have open, where that is limited.
    fn files_max(&self) -> Option<u64>;

    /// Whether `dir` lies on a file system without dependable locks and flushes (NFS, SMB, FUSE …):
    /// its name if so.
    fn network_fs(&self, dir: &Path) -> io::Result<Option<&'static str>>;
}

/// A directory that is locked.
#[derive(Debug)]
pub(crate) struct TakenDir {
    /// The lock is released when this is dropped, and by the end of the process.
    pub(crate) lock: Box<dyn DirLock>,
    /// Accepts the same paths. Those below the directory lead into the locked directory, whatever is at its path by
    /// then, so nothing of another store is ever created, renamed or removed.
    pub(crate) storage: Arc<dyn Storage>,
}

/// Whether a directory that is held open is still at its path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// It is at its path.
    Here,
    /// Nothing is at its path: it was moved or removed.
    Gone,
    /// Another directory, or a file, is at its path.
    Another,
}

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DirEntry {
    pub(crate) name: String,
    pub(crate) is_file: bool,
}

/// Held while a directory is locked; dropping it releases the lock.
pub(crate) trait DirLock: Send + Sync + fmt::Debug {}

/// One open file.
pub(crate) trait File: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Reads at most `buf.len()` bytes; 0 at or past the end. May be short or `Interrupted`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at most `buf.len()` bytes, growing the file as needed. May be short or `Interrupted`.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes every byte written before the call, and the file's length, durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts the file to `len` bytes; durable after `sync_data`.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Maps the first `len` bytes for reading; the file must not become shorter while the map lives.
    fn map(&self, len: u64) -> io::Result<Arc<dyn Map>>;
}

/// A read-only view of a file's bytes, as they are now.
pub(crate) trait Map: Send + Sync + fmt::Debug {
    /// The bytes of `[offset, offset + len)`, which must not change while they are borrowed:
    /// ask only for what is already written and never written again. `None` outside the map.
    fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]>;

    /// The same bytes, for as long as they are held: the map lives at least as long.
    fn hold(self: Arc<Self>, offset: u64, len: usize) -> Option<HeldBytes>;

    /// These bytes will be asked for, one after the other: a hint.
    fn read_ahead(&self, _offset: u64, _len: usize) {}
}

/// Bytes, and whatever they lie in.
pub(crate) type HeldBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A part of bytes that were read into memory, without a copy. `None` if they have no such part.
pub(crate) fn hold_read(bytes: &Arc<Vec<u8>>, offset: usize, len: usize) -> Option<HeldBytes> {
    bytes.get(offset..offset.checked_add(len)?)?;
    Some(Arc::new(ReadPart { bytes: Arc::clone(bytes), offset, len }))
}

struct ReadPart {
    bytes: Arc<Vec<u8>>,
    offset: usize,
    len: usize,
}

impl AsRef<[u8]> for ReadPart {
    fn as_ref(&self) -> &[u8] {
        // `hold_read` checked both lengths, and nothing changes the bytes.
        self.bytes.split_at(self.offset).1.split_at(self.len).0
    }
}

/// How a change of several steps failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Before anything was changed that counts: a later try may succeed.
    Before(crate::Error),
    /// A write, a sync or a switch of names failed: the state on disk is unknown, and nothing may be written any more.
    Poison(crate::Error),
}

impl Failure {
    /// Classifies a failure to prepare something that nothing refers to yet: a full disk is harmless, and so is a
    /// shortage of memory. A device that fails here will fail elsewhere.
    pub(crate) fn full_or_poison(
        e: io::Error,
        error: impl FnOnce(io::Error) -> crate::Error,
    ) -> Self {
        let is_full = crate::error::is_full(&e);
        if is_full { Failure::Before(error(e)) } else { Failure::scarce_or_poison(e, error) }
    }

    /// Classifies a failure of a step whose space was reserved beforehand, and before which nothing counts: a shortage
    /// of memory is harmless, and so is a directory that may not be changed. Neither has changed anything.
    pub(crate) fn scarce_or_poison(
        e: io::Error,
        error: impl FnOnce(io::Error) -> crate::Error,
    ) -> Self {
        let harmless = [Errno::NOMEM, Errno::ACCESS];
        let is_harmless = Errno::from_io_error(&e).is_some_and(|errno| harmless.contains(&errno));
        if is_harmless { Failure::Before(error(e)) } else { Failure::Poison(error(e)) }
    }
}

/// Whether an exchange was refused because the file system, or a sandbox around the process, doesn't support it. Then
/// nothing was done.
pub(crate) fn cannot_exchange(e: &io::Error) -> bool {
    // File systems say EINVAL, old kernels ENOSYS, macOS ENOTSUP, and filters of system calls EPERM.
    let refusals = [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::PERM];
    Errno::from_io_error(e).is_some_and(|errno| refusals.contains(&errno))
}

/// Whether a link was refused because the two names can't be of one file: they lie on different file systems, the file
/// system has no links or no more of them for this file, or the file would belong to another user than its directory.
pub(crate) fn cannot_link(e: &io::Error) -> bool {
    let refusals = [
        Errno::XDEV,
        Errno::MLINK,
        Errno::PERM,
        Errno::ACCESS,
        Errno::NOSYS,
        Errno::NOTSUP,
        Errno::OPNOTSUPP,
        Errno::INVAL,
    ];
    Errno::from_io_error(e).is_some_and(|errno| refusals.contains(&errno))
}

/// Writes all of `buf`, through short writes and interruptions.
pub(crate) fn write_all_at(file: &dyn File, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.write_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                let more = || io::Error::other("more bytes were written than there are");
                buf = buf.get(n..).ok_or_else(more)?;
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Fills as much of `buf` as the file has from `offset`; returns the number of bytes.
pub(crate) fn read_full_at(file: &dyn File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(n) if n > rest.len() => {
                return Err(io::Error::other("more bytes were read than fit"));
            }
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
