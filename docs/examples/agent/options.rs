//! What the command line says.

use std::path::PathBuf;

use crate::Result;

pub(crate) const USAGE: &str = "\
agent [--kills N] [--seed N] [--choice hold|take-over] [--processes N] [--plant bill|mail]

  --kills N   kill the agent N times under each choice (200)
  --seed N    the moments of the kills (by the clock)
  --choice C  under this choice alone: what is done about an attempt that ended without a word
  --processes N
              so many share the store and compete for the tasks, and each kill takes one of them (1)
  --plant F   with a fault, so that the ledger doesn't balance:
              bill  the model is asked under another request id in each attempt
              mail  the mail is sent again without a look at whether it may have been sent";

/// What is done about a mail of which nobody knows whether it was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    /// The task is held, and a person looks: sent at most once.
    Hold,
    /// It is sent again, and noted before: sent at least once.
    TakeOver,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Bill,
    Mail,
}

pub(crate) struct Options {
    pub(crate) kills: usize,
    pub(crate) seed: u64,
    pub(crate) choice: Option<Choice>,
    pub(crate) plant: Option<Fault>,
    pub(crate) processes: usize,
}

/// One life of the agent.
pub(crate) struct Life {
    pub(crate) dir: PathBuf,
    pub(crate) choice: Choice,
    pub(crate) plant: Option<Fault>,
    pub(crate) tasks: u64,
    /// The number of this process, among those that share the store.
    pub(crate) number: usize,
    pub(crate) processes: usize,
    /// It waits to be killed after so many.
    pub(crate) limit: Option<usize>,
}

pub(crate) enum Task {
    Help,
    Work(Life),
    All(Options),
}

impl Choice {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Choice::Hold => "hold",
            Choice::TakeOver => "take-over",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        match text {
            "hold" => Ok(Choice::Hold),
            "take-over" => Ok(Choice::TakeOver),
            other => Err(format!("no choice {other}").into()),
        }
    }
}

impl Fault {
    pub(crate) fn name(fault: Option<Self>) -> &'static str {
        match fault {
            None => "none",
            Some(Fault::Bill) => "bill",
            Some(Fault::Mail) => "mail",
        }
    }

    fn parse(text: &str) -> Result<Option<Self>> {
        match text {
            "none" => Ok(None),
            "bill" => Ok(Some(Fault::Bill)),
            "mail" => Ok(Some(Fault::Mail)),
            other => Err(format!("no fault {other}").into()),
        }
    }
}

impl Options {
    pub(crate) fn choices(&self) -> Vec<Choice> {
        self.choice.map_or(vec![Choice::Hold, Choice::TakeOver], |choice| vec![choice])
    }
}

pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Task> {
    let seed = std::time::UNIX_EPOCH.elapsed()?.as_secs();
    let mut options = Options { kills: 200, seed, choice: None, plant: None, processes: 1 };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--help" => return Ok(Task::Help),
            "--kills" => options.kills = value()?.parse()?,
            "--seed" => options.seed = value()?.parse()?,
            "--choice" => options.choice = Some(Choice::parse(&value()?)?),
            "--processes" => options.processes = value()?.parse::<usize>()?.max(1),
            "--plant" => options.plant = Fault::parse(&value()?)?,
            "work" => {
                let (dir, choice) = (value()?.into(), Choice::parse(&value()?)?);
                let (plant, tasks) = (Fault::parse(&value()?)?, value()?.parse()?);
                let (number, processes) = (value()?.parse()?, value()?.parse()?);
                let limit = words.next().map(|limit| limit.parse()).transpose()?;
                let life = Life { dir, choice, plant, tasks, number, processes, limit };
                return Ok(Task::Work(life));
            }
            other => return Err(format!("no option {other}").into()),
        }
    }
    Ok(Task::All(options))
}
