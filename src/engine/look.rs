//! Finds what is recorded of a key: in memory under the shard's lock, and in the log without it.

use std::sync::Arc;

use super::Engine;
use super::applied::{Found, Stored};
use super::compose::state_of;
use crate::index::recent::{Entry, Live, OfGuest, Place, Shard};
use crate::index::tables::Tables;
use crate::log::{Backing, Segments};
use crate::operation::{Durability, Key};
use crate::protocol::{self, KeyState, Phase};
use crate::record::{Body, Record};
use crate::types::{KeyHash, Spot, StoreMillis};
use crate::value::ValueBytes;
use crate::{Error, Result};

/// The places of a hash's records, as read under the shard lock, to be read without it.
pub(super) struct Known {
    /// In memory, without a claim or question.
    pub(super) places: Vec<Place>,
    pub(super) tables: Arc<Tables>,
    /// Records read from it are judged by this time: by a later one a record may have expired, and the key may be
    /// claimed again.
    pub(super) now: StoreMillis,
}

impl Known {
    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    pub(super) fn of(shard: &Shard, hash: KeyHash, now: StoreMillis) -> Self {
        Known { places: Known::places_of(shard, hash), tables: Arc::clone(shard.tables()), now }
    }

    /// What has to be read before it is known what became of a key that memory doesn't answer for. `None`: nothing, it is absent.
    #[inline]
    pub(super) fn to_read(shard: &Shard, hash: KeyHash, now: StoreMillis) -> Option<Self> {
        let places = Known::places_of(shard, hash);
        let is_nothing = places.is_empty() && shard.tables().is_empty();
        (!is_nothing).then(|| Known { places, tables: Arc::clone(shard.tables()), now })
    }

    pub(super) fn places_of(shard: &Shard, hash: KeyHash) -> Vec<Place> {
        let entries = shard.candidates(hash).filter(|entry| entry.live.is_none());
        entries.map(|entry| entry.place).collect()
    }
}

/// What a record says of the process whose call made it.
#[inline]
pub(super) fn guest_of(body: &Body<'_>) -> Option<Box<OfGuest>> {
    let rare = body.rare.as_deref()?;
    let origin = Some(rare.origin?);
    let lease_millis = rare.tenure.and_then(|tenure| tenure.lease_millis);
    Some(Box::new(OfGuest { origin, lease_millis, attached: None }))
}

/// Whether what was read outside the lock is still complete for the key. A miss in the tables holds only for those
/// tables: entries that a checkpoint took out of memory meanwhile are in others.
pub(super) fn is_as_read(shard: &Shard, key: &Key<'_>, hash: KeyHash, known: &Known) -> bool {
    let is_live = |entry: &Entry| {
        entry.live.as_ref().is_some_and(|live| live.is_key(key.kind(), key.bytes()))
    };
    let entries = shard.candidates(hash).filter(|entry| entry.live.is_none());
    Arc::ptr_eq(shard.tables(), &known.tables)
        && entries.map(|entry| &entry.place).eq(&known.places)
        && !shard.candidates(hash).any(is_live)
}

impl Engine {
    /// Handles a failed read. The record may have moved meanwhile; then it isn't damage, and the key is looked up
    /// again. The same if the index could be mended, or an unsettled tail settled. Otherwise returns the error.
    pub(super) fn look_failed(&self, hash: KeyHash, known: &Known, error: Error) -> Result<()> {
        if !self.is_unchanged(hash, known)? {
            return Ok(());
        }
        if known.tables.list.iter().any(|table| Some(table.path()) == error.path()) {
            return self.mending().heal(error);
        }
        self.settle_tail(error)
    }

    pub(super) fn is_unchanged(&self, hash: KeyHash, known: &Known) -> Result<bool> {
        let shard = self.shard(hash)?;
        let is_there = |place: &Place| shard.candidates(hash).any(|e| e.place == *place);
        Ok(known.places.iter().all(is_there) && Arc::ptr_eq(shard.tables(), &known.tables))
    }

    /// Returns the key's state if its entry has a claim or question, and the time by which that was judged: the
    /// answer must use the same time, or a claim in progress is shown with nothing left of its lease.
    // Every call looks here first.
    #[inline(always)]
    pub(super) fn look_in_memory(
        &self,
        shard: &Shard,
        key: &Key<'_>,
        hash: KeyHash,
    ) -> Option<(Box<Found>, StoreMillis)> {
        let is_key = |live: &&Live| live.is_key(key.kind(), key.bytes());
        shard.candidates(hash).find_map(|entry| {
            let live = entry.live.as_deref().filter(is_key)?;
            let found = Box::new(Found {
                state: Some(live.state.clone()),
                presence: live.presence,
                lease_until: live.lease_until,
                place: Some(entry.place),
                reserved: live.reserved,
                asker: live.asker.clone(),
                outcome: None,
                memory_until: live.state.memory_until,
                open_steps: Vec::new(),
                guest: live.guest.clone(),
            });
            Some((found, self.log.now()))
        })
    }

    /// Finds the key among the records with its hash: those of memory, then those of the tables from the newest on.
    pub(super) fn look_recorded(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        known: &Known,
    ) -> Result<Option<Box<Found>>> {
        match self.look_without_steps(key, hash, known)? {
            Some(found) => self.without_ended_steps(key, found).map(Some),
            None => Ok(None),
        }
    }

    /// The same, with the announced steps as the record has them.
    // Inlined into the other: every replay passes both.
    #[inline(always)]
    pub(super) fn look_without_steps(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        known: &Known,
    ) -> Result<Option<Box<Found>>> {
        let found = self.look_in_log(key, &known.places)?;
        if found.is_some() || known.tables.is_empty() {
            return Ok(found);
        }
        let spots = known.tables.find(hash)?;
        if !spots.is_empty() {
            let segments = self.log.reading().segments();
            for spot in spots {
                let place = self.place_of(&segments, spot)?;
                let found = self.look_in_log(key, &[place])?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        if known.tables.expired.is_empty() {
            return Ok(None);
        }
        let memory = known.tables.memory_of(hash, known.now)?;
        Ok(memory.map(|memory| {
            let completed = StoreMillis(memory.completed_wall());
            Box::new(Found {
                state: Some(KeyState::of_memory(completed, memory.until())),
                memory_until: Some(memory.until()),
                ..Found::default()
            })
        }))
    }

    /// Returns the place of a table's slot. Records that tables cover were durable before the tables were listed.
    pub(super) fn place_of(&self, segments: &Segments, spot: Spot) -> Result<Place> {
        let Some(lsn) = segments.lsn_of(spot) else {
            let what =
                format_args!("the index names segment {}, which isn't listed,", spot.ordinal);
            return Err(Error::corrupt(self.log.dir(), 0, what));
        };
        Ok(Place::new(lsn, Durability::Sync, None))
    }

    /// Finds the key among the records at some places.
    pub(super) fn look_in_log(
        &self,
        key: &Key<'_>,
        candidates: &[Place],
    ) -> Result<Option<Box<Found>>> {
        for &place in candidates {
            let found = self.log.reading().read_to_keep(
                self.compaction().place_to_read(place.lsn()),
                |record, backing| {
                    let body = self.body_of(&record)?;
                    if (body.key_kind, body.key) != (key.kind(), key.bytes()) {
                        return Ok(None);
                    }
                    // Filled in where it stays: a state is large to move.
                    let mut found = Box::new(Found {
                        state: state_of(&record, &body),
                        place: Some(place),
                        memory_until: body.memory_until,
                        guest: guest_of(&body),
                        ..Found::default()
                    });
                    match &mut found.state {
                        Some(state)
                            if state.phase == Phase::Claimed && state.detached().is_none() =>
                        {
                            // A claim without an ending, and without an owner in memory.
                            state.reason = Some(self.why_gone(state.since).into());
                        }
                        Some(KeyState { phase: Phase::Completed | Phase::Failed, .. }) => {
                            found.outcome = Some(Stored {
                                codec: body.codec,
                                version: body.version,
                                meta: body.meta.to_vec(),
                                packed: body.rare.as_ref().and_then(|rare| rare.packed),
                                bytes: self.value_of(&record, &body, backing)?,
                            });
                        }
                        _ => {}
                    }
                    Ok(Some(found))
                },
            )?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    #[inline]
    pub(super) fn value_of(
        &self,
        record: &Record<'_>,
        body: &Body<'_>,
        backing: &Backing<'_>,
    ) -> Result<ValueBytes> {
        let hold = || backing.hold_tail(record, body.result.len());
        let bytes = ValueBytes::of_record(body.result, hold);
        bytes.ok_or_else(|| self.log.bug("a result does not lie in its record"))
    }

    pub(super) fn body_of<'a>(&self, record: &Record<'a>) -> Result<Body<'a>> {
        let mut body = record.body().map_err(|bad| {
            Error::corrupt(self.log.dir(), 0, format_args!("{bad} at lsn {}", record.lsn))
        })?;
        // Other writers may have stored it to the millisecond.
        body.memory_until = body.memory_until.map(protocol::passes_at);
        Ok(body)
    }
}
