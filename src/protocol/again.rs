//! A call of another process that is sent again: the process that it was sent to first has gone, and its answer with it. The
//! table "A call that is sent again" of `docs/protocol.md`.
//!
//! Promises: what was done once isn't done a second time, and is answered as it was. What can't be known is told so, never
//! guessed.

use super::{Answer, Call, Conditions, Current, Decision, Moment, Phase, Presence, decide};

/// How the newest record of a key stands to a call that is sent again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NewestIs {
    /// The call made it.
    Own,
    /// A later item of the same batch made it: the call was decided, and its answer is gone.
    LaterItem,
    /// It is newer than what the caller had heard of when it sent the call first.
    Unheard,
    /// It is older: the call has changed nothing. Or there is none.
    Heard,
}

/// What a call does to a key on which others were since it was sent first.
enum Repeated {
    /// It is made as if it were sent now: made twice, it is as good as made once.
    Made,
    /// It names the state that it changes: it is made if that still stands. If not, it may have been made.
    IfItStands,
    /// As it leaves no trace that others can't remove, it is made only where it would change nothing.
    IfUnchanged,
    /// It is never made.
    Never,
}

impl Repeated {
    fn of(call: Call) -> Self {
        match call {
            Call::Claim(_)
            | Call::TakeOver(_)
            | Call::NotApplied(_)
            | Call::RenewQuestion(_)
            | Call::DropQuestion(_)
            | Call::Withdraw(_)
            | Call::Interrupt(_)
            | Call::Renew { .. }
            | Call::Progress(_)
            | Call::BeginStep(_)
            | Call::Announce(_)
            | Call::EndStep { .. }
            | Call::Attach(_) => Repeated::Made,
            Call::Complete(_)
            | Call::Fail(_)
            | Call::Abort(_)
            | Call::Park(_)
            | Call::Hold(_)
            | Call::Detach(_)
            | Call::ResolveComplete(_)
            | Call::ResolveFail(_)
            | Call::ResolveRetry(_)
            | Call::Revoke(_)
            | Call::Replace(_)
            | Call::ForgetSeen(_)
            | Call::ForgetClaimed(_) => Repeated::IfItStands,
            Call::Record { .. } => Repeated::IfUnchanged,
            Call::Forget => Repeated::Never,
        }
    }
}

/// Decides a call that is sent again. `None`: whether it was made can't be known, and it isn't made now.
pub(crate) fn decide_again<'a>(
    newest: NewestIs,
    current: &Current<'a>,
    call: Call,
    conditions: &Conditions<'a>,
    moment: Moment,
) -> Option<Decision<'a>> {
    if newest == NewestIs::Own {
        if let Some(answer) = answer_of_own(current, call) {
            return Some(Decision { answer: Some(answer), next: None });
        }
    }
    if newest == NewestIs::LaterItem {
        return None;
    }
    let again = if newest == NewestIs::Unheard { Repeated::of(call) } else { Repeated::Made };
    if matches!(again, Repeated::Never) {
        return None;
    }
    let decision = decide(current, call, conditions, moment);
    let is_refused = matches!(decision.answer, Some(Answer::Lost | Answer::Unchanged));
    let is_made = decision.answer.is_some() && decision.next.is_some();
    let is_known = match again {
        Repeated::Made => true,
        Repeated::IfItStands => !is_refused,
        Repeated::IfUnchanged => !is_made,
        Repeated::Never => false,
    };
    is_known.then_some(decision)
}

/// The answer to a call that made the key's newest record; `None`: it is to be decided, since nobody holds the claim that it was
/// granted.
fn answer_of_own(current: &Current<'_>, call: Call) -> Option<Answer> {
    match call {
        Call::Claim(_) | Call::TakeOver(_) | Call::NotApplied(_) => {
            let is_claimed = current.state.is_some_and(|state| state.phase == Phase::Claimed);
            (is_claimed && current.presence == Presence::Owner).then_some(Answer::Granted)
        }
        Call::Record { .. } | Call::Hold(_) => Some(Answer::Granted),
        _ => Some(Answer::Done),
    }
}
