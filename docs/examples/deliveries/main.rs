//! Webhook deliveries, each event's effect performed once, through fifty kill -9.
//!
//! Whoever sends webhooks repeats itself: an answer that doesn't come looks like a request that didn't
//! arrive. So one event is delivered twice at once, again a minute later, again after an hour, in any
//! order. Its effect, here a line in an outbox file, elsewhere a mail or a charge, shall happen once.
//!
//! ```text
//! cargo run --release -p deliveries                  the main job, once through
//! cargo run --release -p deliveries -- --kill        killed 50 times, under each choice
//! cargo run --release -p deliveries -- --kill --processes 4
//!                                                    the same, by four processes that share the store
//! cargo run --release -p deliveries -- --help        all options
//! ```
//!
//! Read `work.rs` first: what a program needs of onlyonce stands there. The rest makes the feed, kills
//! the work, and counts afterwards, from the files alone, whether everything was done as promised.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program with a terminal, files and threads of its own, not part of the library"
)]

mod feed;
mod files;
mod kill;
mod ledger;
mod options;
mod random;
mod screen;
mod work;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use std::{fs, thread};

use feed::Delivery;
use files::{Run, Tail};
use ledger::Ledger;
use options::{Choice, Options, Share, Task};
use screen::Screen;

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
        Ok(Task::Work(run, share, None)) => {
            work::work(&run, share, work::Parked::Left).map(|()| true)
        }
        Ok(Task::Work(run, share, Some(limit))) => {
            work::work_until_killed(&run, share, limit).map(|()| true)
        }
        Ok(Task::All(options)) => all(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("deliveries: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the feed under each choice asked for; true if every ledger balances.
fn all(options: &Options) -> Result<bool> {
    let begun = Instant::now();
    let dir = new_dir(options.dir.as_deref())?;
    let ledgers = ledgers(options, &dir).map_err(|e| format!("{e}\nfiles: {}", dir.display()))?;
    println!("\n{}\n\n{:.1} s", ledger::table(&ledgers), begun.elapsed().as_secs_f64());

    let balanced = ledgers.iter().all(Ledger::balances);
    if balanced && options.dir.is_none() {
        fs::remove_dir_all(&dir)?;
    } else {
        println!("files: {}", dir.display());
    }
    Ok(balanced)
}

fn ledgers(options: &Options, dir: &Path) -> Result<Vec<Ledger>> {
    let file = match &options.file {
        Some(file) => file.clone(),
        None => feed::write(options.seed, options.deliveries, &dir.join("feed.jsonl"))?,
    };
    let deliveries = feed::read(&file)?;
    println!("{}", feed::describe(&deliveries));
    println!(
        "{} worker threads of {} answer them; the store has two threads more, for its upkeep\n",
        work::WORKERS,
        match options.processes {
            1 => "one process".to_owned(),
            many => format!("each of {many} processes"),
        }
    );
    let choices = options.choices().iter();
    choices.map(|choice| one(&Run::create(dir, *choice, &file)?, options, &deliveries)).collect()
}

/// Runs the feed under one choice, to the end, and counts.
fn one(run: &Run, options: &Options, deliveries: &[Delivery]) -> Result<Ledger> {
    let mut screen = Screen::new(run.choice, deliveries.len(), options.kills());
    let kills = match options.kills() {
        0 => undisturbed(run, &mut screen)?,
        wanted => kill::until_done(run, wanted, options, deliveries.len(), &mut screen)?,
    };
    let resolved = match run.choice {
        Choice::TakeOver => work::Resolved::default(),
        Choice::Hold => {
            let resolved = work::resolve_held(run)?;
            // Now the sender's repeats of what was parked are let through.
            work::work(run, Share::WHOLE, work::Parked::SentAgain)?;
            resolved
        }
    };
    Ledger::count(run, deliveries, (options.processes, kills), resolved)
}

/// Runs the work in this process, and watches it from the outside. Returns the number of kills: none.
fn undisturbed(run: &Run, screen: &mut Screen) -> Result<usize> {
    let mut answers = Tail::new(&run.answers());
    thread::scope(|scope| {
        let work = scope.spawn(|| work::work(run, Share::WHOLE, work::Parked::Left));
        while !work.is_finished() {
            thread::sleep(screen::PAUSE);
            screen.show(answers.lines()?, 0);
        }
        work.join().map_err(|_| "the work panicked")?
    })?;
    screen.done(answers.lines()?, 0);
    Ok(0)
}

/// The directory asked for, which must be new or empty: nothing of the user's is ever overwritten.
fn new_dir(asked: Option<&Path>) -> Result<PathBuf> {
    let dir = match asked {
        Some(dir) => dir.to_path_buf(),
        None => std::env::temp_dir().join(format!("onlyonce-deliveries-{}", std::process::id())),
    };
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    if fs::read_dir(&dir)?.next().is_some() {
        return Err(format!("{} is not empty: name a new directory", dir.display()).into());
    }
    Ok(dir)
}
