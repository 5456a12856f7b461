//! Growth: how large the files may become before reclaim has to be considered.
//!
//! Promises: past the size that the engine allowed last, no segment is prepared before the files have shrunk by twice
//! its size, so that a call that needs the next one helps to reclaim first. Files that are too large shrink by at
//! least as much as is written, and no single call reclaims all of the excess. Writers are slowed at the same sizes,
//! however late the background gets a processor. Costs nothing while records fit: the check is made only when a
//! segment is to be prepared. Never: refuses space; `room` does that.

use super::Log;
use super::room::Keeper;
use crate::limits;
use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// The size that the engine allowed, and what happened since.
pub(super) struct Growth {
    /// Bytes that all files may use.
    most: AtomicU64,
    /// Bytes that they used when a segment was prepared last.
    prepared_at: AtomicU64,
    /// A segment was listed, or asked for in vain, since reclaim was considered last.
    is_look_due: AtomicBool,
    /// The background was not allowed to prepare a segment that was due.
    is_held: AtomicBool,
}

impl Growth {
    pub(super) fn new() -> Self {
        Growth {
            most: AtomicU64::new(u64::MAX),
            prepared_at: AtomicU64::new(0),
            is_look_due: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
        }
    }

    /// Notes that a segment was listed.
    pub(super) fn note(&self) {
        self.is_look_due.store(true, Ordering::Relaxed);
    }
}

impl Log {
    /// Whether one more spare would make the files too large, and not enough was reclaimed for it.
    fn would_outgrow(&self, keeper: &Keeper) -> bool {
        let (used, more) = (self.rooms().bytes_used(keeper), self.rooms().next_spare_bytes(keeper));
        let is_paid = used + 2 * more <= self.growth.prepared_at.load(Ordering::Relaxed);
        used + more > self.growth.most.load(Ordering::Relaxed) && !is_paid
    }

    /// Notes that a spare was prepared.
    pub(super) fn note_prepared(&self, keeper: &Keeper) {
        self.growth.prepared_at.store(self.rooms().bytes_used(keeper), Ordering::Relaxed);
    }

    /// Whether the next segment must wait until reclaim was considered.
    pub(crate) fn is_overgrown(&self) -> bool {
        let keeper = self.keeper.lock();
        keeper.spares.len() < 2 && self.would_outgrow(&keeper)
    }

    /// Whether the background may prepare one more spare. If not, it is woken once that changes.
    pub(super) fn may_grow(&self, keeper: &Keeper) -> bool {
        let may_grow = !self.would_outgrow(keeper);
        if !may_grow {
            self.growth.is_held.store(true, Ordering::Relaxed);
            self.growth.note();
        }
        may_grow
    }

    /// Allows a few segments, before the live bytes are known.
    pub(super) fn allow_first(&self, keeper: &Keeper) {
        let more = limits::SEGMENTS_UNSEEN * self.rooms().next_spare_bytes(keeper);
        let most = self.rooms().bytes_used(keeper) + more;
        self.growth.most.store(most, Ordering::Relaxed);
        self.note_prepared(keeper);
    }

    /// Whether the log has more segments than its size requires, and the oldest is a scrap.
    pub(crate) fn begins_with_scraps(&self) -> bool {
        let listed = self.reading().listed();
        let is_scrap =
            |item: &crate::manifest::Listed| item.end.since(item.base) < self.sizes.first() / 2;
        listed.len() as u64 > 2 * limits::SEGMENTS_OF_A_LOG && listed.first().is_some_and(is_scrap)
    }

    /// Allows the files so many bytes, and at least one segment more if nothing can be reclaimed.
    pub(crate) fn allow(&self, bytes: u64, is_all_needed: bool) {
        let keeper = self.keeper.lock();
        let next = self.rooms().bytes_used(&keeper) + self.rooms().next_spare_bytes(&keeper);
        let most = if is_all_needed { bytes.max(next) } else { bytes };
        self.growth.most.store(most, Ordering::Relaxed);
        self.release_held(&keeper);
    }

    /// Wakes the background if it was not allowed to prepare a segment and now is.
    pub(super) fn release_held(&self, keeper: &Keeper) {
        if self.is_held() && !self.would_outgrow(keeper) {
            self.growth.is_held.store(false, Ordering::Relaxed);
            self.wake_upkeep();
        }
    }

    /// Whether the background waits to be allowed a segment.
    pub(crate) fn is_held(&self) -> bool {
        self.growth.is_held.load(Ordering::Relaxed)
    }

    /// Whether the files have grown since reclaim was considered last.
    pub(crate) fn is_look_due(&self) -> bool {
        self.growth.is_look_due.load(Ordering::Relaxed)
    }

    /// The same, and clears that.
    pub(crate) fn take_look(&self) -> bool {
        self.growth.is_look_due.swap(false, Ordering::Relaxed)
    }
}
