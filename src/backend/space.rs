//! The namespace of a handle, by its name: found, or made, for each call.
//!
//! Promises: a handle remembers only names. Which namespace a name means is asked for every call, so that a handle never
//! reaches the keys of one that was dropped. What memory knows is answered at once; the rest is a [`Search`], which a thread
//! carries on by waiting, or a task by its polls. Never: decides whether a namespace may be dropped; `engine` does.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::Shared;
use super::{Ask, Backend, Reply, Request, Sent};
use crate::engine::{EncodedOutcome, Engine, Named, Writing};
use crate::limits::VERSIONS_MAX;
use crate::operation::{Fingerprint, Key, Lies};
use crate::protocol::{Answer, Call, Conditions, Phase, Sight};
use crate::sync::Mutex;
use crate::types::Token;
use crate::{Error, ErrorKind, Result};

/// The namespace of a handle, by its name.
pub(crate) struct Space {
    pub(crate) parent: Option<Arc<Space>>,
    pub(crate) name: Box<str>,
    pub(crate) version: Option<(Fingerprint, Box<str>)>,
}

/// What a handle finds under the name of its namespace.
enum NameState {
    It(Token),
    /// The name is free.
    Nothing,
    /// A namespace of another version, which gives way to the handle's.
    OtherVersion(Named),
}

/// What memory knows of a namespace.
pub(crate) enum SpaceKnown {
    It(Token),
    /// It doesn't exist.
    Nowhere,
    /// It has to be asked for, or made.
    Unknown,
}

/// What a call wants of the namespace of its handle.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum SpaceGoal {
    /// Its key is to be there, or to be absent.
    Check,
    /// Its key is in it, if it exists.
    Find,
    /// Its key is in it. It is made, or passes to the handle's version, if it has to.
    Enter,
}

/// The id of no namespace. A key in it is absent, and stays so.
pub(crate) const NOWHERE: Token = Token(u64::MAX);

/// Where names are asked for, by a caller that waits.
pub(crate) trait NameSource {
    fn named(&self, parent: Option<Token>, name: &str) -> Result<Option<Named>>;
    fn call(&self, key: &Key<'_>, call: Call, writing: &Writing<'_>) -> Result<Answer>;
    fn is_absent(&self, key: &Key<'_>) -> Result<bool>;
}

impl NameSource for Engine {
    fn named(&self, parent: Option<Token>, name: &str) -> Result<Option<Named>> {
        Engine::named(self, parent, name)
    }

    fn call(&self, key: &Key<'_>, call: Call, writing: &Writing<'_>) -> Result<Answer> {
        Ok(self.apply(key, self.hash(key), call, writing)?.answer)
    }

    fn is_absent(&self, key: &Key<'_>) -> Result<bool> {
        Ok(self.look(key, self.hash(key))?.is_none())
    }
}

impl NameSource for Shared {
    fn named(&self, parent: Option<Token>, name: &str) -> Result<Option<Named>> {
        Shared::named(self, parent, name)
    }

    fn call(&self, key: &Key<'_>, call: Call, writing: &Writing<'_>) -> Result<Answer> {
        Ok(self.apply(key, self.hash(key), call, writing)?.answer)
    }

    fn is_absent(&self, key: &Key<'_>) -> Result<bool> {
        Ok(self.look(key, self.hash(key))?.is_none())
    }
}

impl Space {
    fn check(&self) -> Result<()> {
        if self.name.is_empty() {
            let message = "a namespace needs a name, and only a namespace has a version";
            return Err(Error::invalid(message));
        }
        Key::of_space(None, &self.name).check()
    }

    /// What is known of this namespace without I/O and without waiting. `makes`: it is wanted in any case.
    pub(super) fn known(&self, engine: &Engine, makes: bool) -> Result<SpaceKnown> {
        self.check()?;
        let parent = match self.parent.as_ref().map(|parent| parent.known(engine, makes)) {
            None => None,
            Some(Ok(SpaceKnown::It(id))) => Some(id),
            Some(other) => return other,
        };
        let Some(named) = engine.named_in_memory(parent, &self.name)? else {
            return Ok(SpaceKnown::Unknown);
        };
        Ok(match self.judge(named)? {
            NameState::It(id) => SpaceKnown::It(id),
            _ if makes => SpaceKnown::Unknown,
            NameState::Nothing | NameState::OtherVersion(_) => SpaceKnown::Nowhere,
        })
    }

    /// The id of this namespace; `None`: it doesn't exist in this version, and is not to be made. Waits.
    pub(crate) fn resolve(self: &Arc<Self>, shared: &Shared, makes: bool) -> Result<Option<Token>> {
        match shared.known(self, makes)? {
            SpaceKnown::It(id) => Ok(Some(id)),
            SpaceKnown::Nowhere => Ok(None),
            SpaceKnown::Unknown => Search::new(self, makes)?.run(shared),
        }
    }

    /// The names of the namespaces in this one. Waits.
    pub(crate) fn names(self: &Arc<Self>, engine: &Engine) -> Result<Vec<String>> {
        match Search::new(self, false)?.run(engine)? {
            Some(id) => engine.names_in(Some(id)),
            None => Ok(Vec::new()),
        }
    }

    /// Drops this namespace. Returns whether there was one. Waits.
    pub(crate) fn forget(self: &Arc<Self>, by: &impl NameSource) -> Result<bool> {
        self.check()?;
        loop {
            let parent = match &self.parent {
                None => None,
                Some(parent) => match Search::new(parent, false)?.run(by)? {
                    None => return Ok(false),
                    id => id,
                },
            };
            let Some(named) = by.named(parent, &self.name)? else { return Ok(false) };
            let (token, time) = (named.id, named.made);
            let NameState::It(_) = self.judge(Some(named))? else { return Ok(false) };
            let call = Call::ForgetSeen(Sight::Record { token, phase: Phase::Completed, time });
            let key = Key::of_space(parent, &self.name);
            match by.call(&key, call, &Writing::default())? {
                Answer::Done => return Ok(true),
                Answer::InProgress => return Err(self.busy()),
                // Somebody was faster.
                _ => {}
            }
        }
    }

    fn judge(&self, named: Option<Named>) -> Result<NameState> {
        let Some(named) = named else { return Ok(NameState::Nothing) };
        let Some((version, shown)) = &self.version else { return Ok(NameState::It(named.id)) };
        if named.version == Some(*version) {
            return Ok(NameState::It(named.id));
        }
        if named.past.contains(version) {
            let message = format!(
                "the namespace {:?} has passed from version {shown:?} to another: stop using this version, or drop \
                 the namespace with forget_all on a handle without a version",
                self.name
            );
            return Err(Error::new(ErrorKind::Superseded, message));
        }
        Ok(NameState::OtherVersion(named))
    }

    fn busy(&self) -> Error {
        let message = format!(
            "a key in the namespace {:?} is claimed right now: wait for its owner",
            self.name
        );
        Error::new(ErrorKind::InProgress, message)
    }
}

/// The search for a namespace, from the outermost one inwards: what to ask next, and what was found so far.
pub(super) struct Search {
    /// The outermost one at the end.
    left: Vec<Arc<Space>>,
    /// The id of the last one found.
    found: Option<Token>,
    makes: bool,
    /// The call that has to be made before the name is asked for again.
    making: Option<SpaceCall>,
}

/// What a search asks next.
enum Sought<'s> {
    Name(Option<Token>, &'s str),
    Call(&'s SpaceCall),
}

/// A call that makes a namespace, or has it pass to another version.
struct SpaceCall {
    key: Key<'static>,
    call: Call,
    version: Option<Fingerprint>,
    /// The versions that it had before, encoded.
    past: Option<Vec<u8>>,
}

impl SpaceCall {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let conditions = Conditions { fingerprint: self.version, ..Conditions::default() };
        let (codec, version, meta, packed) = (0, 0, &[][..], None);
        let outcome = |bytes| EncodedOutcome { codec, version, meta, packed, bytes };
        let outcome = self.past.as_deref().map(outcome);
        with(&self.key, self.call, &Writing { conditions, outcome, ..Writing::default() })
    }
}

impl Search {
    pub(super) fn new(space: &Arc<Space>, makes: bool) -> Result<Self> {
        let mut left = vec![Arc::clone(space)];
        let mut at = space;
        at.check()?;
        while let Some(parent) = &at.parent {
            parent.check()?;
            left.push(Arc::clone(parent));
            at = parent;
        }
        Ok(Search { left, found: None, makes, making: None })
    }

    /// `None`: it is over.
    fn sought(&self) -> Option<Sought<'_>> {
        match &self.making {
            Some(call) => Some(Sought::Call(call)),
            None => self.left.last().map(|space| Sought::Name(self.found, &space.name)),
        }
    }

    /// Takes in what was found under the name that was asked for.
    fn take_name(&mut self, named: Option<Named>) -> Result<()> {
        let Some(space) = self.left.last() else { return Ok(()) };
        let (call, past) = match space.judge(named)? {
            NameState::It(id) => {
                self.found = Some(id);
                self.left.pop();
                return Ok(());
            }
            _ if !self.makes => {
                self.found = None;
                self.left.clear();
                return Ok(());
            }
            NameState::Nothing => {
                (Call::Record { fingerprint: space.version(), failure: false }, None)
            }
            NameState::OtherVersion(old) => {
                let past: Vec<_> = old.past.iter().copied().chain(old.version).collect();
                let from = past.len() - past.len().min(VERSIONS_MAX);
                let last = past.into_iter().skip(from);
                (Call::Replace(old.id), Some(last.flat_map(Fingerprint::to_bytes).collect()))
            }
        };
        let key = Key::of_space(self.found, &space.name);
        self.making = Some(SpaceCall { key, call, version: space.version(), past });
        Ok(())
    }

    /// Takes in the answer to the call: the name is asked for again.
    fn take_answer(&mut self, answer: Answer) -> Result<()> {
        self.making = None;
        match (answer, self.left.last()) {
            (Answer::InProgress, Some(space)) => Err(space.busy()),
            _ => Ok(()),
        }
    }

    /// Carries it on to its end by waiting.
    pub(super) fn run(mut self, by: &impl NameSource) -> Result<Option<Token>> {
        while let Some(sought) = self.sought() {
            match sought {
                Sought::Name(parent, name) => {
                    let named = by.named(parent, name)?;
                    self.take_name(named)?;
                }
                Sought::Call(call) => {
                    let answer = call.ask(|key, call, writing| by.call(key, call, writing))?;
                    self.take_answer(answer)?;
                }
            }
        }
        Ok(self.found)
    }
}

impl Space {
    fn version(&self) -> Option<Fingerprint> {
        self.version.as_ref().map(|(version, _)| *version)
    }
}

/// The namespace of a call that was sent, which has to be asked for, or made, before the call is placed. Until then the call's
/// key lies [`NOWHERE`].
pub(crate) struct Entering {
    /// `None`: the root of the store.
    space: Option<Arc<Space>>,
    goal: SpaceGoal,
    entered: Entered,
}

/// The id of the namespace that a call was placed in, once it is known.
#[derive(Clone)]
pub(crate) struct Entered(Arc<Mutex<Option<Token>>>);

impl Entered {
    pub(crate) fn id(&self) -> Option<Token> {
        *self.0.lock()
    }
}

impl Entering {
    pub(crate) fn new(space: Option<&Arc<Space>>, goal: SpaceGoal) -> Self {
        Entering { space: space.cloned(), goal, entered: Entered(Arc::new(Mutex::new(None))) }
    }

    /// One more call is to be placed with it.
    pub(crate) fn join(&mut self, goal: SpaceGoal) {
        self.goal = self.goal.max(goal);
    }

    pub(crate) fn entered(&self) -> Entered {
        self.entered.clone()
    }

    /// Finds the namespace by waiting.
    pub(super) fn find(&self, by: &impl NameSource) -> Result<Token> {
        let found = match &self.space {
            None => None,
            Some(space) => Search::new(space, self.goal == SpaceGoal::Enter)?.run(by)?,
        };
        Ok(self.note(found))
    }

    fn note(&self, found: Option<Token>) -> Token {
        *self.entered.0.lock() = found;
        found.unwrap_or(NOWHERE)
    }

    /// The key of a call, in its namespace. Waits.
    pub(super) fn place(&self, by: &impl NameSource, key: &Key<'static>) -> Result<Key<'static>> {
        let found = self.find(by)?;
        match self.is_to_be_absent(key, found) {
            true if !by.is_absent(key)? => Err(elsewhere(key)),
            _ => Ok(moved(key, found)),
        }
    }

    /// A key that is not in the namespace in which it has to be.
    fn is_to_be_absent(&self, key: &Key<'_>, found: Token) -> bool {
        self.goal == SpaceGoal::Check && !is_in(key, self.space.as_ref().map(|_| found))
    }
}

/// Whether the key lies in the namespace of that id, or in none.
pub(crate) fn is_in(key: &Key<'_>, space: Option<Token>) -> bool {
    key.lies() == space.map_or(Lies::InRoot, Lies::In)
}

/// The key in the namespace that was found, if it waited for that.
pub(super) fn moved(key: &Key<'static>, found: Token) -> Key<'static> {
    if key.lies() == Lies::In(NOWHERE) { key.shown().in_space(found) } else { key.clone() }
}

pub(crate) fn elsewhere(key: &Key<'_>) -> Error {
    Error::invalid(format!("{}: the ticket is of another namespace", key.shown()))
}

/// A search by requests to another backend.
pub(super) struct SearchElsewhere {
    entering: Entering,
    /// `None`: the root of the store was found.
    search: Option<Search>,
    asked: Option<Box<dyn Sent>>,
}

impl SearchElsewhere {
    /// Sends the first request.
    pub(super) fn send(backend: &dyn Backend, entering: Entering) -> Result<Self> {
        let makes = entering.goal == SpaceGoal::Enter;
        let search = entering.space.as_ref().map(|space| Search::new(space, makes)).transpose()?;
        let mut sent = SearchElsewhere { entering, search, asked: None };
        sent.ask_next(backend);
        Ok(sent)
    }

    fn ask_next(&mut self, backend: &dyn Backend) {
        let request = self.search.as_ref().and_then(Search::sought).map(|sought| match sought {
            Sought::Name(parent, name) => {
                Request { key: Key::of_space(parent, name), ask: Ask::Look }
            }
            Sought::Call(call) => call.ask(Request::of),
        });
        self.asked = request.map(|request| backend.send(request));
    }

    fn take_reply(&mut self, backend: &dyn Backend, reply: Result<Reply>) -> Result<()> {
        if let Some(search) = &mut self.search {
            let reply = reply?;
            match search.making {
                Some(_) => search.take_answer(reply.answer)?,
                None => search.take_name(reply.into_seen().as_ref().and_then(Named::of_seen))?,
            }
        }
        self.ask_next(backend);
        Ok(())
    }

    fn found(&self) -> Token {
        self.entering.note(self.search.as_ref().and_then(|search| search.found))
    }

    pub(super) fn wait(&mut self, backend: &dyn Backend) -> Result<Token> {
        while let Some(asked) = self.asked.take() {
            self.take_reply(backend, asked.wait())?;
        }
        Ok(self.found())
    }

    pub(super) fn poll(
        &mut self,
        backend: &dyn Backend,
        context: &mut Context<'_>,
    ) -> Poll<Result<Token>> {
        while let Some(asked) = &mut self.asked {
            let Poll::Ready(reply) = asked.poll(context) else { return Poll::Pending };
            self.asked = None;
            if let Err(e) = self.take_reply(backend, reply) {
                return Poll::Ready(Err(e));
            }
        }
        Poll::Ready(Ok(self.found()))
    }
}

/// A call on another backend, whose namespace is asked for first.
pub(super) struct SentAfter {
    shared: Arc<Shared>,
    stage: SentStage,
}

enum SentStage {
    Search(SearchElsewhere, Request),
    /// The key is to be absent.
    Check(Box<dyn Sent>, Request),
    Sent(Box<dyn Sent>),
    Over,
}

impl SentAfter {
    pub(super) fn send(
        shared: &Arc<Shared>,
        backend: &dyn Backend,
        entering: Entering,
        request: Request,
    ) -> Result<Box<dyn Sent>> {
        let search = SearchElsewhere::send(backend, entering)?;
        let (shared, stage) = (Arc::clone(shared), SentStage::Search(search, request));
        Ok(Box::new(SentAfter { shared, stage }))
    }

    fn after_search(
        backend: &dyn Backend,
        search: &SearchElsewhere,
        request: Request,
        found: Token,
    ) -> SentStage {
        let Request { key, ask } = request;
        if search.entering.is_to_be_absent(&key, found) {
            let look = backend.send(Request { key: key.clone(), ask: Ask::Look });
            return SentStage::Check(look, Request { key, ask });
        }
        SentStage::Sent(backend.send(Request { key: moved(&key, found), ask }))
    }

    fn after_check(backend: &dyn Backend, request: Request, reply: Reply) -> Result<SentStage> {
        match reply.found {
            Some(_) => Err(elsewhere(&request.key)),
            None => Ok(SentStage::Sent(backend.send(request))),
        }
    }
}

impl Sent for SentAfter {
    fn wait(mut self: Box<Self>) -> Result<Reply> {
        let backend = self.shared.other()?;
        loop {
            self.stage = match std::mem::replace(&mut self.stage, SentStage::Over) {
                SentStage::Search(mut search, request) => {
                    let found = search.wait(backend)?;
                    SentAfter::after_search(backend, &search, request, found)
                }
                SentStage::Check(look, request) => {
                    SentAfter::after_check(backend, request, look.wait()?)?
                }
                SentStage::Sent(sent) => return sent.wait(),
                SentStage::Over => return Err(asked_twice()),
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Reply>> {
        let shared = Arc::clone(&self.shared);
        let backend = match shared.other() {
            Ok(backend) => backend,
            Err(e) => return Poll::Ready(Err(e)),
        };
        loop {
            let next = match &mut self.stage {
                SentStage::Search(search, _) => match search.poll(backend, context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(e)) => Err(e),
                    Poll::Ready(Ok(found)) => {
                        match std::mem::replace(&mut self.stage, SentStage::Over) {
                            SentStage::Search(search, request) => {
                                Ok(SentAfter::after_search(backend, &search, request, found))
                            }
                            other => Ok(other),
                        }
                    }
                },
                SentStage::Check(look, _) => match look.poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(e)) => Err(e),
                    Poll::Ready(Ok(reply)) => {
                        match std::mem::replace(&mut self.stage, SentStage::Over) {
                            SentStage::Check(_, request) => {
                                SentAfter::after_check(backend, request, reply)
                            }
                            other => Ok(other),
                        }
                    }
                },
                SentStage::Sent(sent) => return sent.poll(context),
                SentStage::Over => return Poll::Ready(Err(asked_twice())),
            };
            match next {
                Ok(stage) => self.stage = stage,
                Err(e) => {
                    self.stage = SentStage::Over;
                    return Poll::Ready(Err(e));
                }
            }
        }
    }
}

fn asked_twice() -> Error {
    Error::new(ErrorKind::Bug, "a call was asked for its answer twice")
}
