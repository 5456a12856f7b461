//! Reads the log for an open: the listed segments' records, and the other files in the log's directory.
//!
//! Promises: reads records up to the first bad one, checks the bytes after it, and reports what it found. Never:
//! writes, or decides what that means; `recovery` does.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::recovery::{self, Coverage, Remainder, Scanned, Uncovered};
use super::steps::{Earlier, Visit};
use crate::limits;
use crate::log::Sizes;
use crate::log::format::SEGMENT_HEADER_BYTES;
use crate::log::reader::{GO_ON, Met, SegmentReader, look_behind};
use crate::log::segment::{self, Segment, Spare};
use crate::manifest::{self, Manifest};
use crate::record::{Bad, Kind, Record};
use crate::storage::{self, Access, Storage};
use crate::types::{Lsn, StoreMillis, in_memory};
use crate::{Error, Result};

/// Whether any file in the log's directory holds a record: then a missing manifest is a loss, not an unborn store.
pub(crate) fn holds_records(storage: &dyn Storage, dir: &Path) -> Result<bool> {
    let log_dir = dir.join("log");
    let entries = match storage.list(&log_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::io("listing", &log_dir, e)),
    };
    for entry in entries.iter().filter(|entry| segment::ordinal_of(&entry.name).is_some()) {
        let path = log_dir.join(&entry.name);
        let file = storage.open(&path, Access::Read).map_err(|e| Error::io("opening", &path, e))?;
        let Ok((store, identity)) = segment::read_identity(&*file, &path) else { return Ok(true) };
        let segment = Segment::open(storage, &log_dir, &identity.listed(), store, Access::Read);
        let Ok(segment) = segment else { return Ok(true) };
        if !matches!(records_in(&segment)?, Unlisted::Empty) {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn check_secrets(segment: &Segment, manifest: &Manifest) -> Result<()> {
    let found = segment::read_header(&*segment.file()?, &segment.path)?;
    let said = (found.store, found.secrets, found.identity);
    if said != (manifest.store, manifest.secrets, segment.identity) {
        return Err(Error::corrupt(&segment.path, 0, "a segment header unlike the manifest"));
    }
    Ok(())
}

/// The files that no manifest lists.
pub(super) struct Leftovers {
    /// The usable spares, oldest first.
    pub(super) spares: Vec<Spare>,
    /// The greatest number of any spare.
    pub(super) spare_number: u32,
    /// A segment after the listed ones that holds originals. Files after it were not checked.
    pub(super) originals: Option<PathBuf>,
}

pub(super) fn look_for_leftovers(
    storage: &dyn Storage,
    log_dir: &Path,
    manifest: &Manifest,
    sizes: &Sizes,
) -> Result<Leftovers> {
    let entries = storage.list(log_dir).map_err(|e| Error::io("listing", log_dir, e))?;
    let last_base = manifest.segments.last().map_or(Lsn::ZERO, |listed| listed.base);
    let (mut spares, mut spare_number, mut originals) = (Vec::new(), 0, None);
    for entry in entries {
        let path = log_dir.join(&entry.name);
        if let Some(number) = Spare::number_of(&entry.name) {
            let file =
                storage.open(&path, Access::Read).map_err(|e| Error::io("opening", &path, e))?;
            let bytes = file.len().map_err(|e| Error::io("reading", &path, e))?;
            spare_number = number.max(spare_number);
            if sizes.suits(bytes) {
                spares.push((number, Spare { path, bytes, is_found: true, file: None }));
            }
            continue;
        }
        let Some(ordinal) = segment::ordinal_of(&entry.name) else { continue };
        if manifest.segments.iter().any(|listed| listed.ordinal == ordinal) {
            continue;
        }
        // A segment that was removed from the front of the list; it may be damaged.
        if manifest.segments.last().is_some_and(|last| ordinal < last.ordinal) {
            continue;
        }
        if let Unlisted::Originals = look_at_unlisted(storage, log_dir, &path, manifest, last_base)?
        {
            originals = Some(path);
            break;
        }
    }
    spares.sort_by_key(|(number, _)| *number);
    let spares = spares.into_iter().map(|(_, spare)| spare).collect();
    Ok(Leftovers { spares, spare_number, originals })
}

/// Returns an error for a directory in the place of a file that is prepared ahead. It is no loss, but each later
/// write would fail on it, so it is reported at once.
pub(in crate::log) fn check_all_prepared(storage: &dyn Storage, dir: &Path) -> Result<()> {
    let log_dir = dir.join("log");
    let entries = storage.list(&log_dir).map_err(|e| Error::io("listing", &log_dir, e))?;
    let spares = entries.iter().filter(|entry| Spare::number_of(&entry.name).is_some());
    let spares = spares.filter(|entry| !entry.is_file).map(|entry| log_dir.join(&entry.name));
    let ahead = [manifest::path(dir).with_extension("next"), Spare::draft_path(&log_dir)];
    for path in ahead.into_iter().chain(spares) {
        match storage.open(&path, Access::Read) {
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
                return Err(Error::io("opening", &path, e));
            }
            _ => {}
        }
    }
    Ok(())
}

pub(in crate::log) enum Unlisted {
    Empty,
    /// Copies made by a recovery whose manifest switch did not happen.
    Copies,
    Originals,
}

pub(in crate::log) fn look_at_unlisted(
    storage: &dyn Storage,
    log_dir: &Path,
    path: &Path,
    manifest: &Manifest,
    last_base: Lsn,
) -> Result<Unlisted> {
    let file = storage.open(path, Access::Read).map_err(|e| Error::io("opening", path, e))?;
    let (store, identity) = segment::read_identity(&*file, path)?;
    if store != manifest.store {
        return Err(Error::corrupt(path, 0, "a segment of another store"));
    }
    if identity.base < last_base {
        return Ok(Unlisted::Empty);
    }
    let segment = Segment::open(storage, log_dir, &identity.listed(), store, Access::Read)?;
    records_in(&segment)
}

/// Returns which kinds of records a segment holds, also after damage.
pub(in crate::log) fn records_in(segment: &Segment) -> Result<Unlisted> {
    let start = SEGMENT_HEADER_BYTES as u64;
    let found = look_behind(segment, start, segment.identity.capacity)?;
    Ok(match (found.originals, found.records) {
        (0, 0) => Unlisted::Empty,
        (0, _) => Unlisted::Copies,
        _ => Unlisted::Originals,
    })
}

/// Reads the listed segments' records, from where the index no longer covers them up to the first place without one,
/// passes those about keys to `visit`, and checks the bytes after them.
pub(super) fn scan(
    dir: &Path,
    segments: &[Arc<Segment>],
    manifest: &Manifest,
    visit: &mut Visit<'_>,
) -> Result<Scanned> {
    let mut found = Scanned {
        end: Lsn::ZERO,
        last: 0,
        bad: None,
        coverage: Coverage::new(manifest.durable),
        records: 0,
        time: None,
        newest: StoreMillis(0),
        rest: Remainder::Clean(None),
    };
    for (index, (segment, listed)) in segments.iter().zip(&manifest.segments).enumerate() {
        if listed.end <= manifest.covered {
            continue;
        }
        let end = manifest.clean.filter(|end| listed.base <= *end && *end < listed.end);
        let limit = end.unwrap_or(listed.end).since(listed.base);
        let start = segment.offset(manifest.covered.max(segment.identity.start()));
        let mut reader = SegmentReader::new(segment, start, limit)?;
        reader.walk(|met| {
            let (record, passed) = match met {
                Met::Record(record, passed) => (record, passed),
                // The log ends there, whatever follows.
                Met::Damage { why, .. } | Met::Gap { why, .. } => {
                    found.bad = Some(why);
                    return Ok(ControlFlow::Break(()));
                }
            };
            let earlier = Earlier { segments: segments.split_at(index + 1).0, passed };
            match take_in(&mut found, &record, segment, (dir, manifest), &earlier, visit) {
                Ok(()) => GO_ON,
                Err(Taken::Bad(bad)) => {
                    Err(Error::corrupt(&segment.path, segment.offset(record.lsn), bad))
                }
                Err(Taken::Refused(e)) => Err(e),
            }
        })?;
        (found.last, found.end) = (index, reader.lsn());
        if end.is_some() || found.bad.is_some() {
            break;
        }
    }
    found.rest = look_at_rest(segments, manifest, &found)?;
    Ok(found)
}

enum Taken {
    Bad(Bad),
    Refused(Error),
}

fn take_in(
    found: &mut Scanned,
    record: &Record<'_>,
    segment: &Segment,
    (dir, manifest): (&Path, &Manifest),
    earlier: &Earlier<'_>,
    visit: &mut Visit<'_>,
) -> Result<(), Taken> {
    found.records += 1;
    if !found.coverage.cover(record.watermark) {
        return Err(Taken::Refused(recovery::split(&segment.path, segment.offset(record.lsn))));
    }
    if record.kind == Kind::Note {
        if let Some(time) = record.time().map_err(Taken::Bad)? {
            found.newest = found.newest.max(time.store());
            found.time = Some(time);
        }
    }
    let is_about_key = record.kind.is_about_key();
    found.coverage.add(Uncovered { lsn: record.lsn, len: record.len(), is_about_key });
    if !is_about_key {
        return Ok(());
    }
    let body = record.body().map_err(Taken::Bad)?;
    let segment_end = segment.identity.listed().end;
    recovery::check_token(dir, manifest, segment_end, body.ahead).map_err(Taken::Refused)?;
    found.newest = found.newest.max(body.time);
    visit(record, earlier).map_err(Taken::Refused)
}

/// After a clean close the next segment is empty, too; a later manifest than this one would have listed any other.
fn look_at_rest(
    segments: &[Arc<Segment>],
    manifest: &Manifest,
    found: &Scanned,
) -> Result<Remainder> {
    let behind = segments.iter().zip(&manifest.segments).enumerate().skip(found.last);
    let Some(clean) = manifest.clean else {
        let mut rest = Vec::new();
        for (index, (segment, listed)) in behind {
            let is_last = index == found.last;
            let from = if is_last { found.end } else { segment.identity.start() };
            let from = segment.offset(from);
            rest.push((from, look_behind(segment, from, listed.end.since(listed.base))?));
        }
        return Ok(Remainder::Unclean(rest));
    };
    if found.bad.is_none() && found.end == clean {
        for (index, (segment, listed)) in behind {
            if let Some(at) = first_behind(segment, listed.end, clean)? {
                return Ok(Remainder::Clean(Some((index, at))));
            }
        }
    }
    Ok(Remainder::Clean(None))
}

/// Checks that nothing follows the `clean` end, in the segment in which a clean close ended, or the next one.
pub(in crate::log) fn check_nothing_behind(
    segment: &Segment,
    listed_end: Lsn,
    clean: Lsn,
) -> Result<()> {
    match first_behind(segment, listed_end, clean)? {
        None => Ok(()),
        Some(at) => Err(recovery::behind_clean_end(&segment.path, at)),
    }
}

/// Returns the file offset of the first byte after a `clean` end that isn't zero, as far as a close leaves zeros.
fn first_behind(segment: &Segment, listed_end: Lsn, clean: Lsn) -> Result<Option<u64>> {
    let (page, header) = (limits::PAGE_BYTES as u64, SEGMENT_HEADER_BYTES as u64);
    let (from, len) = match segment.base() >= clean {
        true => (header, page - header),
        false => (segment.offset(clean), listed_end.since(clean).min(page)),
    };
    let mut bytes = vec![0; in_memory(len)];
    storage::read_full_at(&*segment.file()?, &mut bytes, from)
        .map_err(|e| Error::io("reading", &segment.path, e))?;
    let used = bytes.iter().position(|&byte| byte != 0);
    Ok(used.map(|at| from + at as u64))
}
