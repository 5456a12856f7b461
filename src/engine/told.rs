//! What observers are told about calls on keys, and the numbers that they are told.
//!
//! Promises: nothing is computed if nobody can be told. A call is told once, when it is decided; whether a crash can undo it is
//! not known yet. Never: called under a shard's lock.

use super::Engine;
use super::applied::{Applied, Done};
use super::call::Writing;
use super::listing::KeyCounts;
use crate::events::{self, DecidedCall, Gauges, Opened, Tally, Weight};
use crate::limits;
use crate::log::open::lifecycle::Inside;
use crate::operation::{Key, Lies};
use crate::protocol::{Answer, Call};
use crate::sync::Ordering;

impl Engine {
    /// Tells about a decided call.
    pub(super) fn tell(&self, key: &Key<'_>, call: Call, writing: &Writing<'_>, done: &Done) {
        let Applied { answer, found, claimed, .. } = &done.applied;
        let lies = key.lies();
        let (name, answer) = (call_name(lies, call, writing), carried_out(call, *answer));
        let state = found.as_ref().and_then(|found| found.state.as_ref());
        let (token, attempt) = match (claimed, state) {
            (Some(claimed), _) => (Some(claimed.token), Some(claimed.attempt)),
            (None, Some(state)) => (Some(state.token), Some(state.attempt)),
            (None, None) => (None, None),
        };
        // The owner of an attached claim left, and the claim goes on.
        let goes_on = matches!(call, Call::Interrupt(_)) && done.placed().is_none();
        let (weight, tally) = match goes_on {
            true => (Weight::Routine, Tally::Nothing),
            false => (weight(call, answer), tally(lies, call, answer)),
        };
        self.log.events.decided(&DecidedCall {
            key,
            namespace: key.namespace(),
            call: name,
            answer: answer_name(answer),
            weight,
            tally,
            token: token.map(|token| token.get()),
            attempt,
            // A grant is about the caller, whose label the state before doesn't have.
            owner: state.filter(|_| claimed.is_none()).and_then(|state| state.owner.as_deref()),
        });
    }

    /// Tells what the open found.
    pub(crate) fn tell_opened(&self, nanos: u64) {
        let report = &self.report;
        let cut = report.cut.as_ref().map(|cut| (cut.bytes, &*cut.path, cut.offset));
        self.log.events.opened(&Opened {
            was_clean: report.was_clean,
            records_read: report.records,
            records_resynced: report.copied,
            cut,
            nanos,
        });
    }

    /// Tells the numbers, at most once in [`limits::GAUGES_MILLIS`].
    pub(super) fn tell_gauges_at_times(&self, inside: &Inside<'_>) {
        if !events::ARE_MEASURED {
            return;
        }
        let now = self.nanos() / 1_000_000;
        let last = self.gauges_at.load(Ordering::Relaxed);
        if last == 0 || now.saturating_sub(last) >= limits::GAUGES_MILLIS {
            self.gauges_at.store(now.max(1), Ordering::Relaxed);
            self.tell_gauges(&self.count_keys(Some(inside)));
        }
    }

    /// Tells the numbers.
    pub(crate) fn tell_gauges(&self, counts: &KeyCounts) {
        if !events::ARE_MEASURED || self.is_closing() {
            return;
        }
        let tables = self.tables();
        let open = counts.open;
        self.log.events.measured(&Gauges {
            in_progress: open.in_progress,
            interrupted: open.interrupted,
            held: open.held,
            detached: open.detached,
            delayed: open.delayed,
            waiters: self.waits.callers(),
            segments: self.log.reading().listed().len() as u64,
            disk_bytes: self.log.budget().0,
            memory_entries: counts.unsealed + counts.sealed_live,
            table_entries: tables.list.iter().map(|table| table.listed.slots).sum(),
            buffered_bytes: self.log.buffered(),
        });
    }
}

/// The name of a call: the method of the API that makes it, or as docs/operations.md says.
fn call_name(lies: Lies, call: Call, writing: &Writing<'_>) -> &'static str {
    match (lies, call) {
        (Lies::Names(_), Call::Record { .. }) => return "namespace",
        (Lies::Names(_), Call::Replace(_)) => return "version",
        (Lies::Names(_), Call::Forget | Call::ForgetSeen(_)) => return "forget_all",
        _ => {}
    }
    match call {
        Call::Claim(_) => "claim",
        Call::Record { failure: false, .. } if writing.outcome.is_none() => "mark",
        Call::Record { .. } => "record",
        Call::TakeOver(_) => "take_over",
        Call::NotApplied(_) => "not_applied",
        Call::Hold(_) => "hold",
        Call::RenewQuestion(_) => "renew",
        Call::Complete(_) => "complete",
        Call::Fail(_) => "fail",
        Call::Abort(_) => "abort",
        Call::Withdraw(_) => "withdraw",
        Call::Park(_) => "hold",
        Call::Interrupt(_) | Call::DropQuestion(_) => "drop",
        Call::Renew { .. } => "renew",
        Call::Progress(_) => "save_progress",
        Call::BeginStep(_) => "begin_step",
        Call::Announce(_) => "announce",
        Call::EndStep { .. } => "end_step",
        Call::Detach(_) => "detach",
        Call::Attach(_) => "attach",
        Call::ResolveComplete(_) => "resolve_complete",
        Call::ResolveFail(_) => "resolve_fail",
        Call::ResolveRetry(_) => "resolve_retry",
        Call::Revoke(_) => "interrupt",
        Call::Replace(_) => "replace",
        Call::Forget | Call::ForgetSeen(_) => "forget",
        Call::ForgetClaimed(_) => "forget_claimed",
    }
}

/// A word that was carried out answers `Granted` too, where it grants nothing.
fn carried_out(call: Call, answer: Answer) -> Answer {
    let grants = matches!(
        call,
        Call::Claim(_) | Call::Record { .. } | Call::TakeOver(_) | Call::NotApplied(_)
    );
    if answer == Answer::Granted && !grants { Answer::Done } else { answer }
}

fn answer_name(answer: Answer) -> &'static str {
    match answer {
        Answer::Granted => "granted",
        Answer::Asked => "asked",
        Answer::InProgress => "in_progress",
        Answer::Held => "held",
        Answer::TooManyAttempts => "too_many_attempts",
        Answer::Completed => "completed",
        Answer::Failed => "failed",
        Answer::Mismatch => "mismatch",
        Answer::Expired => "expired",
        Answer::Interrupted => "interrupted",
        Answer::Delayed => "delayed",
        Answer::TooManySteps => "too_many_steps",
        Answer::OtherInput => "other_input",
        Answer::Done => "done",
        Answer::Unchanged => "unchanged",
        Answer::Lost => "lost",
    }
}

fn weight(call: Call, answer: Answer) -> Weight {
    match (call, answer) {
        (
            _,
            Answer::Lost
            | Answer::Held
            | Answer::TooManyAttempts
            | Answer::TooManySteps
            | Answer::OtherInput
            | Answer::Mismatch,
        )
        | (
            Call::Hold(_)
            | Call::Park(_)
            | Call::Interrupt(_)
            | Call::Revoke(_)
            | Call::Replace(_)
            | Call::ForgetClaimed(_),
            Answer::Done,
        ) => Weight::Alarming,
        (_, Answer::Asked | Answer::Interrupted)
        | (Call::TakeOver(_) | Call::NotApplied(_), Answer::Granted)
        | (
            Call::Detach(_)
            | Call::Attach(_)
            | Call::ResolveComplete(_)
            | Call::ResolveFail(_)
            | Call::ResolveRetry(_),
            Answer::Done,
        ) => Weight::Notable,
        (
            Call::Claim(_)
            | Call::Record { .. }
            | Call::TakeOver(_)
            | Call::NotApplied(_)
            | Call::Hold(_)
            | Call::RenewQuestion(_)
            | Call::DropQuestion(_)
            | Call::Complete(_)
            | Call::Fail(_)
            | Call::Abort(_)
            | Call::Withdraw(_)
            | Call::Park(_)
            | Call::Interrupt(_)
            | Call::Renew { .. }
            | Call::Progress(_)
            | Call::BeginStep(_)
            | Call::Announce(_)
            | Call::EndStep { .. }
            | Call::Detach(_)
            | Call::Attach(_)
            | Call::ResolveComplete(_)
            | Call::ResolveFail(_)
            | Call::ResolveRetry(_)
            | Call::Revoke(_)
            | Call::Replace(_)
            | Call::Forget
            | Call::ForgetSeen(_)
            | Call::ForgetClaimed(_),
            Answer::Granted
            | Answer::InProgress
            | Answer::Completed
            | Answer::Failed
            | Answer::Expired
            | Answer::Delayed
            | Answer::Done
            | Answer::Unchanged,
        ) => Weight::Routine,
    }
}

fn tally(lies: Lies, call: Call, answer: Answer) -> Tally {
    match (call, answer) {
        // A namespace is made when a key in it is, by nobody's decision.
        (Call::Record { .. }, _) if matches!(lies, Lies::Names(_)) => Tally::Nothing,
        (Call::Claim(_), _) => Tally::Claim,
        (Call::Record { .. }, _) => Tally::Mark,
        (_, Answer::Lost) => Tally::Lost,
        (
            Call::Complete(_)
            | Call::Fail(_)
            | Call::Abort(_)
            | Call::Withdraw(_)
            | Call::Park(_)
            | Call::Interrupt(_),
            Answer::Done,
        ) => Tally::Ending,
        (Call::TakeOver(_) | Call::NotApplied(_), Answer::Granted)
        | (
            Call::Hold(_)
            | Call::ResolveComplete(_)
            | Call::ResolveFail(_)
            | Call::ResolveRetry(_)
            | Call::Revoke(_)
            | Call::Replace(_)
            | Call::Forget
            | Call::ForgetSeen(_)
            | Call::ForgetClaimed(_),
            Answer::Done,
        ) => Tally::Decision,
        // Told by the calls that follow, or nothing was decided.
        (
            Call::RenewQuestion(_)
            | Call::DropQuestion(_)
            | Call::Renew { .. }
            | Call::Progress(_)
            | Call::BeginStep(_)
            | Call::Announce(_)
            | Call::EndStep { .. }
            | Call::Detach(_)
            | Call::Attach(_),
            _,
        ) => Tally::Nothing,
        (
            Call::Complete(_)
            | Call::Fail(_)
            | Call::Abort(_)
            | Call::Withdraw(_)
            | Call::Park(_)
            | Call::Interrupt(_)
            | Call::TakeOver(_)
            | Call::NotApplied(_)
            | Call::Hold(_)
            | Call::ResolveComplete(_)
            | Call::ResolveFail(_)
            | Call::ResolveRetry(_)
            | Call::Revoke(_)
            | Call::Replace(_)
            | Call::Forget
            | Call::ForgetSeen(_)
            | Call::ForgetClaimed(_),
            _,
        ) => Tally::Nothing,
    }
}
