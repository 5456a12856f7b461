//! What the record of a call contains in addition to the decision, as plain owned data.

use crate::engine::{EncodedOutcome, Stored, Writing};
use crate::operation::{Durability, Fingerprint};
use crate::protocol::{CallExtras, Conditions};

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
    /// The owner's name.
    pub owner: Option<String>,
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
    /// How long a claim waits while its key is in progress or delayed, in milliseconds, before it is answered so. `None`: it
    /// is answered at once.
    pub wait_millis: Option<u64>,
    /// The result or the recorded failure.
    pub outcome: Option<Stored>,
}

impl Terms {
    pub(super) fn of(writing: &Writing<'_>) -> Self {
        let conditions = &writing.conditions;
        let extras = conditions.extras.copied().unwrap_or_default();
        Terms {
            durability: writing.level,
            reserve: writing.reserve,
            lease_millis: conditions.lease_ms,
            retention_millis: conditions.retention_ms,
            remember_millis: conditions.remember_ms,
            fingerprint: conditions.fingerprint,
            hold: conditions.hold,
            owner: conditions.owner.map(str::to_owned),
            reason: conditions.reason.map(str::to_owned),
            by: extras.by.map(str::to_owned),
            progress: extras.progress.map(<[u8]>::to_vec),
            step: extras.step.map(str::to_owned),
            retry_millis: extras.retry_ms,
            wait_millis: None,
            outcome: writing.outcome.map(|outcome| Stored {
                codec: outcome.codec,
                version: outcome.version,
                meta: outcome.meta.to_vec(),
                packed: outcome.packed,
                bytes: outcome.bytes.into(),
            }),
        }
    }

    pub(super) fn extras(&self) -> CallExtras<'_> {
        CallExtras {
            by: self.by.as_deref(),
            progress: self.progress.as_deref(),
            step: self.step.as_deref(),
            retry_ms: self.retry_millis,
            reserve: self.reserve,
        }
    }

    /// `extras`: those of these terms.
    pub(super) fn writing<'t>(&'t self, extras: &'t CallExtras<'t>) -> Writing<'t> {
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
                reason: self.reason.as_deref(),
                extras: Some(extras),
            },
            outcome: self.outcome.as_ref().map(|stored| EncodedOutcome {
                codec: stored.codec,
                version: stored.version,
                meta: &stored.meta,
                packed: stored.packed,
                bytes: &stored.bytes,
            }),
        }
    }
}
