//! What the record of a call contains in addition to the decision, as plain owned data.

use crate::engine::{EncodedOutcome, Sending, Stored, Writing};
use crate::operation::{Durability, Fingerprint};
use crate::protocol::{CallExtras, Conditions};
use crate::types::Origin;

/// Values that the record of a call contains in addition to the decision. A value that doesn't apply to the call is
/// unset.
#[derive(Clone, Default, Debug)]
#[non_exhaustive]
pub struct Terms {
    /// The level at which the reply must be durable; `None` means `Sync`.
    pub durability: Option<Durability>,
    /// Bytes of log space that a grant reserves for its ending.
    pub reserve: u64,
    /// The lease from now on, in milliseconds; `None`: the claim lasts as long as its owner lives.
    pub lease_millis: Option<u64>,
    /// How long an outcome is kept, in milliseconds; `None`: for ever.
    pub retention_millis: Option<u64>,
    /// How long the key is remembered after the outcome expired, in milliseconds; `None`: not at all.
    pub remember_millis: Option<u64>,
    /// The request's fingerprint.
    pub fingerprint: Option<Fingerprint>,
    /// Whether the key is held if this attempt is interrupted.
    pub hold: bool,
    /// How long a claim waits while its key is in progress or delayed, in milliseconds, before it is answered so. `None`: it
    /// is answered at once.
    pub wait_millis: Option<u64>,
    /// The owner's name.
    pub owner: Option<Box<str>>,
    /// What only some calls have. Boxed: a claim that waits for its key has none of it.
    pub details: Option<Box<Details>>,
}

/// The values of a record that a claim doesn't have.
#[derive(Clone, Default, Debug)]
#[non_exhaustive]
pub struct Details {
    /// Why the attempt ends this way, for people to read.
    pub reason: Option<String>,
    /// The name of the claimant or operator that holds, interrupts or resolves the key by this call.
    pub by: Option<String>,
    /// What the owner saves of its progress, as [`Encode`](crate::Encode) encodes it, after its format.
    pub progress: Option<Vec<u8>>,
    /// The name of the step that the owner announces or ends.
    pub step: Option<String>,
    /// How long the next attempt has to wait after an abort, in milliseconds.
    pub retry_millis: Option<u64>,
    /// The result or the recorded failure.
    pub outcome: Option<Stored>,
    /// Which call of another process it is.
    pub(crate) sending: Option<Sending>,
}

impl Terms {
    pub(super) fn of(writing: &Writing<'_>) -> Self {
        let conditions = &writing.conditions;
        Terms {
            durability: writing.level,
            reserve: writing.reserve,
            lease_millis: conditions.lease_ms,
            retention_millis: conditions.retention_ms,
            remember_millis: conditions.remember_ms,
            fingerprint: conditions.fingerprint,
            hold: conditions.hold,
            wait_millis: None,
            owner: conditions.owner.map(Into::into),
            details: Details::of(writing),
        }
    }

    /// The details, to be set.
    pub fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }

    pub(super) fn extras(&self) -> CallExtras<'_> {
        let details = self.details.as_deref();
        CallExtras {
            by: details.and_then(|details| details.by.as_deref()),
            progress: details.and_then(|details| details.progress.as_deref()),
            step: details.and_then(|details| details.step.as_deref()),
            retry_ms: details.and_then(|details| details.retry_millis),
            reserve: self.reserve,
        }
    }

    /// `extras`: those of these terms.
    pub(super) fn writing<'t>(&'t self, extras: &'t CallExtras<'t>) -> Writing<'t> {
        let details = self.details.as_deref();
        let outcome = details.and_then(|details| details.outcome.as_ref());
        Writing {
            level: self.durability,
            reserve: self.reserve,
            conditions: Conditions {
                lease_ms: self.lease_millis,
                retention_ms: self.retention_millis,
                remember_ms: self.remember_millis,
                fingerprint: self.fingerprint,
                hold: self.hold,
                owner: self.owner.as_deref(),
                reason: self.reason(),
                extras: Some(extras),
            },
            sending: details.and_then(|details| details.sending.as_ref()),
            outcome: outcome.map(|stored| EncodedOutcome {
                codec: stored.codec,
                version: stored.version,
                meta: &stored.meta,
                packed: stored.packed,
                bytes: &stored.bytes,
            }),
        }
    }

    /// Whether the call is another process's.
    /// What the call is known by, if it is another process's.
    pub(crate) fn origin(&self) -> Option<Origin> {
        let sending = self.details.as_ref().and_then(|details| details.sending.as_ref());
        sending.map(|sending| sending.origin)
    }

    /// Whether another host was sent the call before.
    pub(super) fn is_again(&self) -> bool {
        let sending = self.details.as_ref().and_then(|details| details.sending.as_ref());
        sending.is_some_and(|sending| sending.heard.is_some())
    }

    pub(super) fn is_guests(&self) -> bool {
        self.details.as_ref().is_some_and(|details| details.sending.is_some())
    }

    /// Why the attempt ends this way, if that is said.
    pub(super) fn reason(&self) -> Option<&str> {
        self.details.as_ref().and_then(|details| details.reason.as_deref())
    }
}

impl Details {
    /// The details of a call; `None`: it has none.
    fn of(writing: &Writing<'_>) -> Option<Box<Self>> {
        let conditions = &writing.conditions;
        let CallExtras { by, progress, step, retry_ms, reserve: _ } =
            conditions.extras.copied().unwrap_or_default();
        let details = Details {
            reason: conditions.reason.map(str::to_owned),
            by: by.map(str::to_owned),
            progress: progress.map(<[u8]>::to_vec),
            step: step.map(str::to_owned),
            retry_millis: retry_ms,
            outcome: writing.outcome.map(|outcome| Stored {
                codec: outcome.codec,
                version: outcome.version,
                meta: outcome.meta.to_vec(),
                packed: outcome.packed,
                bytes: outcome.bytes.into(),
            }),
            sending: writing.sending.copied(),
        };
        let has_any = conditions.reason.is_some()
            || by.is_some()
            || progress.is_some()
            || step.is_some()
            || retry_ms.is_some()
            || writing.outcome.is_some()
            || writing.sending.is_some();
        has_any.then(|| Box::new(details))
    }
}
