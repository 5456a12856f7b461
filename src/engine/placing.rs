//! A call until its record is placed, as one value that the caller owns: the request, and what the call waits for.
//!
//! Promises: [`Placing::go_on`] continues as far as it can without I/O or waiting; [`Placing::wait`] does the awaited
//! work, on any thread that calls it. Nothing borrows the engine in between, and a call that is dropped before it was
//! placed has no effect. Blocking calls alternate between the two. A claim may also wait for its key: then it has a
//! [`Turn`], for which a thread sleeps or a future is woken. Never: decides; `protocol` does.

use std::task::Waker;

use super::Engine;
use super::applied::{Done, Found, told};
use super::call::{Again, Writing};
use super::claim_step::has_open_steps;
use super::compact::Pass;
use super::look::{Known, is_as_read};
use super::waits::{Turn, WaitsTo, Wakes};
use crate::events;
use crate::log::Room;
use crate::operation::{Key, Lies};
use crate::protocol::{self, Answer, Call};
use crate::types::KeyHash;
use crate::{Error, ErrorKind, Result};

/// A call's request: borrowed from a caller that blocks, or owned by the call.
pub(crate) trait Asks {
    /// Passes the key, the call, and the contents of its record to `with`.
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R;
}

/// The same, borrowed.
pub(crate) struct Asked<'a> {
    pub(crate) key: &'a Key<'a>,
    pub(crate) call: Call,
    pub(crate) writing: &'a Writing<'a>,
}

impl Asks for Asked<'_> {
    #[inline]
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        with(self.key, self.call, self.writing)
    }
}

/// A call that is not placed yet.
pub(crate) struct Placing<A> {
    asks: A,
    hash: KeyHash,
    waits_for: WaitsFor,
    /// Where it began to reclaim, if it was refused space.
    pass: Option<Box<Pass>>,
    /// Until when it waits for its key, and where; `None`: it is answered at once.
    patience: Option<Box<Patience>>,
    /// The claim of the step that it ends, if that is not in memory.
    claim: Option<Box<ReadClaim>>,
}

/// The newest record of a claim's key, as it was read.
pub(super) struct ReadClaim {
    pub(super) seen: Known,
    pub(super) found: Option<Box<Found>>,
}

/// How long a claim waits while its key is in progress or delayed.
struct Patience {
    /// By the monotonic clock, in nanoseconds.
    until: u64,
    /// Since it first found the key taken.
    turn: Option<Turn>,
    /// The turn's word before the last look at the key.
    seen: u32,
    /// In how many milliseconds the key may be free by itself: a lease or a delay passes.
    free_in: Option<u64>,
    /// The whole time was slept through: a clock that is driven by hand stands still meanwhile.
    is_over: bool,
}

/// What a call waits for before it continues.
pub(super) enum WaitsFor {
    /// Nothing: it is to be tried next.
    Nothing,
    /// The contents of the records that may be the key's newest.
    Read(Known),
    /// Nothing: that was read, and is the key's state if the key has not changed since.
    Look { seen: Known, found: Option<Box<Found>> },
    /// The same of the key of the step's claim.
    ReadClaim(Known),
    /// The work that must precede the first record after an open.
    Beginning,
    /// A segment with space for it.
    Room { bytes: u64, room: Room },
    /// Space for what kept claims lack; then its record uses that room.
    Owed(Room),
    /// A change of its key, which another call makes, or the end of a time.
    Turn,
    /// The records of the namespaces, or of open keys.
    Spaces,
}

/// Why a try did not finish.
pub(super) enum Stop {
    WaitsFor(WaitsFor),
    /// It came upon something that is to be done first.
    Again(Again),
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

/// How far a call has come.
pub(crate) enum Progress {
    /// It is decided and its record, if any, placed: it is to be settled next.
    Placed(Done),
    /// See [`Placing::wait`].
    Waits,
}

impl<A: Asks> Placing<A> {
    pub(crate) fn new(asks: A, hash: KeyHash) -> Self {
        Placing::tried(asks, hash, WaitsFor::Nothing)
    }

    /// A call that was tried once, and waits for that.
    pub(super) fn tried(asks: A, hash: KeyHash, waits_for: WaitsFor) -> Self {
        Placing { asks, hash, waits_for, pass: None, patience: None, claim: None }
    }

    /// As [`new`](Self::new), for a claim that waits for its key, at most `millis`.
    pub(crate) fn patient(asks: A, hash: KeyHash, millis: u64, engine: &Engine) -> Self {
        let nanos = millis.saturating_mul(1_000_000);
        let until = engine.nanos().saturating_add(nanos);
        let patience = Patience { until, turn: None, seen: 0, free_in: None, is_over: false };
        Placing { patience: Some(Box::new(patience)), ..Placing::new(asks, hash) }
    }

    pub(crate) fn asks(&self) -> &A {
        &self.asks
    }

    pub(crate) fn into_asks(self) -> A {
        self.asks
    }

    /// Whether it waits only for a read.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.waits_for, WaitsFor::Read(_) | WaitsFor::ReadClaim(_))
    }

    /// Whether it is to be tried next.
    pub(crate) fn is_untried(&self) -> bool {
        matches!(self.waits_for, WaitsFor::Nothing | WaitsFor::Look { .. })
    }

    /// Whether it waits only for other calls, or for time to pass.
    pub(crate) fn is_turn(&self) -> bool {
        matches!(self.waits_for, WaitsFor::Turn)
    }
}

impl<A: Asks> Placing<A> {
    /// Continues a call as far as that takes neither I/O nor waiting.
    #[inline]
    pub(crate) fn go_on(&mut self, engine: &Engine) -> Result<Progress> {
        while self.is_untried() {
            self.note_turn();
            let tried = match self.asks.ask(|key, _, _| key.lies()) {
                Lies::InRoot => self.try_once(engine),
                lies => self.try_in_space(engine, lies),
            };
            // Told here: an observer or a waker may call the store, so no lock is held any more.
            self.asks.ask(|key, call, _| engine.tell_change(key, self.hash, call, &tried));
            match tried {
                Ok(done) if self.patience.is_some() => match self.wait_on(engine, &done)? {
                    Some(waits_for) => self.waits_for = waits_for,
                    None => return Ok(self.placed(engine, done)),
                },
                Ok(done) => return Ok(self.placed(engine, done)),
                Err(stop) => self.waits_for = engine.stopped(stop)?,
            }
        }
        Ok(Progress::Waits)
    }

    /// Tries once, for a key of a namespace or the name of one. While the key is looked at and its record placed, the
    /// namespace is not dropped; and while the drop is placed, no other call on a key of a namespace is.
    #[cold]
    fn try_in_space(&mut self, engine: &Engine, lies: Lies) -> Result<Done, Stop> {
        let absent = |placing: &Self| {
            Ok(placing.asks.ask(|key, call, _| engine.answer_in_dropped(key, call))?)
        };
        match lies {
            Lies::InRoot => self.try_once(engine),
            Lies::In(id) => {
                let spaces = engine.spaces.read();
                if !spaces.are_read() {
                    return Err(Stop::WaitsFor(WaitsFor::Spaces));
                }
                if !spaces.lives(id) { absent(self) } else { self.try_once(engine) }
            }
            Lies::Names(parent) => {
                let mut spaces = engine.spaces.write();
                let is_known = spaces.are_read()
                    && self.asks.ask(|key, call, _| engine.may_change_space(&spaces, key, call))?;
                if !is_known {
                    return Err(Stop::WaitsFor(WaitsFor::Spaces));
                }
                if parent.is_some_and(|parent| !spaces.lives(parent)) {
                    return absent(self);
                }
                let done = self.try_once(engine)?;
                let has_dropped = self.asks.ask(|key, call, writing| {
                    engine.space_changed(&mut spaces, key, call, writing, &done)
                });
                drop(spaces);
                if has_dropped {
                    // Claims that wait for a key of it are refused, whoever is on the key.
                    engine.waits.tell_all();
                }
                Ok(done)
            }
        }
    }

    /// Tries once, with what memory has or with what was read.
    #[inline]
    fn try_once(&mut self, engine: &Engine) -> Result<Done, Stop> {
        match self.waits_for {
            WaitsFor::Look { .. } => self.try_as_read(engine),
            _ => engine.try_in_memory(&self.asks, self.hash, self.claim.as_deref()),
        }
    }

    #[inline]
    fn placed(&self, engine: &Engine, done: Done) -> Progress {
        if events::ARE_TOLD {
            self.asks.ask(|key, call, writing| engine.tell(key, call, writing, &done));
        }
        Progress::Placed(done)
    }

    /// Before a look at the key: a wake-up from now on means that it may have changed since.
    #[inline]
    fn note_turn(&mut self) {
        let begins = matches!(self.waits_for, WaitsFor::Nothing);
        if let Some(patience) = self.patience.as_deref_mut().filter(|_| begins) {
            if let Some(turn) = &patience.turn {
                patience.seen = turn.read();
            }
        }
    }

    /// What a patient claim waits for before it is answered; `None`: nothing. An error if it would wait in vain.
    #[cold]
    fn wait_on(&mut self, engine: &Engine, done: &Done) -> Result<Option<WaitsFor>> {
        let Some(patience) = self.patience.as_deref_mut() else { return Ok(None) };
        let applied = &done.applied;
        let is_taken = matches!(applied.answer, Answer::InProgress | Answer::Delayed);
        if !is_taken {
            patience.turn = None;
            return Ok(None);
        }
        if patience.is_over || engine.nanos() >= patience.until {
            return Ok(None);
        }
        let Some(_turn) = &patience.turn else {
            let join = |key: &Key<'_>| engine.waits.join(key, self.hash, WaitsTo::Claim);
            patience.turn = Some(self.asks.ask(|key, _, _| join(key)));
            // It may have changed before the claim joined.
            return Ok(Some(WaitsFor::Nothing));
        };
        // A drain wakes the claims that have joined; one that joins later finds it here.
        self.asks.ask(|_, call, writing| engine.begins(call, writing))?;
        patience.free_in = applied.found.as_ref().and_then(|found| found.free_in(applied.now));
        Ok(Some(WaitsFor::Turn))
    }

    /// Sleeps until the key may have changed, or the time is up. Called outside the gate: a close doesn't wait for it.
    pub(crate) fn wait_turn(&mut self, nanos: &dyn Fn() -> u64) {
        self.waits_for = WaitsFor::Nothing;
        let Some(patience) = self.patience.as_deref_mut() else { return };
        let Some(turn) = &patience.turn else { return };
        // Rounded up: woken early, it would sleep again at once.
        let left = patience.until.saturating_sub(nanos()).div_ceil(1_000_000);
        let free_in = patience.free_in.filter(|free| *free < left && turn.is_first());
        let was_up = turn.wait(patience.seen, Some(free_in.unwrap_or(left)));
        patience.is_over = was_up && free_in.is_none();
    }

    /// Looks at the key again.
    pub(crate) fn look_again(&mut self) {
        self.waits_for = WaitsFor::Nothing;
    }

    /// Has `waker` woken when the key may have changed, or the time is up, instead of a thread that sleeps. Returns whether
    /// the key has to be looked at once more before that, and whether a thread has to see to the time.
    pub(crate) fn await_turn(&mut self, waker: &Waker, nanos: u64) -> (bool, bool) {
        let Some(patience) = self.patience.as_deref_mut() else { return (true, false) };
        let Some(turn) = &mut patience.turn else { return (true, false) };
        let is_new = turn.set_waker(waker);
        let after = |millis: u64| nanos.saturating_add(millis.saturating_mul(1_000_000));
        let free_at = patience.free_in.map(after);
        let free_at = free_at.filter(|_| turn.is_first());
        let due = free_at.map_or(patience.until, |at| at.min(patience.until));
        let is_timed = turn.set_due(Some(due));
        (is_new, is_timed)
    }

    /// Tries once with what was read, if the key has not changed since.
    fn try_as_read(&mut self, engine: &Engine) -> Result<Done, Stop> {
        let waits_for = std::mem::replace(&mut self.waits_for, WaitsFor::Nothing);
        let WaitsFor::Look { seen, found } = waits_for else {
            return Err(Stop::WaitsFor(waits_for));
        };
        let (hash, claim) = (self.hash, self.claim.as_deref());
        self.asks.ask(|key, call, writing| {
            if let Call::EndStep { .. } = call {
                return engine.try_to_end_step(
                    key,
                    hash,
                    Some((seen, found)),
                    claim,
                    call,
                    writing,
                );
            }
            let is_again = writing.sending.is_some_and(|sending| sending.heard.is_some());
            let current = found.as_ref().filter(|_| !is_again).map(|read| read.current());
            let unchanged = current.and_then(|current| {
                protocol::decide_unchanged(&current, call, &writing.conditions, seen.now)
            });
            if let Some(answer) = unchanged {
                return Ok(told(found, answer, seen.now));
            }
            let mut shard = engine.shard(hash)?;
            if !is_as_read(&shard, key, hash, &seen) || !has_open_steps(&shard, found.as_deref()) {
                return Err(Stop::WaitsFor(WaitsFor::Nothing));
            }
            let now = engine.log.now();
            engine.act(&mut shard, key, hash, found, call, writing, now).map_err(Stop::Again)
        })
    }

    /// Does the work that the call waits for, or waits for it.
    pub(crate) fn wait(&mut self, engine: &Engine) -> Result<()> {
        match std::mem::replace(&mut self.waits_for, WaitsFor::Nothing) {
            nothing @ (WaitsFor::Nothing | WaitsFor::Look { .. } | WaitsFor::Turn) => {
                self.waits_for = nothing;
            }
            WaitsFor::Read(seen) => {
                let hash = self.hash;
                let found = self.asks.ask(|key, _, _| engine.look_recorded(key, hash, &seen));
                match found {
                    Ok(found) => self.waits_for = WaitsFor::Look { seen, found },
                    // If it isn't damage, it is looked up again.
                    Err(e) => engine.look_failed(hash, &seen, e)?,
                }
            }
            WaitsFor::ReadClaim(seen) => {
                let read = self.asks.ask(|step, _, _| engine.read_claim(step, seen))?;
                self.claim = read.map(Box::new);
            }
            WaitsFor::Spaces => {
                engine.read_spaces()?;
                if matches!(self.asks.ask(|key, _, _| key.lies()), Lies::Names(_)) {
                    engine.read_open_keys()?;
                }
            }
            WaitsFor::Beginning => {
                engine.begin_writing()?;
                engine.help()?;
            }
            WaitsFor::Room { bytes, room } => {
                let make = || engine.log.rooms().make_room(bytes, room);
                self.make_room(engine, room, make)?;
            }
            WaitsFor::Owed(room) => self.make_room(engine, room, || engine.cover_owed())?,
        }
        Ok(())
    }

    fn make_room(
        &mut self,
        engine: &Engine,
        room: Room,
        make: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        engine.help()?;
        match make() {
            // Before it is refused, dead records are reclaimed, with the help of this call.
            Err(e) if e.kind() == ErrorKind::StorageFull => {
                let pass = self.pass.get_or_insert_with(|| engine.compaction().begin_pass().into());
                let is_reclaimed = engine.compaction().reclaim(pass, room);
                // A claim is attached without a reserve rather than not at all, see `Engine::note`.
                let needs_none = self.asks.ask(|_, call, _| matches!(call, Call::Attach(_)));
                let goes_on = is_reclaimed || needs_none && engine.log.rooms().is_full();
                if goes_on { Ok(()) } else { Err(e) }
            }
            made => made,
        }
    }
}

impl Engine {
    /// Tries a call once, before anything is kept of it.
    // Every call of a thread passes here; as a function of its own it would be called with all of the call's parts.
    #[inline(always)]
    pub(super) fn try_at_once(&self, asked: &Asked<'_>, hash: KeyHash) -> Result<Done, Stop> {
        if asked.key.lies() != Lies::InRoot {
            return Err(Stop::WaitsFor(WaitsFor::Nothing));
        }
        let tried = self.try_in_memory(asked, hash, None);
        self.tell_change(asked.key, hash, asked.call, &tried);
        if events::ARE_TOLD {
            if let Ok(done) = &tried {
                self.tell(asked.key, asked.call, asked.writing, done);
            }
        }
        tried
    }

    /// Wakes the callers that wait for the key, if the call changed it.
    #[inline]
    pub(super) fn tell_change(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        tried: &Result<Done, Stop>,
    ) {
        // A lapse was written.
        let has_lapsed = matches!(tried, Err(Stop::Again(Again::Changed)));
        if has_lapsed {
            self.log.events.lapsed(key, key.namespace());
        }
        if self.waits.may_concern(hash) {
            let has_changed = has_lapsed || matches!(tried, Ok(done) if done.has_changed);
            self.tell_waiting(key, hash, call, has_changed);
        }
    }

    #[cold]
    fn tell_waiting(&self, key: &Key<'_>, hash: KeyHash, call: Call, has_changed: bool) {
        if has_changed {
            let wakes = if call.has_answer_for_all() { Wakes::All } else { Wakes::First };
            self.waits.tell(key, hash, wakes);
        }
    }

    /// Tries once. Memory answers under one lock; records that are only in the log are read without it.
    #[inline(always)]
    fn try_in_memory<A: Asks>(
        &self,
        asks: &A,
        hash: KeyHash,
        claim: Option<&ReadClaim>,
    ) -> Result<Done, Stop> {
        asks.ask(|key, call, writing| {
            if let Call::EndStep { .. } = call {
                return self.try_to_end_step(key, hash, None, claim, call, writing);
            }
            let mut shard = self.shard(hash)?;
            let (found, now) = match self.look_in_memory(&shard, key, hash) {
                Some((found, now)) => (Some(found), now),
                None => {
                    let now = self.log.now();
                    if let Some(known) = Known::to_read(&shard, hash, now) {
                        return Err(Stop::WaitsFor(WaitsFor::Read(known)));
                    }
                    (None, now)
                }
            };
            self.act(&mut shard, key, hash, found, call, writing, now).map_err(Stop::Again)
        })
    }

    /// What a call waits for that was stopped.
    #[cold]
    pub(super) fn stopped(&self, stop: Stop) -> Result<WaitsFor> {
        let again = match stop {
            Stop::WaitsFor(waits_for) => return Ok(waits_for),
            Stop::Failed(e) => return Err(e),
            Stop::Again(again) => again,
        };
        Ok(match again {
            Again::Changed => WaitsFor::Nothing,
            Again::NotWriting => WaitsFor::Beginning,
            Again::Room { bytes, room } => WaitsFor::Room { bytes, room },
            Again::Owed(room) => WaitsFor::Owed(room),
            Again::Claim(known) => WaitsFor::ReadClaim(known),
            Again::Indeterminate => {
                let message = "the process that was asked first has gone, and the key has changed since: whether this call \
                    was made is unknown; ask what became of the key";
                return Err(Error::new(ErrorKind::Indeterminate, message));
            }
            Again::Bug(what) => return Err(self.log.bug(what)),
            Again::NoMoreLsns => {
                let message = "the log has used up its 2^62 positions: begin a new store";
                return Err(Error::new(ErrorKind::StorageFull, message).at(self.log.dir()));
            }
        })
    }
}
