//! Stores written by released versions of the format open, and give the same answers as then.
//!
//! `tests/data/v1` holds one store that was closed and one whose process was killed, each with what is known of its
//! keys in a text file beside it. They are never edited. Where they are missing, this makes them, from a seed:
//!
//! ```sh
//! ONLYONCE_WRITE_GOLDEN=1 cargo test --test it golden::
//! ```
//!
//! The tests of the encoders check that the current code writes the same bytes for the same records (`cargo test --lib
//! the_bytes_of`).

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use onlyonce::testing::Sim;
use onlyonce::value::{Codec, Format};
use onlyonce::{
    Claim, ClaimGuard, Durability, Encode, Fingerprint, OnInterrupted, Operation, Outcome, Policy,
    Result, State, Store, StoreBuilder,
};

const SECOND: Duration = Duration::from_secs(1);
const YEARS: Duration = Duration::from_secs(1_000_000_000);

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1").join(name)
}

fn builder() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(1 << 10).index_memory_max(256)
}

fn acquired(claim: Claim) -> ClaimGuard {
    match claim {
        Claim::Acquired(guard) => guard,
        other => panic!("not acquired: {other}"),
    }
}

struct Reading(u32);

impl Encode for Reading {
    fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
        out.extend_from_slice(&self.0.to_le_bytes());
        Ok(Format { codec: Codec::Custom(7), version: 3 })
    }
}

/// Brings keys into every state, with every field a record can have, over two segments.
fn work(sim: &Sim, store: &Store) -> Vec<ClaimGuard> {
    let claim = |op: Operation<'_>| store.claim(op).unwrap();
    acquired(claim(Operation::new("text"))).complete("a result").unwrap();
    let remembered = Operation::new("remembered").retention(SECOND).remember_expired(YEARS);
    assert!(store.mark(remembered).unwrap().is_first());
    let hidden = Operation::new("hidden").retention(SECOND).remember_expired(YEARS);
    assert!(store.mark(hidden).unwrap().is_first());
    let request = Operation::new(("tenant", "charge", 17))
        .fingerprint(Fingerprint::of("request"))
        .owner("host-3")
        .retention(Duration::from_secs(7 * 86_400));
    let outcome = Outcome::success("paid").meta("status", 201).meta("type", "text/plain");
    acquired(claim(request)).record(outcome).unwrap();
    acquired(claim(Operation::new(42))).fail("declined").unwrap();
    acquired(claim(Operation::new(&b"\xff\x00"[..]))).complete(&Reading(99)).unwrap();
    acquired(claim(Operation::new("aborted"))).abort("nothing happened").unwrap();
    sim.jump_wall_clock(90_000);
    drop(acquired(claim(Operation::new("dropped").owner("host-4"))));
    drop(acquired(claim(Operation::new("parked").on_interrupted(OnInterrupted::Hold))));
    drop(acquired(claim(Operation::new("held"))));
    let Claim::Interrupted(lost) = claim(Operation::new("held")) else { panic!() };
    lost.hold("held by word").unwrap();
    // Taken over and aborted: the first attempt's fate stays open.
    drop(acquired(claim(Operation::new("open"))));
    let Claim::Interrupted(lost) = claim(Operation::new("open")) else { panic!() };
    lost.take_over().unwrap().abort("by the second").unwrap();
    let Claim::Interrupted(lost) = claim(Operation::new("open")) else { panic!() };
    let third = lost.take_over().unwrap();
    // Lapsed, noticed, and renewed by its late owner.
    let late = acquired(claim(Operation::new("late").lease(SECOND)));
    sim.advance(2 * SECOND);
    let Claim::Interrupted(seen) = claim(Operation::new("late")) else { panic!() };
    drop(seen);
    late.renew(60 * SECOND).unwrap();
    acquired(claim(Operation::new("forgotten"))).complete(&()).unwrap();
    assert!(store.forget("forgotten").unwrap());
    for n in 100..160_u64 {
        if n == 130 {
            // A checkpoint: some keys are in a table, some after it, some in both.
            while store.step().unwrap() == Duration::ZERO {}
            // Live records move, expired keys are remembered; the record of a forget hides its memory.
            assert!(store.compact(u64::MAX).unwrap().is_complete());
            assert!(store.forget("hidden").unwrap());
            assert!(store.forget("aborted").unwrap());
            acquired(claim(Operation::new("aborted"))).abort("nothing happened again").unwrap();
        }
        let quick = store.with_policy(Policy::new().durability(Durability::Flush));
        acquired(quick.claim(n).unwrap()).complete(&[7; 100][..]).unwrap();
    }
    assert!(store.mark(Operation::new("marked").durability(Durability::Flush)).unwrap().is_first());
    vec![third, late]
}

/// The state of each key, one per line.
fn describe(store: &Store) -> String {
    let mut lines: Vec<String> = store
        .iter()
        .map(|entry| {
            let (key, state) = entry.unwrap();
            format!("{key}: {}", in_words(&state))
        })
        .collect();
    lines.sort();
    lines.join("\n") + "\n"
}

fn in_words(state: &State) -> String {
    let (word, attempt) = match state {
        State::Completed(done) => return recorded("completed", done),
        State::Failed(done) => return recorded("failed", done),
        State::InProgress(attempt) => ("in progress", attempt),
        State::Interrupted(attempt) => ("interrupted", attempt),
        State::Held(attempt) => ("held", attempt),
        State::Aborted(attempt) => ("aborted", attempt),
        other => panic!("{other:?}"),
    };
    format!(
        "{word}, attempt {}, token {}, since {}, owner {:?}, hold {}",
        attempt.number(),
        attempt.token(),
        millis(attempt.since()),
        attempt.owner().unwrap_or_default(),
        attempt.asked_for_hold(),
    )
}

fn recorded(word: &str, done: &onlyonce::Recorded) -> String {
    let result = done.result().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    });
    format!(
        "{word}, attempt {}, token {}, at {}, expires {}, result {result}",
        done.attempt(),
        done.token(),
        millis(done.completed_at()),
        done.expires_at().map_or(0, millis),
    )
}

fn millis(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()
}

fn write(name: &str, sim: &Sim) {
    let dir = data(name);
    assert!(!dir.exists(), "{} is never edited", dir.display());
    for part in ["log", "index", "expired"] {
        fs::create_dir_all(dir.join(part)).unwrap();
    }
    for (path, bytes) in sim.contents().unwrap() {
        fs::write(dir.join(path), bytes).unwrap();
    }
    let store = sim.open_with(builder()).unwrap();
    fs::write(data(&format!("{name}.txt")), describe(&store)).unwrap();
}

fn make() {
    if !data("closed").exists() {
        let sim = Sim::small(1);
        let store = sim.open_with(builder()).unwrap();
        let owners = work(&sim, &store);
        store.close(Duration::ZERO).unwrap();
        drop(owners);
        drop(store);
        write("closed", &sim);
    }
    if !data("killed").exists() {
        let sim = Sim::small(2);
        let store = sim.open_with(builder()).unwrap();
        let owners = work(&sim, &store);
        sim.kill();
        drop(owners);
        drop(store);
        write("killed", &sim);
    }
}

/// A copy of the store on the real disk.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for part in ["log", "index", "expired"] {
        fs::create_dir(dir.path().join(part)).unwrap();
    }
    for part in ["", "log", "index", "expired"] {
        for entry in fs::read_dir(data(name).join(part)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), dir.path().join(part).join(entry.file_name())).unwrap();
            }
        }
    }
    dir
}

#[test]
fn stores_of_version_1_open_with_the_same_answers() {
    if std::env::var_os("ONLYONCE_WRITE_GOLDEN").is_some() {
        make();
    }
    for name in ["closed", "killed"] {
        let expected = fs::read_to_string(data(&format!("{name}.txt"))).unwrap();
        let dir = copy(name);
        let store = builder().open(dir.path()).unwrap();
        assert_eq!(store.stats().opening.was_clean, name == "closed");
        assert_eq!(describe(&store), expected, "{name}");
        let Some(State::Expired(expired)) = store.get("remembered").unwrap() else {
            panic!("{name}: not remembered")
        };
        assert_eq!(millis(expired.completed_at()), 1_767_225_600_000);
        assert!(store.get("hidden").unwrap().is_none(), "{name}: a memory that was forgotten");
        // Written to, killed or closed, and opened again, it gives the same answers and one key more.
        assert!(store.mark("one more").unwrap().is_first());
        drop(store);
        let store = builder().open(dir.path()).unwrap();
        assert!(store.forget("one more").unwrap());
        assert_eq!(describe(&store), expected, "{name}, written to");
        let newest = |text: &str| {
            let tokens = text.lines().filter_map(|line| line.split("token ").nth(1));
            tokens.filter_map(|rest| rest.split(',').next()?.parse::<u64>().ok()).max().unwrap()
        };
        let token = acquired(store.claim("and another").unwrap()).token().get();
        assert!(token > newest(&expected), "{token}");
    }
}

/// Every field and kind is in them, or they pin less than they should.
#[test]
fn the_stores_of_version_1_hold_every_state() {
    for name in ["closed", "killed"] {
        let text = fs::read_to_string(data(&format!("{name}.txt"))).unwrap();
        for word in ["completed", "failed", "aborted", "interrupted", "held"] {
            assert!(text.contains(&format!(": {word},")), "{name}: {word}");
        }
        assert!(
            text.contains("attempt 3") && text.contains("hold true") && !text.contains("forgotten")
        );
        for part in ["log", "index", "expired"] {
            assert!(fs::read_dir(data(name).join(part)).unwrap().count() > 0, "{name}");
        }
        assert!(fs::read_dir(data(name).join("log")).unwrap().count() > 1);
    }
}
