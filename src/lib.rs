//! An embedded, crash-safe idempotency store.
//!
//! A program names an operation with a [`Key`]. [`Store::claim`] returns whether to do the work, to replay the recorded
//! result, or to stay away because somebody else is doing the work. The answer stays correct through crashes, power
//! cuts, retries and races between threads. By default one process opens a store at a time; with
//! [`StoreBuilder::shared`], several processes of a machine share it.
//!
//! ```
//! use onlyonce::{Claim, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let keys = dir.path().join("keys");
//! let store = Store::open_or_create(&keys)?;
//! let claim = match store.claim(("charge", "order", 17))? {
//!     Claim::Acquired(claim) => claim,               // not done yet: the key is yours
//!     Claim::Interrupted(lost) => lost.take_over()?, // an attempt died half-way; we choose: again
//!     Claim::Completed(done) => return Ok(println!("{}", done.decode::<String>()?)),
//!     other => return Err(other.refused().into()),   // "in progress: attempt 1, since 3 s"
//! };
//! claim.complete("the result")?;                     // on stable storage when this returns
//! # Ok(())
//! # }
//! ```
//!
//! # Where to begin
//!
//! - [`Store`]: [`claim`](Store::claim), [`run`](Store::run) for a closure, [`mark`](Store::mark) to detect repetitions
//! - [`Claim`], the answer: a [`ClaimGuard`] for you to end, or an [`Interrupted`] for you to decide about
//! - [`claim_wait`](Store::claim_wait) waits for another owner's result; a call `…_async` returns a [`Pending`], which a task
//!   awaits on any executor
//! - [`ClaimHandle`], for the work: [`step`](ClaimHandle::step) does a part once across attempts,
//!   [`save_progress`](ClaimHandle::save_progress), [`keep_alive`](ClaimHandle::keep_alive)
//! - [`Ticket`]: a claim that another task, process or request ends, by [`detach`](ClaimGuard::detach) and
//!   [`attach`](Store::attach)
//! - [`Store::namespace`]: a key space of its own, for a tenant, a build or a prompt; [`Store::batch`]: many calls with one
//!   write and one sync
//! - [`Operation`] and [`Policy`]: fingerprints, leases, retention, what an interruption means
//! - [`Outcome`], [`Payload`], [`Encode`], [`Decode`] and [`value`]: recorded results, as bytes and as types
//! - [`Error`] and [`ErrorKind`]: what went wrong, and what to do next
//! - [`admin`], [`Store::resolve`]: the operator's view; [`Reader`]: the files alone, without the lock and without a write;
//!   `testing`: a store on a simulated disk
//! - `docs`: programs to start from, how to operate a store, and its guarantees
//!
//! # What survives
//!
//! | [`Durability`] | when a call returns, its record survives | costs on the path |
//! | --- | --- | --- |
//! | [`Lazy`](Durability::Lazy) | nothing with certainty: a killed process may lose the last second | nothing |
//! | [`Flush`](Durability::Flush) | a killed process; power loss may take the last second or 4 MiB | one write, shared |
//! | [`Sync`](Durability::Sync), the default | power loss | one write and one sync, shared |
//!
//! At every level a key has one owner at a time, no fencing [`Token`] is issued twice, and damage to durable bytes is
//! reported as an error that names the file and the offset.
//!
//! No store can guarantee that an effect outside the store happens exactly once. If a process dies between the effect
//! and its record, the next claim answers [`Interrupted`](Claim::Interrupted), and your program decides what to do.
//!
//! # Features
//!
//! - `bincode` (default): `value::Typed` records any serde type. Without this feature and `json`, the crate doesn't
//!   depend on serde. bincode 2 is no longer maintained (RUSTSEC-2025-0141), and `cargo deny` reports that advisory: switch the
//!   feature off, or allow the advisory. A store encodes nothing else with bincode.
//! - `json`: `value::Typed` and `value::Json` record any serde type as JSON, by `serde_json`;
//!   `Fingerprint::of_json` reads requests in canonical JSON (RFC 8785).
//! - `lz4`: `StoreBuilder::compress_over` compresses long results.
//! - `testing`: `testing::Sim`, a simulated store in memory with a manual clock, power loss and failing disks.
//! - `tracing`: events and spans about what a store does; `metrics`: its counters, gauges and histograms, by the facade
//!   `metrics`. The page `operations` of `docs` lists both.
//! - `backend` (unstable): `backend::Backend`, a trait with which other code, or another process, answers a store's
//!   calls.

#![cfg_attr(docsrs, feature(doc_cfg))]
// What `backend` shows is there without it, too.
#![cfg_attr(not(feature = "backend"), allow(unreachable_pub))]
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
// Without the feature it shows nothing.
#[cfg_attr(not(feature = "backend"), doc(hidden))]
pub mod backend; // what answers its calls
#[allow(dead_code, unused_imports, reason = "what sends and receives it is still to come")]
mod hosting; // the host of a store, and its guests
mod processes; // several processes on one store
mod claim; // what a claim is answered with
mod operation; // what is claimed, and how
pub mod admin; // the operator's view
pub mod value; // typed results
mod repair; // what can be saved of a damaged store
mod error;
mod events; // what observers are told
mod engine; // the protocol over log and index
mod protocol; // the rules of a key's life, pure
mod index; // key -> place in the log
mod log; // segments, group commit, recovery
mod manifest; // what is listed
mod remembered; // keys remembered after they expired
mod sealed; // files written once
mod record; // one record's bytes
mod header; // what every file begins with
mod limits; // every limit and default
mod types; // one newtype per unit
// The seams, through which everything comes that can surprise.
mod clock;
mod entropy;
mod neighbours;
mod storage;
mod sync;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
// The pages of docs/, which no build but that of the documentation needs.
#[cfg(any(doc, doctest))]
pub mod docs;

// The example of the README runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use builder::StoreBuilder;
pub use claim::{
    Attempt, Claim, ClaimGuard, ClaimHandle, Expired, Interrupted, Mark, Pending, Recorded,
    Refused, RefusedKind, Resolution, State, Step, StepHandle, Ticket, ToForget,
};
pub use error::{Error, ErrorKind};
pub use operation::{
    Abort, Durability, Fingerprint, Key, KeyPart, OnDrop, OnInterrupted, OnUnkept, Operation,
    Outcome, Policy,
};
pub use store::Store;
pub use store::batch::{Batch, Committed};
pub use store::reader::Reader;
pub use store::run::{Reconciled, Run, Runner, Verdict};
pub use types::Token;
pub use value::payload::{Decode, Encode, Payload};

/// The result type of every fallible call.
///
/// ```
/// use onlyonce::{Result, Store};
///
/// fn is_new(store: &Store, message: &str) -> Result<bool> {
///     Ok(store.mark(message)?.is_first())
/// }
/// # assert!(is_new(&onlyonce::testing::Sim::new(1).open()?, "message-7")?);
/// # onlyonce::Result::<()>::Ok(())
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;
