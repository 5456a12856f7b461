//! The result of each ending: every row of that table in `docs/protocol.md`, made to happen.

use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use onlyonce::testing::{DiskFault, Sim};
use onlyonce::value::{Codec, Format};
use onlyonce::{
    Abort, Claim, ClaimGuard, Decode, Encode, Error, ErrorKind, OnDrop, OnInterrupted, OnUnkept,
    Operation, Outcome, Payload, Reconciled, RefusedKind, Run, State, Store, Verdict,
};

const PAGE: &str = include_str!("../../docs/protocol.md");

/// Ending; what the owner gets; the state of the key; what the next claimant gets.
fn table() -> Vec<[&'static str; 4]> {
    PAGE.lines()
        .skip_while(|line| !line.starts_with("| ending |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            cells.try_into().unwrap()
        })
        .collect()
}

#[test]
fn each_ending_leaves_the_state_that_the_docs_promise() {
    let rows = table();
    for [ending, owner, key, claimant] in &rows {
        let left =
            if let Some(child) = child_of(ending) { end_a_child(child) } else { end(ending) };
        assert_eq!(left, [*owner, *key, *claimant], "{ending}");
    }
    println!("endings: {} rows, {} of them by child processes", rows.len(), CHILDREN.len());
}

const NOTHING: &str = "nothing";
const LEASE: Duration = Duration::from_secs(30);

fn op() -> Operation<'static> {
    Operation::new("k")
}

fn aborting() -> Operation<'static> {
    op().on_drop(OnDrop::Abort)
}

fn holding() -> Operation<'static> {
    op().on_interrupted(OnInterrupted::Hold)
}

fn acquired(claim: Claim) -> ClaimGuard {
    match claim {
        Claim::Acquired(guard) => guard,
        Claim::Interrupted(lost) => lost.take_over().unwrap(),
        other => panic!("not granted: {other}"),
    }
}

fn parking() -> Operation<'static> {
    op().on_unkept(OnUnkept::Hold)
}

/// The state of the key, and what the next claimant gets.
fn left(store: &Store) -> [&'static str; 2] {
    let key = match store.get("k").unwrap().unwrap() {
        State::InProgress(_) => "in progress",
        State::Interrupted(_) => "interrupted",
        State::Held(_) => "held",
        State::Aborted(_) => "aborted",
        State::Completed(_) => "completed",
        State::Failed(_) => "failed",
        other => panic!("{other:?}"),
    };
    let claimant = match store.claim("k").unwrap() {
        Claim::Acquired(_) => "Acquired",
        Claim::Interrupted(_) => "Interrupted",
        Claim::Completed(_) => "Completed",
        Claim::Failed(_) => "Failed",
        Claim::InProgress(_) => "InProgress",
        Claim::Held(_) => "Held",
        other => panic!("{other}"),
    };
    [key, claimant]
}

fn kind(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::ClaimLost => "ClaimLost",
        ErrorKind::Indeterminate => "Indeterminate",
        ErrorKind::Closed => "Closed",
        ErrorKind::TooLarge => "TooLarge, and has the guard back",
        ErrorKind::Invalid => "Invalid, and has the guard back",
        ErrorKind::StorageFull => "StorageFull, and has the guard back",
        other => panic!("{other:?}"),
    }
}

fn told(done: Result<(), Error>) -> &'static str {
    done.as_ref().map_or_else(kind, |()| "Ok")
}

/// An error of a closure that has nothing to do with the store.
#[derive(Debug)]
enum Fault {
    Mine,
    Store(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Store(error)
    }
}

/// A value that can't be recorded.
struct Unencodable;

impl Encode for Unencodable {
    fn encode(&self, _: &mut Vec<u8>) -> onlyonce::Result<Format> {
        Err(Error::invalid("no words for it"))
    }
}

impl Decode for Unencodable {
    fn decode(_: &Payload, _: Format) -> onlyonce::Result<Self> {
        panic!("nothing was kept")
    }
}

/// A value that can't be read back, which only builds with debug assertions notice.
#[derive(Debug)]
struct WriteOnly;

impl Encode for WriteOnly {
    fn encode(&self, _: &mut Vec<u8>) -> onlyonce::Result<Format> {
        Ok(Format { codec: Codec::Custom(1), version: 0 })
    }
}

impl Decode for WriteOnly {
    fn decode(_: &Payload, _: Format) -> onlyonce::Result<Self> {
        Err(Error::undecodable("never"))
    }
}

fn undecodable(store: &Store) -> &'static str {
    let mut why = None;
    let runner = store.runner(op()).on_unrecorded(|e| why = Some(e.kind()));
    let ran = runner.run(|_| Ok::<_, Fault>(WriteOnly)).unwrap();
    if !cfg!(debug_assertions) {
        assert!(matches!(ran, Run::Done(WriteOnly)), "{ran:?}");
        return "the value, and Invalid";
    }
    let Run::Unrecorded(WriteOnly, error) = ran else { panic!("{ran:?}") };
    assert_eq!((error.kind(), why), (ErrorKind::Invalid, Some(ErrorKind::Invalid)));
    "the value, and Invalid"
}

/// Runs a closure whose result can't be kept, and returns the caller's answer.
fn unkept(op: Operation<'_>, store: &Store, before: impl FnOnce()) -> &'static str {
    let full = std::cell::Cell::new(false);
    let mut why = None;
    let runner = store.runner(&op).on_unrecorded(|e| why = Some(e.kind()));
    let ran = runner.run(|_| {
        let bytes = store.stats().bytes_written;
        before();
        full.set(store.stats().bytes_written > bytes);
        Ok::<_, Fault>(vec![7; if full.get() { 16 << 10 } else { 1 << 20 }])
    });
    assert!(matches!(ran.unwrap(), Run::Done(value) if value[0] == 7));
    let expected = if full.get() { ErrorKind::StorageFull } else { ErrorKind::TooLarge };
    assert_eq!(why, Some(expected), "the reason is at hand");
    // Later callers get the reason, and nothing runs.
    match store.runner(&op).run(|_| -> Result<Vec<u8>, Fault> { panic!("again") }).unwrap() {
        Run::NotKept(done) => assert!(done.missing().is_some_and(|why| !why.is_empty())),
        Run::Refused(refused) => assert_eq!(refused.kind(), RefusedKind::Held),
        other => panic!("{other:?}"),
    }
    "the value"
}

/// The fate of the attempt was found out, and can't be recorded.
fn applied(op: Operation<'_>, store: &Store) -> &'static str {
    let mut why = None;
    let runner = store.runner(op).on_unrecorded(|e| why = Some(e.kind()));
    let runner = runner.reconcile(|_| Ok::<_, Fault>(Reconciled::Applied(Unencodable)));
    assert!(matches!(runner.run(|_| panic!("it was done")).unwrap(), Run::Done(Unencodable)));
    assert_eq!(why, Some(ErrorKind::Invalid));
    "the value"
}

/// The work is done, and its result can't be recorded: the caller has the value, and the reason.
fn unrecorded(op: Operation<'_>, store: &Store, before: impl FnOnce()) -> &'static str {
    let mut why = None;
    let runner = store.runner(op).on_unrecorded(|e| why = Some(e.kind()));
    let ran = runner.run(|_| {
        before();
        Ok::<_, Fault>("charged".to_owned())
    });
    told_unrecorded(ran.unwrap(), why)
}

fn told_unrecorded(run: Run<String>, why: Option<ErrorKind>) -> &'static str {
    match run {
        Run::Unrecorded(value, error) => {
            assert_eq!((&*value, Some(error.kind())), ("charged", why));
            let kind = error.kind();
            assert_eq!(Run::Unrecorded(value, error).value().unwrap(), "charged");
            match kind {
                ErrorKind::Indeterminate => "the value, and Indeterminate",
                ErrorKind::Poisoned => "the value, and Poisoned",
                ErrorKind::Closed => "the value, and Closed",
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}

/// Runs a closure that fails, and returns the caller's answer.
fn run(op: Operation<'_>, store: &Store) -> &'static str {
    told_of_run(store.run(op, |_| Err::<(), _>(Fault::Mine)))
}

fn judged(op: Operation<'_>, store: &Store, verdict: Verdict) -> &'static str {
    let runner = store.runner(op).on_error(|_| verdict);
    told_of_run(runner.run(|_| Err::<(), _>(Fault::Mine)))
}

/// The verdict's sync fails, and power is lost with it.
fn judged_in_vain(sim: &Sim, store: &Store, verdict: Verdict) -> &'static str {
    let mut why = None;
    let runner = store.runner(op()).on_error(|_| verdict).on_unrecorded(|e| why = Some(e.kind()));
    let told = told_of_run(runner.run(|_| {
        sim.fail_sync(0, DiskFault::Io);
        Err::<(), _>(Fault::Mine)
    }));
    assert_eq!(why, Some(ErrorKind::Indeterminate), "the reason is at hand");
    sim.power_loss();
    told
}

fn told_of_run(ran: Result<Run<()>, Fault>) -> &'static str {
    match ran {
        Err(Fault::Mine) => "the error",
        Err(Fault::Store(error)) => kind(&error),
        Ok(other) => panic!("{other:?}"),
    }
}

fn panicking(work: impl FnOnce()) -> &'static str {
    let died = catch_unwind(AssertUnwindSafe(work)).unwrap_err();
    assert_eq!(died.downcast_ref::<&str>(), Some(&"work"));
    "the panic"
}

/// An attempt whose fate is open.
fn doubt(store: &Store) {
    drop(acquired(store.claim("k").unwrap()));
}

/// Fills the disk up to its reserves: not even a mark finds space.
fn fill(sim: &Sim, store: &Store) {
    sim.set_disk_bytes_max(sim.disk_bytes());
    let full = (0..100_000_u64).find_map(|n| store.mark(n).err()).expect("a full disk");
    assert_eq!(full.kind(), ErrorKind::StorageFull);
}

/// Makes an ending happen on a simulated disk.
fn end(ending: &str) -> [&'static str; 3] {
    let sim = Sim::small(1);
    let mut store = sim.open().unwrap();
    let claim = |op: Operation<'_>| acquired(store.claim(op).unwrap());
    let mut at_hand = Vec::new();
    let owner = match ending {
        "complete" => told(claim(op()).complete("v")),
        "fail" => told(claim(op()).fail("v")),
        "abort" => told(claim(op()).abort("why")),
        "abort, an older fate open" => {
            doubt(&store);
            told(claim(op()).abort("why"))
        }
        "complete, after somebody took over" => {
            let late = claim(op().lease(LEASE));
            sim.advance(LEASE);
            at_hand.push(claim(op()));
            told(late.complete("v"))
        }
        "dropped" => {
            drop(claim(op()));
            NOTHING
        }
        "dropped, `Hold`" => {
            drop(claim(holding()));
            NOTHING
        }
        "dropped, `OnDrop::Abort`" => {
            drop(claim(aborting()));
            NOTHING
        }
        "dropped, `OnDrop::Abort`, flipped back before the effect" => {
            claim(aborting()).on_drop(OnDrop::Interrupt);
            NOTHING
        }
        "dropped, `OnDrop::Abort`, an older fate open" => {
            doubt(&store);
            drop(claim(aborting()));
            NOTHING
        }
        "a panic" => panicking(|| {
            let _claim = claim(op());
            panic!("work");
        }),
        "a panic, `OnDrop::Abort`" => panicking(|| {
            let _claim = claim(aborting());
            panic!("work");
        }),
        "`run`: the closure panics" => panicking(|| {
            let _ = store.run(op(), |_| -> Result<(), Fault> { panic!("work") });
        }),
        "`run`: the closure panics, `OnDrop::Abort`" => panicking(|| {
            let _ = store.run(aborting(), |_| -> Result<(), Fault> { panic!("work") });
        }),
        "`run`: the closure's error" => run(op(), &store),
        "`run`: the closure's error, `Retry`" => {
            run(op().on_interrupted(OnInterrupted::Retry), &store)
        }
        "`run`: the closure's error, `Hold`" => run(holding(), &store),
        "`run`: the closure's error, `OnDrop::Abort`" => run(aborting(), &store),
        "`run`: the closure's error, `Hold`, `OnDrop::Abort`" => {
            run(holding().on_drop(OnDrop::Abort), &store)
        }
        "`run`: the closure's error, an older fate open" => {
            doubt(&store);
            run(op().on_interrupted(OnInterrupted::Retry), &store)
        }
        "`run`: `on_error` says Abort" => judged(op(), &store, Verdict::Abort(Abort::new("why"))),
        "`run`: `on_error` says Abort, the sync fails" => {
            let told = judged_in_vain(&sim, &store, Verdict::Abort(Abort::new("why")));
            store = sim.open().unwrap();
            told
        }
        "`run`: `on_error` says Fail, the sync fails" => {
            let told = judged_in_vain(&sim, &store, Verdict::Fail(Outcome::failure("never")));
            store = sim.open().unwrap();
            told
        }
        "`run`: `on_error` says Abort, `Hold`" => {
            judged(holding(), &store, Verdict::Abort(Abort::new("why")))
        }
        "`run`: `on_error` says Fail" => {
            judged(op(), &store, Verdict::Fail(Outcome::failure("never")))
        }
        "`run`: `on_error` says Unknown, `OnDrop::Abort`" => {
            judged(aborting(), &store, Verdict::Unknown)
        }
        "an outcome without a result" => {
            told(claim(op()).record(Outcome::without_result("of no use to anybody")))
        }
        "`run`: a result too large" => unkept(op(), &store, || {}),
        "`run`: a result beyond its reserve, the disk full" => {
            unkept(op(), &store, || fill(&sim, &store))
        }
        "`run`: a result too large, an older fate open" => {
            doubt(&store);
            unkept(op().on_interrupted(OnInterrupted::Retry), &store, || {})
        }
        "`run`: a result too large, `OnUnkept::Hold`" => unkept(parking(), &store, || {}),
        "`run`: a result beyond its reserve, the disk full, `OnUnkept::Hold`" => {
            unkept(parking().reserve_bytes(0), &store, || fill(&sim, &store))
        }
        "`run`: the sync of a result fails, and it is on disk" => {
            let told = unrecorded(op(), &store, || sim.fail_sync(0, DiskFault::Io));
            sim.kill();
            store = sim.open().unwrap();
            told
        }
        "`run`: the sync of a result fails, and it is not on disk" => {
            let told = unrecorded(op(), &store, || sim.fail_sync(0, DiskFault::Io));
            sim.power_loss();
            store = sim.open().unwrap();
            told
        }
        "`run`: the store is poisoned before the result, `OnDrop::Abort`" => {
            let told = unrecorded(aborting(), &store, || {
                sim.fail_sync(0, DiskFault::Io);
                store.mark("another").unwrap_err();
            });
            sim.kill();
            store = sim.open().unwrap();
            told
        }
        "`run`: `close` before the result" => {
            let told = unrecorded(op(), &store, || {
                assert_eq!(store.close(Duration::ZERO).unwrap().len(), 1);
            });
            store = sim.open().unwrap();
            told
        }
        "`run`: `reconcile` says Applied, the sync fails" => {
            doubt(&store);
            store.sync().unwrap();
            let mut why = None;
            let runner = store.runner(op()).on_unrecorded(|e| why = Some(e.kind()));
            let runner = runner.reconcile(|_| {
                sim.fail_sync(0, DiskFault::Io);
                Ok::<_, Fault>(Reconciled::Applied("charged".to_owned()))
            });
            let ran = runner.run(|_| panic!("it was done"));
            let told = told_unrecorded(ran.unwrap(), why);
            sim.power_loss();
            store = sim.open().unwrap();
            told
        }
        "`run`: a value that won't encode" => {
            let run = store.run(op(), |_| Ok::<_, Fault>(Unencodable)).unwrap();
            assert!(matches!(run, Run::Done(Unencodable)));
            "the value"
        }
        "`run`: a value that doesn't decode again" => undecodable(&store),
        "`run`: `on_error` says Fail, with a value that won't encode" => {
            judged(op(), &store, Verdict::Fail(Outcome::failure(&Unencodable)))
        }
        "`run`: `reconcile` says Applied, with a value that won't encode" => {
            doubt(&store);
            applied(op(), &store)
        }
        "`run`: `reconcile` says Applied, with a value that won't encode, `OnUnkept::Hold`" => {
            doubt(&store);
            applied(parking(), &store)
        }
        "a result too large" => {
            let error = claim(op()).complete(&vec![0; 17 << 10]).unwrap_err();
            let told = kind(&error);
            at_hand.push(error.into_claim().unwrap());
            told
        }
        "a value that won't encode" => {
            let error = claim(op()).complete(&Unencodable).unwrap_err();
            let told = kind(&error);
            at_hand.push(error.into_claim().unwrap());
            told
        }
        "a result beyond its reserve, the disk full" => {
            let guard = claim(op());
            fill(&sim, &store);
            let mut error = guard.complete(&vec![0; 16 << 10]).unwrap_err();
            let told = kind(&error);
            // The same guard, still valid.
            let guard = error.into_claim().unwrap();
            error = guard.complete(&vec![0; 16 << 10]).unwrap_err();
            at_hand.push(error.into_claim().unwrap());
            told
        }
        "the guard given back is dropped, `OnDrop::Abort`" => {
            drop(claim(aborting()).complete(&Unencodable).unwrap_err());
            NOTHING
        }
        "the sync of a result fails, and it is on disk" => {
            let guard = claim(op());
            sim.fail_sync(0, DiskFault::Io);
            let told = told(guard.complete("v"));
            sim.kill();
            store = sim.open().unwrap();
            told
        }
        "the sync of a result fails, and it is not on disk" => {
            let guard = claim(op());
            sim.fail_sync(0, DiskFault::Io);
            let told = told(guard.complete("v"));
            sim.power_loss();
            store = sim.open().unwrap();
            told
        }
        "the lease passes" => {
            at_hand.push(claim(op().lease(LEASE)));
            sim.advance(LEASE);
            NOTHING
        }
        "`mem::forget`, no lease" => {
            std::mem::forget(claim(op()));
            sim.advance(1000 * LEASE);
            NOTHING
        }
        "`mem::forget`, the lease passes" => {
            std::mem::forget(claim(op().lease(LEASE)));
            sim.advance(LEASE);
            NOTHING
        }
        "`close`" => {
            let guard = claim(aborting());
            let left = store.close(Duration::ZERO).unwrap();
            assert_eq!(left.iter().map(|left| left.token()).collect::<Vec<_>>(), [guard.token()]);
            let told = told(guard.complete("v"));
            store = sim.open().unwrap();
            told
        }
        "power loss, `OnDrop::Abort`" => {
            let guard = claim(aborting());
            sim.power_loss();
            drop(guard);
            store = sim.open().unwrap();
            NOTHING
        }
        other => panic!("no such ending: {other}"),
    };
    let [key, claimant] = left(&store);
    drop(at_hand);
    [owner, key, claimant]
}

/// The endings that take a process with them, and the role of the child.
const CHILDREN: [(&str, &str); 7] = [
    ("`process::exit`", "exit"),
    ("`process::exit`, `OnDrop::Abort`", "exit-aborting"),
    ("the guard is in a static, and `main` returns", "static"),
    ("`mem::forget`, and `main` returns", "forget"),
    ("`process::abort`", "abort"),
    ("SIGTERM", "TERM"),
    ("SIGKILL, `OnDrop::Abort`", "KILL"),
];

const ENDING: &str = "ONLYONCE_TEST_ENDING";
const STORE: &str = "ONLYONCE_TEST_STORE";
const READY: &str = "ready";

fn child_of(ending: &str) -> Option<&'static str> {
    CHILDREN.iter().find(|(name, _)| *name == ending).map(|(_, child)| *child)
}

/// A child process claims the key and ends; then the state is checked.
fn end_a_child(ending: &str) -> [&'static str; 3] {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "endings::a_claim_ends_in_a_child_process", "--nocapture"])
        .env(ENDING, ending)
        .env(STORE, dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    if matches!(ending, "TERM" | "KILL") {
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_ready = lines.any(|line| line.unwrap().contains(READY));
        assert!(is_ready, "the child ended too early");
        let (signal, pid) = (format!("-{ending}"), child.id().to_string());
        assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
    }
    let status = child.wait().unwrap();
    let expects_success = matches!(ending, "static" | "forget");
    assert_eq!(status.success(), expects_success, "{ending}: {status}");
    let store = Store::open(dir.path().join("keys")).unwrap();
    assert_eq!(store.stats().keys, 1, "the child got to its claim");
    let [key, claimant] = left(&store);
    [NOTHING, key, claimant]
}

/// What a child does; nothing in any other process.
#[test]
fn a_claim_ends_in_a_child_process() {
    static KEPT: OnceLock<ClaimGuard> = OnceLock::new();
    let (Ok(ending), Ok(dir)) = (std::env::var(ENDING), std::env::var(STORE)) else { return };
    let dir = Path::new(&dir);
    let store = Store::open_or_create(dir.join("keys")).unwrap();
    let aborts = matches!(&*ending, "exit-aborting" | "KILL");
    let guard = acquired(store.claim(if aborts { aborting() } else { op() }).unwrap());
    match &*ending {
        "exit" | "exit-aborting" => std::process::exit(7),
        "static" => assert!(KEPT.set(guard).is_ok()),
        "forget" => std::mem::forget(guard),
        "abort" => std::process::abort(),
        _ => {
            println!("{READY}");
            // Until the signal comes, or its sender has ended.
            let _ = std::io::stdin().read_line(&mut String::new());
            panic!("no signal came");
        }
    }
}

/// The closure charged, and then timed out: it was taken for "nothing happened", and the next run charged again.
#[test]
fn a_failed_run_runs_again_only_on_explicit_request() {
    let store = Sim::small(1).open().unwrap();
    let charges = std::cell::Cell::new(0);
    let charge = |op: Operation<'_>| {
        store.run(op, |_| {
            charges.set(charges.get() + 1);
            Err::<(), _>(Fault::Mine)
        })
    };
    let refused = |ran: Result<Run<()>, Fault>| match ran.unwrap() {
        Run::Refused(refused) => (refused.kind(), refused.to_string()),
        other => panic!("{other:?}"),
    };
    assert!(charge(op()).is_err());
    let (kind, words) = refused(charge(op()));
    assert_eq!((kind, charges.get()), (RefusedKind::Interrupted, 1));
    assert!(words.contains("OnInterrupted::Retry"), "{words}");
    assert_eq!(refused(charge(holding())).0, RefusedKind::Held);
    assert_eq!(charges.get(), 1);
    for again in 2..4 {
        assert!(charge(op().on_interrupted(OnInterrupted::Retry)).is_err());
        assert_eq!(charges.get(), again, "at least once was said");
    }
}

/// A value that panics as it is encoded: the work was done, so `OnDrop::Abort` no longer counts.
#[test]
fn a_panic_while_a_value_is_encoded_frees_no_key() {
    struct Panics;
    impl Encode for Panics {
        fn encode(&self, _: &mut Vec<u8>) -> onlyonce::Result<Format> {
            panic!("work")
        }
    }
    for end in [ClaimGuard::complete::<Panics>, ClaimGuard::fail::<Panics>] {
        let store = Sim::small(1).open().unwrap();
        let guard = acquired(store.claim(aborting()).unwrap());
        panicking(|| end(guard, &Panics).unwrap());
        assert_eq!(left(&store), ["interrupted", "Interrupted"]);
    }
}

/// A late owner's own call used to record the lapse first, separately: two records for one ending, and the first spent
/// the space that was kept for it, so that others could take it in between.
#[test]
fn a_late_ending_without_a_takeover_costs_no_more_than_any_ending() {
    let cost = |late: Duration| {
        let sim = Sim::small(1);
        let store = sim.open().unwrap();
        let guard = acquired(store.claim(op().lease(LEASE)).unwrap());
        sim.advance(late);
        let before = store.stats().bytes_written;
        guard.complete("v").unwrap();
        assert!(matches!(store.claim("k").unwrap(), Claim::Completed(_)));
        store.stats().bytes_written - before
    };
    assert_eq!(cost(LEASE), cost(Duration::ZERO));
}

/// A handle may outlive its guard. Renewing took the dropped claim up again, and no guard was left to end it.
#[test]
fn a_handle_renews_nothing_after_its_guard_is_dropped() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let guard = acquired(store.claim("k").unwrap());
    let handle = guard.handle();
    drop(guard);
    assert_eq!(handle.renew(LEASE).unwrap_err().kind(), ErrorKind::ClaimLost);
    assert!(matches!(store.claim("k").unwrap(), Claim::Interrupted(_)));
}

/// A drop that found the segment full, and the next one not yet listed, used to leave no record: the abort promised by
/// `OnDrop::Abort` was lost, and the attempt interrupted.
#[test]
fn aborting_drops_work_across_several_segments() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let claim = |n: u64| acquired(store.claim(Operation::new(n).on_drop(OnDrop::Abort)).unwrap());
    let claims: Vec<ClaimGuard> = (0..3000).map(claim).collect();
    let segments = store.stats().segments;
    drop(claims);
    assert!(store.stats().segments > segments + 2, "they roll");
    for n in 0..3000_u64 {
        assert!(matches!(store.get(n).unwrap(), Some(State::Aborted(_))), "claim {n}");
    }
}

/// The deadline was measured only by the simulator's clock, which stands still while `close` waits: it never passed, and
/// the test hung.
#[test]
fn close_keeps_its_deadline_on_a_clock_that_stands_still() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let guard = acquired(store.claim("k").unwrap());
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(store.close(Duration::from_millis(20)).unwrap().len()));
    assert_eq!(is_done.recv_timeout(Duration::from_secs(10)), Ok(1), "it hangs");
    drop(guard);
}
