//! The state shown of a key: why an attempt is over, in `Debug` as in words, and what a walk omits.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use onlyonce::admin::StateKind;
use onlyonce::testing::Sim;
use onlyonce::{
    Abort, Claim, Error, ErrorKind, Fingerprint, Key, Mark, Operation, Outcome, Policy, Resolution,
    State, Store,
};

const DAY: Duration = Duration::from_secs(86_400);
const LEASE: Duration = Duration::from_secs(30);

fn reason(store: &Store, key: &str) -> String {
    match store.get(key).unwrap() {
        Some(State::Interrupted(attempt)) => attempt.reason().unwrap_or("none").to_owned(),
        other => panic!("{other:?}"),
    }
}

/// "Its process is gone, or its lease passed" was reported for both.
#[test]
fn the_reasons_for_the_end_of_an_attempt_are_distinguished() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let claim = |key| store.claim(Operation::new(key).lease(LEASE)).unwrap();
    let held = [claim("seen"), claim("noticed"), claim("lives")];
    sim.advance(LEASE);
    assert_eq!(reason(&store, "seen"), "its lease passed", "no call has noticed it yet");
    let Claim::Interrupted(lost) = store.claim("noticed").unwrap() else { panic!() };
    assert_eq!(lost.attempt().reason(), Some("its lease passed"));
    drop(lost);
    drop(store.claim("dropped").unwrap());
    assert_eq!(reason(&store, "dropped"), "dropped without a word");
    let panics = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let _claim = store.claim("panicked").unwrap();
        panic!("on purpose");
    }));
    assert!(panics.is_err());
    assert_eq!(reason(&store, "panicked"), "its owner panicked");
    let failed = store.run("failed", |_| Err::<Vec<u8>, _>(Error::invalid("on purpose")));
    assert!(failed.is_err());
    assert_eq!(reason(&store, "failed"), "its closure returned an error");
    sim.kill();
    drop(held);
    let store = sim.open().unwrap();
    assert_eq!(reason(&store, "lives"), "its process is gone");
    assert_eq!(reason(&store, "noticed"), "its lease passed");
    let Claim::Interrupted(lost) = store.claim("lives").unwrap() else { panic!() };
    assert_eq!(lost.attempt().reason(), Some("its process is gone"));
    assert!(lost.attempt().to_string().ends_with("its process is gone"));
    // While somebody decides about it, the reason is the same.
    let Some(State::InProgress(seen)) = store.get("lives").unwrap() else { panic!() };
    assert_eq!((seen.is_being_decided(), seen.reason()), (true, Some("its process is gone")));
}

/// While a claimant decided, `get`, a walk and the counts showed the dead attempt, and only a claim its claimant.
#[test]
fn a_claimant_that_decides_is_seen_wherever_the_key_is_shown() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    drop(store.claim(Operation::new("k").owner("dead")).unwrap());
    let listed = |kind| {
        let mut listed = store.iter().in_states(&[kind]).map(|entry| entry.unwrap().1);
        (listed.next(), listed.next().is_none())
    };
    let counts = || {
        let stats = store.stats();
        (stats.in_flight, stats.interrupted, stats.oldest_claim)
    };
    assert_eq!(counts(), (0, 1, None));
    sim.advance(LEASE);
    let op = Operation::new("k").owner("asker").lease(LEASE).fingerprint(Fingerprint::of("a"));
    let question = store.claim(&op).unwrap();
    assert!(matches!(question, Claim::Interrupted(_)), "{question}");
    sim.advance(Duration::from_secs(10));
    let told = store.claim("k").unwrap();
    let Claim::InProgress(attempt) = told else { panic!("{told}") };
    let seen = store.get("k").unwrap();
    assert_eq!(seen, Some(State::InProgress(attempt.clone())), "as a claim is told");
    assert_eq!(store.get_async("k").wait().unwrap(), seen);
    assert_eq!(listed(StateKind::InProgress), (seen.clone(), true));
    assert_eq!(listed(StateKind::Interrupted), (None, true));
    assert_eq!((attempt.number(), attempt.owner()), (1, Some("asker")));
    assert!(attempt.is_being_decided() && !attempt.is_detached());
    assert_eq!(attempt.lease_left(), Some(Duration::from_secs(20)));
    assert_eq!(counts(), (1, 0, Some(attempt.since())));
    assert_eq!(store.estimate().unwrap().open, 1);
    let words = "in progress: attempt 1 being decided by asker, since 10 s, 20 s left; \
                 attempt 1 was interrupted: dropped without a word";
    assert_eq!(seen.as_ref().unwrap().to_string(), words);
    // Its lease passes: the question has ended, whether its claimant is there or not.
    sim.advance(LEASE);
    assert_eq!(listed(StateKind::InProgress), (None, true));
    let (Some(State::Interrupted(lost)), true) = listed(StateKind::Interrupted) else { panic!() };
    assert_eq!((lost.owner(), lost.is_being_decided()), (Some("dead"), false));
    assert_eq!(counts(), (0, 1, None));
    // What was seen during the question still resolves the key.
    assert!(!store.interrupt(&attempt, "it is over anyway").unwrap());
    assert!(store.resolve(&attempt, Resolution::retry("nothing happened")).unwrap());
    let Claim::Interrupted(question) = question else { panic!() };
    assert_eq!(question.take_over().unwrap_err().kind(), ErrorKind::ClaimLost);
}

/// An operator need not wait for a claimant that decides.
#[test]
fn a_key_about_which_a_claimant_decides_can_be_resolved_and_forgotten() {
    let store = Sim::small(1).open().unwrap();
    for forgets in [false, true] {
        drop(store.claim("k").unwrap());
        let Claim::Interrupted(question) = store.claim("k").unwrap() else { panic!() };
        let seen = store.get("k").unwrap().unwrap();
        let State::InProgress(attempt) = &seen else { panic!("{seen}") };
        let is_done = match forgets {
            true => store.forget(&seen),
            false => store.resolve(attempt, Resolution::retry("nothing happened")),
        };
        assert!(is_done.unwrap());
        assert_eq!(question.not_applied().unwrap_err().kind(), ErrorKind::ClaimLost);
        assert_eq!(store.stats().in_flight, 0);
    }
    assert_eq!(store.get("k").unwrap(), None);
}

#[test]
fn debug_output_equals_display_output() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let op = Operation::new("mail-1").owner("host-3").lease(LEASE);
    let Claim::Acquired(claim) = store.claim(&op).unwrap() else { panic!() };
    let token = claim.token();
    sim.advance(Duration::from_secs(20));
    let attempt =
        format!("Attempt(mail-1: attempt 1 by host-3, since 20 s, 10 s left; token {token})");
    let claimed = store.claim(&op).unwrap();
    assert_eq!(format!("{claimed:?}"), format!("InProgress({attempt})"));
    let seen = store.get("mail-1").unwrap();
    assert_eq!(format!("{seen:?}"), format!("Some(InProgress({attempt}))"));
    claim.record(Outcome::success("secret").meta("status", "hidden").retention(DAY)).unwrap();
    let Claim::Completed(done) = store.claim(&op).unwrap() else { panic!() };
    let by = done.owner().map(|owner| format!(" by {owner}")).unwrap_or_default();
    let words = format!(
        "attempt 1{by}, 6 bytes, Bytes, version 0, with \"status\", at 2026-01-01T00:00:20Z, \
         kept until 2026-01-02T00:00:20Z"
    );
    assert_eq!(done.to_string(), words);
    let debug = format!("Recorded(mail-1: {words}; token {token})");
    assert_eq!(format!("{:?}", Claim::Completed(done)), format!("Completed({debug})"));
    let seen = store.get("mail-1").unwrap().unwrap();
    assert_eq!(seen.to_string(), format!("completed: {words}"));
    assert_eq!(format!("{seen:?}"), format!("Completed({debug})"));
}

/// A lease of 300 ms was shown as "0 s left", as if it had passed.
#[test]
fn less_than_a_second_of_a_lease_is_shown_in_milliseconds() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let op = Operation::new("k").lease(Duration::from_millis(1500));
    let claim = store.claim(&op).unwrap();
    let mut shown = Vec::new();
    for millis in [0, 500, 1, 998] {
        sim.advance(Duration::from_millis(millis));
        shown.push(store.get("k").unwrap().unwrap().to_string());
    }
    let expected = ["0 s, 1 s left", "0 s, 1 s left", "0 s, 999 ms left", "1 s, 1 ms left"];
    assert_eq!(shown, expected.map(|words| format!("in progress: attempt 1, since {words}")));
    drop(claim);
}

/// "…being decided by web-1, 30 s left, its lease passed" read as if the lease of web-1 had passed.
#[test]
fn why_an_attempt_is_over_is_not_said_of_its_claimant() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let op = |owner| Operation::new("k").owner(owner).lease(LEASE);
    let dead = store.claim(op("host-1")).unwrap();
    sim.advance(LEASE);
    let asked = store.claim(op("web-1")).unwrap();
    let Claim::InProgress(seen) = store.claim("k").unwrap() else { panic!() };
    let words = "attempt 1 being decided by web-1, since 0 s, 30 s left; \
                 attempt 1 was interrupted: its lease passed";
    assert_eq!(seen.to_string(), words);
    drop((asked, dead));
    let asked = store.claim("k").unwrap();
    let Claim::InProgress(seen) = store.claim("k").unwrap() else { panic!() };
    let words = "attempt 1 being decided, since 0 s; attempt 1 was interrupted: its lease passed";
    assert_eq!(seen.to_string(), words);
    drop(asked);
}

/// "Wait for its owner" alone is no advice for an owner that hangs.
#[test]
fn a_refusal_for_a_claimed_key_names_what_an_operator_can_do() {
    let store = Sim::small(1).open().unwrap();
    let Claim::Acquired(guard) = store.claim("k").unwrap() else { panic!() };
    let refused = store.forget("k").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InProgress);
    for call in ["`interrupt`", "`forget_claimed`"] {
        assert!(refused.to_string().contains(call), "{refused}");
    }
    drop(guard);
    let Some(State::Interrupted(lost)) = store.get("k").unwrap() else { panic!() };
    let Claim::Interrupted(question) = store.claim("k").unwrap() else { panic!() };
    let guard = question.take_over().unwrap();
    assert!(!store.resolve(&lost, Resolution::retry("it is another attempt's")).unwrap());
    let Some(State::InProgress(live)) = store.get("k").unwrap() else { panic!() };
    let refused = store.resolve(&live, Resolution::retry("too soon")).unwrap_err();
    assert!(refused.to_string().contains("`interrupt`"), "{refused}");
    drop(guard);
}

/// Each state in one line that a person can read, and in none of them what was recorded.
#[test]
fn every_state_has_words_without_its_result() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let claim = |key: &'static str| match store.claim(Operation::new(key).retention(DAY)).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    };
    let shown = |key: &str| store.get(key).unwrap().unwrap().to_string();
    let live = claim("live");
    assert_eq!(shown("live"), "in progress: attempt 1, since 0 s");
    drop(live);
    assert_eq!(shown("live"), "interrupted: attempt 1, since 0 s, dropped without a word");
    claim("freed").abort("busy").unwrap();
    assert_eq!(shown("freed"), "aborted: attempt 1, since 0 s, busy");
    claim("declined").fail("secret").unwrap();
    let declined = "failed for good: attempt 1, 6 bytes, Bytes, version 0, \
                    at 2026-01-01T00:00:00Z, kept until 2026-01-02T00:00:00Z";
    assert_eq!(shown("declined"), declined);
    claim("unkept").record(Outcome::without_result("too large").retention(9 * DAY)).unwrap();
    let unkept = "completed: attempt 1, not kept: too large, \
                  at 2026-01-01T00:00:00Z, kept until 2026-01-10T00:00:00Z";
    assert_eq!(shown("unkept"), unkept);
    let op = Operation::new("remembered").retention(DAY).remember_expired(9 * DAY);
    assert!(store.mark(op).unwrap().is_first());
    sim.advance(2 * DAY);
    let expired = "expired: done at 2026-01-01T00:00:00Z, remembered until 2026-01-11T00:00:00Z";
    assert_eq!(shown("remembered"), expired);
}

/// Each answer to a mark in one line that a person can read. It has no other request's result in it.
#[test]
fn every_mark_has_words() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let shown = |op: Operation<'_>| store.mark(op).unwrap().to_string();
    let key = |key| Operation::new(key).fingerprint(Fingerprint::of("a"));
    let Claim::Acquired(live) = store.claim("live").unwrap() else { panic!() };
    let Claim::Acquired(busy) = store.claim("busy").unwrap() else { panic!() };
    busy.abort(Abort::new("busy").retry_in(Duration::from_secs(9))).unwrap();
    let kept = store.record(key("kept"), Outcome::success("secret")).unwrap();
    assert_eq!((kept.to_string(), kept), ("marked: the first".to_owned(), Mark::First));
    assert_eq!(shown(key("kept")), "marked or completed before");
    let other = Operation::new("kept").fingerprint(Fingerprint::of("b"));
    assert_eq!(shown(other), "the key was already used for another request");
    assert_eq!(shown(Operation::new("live")), "in progress: attempt 1, since 0 s");
    drop(live);
    let interrupted = "interrupted or held: attempt 1, since 0 s, dropped without a word";
    assert_eq!(shown(Operation::new("live")), interrupted);
    let delayed = "delayed: attempt 1, since 0 s, to be tried again in 9 s, busy";
    assert_eq!(shown(Operation::new("busy")), delayed);
    let short = key("short").retention(DAY).remember_expired(DAY);
    assert_eq!(store.mark(short.clone()).unwrap(), Mark::First);
    sim.advance(DAY);
    assert_eq!(shown(short), "done before, and its result is no longer kept");
}

/// What was recorded is compared, not where its bytes lie.
#[test]
fn states_are_equal_if_the_store_told_the_same() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap().namespace("acme");
    for (key, value) in [("k", "v"), ("l", "w")] {
        assert_eq!(store.record(key, Outcome::success(value)).unwrap(), Mark::First);
    }
    let seen = store.get("k").unwrap().unwrap();
    assert_eq!(seen.key(), &Key::from("k"), "without its namespace");
    drop(store);
    let store = sim.open().unwrap().namespace("acme");
    assert_eq!(store.get("k").unwrap().as_ref(), Some(&seen));
    assert_ne!(store.get("l").unwrap().as_ref(), Some(&seen));
    assert!(store.forget(&seen).unwrap(), "a state knows its namespace");
    assert_eq!(store.record("k", Outcome::success("w")).unwrap(), Mark::First);
    assert_ne!(store.get("k").unwrap().as_ref(), Some(&seen));
}

/// Headers of HTTP may come several times, and their order counts. The later value of a name once replaced the earlier.
#[test]
fn metadata_keeps_its_order_and_each_value_of_a_name() {
    let store = Sim::small(1).open().unwrap();
    let op = Operation::new("k").fingerprint(Fingerprint::of("request"));
    let Claim::Acquired(claim) = store.claim(&op).unwrap() else { panic!() };
    let given = [("set-cookie", "a=1"), ("status", "201"), ("set-cookie", "b=2"), ("", "")];
    let outcome = given
        .iter()
        .fold(Outcome::success("v"), |outcome, (name, value)| outcome.meta(*name, value));
    claim.record(outcome).unwrap();
    let Claim::Completed(done) = store.claim(&op).unwrap() else { panic!() };
    assert!(done.metas().eq(given));
    assert_eq!(done.meta("set-cookie"), Some("a=1"));
    assert_eq!((done.meta("status"), done.meta("Status")), (Some("201"), None));
    assert_eq!(done.key().to_string(), "k");
    assert_eq!(done.fingerprint(), Some(Fingerprint::of("request")));
}

/// Only its hash is left, at the latest when its segment is removed, so no walk can name it.
#[test]
fn a_walk_shows_no_expired_key_and_get_does() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let op = |key: &'static str| Operation::new(key).retention(DAY);
    assert!(store.mark(op("remembered").remember_expired(9 * DAY)).unwrap().is_first());
    assert!(store.mark(op("forgotten")).unwrap().is_first());
    assert!(store.mark("kept").unwrap().is_first());
    assert_eq!(store.iter().count(), 3);
    sim.advance(2 * DAY);
    let left: Vec<_> = store.iter().map(|entry| entry.unwrap().0.to_string()).collect();
    assert_eq!(left, ["kept"]);
    let expired = store.get("remembered").unwrap().unwrap();
    assert_eq!(
        format!("{expired:?}"),
        "Expired(Expired(done at 2026-01-01T00:00:00Z, remembered until 2026-01-11T00:00:00Z))"
    );
    assert!(store.get("forgotten").unwrap().is_none());
}

/// Who held, interrupted or resolved a key is kept with it, also by the next process, and shown.
#[test]
fn words_carry_the_name_of_those_who_said_them() {
    let sim = Sim::small(7);
    let store = sim.open().unwrap();
    let claim = |owner: &str| store.claim(Operation::new("k").owner(owner)).unwrap();
    let Claim::Acquired(guard) = claim("host-1") else { panic!() };
    let ann = store.with_policy(Policy::new().owner("ann"));
    let Some(State::InProgress(seen)) = store.get("k").unwrap() else { panic!() };
    assert!(ann.interrupt(&seen, "it hangs").unwrap());
    drop(guard);
    let Some(State::Interrupted(seen)) = store.get("k").unwrap() else { panic!() };
    assert_eq!((seen.owner(), seen.decided_by()), (Some("host-1"), Some("ann")));
    let Claim::Interrupted(question) = claim("host-2") else { panic!() };
    question.hold("a person decides").unwrap();
    sim.kill();
    drop((ann, store));
    let store = sim.open().unwrap();
    let Some(State::Held(seen)) = store.get("k").unwrap() else { panic!() };
    assert_eq!(seen.decided_by(), Some("host-2"));
    let bob = store.with_policy(Policy::new().owner("bob"));
    assert!(bob.resolve(&seen, Resolution::retry("nothing happened")).unwrap());
    let Some(State::Aborted(seen)) = store.get("k").unwrap() else { panic!() };
    assert_eq!(seen.decided_by(), Some("bob"));
    assert!(seen.to_string().contains("bob"), "{seen}");
}

/// After an approval only the owner that had asked for it could be read, and not the one who approved.
#[test]
fn an_outcome_names_the_operator_that_recorded_it() {
    let sim = Sim::small(7);
    let store = sim.open().unwrap();
    let ann = store.with_policy(Policy::new().owner("ann"));
    for key in ["given", "denied", "own"] {
        let op = Operation::new(key).owner("web-1");
        let Claim::Acquired(claim) = store.claim(op).unwrap() else { panic!() };
        if key == "own" {
            claim.complete("yes").unwrap();
            continue;
        }
        claim.hold("a person decides").unwrap();
        let Some(State::Held(held)) = store.get(key).unwrap() else { panic!() };
        let outcome = if key == "given" { Outcome::success("yes") } else { Outcome::failure("no") };
        assert!(ann.resolve(&held, Resolution::Record(outcome)).unwrap());
    }
    sim.kill();
    drop((ann, store));
    let store = sim.open().unwrap();
    let Claim::Completed(given) = store.claim("given").unwrap() else { panic!() };
    let Some(State::Failed(denied)) = store.get("denied").unwrap() else { panic!() };
    for done in [given, denied] {
        assert_eq!((done.owner(), done.decided_by()), (Some("web-1"), Some("ann")));
        assert!(done.to_string().starts_with("attempt 1 by web-1, decided by ann, "), "{done}");
        assert!(format!("{done:?}").contains("decided by ann"), "{done:?}");
    }
    let Some(State::Completed(own)) = store.get("own").unwrap() else { panic!() };
    assert_eq!(own.decided_by(), None);
    assert!(!own.to_string().contains("decided"), "{own}");
}
