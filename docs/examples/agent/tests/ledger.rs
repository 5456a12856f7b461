//! The ledger balances, and is not blind: a fault that is planted is found.

#![expect(clippy::unwrap_used, reason = "tests start the program itself")]

use std::process::{Command, Output};

fn run(more: &[&str]) -> Output {
    let agent = Command::new(env!("CARGO_BIN_EXE_agent"))
        .args(["--kills", "15", "--seed", "7"])
        .args(more)
        .output();
    agent.unwrap()
}

#[test]
fn the_ledger_balances() {
    let output = run(&[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches("0 wrong: the ledger balances").count(), 2, "{text}");
}

/// With a request id of its own in each attempt, a plan whose record was lost to a kill is billed again.
#[test]
fn a_planted_fault_is_found() {
    for fault in ["bill", "mail"] {
        // Whether a kill falls into that moment is chance: often enough, it does.
        let found = (1..=8).any(|seed: u32| {
            let output = run(&["--seed", &seed.to_string(), "--kills", "40", "--plant", fault]);
            String::from_utf8_lossy(&output.stdout).contains("does not balance")
        });
        assert!(found, "{fault}");
    }
}
