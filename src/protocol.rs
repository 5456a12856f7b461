//! The rules of a key's life, pure: state × call → answer and the complete next state.
//!
//! Promises: no I/O, no clock, no memory. Every backend calls [`decide`] and stores the result; a backend decides
//! nothing else about a key. The tables that `decide` implements are in `docs/protocol.md`, and a test checks every
//! cell and every field. Never: knows a record, a log, a lock or a thread.

use std::sync::Arc;

use crate::limits::{self, MEMORY_MILLIS};
use crate::operation::{Fingerprint, OnInterrupted};
use crate::types::{StoreMillis, Token};

/// Why an attempt is over whose lease has passed.
pub(crate) const LEASE_PASSED: &str = "its lease passed";

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

/// One call on a key, with what the rules need to decide it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// A claimant asks for the key.
    Claim(Wants),
    /// An outcome is recorded at once, unless the key was seen before. A mark is one without a result.
    Record {
        /// The request's fingerprint, as for a claim.
        fingerprint: Option<Fingerprint>,
        /// Whether the outcome is a final failure.
        failure: bool,
    },
    /// A claimant that was asked takes the key over, naming the attempt that it saw: the key is granted to it, and the fate of
    /// that attempt stays open.
    TakeOver(Token),
    /// A claimant that was asked says that the attempt it saw had no effect, nor had any before it: the key is granted to it,
    /// and all fates are closed.
    NotApplied(Token),
    /// A claimant that was asked holds the key, naming the attempt that it saw: no claim is granted until the key is resolved.
    Hold(Token),
    /// The claimant that was asked this question needs more time to decide.
    RenewQuestion(u64),
    /// The claimant that was asked this question ends without a word.
    #[cfg_attr(
        not(feature = "backend"),
        allow(dead_code, reason = "the engine's own claimants need no call")
    )]
    DropQuestion(u64),
    /// Ends the claim: the work is done, and its result is recorded.
    Complete(Token),
    /// Ends the claim: the work failed for good, and the failure is recorded.
    Fail(Token),
    /// Ends the claim: the attempt had no effect.
    Abort(Token),
    /// Ends a claim that was granted and never delivered, so that no work began: the attempt doesn't count for `attempts_max`.
    Withdraw(Token),
    /// Ends the claim without an outcome, and holds the key: no claim is granted until the key is resolved.
    Park(Token),
    /// Ends the claim without an outcome, because its guard was dropped: the attempt is interrupted.
    Interrupt(Token),
    /// The owner renews its lease.
    Renew(Token),
    /// The owner saves its progress.
    Progress(Token),
    /// The owner begins a step whose beginning is not recorded.
    BeginStep(Token),
    /// The owner begins a step whose name is recorded with the key until the step has ended.
    Announce(Token),
    /// The owner records that a step has ended, and its result. Decided by the state of the claim's key, not of the step's.
    EndStep {
        /// The claim's.
        token: Token,
        /// Token of the key's first claim since it was absent: the step counts in that life.
        life: Token,
    },
    /// The owner hands the claim over: from now on it lasts as long as the lease, which is stored.
    Detach(Token),
    /// A new owner attaches a detached claim by its ticket.
    Attach(Token),
    /// An operator records that the attempt did the work, with a result, if the key is still in the state that it saw.
    ResolveComplete(Sight),
    /// An operator records that the attempt failed for good, likewise.
    ResolveFail(Sight),
    /// An operator says that the attempt had no effect, likewise: the next claim is granted.
    ResolveRetry(Sight),
    /// An operator revokes the claim of the attempt it saw: the attempt is interrupted, and its owner can do nothing more.
    Revoke(Token),
    /// Replaces the outcome recorded under that token, as if the key had been absent.
    Replace(Token),
    /// Forgets the key, unless its owner is at work: the next claim treats it as new.
    Forget,
    /// Forgets the key as `Forget` does, if it is still in the state that the caller saw.
    ForgetSeen(Sight),
    /// Forgets a key that is claimed under this token.
    ForgetClaimed(Token),
}

impl Call {
    /// The token of the owner whose call it is.
    pub(crate) fn of_owner(self) -> Option<Token> {
        match self {
            Call::Complete(token)
            | Call::Fail(token)
            | Call::Abort(token)
            | Call::Withdraw(token)
            | Call::Park(token)
            | Call::Interrupt(token)
            | Call::Renew(token)
            | Call::Progress(token)
            | Call::BeginStep(token)
            | Call::Announce(token)
            | Call::EndStep { token, .. }
            | Call::Detach(token) => Some(token),
            Call::Claim(_)
            | Call::Record { .. }
            | Call::TakeOver(_)
            | Call::NotApplied(_)
            | Call::Hold(_)
            | Call::RenewQuestion(_)
            | Call::DropQuestion(_)
            | Call::Attach(_)
            | Call::ResolveComplete(_)
            | Call::ResolveFail(_)
            | Call::ResolveRetry(_)
            | Call::Revoke(_)
            | Call::Replace(_)
            | Call::Forget
            | Call::ForgetSeen(_)
            | Call::ForgetClaimed(_) => None,
        }
    }

    /// The token of the claim that the call ends or hands over: its caller has no claim any more, even if it is refused.
    pub(crate) fn ends(self) -> Option<Token> {
        match self {
            Call::Renew(_)
            | Call::Progress(_)
            | Call::BeginStep(_)
            | Call::Announce(_)
            | Call::EndStep { .. } => None,
            call => call.of_owner(),
        }
    }

    /// Whether a claimant that waits for the key is answered by the state that the call leads to, however many wait. After
    /// any other call that changes a key, at most one of them may be granted it.
    pub(crate) fn has_answer_for_all(self) -> bool {
        match self {
            Call::Record { .. }
            | Call::Complete(_)
            | Call::Fail(_)
            | Call::Park(_)
            | Call::Hold(_)
            | Call::ResolveComplete(_)
            | Call::ResolveFail(_) => true,
            Call::Claim(_)
            | Call::TakeOver(_)
            | Call::NotApplied(_)
            | Call::RenewQuestion(_)
            | Call::DropQuestion(_)
            | Call::Abort(_)
            | Call::Withdraw(_)
            | Call::Interrupt(_)
            | Call::Renew(_)
            | Call::Progress(_)
            | Call::BeginStep(_)
            | Call::Announce(_)
            | Call::EndStep { .. }
            | Call::Detach(_)
            | Call::Attach(_)
            | Call::ResolveRetry(_)
            | Call::Revoke(_)
            | Call::Replace(_)
            | Call::Forget
            | Call::ForgetSeen(_)
            | Call::ForgetClaimed(_) => false,
        }
    }

    /// Whether it names the state that its caller saw, as [`Sight`] does.
    fn is_by_sight(self) -> bool {
        matches!(
            self,
            Call::ResolveComplete(_)
                | Call::ResolveFail(_)
                | Call::ResolveRetry(_)
                | Call::ForgetSeen(_)
        )
    }

    /// Whether it says for how long the claim lasts from now on, in its conditions.
    pub(crate) fn names_lease(self) -> bool {
        matches!(self, Call::Detach(_) | Call::Renew(_))
    }

    /// Whether it is about a question, which only memory knows.
    fn is_about_question(self) -> bool {
        matches!(self, Call::RenewQuestion(_) | Call::DropQuestion(_))
    }
}

// It is handed on by value wherever a key is claimed.
const _: () = assert!(size_of::<Call>() <= 32);

/// What identifies the state in which a caller saw a key. Each record of a key changes it, so that whatever happened since is
/// noticed: progress and a renewed lease, too. Only the record of a lapse doesn't, since the key was shown as interrupted
/// before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sight {
    /// A state by its record.
    Record {
        /// The attempt's token.
        token: Token,
        /// The state in which the key was shown.
        phase: Phase,
        /// When the record was made.
        time: StoreMillis,
    },
    /// An expired key that is remembered until then. Its token is gone with its record.
    Expired {
        /// When the key's memory passes.
        until: StoreMillis,
    },
}

/// What a claimant asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wants {
    /// The request's fingerprint: another one under the same key is a mismatch.
    pub fingerprint: Option<Fingerprint>,
    /// What the claimant does about an interruption; `None`: it is asked.
    pub on_interrupted: Option<OnInterrupted>,
    /// The number of attempts after which no further one is granted.
    pub attempts_max: Option<u32>,
    /// The claimant can find out what became of an attempt, so it is asked where it would be refused.
    pub reconciles: bool,
}

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

/// What a call brings for the state that it may lead to. Each state takes what it has a use for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Conditions<'a> {
    /// What the request is; recorded with a grant.
    pub(crate) fingerprint: Option<Fingerprint>,
    /// An interruption of the attempt that it begins is to be held.
    pub(crate) hold: bool,
    /// The label of the claimant.
    pub(crate) owner: Option<&'a str>,
    /// Why the attempt ends.
    pub(crate) reason: Option<&'a str>,
    /// What few calls bring.
    pub(crate) extras: Option<&'a CallExtras<'a>>,
    /// How long the owner holds the claim or the claimant may take to decide, in milliseconds; `None`: as long as its guard
    /// lives.
    pub(crate) lease_ms: Option<u64>,
    /// How long an outcome or an abort is kept; `None`: for ever.
    pub(crate) retention_ms: Option<u64>,
    /// How long an outcome is remembered once its retention has passed; `None`: not at all.
    pub(crate) remember_ms: Option<u64>,
}

/// What few calls bring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct CallExtras<'a> {
    /// Who says the word.
    pub(crate) by: Option<&'a str>,
    /// What the owner saves of its progress, encoded.
    pub(crate) progress: Option<&'a [u8]>,
    /// The name of the step that the owner begins, announces or ends.
    pub(crate) step: Option<&'a str>,
    /// How long the next attempt has to wait after an abort.
    pub(crate) retry_ms: Option<u64>,
    /// Bytes that a detached claim reserves for its ending once it is attached.
    pub(crate) reserve: u64,
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

/// The answer to a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The key is granted to the caller. For a mark: it was the first.
    Granted,
    /// Told of the interruption; the key waits in memory for a word.
    Asked,
    /// Another attempt is at work.
    InProgress,
    /// No claim on the key is granted until the key is resolved.
    Held,
    /// As `Held`, because the next attempt would be beyond `attempts_max`.
    TooManyAttempts,
    /// Done before. For a mark: marked before.
    Completed,
    /// An earlier attempt failed for good.
    Failed,
    /// The key was used for another request.
    Mismatch,
    /// Done, and its result is no longer kept.
    Expired,
    /// For a mark: an attempt's fate is open.
    Interrupted,
    /// The last owner asked that the next attempt wait, and that time has not passed.
    Delayed,
    /// The key has the maximum number of open steps.
    TooManySteps,
    /// The step was announced with another input, and has not ended.
    OtherInput,
    /// The call was carried out.
    Done,
    /// There was nothing to do, or the key is no longer in the state that the caller saw.
    Unchanged,
    /// Another attempt has the key, or the claim has ended.
    Lost,
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

/// What the rules say of a call, before the fields of the next state are filled in.
struct Ruling<'a> {
    answer: Option<Answer>,
    change: Option<Change<'a>>,
}

/// What becomes of a key, each with the state that it comes from.
#[derive(Clone, Copy)]
enum Change<'a> {
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

/// Decides one call on one key.
pub(crate) fn decide<'a>(
    current: &Current<'a>,
    call: Call,
    conditions: &Conditions<'a>,
    moment: Moment,
) -> Decision<'a> {
    let Ruling { answer, change } = rule(current, call, conditions, moment.now);
    let next = change.map(|change| next(change, current, conditions, moment));
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

#[inline]
fn rule<'a>(
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
        Call::Renew(token) => renew(state, presence, token),
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

/// Whether a claimant decides about an interrupted attempt. To all others the key is in progress meanwhile, whether they claim
/// it, look at it or list it, and they see that claimant. The state in which they saw the key is nevertheless the interrupted
/// one, since no record makes a question: they may resolve or forget it during the question and after it.
pub(crate) fn is_being_decided(state: &KeyState, presence: Presence) -> bool {
    presence == Presence::Asked && phase_shown(state, presence) == Phase::Interrupted
}

fn is_claimed_under(state: &KeyState, presence: Presence, token: Token) -> bool {
    state.token == token && phase_shown(state, presence) == Phase::Claimed
}

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
fn has_lapsed(presence: Presence, lease_until: Option<StoreMillis>, now: StoreMillis) -> bool {
    presence == Presence::Owner && lease_until.is_some_and(|until| until <= now)
}

/// Whether a lease has passed that this call is the first to come upon. Owners don't: the word of the key's own counts as long
/// as nobody else has come, and that of a former one changes nothing. Nor does a caller that names what it saw: it saw the
/// attempt interrupted, so its own record is enough, and if it saw another state, nothing is to change.
fn is_noticed_lapse(state: &KeyState, current: &Current<'_>, call: Call, now: StoreMillis) -> bool {
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

fn claim(
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

/// Whether the next attempt at an aborted key has to wait.
pub(crate) fn is_delayed(state: &KeyState, now: StoreMillis) -> bool {
    state.phase == Phase::Aborted && state.retry_at().is_some_and(|at| at > now)
}

/// The last number of all stands for every attempt after it, too; tokens tell them apart.
fn next_attempt(state: &KeyState) -> u32 {
    state.attempt.saturating_add(1)
}

/// Whether the call's step was announced with another input, and has not ended.
fn has_other_input(state: &KeyState, conditions: &Conditions<'_>) -> bool {
    let name = conditions.extras.and_then(|extras| extras.step);
    let open = state.announced().iter().find(|step| Some(&*step.name) == name);
    open.is_some_and(|open| differs(open.input, conditions.fingerprint))
}

/// Two requests, or two inputs of a step, are known to differ only if it was said of both what they are.
pub(crate) fn differs(recorded: Option<Fingerprint>, given: Option<Fingerprint>) -> bool {
    matches!((recorded, given), (Some(recorded), Some(given)) if recorded != given)
}

fn record(
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
fn word<'a>(
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
fn ending<'a>(
    state: Option<&'a KeyState>,
    token: Token,
    change: impl FnOnce(&'a KeyState) -> Change<'a>,
) -> Ruling<'a> {
    match state {
        Some(state) if state.token == token && is_open(state.phase) => done(change(state)),
        _ => told(Answer::Lost),
    }
}

fn is_open(phase: Phase) -> bool {
    matches!(phase, Phase::Claimed | Phase::Interrupted | Phase::Held)
}

/// What the owner notes while its attempt goes on. It counts however late, until a claimant was asked or the key was held.
fn noting<'a>(
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
fn aborted(state: &KeyState, forgiven: u32) -> Change<'_> {
    let is_open = state.open_fate.is_some() || !state.announced().is_empty();
    match state.phase {
        Phase::Held => Change::Spent(state, Phase::Held, forgiven),
        _ if is_open => Change::Spent(state, Phase::Interrupted, forgiven),
        _ => Change::Aborted(state, forgiven),
    }
}

/// The owner of a detached claim leaves it as it was: the lease runs, and the ticket attaches again.
fn interrupt(state: Option<&KeyState>, presence: Presence, token: Token) -> Ruling<'_> {
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
fn detach(state: Option<&KeyState>, presence: Presence, token: Token) -> Ruling<'_> {
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
fn attach(state: Option<&KeyState>, presence: Presence, token: Token) -> Ruling<'_> {
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

fn renew(state: Option<&KeyState>, presence: Presence, token: Token) -> Ruling<'_> {
    match state {
        Some(state) if state.token == token => match phase_shown(state, presence) {
            // The lease of a detached claim is stored.
            Phase::Claimed if state.detached().is_some() => {
                let stays = if presence == Presence::Owner { presence } else { Presence::Nobody };
                done(Change::Leased(state, stays))
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
fn as_seen<'a>(
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

fn resolve<'a>(
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

fn granted(change: Change<'_>) -> Ruling<'_> {
    Ruling { answer: Some(Answer::Granted), change: Some(change) }
}

fn done(change: Change<'_>) -> Ruling<'_> {
    Ruling { answer: Some(Answer::Done), change: Some(change) }
}

fn told<'a>(answer: Answer) -> Ruling<'a> {
    Ruling { answer: Some(answer), change: None }
}

/// Fills in the next state: what it takes from the one before, and what from the call.
fn next<'a>(
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
struct Lasting {
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
fn begun<'a>(
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
fn kept(state: &KeyState) -> Option<Box<NextExtras<'_>>> {
    state.extras.as_ref()?;
    said_by(state, None)
}

/// The same, except that no step is open.
#[inline]
fn kept_but_steps(state: &KeyState) -> Option<Box<NextExtras<'_>>> {
    NextExtras { progress: state.progress(), ..NextExtras::default() }.boxed()
}

/// What a key keeps, with who said the word.
fn said_by<'a>(state: &'a KeyState, by: Option<&'a str>) -> Option<Box<NextExtras<'a>>> {
    let (progress, announced) = (state.progress(), state.announced());
    NextExtras { by, progress, announced, ..NextExtras::default() }.boxed()
}

fn by<'a>(conditions: &Conditions<'a>) -> Option<&'a str> {
    label(conditions.extras.and_then(|extras| extras.by))
}

/// The same attempt, in another phase.
fn gone_on<'a>(
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
fn aborted_with<'a>(
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
fn label(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
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

#[cfg(test)]
mod tests;
