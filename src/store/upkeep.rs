//! The condition of a store, and its upkeep: counts, checks, and the work that keeps its files small and whole.

use std::ops::ControlFlow;
use std::time::Duration;

use super::Store;
use crate::Result;
use crate::admin::{Compaction, Estimate, Gathering, Health, Stats, Verification};
use crate::backend::Shared;
use crate::log::Due;

impl Store {
    /// Returns whether the store accepts writes and, if not, why.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// assert!(store.health().is_writable());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// The free space is compared with what a claim under this handle's policy needs.
    ///
    /// # Cost
    /// Checks a few flags. The disk is not read.
    #[must_use]
    pub fn health(&self) -> Health {
        match &*self.shared {
            Shared::Embedded(engine) => Health::of(engine, self.policy.reserved()),
            #[cfg(feature = "backend")]
            Shared::Other(backend) => Health::of_backend(backend.check().err().as_ref()),
        }
    }

    /// Returns counts, and what was found when the store was opened.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let stats = store.stats();
    /// if let Some(cut) = &stats.opening.cut {
    ///     println!("{} bytes of a torn write cut off in {}", cut.bytes(), cut.path().display());
    /// }
    /// assert_eq!((stats.keys, stats.in_flight), (0, 0));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Only an embedded store is counted: on a store made by `with_backend`, every figure is zero.
    ///
    /// # Cost
    /// Few records are read, and each of them once: by the first call after an open, those that decide which keys are open; by
    /// any call, one for each key that was detached or delayed since the call before; and, in a store with namespaces, one for
    /// each open key without an owner. The call visits all keys in memory, under the locks of their 64 shards
    /// one after the other, which takes a millisecond or two per million keys, and it copies the list of segments. It
    /// waits while a segment is prepared ahead or a manifest is replaced.
    #[must_use]
    pub fn stats(&self) -> Stats {
        match &*self.shared {
            Shared::Embedded(engine) => Stats::of(engine),
            #[cfg(feature = "backend")]
            Shared::Other(_) => Stats::default(),
        }
    }

    /// Estimates how much of the store is alive, and how many keys are in each state. The estimate is based on about a
    /// thousand sampled keys, so it is accurate to a few percent, and less so if a few results are far larger than the
    /// rest. In a store with fewer keys, every key is counted. Open keys (claimed, interrupted or held) are always counted.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// # let _ = store.mark("k")?;
    /// let estimate = store.estimate()?;
    /// println!("{} bytes could be reclaimed", estimate.dead_bytes);
    /// # assert_eq!((estimate.completed, estimate.held), (1, 0));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `Corrupt` if a bucket of the index is damaged; `Closed`, `Forked`, `Indeterminate`.
    ///
    /// # Cost
    /// A few hundred random reads.
    pub fn estimate(&self) -> Result<Estimate> {
        Estimate::of(self.shared.embedded()?)
    }

    /// Reads every file of the store and reports damage: damaged records, damaged buckets of the index, and keys that
    /// the index doesn't lead to. Adjacent damage is reported as one. Nothing is changed, and other calls continue
    /// meanwhile.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let found = store.verify()?;
    /// for damage in &found.damages {
    ///     eprintln!("{damage}");
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Records that are not yet durable are left out: call [`sync`](Self::sync) first to include them. Bytes that can't
    /// be read now don't count as damage, and are listed in [`unread`](Verification::unread): call `verify` again once
    /// the cause is gone.
    ///
    /// # Errors
    /// `Closed`, also if the store is closed meanwhile; `Forked`. Damage is not an error of this call.
    ///
    /// # Cost
    /// Reads every file once, and each key's newest record once more.
    pub fn verify(&self) -> Result<Verification> {
        self.verify_with(|_| ControlFlow::Continue(()))
    }

    /// Does the same as [`verify`](Self::verify), and calls `progress` after each file with what was found so far.
    /// `progress` may end the reading.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # use std::ops::ControlFlow;
    /// # let store = Sim::new(1).open()?;
    /// let all = store.stats().log_bytes + store.stats().index_bytes;
    /// store.verify_with(|found| {
    ///     eprintln!("{} of {all} bytes", found.bytes);
    ///     ControlFlow::Continue(())
    /// })?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`verify`](Self::verify).
    pub fn verify_with(
        &self,
        mut progress: impl FnMut(&Verification) -> ControlFlow<()>,
    ) -> Result<Verification> {
        let mut gathering = Gathering { found: Verification::default(), progress: &mut progress };
        self.shared.embedded()?.verify(&mut gathering)?;
        Ok(gathering.found)
    }

    /// Reclaims dead records: moves the live records to the end of the log, and removes the files that held them. One
    /// call moves at most about `budget` bytes; the next call continues where the budget ran out.
    ///
    /// Background threads do the same once the store is twice as large as its live bytes. When
    /// [`is_complete`](Compaction::is_complete) returns `true`, no file of the store holds the bytes of anything
    /// forgotten, expired or overwritten before the call, and the index is one table, if there is space for it. If the
    /// call continued earlier calls, this guarantee covers only what was dead before the first of them; a call with
    /// `u64::MAX` continues none.
    ///
    /// There is one exception: a key that was forgotten under [`remember_expired`](crate::Policy::remember_expired)
    /// stays on the disk, without its result, until the time for which it would have been remembered has passed.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// # let _ = store.mark("message-7")?;
    /// store.forget("message-7")?;
    /// assert!(store.compact(u64::MAX)?.is_complete());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// The changes are durable on return. Other calls continue meanwhile.
    ///
    /// # Errors
    /// `StorageFull` if the space reserved for moving records isn't enough: see `docs/durability.md`, "A full store".
    /// `Corrupt` if a record is damaged; its segment stays. Also the errors of [`sync`](Self::sync).
    ///
    /// # Cost
    /// Reads the log and writes its live records.
    pub fn compact(&self, budget: u64) -> Result<Compaction> {
        self.shared.embedded()?.compaction().compact(budget).map(Compaction::new)
    }

    /// Rebuilds the index from the log. A lookup or an open mends the damage that it notices, so this call is needed
    /// only when no part of the index can be trusted any more.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// # let _ = store.mark("k")?;
    /// if !store.verify()?.is_whole() {
    ///     store.rebuild_index()?;
    /// }
    /// # store.rebuild_index()?;
    /// # assert!(!store.mark("k")?.is_first());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// The changes are durable on return. Other calls continue meanwhile.
    ///
    /// # Errors
    /// `Corrupt` if the log is damaged: see [`repair`](crate::admin::repair). `StorageFull`, and the errors of
    /// [`sync`](Self::sync).
    ///
    /// # Cost
    /// Reads the log up to the last checkpoint and writes 16 bytes per key, for some keys several times.
    pub fn rebuild_index(&self) -> Result<()> {
        self.shared.embedded()?.mending().rebuild_index()
    }

    /// Seals what memory holds and merges the index into one table, without moving the log. For this crate's own
    /// benches; may change at any time.
    #[doc(hidden)]
    pub fn merge_index(&self) -> Result<()> {
        self.shared.embedded()?.merges().merge_index()
    }

    /// Does one piece of background work, if one is due, and returns the time until the next piece may be due.
    ///
    /// Call it only on a store opened with [`manual_maintenance`](crate::StoreBuilder::manual_maintenance); in any
    /// other store two threads do this work. The work syncs bytes written a second ago, covers them with a watermark,
    /// prepares segments, seals keys in tables, merges tables, and reclaims dead records. Each call also wakes the claims
    /// whose time to wait is up, and renews the claims that are [kept alive](crate::ClaimHandle::keep_alive), if that is due.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?; // a simulated store is always stepped by hand
    /// let next = store.step()?;
    /// println!("nothing more to do for {next:?}");
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Indeterminate` if a write or sync failed; `Closed`, `Forked`.
    ///
    /// # Cost
    /// At most one piece of work: a write; a sync; the preparation of a segment, which writes each of its pages; a
    /// checkpoint, which writes 16 bytes for each key since the previous checkpoint; or a part of a merge or of
    /// compaction, a few hundred KiB.
    pub fn step(&self) -> Result<Duration> {
        self.shared.embedded()?.step().map(Due::wait)
    }
}
