//! Some lives of the consumer, and two consumers with a mistake, which the ledger must show.

#![expect(clippy::unwrap_used, reason = "tests start the program itself")]

use std::process::{Command, Output};

fn consumer(arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumer"));
    command.args(["--lives", "10", "--messages", "300", "--dir"]).arg(dir.path().join("files"));
    command.args(arguments).output().unwrap()
}

#[test]
fn a_consumer_that_is_killed_handles_each_message() {
    let ran = consumer(&["--seed", "7"]);
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(said.matches("the ledger balances").count(), 2, "{said}");
}

#[test]
fn a_message_that_is_completed_before_its_effect_is_found_to_be_lost() {
    let ran = consumer(&["--fault", "complete-first"]);
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(!ran.status.success() && said.contains("was never handled"), "{said}");
}

#[test]
fn an_offset_that_is_committed_before_its_batch_is_found_to_lose_messages() {
    let ran = consumer(&["--fault", "offsets-first"]);
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(!ran.status.success(), "{said}");
    assert!(said.contains("was not completed") || said.contains("was lost"), "{said}");
}
