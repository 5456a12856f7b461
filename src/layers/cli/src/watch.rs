//! `onlyonce watch`: prints keys as they change. Each look opens the store and closes it again, so that others get it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use onlyonce::{ErrorKind, Key, State};
use serde::Serialize;

use crate::args::{Common, Watch};
use crate::exit::{self, Result};
use crate::keys;
use crate::open::{self, Needs};
use crate::screen::{BOLD, DIM, Screen, plain};
use crate::shown::{self, KeyLine};

/// Printed for a key that is watched no more: it is absent, or in none of the states that were asked for.
#[derive(Serialize)]
struct GoneLine<'a> {
    r#type: &'static str,
    key: &'a str,
}

/// What is known of each key, by its text: how it was printed last, without what passes by itself.
type Seen = BTreeMap<String, (String, State)>;

pub(crate) fn watch(common: &Common, watch: &Watch, screen: &Screen) -> Result<u8> {
    let patience = watch.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut seen = Seen::new();
    loop {
        let now = match look(common, watch) {
            Ok(now) => Some(now),
            // Another process has the store open: its keys are looked at once it has closed it.
            Err(error) if error.kind == "locked" => None,
            Err(error) => return Err(error),
        };
        if let Some(now) = now {
            tell(common, &seen, &now, screen)?;
            seen = now;
            if let Some(code) = settled(&watch.keys, &seen) {
                return Ok(code);
            }
        }
        if patience.is_some_and(|end| end <= Instant::now()) {
            return Ok(exit::IN_PROGRESS);
        }
        std::thread::sleep(watch.interval);
    }
}

fn look(common: &Common, watch: &Watch) -> Result<Seen> {
    let store = open::open(common, Needs::default())?;
    let mut now = Seen::new();
    let mut add = |state: State| {
        let text = match shown::attempt_of(&state) {
            Some(attempt) => format!(
                "{} {} {:?} {:?} {:?} {}",
                shown::word(&state),
                attempt.token(),
                attempt.reason(),
                attempt.progress().map(|progress| progress.to_vec()),
                attempt.open_steps().collect::<Vec<_>>(),
                attempt.is_being_decided()
            ),
            None => format!("{} {:?}", shown::word(&state), shown::since(&state)),
        };
        now.insert(state.key().to_string(), (text, state));
    };
    for key in &watch.keys {
        store.get(key)?.into_iter().for_each(&mut add);
    }
    if watch.keys.is_empty() {
        for entry in keys::walk(&store, &watch.which) {
            let (_, state) = entry?;
            if keys::is_old_enough(&watch.which, &state) {
                add(state);
            }
        }
    }
    match store.close(Duration::ZERO) {
        Err(e) if e.kind() != ErrorKind::Closed => Err(e.into()),
        _ => Ok(now),
    }
}

fn tell(common: &Common, before: &Seen, now: &Seen, screen: &Screen) -> Result<()> {
    for (key, (text, state)) in now {
        if before.get(key).is_some_and(|(before, _)| before == text) {
            continue;
        }
        match screen.is_json() {
            true => screen.object(&KeyLine::of(&common.namespace, state, false))?,
            false => screen.line(shown::line(&common.namespace, state))?,
        }
    }
    for key in before.keys().filter(|key| !now.contains_key(*key)) {
        match screen.is_json() {
            true => screen.object(&GoneLine { r#type: "gone", key })?,
            false => {
                let key = plain(key);
                screen.line(format!("{DIM}{:<12}{:>8}{DIM:#}  {BOLD}{key}{BOLD:#}", "gone", ""))?;
            }
        }
    }
    Ok(())
}

/// The exit code, once every key that was named waits for nothing any more.
fn settled(keys: &[Key<'static>], seen: &Seen) -> Option<u8> {
    if keys.is_empty() {
        return None;
    }
    let mut code = 0;
    for key in keys {
        let (_, state) = seen.get(&key.to_string())?;
        match state {
            State::Completed(_) | State::Failed(_) | State::Expired(_) => {}
            State::Interrupted(_) | State::Held(_) => code = exit::HELD,
            _ => return None,
        }
    }
    Some(code)
}
