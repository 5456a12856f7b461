//! Finds the open keys: in flight, interrupted, held, detached or delayed.
//!
//! Promises: memory has every open key, so that they are counted and listed in time proportional to their number, without
//! reading a table; only an open reads the tables' lists of them. An item of a list is a hint: it goes to memory only if its
//! record is its key's newest. Most hints are decided by hashes alone; the others are *undecided* until the records
//! of the key are read, at the latest before open keys are counted or listed. Never: changes a key's state.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Engine;
use super::compact::RecordStanding;
use super::look::{Known, is_as_read};
use crate::index::recent::{Entry, Live, Place};
use crate::index::table::Table;
use crate::limits;
use crate::log::open::lifecycle::Inside;
use crate::operation::{Durability, Key};
use crate::protocol::{self, OpenAs, Phase, Presence};
use crate::types::{KeyHash, Lsn, Spot, StoreMillis};
use crate::{Error, Result};

/// The keys in memory, counted.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct KeyCounts {
    /// Keys that no table has.
    pub(crate) unsealed: u64,
    /// Keys that tables have, and that have an owner or a claimant.
    pub(crate) sealed_live: u64,
    /// Since when the oldest claim is in flight, or the oldest question open: store time, and the displayed time.
    pub(crate) oldest_claim: Option<(StoreMillis, i64)>,
    pub(crate) open: OpenCounts,
}

/// The open keys, counted by what they are shown as.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct OpenCounts {
    /// Including those that are detached, and those about which a claimant decides.
    pub(crate) in_progress: u64,
    /// Those about which a claimant decides.
    pub(crate) asked: u64,
    pub(crate) interrupted: u64,
    pub(crate) held: u64,
    pub(crate) detached: u64,
    pub(crate) delayed: u64,
}

/// A record with a time at which its key's state ends by itself.
type Timed = (Lsn, OpenAs);

impl OpenCounts {
    /// Counts an entry, or adds it to `timed` if its record says until when it counts.
    fn add(&mut self, entry: &Entry, now: StoreMillis, timed: &mut Vec<Timed>) {
        let live = entry.live.as_deref();
        match entry.place.open() {
            None | Some(OpenAs::Space) => {}
            Some(OpenAs::Held) => self.held += 1,
            Some(open @ (OpenAs::Detached | OpenAs::Delayed)) if live.is_none() => {
                timed.push((entry.place.lsn(), open));
            }
            // A claimant never waits on an aborted key.
            Some(OpenAs::Delayed) => {}
            Some(OpenAs::Attempt | OpenAs::Detached) => {
                let (is_owned, is_asked) = live.map_or((false, false), |live| {
                    let mut state = live.state.clone();
                    let (presence, until) = (live.presence, live.lease_until);
                    let (presence, _) = protocol::shown(&mut state, presence, until, now);
                    let is_owned = protocol::phase_shown(&state, presence) == Phase::Claimed;
                    (is_owned, protocol::is_being_decided(&state, presence))
                });
                self.in_progress += u64::from(is_owned || is_asked);
                self.asked += u64::from(is_asked);
                self.interrupted += u64::from(!is_owned && !is_asked);
            }
        }
    }

    fn add_timed(&mut self, open: OpenAs, is_over: bool) {
        match open {
            OpenAs::Detached if is_over => self.interrupted += 1,
            OpenAs::Detached => {
                self.detached += 1;
                self.in_progress += 1;
            }
            OpenAs::Delayed => self.delayed += u64::from(!is_over),
            // No time passes that would change what these are counted as.
            OpenAs::Attempt | OpenAs::Held | OpenAs::Space => {
                debug_assert!(false, "{open:?} is not timed");
            }
        }
    }
}

impl KeyCounts {
    /// `timed`: as for the open keys; `None`: it is a key of a dropped namespace, which needs nobody.
    fn add(
        &mut self,
        entry: &Entry,
        covered: Lsn,
        now: StoreMillis,
        timed: Option<&mut Vec<Timed>>,
    ) {
        let live = entry.live.as_deref();
        let is_sealed = entry.place.lsn() < covered;
        self.unsealed += u64::from(!is_sealed);
        self.sealed_live += u64::from(is_sealed && live.is_some());
        if let Some(timed) = timed {
            self.open.add(entry, now, timed);
        }
        if let Some(since) = live.and_then(|live| since(live, now)) {
            self.oldest_claim = Some(self.oldest_claim.map_or(since, |oldest| oldest.min(since)));
        }
    }
}

/// Since when an owner, or a claimant that was asked, is on a key. Others see that claimant, and not the attempt that is over.
fn since(live: &Live, now: StoreMillis) -> Option<(StoreMillis, i64)> {
    let (state, until) = (Some(&live.state), live.lease_until);
    match protocol::on_it(state, live.presence, until, now).0 {
        Presence::Owner => Some((live.state.since, live.state.wall_offset)),
        Presence::Asked => live.asker.as_ref().map(|asker| (asker.since, live.state.wall_offset)),
        Presence::Nobody | Presence::Detached => None,
    }
}

impl Engine {
    /// Brings the open keys that the tables list into memory. Called by an open, once it has all tables.
    pub(super) fn load_open_keys(&self) -> Result<()> {
        let (tables, segments) = (self.tables(), self.log.reading().segments());
        for (index, table) in tables.list.iter().enumerate() {
            let (newer, _) = tables.list.split_at(index);
            let mut hints = table.all_open_keys()?;
            // The others have moved or ended before their segment was removed.
            hints.retain(|hint| hint.spot.ordinal >= tables.head);
            for hint in hints {
                let lsn = self.place_of(&segments, hint.spot)?.lsn();
                let place = Place::new(lsn, Durability::Sync, Some(hint.open));
                let mut shard = self.shard(hint.hash)?;
                // A newer record of the key would have the same hash.
                let is_newest = shard.candidates(hint.hash).next().is_none()
                    && newer.iter().all(|newer| newest_under(newer, hint.hash) == Some(None))
                    && newest_under(table, hint.hash) == Some(Some(hint.spot));
                match is_newest {
                    true => shard.insert(Entry { hash: hint.hash, place, live: None }),
                    false => self.hints.lock().push((hint.hash, place)),
                }
            }
        }
        Ok(())
    }

    /// Returns the undecided hints to records in `from..to`.
    pub(super) fn hints_in(&self, from: Lsn, to: Lsn) -> Vec<(KeyHash, Place)> {
        let mut hints = self.hints.lock().clone();
        let from = from.max(self.log.head_base());
        hints.retain(|(_, place)| (from..to).contains(&place.lsn()));
        hints
    }

    /// Whether the record at `lsn` is known to leave a key with that hash open, or may be.
    pub(super) fn lists_as_open(&self, hash: KeyHash, lsn: Lsn, open: OpenAs) -> Result<bool> {
        let is_it = |place: Place| place.lsn() == lsn && place.open() == Some(open);
        // The hints first: they go to memory.
        let is_hint = self.hints.lock().iter().any(|hint| hint.0 == hash && is_it(hint.1));
        Ok(is_hint || self.shard(hash)?.candidates(hash).any(|entry| is_it(entry.place)))
    }

    /// Decides the undecided hints. Returns an error for each that stays undecided, because a record can't be read.
    pub(crate) fn decide_hints(&self) -> Vec<Error> {
        let hints = self.hints.lock().clone();
        let mut failed = Vec::new();
        for hint in hints {
            match self.decide_hint(hint) {
                Ok(()) => self.hints.lock().retain(|other| *other != hint),
                Err(e) => failed.push(e),
            }
        }
        failed
    }

    /// Brings the key of a hint into memory, if the record is its newest.
    fn decide_hint(&self, (hash, place): (KeyHash, Place)) -> Result<()> {
        loop {
            self.may_stay()?;
            if place.lsn() < self.log.head_base() {
                // It moved, or had ended, before its segment was removed.
                return Ok(());
            }
            let key = self.log.reading().read(place.lsn(), |record| {
                let body = self.body_of(&record)?;
                self.key_of(&body, place.lsn()).map(Key::into_owned)
            });
            let key = match key {
                Err(_) if place.lsn() < self.log.head_base() => return Ok(()),
                key => key?,
            };
            let seen = {
                let shard = self.shard(hash)?;
                let is_key = |entry: &Entry| {
                    entry.live.as_ref().is_some_and(|live| live.is_key(key.kind(), key.bytes()))
                };
                let is_there = |entry: &Entry| entry.place.lsn() == place.lsn() || is_key(entry);
                if shard.candidates(hash).any(is_there) {
                    return Ok(());
                }
                Known::of(&shard, hash, self.log.now())
            };
            let standing = match self.compaction().standing(&key, hash, place.lsn(), &seen) {
                Err(e) => {
                    self.look_failed(hash, &seen, e)?;
                    continue;
                }
                standing => standing?,
            };
            let mut shard = self.shard(hash)?;
            if !is_as_read(&shard, &key, hash, &seen) {
                continue;
            }
            return match standing {
                RecordStanding::Superseded => Ok(()),
                RecordStanding::Newest => {
                    shard.insert(Entry { hash, place, live: None });
                    Ok(())
                }
                RecordStanding::Unknown => {
                    let what =
                        format_args!("the index doesn't know the record at lsn {}", place.lsn());
                    Err(Error::corrupt(&self.index_dir(), 0, what))
                }
            };
        }
    }

    /// Counts the keys in memory, among which are all open keys.
    pub(crate) fn count_keys(&self, inside: Option<&Inside<'_>>) -> KeyCounts {
        let (mut counts, mut timed) = (KeyCounts::default(), Vec::new());
        let dropped = inside.map(|_inside| self.dropped_open_keys()).unwrap_or_default();
        let now = self.log.now();
        for index in 0..limits::SHARDS {
            let Some(shard) = self.recent.nth_shard(index) else { break };
            let covered = shard.tables().covered;
            for entry in shard.iter() {
                let is_open = !dropped.contains(&entry.place.lsn());
                counts.add(entry, covered, now, is_open.then_some(&mut timed));
            }
        }
        if inside.is_some() {
            self.count_timed(&mut counts.open, &timed, now);
        }
        counts
    }

    /// Counts the open keys alone, in time proportional to their number.
    pub(super) fn count_open_keys(&self) -> OpenCounts {
        let (mut counts, mut timed) = (OpenCounts::default(), Vec::new());
        let dropped = self.dropped_open_keys();
        let now = self.log.now();
        for index in 0..limits::SHARDS {
            let Some(shard) = self.recent.nth_shard(index) else { break };
            let open = shard.open_entries().filter(|entry| !dropped.contains(&entry.place.lsn()));
            open.for_each(|entry| counts.add(entry, now, &mut timed));
        }
        self.count_timed(&mut counts, &timed, now);
        counts
    }

    /// Counts keys whose records say until when they count. Each such record is read once. A key whose record can't be
    /// read is not counted.
    fn count_timed(&self, counts: &mut OpenCounts, timed: &[Timed], now: StoreMillis) {
        let known = std::mem::take(&mut *self.timed.lock());
        let mut seen = BTreeMap::new();
        for (lsn, open) in timed {
            let until = known.get(lsn).copied().or_else(|| self.until_of(*lsn).ok().flatten());
            if let Some(until) = until {
                seen.insert(*lsn, until);
                counts.add_timed(*open, until <= now);
            }
        }
        // What was known of other records is dropped with them.
        *self.timed.lock() = seen;
    }

    /// Returns when the lease or the delay of the record at `lsn` passes.
    fn until_of(&self, lsn: Lsn) -> Result<Option<StoreMillis>> {
        self.log.reading().read(self.compaction().place_to_read(lsn), |record| {
            let body = self.body_of(&record)?;
            let rare = body.rare.as_deref();
            Ok(rare.and_then(|rare| rare.lease.map(|lease| lease.0).or(rare.retry_at)))
        })
    }
}

/// Returns the newest record of a table under a hash; `None` if that can't be read.
fn newest_under(table: &Arc<Table>, hash: KeyHash) -> Option<Option<Spot>> {
    let mut found = Vec::new();
    table.find(hash, &mut found).ok().map(|()| found.first().copied())
}

#[cfg(test)]
mod tests {
    use crate::admin::StateKind;
    use crate::engine::checkpoint::{TableChange, as_listed};
    use crate::engine::merge::OpenFrom;
    use crate::testing::Sim;
    use crate::{Claim, Durability, Policy, Store};

    const OPEN: [StateKind; 3] = [StateKind::InProgress, StateKind::Interrupted, StateKind::Held];

    fn listed(store: &Store) -> Vec<String> {
        let entries = store.iter().in_states(&OPEN).map(|entry| entry.unwrap().0.to_string());
        entries.collect()
    }

    /// A merge left out a key that had ended meanwhile. The ending was not durable, power was lost, and the key was open
    /// again, but in no list.
    #[test]
    fn a_key_is_left_out_of_a_list_only_once_its_ending_is_durable() {
        let sim = Sim::new(1);
        let store = sim.open().unwrap();
        let mark = |n: u64| assert!(store.mark(("filler", n)).unwrap().is_first());
        drop(store.claim("lost").unwrap());
        (0..20).for_each(mark);
        store.merge_index().unwrap();
        mark(20);
        let engine = store.engine();
        engine.checkpoint(&mut engine.work.lock()).unwrap();
        let tables = engine.tables();
        assert_eq!(tables.list.len(), 2);
        assert_eq!(listed(&store), ["lost"]);
        let flush = Policy::new().claim_durability(Durability::Flush).durability(Durability::Flush);
        let Claim::Interrupted(lost) = store.with_policy(flush).claim("lost").unwrap() else {
            panic!()
        };
        lost.take_over().unwrap().complete("late").unwrap();
        assert_eq!(listed(&store), Vec::<String>::new());
        let merging = engine.merges().begin_merge_of(&tables.list).unwrap().unwrap();
        let merged = engine.merges().merge_to_end(merging, OpenFrom::Memory).unwrap();
        let change = TableChange { replaced: as_listed(&tables.list), by: vec![merged] };
        engine.switch_index(&change).unwrap();
        sim.power_loss();
        let store = sim.open().unwrap();
        let open = store.iter().filter_map(|entry| {
            let (key, state) = entry.unwrap();
            matches!(state, crate::State::Interrupted(_)).then(|| key.to_string())
        });
        assert_eq!(open.collect::<Vec<_>>(), listed(&store));
    }
}
