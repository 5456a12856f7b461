//! What is seen while the work goes on: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::Duration;

use crate::options::Choice;

/// Between two looks at work that isn't to be killed.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// Lines that a run prints where there is no terminal.
const LINES: usize = 5;
const BAR: usize = 30;

pub(crate) struct Screen {
    name: &'static str,
    deliveries: usize,
    kills: usize,
    terminal: bool,
    /// Tenths, fifths, … of the work that have been printed.
    printed: usize,
}

impl Screen {
    pub(crate) fn new(choice: Choice, deliveries: usize, kills: usize) -> Screen {
        let terminal = stderr().is_terminal();
        Screen { name: choice.slug(), deliveries, kills, terminal, printed: 0 }
    }

    pub(crate) fn show(&mut self, answered: usize, kills: usize) {
        let part = share(answered, self.deliveries, LINES);
        if self.terminal {
            let full = share(answered, self.deliveries, BAR);
            let (full, empty) = ("█".repeat(full), "·".repeat(BAR - full));
            self.print(format_args!("\r\x1b[K{full}{empty}  {}", self.text(answered, kills)));
        } else if part > self.printed {
            self.printed = part;
            self.print(format_args!("{}\n", self.text(answered, kills)));
        }
    }

    /// The last word: the bar makes room for a plain line.
    pub(crate) fn done(&mut self, answered: usize, kills: usize) {
        self.show(answered, kills);
        if self.terminal {
            self.print(format_args!("\r\x1b[K{}\n", self.text(answered, kills)));
        }
    }

    fn text(&self, answered: usize, kills: usize) -> String {
        // A line that a kill has torn was counted, and its delivery is answered again.
        let answered = answered.min(self.deliveries);
        let (now, all) = (thousands(answered), thousands(self.deliveries));
        let killed = match self.kills {
            0 => String::new(),
            wanted => format!(", killed {kills} of {wanted} times"),
        };
        format!("{:9}  {now} of {all} deliveries answered{killed}", self.name)
    }

    /// A terminal that is gone is no reason to stop the work.
    fn print(&self, text: std::fmt::Arguments<'_>) {
        let mut err = stderr().lock();
        let _ = err.write_fmt(text).and_then(|()| err.flush());
    }
}

/// `part` of `whole`, in `steps`; never more than `steps`.
fn share(part: usize, whole: usize, steps: usize) -> usize {
    (part * steps).checked_div(whole).unwrap_or(steps).min(steps)
}

/// 12345 as 12,345.
pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        let texts: Vec<String> = [0, 999, 1_000, 12_345, 1_234_567].map(thousands).to_vec();
        assert_eq!(texts, ["0", "999", "1,000", "12,345", "1,234,567"]);
    }

    #[test]
    fn a_share_stays_within_its_steps() {
        assert_eq!(
            [share(0, 10, 5), share(9, 10, 5), share(11, 10, 5), share(0, 0, 5)],
            [0, 4, 5, 5]
        );
    }
}
