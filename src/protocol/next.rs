//! The complete next state of a key: every field of it, by the change that a rule asks for. The second table of
//! `docs/protocol.md`.

use super::rule::{Change, next_attempt};
use super::time::{LEASE_PASSED, passes_at};
use super::{
    Becomes, Conditions, Current, KeyState, Lease, Moment, Next, NextExtras, NextState, Phase,
    Presence,
};
use crate::types::StoreMillis;

/// Fills in the next state: what it takes from the one before, and what from the call.
pub(super) fn next<'a>(
    change: Change<'a>,
    current: &Current<'_>,
    conditions: &Conditions<'a>,
    moment: Moment,
) -> Next<'a> {
    // Whatever comes hides an older memory until that has passed.
    let older = current.memory_until.filter(|until| *until > moment.now);
    let lease_until = conditions.lease_ms.map(|ms| moment.now.plus(ms));
    let nobody = |becomes| Next { becomes, presence: Presence::Nobody, lease_until: None };
    let owner = |becomes| Next { becomes, presence: Presence::Owner, lease_until };
    match change {
        Change::Asked => Next { becomes: None, presence: Presence::Asked, lease_until },
        Change::Renewed => owner(None),
        Change::Left => nobody(None),
        Change::Attached(lease) => Next { lease_until: Some(lease.until), ..owner(None) },
        Change::Absent => nobody(Some(Becomes::Absent { memory_until: older })),
        Change::Claimed { from, open_fate } => {
            // Only an aborted request may be mended: whoever takes over goes on with the one there is.
            let gone_on_with =
                from.filter(|from| from.phase != Phase::Aborted).and_then(|from| from.fingerprint);
            let state = NextState {
                open_fate,
                forgiven: from.map_or(0, |from| from.forgiven),
                fingerprint: conditions.fingerprint.or(gone_on_with),
                hold: conditions.hold,
                // "It was not applied" speaks for the steps that earlier attempts announced, too.
                extras: from.and_then(if open_fate.is_some() { kept } else { kept_but_steps }),
                ..begun(Phase::Claimed, from, Lasting::hiding(older), conditions, moment)
            };
            owner(Some(Becomes::State(state)))
        }
        Change::Recorded { from, phase } => {
            let lasting = Lasting::of_outcome(older, conditions, moment);
            let state = begun(phase, from, lasting, conditions, moment);
            let reason = label(conditions.reason);
            nobody(Some(Becomes::State(NextState { reason, ..state })))
        }
        // Only the outcome is of interest from then on, and who decided on it.
        Change::Ended(state, phase, is_word) => {
            let lasting = Lasting::of_outcome(older, conditions, moment);
            let by = if is_word { by(conditions) } else { None };
            let state = NextState {
                open_fate: None,
                forgiven: 0,
                since: moment.now,
                extras: by.map(|by| Box::new(NextExtras { by: Some(by), ..NextExtras::default() })),
                ..gone_on(state, phase, lasting, conditions.reason, moment)
            };
            nobody(Some(Becomes::State(state)))
        }
        Change::Moved(state, phase) => {
            let hiding = Lasting::hiding(older);
            let state = gone_on(state, phase, hiding, conditions.reason, moment);
            let becomes = Some(Becomes::State(state));
            if phase == Phase::Claimed { owner(becomes) } else { nobody(becomes) }
        }
        Change::Lapsed(state) => {
            let (phase, reason) = (Phase::Interrupted, Some(LEASE_PASSED));
            let (progress, announced) = (state.progress(), state.announced());
            let before_lapse = Some(state.time);
            let extras =
                NextExtras { progress, announced, before_lapse, ..NextExtras::default() }.boxed();
            let state = gone_on(state, phase, Lasting::hiding(older), reason, moment);
            nobody(Some(Becomes::State(NextState { extras, ..state })))
        }
        Change::Spent(from, phase, forgiven) => {
            let state = gone_on(from, phase, Lasting::hiding(older), conditions.reason, moment);
            // A held key stays held by the word of whoever held it.
            let by = from.by().filter(|_| phase == Phase::Held);
            let extras = said_by(from, by);
            let forgiven = from.forgiven + forgiven;
            let open_fate = match phase {
                Phase::Interrupted => Some(from.open_fate.unwrap_or(from.token)),
                _ => from.open_fate,
            };
            let state = NextState { token: None, open_fate, forgiven, extras, ..state };
            nobody(Some(Becomes::State(state)))
        }
        Change::Revoked(from) => {
            let phase = Phase::Interrupted;
            let state = gone_on(from, phase, Lasting::hiding(older), conditions.reason, moment);
            nobody(Some(Becomes::State(NextState {
                token: None,
                open_fate: Some(from.open_fate.unwrap_or(from.token)),
                extras: said_by(from, by(conditions)),
                ..state
            })))
        }
        Change::Held(from) => {
            let phase = Phase::Held;
            let state = gone_on(from, phase, Lasting::hiding(older), conditions.reason, moment);
            let extras = said_by(from, by(conditions));
            nobody(Some(Becomes::State(NextState { extras, ..state })))
        }
        Change::Progressed(from, phase) | Change::Announced(from, phase) => {
            let is_claimed = phase == Phase::Claimed;
            let reason = from.reason.as_deref().filter(|_| !is_claimed);
            let state = gone_on(from, phase, Lasting::hiding(older), reason, moment);
            let call = conditions.extras.copied().unwrap_or_default();
            let (progress, announces) = match change {
                Change::Announced(..) => {
                    (from.progress(), call.step.map(|name| (name, conditions.fingerprint)))
                }
                _ => (call.progress, None),
            };
            let detached = from.detached().filter(|_| is_claimed);
            let announced = from.announced();
            let extras =
                NextExtras { detached, progress, announced, announces, ..NextExtras::default() };
            let becomes = Some(Becomes::State(NextState { extras: extras.boxed(), ..state }));
            let Current { presence, lease_until, .. } = *current;
            if is_claimed { Next { becomes, presence, lease_until } } else { nobody(becomes) }
        }
        Change::StepEnded(from) => {
            let nothing = Lasting { expires_at: None, memory_until: None, remembers: false };
            let step = NextState {
                owner: None,
                token: Some(from.token),
                life: Some(from.life),
                attempt: from.attempt,
                ..begun(Phase::Completed, None, nothing, conditions, moment)
            };
            let Current { presence, lease_until, .. } = *current;
            Next { becomes: Some(Becomes::Step(step)), presence, lease_until }
        }
        Change::Leased(from, presence) => {
            let state = gone_on(from, Phase::Claimed, Lasting::hiding(older), None, moment);
            // Without one it would lapse at once: such calls are refused before they are decided, see `names_lease`.
            let millis = conditions.lease_ms.unwrap_or(0);
            let until = moment.now.plus(millis);
            let reserve = conditions.extras.map_or(0, |extras| extras.reserve);
            let detached = Some(Lease { until, millis, reserve });
            let lease_until = Some(until).filter(|_| presence == Presence::Owner);
            let (progress, announced) = (from.progress(), from.announced());
            let extras =
                NextExtras { detached, progress, announced, ..NextExtras::default() }.boxed();
            let becomes = Some(Becomes::State(NextState { extras, ..state }));
            Next { becomes, presence, lease_until }
        }
        Change::Aborted(state, forgiven) => {
            let forgiven = state.forgiven + forgiven;
            let retry_ms = conditions.extras.and_then(|extras| extras.retry_ms);
            let retry_at = retry_ms.map(|ms| moment.now.plus(ms));
            let state = aborted_with(state, forgiven, retry_at, older, conditions, moment);
            nobody(Some(Becomes::State(state)))
        }
        Change::Retried(state) => {
            let next = aborted_with(state, state.attempt, None, older, conditions, moment);
            let (by, progress) = (by(conditions), state.progress());
            let extras = NextExtras { by, progress, ..NextExtras::default() }.boxed();
            nobody(Some(Becomes::State(NextState { extras, ..next })))
        }
    }
}

/// What of a state passes by itself.
pub(super) struct Lasting {
    expires_at: Option<StoreMillis>,
    memory_until: Option<StoreMillis>,
    remembers: bool,
}

impl Lasting {
    fn hiding(older: Option<StoreMillis>) -> Self {
        Lasting { expires_at: None, memory_until: older, remembers: false }
    }

    /// When an outcome expires, and how long it is remembered then: no shorter than what it hides.
    fn of_outcome(older: Option<StoreMillis>, conditions: &Conditions<'_>, moment: Moment) -> Self {
        let expires_at = conditions.retention_ms.map(|ms| moment.now.plus(ms));
        let own = expires_at.zip(conditions.remember_ms).map(|(at, ms)| passes_at(at.plus(ms)));
        Lasting { expires_at, memory_until: older.max(own), remembers: own.is_some() }
    }
}

/// An attempt that begins.
pub(super) fn begun<'a>(
    phase: Phase,
    from: Option<&KeyState>,
    lasting: Lasting,
    conditions: &Conditions<'a>,
    moment: Moment,
) -> NextState<'a> {
    NextState {
        phase,
        token: None,
        life: from.map(|from| from.life),
        open_fate: None,
        attempt: from.map_or(1, next_attempt),
        forgiven: 0,
        since: moment.now,
        time: moment.now,
        expires_at: lasting.expires_at,
        memory_until: lasting.memory_until,
        remembers: lasting.remembers,
        wall_offset: moment.wall_offset,
        fingerprint: conditions.fingerprint,
        hold: false,
        owner: label(conditions.owner),
        reason: None,
        extras: None,
    }
}

/// What a key keeps of its extras, whatever becomes of it, until it has an outcome.
#[inline]
pub(super) fn kept(state: &KeyState) -> Option<Box<NextExtras<'_>>> {
    state.extras.as_ref()?;
    said_by(state, None)
}

/// The same, except that no step is open.
#[inline]
pub(super) fn kept_but_steps(state: &KeyState) -> Option<Box<NextExtras<'_>>> {
    NextExtras { progress: state.progress(), ..NextExtras::default() }.boxed()
}

/// What a key keeps, with who said the word.
pub(super) fn said_by<'a>(state: &'a KeyState, by: Option<&'a str>) -> Option<Box<NextExtras<'a>>> {
    let (progress, announced) = (state.progress(), state.announced());
    NextExtras { by, progress, announced, ..NextExtras::default() }.boxed()
}

pub(super) fn by<'a>(conditions: &Conditions<'a>) -> Option<&'a str> {
    label(conditions.extras.and_then(|extras| extras.by))
}

/// The same attempt, in another phase.
pub(super) fn gone_on<'a>(
    state: &'a KeyState,
    phase: Phase,
    lasting: Lasting,
    reason: Option<&'a str>,
    moment: Moment,
) -> NextState<'a> {
    NextState {
        phase,
        token: Some(state.token),
        life: Some(state.life),
        open_fate: state.open_fate,
        attempt: state.attempt,
        forgiven: state.forgiven,
        since: state.since,
        time: moment.now,
        expires_at: lasting.expires_at,
        memory_until: lasting.memory_until,
        remembers: lasting.remembers,
        wall_offset: moment.wall_offset,
        fingerprint: state.fingerprint,
        hold: state.hold,
        owner: state.owner.as_deref(),
        reason: label(reason),
        extras: kept(state),
    }
}

/// It leaves no fate open, and the key free until its retention passes, but for the time that the next attempt has to wait.
pub(super) fn aborted_with<'a>(
    state: &'a KeyState,
    forgiven: u32,
    retry_at: Option<StoreMillis>,
    older: Option<StoreMillis>,
    conditions: &Conditions<'a>,
    moment: Moment,
) -> NextState<'a> {
    NextState {
        open_fate: None,
        forgiven,
        extras: NextExtras { retry_at, progress: state.progress(), ..NextExtras::default() }
            .boxed(),
        // A delay outlasts the retention: to an absent key no attempt would wait.
        expires_at: conditions
            .retention_ms
            .map(|ms| moment.now.plus(ms))
            .max(retry_at.filter(|_| conditions.retention_ms.is_some())),
        ..gone_on(state, Phase::Aborted, Lasting::hiding(older), conditions.reason, moment)
    }
}

/// An empty label is none.
pub(super) fn label(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}
