//! `onlyonce doctor`: looks at everything that an operator would, and says what to do next.

use std::path::{Path, PathBuf};

use onlyonce::admin::{Health, StateKind, Stats};
use onlyonce::{State, Store};
use serde::Serialize;

use crate::args::{Common, Doctor};
use crate::exit::{self, Result};
use crate::keys::spaces_within;
use crate::open::{self, Needs};
use crate::screen::{BAD, DIM, GOOD, Screen, WARN, plain};
use crate::shown::{self, KeyLine};
use crate::upkeep::{bytes, health_words};

#[derive(Serialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Look at it in the next days.
    Warning,
    /// Do something now.
    Alarm,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Check {
    r#type: &'static str,
    /// A word for programs.
    check: &'static str,
    level: Level,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl Check {
    fn new(check: &'static str, level: Level, message: impl Into<String>) -> Self {
        Check { r#type: "check", check, level, message: message.into(), next: None }
    }

    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Check::new(check, Level::Ok, message)
    }

    fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

pub(crate) fn doctor(common: &Common, doctor: &Doctor, screen: &Screen) -> Result<u8> {
    let dir = open::dir(common)?;
    let mut worst = Level::Ok;
    let mut say = |check: Check| -> Result<()> {
        worst = worst.max(check.level);
        print(screen, &check)
    };
    say(versions())?;
    say(file_system(dir))?;
    // What follows needs the store; if it doesn't open, the error says what to do.
    let store = open::root(common, Needs::default())?;
    let stats = store.stats();
    say(space(dir, &stats))?;
    say(health(&store.health()))?;
    for check in alarms(&stats) {
        say(check)?;
    }
    let spaces = spaces_within(Vec::new(), store)?;
    let mut stuck = 0;
    for (names, space) in &spaces {
        stuck += stuck_in(names, space, doctor, screen, &mut say, stuck)?;
    }
    if stuck == 0 {
        say(Check::ok("stuck_keys", "no key is interrupted or held"))?;
    }
    Ok(match worst {
        Level::Ok => 0,
        Level::Warning | Level::Alarm => exit::NO,
    })
}

fn print(screen: &Screen, check: &Check) -> Result<()> {
    if screen.is_json() {
        return screen.object(check);
    }
    if screen.is_quiet() && check.level == Level::Ok {
        return Ok(());
    }
    let (style, word) = match check.level {
        Level::Ok => (GOOD, "ok"),
        Level::Warning => (WARN, "warning"),
        Level::Alarm => (BAD, "alarm"),
    };
    let name = check.check.replace('_', " ");
    screen.line(format!("{style}{word:<8}{style:#} {name:<14} {}", plain(&check.message)))?;
    match &check.next {
        Some(next) => screen.line(format!("{:24}{DIM}next: {}{DIM:#}", "", plain(next))),
        None => Ok(()),
    }
}

fn versions() -> Check {
    let system = rustix::system::uname();
    let (name, release) = (system.sysname().to_string_lossy(), system.release().to_string_lossy());
    Check::ok("version", format!("onlyonce {}, on {name} {release}", env!("CARGO_PKG_VERSION")))
}

/// The mount under which a path lies: its kind and its options.
fn mount_of(dir: &Path) -> Option<(String, String)> {
    let dir = dir.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let parsed = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = PathBuf::from(unescaped(fields.next()?));
        Some((place, fields.next()?.to_owned(), fields.next()?.to_owned()))
    });
    let over = parsed.filter(|(place, ..)| dir.starts_with(place));
    // A later mount hides an earlier one at the same place.
    let nearest = over.max_by_key(|(place, ..)| place.components().count())?;
    Some((nearest.1, nearest.2))
}

/// Spaces in paths are written as `\040`.
fn unescaped(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

fn file_system(dir: &Path) -> Check {
    let Some((kind, options)) = mount_of(dir) else {
        return Check::ok("file_system", format!("unknown, of {}", dir.display()));
    };
    let message = format!("{kind}, mounted with {options}");
    let has = |option: &str| options.split(',').any(|word| word == option);
    if has("nobarrier") || has("barrier=0") {
        return Check::new("file_system", Level::Alarm, message)
            .next("mount it with barriers: without them a power loss takes what was acknowledged");
    }
    let check = |level| Check::new("file_system", level, message.as_str());
    match kind.as_str() {
        "ext4" | "xfs" => check(Level::Ok),
        "tmpfs" | "ramfs" => {
            check(Level::Warning).next("it is gone after a restart: keep the store on a disk")
        }
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "ceph" => {
            check(Level::Alarm).next("its locks may not work: keep the store on a local disk")
        }
        kind if kind.starts_with("fuse") => check(Level::Alarm)
            .next("its locks and syncs may not work: keep the store on a local disk"),
        _ => check(Level::Warning)
            .next("the store is designed for ext4, XFS and tmpfs (docs/durability.md)"),
    }
}

fn space(dir: &Path, stats: &Stats) -> Check {
    let free = match rustix::fs::statvfs(dir) {
        Ok(system) => system.f_bavail.saturating_mul(system.f_frsize),
        Err(error) => return Check::new("space", Level::Warning, format!("unknown: {error}")),
    };
    let segment = stats.log_bytes / stats.segments.max(1);
    let live = stats.estimate_at_checkpoint.map(|estimate| estimate.live_bytes);
    let message = format!("{} free, the store takes {}", bytes(free), bytes(stats.disk_bytes));
    let next = "free some space, or forget keys and compact (docs/operations.md, \"A full disk\")";
    if free < 2 * segment {
        return Check::new("space", Level::Alarm, message).next(next);
    }
    if live.is_some_and(|live| free < 2 * live) {
        return Check::new("space", Level::Warning, message).next(next);
    }
    Check::ok("space", message)
}

fn health(health: &Health) -> Check {
    let (word, cause) = health_words(health);
    let message =
        word.replace('_', " ") + &cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    let next = match health {
        Health::Writable => return Check::ok("health", message),
        // No other process can look at the store while this one does, and nothing is wrong with its data.
        Health::Alone { .. } => return Check::new("health", Level::Warning, message),
        Health::Full { .. } | Health::WaitsForSpace => "free some space: no restart is needed",
        Health::Silent { .. } => {
            "look at that process: it is stopped, or waits for its disk; if it ends, another takes its place"
        }
        _ => "look at the device, then open the store again",
    };
    Check::new("health", Level::Alarm, message).next(next)
}

/// As docs/operations.md has them, "What to watch", as far as one look tells.
fn alarms(stats: &Stats) -> Vec<Check> {
    let mut checks = Vec::new();
    let opening = &stats.opening;
    checks.push(if opening.was_clean {
        Check::ok("last_process", "closed the store")
    } else {
        let cut = opening.cut.as_ref().map_or(0, |cut| cut.bytes());
        let message = format!(
            "died: {} records were read, and {cut} bytes of an unfinished write cut off",
            opening.records_read
        );
        Check::new("last_process", Level::Warning, message)
            .next("nothing that was acknowledged is lost; find out why it died")
    });
    if let Some(error) = &stats.background_error {
        checks.push(Check::new("background", Level::Alarm, error.clone()).next("onlyonce verify"));
    }
    if stats.log_bytes_since_checkpoint > CHECKPOINT_BYTES_MOST {
        let message = format!("none for {}", bytes(stats.log_bytes_since_checkpoint));
        checks.push(
            Check::new("checkpoint", Level::Warning, message)
                .next("an open after a crash takes long; look at the process that owns the store"),
        );
    }
    if stats.tables_mended > 0 {
        let message =
            format!("{} tables were damaged or missing, and were rebuilt", stats.tables_mended);
        checks.push(
            Check::new("index", Level::Warning, message)
                .next("a crash damages no table: check the device, then onlyonce verify"),
        );
    } else {
        checks.push(Check::ok("index", format!("{} keys in {} tables", stats.keys, stats.tables)));
    }
    checks.push(Check::ok(
        "waiting",
        format!("{} claims detached, {} attempts delayed", stats.detached, stats.delayed),
    ));
    checks
}

/// A checkpoint is due after half of it.
const CHECKPOINT_BYTES_MOST: u64 = 512 << 20;

/// Says each stuck key of a namespace, the oldest first, up to the limit; returns how many there are.
fn stuck_in(
    names: &[String],
    space: &Store,
    doctor: &Doctor,
    screen: &Screen,
    say: &mut impl FnMut(Check) -> Result<()>,
    before: u64,
) -> Result<u64> {
    let stuck = [StateKind::Interrupted, StateKind::Held];
    let onlyonce = shown::onlyonce_in(names);
    let mut unsaid_level = Level::Ok;
    let mut count = 0;
    for entry in space.iter().in_states(&stuck).oldest_first() {
        let (key, state) = entry?;
        count += 1;
        let (State::Interrupted(attempt) | State::Held(attempt)) = &state else { continue };
        let age = attempt.since().elapsed().unwrap_or_default();
        let is_old = doctor.stuck_for.is_none_or(|most| age >= most);
        let level = if is_old { Level::Warning } else { Level::Ok };
        if before + count > doctor.limit {
            unsaid_level = unsaid_level.max(level);
            continue;
        }
        let place: String = names.iter().map(|name| format!("{name} / ")).collect();
        let word = shown::word(&state);
        let key = key.to_string();
        let check = Check::new("stuck_keys", level, format!("{place}{key} is {word}: {attempt}"));
        say(check.next(format!("{onlyonce} show {}", shown::quoted(&key))))?;
        if screen.is_json() {
            screen.object(&KeyLine::of(names, &state, false))?;
        }
    }
    let unsaid = (before + count).saturating_sub(doctor.limit.max(before));
    if unsaid > 0 {
        let message = format!("{unsaid} more keys are interrupted or held");
        say(Check::new("stuck_keys", unsaid_level, message)
            .next(format!("{onlyonce} list --state stuck --oldest-first")))?;
    }
    Ok(count)
}
