//! Repairs a damaged store, with no more loss than the caller accepts.
//!
//! Promises: nothing is changed before everything was read, and nothing acknowledged is given up without an explicit
//! [`AcceptLoss::Yes`]. Losses are reported, key by key where a remaining record names the key. A store is reported
//! as whole or repaired only after it was opened to prove that. Never: touches a store that a process has open.

mod memories;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::events::Events;
use crate::index::Hasher;
use crate::index::table::{self, Table};
use crate::log::open::directory;
use crate::log::open::steps::Earlier;
use crate::log::repair::prove;
use crate::log::survey::{Survey, survey};
use crate::log::{Seams, Sizes};
use crate::manifest;
use crate::operation::Key;
use crate::record::Record;
use crate::sealed::EntryCursor;
use crate::sealed::listed::{ListedFile, ListedMemories, ListedTable};
use crate::storage::{DirEntry, Storage};
use crate::types::Lsn;
use crate::{Error, ErrorKind, Result};
use memories::Remembered;

/// Whether a repair may lose records. See [`repair`](crate::admin::repair).
///
/// ```
/// use onlyonce::admin::{AcceptLoss, repair};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let keys = dir.path().join("keys");
/// # drop(onlyonce::Store::open_or_create(&keys)?);
/// let report = repair(&keys, AcceptLoss::No)?; // look first
/// assert!(!report.is_loss);
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum AcceptLoss {
    /// Repairs the store if that loses nothing; otherwise only reports what would be lost.
    No,
    /// Drops what is damaged. A key whose result is lost may be granted again.
    Yes,
}

/// What a repair found and did. See [`repair`](crate::admin::repair).
///
/// ```
/// use onlyonce::admin::{AcceptLoss, repair};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let keys = dir.path().join("keys");
/// # drop(onlyonce::Store::open_or_create(&keys)?);
/// let report = repair(&keys, AcceptLoss::No)?;
/// for damage in &report.damages {
///     println!("{damage}");
/// }
/// for key in &report.keys {
///     println!("what was recorded last of {key} is lost");
/// }
/// # assert!(report.is_repaired);
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct RepairReport {
    /// Whether the store can be opened now, which the repair has tried.
    pub is_repaired: bool,
    /// Whether anything that was acknowledged is lost, or would be.
    pub is_loss: bool,
    /// What is damaged or missing; each error names file and offset.
    pub damages: Vec<Error>,
    /// Keys whose newest record is lost, as far as older records name them. Each has the state of its newest whole record.
    pub keys: Vec<Key<'static>>,
    /// How many keys lost their newest record, according to the index; `None` if the index doesn't cover the lost part.
    pub keys_lost: Option<u64>,
    /// How many remembered keys are lost, so that a late retry of them is granted. The number is an estimate if neither
    /// the manifest nor a file's header says how many keys the file held: 204 for each damaged page, and at least one.
    pub memories_lost: u64,
    /// Records that were written anew.
    pub records_moved: u64,
}

/// Repairs the store in `dir`.
pub(crate) fn run(
    seams: Seams,
    dir: &Path,
    sizes: &Sizes,
    accept: AcceptLoss,
) -> Result<RepairReport> {
    let _span = Events::repairing(dir);
    let (seams, _lock) = directory::lock(seams, dir, false, Duration::ZERO)?;
    let report = run_locked(&seams, dir, sizes, accept)?;
    Events::repaired(dir, report.is_repaired, report.is_loss);
    Ok(report)
}

fn run_locked(
    seams: &Seams,
    dir: &Path,
    sizes: &Sizes,
    accept: AcceptLoss,
) -> Result<RepairReport> {
    let storage = &*seams.storage;
    if matches!(manifest::load(storage, dir), Ok(None)) {
        directory::refuse_unfinished(storage, dir)?;
    }
    let mut found = survey(storage, dir)?;
    let remembered = Remembered::survey(storage, dir, &mut found)?;
    let memories_lost = remembered.lost;
    let (keys, keys_lost) = name_the_lost(storage, dir, &found)?;
    let is_loss = found.has_lost_records() || memories_lost > 0;
    let mut report = RepairReport {
        is_repaired: false,
        is_loss,
        damages: Vec::new(),
        keys,
        keys_lost,
        memories_lost,
        records_moved: 0,
    };
    let may = !is_loss || accept == AcceptLoss::Yes;
    if !found.is_whole() && may {
        let next = next_number(storage, dir, &found)?;
        let (memories, next) = remembered.save(&seams.storage, dir, found.store, next)?;
        // A list of the existing files may contradict itself, or lead to a record that no open accepts: then
        // everything is written anew.
        let is_relisted = found.can_be_relisted()
            && found.relist(seams, dir, memories.clone(), next)?
            && opens(seams, dir, sizes)?.is_none();
        if !is_relisted {
            report.records_moved =
                found.salvage(seams, dir, sizes, memories, next, &mut check_key)?;
        }
    }
    // Only a store that opens is reported as whole or repaired.
    if found.is_whole() || may {
        let refused = opens(seams, dir, sizes)?;
        report.is_repaired = refused.is_none();
        found.damages.extend(refused);
    }
    report.damages = found.damages.into_iter().map(Error::listed).collect();
    Ok(report)
}

/// Returns why the store in `dir` would not open, if so, except for damage that an open mends.
fn opens(seams: &Seams, dir: &Path, sizes: &Sizes) -> Result<Option<Error>> {
    let opened = manifest::load(&*seams.storage, dir).and_then(|manifest| {
        let missing = || Error::corrupt(&manifest::path(dir), 0, "the manifest is missing:");
        prove(seams, dir, sizes, manifest.ok_or_else(missing)?, &mut check_key)
    });
    match opened {
        Err(e) if e.kind() == ErrorKind::Corrupt => Ok(Some(e)),
        opened => opened.map(|()| None),
    }
}

/// An open rejects records with an impossible key.
fn check_key(record: &Record<'_>, _: &Earlier<'_>) -> Result<()> {
    let is_key =
        record.body().is_ok_and(|body| Key::from_stored(body.key_kind, body.key).is_some());
    match is_key {
        true => Ok(()),
        false => {
            let what = format_args!("an impossible key at lsn {}", record.lsn);
            Err(Error::corrupt(Path::new("log"), 0, what))
        }
    }
}

/// Returns a number that no file of the index or of expired keys has or had.
fn next_number(storage: &dyn Storage, dir: &Path, found: &Survey<'_>) -> Result<u32> {
    let mut next = found.manifest.as_ref().map_or(1, |manifest| manifest.next_table);
    next = next.max(after_all::<ListedTable>(storage, dir)?);
    next = next.max(after_all::<ListedMemories>(storage, dir)?);
    if next == u32::MAX {
        return Err(Error::new(ErrorKind::StorageFull, "the index has used up its numbers").at(dir));
    }
    Ok(next)
}

/// Returns the number after those of all sealed files of a kind.
fn after_all<L: ListedFile>(storage: &dyn Storage, dir: &Path) -> Result<u32> {
    let entries = list(storage, &dir.join(L::DIR))?;
    let numbers = entries.iter().filter_map(|entry| L::number_of(&entry.name));
    // The caller refuses the last number, as if it were taken.
    Ok(numbers.max().map_or(0, |number| number.saturating_add(1)))
}

/// Lists a directory that may be missing. A directory that can't be read is not damage: its files may be whole.
fn list(storage: &dyn Storage, dir: &Path) -> Result<Vec<DirEntry>> {
    match storage.list(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        listed => listed.map_err(|e| Error::io("listing", dir, e)),
    }
}

/// Finds the keys whose newest record is lost, as far as the index lists that record and an older record names the
/// key.
fn name_the_lost(
    storage: &dyn Storage,
    dir: &Path,
    found: &Survey<'_>,
) -> Result<(Vec<Key<'static>>, Option<u64>)> {
    if !found.has_lost_records() {
        return Ok((Vec::new(), Some(0)));
    }
    let Some(manifest) = &found.manifest else { return Ok((Vec::new(), None)) };
    let base_of = |ordinal| {
        let listed = manifest.segments.iter().find(|listed| listed.ordinal == ordinal)?;
        Some(listed.base)
    };
    let is_lost = |lsn: Lsn| found.lost.iter().any(|range| range.contains(&lsn));
    // The newest lost record, by prefix of the hash.
    let mut lost: BTreeMap<u64, Lsn> = BTreeMap::new();
    let is_covered = found.lost.iter().all(|range| range.end <= manifest.covered);
    let mut is_known = is_covered;
    for listed in &manifest.tables {
        let walked =
            walk_table(storage, dir, *listed, manifest.store, &mut |prefix, ordinal, offset| {
                if let Some(lsn) = base_of(ordinal).map(|base: Lsn| base.plus(offset)) {
                    if is_lost(lsn) {
                        let newest = lost.entry(prefix).or_insert(lsn);
                        *newest = lsn.max(*newest);
                    }
                }
            });
        match walked {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Corrupt => is_known = false,
            Err(e) => return Err(e),
        }
    }
    let hasher = Hasher::new(&found.secrets);
    let mut named: BTreeMap<u64, (Lsn, Key<'static>)> = BTreeMap::new();
    found.records(&mut |record| {
        let Ok(body) = record.body() else { return Ok(()) };
        let Some(key) = Key::from_stored(body.key_kind, body.key) else { return Ok(()) };
        let prefix = table::prefix_of(hasher.hash(&key));
        if lost.contains_key(&prefix) {
            named.insert(prefix, (record.lsn, key.into_owned()));
        }
        Ok(())
    })?;
    // A younger whole record supersedes the lost one.
    let is_newest_lost = |prefix: &u64| {
        let whole = named.get(prefix).map_or(Lsn::ZERO, |(lsn, _)| *lsn);
        lost.get(prefix).is_some_and(|lost| *lost > whole)
    };
    let count = lost.keys().filter(|prefix| is_newest_lost(prefix)).count() as u64;
    let keys = named.iter().filter(|(prefix, _)| is_newest_lost(prefix));
    Ok((keys.map(|(_, (_, key))| key.clone()).collect(), is_known.then_some(count)))
}

fn walk_table(
    storage: &dyn Storage,
    dir: &Path,
    listed: ListedTable,
    store: crate::types::StoreId,
    told: &mut dyn FnMut(u64, u32, u64),
) -> Result<()> {
    let table = Table::open(storage, &dir.join(ListedTable::DIR), listed, store, false)?;
    let mut cursor = EntryCursor::new(Arc::new(table));
    while let Some(slot) = cursor.peek()? {
        told(slot.prefix(), slot.spot.ordinal, slot.spot.offset);
        cursor.advance();
    }
    Ok(())
}
