//! The programs that the API was designed by: as easy to write as this, or the API has got worse.
//!
//! Each is what a user would write, run for its effect. The functions they call are at the end.

use onlyonce::admin::StateKind;
use onlyonce::testing::Sim;
use onlyonce::value::{Codec, Typed};
use onlyonce::{
    Abort, Claim, ClaimGuard, ClaimHandle, Durability, Error, ErrorKind, Fingerprint, Mark, OnDrop,
    OnInterrupted, Operation, Outcome, Pending, Policy, Reconciled, Resolution, Run, State, Step,
    Store, Verdict,
};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

type Any = Box<dyn std::error::Error>;

const SEC: u32 = 1;
const DAY: Duration = Duration::from_secs(86_400);

fn seconds(n: u32) -> Duration {
    Duration::from_secs(u64::from(n * SEC))
}

// 1. hello

fn hello(dir: &Path) -> Result<String, Any> {
    let store = Store::open_or_create(dir)?;
    let claim = match store.claim("task-42")? {
        Claim::Acquired(claim) => claim,
        Claim::Interrupted(lost) => lost.take_over()?, // an attempt died half-way; we choose: again
        Claim::Completed(done) => return Ok(format!("done before: {}", done.decode::<String>()?)),
        other => return Err(other.refused().into()), // "in progress: attempt 1 by host-3, 21 s left"
    };
    claim.complete(&work()?)?; // `?` on work: the key is left interrupted, not free
    Ok("done".to_owned())
}

#[test]
fn program_1_hello() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    WORK.set(Some("refused"));
    assert!(hello(&keys).is_err());
    let left = Store::open(&keys).unwrap().get("task-42").unwrap();
    assert!(matches!(left, Some(State::Interrupted(_))), "{left:?}");
    WORK.set(None);
    assert_eq!(hello(&keys).unwrap(), "done");
    assert_eq!(hello(&keys).unwrap(), "done before: worked");
    let store = Store::open(&keys).unwrap();
    let Some(State::Completed(done)) = store.get("task-42").unwrap() else { panic!() };
    assert_eq!(done.attempt(), 2);
}

// 2. run

fn hello_run(store: &Store) -> Result<String, Any> {
    Ok(store.run("task-42", |_claim| work())?.value()?)
}

#[test]
fn program_2_run() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    WORK.set(Some("refused"));
    assert!(hello_run(&store).is_err());
    WORK.set(None);
    // The work may have succeeded before the failure, so nothing runs it again unasked.
    let refused = hello_run(&store).unwrap_err().to_string();
    assert!(refused.starts_with("interrupted: attempt 1"), "{refused}");
    assert_eq!(WORKED.get(), 1);
    let store = store.with_policy(Policy::new().on_interrupted(OnInterrupted::Retry));
    for _ in 0..2 {
        assert_eq!(hello_run(&store).unwrap(), "worked");
    }
    assert_eq!(WORKED.get(), 2);
}

// 3. HTTP handler

async fn charge(store: Store, req: Req) -> Result<Resp, Error> {
    let op = Operation::new((req.tenant, "POST", req.path, req.key))
        .fingerprint(Fingerprint::of(req.body))
        .lease(seconds(30))
        .retention(DAY)
        .on_interrupted(OnInterrupted::Hold)
        .on_drop(OnDrop::Abort);
    match store.claim_async(op).await? {
        Claim::Acquired(claim) => {
            let Some(amount) = parse(req.body) else { return Ok(reply(400, b"amount?")) }; // dropped: freed
            claim.on_drop(OnDrop::Interrupt); // from here on a hang-up means: unknown
            let resp = psp(amount, &claim.downstream_key("psp")).await?;
            claim.record_async(Outcome::success(&resp.body).meta("status", resp.status)).await?;
            Ok(resp)
        }
        Claim::Completed(done) => {
            let status = done.meta("status").and_then(|s| s.parse().ok()).unwrap_or(200);
            Ok(reply(status, done.result()))
        }
        Claim::InProgress(a) => {
            let retry_after = a.lease_left().map(|left| left.as_secs().max(1));
            Ok(Resp { retry_after, ..reply(409, b"outstanding") })
        }
        Claim::Mismatch(_) => Ok(reply(422, b"key already used")),
        Claim::Expired(_) => Ok(reply(410, b"too late to retry")),
        other => Ok(reply(503, other.to_string().as_bytes())), // Held, Delayed, and later variants
    }
}

#[test]
fn program_3_http_handler() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let req = Req { tenant: "acme", path: "/charges", key: "k-1", body: b"17" };
    let charge = |req: &Req| futures_executor::block_on(charge(store.clone(), *req));
    let status = |req: &Req| charge(req).unwrap().status;
    assert_eq!(status(&Req { body: b"seventeen", ..req }), 400);
    assert_eq!((status(&req), status(&req), CHARGED.get()), (201, 201, 17));
    assert_eq!(status(&Req { body: b"18", ..req }), 422);
    // A client's key that spells another's parts is not that one's.
    assert_eq!(status(&Req { tenant: "acm", key: "ek-1", ..req }), 201);

    let slow = Req { key: "k-2", body: b"0", ..req };
    assert!(charge(&slow).is_err(), "the payment service hung up");
    let held = charge(&slow).unwrap();
    assert_eq!(held.status, 503);
    let text = String::from_utf8(held.body).unwrap();
    assert!(text.starts_with("held: attempt 1") && text.contains("resolve"), "{text}");

    let op = Operation::new(("acme", "POST", "/charges", "k-3")).lease(seconds(30));
    let Claim::Acquired(_claim) = store.claim(op).unwrap() else { panic!() };
    let busy = charge(&Req { key: "k-3", ..req }).unwrap();
    assert_eq!((busy.status, busy.retry_after), (409, Some(30)));
}

// 4. agent: three steps, crash anywhere, unknown → reconcile or hold

fn task(claim: &ClaimHandle, prompt: &str) -> Result<(), Fault> {
    let plan: Plan = claim.step(Step::new("plan").input(Fingerprint::of(prompt)), |step| {
        if step.may_have_run() {
            if let Some(plan) = model_lookup(&step.downstream_key()) {
                return Ok(plan);
            }
        }
        model(prompt, &step.downstream_key()) // same key in every attempt: billed once
    })?;
    for (i, edit) in plan.edits.iter().enumerate() {
        claim.step(format!("edit-{i}"), |_| -> Result<(), Fault> { write(edit) })?;
        claim.save_progress(&format!("{} of {}", i + 1, plan.edits.len()))?;
    }
    claim.step(Step::new("send").announced(), |step| {
        if step.may_have_run() {
            return Err(step.hold("the mailer can't be asked").into());
        }
        send(&step.downstream_key())
    })
}

fn agent(store: &Store) -> Result<Run<()>, Fault> {
    let op = Operation::new(("agent-7", "task", 42_u64));
    store
        .runner(op.on_interrupted(OnInterrupted::Hold).owner("host-3"))
        .reconcile(|lost| {
            Ok::<_, Fault>(match lost.open_step() {
                Some("send") => Reconciled::Unknown,
                _ => Reconciled::NotApplied,
            })
        })
        .run(|claim| task(claim, "tidy up"))
}

#[test]
fn program_4_agent() {
    let sim = Sim::small(1);
    // The calls of the world: 0 the model, 1 to 3 edits, 4 the mail. The process dies in each of them once.
    for dies_in in 0..5 {
        DIES_IN.set(Some(dies_in));
        let store = sim.open().unwrap();
        assert!(matches!(agent(&store), Err(Fault::Busy)), "{dies_in}");
        drop(store);
        sim.kill();
    }
    assert_eq!((BILLED.take().len(), WRITTEN.take(), SENT.take()), (1, 6, 1));
    // The mail was sent, or was it? A person finds out.
    let store = sim.open().unwrap();
    assert!(matches!(agent(&store), Ok(Run::Refused(_))));
    let Some(State::Interrupted(lost)) = store.get(("agent-7", "task", 42)).unwrap() else {
        panic!()
    };
    assert_eq!(lost.open_step(), Some("send"));
    let progress = lost.progress().unwrap().decode::<String>().unwrap();
    assert_eq!((progress.as_str(), lost.number()), ("3 of 3", 5));
    assert!(store.resolve(&lost, Resolution::Record(Outcome::success(&()))).unwrap());
    assert!(matches!(agent(&store), Ok(Run::Replayed((), _))));
    assert_eq!((BILLED.take().len(), WRITTEN.take(), SENT.take()), (0, 0, 0));
}

// 5. queue consumer: one write per poll

fn consumer(store: &Store, mut poll: impl FnMut() -> Vec<Msg>) -> Result<(), Error> {
    let mut batch = store.batch(); // ends the last poll's claims, makes the next one's
    loop {
        let messages = poll();
        for m in &messages {
            batch.claim(Operation::new(m.id).lease(seconds(60)));
        }
        let committed = batch.commit()?; // one write; now the last poll's offsets may be committed
        if messages.is_empty() {
            return Ok(());
        }
        batch = store.batch();
        for (m, claim) in messages.iter().zip(committed.claims) {
            let claim = match claim? {
                Claim::Acquired(claim) => claim,
                Claim::Interrupted(lost) => lost.take_over()?,
                _ => continue,
            };
            match handle(m) {
                Ok(()) => batch.complete(claim, &()),
                Err(why) => batch.abort(claim, why),
            };
        }
    }
}

fn mark_only(store: &Store, messages: &[Msg]) -> Result<(), Error> {
    for (m, mark) in messages.iter().zip(store.mark_many(messages.iter().map(|m| m.id))?) {
        if mark?.is_first() {
            let _ = handle(m);
        }
    }
    Ok(())
}

#[test]
fn program_5_queue_consumer() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let mut polls = [["a", "b", "a", "bad"], ["bad", "a", "b", "bad"]].into_iter();
    let poll = || polls.next().map_or(Vec::new(), |ids| ids.map(|id| Msg { id }).into());
    let before = store.stats().syncs;
    consumer(&store, poll).unwrap();
    assert_eq!(HANDLED.get(), 4, "a and b once, bad is tried again");
    assert!(
        store.stats().syncs <= before + 4,
        "one for each poll, and one that the store begins with"
    );
    HANDLED.set(0);
    mark_only(&store, &["c", "bad", "c", "bad", "a"].map(|id| Msg { id })).unwrap();
    assert_eq!(HANDLED.get(), 2, "c once, and bad again, for it was aborted");
}

// 6. async: many tasks

async fn price(store: Store, sku: u64) -> Result<Vec<u8>, Any> {
    let claim = match store.claim_wait_async(("price", sku), seconds(5)).await? {
        Claim::Acquired(claim) => claim,
        Claim::Interrupted(lost) => lost.take_over_async().await?,
        Claim::Completed(done) => return Ok(done.result().to_vec()), // the waiters, woken by the owner
        other => return Err(other.refused().into()),
    };
    let quote = ask(sku).await; // cancelled here: interrupted, and a waiter is told
    claim.complete_async(&quote).await?;
    Ok(quote)
}

fn in_flight(store: &Store) -> Result<u64, Error> {
    // no executor: send now, wait later
    let sent: Vec<Pending<Mark>> = (0..64_u64).map(|n| store.mark_async(n)).collect();
    let mut firsts = 0;
    for answer in sent {
        firsts += u64::from(answer.wait()?.is_first());
    }
    Ok(firsts)
}

#[test]
fn program_6_many_tasks() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    // The simulated store has no threads, and its clock stands still: the tasks of one executor do all the work.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let local = store.clone();
    runtime.block_on(async move {
        let price = |n: u64| {
            let store = local.clone();
            async move {
                BEGUN.fetch_add(1, Ordering::SeqCst);
                price(store, n % 4).await.map_err(|e| e.to_string())
            }
        };
        let asked: Vec<_> = (0..10_000).map(|n| (n % 4, tokio::spawn(price(n)))).collect();
        for (sku, quote) in asked {
            assert_eq!(quote.await.unwrap().unwrap(), sku.to_string().into_bytes());
        }
    });
    assert_eq!((ASKED.load(Ordering::SeqCst), store.stats().keys), (4, 4));
    // Cancelled while it asks: a waiter is told, and takes over.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let local = store.clone();
    runtime.block_on(async move {
        BEGUN.store(0, Ordering::SeqCst);
        let owner = tokio::spawn({
            let store = local.clone();
            async move { price(store, 7).await.map_err(|e| e.to_string()) }
        });
        while !matches!(local.get_async(("price", 7_u64)).await, Ok(Some(State::InProgress(_)))) {
            tokio::task::yield_now().await;
        }
        owner.abort();
        assert!(owner.await.is_err());
        BEGUN.store(10_000, Ordering::SeqCst);
        assert_eq!(price(local, 7).await.map_err(|e| e.to_string()).unwrap(), b"7");
    });
    assert_eq!(in_flight(&store).unwrap(), 64);
}

// 7. detached claim

fn submit(store: &Store, job: &str) -> Result<Option<String>, Error> {
    let Claim::Acquired(claim) = store.claim(job)? else { return Ok(None) };
    Ok(Some(claim.detach(seconds(900))?.to_string()))
}

fn webhook(store: &Store, ticket: &str, body: &[u8]) -> Result<(), Error> {
    // another process, after a reopen
    match store.attach(&ticket.parse()?) {
        Ok(claim) => claim.complete(body),
        Err(e) if e.kind() == ErrorKind::ClaimLost => Ok(()), // too late, someone took over
        Err(e) => Err(e),
    }
}

#[test]
fn program_7_detached_claim() {
    let sim = Sim::small(1);
    let ticket = submit(&sim.open().unwrap(), "job-1").unwrap().unwrap();
    let late = submit(&sim.open().unwrap(), "job-2").unwrap().unwrap();
    sim.kill();
    assert_eq!(submit(&sim.open().unwrap(), "job-1").unwrap(), None, "it is in progress");
    webhook(&sim.open().unwrap(), &ticket, b"the answer").unwrap();
    webhook(&sim.open().unwrap(), &ticket, b"the answer again").unwrap();
    let store = sim.open().unwrap();
    let Claim::Completed(done) = store.claim("job-1").unwrap() else { panic!() };
    assert_eq!(&done.result()[..], b"the answer");
    sim.advance(seconds(901));
    let Claim::Interrupted(lost) = store.claim("job-2").unwrap() else { panic!() };
    let claim = lost.take_over().unwrap();
    webhook(&store, &late, b"too late").unwrap();
    claim.complete("done by another").unwrap();
    assert!(webhook(&store, "no ticket", b"").is_err());
}

// 8. operator

fn operator(store: &Store) -> Result<Vec<String>, Error> {
    let mut seen = Vec::new();
    for entry in store.iter().in_states(&[StateKind::Interrupted, StateKind::Held]) {
        let (key, state) = entry?;
        if let State::Held(a) | State::Interrupted(a) = state {
            seen.push(format!("{key} {} {:?}", a.number(), a.owner()));
        }
    }
    let Some(State::Held(a) | State::Interrupted(a)) = store.get("task-42")? else {
        return Ok(seen);
    };
    let decision = if psp_has(&a) {
        Resolution::Record(Outcome::success("paid"))
    } else {
        Resolution::retry("the provider has no such charge")
    };
    if !store.resolve(&a, decision)? {
        seen.push("changed meanwhile".to_owned());
    }
    Ok(seen)
}

#[test]
fn program_8_operator() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    drop(store.claim(Operation::new("task-42").owner("host-3")).unwrap());
    assert!(store.mark("another").unwrap().is_first());
    assert_eq!(operator(&store).unwrap(), ["task-42 1 Some(\"host-3\")"]);
    assert!(operator(&store).unwrap().is_empty());
    let Claim::Completed(done) = store.claim("task-42").unwrap() else { panic!() };
    assert_eq!(&done.result()[..], b"paid");
}

// 9. typed results, recorded failures, policy

impl Typed for Receipt {
    const CODEC: Codec = Codec::Json;
    const VERSION: u32 = 1;
}

fn verdict(e: &Fault) -> Verdict {
    match e {
        Fault::Declined(why) => Verdict::Fail(Outcome::failure(why)), // final, replayed
        Fault::Busy => Verdict::Abort(Abort::new("busy")),            // nothing happened
        Fault::Store(_) => Verdict::Unknown,                          // may have happened
    }
}

fn typed(store: &Store) -> Result<String, Fault> {
    Ok(match store.runner("order-1").on_error(verdict).run(pay)? {
        Run::Done(receipt) | Run::Replayed(receipt, _) => format!("{receipt:?}"),
        Run::Failed(f) => format!("declined: {}", f.decode::<String>()?),
        other => format!("{other:?}"),
    })
}

#[test]
fn program_9_typed_results_and_recorded_failures() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    PSP.set(Psp::Busy);
    assert!(matches!(typed(&store), Err(Fault::Busy)));
    PSP.set(Psp::Pays);
    for _ in 0..2 {
        assert_eq!(typed(&store).unwrap(), "Receipt { order: 1, attempt: 2 }");
    }
    assert!(store.forget("order-1").unwrap());
    PSP.set(Psp::Declines);
    assert!(matches!(typed(&store), Err(Fault::Declined(_))));
    PSP.set(Psp::Pays);
    assert_eq!(typed(&store).unwrap(), "declined: card expired");

    // Callers that can find out are asked about an attempt of unknown fate.
    drop(store.claim("order-2").unwrap());
    let found = store
        .runner("order-2")
        .reconcile(|lost| {
            Ok::<_, Fault>(Reconciled::Applied(Receipt { order: 2, attempt: lost.number() }))
        })
        .run(|_| panic!("it was done"))
        .unwrap();
    assert!(matches!(found, Run::Done(Receipt { order: 2, attempt: 1 })));
}

// 10. policies, retention, durability, shutdown, tests

fn shutdown(dir: &Path) -> Result<Vec<String>, Error> {
    let policy = Policy::new().retention(7 * DAY).claim_durability(Durability::Flush);
    let store = Store::builder().policy(policy).open_or_create(dir)?;
    let charges = store.with_policy(
        Policy::new().on_interrupted(OnInterrupted::Hold).claim_durability(Durability::Sync),
    );
    let _a = charges.claim(("charge", "order", 17u64))?;
    let _b = store.claim(
        Operation::new(("mail", "order", 17u64)).retention(90 * DAY).durability(Durability::Lazy),
    )?;
    let left = store.close(Duration::ZERO)?;
    Ok(left.iter().map(|left| left.key().to_string()).collect())
}

fn tenants(dir: &Path) -> Result<Vec<String>, Error> {
    let policy = Policy::new().retention(7 * DAY).claim_durability(Durability::Flush);
    let store = Store::builder().policy(policy).open_or_create(dir)?;
    let hold = Policy::new().on_interrupted(OnInterrupted::Hold).claim_durability(Durability::Sync);
    let (acme, beta) = (store.namespace("acme").with_policy(hold), store.namespace("beta"));
    let _a = acme.claim(("charge", "order", 17u64))?; // never meets beta's
    let _b = beta.claim(
        Operation::new(("charge", "order", 17u64))
            .retention(90 * DAY)
            .remember_expired(365 * DAY)
            .durability(Durability::Lazy),
    )?;
    let left = store.close(Duration::ZERO)?;
    Ok(left.iter().map(|left| left.key().to_string()).collect())
}

#[test]
fn program_10_tenants() {
    let dir = tempfile::tempdir().unwrap();
    let left = tenants(dir.path()).unwrap();
    assert_eq!(left, [r#"("charge", "order", 17)"#; 2]);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.namespaces().unwrap(), ["acme", "beta"]);
    let order = ("charge", "order", 17u64);
    assert!(matches!(store.namespace("acme").claim(order).unwrap(), Claim::Held(_)));
    assert!(matches!(store.namespace("beta").claim(order).unwrap(), Claim::Interrupted(_)));
    assert!(matches!(store.claim(order).unwrap(), Claim::Acquired(_)));
}

#[test]
fn program_10_policies_and_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let mut left = shutdown(&keys).unwrap();
    left.sort();
    assert_eq!(left, [r#"("charge", "order", 17)"#, r#"("mail", "order", 17)"#]);
    let store = Store::open(&keys).unwrap();
    assert!(store.stats().opening.was_clean);
    assert!(matches!(store.claim(("charge", "order", 17u64)).unwrap(), Claim::Held(_)));
    assert!(matches!(store.claim(("mail", "order", 17u64)).unwrap(), Claim::Interrupted(_)));
    let weak =
        Operation::new("k").on_interrupted(OnInterrupted::Hold).claim_durability(Durability::Flush);
    assert_eq!(store.claim(weak).unwrap_err().kind(), ErrorKind::Invalid);
}

fn tests() -> Result<(), Error> {
    let sim = Sim::small(1); // disk and clock, by seed
    if let Claim::Acquired(claim) = sim.open()?.claim(Operation::new("k").retention(DAY))? {
        claim.complete("v")?;
    }
    sim.power_loss();
    assert!(matches!(sim.open()?.claim("k")?, Claim::Completed(_)));
    sim.advance(2 * DAY);
    assert!(matches!(sim.open()?.claim("k")?, Claim::Acquired(_)));
    Ok(())
}

#[test]
fn program_10_a_users_test() {
    tests().unwrap();
}

/// Guards and handles may be sent to other threads.
#[test]
fn handles_and_guards_may_be_sent_to_other_threads() {
    fn free<T: Send + std::marker::Sync + 'static>() {}
    free::<Store>();
    free::<ClaimGuard>();
    free::<ClaimHandle>();
    free::<onlyonce::Interrupted>();
    free::<Error>();
}

// The functions that the programs call.

#[derive(serde::Serialize, serde::Deserialize, Clone, Debug)]
struct Plan {
    edits: Vec<String>,
}

impl Typed for Plan {
    const CODEC: Codec = Codec::Bincode;
}

thread_local! {
    /// The call of the world in which the process dies, after its effect.
    static DIES_IN: Cell<Option<u32>> = const { Cell::new(None) };
    static BILLED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static WRITTEN: Cell<u32> = const { Cell::new(0) };
    static SENT: Cell<u32> = const { Cell::new(0) };
}

/// The effect of a call has happened: does the process live on?
fn lives(call: u32) -> Result<(), Fault> {
    match DIES_IN.get() {
        Some(at) if at == call => Err(Fault::Busy),
        _ => Ok(()),
    }
}

fn plan() -> Plan {
    Plan { edits: ["1", "2", "3"].map(str::to_owned).into() }
}

fn model_lookup(key: &str) -> Option<Plan> {
    BILLED.with_borrow(|billed| billed.iter().any(|known| known == key)).then(plan)
}

fn model(_prompt: &str, key: &str) -> Result<Plan, Fault> {
    BILLED.with_borrow_mut(|billed| billed.push(key.to_owned()));
    lives(0)?;
    Ok(plan())
}

fn write(edit: &str) -> Result<(), Fault> {
    WRITTEN.set(WRITTEN.get() + 1);
    lives(edit.parse().unwrap())
}

fn send(_key: &str) -> Result<(), Fault> {
    SENT.set(SENT.get() + 1);
    lives(4)
}

thread_local! {
    static WORK: Cell<Option<&'static str>> = const { Cell::new(None) };
    static WORKED: Cell<u32> = const { Cell::new(0) };
    static CHARGED: Cell<u64> = const { Cell::new(0) };
    static HANDLED: Cell<u32> = const { Cell::new(0) };
    static PSP: Cell<Psp> = const { Cell::new(Psp::Pays) };
}

fn work() -> Result<String, Any> {
    WORKED.set(WORKED.get() + 1);
    WORK.get().map_or_else(|| Ok("worked".to_owned()), |why| Err(why.into()))
}

#[derive(Clone, Copy)]
struct Req {
    tenant: &'static str,
    path: &'static str,
    key: &'static str,
    body: &'static [u8],
}

struct Resp {
    status: u16,
    body: Vec<u8>,
    retry_after: Option<u64>,
}

fn reply(status: u16, body: &[u8]) -> Resp {
    Resp { status, body: body.to_vec(), retry_after: None }
}

fn parse(body: &[u8]) -> Option<u64> {
    std::str::from_utf8(body).ok()?.parse().ok()
}

/// Hangs up on nothing.
async fn psp(amount: u64, idempotency_key: &str) -> Result<Resp, Error> {
    assert_eq!(idempotency_key.len(), 32);
    if amount == 0 {
        return Err(Error::invalid("hung up"));
    }
    CHARGED.set(amount);
    Ok(reply(201, b"charged"))
}

static ASKED: AtomicU32 = AtomicU32::new(0);
/// Tasks that want a price.
static BEGUN: AtomicU32 = AtomicU32::new(0);

async fn ask(sku: u64) -> Vec<u8> {
    ASKED.fetch_add(1, Ordering::SeqCst);
    // The others come while the answer is on its way.
    while BEGUN.load(Ordering::SeqCst) < 10_000 {
        tokio::task::yield_now().await;
    }
    sku.to_string().into_bytes()
}

struct Msg {
    id: &'static str,
}

fn handle(m: &Msg) -> Result<(), String> {
    HANDLED.set(HANDLED.get() + 1);
    if m.id == "bad" { Err("cannot be read".to_owned()) } else { Ok(()) }
}

fn psp_has(attempt: &onlyonce::Attempt) -> bool {
    attempt.number() == 1
}

#[derive(Clone, Copy)]
enum Psp {
    Pays,
    Busy,
    Declines,
}

#[derive(serde::Serialize, serde::Deserialize, Debug)]
struct Receipt {
    order: u64,
    attempt: u32,
}

#[derive(Debug)]
enum Fault {
    Declined(String),
    Busy,
    Store(#[expect(dead_code, reason = "shown by Debug")] Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Store(error)
    }
}

fn pay(claim: &ClaimHandle) -> Result<Receipt, Fault> {
    match PSP.get() {
        Psp::Pays => Ok(Receipt { order: 1, attempt: claim.attempt() }),
        Psp::Busy => Err(Fault::Busy),
        Psp::Declines => Err(Fault::Declined("card expired".to_owned())),
    }
}
