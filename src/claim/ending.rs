//! The endings of a claim, and its hand-over, as calls that are about to be made.

use std::sync::Arc;

use super::{ClaimGuard, KeyCall, Pending, Ticket, send};
use crate::backend::Shared;
use crate::engine::{Applied, Asks, EncodedOutcome, Writing};
use crate::operation::{OutcomeParts, Settings};
use crate::protocol::{Answer, Call, CallExtras, Conditions};
use crate::types::{KeyHash, Token};
use crate::{Abort, Error, ErrorKind, Key, Result};

/// An ending that is about to be recorded. Dropped before that, it is as its guard dropped.
pub(crate) struct EndingCall {
    pub(super) guard: ClaimGuard,
    pub(super) how: How,
}

pub(super) enum How {
    Outcome(OutcomeParts),
    Abort(Abort),
    /// Held, for that reason.
    Park(String),
}

/// The call that ends a claim with an outcome, and what its record says.
#[inline]
pub(super) fn recording<'a>(
    token: Token,
    settings: &Settings,
    parts: &'a OutcomeParts,
) -> (Call, Writing<'a>) {
    let writing = Writing {
        level: Some(settings.durability),
        conditions: Conditions {
            retention_ms: parts.retention_ms.or(settings.retention_ms),
            remember_ms: settings.remember_ms,
            reason: parts.missing.as_deref(),
            ..Conditions::default()
        },
        outcome: Some(EncodedOutcome::of(parts)),
        ..Writing::default()
    };
    (if parts.failure { Call::Fail(token) } else { Call::Complete(token) }, writing)
}

impl EndingCall {
    pub(super) fn send(self) -> Pending<()> {
        let shared = Arc::clone(&self.guard.0.shared);
        send(&shared, Ok(self))
    }

    pub(super) fn make(self) -> Result<()> {
        let (shared, hash) = (&self.guard.0.shared, self.guard.0.hash);
        let done = self.ask(|key, call, writing| shared.apply(key, hash, call, writing));
        self.guard.ended(done)
    }
}

impl Asks for EndingCall {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let inner = &self.guard.0;
        let settings = &inner.settings;
        match &self.how {
            How::Outcome(parts) => {
                let (call, writing) = recording(inner.token, settings, parts);
                with(&inner.key, call, &writing)
            }
            How::Abort(why) => {
                let extras = CallExtras { retry_ms: why.retry_ms(), ..CallExtras::default() };
                let writing = Writing {
                    level: Some(settings.durability),
                    conditions: Conditions {
                        retention_ms: settings.retention_ms,
                        reason: Some(why.reason()),
                        extras: Some(&extras),
                        ..Conditions::default()
                    },
                    ..Writing::default()
                };
                with(&inner.key, Call::Abort(inner.token), &writing)
            }
            How::Park(reason) => {
                // Always at `Sync`: a held key must not be granted after a crash.
                let conditions = Conditions { reason: Some(reason), ..Conditions::default() };
                let writing = Writing { conditions, ..Writing::default() };
                with(&inner.key, Call::Park(inner.token), &writing)
            }
        }
    }
}

impl KeyCall for EndingCall {
    type Answer = ();

    fn key(&self) -> &Key<'_> {
        &self.guard.0.key
    }

    fn shared(&self) -> Option<&Arc<Shared>> {
        Some(&self.guard.0.shared)
    }

    fn may_be_made(&self) -> Result<()> {
        self.guard.may_end()
    }

    fn answered(self, _: &Arc<Shared>, _: KeyHash, done: Result<Applied>) -> Result<()> {
        self.guard.ended(done)
    }

    fn refused(self, error: Error) -> Error {
        error.giving_back(self.guard)
    }

    /// The ending goes on without its caller.
    fn left(&self) {
        self.guard.0.liveness.end();
    }
}

/// A claim that is about to be detached. Dropped before that, it is as its guard dropped.
pub(super) struct Detaching {
    pub(super) guard: ClaimGuard,
    pub(super) lease_ms: u64,
}

impl Asks for Detaching {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let inner = &self.guard.0;
        // Before it is made: a renewal after it would replace the lease of the ticket.
        inner.liveness.hand_over();
        let (lease_ms, reserve) = (Some(self.lease_ms), inner.reserve());
        let extras = Some(&CallExtras { reserve, ..CallExtras::default() });
        let conditions = Conditions { lease_ms, extras, ..Conditions::default() };
        let writing = Writing { conditions, reserve, ..Writing::default() };
        with(&inner.key, Call::Detach(inner.token), &writing)
    }
}

impl KeyCall for Detaching {
    type Answer = Ticket;

    fn key(&self) -> &Key<'_> {
        &self.guard.0.key
    }

    fn shared(&self) -> Option<&Arc<Shared>> {
        Some(&self.guard.0.shared)
    }

    fn answered(self, shared: &Arc<Shared>, _: KeyHash, done: Result<Applied>) -> Result<Ticket> {
        let inner = &self.guard.0;
        let ticket = Ticket::new(shared.secret(), &inner.key, inner.token);
        match &done {
            Ok(applied) if applied.answer == Answer::Held => {
                inner.liveness.take_back();
                return Err(inner.held().giving_back(self.guard));
            }
            // Unless it may have been made, the guard has the claim as before.
            Err(e) if e.kind() != ErrorKind::Indeterminate => inner.liveness.take_back(),
            Ok(_) | Err(_) => {}
        }
        self.guard.ended(done)?;
        Ok(ticket)
    }

    fn refused(self, error: Error) -> Error {
        self.guard.0.liveness.take_back();
        error.giving_back(self.guard)
    }

    /// It goes on without its caller: the claim lasts until the lease has passed.
    fn left(&self) {
        self.guard.0.liveness.end();
    }
}
