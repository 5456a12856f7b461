//! Lives of the consumer: each is killed with SIGKILL at a random moment, and the last one may end.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::options::{Choice, Options};
use crate::queue::Queue;
use crate::random::Random;

const SIGKILL: i32 = 9;
/// How often the consumer is looked at.
const LOOK: Duration = Duration::from_micros(200);
/// About as many as a line of the ledger has.
const LINE_BYTES: u64 = 40;

/// When a kill falls.
enum Moment {
    /// So long after the start: into the opening, and the recovery from the kill before.
    After(Duration),
    /// When this offset is committed, and a little later: between two polls, or into the work.
    Committed(u64, Duration),
    /// When the ledger has grown to so many bytes: into the work.
    Handled(u64),
}

/// Starts the consumer and kills it, as often as asked for; then lets it end. Returns the number of kills.
///
/// However slow or fast the machine, all kills come before the queue is empty: the messages that are left are shared out
/// among the kills that are left, and no life may take so many that a later one goes without.
pub(crate) fn live_and_die(options: &Options, choice: Choice, queue: &Queue) -> Result<u64> {
    let mut random = Random::new(options.seed ^ 0x6b69_6c6c);
    let messages = queue.messages()?.len() as u64;
    for kills in 0..options.lives {
        let (committed, lives) = (queue.committed()?, options.lives - kills);
        let left = messages.saturating_sub(committed);
        let share = left / (lives + 1);
        let stop_at = committed + (2 * share).min(left.saturating_sub(lives));
        let moment = match random.below(5) {
            _ if share == 0 => Moment::After(random.micros_below(25_000)),
            0 => Moment::After(random.micros_below(25_000)),
            1 | 2 => Moment::Handled(queue.ledger_bytes() + random.below(LINE_BYTES * share)),
            _ => {
                let offset = committed + 1 + random.below(stop_at - committed);
                Moment::Committed(offset, random.micros_below(5_000))
            }
        };
        let child = start(options, choice, queue, kills + 1, Some(stop_at))?;
        kill_at(&moment, child, queue, stop_at)?;
    }
    last_life(options, choice, queue, options.lives + 1)?;
    Ok(options.lives)
}

/// One life more, which nobody ends.
pub(crate) fn last_life(
    options: &Options,
    choice: Choice,
    queue: &Queue,
    number: u64,
) -> Result<()> {
    let status = start(options, choice, queue, number, None)?.wait()?;
    if status.success() { Ok(()) } else { Err(format!("the consumer failed: {status}").into()) }
}

fn kill_at(moment: &Moment, mut child: Child, queue: &Queue, stop_at: u64) -> Result<()> {
    let begun = Instant::now();
    let is_due = || match moment {
        Moment::After(wait) => Ok(begun.elapsed() >= *wait),
        Moment::Committed(offset, _) => queue.committed().map(|now| now >= *offset),
        // Of messages that are held, or were handled before, no line comes.
        Moment::Handled(bytes) => {
            Ok(queue.ledger_bytes() >= *bytes || queue.committed()? >= stop_at)
        }
    };
    while !is_due()? && child.try_wait()?.is_none() {
        thread::sleep(LOOK);
    }
    if let Moment::Committed(_, wait) = moment {
        thread::sleep(*wait);
    }
    // `kill` sends SIGKILL: the consumer has no say in it, and its destructors don't run.
    child.kill()?;
    let status = child.wait()?;
    if status.signal() != Some(SIGKILL) {
        return Err(format!("the consumer ended before it was killed: {status}").into());
    }
    Ok(())
}

/// This program again, as one life of the consumer.
fn start(
    options: &Options,
    choice: Choice,
    queue: &Queue,
    number: u64,
    stop_at: Option<u64>,
) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("live").arg(&queue.dir).args([choice.slug(), options.fault.slug()]);
    command.arg(number.to_string()).args(stop_at.map(|at| at.to_string()));
    Ok(command.spawn()?)
}
