//! The condition of a store, and its upkeep: counts, checks, and the work that keeps its files small and whole.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use super::Store;
use crate::Result;
use crate::admin::{Backup, Compaction, Estimate, Gathering, Health, Hosted, Stats, Verification};
use crate::backend::{Errand, Shared};
use crate::claim::Pending;
use crate::limits;
use crate::log::Due;
use crate::log::open::directory;

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
    /// Checks a few flags. The disk is not read. If another process hosts the store, it is asked, and called
    /// [`Silent`](Health::Silent) if it hasn't answered within a second.
    #[must_use]
    pub fn health(&self) -> Health {
        if let Some(host) = &self.host {
            return host.health(self.policy.reserved());
        }
        match self.shared.current() {
            Shared::Embedded(engine) => Health::of(engine, self.policy.reserved()),
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
    /// On a store made by `with_backend`, every figure is zero. If another process hosts the store, the figures are that process's.
    /// If it doesn't answer, all of them are zero, and [`Hosting::silent_since`](crate::admin::Hosting::silent_since) says so.
    ///
    /// # Cost
    /// Few records are read, and each of them once: by the first call after an open, those that decide which keys are open; by
    /// any call, one for each key that was detached or delayed since the call before; and, in a store with namespaces, one for
    /// each open key without an owner. The call visits all keys in memory, under the locks of their 64 shards
    /// one after the other, which takes a millisecond or two per million keys, and it copies the list of segments. It
    /// waits while a segment is prepared ahead or a manifest is replaced.
    #[must_use]
    pub fn stats(&self) -> Stats {
        if let Some(host) = &self.host {
            return host.stats();
        }
        match self.shared.current() {
            Shared::Embedded(engine) => Stats::of(engine),
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
        match &self.host {
            Some(host) => host.estimate(),
            None => Estimate::of(self.shared.embedded()?),
        }
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
    /// `progress` may end the reading. If another process hosts the store, `progress` is called once, at the end.
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
        if let Some(host) = &self.host {
            let found = host.verify()?;
            // Everything was read: there is nothing left that it could end.
            let _ = progress(&found);
            return Ok(found);
        }
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
        let done = match &self.host {
            Some(host) => host.compact(budget),
            None => self.shared.embedded()?.compaction().compact(budget),
        };
        done.map(Compaction::new)
    }

    /// Makes a backup of the store in `dir`, while other calls continue. The directory is missing or empty, and is then a
    /// store of its own: the store as it was at one moment during this call. Everything acknowledged before the call is in it,
    /// whatever its level.
    ///
    /// ```
    /// use onlyonce::{Claim, Store};
    ///
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let (keys, backup) = (dir.path().join("keys"), dir.path().join("backup"));
    /// let store = Store::open_or_create(&keys)?;
    /// let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.complete("paid")?;
    /// let in_flight = store.claim("order-18")?;
    /// store.backup(&backup)?;
    ///
    /// let restored = Store::open(&backup)?; // on the day when the store is lost
    /// assert!(matches!(restored.claim("order-17")?, Claim::Completed(_)));
    /// assert!(matches!(restored.claim("order-18")?, Claim::Interrupted(_)));
    /// # drop(in_flight);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Files that are never written again get a second name (a hard link) in the backup: full segments, tables and files of
    /// remembered keys. So a backup on the store's own file system is quick and takes little space, and both stay whole
    /// whatever becomes of the other. The segment in use is copied, and so is every file that can't be linked. In a backup on
    /// another file system, everything is copied. To survive the loss of the disk, a backup has to be moved away from it.
    ///
    /// The backup is durable on return. If it is opened, claims that were in flight are interrupted, and new fencing tokens are
    /// greater than those that the store has issued since, unless its clock ran ahead ([`docs::operations`], "Backup and
    /// restore"). The backup has the store's secrets: keep it as private as the store.
    ///
    /// A store that is poisoned can be backed up: the backup has everything that was durable. Damage is not noticed: call
    /// [`verify`](Self::verify).
    ///
    /// [`docs::operations`]: crate::docs::operations
    ///
    /// # Errors
    /// - `Invalid`: the directory is not empty, is not a directory, or lies in the store or in a backup of it.
    /// - `StorageFull` or `Io`: a file could not be made, or the directory was moved meanwhile. `Locked`: another process
    ///   uses it.
    /// - `Corrupt`: a file of the store is missing or too short.
    /// - `Poisoned`: a write or a sync of the store itself failed just now, or its directory was moved. `Closed`, also if the
    ///   store is closed meanwhile; `Forked`.
    ///
    /// After an error the directory holds no store, and what was made in it is removed as far as possible. `backup` accepts
    /// the same directory again, also after a crash.
    ///
    /// # Cost
    /// A sync of what is not durable yet, a link for each file, a copy of the segment in use (up to
    /// [`segment_bytes`](crate::StoreBuilder::segment_bytes)) and of what can't be linked, and about ten syncs. If the store
    /// removes a file before it is taken, the files that are new since then are taken, too. Opening a backup costs what an
    /// open after a crash costs.
    pub fn backup(&self, dir: impl AsRef<Path>) -> Result<Backup> {
        let dir = directory::absolute(dir.as_ref())?;
        make_backup(&self.shared, self.host.as_deref(), &dir)
    }

    /// Makes a backup as [`backup`](Self::backup) does, and gives the answer later. A thread of its own does the work, which
    /// goes on if this value is dropped.
    ///
    /// ```
    /// # let sim = onlyonce::testing::Sim::new(1);
    /// # let store = sim.open()?;
    /// let made = store.backup_async("/backups/monday").wait()?;
    /// # assert!(made.bytes_copied() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`backup`](Self::backup), as the answer.
    pub fn backup_async(&self, dir: impl AsRef<Path>) -> Pending<Backup> {
        match directory::absolute(dir.as_ref()) {
            Ok(dir) => {
                let host = self.host.clone();
                let work = move |shared: &Shared| make_backup(shared, host.as_deref(), &dir);
                Pending::new(Errand::run(&self.shared, "onlyonce-backup", work), |told| told)
            }
            Err(e) => Pending::ready(Err(e)),
        }
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
        match &self.host {
            Some(host) => host.rebuild_index(),
            None => self.shared.embedded()?.mending().rebuild_index(),
        }
    }

    /// Seals what memory holds and merges the index into one table, without moving the log. For this crate's own
    /// benches; may change at any time.
    #[doc(hidden)]
    pub fn merge_index(&self) -> Result<()> {
        match &self.host {
            Some(host) => host.merge_index(),
            None => self.shared.embedded()?.merges().merge_index(),
        }
    }

    /// Opens the store again after a failed write or sync has poisoned it, in this process and for all handles. If the store isn't
    /// poisoned, nothing is done.
    ///
    /// ```
    /// # use onlyonce::{Store, admin::Health, testing::Sim};
    /// # fn mended(store: &Store) -> onlyonce::Result<()> {
    /// if let Health::Poisoned { cause } = store.health() {
    ///     eprintln!("a write failed: {cause}");
    ///     store.reopen()?;
    /// }
    /// # Ok(())
    /// # }
    /// # let store = Sim::new(1).open()?;
    /// # mended(&store)?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// It is an opening as after a crash, but this process keeps the directory's lock, and the claims in flight stay with their
    /// owners: a guard whose claim was recovered goes on with the same fencing token. A claim that was not recovered, which only
    /// happens below `Sync`, is lost, and its owner's next call answers `ClaimLost`. A claim that was answered `Indeterminate` and is
    /// found in the log is withdrawn, because no work began. Questions are asked anew. Guests of a shared store stay: the reopened store
    /// answers each of their calls once. A guest may call `reopen`, too: then the process that hosts the store reopens it.
    ///
    /// Calls made meanwhile are answered `Poisoned`. If such a call is an ending, its claim is interrupted. An iterator that was begun
    /// before ends with `Poisoned`. After a reopening, [`get`](Self::get) returns what became of a call that was answered
    /// `Indeterminate`.
    ///
    /// # Errors
    /// The errors of [`open`](Self::open), for example while the disk still fails. The store then stays poisoned, for reads, too, and
    /// `reopen` may be called again. `Closed`, `Forked`. `Invalid` on a [`Reader`](crate::Reader)'s store and on a backend that can't do it.
    ///
    /// # Cost
    /// The cost of an opening after a crash. What memory held of the index before is freed with the last handle.
    pub fn reopen(&self) -> Result<()> {
        self.shared.reopen()
    }

    /// Does one piece of background work, if one is due, and returns the time until the next piece may be due.
    ///
    /// Call it only on a store opened with [`manual_maintenance`](crate::StoreBuilder::manual_maintenance): in any other store,
    /// two threads do this work. If another process hosts the store, that process does the work, and the call does nothing. The
    /// work syncs bytes written a second ago, covers them with a watermark, prepares segments, seals keys in tables, merges
    /// tables, and reclaims dead records. Each call also wakes the claims whose time to wait is up, and renews the claims that
    /// are [kept alive](crate::ClaimHandle::keep_alive), if that is due.
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
        match &self.host {
            Some(host) => host.check_open().map(|()| limits::GUEST_STEP_WAIT),
            None => self.shared.embedded()?.step().map(Due::wait),
        }
    }
}

fn make_backup(shared: &Shared, host: Option<&dyn Hosted>, dir: &Path) -> Result<Backup> {
    let made = match host {
        Some(host) => host.backup(dir),
        None => shared.embedded()?.backup(dir),
    };
    made.map(Backup::new)
}
