//! `onlyonce export` and `import`: keys as lines of JSON, or bare ids, from a store or from anything else.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, SystemTime};

use data_encoding::{BASE64, HEXLOWER};
use onlyonce::value::{Codec, Format};
use onlyonce::{Claim, Fingerprint, Key, Mark, Operation, Outcome, Pending, State, Store};
use serde::{Deserialize, Serialize};

use crate::args::{Common, Export, Ids, Import};
use crate::exit::{self, Failure, Result};
use crate::keys::spaces_within;
use crate::open::{self, Needs};
use crate::recording::Raw;
use crate::screen::{Bar, Screen};
use crate::shown::{self, codec_word};

/// A key as it is exported and imported.
#[derive(Serialize, Deserialize)]
struct MovedLine {
    /// `exported`, which says that it has everything.
    #[serde(default)]
    r#type: String,
    key: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    namespace: Vec<String>,
    /// Without it, the work was done, and nothing is known of its result.
    #[serde(default = "completed")]
    state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<MovedValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    meta: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remembered_until: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct MovedValue {
    #[serde(default = "bytes")]
    codec: String,
    #[serde(default)]
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

fn completed() -> String {
    "completed".to_owned()
}

fn bytes() -> String {
    "bytes".to_owned()
}

pub(crate) fn export(common: &Common, export: &Export, screen: &Screen) -> Result<u8> {
    let store = open::open(common, Needs::default())?;
    let spaces = match export.this_namespace {
        true => vec![(common.namespace.clone(), store)],
        false => spaces_within(common.namespace.clone(), store)?,
    };
    let bar = Bar::of_parts(screen, "exporting");
    let mut count = 0;
    for (names, space) in &spaces {
        for entry in space.iter() {
            let (_, state) = entry?;
            screen.object(&exported(names, &state)?)?;
            count += 1;
            bar.at(count);
        }
    }
    bar.end();
    screen.note(format!("{count} keys exported"));
    Ok(0)
}

fn exported(names: &[String], state: &State) -> Result<MovedLine> {
    let mut line = MovedLine {
        r#type: "exported".to_owned(),
        key: state.key().to_string(),
        namespace: names.to_vec(),
        state: shown::word(state).to_owned(),
        result: None,
        missing: None,
        meta: Vec::new(),
        fingerprint: None,
        expires_at: None,
        remembered_until: None,
        reason: None,
    };
    match state {
        State::Completed(done) | State::Failed(done) => {
            line.missing = done.missing().map(str::to_owned);
            if line.missing.is_none() {
                line.result = Some(value_of(&done.decode::<Raw>()?));
            }
            line.meta =
                done.metas().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            line.fingerprint = done.fingerprint().map(shown::hex);
            line.expires_at = done.expires_at().map(shown::time);
        }
        State::Expired(expired) => {
            line.remembered_until = Some(shown::time(expired.remembered_until()));
        }
        other => {
            if let Some(attempt) = shown::attempt_of(other) {
                line.reason = Some(attempt.to_string());
                line.fingerprint = attempt.fingerprint().map(shown::hex);
            }
        }
    }
    Ok(line)
}

fn value_of(raw: &Raw) -> MovedValue {
    let text = std::str::from_utf8(&raw.bytes).ok().map(str::to_owned);
    MovedValue {
        codec: codec_word(raw.format.codec),
        version: raw.format.version,
        base64: if text.is_some() { None } else { Some(BASE64.encode(&raw.bytes)) },
        text,
    }
}

fn raw_of(value: &MovedValue) -> Result<Raw, String> {
    let codec = match value.codec.as_str() {
        "bytes" => Codec::Bytes,
        "bincode" => Codec::Bincode,
        "json" => Codec::Json,
        other => {
            let number = other.strip_prefix("custom-").and_then(|number| number.parse().ok());
            Codec::Custom(number.ok_or_else(|| format!("the codec {other:?} is unknown"))?)
        }
    };
    let bytes = match (&value.text, &value.base64) {
        (Some(text), None) => text.clone().into_bytes(),
        (None, Some(base64)) => BASE64.decode(base64.as_bytes()).map_err(|e| e.to_string())?,
        (None, None) => Vec::new(),
        (Some(_), Some(_)) => return Err("a result is text or base64, not both".to_owned()),
    };
    Ok(Raw { format: Format { codec, version: value.version }, bytes })
}

/// What became of the lines.
#[derive(Serialize, Default)]
struct ImportedLine {
    r#type: &'static str,
    /// Keys that are recorded as done or held now.
    new: u64,
    /// Keys that were in the store, and were left as they are.
    present: u64,
    /// Keys about which there is nothing to record: their last attempt had no effect, or they have expired.
    skipped: u64,
}

/// So many lines share their syncs.
const BATCH: usize = 1000;

pub(crate) fn import(common: &Common, import: &Import, screen: &Screen) -> Result<u8> {
    let input: Box<dyn Read> = match &import.file {
        Some(file) if file.as_os_str() != "-" => Box::new(
            File::open(file).map_err(|e| Failure::usage(format!("{}: {e}", file.display())))?,
        ),
        _ => Box::new(std::io::stdin().lock()),
    };
    let needs = Needs { create: import.create, result_bytes: RESULT_BYTES_MOST };
    let importer = Importer { store: open::open(common, needs)?, import };
    let bar = Bar::of_parts(screen, "importing");
    let mut done = ImportedLine { r#type: "imported", ..ImportedLine::default() };
    let mut lines = BufReader::new(input).lines();
    let mut number = 0;
    loop {
        let mut batch = Vec::new();
        for line in lines.by_ref().take(BATCH) {
            number += 1;
            let line = line.map_err(|e| Failure::usage(format!("line {number}: {e}")))?;
            batch.push((number, line));
        }
        if batch.is_empty() {
            break;
        }
        // Earlier batches stay imported: the same lines can be imported again.
        importer.batch(&batch, &mut done)?;
        bar.at(number);
    }
    bar.end();
    if screen.is_json() {
        screen.object(&done)?;
    } else {
        screen.line(format!(
            "{} keys imported, {} were there before, {} skipped",
            done.new, done.present, done.skipped
        ))?;
    }
    Ok(0)
}

/// The longest result that any store may have.
const RESULT_BYTES_MOST: u32 = 48 << 20;

struct Importer<'i> {
    store: Store,
    import: &'i Import,
}

impl Importer<'_> {
    fn batch(&self, lines: &[(u64, String)], done: &mut ImportedLine) -> Result<()> {
        let mut ids = Vec::new();
        let mut sent: Vec<Pending<Mark>> = Vec::new();
        for (number, line) in lines {
            let wrong = |why: String| {
                Failure::usage(format!("line {number}: {why}; earlier lines are imported"))
            };
            match line {
                line if line.trim().is_empty() => {}
                line if self.import.ids == Ids::Json && line.starts_with('{') => {
                    let line: MovedLine =
                        serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
                    sent.extend(self.send(&line, done).map_err(|e| e.at(wrong))?);
                }
                line => {
                    let key = match self.import.ids {
                        Ids::Keys => {
                            line.parse().map_err(|e: onlyonce::Error| wrong(e.to_string()))?
                        }
                        Ids::Json | Ids::Text => Key::from(line.as_str()).into_owned(),
                    };
                    ids.push(self.operation(key));
                }
            }
        }
        for mark in self.store.mark_many(ids)? {
            count(&mark?, done);
        }
        for mark in sent {
            count(&mark.wait()?, done);
        }
        Ok(())
    }

    fn operation(&self, key: Key<'static>) -> Operation<'static> {
        let operation = Operation::new(key);
        match self.import.retention {
            Some(retention) => operation.retention(retention),
            None => operation,
        }
    }

    /// Sends what a line records. A key that waits for a decision is held at once.
    fn send(
        &self,
        line: &MovedLine,
        done: &mut ImportedLine,
    ) -> Result<Option<Pending<Mark>>, Wrong> {
        let key: Key<'static> = line.key.parse().map_err(Wrong::store)?;
        let store =
            line.namespace.iter().fold(self.store.clone(), |space, name| space.namespace(name));
        let mut operation = self.operation(key);
        if let Some(hex) = &line.fingerprint {
            let bytes =
                HEXLOWER.decode(hex.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
            let bytes =
                bytes.ok_or_else(|| Wrong::line("a fingerprint is 32 hexadecimal digits"))?;
            operation = operation.fingerprint(Fingerprint::from_bytes(bytes));
        }
        let until = match (&line.expires_at, &line.remembered_until) {
            (Some(time), _) | (None, Some(time)) => Some(
                humantime::parse_rfc3339(time).map_err(|e| Wrong::line(format!("{time}: {e}")))?,
            ),
            (None, None) => None,
        };
        if let Some(until) = until {
            match until.duration_since(SystemTime::now()) {
                Ok(left) => operation = operation.retention(left.max(Duration::from_millis(1))),
                Err(_) => {
                    done.skipped += 1;
                    return Ok(None);
                }
            }
        }
        let outcome = match line.state.as_str() {
            "completed" | "failed" => outcome(line).map_err(Wrong::Line)?,
            "expired" => Outcome::without_result("it had expired before it was imported"),
            "aborted" => {
                done.skipped += 1;
                return Ok(None);
            }
            "interrupted" | "held" | "in_progress" => {
                self.hold(&store, operation, line, done).map_err(Wrong::Store)?;
                return Ok(None);
            }
            other => return Err(Wrong::line(format!("the state {other:?} is unknown"))),
        };
        Ok(Some(store.record_async(operation, outcome)))
    }

    fn hold(
        &self,
        store: &Store,
        operation: Operation<'static>,
        line: &MovedLine,
        done: &mut ImportedLine,
    ) -> onlyonce::Result<()> {
        let was = line.state.replace('_', " ");
        let reason = format!(
            "imported, where it was {was}{}",
            line.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
        );
        match store.claim(operation)? {
            Claim::Acquired(claim) => {
                claim.hold(reason)?;
                done.new += 1;
            }
            // An interrupted one stays so: nothing is decided here.
            _ => done.present += 1,
        }
        Ok(())
    }
}

/// Why a line is not imported.
enum Wrong {
    Line(String),
    Store(onlyonce::Error),
}

impl Wrong {
    fn line(why: impl Into<String>) -> Self {
        Wrong::Line(why.into())
    }

    fn store(error: onlyonce::Error) -> Self {
        Wrong::Store(error)
    }

    fn at(self, wrong: impl Fn(String) -> Failure) -> Failure {
        match self {
            Wrong::Line(why) => wrong(why),
            Wrong::Store(error) => {
                let failure = Failure::from(error);
                if failure.code == exit::USAGE { wrong(failure.message) } else { failure }
            }
        }
    }
}

fn outcome(line: &MovedLine) -> Result<Outcome, String> {
    let raw = line.result.as_ref().map(raw_of).transpose()?;
    let outcome = match (raw, &line.missing, line.state == "failed") {
        (None, Some(why), false) => Outcome::without_result(why),
        // A failure without its reason is still one.
        (None, Some(why), true) => Outcome::failure(why.as_str()),
        (None, None, false) => Outcome::success(&()),
        (None, None, true) => Outcome::failure(&()),
        (Some(raw), _, false) => Outcome::success(&raw),
        (Some(raw), _, true) => Outcome::failure(&raw),
    };
    Ok(line.meta.iter().fold(outcome, |outcome, (name, value)| outcome.meta(name, value)))
}

fn count(mark: &Mark, done: &mut ImportedLine) {
    match mark.is_first() {
        true => done.new += 1,
        false => done.present += 1,
    }
}
