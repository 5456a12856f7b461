//! The commands about keys: `init`, `list`, `show`, `resolve`, `forget`, `interrupt`.

use std::time::Duration;

use onlyonce::{Claim, Operation, State, Store, Ticket};

use crate::store::TestStore;

/// A store with a key in each state that lasts without a process.
fn with_keys() -> (TestStore, Ticket) {
    let store = TestStore::new();
    let here = store.open();
    let claim = |op: Operation<'_>| match here.claim(op).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    };
    claim("done".into()).complete("a result").unwrap();
    claim("failed".into()).fail("no money").unwrap();
    claim("aborted".into()).abort("busy").unwrap();
    claim("held".into()).hold("ask ann").unwrap();
    drop(claim(Operation::new(("order", 17)).owner("host-3")));
    let ticket = claim("detached".into()).detach(Duration::from_secs(3600)).unwrap();
    let space = here.namespace("acme").namespace("eu");
    let Ok(Claim::Acquired(within)) = space.claim("within") else { panic!() };
    drop(within);
    (store, ticket)
}

fn lines(store: &TestStore, words: &str) -> Vec<String> {
    let (stdout, _, code) = store.prints(words.split(' '));
    assert_eq!(code, 0);
    let mut lines: Vec<String> = stdout.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn keys_are_listed_by_state_prefix_age_and_namespace() {
    let (store, _ticket) = with_keys();
    let order = r#"("order", 17)"#;
    assert_eq!(lines(&store, "list -k"), [order, "aborted", "detached", "done", "failed", "held"]);
    assert_eq!(lines(&store, "list -k --state stuck"), [order, "held"]);
    assert_eq!(lines(&store, "ls -k --state stuck --all"), [order, "held", "within"]);
    assert_eq!(lines(&store, "list -k --state completed,failed"), ["done", "failed"]);
    assert_eq!(lines(&store, "list -k --state open"), [order, "aborted", "detached", "held"]);
    assert_eq!(lines(&store, "list -k --state detached"), ["detached"]);
    assert_eq!(lines(&store, "list -k --prefix d"), ["detached", "done"]);
    assert_eq!(lines(&store, "-n acme -n eu list -k"), ["within"]);
    assert_eq!(lines(&store, "list -k --older-than 1h").len(), 0);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(lines(&store, "list -k --older-than 1ms").len(), 6);
    // For people; of what others wrote, nothing reaches the terminal as it is.
    let shown = lines(&store, "list --state stuck").join("\n");
    assert!(shown.contains("interrupted") && shown.contains("by host-3"), "{shown}");
    let (objects, _) = store.json(["list", "--all"]);
    assert_eq!(objects.len(), 7);
    assert!(!objects.iter().any(|object| object.to_string().contains("a result")));
}

#[test]
fn a_long_list_is_shown_by_pages() {
    let store = TestStore::new();
    let here = store.open();
    for n in 0..10u64 {
        drop(here.claim(n).unwrap());
    }
    drop(here);
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let mut words = vec!["list", "--state", "interrupted", "--oldest-first", "--limit", "4"];
        words.extend(after.iter().flat_map(|after: &String| ["--after", after]));
        let (mut page, _) = store.json(words);
        let next = page.pop().unwrap();
        seen.extend(page.iter().map(|line| line["key"].as_str().unwrap().to_owned()));
        match next["after"].as_str() {
            Some(cursor) => after = Some(cursor.to_owned()),
            None => break,
        }
    }
    assert_eq!(seen, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_key_is_shown_with_what_to_do_next() {
    let (store, _ticket) = with_keys();
    let order = r#"("order", 17)"#;
    let (page, _, code) = store.prints(["show", order, "done"]);
    assert_eq!(code, 0);
    for part in ["host-3", "token", r#"onlyonce resolve '("order", 17)' success"#, "8 bytes, bytes"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("a result"));
    assert_eq!(store.prints(["show", "-o", "done"]).0, "a result");
    let (objects, code) = store.json(["show", "done", "missing", order]);
    assert_eq!((objects.len(), code), (3, 1));
    assert_eq!(objects[1]["kind"], "no_such_key");
    assert_eq!(store.json(["show", "-o", "done"]).0[0]["outcome"]["result"]["text"], "a result");
    assert_eq!(store.ends(["show", "-o", "held"]), 1);
    // Without its namespace, the line would be about another key.
    let (page, _, _) = store.prints(["-n", "acme", "-n", "eu", "show", "within"]);
    assert!(page.contains("onlyonce -n acme -n eu resolve within success"), "{page}");
}

#[test]
fn a_finding_is_recorded_and_replayed() {
    let (store, _ticket) = with_keys();
    std::fs::write(store.dir().join("receipt"), "receipt 17").unwrap();
    let order = r#"("order", 17)"#;
    assert_eq!(store.ends(["resolve", order, "success", "--output", "receipt"]), 0);
    assert_eq!(store.prints(["run", order, "--", "false"]).0, "receipt 17");
    assert_eq!(store.ends(["resolve", "held", "failure", "--exit-code", "9"]), 0);
    assert_eq!(store.ends(["run", "held", "--", "true"]), 9);
    let within = ["-n", "acme", "-n", "eu", "resolve", "within", "retry", "--reason", "no mail"];
    assert_eq!(store.json(within).1, 0);
    assert_eq!(store.ends(["run", "-n", "acme", "-n", "eu", "within", "--", "true"]), 0);

    let detached = ["interrupt", "detached"];
    assert_eq!((store.ends(detached), store.ends(["resolve", "detached", "failure"])), (0, 0));
    assert_eq!(store.ends(["run", "detached", "--", "true"]), 1);

    assert_eq!(store.ends(["resolve", "done", "retry"]), 1);
    assert_eq!(store.ends(["resolve", "missing", "retry"]), 1);
    assert_eq!(store.ends(["resolve", "aborted", "perhaps"]), 64);
    assert_eq!(store.ends(["resolve", "aborted", "retry", "--exit-code", "1"]), 64);
    assert_eq!(store.ends(["resolve", "aborted", "success", "--exit-code", "1"]), 64);
}

#[test]
fn a_decision_is_about_the_attempt_that_was_seen() {
    let store = TestStore::new();
    let die =
        || store.ends(["run", "k", "--on-interrupted", "retry", "--", "sh", "-c", "kill -9 $$"]);
    let token = || store.json(["show", "k"]).0[0]["attempt"]["token"].as_str().unwrap().to_owned();
    die();
    let seen = token();
    die();
    assert_eq!(store.ends(["resolve", "k", "success", "--token", &seen]), 1);
    assert_eq!(store.state("k"), "interrupted");
    assert_eq!(store.ends(["resolve", "k", "success", "--token", &token()]), 0);
}

#[test]
fn keys_are_forgotten_unless_somebody_must_decide() {
    let (store, _ticket) = with_keys();
    assert_eq!(store.ends(["forget", "done", "missing"]), 1);
    assert_eq!(store.ends(["forget", "held"]), 76);
    assert_eq!(store.ends(["forget", "detached"]), 75);
    assert_eq!((store.state("done"), store.state("held")), ("absent".into(), "held".into()));
    assert_eq!(lines(&store, "forget --prefix f --dry-run"), ["failed"]);
    assert_eq!(store.state("failed"), "failed");
    assert_eq!(store.json(["forget", "--state", "failed,aborted"]).0.len(), 2);
    assert_eq!((store.state("failed"), store.state("aborted")), ("absent".into(), "absent".into()));
    assert_eq!(store.ends(["forget", "held", "--force"]), 0);
    assert_eq!(store.state("held"), "absent");

    assert_eq!(store.ends(["forget"]), 64);
    assert_eq!(store.ends(["forget", "--all"]), 64);
    assert_eq!(store.ends(["forget", "-n", "acme", "-n", "eu", "--all"]), 76);
    let dry = ["forget", "-n", "acme", "--all", "--dry-run"];
    assert_eq!(store.json(dry.into_iter().chain(["--force"])).0[0]["done"], false);
    assert_eq!(lines(&store, "-n acme -n eu list -k"), ["within"]);
    assert_eq!(store.ends(["forget", "-n", "acme", "--all", "--force"]), 0);
    assert_eq!(lines(&store, "list -k --all").len(), 2);
}

#[test]
fn a_live_claim_is_revoked() {
    let (store, ticket) = with_keys();
    assert_eq!(store.ends(["interrupt", "held"]), 1);
    assert_eq!(store.ends(["interrupt", "detached", "--token", "1"]), 1);
    assert_eq!(store.json(["interrupt", "detached", "--reason", "its job is gone"]).1, 0);
    let here: Store = store.open();
    assert!(here.attach(&ticket).is_err());
    let Ok(Some(State::Interrupted(lost))) = here.get("detached") else { panic!() };
    assert_eq!(lost.reason(), Some("its job is gone"));
    assert!(lost.decided_by().unwrap().contains("process"));
}
