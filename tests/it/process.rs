//! One process opens a store at a time: a second opener, in this process and in another, and a forked child.

use crate::child::{child, small};
use onlyonce::Durability::{Flush, Lazy};
use onlyonce::{Claim, Error, ErrorKind, Operation, State, Store};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout};
use std::sync::atomic::{AtomicBool, Ordering};

/// The role of an owner that runs until its standard input ends.
pub(crate) fn hold(dir: &Path) {
    // Without background, so that the files stay unchanged.
    let store = small().manual_maintenance(true).open_or_create(dir).unwrap();
    assert!(store.mark("marked").unwrap().is_first());
    println!("open");
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// The role of a process that lives for one pair.
pub(crate) fn short(dir: &Path, n: &str) {
    let builder = small().open_timeout(std::time::Duration::from_secs(60));
    let store = builder.open_or_create(dir).unwrap();
    let Claim::Acquired(claim) = store.claim(("short", n)).unwrap() else {
        panic!("{n} was known")
    };
    claim.complete(n).unwrap();
    store.close(std::time::Duration::from_secs(60)).unwrap();
    println!("closed");
}

/// The role of a second opener.
pub(crate) fn open(dir: &Path) {
    let error = small().open(dir).unwrap_err();
    println!("error {:?} {error}", error.kind());
}

/// The role of a request that starts a job elsewhere: it claims, hands the claim over, and its process ends.
pub(crate) fn submits(dir: &Path, job: &str) {
    let store = small().open_or_create(dir).unwrap();
    let Claim::Acquired(claim) = store.claim(job).unwrap() else { panic!("{job} was known") };
    let token = claim.token();
    let ticket = claim.detach(LEASE).unwrap();
    println!("ticket {token} {ticket}");
    // No close: the process ends as it stands.
    std::process::exit(0);
}

/// The role of the job's answer, which comes with the ticket to another process.
pub(crate) fn webhook(dir: &Path, ticket: &str) {
    let store = small().open(dir).unwrap();
    let told = match store.attach(&ticket.parse().unwrap()) {
        Ok(claim) => claim.complete("the job's answer").map(|()| "completed".to_owned()),
        Err(e) => Err(e),
    };
    println!("told {}", told.unwrap_or_else(|e| format!("{:?}", e.kind())));
}

/// The role of a client that asks for the result.
pub(crate) fn asks(dir: &Path, job: &str) {
    let store = small().open(dir).unwrap();
    println!(
        "answer {}",
        match store.claim(job).unwrap() {
            Claim::Completed(done) =>
                format!("{} by {}", done.decode::<String>().unwrap(), done.token()),
            other => other.to_string(),
        }
    );
}

/// For the jobs that end in time.
const LEASE: std::time::Duration = std::time::Duration::from_secs(3600);

/// A user that owns nothing else.
const OWNER: u32 = 65534;

/// The role of the directory's owner, after root used it.
#[expect(unsafe_code, reason = "std can't change the user of a process that runs")]
pub(crate) fn as_owner(dir: &Path) {
    // SAFETY: changes ids of this process, nothing in memory.
    let changed = unsafe { (libc::setgroups(0, std::ptr::null()), libc::setgid(OWNER)) };
    // SAFETY: as above.
    assert_eq!((changed, unsafe { libc::setuid(OWNER) }), ((0, 0), 0));
    let store = small().open(dir).unwrap();
    assert!(!store.mark("by root").unwrap().is_first());
    let _ = store.mark("by the owner").unwrap();
    store.rebuild_index().unwrap();
    store.compact(u64::MAX).unwrap();
    assert!(store.verify().unwrap().is_whole());
    store.close(std::time::Duration::ZERO).unwrap();
    println!("fine");
}

/// The role of a program that forks. The child may use nothing of the store, and drops everything.
#[expect(unsafe_code, reason = "a real fork is what this is about")]
pub(crate) fn fork(dir: &Path) {
    // Without background, so that only the child could change the files.
    let store = small().manual_maintenance(true).open_or_create(dir).unwrap();
    assert!(store.mark("before").unwrap().is_first());
    let Claim::Acquired(claim) = store.claim("k").unwrap() else { panic!() };
    let Claim::Acquired(other) = store.claim("other").unwrap() else { panic!() };
    drop(other);
    let Claim::Interrupted(lost) = store.claim("other").unwrap() else { panic!() };
    store.sync().unwrap();
    let before = files(dir);
    let handle = claim.handle();
    let minute = std::time::Duration::from_secs(60);
    // Sent before the fork: both processes have them.
    let (mut waiting, mut ended) = (store.claim_wait_async("k", minute), claim.ended());
    let no_time = std::time::Duration::ZERO;
    assert!(waiting.wait_timeout(no_time).is_none() && ended.wait_timeout(no_time).is_none());
    let dropped = store.claim_wait_async("k", minute);
    // SAFETY: the child allocates and makes system calls, which glibc allows after a fork; of the store's locks it
    // takes none, which is what is tested.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let refused_as = |expected: ErrorKind, what: &str, kind: ErrorKind| {
            if kind != expected {
                println!("{what} in a forked child: {kind:?}");
                // SAFETY: ends the child without running what belongs to the parent.
                unsafe { libc::_exit(1) };
            }
        };
        let refused = |what: &str, kind: ErrorKind| refused_as(ErrorKind::Forked, what, kind);
        refused("claim", store.claim("new").unwrap_err().kind());
        refused("mark", store.mark("new").unwrap_err().kind());
        refused("get", store.get("before").unwrap_err().kind());
        refused("sync", store.sync().unwrap_err().kind());
        refused("step", store.step().unwrap_err().kind());
        refused("forget", store.forget("before").unwrap_err().kind());
        refused("renew", handle.renew(std::time::Duration::from_secs(9)).unwrap_err().kind());
        let kind_of = |told: Option<onlyonce::Result<()>>| told.unwrap().unwrap_err().kind();
        refused("waiting", kind_of(waiting.wait_timeout(minute).map(|told| told.map(drop))));
        refused("ended", kind_of(ended.wait_timeout(minute)));
        refused("claim later", store.claim_async("new").wait().unwrap_err().kind());
        refused("save progress", handle.save_progress("x").unwrap_err().kind());
        drop(dropped);
        refused("take over", lost.take_over().unwrap_err().kind());
        refused("complete", claim.complete("by the child").unwrap_err().kind());
        refused("close", store.close(std::time::Duration::ZERO).unwrap_err().kind());
        let _ = store.iter().count();
        let _ = (store.health(), store.stats());
        // An open of its own is refused like any other.
        refused_as(ErrorKind::Locked, "open", small().open(dir).unwrap_err().kind());
        drop((handle, store));
        // SAFETY: as above.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: `status` is a valid place for one int.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert_eq!(status, 0, "the child");
    assert!(files(dir) == before, "the child wrote something");
    // The end of the child released no lock, and the parent continues.
    assert_eq!(small().open(dir).unwrap_err().kind(), ErrorKind::Locked);
    claim.complete("by the parent").unwrap();
    assert!(matches!(waiting.wait().unwrap(), Claim::Completed(_)));
    ended.wait().unwrap();
    assert!(matches!(dropped.wait().unwrap(), Claim::Completed(_)));
    lost.take_over().unwrap().complete("again").unwrap();
    assert!(store.close(std::time::Duration::ZERO).unwrap().is_empty());
    println!("fine");
}

/// The role of a program that forks while one of its threads compacts and merges: in the child no thread will ever
/// release the locks that this thread held.
#[expect(unsafe_code, reason = "a real fork is what this is about")]
pub(crate) fn fork_busy(dir: &Path) {
    let store = small().segment_bytes(32 << 10).index_memory_max(4096).open_or_create(dir).unwrap();
    let key = |n: u64| format!("{n:0>200}");
    (0..500).for_each(|n| {
        assert!(store.mark(Operation::new(key(n)).durability(Flush)).unwrap().is_first())
    });
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut rounds = 0;
            while !is_done.load(Ordering::SeqCst) {
                for n in (0..500).skip(rounds % 50).step_by(50) {
                    let op = Operation::new(key(n)).durability(Flush);
                    assert!(store.forget(key(n)).is_ok() && store.mark(op).unwrap().is_first());
                }
                assert!(store.compact(u64::MAX).unwrap().is_complete());
                store.rebuild_index().unwrap();
                rounds += 1;
            }
            rounds
        });
        // At most forks, one of these holds the lock of the log's tail.
        for n in 0..2 {
            let (store, is_done) = (&store, &is_done);
            scope.spawn(move || {
                let op = Operation::new(("hot", n)).claim_durability(Lazy);
                while !is_done.load(Ordering::SeqCst) {
                    let Claim::Acquired(claim) = store.claim(&op).unwrap() else { panic!() };
                    claim.abort("nothing").unwrap();
                }
                assert!(store.forget(("hot", n)).unwrap());
            });
        }
        for _ in 0..20 {
            let moved = store.stats().bytes_moved;
            while store.stats().bytes_moved == moved && !busy.is_finished() {
                std::thread::yield_now();
            }
            let mut walk = store.iter();
            assert!(walk.next().is_some());
            // SAFETY: as above.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // A child that waits for a lock for ever gets no error.
                // SAFETY: as above.
                unsafe { libc::alarm(20) };
                let told = [
                    store.iter().next().map_or(Ok(()), |met| met.map(drop)),
                    walk.next().map_or(Ok(()), |met| met.map(drop)),
                    store.compact(u64::MAX).map(drop),
                    store.rebuild_index(),
                    store.merge_index(),
                    store.verify().map(drop),
                    store.estimate().map(drop),
                    store.step().map(drop),
                    store.get(key(0)).map(drop),
                    store.close(std::time::Duration::ZERO).map(drop),
                ];
                let is_told =
                    |told: Result<(), Error>| told.is_err_and(|e| e.kind() == ErrorKind::Forked);
                let is_told = told.into_iter().all(is_told);
                let _ = (store.health(), store.stats());
                drop(store.clone());
                let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
                let has_written = io
                    .lines()
                    .any(|line| line.strip_prefix("wchar: ").is_some_and(|bytes| bytes != "0"));
                // SAFETY: as above.
                unsafe { libc::_exit(i32::from(!is_told) + 2 * i32::from(has_written)) };
            }
            let mut status = -1;
            // SAFETY: `status` is a valid place for one int.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            // The others end, too, where it fails.
            is_done.fetch_or(status != 0, Ordering::SeqCst);
            assert_eq!(status, 0, "the child");
        }
        is_done.store(true, Ordering::SeqCst);
        println!("rounds {}", busy.join().unwrap());
    });
    assert!((0..500).all(|n| store.get(key(n)).unwrap().is_some()));
    assert!(store.verify().unwrap().is_whole());
    store.close(std::time::Duration::ZERO).unwrap();
    println!("fine");
}

/// The role of a program whose forked child outlives it. Each line of its input lets the child continue.
#[expect(unsafe_code, reason = "a real fork is what this is about")]
pub(crate) fn fork_outlives(dir: &Path) {
    let store = small().open_or_create(dir).unwrap();
    for n in 0..200_u64 {
        assert!(store.mark((n, "x".repeat(900))).unwrap().is_first());
    }
    store.merge_index().unwrap();
    let Claim::Acquired(claim) = store.claim("k").unwrap() else { panic!() };
    drop(store.claim("other").unwrap());
    let Claim::Interrupted(lost) = store.claim("other").unwrap() else { panic!() };
    let mut walk = store.iter();
    assert!(walk.next().is_some());
    // SAFETY: as above.
    let pid = unsafe { libc::fork() };
    if pid != 0 {
        // SAFETY: ends only this process, as a kill would.
        unsafe { libc::_exit(0) };
    }
    // The child releases the parent's copies at its start, which may come after the end of the parent.
    println!("forked");
    let wait = || assert!(std::io::stdin().read_line(&mut String::new()).unwrap() > 0);
    wait();
    println!("told {}", store.claim("new").unwrap_err());
    println!("while open: {:?}", small().open(dir).unwrap_err().kind());
    wait();
    let own = small().open(dir).unwrap();
    // The child releases what it has of its parent's, under numbers that belong to its own store by now.
    drop(lost);
    drop(walk);
    drop(claim);
    drop(store);
    assert!(matches!(own.claim("k").unwrap(), Claim::Interrupted(_)));
    for n in 200..400_u64 {
        assert!(own.mark((n, "x".repeat(900))).unwrap().is_first());
    }
    assert!(own.compact(u64::MAX).unwrap().is_complete());
    assert!(own.verify().unwrap().is_whole());
    assert_eq!(own.iter().filter_map(Result::ok).count(), 402 + 1);
    own.close(std::time::Duration::ZERO).unwrap();
    println!("fine");
    // SAFETY: as above; the harness belongs to the parent.
    unsafe { libc::_exit(0) };
}

/// Starts a role and returns its lines.
fn start(role: &str, dir: &Path) -> (Child, std::io::Lines<BufReader<ChildStdout>>) {
    let mut child = child(role, dir).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

/// The first line that begins so; the test harness prints lines of its own.
fn expect(lines: &mut impl Iterator<Item = std::io::Result<String>>, begin: &str) -> String {
    let mut seen = Vec::new();
    for line in lines {
        let line = line.unwrap();
        // The harness writes `test … ... ` before the first line.
        if let Some(at) = line.find(begin) {
            return line[at..].to_owned();
        }
        seen.push(line);
    }
    panic!("no {begin:?} in {seen:?}")
}

/// Everything below a directory, with contents.
pub(crate) fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// `… is open in process 17, for 3 s: …`
fn check_locked(message: &str, pid: u32) {
    let (_, time) = message.split_once(&format!(" is open in process {pid}, for ")).expect(message);
    let (seconds, advice) = time.split_once(" s: ").expect(message);
    assert!(seconds.parse::<u64>().unwrap() < 600, "{message}");
    assert!(advice.contains("one process opens a store at a time"), "{message}");
}

#[test]
fn a_second_opener_in_another_process_learns_the_owner_and_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let (mut owner, mut lines) = start("hold", &keys);
    expect(&mut lines, "open");
    let before = files(&keys);
    let error = small().open(&keys).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Locked, Some(&*keys)));
    check_locked(&error.to_string(), owner.id());
    check_locked(&small().open_or_create(&keys).unwrap_err().to_string(), owner.id());
    assert!(files(&keys) == before, "a trace");
    drop(owner.stdin.take());
    assert!(owner.wait().unwrap().success());
    let store = small().open(&keys).unwrap();
    assert!(matches!(store.claim("marked").unwrap(), Claim::Completed(_)));
}

/// 376 of 400 were refused.
#[test]
fn short_processes_at_the_same_time_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let lives = if std::env::var_os("ONLYONCE_LONG").is_some() { 400 } else { 40 };
    let next = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= lives {
                        return;
                    }
                    let (mut short, mut lines) = start(&format!("short:{n}"), &keys);
                    expect(&mut lines, "closed");
                    assert!(short.wait().unwrap().success());
                }
            });
        }
    });
    let store = small().open(&keys).unwrap();
    assert!((0..lives).all(|n| {
        let found = store.get(("short", n.to_string())).unwrap();
        matches!(found, Some(State::Completed(_)))
    }));
}

#[test]
fn an_opening_waits_until_the_store_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let old = small().open_or_create(&keys).unwrap();
    assert!(old.mark("k").unwrap().is_first());
    let minute = std::time::Duration::from_secs(60);
    std::thread::scope(|scope| {
        let new = scope.spawn(|| small().open_timeout(minute).open(&keys).unwrap());
        (0..100).for_each(|n| drop(old.mark(("meanwhile", n)).unwrap()));
        assert!(!new.is_finished());
        old.close(minute).unwrap();
        assert!(!new.join().unwrap().mark("k").unwrap().is_first());
    });
    // What waiting doesn't change is refused at once.
    let missing = dir.path().join("missing");
    let forever = std::time::Duration::MAX;
    let error = small().open_timeout(forever).open(&missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_second_opener_is_refused_while_this_process_has_the_store_open() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let store = small().open_or_create(&keys).unwrap();
    // Nothing was written yet: the system's list of locks names the owner, and the time is unknown.
    let own = format!("process {}", std::process::id());
    let error = Store::open(&keys).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains(&own), "{error}");
    assert!(store.mark("k").unwrap().is_first());
    check_locked(&Store::open(&keys).unwrap_err().to_string(), std::process::id());

    let (mut second, mut lines) = start("open", &keys);
    let line = expect(&mut lines, "error ");
    assert!(line.starts_with("error Locked"), "{line}");
    check_locked(&line, std::process::id());
    assert!(second.wait().unwrap().success());

    // A clone is no second opener, and a guard keeps the store open.
    let clone = store.clone();
    drop(store);
    let Claim::Acquired(claim) = clone.claim("guarded").unwrap() else { panic!() };
    drop(clone);
    assert_eq!(Store::open(&keys).unwrap_err().kind(), ErrorKind::Locked);
    claim.complete("done").unwrap();
    let store = Store::open(&keys).unwrap();
    assert!(store.stats().opening.was_clean);
}

/// Says what a process in that role printed after `begin`, and that it ended by itself.
fn printed(role: &str, dir: &Path, begin: &str) -> String {
    let (mut process, mut lines) = start(role, dir);
    let line = expect(&mut lines, begin);
    assert!(process.wait().unwrap().success(), "{role}: {line}");
    line.strip_prefix(begin).unwrap().trim_end().to_owned()
}

/// A job is started by one process, answered by a second one, and its result is asked for in a third.
#[test]
fn a_claim_is_handed_from_process_to_process_by_its_ticket() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let line = printed("submits:job-7", &keys, "ticket ");
    let (token, ticket) = line.split_once(' ').unwrap();
    // Meanwhile it is in progress for everybody, and a ticket that nobody made opens nothing.
    assert!(printed("asks:job-7", &keys, "answer ").contains("in progress"));
    let forged = |at: usize| {
        let mut forged = ticket.to_owned().into_bytes();
        forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
        String::from_utf8(forged).unwrap()
    };
    // One digit of its MAC differs.
    let forged = forged(30);
    assert_eq!(printed(&format!("webhook:{forged}"), &keys, "told "), "ClaimLost");
    assert_eq!(printed(&format!("webhook:{ticket}"), &keys, "told "), "completed");
    // The same attempt, under the token that the first process had.
    let answer = printed("asks:job-7", &keys, "answer ");
    assert_eq!(answer, format!("the job's answer by {token}"));
    // Delivered twice, as webhooks are.
    assert_eq!(printed(&format!("webhook:{ticket}"), &keys, "told "), "ClaimLost");
    assert_eq!(printed("asks:job-7", &keys, "answer "), answer);
}

/// The job's answer comes when its lease has passed and another attempt took over, which has completed or is at work.
#[test]
fn a_ticket_that_comes_after_a_take_over_is_told_so_in_every_process() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let mut tickets = Vec::new();
    for job in ["late", "later"] {
        let line = printed(&format!("submits:{job}"), &keys, "ticket ");
        tickets.push(line.split_once(' ').unwrap().1.to_owned());
    }
    let store = small().open(&keys).unwrap();
    for job in ["late", "later"] {
        // As if the lease had passed: an operator says that the job is lost.
        let Some(State::InProgress(seen)) = store.get(job).unwrap() else { panic!() };
        assert!(seen.is_detached() && seen.lease_left().is_some_and(|left| left <= LEASE));
        assert!(store.interrupt(&seen, "the job's host is gone").unwrap());
        let Claim::Interrupted(lost) = store.claim(job).unwrap() else { panic!() };
        let guard = lost.take_over().unwrap();
        if job == "late" {
            guard.complete("by the second attempt").unwrap();
        } else {
            drop(guard.detach(LEASE).unwrap());
        }
    }
    store.close(std::time::Duration::ZERO).unwrap();
    for ticket in &tickets {
        assert_eq!(printed(&format!("webhook:{ticket}"), &keys, "told "), "ClaimLost");
    }
    let answer = printed("asks:late", &keys, "answer ");
    assert!(answer.starts_with("by the second attempt"), "{answer}");
    assert!(printed("asks:later", &keys, "answer ").contains("in progress"));
}

#[test]
fn a_forked_child_gets_an_error_and_writes_nothing_and_the_parent_continues() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let (mut parent, mut lines) = start("fork", &keys);
    expect(&mut lines, "fine");
    assert!(parent.wait().unwrap().success());
    let store = small().open(&keys).unwrap();
    assert!(store.stats().opening.was_clean);
    let Claim::Completed(done) = store.claim("k").unwrap() else { panic!() };
    assert_eq!(&done.result()[..], b"by the parent");
    assert!(store.get("new").unwrap().is_none());
}

#[test]
fn a_child_forked_during_a_compaction_gets_an_error_and_the_compaction_continues() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let (mut parent, mut lines) = start("fork-busy", &keys);
    let rounds = expect(&mut lines, "rounds ");
    expect(&mut lines, "fine");
    assert!(parent.wait().unwrap().success());
    println!("forks: 20 children, {rounds}");
    let store = small().open(&keys).unwrap();
    assert!(store.stats().opening.was_clean);
    assert_eq!(store.iter().filter_map(Result::ok).count(), 500);
}

/// One use by root left files that the owner could not open, so the owner lost the store.
#[test]
fn files_that_root_creates_belong_to_the_owner_of_the_directory() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    // SAFETY: asks for a number.
    #[expect(unsafe_code, reason = "std doesn't report the user it runs as")]
    let is_root = unsafe { libc::geteuid() } == 0;
    if !is_root {
        println!("only root can visit");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let keys = dir.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    chown(&keys, Some(OWNER), Some(OWNER)).unwrap();
    let check = |when: &str| {
        let dirs = ["", "log", "index", "expired"].map(|name| keys.join(name));
        for path in files(&keys).into_keys().chain(dirs) {
            let found = std::fs::metadata(&path).unwrap();
            assert_eq!((found.uid(), found.gid()), (OWNER, OWNER), "{when}: {}", path.display());
        }
        let (mut owner, mut lines) = start("as-owner", &keys);
        expect(&mut lines, "fine");
        assert!(owner.wait().unwrap().success());
    };
    let visit = || {
        let store = small().open_or_create(&keys).unwrap();
        let _ = store.mark("by root").unwrap();
        let brief = std::time::Duration::from_millis(1);
        let op = |n: u64| {
            let op = Operation::new(("short", n)).durability(Flush).retention(brief);
            op.remember_expired(std::time::Duration::from_secs(3600))
        };
        // Until some have expired, and left the log for the files of remembered keys.
        for n in 0.. {
            let _ = store.mark(op(n)).unwrap();
            store.compact(u64::MAX).unwrap();
            if std::fs::read_dir(keys.join("expired")).is_ok_and(|found| found.count() > 0) {
                break;
            }
        }
        store.rebuild_index().unwrap();
        store.close(std::time::Duration::ZERO).unwrap();
    };
    visit();
    check("made by root");
    visit();
    check("visited by root");
    std::fs::remove_file(keys.join("MANIFEST")).unwrap();
    onlyonce::admin::repair(&keys, onlyonce::admin::AcceptLoss::Yes).unwrap();
    check("repaired by root");
}

/// The child kept the directory locked, through an inherited descriptor that it could not use.
#[test]
fn a_directory_is_free_when_its_owner_ends_though_a_forked_child_lives() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let (mut parent, mut lines) = start("fork-outlives", &keys);
    let mut go_on = parent.stdin.take().unwrap();
    expect(&mut lines, "forked");
    assert!(parent.wait().unwrap().success());
    let store = small().open(&keys).unwrap();
    let count = store.iter().filter_map(Result::ok).count();
    assert!(store.mark("between").unwrap().is_first());
    writeln!(go_on).unwrap();
    let told = expect(&mut lines, "told ");
    assert!(told.contains("once the parent has closed it or ended, open it here"), "{told}");
    expect(&mut lines, "while open: Locked");
    assert!(matches!(store.claim("k").unwrap(), Claim::Interrupted(_)));
    store.close(std::time::Duration::ZERO).unwrap();
    assert_eq!(count, 202);
    writeln!(go_on).unwrap();
    expect(&mut lines, "fine");
    let store = small().open(&keys).unwrap();
    assert!(store.stats().opening.was_clean);
    assert_eq!(store.iter().filter_map(Result::ok).count(), 403);
}
