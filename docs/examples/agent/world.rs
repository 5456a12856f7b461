//! What is outside of the store, in files that outlive a kill: a model that bills, an edited file, a mailer.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How long the model and the mailer take to answer.
const ANSWERS_AFTER: Duration = Duration::from_millis(2);

/// A line of the bill. The model knows a request by its id: asked again, it gives the same answer and bills nothing.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Billed {
    pub(crate) task: u64,
    pub(crate) request_id: String,
    pub(crate) plan: String,
}

/// A line of the outbox. The mailer sends whatever it is given, and can't be asked.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mail {
    pub(crate) task: u64,
    pub(crate) token: u64,
    pub(crate) attempt: u32,
}

/// What the agent told about a task; without a result, it is held.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) task: u64,
    pub(crate) result: Option<String>,
}

pub(crate) struct World {
    dir: PathBuf,
    bill: File,
    outbox: File,
    repeats: File,
    answers: File,
}

impl World {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir.join("files"))?;
        let lines = |name| append_to(&dir.join(name));
        Ok(World {
            dir: dir.to_path_buf(),
            bill: lines("bill")?,
            outbox: lines("outbox")?,
            repeats: lines("repeats")?,
            answers: lines("answers")?,
        })
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.dir.join("keys")
    }

    /// A stand-in for a paid model.
    pub(crate) fn ask_model(
        &self,
        task: u64,
        prompt: &str,
        request_id: &str,
    ) -> io::Result<String> {
        let known = self.billed()?.into_iter().find(|billed| billed.request_id == request_id);
        if let Some(known) = known {
            return Ok(known.plan);
        }
        let plan = format!("a plan for {prompt}");
        let request_id = request_id.to_owned();
        append(&self.bill, &Billed { task, request_id, plan: plan.clone() })?;
        // The answer comes later than the bill: most kills fall between them.
        thread::sleep(ANSWERS_AFTER);
        Ok(plan)
    }

    pub(crate) fn edit(&self, task: u64, text: &str) -> io::Result<()> {
        fs::write(self.dir.join("files").join(task.to_string()), text)
    }

    pub(crate) fn send(&self, mail: &Mail) -> io::Result<()> {
        append(&self.outbox, mail)?;
        thread::sleep(ANSWERS_AFTER);
        Ok(())
    }

    /// Notes that a mail is about to be sent which may have been sent before.
    pub(crate) fn note_repeat(&self, mail: &Mail) -> io::Result<()> {
        append(&self.repeats, mail)
    }

    pub(crate) fn answer(&self, answer: &Answer) -> io::Result<()> {
        append(&self.answers, answer)
    }

    /// Tasks that are done, or held if those are asked for, too.
    pub(crate) fn answered(&self, or_held: bool) -> io::Result<BTreeSet<u64>> {
        let answers = self.answers()?.into_iter();
        let is_over = |answer: &Answer| or_held || answer.result.is_some();
        Ok(answers.filter(is_over).map(|answer| answer.task).collect())
    }

    pub(crate) fn billed(&self) -> io::Result<Vec<Billed>> {
        read(&self.dir.join("bill"))
    }

    pub(crate) fn mails(&self) -> io::Result<Vec<Mail>> {
        read(&self.dir.join("outbox"))
    }

    pub(crate) fn repeats(&self) -> io::Result<Vec<Mail>> {
        read(&self.dir.join("repeats"))
    }

    pub(crate) fn answers(&self) -> io::Result<Vec<Answer>> {
        read(&self.dir.join("answers"))
    }

    pub(crate) fn edited(&self, task: u64) -> io::Result<String> {
        fs::read_to_string(self.dir.join("files").join(task.to_string()))
    }
}

/// Opened for appending: one write is one line, and survives a kill as soon as it returns.
fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn append(mut file: &File, line: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    file.write_all(&bytes)
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    let text = fs::read_to_string(path)?;
    // The last line may be in the middle of its one write.
    let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
    whole.lines().map(|line| serde_json::from_str(line).map_err(io::Error::from)).collect()
}
