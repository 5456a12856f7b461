//! `onlyonce run`: the command's output and exit code, now and replayed, and ours.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onlyonce::{Abort, Claim, OnInterrupted, Operation, Outcome};

use crate::store::{TestStore, has_ended, is_ignored, objects, wait_until};

/// Appends a line to `effects`, and does `rest`.
fn effect(rest: &str) -> String {
    format!("echo done >> effects; {rest}")
}

fn effects(store: &TestStore) -> usize {
    let effects = std::fs::read_to_string(store.dir().join("effects"));
    effects.map_or(0, |lines| lines.lines().count())
}

fn send(child: &Child, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_command_runs_once_and_is_replayed() {
    let store = TestStore::new();
    let work = effect("printf out1; echo err >&2; sleep 0.01; printf out2; exit 3");
    for _ in 0..3 {
        let (stdout, stderr, code) = store.prints(["run", "work", "--", "sh", "-c", &work]);
        assert_eq!((stdout.as_str(), stderr.as_str(), code), ("out1out2", "err\n", 3));
    }
    assert_eq!((effects(&store), store.state("work").as_str()), (1, "failed"));
    assert_eq!(store.ends(["run", "other", "--", "true"]), 0);
    assert_eq!(store.state("other"), "completed");
}

/// Each stream alone has its order anyway: here both go to one pipe.
#[test]
fn a_replay_has_the_order_of_both_streams() {
    let store = TestStore::new();
    let work = "for i in 1 2 3; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; done";
    let together = |then: &str| {
        let onlyonce = env!("CARGO_BIN_EXE_onlyonce");
        let line = format!("{onlyonce} run work -- sh -c '{then}' 2>&1");
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).env("ONLYONCE_STORE", store.path());
        String::from_utf8(shell.output().unwrap().stdout).unwrap()
    };
    let now = together(work);
    assert_eq!(now, "out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n");
    assert_eq!(together("echo never"), now);
}

#[test]
fn a_wrong_line_is_a_wrong_usage() {
    let store = TestStore::new();
    let lines = [
        "run",
        "run k",
        "run k true",
        "run k --",
        "run --wait=soon k -- true",
        "run --on-interrupted guess k -- true",
        "run --max-output-bytes 1G k -- true",
        "run --kill-after 1 k -- true",
        "run --attempts 0 k -- true",
        "run (1, -- true",
        "run --fingerprint-file missing k -- true",
        "nonsense",
        "",
    ];
    for line in lines {
        assert_eq!(store.ends(line.split_whitespace()), 64, "{line}");
    }
    assert_eq!(store.state("k"), "absent");
    let without = store.command(["list"]).env_remove("ONLYONCE_STORE").output().unwrap();
    assert_eq!(without.status.code(), Some(64));
    assert_eq!(store.ends(["--help"]), 0);
}

#[test]
fn a_store_is_made_only_where_that_is_asked_for() {
    let store = TestStore::new();
    let elsewhere = store.dir().join("elsewhere");
    let run = |option: &str| {
        let dir = elsewhere.to_str().unwrap();
        store.ends(["run", "k", "--store", dir, option, "--", "true"])
    };
    assert_eq!(run("--quiet"), 74);
    assert!(!elsewhere.exists());
    assert_eq!(run("--create"), 0);
    assert_eq!(run("--quiet"), 0);
}

#[test]
fn a_command_that_cant_run_leaves_its_key_free() {
    let store = TestStore::new();
    std::fs::write(store.dir().join("no-program"), "").unwrap();
    let (stdout, stderr, code) = store.prints(["run", "k", "--", "./missing", "a"]);
    assert_eq!((stdout.as_str(), code), ("", 127));
    assert_eq!(stderr, "onlyonce: ./missing: No such file or directory (os error 2)\n");
    assert_eq!(store.ends(["run", "k", "--", "./no-program"]), 126);
    assert_eq!(store.state("k"), "aborted");
    assert_eq!(store.ends(["run", "k", "--", "true"]), 0);
}

#[test]
fn other_words_files_or_variables_are_refused() {
    let store = TestStore::new();
    std::fs::write(store.dir().join("input"), "one").unwrap();
    let run = |key: &str, option: &str, word: &str, variable: &str| {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let mut command = store.command(["run", key, name]);
        command.args((!value.is_empty()).then_some(value)).args(["--", "echo", word]);
        command.env("VARIABLE", variable).output().unwrap().status.code()
    };
    assert_eq!(run("args", "--fingerprint-args", "one", ""), Some(0));
    assert_eq!(run("args", "--fingerprint-args", "two", ""), Some(65));
    assert_eq!(run("args", "--fingerprint-args", "one", "x"), Some(0));
    assert_eq!(run("file", "--fingerprint-file=input", "one", ""), Some(0));
    assert_eq!(run("file", "--fingerprint-file=input", "two", ""), Some(0));
    std::fs::write(store.dir().join("input"), "two").unwrap();
    assert_eq!(run("file", "--fingerprint-file=input", "one", ""), Some(65));
    assert_eq!(run("env", "--fingerprint-env=VARIABLE", "one", "x"), Some(0));
    assert_eq!(run("env", "--fingerprint-env=VARIABLE", "two", "x"), Some(0));
    assert_eq!(run("env", "--fingerprint-env=VARIABLE", "one", "y"), Some(65));
    // A variable that isn't there differs from one that is empty.
    assert_eq!(run("none", "--fingerprint-env=MISSING", "one", ""), Some(0));
    let mut empty = store.command(["run", "none", "--fingerprint-env", "MISSING", "--", "true"]);
    assert_eq!(empty.env("MISSING", "").status().unwrap().code(), Some(65));
}

/// Of the library, whose claims the command line has no command for.
#[test]
fn keys_that_cant_be_claimed_are_refused_by_their_reason() {
    let store = TestStore::new();
    let here = store.open();
    let acquired = |op: Operation<'_>| match here.claim(op).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    };
    let hour = Duration::from_secs(3600);
    acquired(Operation::new("detached").owner("ann")).detach(hour).map(drop).unwrap();
    acquired("delayed".into()).abort(Abort::new("busy").retry_in(hour)).unwrap();
    acquired("held".into()).hold("ask ann").unwrap();
    drop(acquired("interrupted".into()));
    drop(acquired(Operation::new("tried").on_interrupted(OnInterrupted::Hold)));
    let short = Outcome::success("x").retention(Duration::from_millis(1));
    acquired(Operation::new("expired").remember_expired(hour)).record(short).unwrap();
    acquired("bytes".into()).complete("as it is").unwrap();
    acquired("failure".into()).fail("no money").unwrap();
    drop(here);
    std::thread::sleep(Duration::from_millis(5));

    let cases = [
        ("detached", 75, "", "by ann"),
        ("delayed", 75, "", "busy"),
        ("held", 76, "", "ask ann"),
        ("interrupted", 76, "", "onlyonce resolve"),
        ("tried", 76, "", "onlyonce resolve"),
        ("expired", 69, "", "expired"),
        ("bytes", 0, "as it is", ""),
        ("failure", 1, "no money", ""),
    ];
    for (key, code, output, note) in cases {
        let (stdout, stderr, ended) = store.prints(["run", key, "--", "sh", "-c", &effect("")]);
        assert_eq!((stdout.as_str(), ended), (output, code), "{key}");
        assert!(stderr.contains(note), "{key}: {stderr}");
        let (stdout, stderr, ended) = store.prints(["run", "-q", key, "--", "true"]);
        assert_eq!((stdout.as_str(), stderr.as_str(), ended), (output, "", code), "{key}");
        let (lines, ended) = store.json(["run", key, "--", "true"]);
        let last = lines.last().unwrap();
        assert_eq!((last["type"].as_str(), ended), (Some("run"), code), "{key}");
        assert_eq!(last["exit_code"], code);
    }
    assert_eq!(effects(&store), 0);
}

#[test]
fn an_interrupted_key_is_held_tried_again_or_asked_about() {
    let store = TestStore::new();
    let interrupt = |key: &str| {
        let kill = effect("kill -KILL $$");
        assert_eq!(store.ends(["run", key, "--", "sh", "-c", &kill]), 137);
        assert_eq!(store.state(key), "interrupted");
    };
    let run = |key: &str, choice: &[&str]| {
        let work = ["--", "sh", "-c", "echo again >> effects; echo now"];
        store.prints([&["run", key, "--on-interrupted"], choice, &work].concat())
    };
    interrupt("held");
    assert_eq!(run("held", &["hold"]).2, 76);
    assert_eq!((store.state("held").as_str(), effects(&store)), ("held", 1));

    interrupt("again");
    assert_eq!((run("again", &["retry"]).2, effects(&store)), (0, 3));

    interrupt("asked");
    let unknown = run("asked", &["ask", "exit 2"]);
    assert_eq!((unknown.2, store.state("asked").as_str()), (76, "interrupted"));
    let done = "test $ONLYONCE_KEY $ONLYONCE_ATTEMPT = asked 1 || echo it was done";
    let found = run("asked", &["ask", done]);
    assert_eq!((found.0.as_str(), found.2, effects(&store)), ("it was done\n", 0, 4));
    assert_eq!(run("asked", &["ask", "exit 1"]).0, "it was done\n");

    interrupt("asked again");
    let not_done = run("asked again", &["ask", "exit 1"]);
    assert_eq!((not_done.0.as_str(), not_done.2, effects(&store)), ("now\n", 0, 6));
}

#[test]
fn a_failure_is_recorded_or_tried_again_so_often() {
    let store = TestStore::new();
    let run = |key: &str| {
        let words = ["run", key, "--on-failure", "retry", "--attempts", "2", "--", "sh", "-c"];
        store.ends(words.iter().copied().chain([effect("exit 9").as_str()]))
    };
    assert_eq!([run("k"), run("k"), run("k")], [9, 9, 76]);
    assert_eq!(effects(&store), 2);
    assert_eq!(store.ends(["resolve", "k", "retry"]), 0);
    assert_eq!([run("k"), run("k"), run("k")], [9, 9, 76]);
}

#[test]
fn output_passes_through_live() {
    let store = TestStore::new();
    let work = "echo first; echo second >&2; until test -e go; do sleep 0.01; done; echo third";
    let mut run = store.command(["run", "k", "--", "sh", "-c", work]).spawn().unwrap();
    let mut stdout = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    BufReader::new(run.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "first\nsecond\n"); // and the command still runs
    std::fs::write(store.dir().join("go"), "").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), run.wait().unwrap().code()), ("third\n", Some(0)));
}

#[test]
fn input_and_the_claim_are_passed_to_the_command() {
    let store = TestStore::new();
    let output = store.with_input(&["run", "k", "--", "tr", "a-z", "A-Z"], b"abc");
    assert_eq!(output.stdout, b"ABC");
    let said = "echo $ONLYONCE_KEY $ONLYONCE_ATTEMPT ${#ONLYONCE_DOWNSTREAM_KEY}; \
                test $ONLYONCE_TOKEN -gt 0";
    let (stdout, _, code) = store.prints(["run", "it's", "--", "sh", "-c", said]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with("it's 1 "), "{stdout}");
}

#[test]
fn output_over_the_limit_passes_through_and_is_not_replayed() {
    let store = TestStore::new();
    let run =
        || store.prints(["run", "k", "--max-output-bytes", "15", "--", "echo", "0123456789abc"]);
    let (stdout, stderr, _) = run();
    assert_eq!(stdout, "0123456789abc\n");
    assert!(stderr.contains("4 bytes of output were not recorded"), "{stderr}");
    let (stdout, stderr, code) = run();
    assert_eq!((stdout.as_str(), code), ("0123456789", 0));
    assert!(stderr.contains("4 bytes of its output were not recorded"), "{stderr}");
}

#[test]
fn much_output_is_recorded_as_it_is() {
    let store = TestStore::new();
    let work = "head -c 3000000 /dev/urandom";
    let words = ["run", "k", "--max-output-bytes", "4M", "--", "sh", "-c", work];
    let (now, later) = (store.output(words), store.output(words));
    assert_eq!(now.stdout.len(), 3_000_000);
    assert!(now.stdout == later.stdout);
}

#[test]
fn a_reader_that_goes_away_stops_nothing() {
    let store = TestStore::new();
    let work = effect("for i in 1 2 3 4; do echo $i; sleep 0.02; done; echo done >> effects");
    let mut run = store.command(["run", "k", "--", "sh", "-c", &work]).spawn().unwrap();
    drop(run.stdout.take());
    assert_eq!(run.wait().unwrap().code(), Some(0));
    assert_eq!((effects(&store), store.state("k").as_str()), (2, "completed"));
    assert_eq!(store.prints(["run", "k", "--", "true"]).0, "1\n2\n3\n4\n");
}

/// Without a reader, the run with `--json` ended before its command, whose key was interrupted then; and the exit code was 0.
#[test]
fn a_reader_that_has_gone_changes_neither_the_work_nor_the_exit_code() {
    let store = TestStore::new();
    let work = effect("seq 20000; exit 3");
    for (key, option) in [("k", "--json"), ("k", "--json"), ("l", "--quiet"), ("l", "--quiet")] {
        let mut run = store.command(["run", key, option, "--", "sh", "-c", &work]);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run.stdout(writer).status().unwrap().code(), Some(3), "{key} {option}");
        assert_eq!(store.state(key), "failed");
    }
    assert_eq!(effects(&store), 2);
}

/// Its words fit once, and not with the few that are added to start it.
#[test]
fn a_command_that_cant_be_started_leaves_its_key_free() {
    const TOO_LONG: i32 = 7; // E2BIG
    let store = TestStore::new();
    let run = |bytes: usize| {
        let words = "x".repeat(bytes);
        let words = words.as_bytes().chunks(100_000).map(OsStr::from_bytes);
        store.command(["run", "k", "--", "true"]).args(words).output()
    };
    // The most with which onlyonce itself still starts, but for a few bytes.
    let (mut fits, mut too_long) = (0, 8 << 20);
    while too_long - fits > 64 {
        let middle = usize::midpoint(fits, too_long);
        match run(middle) {
            Ok(_) => fits = middle,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(TOO_LONG));
                too_long = middle;
            }
        }
        assert!(matches!(store.ends(["forget", "k"]), 0 | 1));
    }
    assert_eq!(run(fits).unwrap().status.code(), Some(125));
    assert_eq!(store.state("k"), "aborted");
}

#[test]
fn a_wait_ends_after_its_time_and_waits_for_the_store_too() {
    let store = TestStore::new();
    let here = store.open();
    let run =
        store.command(["run", "k", "--open-timeout", "0", "--wait", "--", "echo", "done"]).spawn();
    std::thread::sleep(Duration::from_millis(100));
    let Claim::Acquired(claim) = here.claim("busy").unwrap() else { panic!() };
    claim.detach(Duration::from_secs(3600)).unwrap();
    drop(here);
    assert_eq!(run.unwrap().wait_with_output().unwrap().stdout, b"done\n");
    assert_eq!(store.ends(["run", "busy", "--wait=0.05", "--", "true"]), 75);
}

#[test]
fn a_run_has_its_lease_and_its_retention() {
    let store = TestStore::new();
    assert_eq!(store.ends(["run", "kept", "--retention", "1h", "--", "true"]), 0);
    assert!(store.json(["show", "kept"]).0[0]["outcome"]["expires_at"].is_string());
    let work = "echo > begun; until test -e go; do sleep 0.01; done";
    let run = store.command(["run", "k", "--lease", "1h", "--", "sh", "-c", work]).spawn().unwrap();
    store.wait_for("begun");
    let (lines, _) = store.json(["show", "k", "--open-timeout", "60"]);
    std::fs::write(store.dir().join("go"), "").unwrap();
    assert_eq!(run.wait_with_output().unwrap().status.code(), Some(0));
    assert!(lines[0]["attempt"]["lease_left_ms"].is_u64());
}

#[test]
fn a_command_whose_claim_is_revoked_is_stopped() {
    if is_ignored(15) {
        return;
    }
    let store = TestStore::new();
    let run = waiting(&store, "trap 'exit 7' TERM;");
    assert_eq!(store.ends(["interrupt", "k", "--open-timeout", "60"]), 0);
    assert_eq!(run.wait_with_output().unwrap().status.code(), Some(76));
    assert_eq!(store.state("k"), "interrupted");
}

#[test]
fn a_command_that_takes_too_long_is_stopped() {
    let store = TestStore::new();
    let (lines, code) = store.json(["run", "k", "--timeout", "0.05", "--", "sleep", "60"]);
    assert_eq!((code, lines.last().unwrap()["timed_out"].as_bool()), (124, Some(true)));
    assert_eq!(store.state("k"), "interrupted");
    let stubborn = "trap '' TERM; while true; do sleep 0.01; done";
    let words =
        ["run", "l", "--timeout", "50ms", "--kill-after", "50ms", "--", "sh", "-c", stubborn];
    assert_eq!((store.ends(words), store.state("l").as_str()), (137, "interrupted"));
    // The command has ended in time, and what it left behind isn't waited for any longer.
    let left = "sleep 60 & echo $! > left; echo left";
    let words = ["run", "m", "--timeout", "0.3", "--", "sh", "-c", left];
    assert_eq!(store.prints(words), ("left\n".into(), String::new(), 0));
    assert_eq!(store.state("m"), "completed");
    end_what_was_left(&store);
}

fn end_what_was_left(store: &TestStore) {
    let left = std::fs::read_to_string(store.dir().join("left")).unwrap();
    assert!(Command::new("kill").arg(left.trim()).status().unwrap().success());
}

#[test]
fn a_signal_ends_the_waiting_for_what_a_command_left_behind() {
    let store = TestStore::new();
    let left = "sleep 60 & echo $! > left; echo $$; exit 3";
    let mut run = store.command(["run", "k", "--", "sh", "-c", left]).spawn().unwrap();
    let mut pid = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    wait_until(|| has_ended(&pid));
    send(&run, "TERM");
    assert_eq!((run.wait().unwrap().code(), store.state("k").as_str()), (Some(3), "failed"));
    end_what_was_left(&store);
}

/// A command that says that it has begun, and waits.
fn waiting(store: &TestStore, trap: &str) -> Child {
    let work = format!("{trap} echo $$ > begun; while true; do sleep 0.01; done");
    let run = store.command(["run", "k", "--", "sh", "-c", &work]).spawn().unwrap();
    store.wait_for("begun");
    run
}

#[test]
fn signals_are_passed_to_the_command() {
    // What it makes of them is recorded.
    let heard = |number: &i32| !is_ignored(*number);
    for (signal, _) in
        [("TERM", 15), ("INT", 2), ("HUP", 1), ("QUIT", 3), ("USR1", 10), ("USR2", 12)]
            .into_iter()
            .filter(|(_, n)| heard(n))
    {
        let store = TestStore::new();
        let mut run = waiting(&store, &format!("trap 'exit 7' {signal};"));
        send(&run, signal);
        assert_eq!(run.wait().unwrap().code(), Some(7), "{signal}");
        assert_eq!(store.state("k"), "failed");
    }
    // Dead of one, nobody knows what it did; and we die of it, too.
    for (signal, number) in
        [("TERM", 15), ("INT", 2), ("HUP", 1)].into_iter().filter(|(_, n)| heard(n))
    {
        let store = TestStore::new();
        let mut run = waiting(&store, "");
        send(&run, signal);
        assert_eq!(run.wait().unwrap().signal(), Some(number), "{signal}");
        assert_eq!(store.state("k"), "interrupted");
        let (lines, _) = store.json(["show", "k"]);
        let reason = lines[0]["attempt"]["reason"].as_str().unwrap();
        assert_eq!(reason, format!("the command was killed by signal {number}"));
    }
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let store = TestStore::new();
    let onlyonce = env!("CARGO_BIN_EXE_onlyonce");
    let work = "echo > begun; until test -e go; do sleep 0.01; done";
    let line = format!("trap '' HUP; exec {onlyonce} run k -- sh -c '{work}'");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).env("ONLYONCE_STORE", store.path()).current_dir(store.dir());
    let mut run = shell.stdout(Stdio::null()).spawn().unwrap();
    store.wait_for("begun");
    send(&run, "HUP");
    std::fs::write(store.dir().join("go"), "").unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(0));
}

#[test]
fn two_runs_of_one_key_are_one() {
    let store = TestStore::new();
    let work = effect("echo > begun; until test -e go; do sleep 0.01; done; echo result");
    let run = || store.command(["run", "k", "--wait", "--", "sh", "-c", &work]);
    let first = run().spawn().unwrap();
    store.wait_for("begun");
    let refused = store.prints(["run", "k", "--open-timeout", "0", "--", "sh", "-c", &work]);
    assert_eq!(refused.2, 75);
    assert!(refused.1.contains(&format!("process {}", first.id())), "{}", refused.1);
    let second = run().spawn().unwrap();
    std::fs::write(store.dir().join("go"), "").unwrap();
    for run in [first, second] {
        let output = run.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stdout), (Some(0), b"result\n".to_vec()));
    }
    assert_eq!(effects(&store), 1);
}

#[test]
fn short_runs_at_the_same_time_wait_for_each_other() {
    let store = TestStore::new();
    let runs = if std::env::var_os("ONLYONCE_LONG").is_some() { 400 } else { 40 };
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= runs {
                        return;
                    }
                    let (key, word) = (format!("key {n}"), format!("word {n}"));
                    // Longer than a disk may stall under a test.
                    let wait = ["run", &key, "--open-timeout", "1min", "--", "echo", &word];
                    let run = store.prints(wait);
                    assert_eq!(run, (word + "\n", String::new(), 0));
                }
            });
        }
    });
    let (keys, _, _) = store.prints(["list", "--keys", "--state", "completed"]);
    assert_eq!(keys.lines().count(), runs as usize);
}

#[test]
fn json_tells_the_run_as_it_goes() {
    let store = TestStore::new();
    let work = "echo text; printf '\\377' >&2; exit 2";
    let run = || store.json(["run", "k", "--", "sh", "-c", work]);
    let ((now, code), (later, again)) = (run(), run());
    assert_eq!((code, again), (2, 2));
    assert_eq!((now[0]["type"].as_str(), now[0]["attempt"].as_u64()), (Some("started"), Some(1)));
    let output = |lines: &[serde_json::Value]| {
        let of = |stream: &str, name: &str| {
            lines.iter().find(|line| line["stream"] == stream).map(|line| line[name].clone())
        };
        (of("stdout", "text"), of("stderr", "base64"))
    };
    assert_eq!(output(&now), (Some("text\n".into()), Some("/w==".into())));
    assert_eq!(output(&later), output(&now));
    let (last_now, last_later) = (now.last().unwrap(), later.last().unwrap());
    assert_eq!((&last_now["replayed"], &last_later["replayed"]), (&false.into(), &true.into()));
    assert_eq!((&last_now["state"], &last_later["state"]), (&"failed".into(), &"failed".into()));
    let missing = store.command(["--json", "--store", "missing", "list"]).output().unwrap();
    let error = &objects(&missing.stdout)[0];
    assert_eq!((&error["kind"], &error["exit_code"]), (&"not_found".into(), &74.into()));
}
