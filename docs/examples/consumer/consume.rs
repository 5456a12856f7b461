//! The consumer: everything here that a program needs of onlyonce.

use std::thread;
use std::time::Duration;

use onlyonce::{Claim, ClaimHandle, OnInterrupted, Operation, Policy, Store};

use crate::Result;
use crate::ledger::Effect;
use crate::options::{Choice, Fault, Life};
use crate::queue::{Lines, Queue};
use crate::random::Random;

/// How many messages a poll returns at most.
const POLL: usize = 16;
const LEASE: Duration = Duration::from_secs(60);

struct Consumer<'l> {
    life: &'l Life,
    queue: Queue,
    messages: Vec<String>,
    store: Store,
    ledger: Lines,
    /// The endings that the store acknowledged.
    acknowledged: Lines,
    /// The messages that nobody may handle before somebody has looked.
    parked: Lines,
}

/// What this poll's messages led to.
#[derive(Default)]
struct Handled {
    /// The messages that the next batch completes, with their tokens.
    completed: Vec<String>,
    /// Nothing happened, and they are to be tried again.
    again: Vec<String>,
}

/// Consumes the queue from its committed offset on.
pub(crate) fn live(life: &Life) -> Result<()> {
    let queue = Queue::open(&life.dir);
    let messages = queue.messages()?;
    // The choice is made here, once, for every claim: what happens to an attempt whose fate is unknown.
    let policy = match life.choice {
        Choice::TakeOver => Policy::new().on_interrupted(OnInterrupted::Retry),
        Choice::Hold => Policy::new().on_interrupted(OnInterrupted::Hold),
    };
    let store = Store::builder().policy(policy).open_or_create(queue.keys())?;
    let open = |name| Lines::open(&life.dir, name);
    let (ledger, acknowledged, parked) = (open("ledger")?, open("acknowledged")?, open("parked")?);
    let mut consumer = Consumer { life, queue, messages, store, ledger, acknowledged, parked };
    consumer.consume()?;
    if life.stop_at.is_some() {
        thread::sleep(Duration::from_secs(60));
        return Err("nobody has killed this process".into());
    }
    consumer.store.close(Duration::from_secs(10))?;
    Ok(())
}

impl Consumer<'_> {
    fn consume(&mut self) -> Result<()> {
        // Each batch ends the claims of the last poll, and makes those of the next one: one write and one sync.
        let mut batch = self.store.batch();
        let mut offset = self.queue.committed()?;
        let mut handled = Handled::default();
        loop {
            let (fresh, next) = self.poll(offset);
            let is_settled = handled.again.is_empty();
            let polled = [handled.again, fresh].concat();
            if self.life.fault == Fault::OffsetsFirst {
                self.queue.commit(next)?;
            }
            for message in &polled {
                batch.claim(Operation::new(message).lease(LEASE));
            }
            let committed = batch.commit()?;
            committed.endings.into_iter().collect::<Result<Vec<()>, _>>()?;
            self.acknowledged.append(&handled.completed)?;
            // Now the last poll's messages are done, so that no crash needs them delivered again.
            if is_settled {
                self.queue.commit(offset)?;
            }
            if polled.is_empty() {
                return Ok(());
            }
            offset = next;
            (batch, handled) = (self.store.batch(), Handled::default());
            let mut too_early = Vec::new();
            for (message, claim) in polled.into_iter().zip(committed.claims) {
                let claim = match claim? {
                    Claim::Acquired(claim) => claim,
                    // An attempt died half-way, and nobody can say on which side of the effect. Under `Hold` we would not
                    // be asked; here we chose "again", and the ledger says so.
                    Claim::Interrupted(lost) => lost.take_over()?,
                    // Delivered again, or sent twice.
                    Claim::Completed(_) | Claim::InProgress(_) => continue,
                    Claim::Held(_) => {
                        self.parked.append(&[message])?;
                        continue;
                    }
                    other => return Err(other.refused().into()),
                };
                if self.life.fault == Fault::CompleteFirst {
                    too_early.push((message, claim.handle()));
                    batch.complete(claim, "done");
                    continue;
                }
                match self.handle(&message, &claim)? {
                    Ok(()) => {
                        handled.completed.push(format!("{message} {}", claim.token()));
                        batch.complete(claim, "done");
                    }
                    Err(why) => {
                        batch.abort(claim, why);
                        handled.again.push(message);
                    }
                }
            }
            if self.life.fault == Fault::CompleteFirst {
                let _endings = batch.commit()?;
                batch = self.store.batch();
                for (message, claim) in too_early {
                    self.perform(&message, &claim)?;
                }
            }
        }
    }

    /// The next messages, and the offset after them.
    fn poll(&self, offset: u64) -> (Vec<String>, u64) {
        let end = self.life.stop_at.map_or(usize::MAX, |stop_at| stop_at as usize);
        let end = end.min(self.messages.len()).min(offset as usize + POLL);
        let fresh = self.messages.get(offset as usize..end).unwrap_or_default();
        (fresh.to_vec(), offset + fresh.len() as u64)
    }

    /// Does the work, unless the other side is busy: then nothing has happened, and the message is tried again.
    fn handle(&mut self, message: &str, claim: &ClaimHandle) -> Result<Result<(), &'static str>> {
        if Random::new(claim.token().get()).below(50) == 0 {
            return Ok(Err("the other side is busy"));
        }
        self.perform(message, claim).map(Ok)
    }

    /// The effect. It takes a moment before and after, as a call to the outside does, so that kills fall on both sides of it.
    fn perform(&mut self, message: &str, claim: &ClaimHandle) -> Result<()> {
        let mut random = Random::new(claim.token().get());
        let effect = Effect {
            message: message.to_owned(),
            token: claim.token().get(),
            attempt: claim.attempt(),
            after: claim.interruption().map_or(0, |lost| lost.number()),
            life: self.life.number,
        };
        thread::sleep(random.micros_below(100));
        self.ledger.append(&[effect.to_string()])?;
        thread::sleep(random.micros_below(100));
        Ok(())
    }
}
