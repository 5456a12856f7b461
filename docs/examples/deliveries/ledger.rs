//! Counts afterwards, from the files alone, and says whether everything was done as promised.
//!
//! It believes nobody: the feed says what had to be done, the outbox what was, the answers what the
//! sender was told, the store what is recorded; all four must agree.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::mem;
use std::time::Duration;

use onlyonce::{State, Store};

use crate::Result;
use crate::feed::{self, Delivery};
use crate::files::{self, Answer, Effect, Run, Said};
use crate::options::Choice;
use crate::screen::thousands;
use crate::work::{Resolved, WORKERS};

#[derive(Debug)]
pub(crate) struct Ledger {
    choice: Choice,
    deliveries: usize,
    events: usize,
    /// So many shared the store.
    processes: usize,
    kills: usize,
    /// Deliveries by their answer.
    performed: usize,
    replayed: usize,
    refused: usize,
    /// Events whose effect is recorded, and of which no delivery was told "performed": the process was killed between
    /// the record and the answer, and later deliveries were told "replayed".
    unanswered: usize,
    /// Interrupted attempts after which the event was run again.
    again: Again,
    /// What the operator decided.
    resolved: Resolved,
    second: usize,
    lost: usize,
    off: Vec<String>,
}

/// Attempts that were not their event's last, by whether their effect stands.
#[derive(Clone, Copy, Default, Debug)]
struct Again {
    after_effect: usize,
    before_effect: usize,
}

/// What the store says of a completed event.
struct Recorded {
    /// How many attempts it took; all but the last were interrupted.
    attempts: u32,
    receipt: String,
}

/// For each event the attempts whose effect stands in the outbox.
type Standing<'e> = HashMap<&'e str, HashSet<u32>>;

impl Ledger {
    pub(crate) fn count(
        run: &Run,
        feed: &[Delivery],
        (processes, kills): (usize, usize),
        resolved: Resolved,
    ) -> Result<Ledger> {
        let effects: Vec<Effect> = files::read(&run.outbox())?;
        let answers: Vec<Answer> = files::read(&run.answers())?;
        // A parked delivery was answered twice; the last word counts.
        let answers: HashMap<usize, Answer> = answers.into_iter().map(|a| (a.line, a)).collect();
        let events: HashSet<&str> = feed.iter().map(|delivery| delivery.event.as_str()).collect();

        let mut ledger = Ledger::new(run.choice, kills, resolved);
        ledger.processes = processes;
        ledger.deliveries = feed.len();
        ledger.events = events.len();
        let recorded = ledger.read_store(run, &events)?;
        ledger.check_answers(feed, &answers, &recorded);
        let standing = ledger.check_effects(&effects, &recorded);
        ledger.check_events(&events, &standing, &recorded);
        ledger.check_promises();
        Ok(ledger)
    }

    pub(crate) fn balances(&self) -> bool {
        self.off.is_empty()
    }

    fn new(choice: Choice, kills: usize, resolved: Resolved) -> Ledger {
        Ledger {
            choice,
            deliveries: 0,
            events: 0,
            processes: 1,
            kills,
            performed: 0,
            replayed: 0,
            refused: 0,
            unanswered: 0,
            again: Again::default(),
            resolved,
            second: 0,
            lost: 0,
            off: Vec::new(),
        }
    }

    /// Each event's record. In the end every event is completed, and nothing else is in the store.
    fn read_store<'e>(
        &mut self,
        run: &Run,
        events: &HashSet<&'e str>,
    ) -> Result<HashMap<&'e str, Recorded>> {
        let store = Store::open(run.keys())?;
        let mut recorded = HashMap::new();
        for event in events {
            match store.get(feed::key(event))? {
                Some(State::Completed(done)) => {
                    let record = Recorded { attempts: done.attempt(), receipt: done.decode()? };
                    recorded.insert(*event, record);
                }
                other => self.off.push(format!("the store has {event} as {other:?}")),
            }
        }
        let keys = store.iter().collect::<Result<Vec<_>, _>>()?;
        self.must_equal("keys in the store", keys.len(), "distinct events", self.events);
        store.close(Duration::from_secs(10))?;
        Ok(recorded)
    }

    /// Each delivery was answered, and each answer about one event names the receipt that is recorded.
    fn check_answers(
        &mut self,
        feed: &[Delivery],
        answers: &HashMap<usize, Answer>,
        recorded: &HashMap<&str, Recorded>,
    ) {
        let mut told_performed = HashSet::new();
        for delivery in feed {
            let line = delivery.line;
            let Some(Answer { said, receipt, .. }) = answers.get(&line) else {
                self.off.push(format!("delivery {line} was never answered"));
                continue;
            };
            match said {
                Said::Performed => {
                    self.performed += 1;
                    if !told_performed.insert(delivery.event.as_str()) {
                        self.off
                            .push(format!("{} was answered \"performed\" twice", delivery.event));
                    }
                }
                Said::Replayed => self.replayed += 1,
                Said::Refused => self.refused += 1,
                Said::Parked => self.off.push(format!("delivery {line} is still parked")),
            }
            let known = recorded.get(delivery.event.as_str()).map_or("", |record| &record.receipt);
            if matches!(said, Said::Performed | Said::Replayed) && receipt != known {
                self.off
                    .push(format!("delivery {line} was answered {receipt}, recorded is {known}"));
            }
        }
        let untold = recorded.keys().filter(|event| !told_performed.contains(*event)).count();
        match untold.checked_sub(self.resolved.recorded) {
            Some(unanswered) => self.unanswered = unanswered,
            None => self
                .off
                .push("an event that the operator recorded was answered \"performed\"".into()),
        }
    }

    /// Each effect has an attempt that explains it, and no attempt has two.
    fn check_effects<'e>(
        &mut self,
        effects: &'e [Effect],
        recorded: &HashMap<&str, Recorded>,
    ) -> Standing<'e> {
        let mut standing = Standing::new();
        for effect in effects {
            let event = effect.event.as_str();
            let attempts = recorded.get(event).map_or(0, |record| record.attempts);
            if !(1..=attempts).contains(&effect.attempt) {
                self.off.push(format!("no attempt explains the effect {}", effect.receipt()));
            }
            if !standing.entry(event).or_default().insert(effect.attempt) {
                self.off.push(format!("one attempt has two effects: {}", effect.receipt()));
            }
        }
        standing
    }

    /// Each event has its effect, the recorded receipt names one that stands, and earlier attempts are
    /// told apart by theirs.
    fn check_events(
        &mut self,
        events: &HashSet<&str>,
        standing: &Standing<'_>,
        recorded: &HashMap<&str, Recorded>,
    ) {
        for event in events {
            match standing.get(event).map_or(0, HashSet::len) {
                0 => self.lost += 1,
                effects => self.second += effects - 1,
            }
        }
        for (event, Recorded { attempts, receipt }) in recorded {
            let stands = |n: &u32| standing.get(event).is_some_and(|effects| effects.contains(n));
            if !(1..=*attempts).any(|n| stands(&n) && files::receipt(event, n) == *receipt) {
                self.off.push(format!("the recorded receipt {receipt} names no effect of {event}"));
            }
            let after_effect = (1..*attempts).filter(stands).count();
            self.again.after_effect += after_effect;
            self.again.before_effect += *attempts as usize - 1 - after_effect;
        }
    }

    /// What is promised under each choice; broken promises come first in the list.
    fn check_promises(&mut self) {
        let details = mem::take(&mut self.off);
        self.must_equal("lost effects", self.lost, "promised", 0);
        match self.choice {
            Choice::TakeOver => {
                let explained = self.again.after_effect;
                self.must_equal(
                    "second effects",
                    self.second,
                    "attempts that explain one",
                    explained,
                );
            }
            Choice::Hold => {
                let retried = self.resolved.retried;
                self.must_equal("second effects", self.second, "promised", 0);
                // The host gives back what it granted to a process that was killed before it heard of it. No more than a
                // claim of each of its threads can be on the way then.
                let given_back = self.given_back().min(self.kills * WORKERS);
                let allowed = retried + given_back;
                self.must_equal("attempts run again", self.run_again(), "allowed", allowed);
            }
        }
        self.off.extend(details);
    }

    fn must_equal(&mut self, what: &str, have: usize, other: &str, want: usize) {
        if have != want {
            let (have, want) = (thousands(have), thousands(want));
            self.off.push(format!("{what}: {have}, but {other}: {want}"));
        }
    }

    fn run_again(&self) -> usize {
        self.again.after_effect + self.again.before_effect
    }

    fn given_back(&self) -> usize {
        match self.choice {
            Choice::Hold if self.processes > 1 => {
                self.run_again().saturating_sub(self.resolved.retried)
            }
            _ => 0,
        }
    }

    /// Each was either run again or, where the operator saw its effect, recorded.
    fn interrupted(&self) -> usize {
        self.run_again() + self.resolved.recorded
    }

    /// Under hold nobody takes over: who runs an event again has been told to by the operator.
    fn taken_over(&self) -> Again {
        match self.choice {
            Choice::TakeOver => self.again,
            Choice::Hold => Again::default(),
        }
    }
}

/// The ledgers side by side, a row for each count, and below what is off.
pub(crate) fn table(ledgers: &[Ledger]) -> String {
    type Count = fn(&Ledger) -> usize;
    let rows: [(&str, Count); 18] = [
        ("deliveries in the feed", |l| l.deliveries),
        ("  answered \"performed\": effect made for this delivery", |l| l.performed),
        ("  answered \"replayed\": effect made earlier, receipt repeated", |l| l.replayed),
        ("  answered \"refused\": another event came under this name", |l| l.refused),
        ("distinct events in the feed", |l| l.events),
        ("  answered \"performed\" to one of their deliveries", |l| l.performed),
        ("  recorded, then killed before \"performed\" was answered", |l| l.unanswered),
        ("  recorded by the operator, who found the effect", |l| l.resolved.recorded),
        ("kills (SIGKILL)", |l| l.kills),
        ("attempts killed before their outcome was recorded", Ledger::interrupted),
        ("  taken over: the effect was made, and is made again", |l| l.taken_over().after_effect),
        ("  taken over: the effect was not made yet", |l| l.taken_over().before_effect),
        ("  held: the operator found the effect and recorded it", |l| l.resolved.recorded),
        ("  held: the operator found no effect, run again", |l| l.resolved.retried),
        ("  given back: nobody had heard of the grant", Ledger::given_back),
        ("effects in the outbox: the first of each event", |l| l.events - l.lost),
        ("effects in the outbox: second ones", |l| l.second),
        ("events without an effect", |l| l.lost),
    ];
    let mut out = String::new();
    line(&mut out, "ledger", ledgers, |l| l.choice.slug().to_string());
    for (name, count) in rows {
        line(&mut out, name, ledgers, |l| thousands(count(l)));
    }
    line(&mut out, "balance", ledgers, |l| if l.balances() { "ok" } else { "OFF" }.to_string());
    for ledger in ledgers {
        let _ = write!(out, "\n{}", verdict(ledger));
    }
    out
}

fn line(out: &mut String, name: &str, ledgers: &[Ledger], cell: impl Fn(&Ledger) -> String) {
    let _ = write!(out, "{name:62}");
    for ledger in ledgers {
        let _ = write!(out, "{:>12}", cell(ledger));
    }
    out.push('\n');
}

/// The ledger in words: what the choice gave and what it cost, or what is off.
fn verdict(ledger: &Ledger) -> String {
    const SHOWN: usize = 10;
    let name = ledger.choice.slug();
    if !ledger.balances() {
        let mut text = format!("{name}: does not balance");
        for what in ledger.off.iter().take(SHOWN) {
            let _ = write!(text, "\n  {what}");
        }
        if ledger.off.len() > SHOWN {
            let _ = write!(text, "\n  and {} more", thousands(ledger.off.len() - SHOWN));
        }
        return text;
    }
    let (second, held) = (thousands(ledger.second), thousands(ledger.interrupted()));
    match ledger.choice {
        _ if ledger.interrupted() == 0 => {
            format!("{name}: nothing was interrupted; each event has its effect, once.")
        }
        Choice::TakeOver => {
            format!(
                "{name}: no effect is lost; {second} were made twice, each after an attempt that was killed after its effect."
            )
        }
        Choice::Hold => {
            format!(
                "{name}: no effect happened twice; {held} events waited until somebody had looked."
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ledger of one event that took `attempts`, of which those in `effects` left an effect.
    fn ledger(choice: Choice, attempts: u32, effects: &[u32], retried: usize) -> Ledger {
        let effect = |attempt: &u32| Effect {
            event: "evt".to_string(),
            attempt: *attempt,
            account: String::new(),
            amount: 1,
        };
        let effects: Vec<Effect> = effects.iter().map(effect).collect();
        let receipt = files::receipt("evt", attempts);
        let recorded = HashMap::from([("evt", Recorded { attempts, receipt })]);
        let mut ledger = Ledger::new(choice, 0, Resolved { retried, recorded: 0 });
        let standing = ledger.check_effects(&effects, &recorded);
        ledger.check_events(&HashSet::from(["evt"]), &standing, &recorded);
        ledger.check_promises();
        ledger
    }

    #[test]
    fn an_effect_for_each_event_balances() {
        assert_eq!(ledger(Choice::TakeOver, 1, &[1], 0).off, [""; 0]);
        assert_eq!(ledger(Choice::Hold, 1, &[1], 0).off, [""; 0]);
        assert_eq!(ledger(Choice::Hold, 2, &[2], 1).off, [""; 0]);
    }

    #[test]
    fn a_second_effect_balances_only_under_take_over_and_with_an_attempt_to_explain_it() {
        let explained = ledger(Choice::TakeOver, 3, &[1, 3], 0);
        assert!(explained.balances(), "{:?}", explained.off);
        assert_eq!((explained.second, explained.interrupted()), (1, 2));
        assert!(!ledger(Choice::Hold, 3, &[1, 3], 2).balances());
        assert!(!ledger(Choice::TakeOver, 1, &[1, 1], 0).balances());
        assert!(!ledger(Choice::TakeOver, 1, &[1, 2], 0).balances());
    }

    #[test]
    fn a_lost_effect_never_balances() {
        assert!(!ledger(Choice::TakeOver, 1, &[], 0).balances());
        assert!(!ledger(Choice::Hold, 2, &[], 1).balances());
        // Recorded as the work of the second attempt, of which nothing stands.
        assert!(!ledger(Choice::TakeOver, 2, &[1], 0).balances());
    }

    #[test]
    fn an_attempt_that_nobody_allowed_does_not_balance_under_hold() {
        assert!(!ledger(Choice::Hold, 2, &[2], 0).balances());
    }

    #[test]
    fn every_delivery_is_answered_and_with_the_recorded_receipt() -> Result<()> {
        let mut delivery: Delivery =
            serde_json::from_str(r#"{"event":"evt","type":"t","account":"a","amount":1}"#)?;
        delivery.line = 1;
        let feed = [delivery];
        let recorded =
            HashMap::from([("evt", Recorded { attempts: 1, receipt: "evt/1".to_string() })]);
        let off = |said: Option<(Said, &str)>| {
            let answer = |(said, receipt): (Said, &str)| {
                (1, Answer { line: 1, said, receipt: receipt.to_string() })
            };
            let mut ledger = Ledger::new(Choice::Hold, 0, Resolved::default());
            ledger.check_answers(&feed, &said.map(answer).into_iter().collect(), &recorded);
            ledger.off.len()
        };
        assert_eq!(off(Some((Said::Replayed, "evt/1"))), 0);
        assert_eq!(off(Some((Said::Replayed, "evt/2"))), 1);
        assert_eq!(off(Some((Said::Parked, ""))), 1);
        assert_eq!(off(None), 1);
        Ok(())
    }

    /// The ledger of one event, delivered twice, with its answers.
    fn answered(said: [Said; 2], recorded_by_operator: usize) -> Result<Ledger> {
        let json = r#"{"event":"evt","type":"t","account":"a","amount":1}"#;
        let one: Delivery = serde_json::from_str(json)?;
        let feed = [1, 2].map(|line| {
            let mut delivery = one.clone();
            delivery.line = line;
            delivery
        });
        let receipt = || "evt/1".to_string();
        let recorded = HashMap::from([("evt", Recorded { attempts: 1, receipt: receipt() })]);
        let answer = |(said, line)| (line, Answer { line, said, receipt: receipt() });
        let answers = said.into_iter().zip(1..).map(answer).collect();
        let resolved = Resolved { recorded: recorded_by_operator, retried: 0 };
        let mut ledger = Ledger::new(Choice::Hold, 0, resolved);
        ledger.check_answers(&feed, &answers, &recorded);
        Ok(ledger)
    }

    #[test]
    fn an_event_is_performed_once_or_recorded_before_the_kill_or_by_the_operator() -> Result<()> {
        let told = answered([Said::Performed, Said::Replayed], 0)?;
        assert_eq!((told.performed, told.unanswered, told.balances()), (1, 0, true));
        let untold = answered([Said::Replayed, Said::Replayed], 0)?;
        assert_eq!((untold.performed, untold.unanswered, untold.balances()), (0, 1, true));
        let found = answered([Said::Replayed, Said::Replayed], 1)?;
        assert_eq!((found.performed, found.unanswered, found.balances()), (0, 0, true));
        assert!(!answered([Said::Performed, Said::Performed], 0)?.balances());
        assert!(!answered([Said::Performed, Said::Replayed], 1)?.balances());
        Ok(())
    }
}
