//! Walks over the keys of a store: [`Iter`], by state, prefix and age.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::Cursor;
use super::hosted::{Hosted, KeyPrefix, ListedKey, Listing, PageAt};
use crate::backend::Shared;
use crate::claim::seen::state_of;
use crate::claim::{State, wall_millis};
use crate::engine::{Engine, Found, Seen, Walk, Which};
use crate::limits;
use crate::log::open::at_rest::AtRest;
use crate::log::open::lifecycle::Inside;
use crate::operation::Lies;
use crate::protocol::{
    OpenAs, Phase, Presence, is_being_decided, is_delayed, is_expired, phase_shown,
};
use crate::types::{KeyHash, Token};
use crate::{Error, Key, Result};

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
    /// Of a store that another process hosts.
    pages: Option<Pages>,
    is_over: bool,
    /// The files that a reader's walk reads.
    files: Option<Arc<AtRest>>,
    /// Steps of a reader's walk that were checked and not shown yet.
    ahead: VecDeque<Result<(Key<'static>, State)>>,
}

/// A walk that the host of the store makes, page by page.
struct Pages {
    host: Arc<dyn Hosted>,
    ready: VecDeque<Result<ListedKey>>,
    /// Where the next page begins; `None`: at the first key.
    next: Option<PageAt>,
    is_last: bool,
    /// How many keys to ask for: few at first, for a caller that takes only those.
    most: u32,
}

/// The keys of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    /// `host`: the store is hosted by another process.
    pub(crate) fn new(
        shared: Arc<Shared>,
        scope: Result<Scope>,
        host: Option<Arc<dyn Hosted>>,
    ) -> Self {
        let (states, prefix, walk, by_age) = (None, None, None, None);
        let most = limits::PAGE_KEYS_FIRST;
        let (ready, next, is_last) = (VecDeque::new(), None, false);
        let pages = host.map(|host| Pages { host, ready, next, is_last, most });
        let (is_over, files, ahead) = (false, None, VecDeque::new());
        // It goes on where it began: what it has read of the files may belong to another open after a reopening.
        let shared = Arc::clone(shared.current_arc());
        Iter { shared, scope, states, prefix, walk, by_age, pages, is_over, files, ahead }
    }

    /// The same for a reader: steps count only if the files are still at rest after them.
    pub(crate) fn at_rest(self, files: &Arc<AtRest>) -> Self {
        Iter { files: Some(Arc::clone(files)), ..self }
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

    pub(super) fn look(
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

impl Iter {
    /// Begins the walk over the keys that can be in the requested states.
    pub(super) fn begin(&self, engine: &Engine, inside: &Inside<'_>) -> Result<Walk> {
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

impl Iter {
    /// Returns the next key as it was found; at the end it notes that the walk is over.
    pub(super) fn step(&mut self) -> Option<Result<(Key<'static>, Seen)>> {
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
        if let Some(mut pages) = self.pages.take() {
            let next = self.next_of_pages(&mut pages, scope);
            self.pages = Some(pages);
            return next;
        }
        let shared = Arc::clone(&self.shared);
        let entered = shared.begun_on().and_then(|engine| Ok((engine, engine.enter()?)));
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
        next
    }

    fn next_of_pages(
        &mut self,
        pages: &mut Pages,
        scope: Scope,
    ) -> Option<Result<(Key<'static>, Seen)>> {
        loop {
            if let Err(e) = pages.host.check_open() {
                self.is_over = true;
                return Some(Err(e));
            }
            let Some(listed) = pages.ready.pop_front() else {
                if pages.is_last {
                    self.is_over = true;
                    return None;
                }
                if let Err(e) = self.read_page(pages, scope) {
                    self.is_over = true;
                    return Some(Err(e));
                }
                continue;
            };
            let ListedKey { key, view, now, since } = match listed {
                Ok(listed) => listed,
                Err(e) => return Some(Err(e)),
            };
            if let Some(by_age) = &mut self.by_age {
                by_age.last = Some(Cursor::new(since, key.shown().clone()));
            }
            let found = Found::elsewhere(
                view.state,
                view.presence,
                view.lease_until,
                view.asker,
                view.outcome,
            );
            if let Some(seen) = Seen::elsewhere(found, now) {
                return Some(Ok((key, seen)));
            }
        }
    }

    fn read_page(&self, pages: &mut Pages, scope: Scope) -> Result<()> {
        let first = || match &self.by_age {
            None => PageAt::First,
            Some(by_age) => by_age.last.clone().map_or(PageAt::Oldest, PageAt::After),
        };
        let listing = Listing {
            scope,
            states: self.states.clone(),
            prefix: self.prefix.clone().map(KeyPrefix),
            at: pages.next.take().unwrap_or_else(first),
            most: pages.most,
        };
        let page = pages.host.page(listing)?;
        pages.ready.extend(page.keys);
        (pages.is_last, pages.next) = (page.next.is_none(), page.next);
        pages.most = (pages.most * 2).min(limits::PAGE_KEYS_MAX as u32);
        Ok(())
    }
}

impl Iter {
    /// The next key as it is shown.
    fn show_next(&mut self) -> Option<Result<(Key<'static>, State)>> {
        self.step().map(|found| {
            found.and_then(|(key, seen)| {
                Ok((key.shown().clone(), state_of(&key, seen, &self.shared)?))
            })
        })
    }

    /// Takes the steps that one check covers. In the order of age that is one: the cursor is that of the key shown last.
    fn step_ahead(&mut self) {
        let most = if self.by_age.is_some() { 1 } else { limits::READER_STEPS };
        while self.ahead.len() < most && !self.is_over {
            let step = self.show_next();
            self.ahead.extend(step);
        }
    }
}

impl Iterator for Iter {
    type Item = Result<(Key<'static>, State)>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some(files) = self.files.clone() else { return self.show_next() };
        if self.ahead.is_empty() && !self.is_over {
            self.step_ahead();
            // Even if nothing was found: the end of a walk is an answer, too.
            if let Err(e) = files.check() {
                self.ahead.clear();
                (self.is_over, self.walk) = (true, None);
                return Some(Err(e));
            }
        }
        self.ahead.pop_front()
    }
}

impl fmt::Debug for Iter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("states", &self.states).finish_non_exhaustive()
    }
}
