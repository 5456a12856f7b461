//! Tells a forked child that it is one.
//!
//! Promises: in a child made by `fork`, [`generation`] differs from what the parent saw, at the price of
//! one relaxed load. A store remembers the generation it was opened in and does nothing in another.
//! Never: notices a child made past the C library, by `clone` or `vfork` directly; those that exec are
//! served by close-on-exec.

#![expect(clippy::disallowed_types, reason = "a fork handler may touch nothing but a plain atomic")]

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between this process and the first one that called [`register`].
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Installs the handler; further calls cost nothing. Fails only for want of memory, and may be tried again.
pub(crate) fn register() -> io::Result<()> {
    static REGISTERED: parking_lot::Mutex<bool> = parking_lot::Mutex::new(false);
    let mut registered = REGISTERED.lock();
    if !*registered {
        install()?;
        *registered = true;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "no safe wrapper of pthread_atfork exists")]
fn install() -> io::Result<()> {
    // SAFETY: the handler lives as long as the program, since it is a function of it, and does only what
    // is allowed between fork and exec in a threaded program: one lock-free atomic addition.
    match unsafe { libc::pthread_atfork(None, None, Some(in_child)) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "a real fork is what this is about")]
    fn a_child_knows_that_it_is_one() {
        register().unwrap();
        register().unwrap();
        let before = generation();
        // SAFETY: the child calls nothing but an atomic load and `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = i32::from(generation() != before.wrapping_add(1));
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(code) };
        }
        assert!(child > 0);
        let mut status = -1;
        // SAFETY: `status` is a valid place for one int.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "once per fork, however often registered");
        assert_eq!(generation(), before);
    }
}
