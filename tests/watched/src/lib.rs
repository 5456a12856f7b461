//! Observers that keep what they are told: a subscriber for `tracing`, and a recorder for `metrics`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the seams are the library's own"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps each event as one line, `LEVEL message field=value…`, and each span as `SPAN name field=value…`.
#[derive(Clone, Default)]
pub struct Lines {
    told: Arc<Mutex<Vec<String>>>,
    /// How many of them were taken.
    taken: Arc<Mutex<usize>>,
}

impl Lines {
    /// All lines so far.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        locked(&self.told).clone()
    }

    /// The lines since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        let (told, mut taken) = (locked(&self.told), locked(&self.taken));
        let new = told.iter().skip(*taken).cloned().collect();
        *taken = told.len();
        new
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        assert!(written.is_ok());
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "onlyonce"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut line = Line::default();
        span.record(&mut line);
        locked(&self.told).push(format!("SPAN {}{}", span.metadata().name(), line.fields));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = event.metadata().level();
        locked(&self.told).push(format!("{level} {}{}", line.message, line.fields));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A metric as it was described: its kind, its unit and its meaning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Described {
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// As `metrics` names it.
    pub unit: String,
    /// The description.
    pub meaning: String,
}

/// Keeps what was described and what was recorded.
#[derive(Clone, Default)]
pub struct Numbers {
    described: Arc<Mutex<BTreeMap<String, Described>>>,
    recorded: Arc<Mutex<BTreeMap<String, Arc<Cell>>>>,
}

/// One metric with its labels.
struct Cell {
    kind: &'static str,
    name: String,
    labels: BTreeSet<String>,
    /// A counter's or a gauge's value, or the number of a histogram's values.
    value: AtomicU64,
}

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.value.fetch_add(value, Ordering::SeqCst);
    }

    fn absolute(&self, value: u64) {
        self.value.store(value, Ordering::SeqCst);
    }
}

impl GaugeFn for Cell {
    fn increment(&self, _: f64) {
        unreachable!("gauges are set");
    }

    fn decrement(&self, _: f64) {
        unreachable!("gauges are set");
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and whole")]
    fn set(&self, value: f64) {
        self.value.store(value as u64, Ordering::SeqCst);
    }
}

impl HistogramFn for Cell {
    fn record(&self, _: f64) {
        self.value.fetch_add(1, Ordering::SeqCst);
    }
}

impl Numbers {
    /// The metrics that were described.
    #[must_use]
    pub fn described(&self) -> BTreeMap<String, Described> {
        locked(&self.described).clone()
    }

    /// The metrics that were recorded, with their kinds and the names of their labels.
    #[must_use]
    pub fn recorded(&self) -> BTreeSet<(String, &'static str, BTreeSet<String>)> {
        let cells = locked(&self.recorded);
        cells.values().map(|cell| (cell.name.clone(), cell.kind, cell.labels.clone())).collect()
    }

    /// The value of `name`, or of `name{label=value}`; the label of the store is left out.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<u64> {
        locked(&self.recorded).get(name).map(|cell| cell.value.load(Ordering::SeqCst))
    }

    fn cell(&self, kind: &'static str, key: &Key) -> Arc<Cell> {
        let own: Vec<_> = key.labels().filter(|label| label.key() != "store").collect();
        let full = match own.as_slice() {
            [] => key.name().to_owned(),
            [label] => format!("{}{{{}={}}}", key.name(), label.key(), label.value()),
            more => unreachable!("{more:?}"),
        };
        let cell = || Cell {
            kind,
            name: key.name().to_owned(),
            labels: key.labels().map(|label| label.key().to_owned()).collect(),
            value: AtomicU64::new(0),
        };
        Arc::clone(locked(&self.recorded).entry(full).or_insert_with(|| Arc::new(cell())))
    }

    fn describe(&self, kind: &'static str, key: &KeyName, unit: Option<Unit>, text: &SharedString) {
        let unit = unit.map(|unit| unit.as_str().to_owned()).unwrap_or_default();
        let described = Described { kind, unit, meaning: text.to_string() };
        locked(&self.described).insert(key.as_str().to_owned(), described);
    }
}

impl Recorder for Numbers {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe("counter", &key, unit, &text);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe("gauge", &key, unit, &text);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe("histogram", &key, unit, &text);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell("counter", key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell("gauge", key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.cell("histogram", key))
    }
}
