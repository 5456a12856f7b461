//! Closures that are futures, run once: the same rules as `run`, on any executor, dropped and panicking.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use onlyonce::testing::Sim;
use onlyonce::{
    Abort, Attempt, Claim, Error, ErrorKind, OnDrop, OnInterrupted, Operation, Outcome, Reconciled,
    Result, Run, State, Store, Verdict,
};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    futures_executor::block_on(future)
}

/// Waits for nothing, once.
async fn pause() {
    let mut has_paused = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut has_paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn state(store: &Store, key: &str) -> String {
    store.get(key).unwrap().map_or("absent".to_owned(), |state| match state {
        State::InProgress(_) => "in progress".to_owned(),
        State::Interrupted(a) => format!("interrupted: {}", a.reason().unwrap_or_default()),
        State::Held(_) => "held".to_owned(),
        State::Aborted(a) => format!("aborted: {}", a.reason().unwrap_or_default()),
        State::Completed(_) => "completed".to_owned(),
        State::Failed(_) => "failed".to_owned(),
        other => other.to_string(),
    })
}

#[test]
fn nothing_happens_before_the_future_is_polled() {
    let store = Sim::new(1).open().unwrap();
    let run = store.run_async("k", |_claim| async { Ok::<_, Error>("v".to_owned()) });
    drop(run);
    assert!(store.get("k").unwrap().is_none());
}

async fn twice(store: Store) {
    for round in 0..2 {
        let run = store.run_async("k", |claim| async move {
            pause().await;
            claim.save_progress_async("half").await?;
            Ok::<_, Error>(format!("attempt {}", claim.attempt()))
        });
        match run.await.unwrap() {
            Run::Done(value) if round == 0 => assert_eq!(value, "attempt 1"),
            Run::Replayed(value, _) if round == 1 => assert_eq!(value, "attempt 1"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_future_runs_once_on_each_executor() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| Store::open_or_create(dir.path().join(name)).unwrap();
    runtime.block_on(twice(open("a")));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let store = open("b");
    runtime.block_on(async { tokio::spawn(twice(store)).await.unwrap() });
    block_on(twice(open("c")));
    block_on(twice(Sim::new(1).open().unwrap()));
}

#[test]
fn a_run_that_is_dropped_is_an_interruption() {
    let store = Sim::new(1).open().unwrap();
    let op = || Operation::new("k");
    for (on_drop, left) in [
        (OnDrop::Interrupt, "interrupted: dropped without a word"),
        (OnDrop::Abort, "aborted: dropped before it had an effect"),
    ] {
        {
            let mut run = pin!(store.run_async(op().on_drop(on_drop), |_claim| async {
                std::future::pending::<()>().await;
                Ok::<_, Error>(())
            }));
            for _ in 0..10 {
                assert!(poll_once(run.as_mut()).is_pending());
            }
            assert_eq!(state(&store, "k"), "in progress");
        }
        assert_eq!(state(&store, "k"), left);
        let _ = store.forget("k").unwrap();
    }
    // Its result is sent: that goes on.
    for polls in 0..10 {
        let key = format!("key {polls}");
        let has_run = std::sync::atomic::AtomicBool::new(false);
        {
            let mut run = pin!(store.run_async(key.as_str(), |_claim| async {
                has_run.store(true, std::sync::atomic::Ordering::SeqCst);
                Ok::<_, Error>(())
            }));
            for _ in 0..polls {
                if poll_once(run.as_mut()).is_ready() {
                    break;
                }
            }
        }
        let left = state(&store, &key);
        let expected = if has_run.into_inner() { "completed" } else { "absent" };
        let withdrawn = left.starts_with("aborted: granted");
        assert!(left == expected || (expected == "absent" && withdrawn), "{polls}: {left}");
    }
}

#[test]
fn a_panic_in_the_future_is_an_interruption() {
    let store = Sim::new(1).open().unwrap();
    let run = store.run_async("k", |_claim| async {
        pause().await;
        if true {
            panic!("work");
        }
        Ok::<_, Error>(())
    });
    assert!(catch_unwind(AssertUnwindSafe(|| block_on(run))).is_err());
    assert_eq!(state(&store, "k"), "interrupted: its owner panicked");
}

#[derive(Debug)]
enum Fault {
    Mine(&'static str),
    Store(#[expect(dead_code, reason = "shown by Debug")] ErrorKind),
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Fault::Store(e.kind())
    }
}

fn judge(fault: &Fault) -> Verdict {
    match fault {
        Fault::Mine("declined") => Verdict::Fail(Outcome::failure("declined")),
        Fault::Mine("busy") => Verdict::Abort(Abort::new("busy")),
        _ => Verdict::Unknown,
    }
}

fn found(what: &str) -> Result<Reconciled<String>, Fault> {
    match what {
        "applied" => Ok(Reconciled::Applied("found".to_owned())),
        "not applied" => Ok(Reconciled::NotApplied),
        "unknown" => Ok(Reconciled::Unknown),
        _ => Err(Fault::Mine("the outbox is down")),
    }
}

/// Every way of a run, by a thread and by a task: the same answer, and the same state of the key.
#[test]
fn a_run_by_a_task_is_judged_like_one_by_a_thread() {
    let works = ["done", "declined", "busy", "unclear"];
    let policies = [None, Some(OnInterrupted::Retry), Some(OnInterrupted::Hold)];
    let drops = [OnDrop::Interrupt, OnDrop::Abort];
    let reconciles = [None, Some("applied"), Some("not applied"), Some("unknown"), Some("fails")];
    let before = [false, true];
    let mut seen = std::collections::BTreeSet::new();
    for work in works {
        for policy in policies {
            for on_drop in drops {
                for judged in [false, true] {
                    for reconcile in reconciles {
                        for interrupted in before {
                            let op = || {
                                let op = Operation::new("k").on_drop(on_drop);
                                match policy {
                                    Some(policy) => op.on_interrupted(policy),
                                    None => op,
                                }
                            };
                            let result = |attempt: u32| match work {
                                "done" => Ok(format!("attempt {attempt}")),
                                other => Err(Fault::Mine(other)),
                            };
                            let opened = || {
                                let store = Sim::new(1).open().unwrap();
                                if interrupted {
                                    drop(store.claim("k").unwrap());
                                }
                                store
                            };
                            let shown = |store: &Store, run: Result<Run<String>, Fault>| {
                                format!("{run:?}, then {}", state(store, "k"))
                            };
                            let store = opened();
                            let mut runner = store.runner(op());
                            if judged {
                                runner = runner.on_error(judge);
                            }
                            if let Some(what) = reconcile {
                                runner = runner.reconcile(move |_lost| found(what));
                            }
                            let by_thread = runner.run(|claim| result(claim.attempt()));
                            let by_thread = shown(&store, by_thread);
                            let store = opened();
                            let mut runner = store.runner(op());
                            if judged {
                                runner = runner.on_error(judge);
                            }
                            if let Some(what) = reconcile {
                                runner = runner.reconcile_async(move |_lost: Attempt| async move {
                                    pause().await;
                                    found(what)
                                });
                            }
                            let by_task = block_on(runner.run_async(|claim| async move {
                                pause().await;
                                result(claim.attempt())
                            }));
                            let by_task = shown(&store, by_task);
                            assert_eq!(by_thread, by_task);
                            seen.insert(by_task);
                        }
                    }
                }
            }
        }
    }
    assert!(seen.len() > 10, "{seen:?}");
}

#[test]
fn a_hook_that_is_a_future_needs_a_run_that_is_one() {
    let store = Sim::new(1).open().unwrap();
    let hook = |_lost: Attempt| async { Ok::<_, Error>(Reconciled::<()>::Unknown) };
    let run = store.runner("k").reconcile_async(hook).run(|_claim| Ok(()));
    assert_eq!(run.unwrap_err().kind(), ErrorKind::Invalid);
    assert!(store.get("k").unwrap().is_none());
}

/// While a hook asks, others see the key in progress, and a dropped run leaves the question.
#[test]
fn a_run_that_is_dropped_while_it_reconciles_decides_nothing() {
    let store = Sim::new(1).open().unwrap();
    drop(store.claim("k").unwrap());
    {
        let hook = |_lost: Attempt| async {
            std::future::pending::<()>().await;
            Ok::<_, Error>(Reconciled::<()>::Unknown)
        };
        let runner = store.runner("k").reconcile_async(hook);
        let mut run = pin!(runner.run_async(|_claim| async { Ok(()) }));
        for _ in 0..10 {
            assert!(poll_once(run.as_mut()).is_pending());
        }
        assert!(matches!(store.claim("k").unwrap(), Claim::InProgress(_)));
    }
    assert!(matches!(store.claim("k").unwrap(), Claim::Interrupted(_)));
}
