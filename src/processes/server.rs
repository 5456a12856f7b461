//! The host's side of the connections to guests, pure: frames in, calls on the engine and frames out.
//!
//! Promises: a guest's claim lives as long as its session does, connected or not. A session has one connection: a new one ends the
//! old one. No answer is sent to a guest before the records that it rests on are written. A guest that breaks the rules loses its
//! connection, and no other guest waits for it. Never: does I/O, waits, or decides about a key.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use super::errand::{is_quick, run_errand};
use super::frame::{
    ErrandReply, Frames, FromGuest, FromHost, HeldClaim, Hello, HostErrand, Versioned,
    WIRE_VERSION, Welcome, frame_bytes_max, put_frame,
};
use crate::admin::Health;
use crate::backend::{
    Ask, Errand, Reply, Request, Sent, ServedGuests, Shared, outlives, send_for_guest,
};
use crate::engine::{KeptClaim, Sending, Writing};
use crate::limits;
use crate::operation::{Durability, Key};
use crate::protocol::{Answer, Call};
use crate::sync::Mutex;
use crate::types::{Lsn, Origin, SessionId, Token, in_memory};
use crate::{Error, ErrorKind, Result};

/// One connection, by its number.
pub(crate) type LineId = u64;

/// What a call is known by: session, request, item.
type CallId = (SessionId, u64, u32);

/// All guests of a hosted store.
pub(crate) struct Server {
    shared: Arc<Shared>,
    pid: u32,
    result_bytes_max: u32,
    guests: BTreeMap<SessionId, Joined>,
    lines: BTreeMap<LineId, Line>,
    next_line: LineId,
    /// Numbers of the requests that guests know nothing of, from the end.
    last_own: u64,
    ready: Arc<ReadyCalls>,
}

/// Calls that can go on.
struct ReadyCalls {
    calls: Mutex<Vec<CallId>>,
    notify: Box<dyn Fn() + Send + Sync>,
}

/// Wakes one call.
struct CallWaker {
    id: CallId,
    ready: Arc<ReadyCalls>,
}

impl Wake for CallWaker {
    fn wake(self: Arc<Self>) {
        self.ready.calls.lock().push(self.id);
        (self.ready.notify)();
    }
}

/// A connection.
struct Line {
    /// `None`: no guest has joined on this connection yet.
    session: Option<SessionId>,
    frames: Frames,
    out: VecDeque<u8>,
    /// The connection is ended once everything in `out` was sent.
    is_over: bool,
    /// Since when the rest of a frame, or the first one, has not come: the clock's nanoseconds.
    waits_since: Option<u64>,
}

/// A session that has joined, or has claims from the time of the previous host.
#[derive(Default)]
struct Joined {
    line: Option<LineId>,
    claims: BTreeMap<Token, Key<'static>>,
    questions: BTreeMap<u64, Key<'static>>,
    open: BTreeMap<(u64, u32), OpenCall>,
    errands: BTreeMap<u64, OpenErrand>,
    /// Errands that wait until there are fewer.
    waiting: VecDeque<(u64, HostErrand)>,
}

/// Work on the whole store that a thread of its own does.
struct OpenErrand {
    errand: Errand<ErrandReply>,
    waker: Waker,
    /// The errand ends this host, which therefore doesn't wait for the answer.
    ends_host: bool,
}

/// A call that is not answered.
struct OpenCall {
    key: Key<'static>,
    call: Option<Call>,
    sent: Box<dyn Sent>,
    waker: Waker,
}

impl Server {
    /// `kept`: the claims of living sessions. `notify` is called when [`go_on`](Self::go_on) has something to do, on any thread.
    pub(crate) fn new(
        shared: Arc<Shared>,
        pid: u32,
        kept: Vec<KeptClaim>,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let ready = ReadyCalls { calls: Mutex::new(Vec::new()), notify: Box::new(notify) };
        let mut guests: BTreeMap<SessionId, Joined> = BTreeMap::new();
        for KeptClaim { session, key, token } in kept {
            guests.entry(session).or_default().claims.insert(token, key);
        }
        let result_bytes_max = shared.result_bytes_max();
        let (lines, ready) = (BTreeMap::new(), Arc::new(ready));
        let server = Server {
            shared,
            pid,
            result_bytes_max,
            guests,
            lines,
            next_line: 0,
            last_own: u64::MAX,
            ready,
        };
        server.count_guests();
        server
    }

    /// Sessions without a connection. The thread of the host asks from time to time whether they live, see [`died`](Self::died).
    pub(crate) fn unconnected(&self) -> Vec<SessionId> {
        let is_it = |(_, guest): &(&SessionId, &Joined)| guest.line.is_none();
        self.guests.iter().filter(is_it).map(|(session, _)| *session).collect()
    }

    pub(crate) fn connected(&mut self, now: u64) -> LineId {
        self.next_line += 1;
        let frames = Frames::new(frame_bytes_max(self.result_bytes_max));
        let (out, waits_since) = (VecDeque::new(), Some(now));
        let line = Line { session: None, frames, out, is_over: false, waits_since };
        self.lines.insert(self.next_line, line);
        self.next_line
    }

    /// Sends the reason for a refusal on a connection, and ends it.
    pub(crate) fn refuse(&mut self, id: LineId, why: Error) {
        if let Some(line) = self.lines.get_mut(&id) {
            let frame = FromHost::Refused(Versioned::Same(why));
            put(&frame, self.result_bytes_max, &mut line.out);
            line.is_over = true;
        }
    }

    /// Whether a guest has joined on the connection.
    pub(crate) fn has_joined(&self, id: LineId) -> bool {
        self.lines.get(&id).is_some_and(|line| line.session.is_some())
    }

    /// Takes bytes that have arrived.
    pub(crate) fn received(&mut self, id: LineId, bytes: &[u8], now: u64) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.frames.arrived(bytes);
        self.take_frames(id, now);
    }

    /// Ends the connections on which a frame was begun long ago, or none has come. While nothing is read from a guest, the rest of
    /// its frame can't come.
    pub(crate) fn end_late(&mut self, now: u64) {
        for line in self.lines.values_mut() {
            let is_waited_for = !line.is_over && !line.is_clogged();
            let since = line.waits_since.filter(|_| is_waited_for);
            if since.is_some_and(|since| now - since > limits::FRAME_NANOS_MAX) {
                (line.is_over, line.out) = (true, VecDeque::new());
            }
        }
    }

    /// Whether [`end_late`](Self::end_late) may have something to do later.
    pub(crate) fn may_be_late(&self) -> bool {
        self.lines.values().any(|line| line.waits_since.is_some())
    }

    /// Takes the frames that have arrived whole, until their answers clog the connection.
    fn take_frames(&mut self, id: LineId, now: u64) {
        let mut has_taken = false;
        while let Some(line) = self.lines.get_mut(&id).filter(|line| line.may_be_taken_from()) {
            match line.frames.next::<FromGuest>() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    has_taken = true;
                    self.take(id, frame);
                }
                Err(_) => self.end_line(id),
            }
        }
        if let Some(line) = self.lines.get_mut(&id) {
            let is_waited_for = line.frames.is_within() || line.session.is_none();
            // The rest of the buffer has come with the last bytes.
            let since = line.waits_since.filter(|_| !has_taken);
            line.waits_since = is_waited_for.then(|| since.unwrap_or(now));
        }
    }

    /// Bytes to send, from the first on. Those that were sent have to be [`drained`](Self::drained).
    pub(crate) fn to_send(&self, id: LineId) -> &[u8] {
        self.lines.get(&id).map_or(&[], |line| line.out.as_slices().0)
    }

    pub(crate) fn drained(&mut self, id: LineId, bytes: usize, now: u64) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        let was_clogged = line.is_clogged();
        line.out.drain(..bytes.min(line.out.len()));
        if was_clogged && !line.is_clogged() {
            line.waits_since = None;
            self.take_frames(id, now);
        }
    }

    /// Whether the connection is to be closed now.
    pub(crate) fn is_over(&self, id: LineId) -> bool {
        self.lines.get(&id).is_none_or(|line| line.is_over && line.out.is_empty())
    }

    /// Whether so many answers wait for a guest that nothing more is read from it.
    pub(crate) fn is_clogged(&self, id: LineId) -> bool {
        self.lines.get(&id).is_some_and(Line::is_clogged)
    }

    /// The connection has ended: what was asked on it is thrown away, and questions end.
    pub(crate) fn ended(&mut self, id: LineId) {
        let Some(line) = self.lines.remove(&id) else { return };
        let Some(session) = line.session else { return };
        let Some(guest) = self.guests.get_mut(&session).filter(|guest| guest.line == Some(id))
        else {
            return;
        };
        guest.line = None;
        let (open, questions) =
            (std::mem::take(&mut guest.open), std::mem::take(&mut guest.questions));
        // Errands that have begun go on, and their answers are dropped.
        (guest.errands, guest.waiting) = (BTreeMap::new(), VecDeque::new());
        // After the drop, a grant is withdrawn, and an ending goes on.
        drop(open);
        self.count_guests();
        for (question, key) in questions {
            self.shared.unask(&key, self.shared.hash(&key), question);
        }
    }

    /// Interrupts the claims of a session that has ended.
    pub(crate) fn died(&mut self, session: SessionId) {
        let Some(guest) = self.guests.remove(&session) else { return };
        let Joined { claims, questions, open, line, .. } = guest;
        drop(open);
        self.count_guests();
        if let Some(line) = line {
            self.lines.remove(&line);
        }
        for (question, key) in questions {
            self.shared.unask(&key, self.shared.hash(&key), question);
        }
        for (token, key) in claims {
            let (hash, call) = (self.shared.hash(&key), Call::Interrupt(token));
            self.shared.let_go(&key, hash, call, "its process is gone", &Writing::default());
        }
    }

    /// Goes on with the calls that were woken.
    pub(crate) fn go_on(&mut self) {
        let ready = std::mem::take(&mut *self.ready.calls.lock());
        for (session, request, item) in ready {
            self.poll(session, request, item);
        }
    }

    /// Announces to all guests that the host closes. Nothing more is taken from them.
    pub(crate) fn go(&mut self) {
        for line in self.lines.values_mut().filter(|line| line.session.is_some()) {
            put(&FromHost::Going, self.result_bytes_max, &mut line.out);
            line.is_over = true;
        }
    }

    /// Whether all calls of guests are answered.
    pub(crate) fn is_idle(&self) -> bool {
        let is_idle = |guest: &Joined| {
            guest.open.is_empty() && guest.errands.values().all(|errand| errand.ends_host)
        };
        self.guests.values().all(is_idle)
    }

    /// Has the store show how many guests it has.
    fn count_guests(&self) {
        if let Ok(embedded) = self.shared.embedded() {
            let joined = self.guests.values().filter(|guest| guest.line.is_some()).count() as u64;
            let result_bytes_max = self.result_bytes_max;
            embedded.set_guests(ServedGuests { joined, result_bytes_max });
        }
    }

    fn end_line(&mut self, id: LineId) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.is_over = true;
        }
    }

    fn take(&mut self, id: LineId, frame: FromGuest) {
        let session = self.lines.get(&id).and_then(|line| line.session);
        match (frame, session) {
            (FromGuest::Hello(Versioned::Same(hello)), None) => self.join(id, hello),
            (FromGuest::Hello(Versioned::Other(version)), None) => {
                let message = format!(
                    "the process that hosts the store, {}, speaks version {WIRE_VERSION} with its guests, and this one version \
                     {version}: run the same release in all processes that share a store",
                    self.pid
                );
                self.refuse(id, Error::new(ErrorKind::Incompatible, message));
            }
            (FromGuest::Held { held, more: _ }, Some(session)) => self.name(session, held),
            (FromGuest::Call { request, heard, again, calls }, Some(session)) => {
                self.begin(id, session, request, again.then_some(heard), calls);
            }
            (FromGuest::GiveUp { request }, Some(session)) => self.give_up(session, request),
            (FromGuest::Errand { request, again: _, what }, Some(session)) => {
                if matches!(what, HostErrand::Reopen) && !self.reopens_for(session, request) {
                    return;
                }
                self.begin_errand(id, session, request, what);
            }
            (FromGuest::Leave, Some(session)) => {
                self.died(session);
                self.lines.remove(&id);
            }
            (FromGuest::Hello(_), Some(_)) | (_, None) => self.end_line(id),
        }
    }

    fn join(&mut self, id: LineId, hello: Hello) {
        let old = self.guests.get(&hello.session).and_then(|guest| guest.line);
        if let Some(old) = old {
            self.ended(old);
        }
        self.result_bytes_max = self.result_bytes_max.max(hello.result_bytes_max);
        self.guests.entry(hello.session).or_default().line = Some(id);
        self.count_guests();
        self.name(hello.session, hello.held);
        let most = frame_bytes_max(self.result_bytes_max);
        self.lines.values_mut().for_each(|line| line.frames.accept(most));
        let welcome = Welcome {
            pid: self.pid,
            secret: self.shared.secret(),
            result_bytes_max: self.result_bytes_max,
            compress_over: self.shared.keeping().compress_over,
            now: self.shared.now(),
            end: self.heard(),
        };
        if let Some(line) = self.lines.get_mut(&id) {
            line.session = Some(hello.session);
            let frame = FromHost::Welcome(Versioned::Same(welcome));
            put(&frame, self.result_bytes_max, &mut line.out);
        }
    }

    /// Takes the claims that a guest holds and names when it joins.
    fn name(&mut self, session: SessionId, held: Vec<HeldClaim>) {
        let Some(guest) = self.guests.get_mut(&session) else { return };
        let mut attached = Vec::new();
        for HeldClaim { key, token, lease_left_millis, .. } in held {
            let is_known = guest.claims.insert(token, key.clone()).is_some();
            match (is_known, lease_left_millis, self.shared.embedded()) {
                (true, Some(left), Ok(engine)) => {
                    // A claim that has gone meanwhile has no lease to keep.
                    let _ = engine.keep_lease(&key, token, left);
                }
                (true, ..) => {}
                (false, ..) => attached.push((key, token)),
            }
        }
        // The open did not find these claims: the guest had attached them by a ticket, so they are attached again. No caller waits for
        // the answers.
        for (key, token) in attached {
            self.last_own -= 1;
            let ask = Ask::Call(Call::Attach(token), Box::default());
            let request = Request { key, ask };
            self.begin_one(session, self.last_own, 0, None, request);
        }
    }

    /// How far the log is written: what a process that is killed leaves behind.
    fn heard(&self) -> Lsn {
        self.shared.written().unwrap_or(Lsn::ZERO)
    }

    fn begin(
        &mut self,
        id: LineId,
        session: SessionId,
        request: u64,
        heard: Option<Lsn>,
        calls: Vec<Request>,
    ) {
        let is_too_many = self.guests.get(&session).is_none_or(|guest| {
            guest.open.len() + calls.len() > limits::GUEST_CALLS_MAX
                || guest.open.range((request, 0)..=(request, u32::MAX)).next().is_some()
        });
        if is_too_many {
            return self.end_line(id);
        }
        for (item, made) in (0..).zip(calls) {
            self.begin_one(session, request, item, heard, made);
        }
    }

    fn begin_one(
        &mut self,
        session: SessionId,
        request: u64,
        item: u32,
        heard: Option<Lsn>,
        mut made: Request,
    ) {
        let mut call = None;
        if let Ask::Call(of, terms) = &mut made.ask {
            call = Some(*of);
            if terms.durability == Some(Durability::Lazy) {
                terms.durability = Some(Durability::Flush);
            }
            let origin = Origin { session, request, item };
            terms.details_mut().sending = Some(Sending { origin, heard });
        }
        let key = made.key.clone();
        let id = (session, request, item);
        let waker = Waker::from(Arc::new(CallWaker { id, ready: Arc::clone(&self.ready) }));
        let sent = send_for_guest(&self.shared, made);
        if let Some(guest) = self.guests.get_mut(&session) {
            guest.open.insert((request, item), OpenCall { key, call, sent, waker });
        }
        self.poll(session, request, item);
    }

    fn poll(&mut self, session: SessionId, request: u64, item: u32) {
        let Some(guest) = self.guests.get_mut(&session) else { return };
        if guest.errands.contains_key(&request) {
            return self.poll_errand(session, request);
        }
        let Some(open) = guest.open.get_mut(&(request, item)) else { return };
        let waker = open.waker.clone();
        let polled = open.sent.poll(&mut Context::from_waker(&waker));
        let Poll::Ready(told) = polled else { return };
        let told = told.map_err(|e| self.named(e));
        let Some(guest) = self.guests.get_mut(&session) else { return };
        if let Some(OpenCall { key, call, .. }) = guest.open.remove(&(request, item)) {
            guest.note(&key, call, &told);
        }
        let (end, most) = (self.heard(), self.result_bytes_max);
        if let Some(line) = self.line_of(session) {
            put_reply(request, item, end, told, most, line);
        }
    }

    fn line_of(&mut self, session: SessionId) -> Option<&mut VecDeque<u8>> {
        let id = self.guests.get(&session)?.line?;
        self.lines.get_mut(&id).map(|line| &mut line.out)
    }

    /// Drops a request that its caller gave up: a grant is withdrawn. The answer is sent once a kill can't undo that.
    fn give_up(&mut self, session: SessionId, request: u64) {
        let Some(guest) = self.guests.get_mut(&session) else { return };
        let given_up: Vec<_> =
            guest.open.range((request, 0)..=(request, u32::MAX)).map(|(id, _)| *id).collect();
        for (request, item) in given_up {
            // If the call isn't open, its answer is on its way.
            let Some(guest) = self.guests.get_mut(&session) else { return };
            let Some(OpenCall { key, sent, waker, .. }) = guest.open.remove(&(request, item))
            else {
                continue;
            };
            drop(sent);
            let sent = outlives(&self.shared);
            guest.open.insert((request, item), OpenCall { key, call: None, sent, waker });
            self.poll(session, request, item);
        }
    }

    /// Whether a guest's call reopens the store. If the same call has had this host reopen the store before, and that failed, the guest
    /// gets the error.
    fn reopens_for(&mut self, session: SessionId, request: u64) -> bool {
        let Ok(embedded) = self.shared.embedded() else { return true };
        if embedded.reopens_for(session, request) || !embedded.log.is_poisoned() {
            return true;
        }
        let failed = embedded.log.poisoned();
        self.tell_errand(session, request, Err(failed));
        false
    }

    fn begin_errand(&mut self, id: LineId, session: SessionId, request: u64, what: HostErrand) {
        if is_quick(&what) {
            let told = run_errand(&self.shared, what, usize::MAX);
            return self.tell_errand(session, request, told);
        }
        let Some(guest) = self.guests.get_mut(&session) else { return };
        if guest.waiting.len() >= limits::GUEST_CALLS_MAX || guest.errands.contains_key(&request) {
            return self.end_line(id);
        }
        guest.waiting.push_back((request, what));
        self.begin_waiting(session);
    }

    fn begin_waiting(&mut self, session: SessionId) {
        loop {
            let Some(guest) = self.guests.get_mut(&session) else { return };
            if guest.errands.len() >= limits::GUEST_ERRANDS_AT_ONCE {
                return;
            }
            let Some((request, what)) = guest.waiting.pop_front() else { return };
            let (id, ready) = ((session, request, 0), Arc::clone(&self.ready));
            let waker = Waker::from(Arc::new(CallWaker { id, ready }));
            let theirs = Arc::clone(&self.shared);
            let most = in_memory(u64::from(frame_bytes_max(self.result_bytes_max)));
            let ends_host = matches!(what, HostErrand::Reopen);
            let work = move |_: &Shared| run_errand(&theirs, what, most);
            let errand = Errand::run(&self.shared, "onlyonce-errand", work);
            guest.errands.insert(request, OpenErrand { errand, waker, ends_host });
            self.poll_errand(session, request);
        }
    }

    fn poll_errand(&mut self, session: SessionId, request: u64) {
        let Some(guest) = self.guests.get_mut(&session) else { return };
        let Some(OpenErrand { errand, waker, .. }) = guest.errands.get_mut(&request) else {
            return;
        };
        let Poll::Ready(told) = errand.poll(&mut Context::from_waker(&waker.clone())) else {
            return;
        };
        guest.errands.remove(&request);
        self.tell_errand(session, request, told);
        self.begin_waiting(session);
    }

    /// Adds the host's process to the error of a poisoned store, because the store has to be reopened in that process.
    fn named(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::Poisoned {
            return error;
        }
        let message = format!("{}: {error}", self.host_words());
        Error::new(ErrorKind::Poisoned, message).because(error)
    }

    fn host_words(&self) -> String {
        format!("process {}, which hosts the store", self.pid)
    }

    fn tell_errand(&mut self, session: SessionId, request: u64, told: Result<ErrandReply>) {
        // The guest asks the next host.
        if told.as_ref().is_err_and(|e| e.kind() == ErrorKind::Closed) {
            return;
        }
        let told = told.map_err(|e| self.named(e));
        let (end, most, host) = (self.heard(), self.result_bytes_max, self.host_words());
        let Some(line) = self.line_of(session) else { return };
        let mut parts = match told {
            Ok(ErrandReply::Health(Health::Poisoned { cause })) => {
                let cause = format!("{host}: {cause}");
                VecDeque::from([Ok(ErrandReply::Health(Health::Poisoned { cause }))])
            }
            Ok(reply) => reply.into_parts().into_iter().map(Ok).collect(),
            Err(e) => VecDeque::from([Err(e)]),
        };
        while let Some(told) = parts.pop_front() {
            let more = !parts.is_empty();
            put(&FromHost::ErrandTold { request, end, more, told }, most, line);
        }
    }
}

#[cfg(test)]
impl Server {
    /// A text that is the same for the same state.
    pub(crate) fn shown(&self) -> String {
        let mut shown = format!("{:?}", self.ready.calls.lock());
        for (session, guest) in &self.guests {
            let Joined { line, claims, questions, open, .. } = guest;
            let open: Vec<_> = open.iter().map(|(id, open)| (id, open.call)).collect();
            shown += &format!("\n{session:?} {line:?} {claims:?} {questions:?} {open:?}");
        }
        for (id, line) in &self.lines {
            let Line { session, frames, out, is_over, .. } = line;
            shown += &format!("\n{id} {session:?} {} {out:?} {is_over}", frames.buffered());
        }
        shown
    }

    /// The sessions whose calls are not answered.
    pub(crate) fn unanswered(&self) -> Vec<SessionId> {
        let open = self.guests.iter().filter(|(_, guest)| !guest.open.is_empty());
        open.map(|(session, _)| *session).collect()
    }
}

impl Line {
    fn is_clogged(&self) -> bool {
        self.out.len() > limits::GUEST_OUT_BYTES_MAX
    }

    fn may_be_taken_from(&self) -> bool {
        !self.is_over && !self.is_clogged()
    }
}

impl Joined {
    /// Keeps account of what the guest holds.
    fn note(&mut self, key: &Key<'static>, call: Option<Call>, told: &Result<Reply>) {
        let (Some(call), Ok(reply)) = (call, told) else { return };
        if let Some(claimed) = reply.claimed {
            self.claims.insert(claimed.token, key.clone());
        }
        match call {
            Call::Attach(token) if reply.answer == Answer::Done => {
                self.claims.insert(token, key.clone());
            }
            Call::TakeOver(_) | Call::NotApplied(_) | Call::Hold(_) => {
                self.questions.retain(|_, asked| asked != key);
            }
            Call::DropQuestion(question) => {
                self.questions.remove(&question);
            }
            _ => {}
        }
        if reply.answer == Answer::Asked {
            self.questions.insert(reply.question, key.clone());
        }
        if let Some(token) = call.ends() {
            self.claims.remove(&token);
        }
    }
}

fn put(frame: &FromHost, result_bytes_max: u32, out: &mut VecDeque<u8>) {
    let mut bytes = Vec::new();
    // What is too long for a frame is an answer of its own, see `put_reply`.
    if put_frame(frame, frame_bytes_max(result_bytes_max), &mut bytes).is_ok() {
        out.extend(bytes);
    }
}

fn put_reply(
    request: u64,
    item: u32,
    end: Lsn,
    reply: Result<Reply>,
    result_bytes_max: u32,
    out: &mut VecDeque<u8>,
) {
    let mut bytes = Vec::new();
    let frame = FromHost::Told { request, item, end, reply };
    if put_frame(&frame, frame_bytes_max(result_bytes_max), &mut bytes).is_err() {
        let message = "the recorded result is longer than any that the processes of this store may record now: open it with a \
             greater result_bytes_max";
        let reply = Err(Error::new(ErrorKind::TooLarge, message));
        let frame = FromHost::Told { request, item, end, reply };
        let _ = put_frame(&frame, frame_bytes_max(result_bytes_max), &mut bytes);
    }
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::protocol::Wants;
    use crate::testing::Sim;

    const FAR: Duration = Duration::from_secs(60);

    /// What the server has put out for a guest since the last time.
    fn told(server: &mut Server, id: LineId, frames: &mut Frames) -> Vec<FromHost> {
        let bytes = server.to_send(id).to_vec();
        server.drained(id, bytes.len(), 0);
        frames.arrived(&bytes);
        std::iter::from_fn(|| frames.next::<FromHost>().unwrap()).collect()
    }

    /// A compaction takes minutes. Guests ask on meanwhile, the same one and others.
    #[test]
    fn an_errand_delays_no_other_answer() {
        let store = Sim::new(1).open().unwrap();
        let view = Arc::new(Shared::Embedded(store.shared().embedded().unwrap().view()));
        let (notify, notified) = mpsc::channel();
        let (tell, done) = mpsc::channel();
        let working = store.clone();
        let asked = std::thread::spawn(move || {
            let mut server = Server::new(view, 1, Vec::new(), move || {
                let _ = notify.send(());
            });
            let mut lines = Vec::new();
            for session in [7, 8] {
                let line = server.connected(0);
                let session = SessionId::new(session).unwrap();
                let (held, more) = (Vec::new(), false);
                let hello = Hello { session, pid: 2, result_bytes_max: 1, held, more };
                let hello = FromGuest::Hello(Versioned::Same(hello));
                lines.push((line, Frames::new(u32::MAX), hello));
            }
            let errand = |request, what| FromGuest::Errand { request, again: false, what };
            let look = Request { key: Key::from("k"), ask: Ask::Look };
            let call =
                FromGuest::Call { request: 2, heard: Lsn::ZERO, again: false, calls: vec![look] };
            // As while another compaction works.
            let work = working.engine().hold_work();
            for (n, (line, frames, hello)) in lines.iter_mut().enumerate() {
                let compact = errand(1, HostErrand::Compact { budget: u64::MAX });
                let health = errand(3, HostErrand::Health { reserve_bytes: 0 });
                let mut bytes = Vec::new();
                put_frame(hello, u32::MAX, &mut bytes).unwrap();
                if n == 0 {
                    put_frame(&compact, u32::MAX, &mut bytes).unwrap();
                }
                put_frame(&call, u32::MAX, &mut bytes).unwrap();
                put_frame(&health, u32::MAX, &mut bytes).unwrap();
                server.received(*line, &bytes, 0);
                let told = told(&mut server, *line, frames);
                let [FromHost::Welcome(_), FromHost::Told { request: 2, .. }, last] = &told[..]
                else {
                    panic!("{told:?}");
                };
                assert!(matches!(last, FromHost::ErrandTold { request: 3, .. }), "{last:?}");
            }
            assert!(!server.is_idle());
            drop(work);
            let (line, frames, _) = &mut lines[0];
            let mut last = Vec::new();
            while last.is_empty() {
                notified.recv_timeout(FAR).unwrap();
                server.go_on();
                last = told(&mut server, *line, frames);
            }
            let done = matches!(&last[..], [FromHost::ErrandTold { request: 1, told: Ok(_), .. }]);
            assert!(done && server.is_idle(), "{last:?}");
            tell.send(()).unwrap();
        });
        let in_time = done.recv_timeout(FAR).is_ok();
        assert!(
            in_time || asked.is_finished(),
            "the thread that serves guests waits for a compaction"
        );
        asked.join().unwrap();
    }

    fn framed(frames: &[FromGuest]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| put_frame(frame, u32::MAX, &mut bytes).unwrap());
        bytes
    }

    fn hello(session: u64) -> FromGuest {
        let (session, held) = (SessionId::new(session).unwrap(), Vec::new());
        let hello = Hello { session, pid: 2, result_bytes_max: 1, held, more: false };
        FromGuest::Hello(Versioned::Same(hello))
    }

    fn look(request: u64) -> FromGuest {
        let calls = vec![Request { key: Key::from("k"), ask: Ask::Look }];
        FromGuest::Call { request, heard: Lsn::ZERO, again: false, calls }
    }

    fn server(store: &crate::Store) -> Server {
        let view = Arc::new(Shared::Embedded(store.shared().embedded().unwrap().view()));
        Server::new(view, 1, Vec::new(), || ())
    }

    /// A guest that reads nothing, or is stopped, could have the host keep a thousand answers of the greatest length.
    #[test]
    fn answers_that_a_guest_doesn_t_read_take_bounded_memory() {
        const RESULT: usize = 256 << 10;
        let store = Sim::new(1).open().unwrap();
        let crate::Claim::Acquired(claim) = store.claim("k").unwrap() else { panic!() };
        claim.complete(&"x".repeat(RESULT)).unwrap();
        let mut server = server(&store);
        let slow = server.connected(0);
        let mut sent = vec![hello(7)];
        sent.extend((1..=100).map(look));
        server.received(slow, &framed(&sent), 0);
        let most = limits::GUEST_OUT_BYTES_MAX + RESULT + 1024;
        assert!(server.is_clogged(slow) && server.lines[&slow].out.len() < most);
        // It may be stopped for long, and has sent all that it was to send.
        server.end_late(10 * limits::FRAME_NANOS_MAX);
        assert!(!server.is_over(slow));

        let mut frames = Frames::new(u32::MAX);
        let other = server.connected(0);
        server.received(other, &framed(&[hello(8), look(1)]), 0);
        let of_other = told(&mut server, other, &mut frames);
        assert!(matches!(&of_other[..], [FromHost::Welcome(_), FromHost::Told { .. }]));

        let (mut frames, mut answered) = (Frames::new(u32::MAX), 0);
        while !server.to_send(slow).is_empty() {
            assert!(server.lines[&slow].out.len() < most);
            for frame in told(&mut server, slow, &mut frames) {
                if let FromHost::Told { request, reply: Ok(_), .. } = frame {
                    answered += 1;
                    assert_eq!(request, answered);
                }
            }
        }
        assert_eq!(answered, 100);
    }

    /// The rest of a frame has to follow its beginning within ten seconds, and the first frame the connection. A guest that always
    /// has more to send is never late.
    #[test]
    fn a_frame_that_is_begun_and_not_ended_ends_the_connection() {
        const SECOND: u64 = 1_000_000_000;
        let store = Sim::small(1).open().unwrap();
        let mut server = server(&store);
        let lines: [LineId; 4] = std::array::from_fn(|_| server.connected(0));
        let [silent, stuck, slow, busy] = lines;
        server.received(stuck, &framed(&[hello(7)]), 0);
        let call = framed(&[look(1)]);
        server.received(stuck, &call[..call.len() - 1], SECOND);
        server.received(slow, &framed(&[hello(8)]), 0);
        server.received(busy, &framed(&[hello(9)]), 0);
        let mut frames = Frames::new(u32::MAX);
        let mut of_slow = Vec::new();
        let mut over = Vec::new();
        for second in 1..=30 {
            let now = second * SECOND;
            server.end_late(now);
            for line in lines {
                if server.is_over(line) && !over.contains(&(line, second)) {
                    over.push((line, second));
                    server.ended(line);
                }
            }
            // Its calls come byte by byte, each within ten seconds.
            if let Some(byte) = call.chunks(call.len().div_ceil(5)).nth((second as usize - 1) % 5) {
                server.received(slow, byte, now);
            }
            of_slow.extend(told(&mut server, slow, &mut frames));
            // Each time that it is read, the last frame lacks its end.
            let stream = framed(&[look(second), look(second + 1)]);
            let end = stream.len() - 1;
            let begin = if second == 1 { 0 } else { call.len() - 1 };
            server.received(busy, &stream[begin..end], now);
            server.drained(busy, usize::MAX, now);
        }
        over.retain(|(line, _)| lines.contains(line));
        let first = |line| over.iter().find(|(of, _)| *of == line).map(|(_, second)| *second);
        assert_eq!([silent, stuck, slow, busy].map(first), [Some(11), Some(12), None, None]);
        assert_eq!(of_slow.len(), 1 + 30 / 5);
    }

    /// A guest may send anything, and go in the midst of it.
    #[test]
    fn whatever_a_guest_sends_another_is_answered() {
        let call = |request, call| {
            let ask = Ask::Call(call, Box::default());
            let calls = vec![Request { key: Key::from("k"), ask }];
            FromGuest::Call { request, heard: Lsn::ZERO, again: false, calls }
        };
        let mark = Call::Record { fingerprint: None, failure: false };
        let what = HostErrand::Health { reserve_bytes: 0 };
        let stream = framed(&[
            hello(7),
            call(1, Call::Claim(Wants::default())),
            FromGuest::GiveUp { request: 1 },
            call(2, mark),
            FromGuest::Errand { request: 3, again: true, what },
            call(4, Call::Forget),
            call(5, Call::Claim(Wants::default())),
            FromGuest::Leave,
        ]);
        let cut = (0..=stream.len()).map(|at| stream[..at].to_vec());
        let damaged = (0..stream.len()).flat_map(|at| {
            [1, 0x80, 0xff].map(|by| {
                let mut bytes = stream.clone();
                bytes[at] ^= by;
                bytes
            })
        });
        let (mut runs, mut ended) = (0, 0);
        for bytes in cut.chain(damaged) {
            let store = Sim::small(1).open().unwrap();
            let mut server = server(&store);
            let (hostile, other) = (server.connected(0), server.connected(0));
            server.received(hostile, &bytes, 0);
            server.go_on();
            ended += usize::from(server.lines.get(&hostile).is_none_or(|line| line.is_over));
            let mut frames = Frames::new(u32::MAX);
            server.received(other, &framed(&[hello(8), call(1, mark)]), 0);
            server.go_on();
            let of_other = told(&mut server, other, &mut frames);
            let [FromHost::Welcome(_), FromHost::Told { request: 1, reply: Ok(_), .. }] =
                &of_other[..]
            else {
                panic!("{of_other:?} after {bytes:?}");
            };
            server.ended(hostile);
            server.died(SessionId::new(7).unwrap());
            runs += 1;
        }
        println!("{runs} streams, {ended} ended the connection");
    }
}
