//! Calls of tasks on a real store, on both flavours of tokio and on another executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{Claim, Durability, ErrorKind, Operation, Policy, State, Store};

const MINUTE: Duration = Duration::from_secs(60);

fn store(dir: &tempfile::TempDir) -> Store {
    Store::open_or_create(dir.path().join("keys")).unwrap()
}

/// A claim and its completion, at every level, and a replay.
async fn pair(store: Store, n: u64) {
    let levels = [Durability::Sync, Durability::Flush, Durability::Lazy];
    let level = levels[usize::try_from(n % 3).unwrap()];
    let op = Operation::new(("pair", n)).claim_durability(level).durability(level);
    let Claim::Acquired(claim) = store.claim_async(&op).await.unwrap() else { panic!("{n}") };
    claim.complete_async(&n.to_le_bytes()).await.unwrap();
    let Claim::Completed(done) = store.claim_async(&op).await.unwrap() else { panic!("{n}") };
    assert_eq!(&done.result()[..], &n.to_le_bytes());
    let state = store.get_async(("pair", n)).await.unwrap();
    assert!(matches!(state, Some(State::Completed(_))));
}

/// Many wait for the result of one.
async fn one_for_many(store: Store, tasks: u64) -> u64 {
    let Claim::Acquired(owner) = store.claim_async("price").await.unwrap() else { panic!() };
    let waiting: Vec<_> =
        (0..tasks).map(|_| store.claim_wait_async("price", 10 * MINUTE)).collect();
    owner.complete_async("17.50").await.unwrap();
    let mut woken = 0;
    for waiting in waiting {
        let Claim::Completed(done) = waiting.await.unwrap() else { panic!() };
        assert_eq!(&done.result()[..], b"17.50");
        woken += 1;
    }
    woken
}

#[test]
fn pairs_and_waits_on_tokio_with_one_thread() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let local = store.clone();
    runtime.block_on(async move {
        let tasks: Vec<_> = (0..300).map(|n| tokio::spawn(pair(local.clone(), n))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(one_for_many(local, 1000).await, 1000);
    });
    assert!(store.close(MINUTE).unwrap().is_empty());
}

#[test]
fn pairs_and_waits_on_tokio_with_many_threads() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let local = store.clone();
    runtime.block_on(async move {
        let tasks: Vec<_> = (0..1000).map(|n| tokio::spawn(pair(local.clone(), n))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(tokio::spawn(one_for_many(local, 1000)).await.unwrap(), 1000);
    });
    let stats = store.stats();
    assert!(stats.syncs < 2000, "{} syncs: pairs share none", stats.syncs);
    assert!(store.close(MINUTE).unwrap().is_empty());
}

#[test]
fn pairs_and_waits_on_another_executor() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let pool = futures_executor::ThreadPool::builder().pool_size(2).create().unwrap();
    let done = Arc::new(AtomicU64::new(0));
    for n in 0..200 {
        let (store, done) = (store.clone(), Arc::clone(&done));
        pool.spawn_ok(async move {
            pair(store, n).await;
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    while done.load(Ordering::SeqCst) < 200 {
        std::thread::yield_now();
    }
    assert_eq!(futures_executor::block_on(one_for_many(store.clone(), 500)), 500);
    drop(pool);
    assert!(store.close(MINUTE).unwrap().is_empty());
}

/// A store that was closed and opened has tables, so a claim of a new key has to read them: a thread does.
#[test]
fn a_call_that_has_to_read_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let before = store(&dir);
    for n in 0..100_u64 {
        assert!(before.mark(("old", n)).unwrap().is_first());
    }
    before.close(MINUTE).unwrap();
    drop(before);
    let store = store(&dir);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let local = store.clone();
    runtime.block_on(async move {
        for n in 0..100_u64 {
            assert!(!local.mark_async(("old", n)).await.unwrap().is_first());
            assert!(local.mark_async(("new", n)).await.unwrap().is_first());
        }
        let Claim::Acquired(claim) = local.claim_async("k").await.unwrap() else { panic!() };
        drop(claim);
        let Claim::Interrupted(lost) = local.claim_async("k").await.unwrap() else { panic!() };
        let claim = lost.take_over_async().await.unwrap();
        claim.abort_async("busy").await.unwrap();
        let Claim::Interrupted(lost) = local.claim_async("k").await.unwrap() else { panic!() };
        lost.not_applied_async().await.unwrap().fail_async("declined").await.unwrap();
        assert!(matches!(local.claim_async("k").await.unwrap(), Claim::Failed(_)));
    });
}

/// Polls a future a number of times and drops it. Returns whether it was answered before.
fn polled<T>(future: impl Future<Output = T>, polls: u64) -> Option<T> {
    struct Still;
    impl Wake for Still {
        fn wake(self: Arc<Self>) {}
    }
    let waker = Waker::from(Arc::new(Still));
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        if let Poll::Ready(told) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(told);
        }
    }
    None
}

/// Dropped at every point where it may be, a call leaves a state that the page names, and nothing that holds the key.
#[test]
fn a_future_dropped_at_any_point_leaves_a_documented_state() {
    for polls in 0..6 {
        let sim = Sim::small(1);
        let store = sim.open().unwrap();
        // Sealed, so that each call has to read first.
        let _mark = store.mark("old").unwrap();
        store.merge_index().unwrap();
        let told = polled(store.claim_async("k"), polls);
        match &told {
            Some(claim) => assert!(matches!(claim, Ok(Claim::Acquired(_))), "{polls}"),
            None => assert!(!matches!(store.get("k").unwrap(), Some(State::InProgress(_)))),
        }
        drop(told);
        let claim = match store.claim("k").unwrap() {
            Claim::Acquired(claim) => claim,
            // The grant was taken, and its guard dropped.
            Claim::Interrupted(lost) => lost.not_applied().unwrap(),
            other => panic!("{polls}: {other}"),
        };
        // The ending goes on, whenever its caller leaves.
        let _ = polled(claim.complete_async("v"), polls);
        let state = store.get("k").unwrap();
        assert!(matches!(state, Some(State::Completed(_))), "{polls}: {state:?}");
        // A question that was dropped is asked again.
        drop(store.claim("l").unwrap());
        drop(polled(store.claim_async("l"), polls));
        let Claim::Interrupted(lost) = store.claim("l").unwrap() else { panic!("{polls}") };
        drop(polled(lost.take_over_async(), polls));
        assert!(matches!(store.claim("l").unwrap(), Claim::Interrupted(_)), "{polls}");
        drop(polled(store.mark_async("m"), polls));
        let state = store.get("m").unwrap();
        assert!(matches!(state, None | Some(State::Completed(_))), "{polls}: {state:?}");
    }
}

#[test]
fn a_failed_sync_is_told_to_every_task() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let _first = store.mark("first").unwrap();
    let mut sent: Vec<_> = (0..3_u64).map(|n| store.claim_async(n)).collect();
    sim.fail_sync(0, DiskFault::Io);
    for pending in &mut sent {
        let told = pending.wait_timeout(MINUTE).expect("an answer");
        assert_eq!(told.unwrap_err().kind(), ErrorKind::Indeterminate);
    }
    let told = store.claim_async("later").wait();
    assert_eq!(told.unwrap_err().kind(), ErrorKind::Poisoned);
}

/// A disk that takes its time holds up neither the executor nor replays, and a wait with a deadline ends in time.
#[test]
fn a_slow_disk_holds_up_no_task() {
    let sim = Sim::new(1);
    let store = sim.open_existing_or_new();
    let _first = store.mark("first").unwrap();
    // The background may sync a segment that it prepares: then the next sync is held instead.
    let held = (0..100_u64).find_map(|n| {
        let gate = sim.hold_sync();
        let mut slow = store.mark_async(("slow", n));
        match slow.wait_timeout(Duration::from_millis(20)) {
            None => Some((gate, slow)),
            Some(_) => {
                gate.open();
                None
            }
        }
    });
    let (gate, mut slow) = held.expect("the disk stands still");
    assert!(gate.wait_arrived(MINUTE));
    assert!(polled(store.claim_async("first"), 1000).is_none_or(|told| told.is_ok()));
    gate.open();
    assert!(slow.wait_timeout(MINUTE).expect("the disk is back").unwrap().is_first());
    assert!(store.close(MINUTE).unwrap().is_empty());
}

trait OpenExistingOrNew {
    fn open_existing_or_new(&self) -> Store;
}

impl OpenExistingOrNew for Sim {
    /// With threads.
    fn open_existing_or_new(&self) -> Store {
        drop(self.open().unwrap());
        self.open_existing(Store::builder(), true).unwrap()
    }
}

#[test]
fn a_close_answers_every_task() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).with_policy(Policy::new().durability(Durability::Lazy));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..2000_u64)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move { store.mark_async(("k", n)).await })
            })
            .collect();
        let waiting = store.clone();
        let waiting = tokio::spawn(async move {
            let _claim = waiting.claim_async("held").await;
            waiting.claim_wait_async("held", 10 * MINUTE).await
        });
        tokio::task::yield_now().await;
        let closing = store.clone();
        tokio::task::spawn_blocking(move || closing.close(MINUTE)).await.unwrap().unwrap();
        let kinds = [ErrorKind::Closed, ErrorKind::Indeterminate];
        for task in tasks {
            if let Err(e) = task.await.unwrap() {
                assert!(kinds.contains(&e.kind()), "{e}");
            }
        }
        if let Err(e) = waiting.await.unwrap() {
            assert!(kinds.contains(&e.kind()), "{e}");
        }
    });
}

/// The future is as small as the page says, and moves between threads.
#[test]
fn pending_calls_are_send_and_unpin() {
    fn check<T: Send + Unpin>(_: &T) {}
    let store = Sim::new(1).open().unwrap();
    let mut pending = store.claim_async("k");
    check(&pending);
    let pinned = Pin::new(&mut pending);
    check(&pinned);
    assert_eq!(format!("{pending:?}"), "Pending(underway)");
}

/// What is sent and not yet waited for takes memory until it is written: beyond a few MiB, a call is placed when it is waited
/// for. Without threads, nothing is written before that.
#[test]
fn calls_in_flight_are_bounded_by_their_bytes() {
    let sim = Sim::new(1);
    // With segments so long that space alone holds no call up.
    let store = sim.open_with(Store::builder().result_bytes_max(8 << 20)).unwrap();
    let claims = (0..40_u64).map(|n| match store.claim(n).unwrap() {
        Claim::Acquired(guard) => guard,
        other => panic!("{other}"),
    });
    let guards: Vec<_> = claims.collect();
    let value = vec![7_u8; 250 << 10];
    let sent: Vec<_> = guards.into_iter().map(|guard| guard.complete_async(&value)).collect();
    // 10 MB were sent. The last of them is not placed: a look, which would wait for its record, finds it in progress.
    assert!(matches!(store.get(39_u64).unwrap(), Some(State::InProgress(_))));
    assert!(matches!(store.get(0_u64).unwrap(), Some(State::Completed(_))));
    for ending in sent {
        ending.wait().unwrap();
    }
    assert!(matches!(store.get(39_u64).unwrap(), Some(State::Completed(_))));
}
