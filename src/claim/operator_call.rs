//! Calls on a key by others than its claimants: an operator that resolves or revokes an attempt or forgets a claimed key, and
//! a task that attaches a detached claim.

use std::sync::Arc;

use super::seen::{in_progress, lacking, unexpected};
use super::{Attempt, ClaimGuard, KeyCall, Resolution, Ticket};
use crate::backend::{Shared, SpaceGoal};
use crate::engine::{Applied, Asks, EncodedOutcome, Writing};
use crate::operation::{OutcomeParts, Policy, Settings, cut_label};
use crate::protocol::{Answer, Call, CallExtras, Conditions, Sight};
use crate::types::{KeyHash, Token};
use crate::{Error, ErrorKind, Key, Result};

/// An operator's decision about an attempt.
pub(crate) struct Resolving {
    key: Key<'static>,
    seen: Sight,
    settings: Settings,
    how: ResolvedBy,
}

enum ResolvedBy {
    Retry(String),
    Outcome(OutcomeParts),
}

impl Resolving {
    pub(crate) fn new(
        shared: &Shared,
        attempt: &Attempt,
        resolution: Resolution,
        defaults: &Policy,
    ) -> Result<Self> {
        let how = match resolution {
            Resolution::Retry(reason) => ResolvedBy::Retry(cut_label(reason)),
            Resolution::Record(outcome) => {
                ResolvedBy::Outcome(outcome.into_parts(shared.keeping())?)
            }
        };
        let (key, seen) = (attempt.stored_key().clone(), attempt.sight());
        Ok(Resolving { key, seen, settings: defaults.resolve()?, how })
    }
}

impl Asks for Resolving {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let Resolving { key, seen, settings, how } = self;
        let extras = CallExtras { by: settings.owner.as_deref(), ..CallExtras::default() };
        let conditions = Conditions { extras: Some(&extras), ..Conditions::default() };
        match how {
            ResolvedBy::Retry(reason) => {
                let conditions = Conditions {
                    retention_ms: settings.retention_ms,
                    reason: Some(reason),
                    ..conditions
                };
                let writing = Writing { conditions, ..Writing::default() };
                with(key, Call::ResolveRetry(*seen), &writing)
            }
            ResolvedBy::Outcome(parts) => {
                let conditions = Conditions {
                    retention_ms: parts.retention_ms.or(settings.retention_ms),
                    remember_ms: settings.remember_ms,
                    reason: Some(parts.missing.as_deref().unwrap_or("resolved")),
                    ..conditions
                };
                let outcome = Some(EncodedOutcome::of(parts));
                let call = match parts.failure {
                    true => Call::ResolveFail(*seen),
                    false => Call::ResolveComplete(*seen),
                };
                with(key, call, &Writing { conditions, outcome, ..Writing::default() })
            }
        }
    }
}

impl KeyCall for Resolving {
    type Answer = bool;

    fn key(&self) -> &Key<'_> {
        &self.key
    }

    fn answered(self, shared: &Arc<Shared>, _: KeyHash, applied: Result<Applied>) -> Result<bool> {
        match applied?.answer {
            Answer::Done => Ok(true),
            Answer::Unchanged => Ok(false),
            Answer::InProgress => {
                Err(in_progress(&self.key, "revoke its claim with `interrupt` and look again"))
            }
            other => Err(unexpected(shared, "a resolution", other)),
        }
    }
}

/// An operator's word that revokes a live claim.
pub(crate) struct Revoking {
    key: Key<'static>,
    seen: Token,
    reason: String,
    settings: Settings,
}

impl Revoking {
    pub(crate) fn new(attempt: &Attempt, reason: String, defaults: &Policy) -> Result<Self> {
        let (key, seen) = (attempt.stored_key().clone(), attempt.token());
        Ok(Revoking { key, seen, reason: cut_label(reason), settings: defaults.resolve()? })
    }
}

impl Asks for Revoking {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let by = self.settings.owner.as_deref();
        let extras = Some(&CallExtras { by, ..CallExtras::default() });
        let reason = Some(self.reason.as_str());
        let conditions = Conditions { reason, extras, ..Conditions::default() };
        let writing = Writing { conditions, ..Writing::default() };
        with(&self.key, Call::Revoke(self.seen), &writing)
    }
}

impl KeyCall for Revoking {
    type Answer = bool;

    fn key(&self) -> &Key<'_> {
        &self.key
    }

    fn answered(self, shared: &Arc<Shared>, _: KeyHash, applied: Result<Applied>) -> Result<bool> {
        match applied?.answer {
            Answer::Done => Ok(true),
            Answer::Unchanged => Ok(false),
            other => Err(unexpected(shared, "an operator's interruption", other)),
        }
    }
}

/// A claimed key to be forgotten.
pub(crate) struct ForgettingClaimed<'k> {
    key: Key<'k>,
    token: Token,
}

impl<'k> ForgettingClaimed<'k> {
    pub(crate) fn new(key: Key<'k>, token: Token) -> Result<Self> {
        key.check()?;
        Ok(ForgettingClaimed { key, token })
    }
}

impl Asks for ForgettingClaimed<'_> {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        with(&self.key, Call::ForgetClaimed(self.token), &Writing::default())
    }
}

impl KeyCall for ForgettingClaimed<'_> {
    type Answer = ();

    fn key(&self) -> &Key<'_> {
        &self.key
    }

    fn goal(&self) -> Option<SpaceGoal> {
        Some(SpaceGoal::Find)
    }

    fn enter(&mut self, space: Token) {
        self.key = self.key.shown().in_space(space);
    }

    fn answered(self, shared: &Arc<Shared>, _: KeyHash, applied: Result<Applied>) -> Result<()> {
        match applied?.answer {
            Answer::Done => Ok(()),
            Answer::Lost => {
                let message = format!("{} is not claimed under token {}", self.key, self.token);
                Err(Error::new(ErrorKind::ClaimLost, message))
            }
            other => Err(unexpected(shared, "a forget of a claimed key", other)),
        }
    }
}

/// A detached claim to be attached by its ticket.
pub(crate) struct Attaching {
    key: Key<'static>,
    token: Token,
    settings: Settings,
}

impl Attaching {
    pub(crate) fn new(shared: &Shared, ticket: &Ticket, defaults: &Policy) -> Result<Self> {
        if !ticket.is_of(shared.secret()) {
            return Err(not_attached(ticket.key(), "the ticket is not of this store"));
        }
        let (key, token) = (ticket.stored_key().clone(), ticket.token());
        Ok(Attaching { key, token, settings: defaults.resolve()? })
    }
}

fn not_attached(key: &Key<'_>, why: &str) -> Error {
    Error::new(ErrorKind::ClaimLost, format!("{key}: {why}"))
}

impl Asks for Attaching {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        with(&self.key, Call::Attach(self.token), &Writing::default())
    }
}

impl KeyCall for Attaching {
    type Answer = ClaimGuard;

    fn key(&self) -> &Key<'_> {
        &self.key
    }

    /// The ticket is to be of this namespace. One of a namespace that was dropped is answered as lost.
    fn goal(&self) -> Option<SpaceGoal> {
        Some(SpaceGoal::Check)
    }

    fn answered(
        self,
        shared: &Arc<Shared>,
        hash: KeyHash,
        applied: Result<Applied>,
    ) -> Result<ClaimGuard> {
        let applied = applied?;
        match applied.answer {
            Answer::Done => {}
            Answer::InProgress => {
                let message = format!(
                    "{} is attached by another guard right now: attach again once that one has ended the claim or left it",
                    self.key
                );
                return Err(Error::new(ErrorKind::InProgress, message));
            }
            Answer::Lost => {
                return Err(not_attached(&self.key, "the claim has ended, or somebody took over"));
            }
            other => return Err(unexpected(shared, "a ticket's attachment", other)),
        }
        let state = applied.found.and_then(|found| found.state);
        let state = state.ok_or_else(|| lacking(shared, "the state of its key"))?;
        Ok(ClaimGuard::attached(Arc::clone(shared), &self.key, hash, &state, self.settings))
    }
}
