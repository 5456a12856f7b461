//! Every order of events around a handover, for short programs of two guests: one key, a host that makes no calls, and one that
//! may end at any step. What runs is the code of guests, server and engine; only the bytes between them, the disk, and which of
//! them goes on next are the test's.
//!
//! A run is a sequence of choices, and is made anew from the start for each. A state that was seen before isn't continued: states are
//! the same if everything is that a program or a peer could see of it (`World::shown`).

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use super::guest::ByHand;
use super::host::HostLoop;
use super::{Guest, Joiner};
use crate::backend::{Elsewhere, Shared};
use crate::engine::{NewestRecord, Writing};
use crate::neighbours::memory::{MemoryNeighbours, MemoryProcess, ProcessNumber};
use crate::neighbours::{
    Connection, Listener, Neighbours, Notifier, Readiness, Received, SendResult, Session, Waitable,
};
use crate::operation::Key;
use crate::processes::LineId;
use crate::protocol::{Call, Phase, Presence};
use crate::storage::Standing;
use crate::store::shared::{HostStore, open_as_host};
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::testing::{DIR, DiskFault, Sim};
use crate::types::{Lsn, Origin, SessionId, Token};
use crate::{
    Claim, ClaimGuard, Durability, Error, ErrorKind, Interrupted, Mark, Pending, Policy, State,
    Store, StoreBuilder,
};

/// What a program does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Op {
    Claim,
    /// Of the attempt that it was asked about.
    TakeOver,
    Complete,
    Abort,
    Drop,
    Forget,
    Mark,
    /// Reads another key, which was recorded before.
    Look,
}

/// The programs of both guests.
type Programs = (&'static str, [&'static [Op]; 2]);

/// Their calls are made at `Lazy`; those of all others at `Sync`.
const LAZY: &str = "lazy";

/// Those that are explored in each run of the tests.
const SHORT: [&str; 2] = ["mark/mark", "ask/ask"];

static PROGRAMS: [Programs; 14] = {
    use Op::{Abort, Claim, Complete, Drop, Forget, Look, Mark, TakeOver};
    [
        ("claim/claim", [&[Claim, Complete], &[Claim, TakeOver, Complete]]),
        ("abort/claim", [&[Claim, Abort], &[Claim, TakeOver, Abort]]),
        ("drop/claim", [&[Claim, Drop], &[Claim, TakeOver, Complete]]),
        ("complete/forget", [&[Claim, Complete], &[Forget, Claim]]),
        ("forget/claim", [&[Mark, Forget], &[Claim, Complete]]),
        ("mark/forget", [&[Mark], &[Mark, Forget]]),
        ("mark/mark", [&[Mark, Mark], &[Mark]]),
        ("ask/ask", [&[Claim, Drop], &[Claim]]),
        ("mark/look", [&[Mark], &[Look]]),
        ("drop/mark", [&[Claim, Drop], &[Mark]]),
        ("end/mark", [&[Claim, Complete], &[Mark]]),
        (LAZY, [&[Claim, Complete], &[Mark, Claim]]),
        ("mark/none", [&[Mark], &[]]),
        ("claim/none", [&[Claim], &[]]),
    ]
};

/// One thing that happens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Event {
    /// A guest makes the next call of its program.
    Call(usize),
    /// A caller is woken, and looks for its answer.
    Poll(usize),
    /// A guest's reader goes on: it reads, joins, or becomes the host.
    Step(usize),
    /// The host takes one frame, or the end of a connection.
    Serve(LineId),
    /// The host writes and syncs everything that was placed.
    Write,
    /// The host answers what can be answered.
    Answer,
    /// The host asks which sessions live.
    Notice,
    GiveUp(usize),
    Close,
    /// With so many frames of those on their way to each guest arriving.
    KillHost(Vec<usize>),
    KillGuest(usize, Vec<usize>),
    /// The session of a process that was killed ends after its connections.
    Bury(usize),
    /// With what is on its way to the guest, and to the host, arriving or not.
    Break(usize, bool, bool),
}

impl Event {
    /// Whether a run that goes on long enough contains it.
    fn is_due(&self) -> bool {
        matches!(
            self,
            Event::Call(_)
                | Event::Poll(_)
                | Event::Step(_)
                | Event::Serve(_)
                | Event::Write
                | Event::Answer
                | Event::Notice
                | Event::Bury(_)
        )
    }
}

/// A connection that has the host take its first frame when somebody waits for an answer.
#[derive(Debug)]
struct Wired {
    inner: Box<dyn Connection>,
    process: WiredProcess,
}

/// What a process sees of the others.
#[derive(Clone)]
struct WiredProcess {
    inner: MemoryProcess,
    host: Arc<Mutex<Option<Hosting>>>,
    /// How far the log was written when a host closed last.
    closed_at: Arc<Mutex<Lsn>>,
}

impl fmt::Debug for WiredProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Neighbours for WiredProcess {
    fn standing(&self) -> std::io::Result<Standing> {
        self.inner.standing()
    }

    fn may_host(&self) -> std::io::Result<bool> {
        self.inner.may_host()
    }

    fn begin(&self, id: SessionId) -> std::io::Result<Option<Box<dyn Session>>> {
        self.inner.begin(id)
    }

    fn lives(&self, id: SessionId) -> std::io::Result<bool> {
        self.inner.lives(id)
    }

    fn living(&self) -> std::io::Result<Vec<SessionId>> {
        self.inner.living()
    }

    fn listen(&self) -> std::io::Result<Box<dyn Listener>> {
        self.inner.listen()
    }

    fn connect(&self) -> std::io::Result<Option<Box<dyn Connection>>> {
        let connection = self.inner.connect()?;
        let wired = |inner| Box::new(Wired { inner, process: self.clone() }) as Box<dyn Connection>;
        Ok(connection.map(wired))
    }

    fn notifier(&self) -> std::io::Result<Arc<dyn Notifier>> {
        self.inner.notifier()
    }
}

impl Waitable for Wired {
    fn readiness(&self) -> Readiness<'_> {
        self.inner.readiness()
    }
}

impl Connection for Wired {
    fn send(&self, bytes: &[u8]) -> SendResult {
        self.inner.send(bytes)
    }

    fn receive(&self, buf: &mut [u8]) -> Received {
        match self.inner.receive(buf) {
            Received::Nothing => {
                if let Some(host) = &mut *self.process.host.lock() {
                    host.welcome();
                }
                self.inner.receive(buf)
            }
            received => received,
        }
    }

    fn end(&self) {
        self.inner.end();
    }

    fn peer(&self) -> u32 {
        self.inner.peer()
    }

    fn waitable(&self) -> &dyn Waitable {
        self
    }
}

/// The process that hosts the store, as its thread sees it.
struct Hosting {
    process: ProcessNumber,
    serving: HostLoop,
    view: Arc<Shared>,
}

impl Hosting {
    /// Takes in the guest that waits to be.
    fn welcome(&mut self) {
        self.serving.accept();
        let newest = self.serving.lines.last_key_value().map(|(line, _)| *line);
        if let Some(line) = newest {
            self.serve(line);
        }
    }

    /// Takes one frame, or the end of the connection.
    fn serve(&mut self, line: LineId) {
        let mut head = [0; 4];
        self.serving.read(line, &mut head);
        if let rest @ 1.. = u32::from_le_bytes(head) {
            self.serving.read(line, &mut vec![0; rest as usize]);
        }
        self.work();
        self.serving.send_all();
    }

    /// What calls wait for that is not the disk is done at once.
    fn work(&mut self) {
        let engine = self.view.embedded().unwrap();
        while engine.queued().1 > 0 {
            engine.work_queued();
            self.serving.server.go_on();
        }
    }

    fn write(&mut self) {
        let engine = self.view.embedded().unwrap();
        engine.commit_queued();
        let synced = self.view.sync();
        assert!(synced.is_ok() || self.is_poisoned(), "{synced:?}");
    }

    fn is_poisoned(&self) -> bool {
        self.view.embedded().unwrap().log.is_poisoned()
    }

    fn answer(&mut self) {
        self.serving.notifier.clear();
        self.serving.server.go_on();
        self.work();
        self.serving.send_all();
    }

    fn may_answer(&self) -> bool {
        let Readiness::Known(ready) = self.serving.notifier.waitable().readiness() else {
            panic!("a notifier in memory")
        };
        ready.receive
    }

    fn may_serve(&self, line: &dyn Connection) -> bool {
        let Readiness::Known(ready) = line.waitable().readiness() else {
            panic!("a connection in memory")
        };
        ready.receive
    }

    fn may_write(&self) -> bool {
        let engine = self.view.embedded().unwrap();
        engine.queued().0 > 0 || (!self.is_poisoned() && self.written() < engine.log.end())
    }

    fn written(&self) -> Lsn {
        self.view.embedded().unwrap().log.written()
    }
}

/// Tells that a caller was woken.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A call without an answer.
enum Waiting {
    Claim(Pending<Claim>),
    TakeOver(Pending<ClaimGuard>),
    /// A completion or an abort, and its token.
    Ending(Pending<()>),
    Forget(Pending<bool>),
    Mark(Pending<Mark>),
    Look(Pending<Option<State>>),
}

/// What a call was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Granted,
    Asked,
    Ok,
    First,
    Again,
    True,
    False,
    InProgress,
    Completed,
    Interrupted,
    Lost,
    Indeterminate,
    /// What a look has found.
    Seen,
    /// The host takes no writes.
    Refused,
    /// The disk has failed before anything was changed.
    Failed,
}

/// A process that runs a program.
struct Program {
    number: usize,
    process: MemoryProcess,
    reader: ByHand,
    store: Option<Store>,
    next: usize,
    waiting: Option<(Op, u64, Waiting)>,
    woken: Arc<Woken>,
    guard: Option<ClaimGuard>,
    asked: Option<Interrupted>,
    is_alive: bool,
    is_buried: bool,
}

impl Program {
    fn session(&self) -> SessionId {
        session(self.number)
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_none() && !self.reader.with_requests(|requests| requests.needs_reader())
    }

    fn poll(&mut self) -> Option<Result<Told, Error>> {
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        let context = &mut Context::from_waker(&waker);
        let (_, _, waiting) = self.waiting.as_mut()?;
        fn ready<T>(
            pending: &mut Pending<T>,
            context: &mut Context<'_>,
        ) -> Option<Result<T, Error>> {
            match Future::poll(std::pin::Pin::new(pending), context) {
                Poll::Ready(told) => Some(told),
                Poll::Pending => None,
            }
        }
        match waiting {
            Waiting::Claim(pending) => Some(ready(pending, context)?.map(|claim| match claim {
                Claim::Acquired(guard) => {
                    self.guard = Some(guard);
                    Told::Granted
                }
                Claim::Interrupted(asked) => {
                    self.asked = Some(asked);
                    Told::Asked
                }
                Claim::InProgress(_) => Told::InProgress,
                Claim::Completed(_) => Told::Completed,
                claim => panic!("{claim:?}"),
            })),
            Waiting::TakeOver(pending) => Some(ready(pending, context)?.map(|guard| {
                self.guard = Some(guard);
                Told::Granted
            })),
            Waiting::Ending(pending) => Some(ready(pending, context)?.map(|()| Told::Ok)),
            Waiting::Forget(pending) => {
                let told = ready(pending, context)?;
                Some(told.map(|was_there| if was_there { Told::True } else { Told::False }))
            }
            Waiting::Mark(pending) => Some(ready(pending, context)?.map(|mark| match mark {
                Mark::First => Told::First,
                Mark::Again => Told::Again,
                Mark::InProgress(_) => Told::InProgress,
                Mark::Interrupted(_) => Told::Interrupted,
                mark => panic!("{mark:?}"),
            })),
            Waiting::Look(pending) => Some(ready(pending, context)?.map(|seen| {
                assert!(matches!(seen, Some(State::Completed(_))), "{seen:?}");
                Told::Seen
            })),
        }
    }
}

fn session(number: usize) -> SessionId {
    SessionId::new(number as u64 + 1).unwrap()
}

/// A record of the key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Written {
    lsn: Lsn,
    /// `None`: it was forgotten.
    state: Option<(String, Token)>,
    origin: Option<(u64, u64)>,
}

const KEY: &str = "k";
/// One that is recorded before the guests join.
const KNOWN: &str = "known";

/// How much may go wrong in one run.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    crashes: usize,
    breaks: usize,
    give_ups: usize,
    faults: usize,
    /// Whether calls of an opening fail, too.
    of_openings: bool,
    /// Whether guests are killed, and not only the host.
    of_guests: bool,
}

/// Everything there is in one run.
struct World {
    sim: Arc<Sim>,
    all: MemoryNeighbours,
    first: Option<Arc<Shared>>,
    host: Arc<Mutex<Option<Hosting>>>,
    programs: [Program; 2],
    does: [&'static [Op]; 2],
    is_lazy: bool,
    crashes: usize,
    breaks: usize,
    give_ups: usize,
    faults: usize,
    of_guests: bool,
    closed_at: Arc<Mutex<Lsn>>,
    /// All records of the key, and the host at which they were last looked at.
    log: Vec<Written>,
    looked_at: Option<ProcessNumber>,
    /// Calls that were told that they were done.
    acknowledged: Vec<(u64, u64)>,
    wrong: Vec<String>,
    notes: Vec<String>,
}

fn builder() -> StoreBuilder {
    let builder = Store::builder().segment_bytes(64 << 10).result_bytes_max(1 << 10);
    builder.manual_maintenance(true).open_timeout(Duration::ZERO)
}

/// Opens the store as its host, and puts the host's side of the connections where the test has it go on.
fn host(sim: &Sim, process: &WiredProcess, create: bool) -> Result<Option<Arc<Shared>>, Error> {
    let known = Arc::new(process.clone());
    let opened = open_as_host(&builder(), &sim.seams(), Path::new(DIR), create, Some(known));
    let HostStore { embedded, neighbours, listener, kept, .. } = match opened {
        Err(e) if e.kind() == ErrorKind::Locked => return Ok(None),
        opened => opened?,
    };
    embedded.serve_by_hand();
    let view = Arc::new(Shared::Embedded(embedded.view()));
    let stops = Arc::new(AtomicBool::new(false));
    let serving =
        HostLoop::new(Arc::clone(&view), neighbours, listener.unwrap(), kept, None, stops).unwrap();
    let slot = Arc::clone(&process.host);
    *slot.lock() = Some(Hosting { process: process.inner.number(), serving, view });
    let closed_at = Arc::clone(&process.closed_at);
    embedded.at_close(move || {
        let hosting = slot.lock().take();
        if let Some(mut hosting) = hosting {
            hosting.write();
            *closed_at.lock() = hosting.written();
            hosting.answer();
            hosting.serving.finish();
        }
    });
    Ok(Some(Arc::new(Shared::Embedded(embedded))))
}

impl World {
    fn new((name, does): Programs, bounds: Bounds) -> Self {
        let Bounds { crashes, breaks, give_ups, faults, of_guests, .. } = bounds;
        let is_lazy = name == LAZY;
        let level = if is_lazy { Durability::Lazy } else { Durability::Sync };
        let policy = Policy::new().durability(level).claim_durability(level);
        let (sim, all) = (Arc::new(Sim::small(1)), MemoryNeighbours::new());
        let slot = Arc::new(Mutex::new(None));
        let closed_at = Arc::new(Mutex::new(Lsn::ZERO));
        let wired = || {
            let (host, closed_at) = (Arc::clone(&slot), Arc::clone(&closed_at));
            WiredProcess { inner: all.process(), host, closed_at }
        };
        let first = wired();
        let both = [wired(), wired()];
        let sessions = [0, 1].map(|n| both[n].begin(session(n)).unwrap().unwrap());
        let hosted = host(&sim, &first, true).unwrap().unwrap();
        let (known, mark) = (Key::from(KNOWN), Call::Record { fingerprint: None, failure: false });
        hosted.apply(&known, hosted.hash(&known), mark, &Writing::default()).unwrap();
        let mut sessions = sessions.into_iter();
        let mut number = 0;
        let programs = both.map(|process| {
            let (theirs, its) = (Arc::clone(&sim), process.clone());
            let joiner = Joiner {
                dir: DIR.into(),
                neighbours: Arc::new(process.clone()),
                session: sessions.next().unwrap(),
                host: Box::new(move || host(&theirs, &its, false)),
                draw: Box::new(|| 0),
                result_bytes_max: 1 << 10,
            };
            let connection = process.connect().unwrap().unwrap();
            let guest = Guest::join(joiner, connection).unwrap();
            let reader = guest.by_hand();
            let store = Store::new(Shared::Other(Elsewhere::new(Box::new(guest))), policy.clone());
            number += 1;
            Program {
                number: number - 1,
                process: process.inner,
                reader,
                store: Some(store),
                next: 0,
                waiting: None,
                woken: Arc::new(Woken(AtomicBool::new(false))),
                guard: None,
                asked: None,
                is_alive: true,
                is_buried: false,
            }
        });
        World {
            sim,
            all,
            first: Some(hosted),
            host: slot,
            programs,
            does,
            is_lazy,
            crashes,
            breaks,
            give_ups,
            faults,
            of_guests,
            closed_at,
            log: Vec::new(),
            looked_at: None,
            acknowledged: Vec::new(),
            wrong: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn with_host<T>(&self, with: impl FnOnce(&mut Hosting) -> T) -> Option<T> {
        self.host.lock().as_mut().map(with)
    }

    /// What can happen now. What only its own process can tell from what happened before comes alone.
    fn events(&self) -> Vec<Event> {
        for program in self.programs.iter().filter(|program| program.is_alive) {
            let n = program.number;
            if program.woken.0.load(Ordering::Relaxed) && !program.reader.hosts() {
                let mut events = vec![Event::Poll(n)];
                events.extend(self.may_give_up(program).then_some(Event::GiveUp(n)));
                return events;
            }
        }
        let mut events = Vec::new();
        let has_host = self.host.lock().is_some();
        for program in &self.programs {
            let n = program.number;
            if !program.is_alive {
                events.extend((!program.is_buried).then_some(Event::Bury(n)));
                continue;
            }
            if program.woken.0.load(Ordering::Relaxed) {
                events.push(Event::Poll(n));
            }
            let is_at_end = self.does[n].get(program.next).is_none() && program.asked.is_none();
            if program.waiting.is_none() && !is_at_end {
                events.push(Event::Call(n));
            }
            let (needs_reader, may_send) = program
                .reader
                .with_requests(|requests| (requests.needs_reader(), requests.may_send()));
            let may_read = program.reader.may_read().unwrap_or(!program.reader.hosts());
            let may_step = may_read || may_send;
            if needs_reader && may_step && !program.reader.is_over() {
                events.push(Event::Step(n));
            }
        }
        let of_host = self.with_host(|host| {
            let lines = host.serving.lines.iter();
            let mut events: Vec<_> = lines
                .filter(|(_, line)| host.may_serve(&***line))
                .map(|(id, _)| Event::Serve(*id))
                .collect();
            events.extend(host.may_write().then_some(Event::Write));
            events.extend(host.may_answer().then_some(Event::Answer));
            let unconnected = host.serving.server.unconnected();
            let dead = unconnected.iter().any(|of| {
                self.programs.iter().any(|program| program.session() == *of && program.is_buried)
            });
            events.extend(dead.then_some(Event::Notice));
            events
        });
        events.extend(of_host.into_iter().flatten());
        for program in self.programs.iter().filter(|program| program.is_alive) {
            if self.may_give_up(program) {
                events.push(Event::GiveUp(program.number));
            }
        }
        if has_host && self.first.is_some() {
            events.push(Event::Close);
        }
        if has_host && self.crashes > 0 {
            let host = self.with_host(|host| host.process).unwrap();
            events.extend(self.arrivals(host).into_iter().map(Event::KillHost));
        }
        for program in self.programs.iter().filter(|program| program.is_alive) {
            let (n, process) = (program.number, program.process.number());
            if self.crashes > 0 && self.of_guests && !program.reader.hosts() {
                let arrivals = self.arrivals(process).into_iter();
                events.extend(arrivals.map(|arrive| Event::KillGuest(n, arrive)));
            }
            if self.breaks > 0 && has_host && program.reader.may_read().is_some() {
                let sent = |process| self.all.on_the_way(process).into_iter().any(|sent| sent > 0);
                let host = self.with_host(|host| host.process);
                let (to_guest, to_host) = (host.is_some_and(sent), sent(process));
                events.push(Event::Break(n, false, false));
                events.extend(to_guest.then_some(Event::Break(n, true, false)));
                events.extend(to_host.then_some(Event::Break(n, false, true)));
            }
        }
        events
    }

    fn may_give_up(&self, program: &Program) -> bool {
        self.give_ups > 0 && matches!(program.waiting, Some((Op::Claim | Op::TakeOver, ..)))
    }

    /// How many frames of each connection on which a process has sent any can arrive.
    fn arrivals(&self, process: ProcessNumber) -> Vec<Vec<usize>> {
        let mut all = vec![Vec::new()];
        for bytes in self.all.bytes_on_the_way(process) {
            let most = frames(&bytes).len();
            all = all
                .into_iter()
                .flat_map(|arrive| (0..=most).map(move |k| [&arrive[..], &[k]].concat()))
                .collect();
        }
        all
    }

    /// Returns how many calls of the disk it took. `fault`: the one of them that fails.
    fn happen(&mut self, event: &Event, fault: Option<u64>) -> u64 {
        let (before, host) = (self.sim.calls(), self.with_host(|host| host.process));
        if let Some(after) = fault {
            self.faults -= 1;
            self.sim.fail_call(after, DiskFault::Io);
        }
        match event {
            Event::Call(n) => self.call(*n),
            Event::Poll(n) => self.poll(*n),
            Event::Step(n) => self.programs[*n].reader.step(),
            Event::Serve(line) => drop(self.with_host(|host| host.serve(*line))),
            Event::Write => drop(self.with_host(Hosting::write)),
            Event::Answer => drop(self.with_host(Hosting::answer)),
            Event::Notice => drop(self.with_host(|host| {
                host.serving.asked_at = 0;
                host.serving.ask_who_lives();
            })),
            Event::GiveUp(n) => {
                self.give_ups -= 1;
                self.programs[*n].waiting = None;
                self.programs[*n].woken.0.store(false, Ordering::Relaxed);
            }
            Event::Close => {
                let was_poisoned = self.is_poisoned();
                let shared = self.first.take().unwrap();
                let closed = shared.close(Duration::ZERO);
                if closed.is_err() {
                    assert!(was_poisoned || fault.is_some(), "{closed:?}");
                    let written = *self.closed_at.lock();
                    self.forget_unwritten(written);
                }
            }
            Event::KillHost(arrive) => self.kill_host(arrive),
            Event::KillGuest(n, arrive) => {
                self.crashes -= 1;
                self.kill(*n, arrive);
            }
            Event::Bury(n) => {
                let program = &mut self.programs[*n];
                self.all.kill_but_for_connections(program.process.number());
                program.is_buried = true;
            }
            Event::Break(n, to_guest, to_host) => {
                self.breaks -= 1;
                let host = self.with_host(|host| host.process).unwrap();
                let process = self.programs[*n].process.number();
                // Connections that have ended are not asked for, and others can't be two.
                let mut arrive = [*to_guest, *to_host].into_iter().cycle();
                self.all.disconnect(process, host, &mut |sent| {
                    if arrive.next().unwrap() { sent } else { 0 }
                });
            }
        }
        let _ = self.with_host(Hosting::work);
        let calls = self.sim.calls().saturating_sub(before);
        self.sim.heal();
        let goes = matches!(event, Event::Close | Event::KillHost(_));
        if host.is_some() && !goes && self.with_host(|host| host.process) != host {
            self.wrong.push("the host has gone though nothing has ended it".to_owned());
        }
        self.look();
        self.check();
        if goes { 0 } else { calls }
    }

    fn is_poisoned(&self) -> bool {
        self.with_host(|host| host.is_poisoned()).unwrap_or_default()
    }

    /// The host that has placed them is gone, or writes nothing more.
    fn forget_unwritten(&mut self, written: Lsn) {
        self.log.retain(|record| record.lsn < written);
    }

    fn call(&mut self, n: usize) {
        let program = &mut self.programs[n];
        let store = program.store.as_ref().unwrap();
        let op = self.does[n].get(program.next).copied();
        if program.asked.is_some() && op != Some(Op::TakeOver) {
            // A question that isn't answered is dropped.
            program.asked = None;
            return;
        }
        let Some(op) = op else { return };
        program.next += 1;
        let has_guard = program.guard.is_some();
        let number = program.reader.with_requests(|requests| requests.next());
        let waiting = match op {
            Op::Complete | Op::Abort | Op::Drop if !has_guard => return,
            Op::TakeOver if program.asked.is_none() => return,
            Op::Claim | Op::Mark | Op::Forget | Op::Look if has_guard => return,
            Op::Drop => {
                program.guard = None;
                return;
            }
            Op::Claim => Waiting::Claim(store.claim_async(KEY)),
            Op::TakeOver => Waiting::TakeOver(program.asked.take().unwrap().take_over_async()),
            Op::Complete => Waiting::Ending(program.guard.take().unwrap().complete_async("v")),
            Op::Abort => Waiting::Ending(program.guard.take().unwrap().abort_async("no")),
            Op::Forget => Waiting::Forget(store.forget_async(KEY)),
            Op::Mark => Waiting::Mark(store.mark_async(KEY)),
            Op::Look => Waiting::Look(store.get_async(KNOWN)),
        };
        program.waiting = Some((op, number, waiting));
        let told = program.poll();
        if let Some(told) = told {
            self.told(n, told);
        }
    }

    fn poll(&mut self, n: usize) {
        if let Some(told) = self.programs[n].poll() {
            self.told(n, told);
        }
    }

    fn told(&mut self, n: usize, told: Result<Told, Error>) {
        let Some((op, number, _)) = self.programs[n].waiting.take() else { return };
        // What it has done is placed by now.
        let told = match told {
            Ok(told) => told,
            Err(e) => match e.kind() {
                ErrorKind::Indeterminate => Told::Indeterminate,
                ErrorKind::ClaimLost => Told::Lost,
                ErrorKind::Poisoned => {
                    let names_it =
                        e.to_string().contains(&format!("process {}", std::process::id()));
                    if !names_it && !self.programs[n].reader.hosts() {
                        self.wrong.push(format!("refused by a host that isn't named: {e}"));
                    }
                    Told::Refused
                }
                ErrorKind::Io => Told::Failed,
                kind => panic!("{kind:?}: {e}"),
            },
        };
        if op == Op::Look && !matches!(told, Told::Seen | Told::Failed) {
            self.wrong.push(format!("a read is refused: {told:?}"));
        }
        let origin = (session(n).get(), number);
        let at = self.log.iter().rposition(|record| record.origin == Some(origin));
        let is_done = matches!(told, Told::Granted | Told::Ok | Told::First | Told::True);
        let was_erased =
            at.is_some_and(|at| self.log.iter().skip(at + 1).any(|record| record.state.is_none()));
        match (is_done, at) {
            (true, None) => self.wrong.push(format!("told done, and it is not: {op:?} {told:?}")),
            (true, Some(_)) => self.acknowledged.push(origin),
            (false, Some(_))
                if matches!(told, Told::Lost | Told::False | Told::Refused | Told::Failed) =>
            {
                self.wrong
                    .push(format!("told that it changed nothing, and it did: {op:?} {told:?}"));
            }
            (false, Some(_)) if told == Told::Again && !was_erased => {
                self.wrong
                    .push(format!("told that it changed nothing, and it did: {op:?} {told:?}"));
            }
            (false, None) if told == Told::Lost && op != Op::TakeOver => {
                self.wrong.push(format!("a live owner is refused: {op:?}"));
            }
            (false, at) if told == Told::Indeterminate => {
                let fate = if at.is_some() { "done" } else { "not done" };
                self.notes.push(format!("indeterminate, and it was {fate}: {op:?}"));
            }
            _ => {}
        }
    }

    fn kill_host(&mut self, arrive: &[usize]) {
        self.crashes -= 1;
        let (process, written) = self
            .with_host(|host| (host.process, host.view.embedded().unwrap().log.written()))
            .unwrap();
        self.forget_unwritten(written);
        let number = self.programs.iter().position(|of| of.process.number() == process);
        let first = self.first.take_if(|_| number.is_none());
        self.cut(process, arrive);
        self.sim.kill();
        let hosting = self.host.lock().take();
        if let Some(number) = number {
            let hosted = self.abandon(number);
            self.all.kill_but_for_connections(process);
            self.programs[number].is_buried = true;
            drop(hosted);
            if self.is_lazy {
                // What a host tells itself at that level ends with it.
                let (its, log) = (session(number).get(), &self.log);
                self.acknowledged.retain(|origin| {
                    origin.0 != its || log.iter().any(|record| record.origin == Some(*origin))
                });
            }
        } else {
            self.all.kill_but_for_connections(process);
        }
        drop((hosting, first));
    }

    fn kill(&mut self, n: usize, arrive: &[usize]) {
        self.cut(self.programs[n].process.number(), arrive);
        drop(self.abandon(n));
    }

    /// Ends the connections of a process. What arrives ends in the midst of the frame after the last that does.
    fn cut(&self, process: ProcessNumber, arrive: &[usize]) {
        let sent = self.all.bytes_on_the_way(process);
        let mut bytes = sent.iter().zip(arrive).map(|(sent, arrive)| {
            let ends = frames(sent);
            let whole = arrive.checked_sub(1).map_or(0, |last| ends[last]);
            whole + ends.get(*arrive).map_or(0, |end| (end - whole) / 2)
        });
        self.all.kill_but_for_sessions(process, &mut |_| bytes.next().unwrap());
    }

    /// What a process that was killed has in memory does nothing more.
    fn abandon(&mut self, n: usize) -> Option<Arc<Shared>> {
        let program = &mut self.programs[n];
        let hosted = program.reader.abandon();
        program.is_alive = false;
        (program.waiting, program.guard, program.asked, program.store) = (None, None, None, None);
        program.woken.0.store(false, Ordering::Relaxed);
        hosted
    }

    /// Takes down what has become of the key.
    fn look(&mut self) {
        if self.is_poisoned() {
            // It writes nothing more. What it has placed shows again if it is in the files.
            let written = self.with_host(|host| host.written()).unwrap();
            return self.forget_unwritten(written);
        }
        let Some(newest) = self.newest() else { return };
        let Some(NewestRecord { lsn, state, origin, .. }) = newest else {
            if let Some(last) = self.log.last().filter(|last| last.state.is_some()) {
                self.wrong.push(format!(
                    "a record is gone: {:?}",
                    last.state.as_ref().map(|state| &state.0)
                ));
            }
            return;
        };
        if self.log.last().is_some_and(|last| last.lsn == lsn) {
            return;
        }
        let state = state.map(|(phase, token)| (format!("{phase:?}"), token));
        let origin = origin.map(|Origin { session, request, .. }| (session.get(), request));
        let host = self.with_host(|host| host.process);
        let is_next = std::mem::replace(&mut self.looked_at, host) != host;
        // The next host writes what a kill left uncertain once more, at another place.
        let same = |last: &&mut Written| is_next && last.state == state && last.origin == origin;
        if let Some(last) = self.log.last_mut().filter(same) {
            last.lsn = lsn;
            return;
        }
        if let Some(last) = self.log.last().filter(|last| last.lsn > lsn) {
            self.wrong
                .push(format!("a record is gone: {:?}", last.state.as_ref().map(|state| &state.0)));
        }
        self.log.push(Written { lsn, state, origin });
    }

    fn newest(&self) -> Option<Option<NewestRecord>> {
        let key = Key::from(KEY);
        self.with_host(|host| host.view.embedded().unwrap().newest_record(&key))?.map_or_else(
            |e| {
                // A poisoned store tells nothing of a key whose newest record may be lost.
                assert!(self.is_poisoned(), "{e}");
                None
            },
            Some,
        )
    }

    /// What must hold at any time.
    fn check(&mut self) {
        let mut wrong = Vec::new();
        let [a, b] = &self.programs;
        if a.guard.is_some() && b.guard.is_some() {
            wrong.push("two owners at once".to_owned());
        }
        let log = &self.log;
        for (n, record) in log.iter().enumerate() {
            let Some(origin) = record.origin else { continue };
            let before = &log[..n];
            if !before.iter().any(|other| other.origin == Some(origin)) {
                continue;
            }
            let erases = record.state.is_none()
                && before.last().is_some_and(|last| {
                    last.origin.is_some_and(|origin| self.acknowledged.contains(&origin))
                });
            let is_alive = self.programs[origin.0 as usize - 1].is_alive;
            let is_claim = record.state.as_ref().is_some_and(|(phase, _)| phase == "Claimed");
            match erases {
                true => wrong
                    .push("a forget that was sent again erased an acknowledged result".to_owned()),
                false if is_claim && !is_alive => {}
                false => wrong.push(format!(
                    "a call took effect twice: {:?}",
                    record.state.as_ref().map(|state| &state.0)
                )),
            }
        }
        let grants = log
            .iter()
            .filter(|record| record.state.as_ref().is_some_and(|(phase, _)| phase == "Claimed"));
        let mut tokens: Vec<_> = grants.filter_map(|grant| Some(grant.state.as_ref()?.1)).collect();
        let all = tokens.len();
        tokens.sort_unstable();
        tokens.dedup();
        if tokens.len() < all {
            wrong.push("a token was issued twice".to_owned());
        }
        let is_there = |origin: &(u64, u64)| log.iter().any(|of| of.origin == Some(*origin));
        if !self.acknowledged.iter().all(is_there) {
            wrong.push("acknowledged and lost".to_owned());
        }
        if let Some(newest) = self.newest() {
            self.check_live(newest.as_ref(), &mut wrong);
        }
        self.wrong.extend(wrong);
    }

    /// What must hold of those that are on the key.
    fn check_live(&self, newest: Option<&NewestRecord>, wrong: &mut Vec<String>) {
        let claimed = newest.and_then(|newest| match newest.state {
            Some((Phase::Claimed, token)) if newest.presence == Presence::Owner => Some(token),
            _ => None,
        });
        for program in &self.programs {
            let Some(guard) = &program.guard else { continue };
            if claimed != Some(guard.token()) {
                wrong.push("a live owner is interrupted".to_owned());
            }
        }
        let (on_the_way, unanswered) = self
            .with_host(|host| {
                let lines = host.serving.lines.values();
                let on_the_way = lines.filter(|line| host.may_serve(&***line)).count();
                (on_the_way > 0, host.serving.server.unanswered())
            })
            .unwrap();
        let is_quiet = |program: &Program| {
            program.is_idle() && !on_the_way && !unanswered.contains(&program.session())
        };
        if self.is_poisoned() {
            // What its guests leave is said to the next host.
            return;
        }
        if let (Some(token), Some(NewestRecord { origin: Some(origin), .. })) = (claimed, newest) {
            let owner = self.programs.iter().find(|of| of.session() == origin.session);
            let owner = owner.unwrap();
            let has_it = owner.guard.as_ref().is_some_and(|guard| guard.token() == token);
            if owner.is_alive && is_quiet(owner) && !has_it {
                wrong.push("in progress for ever, and nobody has it".to_owned());
            }
        }
        if newest.is_some_and(|newest| newest.presence == Presence::Asked) {
            let may_be = |program: &Program| {
                program.is_alive && (program.asked.is_some() || !is_quiet(program))
            };
            if !self.programs.iter().any(may_be) && !on_the_way {
                wrong.push("a question is out for ever, and nobody was asked".to_owned());
            }
        }
    }

    /// What must hold once nothing happens any more.
    fn check_end(&mut self) {
        for program in &self.programs {
            if let Some((op, ..)) = &program.waiting {
                self.wrong.push(format!("{op:?} waits for ever"));
            }
        }
        if self.is_poisoned() {
            return;
        }
        if let Some(Some(newest)) = self.newest() {
            let Some(origin) = newest.origin else { return };
            let owner = &self.programs[origin.session.get() as usize - 1];
            if newest.presence == Presence::Owner && !owner.is_alive {
                self.wrong.push("in progress for ever, and its owner is dead".to_owned());
            }
            if newest.presence == Presence::Asked
                && self.programs.iter().all(|program| program.asked.is_none())
            {
                self.wrong.push("a question is out for ever, and nobody was asked".to_owned());
            }
        }
    }

    /// Everything that tells this state from others.
    fn shown(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.crashes, self.breaks, self.give_ups, self.faults).hash(&mut hasher);
        self.is_poisoned().hash(&mut hasher);
        (&self.log, &self.acknowledged).hash(&mut hasher);
        (self.first.is_some(), self.all.shown()).hash(&mut hasher);
        for program in &self.programs {
            (program.next, program.is_alive, program.is_buried).hash(&mut hasher);
            program.waiting.as_ref().map(|(op, number, _)| (op, number)).hash(&mut hasher);
            program.woken.0.load(Ordering::Relaxed).hash(&mut hasher);
            program.guard.as_ref().map(|guard| guard.token()).hash(&mut hasher);
            program.asked.as_ref().map(|asked| asked.attempt().token()).hash(&mut hasher);
            (program.reader.hosts(), program.reader.may_read()).hash(&mut hasher);
            program.reader.with_requests(|requests| requests.shown()).hash(&mut hasher);
        }
        let of_host = self.with_host(|host| {
            let engine = host.view.embedded().unwrap();
            let lines: Vec<_> = host.serving.lines.keys().copied().collect();
            let disk = (engine.log.end(), engine.log.written(), engine.queued());
            (host.process, host.serving.server.shown(), lines, disk, engine.last_question())
        });
        of_host.hash(&mut hasher);
        let newest = self.newest();
        format!("{newest:?}").hash(&mut hasher);
        hasher.finish()
    }
}

impl Drop for World {
    /// As if all processes were killed: nothing is written, and nothing waited for.
    fn drop(&mut self) {
        self.sim.kill();
        for program in &self.programs {
            self.all.kill(program.process.number(), &mut |_| 0);
        }
        let hosts = [0, 1].map(|n| self.abandon(n));
        let hosting = self.host.lock().take();
        drop((hosting, self.first.take(), hosts));
    }
}

/// Where each whole frame ends.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let (mut ends, mut at) = (Vec::new(), 0);
    while let Some(length) = bytes.get(at..at + 4) {
        at += 4 + u32::from_le_bytes(length.try_into().unwrap()) as usize;
        ends.push(at);
    }
    ends
}

#[derive(Default)]
struct Found {
    states: usize,
    runs: usize,
    ends: usize,
    notes: BTreeMap<String, usize>,
    events: BTreeMap<String, usize>,
    /// What is wrong, and the shortest run that shows it.
    wrong: BTreeMap<String, (Vec<Choice>, Vec<Made>)>,
}

/// Which of the events that can happen does, and which call of the disk fails meanwhile.
#[derive(Clone, Copy, Debug)]
struct Choice(usize, Option<u64>);

/// The same, as what happened.
type Made = (Event, Option<u64>);

/// Explores all runs of two programs with so many crashes, broken connections, given up calls, and failing calls of the disk.
fn explore(programs: Programs, bounds: Bounds) -> Found {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    let mut open: Vec<Vec<Choice>> = vec![Vec::new()];
    while let Some(mut path) = open.pop() {
        let mut world = World::new(programs, bounds);
        let mut made = Vec::new();
        let mut calls = 0;
        for Choice(event, fault) in &path {
            let event = world.events().swap_remove(*event);
            calls = world.happen(&event, *fault);
            made.push((event, *fault));
        }
        found.runs += 1;
        loop {
            if let Some((event, fault)) = made.last() {
                let name = format!("{event:?}");
                let name = name.split(['(', '{']).next().unwrap();
                let failed = if fault.is_some() { " failed" } else { "" };
                *found.events.entry(format!("{name}{failed}")).or_default() += 1;
            }
            // Each call that was made by the last event fails once.
            if let Some((Choice(event, None), before)) = path.split_last() {
                let opens = matches!(made.last(), Some((Event::Step(_), _)));
                let most =
                    if world.faults > 0 && (!opens || bounds.of_openings) { calls } else { 0 };
                open.extend((0..most).map(|n| [before, &[Choice(*event, Some(n))]].concat()));
            }
            let events = world.events();
            if !events.iter().any(Event::is_due) {
                world.check_end();
                found.ends += 1;
            }
            for note in std::mem::take(&mut world.notes) {
                *found.notes.entry(note).or_default() += 1;
            }
            let is_wrong = !world.wrong.is_empty();
            for wrong in std::mem::take(&mut world.wrong) {
                let known = found.wrong.get(&wrong);
                if known.is_none_or(|(known, _)| known.len() > path.len()) {
                    found.wrong.insert(wrong, (path.clone(), made.clone()));
                }
            }
            if is_wrong || events.is_empty() || !seen.insert(world.shown()) {
                break;
            }
            for choice in (1..events.len()).rev() {
                open.push([&path[..], &[Choice(choice, None)]].concat());
            }
            calls = world.happen(&events[0], None);
            made.push((events[0].clone(), None));
            path.push(Choice(0, None));
        }
    }
    found.states = seen.len();
    found
}

fn setting(name: &str) -> Option<usize> {
    std::env::var(name).ok().map(|value| value.parse().expect(name))
}

#[test]
fn every_order_of_a_handover() {
    let is_long = std::env::var_os("ONLYONCE_WHOLE").is_some();
    let bounds = Bounds {
        crashes: setting("ONLYONCE_CRASHES").unwrap_or(1),
        breaks: setting("ONLYONCE_BREAKS").unwrap_or(usize::from(is_long)),
        give_ups: setting("ONLYONCE_GIVE_UPS").unwrap_or(usize::from(is_long)),
        faults: 0,
        of_openings: false,
        of_guests: true,
    };
    let all = PROGRAMS.map(|(name, _)| name);
    let these = if is_long { &all[..] } else { &SHORT };
    explore_all(&these.iter().map(|name| (*name, bounds)).collect::<Vec<_>>());
}

/// What the orders above leave out, with programs that are as short as each allows: connections that break, callers that give up,
/// calls sent again after others have changed the key, and records that are not written when they are placed.
#[test]
fn every_order_of_a_handover_in_which_more_goes_wrong() {
    let is_whole = std::env::var_os("ONLYONCE_WHOLE").is_some();
    let is_long = is_whole || std::env::var_os("ONLYONCE_LONG").is_some();
    let bounds = |crashes, breaks, give_ups| Bounds {
        crashes,
        breaks,
        give_ups,
        faults: 0,
        of_openings: false,
        of_guests: is_whole,
    };
    let short = [
        ("mark/none", bounds(0, 1, 0)),
        ("claim/none", bounds(0, 0, 1)),
        ("ask/ask", bounds(usize::from(is_long), 0, 1)),
    ];
    let long = [("mark/forget", bounds(1, 0, 0)), (LAZY, bounds(1, 0, 0))];
    let these = if is_long { [&short[..], &long[..]].concat() } else { short.to_vec() };
    explore_all(&these);
}

/// Each call of the disk fails once, whatever happens before and after it: the host keeps its guests, who read on, and what it was
/// asked is answered. Once it has closed or was killed, the next host has everything that was acknowledged, and each call's effect at
/// most once.
#[test]
fn every_order_of_a_handover_after_a_failure_of_the_disk() {
    let is_long = std::env::var_os("ONLYONCE_WHOLE").is_some();
    let bounds = |crashes| Bounds {
        crashes: setting("ONLYONCE_CRASHES").unwrap_or(if is_long { 1 } else { crashes }),
        breaks: 0,
        give_ups: 0,
        faults: setting("ONLYONCE_FAULTS").unwrap_or(1),
        of_openings: is_long,
        of_guests: is_long,
    };
    explore_all(&[("mark/look", bounds(1)), ("drop/mark", bounds(0)), ("end/mark", bounds(0))]);
}

/// Explores these programs, or those that are asked for.
fn explore_all(these: &[(&str, Bounds)]) {
    let only = std::env::var("ONLYONCE_PROGRAMS").ok();
    let chosen = |of: &'static Programs| match &only {
        Some(only) if only.split(',').any(|only| only == of.0) => Some((of, these[0].1)),
        Some(_) => None,
        None => Some((of, these.iter().find(|(name, _)| *name == of.0)?.1)),
    };
    let open = std::sync::Mutex::new(PROGRAMS.iter().filter_map(chosen));
    let wrong = std::sync::Mutex::new(Vec::new());
    let work = || {
        loop {
            let next = open.lock().unwrap().next();
            let Some((programs, bounds)) = next else { return };
            let began = Instant::now();
            let found = explore(*programs, bounds);
            let Found { states, runs, ends, events, notes, .. } = &found;
            let (name, took) = (programs.0, began.elapsed());
            println!(
                "{name}, {bounds:?}: {states} states, {runs} runs, {ends} ends, {took:.1?}; {events:?}; {notes:?}"
            );
            for (what, (path, events)) in found.wrong {
                let shown = |(event, fault): &Made| match fault {
                    Some(call) => format!("{event:?}, whose call {call} of the disk fails,"),
                    None => format!("{event:?}"),
                };
                let events: Vec<_> = events.iter().map(shown).collect();
                let text = format!("{name}: {what}, by {path:?}\n    {}", events.join(" "));
                wrong.lock().unwrap().push(text);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
