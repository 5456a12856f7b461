//! One test binary; this is its table of contents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, reason = "a binary has no outside")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

use onlyonce::testing::conformance::{machine, spec};

/// The order of modules, as the page has it.
mod architecture;
/// What is shown while a forget, or a close, is still on its way.
mod absence;
/// Calls of tasks, on several executors.
mod asynchronous;
/// Sent calls, and stores on another backend.
mod backend;
/// Backups of an open store, and what becomes of them.
mod backup;
/// Many calls made together, of one kind or several.
mod batches;
/// Roles that this binary plays in a process of its own.
mod child;
/// Claims that wait for their key, and owners that wait for their claim's end.
mod waiting;
/// Many threads on the same keys, and whether their answers fit one order.
mod concurrent;
/// Many threads of several processes on the same keys, while their hosts are killed.
mod crowd;
/// The search for an order that explains the answers to calls that overlapped.
mod orders;
/// The promises of the API, call by call.
mod contract;
/// Flipped bytes, and files cut, emptied, removed or exchanged.
mod corrupt;
/// Power lost and the process killed at every change of the disk, of work and of recovery.
mod crash;
/// The same seed gives the same run.
mod determinism;
/// What each ending leaves, child processes included.
mod endings;
/// Problems of a path, a disk or a format, with helpful messages.
mod errors;
/// Disk calls that fail, one after the other; full disks; panics.
mod fault;
/// Forgets, and the memories of the keys they forget.
mod forgotten;
/// A full store, and the way back.
mod full;
/// The corpora of the fuzz targets.
mod fuzz_corpus;
/// Stores written by released versions.
mod golden;
/// Tables, merges and compaction, rule by rule.
mod index;
/// Calls during long work on the index.
mod midst;
/// A close during everything else, and what a failure leaves in memory.
mod lifecycle;
/// Random lives of a store and a plain model.
mod model;
/// Claims that are renewed in the background.
mod kept_alive;
/// The list of open keys, compared with a walk over all.
mod open_keys;
/// The pages under docs/, and their links.
mod pages;
/// A second opener, and a forked child.
mod process;
mod processes;
/// Guests that lack descriptors, rights, or room at the host.
mod guests;
/// Files that are read without the lock and without a write.
mod reader;
/// Reclaim when the background gets no processor, and what it reads.
mod reclaim;
/// What `repair` saves, what it reports as lost, and its own crashes.
mod repair;
/// A poisoned store, opened again under its handles.
mod reopen;
/// Closures that are futures, run once.
mod run_async;
/// A budget, or a disk, that is used up; what is reclaimed.
mod room;
/// The store's directory moved, removed or replaced while it is open.
mod moved;
/// The programs that the API was designed by.
mod programs;
/// No free descriptor, thread or memory for a map.
mod scarcity;
/// Tiny workloads as data, and what a crash may leave of them.
mod script;
/// What is shown of a key, in words and in walks.
mod shown;
/// Namespaces, dropped at any moment and found again.
mod spaces;
/// What a resolution or a forget goes by.
mod sight;
/// Calls of tasks in namespaces.
mod space_calls;
/// Sizes that change between two opens.
mod sizes;
/// Spares that an earlier open left.
mod spares;
/// Steps of a claim, each done once across attempts.
mod steps;
/// The public surface, and the page that lists it.
mod surface;
/// Store time over reopens.
mod time;
/// Claims handed over by a ticket.
mod tickets;
/// Fencing tokens over restored copies, wrong clocks and repairs.
mod tokens;
/// Days of pairs with mixed retention, in simulated time.
mod traffic;
/// Codecs, compression, and payloads that outlive their segments.
mod values;
