//! The protocol over log and index: the only place where a key's state changes.
//!
//! Promises: at most one live claim per key; a record takes its place in the log and its key's entry in the
//! index in one step under the key's shard lock; no answer shows what a crash could take back at the level of
//! the record it is derived from, `InProgress` apart. Never: I/O, or waiting for room, under a shard lock.

use std::path::{Path, PathBuf};

use crate::index::Hasher;
use crate::index::recent::{Entry, Live, Place, Recent, Shard};
use crate::limits;
use crate::log::recovery::{Earlier, Report};
use crate::log::{Log, NoRoom, Placed, Room, Seams, Sizes, recovery};
use crate::manifest::Manifest;
use crate::operation::{Durability, Fingerprint, Key};
use crate::protocol::{self, Answer, Call, KeyState, Next, Phase, Presence};
use crate::record::{Body, Draft, Ending, Record};
use crate::storage::DirLock;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, WakeWord};
use crate::types::{KeyHash, Lsn, StoreMillis, Token};
use crate::{Error, ErrorKind, Result};

/// An open store, as its handles share it.
pub(crate) struct Engine {
    pub(crate) log: Log,
    recent: Recent,
    hasher: Hasher,
    pub(crate) report: Report,
    pub(crate) result_bytes_max: u32,
    questions: AtomicU64,
    /// Claims in flight.
    in_flight: AtomicU64,
    /// No new claims.
    is_draining: AtomicBool,
    is_closed: AtomicBool,
    /// Changes when a claim ends while somebody waits for that.
    ended: WakeWord,
    lock: Mutex<Option<Box<dyn DirLock>>>,
    fork_generation: u32,
}

/// What goes into a record beside the decision.
#[derive(Clone, Copy, Default)]
pub(crate) struct Writing<'a> {
    /// Level of the record; `None`: `Sync`.
    pub(crate) level: Option<Durability>,
    /// Room to keep for the ending, of a grant.
    pub(crate) reserve: u64,
    pub(crate) lease_ms: Option<u64>,
    pub(crate) retention_ms: Option<u64>,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) hold: bool,
    pub(crate) owner: Option<&'a str>,
    pub(crate) reason: Option<&'a str>,
    pub(crate) outcome: Option<Outcome<'a>>,
}

/// A result or a recorded failure, encoded.
#[derive(Clone, Copy)]
pub(crate) struct Outcome<'a> {
    pub(crate) codec: u16,
    pub(crate) version: u32,
    pub(crate) meta: &'a [u8],
    pub(crate) bytes: &'a [u8],
}

/// A recorded outcome, read back.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) codec: u16,
    pub(crate) version: u32,
    pub(crate) meta: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
}

/// How a call went.
pub(crate) struct Applied {
    pub(crate) answer: Answer,
    /// What the key was in.
    pub(crate) before: Option<KeyState>,
    /// What it is in now, where something was written.
    pub(crate) after: Option<KeyState>,
    pub(crate) presence: Presence,
    pub(crate) lease_until: Option<StoreMillis>,
    pub(crate) outcome: Option<Stored>,
    pub(crate) now: StoreMillis,
    /// Names the question, of `Asked`.
    pub(crate) question: u64,
}

/// What was found of a key.
#[derive(Default)]
struct Found {
    state: Option<KeyState>,
    presence: Presence,
    place: Option<Place>,
    lease_until: Option<StoreMillis>,
    reserved: u64,
    outcome: Option<Stored>,
}

/// A call that was decided and, where something was to be written, placed.
struct Done {
    applied: Applied,
    placed: Option<Placed>,
    /// The record that the answer is derived from.
    prior: Option<Place>,
}

type Tried = Result<Done, Again>;

/// One step of `apply` that could not be finished under the shard lock.
enum Again {
    Room { bytes: u64, room: Room },
    NotWriting,
    Changed,
    NoMoreLsns,
}

impl Engine {
    /// Opens the store that `manifest` lists, in a directory that is locked.
    pub(crate) fn open(
        seams: Seams,
        dir: &Path,
        sizes: Sizes,
        result_bytes_max: u32,
        manifest: Manifest,
        lock: Box<dyn DirLock>,
    ) -> Result<Self> {
        let hasher = Hasher::new(&manifest.secrets);
        let recent = Recent::new();
        let mut visit = |record: &Record<'_>, earlier: &Earlier<'_>| {
            take_in(&recent, &hasher, dir, record, earlier)
        };
        let (log, report) = recovery::open(seams, dir, sizes, manifest, &mut visit)?;
        let engine = Engine {
            log,
            recent,
            hasher,
            report,
            result_bytes_max,
            questions: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            ended: WakeWord::new(),
            lock: Mutex::new(Some(lock)),
            fork_generation: crate::storage::fork::generation(),
        };
        if engine.log.has_unsettled_tail() {
            // Without room it is served up to the tail, and finished when there is some.
            match engine.begin_writing() {
                Err(e) if e.kind() != ErrorKind::StorageFull => return Err(e),
                _ => {}
            }
        }
        Ok(engine)
    }

    pub(crate) fn hash(&self, key: &Key<'_>) -> KeyHash {
        self.hasher.hash(key)
    }

    /// Whether this process is a fork of the one that opened the store: then nothing is touched.
    pub(crate) fn is_foreign(&self) -> bool {
        crate::storage::fork::generation() != self.fork_generation
    }

    pub(crate) fn check_usable(&self) -> Result<()> {
        if self.is_foreign() {
            return Err(Error::new(
                ErrorKind::Forked,
                "this process is a fork of the one that opened the store: open it anew, or use it in the parent",
            )
            .at(self.log.dir()));
        }
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(self.closed());
        }
        Ok(())
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "the store was closed: open it again").at(self.log.dir())
    }

    /// Does one call on one key: looks it up, decides, writes what is to be written, and waits until the
    /// answer can't be taken back at its level.
    pub(crate) fn apply(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        writing: &Writing<'_>,
    ) -> Result<Applied> {
        let done = self.place(key, hash, call, writing)?;
        let settled = self.settle(&done, writing.level.unwrap_or(Durability::Sync));
        if settled.is_err() && done.applied.answer == Answer::Asked {
            // Nobody will hold the question, so nobody could drop it.
            self.unask(hash, done.applied.question);
        }
        settled.map(|()| done.applied)
    }

    /// Waits for the record that was placed, and for the one that the answer is derived from. `InProgress`
    /// alone may be taken back by a crash.
    fn settle(&self, done: &Done, level: Durability) -> Result<()> {
        if let Some(placed) = done.placed {
            self.log.wake_upkeep();
            self.log.commit(placed, level)?;
        }
        match done.prior {
            Some(prior) if done.applied.answer != Answer::InProgress => {
                self.log.commit_earlier(prior.lsn(), prior.level())
            }
            _ => Ok(()),
        }
    }

    /// As `apply`, but waits for nothing.
    fn place(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        writing: &Writing<'_>,
    ) -> Result<Done> {
        self.check_usable()?;
        if matches!(call, Call::Claim(_) | Call::Mark) && self.is_draining.load(Ordering::SeqCst) {
            let message = "the store is draining: it takes no new claims";
            return Err(Error::new(ErrorKind::Closed, message).at(self.log.dir()));
        }
        loop {
            let again = match self.try_place(key, hash, call, writing)? {
                Ok(done) => return Ok(done),
                Err(again) => again,
            };
            self.check_usable()?;
            match again {
                Again::Changed => {}
                Again::NoMoreLsns => {
                    let message = "the log has used up its 2^62 positions: begin a new store";
                    return Err(Error::new(ErrorKind::StorageFull, message).at(self.log.dir()));
                }
                Again::NotWriting => self.begin_writing()?,
                Again::Room { bytes, room } => self.log.make_room(bytes, room)?,
            }
        }
    }

    /// One try. Memory answers under one lock; a key that only the log knows is read without it, and looked
    /// at again before anything is written.
    fn try_place(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        writing: &Writing<'_>,
    ) -> Result<Tried> {
        let mut shard = self.shard(hash)?;
        // Under the lock: whoever comes later must not judge by an earlier time.
        let now = self.log.now();
        match self.look_in_memory(&mut shard, key, hash, call, now) {
            Ok(Some(found)) => {
                return Ok(self.act(&mut shard, key, hash, found, call, now, writing));
            }
            Err(again) => return Ok(Err(again)),
            Ok(None) => {}
        }
        let candidates = recorded(&shard, hash);
        if candidates.is_empty() {
            let found = Found::default();
            return Ok(self.act(&mut shard, key, hash, found, call, now, writing));
        }
        drop(shard);
        let found = match self.look_in_log(key, &candidates) {
            Ok(found) => found,
            // What was read may have moved meanwhile; then it is no damage.
            Err(_) if !self.is_unchanged(hash, &candidates)? => return Ok(Err(Again::Changed)),
            Err(e) => return self.settle_tail(e).map(|()| Err(Again::Changed)),
        };
        let decision = protocol::decide(found.state.as_ref(), found.presence, call, now);
        if decision.next.is_none() && decision.answer != Answer::Asked {
            return Ok(Ok(told(found, decision.answer, now)));
        }
        let mut shard = self.shard(hash)?;
        if !is_as_read(&shard, key, hash, &candidates) {
            return Ok(Err(Again::Changed));
        }
        let now = self.log.now();
        Ok(self.act(&mut shard, key, hash, found, call, now, writing))
    }

    /// Decides on what was found and does it, under the shard lock.
    #[expect(clippy::too_many_arguments, reason = "one step, all of it under the shard lock")]
    fn act(
        &self,
        shard: &mut Shard,
        key: &Key<'_>,
        hash: KeyHash,
        found: Found,
        call: Call,
        now: StoreMillis,
        writing: &Writing<'_>,
    ) -> Tried {
        let decision = protocol::decide(found.state.as_ref(), found.presence, call, now);
        let Some(next) = decision.next else {
            let mut question = 0;
            if decision.answer == Answer::Asked {
                question = self.ask(shard, key, hash, &found);
            } else if matches!(call, Call::Renew(_)) && decision.answer == Answer::Done {
                renew_in_memory(shard, hash, &found, now, writing);
            }
            let mut done = told(found, decision.answer, now);
            done.applied.question = question;
            return Ok(done);
        };
        let (placed, after) = self.write(shard, key, hash, &found, next, now, writing)?;
        let mut done = told(found, decision.answer, now);
        done.placed = Some(placed);
        done.applied.after = after;
        Ok(done)
    }

    /// Notes in memory that a claimant was told of the interruption. Gives the question's number.
    fn ask(&self, shard: &mut Shard, key: &Key<'_>, hash: KeyHash, found: &Found) -> u64 {
        let question = self.questions.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let entry = found.place.and_then(|place| shard.entry_at(hash, place.lsn()));
        if let (Some(entry), Some(state)) = (entry, &found.state) {
            entry.live = Some(Box::new(Live {
                key_kind: key.kind(),
                key: key.bytes().into(),
                state: state.clone(),
                presence: Presence::Asked,
                lease_until: None,
                reserved: 0,
                question,
            }));
        }
        question
    }

    fn shard(&self, hash: KeyHash) -> Result<crate::sync::MutexGuard<'_, Shard>> {
        self.recent.shard(hash).ok_or_else(|| Error::invalid("the index has no such shard"))
    }

    fn is_unchanged(&self, hash: KeyHash, candidates: &[Place]) -> Result<bool> {
        let shard = self.shard(hash)?;
        let all = candidates.iter().all(|place| shard.candidates(hash).any(|e| e.place == *place));
        Ok(all)
    }

    /// The key's entry, if somebody is on it. A lease that has passed is noticed here, by whoever comes but its
    /// own owner, whose word counts as long as nobody else has come.
    fn look_in_memory(
        &self,
        shard: &mut Shard,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        now: StoreMillis,
    ) -> Result<Option<Found>, Again> {
        let is_key = |entry: &&Entry| {
            entry.live.as_ref().is_some_and(|live| live.is_key(key.kind(), key.bytes()))
        };
        let Some(entry) = shard.candidates(hash).find(is_key) else { return Ok(None) };
        let Some(live) = &entry.live else { return Ok(None) };
        let found = Found {
            state: Some(live.state.clone()),
            presence: live.presence,
            place: Some(entry.place),
            lease_until: live.lease_until,
            reserved: live.reserved,
            outcome: None,
        };
        let token = live.state.token;
        if !live.has_lapsed(now) || call.of_owner() == Some(token) {
            return Ok(Some(found));
        }
        let decision =
            protocol::decide(found.state.as_ref(), found.presence, Call::Interrupt(token), now);
        let Some(next) = decision.next else { return Ok(Some(found)) };
        let writing = Writing {
            level: found.place.map(Place::level),
            reason: Some("its lease passed"),
            ..Writing::default()
        };
        self.write(shard, key, hash, &found, next, now, &writing)?;
        Err(Again::Changed)
    }

    /// The key among the records that have its hash.
    fn look_in_log(&self, key: &Key<'_>, candidates: &[Place]) -> Result<Found> {
        for &place in candidates {
            let found = self.log.read(place.lsn(), |record| {
                let body = self.body_of(&record)?;
                if (body.key_kind, body.key) != (key.kind(), key.bytes()) {
                    return Ok(None);
                }
                let state = state_of(&record, &body);
                let has_outcome = state
                    .as_ref()
                    .is_some_and(|state| matches!(state.phase, Phase::Completed | Phase::Failed));
                let outcome = has_outcome.then(|| Stored {
                    codec: body.codec,
                    version: body.version,
                    meta: body.meta.to_vec(),
                    bytes: body.result.to_vec(),
                });
                Ok(Some(Found { state, place: Some(place), outcome, ..Found::default() }))
            })?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Ok(Found::default())
    }

    fn body_of<'a>(&self, record: &Record<'a>) -> Result<Body<'a>> {
        record.body().map_err(|bad| {
            Error::corrupt(self.log.dir(), 0, format_args!("{bad} at lsn {}", record.lsn))
        })
    }

    /// Gives the record its place in the log and the key its entry, in one step.
    #[expect(clippy::too_many_arguments, reason = "one step, all of it under the shard lock")]
    fn write(
        &self,
        shard: &mut Shard,
        key: &Key<'_>,
        hash: KeyHash,
        found: &Found,
        next: Next,
        now: StoreMillis,
        writing: &Writing<'_>,
    ) -> Result<(Placed, Option<KeyState>), Again> {
        let body = self.compose(key, found.state.as_ref(), next, now, writing);
        let was_live = found.presence == Presence::Owner;
        let (draft, phase, room) = match next {
            Next::Claimed { .. } => {
                (Draft::claim(&body), Some(Phase::Claimed), Room::Reserve(writing.reserve))
            }
            Next::Marked { .. } => {
                (Draft::end(Ending::Completed, &body), Some(Phase::Completed), Room::Free)
            }
            Next::Absent => (Draft::forget(&body), None, Room::Spend(found.reserved)),
            Next::Same { phase, .. } => {
                let draft = match phase {
                    Phase::Claimed => Draft::update(&body),
                    Phase::Interrupted => Draft::end(Ending::Interrupted, &body),
                    Phase::Held => Draft::end(Ending::Held, &body),
                    Phase::Aborted => Draft::end(Ending::Aborted, &body),
                    Phase::Completed => Draft::end(Ending::Completed, &body),
                    Phase::Failed => Draft::end(Ending::Failed, &body),
                };
                let room = match phase {
                    Phase::Claimed => Room::Reserve(writing.reserve),
                    _ => Room::Spend(found.reserved),
                };
                (draft, Some(phase), room)
            }
        };
        let placed = self.log.place(draft, room).map_err(|no_room| match no_room {
            NoRoom::Wanted { bytes, room } => Again::Room { bytes, room },
            NoRoom::NotWriting => Again::NotWriting,
            NoRoom::Full => Again::NoMoreLsns,
        })?;
        let level = writing.level.unwrap_or(Durability::Sync);
        let place = Place::new(placed.lsn, level);
        let after = phase.map(|phase| after(phase, &body, found.state.as_ref(), placed.lsn));
        let live = match (&after, phase) {
            (Some(state), Some(Phase::Claimed)) => Some(Box::new(Live {
                key_kind: key.kind(),
                key: key.bytes().into(),
                state: state.clone(),
                presence: Presence::Owner,
                lease_until: writing.lease_ms.map(|lease| now.plus(lease)),
                reserved: writing.reserve,
                question: 0,
            })),
            _ => None,
        };
        match (was_live, live.is_some()) {
            (false, true) => {
                self.in_flight.fetch_add(1, Ordering::SeqCst);
            }
            (true, false) => self.ended_one(),
            _ => {}
        }
        match (found.place.and_then(|old| shard.entry_at(hash, old.lsn())), phase) {
            (Some(entry), Some(_)) => {
                entry.place = place;
                entry.live = live;
            }
            (Some(_), None) => {
                if let Some(old) = found.place {
                    shard.remove_at(hash, old.lsn());
                }
            }
            (None, Some(_)) => shard.insert(Entry { hash, place, live }),
            (None, None) => {}
        }
        Ok((placed, after))
    }

    fn ended_one(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if self.is_draining.load(Ordering::SeqCst) {
            self.ended.wake_all();
        }
    }

    /// The body of the record that brings the key from `state` to `next`.
    fn compose<'a>(
        &self,
        key: &'a Key<'_>,
        state: Option<&'a KeyState>,
        next: Next,
        now: StoreMillis,
        writing: &Writing<'a>,
    ) -> Body<'a> {
        let expires_at = writing.retention_ms.map(|retention| now.plus(retention));
        let mut body = Body {
            key_kind: key.kind(),
            key: key.bytes(),
            time: now,
            wall_offset: self.wall_offset(now),
            attempt: 1,
            ..Body::default()
        };
        match next {
            Next::Claimed { attempt, life, open_fate } => {
                body = Body { attempt, life, open_fate, ..body };
                // Only an aborted request may be mended: whoever takes over goes on with the one there is.
                let gone_on_with = state
                    .filter(|state| matches!(state.phase, Phase::Claimed | Phase::Interrupted))
                    .and_then(|state| state.fingerprint);
                body.fingerprint = writing.fingerprint.or(gone_on_with).map(Fingerprint::to_bytes);
                body.hold = writing.hold;
                body.owner = writing.owner.unwrap_or_default();
            }
            Next::Marked { attempt, life } => {
                body = Body { attempt, life, expires_at, ..body };
                body.fingerprint = writing.fingerprint.map(Fingerprint::to_bytes);
                body.owner = writing.owner.unwrap_or_default();
            }
            Next::Same { phase, open_fate, spent } => {
                let Some(state) = state else { return body };
                body.token = Some(state.token).filter(|_| !spent);
                body.life = Some(state.life).filter(|life| spent || *life != state.token);
                body.open_fate = open_fate;
                body.attempt = state.attempt;
                body.since = Some(state.since)
                    .filter(|_| !matches!(phase, Phase::Completed | Phase::Failed));
                body.fingerprint = state.fingerprint.map(Fingerprint::to_bytes);
                body.hold = state.hold;
                body.owner = match phase {
                    Phase::Completed | Phase::Failed => "",
                    _ => state.owner.as_deref().unwrap_or_default(),
                };
                body.reason = writing.reason.unwrap_or_default();
                if matches!(phase, Phase::Completed | Phase::Failed | Phase::Aborted) {
                    body.expires_at = expires_at;
                }
            }
            Next::Absent => {}
        }
        if let Some(outcome) = &writing.outcome {
            body.codec = outcome.codec;
            body.version = outcome.version;
            body.meta = outcome.meta;
            body.result = outcome.bytes;
        }
        body
    }

    /// Wall time minus store time, where they have parted by a second.
    fn wall_offset(&self, now: StoreMillis) -> i64 {
        let wall = self.log.seams().clock.wall().0;
        let offset = i64::try_from(i128::from(wall) - i128::from(now.0)).unwrap_or(0);
        if offset.unsigned_abs() >= limits::TIME_DRIFT_MILLIS { offset } else { 0 }
    }

    /// A read failed. If it was for want of room in which to make the last opening's tail durable, and there is
    /// some now, that is mended, and the read may be tried again; else the error stands.
    fn settle_tail(&self, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::StorageFull || !self.log.has_unsettled_tail() {
            return Err(error);
        }
        match self.begin_writing() {
            Err(e) if e.kind() == ErrorKind::StorageFull => Err(error),
            other => other,
        }
    }

    /// What must come before the first record of an opening.
    fn begin_writing(&self) -> Result<()> {
        self.log.begin_writing(&mut |from: Lsn, record: &Record<'_>| {
            let Ok(body) = record.body() else { return };
            let Some(key) = Key::from_stored(body.key_kind, body.key) else { return };
            let hash = self.hasher.hash(&key);
            let Some(mut shard) = self.recent.shard(hash) else { return };
            if let Some(entry) = shard.entry_at(hash, from) {
                entry.place = Place::new(record.lsn, Durability::Sync);
            }
        })
    }

    /// The owner of `token` went without a word: what the drop of its guard does. Waits for nothing; a
    /// crash before the record gives the same state. An abort, which `OnDrop` spoke beforehand, does say
    /// something: it waits where the log has to go on in another segment.
    pub(crate) fn let_go(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        token: Token,
        abort: bool,
        reason: &str,
        writing: &Writing<'_>,
    ) {
        if self.is_foreign() {
            return;
        }
        let writing = Writing { reason: Some(reason), ..*writing };
        let call = if abort { Call::Abort(token) } else { Call::Interrupt(token) };
        loop {
            match self.try_place(key, hash, call, &writing) {
                Ok(Ok(_)) => return self.log.wake_upkeep(),
                Ok(Err(Again::Changed)) => {}
                Ok(Err(Again::Room { bytes, room }))
                    if abort && self.log.make_room(bytes, room).is_ok() => {}
                // No room, or nothing may be written: the claim's own record says "interrupted" to whoever comes.
                _ => return self.forget_owner(key, hash, token),
            }
        }
    }

    fn forget_owner(&self, key: &Key<'_>, hash: KeyHash, token: Token) {
        let Some(mut shard) = self.recent.shard(hash) else { return };
        let place = shard.candidates(hash).find_map(|entry| {
            let live = entry.live.as_ref()?;
            (live.is_key(key.kind(), key.bytes())
                && live.presence == Presence::Owner
                && live.state.token == token)
                .then_some((entry.place.lsn(), live.reserved))
        });
        let Some((lsn, reserved)) = place else { return };
        if let Some(entry) = shard.entry_at(hash, lsn) {
            entry.live = None;
            self.log.release(reserved);
            self.ended_one();
        }
    }

    /// A question was dropped without a word: the next claimant is asked.
    pub(crate) fn unask(&self, hash: KeyHash, question: u64) {
        if self.is_foreign() {
            return;
        }
        let Some(mut shard) = self.recent.shard(hash) else { return };
        let place = shard.candidates(hash).find_map(|entry| {
            let live = entry.live.as_ref()?;
            (live.presence == Presence::Asked && live.question == question)
                .then_some(entry.place.lsn())
        });
        if let Some(entry) = place.and_then(|lsn| shard.entry_at(hash, lsn)) {
            entry.live = None;
        }
    }

    /// What is known of a key, without changing anything.
    pub(crate) fn look(&self, key: &Key<'_>, hash: KeyHash) -> Result<Option<Seen>> {
        self.check_usable()?;
        loop {
            let shard = self.shard(hash)?;
            let now = self.log.now();
            let live = shard.candidates(hash).find_map(|entry| {
                let live = entry.live.as_ref()?;
                live.is_key(key.kind(), key.bytes()).then(|| seen_live(entry, live, now))
            });
            if let Some(seen) = live {
                drop(shard);
                return self.shown(seen).map(Some);
            }
            let candidates: Vec<Place> = shard.candidates(hash).map(|entry| entry.place).collect();
            drop(shard);
            let found = match self.look_in_log(key, &candidates) {
                Ok(found) => found,
                Err(_) if !self.is_unchanged(hash, &candidates)? => continue,
                Err(e) => {
                    self.settle_tail(e)?;
                    continue;
                }
            };
            let (Some(state), Some(place)) = (found.state, found.place) else { return Ok(None) };
            if protocol::is_expired(&state, now) {
                return Ok(None);
            }
            let seen = Seen {
                state,
                presence: Presence::Nobody,
                lease_until: None,
                outcome: found.outcome,
                now,
                place,
            };
            return self.shown(seen).map(Some);
        }
    }

    /// Waits until what is to be shown can't be taken back, a claim in progress apart.
    fn shown(&self, seen: Seen) -> Result<Seen> {
        if protocol::phase_shown(&seen.state, seen.presence) != Phase::Claimed {
            self.log.commit_earlier(seen.place.lsn(), seen.place.level())?;
        }
        Ok(seen)
    }

    /// The places of all keys in the nth shard, for a walk; `None` past the last.
    pub(crate) fn places(&self, shard: usize) -> Option<Vec<(KeyHash, Place)>> {
        if self.log.has_unsettled_tail() && self.check_usable().is_ok() {
            // It moves keys; so before the walk rather than under it. If there is no room yet, the reads say so.
            let _ = self.begin_writing();
        }
        let shard = self.recent.nth_shard(shard)?;
        Some(shard.iter().map(|entry| (entry.hash, entry.place)).collect())
    }

    /// The key whose newest record was seen at a place by a walk; `None` if it has changed since.
    pub(crate) fn key_at(&self, hash: KeyHash, place: Place) -> Result<Option<Key<'static>>> {
        let read = self.log.read(place.lsn(), |record| {
            let body = self.body_of(&record)?;
            Ok(Key::from_stored(body.key_kind, body.key).map(Key::into_owned))
        });
        match read {
            Err(_) if !self.is_unchanged(hash, &[place])? => Ok(None),
            other => other,
        }
    }

    /// Keys known, and claims in flight.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let shards = (0..limits::SHARDS).filter_map(|index| self.recent.nth_shard(index));
        let keys = shards.map(|shard| shard.len() as u64).sum();
        (keys, self.in_flight.load(Ordering::SeqCst))
    }

    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Waits until no claim is in flight, at most `millis`.
    pub(crate) fn wait_for_claims(&self, millis: u64) {
        let nanos = || self.log.seams().clock.monotonic_nanos();
        let began = nanos();
        loop {
            let (seen, now) = (self.ended.read(), nanos());
            let waited = now.saturating_sub(began) / 1_000_000;
            if self.in_flight.load(Ordering::SeqCst) == 0 || waited >= millis {
                return;
            }
            self.ended.wait(seen, Some(millis - waited));
            // A clock driven by hand stands still meanwhile; then the wait itself was the deadline.
            if self.ended.read() == seen && nanos() == now {
                return;
            }
        }
    }

    /// Takes nothing more, interrupts the claims still in flight and says which they were, makes everything
    /// durable, closes the log, and lets go of the directory.
    pub(crate) fn close(&self) -> Result<Vec<(Key<'static>, KeyState)>> {
        if self.is_foreign() {
            return Ok(Vec::new());
        }
        self.drain();
        if self.is_closed.swap(true, Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        let left = self.interrupt_all();
        let closed = self.log.close();
        drop(self.lock.lock().take());
        closed.map(|()| left)
    }

    fn interrupt_all(&self) -> Vec<(Key<'static>, KeyState)> {
        let mut left = Vec::new();
        for index in 0..limits::SHARDS {
            let Some(mut shard) = self.recent.nth_shard(index) else { break };
            let now = self.log.now();
            for entry in shard.iter_mut() {
                let Some(live) = entry.live.take() else { continue };
                let Some(key) = Key::from_stored(live.key_kind, &live.key).map(Key::into_owned)
                else {
                    continue;
                };
                if live.presence == Presence::Owner {
                    self.in_flight.fetch_sub(1, Ordering::SeqCst);
                    self.interrupt_for_close(&key, entry, &live, now);
                    left.push((key, live.state));
                }
            }
        }
        left
    }

    /// Best effort: without the record, the claim's own says the same to the next opening.
    fn interrupt_for_close(&self, key: &Key<'_>, entry: &mut Entry, live: &Live, now: StoreMillis) {
        let next =
            Next::Same { phase: Phase::Interrupted, open_fate: live.state.open_fate, spent: false };
        let writing = Writing { reason: Some("the store was closed"), ..Writing::default() };
        let body = self.compose(key, Some(&live.state), next, now, &writing);
        let draft = Draft::end(Ending::Interrupted, &body);
        if let Ok(placed) = self.log.place(draft, Room::Spend(live.reserved)) {
            entry.place = Place::new(placed.lsn, entry.place.level());
        }
    }

    /// In a forked child: the parent's lock and files are not to be let go of.
    pub(crate) fn abandon(&self) {
        std::mem::forget(self.lock.lock().take());
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.log.dir().to_path_buf()
    }
}

/// A key as it was found.
pub(crate) struct Seen {
    pub(crate) state: KeyState,
    pub(crate) presence: Presence,
    pub(crate) lease_until: Option<StoreMillis>,
    pub(crate) outcome: Option<Stored>,
    pub(crate) now: StoreMillis,
    place: Place,
}

/// The places under a hash that nobody is on.
fn recorded(shard: &Shard, hash: KeyHash) -> Vec<Place> {
    shard.candidates(hash).filter(|entry| entry.live.is_none()).map(|entry| entry.place).collect()
}

/// Whether what was read outside the lock still is all there is of the key.
fn is_as_read(shard: &Shard, key: &Key<'_>, hash: KeyHash, candidates: &[Place]) -> bool {
    let is_live = |entry: &Entry| {
        entry.live.as_ref().is_some_and(|live| live.is_key(key.kind(), key.bytes()))
    };
    recorded(shard, hash) == candidates && !shard.candidates(hash).any(is_live)
}

fn seen_live(entry: &Entry, live: &Live, now: StoreMillis) -> Seen {
    // A lease that has passed is none, as whoever notices it will be told.
    let (presence, lease_until) = match live.has_lapsed(now) {
        true => (Presence::Nobody, None),
        false => (live.presence, live.lease_until),
    };
    Seen {
        state: live.state.clone(),
        presence,
        lease_until,
        outcome: None,
        now,
        place: entry.place,
    }
}

fn told(found: Found, answer: Answer, now: StoreMillis) -> Done {
    let applied = Applied {
        answer,
        before: found.state,
        after: None,
        presence: found.presence,
        lease_until: found.lease_until,
        outcome: found.outcome,
        now,
        question: 0,
    };
    Done { applied, placed: None, prior: found.place }
}

/// The lease of a claim that was not detached lives in memory.
fn renew_in_memory(
    shard: &mut Shard,
    hash: KeyHash,
    found: &Found,
    now: StoreMillis,
    writing: &Writing<'_>,
) {
    let entry = found.place.and_then(|place| shard.entry_at(hash, place.lsn()));
    if let Some(live) = entry.and_then(|entry| entry.live.as_mut()) {
        live.lease_until = writing.lease_ms.map(|lease| now.plus(lease));
    }
}

fn state_of(record: &Record<'_>, body: &Body<'_>) -> Option<KeyState> {
    KeyState::read(record.kind, record.ending(), body, Token(record.lsn.get()))
}

/// The state that a record written just now leaves, as reading it back would give it.
fn after(phase: Phase, body: &Body<'_>, before: Option<&KeyState>, lsn: Lsn) -> KeyState {
    let own = Token(lsn.get());
    let token = body.token.unwrap_or(own);
    KeyState {
        phase,
        token,
        life: body.life.unwrap_or(token),
        open_fate: body.open_fate,
        attempt: body.attempt,
        since: body.since.unwrap_or(body.time),
        time: body.time,
        expires_at: body.expires_at,
        wall_offset: body.wall_offset,
        fingerprint: body.fingerprint.map(Fingerprint::from_bytes),
        hold: body.hold,
        owner: match before.and_then(|state| state.owner.clone()) {
            Some(owner) if *owner == *body.owner => Some(owner),
            _ => (!body.owner.is_empty()).then(|| body.owner.into()),
        },
        reason: (!body.reason.is_empty()).then(|| body.reason.into()),
    }
}

/// Puts one record of the log into the index, as an opening reads it.
fn take_in(
    recent: &Recent,
    hasher: &Hasher,
    dir: &Path,
    record: &Record<'_>,
    earlier: &Earlier<'_>,
) -> Result<()> {
    let corrupt = |what| Error::corrupt(dir, 0, format_args!("{what} at lsn {}", record.lsn));
    let body = record.body().map_err(|_| corrupt("a record body with impossible fields"))?;
    let key =
        Key::from_stored(body.key_kind, body.key).ok_or_else(|| corrupt("an impossible key"))?;
    let hash = hasher.hash(&key);
    let Some(mut shard) = recent.shard(hash) else { return Ok(()) };
    let candidates: Vec<Place> = shard.candidates(hash).map(|entry| entry.place).collect();
    let mut older = None;
    for place in candidates {
        let is_key = earlier.read(place.lsn(), |old| {
            let old = old.body().map_err(|_| corrupt("a record body with impossible fields"))?;
            Ok((old.key_kind, old.key) == (body.key_kind, body.key))
        })?;
        if is_key {
            older = Some(place.lsn());
        }
    }
    let place = Place::new(record.lsn, Durability::Sync);
    let is_forget = state_of(record, &body).is_none();
    match (older, is_forget) {
        (Some(older), true) => shard.remove_at(hash, older),
        (Some(older), false) => {
            if let Some(entry) = shard.entry_at(hash, older) {
                entry.place = place;
            }
        }
        (None, true) => {}
        (None, false) => shard.insert(Entry { hash, place, live: None }),
    }
    Ok(())
}
