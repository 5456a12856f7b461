//! The operator's view: a walk over the keys, health and counts.

mod cursor;

pub use cursor::Cursor;

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

#[cfg(feature = "backend")]
use crate::ErrorKind;
use crate::backend::Shared;
use crate::builder::StoreBuilder;
use crate::claim::seen::state_of;
use crate::claim::{State, reserve, shown, wall, wall_millis};
use crate::engine::{Alive, BackedUp, Compacted, Engine, Inspector, KeyCounts, Seen, Walk, Which};
use crate::log::open::directory;
use crate::log::open::lifecycle::Inside;
use crate::operation::Lies;
use crate::protocol::{
    OpenAs, Phase, Presence, is_being_decided, is_delayed, is_expired, phase_shown,
};
pub use crate::repair::{AcceptLoss, RepairReport};
use crate::sealed::listed::ListedFile;
use crate::sync::Ordering;
use crate::types::{KeyHash, Lsn, Token, WallMillis};
use crate::{Error, Key, Result, limits};

/// Repairs the store in `dir`, which no process may have open. Rebuilds a lost manifest, and drops damaged records if
/// `accept` allows it. No other call ever accepts a loss.
///
/// The repair first reads everything. If no acknowledged record is lost (only a manifest or a header is), it repairs
/// the store. Otherwise it reports the loss and accepts it only with [`AcceptLoss::Yes`]: it then writes all whole
/// records anew, and they make up the store. A key that lost its newest record afterwards has the state of its newest
/// whole record, or is absent. A remembered key is kept if its page passes its checksum. Copy the directory before the
/// call.
///
/// Without the manifest, only the segments show what the store contained. Three things are then unknown: whether
/// segments before the first one were reclaimed or are missing, whether anything followed the last record, and whether
/// a file of remembered keys is missing.
///
/// ```
/// use onlyonce::admin::{AcceptLoss, repair};
/// use onlyonce::Store;
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let keys = dir.path().join("keys");
/// # drop(Store::open_or_create(&keys)?);
/// std::fs::remove_file(keys.join("MANIFEST")).unwrap();
/// assert!(Store::open(&keys).is_err());
/// let report = repair(&keys, AcceptLoss::No)?;
/// assert!(report.is_repaired && !report.is_loss);
/// # drop(Store::open(&keys)?);
/// # onlyonce::Result::<()>::Ok(())
/// ```
///
/// The repair is durable when the call returns.
///
/// # Errors
/// `Locked` if a process has the store open; `Corrupt` if neither a manifest nor any segment's header is whole;
/// `Incompatible`; `StorageFull` if there is no space to write the whole records anew; `Io`, also if a directory has
/// the name of a file that the store prepares ahead. After `StorageFull`, and if such a directory is the cause, nothing
/// was changed.
///
/// # Cost
/// Reads everything. If records are lost, it reads everything a second time and writes every whole record, which needs
/// space in addition to the old records. Finally it reads the result as an open does, and only then reports the store
/// as repaired.
pub fn repair(dir: impl AsRef<Path>, accept: AcceptLoss) -> Result<RepairReport> {
    let dir = directory::absolute(dir.as_ref())?;
    crate::repair::run(directory::system(&dir)?, &dir, &StoreBuilder::default().sizes()?, accept)
}

/// The kinds of [`State`] that a walk shows.
///
/// There is no kind for [`State::Expired`]: once the record of a remembered key is reclaimed, only the key's hash is
/// left, so a walk can't name the key. [`get`](crate::Store::get) and [`claim`](crate::Store::claim) do report that
/// state.
///
/// ```
/// # use onlyonce::{admin::StateKind, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # drop(store.claim("mail-1")?);
/// let open_fates = store.iter().in_states(&[StateKind::Interrupted, StateKind::Held]);
/// assert_eq!(open_fates.count(), 1);
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum StateKind {
    /// The key's owner is at work, or its claim is detached, or a claimant decides about an interrupted attempt
    /// ([`is_being_decided`](crate::Attempt::is_being_decided)).
    InProgress,
    /// The key's claim is detached, and its lease has not passed. Such a key is in progress, too.
    Detached,
    /// An attempt ended without an outcome, and no claimant decides about it right now.
    Interrupted,
    /// The key waits to be resolved.
    Held,
    /// The last attempt had no effect.
    Aborted,
    /// The last attempt had no effect, and the delay that it asked for has not passed. Such a key is aborted, too.
    Delayed,
    /// A result is recorded.
    Completed,
    /// A final failure is recorded.
    Failed,
}

impl StateKind {
    fn of(phase: Phase) -> Self {
        match phase {
            Phase::Claimed => StateKind::InProgress,
            Phase::Interrupted => StateKind::Interrupted,
            Phase::Held => StateKind::Held,
            Phase::Aborted => StateKind::Aborted,
            Phase::Completed => StateKind::Completed,
            Phase::Failed => StateKind::Failed,
        }
    }

    /// How the records of keys in this state leave them open, so that they are found without a walk over all keys: see
    /// `protocol::open_as`. Nothing: they don't.
    fn open_as(self) -> &'static [OpenAs] {
        match self {
            // A claim ends without a record: its process ends, or its lease passes.
            StateKind::InProgress | StateKind::Interrupted => &[OpenAs::Attempt, OpenAs::Detached],
            StateKind::Detached => &[OpenAs::Detached],
            StateKind::Held => &[OpenAs::Held],
            StateKind::Delayed => &[OpenAs::Delayed],
            StateKind::Aborted | StateKind::Completed | StateKind::Failed => &[],
        }
    }

    fn is_of(self, seen: &Seen) -> bool {
        match self {
            StateKind::Detached => seen.presence == Presence::Detached,
            StateKind::Delayed => is_delayed(&seen.state, seen.now),
            kind if is_being_decided(&seen.state, seen.presence) => kind == StateKind::InProgress,
            kind => kind == StateKind::of(phase_shown(&seen.state, seen.presence)),
        }
    }
}

/// A walk over keys. See [`Store::iter`](crate::Store::iter).
///
/// For a key that can't be read, the walk returns an error and continues. It doesn't show expired keys, even those that
/// are remembered.
///
/// The store can be used meanwhile, and the walk shows each key in its state at the moment when it is shown. It shows
/// every key that is in one of the requested states from the walk's first step until the walk ends. A key that enters or
/// leaves these states meanwhile may be missed. In a walk over all keys, a key that changes meanwhile may come twice.
///
/// ```
/// # use onlyonce::{Key, Result, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # for n in 0..3_u64 { let _ = store.mark(("feed", n))?; }
/// let known: Vec<Key<'static>> = store.iter().map(|entry| Ok(entry?.0)).collect::<Result<_>>()?;
/// assert_eq!(known.len(), 3);
/// # onlyonce::Result::<()>::Ok(())
/// ```
///
/// # Cost
/// If only states of open keys are requested ([`InProgress`](StateKind::InProgress), [`Detached`](StateKind::Detached),
/// [`Interrupted`](StateKind::Interrupted), [`Held`](StateKind::Held), [`Delayed`](StateKind::Delayed)), the walk reads the records of the keys that can be in one of them, one or
/// two reads each, and holds their positions in memory, 24 bytes each. Keys in progress and interrupted ones are told apart
/// only by these reads. The number of other keys doesn't matter, except
/// that the keys since the last checkpoint, which are in memory, may be visited there.
///
/// Otherwise the walk reads the whole index and one record per key, because states and prefixes are checked after the
/// read. In memory, it holds the positions of all keys since the last checkpoint, 24 bytes each. A damaged bucket of the
/// index is an error each time the walk reads it, and is mended from the log.
///
/// [`oldest_first`](Self::oldest_first) adds memory for each key that it will show.
#[must_use = "a walk does nothing until it is asked for its next key"]
pub struct Iter {
    shared: Arc<Shared>,
    /// `Err`: why it can't be known, which the first step returns.
    scope: Result<Scope>,
    states: Option<Vec<StateKind>>,
    prefix: Option<Key<'static>>,
    walk: Option<Walk>,
    /// `None`: in no particular order.
    by_age: Option<ByAge>,
    is_over: bool,
}

/// The keys of a walk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those in no namespace.
    Root,
    /// Those in the namespace of that id.
    Space(Token),
    /// There is no such namespace.
    Nothing,
}

impl Scope {
    fn has(self, key: &Key<'_>) -> bool {
        match key.lies() {
            Lies::InRoot => self == Scope::Root,
            Lies::In(id) => self == Scope::Space(id),
            Lies::Names(_) => false,
        }
    }

    /// A key that was shown, as it is stored.
    fn stored(self, key: &Key<'_>) -> Key<'static> {
        match self {
            Scope::Space(id) => key.in_space(id),
            Scope::Root | Scope::Nothing => key.to_static(),
        }
    }
}

/// A walk in the order of age.
#[derive(Default)]
struct ByAge {
    /// The key shown last, or that after which the walk begins.
    last: Option<Cursor>,
    /// The keys to be shown, the oldest last; `None`: they are not gathered yet.
    left: Option<Vec<Cursor>>,
    /// Errors instead of keys, which come after all keys.
    failed: Vec<Error>,
}

impl Iter {
    pub(crate) fn new(shared: Arc<Shared>, scope: Result<Scope>) -> Self {
        let (states, prefix, walk, by_age) = (None, None, None, None);
        Iter { shared, scope, states, prefix, walk, by_age, is_over: false }
    }

    /// Shows only keys in one of these states.
    ///
    /// ```
    /// # use onlyonce::{admin::StateKind, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let _ = store.mark(("shop", 1))?;
    /// assert_eq!(store.iter().in_states(&[StateKind::Completed]).count(), 1);
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    pub fn in_states(mut self, states: &[StateKind]) -> Self {
        self.states = Some(states.to_vec());
        self
    }

    /// Shows only keys that begin with `prefix`. Keys of parts are compared by whole parts, text and bytes byte by byte; a
    /// number equals only itself.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// # let _ = store.mark(("shop", 1))?;
    /// assert_eq!(store.iter().prefix(("shop", 1)).count(), 1);
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    pub fn prefix<'k>(mut self, prefix: impl Into<Key<'k>>) -> Self {
        self.prefix = Some(prefix.into().into_owned());
        self
    }

    /// Sorts by the start of the attempt, even while a claimant decides about it; a key with an outcome by the time it was recorded. The times are those of the wall clock then, as [`Attempt::since`] shows them. At the
    /// same time, keys are ordered by their bytes. Errors come after all keys.
    ///
    /// To show pages, take some keys from the walk, and hand its [`cursor`](Self::cursor) to the next request:
    ///
    /// ```
    /// use onlyonce::admin::{Cursor, StateKind};
    /// use onlyonce::{Result, Store};
    ///
    /// /// Returns a page of keys that wait for a person, and the link to the next page.
    /// fn page(store: &Store, after: Option<&str>, most: usize) -> Result<(Vec<String>, Option<String>)> {
    ///     let mut walk = store.iter().in_states(&[StateKind::Interrupted, StateKind::Held]).oldest_first();
    ///     if let Some(after) = after {
    ///         walk = walk.after(&after.parse::<Cursor>()?);
    ///     }
    ///     let shown = |entry: Result<_>| entry.map(|(key, state)| format!("{key}: {state:?}"));
    ///     let keys = walk.by_ref().take(most).map(shown).collect::<Result<Vec<String>>>()?;
    ///     // A page that isn't full is the last.
    ///     let next = walk.cursor().filter(|_| keys.len() == most).map(Cursor::to_string);
    ///     Ok((keys, next))
    /// }
    ///
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// # for n in 0..5_u64 { drop(store.claim(("mail", n))?); }
    /// let (first, next) = page(&store, None, 3)?;
    /// let (second, end) = page(&store, next.as_deref(), 3)?;
    /// assert_eq!((first.len(), second.len(), end), (3, 2, None));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// A key that a new attempt claims while pages are shown moves to the end: it may come a second time, in its new
    /// state. A key that waits from the first page to the last comes exactly once, unless the wall clock is set back
    /// meanwhile.
    ///
    /// # Cost
    /// Its first step takes a whole walk over the keys, to learn their times, and holds time and key of each that it will
    /// show. Showing a key reads it again. So if only states of open keys are requested, a page takes time in proportion to
    /// the open keys; otherwise, in proportion to all keys.
    ///
    /// [`Attempt::since`]: crate::Attempt::since
    pub fn oldest_first(mut self) -> Self {
        self.by_age.get_or_insert_default();
        self
    }

    /// Continues after a [`cursor`](Self::cursor), which an earlier walk returned: shows only the keys that come later in
    /// the order of [`oldest_first`](Self::oldest_first), in that order.
    ///
    /// ```
    /// # use onlyonce::{admin::{Cursor, StateKind}, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// let long_ago: Cursor = "0:mail-0".parse()?;
    /// assert_eq!(store.iter().in_states(&[StateKind::Interrupted]).after(&long_ago).count(), 1);
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    pub fn after(mut self, cursor: &Cursor) -> Self {
        self.by_age.get_or_insert_default().last = Some(cursor.clone());
        self
    }

    /// Returns the position after the key shown last, or where the walk began if it has shown no key yet. `None` at the
    /// beginning, and if the walk is not in the order of [`oldest_first`](Self::oldest_first).
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// # let _ = store.mark("mail-1")?;
    /// let mut walk = store.iter().oldest_first();
    /// assert_eq!(walk.cursor(), None);
    /// assert!(walk.next().is_some());
    /// assert!(walk.cursor().unwrap().to_string().ends_with(":mail-1"));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    #[must_use]
    pub fn cursor(&self) -> Option<&Cursor> {
        self.by_age.as_ref()?.last.as_ref()
    }

    fn look(
        &self,
        engine: &Engine,
        inside: &Inside<'_>,
        key: Key<'static>,
        hash: KeyHash,
    ) -> Result<Option<(Key<'static>, Seen)>> {
        if !self.scope.as_ref().is_ok_and(|scope| scope.has(&key)) {
            return Ok(None);
        }
        if self.prefix.as_ref().is_some_and(|prefix| !key.shown().starts_with(prefix)) {
            return Ok(None);
        }
        let Some(seen) = engine.look_from(inside, &key, hash)? else { return Ok(None) };
        // A remembered key has no name any more once its record is removed, so it is never shown.
        if is_expired(&seen.state, seen.now) {
            return Ok(None);
        }
        if self.states.as_ref().is_some_and(|states| !states.iter().any(|kind| kind.is_of(&seen))) {
            return Ok(None);
        }
        Ok(Some((key, seen)))
    }
}

impl Iterator for Iter {
    type Item = Result<(Key<'static>, State)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let scope = match std::mem::replace(&mut self.scope, Ok(Scope::Nothing)) {
            Ok(scope) => scope,
            Err(e) => {
                self.is_over = true;
                return Some(Err(e));
            }
        };
        self.scope = Ok(scope);
        let shared = Arc::clone(&self.shared);
        let entered = shared.embedded().and_then(|engine| Ok((engine, engine.enter()?)));
        let (engine, inside) = match entered {
            Ok(entered) => entered,
            Err(e) => {
                // The files that the walk reads may belong to another open by now.
                (self.is_over, self.walk) = (true, None);
                return Some(Err(e));
            }
        };
        let begun = match self.walk.take() {
            Some(walk) => Ok(walk),
            None => engine.settle_absence().and_then(|()| self.begin(engine, &inside)),
        };
        let mut walk = match begun {
            Ok(walk) => walk,
            Err(e) => {
                self.is_over = true;
                return Some(Err(e));
            }
        };
        let next = match self.by_age.take() {
            None => self.next_in(engine, &mut walk, &inside),
            Some(mut by_age) => {
                let next = self.next_by_age(engine, &mut walk, &mut by_age, &inside);
                self.by_age = Some(by_age);
                next
            }
        };
        self.walk = Some(walk);
        next.map(|found| {
            found.and_then(|(key, seen)| Ok((key.shown().clone(), state_of(&key, seen, &shared)?)))
        })
    }
}

impl Iter {
    /// Begins the walk over the keys that can be in the requested states.
    fn begin(&self, engine: &Engine, inside: &Inside<'_>) -> Result<Walk> {
        let states = self.states.as_deref().unwrap_or_default();
        let ways: Vec<OpenAs> = states.iter().flat_map(|kind| kind.open_as()).copied().collect();
        let are_open =
            self.states.is_some() && states.iter().all(|kind| !kind.open_as().is_empty());
        engine.begin_walk(inside, if are_open { Which::Open(&ways) } else { Which::All })
    }

    fn next_in(
        &mut self,
        engine: &Engine,
        walk: &mut Walk,
        inside: &Inside<'_>,
    ) -> Option<Result<(Key<'static>, Seen)>> {
        loop {
            let met = match engine.next_of_walk(inside, walk) {
                Ok(Some((key, hash))) => self.look(engine, inside, key, hash),
                Ok(None) => {
                    self.is_over = true;
                    return None;
                }
                Err(e) => Err(e),
            };
            match met {
                Ok(None) => {}
                Ok(Some(found)) => return Some(Ok(found)),
                Err(e) => return Some(Err(e)),
            }
        }
    }

    /// Returns the oldest key that was not shown yet.
    fn next_by_age(
        &mut self,
        engine: &Engine,
        walk: &mut Walk,
        by_age: &mut ByAge,
        inside: &Inside<'_>,
    ) -> Option<Result<(Key<'static>, Seen)>> {
        if by_age.left.is_none() {
            let mut left = Vec::new();
            while let Some(met) = self.next_in(engine, walk, inside) {
                match met {
                    Ok((key, seen)) => {
                        let since = wall_millis(seen.state.since, seen.state.wall_offset);
                        left.push(Cursor::new(since, key.shown().clone()));
                    }
                    // Each further step would fail, too.
                    Err(e) if engine.is_closing() => {
                        self.is_over = true;
                        return Some(Err(e));
                    }
                    Err(e) => by_age.failed.push(e),
                }
            }
            self.is_over = false;
            left.retain(|cursor| by_age.last.as_ref().is_none_or(|last| cursor > last));
            left.sort_unstable_by(|one, other| other.cmp(one));
            // A walk over all keys meets a key twice if it changes meanwhile.
            left.dedup();
            by_age.left = Some(left);
        }
        while let Some(cursor) = by_age.left.as_mut().and_then(Vec::pop) {
            let key = self
                .scope
                .as_ref()
                .map_or_else(|_| cursor.key().clone(), |scope| scope.stored(cursor.key()));
            let hash = engine.hash(&key);
            let met = self.look(engine, inside, key, hash);
            by_age.last = Some(cursor);
            if let Some(found) = met.transpose() {
                return Some(found);
            }
        }
        let failed = by_age.failed.pop();
        self.is_over = failed.is_none();
        failed.map(Err)
    }
}

impl fmt::Debug for Iter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("states", &self.states).finish_non_exhaustive()
    }
}

/// Whether a store accepts writes. See [`Store::health`](crate::Store::health).
///
/// Raise an alarm for any value except `Writable`, because claims are then refused. `Full` and `WaitsForSpace` end as
/// soon as there is space; `Poisoned` ends when the store is reopened. [`Stats::background_error`] is set earlier,
/// because the space that is prepared ahead lasts for a while.
///
/// ```
/// # use onlyonce::{admin::Health, testing::{DiskFault, Sim}};
/// # let sim = Sim::new(1);
/// # let store = sim.open()?;
/// # let _ = store.mark("k")?;
/// # sim.fail_call(0, DiskFault::Io);
/// # let _ = store.mark("l");
/// match store.health() {
///     Health::Writable => println!("ok"),
///     Health::Poisoned { cause } => println!("drop the store and open it again: {cause}"),
///     Health::Full { since, cause } => println!("no space for claims since {since:?}: {cause}"),
///     Health::WaitsForSpace => println!("the disk is full"),
///     other => println!("{other:?}"),
/// }
/// # assert!(matches!(store.health(), Health::Poisoned { .. }));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Health {
    /// The store accepts writes.
    Writable,
    /// A write or sync failed. Results are still replayed, but nothing is written until the store is reopened.
    Poisoned {
        /// What failed, and where.
        cause: String,
    },
    /// Records that the last open found unsynced can't be synced without space: free some.
    WaitsForSpace,
    /// Only new claims are refused, as `StorageFull`: claims in flight can end, results are replayed, and keys can be
    /// forgotten and compacted away. Background work checks for space once a second.
    Full {
        /// When the space ran out.
        since: SystemTime,
        /// What could not be prepared, and what to do about it.
        cause: String,
    },
    /// The store was closed.
    Closed,
    /// This process is a fork of the one that opened the store.
    Forked,
    /// The store has another backend, which refuses claims.
    #[cfg(feature = "backend")]
    Refused {
        /// Why the backend refuses claims, and what to do about it.
        cause: String,
    },
}

impl Health {
    /// Judges a claim that reserves so many bytes.
    pub(crate) fn of(engine: &Engine, reserve_bytes: u32) -> Self {
        // First: in a fork, a lock that another thread of the parent held is never released.
        if engine.is_foreign() {
            return Health::Forked;
        }
        if engine.is_closing() {
            return Health::Closed;
        }
        match engine.log.poison_cause() {
            Some(cause) => Health::Poisoned { cause: cause.to_string() },
            None if engine.log.has_unsettled_tail() => Health::WaitsForSpace,
            None => match Health::room(engine, reserve_bytes) {
                Some((since, cause)) => {
                    Health::Full { since: shown(since), cause: cause.to_string() }
                }
                None => Health::Writable,
            },
        }
    }

    /// Judges by what another backend says of a claim now.
    #[cfg(feature = "backend")]
    pub(crate) fn of_backend(refused: Option<&Error>) -> Self {
        let Some(error) = refused else { return Health::Writable };
        match error.kind() {
            ErrorKind::Closed => Health::Closed,
            ErrorKind::Forked => Health::Forked,
            ErrorKind::Poisoned => Health::Poisoned { cause: error.to_string() },
            _ => Health::Refused { cause: error.to_string() },
        }
    }

    /// The answer that a claim would get now.
    #[cfg(feature = "backend")]
    pub(crate) fn as_result(&self, engine: &Engine) -> Result<()> {
        let full =
            |cause: &str| Err(Error::new(ErrorKind::StorageFull, cause).at(engine.log.dir()));
        match self {
            Health::Writable => Ok(()),
            Health::Poisoned { .. } => Err(engine.log.poisoned()),
            Health::Closed => Err(engine.log.closed()),
            Health::Forked => Err(engine.log.forked()),
            Health::WaitsForSpace => {
                full("the unsynced records that the last open found wait for space: free some")
            }
            Health::Full { cause, .. } | Health::Refused { cause } => full(cause),
        }
    }

    /// Since when an ordinary claim has no space, and why, if so.
    fn room(engine: &Engine, reserve_bytes: u32) -> Option<(WallMillis, Error)> {
        let reserve = reserve(engine.result_bytes_max, reserve_bytes, limits::ORDINARY_KEY_BYTES);
        engine.log.rooms().is_full_for(limits::ORDINARY_CLAIM_BYTES, reserve)
    }

    /// Returns whether the store accepts writes.
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// assert!(store.health().is_writable());
    /// store.close(std::time::Duration::ZERO)?;
    /// assert!(!store.health().is_writable());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn is_writable(&self) -> bool {
        *self == Health::Writable
    }
}

/// Counts since the store was opened. See [`Store::stats`](crate::Store::stats).
///
/// ```
/// # use onlyonce::{Durability, Operation, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # let _ = store.mark("first")?;
/// let before = store.stats();
/// for n in 0..100_u64 {
///     let _ = store.mark(Operation::new(n).durability(Durability::Flush))?;
/// }
/// store.sync()?;
/// let after = store.stats();
/// assert_eq!((after.keys - before.keys, after.syncs - before.syncs), (100, 1));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Default, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Known keys, including expired ones, and steps that have ended, until compaction removes them. A key may be counted twice if it changed after it was sealed, or if it was
    /// forgotten but is not yet compacted away.
    pub keys: u64,
    /// Claims in flight: granted ones that have not ended, and those that were told of an interruption and have not decided.
    /// A detached claim counts while a guard of it is attached.
    pub in_flight: u64,
    /// Keys that are interrupted now: an attempt ended without an outcome, or its lease has lapsed, and no claimant decides
    /// about it right now. This is not an estimate.
    pub interrupted: u64,
    /// Keys that are held now, and wait to be resolved. This is not an estimate.
    pub held: u64,
    /// Claims that are detached now: a ticket stands for them, and their lease has not passed. This is not an estimate,
    /// except that a claim whose record can't be read is not counted: [`Store::verify`](crate::Store::verify) reports it.
    pub detached: u64,
    /// Keys whose last attempt had no effect and asked for a delay that has not passed, counted as `detached` is.
    pub delayed: u64,
    /// Segments of the log.
    pub segments: u64,
    /// Bytes of the log's segments, including the space prepared ahead.
    pub log_bytes: u64,
    /// The time at which the oldest claim in flight was granted, or the oldest open question was asked, whichever is earlier.
    pub oldest_claim: Option<SystemTime>,
    /// Bytes of the log written after the last checkpoint. Opening the store after a crash has to read them.
    pub log_bytes_since_checkpoint: u64,
    /// When the last checkpoint was made; `None` if there was none since the store was opened.
    pub last_checkpoint: Option<SystemTime>,
    /// An estimate of live bytes and of keys by state, made at the last checkpoint, or up to a second or an eighth of
    /// the log before it. For a current estimate, see [`Store::estimate`](crate::Store::estimate).
    pub estimate_at_checkpoint: Option<Estimate>,
    /// Bytes that all files together take.
    pub disk_bytes: u64,
    /// Bytes that all files together may take: `u64::MAX` if `disk_bytes_max` is not set.
    pub disk_bytes_max: u64,
    /// Bytes that compaction moved since the store was opened.
    pub bytes_moved: u64,
    /// Bytes of segments that compaction reclaimed.
    pub bytes_reclaimed: u64,
    /// Files of remembered keys.
    pub expired_files: u64,
    /// Keys in the files of remembered keys.
    pub expired_keys: u64,
    /// Sealed tables of the index.
    pub tables: u64,
    /// Bytes of the sealed tables of the index.
    pub index_bytes: u64,
    /// Keys that are only in memory, which the next checkpoint seals, and claims in flight.
    pub keys_in_memory: u64,
    /// Why background work can't prepare space or make checkpoints: a damaged record (see
    /// [`admin::repair`](crate::admin::repair)), or a full disk. The work is retried, and this is `None` once it
    /// succeeds.
    pub background_error: Option<String>,
    /// Tables that were found damaged or missing, at the open or later, and were rebuilt from the log.
    pub tables_mended: u64,
    /// Syncs of the log since the store was opened.
    pub syncs: u64,
    /// Time spent in these syncs.
    pub sync_time: std::time::Duration,
    /// Records placed since the store was opened. Divided by `syncs`, this is the average number of records that share
    /// a sync.
    pub records: u64,
    /// Bytes of records written since the store was opened.
    pub bytes_written: u64,
    /// What the open found.
    pub opening: Opening,
}

impl Stats {
    pub(crate) fn of(engine: &Engine) -> Self {
        // In a fork a lock may be held for ever; the counts are the parent's anyway.
        let in_flight = if engine.is_foreign() { 0 } else { engine.in_flight() };
        let inside = engine.enter().ok();
        if inside.is_some() {
            // A key whose record can't be read isn't counted; a walk reports it.
            let _ = engine.decide_hints();
        }
        let counts = match engine.is_foreign() {
            true => KeyCounts::default(),
            false => engine.count_keys(inside.as_ref()),
        };
        if inside.is_some() {
            engine.tell_gauges(&counts);
        }
        drop(inside);
        let listed = if engine.is_foreign() { Vec::new() } else { engine.log.reading().listed() };
        let is_ours = !engine.is_foreign();
        let index = is_ours.then(|| engine.tables());
        let (tables, expired) = index
            .as_ref()
            .map(|index| (index.list.clone(), index.expired.clone()))
            .unwrap_or_default();
        let covered = index.as_ref().map(|index| index.covered);
        let since_checkpoint = covered.map_or(0, |covered| engine.log.bytes_since(covered));
        let (disk_bytes, disk_bytes_max) =
            if is_ours { engine.log.budget() } else { (0, u64::MAX) };
        let checkpoint = if is_ours { engine.last_checkpoint() } else { None };
        let report = &engine.report;
        Stats {
            keys: tables.iter().map(|table| table.listed.slots).sum::<u64>() + counts.unsealed,
            in_flight: in_flight + counts.open.asked,
            interrupted: counts.open.interrupted,
            held: counts.open.held,
            detached: counts.open.detached,
            delayed: counts.open.delayed,
            segments: listed.len() as u64,
            oldest_claim: counts.oldest_claim.map(|(since, offset)| wall(since, offset)),
            log_bytes_since_checkpoint: since_checkpoint,
            last_checkpoint: checkpoint.map(|made| wall(made.now, made.offset)),
            estimate_at_checkpoint: checkpoint
                .and_then(|made| made.sample)
                .map(|sample| Estimate::from_sample(sample.alive, sample.log_bytes)),
            disk_bytes,
            disk_bytes_max,
            bytes_moved: engine.moved.load(Ordering::Relaxed),
            bytes_reclaimed: engine.reclaimed.load(Ordering::Relaxed),
            expired_files: expired.len() as u64,
            expired_keys: expired.iter().map(|file| file.listed.entries).sum(),
            tables: tables.len() as u64,
            index_bytes: tables.iter().map(|table| table.listed.bytes()).sum(),
            keys_in_memory: counts.unsealed + counts.sealed_live,
            background_error: if is_ours { engine.trouble() } else { None },
            tables_mended: engine.mended.load(Ordering::Relaxed),
            log_bytes: listed.iter().map(|segment| segment.end.since(segment.base)).sum(),
            syncs: engine.log.syncs.load(Ordering::Relaxed),
            sync_time: std::time::Duration::from_nanos(
                engine.log.sync_nanos.load(Ordering::Relaxed),
            ),
            records: if is_ours { engine.log.records() } else { 0 },
            bytes_written: engine.log.bytes_written.load(Ordering::Relaxed),
            opening: Opening {
                was_clean: report.was_clean,
                records_read: report.records,
                records_resynced: report.copied,
                cut: report.cut.as_ref().map(|cut| Cut {
                    path: cut.path.clone(),
                    offset: cut.offset,
                    bytes: cut.bytes,
                    whole_records: cut.whole_records,
                }),
            },
        }
    }
}

/// An estimate of what is live in a store. See [`Store::estimate`](crate::Store::estimate).
///
/// ```
/// # let store = onlyonce::testing::Sim::new(1).open()?;
/// let estimate = store.estimate()?;
/// if estimate.held > 0 {
///     println!("about {} keys wait for somebody to resolve them", estimate.held);
/// }
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Estimate {
    /// Bytes of live records. A record is live if it is the newest of its key and has not expired.
    pub live_bytes: u64,
    /// All other bytes of the log, which compaction could reclaim.
    pub dead_bytes: u64,
    /// Keys claimed or interrupted: counted, not estimated.
    pub open: u64,
    /// Keys held: counted, not estimated.
    pub held: u64,
    /// Keys whose last attempt had no effect.
    pub aborted: u64,
    /// Keys with a result.
    pub completed: u64,
    /// Keys with a recorded failure.
    pub failed: u64,
}

impl Estimate {
    pub(crate) fn of(engine: &Engine) -> Result<Self> {
        let _inside = engine.enter()?;
        let _ = engine.decide_hints();
        let log_bytes = engine.log.bytes_since(Lsn::ZERO);
        Ok(Estimate::from_sample(engine.sampling().estimate()?, log_bytes))
    }

    fn from_sample(alive: Alive, log_bytes: u64) -> Self {
        let [claimed, interrupted, held, aborted, completed, failed] = alive.keys;
        Estimate {
            live_bytes: alive.bytes,
            // A sample may count more than the log holds.
            dead_bytes: log_bytes.saturating_sub(alive.bytes),
            open: claimed + interrupted,
            held,
            aborted,
            completed,
            failed,
        }
    }
}

/// What [`Store::compact`](crate::Store::compact) did.
///
/// ```
/// # let store = onlyonce::testing::Sim::new(1).open()?;
/// let done = store.compact(u64::MAX)?;
/// println!("{} bytes reclaimed, {} moved for it", done.bytes_reclaimed(), done.bytes_moved());
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compaction {
    done: Compacted,
}

impl Compaction {
    pub(crate) fn new(done: Compacted) -> Self {
        Compaction { done }
    }

    /// Returns the bytes of live records that were moved.
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// assert_eq!(store.compact(u64::MAX)?.bytes_moved(), 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn bytes_moved(&self) -> u64 {
        self.done.moved
    }

    /// Returns the bytes of reclaimed segments, including moved records.
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// # let _ = store.mark("k")?;
    /// assert!(store.compact(u64::MAX)?.bytes_reclaimed() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn bytes_reclaimed(&self) -> u64 {
        self.done.reclaimed
    }

    /// Returns whether compaction has reached the end of the log. If so, nothing that was dead before the call is still
    /// on the disk. If earlier calls ran out of budget, this holds for what was dead before the first of those calls.
    ///
    /// ```
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// while !store.compact(1 << 20)?.is_complete() { /* let others have the disk for a while */ }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.done.is_complete
    }
}

/// What [`Store::backup`](crate::Store::backup) made: see there.
///
/// ```
/// # let sim = onlyonce::testing::Sim::new(1);
/// # let store = sim.open()?;
/// let made = store.backup("/backups/monday")?;
/// println!("{} of {} bytes were copied", made.bytes_copied(), made.bytes_copied() + made.bytes_linked());
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backup {
    made: BackedUp,
}

impl Backup {
    pub(crate) fn new(made: BackedUp) -> Self {
        Backup { made }
    }

    /// Returns the bytes of files that the backup shares with the store. They take no space of their own while the store has
    /// them, too.
    ///
    /// ```
    /// # let sim = onlyonce::testing::Sim::new(1);
    /// # let store = sim.open()?;
    /// assert_eq!(store.backup("/backups/monday")?.bytes_linked(), 0); // all of it is in the segment in use
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn bytes_linked(&self) -> u64 {
        self.made.linked
    }

    /// Returns the bytes of files that were copied.
    ///
    /// ```
    /// # let sim = onlyonce::testing::Sim::new(1);
    /// # let store = sim.open()?;
    /// # let _ = store.mark("k")?;
    /// assert!(store.backup("/backups/monday")?.bytes_copied() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn bytes_copied(&self) -> u64 {
        self.made.copied
    }
}

/// What [`Store::verify`](crate::Store::verify) found.
///
/// ```
/// # let store = onlyonce::testing::Sim::new(1).open()?;
/// # let _ = store.mark("k")?;
/// let found = store.verify()?;
/// assert_eq!((found.records, found.damages.len()), (1, 0));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Verification {
    /// Whole records about keys.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// All damage; each error names file and offset.
    pub damages: Vec<Error>,
    /// What could not be read, so that it may be whole or damaged. The kind of the error is the reason: the device
    /// failed or no file descriptor was free (`Io`), a failed write left the record in memory (`Indeterminate`), or the
    /// record waits for space (`StorageFull`). There is one error for each kind and file.
    pub unread: Vec<Error>,
}

impl Verification {
    /// Returns whether everything was read and nothing is damaged.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// assert!(store.verify()?.is_whole());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damages.is_empty() && self.unread.is_empty()
    }
}

/// Collects what a verification finds, and reports its progress.
pub(crate) struct Gathering<'p> {
    pub(crate) found: Verification,
    pub(crate) progress: &'p mut dyn FnMut(&Verification) -> ControlFlow<()>,
}

impl Inspector for Gathering<'_> {
    fn damage(&mut self, error: Error) {
        self.found.damages.push(error.listed());
    }

    fn unread(&mut self, error: Error) {
        // A failing device would otherwise be reported for each record.
        let is_it = |known: &Error| (known.kind(), known.path()) == (error.kind(), error.path());
        if !self.found.unread.iter().any(is_it) {
            self.found.unread.push(error);
        }
    }

    fn record(&mut self) {
        self.found.records += 1;
    }

    fn read(&mut self, bytes: u64) -> ControlFlow<()> {
        self.found.bytes += bytes;
        (self.progress)(&self.found)
    }
}

/// What an open found.
///
/// ```
/// # use onlyonce::testing::Sim;
/// # let sim = Sim::new(1);
/// # let _ = sim.open()?.mark("k")?;
/// # let _ = sim.open()?.mark("l")?;
/// let opening = sim.open()?.stats().opening; // of a store that was closed
/// assert!(opening.was_clean && opening.records_read < 10); // a close leaves a short log without a table
/// assert!(opening.records_resynced == 0 && opening.cut.is_none());
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Default, Debug)]
#[non_exhaustive]
pub struct Opening {
    /// Whether the last owner closed the store.
    pub was_clean: bool,
    /// Records read.
    pub records_read: u64,
    /// Records in the tail that no watermark covered, and that the open made durable again.
    pub records_resynced: u64,
    /// The torn tail that the open cut off: a last write that was never finished.
    pub cut: Option<Cut>,
}

/// A torn tail that an open cut off. Nothing acknowledged at [`Sync`](crate::Durability::Sync) was in it.
///
/// ```
/// # use onlyonce::{Durability, Operation, testing::Sim};
/// # let sim = Sim::new(1);
/// # let store = sim.open()?;
/// # for n in 0..500_u64 { let _ = store.mark(Operation::new(n).durability(Durability::Flush))?; }
/// # sim.power_loss_keeping_some(7);
/// let store = sim.open()?; // after a power cut
/// if let Some(cut) = store.stats().opening.cut {
///     println!("{} bytes cut off in {}", cut.bytes(), cut.path().display());
/// }
/// # assert!(store.stats().opening.cut.is_some());
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    path: PathBuf,
    offset: u64,
    bytes: u64,
    whole_records: u64,
}

impl Cut {
    /// Returns the path of the segment.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # for n in 0..500_u64 { let _ = store.mark(Operation::new(n).durability(Durability::Flush))?; }
    /// # sim.power_loss_keeping_some(7);
    /// let cut = sim.open()?.stats().opening.cut.unwrap();
    /// assert!(cut.path().starts_with("/store/log"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the offset in the segment at which the log ended.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # for n in 0..500_u64 { let _ = store.mark(Operation::new(n).durability(Durability::Flush))?; }
    /// # sim.power_loss_keeping_some(7);
    /// let cut = sim.open()?.stats().opening.cut.unwrap();
    /// println!("the log ends at byte {} of {}", cut.offset(), cut.path().display());
    /// # assert!(cut.offset() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns how many bytes after that offset held data.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # for n in 0..500_u64 { let _ = store.mark(Operation::new(n).durability(Durability::Flush))?; }
    /// # sim.power_loss_keeping_some(7);
    /// let cut = sim.open()?.stats().opening.cut.unwrap();
    /// assert!(cut.bytes() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how many whole records the cut tail contained. There may be some, because devices persist writes out of
    /// order.
    ///
    /// ```
    /// # use onlyonce::{Durability, Operation, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # for n in 0..500_u64 { let _ = store.mark(Operation::new(n).durability(Durability::Flush))?; }
    /// # sim.power_loss_keeping_some(7);
    /// let cut = sim.open()?.stats().opening.cut.unwrap();
    /// println!("{} bytes, with {} whole records", cut.bytes(), cut.whole_records());
    /// # assert!(cut.whole_records() > 0);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn whole_records(&self) -> u64 {
        self.whole_records
    }
}
