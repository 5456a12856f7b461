//! A reader: what it shows is what an opening of the same files would, and it changes nothing.

use crate::child::{child, small};
use crate::crash::{Tried, run_until, workloads};
use crate::process::files;
use crate::script::{is_of_index, remembered, stride, tiny};
use onlyonce::admin::{StateKind, Verification};
use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{Claim, Durability, Error, ErrorKind, Key, Operation, Reader, State, Store};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

type Result<T, E = Error> = std::result::Result<T, E>;

/// What a store or a reader shows.
type Shown = BTreeMap<String, State>;

/// Asks for all keys, by a walk and one by one.
fn shown(
    walk: impl Fn() -> onlyonce::admin::Iter,
    get: impl Fn(&Key<'_>) -> Result<Option<State>>,
) -> Result<Shown> {
    let once = || -> Result<Shown> {
        let mut shown = Shown::new();
        for entry in walk() {
            let (key, state) = entry?;
            assert_eq!(get(&key)?.as_ref(), Some(&state), "{key}");
            assert!(shown.insert(key.to_string(), state).is_none(), "{key} twice");
        }
        for name in remembered() {
            let found = get(&Key::from(&name))?;
            shown.extend(found.map(|state| (name, state)));
        }
        Ok(shown)
    };
    for _ in 0..20 {
        match once() {
            // The call that meets a rotten table has it mended.
            Err(e) if is_of_index(e.path()) => {}
            shown => return shown,
        }
    }
    once()
}

fn shown_by(store: &Store) -> Result<Shown> {
    shown(|| store.iter(), |key| store.get(key))
}

fn read_by(reader: &Reader) -> Result<Shown> {
    shown(|| reader.iter(), |key| reader.get(key))
}

/// An error without what differs between two openings.
fn told(error: &Error) -> (ErrorKind, Option<PathBuf>, Option<u64>, String) {
    (error.kind(), error.path().map(Path::to_owned), error.offset(), error.to_string())
}

/// Reads a machine's store, and opens it on a copy of the machine. Both must tell the same, and the machine stays as it is.
fn compare(machine: &Sim, context: &str) -> bool {
    let (before, changes) = (machine.contents().unwrap(), machine.changes());
    let copy = machine.copy();
    let reader = machine.open_reader();
    let store = copy.open_existing(tiny(), false);
    let is_open = match (&reader, &store) {
        (Ok(reader), Ok(store)) => {
            let (found, expected) = (reader.stats().unwrap(), store.stats());
            let what = |stats: &onlyonce::admin::Stats| {
                (stats.opening.was_clean, stats.opening.records_resynced)
            };
            assert_eq!(what(&found), what(&expected), "{context}");
            assert_eq!(found.opening.cut, expected.opening.cut, "{context}");
            let counts = |stats: &onlyonce::admin::Stats| {
                [stats.interrupted, stats.held, stats.detached, stats.delayed, stats.in_flight]
            };
            assert_eq!(counts(&found), counts(&expected), "{context}");
            let [found, expected] =
                [read_by(reader), shown_by(store)].map(|shown| shown.map_err(|e| told(&e)));
            assert_eq!(found, expected, "{context}");
            let named = |names: Result<Vec<String>>| names.map_err(|e| told(&e));
            assert_eq!(named(reader.namespaces()), named(store.namespaces()), "{context}");
            let damage = |found: Verification| {
                let told: Vec<_> = found.damages.iter().chain(&found.unread).map(told).collect();
                (found.records, told)
            };
            let [found, expected] = [reader.verify(), store.verify()].map(|f| damage(f.unwrap()));
            assert_eq!(found.1, expected.1, "{context}");
            true
        }
        (Err(found), Err(expected)) => {
            assert_eq!(told(found), told(expected), "{context}");
            false
        }
        (reader, store) => {
            panic!("{context}: {:?}, {:?}", reader.as_ref().err(), store.as_ref().err())
        }
    };
    drop(reader);
    assert_eq!(machine.changes(), changes, "{context}: the disk was changed");
    assert!(machine.contents().unwrap() == before, "{context}: a file was changed");
    is_open
}

#[test]
fn after_a_crash_at_any_change_a_reader_shows_what_an_opening_would() {
    let is_long = std::env::var_os("ONLYONCE_LONG").is_some();
    let (mut tried, mut read, mut refused) = (Tried::default(), 0, 0);
    for (name, ops) in workloads() {
        for cut in (0..).step_by(if is_long { 1 } else { 4 }) {
            let Some((sim, _)) = run_until(&ops, cut) else { break };
            let mut machines = vec![(sim.copy(), "killed".to_owned())];
            let (seeds, stride) = if is_long { (6, 1) } else { (2, 4) };
            let first = usize::try_from(cut / 4).unwrap() % stride;
            let crashes = sim.crashes(seeds).into_iter().skip(first).step_by(stride);
            machines.extend(crashes.map(|crash| (sim.after(crash), format!("{crash:?}"))));
            for (machine, crash) in machines {
                if tried.is_new(&machine, ()) {
                    match compare(&machine, &format!("{name}, cut at change {cut}, {crash}")) {
                        true => read += 1,
                        false => refused += 1,
                    }
                }
            }
        }
    }
    println!("{read} machines read, {refused} without a store");
    assert!(read > 300 && refused > 0, "{read} {refused}");
}

/// A store with tables, memories, open keys of each kind and namespaces: closed, or killed with a tail.
fn populated(is_closed: bool) -> Sim {
    let sim = Sim::small(7);
    let builder = || tiny().result_bytes_max(1000);
    let store = sim.open_with(builder()).unwrap();
    let hour = Duration::from_secs(3600);
    for n in 0..20_u64 {
        let op = Operation::new(("old", n)).retention(hour).remember_expired(100 * hour);
        assert!(store.mark(op).unwrap().is_first());
    }
    assert!(store.namespace("acme").mark("in it").unwrap().is_first());
    sim.advance(2 * hour);
    store.compact(u64::MAX).unwrap();
    let Claim::Acquired(claim) = store.claim("done").unwrap() else { panic!() };
    claim.complete(&[7; 900]).unwrap();
    drop(store.claim("interrupted").unwrap());
    let Claim::Acquired(claim) = store.claim("held").unwrap() else { panic!() };
    claim.hold("a person decides").unwrap();
    let Claim::Acquired(claim) = store.claim("detached").unwrap() else { panic!() };
    claim.detach(hour).unwrap();
    let Claim::Acquired(claim) = store.claim("aborted").unwrap() else { panic!() };
    claim.abort("not today").unwrap();
    store.merge_index().unwrap();
    let kept = store.mark(Operation::new("expires").retention(5 * hour)).unwrap();
    assert!(kept.is_first());
    if is_closed {
        store.close(Duration::ZERO).unwrap();
        return sim.copy();
    }
    let claim = store.claim("open").unwrap();
    for n in 0..5_u64 {
        let op = Operation::new(("tail", n)).durability(Durability::Flush);
        assert!(store.mark(op).unwrap().is_first());
    }
    let killed = sim.copy();
    drop(claim);
    killed
}

#[test]
fn a_reader_shows_open_keys_namespaces_and_what_has_expired() {
    for is_closed in [true, false] {
        let sim = populated(is_closed);
        assert!(compare(&sim, "as it is"));
        let reader = sim.open_reader().unwrap();
        let is_open = |key: &str, kind: fn(&State) -> bool| {
            assert!(reader.get(key).unwrap().is_some_and(|state| kind(&state)), "{key}");
        };
        is_open("interrupted", |state| matches!(state, State::Interrupted(_)));
        is_open("held", |state| matches!(state, State::Held(_)));
        is_open("detached", |state| matches!(state, State::InProgress(_)));
        is_open("aborted", |state| matches!(state, State::Aborted(_)));
        is_open("expires", |state| matches!(state, State::Completed(_)));
        let Some(State::Completed(done)) = reader.get("done").unwrap() else { panic!() };
        assert_eq!(done.result().to_vec(), [7; 900]);
        assert!(matches!(reader.get(("old", 3_u64)).unwrap(), Some(State::Expired(_))));
        if !is_closed {
            is_open("open", |state| matches!(state, State::Interrupted(_)));
            assert!(reader.get(("tail", 4_u64)).unwrap().is_some());
        }
        assert_eq!(reader.namespaces().unwrap(), ["acme"]);
        let acme = reader.namespace("acme");
        assert!(acme.get("in it").unwrap().is_some() && reader.get("in it").unwrap().is_none());
        assert_eq!(acme.iter().count(), 1);
        let held = reader.iter().in_states(&[StateKind::Held]).map(|entry| entry.unwrap().0);
        assert_eq!(held.collect::<Vec<_>>(), [Key::from("held")]);
        assert_eq!(reader.stats().unwrap().held, 1);
        assert!(reader.verify().unwrap().is_whole());
        // The clock goes on.
        sim.advance(Duration::from_secs(6 * 3600));
        assert!(reader.get("expires").unwrap().is_none());
        is_open("detached", |state| matches!(state, State::Interrupted(_)));
        assert!(compare(&sim, "later"));
    }
}

/// Each byte of the store rots in turn: a reader refuses, mends in memory, or answers, as an opening does.
#[test]
fn a_reader_meets_damage_as_an_opening_does() {
    let stride = stride(3, 97);
    let (mut read, mut refused) = (0, 0);
    for is_closed in [true, false] {
        let sim = populated(is_closed);
        for (name, bytes) in sim.contents().unwrap() {
            let path = Path::new("/store").join(&name);
            for at in (0..bytes.len()).step_by(stride) {
                // Flips in the zeros of space prepared ahead are many, and alike.
                if bytes[at] == 0 && at % 5 != 0 {
                    continue;
                }
                let machine = sim.copy();
                machine.flip_byte(&path, at as u64, 0x10).unwrap();
                match compare(&machine, &format!("{} byte {at}", name.display())) {
                    true => read += 1,
                    false => refused += 1,
                }
            }
            let breaks: [fn(&Sim, &Path) -> std::io::Result<()>; 3] = [
                |sim, path| sim.remove(path),
                |sim, path| sim.write_file(path, b""),
                |sim, path| sim.replace_by_dir(path),
            ];
            for break_it in breaks {
                let machine = sim.copy();
                break_it(&machine, &path).unwrap();
                compare(&machine, &name.display().to_string());
            }
        }
    }
    println!("{read} read, {refused} refused");
    assert!(read > 20 && refused > 20, "{read} {refused}");
}

#[test]
fn a_reader_neither_changes_nor_locks_nor_maps() {
    for is_closed in [true, false] {
        let sim = populated(is_closed);
        let calls = sim.calls_of(|| {
            let reader = sim.open_reader().unwrap();
            assert!(reader.get("done").unwrap().is_some());
            assert!(reader.iter().count() > 5);
            assert!(reader.verify().unwrap().is_whole());
            let _ = reader.stats().unwrap();
        });
        let kinds: std::collections::BTreeSet<_> =
            calls.iter().map(|(kind, _)| kind.as_str()).collect();
        assert!(calls.len() > 20);
        let reads = ["Len", "List", "Open", "Read", "Stat"];
        assert!(kinds.iter().all(|kind| reads.contains(kind)), "{kinds:?}");
    }
}

/// Whichever read fails, the call returns that error, and the reader goes on afterwards.
#[test]
fn a_reader_goes_on_after_a_failed_call_of_the_disk() {
    let sim = populated(false);
    let mut failed = 0;
    for after in 0.. {
        let before = sim.faults_met();
        sim.fail_call(after, DiskFault::Io);
        let told = sim.open_reader().and_then(|reader| reader.get("done").map(|_| ()));
        let was_met = sim.faults_met() > before;
        sim.heal();
        if !was_met {
            told.unwrap();
            break;
        }
        if let Err(e) = told {
            assert!(matches!(e.kind(), ErrorKind::Io | ErrorKind::Corrupt), "{after}: {e}");
            failed += 1;
        }
        assert!(sim.open_reader().unwrap().get("done").unwrap().is_some());
    }
    assert!(failed > 20, "{failed}");
    assert_eq!(sim.changes(), 0);
}

#[test]
fn a_reader_is_refused_while_a_store_is_open_and_superseded_once_it_was_written() {
    let sim = Sim::small(1);
    assert_eq!(sim.open_reader().unwrap_err().kind(), ErrorKind::NotFound);
    drop(sim.open().unwrap());
    let reader = sim.open_reader().unwrap();
    assert!(reader.get("k").unwrap().is_none());
    let mut walk = reader.iter();

    let store = sim.open().unwrap();
    let kind = |told: Result<()>| told.unwrap_err().kind();
    let refused = |expected: ErrorKind| {
        assert_eq!(kind(reader.get("k").map(drop)), expected);
        assert_eq!(kind(reader.stats().map(drop)), expected);
        assert_eq!(kind(reader.verify().map(drop)), expected);
        assert_eq!(kind(reader.namespaces().map(drop)), expected);
        assert_eq!(kind(reader.namespace("a").get("k").map(drop)), expected);
        let mut walk = reader.iter();
        assert_eq!(kind(walk.next().unwrap().map(drop)), expected, "the end counts, too");
        assert!(walk.next().is_none());
    };
    refused(ErrorKind::Locked);
    assert_eq!(kind(sim.open_reader().map(drop)), ErrorKind::Locked);
    let message = reader.get("k").unwrap_err().to_string();
    assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
    // Nothing was written, so what was read still holds.
    drop(store);
    assert!(reader.get("k").unwrap().is_none());

    let store = sim.open().unwrap();
    assert!(store.mark("k").unwrap().is_first());
    refused(ErrorKind::Locked);
    drop(store);
    refused(ErrorKind::Superseded);
    assert_eq!(kind(walk.next().unwrap().map(drop)), ErrorKind::Superseded);
    assert!(sim.open_reader().unwrap().get("k").unwrap().is_some());
}

/// Keys that are read ahead were checked; those after them don't count.
#[test]
fn a_walk_ends_with_an_error_once_a_process_has_written() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    assert!((0..100_u64).all(|n| store.mark(n).unwrap().is_first()));
    drop(store);
    let reader = sim.open_reader().unwrap();
    assert_eq!(reader.iter().map(Result::unwrap).count(), 100);
    for oldest_first in [false, true] {
        let reader = sim.open_reader().unwrap();
        let walk = reader.iter();
        let mut walk = if oldest_first { walk.oldest_first() } else { walk };
        assert!(walk.next().unwrap().is_ok());
        let first = walk.cursor().cloned();
        let _ = sim.open().unwrap().mark(("later", oldest_first.to_string().as_str())).unwrap();
        let left: Vec<_> = walk.by_ref().collect();
        let (last, shown) = left.split_last().unwrap();
        assert_eq!(last.as_ref().unwrap_err().kind(), ErrorKind::Superseded);
        assert!(shown.iter().all(Result::is_ok) && shown.len() < 50, "{}", shown.len());
        assert!(walk.next().is_none());
        assert_eq!((first.is_some(), shown.is_empty()), (oldest_first, oldest_first));
    }
}

#[test]
fn a_directory_that_is_moved_or_replaced_supersedes_its_reader() {
    let sim = Sim::small(1);
    assert!(sim.open().unwrap().mark("k").unwrap().is_first());
    let reader = sim.open_reader().unwrap();
    sim.rename("/store", "/moved").unwrap();
    let kind = |reader: &Reader| reader.get("k").unwrap_err().kind();
    assert_eq!(kind(&reader), ErrorKind::Superseded);
    drop(sim.open().unwrap());
    assert_eq!(kind(&reader), ErrorKind::Superseded);
    assert!(sim.open_reader().unwrap().get("k").unwrap().is_none());
}

fn populate(dir: &Path) -> Store {
    // Without background, so that the files stay unchanged.
    let store = small().manual_maintenance(true).open_or_create(dir).unwrap();
    for n in 0..200_u64 {
        assert!(store.mark(n).unwrap().is_first());
    }
    drop(store.claim("interrupted").unwrap());
    store
}

fn check_populated(reader: &Reader) {
    assert!((0..200_u64).all(|n| matches!(reader.get(n).unwrap(), Some(State::Completed(_)))));
    assert!(matches!(reader.get("interrupted").unwrap(), Some(State::Interrupted(_))));
    assert_eq!(reader.iter().filter(|entry| entry.is_ok()).count(), 201);
    assert!(reader.verify().unwrap().is_whole());
}

#[test]
fn a_backup_and_a_copy_of_a_live_store_are_read_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let store = populate(&path("keys"));
    store.backup(path("backup")).unwrap();
    let copied = Command::new("cp").arg("-a").args([path("keys"), path("copy")]).status();
    assert!(copied.unwrap().success());
    let error = Reader::open(path("keys")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    for name in ["backup", "copy"] {
        let before = files(&path(name));
        let reader = Reader::open(path(name)).unwrap();
        check_populated(&reader);
        drop(reader);
        assert!(files(&path(name)) == before, "{name}");
    }
    assert!(store.mark("more").unwrap().is_first());
}

/// The role of another user, who may read the files.
#[expect(unsafe_code, reason = "std can't change the user of a process that runs")]
pub(crate) fn reads_as_other(dir: &Path) {
    // SAFETY: changes ids of this process, nothing in memory.
    let changed = unsafe { (libc::setgroups(0, std::ptr::null()), libc::setgid(65534)) };
    // SAFETY: as above.
    assert_eq!((changed, unsafe { libc::setuid(65534) }), ((0, 0), 0));
    assert!(std::fs::File::create(dir.join("log/new")).is_err(), "it may write");
    check_populated(&Reader::open(dir).unwrap());
    println!("fine");
}

/// The role of a program that forks.
#[expect(unsafe_code, reason = "a real fork is what this is about")]
pub(crate) fn reads_and_forks(dir: &Path) {
    let reader = Reader::open(dir).unwrap();
    check_populated(&reader);
    // SAFETY: the child allocates and makes system calls, which glibc allows after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let kind = |told: Result<()>| told.err().map(|e| e.kind());
        let is_refused = kind(reader.get("k").map(drop)) == Some(ErrorKind::Forked)
            && kind(reader.stats().map(drop)) == Some(ErrorKind::Forked)
            && reader.iter().next().is_some_and(|e| kind(e.map(drop)) == Some(ErrorKind::Forked));
        let can_open = Reader::open(dir).is_ok_and(|reader| reader.get(1_u64).is_ok());
        drop(reader);
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(i32::from(!(is_refused && can_open))) };
    }
    let mut status = -1;
    // SAFETY: `status` is a valid place for one int.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    check_populated(&reader);
    println!("fine");
}

#[test]
fn a_forked_child_reads_with_a_reader_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    drop(populate(dir.path()));
    let output = child("reads-and-forks", dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("fine"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn read_permission_is_enough() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    drop(populate(&keys));
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let all = |dirs: u32, of_files: u32| {
        for name in files(&keys).into_keys() {
            allow(&keys.join(&name), of_files);
            allow(keys.join(name).parent().unwrap(), dirs);
        }
        allow(&keys, dirs);
    };
    all(0o555, 0o444);
    allow(dir.path(), 0o755);
    if rustix::process::geteuid().is_root() {
        let output = child("reads-as-other", &keys).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("fine"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    } else {
        check_populated(&Reader::open(&keys).unwrap());
    }
    all(0o755, 0o644);
}

#[test]
fn a_store_on_a_read_only_mount_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, mount) = (dir.path().join("keys"), dir.path().join("mount"));
    drop(populate(&keys));
    std::fs::create_dir(&mount).unwrap();
    let run = |args: &[&str]| {
        let status = Command::new("mount").args(args).arg(&mount).output();
        status.is_ok_and(|output| output.status.success())
    };
    let of = keys.to_str().unwrap();
    if !run(&["--bind", of]) {
        println!("not tried: this process may not mount");
        return;
    }
    let is_read_only = run(&["-o", "remount,bind,ro"]);
    let unmounts = Unmounts(&mount);
    assert!(is_read_only && std::fs::write(mount.join("x"), "").is_err());
    let reader = Reader::open(&mount).unwrap();
    check_populated(&reader);
    // The same directory, on the mount that may be written.
    let store = small().open(&keys).unwrap();
    assert_eq!(reader.get(1_u64).unwrap_err().kind(), ErrorKind::Locked);
    drop((store, reader, unmounts));
}

struct Unmounts<'p>(&'p Path);

impl Drop for Unmounts<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

/// A reader's check has the lock shared for an instant. An opening that doesn't wait was refused by it.
#[test]
fn readers_that_check_make_no_opening_fail() {
    let dir = tempfile::tempdir().unwrap();
    drop(small().open_or_create(dir.path()).unwrap());
    let reader = Reader::open(dir.path()).unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let is_over = &is_over;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let reader = reader.clone();
            scope.spawn(move || {
                while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
                    let _ = reader.get("k");
                }
            });
        }
        let opened: Vec<_> = (0..300).map(|_| small().open(dir.path()).map(drop)).collect();
        is_over.store(true, std::sync::atomic::Ordering::SeqCst);
        let refused = opened.iter().filter(|opened| opened.is_err()).count();
        assert_eq!(refused, 0, "{:?}", opened.iter().find(|opened| opened.is_err()));
    });
}
