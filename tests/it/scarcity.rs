//! No free descriptor, thread or memory for a map, at every call in the life of a store.
//!
//! Invariants: a typed error before any effect; the store stays writable, and the same call succeeds once the resource is
//! back; claims in flight end; descriptors and maps are bounded whatever the number of segments.

use crate::child::{child, small};
use onlyonce::admin::{AcceptLoss, Health, repair};
use onlyonce::testing::Sim;
use onlyonce::{Claim, ClaimGuard, Durability, Error, ErrorKind, Operation, Result, Store};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// Limits how much of a resource this process may use from now on.
fn limit(resource: Resource, most: Option<u64>) {
    let maximum = getrlimit(resource).maximum;
    let current = most.map(|most| most.min(maximum.unwrap_or(u64::MAX))).or(maximum);
    setrlimit(resource, Rlimit { current, maximum }).unwrap();
}

const FILES: u64 = 128;

/// Takes all descriptors but this many.
fn leave(free: usize) -> Vec<File> {
    let first = File::open("/dev/null").unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = first.try_clone() {
        taken.push(file);
    }
    taken.push(first);
    taken.truncate(taken.len().saturating_sub(free));
    taken
}

/// Makes a call with this many free descriptors, and, if it fails for want of them, again with all.
fn call<T>(free: usize, what: &str, store: Option<&Store>, call: impl Fn() -> Result<T>) -> T {
    let taken = leave(free);
    let done = call();
    drop(taken);
    if let Some(store) = store {
        assert_eq!(store.health(), Health::Writable, "{free} free: {what}");
    }
    done.unwrap_or_else(|e| {
        check_scarce(&e, &format!("{free} free: {what}"));
        call().unwrap_or_else(|e| panic!("{free} free: {what}: {e:?}"))
    })
}

fn check_scarce(e: &Error, context: &str) {
    assert_eq!(e.kind(), ErrorKind::Io, "{context}: {e:?}");
    assert!(e.to_string().contains("too many open files"), "{context}: {e}");
    assert!(e.path().is_some(), "{context}: {e:?}");
}

fn claim(store: &Store, key: &str) -> Result<ClaimGuard> {
    store.claim(key).map(|claim| match claim {
        Claim::Acquired(claim) => claim,
        other => panic!("{key}: {other}"),
    })
}

/// The role of a process that runs out of descriptors: the life of a store, each of its calls with few free ones.
pub(crate) fn few_files(dir: &Path, free: &str) {
    let free: usize = free.parse().unwrap();
    limit(Resource::Nofile, Some(FILES));
    let keys = dir.join("keys");
    let is_manual = free % 2 == 0;
    let builder = || small().manual_maintenance(is_manual).map(free % 3 != 0);
    let mut known = Vec::new();
    let mut store = call(free, "birth", None, || builder().open_or_create(&keys));
    for round in 0..3 {
        let first = call(free, "claim", Some(&store), || claim(&store, &format!("first {round}")));
        let mut waiting = vec![first];
        // Through several segments, with some claims in flight throughout.
        for n in 0..160 {
            let key = format!("{round} {n:0>900}");
            let op = Operation::new(&key).durability(Durability::Flush);
            let _ = call(free, "mark", Some(&store), || store.mark(&op));
            known.push(key);
            if n % 40 == 7 {
                waiting.push(claim(&store, &format!("waiting {round} {n}")).unwrap());
            }
            if n % 16 == 3 {
                let _ = call(free, "step", Some(&store), || store.step());
            }
        }
        for claim in waiting {
            known.push(claim.key().to_string());
            let taken = leave(free);
            let ended = claim.complete("done");
            drop(taken);
            ended.unwrap_or_else(|e| panic!("{free} free: a claim in flight can't end: {e:?}"));
        }
        call(free, "checkpoint and merge", Some(&store), || store.merge_index());
        for key in known.iter().step_by(37) {
            let found = call(free, "get", Some(&store), || store.get(key.as_str()));
            assert!(found.is_some(), "{free} free: {key}");
        }
        let walk = || store.iter().collect::<Result<Vec<_>>>().map(|met| met.len());
        assert!(call(free, "walk", Some(&store), walk) >= known.len());
        for key in known.iter().filter(|key| key.ends_with('3')) {
            assert!(call(free, "forget", Some(&store), || store.forget(key.as_str())));
        }
        known.retain(|key| !key.ends_with('3'));
        let compact = || store.compact(u64::MAX);
        assert!(call(free, "compaction", Some(&store), compact).is_complete());
        call(free, "index made again", Some(&store), || store.rebuild_index());
        let verify = || store.verify().map(|found| assert!(found.damages.is_empty(), "{found:?}"));
        call(free, "verify", Some(&store), verify);
        let _ = store.mark(Operation::new(("tail", round)).durability(Durability::Flush)).unwrap();
        if is_manual {
            // The state that a kill would leave: nothing changes the files while they are copied.
            let killed = dir.join(format!("killed-{round}"));
            crate::moved::copy(&keys, &killed);
            let recovered = call(free, "recovery", None, || builder().open(&killed));
            let _ = call(free, "after recovery", Some(&recovered), || recovered.mark("new"));
            assert!(known.iter().all(|key| recovered.get(key.as_str()).unwrap().is_some()));
            drop(recovered);
            std::fs::remove_dir_all(&killed).unwrap();
        }
        let taken = leave(free);
        let closed = store.close(Duration::ZERO);
        drop(taken);
        if let Err(e) = closed {
            check_scarce(&e, &format!("{free} free: close"));
        }
        store = call(free, "open", None, || builder().open(&keys));
    }
    assert!(known.iter().all(|key| store.get(key.as_str()).unwrap().is_some()));
    println!("fine");
}

fn check_role(role: &str, dir: &Path, prepare: impl FnOnce(&mut std::process::Command)) {
    let mut child = child(role, dir);
    prepare(&mut child);
    let output = child.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("fine"), "{role}: {told}\n{errors}");
}

#[test]
fn with_few_free_descriptors_each_call_fails_before_any_effect_or_succeeds() {
    for free in 0..=20 {
        let dir = tempfile::tempdir().unwrap();
        check_role(&format!("few-files:{free}"), dir.path(), |_| {});
    }
}

/// The role of a process that shares a store and runs out of descriptors: `host` or `guest`, and how many are free.
pub(crate) fn shared_few_files(dir: &Path, role: &str) {
    let (role, free) = role.split_once('-').unwrap();
    let free: usize = free.parse().unwrap();
    limit(Resource::Nofile, Some(FILES));
    let builder = || small().shared(true);
    for round in 0..2 {
        let store = call(free, role, None, || builder().open_or_create(dir));
        let key = |n: usize| format!("{role} {free} {round} {n:0>700}");
        let in_flight = claim(&store, &format!("{role} {free} {round}")).unwrap();
        for n in 0..100 {
            let op = || Operation::new(key(n)).durability(Durability::Flush);
            let _ = call(free, "mark", Some(&store), || store.mark(op()));
        }
        let claimed = call(free, "claim", Some(&store), || claim(&store, &key(1000)));
        assert!(call(free, "get", Some(&store), || store.get(key(99))).is_some());
        assert!(call(free, "forget", Some(&store), || store.forget(key(98))));
        call(free, "sync", Some(&store), || store.sync());
        let walk = || store.iter().collect::<Result<Vec<_>>>().map(|met| met.len());
        assert!(call(free, "walk", Some(&store), walk) >= 100);
        let _ = call(free, "later", Some(&store), || store.mark_async(key(2000)).wait());
        for claim in [in_flight, claimed] {
            let taken = leave(free);
            let ended = claim.complete("done");
            drop(taken);
            ended.unwrap_or_else(|e| panic!("{free} free: a claim in flight can't end: {e:?}"));
        }
        let taken = leave(free);
        let closed = store.close(Duration::ZERO);
        drop(taken);
        if let Err(e) = closed {
            check_scarce(&e, &format!("{free} free: close"));
        }
    }
    println!("fine");
}

#[test]
fn with_few_free_descriptors_a_host_and_a_guest_fail_before_any_effect_or_succeed() {
    for role in ["host", "guest"] {
        for free in 0..=20 {
            let dir = tempfile::tempdir().unwrap();
            let host = (role == "guest").then(|| small().shared(true).open_or_create(dir.path()));
            check_role(&format!("shared-few-files:{role}-{free}"), dir.path(), |_| {});
            if let Some(host) = host {
                let host = host.unwrap();
                assert_eq!(host.health(), Health::Writable);
                assert!(host.mark("the host goes on").unwrap().is_first());
            }
        }
    }
}

/// The role of a process with many segments and few descriptors.
pub(crate) fn many_segments(dir: &Path) {
    limit(Resource::Nofile, Some(FILES));
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for map in [false, true] {
        let keys = dir.join(format!("keys-{map}"));
        let builder = || small().segment_bytes(32 << 10).map(map).manual_maintenance(true);
        let mut store = builder().open_or_create(&keys).unwrap();
        let key = |n: u64| format!("{n:0>4000}");
        let many = 3 * FILES * 6;
        let mut most = 0;
        for n in 0..many {
            let op = Operation::new(key(n)).durability(Durability::Lazy);
            assert!(store.mark(op).unwrap().is_first());
            most = most.max(open() - before);
        }
        assert!(store.stats().segments as u64 > 2 * FILES, "{}", store.stats().segments);
        for _ in 0..2 {
            for n in (0..many).chain((0..many).rev().step_by(7)) {
                assert!(store.get(key(n)).unwrap().is_some());
                most = most.max(open() - before);
            }
            let walked = store.iter().inspect(|_| most = most.max(open() - before)).count();
            assert_eq!(walked as u64, many);
            drop(store);
            store = builder().open(&keys).unwrap();
        }
        // A sixth of the limit of the process, and the files of a small store.
        assert!(most < 40, "{most} open, map: {map}");
        println!("most: {most} (map: {map})");
    }
    println!("fine");
}

#[test]
fn descriptors_are_bounded_whatever_the_number_of_segments() {
    let dir = tempfile::tempdir().unwrap();
    check_role("many-segments", dir.path(), |_| {});
}

/// The role of a process that repairs a store of more segments than it may open files.
pub(crate) fn repair_many_segments(dir: &Path) {
    limit(Resource::Nofile, Some(FILES));
    let builder = || small().segment_bytes(32 << 10).manual_maintenance(true);
    let made = dir.join("made");
    let key = |n: u64| format!("{n:0>4000}");
    let many = FILES * 10;
    let store = builder().open_or_create(&made).unwrap();
    for n in 0..many {
        let op = Operation::new(key(n)).durability(Durability::Lazy);
        assert!(store.mark(op).unwrap().is_first());
    }
    assert!(store.stats().segments > FILES, "{}", store.stats().segments);
    store.close(Duration::ZERO).unwrap();
    // The manifest missing, or damaged; a record damaged in the middle of the log.
    for (manifest, record) in
        [("whole", true), ("gone", false), ("gone", true), ("damaged", false), ("damaged", true)]
    {
        let context = format!("manifest {manifest}, record damaged: {record}");
        let keys = dir.join("keys");
        crate::moved::copy(&made, &keys);
        match manifest {
            "gone" => std::fs::remove_file(keys.join("MANIFEST")).unwrap(),
            "damaged" => flip(&keys.join("MANIFEST"), 20),
            _ => {}
        }
        if record {
            let logs = std::fs::read_dir(keys.join("log")).unwrap().map(|entry| entry.unwrap());
            let mut logs: Vec<_> = logs.map(|entry| entry.path()).collect();
            logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
            logs.sort();
            flip(&logs[logs.len() / 2], 10_000);
        }
        for accept in [AcceptLoss::No, AcceptLoss::Yes] {
            let taken = leave(24);
            let report = repair(&keys, accept);
            drop(taken);
            let report = report.unwrap_or_else(|e| panic!("{context}, {accept:?}: {e:?}"));
            let is_whole = !record && accept == AcceptLoss::Yes;
            assert_eq!(report.damages.is_empty(), is_whole, "{context}, {accept:?}: {report:?}");
            assert_eq!(report.is_loss, record, "{context}, {accept:?}: {report:?}");
            let is_repaired = !record || accept == AcceptLoss::Yes;
            assert_eq!(report.is_repaired, is_repaired, "{context}, {accept:?}: {report:?}");
        }
        let store = builder().open(&keys).unwrap();
        let left = (0..many).filter(|n| store.get(key(*n)).unwrap().is_some()).count() as u64;
        assert_eq!(left, many - u64::from(record), "{context}");
        drop(store);
        std::fs::remove_dir_all(&keys).unwrap();
    }
    println!("fine");
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// A repair had each segment open until it ended, so a store that ran with few files could not be repaired.
#[test]
fn a_repair_has_few_files_open_whatever_the_number_of_segments() {
    let dir = tempfile::tempdir().unwrap();
    check_role("repair-many-segments", dir.path(), |_| {});
}

/// A walk continues in segments that compaction removed meanwhile, mapped or not, however few files may be open.
#[test]
fn a_walk_continues_in_segments_that_left_the_log() {
    for map in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let store = small().map(map).open_or_create(dir.path()).unwrap();
        let key = |n: u64| format!("{n:0>900}");
        for n in 0..300 {
            let op = Operation::new(key(n)).durability(Durability::Flush);
            assert!(store.mark(op).unwrap().is_first());
        }
        let mut met = 0;
        for found in store.iter() {
            found.unwrap();
            met += 1;
            if met % 100 == 10 {
                assert!(store.compact(u64::MAX).unwrap().is_complete());
            }
        }
        assert_eq!(met, 300);
    }
}

/// The role of a process that can start no thread, or only one.
pub(crate) fn no_thread(dir: &Path, more: &str) {
    drop(small().open_or_create(dir).unwrap());
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    limit(Resource::As, Some(pages * 4096 + (more.parse::<u64>().unwrap() << 20)));
    let error = small().open(dir).unwrap_err();
    limit(Resource::As, None);
    assert_eq!((error.kind(), error.path()), (ErrorKind::Io, Some(dir)), "{error:?}");
    for words in ["starting a background thread", "no thread or memory left"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    // That open left nothing.
    let store = small().open(dir).unwrap();
    assert!(store.stats().opening.was_clean && store.mark("k").unwrap().is_first());
    println!("fine");
}

#[test]
fn an_open_that_gets_no_thread_is_undone() {
    for more in [64, 192] {
        let dir = tempfile::tempdir().unwrap();
        let stack = (128_u64 << 20).to_string();
        let role = format!("no-thread:{more}");
        check_role(&role, dir.path(), |child| {
            child.env("RUST_MIN_STACK", stack);
        });
    }
}

/// The role of a process that shares a store and gets the threads of its background, and no further one: `host`, or `guest`.
pub(crate) fn shared_no_thread(dir: &Path, role: &str) {
    let builder = || small().shared(true);
    let limited = |more: u64| {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
        limit(Resource::As, Some(pages * 4096 + (more << 20)));
    };
    match role {
        "host" => {
            drop(builder().open_or_create(dir).unwrap());
            limited(2 * 128 + 64);
            let alone = builder().open(dir).unwrap();
            let Health::Alone { cause } = alone.health() else { panic!("{:?}", alone.health()) };
            assert!(cause.contains("starting the thread that serves guests"), "{cause}");
            assert!(alone.mark("k").unwrap().is_first());
            let refused = builder().open(dir).unwrap_err();
            let says = refused.to_string();
            assert!(refused.kind() == ErrorKind::Locked && says.contains("can't listen"), "{says}");
            limit(Resource::As, None);
            drop(alone);
            let (host, guest) = (builder().open(dir).unwrap(), builder().open(dir).unwrap());
            assert_eq!(host.health(), Health::Writable);
            assert!(!guest.mark("k").unwrap().is_first());
        }
        _ => {
            let guest = builder().open(dir).unwrap();
            limited(64);
            assert!(guest.mark("waited for").unwrap().is_first());
            // Nobody else reads its answer.
            let mut polled = guest.mark_async("polled");
            let told = polled.wait_timeout(Duration::from_secs(30)).expect("nobody reads");
            assert!(told.unwrap().is_first());
            let claim = claim(&guest, "waited for by a task").unwrap();
            let mut waiting =
                guest.claim_wait_async("waited for by a task", Duration::from_secs(30));
            assert!(waiting.wait_timeout(Duration::from_millis(20)).is_none());
            claim.complete("done").unwrap();
            let told = waiting.wait_timeout(Duration::from_secs(30)).expect("nobody reads");
            assert!(matches!(told.unwrap(), Claim::Completed(_)));
            limit(Resource::As, None);
            assert!(guest.mark_async("later").wait().unwrap().is_first());
        }
    }
    println!("fine");
}

#[test]
fn a_host_and_a_guest_that_get_no_thread_go_on_without() {
    for role in ["host", "guest"] {
        let dir = tempfile::tempdir().unwrap();
        let host = (role == "guest").then(|| small().shared(true).open_or_create(dir.path()));
        let stack = (128_u64 << 20).to_string();
        check_role(&format!("shared-no-thread:{role}"), dir.path(), |child| {
            child.env("RUST_MIN_STACK", stack);
        });
        drop(host);
    }
}

/// The role of a guest that is to become the host with few descriptors free.
pub(crate) fn heir_of_few_files(dir: &Path, free: &str) {
    let free: usize = free.parse().unwrap();
    limit(Resource::Nofile, Some(FILES));
    let host = small().shared(true).open_or_create(dir).unwrap();
    let heir = small().shared(true).open(dir).unwrap();
    let in_flight = claim(&heir, "in flight").unwrap();
    drop(host);
    let taken = leave(free);
    let told = std::thread::scope(|scope| {
        let mut sent = heir.mark_async("k");
        let told = sent.wait_timeout(Duration::from_millis(50));
        let is_there = told.is_some();
        // It waits for a host, as a call does while another process opens the store.
        let others = scope.spawn(move || told.unwrap_or_else(|| sent.wait()));
        assert!(
            !matches!(heir.health(), Health::Poisoned { .. }),
            "{free} free: {:?}",
            heir.health()
        );
        drop(taken);
        assert!(others.join().unwrap().unwrap().is_first());
        is_there
    });
    assert_eq!(heir.health(), Health::Writable);
    in_flight.complete("done").unwrap();
    println!("at once: {told}");
    println!("fine");
}

/// The host closes when its guest has nearly no descriptor left: a later try hosts the store, or another process.
#[test]
fn with_few_free_descriptors_a_guest_hosts_the_store_later() {
    let is_long = std::env::var_os("ONLYONCE_LONG").is_some();
    for free in (0..=20).filter(|free| is_long || [0, 1, 3, 6, 9, 14].contains(free)) {
        let dir = tempfile::tempdir().unwrap();
        check_role(&format!("heir-of-few-files:{free}"), dir.path(), |_| {});
        let store = small().shared(true).open(dir.path()).unwrap();
        assert!(matches!(store.claim("in flight").unwrap(), Claim::Completed(_)), "{free} free");
        assert!(!store.mark("k").unwrap().is_first(), "{free} free");
    }
}

#[test]
fn a_store_works_without_memory_maps() {
    let sim = Sim::small(7);
    sim.fail_maps();
    let store = sim.open().unwrap();
    for n in 0..300_u64 {
        assert!(store.mark((n, "k".repeat(900))).unwrap().is_first());
    }
    store.merge_index().unwrap();
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    assert!((0..300_u64).all(|n| store.get((n, "k".repeat(900))).unwrap().is_some()));
    store.close(Duration::ZERO).unwrap();
    assert_eq!(sim.open().unwrap().iter().filter_map(Result::ok).count(), 300);
}
