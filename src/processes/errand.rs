//! Calls on the whole store that the host makes for a guest, and that a guest makes itself once it hosts the store. They run in a
//! thread of their own, because the engine may work for minutes.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::frame::{ErrandReply, HostErrand, put_bytes};
use crate::Result;
use crate::admin::{Estimate, Gathering, Health, KeyPage, Stats, Verification};
use crate::backend::Shared;

/// Whether the errand takes no longer than a call on a key, so that starting a thread for it would take longer.
pub(super) fn is_quick(what: &HostErrand) -> bool {
    matches!(what, HostErrand::Health { .. } | HostErrand::Disown { .. })
}

/// Does the errand in this process, which hosts the store. `most`: the greatest length of an answer that the guest accepts.
pub(crate) fn run_errand(
    shared: &Arc<Shared>,
    what: HostErrand,
    most: usize,
) -> Result<ErrandReply> {
    let engine = shared.embedded()?;
    Ok(match what {
        HostErrand::Sync => {
            shared.sync()?;
            ErrandReply::Done
        }
        HostErrand::Stats => ErrandReply::Stats(Box::new(Stats::of(engine))),
        HostErrand::Health { reserve_bytes } => {
            ErrandReply::Health(Health::of(engine, reserve_bytes))
        }
        HostErrand::Estimate => ErrandReply::Estimate(Estimate::of(engine)?),
        HostErrand::Verify => {
            let mut goes_on = |_: &Verification| ControlFlow::Continue(());
            let found = Verification::default();
            let mut gathering = Gathering { found, progress: &mut goes_on };
            engine.verify(&mut gathering)?;
            ErrandReply::Verified(gathering.found)
        }
        HostErrand::Compact { budget } => {
            ErrandReply::Compacted(engine.compaction().compact(budget)?)
        }
        HostErrand::Backup { dir } => ErrandReply::BackedUp(engine.backup(&dir)?),
        HostErrand::RebuildIndex => {
            engine.mending().rebuild_index()?;
            ErrandReply::Done
        }
        HostErrand::MergeIndex => {
            engine.merges().merge_index()?;
            ErrandReply::Done
        }
        HostErrand::Spaces { parent } => ErrandReply::Names(engine.names_in(parent)?),
        HostErrand::List(listing) => {
            ErrandReply::Page(KeyPage::read(shared, listing, &put_bytes, most)?)
        }
        HostErrand::Reopen => {
            shared.reopen()?;
            ErrandReply::Done
        }
        HostErrand::Disown { key, call } => {
            engine.disown(&key, call)?;
            ErrandReply::Done
        }
    })
}
