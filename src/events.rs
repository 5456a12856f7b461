//! Tells observers what happens in a store: events and spans by `tracing`, numbers by `metrics`.
//!
//! Promises: without the features `tracing` and `metrics` every call here is nothing, so that call sites need no `cfg`. A key
//! appears as it is displayed, an owner by its label. Never: shows a result, a fingerprint, a reason, progress or a ticket, or
//! decides anything. Not called under the lock of a shard or of the log's tail: an observer may take its time.
//!
//! What is told, and each metric's name: `docs/operations.md`, "What a store tells".
#![cfg_attr(
    not(all(feature = "tracing", feature = "metrics")),
    allow(unused_variables, dead_code, reason = "without the features nothing is told")
)]

use std::fmt::Display;
use std::path::Path;
#[cfg(any(feature = "tracing", feature = "metrics"))]
use std::sync::Arc;
#[cfg(feature = "tracing")]
use std::time::Duration;

use crate::{Error, limits};

/// Whether anything is told. What only serves to be told is not even computed otherwise.
pub(crate) const ARE_TOLD: bool = cfg!(any(feature = "tracing", feature = "metrics"));

/// Whether numbers are kept.
pub(crate) const ARE_MEASURED: bool = cfg!(feature = "metrics");

/// An event, under the one target, with the store's directory.
#[cfg(feature = "tracing")]
macro_rules! event {
    ($level:ident, $events:expr, $($rest:tt)+) => {
        tracing::event!(target: "onlyonce", tracing::Level::$level, store = &*$events.store, $($rest)+)
    };
}

#[cfg(not(feature = "tracing"))]
macro_rules! event {
    ($($rest:tt)+) => {{}};
}

/// A span, until it is dropped.
#[must_use]
pub(crate) struct EnteredSpan {
    #[cfg(feature = "tracing")]
    _span: tracing::span::EnteredSpan,
}

macro_rules! span {
    ($name:literal, $($store:tt)+) => {
        EnteredSpan {
            #[cfg(feature = "tracing")]
            _span: tracing::info_span!(target: "onlyonce", $name, store = $($store)+).entered(),
        }
    };
}

/// What is told about one store.
pub(crate) struct Events {
    /// The store's directory.
    #[cfg(any(feature = "tracing", feature = "metrics"))]
    store: Arc<str>,
}

/// How much an event matters to a person.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Weight {
    /// What calls do all day: `DEBUG`.
    Routine,
    /// What a person looks for when a key is asked about: `INFO`.
    Notable,
    /// What a person may have to do something about: `WARN`.
    Alarming,
}

/// What a decided call counts as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tally {
    /// A claim, by its answer.
    Claim,
    /// A mark, or an outcome recorded without a claim, by its answer.
    Mark,
    /// An ending that was carried out, by its kind.
    Ending,
    /// The decision of a claimant or an operator that was carried out, by its kind.
    Decision,
    /// An owner's call that came too late.
    Lost,
    /// None of these.
    Nothing,
}

/// A call on a key that was decided.
pub(crate) struct DecidedCall<'a> {
    pub(crate) key: &'a dyn Display,
    /// The id of the namespace that the key lies in.
    pub(crate) namespace: Option<u64>,
    pub(crate) call: &'static str,
    pub(crate) answer: &'static str,
    pub(crate) weight: Weight,
    pub(crate) tally: Tally,
    /// Of the attempt that was granted, or that the answer is about.
    pub(crate) token: Option<u64>,
    pub(crate) attempt: Option<u32>,
    /// The label of that attempt's owner.
    pub(crate) owner: Option<&'a str>,
}

/// What an open found.
pub(crate) struct Opened<'a> {
    pub(crate) was_clean: bool,
    pub(crate) records_read: u64,
    pub(crate) records_resynced: u64,
    /// The torn tail that was cut: bytes, file and offset.
    pub(crate) cut: Option<(u64, &'a Path, u64)>,
    pub(crate) nanos: u64,
}

/// Numbers that go up and down.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Gauges {
    pub(crate) in_progress: u64,
    pub(crate) interrupted: u64,
    pub(crate) held: u64,
    pub(crate) detached: u64,
    pub(crate) delayed: u64,
    pub(crate) waiters: u64,
    pub(crate) segments: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) memory_entries: u64,
    pub(crate) table_entries: u64,
    pub(crate) buffered_bytes: u64,
}

impl Events {
    pub(crate) fn of(dir: &Path) -> Self {
        #[cfg(feature = "metrics")]
        describe();
        Events {
            #[cfg(any(feature = "tracing", feature = "metrics"))]
            store: dir.display().to_string().into(),
        }
    }

    /// The span of an open, with everything that the open does.
    pub(crate) fn opening(dir: &Path) -> EnteredSpan {
        span!("open", %dir.display())
    }

    /// The span of a repair.
    pub(crate) fn repairing(dir: &Path) -> EnteredSpan {
        span!("repair", %dir.display())
    }

    pub(crate) fn repaired(dir: &Path, is_repaired: bool, is_loss: bool) {
        #[cfg(feature = "tracing")]
        tracing::event!(
            target: "onlyonce",
            tracing::Level::WARN,
            store = %dir.display(),
            is_repaired,
            is_loss,
            "a repair ended"
        );
    }

    pub(crate) fn closing(&self) -> EnteredSpan {
        span!("close", &*self.store)
    }

    pub(crate) fn checkpointing(&self) -> EnteredSpan {
        span!("checkpoint", &*self.store)
    }

    pub(crate) fn compacting(&self) -> EnteredSpan {
        span!("compact", &*self.store)
    }

    pub(crate) fn opened(&self, found: &Opened<'_>) {
        let Opened { was_clean, records_read, records_resynced, cut, nanos } = *found;
        if let Some((bytes, path, offset)) = cut {
            event!(
                WARN,
                self,
                bytes,
                file = %path.display(),
                offset,
                "cut off an unfinished write, which was never acknowledged as durable"
            );
        }
        event!(INFO, self, was_clean, records_read, records_resynced, duration = ?Duration::from_nanos(nanos), "opened");
        self.set(&POISONED, None, 0);
        self.set(&FULL, None, 0);
    }

    /// An open was refused.
    pub(crate) fn refused(dir: &Path, error: &Error) {
        #[cfg(feature = "tracing")]
        tracing::event!(
            target: "onlyonce",
            tracing::Level::ERROR,
            store = %dir.display(),
            kind = ?error.kind(),
            %error,
            "the open was refused"
        );
    }

    /// A call on a key was decided. Whether a crash can undo it is not known yet.
    pub(crate) fn decided(&self, decided: &DecidedCall<'_>) {
        let DecidedCall { key, namespace, call, answer, weight, tally, token, attempt, owner } =
            *decided;
        match weight {
            Weight::Routine => {
                event!(DEBUG, self, %key, namespace, call, answer, token, attempt, owner, "{call}: {answer}");
            }
            Weight::Notable => {
                event!(INFO, self, %key, namespace, call, answer, token, attempt, owner, "{call}: {answer}");
            }
            Weight::Alarming => {
                event!(WARN, self, %key, namespace, call, answer, token, attempt, owner, "{call}: {answer}");
            }
        }
        match tally {
            Tally::Claim => self.count(&CLAIMS, Some(("answer", answer)), 1),
            Tally::Mark => self.count(&MARKS, Some(("answer", answer)), 1),
            Tally::Ending => self.count(&ENDINGS, Some(("kind", call)), 1),
            Tally::Decision => self.count(&DECISIONS, Some(("kind", call)), 1),
            Tally::Lost => self.count(&LOST, None, 1),
            Tally::Nothing => {}
        }
    }

    /// A lease was found to have passed: the attempt is interrupted from now on.
    #[inline]
    pub(crate) fn lapsed(&self, key: &dyn Display, namespace: Option<u64>) {
        event!(WARN, self, %key, namespace, "a lease has passed: the attempt is interrupted");
        self.count(&LAPSED, None, 1);
    }

    /// A claim is over without a record of its end: the key reads interrupted.
    #[inline]
    pub(crate) fn left(&self, key: &dyn Display, namespace: Option<u64>, token: u64) {
        event!(WARN, self, %key, namespace, token, "a claim is over without a record of its end: the key reads interrupted");
        self.count(&ENDINGS, Some(("kind", "drop")), 1);
    }

    /// A claimant dropped its question.
    #[inline]
    pub(crate) fn unasked(&self, key: &dyn Display, namespace: Option<u64>) {
        event!(DEBUG, self, %key, namespace, "a claimant left without deciding about an interruption");
    }

    /// The first failure, after which nothing is written.
    pub(crate) fn poisoned(&self, cause: &Error) {
        event!(
            ERROR,
            self,
            kind = ?cause.kind(),
            error = %cause.in_full(),
            "poisoned: nothing is written until the store is reopened"
        );
        self.set(&POISONED, None, 1);
    }

    /// There is no space for claims. Told once, until there is space again.
    pub(crate) fn full(&self, error: &Error) {
        event!(WARN, self, error = %error.in_full(), "the disk is full: claims are refused");
        self.set(&FULL, None, 1);
    }

    pub(crate) fn has_space_again(&self) {
        event!(INFO, self, "there is space again: claims are granted");
        self.set(&FULL, None, 0);
    }

    pub(crate) fn prepared(&self, bytes: u64) {
        event!(DEBUG, self, bytes, "prepared a segment");
    }

    /// A segment is full and durable; the log continues in the next.
    pub(crate) fn rolled(&self, segment: u32) {
        event!(DEBUG, self, segment, "a segment is full");
    }

    pub(crate) fn reclaimed(&self, segment: u32, bytes: u64) {
        event!(INFO, self, segment, bytes, "reclaimed a segment");
        self.count(&RECLAIMED, None, bytes);
    }

    /// Keys in memory were sealed into a table.
    pub(crate) fn checkpointed(&self, nanos: u64) {
        event!(INFO, self, duration = ?Duration::from_nanos(nanos), "made a checkpoint");
        self.count(&CHECKPOINTS, None, 1);
    }

    pub(crate) fn merged(&self, tables: usize, slots: u64) {
        event!(INFO, self, tables, slots, "merged tables of the index");
        self.count(&MERGES, None, 1);
    }

    /// A table was made again from the log.
    pub(crate) fn mended(&self, error: &Error) {
        event!(WARN, self, error = %error.in_full(), "made a damaged table of the index again");
    }

    /// A piece of background work failed, and is retried. `is_damage`: it won't succeed until the damage is repaired.
    pub(crate) fn background_failed(&self, error: &Error, is_damage: bool) {
        match is_damage {
            true => event!(
                ERROR,
                self,
                error = %error.in_full(),
                "background work is skipped because of damage: verify the store"
            ),
            false => event!(
                WARN,
                self,
                error = %error.in_full(),
                "background work failed, and is retried"
            ),
        }
        self.count(&BACKGROUND_ERRORS, None, 1);
    }

    /// The device was asked to make bytes durable, and returned.
    #[inline]
    pub(crate) fn synced(&self, nanos: u64) {
        match nanos >= limits::SLOW_SYNC_MILLIS * 1_000_000 {
            true => event!(WARN, self, duration = ?Duration::from_nanos(nanos), "a slow sync"),
            false => event!(TRACE, self, duration = ?Duration::from_nanos(nanos), "synced"),
        }
        self.count(&SYNCS, None, 1);
        #[cfg(feature = "metrics")]
        metrics::histogram!(SYNC_SECONDS.name, self.labels(None)).record(nanos as f64 / 1e9);
    }

    #[inline]
    pub(crate) fn written(&self, bytes: u64) {
        self.count(&WRITTEN, None, bytes);
    }

    pub(crate) fn draining(&self) {
        event!(INFO, self, "draining: no new claims are taken");
    }

    /// A claim that a close interrupted.
    pub(crate) fn interrupted_by_close(
        &self,
        key: &dyn Display,
        namespace: Option<u64>,
        token: u64,
    ) {
        event!(WARN, self, %key, namespace, token, "the close left a claim interrupted");
        self.count(&ENDINGS, Some(("kind", "close")), 1);
    }

    /// The close ended, in whichever way. A closed store has nothing to measure.
    pub(crate) fn closed(&self, interrupted: usize, error: Option<&Error>) {
        match error {
            None => event!(INFO, self, interrupted, "closed"),
            Some(e) => {
                event!(ERROR, self, interrupted, error = %e.in_full(), "closed, but not cleanly")
            }
        }
        self.measured(&Gauges::default());
        self.set(&FULL, None, 0);
    }

    pub(crate) fn measured(&self, gauges: &Gauges) {
        for (state, keys) in [
            ("in_progress", gauges.in_progress),
            ("interrupted", gauges.interrupted),
            ("held", gauges.held),
            ("detached", gauges.detached),
            ("delayed", gauges.delayed),
        ] {
            self.set(&OPEN_KEYS, Some(("state", state)), keys);
        }
        self.set(&WAITERS, None, gauges.waiters);
        self.set(&SEGMENTS, None, gauges.segments);
        self.set(&DISK_BYTES, None, gauges.disk_bytes);
        self.set(&INDEX_ENTRIES, Some(("place", "memory")), gauges.memory_entries);
        self.set(&INDEX_ENTRIES, Some(("place", "tables")), gauges.table_entries);
        self.set(&BUFFERED_BYTES, None, gauges.buffered_bytes);
    }

    #[inline]
    fn count(&self, metric: &Metric, label: Option<(&'static str, &'static str)>, by: u64) {
        #[cfg(feature = "metrics")]
        metrics::counter!(metric.name, self.labels(label)).increment(by);
    }

    #[inline]
    fn set(&self, metric: &Metric, label: Option<(&'static str, &'static str)>, to: u64) {
        #[cfg(feature = "metrics")]
        metrics::gauge!(metric.name, self.labels(label)).set(to as f64);
    }

    #[cfg(feature = "metrics")]
    fn labels(&self, own: Option<(&'static str, &'static str)>) -> Vec<metrics::Label> {
        let store = metrics::Label::new("store", Arc::clone(&self.store));
        let own = own.map(|(name, value)| metrics::Label::from_static_parts(name, value));
        std::iter::once(store).chain(own).collect()
    }
}

/// A metric, as docs/operations.md lists it.
struct Metric {
    name: &'static str,
    kind: MetricKind,
    unit: MetricUnit,
    meaning: &'static str,
}

#[derive(Clone, Copy)]
enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Copy)]
enum MetricUnit {
    Count,
    Bytes,
    Seconds,
}

impl Metric {
    const fn new(
        name: &'static str,
        kind: MetricKind,
        unit: MetricUnit,
        meaning: &'static str,
    ) -> Self {
        Metric { name, kind, unit, meaning }
    }
}

const CLAIMS: Metric = Metric::new(
    "onlyonce_claims_total",
    MetricKind::Counter,
    MetricUnit::Count,
    "claims, by their answer",
);
const MARKS: Metric = Metric::new(
    "onlyonce_marks_total",
    MetricKind::Counter,
    MetricUnit::Count,
    "marks, and outcomes recorded without a claim, by their answer",
);
const ENDINGS: Metric = Metric::new(
    "onlyonce_endings_total",
    MetricKind::Counter,
    MetricUnit::Count,
    "claims that ended, by the kind of the ending",
);
const DECISIONS: Metric = Metric::new(
    "onlyonce_decisions_total",
    MetricKind::Counter,
    MetricUnit::Count,
    "decisions of claimants and operators, by their kind",
);
const LOST: Metric = Metric::new(
    "onlyonce_claims_lost_total",
    MetricKind::Counter,
    MetricUnit::Count,
    "calls that named an attempt which was no longer the key's current one",
);
const LAPSED: Metric = Metric::new(
    "onlyonce_leases_lapsed_total",
    MetricKind::Counter,
    MetricUnit::Count,
    "leases that were found to have passed",
);
const SYNCS: Metric =
    Metric::new("onlyonce_syncs_total", MetricKind::Counter, MetricUnit::Count, "syncs of the log");
const SYNC_SECONDS: Metric = Metric::new(
    "onlyonce_sync_seconds",
    MetricKind::Histogram,
    MetricUnit::Seconds,
    "duration of each sync of the log",
);
const WRITTEN: Metric = Metric::new(
    "onlyonce_written_bytes_total",
    MetricKind::Counter,
    MetricUnit::Bytes,
    "bytes appended to the log",
);
const RECLAIMED: Metric = Metric::new(
    "onlyonce_reclaimed_bytes_total",
    MetricKind::Counter,
    MetricUnit::Bytes,
    "bytes of reclaimed segments",
);
const CHECKPOINTS: Metric = Metric::new(
    "onlyonce_checkpoints_total",
    MetricKind::Counter,
    MetricUnit::Count,
    "checkpoints",
);
const MERGES: Metric = Metric::new(
    "onlyonce_merges_total",
    MetricKind::Counter,
    MetricUnit::Count,
    "merges of tables of the index",
);
const BACKGROUND_ERRORS: Metric = Metric::new(
    "onlyonce_background_errors_total",
    MetricKind::Counter,
    MetricUnit::Count,
    "failures of background work",
);
const OPEN_KEYS: Metric = Metric::new(
    "onlyonce_open_keys",
    MetricKind::Gauge,
    MetricUnit::Count,
    "open keys, by their state",
);
const WAITERS: Metric = Metric::new(
    "onlyonce_waiters",
    MetricKind::Gauge,
    MetricUnit::Count,
    "callers that wait for a key",
);
const SEGMENTS: Metric =
    Metric::new("onlyonce_segments", MetricKind::Gauge, MetricUnit::Count, "segments of the log");
const DISK_BYTES: Metric = Metric::new(
    "onlyonce_disk_bytes",
    MetricKind::Gauge,
    MetricUnit::Bytes,
    "bytes that the store's files use",
);
const INDEX_ENTRIES: Metric = Metric::new(
    "onlyonce_index_entries",
    MetricKind::Gauge,
    MetricUnit::Count,
    "entries of the index, by where they are",
);
const BUFFERED_BYTES: Metric = Metric::new(
    "onlyonce_buffered_bytes",
    MetricKind::Gauge,
    MetricUnit::Bytes,
    "bytes that were placed and not handed to the system yet",
);
const POISONED: Metric = Metric::new(
    "onlyonce_poisoned",
    MetricKind::Gauge,
    MetricUnit::Count,
    "1 after a failed write or sync, until the store is reopened",
);
const FULL: Metric = Metric::new(
    "onlyonce_full",
    MetricKind::Gauge,
    MetricUnit::Count,
    "1 while claims are refused because there is no space",
);

const METRICS: &[Metric] = &[
    CLAIMS,
    MARKS,
    ENDINGS,
    DECISIONS,
    LOST,
    LAPSED,
    SYNCS,
    SYNC_SECONDS,
    WRITTEN,
    RECLAIMED,
    CHECKPOINTS,
    MERGES,
    BACKGROUND_ERRORS,
    OPEN_KEYS,
    WAITERS,
    SEGMENTS,
    DISK_BYTES,
    INDEX_ENTRIES,
    BUFFERED_BYTES,
    POISONED,
    FULL,
];

#[cfg(feature = "metrics")]
fn describe() {
    for Metric { name, kind, unit, meaning } in METRICS {
        let (name, meaning) = (*name, *meaning);
        let unit = match unit {
            MetricUnit::Count => metrics::Unit::Count,
            MetricUnit::Bytes => metrics::Unit::Bytes,
            MetricUnit::Seconds => metrics::Unit::Seconds,
        };
        match kind {
            MetricKind::Counter => metrics::describe_counter!(name, unit, meaning),
            MetricKind::Gauge => metrics::describe_gauge!(name, unit, meaning),
            MetricKind::Histogram => metrics::describe_histogram!(name, unit, meaning),
        }
    }
}
