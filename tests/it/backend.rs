//! Calls as owned data: sent, waited for later, dropped in between; and a store on another backend.

use std::time::Duration;

use onlyonce::admin::Health;
use onlyonce::backend::{Answer, Ask, Backend, Call, Request, Wants};
use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{Claim, ErrorKind, Key, Policy, State, Store, Token};

fn request(key: &'static str, call: Call) -> Request {
    Request { key: Key::from(key), ask: Ask::Call(call, Box::default()) }
}

fn claim(key: &'static str) -> Request {
    request(key, Call::Claim(Wants::default()))
}

fn granted(store: &Store, key: &'static str) -> Token {
    let reply = store.send(claim(key)).wait().unwrap();
    assert_eq!(reply.answer, Answer::Granted);
    reply.claimed.unwrap().token
}

#[test]
fn sent_calls_share_a_sync() {
    let store = Sim::new(1).open().unwrap();
    let _ = granted(&store, "first");
    let before = store.stats().syncs;
    let keys: Vec<String> = (0..64).map(|n| format!("key {n}")).collect();
    let send = |key: &String| {
        let ask = Ask::Call(Call::Claim(Wants::default()), Box::default());
        store.send(Request { key: Key::from(key.clone()), ask })
    };
    let sent: Vec<_> = keys.iter().map(send).collect();
    for call in sent {
        assert_eq!(call.wait().unwrap().answer, Answer::Granted);
    }
    assert_eq!(store.stats().syncs - before, 1);
}

#[test]
fn a_grant_without_a_waiter_is_released() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    // Dropped before it was placed, since it waits for the first write of the open.
    drop(store.send(claim("k")));
    assert!(store.get("k").unwrap().is_none());
    let _ = granted(&store, "first");
    drop(store.send(claim("k")));
    // No work can have begun, so it is an abort.
    let Some(State::Aborted(attempt)) = store.get("k").unwrap() else { panic!("still claimed") };
    assert_eq!(attempt.reason(), Some("granted, and not waited for"));
    // A question is released, too.
    drop(store.claim("k").unwrap());
    drop(store.send(claim("k")));
    assert!(matches!(store.claim("k").unwrap(), Claim::Interrupted(_)));
}

#[test]
fn an_ending_without_a_waiter_still_completes() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let token = granted(&store, "k");
    drop(store.send(request("k", Call::Complete(token))));
    assert!(matches!(store.get("k").unwrap(), Some(State::Completed(_))));
    // Even where it has to read, or to wait for space, first.
    let small = Sim::small(2);
    let store = small.open().unwrap();
    for n in 0..200_u32 {
        let Claim::Acquired(guard) = store.claim(n).unwrap() else { panic!() };
        let ask = Ask::Call(Call::Abort(guard.token()), Box::default());
        drop(store.send(Request { key: Key::from(n), ask }));
        assert!(matches!(store.get(n).unwrap(), Some(State::Aborted(_))), "{n}");
    }
}

/// These two are mostly sent and dropped. Waited for, they were answered `Done` whatever the key was, and before a crash could
/// not undo it.
#[test]
fn an_interruption_and_a_dropped_question_are_answered_by_the_rules() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let told = |key, call| store.send(request(key, call)).wait().unwrap().answer;
    let other = granted(&store, "other");
    assert_eq!(told("absent", Call::DropQuestion(1)), Answer::Unchanged);
    assert_eq!(told("absent", Call::Interrupt(other)), Answer::Unchanged);
    let owner = granted(&store, "k");
    assert_eq!(told("k", Call::DropQuestion(1)), Answer::Unchanged);
    assert_eq!(told("k", Call::Interrupt(other)), Answer::Unchanged);
    let syncs = store.stats().syncs;
    assert_eq!(told("k", Call::Interrupt(owner)), Answer::Done);
    assert_eq!(store.stats().syncs - syncs, 1);
    assert_eq!(told("k", Call::Interrupt(owner)), Answer::Unchanged);
    let asked = store.send(claim("k")).wait().unwrap();
    assert_eq!(asked.answer, Answer::Asked);
    let question = asked.question;
    assert_eq!(told("k", Call::DropQuestion(question + 1)), Answer::Unchanged);
    assert_eq!(told("k", Call::Claim(Wants::default())), Answer::InProgress);
    assert_eq!(told("k", Call::DropQuestion(question)), Answer::Done);
    assert_eq!(told("k", Call::DropQuestion(question)), Answer::Unchanged);
    assert_eq!(told("k", Call::Claim(Wants::default())), Answer::Asked);
}

#[test]
fn a_decision_on_a_read_key_requires_that_it_is_unchanged() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let token = granted(&store, "k");
    let _ = store.send(request("k", Call::Abort(token))).wait().unwrap();
    store.merge_index().unwrap();
    // A table has to be read for it, so nothing is placed yet.
    let sent = store.send(claim("k"));
    let Claim::Acquired(guard) = store.claim("k").unwrap() else { panic!("not free") };
    assert_eq!(sent.wait().unwrap().answer, Answer::InProgress);
    guard.complete("v").unwrap();
}

#[test]
fn a_call_that_outlives_the_store_is_answered_by_the_close() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let token = granted(&store, "k");
    let ending = store.send(request("k", Call::Complete(token)));
    let grant = store.send(claim("granted"));
    let _ = Store::close(&store, Duration::ZERO).unwrap();
    ending.wait().unwrap();
    // The close has ended that claim.
    assert_eq!(grant.wait().unwrap_err().kind(), ErrorKind::Indeterminate);
    let late = store.send(claim("l")).wait();
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Closed);
    drop(store);
    assert!(matches!(sim.open().unwrap().get("k").unwrap(), Some(State::Completed(_))));
}

#[test]
fn a_sent_claim_whose_sync_fails_is_granted_to_no_caller() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let _ = granted(&store, "first");
    let sent = store.send(claim("k"));
    sim.fail_call(1, DiskFault::Io);
    assert_eq!(sent.wait().unwrap_err().kind(), ErrorKind::Indeterminate);
    assert_eq!(store.check().unwrap_err().kind(), ErrorKind::Poisoned);
    assert!(!matches!(store.get("k"), Ok(Some(State::InProgress(_)))));
}

#[test]
fn a_store_on_another_backend_reports_unsupported_calls() {
    let sim = Sim::new(1);
    let embedded = sim.open().unwrap();
    let store = Store::with_backend(embedded.clone(), Policy::new());
    let marks = store.mark_many(["a", "b", "a"]).unwrap();
    let firsts: Vec<_> = marks.into_iter().map(|mark| mark.unwrap().is_first()).collect();
    assert_eq!(firsts, [true, true, false]);
    let ran = store.run("k", |_| Ok::<_, onlyonce::Error>("v".to_owned())).unwrap();
    assert!(matches!(ran, onlyonce::Run::Done(value) if value == "v"));
    assert_eq!(store.health(), Health::Writable);
    let refused = [
        store.compact(1).unwrap_err(),
        store.verify().unwrap_err(),
        store.iter().next().unwrap().unwrap_err(),
    ];
    assert!(refused.iter().all(|e| e.kind() == ErrorKind::Invalid), "{refused:?}");
    store.sync().unwrap();
    store.drain();
    assert_eq!(store.claim("new").unwrap_err().kind(), ErrorKind::Closed);
    assert!(Store::close(&store, Duration::ZERO).unwrap().is_empty());
    assert_eq!(store.health(), Health::Closed);
}

/// The requests of a store on a namespace went to the root, where they met the keys of others.
#[test]
fn a_namespace_is_no_backend() {
    let embedded = Sim::new(1).open().unwrap();
    let acme = embedded.namespace("acme");
    let store = Store::with_backend(acme.clone(), Policy::new());
    assert_eq!(store.mark("k").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(store.mark_async("k").wait().unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(acme.check().unwrap_err().kind(), ErrorKind::Invalid);
    assert!(embedded.get("k").unwrap().is_none());
    let store = Store::with_backend(embedded.clone(), Policy::new());
    assert!(store.namespace("acme").mark("k").unwrap().is_first());
    assert!(acme.get("k").unwrap().is_some());
}

/// A lease that a request left out was taken for one of zero, and the claim was over at once.
#[test]
fn a_call_that_names_no_lease_is_refused() {
    let store = Sim::new(1).open().unwrap();
    let token = granted(&store, "k");
    for call in [Call::Detach(token), Call::Renew { token, attached: false }] {
        let error = store.send(request("k", call)).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(matches!(store.get("k").unwrap(), Some(State::InProgress(_))));
    }
}
