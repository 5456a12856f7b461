//! The commands about the whole store: `stats`, `verify`, `compact`, `backup`, `repair`, `rebuild-index`, `doctor`,
//! `watch`, `export`, `import`; and `completions` and `man`, which need none.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use onlyonce::value::{Codec, Format};
use onlyonce::{Claim, Encode, Key, Operation, Outcome, Payload, State};
use serde_json::Value;

use crate::store::{TestStore, objects};

fn acquired(store: &onlyonce::Store, op: Operation<'_>) -> onlyonce::ClaimGuard {
    match store.claim(op).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    }
}

#[test]
fn figures_are_of_the_whole_store() {
    let store = TestStore::new();
    let here = store.open();
    for n in 0..100u64 {
        let _ = here.mark(n).unwrap();
    }
    drop(acquired(&here, "lost".into()));
    drop(acquired(&here.namespace("acme"), "lost".into()));
    drop(here);
    let (lines, code) = store.json(["stats", "--estimate", "-n", "acme"]);
    let figures = &lines[0];
    assert_eq!((code, figures["interrupted"].as_u64()), (0, Some(2)));
    // A namespace has a record of its own.
    assert_eq!(figures["estimate"]["completed"], 101);
    assert!(store.prints(["stats", "--estimate"]).0.contains("interrupted         2"));
}

#[test]
fn damage_is_found_and_repaired_if_nothing_is_lost() {
    let store = TestStore::new();
    assert_eq!(store.ends(["run", "k", "--", "true"]), 0);
    assert_eq!(store.json(["verify"]).0[0]["whole"], true);
    assert!(store.prints(["verify"]).0.starts_with("whole: "));
    assert_eq!(store.prints(["repair"]).0, "nothing is damaged\n");

    std::fs::remove_file(store.path().join("MANIFEST")).unwrap();
    let (lines, code) = store.json(["verify"]);
    assert_eq!((lines[0]["kind"].as_str(), code), (Some("corrupt"), 74));
    let (lines, code) = store.json(["repair"]);
    assert_eq!((&lines[0]["repaired"], &lines[0]["loss"], code), (&true.into(), &false.into(), 0));
    assert_eq!(store.state("k"), "completed");
}

#[test]
fn a_loss_is_accepted_only_by_an_option() {
    let store = TestStore::new();
    for n in 0..50 {
        let key = format!("key-{n}");
        assert_eq!(store.ends(["run", &key, "--", "echo", "a line of output"]), 0);
    }
    let log = std::fs::read_dir(store.path().join("log")).unwrap();
    let mut segments: Vec<_> = log.map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    let mut bytes = std::fs::read(&segments[0]).unwrap();
    let at = bytes.windows(6).position(|part| part == b"key-7\x01" || part == b"key-25").unwrap();
    bytes[at] ^= 0xff;
    std::fs::write(&segments[0], bytes).unwrap();

    let (refused, code) = store.json(["repair"]);
    assert_eq!(
        (&refused[0]["repaired"], &refused[0]["loss"], code),
        (&false.into(), &true.into(), 74)
    );
    assert!(store.prints(["repair"]).0.contains("--accept-loss"));
    let (done, code) = store.json(["repair", "--accept-loss"]);
    assert_eq!((&done[0]["repaired"], code), (&true.into(), 0));
    assert_eq!(store.json(["verify"]).0[0]["whole"], true);
}

#[test]
fn space_is_reclaimed_and_the_index_rebuilt() {
    let store = TestStore::new();
    let here = store.open();
    for n in 0..200u64 {
        acquired(&here, n.into()).complete(&[7; 8000]).unwrap();
    }
    drop(here);
    assert_eq!(store.ends(["forget", "--state", "completed", "-q"]), 0);
    let (lines, code) = store.json(["compact"]);
    assert_eq!((&lines[0]["complete"], code), (&true.into(), 0));
    assert!(lines[0]["bytes_reclaimed"].as_u64().unwrap() > 1_000_000);
    assert_eq!(store.ends(["compact", "--budget", "1M"]), 0);
    assert_eq!(store.ends(["run", "k", "--", "true"]), 0);
    assert_eq!(store.json(["rebuild-index"]).0[0]["keys"], 1);
    assert_eq!(store.state("k"), "completed");
}

#[test]
fn a_backup_is_a_store() {
    let store = TestStore::new();
    assert_eq!(store.ends(["run", "k", "--", "echo", "result"]), 0);
    let (lines, code) = store.json(["backup", "copy"]);
    assert_eq!((code, lines[0]["dir"].as_str()), (0, Some("copy")));
    assert_eq!(store.ends(["backup", "copy"]), 64); // it isn't empty
    assert_eq!(store.prints(["-s", "copy", "run", "k", "--", "false"]).0, "result\n");
}

#[test]
fn the_doctor_names_what_is_stuck_and_what_to_type() {
    let store = TestStore::new();
    let (calm, code) = store.json(["doctor"]);
    println!("{calm:?}");
    let level = |lines: &[Value], check: &str| {
        let line = lines.iter().find(|line| line["check"] == check).unwrap();
        line["level"].as_str().unwrap().to_owned()
    };
    assert_eq!(level(&calm, "stuck_keys"), "ok");
    assert_eq!(level(&calm, "health"), "ok");
    let _ = code; // the file system may be one to warn about

    let here = store.open();
    for n in 0..5u64 {
        drop(acquired(&here, ("order", n).into()));
    }
    acquired(&here.namespace("acme"), "held".into()).hold("ask ann").unwrap();
    drop(here);
    let (lines, code) = store.json(["doctor", "--limit", "3"]);
    assert_eq!(code, 1);
    let next: Vec<&str> = lines
        .iter()
        .filter(|line| line["check"] == "stuck_keys")
        .map(|line| line["next"].as_str().unwrap())
        .collect();
    assert_eq!(
        next,
        [
            r#"onlyonce show '("order", 0)'"#,
            r#"onlyonce show '("order", 1)'"#,
            r#"onlyonce show '("order", 2)'"#,
            "onlyonce list --state stuck --oldest-first",
            "onlyonce -n acme list --state stuck --oldest-first",
        ]
    );
    assert_eq!(lines.iter().filter(|line| line["type"] == "key").count(), 3);
    let (page, _, _) = store.prints(["doctor"]);
    assert!(page.contains("acme / held is held") && page.contains("ask ann"), "{page}");
    for limit in ["20", "1"] {
        let patient = store.json(["doctor", "--stuck-for", "1h", "--limit", limit]).0;
        let mut stuck = patient.iter().filter(|line| line["check"] == "stuck_keys");
        assert!(stuck.all(|line| line["level"] == "ok"), "{limit}");
    }

    assert_eq!(store.ends(["doctor", "-s", "missing"]), 74);
}

#[test]
fn a_watch_prints_changes_and_ends_with_its_keys() {
    let store = TestStore::new();
    let here = store.open();
    acquired(&here, "job".into()).detach(Duration::from_secs(3600)).unwrap();
    drop(here);
    assert_eq!(store.json(["watch", "job", "--timeout", "0"]).1, 75);
    let watch = ["--json", "watch", "job", "--interval", "0.01"];
    let mut watch = store.command(watch).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || objects(lines.next().unwrap().unwrap().as_bytes()).remove(0);
    assert_eq!(next()["state"], "in_progress");
    let patience = ["--open-timeout", "1min"];
    assert_eq!(store.ends(["interrupt", "job"].iter().chain(&patience)), 0);
    assert_eq!(next()["state"], "interrupted");
    assert_eq!(watch.wait().unwrap().code(), Some(76));

    assert_eq!(store.ends(["resolve", "job", "success"]), 0);
    assert_eq!(store.ends(["watch", "job"]), 0);
    let all = ["--json", "watch", "--state", "completed", "--interval", "0.01"];
    let mut watch = store.command(all).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || objects(lines.next().unwrap().unwrap().as_bytes()).remove(0);
    assert_eq!(next()["key"], "job");
    assert_eq!(store.ends(["forget", "job"].iter().chain(&patience)), 0);
    assert_eq!(next()["type"], "gone");
    watch.kill().unwrap();
    watch.wait().unwrap();
}

/// A type of a program, of which the command line knows nothing.
struct Receipt;

impl Encode for Receipt {
    fn encode(&self, out: &mut Vec<u8>) -> onlyonce::Result<Format> {
        out.extend_from_slice(&[0xff, 0, 17]);
        Ok(Format { codec: Codec::Custom(9), version: 3 })
    }
}

#[test]
fn keys_move_to_another_store_with_all_that_is_recorded() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let here = from.open();
    let hour = Duration::from_secs(3600);
    let kept = Outcome::success("result").meta("status", 201).retention(hour);
    let op = Operation::new(("order", 17)).fingerprint(onlyonce::Fingerprint::of("input"));
    acquired(&here, op).record(kept).unwrap();
    acquired(&here, "typed".into()).record(Outcome::failure(&Receipt)).unwrap();
    acquired(&here, "none".into()).record(Outcome::without_result("too long")).unwrap();
    acquired(&here, "free".into()).abort("busy").unwrap();
    drop(acquired(&here, "lost".into()));
    acquired(&here.namespace("acme"), "held".into()).hold("ask ann").unwrap();
    drop(here);
    assert_eq!(from.ends(["run", "command", "--", "sh", "-c", "echo out; exit 4"]), 4);

    let exported = from.output(["export"]);
    assert_eq!(objects(&exported.stdout).len(), 7);
    let import = |lines: &[u8]| {
        let output = to.with_input(&["--json", "import"], lines);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let line = objects(&output.stdout).remove(0);
        ["new", "present", "skipped"].map(|name| line[name].as_u64().unwrap())
    };
    assert_eq!(import(&exported.stdout), [6, 0, 1]);
    assert_eq!(import(&exported.stdout), [0, 6, 1]);
    let remembered = r#"{"key":"old","state":"expired","remembered_until":"2999-01-01T00:00:00Z"}"#;
    let past = r#"{"key":"older","expires_at":"2001-01-01T00:00:00Z"}"#;
    assert_eq!(import(format!("{remembered}\n{past}\n").as_bytes()), [1, 0, 1]);

    let there = to.open();
    let get = |key: Key<'_>| there.get(key).unwrap();
    let Some(State::Completed(done)) = get(("order", 17).into()) else { panic!() };
    assert_eq!((&done.result()[..], done.meta("status")), (&b"result"[..], Some("201")));
    assert_eq!(done.fingerprint(), Some(onlyonce::Fingerprint::of("input")));
    assert!(done.expires_at().is_some());
    let Some(State::Failed(typed)) = get("typed".into()) else { panic!() };
    assert_eq!(typed.result()[..], [0xff, 0, 17]);
    let format = |payload: &Payload| payload.decode::<FormatOf>().unwrap().0;
    assert_eq!(format(typed.result()), Format { codec: Codec::Custom(9), version: 3 });
    let Some(State::Completed(none)) = get("none".into()) else { panic!() };
    assert_eq!(none.missing(), Some("too long"));
    assert!(matches!(get("old".into()), Some(State::Completed(old)) if old.missing().is_some()));
    assert!(get("free".into()).is_none() && get("older".into()).is_none());
    let Some(State::Held(lost)) = get("lost".into()) else { panic!() };
    assert!(lost.reason().unwrap().starts_with("imported, where it was interrupted"));
    assert!(matches!(there.namespace("acme").get("held").unwrap(), Some(State::Held(_))));
    drop(there);
    assert_eq!(to.prints(["run", "command", "--", "true"]), ("out\n".into(), String::new(), 4));
}

struct FormatOf(Format);

impl onlyonce::Decode for FormatOf {
    fn decode(_: &Payload, format: Format) -> onlyonce::Result<Self> {
        Ok(FormatOf(format))
    }
}

#[test]
fn bare_ids_are_recorded_as_done() {
    let store = TestStore::new();
    let ids = "evt_1\nevt_2\n17\n\n{\"key\":\"evt_3\"}\n(\"not a tuple\nevt_1\n";
    let output = store.with_input(&["import"], ids.as_bytes());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "5 keys imported, 1 were there before, 0 skipped\n");
    let here = store.open();
    for id in ["evt_1", "evt_2", "evt_3", "17", "(\"not a tuple"] {
        assert!(!here.mark(id).unwrap().is_first(), "{id}");
    }
    assert!(here.mark(17u64).unwrap().is_first());
    drop(here);
    assert_eq!(store.with_input(&["import", "--ids", "keys"], b"18\n").status.code(), Some(0));
    assert_eq!(store.with_input(&["import", "--ids", "text"], b"{}\n").status.code(), Some(0));
    let kept = ["import", "--retention", "1h"];
    assert_eq!(store.with_input(&kept, b"kept\n").status.code(), Some(0));
    assert!(store.json(["show", "kept"]).0[0]["outcome"]["expires_at"].is_string());
    let here = store.open();
    assert!(!here.mark(18u64).unwrap().is_first() && !here.mark("{}").unwrap().is_first());
    drop(here);

    let wrong = store.with_input(&["import"], b"evt_9\n{\"key\": 7}\n");
    assert_eq!(wrong.status.code(), Some(64));
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("line 2"));
    // Many share their syncs, and none is lost.
    let many: String = (0..2500).map(|n| format!("id-{n}\n")).collect();
    assert_eq!(store.with_input(&["import", "-q"], many.as_bytes()).status.code(), Some(0));
    assert_eq!(store.prints(["list", "-k", "--prefix", "id-"]).0.lines().count(), 2500);
}

#[test]
fn completions_and_pages_are_those_of_the_commands() {
    let store = TestStore::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (text, _, code) = store.prints(["completions", shell]);
        assert!(code == 0 && text.contains("rebuild-index"), "{shell}");
    }
    assert!(store.prints(["man"]).0.contains("onlyonce"));
    assert!(store.prints(["man", "run"]).0.contains("max\\-output\\-bytes"));
    assert_eq!(store.ends(["man", "nonsense"]), 64);
    assert_eq!(store.ends(["man", "--dir", "pages"]), 0);
    assert!(store.dir().join("pages/onlyonce-run.1").exists());
}
