//! Counts from the files alone whether everything was done as promised.

use std::collections::BTreeMap;
use std::fmt;

use onlyonce::{State, Store};

use crate::Result;
use crate::drive::Driven;
use crate::options::Choice;

pub(crate) struct Ledger {
    choice: Choice,
    tasks: u64,
    kills: usize,
    seconds: f64,
    held: usize,
    were_sent: usize,
    billed: usize,
    mails: usize,
    /// Second mails of a task that were noted before they were sent.
    noted: usize,
    /// What must not be.
    wrongs: Vec<String>,
}

impl Ledger {
    pub(crate) fn of(driven: &Driven) -> Result<Self> {
        let Driven { world, choice, tasks, kills, took, held, were_sent } = driven;
        let (billed, mails, repeats) = (world.billed()?, world.mails()?, world.repeats()?);
        let store = Store::open(world.keys())?;
        let mut wrongs = Vec::new();
        let (mut bills, mut sent) = (BTreeMap::<u64, usize>::new(), BTreeMap::<u64, usize>::new());
        billed.iter().for_each(|billed| *bills.entry(billed.task).or_default() += 1);
        mails.iter().for_each(|mail| *sent.entry(mail.task).or_default() += 1);
        let mut noted = 0;
        for task in 0..*tasks {
            let plan = format!("a plan for tidy up number {task}");
            let bills = bills.get(&task).copied().unwrap_or_default();
            if bills != 1 {
                wrongs.push(format!("task {task} is billed {bills} times"));
            }
            let sent = sent.get(&task).copied().unwrap_or_default();
            let repeated = repeats.iter().filter(|repeat| repeat.task == task).count();
            // A repeat that was noted may not have been sent before, nor then.
            if sent == 0 || sent > 1 + repeated {
                wrongs.push(format!("task {task} sent {sent} mails, {repeated} noted before"));
            }
            noted += sent.saturating_sub(1);
            if world.edited(task).ok().as_deref() != Some(&plan) {
                wrongs.push(format!("the file of task {task} isn't edited"));
            }
            match store.get(("task", task))? {
                Some(State::Completed(done)) if done.decode::<String>()? == plan => {}
                other => wrongs.push(format!("task {task} is {other:?}")),
            }
        }
        for answer in world.answers()? {
            let plan = format!("a plan for tidy up number {}", answer.task);
            if answer.result.is_some_and(|result| result != plan) {
                wrongs.push(format!("task {} was answered by another plan", answer.task));
            }
        }
        // The outbox is in the order of time, and so are the tokens of one task.
        let mut newest = BTreeMap::new();
        for mail in &mails {
            let before = newest.insert(mail.task, (mail.token, mail.attempt));
            if before.is_some_and(|before| before >= (mail.token, mail.attempt)) {
                wrongs.push(format!("task {} has a token that doesn't grow", mail.task));
            }
        }
        Ok(Ledger {
            choice: *choice,
            tasks: *tasks,
            kills: *kills,
            seconds: took.as_secs_f64(),
            held: *held,
            were_sent: *were_sent,
            billed: billed.len(),
            mails: mails.len(),
            noted,
            wrongs,
        })
    }

    pub(crate) fn balances(&self) -> bool {
        self.wrongs.is_empty()
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ledger { tasks, kills, seconds, held, were_sent, billed, mails, noted, .. } = self;
        writeln!(f, "{}: {tasks} tasks, {kills} kills, {seconds:.1} s", self.choice.name())?;
        writeln!(
            f,
            "  billed {billed}, mails {mails}, of which {noted} were noted as a repeat before"
        )?;
        writeln!(f, "  held {held}, of which {were_sent} had been sent")?;
        for wrong in self.wrongs.iter().take(10) {
            writeln!(f, "  WRONG: {wrong}")?;
        }
        let balances = if self.balances() { "balances" } else { "does not balance" };
        write!(f, "  {} wrong: the ledger {balances}", self.wrongs.len())
    }
}
