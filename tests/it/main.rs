//! One test binary; this is its table of contents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stdout)]

/// Many threads on the same keys, and whether what they were told fits one order.
mod concurrent;
/// One suite for everything that calls itself a store.
mod conformance;
/// The promises of the API, call by call.
mod contract;
/// Power lost and the process killed at every change of the disk, of work and of recovery.
mod crash;
/// Disk calls that fail, one after the other; full disks; panics.
mod fault;
/// The corpora of the fuzz targets.
mod fuzz_corpus;
/// Stores written by released versions.
mod golden;
/// The store behind the words of `spec`.
mod machine;
/// Random lives beside a plain model.
mod model;
/// Tiny workloads as data, and what a crash may leave of them.
mod script;
/// Sizes that change between two openings.
mod sizes;
/// Spares that an earlier opening left.
mod spares;
/// The rules once more, as a plain model.
mod spec;
