//! What a call found and what it is answered, on its way from the rules to its caller.

use std::sync::Arc;

use super::Seen;
use crate::index::recent::{OfGuest, Place};
use crate::log::Placed;
use crate::operation::OutcomeParts;
use crate::protocol::{self, Answer, Asker, Call, Current, KeyState, Phase, Presence};
use crate::types::{KeyHash, Lsn, StoreMillis, Token};
use crate::value::ValueBytes;

/// A result or a recorded failure, encoded.
#[derive(Clone, Copy)]
pub(crate) struct EncodedOutcome<'a> {
    pub(crate) codec: u16,
    pub(crate) version: u32,
    pub(crate) meta: &'a [u8],
    /// The bytes are compressed, and are this many without.
    pub(crate) packed: Option<u32>,
    pub(crate) bytes: &'a [u8],
}

impl<'a> EncodedOutcome<'a> {
    pub(crate) fn of(parts: &'a OutcomeParts) -> Self {
        let OutcomeParts { codec, version, packed, .. } = *parts;
        EncodedOutcome { codec, version, meta: &parts.meta, packed, bytes: &parts.bytes }
    }
}

/// A recorded outcome, read back.
#[derive(Clone, Debug)]
pub struct Stored {
    /// How the bytes are encoded, as docs/format.md numbers it.
    pub codec: u16,
    /// The version of the type, for codecs that have one.
    pub version: u32,
    /// Names and values that go with it, encoded.
    pub meta: Vec<u8>,
    /// The length of the value if its bytes are compressed, as one LZ4 block; `None`: they aren't.
    pub packed: Option<u32>,
    /// The value.
    pub bytes: ValueBytes,
}

/// The result of a call.
pub(crate) struct Applied {
    pub(crate) answer: Answer,
    /// What was found of the key; `None`: nothing. Boxed, because it is passed on many times, and a new key has none.
    pub(crate) found: Option<Box<Found>>,
    /// The attempt that was claimed.
    pub(crate) claimed: Option<Claimed>,
    pub(crate) now: StoreMillis,
    /// Identifies the question of `Asked`.
    pub(crate) question: u64,
}

impl Applied {
    /// Whether that answer to `call` still holds once the store is closed. A close ends the claims and questions in flight: an
    /// answer by which a caller would go on working doesn't outlast it.
    pub(crate) fn lasts(&self, call: Call) -> bool {
        let works_on = match call {
            Call::Attach(_)
            | Call::BeginStep(_)
            | Call::Announce(_)
            | Call::Renew { .. }
            | Call::RenewQuestion(_) => self.answer == Answer::Done,
            _ => self.claimed.is_some() || self.answer == Answer::Asked,
        };
        !works_on
    }

    /// The answer to a call that was carried out, about which nothing else is to be told.
    pub(crate) fn done(now: StoreMillis) -> Self {
        Applied { answer: Answer::Done, found: None, claimed: None, now, question: 0 }
    }

    /// What a look saw, as the answer to a call.
    pub(crate) fn of_seen(seen: Option<Seen>, now: StoreMillis) -> Self {
        let now = seen.as_ref().map_or(now, |seen| seen.now);
        let found = seen.map(|seen| {
            let Seen { state, presence, lease_until, asker, outcome, .. } = seen;
            Box::new(Found::elsewhere(state, presence, lease_until, asker, outcome))
        });
        Applied { found, ..Applied::done(now) }
    }
}

/// An attempt that begins.
#[derive(Clone, Copy, Debug)]
pub struct Claimed {
    /// Its fencing token.
    pub token: Token,
    /// The token of the key's first claim since it was absent: the key's life.
    pub life: Token,
    /// Its number in the life of the key.
    pub attempt: u32,
}

impl Claimed {
    /// The attempt that a key is claimed by; `None`: it is not.
    pub(super) fn of(state: &KeyState) -> Option<Self> {
        let KeyState { phase, token, life, attempt, .. } = *state;
        (phase == Phase::Claimed).then_some(Claimed { token, life, attempt })
    }
}

/// What was found of a key.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) state: Option<KeyState>,
    pub(crate) presence: Presence,
    pub(super) place: Option<Place>,
    pub(crate) lease_until: Option<StoreMillis>,
    pub(super) reserved: u64,
    pub(crate) asker: Option<Arc<Asker>>,
    pub(crate) outcome: Option<Stored>,
    /// When the memory passes that the key has or may have from an older life.
    pub(super) memory_until: Option<StoreMillis>,
    /// The hashes of the announced steps that had not ended when the record was read, with what memory had under each.
    pub(super) open_steps: Vec<(KeyHash, Vec<Place>)>,
    /// As in [`Live`](crate::index::recent::Live).
    pub(super) guest: Option<Box<OfGuest>>,
}

impl Found {
    /// A key as another backend found it, or a look.
    pub(crate) fn elsewhere(
        state: KeyState,
        presence: Presence,
        lease_until: Option<StoreMillis>,
        asker: Option<Arc<Asker>>,
        outcome: Option<Stored>,
    ) -> Self {
        Found { state: Some(state), presence, lease_until, asker, outcome, ..Found::default() }
    }

    /// The position of the record that was found, if it was found in this store's log.
    pub(crate) fn recorded_at(&self) -> Option<Lsn> {
        self.place.map(Place::lsn)
    }

    pub(super) fn current(&self) -> Current<'_> {
        let Found { presence, lease_until, memory_until, .. } = *self;
        let question = self.asker.as_ref().map_or(0, |asker| asker.question);
        let (state, step_has_ended) = (self.state.as_ref(), false);
        Current { state, memory_until, presence, lease_until, question, step_has_ended }
    }

    /// In how many milliseconds the key may be free without a call: a lease or a delay passes.
    pub(super) fn free_in(&self, now: StoreMillis) -> Option<u64> {
        let mut state = self.state.clone()?;
        let (_, until) = protocol::shown(&mut state, self.presence, self.lease_until, now);
        let until = until.or(state.retry_at().filter(|_| protocol::is_delayed(&state, now)))?;
        Some(until.since(now))
    }

    /// Whether its owner is another process.
    pub(super) fn is_guests(&self) -> bool {
        let is_detached = self.state.as_ref().is_some_and(|state| state.detached().is_some());
        let has_origin = |guest: &OfGuest| match is_detached {
            true => guest.attached.is_some(),
            false => guest.origin.is_some(),
        };
        self.presence == Presence::Owner && self.guest.as_deref().is_some_and(has_origin)
    }

    /// Whether it has an owner that came by a ticket.
    pub(super) fn is_attached(&self) -> bool {
        let is_detached = self.state.as_ref().is_some_and(|state| state.detached().is_some());
        self.presence == Presence::Owner && is_detached
    }

    /// Returns its record, if only another record ends it.
    pub(super) fn endless(&self) -> Option<Lsn> {
        let state = self.state.as_ref()?;
        let ends = protocol::ends_at(Some(state.phase), state.expires_at, self.memory_until);
        self.place.filter(|_| ends.is_none()).map(Place::lsn)
    }
}

/// For an unknown key.
pub(super) static NOTHING: Found = Found {
    state: None,
    presence: Presence::Nobody,
    place: None,
    lease_until: None,
    reserved: 0,
    asker: None,
    outcome: None,
    memory_until: None,
    open_steps: Vec::new(),
    guest: None,
};

/// A call that is decided and its record, if any, placed.
pub(crate) struct Done {
    pub(crate) applied: Applied,
    pub(super) placed: Option<Placed>,
    /// The key is no longer as it was found, or somebody else is on it.
    pub(super) has_changed: bool,
}

impl Done {
    pub(crate) fn applied(&self) -> &Applied {
        &self.applied
    }

    pub(crate) fn into_applied(self) -> Applied {
        self.applied
    }

    /// The same, with the record that was placed for it.
    pub(super) fn with(self, placed: Option<Placed>) -> Self {
        Done { placed, ..self }
    }

    /// Where its record is.
    pub(super) fn placed(&self) -> Option<Lsn> {
        self.placed.map(|placed| placed.lsn)
    }

    /// The record that the answer is derived from.
    pub(super) fn prior(&self) -> Option<Place> {
        self.applied.found.as_ref().and_then(|found| found.place)
    }
}

pub(super) fn told(found: Option<Box<Found>>, answer: Answer, now: StoreMillis) -> Done {
    let applied = Applied { answer, found, claimed: None, now, question: 0 };
    Done { applied, placed: None, has_changed: false }
}
