//! A question to the claimant of an interrupted key: [`Interrupted`].

use std::fmt;
use std::sync::Arc;

use super::{Attempt, ClaimGuard, granting};
use crate::backend::Shared;
use crate::engine::Writing;
use crate::operation::Settings;
use crate::protocol::{Answer, Call, Conditions};
use crate::types::KeyHash;
use crate::{Error, ErrorKind, Result};

/// An interrupted attempt, about which you decide because its effect is unknown. While you hold this value, other
/// callers see `InProgress`.
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
///         None => lost.hold()?,                                        // for a person to resolve
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
    /// its lease.
    pub fn take_over(self) -> Result<ClaimGuard> {
        self.decide(Call::TakeOver(self.attempt.token()))
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
        self.decide(Call::NotApplied(self.attempt.token()))
    }

    /// Holds the key: no claim is granted, under any policy, until the key is resolved.
    ///
    /// The hold is durable on return, always at `Sync`.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # drop(store.claim("k")?);
    /// # let Claim::Interrupted(lost) = store.claim("k")? else { unreachable!() };
    /// lost.hold()?;
    /// assert!(matches!(store.claim("k")?, Claim::Held(_)));
    /// # Ok::<(), onlyonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`take_over`](Self::take_over).
    pub fn hold(self) -> Result<()> {
        self.hold_because("held by word")
    }

    pub(crate) fn hold_because(&self, reason: &str) -> Result<()> {
        let conditions = Conditions { reason: Some(reason), ..Conditions::default() };
        let writing = Writing { conditions, ..Writing::default() };
        let applied = self.shared.apply(
            self.attempt.key(),
            self.hash,
            Call::Hold(self.attempt.token()),
            &writing,
        )?;
        if applied.answer == Answer::Granted { Ok(()) } else { Err(self.lost()) }
    }

    fn decide(&self, call: Call) -> Result<ClaimGuard> {
        let key = self.attempt.key();
        let writing =
            granting(self.shared.result_bytes_max(), &self.settings, key, self.fingerprint);
        let applied = self.shared.apply(key, self.hash, call, &writing)?;
        match (applied.answer, applied.claimed) {
            (Answer::Granted, Some(claimed)) => Ok(ClaimGuard::new(
                Arc::clone(&self.shared),
                key,
                self.hash,
                claimed,
                self.settings.clone(),
                Some(self.attempt.clone()),
            )),
            _ => Err(self.lost()),
        }
    }

    fn lost(&self) -> Error {
        let key = self.attempt.key();
        let message =
            format!("{key} is no longer what you saw: claim it again to learn what became of it");
        Error::new(ErrorKind::ClaimLost, message)
    }
}

impl Drop for Interrupted {
    fn drop(&mut self) {
        self.shared.unask(self.attempt.key(), self.hash, self.question);
    }
}

impl fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interrupted").field(&self.attempt).finish()
    }
}
