//! `onlyonce run`: claims the key, runs the command, records its outcome; or replays, or says why not.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use onlyonce::{
    Attempt, Claim, ClaimGuard, ErrorKind, Fingerprint, Interrupted, Operation, Recorded, State,
    Store,
};
use serde::Serialize;

use crate::args::{Common, OnFailure, OnInterrupted, Run};
use crate::child::{self, End, Ended, Task};
use crate::exit::{self, Failure, Result};
use crate::open::{self, Needs};
use crate::recording::{self, Recording, Stream};
use crate::screen::Screen;
use crate::shown::{AttemptShown, Text, TokenShown};

/// Printed when the command begins.
#[derive(Serialize)]
struct StartedLine<'a> {
    r#type: &'static str,
    key: &'a str,
    attempt: u32,
    token: TokenShown,
}

/// Printed for each piece of output.
#[derive(Serialize)]
struct OutputLine<'a> {
    r#type: &'static str,
    stream: Stream,
    #[serde(flatten)]
    bytes: Text<'a>,
}

/// Printed at the end: what became of the run, and what is recorded.
#[derive(Serialize, Default)]
struct RunLine {
    r#type: &'static str,
    key: String,
    /// The state of the key.
    state: &'static str,
    replayed: bool,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    timed_out: bool,
    dropped_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<AttemptShown>,
}

/// How a run ended, for the exit and for the report.
struct Report {
    line: RunLine,
    /// Said to people unless they want quiet.
    note: Option<String>,
}

pub(crate) fn run(common: &Common, run: &Run, screen: &Screen) -> Result<u8> {
    let needs = Needs { create: run.create, result_bytes: run.max_output_bytes };
    let operation = operation(run)?;
    let mut common_now = common.clone();
    // Whoever waits for the key waits for the store, too.
    common_now.open_timeout = common.open_timeout.max(run.wait.unwrap_or_default());
    let store = open::open(&common_now, needs)?;
    let runner = Runner { run, screen: *screen, store };
    let claim = match run.wait {
        Some(timeout) => runner.store.claim_wait(&operation, timeout)?,
        None => runner.store.claim(&operation)?,
    };
    let mut report = runner.answer(claim)?;
    // The exit code is right whatever the close finds: what it tells is durable.
    if let Err(error) = runner.store.close(Duration::ZERO) {
        screen.note(format!("closing the store: {error}"));
    }
    if let Some(note) = report.note.take() {
        screen.note(&note);
        report.line.message = Some(note);
    }
    report.line.r#type = "run";
    report.line.key = run.key.to_string();
    if screen.is_json() {
        // Whether anybody reads it changes nothing about how the command ended.
        let _ = screen.object(&report.line);
    }
    die_of(report.line.signal);
    Ok(report.line.exit_code)
}

/// Dies of the signal of which the command died, so that a shell stops its loop after Ctrl-C.
fn die_of(signal: Option<i32>) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    if let Some(signal @ (SIGINT | SIGTERM | SIGHUP)) = signal {
        // If it fails, the exit code says as much.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
}

fn operation(run: &Run) -> Result<Operation<'_>> {
    let mut operation = Operation::new(&run.key);
    if let Some(lease) = run.lease {
        operation = operation.lease(lease);
    }
    if let Some(retention) = run.retention {
        operation = operation.retention(retention);
    }
    if let Some(attempts) = run.attempts {
        operation = operation.attempts_max(attempts);
    }
    if let Some(owner) = &run.owner {
        operation = operation.owner(owner);
    }
    if let Some(fingerprint) = fingerprint(run)? {
        operation = operation.fingerprint(fingerprint);
    }
    Ok(operation)
}

/// Of all that was asked for; each part is named, so that none is taken for another.
fn fingerprint(run: &Run) -> Result<Option<Fingerprint>> {
    use std::os::unix::ffi::OsStrExt;
    let mut parts: Vec<Vec<u8>> = Vec::new();
    if run.fingerprint_args {
        parts.push(format!("args {}", run.command.len()).into_bytes());
        parts.extend(run.command.iter().map(|word| word.as_bytes().to_vec()));
    }
    for file in &run.fingerprint_file {
        let contents = std::fs::read(file).map_err(|e| {
            Failure::usage(format!("the file of a fingerprint, {}: {e}", file.display()))
        })?;
        parts.push(b"file".to_vec());
        parts.push(contents);
    }
    for name in &run.fingerprint_env {
        let value = std::env::var_os(name);
        parts.push(if value.is_some() { b"env".to_vec() } else { b"no env".to_vec() });
        parts.push(name.as_bytes().to_vec());
        parts.push(value.unwrap_or_default().as_bytes().to_vec());
    }
    Ok(if parts.is_empty() { None } else { Some(Fingerprint::of_parts(parts)) })
}

struct Runner<'r> {
    run: &'r Run,
    screen: Screen,
    store: Store,
}

impl Runner<'_> {
    fn answer(&self, claim: Claim) -> Result<Report> {
        let text = format!("{}: {claim}", self.run.key);
        Ok(match claim {
            Claim::Acquired(guard) => self.run_now(guard)?,
            Claim::Interrupted(lost) => self.decide(lost)?,
            Claim::Completed(done) => self.replay(&done, "completed", false)?,
            Claim::Failed(failed) => self.replay(&failed, "failed", true)?,
            Claim::InProgress(other) => {
                refused("in_progress", exit::IN_PROGRESS, text, Some(&other))
            }
            Claim::Delayed(other) => refused("delayed", exit::IN_PROGRESS, text, Some(&other)),
            Claim::Held(lost) => {
                let text = format!("{text}; `onlyonce resolve` decides about it");
                refused("held", exit::HELD, text, Some(&lost))
            }
            Claim::Mismatch(_) => refused("mismatch", exit::MISMATCH, text, None),
            Claim::Expired(_) => refused("expired", exit::EXPIRED, text, None),
        })
    }

    /// An earlier attempt died half-way.
    fn decide(&self, lost: Interrupted) -> Result<Report> {
        match &self.run.on_interrupted {
            Some(OnInterrupted::Retry) => self.run_now(lost.take_over()?),
            Some(OnInterrupted::Ask(command)) => self.ask(command, lost),
            Some(OnInterrupted::Hold) => {
                let attempt = lost.attempt().clone();
                lost.hold("--on-interrupted hold")?;
                let text = format!(
                    "{} was interrupted, and is held now: {attempt}; `onlyonce resolve` decides about it",
                    self.run.key
                );
                Ok(refused("held", exit::HELD, text, Some(&attempt)))
            }
            None => {
                let text = format!(
                    "{} is interrupted: {}; find out what it did, then `onlyonce resolve`, or run with --on-interrupted",
                    self.run.key,
                    lost.attempt()
                );
                Ok(refused("interrupted", exit::HELD, text, Some(lost.attempt())))
            }
        }
    }

    /// Runs the command that finds out what became of an attempt.
    fn ask(&self, command: &str, lost: Interrupted) -> Result<Report> {
        let asked = Command::new("/bin/sh")
            .args(["-c", command])
            .envs(variables(lost.attempt()))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output();
        let asked =
            asked.map_err(|e| Failure::itself("starting the command that finds out", &e))?;
        match asked.status.code() {
            Some(0) => {
                let mut recording = Recording::default();
                let bytes_max = self.bytes_max();
                recording.push(Stream::Stdout, &asked.stdout, bytes_max);
                self.pass(Stream::Stdout, &asked.stdout);
                let note =
                    "an earlier attempt did it, as --on-interrupted ask found out".to_owned();
                let mut report = self.record(lost.take_over()?, &recording, 0)?;
                report.note.get_or_insert(note);
                Ok(report)
            }
            Some(1) => self.run_now(lost.not_applied()?),
            _ => {
                let text = format!(
                    "{}: an earlier attempt was interrupted, and the command that finds out doesn't know \
                     ({}): the key stays interrupted",
                    self.run.key, asked.status
                );
                Ok(refused("interrupted", exit::HELD, text, Some(lost.attempt())))
            }
        }
    }

    fn bytes_max(&self) -> usize {
        usize::try_from(self.run.max_output_bytes).unwrap_or(usize::MAX)
    }

    fn run_now(&self, claim: ClaimGuard) -> Result<Report> {
        let key = self.run.key.to_string();
        let (attempt, token) = (claim.attempt(), claim.token());
        let variables = vec![
            ("ONLYONCE_KEY", key.clone()),
            ("ONLYONCE_ATTEMPT", attempt.to_string()),
            ("ONLYONCE_TOKEN", token.to_string()),
            ("ONLYONCE_DOWNSTREAM_KEY", claim.downstream_key(DOWNSTREAM_LABEL)),
        ];
        if self.screen.is_json() {
            let token = TokenShown(token);
            // The claim is taken: the command runs, as it does if its own output has no reader.
            let _ =
                self.screen.object(&StartedLine { r#type: "started", key: &key, attempt, token });
        }
        let task = Task {
            command: &self.run.command,
            variables,
            output_bytes_max: self.bytes_max(),
            timeout: self.run.timeout,
            kill_after: self.run.kill_after,
            // A lease that has passed takes nothing from an owner yet: it may still end its claim.
            stops_with: if self.run.lease.is_some() { None } else { Some(&claim) },
        };
        let Ended { end, recording, has_timed_out } =
            child::run(&task, |stream, bytes| self.pass(stream, bytes))?;
        match end {
            End::NotLaunched { exit_code, errno } => self.not_launched(claim, exit_code, errno),
            _ if has_timed_out => self.unknown(claim, end, true),
            End::Killed(_) => self.unknown(claim, end, false),
            End::Exited(0) => self.record(claim, &recording, 0),
            End::Exited(code) => match self.run.on_failure {
                OnFailure::Record => self.record(claim, &recording, code),
                OnFailure::Retry => {
                    claim.abort(format!("exit code {code}"))?;
                    let line = RunLine { state: "aborted", exit_code: code, ..RunLine::default() };
                    Ok(Report { line, note: None })
                }
            },
        }
    }

    /// Hands through what was printed. A reader that has gone doesn't stop the command half-way.
    fn pass(&self, stream: Stream, bytes: &[u8]) {
        let _ = if self.screen.is_json() {
            self.screen.object(&OutputLine { r#type: "output", stream, bytes: Text::of(bytes) })
        } else {
            match stream {
                Stream::Stdout => {
                    let mut out = std::io::stdout().lock();
                    out.write_all(bytes).and_then(|()| out.flush())
                }
                Stream::Stderr => std::io::stderr().lock().write_all(bytes),
            }
            .map_err(Failure::from)
        };
    }

    fn not_launched(&self, claim: ClaimGuard, exit_code: u8, errno: i32) -> Result<Report> {
        let why = std::io::Error::from_raw_os_error(errno);
        let program = self.run.command.first().map(|program| program.to_string_lossy());
        let note = format!("{}: {why}", program.unwrap_or_default());
        // Nothing ran, so nothing can have happened.
        claim.abort(format!("the command was not started: {note}"))?;
        let line = RunLine { state: "aborted", exit_code, ..RunLine::default() };
        Ok(Report { line, note: Some(note) })
    }

    fn record(&self, claim: ClaimGuard, recording: &Recording, exit_code: u8) -> Result<Report> {
        let mut note = (recording.dropped > 0).then(|| {
            format!(
                "{} bytes of output were not recorded (--max-output-bytes): a replay lacks them",
                recording.dropped
            )
        });
        let mut dropped_bytes = recording.dropped;
        match claim.record(recording.outcome(exit_code)) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::StorageFull => {
                let why = e.to_string();
                let emptied = recording.emptied();
                dropped_bytes = emptied.dropped;
                let claim = e.into_claim().ok_or_else(|| unrecorded(&why, exit_code))?;
                claim
                    .record(emptied.outcome(exit_code))
                    .map_err(|e| unrecorded(&e.to_string(), exit_code))?;
                note = Some(format!("the output was not recorded, only the exit code: {why}"));
            }
            Err(e) if e.kind() == ErrorKind::ClaimLost => {
                return self.lost(End::Exited(exit_code), &e.to_string());
            }
            Err(e) => return Err(unrecorded(&e.to_string(), exit_code)),
        }
        let state = if exit_code == 0 { "completed" } else { "failed" };
        let line = RunLine { state, exit_code, dropped_bytes, ..RunLine::default() };
        Ok(Report { line, note })
    }

    /// Nobody knows what the command did.
    fn unknown(&self, claim: ClaimGuard, end: End, timed_out: bool) -> Result<Report> {
        let (signal, how) = match end {
            End::Killed(signal) => (Some(signal), format!("was killed by signal {signal}")),
            End::Exited(code) => (None, format!("ended with exit code {code}")),
            End::NotLaunched { .. } => (None, "was not started".to_owned()),
        };
        let by_signal =
            signal.and_then(|signal| u8::try_from(signal).ok()).map(|n| exit::BY_SIGNAL + n);
        let was_killed = signal == Some(signal_hook::consts::SIGKILL);
        let (reason, exit_code) = match (timed_out, by_signal) {
            (true, Some(code)) if was_killed => {
                (format!("the command took too long, and {how}"), code)
            }
            (true, _) => (format!("the command took too long, and {how}"), exit::TIMED_OUT),
            (false, code) => (format!("the command {how}"), code.unwrap_or(exit::ITSELF)),
        };
        // A claim that is dropped becomes interrupted, too, but without a reason.
        if let Some(State::InProgress(mine)) = self.store.get(&self.run.key)? {
            if mine.token() == claim.token() {
                self.store.interrupt(&mine, reason.as_str())?;
            }
        }
        drop(claim);
        let note = format!(
            "{}: {reason}; what it did is unknown, so the key is interrupted",
            self.run.key
        );
        let signal = signal.filter(|_| !timed_out);
        let line =
            RunLine { state: "interrupted", exit_code, signal, timed_out, ..RunLine::default() };
        Ok(Report { line, note: Some(note) })
    }

    fn lost(&self, end: End, why: &str) -> Result<Report> {
        let note =
            format!("{}: the command's outcome ({end:?}) was not recorded: {why}", self.run.key);
        let line = RunLine { state: "interrupted", exit_code: exit::HELD, ..RunLine::default() };
        Ok(Report { line, note: Some(note) })
    }

    fn replay(&self, done: &Recorded, state: &'static str, is_failure: bool) -> Result<Report> {
        let recording = recording::replayed(done);
        let exit_code = recording::exit_code(done, is_failure);
        let note = match (done.missing(), recording.dropped) {
            (Some(why), _) => Some(format!("{done}: its output is not recorded: {why}")),
            (None, 0) => None,
            (None, bytes) => Some(format!("{done}: {bytes} bytes of its output were not recorded")),
        };
        recording.pieces().iter().for_each(|(stream, piece)| self.pass(*stream, piece));
        let dropped_bytes = recording.dropped;
        let line =
            RunLine { state, replayed: true, exit_code, dropped_bytes, ..RunLine::default() };
        Ok(Report { line, note })
    }
}

/// What the downstream key of a run is derived with; no one else's label.
const DOWNSTREAM_LABEL: &str = "run";

/// What the command that finds out is told.
fn variables(lost: &Attempt) -> [(&'static str, String); 4] {
    [
        ("ONLYONCE_KEY", lost.key().to_string()),
        ("ONLYONCE_ATTEMPT", lost.number().to_string()),
        ("ONLYONCE_TOKEN", lost.token().to_string()),
        ("ONLYONCE_DOWNSTREAM_KEY", lost.downstream_key(DOWNSTREAM_LABEL)),
    ]
}

fn refused(state: &'static str, exit_code: u8, note: String, attempt: Option<&Attempt>) -> Report {
    let attempt = attempt.map(AttemptShown::of);
    let line = RunLine { state, exit_code, attempt, ..RunLine::default() };
    Report { line, note: Some(note) }
}

fn unrecorded(why: &str, exit_code: u8) -> Failure {
    let message = format!(
        "the command ended with exit code {exit_code}, which could not be recorded: {why}; \
         `onlyonce show` says what became of the key"
    );
    Failure { code: exit::STORE, kind: "unrecorded", message }
}
