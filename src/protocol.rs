//! The rules of a key's life, pure: state × call → answer and the complete next state.
//!
//! Promises: no I/O, no clock, no memory. Every backend calls [`decide`] and stores the result; a backend decides
//! nothing else about a key. The tables that `decide` implements are in `docs/protocol.md`, and a test checks every
//! cell and every field. Never: knows a record, a log, a lock or a thread.
//!
//! `state` is what is stored of a key, `call` what callers ask and are answered, `rule` decides, `next` fills in the next
//! state, and `time` is what passes by itself. `again` is about calls that are sent a second time.

mod again;
mod call;
mod next;
mod rule;
mod state;
mod time;

pub(crate) use again::{NewestIs, decide_again};
pub use call::{Answer, Call, Sight, Wants};
pub(crate) use call::{CallExtras, Conditions};
pub use state::{Asker, Extras, KeyState, Lease, OpenStep, Phase, Presence};
pub(crate) use state::{NextExtras, NextState};
pub(crate) use time::{
    OpenAs, ends_at, is_being_decided, is_delayed, is_expired, is_remembered, on_it, open_as,
    passes_at, phase_shown, shown,
};

use crate::types::StoreMillis;
pub(crate) use rule::differs;
use rule::{Ruling, rule};

/// All that is known of a key when a call comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current<'a> {
    /// What was stored last; `None`: nothing ever, or that the key was forgotten.
    pub(crate) state: Option<&'a KeyState>,
    /// When the memory passes that the key has, or may have from an older life.
    pub(crate) memory_until: Option<StoreMillis>,
    /// Who is on it.
    pub(crate) presence: Presence,
    /// When the lease of the owner or the claimant passes; `None`: it has none, and lasts as long as its guard lives.
    pub(crate) lease_until: Option<StoreMillis>,
    /// The number of the question that is open; 0: none is.
    pub(crate) question: u64,
    /// Whether the step that the call is about has ended.
    pub(crate) step_has_ended: bool,
}

/// When a call is decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Moment {
    /// Store time: all rules go by it.
    pub(crate) now: StoreMillis,
    /// Wall time minus store time, in milliseconds, where they have parted; only noted, to show times.
    pub(crate) wall_offset: i64,
}

/// What a call answers, and what becomes of the key. Both count only together, in one step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Decision<'a> {
    /// What the caller is told. `None`: nothing yet. The call came upon a lease that had passed, which is the next state;
    /// once that is stored, the call is decided anew.
    pub(crate) answer: Option<Answer>,
    /// `None`: nothing changes.
    pub(crate) next: Option<Next<'a>>,
}

/// The complete next state of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Next<'a> {
    /// What is to be stored; `None`: what is stored stays, only who is on the key changes.
    pub(crate) becomes: Option<Becomes<'a>>,
    /// Who is on the key from now on.
    pub(crate) presence: Presence,
    /// When the owner's lease passes, as of [`Current`].
    pub(crate) lease_until: Option<StoreMillis>,
}

/// What is stored of a key from now on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Becomes<'a> {
    /// This state.
    State(NextState<'a>),
    /// The state stays. This is stored of the call's step, which has ended: from now on, it isn't among the key's announced
    /// steps.
    Step(NextState<'a>),
    /// Nothing: the key is absent.
    Absent {
        /// Until then the absence has to be known, since it hides an older memory of the key.
        memory_until: Option<StoreMillis>,
    },
}

/// Decides one call on one key.
pub(crate) fn decide<'a>(
    current: &Current<'a>,
    call: Call,
    conditions: &Conditions<'a>,
    moment: Moment,
) -> Decision<'a> {
    let Ruling { answer, change } = rule(current, call, conditions, moment.now);
    let next = change.map(|change| next::next(change, current, conditions, moment));
    Decision { answer, next }
}

/// The answer, if the call changes nothing. What is decided on a state that was only read, and may be another one by now,
/// can be answered by it; a change has to be decided anew where it is made.
pub(crate) fn decide_unchanged(
    current: &Current<'_>,
    call: Call,
    conditions: &Conditions<'_>,
    now: StoreMillis,
) -> Option<Answer> {
    let Ruling { answer, change } = rule(current, call, conditions, now);
    answer.filter(|_| change.is_none())
}

#[cfg(test)]
mod tests;
