//! A queue consumer that is killed 200 times: each message is handled at most once or at least once, as you choose.
//!
//! The queue delivers in order and remembers one number, the committed offset. After a crash, it delivers everything after
//! that again. So the consumer claims the messages of a poll, handles them, completes them with the next poll's claims in
//! one write, and commits the offset only then.
//!
//! ```text
//! cargo run --release -p consumer                          200 lives under each choice
//! cargo run --release -p consumer -- --fault offsets-first  a consumer with a mistake, which the ledger shows
//! cargo run --release -p consumer -- --help                all options
//! ```
//!
//! Read `consume.rs` first: what a program needs of onlyonce stands there. `kill` kills it, `ledger` counts afterwards.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program with a terminal and files of its own, not part of the library"
)]

mod consume;
mod kill;
mod ledger;
mod options;
mod queue;
mod random;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ledger::Account;
use options::{Choice, Options, Task};
use queue::Queue;
use random::Random;

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
        Ok(Task::Live(life)) => consume::live(&life).map(|()| true),
        Ok(Task::All(options)) => all(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("consumer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the lives under each choice; true if every ledger balances.
fn all(options: &Options) -> Result<bool> {
    let dir = new_dir(options.dir.as_deref())?;
    println!("seed {}: --seed {0} makes the same queue and the same dice again", options.seed);
    let mut balances = true;
    for choice in [Choice::TakeOver, Choice::Hold] {
        let account = one(options, choice, &dir.join(choice.slug()))
            .map_err(|e| format!("{e}\nfiles: {}", dir.display()))?;
        println!("{account}");
        balances &= account.balances();
    }
    if balances && options.dir.is_none() {
        fs::remove_dir_all(&dir)?;
    } else {
        println!("files: {}", dir.display());
    }
    Ok(balances)
}

fn one(options: &Options, choice: Choice, dir: &Path) -> Result<Account> {
    fs::create_dir(dir)?;
    let queue = Queue::create(dir, &messages(options))?;
    let kills = kill::live_and_die(options, choice, &queue)?;
    let mut resolved = ledger::Resolved::default();
    if choice == Choice::Hold {
        resolved = ledger::resolve_held(&queue)?;
        // What had no effect was sent again.
        kill::last_life(options, choice, &queue, kills + 1)?;
    }
    Account::count(&queue, choice, kills, resolved)
}

/// The messages of the queue, in order. One in ten is there twice, as its sender got no answer.
fn messages(options: &Options) -> Vec<String> {
    let mut random = Random::new(options.seed);
    let mut messages: Vec<String> = Vec::new();
    for number in 0..options.messages {
        messages.push(format!("order-{number}"));
        if random.below(10) == 0 {
            let before = random.below(messages.len().min(100) as u64) as usize;
            messages.extend(messages.get(messages.len() - 1 - before).cloned());
        }
    }
    messages
}

/// The directory asked for, which must be new or empty: nothing of the user's is ever overwritten.
fn new_dir(asked: Option<&Path>) -> Result<PathBuf> {
    let dir = match asked {
        Some(dir) => dir.to_path_buf(),
        None => std::env::temp_dir().join(format!("onlyonce-consumer-{}", std::process::id())),
    };
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    if fs::read_dir(&dir)?.next().is_some() {
        return Err(format!("{} is not empty: name a new directory", dir.display()).into());
    }
    Ok(dir)
}
