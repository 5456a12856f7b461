//! An agent whose tasks continue after a kill -9: each paid call is billed once; each mail is sent at most once or at least once,
//! as you choose.
//!
//! A task asks a paid model for a plan, edits a file and sends a mail. A driver kills the agent at random moments and starts it
//! again. At the end a ledger counts from the files alone: what the model billed, what is in the outbox, what the store says.
//!
//! ```text
//! cargo run --release -p agent                       killed 200 times, under each choice
//! cargo run --release -p agent -- --kills 20         sooner done
//! cargo run --release -p agent -- --processes 4      four of them, which share a store
//! cargo run --release -p agent -- --plant bill       with a fault that the ledger finds
//! cargo run --release -p agent -- --help             all options
//! ```
//!
//! Read `work.rs` first: what a program needs of onlyonce stands there.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program with a terminal, files and processes of its own, not part of the library"
)]

mod drive;
mod ledger;
mod options;
mod work;
mod world;

use std::process::ExitCode;

use options::{Options, Task};

/// Errors end the program with a message; nothing here tells one from another.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let done = match options::parse(std::env::args().skip(1)) {
        Err(wrong) => {
            eprintln!("{wrong}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
        Ok(Task::Help) => {
            println!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(Task::Work(life)) => work::work(&life).map(|()| true),
        Ok(Task::All(options)) => all(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all tasks under each choice; true if every ledger balances.
fn all(options: &Options) -> Result<bool> {
    println!("seed {}", options.seed);
    let dir = tempfile::tempdir()?;
    let mut balances = true;
    for choice in options.choices() {
        let driven = drive::until_done(dir.path(), choice, options)?;
        let ledger = ledger::Ledger::of(&driven)?;
        println!("{ledger}");
        balances &= ledger.balances();
    }
    if !balances {
        println!("files: {}", dir.keep().display());
    }
    Ok(balances)
}
