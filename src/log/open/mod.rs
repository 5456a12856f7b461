//! Opening a log and closing it.
//!
//! `directory` finds, makes and locks the directory; `birth` makes a log; `steps` opens one for reading: `scan` reads
//! what is there, `recovery` decides what of it is kept; `resume` makes it ready for writing, and closes it; `lifecycle`
//! says which calls come in until then, and which are refused.

pub(crate) mod birth;
pub(crate) mod directory;
pub(crate) mod lifecycle;
pub(crate) mod recovery;
pub(crate) mod steps;
mod resume;
pub(in crate::log) mod scan;
