//! Claims that wait for their key, and owners that wait for the end of their claim: who is woken, by what, and in which order.
//!
//! On the simulated store no thread helps and no time passes by itself: a future is polled by hand, and must have been woken
//! before.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{
    Abort, Claim, ClaimGuard, ErrorKind, Operation, Pending, Policy, Resolution, Result, State,
    Store,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Counts how often it was woken.
#[derive(Default)]
struct Bell(AtomicU64);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A future that is polled by hand, and only if it was woken.
struct Task<T> {
    pending: Option<Pending<T>>,
    bell: Arc<Bell>,
    heard: u64,
}

impl<T> Task<T> {
    /// Polls once: the call is on its way.
    fn new(pending: Pending<T>) -> Self {
        let mut task = Task { pending: Some(pending), bell: Arc::default(), heard: 0 };
        assert!(task.poll().is_none(), "answered at once");
        task
    }

    fn is_woken(&self) -> bool {
        self.bell.0.load(Ordering::SeqCst) > self.heard
    }

    fn poll(&mut self) -> Option<Result<T>> {
        // What wakes it while it is polled has it polled once more.
        loop {
            self.heard = self.bell.0.load(Ordering::SeqCst);
            let waker = Waker::from(Arc::clone(&self.bell));
            let pending = self.pending.as_mut().expect("no answer yet");
            let told = Pin::new(pending).poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(told) = told {
                self.pending = None;
                return Some(told);
            }
            if !self.is_woken() {
                return None;
            }
        }
    }

    /// The answer, for which it must have been woken.
    fn answer(&mut self) -> Result<T> {
        assert!(self.is_woken(), "it was not woken");
        self.poll().expect("no answer")
    }

    fn waits(&mut self) -> bool {
        !self.is_woken() || self.poll().is_none()
    }
}

fn acquired(store: &Store, key: &str) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(guard) => guard,
        other => panic!("{other}"),
    }
}

fn waiter(store: &Store, key: &str) -> Task<Claim> {
    Task::new(store.claim_wait_async(key, MINUTE))
}

#[test]
fn every_claimant_that_waits_is_answered_by_a_result() {
    let store = Sim::new(1).open().unwrap();
    let guard = acquired(&store, "k");
    let mut waiters: Vec<_> = (0..10).map(|_| waiter(&store, "k")).collect();
    let mut other = {
        let _other = acquired(&store, "l");
        std::mem::forget(_other);
        waiter(&store, "l")
    };
    guard.complete("v").unwrap();
    for waiter in &mut waiters {
        let Claim::Completed(done) = waiter.answer().unwrap() else { panic!() };
        assert_eq!(&done.result()[..], b"v");
    }
    assert!(other.waits(), "another key's claimant was answered");
    // A recorded failure, a hold and an operator's word are answers for all, too.
    let endings: [fn(&Store, ClaimGuard); 3] = [
        |_, guard| guard.fail("declined").unwrap(),
        |_, guard| guard.hold("it needs a person").unwrap(),
        |store, guard| {
            guard.hold("it needs a person").unwrap();
            let Some(State::Held(held)) = store.get("m").unwrap() else { panic!() };
            let outcome = onlyonce::Outcome::success("found");
            assert!(store.resolve(&held, Resolution::Record(outcome)).unwrap());
        },
    ];
    for end in endings {
        let store = Sim::new(1).open().unwrap();
        let guard = acquired(&store, "m");
        let mut waiters: Vec<_> = (0..3).map(|_| waiter(&store, "m")).collect();
        end(&store, guard);
        for waiter in &mut waiters {
            let told = waiter.answer().unwrap();
            assert!(matches!(told, Claim::Failed(_) | Claim::Held(_) | Claim::Completed(_)));
        }
    }
}

#[test]
fn a_key_that_is_free_goes_to_the_one_that_waited_longest() {
    let store = Sim::new(1).open().unwrap();
    let guard = acquired(&store, "k");
    let mut waiters: Vec<_> = (0..4).map(|_| waiter(&store, "k")).collect();
    guard.abort("busy").unwrap();
    for at in 0..4_usize {
        for later in &mut waiters[at + 1..] {
            assert!(later.waits(), "it came before its turn");
        }
        let Claim::Acquired(guard) = waiters[at].answer().unwrap() else { panic!("{at}") };
        assert_eq!(guard.attempt(), 2 + at as u32);
        guard.abort("busy").unwrap();
    }
}

#[test]
fn one_that_leaves_hands_its_turn_on() {
    let store = Sim::new(1).open().unwrap();
    let guard = acquired(&store, "k");
    let mut waiters: Vec<_> = (0..3).map(|_| waiter(&store, "k")).collect();
    guard.abort("busy").unwrap();
    // Woken, and gone before it looked.
    drop(waiters.remove(0));
    let Claim::Acquired(guard) = waiters[0].answer().unwrap() else { panic!() };
    // Gone while it waits, in the middle.
    drop(waiters.pop());
    let mut last = waiter(&store, "k");
    guard.abort("busy").unwrap();
    assert!(matches!(last.answer().unwrap(), Claim::Acquired(_)));
}

#[test]
fn an_interruption_is_asked_of_one_and_its_decision_lets_the_others_go_on() {
    let store = Sim::new(1).open().unwrap();
    drop_a_claim_while_two_wait(&store, |lost| lost.take_over().unwrap().complete("v").unwrap());
    drop_a_claim_while_two_wait(&store, |lost| lost.hold("unclear").unwrap());
    // One that doesn't decide: the next one is asked.
    let guard = acquired(&store, "dropped");
    let (mut first, mut second) = (waiter(&store, "dropped"), waiter(&store, "dropped"));
    drop(guard);
    let asked = first.answer().unwrap();
    assert!(matches!(asked, Claim::Interrupted(_)));
    assert!(second.waits());
    drop(asked);
    assert!(matches!(second.answer().unwrap(), Claim::Interrupted(_)));
}

fn drop_a_claim_while_two_wait(store: &Store, decide: impl FnOnce(onlyonce::Interrupted)) {
    let key = format!("key {}", store.stats().keys);
    let guard = acquired(store, &key);
    let (mut first, mut second) = (waiter(store, &key), waiter(store, &key));
    drop(guard);
    let Claim::Interrupted(lost) = first.answer().unwrap() else { panic!() };
    assert!(second.waits(), "two were asked");
    decide(lost);
    assert!(matches!(second.answer().unwrap(), Claim::Completed(_) | Claim::Held(_)));
}

#[test]
fn a_lease_a_question_and_a_delay_end_by_time() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let op = || Operation::new("k").lease(10 * SECOND);
    let Claim::Acquired(_owner) = store.claim(op()).unwrap() else { panic!() };
    let mut waiters: Vec<_> =
        (0..3).map(|_| Task::new(store.claim_wait_async(op(), MINUTE))).collect();
    let pass = |seconds: u32| {
        sim.advance(seconds * SECOND);
        store.step().unwrap();
    };
    pass(9);
    assert!(waiters.iter_mut().all(Task::waits));
    pass(1);
    let asked = waiters[0].answer().unwrap();
    assert!(matches!(asked, Claim::Interrupted(_)));
    pass(9);
    assert!(waiters[1].waits() && waiters[2].waits());
    // The claimant that was asked doesn't decide in its time.
    pass(1);
    let Claim::Interrupted(lost) = waiters[1].answer().unwrap() else { panic!() };
    let guard = lost.not_applied().unwrap();
    guard.abort(Abort::new("busy").retry_in(5 * SECOND)).unwrap();
    pass(4);
    assert!(waiters[2].waits());
    pass(1);
    assert!(matches!(waiters[2].answer().unwrap(), Claim::Acquired(_)));
}

/// It would wait until the old time, if nothing woke it.
#[test]
fn a_lease_that_is_renewed_is_waited_for_anew() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let op = Operation::new("k").lease(50 * SECOND);
    let Claim::Acquired(owner) = store.claim(&op).unwrap() else { panic!() };
    let mut waiting = waiter(&store, "k");
    owner.renew(SECOND).unwrap();
    assert!(waiting.waits());
    sim.advance(SECOND);
    store.step().unwrap();
    assert!(matches!(waiting.answer().unwrap(), Claim::Interrupted(_)));
}

#[test]
fn when_the_time_is_up_the_answer_says_what_is_known() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let _owner = acquired(&store, "k");
    let mut waiting = Task::new(store.claim_wait_async("k", 2 * SECOND));
    sim.advance(2 * SECOND);
    let next = store.step().unwrap();
    let _ = next;
    let Claim::InProgress(attempt) = waiting.answer().unwrap() else { panic!() };
    assert_eq!(attempt.number(), 1);
    acquired(&store, "l").abort(Abort::new("busy").retry_in(MINUTE)).unwrap();
    let mut waiting = Task::new(store.claim_wait_async("l", 2 * SECOND));
    sim.advance(2 * SECOND);
    store.step().unwrap();
    let Claim::Delayed(attempt) = waiting.answer().unwrap() else { panic!() };
    assert_eq!(attempt.retry_in(), Some(58 * SECOND));
    // Without time to wait, it is a claim.
    assert!(matches!(store.claim_wait("l", Duration::ZERO).unwrap(), Claim::Delayed(_)));
}

#[test]
fn a_thread_that_waits_is_woken_by_the_ending() {
    let store = Sim::new(1).open().unwrap();
    let guard = acquired(&store, "k");
    let waiters: Vec<_> = (0..8)
        .map(|_| store.clone())
        .map(|store| std::thread::spawn(move || store.claim_wait("k", 300 * SECOND).unwrap()))
        .collect();
    // All of them wait, as far as can be seen.
    while !waiters.iter().all(|waiter| !waiter.is_finished()) {
        std::thread::yield_now();
    }
    guard.complete("v").unwrap();
    for waiter in waiters {
        assert!(matches!(waiter.join().unwrap(), Claim::Completed(_)));
    }
    // The time of a thread is real, even where the store's stands still.
    let _owner = acquired(&store, "l");
    let told = store.claim_wait("l", Duration::from_millis(5)).unwrap();
    assert!(matches!(told, Claim::InProgress(_)));
}

#[test]
fn a_close_lets_those_that_wait_go_and_waits_for_none() {
    let store = Sim::new(1).open().unwrap();
    let guard = acquired(&store, "k");
    let mut waiting = waiter(&store, "k");
    let mut ended = Task::new(guard.ended());
    let blocked = {
        let store = store.clone();
        std::thread::spawn(move || store.claim_wait("k", 300 * SECOND))
    };
    let left = store.close(Duration::ZERO).unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(waiting.answer().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(blocked.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
    ended.answer().unwrap();
    drop(guard);
}

/// The waiter was told when its whole time was up.
#[test]
fn a_drain_lets_those_that_wait_go() {
    let store = Sim::new(1).open().unwrap();
    let guard = acquired(&store, "k");
    acquired(&store, "delayed").abort(Abort::new("busy").retry_in(MINUTE)).unwrap();
    let mut waiting = [waiter(&store, "k"), waiter(&store, "k"), waiter(&store, "delayed")];
    let mut ended = Task::new(guard.ended());
    let blocked = {
        let store = store.clone();
        std::thread::spawn(move || store.claim_wait("k", 300 * SECOND))
    };
    store.drain();
    for waiting in &mut waiting {
        assert_eq!(waiting.answer().unwrap_err().kind(), ErrorKind::Closed);
    }
    assert_eq!(blocked.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
    // The owner goes on.
    assert!(ended.waits() && guard.is_live());
    guard.complete("v").unwrap();
    ended.answer().unwrap();
}

/// The waiter slept on, while a plain claim of the same key was granted.
#[test]
fn a_dropped_namespace_lets_those_that_wait_for_its_keys_go() {
    let drops: [fn(&Store); 2] = [
        |store| assert!(store.namespace("n").forget_all().unwrap()),
        |store| assert!(store.namespace("n").version("2").mark("other").unwrap().is_first()),
    ];
    for drops in drops {
        let store = Sim::new(1).open().unwrap();
        let _elsewhere = acquired(&store, "k");
        let mut elsewhere = waiter(&store, "k");
        let old = store.namespace("n").version("1");
        acquired(&old, "k").abort(Abort::new("busy").retry_in(MINUTE)).unwrap();
        let mut waiting = [waiter(&old, "k"), waiter(&old, "k")];
        drops(&store);
        for waiting in &mut waiting {
            assert_eq!(waiting.answer().unwrap_err().kind(), ErrorKind::Superseded);
        }
        assert!(elsewhere.waits());
    }
}

#[test]
fn an_owner_is_told_of_the_end_of_its_claim() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let ends: [fn(&Sim, &Store, ClaimGuard); 6] = [
        |_, _, guard| guard.complete("v").unwrap(),
        |_, _, guard| drop(guard),
        |_, _, guard| drop(guard.detach(MINUTE).unwrap()),
        |_, store, guard| {
            let Some(State::InProgress(seen)) = store.get(guard.key().clone()).unwrap() else {
                panic!()
            };
            assert!(store.interrupt(&seen, "stuck").unwrap());
            assert_eq!(guard.complete("v").unwrap_err().kind(), ErrorKind::ClaimLost);
        },
        |_, store, guard| {
            store.forget_claimed(guard.key().clone(), guard.token()).unwrap();
            drop(guard);
        },
        |sim, store, guard| {
            guard.renew(SECOND).unwrap();
            sim.advance(SECOND);
            store.step().unwrap();
            assert!(!guard.is_live());
            guard.complete("late").unwrap();
        },
    ];
    for (at, end) in ends.into_iter().enumerate() {
        let guard = acquired(&store, &format!("key {at}"));
        let mut ended = Task::new(guard.ended());
        guard.save_progress("half").unwrap();
        assert!(ended.waits() && guard.is_live(), "{at}");
        let handle = guard.handle();
        end(&sim, &store, guard);
        ended.answer().unwrap();
        assert!(!handle.is_live(), "{at}");
        // Once it is over, it is over.
        handle.ended().wait().unwrap();
    }
}

/// So that a task may ask: it must not wait for a slow disk.
#[test]
fn whether_a_claim_is_live_takes_no_read() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let claim = acquired(&store, "k");
    let Some(State::InProgress(seen)) = store.get("k").unwrap() else { panic!() };
    assert!(store.interrupt(&seen, "stuck").unwrap());
    let Claim::Interrupted(lost) = store.claim("k").unwrap() else { panic!() };
    lost.take_over().unwrap().complete("v").unwrap();
    drop(store.claim("another").unwrap()); // a record that is not durable yet
    assert_eq!(sim.calls_of(|| assert!(!claim.is_live())), []);
}

#[test]
fn a_waiting_claim_that_is_dropped_leaves_nothing() {
    let store = Sim::new(1).open().unwrap();
    let guard = acquired(&store, "k");
    let waiting = waiter(&store, "k");
    drop(waiting);
    guard.abort("busy").unwrap();
    assert!(matches!(store.get("k").unwrap(), Some(State::Aborted(_))));
    let guard = acquired(&store, "k");
    // Granted, and dropped before the grant was taken: it was no attempt.
    let mut waiting = waiter(&store, "k");
    guard.abort("busy").unwrap();
    assert!(waiting.is_woken());
    let pending = waiting.pending.take().unwrap();
    drop(pending);
    let guard = acquired(&store, "k");
    assert_eq!(guard.attempt(), 3);
}

/// A grant that nobody took is released, and is no attempt that a limit counts.
#[test]
fn an_undelivered_grant_counts_for_no_limit() {
    let store = Sim::new(1).open().unwrap();
    let _first = store.mark("first").unwrap();
    let op = || Operation::new("k").attempts_max(1);
    drop(store.claim_async(op()));
    let Claim::Acquired(guard) = store.claim(op()).unwrap() else { panic!("it was counted") };
    assert_eq!(guard.attempt(), 2);
    guard.abort("busy").unwrap();
    assert!(matches!(store.claim(op()).unwrap(), Claim::Held(_)));
}

/// A call came upon a lease that had passed, and recorded that the attempt is interrupted. Nobody who waited was told.
#[test]
fn waiters_are_woken_by_the_record_of_a_lapse() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let late = acquired(&store.with_policy(Policy::new().lease(SECOND)), "k");
    let mut tasks = [(); 2].map(|()| Task::new(store.claim_wait_async("k", 60 * MINUTE)));
    sim.advance(2 * SECOND);
    assert!(!tasks.iter().any(Task::is_woken), "nobody keeps the time here");
    assert!(matches!(store.mark("k").unwrap(), onlyonce::Mark::Interrupted(_)));
    assert!(tasks[0].is_woken());
    let Some(Ok(Claim::Interrupted(question))) = tasks[0].poll() else { panic!() };
    drop((question, late));
}
