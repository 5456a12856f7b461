//! Claims of other processes, which outlive the process that hosted the store: the next host gives them back to their owners.
//!
//! Promises: the claim of a session that lives is in progress from the first call on, with a whole lease. Its reserve is kept
//! where there is space for it. Where there isn't, nothing new is claimed or marked until there is, or the claim has ended.
//! Never: decides; `protocol` does.

use std::collections::BTreeMap;

use super::Engine;
use super::applied::Found;
use super::waits::Wakes;
use crate::index::recent::{Live, Place, Shard};
use crate::log::NoRoom;
use crate::operation::Key;
use crate::protocol::{KeyState, OpenAs, Phase, Presence};
use crate::record::Tenure;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::types::{KeyHash, Lsn, SessionId, StoreMillis, Token};
use crate::{Error, ErrorKind, Result};

/// A claim that its owner keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeptClaim {
    pub(crate) session: SessionId,
    pub(crate) key: Key<'static>,
    pub(crate) token: Token,
}

/// Reserves that claims were kept without, for lack of space.
#[derive(Debug)]
pub(super) struct OwedReserves {
    list: Mutex<Vec<OwedReserve>>,
    /// Their sum, when it was last counted. It is 0 once all are covered: then calls don't look at the list.
    bytes: AtomicU64,
}

#[derive(Debug)]
struct OwedReserve {
    key: Key<'static>,
    token: Token,
    bytes: u64,
}

impl OwedReserves {
    pub(super) fn new() -> Self {
        OwedReserves { list: Mutex::new(Vec::new()), bytes: AtomicU64::new(0) }
    }

    /// Whether something new would take space that a kept claim lacks.
    #[inline]
    pub(super) fn are_owed(&self) -> bool {
        self.bytes.load(Ordering::SeqCst) > 0
    }

    fn count(&self, list: &[OwedReserve]) {
        let bytes = list.iter().map(|owed| owed.bytes).sum();
        self.bytes.store(bytes, Ordering::SeqCst);
    }
}

/// What an owner keeps besides its claim.
#[derive(Clone, Copy, Default)]
pub(super) struct KeptTerms {
    /// Bytes for its ending.
    pub(super) reserve: u64,
    pub(super) lease_until: Option<StoreMillis>,
}

type ClaimOfGuest = (Key<'static>, KeyHash, Place, Box<Found>, Tenure);

impl Engine {
    /// Gives the claims of living sessions back to their owners, and returns them. Called if any session lives, and before any
    /// call is let in. Takes time in proportion to the number of open keys.
    pub(crate) fn keep_tenures(
        &self,
        lives: &dyn Fn(SessionId) -> Result<bool>,
    ) -> Result<Vec<KeptClaim>> {
        let _inside = self.enter()?;
        self.prepare_keeping()?;
        let mut known = BTreeMap::new();
        let mut is_alive = |found: &Found| {
            let origin = found.guest.as_ref().and_then(|guest| guest.origin);
            let Some(session) = origin.map(|origin| origin.session) else { return Ok(None) };
            let is_alive = match known.get(&session) {
                Some(is_alive) => *is_alive,
                None => *known.entry(session).or_insert(lives(session)?),
            };
            Ok::<_, Error>(is_alive.then_some(session))
        };
        let mut kept = Vec::new();
        for (key, hash, place, found, tenure) in self.claims_of_guests()? {
            if let Some(session) = is_alive(&found)? {
                let lease_until = tenure.lease_millis.map(|millis| self.log.now().plus(millis));
                let keeping = KeptTerms { reserve: tenure.reserve, lease_until };
                let token = self.keep(&key, hash, place, *found, keeping)?;
                kept.extend(token.map(|token| KeptClaim { session, key, token }));
            }
        }
        Ok(kept)
    }

    /// Makes the claims of open keys readable.
    pub(super) fn prepare_keeping(&self) -> Result<()> {
        // Those that can't be decided can't be read either.
        let _ = self.decide_hints();
        // The reserves need it, and it may write the claims' records anew. Before it, what a crash left isn't read.
        match self.begin_writing_with(true) {
            Err(e) if e.kind() == ErrorKind::StorageFull => Ok(()),
            begun => begun,
        }
    }

    /// Puts the owner of a claim of this process back on its key, if the claim's record was recovered. Without effect if it is back
    /// already.
    pub(super) fn keep_own(&self, key: &Key<'_>, token: Token, keeping: KeptTerms) -> Result<()> {
        let hash = self.hash(key);
        let places: Vec<_> = self.shard(hash)?.candidates(hash).map(|entry| entry.place).collect();
        for place in places {
            if !matches!(place.open(), Some(OpenAs::Attempt | OpenAs::Detached)) {
                continue;
            }
            if self.key_at(place)?.0 != *key {
                continue;
            }
            let found = self.found_at(key, place)?;
            let is_it = |state: &KeyState| state.phase == Phase::Claimed && state.token == token;
            if found.state.as_ref().is_some_and(is_it) {
                self.keep(key, hash, place, *found, keeping)?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns the claims of other processes. A key whose record is damaged answers with that error; one that can't be read yet
    /// must not be taken for one without an owner.
    fn claims_of_guests(&self) -> Result<Vec<ClaimOfGuest>> {
        let mut claims = Vec::new();
        for (hash, place) in self.recent.open_in(Lsn::ZERO, Lsn::new(u64::MAX)) {
            if place.open() != Some(OpenAs::Attempt) {
                continue;
            }
            match self.claim_at(place) {
                Ok(Some((key, found, tenure))) => claims.push((key, hash, place, found, tenure)),
                Ok(None) => {}
                Err(e) if e.kind() == ErrorKind::Corrupt => {}
                Err(e) => return Err(e),
            }
        }
        Ok(claims)
    }

    /// Reads the key at a place, and the tenure of another process that its record names.
    fn key_at(&self, place: Place) -> Result<(Key<'static>, Option<Tenure>)> {
        self.log.reading().read(place.lsn(), |record| {
            let body = self.body_of(&record)?;
            let key = self.key_of(&body, place.lsn())?.into_owned();
            Ok((key, body.rare.as_ref().and_then(|rare| rare.tenure)))
        })
    }

    /// Reads the state of a key at its place.
    fn found_at(&self, key: &Key<'_>, place: Place) -> Result<Box<Found>> {
        let found = self.look_in_log(key, &[place])?.unwrap_or_default();
        self.without_ended_steps(key, found)
    }

    /// Reads the claim of another process at a place; `None`: the record is none.
    fn claim_at(&self, place: Place) -> Result<Option<(Key<'static>, Box<Found>, Tenure)>> {
        let (key, Some(tenure)) = self.key_at(place)? else { return Ok(None) };
        let found = self.found_at(&key, place)?;
        let is_claim = found
            .state
            .as_ref()
            .is_some_and(|state| state.phase == Phase::Claimed && state.detached().is_none());
        Ok(is_claim.then_some((key, found, tenure)))
    }

    /// Puts the owner of a claim back on its key.
    fn keep(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        place: Place,
        found: Found,
        keeping: KeptTerms,
    ) -> Result<Option<Token>> {
        let Found { state: Some(mut state), guest, .. } = found else { return Ok(None) };
        // Read as that of a claim whose owner is gone.
        state.reason = None;
        let token = state.token;
        let KeptTerms { reserve, lease_until } = keeping;
        let has_space = self.log.is_writing()
            && match self.reserve_for_kept(reserve) {
                Err(e) if e.kind() == ErrorKind::StorageFull => false,
                made => made.map(|()| true)?,
            };
        let reserved = if has_space { reserve } else { 0 };
        let mut shard = self.shard(hash)?;
        let entry = shard.entry_at(hash, place.lsn()).filter(|entry| entry.live.is_none());
        let Some(entry) = entry else {
            self.log.release(reserved);
            return Ok(None);
        };
        let live = Live {
            key_kind: key.kind(),
            key: key.bytes().into(),
            state,
            presence: Presence::Owner,
            lease_until,
            reserved,
            asker: None,
            guest,
        };
        self.begun_one(live.owner().is_some());
        entry.live = Some(Box::new(live));
        drop(shard);
        if let lacking @ 1.. = reserve - reserved {
            let mut list = self.owed.list.lock();
            list.push(OwedReserve { key: key.clone().into_owned(), token, bytes: lacking });
            self.owed.count(&list);
        }
        Ok(Some(token))
    }

    /// Has the lease of a claim end when its owner knows it to end: so many milliseconds from now. Without effect if the owner has
    /// another token, or is gone, or has no lease.
    pub(crate) fn keep_lease(&self, key: &Key<'_>, token: Token, left_millis: u64) -> Result<()> {
        let _inside = self.enter()?;
        let hash = self.hash(key);
        let mut shard = self.shard(hash)?;
        let now = self.log.now();
        let live = owned(&mut shard, key, hash, token);
        if let Some(lease_until) = live.and_then(|live| live.lease_until.as_mut()) {
            *lease_until = now.plus(left_millis);
        }
        drop(shard);
        // The one that waits for its end has to learn of it.
        self.waits.tell(key, hash, Wakes::First);
        Ok(())
    }

    /// Reserves space for the ending of a kept claim. `StorageFull`: there is not enough.
    fn reserve_for_kept(&self, bytes: u64) -> Result<()> {
        while let Err(no_room) = self.log.reserve(bytes) {
            match no_room {
                NoRoom::Wanted { bytes, room } => self.log.rooms().make_room(bytes, room)?,
                NoRoom::NotWriting => self.begin_writing()?,
                NoRoom::Full => return Err(self.log.bug("a reserve was to take an lsn")),
            }
        }
        Ok(())
    }

    /// Reserves what kept claims lack, before anything new is claimed or marked. `StorageFull`: there is not enough space for all
    /// of it.
    #[cold]
    pub(super) fn cover_owed(&self) -> Result<()> {
        let mut list = self.owed.list.lock();
        self.drop_settled(&mut list);
        while let Some(owed) = list.last() {
            self.reserve_for_kept(owed.bytes)?;
            let hash = self.hash(&owed.key);
            let mut shard = self.shard(hash)?;
            match owned(&mut shard, &owed.key, hash, owed.token) {
                Some(live) if live.reserved == 0 => live.reserved = owed.bytes,
                // It has ended meanwhile, or its owner has reserved for it.
                _ => self.log.release(owed.bytes),
            }
            drop(shard);
            list.pop();
            self.owed.count(&list);
        }
        Ok(())
    }

    /// Returns how many bytes of reserves kept claims lack.
    pub(crate) fn owed_bytes(&self) -> u64 {
        if !self.owed.are_owed() {
            return 0;
        }
        // Somebody may wait for the disk with the list: then what was counted last has to do.
        if let Some(mut list) = self.owed.list.try_lock() {
            self.drop_settled(&mut list);
        }
        self.owed.bytes.load(Ordering::SeqCst)
    }

    /// Takes the claims off the list that have ended, and those for which their owner has reserved.
    fn drop_settled(&self, list: &mut Vec<OwedReserve>) {
        list.retain(|owed| {
            let hash = self.hash(&owed.key);
            self.shard(hash).is_ok_and(|mut shard| {
                owned(&mut shard, &owed.key, hash, owed.token)
                    .is_some_and(|live| live.reserved == 0)
            })
        });
        self.owed.count(list);
    }
}

/// The claim of that token, if its owner has it.
fn owned<'s>(
    shard: &'s mut Shard,
    key: &Key<'_>,
    hash: KeyHash,
    token: Token,
) -> Option<&'s mut Live> {
    let is_it = |live: &Live| {
        live.is_key(key.kind(), key.bytes())
            && live.presence == Presence::Owner
            && live.state.token == token
    };
    let lsn = shard
        .candidates(hash)
        .find_map(|entry| entry.live.as_deref().is_some_and(is_it).then_some(entry.place.lsn()));
    shard.entry_at(hash, lsn?)?.live.as_deref_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Applied, Sending, Writing};
    use crate::protocol::{Answer, Call, Conditions, Wants};
    use crate::testing::Sim;
    use crate::types::Origin;
    use crate::{Claim, Policy, State, Store};
    use std::time::Duration;

    fn session(number: u64) -> SessionId {
        SessionId::new(number).unwrap()
    }

    /// Makes a call as a guest's: the session and the request, and what it had heard if it is sent again.
    fn call(
        store: &Store,
        key: &str,
        (number, request): (u64, u64),
        heard: Option<Lsn>,
        call: Call,
        lease_ms: Option<u64>,
    ) -> Result<Applied> {
        let conditions = Conditions { lease_ms, ..Conditions::default() };
        let writing = Writing { reserve: 500, conditions, ..Writing::default() };
        send(store, key, (number, request), heard, call, writing)
    }

    fn send(
        store: &Store,
        key: &str,
        (number, request): (u64, u64),
        heard: Option<Lsn>,
        call: Call,
        writing: Writing<'_>,
    ) -> Result<Applied> {
        let origin = Origin { session: session(number), request, item: 0 };
        let sending = Sending { origin, heard };
        let writing = Writing { sending: Some(&sending), ..writing };
        let key = Key::from(key);
        let engine = store.engine();
        engine.apply(&key, engine.hash(&key), call, &writing)
    }

    /// Claims with a reserve.
    fn claim(store: &Store, key: &str, of: (u64, u64), reserve: u64) -> Result<Token> {
        let writing = Writing { reserve, ..Writing::default() };
        let applied = send(store, key, of, None, Call::Claim(Wants::default()), writing)?;
        assert_eq!(applied.answer, Answer::Granted);
        Ok(applied.claimed.unwrap().token)
    }

    fn granted(store: &Store, key: &str, of: (u64, u64), lease_ms: Option<u64>) -> Token {
        let applied = call(store, key, of, None, Call::Claim(Wants::default()), lease_ms).unwrap();
        assert_eq!(applied.answer, Answer::Granted);
        applied.claimed.unwrap().token
    }

    fn end(store: &Store) -> Lsn {
        store.engine().log.end()
    }

    fn lives(numbers: &'static [u64]) -> impl Fn(SessionId) -> Result<bool> {
        |of: SessionId| Ok(numbers.contains(&of.get()))
    }

    fn state(store: &Store, key: &str) -> State {
        store.get(key).unwrap().unwrap()
    }

    /// After a kill and after a close, however the records reached the next host: by the log or by a table.
    #[test]
    fn the_claims_of_living_sessions_stay_in_progress() {
        for way in ["killed", "closed", "sealed"] {
            let sim = Sim::new(1);
            let store = sim.open().unwrap();
            let first = granted(&store, "first", (1, 1), Some(5000));
            let second = granted(&store, "second", (2, 1), None);
            let Claim::Acquired(own) = store.claim("own").unwrap() else { panic!() };
            let applied = call(&store, "first", (1, 2), None, Call::Progress(first), None);
            assert_eq!(applied.unwrap().answer, Answer::Done);
            sim.advance(Duration::from_secs(4));
            match way {
                "killed" => {
                    sim.kill();
                    drop(own);
                }
                _ => {
                    if way == "sealed" {
                        store.merge_index().unwrap();
                    }
                    let left = store.close(Duration::ZERO).unwrap();
                    let keys: Vec<_> = left.iter().map(|left| left.key().to_string()).collect();
                    assert_eq!(keys, ["own"], "a guest's claim is not the host's to end");
                    drop(own);
                }
            }
            drop(store);
            let store = sim.open().unwrap();
            let kept = store.engine().keep_tenures(&lives(&[1])).unwrap();
            let key = Key::from("first").into_owned();
            assert_eq!(kept, [KeptClaim { session: session(1), key, token: first }], "{way}");
            let State::InProgress(attempt) = state(&store, "first") else { panic!("{way}") };
            // A whole lease from the opening on, of the length that the claim was given.
            assert_eq!(attempt.lease_left(), Some(Duration::from_secs(5)), "{way}");
            for gone in ["second", "own"] {
                assert!(matches!(state(&store, gone), State::Interrupted(_)), "{gone}, {way}");
            }
            assert_eq!(store.stats().in_flight, 1, "{way}");
            // Its owner ends it, and the late owner of the other can, too.
            for (key, token, of) in [("first", first, (1, 3)), ("second", second, (2, 2))] {
                let applied = call(&store, key, of, None, Call::Complete(token), None).unwrap();
                assert_eq!(applied.answer, Answer::Done, "{key}, {way}");
            }
            assert_eq!(store.stats().in_flight, 0, "{way}");
        }
    }

    /// A claim that was kept lapses like any other.
    #[test]
    fn a_lease_that_was_given_anew_passes() {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let _first = granted(&store, "k", (1, 1), Some(5000));
        sim.kill();
        drop(store);
        let store = sim.open().unwrap();
        assert_eq!(store.engine().keep_tenures(&lives(&[1])).unwrap().len(), 1);
        assert!(matches!(store.claim("k").unwrap(), Claim::InProgress(_)));
        sim.advance(Duration::from_secs(6));
        assert!(matches!(store.claim("k").unwrap(), Claim::Interrupted(_)));
    }

    /// Its owner has renewed it less than a whole lease before the next host opened the store.
    #[test]
    fn an_owner_that_joins_says_what_is_left_of_its_lease() {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let key = Key::from("k");
        let token = granted(&store, "k", (1, 1), Some(5000));
        sim.kill();
        drop(store);
        let store = sim.open().unwrap();
        assert_eq!(store.engine().keep_tenures(&lives(&[1])).unwrap().len(), 1);
        let left = || match state(&store, "k") {
            State::InProgress(attempt) => attempt.lease_left().unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(left(), Duration::from_secs(5));
        store.engine().keep_lease(&key, token, 2000).unwrap();
        assert_eq!(left(), Duration::from_secs(2));
        // The length of the lease, which the next host goes by, is not the rest that is left of it.
        let progress = call(&store, "k", (1, 2), None, Call::Progress(token), None).unwrap();
        assert_eq!(progress.answer, Answer::Done);
        sim.kill();
        let again = sim.open().unwrap();
        assert_eq!(again.engine().keep_tenures(&lives(&[1])).unwrap().len(), 1);
        let State::InProgress(attempt) = state(&again, "k") else { panic!() };
        assert_eq!(attempt.lease_left(), Some(Duration::from_secs(5)));
        again.engine().keep_lease(&key, token, 2000).unwrap();
        sim.advance(Duration::from_secs(3));
        assert!(matches!(again.claim("k").unwrap(), Claim::Interrupted(_)));
    }

    /// The table of calls that are sent again, through the log: own records are found in memory, in the log and in tables.
    #[test]
    fn a_call_that_is_sent_again_is_answered_by_its_own_record() {
        for is_sealed in [false, true] {
            let sim = Sim::new(1);
            let store = sim.open().unwrap();
            let heard = end(&store);
            let reopened = |store: Store| {
                if is_sealed {
                    store.merge_index().unwrap();
                }
                sim.kill();
                drop(store);
                let store = sim.open().unwrap();
                store.engine().keep_tenures(&lives(&[1])).unwrap();
                store
            };
            let again = |store: &Store, request, of: Call| {
                call(store, "k", (1, request), Some(heard), of, None)
            };
            let token = granted(&store, "k", (1, 1), None);
            let store = reopened(store);
            let applied = again(&store, 1, Call::Claim(Wants::default())).unwrap();
            assert_eq!(applied.answer, Answer::Granted);
            assert_eq!(applied.claimed.unwrap().token, token);
            let done = call(&store, "k", (1, 2), None, Call::Complete(token), None).unwrap();
            assert_eq!(done.answer, Answer::Done);
            let store = reopened(store);
            assert_eq!(again(&store, 2, Call::Complete(token)).unwrap().answer, Answer::Done);
            // Another call of the same session isn't that one.
            let unknown = |told: Result<Applied>| {
                let error: Error = told.err().expect("an error");
                assert_eq!(error.kind(), ErrorKind::Indeterminate);
            };
            unknown(again(&store, 3, Call::Complete(token)));
            unknown(again(&store, 4, Call::Forget));
            assert!(matches!(state(&store, "k"), State::Completed(_)));
            let now = end(&store);
            let forgotten = call(&store, "k", (1, 5), Some(now), Call::Forget, None).unwrap();
            assert_eq!(forgotten.answer, Answer::Done, "nobody was on the key since");
            let store = reopened(store);
            assert_eq!(again(&store, 5, Call::Forget).unwrap().answer, Answer::Done);
            let mark = Call::Record { fingerprint: None, failure: false };
            unknown(again(&store, 6, mark));
            let marked = call(&store, "k", (1, 7), None, mark, None).unwrap();
            assert_eq!(marked.answer, Answer::Granted);
            let store = reopened(store);
            assert_eq!(again(&store, 7, mark).unwrap().answer, Answer::Granted, "it was the first");
            assert_eq!(again(&store, 8, mark).unwrap().answer, Answer::Completed);
        }
    }

    /// A claimant drops its question, and its word reaches the next host: by then another claimant is asked there, about the same
    /// attempt.
    #[test]
    fn a_question_of_the_host_before_is_not_mistaken_for_another() {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let _gone = granted(&store, "k", (9, 1), None);
        let ask = Call::Claim(Wants::default());
        let asked = |store: &Store, of| {
            let applied = call(store, "k", of, None, ask, None).unwrap();
            assert_eq!(applied.answer, Answer::Asked);
            applied.question
        };
        let opened = |store: Store| {
            sim.kill();
            drop(store);
            let store = sim.open().unwrap();
            store.engine().keep_tenures(&lives(&[1, 2])).unwrap();
            store
        };
        let store = opened(store);
        let heard = end(&store);
        let first = asked(&store, (1, 1));
        let store = opened(store);
        let second = asked(&store, (2, 1));
        let dropped = Call::DropQuestion(first);
        let _ = call(&store, "k", (1, 2), Some(heard), dropped, None).unwrap();
        let renewed = call(&store, "k", (2, 2), None, Call::RenewQuestion(second), None).unwrap();
        assert_eq!(renewed.answer, Answer::Done, "the second claimant is asked on");
    }

    /// Where the space doesn't suffice for the reserve, the claim is kept all the same.
    #[test]
    fn a_claim_is_kept_on_a_full_disk() {
        let sim = Sim::small(1);
        let store = sim.open().unwrap();
        let token = granted(&store, "k", (1, 1), None);
        assert!(store.close(Duration::ZERO).unwrap().is_empty());
        drop(store);
        sim.set_disk_bytes_max(sim.disk_bytes());
        let store = sim.open().unwrap();
        assert_eq!(store.engine().keep_tenures(&lives(&[1])).unwrap().len(), 1);
        assert!(matches!(state(&store, "k"), State::InProgress(_)));
        sim.set_disk_bytes_max(u64::MAX);
        let done = call(&store, "k", (1, 2), None, Call::Complete(token), None).unwrap();
        assert_eq!(done.answer, Answer::Done);
        let policy = Policy::new();
        assert!(matches!(store.with_policy(policy).claim("k").unwrap(), Claim::Completed(_)));
    }

    fn spares(sim: &Sim) -> Vec<std::path::PathBuf> {
        let files = sim.files().into_iter().map(|(path, _)| path);
        files.filter(|path| path.to_string_lossy().contains("spare")).collect()
    }

    /// Other programs take all the space that is free at any moment. The segments that the host before prepared for the endings of
    /// claims serve for the same claims after the handover.
    #[test]
    fn reserves_are_kept_over_a_clean_handover_on_a_full_disk() {
        let sim = Sim::small(1);
        let store = sim.open().unwrap();
        let keys: Vec<String> = (0..100).map(|n| format!("k{n}")).collect();
        let tokens: Vec<Token> =
            (0..).zip(&keys).map(|(n, key)| claim(&store, key, (1, n), 2000).unwrap()).collect();
        let prepared = spares(&sim);
        assert!(prepared.len() > 2, "{prepared:?}");
        sim.set_disk_bytes_max(sim.disk_bytes());
        assert!(store.close(Duration::ZERO).unwrap().is_empty());
        drop(store);
        assert_eq!(spares(&sim), prepared);
        sim.set_disk_bytes_max(sim.disk_bytes());
        let store = sim.open().unwrap();
        let calls = sim.calls_of(|| {
            assert_eq!(store.engine().keep_tenures(&lives(&[1])).unwrap().len(), keys.len());
        });
        assert_eq!(spares(&sim), prepared);
        let of_spares = |(_, path): &&(String, std::path::PathBuf)| prepared.contains(path);
        let removed: Vec<_> =
            calls.iter().filter(of_spares).filter(|(call, _)| call.contains("remove")).collect();
        assert!(removed.is_empty(), "{removed:?}");
        assert_eq!(store.engine().owed_bytes(), 0);
        let full = (0..).find_map(|n| store.mark(format!("mark {n}")).err()).unwrap();
        assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
        for ((n, key), token) in (200..).zip(&keys).zip(tokens) {
            let done = call(&store, key, (1, n), None, Call::Complete(token), None).unwrap();
            assert_eq!(done.answer, Answer::Done, "{key}");
        }
    }

    /// The store, opened by the next host after a kill, and on a disk that lacks space for what the claim of session 1 reserves.
    fn without_space_for_a_kept_claim(sim: &Sim) -> (Store, Token) {
        let store = sim.open().unwrap();
        let token = claim(&store, "large", (1, 1), 40_000).unwrap();
        sim.kill();
        drop(store);
        let store = sim.open().unwrap();
        sim.set_disk_bytes_max(sim.disk_bytes());
        assert_eq!(store.engine().keep_tenures(&lives(&[1])).unwrap().len(), 1);
        (store, token)
    }

    /// Session 1 lives, and has not joined yet. What others claim and mark would take the space that it is owed.
    #[test]
    fn new_claims_are_refused_until_a_kept_claim_has_its_reserve_or_has_gone() {
        for way in ["space", "completed", "interrupted"] {
            let sim = Sim::small(1);
            let (store, token) = without_space_for_a_kept_claim(&sim);
            assert_eq!(store.engine().owed_bytes(), 40_000);
            let full = |told: Result<()>| {
                assert_eq!(told.err().map(|e| e.kind()), Some(ErrorKind::StorageFull), "{way}");
            };
            full(claim(&store, "new", (2, 1), 1).map(drop));
            full(store.mark("new").map(drop));
            assert!(!store.health().is_writable());
            let done = match way {
                "space" => {
                    sim.set_disk_bytes_max(sim.disk_bytes() + 400_000);
                    None
                }
                "completed" => Some(Call::Complete(token)),
                _ => Some(Call::Interrupt(token)),
            };
            if let Some(done) = done {
                let done = call(&store, "large", (1, 2), None, done, None).unwrap();
                assert_eq!(done.answer, Answer::Done, "{way}");
                assert_eq!(store.engine().owed_bytes(), 0, "{way}");
                assert!(store.health().is_writable(), "{way}");
            }
            claim(&store, "new", (2, 2), 1).unwrap();
            assert_eq!(store.engine().owed_bytes(), 0, "{way}");
            assert!(store.mark("other").unwrap().is_first());
        }
    }
}
