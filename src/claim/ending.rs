//! The ending of a claim, as a call that is about to be made.

use std::sync::Arc;

use super::{ClaimGuard, KeyCall, Pending, send};
use crate::backend::Shared;
use crate::engine::{Applied, Asks, EncodedOutcome, Writing};
use crate::operation::OutcomeParts;
use crate::protocol::{Call, CallExtras, Conditions};
use crate::sync::Ordering;
use crate::types::KeyHash;
use crate::{Abort, Error, Key, Result};

/// An ending that is about to be recorded. Dropped before that, it is as its guard dropped.
pub(crate) struct EndingCall {
    pub(super) guard: ClaimGuard,
    pub(super) how: How,
}

pub(super) enum How {
    Outcome { parts: OutcomeParts, meta: Vec<u8> },
    Abort(Abort),
}

impl EndingCall {
    pub(super) fn send(self) -> Pending<()> {
        let shared = Arc::clone(&self.guard.0.shared);
        send(&shared, self, None)
    }

    #[inline]
    pub(super) fn make(self) -> Result<()> {
        let (shared, hash) = (&self.guard.0.shared, self.guard.0.hash);
        let done = self.ask(|key, call, writing| shared.apply(key, hash, call, writing));
        self.guard.ended(done)
    }
}

impl Asks for EndingCall {
    #[inline]
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let inner = &self.guard.0;
        let (settings, level) = (&inner.settings, Some(inner.settings.durability));
        match &self.how {
            How::Outcome { parts, meta } => {
                let writing = Writing {
                    level,
                    conditions: Conditions {
                        retention_ms: parts.retention_ms.or(settings.retention_ms),
                        remember_ms: settings.remember_ms,
                        reason: parts.missing.as_deref(),
                        ..Conditions::default()
                    },
                    outcome: Some(EncodedOutcome::of(parts, meta)),
                    ..Writing::default()
                };
                let token = inner.token;
                let call = if parts.failure { Call::Fail(token) } else { Call::Complete(token) };
                with(&inner.key, call, &writing)
            }
            How::Abort(why) => {
                let extras = CallExtras { retry_ms: why.retry_ms(), ..CallExtras::default() };
                let writing = Writing {
                    level,
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

    fn answered(self, _: &Arc<Shared>, _: KeyHash, done: Result<Applied>) -> Result<()> {
        self.guard.ended(done)
    }

    fn refused(self, error: Error) -> Error {
        error.giving_back(self.guard)
    }

    /// The ending goes on without its caller.
    fn left(&self) {
        self.guard.0.has_ended.store(true, Ordering::SeqCst);
    }
}
