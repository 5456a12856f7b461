//! Sessions as locks of bytes, and connections as Unix sockets.
//!
//! Promises: a session is a lock of one byte of the file `sessions`, which belongs to an open file description, so no
//! other use of the file by this process releases it, and the kernel does when the process is buried. Names are looked
//! up from the directory that is held open. Both names have the permissions of the directory, and belong to its owner.
//! In a forked child every descriptor is closed ([`fork`]), so a child keeps neither a session nor a connection of its
//! parent alive. Never: writes to `sessions` or removes it.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{Gid, Uid};

use super::{
    Accepted, Connection, Listener, Neighbours, Notifier, Readiness, ReadyTo, Received, SendResult,
    Session, Waitable,
};
use crate::limits::WAITING_CONNECTIONS_MAX;
use crate::storage::Standing;
use crate::storage::fork::{self, Descriptor};
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::types::SessionId;

const SESSIONS: &str = "sessions";
const SOCKET: &str = "socket";

/// The processes of this machine.
#[derive(Debug)]
pub(crate) struct OsNeighbours {
    dir: Arc<Directory>,
    /// The file of sessions, once it was needed: a description that never has a lock, and so sees those of all sessions.
    asking: Mutex<Option<Arc<KeptFd>>>,
}

impl OsNeighbours {
    /// Those at the directory `dir`, whose path is absolute.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        fork::register()?;
        let held = open_dir(dir)?;
        let identity = held.identity;
        let dir = Directory { path: dir.to_owned(), identity, held: Mutex::new(Arc::new(held)) };
        Ok(OsNeighbours { dir: Arc::new(dir), asking: Mutex::new(None) })
    }

    /// A description of the file of sessions that never has a lock. `None` if there is no such file, and so no session.
    fn asking(&self) -> io::Result<Option<Arc<KeptFd>>> {
        let mut asking = self.asking.lock();
        let is_usable = asking.as_ref().is_some_and(|asking| asking.is_own());
        if !is_usable {
            *asking = match self.dir.open_sessions(OFlags::RDONLY, 0) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                opened => Some(Arc::new(opened?)),
            };
        }
        Ok(asking.clone())
    }
}

impl Neighbours for OsNeighbours {
    fn standing(&self) -> io::Result<Standing> {
        let dir = compare(self.dir.identity, rustix::fs::stat(&self.dir.path))?;
        let asking = self.asking()?;
        match asking.filter(|_| dir == Standing::Here) {
            Some(asking) => compare(asking.identity, self.dir.stat(SESSIONS)),
            None => Ok(dir),
        }
    }

    fn may_host(&self) -> io::Result<bool> {
        let user = rustix::process::geteuid();
        Ok(user.is_root() || user == self.dir.owner()?.0)
    }

    fn begin(&self, id: SessionId) -> io::Result<Option<Box<dyn Session>>> {
        let file = match self.dir.open_sessions(OFlags::RDWR, id.get()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.may_host()? => {
                self.dir.make_sessions()?;
                self.dir.open_sessions(OFlags::RDWR, id.get())?
            }
            opened => opened?,
        };
        if !fork::lock_byte(file.fd()?, id.get())? {
            return Ok(None);
        }
        Ok(Some(Box::new(OsSession { dir: Arc::clone(&self.dir), id, file })))
    }

    fn lives(&self, id: SessionId) -> io::Result<bool> {
        let Some(asking) = self.asking()? else { return Ok(false) };
        let number = id.get();
        Ok(fork::locked_bytes(asking.fd()?, number..number + 1)?.is_some())
    }

    fn living(&self) -> io::Result<Vec<SessionId>> {
        let Some(asking) = self.asking()? else { return Ok(Vec::new()) };
        let all = 1..SessionId::END;
        let (mut found, mut left) = (Vec::new(), vec![all]);
        while let Some(range) = left.pop() {
            let Some(locked) = fork::locked_bytes(asking.fd()?, range.clone())? else { continue };
            // Another program's lock may be of more bytes.
            let number = locked.start.max(range.start);
            found.extend(SessionId::new(number));
            let parts = [range.start..number, locked.end.max(number + 1)..range.end];
            left.extend(parts.into_iter().filter(|part: &Range<u64>| !part.is_empty()));
        }
        Ok(found)
    }

    fn listen(&self) -> io::Result<Box<dyn Listener>> {
        if !self.may_host()? {
            return Err(Errno::PERM.into());
        }
        let mode = self.dir.mode()?;
        if mode.intersects(Mode::WGRP | Mode::WOTH) && self.asking()?.is_none() {
            self.dir.make_sessions()?;
        }
        let socket = KeptFd::new(Descriptor::alone(make_socket)?)?;
        // The name has it from its first moment on, as far as the process's umask allows.
        rustix::fs::fchmod(socket.fd()?, mode)?;
        self.dir.remove_socket(None)?;
        rustix::net::bind(socket.fd()?, &self.dir.address()?)?;
        let name = self.dir.settle_socket(mode)?;
        // From here on it can be connected to.
        rustix::net::listen(socket.fd()?, WAITING_CONNECTIONS_MAX)?;
        Ok(Box::new(OsListener { dir: Arc::clone(&self.dir), socket, name }))
    }

    fn connect(&self) -> io::Result<Option<Box<dyn Connection>>> {
        let socket = KeptFd::new(Descriptor::alone(make_socket)?)?;
        let address = self.dir.address()?;
        match rustix::io::retry_on_intr(|| rustix::net::connect(socket.fd()?, &address)) {
            // `AGAIN`: too many connections wait to be accepted.
            Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) => Ok(None),
            connected => {
                connected?;
                Ok(Some(Box::new(OsConnection(socket))))
            }
        }
    }

    fn notifier(&self) -> io::Result<Arc<dyn Notifier>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let counter = Descriptor::new(rustix::event::eventfd(0, flags)?)?;
        Ok(Arc::new(OsNotifier(KeptFd::new(counter)?)))
    }
}

/// A directory that is held open.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    identity: FileIdentity,
    held: Mutex<Arc<KeptFd>>,
}

impl Directory {
    /// The open directory. Opened again if the program closed it, unless another one is at its path.
    fn held(&self) -> rustix::io::Result<Arc<KeptFd>> {
        let mut held = self.held.lock();
        if !held.is_own() {
            let again =
                open_dir(&self.path).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
            if again.identity != self.identity {
                return Err(Errno::NOENT);
            }
            *held = Arc::new(again);
        }
        Ok(Arc::clone(&held))
    }

    fn own_stat(&self) -> rustix::io::Result<Stat> {
        rustix::fs::fstat(self.held()?.fd()?)
    }

    fn stat(&self, name: &str) -> rustix::io::Result<Stat> {
        rustix::fs::statat(self.held()?.fd()?, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn owner(&self) -> rustix::io::Result<(Uid, Gid)> {
        let stat = self.own_stat()?;
        Ok((Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)))
    }

    /// The permissions of the names in it: those that may change the directory may read and write.
    fn mode(&self) -> rustix::io::Result<Mode> {
        let dir = Mode::from_raw_mode(self.own_stat()?.st_mode);
        let mut mode = Mode::RUSR | Mode::WUSR;
        mode.set(Mode::RGRP | Mode::WGRP, dir.contains(Mode::WGRP | Mode::XGRP));
        mode.set(Mode::ROTH | Mode::WOTH, dir.contains(Mode::WOTH | Mode::XOTH));
        Ok(mode)
    }

    /// To whom a name that this process made is given: root's belong to the directory's owner.
    fn heir(&self) -> rustix::io::Result<Option<(Uid, Gid)>> {
        let (owner, group) = self.owner()?;
        let is_visit = rustix::process::geteuid().is_root() && !owner.is_root();
        Ok(is_visit.then_some((owner, group)))
    }

    /// Opens the file of sessions for one of them, or to ask (0).
    fn open_sessions(&self, access: OFlags, number: u64) -> io::Result<KeptFd> {
        // A link, a pipe or a device in its place must be an error.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let dir = self.held()?;
        let file = KeptFd::new(Descriptor::alone(|| {
            let open = || rustix::fs::openat(dir.fd()?, SESSIONS, flags, Mode::empty());
            Ok(rustix::io::retry_on_intr(open)?)
        })?)?;
        let stat = rustix::fs::fstat(file.fd()?)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        file.mark(number)
    }

    /// Makes the empty file, unless another process is faster. A process that is killed here leaves a file that the
    /// owner can use, or that only root can.
    fn make_sessions(&self) -> rustix::io::Result<()> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let (dir, mode, heir) = (self.held()?, self.mode()?, self.heir()?);
        let make = || rustix::fs::openat(dir.fd()?, SESSIONS, flags, mode);
        let file = match rustix::io::retry_on_intr(make) {
            Err(Errno::EXIST) => return Ok(()),
            made => made?,
        };
        let settle = || {
            rustix::fs::fchmod(&file, mode)?;
            heir.map_or(Ok(()), |(owner, group)| {
                rustix::fs::fchown(&file, Some(owner), Some(group))
            })
        };
        settle().inspect_err(|_| {
            let _ = dir.fd().map(|dir| rustix::fs::unlinkat(dir, SESSIONS, AtFlags::empty()));
        })
    }

    /// The address of the socket. It leads through the descriptor of the directory, because a path may be longer than an
    /// address and may lead elsewhere by now. Where there is no `/proc`, only a short path is an address.
    fn address(&self) -> io::Result<SocketAddrUnix> {
        let held = self.held()?;
        let through = format!("/proc/self/fd/{}", held.fd()?.as_raw_fd());
        let is_it = |stat: Stat| FileIdentity::of(&stat) == self.identity;
        if rustix::fs::stat(&through).is_ok_and(is_it) {
            return Ok(SocketAddrUnix::new(Path::new(&through).join(SOCKET))?);
        }
        match compare(self.identity, rustix::fs::stat(&self.path))? {
            Standing::Here => Ok(SocketAddrUnix::new(self.path.join(SOCKET))?),
            _ => Err(Errno::NOENT.into()),
        }
    }

    /// Removes the socket's name, if it is that of a socket: of this one, if one is given.
    fn remove_socket(&self, only: Option<FileIdentity>) -> io::Result<()> {
        let stat = match self.stat(SOCKET) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat?,
        };
        if only.is_some_and(|only| only != FileIdentity::of(&stat)) {
            return Ok(());
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket"));
        }
        match rustix::fs::unlinkat(self.held()?.fd()?, SOCKET, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Gives the socket that was just bound its permissions and its owner. Through a descriptor of the name, which is
    /// looked at first: whoever may change the directory may have put a link to another file there.
    fn settle_socket(&self, mode: Mode) -> io::Result<FileIdentity> {
        let (dir, heir) = (self.held()?, self.heir()?);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = rustix::fs::openat(dir.fd()?, SOCKET, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&name)?;
        let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        if !is_socket || stat.st_nlink != 1 || stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the socket just made"));
        }
        if !Mode::from_raw_mode(stat.st_mode).contains(mode) {
            rustix::fs::chmod(format!("/proc/self/fd/{}", name.as_raw_fd()), mode)?;
        }
        if let Some((owner, group)) = heir {
            rustix::fs::chownat(&name, "", Some(owner), Some(group), AtFlags::EMPTY_PATH)?;
        }
        Ok(FileIdentity::of(&stat))
    }
}

fn open_dir(dir: &Path) -> io::Result<KeptFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || rustix::fs::open(dir, flags, Mode::empty());
    KeptFd::new(Descriptor::new(rustix::io::retry_on_intr(open)?)?)
}

fn make_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Whether what was held is what was found at its name now.
fn compare(held: FileIdentity, now: rustix::io::Result<Stat>) -> io::Result<Standing> {
    match now {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Standing::Gone),
        now if FileIdentity::of(&now?) == held => Ok(Standing::Here),
        _ => Ok(Standing::Another),
    }
}

/// What tells two files apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    fn of(stat: &Stat) -> Self {
        FileIdentity { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// A descriptor that knows what it was opened for: a program that closes all descriptors it doesn't know may have opened
/// another file under the number, which must not be closed with this.
#[derive(Debug)]
struct KeptFd {
    /// Taken when it is dropped.
    descriptor: Option<Descriptor>,
    identity: FileIdentity,
    /// The position in the file, which nobody reads: tells two openings of the same file apart.
    mark: Option<u64>,
    /// It was found closed. From then on nothing makes it this again: the number may be that of another opening, even of
    /// the same file.
    is_gone: AtomicBool,
}

impl KeptFd {
    fn new(descriptor: Descriptor) -> io::Result<Self> {
        let identity = FileIdentity::of(&rustix::fs::fstat(descriptor.fd()?)?);
        let is_gone = AtomicBool::new(false);
        Ok(KeptFd { descriptor: Some(descriptor), identity, mark: None, is_gone })
    }

    /// Marks it by the number of a session: by as much of it as is a position on every file system.
    fn mark(mut self, number: u64) -> io::Result<Self> {
        let mark = number % (1 << 31);
        rustix::fs::seek(self.fd()?, SeekFrom::Start(mark))?;
        self.mark = Some(mark);
        Ok(self)
    }

    fn fd(&self) -> rustix::io::Result<BorrowedFd<'_>> {
        let own = self.descriptor.as_ref().filter(|_| !self.is_gone.load(Ordering::Relaxed));
        own.and_then(|descriptor| descriptor.fd().ok()).ok_or(Errno::BADF)
    }

    /// Whether the number is still that of the opening it was made for.
    fn is_own(&self) -> bool {
        let look = || {
            let fd = self.fd()?;
            let is_file = FileIdentity::of(&rustix::fs::fstat(fd)?) == self.identity;
            Ok::<bool, Errno>(match self.mark {
                Some(mark) if is_file => rustix::fs::tell(fd)? == mark,
                _ => is_file,
            })
        };
        let is_own = look().unwrap_or(false);
        self.is_gone.store(!is_own, Ordering::Relaxed);
        is_own
    }

    /// The descriptor, for calls that would do harm to a stranger's file.
    fn own(&self) -> rustix::io::Result<BorrowedFd<'_>> {
        if self.is_own() { self.fd() } else { Err(Errno::BADF) }
    }

    fn readiness(&self) -> Readiness<'_> {
        self.fd().map_or(Readiness::Known(ReadyTo { receive: true, send: true }), Readiness::Of)
    }

    /// Ends a socket, and all copies of it. `false` if it is not this one's any more.
    fn shut_down(&self) -> bool {
        let is_own = self.is_own();
        if is_own {
            let _ = self.fd().map(|socket| rustix::net::shutdown(socket, Shutdown::Both));
        }
        is_own
    }
}

impl Drop for KeptFd {
    fn drop(&mut self) {
        let is_own = self.is_own();
        if let Some(descriptor) = self.descriptor.take().filter(|_| !is_own) {
            descriptor.abandon();
        }
    }
}

#[derive(Debug)]
struct OsSession {
    dir: Arc<Directory>,
    id: SessionId,
    file: KeptFd,
}

impl Session for OsSession {
    fn id(&self) -> SessionId {
        self.id
    }

    fn live_on(&mut self) -> io::Result<bool> {
        let is_seen = compare(self.file.identity, self.dir.stat(SESSIONS))? == Standing::Here;
        if !is_seen {
            return Ok(false);
        }
        if !self.file.is_own() {
            let again = self.dir.open_sessions(OFlags::RDWR, self.id.get())?;
            if again.identity != self.file.identity {
                return Ok(false);
            }
            self.file = again;
        }
        fork::lock_byte(self.file.fd()?, self.id.get())
    }
}

impl Drop for OsSession {
    fn drop(&mut self) {
        // Explicitly: a child that is being forked has a copy of the descriptor, until it closes it.
        if self.file.is_own() {
            let _ = self.file.fd().map(|file| fork::unlock_byte(file, self.id.get()));
        }
    }
}

#[derive(Debug)]
struct OsListener {
    dir: Arc<Directory>,
    socket: KeptFd,
    /// The socket's name.
    name: FileIdentity,
}

impl Waitable for OsListener {
    fn readiness(&self) -> Readiness<'_> {
        self.socket.readiness()
    }
}

impl Listener for OsListener {
    fn accept(&self) -> io::Result<Accepted> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = || Ok(rustix::net::accept_with(self.socket.own()?, flags)?);
        // A forked child may have a copy of a connection, which must not wait for that.
        let end = |socket: BorrowedFd<'_>| {
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        };
        loop {
            let failed = match Descriptor::alone_after(accept, end).and_then(KeptFd::new) {
                Ok(socket) => return Ok(Accepted::Guest(Box::new(OsConnection(socket)))),
                Err(failed) => failed,
            };
            return match Errno::from_io_error(&failed) {
                Some(Errno::AGAIN) => Ok(Accepted::Nobody),
                Some(Errno::INTR | Errno::CONNABORTED) => continue,
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    Ok(Accepted::Scarce)
                }
                _ => Err(failed),
            };
        }
    }

    fn unlink(&self) -> io::Result<()> {
        self.dir.remove_socket(Some(self.name))
    }

    fn waitable(&self) -> &dyn Waitable {
        self
    }
}

impl Drop for OsListener {
    /// Nobody connects any more, and connections that wait end, even if a child that is being forked has a copy.
    fn drop(&mut self) {
        if self.socket.shut_down() {
            while let Ok(Accepted::Guest(_)) = self.accept() {}
        }
    }
}

#[derive(Debug)]
struct OsConnection(KeptFd);

impl Drop for OsConnection {
    /// The peer learns of the end, even if a child that is being forked has a copy.
    fn drop(&mut self) {
        self.0.shut_down();
    }
}

impl Waitable for OsConnection {
    fn readiness(&self) -> Readiness<'_> {
        self.0.readiness()
    }
}

impl Connection for OsConnection {
    fn send(&self, bytes: &[u8]) -> SendResult {
        debug_assert!(!bytes.is_empty());
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::io::retry_on_intr(|| rustix::net::send(self.0.own()?, bytes, flags)) {
            Ok(0) | Err(Errno::AGAIN) => SendResult::Full,
            Ok(sent) => SendResult::Bytes(sent),
            Err(_) => SendResult::Gone,
        }
    }

    fn receive(&self, buf: &mut [u8]) -> Received {
        debug_assert!(!buf.is_empty());
        loop {
            let fd = self.0.own();
            let received = fd.and_then(|fd| rustix::net::recv(fd, &mut *buf, RecvFlags::DONTWAIT));
            // The system reports a reset only once nothing is left to receive.
            return match received {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Received::Nothing,
                Ok((0, _)) | Err(_) => Received::End,
                Ok((received, _)) => Received::Bytes(received),
            };
        }
    }

    fn end(&self) {
        self.0.shut_down();
    }

    fn peer(&self) -> u32 {
        self.0.fd().map_err(io::Error::from).and_then(fork::peer_pid).unwrap_or(0)
    }

    fn waitable(&self) -> &dyn Waitable {
        self
    }
}

#[derive(Debug)]
struct OsNotifier(KeptFd);

impl Waitable for OsNotifier {
    fn readiness(&self) -> Readiness<'_> {
        self.0.readiness()
    }
}

impl Notifier for OsNotifier {
    fn notify(&self) {
        // More than 0 in either byte order. It fails only if the sum would be too large, and then it is ready.
        let _ = self.0.own().map(|fd| rustix::io::write(fd, &1_u64.to_le_bytes()));
    }

    fn clear(&self) {
        // It fails only if it isn't ready.
        let _ = self.0.own().map(|fd| rustix::io::read(fd, &mut [0; 8]));
    }

    fn waitable(&self) -> &dyn Waitable {
        self
    }
}
