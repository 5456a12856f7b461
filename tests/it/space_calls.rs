//! Calls of tasks in namespaces: none waits, or reads or writes, in order to find or make its namespace.
//!
//! Invariants: while the disk stands still, a call of any kind in a namespace that isn't known yet neither blocks when it is made
//! nor in a poll; dropped at any poll, it leaves what the page of `Pending` says.

use std::future::Future as _;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::task::{Context, Poll, Waker};

use onlyonce::testing::{Sim, SimGate};
use onlyonce::{Claim, Error, ErrorKind, Outcome, Pending, Policy, Result, State, Store, Ticket};

use crate::asynchronous::{MINUTE, OpenExistingOrNew, acquired, becomes, polled, stand_still};

/// Runs a test that hangs if it fails.
fn bounded(body: impl FnOnce() + Send + 'static) {
    let (tell, told) = channel();
    let thread = std::thread::spawn(move || {
        body();
        tell.send(()).unwrap();
    });
    match told.recv_timeout(MINUTE) {
        Ok(()) => thread.join().unwrap(),
        Err(RecvTimeoutError::Disconnected) => resume_unwind(thread.join().unwrap_err()),
        Err(RecvTimeoutError::Timeout) => panic!("a call waits in its caller's thread"),
    }
}

/// A call in flight, and what it is to answer: polled, or, with `true`, waited for.
struct Sent {
    name: &'static str,
    drive: Box<dyn FnMut(bool) -> Option<Result<()>>>,
    expected: Option<ErrorKind>,
}

fn sent<T: 'static>(name: &'static str, pending: Pending<T>) -> Sent {
    let mut pending = Some(pending);
    let drive = Box::new(move |waits| {
        let mut sent = pending.take()?;
        if waits {
            return Some(sent.wait().map(drop));
        }
        match Pin::new(&mut sent).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(told) => Some(told.map(drop)),
            Poll::Pending => {
                pending = Some(sent);
                None
            }
        }
    });
    Sent { name, drive, expected: None }
}

/// Calls of every kind, on a handle of a namespace. The ticket is of the root.
fn all_calls(space: &Store, ticket: &Ticket) -> Vec<Sent> {
    let fails = |sent: Sent, kind| Sent { expected: Some(kind), ..sent };
    let mut batch = space.batch();
    batch.mark("batch mark").claim("batch claim").forget("never");
    let unclaimed = space.forget_claimed_async("never", ticket.token());
    vec![
        sent("mark", space.mark_async("mark")),
        sent("claim", space.claim_async("claim")),
        sent("claim_wait", space.claim_wait_async("wait", MINUTE)),
        sent("record", space.record_async("record", Outcome::success("v"))),
        sent("get", space.get_async("k")),
        sent("forget", space.forget_async("never")),
        fails(sent("forget_claimed", unclaimed), ErrorKind::ClaimLost),
        fails(sent("attach", space.attach_async(ticket)), ErrorKind::Invalid),
        sent("claim_many", space.claim_many_async(["many 1", "many 2"])),
        sent("mark_many", space.mark_many_async(["many 3", "many 4"])),
        sent("forget_many", space.forget_many_async(["never"])),
        sent("commit", batch.commit_async()),
        sent("inner", space.namespace("inner").mark_async("k")),
    ]
}

/// Polls all of them while the disk stands still, and waits for them once it goes on.
fn drive(mut calls: Vec<Sent>, gate: &SimGate) {
    let mut told: Vec<_> = calls.iter().map(|_| None).collect();
    for _ in 0..50 {
        for (call, told) in calls.iter_mut().zip(&mut told) {
            *told = told.take().or_else(|| (call.drive)(false));
        }
    }
    gate.open();
    for (call, told) in calls.iter_mut().zip(told) {
        let told = told.or_else(|| (call.drive)(true)).unwrap();
        assert_eq!(told.err().map(|e| e.kind()), call.expected, "{}", call.name);
    }
}

fn detached(store: &Store, key: &str) -> Ticket {
    acquired(store, key).detach(60 * MINUTE).unwrap()
}

/// The store itself, and the same as another backend.
fn both(store: &Store) -> [Store; 2] {
    [store.clone(), Store::with_backend(store.clone(), Policy::new())]
}

#[test]
fn no_call_waits_until_its_namespace_is_made() {
    bounded(|| {
        let sim = Sim::new(1);
        let store = sim.open_existing_or_new();
        for (n, own) in both(&store).iter().enumerate() {
            let ticket = detached(&store, &format!("ticket {n}"));
            let tenant = own.namespace(format!("tenant {n}"));
            for space in [tenant.clone(), own.namespace("outer").namespace(format!("{n}"))] {
                let (gate, slow) = stand_still(&sim, &store);
                drive(all_calls(&space, &ticket), &gate);
                drop(slow);
                assert!(space.get("mark").unwrap().is_some());
            }
            // It passes to another version.
            let (gate, slow) = stand_still(&sim, &store);
            let calls = all_calls(&tenant.version("2"), &ticket);
            drive(calls, &gate);
            drop(slow);
            assert!(tenant.version("2").get("mark").unwrap().is_some());
            // It is dropped, and its claims are over.
            let (gate, slow) = stand_still(&sim, &store);
            drive(vec![sent("forget_all", tenant.forget_all_async())], &gate);
            drop(slow);
            assert!(tenant.get("mark").unwrap().is_none());
        }
    });
}

#[test]
fn no_call_waits_until_the_namespaces_are_read() {
    bounded(|| {
        for at in 0..2 {
            let sim = Sim::new(1);
            let store = sim.open_existing_or_new();
            let ticket = detached(&store, "ticket");
            assert!(store.namespace("outer").namespace("tenant").mark("k").unwrap().is_first());
            drop(store);
            let store = sim.open_existing(Store::builder(), true).unwrap();
            let space = both(&store)[at].namespace("outer").namespace("tenant");
            let gate = sim.hold_read(0);
            let mut calls = vec![sent("get", space.get_async("k"))];
            if at == 0 {
                calls.push(sent("namespaces", space.namespaces_async()));
            }
            calls.extend(all_calls(&space, &ticket));
            assert!((calls[0].drive)(false).is_none());
            assert!(gate.wait_arrived(MINUTE));
            drive(calls, &gate);
            assert!(!space.mark("k").unwrap().is_first());
        }
    });
}

/// On a runtime with one thread, nothing else would go on.
#[test]
fn no_task_holds_up_its_executor_for_a_namespace() {
    bounded(|| {
        let sim = Sim::new(1);
        let store = sim.open_existing_or_new();
        let _first = store.mark("first").unwrap();
        let check = |name: &'static str| {
            let (gate, slow) = stand_still(&sim, &store);
            let space = store.namespace(name);
            let task = async move {
                let run = space.run_async("run", |claim| async move {
                    Ok::<_, Error>(claim.attempt().to_string())
                });
                assert_eq!(run.await.unwrap().value().unwrap(), "1");
                assert!(space.mark_async("mark").await.unwrap().is_first());
                assert!(space.forget_all_async().await.unwrap());
            };
            let opens = async move {
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                gate.open();
            };
            async move {
                let (task, opens) = (tokio::spawn(task), tokio::spawn(opens));
                task.await.unwrap();
                opens.await.unwrap();
                drop(slow);
            }
        };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(check("one"));
        let mut many = tokio::runtime::Builder::new_multi_thread();
        many.worker_threads(1).build().unwrap().block_on(check("two"));
    });
}

/// Dropped before, while and after its namespace is made.
#[test]
fn a_call_may_be_dropped_before_its_namespace_is_made() {
    bounded(|| {
        for (polls, threads) in (0..6).flat_map(|polls| [(polls, false), (polls, true)]) {
            let sim = Sim::small(1);
            let root = if threads { sim.open_existing_or_new() } else { sim.open().unwrap() };
            for (n, store) in both(&root).iter().enumerate() {
                let space = |name: &str| store.namespace(format!("{name} {n}"));
                let is_free = |space: &Store, key: &str| {
                    becomes(space, key, |state| {
                        !matches!(state, Some(State::InProgress(_) | State::Completed(_)))
                    });
                };
                drop(polled(space("claim").claim_async("k"), polls));
                is_free(&space("claim"), "k");
                drop(polled(space("claims").claim_many_async(["k", "l"]), polls));
                is_free(&space("claims"), "k");
                is_free(&space("claims"), "l");
                drop(polled(space("wait").claim_wait_async("k", MINUTE), polls));
                is_free(&space("wait"), "k");
                drop(polled(space("mark").mark_async("k"), polls));
                drop(polled(space("get").get_async("k"), polls));
                drop(polled(space("forget").forget_async("k"), polls));
                drop(polled(space("all").forget_all_async(), polls));
                // The ending among the calls of a batch goes on.
                let ended = format!("ended {n}");
                let mut batch = space("batch").batch();
                batch.claim("k").complete(acquired(store, &ended), "v").mark("m");
                drop(polled(batch.commit_async(), polls));
                becomes(store, &ended, |state| matches!(state, Some(State::Completed(_))));
                is_free(&space("batch"), "k");
                // A ticket whose attaching was given up attaches again.
                let ticket = detached(&space("ticket"), "k");
                drop(polled(space("ticket").attach_async(&ticket), polls));
                let most = std::time::Instant::now() + MINUTE;
                let claim = loop {
                    match space("ticket").attach(&ticket) {
                        Ok(claim) => break claim,
                        Err(e) => assert!(std::time::Instant::now() < most, "{e}"),
                    }
                };
                claim.complete("v").unwrap();
            }
            becomes(&root, "none", |_| root.stats().in_flight == 0);
            assert!(root.verify().unwrap().is_whole());
        }
    });
}

/// A call is made when its method is called, also in a namespace that was made for it: nobody has to poll it.
#[test]
fn a_call_is_made_though_nobody_polls_it() {
    bounded(|| {
        let sim = Sim::new(1);
        let store = sim.open_existing_or_new();
        let space = store.namespace("tenant");
        let calls = [space.mark_async("a"), space.mark_async("b")];
        becomes(&store.namespace("tenant"), "b", |state| state.is_some());
        for call in calls {
            assert!(call.wait().unwrap().is_first());
        }
    });
}

/// Refused as a call that waits is, each at its place.
#[test]
fn a_namespace_that_gives_no_way_refuses_its_calls() {
    let sim = Sim::new(1);
    let root = sim.open().unwrap();
    for (n, store) in both(&root).iter().enumerate() {
        let space = |version: &str| store.namespace(format!("{n}")).version(version);
        assert!(space("1").mark("k").unwrap().is_first());
        let Claim::Acquired(claim) = space("1").claim("open").unwrap() else { panic!() };
        let kind = |e: Error| e.kind();
        let answers = space("2").mark_many_async(["a", "b"]).wait().unwrap();
        assert_eq!(answers.len(), 2);
        for answer in answers {
            assert_eq!(answer.map_err(kind).unwrap_err(), ErrorKind::InProgress);
        }
        // An ending among them counts all the same.
        let mut batch = space("2").batch();
        batch.claim("a").complete(claim, "v").mark("b");
        let committed = batch.commit_async().wait().unwrap();
        assert!(matches!(committed.endings[..], [Ok(())]));
        assert_eq!(committed.claims.len() + committed.marks.len(), 2);
        let told = space("2").mark_async("a").wait();
        assert!(told.unwrap().is_first());
        let told = futures_executor::block_on(space("1").claim_async("k")).map_err(kind);
        assert_eq!(told.unwrap_err(), ErrorKind::Superseded);
        let told = futures_executor::block_on(space("1").get_async("k")).map_err(kind);
        assert_eq!(told.unwrap_err(), ErrorKind::Superseded);
        let long = "k".repeat(4088);
        let told = store.namespace("long").mark_async(long.as_str()).wait().map_err(kind);
        assert_eq!(told.unwrap_err(), ErrorKind::TooLarge);
        assert_eq!(store.forget_all_async().wait().map_err(kind).unwrap_err(), ErrorKind::Invalid);
    }
}
