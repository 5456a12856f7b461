//! What observers are told in the life of a store, and that docs/operations.md lists the metrics.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "these are tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{
    Abort, Claim, ClaimGuard, Error, ErrorKind, Fingerprint, Interrupted, OnDrop, Operation,
    Outcome, Resolution, State, Step, Store,
};
use watched::{Described, Lines, Numbers};

/// In everything that must not be shown.
const SECRET: &str = "s3cret";

const SECOND: Duration = Duration::from_secs(1);

fn acquired(claim: Claim) -> ClaimGuard {
    match claim {
        Claim::Acquired(guard) => guard,
        other => panic!("{other:?}"),
    }
}

fn asked(claim: Claim) -> Interrupted {
    match claim {
        Claim::Interrupted(question) => question,
        other => panic!("{other:?}"),
    }
}

fn op(key: &str) -> Operation<'_> {
    Operation::new(key).owner("host-1").fingerprint(Fingerprint::of(SECRET.as_bytes()))
}

/// Does background work until nothing is due.
fn rest(store: &Store) {
    for _ in 0..10_000 {
        if store.step().is_ok_and(|next| !next.is_zero()) {
            return;
        }
    }
    panic!("it never rests");
}

/// Whether a line of that beginning has all of these parts.
#[track_caller]
fn assert_told(lines: &[String], begin: &str, parts: &[&str]) {
    let is_it =
        |line: &&String| line.starts_with(begin) && parts.iter().all(|part| line.contains(part));
    assert!(lines.iter().any(|line| is_it(&line)), "{begin} {parts:?} isn't among {lines:#?}");
}

/// What one claim, its refusals, its lapse and its take-over tell.
fn claims(sim: &Sim, store: &Store, told: &Lines) {
    let late = acquired(store.claim(op("job").lease(10 * SECOND)).unwrap());
    let token = format!("token={}", late.token().get());
    assert_told(&told.take(), "DEBUG claim: granted", &["key=job", &token, "attempt=1", "store="]);
    late.save_progress(&format!("{SECRET} half")).unwrap();
    assert!(matches!(store.claim(op("job")).unwrap(), Claim::InProgress(_)));
    assert_told(&told.take(), "DEBUG claim: in_progress", &["key=job", &token, "owner=\"host-1\""]);
    let other = Operation::new("job").fingerprint(Fingerprint::of(b"another request"));
    assert!(matches!(store.claim(other).unwrap(), Claim::Mismatch(_)));
    assert_told(&told.take(), "WARN claim: mismatch", &["key=job"]);

    sim.advance(11 * SECOND);
    let question = asked(store.claim(op("job")).unwrap());
    let lines = told.take();
    assert_told(&lines, "WARN a lease has passed", &["key=job"]);
    assert_told(&lines, "INFO claim: asked", &["key=job", "attempt=1"]);
    let guard = question.take_over().unwrap();
    assert_told(&told.take(), "INFO take_over: granted", &["key=job", "attempt=2"]);
    assert_eq!(late.complete(SECRET).unwrap_err().kind(), ErrorKind::ClaimLost);
    assert_told(&told.take(), "WARN complete: lost", &["key=job"]);
    guard.record(Outcome::success(SECRET).meta("x", SECRET)).unwrap();
    assert_told(&told.take(), "DEBUG complete: done", &["key=job"]);
    assert!(matches!(store.claim(op("job")).unwrap(), Claim::Completed(_)));
    assert_told(&told.take(), "DEBUG claim: completed", &["key=job"]);
    assert!(store.mark("m").unwrap().is_first());
    assert_told(&told.take(), "DEBUG mark: granted", &["key=m"]);
}

/// What an interruption, and the words of claimants and operators about it, tell.
fn words(store: &Store, told: &Lines) {
    drop(acquired(store.claim(op("word")).unwrap()));
    assert_told(&told.take(), "WARN drop: done", &["key=word"]);
    drop(asked(store.claim(op("word")).unwrap()));
    assert_told(&told.take(), "DEBUG a claimant left without deciding", &["key=word"]);
    asked(store.claim(op("word")).unwrap()).hold(SECRET).unwrap();
    assert_told(&told.take(), "WARN hold: done", &["key=word"]);
    assert!(matches!(store.claim(op("word")).unwrap(), Claim::Held(_)));
    assert_told(&told.take(), "WARN claim: held", &["key=word"]);
    let Some(State::Held(attempt)) = store.get("word").unwrap() else { panic!() };
    assert!(store.resolve(&attempt, Resolution::retry(SECRET)).unwrap());
    assert_told(&told.take(), "INFO resolve_retry: done", &["key=word"]);

    let guard = acquired(store.claim(op("word")).unwrap());
    guard.abort(Abort::new(SECRET).retry_in(SECOND)).unwrap();
    assert_told(&told.take(), "DEBUG abort: done", &["key=word"]);
    assert!(matches!(store.claim(op("word")).unwrap(), Claim::Delayed(_)));
    let guard = acquired(store.claim(op("fails")).unwrap());
    guard.fail(SECRET).unwrap();
    assert_told(&told.take(), "DEBUG fail: done", &["key=fails"]);

    let ticket = acquired(store.claim(op("far")).unwrap()).detach(60 * SECOND).unwrap();
    assert_told(&told.take(), "INFO detach: done", &["key=far"]);
    let guard = store.attach(&ticket).unwrap();
    let lines = told.take();
    assert_told(&lines, "INFO attach: ", &["key=far"]);
    assert!(!lines.concat().contains(&ticket.to_string()), "{lines:?}");
    let Some(State::InProgress(attempt)) = store.get("far").unwrap() else { panic!() };
    assert!(store.interrupt(&attempt, SECRET).unwrap());
    assert_told(&told.take(), "WARN interrupt: done", &["key=far"]);
    drop(guard);

    drop(acquired(store.claim(op("gone").on_drop(OnDrop::Abort)).unwrap()));
    assert!(store.forget("gone").unwrap());
    assert_told(&told.take(), "DEBUG forget: done", &["key=gone"]);
}

/// What a full disk tells, and that there is space again.
fn full(sim: &Sim, store: &Store, told: &Lines) {
    rest(store);
    sim.set_disk_bytes_max(sim.disk_bytes());
    let mut refused = 0;
    for n in 0..100_000_u64 {
        match store.mark(("full", n)) {
            Ok(_) => {}
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::StorageFull);
                refused += 1;
                if refused == 3 {
                    break;
                }
            }
        }
    }
    let lines = told.take();
    assert_told(&lines, "WARN the disk is full", &["error="]);
    let times = lines.iter().filter(|line| line.contains("the disk is full")).count();
    assert_eq!(times, 1, "told once, not at each refusal");
    sim.set_disk_bytes_max(u64::MAX);
    assert!(store.mark("space").unwrap().is_first());
    assert_told(&told.take(), "INFO there is space again", &[]);
}

/// A whole life of a store.
fn life(told: &Lines) {
    let sim = Sim::small(7);
    let store = sim.open().unwrap();
    let lines = told.take();
    assert_told(&lines, "SPAN open", &["store="]);
    assert_told(&lines, "INFO opened", &["was_clean=true", "records_read=0", "duration="]);
    claims(&sim, &store, told);
    words(&store, told);
    full(&sim, &store, told);

    // A device that takes two seconds for a sync.
    let gate = sim.hold_sync();
    thread::scope(|scope| {
        let store = store.clone();
        let slow = scope.spawn(move || store.mark("slow").map(drop));
        assert!(gate.wait_arrived(60 * SECOND));
        sim.advance(2 * SECOND);
        gate.open();
        slow.join().unwrap().unwrap();
    });
    assert_told(&told.take(), "WARN a slow sync", &["duration=2"]);

    let guard = acquired(store.claim(op("left")).unwrap());
    assert_eq!(store.close(Duration::ZERO).unwrap().len(), 1);
    let lines = told.take();
    assert_told(&lines, "INFO draining", &[]);
    assert_told(&lines, "SPAN close", &[]);
    assert_told(&lines, "WARN the close left a claim interrupted", &["key=left", "token="]);
    assert_told(&lines, "INFO closed", &["interrupted=1"]);
    drop(guard);

    poison(&sim, told);
    recovery(told);
}

fn poison(sim: &Sim, told: &Lines) {
    let store = sim.open().unwrap();
    assert!(store.mark("first").unwrap().is_first());
    let _ = told.take();
    sim.fail_sync(0, DiskFault::Io);
    assert_eq!(store.mark("lost").unwrap_err().kind(), ErrorKind::Indeterminate);
    assert_eq!(store.mark("refused").unwrap_err().kind(), ErrorKind::Poisoned);
    let lines = told.take();
    let times = lines.iter().filter(|line| line.starts_with("ERROR poisoned")).count();
    assert_eq!(times, 1, "{lines:#?}");
    assert_told(&lines, "ERROR poisoned", &["kind=Io", "syncing"]);
    drop(store);
    sim.heal();
    let _ = told.take();
}

/// What opens after crashes tell, and one that is refused.
fn recovery(told: &Lines) {
    for seed in 0.. {
        let sim = Sim::small(seed);
        let store = sim.open().unwrap();
        for n in 0..20_u64 {
            let op = Operation::new(n).durability(onlyonce::Durability::Flush);
            assert!(store.mark(op).unwrap().is_first());
        }
        sim.power_loss_keeping_some(seed);
        drop(store);
        let _ = told.take();
        let store = sim.open().unwrap();
        let is_cut = store.stats().opening.cut.is_some();
        let lines = told.take();
        assert_told(&lines, "INFO opened", &["was_clean=false"]);
        let cuts = lines.iter().filter(|line| line.starts_with("WARN cut off")).count();
        assert_eq!(cuts, usize::from(is_cut), "{lines:#?}");
        drop(store);
        if is_cut {
            sim.remove("/store/MANIFEST").unwrap();
            let _ = told.take();
            assert_eq!(sim.open().unwrap_err().kind(), ErrorKind::Corrupt);
            assert_told(&told.take(), "ERROR the open was refused", &["kind=Corrupt", "store="]);
            return;
        }
    }
}

/// What the background tells: checkpoints, merges, reclaimed segments, and work that damage stops.
fn background(told: &Lines) {
    let sim = Sim::small(9);
    let builder = || {
        Store::builder()
            .segment_bytes(64 << 10)
            .result_bytes_max(16 << 10)
            .index_memory_max(64 * 64)
    };
    let store = sim.open_with(builder()).unwrap();
    let mut lines = Vec::new();
    for n in 0..2000_u64 {
        let guard = acquired(store.claim(Operation::new(n).retention(SECOND)).unwrap());
        guard.complete(&format!("{SECRET} {n:0>100}")).unwrap();
        sim.advance(SECOND / 100);
        rest(&store);
        lines.extend(told.take());
    }
    assert_told(&lines, "SPAN checkpoint", &[]);
    assert_told(&lines, "INFO made a checkpoint", &["duration="]);
    assert_told(&lines, "INFO merged tables of the index", &["tables=", "slots="]);
    assert_told(&lines, "DEBUG prepared a segment", &["bytes="]);
    assert_told(&lines, "DEBUG a segment is full", &["segment="]);
    assert_told(&lines, "INFO reclaimed a segment", &["segment=", "bytes="]);

    // Records that stay, and one of the oldest segment damaged: it can't be judged.
    for n in 0..400_u64 {
        assert!(
            store
                .record(("kept", n), Outcome::success(&format!("{SECRET} {n:0>200}")))
                .unwrap()
                .is_first()
        );
        rest(&store);
    }
    let _ = told.take();
    let is_log = |path: &std::path::Path| path.extension().is_some_and(|it| it == "log");
    let files = sim.files();
    let oldest = files.iter().map(|(path, _)| path).filter(|path| is_log(path)).min();
    let oldest = oldest.unwrap_or_else(|| panic!("{files:?}"));
    for offset in (8192..60_000).step_by(64) {
        sim.flip_byte(oldest, offset, 0xff).unwrap();
    }
    assert_eq!(store.compact(u64::MAX).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_told(&told.take(), "SPAN compact", &[]);
    for n in 0..400_u64 {
        let _ = store.forget(("kept", n));
        sim.advance(SECOND);
        let _ = store.step();
    }
    sim.advance(3600 * SECOND);
    for _ in 0..100 {
        let _ = store.step();
    }
    assert_told(&told.take(), "ERROR background work is skipped because of damage", &["error="]);
}

/// The observers of this process, which are told by all threads. The guard keeps other tests out.
fn observers() -> (MutexGuard<'static, ()>, Lines, Numbers) {
    static ONE: Mutex<()> = Mutex::new(());
    static SET: OnceLock<(Lines, Numbers)> = OnceLock::new();
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (told, numbers) = SET.get_or_init(|| {
        let (told, numbers) = (Lines::default(), Numbers::default());
        tracing::subscriber::set_global_default(told.clone()).unwrap();
        metrics::set_global_recorder(numbers.clone()).unwrap();
        (told, numbers)
    });
    let _ = told.take();
    (one, told.clone(), numbers.clone())
}

#[track_caller]
fn assert_no_secret(told: &Lines) {
    let shown: Vec<_> = told.all().into_iter().filter(|line| line.contains(SECRET)).collect();
    assert!(shown.is_empty(), "{shown:#?}");
}

#[test]
fn a_life_is_told_and_no_secret_with_it() {
    let (_one, told, _) = observers();
    life(&told);
    assert_no_secret(&told);
}

#[test]
fn background_work_is_told() {
    let (_one, told, _) = observers();
    background(&told);
    assert_no_secret(&told);
}

#[test]
fn a_life_is_measured() {
    let (_one, told, numbers) = observers();
    let sim = Sim::small(11);
    let store = sim.open().unwrap();
    let first = store.stats();
    let names = [
        "onlyonce_claims_total{answer=granted}",
        "onlyonce_claims_total{answer=in_progress}",
        "onlyonce_claims_total{answer=mismatch}",
        "onlyonce_claims_total{answer=asked}",
        "onlyonce_claims_total{answer=completed}",
        "onlyonce_marks_total{answer=granted}",
        "onlyonce_decisions_total{kind=take_over}",
        "onlyonce_endings_total{kind=complete}",
        "onlyonce_claims_lost_total",
        "onlyonce_leases_lapsed_total",
        "onlyonce_syncs_total",
        "onlyonce_sync_seconds",
        "onlyonce_written_bytes_total",
    ];
    let read = || names.map(|name| numbers.value(name).unwrap_or(0));
    let before = read();
    claims(&sim, &store, &told);
    let grown: Vec<_> = read().iter().zip(before).map(|(after, before)| after - before).collect();
    let stats = store.stats();
    let (syncs, bytes) = (stats.syncs - first.syncs, stats.bytes_written - first.bytes_written);
    assert_eq!(grown[..10], [1; 10]);
    assert_eq!(grown[10..], [syncs, syncs, bytes]);

    // Gauges are those of the last look.
    let guards: Vec<_> = (0..3_u64).map(|n| acquired(store.claim(n).unwrap())).collect();
    drop(acquired(store.claim("dropped").unwrap()));
    let waits = store.claim_wait_async(0_u64, SECOND);
    let stats = store.stats();
    assert_eq!(numbers.value("onlyonce_waiters"), Some(1));
    drop(waits);
    assert_eq!(numbers.value("onlyonce_open_keys{state=in_progress}"), Some(3));
    assert_eq!(numbers.value("onlyonce_open_keys{state=interrupted}"), Some(1));
    assert_eq!(numbers.value("onlyonce_segments"), Some(stats.segments));
    assert_eq!(numbers.value("onlyonce_disk_bytes"), Some(stats.disk_bytes));
    assert_eq!(numbers.value("onlyonce_index_entries{place=memory}"), Some(stats.keys_in_memory));
    assert_eq!(numbers.value("onlyonce_poisoned"), Some(0));
    drop(guards);
    drop(store);
    assert_eq!(numbers.value("onlyonce_open_keys{state=interrupted}"), Some(0), "it is closed");
}

/// The rows of the page's table: name, kind, unit, labels and meaning.
fn documented() -> BTreeMap<String, (Described, BTreeSet<String>)> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once("\n## What a store tells\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `onlyonce_"));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, labels, meaning] = cells[..] else { panic!("{row}") };
        let kind = ["counter", "gauge", "histogram"].into_iter().find(|it| *it == kind).unwrap();
        let described = Described { kind, unit: unit.to_owned(), meaning: meaning.to_owned() };
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (name.trim_matches('`').to_owned(), (described, labels))
    })
    .collect()
}

/// What the store writes for a namespace is told as that, and is no mark of the program's.
#[test]
fn namespaces_are_told_as_what_they_are() {
    let (_one, told, numbers) = observers();
    let store = Sim::small(12).open().unwrap();
    let names = [
        "onlyonce_marks_total{answer=granted}",
        "onlyonce_decisions_total{kind=forget}",
        "onlyonce_decisions_total{kind=forget_all}",
        "onlyonce_decisions_total{kind=version}",
    ];
    let read = || names.map(|name| numbers.value(name).unwrap_or(0));
    let before = read();
    let tenant = store.namespace("tenant");
    let _ = told.take();
    assert!(tenant.mark("x").unwrap().is_first());
    let lines = told.take();
    let made = lines.iter().find(|line| line.starts_with("DEBUG namespace: granted")).unwrap();
    assert!(made.contains("tenant") && !made.contains(" namespace="), "it lies in none: {made}");
    let id = lines.iter().find_map(|line| Some(line.split_once(" namespace=")?.1)).unwrap();
    let id = id.split(' ').next().unwrap();
    let lies = format!("namespace={id}");
    assert_told(&lines, "DEBUG mark: granted", &["key=x", &lies]);
    let claim = acquired(tenant.claim(Operation::new("late").lease(SECOND)).unwrap());
    assert_told(&told.take(), "DEBUG claim: granted", &["key=late", &lies]);
    drop(claim);
    assert_told(&told.take(), "WARN drop: done", &["key=late", &lies]);
    drop(asked(tenant.claim("late").unwrap()));
    assert_told(&told.take(), "DEBUG a claimant left", &["key=late", &lies]);
    assert!(tenant.namespace("inner").mark("x").unwrap().is_first());
    assert_told(&told.take(), "DEBUG namespace: granted", &["inner", &lies]);
    assert!(store.mark("x").unwrap().is_first());
    let lines = told.take();
    assert!(!lines.concat().contains(" namespace="), "{lines:?}");
    assert!(tenant.version("2").mark("x").unwrap().is_first());
    assert_told(&told.take(), "WARN version: done", &["tenant"]);
    assert!(tenant.forget_all().unwrap());
    assert_told(&told.take(), "DEBUG forget_all: done", &["tenant"]);
    let grown: Vec<_> = read().iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(grown, [4, 0, 1, 1]);
}

/// Each name of a call that observers are told.
fn calls(told: &Lines) -> BTreeSet<String> {
    let name = |line: &String| Some(line.split_once(" call=\"")?.1.split_once('"')?.0.to_owned());
    told.all().iter().filter_map(name).collect()
}

#[test]
fn docs_operations_lists_the_names_of_calls_and_no_others() {
    let (_one, told, _) = observers();
    let sim = Sim::small(13);
    let store = sim.open().unwrap();
    claims(&sim, &store, &told);
    words(&store, &told);
    let space = store.namespace("space");
    assert!(space.mark("x").unwrap().is_first());
    assert!(space.version("2").mark("x").unwrap().is_first());
    assert!(space.forget_all().unwrap());
    let claim = acquired(store.claim(op("steps").lease(SECOND)).unwrap());
    claim.renew(SECOND).unwrap();
    claim.step(Step::new("a").announced(), |_| Ok::<_, Error>(())).unwrap();
    store.forget_claimed("steps", claim.token()).unwrap();
    assert!(store.record("recorded", Outcome::success("v")).unwrap().is_first());
    for (key, found) in [("won", Outcome::success("v")), ("lost", Outcome::failure("v"))] {
        drop(acquired(store.claim(op(key)).unwrap()));
        let Some(State::Interrupted(attempt)) = store.get(key).unwrap() else { panic!() };
        assert!(store.resolve(&attempt, Resolution::Record(found)).unwrap());
    }
    drop(acquired(store.claim(op("doubt")).unwrap()));
    asked(store.claim(op("doubt")).unwrap()).not_applied().unwrap().hold(SECRET).unwrap();
    drop(store.claim_async("undelivered"));
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, table) = page.split_once("\n| `call` | made by |\n| --- | --- |\n").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with("| `"));
    let listed: BTreeSet<_> = rows.map(|row| row.split('`').nth(1).unwrap().to_owned()).collect();
    assert_eq!(calls(&told), listed);
}

#[test]
fn docs_operations_lists_what_is_measured_and_nothing_else() {
    let (_one, told, numbers) = observers();
    life(&told);
    background(&told);
    let documented = documented();
    let described: BTreeMap<_, _> =
        documented.iter().map(|(name, (described, _))| (name.clone(), described.clone())).collect();
    assert_eq!(numbers.described(), described);
    let recorded: BTreeSet<_> = documented
        .into_iter()
        .map(|(name, (described, labels))| (name, described.kind, labels))
        .collect();
    assert_eq!(numbers.recorded(), recorded);
}
