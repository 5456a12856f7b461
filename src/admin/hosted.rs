//! What the operators' calls ask of a store that another process hosts: [`Hosted`], and pages of a walk.
//!
//! Promises: a page says where the next one begins, so that the host keeps nothing between two of them, and the next host can
//! continue. Never: knows how a host is reached.

use std::path::Path;
use std::sync::Arc;

use super::{Cursor, Estimate, Health, Iter, Scope, StateKind, Stats, Verification};
use crate::backend::{KeyView, Shared};
use crate::engine::{BackedUp, Compacted, Engine, Seen};
use crate::limits;
use crate::operation::Key;
use crate::types::{KeyHash, StoreMillis, Token, WallMillis};
use crate::{Error, ErrorKind, Result};

/// A store that another process hosts, until this one does.
pub(crate) trait Hosted: Send + Sync {
    fn stats(&self) -> Stats;
    /// Judges a claim that reserves so many bytes.
    fn health(&self, reserve_bytes: u32) -> Health;
    fn estimate(&self) -> Result<Estimate>;
    fn verify(&self) -> Result<Verification>;
    fn compact(&self, budget: u64) -> Result<Compacted>;
    /// `dir` is absolute.
    fn backup(&self, dir: &Path) -> Result<BackedUp>;
    fn rebuild_index(&self) -> Result<()>;
    fn merge_index(&self) -> Result<()>;
    /// The names of the namespaces in that one; `None`: in no namespace.
    fn names_in(&self, parent: Option<Token>) -> Result<Vec<String>>;
    fn page(&self, listing: Listing) -> Result<KeyPage>;
    /// Fails if the store was closed, or this process is a fork.
    fn check_open(&self) -> Result<()>;
}

/// Which keys a page of a walk has.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) scope: Scope,
    /// `None`: in any state.
    pub(crate) states: Option<Vec<StateKind>>,
    pub(crate) prefix: Option<KeyPrefix>,
    pub(crate) at: PageAt,
    /// The most keys that the guest wants; the host may send fewer.
    pub(crate) most: u32,
}

/// What the keys of a walk begin with. Other than a key, it may be empty, or longer than keys are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeyPrefix(pub(crate) Key<'static>);

/// Where in a walk a page begins. The host keeps nothing between two pages, so that the next host can continue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum PageAt {
    /// At the first key, in the order of the hashes.
    First,
    /// After the keys with that hash. The hash is the same for every host of the store.
    AfterHash { high: u64, low: u64 },
    /// At the first key, in the order of age.
    Oldest,
    /// In the order of age, after that key.
    After(Cursor),
}

/// A page of a walk.
#[derive(Debug)]
pub(crate) struct KeyPage {
    /// In place of a key that can't be read: why.
    pub(crate) keys: Vec<Result<ListedKey, Error>>,
    /// Where the next page begins; `None`: this is the last.
    pub(crate) next: Option<PageAt>,
}

/// A key as a walk found it.
#[derive(Debug)]
pub(crate) struct ListedKey {
    /// As it is stored: in its namespace.
    pub(crate) key: Key<'static>,
    pub(crate) view: KeyView,
    pub(crate) now: StoreMillis,
    /// The time that it is sorted by in the order of age.
    pub(crate) since: WallMillis,
}

impl ListedKey {
    fn new(key: Key<'static>, seen: Seen, since: WallMillis) -> Self {
        let Seen { state, presence, lease_until, asker, outcome, now, .. } = seen;
        let view = KeyView { state, presence, lease_until, asker, outcome };
        ListedKey { key, view, now, since }
    }
}

/// Keys that are gathered until they fill a page.
struct Filling<'s> {
    page: KeyPage,
    most: usize,
    bytes: usize,
    /// The longest key that arrives.
    longest: usize,
    /// What a key or an error takes in a frame.
    size: &'s dyn Fn(&Result<ListedKey, Error>) -> usize,
}

impl Filling<'_> {
    fn is_full(&self) -> bool {
        self.page.keys.len() >= self.most
    }

    /// Takes one in, unless it is too large for a page that has others.
    fn push(&mut self, mut listed: Result<ListedKey, Error>) -> bool {
        let mut size = (self.size)(&listed);
        if size > self.longest {
            let message = "the recorded result of a key is longer than any that the processes of this store may record now: open it with \
                 a greater result_bytes_max";
            listed = Err(Error::new(ErrorKind::TooLarge, message));
            size = (self.size)(&listed);
        }
        if !self.page.keys.is_empty() && self.bytes + size > limits::PAGE_BYTES_MAX {
            return false;
        }
        self.bytes += size;
        self.page.keys.push(listed);
        true
    }
}

impl KeyPage {
    /// Reads a page of the store that this process hosts. What it shows is written before. `size`: what a key or an error takes
    /// in a frame. `most_bytes`: the longest frame.
    pub(crate) fn read(
        shared: &Arc<Shared>,
        listing: Listing,
        size: &dyn Fn(&Result<ListedKey, Error>) -> usize,
        most_bytes: usize,
    ) -> Result<KeyPage> {
        let Listing { scope, states, prefix, at, most } = listing;
        let most = usize::try_from(most).unwrap_or(usize::MAX).clamp(1, limits::PAGE_KEYS_MAX);
        let mut iter = Iter::new(Arc::clone(shared), Ok(scope), None);
        if let Some(states) = states {
            iter = iter.in_states(&states);
        }
        if let Some(KeyPrefix(prefix)) = prefix {
            iter = iter.prefix(prefix);
        }
        let page = KeyPage { keys: Vec::new(), next: None };
        // The rest of the frame has the position of the next page.
        let longest = most_bytes.saturating_sub(limits::KEY_BYTES_MAX + 128);
        let filling = Filling { page, most, bytes: 0, longest, size };
        match at {
            PageAt::First => iter.fill_by_hash(shared.embedded()?, None, filling),
            PageAt::AfterHash { high, low } => {
                iter.fill_by_hash(shared.embedded()?, Some(KeyHash { high, low }), filling)
            }
            PageAt::Oldest => iter.oldest_first().fill_by_age(shared, filling),
            PageAt::After(cursor) => iter.after(&cursor).fill_by_age(shared, filling),
        }
    }
}

impl Iter {
    /// Adds keys in the order of their hashes: the same for each host, so that each key that doesn't change comes once.
    fn fill_by_hash(
        &self,
        engine: &Engine,
        after: Option<KeyHash>,
        mut filling: Filling<'_>,
    ) -> Result<KeyPage> {
        let inside = engine.enter()?;
        engine.settle_absence()?;
        let mut walk = self.begin(engine, &inside)?;
        walk.skip_to(after);
        let mut last = after;
        while let Some(group) = engine.next_by_hash(&inside, &mut walk, after)? {
            for (hash, met) in group {
                let found = met.and_then(|key| self.look(engine, &inside, key, hash));
                let listed = match found {
                    Ok(None) => {
                        last = Some(hash);
                        continue;
                    }
                    Ok(Some((key, seen))) => engine
                        .write_for_guest(&seen)
                        .map(|()| ListedKey::new(key, seen, WallMillis(0))),
                    Err(e) if engine.is_closing() => return Err(e),
                    Err(e) => Err(e),
                };
                if filling.is_full() || !filling.push(listed) {
                    let at = last.map(|hash| PageAt::AfterHash { high: hash.high, low: hash.low });
                    filling.page.next = at.or(Some(PageAt::First));
                    return Ok(filling.page);
                }
                last = Some(hash);
            }
        }
        for error in walk.take_undecided() {
            filling.push(Err(error));
        }
        Ok(filling.page)
    }

    /// Adds the oldest keys.
    fn fill_by_age(mut self, shared: &Shared, mut filling: Filling<'_>) -> Result<KeyPage> {
        let engine = shared.embedded()?;
        loop {
            let last = self.cursor().cloned();
            let Some(met) = self.step() else { return Ok(filling.page) };
            // The next host is asked.
            if engine.is_closing() {
                return Err(engine.log.closed());
            }
            let is_key = self.cursor() != last.as_ref();
            let listed = met.and_then(|(key, seen)| {
                engine.write_for_guest(&seen)?;
                let since = self.cursor().map_or(WallMillis(0), Cursor::since);
                Ok(ListedKey::new(key, seen, since))
            });
            // Errors of keys that have no place in the order come after all keys, with the last page.
            if (is_key && filling.is_full()) || !filling.push(listed) {
                if is_key {
                    filling.page.next = Some(last.map_or(PageAt::Oldest, PageAt::After));
                }
                return Ok(filling.page);
            }
        }
    }
}
