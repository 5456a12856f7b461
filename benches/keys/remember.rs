//! What remembering expired keys costs: disk and memory a key, a late retry, a new key.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use onlyonce::{Claim, Durability, Policy, Store};

use crate::fill;
use crate::machine::{self, Sizes};
use crate::progress::Progress;
use crate::work::{Args, FILLED, NEW, Random, Times, close, key, mib, open, scratch};

const RETENTION: Duration = Duration::from_secs(2);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
const LOOKUPS: u64 = 10_000;

pub fn run(args: &Args) {
    let keys = args.number("--remember-keys", 1_000_000);
    println!("\n{keys} marks of 36 bytes that have expired and are remembered\n");
    let scratch = scratch();
    let none = scratch.path().join("none");
    close(open(&none, Durability::Flush));
    let dir = scratch.path().join("keys");
    make(&dir, keys);
    let (store, sizes) = (Store::open(&dir).unwrap(), Sizes::of(&dir));
    let stats = store.stats();
    assert_eq!(stats.expired_keys, keys);
    drop(store);
    println!("| what | figure |\n|---|---:|");
    println!(
        "| files of remembered keys, a key, at most 24 | {:.2} bytes, in {} files |",
        sizes.expired as f64 / keys as f64,
        stats.expired_files
    );
    println!("| all files | {:.1} MiB |", mib(sizes.all));
    println!(
        "\n| a store opened, its memory KiB | none remembered | {keys} remembered |\n|---|---:|---:|"
    );
    let [without, with] = [(&none, 0), (&dir, keys)].map(|(dir, keys)| in_child(dir, keys));
    for (name, at) in [("when opened", 0), ("after as many lookups", 1)] {
        println!("| {name} | {:.0} | {:.0} |", without[at] / 1024.0, with[at] / 1024.0);
    }
    println!("\n| {LOOKUPS} claims at Flush, ns | p50 | p99 |\n|---|---:|---:|");
    println!("| a late retry: `Expired` | {:.0} | {:.0} |", with[2], with[3]);
    println!("| a key never seen: granted | {:.0} | {:.0} |", with[4], with[5]);
    println!("| the same where none is remembered | {:.0} | {:.0} |", without[4], without[5]);
}

fn make(dir: &Path, keys: u64) {
    let store = open(dir, Durability::Flush);
    let short = store.with_policy(Policy::new().retention(RETENTION).remember_expired(YEAR));
    let mut progress = Progress::new(keys, "keys");
    fill::mark(&short, 0..keys, 1000, &mut |done| progress.show(done));
    progress.clear();
    drop(short);
    thread::sleep(RETENTION + Duration::from_millis(10));
    assert!(store.compact(u64::MAX).unwrap().is_complete());
    close(store);
}

/// Memory after the open and after lookups, then p50 and p99 of late retries and of new keys.
fn in_child(dir: &Path, keys: u64) -> Vec<f64> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--child", "remember", "--keys", &keys.to_string(), "--dir"]).arg(dir);
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_ascii_whitespace().map(|word| word.parse().unwrap()).collect()
}

pub fn look_up_in_child(args: &Args) {
    let (dir, keys) = (PathBuf::from(args.value("--dir").unwrap()), args.number("--keys", 0));
    let had = machine::own_memory();
    let store = open(&dir, Durability::Flush);
    let opened = machine::own_memory().saturating_sub(had);
    let (mut late, mut new) = (Times::default(), Times::default());
    let mut random = Random(1);
    for n in 0..LOOKUPS {
        // If none is remembered, another new key, so that both do as much.
        let retried =
            if keys > 0 { key(FILLED, random.below(keys)) } else { key(NEW, LOOKUPS + n) };
        match late.time(|| store.claim(&retried)).unwrap() {
            Claim::Expired(_) if keys > 0 => {}
            Claim::Acquired(claim) if keys == 0 => claim.complete(&[][..]).unwrap(),
            other => panic!("{other:?}"),
        }
        let never_seen = key(NEW, n);
        let Claim::Acquired(claim) = new.time(|| store.claim(&never_seen)).unwrap() else {
            panic!("not granted")
        };
        claim.complete(&[][..]).unwrap();
    }
    let looked_up = machine::own_memory().saturating_sub(had);
    let [late, new] = [&mut late, &mut new].map(|times| (times.at(0.5), times.at(0.99)));
    println!("{opened} {looked_up} {} {} {} {}", late.0, late.1, new.0, new.1);
}
