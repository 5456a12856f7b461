//! The small corpora of the fuzz targets, replayed, so that fixed findings stay fixed.
//!
//! Written again, mostly from the stores in `tests/data/v1`, by
//!
//! ```sh
//! ONLYONCE_WRITE_CORPUS=1 cargo test --test it fuzz_corpus::
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{Claim, fuzzing};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 9] = [
    ("record", fuzzing::record),
    ("key", fuzzing::key),
    ("manifest", fuzzing::manifest),
    ("segment", fuzzing::segment),
    ("table", fuzzing::table),
    ("expired", fuzzing::expired),
    ("packed", fuzzing::packed),
    ("frames", fuzzing::frames),
    ("directory", fuzzing::directory),
];

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    fs::create_dir_all(corpus(target)).unwrap();
    fs::write(corpus(target).join(name), bytes).unwrap();
}

fn read(path: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1").join(path)).unwrap()
}

/// The records of a segment, one by one.
fn records(segment: &[u8]) -> Vec<&[u8]> {
    let (mut at, mut found) = (128, Vec::new());
    while segment[at..].starts_with(b"O1") {
        let body = u32::from_le_bytes(segment[at + 4..at + 8].try_into().unwrap()) as usize;
        let end = at + 24 + body.next_multiple_of(8);
        found.push(&segment[at..end]);
        at = end;
    }
    found
}

/// Small stores: closed, killed, killed and recovered.
fn stores() -> Vec<(&'static str, Sim)> {
    let names = ["closed", "killed", "recovered"];
    let made = names.map(|name| {
        let sim = Sim::small(1);
        let store = sim.open_with(fuzzing::builder()).unwrap();
        let claim = |key: &str| match store.claim(key).unwrap() {
            Claim::Acquired(guard) => guard,
            other => panic!("{other}"),
        };
        claim("done").complete("result").unwrap();
        let left = claim("left");
        if name == "closed" {
            store.close(Duration::ZERO).unwrap();
        } else {
            sim.kill();
        }
        drop((left, store));
        if name == "recovered" {
            let store = sim.open_with(fuzzing::builder()).unwrap();
            let _ = store.mark("more").unwrap();
            sim.kill();
            drop(store);
        }
        (name, sim)
    });
    made.into()
}

fn make() {
    let mut kinds = Vec::new();
    for store in ["closed", "killed"] {
        write("manifest", store, &read(&format!("{store}/MANIFEST"))[..300]);
        let segment = read(&format!("{store}/log/0000000002.log"));
        write("table", store, &read(&format!("{store}/index/0000000003.tab")));
        write("expired", store, &read(&format!("{store}/expired/0000000002.exp")));
        for record in records(&segment) {
            // One of each kind, detail, flags and set of fields.
            let kind = (record[2], record[3], record.get(24..26).map(<[u8]>::to_vec));
            if !kinds.contains(&kind) {
                write("record", &format!("{:02}", kinds.len()), record);
                kinds.push(kind);
            }
        }
        // The header and the first records; a segment states its own capacity.
        let mut short = segment[..2048].to_vec();
        short[48..56].copy_from_slice(&2048_u64.to_le_bytes());
        write("segment", store, &short);
    }
    for (name, sim) in stores() {
        let mut packed = fuzzing::pack(&sim.contents().unwrap());
        write("directory", name, &packed);
        packed[0] = 1;
        write("directory", &format!("{name}-sealed"), &packed);
    }
    // Nine bytes and a repetition; one that reaches before the first byte; a length of 255 in each byte; an end within
    // a sequence; an offset of zero.
    let blocks: [(&str, u32, &[u8]); 5] = [
        ("whole", 30, b"\x9dabcdefghi\x09\x00\x40wxyz"),
        ("before", 30, b"\x1da\x09\x00\x40wxyz"),
        ("long", u32::MAX, &[0xff; 64]),
        ("cut", 30, b"\x9dabcdefghi\x09"),
        ("zero", 30, b"\x9dabcdefghi\x00\x00\x40wxyz"),
    ];
    for (name, len, block) in blocks {
        write("packed", name, &[&len.to_le_bytes()[..], block].concat());
    }
    for seed in 1..=6_u8 {
        let draws: Vec<u8> =
            (0..250).map(|at: u8| at.wrapping_mul(37).wrapping_mul(seed) ^ at >> 3).collect();
        write("frames", &format!("guest-{seed}"), &fuzzing::stream(true, &draws));
        write("frames", &format!("host-{seed}"), &fuzzing::stream(false, &draws));
    }
    write("key", "bytes", b"\x01task-42");
    write("key", "number", b"\x02\x11\0\0\0\0\0\0\0");
    write("key", "parts", b"\x03\x01\x01a\x02\x11\0\0\0\0\0\0\0");
}

#[test]
fn corpora_are_replayed() {
    if !Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").exists() {
        // The published crate carries no fuzz folder.
        return;
    }
    if std::env::var_os("ONLYONCE_WRITE_CORPUS").is_some() {
        make();
    }
    let mut replayed = 0;
    for (name, target) in TARGETS {
        let mut files: Vec<_> =
            fs::read_dir(corpus(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 2, "{name} has a corpus");
        for file in files {
            println!("{}", file.display());
            target(&fs::read(file).unwrap());
            replayed += 1;
        }
    }
    println!("{replayed} inputs replayed");
}
