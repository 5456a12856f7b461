//! Finding the few keys that wait for somebody, among all that don't.

use std::path::Path;
use std::time::Instant;

use onlyonce::admin::StateKind;
use onlyonce::{Claim, State, Store};

use crate::work::{Args, fresh_kind, key, median};

const STUCK: [StateKind; 2] = [StateKind::Interrupted, StateKind::Held];

/// Leaves some keys interrupted and held in the filled store, and lists them in each way.
pub fn run(args: &Args, dir: &Path) {
    let stuck = args.number("--stuck-keys", 5);
    let before = opened(dir).1.stats();
    assert_eq!((before.interrupted, before.held), (0, 0), "of another run");
    let store = opened(dir).1;
    let kind = fresh_kind();
    for n in 0..stuck {
        drop(store.claim(&key(kind, n)).unwrap());
        if n % 2 == 1 {
            let Claim::Interrupted(lost) = store.claim(&key(kind, n)).unwrap() else { panic!() };
            lost.hold("to be looked into").unwrap();
        }
    }
    store.close(std::time::Duration::ZERO).unwrap();
    drop(store);
    let (open_millis, store) = opened(dir);
    let stats = store.stats();
    let sealed = stats.keys;
    println!("\n| {stuck} stuck keys among {sealed} | ms, median of {} |", args.rounds());
    println!("|---|---:|");
    println!("| opening, once | {open_millis:.2} |");
    let row = |name: &str, rounds: usize, list: &dyn Fn() -> u64| {
        let times = (0..rounds).map(|_| {
            let began = Instant::now();
            assert_eq!(list(), stuck);
            began.elapsed().as_secs_f64() * 1000.0
        });
        println!("| {name} | {:.3} |", median(times));
    };
    let count =
        |walk: onlyonce::admin::Iter| walk.map(|entry| entry.map(drop).unwrap()).count() as u64;
    row("`stats`", args.rounds(), &|| {
        let stats = store.stats();
        stats.interrupted + stats.held
    });
    row("`in_states`", args.rounds(), &|| count(store.iter().in_states(&STUCK)));
    row("`in_states`, oldest first", args.rounds(), &|| {
        count(store.iter().in_states(&STUCK).oldest_first())
    });
    row("a walk over all keys, as any store without such a list has to", 1, &|| {
        let is_stuck = |state: &State| matches!(state, State::Interrupted(_) | State::Held(_));
        store.iter().filter(|entry| is_stuck(&entry.as_ref().unwrap().1)).count() as u64
    });
    for n in 0..stuck {
        assert!(store.forget(&key(kind, n)).unwrap());
    }
}

fn opened(dir: &Path) -> (f64, Store) {
    let began = Instant::now();
    let store = Store::open(dir).unwrap();
    (began.elapsed().as_secs_f64() * 1000.0, store)
}
