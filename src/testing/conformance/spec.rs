//! A second version of the rules of a key's life, written from the design alone: simple, in memory, one key at a time.
//! Tests compare the engine and its threads with this version.
//!
//! The spec differs from the library on purpose. It has no log: an interrupted attempt is a claim without an owner. Nor
//! can it predict tokens: the store issues them, and the spec remembers them.

use std::collections::{BTreeMap, BTreeSet};

use crate::Durability;

/// A call on the store for one key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    /// `question` names the question, if the claim is answered with one.
    Claim {
        ask: Ask,
        question: u64,
    },
    Mark {
        ask: Ask,
    },
    /// An outcome without a claim.
    Record {
        ask: Ask,
        how: End,
    },
    Word {
        word: Word,
        seen: Option<u64>,
        ask: Ask,
        question: u64,
    },
    DropQuestion {
        question: u64,
    },
    RenewQuestion {
        question: u64,
        lease: u64,
    },
    End {
        token: u64,
        how: End,
        ask: Ask,
    },
    /// The work is done, and its result can't be kept: the key is held.
    Park {
        token: u64,
    },
    /// The guard is dropped. An earlier setting decides whether that aborts the attempt.
    Drop {
        token: u64,
        aborts: bool,
        ask: Ask,
    },
    Renew {
        token: u64,
        lease: u64,
        ask: Ask,
    },
    /// The grant was never delivered.
    Withdraw {
        token: u64,
        ask: Ask,
    },
    Progress {
        token: u64,
        value: Vec<u8>,
        ask: Ask,
    },
    /// The three calls of a step.
    BeginStep {
        token: u64,
        name: u8,
        input: Option<u8>,
    },
    Announce {
        token: u64,
        name: u8,
        input: Option<u8>,
        ask: Ask,
    },
    EndStep {
        token: u64,
        name: u8,
        input: Option<u8>,
        value: Vec<u8>,
    },
    /// A whole step, whose work returns that value, or an error.
    Step {
        token: u64,
        name: u8,
        input: Option<u8>,
        is_announced: bool,
        value: Option<Vec<u8>>,
        ask: Ask,
    },
    Detach {
        token: u64,
        lease: u64,
    },
    /// A guard by the ticket of that token.
    Attach {
        token: u64,
    },
    /// An operator interrupts a claim.
    Revoke {
        seen: Option<u64>,
    },
    Resolve {
        seen: Option<u64>,
        how: End,
    },
    Forget,
    /// By the state that was shown last, if that has not changed.
    ForgetSeen,
    ForgetClaimed {
        token: u64,
    },
    Get,
}

/// How a key is claimed. Times are in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ask {
    pub print: Option<u8>,
    pub lease: Option<u64>,
    pub hold: Option<bool>,
    pub max: Option<u32>,
    pub keep: Option<u64>,
    /// How long an outcome is remembered once it is no longer kept.
    pub remember: Option<u64>,
    /// How long the next attempt has to wait after an abort.
    pub delay: Option<u64>,
    pub claim_level: Durability,
    pub level: Durability,
    pub drop_aborts: bool,
}

pub const PLAIN: Ask = Ask {
    print: None,
    lease: None,
    hold: None,
    max: None,
    keep: None,
    remember: None,
    delay: None,
    claim_level: Durability::Sync,
    level: Durability::Sync,
    drop_aborts: false,
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Word {
    TakeOver,
    NotApplied,
    Hold,
}

/// An ending, or what an operator found out. `keep` is the outcome's own retention.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum End {
    Success {
        value: Vec<u8>,
        keep: Option<u64>,
    },
    Failure {
        value: Vec<u8>,
        keep: Option<u64>,
    },
    /// From an owner: abort. From an operator: retry.
    Nothing,
}

/// What the store answers.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Told {
    Granted {
        attempt: u32,
    },
    Asked(View),
    InProgress(View),
    Delayed(View),
    Held(View),
    TooMany(View),
    Mismatch(Shown),
    Expired,
    /// The recorded outcome, as the answer to a claim or a mark. The outcome of a mark has no value.
    Recorded(Shown),
    First,
    Again,
    Unsure(View),
    State(Option<Shown>),
    /// The result of a step, if it has one.
    Step {
        value: Option<Vec<u8>>,
        ran: Ran,
    },
    /// The step was begun with another input.
    OtherInput,
    Yes,
    No,
    Busy,
    IsHeld,
    Lost,
    /// Refused because the request is invalid.
    Invalid,
    /// The namespace passed to another version.
    Superseded,
}

/// Whether the work of a step ran for a call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ran {
    /// It did, and had not run before.
    First,
    /// It did, and was told that it may have run before.
    MayBeAgain,
    /// It did not: the step had ended before.
    Not,
}

/// A key as it is shown.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Shown {
    Running(View),
    Interrupted(View),
    Held(View),
    Aborted(View),
    Success { value: Vec<u8>, attempt: u32, token: Option<u64> },
    Failure { value: Vec<u8>, attempt: u32, token: Option<u64> },
    Expired,
}

/// An attempt as it is shown; `token` is `None` if the spec can't know it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct View {
    pub attempt: u32,
    pub token: Option<u64>,
    pub hold: bool,
    /// What is left of a lease. That of a detached claim goes by the store's own time, so that the spec knows a bound only.
    pub left: Option<u64>,
    pub is_detached: bool,
    pub progress: Option<Vec<u8>>,
    /// Steps that were announced and have not ended.
    pub open_steps: Vec<u8>,
    /// The key waits for a claimant to decide about this attempt.
    pub is_being_decided: bool,
    /// The next attempt has to wait.
    pub is_delayed: bool,
}

impl Shown {
    /// The state that its caller may resolve or forget. A question is none of its own.
    pub fn without_question(self) -> Shown {
        match self {
            Shown::Running(view) if view.is_being_decided => Shown::Interrupted(view),
            shown => shown,
        }
    }

    pub fn token(&mut self) -> Option<&mut Option<u64>> {
        match self {
            Shown::Running(view)
            | Shown::Interrupted(view)
            | Shown::Held(view)
            | Shown::Aborted(view) => Some(&mut view.token),
            Shown::Success { token, .. } | Shown::Failure { token, .. } => Some(token),
            Shown::Expired => None,
        }
    }
}

impl Told {
    /// Returns the token that was shown, if one was.
    pub fn token(&mut self) -> Option<&mut Option<u64>> {
        match self {
            Told::Asked(view)
            | Told::InProgress(view)
            | Told::Delayed(view)
            | Told::Held(view)
            | Told::TooMany(view)
            | Told::Unsure(view) => Some(&mut view.token),
            Told::Mismatch(shown) | Told::Recorded(shown) | Told::State(Some(shown)) => {
                shown.token()
            }
            _ => None,
        }
    }

    /// Returns whether this answer of the spec agrees with the answer of the store.
    pub fn agrees(&self, mut said: Told) -> bool {
        let mut own = self.clone();
        if let (Some(own @ None), Some(said)) = (own.token(), said.token()) {
            *own = *said;
        }
        if let (Some(own), Some(said)) = (own.view(), said.view()) {
            if own.is_detached && said.left.is_some() {
                own.left = said.left;
            }
        }
        own == said
    }

    /// Returns the attempt that was shown, if one was.
    pub fn view(&mut self) -> Option<&mut View> {
        match self {
            Told::Asked(view)
            | Told::InProgress(view)
            | Told::Delayed(view)
            | Told::Held(view)
            | Told::TooMany(view)
            | Told::Unsure(view) => Some(view),
            Told::Mismatch(shown) | Told::Recorded(shown) | Told::State(Some(shown)) => match shown
            {
                Shown::Running(view)
                | Shown::Interrupted(view)
                | Shown::Held(view)
                | Shown::Aborted(view) => Some(view),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A key that is not absent.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    pub is: Is,
    /// The attempt's token. `None` if that token was used up and the store has not shown the new one.
    pub token: Option<u64>,
    pub attempt: u32,
    /// Attempts before the last resolution for a retry.
    pub forgiven: u32,
    /// An earlier attempt's fate is open.
    pub doubt: bool,
    pub hold: bool,
    pub print: Option<u8>,
    /// Bounds of the store time at which the key is gone: not before the first, and not after the second.
    pub gone_at: Option<(u64, u64)>,
    /// The same bounds for the memory of the key.
    pub memory: Option<(u64, u64)>,
    /// Bounds of the store time at which a detached claim's lease passes, while it runs.
    pub detached: Option<(u64, u64)>,
    /// The same of the time until which an aborted key's next attempt has to wait.
    pub delay: Option<(u64, u64)>,
    pub progress: Option<Vec<u8>>,
    /// The token of the key's first claim since it was absent, as far as it is known.
    pub life: Option<u64>,
    /// Inputs and results of steps, which later attempts in the same life use.
    pub steps: BTreeMap<u8, (Option<u8>, Vec<u8>)>,
    /// Announced and not ended, each with its input.
    pub open_steps: Vec<(u8, Option<u8>)>,
    /// Begun by this attempt, as far as its owner knows: in memory only.
    pub begun_steps: BTreeSet<u8>,
    /// The attempt follows an interrupted one: in memory only.
    pub is_suspect: bool,
    /// The owner came by a ticket, and does not know which steps were begun.
    pub by_ticket: bool,
    /// The level of its newest record.
    pub level: Durability,
    pub on_it: OnIt,
    /// The guard is dropped: other handles of the owner can't end the attempt, nor renew it.
    pub left: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Is {
    /// Claimed, or interrupted if it has no owner.
    Begun,
    Held,
    Aborted,
    Success(Vec<u8>),
    Failure(Vec<u8>),
    /// The outcome was a success or a failure; the model of the clocks decides.
    Expired,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OnIt {
    Nobody,
    /// The owner has the key until that tick.
    Owner(Option<u64>),
    /// An owner by a ticket: it has the key as long as the detached claim's lease runs.
    Attached,
    /// The question, and until which tick it is open.
    Asked(u64, Option<u64>),
}

impl OnIt {
    fn is_owner(self) -> bool {
        matches!(self, OnIt::Owner(_) | OnIt::Attached)
    }
}

/// `tick` counts milliseconds and is never set; `store` bounds the store's own time.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub tick: u64,
    pub store: (u64, u64),
}

impl Now {
    fn after(&self, millis: u64) -> (u64, u64) {
        (self.store.0 + millis, self.store.1 + millis)
    }
}

/// Applies one call to one key. `fresh` is the token that the store issued if it granted the claim.
pub fn call(slot: &mut Option<Key>, now: Now, call: &Call, fresh: Option<u64>) -> Told {
    if notices_lapse(call) {
        notice_lapse(slot, now);
    }
    match call {
        Call::Claim { ask, question } => claim(slot, now, ask, *question, fresh),
        Call::Mark { ask } => {
            let how = End::Success { value: Vec::new(), keep: None };
            record(slot, now, ask, &how, fresh)
        }
        Call::Record { ask, how } => record(slot, now, ask, how, fresh),
        Call::Word { word, seen, ask, .. } => word_of(slot, now, *word, *seen, ask, fresh),
        Call::DropQuestion { question } => {
            if let Some(key) = slot {
                if matches!(key.on_it, OnIt::Asked(asked, _) if asked == *question) {
                    key.on_it = OnIt::Nobody;
                }
            }
            Told::Yes
        }
        Call::RenewQuestion { question, lease } => match slot {
            Some(key) if is_asked(key, now) => match &mut key.on_it {
                OnIt::Asked(asked, until) if asked == question => {
                    *until = Some(now.tick + lease);
                    Told::Yes
                }
                _ => Told::Lost,
            },
            _ => Told::Lost,
        },
        Call::End { token, how, ask } => end(slot, now, *token, how, ask),
        Call::Park { token } => match open(slot, *token) {
            Some(key) => {
                key.is = Is::Held;
                key.on_it = OnIt::Nobody;
                key.detached = None;
                key.level = Durability::Sync;
                key.left = true;
                Told::Yes
            }
            None => Told::Lost,
        },
        Call::Withdraw { token, ask } => {
            if let Some(key) = open(slot, *token) {
                key.forgiven += 1;
            }
            end(slot, now, *token, &End::Nothing, ask)
        }
        Call::Drop { token, aborts: true, ask } => {
            // No caller is left to be notified if it was lost.
            end(slot, now, *token, &End::Nothing, &Ask { delay: None, ..*ask });
            Told::Yes
        }
        Call::Drop { token, .. } => {
            if let Some(key) = open(slot, *token) {
                key.left = true;
                if key.on_it.is_owner() {
                    key.on_it = OnIt::Nobody;
                }
            }
            Told::Yes
        }
        Call::Renew { token, lease, ask } => match open(slot, *token) {
            Some(key) if key.is == Is::Held => Told::IsHeld,
            Some(key) if key.by_ticket => {
                key.detached = Some(now.after(*lease));
                key.on_it = OnIt::Attached;
                key.level = ask.claim_level;
                Told::Yes
            }
            Some(key) => {
                key.on_it = OnIt::Owner(Some(now.tick + lease));
                Told::Yes
            }
            None => Told::Lost,
        },
        Call::Progress { token, value, ask } => match open(slot, *token) {
            Some(key) if key.is == Is::Begun && !is_asked(key, now) => {
                key.progress = Some(value.clone());
                key.level = ask.claim_level;
                Told::Yes
            }
            _ => Told::Lost,
        },
        Call::BeginStep { token, name, input } => match stepping(slot, *token, now) {
            Some(key) if is_open_otherwise(key, *name, *input) => Told::OtherInput,
            Some(_) => Told::Yes,
            None => Told::Lost,
        },
        Call::Announce { token, name, input, ask } => match stepping(slot, *token, now) {
            Some(key) if is_open_otherwise(key, *name, *input) => Told::OtherInput,
            Some(key) => {
                announce(key, *name, *input, ask);
                Told::Yes
            }
            None => Told::Lost,
        },
        Call::EndStep { token, name, input, value } => match stepping(slot, *token, now) {
            Some(key) if key.steps.contains_key(name) => Told::No,
            Some(key) => {
                end_step(key, *name, *input, value);
                Told::Yes
            }
            None => Told::Lost,
        },
        Call::Step { token, name, input, is_announced, value, ask } => {
            match stepping(slot, *token, now) {
                Some(key) => step(key, *name, *input, *is_announced, value.as_ref(), ask),
                None => Told::Lost,
            }
        }
        Call::Detach { token, lease } => match open(slot, *token) {
            Some(key) if key.is == Is::Held => Told::IsHeld,
            Some(key) => {
                key.detached = Some(now.after(*lease));
                key.on_it = OnIt::Nobody;
                key.left = true;
                key.level = Durability::Sync;
                Told::Yes
            }
            None => Told::Lost,
        },
        Call::Attach { token } => match slot {
            Some(key)
                if key.token == Some(*token) && key.is == Is::Begun && key.on_it.is_owner() =>
            {
                Told::Busy
            }
            Some(key) if key.token == Some(*token) && matches!(key.is, Is::Begun | Is::Held) => {
                key.left = false;
                key.by_ticket = true;
                key.begun_steps.clear();
                if is_running(key) {
                    key.on_it = OnIt::Attached;
                }
                Told::Yes
            }
            _ => Told::Lost,
        },
        Call::Revoke { seen } => match slot {
            Some(key) if is_running(key) && key.token == *seen => {
                key.token = None;
                key.doubt = true;
                key.on_it = OnIt::Nobody;
                key.detached = None;
                key.level = Durability::Sync;
                Told::Yes
            }
            _ => Told::No,
        },
        Call::Resolve { seen, how } => resolve(slot, now, *seen, how),
        Call::Forget | Call::ForgetSeen => match slot {
            None => Told::No,
            Some(key) if is_running(key) => Told::Busy,
            Some(_) => {
                *slot = None;
                Told::Yes
            }
        },
        Call::ForgetClaimed { token } => match slot {
            Some(key) if is_running(key) && key.token == Some(*token) => {
                *slot = None;
                Told::Yes
            }
            _ => Told::Lost,
        },
        // Shown as the next call will find it, and unchanged.
        Call::Get => {
            let mut seen = slot.clone();
            notice_lapse(&mut seen, now);
            Told::State(seen.as_ref().map(|key| shown(key, now)))
        }
    }
}

/// Whether it finds a key without an owner once the lease has passed. Owners don't, and a look changes nothing.
fn notices_lapse(call: &Call) -> bool {
    !matches!(
        call,
        Call::End { .. }
            | Call::Withdraw { .. }
            | Call::Park { .. }
            | Call::Drop { .. }
            | Call::Renew { .. }
            | Call::Progress { .. }
            | Call::BeginStep { .. }
            | Call::Announce { .. }
            | Call::EndStep { .. }
            | Call::Step { .. }
            | Call::Detach { .. }
            | Call::RenewQuestion { .. }
            | Call::DropQuestion { .. }
            | Call::Get
    )
}

/// Whether a call has changed what the store records of a key, and by that the state in which callers see it. The record of
/// a lapse is none: the key was shown so before.
pub fn has_changed(
    before: &Option<Key>,
    after: &Option<Key>,
    now: Now,
    call: &Call,
    told: &Told,
) -> bool {
    match call {
        // Recorded again, even if it is the same.
        Call::Park { .. }
        | Call::Progress { .. }
        | Call::Announce { .. }
        | Call::Resolve { .. } => *told == Told::Yes,
        // Its end has a record of its own.
        Call::EndStep { .. } => false,
        Call::Step { name, is_announced, .. } => {
            let is_begun = matches!(told, Told::Step { ran: Ran::First | Ran::MayBeAgain, .. });
            let is_open = before.as_ref().is_some_and(|key| is_open(key, *name));
            *is_announced && is_begun && !is_open
        }
        call => {
            let mut before = before.clone();
            if notices_lapse(call) {
                notice_lapse(&mut before, now);
            }
            recorded(before.as_ref()) != recorded(after.as_ref())
        }
    }
}

/// Whether a call is the first to come upon a lease that has passed, and records that before anything else. A call that names
/// what its caller saw changes nothing if it saw the attempt in progress, and needs no such record otherwise.
pub fn records_lapse(key: &Option<Key>, now: Now, call: &Call) -> bool {
    let is_by_sight = matches!(call, Call::Resolve { .. } | Call::ForgetSeen);
    let is_lapsed = |key: &Key| key.is == Is::Begun && has_lapsed(key, now);
    notices_lapse(call) && !is_by_sight && key.as_ref().is_some_and(is_lapsed)
}

/// What of a key is in its record: a question is only in memory, as is which guard there is.
fn recorded(key: Option<&Key>) -> Option<(bool, Key)> {
    let key = key?.clone();
    let is_owned = matches!(key.on_it, OnIt::Owner(_));
    // Steps have records of their own.
    let (steps, begun_steps) = (BTreeMap::new(), BTreeSet::new());
    let (on_it, left, is_suspect, by_ticket) = (OnIt::Nobody, false, false, false);
    let key = Key { on_it, left, is_suspect, by_ticket, steps, begun_steps, ..key };
    Some((is_owned, key))
}

/// The key, while the owner of that token may begin and end steps.
fn stepping(slot: &mut Option<Key>, token: u64, now: Now) -> Option<&mut Key> {
    open(slot, token).filter(|key| key.is == Is::Begun && !is_asked(key, now))
}

pub fn is_open(key: &Key, name: u8) -> bool {
    key.open_steps.iter().any(|(open, _)| *open == name)
}

/// Inputs are compared like the fingerprints of requests.
fn are_other_inputs(one: Option<u8>, other: Option<u8>) -> bool {
    one.is_some() && other.is_some() && one != other
}

fn is_open_otherwise(key: &Key, name: u8, input: Option<u8>) -> bool {
    key.open_steps.iter().any(|(open, of)| *open == name && are_other_inputs(*of, input))
}

fn announce(key: &mut Key, name: u8, input: Option<u8>, ask: &Ask) {
    if !is_open(key, name) {
        key.open_steps.push((name, input));
    }
    key.level = ask.claim_level;
}

fn end_step(key: &mut Key, name: u8, input: Option<u8>, value: &[u8]) {
    key.steps.insert(name, (input, value.to_vec()));
    key.open_steps.retain(|(open, _)| *open != name);
}

fn step(
    key: &mut Key,
    name: u8,
    input: Option<u8>,
    is_announced: bool,
    value: Option<&Vec<u8>>,
    ask: &Ask,
) -> Told {
    let ended = key.steps.get(&name);
    let has_ended_otherwise = ended.is_some_and(|(of, _)| are_other_inputs(*of, input));
    if has_ended_otherwise || is_open_otherwise(key, name, input) {
        return Told::OtherInput;
    }
    if let Some((_, value)) = ended {
        return Told::Step { value: Some(value.clone()), ran: Ran::Not };
    }
    let is_suspect = !is_announced && (key.is_suspect || key.by_ticket);
    let is_open = is_open(key, name);
    let may_be_again = is_suspect || is_open || key.begun_steps.contains(&name);
    key.begun_steps.insert(name);
    if is_announced && !is_open {
        announce(key, name, input, ask);
    }
    if let Some(value) = value {
        end_step(key, name, input, value);
    }
    let ran = if may_be_again { Ran::MayBeAgain } else { Ran::First };
    Told::Step { value: value.cloned(), ran }
}

/// A lease that has passed leaves the key without an owner, for every caller except the owner.
fn notice_lapse(slot: &mut Option<Key>, now: Now) {
    if let Some(key) = slot {
        let is_late = matches!(key.on_it, OnIt::Asked(_, Some(until)) if until <= now.tick);
        if is_late || has_lapsed(key, now) {
            key.on_it = OnIt::Nobody;
        }
    }
}

/// Whether the owner's lease has passed.
fn has_lapsed(key: &Key, now: Now) -> bool {
    match key.on_it {
        OnIt::Owner(until) => until.is_some_and(|until| until <= now.tick),
        OnIt::Attached => key.detached.is_none(),
        OnIt::Nobody | OnIt::Asked(..) => false,
    }
}

/// Ends the times that have passed, as `is_over` says of their bounds: a detached claim's lease, and a delay.
pub fn settle(key: &mut Key, mut is_over: impl FnMut((u64, u64)) -> bool) {
    if key.is == Is::Begun && key.detached.is_some_and(&mut is_over) {
        key.detached = None;
    }
    if key.is == Is::Aborted && key.delay.is_some_and(&mut is_over) {
        key.delay = None;
    }
}

fn is_running(key: &Key) -> bool {
    key.is == Is::Begun && (key.on_it.is_owner() || key.detached.is_some())
}

fn is_asked(key: &Key, now: Now) -> bool {
    matches!(key.on_it, OnIt::Asked(_, until) if until.is_none_or(|until| until > now.tick))
        && key.is == Is::Begun
}

/// The key, while `token` may still end its attempt.
fn open(slot: &mut Option<Key>, token: u64) -> Option<&mut Key> {
    slot.as_mut()
        .filter(|key| key.token == Some(token) && matches!(key.is, Is::Begun | Is::Held))
        .filter(|key| !key.left)
}

fn claim(slot: &mut Option<Key>, now: Now, ask: &Ask, question: u64, fresh: Option<u64>) -> Told {
    if ask.hold == Some(true) && ask.claim_level != Durability::Sync {
        return Told::Invalid;
    }
    let Some(key) = slot else {
        *slot = Some(begun(now, ask, fresh, (1, 0), false));
        return Told::Granted { attempt: 1 };
    };
    if key.is == Is::Expired {
        return Told::Expired;
    }
    let is_another = matches!((key.print, ask.print), (Some(a), Some(b)) if a != b);
    if is_another && key.is != Is::Aborted {
        return Told::Mismatch(shown(key, now));
    }
    let too_many = ask.max.is_some_and(|max| key.attempt - key.forgiven >= max);
    match (&key.is, key.on_it) {
        (Is::Success(_) | Is::Failure(_), _) => Told::Recorded(shown(key, now)),
        (Is::Expired, _) => Told::Expired,
        (Is::Held, _) => Told::Held(view(key, now)),
        (Is::Aborted, _) if too_many => Told::TooMany(view(key, now)),
        (Is::Aborted, _) if key.delay.is_some() => Told::Delayed(view(key, now)),
        (Is::Aborted, _) => {
            let attempt = key.attempt + 1;
            let (progress, steps) = (key.progress.take(), std::mem::take(&mut key.steps));
            let life = key.life;
            let key = begun(now, ask, fresh, (attempt, key.forgiven), false);
            *slot = Some(Key { progress, life, steps, ..key });
            Told::Granted { attempt }
        }
        (Is::Begun, _) if is_running(key) => Told::InProgress(view(key, now)),
        (Is::Begun, _) if is_asked(key, now) => Told::InProgress(decided_view(key, now)),
        (Is::Begun, _) if too_many => Told::TooMany(view(key, now)),
        (Is::Begun, _) if key.hold || ask.hold == Some(true) => Told::Held(view(key, now)),
        (Is::Begun, _) => {
            key.on_it = OnIt::Asked(question, ask.lease.map(|lease| now.tick + lease));
            Told::Asked(view(key, now))
        }
    }
}

/// `count`: number of the attempt, and how many before it don't count.
fn begun(now: Now, ask: &Ask, token: Option<u64>, count: (u32, u32), doubt: bool) -> Key {
    let (attempt, forgiven) = count;
    Key {
        is: Is::Begun,
        token,
        attempt,
        forgiven,
        doubt,
        hold: ask.hold == Some(true),
        print: ask.print,
        gone_at: None,
        memory: None,
        detached: None,
        delay: None,
        progress: None,
        life: token,
        steps: BTreeMap::new(),
        open_steps: Vec::new(),
        begun_steps: BTreeSet::new(),
        is_suspect: false,
        by_ticket: false,
        level: ask.claim_level,
        on_it: OnIt::Owner(ask.lease.map(|lease| now.tick + lease)),
        left: false,
    }
}

fn record(slot: &mut Option<Key>, now: Now, ask: &Ask, how: &End, fresh: Option<u64>) -> Told {
    let (is, own) = match how {
        End::Success { value, keep } => (Is::Success(value.clone()), *keep),
        End::Failure { value, keep } => (Is::Failure(value.clone()), *keep),
        End::Nothing => return Told::Invalid,
    };
    let keep = own.or(ask.keep);
    let attempt = match slot {
        None => 1,
        Some(key) => match (&key.is, key.on_it) {
            (Is::Expired, _) => return Told::Expired,
            (Is::Aborted, _) if key.delay.is_some() => return Told::Delayed(view(key, now)),
            (Is::Aborted, _) => key.attempt + 1,
            _ if matches!((key.print, ask.print), (Some(a), Some(b)) if a != b) => {
                return Told::Mismatch(shown(key, now));
            }
            (Is::Success(_) | Is::Failure(_), _) => return Told::Again,
            (Is::Begun, _) if is_running(key) => return Told::InProgress(view(key, now)),
            (Is::Begun | Is::Held, _) => return Told::Unsure(view(key, now)),
        },
    };
    *slot = Some(Key {
        is,
        gone_at: keep.map(|keep| now.after(keep)),
        memory: memory(now, keep, ask.remember),
        level: ask.level,
        hold: false,
        on_it: OnIt::Nobody,
        ..begun(now, ask, fresh, (attempt, 0), false)
    });
    Told::First
}

fn word_of(
    slot: &mut Option<Key>,
    now: Now,
    word: Word,
    seen: Option<u64>,
    ask: &Ask,
    fresh: Option<u64>,
) -> Told {
    let Some(key) = slot else { return Told::Lost };
    if key.token != seen || key.is != Is::Begun || is_running(key) {
        return Told::Lost;
    }
    let attempt = key.attempt + 1;
    let count = (attempt, key.forgiven);
    let (print, progress) = (ask.print.or(key.print), key.progress.clone());
    let (life, steps) = (key.life, key.steps.clone());
    let open_steps = if word == Word::TakeOver { key.open_steps.clone() } else { Vec::new() };
    let begun = |doubt| Key {
        print,
        progress,
        life,
        steps,
        open_steps,
        is_suspect: true,
        ..begun(now, ask, fresh, count, doubt)
    };
    match word {
        Word::Hold => {
            key.is = Is::Held;
            key.on_it = OnIt::Nobody;
            key.level = Durability::Sync;
            return Told::Yes;
        }
        Word::TakeOver => *slot = Some(begun(true)),
        Word::NotApplied => *slot = Some(begun(false)),
    }
    Told::Granted { attempt }
}

fn end(slot: &mut Option<Key>, now: Now, token: u64, how: &End, ask: &Ask) -> Told {
    let Some(key) = open(slot, token) else { return Told::Lost };
    key.level = ask.level;
    match how {
        End::Nothing if key.is == Is::Held => key.token = None,
        End::Nothing if key.doubt || !key.open_steps.is_empty() => {
            key.token = None;
            key.doubt = true;
            key.on_it = OnIt::Nobody;
            key.detached = None;
        }
        how => {
            close(key, now, how, ask.keep, ask.remember);
            if *how == End::Nothing {
                key.delay = ask.delay.map(|delay| now.after(delay));
                // Until then the key is not absent.
                key.gone_at = key.gone_at.max(key.delay.filter(|_| key.gone_at.is_some()));
            }
        }
    }
    Told::Yes
}

fn resolve(slot: &mut Option<Key>, now: Now, seen: Option<u64>, how: &End) -> Told {
    let Some(key) = slot.as_mut().filter(|key| key.token == seen) else { return Told::No };
    match key.is {
        Is::Begun if is_running(key) => Told::Busy,
        Is::Begun | Is::Held | Is::Aborted => {
            if *how == End::Nothing {
                key.forgiven = key.attempt;
            }
            key.level = Durability::Sync;
            close(key, now, how, None, None);
            Told::Yes
        }
        _ => Told::No,
    }
}

/// Closes all open fates.
fn close(key: &mut Key, now: Now, how: &End, keep: Option<u64>, remember: Option<u64>) {
    let (is, own) = match how {
        End::Success { value, keep } => (Is::Success(value.clone()), *keep),
        End::Failure { value, keep } => (Is::Failure(value.clone()), *keep),
        End::Nothing => (Is::Aborted, None),
    };
    if is != Is::Aborted {
        key.progress = None;
        key.steps.clear();
    }
    key.open_steps.clear();
    key.is = is;
    key.doubt = false;
    key.on_it = OnIt::Nobody;
    key.detached = None;
    key.delay = None;
    key.gone_at = own.or(keep).map(|keep| now.after(keep));
    key.memory = memory(now, own.or(keep), remember).filter(|_| key.is != Is::Aborted);
}

/// When the memory of an outcome ends: to the minute, rounded up.
fn memory(now: Now, keep: Option<u64>, remember: Option<u64>) -> Option<(u64, u64)> {
    let (earliest, latest) = now.after(keep?.checked_add(remember?)?);
    Some((earliest, latest + 60_000))
}

fn view(key: &Key, now: Now) -> View {
    let left = match key.on_it {
        OnIt::Owner(until) => until.map(|until| until - now.tick),
        _ => key.detached.map(|(earliest, _)| earliest.saturating_sub(now.store.0)),
    };
    let left = left.filter(|_| key.is == Is::Begun);
    View {
        attempt: key.attempt,
        token: key.token,
        hold: key.hold,
        left,
        is_detached: key.is == Is::Begun && key.detached.is_some(),
        progress: key.progress.clone(),
        open_steps: key.open_steps.iter().map(|(name, _)| *name).collect(),
        is_being_decided: false,
        is_delayed: key.delay.is_some(),
    }
}

/// An interrupted attempt, while a claimant decides about it.
fn decided_view(key: &Key, now: Now) -> View {
    let OnIt::Asked(_, until) = key.on_it else { panic!("nobody was asked: {key:?}") };
    View { left: until.map(|until| until - now.tick), is_being_decided: true, ..view(key, now) }
}

/// A key as other callers see it.
pub fn shown(key: &Key, now: Now) -> Shown {
    let (attempt, token) = (key.attempt, key.token);
    match &key.is {
        Is::Begun if is_running(key) => Shown::Running(view(key, now)),
        Is::Begun if is_asked(key, now) => Shown::Running(decided_view(key, now)),
        Is::Begun => Shown::Interrupted(view(key, now)),
        Is::Held => Shown::Held(view(key, now)),
        Is::Aborted => Shown::Aborted(view(key, now)),
        Is::Success(value) => Shown::Success { value: value.clone(), attempt, token },
        Is::Failure(value) => Shown::Failure { value: value.clone(), attempt, token },
        Is::Expired => Shown::Expired,
    }
}
