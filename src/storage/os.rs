//! Real files.
//!
//! Promises: `sync_data` reaches the device: `fdatasync` on Linux, `F_FULLFSYNC` on macOS. Every `open` is an open file
//! of its own. Files are 0600, directories 0700, descriptors close on exec. The lock is the directory's own `flock`, so
//! no file is added to the data, and it ends with its process. Once directories are locked or held, paths below them are
//! looked up from their descriptors, and its names are synced through descriptors that are open already. Files that root
//! makes there belong to the directory's owner.
//! Never: retries (except an interrupted open), falls back, or opens a device, a pipe or a directory as a file.

#![expect(clippy::disallowed_methods, reason = "this is the storage seam")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::fork::{self, Descriptor};
use super::{Access, DirEntry, DirLock, File, Map, Standing, Storage, TakenDir, map};
use crate::sync::Mutex;

/// The file system of the machine.
#[derive(Clone, Default, Debug)]
pub(crate) struct OsStorage {
    held: Vec<Arc<HeldDir>>,
}

/// A directory that is locked, or only read, and those directly below it that were used: held open, so that neither a rename
/// of one of them nor a shortage of descriptors keeps the store from its files.
#[derive(Debug)]
struct HeldDir {
    path: PathBuf,
    dir: Arc<Descriptor>,
    below: Mutex<BTreeMap<OsString, Arc<Descriptor>>>,
    /// The owner of the directory, to whom root gives the files it makes: the owner must be able to open the store
    /// again.
    heir: Option<(Uid, Gid)>,
}

impl HeldDir {
    /// The directory of that name below this one.
    fn held(&self, name: &Path) -> io::Result<Arc<Descriptor>> {
        let mut below = self.below.lock();
        if let Some(dir) = below.get(name.as_os_str()) {
            return Ok(Arc::clone(dir));
        }
        let dir = Arc::new(Descriptor::new(open_dir(self.dir.fd()?, name)?)?);
        below.insert(name.as_os_str().to_owned(), Arc::clone(&dir));
        Ok(dir)
    }
}

/// Where the system looks a path up from.
enum From {
    /// The working directory, unless the path is absolute.
    Anywhere,
    Held(Arc<Descriptor>),
}

impl From {
    fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        match self {
            From::Anywhere => Ok(rustix::fs::CWD),
            From::Held(dir) => dir.fd(),
        }
    }
}

impl OsStorage {
    /// The held directory that `path` names or lies in, and the rest of the path. The innermost, if there are several.
    fn held_above<'p>(&self, path: &'p Path) -> Option<(&Arc<HeldDir>, &'p Path)> {
        let all = self.held.iter();
        let above = all.filter_map(|held| Some((held, path.strip_prefix(&held.path).ok()?)));
        above.min_by_key(|(_, rest)| rest.as_os_str().len())
    }

    /// The same storage, which leads into one more directory.
    fn rooted(&self, path: &Path, dir: Arc<Descriptor>) -> io::Result<Self> {
        let (below, heir) = (Mutex::new(BTreeMap::new()), heir_of(dir.fd()?)?);
        let mut storage = self.clone();
        storage.held.push(Arc::new(HeldDir { path: path.to_owned(), dir, below, heir }));
        Ok(storage)
    }

    /// Where to look `path` up from, and the rest of the path.
    fn at<'p>(&self, path: &'p Path) -> io::Result<(From, &'p Path)> {
        let Some((locked, path)) = self.held_above(path) else {
            return Ok((From::Anywhere, path));
        };
        let mut names = path.components();
        match (names.next(), names.as_path()) {
            (None, _) => Ok((From::Held(Arc::clone(&locked.dir)), Path::new("."))),
            (Some(dir), rest) if rest != Path::new("") => {
                Ok((From::Held(locked.held(dir.as_ref())?), rest))
            }
            _ => Ok((From::Held(Arc::clone(&locked.dir)), path)),
        }
    }

    /// The held descriptor of a directory, if it is the locked one or directly below it.
    fn held(&self, dir: &Path) -> io::Result<Option<Arc<Descriptor>>> {
        let Some((locked, name)) = self.held_above(dir) else { return Ok(None) };
        match name.components().count() {
            0 => Ok(Some(Arc::clone(&locked.dir))),
            1 => locked.held(name).map(Some),
            _ => Ok(None),
        }
    }
}

impl Storage for OsStorage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let (from, name) = self.at(path)?;
        rustix::fs::mkdirat(from.fd()?, name, Mode::RWXU)?;
        if let Some(heir) = self.heir(path) {
            let given = open_dir(from.fd()?, name).and_then(|dir| give(dir.as_fd(), heir));
            if given.is_err() {
                let _ = rustix::fs::unlinkat(from.fd()?, name, AtFlags::REMOVEDIR);
            }
            given?;
        }
        let is_in = |locked: &&Arc<HeldDir>| path.parent() == Some(&locked.path);
        if let Some(locked) = self.held.iter().find(is_in) {
            // The held one of that name is not the directory at that path now.
            locked.below.lock().remove(name.as_os_str());
        }
        Ok(())
    }

    fn lock_dir(&self, path: &Path) -> io::Result<TakenDir> {
        fork::register()?;
        let dir = Arc::new(Descriptor::alone(|| open_dir(rustix::fs::CWD, path))?);
        rustix::fs::flock(dir.fd()?, FlockOperation::NonBlockingLockExclusive)?;
        let lock = OsDirLock { dir: Arc::clone(&dir) };
        Ok(TakenDir { lock: Box::new(lock), storage: Arc::new(self.rooted(path, dir)?) })
    }

    fn hold_dir(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        fork::register()?;
        let dir = Arc::new(Descriptor::new(open_dir(rustix::fs::CWD, path)?)?);
        Ok(Arc::new(self.rooted(path, dir)?))
    }

    fn is_locked(&self, dir: &Path) -> io::Result<bool> {
        let (from, name) = self.at(dir)?;
        // An open file of its own: through the one that has the lock this would give the lock away.
        let dir = Descriptor::alone(|| open_dir(from.fd()?, name))?;
        match rustix::fs::flock(dir.fd()?, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Ok(true),
            taken => Ok(taken.map(|()| false)?),
        }
    }

    fn standing(&self, dir: &Path) -> io::Result<Standing> {
        let Some((locked, name)) = self.held_above(dir) else { return Ok(Standing::Here) };
        let (held, now) = if dir == locked.path {
            (Some(Arc::clone(&locked.dir)), rustix::fs::stat(dir))
        } else {
            let held = locked.below.lock().get(name.as_os_str()).cloned();
            (held, rustix::fs::statat(locked.dir.fd()?, name, AtFlags::empty()))
        };
        let Some(held) = held else { return Ok(Standing::Here) };
        let now = match now {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Standing::Gone),
            now => now?,
        };
        let held = rustix::fs::fstat(held.fd()?)?;
        let is_same = (held.st_dev, held.st_ino) == (now.st_dev, now.st_ino);
        Ok(if is_same { Standing::Here } else { Standing::Another })
    }

    fn lock_holder(&self, dir: &Path) -> Option<u32> {
        lock_holder(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = self.open_at(path, flags)?;
        if let Some(heir) = self.heir(path) {
            give(file.as_fd(), heir).inspect_err(|_| {
                let _ = self.remove(path);
            })?;
        }
        Ok(Arc::new(OsFile(Descriptor::new(file)?)))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>> {
        let access = if access == Access::Read { OFlags::RDONLY } else { OFlags::RDWR };
        // A pipe in place of a segment must be an error, not a wait for its other end.
        let file = Descriptor::new(self.open_at(path, access | OFlags::NONBLOCK)?)?;
        let kind = file.file()?.metadata()?.file_type();
        if kind.is_dir() {
            return Err(Errno::ISDIR.into());
        }
        if !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(OsFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_dir, from), (to_dir, to)) = (self.at(from)?, self.at(to)?);
        Ok(rustix::fs::renameat(from_dir.fd()?, from, to_dir.fd()?, to)?)
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        let ((a_dir, a), (b_dir, b)) = (self.at(a)?, self.at(b)?);
        exchange(a_dir.fd()?, a, b_dir.fd()?, b)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let heir = self.heir(to);
        let ((from_dir, from), (to_dir, to)) = (self.at(from)?, self.at(to)?);
        if let Some((owner, _)) = heir {
            let stat = rustix::fs::statat(from_dir.fd()?, from, AtFlags::empty())?;
            if Uid::from_raw(stat.st_uid) != owner {
                return Err(Errno::PERM.into());
            }
        }
        // A symbolic link would lead elsewhere from there.
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(from_dir.fd()?, from, to_dir.fd()?, to, follow)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (from, name) = self.at(path)?;
        Ok(rustix::fs::unlinkat(from.fd()?, name, AtFlags::empty())?)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let (from, name) = self.at(dir)?;
        let mut entries = list(open_dir(from.fd()?, name)?)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if let Some(held) = self.held(dir)? {
            return sync_dir(held.fd()?);
        }
        let (from, name) = self.at(dir)?;
        sync_dir(open_dir(from.fd()?, name)?.as_fd())
    }

    fn files_max(&self) -> Option<u64> {
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current
    }

    fn network_fs(&self, dir: &Path) -> io::Result<Option<&'static str>> {
        let (from, name) = self.at(dir)?;
        network_fs(open_dir(from.fd()?, name)?.as_fd())
    }
}

impl OsStorage {
    /// To whom what is made at `path` is given.
    fn heir(&self, path: &Path) -> Option<(Uid, Gid)> {
        self.held_above(path).and_then(|(locked, _)| locked.heir)
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let (from, name) = self.at(path)?;
        let (flags, mode) = (flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        let from = from.fd()?;
        Ok(rustix::io::retry_on_intr(|| rustix::fs::openat(from, name, flags, mode))?)
    }
}

fn open_dir(from: BorrowedFd<'_>, dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::io::retry_on_intr(|| rustix::fs::openat(from, dir, flags, Mode::empty()))?)
}

/// The owner of a directory that root uses and another user owns.
fn heir_of(dir: BorrowedFd<'_>) -> io::Result<Option<(Uid, Gid)>> {
    let stat = rustix::fs::fstat(dir)?;
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let is_visit = rustix::process::geteuid().is_root() && !owner.is_root();
    Ok(is_visit.then_some((owner, group)))
}

/// Durable on return: a file that root owns after a power loss would lock its owner out for good.
fn give(fd: BorrowedFd<'_>, (owner, group): (Uid, Gid)) -> io::Result<()> {
    rustix::fs::fchown(fd, Some(owner), Some(group))?;
    Ok(rustix::io::retry_on_intr(|| rustix::fs::fsync(fd))?)
}

fn sync_dir(dir: BorrowedFd<'_>) -> io::Result<()> {
    // On macOS the one that reaches the device, as std's `sync_all` has it.
    #[cfg(target_vendor = "apple")]
    return Ok(rustix::fs::fcntl_fullfsync(dir)?);
    #[cfg(not(target_vendor = "apple"))]
    Ok(rustix::io::retry_on_intr(|| rustix::fs::fsync(dir))?)
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(a_dir: BorrowedFd<'_>, a: &Path, b_dir: BorrowedFd<'_>, b: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(a_dir, a, b_dir, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_: BorrowedFd<'_>, _: &Path, _: BorrowedFd<'_>, _: &Path) -> io::Result<()> {
    Err(Errno::NOSYS.into())
}

/// A name that isn't UTF-8 is not one of the store's; it is listed so that it can be reported.
fn list(dir: OwnedFd) -> io::Result<Vec<DirEntry>> {
    let (mut dir, mut entries) = (rustix::fs::Dir::new(dir)?, Vec::new());
    while let Some(entry) = dir.read() {
        let entry = entry?;
        let name = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
        if name == Path::new(".") || name == Path::new("..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Symlink | FileType::Unknown => kind_of(dir.fd()?, name)?,
            kind => Some(kind),
        };
        let name = name.to_string_lossy().into_owned();
        entries.push(DirEntry { name, is_file: kind == Some(FileType::RegularFile) });
    }
    Ok(entries)
}

/// What a name resolves to; `None` for a link that leads nowhere.
fn kind_of(dir: BorrowedFd<'_>, name: &Path) -> io::Result<Option<FileType>> {
    let of = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode);
    match rustix::fs::statat(dir, name, AtFlags::empty()) {
        Ok(stat) => Ok(Some(of(stat))),
        Err(_) => {
            let link = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(Some(of(link)).filter(|kind| *kind != FileType::Symlink))
        }
    }
}

#[derive(Debug)]
struct OsDirLock {
    dir: Arc<Descriptor>,
}

impl DirLock for OsDirLock {}

impl Drop for OsDirLock {
    /// The lock belongs to the open file, which the storage still uses, so it is released explicitly. Not by a forked
    /// child, which has no such file.
    fn drop(&mut self) {
        if let Ok(dir) = self.dir.fd() {
            // Closing the last descriptor releases it as well, and a drop can't report an error.
            let _ = rustix::fs::flock(dir, FlockOperation::Unlock);
        }
    }
}

#[derive(Debug)]
struct OsFile(Descriptor);

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.file()?.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.file()?.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.0.file()?.write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.file()?.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.file()?.set_len(len)
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn Map>> {
        map::map_file(self.0.file()?, len)
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn lock_holder(dir: &Path) -> Option<u32> {
    let stat = rustix::fs::stat(dir).ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    find_holder(
        &fs::read_to_string("/proc/locks").ok()?,
        &format!("{major:02x}:{minor:02x}:{}", stat.st_ino),
    )
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn lock_holder(_dir: &Path) -> Option<u32> {
    None
}

/// Lines read `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1053 0 EOF`; a waiter's has `->` after the number, and that of a shared
/// lock `READ`. A holder outside our process namespace is shown as 0.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn find_holder(locks: &str, place: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let flock = words.next() == Some("FLOCK");
        let is_exclusive = words.nth(1)? == "WRITE";
        let pid = words.next()?.parse().ok().filter(|pid| *pid != 0)?;
        (flock && is_exclusive && words.next() == Some(place)).then_some(pid)
    })
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn network_fs(dir: BorrowedFd<'_>) -> io::Result<Option<&'static str>> {
    // The field's type differs between architectures; the magic numbers have 32 bits on all of them.
    let magic = rustix::fs::fstatfs(dir)?.f_type as u32;
    Ok(network_name(magic))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn network_fs(_dir: BorrowedFd<'_>) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// From `linux/magic.h` and the file systems' own headers.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn network_name(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x0000_6969 => "NFS",
        0xff53_4d42 => "CIFS",
        0xfe53_4d42 => "SMB2",
        0x0000_517b => "SMB",
        0x6573_5546 => "FUSE",
        0x0102_1997 => "9p",
        0x00c3_6400 => "Ceph",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x0116_1970 => "GFS2",
        0x7461_636f => "OCFS2",
        0x2003_0528 => "OrangeFS",
        0x786f_4256 => "vboxsf",
        0xbacb_acbc => "vmhgfs",
        0x0000_564c => "NCP",
        0x1983_0326 => "BeeGFS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    const OS: OsStorage = OsStorage { held: Vec::new() };

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn files_and_directories_are_private_to_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let (sub, file) = (dir.path().join("sub"), dir.path().join("sub/file"));
        OS.create_dir(&sub).unwrap();
        OS.create(&file).unwrap();
        assert_eq!((mode(&sub) & 0o077, mode(&file) & 0o177), (0, 0));
        assert_eq!(OS.create(&file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(OS.create_dir(&sub).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn descriptors_close_on_exec() {
        let dir = tempfile::tempdir().unwrap();
        let closes = |fd: &dyn std::os::fd::AsFd| {
            rustix::io::fcntl_getfd(fd.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
        };
        assert!(closes(&open_dir(rustix::fs::CWD, dir.path()).unwrap()));
        let before = open_descriptors();
        let lock = OS.lock_dir(dir.path()).unwrap();
        let file = OS.create(&dir.path().join("a")).unwrap();
        let again = OS.open(&dir.path().join("a"), Access::Read).unwrap();
        for fd in open_descriptors().into_iter().filter(|fd| !before.contains(fd)) {
            // Another test may have closed its own meanwhile.
            let flags = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
            let flags =
                flags.lines().find_map(|line| line.strip_prefix("flags:\t")).map(str::to_owned);
            let flags = flags.and_then(|flags| i32::from_str_radix(&flags, 8).ok());
            assert!(flags.is_none_or(|flags| flags & libc::O_CLOEXEC != 0), "{fd}");
        }
        drop((lock, file, again));
    }

    fn open_descriptors() -> Vec<String> {
        let Ok(all) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
        all.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    #[test]
    fn only_regular_files_open_and_no_open_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, link, device) =
            (dir.path().join("pipe"), dir.path().join("link"), Path::new("/dev/null"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.is_ok_and(|status| status.success()));
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for access in [Access::Read, Access::ReadWrite] {
            let kind = |path: &Path| OS.open(path, access).unwrap_err().kind();
            assert_eq!(kind(dir.path()), io::ErrorKind::IsADirectory);
            assert_eq!(kind(&pipe), io::ErrorKind::InvalidInput);
            assert_eq!(kind(device), io::ErrorKind::InvalidInput);
            assert_eq!(kind(&link), io::ErrorKind::NotFound);
        }
        let entries = OS.list(dir.path()).unwrap();
        let expected =
            ["link", "pipe"].map(|name| DirEntry { name: name.to_owned(), is_file: false });
        assert_eq!(entries, expected);
    }

    #[test]
    fn a_directory_is_locked_once_and_without_a_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(OS.lock_holder(dir.path()), None);
        let held = OS.hold_dir(dir.path()).unwrap();
        assert!(!OS.is_locked(dir.path()).unwrap() && !held.is_locked(dir.path()).unwrap());
        let lock = OS.lock_dir(dir.path()).unwrap();
        for storage in [&OS as &dyn Storage, &*held, &*lock.storage] {
            assert!(storage.is_locked(dir.path()).unwrap());
        }
        // None of these gave it away.
        assert_eq!(OS.lock_dir(dir.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        if cfg!(target_os = "linux") {
            assert_eq!(OS.lock_holder(dir.path()), Some(std::process::id()));
        }
        drop(lock);
        assert_eq!(OS.lock_holder(dir.path()), None);
        OS.lock_dir(dir.path()).unwrap();
        assert_eq!(OS.list(dir.path()).unwrap(), []);
        assert!(OS.lock_dir(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_link_leads_from_one_locked_directory_into_another_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let make = |name: &str| {
            OS.create_dir(&path(name)).unwrap();
            OS.create_dir(&path(name).join("log")).unwrap();
        };
        make("a");
        make("b");
        let first = OS.lock_dir(&path("a")).unwrap();
        let both = first.storage.lock_dir(&path("b")).unwrap();
        let (from, to) = (path("a/log/x"), path("b/log/y"));
        both.storage.create(&from).unwrap().write_at(b"12", 0).unwrap();
        for (name, moved) in [("a", "c"), ("b", "d")] {
            fs::rename(path(name), path(moved)).unwrap();
            make(name);
            assert_eq!(both.storage.standing(&path(name)).unwrap(), Standing::Another);
        }
        both.storage.link(&from, &to).unwrap();
        assert_eq!(fs::read(path("d/log/y")).unwrap(), b"12");
        assert!(!from.exists() && !to.exists());
        let again = both.storage.link(&from, &to).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert!(super::super::cannot_link(
            &both.storage.link(&path("a/log"), &path("b/dir")).unwrap_err()
        ));
        assert_eq!(OS.lock_dir(&path("c")).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(OS.lock_dir(&path("d")).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// The owner of the directory could not open the file.
    #[test]
    fn root_links_no_file_of_another_user_into_a_users_directory() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        OS.create_dir(&path("target")).unwrap();
        OS.create(&path("file")).unwrap();
        std::os::unix::fs::chown(path("target"), Some(12345), Some(12345)).unwrap();
        let target = OS.lock_dir(&path("target")).unwrap();
        let refused = target.storage.link(&path("file"), &path("target/file")).unwrap_err();
        assert!(super::super::cannot_link(&refused), "{refused}");
        std::os::unix::fs::chown(path("file"), Some(12345), Some(12345)).unwrap();
        target.storage.link(&path("file"), &path("target/file")).unwrap();
    }

    #[test]
    #[expect(unsafe_code, reason = "a real fork is what this is about")]
    fn a_drop_in_a_child_keeps_the_lock_and_the_owners_drop_releases_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = OS.lock_dir(dir.path()).unwrap();
        let (dropped, tell_dropped) = std::os::unix::net::UnixStream::pair().unwrap();
        let (end, tell_end) = std::os::unix::net::UnixStream::pair().unwrap();
        // SAFETY: the child makes system calls and frees one box; glibc renews in a child each lock of the allocator
        // that this takes.
        let child = fork::undisturbed(|| unsafe { libc::fork() });
        if child == 0 {
            drop(lock);
            let _ = (&tell_dropped).write(b"x");
            let _ = (&end).read(&mut [0; 1]);
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(0) };
        }
        (&dropped).read_exact(&mut [0; 1]).unwrap();
        let while_held = OS.lock_dir(dir.path()).map(drop).map_err(|e| e.kind());
        drop(lock);
        let after = OS.lock_dir(dir.path()).map(drop);
        (&tell_end).write_all(b"x").unwrap();
        // SAFETY: a null status is allowed.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        assert_eq!(while_held, Err(io::ErrorKind::WouldBlock));
        after.unwrap();
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn a_lock_holder_is_found_by_its_inode_alone() {
        let locks = "\
1: FLOCK  ADVISORY  WRITE 11 fe:00:1053 0 EOF
2: POSIX  ADVISORY  WRITE 12 fe:00:1054 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:00:1054 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 fe:00:1055 0 EOF
4: FLOCK  ADVISORY  WRITE 0 fe:00:1056 0 EOF
5: FLOCK
6: FLOCK  ADVISORY  WRITE -1 fe:00:1056 0 EOF
7: FLOCK  ADVISORY  READ 16 fe:00:1057 0 EOF
8: FLOCK  ADVISORY  WRITE 17 fe:00:1057 0 EOF
";
        for (place, holder) in [
            ("1053", Some(11)),
            ("1054", Some(13)),
            ("1055", None),
            ("1056", None),
            ("105", None),
            ("1057", Some(17)),
        ] {
            assert_eq!(find_holder(locks, &format!("fe:00:{place}")), holder, "{place}");
        }
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn network_file_systems_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(OS.network_fs(dir.path()).is_ok());
        assert!(OS.network_fs(&dir.path().join("none")).is_err());
        for (magic, name) in [
            (0x6969, Some("NFS")),
            (0x6573_5546, Some("FUSE")),
            (0xef53, None),
            (0x0102_1994, None),
        ] {
            assert_eq!(network_name(magic), name);
        }
    }
}
