//! The command line of onlyonce: runs commands once, and looks after a store. `docs/cli.md` describes it.
//!
//! It uses the library as any program does. `run` starts the command through itself ([`launch`]), so that the command
//! dies with it, follows it ([`child`]) and records what it prints ([`recording`]). The other commands print what the
//! library answers, for people or, with `--json`, for programs ([`shown`], `schema.json`): [`keys`] and [`watch`] about
//! keys, [`upkeep`] and [`doctor`] about the whole store, [`serve`] keeps it open for others, [`moved`] to and from another one.

#![expect(
    clippy::disallowed_methods,
    reason = "a program with files, times and threads of its own, not part of the library"
)]
#![cfg_attr(test, expect(clippy::unwrap_used, reason = "tests"))]

mod args;
mod child;
mod doctor;
mod exit;
mod keys;
mod launch;
mod moved;
mod open;
mod recording;
mod run;
mod screen;
mod serve;
mod shown;
mod upkeep;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command, Man};
use exit::{Failure, Result};
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
        Command::Watch(watch) => watch::watch(common, watch, screen),
        Command::Doctor(doctor) => doctor::doctor(common, doctor, screen),
        Command::Stats(of) => upkeep::stats(common, of, screen),
        Command::Verify => upkeep::verify(common, screen),
        Command::Compact(compact) => upkeep::compact(common, compact, screen),
        Command::Backup(backup) => upkeep::backup(common, backup, screen),
        Command::Repair(repair) => upkeep::repair(common, repair, screen),
        Command::RebuildIndex => upkeep::rebuild_index(common, screen),
        Command::Serve(serve) => serve::serve(common, serve, screen),
        Command::Export(export) => moved::export(common, export, screen),
        Command::Import(import) => moved::import(common, import, screen),
        Command::Completions(completions) => {
            let mut text = Vec::new();
            clap_complete::generate(completions.shell, &mut Cli::command(), "onlyonce", &mut text);
            written(&text)
        }
        Command::Man(man) => manual(man),
    }
}

fn manual(man: &Man) -> Result<u8> {
    if let Some(dir) = &man.dir {
        let made = std::fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
        return made
            .map(|()| 0)
            .map_err(|e| Failure::usage(format!("writing the pages to {}: {e}", dir.display())));
    }
    let mut command = Cli::command();
    command.build();
    let page = match &man.page {
        Some(name) => command.find_subcommand(name).cloned(),
        None => Some(command),
    };
    let page = page.ok_or_else(|| Failure::usage("there is no such command"))?;
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    written(&text)
}

fn written(text: &[u8]) -> Result<u8> {
    std::io::stdout().lock().write_all(text)?;
    Ok(0)
}
