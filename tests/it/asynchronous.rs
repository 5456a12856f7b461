//! Calls of tasks on a real store, on both flavours of tokio and on another executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use onlyonce::testing::{DiskFault, Sim, SimGate};
use onlyonce::{
    Claim, ClaimGuard, Durability, ErrorKind, Mark, OnDrop, Operation, Outcome, Pending, Policy,
    Resolution, State, Store,
};

pub const MINUTE: Duration = Duration::from_secs(60);

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
pub fn polled<T>(future: impl Future<Output = T>, polls: u64) -> Option<T> {
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

pub fn acquired(store: &Store, key: &str) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{key}: {other}"),
    }
}

/// Interrupts an attempt of the key, and is asked about it.
fn asked(store: &Store, key: &str) -> onlyonce::Interrupted {
    drop(acquired(store, key));
    match store.claim(key).unwrap() {
        Claim::Interrupted(lost) => lost,
        other => panic!("{key}: {other}"),
    }
}

/// Another thread may still be at it.
pub fn becomes(store: &Store, key: &str, is_it: impl Fn(Option<&State>) -> bool) {
    let most = std::time::Instant::now() + MINUTE;
    loop {
        let state = store.get(key).unwrap();
        if is_it(state.as_ref()) {
            return;
        }
        assert!(std::time::Instant::now() < most, "{key}: {state:?}");
        std::thread::yield_now();
    }
}

/// The same for every other call, on a store that does its work in the polls, and on one whose threads do it meanwhile.
#[test]
fn every_twin_may_be_dropped_at_any_point() {
    for (polls, threads) in (0..6).flat_map(|polls| [(polls, false), (polls, true)]) {
        let sim = Sim::small(1);
        let store = if threads { sim.open_existing_or_new() } else { sim.open().unwrap() };
        let _mark = store.mark("old").unwrap();
        store.merge_index().unwrap();
        let is = |name: &str| {
            let name = name.to_owned();
            move |state: Option<&State>| match state {
                None => name == "absent",
                Some(State::InProgress(_)) => name == "in progress",
                Some(State::Interrupted(_)) => name == "interrupted",
                Some(State::Held(_)) => name == "held",
                Some(State::Aborted(_)) => name == "aborted",
                Some(State::Completed(_)) => name == "completed",
                _ => false,
            }
        };
        let is_one = |store: &Store, key: &str, names: &[&str]| {
            becomes(store, key, |state| names.iter().any(|name| is(name)(state)));
        };
        // Endings and the hand-over go on.
        drop(polled(acquired(&store, "held").hold_async("why"), polls));
        is_one(&store, "held", &["held"]);
        let guard = acquired(&store, "detached");
        drop(polled(guard.detach_async(MINUTE), polls));
        is_one(&store, "detached", &["in progress"]);
        let ends: Vec<_> =
            ["end 1", "end 2"].map(|key| (acquired(&store, key), Outcome::success("v"))).into();
        drop(polled(store.complete_many_async(ends), polls));
        is_one(&store, "end 1", &["completed"]);
        is_one(&store, "end 2", &["completed"]);
        let mut batch = store.batch();
        batch.complete(acquired(&store, "mixed"), "v").claim("mixed too").mark("mixed mark");
        drop(polled(batch.commit_async(), polls));
        is_one(&store, "mixed", &["completed"]);
        // Undelivered grants are released.
        is_one(&store, "mixed too", &["absent", "aborted", "interrupted"]);
        drop(polled(store.claim_many_async(["many 1", "many 2"]), polls));
        for key in ["many 1", "many 2"] {
            is_one(&store, key, &["absent", "aborted", "interrupted"]);
        }
        let ticket = acquired(&store, "ticket").detach(MINUTE).unwrap();
        drop(polled(store.attach_async(&ticket), polls));
        let most = std::time::Instant::now() + MINUTE;
        let claim = loop {
            match store.attach(&ticket) {
                Ok(claim) => break claim,
                Err(e) => assert!(std::time::Instant::now() < most, "{e}"),
            }
        };
        // Whatever becomes of these, the claim stays its owner's.
        drop(polled(claim.renew_async(2 * MINUTE), polls));
        drop(polled(claim.save_progress_async("half"), polls));
        assert!(claim.is_live());
        claim.complete("v").unwrap();
        is_one(&store, "ticket", &["completed"]);
        let claim = acquired(&store, "renewed");
        drop(polled(claim.renew_async(MINUTE), polls));
        drop(polled(claim.save_progress_async("half"), polls));
        assert!(claim.is_live());
        claim.complete("v").unwrap();
        // Any other call was made or not.
        let lost = asked(&store, "question");
        drop(polled(lost.renew_async(MINUTE), polls));
        drop(polled(lost.hold_async("why"), polls));
        is_one(&store, "question", &["interrupted", "held"]);
        drop(acquired(&store, "resolved"));
        let Some(State::Interrupted(seen)) = store.get("resolved").unwrap() else { panic!() };
        drop(polled(store.resolve_async(&seen, Resolution::retry("why")), polls));
        is_one(&store, "resolved", &["interrupted", "aborted"]);
        let claim = acquired(&store, "revoked");
        let Some(State::InProgress(seen)) = store.get("revoked").unwrap() else { panic!() };
        drop(polled(store.interrupt_async(&seen, "why"), polls));
        is_one(&store, "revoked", &["interrupted", "in progress"]);
        drop(polled(store.forget_claimed_async("revoked", claim.token()), polls));
        is_one(&store, "revoked", &["interrupted", "in progress", "absent"]);
        drop(claim);
        is_one(&store, "revoked", &["interrupted", "absent"]);
        drop(polled(store.forget_async("end 1"), polls));
        drop(polled(store.forget_many_async(["end 2"]), polls));
        drop(polled(store.mark_many_async(["mark 1", "mark 2"]), polls));
        drop(polled(store.record_async("record", Outcome::success("v")), polls));
        for key in ["end 1", "end 2", "mark 1", "mark 2", "record", "mixed mark"] {
            is_one(&store, key, &["completed", "absent"]);
        }
        drop(polled(store.sync_async(), polls));
        // The detached claim is nobody's: nothing is in flight.
        let most = std::time::Instant::now() + MINUTE;
        while store.stats().in_flight > 0 {
            assert!(std::time::Instant::now() < most, "{} in flight", store.stats().in_flight);
            std::thread::yield_now();
        }
        drop(polled(store.close_async(Duration::ZERO), polls));
        let most = std::time::Instant::now() + MINUTE;
        while store.get("held").is_ok() {
            assert!(std::time::Instant::now() < most, "the close stands still");
            std::thread::yield_now();
        }
    }
}

/// Each twin once, with its answer.
async fn every_twin(store: Store) {
    let acquired = async |key: &'static str| match store.claim_async(key).await.unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    };
    let claim = acquired("job").await;
    claim.renew_async(MINUTE).await.unwrap();
    claim.save_progress_async("3 of 9").await.unwrap();
    assert_eq!(claim.progress().unwrap().decode::<String>().unwrap(), "3 of 9");
    let ticket = claim.detach_async(MINUTE).await.unwrap();
    let claim = store.attach_async(&ticket).await.unwrap();
    let twice = store.attach_async(&ticket).await.unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::InProgress);
    assert_eq!(claim.progress().unwrap().decode::<String>().unwrap(), "3 of 9");
    claim.renew_async(MINUTE).await.unwrap();
    claim.hold_async("look into it").await.unwrap();
    let Some(State::Held(held)) = store.get_async("job").await.unwrap() else { panic!() };
    assert!(store.resolve_async(&held, Resolution::retry("why")).await.unwrap());
    let claim = acquired("job").await;
    let Some(State::InProgress(seen)) = store.get_async("job").await.unwrap() else { panic!() };
    assert!(store.interrupt_async(&seen, "stuck").await.unwrap());
    assert!(!claim.is_live());
    assert_eq!(claim.renew_async(MINUTE).await.unwrap_err().kind(), ErrorKind::ClaimLost);
    drop(claim);
    let Claim::Interrupted(lost) = store.claim_async("job").await.unwrap() else { panic!() };
    lost.renew_async(MINUTE).await.unwrap();
    lost.hold_async("why").await.unwrap();
    assert!(matches!(store.get_async("job").await.unwrap(), Some(State::Held(_))));
    assert!(store.forget_async("job").await.unwrap());
    assert!(!store.forget_async("job").await.unwrap());
    let claim = acquired("job").await;
    store.forget_claimed_async("job", claim.token()).await.unwrap();
    assert_eq!(claim.complete_async("v").await.unwrap_err().kind(), ErrorKind::ClaimLost);
    assert!(store.record_async("rate", Outcome::success("1.1")).await.unwrap().is_first());
    let claims = store.claim_many_async(["a", "b", "a"]).await.unwrap();
    let mut ends = Vec::new();
    for (at, claim) in claims.into_iter().enumerate() {
        match claim.unwrap() {
            Claim::Acquired(claim) if at < 2 => ends.push((claim, Outcome::success("v"))),
            Claim::InProgress(_) if at == 2 => {}
            other => panic!("{at}: {other}"),
        }
    }
    let ended = store.complete_many_async(ends).await.unwrap();
    assert!(matches!(ended.as_slice(), [Ok(()), Ok(())]));
    let marks = store.mark_many_async(["a", "c"]).await.unwrap();
    assert_eq!(marks.iter().filter(|mark| mark.as_ref().unwrap().is_first()).count(), 1);
    let mut batch = store.batch();
    batch.forget("a").claim("a").claim("b").mark("d");
    let committed = batch.commit_async().await.unwrap();
    assert!(matches!(committed.forgotten.as_slice(), [Ok(true)]));
    let claims = committed.claims.as_slice();
    assert!(matches!(claims, [Ok(Claim::Acquired(_)), Ok(Claim::Completed(_))]), "{claims:?}");
    drop(committed);
    let forgotten = store.forget_many_async(["c", "never"]).await.unwrap();
    assert!(matches!(forgotten.as_slice(), [Ok(true), Ok(false)]));
    store.sync_async().await.unwrap();
    // With a claim in flight that doesn't end.
    let claim = acquired("left").await;
    let left = store.close_async(Duration::ZERO).await.unwrap();
    assert_eq!(left.len(), 1);
    drop(claim);
    assert_eq!(store.sync_async().await.unwrap_err().kind(), ErrorKind::Closed);
    let refused = store.mark_many_async(["e"]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
}

#[test]
fn every_twin_answers_on_each_executor() {
    let opened = || {
        let dir = tempfile::tempdir().unwrap();
        let before = store(&dir);
        let _marks = before.mark_many((0..100_u64).map(|n| ("old", n))).unwrap();
        before.close(MINUTE).unwrap();
        drop(before);
        (store(&dir), dir)
    };
    let (local, _dir) = opened();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(every_twin(local));
    let (local, _dir) = opened();
    let space = local.namespace("acme").namespace("plans");
    runtime.block_on(every_twin(space.version("model-7")));
    drop(local);
    let (local, _dir) = opened();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async { tokio::spawn(every_twin(local)).await.unwrap() });
    let (local, _dir) = opened();
    let space = local.namespace("acme");
    runtime.block_on(async { tokio::spawn(every_twin(space)).await.unwrap() });
    drop(local);
    let (local, _dir) = opened();
    futures_executor::block_on(every_twin(local));
    // Where a poll does the work itself, and on another backend.
    for space in [None, Some("acme")] {
        let in_space = |store: Store| space.map_or(store.clone(), |name| store.namespace(name));
        futures_executor::block_on(every_twin(in_space(Sim::new(1).open().unwrap())));
        let (local, _dir) = opened();
        let other = Store::with_backend(local, Policy::new());
        futures_executor::block_on(every_twin(in_space(other)));
    }
}

/// While the disk stands still, no twin holds up the executor that polls or drops it.
#[test]
fn no_twin_waits_for_the_disk_in_a_poll() {
    let sim = Sim::new(1);
    let store = sim.open_existing_or_new();
    let _first = store.mark("first").unwrap();
    let ticket = acquired(&store, "ticket").detach(MINUTE).unwrap();
    let claim = store.attach(&ticket).unwrap();
    let (ends, held) = (acquired(&store, "ends"), acquired(&store, "held"));
    let lost = asked(&store, "question");
    let detached = acquired(&store, "detached");
    let live = acquired(&store, "live");
    let Some(State::InProgress(seen)) = store.get("live").unwrap() else { panic!() };
    let (gate, slow) = stand_still(&sim, &store);
    let mut sent: Vec<Box<dyn FnMut(bool) -> bool>> = Vec::new();
    fn driven<T: 'static>(pending: Pending<T>) -> Box<dyn FnMut(bool) -> bool> {
        let mut pending = Some(pending);
        Box::new(move |waits| {
            let Some(mut sent) = pending.take() else { return true };
            if waits {
                return sent.wait().is_ok();
            }
            let waker = Waker::noop();
            match Pin::new(&mut sent).poll(&mut Context::from_waker(waker)) {
                Poll::Ready(told) => told.is_ok(),
                Poll::Pending => {
                    pending = Some(sent);
                    false
                }
            }
        })
    }
    sent.push(driven(claim.renew_async(MINUTE)));
    sent.push(driven(claim.save_progress_async("half")));
    sent.push(driven(ends.complete_async("v")));
    sent.push(driven(held.hold_async("why")));
    sent.push(driven(lost.hold_async("why")));
    sent.push(driven(detached.detach_async(MINUTE)));
    sent.push(driven(store.interrupt_async(&seen, "stuck")));
    sent.push(driven(store.forget_async("first")));
    sent.push(driven(store.claim_many_async(["a", "b"])));
    sent.push(driven(store.mark_many_async((0..200_u64).map(|n| ("many", n)))));
    let mut batch = store.batch();
    batch.mark("mixed").claim("mixed claim");
    sent.push(driven(batch.commit_async()));
    sent.push(driven(store.sync_async()));
    for _ in 0..100 {
        sent.iter_mut().for_each(|pending| {
            pending(false);
        });
    }
    drop(polled(store.claim_many_async(["dropped 1", "dropped 2"]), 3));
    drop(polled(store.mark_async("dropped 3"), 3));
    gate.open();
    for (at, pending) in sent.iter_mut().enumerate() {
        assert!(pending(true), "{at}");
    }
    assert!(slow.wait().unwrap().is_first());
    drop((claim, live));
    assert!(store.close(MINUTE).unwrap().is_empty());
}

/// A batch shares a write and a sync, sent or made.
#[test]
fn a_batch_that_is_sent_costs_one_sync() {
    let store = Sim::new(1).open().unwrap();
    let _first = store.mark("first").unwrap();
    let syncs = store.stats().syncs;
    let marks = store.mark_many_async((0..100_u64).map(|n| ("many", n))).wait().unwrap();
    assert!(marks.iter().all(|mark| mark.as_ref().unwrap().is_first()));
    assert_eq!(store.stats().syncs - syncs, 1);
    let syncs = store.stats().syncs;
    let marks =
        futures_executor::block_on(store.mark_many_async((100..200_u64).map(|n| ("many", n))));
    assert_eq!(marks.unwrap().len(), 100);
    assert_eq!(store.stats().syncs - syncs, 1);
    // One sync for two batches that are on their way together.
    let syncs = store.stats().syncs;
    let sent = [store.mark_many_async(["a", "b"]), store.mark_many_async(["c", "d"])];
    for sent in sent {
        assert_eq!(sent.wait().unwrap().len(), 2);
    }
    assert_eq!(store.stats().syncs - syncs, 1);
}

#[test]
fn a_batch_whose_sync_fails_is_indeterminate() {
    for polls in [false, true] {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let _first = store.mark("first").unwrap();
        let claim = acquired(&store, "k");
        let mut batch = store.batch();
        batch.complete(claim, "v").claim("l").mark("m");
        let sent = batch.commit_async();
        sim.fail_sync(0, DiskFault::Io);
        let told = if polls { futures_executor::block_on(sent) } else { sent.wait() };
        assert_eq!(told.unwrap_err().kind(), ErrorKind::Indeterminate);
        // Nobody has the claim.
        assert!(!matches!(store.get("l"), Ok(Some(State::InProgress(_)))));
        let refused = store.claim_many_async(["n"]).wait();
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Poisoned);
    }
}

/// What is saved last counts, in the log and in memory.
#[test]
fn progress_of_calls_in_flight_together_is_that_of_the_last() {
    let store = Sim::new(1).open().unwrap();
    let claim = acquired(&store, "k");
    let sent: Vec<_> = (0..20).map(|n| claim.save_progress_async(n.to_string().as_str())).collect();
    // Answered in another order.
    for saved in sent.into_iter().rev() {
        saved.wait().unwrap();
    }
    let shown = claim.progress().unwrap().decode::<String>().unwrap();
    let Some(State::InProgress(seen)) = store.get("k").unwrap() else { panic!() };
    let recorded = seen.progress().unwrap().decode::<String>().unwrap();
    assert_eq!((shown.as_str(), recorded.as_str()), ("19", "19"));
}

/// A call that is queued for the disk keeps its place: polled again, it only replaces its waker.
#[test]
fn a_call_that_is_polled_often_is_woken_once() {
    #[derive(Default)]
    struct Bell(AtomicU64);
    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let sim = Sim::new(1);
    let store = sim.open_existing_or_new();
    let _first = store.mark("first").unwrap();
    let (gate, slow) = stand_still(&sim, &store);
    let (bell, old) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let mut sent = store.mark_async("polled");
    let mut poll = |bell: &Arc<Bell>| {
        let waker = Waker::from(Arc::clone(bell));
        Pin::new(&mut sent).poll(&mut Context::from_waker(&waker))
    };
    assert!((0..1000).all(|_| poll(&old).is_pending() && poll(&bell).is_pending()));
    gate.open();
    assert!(slow.wait().unwrap().is_first());
    while poll(&bell).is_pending() {
        std::thread::yield_now();
    }
    // The last one to be polled; once more, if the sync that stood still didn't cover it.
    assert!(bell.0.load(Ordering::SeqCst) <= 2, "woken {} times", bell.0.load(Ordering::SeqCst));
    assert_eq!(old.0.load(Ordering::SeqCst), 0, "the waker was replaced");
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

/// Has the disk stand still in the sync of a mark.
pub fn stand_still(sim: &Sim, store: &Store) -> (SimGate, Pending<Mark>) {
    // A key that was marked before would need no sync.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // The background may sync a segment that it prepares: then the next sync is held instead.
    let held = (0..100).find_map(|_| {
        let gate = sim.hold_sync();
        let mut slow = store.mark_async(("slow", NEXT.fetch_add(1, Ordering::SeqCst)));
        match slow.wait_timeout(Duration::from_millis(20)) {
            None => Some((gate, slow)),
            Some(_) => {
                gate.open();
                None
            }
        }
    });
    let (gate, slow) = held.expect("the disk stands still");
    assert!(gate.wait_arrived(MINUTE));
    (gate, slow)
}

/// A disk that takes its time holds up neither the executor nor replays, and a wait with a deadline ends in time.
#[test]
fn a_slow_disk_holds_up_no_task() {
    let sim = Sim::new(1);
    let store = sim.open_existing_or_new();
    let _first = store.mark("first").unwrap();
    let (gate, mut slow) = stand_still(&sim, &store);
    assert!(polled(store.claim_async("first"), 1000).is_none_or(|told| told.is_ok()));
    gate.open();
    assert!(slow.wait_timeout(MINUTE).expect("the disk is back").unwrap().is_first());
    assert!(store.close(MINUTE).unwrap().is_empty());
}

pub trait OpenExistingOrNew {
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

/// A graceful shutdown: the last calls in flight were told that their fate is unknown, and the record of each was there
/// after the close. A hand-over lost its ticket.
#[test]
fn what_was_sent_before_a_close_is_answered() {
    for threads in [false, true] {
        let sim = Sim::new(1);
        let store = if threads { sim.open_existing_or_new() } else { sim.open().unwrap() };
        let _first = store.mark("first").unwrap();
        let guards = ["completed", "held", "aborted", "detached", "many", "batch"];
        let guards = guards.map(|key| acquired(&store, key));
        let [completed, held, aborted, detached, many, batched] = guards;
        let mark = store.mark_async("mark");
        let record = store.record_async("record", Outcome::success("v"));
        let ends =
            [completed.complete_async("v"), held.hold_async("why"), aborted.abort_async("busy")];
        let detached = detached.detach_async(MINUTE);
        let many = store.complete_many_async([(many, Outcome::success("v"))]);
        let mut batch = store.batch();
        batch.complete(batched, "v").mark("batch mark");
        let batch = batch.commit_async();
        let sync = store.sync_async();
        // It waits until the last of the claims is ended.
        assert!(store.close(MINUTE).unwrap().is_empty());
        assert!(mark.wait().unwrap().is_first());
        assert!(record.wait().unwrap().is_first());
        for mut end in ends {
            end.wait_timeout(MINUTE).expect("an answer").unwrap();
        }
        let ticket = futures_executor::block_on(detached).unwrap();
        assert!(matches!(many.wait().unwrap().as_slice(), [Ok(())]));
        let batch = futures_executor::block_on(batch).unwrap();
        assert!(matches!(batch.endings.as_slice(), [Ok(())]));
        sync.wait().unwrap();
        drop(store);
        let store = sim.open().unwrap();
        assert!(store.attach(&ticket).is_ok());
        for key in ["mark", "record", "completed", "many", "batch"] {
            assert!(matches!(store.get(key).unwrap(), Some(State::Completed(_))), "{key}");
        }
        assert!(matches!(store.get("held").unwrap(), Some(State::Held(_))));
        assert!(matches!(store.get("aborted").unwrap(), Some(State::Aborted(_))));
    }
}

/// A close ends what is in flight: a grant or a question that comes after that would have its caller work on a lost claim.
#[test]
fn a_grant_that_a_close_ended_is_not_handed_out() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let ticket = acquired(&store, "ticket").detach(MINUTE).unwrap();
    let (claim, attached) = (store.claim_async("claim"), store.attach_async(&ticket));
    let mut batch = store.batch();
    batch.claim("batch").mark("mark");
    let batch = batch.commit_async();
    store.close(Duration::ZERO).unwrap();
    assert_eq!(claim.wait().unwrap_err().kind(), ErrorKind::Indeterminate);
    // Not made, or taken back.
    let kind = attached.wait().unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::Closed | ErrorKind::Indeterminate), "{kind:?}");
    let mut batch = batch.wait().unwrap();
    assert!(batch.marks.pop().unwrap().unwrap().is_first());
    let claim = batch.claims.pop().unwrap();
    assert_eq!(claim.unwrap_err().kind(), ErrorKind::Indeterminate);
    drop(store);
    let store = sim.open().unwrap();
    assert!(matches!(store.claim("claim").unwrap(), Claim::Interrupted(_)));
    assert!(store.attach(&ticket).is_ok());
}

#[test]
fn what_a_close_could_not_make_durable_is_indeterminate() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let _first = store.mark("first").unwrap();
    let (mark, many) = (store.mark_async("mark"), store.mark_many_async(["a", "b"]));
    sim.fail_sync(0, DiskFault::Io);
    store.close(MINUTE).unwrap_err();
    assert_eq!(mark.wait().unwrap_err().kind(), ErrorKind::Indeterminate);
    assert_eq!(many.wait().unwrap_err().kind(), ErrorKind::Indeterminate);
}

/// The close is in its last sync: what was placed before it waits for that, and is woken.
#[test]
fn a_call_waits_for_the_close_that_makes_it_durable() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let _first = store.mark("first").unwrap();
    let mut sent: Vec<_> = (0..3_u64).map(|n| store.mark_async(n)).collect();
    let mut many = store.mark_many_async(["a", "b"]);
    std::thread::scope(|scope| {
        let gate = sim.hold_sync();
        let closing = store.clone();
        scope.spawn(move || assert!(closing.close(MINUTE).unwrap().is_empty()));
        assert!(gate.wait_arrived(MINUTE));
        assert!(sent[0].wait_timeout(Duration::ZERO).is_none());
        assert!(many.wait_timeout(Duration::ZERO).is_none());
        let slept = sent.pop().unwrap();
        let slept = scope.spawn(move || slept.wait());
        let mut timed = sent.pop().unwrap();
        let timed = scope.spawn(move || timed.wait_timeout(MINUTE).expect("it was not woken"));
        while store.get("first").is_ok() {
            std::thread::yield_now();
        }
        gate.open();
        assert!(slept.join().unwrap().unwrap().is_first());
        assert!(timed.join().unwrap().unwrap().is_first());
    });
    assert!(sent[0].wait_timeout(MINUTE).expect("it was not woken").unwrap().is_first());
    assert_eq!(many.wait_timeout(MINUTE).expect("it was not woken").unwrap().len(), 2);
}

/// Endings that were sent go on, also when all handles are dropped at once: those beyond what may be in flight are placed by
/// then.
#[test]
fn endings_that_were_sent_go_on_when_the_last_handle_is_dropped() {
    for (threads, batch) in [(false, false), (true, false), (false, true), (true, true)] {
        let sim = Sim::new(1);
        let builder = || Store::builder().result_bytes_max(8 << 20);
        drop(sim.open_with(builder()).unwrap());
        let store = sim.open_existing(builder(), threads).unwrap();
        let value = vec![7_u8; 250 << 10];
        let guards: Vec<_> = (0..40_u64).map(|n| acquired(&store, &n.to_string())).collect();
        match batch {
            false => {
                let sent = guards.into_iter().map(|guard| guard.complete_async(&value));
                drop(sent.collect::<Vec<_>>());
            }
            true => {
                let sent = guards
                    .into_iter()
                    .map(|guard| store.complete_many_async([(guard, Outcome::success(&value))]));
                drop(sent.collect::<Vec<_>>());
            }
        }
        drop(store);
        let store = sim.open_with(builder()).unwrap();
        for n in 0..40_u64 {
            let state = store.get(n.to_string()).unwrap();
            assert!(
                matches!(state, Some(State::Completed(_))),
                "{threads}, {batch}, {n}: {state:?}"
            );
        }
    }
}

/// A release that came when a segment was full had no space, and the key read interrupted: of a hundred requests that were
/// cancelled at a time, several.
#[test]
fn claims_that_are_dropped_at_once_are_all_released() {
    for (threads, many) in [(false, false), (true, false), (false, true), (true, true)] {
        let sim = Sim::small(1);
        let store = if threads { sim.open_existing_or_new() } else { sim.open().unwrap() };
        let _first = store.mark("first").unwrap();
        for round in 0..10_u64 {
            let keys = (0..200_u64).map(|n| (round, n));
            match many {
                true => drop(store.claim_many_async(keys)),
                false => drop(keys.map(|key| store.claim_async(key)).collect::<Vec<_>>()),
            }
        }
        // What is left to another thread is done by then.
        drop(store);
        let store = sim.open().unwrap();
        assert!(store.stats().opening.was_clean);
        for key in (0..10_u64).flat_map(|round| (0..200_u64).map(move |n| (round, n))) {
            let state = store.get(key).unwrap();
            let is_released = matches!(state, None | Some(State::Aborted(_)));
            assert!(is_released, "{threads}, {many}, {key:?}: {state:?}");
        }
    }
}
/// The lease passed, a claimant noticed that and left, and the key's record is in no memory when the owner drops its guard: the
/// drop read the record, on a task's executor, too.
#[test]
fn a_late_guard_that_is_dropped_reads_nothing() {
    for on_drop in [OnDrop::Interrupt, OnDrop::Abort] {
        let sim = Sim::small(1);
        let store = sim.open_existing_or_new();
        let op = Operation::new("k").lease(MINUTE).on_drop(on_drop);
        let Claim::Acquired(late) = store.claim(op).unwrap() else { panic!() };
        sim.advance(2 * MINUTE);
        drop(store.claim("k").unwrap());
        let gate = sim.hold_read(0);
        let (tell, told) = std::sync::mpsc::channel();
        let dropping = std::thread::spawn(move || {
            drop(late);
            tell.send(()).unwrap();
        });
        let is_dropped = told.recv_timeout(MINUTE).is_ok();
        gate.open();
        dropping.join().unwrap();
        assert!(is_dropped, "{on_drop:?}: the drop waits for a read");
        becomes(&store, "k", |state| match on_drop {
            OnDrop::Abort => matches!(state, Some(State::Aborted(_))),
            _ => matches!(state, Some(State::Interrupted(_))),
        });
    }
}

/// A thread of the store tried to place the ending, and had no space for it. Nobody takes the error, nor the guard in it.
#[test]
fn an_ending_that_is_refused_and_dropped_interrupts_the_claim() {
    for is_batch in [false, true] {
        let sim = Sim::small(1);
        let store = sim.open_existing_or_new();
        let op = Operation::new("k").reserve_bytes(0);
        let Claim::Acquired(claim) = store.claim(op).unwrap() else { panic!() };
        sim.set_disk_bytes_max(sim.disk_bytes());
        let full = (0..100_000_u64).find_map(|n| store.mark(n).err()).expect("a full disk");
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        let value = vec![7_u8; 12 << 10];
        match is_batch {
            false => is_refused_and_dropped(claim.complete_async(&value), Result::is_err),
            true => {
                let ends = [(claim, Outcome::success(&value))];
                type Told = onlyonce::Result<Vec<onlyonce::Result<()>>>;
                let refused = |told: &Told| told.as_ref().unwrap()[0].is_err();
                is_refused_and_dropped(store.complete_many_async(ends), refused);
            }
        }
        becomes(&store, "k", |state| matches!(state, Some(State::Interrupted(_))));
        assert_eq!(store.stats().in_flight, 0);
    }
}

/// Polls it once, waits until it is woken, and drops it.
fn is_refused_and_dropped<T>(
    mut ending: Pending<T>,
    is_refused: impl Fn(&onlyonce::Result<T>) -> bool,
) {
    let (woken, waker) = woken();
    match Pin::new(&mut ending).poll(&mut Context::from_waker(&waker)) {
        Poll::Pending => woken.recv_timeout(MINUTE).unwrap(),
        // The thread that found no space was done before the poll was: its error has the guard.
        Poll::Ready(told) => assert!(is_refused(&told)),
    }
}

/// A waker that tells a channel.
fn woken() -> (std::sync::mpsc::Receiver<()>, Waker) {
    struct Tells(std::sync::mpsc::Sender<()>);
    impl Wake for Tells {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }
    let (tell, told) = std::sync::mpsc::channel();
    (told, Waker::from(Arc::new(Tells(tell))))
}
