//! Namespaces: [`Store::namespace`], [`Store::version`], [`Store::namespaces`] and [`Store::forget_all`].
//!
//! Promises: a handle remembers only names. Which namespace a name means is asked for every call, so that a handle never
//! reaches the keys of one that was dropped. Never: decides whether a namespace may be dropped; `engine` does.

use std::sync::Arc;

use super::Store;
use crate::backend::Shared;
use crate::engine::{EncodedOutcome, Named, Writing};
use crate::limits::VERSIONS_MAX;
use crate::operation::{Fingerprint, Key, Lies, Operation};
use crate::protocol::{Answer, Call, Conditions, Phase, Sight};
use crate::types::Token;
use crate::{Error, ErrorKind, Result};

/// The namespace of a handle, by its name.
pub(super) struct Space {
    parent: Option<Arc<Space>>,
    name: Box<str>,
    version: Option<(Fingerprint, Box<str>)>,
}

/// What a handle finds under the name of its namespace.
enum NameState {
    It(Token),
    /// The name is free.
    Nothing,
    /// A namespace of another version, which gives way to the handle's.
    OtherVersion(Named),
}

impl Store {
    /// Returns a handle to a namespace of this store: a key space of its own, in which all calls of the handle take place.
    /// No key of a namespace ever equals one outside it, whatever its bytes, so a namespace separates tenants better
    /// than a first part of each key. Namespaces nest: `store.namespace("acme").namespace("plans")`.
    ///
    /// ```
    /// # use onlyonce::{OnInterrupted, Policy, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let acme = store.namespace("acme").with_policy(Policy::new().on_interrupted(OnInterrupted::Hold));
    /// let beta = store.namespace("beta");
    /// assert!(acme.mark(("order", 17))?.is_first());
    /// assert!(beta.mark(("order", 17))?.is_first()); // never meets acme's
    /// assert!(store.mark(("order", 17))?.is_first());
    /// assert_eq!(acme.iter().count(), 1);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// Keys are shown as in the namespace, without its name. The handle has this handle's policy until
    /// [`with_policy`](Self::with_policy) changes it. A guard, an attempt or a state knows its namespace: `resolve`,
    /// `interrupt` and `forget(&State)` work on any handle of the store, and a batch ends claims of other namespaces, too.
    /// Only [`attach`](Self::attach) refuses the ticket of another namespace. `stats`, `estimate`, `verify`, `compact`,
    /// `sync`, `drain` and `close` are about the whole store.
    ///
    /// The call itself does nothing and never fails. The first call that may write a key in it creates the namespace. That
    /// call waits until the namespace is durable: one write and one sync, also if it is a call `…_async`.
    ///
    /// # Errors
    /// Calls on the handle are refused as `Invalid` if the name is empty, and as `TooLarge` if it has more than 4088 bytes. A
    /// key in a namespace has at most 4087 bytes. `Superseded` if the namespace is dropped while a call on a new key is made.
    ///
    /// # Cost
    /// Nine bytes in each record of a key, and a few small allocations and a lookup in memory for each call. The first use of any
    /// namespace after an open reads a record per namespace. Keys outside namespaces cost nothing more.
    #[must_use = "the handle is the only thing that this call makes"]
    pub fn namespace(&self, name: impl Into<String>) -> Store {
        let name = name.into().into_boxed_str();
        let space = Space { parent: self.space.clone(), name, version: None };
        Store { space: Some(Arc::new(space)), ..self.clone() }
    }

    /// Returns a handle that binds the namespace to a version: of a build, a model, a prompt. Its keys are dropped, by one
    /// record, when a handle of another version first claims or marks a key in it.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let plans = store.namespace("plans").version("model-7");
    /// assert!(plans.mark("task-42")?.is_first());
    /// assert!(!plans.mark("task-42")?.is_first());
    ///
    /// let newer = store.namespace("plans").version("model-8");
    /// assert!(newer.mark("task-42")?.is_first()); // planned anew
    /// assert_eq!(plans.mark("task-43").unwrap_err().kind(), ErrorKind::Superseded);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// The store remembers the last 64 versions that a namespace had. A handle of one of them gets `Superseded` from every
    /// call, in any process and after any restart, so two builds that run side by side don't drop each other's keys again and
    /// again. To return to a former version, drop the namespace with [`forget_all`](Self::forget_all) on a handle without a
    /// version. Such a handle uses the namespace in whatever version it is.
    ///
    /// A read drops nothing: under a version that was not used yet, it finds no keys.
    ///
    /// # Errors
    /// Calls on the handle return `InProgress` if a key of the other version is claimed: see [`forget_all`](Self::forget_all).
    /// `Invalid` on a handle that is of no namespace.
    #[must_use = "the handle is the only thing that this call makes"]
    pub fn version(&self, version: impl AsRef<str>) -> Store {
        let version = version.as_ref();
        let version = Some((Fingerprint::of(version), version.into()));
        let (parent, name) = match &self.space {
            Some(space) => (space.parent.clone(), space.name.clone()),
            // Refused by each call.
            None => (None, "".into()),
        };
        Store { space: Some(Arc::new(Space { parent, name, version })), ..self.clone() }
    }

    /// Returns the names of the namespaces that lie directly in this one, or at the root of the store, in alphabetical order.
    /// To list those of a further level, ask a handle of each.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let acme = store.namespace("acme");
    /// let _ = acme.namespace("plans").mark("task-42")?;
    /// assert_eq!(store.namespaces()?, ["acme"]);
    /// assert_eq!(acme.namespaces()?, ["plans"]);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `Invalid` on a store that another backend answers. `Corrupt` if the record of a namespace is damaged; `Superseded`,
    /// `Closed`, `Forked`.
    ///
    /// # Cost
    /// A look into memory, and the reads of a first use: see [`namespace`](Self::namespace).
    pub fn namespaces(&self) -> Result<Vec<String>> {
        let engine = self.shared.embedded()?;
        match &self.space {
            None => engine.names_in(None),
            Some(space) => match space.find(&self.shared)? {
                Some(id) => engine.names_in(Some(id)),
                None => Ok(Vec::new()),
            },
        }
    }

    /// Drops the namespace of this handle: all its keys and all namespaces in it, by one record, however many they are. Returns
    /// `false` if there was no such namespace.
    ///
    /// The keys are absent at once, also those that had expired and were remembered. After a crash at any moment either all of
    /// them are there or none. The first later claim in a namespace of the same name makes a new, empty one. Their bytes stay in
    /// the log until it is compacted.
    ///
    /// The change is durable on return, always at `Sync`.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let acme = store.namespace("acme");
    /// for n in 0..100 {
    ///     let _ = acme.mark(("order", n))?;
    /// }
    /// assert!(acme.forget_all()?);
    /// assert!(acme.get(("order", 17))?.is_none() && store.namespaces()?.is_empty());
    /// assert!(acme.mark(("order", 17))?.is_first());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `InProgress` if a key in it is claimed, or detached under a lease that has not passed: the message names one. Nothing is
    /// changed then. `Invalid` on a handle that is of no namespace; `Superseded`, and the errors of [`claim`](Self::claim).
    ///
    /// # Cost
    /// One write and one sync, and a look at the open keys in memory. The first drop after an open reads a record for each key
    /// that is interrupted, held, delayed or detached, if any is detached.
    pub fn forget_all(&self) -> Result<bool> {
        let Some(space) = &self.space else {
            let message = "this handle is of no namespace: to forget a whole store, close it and remove its directory";
            return Err(Error::invalid(message));
        };
        loop {
            let (parent, found) = match space.look(&self.shared)? {
                Some((parent, Some(named)))
                    if matches!(space.judge(&named), Ok(NameState::It(_))) =>
                {
                    (parent, named)
                }
                Some((_, Some(named))) => return space.judge(&named).map(|_| false),
                _ => return Ok(false),
            };
            let (token, time) = (found.id, found.made);
            let call = Call::ForgetSeen(Sight::Record { token, phase: Phase::Completed, time });
            if space.call(&self.shared, parent, call, &Writing::default())? == Answer::Done {
                return Ok(true);
            }
        }
    }

    /// Moves an operation into the namespace of this handle.
    #[inline]
    pub(super) fn place(&self, op: &mut Operation<'_>) -> Result<()> {
        if let Some(space) = &self.space {
            *op = op.on(space.key(&self.shared, op.key())?);
        }
        Ok(())
    }

    /// The operation in the namespace of this handle, for a call whose answer comes later.
    pub(super) fn owned(&self, op: Operation<'_>) -> Result<Operation<'static>> {
        let mut op = op.into_owned();
        self.place(&mut op)?;
        Ok(op)
    }

    /// The key as it is in the namespace of this handle; `None`: that doesn't exist, so nor does the key.
    #[inline]
    pub(super) fn find<'k>(&self, key: Key<'k>) -> Result<Option<Key<'k>>> {
        match &self.space {
            None => Ok(Some(key)),
            Some(space) => {
                key.check()?;
                Ok(space.find(&self.shared)?.map(|id| key.in_space(id)))
            }
        }
    }

    /// Whether a key of the store, as that of a ticket, is in the namespace of this handle.
    pub(super) fn has(&self, key: &Key<'_>) -> Result<bool> {
        Ok(match (&self.space, key.lies()) {
            (None, Lies::InRoot) => true,
            (Some(space), Lies::In(id)) => space.find(&self.shared)? == Some(id),
            _ => false,
        })
    }
}

impl Space {
    /// The key in this namespace, which is made if there is none.
    pub(super) fn key(&self, shared: &Shared, key: &Key<'_>) -> Result<Key<'static>> {
        key.check()?;
        let key = key.in_space(self.enter(shared)?);
        key.check()?;
        Ok(key)
    }

    fn check(&self) -> Result<()> {
        if self.name.is_empty() {
            let message = "a namespace needs a name, and only a namespace has a version";
            return Err(Error::invalid(message));
        }
        Key::of_space(None, &self.name).check()
    }

    /// The id of this namespace, which is made, or passes to this version, if it has to.
    fn enter(&self, shared: &Shared) -> Result<Token> {
        self.check()?;
        let parent = self.parent.as_ref().map(|parent| parent.enter(shared)).transpose()?;
        let version = self.version.as_ref().map(|(version, _)| *version);
        let conditions = Conditions { fingerprint: version, ..Conditions::default() };
        loop {
            let found = shared.named(parent, &self.name)?;
            match found.map_or(Ok(NameState::Nothing), |named| self.judge(&named))? {
                NameState::It(id) => return Ok(id),
                NameState::Nothing => {
                    let call = Call::Record { fingerprint: version, failure: false };
                    self.call(shared, parent, call, &Writing { conditions, ..Writing::default() })?;
                }
                NameState::OtherVersion(old) => {
                    let mut past: Vec<_> = old.past.iter().copied().chain(old.version).collect();
                    let from = past.len() - past.len().min(VERSIONS_MAX);
                    let past: Vec<u8> =
                        past.drain(from..).flat_map(Fingerprint::to_bytes).collect();
                    let (codec, version, meta, packed) = (0, 0, &[][..], None);
                    let outcome = EncodedOutcome { codec, version, meta, packed, bytes: &past };
                    let outcome = Some(outcome);
                    let writing = Writing { conditions, outcome, ..Writing::default() };
                    self.call(shared, parent, Call::Replace(old.id), &writing)?;
                }
            }
        }
    }

    /// The id of this namespace, if it exists in this version. Changes nothing.
    pub(super) fn find(&self, shared: &Shared) -> Result<Option<Token>> {
        let Some((_, Some(named))) = self.look(shared)? else { return Ok(None) };
        Ok(match self.judge(&named)? {
            NameState::It(id) => Some(id),
            NameState::Nothing | NameState::OtherVersion(_) => None,
        })
    }

    /// The namespace that this one lies in, if there is one, and what is under this one's name there.
    fn look(&self, shared: &Shared) -> Result<Option<(Option<Token>, Option<Named>)>> {
        self.check()?;
        let parent = match &self.parent {
            None => None,
            Some(parent) => match parent.find(shared)? {
                Some(id) => Some(id),
                None => return Ok(None),
            },
        };
        Ok(Some((parent, shared.named(parent, &self.name)?)))
    }

    fn judge(&self, named: &Named) -> Result<NameState> {
        let Some((version, shown)) = &self.version else { return Ok(NameState::It(named.id)) };
        if named.version == Some(*version) {
            return Ok(NameState::It(named.id));
        }
        if named.past.contains(version) {
            let message = format!(
                "the namespace {:?} has passed from version {shown:?} to another: stop using this version, or drop \
                 the namespace with forget_all on a handle without a version",
                self.name
            );
            return Err(Error::new(ErrorKind::Superseded, message));
        }
        Ok(NameState::OtherVersion(named.clone()))
    }

    fn call(
        &self,
        shared: &Shared,
        parent: Option<Token>,
        call: Call,
        writing: &Writing<'_>,
    ) -> Result<Answer> {
        let key = Key::of_space(parent, &self.name);
        let answer = shared.apply(&key, shared.hash(&key), call, writing)?.answer;
        match answer {
            Answer::InProgress => {
                let message = format!(
                    "a key in the namespace {:?} is claimed right now: wait for its owner",
                    self.name
                );
                Err(Error::new(ErrorKind::InProgress, message))
            }
            answer => Ok(answer),
        }
    }
}
