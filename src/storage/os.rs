//! Real files.
//!
//! Promises: `sync_data` reaches the device: `fdatasync` on Linux, `F_FULLFSYNC` on macOS. Every `open` is an
//! open file of its own. Files are 0600, directories 0700, descriptors close on exec. The lock is the
//! directory's own `flock`, so no file appears beside the data, and it ends with its process.
//! Never: retries (but for an interrupted open), falls back, or follows anything into a device, a pipe or a directory.

#![expect(clippy::disallowed_methods, reason = "this is the storage seam")]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::{Access, DirLock, Entry, File, Map, Storage, fork, map};

/// The file system of the machine.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct OsStorage;

impl Storage for OsStorage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DirLock>> {
        fork::register()?;
        let dir = open_dir(dir)?;
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(OsDirLock { dir, generation: fork::generation() }))
    }

    fn lock_holder(&self, dir: &Path) -> Option<u32> {
        lock_holder(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Arc::new(OsFile(file)))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(access == Access::ReadWrite)
            // A pipe in a segment's place must be an error, not a wait for its other end.
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(path)?;
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(io::Error::from(rustix::io::Errno::ISDIR));
        }
        if !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(OsFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        exchange(a, b)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = fs::read_dir(dir)?.map(entry).collect::<io::Result<Vec<_>>>()?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::from(open_dir(dir)?).sync_all()
    }

    fn network_fs(&self, dir: &Path) -> io::Result<Option<&'static str>> {
        network_fs(dir)
    }
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::io::retry_on_intr(|| rustix::fs::open(dir, flags, Mode::empty()))?)
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    Ok(rustix::fs::renameat_with(rustix::fs::CWD, a, rustix::fs::CWD, b, flags)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_a: &Path, _b: &Path) -> io::Result<()> {
    Err(rustix::io::Errno::NOSYS.into())
}

/// A name that isn't UTF-8 is none of ours; it is listed so that it can be reported.
fn entry(entry: io::Result<fs::DirEntry>) -> io::Result<Entry> {
    let entry = entry?;
    let mut kind = entry.file_type()?;
    if kind.is_symlink() {
        // One that leads nowhere stays what it is: no file.
        kind = fs::metadata(entry.path()).map_or(kind, |target| target.file_type());
    }
    Ok(Entry { name: entry.file_name().to_string_lossy().into_owned(), is_file: kind.is_file() })
}

#[derive(Debug)]
struct OsDirLock {
    dir: OwnedFd,
    generation: u32,
}

impl DirLock for OsDirLock {}

impl Drop for OsDirLock {
    /// The lock belongs to the open file, which a forked child shares. The owner lets go explicitly, or a child
    /// that happens to live would keep the lock; a child must not, or it would take the owner's lock away.
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            // Closing the last descriptor is the fallback, and there is nobody to tell.
            let _ = rustix::fs::flock(&self.dir, FlockOperation::Unlock);
        }
    }
}

#[derive(Debug)]
struct OsFile(fs::File);

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn Map>> {
        map::map_file(&self.0, len)
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

/// Lines read `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1053 0 EOF`; a waiter's has `->` after the number.
/// A holder outside our process namespace is shown as 0.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn find_holder(locks: &str, place: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let flock = words.next() == Some("FLOCK");
        let pid = words.nth(2)?.parse().ok().filter(|pid| *pid != 0)?;
        (flock && words.next() == Some(place)).then_some(pid)
    })
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn network_fs(dir: &Path) -> io::Result<Option<&'static str>> {
    // The field's type differs between architectures; the magic numbers have 32 bits on all of them.
    let magic = rustix::fs::statfs(dir)?.f_type as u32;
    Ok(network_name(magic))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn network_fs(_dir: &Path) -> io::Result<Option<&'static str>> {
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

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn files_and_directories_are_their_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (sub, file) = (dir.path().join("sub"), dir.path().join("sub/file"));
        OsStorage.create_dir(&sub).unwrap();
        OsStorage.create(&file).unwrap();
        assert_eq!((mode(&sub) & 0o077, mode(&file) & 0o177), (0, 0));
        assert_eq!(OsStorage.create(&file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(OsStorage.create_dir(&sub).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn descriptors_close_on_exec() {
        let dir = tempfile::tempdir().unwrap();
        let closes = |fd: &dyn std::os::fd::AsFd| {
            rustix::io::fcntl_getfd(fd.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
        };
        assert!(closes(&open_dir(dir.path()).unwrap()));
        let before = open_descriptors();
        let lock = OsStorage.lock_dir(dir.path()).unwrap();
        let file = OsStorage.create(&dir.path().join("a")).unwrap();
        let again = OsStorage.open(&dir.path().join("a"), Access::Read).unwrap();
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
    fn only_regular_files_open_and_nothing_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, link, device) =
            (dir.path().join("pipe"), dir.path().join("link"), Path::new("/dev/null"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.is_ok_and(|status| status.success()));
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for access in [Access::Read, Access::ReadWrite] {
            let kind = |path: &Path| OsStorage.open(path, access).unwrap_err().kind();
            assert_eq!(kind(dir.path()), io::ErrorKind::IsADirectory);
            assert_eq!(kind(&pipe), io::ErrorKind::InvalidInput);
            assert_eq!(kind(device), io::ErrorKind::InvalidInput);
            assert_eq!(kind(&link), io::ErrorKind::NotFound);
        }
        let entries = OsStorage.list(dir.path()).unwrap();
        let expected = ["link", "pipe"].map(|name| Entry { name: name.to_owned(), is_file: false });
        assert_eq!(entries, expected);
    }

    #[test]
    fn a_directory_is_locked_once_and_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(OsStorage.lock_holder(dir.path()), None);
        let lock = OsStorage.lock_dir(dir.path()).unwrap();
        assert_eq!(OsStorage.lock_dir(dir.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        if cfg!(target_os = "linux") {
            assert_eq!(OsStorage.lock_holder(dir.path()), Some(std::process::id()));
        }
        drop(lock);
        assert_eq!(OsStorage.lock_holder(dir.path()), None);
        OsStorage.lock_dir(dir.path()).unwrap();
        assert_eq!(OsStorage.list(dir.path()).unwrap(), []);
        assert!(OsStorage.lock_dir(&dir.path().join("none")).is_err());
    }

    #[test]
    #[expect(unsafe_code, reason = "a real fork is what this is about")]
    fn a_childs_drop_leaves_the_lock_and_the_owners_drop_ends_it_while_the_child_lives() {
        let dir = tempfile::tempdir().unwrap();
        let lock = OsStorage.lock_dir(dir.path()).unwrap();
        let (dropped, tell_dropped) = std::os::unix::net::UnixStream::pair().unwrap();
        let (end, tell_end) = std::os::unix::net::UnixStream::pair().unwrap();
        // SAFETY: the child makes system calls and frees one box; no lock of the allocator is at stake that glibc
        // does not renew in a child.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop(lock);
            let _ = (&tell_dropped).write(b"x");
            let _ = (&end).read(&mut [0; 1]);
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(0) };
        }
        (&dropped).read_exact(&mut [0; 1]).unwrap();
        let while_held = OsStorage.lock_dir(dir.path()).map(drop).map_err(|e| e.kind());
        drop(lock);
        let after = OsStorage.lock_dir(dir.path()).map(drop);
        (&tell_end).write_all(b"x").unwrap();
        // SAFETY: a null status is allowed.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        assert_eq!(while_held, Err(io::ErrorKind::WouldBlock));
        after.unwrap();
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn a_holder_is_found_by_its_place_alone() {
        let locks = "\
1: FLOCK  ADVISORY  WRITE 11 fe:00:1053 0 EOF
2: POSIX  ADVISORY  WRITE 12 fe:00:1054 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:00:1054 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 fe:00:1055 0 EOF
4: FLOCK  ADVISORY  WRITE 0 fe:00:1056 0 EOF
5: FLOCK
6: FLOCK  ADVISORY  WRITE -1 fe:00:1056 0 EOF
7: FLOCK  ADVISORY  WRITE 17 fe:00:1057 0 EOF
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
        assert!(OsStorage.network_fs(dir.path()).is_ok());
        assert!(OsStorage.network_fs(&dir.path().join("none")).is_err());
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
