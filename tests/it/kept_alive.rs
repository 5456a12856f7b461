//! Claims that are renewed in the background: how long they last, who is told, and what that costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use onlyonce::backend::{Ask, Backend, Call, InFlight, Reply, Request, Sent};
use onlyonce::testing::Sim;
use onlyonce::{Claim, ClaimGuard, ErrorKind, Operation, Pending, Policy, Result, State, Store};

const SECOND: Duration = Duration::from_secs(1);

fn leased(store: &Store, key: &str, lease: Duration) -> ClaimGuard {
    match store.claim(Operation::new(key).lease(lease)).unwrap() {
        Claim::Acquired(guard) => guard,
        other => panic!("{other}"),
    }
}

fn pass(sim: &Sim, store: &Store, time: Duration) {
    sim.advance(time);
    store.step().unwrap();
}

/// Whether a future was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Polls once. `None`: it waits.
fn told<T>(pending: &mut Pending<T>, woken: &Arc<Woken>) -> Option<Result<T>> {
    let waker = Waker::from(Arc::clone(woken));
    match std::future::Future::poll(std::pin::Pin::new(pending), &mut Context::from_waker(&waker)) {
        Poll::Ready(told) => Some(told),
        Poll::Pending => None,
    }
}

#[test]
fn a_claim_that_is_kept_alive_lasts_until_the_ceiling() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = leased(&store, "k", 10 * SECOND);
    // No multiple of the time between two renewals: the last one has to be cut.
    claim.keep_alive(23 * SECOND).unwrap();
    let (mut ended, woken) = (claim.ended(), Arc::new(Woken::default()));
    assert!(told(&mut ended, &woken).is_none());
    for second in 1..23 {
        pass(&sim, &store, SECOND);
        assert!(claim.is_live(), "after {second} s");
        assert!(matches!(store.claim("k").unwrap(), Claim::InProgress(_)), "after {second} s");
        if woken.0.swap(false, Ordering::SeqCst) {
            assert!(told(&mut ended, &woken).is_none(), "after {second} s");
        }
    }
    // The last renewal does not reach beyond it.
    pass(&sim, &store, SECOND);
    assert!(!claim.is_live());
    assert!(woken.0.load(Ordering::SeqCst), "its owner is told");
    told(&mut ended, &woken).expect("an answer").unwrap();
    assert!(matches!(store.claim("k").unwrap(), Claim::Interrupted(_)));
    // Nothing renews it any more.
    for _ in 0..30 {
        pass(&sim, &store, SECOND);
    }
    assert!(!claim.is_live());
}

#[test]
fn a_claim_without_a_lease_lasts_until_the_ceiling_too() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let Claim::Acquired(claim) = store.claim("k").unwrap() else { panic!() };
    let refused = claim.keep_alive(Duration::ZERO).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.to_string().contains("ceiling"), "{refused}");
    claim.keep_alive(10 * SECOND).unwrap();
    pass(&sim, &store, 9 * SECOND);
    assert!(claim.is_live());
    // A further call begins anew, and the one before ends nothing.
    claim.keep_alive(10 * SECOND).unwrap();
    pass(&sim, &store, 9 * SECOND);
    assert!(claim.is_live());
    pass(&sim, &store, SECOND);
    assert!(!claim.is_live());
}

#[test]
fn an_owner_that_is_kept_alive_is_told_of_a_revocation() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let claim = leased(&store, "k", 10 * SECOND);
    claim.keep_alive(3600 * SECOND).unwrap();
    let (mut ended, woken) = (claim.ended(), Arc::new(Woken::default()));
    assert!(told(&mut ended, &woken).is_none());
    let Some(State::InProgress(seen)) = store.get("k").unwrap() else { panic!() };
    assert!(store.interrupt(&seen, "stuck").unwrap());
    assert!(woken.0.load(Ordering::SeqCst) && !claim.is_live());
    told(&mut ended, &woken).expect("an answer").unwrap();
    // It isn't got back behind the operator's back.
    for _ in 0..4 {
        pass(&sim, &store, 5 * SECOND);
        assert!(!claim.is_live());
        assert!(matches!(store.get("k").unwrap(), Some(State::Interrupted(_))));
    }
}

#[test]
fn renewals_end_with_the_claim_or_its_guard() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let ends: [fn(ClaimGuard); 3] = [
        |claim| claim.complete("v").unwrap(),
        drop,
        |claim| {
            // A handle keeps nothing alive.
            let handle = claim.handle();
            drop(claim);
            assert_eq!(handle.keep_alive(SECOND).unwrap_err().kind(), ErrorKind::ClaimLost);
        },
    ];
    for (at, end) in ends.into_iter().enumerate() {
        let key = format!("key {at}");
        let claim = leased(&store, &key, 10 * SECOND);
        claim.keep_alive(3600 * SECOND).unwrap();
        end(claim);
        let before = store.get(key.as_str()).unwrap().map(|state| state.to_string());
        assert!(!before.as_ref().is_some_and(|state| state.contains("in progress")), "{before:?}");
        for _ in 0..4 {
            pass(&sim, &store, 5 * SECOND);
        }
        assert!(!matches!(store.get(key.as_str()).unwrap(), Some(State::InProgress(_))));
    }
    // Nor is the store kept open.
    let claim = leased(&store, "last", 10 * SECOND);
    claim.keep_alive(3600 * SECOND).unwrap();
    drop((claim, store));
    sim.open().unwrap();
}

/// Its lease is stored, so the renewals are, too: another process would see it lapse otherwise.
#[test]
fn a_detached_claim_is_renewed_in_the_log() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap().with_policy(Policy::new().lease(10 * SECOND));
    let Claim::Acquired(claim) = store.claim("job").unwrap() else { panic!() };
    let ticket = claim.detach(10 * SECOND).unwrap();
    let claim = store.attach(&ticket).unwrap();
    claim.keep_alive(60 * SECOND).unwrap();
    for _ in 0..5 {
        pass(&sim, &store, 5 * SECOND);
        assert!(claim.is_live());
    }
    // Left as it was: its lease of 10 s runs since the last renewal.
    sim.kill();
    drop((claim, store));
    let store = sim.open().unwrap();
    assert!(matches!(store.claim("job").unwrap(), Claim::InProgress(_)));
    store.attach(&ticket).unwrap().complete("done").unwrap();
}

/// On a store without threads `step` renews all of them, so none takes a thread.
#[test]
fn many_thousand_are_kept_alive_by_one_step() {
    let sim = Sim::new(1);
    let store = sim.open().unwrap();
    let ops = (0..5000_u64).map(|n| Operation::new(n).lease(10 * SECOND));
    let claims: Vec<_> = store
        .claim_many(ops)
        .unwrap()
        .into_iter()
        .map(|claim| match claim.unwrap() {
            Claim::Acquired(claim) => claim,
            other => panic!("{other}"),
        })
        .collect();
    claims.iter().for_each(|claim| claim.keep_alive(100 * SECOND).unwrap());
    let records = store.stats().records;
    for _ in 0..19 {
        pass(&sim, &store, 5 * SECOND);
        assert!(claims.iter().all(|claim| claim.is_live()));
    }
    // What the background wrote meanwhile.
    let written = store.stats().records - records;
    assert!(written < 100, "{written} records: renewals are written");
    pass(&sim, &store, 5 * SECOND);
    assert!(!claims.iter().any(|claim| claim.is_live()));
}

#[test]
fn a_close_ends_what_is_kept_alive() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_or_create(dir.path().join("keys")).unwrap();
    let claims: Vec<_> =
        (0..100).map(|n| leased(&store, &format!("key {n}"), 10 * SECOND)).collect();
    claims.iter().for_each(|claim| claim.keep_alive(3600 * SECOND).unwrap());
    assert_eq!(store.close(Duration::ZERO).unwrap().len(), 100);
    assert!(!claims.iter().any(|claim| claim.is_live()));
    drop((claims, store));
    Store::open(dir.path().join("keys")).unwrap();
}

/// Passes on all calls, and reports renewals.
struct Renewals {
    store: Store,
    tell: Sender<()>,
}

impl Backend for Renewals {
    fn send(&self, request: Request) -> Box<dyn Sent> {
        if matches!(request.ask, Ask::Call(Call::Renew { .. }, _)) {
            let _ = self.tell.send(());
        }
        self.store.send(request)
    }
    fn result_bytes_max(&self) -> u32 {
        self.store.result_bytes_max()
    }
    fn secret(&self) -> [u8; 32] {
        self.store.secret()
    }
    fn check(&self) -> Result<()> {
        self.store.check()
    }
    fn sync(&self) -> Result<()> {
        Backend::sync(&self.store)
    }
    fn drain(&self) {
        self.store.drain();
    }
    fn close(&self, deadline: Duration) -> Result<Vec<InFlight>> {
        Backend::close(&self.store, deadline)
    }
}

/// Renewals come to the store once they are let go on, or are refused for lack of space.
struct Slow {
    store: Store,
    held: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
}

impl Slow {
    fn open(sim: &Sim) -> (Store, Arc<AtomicBool>, Arc<AtomicU64>) {
        let (held, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let slow = Slow {
            store: sim.open().unwrap(),
            held: Arc::clone(&held),
            refused: Arc::clone(&refused),
        };
        (Store::with_backend(slow, Policy::new()), held, refused)
    }
}

/// A renewal that is on its way.
struct Late {
    store: Store,
    request: Option<Request>,
    held: Arc<AtomicBool>,
    sent: Option<Box<dyn Sent>>,
}

impl Late {
    /// `None`: it is still on its way.
    fn arrived(&mut self) -> Option<&mut Box<dyn Sent>> {
        if !self.held.load(Ordering::SeqCst) {
            if let Some(request) = self.request.take() {
                self.sent = Some(self.store.send(request));
            }
        }
        self.sent.as_mut()
    }
}

impl Sent for Late {
    fn wait(mut self: Box<Self>) -> Result<Reply> {
        self.arrived().expect("it is let go on before anybody waits");
        self.sent.take().unwrap().wait()
    }
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Reply>> {
        self.arrived().map_or(Poll::Pending, |sent| sent.poll(context))
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.arrived();
    }
}

/// There is no space.
struct Full;

impl Sent for Full {
    fn wait(self: Box<Self>) -> Result<Reply> {
        Err(onlyonce::Error::with_kind(ErrorKind::StorageFull, "no space"))
    }
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<Result<Reply>> {
        Poll::Ready(Err(onlyonce::Error::with_kind(ErrorKind::StorageFull, "no space")))
    }
}

impl Backend for Slow {
    fn send(&self, request: Request) -> Box<dyn Sent> {
        let is_renewal = matches!(request.ask, Ask::Call(Call::Renew { .. }, _));
        let (store, held) = (self.store.clone(), Arc::clone(&self.held));
        let refuses = |left: u64| left.checked_sub(1);
        match is_renewal {
            true if self
                .refused
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, refuses)
                .is_ok() =>
            {
                Box::new(Full)
            }
            true => Box::new(Late { store, request: Some(request), held, sent: None }),
            false => store.send(request),
        }
    }
    fn result_bytes_max(&self) -> u32 {
        self.store.result_bytes_max()
    }
    fn secret(&self) -> [u8; 32] {
        self.store.secret()
    }
    fn check(&self) -> Result<()> {
        self.store.check()
    }
    fn sync(&self) -> Result<()> {
        Backend::sync(&self.store)
    }
    fn drain(&self) {
        self.store.drain();
    }
    fn close(&self, deadline: Duration) -> Result<Vec<InFlight>> {
        Backend::close(&self.store, deadline)
    }
}

/// A guard was dropped while a renewal was on its way: that came to an interrupted key, and made it a claim that nobody could end.
#[test]
fn a_renewal_that_comes_after_the_guard_s_drop_leaves_no_claim_behind() {
    for is_dropped in [false, true] {
        let (store, held, _) = Slow::open(&Sim::new(1));
        let claim = leased(&store, "k", 10 * SECOND);
        held.store(true, Ordering::SeqCst);
        let renewal = claim.handle().renew_async(10 * SECOND);
        drop(claim);
        assert!(matches!(store.get("k").unwrap(), Some(State::Interrupted(_))));
        held.store(false, Ordering::SeqCst);
        match is_dropped {
            true => drop(renewal),
            false => assert_eq!(renewal.wait().unwrap_err().kind(), ErrorKind::ClaimLost),
        }
        let state = store.get("k").unwrap();
        assert!(matches!(state, Some(State::Interrupted(_))), "{is_dropped}: {state:?}");
    }
}

/// The disk was full for a moment: the claim lapsed, though most of its lease was left.
#[test]
fn a_claim_is_kept_alive_though_a_renewal_finds_no_space() {
    let (store, _, refused) = Slow::open(&Sim::new(1));
    refused.store(3, Ordering::SeqCst);
    let claim = leased(&store, "k", Duration::from_millis(400));
    claim.keep_alive(3600 * SECOND).unwrap();
    let mut ended = claim.ended();
    assert!(ended.wait_timeout(2 * SECOND).is_none(), "it has ended");
    assert_eq!(refused.load(Ordering::SeqCst), 0, "three renewals were refused");
    assert!(claim.is_live());
    assert!(matches!(store.get("k").unwrap(), Some(State::InProgress(_))));
}

/// There a thread of the store keeps the time, by the real clock.
#[test]
fn claims_on_another_backend_are_kept_alive_too() {
    let (tell, told) = channel();
    let embedded = Sim::new(1).open().unwrap();
    let store = Store::with_backend(Renewals { store: embedded, tell }, Policy::new());
    let claims = ["a", "b"].map(|key| leased(&store, key, Duration::from_millis(20)));
    claims.iter().for_each(|claim| claim.keep_alive(3600 * SECOND).unwrap());
    for _ in 0..10 {
        told.recv_timeout(60 * SECOND).expect("a renewal");
    }
    drop((claims, store));
    // The thread ends with the store, and with it the backend.
    while told.recv_timeout(60 * SECOND).is_ok() {}
}
