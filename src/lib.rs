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

pub mod admin;
mod claim;
mod clock;
mod engine;
mod entropy;
mod error;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod fuzzing;
mod header;
mod index;
mod limits;
mod log;
mod manifest;
mod operation;
mod protocol;
mod record;
mod run;
mod storage;
mod store;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod types;
pub mod value;

pub use claim::{
    Attempt, Claim, ClaimGuard, ClaimHandle, Expired, Interrupted, Mark, Recorded, Refused,
    RefusedKind, Resolution, State,
};
pub use error::{Error, ErrorKind};
pub use operation::{
    Abort, Durability, Fingerprint, Key, KeyPart, OnDrop, OnInterrupted, Operation, Outcome, Policy,
};
pub use run::{Reconciled, Run, Runner, Verdict};
pub use store::{Store, StoreBuilder};
pub use types::Token;
pub use value::payload::{Decode, Encode, Payload};

/// Result of every fallible call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
