//! Converts a decision of the rules into the public answer to a claim or a mark.

use std::sync::Arc;

use super::seen::{expired, lacking, recorded, seen_attempt, shown_state, unexpected};
use super::{Before, Claim, ClaimGuard, Interrupted, Mark};
use crate::backend::Shared;
use crate::engine::Applied;
use crate::operation::Settings;
use crate::protocol::Answer;
use crate::types::KeyHash;
use crate::{Fingerprint, Key, Result};

impl Claim {
    /// `settings` and `fingerprint` are those of the claim: a grant keeps them for its ending.
    // Every claim passes here, and the answers are large to hand on.
    #[inline(always)]
    pub(crate) fn answered(
        shared: &Arc<Shared>,
        key: &Key<'_>,
        hash: KeyHash,
        settings: Settings,
        fingerprint: Option<Fingerprint>,
        applied: Applied,
    ) -> Result<Claim> {
        let attempt = || seen_attempt(key, &applied, shared);
        Ok(match applied.answer {
            Answer::Granted => {
                let claimed = applied.claimed.ok_or_else(|| lacking(shared, "its grant"))?;
                let progress =
                    applied.found.and_then(|found| found.state?.extras?.progress.clone());
                let before = Before { progress, ..Before::default() };
                let shared = Arc::clone(shared);
                Claim::Acquired(ClaimGuard::new(shared, key, hash, claimed, settings, before))
            }
            Answer::Asked => {
                let question = applied.question;
                let (shared, attempt) = (Arc::clone(shared), attempt()?);
                Claim::Interrupted(Interrupted::new(
                    shared,
                    hash,
                    attempt,
                    settings,
                    fingerprint,
                    question,
                ))
            }
            Answer::InProgress => Claim::InProgress(attempt()?),
            Answer::Delayed => Claim::Delayed(attempt()?),
            Answer::Held => Claim::Held(attempt()?),
            Answer::TooManyAttempts => {
                let attempt = attempt()?;
                let last = attempt.reason().map(|why| format!("; the last one: {why}"));
                let reason = format!(
                    "attempts_max is reached: resolve the key with Resolution::Retry to allow as many again{}",
                    last.unwrap_or_default()
                );
                Claim::Held(attempt.because(&reason))
            }
            Answer::Completed => Claim::Completed(recorded(key, applied, shared)?),
            Answer::Failed => Claim::Failed(recorded(key, applied, shared)?),
            Answer::Mismatch => Claim::Mismatch(shown_state(key, applied, shared)?),
            Answer::Expired => Claim::Expired(expired(key, &applied, shared)?),
            other @ (Answer::Interrupted
            | Answer::TooManySteps
            | Answer::OtherInput
            | Answer::Done
            | Answer::Unchanged
            | Answer::Lost) => return Err(unexpected(shared, "a claim", other)),
        })
    }
}

impl Mark {
    pub(crate) fn answered(key: &Key<'_>, applied: Applied, shared: &Shared) -> Result<Mark> {
        Ok(match applied.answer {
            Answer::Granted => Mark::First,
            Answer::Completed => Mark::Again,
            Answer::InProgress => Mark::InProgress(seen_attempt(key, &applied, shared)?),
            Answer::Delayed => Mark::Delayed(seen_attempt(key, &applied, shared)?),
            Answer::Interrupted => Mark::Interrupted(seen_attempt(key, &applied, shared)?),
            Answer::Mismatch => Mark::Mismatch(shown_state(key, applied, shared)?),
            Answer::Expired => Mark::Expired(expired(key, &applied, shared)?),
            other @ (Answer::Asked
            | Answer::Held
            | Answer::TooManyAttempts
            | Answer::Failed
            | Answer::TooManySteps
            | Answer::OtherInput
            | Answer::Done
            | Answer::Unchanged
            | Answer::Lost) => return Err(unexpected(shared, "a mark", other)),
        })
    }
}
