//! The tables of `docs/protocol.md`, read from the page, against every cell of the code and every field of the next state.

use std::sync::Arc;

use super::time::LEASE_PASSED;
use super::*;
use crate::limits::ANNOUNCED_MAX;
use crate::operation::{Fingerprint, OnInterrupted};
use crate::types::Token;

const PAGE: &str = include_str!("../../docs/protocol.md");

const COLUMNS: [&str; 12] = [
    "absent",
    "claimed",
    "detached",
    "lapsed",
    "interrupted",
    "asked",
    "held",
    "aborted",
    "delayed",
    "completed",
    "failed",
    "expired",
];

/// The columns of a next state on the page, after the calls that lead to it and the written state.
const FIELDS: [&str; 19] = [
    "token",
    "life",
    "open fate",
    "attempt",
    "forgiven",
    "since",
    "fingerprint",
    "hold",
    "lease",
    "retry at",
    "owner",
    "reason",
    "by",
    "progress",
    "steps",
    "before lapse",
    "expiry",
    "memory",
    "on it",
];

const NOW: StoreMillis = StoreMillis(1000);
const TOKEN: Token = Token(800);
const LIFE: Token = Token(80);
const OLDEST: Token = Token(160);
const OTHER: Token = Token(808);
const ATTEMPT: u32 = 5;
const WALL: i64 = -7000;
const QUESTION: u64 = 7;
const OTHER_QUESTION: u64 = 8;

type Row = (&'static str, Vec<&'static str>);

/// A cell that defers to the next row of the same call.
const SILENT: &str = "·";

/// The rows under the header with this beginning and these columns: name and cells.
fn table(begins: &str, columns: &[&str]) -> Vec<Row> {
    let cells = |line: &'static str| -> Vec<&'static str> {
        line.trim_matches('|').split('|').map(str::trim).collect()
    };
    let mut lines = PAGE.lines().skip_while(|line| !line.starts_with(begins));
    assert_eq!(cells(lines.next().unwrap())[1..], *columns);
    lines.next();
    lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = cells(line);
            assert_eq!(cells.len(), 1 + columns.len(), "{line}");
            (cells[0], cells[1..].to_vec())
        })
        .collect()
}

/// The first row of a call that applies and says something in that column: its name, and its words.
fn cell(rows: &[Row], names: &[&str], column: usize) -> (&'static str, &'static str) {
    names
        .iter()
        .map(|name| rows.iter().find(|(known, _)| known == name).expect("a row of that name"))
        .map(|(name, cells)| (*name, cells[column]))
        .find(|(_, says)| *says != SILENT)
        .expect("some row says something")
}

/// The answer that the page names; `None`: a lapse comes first.
fn answer(word: &str) -> Option<Answer> {
    Some(match word {
        "lapse" => return None,
        "granted" => Answer::Granted,
        "asked" => Answer::Asked,
        "in progress" => Answer::InProgress,
        "held" => Answer::Held,
        "too many" => Answer::TooManyAttempts,
        "completed" => Answer::Completed,
        "failed" => Answer::Failed,
        "mismatch" => Answer::Mismatch,
        "expired" => Answer::Expired,
        "interrupted" => Answer::Interrupted,
        "delayed" => Answer::Delayed,
        "too many steps" => Answer::TooManySteps,
        "other input" => Answer::OtherInput,
        "done" => Answer::Done,
        "nothing" => Answer::Unchanged,
        "lost" => Answer::Lost,
        other => panic!("no answer: {other}"),
    })
}

fn phase(word: &str) -> Phase {
    match word {
        "claimed" => Phase::Claimed,
        "interrupted" => Phase::Interrupted,
        "held" => Phase::Held,
        "aborted" => Phase::Aborted,
        "completed" => Phase::Completed,
        "failed" => Phase::Failed,
        other => panic!("no phase: {other}"),
    }
}

/// The row of the second table for a call and the state it writes, by field.
struct Fields<'a> {
    cells: &'a [&'static str],
}

impl<'a> Fields<'a> {
    fn of(rows: &'a [Row], call: &str, written: &str) -> (usize, Self) {
        let is_it = |(calls, cells): &Row| {
            calls.split("; ").any(|known| known == call) && cells[0] == written
        };
        let mut found = rows.iter().enumerate().filter(|(_, row)| is_it(row));
        let (at, (_, cells)) = found.next().unwrap_or_else(|| panic!("{call} → {written}"));
        assert!(found.next().is_none(), "{call} → {written} is there twice");
        (at, Fields { cells: &cells[1..] })
    }

    fn get(&self, field: &str) -> &'static str {
        self.cells[FIELDS.iter().position(|known| *known == field).unwrap()]
    }

    /// The next state according to the page. `state`: the one before, if the key is not absent.
    fn next<'s>(
        &self,
        current: &Current<'s>,
        state: Option<&'s KeyState>,
        written: &str,
        conditions: &Conditions<'s>,
    ) -> Next<'s> {
        let given = conditions.lease_ms.map(|ms| NOW.plus(ms));
        let extras = conditions.extras.copied().unwrap_or_default();
        let lease = Lease {
            until: given.unwrap_or(NOW),
            millis: conditions.lease_ms.unwrap_or(0),
            reserve: extras.reserve,
        };
        let (presence, lease_until) = match self.get("on it") {
            "owner" if self.get("lease") == "call's" => (Presence::Owner, Some(lease.until)),
            "owner" => (Presence::Owner, given),
            "owner, as the lease says" => {
                (Presence::Owner, state.and_then(|state| state.detached()).map(|lease| lease.until))
            }
            "claimant" => (Presence::Asked, given),
            "nobody" => (Presence::Nobody, None),
            "stays" => (current.presence, current.lease_until),
            other => panic!("nobody is called {other}"),
        };
        let next = |becomes| Next { becomes, presence, lease_until };
        if written == "in memory" {
            assert!(self.cells[..18].iter().all(|says| *says == "stays"), "{:?}", self.cells);
            return next(None);
        }
        if written == "step" {
            assert!(self.cells.iter().all(|says| *says == "stays"), "{:?}", self.cells);
            return next(Some(Becomes::Step(NextState {
                phase: Phase::Completed,
                token: Some(TOKEN),
                life: Some(LIFE),
                open_fate: None,
                attempt: ATTEMPT,
                forgiven: 0,
                since: NOW,
                time: NOW,
                expires_at: None,
                memory_until: None,
                remembers: false,
                wall_offset: WALL,
                fingerprint: conditions.fingerprint,
                hold: false,
                owner: None,
                reason: None,
                extras: None,
            })));
        }
        let older = current.memory_until.filter(|until| *until > NOW);
        if written == "absent" {
            assert!(self.cells[..17].iter().all(|says| *says == "none"), "{:?}", self.cells);
            assert_eq!(self.get("memory"), "older");
            return next(Some(Becomes::Absent { memory_until: older }));
        }
        let kept = |field: &str| match (self.get(field), state) {
            ("kept", Some(state)) => Some(state),
            ("kept", None) => panic!("{field} of an absent key"),
            _ => None,
        };
        let choose = |field: &str, words: &[&str]| {
            let says = self.get(field);
            let at = words.iter().position(|word| *word == says);
            at.unwrap_or_else(|| panic!("{field} is {says}"))
        };
        let label = |text: Option<&'s str>| text.filter(|text| !text.is_empty());
        let retry_at = match choose("retry at", &["none", "call's"]) {
            0 => None,
            _ => extras.retry_ms.map(|ms| NOW.plus(ms)),
        };
        let retention = conditions.retention_ms.map(|ms| NOW.plus(ms));
        let expires_at = match choose("expiry", &["none", "retention", "retention, and the delay"])
        {
            0 => None,
            1 => retention,
            _ => retention.map(|at| at.max(retry_at.unwrap_or(at))),
        };
        let own = match choose("memory", &["older", "own"]) {
            0 => None,
            _ => expires_at.zip(conditions.remember_ms),
        };
        let own = own.map(|(at, ms)| StoreMillis((at.0 + ms).next_multiple_of(60_000)));
        next(Some(Becomes::State(NextState {
            phase: phase(written.split([',', ' ']).next().unwrap()),
            token: match choose("token", &["new", "kept"]) {
                0 => None,
                _ => kept("token").map(|state| state.token),
            },
            life: match choose("life", &["new", "kept"]) {
                0 => None,
                _ => kept("life").map(|state| state.life),
            },
            open_fate: match choose("open fate", &["none", "kept", "opened"]) {
                0 => None,
                1 => kept("open fate").unwrap().open_fate,
                _ => state.unwrap().open_fate.or(Some(TOKEN)),
            },
            attempt: match choose("attempt", &["1", "n", "n+1"]) {
                0 => 1,
                1 => ATTEMPT,
                _ => ATTEMPT + 1,
            },
            forgiven: match choose("forgiven", &["none", "kept", "all", "one more"]) {
                0 => 0,
                1 => kept("forgiven").unwrap().forgiven,
                2 => ATTEMPT,
                _ => state.unwrap().forgiven + 1,
            },
            since: match choose("since", &["now", "kept"]) {
                0 => NOW,
                _ => kept("since").unwrap().since,
            },
            time: NOW,
            expires_at,
            memory_until: older.max(own),
            remembers: own.is_some(),
            wall_offset: WALL,
            fingerprint: match choose("fingerprint", &["call's", "kept", "call's or kept"]) {
                0 => conditions.fingerprint,
                1 => kept("fingerprint").unwrap().fingerprint,
                _ => conditions.fingerprint.or(state.unwrap().fingerprint),
            },
            hold: match choose("hold", &["no", "kept", "call's"]) {
                0 => false,
                1 => kept("hold").unwrap().hold,
                _ => conditions.hold,
            },
            owner: match choose("owner", &["none", "kept", "call's"]) {
                0 => None,
                1 => kept("owner").unwrap().owner.as_deref(),
                _ => label(conditions.owner),
            },
            reason: match choose("reason", &["none", "call's", "its lease passed", "kept"]) {
                0 => None,
                1 => label(conditions.reason),
                2 => Some("its lease passed"),
                _ => kept("reason").unwrap().reason.as_deref(),
            },
            extras: NextExtras {
                detached: match choose("lease", &["none", "kept", "call's"]) {
                    0 => None,
                    1 => kept("lease").unwrap().detached(),
                    _ => Some(lease),
                },
                retry_at,
                by: match choose("by", &["none", "kept", "call's"]) {
                    0 => None,
                    1 => kept("by").unwrap().by(),
                    _ => label(extras.by),
                },
                progress: match choose("progress", &["none", "kept", "call's"]) {
                    0 => None,
                    1 => kept("progress").unwrap().progress(),
                    _ => extras.progress,
                },
                announced: match choose("steps", &["none", "kept", "call's"]) {
                    0 => &[],
                    _ => state.unwrap().announced(),
                },
                announces: extras
                    .step
                    .filter(|_| self.get("steps") == "call's")
                    .map(|name| (name, conditions.fingerprint)),
                before_lapse: match choose("before lapse", &["none", "time"]) {
                    0 => None,
                    _ => state.map(|state| state.time),
                },
            }
            .boxed(),
        })))
    }

    /// Both tables agree on the attempt, an open fate, the token and the forgiven attempts.
    fn agree_with(&self, written: &str) {
        let mut words = written.split(", ");
        let first = words.next().unwrap();
        if let Some((_, attempt)) = first.split_once(' ') {
            assert_eq!(self.get("attempt"), attempt, "{written}");
        }
        let rest: Vec<_> = words.collect();
        let begins = self.get("attempt") != "n";
        let says = |word| rest.contains(&word);
        let opens = says("open") || says("revoked");
        assert_eq!(opens, self.get("open fate") == "opened", "{written}");
        let spends = says("token spent") || says("revoked");
        assert_eq!(spends, self.get("token") == "new" && !begins, "{written}");
        assert_eq!(says("detached"), self.get("lease") == "call's", "{written}");
        assert_eq!(says("counted anew"), self.get("forgiven") == "all", "{written}");
    }
}

/// The presence on a key, and its end.
type OnIt = (Presence, Option<StoreMillis>);

/// Every variant of what is known of a key, and the column it belongs to.
fn states() -> Vec<(&'static str, Option<KeyState>, Option<StoreMillis>, OnIt)> {
    let owner = |lease_until| (Presence::Owner, lease_until);
    let presences = [
        (Presence::Nobody, None),
        (Presence::Asked, None),
        (Presence::Asked, Some(StoreMillis(1001))),
        (Presence::Asked, Some(NOW)),
        owner(None),
        owner(Some(StoreMillis(1001))),
        owner(Some(NOW)),
        owner(Some(StoreMillis(999))),
    ];
    let all = [
        Phase::Claimed,
        Phase::Interrupted,
        Phase::Held,
        Phase::Aborted,
        Phase::Completed,
        Phase::Failed,
    ];
    let mut out = Vec::new();
    for memory_until in [None, Some(NOW), Some(OLDER)] {
        out.extend(presences.map(|on_it| ("absent", None, memory_until, on_it)));
    }
    for phase in all {
        for (presence, lease_until) in presences {
            for (side, rare) in every_side().into_iter().flat_map(|side| {
                // No rule looks at those and at the memory or the forgiven attempts.
                let (.., forgiven, _, memory) = side;
                let rares = if memory.is_none() && forgiven == 0 { 7 } else { 1 };
                every_rare(phase).into_iter().take(rares).map(move |rare| (side, rare))
            }) {
                let (open, hold, printed, forgiven, expiry, memory) = side;
                let (detached, retry_at, progress, announced) = rare;
                let runs = detached.is_some_and(|lease| lease.until > NOW);
                // A question about a claim is only asked once its lease has passed.
                if presence == Presence::Asked && runs {
                    continue;
                }
                let may_expire = matches!(phase, Phase::Aborted | Phase::Completed | Phase::Failed);
                let is_outcome = matches!(phase, Phase::Completed | Phase::Failed);
                let is_remembered =
                    is_outcome && memory.is_some_and(|(until, own)| own && until > NOW);
                let has_lapsed = lease_until.is_some_and(|until| until <= NOW);
                let column = match (phase, presence) {
                    _ if is_remembered && expiry.is_some_and(|at| at <= NOW) => "expired",
                    _ if may_expire && expiry.is_some_and(|at| at <= NOW) => "absent",
                    (Phase::Claimed, Presence::Owner) if has_lapsed => "lapsed",
                    (Phase::Claimed, Presence::Owner) => "claimed",
                    (Phase::Claimed, _) if runs => "detached",
                    (Phase::Claimed | Phase::Interrupted, Presence::Asked) if !has_lapsed => {
                        "asked"
                    }
                    (Phase::Claimed | Phase::Interrupted, _) => "interrupted",
                    (Phase::Held, _) => "held",
                    (Phase::Aborted, _) if retry_at.is_some_and(|at| at > NOW) => "delayed",
                    (Phase::Aborted, _) => "aborted",
                    (Phase::Completed, _) => "completed",
                    (Phase::Failed, _) => "failed",
                };
                let memory_until = memory.map(|(until, _)| until);
                let state = KeyState {
                    phase,
                    token: TOKEN,
                    life: LIFE,
                    open_fate: open.then_some(OLDEST),
                    attempt: ATTEMPT,
                    forgiven,
                    since: StoreMillis(500),
                    time: StoreMillis(600),
                    expires_at: expiry,
                    memory_until,
                    remembers: memory.is_some_and(|(_, own)| own),
                    wall_offset: 9000,
                    fingerprint: printed.then(|| Fingerprint::of("this")),
                    hold,
                    owner: printed.then(|| "its owner".into()),
                    reason: open.then(|| "its reason".into()),
                    extras: Some(Arc::new(Extras {
                        detached,
                        retry_at,
                        by: hold.then(|| "someone".into()),
                        progress: progress.map(Into::into),
                        announced: (0..announced).map(open_step).collect(),
                        before_lapse: lapse_noted(phase, announced),
                    }))
                    .filter(|extras| **extras != Extras::default()),
                };
                out.push((column, Some(state), memory_until, (presence, lease_until)));
            }
        }
    }
    out
}

/// A memory that outlasts some of the new ones.
const OLDER: StoreMillis = StoreMillis(600_001);

type Rare = (Option<Lease>, Option<StoreMillis>, Option<&'static [u8]>, usize);

/// A detached claim's lease, a delay, progress, and a number of announced steps, where a phase has them.
fn every_rare(phase: Phase) -> Vec<Rare> {
    let times = [StoreMillis(999), NOW, StoreMillis(1001)];
    let some: Vec<Rare> = match phase {
        Phase::Claimed => {
            let lease = |until| Some(Lease { until, millis: 600, reserve: 70 });
            let saved = Some(&b"4 of 9"[..]);
            let detached = times.map(|until| (lease(until), None, saved, 1));
            let runs = |announced| (lease(StoreMillis(1001)), None, saved, announced);
            let more = [(None, None, saved, ANNOUNCED_MAX), runs(0), runs(ANNOUNCED_MAX)];
            detached.into_iter().chain(more).collect()
        }
        Phase::Interrupted | Phase::Held => {
            vec![(None, None, Some(b"4 of 9"), 2), (None, None, None, ANNOUNCED_MAX)]
        }
        Phase::Aborted => times.map(|at| (None, Some(at), Some(&b"4 of 9"[..]), 0)).into(),
        Phase::Completed | Phase::Failed => vec![(None, None, Some(b"4 of 9"), 0)],
    };
    [(None, None, None, 0)].into_iter().chain(some).collect()
}

/// The first has an input, and the others none.
fn open_step(n: usize) -> OpenStep {
    let input = (n == 0).then(|| Fingerprint::of("this"));
    OpenStep { name: format!("step {n}").into(), input }
}

/// The time of the record before, of an interrupted key whose record only notes a lapse.
fn lapse_noted(phase: Phase, announced: usize) -> Option<StoreMillis> {
    (phase == Phase::Interrupted && announced == 2).then_some(BEFORE)
}

const BEFORE: StoreMillis = StoreMillis(550);

type Side = (bool, bool, bool, u32, Option<StoreMillis>, Option<(StoreMillis, bool)>);

/// Open fate, hold flag, fingerprint recorded, attempts forgiven, expiry, memory and whether it is the record's own: all
/// of them.
fn every_side() -> Vec<Side> {
    let both = [false, true];
    let expiries = [None, Some(StoreMillis(999)), Some(NOW), Some(StoreMillis(1001))];
    let memories = [None, Some((NOW, true)), Some((StoreMillis(1001), true)), Some((OLDER, false))];
    let mut out = Vec::new();
    for open in both {
        for hold in both {
            for printed in both {
                for forgiven in [0, 2, ATTEMPT] {
                    for memory in memories {
                        let side = |expiry| (open, hold, printed, forgiven, expiry, memory);
                        out.extend(expiries.map(side));
                    }
                }
            }
        }
    }
    out
}

/// Variants of a call's conditions, except those that a claim compares.
fn all_conditions() -> [Conditions<'static>; 8] {
    let none = Conditions::default();
    let (owner, reason) = (Some("who comes"), Some("why"));
    [
        none,
        Conditions {
            lease_ms: Some(50),
            retention_ms: Some(100),
            owner,
            extras: Some(&CallExtras {
                retry_ms: Some(5),
                reserve: 90,
                by: None,
                progress: None,
                step: Some("step 0"),
            }),
            ..none
        },
        Conditions {
            retention_ms: Some(100),
            remember_ms: Some(200),
            owner,
            reason,
            extras: Some(&CallExtras {
                retry_ms: Some(300),
                reserve: 0,
                by: Some("ann"),
                progress: None,
                step: Some("another"),
            }),
            ..none
        },
        Conditions {
            retention_ms: Some(0),
            remember_ms: Some(900_000),
            reason,
            hold: true,
            extras: Some(&CallExtras {
                retry_ms: None,
                reserve: 0,
                by: None,
                progress: Some(b"5 of 9"),
                step: None,
            }),
            ..none
        },
        Conditions {
            lease_ms: Some(1),
            remember_ms: Some(200),
            owner: Some(""),
            extras: Some(&CallExtras {
                retry_ms: Some(1),
                reserve: 0,
                by: Some(""),
                progress: None,
                step: None,
            }),
            ..none
        },
        Conditions {
            fingerprint: Some(Fingerprint::of("that")),
            reason: Some(""),
            hold: true,
            ..none
        },
        of_step("this"),
        of_step("that"),
    ]
}

/// Those of a call of a step that may be open with the input "this".
fn of_step(input: &str) -> Conditions<'static> {
    let extras =
        CallExtras { retry_ms: None, reserve: 0, by: None, progress: None, step: Some("step 0") };
    let (fingerprint, extras) = (Some(Fingerprint::of(input)), Some(&*Box::leak(extras.into())));
    Conditions { fingerprint, extras, ..Conditions::default() }
}

const FINGERPRINTS: [Option<&str>; 3] = [None, Some("this"), Some("that")];

/// The rows that a claim falls under, the strongest first.
fn claim_rows(state: Option<&KeyState>, wants: Wants) -> Vec<&'static str> {
    let recorded = state.and_then(|state| state.fingerprint);
    let differs = recorded.is_some() && wants.fingerprint == Some(Fingerprint::of("that"));
    let forgiven = state.map_or(0, |state| state.forgiven);
    let is_beyond =
        wants.attempts_max.is_some_and(|max| ATTEMPT + 1 > max.saturating_add(forgiven));
    let asks_hold = wants.on_interrupted == Some(OnInterrupted::Hold);
    let holds = asks_hold || state.is_some_and(|state| state.hold);
    let mut rows = Vec::new();
    rows.extend(differs.then_some("claim, another fingerprint"));
    rows.extend((state.is_some() && is_beyond).then_some("claim, attempts_max reached"));
    rows.extend((holds && !wants.reconciles).then_some("claim, Hold asked for"));
    rows.push("claim");
    rows
}

/// Every claim: fingerprint none, the same, another; every policy; below, at and beyond `attempts_max`.
fn every_claim(state: Option<&KeyState>) -> Vec<Asked> {
    let limits =
        [None, Some(1), Some(3), Some(4), Some(5), Some(6), Some(ATTEMPT + 2), Some(u32::MAX)];
    let mut out = Vec::new();
    for fingerprint in FINGERPRINTS {
        for on_interrupted in [None, Some(OnInterrupted::Retry), Some(OnInterrupted::Hold)] {
            for attempts_max in limits {
                for reconciles in [false, true] {
                    let fingerprint = fingerprint.map(Fingerprint::of);
                    let wants = Wants { fingerprint, on_interrupted, attempts_max, reconciles };
                    // All its conditions, in turn.
                    let conditions = all_conditions()[out.len() % 8];
                    let conditions = Conditions { fingerprint, ..conditions };
                    out.push((Call::Claim(wants), conditions, claim_rows(state, wants)));
                }
            }
        }
    }
    out
}

/// Calls that name a token, and the page's answer when it is another one.
type ByToken = (&'static str, fn(Token) -> Call, bool);

const BY_TOKEN: [ByToken; 20] = [
    ("take_over", Call::TakeOver, true),
    ("not_applied", Call::NotApplied, true),
    ("hold", Call::Hold, true),
    ("complete", Call::Complete, true),
    ("fail", Call::Fail, true),
    ("abort", Call::Abort, true),
    ("withdraw", Call::Withdraw, true),
    ("park", Call::Park, true),
    ("renew", |token| Call::Renew { token, attached: false }, true),
    ("renew, attached", |token| Call::Renew { token, attached: true }, true),
    ("save_progress", Call::Progress, true),
    ("begin_step", Call::BeginStep, true),
    ("announce", Call::Announce, true),
    ("end_step", |token| Call::EndStep { token, life: LIFE }, true),
    ("detach", Call::Detach, true),
    ("attach", Call::Attach, true),
    ("forget_claimed", Call::ForgetClaimed, true),
    ("the owner ends without an outcome", Call::Interrupt, false),
    ("interrupt", Call::Revoke, false),
    ("replace", Call::Replace, false),
];

/// Calls that name what was seen, and their rows where that is another state.
type BySight = (&'static str, fn(Sight) -> Call, &'static str);

const BY_SIGHT: [BySight; 4] = [
    ("resolve, completed", Call::ResolveComplete, "resolve, another state"),
    ("resolve, failed", Call::ResolveFail, "resolve, another state"),
    ("resolve, retry", Call::ResolveRetry, "resolve, another state"),
    ("forget_seen", Call::ForgetSeen, "forget_seen, another state"),
];

/// The row of a step that has ended.
const ENDED_BEFORE: &str = "end_step, ended before";

/// A call, its conditions, and the rows it falls under, the strongest first.
type Asked = (Call, Conditions<'static>, Vec<&'static str>);

fn every_call(
    state: Option<&KeyState>,
    question_is_late: bool,
    sights: &[(Sight, bool)],
) -> Vec<Asked> {
    let mut out = every_claim(state);
    for conditions in all_conditions() {
        for (sight, is_it) in sights {
            for (row, call, another) in BY_SIGHT {
                let row = if *is_it { row } else { another };
                out.push((call(*sight), conditions, vec![row]));
            }
        }
        out.push((Call::Forget, conditions, vec!["forget"]));
        out.push((Call::RenewQuestion(QUESTION), conditions, vec!["renew_question"]));
        let other = Call::RenewQuestion(OTHER_QUESTION);
        out.push((other, conditions, vec!["renew_question, another question"]));
        let late = question_is_late.then_some("drop_question, late");
        let rows = late.into_iter().chain(["drop_question"]).collect();
        out.push((Call::DropQuestion(QUESTION), conditions, rows));
        let other = Call::DropQuestion(OTHER_QUESTION);
        out.push((other, conditions, vec!["drop_question, another question"]));
        for fingerprint in FINGERPRINTS {
            let differs = fingerprint == Some("that")
                && state.is_some_and(|state| state.fingerprint.is_some());
            let mut rows = Vec::new();
            rows.extend(differs.then_some("mark, another fingerprint"));
            let fingerprint = fingerprint.map(Fingerprint::of);
            let conditions = Conditions { fingerprint, ..conditions };
            for (row, failure) in [("mark", false), ("record, failed", true)] {
                let rows = rows.iter().copied().chain([row]).collect();
                out.push((Call::Record { fingerprint, failure }, conditions, rows));
            }
        }
        for (row, call, is_owners) in BY_TOKEN {
            let older = state.is_some_and(|state| state.open_fate.is_some());
            let mut rows = Vec::new();
            rows.extend((row == "abort" && older).then_some("abort, an older fate open"));
            rows.extend((row == "withdraw" && older).then_some("withdraw, an older fate open"));
            let announced = state.map_or(0, |state| state.announced().len());
            let is_stepping = announced > 0;
            rows.extend((row == "abort" && is_stepping).then_some("abort, a step open"));
            rows.extend((row == "withdraw" && is_stepping).then_some("withdraw, a step open"));
            let step = conditions.extras.and_then(|extras| extras.step);
            let other = is_stepping
                && step == Some("step 0")
                && conditions.fingerprint.is_some_and(|input| input != Fingerprint::of("this"));
            rows.extend((row == "begin_step" && other).then_some("begin_step, another input"));
            rows.extend((row == "announce" && other).then_some("announce, another input"));
            let is_full = announced == ANNOUNCED_MAX;
            rows.extend((row == "announce" && is_full).then_some("announce, too many"));
            let is_detached = state.is_some_and(|state| state.detached().is_some());
            rows.extend((row == "renew" && is_detached).then_some("renew, handed over"));
            let left = "the owner ends without an outcome";
            let attached = "the owner ends without an outcome, attached";
            rows.extend((row == left && is_detached).then_some(attached));
            rows.push(row);
            if row == "end_step" {
                out.push((call(TOKEN), conditions, vec![ENDED_BEFORE, row]));
            }
            out.push((call(TOKEN), conditions, rows));
            let stale = match (call(OTHER).of_owner(), is_owners) {
                (Some(_), true) => "a call of an owner, another token",
                (Some(_), false) => "the owner ends without an outcome, another token",
                (None, true) => "a call of a claimant, another token",
                (None, false) => "a call of neither, another token",
            };
            out.push((call(OTHER), conditions, vec![stale]));
        }
    }
    out
}

/// The state in which a key is shown, and others, each with whether it is that one.
fn every_sight(
    column: &str,
    state: Option<&KeyState>,
    presence: Presence,
    lease_until: Option<StoreMillis>,
) -> Vec<(Sight, bool)> {
    let record = |token, phase, time| Sight::Record { token, phase, time };
    let expired = |until| Sight::Expired { until };
    let Some(state) = state.filter(|_| column != "absent") else {
        // Whatever was seen, nothing is there.
        let seen = record(TOKEN, Phase::Held, NOW);
        return vec![(seen, true), (expired(NOW), true), (seen, false)];
    };
    if column == "expired" {
        let until = state.memory_until.unwrap();
        let own = record(TOKEN, state.phase, state.time);
        return vec![(expired(until), true), (expired(until.plus(1)), false), (own, false)];
    }
    let mut seen = state.clone();
    let (presence, _) = shown(&mut seen, presence, lease_until, NOW);
    let phase = phase_shown(&seen, presence);
    let other = if phase == Phase::Held { Phase::Interrupted } else { Phase::Held };
    let is_claimed = phase == Phase::Claimed;
    vec![
        (record(TOKEN, phase, state.time), true),
        (record(TOKEN, phase, NOW), is_claimed),
        (record(TOKEN, phase, BEFORE), is_claimed || state.before_lapse() == Some(BEFORE)),
        (record(OTHER, phase, state.time), false),
        (record(TOKEN, other, state.time), false),
        (expired(NOW), false),
    ]
}

#[test]
fn every_cell_of_the_tables_is_what_the_code_does() {
    let rows = table("| call | absent |", &COLUMNS);
    let columns: Vec<_> = ["written"].into_iter().chain(FIELDS).collect();
    let nexts = table("| calls | written |", &columns);
    let mut walked = std::collections::HashSet::new();
    let mut led_to = std::collections::HashSet::new();
    let mut decisions = 0;
    let moment = Moment { now: NOW, wall_offset: WALL };
    for (column, state, memory_until, (presence, lease_until)) in states() {
        let at = COLUMNS.iter().position(|known| *known == column).unwrap();
        let current = current(state.as_ref(), memory_until, presence, lease_until);
        let question_is_late = presence == Presence::Asked && column == "interrupted";
        // An expired key is as good as absent, its fingerprint, hold and attempts included.
        let alive = state.as_ref().filter(|_| column != "absent" && column != "expired");
        let sights = every_sight(column, state.as_ref(), presence, lease_until);
        for (call, conditions, names) in every_call(alive, question_is_late, &sights) {
            let current = Current { step_has_ended: names[0] == ENDED_BEFORE, ..current };
            let (row, says) = cell(&rows, &names, at);
            let (told, written) = match says.split_once(" → ") {
                Some((told, written)) => (told, Some(written)),
                None => (says, None),
            };
            let next = written.map(|written| {
                let by = if told == "lapse" { "any, after a lapse" } else { row };
                let (at, fields) = Fields::of(&nexts, by, written);
                if led_to.insert((by, at)) && !matches!(written, "in memory" | "absent") {
                    fields.agree_with(written);
                }
                fields.next(&current, alive, written, &conditions)
            });
            let expected = Decision { answer: answer(told), next };
            let got = decide(&current, call, &conditions, moment);
            let why = || format!("{row} in {column}: {call:?} by {conditions:?} on {current:?}");
            assert_eq!(got, expected, "{}", why());
            let unchanged = expected.answer.filter(|_| expected.next.is_none());
            assert_eq!(decide_unchanged(&current, call, &conditions, NOW), unchanged, "{}", why());
            walked.insert((row, column));
            decisions += 1;
        }
    }
    let cells = rows.iter().flat_map(|(row, cells)| {
        COLUMNS.iter().zip(cells).filter(|(_, says)| **says != SILENT).map(|(c, _)| (*row, *c))
    });
    let cells: std::collections::HashSet<_> = cells.collect();
    assert_eq!(walked, cells, "cells that no call reached, or that the page lacks");
    let listed = nexts
        .iter()
        .enumerate()
        .flat_map(|(at, (calls, _))| calls.split("; ").map(move |call| (call, at)));
    assert_eq!(led_to, listed.collect(), "next states that no call led to");
    println!("protocol: {} cells, {} next states, {decisions} decisions", cells.len(), nexts.len());
}

/// The name of a call in the table of calls that are sent again.
fn base(call: Call) -> &'static str {
    match call {
        Call::Claim(_) => "claim",
        Call::Record { failure: false, .. } => "mark",
        Call::Record { failure: true, .. } => "record",
        Call::TakeOver(_) => "take_over",
        Call::NotApplied(_) => "not_applied",
        Call::Hold(_) => "hold",
        Call::RenewQuestion(_) => "renew_question",
        Call::DropQuestion(_) => "drop_question",
        Call::Complete(_) => "complete",
        Call::Fail(_) => "fail",
        Call::Abort(_) => "abort",
        Call::Withdraw(_) => "withdraw",
        Call::Park(_) => "park",
        Call::Interrupt(_) => "the owner ends without an outcome",
        Call::Renew { .. } => "renew",
        Call::Progress(_) => "save_progress",
        Call::BeginStep(_) => "begin_step",
        Call::Announce(_) => "announce",
        Call::EndStep { .. } => "end_step",
        Call::Detach(_) => "detach",
        Call::Attach(_) => "attach",
        Call::ResolveComplete(_) | Call::ResolveFail(_) | Call::ResolveRetry(_) => "resolve",
        Call::Revoke(_) => "interrupt",
        Call::Replace(_) => "replace",
        Call::Forget => "forget",
        Call::ForgetSeen(_) => "forget_seen",
        Call::ForgetClaimed(_) => "forget_claimed",
    }
}

/// The columns of the table of calls that are sent again.
const NEWEST: [(&str, NewestIs); 4] = [
    ("its own", NewestIs::Own),
    ("of a later item", NewestIs::LaterItem),
    ("unheard", NewestIs::Unheard),
    ("heard", NewestIs::Heard),
];

/// Of each cell both ways out occur, where it has two.
#[test]
fn every_cell_of_the_calls_sent_again_is_what_the_code_does() {
    let rows = table("| call sent again |", &NEWEST.map(|(name, _)| name));
    let mut walked = std::collections::HashSet::new();
    let moment = Moment { now: NOW, wall_offset: WALL };
    for (column, state, memory_until, (presence, lease_until)) in states() {
        let current = current(state.as_ref(), memory_until, presence, lease_until);
        let alive = state.as_ref().filter(|_| column != "absent" && column != "expired");
        let sights = every_sight(column, state.as_ref(), presence, lease_until);
        for (call, conditions, _) in every_call(alive, false, &sights) {
            let is_it = |(calls, _): &&Row| calls.split(", ").any(|known| known == base(call));
            let (_, cells) = rows.iter().find(is_it).unwrap_or_else(|| panic!("{call:?}"));
            let made = decide(&current, call, &conditions, moment);
            let told = |answer| Some(Decision { answer: Some(answer), next: None });
            let is_refused = matches!(made.answer, Some(Answer::Lost | Answer::Unchanged));
            let changes = made.next.is_some() && made.answer.is_some();
            let is_owned = presence == Presence::Owner
                && state.as_ref().is_some_and(|state| state.phase == Phase::Claimed);
            for ((name, newest), says) in NEWEST.iter().zip(cells) {
                let (way, expected) = match *says {
                    "granted, if its owner has the claim; otherwise made" if is_owned => {
                        (1, told(Answer::Granted))
                    }
                    "granted, if its owner has the claim; otherwise made" => {
                        (0, Some(made.clone()))
                    }
                    "granted" => (0, told(Answer::Granted)),
                    "done" => (0, told(Answer::Done)),
                    "indeterminate" => (0, None),
                    "made" => (0, Some(made.clone())),
                    "if it stands" if is_refused => (1, None),
                    "if unchanged" if changes => (1, None),
                    "if it stands" | "if unchanged" => (0, Some(made.clone())),
                    other => panic!("no cell says {other}"),
                };
                let got = decide_again(*newest, &current, call, &conditions, moment);
                assert_eq!(got, expected, "{call:?} in {column}, {name}: {current:?}");
                walked.insert((base(call), *name, way));
            }
        }
    }
    for (calls, cells) in &rows {
        for call in calls.split(", ") {
            for ((name, _), says) in NEWEST.iter().zip(cells) {
                let ways = if says.contains("if ") { 2 } else { 1 };
                let all = (0..ways).all(|way| walked.contains(&(call, *name, way)));
                assert!(all, "{call}, {name}: {says}");
            }
        }
    }
    println!("protocol: {} ways of calls sent again", walked.len());
}

fn current<'a>(
    state: Option<&'a KeyState>,
    memory_until: Option<StoreMillis>,
    presence: Presence,
    lease_until: Option<StoreMillis>,
) -> Current<'a> {
    let question = if presence == Presence::Asked { QUESTION } else { 0 };
    Current { state, memory_until, presence, lease_until, question, step_has_ended: false }
}

/// A look shows the state that the next call will meet, and changes nothing.
#[test]
fn a_passed_lease_is_shown_as_the_next_call_will_find_it() {
    for (column, state, memory_until, (presence, lease_until)) in states() {
        let Some(state) = state.filter(|state| state.phase == Phase::Claimed) else { continue };
        let current = current(Some(&state), memory_until, presence, lease_until);
        let moment = Moment { now: NOW, wall_offset: WALL };
        let next = decide(&current, Call::Forget, &Conditions::default(), moment);
        let mut seen = state.clone();
        let (seen_on_it, seen_until) = shown(&mut seen, presence, lease_until, NOW);
        let becomes = next.next.as_ref().and_then(|next| next.becomes.as_ref());
        match (next.answer, becomes) {
            (None, Some(Becomes::State(next))) => {
                assert_eq!(column, "lapsed");
                assert_eq!((seen_on_it, seen_until), (Presence::Nobody, None));
                assert_eq!(seen.reason.as_deref(), next.reason);
                assert_eq!(phase_shown(&seen, seen_on_it), next.phase);
                assert_eq!(KeyState { reason: state.reason.clone(), ..seen }, state);
            }
            _ => {
                assert_ne!(column, "lapsed");
                let expected = match column {
                    "claimed" => (presence, lease_until),
                    "detached" => (Presence::Detached, state.detached().map(|lease| lease.until)),
                    "asked" => (presence, lease_until),
                    _ => (Presence::Nobody, None),
                };
                assert_eq!((seen_on_it, seen_until), expected);
                let is_over =
                    state.detached().is_some() && matches!(column, "interrupted" | "asked");
                let lapsed = is_over.then(|| LEASE_PASSED.into());
                assert_eq!(seen, KeyState { reason: lapsed.or(state.reason.clone()), ..state });
            }
        }
    }
}

/// In that column alone, whatever is recorded: the key is shown in progress there, and to a sight it is interrupted.
#[test]
fn a_claimant_decides_about_a_key_that_is_asked() {
    for (column, state, _, (presence, lease_until)) in states() {
        let Some(mut state) = state else { continue };
        let (presence, _) = shown(&mut state, presence, lease_until, NOW);
        assert_eq!(is_being_decided(&state, presence), column == "asked", "{column}: {state:?}");
        if column == "asked" {
            assert_eq!(phase_shown(&state, presence), Phase::Interrupted);
        }
    }
}

/// The stored state takes the issued token where the next state has none, and nothing else changes.
#[test]
fn the_stored_state_is_the_decided_one() {
    for (_, state, ..) in states() {
        let Some(state) = state else { continue };
        let next = NextState {
            phase: state.phase,
            token: Some(state.token),
            life: Some(state.life),
            open_fate: state.open_fate,
            attempt: state.attempt,
            forgiven: state.forgiven,
            since: state.since,
            time: state.time,
            expires_at: state.expires_at,
            memory_until: state.memory_until,
            remembers: state.remembers,
            wall_offset: state.wall_offset,
            fingerprint: state.fingerprint,
            hold: state.hold,
            owner: state.owner.as_deref(),
            reason: state.reason.as_deref(),
            extras: NextExtras {
                detached: state.detached(),
                retry_at: state.retry_at(),
                by: state.by(),
                progress: state.progress(),
                announced: state.announced(),
                announces: None,
                before_lapse: state.before_lapse(),
            }
            .boxed(),
        };
        assert_eq!(next.stored(OTHER), state);
        let spent = NextState { token: None, ..next.clone() };
        assert_eq!(spent.stored(OTHER), KeyState { token: OTHER, ..state.clone() });
        let begun = NextState { token: None, life: None, ..next };
        assert_eq!(begun.stored(OTHER), KeyState { token: OTHER, life: OTHER, ..state });
    }
}
