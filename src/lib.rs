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

mod clock;
mod engine;
mod entropy;
mod error;
mod header;
mod index;
mod limits;
mod log;
mod manifest;
mod operation;
mod protocol;
mod record;
mod storage;
mod sync;
mod types;
pub mod value;

pub use error::{Error, ErrorKind};
pub use operation::{
    Abort, Durability, Fingerprint, Key, KeyPart, OnDrop, OnInterrupted, Operation, Outcome, Policy,
};
pub use types::Token;
pub use value::payload::{Decode, Encode, Payload};

/// Result of every fallible call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
/// Stand-in until the store lands.
#[derive(Debug)]
pub struct ClaimGuard;
