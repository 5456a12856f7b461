//! A store that another process hosts, as this process uses it: the connection, which thread reads from it, and what happens when the
//! host ends.
//!
//! A thread that waits for an answer reads for all callers. A thread of its own is started only for tasks, and for calls that no thread
//! waits for. When the connection ends, the next reader looks for another host, and this process becomes the host if there is none.
//! From then on calls go to the engine in this process.
//!
//! Promises: a call in flight when the host ends is answered as if the host had not ended, or `Indeterminate`. The claims of this process
//! live on. Never: decides about a key.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use crate::admin::{Estimate, Health, Hosted, Hosting, KeyPage, Listing, Stats, Verification};
use crate::backend::{Ask, Backend, InFlight, Reply, Request, Sent, Shared, Terms, send};
use crate::claim::shown;
use crate::clock::{nanos, wall_when};
use crate::engine::{BackedUp, Compacted};
use crate::limits;
use crate::neighbours::{self, Connection, Interest, Neighbours, Notifier, Received, Session};
use crate::operation::Key;
use crate::processes::{
    ClaimTerms, ErrandReply, FromGuest, HostErrand, HostTold, News, Question, Requests, Welcome,
    put_frame, refused, run_errand,
};
use crate::protocol::{Answer, Call};
use crate::storage::{Standing, fork};
use crate::sync::{self, AtomicBool, AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering, WakeWord};
use crate::types::{Origin, Token};
use crate::{Error, ErrorKind, Result};

/// Opens the store as its host. `None`: another process hosts it, or is about to.
pub(crate) type OpenAsHost = Box<dyn Fn() -> Result<Option<Arc<Shared>>> + Send + Sync>;

/// A store that another process hosts. Dropping it leaves the host.
pub(crate) struct Guest {
    core: Arc<Core>,
}

struct Core {
    dir: PathBuf,
    neighbours: Arc<dyn Neighbours>,
    /// Lives as long as this opening.
    session: Mutex<Box<dyn Session>>,
    host: OpenAsHost,
    draw: Box<dyn Fn() -> u64 + Send + Sync>,
    secret: [u8; 32],
    result_bytes_max: AtomicU32,
    /// When the host was heard last, by [`nanos`].
    heard_at: AtomicU64,
    state: Mutex<GuestState>,
    /// What the thread that reads for tasks sleeps on.
    thread_word: WakeWord,
    has_thread: Mutex<bool>,
    is_draining: AtomicBool,
    /// No handle is left.
    is_over: AtomicBool,
    generation: u32,
}

struct GuestState {
    role: Role,
    requests: Requests,
    /// A thread reads, or looks for a host.
    is_driven: bool,
    /// How many hosts in a row died within a second after this process had joined them.
    short_lived: u32,
    joined_at: u64,
    /// Since when there is no host.
    apart_since: u64,
    /// The process that hosts the store, or did so last.
    host: u32,
    /// The request for the host's health that the host has not answered in time.
    probe: Option<u64>,
}

enum Role {
    Joined(Arc<HostLine>),
    /// The host has gone.
    Apart,
    Host(Arc<Shared>),
    Over(Error),
}

/// The connection to a host, and what wakes the thread that reads from it.
struct HostLine {
    connection: Box<dyn Connection>,
    notifier: Arc<dyn Notifier>,
}

/// What a process joins with.
pub(crate) struct Joiner {
    pub(crate) dir: PathBuf,
    pub(crate) neighbours: Arc<dyn Neighbours>,
    pub(crate) session: Box<dyn Session>,
    pub(crate) host: OpenAsHost,
    pub(crate) draw: Box<dyn Fn() -> u64 + Send + Sync>,
    pub(crate) result_bytes_max: u32,
}

impl Guest {
    /// Joins the host at the other end of a connection.
    pub(crate) fn join(joiner: Joiner, connection: Box<dyn Connection>) -> Result<Self> {
        let Joiner { dir, neighbours, session, host, draw, result_bytes_max } = joiner;
        let notifier = neighbours.notifier().map_err(|e| Error::io("waiting at", &dir, e))?;
        let line = HostLine { connection, notifier };
        let mut requests = Requests::new(session.id(), std::process::id(), result_bytes_max);
        let began = nanos();
        requests.connected();
        let welcome = welcomed(&mut requests, &*line.connection, &dir, |waited| {
            waited < limits::WELCOME_NANOS_MAX
        })?;
        let state = GuestState {
            role: Role::Joined(Arc::new(line)),
            requests,
            is_driven: false,
            short_lived: 0,
            joined_at: began,
            apart_since: began,
            host: welcome.pid,
            probe: None,
        };
        Ok(Guest {
            core: Arc::new(Core {
                dir,
                neighbours,
                session: Mutex::new(session),
                host,
                draw,
                secret: welcome.secret.0,
                result_bytes_max: AtomicU32::new(welcome.result_bytes_max),
                heard_at: AtomicU64::new(nanos()),
                state: Mutex::new(state),
                thread_word: WakeWord::new(),
                has_thread: Mutex::new(false),
                is_draining: AtomicBool::new(false),
                is_over: AtomicBool::new(false),
                generation: fork::generation(),
            }),
        })
    }

    /// Makes the operators' calls.
    pub(crate) fn operator(&self) -> Arc<dyn Hosted> {
        Arc::new(GuestOperator(Arc::clone(&self.core)))
    }
}

/// Sends the first frames, and waits until the host answers. `may_wait`: whether to go on after a wait of so many nanoseconds.
fn welcomed(
    requests: &mut Requests,
    connection: &dyn Connection,
    dir: &Path,
    may_wait: impl Fn(u64) -> bool,
) -> Result<Welcome> {
    let gone = || {
        let message = "the process that hosts the store has gone";
        Error::new(ErrorKind::Locked, message).at(dir)
    };
    let began = nanos();
    let mut buf = vec![0; limits::GUEST_READ_BYTES];
    loop {
        while !requests.to_send().is_empty() {
            match connection.send(requests.to_send()) {
                neighbours::SendResult::Bytes(bytes) => requests.was_sent(bytes),
                neighbours::SendResult::Full => break,
                // Frames that the host sent before may say why.
                neighbours::SendResult::Gone => break,
            }
        }
        match connection.receive(&mut buf) {
            Received::Bytes(bytes) => {
                match requests.received(buf.get(..bytes).unwrap_or_default()) {
                    News::Welcome(welcome) => return Ok(welcome),
                    News::Refused(error) => return Err(error),
                    News::Over => return Err(gone()),
                    News::Nothing => continue,
                }
            }
            Received::End => return Err(gone()),
            Received::Nothing => {}
        }
        if !may_wait(nanos() - began) {
            let message = format!(
                "process {} hosts the store and has not answered for {} ms: it is stopped, or waits for its disk",
                connection.peer(),
                (nanos() - began) / 1_000_000
            );
            return Err(Error::new(ErrorKind::Locked, message).at(dir));
        }
        let interest = Interest { receive: true, send: !requests.to_send().is_empty() };
        let waited =
            neighbours::wait(&[(connection.waitable(), interest)], Some(Duration::from_millis(20)));
        waited.map_err(|e| Error::io("waiting at", dir, e))?;
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, GuestState> {
        self.state.lock()
    }

    fn is_foreign(&self) -> bool {
        self.generation != fork::generation()
    }

    fn forked(&self) -> Error {
        let message = "this process is a fork of the one that opened the store: open it here";
        Error::new(ErrorKind::Forked, message).at(&self.dir)
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "the store was closed: open it again").at(&self.dir)
    }

    /// Sends what can be sent without waiting.
    fn push(&self, state: &mut GuestState) {
        let Role::Joined(line) = &state.role else { return };
        state.requests.flush();
        while !state.requests.to_send().is_empty() {
            match line.connection.send(state.requests.to_send()) {
                neighbours::SendResult::Bytes(bytes) => state.requests.was_sent(bytes),
                // The thread that reads sends the rest.
                neighbours::SendResult::Full => {
                    line.notifier.notify();
                    break;
                }
                // The host's last answers are read before the end of the connection counts.
                neighbours::SendResult::Gone => break,
            }
        }
    }

    /// Reads answers for all callers, and looks for another host when this one ends, until request `until` is answered, or
    /// [`nanos`] is `deadline`. `until` is `None` for the thread that reads for tasks: it reads while tasks wait and no thread does. The
    /// caller has set `is_driven`.
    fn drive(self: &Arc<Self>, until: Option<u64>, deadline: Option<u64>) {
        let mut buf = vec![0; limits::GUEST_READ_BYTES];
        while self.drive_once(until, deadline, &mut buf) {}
    }

    /// One step of [`drive`](Self::drive): sends what can be sent, and waits for bytes once, or looks for a host once. Returns whether
    /// another step is due; if not, another reader may begin.
    fn drive_once(
        self: &Arc<Self>,
        until: Option<u64>,
        deadline: Option<u64>,
        buf: &mut [u8],
    ) -> bool {
        let mut state = self.lock();
        let is_done = match until {
            _ if is_past(deadline) => true,
            Some(number) => state.requests.is_told(number),
            None => !state.requests.needs_reader() || state.requests.another_thread(None).is_some(),
        };
        let line = match &state.role {
            Role::Host(_) | Role::Over(_) => None,
            _ if is_done => None,
            Role::Joined(line) => Some(Some(Arc::clone(line))),
            Role::Apart => Some(None),
        };
        let Some(line) = line else {
            state.is_driven = false;
            self.pass_on(&mut state, until);
            return false;
        };
        let Some(line) = line else {
            self.end_waits(&mut state);
            drop(state);
            self.search(deadline);
            return true;
        };
        self.push(&mut state);
        let send = !state.requests.to_send().is_empty();
        drop(state);
        match self.receive(&line, buf, send, deadline) {
            Received::Bytes(bytes) => {
                self.heard_at.store(nanos(), Ordering::Relaxed);
                let mut state = self.lock();
                state.requests.pass_to(nanos());
                let news = state.requests.received(buf.get(..bytes).unwrap_or_default());
                if matches!(news, News::Over | News::Refused(_)) {
                    self.lose(&mut state);
                }
            }
            Received::Nothing => self.end_waits(&mut self.lock()),
            Received::End => self.lose(&mut self.lock()),
        }
        true
    }

    /// Ends the waits of callers whose time for their key is up while the host is silent.
    fn end_waits(&self, state: &mut GuestState) {
        state.requests.pass_to(nanos());
        let (heard_at, host) = (self.heard_at.load(Ordering::Relaxed), state.host);
        state.requests.end_waits(heard_at, || self.silent(host));
    }

    /// Waits for bytes, or for work that another thread has left. Stays awake for a short while, because most answers come soon.
    fn receive(
        &self,
        line: &HostLine,
        buf: &mut [u8],
        send: bool,
        deadline: Option<u64>,
    ) -> Received {
        let HostLine { connection, notifier } = line;
        let began = nanos();
        loop {
            match connection.receive(buf) {
                Received::Nothing => {}
                received => return received,
            }
            if send || nanos() - began > limits::GUEST_AWAKE_NANOS {
                break;
            }
            sync::yield_now();
        }
        let interest = Interest { receive: true, send };
        let told = Interest { receive: true, send: false };
        let on = [(connection.waitable(), interest), (notifier.waitable(), told)];
        let left = deadline.map(|deadline| Duration::from_nanos(deadline.saturating_sub(nanos())));
        let longest = left.unwrap_or(limits::GUEST_WAIT).min(limits::GUEST_WAIT);
        match neighbours::wait(&on, Some(longest)) {
            // The wait itself failed: other threads run before the next try.
            Err(_) => sync::yield_now(),
            Ok(_) => notifier.clear(),
        }
        connection.receive(buf)
    }

    /// Lets another thread that waits read from now on, or the thread for tasks.
    fn pass_on(self: &Arc<Self>, state: &mut GuestState, than: Option<u64>) {
        if let Some(word) = state.requests.another_thread(than) {
            word.wake_all();
        } else if state.requests.needs_reader() {
            self.start_thread();
        }
    }

    /// Notes that the connection has ended.
    fn lose(&self, state: &mut GuestState) {
        if !matches!(state.role, Role::Joined(_)) {
            return;
        }
        state.role = Role::Apart;
        state.apart_since = nanos();
        let has_closed = state.requests.disconnected();
        match !has_closed && nanos() - state.joined_at < limits::HOST_LIFE_LEAST_NANOS {
            true => state.short_lived += 1,
            false => state.short_lived = 0,
        }
    }

    /// Joins another host, or makes this process the host. Returns once this is done, or after a rest for the next try.
    fn search(self: &Arc<Self>, deadline: Option<u64>) {
        // A program that becomes a daemon closes its descriptors, and its session ends with them.
        match self.session.lock().live_on() {
            Ok(true) => {}
            Ok(false) => return self.end(&mut self.lock(), self.session_is_over()),
            Err(_) => return self.rest(),
        }
        if let Ok(Some(connection)) = self.neighbours.connect() {
            // A new one each time: the last one may have been closed with other descriptors.
            let Ok(notifier) = self.neighbours.notifier() else { return self.rest() };
            let line = HostLine { connection, notifier };
            {
                let mut state = self.lock();
                state.requests.pass_to(nanos());
                state.requests.connected();
            }
            let joined = self.join_again(&line, deadline);
            let mut state = self.lock();
            match joined {
                Ok(Some(welcome)) => {
                    self.result_bytes_max.fetch_max(welcome.result_bytes_max, Ordering::Relaxed);
                    state.role = Role::Joined(Arc::new(line));
                    if welcome.pid == state.host && welcome.pid != 0 {
                        // It was the connection that ended, not its host.
                        state.short_lived = state.short_lived.saturating_sub(1);
                    }
                    state.host = welcome.pid;
                    state.joined_at = nanos();
                    self.heard_at.store(nanos(), Ordering::Relaxed);
                    self.push(&mut state);
                    return;
                }
                Err(e) if e.kind() != ErrorKind::Locked => {
                    let _ = state.requests.disconnected();
                    return self.end(&mut state, e);
                }
                Err(refused) => {
                    let _ = state.requests.disconnected();
                    // Another guest may leave soon, so later calls try again.
                    if nanos() - state.apart_since > limits::REFUSED_NANOS_MAX {
                        state.requests.refuse_waiting(&refused.at(&self.dir));
                    }
                }
                Ok(None) => {
                    let _ = state.requests.disconnected();
                }
            }
        }
        let may_host = self.lock().short_lived < limits::HOSTS_SEEN_DIE;
        match may_host.then(|| (self.host)()) {
            Some(Ok(Some(shared))) => return self.become_host(shared),
            // No other process could open the store either, and a reader opens none.
            Some(Err(e)) if self.is_final(e.kind()) => return self.end(&mut self.lock(), e),
            // Another process is about to host, or the cause may pass.
            Some(Ok(None) | Err(_)) | None => {}
        }
        let is_entitled = self.neighbours.may_host().unwrap_or(true);
        let mut state = self.lock();
        let is_over = nanos() - state.apart_since > limits::WELCOME_NANOS_MAX;
        if is_over && !(may_host && is_entitled) {
            let message = match is_entitled {
                true => format!(
                    "{} processes that hosted the store have ended within a second, one after the other, so this one doesn't try; \
                     nobody else has for 10 s: find out what ends them, and open the store again",
                    state.short_lived
                ),
                false => "the process that hosted the store has gone, and this one may not: the directory belongs to another user, \
                          no process of which has for 10 s: start one, and open the store again"
                    .to_owned(),
            };
            let error = Error::new(ErrorKind::Locked, message).at(&self.dir);
            return self.end(&mut state, error);
        }
        drop(state);
        self.rest();
    }

    /// Whether an open that fails so would fail later, too.
    fn is_final(&self, kind: ErrorKind) -> bool {
        match kind {
            ErrorKind::Corrupt | ErrorKind::Incompatible | ErrorKind::Superseded => true,
            // The next open recovers what a failing disk has left, unless another directory is at the path by now.
            ErrorKind::Poisoned => !matches!(self.neighbours.standing(), Ok(Standing::Here)),
            _ => false,
        }
    }

    /// Waits a random time of some milliseconds, so that other processes go first.
    fn rest(&self) {
        let pause = WakeWord::new();
        pause.wait(pause.read(), Some(1 + (self.draw)() % limits::LOCK_TRY_MILLIS_MAX));
    }

    /// Answers all calls of this opening with that error from now on, those that wait included.
    fn end(&self, state: &mut GuestState, error: Error) {
        state.requests.end(&error);
        state.role = Role::Over(error);
        state.requests.wake_all();
    }

    /// The error of an opening whose session has ended though its process lives.
    fn session_is_over(&self) -> Error {
        let message = format!(
            "the file by which the processes at {} know each other was removed or replaced: this process has lost its claims; close \
             this store, and open it again",
            self.dir.display()
        );
        Error::new(ErrorKind::ClaimLost, message).at(&self.dir)
    }

    /// Joins as the first time, but holds the lock of the state only for moments, so that other threads can make calls meanwhile. `Err`:
    /// the host takes no guest, or not this one. `None`: the host has ended, or the deadline has passed.
    fn join_again(&self, line: &HostLine, deadline: Option<u64>) -> Result<Option<Welcome>> {
        let mut buf = vec![0; limits::GUEST_READ_BYTES];
        loop {
            let send = {
                let mut state = self.lock();
                while !state.requests.to_send().is_empty() {
                    match line.connection.send(state.requests.to_send()) {
                        neighbours::SendResult::Bytes(bytes) => state.requests.was_sent(bytes),
                        neighbours::SendResult::Full | neighbours::SendResult::Gone => break,
                    }
                }
                !state.requests.to_send().is_empty()
            };
            match self.receive(line, &mut buf, send, deadline) {
                Received::Bytes(bytes) => {
                    let bytes = buf.get(..bytes).unwrap_or_default();
                    match self.lock().requests.received(bytes) {
                        News::Welcome(welcome) => return Ok(Some(welcome)),
                        News::Refused(error) => return Err(error),
                        News::Over => return Ok(None),
                        News::Nothing => {}
                    }
                }
                Received::End => return Ok(None),
                Received::Nothing if is_past(deadline) => return Ok(None),
                Received::Nothing => self.end_waits(&mut self.lock()),
            }
        }
    }

    /// Makes this process the host from now on. Requests that no caller waits for are made first.
    fn become_host(self: &Arc<Self>, shared: Arc<Shared>) {
        let (left, attached, leases) = {
            let mut state = self.lock();
            state.requests.pass_to(nanos());
            (state.requests.take_left(), state.requests.attached(), state.requests.leases_left())
        };
        if let Ok(engine) = shared.embedded() {
            for (key, token, left) in leases {
                let _ = engine.keep_lease(&key, token, left);
            }
        }
        for (key, token) in attached {
            let ask = Ask::Call(Call::Attach(token), Box::default());
            let request = self.lock().requests.as_own(Request { key, ask });
            let _ = send(&shared, request).wait();
        }
        for question in left {
            match question {
                // After the drop, an ending goes on, and a grant is withdrawn.
                Question::Call(request) => drop(send(&shared, request)),
                Question::Errand(what) => drop(run_errand(&shared, what, usize::MAX)),
            }
        }
        let mut state = self.lock();
        state.role = Role::Host(shared);
        state.requests.wake_all();
    }

    /// Starts the thread that reads for tasks, or wakes it. Returns whether there is one.
    fn start_thread(self: &Arc<Self>) -> bool {
        let mut has_thread = self.has_thread.lock();
        if !*has_thread {
            let core = Arc::clone(self);
            // If no thread can be started, the next call tries again.
            *has_thread = sync::spawn("onlyonce-guest", move || core.run_thread()).is_ok();
        }
        let is_there = *has_thread;
        drop(has_thread);
        self.thread_word.wake_all();
        is_there
    }

    fn run_thread(self: &Arc<Self>) {
        loop {
            let seen = self.thread_word.read();
            {
                let mut state = self.lock();
                let is_at_end = matches!(state.role, Role::Host(_) | Role::Over(_));
                if self.is_over.load(Ordering::SeqCst) && (is_at_end || !state.requests.has_open())
                {
                    return;
                }
                let is_needed = !state.is_driven
                    && !is_at_end
                    && state.requests.needs_reader()
                    && state.requests.another_thread(None).is_none();
                if is_needed {
                    state.is_driven = true;
                    drop(state);
                    self.drive(None, None);
                    continue;
                }
            }
            self.thread_word.wait(seen, None);
        }
    }

    /// Has the host do an errand, or does it here if this process hosts the store.
    fn ask(self: &Arc<Self>, what: HostErrand) -> Result<ErrandReply> {
        match self.begin_errand(what)? {
            BegunErrand::Host(shared, what) => run_errand(&shared, what, usize::MAX),
            BegunErrand::Number(number) => self.errand_told(self.wait_for(number, None)),
        }
    }

    fn begin_errand(self: &Arc<Self>, what: HostErrand) -> Result<BegunErrand> {
        if self.is_foreign() {
            return Err(self.forked());
        }
        let mut state = self.lock();
        match &state.role {
            Role::Over(e) => return Err(not_of_owner(e)),
            Role::Host(shared) => return Ok(BegunErrand::Host(Arc::clone(shared), what)),
            Role::Joined(_) | Role::Apart => {}
        }
        let number = state.requests.ask(Question::Errand(what))?;
        self.push(&mut state);
        Ok(BegunErrand::Number(number))
    }

    fn errand_told(&self, waited: Waited) -> Result<ErrandReply> {
        match waited {
            Waited::Told(HostTold::Errand(told)) => told,
            Waited::Over(e) => Err(e),
            Waited::Host(shared, Question::Errand(what)) => run_errand(&shared, what, usize::MAX),
            Waited::Late => Err(self.silent(self.lock().host)),
            Waited::Host(_, Question::Call(_)) | Waited::Told(HostTold::Reply(_)) => Err(taken()),
        }
    }

    /// Asks the host for its health, which a host answers at once. `None`: the host is silent.
    fn probe(self: &Arc<Self>, reserve_bytes: u32) -> Result<Option<ErrandReply>> {
        {
            let state = self.lock();
            // No second request until the host has answered the first.
            if state.probe.is_some_and(|probe| !state.requests.is_told(probe)) {
                return Ok(None);
            }
        }
        let number = match self.begin_errand(HostErrand::Health { reserve_bytes })? {
            BegunErrand::Host(shared, what) => {
                return run_errand(&shared, what, usize::MAX).map(Some);
            }
            BegunErrand::Number(number) => number,
        };
        match self.wait_for(number, Some(nanos() + limits::HOST_SILENT_NANOS)) {
            Waited::Late => {
                let mut state = self.lock();
                state.requests.leave(number);
                state.probe = Some(number);
                Ok(None)
            }
            waited => self.errand_told(waited).map(Some),
        }
    }

    /// Returns the host's process, and when it was last heard.
    fn heard_last(&self) -> (u32, SystemTime) {
        let heard = wall_when(self.heard_at.load(Ordering::Relaxed));
        (self.lock().host, shown(heard))
    }

    fn silent(&self, host: u32) -> Error {
        let millis = nanos().saturating_sub(self.heard_at.load(Ordering::Relaxed)) / 1_000_000;
        let message = format!(
            "process {host} hosts the store, and was heard last {millis} ms ago: it is stopped, or waits for its disk"
        );
        Error::new(ErrorKind::InProgress, message).at(&self.dir)
    }

    fn wait_for(self: &Arc<Self>, number: u64, deadline: Option<u64>) -> Waited {
        loop {
            let mut state = self.lock();
            if let Some(told) = state.requests.take(number) {
                return Waited::Told(told);
            }
            match &state.role {
                Role::Over(e) => return Waited::Over(e.again()),
                Role::Host(shared) => {
                    let shared = Arc::clone(shared);
                    return match state.requests.take_open(number) {
                        Some(question) => Waited::Host(shared, question),
                        None => Waited::Over(taken()),
                    };
                }
                Role::Joined(_) | Role::Apart => {}
            }
            if is_past(deadline) {
                state.requests.wait_later(number);
                // This thread may have been asked to read for the others.
                if !state.is_driven {
                    self.pass_on(&mut state, Some(number));
                }
                return Waited::Late;
            }
            let Some(word) = state.requests.sleep_on(number) else {
                return Waited::Over(taken());
            };
            if !state.is_driven {
                state.is_driven = true;
                drop(state);
                self.drive(Some(number), deadline);
                continue;
            }
            let seen = word.read();
            drop(state);
            let left = deadline.map(|deadline| deadline.saturating_sub(nanos()) / 1_000_000 + 1);
            word.wait(seen, left);
        }
    }

    /// Waits until no request is open, or so many milliseconds have passed.
    fn settle(self: &Arc<Self>, millis: u64) {
        let began = nanos();
        let word = WakeWord::new();
        loop {
            {
                let state = self.lock();
                let is_at_end = matches!(state.role, Role::Host(_) | Role::Over(_));
                let has_time = (nanos() - began) / 1_000_000 < millis;
                if is_at_end || !state.requests.has_open() || !has_time {
                    return;
                }
            }
            self.start_thread();
            word.wait(word.read(), Some(1));
        }
    }

    /// Leaves the host, or closes the store that this process hosts.
    fn leave(self: &Arc<Self>, deadline: Duration) -> Result<Vec<InFlight>> {
        let role = {
            let mut state = self.lock();
            std::mem::replace(&mut state.role, Role::Over(self.closed()))
        };
        let left = match role {
            Role::Host(shared) => shared.close(deadline),
            Role::Joined(line) => {
                let mut bytes = Vec::new();
                if put_frame(&FromGuest::Leave, u32::MAX, &mut bytes).is_ok() {
                    let _ = line.connection.send(&bytes);
                }
                line.connection.end();
                line.notifier.notify();
                Ok(Vec::new())
            }
            Role::Apart => Ok(Vec::new()),
            Role::Over(e) => Err(not_of_owner(&e)),
        };
        self.lock().requests.wake_all();
        self.is_over.store(true, Ordering::SeqCst);
        self.thread_word.wake_all();
        left
    }
}

fn is_past(deadline: Option<u64>) -> bool {
    deadline.is_some_and(|deadline| nanos() >= deadline)
}

/// The error of a call that is no owner's.
fn not_of_owner(why: &Error) -> Error {
    refused(why, &Question::Errand(HostErrand::Sync))
}

fn taken() -> Error {
    Error::invalid("the answer of this call was taken already")
}

/// An errand that was begun.
enum BegunErrand {
    /// This process hosts the store.
    Host(Arc<Shared>, HostErrand),
    Number(u64),
}

/// How a wait for a host ended.
enum Waited {
    Told(HostTold),
    /// This process hosts the store by now.
    Host(Arc<Shared>, Question),
    Over(Error),
    /// The host has not answered in time.
    Late,
}

/// A call that was sent to the host.
struct SentToHost {
    core: Arc<Core>,
    /// `None`: its answer was taken, or this process makes it itself.
    number: Option<u64>,
    own: Option<Own>,
}

/// A call on the engine in this process.
struct Own {
    shared: Arc<Shared>,
    sent: Box<dyn Sent>,
    key: Key<'static>,
    call: Option<(Call, ClaimTerms)>,
    origin: Option<Origin>,
}

impl Own {
    fn begin(shared: &Arc<Shared>, request: Request) -> Self {
        let key = request.key.clone();
        let (call, origin) = match &request.ask {
            Ask::Call(call, terms) => (Some((*call, ClaimTerms::of(terms))), terms.origin()),
            _ => (None, None),
        };
        Own { shared: Arc::clone(shared), sent: send(shared, request), key, call, origin }
    }

    fn wait(self, core: &Core) -> Result<Reply> {
        let Own { shared, sent, key, call, origin } = self;
        let told = sent.wait();
        Own::noted(core, &shared, &key, call, origin, &told);
        told
    }

    fn noted(
        core: &Core,
        shared: &Arc<Shared>,
        key: &Key<'static>,
        call: Option<(Call, ClaimTerms)>,
        origin: Option<Origin>,
        told: &Result<Reply>,
    ) {
        let Some((call, asked)) = call else { return };
        match told {
            Ok(reply) => {
                let mut state = core.lock();
                state.requests.pass_to(nanos());
                state.requests.note(key, call, asked, reply);
            }
            // The previous host may have granted the claim, which then has no owner.
            Err(e) if e.kind() == ErrorKind::Indeterminate && call.may_grant() => {
                if let Some(call) = origin {
                    let _ = run_errand(shared, HostErrand::Disown { key: key.clone(), call }, 0);
                }
            }
            Err(_) => {}
        }
    }
}

impl SentToHost {
    /// Waits for the reply. If another process makes the call, waits until [`nanos`] is `deadline`.
    fn wait_until(mut self, deadline: Option<u64>) -> Result<Reply> {
        let core = Arc::clone(&self.core);
        if core.is_foreign() {
            return Err(core.forked());
        }
        if let Some(number) = self.number.take() {
            match core.wait_for(number, deadline) {
                Waited::Told(HostTold::Reply(told)) => return *told,
                Waited::Told(HostTold::Errand(_)) => return Err(taken()),
                Waited::Over(e) => return Err(e),
                Waited::Late => {
                    // It goes on.
                    self.number = Some(number);
                    let host = core.lock().host;
                    return Err(core.silent(host));
                }
                Waited::Host(shared, Question::Call(request)) => {
                    self.own = Some(Own::begin(&shared, request));
                }
                Waited::Host(_, Question::Errand(_)) => return Err(taken()),
            }
        }
        self.own.take().map_or_else(|| Err(taken()), |own| own.wait(&core))
    }
}

impl Sent for SentToHost {
    fn wait(self: Box<Self>) -> Result<Reply> {
        self.wait_until(None)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Reply>> {
        let core = Arc::clone(&self.core);
        if core.is_foreign() {
            return Poll::Ready(Err(core.forked()));
        }
        if let Some(number) = self.number {
            let mut state = core.lock();
            if let Some(told) = state.requests.take(number) {
                self.number = None;
                return Poll::Ready(match told {
                    HostTold::Reply(told) => *told,
                    HostTold::Errand(_) => Err(taken()),
                });
            }
            let shared = match &state.role {
                Role::Over(e) => {
                    self.number = None;
                    return Poll::Ready(Err(e.again()));
                }
                Role::Host(shared) => Arc::clone(shared),
                Role::Joined(_) | Role::Apart => {
                    if !state.requests.set_waker(number, context.waker()) {
                        return Poll::Ready(Err(taken()));
                    }
                    if !state.is_driven && !core.start_thread() {
                        // If no thread can be started, the caller reads for a moment itself: another task may have to run first.
                        state.is_driven = true;
                        drop(state);
                        core.drive(Some(number), Some(nanos() + limits::HOST_TICK_NANOS));
                        context.waker().wake_by_ref();
                    }
                    return Poll::Pending;
                }
            };
            self.number = None;
            let Some(Question::Call(request)) = state.requests.take_open(number) else {
                return Poll::Ready(Err(taken()));
            };
            drop(state);
            self.own = Some(Own::begin(&shared, request));
        }
        let Some(own) = &mut self.own else { return Poll::Ready(Err(taken())) };
        let Poll::Ready(told) = own.sent.poll(context) else { return Poll::Pending };
        if let Some(Own { shared, key, call, origin, .. }) = self.own.take() {
            Own::noted(&core, &shared, &key, call, origin, &told);
        }
        Poll::Ready(told)
    }
}

impl Drop for SentToHost {
    fn drop(&mut self) {
        if self.core.is_foreign() {
            return;
        }
        if let Some(number) = self.number.take() {
            let mut state = self.core.lock();
            if let Role::Host(shared) = &state.role {
                let shared = Arc::clone(shared);
                if let Some(Question::Call(request)) = state.requests.take_open(number) {
                    drop(state);
                    drop(send(&shared, request));
                }
                return;
            }
            state.requests.leave(number);
            self.core.push(&mut state);
            if state.requests.needs_reader() && !state.is_driven {
                self.core.start_thread();
            }
        }
        if let Some(Own { key, call, .. }) = &self.own {
            // A grant is withdrawn, and an ending goes on.
            if let Some(token) = call.and_then(|(call, _)| call.ends()) {
                let _ = (key, token);
                self.core.lock().requests.let_go(token);
            }
        }
    }
}

/// A call that was not made.
struct NotSent(Option<Error>);

impl Sent for NotSent {
    fn wait(mut self: Box<Self>) -> Result<Reply> {
        Err(self.0.take().unwrap_or_else(taken))
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<Result<Reply>> {
        Poll::Ready(Err(self.0.take().unwrap_or_else(taken)))
    }
}

impl Guest {
    /// Begins a call.
    fn begin(&self, request: Request) -> Result<SentToHost> {
        let core = &self.core;
        if core.is_foreign() {
            return Err(core.forked());
        }
        let begins = matches!(&request.ask, Ask::Call(Call::Claim(_) | Call::Record { .. }, _));
        if begins && core.is_draining.load(Ordering::SeqCst) {
            let message = "the store is draining: it takes no new claims";
            return Err(Error::new(ErrorKind::Closed, message).at(&core.dir));
        }
        let mut state = core.lock();
        let (number, own) = match &state.role {
            Role::Over(e) => return Err(refused(e, &Question::Call(request))),
            Role::Host(shared) => {
                let shared = Arc::clone(shared);
                let request = state.requests.as_own(request);
                drop(state);
                (None, Some(Own::begin(&shared, request)))
            }
            Role::Joined(_) | Role::Apart => {
                state.requests.pass_to(nanos());
                let number = state.requests.ask(Question::Call(request))?;
                core.push(&mut state);
                (Some(number), None)
            }
        };
        Ok(SentToHost { core: Arc::clone(core), number, own })
    }
}

impl Backend for Guest {
    fn send(&self, request: Request) -> Box<dyn Sent> {
        match self.begin(request) {
            Ok(sent) => Box::new(sent),
            Err(e) => Box::new(NotSent(Some(e))),
        }
    }

    fn result_bytes_max(&self) -> u32 {
        self.core.result_bytes_max.load(Ordering::Relaxed)
    }

    fn secret(&self) -> [u8; 32] {
        self.core.secret
    }

    fn check(&self) -> Result<()> {
        GuestOperator(Arc::clone(&self.core)).health(0).as_result(&self.core.dir)
    }

    fn sync(&self) -> Result<()> {
        self.core.ask(HostErrand::Sync).map(drop)
    }

    fn reopen(&self) -> Result<()> {
        self.core.ask(HostErrand::Reopen).map(drop)
    }

    fn drain(&self) {
        self.core.is_draining.store(true, Ordering::SeqCst);
    }

    fn close(&self, deadline: Duration) -> Result<Vec<InFlight>> {
        let core = &self.core;
        if core.is_foreign() {
            return Err(core.forked());
        }
        self.drain();
        let began = nanos();
        let waited = || Duration::from_nanos(nanos() - began);
        while waited() < deadline {
            let mut state = core.lock();
            let Some(word) = state.requests.await_release() else { break };
            let seen = word.read();
            drop(state);
            let left = deadline.saturating_sub(waited()).as_millis();
            word.wait(seen, u64::try_from(left).ok().map(|millis| millis.saturating_add(1)));
        }
        let mut in_flight = Vec::new();
        let most = deadline.max(Duration::from_millis(limits::CLOSE_MILLIS_LEAST));
        let until = began.saturating_add(u64::try_from(most.as_nanos()).unwrap_or(u64::MAX));
        // A statement of its own: in the loop's head, the lock would be held while the claims are ended.
        let held = core.lock().requests.held();
        for (key, token) in held {
            let mut terms = Terms::default();
            terms.details_mut().reason = Some("the store was closed".to_owned());
            let ask = Ask::Call(Call::Interrupt(token), Box::new(terms));
            let ended = self.begin(Request { key: key.clone(), ask })?.wait_until(Some(until));
            if ended.as_ref().is_err_and(|e| e.kind() == ErrorKind::InProgress) {
                // The claims end with the session, when the guest is dropped.
                return ended.map(|_| in_flight);
            }
            if ended.is_ok_and(|reply| reply.answer == Answer::Done) {
                let look = Request { key: key.clone(), ask: Ask::Look };
                let seen = self.begin(look)?.wait_until(Some(until))?;
                let now = seen.now;
                in_flight.extend(seen.found.map(|view| InFlight { key, state: view.state, now }));
            }
        }
        let millis = u64::try_from(deadline.saturating_sub(waited()).as_millis());
        core.settle(millis.unwrap_or(u64::MAX).max(limits::CLOSE_MILLIS_LEAST));
        in_flight.extend(core.leave(deadline)?);
        Ok(in_flight)
    }
}

/// The operators' calls on a store that another process hosts.
struct GuestOperator(Arc<Core>);

fn not_asked() -> Error {
    Error::new(
        ErrorKind::Bug,
        "the host of the store has answered another question: please report it",
    )
}

/// Asks the host, and takes the answer out.
macro_rules! ask {
    ($operator:ident, $what:expr, $told:pat => $answer:expr) => {
        match $operator.0.ask($what)? {
            $told => Ok($answer),
            _ => Err(not_asked()),
        }
    };
}

impl Hosted for GuestOperator {
    fn stats(&self) -> Stats {
        let core = &self.0;
        let number = match core.begin_errand(HostErrand::Stats) {
            Ok(BegunErrand::Number(number)) => number,
            Ok(BegunErrand::Host(shared, _)) => {
                return shared.embedded().map(Stats::of).unwrap_or_default();
            }
            Err(_) => return Stats::default(),
        };
        loop {
            match core.wait_for(number, Some(nanos() + limits::HOST_SILENT_NANOS)) {
                Waited::Late if matches!(core.probe(0), Ok(Some(_))) => {}
                Waited::Late => {
                    core.lock().requests.leave(number);
                    let (process, since) = core.heard_last();
                    let result_bytes_max = core.result_bytes_max.load(Ordering::Relaxed);
                    let hosting = Some(Hosting::silent(process, result_bytes_max, since));
                    return Stats { hosting, ..Stats::default() };
                }
                Waited::Told(HostTold::Errand(Ok(ErrandReply::Stats(mut stats)))) => {
                    if let Some(hosting) = &mut stats.hosting {
                        hosting.is_here = false;
                    }
                    return *stats;
                }
                Waited::Host(shared, _) => {
                    return shared.embedded().map(Stats::of).unwrap_or_default();
                }
                Waited::Told(_) | Waited::Over(_) => return Stats::default(),
            }
        }
    }

    fn health(&self, reserve_bytes: u32) -> Health {
        match self.0.probe(reserve_bytes) {
            Ok(Some(ErrandReply::Health(health))) => health,
            Ok(None) => {
                let (process, since) = self.0.heard_last();
                Health::Silent { process, since }
            }
            Ok(Some(_)) => Health::of_backend(Some(&not_asked())),
            Err(e) => Health::of_backend(Some(&e)),
        }
    }

    fn estimate(&self) -> Result<Estimate> {
        ask!(self, HostErrand::Estimate, ErrandReply::Estimate(estimate) => estimate)
    }

    fn verify(&self) -> Result<Verification> {
        ask!(self, HostErrand::Verify, ErrandReply::Verified(found) => found)
    }

    fn compact(&self, budget: u64) -> Result<Compacted> {
        ask!(self, HostErrand::Compact { budget }, ErrandReply::Compacted(done) => done)
    }

    fn backup(&self, dir: &Path) -> Result<BackedUp> {
        let dir = dir.to_owned();
        ask!(self, HostErrand::Backup { dir }, ErrandReply::BackedUp(made) => made)
    }

    fn rebuild_index(&self) -> Result<()> {
        ask!(self, HostErrand::RebuildIndex, ErrandReply::Done => ())
    }

    fn merge_index(&self) -> Result<()> {
        ask!(self, HostErrand::MergeIndex, ErrandReply::Done => ())
    }

    fn names_in(&self, parent: Option<Token>) -> Result<Vec<String>> {
        ask!(self, HostErrand::Spaces { parent }, ErrandReply::Names(names) => names)
    }

    fn page(&self, listing: Listing) -> Result<KeyPage> {
        ask!(self, HostErrand::List(listing), ErrandReply::Page(page) => page)
    }

    fn check_open(&self) -> Result<()> {
        if self.0.is_foreign() {
            return Err(self.0.forked());
        }
        match &self.0.lock().role {
            Role::Over(e) => Err(not_of_owner(e)),
            _ => Ok(()),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.core.is_foreign() {
            return;
        }
        // Requests that were sent and that no caller waits for go on.
        self.core.settle(limits::CLOSE_WRITES_MILLIS_LEAST);
        let _ = self.core.leave(Duration::ZERO);
    }
}

/// The reader of a guest, which only a test steps: no thread is started for it.
#[cfg(test)]
pub(super) struct ByHand(Arc<Core>);

#[cfg(test)]
impl Guest {
    pub(super) fn by_hand(&self) -> ByHand {
        self.core.lock().is_driven = true;
        ByHand(Arc::clone(&self.core))
    }
}

#[cfg(test)]
impl ByHand {
    /// Takes one step of the reader: see [`Core::drive_once`].
    pub(super) fn step(&self) {
        let mut buf = vec![0; limits::GUEST_READ_BYTES];
        self.0.lock().short_lived = 0;
        self.0.drive_once(None, None, &mut buf);
        self.0.lock().is_driven = true;
    }

    /// Whether the connection has something to be read: bytes, or its end. `None`: there is no connection.
    pub(super) fn may_read(&self) -> Option<bool> {
        let Role::Joined(line) = &self.0.lock().role else { return None };
        let neighbours::Readiness::Known(ready) = line.connection.waitable().readiness() else {
            panic!("a connection in memory")
        };
        Some(ready.receive)
    }

    pub(super) fn hosts(&self) -> bool {
        matches!(self.0.lock().role, Role::Host(_))
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.0.lock().role, Role::Over(_))
    }

    pub(super) fn with_requests<T>(&self, look: impl FnOnce(&Requests) -> T) -> T {
        look(&self.0.lock().requests)
    }

    /// Acts as if the process had been killed: what is left of the guest does nothing more.
    pub(super) fn abandon(&self) -> Option<Arc<Shared>> {
        let closed = self.0.closed();
        match std::mem::replace(&mut self.0.lock().role, Role::Over(closed)) {
            Role::Host(shared) => Some(shared),
            _ => None,
        }
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("dir", &self.core.dir).finish_non_exhaustive()
    }
}
