//! What a backend is: one call on one key and its reply as plain owned data, and the trait that backends implement.

use std::time::Duration;

use super::InFlight;
use crate::Result;
use crate::engine::{Applied, Claimed, EncodedOutcome, Found, Seen, Stored, Writing};
use crate::operation::{Durability, Fingerprint, Key};
use crate::protocol::{Answer, Call, Conditions, KeyState, Presence};
use crate::types::StoreMillis;

/// Whatever answers the calls on a store's keys.
///
/// The answers are those of [protocol.md](crate::docs::protocol): the suite in `testing::conformance` holds a backend to
/// them. An answer is not given before it can't be taken back at the level that the request names.
pub trait Backend: Send + Sync {
    /// Begins one call on one key, and returns at once: neither the disk nor another process is waited for.
    ///
    /// If the caller drops the call instead of waiting, an ending or a dropped question still takes effect. Any other call
    /// releases what it was granted, as dropping the guard would.
    fn send(&self, request: Request) -> Box<dyn Sent>;

    /// The longest result, in bytes, that is recorded.
    fn result_bytes_max(&self) -> u32;

    /// Whether a claim would be taken now; if not, why not: `StorageFull`, `Poisoned`, `Closed`, `Forked`.
    fn check(&self) -> Result<()>;

    /// Makes durable whatever was acknowledged at any level.
    fn sync(&self) -> Result<()>;

    /// Refuses new claims and marks from now on, as `Closed`; claims in flight end as they would.
    fn drain(&self);

    /// Waits for the claims in flight until the deadline, and ends the store. Gives what was still in flight.
    fn close(&self, deadline: Duration) -> Result<Vec<InFlight>>;
}

/// A call that was sent.
pub trait Sent: Send {
    /// Waits for the reply. What the call changed is durable then, at the level that it named.
    fn wait(self: Box<Self>) -> Result<Reply>;
}

/// One call on one key.
#[derive(Clone, Debug)]
pub struct Request {
    /// The key.
    pub key: Key<'static>,
    /// What is asked of it.
    pub ask: Ask,
}

/// What is asked of a key.
#[derive(Clone, Debug)]
pub enum Ask {
    /// What is known of it. Nothing changes.
    Look,
    /// A call by the rules, and what its record is to say.
    Call(Call, Box<Terms>),
    /// The claimant that this question was put to ([`Answer::Asked`]) ends without an answer.
    DropQuestion(u64),
}

/// What the record of a call is to say in addition to the decision. Unset is what doesn't apply to the call.
#[derive(Clone, Default, Debug)]
#[non_exhaustive]
pub struct Terms {
    /// The level at which the reply has to hold; `None`: `Sync`.
    pub durability: Option<Durability>,
    /// Bytes of log space that a grant reserves for its ending.
    pub reserve: u64,
    /// The lease from now on, in milliseconds; `None`: as long as its owner lives.
    pub lease_millis: Option<u64>,
    /// How long an outcome is kept, in milliseconds; `None`: for ever.
    pub retention_millis: Option<u64>,
    /// How long after that its key is remembered, in milliseconds; `None`: not at all.
    pub remember_millis: Option<u64>,
    /// The request's fingerprint.
    pub fingerprint: Option<Fingerprint>,
    /// An interruption of this attempt is to be held.
    pub hold: bool,
    /// The owner's name.
    pub owner: Option<String>,
    /// Why it ends so, for people.
    pub reason: Option<String>,
    /// The result or the recorded failure.
    pub outcome: Option<Stored>,
}

/// What is said to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The answer by the rules; to [`Ask::Look`] and [`Ask::DropQuestion`] it is `Done`.
    pub answer: Answer,
    /// What was found of the key before the call; `None`: it is absent.
    pub found: Option<KeyView>,
    /// The attempt that was granted.
    pub claimed: Option<Claimed>,
    /// Store time of the reply.
    pub now: StoreMillis,
    /// Names the question, of `Asked`; else 0.
    pub question: u64,
}

/// A key as it was found.
#[derive(Clone, Debug)]
pub struct KeyView {
    /// What its newest record says.
    pub state: KeyState,
    /// Who is on it.
    pub presence: Presence,
    /// Until when its owner has it, if it has a lease.
    pub lease_until: Option<StoreMillis>,
    /// Its outcome, if it has one.
    pub outcome: Option<Stored>,
}

impl Request {
    pub(crate) fn of(key: &Key<'_>, call: Call, writing: &Writing<'_>) -> Self {
        Request {
            key: key.clone().into_owned(),
            ask: Ask::Call(call, Box::new(Terms::of(writing))),
        }
    }
}

impl Terms {
    fn of(writing: &Writing<'_>) -> Self {
        let conditions = &writing.conditions;
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
            outcome: writing.outcome.map(|outcome| Stored {
                codec: outcome.codec,
                version: outcome.version,
                meta: outcome.meta.to_vec(),
                bytes: outcome.bytes.to_vec(),
            }),
        }
    }

    pub(super) fn writing(&self) -> Writing<'_> {
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
            },
            outcome: self.outcome.as_ref().map(|stored| EncodedOutcome {
                codec: stored.codec,
                version: stored.version,
                meta: &stored.meta,
                bytes: &stored.bytes,
            }),
        }
    }
}

impl Reply {
    /// Says that the call did what it says, and nothing else.
    pub fn done(now: StoreMillis) -> Self {
        Reply { answer: Answer::Done, found: None, claimed: None, now, question: 0 }
    }

    pub(super) fn of_applied(applied: Applied) -> Self {
        let Applied { answer, found, claimed, now, question } = applied;
        let found = found.and_then(|found| {
            let Found { state, presence, lease_until, outcome, .. } = *found;
            state.map(|state| KeyView { state, presence, lease_until, outcome })
        });
        Reply { answer, found, claimed, now, question }
    }

    pub(super) fn of_seen(seen: Option<Seen>, now: StoreMillis) -> Self {
        let now = seen.as_ref().map_or(now, |seen| seen.now);
        let found = seen.map(|seen| {
            let Seen { state, presence, lease_until, outcome, .. } = seen;
            KeyView { state, presence, lease_until, outcome }
        });
        Reply { answer: Answer::Done, found, claimed: None, now, question: 0 }
    }

    pub(crate) fn into_applied(self) -> Applied {
        let Reply { answer, found, claimed, now, question } = self;
        let found = found.map(|view| {
            Box::new(Found::elsewhere(view.state, view.presence, view.lease_until, view.outcome))
        });
        Applied { answer, found, claimed, now, question }
    }

    pub(super) fn into_seen(self) -> Option<Seen> {
        let now = self.now;
        self.found.map(|view| {
            Seen::elsewhere(view.state, view.presence, view.lease_until, view.outcome, now)
        })
    }
}
