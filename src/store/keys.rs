//! Calls on a key by others than its claimants: its state, and what operators do with it.

use std::sync::Arc;

use super::Store;
use crate::admin::{Iter, Scope};
use crate::backend::{Entering, NOWHERE, SpaceGoal, SpaceKnown, elsewhere};
use crate::claim::seen::{shown_state, state_of};
use crate::claim::{
    Attaching, Attempt, ClaimGuard, Forgetting, ForgettingClaimed, Pending, Resolution, Resolving,
    Revoking, State, Ticket, ToForget, make, send,
};
use crate::types::Token;
use crate::{Key, Result};

impl Store {
    /// Returns the state of a key, or `None` if the key is absent: never claimed, forgotten, or past its retention.
    ///
    /// ```
    /// # use onlyonce::{State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.mark("message-7")?;
    /// assert!(matches!(store.get("message-7")?, Some(State::Completed(_))));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Corrupt` if the key's record is damaged; `Invalid` or `TooLarge` if the key is not valid; `Superseded` if the store has
    /// left the version of this handle's namespace; `Closed`, `Forked`, `Indeterminate`.
    ///
    /// # Cost
    /// One read, or none for a key in progress. Nothing is written, unless the lookup finds a table of the index
    /// damaged. Then that table is mended first, which reads the part of the log that the table covers.
    pub fn get<'k>(&self, key: impl Into<Key<'k>>) -> Result<Option<State>> {
        let Some(key) = self.find(key.into())? else { return Ok(None) };
        key.check()?;
        match self.shared.look(&key, self.shared.hash(&key))? {
            Some(seen) => state_of(&key, seen, &self.shared).map(Some),
            None => Ok(None),
        }
    }

    /// Returns the state of a key as [`get`](Self::get) does, later.
    ///
    /// ```
    /// # use onlyonce::{State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.mark("message-7")?;
    /// assert!(matches!(store.get_async("message-7").wait()?, Some(State::Completed(_))));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`get`](Self::get), as the answer.
    pub fn get_async<'k>(&self, key: impl Into<Key<'k>>) -> Pending<Option<State>> {
        let (key, entering) = match self.to_look_at(key.into()) {
            Ok(Some(sought)) => sought,
            Ok(None) => return Pending::ready(Ok(None)),
            Err(e) => return Pending::ready(Err(e)),
        };
        let entered = entering.as_ref().map(Entering::entered);
        let underway = self.shared.send_look(&key, entering);
        let shared = Arc::clone(&self.shared);
        Pending::new(underway, move |told| {
            let applied = told?;
            let id = entered.and_then(|entered| entered.id());
            let key = id.map_or(key.clone(), |id| key.shown().in_space(id));
            match applied.found {
                Some(_) => shown_state(&key, applied, &shared).map(Some),
                None => Ok(None),
            }
        })
    }

    /// The key in the namespace of this handle, and that namespace if memory doesn't know it. `None`: it doesn't exist.
    fn to_look_at(&self, key: Key<'_>) -> Result<Option<(Key<'static>, Option<Entering>)>> {
        let Some(space) = &self.space else {
            key.check()?;
            return Ok(Some((key.into_owned(), None)));
        };
        key.check_in_space()?;
        let (id, entering) = match self.shared.known(space, false)? {
            SpaceKnown::It(id) => (id, None),
            SpaceKnown::Nowhere => return Ok(None),
            SpaceKnown::Unknown => (NOWHERE, Some(Entering::new(Some(space), SpaceGoal::Find))),
        };
        Ok(Some((key.in_space(id), entering)))
    }

    /// Resolves an interrupted or held attempt with what you found out: records an outcome, or lets the work be retried. An
    /// aborted attempt can be resolved too, because its key is held once [`attempts_max`](crate::Policy::attempts_max) is
    /// reached. Returns `false`, and changes nothing, if the key is no longer in the state in which you saw the attempt, as
    /// [`forget`](Self::forget) does of a [`State`]: your word overrules no hold, no retry, no progress and no announced step
    /// that you did not see. An attempt that you saw in progress can't be resolved once it is interrupted: look again. A lapse
    /// that is recorded after you saw the attempt interrupted is no change.
    ///
    /// The owner label of this handle's policy is recorded as the one that decided it, see
    /// [`Attempt::decided_by`](crate::Attempt::decided_by) and [`Recorded::decided_by`](crate::Recorded::decided_by).
    ///
    /// After [`Retry`](Resolution::Retry) the next claim is granted, and `attempts_max` counts from zero again. Attempt
    /// numbers are not reset.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, Resolution, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("task-42")?);
    /// if let Some(State::Interrupted(a) | State::Held(a)) = store.get("task-42")? {
    ///     store.resolve(&a, Resolution::Record(Outcome::success("paid")))?;
    /// }
    /// assert!(matches!(store.claim("task-42")?, Claim::Completed(_)));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// The change is durable on return, always at `Sync`.
    ///
    /// # Errors
    /// `InProgress` if the attempt's owner is still at work; `TooLarge` if the outcome exceeds a limit; the errors of
    /// [`claim`](Self::claim).
    ///
    /// # Cost
    /// One write and one sync, or neither if the call returns `false`.
    pub fn resolve(&self, attempt: &Attempt, resolution: Resolution) -> Result<bool> {
        make(&self.shared, Resolving::new(&self.shared, attempt, resolution, &self.policy)?)
    }

    /// Resolves an attempt as [`resolve`](Self::resolve) does, and gives the answer later: `false` if the key is no longer in
    /// the state in which you saw the attempt.
    ///
    /// ```
    /// # use onlyonce::{Resolution, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("mail-1")?);
    /// # let Some(State::Interrupted(lost)) = store.get("mail-1")? else { unreachable!() };
    /// let retry = Resolution::retry("the outbox has no such mail");
    /// assert!(store.resolve_async(&lost, retry).wait()?);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`resolve`](Self::resolve), as the answer.
    pub fn resolve_async(&self, attempt: &Attempt, resolution: Resolution) -> Pending<bool> {
        let resolving = Resolving::new(&self.shared, attempt, resolution, &self.policy);
        send(&self.shared, resolving)
    }

    /// Revokes a live claim: the attempt is interrupted, with this reason, and its owner can do nothing more. Returns
    /// `false`, and changes nothing, if the key is no longer claimed by the attempt that you saw. An attempt about which a
    /// claimant decides is interrupted already: [`resolve`](Self::resolve) it, or wait for that claimant.
    ///
    /// The work itself isn't stopped: its owner learns of it by [`is_live`](crate::ClaimHandle::is_live), or by the
    /// `ClaimLost` of its next call. What the work has done until then is unknown, so the next claimant is told of an
    /// interrupted attempt. The claim's token is spent: a resource that remembers the greatest token it has seen refuses the
    /// revoked owner once the next one has come.
    ///
    /// The change is durable on return, always at `Sync`, and costs one write and one sync. A reason of more than 512 bytes is
    /// cut; the owner label of this handle's policy is recorded as the one that decided it.
    ///
    /// ```
    /// # use onlyonce::{Claim, ErrorKind, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("import")? else { unreachable!() };
    /// let Some(State::InProgress(attempt)) = store.get("import")? else { unreachable!() };
    /// assert!(store.interrupt(&attempt, "it has been stuck since Monday")?);
    /// assert!(matches!(store.claim("import")?, Claim::Interrupted(_)));
    /// assert_eq!(claim.complete("late").unwrap_err().kind(), ErrorKind::ClaimLost);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`claim`](Self::claim).
    pub fn interrupt(&self, attempt: &Attempt, reason: impl Into<String>) -> Result<bool> {
        make(&self.shared, Revoking::new(attempt, reason.into(), &self.policy)?)
    }

    /// Revokes a live claim as [`interrupt`](Self::interrupt) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("import")? else { unreachable!() };
    /// # let Some(State::InProgress(attempt)) = store.get("import")? else { unreachable!() };
    /// assert!(store.interrupt_async(&attempt, "it has been stuck since Monday").wait()?);
    /// # assert!(!claim.is_live());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`interrupt`](Self::interrupt), as the answer.
    pub fn interrupt_async(&self, attempt: &Attempt, reason: impl Into<String>) -> Pending<bool> {
        send(&self.shared, Revoking::new(attempt, reason.into(), &self.policy))
    }

    /// Attaches a claim that was [detached](crate::ClaimGuard::detach), and returns its guard: the same attempt, under the
    /// same token. This handle's policy supplies the guard's durability, retention and the like.
    ///
    /// The claim keeps its lease, which [`renew`](crate::ClaimHandle::renew) extends. Dropping the guard without an ending
    /// leaves the claim as it was, whatever [`OnDrop`](crate::OnDrop) says: the lease runs, and the ticket attaches again. After
    /// the lease has passed the ticket still counts, as long as nobody took over.
    ///
    /// ```
    /// # use onlyonce::{Claim, ErrorKind, Ticket, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("job-7")? else { unreachable!() };
    /// # let text = claim.detach(Duration::from_secs(900))?.to_string();
    /// let ticket: Ticket = text.parse()?;
    /// match store.attach(&ticket) {
    ///     Ok(claim) => claim.complete("done")?,
    ///     Err(e) if e.kind() == ErrorKind::ClaimLost => println!("too late: {e}"),
    ///     Err(e) if e.kind() == ErrorKind::InProgress => println!("try again: {e}"),
    ///     Err(e) => return Err(e),
    /// }
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if the ticket is not of this store, somebody took over, or the claim has ended: then nothing is left to do.
    /// `InProgress` if a guard of the claim is attached right now: it may still end the claim, or leave it as it was, so try
    /// again later. `Invalid` if this store made the ticket, but in another namespace than this handle's:
    /// the claim still counts, so use a handle of that namespace. Also the errors of [`claim`](Self::claim), except that a full
    /// disk is none: if there is no space for a result, the claim is attached nevertheless. It then ends without a result
    /// ([`Outcome::without_result`](crate::Outcome::without_result), `abort`, `hold`), and with one only if space is free.
    ///
    /// # Cost
    /// One read. Nothing is written, unless the store has written nothing yet since it was opened.
    pub fn attach(&self, ticket: &Ticket) -> Result<ClaimGuard> {
        let attaching = Attaching::new(&self.shared, ticket, &self.policy)?;
        let key = ticket.stored_key();
        // One of a namespace that was dropped is answered as lost.
        if !self.has(key)? && self.shared.look(key, self.shared.hash(key))?.is_some() {
            return Err(elsewhere(key));
        }
        make(&self.shared, attaching)
    }

    /// Attaches a detached claim as [`attach`](Self::attach) does, and gives the guard later. Dropped before that, the claim
    /// stays detached, and its ticket attaches again.
    ///
    /// ```
    /// # use onlyonce::{Claim, Store, Ticket, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("job-7")? else { unreachable!() };
    /// # let ticket = claim.detach(Duration::from_secs(900))?;
    /// let claim = store.attach_async(&ticket).wait()?;
    /// claim.complete_async("done").wait()?;
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`attach`](Self::attach), as the answer.
    pub fn attach_async(&self, ticket: &Ticket) -> Pending<ClaimGuard> {
        self.send(Attaching::new(&self.shared, ticket, &self.policy))
    }

    /// Forgets a key that is not claimed right now; the next claim treats the key as new. Returns `false` if there was
    /// nothing to forget.
    ///
    /// Takes a key, or the [`State`] in which it was seen. Then the call also returns `false`, and changes nothing, if the key
    /// has changed since, as [`resolve`](Self::resolve) does: what a person or a program has judged is forgotten, and nothing
    /// else. Every record of the key counts as a change, including saved progress, except one that only notes that a lease had
    /// passed: the key was shown as interrupted before. An open question is not a change.
    /// Two records of one attempt in one state are told apart by their times, to the millisecond.
    ///
    /// The change is durable on return, always at `Sync`, and costs one write and one sync. The key's bytes stay in the
    /// log until the log is compacted.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.mark("message-7")?;
    /// assert!(store.forget("message-7")?);
    /// assert!(store.mark("message-7")?.is_first());
    ///
    /// let seen = store.get("message-7")?.expect("it was marked");
    /// # store.forget("message-7")?;
    /// # let _ = store.mark("message-7")?;
    /// assert!(!store.forget(&seen)?); // meanwhile somebody forgot it, and it was marked again
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `InProgress` if the key is claimed: see [`forget_claimed`](Self::forget_claimed). Also the errors of
    /// [`claim`](Self::claim).
    pub fn forget<'k>(&self, what: impl Into<ToForget<'k>>) -> Result<bool> {
        make(&self.shared, self.found(Forgetting::new(what.into())?)?)
    }

    /// Forgets a key as [`forget`](Self::forget) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::testing::Sim;
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.mark("message-7")?;
    /// assert!(store.forget_async("message-7").wait()?);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`forget`](Self::forget), as the answer.
    pub fn forget_async<'k>(&self, what: impl Into<ToForget<'k>>) -> Pending<bool> {
        self.send(Forgetting::new(what.into().into_owned()))
    }

    /// Forgets a key that is claimed right now under `token`. The owner is fenced off, and nothing records what the
    /// owner has done: use this call with care.
    ///
    /// The change is durable on return, always at `Sync`, and costs one write and one sync.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("stuck")?);
    /// let Claim::Interrupted(lost) = store.claim("stuck")? else { unreachable!() };
    /// let claim = lost.take_over()?;
    /// store.forget_claimed("stuck", claim.token())?;
    /// assert!(claim.complete("too late").is_err());
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if the key isn't claimed under `token`. Also the errors of [`claim`](Self::claim).
    pub fn forget_claimed<'k>(&self, key: impl Into<Key<'k>>, token: Token) -> Result<()> {
        make(&self.shared, self.found(ForgettingClaimed::new(key.into(), token)?)?)
    }

    /// Forgets a claimed key as [`forget_claimed`](Self::forget_claimed) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("stuck")? else { unreachable!() };
    /// store.forget_claimed_async("stuck", claim.token()).wait()?;
    /// assert!(claim.complete("too late").is_err());
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`forget_claimed`](Self::forget_claimed), as the answer.
    pub fn forget_claimed_async<'k>(&self, key: impl Into<Key<'k>>, token: Token) -> Pending<()> {
        self.send(ForgettingClaimed::new(key.into().into_owned(), token))
    }

    /// Returns an iterator over all keys and their states, in no particular order. Changes made during the iteration
    /// may or may not be seen.
    ///
    /// The iterator leaves out expired keys, even remembered ones, because only the hash of a remembered key is stored.
    /// Call [`get`](Self::get) for the state of a remembered key.
    ///
    /// ```
    /// # use onlyonce::{admin::StateKind, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// for entry in store.iter().in_states(&[StateKind::Interrupted, StateKind::Held]) {
    ///     let (key, state) = entry?;
    ///     println!("{key}: {state:?}");
    /// }
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// On a store that another backend answers, which lists nothing, the iterator yields one error: `Invalid`. If another process
    /// hosts the store, that process is asked for page after page, and each key that doesn't change comes once.
    ///
    /// # Cost
    /// One read per key; if only open states are requested, as in the example, a read or two per open key (see
    /// [`Iter`]). Nothing is written, unless the index is damaged, as in [`get`](Self::get).
    pub fn iter(&self) -> Iter {
        let scope = match &self.space {
            None => Ok(Scope::Root),
            Some(space) => {
                space.resolve(&self.shared, false).map(|id| id.map_or(Scope::Nothing, Scope::Space))
            }
        };
        Iter::new(Arc::clone(&self.shared), scope, self.host.clone())
    }
}
