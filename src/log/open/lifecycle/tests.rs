//! Tests of the gate alone.

use std::sync::mpsc::channel;

use super::*;

fn error() -> Error {
    Error::new(crate::ErrorKind::Io, "the disk")
}

#[test]
fn a_closing_gate_lets_nothing_in_and_waits_for_threads_inside() {
    let gate = Gate::new();
    let inside = gate.enter().unwrap();
    gate.begin_closing();
    assert_eq!(gate.enter().err(), Some(KeptOut::Closed));
    assert!(!gate.is_quiet() && gate.must_leave() && gate.may_change());
    drop(inside);
    assert!(gate.is_quiet());
    gate.finish();
    assert!(!gate.must_leave(), "the close itself goes on");
    gate.end();
    assert!(gate.must_leave() && !gate.may_change() && gate.is_quiet());
    assert_eq!(gate.enter().err(), Some(KeptOut::Closed));
}

#[test]
fn a_close_waits_for_a_sync_unless_the_store_is_poisoned() {
    let gate = Gate::new();
    std::thread::scope(|scope| {
        let ((tell_out, is_out), (let_back, may_come_back)) = (channel(), channel::<()>());
        let gate = &gate;
        let syncs = scope.spawn(move || {
            let _inside = gate.enter().unwrap();
            gate.outside(|| {
                tell_out.send(()).unwrap();
                may_come_back.recv().unwrap();
                7
            })
        });
        is_out.recv().unwrap();
        gate.begin_closing();
        assert!(
            !gate.is_quiet(),
            "records that the sync makes durable are acknowledged afterwards"
        );
        gate.poison(Some(error()));
        assert!(gate.is_quiet());
        gate.finish();
        gate.end();
        assert!(gate.is_quiet());
        let_back.send(()).unwrap();
        assert_eq!(syncs.join().unwrap(), Err(Overtaken));
    });
    assert_eq!(gate.counts(), (0, 0));
}

/// A refused thread is counted for a moment, and a sync of a poisoned store may return at any time. A close panicked,
/// with assertions on, if one of them was counted just as it began to finish.
#[test]
fn a_close_finishes_while_threads_are_refused_and_ends_when_they_have_left() {
    let gate = Gate::new();
    gate.begin_closing();
    assert!(gate.is_quiet());
    gate.add(0, INSIDE);
    gate.finish();
    gate.end();
    assert!(!gate.is_quiet());
    gate.take(0, INSIDE);
    assert!(gate.is_quiet());
}

#[test]
fn a_panicking_sync_reenters_the_gate() {
    let gate = Gate::new();
    let inside = gate.enter().unwrap();
    let panics = || gate.outside(|| std::panic::resume_unwind(Box::new("the sync panicked")));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics));
    assert!(panicked.is_err());
    assert_eq!(gate.counts(), (1, 0));
    drop(inside);
    assert_eq!(gate.counts(), (0, 0));
}

#[test]
fn the_first_failure_is_kept_and_ends_all_changes() {
    let gate = Gate::new();
    assert!(gate.may_change() && gate.cause().is_none());
    gate.poison(Some(error()));
    gate.poison(Some(Error::new(crate::ErrorKind::Closed, "a later one")));
    assert!(!gate.may_change() && gate.is_poisoned());
    assert_eq!(gate.cause().map(|cause| cause.kind()), Some(crate::ErrorKind::Io));
    // Reads go on.
    assert!(gate.enter().is_ok());
}

#[test]
fn after_a_failure_and_after_a_close_no_call_changes_the_disk() {
    use crate::storage::faulty::{Calls, FaultyStorage};
    use crate::storage::memory::MemoryStorage;
    use crate::storage::{Access, Storage};
    use std::path::Path;
    use std::sync::Arc;

    let ends: [fn(&Gate); 2] = [
        |gate| {
            gate.poison(None);
        },
        |gate| {
            gate.begin_closing();
            gate.finish();
            gate.end();
        },
    ];
    for end in ends {
        let (faulty, gate) =
            (FaultyStorage::new(Arc::new(MemoryStorage::new())), Arc::new(Gate::new()));
        let disk = disk::GatedStorage::new(Arc::new(faulty.clone()), Arc::clone(&gate));
        let [dir, a, b] = ["/d", "/d/a", "/d/b"].map(Path::new);
        disk.create_dir(dir).unwrap();
        let file = disk.create(a).unwrap();
        file.write_at(b"x", 0).unwrap();
        let before = faulty.count(Calls::Changing);
        end(&gate);
        assert!(disk.create_dir(b).is_err() && disk.create(b).is_err());
        assert!(disk.rename(a, b).is_err() && disk.exchange(a, b).is_err());
        assert!(disk.remove(a).is_err() && disk.sync_dir(dir).is_err());
        let again = disk.open(a, Access::ReadWrite).unwrap();
        for file in [file, again] {
            assert!(file.write_at(b"y", 0).is_err() && file.sync_data().is_err());
            assert!(file.truncate(0).is_err());
            let mut byte = [0];
            assert_eq!(
                (file.read_at(&mut byte, 0).unwrap(), byte, file.len().unwrap()),
                (1, *b"x", 1)
            );
        }
        assert_eq!(faulty.count(Calls::Changing), before);
    }
}
