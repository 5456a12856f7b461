//! A store in a directory of its own, and commands on it.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) struct TestStore {
    dir: TempDir,
}

impl TestStore {
    /// A new one, in which nothing was written yet.
    pub(crate) fn new() -> Self {
        let store = TestStore { dir: tempfile::tempdir().unwrap() };
        assert_eq!(store.ends(["init"]), 0);
        store
    }

    /// Where tests may put files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    /// The store, opened here.
    pub(crate) fn open(&self) -> onlyonce::Store {
        onlyonce::Store::builder()
            .open_timeout(std::time::Duration::from_secs(60))
            .open_or_create(self.path())
            .unwrap()
    }

    /// A command that is yet to be started.
    pub(crate) fn command<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onlyonce"));
        command.args(words).current_dir(self.dir.path());
        command.env("ONLYONCE_STORE", self.path()).env("ONLYONCE_TEST", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn output<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Output {
        self.command(words).output().unwrap()
    }

    /// The exit code alone. What the command says is printed, for a test that fails.
    pub(crate) fn ends<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> i32 {
        self.prints(words).2
    }

    /// What a command prints to both streams, and its exit code.
    pub(crate) fn prints<W: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = W>,
    ) -> (String, String, i32) {
        let output = self.output(words);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        println!("{:?}\n{stdout}{stderr}", output.status);
        (stdout, stderr, output.status.code().unwrap_or(-1))
    }

    /// What a command prints with `--json`, each object compared with the schema; and its exit code.
    pub(crate) fn json<W: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = W>,
    ) -> (Vec<Value>, i32) {
        let output = self.command(["--json"]).args(words).output().unwrap();
        println!("{:?}: {}", output.status, String::from_utf8_lossy(&output.stdout));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        (objects(&output.stdout), output.status.code().unwrap_or(-1))
    }

    pub(crate) fn with_input(&self, words: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(words).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// The state of a key, as a word.
    pub(crate) fn state(&self, key: &str) -> String {
        let (lines, code) = self.json(["show", key, "--open-timeout", "60"]);
        match code {
            0 => lines[0]["state"].as_str().unwrap().to_owned(),
            _ => "absent".to_owned(),
        }
    }

    /// Waits until a file is there, which a command under test makes.
    pub(crate) fn wait_for(&self, name: &str) {
        wait_until(|| self.dir().join(name).exists());
    }
}

/// Whether a process has ended. A container may have nobody who collects it.
pub(crate) fn has_ended(pid: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim().starts_with('Z')),
        Err(_) => true,
    }
}

pub(crate) fn wait_until(is_so: impl Fn() -> bool) {
    while !is_so() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

pub(crate) fn objects(lines: &[u8]) -> Vec<Value> {
    let schema = include_str!("../../schema.json");
    let schema = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
    let lines = std::str::from_utf8(lines).unwrap().lines();
    let parse = |line: &str| {
        let object: Value = serde_json::from_str(line).unwrap();
        if let Err(wrong) = schema.validate(&object) {
            panic!("{line}: {wrong}");
        }
        object
    };
    lines.map(parse).collect()
}

/// Whether this process ignores the signal, and so all that it starts: under `nohup`, or in the
/// background of a shell without job control.
pub(crate) fn is_ignored(number: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(ignored.trim(), 16).unwrap() >> (number - 1) & 1 == 1
}
