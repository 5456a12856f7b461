//! What must hold of the calls of all processes, whichever of them were killed.
//!
//! A key's calls have to fit one order of a spec: that of a key which several processes claim, none of which has a lease. What
//! became of a call that a kill cut short, or that was answered `Indeterminate`, is unknown: it was made or not, at one moment
//! between its start and the moment from which on nobody could make it. The other checks are part of that, and say more plainly
//! what is wrong.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

use super::history::{Ask, Call, Sight, Told};
use crate::orders::{self, Event};

/// The end of a process that was killed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death {
    pub(super) process: u32,
    /// When the kill was sent.
    pub(super) killed: u64,
    /// From then on none of its calls can be made any more, and its claims are interrupted: it has gone, and so has the host that it
    /// sent them to, which may be itself.
    pub(super) over: u64,
    pub(super) hosted: bool,
}

/// What the spec knows of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
struct State {
    is: Is,
    /// `None`: it was issued, and nobody has seen it.
    token: Option<u64>,
    attempt: u32,
    /// The fate of an earlier attempt is open.
    doubt: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
enum Is {
    #[default]
    Absent,
    Running {
        process: u32,
        leaves: Leaves,
    },
    /// `asked`: the process and thread that were asked about it last.
    Interrupted {
        asked: Option<(u32, u16)>,
    },
    Aborted,
    Completed,
}

/// How a claim may end by itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Leaves {
    /// Its owner lives, and has the guard.
    Not,
    /// The guard is gone, and the word of it may be on its way.
    Interrupted,
    /// The caller was never told of the grant: it may also be withdrawn, which aborts the attempt.
    Withdrawn,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// `is_new`: the token that is shown was never acknowledged to an owner.
    Call { call: Call, is_new: bool },
    /// The process's claims may be interrupted from now on.
    Dies(u32),
    /// They are.
    IsGone(u32),
}

fn after(state: &State, act: &Act) -> Vec<State> {
    let mut all = Vec::new();
    for state in variants(*state).into_iter().flatten() {
        match *act {
            Act::Call { call, is_new } => made(state, call, is_new, &mut all),
            Act::Dies(process) => all.push(left_by(state, process)),
            Act::IsGone(process) => all.push(match state.is {
                Is::Running { process: owner, .. } if owner == process => interrupted(state),
                _ => state,
            }),
        }
    }
    all
}

/// The state, and those that it may have passed into by itself.
fn variants(state: State) -> [Option<State>; 3] {
    let Is::Running { leaves, .. } = state.is else { return [Some(state), None, None] };
    let is_left = leaves != Leaves::Not;
    let is_withdrawn = leaves == Leaves::Withdrawn;
    [Some(state), is_left.then(|| interrupted(state)), is_withdrawn.then(|| aborted(state))]
}

fn interrupted(state: State) -> State {
    State { is: Is::Interrupted { asked: None }, doubt: false, ..state }
}

/// An abort leaves the fates of earlier attempts open, under a token of its own.
fn aborted(state: State) -> State {
    match state.doubt {
        true => State { token: None, ..interrupted(state) },
        false => State { is: Is::Aborted, ..state },
    }
}

fn left_by(state: State, process: u32) -> State {
    match state.is {
        Is::Running { process: owner, leaves: Leaves::Not } if owner == process => {
            State { is: Is::Running { process, leaves: Leaves::Interrupted }, ..state }
        }
        _ => state,
    }
}

/// Adds the states that the call may leave, with that answer.
fn made(state: State, call: Call, is_new: bool, all: &mut Vec<State>) {
    let Call { process, thread, ask, told, .. } = call;
    // As it was shown: a token that nobody had seen is known from then on.
    let shown = |sight: Sight| {
        let is_it = match state.token {
            Some(token) => token == sight.token,
            None => is_new,
        };
        (is_it && state.attempt == sight.attempt)
            .then_some(State { token: Some(sight.token), ..state })
    };
    let shown_if = |is: bool, sight: Sight| shown(sight).filter(|_| is);
    let unchanged_if = |is: bool| is.then_some(state);
    let is_running = matches!(state.is, Is::Running { .. });
    let is_interrupted = matches!(state.is, Is::Interrupted { .. });
    let is_free = matches!(state.is, Is::Absent | Is::Aborted);
    let is_unknown = matches!(told, Told::Indeterminate | Told::Nothing);
    let granted = |sight: Option<Sight>, doubt: bool| {
        let attempt = state.attempt + 1;
        let leaves = if is_unknown { Leaves::Withdrawn } else { Leaves::Not };
        let token = sight.map(|sight| sight.token);
        let granted = State { is: Is::Running { process, leaves }, token, attempt, doubt };
        sight.is_none_or(|sight| sight.attempt == attempt).then_some(granted)
    };
    if is_unknown {
        all.push(state);
    }
    let next = match (ask, told) {
        (Ask::Claim, Told::Granted(sight)) if is_free => granted(Some(sight), false),
        (Ask::Claim, _) if is_unknown && is_free => granted(None, false),
        (Ask::Claim, Told::Asked(sight)) => shown_if(is_interrupted, sight)
            .map(|state| State { is: Is::Interrupted { asked: Some((process, thread)) }, ..state }),
        (Ask::Claim | Ask::Mark | Ask::Get, Told::InProgress(sight)) => shown_if(is_running, sight),
        (Ask::Claim | Ask::Mark | Ask::Get, Told::BeingDecided(sight)) => {
            shown_if(is_interrupted, sight)
        }
        (Ask::Mark | Ask::Get, Told::Interrupted(sight)) => shown_if(is_interrupted, sight),
        (Ask::Claim | Ask::Get, Told::Completed(sight)) => {
            shown_if(state.is == Is::Completed, sight)
        }
        (Ask::Get, Told::Aborted(sight)) => shown_if(state.is == Is::Aborted, sight),
        (Ask::Get, Told::Absent) => unchanged_if(state.is == Is::Absent),
        (Ask::Mark, _) if is_free && (is_unknown || told == Told::First) => {
            Some(State { is: Is::Completed, token: None, attempt: state.attempt + 1, doubt: false })
        }
        (Ask::Mark, Told::Again) => unchanged_if(state.is == Is::Completed),
        (Ask::Forget, _) if is_unknown || told == Told::Yes => {
            (!is_running && state.is != Is::Absent).then(State::default)
        }
        (Ask::Forget, Told::No) => unchanged_if(state.is == Is::Absent),
        (Ask::Forget, Told::Busy) => unchanged_if(is_running),
        (Ask::TakeOver(token) | Ask::NotApplied(token), told) => {
            let doubt = matches!(ask, Ask::TakeOver(_));
            let is_it = is_interrupted && state.token == Some(token);
            match told {
                Told::Granted(sight) if is_it => granted(Some(sight), doubt),
                Told::Indeterminate | Told::Nothing if is_it => granted(None, doubt),
                // Another was asked meanwhile.
                Told::Lost => unchanged_if(
                    !is_it || state.is != Is::Interrupted { asked: Some((process, thread)) },
                ),
                _ => None,
            }
        }
        (Ask::Complete(token) | Ask::Abort(token), told) => {
            let is_it = is_running && state.token == Some(token);
            let ended = match ask {
                Ask::Abort(_) => aborted(state),
                _ => State { is: Is::Completed, doubt: false, ..state },
            };
            if is_it && told == Told::Indeterminate {
                // Its guard is gone.
                all.push(left_by(state, process));
            }
            match told {
                Told::Yes | Told::Indeterminate | Told::Nothing => is_it.then_some(ended),
                Told::Lost => unchanged_if(!is_it),
                _ => None,
            }
        }
        // It waits for nothing, so its word may be on its way when it returns.
        (Ask::Drop(token), _) => Some(match state.token == Some(token) {
            true => left_by(state, process),
            false => state,
        }),
        _ => None,
    };
    all.extend(next);
}

/// All violations, in words, and what was counted on the way.
pub(super) fn check(calls: &[Call], deaths: &[Death], end: u64) -> (Vec<String>, Found) {
    let mut wrong = Vec::new();
    let deaths: HashMap<u32, Death> = deaths.iter().map(|death| (death.process, *death)).collect();
    let mut granted = HashSet::new();
    let mut keys: BTreeMap<u32, Vec<Call>> = BTreeMap::new();
    for call in calls {
        if let Told::Granted(sight) = call.told {
            if !granted.insert(sight.token) {
                wrong.push(format!("token {} was granted twice", sight.token));
            }
        }
        keys.entry(call.key).or_default().push(*call);
    }
    let mut hosts: Vec<Death> = deaths.values().copied().filter(|death| death.hosted).collect();
    hosts.sort_by_key(|death| death.killed);
    let mut found = Found::default();
    for (key, mut calls) in keys {
        calls.sort_by_key(|call| call.begun);
        let trace = |from: u64, until: u64| trace(&calls, &deaths, from, until);
        for (one, other) in two_owners(&calls, &deaths) {
            let trace = trace(one, other);
            wrong.push(format!("key {key}: two owners at once\n{trace}"));
        }
        for call in calls.iter().filter(|call| call.told == Told::Lost) {
            if matches!(call.ask, Ask::Complete(_) | Ask::Abort(_)) {
                let trace = trace(call.begun, call.ended);
                wrong.push(format!("key {key}: an owner that lives has lost its claim\n{trace}"));
            }
        }
        for (done, seen) in completions(&calls) {
            match seen {
                Some(seen) if !shows(seen, done) => {
                    let trace = trace(done.begun, seen.ended);
                    wrong.push(format!("key {key}: a completion is lost\n{trace}"));
                }
                Some(_) => found.again += 1,
                None => found.forgotten += 1,
            }
        }
        let (mut events, undone) = events(&calls, &deaths, &hosts, &granted, end);
        found.undone += undone;
        let Err(at) = orders::order(&mut events, State::default(), after) else { continue };
        let (event, marks) = (events[at].clone(), made_before(&events, &hosts));
        events.extend(marks);
        if orders::order(&mut events, State::default(), after).is_ok() {
            found.marked_before += 1;
            continue;
        }
        let trace = trace(event.begun, event.ended);
        wrong.push(format!("key {key}: no order explains {:?}\n{trace}", event.act));
    }
    (wrong, found)
}

/// What the checks have come across.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Found {
    /// Acknowledged completions that the next look at their key has shown.
    pub(super) again: u64,
    /// Those that were forgotten, or may have been, before anybody looked.
    pub(super) forgotten: u64,
    /// Answers that a claim is in progress which its host had not written yet, as far as can be known, when it was killed.
    pub(super) undone: u64,
    /// Keys with a mark that was sent again, and told what others had made of the key, though its first sending was carried out
    /// and forgotten.
    pub(super) marked_before: u64,
}

fn events(
    calls: &[Call],
    deaths: &HashMap<u32, Death>,
    hosts: &[Death],
    granted: &HashSet<u64>,
    end: u64,
) -> (Vec<Event<Act>>, u64) {
    let is_claim =
        |call: &Call| matches!(call.ask, Ask::Claim | Ask::TakeOver(_) | Ask::NotApplied(_));
    let ended = |call: &Call| match call.told {
        // Before its owner is gone.
        Told::Nothing => deaths.get(&call.process).map_or(end, |death| death.over - 1),
        _ => call.ended,
    };
    // From when to when a claim may have been placed and not written, with a host that was killed; and its index.
    let unwritten = |(at, call): (usize, &Call)| {
        let host = last_host(hosts, call.begun, ended(call))?;
        is_claim(call).then_some((at, call.begun, host.over))
    };
    let unwritten: Vec<_> = calls.iter().enumerate().filter_map(unwritten).collect();
    let mut events = Vec::new();
    let mut undone = 0;
    let mut owners = HashSet::new();
    for (at, &call) in calls.iter().enumerate() {
        let death = deaths.get(&call.process);
        let is_new = |sight: Sight| !granted.contains(&sight.token);
        let is_new = match call.told {
            Told::Asked(sight)
            | Told::InProgress(sight)
            | Told::BeingDecided(sight)
            | Told::Interrupted(sight)
            | Told::Aborted(sight)
            | Told::Completed(sight) => is_new(sight),
            _ => false,
        };
        // "In progress" alone may show what is not written yet.
        let may_be_unwritten = match call.told {
            Told::InProgress(_) => is_new,
            Told::Busy => true,
            _ => false,
        };
        let shows = |(claim, from, until): &(usize, u64, u64)| {
            *claim != at && call.ended > *from && call.begun < *until
        };
        if may_be_unwritten && unwritten.iter().any(shows) {
            undone += 1;
            continue;
        }
        let may_own = matches!(call.told, Told::Granted(_) | Told::Nothing | Told::Indeterminate);
        if is_claim(&call) && may_own && death.is_some() {
            owners.insert(call.process);
        }
        let act = Act::Call { call, is_new };
        events.push(Event { act, begun: call.begun, ended: ended(&call) });
    }
    for process in owners {
        let Death { killed, over, .. } = deaths[&process];
        events.push(Event { act: Act::Dies(process), begun: killed, ended: over - 1 });
        events.push(Event { act: Act::IsGone(process), begun: over, ended: over });
    }
    (events, undone)
}

/// The last host that was killed between these moments.
fn last_host(hosts: &[Death], begun: u64, ended: u64) -> Option<&Death> {
    let until = hosts.partition_point(|host| host.killed < ended);
    hosts[..until].last().filter(|host| host.over > begun)
}

/// The first sendings of marks that were sent again, which may have been carried out. By the rules of a call that is sent again, a mark
/// is then told what it finds: that is not as if it had been made once, if others have forgotten its record.
fn made_before(events: &[Event<Act>], hosts: &[Death]) -> Vec<Event<Act>> {
    let first_sending = |event: &Event<Act>| {
        let Act::Call { call, .. } = event.act else { return None };
        let is_mark = call.ask == Ask::Mark && !matches!(call.told, Told::First | Told::Nothing);
        last_host(hosts, event.begun, event.ended).filter(|_| is_mark)?;
        let call = Call { told: Told::Indeterminate, ..call };
        Some(Event { act: Act::Call { call, is_new: false }, ..event.clone() })
    };
    events.iter().filter_map(first_sending).collect()
}

/// The times of two claims that were held at once: from the answer on until the owner's next word on it, or its death. After a word
/// whose fate is unknown the claim may be another's.
fn two_owners(calls: &[Call], deaths: &HashMap<u32, Death>) -> Vec<(u64, u64)> {
    let word = |call: &Call| match call.ask {
        Ask::Complete(token) | Ask::Abort(token) | Ask::Drop(token) => Some((token, call.begun)),
        _ => None,
    };
    let words: HashMap<u64, u64> = calls.iter().filter_map(word).collect();
    let held = |call: &Call| {
        let Told::Granted(sight) = call.told else { return None };
        let died = deaths.get(&call.process).map_or(u64::MAX, |death| death.killed);
        Some((call.ended, words.get(&sight.token).copied().unwrap_or(died).min(died)))
    };
    let mut held: Vec<(u64, u64)> = calls.iter().filter_map(held).collect();
    held.sort_unstable();
    let overlap = |pair: &&[(u64, u64)]| pair[1].0 < pair[0].1;
    held.windows(2).filter(overlap).map(|pair| (pair[0].0, pair[1].0)).collect()
}

/// Each acknowledged completion, and the first call that began afterwards and showed its key; `None` if it may have been forgotten
/// by then.
fn completions(calls: &[Call]) -> Vec<(&Call, Option<&Call>)> {
    let mut all = Vec::new();
    for (at, done) in calls.iter().enumerate() {
        if !(matches!(done.ask, Ask::Complete(_)) && done.told == Told::Yes) {
            continue;
        }
        let looks = |call: &&Call| {
            let is_look = matches!(call.ask, Ask::Claim | Ask::Mark | Ask::Get);
            let is_known = !matches!(call.told, Told::Indeterminate | Told::Nothing);
            is_look && is_known && call.begun > done.ended
        };
        let Some(seen) = calls[at..].iter().find(looks) else {
            all.push((done, None));
            continue;
        };
        let may_forget = |call: &Call| {
            let may = matches!(call.told, Told::Yes | Told::Indeterminate | Told::Nothing);
            call.ask == Ask::Forget && may && call.ended > done.begun && call.begun < seen.ended
        };
        all.push((done, (!calls.iter().any(may_forget)).then_some(seen)));
    }
    all
}

fn shows(seen: &Call, done: &Call) -> bool {
    let Ask::Complete(token) = done.ask else { return false };
    match seen.told {
        Told::Completed(sight) => sight.token == token,
        Told::Again => true,
        _ => false,
    }
}

/// A key's calls around these moments, a line each, in milliseconds.
fn trace(calls: &[Call], deaths: &HashMap<u32, Death>, from: u64, until: u64) -> String {
    let at = calls.partition_point(|call| call.begun < from);
    let until = calls.partition_point(|call| call.begun <= until);
    let shown = &calls[at.saturating_sub(15)..(until + 5).min(calls.len())];
    let first = shown.first().map_or(0, |call| call.begun);
    let millis = |nanos: u64| nanos.saturating_sub(first) as f64 / 1e6;
    let mut text = String::new();
    for call in shown {
        let ended = match call.ended {
            u64::MAX => "never".to_owned(),
            ended => format!("{:.3}", millis(ended)),
        };
        let Call { process, thread, ask, told, .. } = call;
        let death = deaths.get(process).map_or(String::new(), |death| {
            let role = if death.hosted { "host" } else { "guest" };
            format!(" ({role}, killed {:.3}, over {:.3})", millis(death.killed), millis(death.over))
        });
        let begun = millis(call.begun);
        let _ =
            writeln!(text, "{begun:.3} to {ended}: {process}.{thread}{death} {ask:?}: {told:?}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(token: u64, attempt: u32) -> Sight {
        Sight { token, attempt }
    }

    fn call(process: u32, begun: u64, ended: u64, ask: Ask, told: Told) -> Call {
        Call { process, thread: 0, key: 1, ask, told, begun, ended }
    }

    const DEATHS: [Death; 2] = [
        Death { process: 8, killed: 50, over: 60, hosted: false },
        Death { process: 9, killed: 50, over: 60, hosted: true },
    ];

    fn wrong(calls: &[Call]) -> Vec<String> {
        check(calls, &DEATHS, 1000).0
    }

    /// Each history with the beginnings of what is wrong with it.
    #[track_caller]
    fn assert_wrong(calls: &[Call], expected: &[&str]) {
        let wrong = wrong(calls);
        let has = |what: &&&str| wrong.iter().any(|wrong| wrong.contains(**what));
        let missing: Vec<_> = expected.iter().filter(|what| !has(what)).collect();
        assert!(missing.is_empty() && wrong.is_empty() == expected.is_empty(), "{wrong:#?}");
    }

    const NEVER: u64 = u64::MAX;

    #[test]
    fn a_pair_and_its_replay_are_right() {
        let right = [
            call(1, 1, 2, Ask::Claim, Told::Granted(sight(7, 1))),
            call(2, 3, 4, Ask::Claim, Told::InProgress(sight(7, 1))),
            call(1, 5, 8, Ask::Complete(7), Told::Yes),
            call(2, 6, 7, Ask::Get, Told::Completed(sight(7, 1))),
            call(2, 9, 10, Ask::Claim, Told::Completed(sight(7, 1))),
            call(2, 11, 12, Ask::Forget, Told::Yes),
            call(2, 13, 14, Ask::Get, Told::Absent),
        ];
        assert_wrong(&right, &[]);
        assert_eq!(check(&right, &[], 1000).1, Found { again: 1, ..Found::default() });
    }

    #[test]
    fn two_grants_at_once_are_wrong() {
        let calls = [
            call(1, 1, 2, Ask::Claim, Told::Granted(sight(7, 1))),
            call(2, 3, 4, Ask::Claim, Told::Granted(sight(8, 1))),
        ];
        assert_wrong(&calls, &["two owners", "no order"]);
        // Of an owner that lives; a killed one's claim is taken over.
        let taken = |process| {
            [
                call(process, 1, 2, Ask::Claim, Told::Granted(sight(7, 1))),
                call(2, 61, 62, Ask::Claim, Told::Asked(sight(7, 1))),
                call(2, 63, 64, Ask::TakeOver(7), Told::Granted(sight(8, 2))),
            ]
        };
        assert_wrong(&taken(8), &[]);
        assert_wrong(&taken(1), &["two owners", "no order"]);
    }

    #[test]
    fn a_token_that_is_granted_twice_is_wrong() {
        let calls = [
            call(1, 1, 2, Ask::Claim, Told::Granted(sight(7, 1))),
            call(1, 3, 4, Ask::Abort(7), Told::Yes),
            call(2, 5, 6, Ask::Claim, Told::Granted(sight(7, 2))),
        ];
        assert_wrong(&calls, &["granted twice"]);
    }

    #[test]
    fn a_lost_completion_is_wrong() {
        let calls = |told| {
            [
                call(1, 1, 2, Ask::Claim, Told::Granted(sight(7, 1))),
                call(1, 3, 4, Ask::Complete(7), told),
                call(2, 5, 6, Ask::Get, Told::Interrupted(sight(7, 1))),
            ]
        };
        assert_wrong(&calls(Told::Yes), &["completion is lost", "no order"]);
        assert_wrong(&calls(Told::Indeterminate), &[]);
        let [granted, done, _] = calls(Told::Yes);
        let absent = call(2, 5, 6, Ask::Get, Told::Absent);
        assert_wrong(&[granted, done, absent], &["completion is lost", "no order"]);
        // A forget of unknown fate may have removed it.
        let killed = call(8, 4, NEVER, Ask::Forget, Told::Nothing);
        assert_wrong(&[granted, done, killed, absent], &[]);
    }

    #[test]
    fn a_stale_read_is_wrong() {
        let granted = call(1, 1, 2, Ask::Claim, Told::Granted(sight(7, 1)));
        let done = call(1, 3, 4, Ask::Complete(7), Told::Yes);
        let before = call(2, 5, 6, Ask::Get, Told::InProgress(sight(7, 1)));
        assert_wrong(&[granted, done, before], &["completion is lost", "no order"]);
        let forgotten = call(1, 5, 6, Ask::Forget, Told::Yes);
        let stale = call(2, 7, 8, Ask::Claim, Told::Completed(sight(7, 1)));
        assert_wrong(&[granted, done, forgotten, stale], &["no order"]);
    }

    #[test]
    fn an_owner_that_lives_and_has_lost_its_claim_is_wrong() {
        let calls = [
            call(1, 1, 2, Ask::Claim, Told::Granted(sight(7, 1))),
            call(1, 3, 4, Ask::Complete(7), Told::Lost),
        ];
        assert_wrong(&calls, &["lost its claim", "no order"]);
    }

    #[test]
    fn a_mark_is_first_once() {
        let mark = |begun, told| call(1, begun, begun + 1, Ask::Mark, told);
        assert_wrong(&[mark(1, Told::First), mark(3, Told::Again)], &[]);
        assert_wrong(&[mark(1, Told::First), mark(3, Told::First)], &["no order"]);
        assert_wrong(&[mark(1, Told::Indeterminate), mark(3, Told::First)], &[]);
        assert_wrong(&[mark(1, Told::Indeterminate), mark(3, Told::Again)], &[]);
        assert_wrong(&[mark(3, Told::Again)], &["no order"]);
    }

    /// A killed process's call may be made until nobody has it any more, and its claims are interrupted by then.
    #[test]
    fn the_calls_of_the_killed_end_with_them() {
        let cut = call(8, 40, NEVER, Ask::Claim, Told::Nothing);
        let busy = |begun| call(1, begun, begun + 1, Ask::Claim, Told::InProgress(sight(7, 1)));
        let asked = |begun| call(1, begun, begun + 1, Ask::Claim, Told::Asked(sight(7, 1)));
        assert_wrong(&[cut, busy(55)], &[]);
        assert_wrong(&[cut, busy(55), asked(57)], &[]);
        assert_wrong(&[cut, busy(61)], &["no order"]);
        assert_wrong(&[busy(55)], &["no order"]);
        let free = call(1, 45, 46, Ask::Get, Told::Absent);
        assert_wrong(&[cut, free, busy(55)], &[]);
        assert_wrong(&[cut, asked(45), call(1, 55, 56, Ask::Get, Told::Absent)], &["no order"]);
    }

    /// "In progress" may show what was not written when the host was killed. Everything else rests on what was written.
    #[test]
    fn a_claim_in_progress_may_be_gone_with_the_host() {
        let cut = call(9, 45, NEVER, Ask::Claim, Told::Nothing);
        let granted = call(1, 61, 62, Ask::Claim, Told::Granted(sight(8, 1)));
        let busy = |begun| call(2, begun, begun + 1, Ask::Claim, Told::InProgress(sight(7, 1)));
        let found = check(&[cut, busy(46), granted], &DEATHS, 1000);
        assert_eq!(found, (Vec::new(), Found { undone: 1, ..Found::default() }));
        assert_wrong(&[busy(46), granted], &["no order"]);
        assert_wrong(&[cut, busy(63), granted], &["no order"]);
        let seen = call(2, 46, 47, Ask::Get, Told::Completed(sight(7, 1)));
        assert_wrong(&[cut, seen, granted], &["no order"]);
    }

    /// A mark that is sent again is told what it finds, though its first sending may have been carried out and forgotten.
    #[test]
    fn a_mark_that_was_sent_again_may_have_been_made_before() {
        let history = |ended| {
            [
                call(1, 45, ended, Ask::Mark, Told::Again),
                call(2, 46, 47, Ask::Get, Told::Completed(sight(7, 1))),
                call(2, 48, 49, Ask::Forget, Told::Yes),
                call(2, 61, 62, Ask::Mark, Told::First),
            ]
        };
        let found = check(&history(65), &DEATHS, 1000);
        assert_eq!(found, (Vec::new(), Found { marked_before: 1, ..Found::default() }));
        // No host was killed while it was made.
        let mut calls = history(65);
        calls[0].begun = 61;
        assert_wrong(&calls, &["no order"]);
    }
}
