//! What a process of the crowd writes down about its calls, and what is read of it once the process has gone.
//!
//! Each process has a file of its own, and writes a record before each call and one after it, each with one `write`: what it wrote
//! outlives a kill. A record has 32 bytes, so none crosses a page, and a kill leaves whole ones only.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::time::{ClockId, clock_gettime};

/// A call on a key. Endings name the token of their claim, and words on an interrupted attempt the token that was shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Claim,
    TakeOver(u64),
    NotApplied(u64),
    Complete(u64),
    Abort(u64),
    Drop(u64),
    Forget,
    Mark,
    Get,
}

/// An attempt, or an outcome, as it is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sight {
    pub(super) token: u64,
    pub(super) attempt: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Told {
    Granted(Sight),
    /// The question about an interrupted attempt.
    Asked(Sight),
    InProgress(Sight),
    /// Another claimant was asked about that interrupted attempt.
    BeingDecided(Sight),
    /// Shown by `get` or `mark`.
    Interrupted(Sight),
    Aborted(Sight),
    Completed(Sight),
    Absent,
    First,
    Again,
    Yes,
    No,
    /// Refused because the key is in progress.
    Busy,
    Lost,
    Indeterminate,
    /// The process was killed before the call returned.
    Nothing,
}

/// One call of one thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) process: u32,
    pub(super) thread: u16,
    pub(super) key: u32,
    pub(super) ask: Ask,
    pub(super) told: Told,
    pub(super) begun: u64,
    /// When it returned; `u64::MAX` if it did not.
    pub(super) ended: u64,
}

impl Ask {
    pub(super) fn name(self) -> &'static str {
        match self {
            Ask::Claim => "claim",
            Ask::TakeOver(_) => "take_over",
            Ask::NotApplied(_) => "not_applied",
            Ask::Complete(_) => "complete",
            Ask::Abort(_) => "abort",
            Ask::Drop(_) => "drop",
            Ask::Forget => "forget",
            Ask::Mark => "mark",
            Ask::Get => "get",
        }
    }

    fn encode(self) -> (u8, u64) {
        match self {
            Ask::Claim => (1, 0),
            Ask::TakeOver(token) => (2, token),
            Ask::NotApplied(token) => (3, token),
            Ask::Complete(token) => (4, token),
            Ask::Abort(token) => (5, token),
            Ask::Drop(token) => (6, token),
            Ask::Forget => (7, 0),
            Ask::Mark => (8, 0),
            Ask::Get => (9, 0),
        }
    }

    fn decode(kind: u8, token: u64) -> Self {
        match kind {
            1 => Ask::Claim,
            2 => Ask::TakeOver(token),
            3 => Ask::NotApplied(token),
            4 => Ask::Complete(token),
            5 => Ask::Abort(token),
            6 => Ask::Drop(token),
            7 => Ask::Forget,
            8 => Ask::Mark,
            9 => Ask::Get,
            other => panic!("no call {other}"),
        }
    }
}

impl Told {
    pub(super) fn name(self) -> &'static str {
        match self {
            Told::Granted(_) => "granted",
            Told::Asked(_) => "asked",
            Told::InProgress(_) => "in progress",
            Told::BeingDecided(_) => "being decided",
            Told::Interrupted(_) => "interrupted",
            Told::Aborted(_) => "aborted",
            Told::Completed(_) => "completed",
            Told::Absent => "absent",
            Told::First => "first",
            Told::Again => "again",
            Told::Yes => "done",
            Told::No => "nothing to do",
            Told::Busy => "refused as in progress",
            Told::Lost => "ClaimLost",
            Told::Indeterminate => "Indeterminate",
            Told::Nothing => "killed",
        }
    }

    fn encode(self) -> (u8, u64, u32) {
        let shown = |kind, sight: Sight| (kind, sight.token, sight.attempt);
        match self {
            Told::Granted(sight) => shown(101, sight),
            Told::Asked(sight) => shown(102, sight),
            Told::InProgress(sight) => shown(103, sight),
            Told::BeingDecided(sight) => shown(104, sight),
            Told::Interrupted(sight) => shown(105, sight),
            Told::Aborted(sight) => shown(106, sight),
            Told::Completed(sight) => shown(107, sight),
            Told::Absent => (108, 0, 0),
            Told::First => (109, 0, 0),
            Told::Again => (110, 0, 0),
            Told::Yes => (111, 0, 0),
            Told::No => (112, 0, 0),
            Told::Busy => (113, 0, 0),
            Told::Lost => (114, 0, 0),
            Told::Indeterminate => (115, 0, 0),
            Told::Nothing => panic!("nobody is there to write it down"),
        }
    }

    fn decode(kind: u8, token: u64, attempt: u32) -> Self {
        let sight = Sight { token, attempt };
        match kind {
            101 => Told::Granted(sight),
            102 => Told::Asked(sight),
            103 => Told::InProgress(sight),
            104 => Told::BeingDecided(sight),
            105 => Told::Interrupted(sight),
            106 => Told::Aborted(sight),
            107 => Told::Completed(sight),
            108 => Told::Absent,
            109 => Told::First,
            110 => Told::Again,
            111 => Told::Yes,
            112 => Told::No,
            113 => Told::Busy,
            114 => Told::Lost,
            115 => Told::Indeterminate,
            other => panic!("no answer {other}"),
        }
    }
}

/// Nanoseconds of the clock that all processes of the machine have in common.
pub(super) fn moment() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

fn path(dir: &Path, process: u32) -> PathBuf {
    dir.join(format!("history-{process}"))
}

const RECORD_BYTES: usize = 32;

/// A process's calls, while it makes them.
pub(super) struct Writer(File);

impl Writer {
    pub(super) fn create(dir: &Path, process: u32) -> Self {
        let file = OpenOptions::new().append(true).create_new(true).open(path(dir, process));
        Writer(file.unwrap())
    }

    /// Makes a call, and writes down its start and its answer.
    pub(super) fn call<T>(
        &self,
        thread: u16,
        key: u32,
        ask: Ask,
        call: impl FnOnce() -> (Told, T),
    ) -> T {
        let (kind, token) = ask.encode();
        self.write(kind, thread, key, (token, 0));
        let (told, value) = call();
        let (kind, token, attempt) = told.encode();
        self.write(kind, thread, key, (token, attempt));
        value
    }

    fn write(&self, kind: u8, thread: u16, key: u32, (token, attempt): (u64, u32)) {
        let mut record = [0; RECORD_BYTES];
        record[0] = kind;
        record[2..4].copy_from_slice(&thread.to_le_bytes());
        record[4..8].copy_from_slice(&key.to_le_bytes());
        record[8..16].copy_from_slice(&token.to_le_bytes());
        record[16..20].copy_from_slice(&attempt.to_le_bytes());
        record[24..32].copy_from_slice(&moment().to_le_bytes());
        assert_eq!((&self.0).write(&record).unwrap(), RECORD_BYTES);
    }
}

/// The calls of a process that is no more.
pub(super) fn read(dir: &Path, process: u32) -> Vec<Call> {
    // One that was killed while it started has none.
    let Ok(bytes) = std::fs::read(path(dir, process)) else { return Vec::new() };
    assert_eq!(bytes.len() % RECORD_BYTES, 0, "a record of process {process} is cut");
    let mut calls: Vec<Call> = Vec::new();
    let mut open = std::collections::HashMap::new();
    for record in bytes.chunks_exact(RECORD_BYTES) {
        let u32_at = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
        let thread = u16::from_le_bytes(record[2..4].try_into().unwrap());
        let (kind, key, token, attempt) = (record[0], u32_at(4), u64_at(8), u32_at(16));
        if kind < 100 {
            assert!(open.insert(thread, calls.len()).is_none(), "a call without an end");
            let (ask, begun) = (Ask::decode(kind, token), u64_at(24));
            let told = Told::Nothing;
            calls.push(Call { process, thread, key, ask, told, begun, ended: u64::MAX });
        } else {
            let call = &mut calls[open.remove(&thread).unwrap()];
            assert_eq!(call.key, key);
            (call.told, call.ended) = (Told::decode(kind, token, attempt), u64_at(24));
        }
    }
    calls
}
