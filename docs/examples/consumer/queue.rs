//! The outside world, as files that outlive every kill: a queue with one committed offset, the ledger of effects, and
//! the notes by which the consumer is checked.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::Result;

/// A queue of messages, one a line, and how far its one consumer has committed.
pub(crate) struct Queue {
    pub(crate) dir: PathBuf,
}

impl Queue {
    pub(crate) fn create(dir: &Path, messages: &[String]) -> Result<Queue> {
        let queue = Queue::open(dir);
        queue.send(messages)?;
        queue.commit(0)?;
        Ok(queue)
    }

    pub(crate) fn open(dir: &Path) -> Queue {
        Queue { dir: dir.to_path_buf() }
    }

    /// The store's directory, which stands beside the queue's files.
    pub(crate) fn keys(&self) -> PathBuf {
        self.dir.join("keys")
    }

    /// Adds messages at the end.
    pub(crate) fn send(&self, messages: &[String]) -> Result<()> {
        let mut file = Lines::open(&self.dir, "queue")?;
        file.append(messages)
    }

    pub(crate) fn messages(&self) -> Result<Vec<String>> {
        read(&self.dir, "queue")
    }

    /// How long the ledger is.
    pub(crate) fn ledger_bytes(&self) -> u64 {
        fs::metadata(self.dir.join("ledger")).map_or(0, |ledger| ledger.len())
    }

    /// The offset from which the messages are delivered again after a crash.
    pub(crate) fn committed(&self) -> Result<u64> {
        Ok(fs::read_to_string(self.dir.join("offset"))?.trim().parse()?)
    }

    pub(crate) fn commit(&self, offset: u64) -> Result<()> {
        let new = self.dir.join("offset.new");
        fs::write(&new, offset.to_string())?;
        fs::rename(new, self.dir.join("offset"))?;
        Ok(())
    }
}

/// A file that lines are appended to, each call's with one write.
pub(crate) struct Lines(File);

impl Lines {
    pub(crate) fn open(dir: &Path, name: &str) -> Result<Lines> {
        let file = OpenOptions::new().create(true).append(true).open(dir.join(name))?;
        Ok(Lines(file))
    }

    /// It survives a kill once this returns; for power loss one would sync here.
    pub(crate) fn append(&mut self, lines: &[String]) -> Result<()> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        Ok(self.0.write_all(text.as_bytes())?)
    }
}

pub(crate) fn read(dir: &Path, name: &str) -> Result<Vec<String>> {
    match fs::read_to_string(dir.join(name)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        text => Ok(text?.lines().map(str::to_owned).collect()),
    }
}
