//! Converts states of keys to records and back.
//!
//! Promises: the state that is read back is the state that was decided. Never: decides; `protocol` does.

use std::sync::Arc;

use super::Engine;
use super::applied::EncodedOutcome;
use crate::limits;
use crate::operation::{Fingerprint, Key};
use crate::protocol::{
    self, Becomes, Extras, KeyState, Lease, Moment, NextExtras, OpenAs, OpenStep, Phase,
};
use crate::record::{AnnouncedStep, Body, Draft, Ending, Kind, Rare, Record, Tenure};
use crate::types::{Origin, StoreMillis};

/// What the record of another process's call says in addition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) origin: Origin,
    /// Of a claim that such a process has from then on, unless it is detached.
    pub(super) tenure: Option<Tenure>,
}

/// Returns the record of a key's next state. `ahead`: how far tokens run ahead of LSNs where it is placed.
pub(super) fn compose(
    key: &Key<'_>,
    becomes: &Becomes<'_>,
    ahead: u64,
    moment: Moment,
    outcome: Option<&EncodedOutcome<'_>>,
    stamp: Option<Stamp>,
) -> Draft {
    let state = match becomes {
        Becomes::State(state) => state,
        Becomes::Absent { memory_until } => {
            return forget(key, *memory_until, ahead, moment, stamp);
        }
        // It is composed under the step's key.
        Becomes::Step(state) => state,
    };
    let (kind, ending) = match state.phase {
        Phase::Claimed if state.is_grant() => (Kind::Claim, None),
        Phase::Claimed => (Kind::Update, None),
        Phase::Interrupted => (Kind::End, Some(Ending::Interrupted)),
        Phase::Held => (Kind::End, Some(Ending::Held)),
        Phase::Aborted => (Kind::End, Some(Ending::Aborted)),
        Phase::Completed => (Kind::End, Some(Ending::Completed)),
        Phase::Failed => (Kind::End, Some(Ending::Failed)),
    };
    // The time of a claim's first record is when the attempt began, that of an outcome when it was recorded.
    let says_since = !state.is_grant() && !is_outcome(state.phase);
    let (codec, version, meta, result) = match outcome {
        Some(outcome) => (outcome.codec, outcome.version, outcome.meta, outcome.bytes),
        None => (0, 0, &[][..], &[][..]),
    };
    let body = Body {
        key_kind: key.kind(),
        key: key.bytes(),
        time: state.time,
        token: state.token,
        ahead: if state.token.is_none() { ahead } else { 0 },
        life: state.life.filter(|life| state.token != Some(*life)),
        open_fate: state.open_fate,
        attempt: state.attempt,
        forgiven: state.forgiven,
        since: Some(state.since).filter(|_| says_since),
        expires_at: state.expires_at,
        memory_until: state.memory_until,
        remembers: state.remembers,
        wall_offset: state.wall_offset,
        fingerprint: state.fingerprint.map(Fingerprint::to_bytes),
        hold: state.hold,
        owner: state.owner.unwrap_or(""),
        reason: state.reason.unwrap_or(""),
        progress: state.extras.as_ref().and_then(|extras| extras.progress).unwrap_or(&[]),
        rare: match (state.extras.as_deref(), outcome.and_then(|outcome| outcome.packed), stamp) {
            (None, None, None) => None,
            (extras, packed, stamp) => rare(extras, packed, stamp),
        },
        meta,
        codec,
        version,
        result,
    };
    Draft::about_key(kind, ending, &body)
}

#[cold]
fn forget(
    key: &Key<'_>,
    memory_until: Option<StoreMillis>,
    ahead: u64,
    moment: Moment,
    stamp: Option<Stamp>,
) -> Draft {
    Draft::forget(&Body {
        key_kind: key.kind(),
        key: key.bytes(),
        time: moment.now,
        ahead,
        attempt: 1,
        memory_until,
        wall_offset: moment.wall_offset,
        rare: stamp.and_then(|stamp| rare(None, None, Some(stamp))),
        ..Body::default()
    })
}

fn is_outcome(phase: Phase) -> bool {
    matches!(phase, Phase::Completed | Phase::Failed)
}

impl Engine {
    /// Returns the time by which calls are decided.
    pub(super) fn moment(&self, now: StoreMillis) -> Moment {
        Moment { now, wall_offset: self.wall_offset(now) }
    }

    /// Returns wall time minus store time, if they differ by a second.
    pub(super) fn wall_offset(&self, now: StoreMillis) -> i64 {
        let wall = self.log.seams().clock.wall().0;
        // Only displayed: limited to the field's maximum if the wall clock is too far ahead of store time.
        let offset = i64::try_from(i128::from(wall) - i128::from(now.0)).unwrap_or(i64::MAX);
        if offset.unsigned_abs() >= limits::TIME_DRIFT_MILLIS { offset } else { 0 }
    }
}

/// Returns what a record leaves its key in; `None` for a forget.
fn phase_of(record: &Record<'_>) -> Option<Phase> {
    Some(match (record.kind, record.ending()) {
        (Kind::Claim | Kind::Update, _) => Phase::Claimed,
        (_, Some(Ending::Completed)) => Phase::Completed,
        (_, Some(Ending::Failed)) => Phase::Failed,
        (_, Some(Ending::Aborted)) => Phase::Aborted,
        (_, Some(Ending::Interrupted)) => Phase::Interrupted,
        (_, Some(Ending::Held)) => Phase::Held,
        (_, None) => return None,
    })
}

/// Returns how a record leaves its key open.
pub(super) fn opens_as(record: &Record<'_>, body: &Body<'_>) -> Option<OpenAs> {
    if Key::is_kind_of_space(body.key_kind) {
        return Some(OpenAs::Space);
    }
    let is_timed =
        body.rare.as_ref().is_some_and(|rare| rare.lease.is_some() || rare.retry_at.is_some());
    protocol::open_as(phase_of(record), is_timed)
}

/// Returns the state of a key by its record; `None` for a forget.
pub(super) fn state_of(record: &Record<'_>, body: &Body<'_>) -> Option<KeyState> {
    let phase = phase_of(record)?;
    let token = body.token_at(record.lsn);
    let label = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    Some(KeyState {
        phase,
        token,
        life: body.life.unwrap_or(token),
        open_fate: body.open_fate,
        attempt: body.attempt,
        forgiven: body.forgiven,
        since: body.since.unwrap_or(body.time),
        time: body.time,
        expires_at: body.expires_at,
        memory_until: body.memory_until,
        remembers: body.remembers,
        wall_offset: body.wall_offset,
        fingerprint: body.fingerprint.map(Fingerprint::from_bytes),
        hold: body.hold,
        owner: label(body.owner),
        reason: label(body.reason),
        extras: extras_of(body),
    })
}

/// The fields that few records have.
#[cold]
fn rare<'a>(
    extras: Option<&NextExtras<'a>>,
    packed: Option<u32>,
    stamp: Option<Stamp>,
) -> Option<Box<Rare<'a>>> {
    let lease = extras.and_then(|extras| extras.detached);
    let rare = Rare {
        lease: lease.map(|Lease { until, millis, reserve }| (until, millis, reserve)),
        retry_at: extras.and_then(|extras| extras.retry_at),
        packed,
        by: extras.and_then(|extras| extras.by).unwrap_or(""),
        announced: extras.map_or(Vec::new(), |extras| {
            let step = |(name, input): (_, Option<Fingerprint>)| AnnouncedStep {
                name,
                input: input.map(Fingerprint::to_bytes),
            };
            extras.all_announced().map(step).collect()
        }),
        before_lapse: extras.and_then(|extras| extras.before_lapse),
        origin: stamp.map(|stamp| stamp.origin),
        // The lease of a detached claim is stored by itself.
        tenure: stamp.and_then(|stamp| stamp.tenure).filter(|_| lease.is_none()),
    };
    (rare != Rare::default()).then(|| Box::new(rare))
}

fn extras_of(body: &Body<'_>) -> Option<Arc<Extras>> {
    // The length of a compressed result is no part of the state, nor is who made the call.
    let is_of_state = |rare: &Rare<'_>| {
        let Rare { lease, retry_at, packed: _, by, announced, before_lapse, origin: _, tenure: _ } =
            rare;
        lease.is_some()
            || retry_at.is_some()
            || !by.is_empty()
            || !announced.is_empty()
            || before_lapse.is_some()
    };
    if !body.rare.as_deref().is_some_and(is_of_state) && body.progress.is_empty() {
        return None;
    }
    let rare = body.rare.as_deref().cloned().unwrap_or_default();
    Some(Arc::new(Extras {
        detached: rare.lease.map(|(until, millis, reserve)| Lease { until, millis, reserve }),
        retry_at: rare.retry_at,
        by: (!rare.by.is_empty()).then(|| Arc::from(rare.by)),
        progress: (!body.progress.is_empty()).then(|| Arc::from(body.progress)),
        announced: rare
            .announced
            .into_iter()
            .map(|AnnouncedStep { name, input }| OpenStep {
                name: name.into(),
                input: input.map(Fingerprint::from_bytes),
            })
            .collect(),
        before_lapse: rare.before_lapse,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Call, CallExtras, Conditions, Current, Presence, Sight, Wants, decide};
    use crate::record::Seal;
    use crate::types::{Lsn, StoreId, Token};

    const AT: Lsn = Lsn::new(4096);
    const AHEAD: u64 = 5;
    const TOKEN: Token = Token(800);
    const NOW: StoreMillis = StoreMillis(90_000);
    const LEASE: Lease = Lease { until: StoreMillis(99_000), millis: 900, reserve: 70 };
    const SEAL: Seal = Seal { store: StoreId([7; 16]), salt: 9 };

    /// A state with all optional fields, or with none.
    fn state(phase: Phase, is_full: bool) -> KeyState {
        let older = KeyState::of_memory(StoreMillis(1), StoreMillis(600_000));
        let bare = KeyState { phase, token: TOKEN, life: TOKEN, expires_at: None, ..older };
        if !is_full {
            return KeyState { memory_until: None, remembers: false, ..bare };
        }
        KeyState {
            life: Token(80),
            open_fate: Some(Token(160)),
            attempt: 5,
            forgiven: 2,
            since: StoreMillis(50_000),
            time: StoreMillis(60_000),
            wall_offset: 3000,
            fingerprint: Some(Fingerprint::of("this")),
            hold: true,
            owner: Some("its owner".into()),
            reason: Some("its reason".into()),
            extras: Some(Arc::new(Extras {
                detached: (phase == Phase::Claimed).then_some(LEASE),
                retry_at: (phase == Phase::Aborted).then_some(StoreMillis(95_000)),
                by: Some("someone".into()),
                progress: Some(b"3 of 9"[..].into()),
                announced: match phase {
                    Phase::Claimed | Phase::Interrupted | Phase::Held => {
                        let input = Some(Fingerprint::of("its input"));
                        vec![
                            OpenStep { name: "plan".into(), input },
                            OpenStep { name: "ü".into(), input: None },
                        ]
                    }
                    Phase::Aborted | Phase::Completed | Phase::Failed => Vec::new(),
                },
                before_lapse: (phase == Phase::Interrupted).then_some(StoreMillis(55_000)),
            })),
            ..bare
        }
    }

    fn every_call() -> Vec<Call> {
        let by_token = [
            Call::TakeOver,
            Call::NotApplied,
            Call::Hold,
            Call::Complete,
            Call::Fail,
            Call::Abort,
            Call::Park,
            Call::Interrupt,
            |token| Call::Renew { token, attached: false },
            Call::ForgetClaimed,
            Call::Withdraw,
            Call::Progress,
            Call::BeginStep,
            Call::Announce,
            |token| Call::EndStep { token, life: TOKEN },
            Call::Detach,
            Call::Attach,
            Call::Revoke,
            Call::Replace,
        ];
        let seen = |phase| Sight::Record { token: TOKEN, phase, time: StoreMillis(60_000) };
        let mut calls = vec![Call::Claim(Wants::default()), Call::Forget];
        calls.push(Call::ForgetSeen(seen(Phase::Completed)));
        for phase in [Phase::Interrupted, Phase::Held, Phase::Aborted] {
            let by_sight = [Call::ResolveComplete, Call::ResolveFail, Call::ResolveRetry];
            calls.extend(by_sight.map(|call| call(seen(phase))));
        }
        calls.extend([false, true].map(|failure| Call::Record { fingerprint: None, failure }));
        calls.extend(by_token.map(|call| call(TOKEN)));
        calls
    }

    fn every_decision(mut look: impl FnMut(&Becomes<'_>, Moment)) {
        let full = Conditions {
            fingerprint: Some(Fingerprint::of("this")),
            hold: true,
            owner: Some("who comes"),
            reason: Some("why"),
            extras: Some(&CallExtras {
                by: Some("ann"),
                progress: Some(b"4 of 9"),
                step: Some("send"),
                retry_ms: Some(500),
                reserve: 80,
            }),
            lease_ms: Some(10),
            retention_ms: Some(1000),
            remember_ms: Some(2000),
        };
        let phases = [
            Phase::Claimed,
            Phase::Interrupted,
            Phase::Held,
            Phase::Aborted,
            Phase::Completed,
            Phase::Failed,
        ];
        let known = phases.into_iter().flat_map(|phase| [false, true].map(|is| state(phase, is)));
        let owner = Presence::Owner;
        for state in known.map(Some).chain([None]) {
            for presence in [Presence::Nobody, owner] {
                for (conditions, wall_offset) in [(full, -7000), (Conditions::default(), 0)] {
                    for call in every_call() {
                        let state = state.as_ref();
                        let memory_until = state.and_then(|state| state.memory_until);
                        let moment = Moment { now: NOW, wall_offset };
                        let current = Current {
                            state,
                            memory_until,
                            presence,
                            lease_until: None,
                            question: 0,
                            step_has_ended: false,
                        };
                        let next = decide(&current, call, &conditions, moment).next;
                        if let Some(becomes) = next.and_then(|next| next.becomes) {
                            look(&becomes, moment);
                        }
                    }
                }
            }
        }
    }

    fn sealed(draft: Draft) -> Vec<u8> {
        let mut bytes = Vec::new();
        draft.seal(&mut bytes, AT, Lsn::ZERO, &SEAL);
        bytes
    }

    #[test]
    fn a_decided_state_is_read_back_from_its_record() {
        let (mut states, mut absences) = (0, 0);
        let key = Key::from("order-17");
        let result =
            EncodedOutcome { codec: 3, version: 4, meta: b"m", packed: Some(9), bytes: b"paid" };
        every_decision(|becomes, moment| {
            let is_outcome = match becomes {
                Becomes::State(next) | Becomes::Step(next) => is_outcome(next.phase),
                Becomes::Absent { .. } => false,
            };
            let outcome = is_outcome.then_some(&result);
            let bytes = sealed(compose(&key, becomes, AHEAD, moment, outcome, None));
            let record = Record::parse(&bytes, AT, &SEAL).unwrap();
            let read = record.body().unwrap();
            assert_eq!((read.key_kind, read.key, read.time), (key.kind(), key.bytes(), NOW));
            let said = (read.codec, read.version, read.meta, read.result);
            let given = outcome.map_or((0, 0, &[][..], &[][..]), |outcome| {
                (outcome.codec, outcome.version, outcome.meta, outcome.bytes)
            });
            assert_eq!(said, given, "{becomes:?}");
            let state = state_of(&record, &read);
            match becomes {
                Becomes::State(next) => {
                    assert_eq!(state, Some(next.stored(AT.token(AHEAD))));
                    let kind = match (next.phase, next.token) {
                        (Phase::Claimed, None) => Kind::Claim,
                        (Phase::Claimed, Some(_)) => Kind::Update,
                        _ => Kind::End,
                    };
                    assert_eq!(record.kind, kind, "{becomes:?}");
                    states += 1;
                }
                Becomes::Step(next) => assert_eq!(state, Some(next.stored(AT.token(AHEAD)))),
                Becomes::Absent { memory_until } => {
                    assert_eq!((state, record.kind), (None, Kind::Forget));
                    let said = (read.memory_until, read.wall_offset, read.attempt, read.ahead);
                    assert_eq!(said, (*memory_until, moment.wall_offset, 1, AHEAD));
                    absences += 1;
                }
            }
        });
        assert!(states > 100 && absences > 10, "{states} states, {absences} absences");
    }

    /// Records of one kind have the same fields, so that an immediate ending is no shorter.
    #[test]
    fn an_interruption_records_when_its_attempt_began_even_if_that_is_now() {
        let key = Key::from("k");
        let state = KeyState { since: NOW, ..state(Phase::Claimed, false) };
        let presence = Presence::Owner;
        let state = Some(&state);
        let current = Current {
            state,
            memory_until: None,
            presence,
            lease_until: None,
            question: 0,
            step_has_ended: false,
        };
        let moment = Moment { now: NOW, wall_offset: 0 };
        for (call, says) in [
            (Call::Interrupt(TOKEN), Some(NOW)),
            (Call::Park(TOKEN), Some(NOW)),
            (Call::Abort(TOKEN), Some(NOW)),
            (Call::Complete(TOKEN), None),
        ] {
            let next = decide(&current, call, &Conditions::default(), moment).next.unwrap();
            let becomes = next.becomes.unwrap();
            let bytes = sealed(compose(&key, &becomes, AHEAD, moment, None, None));
            let body = Record::parse(&bytes, AT, &SEAL).unwrap().body().unwrap();
            assert_eq!(body.since, says, "{call:?}");
        }
    }
}
