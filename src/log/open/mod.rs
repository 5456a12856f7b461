//! Opening a log and closing it.
//!
//! `directory` finds, makes and locks the directory; `birth` makes a log; `recovery` opens one for reading: `scan` reads
//! what is there, `judge` says what that is; `resume` makes it ready for writing, and closes it; `gate` is the
//! lifecycle of an open log.

pub(crate) mod birth;
pub(crate) mod directory;
pub(crate) mod gate;
pub(crate) mod judge;
pub(crate) mod recovery;
mod resume;
pub(in crate::log) mod scan;
