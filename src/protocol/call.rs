//! The calls on a key, what they bring, and the answers to them.

use super::Phase;
use crate::operation::{Fingerprint, OnInterrupted};
use crate::types::{StoreMillis, Token};

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
    Renew {
        /// The claim's.
        token: Token,
        /// The owner got the claim by a ticket: its lease is stored. One that was granted the claim has handed it over once a
        /// lease is stored.
        attached: bool,
    },
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
            | Call::Renew { token, .. }
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

    /// Whether it may be granted a claim.
    pub(crate) fn may_grant(self) -> bool {
        matches!(self, Call::Claim(_) | Call::TakeOver(_) | Call::NotApplied(_))
    }

    /// The token of the claim that the call ends or hands over: its caller has no claim any more, even if it is refused.
    pub(crate) fn ends(self) -> Option<Token> {
        match self {
            Call::Renew { .. }
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
            | Call::Renew { .. }
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
    pub(super) fn is_by_sight(self) -> bool {
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
        matches!(self, Call::Detach(_) | Call::Renew { .. })
    }

    /// Whether it is about a question, which only memory knows.
    pub(super) fn is_about_question(self) -> bool {
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
