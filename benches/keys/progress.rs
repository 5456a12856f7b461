//! Shows the progress of a long part.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Progress on standard error: one line that is rewritten, or a line every 5 s if it isn't a terminal.
pub struct Progress {
    of: u64,
    what: &'static str,
    began: Instant,
    shown: Instant,
    every: Duration,
    is_watched: bool,
}

impl Progress {
    pub fn new(of: u64, what: &'static str) -> Self {
        let is_watched = std::io::stderr().is_terminal();
        let every = Duration::from_millis(if is_watched { 200 } else { 5000 });
        Progress { of, what, began: Instant::now(), shown: Instant::now(), every, is_watched }
    }

    pub fn show(&mut self, done: u64) {
        if self.shown.elapsed() < self.every {
            return;
        }
        self.shown = Instant::now();
        let rate = done as f64 / self.began.elapsed().as_secs_f64();
        let left = (self.of - done) as f64 / rate;
        let (begin, end) = if self.is_watched { ("\r\x1b[K", "") } else { ("", "\n") };
        let what = self.what;
        let percent = 100 * done / self.of.max(1);
        eprint!("{begin}{percent} %: {done} {what}, {rate:.0} a second, {left:.0} s left{end}");
        let _ = std::io::stderr().flush();
    }

    /// Clears the line before other output.
    pub fn clear(&self) {
        if self.is_watched {
            eprint!("\r\x1b[K");
        }
    }
}
