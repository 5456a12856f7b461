//! The command line as its users have it: as a process.
//!
//! [`run`] has the command `run` and its exit codes, [`killed`] what a kill at each moment leaves, [`keys`] the commands
//! about keys, [`whole`] those about the whole store, [`beside`] all of them beside a process that has it open, [`terminal`] what is different on a terminal. [`store`] makes a store, starts commands on it, and compares all that they print as JSON with
//! `schema.json`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod beside;
mod keys;
mod killed;
mod run;
mod store;
mod terminal;
mod whole;
