//! A call on the embedded engine that is sent first and waited for later.

use std::sync::Arc;

use super::{Ask, Embedded, Reply, Request, Sent, Shared, Terms};
use crate::engine::{Asks, Done, Placing, Progress, Writing};
use crate::operation::Key;
use crate::protocol::{Answer, Call};
use crate::types::KeyHash;
use crate::{Error, ErrorKind, Result};

/// The reason recorded for an attempt whose grant was never waited for.
const UNDELIVERED: &str = "granted, and not waited for";

/// What a request asks, once it is a call.
struct Owned {
    key: Key<'static>,
    call: Call,
    terms: Box<Terms>,
}

impl Asks for Owned {
    fn ask<R>(&self, with: impl FnOnce(&Key<'_>, Call, &Writing<'_>) -> R) -> R {
        let extras = self.terms.extras();
        with(&self.key, self.call, &self.terms.writing(&extras))
    }
}

/// A call, and its progress. It counts as a handle of its store.
struct SentCall {
    shared: Arc<Shared>,
    hash: KeyHash,
    way: Way,
}

enum Way {
    Placing(Placing<Owned>),
    Placed(Owned, Done),
    Look(Key<'static>),
    Told(Result<Reply>),
    Over,
}

/// Begins a call on the embedded engine of `shared`. Does no I/O and doesn't wait.
pub(crate) fn send(shared: &Arc<Shared>, request: Request) -> Box<dyn Sent> {
    let (hash, way) = match shared.embedded() {
        Ok(embedded) => begin(embedded, request),
        Err(e) => (KeyHash { high: 0, low: 0 }, Way::Told(Err(e))),
    };
    Box::new(SentCall { shared: Arc::clone(shared), hash, way })
}

fn begin(engine: &Embedded, request: Request) -> (KeyHash, Way) {
    let Request { key, ask } = request;
    let hash = engine.hash(&key);
    let way = match ask {
        Ask::Look => Way::Look(key),
        Ask::Call(Call::DropQuestion(question), _) => {
            engine.unask(hash, question);
            Way::Told(Ok(Reply::done(engine.log.now())))
        }
        Ask::Call(Call::Interrupt(token), terms) => {
            let reason = terms.reason.as_deref().unwrap_or_default();
            let extras = terms.extras();
            engine.let_go(&key, hash, token, false, reason, &terms.writing(&extras));
            Way::Told(Ok(Reply::done(engine.log.now())))
        }
        Ask::Call(call, terms) => {
            let mut placing = Placing::new(Owned { key, call, terms }, hash);
            let begun = engine.enter().and_then(|_inside| {
                engine.begins(call)?;
                placing.go_on(engine).map_err(|e| engine.log.explained(e))
            });
            match begun {
                Ok(Progress::Placed(done)) => {
                    engine.log.wake_upkeep();
                    Way::Placed(placing.into_asks(), done)
                }
                Ok(Progress::Waits) => Way::Placing(placing),
                Err(e) => Way::Told(Err(e)),
            }
        }
    };
    (hash, way)
}

/// Advances the call until it is placed.
fn place(engine: &Embedded, mut placing: Placing<Owned>) -> Result<(Owned, Done)> {
    loop {
        match placing.go_on(engine).map_err(|e| engine.log.explained(e))? {
            Progress::Placed(done) => return Ok((placing.into_asks(), done)),
            Progress::Waits => placing.wait(engine).map_err(|e| engine.log.explained(e))?,
        }
    }
}

impl Sent for SentCall {
    fn wait(mut self: Box<Self>) -> Result<Reply> {
        let way = std::mem::replace(&mut self.way, Way::Over);
        let (engine, hash) = (self.shared.embedded()?, self.hash);
        let (owned, done) = match way {
            Way::Told(told) => return told,
            Way::Over => return Err(Error::new(ErrorKind::Bug, "a call was waited for twice")),
            Way::Look(key) => {
                let seen = engine.look(&key, hash)?;
                return Ok(Reply::of_seen(seen, engine.log.now()));
            }
            Way::Placing(placing) => {
                let _inside = engine.enter()?;
                let (owned, done) = place(engine, placing)?;
                let applied = engine.settled(&owned.key, hash, done, owned.terms.durability)?;
                return Ok(Reply::of_applied(applied));
            }
            Way::Placed(owned, done) => (owned, done),
        };
        // A close has ended what was in flight, and synced what it could.
        let _inside = engine.enter().map_err(|e| {
            let message = "the store was closed before this call was waited for: open it, and ask what became of the key";
            Error::new(ErrorKind::Indeterminate, message).because(e)
        })?;
        let applied = engine.settled(&owned.key, hash, done, owned.terms.durability)?;
        Ok(Reply::of_applied(applied))
    }
}

impl Drop for SentCall {
    fn drop(&mut self) {
        let Ok(engine) = self.shared.embedded() else { return };
        match std::mem::replace(&mut self.way, Way::Over) {
            // An ending continues, although no caller learns the result.
            Way::Placing(placing) if placing.asks().call.of_owner().is_some() => {
                if let Ok(_inside) = engine.enter() {
                    let _ = place(engine, placing);
                    engine.log.wake_upkeep();
                }
            }
            Way::Placed(owned, done) => {
                if let Some(claimed) = done.applied().claimed {
                    let (key, token) = (&owned.key, claimed.token);
                    let extras = owned.terms.extras();
                    let writing = owned.terms.writing(&extras);
                    engine.let_go(key, self.hash, token, false, UNDELIVERED, &writing);
                } else if done.applied().answer == Answer::Asked {
                    engine.unask(self.hash, done.applied().question);
                }
            }
            _ => {}
        }
    }
}
