//! States of keys as they are printed: for programs as `schema.json` describes them, for people as a line or a few.

use std::time::{Duration, SystemTime};

use data_encoding::{BASE64, HEXLOWER};
use humantime::{format_duration, format_rfc3339_millis, format_rfc3339_seconds};
use onlyonce::value::Codec;
use onlyonce::{Attempt, Fingerprint, Recorded, State, Token};
use serde::Serialize;

use crate::recording::{self, Raw, Recording, Stream};
use crate::screen::{BAD, BOLD, DIM, GOOD, WARN, plain};

/// Bytes in JSON: as text, if they are text, and otherwise in base64.
#[derive(Serialize, Debug)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Text<'a> {
    Text(&'a str),
    Base64(String),
}

impl<'a> Text<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        std::str::from_utf8(bytes).map_or_else(|_| Text::Base64(BASE64.encode(bytes)), Text::Text)
    }
}

/// A token as text: many readers of JSON round numbers that long.
#[derive(Debug)]
pub(crate) struct TokenShown(pub(crate) Token);

impl Serialize for TokenShown {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// An attempt as it is printed for programs.
#[derive(Serialize, Debug)]
pub(crate) struct AttemptShown {
    number: u32,
    token: TokenShown,
    since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_left_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_in_ms: Option<u64>,
    detached: bool,
    being_decided: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    open_steps: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<ValueShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
}

impl AttemptShown {
    pub(crate) fn of(attempt: &Attempt) -> Self {
        let progress = attempt.progress().and_then(|progress| progress.decode::<Raw>().ok());
        AttemptShown {
            number: attempt.number(),
            token: TokenShown(attempt.token()),
            since: time(attempt.since()),
            owner: attempt.owner().map(str::to_owned),
            reason: attempt.reason().map(str::to_owned),
            decided_by: attempt.decided_by().map(str::to_owned),
            ended_at: attempt.ended_at().map(time),
            lease_left_ms: attempt.lease_left().map(millis),
            retry_in_ms: attempt.retry_in().map(millis),
            detached: attempt.is_detached(),
            being_decided: attempt.is_being_decided(),
            open_steps: attempt.open_steps().map(str::to_owned).collect(),
            progress: progress.map(|raw| ValueShown::of(&raw, true)),
            fingerprint: attempt.fingerprint().map(hex),
        }
    }
}

/// A recorded value: what it is, and its bytes if they are wanted.
#[derive(Serialize, Debug)]
pub(crate) struct ValueShown {
    codec: String,
    version: u32,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl ValueShown {
    pub(crate) fn of(raw: &Raw, with_bytes: bool) -> Self {
        let (text, base64) = match Text::of(&raw.bytes) {
            _ if !with_bytes => (None, None),
            Text::Text(text) => (Some(text.to_owned()), None),
            Text::Base64(base64) => (None, Some(base64)),
        };
        let codec = codec_word(raw.format.codec);
        ValueShown { codec, version: raw.format.version, bytes: raw.bytes.len(), text, base64 }
    }
}

pub(crate) fn codec_word(codec: Codec) -> String {
    match codec {
        Codec::Bytes => "bytes".to_owned(),
        Codec::Bincode => "bincode".to_owned(),
        Codec::Json => "json".to_owned(),
        Codec::Custom(number) => format!("custom-{number}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// A piece of a command's output.
#[derive(Serialize, Debug)]
struct PieceShown {
    stream: Stream,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// An outcome as it is printed for programs.
#[derive(Serialize, Debug)]
struct OutcomeShown {
    attempt: u32,
    token: TokenShown,
    completed_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_by: Option<String>,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<ValueShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
    /// If it is a command's, and asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Vec<PieceShown>>,
    meta: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
}

impl OutcomeShown {
    fn of(done: &Recorded, is_failure: bool, with_bytes: bool) -> Self {
        let recording = done.decode::<Recording>().ok().filter(|_| with_bytes);
        let output = recording.map(|recording| {
            let pieces = recording.pieces().iter();
            let shown = pieces.map(|(stream, piece)| {
                let (text, base64) = match Text::of(piece) {
                    Text::Text(text) => (Some(text.to_owned()), None),
                    Text::Base64(base64) => (None, Some(base64)),
                };
                PieceShown { stream: *stream, text, base64 }
            });
            shown.collect()
        });
        OutcomeShown {
            attempt: done.attempt(),
            token: TokenShown(done.token()),
            completed_at: time(done.completed_at()),
            expires_at: done.expires_at().map(time),
            owner: done.owner().map(str::to_owned),
            decided_by: done.decided_by().map(str::to_owned),
            exit_code: recording::exit_code(done, is_failure),
            result: done
                .decode::<Raw>()
                .ok()
                .map(|raw| ValueShown::of(&raw, with_bytes && output.is_none())),
            missing: done.missing().map(str::to_owned),
            output,
            meta: done.metas().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            fingerprint: done.fingerprint().map(hex),
        }
    }
}

/// A key and its state, as they are printed for programs.
#[derive(Serialize, Debug)]
pub(crate) struct KeyLine {
    r#type: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespace: Vec<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<AttemptShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<OutcomeShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remembered_until: Option<String>,
}

impl KeyLine {
    /// `with_bytes`: what is recorded is printed, too.
    pub(crate) fn of(namespace: &[String], state: &State, with_bytes: bool) -> Self {
        let mut line = KeyLine {
            r#type: "key",
            key: state.key().to_string(),
            namespace: namespace.to_vec(),
            state: word(state),
            attempt: None,
            outcome: None,
            completed_at: None,
            remembered_until: None,
        };
        match state {
            State::Completed(done) => {
                line.outcome = Some(OutcomeShown::of(done, false, with_bytes))
            }
            State::Failed(done) => line.outcome = Some(OutcomeShown::of(done, true, with_bytes)),
            State::Expired(expired) => {
                line.completed_at = Some(time(expired.completed_at()));
                line.remembered_until = Some(time(expired.remembered_until()));
            }
            other => line.attempt = attempt_of(other).map(AttemptShown::of),
        }
        line
    }
}

pub(crate) fn attempt_of(state: &State) -> Option<&Attempt> {
    match state {
        State::InProgress(attempt)
        | State::Interrupted(attempt)
        | State::Held(attempt)
        | State::Aborted(attempt) => Some(attempt),
        _ => None,
    }
}

/// When the attempt was claimed, or the outcome recorded.
pub(crate) fn since(state: &State) -> SystemTime {
    match state {
        State::Completed(done) | State::Failed(done) => done.completed_at(),
        State::Expired(expired) => expired.completed_at(),
        other => attempt_of(other).map_or(SystemTime::UNIX_EPOCH, Attempt::since),
    }
}

pub(crate) fn word(state: &State) -> &'static str {
    match state {
        State::InProgress(_) => "in_progress",
        State::Interrupted(_) => "interrupted",
        State::Held(_) => "held",
        State::Aborted(_) => "aborted",
        State::Completed(_) => "completed",
        State::Failed(_) => "failed",
        State::Expired(_) => "expired",
        _ => "other",
    }
}

/// One line for people: the state, its age, the key, and what is known.
pub(crate) fn line(namespace: &[String], state: &State) -> String {
    let style = match state {
        State::Completed(_) => GOOD,
        State::Interrupted(_) | State::Held(_) => BAD,
        State::InProgress(_) | State::Aborted(_) | State::Failed(_) => WARN,
        _ => DIM,
    };
    let word = word(state).replace('_', " ");
    let place: String = namespace.iter().map(|name| format!("{} / ", plain(name))).collect();
    let key = plain(&state.key().to_string());
    let what = match state {
        State::Completed(done) | State::Failed(done) => plain(&done.to_string()),
        State::Expired(expired) => plain(&expired.to_string()),
        other => attempt_of(other).map(|attempt| plain(&attempt.to_string())).unwrap_or_default(),
    };
    let age = age(since(state));
    format!("{style}{word:<12}{style:#}{age:>8}  {place}{BOLD}{key}{BOLD:#}  {DIM}{what}{DIM:#}")
}

/// All for people that is known, a line each.
pub(crate) fn page(state: &State) -> String {
    let mut page = String::new();
    let mut row = |name: &str, value: &dyn std::fmt::Display| {
        let value = plain(&value.to_string());
        page.push_str(&format!("\n{DIM}{name:<16}{DIM:#}{value}"));
    };
    match state {
        State::Completed(done) | State::Failed(done) => {
            let is_failure = matches!(state, State::Failed(_));
            row("attempt", &done.attempt());
            row("token", &done.token());
            done.owner().into_iter().for_each(|owner| row("owner", &owner));
            row("recorded at", &format_rfc3339_seconds(done.completed_at()));
            done.decided_by().into_iter().for_each(|by| row("decided by", &by));
            let end = done.expires_at().map(|end| format_rfc3339_seconds(end).to_string());
            row("kept until", &end.unwrap_or_else(|| "it is forgotten".to_owned()));
            row("exit code", &recording::exit_code(done, is_failure));
            match (done.missing(), done.decode::<Raw>()) {
                (Some(why), _) => row("result", &format!("not recorded: {why}")),
                (None, Ok(raw)) => row(
                    "result",
                    &format!(
                        "{} bytes, {} (--output prints them)",
                        raw.bytes.len(),
                        if done.decode::<Recording>().is_ok() {
                            "a command's output".to_owned()
                        } else {
                            codec_word(raw.format.codec)
                        }
                    ),
                ),
                (None, Err(why)) => row("result", &why),
            }
            for (name, value) in done.metas().filter(|(name, _)| *name != recording::EXIT_CODE) {
                row("meta", &format!("{name}: {value}"));
            }
            done.fingerprint().into_iter().for_each(|print| row("fingerprint", &hex(print)));
        }
        State::Expired(expired) => {
            row("completed at", &format_rfc3339_seconds(expired.completed_at()));
            row("remembered until", &format_rfc3339_seconds(expired.remembered_until()));
        }
        other => {
            if let Some(attempt) = attempt_of(other) {
                attempt_rows(attempt, &mut row);
            }
        }
    }
    page
}

fn attempt_rows(attempt: &Attempt, row: &mut dyn FnMut(&str, &dyn std::fmt::Display)) {
    row("attempt", &attempt.number());
    row("token", &attempt.token());
    attempt.owner().into_iter().for_each(|owner| row("owner", &owner));
    let since = attempt.since();
    row("since", &format!("{} ({} ago)", format_rfc3339_seconds(since), age(since)));
    if attempt.is_detached() {
        row("detached", &"its claim belongs to the holder of a ticket");
    }
    if attempt.is_being_decided() {
        row("being decided", &"its owner decides about an interrupted attempt");
    }
    attempt.lease_left().into_iter().for_each(|left| row("lease left", &seconds(left)));
    attempt.retry_in().into_iter().for_each(|left| row("retried in", &seconds(left)));
    attempt.ended_at().into_iter().for_each(|end| row("ended at", &format_rfc3339_seconds(end)));
    attempt.reason().into_iter().for_each(|reason| row("reason", &reason));
    attempt.decided_by().into_iter().for_each(|by| row("decided by", &by));
    attempt.open_steps().for_each(|step| row("may have run", &format!("the step {step:?}")));
    if let Some(raw) = attempt.progress().and_then(|progress| progress.decode::<Raw>().ok()) {
        row("progress", &String::from_utf8_lossy(&raw.bytes));
    }
    attempt.fingerprint().into_iter().for_each(|print| row("fingerprint", &hex(print)));
}

/// What an operator types next, about a key of this namespace.
pub(crate) fn next_step(namespace: &[String], state: &State) -> Option<String> {
    let onlyonce = onlyonce_in(namespace);
    let key = quoted(&state.key().to_string());
    match state {
        State::InProgress(attempt) if attempt.is_being_decided() => Some(format!(
            "wait for its owner's decision, or find out what the attempt did and decide: \
             {onlyonce} resolve {key} success|failure|retry"
        )),
        State::InProgress(_) => Some(format!(
            "wait; if its owner hangs: {onlyonce} interrupt --reason TEXT {key}, then as for interrupted keys"
        )),
        State::Interrupted(_) | State::Held(_) => Some(format!(
            "find out what the attempt did, then: {onlyonce} resolve {key} success|failure|retry"
        )),
        State::Aborted(_) => Some(format!(
            "nothing: the next claim is granted; if it is refused as held, too many attempts were made: \
             {onlyonce} resolve {key} retry"
        )),
        _ => None,
    }
}

/// The program and the options that name this namespace, as a shell takes them.
pub(crate) fn onlyonce_in(namespace: &[String]) -> String {
    let options = namespace.iter().map(|name| format!(" -n {}", quoted(name)));
    std::iter::once("onlyonce".to_owned()).chain(options).collect()
}

/// A key as a word of a shell.
pub(crate) fn quoted(key: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !key.is_empty() && !key.starts_with('-') && key.chars().all(is_safe) {
        key.to_owned()
    } else if key.starts_with('-') {
        format!("-- '{}'", key.replace('\'', r"'\''"))
    } else {
        format!("'{}'", key.replace('\'', r"'\''"))
    }
}

pub(crate) fn time(time: SystemTime) -> String {
    format_rfc3339_millis(time).to_string()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(duration: Duration) -> String {
    format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

pub(crate) fn hex(fingerprint: Fingerprint) -> String {
    HEXLOWER.encode(&fingerprint.to_bytes())
}

/// Rounded to its largest unit: `3 s`, `2 h`, `45 d`. A time in the future, by a clock set back, is now.
pub(crate) fn age(since: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(since).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_quoted_for_a_shell_where_it_must_be() {
        let cases = [
            ("order-17", "order-17"),
            ("(\"order\", 17)", "'(\"order\", 17)'"),
            ("it's", r"'it'\''s'"),
            ("-x", "-- '-x'"),
        ];
        for (key, word) in cases {
            assert_eq!(quoted(key), word);
        }
    }
}
