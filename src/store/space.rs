//! Namespaces: [`Store::namespace`], [`Store::version`], [`Store::namespaces`] and [`Store::forget_all`].
//!
//! Promises: every call of a handle takes place in its namespace; one that gives its answer later neither does I/O nor waits in
//! order to find that. Never: knows which namespace a name means; `backend::space` finds that out.

use std::sync::Arc;

use super::Store;
use crate::admin::Hosted;
use crate::backend::{EngineErrand, Errand, NOWHERE, Shared, Space, SpaceGoal, is_in};
use crate::claim::{KeyCall, Pending, send_in};
use crate::engine::Engine;
use crate::operation::{Fingerprint, Key, Operation};
use crate::types::Token;
use crate::{Error, ErrorKind, Result};

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
    /// call is made once the namespace is durable, which takes one write and one sync more. A call `…_async` blocks for that
    /// neither when it is made nor in a poll: see [`Pending`].
    ///
    /// # Errors
    /// Calls on the handle are refused as `Invalid` if the name is empty, and as `TooLarge` if it has more than 4088 bytes. A
    /// key in a namespace has at most 4087 bytes. `Superseded` if the namespace is dropped while a call on a new key is made.
    ///
    /// # Cost
    /// Nine bytes in each record of a key, and a few small allocations and a lookup in memory for each call. The first use of any
    /// namespace after an open reads a record per namespace. Keys outside namespaces cost nothing more. On a store that another
    /// backend answers, each call asks that for its namespace first, with a request for each level.
    #[must_use = "the handle is the only thing that this call makes"]
    pub fn namespace(&self, name: impl Into<String>) -> Store {
        let name = name.into().into_boxed_str();
        let space = Space { parent: self.space.clone(), name, version: None };
        Store { space: Some(Arc::new(space)), ..self.clone() }
    }

    /// Returns a handle that binds the namespace to a version: of a build, a model, a prompt. Its keys are dropped, by one
    /// record, when a handle of another version first claims or marks a key in it: interrupted, held and delayed ones, too,
    /// whatever their attempts may have done outside. Only a claimed key refuses that. Keep what a person still has to decide in
    /// a namespace without a version.
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
    /// `Invalid` on a store that another backend answers: a backend lists nothing. `Corrupt` if the record of a namespace is damaged; `Superseded`,
    /// `Closed`, `Forked`.
    ///
    /// # Cost
    /// A look into memory, and the reads of a first use: see [`namespace`](Self::namespace).
    pub fn namespaces(&self) -> Result<Vec<String>> {
        names_in(&self.shared, self.host.as_deref(), self.space.as_ref())
    }

    /// Returns the names of the namespaces in this one as [`namespaces`](Self::namespaces) does, later.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.namespace("acme").mark("task-42")?;
    /// assert_eq!(store.namespaces_async().wait()?, ["acme"]);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`namespaces`](Self::namespaces), as the answer.
    pub fn namespaces_async(&self) -> Pending<Vec<String>> {
        let (space, host) = (self.space.clone(), self.host.clone());
        if host.is_some() {
            let work = move |shared: &Shared| names_in(shared, host.as_deref(), space.as_ref());
            return Pending::new(Errand::run(&self.shared, "onlyonce-names", work), |told| told);
        }
        let work = move |engine: &Engine| match &space {
            None => engine.names_in(None),
            Some(space) => space.names(engine),
        };
        match self.shared.embedded() {
            Ok(engine) => {
                Pending::new(EngineErrand::begin(&self.shared, engine, work), |told| told)
            }
            Err(e) => Pending::ready(Err(e)),
        }
    }

    /// Drops the namespace of this handle: all its keys and all namespaces in it, by one record, however many they are. Returns
    /// `false` if there was no such namespace.
    ///
    /// The keys are absent at once: also those that are interrupted or held, and those that had expired and were remembered. After a crash at any moment either all of
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
        self.to_be_dropped()?.forget(&*self.shared)
    }

    /// Drops the namespace of this handle as [`forget_all`](Self::forget_all) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let acme = store.namespace("acme");
    /// let _ = acme.mark(("order", 17))?;
    /// assert!(acme.forget_all_async().wait()?);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`forget_all`](Self::forget_all), as the answer.
    pub fn forget_all_async(&self) -> Pending<bool> {
        match self.to_be_dropped() {
            Ok(space) => Pending::new(self.shared.send_forget_space(space), |told| told),
            Err(e) => Pending::ready(Err(e)),
        }
    }

    fn to_be_dropped(&self) -> Result<&Arc<Space>> {
        self.space.as_ref().ok_or_else(|| {
            let message = "this handle is of no namespace: to forget a whole store, close it and remove its directory";
            Error::invalid(message)
        })
    }

    /// Moves an operation into the namespace of this handle. Waits for that, as the calls below do.
    #[inline]
    pub(super) fn place(&self, op: &mut Operation<'_>) -> Result<()> {
        if let Some(space) = &self.space {
            *op = op.on(key_in(space, &self.shared, op.key())?);
        }
        Ok(())
    }

    /// The key as it is in the namespace of this handle; `None`: that doesn't exist, so nor does the key.
    #[inline]
    pub(super) fn find<'k>(&self, key: Key<'k>) -> Result<Option<Key<'k>>> {
        match &self.space {
            None => Ok(Some(key)),
            Some(space) => {
                key.check_in_space()?;
                Ok(space.resolve(&self.shared, false)?.map(|id| key.in_space(id)))
            }
        }
    }

    /// Whether a key of the store, as that of a ticket, is in the namespace of this handle.
    pub(super) fn has(&self, key: &Key<'_>) -> Result<bool> {
        match &self.space {
            None => Ok(is_in(key, None)),
            Some(space) => {
                let found = space.resolve(&self.shared, false)?;
                Ok(found.is_some_and(|id| is_in(key, Some(id))))
            }
        }
    }

    /// Moves a call into the namespace of this handle, as far as it wants that. Where there is none, there is no key.
    pub(super) fn found<I: KeyCall>(&self, mut item: I) -> Result<I> {
        if let (Some(space), Some(goal)) = (&self.space, item.goal()) {
            let found = space.resolve(&self.shared, goal == SpaceGoal::Enter)?;
            item.enter(found.unwrap_or(NOWHERE));
            item.key().check()?;
        }
        Ok(item)
    }

    /// Sends a call in the namespace of this handle.
    pub(super) fn send<I: KeyCall + Send + 'static>(&self, item: Result<I>) -> Pending<I::Answer> {
        send_in(&self.shared, self.space.as_ref(), item, None)
    }
}

fn names_in(
    shared: &Shared,
    host: Option<&dyn Hosted>,
    space: Option<&Arc<Space>>,
) -> Result<Vec<String>> {
    let Some(host) = host else {
        let engine = shared.embedded()?;
        return match space {
            None => engine.names_in(None),
            Some(space) => space.names(engine),
        };
    };
    match space.map(|space| space.resolve(shared, false)).transpose()? {
        None => host.names_in(None),
        Some(Some(id)) => host.names_in(Some(id)),
        Some(None) => Ok(Vec::new()),
    }
}

/// The key in that namespace, which is made if there is none.
pub(super) fn key_in(space: &Arc<Space>, shared: &Shared, key: &Key<'_>) -> Result<Key<'static>> {
    key.check_in_space()?;
    Ok(key.in_space(id_in(space, shared)?))
}

fn id_in(space: &Arc<Space>, shared: &Shared) -> Result<Token> {
    let made = space.resolve(shared, true)?;
    made.ok_or_else(|| Error::new(ErrorKind::Bug, "a namespace was not made"))
}
