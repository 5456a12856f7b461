//! Reads keys without changing them.

use std::sync::Arc;

use super::applied::Found;
use super::look::Known;
use super::{Engine, Stored};
use crate::index::recent::{Entry, Live, Place};
use crate::index::table::{hashes_of, prefix_of};
use crate::index::tables::Tables;
use crate::limits;
use crate::log::Segments;
use crate::log::open::lifecycle::Inside;
use crate::operation::{Durability, Key};
use crate::protocol::{self, Asker, KeyState, OpenAs, Phase, Presence};
use crate::sealed::EntryCursor;
use crate::sealed::listed::ListedTable;
use crate::sync::yield_now;
use crate::types::{KeyHash, Lsn, Spot, StoreMillis};
use crate::{Error, Result};

/// A key as it was found.
pub(crate) struct Seen {
    pub(crate) state: KeyState,
    pub(crate) presence: Presence,
    pub(crate) lease_until: Option<StoreMillis>,
    pub(crate) asker: Option<Arc<Asker>>,
    pub(crate) outcome: Option<Stored>,
    pub(crate) now: StoreMillis,
    pub(super) place: Place,
}

impl Seen {
    /// A key as another backend found it; `None`: it is absent.
    pub(crate) fn elsewhere(found: Found, now: StoreMillis) -> Option<Self> {
        let Found { state, presence, lease_until, asker, outcome, .. } = found;
        // What the other backend shows is durable there.
        let place = Place::new(Lsn::ZERO, Durability::Lazy, None);
        Some(Seen { state: state?, presence, lease_until, asker, outcome, now, place })
    }
}

/// A key's newest record, and who is on the key.
#[cfg(test)]
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NewestRecord {
    pub(crate) lsn: Lsn,
    /// `None`: the key was forgotten.
    pub(crate) state: Option<(Phase, crate::types::Token)>,
    pub(crate) origin: Option<crate::types::Origin>,
    pub(crate) presence: Presence,
    pub(crate) question: u64,
}

#[cfg(test)]
impl Engine {
    /// Returns a key's newest record, placed or written.
    pub(crate) fn newest_record(&self, key: &Key<'_>) -> Result<Option<NewestRecord>> {
        let _inside = self.enter()?;
        let hash = self.hash(key);
        let shard = self.shard(hash)?;
        let found = match self.look_in_memory(&shard, key, hash) {
            Some((found, _)) => Some(found),
            None => {
                let known = Known::of(&shard, hash, self.log.now());
                drop(shard);
                self.look_recorded(key, hash, &known)?
            }
        };
        let Some(found) = found else { return Ok(None) };
        Ok(found.place.map(|place| NewestRecord {
            lsn: place.lsn(),
            state: found.state.as_ref().map(|state| (state.phase, state.token)),
            origin: found.guest.as_ref().and_then(|guest| guest.origin),
            presence: found.presence,
            question: found.asker.as_ref().map_or(0, |asker| asker.question),
        }))
    }

    /// The number of the question asked last; a random one before the first.
    pub(crate) fn last_question(&self) -> u64 {
        self.questions.load(crate::sync::Ordering::Relaxed)
    }
}

impl Engine {
    /// Returns what is known about a key, without changing anything.
    pub(crate) fn look(&self, key: &Key<'_>, hash: KeyHash) -> Result<Option<Seen>> {
        let inside = self.enter()?;
        self.look_from(&inside, key, hash)
    }

    /// The same for another process, which outlives this one: what it is shown is written before.
    pub(crate) fn look_for_guest(&self, key: &Key<'_>, hash: KeyHash) -> Result<Option<Seen>> {
        let seen = self.look(key, hash)?;
        if let Some(seen) = &seen {
            self.write_for_guest(seen)?;
        }
        Ok(seen)
    }

    /// Writes what another process is about to be shown.
    pub(crate) fn write_for_guest(&self, seen: &Seen) -> Result<()> {
        let level = seen.place.level().max(Durability::Flush);
        self.log.commit_earlier(seen.place.lsn(), level)
    }

    /// The same, for a caller that is inside the gate.
    pub(crate) fn look_from(
        &self,
        _inside: &Inside<'_>,
        key: &Key<'_>,
        hash: KeyHash,
    ) -> Result<Option<Seen>> {
        if self.is_dropped(key)? {
            return self.settle_absence().map(|()| None);
        }
        match self.find(key, hash)? {
            Some(seen) => self.shown(seen).map(Some),
            None => self.settle_absence().map(|()| None),
        }
    }

    /// The same, not to be shown before a crash can't undo it.
    pub(super) fn find(&self, key: &Key<'_>, hash: KeyHash) -> Result<Option<Seen>> {
        loop {
            let shard = self.shard(hash)?;
            let now = self.log.now();
            let live = shard.candidates(hash).find_map(|entry| {
                let live = entry.live.as_ref()?;
                live.is_key(key.kind(), key.bytes()).then(|| seen_live(entry, live, now))
            });
            if live.is_some() {
                return Ok(live);
            }
            let known = Known::of(&shard, hash, now);
            drop(shard);
            let found = match self.look_recorded(key, hash, &known) {
                Ok(found) => found,
                Err(e) => {
                    self.look_failed(hash, &known, e).map_err(|e| self.log.explained(e))?;
                    continue;
                }
            };
            let Some((state, found)) =
                found.and_then(|mut found| Some((found.state.take()?, found)))
            else {
                return Ok(None);
            };
            // A memory alone has no place: it was durable before it became one.
            let place = found.place.unwrap_or(Place::new(Lsn::ZERO, Durability::Lazy, None));
            if protocol::is_expired(&state, now) && !protocol::is_remembered(&state, now) {
                return self.log.commit_earlier(place.lsn(), place.level()).map(|()| None);
            }
            let (presence, lease_until) =
                protocol::on_it(Some(&state), Presence::Nobody, None, now);
            let outcome = found.outcome;
            let seen = Seen { state, presence, lease_until, asker: None, outcome, now, place };
            return Ok(Some(seen));
        }
    }

    /// Waits until a crash can't undo what is to be shown, except for a claim in progress.
    fn shown(&self, seen: Seen) -> Result<Seen> {
        if protocol::phase_shown(&seen.state, seen.presence) != Phase::Claimed {
            self.log.commit_earlier(seen.place.lsn(), seen.place.level())?;
        }
        Ok(seen)
    }

    /// Returns the current places of keys, for a walk: of all, or of open ones, all of which are in memory.
    pub(crate) fn begin_walk(&self, _inside: &Inside<'_>, which: Which<'_>) -> Result<Walk> {
        if self.log.has_unsettled_tail() {
            // This moves keys, so it is done before the walk. If there is no space yet, the reads report it.
            let _ = self.begin_writing();
        }
        let undecided = match which {
            Which::All => Vec::new(),
            Which::Open(_) => self.decide_hints(),
        };
        loop {
            let tables = self.tables();
            let mut recent = Vec::new();
            let mut is_one_moment = true;
            for index in 0..limits::SHARDS {
                let Some(shard) = self.recent.nth_shard(index) else { break };
                is_one_moment &= Arc::ptr_eq(shard.tables(), &tables);
                let placed = |entry: &Entry| (entry.hash, entry.place);
                match which {
                    Which::All => recent.extend(shard.iter().map(placed)),
                    Which::Open(ways) => {
                        let is_one = |entry: &&Entry| {
                            entry.place.open().is_some_and(|open| ways.contains(&open))
                        };
                        recent.extend(shard.open_entries().filter(is_one).map(placed));
                    }
                }
            }
            // Taken after the entries: a newly listed segment may hold one of them. A segment is removed only after
            // the tables have changed.
            let segments = self.log.reading().segments();
            if is_one_moment && Arc::ptr_eq(&self.tables(), &tables) {
                recent.sort_unstable_by_key(|(hash, _)| (hash.high, hash.low));
                let cursors = match which {
                    Which::All => tables.cursors(),
                    Which::Open(_) => Vec::new(),
                };
                return Ok(Walk { recent, at: 0, cursors, tables, segments, undecided });
            }
            // Tables are being exchanged; the thread that does so may wait for this processor.
            self.may_stay()?;
            yield_now();
        }
    }

    /// Returns the next key of a walk, and its hash; `None` at the end. A key that changes meanwhile may come twice
    /// or not at all. An error replaces the key or piece that it is about; the walk continues after it.
    pub(crate) fn next_of_walk(
        &self,
        _inside: &Inside<'_>,
        walk: &mut Walk,
    ) -> Result<Option<(Key<'static>, KeyHash)>> {
        while let Some(&(hash, place)) = walk.recent.get(walk.at) {
            self.may_stay()?;
            walk.at += 1;
            match self.key_in(&walk.segments, place) {
                Ok(Some(key)) => return Ok(Some((key, hash))),
                Ok(None) => {}
                Err(_) if !self.is_at(hash, place)? => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(e) = walk.undecided.pop() {
            return Err(e);
        }
        self.next_of_tables(walk).map_err(|e| self.damaged_table(e))
    }

    fn next_of_tables(&self, walk: &mut Walk) -> Result<Option<(Key<'static>, KeyHash)>> {
        while let Some(cursor) = walk.cursors.last_mut() {
            self.may_stay()?;
            let Some(slot) = cursor.peek()? else {
                walk.cursors.pop();
                continue;
            };
            cursor.advance();
            if let Some(found) = self.key_of_slot(walk, slot.spot)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Returns the next keys of a walk whose hashes have the same prefix, in the order of their hashes, without those up to the hash
    /// `after`; `None` at the end. The order is the same for every walk, so that another can continue. An error replaces the key or
    /// piece that it is about.
    pub(crate) fn next_by_hash(
        &self,
        _inside: &Inside<'_>,
        walk: &mut Walk,
        after: Option<KeyHash>,
    ) -> Result<Option<HashGroup>> {
        self.may_stay()?;
        let mut failed = Vec::new();
        let mut least = walk.recent.get(walk.at).map(|(hash, _)| prefix_of(*hash));
        let floor = after.map_or(0, prefix_of);
        for cursor in &mut walk.cursors {
            let head = loop {
                match cursor.peek() {
                    // What a page before had.
                    Ok(Some(slot)) if slot.prefix() < floor => cursor.advance(),
                    Ok(slot) => break slot,
                    Err(e) => failed.push(self.damaged_table(e)),
                }
            };
            least = head.map(|slot| slot.prefix()).into_iter().chain(least).min();
        }
        if least.is_none() && failed.is_empty() {
            return Ok(None);
        }
        let prefix = least.unwrap_or(prefix_of(LAST_HASH));
        // An error without a hash comes where its keys would: a page that ends with it is continued after it.
        let (first, last) = hashes_of(prefix);
        let at = if least.is_some() { first } else { last };
        let mut group: HashGroup = failed.into_iter().map(|e| (at, Err(e))).collect();
        while let Some(&(hash, place)) = walk.recent.get(walk.at) {
            if prefix_of(hash) != prefix {
                break;
            }
            walk.at += 1;
            match self.key_in(&walk.segments, place) {
                Ok(Some(key)) => group.push((hash, Ok(key))),
                Ok(None) => {}
                Err(_) if !self.is_at(hash, place)? => {}
                Err(e) => group.push((hash, Err(e))),
            }
        }
        let mut spots = Vec::new();
        for cursor in &mut walk.cursors {
            while let Ok(Some(slot)) = cursor.peek() {
                if slot.prefix() != prefix {
                    break;
                }
                spots.push(slot.spot);
                cursor.advance();
            }
        }
        for spot in spots {
            match self.key_of_slot(walk, spot) {
                Ok(Some((key, hash))) => group.push((hash, Ok(key))),
                Ok(None) => {}
                Err(e) => group.push((last, Err(self.damaged_table(e)))),
            }
        }
        let rank = |hash: &KeyHash| (hash.high, hash.low);
        group.retain(|(hash, _)| after.as_ref().is_none_or(|after| rank(hash) > rank(after)));
        group.sort_by_key(|(hash, _)| rank(hash));
        Ok(Some(group))
    }

    /// This walk misses the table's keys, and reports that; the next one finds it mended, if it can be.
    fn damaged_table(&self, e: Error) -> Error {
        match self.mending().names_table(&e) {
            true => self.mending().heal(e.again()).err().unwrap_or(e),
            false => e,
        }
    }

    /// Returns the key of a slot; `None` if the walk finds the key at a newer place.
    fn key_of_slot(&self, walk: &Walk, spot: Spot) -> Result<Option<(Key<'static>, KeyHash)>> {
        let segments = &walk.segments;
        if spot.ordinal < walk.tables.head {
            return Ok(None);
        }
        let place = self.place_of(segments, spot)?;
        let Some(key) = self.key_in(segments, place)? else { return Ok(None) };
        let hash = self.hash(&key);
        let rank = |hash: &KeyHash| (hash.high, hash.low);
        let from = walk.recent.partition_point(|(other, _)| rank(other) < rank(&hash));
        let same = walk.recent.iter().skip(from);
        for (_, place) in same.take_while(|(other, _)| *other == hash) {
            if self.key_in(segments, *place).ok().flatten().as_ref() == Some(&key) {
                return Ok(None);
            }
        }
        for newer in walk.tables.find(hash)?.into_iter().take_while(|newer| *newer != spot) {
            let place = self.place_of(segments, newer)?;
            if self.key_in(segments, place)?.as_ref() == Some(&key) {
                return Ok(None);
            }
        }
        Ok(Some((key, hash)))
    }

    /// Returns the key of the record at a place, in the segments listed when the walk began, whose files stay open
    /// for it; `None` for a step, which isn't listed.
    fn key_in(&self, segments: &Segments, place: Place) -> Result<Option<Key<'static>>> {
        self.log.reading().read_in(
            segments,
            self.compaction().place_to_read(place.lsn()),
            |record| {
                let body = self.body_of(&record)?;
                let key = self.key_of(&body, record.lsn)?;
                Ok((!key.is_step()).then(|| key.into_owned()))
            },
        )
    }

    pub(super) fn is_at(&self, hash: KeyHash, place: Place) -> Result<bool> {
        Ok(self.shard(hash)?.candidates(hash).any(|entry| entry.place == place))
    }
}

/// The keys of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which<'w> {
    All,
    /// Those that are open in one of these ways: see `protocol::open_as`.
    Open(&'w [OpenAs]),
}

/// Keys of a walk, or errors in their place, whose hashes have the same prefix.
pub(crate) type HashGroup = Vec<(KeyHash, Result<Key<'static>>)>;

/// No hash is greater.
const LAST_HASH: KeyHash = KeyHash { high: u64::MAX, low: u64::MAX };

impl Walk {
    /// Leaves out most keys up to that hash, for a walk in the order of the hashes.
    pub(crate) fn skip_to(&mut self, after: Option<KeyHash>) {
        let Some(after) = after else { return };
        self.at = self.recent.partition_point(|(hash, _)| prefix_of(*hash) < prefix_of(after));
        if !self.cursors.is_empty() {
            self.cursors = self.tables.cursors_from(after);
        }
    }

    /// Errors about keys of which it is unknown whether they are open, which a walk in the order of the hashes doesn't return.
    pub(crate) fn take_undecided(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.undecided)
    }
}

/// A walk over keys: those in memory, then those of the tables.
pub(crate) struct Walk {
    /// By hash.
    recent: Vec<(KeyHash, Place)>,
    at: usize,
    tables: Arc<Tables>,
    segments: Segments,
    /// The newest table's last.
    cursors: Vec<EntryCursor<ListedTable>>,
    /// Errors about keys of which it is unknown whether they are open.
    undecided: Vec<Error>,
}

fn seen_live(entry: &Entry, live: &Live, now: StoreMillis) -> Seen {
    let mut state = live.state.clone();
    let (presence, lease_until) = protocol::shown(&mut state, live.presence, live.lease_until, now);
    let asker = live.asker.clone().filter(|_| presence == Presence::Asked);
    Seen { state, presence, lease_until, asker, outcome: None, now, place: entry.place }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Which;
    use crate::ErrorKind;
    use crate::index::tables::Tables;
    use crate::testing::Sim;

    /// A walk retries its beginning while the tables change, and once did so without checking for a waiting close.
    #[test]
    fn a_walk_that_can_not_begin_leaves_for_a_close() {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        assert!(store.mark("k").unwrap().is_first());
        let (tell, told) = std::sync::mpsc::channel();
        let walking = store.clone();
        std::thread::spawn(move || {
            let engine = walking.engine();
            let inside = engine.enter().unwrap();
            // As between the two steps of an exchange: the shards still have the old tables.
            let old = engine.tables();
            let new = Tables::new(old.list.clone(), old.covered, old.head, old.expired.clone());
            *engine.tables.lock() = new;
            tell.send(None).unwrap();
            let kind = engine.begin_walk(&inside, Which::All).err().map(|e| e.kind());
            drop(inside);
            tell.send(kind).unwrap();
        });
        let most = Duration::from_secs(30);
        assert_eq!(told.recv_timeout(most), Ok(None));
        store.engine().log.gate().begin_closing();
        assert_eq!(told.recv_timeout(most), Ok(Some(ErrorKind::Closed)), "it hangs");
    }
}
