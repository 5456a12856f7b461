//! Kills the agent with SIGKILL at random moments, plays the operator, and lets the agent end.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use onlyonce::admin::StateKind;
use onlyonce::{Outcome, Resolution, State, Store};

use crate::Result;
use crate::options::{Choice, Fault, Options};
use crate::world::World;

const SIGKILL: i32 = 9;
/// Tasks a life may end at most, so that all kills come before the work is done.
const TASKS_A_LIFE: usize = 6;
/// One kill in four falls so early: into the opening, or the recovery from the kill before.
const OPENING: u64 = 20_000;
/// How long a kill waits for a line.
const LONGEST: Duration = Duration::from_millis(300);
/// The others fall so soon after a line of the bill or of the outbox: the model and the mailer are slower to answer.
const MICROS_AFTER_A_LINE: u64 = 4_000;

/// What came of the agent's lives.
pub(crate) struct Driven {
    pub(crate) world: World,
    pub(crate) choice: Choice,
    pub(crate) tasks: u64,
    pub(crate) kills: usize,
    pub(crate) took: Duration,
    /// Tasks that the operator found held, and how many of them had their mail in the outbox.
    pub(crate) held: usize,
    pub(crate) were_sent: usize,
}

pub(crate) fn until_done(parent: &Path, choice: Choice, options: &Options) -> Result<Driven> {
    let begun = Instant::now();
    let dir = parent.join(choice.name());
    let world = World::open(&dir)?;
    let tasks = ((options.kills + 2 * options.processes) * TASKS_A_LIFE) as u64;
    let mut dice = Dice(options.seed ^ choice as u64);
    let start =
        |number, limit| start(&dir, choice, options, tasks, (number, options.processes), limit);
    // Those that work while another is killed.
    let mut beside = Vec::new();
    for number in 0..options.processes {
        beside.push(start(number, Some(TASKS_A_LIFE))?);
    }
    for _ in 0..options.kills {
        let moment = Moment::choose(&mut dice, &world)?;
        let victim = dice.below(options.processes as u64) as usize;
        let child = beside.get_mut(victim).ok_or("no such process")?;
        kill(child, &moment, &world)?;
        *child = start(victim, Some(TASKS_A_LIFE))?;
    }
    for mut child in beside {
        child.kill()?;
        child.wait()?;
    }
    let mut driven = Driven {
        world,
        choice,
        tasks,
        kills: options.kills,
        took: begun.elapsed(),
        held: 0,
        were_sent: 0,
    };
    loop {
        let children = (0..options.processes).map(|number| start(number, None));
        for child in children.collect::<Result<Vec<_>>>()?.iter_mut() {
            let status = child.wait()?;
            if !status.success() {
                return Err(format!("the agent failed: {status}").into());
            }
        }
        if resolve(&mut driven)? == 0 {
            break;
        }
    }
    driven.took = begun.elapsed();
    Ok(driven)
}

/// The operator: looks into the outbox for each held task, and says what is to become of it.
fn resolve(driven: &mut Driven) -> Result<usize> {
    let store = Store::open(driven.world.keys())?;
    let mails = driven.world.mails()?;
    let mut resolved = 0;
    for entry in store.iter().in_states(&[StateKind::Held, StateKind::Interrupted]).oldest_first() {
        let (key, state) = entry?;
        let (State::Held(attempt) | State::Interrupted(attempt)) = state else { continue };
        let task: u64 = (0..driven.tasks)
            .find(|task| onlyonce::Key::from(("task", *task)) == key)
            .ok_or(format!("no task is called {key}"))?;
        let was_sent = mails.iter().any(|mail| mail.task == task);
        let resolution = match was_sent {
            true => {
                Resolution::Record(Outcome::success(&format!("a plan for tidy up number {task}")))
            }
            false => Resolution::retry("the outbox has no such mail"),
        };
        if !store.resolve(&attempt, resolution)? {
            return Err(format!("{key} changed while nobody was at work").into());
        }
        resolved += 1;
        driven.were_sent += usize::from(was_sent);
    }
    driven.held += resolved;
    Ok(resolved)
}

/// When a kill falls.
enum Moment {
    After(Duration),
    /// When there are so many lines of the bill, or mails, and a little later.
    Lines {
        bill: bool,
        count: usize,
        later: Duration,
    },
}

impl Moment {
    fn choose(dice: &mut Dice, world: &World) -> Result<Self> {
        let kind = dice.below(4);
        if kind == 0 {
            return Ok(Moment::After(Duration::from_micros(dice.below(OPENING))));
        }
        let (bill, more) = (kind == 1, 1 + dice.below(TASKS_A_LIFE as u64 - 2) as usize);
        let count = lines(world, bill)? + more;
        Ok(Moment::Lines {
            bill,
            count,
            later: Duration::from_micros(dice.below(MICROS_AFTER_A_LINE)),
        })
    }
}

fn lines(world: &World, bill: bool) -> Result<usize> {
    Ok(if bill { world.billed()?.len() } else { world.mails()?.len() })
}

fn kill(child: &mut Child, moment: &Moment, world: &World) -> Result<()> {
    let begun = Instant::now();
    match moment {
        Moment::After(wait) => thread::sleep(*wait),
        Moment::Lines { bill, count, later } => {
            // A life whose tasks are all held or replayed bills nothing.
            while lines(world, *bill)? < *count && begun.elapsed() < LONGEST {
                thread::sleep(Duration::from_micros(200));
            }
            thread::sleep(*later);
        }
    }
    child.kill()?;
    let status = child.wait()?;
    match status.signal() {
        Some(SIGKILL) => Ok(()),
        _ => Err(format!("the agent ended before it was killed: {status}").into()),
    }
}

/// This program again, with the work as its only task.
fn start(
    dir: &Path,
    choice: Choice,
    options: &Options,
    tasks: u64,
    (number, of): (usize, usize),
    limit: Option<usize>,
) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("work").arg(dir).arg(choice.name()).arg(Fault::name(options.plant));
    command.args([tasks.to_string(), number.to_string(), of.to_string()]);
    command.args(limit.map(|limit| limit.to_string()));
    Ok(command.spawn()?)
}

/// splitmix64: the moments of the kills.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}
