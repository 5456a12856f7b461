//! The rules: what a call answers in each state of its key, and how the key changes. The first table of `docs/protocol.md`.
//!
//! Never: fills in the fields of the next state; `next` does.

use super::time::{
    has_lapsed, is_being_decided, is_delayed, is_expired, is_noticed_lapse, is_remembered, on_it,
    phase_shown,
};
use super::{Answer, Call, Conditions, Current, KeyState, Lease, Phase, Presence, Sight, Wants};
use crate::limits;
use crate::operation::{Fingerprint, OnInterrupted};
use crate::types::{StoreMillis, Token};

/// What the rules say of a call, before the fields of the next state are filled in.
pub(super) struct Ruling<'a> {
    pub(super) answer: Option<Answer>,
    pub(super) change: Option<Change<'a>>,
}

/// What becomes of a key, each with the state that it comes from.
#[derive(Clone, Copy)]
pub(super) enum Change<'a> {
    /// Its state stays; a claimant was asked.
    Asked,
    /// Its state stays; its owner's lease begins anew.
    Renewed,
    /// Its state stays; nobody is on it any more.
    Left,
    /// Its state stays; a detached claim has an owner again.
    Attached(Lease),
    /// The same attempt, with more progress. The lease stays.
    Progressed(&'a KeyState, Phase),
    /// The same attempt, with one more announced step. The lease stays.
    Announced(&'a KeyState, Phase),
    /// Its state stays; a step has ended.
    StepEnded(&'a KeyState),
    /// The same attempt, with a lease that is stored; who is on it from now on.
    Leased(&'a KeyState, Presence),
    /// An attempt begins, with a token of its own.
    Claimed {
        from: Option<&'a KeyState>,
        open_fate: Option<Token>,
    },
    /// An attempt begins and has an outcome at once, with a token of its own.
    Recorded {
        from: Option<&'a KeyState>,
        phase: Phase,
    },
    /// The same attempt, in another phase.
    Moved(&'a KeyState, Phase),
    /// The same, and its token is spent. If it is interrupted, its fate or an older one is open. So many more of the
    /// attempts don't count.
    Spent(&'a KeyState, Phase, u32),
    /// The same attempt is interrupted by an operator: its token is spent, and its own fate is open.
    Revoked(&'a KeyState),
    /// The same attempt is held, by a claimant's word.
    Held(&'a KeyState),
    /// The same attempt is interrupted: its owner's lease had passed.
    Lapsed(&'a KeyState),
    /// It had no effect, nor had any before it. So many more of the attempts don't count.
    Aborted(&'a KeyState, u32),
    /// Allows another attempt, whatever the number of attempts so far.
    Retried(&'a KeyState),
    /// It has an outcome, which closes every fate that was open; whether by an operator's word.
    Ended(&'a KeyState, Phase, bool),
    Absent,
}

#[inline]
pub(super) fn rule<'a>(
    current: &Current<'a>,
    call: Call,
    conditions: &Conditions<'_>,
    now: StoreMillis,
) -> Ruling<'a> {
    let Current { state, question, .. } = *current;
    if let Some(state) = state.filter(|state| is_noticed_lapse(state, current, call, now)) {
        return Ruling { answer: None, change: Some(Change::Lapsed(state)) };
    }
    // A memory answers callers that would do the work, and can be forgotten. To all others the key is absent.
    if let Some(state) = state.filter(|state| is_remembered(state, now)) {
        match call {
            Call::Claim(_) | Call::Record { .. } => return told(Answer::Expired),
            Call::Forget => return done(Change::Absent),
            Call::ForgetSeen(Sight::Expired { until }) if state.memory_until == Some(until) => {
                return done(Change::Absent);
            }
            _ => {}
        }
    }
    let state = state.filter(|state| !is_expired(state, now));
    let (presence, _) = on_it(state, current.presence, current.lease_until, now);
    match call {
        Call::Claim(wants) => claim(state, presence, wants, now),
        Call::Record { fingerprint, failure } => {
            let phase = if failure { Phase::Failed } else { Phase::Completed };
            record(state, presence, fingerprint, phase, now)
        }
        Call::TakeOver(seen) => word(state, presence, seen, |state| {
            let open_fate = Some(state.open_fate.unwrap_or(state.token));
            Change::Claimed { from: Some(state), open_fate }
        }),
        Call::NotApplied(seen) => word(state, presence, seen, |state| Change::Claimed {
            from: Some(state),
            open_fate: None,
        }),
        Call::Hold(seen) => word(state, presence, seen, Change::Held),
        Call::RenewQuestion(asked) => match state {
            Some(state) if is_being_decided(state, presence) && asked == question => {
                done(Change::Asked)
            }
            _ => told(Answer::Lost),
        },
        // However late: memory is not to keep it.
        Call::DropQuestion(asked) => match state {
            Some(state) if is_being_decided(state, current.presence) && asked == question => {
                done(Change::Left)
            }
            _ => told(Answer::Unchanged),
        },
        Call::Complete(token) => {
            ending(state, token, |state| Change::Ended(state, Phase::Completed, false))
        }
        Call::Fail(token) => {
            ending(state, token, |state| Change::Ended(state, Phase::Failed, false))
        }
        Call::Abort(token) => ending(state, token, |state| aborted(state, 0)),
        Call::Withdraw(token) => ending(state, token, |state| aborted(state, 1)),
        Call::Park(token) => ending(state, token, |state| Change::Moved(state, Phase::Held)),
        Call::Interrupt(token) => interrupt(state, presence, token),
        Call::Renew { token, attached } => renew(state, presence, token, attached),
        Call::Progress(token) => {
            noting(state, presence, token, |state, phase| done(Change::Progressed(state, phase)))
        }
        Call::BeginStep(token) => noting(state, presence, token, |state, _| {
            told(if has_other_input(state, conditions) { Answer::OtherInput } else { Answer::Done })
        }),
        Call::Announce(token) => noting(state, presence, token, |state, phase| {
            match state.announced().len() < limits::ANNOUNCED_MAX {
                _ if has_other_input(state, conditions) => told(Answer::OtherInput),
                true => done(Change::Announced(state, phase)),
                false => told(Answer::TooManySteps),
            }
        }),
        Call::EndStep { token, life } => noting(state, presence, token, |state, _| {
            match state.life == life {
                // The first result stays.
                true if current.step_has_ended => told(Answer::Unchanged),
                true => done(Change::StepEnded(state)),
                false => told(Answer::Lost),
            }
        }),
        Call::Detach(token) => detach(state, presence, token),
        Call::Attach(token) => attach(state, presence, token),
        Call::ResolveComplete(sight) => resolve(as_seen(state, current, sight, now), |state| {
            Change::Ended(state, Phase::Completed, true)
        }),
        Call::ResolveFail(sight) => resolve(as_seen(state, current, sight, now), |state| {
            Change::Ended(state, Phase::Failed, true)
        }),
        Call::ResolveRetry(sight) => resolve(as_seen(state, current, sight, now), Change::Retried),
        Call::Revoke(token) => match state {
            Some(state) if is_claimed_under(state, presence, token) => done(Change::Revoked(state)),
            _ => told(Answer::Unchanged),
        },
        Call::Replace(seen) => match state {
            Some(state) if state.token == seen && state.phase == Phase::Completed => {
                done(Change::Recorded { from: None, phase: Phase::Completed })
            }
            _ => told(Answer::Unchanged),
        },
        Call::Forget => match state {
            None => told(Answer::Unchanged),
            Some(state) if phase_shown(state, presence) == Phase::Claimed => {
                told(Answer::InProgress)
            }
            Some(_) => done(Change::Absent),
        },
        Call::ForgetSeen(sight) => match as_seen(state, current, sight, now) {
            None => told(Answer::Unchanged),
            Some((_, Phase::Claimed)) => told(Answer::InProgress),
            Some(_) => done(Change::Absent),
        },
        Call::ForgetClaimed(token) => match state {
            Some(state) if is_claimed_under(state, presence, token) => done(Change::Absent),
            _ => told(Answer::Lost),
        },
    }
}

pub(super) fn is_claimed_under(state: &KeyState, presence: Presence, token: Token) -> bool {
    state.token == token && phase_shown(state, presence) == Phase::Claimed
}

pub(super) fn claim(
    state: Option<&KeyState>,
    presence: Presence,
    wants: Wants,
    now: StoreMillis,
) -> Ruling<'_> {
    let begins = Change::Claimed { from: state, open_fate: None };
    let Some(state) = state else { return granted(begins) };
    let phase = phase_shown(state, presence);
    // A client may mend a request that had no effect.
    if phase != Phase::Aborted && differs(state.fingerprint, wants.fingerprint) {
        return told(Answer::Mismatch);
    }
    // What was forgiven is no more than there were: a record that says otherwise doesn't parse.
    let too_many = wants.attempts_max.is_some_and(|max| next_attempt(state) - state.forgiven > max);
    match phase {
        Phase::Claimed => told(Answer::InProgress),
        Phase::Completed => told(Answer::Completed),
        Phase::Failed => told(Answer::Failed),
        Phase::Held => told(Answer::Held),
        Phase::Aborted if too_many => told(Answer::TooManyAttempts),
        Phase::Aborted if is_delayed(state, now) => told(Answer::Delayed),
        Phase::Aborted => granted(begins),
        // One is asked at a time; to all others the key is busy.
        Phase::Interrupted if presence == Presence::Asked => told(Answer::InProgress),
        Phase::Interrupted if too_many => told(Answer::TooManyAttempts),
        Phase::Interrupted => {
            let hold = state.hold || wants.on_interrupted == Some(OnInterrupted::Hold);
            match hold && !wants.reconciles {
                true => told(Answer::Held),
                false => Ruling { answer: Some(Answer::Asked), change: Some(Change::Asked) },
            }
        }
    }
}

/// The last number of all stands for every attempt after it, too; tokens tell them apart.
pub(super) fn next_attempt(state: &KeyState) -> u32 {
    state.attempt.saturating_add(1)
}

/// Whether the call's step was announced with another input, and has not ended.
pub(super) fn has_other_input(state: &KeyState, conditions: &Conditions<'_>) -> bool {
    let name = conditions.extras.and_then(|extras| extras.step);
    let open = state.announced().iter().find(|step| Some(&*step.name) == name);
    open.is_some_and(|open| differs(open.input, conditions.fingerprint))
}

/// Two requests, or two inputs of a step, are known to differ only if it was said of both what they are.
pub(crate) fn differs(recorded: Option<Fingerprint>, given: Option<Fingerprint>) -> bool {
    matches!((recorded, given), (Some(recorded), Some(given)) if recorded != given)
}

pub(super) fn record(
    state: Option<&KeyState>,
    presence: Presence,
    fingerprint: Option<Fingerprint>,
    outcome: Phase,
    now: StoreMillis,
) -> Ruling<'_> {
    let begins = Change::Recorded { from: state, phase: outcome };
    let Some(state) = state else { return granted(begins) };
    let phase = phase_shown(state, presence);
    if phase != Phase::Aborted && differs(state.fingerprint, fingerprint) {
        return told(Answer::Mismatch);
    }
    match phase {
        Phase::Claimed => told(Answer::InProgress),
        Phase::Completed | Phase::Failed => told(Answer::Completed),
        Phase::Interrupted | Phase::Held => told(Answer::Interrupted),
        Phase::Aborted if is_delayed(state, now) => told(Answer::Delayed),
        Phase::Aborted => granted(begins),
    }
}

/// A word about an interrupted attempt counts only while it is still the attempt that was seen.
pub(super) fn word<'a>(
    state: Option<&'a KeyState>,
    presence: Presence,
    seen: Token,
    change: impl FnOnce(&'a KeyState) -> Change<'a>,
) -> Ruling<'a> {
    match state {
        Some(state)
            if state.token == seen && phase_shown(state, presence) == Phase::Interrupted =>
        {
            granted(change(state))
        }
        _ => told(Answer::Lost),
    }
}

/// The owner's ending counts while its token is the key's, lapsed or not: position orders, the token fences.
pub(super) fn ending<'a>(
    state: Option<&'a KeyState>,
    token: Token,
    change: impl FnOnce(&'a KeyState) -> Change<'a>,
) -> Ruling<'a> {
    match state {
        Some(state) if state.token == token && is_open(state.phase) => done(change(state)),
        _ => told(Answer::Lost),
    }
}

pub(super) fn is_open(phase: Phase) -> bool {
    matches!(phase, Phase::Claimed | Phase::Interrupted | Phase::Held)
}

/// What the owner notes while its attempt goes on. It counts however late, until a claimant was asked or the key was held.
pub(super) fn noting<'a>(
    state: Option<&'a KeyState>,
    presence: Presence,
    token: Token,
    notes: impl FnOnce(&'a KeyState, Phase) -> Ruling<'a>,
) -> Ruling<'a> {
    match state {
        Some(state) if state.token == token && presence != Presence::Asked => {
            match phase_shown(state, presence) {
                phase @ (Phase::Claimed | Phase::Interrupted) => notes(state, phase),
                _ => told(Answer::Lost),
            }
        }
        _ => told(Answer::Lost),
    }
}

/// An abort speaks for its own attempt only, and not for a step that was announced and has not ended: an older open fate or
/// an open step leads back to interrupted, and a hold stays one until it is resolved. Either way the token is spent.
/// `forgiven` of the attempts, this one, don't count.
pub(super) fn aborted(state: &KeyState, forgiven: u32) -> Change<'_> {
    let is_open = state.open_fate.is_some() || !state.announced().is_empty();
    match state.phase {
        Phase::Held => Change::Spent(state, Phase::Held, forgiven),
        _ if is_open => Change::Spent(state, Phase::Interrupted, forgiven),
        _ => Change::Aborted(state, forgiven),
    }
}

/// The owner of a detached claim leaves it as it was: the lease runs, and the ticket attaches again.
pub(super) fn interrupt(state: Option<&KeyState>, presence: Presence, token: Token) -> Ruling<'_> {
    match state {
        Some(state) if state.token == token && presence == Presence::Owner => match state.phase {
            Phase::Claimed if state.detached().is_some() => done(Change::Left),
            Phase::Claimed => done(Change::Moved(state, Phase::Interrupted)),
            _ => told(Answer::Unchanged),
        },
        _ => told(Answer::Unchanged),
    }
}

/// As a renewal, with a lease that is stored.
pub(super) fn detach(state: Option<&KeyState>, presence: Presence, token: Token) -> Ruling<'_> {
    match state {
        Some(state) if state.token == token => match phase_shown(state, presence) {
            Phase::Claimed | Phase::Interrupted => done(Change::Leased(state, Presence::Nobody)),
            Phase::Held => told(Answer::Held),
            _ => told(Answer::Lost),
        },
        _ => told(Answer::Lost),
    }
}

/// One guard at a time is attached. A late owner counts as long as nobody has taken over, so it is let in after its lease,
/// too: there is nobody on the key then, and it can still end the claim.
pub(super) fn attach(state: Option<&KeyState>, presence: Presence, token: Token) -> Ruling<'_> {
    match state {
        Some(state) if state.token == token && is_open(state.phase) => {
            let is_claimed = phase_shown(state, presence) == Phase::Claimed;
            match (presence, state.detached()) {
                (Presence::Detached, Some(lease)) => done(Change::Attached(lease)),
                // By a guard, which may leave the claim as it was.
                _ if is_claimed => told(Answer::InProgress),
                _ => told(Answer::Done),
            }
        }
        _ => told(Answer::Lost),
    }
}

/// What an owner that handed its claim over sent before, or one that was attached and left, doesn't touch the lease that was
/// stored since.
pub(super) fn renew(
    state: Option<&KeyState>,
    presence: Presence,
    token: Token,
    attached: bool,
) -> Ruling<'_> {
    match state {
        Some(state) if state.token == token => match phase_shown(state, presence) {
            Phase::Claimed | Phase::Interrupted if state.detached().is_some() && !attached => {
                told(Answer::Lost)
            }
            Phase::Claimed if presence == Presence::Detached => told(Answer::Lost),
            // The lease of an attached claim is stored, also once a record says that it had passed.
            Phase::Claimed | Phase::Interrupted if attached => {
                done(Change::Leased(state, Presence::Owner))
            }
            Phase::Claimed => done(Change::Renewed),
            Phase::Interrupted => done(Change::Moved(state, Phase::Claimed)),
            Phase::Held => told(Answer::Held),
            _ => told(Answer::Lost),
        },
        _ => told(Answer::Lost),
    }
}

/// The key and the state in which it is shown, if it is the one that the caller saw.
pub(super) fn as_seen<'a>(
    state: Option<&'a KeyState>,
    current: &Current<'_>,
    sight: Sight,
    now: StoreMillis,
) -> Option<(&'a KeyState, Phase)> {
    let (state, Sight::Record { token, phase: seen, time }) = (state?, sight) else { return None };
    let phase = match has_lapsed(current.presence, current.lease_until, now) {
        true => phase_shown(state, Presence::Nobody),
        false => {
            phase_shown(state, on_it(Some(state), current.presence, current.lease_until, now).0)
        }
    };
    // A claim in progress is the one that was seen, however far it has come since.
    let is_record =
        phase == Phase::Claimed || state.time == time || state.before_lapse() == Some(time);
    (state.token == token && phase == seen && is_record).then_some((state, phase))
}

pub(super) fn resolve<'a>(
    seen: Option<(&'a KeyState, Phase)>,
    change: impl FnOnce(&'a KeyState) -> Change<'a>,
) -> Ruling<'a> {
    match seen {
        // Aborted: beyond `attempts_max` nobody but an operator gets the key any further.
        Some((state, Phase::Interrupted | Phase::Held | Phase::Aborted)) => done(change(state)),
        Some((_, Phase::Claimed)) => told(Answer::InProgress),
        Some((_, Phase::Completed | Phase::Failed)) | None => told(Answer::Unchanged),
    }
}

pub(super) fn granted(change: Change<'_>) -> Ruling<'_> {
    Ruling { answer: Some(Answer::Granted), change: Some(change) }
}

pub(super) fn done(change: Change<'_>) -> Ruling<'_> {
    Ruling { answer: Some(Answer::Done), change: Some(change) }
}

pub(super) fn told<'a>(answer: Answer) -> Ruling<'a> {
    Ruling { answer: Some(answer), change: None }
}
