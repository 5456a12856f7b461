//! Exit codes, and what leads to one other than 0.

use std::io;

use onlyonce::ErrorKind;

/// No such key, changed meanwhile, or something to look at.
pub(crate) const NO: u8 = 1;
/// `EX_USAGE` of sysexits.h, as the next ones are.
pub(crate) const USAGE: u8 = 64;
pub(crate) const MISMATCH: u8 = 65;
/// Done before, and nothing of its result is left.
pub(crate) const EXPIRED: u8 = 69;
pub(crate) const STORE: u8 = 74;
pub(crate) const IN_PROGRESS: u8 = 75;
pub(crate) const HELD: u8 = 76;
/// As of `timeout`, as the next ones are.
pub(crate) const TIMED_OUT: u8 = 124;
pub(crate) const ITSELF: u8 = 125;
pub(crate) const NOT_EXECUTABLE: u8 = 126;
pub(crate) const NOT_FOUND: u8 = 127;
/// To which the number of the signal is added.
pub(crate) const BY_SIGNAL: u8 = 128;

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command ends without having done what it should.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// A word for programs.
    pub(crate) kind: &'static str,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failure { code: USAGE, kind: "usage", message: message.into() }
    }

    pub(crate) fn no(kind: &'static str, message: impl Into<String>) -> Self {
        Failure { code: NO, kind, message: message.into() }
    }

    /// Something besides the store and the command.
    pub(crate) fn itself(doing: &str, error: &io::Error) -> Self {
        Failure { code: ITSELF, kind: "io", message: format!("{doing}: {error}") }
    }

    /// The program that reads the output has gone, as `head` does: nothing is wrong.
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.kind == "reader_gone"
    }
}

/// A failure to print.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => {
                Failure { code: 0, kind: "reader_gone", message: String::new() }
            }
            _ => Failure::itself("writing the output", &error),
        }
    }
}

impl From<onlyonce::Error> for Failure {
    fn from(error: onlyonce::Error) -> Self {
        let (code, hint) = match error.kind() {
            ErrorKind::NotFound => (STORE, "; on the command line `onlyonce init` does"),
            ErrorKind::Locked => (IN_PROGRESS, "; --open-timeout waits longer"),
            ErrorKind::InProgress => (IN_PROGRESS, ""),
            ErrorKind::ClaimLost | ErrorKind::Held => (HELD, ""),
            ErrorKind::Invalid | ErrorKind::TooLarge => (USAGE, ""),
            ErrorKind::Corrupt => (STORE, "; here: `onlyonce verify`, `onlyonce repair`"),
            _ => (STORE, ""),
        };
        Failure { code, kind: word(error.kind()), message: format!("{error}{hint}") }
    }
}

fn word(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ClaimLost => "claim_lost",
        ErrorKind::Superseded => "superseded",
        ErrorKind::Held => "held",
        ErrorKind::InProgress => "in_progress",
        ErrorKind::Indeterminate => "indeterminate",
        ErrorKind::Poisoned => "poisoned",
        ErrorKind::Closed => "closed",
        ErrorKind::Forked => "forked",
        ErrorKind::StorageFull => "storage_full",
        ErrorKind::Locked => "locked",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Incompatible => "incompatible",
        ErrorKind::Invalid => "invalid",
        ErrorKind::TooLarge => "too_large",
        ErrorKind::Undecodable => "undecodable",
        ErrorKind::NotKept => "not_kept",
        ErrorKind::Bug => "bug",
        _ => "io",
    }
}
