//! The table of `docs/protocol.md`, read from the page, against every cell of the code.

use super::*;

const PAGE: &str = include_str!("../../docs/protocol.md");

const COLUMNS: [&str; 9] = [
    "absent",
    "claimed",
    "interrupted",
    "asked",
    "held",
    "aborted",
    "completed",
    "failed",
    "expired",
];

const NOW: StoreMillis = StoreMillis(1000);
const TOKEN: Token = Token(800);
const LIFE: Token = Token(80);
const OLDEST: Token = Token(160);
const OTHER: Token = Token(808);
const ATTEMPT: u32 = 5;

type Row = (&'static str, Vec<&'static str>);

/// A cell that leaves it to the next row of the same call.
const SILENT: &str = "·";

/// The rows under the header that begins with `| call | absent |`: name and cells.
fn table() -> Vec<Row> {
    let cells = |line: &'static str| -> Vec<&'static str> {
        line.trim_matches('|').split('|').map(str::trim).collect()
    };
    let mut lines = PAGE.lines().skip_while(|line| !line.starts_with("| call | absent |"));
    assert_eq!(cells(lines.next().unwrap())[1..], COLUMNS);
    lines.next();
    lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = cells(line);
            assert_eq!(cells.len(), 1 + COLUMNS.len(), "{line}");
            (cells[0], cells[1..].to_vec())
        })
        .collect()
}

/// The first row of a call that applies and says something in that column: its name, and what it says.
fn cell(rows: &[Row], names: &[&str], column: usize) -> (&'static str, &'static str) {
    names
        .iter()
        .map(|name| rows.iter().find(|(known, _)| known == name).expect("a row of that name"))
        .map(|(name, cells)| (*name, cells[column]))
        .find(|(_, says)| *says != SILENT)
        .expect("some row says something")
}

/// A decision in the words of the page.
fn words(decision: Decision, state: Option<&KeyState>) -> String {
    let answer = match decision.answer {
        Answer::Granted => "granted",
        Answer::Asked => "asked",
        Answer::InProgress => "in progress",
        Answer::Held => "held",
        Answer::TooManyAttempts => "too many",
        Answer::Completed => "completed",
        Answer::Failed => "failed",
        Answer::Mismatch => "mismatch",
        Answer::Expired => "expired",
        Answer::Interrupted => "interrupted",
        Answer::Done => "done",
        Answer::Unchanged => "nothing",
        Answer::Lost => "lost",
    };
    let Some(next) = decision.next else { return answer.to_owned() };
    let attempt_words = |attempt: u32, life: Option<Token>| match state {
        None => {
            assert_eq!((attempt, life), (1, None));
            "1"
        }
        Some(state) => {
            assert_eq!((attempt, life), (state.attempt + 1, Some(LIFE)), "life goes on");
            "n+1"
        }
    };
    let next = match next {
        Next::Claimed { attempt, forgiven, life, open_fate } => {
            let known = state.map_or(0, |state| state.forgiven);
            assert_eq!(forgiven, known, "only an operator forgives");
            let number = attempt_words(attempt, life);
            match open_fate {
                None => format!("claimed {number}"),
                Some(open) => {
                    let state = state.unwrap();
                    assert_eq!(open, state.open_fate.unwrap_or(TOKEN), "the oldest fate stays");
                    format!("claimed {number}, open")
                }
            }
        }
        Next::Marked { attempt, life } => format!("completed {}", attempt_words(attempt, life)),
        Next::Same { phase, open_fate, spent, forgives } => {
            let (name, keeps_fate) = match phase {
                Phase::Claimed => ("claimed n", true),
                Phase::Interrupted => ("interrupted", true),
                Phase::Held => ("held", true),
                Phase::Aborted => ("aborted", false),
                Phase::Completed => ("completed", false),
                Phase::Failed => ("failed", false),
            };
            let fate = state.unwrap().open_fate.filter(|_| keeps_fate);
            assert_eq!(open_fate, fate, "an open fate stays until an outcome or a word closes it");
            let more = [(spent, ", token spent"), (forgives, ", counted anew")];
            let more = more.iter().filter(|(is, _)| *is).map(|(_, words)| *words);
            format!("{name}{}", more.collect::<String>())
        }
        Next::Absent => "absent".to_owned(),
    };
    format!("{answer} → {next}")
}

/// Everything a state may be, and the column it belongs to.
fn states() -> Vec<(&'static str, Option<KeyState>, Presence)> {
    let presences = [Presence::Nobody, Presence::Owner, Presence::Asked];
    let all = [
        Phase::Claimed,
        Phase::Interrupted,
        Phase::Held,
        Phase::Aborted,
        Phase::Completed,
        Phase::Failed,
    ];
    let mut out: Vec<_> = presences.map(|presence| ("absent", None, presence)).into();
    for phase in all {
        for presence in presences {
            for (open, hold, printed, forgiven, expiry, memory) in every_side() {
                let may_expire = matches!(phase, Phase::Aborted | Phase::Completed | Phase::Failed);
                let is_outcome = matches!(phase, Phase::Completed | Phase::Failed);
                let is_remembered =
                    is_outcome && memory.is_some_and(|(until, own)| own && until > NOW);
                let column = match (phase, presence) {
                    _ if is_remembered && expiry.is_some_and(|at| at <= NOW) => "expired",
                    _ if may_expire && expiry.is_some_and(|at| at <= NOW) => "absent",
                    (Phase::Claimed, Presence::Owner) => "claimed",
                    (Phase::Claimed | Phase::Interrupted, Presence::Asked) => "asked",
                    (Phase::Claimed | Phase::Interrupted, _) => "interrupted",
                    (Phase::Held, _) => "held",
                    (Phase::Aborted, _) => "aborted",
                    (Phase::Completed, _) => "completed",
                    (Phase::Failed, _) => "failed",
                };
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
                    memory_until: memory.map(|(until, _)| until),
                    remembers: memory.is_some_and(|(_, own)| own),
                    wall_offset: 0,
                    fingerprint: printed.then(|| Fingerprint::of("this")),
                    hold,
                    owner: None,
                    reason: None,
                };
                out.push((column, Some(state), presence));
            }
        }
    }
    out
}

type Side = (bool, bool, bool, u32, Option<StoreMillis>, Option<(StoreMillis, bool)>);

/// Open fate, hold flag, fingerprint recorded, attempts forgiven, expiry, memory and whether it is the record's own: all
/// of them.
fn every_side() -> Vec<Side> {
    let both = [false, true];
    let expiries = [None, Some(StoreMillis(999)), Some(NOW), Some(StoreMillis(1001))];
    let memories = [
        None,
        Some((NOW, true)),
        Some((StoreMillis(1001), true)),
        Some((StoreMillis(1001), false)),
    ];
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

/// Every claim: fingerprint none, the same, another; every policy; below, at and beyond `attempts_max`.
fn every_claim() -> Vec<Wants> {
    let mut out = Vec::new();
    for fingerprint in [None, Some("this"), Some("that")] {
        for on_interrupted in [None, Some(OnInterrupted::Retry), Some(OnInterrupted::Hold)] {
            for attempts_max in [
                None,
                Some(1),
                Some(3),
                Some(4),
                Some(5),
                Some(6),
                Some(ATTEMPT + 2),
                Some(u32::MAX),
            ] {
                for reconciles in [false, true] {
                    out.push(Wants {
                        fingerprint: fingerprint.map(Fingerprint::of),
                        on_interrupted,
                        attempts_max,
                        reconciles,
                    });
                }
            }
        }
    }
    out
}

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

/// Calls that name a token, and what the page says of them when it is another one.
type ByToken = (&'static str, fn(Token) -> Call, bool);

const BY_TOKEN: [ByToken; 13] = [
    ("take_over", Call::TakeOver, true),
    ("not_applied", Call::NotApplied, true),
    ("hold", Call::Hold, true),
    ("complete", Call::Complete, true),
    ("fail", Call::Fail, true),
    ("abort", Call::Abort, true),
    ("park", Call::Park, true),
    ("renew", Call::Renew, true),
    ("forget_claimed", Call::ForgetClaimed, true),
    ("the owner goes without a word", Call::Interrupt, false),
    ("resolve, completed", Call::ResolveComplete, false),
    ("resolve, failed", Call::ResolveFail, false),
    ("resolve, retry", Call::ResolveRetry, false),
];

fn every_call(state: Option<&KeyState>) -> Vec<(Call, Vec<&'static str>)> {
    let mut out = vec![(Call::Forget, vec!["forget"])];
    for fingerprint in [None, Some("this"), Some("that")] {
        let differs =
            fingerprint == Some("that") && state.is_some_and(|state| state.fingerprint.is_some());
        let mut rows = Vec::new();
        rows.extend(differs.then_some("mark, another fingerprint"));
        rows.push("mark");
        out.push((Call::Mark(fingerprint.map(Fingerprint::of)), rows));
    }
    out.extend(
        every_claim().into_iter().map(|wants| (Call::Claim(wants), claim_rows(state, wants))),
    );
    for (row, call, is_owners) in BY_TOKEN {
        let older = state.is_some_and(|state| state.open_fate.is_some());
        let mut rows = Vec::new();
        rows.extend((row == "abort" && older).then_some("abort, an older fate open"));
        rows.push(row);
        out.push((call(TOKEN), rows));
        let stale = if is_owners {
            "a word of an owner or a claimant, another token"
        } else {
            "a word of nobody's, another token"
        };
        out.push((call(OTHER), vec![stale]));
    }
    out
}

#[test]
fn every_cell_of_the_table_is_what_the_code_does() {
    let rows = table();
    let mut walked = std::collections::HashSet::new();
    let mut decisions = 0;
    for (column, state, presence) in states() {
        let at = COLUMNS.iter().position(|known| *known == column).unwrap();
        // What has expired is as good as absent, its fingerprint, hold and attempts included.
        let alive = state.as_ref().filter(|_| column != "absent" && column != "expired");
        for (call, names) in every_call(alive) {
            let (row, expected) = cell(&rows, &names, at);
            let got = words(decide(state.as_ref(), presence, call, NOW), alive);
            assert_eq!(got, expected, "{row} in {column}: {call:?} on {state:?}, {presence:?}");
            walked.insert((row, column));
            decisions += 1;
        }
    }
    let cells = rows.iter().flat_map(|(row, cells)| {
        COLUMNS.iter().zip(cells).filter(|(_, says)| **says != SILENT).map(|(c, _)| (*row, *c))
    });
    let cells: std::collections::HashSet<_> = cells.collect();
    assert_eq!(walked, cells, "cells that nothing walked, or that the page lacks");
    println!("protocol: {} cells, {decisions} decisions", cells.len());
}
