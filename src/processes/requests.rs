//! The guest's side of its connection, pure: calls in, frames out; frames in, answers out.
//!
//! Promises: a call is kept until it is answered, also if its caller no longer waits: a grant that no caller takes is given back. When a
//! host has ended, calls without an answer are sent to the next host, marked as sent again, and calls of owners first. A call over
//! which two hosts have died is not sent to a third. A claim whose fate is unknown is withdrawn, and once more by the next host. The
//! calls on one claim are sent one after another. Never: does I/O, or waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;

use super::frame::{
    ErrandReply, Frames, FromGuest, FromHost, HeldClaim, Hello, HostErrand, TooLong, Versioned,
    WIRE_VERSION, Welcome, frame_bytes_max, put_frame,
};
use crate::backend::{Ask, Reply, Request, Terms};
use crate::engine::Sending;
use crate::limits;
use crate::operation::Key;
use crate::protocol::{Answer, Call};
use crate::sync::{WakeWord, wake};
use crate::types::{Lsn, Origin, SessionId, Token};
use crate::{Error, ErrorKind, Result};

/// What a guest asks of the host.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    Call(Request),
    Errand(HostErrand),
}

/// What the host answers.
#[derive(Debug)]
pub(crate) enum HostTold {
    Reply(Box<Result<Reply>>),
    Errand(Result<ErrandReply>),
}

/// The open requests of one session, and the claims it holds.
pub(crate) struct Requests {
    session: SessionId,
    pid: u32,
    result_bytes_max: u32,
    next: u64,
    /// The end of the log, as the host told it last.
    heard: Lsn,
    /// What time it is, in nanoseconds.
    now: u64,
    open: BTreeMap<u64, OpenRequest>,
    held: BTreeMap<Token, OwnClaim>,
    /// Requests that no caller waits for and that the host could not record: the next host gets them.
    unrecorded: Vec<Question>,
    /// The errors for calls whose time was up before the host answered.
    late: BTreeMap<u64, Error>,
    /// Woken once this process holds no claim.
    released: Option<Arc<WakeWord>>,
    link: Option<Link>,
}

/// What belongs to one connection.
struct Link {
    frames: Frames,
    out: Vec<u8>,
    is_welcome: bool,
    /// The number of the host's process, once it has answered.
    host: Option<u32>,
    /// The host has announced that it closes.
    is_going: bool,
}

/// A request without an answer, or with one that was not taken.
struct OpenRequest {
    question: Question,
    /// Until when the caller waits for the key, in nanoseconds. `None`: the caller's wait has no end.
    waits_until: Option<u64>,
    /// The end of the log that this process knew when it sent the request first.
    heard: Lsn,
    /// Whether the request was sent on this connection.
    is_sent: bool,
    /// Whether the request was sent to another host before.
    is_again: bool,
    /// How many connections have ended without an announced close after the request was sent on them: it may be what kills the hosts.
    deaths: u32,
    /// The caller no longer waits for the answer.
    is_left: bool,
    /// The parts of an errand's answer that have come, until the last part comes.
    begun: Option<ErrandReply>,
    told: Option<HostTold>,
    /// What a thread that waits for the answer sleeps on.
    word: Arc<WakeWord>,
    waker: Option<Waker>,
    /// Whether a thread waits for the answer.
    has_thread: bool,
}

/// What a call asked for and the next host has to know.
#[derive(Clone, Copy, Default)]
pub(crate) struct ClaimTerms {
    reserve: u64,
    lease_millis: Option<u64>,
}

impl ClaimTerms {
    pub(crate) fn of(terms: &Terms) -> Self {
        ClaimTerms { reserve: terms.reserve, lease_millis: terms.lease_millis }
    }
}

/// A claim that this process holds.
struct OwnClaim {
    key: Key<'static>,
    reserve: u64,
    lease: Option<OwnLease>,
    /// Attached by a ticket, which the next host has to be told.
    is_attached: bool,
}

/// A lease as its owner counts it: from the arrival of the answer that gave it.
#[derive(Clone, Copy)]
struct OwnLease {
    millis: u64,
    since: u64,
}

/// What has arrived on a connection.
#[derive(Debug)]
pub(crate) enum News {
    Nothing,
    Welcome(Welcome),
    /// The host takes no guest, or not this one.
    Refused(Error),
    /// The connection can't be used further: it broke the rules, or the host closes.
    Over,
}

impl Requests {
    pub(crate) fn new(session: SessionId, pid: u32, result_bytes_max: u32) -> Self {
        Requests {
            session,
            pid,
            result_bytes_max,
            next: 1,
            heard: Lsn::ZERO,
            now: 0,
            open: BTreeMap::new(),
            held: BTreeMap::new(),
            unrecorded: Vec::new(),
            late: BTreeMap::new(),
            released: None,
            link: None,
        }
    }

    /// Sets the time, by which leases pass. Called before bytes that have arrived are taken.
    pub(crate) fn pass_to(&mut self, nanos: u64) {
        self.now = nanos;
    }

    /// Adds a request, which [`flush`](Self::flush) sends. `Err`: too many requests wait for the host.
    pub(crate) fn ask(&mut self, question: Question) -> Result<u64> {
        let waiting = self.open.values().filter(|open| open.told.is_none()).count();
        if waiting >= limits::GUEST_CALLS_MAX {
            let host = match self.link.as_ref().and_then(|link| link.host) {
                Some(pid) => format!("process {pid}, which hosts the store: it is stopped"),
                None => "a process that hosts the store: none answers".to_owned(),
            };
            let message =
                format!("{waiting} calls wait for {host}, or overloaded; try it again later");
            return Err(Error::new(ErrorKind::InProgress, message));
        }
        Ok(self.add(question))
    }

    fn add(&mut self, question: Question) -> u64 {
        let number = self.next;
        self.next += 1;
        let waits_until = question.wait_millis().map(|millis| {
            let nanos = millis.saturating_mul(1_000_000);
            self.now.saturating_add(nanos)
        });
        let open = OpenRequest {
            question,
            waits_until,
            heard: Lsn::ZERO,
            is_sent: false,
            is_again: false,
            deaths: 0,
            is_left: false,
            begun: None,
            told: None,
            word: Arc::new(WakeWord::new()),
            waker: None,
            has_thread: false,
        };
        self.open.insert(number, open);
        number
    }

    /// Begins on a new connection, with the frames by which this process joins.
    pub(crate) fn connected(&mut self) {
        let frames = Frames::new(frame_bytes_max(limits::RESULT_BYTES_MAX));
        let mut out = Vec::new();
        // A frame holds `HELD_IN_FRAME` claims, whatever the lengths of their keys.
        let held: Vec<_> =
            self.held.iter().map(|(token, held)| held.named(*token, self.now)).collect();
        let mut parts: Vec<Vec<HeldClaim>> = Vec::new();
        for claim in held {
            match parts.last_mut().filter(|part| part.len() < limits::HELD_IN_FRAME) {
                Some(part) => part.push(claim),
                None => parts.push(vec![claim]),
            }
        }
        let mut parts = parts.into_iter().peekable();
        let first = parts.next().unwrap_or_default();
        let hello = Hello {
            session: self.session,
            pid: self.pid,
            result_bytes_max: self.result_bytes_max,
            held: first,
            more: parts.peek().is_some(),
        };
        let most = frame_bytes_max(self.result_bytes_max);
        let _ = put_frame(&FromGuest::Hello(Versioned::Same(hello)), most, &mut out);
        while let Some(held) = parts.next() {
            let more = parts.peek().is_some();
            let _ = put_frame(&FromGuest::Held { held, more }, most, &mut out);
        }
        self.link = Some(Link { frames, out, is_welcome: false, host: None, is_going: false });
    }

    /// Notes that the connection has ended: requests that were sent on it are sent again. Returns whether the host has closed, and not
    /// died.
    pub(crate) fn disconnected(&mut self) -> bool {
        let has_closed = self.link.take().is_some_and(|link| link.is_going);
        let mut granted = Vec::new();
        for (number, open) in &mut self.open {
            if std::mem::take(&mut open.is_sent) {
                open.is_again = true;
                open.deaths += u32::from(!has_closed);
            }
            open.begun = None;
            if open.is_withdrawn() {
                granted.extend(open.claims().map(|key| (key.clone(), *number)));
            } else if open.deaths >= limits::HOSTS_A_REQUEST
                && open.told.is_none()
                && open.may_be_fatal()
            {
                granted.extend(open.claims().map(|key| (key.clone(), *number)));
                let message = "two processes that hosted the store have ended before they answered: whether this call was made is \
                     unknown; ask what became of the key";
                open.fail(Error::new(ErrorKind::Indeterminate, message));
            }
        }
        self.open.retain(|_, open| !(open.is_left && open.told.is_some() || open.is_withdrawn()));
        for question in std::mem::take(&mut self.unrecorded) {
            self.say(question);
        }
        // These calls are not sent again: they were given up, or may be what kills the hosts.
        self.disown(granted);
        has_closed
    }

    /// Adds a request that no caller waits for.
    fn say(&mut self, question: Question) {
        let number = self.add(question);
        self.leave(number);
    }

    /// Returns the request that withdraws the claim of a call whose fate is unknown. Otherwise that claim would be in progress for as
    /// long as this process lives.
    fn disowning(&self, key: Key<'static>, request: u64) -> Question {
        let call = Origin { session: self.session, request, item: 0 };
        Question::Errand(HostErrand::Disown { key, call })
    }

    /// Answers the calls whose time to wait for their keys is up while the host, last heard at `heard_at`, is silent. A grant that comes
    /// later is given back.
    pub(crate) fn end_waits(&mut self, heard_at: u64, why: impl Fn() -> Error) {
        let is_over = |open: &OpenRequest| {
            let since = open.waits_until.map(|until| until.max(heard_at));
            let is_waited_for = open.told.is_none() && !open.is_left;
            let most = limits::HOST_SILENT_NANOS;
            is_waited_for && since.is_some_and(|since| self.now.saturating_sub(since) >= most)
        };
        let over = self.open.iter().filter(|(_, open)| is_over(open));
        for number in over.map(|(number, _)| *number).collect::<Vec<_>>() {
            if let Some(open) = self.open.get_mut(&number) {
                open.wake();
            }
            self.leave(number);
            self.late.insert(number, why());
        }
    }

    /// Answers all requests with that error: no host gets them any more. The fate of those that were sent stays unknown.
    pub(crate) fn end(&mut self, why: &Error) {
        for open in self.open.values_mut().filter(|open| open.told.is_none()) {
            open.refuse(why);
        }
        self.open.retain(|_, open| !open.is_left);
    }

    /// Answers the requests that callers wait for with the error by which the next host refuses this process. Requests that no caller
    /// waits for are kept.
    pub(crate) fn refuse_waiting(&mut self, why: &Error) {
        let mut disowned = Vec::new();
        for (number, open) in &mut self.open {
            if open.told.is_none() && !open.is_left {
                let claimed = open.claims().filter(|_| open.is_again).cloned();
                disowned.extend(claimed.map(|key| (key, *number)));
                open.refuse(why);
            }
        }
        self.disown(disowned);
    }

    /// Has the grants of calls that are not sent again withdrawn, if there were any.
    fn disown(&mut self, calls: Vec<(Key<'static>, u64)>) {
        for (key, request) in calls {
            let disown = self.disowning(key, request);
            self.say(disown);
        }
    }

    /// Writes the frames that can be sent: those of owners first.
    pub(crate) fn flush(&mut self) {
        let heard = self.heard;
        let Some(link) = self.link.as_mut().filter(|link| link.is_welcome) else { return };
        if self.open.values().all(|open| open.is_sent || open.told.is_some()) {
            return;
        }
        for words_first in [true, false] {
            let mut busy: Vec<Token> = Vec::new();
            for (number, open) in &mut self.open {
                let token = open.token();
                let is_waiting = token.is_some_and(|token| busy.contains(&token));
                if open.told.is_none() {
                    busy.extend(token);
                }
                let is_due = !open.is_sent && open.told.is_none() && !is_waiting;
                if !is_due || open.token().is_some() != words_first {
                    continue;
                }
                let again = open.is_again;
                if !again {
                    open.heard = heard;
                }
                let most = frame_bytes_max(self.result_bytes_max);
                let request = *number;
                let put = match &open.question {
                    Question::Call(call) => {
                        let calls = vec![call.clone()];
                        let frame = FromGuest::Call { request, heard: open.heard, again, calls };
                        put_frame(&frame, most, &mut link.out)
                    }
                    Question::Errand(what) => {
                        let frame = FromGuest::Errand { request, again, what: what.clone() };
                        put_frame(&frame, most, &mut link.out)
                    }
                };
                match put {
                    Ok(()) => {
                        open.is_sent = true;
                        if open.is_left && open.may_be_given_up() {
                            let _ = put_frame(&FromGuest::GiveUp { request }, most, &mut link.out);
                        }
                    }
                    Err(TooLong) => {
                        let error = Error::new(
                            ErrorKind::TooLarge,
                            "the call is longer than any that the host of the store takes",
                        );
                        open.fail(error);
                    }
                }
            }
        }
    }

    /// Bytes to send on the connection, from the first on.
    pub(crate) fn to_send(&self) -> &[u8] {
        self.link.as_ref().map_or(&[], |link| &link.out)
    }

    pub(crate) fn was_sent(&mut self, bytes: usize) {
        if let Some(link) = &mut self.link {
            link.out.drain(..bytes.min(link.out.len()));
        }
    }

    /// Takes bytes that have arrived.
    pub(crate) fn received(&mut self, bytes: &[u8]) -> News {
        if let Some(link) = &mut self.link {
            link.frames.arrived(bytes);
        }
        let mut news = News::Nothing;
        loop {
            let Some(link) = &mut self.link else { return News::Over };
            match link.frames.next::<FromHost>() {
                Ok(None) => return news,
                Err(_) => return News::Over,
                Ok(Some(frame)) => match frame {
                    FromHost::Welcome(Versioned::Same(welcome)) if !link.is_welcome => {
                        link.is_welcome = true;
                        link.host = Some(welcome.pid).filter(|pid| *pid != 0);
                        self.result_bytes_max = self.result_bytes_max.max(welcome.result_bytes_max);
                        self.heard = welcome.end;
                        news = News::Welcome(welcome);
                    }
                    FromHost::Refused(Versioned::Same(error)) => return News::Refused(error),
                    FromHost::Welcome(Versioned::Other(version))
                    | FromHost::Refused(Versioned::Other(version)) => {
                        let message = format!(
                            "the process that hosts the store speaks version {version} with its guests, and this one version \
                             {WIRE_VERSION}: run the same release in all processes that share a store"
                        );
                        return News::Refused(Error::new(ErrorKind::Incompatible, message));
                    }
                    FromHost::Welcome(_) => return News::Over,
                    FromHost::Told { request, item: _, end, reply } => {
                        self.heard = self.heard.max(end);
                        self.told(request, HostTold::Reply(Box::new(reply)));
                    }
                    FromHost::ErrandTold { request, end, more, told } => {
                        self.heard = self.heard.max(end);
                        self.told_errand(request, more, told);
                    }
                    FromHost::Going => {
                        link.is_going = true;
                        return News::Over;
                    }
                },
            }
        }
    }

    fn told_errand(&mut self, number: u64, more: bool, told: Result<ErrandReply>) {
        let Some(open) = self.open.get_mut(&number) else { return };
        let told = match (open.begun.take(), told) {
            (Some(begun), Ok(next)) => Ok(begun.and(next)),
            (_, told) => told,
        };
        match told {
            Ok(part) if more => open.begun = Some(part),
            told => self.told(number, HostTold::Errand(told)),
        }
    }

    fn told(&mut self, number: u64, told: HostTold) {
        self.take_told(number, told);
        self.wake_released();
    }

    fn take_told(&mut self, number: u64, told: HostTold) {
        let open = self.open.get(&number);
        let is_unknown = matches!(&told, HostTold::Reply(reply)
            if reply.as_ref().as_ref().is_err_and(|e| e.kind() == ErrorKind::Indeterminate));
        if let Some(key) = open.and_then(OpenRequest::claims).filter(|_| is_unknown) {
            let disown = self.disowning(key.clone(), number);
            // A host that takes no writes can't record the withdrawal, but the next host can.
            self.unrecorded.push(disown.clone());
            self.say(disown);
        }
        let Some(open) = self.open.get_mut(&number) else { return };
        if let (Some(done), HostTold::Errand(Ok(_))) = (open.question.disowns(), &told) {
            self.unrecorded.retain(|question| question.disowns() != Some(done));
        }
        let replied = match &told {
            HostTold::Reply(reply) => reply.as_ref().as_ref().ok(),
            HostTold::Errand(_) => None,
        };
        if let (Question::Call(request), Some(reply)) = (&open.question, replied) {
            let (key, reply) = (request.key.clone(), reply.clone());
            if let Ask::Call(call, terms) = &request.ask {
                let (call, asked) = (*call, ClaimTerms::of(terms));
                note(&mut self.held, &key, call, asked, &reply, self.now);
                if open.is_left {
                    let release = releasing(call, &reply);
                    self.open.remove(&number);
                    if let Some(release) = release {
                        let left = self.add(asking(key, release, "granted, and not waited for"));
                        self.leave(left);
                    }
                    return;
                }
            }
        }
        if open.is_left {
            self.open.remove(&number);
        } else {
            open.tell(told);
        }
    }

    /// Notes that the caller no longer waits for that request.
    pub(crate) fn leave(&mut self, number: u64) {
        self.late.remove(&number);
        let Some(open) = self.open.get_mut(&number) else { return };
        open.is_left = true;
        (open.waker, open.has_thread) = (None, false);
        match open.told.take() {
            // The answer came, and the caller has not taken it.
            Some(told) => self.told(number, told),
            None if !open.is_sent && !open.is_again && open.may_be_given_up() => {
                self.open.remove(&number);
            }
            None if open.is_sent && open.may_be_given_up() => {
                let most = frame_bytes_max(self.result_bytes_max);
                if let Some(link) = &mut self.link {
                    let frame = FromGuest::GiveUp { request: number };
                    let _ = put_frame(&frame, most, &mut link.out);
                }
            }
            None => {}
        }
    }

    /// Takes the answer to a request, if it has come. The request is over then.
    pub(crate) fn take(&mut self, number: u64) -> Option<HostTold> {
        if let Some(error) = self.late.remove(&number) {
            return Some(HostTold::Reply(Box::new(Err(error))));
        }
        let told = self.open.get_mut(&number)?.told.take()?;
        self.open.remove(&number);
        Some(told)
    }

    pub(crate) fn is_told(&self, number: u64) -> bool {
        let is_late = self.late.contains_key(&number);
        is_late || self.open.get(&number).is_none_or(|open| open.told.is_some())
    }

    /// Notes that this process no longer owns the claim of that token.
    pub(crate) fn let_go(&mut self, token: Token) {
        self.held.remove(&token);
        self.wake_released();
    }

    /// Returns what is woken once this process holds no claim; `None` if it holds none.
    pub(crate) fn await_release(&mut self) -> Option<Arc<WakeWord>> {
        if self.held.is_empty() {
            return None;
        }
        let word = self.released.get_or_insert_with(|| Arc::new(WakeWord::new()));
        Some(Arc::clone(word))
    }

    fn wake_released(&mut self) {
        if self.held.is_empty() {
            if let Some(word) = self.released.take() {
                word.wake_all();
            }
        }
    }

    /// Has `waker` woken by the answer. Returns whether the request is open.
    pub(crate) fn set_waker(&mut self, number: u64, waker: &Waker) -> bool {
        let Some(open) = self.open.get_mut(&number) else { return false };
        match &mut open.waker {
            Some(kept) => kept.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        true
    }

    /// Notes that a thread waits for the answer to a request, and returns what the answer wakes.
    pub(crate) fn sleep_on(&mut self, number: u64) -> Option<Arc<WakeWord>> {
        let open = self.open.get_mut(&number)?;
        open.has_thread = true;
        Some(Arc::clone(&open.word))
    }

    /// Notes that the thread that waited for the request does something else meanwhile.
    pub(crate) fn wait_later(&mut self, number: u64) {
        if let Some(open) = self.open.get_mut(&number) {
            open.has_thread = false;
        }
    }

    /// Returns a thread that waits for another request than that one, and can read for all callers.
    pub(crate) fn another_thread(&self, than: Option<u64>) -> Option<Arc<WakeWord>> {
        let waits = |(number, open): &(&u64, &OpenRequest)| {
            open.has_thread && open.told.is_none() && Some(**number) != than
        };
        self.open.iter().find(waits).map(|(_, open)| Arc::clone(&open.word))
    }

    /// Whether any request waits for an answer.
    pub(crate) fn has_open(&self) -> bool {
        self.open.values().any(|open| open.told.is_none())
    }

    /// Whether a thread has to read from the connection, or notice its end.
    pub(crate) fn needs_reader(&self) -> bool {
        self.has_open() || !self.unrecorded.is_empty()
    }

    /// Wakes all callers that wait.
    pub(crate) fn wake_all(&mut self) {
        for open in self.open.values_mut() {
            open.wake();
        }
    }

    /// The claims that this process holds.
    pub(crate) fn held(&self) -> Vec<(Key<'static>, Token)> {
        self.held.iter().map(|(token, held)| (held.key.clone(), *token)).collect()
    }

    /// Claims that were attached by a ticket: another host has to be told of them.
    pub(crate) fn attached(&self) -> Vec<(Key<'static>, Token)> {
        let attached = self.held.iter().filter(|(_, held)| held.is_attached);
        attached.map(|(token, held)| (held.key.clone(), *token)).collect()
    }

    /// Notes which claim a call has granted or ended that this process, as the host, made itself.
    pub(crate) fn note(
        &mut self,
        key: &Key<'static>,
        call: Call,
        asked: ClaimTerms,
        reply: &Reply,
    ) {
        note(&mut self.held, key, call, asked, reply, self.now);
        self.wake_released();
    }

    /// What is left of the leases of this process's claims, in milliseconds.
    pub(crate) fn leases_left(&self) -> Vec<(Key<'static>, Token, u64)> {
        let left = |(token, held): (&Token, &OwnClaim)| {
            Some((held.key.clone(), *token, held.lease?.left_millis(self.now)))
        };
        self.held.iter().filter_map(left).collect()
    }

    /// Takes out a request without an answer, which this process then makes itself.
    pub(crate) fn take_open(&mut self, number: u64) -> Option<Question> {
        let open = self.open.get(&number).filter(|open| open.told.is_none())?;
        let question = open.as_sent(self.session, number);
        self.open.remove(&number);
        Some(question)
    }

    /// Takes out all requests that no caller waits for: those of owners first.
    pub(crate) fn take_left(&mut self) -> Vec<Question> {
        let left = self.open.iter().filter(|(_, open)| open.is_left && open.told.is_none());
        let mut left: Vec<_> =
            left.map(|(number, open)| (open.token().is_none(), *number)).collect();
        left.sort_unstable();
        left.into_iter().filter_map(|(_, number)| self.take_open(number)).collect()
    }

    /// Adds the session to a call that this process makes as the host, so that the claims of the call outlive a close.
    pub(crate) fn as_own(&mut self, mut request: Request) -> Request {
        let number = self.next;
        self.next += 1;
        stamp(&mut request, self.session, number, None);
        request
    }
}

#[cfg(test)]
impl Requests {
    /// The number of the next request.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Whether there is something that the host can be sent, and hasn't been.
    pub(crate) fn may_send(&self) -> bool {
        let is_welcome = self.link.as_ref().is_some_and(|link| link.is_welcome && !link.is_going);
        is_welcome && self.open.values().any(|open| !open.is_sent && open.told.is_none())
    }

    /// A text that is the same for the same state.
    pub(crate) fn shown(&self) -> String {
        let mut shown = format!("{} {:?}", self.next, self.heard);
        for (number, open) in &self.open {
            let OpenRequest { question, heard, is_sent, is_again, deaths, is_left, told, .. } =
                open;
            shown += &format!(
                "\n{number} {question:?} {heard:?} {is_sent} {is_again} {deaths} {is_left} {told:?}"
            );
        }
        shown += &format!("\n{:?} {:?}", self.unrecorded, self.late.keys());
        for (token, held) in &self.held {
            shown += &format!("\n{token:?} {}", held.is_attached);
        }
        let link = self.link.as_ref();
        let link = link.map(|link| (link.frames.buffered(), &link.out, link.is_welcome));
        shown + &format!("\n{link:?}")
    }
}

/// The error for a request to an opening that is over. Only calls of owners answer `ClaimLost`.
pub(crate) fn refused(why: &Error, question: &Question) -> Error {
    match why.kind() {
        ErrorKind::ClaimLost if question.token().is_none() => {
            Error::new(ErrorKind::Poisoned, why.to_string()).because(why.again())
        }
        _ => why.again(),
    }
}

impl Question {
    /// How long its caller waits for the key.
    fn wait_millis(&self) -> Option<u64> {
        match self {
            Question::Call(Request { ask: Ask::Call(_, terms), .. }) => terms.wait_millis,
            _ => None,
        }
    }

    /// The call whose grant is to be withdrawn.
    fn disowns(&self) -> Option<Origin> {
        match self {
            Question::Errand(HostErrand::Disown { key: _, call }) => Some(*call),
            _ => None,
        }
    }

    /// The claim whose owner says it.
    fn token(&self) -> Option<Token> {
        match self {
            Question::Call(Request { ask: Ask::Call(call, _), .. }) => call.of_owner(),
            _ => None,
        }
    }
}

impl OpenRequest {
    fn token(&self) -> Option<Token> {
        self.question.token()
    }

    /// Whether it may be what ended the hosts that it was sent to.
    fn may_be_fatal(&self) -> bool {
        self.question.disowns().is_none()
    }

    /// Whether it is a claim that was given up: the next host withdraws what it was granted. Sent again, it might be granted again.
    fn is_withdrawn(&self) -> bool {
        self.is_left && self.told.is_none() && self.claims().is_some()
    }

    /// The key, if a claim of it may be granted.
    fn claims(&self) -> Option<&Key<'static>> {
        match &self.question {
            Question::Call(Request { key, ask: Ask::Call(call, _) }) => {
                call.may_grant().then_some(key)
            }
            _ => None,
        }
    }

    /// Whether it is without effect if nobody takes its answer. All other calls are made.
    fn may_be_given_up(&self) -> bool {
        match &self.question {
            Question::Call(Request { ask: Ask::Call(call, _), .. }) => matches!(
                call,
                Call::Claim(_) | Call::TakeOver(_) | Call::NotApplied(_) | Call::Attach(_)
            ),
            Question::Call(_) => true,
            Question::Errand(_) => false,
        }
    }

    fn tell(&mut self, told: HostTold) {
        self.told = Some(told);
        self.wake();
    }

    /// Answers that no host is asked. Whether what was sent was done is unknown.
    fn refuse(&mut self, why: &Error) {
        let is_call =
            matches!(&self.question, Question::Call(call) if matches!(call.ask, Ask::Call(..)));
        let error = match is_call && (self.is_sent || self.is_again) {
            true => {
                let message = format!("whether this call was made is unknown, and {why}");
                Error::new(ErrorKind::Indeterminate, message).because(why.again())
            }
            false => refused(why, &self.question),
        };
        self.fail(error);
    }

    fn fail(&mut self, error: Error) {
        self.tell(match self.question {
            Question::Call(_) => HostTold::Reply(Box::new(Err(error))),
            Question::Errand(_) => HostTold::Errand(Err(error)),
        });
    }

    fn wake(&mut self) {
        self.word.wake_all();
        if let Some(waker) = self.waker.take() {
            wake(waker);
        }
    }

    /// The question with what the engine has to know of the sendings before.
    fn as_sent(&self, session: SessionId, number: u64) -> Question {
        let mut question = self.question.clone();
        if let Question::Call(request) = &mut question {
            stamp(request, session, number, self.is_again.then_some(self.heard));
        }
        question
    }
}

fn stamp(request: &mut Request, session: SessionId, number: u64, heard: Option<Lsn>) {
    if let Ask::Call(_, terms) = &mut request.ask {
        let origin = Origin { session, request: number, item: 0 };
        terms.details_mut().sending = Some(Sending { origin, heard });
    }
}

impl OwnClaim {
    fn named(&self, token: Token, now: u64) -> HeldClaim {
        let lease_left_millis = self.lease.map(|lease| lease.left_millis(now));
        HeldClaim { key: self.key.clone(), token, lease_left_millis, reserve: self.reserve }
    }
}

impl OwnLease {
    fn left_millis(self, now: u64) -> u64 {
        self.millis.saturating_sub(now.saturating_sub(self.since) / 1_000_000)
    }
}

fn note(
    held: &mut BTreeMap<Token, OwnClaim>,
    key: &Key<'static>,
    call: Call,
    asked: ClaimTerms,
    reply: &Reply,
    now: u64,
) {
    let lease = asked.lease_millis.map(|millis| OwnLease { millis, since: now });
    let key = || key.clone();
    if let Some(claimed) = reply.claimed {
        let claim = OwnClaim { key: key(), reserve: asked.reserve, lease, is_attached: false };
        held.insert(claimed.token, claim);
    }
    match call {
        Call::Attach(token) if reply.answer == Answer::Done => {
            // Its lease is that of its ticket, which is in the log.
            let claim = OwnClaim { key: key(), reserve: 0, lease: None, is_attached: true };
            held.insert(token, claim);
        }
        Call::Renew { token, attached: false } if reply.answer == Answer::Done => {
            if let Some(claim) = held.get_mut(&token) {
                claim.lease = lease;
            }
        }
        call => {
            if let Some(token) = call.ends() {
                held.remove(&token);
            }
        }
    }
}

/// The call that gives back the grant of an answer that no caller takes.
fn releasing(call: Call, reply: &Reply) -> Option<Call> {
    match (call, reply.claimed) {
        (_, Some(claimed)) => Some(Call::Withdraw(claimed.token)),
        (Call::Attach(token), None) if reply.answer == Answer::Done => Some(Call::Interrupt(token)),
        _ if reply.answer == Answer::Asked => Some(Call::DropQuestion(reply.question)),
        _ => None,
    }
}

fn asking(key: Key<'static>, call: Call, reason: &str) -> Question {
    let mut terms = Terms::default();
    terms.details_mut().reason = Some(reason.to_owned());
    Question::Call(Request { key, ask: Ask::Call(call, Box::new(terms)) })
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::protocol::Wants;
    use crate::types::{Secret, StoreMillis};

    fn arrives(requests: &mut Requests, frame: &FromHost) -> News {
        let mut bytes = Vec::new();
        put_frame(frame, u32::MAX, &mut bytes).unwrap();
        requests.received(&bytes)
    }

    fn is_welcomed(requests: &mut Requests) {
        requests.connected();
        let welcome = Welcome {
            pid: 1,
            secret: Secret([0; 32]),
            result_bytes_max: 1,
            compress_over: None,
            now: StoreMillis(0),
            end: Lsn::ZERO,
        };
        let welcome = FromHost::Welcome(Versioned::Same(welcome));
        assert!(matches!(arrives(requests, &welcome), News::Welcome(_)));
        requests.was_sent(usize::MAX);
        requests.flush();
    }

    /// Sent again it would be granted once more, if the host before has given its grant back.
    #[test]
    fn a_claim_that_was_given_up_is_withdrawn_by_the_next_host() {
        let mut requests = Requests::new(SessionId::new(1).unwrap(), 1, 1);
        let ask = Ask::Call(Call::Claim(Wants::default()), Box::default());
        let claim = requests.ask(Question::Call(Request { key: Key::from("k"), ask })).unwrap();
        is_welcomed(&mut requests);
        requests.leave(claim);
        requests.disconnected();
        is_welcomed(&mut requests);
        let mut frames = Frames::new(u32::MAX);
        frames.arrived(requests.to_send());
        let withdraws = |frame: &FromGuest| matches!(frame, FromGuest::Errand { what: HostErrand::Disown { call, .. }, .. } if call.request == claim);
        assert!(frames.next::<FromGuest>().unwrap().is_some_and(|frame| withdraws(&frame)));
        assert!(frames.next::<FromGuest>().unwrap().is_none());
    }

    /// Short commands that follow each other host the store in turn, and each closes it: a call met two of them, and was told that
    /// nobody knows whether it was made. Only a host that dies may have died over it.
    #[test]
    fn hosts_that_close_are_not_counted_against_a_call() {
        let mut requests = Requests::new(SessionId::new(1).unwrap(), 1, 1);
        let ask = Ask::Call(Call::Forget, Box::default());
        let call = Question::Call(Request { key: Key::from("k"), ask });
        let number = requests.ask(call).unwrap();
        let mut meets = |closes: bool| {
            is_welcomed(&mut requests);
            assert!(!requests.to_send().is_empty());
            if closes {
                assert!(matches!(arrives(&mut requests, &FromHost::Going), News::Over));
            }
            assert_eq!(requests.disconnected(), closes);
            requests.is_told(number)
        };
        for _ in 0..5 {
            assert!(!meets(true));
        }
        assert!(!meets(false));
        assert!(!meets(true));
        assert!(meets(false));
        let Some(HostTold::Reply(told)) = requests.take(number) else { panic!() };
        assert_eq!(told.unwrap_err().kind(), ErrorKind::Indeterminate);
    }
}
