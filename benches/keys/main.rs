//! What does a store of N keys cost? Filling it, its bytes and memory, opening, finding, expiring.
//!
//! `cargo bench --bench keys -- --keys 100000000 --level flush,sync` marks so many 36-byte keys in batches, at one
//! level after the other, each in its own store, and prints what that took. The last store stays. Each further part has
//! to be named, works on the store just filled or on an older one (`--dir DIR --no-fill`), and prints its own table:
//!
//! - `--then`: opening after a clean close and after kill -9, finding known and new keys, compared with a store of
//!   1 M keys; `--find`: the latter alone;
//! - `--stuck`: counting and listing interrupted and held keys (`--stuck-keys 5`) among the others;
//! - `--squeeze`: reads from the device per key, with memory for a quarter of the index (Linux, as root), in so many
//!   `--lookups` of each kind; `--door`, the file that joins that memory's control group, goes to its child;
//! - `--expire`: what it takes to reclaim the space of expired keys (`--expire-keys M`, `--warm`: from memory;
//!   `--fill-rate 50000`: pairs a second that the fill must reach, since it must end before the first key expires);
//! - `--beside`: how that, checkpoints and merges slow down pairs (`--round-keys M`, `--millis 2000` idle,
//!   `--only compact,background,checkpoints,merges`, `--level`);
//! - `--saturate`: whether reclaim keeps up with as many writers as processors, or more, whose results are kept for a
//!   short time (`--writers 4`, `--kept-millis 2000`, `--seconds 24`, `--rate 4000` pairs a second, `--level flush,sync`);
//! - `--month`: the disk compared with live bytes, a month of mixed retention in simulated time (`--days`, `--pairs`);
//! - `--remember`: bytes, memory and answers of keys that are remembered (`--remember-keys M`);
//! - `--strace`: which system calls claims make during checkpoints (needs `strace`);
//! - `--rates`: batches of marks compared with a floor of the same bytes, pairs on a store of `--store-keys M` compared
//!   with those on an empty one (`--millis 500` a round).
//!
//! `--batch 1000` keys a batch, `--unmerged` leaves a fill's index in its tables, `--rounds 5` where rounds are taken
//! in turn. Each part has its own file; `machine` queries the system.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    missing_docs,
    unreachable_pub
)]

mod beside;
mod expire;
mod fill;
mod machine;
mod month;
mod open;
mod progress;
mod rates;
mod remember;
mod saturate;
mod squeeze;
mod strace;
mod stuck;
#[path = "../../tests/it/traffic.rs"]
mod traffic;
mod work;

use std::path::PathBuf;

use onlyonce::Durability;
use work::{Args, scratch};

fn main() {
    let args = Args::new();
    match args.value("--child").as_deref() {
        Some("pairs") => return open::pairs_in_child(&args),
        Some("open") => return open::open_in_child(&args),
        Some("remember") => return remember::look_up_in_child(&args),
        Some("claims") => return strace::claims_in_child(&args),
        Some("lookups") => return squeeze::look_up_in_child(&args),
        _ => {}
    }
    let parts = [
        "--then",
        "--find",
        "--stuck",
        "--squeeze",
        "--expire",
        "--beside",
        "--saturate",
        "--month",
        "--remember",
        "--strace",
        "--rates",
        "--no-fill",
    ];
    let asked_for_none = !parts.iter().any(|part| args.has(part)) && args.value("--keys").is_none();
    let keys = args.number("--keys", 1_000_000);
    let temporary = scratch();
    let given = args.value("--dir").map(PathBuf::from);
    let dir = given.unwrap_or_else(|| temporary.path().to_path_buf()).join("keys");
    println!("{} processors, {}", work::cores(), machine::processor());
    let on_its_own =
        !["--then", "--find", "--stuck", "--squeeze"].iter().any(|part| args.has(part));
    let fills = args.value("--keys").is_some() || asked_for_none || !on_its_own;
    if fills && !args.has("--no-fill") {
        fill::run(&args, &dir, keys);
    }
    if args.has("--then") {
        open::openings(&args, &dir);
    }
    if args.has("--then") || args.has("--find") {
        open::findings(&dir, keys);
    }
    if args.has("--stuck") {
        stuck::run(&args, &dir);
    }
    if args.has("--squeeze") {
        squeeze::run(&args, &dir, keys);
    }
    if args.has("--expire") {
        expire::run(&args);
    }
    if args.has("--beside") {
        beside::run(&args);
    }
    if args.has("--saturate") {
        saturate::run(&args);
    }
    if args.has("--month") {
        month::run(&args);
    }
    if args.has("--remember") {
        remember::run(&args);
    }
    if args.has("--strace") {
        strace::run(&args);
    }
    if args.has("--rates") {
        rates::run(&args);
    }
}

/// The levels that `--level` names.
fn levels(args: &Args) -> Vec<Durability> {
    let named = args.value("--level").unwrap_or_else(|| "sync".to_owned());
    let level = |name| match name {
        "sync" => Durability::Sync,
        "flush" => Durability::Flush,
        "lazy" => Durability::Lazy,
        other => panic!("--level sync, flush or lazy, or some of them with commas, not {other}"),
    };
    named.split(',').map(level).collect()
}
