//! What a record says of its key, from the state before and the decision; and the state that a record tells.

use std::sync::Arc;

use super::{Engine, Writing};
use crate::limits;
use crate::operation::{Fingerprint, Key};
use crate::protocol::{KeyState, Next, Phase, passes_at};
use crate::record::{Body, Ending, Kind, Record};
use crate::types::{StoreMillis, Token};

impl Engine {
    /// The body of the record that brings the key from `state` to `next`.
    pub(super) fn compose<'a>(
        &self,
        key: &'a Key<'_>,
        state: Option<&'a KeyState>,
        older_memory: Option<StoreMillis>,
        next: Next,
        now: StoreMillis,
        writing: &Writing<'a>,
    ) -> Body<'a> {
        let expires_at = writing.retention_ms.map(|retention| now.plus(retention));
        let mut body = Body {
            key_kind: key.kind(),
            key: key.bytes(),
            time: now,
            wall_offset: self.wall_offset(now),
            attempt: 1,
            ..Body::default()
        };
        match next {
            Next::Claimed { attempt, forgiven, life, open_fate } => {
                (body.attempt, body.forgiven) = (attempt, forgiven);
                (body.life, body.open_fate) = (life, open_fate);
                // Only an aborted request may be mended: whoever takes over goes on with the one there is.
                let gone_on_with = state
                    .filter(|state| matches!(state.phase, Phase::Claimed | Phase::Interrupted))
                    .and_then(|state| state.fingerprint);
                body.fingerprint = writing.fingerprint.or(gone_on_with).map(Fingerprint::to_bytes);
                body.hold = writing.hold;
                body.owner = writing.owner.unwrap_or("");
            }
            Next::Marked { attempt, life } => {
                (body.attempt, body.life, body.expires_at) = (attempt, life, expires_at);
                body.fingerprint = writing.fingerprint.map(Fingerprint::to_bytes);
                body.owner = writing.owner.unwrap_or("");
            }
            Next::Same { phase, open_fate, spent, forgives } => {
                let Some(state) = state else { return body };
                body.token = Some(state.token).filter(|_| !spent);
                body.life = Some(state.life).filter(|life| spent || *life != state.token);
                body.open_fate = open_fate;
                body.attempt = state.attempt;
                body.forgiven = match phase {
                    Phase::Completed | Phase::Failed => 0,
                    _ if forgives => state.attempt,
                    _ => state.forgiven,
                };
                body.since = Some(state.since)
                    .filter(|_| !matches!(phase, Phase::Completed | Phase::Failed));
                body.fingerprint = state.fingerprint.map(Fingerprint::to_bytes);
                body.hold = state.hold;
                body.owner = match phase {
                    Phase::Completed | Phase::Failed => "",
                    _ => state.owner.as_deref().unwrap_or(""),
                };
                body.reason = writing.reason.unwrap_or("");
                if matches!(phase, Phase::Completed | Phase::Failed | Phase::Aborted) {
                    body.expires_at = expires_at;
                }
            }
            Next::Absent => {}
        }
        // Whatever comes hides an older memory until that has passed.
        body.memory_until = older_memory.filter(|until| *until > now);
        let is_outcome = matches!(
            next,
            Next::Marked { .. } | Next::Same { phase: Phase::Completed | Phase::Failed, .. }
        );
        let own = body.expires_at.zip(writing.remember_ms).filter(|_| is_outcome);
        if let Some((expires_at, remember)) = own {
            body.memory_until = body.memory_until.max(Some(passes_at(expires_at.plus(remember))));
            body.remembers = true;
        }
        if let Some(outcome) = &writing.outcome {
            body.codec = outcome.codec;
            body.version = outcome.version;
            body.meta = outcome.meta;
            body.result = outcome.bytes;
        }
        body
    }

    /// Wall time minus store time, where they have parted by a second.
    pub(super) fn wall_offset(&self, now: StoreMillis) -> i64 {
        let wall = self.log.seams().clock.wall().0;
        // Only shown: of a wall clock too far ahead of store time for the field, as much as that holds.
        let offset = i64::try_from(i128::from(wall) - i128::from(now.0)).unwrap_or(i64::MAX);
        if offset.unsigned_abs() >= limits::TIME_DRIFT_MILLIS { offset } else { 0 }
    }
}

/// What a record says of its key; `None` for a forget.
pub(super) fn state_of(record: &Record<'_>, body: &Body<'_>) -> Option<KeyState> {
    let phase = match (record.kind, record.ending()) {
        (Kind::Claim | Kind::Update, _) => Phase::Claimed,
        (_, Some(Ending::Completed)) => Phase::Completed,
        (_, Some(Ending::Failed)) => Phase::Failed,
        (_, Some(Ending::Aborted)) => Phase::Aborted,
        (_, Some(Ending::Interrupted)) => Phase::Interrupted,
        (_, Some(Ending::Held)) => Phase::Held,
        (_, None) => return None,
    };
    Some(state_in(phase, body, body.token_at(record.lsn)))
}

/// What the body of a record says that leaves its key in `phase`. `token`: the attempt's.
pub(super) fn state_in(phase: Phase, body: &Body<'_>, token: Token) -> KeyState {
    let label = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    KeyState {
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
    }
}
