//! What is stored of a key, and who is on it.
//!
//! Never: decides; `rule` does.

use std::sync::Arc;

use super::OpenAs;
use super::time::{is_expired, open_as};
use crate::limits;
use crate::operation::Fingerprint;
use crate::types::{StoreMillis, Token};

/// What is stored of a key, except its result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyState {
    /// How far the attempt has come.
    pub phase: Phase,
    /// The attempt's fencing token.
    pub token: Token,
    /// Token of the key's first claim since it was absent.
    pub life: Token,
    /// Token of the oldest attempt whose fate is open, except the current one.
    pub open_fate: Option<Token>,
    /// The attempt's number since the key was absent, from 1.
    pub attempt: u32,
    /// Attempts up to this one no longer count for `attempts_max`: the key was resolved for a retry.
    pub forgiven: u32,
    /// When the attempt was claimed; of an outcome, when that was recorded.
    pub since: StoreMillis,
    /// When the state was stored: of an ending, when the attempt ended.
    pub time: StoreMillis,
    /// When an outcome or an abort is no longer kept; `None`: it is kept for ever.
    pub expires_at: Option<StoreMillis>,
    /// When the key's memory passes, in store time: that of this outcome once it has expired, if it `remembers`; otherwise
    /// that which an older outcome may have left, and which this state hides.
    pub memory_until: Option<StoreMillis>,
    /// An outcome that is no longer kept is answered `Expired` until the memory passes.
    pub remembers: bool,
    /// Wall time minus store time, in milliseconds; only to show times.
    pub wall_offset: i64,
    /// The request's fingerprint, if one was given.
    pub fingerprint: Option<Fingerprint>,
    /// The attempt asked that its interruption be held.
    pub hold: bool,
    /// Who claimed.
    pub owner: Option<Arc<str>>,
    /// Why the attempt ended so, for people.
    pub reason: Option<Arc<str>>,
    /// What few keys have; `None`: nothing of it.
    pub extras: Option<Arc<Extras>>,
}

/// What few keys have. It is apart so that all others don't pay for it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Extras {
    /// The claim is detached: it lasts until its lease passes, whatever becomes of the process that made it.
    pub detached: Option<Lease>,
    /// Until when the next attempt has to wait, as the owner that aborted said.
    pub retry_at: Option<StoreMillis>,
    /// Which claimant or operator held, interrupted or resolved the key by word.
    pub by: Option<Arc<str>>,
    /// What the newest attempt saved of its progress, encoded.
    pub progress: Option<Arc<[u8]>>,
    /// The steps that were announced and have not ended, in the order of their announcements. As a record has them, steps
    /// among them may have ended since.
    pub announced: Vec<OpenStep>,
    /// If the state only notes that the attempt's lease had passed: when the record before was made. The key was shown in
    /// this state by that record, too.
    pub before_lapse: Option<StoreMillis>,
}

/// A step that was announced and has not ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenStep {
    /// Its name.
    pub name: Arc<str>,
    /// The fingerprint of its input, if one was given when it was announced.
    pub input: Option<Fingerprint>,
}

/// The lease of a detached claim, which its record carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Store time at which it passes.
    pub until: StoreMillis,
    /// For how long it was given, in milliseconds.
    pub millis: u64,
    /// Bytes of log space that the claim reserves for its ending once it is attached.
    pub reserve: u64,
}

/// A state that is about to be stored: a [`KeyState`] whose labels are borrowed, from the state before or from the call, and
/// whose token may be the one that the storing itself issues.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NextState<'a> {
    /// As in a [`KeyState`], like all fields that have no comment.
    pub(crate) phase: Phase,
    /// The attempt's fencing token; `None`: a new one, which the storing issues.
    pub(crate) token: Option<Token>,
    /// Token of the key's first claim since it was absent; `None`: the new one.
    pub(crate) life: Option<Token>,
    pub(crate) open_fate: Option<Token>,
    pub(crate) attempt: u32,
    pub(crate) forgiven: u32,
    pub(crate) since: StoreMillis,
    pub(crate) time: StoreMillis,
    pub(crate) expires_at: Option<StoreMillis>,
    pub(crate) memory_until: Option<StoreMillis>,
    pub(crate) remembers: bool,
    pub(crate) wall_offset: i64,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) hold: bool,
    pub(crate) owner: Option<&'a str>,
    pub(crate) reason: Option<&'a str>,
    pub(crate) extras: Option<Box<NextExtras<'a>>>,
}

/// As [`Extras`], borrowed like a [`NextState`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct NextExtras<'a> {
    pub(crate) detached: Option<Lease>,
    pub(crate) retry_at: Option<StoreMillis>,
    pub(crate) by: Option<&'a str>,
    pub(crate) progress: Option<&'a [u8]>,
    pub(crate) announced: &'a [OpenStep],
    /// Announced by this call, in addition: its name and input.
    pub(crate) announces: Option<(&'a str, Option<Fingerprint>)>,
    pub(crate) before_lapse: Option<StoreMillis>,
}

impl<'a> NextExtras<'a> {
    /// All steps that are announced from now on: their names and inputs.
    pub(crate) fn all_announced(
        &self,
    ) -> impl Iterator<Item = (&'a str, Option<Fingerprint>)> + Clone + use<'a> {
        let before = self.announced;
        let is_new = |(name, _): &(&str, _)| before.iter().all(|before| *before.name != **name);
        before.iter().map(|step| (&*step.name, step.input)).chain(self.announces.filter(is_new))
    }

    /// See [`KeyState::carried_bytes`].
    pub(crate) fn carried_bytes(&self) -> u64 {
        let bytes_of =
            |(name, input): (&str, Option<_>)| limits::announced_bytes(name.len(), input.is_some());
        let steps = self.all_announced().map(bytes_of).sum::<usize>();
        (self.progress.map_or(0, <[u8]>::len) + steps) as u64
    }

    /// `None`: there is nothing of it.
    pub(crate) fn boxed(self) -> Option<Box<Self>> {
        (self != NextExtras::default()).then(|| Box::new(self))
    }
}

/// How far an attempt has come. A claim whose process is gone reads `Claimed` and is interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// An attempt began and has no ending.
    Claimed,
    /// An attempt ended without an outcome: its fate is open.
    Interrupted,
    /// Granted to nobody until it is resolved.
    Held,
    /// The attempt had no effect, or was resolved for a retry.
    Aborted,
    /// Done, with a result.
    Completed,
    /// Failed for good, with a recorded failure.
    Failed,
}

/// A claimant that was told of an interruption and has not decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asker {
    /// The number of its question.
    pub question: u64,
    /// Its name, if its operation has one.
    pub owner: Option<Arc<str>>,
    /// When it was asked.
    pub since: StoreMillis,
}

/// Whether a key has an owner or a claimant right now. It is kept in addition to the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Presence {
    /// No owner and no claimant: a claim without an ending is interrupted.
    #[default]
    Nobody,
    /// An owner holds the claim. Once its lease has passed, all but the owner see the claim without an owner.
    Owner,
    /// A claimant was told of the interruption and has not decided, nor has its own lease passed.
    Asked,
    /// The claim is detached, its lease runs, and no guard is attached in this process.
    Detached,
}

impl NextState<'_> {
    /// The state once it is stored. `own` is the token that the storing issued.
    // Every claim and ending passes here, and the state is large to hand on.
    #[inline]
    pub(crate) fn stored(&self, own: Token) -> KeyState {
        let token = self.token.unwrap_or(own);
        KeyState {
            phase: self.phase,
            token,
            life: self.life.unwrap_or(token),
            open_fate: self.open_fate,
            attempt: self.attempt,
            forgiven: self.forgiven,
            since: self.since,
            time: self.time,
            expires_at: self.expires_at,
            memory_until: self.memory_until,
            remembers: self.remembers,
            wall_offset: self.wall_offset,
            fingerprint: self.fingerprint,
            hold: self.hold,
            owner: self.owner.map(Arc::from),
            reason: self.reason.map(Arc::from),
            extras: self.extras.as_deref().map(|extras| {
                Arc::new(Extras {
                    detached: extras.detached,
                    retry_at: extras.retry_at,
                    by: extras.by.map(Arc::from),
                    progress: extras.progress.map(Arc::from),
                    announced: extras
                        .all_announced()
                        .map(|(name, input)| OpenStep { name: name.into(), input })
                        .collect(),
                    before_lapse: extras.before_lapse,
                })
            }),
        }
    }

    /// Whether an attempt begins with it.
    pub(crate) fn is_grant(&self) -> bool {
        self.phase == Phase::Claimed && self.token.is_none()
    }
}

impl KeyState {
    /// What is left of a key that expired and is remembered.
    pub(crate) fn of_memory(completed: StoreMillis, until: StoreMillis) -> Self {
        let none = Token(0);
        KeyState {
            phase: Phase::Completed,
            token: none,
            life: none,
            open_fate: None,
            attempt: 1,
            forgiven: 0,
            since: completed,
            time: completed,
            expires_at: Some(StoreMillis(0)),
            memory_until: Some(until),
            remembers: true,
            wall_offset: 0,
            fingerprint: None,
            hold: false,
            owner: None,
            reason: None,
            extras: None,
        }
    }

    pub(crate) fn detached(&self) -> Option<Lease> {
        self.extras.as_ref()?.detached
    }

    /// See [`open_as`].
    pub(crate) fn open_as(&self) -> Option<OpenAs> {
        let is_timed = self.detached().is_some() || self.retry_at().is_some();
        open_as(Some(self.phase), is_timed)
    }

    pub(crate) fn retry_at(&self) -> Option<StoreMillis> {
        self.extras.as_ref()?.retry_at
    }

    pub(crate) fn by(&self) -> Option<&str> {
        self.extras.as_ref()?.by.as_deref()
    }

    pub(crate) fn progress(&self) -> Option<&[u8]> {
        self.extras.as_ref()?.progress.as_deref()
    }

    pub(crate) fn announced(&self) -> &[OpenStep] {
        self.extras.as_ref().map_or(&[], |extras| &extras.announced)
    }

    pub(crate) fn before_lapse(&self) -> Option<StoreMillis> {
        self.extras.as_ref()?.before_lapse
    }

    /// Bytes by which the records of the attempt are longer than others: the saved progress, and the open steps.
    pub(crate) fn carried_bytes(&self) -> u64 {
        let bytes_of =
            |step: &OpenStep| limits::announced_bytes(step.name.len(), step.input.is_some());
        let steps = self.announced().iter().map(bytes_of).sum::<usize>();
        (self.progress().map_or(0, <[u8]>::len) + steps) as u64
    }

    /// Removes a step that has ended from those that are announced.
    pub(crate) fn end_step(&mut self, name: &str) {
        if self.announced().iter().any(|step| *step.name == *name) {
            let extras = self.extras.as_mut().map(Arc::make_mut);
            let retain = |extras: &mut Extras| extras.announced.retain(|step| *step.name != *name);
            extras.into_iter().for_each(retain);
        }
    }

    /// Whether steps of that life still count: an attempt goes on, or another may follow it. Once they don't, they never
    /// will again.
    pub(crate) fn needs_steps_of(&self, life: Token, now: StoreMillis) -> bool {
        let is_over = matches!(self.phase, Phase::Completed | Phase::Failed);
        self.life == life && !is_over && !is_expired(self, now)
    }
}
