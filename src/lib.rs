//! An embedded, crash-safe idempotency store.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::print_stdout,
        clippy::print_stderr,
        clippy::disallowed_methods,
        clippy::disallowed_types
    )
)]

// In reading order, from what a user sees down to the bytes.
mod store; // the public face
mod builder; // how a store is opened
mod shared; // what its handles share
mod claim; // what a claim is answered with
mod run; // running a closure once
mod operation; // what is claimed, and how
pub mod admin; // the operator's view
pub mod value; // typed results
mod error;
mod engine; // the protocol over log and index
mod protocol; // the rules of a key's life, pure
mod index; // key -> place in the log
mod log; // segments, group commit, recovery
mod manifest; // what is listed
mod record; // one record's bytes
mod header; // what every file begins with
mod limits; // every limit and default
mod types; // one newtype per unit
// The seams, through which everything comes that can surprise.
mod clock;
mod entropy;
mod storage;
mod sync;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use builder::StoreBuilder;
pub use claim::{
    Attempt, Claim, ClaimGuard, ClaimHandle, Expired, Interrupted, Mark, Recorded, Refused,
    RefusedKind, Resolution, State,
};
pub use error::{Error, ErrorKind};
pub use operation::{
    Abort, Durability, Fingerprint, Key, KeyPart, OnDrop, OnInterrupted, Operation, Outcome, Policy,
};
pub use run::{Reconciled, Run, Runner, Verdict};
pub use store::Store;
pub use types::Token;
pub use value::payload::{Decode, Encode, Payload};

/// Result of every fallible call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
