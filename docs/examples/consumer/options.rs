//! The command line.

use std::path::PathBuf;

use crate::Result;

pub(crate) const USAGE: &str = "\
usage: cargo run --release -p consumer -- [OPTIONS]

  --lives N         how often the consumer is started and killed, under each choice (200)
  --messages N      how many distinct messages the queue has (50 for each life)
  --seed N          makes another queue, and other moments to kill at (1)
  --fault WHICH     a consumer with a mistake: complete-first completes a message before its effect,
                    offsets-first commits offsets before the batch. The ledger shows it.
  --dir PATH        keeps all files in PATH, a new or empty directory; otherwise they are removed
                    once the ledgers balance

Exit status: 0 if the ledgers balance, 1 if one doesn't or something failed, 2 for a wrong option.";

/// What this process is asked to be.
pub(crate) enum Task {
    Help,
    /// The whole: lives, kills, ledgers.
    All(Options),
    /// One life of the consumer.
    Live(Life),
}

#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) lives: u64,
    pub(crate) messages: u64,
    pub(crate) seed: u64,
    pub(crate) fault: Fault,
    pub(crate) dir: Option<PathBuf>,
}

pub(crate) struct Life {
    pub(crate) dir: PathBuf,
    pub(crate) choice: Choice,
    pub(crate) fault: Fault,
    pub(crate) number: u64,
    /// It polls no further, and then waits to be killed; `None`: it polls all, and ends.
    pub(crate) stop_at: Option<u64>,
}

/// What becomes of a message whose attempt died, perhaps before the effect, perhaps after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    /// It is handled again: at least once.
    TakeOver,
    /// Nobody handles it until somebody has looked: at most once.
    Hold,
}

impl Choice {
    /// As on the command line; also the folder's name.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Choice::TakeOver => "take-over",
            Choice::Hold => "hold",
        }
    }
}

/// A mistake that the consumer makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    /// Completes a message before its effect.
    CompleteFirst,
    /// Commits offsets before the batch.
    OffsetsFirst,
}

impl Fault {
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Fault::None => "none",
            Fault::CompleteFirst => "complete-first",
            Fault::OffsetsFirst => "offsets-first",
        }
    }

    fn parse(text: &str) -> Result<Fault> {
        let all = [Fault::None, Fault::CompleteFirst, Fault::OffsetsFirst];
        let found = all.into_iter().find(|fault| fault.slug() == text);
        found.ok_or_else(|| format!("--fault {text}: complete-first, offsets-first or none").into())
    }
}

pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Task> {
    let mut args = args.peekable();
    // What `kill` starts; not for typing.
    if args.next_if_eq("live").is_some() {
        let mut next = || args.next().ok_or("live: DIR CHOICE FAULT NUMBER [STOP-AT]");
        let (dir, choice, fault, number) = (next()?, next()?, next()?, next()?);
        let choice = if choice == "hold" { Choice::Hold } else { Choice::TakeOver };
        let stop_at = args.next().map(|at| number_of("STOP-AT", &at)).transpose()?;
        let (fault, number) = (Fault::parse(&fault)?, number_of("NUMBER", &number)?);
        return Ok(Task::Live(Life { dir: dir.into(), choice, fault, number, stop_at }));
    }
    let (mut lives, mut messages, mut seed) = (200, None, 1);
    let (mut fault, mut dir) = (Fault::None, None);
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--help" | "-h" => return Ok(Task::Help),
            "--lives" => lives = number_of(&name, &value()?)?,
            "--messages" => messages = Some(number_of(&name, &value()?)?),
            "--seed" => seed = number_of(&name, &value()?)?,
            "--fault" => fault = Fault::parse(&value()?)?,
            "--dir" => dir = Some(value()?.into()),
            _ => return Err(format!("no such option: {name}").into()),
        }
    }
    let messages = messages.unwrap_or(50 * lives);
    Ok(Task::All(Options { lives, messages, seed, fault, dir }))
}

fn number_of(name: &str, text: &str) -> Result<u64> {
    text.parse().map_err(|_| format!("{name} {text}: not a number that fits").into())
}
