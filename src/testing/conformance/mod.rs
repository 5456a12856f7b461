//! The rules of docs/protocol.md as a suite of test cases for any implementation of a store.
//!
//! A case is a script with lines of the form `call … => answer`, in which `as x` names the guard, question or attempt
//! that the call returned. [`check`] runs all cases through the public API of a [`Store`], whatever its backend. A
//! crate with its own backend can therefore test that backend with the suite.
//!
//! ```
//! use std::time::Duration;
//! use onlyonce::testing::conformance::{Subject, check};
//! use onlyonce::{Store, testing::Sim};
//!
//! struct Embedded(Sim);
//!
//! impl Subject for Embedded {
//!     fn open(&mut self) -> Store {
//!         self.0.open().unwrap()
//!     }
//!     fn wait(&mut self, time: Duration) {
//!         self.0.advance(time);
//!     }
//!     fn die(&mut self) {
//!         self.0.kill();
//!     }
//! }
//!
//! assert!(check(|| Embedded(Sim::small(1))) > 60);
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a suite says what is wrong as an assertion does"
)]

mod cases;
#[doc(hidden)]
pub mod machine;
#[cfg(feature = "backend")]
mod model;
#[doc(hidden)]
pub mod spec;

#[cfg(feature = "backend")]
pub use model::{Model, OpenModel};

use std::collections::BTreeMap;
use std::time::Duration;

use self::cases::CASES;
use self::machine::Machine;
use self::spec::{Ask, Call, End, PLAIN, Ran, Shown, Told, View, Word};
use crate::{Attempt, Durability, ErrorKind, Store};

/// A store that the suite tests, and the events that the suite needs.
pub trait Subject {
    /// Opens the store, for the first time or after its process died.
    fn open(&mut self) -> Store;

    /// Lets `time` pass.
    fn wait(&mut self, time: Duration);

    /// Kills the process that has the store open.
    fn die(&mut self);
}

/// Runs all cases, each on a new store, and returns the number of cases. Each case is run twice: call by call, and with
/// consecutive calls made in one batch.
///
/// # Panics
/// Panics on the first answer that differs from docs/protocol.md. The message names the case and its line in the
/// source.
pub fn check<S: Subject>(mut make: impl FnMut() -> S) -> usize {
    for (name, script) in CASES {
        CaseRun::new(name, 1, &mut make()).check(script);
        // The same calls, made together wherever a batch can make them: each must be answered as by itself.
        CaseRun::new(name, usize::MAX, &mut make()).check(script);
    }
    CASES.len()
}

/// The values that a script can name.
enum Held {
    Guard {
        key: String,
        token: u64,
        ask: Ask,
    },
    Question {
        key: String,
        id: u64,
        seen: Option<u64>,
        ask: Ask,
    },
    /// `shown`: as it was shown then.
    Attempt {
        key: String,
        seen: Option<u64>,
        shown: Option<Attempt>,
    },
}

/// The run of one script.
struct CaseRun<'s> {
    case: &'s str,
    subject: &'s mut dyn Subject,
    machine: Option<Machine>,
    names: BTreeMap<String, Held>,
    /// How many calls are made together.
    together: usize,
    /// The calls that are not made yet.
    waiting: Vec<CaseLine>,
}

/// One call of a script.
struct CaseLine {
    text: String,
    key: String,
    call: Call,
    expected: String,
    ask: Ask,
    /// Its position in the script, which is the number of its question.
    at: u64,
    name_given: String,
}

impl<'s> CaseRun<'s> {
    fn new(case: &'s str, together: usize, subject: &'s mut dyn Subject) -> Self {
        let machine = Some(Machine::new(subject.open(), BTreeMap::new()));
        CaseRun { case, subject, machine, names: BTreeMap::new(), together, waiting: Vec::new() }
    }

    fn check(mut self, script: &str) {
        let lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
        for (at, line) in (0..).zip(lines) {
            self.read(at, line);
            if self.waiting.len() >= self.together {
                self.make_waiting();
            }
        }
        self.make_waiting();
    }

    fn read(&mut self, at: u64, line: &str) {
        let (said, expected) = line.split_once(" => ").unwrap_or((line, ""));
        let (said, name_given) = said.split_once(" as ").unwrap_or((said, ""));
        let words: Vec<&str> = said.split(' ').filter(|word| !word.starts_with('+')).collect();
        let options = said.split(' ').filter_map(|word| word.strip_prefix('+'));
        let ask = options.fold(PLAIN, with_option);
        // What a name means isn't known before its call is made.
        let is_named = |word: &&str| self.waiting.iter().any(|line| line.name_given == **word);
        if words.iter().skip(1).any(is_named) {
            self.make_waiting();
        }
        match words[..] {
            ["wait", millis] => {
                self.make_waiting();
                self.subject.wait(Duration::from_millis(millis.parse().unwrap()));
            }
            ["forget_all", space] => {
                self.make_waiting();
                let (store, _) = self.machine.as_mut().unwrap().within(&format!("{space}/"));
                let told = match store.forget_all() {
                    Ok(true) => "yes",
                    Ok(false) => "no",
                    Err(e) if e.kind() == ErrorKind::InProgress => "busy",
                    Err(e) if e.kind() == ErrorKind::Superseded => "superseded",
                    Err(e) => panic!("{}: {line}: {e}", self.case),
                };
                assert_eq!(told, expected, "{}: {line}", self.case);
            }
            ["restart"] => {
                self.make_waiting();
                self.subject.die();
                let Machine { seen, tickets, looked, .. } = self.machine.take().unwrap();
                let machine = Machine::new(self.subject.open(), seen);
                self.machine = Some(Machine { tickets, looked, ..machine });
            }
            _ => {
                let (key, call) = call_of(&words, ask, at, &self.names);
                // A batch is of one handle.
                let can_batch = Machine::can_batch(&call) && !key.contains('/');
                if !can_batch {
                    self.make_waiting();
                }
                if let (Call::Resolve { .. }, Some(Held::Attempt { shown: Some(shown), .. })) =
                    (&call, self.names.get(words[1]))
                {
                    // It may have been shown again since, in another state.
                    let seen = &mut self.machine.as_mut().unwrap().seen;
                    seen.insert(shown.token().get(), shown.clone());
                }
                let (expected, name_given) = (expected.to_owned(), name_given.to_owned());
                let text = line.to_owned();
                self.waiting.push(CaseLine { text, key, call, expected, ask, at, name_given });
                if !can_batch {
                    self.make_waiting();
                }
            }
        }
    }

    /// Makes the calls that wait, and compares their answers.
    fn make_waiting(&mut self) {
        let lines = std::mem::take(&mut self.waiting);
        let machine = self.machine.as_mut().unwrap();
        let said = match lines.as_slice() {
            [] => return,
            [one] => vec![machine.call(&one.key, &one.call).unwrap()],
            lines => {
                let calls = lines.iter().map(|line| (line.key.clone(), line.call.clone()));
                machine.batch(&calls.collect::<Vec<_>>()).unwrap()
            }
        };
        for (line, (mut told, token)) in lines.into_iter().zip(said) {
            let CaseLine { text, key, call, expected, ask, at, name_given } = line;
            assert_eq!(words_of(&told), expected, "{}: {text}", self.case);
            let seen = told.token().and_then(|token| *token);
            let ask = match &call {
                Call::Word { ask, .. } => *ask,
                _ => ask,
            };
            let held = match (token, &told) {
                (Some(token), _) => Held::Guard { key, token, ask },
                (None, Told::Asked(_)) => Held::Question { key, id: at, seen, ask },
                (None, _) => {
                    let shown = seen.and_then(|token| machine.seen.get(&token).cloned());
                    Held::Attempt { key, seen, shown }
                }
            };
            if !name_given.is_empty() {
                self.names.insert(name_given, held);
            }
        }
    }
}

fn with_option(ask: Ask, option: &str) -> Ask {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    let number = || value.parse().unwrap();
    let level = || if value == "flush" { Durability::Flush } else { Durability::Lazy };
    match name {
        "print" | "input" => Ask { print: Some(value.parse().unwrap()), ..ask },
        "lease" => Ask { lease: Some(number()), ..ask },
        "keep" => Ask { keep: Some(number()), ..ask },
        "remember" => Ask { remember: Some(number()), ..ask },
        "max" => Ask { max: Some(value.parse().unwrap()), ..ask },
        "hold" => Ask { hold: Some(true), ..ask },
        "retry" => Ask { hold: Some(false), ..ask },
        "claim" => Ask { claim_level: level(), ..ask },
        "drop_aborts" => Ask { drop_aborts: true, ..ask },
        "delay" => Ask { delay: Some(number()), ..ask },
        other => panic!("no option {other}"),
    }
}

fn call_of(
    words: &[&str],
    ask: Ask,
    question: u64,
    names: &BTreeMap<String, Held>,
) -> (String, Call) {
    let end = |how: &str, value: &str| {
        let (value, keep) = (value.as_bytes().to_vec(), ask.keep);
        match how {
            "complete" | "success" => End::Success { value, keep },
            "fail" | "failure" => End::Failure { value, keep },
            _ => End::Nothing,
        }
    };
    let value = *words.get(2).unwrap_or(&"");
    match (words[0], names.get(words[1])) {
        ("claim", _) => (words[1].to_owned(), Call::Claim { ask, question }),
        ("mark", _) => (words[1].to_owned(), Call::Mark { ask }),
        ("record", _) => (words[1].to_owned(), Call::Record { ask, how: end("success", value) }),
        ("record_failure", _) => {
            (words[1].to_owned(), Call::Record { ask, how: end("failure", value) })
        }
        ("get", _) => (words[1].to_owned(), Call::Get),
        ("forget", _) => (words[1].to_owned(), Call::Forget),
        ("forget_seen", _) => (words[1].to_owned(), Call::ForgetSeen),
        ("forget_claimed", _) => {
            let Held::Guard { token, .. } = names[words[2]] else { panic!("{words:?}") };
            (words[1].to_owned(), Call::ForgetClaimed { token })
        }
        ("resolve", Some(Held::Attempt { key, seen, .. })) => {
            let how = end(words[2], words.get(3).unwrap_or(&""));
            (key.clone(), Call::Resolve { seen: *seen, how })
        }
        ("renew", Some(Held::Guard { key, token, ask })) => {
            let lease = value.parse().unwrap();
            (key.clone(), Call::Renew { token: *token, lease, ask: *ask })
        }
        ("save", Some(Held::Guard { key, token, ask })) => {
            let value = value.as_bytes().to_vec();
            (key.clone(), Call::Progress { token: *token, value, ask: *ask })
        }
        ("step" | "announced_step", Some(Held::Guard { key, token, ask: of })) => {
            let (is_announced, name) = (words[0] == "announced_step", value.parse().unwrap());
            let value = words.get(3).map(|value| value.as_bytes().to_vec());
            let (token, input) = (*token, ask.print);
            let call = Call::Step { token, name, input, is_announced, value, ask: *of };
            (key.clone(), call)
        }
        ("detach", Some(Held::Guard { key, token, .. })) => {
            (key.clone(), Call::Detach { token: *token, lease: value.parse().unwrap() })
        }
        ("attach", Some(Held::Guard { key, token, .. })) => {
            (key.clone(), Call::Attach { token: *token })
        }
        ("hold", Some(Held::Guard { key, token, .. })) => {
            (key.clone(), Call::Park { token: *token })
        }
        ("interrupt", Some(Held::Attempt { key, seen, .. })) => {
            (key.clone(), Call::Revoke { seen: *seen })
        }
        ("renew", Some(Held::Question { key, id, .. })) => {
            (key.clone(), Call::RenewQuestion { question: *id, lease: value.parse().unwrap() })
        }
        ("drop", Some(Held::Guard { key, token, ask })) => {
            (key.clone(), Call::Drop { token: *token, aborts: ask.drop_aborts, ask: *ask })
        }
        (how, Some(Held::Guard { key, token, ask: claimed })) => {
            let ask = Ask { delay: ask.delay, ..*claimed };
            (key.clone(), Call::End { token: *token, how: end(how, value), ask })
        }
        ("drop", Some(Held::Question { key, id, .. })) => {
            (key.clone(), Call::DropQuestion { question: *id })
        }
        (word, Some(Held::Question { key, id, seen, ask })) => {
            let word = match word {
                "take_over" => Word::TakeOver,
                "not_applied" => Word::NotApplied,
                _ => Word::Hold,
            };
            (key.clone(), Call::Word { word, seen: *seen, ask: *ask, question: *id })
        }
        _ => panic!("no such call: {words:?}"),
    }
}

/// Returns an answer as scripts write it: without tokens, which differ between backends.
fn words_of(told: &Told) -> String {
    let with = words_of_view;
    match told {
        Told::Granted { attempt } => format!("granted {attempt}"),
        Told::Asked(view) => with("asked", view),
        Told::InProgress(view) if view.is_being_decided => with("being decided", view),
        Told::InProgress(view) => with("in progress", view),
        Told::Delayed(view) => with("delayed", view),
        Told::Held(view) => with("held", view),
        Told::TooMany(view) => with("too many", view),
        Told::Unsure(view) => with("unsure", view),
        Told::Mismatch(shown) => format!("mismatch {}", words_of_shown(shown)),
        Told::Recorded(shown) | Told::State(Some(shown)) => words_of_shown(shown),
        Told::State(None) => "absent".to_owned(),
        Told::Expired => "expired".to_owned(),
        Told::First => "first".to_owned(),
        Told::Again => "again".to_owned(),
        Told::Step { value, ran } => {
            let ran = match ran {
                Ran::First => "ran",
                Ran::MayBeAgain => "ran, perhaps again",
                Ran::Not => "recorded",
            };
            let value = value.as_deref().map(String::from_utf8_lossy);
            format!("{ran}: {}", value.unwrap_or("failed".into()))
        }
        Told::Yes => "yes".to_owned(),
        Told::No => "no".to_owned(),
        Told::Busy => "busy".to_owned(),
        Told::IsHeld => "is held".to_owned(),
        Told::Lost => "lost".to_owned(),
        Told::OtherInput => "other input".to_owned(),
        Told::Invalid => "invalid".to_owned(),
        Told::Superseded => "superseded".to_owned(),
    }
}

/// A word, the number of the attempt, and what it saved of its progress.
fn words_of_view(word: &str, view: &View) -> String {
    let progress = view.progress.as_deref().map(String::from_utf8_lossy);
    let progress = progress.map(|saved| format!(" at {saved}")).unwrap_or_default();
    let detached = if view.is_detached { "detached " } else { "" };
    let steps = view.open_steps.iter().map(|name| format!(" in step {name}")).collect::<String>();
    format!("{detached}{word} {}{progress}{steps}", view.attempt)
}

fn words_of_shown(shown: &Shown) -> String {
    let with = words_of_view;
    match shown {
        Shown::Running(view) if view.is_being_decided => with("being decided", view),
        Shown::Running(view) => with("running", view),
        Shown::Interrupted(view) => with("interrupted", view),
        Shown::Held(view) => with("held", view),
        Shown::Aborted(view) => with("aborted", view),
        Shown::Success { value, attempt, .. } => {
            format!("success {} by {attempt}", String::from_utf8_lossy(value))
        }
        Shown::Failure { value, attempt, .. } => {
            format!("failure {} by {attempt}", String::from_utf8_lossy(value))
        }
        Shown::Expired => "expired".to_owned(),
    }
}
