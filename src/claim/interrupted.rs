//! A question to the claimant of an interrupted key: [`Interrupted`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::handle::lease_millis;
use super::seen::{lacking, unexpected};
use super::step::EarlierSteps;
use super::{Attempt, Before, ClaimGuard, KeyCall, Pending, granting, make, send};
use crate::backend::Shared;
use crate::engine::{Applied, Asks, Writing};
use crate::operation::{Settings, cut_label};
use crate::protocol::{Answer, Call, CallExtras, Conditions};
use crate::types::KeyHash;
use crate::{Error, ErrorKind, Key, Result};

/// An interrupted attempt, about which you decide because its effect is unknown. While you hold this value, and the lease of
/// your claim has not passed, other callers see the key in progress, with your label and your lease: in the answer to a claim,
/// in [`get`](crate::Store::get), in a list ([`iter`](crate::Store::iter)) and in the counts
/// ([`stats`](crate::Store::stats)). See [`Attempt::is_being_decided`].
///
/// Nothing is granted yet, and the attempt's owner may still complete or abort it. Dropping this value without a
/// decision writes nothing: the attempt stays interrupted, and the next claimant has to decide.
///
/// ```
/// # use onlyonce::{Claim, State, testing::Sim};
/// # fn was_charged(_by: onlyonce::Token) -> Option<bool> { Some(false) }
/// # let store = Sim::new(1).open()?;
/// # drop(store.claim("charge-7")?);
/// if let Claim::Interrupted(lost) = store.claim("charge-7")? {
///     match was_charged(lost.attempt().token()) {
///         Some(false) => lost.not_applied()?.complete("charged now")?, // its fate is closed
///         Some(true) => lost.take_over()?.complete("charged before")?, // an outcome closes it, too
///         None => lost.hold("the bank can't be asked")?,               // for a person to resolve
///     }
/// }
/// # assert!(matches!(store.get("charge-7")?, Some(State::Completed(_))));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[must_use = "dropped without a word, the attempt stays interrupted"]
pub struct Interrupted {
    shared: Arc<Shared>,
    hash: KeyHash,
    attempt: Attempt,
    settings: Settings,
    fingerprint: Option<crate::Fingerprint>,
    question: u64,
}

impl Interrupted {
    pub(crate) fn new(
        shared: Arc<Shared>,
        hash: KeyHash,
        attempt: Attempt,
        settings: Settings,
        fingerprint: Option<crate::Fingerprint>,
        question: u64,
    ) -> Self {
        Interrupted { shared, hash, attempt, settings, fingerprint, question }
    }

    /// Returns the attempt that was interrupted.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim(Operation::new("mail-1").owner("host-3"))?);
    /// let Claim::Interrupted(lost) = store.claim("mail-1")? else { unreachable!() };
    /// assert_eq!((lost.attempt().number(), lost.attempt().owner()), (1, Some("host-3")));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// Grants you the key although the earlier attempt may have had its effect, so the work is done at least once. The
    /// fate of the earlier attempt stays open until this attempt, or a later one, ends with an outcome. If this attempt
    /// is aborted, the key is interrupted again.
    ///
    /// The grant is durable on return at the level of [`claim_durability`](crate::Policy::claim_durability). It costs
    /// one write, and one sync at `Sync`.
    ///
    /// ```
    /// # use onlyonce::{Claim, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// let claim = lost.take_over()?;
    /// assert_eq!(claim.attempt(), 2);
    /// claim.abort("found no way")?; // its own fate; the first one is still open
    /// assert!(matches!(store.get("k")?, Some(State::Interrupted(_))));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if the attempt is no longer interrupted as you saw it: for example, its owner ended it or renewed
    /// its lease. Also the errors of [`Store::claim`](crate::Store::claim).
    pub fn take_over(self) -> Result<ClaimGuard> {
        self.taking_over().make()
    }

    /// Grants you the key as [`take_over`](Self::take_over) does, and gives the answer later. Dropped before that, the grant is
    /// released, and the key is interrupted.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// let claim = lost.take_over_async().wait()?;
    /// assert_eq!(claim.attempt(), 2);
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`take_over`](Self::take_over), as the answer.
    pub fn take_over_async(self) -> Pending<ClaimGuard> {
        self.taking_over().send()
    }

    /// Grants you the key as [`not_applied`](Self::not_applied) does, and gives the answer later. Dropped before that, the
    /// grant is released by an abort.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// let claim = lost.not_applied_async().wait()?;
    /// assert_eq!(claim.attempt(), 2);
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`take_over`](Self::take_over), as the answer.
    pub fn not_applied_async(self) -> Pending<ClaimGuard> {
        self.disclaiming().send()
    }

    /// Grants you the key because you found out that neither this attempt nor any earlier one had an effect. This
    /// settles the fate of all these attempts.
    ///
    /// The grant is durable on return at the level of [`claim_durability`](crate::Policy::claim_durability). It costs
    /// one write, and one sync at `Sync`.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// lost.not_applied()?.abort("found no way")?;
    /// assert!(matches!(store.claim("k")?, Claim::Acquired(_)));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`take_over`](Self::take_over).
    pub fn not_applied(self) -> Result<ClaimGuard> {
        self.disclaiming().make()
    }

    /// Holds the key: no claim is granted, under any policy, until the key is resolved. `reason` says why, for people; it is
    /// cut after 512 bytes. The owner label of your claim is kept with it, see [`Attempt::decided_by`].
    ///
    /// The hold is durable on return, always at `Sync`.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// lost.hold("the outbox can't be asked")?;
    /// assert!(matches!(store.claim("k")?, Claim::Held(_)));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`take_over`](Self::take_over).
    pub fn hold(self, reason: impl Into<String>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        make(&shared, self.holding(cut_label(reason.into())))
    }

    /// Holds the key as [`hold`](Self::hold) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// lost.hold_async("the outbox can't be asked").wait()?;
    /// assert!(matches!(store.claim("k")?, Claim::Held(_)));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`take_over`](Self::take_over), as the answer.
    pub fn hold_async(self, reason: impl Into<String>) -> Pending<()> {
        let shared = Arc::clone(&self.shared);
        send(&shared, Ok(self.holding(cut_label(reason.into()))))
    }

    /// Takes `lease` from now on for the decision, instead of what is left of the lease of your claim. Once it has passed,
    /// the next claimant is asked; your decision still counts until that one has decided.
    ///
    /// Nothing is written.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # drop(store.claim("k")?);
    /// let op = Operation::new("k").lease(Duration::from_secs(10));
    /// let Claim::Interrupted(lost) = store.claim(&op)? else { unreachable!() };
    /// lost.renew(Duration::from_secs(60))?; // a person is asked
    /// # sim.advance(Duration::from_secs(30));
    /// assert!(matches!(store.claim("k")?, Claim::InProgress(_))); // half a minute later
    /// # drop(lost);
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// `ClaimLost` if the time was up, or the attempt is no longer interrupted as you saw it. `Invalid` for a lease of zero.
    /// `Closed`, `Forked`.
    pub fn renew(&self, lease: Duration) -> Result<()> {
        make(&self.shared, self.renewing(lease)?)
    }

    /// Takes more time for the decision as [`renew`](Self::renew) does, and gives the answer later.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let op = Operation::new("k").lease(Duration::from_secs(10));
    /// # let Claim::Interrupted(lost) = store.claim(op)? else { unreachable!() };
    /// lost.renew_async(Duration::from_secs(60)).wait()?;
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`renew`](Self::renew), as the answer.
    pub fn renew_async(&self, lease: Duration) -> Pending<()> {
        send(&self.shared, self.renewing(lease))
    }

    fn renewing(&self, lease: Duration) -> Result<RenewingQuestion> {
        let (key, lease_ms) = (self.attempt.stored_key().clone(), lease_millis(lease)?);
        Ok(RenewingQuestion { key, question: self.question, lease_ms })
    }

    /// The word of [`hold`](Self::hold), to be said.
    pub(crate) fn holding(self, reason: String) -> HoldingLost {
        HoldingLost { lost: self, reason }
    }

    /// The word of [`take_over`](Self::take_over), to be said.
    pub(crate) fn taking_over(self) -> Word {
        Word { says: Says::TakeOver, lost: self }
    }

    /// The word of [`not_applied`](Self::not_applied), to be said.
    pub(crate) fn disclaiming(self) -> Word {
        Word { says: Says::NotApplied, lost: self }
    }

    fn decided(&self, says: Says, applied: Applied) -> Result<ClaimGuard> {
        let before = applied.found.and_then(|found| found.state);
        let steps = match says {
            Says::TakeOver => EarlierSteps::of_open(before.as_ref()),
            // It speaks for the announced steps, and the others stay suspect.
            Says::NotApplied => EarlierSteps::of_open(None),
        };
        match (applied.answer, applied.claimed) {
            (Answer::Granted, None) => Err(lacking(&self.shared, "its grant")),
            (Answer::Granted, Some(claimed)) => Ok(ClaimGuard::new(
                Arc::clone(&self.shared),
                self.attempt.stored_key(),
                self.hash,
                claimed,
                self.settings.clone(),
                Before {
                    interruption: Some(self.attempt.clone()),
                    is_fate_open: matches!(says, Says::TakeOver),
                    progress: before.and_then(|state| state.extras?.progress.clone()),
                    steps,
                    is_attached: false,
                },
            )),
            (Answer::Lost, _) => Err(self.lost()),
            (other, _) => Err(unexpected(&self.shared, "a word on an interruption", other)),
        }
    }

    fn lost(&self) -> Error {
        changed(self.attempt.stored_key())
    }
}

fn changed(key: &Key<'_>) -> Error {
    let message =
        format!("{key} is no longer what you saw: claim it again to learn what became of it");
    Error::new(ErrorKind::ClaimLost, message)
}

/// A claimant's word that grants it the key, to be said. Dropped before that, it is as its question dropped.
pub(crate) struct Word {
    lost: Interrupted,
    says: Says,
}

/// What a claimant that is granted the key says of the attempt that it saw.
#[derive(Clone, Copy)]
enum Says {
    TakeOver,
    NotApplied,
}

impl Word {
    fn send(self) -> Pending<ClaimGuard> {
        let shared = Arc::clone(&self.lost.shared);
        send(&shared, Ok(self))
    }

    fn make(self) -> Result<ClaimGuard> {
        let (shared, hash) = (&self.lost.shared, self.lost.hash);
        let said = self.ask(|key, call, writing| shared.apply(key, hash, call, writing));
        self.lost.decided(self.says, said?)
    }
}

impl Asks for Word {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let Interrupted { shared, attempt, settings, fingerprint, .. } = &self.lost;
        let key = attempt.stored_key();
        let call = match self.says {
            Says::TakeOver => Call::TakeOver(attempt.token()),
            Says::NotApplied => Call::NotApplied(attempt.token()),
        };
        with(key, call, &granting(shared.result_bytes_max(), settings, key, *fingerprint))
    }
}

impl KeyCall for Word {
    type Answer = ClaimGuard;

    fn key(&self) -> &Key<'_> {
        self.lost.attempt.stored_key()
    }

    fn shared(&self) -> Option<&Arc<Shared>> {
        Some(&self.lost.shared)
    }

    fn answered(self, _: &Arc<Shared>, _: KeyHash, said: Result<Applied>) -> Result<ClaimGuard> {
        self.lost.decided(self.says, said?)
    }

    fn untold(claim: ClaimGuard) {
        claim.untold();
    }
}

/// A claimant's word that holds the key, to be said. Dropped before that, it is as its question dropped.
pub(crate) struct HoldingLost {
    lost: Interrupted,
    reason: String,
}

impl Asks for HoldingLost {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let Interrupted { attempt, settings, .. } = &self.lost;
        let extras = CallExtras { by: settings.owner.as_deref(), ..CallExtras::default() };
        let (reason, extras) = (Some(self.reason.as_str()), Some(&extras));
        let conditions = Conditions { reason, extras, ..Conditions::default() };
        let writing = Writing { conditions, ..Writing::default() };
        with(attempt.stored_key(), Call::Hold(attempt.token()), &writing)
    }
}

impl KeyCall for HoldingLost {
    type Answer = ();

    fn key(&self) -> &Key<'_> {
        self.lost.attempt.stored_key()
    }

    fn shared(&self) -> Option<&Arc<Shared>> {
        Some(&self.lost.shared)
    }

    fn answered(self, _: &Arc<Shared>, _: KeyHash, said: Result<Applied>) -> Result<()> {
        match said?.answer {
            Answer::Granted => Ok(()),
            Answer::Lost => Err(self.lost.lost()),
            other => Err(unexpected(&self.lost.shared, "a claimant's hold", other)),
        }
    }
}

/// A claimant that was asked and needs more time.
struct RenewingQuestion {
    key: Key<'static>,
    question: u64,
    lease_ms: u64,
}

impl Asks for RenewingQuestion {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let conditions = Conditions { lease_ms: Some(self.lease_ms), ..Conditions::default() };
        let writing = Writing { conditions, ..Writing::default() };
        with(&self.key, Call::RenewQuestion(self.question), &writing)
    }
}

impl KeyCall for RenewingQuestion {
    type Answer = ();

    fn key(&self) -> &Key<'_> {
        &self.key
    }

    fn answered(self, shared: &Arc<Shared>, _: KeyHash, applied: Result<Applied>) -> Result<()> {
        match applied?.answer {
            Answer::Done => Ok(()),
            Answer::Lost => Err(changed(&self.key)),
            other => Err(unexpected(shared, "a question's renewal", other)),
        }
    }
}

impl Drop for Interrupted {
    fn drop(&mut self) {
        self.shared.unask(self.attempt.stored_key(), self.hash, self.question);
    }
}

impl fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interrupted").field(&self.attempt).finish()
    }
}
