//! Closes the store's descriptors in a forked child, and lets the child notice that it is one.
//!
//! Promises: in a child made by `fork`, [`generation`] differs from what the parent saw, at the cost of one relaxed
//! load, and the child's copies of all descriptors that a [`Descriptor`] holds are closed before `fork` returns there.
//! So the directory is free when the parent ends, even if the child lives on, and the child may open the store anew. A
//! store remembers the generation it was opened in and does nothing in another; a `Descriptor` of another generation
//! gives no access to the file that has its number by then, and closes nothing when it is dropped.
//! Never: notices a child made without the C library's `fork`, by `clone` or `vfork` directly; for those that exec,
//! close-on-exec does the same. A descriptor that another thread is opening during the fork may stay open in the child:
//! no lock, see [`Descriptor::alone`].
//!
//! Also here are the two calls on descriptors for which no safe wrapper exists: locks of bytes, which belong to an open
//! file description as a `Descriptor` does, and the process at the other end of a socket.

#![expect(clippy::disallowed_types, reason = "a fork handler may touch nothing but plain atomics")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rustix::io::Errno;

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Forks that began, and those that ended: a fork is under way while they differ.
static BEGUN: AtomicU32 = AtomicU32::new(0);
static ENDED: AtomicU32 = AtomicU32::new(0);

/// The numbers of the descriptors that a child must close, a bit each. As many as a process may have on Linux, unless
/// its administrator raised the limit.
static KEPT: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
const WORDS: usize = (1 << 20) / 64;
/// How many words have ever had a bit: a child need not read the rest.
static WORDS_USED: AtomicUsize = AtomicUsize::new(0);

/// How many forks lie between this process and the first one that called [`register`].
#[cfg(not(shuttle))]
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

#[cfg(shuttle)]
shuttle::thread_local! {
    static FORKS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// The same under shuttle, which forks no process: a thread that [became](become_child) a child is one by itself.
#[cfg(shuttle)]
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed).wrapping_add(FORKS.with(std::cell::Cell::get))
}

/// Makes the calling thread a forked child, as far as the store can tell.
#[cfg(all(test, shuttle))]
pub(crate) fn become_child() {
    FORKS.with(|forks| forks.set(forks.get().wrapping_add(1)));
}

/// A descriptor of this process alone.
#[derive(Debug)]
pub(crate) struct Descriptor {
    /// Taken when it is dropped.
    file: Option<fs::File>,
    generation: u32,
}

impl Descriptor {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let (index, word, bit) = place(&fd).ok_or(Errno::MFILE)?;
        WORDS_USED.fetch_max(index + 1, Ordering::SeqCst);
        word.fetch_or(bit, Ordering::SeqCst);
        Ok(Descriptor { file: Some(fs::File::from(fd)), generation: generation() })
    }

    /// Opens a descriptor that no child has a copy of: a lock taken through it is released when it is closed. Opens it
    /// again if a fork happened in between, since the child would not know of the copy.
    pub(crate) fn alone(open: impl Fn() -> io::Result<OwnedFd>) -> io::Result<Self> {
        Descriptor::alone_after(open, |_| ())
    }

    /// The same, for what must be ended by more than a close, because a child may have a copy: `end` is called for each
    /// descriptor that isn't returned.
    pub(crate) fn alone_after(
        open: impl Fn() -> io::Result<OwnedFd>,
        end: impl Fn(BorrowedFd<'_>),
    ) -> io::Result<Self> {
        loop {
            let begun = BEGUN.load(Ordering::SeqCst);
            if ENDED.load(Ordering::SeqCst) != begun {
                crate::sync::yield_now();
                continue;
            }
            let descriptor = Descriptor::new(open()?)?;
            if BEGUN.load(Ordering::SeqCst) == begun {
                return Ok(descriptor);
            }
            end(descriptor.fd()?);
        }
    }

    /// Returns the open file. A forked child has none.
    pub(crate) fn file(&self) -> io::Result<&fs::File> {
        match &self.file {
            Some(file) if self.generation == generation() => Ok(file),
            _ => Err(Errno::BADF.into()),
        }
    }

    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.file().map(AsFd::as_fd)
    }

    /// Gives up the number without closing it: the program closed it, and it may be another file's by now.
    pub(crate) fn abandon(mut self) {
        let Some(file) = self.file.take() else { return };
        // A child's own descriptor may have the number by now.
        let is_own = self.generation == generation();
        if let Some((_, word, bit)) = place(&file).filter(|_| is_own) {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
        std::mem::forget(file);
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        if self.generation != generation() {
            // Its number may be another file's by now.
            std::mem::forget(file);
            return;
        }
        // First: once it is closed, its number may be reused.
        if let Some((_, word, bit)) = place(&file) {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }
}

/// The word that has a descriptor's bit, with its index, and the bit. `None` if the number exceeds what is tracked.
fn place(fd: &impl AsRawFd) -> Option<(usize, &'static AtomicU64, u64)> {
    let number = usize::try_from(fd.as_raw_fd()).ok()?;
    let index = number / 64;
    Some((index, KEPT.get(index)?, 1 << (number % 64)))
}

/// Takes the lock of one byte of a file for the open file description, so that closing another descriptor of the file
/// doesn't release it. `false` if another description has it. A lock that the description has is taken again.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) fn lock_byte(file: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    match byte_lock(file, libc::F_OFD_SETLK, libc::F_WRLCK, byte..byte.saturating_add(1)) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// Releases the lock of one byte, although a child that is being forked may still have a copy of the descriptor.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) fn unlock_byte(file: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    byte_lock(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte..byte.saturating_add(1)).map(drop)
}

/// One of the locks that other descriptions, in this process or another, have of bytes in this range: the bytes that it
/// is of. Not the first of them.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) fn locked_bytes(
    file: BorrowedFd<'_>,
    bytes: std::ops::Range<u64>,
) -> io::Result<Option<std::ops::Range<u64>>> {
    let found = byte_lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, bytes)?;
    if found.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(None);
    }
    let start = u64::try_from(found.l_start).map_err(io::Error::other)?;
    // 0 is to the end of all files.
    let len = u64::try_from(found.l_len).ok().filter(|len| *len > 0);
    Ok(Some(start..len.map_or(u64::MAX, |len| start.saturating_add(len))))
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[expect(unsafe_code, reason = "no safe wrapper of these locks exists")]
fn byte_lock(
    file: BorrowedFd<'_>,
    command: libc::c_int,
    kind: libc::c_int,
    bytes: std::ops::Range<u64>,
) -> io::Result<libc::flock> {
    let offset = |bytes| libc::off_t::try_from(bytes).map_err(|_| io::Error::from(Errno::INVAL));
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset(bytes.start)?,
        l_len: offset(bytes.end.saturating_sub(bytes.start))?,
        // Required.
        l_pid: 0,
    };
    // SAFETY: `file` is open while it is borrowed, and both commands take a pointer to one `flock`, which `lock` is
    // during the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock),
    }
}

/// The process that made the other end of a Unix socket; 0 if it is in another process namespace, which rustix's type
/// for it can't be.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[expect(unsafe_code, reason = "no safe wrapper that allows for 0 exists")]
pub(crate) fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `socket` is open while it is borrowed, and the option is written to `peer`, whose size is `len`, and which
    // may be any three numbers.
    let told = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    match told {
        0 => u32::try_from(peer.pid).map_err(io::Error::other),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Installs the handlers; further calls cost nothing. Fails only if memory is short, and may be tried again.
pub(crate) fn register() -> io::Result<()> {
    static REGISTERING: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    static IS_REGISTERED: AtomicBool = AtomicBool::new(false);
    if IS_REGISTERED.load(Ordering::SeqCst) {
        return Ok(());
    }
    let _registering = REGISTERING.lock();
    if !IS_REGISTERED.load(Ordering::SeqCst) {
        install()?;
        IS_REGISTERED.store(true, Ordering::SeqCst);
    }
    Ok(())
}

#[expect(unsafe_code, reason = "no safe wrapper of pthread_atfork exists")]
fn install() -> io::Result<()> {
    // SAFETY: the handlers live as long as the program, since they are functions of it, and do only what is allowed
    // between fork and exec in a threaded program: they use lock-free atomics, and close descriptors.
    match unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

extern "C" fn before() {
    BEGUN.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn in_parent() {
    ENDED.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn in_child() {
    // First: from here on no code uses a descriptor of the parent's.
    GENERATION.fetch_add(1, Ordering::SeqCst);
    for (index, word) in KEPT.iter().enumerate().take(WORDS_USED.load(Ordering::SeqCst)) {
        let mut bits = word.swap(0, Ordering::SeqCst);
        while bits != 0 {
            close(index * 64 + bits.trailing_zeros() as usize);
            bits &= bits - 1;
        }
    }
    // Threads that were forking too don't exist in the child.
    ENDED.store(BEGUN.load(Ordering::SeqCst), Ordering::SeqCst);
}

#[expect(unsafe_code, reason = "the numbers are known, and not their owners")]
fn close(number: usize) {
    if let Ok(number) = libc::c_int::try_from(number) {
        // SAFETY: a `Descriptor` of the parent owns the number, and since `GENERATION` has changed it neither gives
        // access to it in this process nor closes it. `close` may be called between fork and exec.
        let _ = unsafe { libc::close(number) };
    }
}

/// Runs `work` while no other test of this process forks, or has anything else run by this: a fork ends a connection
/// that is being accepted, for instance.
#[cfg(test)]
pub(crate) fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    // No lock of a library: a child inherits this one, and releases it, too.
    static IS_BUSY: AtomicBool = AtomicBool::new(false);
    while IS_BUSY.swap(true, Ordering::SeqCst) {
        crate::sync::yield_now();
    }
    let result = work();
    IS_BUSY.store(false, Ordering::SeqCst);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of `work` in a forked child.
    #[expect(unsafe_code, reason = "a real fork is what this is about")]
    fn in_a_child(work: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child makes system calls, and allocates, which glibc allows after a fork.
        let child = undisturbed(|| unsafe { libc::fork() });
        if child == 0 {
            let code = i32::from(!work());
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(code) };
        }
        assert!(child > 0);
        let mut status = -1;
        // SAFETY: `status` is a valid place for one int.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        status == 0
    }

    fn null() -> io::Result<OwnedFd> {
        Ok(fs::File::open("/dev/null")?.into())
    }

    #[test]
    fn a_child_sees_another_generation() {
        register().unwrap();
        register().unwrap();
        let before = generation();
        let knows = || generation() == before.wrapping_add(1);
        assert!(in_a_child(knows), "once per fork, however often registered");
        assert_eq!(generation(), before);
    }

    #[test]
    fn a_child_has_none_of_the_descriptors_and_closes_no_other_file() {
        register().unwrap();
        let kept = Descriptor::alone(null).unwrap();
        let other = fs::File::open("/dev/null").unwrap();
        let number = kept.file().unwrap().as_raw_fd();
        let is_open = |number: i32| fs::metadata(format!("/proc/self/fd/{number}")).is_ok();
        // Dropped in both processes.
        let kept = std::cell::Cell::new(Some(kept));
        let is_so = in_a_child(|| {
            let kept = kept.take().unwrap();
            let is_closed = kept.file().is_err() && !is_open(number);
            // The child's own descriptor, under the same number, outlives the parent's. Lower numbers may be free, too:
            // other tests had descriptors.
            let opens = std::iter::repeat_with(|| fs::File::open("/dev/null").unwrap());
            let _lower: Vec<_> =
                opens.take(1000).take_while(|own| own.as_raw_fd() < number).collect();
            let own = fs::File::open("/dev/null").unwrap();
            let is_reused = own.as_raw_fd() == number;
            drop(kept);
            let again = Descriptor::alone(null);
            is_closed
                && is_reused
                && own.metadata().is_ok()
                && again.is_ok_and(|d| d.file().is_ok())
        });
        assert!(is_so);
        assert!(other.metadata().is_ok() && is_open(number));
        drop(kept);
    }

    /// Otherwise a child would close the file that has that number by then.
    #[test]
    fn a_dropped_descriptor_is_not_closed_in_a_child() {
        register().unwrap();
        // In a child, where no other thread takes numbers.
        let is_so = in_a_child(|| {
            let Ok(dropped) = Descriptor::alone(null) else { return false };
            let number = dropped.file().map(AsRawFd::as_raw_fd).ok();
            drop(dropped);
            let Ok(other) = fs::File::open("/dev/null") else { return false };
            Some(other.as_raw_fd()) == number && in_a_child(|| other.metadata().is_ok())
        });
        assert!(is_so);
    }

    #[test]
    fn a_descriptor_opened_during_a_fork_is_ended_and_opened_again() {
        register().unwrap();
        let (opened, ended) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let open = || {
            let file = null();
            opened.set(opened.get() + 1);
            // The child has a copy that it doesn't know of.
            assert!(opened.get() > 1 || in_a_child(|| true));
            file
        };
        let descriptor = Descriptor::alone_after(open, |_| ended.set(ended.get() + 1));
        assert!(descriptor.unwrap().file().is_ok());
        assert!(opened.get() > 1 && ended.get() == opened.get() - 1);
    }

    #[test]
    fn an_abandoned_descriptor_is_not_closed_here_nor_in_a_child() {
        register().unwrap();
        let is_so = in_a_child(|| {
            let Ok(abandoned) = Descriptor::alone(null) else { return false };
            let Ok(number) = abandoned.file().map(AsRawFd::as_raw_fd) else { return false };
            abandoned.abandon();
            let is_open = || fs::metadata(format!("/proc/self/fd/{number}")).is_ok();
            is_open() && in_a_child(is_open)
        });
        assert!(is_so);
    }

    #[test]
    fn no_descriptor_is_opened_while_a_fork_is_under_way() {
        let is_opened = AtomicBool::new(false);
        let (tell, told) = std::sync::mpsc::channel();
        undisturbed(|| before());
        std::thread::scope(|scope| {
            let opens = scope.spawn(|| {
                tell.send(()).unwrap();
                Descriptor::alone(|| {
                    is_opened.store(true, Ordering::SeqCst);
                    null()
                })
            });
            told.recv().unwrap();
            (0..100).for_each(|_| std::thread::yield_now());
            let is_too_early = is_opened.load(Ordering::SeqCst);
            in_parent();
            opens.join().unwrap().unwrap();
            assert!(!is_too_early);
        });
    }

    #[test]
    fn a_descriptor_opened_during_a_fork_is_in_no_child() {
        register().unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    assert!(in_a_child(|| true));
                }
            });
            for _ in 0..200 {
                let begun = BEGUN.load(Ordering::SeqCst);
                let opened = Descriptor::alone(null).unwrap();
                assert!(opened.file().is_ok());
                assert!(BEGUN.load(Ordering::SeqCst) >= begun);
            }
            stop.store(true, Ordering::SeqCst);
        });
    }
}
