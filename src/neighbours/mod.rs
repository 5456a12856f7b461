//! The seam between the processes that share a store's directory: which sessions live, and the connections between a
//! host and its guests.
//!
//! Promises: nothing above this module touches a socket or a session's byte but through [`Neighbours`], so a test can
//! have several processes in one (`memory`) and end one of them at any byte. No call waits, except [`wait`]. Never:
//! retries, or interprets what is sent. The directory's lock decides which process hosts; it is
//! [`Storage`](crate::storage::Storage)'s, as is the number of descriptors that a process may have.

#[cfg(test)]
mod contract_tests;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
mod nowhere;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod os;
#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
mod os_tests;

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
pub(crate) use nowhere::NoNeighbours as OsNeighbours;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) use os::OsNeighbours;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::storage::Standing;
use crate::types::SessionId;

/// The processes that share one directory, as one opening of it sees them. The directory is held open: it is the same
/// one for all calls, whatever is at its path by then.
pub(crate) trait Neighbours: Send + Sync + fmt::Debug {
    /// Whether the directory is still at its path, and the file that tells who lives still in it.
    fn standing(&self) -> io::Result<Standing>;

    /// Whether this process may host: it is run by the directory's owner or by root. What another user made would be
    /// closed to the owner.
    fn may_host(&self) -> io::Result<bool>;

    /// Begins the session, which lives until it is dropped or the process is buried. `None` if it lives already, in any
    /// process.
    ///
    /// Makes the file that tells who lives if there is none; `NotFound` if this process may not host and there is none.
    fn begin(&self, id: SessionId) -> io::Result<Option<Box<dyn Session>>>;

    /// Whether the session lives, in any process, this one included.
    fn lives(&self, id: SessionId) -> io::Result<bool>;

    /// All living sessions, in no order. Asks the system once if nobody lives, and twice for each session
    /// that does. Each of them is known to have lived during the call.
    fn living(&self) -> io::Result<Vec<SessionId>>;

    /// Takes the name of the socket, whoever has it, and listens. Only the holder of the directory's lock may call this.
    ///
    /// Where other users may write, makes the file that tells who lives if there is none: guests that may not host can't.
    fn listen(&self) -> io::Result<Box<dyn Listener>>;

    /// Connects to the process that listens. `None` if none does, or if too many connections wait to be accepted.
    fn connect(&self) -> io::Result<Option<Box<dyn Connection>>>;

    /// What wakes a thread of this process that waits.
    fn notifier(&self) -> io::Result<Arc<dyn Notifier>>;
}

/// A living session of this process; dropping it ends it.
pub(crate) trait Session: Send + Sync + fmt::Debug {
    fn id(&self) -> SessionId;

    /// Whether the session still lives. A program that closes descriptors it doesn't know, as daemons do, ends it; then
    /// it begins anew, and the answer is whether that was possible. `false` also if the file in the directory
    /// is another by now: then the others don't see the session.
    ///
    /// After `false` the session is over for good, and its id must not be used again.
    fn live_on(&mut self) -> io::Result<bool>;
}

/// A session that owns nothing, so that nobody has to see whether it lives: it has no lock.
#[derive(Debug)]
pub(crate) struct Unseen(pub(crate) SessionId);

impl Session for Unseen {
    fn id(&self) -> SessionId {
        self.0
    }

    fn live_on(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

/// What can be waited for.
pub(crate) trait Waitable: Send + Sync + fmt::Debug {
    fn readiness(&self) -> Readiness<'_>;
}

/// How to learn whether a source is ready.
pub(crate) enum Readiness<'a> {
    /// The system tells it of this descriptor.
    Of(BorrowedFd<'a>),
    /// It is known: the source is in memory, or its descriptor is gone, which the next call at it reports.
    Known(ReadyTo),
}

/// The socket by which guests connect. Dropping it closes it and leaves its name.
pub(crate) trait Listener: Waitable {
    fn accept(&self) -> io::Result<Accepted>;

    /// Removes the socket's name, so that nobody connects any more. Connections that wait to be accepted end when the
    /// listener is dropped.
    fn unlink(&self) -> io::Result<()>;

    /// As what can be waited for: the trait objects of the oldest supported compiler don't convert by themselves.
    fn waitable(&self) -> &dyn Waitable;
}

/// What an accepting call found.
#[derive(Debug)]
pub(crate) enum Accepted {
    Guest(Box<dyn Connection>),
    /// No connection waits.
    Nobody,
    /// This process or the machine has no descriptor or no memory left for another connection. Those that wait go on
    /// waiting, and the listener stays ready: let it rest for a while.
    Scarce,
}

/// One end of a connection. Dropping it closes it.
///
/// No call fails: whatever else happens to it ends the connection, so that both ends have one way to learn of it.
pub(crate) trait Connection: Waitable {
    /// Sends as many of the bytes as have space. At least one byte has to be given.
    fn send(&self, bytes: &[u8]) -> SendResult;

    /// Receives into a buffer that is not empty. Bytes that the peer sent before it ended the connection, or died, come
    /// before the end.
    fn receive(&self, buf: &mut [u8]) -> Received;

    /// Ends the connection in both directions, also for copies of it in other processes: the peer reads what was sent,
    /// and then the end.
    fn end(&self);

    /// The peer's process; 0 if it is in another process namespace, or unknown.
    fn peer(&self) -> u32;

    /// See [`Listener::waitable`].
    fn waitable(&self) -> &dyn Waitable;
}

/// What became of bytes to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SendResult {
    /// That many of them are on their way: at least one.
    Bytes(usize),
    /// None has space.
    Full,
    /// The connection has ended. There may still be bytes to receive.
    Gone,
}

/// What was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Received {
    /// That many bytes: at least one.
    Bytes(usize),
    /// Nothing has come.
    Nothing,
    /// The connection has ended, and everything that came before was received.
    End,
}

/// Wakes a thread of the same process that waits for it.
pub(crate) trait Notifier: Waitable {
    /// Makes it ready until it is cleared. Any number of calls is as good as one.
    fn notify(&self);

    /// Makes it unready. Call this before looking at what the notifications are about.
    fn clear(&self);

    /// See [`Listener::waitable`].
    fn waitable(&self) -> &dyn Waitable;
}

/// What a thread waits for at a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Interest {
    /// Bytes to receive, a connection to accept, a notification; the end of a connection.
    pub(crate) receive: bool,
    /// Space for bytes to send.
    pub(crate) send: bool,
}

/// What can be done at a source without waiting.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct ReadyTo {
    pub(crate) receive: bool,
    pub(crate) send: bool,
}

/// Waits until one of the sources is ready for what it is waited for, at most `timeout` if one is given, and returns
/// what each is ready for, in the same order. A connection that ended may be ready to receive even if nobody asked. May
/// return early with nothing ready.
///
/// If it is known of one of the sources, the call returns at once: what could make a source in memory ready is done by
/// the calling thread itself.
pub(crate) fn wait(
    on: &[(&dyn Waitable, Interest)],
    timeout: Option<Duration>,
) -> io::Result<Vec<ReadyTo>> {
    let mut all = vec![ReadyTo::default(); on.len()];
    let (mut asked, mut places) = (Vec::with_capacity(on.len()), Vec::with_capacity(on.len()));
    for ((source, interest), place) in on.iter().zip(&mut all) {
        match source.readiness() {
            Readiness::Known(ready) => {
                place.receive = ready.receive && interest.receive;
                place.send = ready.send && interest.send;
            }
            Readiness::Of(fd) => {
                asked.push(PollFd::from_borrowed_fd(fd, flags_of(*interest)));
                places.push(place);
            }
        }
    }
    let timeout = match asked.len() < on.len() {
        true if asked.is_empty() => return Ok(all),
        true => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
        // A longer time than the system's is for ever.
        false => timeout.and_then(|timeout| Timespec::try_from(timeout).ok()),
    };
    match rustix::event::poll(&mut asked, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    for (place, fd) in places.into_iter().zip(&asked) {
        *place = ready_of(fd.revents());
    }
    Ok(all)
}

fn flags_of(interest: Interest) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.receive);
    flags.set(PollFlags::OUT, interest.send);
    flags
}

/// A call at a source that failed or was closed reports the end.
fn ready_of(flags: PollFlags) -> ReadyTo {
    let ends = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    ReadyTo {
        receive: flags.intersects(PollFlags::IN | ends),
        send: flags.contains(PollFlags::OUT),
    }
}
