//! Namespaces: which there are, and what becomes of the keys of those that were dropped.
//!
//! A namespace is an ordinary key, of a kind that no caller can make, with an ordinary record: the record's token is the
//! namespace's *id*, and each key in it carries that id. Forgetting the name, or replacing its record, is one record that
//! drops all keys at once: nothing finds an id any more that is not in the table, and compaction doesn't move its records.
//!
//! Promises: while a call on a key of a namespace is placed, the namespace isn't dropped; it isn't dropped as long as one
//! of its keys is claimed; an id that isn't in the table was dropped, for ever. Never: a guess, if the record of a
//! namespace can't be read; then no call on a key of any namespace is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Seen;
use super::applied::{Done, NOTHING, told};
use super::compose::state_of;
use super::{Engine, Writing};
use crate::index::recent::{Entry, Live, Place};
use crate::limits;
use crate::operation::{Durability, Fingerprint, Key, Lies};
use crate::protocol::{self, Call, Conditions, KeyState, OpenAs, Phase};
use crate::record::Body;
use crate::sync::{Mutex, Ordering, ReadGuard, RwLock, WriteGuard};
use crate::types::{KeyHash, Lsn, StoreMillis, Token};
use crate::{Error, ErrorKind, Result};

/// Bytes of a fingerprint in the list of former versions.
const VERSION_BYTES: usize = 16;

/// A namespace, by its record.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) id: Token,
    /// The version that it belongs to.
    pub(crate) version: Option<Fingerprint>,
    /// The versions that it belonged to before, the last one at the end.
    pub(crate) past: Arc<[Fingerprint]>,
    /// When its record was made.
    pub(crate) made: StoreMillis,
    placed: Lsn,
}

impl Named {
    /// `None`: the name is free.
    pub(crate) fn of(state: &KeyState, past: &[u8]) -> Option<Self> {
        let past = past.chunks_exact(VERSION_BYTES);
        let past = past.filter_map(|bytes| bytes.try_into().ok().map(Fingerprint::from_bytes));
        (state.phase == Phase::Completed).then(|| Named {
            id: state.token,
            version: state.fingerprint,
            past: past.collect(),
            made: state.time,
            placed: Lsn::ZERO,
        })
    }

    /// The same, as another backend shows it.
    pub(crate) fn of_seen(seen: &Seen) -> Option<Self> {
        let past = seen.outcome.as_ref().map_or(&[][..], |outcome| &outcome.bytes);
        Named::of(&seen.state, past)
    }
}

/// The namespaces of an open store.
pub(super) struct Spaces {
    table: RwLock<SpaceTable>,
    /// What the records of open keys say, as far as they were read.
    open: Mutex<BTreeMap<Lsn, OpenRecord>>,
}

/// What the record of an open key says.
struct OpenRecord {
    key: Key<'static>,
    /// When its lease passes, if it is detached.
    until: Option<StoreMillis>,
}

/// A namespace as it was read: the id of the one that it lies in, and its name.
type ReadSpace = (Option<Token>, Box<str>, Named);

/// The namespaces, by name and by id.
#[derive(Default)]
pub(super) struct SpaceTable {
    /// Whether their records were read since the open. They are read when a namespace is first used.
    are_read: bool,
    /// By the id of the namespace that they lie in, 0 for none.
    named: BTreeMap<u64, BTreeMap<Box<str>, Named>>,
    /// The id of the namespace that each lies in, 0 for none.
    parents: BTreeMap<u64, u64>,
}

impl Spaces {
    pub(super) fn new() -> Self {
        Spaces { table: RwLock::new(SpaceTable::default()), open: Mutex::new(BTreeMap::new()) }
    }

    pub(super) fn read(&self) -> ReadGuard<'_, SpaceTable> {
        self.table.read()
    }

    pub(super) fn write(&self) -> WriteGuard<'_, SpaceTable> {
        self.table.write()
    }
}

fn number(parent: Option<Token>) -> u64 {
    parent.map_or(0, |parent| parent.0)
}

impl SpaceTable {
    fn new(all: Vec<ReadSpace>) -> Self {
        let mut table = SpaceTable { are_read: true, ..SpaceTable::default() };
        for (parent, name, named) in all {
            table.insert(parent, name, named);
        }
        // What lay in a dropped one is dropped.
        loop {
            let is_gone = |id: &&u64| **id != 0 && !table.parents.contains_key(id);
            let Some(gone) = table.named.keys().find(is_gone).copied() else { break };
            for named in table.named.remove(&gone).into_iter().flat_map(BTreeMap::into_values) {
                table.parents.remove(&named.id.0);
            }
        }
        table
    }

    pub(super) fn are_read(&self) -> bool {
        self.are_read
    }

    pub(super) fn lives(&self, id: Token) -> bool {
        self.parents.contains_key(&id.0)
    }

    fn get(&self, parent: Option<Token>, name: &str) -> Option<&Named> {
        self.named.get(&number(parent))?.get(name)
    }

    fn insert(&mut self, parent: Option<Token>, name: Box<str>, named: Named) {
        self.parents.insert(named.id.0, number(parent));
        self.named.entry(number(parent)).or_default().insert(name, named);
    }

    /// Removes a namespace and all that lie in it. Returns their ids.
    fn remove(&mut self, parent: Option<Token>, name: &str) -> BTreeSet<u64> {
        let mut dropped = BTreeSet::new();
        let Some(siblings) = self.named.get_mut(&number(parent)) else { return dropped };
        let mut left: Vec<_> = siblings.remove(name).into_iter().collect();
        if siblings.is_empty() {
            self.named.remove(&number(parent));
        }
        while let Some(named) = left.pop() {
            self.parents.remove(&named.id.0);
            left.extend(self.named.remove(&named.id.0).into_iter().flat_map(BTreeMap::into_values));
            dropped.insert(named.id.0);
        }
        dropped
    }

    /// Whether a key is in that namespace, or in one that lies in it.
    fn is_within(&self, key: &Key<'_>, space: Token) -> bool {
        let Lies::In(id) = key.lies() else { return false };
        let mut at = id.0;
        while at != 0 && at != space.0 {
            at = self.parents.get(&at).copied().unwrap_or(0);
        }
        at == space.0
    }
}

fn key_of(live: &Live) -> Option<Key<'_>> {
    Key::from_stored(live.key_kind, &live.key)
}

impl Engine {
    /// Returns the namespace of that name.
    pub(crate) fn named(&self, parent: Option<Token>, name: &str) -> Result<Option<Named>> {
        let _inside = self.enter()?;
        self.read_spaces()?;
        Ok(self.spaces.read().get(parent, name).cloned())
    }

    /// The same without I/O and without waiting; `None`: the records of the namespaces have to be read.
    pub(crate) fn named_in_memory(
        &self,
        parent: Option<Token>,
        name: &str,
    ) -> Result<Option<Option<Named>>> {
        let _inside = self.enter()?;
        let table = self.spaces.read();
        Ok(table.are_read().then(|| table.get(parent, name).cloned()))
    }

    /// Returns the names of the namespaces that lie in that one, or in none, once a crash can't undo them.
    pub(crate) fn names_in(&self, parent: Option<Token>) -> Result<Vec<String>> {
        let _inside = self.enter()?;
        self.read_spaces()?;
        self.settle_absence()?;
        let table = self.spaces.read();
        let all = table.named.get(&number(parent)).into_iter().flatten();
        let names = all.clone().map(|(name, _)| String::from(&**name)).collect();
        let newest = all.map(|(_, named)| named.placed).max();
        drop(table);
        if let Some(lsn) = newest {
            self.log.commit_earlier(lsn, Durability::Sync)?;
        }
        Ok(names)
    }

    /// Reads the records of the namespaces, unless that was done since the open: their number of reads.
    pub(super) fn read_spaces(&self) -> Result<()> {
        if self.spaces.read().are_read() {
            return Ok(());
        }
        match self.decide_hints().pop() {
            Some(e) => Err(e),
            None => self.read_decided_spaces(),
        }
    }

    /// The same for background work, which mends nothing: whether the namespaces are known.
    fn knows_spaces(&self) -> bool {
        let is_space = |(_, place): &(KeyHash, Place)| place.open() == Some(OpenAs::Space);
        self.spaces.read().are_read()
            || !self.hints.lock().iter().any(is_space) && self.read_decided_spaces().is_ok()
    }

    fn read_decided_spaces(&self) -> Result<()> {
        while !self.spaces.read().are_read() {
            let is_space = |entry: &&Entry| entry.place.open() == Some(OpenAs::Space);
            let mut all = Vec::new();
            let mut has_moved = false;
            for (hash, place) in self.open_places(is_space) {
                match self.read_space(place) {
                    Ok(space) => all.extend(space),
                    Err(e) if self.is_at(hash, place)? => return Err(e),
                    Err(_) => has_moved = true,
                }
            }
            if has_moved {
                self.may_stay()?;
                continue;
            }
            let mut table = self.spaces.write();
            // No namespace is made or dropped before the table is there.
            if !table.are_read {
                *table = SpaceTable::new(all);
            }
        }
        Ok(())
    }

    /// Reads one; `None`: it was dropped.
    fn read_space(&self, place: Place) -> Result<Option<ReadSpace>> {
        let lsn = place.lsn();
        self.log.reading().read(self.compaction().place_to_read(lsn), |record| {
            let body = self.body_of(&record)?;
            let state = state_of(&record, &body);
            let named = state.and_then(|state| Named::of(&state, body.result));
            let key = self.key_of(&body, record.lsn)?;
            let (Lies::Names(parent), Some(name)) = (key.lies(), key.space_name()) else {
                let what = format_args!("the key at lsn {lsn} names no namespace");
                return Err(Error::corrupt(self.log.dir(), 0, what));
            };
            Ok(named.map(|named| (parent, Box::from(name), Named { placed: lsn, ..named })))
        })
    }

    /// The places of the open keys in memory that are chosen.
    fn open_places(&self, chosen: impl Fn(&&Entry) -> bool) -> Vec<(KeyHash, Place)> {
        let mut places = Vec::new();
        for index in 0..limits::SHARDS {
            let Some(shard) = self.recent.nth_shard(index) else { break };
            let open = shard.open_entries().filter(&chosen);
            places.extend(open.map(|entry| (entry.hash, entry.place)));
        }
        places
    }

    /// Reads the records of the open keys that have no owner or claimant, except those that were read before.
    pub(super) fn read_open_keys(&self) -> Result<()> {
        let places = self
            .open_places(|entry| entry.live.is_none() && entry.place.open() != Some(OpenAs::Space));
        let mut known = std::mem::take(&mut *self.spaces.open.lock());
        let mut seen = BTreeMap::new();
        for (hash, place) in places {
            let lsn = place.lsn();
            if let Some(read) = known.remove(&lsn) {
                seen.insert(lsn, read);
                continue;
            }
            let read = self.log.reading().read(self.compaction().place_to_read(lsn), |record| {
                let body = self.body_of(&record)?;
                let until = body.rare.as_deref().and_then(|rare| rare.lease).map(|lease| lease.0);
                let key = self.key_of(&body, record.lsn)?.into_owned();
                Ok(OpenRecord { key, until })
            });
            match read {
                Ok(read) => drop(seen.insert(lsn, read)),
                Err(e) if self.is_at(hash, place)? => return Err(e),
                // It moved, or is no longer open.
                Err(_) => {}
            }
        }
        self.spaces.open.lock().extend(seen);
        Ok(())
    }

    /// Whether a key lies in a namespace that was dropped.
    #[inline]
    pub(super) fn is_dropped(&self, key: &Key<'_>) -> Result<bool> {
        match key.lies() {
            Lies::InRoot | Lies::Names(None) => Ok(false),
            Lies::In(id) | Lies::Names(Some(id)) => {
                self.read_spaces()?;
                Ok(!self.spaces.read().lives(id))
            }
        }
    }

    /// The same for background work: `false` if that is not known.
    #[inline]
    pub(super) fn is_known_as_dropped(&self, key: &Key<'_>) -> bool {
        match key.lies() {
            Lies::InRoot | Lies::Names(None) => false,
            Lies::In(id) | Lies::Names(Some(id)) => {
                self.knows_spaces() && !self.spaces.read().lives(id)
            }
        }
    }

    /// The same for a record.
    pub(super) fn lies_in_dropped(&self, body: &Body<'_>) -> bool {
        let key = Key::from_stored(body.key_kind, body.key);
        key.is_some_and(|key| self.is_known_as_dropped(&key))
    }

    /// The records of open keys of namespaces that were dropped. They stay in memory until compaction removes their segments,
    /// and need nobody.
    pub(super) fn dropped_open_keys(&self) -> BTreeSet<Lsn> {
        let is_space = |entry: &&Entry| entry.place.open() == Some(OpenAs::Space);
        // Every key is older than the record that dropped its namespace: a store without such a record reads nothing.
        let spaces = self.open_places(is_space);
        let Some(newest) = spaces.iter().map(|(_, place)| place.lsn()).max() else {
            return BTreeSet::new();
        };
        let may_be = |entry: &&Entry| entry.live.is_none() && entry.place.lsn() < newest;
        let are_none = self.open_places(|entry| may_be(entry) && !is_space(entry)).is_empty();
        if are_none || !self.knows_spaces() || self.read_open_keys().is_err() {
            // They are counted: a walk reports what can't be read.
            return BTreeSet::new();
        }
        let table = self.spaces.read();
        let known = self.spaces.open.lock();
        let is_gone =
            |read: &OpenRecord| matches!(read.key.lies(), Lies::In(id) if !table.lives(id));
        known.iter().filter(|(_, read)| is_gone(read)).map(|(lsn, _)| *lsn).collect()
    }

    /// The answer to a call on a key of a dropped namespace: that to an absent key. But nothing is granted there.
    pub(super) fn answer_in_dropped(&self, key: &Key<'_>, call: Call) -> Result<Done> {
        let now = self.log.now();
        match protocol::decide_unchanged(&NOTHING.current(), call, &Conditions::default(), now) {
            Some(answer) => Ok(told(None, answer, now)),
            None => {
                let message = format!(
                    "the namespace of {key} was dropped while the call was made: make the call again"
                );
                Err(Error::new(ErrorKind::Superseded, message))
            }
        }
    }

    /// Returns an error if a call that drops a namespace has to wait for the owner of a key in it; `false` if records have to
    /// be read to tell.
    pub(super) fn may_change_space(
        &self,
        table: &SpaceTable,
        key: &Key<'_>,
        call: Call,
    ) -> Result<bool> {
        let drops = matches!(call, Call::Forget | Call::ForgetSeen(_) | Call::Replace(_));
        let (Lies::Names(parent), Some(name), true) = (key.lies(), key.space_name(), drops) else {
            return Ok(true);
        };
        let Some(space) = table.get(parent, name).map(|named| named.id) else { return Ok(true) };
        let known = self.spaces.open.lock();
        let now = self.log.now();
        let busy = |key: &Key<'_>| {
            let message =
                format!("{key} in the namespace {name:?} is claimed right now: wait for its owner");
            Error::new(ErrorKind::InProgress, message)
        };
        for index in 0..limits::SHARDS {
            let Some(shard) = self.recent.nth_shard(index) else { break };
            for entry in shard.open_entries() {
                let Some(live) = entry.live.as_deref() else {
                    if entry.place.open() != Some(OpenAs::Detached) {
                        continue;
                    }
                    match known.get(&entry.place.lsn()) {
                        None => return Ok(false),
                        Some(OpenRecord { key, until }) => {
                            let runs = until.is_some_and(|until| until > now);
                            if runs && table.is_within(key, space) {
                                return Err(busy(key));
                            }
                        }
                    }
                    continue;
                };
                let Some(key) = key_of(live) else { continue };
                let mut state = live.state.clone();
                let (presence, until) = (live.presence, live.lease_until);
                let (presence, _) = protocol::shown(&mut state, presence, until, now);
                let is_claimed = protocol::phase_shown(&state, presence) == Phase::Claimed;
                if is_claimed && table.is_within(&key, space) {
                    return Err(busy(&key));
                }
            }
        }
        Ok(true)
    }

    /// Brings the table up to date after a call on the name of a namespace, under the lock under which the call was placed.
    /// Returns whether it dropped one: then callers that wait for a key are to be woken, once that lock is released.
    pub(super) fn space_changed(
        &self,
        table: &mut SpaceTable,
        key: &Key<'_>,
        call: Call,
        writing: &Writing<'_>,
        done: &Done,
    ) -> bool {
        let (Lies::Names(parent), Some(name), Some(placed), Some(ahead)) =
            (key.lies(), key.space_name(), done.placed(), self.log.ahead())
        else {
            return false;
        };
        let dropped = table.remove(parent, name);
        if matches!(call, Call::Record { .. } | Call::Replace(_)) {
            let past = writing.outcome.map_or(&[][..], |outcome| outcome.bytes);
            let past = past.chunks_exact(VERSION_BYTES);
            let past = past.filter_map(|bytes| bytes.try_into().ok().map(Fingerprint::from_bytes));
            let named = Named {
                id: placed.token(ahead),
                version: writing.conditions.fingerprint,
                past: past.collect(),
                made: done.applied().now,
                placed,
            };
            table.insert(parent, Box::from(name), named);
        }
        // What a caller finds no longer there must not come back.
        self.forgotten.fetch_max(placed.get(), Ordering::SeqCst);
        if !dropped.is_empty() {
            self.leave_dropped(&dropped);
        }
        !dropped.is_empty()
    }

    /// Takes owners whose lease has passed, and claimants that were asked, off the keys of dropped namespaces.
    fn leave_dropped(&self, dropped: &BTreeSet<u64>) {
        for index in 0..limits::SHARDS {
            let Some(mut shard) = self.recent.nth_shard(index) else { break };
            let mut gone = Vec::new();
            for entry in shard.open_entries() {
                let key = entry.live.as_deref().and_then(key_of);
                if let Some(key) = key {
                    if matches!(key.lies(), Lies::In(id) if dropped.contains(&id.0)) {
                        gone.push((entry.hash, entry.place.lsn()));
                    }
                }
            }
            for (hash, lsn) in gone {
                if let Some(live) = shard.let_go(hash, lsn) {
                    self.left(&live);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Room, Span};
    use crate::record::{Draft, Ending};
    use crate::testing::Sim;

    /// A name too short for the id before it was taken for a namespace that had been dropped: a new one was made in its place.
    #[test]
    fn a_name_that_is_no_key_is_damage() {
        for (key_kind, key) in [(8, &b"\x01\0\0"[..]), (7, b"\x01\0\0\0\0\0\0\0"), (1, b"k")] {
            let store = Sim::small(1).open().unwrap();
            assert!(store.mark("k").unwrap().is_first());
            let engine = store.engine();
            let body = Body { key_kind, key, ..Body::default() };
            let span = Span { until: None, ends: None };
            let draft = Draft::end(Ending::Completed, &body);
            let placed = engine.log.place_for(draft, Room::Free, span);
            let Ok(placed) = placed else { panic!("no space") };
            let place = Place::new(placed.lsn, Durability::Sync, Some(OpenAs::Space));
            let hash = KeyHash { high: 7, low: 7 };
            engine.shard(hash).unwrap().insert(Entry { hash, place, live: None });
            store.sync().unwrap();
            let kind = |e: Error| e.kind();
            let space = store.namespace("acme");
            assert_eq!(space.mark("k").map_err(kind).unwrap_err(), ErrorKind::Corrupt);
            assert_eq!(space.get("k").map_err(kind).unwrap_err(), ErrorKind::Corrupt);
            assert_eq!(store.namespaces().map_err(kind).unwrap_err(), ErrorKind::Corrupt);
            assert_eq!(
                store.namespaces_async().wait().map_err(kind).unwrap_err(),
                ErrorKind::Corrupt
            );
            assert!(!store.mark("k").unwrap().is_first());
        }
    }
}
