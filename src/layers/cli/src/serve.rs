//! `onlyonce serve`: keeps the store open for the processes that share it, until a signal.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use onlyonce::Store;
use onlyonce::admin::Health;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::args::{Common, Serve};
use crate::child::ignored_signals;
use crate::exit::{self, Failure, Result};
use crate::open::{self, Needs};
use crate::screen::Screen;

/// Printed once the store is open.
#[derive(Serialize)]
struct ServingLine {
    r#type: &'static str,
    /// The process that hosts the store.
    process: u32,
    is_here: bool,
}

/// Another process may end at any time, and this one then takes its place.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) fn serve(common: &Common, serve: &Serve, screen: &Screen) -> Result<u8> {
    // Before the store is opened, so that a signal always closes it.
    let mut signals = signals().map_err(|e| Failure::itself("catching signals", &e))?;
    let store = open::root(common, Needs { create: serve.create, ..Needs::default() })?;
    let Some(hosting) = store.stats().hosting else {
        return Err(not_shared(&store));
    };
    let line =
        ServingLine { r#type: "serving", process: hosting.process, is_here: hosting.is_here };
    if screen.is_json() {
        screen.object(&line)?;
    } else if line.is_here {
        screen.note("hosts the store, until a signal ends it");
    } else {
        screen.note(format!("process {} hosts the store; this one takes its place", line.process));
    }
    while !is_told(&mut signals)? {
        // Asking is what finds that the host has gone.
        let health = store.health();
        let is_here = || store.stats().hosting.is_some_and(|hosting| hosting.is_here);
        match health {
            // Nobody can write until the store is opened anew: by a guest, or by what starts this command again.
            Health::Poisoned { cause } if is_here() => {
                let message = format!("the store takes no writes any more: {cause}");
                return Err(Failure { code: exit::STORE, kind: "poisoned", message });
            }
            Health::Alone { .. } => return Err(not_shared(&store)),
            _ => {}
        }
    }
    store.close(Duration::ZERO)?;
    Ok(0)
}

fn not_shared(store: &Store) -> Failure {
    let why = match store.health() {
        Health::Alone { cause } => cause,
        health => format!("{health:?}"),
    };
    let message = format!("the store can't be shared: {why}");
    Failure { code: exit::STORE, kind: "io", message }
}

/// Readable once a signal that ends this command has come.
fn signals() -> io::Result<UnixStream> {
    let (told, tells) = UnixStream::pair()?;
    told.set_read_timeout(Some(LOOK_EVERY))?;
    let ignored = ignored_signals();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if ignored >> (signal - 1) & 1 == 0 {
            signal_hook::low_level::pipe::register(signal, tells.try_clone()?)?;
        }
    }
    Ok(told)
}

/// Waits for a signal, for as long as a look may take.
fn is_told(signals: &mut UnixStream) -> Result<bool> {
    match signals.read(&mut [0]) {
        Ok(_) => Ok(true),
        Err(e) if is_timeout(&e) => Ok(false),
        Err(e) => Err(Failure::itself("waiting for a signal", &e)),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
