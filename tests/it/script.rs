//! Tiny workloads as data, and the ledger that says what may be left of them.
//!
//! Each operation that changes a key is one record of one log, so a crash leaves the state after some prefix of them: at
//! least as long as the last acknowledgement at the level that the crash respects, at most everything that was begun. The
//! ledger is outside the store and knows nothing of its files.

use onlyonce::admin::Health;
use onlyonce::testing::Sim;
use onlyonce::{
    Claim, ClaimGuard, Durability, Error, ErrorKind, Interrupted, Key, OnDrop, OnInterrupted,
    Operation, Outcome, Resolution, State, Store, StoreBuilder,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use Durability::{Flush, Lazy, Sync};

/// One call, or an event around the store.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// With the levels of the claim and of its outcome.
    Claim(String, Durability, Durability),
    ClaimHold(String),
    Complete(String, String),
    Fail(String, String),
    Abort(String),
    /// The owner says how far it has come.
    Progress(String, String),
    /// Hands the claim over, with a lease of so many hours.
    Detach(String, u64),
    /// A guard by the ticket of that key.
    Attach(String),
    /// The attached owner's lease lasts so many hours from now.
    RenewDetached(String, u64),
    /// The owner holds its key.
    Park(String),
    /// An operator interrupts the claim, whose owner is not notified.
    Revoke(String),
    /// A claimant is asked, takes more time, and leaves without a decision.
    Ask(String),
    /// An outcome without a claim.
    Record(String, String, Durability),
    /// Calls that are made together.
    Batch(Vec<Op>),
    Drop(String),
    DropAsAbort(String),
    TakeOver(String, Durability),
    NotApplied(String, Durability),
    Hold(String),
    Renew(String),
    /// A lease passes; its owner keeps the guard and is not notified.
    Lapse(String),
    /// The owner whose lease passed ends its claim after a take-over.
    Stale(String),
    ResolveRetry(String),
    Resolve(String, String),
    Forget(String),
    Mark(String, Durability),
    /// A mark that is kept for an hour, and its key remembered for ten more. One of `remembered`.
    Remember(String, Durability),
    /// This many hours pass.
    Hours(u64),
    Sync,
    Step,
    /// The background does all its work, twice with a pause in between.
    Rest,
    /// Moves live records, up to this many bytes.
    Compact(u64),
    Rebuild,
    MergeIndex,
    /// Reads everything, and finds it whole.
    Verify,
    /// One byte of each table rots; the call that meets it has it mended.
    Rot,
    /// Asks for every possible key.
    Look,
    Close,
    /// Drops the store, guards first, and opens it again.
    Reopen,
    Kill,
    PowerLoss,
}

/// The state in which a later process finds a key.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Found {
    Interrupted(u32),
    /// The same, with what it saved of its progress.
    Saved(u32, Vec<u8>),
    Detached(u32),
    Held(u32),
    Aborted(u32),
    Completed(u32, Vec<u8>),
    Failed(u32, Vec<u8>),
    /// It is only remembered.
    Expired,
}

pub(crate) type Keys = BTreeMap<String, Found>;

/// The model of one key.
#[derive(Clone, Debug, Hash)]
struct Model {
    found: Found,
    has_open_fate: bool,
    /// The hours in which it expires and in which it is remembered no longer.
    passes: Option<(u64, u64)>,
    /// The hour in which the lease of a detached claim has passed.
    lease_until: Option<u64>,
}

impl Model {
    fn at(&self, hour: u64) -> Option<Found> {
        match self.passes {
            Some((_, until)) if until <= hour => None,
            Some((gone, _)) if gone <= hour => Some(Found::Expired),
            _ if self.lease_until.is_some_and(|until| hour < until) => {
                Some(Found::Detached(self.found.attempt()))
            }
            _ => Some(self.found.clone()),
        }
    }
}

type Models = BTreeMap<String, Model>;

/// The names that `Op::Remember` takes. No walk shows a remembered key, so each is looked up.
pub(crate) fn remembered() -> impl Iterator<Item = String> {
    (0..10).map(|n| format!("r{n}"))
}

/// The operations begun and acknowledged, and their levels.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Ledger {
    model: Models,
    /// `states[n]`: after the first `n` changes.
    states: Vec<Models>,
    /// Hours that have passed. Records of even hours expire in odd ones, and nothing is checked in those: minutes don't
    /// matter.
    pub(crate) hour: u64,
    /// Tables were damaged on purpose.
    pub(crate) has_rotted: bool,
    /// This many changes were acknowledged at `Sync`, and at `Flush` or better.
    synced: usize,
    flushed: usize,
    /// The greatest token that any call has shown.
    pub(crate) token: u64,
}

/// A failed call, and the fate of its guard.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) path: Option<PathBuf>,
    /// The guard was returned, and the world holds it again.
    pub(crate) gave_back: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::from_ref(&error)
    }
}

impl Failed {
    fn from_ref(error: &Error) -> Self {
        Failed {
            kind: error.kind(),
            message: error.to_string(),
            path: error.path().map(ToOwned::to_owned),
            gave_back: false,
        }
    }
}

type Result<T, E = Failed> = std::result::Result<T, E>;

/// The bytes that survive a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Loss {
    /// Only the process ends: bytes written to the system stay.
    Kill,
    Power,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Ledger {
            model: Models::new(),
            states: vec![Models::new()],
            hour: 0,
            has_rotted: false,
            synced: 0,
            flushed: 0,
            token: 0,
        }
    }

    fn begin(&mut self, op: &Op) {
        let before = self.model.clone();
        if self.change(op) {
            self.states.push(self.model.clone());
        } else {
            self.model = before;
        }
    }

    /// Applies the operation to the model; returns whether it changes anything.
    fn change(&mut self, op: &Op) -> bool {
        let attempt =
            |model: &Models, key: &String| model.get(key).map_or(0, |model| model.found.attempt());
        let (key, found, keeps_fate) = match op {
            Op::Claim(key, ..) | Op::ClaimHold(key) => {
                (key, Found::Interrupted(attempt(&self.model, key) + 1), false)
            }
            Op::NotApplied(key, _) => {
                (key, Found::Interrupted(attempt(&self.model, key) + 1), false)
            }
            Op::TakeOver(key, _) => {
                let next = attempt(&self.model, key) + 1;
                let before = self.model.get_mut(key).unwrap();
                before.has_open_fate = true;
                // What was saved is shown until the next attempt saves something.
                let found = match &before.found {
                    Found::Saved(_, value) => Found::Saved(next, value.clone()),
                    _ => Found::Interrupted(next),
                };
                (key, found, true)
            }
            Op::Complete(key, value) => {
                (key, Found::Completed(attempt(&self.model, key), value.clone().into()), false)
            }
            Op::Fail(key, value) => {
                (key, Found::Failed(attempt(&self.model, key), value.clone().into()), false)
            }
            Op::Abort(key) | Op::DropAsAbort(key) => {
                let n = attempt(&self.model, key);
                let open = self.model.get(key).is_some_and(|model| model.has_open_fate);
                (key, if open { Found::Interrupted(n) } else { Found::Aborted(n) }, true)
            }
            Op::Hold(key) | Op::Park(key) => (key, Found::Held(attempt(&self.model, key)), true),
            Op::Progress(key, value) => {
                (key, Found::Saved(attempt(&self.model, key), value.clone().into()), true)
            }
            Op::Detach(key, _) | Op::RenewDetached(key, _) | Op::Revoke(key) => {
                (key, self.model[key].found.clone(), true)
            }
            Op::Record(key, value, _) => {
                (key, Found::Completed(attempt(&self.model, key) + 1, value.clone().into()), false)
            }
            Op::ResolveRetry(key) => (key, Found::Aborted(attempt(&self.model, key)), false),
            Op::Resolve(key, value) => {
                (key, Found::Completed(attempt(&self.model, key), value.clone().into()), false)
            }
            Op::Mark(key, _) | Op::Remember(key, _) => {
                (key, Found::Completed(attempt(&self.model, key) + 1, Vec::new()), false)
            }
            Op::Forget(key) => return self.model.remove(key).is_some(),
            _ => return false,
        };
        let has_open_fate =
            keeps_fate && self.model.get(key).is_some_and(|model| model.has_open_fate);
        let passes = matches!(op, Op::Remember(..)).then_some((self.hour + 1, self.hour + 11));
        // The lease is counted from now, and nothing happens within the hour.
        let lease_until = match op {
            Op::Detach(_, hours) | Op::RenewDetached(_, hours) => Some(self.hour + hours),
            _ => None,
        };
        self.model.insert(key.clone(), Model { found, has_open_fate, passes, lease_until });
        true
    }

    fn pass(&mut self, hours: u64) {
        assert!(hours % 2 == 0);
        self.hour += hours;
        self.model.retain(|_, model| model.at(self.hour).is_some());
    }

    /// The expected keys after the first `n` changes.
    fn keys(&self, n: usize) -> Keys {
        let found = self.states[n].iter();
        found.filter_map(|(key, model)| Some((key.clone(), model.at(self.hour)?))).collect()
    }

    /// The operation was begun, and acknowledged at `level` if at all.
    pub(crate) fn did(&mut self, op: &Op, level: Option<Durability>) {
        self.begin(op);
        if let Some(level) = level {
            self.acknowledged(level);
        }
    }

    fn acknowledged(&mut self, level: Durability) {
        let all = self.states.len() - 1;
        if level >= Flush {
            self.flushed = all;
        }
        if level >= Sync {
            self.synced = all;
        }
    }

    /// The last operation was refused before anything was written.
    fn refused(&mut self, op: &Op, before: usize, model: &Ledger) {
        assert!(self.states.len() - before <= 1 || matches!(op, Op::Batch(_)), "{op:?}");
        self.states.truncate(before);
        self.model = model.model.clone();
    }

    fn crashed(&mut self, loss: Loss) {
        if loss == Loss::Power {
            self.flushed = self.synced;
        }
    }

    /// The present keys are what later crashes may leave.
    fn settle(&mut self, keys: &Keys) {
        let n = self.position(keys, Loss::Power).unwrap();
        self.states = vec![self.states[n].clone()];
        (self.synced, self.flushed) = (0, 0);
        let open: Vec<_> = self.model.iter().filter(|(_, model)| model.has_open_fate).collect();
        let open: Vec<_> = open.into_iter().map(|(key, _)| key.clone()).collect();
        self.model = self.states[0].clone();
        self.model.retain(|_, model| model.at(self.hour).is_some());
        for (key, model) in &mut self.model {
            model.has_open_fate = open.contains(key);
        }
    }

    /// Which prefix `keys` is, if it is one that the loss allows.
    pub(crate) fn position(&self, keys: &Keys, loss: Loss) -> Option<usize> {
        let least = if loss == Loss::Kill { self.flushed } else { self.synced };
        self.position_from(keys, least)
    }

    /// Like `position`, for a store that must hold at least this many changes.
    pub(crate) fn position_from(&self, keys: &Keys, least: usize) -> Option<usize> {
        (least..self.states.len()).find(|n| self.keys(*n) == *keys)
    }

    /// The number of changes begun.
    pub(crate) fn len(&self) -> usize {
        self.states.len() - 1
    }

    pub(crate) fn describe(&self, loss: Loss) -> String {
        let least = if loss == Loss::Kill { self.flushed } else { self.synced };
        let (from, to) = (self.keys(least), self.last());
        format!("between {least} {from:?}\nand {} {to:?}", self.states.len() - 1)
    }

    pub(crate) fn saw(&mut self, token: u64) {
        self.token = self.token.max(token);
    }

    /// A grant: its token is greater than any before.
    fn granted(&mut self, guard: &ClaimGuard) {
        let token = guard.token().get();
        assert!(token > self.token, "token {token} after {}", self.token);
        self.token = token;
    }

    /// Keys whose newest change was acknowledged at `Sync`: nothing can take it back.
    pub(crate) fn settled(&self) -> Keys {
        let mut keys = self.keys(self.synced);
        for later in self.synced..self.states.len() {
            let later = self.keys(later);
            keys.retain(|key, found| later.get(key) == Some(found));
        }
        keys
    }

    /// The state after everything that was begun.
    pub(crate) fn last(&self) -> Keys {
        self.keys(self.states.len() - 1)
    }

    /// Every key ever used.
    fn ever(&self) -> BTreeSet<&String> {
        self.states.iter().flat_map(BTreeMap::keys).collect()
    }
}

impl Found {
    fn attempt(&self) -> u32 {
        match self {
            Found::Interrupted(n) | Found::Detached(n) | Found::Held(n) | Found::Aborted(n) => *n,
            Found::Completed(n, _) | Found::Failed(n, _) | Found::Saved(n, _) => *n,
            Found::Expired => 0,
        }
    }

    /// As `get` reports it; the next process finds a claim in progress interrupted.
    pub(crate) fn of(state: &State) -> Self {
        match state {
            State::InProgress(a) if a.is_detached() => Found::Detached(a.number()),
            State::InProgress(a) | State::Interrupted(a) => match a.progress() {
                Some(saved) => Found::Saved(a.number(), saved.to_vec()),
                None => Found::Interrupted(a.number()),
            },
            State::Held(a) => Found::Held(a.number()),
            State::Aborted(a) => Found::Aborted(a.number()),
            State::Completed(r) => Found::Completed(r.attempt(), r.result().to_vec()),
            State::Failed(r) => Found::Failed(r.attempt(), r.result().to_vec()),
            State::Expired(_) => Found::Expired,
            other => panic!("{other:?}"),
        }
    }
}

/// Flips a byte in the first buckets of each table.
pub(crate) fn rot_tables(sim: &Sim) {
    for (path, len) in sim.files() {
        if path.extension().is_some_and(|end| end == "tab") {
            for at in (128 + 9..len.min(128 + 64 * 3)).step_by(64) {
                sim.flip_byte(&path, at, 4).unwrap();
            }
        }
    }
}

/// All keys of a store, by `iter`, each one by `get` too, and those that are only remembered. The walk that meets a
/// damaged table reports it, and has it mended for the next.
pub(crate) fn look(store: &Store) -> Result<Keys, Error> {
    for _ in 0..20 {
        match look_once(store) {
            Err(e) if is_of_index(e.path()) => {}
            looked => return looked,
        }
    }
    look_once(store)
}

fn look_once(store: &Store) -> Result<Keys, Error> {
    let mut keys = Keys::new();
    for entry in store.iter() {
        let (key, state) = entry?;
        let got = store.get(&key)?.unwrap_or_else(|| panic!("get does not find {key}"));
        assert_eq!(Found::of(&got), Found::of(&state));
        assert!(keys.insert(name(&key), Found::of(&state)).is_none(), "{key} twice");
    }
    for key in remembered() {
        let found = store.get(&key)?.as_ref().map(Found::of);
        if found == Some(Found::Expired) {
            assert!(matches!(store.claim(&key)?, Claim::Expired(_)), "{key}");
            assert!(keys.insert(key, Found::Expired).is_none(), "an expired key in a walk");
        } else {
            assert_eq!(found.as_ref(), keys.get(&key), "{key} is not what the walk shows");
        }
    }
    Ok(keys)
}

/// Damage to the index, which can't be mended where nothing can be written.
pub(crate) fn is_of_index(path: Option<&Path>) -> bool {
    path.is_some_and(|path| path.extension().is_some_and(|end| end == "tab"))
}

/// A failing store still answers for what is durable, and returns Indeterminate for the rest.
pub(crate) fn check_answers(store: &Store, ledger: &Ledger, context: &str) {
    for (key, found) in ledger.settled() {
        let state = match store.get(full(&key)) {
            Err(e) if is_of_index(e.path()) => continue,
            // The interruption of a claim without a living owner is a record of its own, and may be in flight.
            Err(e)
                if e.kind() == ErrorKind::Indeterminate
                    && matches!(found, Found::Interrupted(_) | Found::Saved(..)) =>
            {
                continue;
            }
            state => state.unwrap_or_else(|e| panic!("{context}: {key}: {e:?}")),
        };
        let state = state.unwrap_or_else(|| panic!("{context}: {key} is absent"));
        assert_eq!(Found::of(&state), found, "{context}: {key}");
    }
    for entry in store.iter() {
        if let Err(e) = entry {
            if is_of_index(e.path()) {
                continue;
            }
            assert_eq!(e.kind(), ErrorKind::Indeterminate, "{context}: {e:?}");
        }
    }
}

/// The greatest token of the attempts and results in the store.
pub(crate) fn greatest_token(store: &Store) -> u64 {
    let token = |entry: Result<(Key<'static>, State), Error>| match entry.unwrap().1 {
        State::InProgress(a) | State::Interrupted(a) | State::Held(a) | State::Aborted(a) => {
            a.token().get()
        }
        State::Completed(r) | State::Failed(r) => r.token().get(),
        other => panic!("{other:?}"),
    };
    store.iter().map(token).max().unwrap_or(0)
}

/// The smallest store possible: four pages a segment.
pub(crate) fn tiny() -> StoreBuilder {
    Store::builder().segment_bytes(16 << 10).result_bytes_max(256).index_memory_max(256)
}

/// `#` and a number name a key so long that four of them fill a segment.
fn full(name: &str) -> String {
    name.strip_prefix('#').map_or_else(|| name.to_owned(), |number| format!("{number:0>3900}"))
}

fn name(key: &Key<'_>) -> String {
    let full = key.to_string();
    if full.len() > 1000 { format!("#{}", full.trim_start_matches('0')) } else { full }
}

/// A store in use.
pub(crate) struct World<'s> {
    pub(crate) sim: &'s Sim,
    pub(crate) store: Option<Store>,
    /// With the level of the outcome.
    guards: BTreeMap<String, (ClaimGuard, Durability)>,
    stale: BTreeMap<String, ClaimGuard>,
    /// As their texts, which outlive every process.
    tickets: BTreeMap<String, String>,
    /// Power is lost at this change of the disk, counted from its last crash on.
    cut: Option<u64>,
    pub(crate) ledger: Ledger,
}

impl<'s> World<'s> {
    pub(crate) fn new(sim: &'s Sim) -> Self {
        World {
            sim,
            store: None,
            guards: BTreeMap::new(),
            stale: BTreeMap::new(),
            tickets: BTreeMap::new(),
            cut: None,
            ledger: Ledger::new(),
        }
    }

    /// Power is lost at change number `cut`, whatever crashes come before it.
    pub(crate) fn cut_power_at(&mut self, cut: u64) {
        self.cut = Some(cut);
        self.sim.cut_power_at(cut);
    }

    /// The machine boots with another disk, which has no cut.
    fn crash(&mut self, loss: Loss) {
        let changes = self.sim.changes();
        match loss {
            Loss::Kill => self.sim.kill(),
            Loss::Power => self.sim.power_loss(),
        }
        if let Some(cut) = self.cut {
            self.cut_power_at(cut.saturating_sub(changes));
        }
    }

    /// Opens the store and does `ops` until one fails, or power is lost.
    pub(crate) fn run(&mut self, ops: &[Op]) -> Result<()> {
        if self.store.is_none() {
            self.store = Some(self.sim.open_with(tiny())?);
        }
        for op in ops {
            self.run_one(op)?;
            if self.sim.power_is_cut() {
                break;
            }
        }
        Ok(())
    }

    /// Does one operation and keeps the ledger.
    pub(crate) fn run_one(&mut self, op: &Op) -> Result<()> {
        let before = self.ledger.clone();
        if let Op::Batch(items) = op {
            items.iter().for_each(|item| self.ledger.begin(item));
        }
        self.ledger.begin(op);
        match self.apply(op) {
            Ok(level) => {
                if let Some(level) = level {
                    self.ledger.acknowledged(level);
                }
                Ok(())
            }
            Err(e) => {
                // Only Indeterminate may have written anything.
                if e.kind != ErrorKind::Indeterminate {
                    let token = self.ledger.token;
                    self.ledger.refused(op, before.states.len(), &before);
                    self.ledger.token = token;
                }
                Err(e)
            }
        }
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Drops everything as a crash does: on a disk that no call reaches any more.
    pub(crate) fn forget(mut self) -> Ledger {
        self.guards.clear();
        self.stale.clear();
        self.store = None;
        self.ledger
    }

    /// Makes the call; returns the level at which it is acknowledged, `None` if there is nothing to acknowledge.
    fn apply(&mut self, op: &Op) -> Result<Option<Durability>> {
        let level = match op {
            Op::Claim(key, claim, outcome) => {
                let key_bytes = full(key);
                let op = Operation::new(&key_bytes).claim_durability(*claim).durability(*outcome);
                let op = op.lease(Duration::from_secs(30));
                let Claim::Acquired(guard) = self.store().claim(op)? else { panic!("{key}") };
                self.hold_guard(key, guard, *outcome);
                *claim
            }
            Op::ClaimHold(key) => {
                let op = Operation::new(key).on_interrupted(OnInterrupted::Hold);
                let Claim::Acquired(guard) = self.store().claim(op)? else { panic!("{key}") };
                self.hold_guard(key, guard, Sync);
                Sync
            }
            Op::Complete(key, value) => self.end(key, |guard| guard.complete(value))?,
            Op::Fail(key, value) => self.end(key, |guard| guard.fail(value))?,
            Op::Abort(key) => self.end(key, |guard| guard.abort("nothing happened"))?,
            Op::Progress(key, value) => {
                // Only claims at `Sync` save progress here.
                self.guards[key].0.save_progress(value)?;
                Sync
            }
            Op::Detach(key, hours) => {
                let (guard, level) = self.guards.remove(key).unwrap();
                match guard.detach(Duration::from_secs(3600 * hours)) {
                    Ok(ticket) => {
                        self.tickets.insert(key.clone(), ticket.to_string());
                        Sync
                    }
                    Err(e) => {
                        let mut failed = Failed::from_ref(&e);
                        if let Some(guard) = e.into_claim() {
                            self.guards.insert(key.clone(), (guard, level));
                            failed.gave_back = true;
                        }
                        return Err(failed);
                    }
                }
            }
            Op::Attach(key) => {
                let ticket = self.tickets[key].parse().unwrap();
                let guard = self.store().attach(&ticket)?;
                self.guards.insert(key.clone(), (guard, Sync));
                return Ok(None);
            }
            Op::RenewDetached(key, hours) => {
                self.guards[key].0.renew(Duration::from_secs(3600 * hours))?;
                Sync
            }
            Op::Park(key) => self.end(key, |guard| guard.hold("held by its owner"))?,
            Op::Revoke(key) => {
                let Some(State::InProgress(seen)) = self.store().get(key)? else { panic!("{key}") };
                assert!(self.store().interrupt(&seen, "an operator says so")?);
                let (guard, _) = self.guards.remove(key).unwrap();
                self.stale.insert(key.clone(), guard);
                Sync
            }
            Op::Ask(key) => {
                let op = Operation::new(key).lease(Duration::from_secs(30));
                let Claim::Interrupted(lost) = self.store().claim(op)? else { panic!("{key}") };
                lost.renew(Duration::from_secs(60))?;
                return Ok(None);
            }
            Op::Record(key, value, level) => {
                let op = Operation::new(key).durability(*level);
                assert!(self.store().record(op, Outcome::success(value))?.is_first());
                *level
            }
            Op::Batch(items) => return self.batch(items),
            Op::Drop(key) => {
                drop(self.guards.remove(key));
                return Ok(None);
            }
            Op::DropAsAbort(key) => {
                let (guard, _) = self.guards.remove(key).unwrap();
                guard.on_drop(OnDrop::Abort);
                return Ok(None);
            }
            Op::TakeOver(key, level) => self.word(key, *level, |lost| lost.take_over())?,
            Op::NotApplied(key, level) => self.word(key, *level, |lost| lost.not_applied())?,
            Op::Hold(key) => {
                let Claim::Interrupted(lost) = self.store().claim(key)? else { panic!("{key}") };
                lost.hold("held by a test")?;
                Sync
            }
            Op::Renew(key) => {
                self.guards[key].0.renew(Duration::from_secs(30))?;
                return Ok(None);
            }
            Op::Lapse(key) => {
                self.sim.advance(Duration::from_secs(31));
                let (guard, _) = self.guards.remove(key).unwrap();
                self.stale.insert(key.clone(), guard);
                return Ok(None);
            }
            Op::Stale(key) => {
                let error = self.stale.remove(key).unwrap().complete("stale").unwrap_err();
                return if error.kind() == ErrorKind::ClaimLost {
                    Ok(None)
                } else {
                    Err(error.into())
                };
            }
            Op::ResolveRetry(key) => self.resolve(key, Resolution::retry("to be tried again"))?,
            Op::Resolve(key, value) => {
                self.resolve(key, Resolution::Record(Outcome::success(value)))?
            }
            Op::Forget(key) => {
                assert!(self.store().forget(full(key))?);
                Sync
            }
            Op::Mark(key, level) => {
                assert!(
                    self.store().mark(Operation::new(full(key)).durability(*level))?.is_first()
                );
                *level
            }
            Op::Remember(key, level) => {
                let hour = Duration::from_secs(3600);
                let op = Operation::new(key).durability(*level);
                let op = op.retention(hour).remember_expired(10 * hour);
                assert!(self.store().mark(op)?.is_first());
                *level
            }
            Op::Hours(hours) => {
                self.sim.advance(Duration::from_secs(3600 * hours));
                self.ledger.pass(*hours);
                return Ok(None);
            }
            Op::Sync => {
                self.store().sync()?;
                Sync
            }
            Op::Step => {
                self.sim.advance(Duration::from_millis(1500));
                for _ in 0..20 {
                    if self.store().step()? > Duration::ZERO {
                        break;
                    }
                }
                return Ok(None);
            }
            Op::Rest => {
                for _ in 0..3 {
                    self.sim.advance(Duration::from_millis(1500));
                    for _ in 0..200 {
                        if self.store().step()? > Duration::ZERO {
                            break;
                        }
                    }
                }
                return Ok(None);
            }
            Op::Compact(budget) => {
                let _ = self.store().compact(*budget)?;
                Sync
            }
            Op::Rebuild => {
                self.store().rebuild_index()?;
                return Ok(None);
            }
            Op::MergeIndex => {
                self.store().merge_index()?;
                return Ok(None);
            }
            Op::Verify => {
                let damages = self.store().verify()?.damages;
                if let Some(damage) = damages.into_iter().next() {
                    return Err(damage.into());
                }
                return Ok(None);
            }
            Op::Rot => {
                rot_tables(self.sim);
                self.ledger.has_rotted = true;
                return Ok(None);
            }
            Op::Look => {
                let (last, ever) = (self.ledger.last(), self.ledger.ever());
                for key in ever {
                    let got = self.store().get(full(key))?.map(|state| Found::of(&state));
                    assert_eq!(got.as_ref(), last.get(key), "{key}");
                }
                return Ok(None);
            }
            Op::Close => {
                let closed = self.store().close(Duration::ZERO);
                self.guards.clear();
                self.store = None;
                closed?;
                self.store = Some(self.sim.open_with(tiny())?);
                Sync
            }
            Op::Reopen => {
                self.guards.clear();
                self.store = None;
                if self.sim.power_is_cut() {
                    return Ok(None);
                }
                self.store = Some(self.sim.open_with(tiny())?);
                return Ok(None);
            }
            Op::Kill | Op::PowerLoss => {
                let loss = if matches!(op, Op::Kill) { Loss::Kill } else { Loss::Power };
                self.crash(loss);
                self.ledger.crashed(loss);
                self.guards.clear();
                self.store = None;
                self.store = Some(self.sim.open_with(tiny())?);
                let keys = match look(self.store()) {
                    // A full disk: records that no watermark covers are served when there is space to sync them.
                    Err(e) if e.kind() == ErrorKind::StorageFull => {
                        assert_eq!(self.store().health(), Health::WaitsForSpace);
                        self.sim.set_disk_bytes_max(u64::MAX);
                        self.sim.set_disk_files_max(u64::MAX);
                        let keys = look(self.store())?;
                        self.sim.set_disk_bytes_max(self.sim.disk_bytes());
                        keys
                    }
                    looked => looked?,
                };
                assert!(
                    self.ledger.position(&keys, loss).is_some(),
                    "after {op:?}: {keys:?}\nnot {}",
                    self.ledger.describe(loss)
                );
                self.ledger.settle(&keys);
                return Ok(None);
            }
        };
        Ok(Some(level))
    }

    /// Makes calls together. Their records are one prefix: acknowledged at the level of the last, all are.
    fn batch(&mut self, items: &[Op]) -> Result<Option<Durability>> {
        let mut batch = self.store().batch();
        let mut last = Lazy;
        for item in items {
            match item {
                Op::Claim(key, claim, outcome) => {
                    let op = Operation::new(full(key)).claim_durability(*claim);
                    batch.claim(op.durability(*outcome));
                    last = *claim;
                }
                Op::Mark(key, level) => {
                    batch.mark(Operation::new(full(key)).durability(*level));
                    last = *level;
                }
                Op::Complete(key, value) => {
                    let (guard, level) = self.guards.remove(key).unwrap();
                    batch.complete(guard, value);
                    last = level;
                }
                Op::Abort(key) => {
                    let (guard, level) = self.guards.remove(key).unwrap();
                    batch.abort(guard, "nothing happened");
                    last = level;
                }
                Op::TakeOver(key, level) => {
                    let op = Operation::new(key).claim_durability(*level);
                    let Claim::Interrupted(lost) = self.store().claim(op)? else { panic!("{key}") };
                    batch.take_over(lost);
                    last = *level;
                }
                Op::Forget(key) => {
                    batch.forget(full(key));
                    last = Sync;
                }
                other => panic!("{other:?}"),
            }
        }
        let done = batch.commit()?;
        let (mut claims, mut taken) = (done.claims.into_iter(), done.taken.into_iter());
        for item in items {
            match item {
                Op::Claim(key, _, outcome) => {
                    let Claim::Acquired(guard) = claims.next().unwrap()? else { panic!("{key}") };
                    self.hold_guard(key, guard, *outcome);
                }
                Op::TakeOver(key, _) => {
                    let guard = taken.next().unwrap()?;
                    self.hold_guard(key, guard, Sync);
                }
                _ => {}
            }
        }
        done.endings.into_iter().try_for_each(|ended| ended)?;
        done.marks.into_iter().try_for_each(|mark| mark.map(|mark| assert!(mark.is_first())))?;
        done.forgotten.into_iter().try_for_each(|gone| gone.map(|gone| assert!(gone)))?;
        Ok(Some(last))
    }

    fn hold_guard(&mut self, key: &str, guard: ClaimGuard, level: Durability) {
        self.ledger.granted(&guard);
        self.guards.insert(key.to_owned(), (guard, level));
    }

    /// Ends a claim; keeps a guard that an error returns.
    fn end(
        &mut self,
        key: &str,
        ending: impl FnOnce(ClaimGuard) -> Result<(), Error>,
    ) -> Result<Durability> {
        let (guard, level) = self.guards.remove(key).unwrap();
        let Err(error) = ending(guard) else { return Ok(level) };
        let mut failed = Failed { gave_back: false, ..Failed::from_ref(&error) };
        if let Some(guard) = error.into_claim() {
            self.guards.insert(key.to_owned(), (guard, level));
            failed.gave_back = true;
        }
        Err(failed)
    }

    fn word(
        &mut self,
        key: &str,
        level: Durability,
        word: impl FnOnce(Interrupted) -> Result<ClaimGuard, Error>,
    ) -> Result<Durability> {
        let op = Operation::new(key).claim_durability(level).lease(Duration::from_secs(30));
        let Claim::Interrupted(lost) = self.store().claim(op)? else { panic!("{key}") };
        let guard = word(lost)?;
        self.hold_guard(key, guard, Sync);
        Ok(level)
    }

    fn resolve(&mut self, key: &str, resolution: Resolution) -> Result<Durability> {
        let Some(State::Interrupted(a) | State::Held(a)) = self.store().get(key)? else {
            panic!("{key}")
        };
        assert!(self.store().resolve(&a, resolution)?);
        Ok(Sync)
    }
}

/// The distance of the points that a sweep tries: each of them with `ONLYONCE_WHOLE`, then with `ONLYONCE_LONG`, and by default.
pub(crate) fn stride(long: usize, short: usize) -> usize {
    let is_set = |name| std::env::var_os(name).is_some();
    match (is_set("ONLYONCE_WHOLE"), is_set("ONLYONCE_LONG")) {
        (true, _) => 1,
        (false, true) => long,
        (false, false) => short,
    }
}
