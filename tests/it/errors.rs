//! Problems of a path, a disk or a format: each is an error that says what happened and what to do.

use crate::child::{self, small};
use crate::script::tiny;
use onlyonce::testing::{DiskFault, Sim};
use onlyonce::{Claim, Error, ErrorKind, Store};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kind, the path, and words that the message must have.
fn check(error: &Error, kind: ErrorKind, path: &Path, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error:?}");
    assert_eq!(error.path(), Some(path), "{error:?}");
    let message = error.to_string();
    for word in words.iter().chain([&path.to_str().unwrap()]) {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    assert!(!message.ends_with('.') && !message.contains('\n'), "{message}");
}

#[test]
fn the_error_of_a_missing_directory_names_it_and_the_call_that_creates_one() {
    let dir = tempfile::tempdir().unwrap();
    for missing in [dir.path().join("keys"), dir.path().join("no/such/place/keys")] {
        let error = Store::open(&missing).unwrap_err();
        check(&error, ErrorKind::NotFound, &missing, &["there is no store", "open_or_create"]);
        assert!(!missing.exists(), "open creates nothing");
    }
    // The parents are created as well.
    let deep = dir.path().join("no/such/place/keys");
    drop(Store::open_or_create(&deep).unwrap());
    drop(Store::open(&deep).unwrap());
}

/// A mount point whose volume isn't mounted: every key would be new.
#[test]
fn an_empty_directory_is_not_a_store() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    check(&error, ErrorKind::NotFound, dir.path(), &["no store", "open_or_create"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "open creates nothing");
    drop(Store::open_or_create(dir.path()).unwrap());
}

#[test]
fn a_directory_that_holds_something_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "no store").unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    check(&error, ErrorKind::NotFound, dir.path(), &["no store"]);
    let error = Store::open_or_create(dir.path()).unwrap_err();
    check(&error, ErrorKind::Invalid, dir.path(), &["thesis.tex", "a directory of its own"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_file_in_place_of_a_directory_is_reported_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "no store").unwrap();
    for error in [Store::open(&file).unwrap_err(), Store::open_or_create(&file).unwrap_err()] {
        check(&error, ErrorKind::Invalid, &file, &["is no directory"]);
    }
    let below = file.join("keys");
    for error in [Store::open(&below).unwrap_err(), Store::open_or_create(&below).unwrap_err()] {
        check(&error, ErrorKind::Invalid, &below, &["is no directory"]);
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"no store");
}

/// Such a directory let the store open, and then failed every claim for good, without naming a remedy.
#[test]
fn a_directory_in_place_of_a_file_is_reported_by_the_open() {
    for name in ["MANIFEST.next", "log/spare.new", "log/spare-99"] {
        let dir = tempfile::tempdir().unwrap();
        let _ = Store::open_or_create(dir.path()).unwrap().mark("k").unwrap();
        let path = dir.path().join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir(&path).unwrap();
        let error = Store::open(dir.path()).unwrap_err();
        check(&error, ErrorKind::Io, &path, &["a directory has the name of", "remove it"]);
        std::fs::remove_dir(&path).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(!store.mark("k").unwrap().is_first());
        assert!(store.mark("l").unwrap().is_first());
    }
}

#[test]
fn the_error_of_a_full_disk_names_the_next_step() {
    let sim = Sim::small(7);
    sim.set_disk_bytes_max(8192);
    let error = sim.open().unwrap_err();
    let path = error.path().unwrap().to_path_buf();
    check(&error, ErrorKind::StorageFull, &path, &["no space left", "free some and call again"]);
    sim.set_disk_bytes_max(u64::MAX);
    let store = sim.open().unwrap();
    let claim = match store.claim("k").unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    };
    sim.set_disk_bytes_max(sim.disk_bytes());
    let error = (0..1000_u64).find_map(|n| store.claim(n).err()).unwrap();
    let path = error.path().unwrap().to_path_buf();
    check(&error, ErrorKind::StorageFull, &path, &["no space left", "free some and call again"]);
    claim.complete("it has its room").unwrap();
}

/// The permission to change the directory is withdrawn: nothing is half-written, and the store continues once it is
/// granted again. It was poisoned.
#[test]
fn a_read_only_directory_is_not_a_failure_of_the_store() {
    let sim = Sim::small(7);
    drop(sim.open_with(tiny()).unwrap());
    let mut met = false;
    for n in 0..100 {
        let machine = sim.copy();
        let store = machine.open_existing(tiny(), false).unwrap();
        machine.fail_call(n, DiskFault::Denied);
        // The first claim exchanges the manifest.
        let Err(error) = store.claim("k") else { continue };
        machine.heal();
        if error.to_string().contains("exchanging") {
            let words = ["no permission", "writable for the user of this process"];
            check(&error, ErrorKind::Io, error.path().unwrap(), &words);
            assert!(matches!(store.claim("k").unwrap(), Claim::Acquired(_)));
            met = true;
        }
    }
    assert!(met);
}

/// A read-only file system, permissions, and too many open files, at every call of an open, a claim and a checkpoint.
#[test]
fn an_error_of_the_system_is_reported_with_its_remedy() {
    for (fault, word) in [
        (DiskFault::ReadOnly, "read-only: "),
        (DiskFault::Denied, "no permission: "),
        (DiskFault::TooManyOpen, "too many open files: "),
        (DiskFault::NoMemory, "no memory left: "),
    ] {
        let sim = Sim::small(7);
        let store = sim.open_with(tiny()).unwrap();
        // Two segments and a table.
        (0..6_u64).for_each(|n| assert!(store.mark((n, "k".repeat(3900))).unwrap().is_first()));
        store.merge_index().unwrap();
        drop(store);
        let mut points = 0;
        for n in 0..200 {
            let machine = sim.copy();
            machine.fail_call(n, fault);
            let done = machine.open_existing(tiny(), false).and_then(|store| {
                let done = store.claim("k").and_then(|_| store.merge_index());
                machine.heal();
                done
            });
            if machine.faults_met() == 0 {
                break;
            }
            let Err(error) = done else { continue };
            // A failure in the middle of a change is more than a permission.
            if error.kind() == ErrorKind::Io {
                let path = error.path().unwrap().to_path_buf();
                check(&error, ErrorKind::Io, &path, &[word]);
            }
            points += 1;
        }
        println!("{fault:?}: {points}");
        assert!(points > 5, "{fault:?}: {points}");
    }
}

/// A file system mounted read-only under a store, if this user may mount one.
#[test]
fn a_read_only_file_system_is_reported_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, view) = (dir.path().join("keys"), dir.path().join("view"));
    drop(small().open_or_create(&keys).unwrap());
    std::fs::create_dir(&view).unwrap();
    let Some(_mounted) = Mounted::new(&["--bind"], &keys, &view, Some("remount,ro,bind")) else {
        println!("note: no read-only mount here; the simulated one was tried");
        return;
    };
    let before = crate::process::files(&keys);
    for opened in [small().open(&view), small().open_or_create(&view)] {
        let error = opened.unwrap_err();
        let path = error.path().unwrap().to_path_buf();
        assert!(path.starts_with(&view));
        check(&error, ErrorKind::Io, &path, &["read-only: "]);
    }
    let new = view.join("new");
    check(&small().open_or_create(&new).unwrap_err(), ErrorKind::Io, &new, &["read-only: "]);
    assert!(crate::process::files(&keys) == before);
    // A process with the permission continues.
    drop(small().open(&keys).unwrap());
}

/// A manifest of another version, with a checksum that holds.
#[test]
fn another_format_is_distinguished_from_damage() {
    let manifest = PathBuf::from("/store/MANIFEST");
    for (version, bits, word) in
        [(2_u16, 0_u32, "a newer format"), (0, 0, "an older format"), (1, 1, "a newer format")]
    {
        let sim = Sim::small(7);
        drop(sim.open().unwrap());
        let mut bytes = sim.read_file(&manifest).unwrap();
        bytes[8..10].copy_from_slice(&version.to_le_bytes());
        bytes[16..20].copy_from_slice(&bits.to_le_bytes());
        let sum = crc32fast::hash(&bytes[..36]);
        bytes[36..40].copy_from_slice(&sum.to_le_bytes());
        sim.write_file(&manifest, &bytes).unwrap();
        let error = sim.open().unwrap_err();
        let advice = "use the release that wrote it";
        check(&error, ErrorKind::Incompatible, &manifest, &[word, advice]);
        assert_eq!(sim.read_file(&manifest).unwrap(), bytes, "it was left alone");
    }
}

#[test]
fn the_error_of_a_damaged_store_says_where_and_that_nothing_was_guessed() {
    let sim = Sim::small(7);
    drop(sim.open().unwrap());
    sim.flip_byte("/store/MANIFEST", 100, 1).unwrap();
    let error = sim.open().unwrap_err();
    check(&error, ErrorKind::Corrupt, Path::new("/store/MANIFEST"), &["checksum", "byte 40"]);
    assert_eq!(error.offset(), Some(40));
    sim.remove("/store/MANIFEST").unwrap();
}

#[test]
fn a_network_file_system_is_refused_unless_allowed() {
    let sim = Sim::small(7);
    drop(sim.open().unwrap());
    sim.set_network_fs(Some("NFS"));
    let error = sim.open().unwrap_err();
    let words = ["NFS", "a local disk", "allow_network_fs"];
    check(&error, ErrorKind::Invalid, Path::new("/store"), &words);
    drop(sim.open_with(Store::builder().allow_network_fs(true)).unwrap());
}

/// Something mounted, until it is dropped.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Returns `None` if this user or this machine can't.
    pub(crate) fn new(
        options: &[&str],
        what: &Path,
        at: &Path,
        remount: Option<&str>,
    ) -> Option<Self> {
        let run = |command: &mut Command| {
            command.output().is_ok_and(|output| output.status.success()).then_some(())
        };
        run(Command::new("mount").args(options).arg(what).arg(at))?;
        let mounted = Mounted(at.to_path_buf());
        if let Some(remount) = remount {
            run(Command::new("mount").args(["-o", remount]).arg(at))?;
        }
        Some(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A link to an unmounted volume is reported, and not followed for ever.
#[test]
fn a_dangling_link_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("volume");
    std::os::unix::fs::symlink(dir.path().join("not-mounted"), &link).unwrap();
    let error = Store::open_or_create(link.join("keys")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(error.path(), Some(&*link.join("keys")));
    let error = Store::open_or_create(&link).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("a link that leads nowhere"), "{error}");
    assert!(!dir.path().join("not-mounted").exists());
}

/// A store opened by a relative path keeps its place when the process changes directory.
#[test]
fn a_store_keeps_its_path_when_the_process_changes_directory() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there] = ["here", "there"].map(|name| dir.path().join(name));
    for place in [&here, &there] {
        drop(child::small().open_or_create(place.join("keys")).unwrap());
    }
    let before = files(&there);
    let output = child::child("goes", dir.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("closed"), "{output:?}");
    assert_eq!(files(&there), before);
    let store = child::small().open(here.join("keys")).unwrap();
    assert!(store.stats().opening.was_clean);
    assert_eq!(store.iter().count(), 3000);
}

fn files(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for part in ["keys", "keys/log"] {
        for entry in std::fs::read_dir(dir.join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                found.push((path.clone(), std::fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The process of that test.
pub(crate) fn goes(dir: &Path) {
    std::env::set_current_dir(dir.join("here")).unwrap();
    let store = child::small().open("keys").unwrap();
    std::env::set_current_dir(dir.join("there")).unwrap();
    for n in 0..3000_u64 {
        assert!(
            store
                .mark(onlyonce::Operation::new(n).durability(onlyonce::Durability::Lazy))
                .unwrap()
                .is_first()
        );
    }
    store.close(std::time::Duration::ZERO).unwrap();
    println!("closed");
}

/// An `Arc` wrapped it, so downcasts failed.
#[test]
fn the_error_of_the_system_is_the_source() {
    let sim = Sim::small(1);
    sim.fail_call(0, DiskFault::Denied);
    let error = sim.open().unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    let source = source.downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
}

/// The error of the system and its place were in the source alone: `{e}` and `unwrap` showed neither.
#[test]
fn the_message_names_the_file_and_the_error_of_the_system() {
    let sim = Sim::small(1);
    sim.fail_calls_from(0, DiskFault::Io);
    let error = sim.open().unwrap_err();
    for words in [error.to_string(), format!("{error:?}")] {
        assert!(words.contains("/store") && words.contains("(os error 5)"), "{words}");
    }
    sim.heal();
    let store = sim.open().unwrap();
    assert!(store.mark("k").unwrap().is_first());
    sim.fail_sync(0, DiskFault::Io);
    let indeterminate = store.mark("l").unwrap_err();
    assert_eq!(indeterminate.kind(), ErrorKind::Indeterminate);
    let poisoned = store.mark("m").unwrap_err();
    assert_eq!(poisoned.kind(), ErrorKind::Poisoned);
    let cause = std::error::Error::source(&poisoned).unwrap();
    let health = format!("{:?}", store.health());
    for words in [
        indeterminate.to_string(),
        format!("{indeterminate:?}"),
        poisoned.to_string(),
        format!("{poisoned:?}"),
        cause.to_string(),
        health,
    ] {
        let is_told_once = words.matches("os error 5").count() == 1;
        assert!(words.contains("/store/log/0000000001.log") && is_told_once, "{words}");
    }
}

/// An error for damage said where, and not what to do.
#[test]
fn damage_names_the_next_step_once() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let Claim::Acquired(claim) = store.claim("k").unwrap() else { panic!() };
    claim.complete("a result that will rot").unwrap();
    let log = "/store/log/0000000001.log";
    let bytes = sim.read_file(log).unwrap();
    let rotten = bytes.windows(6).position(|window| window == b"result").unwrap();
    sim.flip_byte(log, rotten as u64, 1).unwrap();
    let error = store.get("k").unwrap_err();
    check(&error, ErrorKind::Corrupt, Path::new(log), &["verify", "backup", "admin::repair"]);
    assert!(format!("{error:?}").starts_with("Corrupt: "), "{error:?}");
    // A list of damages is what verify was called for.
    let found = store.verify().unwrap();
    assert!(!found.damages.is_empty());
    assert!(found.damages.iter().all(|damage| !damage.to_string().contains("backup")));
}

/// Its cause was Debug of everything within.
#[test]
fn an_error_that_returns_a_claim_says_so() {
    let store = Sim::small(1).open().unwrap();
    let Claim::Acquired(claim) = store.claim("k").unwrap() else { panic!() };
    let error = claim.complete(&vec![0; 1 << 20]).unwrap_err();
    let words = format!("TooLarge: {error} (the claim is given back)");
    assert_eq!(format!("{error:?}"), words);
}
