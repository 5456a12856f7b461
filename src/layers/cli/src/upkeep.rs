//! The commands about the whole store: `stats`, `verify`, `compact`, `backup`, `repair`, `rebuild-index`.

use std::ops::ControlFlow;
use std::time::Duration;

use onlyonce::admin::{AcceptLoss, Estimate, Health, Stats, repair as repair_store};
use serde::Serialize;

use crate::args::{Backup, Common, Compact, Repair, StatsOf};
use crate::exit::{self, Result};
use crate::open::{self, Needs};
use crate::screen::{BAD, Bar, DIM, GOOD, Screen, plain};
use crate::shown::time;

/// A look at the whole store, as it is printed for programs.
#[derive(Serialize)]
pub(crate) struct StatsLine {
    r#type: &'static str,
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_cause: Option<String>,
    keys: u64,
    in_flight: u64,
    interrupted: u64,
    held: u64,
    detached: u64,
    delayed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_claim: Option<String>,
    segments: u64,
    log_bytes: u64,
    log_bytes_since_checkpoint: u64,
    index_bytes: u64,
    tables: u64,
    tables_mended: u64,
    keys_in_memory: u64,
    expired_keys: u64,
    expired_files: u64,
    disk_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    background_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hosting: Option<HostingShown>,
    opening: OpeningShown,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<EstimateShown>,
}

#[derive(Serialize)]
struct OpeningShown {
    was_clean: bool,
    records_read: u64,
    records_resynced: u64,
    cut_bytes: u64,
}

/// The process that hosts the store.
#[derive(Serialize)]
struct HostingShown {
    process: u32,
    is_here: bool,
    guests: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    silent_since: Option<String>,
}

#[derive(Serialize)]
struct EstimateShown {
    live_bytes: u64,
    dead_bytes: u64,
    open: u64,
    held: u64,
    aborted: u64,
    completed: u64,
    failed: u64,
}

impl EstimateShown {
    fn of(estimate: Estimate) -> Self {
        let Estimate { live_bytes, dead_bytes, open, held, aborted, completed, failed, .. } =
            estimate;
        EstimateShown { live_bytes, dead_bytes, open, held, aborted, completed, failed }
    }
}

impl StatsLine {
    pub(crate) fn of(stats: &Stats, health: &Health, estimate: Option<Estimate>) -> Self {
        let (health, health_cause) = health_words(health);
        StatsLine {
            r#type: "stats",
            health,
            health_cause,
            keys: stats.keys,
            in_flight: stats.in_flight,
            interrupted: stats.interrupted,
            held: stats.held,
            detached: stats.detached,
            delayed: stats.delayed,
            oldest_claim: stats.oldest_claim.map(time),
            segments: stats.segments,
            log_bytes: stats.log_bytes,
            log_bytes_since_checkpoint: stats.log_bytes_since_checkpoint,
            index_bytes: stats.index_bytes,
            tables: stats.tables,
            tables_mended: stats.tables_mended,
            keys_in_memory: stats.keys_in_memory,
            expired_keys: stats.expired_keys,
            expired_files: stats.expired_files,
            disk_bytes: stats.disk_bytes,
            disk_bytes_max: Some(stats.disk_bytes_max).filter(|max| *max != u64::MAX),
            background_error: stats.background_error.clone(),
            hosting: stats.hosting.as_ref().map(|hosting| HostingShown {
                process: hosting.process,
                is_here: hosting.is_here,
                guests: hosting.guests,
                silent_since: hosting.silent_since.map(time),
            }),
            opening: OpeningShown {
                was_clean: stats.opening.was_clean,
                records_read: stats.opening.records_read,
                records_resynced: stats.opening.records_resynced,
                cut_bytes: stats.opening.cut.as_ref().map_or(0, |cut| cut.bytes()),
            },
            estimate: estimate.map(EstimateShown::of),
        }
    }
}

/// The health as a word for programs, and its cause.
pub(crate) fn health_words(health: &Health) -> (&'static str, Option<String>) {
    match health {
        Health::Writable => ("writable", None),
        Health::Alone { cause } => ("alone", Some(cause.clone())),
        Health::Silent { process, .. } => {
            ("silent", Some(format!("process {process} hosts the store and does not answer")))
        }
        Health::WaitsForSpace => ("waits_for_space", None),
        Health::Full { cause, .. } => ("full", Some(cause.clone())),
        Health::Poisoned { cause } => ("poisoned", Some(cause.clone())),
        Health::Refused { cause } => ("refused", Some(cause.clone())),
        Health::Closed => ("closed", None),
        Health::Forked => ("forked", None),
        other => ("other", Some(format!("{other:?}"))),
    }
}

pub(crate) fn stats(common: &Common, of: &StatsOf, screen: &Screen) -> Result<u8> {
    let store = open::root(common, Needs::default())?;
    let stats = store.stats();
    let estimate = if of.estimate { Some(store.estimate()?) } else { None };
    if screen.is_json() {
        screen.object(&StatsLine::of(&stats, &store.health(), estimate))?;
        return Ok(0);
    }
    let row = |name: &str, value: String| screen.line(format!("{DIM}{name:<20}{DIM:#}{value}"));
    row("health", health_words(&store.health()).0.replace('_', " "))?;
    if let Some(hosting) = stats.hosting.as_ref().filter(|hosting| !hosting.is_here) {
        row("hosted by", format!("process {}, with {} guests", hosting.process, hosting.guests))?;
    }
    row("keys", stats.keys.to_string())?;
    row("in flight", stats.in_flight.to_string())?;
    row("interrupted", stats.interrupted.to_string())?;
    row("held", stats.held.to_string())?;
    row("detached", stats.detached.to_string())?;
    row("delayed", stats.delayed.to_string())?;
    row("disk", bytes(stats.disk_bytes))?;
    row("log", format!("{} in {} segments", bytes(stats.log_bytes), stats.segments))?;
    row("since checkpoint", bytes(stats.log_bytes_since_checkpoint))?;
    row("index", format!("{} in {} tables", bytes(stats.index_bytes), stats.tables))?;
    row("expired keys", stats.expired_keys.to_string())?;
    if let Some(estimate) = estimate {
        row("live bytes", format!("about {}", bytes(estimate.live_bytes)))?;
        row("dead bytes", format!("about {}", bytes(estimate.dead_bytes)))?;
        row("completed", format!("about {}", estimate.completed))?;
        row("failed", format!("about {}", estimate.failed))?;
        row("aborted", format!("about {}", estimate.aborted))?;
    }
    Ok(0)
}

/// A number of bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[derive(Serialize)]
struct VerifiedLine {
    r#type: &'static str,
    whole: bool,
    records: u64,
    bytes: u64,
    damages: Vec<String>,
    unread: Vec<String>,
}

pub(crate) fn verify(common: &Common, screen: &Screen) -> Result<u8> {
    let store = open::root(common, Needs::default())?;
    let stats = store.stats();
    let bar = Bar::of_bytes(screen, "verifying", stats.log_bytes + stats.index_bytes);
    let found = store.verify_with(|found| {
        bar.at(found.bytes);
        ControlFlow::Continue(())
    })?;
    bar.end();
    let texts = |errors: &[onlyonce::Error]| errors.iter().map(ToString::to_string).collect();
    let line = VerifiedLine {
        r#type: "verified",
        whole: found.is_whole() && found.unread.is_empty(),
        records: found.records,
        bytes: found.bytes,
        damages: texts(&found.damages),
        unread: texts(&found.unread),
    };
    let code = if line.whole { 0 } else { exit::STORE };
    if screen.is_json() {
        screen.object(&line)?;
        return Ok(code);
    }
    for damage in &line.damages {
        screen.line(format!("{BAD}damage{BAD:#}  {}", plain(damage)))?;
    }
    for unread in &line.unread {
        screen.line(format!("{BAD}unread{BAD:#}  {}", plain(unread)))?;
    }
    let read = format!("{} records, {} read", line.records, bytes(line.bytes));
    if line.whole {
        screen.line(format!("{GOOD}whole{GOOD:#}: {read}"))?;
    } else {
        let next =
            "restore a backup, or: onlyonce repair (docs/operations.md, \"Backup and restore\")";
        screen.line(format!("{BAD}not whole{BAD:#}: {read}\nnext: {next}"))?;
    }
    Ok(code)
}

#[derive(Serialize)]
struct CompactedLine {
    r#type: &'static str,
    complete: bool,
    bytes_moved: u64,
    bytes_reclaimed: u64,
}

pub(crate) fn compact(common: &Common, compact: &Compact, screen: &Screen) -> Result<u8> {
    let store = open::root(common, Needs::default())?;
    let bar = Bar::of_work(screen, "compacting");
    let done = store.compact(compact.budget.map_or(u64::MAX, u64::from))?;
    bar.end();
    if screen.is_json() {
        screen.object(&CompactedLine {
            r#type: "compacted",
            complete: done.is_complete(),
            bytes_moved: done.bytes_moved(),
            bytes_reclaimed: done.bytes_reclaimed(),
        })?;
    } else {
        screen.line(format!(
            "{} reclaimed, {} moved{}",
            bytes(done.bytes_reclaimed()),
            bytes(done.bytes_moved()),
            if done.is_complete() { "" } else { "; there is more to do: call it again" }
        ))?;
    }
    Ok(0)
}

#[derive(Serialize)]
struct BackedUpLine<'a> {
    r#type: &'static str,
    dir: &'a str,
    bytes_copied: u64,
    bytes_linked: u64,
}

pub(crate) fn backup(common: &Common, backup: &Backup, screen: &Screen) -> Result<u8> {
    let store = open::root(common, Needs::default())?;
    let bar = Bar::of_work(screen, "backing up");
    let made = store.backup(&backup.dir)?;
    bar.end();
    let dir = backup.dir.display().to_string();
    if screen.is_json() {
        let (bytes_copied, bytes_linked) = (made.bytes_copied(), made.bytes_linked());
        screen.object(&BackedUpLine {
            r#type: "backed_up",
            dir: &dir,
            bytes_copied,
            bytes_linked,
        })?;
    } else {
        let (copied, linked) = (bytes(made.bytes_copied()), bytes(made.bytes_linked()));
        screen.line(format!("{}: {copied} copied, {linked} shared by hard links", plain(&dir)))?;
    }
    Ok(0)
}

#[derive(Serialize)]
struct RepairedLine {
    r#type: &'static str,
    repaired: bool,
    loss: bool,
    records_moved: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys_lost: Option<u64>,
    memories_lost: u64,
    keys: Vec<String>,
    damages: Vec<String>,
}

pub(crate) fn repair(common: &Common, repair: &Repair, screen: &Screen) -> Result<u8> {
    let accept = if repair.accept_loss { AcceptLoss::Yes } else { AcceptLoss::No };
    let bar = Bar::of_work(screen, "repairing");
    let report = repair_store(open::dir(common)?, accept)?;
    bar.end();
    let line = RepairedLine {
        r#type: "repaired",
        repaired: report.is_repaired,
        loss: report.is_loss,
        records_moved: report.records_moved,
        keys_lost: report.keys_lost,
        memories_lost: report.memories_lost,
        keys: report.keys.iter().map(ToString::to_string).collect(),
        damages: report.damages.iter().map(ToString::to_string).collect(),
    };
    let code = if line.repaired { 0 } else { exit::STORE };
    if screen.is_json() {
        screen.object(&line)?;
        return Ok(code);
    }
    for damage in &line.damages {
        screen.line(format!("{BAD}damage{BAD:#}  {}", plain(damage)))?;
    }
    for key in &line.keys {
        screen.line(format!("{BAD}lost{BAD:#}    {}", plain(key)))?;
    }
    match (line.damages.is_empty(), line.repaired, line.loss) {
        (true, _, _) => screen.line("nothing is damaged")?,
        (false, true, false) => screen.line("repaired, and nothing was lost")?,
        (false, true, true) => screen.line(
            "repaired, with a loss: a key that was lost may be granted again (docs/operations.md, \"Backup and restore\")",
        )?,
        (false, false, _) => screen.line(
            "not repaired, because acknowledged records would be lost, and nothing was changed\n\
             next: restore a backup; or copy the directory, then: onlyonce repair --accept-loss",
        )?,
    }
    Ok(code)
}

#[derive(Serialize)]
struct RebuiltLine {
    r#type: &'static str,
    keys: u64,
}

pub(crate) fn rebuild_index(common: &Common, screen: &Screen) -> Result<u8> {
    let store = open::root(common, Needs::default())?;
    let bar = Bar::of_work(screen, "rebuilding the index");
    store.rebuild_index()?;
    bar.end();
    let keys = store.stats().keys;
    if screen.is_json() {
        screen.object(&RebuiltLine { r#type: "index_rebuilt", keys })?;
    } else {
        screen.line(format!("the index is rebuilt: {keys} keys"))?;
    }
    store.close(Duration::ZERO)?;
    Ok(0)
}
