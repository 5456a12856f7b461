//! Kills the work with SIGKILL at random moments, and starts it again, until it is done.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::files::{Run, Tail};
use crate::options::{Options, Share};
use crate::random::Random;
use crate::screen::{self, Screen};

const SIGKILL: i32 = 9;
/// How long a kill waits for answers.
const LONGEST: Duration = Duration::from_secs(2);
/// How often the child is looked at. Short: it answers a dozen deliveries in a millisecond.
const LOOK: Duration = Duration::from_micros(200);

/// When the next kill falls.
enum Moment {
    /// So long after the start: into the opening, and the recovery from the kill before.
    After(Duration),
    /// When so many deliveries have been answered, and a little later: into the work.
    Answered(usize, Duration),
}

/// Starts the work and kills it, `wanted` times; then lets it end. Returns the number of kills. Where several processes share the
/// work, each kill takes one of them, and the others work on.
///
/// However slow or fast the machine, all kills come before the work is done: the work that is left is shared
/// out among the kills that are left, and no life may take so much that a later one goes without.
pub(crate) fn until_done(
    run: &Run,
    wanted: usize,
    options: &Options,
    deliveries: usize,
    screen: &mut Screen,
) -> Result<usize> {
    let mut random = Random::new(options.seed ^ 0x6b69_6c6c);
    let mut answers = Tail::new(&run.answers());
    let of = options.processes;
    let shares: Vec<_> = (0..of).map(|number| Share { number, of }).collect();
    let first_limit = deliveries / (wanted + 1);
    let mut lives = Vec::new();
    for share in &shares {
        lives.push((*share, start(run, *share, Some(first_limit))?));
    }
    for kills in 0..wanted {
        let answered = answers.lines()?;
        screen.show(answered, kills);
        let (left, more) = (deliveries.saturating_sub(answered), wanted - kills);
        let each = left / (more + 1);
        let limit = (2 * each).min(left.saturating_sub(more));
        let moment = choose(&mut random, answered, each);
        let victim = random.below(of as u64) as usize;
        let (share, child) = lives.get_mut(victim).ok_or("no such process")?;
        kill_at(&moment, child, &mut answers)?;
        *child = start(run, *share, Some(limit))?;
    }
    // They have done what they may.
    for (_, mut child) in lives {
        child.kill()?;
        child.wait()?;
    }
    let mut children: Vec<_> =
        shares.iter().map(|share| start(run, *share, None)).collect::<Result<_>>()?;
    for child in &mut children {
        while child.try_wait()?.is_none() {
            screen.show(answers.lines()?, wanted);
            thread::sleep(screen::PAUSE);
        }
        let status = child.wait()?;
        if !status.success() {
            return Err(format!("the work failed: {status}").into());
        }
    }
    screen.done(answers.lines()?, wanted);
    Ok(wanted)
}

/// One kill in five falls into the first milliseconds of the child's life; without work to wait for, each does.
fn choose(random: &mut Random, answered: usize, share: usize) -> Moment {
    if share == 0 || random.percent(20) {
        return Moment::After(random.micros_below(25_000));
    }
    let more = 1 + random.below(share as u64) as usize;
    Moment::Answered(answered + more, random.micros_below(3_000))
}

/// Kills the work at `moment`.
fn kill_at(moment: &Moment, child: &mut Child, answers: &mut Tail) -> Result<()> {
    let begun = Instant::now();
    let due = |answers: &mut Tail| match moment {
        Moment::After(wait) => Ok(begun.elapsed() >= *wait),
        // Where others share the work, its own share may be done.
        Moment::Answered(..) if begun.elapsed() > LONGEST => Ok(true),
        Moment::Answered(lines, _) => answers.lines().map(|now| now >= *lines),
    };
    while !due(answers)? && child.try_wait()?.is_none() {
        thread::sleep(LOOK);
    }
    if let Moment::Answered(_, wait) = moment {
        thread::sleep(*wait);
    }
    // `kill` sends SIGKILL: the child has no say in it, and its destructors don't run.
    child.kill()?;
    let status = child.wait()?;
    if status.signal() != Some(SIGKILL) {
        return Err(format!("the work ended before it was killed: {status}").into());
    }
    Ok(())
}

/// This program again, with the work as its only task.
fn start(run: &Run, share: Share, limit: Option<usize>) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("work").arg(&run.dir).arg(run.choice.slug()).arg(&run.feed);
    command.args([share.number.to_string(), share.of.to_string()]);
    command.args(limit.map(|limit| limit.to_string()));
    Ok(command.spawn()?)
}
