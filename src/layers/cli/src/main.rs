//! The command line of onlyonce: runs commands once, and looks after a store. `docs/cli.md` describes it.
//!
//! It uses the library as any program does. `run` starts the command through itself ([`launch`]), so that the command
//! dies with it, follows it ([`child`]) and records what it prints ([`recording`]). The other commands print what the
//! library answers, for people or, with `--json`, for programs ([`shown`], `schema.json`).

#![expect(
    clippy::disallowed_methods,
    reason = "a program with files, times and threads of its own, not part of the library"
)]
#![cfg_attr(test, expect(clippy::unwrap_used, reason = "tests"))]

mod args;
mod child;
mod exit;
mod keys;
mod launch;
mod open;
mod recording;
mod run;
mod screen;
mod shown;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use exit::Result;
use screen::Screen;

fn main() -> ExitCode {
    if let Some(code) = launch::launched() {
        return ExitCode::from(code);
    }
    let cli = match Cli::try_parse_from(args::join_ask(std::env::args_os())) {
        Ok(cli) => cli,
        Err(wrong) => {
            // Help and version are no errors, and go to the standard output. If nobody reads either, nothing is lost.
            let _ = wrong.print();
            return ExitCode::from(if wrong.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    let screen = Screen::new(&cli.common);
    let code = carry_out(&cli, &screen).unwrap_or_else(|failure| {
        if !failure.is_reader_gone() {
            screen.failure(&failure);
        }
        failure.code
    });
    ExitCode::from(code)
}

fn carry_out(cli: &Cli, screen: &Screen) -> Result<u8> {
    let common = &cli.common;
    match &cli.command {
        Command::Init => keys::init(common, screen),
        Command::Run(run) => run::run(common, run, screen),
        Command::List(list) => keys::list(common, list, screen),
        Command::Show(show) => keys::show(common, show, screen),
        Command::Resolve(resolve) => keys::resolve(common, resolve, screen),
        Command::Forget(forget) => keys::forget(common, forget, screen),
        Command::Interrupt(interrupt) => keys::interrupt(common, interrupt, screen),
    }
}
