//! Processes of a simulation: their sessions and connections in memory, moved by the test alone.
//!
//! Promises: what the contract of the seam does, and nothing happens by itself: bytes lie in a pipe until the receiver
//! takes them, and the same calls give the same run. A process ends by [`kill`](MemoryNeighbours::kill), or in two
//! steps in either order, because a system may free the dead one's byte after its connections have ended, or before.
//! Never: waits, or draws anything. `contract_tests` tests that it shows a program the same as a real system does.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::{
    Accepted, Connection, Listener, Neighbours, Notifier, Readiness, ReadyTo, Received, SendResult,
    Session, Waitable,
};
use crate::limits::WAITING_CONNECTIONS_MAX;
use crate::storage::Standing;
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::types::SessionId;

/// Bytes that a connection holds in each direction by default: as a socket does, more than one frame of ordinary size and
/// less than one of the largest.
const PIPE_BYTES: usize = 64 << 10;

/// A process of the simulation.
pub(crate) type ProcessNumber = u32;

/// How many of the bytes that are on their way arrive before a connection ends.
pub(crate) type Arriving<'a> = &'a mut dyn FnMut(usize) -> usize;

/// The processes at one directory. Clones are handles of the same ones.
#[derive(Clone, Debug)]
pub(crate) struct MemoryNeighbours(Arc<Mutex<Everyone>>);

#[derive(Debug)]
struct Everyone {
    processes: BTreeMap<ProcessNumber, Process>,
    /// Each session that lives, and the call that began it.
    sessions: BTreeMap<SessionId, (ProcessNumber, u64)>,
    listeners: BTreeMap<u64, Listening>,
    /// The listener that took the socket's name last, whether it still listens or not.
    named: Option<u64>,
    connections: BTreeMap<u64, Pipes>,
    /// Counts sessions, listeners and connections.
    made: u64,
    standing: Standing,
    pipe_bytes: usize,
}

#[derive(Debug)]
struct Process {
    is_dead: bool,
    may_host: bool,
    listen_fails: Option<Errno>,
    is_scarce: bool,
}

#[derive(Debug)]
struct Listening {
    process: ProcessNumber,
    /// Connections that wait to be accepted.
    waiting: VecDeque<u64>,
}

/// A connection: the guest's end is the first, the host's the second.
#[derive(Debug)]
struct Pipes {
    processes: [ProcessNumber; 2],
    /// The bytes that lie before each end.
    arrived: [VecDeque<u8>; 2],
    has_ended: bool,
    /// How many of both ends are held by somebody.
    held: u8,
}

impl MemoryNeighbours {
    /// A directory without processes.
    pub(crate) fn new() -> Self {
        MemoryNeighbours(Arc::new(Mutex::new(Everyone {
            processes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            listeners: BTreeMap::new(),
            named: None,
            connections: BTreeMap::new(),
            made: 0,
            standing: Standing::Here,
            pipe_bytes: PIPE_BYTES,
        })))
    }

    /// Starts a process, and returns the seam through which it sees the others.
    pub(crate) fn process(&self) -> MemoryProcess {
        let mut everyone = self.0.lock();
        let number = everyone.processes.last_key_value().map_or(1, |(last, _)| last + 1);
        let process =
            Process { is_dead: false, may_host: true, listen_fails: None, is_scarce: false };
        everyone.processes.insert(number, process);
        drop(everyone);
        MemoryProcess { everyone: self.clone(), number }
    }

    /// Kills a process: its connections end, its sessions too, and it listens no more. Its handles do nothing from now
    /// on. `arriving` is asked for each connection how many of the bytes arrive that the process had sent and the peer
    /// has not taken.
    pub(crate) fn kill(&self, process: ProcessNumber, arriving: Arriving<'_>) {
        self.kill_but_for_sessions(process, arriving);
        self.kill_but_for_connections(process);
    }

    /// The first half of a kill. The other may follow at any time.
    pub(crate) fn kill_but_for_sessions(&self, process: ProcessNumber, arriving: Arriving<'_>) {
        let mut everyone = self.0.lock();
        everyone.mark_dead(process);
        everyone.close(process, arriving);
    }

    /// The other half of a kill, which may also be the first.
    pub(crate) fn kill_but_for_connections(&self, process: ProcessNumber) {
        let mut everyone = self.0.lock();
        everyone.mark_dead(process);
        everyone.sessions.retain(|_, (owner, _)| *owner != process);
    }

    /// A process closes all descriptors that it doesn't know, as daemons do, and lives on.
    pub(crate) fn close_unknown(&self, process: ProcessNumber, arriving: Arriving<'_>) {
        let mut everyone = self.0.lock();
        everyone.close(process, arriving);
        everyone.sessions.retain(|_, (owner, _)| *owner != process);
    }

    /// Ends the connections between two living processes. `arriving` is asked as by a kill, for each direction.
    pub(crate) fn disconnect(&self, a: ProcessNumber, b: ProcessNumber, arriving: Arriving<'_>) {
        for pipes in self.0.lock().connections.values_mut() {
            let is_theirs = pipes.processes == [a, b] || pipes.processes == [b, a];
            if is_theirs && !pipes.has_ended {
                pipes.has_ended = true;
                pipes.arrived.iter_mut().for_each(|arrived| keep_first(arrived, arriving));
            }
        }
    }

    /// How many bytes lie before the other ends of a process's connections, of each in the order in which they were
    /// made: what a kill can cut.
    pub(crate) fn on_the_way(&self, process: ProcessNumber) -> Vec<usize> {
        let everyone = self.0.lock();
        let open = everyone.connections.values().filter(|pipes| !pipes.has_ended);
        open.flat_map(|pipes| pipes.sent_by(process).map(VecDeque::len).collect::<Vec<_>>())
            .collect()
    }

    /// The bytes themselves.
    pub(crate) fn bytes_on_the_way(&self, process: ProcessNumber) -> Vec<Vec<u8>> {
        let everyone = self.0.lock();
        let open = everyone.connections.values().filter(|pipes| !pipes.has_ended);
        open.flat_map(|pipes| pipes.sent_by(process).map(|sent| sent.iter().copied().collect()))
            .collect()
    }

    /// All connections that anybody holds, with the bytes that lie in them, as a text that is the same for the same state.
    pub(crate) fn shown(&self) -> String {
        let everyone = self.0.lock();
        let shown = everyone.connections.values().map(|pipes| {
            let Pipes { processes, arrived, has_ended, held } = pipes;
            format!("{processes:?} {arrived:?} {has_ended} {held}")
        });
        shown.collect::<Vec<_>>().join("\n")
    }

    /// Sets what a process finds at the path of the directory.
    pub(crate) fn set_standing(&self, standing: Standing) {
        self.0.lock().standing = standing;
    }

    /// Sets how many bytes a connection holds in each direction.
    pub(crate) fn set_pipe_bytes(&self, bytes: usize) {
        self.0.lock().pipe_bytes = bytes;
    }

    /// Whether a process is run by the directory's owner, as it is by default.
    pub(crate) fn set_may_host(&self, process: ProcessNumber, may_host: bool) {
        self.change(process, |process| process.may_host = may_host);
    }

    /// Has a process fail to listen, as by the rules of a sandbox.
    pub(crate) fn set_listen_fails(&self, process: ProcessNumber, errno: Option<Errno>) {
        self.change(process, |process| process.listen_fails = errno);
    }

    /// Whether a process lacks descriptors to accept connections.
    pub(crate) fn set_scarce(&self, process: ProcessNumber, is_scarce: bool) {
        self.change(process, |process| process.is_scarce = is_scarce);
    }

    fn change(&self, process: ProcessNumber, change: impl FnOnce(&mut Process)) {
        self.0.lock().processes.get_mut(&process).map(change);
    }
}

fn keep_first(arrived: &mut VecDeque<u8>, arriving: Arriving<'_>) {
    let kept = arriving(arrived.len());
    arrived.truncate(kept);
}

impl Pipes {
    /// The bytes that a process has sent and that were not taken: in two directions if it is connected to itself.
    fn sent_by(&self, process: ProcessNumber) -> impl Iterator<Item = &VecDeque<u8>> {
        let [guest, host] = self.processes;
        let [to_guest, to_host] = &self.arrived;
        let by_guest = (guest == process).then_some(to_host);
        by_guest.into_iter().chain((host == process).then_some(to_guest))
    }
}

impl Everyone {
    fn next(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// A call of a dead process has no effect.
    fn living(&self, process: ProcessNumber) -> io::Result<&Process> {
        let process = self.processes.get(&process).filter(|process| !process.is_dead);
        process.ok_or_else(|| Errno::BADF.into())
    }

    fn mark_dead(&mut self, process: ProcessNumber) {
        if let Some(process) = self.processes.get_mut(&process) {
            process.is_dead = true;
        }
    }

    fn close(&mut self, process: ProcessNumber, arriving: Arriving<'_>) {
        let is_its = |listening: &Listening| listening.process == process;
        let its = self.listeners.iter().filter(|(_, listening)| is_its(listening));
        for listener in its.map(|(listener, _)| *listener).collect::<Vec<_>>() {
            self.stop_listening(listener);
        }
        for pipes in self.connections.values_mut().filter(|pipes| !pipes.has_ended) {
            let [guest, host] = pipes.processes;
            let [to_guest, to_host] = &mut pipes.arrived;
            pipes.has_ended = guest == process || host == process;
            if guest == process {
                keep_first(to_host, arriving);
            }
            if host == process {
                keep_first(to_guest, arriving);
            }
        }
    }

    fn stop_listening(&mut self, listener: u64) {
        let Some(listening) = self.listeners.remove(&listener) else { return };
        for waiting in listening.waiting {
            if let Some(pipes) = self.connections.get_mut(&waiting) {
                pipes.has_ended = true;
            }
            self.let_go(waiting);
        }
    }

    /// One end of a connection is held by nobody any more.
    fn let_go(&mut self, connection: u64) {
        let Some(pipes) = self.connections.get_mut(&connection) else { return };
        pipes.held -= 1;
        if pipes.held == 0 {
            self.connections.remove(&connection);
        }
    }
}

/// What one process sees of the others.
#[derive(Clone, Debug)]
pub(crate) struct MemoryProcess {
    everyone: MemoryNeighbours,
    number: ProcessNumber,
}

impl MemoryProcess {
    /// By which the simulation names this process, and its peers see it.
    pub(crate) fn number(&self) -> ProcessNumber {
        self.number
    }
}

impl Neighbours for MemoryProcess {
    fn standing(&self) -> io::Result<Standing> {
        let everyone = self.everyone.0.lock();
        everyone.living(self.number)?;
        Ok(everyone.standing)
    }

    fn may_host(&self) -> io::Result<bool> {
        Ok(self.everyone.0.lock().living(self.number)?.may_host)
    }

    fn begin(&self, id: SessionId) -> io::Result<Option<Box<dyn Session>>> {
        let mut everyone = self.everyone.0.lock();
        everyone.living(self.number)?;
        if everyone.sessions.contains_key(&id) {
            return Ok(None);
        }
        let begun = everyone.next();
        everyone.sessions.insert(id, (self.number, begun));
        Ok(Some(Box::new(MemorySession { process: self.clone(), id, begun })))
    }

    fn lives(&self, id: SessionId) -> io::Result<bool> {
        let everyone = self.everyone.0.lock();
        everyone.living(self.number)?;
        Ok(everyone.sessions.contains_key(&id))
    }

    fn living(&self) -> io::Result<Vec<SessionId>> {
        let everyone = self.everyone.0.lock();
        everyone.living(self.number)?;
        Ok(everyone.sessions.keys().copied().collect())
    }

    fn listen(&self) -> io::Result<Box<dyn Listener>> {
        let mut everyone = self.everyone.0.lock();
        let process = everyone.living(self.number)?;
        if let Some(errno) = process.listen_fails {
            return Err(errno.into());
        }
        if !process.may_host {
            return Err(Errno::PERM.into());
        }
        let listener = everyone.next();
        let listening = Listening { process: self.number, waiting: VecDeque::new() };
        everyone.listeners.insert(listener, listening);
        everyone.named = Some(listener);
        Ok(Box::new(MemoryListener { process: self.clone(), listener }))
    }

    fn connect(&self) -> io::Result<Option<Box<dyn Connection>>> {
        let mut everyone = self.everyone.0.lock();
        everyone.living(self.number)?;
        let (connection, pipe) = (everyone.next(), VecDeque::new());
        let named = everyone.named;
        let listening = named.and_then(|named| everyone.listeners.get_mut(&named));
        let is_full = |listening: &Listening| {
            usize::try_from(WAITING_CONNECTIONS_MAX).is_ok_and(|max| listening.waiting.len() > max)
        };
        let Some(listening) = listening.filter(|listening| !is_full(listening)) else {
            return Ok(None);
        };
        listening.waiting.push_back(connection);
        let processes = [self.number, listening.process];
        let arrived = [pipe.clone(), pipe];
        let pipes = Pipes { processes, arrived, has_ended: false, held: 2 };
        everyone.connections.insert(connection, pipes);
        Ok(Some(Box::new(MemoryConnection { process: self.clone(), connection, end: 0 })))
    }

    fn notifier(&self) -> io::Result<Arc<dyn Notifier>> {
        self.everyone.0.lock().living(self.number)?;
        Ok(Arc::new(MemoryNotifier(AtomicBool::new(false))))
    }
}

#[derive(Debug)]
struct MemorySession {
    process: MemoryProcess,
    id: SessionId,
    begun: u64,
}

impl Session for MemorySession {
    fn id(&self) -> SessionId {
        self.id
    }

    fn live_on(&mut self) -> io::Result<bool> {
        let mut everyone = self.process.everyone.0.lock();
        everyone.living(self.process.number)?;
        let own = (self.process.number, self.begun);
        Ok(*everyone.sessions.entry(self.id).or_insert(own) == own)
    }
}

impl Drop for MemorySession {
    fn drop(&mut self) {
        let mut everyone = self.process.everyone.0.lock();
        // What a dead process drops has no effect: what it had ends when the test has it end.
        let is_own = everyone.sessions.get(&self.id) == Some(&(self.process.number, self.begun));
        if is_own && everyone.living(self.process.number).is_ok() {
            everyone.sessions.remove(&self.id);
        }
    }
}

#[derive(Debug)]
struct MemoryListener {
    process: MemoryProcess,
    listener: u64,
}

impl Waitable for MemoryListener {
    fn readiness(&self) -> Readiness<'_> {
        let everyone = self.process.everyone.0.lock();
        let listening = everyone.listeners.get(&self.listener);
        let receive = listening.is_some_and(|listening| !listening.waiting.is_empty());
        Readiness::Known(ReadyTo { receive, send: false })
    }
}

impl Listener for MemoryListener {
    fn accept(&self) -> io::Result<Accepted> {
        let mut everyone = self.process.everyone.0.lock();
        let is_scarce = everyone.living(self.process.number)?.is_scarce;
        let listening = everyone.listeners.get_mut(&self.listener).ok_or(Errno::BADF)?;
        if is_scarce {
            return Ok(Accepted::Scarce);
        }
        let Some(connection) = listening.waiting.pop_front() else { return Ok(Accepted::Nobody) };
        let process = self.process.clone();
        Ok(Accepted::Guest(Box::new(MemoryConnection { process, connection, end: 1 })))
    }

    fn unlink(&self) -> io::Result<()> {
        let mut everyone = self.process.everyone.0.lock();
        everyone.living(self.process.number)?;
        everyone.named = everyone.named.filter(|named| *named != self.listener);
        Ok(())
    }

    fn waitable(&self) -> &dyn Waitable {
        self
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        let mut everyone = self.process.everyone.0.lock();
        if everyone.living(self.process.number).is_ok() {
            everyone.stop_listening(self.listener);
        }
    }
}

#[derive(Debug)]
struct MemoryConnection {
    process: MemoryProcess,
    connection: u64,
    /// Which of the two ends this is.
    end: usize,
}

impl MemoryConnection {
    /// Looks at what lies before this end and before the other. `None` if the process is dead.
    fn look<T>(&self, look: impl FnOnce(&mut Pipes, usize) -> T) -> Option<T> {
        let mut everyone = self.process.everyone.0.lock();
        everyone.living(self.process.number).ok()?;
        let pipe_bytes = everyone.pipe_bytes;
        everyone.connections.get_mut(&self.connection).map(|pipes| look(pipes, pipe_bytes))
    }
}

impl Waitable for MemoryConnection {
    fn readiness(&self) -> Readiness<'_> {
        let ready = self.look(|pipes, pipe_bytes| {
            let is_before = |end: usize| pipes.arrived.get(end).map_or(0, VecDeque::len);
            ReadyTo {
                receive: pipes.has_ended || is_before(self.end) > 0,
                send: pipes.has_ended || is_before(1 - self.end) < pipe_bytes,
            }
        });
        Readiness::Known(ready.unwrap_or(ReadyTo { receive: true, send: true }))
    }
}

impl Connection for MemoryConnection {
    fn send(&self, bytes: &[u8]) -> SendResult {
        debug_assert!(!bytes.is_empty());
        let sent = self.look(|pipes, pipe_bytes| {
            let arrived = pipes.arrived.get_mut(1 - self.end).filter(|_| !pipes.has_ended)?;
            let space = pipe_bytes.saturating_sub(arrived.len()).min(bytes.len());
            arrived.extend(bytes.iter().take(space));
            Some(if space == 0 { SendResult::Full } else { SendResult::Bytes(space) })
        });
        sent.flatten().unwrap_or(SendResult::Gone)
    }

    fn receive(&self, buf: &mut [u8]) -> Received {
        debug_assert!(!buf.is_empty());
        let received = self.look(|pipes, _| {
            let arrived = pipes.arrived.get_mut(self.end)?;
            let len = buf.len().min(arrived.len());
            for (to, from) in buf.iter_mut().zip(arrived.drain(..len)) {
                *to = from;
            }
            match len {
                0 if pipes.has_ended => None,
                0 => Some(Received::Nothing),
                len => Some(Received::Bytes(len)),
            }
        });
        received.flatten().unwrap_or(Received::End)
    }

    fn end(&self) {
        self.look(|pipes, _| pipes.has_ended = true);
    }

    fn peer(&self) -> u32 {
        let peer = self.look(|pipes, _| pipes.processes.get(1 - self.end).copied());
        peer.flatten().unwrap_or(0)
    }

    fn waitable(&self) -> &dyn Waitable {
        self
    }
}

impl Drop for MemoryConnection {
    fn drop(&mut self) {
        self.end();
        self.process.everyone.0.lock().let_go(self.connection);
    }
}

#[derive(Debug)]
struct MemoryNotifier(AtomicBool);

impl Waitable for MemoryNotifier {
    fn readiness(&self) -> Readiness<'_> {
        let receive = self.0.load(Ordering::Relaxed);
        Readiness::Known(ReadyTo { receive, send: false })
    }
}

impl Notifier for MemoryNotifier {
    fn notify(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn waitable(&self) -> &dyn Waitable {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract_tests::{accept, begin, id, keeps_the_contract, receive};
    use super::*;

    #[test]
    fn it_keeps_the_contract() {
        let all = MemoryNeighbours::new();
        keeps_the_contract(&|| Box::new(all.process()));
        assert!(all.0.lock().connections.is_empty() && all.0.lock().listeners.is_empty());
    }

    /// A host, a guest, and a connection between them: the host's end, and the guest's.
    struct Two {
        all: MemoryNeighbours,
        host: MemoryProcess,
        guest: MemoryProcess,
        listener: Box<dyn Listener>,
        to_guest: Box<dyn Connection>,
        to_host: Box<dyn Connection>,
    }

    fn two() -> Two {
        let all = MemoryNeighbours::new();
        let (host, guest) = (all.process(), all.process());
        let listener = host.listen().unwrap();
        let to_host = guest.connect().unwrap().unwrap();
        let to_guest = accept(&*listener);
        assert_eq!((to_guest.peer(), to_host.peer()), (guest.number(), host.number()));
        Two { all, host, guest, listener, to_guest, to_host }
    }

    /// Everything there is to receive before the end.
    fn to_the_end(connection: &dyn Connection) -> Vec<u8> {
        let (mut all, mut buf) = (Vec::new(), [0; 3]);
        loop {
            match connection.receive(&mut buf) {
                Received::Bytes(received) => all.extend(buf.iter().take(received)),
                Received::Nothing => panic!("it has not ended"),
                Received::End => return all,
            }
        }
    }

    #[test]
    fn a_kill_delivers_each_prefix_of_what_was_sent() {
        for arrives in 0..=8 {
            for is_guest in [false, true] {
                let Two { all, host, guest, listener, to_guest, to_host } = two();
                let _session = begin(if is_guest { &guest } else { &host }, 7);
                assert_eq!(
                    (to_host.send(b"to  host"), to_guest.send(b"to guest")),
                    (SendResult::Bytes(8), SendResult::Bytes(8))
                );
                let (dead, dead_end, living_end, sent) = match is_guest {
                    true => (&guest, &to_host, &to_guest, b"to  host"),
                    false => (&host, &to_guest, &to_host, b"to guest"),
                };
                assert_eq!(all.on_the_way(dead.number()), [8]);
                all.kill(dead.number(), &mut |sent| {
                    assert_eq!(sent, 8);
                    arrives
                });
                assert!(all.on_the_way(dead.number()).is_empty());
                assert_eq!(living_end.send(b"x"), SendResult::Gone);
                assert_eq!(to_the_end(&**living_end), &sent[..arrives]);
                // The dead does nothing more.
                assert_eq!(
                    (dead_end.send(b"x"), dead_end.receive(&mut [0])),
                    (SendResult::Gone, Received::End)
                );
                assert!(
                    dead.begin(id(8)).is_err() && dead.connect().is_err() && dead.listen().is_err()
                );
                assert_eq!(listener.accept().is_err(), !is_guest);
                let next = all.process();
                assert!(next.living().unwrap().is_empty());
                assert_eq!(next.connect().unwrap().is_some(), is_guest);
                let _next = next.listen().unwrap();
            }
        }
    }

    /// Rule of life: the end of a connection says nothing about the session, and a session nothing about a connection.
    #[test]
    fn connections_and_sessions_of_the_dead_end_in_either_order() {
        let Two { all, host, guest, to_guest, to_host, .. } = two();
        let session = begin(&guest, 7);
        all.kill_but_for_sessions(guest.number(), &mut |_| 0);
        drop((to_host, session));
        assert_eq!(to_guest.receive(&mut [0]), Received::End);
        assert!(host.lives(id(7)).unwrap() && host.begin(id(7)).unwrap().is_none());
        all.kill_but_for_connections(guest.number());
        assert!(!host.lives(id(7)).unwrap() && host.begin(id(7)).unwrap().is_some());

        let Two { all, host, guest, to_guest, to_host, .. } = two();
        let session = begin(&guest, 7);
        assert_eq!(to_host.send(b"x"), SendResult::Bytes(1));
        all.kill_but_for_connections(guest.number());
        drop((to_host, session));
        assert!(!host.lives(id(7)).unwrap());
        assert_eq!((receive(&*to_guest), receive(&*to_guest)), (b"x".to_vec(), Vec::new()));
        all.kill_but_for_sessions(guest.number(), &mut |_| 0);
        assert_eq!(to_guest.receive(&mut [0]), Received::End);
    }

    #[test]
    fn a_connection_breaks_while_both_live() {
        let Two { all, host, guest, listener, to_guest, to_host } = two();
        let other = guest.connect().unwrap().unwrap();
        let session = begin(&guest, 7);
        assert_eq!(
            (to_host.send(b"abc"), to_guest.send(b"def")),
            (SendResult::Bytes(3), SendResult::Bytes(3))
        );
        let third = all.process();
        all.disconnect(third.number(), host.number(), &mut |_| panic!("no such connection"));
        assert_eq!(to_host.receive(&mut [0]), Received::Bytes(1));
        let mut arriving = [2, 1, 0, 0].into_iter();
        all.disconnect(host.number(), guest.number(), &mut |_| arriving.next().unwrap());
        assert_eq!(
            (to_the_end(&*to_host), to_the_end(&*to_guest)),
            (b"ef".to_vec(), b"a".to_vec())
        );
        assert_eq!(to_the_end(&*other), b"");
        assert!(host.lives(id(7)).unwrap());
        let again = guest.connect().unwrap().unwrap();
        // The one that waited comes first, and has ended.
        assert_eq!(to_the_end(&*accept(&*listener)), b"");
        assert_eq!(
            (again.send(b"x"), receive(&*accept(&*listener))),
            (SendResult::Bytes(1), b"x".to_vec())
        );
        drop(session);
    }

    #[test]
    fn a_session_whose_byte_was_lost_lives_on_unless_it_was_taken() {
        let Two { all, host, guest, to_host, .. } = two();
        let (mut kept, mut lost) = (begin(&guest, 7), begin(&guest, 8));
        all.close_unknown(guest.number(), &mut |sent| sent);
        assert_eq!(to_host.receive(&mut [0]), Received::End);
        assert!(host.living().unwrap().is_empty());
        let taken = begin(&host, 8);
        assert!(kept.live_on().unwrap() && !lost.live_on().unwrap());
        drop(lost);
        assert!(host.lives(id(7)).unwrap() && host.lives(id(8)).unwrap());
        drop((kept, taken));
        assert!(host.living().unwrap().is_empty());
    }

    #[test]
    fn a_process_may_be_unable_to_host_or_to_accept() {
        let Two { all, host, guest, listener, .. } = two();
        let _waits = guest.connect().unwrap().unwrap();
        all.set_scarce(host.number(), true);
        assert!(matches!(listener.accept().unwrap(), Accepted::Scarce));
        all.set_scarce(host.number(), false);
        let _ = accept(&*listener);
        all.set_listen_fails(guest.number(), Some(Errno::NOSPC));
        let refused = guest.listen().unwrap_err();
        assert_eq!(Errno::from_io_error(&refused), Some(Errno::NOSPC));
        all.set_listen_fails(guest.number(), None);
        all.set_may_host(guest.number(), false);
        assert_eq!(guest.listen().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(!guest.may_host().unwrap() && host.may_host().unwrap());
        // The host keeps the name.
        assert!(guest.connect().unwrap().is_some());
        all.set_standing(Standing::Another);
        assert_eq!(host.standing().unwrap(), Standing::Another);
    }

    #[test]
    fn a_pipe_holds_as_much_as_it_is_made_to() {
        let Two { all, to_guest, to_host, .. } = two();
        all.set_pipe_bytes(5);
        assert_eq!(
            (to_host.send(b"abcdefg"), to_host.send(b"h")),
            (SendResult::Bytes(5), SendResult::Full)
        );
        assert_eq!(to_guest.receive(&mut [0; 2]), Received::Bytes(2));
        assert_eq!(
            (to_host.send(b"fgh"), to_host.send(b"h")),
            (SendResult::Bytes(2), SendResult::Full)
        );
        assert_eq!(receive(&*to_guest), b"cdefg");
    }
}
