//! Runs a command: passes its output and our signals through, records what it prints, and says how it ended.
//!
//! Promises: the command dies when this process dies, however that happens (on Linux; what it started may live on). It
//! ends when the command has ended and nothing has its output open any more, as for `$(...)` of a shell.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use onlyonce::ClaimHandle;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Cause;

use crate::exit::{Failure, ITSELF, NOT_FOUND, Result};
use crate::launch::LAUNCH;
use crate::recording::{Recording, Stream};

/// What is run, and how far.
pub(crate) struct Task<'a> {
    pub(crate) command: &'a [OsString],
    /// Environment variables, in addition to our own.
    pub(crate) variables: Vec<(&'static str, String)>,
    pub(crate) output_bytes_max: usize,
    pub(crate) timeout: Option<Duration>,
    pub(crate) kill_after: Option<Duration>,
    /// The command is sent SIGTERM when this claim ends: somebody else may do the work from then on.
    pub(crate) stops_with: Option<&'a ClaimHandle>,
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// It never ran: the exit code that says so, and the system's error.
    NotLaunched {
        exit_code: u8,
        errno: i32,
    },
    Exited(u8),
    /// By a signal, with this number.
    Killed(i32),
}

/// What is known about a command that has ended.
pub(crate) struct Ended {
    pub(crate) end: End,
    pub(crate) recording: Recording,
    /// Whether it was sent a signal because its time was over.
    pub(crate) has_timed_out: bool,
}

/// Bytes on the way from the threads that wait to the loop that polls: the number of a signal, or this.
const CLAIM_ENDED: u8 = 0;
/// Added to the number of a signal that the terminal has sent to the whole group, to which the command belongs.
const BY_TERMINAL: u8 = 0x80;

/// Runs the command. `pass` is given what it prints, at once.
pub(crate) fn run(task: &Task<'_>, mut pass: impl FnMut(Stream, &[u8])) -> Result<Ended> {
    let (wakes, wakers) =
        wakers(task.stops_with).map_err(|e| Failure::itself("catching signals", &e))?;
    let mut random = [0; 16];
    fill_random(&mut random).map_err(|e| Failure::itself("reading random bytes", &e))?;
    let word = data_encoding::HEXLOWER.encode(&random);
    // The thread that starts the command lives as long as this process: with it, too, the command dies.
    let child = match launcher(task, &word).spawn() {
        Ok(child) => child,
        // For example with words that are too long for a second start: nothing ran, and so the claim has to learn.
        Err(error) => {
            let end =
                End::NotLaunched { exit_code: ITSELF, errno: error.raw_os_error().unwrap_or(0) };
            return Ok(Ended { end, recording: Recording::default(), has_timed_out: false });
        }
    };
    drop(wakers);
    let now = Instant::now();
    let follower = Follower {
        child,
        wakes,
        word: word.into_bytes(),
        not_launched: None,
        recording: Recording::default(),
        deadline: task.timeout.and_then(|timeout| now.checked_add(timeout)),
        kill_at: None,
        has_timed_out: false,
        is_over: false,
    };
    let followed = follower.follow(task, &mut pass);
    followed.map_err(|e| Failure::itself("following the command", &e))
}

fn launcher(task: &Task<'_>, word: &str) -> Command {
    let mut launcher = Command::new(this_program());
    launcher.arg0("onlyonce").arg(LAUNCH).arg(std::process::id().to_string()).arg(word);
    launcher.args(task.command).envs(task.variables.iter().map(|(name, value)| (*name, value)));
    launcher.stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::piped());
    launcher
}

/// On Linux a name that leads to this very program, even if an upgrade has replaced or removed its file.
fn this_program() -> PathBuf {
    let link = PathBuf::from("/proc/self/exe");
    if link.exists() { link } else { std::env::current_exe().unwrap_or(link) }
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}

/// Starts the threads that wait for signals and for the end of the claim. Each tells by a byte.
fn wakers(claim: Option<&ClaimHandle>) -> io::Result<(UnixStream, UnixStream)> {
    let (wakes, waker) = UnixStream::pair()?;
    let ignored = ignored_signals();
    let passed = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];
    // What is ignored stays ignored, for the command, too: so `nohup` does.
    let caught = passed.iter().filter(|signal| ignored >> (*signal - 1) & 1 == 0);
    let mut signals = SignalsInfo::<WithOrigin>::new(caught.chain(&[SIGCHLD]))?;
    let mut by_signal = waker.try_clone()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for origin in signals.forever() {
            let is_key = matches!(origin.signal, SIGINT | SIGQUIT) && origin.cause == Cause::Kernel;
            let Ok(number) = u8::try_from(origin.signal) else { continue };
            let byte = if is_key { number | BY_TERMINAL } else { number };
            if by_signal.write_all(&[byte]).is_err() {
                return; // the command has ended
            }
        }
    })?;
    if let Some(claim) = claim {
        let (ended, mut by_end) = (claim.ended(), waker.try_clone()?);
        std::thread::Builder::new().name("claim".into()).spawn(move || {
            if ended.wait().is_ok() {
                let _ = by_end.write_all(&[CLAIM_ENDED]);
            }
        })?;
    }
    Ok((wakes, waker))
}

/// One bit for each signal, the lowest for the number 1.
pub(crate) fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

struct Follower {
    child: Child,
    wakes: UnixStream,
    /// What the launcher prints first if it fails.
    word: Vec<u8>,
    not_launched: Option<End>,
    recording: Recording,
    deadline: Option<Instant>,
    kill_at: Option<Instant>,
    has_timed_out: bool,
    /// Whether nothing more is waited for once the command has ended, though something has its output open.
    is_over: bool,
}

impl Follower {
    fn follow(
        mut self,
        task: &Task<'_>,
        pass: &mut impl FnMut(Stream, &[u8]),
    ) -> io::Result<Ended> {
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        let mut is_first = true;
        let mut status = None;
        let mut buffer = vec![0; 64 << 10];
        while status.is_none() || stdout.is_some() || stderr.is_some() {
            self.keep_time(task, status.is_some())?;
            let is_over = status.is_some() && self.is_over;
            let timeout = if is_over { Some(Duration::ZERO) } else { self.next_time() };
            let ready = wait_for(&self.wakes, stdout.as_ref(), stderr.as_ref(), timeout)?;
            if is_over && !ready.stdout && !ready.stderr {
                break;
            }
            if ready.wake {
                status = self.woken(status.is_some())?.or(status);
            }
            if ready.stdout {
                let read = read_some(&mut stdout, &mut buffer)?;
                self.take(Stream::Stdout, read, task, pass);
            }
            if ready.stderr {
                let read = read_some(&mut stderr, &mut buffer)?;
                if std::mem::take(&mut is_first) && self.is_from_launcher(read) {
                    continue;
                }
                self.take(Stream::Stderr, read, task, pass);
            }
        }
        let end = match (self.not_launched, status) {
            (Some(end), _) => end,
            (None, Some(status)) => match (status.code(), status.signal()) {
                // A system without more than eight bits of it.
                (Some(code), _) => End::Exited(u8::try_from(code).unwrap_or(u8::MAX)),
                (None, signal) => End::Killed(signal.unwrap_or(0)),
            },
            (None, None) => return Err(io::Error::other("the command's status is missing")),
        };
        Ok(Ended { end, recording: self.recording, has_timed_out: self.has_timed_out })
    }

    /// Sends the signals whose time has come.
    fn keep_time(&mut self, task: &Task<'_>, has_exited: bool) -> io::Result<()> {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.is_over = true;
            self.has_timed_out = !has_exited;
            self.kill_at = task.kill_after.and_then(|after| now.checked_add(after));
            self.send(Signal::TERM, has_exited)?;
        }
        if self.kill_at.is_some_and(|kill_at| kill_at <= now) {
            self.kill_at = None;
            self.send(Signal::KILL, has_exited)?;
        }
        Ok(())
    }

    fn next_time(&self) -> Option<Duration> {
        let next = [self.deadline, self.kill_at].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// A process that has exited has given its number back.
    fn send(&self, signal: Signal, has_exited: bool) -> io::Result<()> {
        if has_exited {
            return Ok(());
        }
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Passes signals on; returns the command's status if it has exited. After that a signal ends the waiting for its output.
    fn woken(&mut self, has_exited: bool) -> io::Result<Option<std::process::ExitStatus>> {
        let mut bytes = [0; 64];
        let count = self.wakes.read(&mut bytes)?;
        let exited = if has_exited { None } else { self.child.try_wait()? };
        let has_exited = has_exited || exited.is_some();
        for byte in bytes.iter().take(count) {
            let number = i32::from(byte & !BY_TERMINAL);
            if number == SIGCHLD {
                continue;
            }
            self.is_over |= has_exited;
            let signal = match *byte {
                CLAIM_ENDED => Some(Signal::TERM),
                byte if byte & BY_TERMINAL != 0 => None,
                _ => Signal::from_named_raw(number),
            };
            if let Some(signal) = signal {
                self.send(signal, has_exited)?;
            }
        }
        Ok(exited)
    }

    /// Whether the launcher says here that it couldn't execute the command.
    fn is_from_launcher(&mut self, read: &[u8]) -> bool {
        let said = read.strip_prefix(self.word.as_slice());
        let Some(said) = said.and_then(|said| std::str::from_utf8(said).ok()) else { return false };
        let mut numbers = said.split_whitespace();
        let errno = numbers.next().and_then(|errno| errno.parse().ok()).unwrap_or(0);
        let exit_code = numbers.next().and_then(|code| code.parse().ok()).unwrap_or(NOT_FOUND);
        self.not_launched = Some(End::NotLaunched { exit_code, errno });
        true
    }

    fn take(
        &mut self,
        stream: Stream,
        read: &[u8],
        task: &Task<'_>,
        pass: &mut impl FnMut(Stream, &[u8]),
    ) {
        if !read.is_empty() {
            self.recording.push(stream, read, task.output_bytes_max);
            pass(stream, read);
        }
    }
}

#[derive(Default)]
struct Ready {
    wake: bool,
    stdout: bool,
    stderr: bool,
}

fn wait_for(
    wakes: &UnixStream,
    stdout: Option<&impl AsFd>,
    stderr: Option<&impl AsFd>,
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    let (wakes, events) = (wakes.as_fd(), PollFlags::IN);
    // In place of a stream that has ended: what is asked for twice does no harm.
    let stdout_fd = stdout.map_or(wakes, AsFd::as_fd);
    let stderr_fd = stderr.map_or(wakes, AsFd::as_fd);
    let mut fds = [wakes, stdout_fd, stderr_fd].map(|fd| PollFd::from_borrowed_fd(fd, events));
    // Rounded up, so that the time is over when this returns; a time beyond what can be said is none.
    let timeout = timeout.map(|timeout| timeout.saturating_add(Duration::from_millis(1)));
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut fds, timeout.as_ref()) {
        Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
        other => other?,
    };
    let [wake, out, err] = fds.map(|fd| !fd.revents().is_empty());
    Ok(Ready { wake, stdout: out && stdout.is_some(), stderr: err && stderr.is_some() })
}

/// Reads what is there. At the end there is no stream any more, and nothing was read.
fn read_some<'b>(from: &mut Option<impl Read>, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let Some(stream) = from else { return Ok(&[]) };
    let count = match stream.read(buffer) {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(&[]),
        other => other?,
    };
    if count == 0 {
        *from = None;
    }
    Ok(buffer.get(..count).unwrap_or_default())
}
