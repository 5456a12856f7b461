//! Roles that this test binary plays in a process of its own, for tests that kill one or need a second one.

use crate::{crowd, errors, guests, process, processes, reader, room, scarcity, time};
use onlyonce::{Claim, Durability, Operation, Store, StoreBuilder};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const ROLE: &str = "ONLYONCE_TEST_ROLE";

/// Starts this binary in a role; its output comes through a pipe.
pub(crate) fn child(role: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child::plays_its_role", "--nocapture", "--test-threads=1"])
        .env(ROLE, format!("{role} {}", dir.display()))
        .stdout(Stdio::piped())
        .stdin(Stdio::piped());
    command
}

/// Does nothing in an ordinary run.
#[test]
fn plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (role, dir) = role.split_once(' ').unwrap();
    let dir = Path::new(dir);
    match role.split_once(':').unwrap_or((role, "")) {
        ("pairs", round) => pairs(dir, round),
        ("hold", _) => process::hold(dir),
        ("short", n) => process::short(dir, n),
        ("open", _) => process::open(dir),
        ("peer", _) => processes::peer(dir),
        ("forks", role) => guests::forks(dir, role),
        ("shared-few-files", free) => scarcity::shared_few_files(dir, free),
        ("host-of-few-files", _) => guests::host_of_few_files(dir),
        ("peer-of-another-user", _) => guests::peer_of_another_user(dir),
        ("plays", process) => crowd::plays(dir, process),
        ("submits", job) => process::submits(dir, job),
        ("webhook", ticket) => process::webhook(dir, ticket),
        ("asks", job) => process::asks(dir, job),
        ("few-files", free) => scarcity::few_files(dir, free),
        ("many-segments", _) => scarcity::many_segments(dir),
        ("repair-many-segments", _) => scarcity::repair_many_segments(dir),
        ("no-thread", more) => scarcity::no_thread(dir, more),
        ("shared-no-thread", role) => scarcity::shared_no_thread(dir, role),
        ("heir-of-few-files", free) => scarcity::heir_of_few_files(dir, free),
        ("as-owner", _) => process::as_owner(dir),
        ("reads-as-other", _) => reader::reads_as_other(dir),
        ("reads-and-forks", _) => reader::reads_and_forks(dir),
        ("later", _) => time::later(dir),
        ("fork", _) => process::fork(dir),
        ("fork-outlives", _) => process::fork_outlives(dir),
        ("fork-busy", _) => process::fork_busy(dir),
        ("ten", _) => room::ten(dir),
        ("goes", _) => errors::goes(dir),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn small() -> StoreBuilder {
    let builder = Store::builder().segment_bytes(64 << 10).result_bytes_max(1 << 10);
    builder.open_timeout(Duration::ZERO)
}

/// Claims and completes at Flush and Sync until it is killed. Prints before each call what it is about to do, and after
/// it the answer.
fn pairs(dir: &Path, round: &str) {
    println!("opening");
    let store = small().open_or_create(dir).unwrap();
    println!("open");
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let store = &store;
            scope.spawn(move || {
                for n in 0.. {
                    let level = [Durability::Flush, Durability::Sync][(n + thread) % 2];
                    let key = format!("{round}-{thread}-{n}");
                    println!("claims {key}");
                    let op = Operation::new(&key).claim_durability(level).durability(level);
                    let Claim::Acquired(claim) = store.claim(op).unwrap() else {
                        panic!("{key} was known")
                    };
                    println!("claimed {key} {}", claim.token());
                    if n % 7 == 3 {
                        // Kept for the kill, or for inspection.
                        std::mem::forget(claim);
                        continue;
                    }
                    println!("completes {key}");
                    claim.complete(&key).unwrap();
                    println!("completed {key}");
                }
            });
        }
    });
}
