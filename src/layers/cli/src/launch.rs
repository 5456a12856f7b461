//! The other end of [`child`](crate::child): this program once more, between the fork and the command.
//!
//! A process asks the kernel by itself to be killed when its parent dies, and the wish outlives `exec`, except for
//! programs with more rights than their caller (setuid, capabilities). Asking between fork and exec would take unsafe
//! code, so this program is started first, asks, and becomes the command.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::exit;

/// The first argument, which no user types.
pub(crate) const LAUNCH: &str = "\u{1}launch";

/// Becomes the command, if that is what this process was started for; returns an exit code if it can't.
///
/// The arguments are [`LAUNCH`], the parent's process id, a word, and the command. If the command can't be executed, the
/// word is printed to the standard error with the number of the system's error: nothing else was printed before.
pub(crate) fn launched() -> Option<u8> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != LAUNCH {
        return None;
    }
    let (parent, word) = (args.next()?, args.next()?);
    let command: Vec<OsString> = args.collect();
    Some(become_the_command(&parent, &word, &command))
}

fn become_the_command(parent: &OsString, word: &OsString, command: &[OsString]) -> u8 {
    if let Err(error) = die_with_parent() {
        return tell(word, error.raw_os_error().unwrap_or(0), exit::ITSELF);
    }
    // It may have died before it was asked for: then somebody else is the parent now.
    let is_alive = rustix::process::getppid()
        .is_some_and(|pid| *parent == *OsString::from(pid.as_raw_nonzero().to_string()));
    let Some((program, args)) = command.split_first().filter(|_| is_alive) else {
        return exit::ITSELF;
    };
    let error = Command::new(program).args(args).exec();
    let code = match error.kind() {
        io::ErrorKind::NotFound => exit::NOT_FOUND,
        _ => exit::NOT_EXECUTABLE,
    };
    tell(word, error.raw_os_error().unwrap_or(0), code)
}

#[cfg(target_os = "linux")]
fn die_with_parent() -> io::Result<()> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Other systems have nothing like it.
#[cfg(not(target_os = "linux"))]
fn die_with_parent() -> io::Result<()> {
    Ok(())
}

fn tell(word: &OsString, errno: i32, code: u8) -> u8 {
    // One write, so that it arrives in one piece. If the parent is gone, nobody needs to know.
    let line = format!("{} {errno} {code}\n", word.to_string_lossy());
    let _ = io::stderr().write_all(line.as_bytes());
    code
}
