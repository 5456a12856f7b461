//! The feed: who sends what, how often, and in which order it arrives.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use onlyonce::{Fingerprint, Operation};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::random::Random;
use crate::screen::thousands;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// One delivery, as it stands in the file. Its events repeat; its line number doesn't.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(crate) struct Delivery {
    /// Counted from 1.
    #[serde(skip)]
    pub(crate) line: usize,
    pub(crate) event: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) account: String,
    pub(crate) amount: u64,
    /// Which sending of the event this is, by the sender's count.
    #[serde(default)]
    sending: u32,
    /// When it was sent, in milliseconds since 1970.
    #[serde(default)]
    sent: u64,
}

/// The key names the event, not the delivery. Its two parts never run together, whatever the sender
/// calls his events, so no other use of the store can meet it.
pub(crate) fn key(event: &str) -> (&'static str, &str) {
    ("webhook", event)
}

impl Delivery {
    /// The fingerprint tells a repeat from another event that came under the same name by mistake.
    pub(crate) fn operation(&self) -> Operation<'_> {
        let amount = self.amount.to_le_bytes();
        let content = [self.kind.as_bytes(), self.account.as_bytes(), &amount];
        Operation::new(key(&self.event)).fingerprint(Fingerprint::of_parts(content))
    }
}

/// Makes up `count` deliveries and writes them to `path`.
pub(crate) fn write(seed: u64, count: usize, path: &Path) -> Result<PathBuf> {
    let mut out = BufWriter::new(File::create(path)?);
    for delivery in make(seed, count) {
        serde_json::to_writer(&mut out, &delivery)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(path.to_path_buf())
}

/// Reads a whole feed. A line that is no delivery is an error: a feed isn't guessed at.
pub(crate) fn read(path: &Path) -> Result<Vec<Delivery>> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            let line_number = index + 1;
            let delivery: Delivery = serde_json::from_str(line)
                .map_err(|e| format!("{}, line {line_number}: {e}", path.display()))?;
            Ok(Delivery { line: line_number, ..delivery })
        })
        .collect()
}

/// What kind of repeats the feed holds, in a sentence.
pub(crate) fn describe(feed: &[Delivery]) -> String {
    let mut seen: HashMap<&str, &Delivery> = HashMap::new();
    let (mut soon, mut late, mut older, mut latest) = (0, 0, 0, 0);
    for delivery in feed {
        let Some(newest) = seen.insert(&delivery.event, delivery) else { continue };
        let gap = delivery.sent.saturating_sub(newest.sent);
        latest = latest.max(gap);
        match (delivery.sending < newest.sending, gap < MINUTE / 2) {
            (true, _) => older += 1,
            (false, true) => soon += 1,
            (false, false) => late += 1,
        }
    }
    format!(
        "{} deliveries of {} events: {} repeated at once, {} late (up to {} min), {} out of order",
        thousands(feed.len()),
        thousands(seen.len()),
        thousands(soon),
        thousands(late),
        latest / MINUTE,
        thousands(older),
    )
}

/// The deliveries in the order in which they arrive.
fn make(seed: u64, count: usize) -> Vec<Delivery> {
    let mut random = Random::new(seed);
    let mut sent: Vec<Delivery> = Vec::with_capacity(count + 8);
    let mut number = 0;
    while sent.len() < count {
        sendings(&mut random, number, &mut sent);
        number += 1;
    }
    resend_some(&mut random, &mut sent);

    let mut arrivals: Vec<(u64, Delivery)> =
        sent.into_iter().map(|delivery| (delivery.sent + delay(&mut random), delivery)).collect();
    arrivals.sort_by_key(|(arrival, _)| *arrival);
    arrivals.into_iter().take(count).map(|(_, delivery)| delivery).collect()
}

/// Everything that the sender sends of one event: mostly once; sometimes twice in one breath; and where no
/// answer came, again after a while, each time after a longer one.
fn sendings(random: &mut Random, number: u64, out: &mut Vec<Delivery>) {
    const MIDNIGHT: u64 = 1_767_225_600_000;
    const WAITS: [u64; 5] = [5 * SECOND, MINUTE, 10 * MINUTE, HOUR, 3 * HOUR];
    const KINDS: [&str; 4] = ["invoice.paid", "order.created", "order.shipped", "refund.issued"];

    let first = Delivery {
        line: 0,
        // An odd factor shuffles the numbers and keeps them distinct.
        event: format!("evt_{:08x}", (number as u32).wrapping_mul(0x9e37_79b1)),
        kind: random.pick(&KINDS).map_or("", |kind| kind).to_string(),
        account: format!("acct_{:03}", random.below(400)),
        amount: 100 + random.below(90_000),
        sending: 1,
        sent: MIDNIGHT + number * 4 * SECOND + random.below(8 * SECOND),
    };
    let mut last = first.clone();
    if random.percent(6) {
        out.push(Delivery { sent: first.sent + random.below(30), ..first.clone() });
    }
    out.push(first);
    for wait in WAITS {
        if !random.percent(if last.sending == 1 { 22 } else { 45 }) {
            break;
        }
        let sent = last.sent + wait + random.below(wait / 2);
        last = Delivery { sending: last.sending + 1, sent, ..last };
        out.push(last.clone());
    }
}

/// Somebody at the sender's presses "send again" for a day's worth: some events once more, in any order.
fn resend_some(random: &mut Random, sent: &mut [Delivery]) {
    let Some(end) = sent.iter().map(|delivery| delivery.sent).max() else { return };
    let mut again: Vec<usize> = (0..sent.len()).filter(|_| random.percent(4)).collect();
    random.shuffle(&mut again);
    // They take the places of the newest deliveries, so that the feed keeps its length.
    let newest = sent.len().saturating_sub(again.len());
    for (place, from) in (newest..).zip(again) {
        let Some(copy) = sent.get(from).cloned() else { continue };
        if let Some(spot) = sent.get_mut(place) {
            *spot = Delivery { sending: copy.sending + 1, sent: end + place as u64, ..copy };
        }
    }
}

/// How long a delivery is on its way: mostly a fraction of a second, sometimes stuck in a queue between.
fn delay(random: &mut Random) -> u64 {
    match random.below(100) {
        0..2 => random.below(20 * MINUTE),
        2..10 => random.below(15 * SECOND),
        _ => 20 + random.below(200),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_feed_and_another_one_another() {
        let text = |seed| format!("{:?}", make(seed, 500));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }

    #[test]
    fn a_feed_has_the_length_asked_for_and_all_kinds_of_repeats() {
        let feed = make(1, 10_000);
        let text = describe(&feed);
        assert!(text.starts_with("10,000 deliveries of "), "{text}");
        assert!(!text.contains(" 0 "), "{text}");
    }

    #[test]
    fn a_repeat_has_its_event_s_key() {
        let feed = make(1, 2_000);
        let mut content: HashMap<&str, &Delivery> = HashMap::new();
        for delivery in &feed {
            let first = content.entry(&delivery.event).or_insert(delivery);
            assert_eq!((first.amount, &first.kind), (delivery.amount, &delivery.kind));
        }
        assert!(content.len() < feed.len());
    }
}
