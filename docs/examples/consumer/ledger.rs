//! Counts afterwards, from the files alone, and says whether every message was handled as promised.
//!
//! It believes nobody: the queue says what had to be done, the ledger what was, the consumer's notes what the store
//! acknowledged, the store what is recorded. All four must agree.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use onlyonce::admin::StateKind;
use onlyonce::{Outcome, Resolution, State, Store};

use crate::Result;
use crate::options::Choice;
use crate::queue::{self, Queue};

/// A line of the ledger: the effect of a message, and which attempt at it wrote the line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Effect {
    pub(crate) message: String,
    pub(crate) token: u64,
    pub(crate) attempt: u32,
    /// The interrupted attempt that the store told of before this one began; 0: none.
    pub(crate) after: u32,
    /// In which life of the consumer.
    pub(crate) life: u64,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Effect { message, token, attempt, after, life } = self;
        write!(f, "{message} {token} {attempt} {after} {life}")
    }
}

impl Effect {
    fn parse(line: &str) -> Option<Effect> {
        let words: Vec<&str> = line.split(' ').collect();
        let [message, token, attempt, after, life] = words[..] else { return None };
        let message = message.to_owned();
        let (token, attempt) = (token.parse().ok()?, attempt.parse().ok()?);
        Some(Effect {
            message,
            token,
            attempt,
            after: after.parse().ok()?,
            life: life.parse().ok()?,
        })
    }
}

fn effects(queue: &Queue) -> Result<Vec<Effect>> {
    let lines = queue::read(&queue.dir, "ledger")?;
    let parse = |line: &String| Effect::parse(line).ok_or(format!("no effect: {line:?}").into());
    lines.iter().map(parse).collect()
}

/// How the operator decided.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Resolved {
    /// The effect stood in the ledger.
    pub(crate) recorded: usize,
    /// It didn't: the message was sent again.
    pub(crate) retried: usize,
}

/// The operator: looks into the ledger for each message whose fate is unknown, says what it saw, and sends again what had no
/// effect.
pub(crate) fn resolve_held(queue: &Queue) -> Result<Resolved> {
    let effects = effects(queue)?;
    let done: BTreeSet<&str> = effects.iter().map(|effect| effect.message.as_str()).collect();
    let store = Store::open(queue.keys())?;
    let (mut resolved, mut again) = (Resolved::default(), Vec::new());
    let open: Vec<_> = store.iter().in_states(&[StateKind::Interrupted, StateKind::Held]).collect();
    for entry in open {
        let (State::Held(lost) | State::Interrupted(lost)) = entry?.1 else { continue };
        let message = lost.key().to_string().trim_matches('"').to_owned();
        let resolution = if done.contains(message.as_str()) {
            resolved.recorded += 1;
            Resolution::Record(Outcome::success("found in the ledger"))
        } else {
            resolved.retried += 1;
            again.push(message.clone());
            Resolution::retry("it is not in the ledger")
        };
        // It names the attempt that was looked into: had another one begun meanwhile, nothing would change.
        if !store.resolve(&lost, resolution)? {
            return Err(format!("{message} changed while it was looked into").into());
        }
    }
    store.close(Duration::from_secs(10))?;
    queue.send(&again)?;
    Ok(resolved)
}

/// What the files say.
pub(crate) struct Account {
    choice: Choice,
    kills: u64,
    messages: usize,
    deliveries: usize,
    effects: usize,
    /// Effects of attempts that followed an interrupted one, as the store had said.
    announced: usize,
    /// Of these, the ones that their message had before.
    repeated: usize,
    resolved: Resolved,
    acknowledged: usize,
    /// What is not as promised.
    pub(crate) off: Vec<String>,
}

impl Account {
    pub(crate) fn count(
        queue: &Queue,
        choice: Choice,
        kills: u64,
        resolved: Resolved,
    ) -> Result<Account> {
        let deliveries = queue.messages()?;
        let messages: BTreeSet<&str> = deliveries.iter().map(String::as_str).collect();
        let effects = effects(queue)?;
        let mut account = Account {
            choice,
            kills,
            messages: messages.len(),
            deliveries: deliveries.len(),
            effects: effects.len(),
            announced: effects.iter().filter(|effect| effect.after > 0).count(),
            repeated: 0,
            resolved,
            acknowledged: 0,
            off: Vec::new(),
        };
        let recorded = account.read_store(queue, &messages)?;
        account.check_effects(&messages, &effects);
        account.check_tokens(&effects);
        account.check_acknowledged(&queue::read(&queue.dir, "acknowledged")?, &recorded);
        Ok(account)
    }

    pub(crate) fn balances(&self) -> bool {
        self.off.is_empty()
    }

    /// In the end every message is completed. Returns under which token.
    fn read_store<'m>(
        &mut self,
        queue: &Queue,
        messages: &BTreeSet<&'m str>,
    ) -> Result<HashMap<&'m str, u64>> {
        let store = Store::open(queue.keys())?;
        let mut recorded = HashMap::new();
        for message in messages {
            match store.get(*message)? {
                Some(State::Completed(done)) => {
                    recorded.insert(*message, done.token().get());
                }
                Some(other) => self.off.push(format!("{message} was not completed: {other}")),
                None => self.off.push(format!("{message} was lost: the store never saw it")),
            }
        }
        store.close(Duration::from_secs(10))?;
        Ok(recorded)
    }

    /// Each message has its effect, and a further one only after an attempt of which the store had told.
    fn check_effects(&mut self, messages: &BTreeSet<&str>, effects: &[Effect]) {
        let mut of: BTreeMap<&str, Vec<&Effect>> = BTreeMap::new();
        for effect in effects {
            of.entry(effect.message.as_str()).or_default().push(effect);
        }
        for message in messages {
            let Some((_first, further)) = of.get(message).and_then(|all| all.split_first()) else {
                self.off.push(format!("{message} was never handled"));
                continue;
            };
            self.repeated += further.len();
            match self.choice {
                Choice::Hold if !further.is_empty() => {
                    self.off.push(format!("{message} was handled twice"));
                }
                Choice::TakeOver if further.iter().any(|effect| effect.after == 0) => {
                    self.off.push(format!("{message} was handled again, and nobody knew"));
                }
                Choice::Hold | Choice::TakeOver => {}
            }
        }
        for message in of.keys().filter(|message| !messages.contains(*message)) {
            self.off.push(format!("{message} was handled, and nobody sent it"));
        }
    }

    /// Tokens grow with each attempt at a message, and from life to life.
    fn check_tokens(&mut self, effects: &[Effect]) {
        let mut last: HashMap<&str, &Effect> = HashMap::new();
        let mut lives: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for effect in effects {
            let Effect { message, token, attempt, life, .. } = effect;
            if let Some(before) = last.insert(message, effect) {
                if before.token >= *token || before.attempt >= *attempt {
                    self.off.push(format!("{message}: attempt {attempt} has no greater token"));
                }
            }
            let (least, most) = lives.entry(*life).or_insert((*token, *token));
            (*least, *most) = ((*least).min(*token), (*most).max(*token));
        }
        let distinct: BTreeSet<u64> = effects.iter().map(|effect| effect.token).collect();
        if distinct.len() < effects.len() {
            self.off.push("one token has two effects".to_owned());
        }
        for ((_, before), (life, after)) in lives.iter().zip(lives.iter().skip(1)) {
            if before.1 >= after.0 {
                self.off.push(format!("life {life} has a token of the one before"));
            }
        }
    }

    /// What the store acknowledged stands in it, as it was acknowledged.
    fn check_acknowledged(&mut self, acknowledged: &[String], recorded: &HashMap<&str, u64>) {
        self.acknowledged = acknowledged.len();
        for line in acknowledged {
            let (message, token) = line.split_once(' ').unwrap_or_default();
            if recorded.get(message).map(u64::to_string).as_deref() != Some(token) {
                self.off.push(format!("{message} was acknowledged under token {token}, and lost"));
            }
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}:", self.choice.slug())?;
        writeln!(f, "  {:>6} lives, {} of them killed", self.kills + 1, self.kills)?;
        writeln!(f, "  {:>6} messages, sent {} times", self.messages, self.deliveries)?;
        writeln!(f, "  {:>6} effects", self.effects)?;
        writeln!(
            f,
            "  {:>6} of them after an attempt that the store said was interrupted; {} had happened before",
            self.announced, self.repeated
        )?;
        let Resolved { recorded, retried } = self.resolved;
        writeln!(
            f,
            "  {:>6} messages held: the operator found {recorded} in the ledger, and had {retried} handled again",
            recorded + retried
        )?;
        writeln!(f, "  {:>6} completions acknowledged", self.acknowledged)?;
        for off in self.off.iter().take(10) {
            writeln!(f, "  WRONG: {off}")?;
        }
        match self.off.len() {
            0 => f.write_str("  the ledger balances"),
            off => write!(f, "  the ledger is off by {off}"),
        }
    }
}
