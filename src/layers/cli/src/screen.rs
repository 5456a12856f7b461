//! Printing: results to the standard output, notes to the standard error, JSON if asked for, colours where they are wanted.

use std::fmt::Display;
use std::io::Write;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::args::{Common, When};
use crate::exit::{Failure, Result};

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default();

/// How this process prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    is_json: bool,
    is_quiet: bool,
}

#[derive(Serialize)]
struct ErrorLine<'a> {
    r#type: &'static str,
    kind: &'a str,
    message: &'a str,
    exit_code: u8,
}

impl Screen {
    pub(crate) fn new(common: &Common) -> Self {
        let choice = match common.color {
            When::Auto => anstream::ColorChoice::Auto,
            When::Always => anstream::ColorChoice::AlwaysAnsi,
            When::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
        Screen { is_json: common.json, is_quiet: common.quiet }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.is_json
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Prints an object for programs, as a line of its own, at once.
    pub(crate) fn object(&self, object: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(object)
            .map_err(|e| Failure::itself("writing JSON", &std::io::Error::other(e)))?;
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        out.write_all(&line)?;
        Ok(out.flush()?)
    }

    /// Prints a line for people.
    pub(crate) fn line(&self, line: impl Display) -> Result<()> {
        Ok(writeln!(anstream::stdout().lock(), "{line}")?)
    }

    /// Prints what is good to know and no result. Objects say it by themselves.
    pub(crate) fn note(&self, note: impl Display) {
        if !self.is_quiet && !self.is_json {
            // There is nobody to tell if that fails.
            let _ = writeln!(anstream::stderr().lock(), "onlyonce: {}", plain(&note.to_string()));
        }
    }

    /// Prints why the command wasn't carried out. `--quiet` silences what is to be expected, and no error.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.is_json {
            let Failure { code, kind, message } = failure;
            let _ = self.object(&ErrorLine { r#type: "error", kind, message, exit_code: *code });
        } else {
            let mut err = anstream::stderr().lock();
            let _ = writeln!(err, "{BAD}onlyonce:{BAD:#} {}", plain(&failure.message));
        }
    }
}

/// Text that somebody else wrote, for a terminal: with its control characters escaped.
pub(crate) fn plain(text: &str) -> String {
    let escape = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Progress of long work: a bar on the terminal, and nothing where there is none.
pub(crate) struct Bar(indicatif::ProgressBar);

impl Bar {
    /// For work whose length in bytes is known.
    pub(crate) fn of_bytes(screen: &Screen, what: &'static str, bytes: u64) -> Self {
        let style = "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes} {eta:>4}";
        Bar::of(screen, what, indicatif::ProgressBar::new(bytes), style)
    }

    /// For work of a known number of parts.
    pub(crate) fn of_parts(screen: &Screen, what: &'static str) -> Self {
        Bar::of(
            screen,
            what,
            indicatif::ProgressBar::no_length(),
            "{spinner} {msg} {human_pos} {elapsed:>4}",
        )
    }

    /// For work of which only the end is known.
    pub(crate) fn of_work(screen: &Screen, what: &'static str) -> Self {
        let bar = Bar::of(
            screen,
            what,
            indicatif::ProgressBar::no_length(),
            "{spinner} {msg} {elapsed:>4}",
        );
        bar.0.enable_steady_tick(std::time::Duration::from_millis(100));
        bar
    }

    fn of(screen: &Screen, what: &'static str, bar: indicatif::ProgressBar, style: &str) -> Self {
        if screen.is_quiet || screen.is_json {
            return Bar(indicatif::ProgressBar::hidden());
        }
        if let Ok(style) = indicatif::ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar.tick();
        Bar(bar)
    }

    pub(crate) fn at(&self, position: u64) {
        self.0.set_position(position);
    }

    pub(crate) fn end(self) {
        self.0.finish_and_clear();
    }
}
