//! Steps of claims: what their calls promise beyond the rules, which the suite for backends has.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{
    Abort, Attempt, Batch, Claim, ClaimGuard, ClaimHandle, Durability, Error, ErrorKind,
    Fingerprint, OnInterrupted, Operation, Policy, Reconciled, Result, Run, State, Step,
    StepHandle, Store, Ticket,
};

fn granted(store: &Store, key: &str) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(claim) => claim,
        Claim::Interrupted(lost) => lost.take_over().unwrap(),
        other => panic!("{other}"),
    }
}

fn never<T>(_: &StepHandle) -> Result<T> {
    panic!("the step has ended")
}

fn failed() -> Error {
    Error::invalid("timed out")
}

#[test]
fn a_result_is_replayed_with_its_type_in_every_later_attempt() {
    let sim = Sim::new(1);
    let claim = granted(&sim.open().unwrap(), "k");
    let made = claim.step("a", |_| Ok::<_, Error>("x".to_owned())).unwrap();
    drop(claim);
    for _ in 0..3 {
        sim.kill();
        let claim = granted(&sim.open().unwrap(), "k");
        assert_eq!(claim.step("a", never::<String>).unwrap(), made);
        let other_type = claim.step("a", never::<()>).unwrap_err();
        assert_eq!(other_type.kind(), ErrorKind::Undecodable);
    }
}

/// Bytes up to a limit are kept with the step as with a result.
#[test]
fn a_result_that_can_not_be_recorded_is_an_error_and_the_step_stays_open() {
    let store = Sim::new(1).open().unwrap();
    let claim = granted(&store, "k");
    let long = vec![7_u8; 1 << 20];
    let error =
        claim.step(Step::new("a").announced(), |_| Ok::<_, Error>(long.clone())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let Some(State::InProgress(attempt)) = store.get("k").unwrap() else { panic!() };
    assert_eq!(attempt.open_step(), Some("a"));
    claim
        .step("a", |step| {
            assert!(step.may_have_run());
            Ok::<_, Error>("short".to_owned())
        })
        .unwrap();
}

#[test]
fn other_input_under_the_same_name_is_refused_before_it_runs() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    let of = |input| Step::new("a").input(Fingerprint::of(input));
    claim.step(of("this"), |_| Ok::<_, Error>(1.to_string())).unwrap();
    for again in [of("this"), Step::new("a")] {
        assert_eq!(claim.step(again, never::<String>).unwrap(), 1.to_string());
    }
    drop((claim, store));
    let claim = granted(&sim.open().unwrap(), "k");
    let error = claim.step(of("that"), never::<String>).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("another input"), "{error}");
}

/// Whatever the first one did, it may have had an effect with its own input, under the key that the second would use.
#[test]
fn other_input_is_refused_while_the_step_is_open_in_this_and_in_later_attempts() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    let send = |to| Step::new("send").announced().input(Fingerprint::of(to));
    claim.step(send("ann"), |_| Err::<(), _>(failed())).unwrap_err();
    let refused = |claim: &ClaimHandle, step: Step| {
        let error = claim.step(step, never::<String>).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("another input"), "{error}");
    };
    refused(&claim, send("bob"));
    refused(&claim, Step::new("send").input(Fingerprint::of("bob")));
    // The names and inputs stay in the records that follow, however the next attempt learns them.
    claim.save_progress("half").unwrap();
    let ticket = claim.detach(Duration::from_secs(60)).unwrap();
    drop(store);
    let store = sim.open().unwrap();
    let claim = store.attach(&ticket).unwrap();
    refused(&claim, send("bob"));
    drop((claim, store));
    sim.advance(Duration::from_secs(61));
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    refused(&claim, send("bob"));
    let sent = claim.step(send("ann"), |step| {
        assert!(step.may_have_run());
        Ok::<_, Error>("sent".to_owned())
    });
    assert_eq!(sent.unwrap(), "sent");
}

#[test]
fn names_have_limits() {
    let claim = granted(&Sim::new(1).open().unwrap(), "k");
    let longest = "n".repeat(255);
    claim.step(&longest, |_| Ok::<_, Error>(())).unwrap();
    claim.step(Step::new(&longest).announced(), never::<()>).unwrap();
    let kind = |name: String| claim.step(name, never::<()>).unwrap_err().kind();
    assert_eq!(kind(String::new()), ErrorKind::Invalid);
    assert_eq!(kind("n".repeat(256)), ErrorKind::TooLarge);
}

#[test]
fn sixteen_announced_steps_may_be_open_and_each_record_repeats_them() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    let open = |n: usize| {
        let step = Step::new(format!("{n}-{}", "x".repeat(250))).announced();
        claim.step(step, |_| Err::<(), _>(failed())).unwrap_err()
    };
    (0..16).for_each(|n| assert_eq!(open(n).kind(), ErrorKind::Invalid));
    let error = open(16);
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("16 steps"), "{error}");
    // One that is open already needs no other place.
    assert_eq!(open(3).kind(), ErrorKind::Invalid);
    claim.save_progress("still there").unwrap();
    drop((claim, store));
    let Some(State::Interrupted(lost)) = sim.open().unwrap().get("k").unwrap() else { panic!() };
    let names: Vec<usize> =
        lost.open_steps().map(|name| name.split('-').next().unwrap().parse().unwrap()).collect();
    assert_eq!(names, (0..16).collect::<Vec<_>>());
}

#[test]
fn steps_of_one_claim_run_side_by_side_and_each_once() {
    let store = Sim::new(1).open().unwrap();
    let claim = granted(&store, "k");
    let runs = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (claim, runs) = (&claim, &runs);
            scope.spawn(move || {
                for n in 0..40 {
                    let done = claim.step(format!("step {}", (n + thread * 5) % 40), |_| {
                        runs.fetch_add(1, Ordering::SeqCst);
                        Ok::<_, Error>(n.to_string())
                    });
                    if let Err(e) = done {
                        assert_eq!(e.kind(), ErrorKind::InProgress, "{e}");
                    }
                }
            });
        }
    });
    assert_eq!(runs.load(Ordering::SeqCst), 40);
}

/// It would run twice: the same owner calls it from two threads.
#[test]
fn a_step_that_is_running_is_not_begun_again() {
    let claim = granted(&Sim::new(1).open().unwrap(), "k");
    let inner = claim.handle();
    let done = claim.step("a", |_| {
        let error = inner.step("a", never::<String>).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InProgress);
        Ok::<_, Error>(1.to_string())
    });
    assert_eq!(done.unwrap(), "1");
    assert_eq!(claim.step("a", never::<String>).unwrap(), 1.to_string());
}

#[test]
fn a_panic_leaves_a_step_to_be_done_again() {
    let claim = granted(&Sim::new(1).open().unwrap(), "k");
    let work = std::panic::AssertUnwindSafe(|| {
        claim.step("a", |_| -> Result<String> { panic!("in the work") })
    });
    assert!(std::panic::catch_unwind(work).is_err());
    let done = claim.step("a", |step| {
        assert!(step.may_have_run());
        Ok::<_, Error>(2.to_string())
    });
    assert_eq!(done.unwrap(), "2");
}

/// Nobody was told of the first attempt's steps, so nothing is looked up, and nothing is suspect.
#[test]
fn an_attempt_after_an_abort_is_not_suspect() {
    let store = Sim::new(1).open().unwrap();
    granted(&store, "k").abort(Abort::new("nothing happened")).unwrap();
    let claim = granted(&store, "k");
    let may = claim.step("a", |step| Ok::<_, Error>(step.may_have_run().to_string())).unwrap();
    assert_eq!(may, "false");
}

#[test]
fn an_ended_claim_does_no_step() {
    let store = Sim::new(1).open().unwrap();
    let claim = granted(&store, "k");
    let handle = claim.handle();
    claim.complete("v").unwrap();
    assert_eq!(handle.step("a", never::<String>).unwrap_err().kind(), ErrorKind::ClaimLost);
}

#[test]
fn a_step_can_hold_its_claim_and_run_gives_back_the_error() {
    let store = Sim::new(1).open().unwrap();
    drop(store.claim("mail").unwrap());
    let op = Operation::new("mail").on_interrupted(OnInterrupted::Retry);
    let judged = AtomicU32::new(0);
    let run = store
        .runner(&op)
        .on_error(|_: &Error| {
            judged.fetch_add(1, Ordering::SeqCst);
            onlyonce::Verdict::Abort(Abort::new("nothing happened"))
        })
        .run(|claim| {
            claim.step("send", |step| -> Result<()> {
                assert!(step.may_have_run());
                Err(step.hold("the mailer can't be asked"))
            })
        });
    let error = run.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Held);
    assert!(error.to_string().contains("the mailer can't be asked"), "{error}");
    let Some(State::Held(attempt)) = store.get("mail").unwrap() else { panic!() };
    assert_eq!(attempt.reason(), Some("the mailer can't be asked"));
    assert_eq!(judged.load(Ordering::SeqCst), 0, "the hold is the word on the claim");
}

#[test]
fn a_hook_that_reconciles_sees_the_open_step() {
    let sim = Sim::new(1);
    let op = Operation::new("task").on_interrupted(OnInterrupted::Hold);
    let work = |claim: &ClaimHandle| -> Result<String> {
        let plan: String = claim.step("plan", |_| Ok::<_, Error>("a".to_owned()))?;
        claim.step(Step::new("send").announced(), |_| Err::<(), _>(failed()))?;
        Ok(plan)
    };
    assert!(sim.open().unwrap().run(&op, work).is_err());
    sim.kill();
    let look = |lost: &Attempt| {
        assert_eq!(lost.open_step(), Some("send"));
        Ok::<_, Error>(Reconciled::<String>::Unknown)
    };
    let store = sim.open().unwrap();
    let run = store.runner(&op).reconcile(look).run(|_| panic!("held")).unwrap();
    assert!(matches!(run, Run::Refused(_)), "{run}");
    let not_applied = |_: &Attempt| Ok::<_, Error>(Reconciled::NotApplied);
    let run = store.runner(&op).reconcile(not_applied).run(|claim| {
        let plan = claim.step("plan", never::<String>)?;
        claim.step(Step::new("send").announced(), |step| {
            assert!(!step.may_have_run(), "it was not applied");
            Ok::<_, Error>(())
        })?;
        Ok(plan)
    });
    assert!(matches!(run.unwrap(), Run::Done(plan) if plan == "a"));
}

/// `OnDrop`'s abort and the owner's own say nothing about a step that was announced.
#[test]
fn an_announced_beginning_is_durable_before_the_work_runs() {
    for level in [Durability::Flush, Durability::Sync] {
        let sim = Sim::new(1);
        let policy = Policy::new().claim_durability(level).durability(level);
        let store = sim.open().unwrap().with_policy(policy);
        let claim = granted(&store, "k");
        let done = claim.step(Step::new("send").announced(), |_| -> Result<()> {
            if level == Durability::Sync {
                sim.power_loss()
            } else {
                sim.kill()
            }
            Err(failed())
        });
        assert!(done.is_err());
        let Some(State::Interrupted(lost)) = sim.open().unwrap().get("k").unwrap() else {
            panic!()
        };
        assert_eq!(lost.open_step(), Some("send"), "{level:?}");
    }
}

/// The result is there at the level of an outcome, whatever the level of the claim.
#[test]
fn a_result_is_durable_on_return_at_its_level() {
    for level in [Durability::Flush, Durability::Sync] {
        let sim = Sim::new(1);
        let policy = Policy::new().claim_durability(Durability::Lazy).durability(level);
        let claim = granted(&sim.open().unwrap().with_policy(policy), "k");
        assert_eq!(claim.step("a", |_| Ok::<_, Error>(7.to_string())).unwrap(), "7");
        if level == Durability::Sync {
            sim.power_loss()
        } else {
            sim.kill()
        }
        let claim = granted(&sim.open().unwrap(), "k");
        assert_eq!(claim.step("a", never::<String>).unwrap(), 7.to_string(), "{level:?}");
    }
}

#[test]
fn a_sync_that_fails_leaves_the_result_unknown() {
    let sim = Sim::new(1);
    let claim = granted(&sim.open().unwrap(), "k");
    let error = claim
        .step("a", |_| {
            sim.fail_sync(0, DiskFault::Io);
            Ok::<_, Error>(1.to_string())
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Indeterminate);
}

#[test]
fn a_full_disk_refuses_a_step_before_its_work() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    sim.set_disk_bytes_max(sim.disk_bytes());
    let mut n = 0;
    let refused = loop {
        let ran = std::cell::Cell::new(false);
        let done = claim.step(format!("step {n}"), |_| {
            ran.set(true);
            Ok::<_, Error>(vec![7_u8; 3000])
        });
        match done {
            Ok(_) => n += 1,
            Err(e) => break (e, ran.get()),
        }
        assert!(n < 10_000, "the disk is never full");
    };
    assert_eq!(refused.0.kind(), ErrorKind::StorageFull, "{}", refused.0);
    assert!(!refused.1, "its work ran");
    claim.complete("v").unwrap();
}

#[test]
fn steps_are_not_listed_and_not_counted_as_keys() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    for n in 0..50 {
        claim.step(format!("{n}"), |_| Ok::<_, Error>(n.to_string())).unwrap();
    }
    let listed =
        |store: &Store| store.iter().map(|entry| entry.unwrap().0.to_string()).collect::<Vec<_>>();
    assert_eq!(listed(&store), ["k"]);
    let estimate = store.estimate().unwrap();
    assert_eq!((estimate.completed, estimate.open), (0, 1));
    claim.complete("v").unwrap();
    store.merge_index().unwrap();
    assert_eq!(listed(&store), ["k"]);
    assert_eq!(store.estimate().unwrap().completed, 1);
    let verified = store.verify().unwrap();
    assert!(verified.damages.is_empty(), "{verified:?}");
}

/// Segments whose steps nobody needs any more are reclaimed, and those of open keys keep their steps.
#[test]
fn compaction_keeps_the_steps_of_open_keys_and_no_others() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let open: Vec<_> = (0..4).map(|n| granted(&store, &format!("open {n}"))).collect();
    let long = vec![5_u8; 500];
    for (n, claim) in open.iter().enumerate() {
        claim.step("a", |_| Ok::<_, Error>(format!("a {n}"))).unwrap();
        claim.step(Step::new("b").announced(), |_| Err::<(), _>(failed())).unwrap_err();
    }
    for n in 0..200 {
        let claim = granted(&store, &format!("over {n}"));
        for step in 0..5 {
            claim.step(format!("{step}"), |_| Ok::<_, Error>(long.clone())).unwrap();
        }
        if n % 2 == 0 {
            claim.complete("").unwrap();
        } else {
            claim.abort("nothing").unwrap();
            assert!(store.forget(format!("over {n}").as_str()).unwrap());
        }
    }
    let before = store.stats().log_bytes;
    while !store.compact(u64::MAX).unwrap().is_complete() {}
    let after = store.stats().log_bytes;
    assert!(after * 3 <= before, "{before} bytes before, {after} after");
    drop(open);
    drop(store);
    let store = sim.open().unwrap();
    for n in 0..4 {
        let key = format!("open {n}");
        let Some(State::Interrupted(lost)) = store.get(key.as_str()).unwrap() else { panic!() };
        assert_eq!(lost.open_steps().collect::<Vec<_>>(), ["b"]);
        let claim = granted(&store, &key);
        assert_eq!(claim.step("a", never::<String>).unwrap(), format!("a {n}"));
    }
}

#[test]
fn downstream_keys_are_stable_and_unguessable() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    let (label, step) = (claim.downstream_key("psp"), {
        claim.step("psp", |step| Ok::<_, Error>(step.downstream_key())).unwrap()
    });
    assert_ne!(label, step);
    assert_ne!(label, granted(&store, "j").downstream_key("psp"));
    drop((claim, store));
    sim.kill();
    let store = sim.open().unwrap();
    while !store.compact(u64::MAX).unwrap().is_complete() {}
    let Some(State::Interrupted(lost)) = store.get("k").unwrap() else { panic!() };
    assert_eq!(lost.downstream_key("psp"), label);
    assert_eq!(lost.downstream_key_of_step("psp"), step);
    let claim = granted(&store, "k");
    assert_eq!(claim.downstream_key("psp"), label);
    let other = granted(&Sim::new(2).open().unwrap(), "k").downstream_key("psp");
    assert_ne!(other, label, "another store's secret");
}

/// A claim with many steps costs what is used of it.
#[test]
fn ten_thousand_steps_are_recorded_replayed_and_dropped() {
    let sim = Sim::new(1);
    let policy = Policy::new().claim_durability(Durability::Lazy).durability(Durability::Lazy);
    let store = sim.open().unwrap().with_policy(policy);
    let claim = granted(&store, "k");
    for n in 0..10_000_u64 {
        claim.step(format!("{n}"), |_| Ok::<_, Error>(n.to_string())).unwrap();
    }
    drop((claim, store));
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    for n in (0..10_000_u64).step_by(997) {
        assert_eq!(claim.step(format!("{n}"), never::<String>).unwrap(), n.to_string());
    }
    claim.complete("done").unwrap();
    while !store.compact(u64::MAX).unwrap().is_complete() {}
    let estimate = store.estimate().unwrap();
    assert!(estimate.live_bytes < 1000, "{estimate:?}");
}

/// What the owner was told of its steps before the power was cut.
#[derive(Default, Clone)]
struct Acknowledged {
    ended: std::collections::BTreeSet<&'static str>,
    /// Its work ran, so it had been announced.
    begun: std::collections::BTreeSet<&'static str>,
    has_granted: bool,
    is_completed: bool,
}

/// The segments of a small store, so that the steps roll over several.
fn small() -> onlyonce::StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(4096).manual_maintenance(true)
}

/// Three attempts at one key with steps, among other keys. Stops at the first error.
fn attempts(sim: &Sim, told: &mut Acknowledged) -> Result<()> {
    let store = sim.open_with(small())?;
    let long = vec![3_u8; 3000];
    let mut attempt = 0;
    while attempt < 3 {
        attempt += 1;
        let claim = match store.claim("k")? {
            Claim::Acquired(claim) => claim,
            Claim::Interrupted(lost) => lost.take_over()?,
            other => panic!("{other}"),
        };
        told.has_granted = true;
        for name in ["a", "b", "c"] {
            claim
                .step(Step::new(name).announced(), |step| {
                    assert!(!told.ended.contains(name), "{name} ran again");
                    assert_eq!(step.may_have_run(), told.begun.contains(name), "{name}");
                    told.begun.insert(name);
                    // Each attempt comes one step further.
                    if name.as_bytes()[0] - b'a' >= attempt {
                        Err(failed())
                    } else {
                        Ok(format!("result {name}"))
                    }
                })
                .map(|_| {
                    told.ended.insert(name);
                })
                .or_else(|e| if e.kind() == ErrorKind::Invalid { Ok(()) } else { Err(e) })?;
            let _mark = store.mark(("filler", u64::from(attempt), name))?;
            claim.save_progress(&long)?;
            store.step()?;
        }
        if attempt == 3 {
            claim.complete("done")?;
            told.is_completed = true;
        } else {
            // Two steps are open, so it is interrupted.
            claim.abort("to be gone on with")?;
        }
    }
    store.compact(u64::MAX)?;
    store.close(std::time::Duration::ZERO)?;
    Ok(())
}

fn check_steps(sim: &Sim, told: &Acknowledged, context: &str) {
    let store = sim.open_with(small()).unwrap_or_else(|e| panic!("{context}: {e:?}"));
    let claim = match store.claim("k").unwrap() {
        Claim::Completed(done) => {
            assert_eq!(&done.result()[..], b"done", "{context}");
            return;
        }
        Claim::Acquired(claim) => {
            assert!(!told.has_granted, "{context}: the claim is lost");
            claim
        }
        Claim::Interrupted(lost) => {
            for name in told.begun.difference(&told.ended) {
                let is_open = lost.attempt().open_steps().any(|open| open == *name);
                let may_have_ended = lost.attempt().open_steps().count() < 3;
                assert!(is_open || may_have_ended, "{context}: {name} had begun");
            }
            for name in &told.ended {
                assert!(
                    lost.attempt().open_steps().all(|open| open != *name),
                    "{context}: {name} had ended"
                );
            }
            lost.take_over().unwrap()
        }
        other => panic!("{context}: {other}"),
    };
    assert!(!told.is_completed, "{context}: the completion is lost");
    for name in ["a", "b", "c"] {
        let mut ran = false;
        let result = claim
            .step(Step::new(name).announced(), |step| {
                ran = true;
                let had_begun = told.begun.contains(name);
                assert!(!had_begun || step.may_have_run(), "{context}: {name} had begun");
                Ok::<_, Error>(format!("result {name}"))
            })
            .unwrap();
        assert_eq!(result, format!("result {name}"), "{context}");
        assert!(!ran || !told.ended.contains(name), "{context}: {name} ran again");
    }
}

/// Power lost at every change of the disk, in every way: no step that had ended runs again, and none that was begun is taken
/// for one that never was.
#[test]
fn a_power_loss_at_any_change_loses_no_step() {
    let is_long = std::env::var_os("ONLYONCE_LONG").is_some();
    let (mut points, mut reopenings) = (0, 0);
    for cut in (0_u64..).step_by(if is_long { 1 } else { 3 }) {
        let sim = Sim::new(7);
        sim.cut_power_at(cut);
        let mut told = Acknowledged::default();
        let done = attempts(&sim, &mut told);
        if !sim.power_is_cut() {
            done.unwrap();
            break;
        }
        points += 1;
        for crash in sim.crashes(3) {
            check_steps(&sim.after(crash), &told, &format!("cut at {cut}, {crash:?}"));
            reopenings += 1;
        }
    }
    println!("steps: {points} crash points, {reopenings} reopenings");
    assert!(points > 20 && reopenings > 100, "{points} {reopenings}");
}

/// Every call on the disk fails once: a typed error, nothing twice.
#[test]
fn a_failed_call_at_any_point_loses_no_step() {
    let mut points = 0;
    for after in (0..).step_by(3) {
        let sim = Sim::new(7);
        sim.fail_call(after, DiskFault::Io);
        let mut told = Acknowledged::default();
        if attempts(&sim, &mut told).is_ok() && after > 300 {
            break;
        }
        points += 1;
        sim.kill();
        check_steps(&sim, &told, &format!("call {after} fails"));
    }
    assert!(points > 30, "{points}");
}

/// Polls a future so often, and drops it.
fn polled<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut future = std::pin::pin!(future);
    (0..polls).find_map(|_| match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(told) => Some(told),
        std::task::Poll::Pending => None,
    })
}

/// Wherever the future of a step is dropped, its work runs at most once more, and is told so.
#[test]
fn a_step_dropped_at_any_point_is_recorded_or_done_again() {
    for is_announced in [false, true] {
        for polls in 0..8 {
            let sim = Sim::small(1);
            let store = sim.open().unwrap();
            // A second attempt, so that each step is looked up first; sealed, so that it has to be read.
            granted(&store, "k").abort("not yet").unwrap();
            store.merge_index().unwrap();
            let claim = granted(&store, "k");
            let step = || {
                let step = Step::new("a");
                if is_announced { step.announced() } else { step }
            };
            let ran = AtomicU32::new(0);
            let working = claim.step_async(step(), |_| async {
                ran.fetch_add(1, Ordering::SeqCst);
                // The work takes one poll itself.
                let mut is_first = true;
                std::future::poll_fn(|_| match std::mem::take(&mut is_first) {
                    true => std::task::Poll::Pending,
                    false => std::task::Poll::Ready(()),
                })
                .await;
                Ok::<_, Error>("first".to_owned())
            });
            let told = polled(working, polls);
            let had_run = ran.load(Ordering::SeqCst) == 1;
            let mut again = false;
            let result = claim
                .step(step(), |step| {
                    again = true;
                    assert!(!had_run || step.may_have_run(), "{polls}");
                    Ok::<_, Error>("second".to_owned())
                })
                .unwrap();
            assert_eq!(result, if again { "second" } else { "first" }, "{polls}");
            if let Some(told) = told {
                assert_eq!((told.unwrap().as_str(), again), ("first", false), "{polls}");
            }
            claim.complete("v").unwrap();
        }
    }
}

#[test]
fn steps_run_side_by_side_in_one_task() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_or_create(dir.path()).unwrap();
    let claim = granted(&store, "k");
    let one = |n: u64| {
        claim.step_async(format!("{n}"), move |step| async move {
            assert!(!step.may_have_run());
            Ok::<_, Error>(n.to_string())
        })
    };
    let all = futures_executor::block_on(async {
        let (a, b) = tokio::join!(one(1), one(2));
        let again = claim.step_async("1", |_| async { panic!("it has ended") });
        let again: Result<String> = again.await;
        [a.unwrap(), b.unwrap(), again.unwrap()]
    });
    assert_eq!(all, ["1", "2", "1"]);
    let held = futures_executor::block_on(claim.step_async("3", |step| async move {
        Err::<(), Error>(step.hold_async("nobody knows").await?)
    }));
    assert_eq!(held.unwrap_err().kind(), ErrorKind::Held);
    assert!(matches!(store.get("k").unwrap(), Some(State::Held(_))));
}

/// The claim may be lost while the work of a step runs: its result must not become that of the new owner's step.
#[test]
fn a_step_whose_claim_is_taken_over_while_it_runs_records_nothing() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let op = Operation::new("k").lease(std::time::Duration::from_secs(30));
    let Claim::Acquired(stale) = store.claim(&op).unwrap() else { panic!() };
    let mut new_owner = None;
    let done = stale.step(Step::new("a").announced(), |_| {
        sim.advance(std::time::Duration::from_secs(31));
        let Claim::Interrupted(lost) = store.claim(&op).unwrap() else { panic!() };
        assert_eq!(lost.attempt().open_step(), Some("a"));
        new_owner = Some(lost.take_over().unwrap());
        Ok::<_, Error>("stale".to_owned())
    });
    assert_eq!(done.unwrap_err().kind(), ErrorKind::ClaimLost);
    let claim = new_owner.unwrap();
    let mine = claim.step(Step::new("a").announced(), |step| {
        assert!(step.may_have_run());
        Ok::<_, Error>("mine".to_owned())
    });
    assert_eq!(mine.unwrap(), "mine");
}

/// A request that is sent again must not change what others may have been told.
#[test]
fn a_step_that_ends_twice_keeps_its_first_result() {
    use onlyonce::backend::{Answer, Ask, Backend, Call, Request, Stored, Terms};
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    let first = claim.step("a", |_| Ok::<_, Error>("first".to_owned())).unwrap();
    for _ in 0..2 {
        let mut terms = Terms::default();
        terms.details_mut().step = Some("a".to_owned());
        terms.details_mut().outcome = Some(Stored {
            codec: 0,
            version: 0,
            meta: Vec::new(),
            packed: None,
            bytes: b"second"[..].into(),
        });
        let call = Call::EndStep { token: claim.token(), life: claim.token() };
        let request = Request { key: "k".into(), ask: Ask::Call(call, Box::new(terms)) };
        assert_eq!(store.send(request).wait().unwrap().answer, Answer::Unchanged);
        // Sealed, the second time.
        store.merge_index().unwrap();
    }
    let nameless = Call::EndStep { token: claim.token(), life: claim.token() };
    let request = Request { key: "k".into(), ask: Ask::Call(nameless, Box::default()) };
    assert_eq!(store.send(request).wait().unwrap_err().kind(), ErrorKind::Invalid);
    drop(claim);
    assert_eq!(granted(&store, "k").step("a", never::<String>).unwrap(), first);
}

/// Commits a batch of one ending.
fn in_batch(store: &Store, add: impl FnOnce(&mut Batch) -> &mut Batch) -> Result<()> {
    let mut batch = store.batch();
    add(&mut batch);
    batch.commit()?.endings.remove(0)
}

/// The hold is the owner's word on its claim: work that goes on regardless doesn't complete it unnoticed.
#[test]
fn a_claim_that_a_step_held_takes_no_other_ending() {
    let store = Sim::new(1).open().unwrap();
    let endings: [fn(&Store, ClaimGuard) -> Result<()>; 9] = [
        |_, claim| claim.complete("v"),
        |_, claim| claim.fail("v"),
        |_, claim| claim.abort("nothing happened"),
        |_, claim| claim.hold("another word"),
        |_, claim| claim.complete_async("v").wait(),
        |_, claim| claim.abort_async("nothing happened").wait(),
        |_, claim| claim.detach(std::time::Duration::from_secs(9)).map(drop),
        |store, claim| in_batch(store, |batch| batch.complete(claim, "v")),
        |store, claim| in_batch(store, |batch| batch.abort(claim, "nothing happened")),
    ];
    for (n, end) in endings.into_iter().enumerate() {
        let key = format!("k{n}");
        let claim = granted(&store, &key);
        let held = claim.step("send", |step| Err::<(), _>(step.hold("nobody knows")));
        assert_eq!(held.unwrap_err().kind(), ErrorKind::Held);
        assert_eq!(end(&store, claim).unwrap_err().kind(), ErrorKind::Held, "{n}");
        let Some(State::Held(attempt)) = store.get(key.as_str()).unwrap() else { panic!("{n}") };
        assert_eq!(attempt.reason(), Some("nobody knows"), "{n}");
    }
    let run = store.run("swallowed", |claim| {
        let _ = claim.step("send", |step| Err::<(), _>(step.hold("nobody knows")));
        Ok::<_, Error>("done".to_owned())
    });
    assert!(matches!(run.unwrap(), Run::Unrecorded(_, e) if e.kind() == ErrorKind::Held));
    assert!(matches!(store.get("swallowed").unwrap(), Some(State::Held(_))));
}

/// The batch has the claim's guard already when a step that still runs holds the claim.
#[test]
fn an_ending_in_a_batch_does_not_override_a_hold_that_came_before_the_commit() {
    for is_async in [false, true] {
        let store = Sim::new(1).open().unwrap();
        let (ended, aborted) = (granted(&store, "ended"), granted(&store, "aborted"));
        let handles = [ended.handle(), aborted.handle()];
        let mut batch = store.batch();
        batch.complete(ended, "v").abort(aborted, "nothing happened");
        for claim in &handles {
            let held = claim.step("send", |step| Err::<(), _>(step.hold("nobody knows")));
            assert_eq!(held.unwrap_err().kind(), ErrorKind::Held);
        }
        let committed = if is_async { batch.commit_async().wait() } else { batch.commit() };
        for ending in committed.unwrap().endings {
            assert_eq!(ending.unwrap_err().kind(), ErrorKind::Held);
        }
        for claim in &handles {
            let Some(State::Held(attempt)) = store.get(claim.key()).unwrap() else { panic!() };
            assert_eq!(attempt.reason(), Some("nobody knows"));
        }
    }
}

/// The hold that was sent goes on, and must count for the guard as if it had been waited for.
#[test]
fn a_hold_whose_future_is_dropped_takes_no_other_ending() {
    for is_polled in [false, true] {
        let store = Sim::new(1).open().unwrap();
        let claim = granted(&store, "k");
        let _ = claim.step("send", |step| {
            let holding = step.hold_async("nobody knows");
            if is_polled {
                let _ = polled(holding, 1);
            }
            Err::<(), _>(failed())
        });
        assert_eq!(claim.complete("v").unwrap_err().kind(), ErrorKind::Held, "{is_polled}");
        let Some(State::Held(attempt)) = store.get("k").unwrap() else { panic!("{is_polled}") };
        assert_eq!(attempt.reason(), Some("nobody knows"));
    }
}

/// The owner whose claim is gone must hear that, and not that there is something to resolve.
#[test]
fn a_claim_that_a_step_could_not_hold_is_lost() {
    let endings: [fn(&Store, ClaimGuard) -> Result<()>; 4] = [
        |_, claim| claim.complete("v"),
        |_, claim| claim.abort_async("nothing happened").wait(),
        |_, claim| claim.detach(std::time::Duration::from_secs(9)).map(drop),
        |store, claim| in_batch(store, |batch| batch.abort(claim, "nothing happened")),
    ];
    for end in endings {
        let store = Sim::new(1).open().unwrap();
        let claim = granted(&store, "k");
        let Some(State::InProgress(attempt)) = store.get("k").unwrap() else { panic!() };
        assert!(store.interrupt(&attempt, "the wrong file").unwrap());
        let lost = claim.step("send", |step| Err::<(), _>(step.hold("nobody knows")));
        assert_eq!(lost.unwrap_err().kind(), ErrorKind::ClaimLost);
        let error = end(&store, claim).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ClaimLost, "{error}");
        assert!(matches!(store.get("k").unwrap(), Some(State::Interrupted(_))));
    }
}

/// A ticket is attached while its owner's last step ends. The names of open steps came from a record that was read before, and
/// went to memory with the attached claim: the ended step was shown as open, and the new owner's abort was taken for an
/// interruption.
#[test]
fn a_step_that_ends_while_its_claim_is_read_is_not_shown_as_open() {
    use std::time::Duration;
    for read in 0..3 {
        let sim = Sim::small(7);
        let store = sim.open_with(small().map(false)).unwrap();
        let mut claim = Some(granted(&store, "k"));
        let handle = claim.as_ref().unwrap().handle();
        std::thread::scope(|scope| {
            let mut attaching = None;
            let ended = handle.step(Step::new("a").announced(), |_| {
                let mut ticket = None;
                handle.step(Step::new("b").announced(), |_| {
                    ticket = Some(claim.take().unwrap().detach(Duration::from_secs(600))?);
                    Ok::<_, Error>("B".to_owned())
                })?;
                let gate = sim.hold_read(read);
                let (store, ticket) = (&store, ticket.unwrap());
                let thread = scope.spawn(move || store.attach(&ticket));
                let _arrived = gate.wait_arrived(Duration::from_secs(2));
                attaching = Some((gate, thread));
                Ok::<_, Error>("A".to_owned())
            });
            assert_eq!(ended.unwrap(), "A");
            let (gate, thread) = attaching.unwrap();
            gate.open();
            let guard = thread.join().unwrap().unwrap();
            let Some(State::InProgress(attempt)) = store.get("k").unwrap() else { panic!() };
            assert_eq!(attempt.open_steps().count(), 0, "read {read}");
            guard.abort("no effect").unwrap();
            let Claim::Acquired(_next) = store.claim("k").unwrap() else { panic!("read {read}") };
        });
    }
}

/// Refused before its work: the next call must not be told that it may have run, or it would hold its claim for nothing.
#[test]
fn a_step_that_was_refused_did_not_run() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let claim = granted(&store, "k");
    let open = |name: &str| claim.step(Step::new(name).announced(), |_| Err::<(), _>(failed()));
    (0..16).for_each(|n| assert!(open(&format!("{n}")).is_err()));
    let refused = claim.step(Step::new("x").announced(), never::<String>).unwrap_err();
    assert!(refused.to_string().contains("16 steps"), "{refused}");
    claim.step(Step::new("0").announced(), |_| Ok::<_, Error>(())).unwrap();
    let ran = claim
        .step(Step::new("x").announced(), |step| Ok::<_, Error>(step.may_have_run().to_string()));
    assert_eq!(ran.unwrap(), "false");
}

/// A future that was begun before its claim was handed over must not run the work of a step that the new owner has done.
#[test]
fn a_step_that_was_begun_before_a_hand_over_does_not_run_after_it() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    for polls in 0..6 {
        let key = format!("k{polls}");
        let claim = granted(&store, &key);
        let handle = claim.handle();
        let mut old = Box::pin(handle.step_async(Step::new("a").announced(), |_| async {
            Ok::<_, Error>("old".to_owned())
        }));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let done = (0..polls).any(|_| old.as_mut().poll(&mut context).is_ready());
        let ticket = claim.detach(std::time::Duration::from_secs(600)).unwrap();
        let guard = store.attach(&ticket).unwrap();
        let new =
            guard.step(Step::new("a").announced(), |_| Ok::<_, Error>("new".to_owned())).unwrap();
        assert!(new == "old" || !done, "{polls}: it ran again");
        if new == "new" {
            let error = futures_executor::block_on(old).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ClaimLost, "{polls}");
        }
    }
}

/// A step that an old handle of a claim ends, while the guard that was attached since goes on. `meanwhile` runs with that ticket
/// and with the gate at which the late end reads; it does not run if the late end reads less often.
fn ends_late(
    sim: &Sim,
    store: &Store,
    read: u64,
    meanwhile: impl FnOnce(Ticket),
) -> (bool, Result<String>) {
    let claim = granted(store, "k");
    let handle = claim.handle();
    let (begun, begins) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let late = scope.spawn(move || {
            handle.step("a", |_| {
                begun.send(()).unwrap();
                goes.recv().unwrap();
                Ok::<_, Error>("late".to_owned())
            })
        });
        begins.recv().unwrap();
        let ticket = claim.detach(Duration::from_secs(600)).unwrap();
        // What isn't live is looked for in the tables, and read without a lock.
        store.merge_index().unwrap();
        let gate = sim.hold_read(read);
        go.send(()).unwrap();
        let is_held = gate.wait_arrived(Duration::from_secs(2));
        if is_held {
            meanwhile(ticket);
        }
        gate.open();
        (is_held, late.join().unwrap())
    })
}

/// The first end of a step stays, also if another one looked for the step before that and found nothing.
#[test]
fn a_step_that_ends_while_another_end_of_it_looks_keeps_its_first_result() {
    let mut held = 0;
    for read in 0..4 {
        let sim = Sim::small(7);
        let store = sim.open_with(small().map(false)).unwrap();
        let mut first = None;
        let (is_held, late) = ends_late(&sim, &store, read, |ticket| {
            let guard = store.attach(&ticket).unwrap();
            let done = guard.step("a", |_| Ok::<_, Error>("first".to_owned()));
            first = Some(done.unwrap());
        });
        if is_held {
            held += 1;
            assert_eq!(
                (first.as_deref(), &*late.unwrap()),
                (Some("first"), "first"),
                "read {read}"
            );
            drop(store);
            // The detached claim's lease passes.
            sim.advance(Duration::from_secs(601));
            let claim = granted(&sim.open_with(small()).unwrap(), "k");
            assert_eq!(claim.step("a", never::<String>).unwrap(), "first", "read {read}");
        }
    }
    assert!(held > 0, "no end was held");
}

/// A claim that was read as open may have an outcome by the time its step is recorded.
#[test]
fn a_step_that_ends_while_its_claim_ends_is_lost() {
    let mut held = 0;
    for read in 0..4 {
        let sim = Sim::small(7);
        let store = sim.open_with(small().map(false)).unwrap();
        let (is_held, late) = ends_late(&sim, &store, read, |ticket| {
            store.attach(&ticket).unwrap().complete("v").unwrap();
        });
        if is_held {
            held += 1;
            assert_eq!(late.unwrap_err().kind(), ErrorKind::ClaimLost, "read {read}");
        }
    }
    assert!(held > 0, "no end was held");
}

/// A result that was replayed is not taken back, whoever placed its record and left before it was durable.
#[test]
fn a_replayed_result_of_a_step_is_as_durable_as_its_level_says() {
    let mut left = 0;
    for polls in 0..10 {
        let sim = Sim::small(1);
        let store = sim.open().unwrap();
        let claim = granted(&store, "k");
        let handle = claim.handle();
        let mut first =
            Box::pin(handle.step_async("a", |_| async { Ok::<_, Error>("first".to_owned()) }));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let is_done = (0..polls).any(|_| first.as_mut().poll(&mut context).is_ready());
        drop(first);
        let told = claim.step("a", |_| Ok::<_, Error>("second".to_owned())).unwrap();
        left += u32::from(told == "first" && !is_done);
        sim.power_loss();
        drop((claim, handle, store));
        let claim = granted(&sim.open().unwrap(), "k");
        let again = claim.step("a", |_| Ok::<_, Error>("third".to_owned())).unwrap();
        assert_eq!(again, told, "{polls} polls");
    }
    assert!(left > 0, "no end was left");
}
