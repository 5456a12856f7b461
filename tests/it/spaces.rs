//! Namespaces: dropped by one record, whatever happens meanwhile, and found again by every open.
//!
//! Invariants: after a crash at any point a drop took all keys or none; the keys of other namespaces, and those of none, stay;
//! no key of a dropped namespace is found again; what was dropped gives its space back.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use onlyonce::admin::{AcceptLoss, StateKind};
use onlyonce::testing::Sim;
use onlyonce::{Claim, Error, ErrorKind, Operation, Result, State, Store, Ticket};
use proptest::prelude::*;

use crate::index::{files, open, rest};

fn small() -> onlyonce::StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(1024)
}

fn is_long() -> bool {
    std::env::var_os("ONLYONCE_LONG").is_some()
}

fn key(n: u64) -> String {
    format!("{n:0>100}")
}

fn marked(store: &Store, keys: u64) -> u64 {
    (0..keys).filter(|n| store.get(key(*n)).unwrap().is_some()).count() as u64
}

/// Keys of the root, of a namespace, of one in it, and of another one.
fn filled(sim: &Sim) -> Store {
    let store = sim.open_with(small()).unwrap();
    let acme = store.namespace("acme");
    for space in [&store, &acme, &acme.namespace("plans"), &store.namespace("beta")] {
        (0..20).for_each(|n| assert!(space.mark(key(n)).unwrap().is_first()));
    }
    store
}

/// What a crash leaves: whether the dropped ones are there, all of them. At most one key is marked after the drop.
fn left(sim: &Sim) -> bool {
    let store = sim.open_with(small()).unwrap();
    let acme = store.namespace("acme");
    assert_eq!(marked(&store, 20), 20);
    assert_eq!(marked(&store.namespace("beta"), 20), 20);
    let counts = [marked(&acme, 20), marked(&acme.namespace("plans"), 20)];
    assert!(matches!(counts, [20, 20] | [0 | 1, 0]), "{counts:?}");
    assert!(store.verify().unwrap().is_whole());
    counts[0] == 20
}

fn check_every_crash(drop_it: impl Fn(&Store) -> Result<()>, is_there_after: bool) {
    let (mut kept, mut dropped) = (0, 0);
    for after in 0.. {
        let sim = Sim::small(1);
        let store = filled(&sim);
        sim.cut_power_at(after);
        let done = drop_it(&store);
        let is_cut = sim.power_is_cut();
        drop(store);
        if !is_cut {
            done.unwrap();
            break;
        }
        sim.power_loss();
        let stays = left(&sim);
        assert!(!(stays && done.is_ok()), "what was dropped is back, at call {after}");
        *(if stays { &mut kept } else { &mut dropped }) += 1;
        // What begins anew is empty, and durable.
        let store = sim.open_with(small()).unwrap();
        if !stays && !is_there_after {
            assert!(store.namespaces().unwrap() == ["beta"]);
            assert!(store.namespace("acme").mark(key(0)).unwrap().is_first());
        }
        drop_it(&store).unwrap();
        sim.power_loss();
        let store = sim.open_with(small()).unwrap();
        assert_eq!(marked(&store.namespace("acme"), 20), u64::from(is_there_after));
    }
    assert!(kept > 0, "{kept} and {dropped}");
}

#[test]
fn a_crash_at_any_call_of_a_drop_leaves_all_keys_or_none() {
    check_every_crash(|store| store.namespace("acme").forget_all().map(drop), false);
}

#[test]
fn a_crash_at_any_call_of_a_change_of_version_leaves_all_keys_or_none() {
    let pass = |store: &Store| store.namespace("acme").version("2").mark(key(0)).map(drop);
    check_every_crash(|store| pass(store), true);
}

#[test]
fn compaction_gives_the_space_of_a_dropped_namespace_back() {
    let sim = Sim::small(1);
    let store = sim.open_with(small()).unwrap();
    let acme = store.namespace("acme");
    for n in 0..400 {
        assert!(acme.mark(key(n)).unwrap().is_first());
    }
    assert!(store.mark("other").unwrap().is_first());
    drop(acme.claim("open").unwrap());
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    let before = store.stats().log_bytes;
    let estimate = store.estimate().unwrap();
    assert!(estimate.live_bytes > 40_000, "{estimate:?}");
    assert!(acme.forget_all().unwrap());
    let estimate = store.estimate().unwrap();
    assert!(estimate.live_bytes < 1000 && estimate.open == 0, "{estimate:?}");
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    let after = store.stats();
    assert!(before > 40_000 && after.log_bytes < before / 2, "{before} and {after:?}");
    assert!(
        after.estimate_at_checkpoint.unwrap().live_bytes < 1000 && after.keys == 1,
        "{after:?}"
    );
    assert_eq!(after.interrupted, 0);
    drop((store, acme));
    let store = sim.open_with(small()).unwrap();
    assert!(store.namespaces().unwrap().is_empty());
    assert!(!store.mark("other").unwrap().is_first());
    assert!(store.namespace("acme").mark(key(0)).unwrap().is_first());
    assert!(store.verify().unwrap().is_whole());
}

/// Names lie in sealed tables, in a rebuilt index, and in a log that a repair has rewritten.
#[test]
fn namespaces_outlive_checkpoints_compaction_rebuilds_and_repairs() {
    for masked in [false, true] {
        let sim = Sim::small(1);
        if masked {
            sim.mask_hashes(3, 3);
        }
        let store = open(&sim, 8);
        let plans = |store: &Store| store.namespace("acme").namespace("plans").version("model-7");
        assert!(plans(&store).mark("k").unwrap().is_first());
        assert!(store.namespace("gone").mark("k").unwrap().is_first());
        assert!(store.namespace("gone").forget_all().unwrap());
        for n in 0..40 {
            assert!(store.namespace("beta").mark(key(n)).unwrap().is_first());
        }
        rest(&sim, &store);
        let check = |store: &Store| {
            assert_eq!(store.namespaces().unwrap(), ["acme", "beta"]);
            assert_eq!(store.namespace("acme").namespaces().unwrap(), ["plans"]);
            assert!(!plans(store).mark("k").unwrap().is_first());
            assert_eq!(marked(&store.namespace("beta"), 40), 40);
            assert!(store.namespace("gone").get("k").unwrap().is_none());
            assert!(store.verify().unwrap().is_whole());
        };
        check(&store);
        drop(store);
        let store = open(&sim, 8);
        assert!(store.stats().opening.was_clean && store.stats().keys_in_memory < 20);
        check(&store);
        store.compact(u64::MAX).unwrap();
        check(&store);
        store.rebuild_index().unwrap();
        check(&store);
        drop(store);
        for path in files(&sim, "tab") {
            sim.remove(path).unwrap();
        }
        check(&open(&sim, 8));
        sim.remove("/store/MANIFEST").unwrap();
        sim.repair(Store::builder(), AcceptLoss::No).unwrap();
        check(&open(&sim, 8));
    }
}

#[test]
fn a_walk_shows_the_keys_of_its_namespace_without_its_name() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let acme = store.namespace("acme");
    for (n, space) in [(0, &store), (1, &acme), (2, &acme), (3, &acme.namespace("plans"))] {
        assert!(space.mark(("done", n)).unwrap().is_first());
        drop(space.claim(("open", n)).unwrap());
        sim.advance(Duration::from_millis(10));
    }
    let shown = |walk: onlyonce::admin::Iter| {
        let mut keys: Vec<_> = walk.map(|entry| entry.unwrap().0.to_string()).collect();
        keys.sort();
        keys
    };
    let expected = [r#"("done", 1)"#, r#"("done", 2)"#, r#"("open", 1)"#, r#"("open", 2)"#];
    assert_eq!(shown(acme.iter()), expected);
    assert_eq!(shown(acme.iter().prefix(("open", 1))), [expected[2]]);
    assert_eq!(shown(store.iter()), [r#"("done", 0)"#, r#"("open", 0)"#]);
    assert_eq!(shown(store.namespace("beta").iter()), Vec::<String>::new());
    let interrupted = [StateKind::Interrupted];
    let mut walk = acme.iter().in_states(&interrupted).oldest_first();
    let (first, state) = walk.next().unwrap().unwrap();
    assert_eq!(first.to_string(), expected[2]);
    let State::Interrupted(attempt) = &state else { panic!("{state}") };
    assert_eq!(attempt.key(), &first);
    let rest = acme.iter().in_states(&interrupted).after(walk.cursor().unwrap());
    assert_eq!(shown(rest), [expected[3]]);
    // What was seen names its key, namespace included, on any handle.
    assert!(store.forget(&state).unwrap());
    assert!(acme.get(("open", 1)).unwrap().is_none());
    assert_eq!(store.stats().interrupted, 3);
    assert!(acme.forget_all().unwrap());
    assert_eq!(store.stats().interrupted, 1);
    drop((store, acme, walk));
    assert_eq!(sim.open().unwrap().stats().interrupted, 1);
}

#[test]
fn a_ticket_is_attached_in_its_own_namespace_only() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let acme = store.namespace("acme");
    let Claim::Acquired(claim) = acme.claim("job").unwrap() else { panic!() };
    assert_eq!(claim.key().to_string(), "job");
    let ticket = claim.detach(Duration::from_secs(60)).unwrap().to_string();
    drop((store, acme));
    let store = sim.open().unwrap();
    let ticket: Ticket = ticket.parse().unwrap();
    for other in [store.clone(), store.namespace("beta"), store.namespace("acme").namespace("acme")]
    {
        let error = other.attach(&ticket).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("another namespace"), "{error}");
    }
    let error = store.namespace("acme").forget_all().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InProgress);
    assert!(error.to_string().contains("job"), "{error}");
    store.namespace("acme").attach(&ticket).unwrap().complete("done").unwrap();
    assert!(store.namespace("acme").forget_all().unwrap());
    assert_eq!(store.namespace("acme").attach(&ticket).unwrap_err().kind(), ErrorKind::ClaimLost);
}

/// Claims in the namespace itself and in one that lies in it, attached and detached, in memory and after an open.
#[test]
fn a_drop_waits_for_every_owner_inside_and_for_none_whose_lease_has_passed() {
    let lease = Duration::from_secs(60);
    for path in [&["acme"][..], &["acme", "plans"]] {
        let sim = Sim::small(1);
        let store = sim.open().unwrap();
        let inside =
            |store: &Store| path.iter().fold(store.clone(), |at, name| at.namespace(*name));
        let is_refused = |store: &Store| {
            let error = store.namespace("acme").forget_all().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InProgress);
            assert!(inside(store).get("job").unwrap().is_some());
        };
        let Claim::Acquired(claim) = inside(&store).claim("job").unwrap() else { panic!() };
        is_refused(&store);
        claim.detach(lease).unwrap();
        is_refused(&store);
        drop(store);
        let store = sim.open().unwrap();
        is_refused(&store);
        sim.advance(lease);
        assert!(store.namespace("acme").forget_all().unwrap());
        assert!(inside(&store).get("job").unwrap().is_none());
        // An owner in this process whose lease has passed.
        let late = Operation::new("job").lease(lease);
        let Claim::Acquired(late) = inside(&store).claim(late).unwrap() else { panic!() };
        is_refused(&store);
        sim.advance(lease);
        assert!(store.namespace("acme").forget_all().unwrap());
        assert_eq!(late.complete("late").unwrap_err().kind(), ErrorKind::ClaimLost);
        assert!(store.namespaces().unwrap().is_empty());
    }
}

#[test]
fn a_namespace_knows_the_last_64_versions_that_it_had() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let version = |n: u64| store.namespace("plans").version(n.to_string());
    for n in 0..=65 {
        assert!(version(n).mark("k").unwrap().is_first());
    }
    for n in 1..=64 {
        assert_eq!(version(n).get("k").unwrap_err().kind(), ErrorKind::Superseded, "{n}");
    }
    assert!(!version(65).mark("k").unwrap().is_first());
    // The oldest one is not known any more: it is a new one.
    assert!(version(0).get("k").unwrap().is_none());
    assert!(version(0).mark("k").unwrap().is_first());
    for n in 2..=65 {
        assert_eq!(version(n).mark("k").unwrap_err().kind(), ErrorKind::Superseded, "{n}");
    }
}

/// Many calls, waits, `run`, and the limits of names.
#[test]
fn every_call_of_a_handle_is_in_its_namespace() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let acme = store.namespace("acme");
    let all = |store: &Store| -> usize {
        store
            .mark_many([1, 2])
            .unwrap()
            .into_iter()
            .filter(|mark| mark.as_ref().unwrap().is_first())
            .count()
    };
    assert_eq!((all(&acme), all(&acme), all(&store)), (2, 0, 2));
    let mut batch = acme.batch();
    batch.mark(1).mark(3).claim("c").forget(2);
    let committed = batch.commit().unwrap();
    let firsts: Vec<bool> =
        committed.marks.iter().map(|mark| mark.as_ref().unwrap().is_first()).collect();
    assert_eq!(firsts, [false, true]);
    assert!(matches!(committed.forgotten[..], [Ok(true)]));
    assert!(store.get("c").unwrap().is_none() && store.get(2).unwrap().is_some());
    // A claim of another namespace is ended by any batch of the store.
    let Ok(Claim::Acquired(claim)) = committed.claims.into_iter().next().unwrap() else { panic!() };
    let mut batch = store.batch();
    batch.complete(claim, "done");
    assert!(matches!(batch.commit().unwrap().endings[..], [Ok(())]));
    assert!(matches!(acme.claim_async("c").wait().unwrap(), Claim::Completed(_)));
    assert!(matches!(acme.get_async("c").wait().unwrap(), Some(State::Completed(_))));
    assert!(acme.run("r", |claim| Ok::<_, onlyonce::Error>(claim.key().to_string())).is_ok());
    assert!(store.get("r").unwrap().is_none() && acme.get("r").unwrap().is_some());
    assert!(!acme.namespace("nothing").forget_many(["x"]).unwrap().pop().unwrap().unwrap());
    let kind = |e: onlyonce::Error| e.kind();
    let long = store.namespace("n".repeat(4089));
    for (store, expected) in [
        (store.namespace(""), ErrorKind::Invalid),
        (store.version("1"), ErrorKind::Invalid),
        (long, ErrorKind::TooLarge),
    ] {
        assert_eq!(store.mark("k").map_err(kind).unwrap_err(), expected);
        assert_eq!(store.get("k").map_err(kind).unwrap_err(), expected);
        assert_eq!(store.iter().next().unwrap().map_err(kind).unwrap_err(), expected);
    }
    assert!(acme.mark("k".repeat(4087)).unwrap().is_first());
    assert_eq!(acme.mark("k".repeat(4088)).map_err(kind).unwrap_err(), ErrorKind::TooLarge);
    // The caller's own bytes, and the limit on those.
    let long = "k".repeat(4088);
    for told in [
        acme.mark(&long).map(drop),
        acme.get(&long).map(drop),
        acme.mark_many([&long]).and_then(|mut told| told.remove(0).map(drop)),
        acme.mark_async(&long).wait().map(drop),
        acme.get_async(&long).wait().map(drop),
        acme.mark("k".repeat(4097)).map(drop),
    ] {
        let error = told.unwrap_err().to_string();
        let bytes = if error.contains("4097") { 4097 } else { 4088 };
        let expected = format!("a key of {bytes} bytes, at most 4087: ");
        assert!(error.starts_with(&expected), "{error}");
    }
    let error = store.namespace("n".repeat(4089)).mark("k").unwrap_err().to_string();
    assert_eq!(error, "a namespace's name of 4089 bytes, at most 4088");
    assert_eq!(acme.mark("").map_err(kind).unwrap_err(), ErrorKind::Invalid);
    assert_eq!(store.forget_all().map_err(kind).unwrap_err(), ErrorKind::Invalid);
}

/// The record of a namespace is damaged: none of its keys counts as absent.
#[test]
fn a_damaged_record_of_a_namespace_grants_nothing() {
    let sim = Sim::small(1);
    // A table covers it: an open that reads it would refuse the whole store.
    let store = sim.open_with(small().index_memory_max(0)).unwrap();
    let acme = store.namespace("acme");
    assert!(acme.mark("k").unwrap().is_first());
    assert!(store.mark("k").unwrap().is_first());
    drop((store, acme));
    let name = b"acme";
    let mut damaged = 0;
    for path in files(&sim, "log") {
        let bytes = sim.read_file(&path).unwrap();
        if let Some(at) = bytes.windows(4).position(|window| window == name) {
            sim.flip_byte(&path, at as u64, 1).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    let store = sim.open_with(small()).unwrap();
    assert!(!store.mark("k").unwrap().is_first());
    let acme = store.namespace("acme");
    assert_eq!(acme.mark("k").unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(acme.get("k").unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(store.namespaces().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[derive(Clone, Debug)]
enum Op {
    /// In the namespace of that number (0: in none), under that version (0: none).
    Mark(usize, u8, u64),
    Drop(usize),
    Compact,
    Rebuild,
    Reopen,
    Kill,
    /// Power is lost at that call of the next operation.
    Cut(u64),
    Steps,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..4_usize, 0..3_u8, 0..6_u64).prop_map(|(space, version, key)| Op::Mark(space, version, key)),
        3 => (1..4_usize).prop_map(Op::Drop),
        1 => Just(Op::Compact),
        1 => Just(Op::Rebuild),
        2 => Just(Op::Reopen),
        1 => Just(Op::Kill),
        2 => (0..6_u64).prop_map(Op::Cut),
        1 => Just(Op::Steps),
    ]
}

fn space(store: &Store, number: usize) -> Store {
    match number {
        0 => store.clone(),
        3 => store.namespace("a").namespace("c"),
        number => store.namespace(["a", "b"][number - 1]),
    }
}

/// What is marked in one namespace.
#[derive(Clone, Default, PartialEq, Debug)]
struct Space {
    keys: BTreeSet<u64>,
    exists: bool,
    version: u8,
    past: BTreeSet<u8>,
}

type Spaces = BTreeMap<usize, Space>;

/// The answer of the model: `None` for `Superseded`, otherwise whether something was done.
fn apply(spaces: &mut Spaces, op: &Op) -> Option<bool> {
    match *op {
        Op::Mark(at, version, key) => {
            if at == 3 {
                spaces.entry(1).or_default().exists = true;
            }
            let space = spaces.entry(at).or_default();
            if at != 0 && version != 0 && space.exists && space.version != version {
                if space.past.contains(&version) {
                    return None;
                }
                let mut past = std::mem::take(&mut space.past);
                past.extend(Some(space.version).filter(|version| *version != 0));
                *space = Space { version, past, ..Space::default() };
                if at == 1 {
                    spaces.remove(&3);
                }
            }
            let space = spaces.entry(at).or_default();
            if !space.exists {
                (space.exists, space.version) =
                    (true, if at == 0 { 0 } else { version.max(space.version) });
            }
            Some(space.keys.insert(key))
        }
        Op::Drop(at) => {
            if at == 1 {
                spaces.remove(&3);
            }
            Some(spaces.remove(&at).is_some_and(|space| space.exists))
        }
        _ => Some(true),
    }
}

fn run(store: &Store, op: &Op) -> Result<bool> {
    match *op {
        Op::Mark(at, version, key) => {
            let store = space(store, at);
            let store =
                if at == 0 || version == 0 { store } else { store.version(version.to_string()) };
            Ok(store.mark(key)?.is_first())
        }
        Op::Drop(at) => space(store, at).forget_all(),
        Op::Compact => store.compact(u64::MAX).map(|_| true),
        Op::Rebuild => store.rebuild_index().map(|()| true),
        Op::Steps => (0..5).try_for_each(|_| store.step().map(drop)).map(|()| true),
        Op::Reopen | Op::Kill | Op::Cut(_) => Ok(true),
    }
}

/// What the store shows is what the model knows.
fn shows(store: &Store, spaces: &Spaces) -> bool {
    (0..4).all(|at| {
        let known = spaces.get(&at).cloned().unwrap_or_default();
        let own = space(store, at);
        let walked: BTreeSet<_> = own.iter().map(|entry| entry.unwrap().0.to_string()).collect();
        let keys: BTreeSet<_> = known.keys.iter().map(u64::to_string).collect();
        walked == keys
            && (0..6).all(|key| own.get(key).unwrap().is_some() == known.keys.contains(&key))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if is_long() { 1500 } else { 60 }, failure_persistence: None, ..ProptestConfig::default() })]
    /// At `Sync`, everything that was answered stands; what power was lost in stands whole or not at all.
    #[test]
    fn namespaces_behave_as_their_model(ops in proptest::collection::vec(any_op(), 1..60), seed: u64) {
        let sim = Sim::small(seed);
        let builder = || small().index_memory_max(64 * 16);
        let (mut store, mut spaces) = (sim.open_with(builder()).unwrap(), Spaces::new());
        let mut cut = None;
        for op in &ops {
            match op {
                Op::Cut(after) => {
                    cut = Some(*after);
                    continue;
                }
                Op::Reopen => {
                    drop(store);
                    store = sim.open_with(builder()).unwrap();
                }
                Op::Kill => {
                    sim.kill();
                    store = sim.open_with(builder()).unwrap();
                }
                _ => {}
            }
            let before = spaces.clone();
            let expected = apply(&mut spaces, op);
            if let Some(after) = cut.take() {
                sim.cut_power_at(after);
            }
            let done = run(&store, op);
            if sim.power_is_cut() {
                drop(store);
                sim.power_loss();
                store = sim.open_with(builder()).unwrap();
                // A mark makes its namespace, or has it pass to its version, before it marks the key.
                let partly = without_its_key(&spaces, op, &before);
                let is_done = shows(&store, &spaces);
                prop_assert!(is_done || done.is_err(), "{op:?} was lost");
                let is_whole = is_done || shows(&store, &before) || shows(&store, &partly);
                prop_assert!(is_whole, "{op:?} stands half");
                // What isn't seen of a namespace without keys is the same then.
                let _ = run(&store, op);
            } else {
                // Not reached: it is not to come later.
                sim.heal();
                match expected {
                    Some(expected) => prop_assert_eq!(done.unwrap(), expected, "{:?}", op),
                    None => prop_assert_eq!(done.unwrap_err().kind(), ErrorKind::Superseded),
                }
            }
            prop_assert!(shows(&store, &spaces), "after {op:?}");
        }
        prop_assert!(store.verify().unwrap().is_whole());
    }
}

/// After a mark whose namespace was made, or passed to another version, and whose key wasn't marked.
fn without_its_key(after: &Spaces, op: &Op, before: &Spaces) -> Spaces {
    let mut spaces = after.clone();
    if let Op::Mark(at, _, key) = op {
        let was_there = before.get(at).is_some_and(|space| {
            space.keys.contains(key)
                && spaces.get(at).is_some_and(|now| now.version == space.version)
        });
        if let Some(space) = spaces.get_mut(at).filter(|_| !was_there) {
            space.keys.remove(key);
        }
    }
    spaces
}

/// The steps of a claim lie where its key does.
#[test]
fn steps_go_with_their_namespace() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let space = |store: &Store| store.namespace("tenant");
    let long = "x".repeat(600);
    for round in 0..3 {
        for n in 0..20 {
            let key = format!("{n}");
            let Claim::Acquired(claim) = space(&store).claim(key.as_str()).unwrap() else {
                panic!()
            };
            for step in 0..5 {
                let text = format!("{round} {step} {long}");
                claim.step(format!("{step}"), |_| Ok::<_, Error>(text)).unwrap();
            }
            drop(claim);
            let Claim::Interrupted(lost) = space(&store).claim(key.as_str()).unwrap() else {
                panic!()
            };
            let claim = lost.take_over().unwrap();
            let kept: String = claim.step("4", |_| Err(Error::invalid("it has ended"))).unwrap();
            assert!(kept.starts_with(&format!("{round} 4")), "{kept}");
        }
        // Interrupted keys with steps: all of it goes with one record.
        assert!(space(&store).forget_all().unwrap());
        assert_eq!(space(&store).iter().count(), 0);
    }
    let before = store.stats().log_bytes;
    while !store.compact(u64::MAX).unwrap().is_complete() {}
    let after = store.stats().log_bytes;
    assert!(after * 2 < before, "{before} bytes before, {after} after");
    assert!(store.verify().unwrap().damages.is_empty());
}

/// A waker that makes a namespace, which no other call in a namespace may go on beside.
struct Maker(Store, AtomicU64);

impl Wake for Maker {
    fn wake(self: Arc<Self>) {
        let n = self.1.fetch_add(1, Ordering::SeqCst);
        assert!(self.0.namespace(format!("woken {n}")).mark("k").unwrap().is_first());
    }
}

/// Wakers were called under the lock of the namespaces: one that called the store in turn waited for itself.
#[test]
fn a_waker_may_call_the_store() {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let sim = Sim::small(1);
        let store = sim.open().unwrap();
        let acme = store.namespace("acme");
        let maker = Arc::new(Maker(store.clone(), AtomicU64::new(0)));
        let waker = Waker::from(Arc::clone(&maker));
        let woken = || maker.1.load(Ordering::SeqCst);
        let lease = Duration::from_secs(10);
        let Claim::Acquired(owner) = acme.claim(Operation::new("k").lease(lease)).unwrap() else {
            panic!()
        };
        let wait = || {
            let mut waiting = acme.claim_wait_async("k", 100 * lease);
            assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending());
            waiting
        };
        let (first, second) = (wait(), wait());
        // By the ending of the owner, and by the first of those that waited, who leaves the queue.
        owner.abort("busy").unwrap();
        assert_eq!(woken(), 1);
        let Claim::Acquired(owner) = first.wait().unwrap() else { panic!() };
        assert_eq!(woken(), 2);
        drop((owner, second));
        // By a drop of the namespace.
        let Claim::Acquired(_late) = acme.claim(Operation::new("l").lease(lease)).unwrap() else {
            panic!()
        };
        let mut waiting = acme.claim_wait_async("l", 100 * lease);
        assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending());
        sim.advance(2 * lease);
        let before = woken();
        assert!(acme.forget_all().unwrap());
        assert!(woken() > before);
        tell.send(()).unwrap();
    });
    assert!(told.recv_timeout(Duration::from_secs(60)).is_ok(), "it failed, or waits for itself");
}
