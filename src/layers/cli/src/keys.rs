//! The commands about keys: `list`, `show`, `resolve`, `forget`, `interrupt`; and `init`, before there are any.

use std::io::Read;
use std::time::SystemTime;

use onlyonce::admin::{Cursor, Iter, StateKind};
use onlyonce::{Resolution, State, Store};
use serde::Serialize;

use crate::args::{Common, Finding, Forget, Interrupt, List, Resolve, Show, Which};
use crate::exit::{self, Failure, Result};
use crate::open::{self, Needs};
use crate::recording::{self, Recording};
use crate::screen::{BOLD, Screen};
use crate::shown::{self, KeyLine};

/// Printed for a change of a key.
#[derive(Serialize)]
struct ChangedLine<'a> {
    r#type: &'static str,
    key: &'a str,
    done: bool,
}

/// Printed after a list that was limited.
#[derive(Serialize)]
struct NextLine {
    r#type: &'static str,
    after: Option<String>,
}

#[derive(Serialize)]
struct DoneLine {
    r#type: &'static str,
}

pub(crate) fn init(common: &Common, screen: &Screen) -> Result<u8> {
    let store = open::root(common, Needs { create: true, ..Needs::default() })?;
    drop(store);
    match screen.is_json() {
        true => screen.object(&DoneLine { r#type: "init" })?,
        false => screen.note("the store is ready"),
    }
    Ok(0)
}

pub(crate) fn list(common: &Common, list: &List, screen: &Screen) -> Result<u8> {
    let store = open::open(common, Needs::default())?;
    let mut spaces = vec![(common.namespace.clone(), store.clone())];
    if list.all {
        spaces = spaces_within(common.namespace.clone(), store)?;
    }
    let mut is_damaged = false;
    for (names, space) in &spaces {
        let mut walk = walk(space, &list.which);
        if list.oldest_first {
            walk = walk.oldest_first();
        }
        if let Some(after) = &list.after {
            walk = walk.after(&after.parse::<Cursor>()?);
        }
        let mut left = list.limit.unwrap_or(u64::MAX);
        while left > 0 {
            let Some(entry) = walk.next() else { break };
            match entry {
                Ok((_, state)) if !is_old_enough(&list.which, &state) => continue,
                Ok((_, state)) => print(list, names, &state, screen)?,
                Err(error) => {
                    is_damaged = true;
                    screen.failure(&error.into());
                }
            }
            left -= 1;
        }
        if list.limit.is_some() {
            // A list that isn't full is the last.
            let cursor = walk.cursor().filter(|_| left == 0).map(Cursor::to_string);
            match cursor {
                after if screen.is_json() => screen.object(&NextLine { r#type: "next", after })?,
                Some(after) => screen.note(format!("more keys: --after {}", shown::quoted(&after))),
                None => {}
            }
        }
    }
    Ok(if is_damaged { exit::STORE } else { 0 })
}

fn print(list: &List, names: &[String], state: &State, screen: &Screen) -> Result<()> {
    match (screen.is_json(), list.keys) {
        (true, _) => screen.object(&KeyLine::of(names, state, false)),
        (false, true) => screen.line(state.key()),
        (false, false) => screen.line(shown::line(names, state)),
    }
}

/// This namespace, and all that are within, from the outside in.
pub(crate) fn spaces_within(names: Vec<String>, space: Store) -> Result<Vec<(Vec<String>, Store)>> {
    let mut found = vec![(names, space)];
    let mut next = 0;
    while let Some((names, space)) = found.get(next) {
        let within = space.namespaces()?.into_iter().map(|name| {
            let space = space.namespace(name.as_str());
            ([names.as_slice(), &[name]].concat(), space)
        });
        let within: Vec<_> = within.collect();
        found.extend(within);
        next += 1;
    }
    Ok(found)
}

/// The keys that were asked for, but for their age.
pub(crate) fn walk(store: &Store, which: &Which) -> Iter {
    let mut walk = store.iter();
    if !which.state.is_empty() {
        let kinds: Vec<StateKind> =
            which.state.iter().flat_map(|state| state.kinds()).copied().collect();
        walk = walk.in_states(&kinds);
    }
    match &which.prefix {
        Some(prefix) => walk.prefix(prefix),
        None => walk,
    }
}

pub(crate) fn is_old_enough(which: &Which, state: &State) -> bool {
    let Some(least) = which.older_than else { return true };
    let age = SystemTime::now().duration_since(shown::since(state));
    age.is_ok_and(|age| age >= least)
}

pub(crate) fn show(common: &Common, show: &Show, screen: &Screen) -> Result<u8> {
    let store = open::open(common, Needs::default())?;
    let mut code = 0;
    for key in &show.keys {
        let Some(state) = store.get(key)? else {
            code = exit::NO;
            screen.failure(&no_such_key(key));
            continue;
        };
        if screen.is_json() {
            screen.object(&KeyLine::of(&common.namespace, &state, show.output))?;
        } else if show.output {
            let (State::Completed(done) | State::Failed(done)) = &state else {
                let message = format!("{key} has no outcome: it is {}", shown::word(&state));
                return Err(Failure::no("no_outcome", message));
            };
            recording::replay(&recording::replayed(done))?;
        } else {
            let word = shown::word(&state).replace('_', " ");
            screen.line(format!("{BOLD}{key}{BOLD:#}: {word}{}", shown::page(&state)))?;
            if let Some(next) = shown::next_step(&common.namespace, &state) {
                screen.line(format!("next: {next}"))?;
            }
        }
    }
    Ok(code)
}

fn no_such_key(key: &onlyonce::Key<'_>) -> Failure {
    Failure::no("no_such_key", format!("{key}: no such key: never claimed, forgotten, or expired"))
}

pub(crate) fn resolve(common: &Common, resolve: &Resolve, screen: &Screen) -> Result<u8> {
    let is_retry = resolve.finding == Finding::Retry;
    if is_retry && (resolve.output.is_some() || resolve.exit_code.is_some()) {
        return Err(Failure::usage(
            "a retry records no outcome: --output and --exit-code don't apply",
        ));
    }
    if !is_retry && resolve.reason.is_some() {
        return Err(Failure::usage("an outcome needs no reason: --reason is for retry"));
    }
    let recording = match &resolve.output {
        Some(file) => Recording::of_output(read(file)?),
        None => Recording::default(),
    };
    let store = open::open(common, Needs::default())?;
    let key = &resolve.key;
    let state = store.get(key)?.ok_or_else(|| no_such_key(key))?;
    let Some(attempt) = shown::attempt_of(&state) else {
        let message = format!("{key} is {}: there is nothing to decide", shown::word(&state));
        return Err(Failure::no("nothing_to_decide", message));
    };
    if resolve.token.is_some_and(|token| token != attempt.token().get()) {
        return Err(changed_meanwhile(key));
    }
    let (default, name) = match resolve.finding {
        Finding::Success => (0, "completed"),
        Finding::Failure => (exit::NO, "failed"),
        Finding::Retry => (0, "free for the next attempt"),
    };
    let exit_code = resolve.exit_code.unwrap_or(default);
    if !is_retry && (exit_code == 0) != (resolve.finding == Finding::Success) {
        return Err(Failure::usage("exit code 0 is a success, and every other one a failure"));
    }
    let resolution = match resolve.finding {
        Finding::Retry => Resolution::retry(
            resolve.reason.as_deref().unwrap_or("an operator says that it had no effect"),
        ),
        Finding::Success | Finding::Failure => Resolution::Record(recording.outcome(exit_code)),
    };
    if !store.resolve(attempt, resolution)? {
        return Err(changed_meanwhile(key));
    }
    said(screen, "resolved", key, &format!("{key} is {name}"))?;
    Ok(0)
}

fn changed_meanwhile(key: &onlyonce::Key<'_>) -> Failure {
    let message = format!("{key} has changed meanwhile, and nothing was done: look at it again");
    Failure::no("changed", message)
}

fn said(screen: &Screen, r#type: &'static str, key: &onlyonce::Key<'_>, note: &str) -> Result<()> {
    if screen.is_json() {
        return screen.object(&ChangedLine { r#type, key: &key.to_string(), done: true });
    }
    screen.note(note);
    Ok(())
}

fn read(file: &std::path::Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(file)
    };
    read.map_err(|e| Failure::usage(format!("{}: {e}", file.display())))
}

pub(crate) fn forget(common: &Common, forget: &Forget, screen: &Screen) -> Result<u8> {
    let store = open::open(common, Needs::default())?;
    if forget.all {
        if common.namespace.is_empty() {
            return Err(Failure::usage("--all forgets a namespace: name it by --namespace"));
        }
        let name = common.namespace.join(" / ");
        if !forget.force {
            refuse_undecided(&store, &forget.which)?;
        }
        if forget.dry_run {
            if screen.is_json() {
                screen.object(&ChangedLine { r#type: "forgotten", key: &name, done: false })?;
            }
            screen.note(format!("the namespace {name} would be forgotten"));
            return Ok(0);
        }
        let was_there = store.forget_all()?;
        if screen.is_json() {
            screen.object(&ChangedLine { r#type: "forgotten", key: &name, done: was_there })?;
        }
        return Ok(if was_there { 0 } else { exit::NO });
    }
    let mut forgetting = Forgetting { store: &store, forget, screen, batch: Vec::new(), code: 0 };
    for key in &forget.keys {
        match store.get(key)? {
            Some(state) => forgetting.add(state)?,
            None => forgetting.refuse(&no_such_key(key)),
        }
    }
    if forget.keys.is_empty() {
        for entry in walk(&store, &forget.which) {
            let (_, state) = entry?;
            if is_old_enough(&forget.which, &state) {
                forgetting.add(state)?;
            }
        }
    }
    forgetting.end()
}

fn is_undecided(state: &State) -> bool {
    matches!(state, State::Interrupted(_) | State::Held(_))
}

fn refuse_undecided(store: &Store, which: &Which) -> Result<()> {
    let stuck = [StateKind::Interrupted, StateKind::Held];
    match walk(store, which).in_states(&stuck).next().transpose()? {
        Some((key, _)) => Err(undecided(&key)),
        None => Ok(()),
    }
}

fn undecided(key: &onlyonce::Key<'_>) -> Failure {
    let message = format!(
        "{key}: nobody has decided about its attempt, which may have had its effect: forgotten, the work would be done \
         again; `onlyonce resolve` first, or --force"
    );
    Failure { code: exit::HELD, kind: "undecided", message }
}

/// So many keys share a sync.
const BATCH: usize = 1000;

/// Forgets keys as they were seen, many at a time.
struct Forgetting<'f> {
    store: &'f Store,
    forget: &'f Forget,
    screen: &'f Screen,
    batch: Vec<State>,
    /// The greatest of what was refused.
    code: u8,
}

impl Forgetting<'_> {
    fn refuse(&mut self, failure: &Failure) {
        self.code = self.code.max(failure.code);
        self.screen.failure(failure);
    }

    fn add(&mut self, state: State) -> Result<()> {
        if is_undecided(&state) && !self.forget.force {
            self.refuse(&undecided(state.key()));
            return Ok(());
        }
        self.batch.push(state);
        if self.batch.len() < BATCH { Ok(()) } else { self.carry_out() }
    }

    fn carry_out(&mut self) -> Result<()> {
        let states = std::mem::take(&mut self.batch);
        if self.forget.dry_run {
            return states.iter().try_for_each(|state| self.say(state, false));
        }
        let forgotten = self.store.forget_many(&states)?;
        for (state, forgotten) in states.iter().zip(forgotten) {
            match forgotten {
                Ok(true) => self.say(state, true)?,
                Ok(false) => self.refuse(&changed_meanwhile(state.key())),
                Err(error) => self.refuse(&error.into()),
            }
        }
        Ok(())
    }

    fn say(&self, state: &State, done: bool) -> Result<()> {
        let key = state.key();
        match (self.screen.is_json(), done) {
            (true, _) => {
                let key = key.to_string();
                self.screen.object(&ChangedLine { r#type: "forgotten", key: &key, done })
            }
            (false, false) => self.screen.line(key),
            (false, true) => Ok(()),
        }
    }

    fn end(mut self) -> Result<u8> {
        self.carry_out()?;
        Ok(self.code)
    }
}

pub(crate) fn interrupt(common: &Common, interrupt: &Interrupt, screen: &Screen) -> Result<u8> {
    let store = open::open(common, Needs::default())?;
    let key = &interrupt.key;
    let state = store.get(key)?.ok_or_else(|| no_such_key(key))?;
    let State::InProgress(attempt) = &state else {
        let message = format!("{key} is {}, not claimed", shown::word(&state));
        return Err(Failure::no("not_claimed", message));
    };
    if interrupt.token.is_some_and(|token| token != attempt.token().get()) {
        return Err(changed_meanwhile(key));
    }
    if !store.interrupt(attempt, interrupt.reason.as_str())? {
        return Err(changed_meanwhile(key));
    }
    said(
        screen,
        "interrupted",
        key,
        &format!("{key} is interrupted, and its owner's claim is lost"),
    )?;
    Ok(0)
}
