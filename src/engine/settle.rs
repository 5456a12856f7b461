//! When the answer of a placed call may be shown: what has to be written and synced before, for one call and for a batch.
//!
//! Promises: no answer except `InProgress` shows what a crash could undo at the level of the record that it is derived from.

use super::Engine;
use super::applied::{Applied, Done};
use crate::log::Placed;
use crate::log::open::lifecycle::Inside;
use crate::operation::{Durability, Key};
use crate::protocol::{Answer, Call};
use crate::sync::Ordering;
use crate::types::{KeyHash, Lsn};
use crate::{Error, ErrorKind, Result};

/// What has become of placed records.
pub(crate) enum PlacedFate {
    /// Their answers may be shown.
    Met,
    /// The disk has to have more.
    Unmet(Needs),
    /// The store was closed or poisoned before.
    Lost(Error),
}

/// The answer to a call whose record was placed, and whose fate a close left open.
pub(crate) fn outlived(e: Error) -> Error {
    let message = "the store was closed before this call was waited for: open it, and ask what became of the key";
    Error::new(ErrorKind::Indeterminate, message).because(e)
}

/// How far the log has to be synced, and written, before an answer may be shown.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Needs {
    pub(super) synced: Option<Lsn>,
    pub(super) written: Option<Lsn>,
}

impl Needs {
    /// What both need.
    pub(crate) fn and(self, other: Needs) -> Needs {
        Needs { synced: self.synced.max(other.synced), written: self.written.max(other.written) }
    }
}

/// Calls that were placed one after the other and are waited for together.
#[derive(Default)]
pub(crate) struct PlacedBatch {
    /// The last record placed at each level: it covers all before it.
    pub(super) placed: [Option<Placed>; 3],
    /// The newest record that an answer is derived from, at each level.
    pub(super) priors: [Option<Lsn>; 3],
    pub(super) sees_absence: bool,
}

const LEVELS: [Durability; 3] = [Durability::Lazy, Durability::Flush, Durability::Sync];

fn at_level<T>([lazy, flush, sync]: &mut [T; 3], level: Durability) -> &mut T {
    match level {
        Durability::Lazy => lazy,
        Durability::Flush => flush,
        Durability::Sync => sync,
    }
}

impl PlacedBatch {
    pub(crate) fn add(&mut self, done: &Done, level: Durability) {
        if let Some(placed) = done.placed {
            *at_level(&mut self.placed, level) = Some(placed);
        }
        match done.prior() {
            _ if done.applied.answer == Answer::InProgress => {}
            Some(prior) => {
                let newest = at_level(&mut self.priors, prior.level());
                *newest = (*newest).max(Some(prior.lsn()));
            }
            None => self.sees_absence = true,
        }
    }
}

impl Engine {
    /// Returns the answer of a call placed at `level`, once a crash can't undo it.
    #[inline]
    pub(crate) fn settled(
        &self,
        key: &Key<'_>,
        hash: KeyHash,
        call: Call,
        done: Done,
        level: Option<Durability>,
    ) -> Result<Applied> {
        let settled = self.settle(&done, level.unwrap_or(Durability::Sync));
        if settled.is_err() {
            self.take_back(key, hash, call, &done.applied);
        }
        settled.map(|()| done.applied)
    }

    /// What has become of the records that need that, if anything. Judged by the log first: a close makes durable what was placed
    /// before it. `lasts`: the answer holds also once the store is closed.
    pub(crate) fn fate_of_placed(
        &self,
        needs: impl FnOnce() -> Option<Needs>,
        lasts: bool,
    ) -> PlacedFate {
        let inside = self.enter();
        // Before the log is asked: once the close is over, it stays as it is.
        let is_at_close = self.is_at_close();
        match (needs(), inside) {
            (None, Ok(_)) => PlacedFate::Met,
            (None, Err(_)) if lasts => PlacedFate::Met,
            (Some(_), _) if self.log.is_poisoned() => PlacedFate::Lost(self.log.indeterminate()),
            (Some(needs), Ok(_)) => PlacedFate::Unmet(needs),
            (Some(needs), Err(_)) if is_at_close => PlacedFate::Unmet(needs),
            (_, Err(e)) => PlacedFate::Lost(outlived(e)),
        }
    }

    /// The same, without waiting for a close. Returns whether it was not closed.
    pub(crate) fn try_to_provide(&self, needs: Needs) -> bool {
        let inside = self.enter();
        if inside.is_ok() {
            self.provide(needs);
        }
        inside.is_ok()
    }

    /// The record that the answer is derived from, besides the placed one, and the level at which it has to hold. A crash
    /// may undo only `InProgress`. An absence is derived from the newest forget.
    #[inline]
    pub(super) fn rests_on(&self, done: &Done) -> Option<(Lsn, Durability)> {
        match done.prior() {
            _ if done.applied.answer == Answer::InProgress => None,
            Some(prior) => Some((prior.lsn(), prior.level())),
            None => self.newest_forget().map(|lsn| (lsn, Durability::Sync)),
        }
    }

    /// Waits for the placed record, and for the one that the answer is derived from.
    #[inline]
    pub(super) fn settle(&self, done: &Done, level: Durability) -> Result<()> {
        if let Some(placed) = done.placed {
            self.log.wake_upkeep();
            self.log.commit(placed, level)?;
        }
        match self.rests_on(done) {
            Some((lsn, level)) => self.log.commit_earlier(lsn, level),
            None => Ok(()),
        }
    }

    /// What has to be written or synced before the answer of a call placed at `level` may be shown; `None`: nothing more. As
    /// [`settle`](Self::settle), for a caller that doesn't block. `is_guests`: it is shown to another process, which outlives
    /// this one: all that it rests on is written before.
    pub(crate) fn needs(
        &self,
        done: &Done,
        level: Option<Durability>,
        is_guests: bool,
    ) -> Option<Needs> {
        let mut needs = Needs::default();
        let least = |level| match level {
            Durability::Lazy if is_guests => Durability::Flush,
            level => level,
        };
        let level = level.map(least);
        if let Some(placed) = done.placed {
            self.log.wake_upkeep();
            match level.unwrap_or(Durability::Sync) {
                // What is left to the background is bounded.
                Durability::Lazy if self.log.is_much_buffered() => {
                    self.need(&mut needs, placed.lsn, Durability::Flush);
                }
                level => self.need(&mut needs, placed.lsn, level),
            }
        }
        if let Some((lsn, level)) = self.rests_on(done) {
            self.need(&mut needs, lsn, least(level));
        }
        (needs != Needs::default()).then_some(needs)
    }

    pub(super) fn need(&self, needs: &mut Needs, lsn: Lsn, level: Durability) {
        if self.log.holds(lsn, level) {
            return;
        }
        match level {
            Durability::Sync => needs.synced = needs.synced.max(Some(lsn)),
            Durability::Flush => needs.written = needs.written.max(Some(lsn)),
            Durability::Lazy => {}
        }
    }

    /// What everything that was placed so far needs to be durable.
    pub(crate) fn needs_of_all(&self) -> Needs {
        Needs { synced: self.log.last_placed(), written: None }
    }

    /// What everything that was placed so far needs to outlive this process.
    pub(crate) fn needs_to_outlive(&self) -> Needs {
        Needs { synced: None, written: self.log.last_placed() }
    }

    /// Whether there is nothing more to write or sync for that.
    pub(crate) fn are_met(&self, needs: Needs) -> bool {
        let holds = |lsn: Option<Lsn>, level| lsn.is_none_or(|lsn| self.log.holds(lsn, level));
        holds(needs.synced, Durability::Sync) && holds(needs.written, Durability::Flush)
    }

    /// As [`provide`](Self::provide), for callers outside the gate. A store that closes syncs everything itself: they wait for
    /// that.
    pub(crate) fn provide_inside(&self, needs: Needs) {
        if !self.try_to_provide(needs) {
            self.await_close();
        }
    }

    /// Writes and syncs what the callers of a round need. If that fails, the store is poisoned, and each of them finds that.
    pub(super) fn provide(&self, needs: Needs) {
        if let Some(lsn) = needs.synced {
            let _ = self.log.commit_earlier(lsn, Durability::Sync);
        }
        if let Some(lsn) = needs.written {
            let _ = self.log.commit_earlier(lsn, Durability::Flush);
        }
    }

    /// What has to be written or synced before the answers of a batch may be shown: as [`settle_batch`](Self::settle_batch), for
    /// a caller that doesn't block.
    pub(crate) fn needs_of_batch(&self, batch: &PlacedBatch) -> Needs {
        let mut needs = Needs::default();
        for (level, placed) in LEVELS.into_iter().zip(batch.placed) {
            let level = match level {
                // What is left to the background is bounded.
                Durability::Lazy if self.log.is_much_buffered() => Durability::Flush,
                level => level,
            };
            if let Some(placed) = placed {
                self.need(&mut needs, placed.lsn, level);
            }
        }
        for (level, prior) in LEVELS.into_iter().zip(batch.priors) {
            if let Some(prior) = prior {
                self.need(&mut needs, prior, level);
            }
        }
        if let Some(lsn) = self.newest_forget().filter(|_| batch.sees_absence) {
            self.need(&mut needs, lsn, Durability::Sync);
        }
        needs
    }

    /// Waits for a whole batch, whose records share writes and syncs.
    pub(crate) fn settle_batch(&self, _inside: &Inside<'_>, batch: &PlacedBatch) -> Result<()> {
        self.log.wake_upkeep();
        for (level, placed) in LEVELS.into_iter().zip(batch.placed).rev() {
            if let Some(placed) = placed {
                self.log.commit(placed, level)?;
            }
        }
        for (level, prior) in LEVELS.into_iter().zip(batch.priors).rev() {
            if let Some(prior) = prior {
                self.log.commit_earlier(prior, level)?;
            }
        }
        if batch.sees_absence { self.settle_absence() } else { Ok(()) }
    }

    pub(super) fn newest_forget(&self) -> Option<Lsn> {
        match self.forgotten.load(Ordering::SeqCst) {
            0 => None,
            lsn => Some(Lsn::new(lsn)),
        }
    }

    /// Waits until no absence that was found depends on a forget that a crash could undo.
    pub(crate) fn settle_absence(&self) -> Result<()> {
        self.newest_forget().map_or(Ok(()), |lsn| self.log.commit_earlier(lsn, Durability::Sync))
    }
}
