//! The command line.

use std::path::PathBuf;

use crate::Result;
use crate::files::Run;

pub(crate) const USAGE: &str = "\
usage: cargo run --release -p deliveries -- [OPTIONS]

  --deliveries N    how many deliveries to make up (10000)
  --seed N          makes another feed, and other moments to kill at (1)
  --file PATH       reads deliveries from PATH instead: a JSON object a line, with the strings
                    \"event\", \"type\", \"account\" and the number \"amount\"
  --choice WHICH    what to do about an attempt that died half-way: take-over (run it again), hold
                    (leave it to an operator), or both, one after the other
                    (take-over; with --kill both)
  --kill            runs the work as a child and kills it with SIGKILL, again and again
  --kills N         how often (50); implies --kill
  --processes N     so many share the work and the store, and each kill takes one of them (1); needs --kill
  --dir PATH        keeps all files in PATH, a new or empty directory; otherwise they are removed
                    once the ledger balances

Exit status: 0 if the ledger balances, 1 if it doesn't or something failed, 2 for a wrong option.";

const KILLS: usize = 50;

/// What this process is asked to be.
pub(crate) enum Task {
    Help,
    /// The whole: feed, work, ledger.
    All(Options),
    /// The child that is killed; knows its files, its share, and how many deliveries it may answer before it waits
    /// for the kill. No number: all.
    Work(Run, Share, Option<usize>),
}

pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) deliveries: usize,
    pub(crate) file: Option<PathBuf>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) processes: usize,
    choice: Option<Vec<Choice>>,
    kills: Option<usize>,
}

/// Which of the processes that share the work this one is.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    pub(crate) number: usize,
    pub(crate) of: usize,
}

impl Share {
    pub(crate) const WHOLE: Share = Share { number: 0, of: 1 };

    /// Deliveries of one event are in the shares of different processes.
    pub(crate) fn has(self, line: usize) -> bool {
        line % self.of == self.number
    }
}

/// What becomes of an event whose attempt died, perhaps before the effect, perhaps after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    /// The next delivery runs it again: at least once.
    TakeOver,
    /// Nobody runs it until somebody has looked: at most once.
    Hold,
}

impl Options {
    /// The choices to run under. Without kills they don't differ, so one of them will do.
    pub(crate) fn choices(&self) -> &[Choice] {
        match &self.choice {
            Some(asked) => asked,
            None if self.kills() > 0 => &[Choice::TakeOver, Choice::Hold],
            None => &[Choice::TakeOver],
        }
    }

    pub(crate) fn kills(&self) -> usize {
        self.kills.unwrap_or(0)
    }
}

impl Choice {
    /// As on the command line; also the folder's name.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Choice::TakeOver => "take-over",
            Choice::Hold => "hold",
        }
    }

    fn parse(text: &str) -> Result<Choice> {
        match text {
            "take-over" => Ok(Choice::TakeOver),
            "hold" => Ok(Choice::Hold),
            other => Err(format!("--choice {other}: take-over, hold or both").into()),
        }
    }
}

pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Task> {
    let mut args = args.peekable();
    // What `kill` starts; not for typing.
    if args.next_if_eq("work").is_some() {
        let mut next = || args.next().ok_or("work: DIR CHOICE FILE NUMBER OF [LIMIT]");
        let (dir, choice, file) = (next()?, next()?, next()?);
        let share = Share { number: number("NUMBER", &next()?)?, of: number("OF", &next()?)? };
        let run = Run::new(dir.into(), Choice::parse(&choice)?, file.into());
        let limit = args.next().map(|limit| number("LIMIT", &limit)).transpose()?;
        return Ok(Task::Work(run, share, limit));
    }
    let mut options = Options {
        seed: 1,
        deliveries: 10_000,
        file: None,
        dir: None,
        processes: 1,
        choice: None,
        kills: None,
    };
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--help" | "-h" => return Ok(Task::Help),
            "--seed" => options.seed = number(&name, &value()?)?,
            "--deliveries" => options.deliveries = number(&name, &value()?)?,
            "--file" => options.file = Some(value()?.into()),
            "--dir" => options.dir = Some(value()?.into()),
            "--kill" => options.kills = options.kills.or(Some(KILLS)),
            "--kills" => options.kills = Some(number(&name, &value()?)?),
            "--processes" => options.processes = number::<usize>(&name, &value()?)?.max(1),
            "--choice" => {
                options.choice = Some(match value()?.as_str() {
                    "both" => vec![Choice::TakeOver, Choice::Hold],
                    one => vec![Choice::parse(one)?],
                });
            }
            _ => return Err(format!("no such option: {name}").into()),
        }
    }
    Ok(Task::All(options))
}

fn number<N: std::str::FromStr>(name: &str, text: &str) -> Result<N> {
    text.parse().map_err(|_| format!("{name} {text}: not a number that fits").into())
}
