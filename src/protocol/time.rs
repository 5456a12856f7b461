//! What passing time does to a key without a call: leases, delays, retention and memory pass.

use super::{Call, Current, KeyState, Phase, Presence};
use crate::limits::MEMORY_MILLIS;
use crate::types::StoreMillis;

/// Why an attempt is over whose lease has passed.
pub(crate) const LEASE_PASSED: &str = "its lease passed";

/// Who is on a key at that time, and until when, by what memory and the key's record say. A question ends with the lease of
/// its claimant; a detached claim needs nobody as long as its own lease runs.
#[inline]
pub(crate) fn on_it(
    state: Option<&KeyState>,
    presence: Presence,
    lease_until: Option<StoreMillis>,
    now: StoreMillis,
) -> (Presence, Option<StoreMillis>) {
    let detached = || {
        let claimed = state.filter(|state| state.phase == Phase::Claimed)?;
        claimed.detached().filter(|lease| lease.until > now)
    };
    match presence {
        Presence::Owner => (presence, lease_until),
        Presence::Asked if lease_until.is_none_or(|until| until > now) => (presence, lease_until),
        _ => match detached() {
            Some(lease) => (Presence::Detached, Some(lease.until)),
            None => (Presence::Nobody, None),
        },
    }
}

/// Whether the owner's lease has passed.
pub(super) fn has_lapsed(
    presence: Presence,
    lease_until: Option<StoreMillis>,
    now: StoreMillis,
) -> bool {
    presence == Presence::Owner && lease_until.is_some_and(|until| until <= now)
}

/// Whether a lease has passed that this call is the first to come upon. Owners don't: the word of the key's own counts as long
/// as nobody else has come, and that of a former one changes nothing. Nor does a caller that names what it saw: it saw the
/// attempt interrupted, so its own record is enough, and if it saw another state, nothing is to change.
pub(super) fn is_noticed_lapse(
    state: &KeyState,
    current: &Current<'_>,
    call: Call,
    now: StoreMillis,
) -> bool {
    has_lapsed(current.presence, current.lease_until, now)
        && state.phase == Phase::Claimed
        && call.of_owner().is_none()
        && !call.is_by_sight()
        && !call.is_about_question()
}

/// Who is on a key, and until when, as a look shows it that changes nothing: a lease that has passed is shown as the next call
/// will find it.
pub(crate) fn shown(
    state: &mut KeyState,
    presence: Presence,
    lease_until: Option<StoreMillis>,
    now: StoreMillis,
) -> (Presence, Option<StoreMillis>) {
    let is_over = has_lapsed(presence, lease_until, now);
    let (presence, lease_until) = match is_over {
        true => (Presence::Nobody, None),
        false => on_it(Some(state), presence, lease_until, now),
    };
    // The record of a detached claim says until when it lasts, so none says that it is over.
    let was_detached = state.phase == Phase::Claimed && state.detached().is_some();
    if is_over || was_detached && phase_shown(state, presence) == Phase::Interrupted {
        state.reason = Some(LEASE_PASSED.into());
    }
    (presence, lease_until)
}

/// Whether a result's or an abort's retention has passed. Claims, interrupted and held keys never expire.
pub(crate) fn is_expired(state: &KeyState, now: StoreMillis) -> bool {
    let may_expire = matches!(state.phase, Phase::Completed | Phase::Failed | Phase::Aborted);
    may_expire && state.expires_at.is_some_and(|at| at <= now)
}

/// Whether the outcome has expired, and a late retry is to be told so.
pub(crate) fn is_remembered(state: &KeyState, now: StoreMillis) -> bool {
    let is_outcome = matches!(state.phase, Phase::Completed | Phase::Failed);
    let is_kept = state.memory_until.is_some_and(|until| until > now);
    is_outcome && state.remembers && is_kept && is_expired(state, now)
}

/// When a memory passes that is to last until then: at the end of that minute, wherever it is kept. Files of expired keys
/// count in minutes: were it to pass earlier in the log, a key could be forgotten there and be told by the file for the
/// rest of the minute.
pub(crate) fn passes_at(until: StoreMillis) -> StoreMillis {
    let minutes = until.0.div_ceil(MEMORY_MILLIS).min(u64::from(u32::MAX));
    StoreMillis(minutes * MEMORY_MILLIS)
}

/// The state in which the key is shown.
pub(crate) fn phase_shown(state: &KeyState, presence: Presence) -> Phase {
    match (state.phase, presence) {
        (Phase::Claimed, Presence::Owner | Presence::Detached) => Phase::Claimed,
        (Phase::Claimed, _) => Phase::Interrupted,
        (phase, _) => phase,
    }
}

/// Whether a claimant decides about an interrupted attempt. To all others the key is in progress meanwhile, whether they claim
/// it, look at it or list it, and they see that claimant. The state in which they saw the key is nevertheless the interrupted
/// one, since no record makes a question: they may resolve or forget it during the question and after it.
pub(crate) fn is_being_decided(state: &KeyState, presence: Presence) -> bool {
    presence == Presence::Asked && phase_shown(state, presence) == Phase::Interrupted
}

/// Whether the next attempt at an aborted key has to wait.
pub(crate) fn is_delayed(state: &KeyState, now: StoreMillis) -> bool {
    state.phase == Phase::Aborted && state.retry_at().is_some_and(|at| at > now)
}

/// From when on what a record says of its key is dead, whatever follows; `None`: until another record says otherwise.
/// `phase` is what it leaves the key in, `None` that it forgets it. Until its memory passes it is needed: it leaves one, or
/// hides an older one.
pub(crate) fn ends_at(
    phase: Option<Phase>,
    expires_at: Option<StoreMillis>,
    memory_until: Option<StoreMillis>,
) -> Option<StoreMillis> {
    let own = match phase {
        None => StoreMillis(0),
        Some(Phase::Completed | Phase::Failed | Phase::Aborted) => expires_at?,
        Some(Phase::Claimed | Phase::Interrupted | Phase::Held) => return None,
    };
    Some(memory_until.map_or(own, |until| own.max(until)))
}

/// Why a key still needs somebody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OpenAs {
    /// An attempt has no ending, or was interrupted.
    Attempt,
    /// The key waits to be resolved.
    Held,
    /// A detached claim, until its lease passes; then it is interrupted.
    Detached,
    /// The next attempt has to wait for a delay; once that has passed, the key is no longer open.
    Delayed,
    /// It names a namespace. It needs nobody, but has to be found without knowing its name.
    Space,
}

/// Whether a record leaves its key open, so that operators are shown the key. `phase` is what it leaves the key in; `None`: it
/// forgets the key. `is_timed`: it has a time at which its lease or its delay passes.
pub(crate) fn open_as(phase: Option<Phase>, is_timed: bool) -> Option<OpenAs> {
    match phase? {
        Phase::Claimed if is_timed => Some(OpenAs::Detached),
        Phase::Aborted if is_timed => Some(OpenAs::Delayed),
        Phase::Claimed | Phase::Interrupted => Some(OpenAs::Attempt),
        Phase::Held => Some(OpenAs::Held),
        Phase::Aborted | Phase::Completed | Phase::Failed => None,
    }
}
