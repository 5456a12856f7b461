//! The trait that backends implement, and one call on one key with its reply as plain owned data.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{InFlight, Terms};
use crate::engine::{Applied, Claimed, Found, Seen, Stored, Writing};
use crate::operation::{Durability, Key};
use crate::protocol::{Answer, Asker, Call, KeyState, Presence};
use crate::types::{StoreMillis, Token};
use crate::{ErrorKind, Result};

/// An implementation that answers the calls on a store's keys.
///
/// The answers must follow [protocol.md](crate::docs::protocol); the suite in `testing::conformance` checks that they
/// do. A backend must not reply while a crash that the request's level survives could still undo the answer.
pub trait Backend: Send + Sync {
    /// Begins one call on one key and returns at once, without waiting for the disk or for another process.
    ///
    /// If the caller drops the returned call without waiting, an ending or a dropped question still takes effect. Any
    /// other call releases the claim that it was granted, as dropping the guard would.
    fn send(&self, request: Request) -> Box<dyn Sent>;

    /// Returns the length of the longest result that can be recorded, in bytes.
    fn result_bytes_max(&self) -> u32;

    /// Returns the store's secret, from which tickets and downstream keys are made. It must be the same for every process that
    /// opens the store, for as long as the store exists, and known to nobody else. It is called often, and must not block.
    fn secret(&self) -> [u8; 32];

    /// Succeeds if a claim would be accepted now, and otherwise returns the reason: `StorageFull`, `Poisoned`,
    /// `Closed`, `Forked`.
    fn check(&self) -> Result<()>;

    /// Makes every acknowledged record durable, whatever its level.
    fn sync(&self) -> Result<()>;

    /// Refuses new claims and marks with `Closed` from now on; claims in flight can still end.
    fn drain(&self);

    /// Waits for the claims in flight, for at most `deadline`, and closes the store. Returns the claims still in
    /// flight.
    fn close(&self, deadline: Duration) -> Result<Vec<InFlight>>;

    /// See [`Store::reopen`](crate::Store::reopen). Without a failed write there is nothing to do, so by default it succeeds if
    /// [`check`](Self::check) finds no poison.
    fn reopen(&self) -> Result<()> {
        match self.check() {
            Err(e) if e.kind() == ErrorKind::Poisoned => Err(e),
            _ => Ok(()),
        }
    }
}

/// A call that was sent.
pub trait Sent: Send {
    /// Waits for the reply. The changes of the call are then durable at the level that the request names.
    fn wait(self: Box<Self>) -> Result<Reply>;

    /// Returns the reply once it is there, as a future does: until then, has the waker of `context` woken when there is more to
    /// do. Doesn't wait. The same holds of the changes.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Reply>>;
}

/// One call on one key.
#[derive(Clone, Debug)]
pub struct Request {
    /// The key.
    pub key: Key<'static>,
    /// What to do with the key.
    pub ask: Ask,
}

/// What a request does with its key.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Reads the key's state and changes nothing.
    Look,
    /// Reads a step of a claim on the key and changes nothing: replies with a completed key if the step has ended, in that
    /// life of the key.
    Step {
        /// The life: token of the key's first claim since it was absent.
        life: Token,
        /// The name of the step.
        name: String,
    },
    /// Replies `Done` once the claim of this token is no longer live: it has ended, its lease has passed, or it is another's.
    Ended(Token),
    /// Makes a call that the rules decide, with the values for its record.
    Call(Call, Box<Terms>),
}

/// The reply to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The answer that the rules give, and `Done` for [`Ask::Look`].
    pub answer: Answer,
    /// The key as it was before the call; `None`: it was absent.
    pub found: Option<KeyView>,
    /// The attempt that was granted, if any.
    pub claimed: Option<Claimed>,
    /// Store time of the reply.
    pub now: StoreMillis,
    /// The question's number if the answer is `Asked`, otherwise 0.
    pub question: u64,
}

/// A key as a call found it.
#[derive(Clone, Debug)]
pub struct KeyView {
    /// The state in the key's newest record.
    pub state: KeyState,
    /// Whether the key has an owner, or a claimant that was asked.
    pub presence: Presence,
    /// When the lease of the owner, or of the claimant that was asked, ends. `None`: it has none.
    pub lease_until: Option<StoreMillis>,
    /// The claimant that was asked, if one was.
    pub asker: Option<Arc<Asker>>,
    /// Its outcome, if it has one. A key that was marked without a result may have none.
    pub outcome: Option<Stored>,
}

impl Request {
    pub(crate) fn of(key: &Key<'_>, call: Call, writing: &Writing<'_>) -> Self {
        Request { key: key.to_static(), ask: Ask::Call(call, Box::new(Terms::of(writing))) }
    }
}

impl Request {
    /// The level of its record, and the retention of its outcome.
    pub(super) fn kept(&self) -> (Option<Durability>, Option<u64>) {
        match &self.ask {
            Ask::Call(_, terms) => (terms.durability, terms.retention_millis),
            Ask::Look | Ask::Ended(_) | Ask::Step { .. } => (None, None),
        }
    }
}

impl Reply {
    /// Makes a reply with the answer `Done` and nothing else.
    pub fn done(now: StoreMillis) -> Self {
        Reply { answer: Answer::Done, found: None, claimed: None, now, question: 0 }
    }

    pub(super) fn of_applied(applied: Applied) -> Self {
        let Applied { answer, found, claimed, now, question } = applied;
        let found = found.and_then(|found| {
            let Found { state, presence, lease_until, asker, outcome, .. } = *found;
            state.map(|state| KeyView { state, presence, lease_until, asker, outcome })
        });
        Reply { answer, found, claimed, now, question }
    }

    pub(crate) fn into_applied(self) -> Applied {
        let Reply { answer, found, claimed, now, question } = self;
        let found = found.map(|view| {
            let KeyView { state, presence, lease_until, asker, outcome } = view;
            Box::new(Found::elsewhere(state, presence, lease_until, asker, outcome))
        });
        Applied { answer, found, claimed, now, question }
    }

    pub(super) fn into_seen(self) -> Option<Seen> {
        let Applied { found, now, .. } = self.into_applied();
        found.and_then(|found| Seen::elsewhere(*found, now))
    }
}
