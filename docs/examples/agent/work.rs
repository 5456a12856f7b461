//! One life of the agent: what a program needs of onlyonce.

use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use onlyonce::{
    Attempt, ClaimHandle, Error, ErrorKind, Fingerprint, OnInterrupted, Operation, Reconciled,
    RefusedKind, Run, Step, Store,
};

use crate::Result;
use crate::options::{Choice, Fault, Life};
use crate::world::{Answer, Mail, World};

/// Why a task stopped: an error of the store, or one of the world.
#[derive(Debug)]
pub(crate) struct TaskError {
    message: String,
    /// Nobody knows whether a call was made: the processes that hosted the store were killed over it.
    is_unknown: bool,
    /// The process that had asked us about the task was killed, and the next one has asked another agent.
    is_lost: bool,
}

impl From<Error> for TaskError {
    fn from(error: Error) -> Self {
        let is_unknown = error.kind() == ErrorKind::Indeterminate;
        let is_lost = error.kind() == ErrorKind::ClaimLost;
        TaskError { message: error.to_string(), is_unknown, is_lost }
    }
}

impl From<std::io::Error> for TaskError {
    fn from(error: std::io::Error) -> Self {
        TaskError { message: error.to_string(), is_unknown: false, is_lost: false }
    }
}

impl std::fmt::Display for TaskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TaskError {}

pub(crate) fn operation(task: u64, choice: Choice) -> Operation<'static> {
    let on_interrupted = match choice {
        Choice::Hold => OnInterrupted::Hold,
        Choice::TakeOver => OnInterrupted::Retry,
    };
    Operation::new(("task", task)).on_interrupted(on_interrupted).owner("the agent")
}

/// Does what is left of all tasks. Answers each once it is done, or held.
pub(crate) fn work(life: &Life) -> Result<()> {
    let world = World::open(&life.dir)?;
    // Several agents may have it open: one hosts it, and another takes its place when that one is killed.
    let store = Store::builder().shared(life.processes > 1).open_or_create(world.keys())?;
    // Held ones are looked at again once the operator had a look: by the life that ends by itself.
    let answered = world.answered(life.limit.is_some())?;
    // Each begins elsewhere, so that they meet in the midst of their work.
    let first = life.tasks * life.number as u64 / life.processes as u64;
    let tasks = (first..life.tasks).chain(0..first);
    let mut left: VecDeque<u64> = tasks.filter(|task| !answered.contains(task)).collect();
    let mut done = 0;
    while let Some(task) = left.pop_front() {
        if life.limit.is_some_and(|limit| done >= limit) {
            // The driver kills it here, or has done so before.
            thread::sleep(Duration::from_secs(600));
            return Err("nobody killed it".into());
        }
        let run = store
            .runner(operation(task, life.choice))
            .reconcile(|lost: &Attempt| {
                // The model is asked again by its request id, and an edit twice does no harm. Only the mail can't be asked about.
                Ok::<_, TaskError>(match lost.open_step() {
                    Some("send") => Reconciled::Unknown,
                    _ => Reconciled::NotApplied,
                })
            })
            .run(|claim| work_on(task, claim, &world, life));
        let run = match run {
            // The next run of the task finds out what its steps have done.
            Err(e) if e.is_unknown || (e.is_lost && life.processes > 1) => {
                left.push_back(task);
                continue;
            }
            run => run?,
        };
        match run {
            Run::Unrecorded(_, e) if e.kind() == ErrorKind::Indeterminate => {
                left.push_back(task);
                continue;
            }
            Run::Done(result) | Run::Replayed(result, _) => {
                world.answer(&Answer { task, result: Some(result) })?;
            }
            // Another agent is at it.
            Run::Refused(refused) if refused.kind() == RefusedKind::InProgress => {
                left.push_back(task);
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            Run::Refused(_) => world.answer(&Answer { task, result: None })?,
            other => return Err(format!("task {task}: {other}").into()),
        }
        done += 1;
    }
    Ok(())
}

fn work_on(
    task: u64,
    claim: &ClaimHandle,
    world: &World,
    life: &Life,
) -> Result<String, TaskError> {
    let prompt = format!("tidy up number {task}");
    let plan: String = claim.step(Step::new("plan").input(Fingerprint::of(&prompt)), |step| {
        let request_id = match life.plant {
            Some(Fault::Bill) => format!("{}", claim.token()),
            _ => step.downstream_key(),
        };
        Ok::<_, TaskError>(world.ask_model(task, &prompt, &request_id)?)
    })?;
    claim.step("edit", |_step| Ok::<_, TaskError>(world.edit(task, &plan)?))?;
    claim.save_progress("edited")?;
    claim.step(Step::new("send").announced(), |step| {
        let mail = Mail { task, token: claim.token().get(), attempt: claim.attempt() };
        if step.may_have_run() && life.plant != Some(Fault::Mail) {
            match life.choice {
                Choice::Hold => {
                    return Err(step.hold("the mailer can't be asked whether it was sent").into());
                }
                Choice::TakeOver => world.note_repeat(&mail)?,
            }
        }
        Ok::<_, TaskError>(world.send(&mail)?)
    })?;
    Ok(plan)
}
