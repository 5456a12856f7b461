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
mod entropy;
mod error;
mod limits;
mod storage;
mod types;

pub use error::{Error, ErrorKind};
pub use types::Token;

/// Result of every fallible call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
