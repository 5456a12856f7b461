//! The work: everything here that a program needs of onlyonce.
//!
//! `answer` is the heart of it. `resolve_held` is the operator who looks after the events that nobody
//! may run again unseen.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use onlyonce::{Claim, ErrorKind, OnInterrupted, Outcome, Policy, Resolution, State, Store};

use crate::Result;
use crate::feed::{self, Delivery};
use crate::files::{self, Answer, Effect, Lines, Run, Said};
use crate::options::{Choice, Share};
use crate::random::Random;

/// Several at once: their claims and results share syncs, so the disk's pace matters less.
pub(crate) const WORKERS: usize = 16;

/// The store, and the two files that the outside world consists of here.
struct Consumer {
    store: Store,
    /// The effects.
    outbox: Lines,
    /// What the sender was told.
    answers: Lines,
}

/// What to do with deliveries that were answered "parked".
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// Leave them until the operator has looked.
    Left,
    /// He has: the sender sends them again.
    SentAgain,
}

/// How the operator decided.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Resolved {
    /// The effect stood in the outbox.
    pub(crate) recorded: usize,
    /// It didn't.
    pub(crate) retried: usize,
}

/// Answers every delivery that has no answer yet. Killed at any moment, it goes on from there when it is
/// started again: the store knows about each event, and the sender repeats what he got no answer to.
pub(crate) fn work(run: &Run, share: Share, parked: Parked) -> Result<()> {
    let consumer = Consumer::open(run, share)?;
    consumer.answer_all(run, share, parked, usize::MAX)?;
    consumer.store.close(Duration::from_secs(10))?;
    Ok(())
}

/// The same for a life that will be cut short: it leaves work for the lives to come by answering no more than
/// `limit` deliveries, whenever the kill may fall.
pub(crate) fn work_until_killed(run: &Run, share: Share, limit: usize) -> Result<()> {
    let consumer = Consumer::open(run, share)?;
    consumer.answer_all(run, share, Parked::Left, limit)?;
    thread::sleep(Duration::from_secs(60));
    Err("nobody has killed this process".into())
}

impl Consumer {
    fn open(run: &Run, share: Share) -> Result<Consumer> {
        // The choice is made here, once, for every claim: what happens to an attempt whose fate is unknown.
        let policy = match run.choice {
            Choice::TakeOver => Policy::new().on_interrupted(OnInterrupted::Retry),
            Choice::Hold => Policy::new().on_interrupted(OnInterrupted::Hold),
        };
        Ok(Consumer {
            // Several processes may have it open: one hosts it, and another takes its place when that one is killed.
            store: Store::builder()
                .policy(policy)
                .shared(share.of > 1)
                .open_or_create(run.keys())?,
            outbox: Lines::open(&run.outbox())?,
            answers: Lines::open(&run.answers())?,
        })
    }

    fn answer_all(&self, run: &Run, share: Share, parked: Parked, limit: usize) -> Result<()> {
        let feed = feed::read(&run.feed)?;
        let mut queue = unanswered(&feed, run, parked)?;
        queue.retain(|delivery| share.has(delivery.line));
        queue.truncate(limit);
        let queue = Mutex::new(queue);
        thread::scope(|scope| {
            let workers: Vec<_> =
                (0..WORKERS).map(|_| scope.spawn(|| self.work_off(&queue))).collect();
            // All are joined before the first error is returned.
            let done: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            done.into_iter().try_for_each(|done| done.map_err(|_| "a worker panicked")?)
        })
    }

    fn work_off(&self, queue: &Mutex<VecDeque<&Delivery>>) -> Result<()> {
        let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some(delivery) = lock().pop_front() else { return Ok(()) };
            match self.answer(delivery) {
                Ok(Some((said, receipt))) => {
                    self.answers.append(&Answer { line: delivery.line, said, receipt })?;
                }
                Err(error) if !is_unknown(&*error) => return Err(error),
                // "In progress, try again": the sender will, and later is better than at once.
                Ok(None) | Err(_) => {
                    thread::sleep(Duration::from_millis(1));
                    lock().push_back(delivery);
                }
            }
        }
    }

    /// What to tell the sender; nothing if he shall ask again.
    fn answer(&self, delivery: &Delivery) -> Result<Option<(Said, String)>> {
        let claim = match self.store.claim(delivery.operation())? {
            // Ours, and nobody has begun it before.
            Claim::Acquired(claim) => claim,
            // An attempt died half-way, and nobody can say on which side of the effect. Under `Hold` we
            // would not be asked; here we chose "again", and say so.
            Claim::Interrupted(lost) => match lost.take_over() {
                // The process that had asked us was killed, and the next one has asked another.
                Err(error) if error.kind() == ErrorKind::ClaimLost => return Ok(None),
                taken => taken?,
            },
            Claim::Completed(done) => return Ok(Some((Said::Replayed, done.decode()?))),
            Claim::InProgress(_) | Claim::Delayed(_) => return Ok(None),
            Claim::Held(_) => return Ok(Some((Said::Parked, String::new()))),
            // Another event under this name, or, which nothing here does, a recorded failure or a forgotten result.
            Claim::Mismatch(_) | Claim::Failed(_) | Claim::Expired(_) => {
                return Ok(Some((Said::Refused, String::new())));
            }
        };
        // A `?` from here on drops the claim, which leaves the event interrupted, as a kill would.
        let receipt = self.perform(delivery, claim.attempt())?;
        claim.complete(&receipt)?;
        Ok(Some((Said::Performed, receipt)))
    }

    /// The effect. It takes a moment before and after, as a call to the outside does, so that kills fall
    /// on both sides of it.
    fn perform(&self, delivery: &Delivery, attempt: u32) -> Result<String> {
        let mut random = Random::new(delivery.line as u64);
        let effect = Effect {
            event: delivery.event.clone(),
            attempt,
            account: delivery.account.clone(),
            amount: delivery.amount,
        };
        thread::sleep(random.micros_below(500));
        self.outbox.append(&effect)?;
        thread::sleep(random.micros_below(500));
        Ok(effect.receipt())
    }
}

/// Whether nobody knows if a call was made: the processes that hosted the store were killed over it. The next claim of the key
/// tells.
fn is_unknown(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<onlyonce::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::Indeterminate)
}

/// The operator: looks into the outbox for each event that is held, and says what he saw.
pub(crate) fn resolve_held(run: &Run) -> Result<Resolved> {
    let effects: Vec<Effect> = files::read(&run.outbox())?;
    let effects: HashMap<&str, &Effect> = effects.iter().map(|e| (e.event.as_str(), e)).collect();
    let store = Store::open(run.keys())?;
    let mut resolved = Resolved::default();
    for delivery in feed::read(&run.feed)? {
        let Some(State::Held(lost) | State::Interrupted(lost)) =
            store.get(feed::key(&delivery.event))?
        else {
            continue;
        };
        let resolution = match effects.get(delivery.event.as_str()) {
            Some(effect) => {
                resolved.recorded += 1;
                Resolution::Record(Outcome::success(&effect.receipt()))
            }
            None => {
                resolved.retried += 1;
                Resolution::retry("no effect is recorded")
            }
        };
        // It names the attempt that was looked into: had another one begun meanwhile, nothing would change.
        if !store.resolve(&lost, resolution)? {
            return Err(format!("{} changed while it was looked into", delivery.event).into());
        }
    }
    store.close(Duration::from_secs(10))?;
    Ok(resolved)
}

/// The deliveries that the sender still expects an answer to.
fn unanswered<'f>(
    feed: &'f [Delivery],
    run: &Run,
    parked: Parked,
) -> Result<VecDeque<&'f Delivery>> {
    let answers: Vec<Answer> = files::read(&run.answers())?;
    let settled: HashSet<usize> = answers
        .iter()
        .filter(|answer| answer.said != Said::Parked || parked == Parked::Left)
        .map(|answer| answer.line)
        .collect();
    Ok(feed.iter().filter(|delivery| !settled.contains(&delivery.line)).collect())
}
