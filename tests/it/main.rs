//! One test binary; this is its table of contents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stdout)]

/// Roles that this binary plays in a process of its own.
mod child;

/// Tiny workloads as data, and what a crash may leave of them.
mod script;

/// The promises of the API, call by call.
mod contract;

/// A second opener, and a forked child.
mod process;

/// Disk calls that fail, one after the other; full disks; panics.
mod fault;

/// Flipped bytes, and files cut, emptied, taken away or exchanged.
mod corrupt;

/// Power lost and the process killed at every change of the disk, of work and of recovery.
mod crash;
/// Sizes that change between two openings.
mod sizes;
