//! What only real processes, sockets and locks can show.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::contract_tests::{accept, begin, id, keeps_the_contract, living, receive};
use super::os::OsNeighbours;
use super::*;
use crate::storage::fork::undisturbed;

fn at(dir: &Path) -> Box<dyn Neighbours> {
    Box::new(OsNeighbours::new(dir).unwrap())
}

#[test]
fn it_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    keeps_the_contract(&|| at(dir.path()));
    assert_eq!(fs::metadata(dir.path().join("sessions")).unwrap().len(), 0);
}

#[test]
fn the_path_may_be_longer_than_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&long).unwrap();
    keeps_the_contract(&|| at(&long));
}

/// A forked child that has done its work and lives on until it is dropped, by SIGKILL.
struct Child {
    pid: i32,
}

impl Child {
    #[expect(unsafe_code, reason = "a real process is what this is about")]
    fn after(work: impl FnOnce(&mut Vec<Box<dyn std::any::Any>>)) -> Self {
        let (mut told, mut tell) = UnixStream::pair().unwrap();
        // SAFETY: the child makes system calls, and allocates, which glibc allows after a fork.
        let pid = undisturbed(|| unsafe { libc::fork() });
        if pid == 0 {
            let mut kept = Vec::new();
            let work = std::panic::AssertUnwindSafe(|| work(&mut kept));
            let is_done = std::panic::catch_unwind(work).is_ok();
            // Gone, if the work closes descriptors that it doesn't know.
            let is_told = tell.write_all(&[u8::from(is_done)]).is_ok();
            loop {
                // SAFETY: both only wait or end this process.
                unsafe { if is_told { libc::pause() } else { libc::_exit(i32::from(!is_done)) } };
            }
        }
        assert!(pid > 0);
        drop(tell);
        let child = Child { pid };
        let mut done = [0];
        told.read_exact(&mut done).unwrap();
        assert_eq!(done, [1], "the child's work");
        child
    }
}

impl Drop for Child {
    #[expect(unsafe_code, reason = "a real process is what this is about")]
    fn drop(&mut self) {
        // SAFETY: the process is a child that wasn't waited for; a null status is allowed.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

#[test]
fn a_killed_process_leaves_no_session_no_listener_and_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let here = at(dir.path());
    let listener = here.listen().unwrap();
    let child = Child::after(|kept| {
        let own = at(dir.path());
        kept.push(Box::new(begin(&*own, 7)));
        let connection = own.connect().unwrap().unwrap();
        assert_eq!(connection.send(b"last"), SendResult::Bytes(4));
        kept.push(Box::new((connection, own)));
    });
    assert!(here.lives(id(7)).unwrap() && here.begin(id(7)).unwrap().is_none());
    let connection = accept(&*listener);
    assert_eq!(connection.peer(), child.pid.unsigned_abs());
    assert_eq!(connection.send(b"never read"), SendResult::Bytes(10));
    drop(child);
    assert!(!here.lives(id(7)).unwrap() && here.living().unwrap().is_empty());
    drop(begin(&*here, 7));
    assert_eq!(receive(&*connection), b"last");
    assert_eq!(connection.receive(&mut [0]), Received::End);
    // A host.
    drop(listener);
    let child = Child::after(|kept| kept.push(Box::new(at(dir.path()).listen().unwrap())));
    let connection = here.connect().unwrap().unwrap();
    assert_eq!(connection.peer(), child.pid.unsigned_abs());
    drop(child);
    assert_eq!(connection.receive(&mut [0]), Received::End);
    assert!(here.connect().unwrap().is_none());
}

#[test]
fn a_thousand_sessions_of_four_processes_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let number = |n: u64| 1 + n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (SessionId::END - 1);
    let mut children: Vec<Child> = (0..4_u64)
        .map(|part| {
            Child::after(|kept| {
                let own = at(dir.path());
                let sessions = (0..250).map(|n| begin(&*own, number(part * 250 + n)));
                kept.push(Box::new(sessions.collect::<Vec<_>>()));
            })
        })
        .collect();
    let here = at(dir.path());
    assert_eq!(living(&*here), (0..1000).map(number).collect());
    children.pop();
    assert_eq!(living(&*here), (0..750).map(number).collect());
}

/// Otherwise nobody would learn that the parent is gone while the child lives.
#[test]
fn a_forked_child_keeps_nothing_of_its_parent_alive() {
    let dir = tempfile::tempdir().unwrap();
    let (here, other) = (at(dir.path()), at(dir.path()));
    let mut session = begin(&*here, 7);
    let listener = here.listen().unwrap();
    let guest = other.connect().unwrap().unwrap();
    let host = accept(&*listener);
    let waits = other.connect().unwrap().unwrap();
    let child = Child::after(|kept| {
        assert_eq!((guest.send(b"x"), host.receive(&mut [0])), (SendResult::Gone, Received::End));
        assert!(listener.accept().is_err());
        // Its own may be anything.
        let own = at(dir.path());
        assert!(own.lives(id(7)).unwrap() && own.begin(id(7)).unwrap().is_none());
        kept.push(Box::new((begin(&*own, 8), own)));
    });
    assert!(session.live_on().unwrap());
    assert_eq!(here.living().unwrap().len(), 2);
    drop(session);
    assert_eq!(living(&*here), [8].into());
    drop(guest);
    assert_eq!(host.receive(&mut [0]), Received::End);
    drop(listener);
    assert_eq!(waits.receive(&mut [0]), Received::End);
    assert!(here.connect().unwrap().is_none());
    drop(child);
    assert!(here.living().unwrap().is_empty());
}

/// The exit status of a forked child that does `work` after its parent's other descriptors are closed, so that its own
/// have the lowest numbers. The parent does `meanwhile`.
#[expect(unsafe_code, reason = "a real process is what this is about")]
fn child_that(work: impl FnOnce(), meanwhile: impl FnOnce()) -> i32 {
    // SAFETY: as for the other children of these tests.
    let pid = undisturbed(|| unsafe { libc::fork() });
    if pid == 0 {
        close_unknown();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    meanwhile();
    let mut status = -1;
    // SAFETY: `status` is a valid place for one int.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

/// As daemons do.
#[expect(unsafe_code, reason = "no safe way closes what others own")]
fn close_unknown() {
    // SAFETY: only descriptors that are never used again, or of which that is what is tested.
    assert_eq!(unsafe { libc::close_range(3, 1 << 16, 0) }, 0);
}

/// Numbers are reused by the program's own files, which stay open.
#[test]
fn a_session_whose_descriptors_were_closed_takes_its_byte_again() {
    let dir = tempfile::tempdir().unwrap();
    let work = || {
        let own = at(dir.path());
        let (mut first, mut second) = (begin(&*own, 7), begin(&*own, 8));
        let listener = own.listen().unwrap();
        let connection = own.connect().unwrap().unwrap();
        close_unknown();
        let files: Vec<_> = (0..64).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        assert!(!own.lives(id(7)).unwrap());
        assert!(first.live_on().unwrap() && second.live_on().unwrap());
        assert!(own.begin(id(7)).unwrap().is_none() && own.living().unwrap().len() == 2);
        drop(first);
        assert_eq!(living(&*own), [8].into());
        drop((second, listener, connection));
        assert!(own.living().unwrap().is_empty());
        drop(own);
        assert!(files.iter().all(|file| file.metadata().is_ok()), "a file was closed");
    };
    assert_eq!(child_that(work, || ()), 0);
}

/// The other opening's descriptors have the numbers that the first one's had, and are of the same files.
#[test]
fn a_session_whose_descriptors_were_closed_spares_those_of_another_opening() {
    let dir = tempfile::tempdir().unwrap();
    let work = || {
        let own = at(dir.path());
        let (mut first, dropped) = (begin(&*own, 7), begin(&*own, 8));
        close_unknown();
        let other = at(dir.path());
        let (ninth, tenth) = (begin(&*other, 9), begin(&*other, 10));
        assert!(first.live_on().unwrap());
        drop(dropped);
        assert_eq!(living(&*own), [7, 9, 10].into());
        drop(first);
        assert_eq!(own.living().unwrap().len(), 2);
        drop((ninth, tenth));
        assert!(own.living().unwrap().is_empty());
    };
    assert_eq!(child_that(work, || ()), 0);
}

#[test]
fn a_session_whose_descriptors_were_closed_is_over_once_another_has_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let until = |name: &str| {
        while !dir.join(name).exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let loses = || {
        let own = at(dir);
        let mut session = begin(&*own, 7);
        close_unknown();
        fs::write(dir.join("closed"), "").unwrap();
        until("taken");
        assert!(!session.live_on().unwrap(), "it was taken by another");
        drop(session);
        assert!(own.lives(id(7)).unwrap());
    };
    let mut taken = None;
    let takes = || {
        until("closed");
        taken = Some(begin(&*at(dir), 7));
        fs::write(dir.join("taken"), "").unwrap();
    };
    assert_eq!(child_that(loses, takes), 0);
    assert!(taken.is_some() && at(dir).lives(id(7)).unwrap());
}

/// It could be the connection to a database.
#[test]
fn what_was_closed_is_not_used_under_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let work = || {
        let own = at(dir.path());
        let (listener, notifier) = (own.listen().unwrap(), own.notifier().unwrap());
        let guest = own.connect().unwrap().unwrap();
        let host = accept(&*listener);
        close_unknown();
        let strangers: Vec<_> = (0..16).map(|_| UnixStream::pair().unwrap()).collect();
        for (a, b) in &strangers {
            assert!((&*a).write_all(b"theirs").is_ok() && (&*b).write_all(b"theirs").is_ok());
        }
        // Each of these is the first call at its end.
        assert_eq!(guest.receive(&mut [0]), Received::End);
        assert_eq!(host.send(b"ours"), SendResult::Gone);
        assert!(listener.accept().is_err());
        let (live, receive) = (own.notifier().unwrap(), Interest { receive: true, send: false });
        let on = [guest.waitable(), live.waitable(), listener.waitable()].map(|on| (on, receive));
        let ready = wait(&on, None).unwrap().into_iter().map(|ready| ready.receive);
        assert_eq!(ready.collect::<Vec<_>>(), [true, false, true], "each call reports the end");
        notifier.notify();
        notifier.clear();
        drop((guest, host, listener, notifier, own));
        let mut buf = [0; 99];
        for (a, b) in &strangers {
            assert_eq!(((&*a).read(&mut buf).unwrap(), (&*b).read(&mut buf).unwrap()), (6, 6));
        }
    };
    assert_eq!(child_that(work, || ()), 0);
}

#[test]
fn a_closed_directory_is_opened_again_only_if_it_is_the_same() {
    let parent = tempfile::tempdir().unwrap();
    let (path, moved) = (parent.path().join("a"), parent.path().join("b"));
    let work = || {
        fs::create_dir(&path).unwrap();
        let own = at(&path);
        let mut session = begin(&*own, 7);
        close_unknown();
        fs::rename(&path, &moved).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(own.begin(id(8)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!session.live_on().unwrap());
        fs::remove_dir(&path).unwrap();
        fs::rename(&moved, &path).unwrap();
        assert!(session.live_on().unwrap());
    };
    assert_eq!(child_that(work, || ()), 0);
}

/// A child made without the C library's `fork` has copies of everything.
#[test]
#[expect(unsafe_code, reason = "such a child is what this is about")]
fn what_is_dropped_ends_although_a_process_has_copies_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let work = || {
        let (here, other) = (at(dir.path()), at(dir.path()));
        let session = begin(&*here, 7);
        let listener = here.listen().unwrap();
        let guest = other.connect().unwrap().unwrap();
        let host = accept(&*listener);
        let waits = other.connect().unwrap().unwrap();
        // SAFETY: the child only waits, without a stack of its own to share, as after a fork.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if pid == 0 {
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        }
        let child = Child { pid: i32::try_from(pid).unwrap() };
        assert!(child.pid > 0);
        drop((session, guest, listener));
        assert!(!other.lives(id(7)).unwrap() && other.connect().unwrap().is_none());
        assert_eq!(host.receive(&mut [0]), Received::End);
        assert_eq!(waits.receive(&mut [0]), Received::End);
        drop(child);
    };
    assert_eq!(child_that(work, || ()), 0);
}

#[test]
#[expect(unsafe_code, reason = "no safe way changes what a signal does")]
fn a_send_to_a_peer_that_is_gone_raises_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let work = || {
        // SAFETY: as most programs in C have it; this process has one thread.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let own = at(dir.path());
        let listener = own.listen().unwrap();
        let guest = own.connect().unwrap().unwrap();
        drop(accept(&*listener));
        assert_eq!(guest.send(b"x"), SendResult::Gone);
    };
    assert_eq!(child_that(work, || ()), 0);
}

#[test]
fn a_shortage_of_descriptors_leaves_connections_waiting() {
    let dir = tempfile::tempdir().unwrap();
    // In a child: the limit is the process's.
    drop(Child::after(|_| {
        let own = at(dir.path());
        let listener = own.listen().unwrap();
        let guest = own.connect().unwrap().unwrap();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
        assert!(matches!(listener.accept().unwrap(), Accepted::Scarce));
        let refused = own.connect().unwrap_err();
        assert_eq!(Errno::from_io_error(&refused), Some(Errno::MFILE));
        setrlimit(Resource::Nofile, limit).unwrap();
        let host = accept(&*listener);
        assert_eq!((guest.send(b"x"), receive(&*host)), (SendResult::Bytes(1), b"x".to_vec()));
    }));
}

#[test]
fn a_thread_that_waits_is_woken_by_each_source() {
    let dir = tempfile::tempdir().unwrap();
    let (here, other) = (at(dir.path()), at(dir.path()));
    let listener = here.listen().unwrap();
    let notifier = here.notifier().unwrap();
    let receive = Interest { receive: true, send: false };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut on = vec![(notifier.waitable(), receive), (listener.waitable(), receive)];
            let mut woken_by = Vec::new();
            while !on.is_empty() {
                let ready = wait(&on, None).unwrap();
                let last = ready.len() - 1;
                if ready[last].receive {
                    woken_by.push(last);
                    on.pop();
                }
            }
            woken_by
        });
        let guest = other.connect().unwrap();
        notifier.notify();
        assert_eq!(waiting.join().unwrap(), [1, 0]);
        drop(guest);
    });
    let (nothing, short) = ([(notifier.waitable(), receive)], Some(Duration::from_millis(1)));
    notifier.clear();
    assert_eq!(wait(&nothing, short).unwrap(), [ReadyTo::default()], "the time was up");
}

#[test]
fn both_names_have_the_permissions_of_the_directory() {
    for (dir_mode, mode) in [(0o700, 0o600), (0o750, 0o600), (0o770, 0o660), (0o777, 0o666)] {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(dir_mode)).unwrap();
        let here = at(dir.path());
        let (_session, _listener) = (begin(&*here, 1), here.listen().unwrap());
        for name in ["sessions", "socket"] {
            let is = fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
            assert_eq!(is, mode, "{name} in {dir_mode:o}");
        }
    }
}

/// Some user that isn't root.
const OWNER: u32 = 12345;

/// Turns the calling process, a child, into one of that user.
#[expect(unsafe_code, reason = "std can't change the user of a process that runs")]
fn become_user(user: u32) {
    // SAFETY: changes ids of this process, nothing in memory.
    assert_eq!(unsafe { (libc::setgroups(0, std::ptr::null()), libc::setgid(user)) }, (0, 0));
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setuid(user) }, 0);
}

#[test]
fn what_root_makes_belongs_to_the_directorys_owner() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(OWNER), Some(OWNER)).unwrap();
    let here = at(dir.path());
    assert!(here.may_host().unwrap());
    let (_session, listener) = (begin(&*here, 1), here.listen().unwrap());
    for name in ["sessions", "socket"] {
        let stat = fs::metadata(dir.path().join(name)).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (OWNER, OWNER), "{name}");
    }
    let child = Child::after(|kept| {
        become_user(OWNER);
        let own = at(dir.path());
        kept.push(Box::new((begin(&*own, 2), own.connect().unwrap().unwrap())));
        drop(own.listen().unwrap());
    });
    let _ = accept(&*listener);
    assert!(here.lives(id(2)).unwrap());
    drop(child);
}

#[test]
fn another_user_joins_where_it_may_write_and_never_hosts() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let here = at(dir.path());
    let begun = |expected: Option<io::ErrorKind>| {
        drop(Child::after(|_| {
            become_user(OWNER);
            let own = at(dir.path());
            assert!(!own.may_host().unwrap());
            assert_eq!(own.listen().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(own.begin(id(2)).err().map(|e| e.kind()), expected);
            assert_eq!(own.connect().unwrap().is_some(), expected.is_none());
        }));
    };
    begun(Some(io::ErrorKind::NotFound));
    assert!(!dir.path().join("sessions").exists());
    let (_session, _listener) = (begin(&*here, 1), here.listen().unwrap());
    begun(None);
    // The directory is closed again.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    drop((begin(&*here, 3), here.listen().unwrap()));
    begun_denied(dir.path());
}

fn begun_denied(dir: &Path) {
    for name in ["sessions", "socket"] {
        // As they are made now.
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    drop(Child::after(|_| {
        become_user(OWNER);
        let own = at(dir);
        assert_eq!(own.begin(id(2)).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(own.connect().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }));
}

#[test]
fn a_directory_that_was_moved_or_replaced_is_noticed() {
    let parent = tempfile::tempdir().unwrap();
    let (path, moved) = (parent.path().join("a"), parent.path().join("b"));
    fs::create_dir(&path).unwrap();
    let here = at(&path);
    let mut session = begin(&*here, 7);
    assert!(here.lives(id(7)).unwrap());
    fs::rename(&path, &moved).unwrap();
    assert_eq!(here.standing().unwrap(), Standing::Gone);
    fs::create_dir(&path).unwrap();
    assert_eq!(here.standing().unwrap(), Standing::Another);
    // Everything still happens in the same directory.
    let listener = here.listen().unwrap();
    assert!(moved.join("socket").exists() && !path.join("socket").exists());
    assert!(at(&path).connect().unwrap().is_none() && !at(&path).lives(id(7)).unwrap());
    let _guest = at(&moved).connect().unwrap().unwrap();
    let _host = accept(&*listener);
    assert!(session.live_on().unwrap() && at(&moved).lives(id(7)).unwrap());
    fs::remove_dir(&path).unwrap();
    fs::rename(&moved, &path).unwrap();
    assert_eq!(here.standing().unwrap(), Standing::Here);
    // The file of sessions alone: who looks there now doesn't see this one.
    fs::remove_file(path.join("sessions")).unwrap();
    assert_eq!(here.standing().unwrap(), Standing::Gone);
    assert!(!session.live_on().unwrap());
    let _other = begin(&*at(&path), 7);
    assert_eq!(here.standing().unwrap(), Standing::Another);
    assert!(!session.live_on().unwrap());
}

#[test]
fn what_is_no_socket_or_no_file_of_sessions_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (here, path) = (at(dir.path()), |name: &str| dir.path().join(name));
    fs::write(path("socket"), "precious").unwrap();
    assert_eq!(here.listen().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert!(here.connect().unwrap().is_none());
    assert_eq!(fs::read(path("socket")).unwrap(), b"precious");
    std::os::unix::fs::symlink(path("socket"), path("sessions")).unwrap();
    assert!(here.begin(id(1)).is_err() && here.lives(id(1)).is_err() && here.living().is_err());
    fs::remove_file(path("sessions")).unwrap();
    fs::create_dir(path("sessions")).unwrap();
    assert!(here.begin(id(1)).is_err() && here.lives(id(1)).is_err());
}

/// `rustix` has no type for the process that this process can't see.
#[test]
#[expect(unsafe_code, reason = "a real process namespace is what this is about")]
fn a_peer_in_another_process_namespace_is_unknown() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = at(dir.path());
    let listener = here.listen().unwrap();
    drop(Child::after(|_| {
        // SAFETY: concerns the children of this process alone.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0);
        let inside = Child::after(|kept| {
            let guest = at(dir.path()).connect().unwrap().unwrap();
            assert_eq!(guest.peer(), 0);
            kept.push(Box::new(guest));
        });
        drop(inside);
    }));
    // From outside, those inside are seen.
    assert!(accept(&*listener).peer() > 0);
}
