//! The protocol over log and index: the only place where a key's state changes.
//!
//! Promises: at most one live claim per key; a record is placed in the log and its key's entry in the index changed
//! in one step under the key's shard lock; no answer, except `InProgress`, shows a state that a crash could undo at
//! the level of the record it is derived from. Never: I/O, or waiting for space, under a shard lock.
//!
//! `call` does one call on one key, with `look`, `applied`, `settle` and `leave`; `placing` is a call in progress, `waits` has the callers that wait for a key, `compose`
//! makes a record, `view` reads without changing, `close` ends the store, and `heir` takes over what a poisoned one leaves. `background` does the background work: `checkpoint`
//! keeps memory small, `merge` keeps the number of tables small, and `compact` keeps the log small, by the live bytes that `sample` estimates.
//! `mend` rebuilds tables from the log, `spaces` knows the namespaces, `rebuild` fills the index at an open, `verify` reads everything,
//! `backup` makes another store of one moment of this one.

mod applied;
mod background;
mod backup;
mod call;
mod checkpoint;
mod claim_step;
mod close;
mod compact;
mod compose;
mod heir;
mod leave;
mod listing;
mod look;
mod mend;
mod merge;
mod placing;
mod rebuild;
mod sample;
mod settle;
mod spaces;
mod tenure;
mod told;
mod verify;
mod view;
mod waits;

pub(crate) use crate::log::open::lifecycle::Inside;
pub(crate) use applied::Done;
pub(crate) use applied::Found;
pub(crate) use applied::{Applied, EncodedOutcome};
pub use applied::{Claimed, Stored};
pub(crate) use backup::BackedUp;
pub(crate) use call::{Sending, Writing};
pub(crate) use close::{Threads, Unended};
pub(crate) use compact::Compacted;
pub(crate) use heir::Legacy;
pub(crate) use leave::UNTOLD;
pub(crate) use listing::KeyCounts;
pub(crate) use placing::{Asks, Placing, Progress};
pub(crate) use sample::Alive;
pub(crate) use settle::Needs;
pub(crate) use settle::{PlacedBatch, PlacedFate, outlived};
pub(crate) use spaces::Named;
use spaces::Spaces;
pub(crate) use tenure::KeptClaim;
pub(crate) use verify::Inspector;
#[cfg(test)]
pub(crate) use view::NewestRecord;
pub(crate) use view::{Seen, Walk, Which};
pub(crate) use waits::{Alarm, Turn, Waits, WaitsTo};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::index::Hasher;
use crate::index::recent::{Place, Recent};
use crate::index::tables::Tables;
use crate::log::open::recovery::Report;
use crate::log::open::steps::{self, Earlier};
use crate::log::{Log, Seams, Sizes};
use crate::manifest::{self, Manifest};
use crate::operation::{Durability, Key};
use crate::record::{Body, Record};
use crate::storage::{DirLock, Failure, Standing};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, WakeWord};
use crate::types::{KeyHash, Lsn, StoreMillis};
use crate::{Error, ErrorKind, Result};

/// An open store, as its handles share it.
pub(crate) struct Engine {
    pub(crate) log: Log,
    recent: Recent,
    /// Items of the tables' lists of open keys that hashes alone didn't decide: see `listing`.
    hints: Mutex<Vec<(KeyHash, Place)>>,
    /// When the leases and delays of open keys' records pass, as far as they were read.
    timed: Mutex<BTreeMap<Lsn, StoreMillis>>,
    /// The same as in every shard of `recent`, or soon to be. Changes under the lock of `work`.
    tables: Mutex<Arc<Tables>>,
    spaces: Spaces,
    work: Mutex<background::Work>,
    /// The thread that keeps the index sleeps on it.
    index_word: WakeWord,
    /// The number of keys in memory at which they are sealed.
    checkpoint_keys: usize,
    /// Bytes moved by compaction, and reclaimed by it.
    pub(crate) moved: AtomicU64,
    pub(crate) reclaimed: AtomicU64,
    /// Copies that are not durable yet, in order, each with the place of its original.
    copies: Mutex<Vec<(Lsn, Lsn)>>,
    /// Tables made again from the log.
    pub(crate) mended: AtomicU64,
    checkpointed: Mutex<Option<checkpoint::Checkpointed>>,
    /// The error that keeps work on the index or compaction from continuing.
    trouble: Mutex<Option<Error>>,
    hasher: Hasher,
    /// From which tickets are made. The same for as long as the store exists.
    pub(crate) secret: [u8; 32],
    pub(crate) report: Report,
    /// When it was opened: no record written before the open is younger.
    opened: StoreMillis,
    pub(crate) result_bytes_max: u32,
    pub(crate) compress_over: Option<u32>,
    /// The number of the question asked last. The first one is drawn: a word on a question that was asked by the host before must
    /// not meet another claimant's.
    questions: AtomicU64,
    /// LSN of the newest forget: until it is durable, a crash could undo an absence.
    forgotten: AtomicU64,
    /// Claims in flight.
    in_flight: AtomicU64,
    /// How many of them other processes have: a close leaves those to the next host.
    in_flight_of_guests: AtomicU64,
    /// When observers were told the numbers last, in milliseconds of the monotonic clock; 0: not yet.
    gauges_at: AtomicU64,
    /// Changes when a claim that a thread waits for ends, and when a close does.
    ended: WakeWord,
    /// A close is at work, and will make durable what was placed before it, or lose it.
    is_at_close: AtomicBool,
    /// Callers that wait for a key.
    pub(crate) waits: Arc<Waits>,
    /// What claims of other processes, kept from the host before, lack.
    owed: tenure::OwedReserves,
    /// The directory's lock. Locked by a close, so that only one runs at a time.
    lock: Mutex<close::LockState>,
    /// Where claims go when this open has ended and another one of this process has them.
    heir: Mutex<heir::Heir>,
}

/// How a store is opened.
pub(crate) struct EngineOpening<'d> {
    pub(crate) seams: Seams,
    pub(crate) dir: &'d Path,
    pub(crate) sizes: Sizes,
    pub(crate) result_bytes_max: u32,
    pub(crate) compress_over: Option<u32>,
    pub(crate) checkpoint_keys: usize,
}

impl Engine {
    /// Opens the store that `manifest` lists, in a directory that is locked.
    pub(crate) fn open(
        opening: &EngineOpening<'_>,
        manifest: Manifest,
        lock: Box<dyn DirLock>,
    ) -> Result<Self> {
        let (mut engine, lacking) =
            Engine::read_in(opening, opening.checkpoint_keys, manifest, lock)?;
        match engine.mending().make_all(&lacking) {
            // Without space for tables everything is read into memory again, however much that takes.
            Err(e) if e.kind() == ErrorKind::StorageFull => {
                let manifest = manifest::load(&*opening.seams.storage, opening.dir)?;
                let lock = engine.lock.lock().take();
                let (Some(manifest), close::LockState::Open(lock)) = (manifest, lock) else {
                    return Err(e);
                };
                drop(engine);
                engine = Engine::read_in(opening, usize::MAX, manifest, lock)?.0;
            }
            made => made?,
        }
        engine.load_open_keys()?;
        if engine.log.has_unsettled_tail() {
            // Without space the store opens up to the tail; the rest follows once there is space.
            match engine.begin_writing() {
                Err(e) if e.kind() != ErrorKind::StorageFull || engine.log.is_poisoned() => {
                    return Err(e);
                }
                _ => engine.compaction().gather_scraps()?,
            }
        }
        Ok(engine)
    }

    /// Reads tables and log, and returns which tables must be made before any call is answered: none if memory may
    /// replace them. Memory takes at most `memory_keys`.
    fn read_in(
        opening: &EngineOpening<'_>,
        memory_keys: usize,
        mut manifest: Manifest,
        lock: Box<dyn DirLock>,
    ) -> Result<(Self, mend::Lacking)> {
        let EngineOpening { seams, dir, sizes, .. } = opening;
        let (hasher, secret) = (Hasher::new(&manifest.secrets), manifest.secrets.derivation);
        #[cfg(any(test, feature = "testing"))]
        let hasher = hasher.masked(seams.entropy.hash_mask());
        let listed = manifest.tables.len();
        let (tables, damaged) =
            mend::open_tables(&*seams.storage, dir, sizes.map, memory_keys, &mut manifest)?;
        let lost = listed - manifest.tables.len() + damaged.len();
        let recent = Recent::new(&tables);
        let covered = manifest.covered;
        let (mut keys, mut uncovered) = (0_usize, None);
        let mut visit = |record: &Record<'_>, earlier: &Earlier<'_>| {
            if uncovered.is_some() {
                return Ok(());
            }
            let is_new = rebuild::take_in(&recent, &hasher, dir, record, earlier)?;
            keys += usize::from(is_new);
            if keys > memory_keys {
                // How far the log is durable is known only at its end: then all of it is read again, into a table.
                uncovered = Some(covered);
                recent.clear();
            }
            Ok(())
        };
        let (log, report) = steps::open(seams.clone(), dir, *sizes, manifest, &mut visit)?;
        let opened = log.now();
        let engine = Engine {
            log,
            opened,
            recent,
            hints: Mutex::new(Vec::new()),
            timed: Mutex::new(BTreeMap::new()),
            tables: Mutex::new(tables),
            spaces: Spaces::new(),
            work: Mutex::new(background::Work::default()),
            index_word: WakeWord::new(),
            checkpoint_keys: opening.checkpoint_keys,
            moved: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
            copies: Mutex::new(Vec::new()),
            mended: AtomicU64::new(lost as u64),
            checkpointed: Mutex::new(None),
            trouble: Mutex::new(None),
            hasher,
            secret,
            report,
            result_bytes_max: opening.result_bytes_max,
            compress_over: opening.compress_over,
            // Far from the end of the range: numbers neither wrap nor become 0, which stands for no question.
            questions: AtomicU64::new(opening.seams.draw_u64()? >> 1),
            forgotten: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            in_flight_of_guests: AtomicU64::new(0),
            gauges_at: AtomicU64::new(0),
            ended: WakeWord::new(),
            is_at_close: AtomicBool::new(false),
            waits: Waits::new(),
            owed: tenure::OwedReserves::new(),
            lock: Mutex::new(close::LockState::Open(lock)),
            heir: Mutex::new(heir::Heir::default()),
        };
        engine.count_bytes(&engine.tables());
        Ok((engine, mend::Lacking { damaged, uncovered }))
    }

    /// Returns the reason why a claim of that time is over without an ending. A dropped guard leaves no ending
    /// either, if there was no space for it.
    pub(super) fn why_gone(&self, since: StoreMillis) -> &'static str {
        if since > self.opened { "dropped without a word" } else { "its process is gone" }
    }

    pub(crate) fn hash(&self, key: &Key<'_>) -> KeyHash {
        self.hasher.hash(key)
    }

    /// The key of a record. Bytes that are no key of their kind, as one too short to name a namespace, are damage: they are
    /// never taken for an absence.
    pub(super) fn key_of<'k>(&self, body: &Body<'k>, lsn: Lsn) -> Result<Key<'k>> {
        Key::from_stored(body.key_kind, body.key).ok_or_else(|| {
            let what = format_args!("an impossible key at lsn {lsn}");
            Error::corrupt(self.log.dir(), 0, what)
        })
    }

    /// Keeps background work and compactions from beginning.
    #[cfg(test)]
    pub(crate) fn hold_work(&self) -> impl Drop + '_ {
        self.work.lock()
    }

    /// Whether this process is a fork of the one that opened the store: then nothing may be touched.
    pub(crate) fn is_foreign(&self) -> bool {
        self.log.gate().is_foreign()
    }

    /// Lets the calling thread in, or returns why not. Every call of the public API, every background step and each
    /// step of a walk is inside while it works, and none enters twice.
    pub(crate) fn enter(&self) -> Result<Inside<'_>> {
        self.log.enter()
    }

    /// Poisons the store if its path no longer names its directory, or its log. `sessions`: whether the file that tells who lives
    /// is still at its place; another one doesn't show the sessions that this host knows.
    pub(crate) fn check_standing(&self, sessions: Standing) -> Result<()> {
        let _inside = self.enter()?;
        self.log.rooms().check_standing()?;
        match manifest::misplaced(&self.dir().join("sessions"), sessions) {
            Some(error) => Err(self.log.failed(Failure::Poison(error))),
            None => Ok(()),
        }
    }

    /// Checked by long reads: a close waits for them.
    pub(super) fn may_stay(&self) -> Result<()> {
        if self.log.gate().must_leave() { Err(self.log.closed()) } else { Ok(()) }
    }

    /// Handles a failed read. If there was no space to make the tail that the open found durable, and now there is,
    /// does that, and the read may be tried again; otherwise returns the error.
    pub(super) fn settle_tail(&self, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::StorageFull || !self.log.has_unsettled_tail() {
            return Err(error);
        }
        match self.begin_writing() {
            Err(e) if e.kind() == ErrorKind::StorageFull => Err(error),
            other => other,
        }
    }

    /// Does what must precede the first record after an open.
    pub(super) fn begin_writing(&self) -> Result<()> {
        self.begin_writing_with(self.owed.are_owed())
    }

    /// The same. `keeps_spares`: the segments prepared for claims in flight stay, though no claim is in flight yet.
    fn begin_writing_with(&self, keeps_spares: bool) -> Result<()> {
        if self.log.is_writing() {
            return self.log.may_go_on();
        }
        self.log.resuming().begin_writing(
            keeps_spares,
            &mut |from: Lsn, record: &Record<'_>| {
                let body = self.body_of(record)?;
                let hash = self.hasher.hash(&self.key_of(&body, record.lsn)?);
                let mut shard = self.shard(hash)?;
                // If there is none, a later record is its key's newest.
                if let Some(entry) = shard.entry_at(hash, from) {
                    entry.place = Place::new(record.lsn, Durability::Sync, entry.place.open());
                }
                Ok(())
            },
        )?;
        // The index thread has slept since the open: expired records, for example, are due now.
        self.index_word.wake_one();
        Ok(())
    }

    /// Returns the number of claims in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Returns a message about what keeps checkpoints, merges, compaction or the preparing of space from continuing.
    pub(crate) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().as_ref().map(Error::again);
        trouble.or_else(|| self.log.trouble()).map(|e| e.to_string())
    }

    /// The clock for durations, in nanoseconds.
    pub(crate) fn nanos(&self) -> u64 {
        self.log.seams().clock.monotonic_nanos()
    }

    /// Whether a close has begun.
    pub(crate) fn is_closing(&self) -> bool {
        self.log.gate().is_closing()
    }

    /// Whether a close is at work: once it is not, what it hasn't made durable stays so.
    pub(crate) fn is_at_close(&self) -> bool {
        self.is_at_close.load(Ordering::SeqCst)
    }

    pub(crate) fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.tables.lock())
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.log.dir().to_path_buf()
    }
}
