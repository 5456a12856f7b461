//! The thread by which the host of a store serves its guests.
//!
//! One thread accepts, reads, begins calls and answers; the store's other threads write and sync, and do what a call waits for. A
//! call that needs neither is answered at once. The thread also asks which sessions live, and has the claims of the others
//! interrupted.
//!
//! Promises: no guest connects after the store's directory was unlocked. A guest that doesn't read, or sends nothing, delays no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::backend::Shared;
use crate::clock::nanos;
use crate::engine::KeptClaim;
use crate::limits;
use crate::neighbours::{
    self, Accepted, Connection, Interest, Listener, Neighbours, Notifier, Received, SendResult,
    Waitable,
};
use crate::processes::{LineId, Server};
use crate::sync::{self, AtomicBool, Mutex, Ordering};
use crate::types::SessionId;
use crate::{Error, ErrorKind, Result};

/// The guests of a store that this process hosts.
pub(crate) struct Guests {
    stops: Arc<AtomicBool>,
    notifier: Arc<dyn Notifier>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Guests {
    /// Serves guests from now on. `shared`: a view of the store, which doesn't keep it open. `kept`: the claims of living sessions.
    /// `files_max`: how many files this process may have open.
    pub(crate) fn serve(
        shared: Arc<Shared>,
        neighbours: Arc<dyn Neighbours>,
        listener: Box<dyn Listener>,
        kept: Vec<KeptClaim>,
        files_max: Option<u64>,
    ) -> Result<Self> {
        let dir = shared.embedded()?.dir();
        let stops = Arc::new(AtomicBool::new(false));
        let mut serving =
            HostLoop::new(shared, neighbours, listener, kept, files_max, Arc::clone(&stops))?;
        let notifier = Arc::clone(&serving.notifier);
        let thread = sync::spawn("onlyonce-host", move || serving.run())
            .map_err(|e| Error::io("starting the thread that serves guests for", &dir, e))?;
        Ok(Guests { stops, notifier, thread: Mutex::new(Some(thread)) })
    }

    /// Accepts no more guests, answers what can be answered, and ends all connections. Returns once the thread has done this.
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::SeqCst);
        self.notifier.notify();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread.filter(|thread| !sync::is_current(thread)) {
            // A join fails only if the thread panicked, and there is no caller to report that to.
            let _ = thread.join();
        }
    }
}

pub(super) struct HostLoop {
    shared: Arc<Shared>,
    pub(super) server: Server,
    neighbours: Arc<dyn Neighbours>,
    listener: Box<dyn Listener>,
    pub(super) notifier: Arc<dyn Notifier>,
    pub(super) lines: BTreeMap<LineId, Box<dyn Connection>>,
    /// The number of files that this process may have open. Guests take at most half of it.
    files_max: Option<u64>,
    stops: Arc<AtomicBool>,
    /// Until when no guest is accepted, for lack of descriptors.
    rests_until: u64,
    /// When the thread last asked which sessions live.
    pub(super) asked_at: u64,
}

impl HostLoop {
    pub(super) fn new(
        shared: Arc<Shared>,
        neighbours: Arc<dyn Neighbours>,
        listener: Box<dyn Listener>,
        kept: Vec<KeptClaim>,
        files_max: Option<u64>,
        stops: Arc<AtomicBool>,
    ) -> Result<Self> {
        let dir = shared.embedded()?.dir();
        let notifier = neighbours.notifier().map_err(|e| Error::io("waiting at", &dir, e))?;
        let told = Arc::clone(&notifier);
        let kept_by = Arc::clone(&shared);
        let server = Server::new(kept_by, std::process::id(), kept, move || told.notify());
        Ok(HostLoop {
            shared,
            server,
            neighbours,
            listener,
            notifier,
            lines: BTreeMap::new(),
            files_max,
            stops,
            rests_until: 0,
            asked_at: nanos(),
        })
    }

    fn run(&mut self) {
        let mut buf = vec![0; limits::GUEST_READ_BYTES];
        while !self.stops.load(Ordering::SeqCst) {
            self.wait(&mut buf);
            self.notifier.clear();
            self.server.go_on();
            self.server.end_late(nanos());
            self.send_all();
            self.ask_who_lives();
        }
        self.finish();
    }

    /// Accepts no more guests, answers what can be answered, and ends all connections.
    pub(super) fn finish(&mut self) {
        // Only the holder of the directory's lock touches the name.
        let _ = self.listener.unlink();
        let began = nanos();
        // Calls that have begun are answered for a while: guests ask the next host about the rest.
        while !self.server.is_idle() && nanos() - began < limits::HOST_ANSWERS_NANOS {
            let told = Interest { receive: true, send: false };
            let _ = neighbours::wait(&[(self.notifier.waitable(), told)], Some(limits::HOST_TICK));
            self.notifier.clear();
            self.server.go_on();
            self.send_all();
        }
        self.server.go();
        self.send_all();
        self.lines.values().for_each(|line| line.end());
        for line in std::mem::take(&mut self.lines).into_keys() {
            self.server.ended(line);
        }
    }

    /// Waits until there is something to do, and takes in what has come.
    fn wait(&mut self, buf: &mut [u8]) {
        let rests = nanos() < self.rests_until;
        let told = Interest { receive: true, send: false };
        let mut on: Vec<(&dyn Waitable, Interest)> = vec![(self.notifier.waitable(), told)];
        on.push((self.listener.waitable(), Interest { receive: !rests, send: false }));
        for (id, line) in &self.lines {
            let receive = !self.server.is_clogged(*id);
            let send = !self.server.to_send(*id).is_empty();
            on.push((line.waitable(), Interest { receive, send }));
        }
        let needs_tick = rests || !self.server.unconnected().is_empty();
        let timeout = match (needs_tick, self.server.may_be_late()) {
            (true, _) => Some(limits::HOST_TICK),
            (false, true) => Some(limits::GUEST_WAIT),
            (false, false) => None,
        };
        let Ok(ready) = neighbours::wait(&on, timeout) else {
            return sync::yield_now();
        };
        let readable: Vec<LineId> = self
            .lines
            .keys()
            .zip(ready.iter().skip(2))
            .filter(|(_, ready)| ready.receive)
            .map(|(id, _)| *id)
            .collect();
        if ready.get(1).is_some_and(|ready| ready.receive) {
            self.accept();
        }
        for id in readable {
            self.read(id, buf);
        }
    }

    pub(super) fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok(Accepted::Guest(connection)) => {
                    let id = self.server.connected(nanos());
                    if let Some(files) = self.files_max.filter(|files| self.takes_half(*files)) {
                        self.server.refuse(id, self.too_many(files));
                    }
                    self.lines.insert(id, connection);
                }
                Ok(Accepted::Nobody) => return,
                Ok(Accepted::Scarce) | Err(_) => {
                    self.rests_until = nanos() + limits::ACCEPT_RESTS_NANOS;
                    return;
                }
            }
        }
    }

    fn takes_half(&self, files: u64) -> bool {
        self.lines.len() as u64 >= files / 2
    }

    fn too_many(&self, files: u64) -> Error {
        let message = format!(
            "process {} hosts the store and has {} guests, which takes half of the {files} files that it may have open: raise the \
             limit of that process (`ulimit -n`), or close stores that nobody uses",
            std::process::id(),
            self.lines.len()
        );
        Error::new(ErrorKind::Locked, message)
    }

    /// Poisons the store if its directory is no longer at its path, or the file of sessions was replaced. A guest that joins may have
    /// come by another path.
    fn check_standing(&self) {
        // If this can't be checked now, it is checked before the next switch of the manifest.
        let Ok(sessions) = self.neighbours.standing() else { return };
        if let Ok(embedded) = self.shared.embedded() {
            let _ = embedded.check_standing(sessions);
        }
    }

    pub(super) fn read(&mut self, id: LineId, buf: &mut [u8]) {
        // One read a round, so that a guest that sends without end delays no other.
        let Some(line) = self.lines.get(&id) else { return };
        match line.receive(buf) {
            Received::Bytes(bytes) => {
                let had_joined = self.server.has_joined(id);
                self.server.received(id, buf.get(..bytes).unwrap_or_default(), nanos());
                if !had_joined && self.server.has_joined(id) {
                    // The guest has begun its session, so the file of sessions exists. The welcome is not sent yet.
                    self.check_standing();
                }
            }
            Received::Nothing => {}
            Received::End => {
                self.lines.remove(&id);
                self.server.ended(id);
                // The guest's process may have ended.
                self.asked_at = 0;
            }
        }
    }

    pub(super) fn send_all(&mut self) {
        let mut over = Vec::new();
        for (id, line) in &self.lines {
            while !self.server.to_send(*id).is_empty() {
                match line.send(self.server.to_send(*id)) {
                    SendResult::Bytes(bytes) => self.server.drained(*id, bytes, nanos()),
                    // A read finds the end of the connection.
                    SendResult::Full | SendResult::Gone => break,
                }
            }
            if self.server.is_over(*id) {
                over.push(*id);
            }
        }
        for id in over {
            if let Some(line) = self.lines.remove(&id) {
                line.end();
            }
            self.server.ended(id);
        }
    }

    /// Interrupts the claims of sessions that have no connection and don't live any more.
    pub(super) fn ask_who_lives(&mut self) {
        let unconnected = self.server.unconnected();
        let is_due = nanos() - self.asked_at >= limits::HOST_TICK_NANOS;
        if unconnected.is_empty() || !is_due {
            return;
        }
        self.asked_at = nanos();
        for session in unconnected {
            if self.has_ended(session) {
                self.server.died(session);
            }
        }
    }

    fn has_ended(&self, session: SessionId) -> bool {
        // If the answer can't be known now, the next tick asks again.
        self.neighbours.lives(session).is_ok_and(|lives| !lives)
    }
}
