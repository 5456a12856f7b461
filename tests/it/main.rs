//! One test binary; this is its table of contents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stdout)]

/// Many threads on the same keys, and whether what they were told fits one order.
mod concurrent;
/// One suite for everything that calls itself a store.
mod conformance;
/// The promises of the API, call by call.
mod contract;
/// The store behind the words of `spec`.
mod machine;
/// Random lives beside a plain model.
mod model;
/// The rules once more, as a plain model.
mod spec;
