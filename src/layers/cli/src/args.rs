//! The arguments: each command, its options, and the texts of `--help`, from which the man page and the completions are made.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use onlyonce::Key;
use onlyonce::admin::StateKind;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER: &str = "\
A KEY is written as it is displayed: order-17, 17, (\"order\", 17). Text that could be anything else stands in \
quotes: '\"17\"' is text, 17 a number.\n\
A DURATION is a number of seconds, or has units: 90, 90s, 1h30m, 7days.\n\n\
Exit codes:\n  \
0    done; `run`: the command's own exit code, also when it is replayed\n  \
1    no: no such key, changed meanwhile, something to look at (`doctor`)\n  \
64   wrong usage\n  \
65   the key was used with another fingerprint\n  \
69   done before, and its result is no longer kept\n  \
74   the store: it is missing, damaged, full, or can't be read or written\n  \
75   try again later: the key is in progress or delayed, or another process has the store open\n  \
76   the key is held or interrupted: somebody has to decide\n  \
124  `run --timeout`: the command took too long; 137 if it had to be killed\n  \
125  `run`: onlyonce itself failed\n  \
126  `run`: the command can't be executed\n  \
127  `run`: the command isn't found\n  \
128+N  `run`: the command was killed by signal N";

/// Runs commands once, and looks after the store that knows which were run.
#[derive(Parser, Debug)]
#[command(name = "onlyonce", version, styles = STYLES, after_help = AFTER, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// The directory of the store
    #[arg(long, short = 's', env = "ONLYONCE_STORE", value_name = "DIR", global = true, value_hint = ValueHint::DirPath)]
    pub(crate) store: Option<PathBuf>,
    /// The namespace of the keys; several for a namespace within another
    #[arg(long, short = 'n', value_name = "NAME", global = true)]
    pub(crate) namespace: Vec<String>,
    /// Print JSON: an object a line, as schema.json describes them
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing but results: no notes, no progress
    #[arg(long, short = 'q', global = true)]
    pub(crate) quiet: bool,
    /// Whether to use colours
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true)]
    pub(crate) color: When,
    /// How long to wait while another process has the store open
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s", global = true)]
    pub(crate) open_timeout: Duration,
    /// Open a store on a network file system, whose locks may not work
    #[arg(long, global = true)]
    pub(crate) allow_network_fs: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    Auto,
    Always,
    Never,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make a store in a new or empty directory
    Init,
    /// Run a command once, and replay its output and exit code from then on
    Run(Box<Run>),
    /// List keys and their states
    #[command(visible_alias = "ls")]
    List(List),
    /// Show all that is known about keys
    Show(Show),
    /// Decide about an interrupted or held key
    Resolve(Resolve),
    /// Forget keys: the next claim treats them as new
    Forget(Forget),
    /// Revoke a live claim, whose owner hangs: its key becomes interrupted
    Interrupt(Interrupt),
    /// Print keys as they change
    Watch(Watch),
    /// Say what in the store needs somebody, and what to do next
    Doctor(Doctor),
    /// Print the store's figures
    Stats(StatsOf),
    /// Read everything, and list all damage
    Verify,
    /// Reclaim the space of what was forgotten, has expired or was overwritten
    Compact(Compact),
    /// Make a backup, which is a store of its own
    Backup(Backup),
    /// Save what can be saved of a damaged store: only what loses nothing, unless told otherwise
    Repair(Repair),
    /// Rebuild the index from the log
    RebuildIndex,
    /// Keep the store open for the processes that share it, until SIGTERM, SIGINT or SIGHUP
    Serve(Serve),
    /// Print every key and its outcome as lines of JSON
    Export(Export),
    /// Record keys as done: exported ones, or ids of work that was done elsewhere
    Import(Import),
    /// Print the completions of a shell
    Completions(Completions),
    /// Print the manual page
    Man(Man),
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// The key that names the work
    #[arg(value_parser = key)]
    pub(crate) key: Key<'static>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
    /// Make the store if there is none
    #[arg(long)]
    pub(crate) create: bool,
    /// Wait while the key is in progress or delayed, for ever or so long
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = duration, default_missing_value = "forever")]
    pub(crate) wait: Option<Duration>,
    /// After so long others may take the command for hung: its key then reads interrupted
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) lease: Option<Duration>,
    /// How long the outcome is kept [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) retention: Option<Duration>,
    /// What to do if an earlier attempt died half-way, so that nobody knows what it did [default: refuse, exit code 76]
    ///
    /// hold: refuse, and hold the key: until somebody resolves it, it is refused to every run, whatever its options.
    /// retry: run the command again; its effect may happen twice.
    /// ask COMMAND: a shell runs COMMAND, which finds out. Its exit code 0 means that the work was done: what it prints is
    /// recorded as the output. 1 means that nothing was done: the command runs. Any other leaves the key interrupted.
    #[arg(long, value_name = "hold|retry|ask COMMAND", value_parser = on_interrupted)]
    pub(crate) on_interrupted: Option<OnInterrupted>,
    /// What to do with an exit code other than 0
    ///
    /// record: it is the outcome, and is replayed.
    /// retry: the attempt had no effect, and the next run runs the command again.
    #[arg(
        long,
        value_name = "record|retry",
        default_value = "record",
        hide_possible_values = true
    )]
    pub(crate) on_failure: OnFailure,
    /// Hold the key after so many attempts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) attempts: Option<u32>,
    /// Refuse the key with another command or other arguments
    #[arg(long)]
    pub(crate) fingerprint_args: bool,
    /// Refuse the key with other contents of this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) fingerprint_file: Vec<PathBuf>,
    /// Refuse the key with another value of this environment variable
    #[arg(long, value_name = "NAME")]
    pub(crate) fingerprint_env: Vec<OsString>,
    /// Record so many bytes of output; what is beyond passes through, and isn't replayed
    #[arg(long, value_name = "N", default_value = "256KiB", value_parser = size)]
    pub(crate) max_output_bytes: u32,
    /// Send the command SIGTERM after so long: nobody knows then what it did, so its key is interrupted
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Send SIGKILL if the command still runs so long after it was sent SIGTERM by --timeout
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "timeout")]
    pub(crate) kill_after: Option<Duration>,
    /// The label of this attempt, which others are shown [default: user, host and process]
    #[arg(long, value_name = "LABEL")]
    pub(crate) owner: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum OnInterrupted {
    Hold,
    Retry,
    Ask(String),
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnFailure {
    Record,
    Retry,
}

#[derive(Args, Debug)]
pub(crate) struct Which {
    /// Only keys in these states [default: all]
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    pub(crate) state: Vec<InState>,
    /// Only keys that begin so
    #[arg(long, value_name = "KEY", value_parser = key)]
    pub(crate) prefix: Option<Key<'static>>,
    /// Only keys whose attempt was claimed, or whose outcome was recorded, so long ago or longer
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) older_than: Option<Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Those claimed first come first
    #[arg(long)]
    pub(crate) oldest_first: bool,
    /// Print only so many keys, and where to go on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "CURSOR")]
    pub(crate) after: Option<String>,
    /// Print keys alone, for other programs
    #[arg(long, short = 'k')]
    pub(crate) keys: bool,
    /// List the keys of all namespaces within, too
    #[arg(long, short = 'a', conflicts_with_all = ["limit", "after"])]
    pub(crate) all: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InState {
    /// Interrupted and held
    Stuck,
    /// All but those with an outcome
    Open,
    InProgress,
    Detached,
    Interrupted,
    Held,
    Delayed,
    Aborted,
    Completed,
    Failed,
}

impl InState {
    pub(crate) fn kinds(self) -> &'static [StateKind] {
        match self {
            InState::Stuck => &[StateKind::Interrupted, StateKind::Held],
            InState::Open => &[
                StateKind::InProgress,
                StateKind::Interrupted,
                StateKind::Held,
                StateKind::Delayed,
                StateKind::Aborted,
            ],
            InState::InProgress => &[StateKind::InProgress],
            InState::Detached => &[StateKind::Detached],
            InState::Interrupted => &[StateKind::Interrupted],
            InState::Held => &[StateKind::Held],
            InState::Delayed => &[StateKind::Delayed],
            InState::Aborted => &[StateKind::Aborted],
            InState::Completed => &[StateKind::Completed],
            InState::Failed => &[StateKind::Failed],
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Show {
    /// The keys
    #[arg(required = true, value_parser = key, value_name = "KEY")]
    pub(crate) keys: Vec<Key<'static>>,
    /// Print what is recorded, as it was recorded: the command's output, or the result's bytes
    #[arg(long, short = 'o')]
    pub(crate) output: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Resolve {
    /// The key
    #[arg(value_parser = key)]
    pub(crate) key: Key<'static>,
    /// What you have found out
    pub(crate) finding: Finding,
    /// Why, for others
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Only if the attempt that is to be resolved still has this token, as `show` and `list --json` print it
    #[arg(long, value_name = "N")]
    pub(crate) token: Option<u64>,
    /// The output to record and to replay; `-` reads the standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// The exit code to record and to replay [default: 0, of a failure 1]
    #[arg(long, value_name = "N")]
    pub(crate) exit_code: Option<u8>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finding {
    /// The work was done: it is recorded as completed, and never done again
    Success,
    /// The work has failed for good: it is recorded as failed, and never done again
    Failure,
    /// The attempt had no effect: the next claim is granted
    Retry,
}

#[derive(Args, Debug)]
pub(crate) struct Forget {
    /// The keys
    #[arg(value_parser = key, value_name = "KEY", required_unless_present_any = ["all", "state", "prefix", "older_than"])]
    pub(crate) keys: Vec<Key<'static>>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Forget every key of the namespace, and the namespaces within it
    #[arg(long, conflicts_with_all = ["keys", "state", "prefix", "older_than"])]
    pub(crate) all: bool,
    /// Forget interrupted and held keys, too, about which nobody has decided
    #[arg(long)]
    pub(crate) force: bool,
    /// Print what would be forgotten, and forget nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Interrupt {
    /// The key
    #[arg(value_parser = key)]
    pub(crate) key: Key<'static>,
    /// Why, for others
    #[arg(long, value_name = "TEXT", default_value = "revoked by an operator")]
    pub(crate) reason: String,
    /// Only if the claim still has this token
    #[arg(long, value_name = "N")]
    pub(crate) token: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct Watch {
    /// Until these keys have an outcome, or wait for a decision (exit code 76)
    #[arg(value_parser = key, value_name = "KEY", conflicts_with_all = ["state", "prefix", "older_than"])]
    pub(crate) keys: Vec<Key<'static>>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// How long to wait between two looks
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    pub(crate) interval: Duration,
    /// End after so long (exit code 75)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Name so many stuck keys
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: u64,
    /// Stuck keys are nothing to look at before they are so old
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) stuck_for: Option<Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct StatsOf {
    /// Estimate the live bytes and the keys in each state, too: a few hundred reads
    #[arg(long)]
    pub(crate) estimate: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Compact {
    /// Move at most about so many bytes; the next call goes on [default: all]
    #[arg(long, value_name = "N", value_parser = size)]
    pub(crate) budget: Option<u32>,
}

#[derive(Args, Debug)]
pub(crate) struct Backup {
    /// A directory that is missing or empty
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Repair {
    /// Drop damaged records: their keys may be granted again
    #[arg(long)]
    pub(crate) accept_loss: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Make the store if there is none
    #[arg(long)]
    pub(crate) create: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    /// Leave out the namespaces within
    #[arg(long)]
    pub(crate) this_namespace: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// The file to read [default: the standard input]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// What the lines are
    #[arg(long, value_name = "WHAT", default_value = "json")]
    pub(crate) ids: Ids,
    /// How long imported keys are kept that say nothing of it [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) retention: Option<Duration>,
    /// Make the store if there is none
    #[arg(long)]
    pub(crate) create: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ids {
    /// Objects as `export` prints them; every other line is a key's text
    Json,
    /// A key's text
    Text,
    /// A key as it is displayed: 17 is a number, and "17" in quotes is text
    Keys,
}

#[derive(Args, Debug)]
pub(crate) struct Completions {
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// The page of this command
    #[arg(value_name = "COMMAND")]
    pub(crate) page: Option<String>,
    /// Write all pages into this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "page")]
    pub(crate) dir: Option<PathBuf>,
}

fn key(text: &str) -> Result<Key<'static>, String> {
    text.parse().map_err(|e: onlyonce::Error| e.to_string())
}

/// A number alone is seconds, as for `sleep` and `timeout`.
fn duration(text: &str) -> Result<Duration, String> {
    if text == "forever" {
        return Ok(Duration::MAX);
    }
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string());
    }
    humantime::parse_duration(text).map_err(|e| e.to_string())
}

/// Bytes, or with a unit: `64KiB`, `1MiB`; `64K` and `1M` mean the same.
fn size(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text.strip_prefix(digits).unwrap_or_default() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        unit => return Err(format!("the unit {unit:?} is none of K, KiB, M and MiB")),
    };
    let number: u32 = digits.parse().map_err(|_| "no number of bytes".to_owned())?;
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes <= OUTPUT_BYTES_MAX);
    bytes.ok_or_else(|| format!("at most {OUTPUT_BYTES_MAX} bytes can be recorded"))
}

/// Below the longest result of a store, which is 48 MiB.
const OUTPUT_BYTES_MAX: u32 = 47 << 20;

fn on_interrupted(text: &str) -> Result<OnInterrupted, String> {
    match text {
        "hold" => Ok(OnInterrupted::Hold),
        "retry" => Ok(OnInterrupted::Retry),
        _ => match text.strip_prefix("ask").and_then(|rest| rest.strip_prefix([' ', ':'])) {
            Some(command) if !command.trim().is_empty() => {
                Ok(OnInterrupted::Ask(command.trim().to_owned()))
            }
            _ => Err("it is one of: hold, retry, ask COMMAND".to_owned()),
        },
    }
}

/// Joins `--on-interrupted ask COMMAND`, the only option with a value of two words, to one word.
pub(crate) fn join_ask(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            joined.push(word);
            joined.extend(words);
            return joined;
        }
        let is_ask = word == "--on-interrupted=ask"
            || (word == "ask" && joined.last().is_some_and(|last| last == "--on-interrupted"));
        let Some(command) = words.next_if(|_| is_ask) else {
            joined.push(word);
            continue;
        };
        let mut both = word;
        both.push(" ");
        both.push(command);
        joined.push(both);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_to_ask_is_one_word_or_two() {
        let parse = |line: &str| {
            let words = join_ask(line.split('|').map(OsString::from));
            let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else {
                unreachable!()
            };
            run.on_interrupted
        };
        let asks = Some(OnInterrupted::Ask("./was it sent".into()));
        assert_eq!(parse("onlyonce|run|--on-interrupted|ask|./was it sent|k|--|a"), asks);
        assert_eq!(parse("onlyonce|run|--on-interrupted=ask|./was it sent|k|--|a"), asks);
        assert_eq!(parse("onlyonce|run|--on-interrupted=ask ./was it sent|k|--|a"), asks);
        assert_eq!(parse("onlyonce|run|k|--|a|--on-interrupted|ask|b"), None);
    }

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("-1").is_err() && duration("soon").is_err());
        assert_eq!((size("10"), size("64KiB"), size("2M")), (Ok(10), Ok(64 << 10), Ok(2 << 20)));
        assert!(size("48M").is_err() && size("5G").is_err() && size("K").is_err());
    }
}
