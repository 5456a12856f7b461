//! Opening a log and closing it.
//!
//! `directory` finds, creates and locks the directory, and `birth` creates a log. `steps` opens a log for reading:
//! `scan` reads what is there, and `recovery` decides what is kept. `resume` makes the log ready for writing, and
//! closes it. `lifecycle` decides which calls are admitted until then, and which are refused. `at_rest` tells a reader
//! whether files that it read without the lock were changed meanwhile.

pub(crate) mod at_rest;
pub(crate) mod birth;
pub(crate) mod directory;
pub(crate) mod lifecycle;
pub(crate) mod recovery;
pub(crate) mod steps;
mod resume;
pub(in crate::log) mod scan;
