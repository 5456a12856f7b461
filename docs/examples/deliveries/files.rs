//! The files of one run, all of which outlive a kill: the store's directory, the outbox, the answers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::options::Choice;

/// Where one run keeps its files, what it reads, and what it does about interrupted attempts.
pub(crate) struct Run {
    pub(crate) dir: PathBuf,
    pub(crate) choice: Choice,
    pub(crate) feed: PathBuf,
}

/// A line of the outbox: the effect of an event, and which attempt at it wrote the line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(crate) struct Effect {
    pub(crate) event: String,
    pub(crate) attempt: u32,
    pub(crate) account: String,
    pub(crate) amount: u64,
}

/// A line of the answers: what the sender was told about one delivery.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(crate) struct Answer {
    pub(crate) line: usize,
    pub(crate) said: Said,
    /// Names the effect.
    #[serde(default)]
    pub(crate) receipt: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Said {
    /// Done just now.
    Performed,
    /// Done before; here is the receipt from then.
    Replayed,
    /// Nobody knows whether it was done, and somebody will look. Send it again later.
    Parked,
    /// Not done, and never will be: another event came under the same name.
    Refused,
}

/// A file that lines are only ever appended to, by any number of threads.
pub(crate) struct Lines(File);

/// Counts the lines of a growing file from the outside, without reading any byte twice.
pub(crate) struct Tail {
    path: PathBuf,
    file: Option<File>,
    lines: usize,
}

impl Run {
    pub(crate) fn new(dir: PathBuf, choice: Choice, feed: PathBuf) -> Run {
        Run { dir, choice, feed }
    }

    /// A new folder under `parent`, named after the choice.
    pub(crate) fn create(parent: &Path, choice: Choice, feed: &Path) -> Result<Run> {
        let dir = parent.join(choice.slug());
        fs::create_dir(&dir)?;
        Ok(Run::new(dir, choice, feed.to_path_buf()))
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.dir.join("keys")
    }

    pub(crate) fn outbox(&self) -> PathBuf {
        self.dir.join("outbox.jsonl")
    }

    pub(crate) fn answers(&self) -> PathBuf {
        self.dir.join("answers.jsonl")
    }
}

impl Effect {
    /// What is recorded in the store, and told to every repeat.
    pub(crate) fn receipt(&self) -> String {
        receipt(&self.event, self.attempt)
    }
}

pub(crate) fn receipt(event: &str, attempt: u32) -> String {
    format!("{event}/{attempt}")
}

impl Lines {
    /// Opens or creates, and closes the last line where a kill has cut it short: it becomes a line that
    /// nobody can parse, rather than the beginning of the next one.
    pub(crate) fn open(path: &Path) -> io::Result<Lines> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        if file.seek(SeekFrom::End(0))? > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Lines(file))
    }

    /// One write to a file opened for appending, so lines of several threads never mix. It survives a
    /// kill as soon as this returns; for power loss one would sync here, before the claim is completed.
    pub(crate) fn append(&self, line: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        (&self.0).write_all(&bytes)?;
        Ok(())
    }
}

/// The whole lines of a file, in order; none if there is no such file. Lines that a kill has torn are left out.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let whole = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    Ok(whole.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

impl Tail {
    pub(crate) fn new(path: &Path) -> Tail {
        Tail { path: path.to_path_buf(), file: None, lines: 0 }
    }

    pub(crate) fn lines(&mut self) -> io::Result<usize> {
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                other => Some(other?),
            };
        }
        if let Some(file) = &mut self.file {
            let mut fresh = Vec::new();
            file.read_to_end(&mut fresh)?;
            self.lines += fresh.iter().filter(|byte| **byte == b'\n').count();
        }
        Ok(self.lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_spoils_neither_its_neighbours_nor_the_count() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("lines");
        let line = |n| Answer { line: n, said: Said::Performed, receipt: String::new() };
        Lines::open(&path)?.append(&line(1))?;
        OpenOptions::new().append(true).open(&path)?.write_all(b"{\"line\":2,\"sa")?;
        assert_eq!(read::<Answer>(&path)?.len(), 1);

        Lines::open(&path)?.append(&line(3))?;
        let lines: Vec<usize> = read::<Answer>(&path)?.iter().map(|answer| answer.line).collect();
        assert_eq!(lines, [1, 3]);
        assert_eq!(Tail::new(&path).lines()?, 3);
        Ok(())
    }
}
