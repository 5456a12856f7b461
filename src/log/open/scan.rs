//! What an opening reads: the listed segments' records, and what else stands in the log's directory.
//!
//! Promises: reads records up to the first bad one, and tells what it found. Never: writes.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::judge::Uncovered;
use super::recovery::{Earlier, Visit};
use crate::limits;
use crate::log::Sizes;
use crate::log::format::SEGMENT_HEADER_BYTES;
use crate::log::reader::{GO_ON, Met, Reader, look_behind};
use crate::log::segment::{self, Segment, Spare};
use crate::manifest::{self, Manifest};
use crate::record::{Bad, Body, Kind, Record, TimeField};
use crate::storage::{self, Access, Storage};
use crate::types::{Lsn, StoreMillis, in_memory};
use crate::{Error, Result};

/// Whether anything in `log_dir` holds a record: then a missing manifest is a loss, not an unborn store.
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

/// What the scan of the listed segments came to.
pub(super) struct Scan {
    /// End of the good records.
    pub(super) end: Lsn,
    /// Index of the segment that `end` lies in.
    pub(super) last: usize,
    pub(super) bad: Option<Bad>,
    /// The greatest watermark met in good records.
    pub(super) watermark: Lsn,
    pub(super) records: u64,
    /// Good records that no watermark seen so far covers.
    pub(super) uncovered: VecDeque<Uncovered>,
    pub(super) time: Option<TimeField>,
    pub(super) newest: StoreMillis,
}

impl Scan {
    /// Takes note of a greater watermark. `false` if it splits a record: no writer made it, and a log that
    /// ended there would end in half a record.
    pub(super) fn cover(&mut self, watermark: Lsn) -> bool {
        self.watermark = self.watermark.max(watermark);
        while let Some(first) = self.uncovered.front().filter(|first| first.lsn < self.watermark) {
            if first.lsn.plus(first.len) > self.watermark {
                return false;
            }
            self.uncovered.pop_front();
        }
        true
    }
}

pub(super) fn check_secrets(segment: &Segment, manifest: &Manifest) -> Result<()> {
    let found = segment::read_header(&*segment.file()?, &segment.path)?;
    let said = (found.store, found.secrets, found.identity);
    if said != (manifest.store, manifest.secrets, segment.identity) {
        return Err(Error::corrupt(&segment.path, 0, "a segment header unlike the manifest"));
    }
    Ok(())
}

/// The spares that can be used, oldest first, and the greatest number of any. A file that no list names and
/// that holds originals is Corrupt.
pub(super) fn check_unlisted(
    storage: &dyn Storage,
    log_dir: &Path,
    manifest: &Manifest,
    sizes: &Sizes,
) -> Result<(Vec<Spare>, u32)> {
    let entries = storage.list(log_dir).map_err(|e| Error::io("listing", log_dir, e))?;
    let last_base = manifest.segments.last().map_or(Lsn::ZERO, |listed| listed.base);
    let (mut spares, mut greatest) = (Vec::new(), 0);
    for entry in entries {
        let path = log_dir.join(&entry.name);
        if let Some(number) = Spare::number_of(&entry.name) {
            let file =
                storage.open(&path, Access::Read).map_err(|e| Error::io("opening", &path, e))?;
            let bytes = file.len().map_err(|e| Error::io("reading", &path, e))?;
            greatest = number.max(greatest);
            if sizes.suits(bytes) {
                spares.push((number, Spare { path, bytes, is_found: true, file: None }));
            }
            continue;
        }
        let Some(ordinal) = segment::ordinal_of(&entry.name) else { continue };
        if manifest.segments.iter().any(|listed| listed.ordinal == ordinal) {
            continue;
        }
        // One that left the list, which it does at its front; it may be damaged, that may be why it did.
        if manifest.segments.last().is_some_and(|last| ordinal < last.ordinal) {
            continue;
        }
        if let Unlisted::Originals = look_at_unlisted(storage, log_dir, &path, manifest, last_base)?
        {
            return Err(Error::corrupt(
                &path,
                SEGMENT_HEADER_BYTES as u64,
                "the manifest is older than the log: records in an unlisted segment",
            ));
        }
    }
    spares.sort_by_key(|(number, _)| *number);
    Ok((spares.into_iter().map(|(_, spare)| spare).collect(), greatest))
}

/// A directory in the place of a file that is prepared ahead is no loss, but each later write would fail on it, and
/// go on failing: so it is said at once.
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

/// What kinds of records a segment holds, behind damage too.
pub(in crate::log) fn records_in(segment: &Segment) -> Result<Unlisted> {
    let start = SEGMENT_HEADER_BYTES as u64;
    let found = look_behind(segment, start, segment.identity.capacity)?;
    Ok(match (found.originals, found.records) {
        (0, 0) => Unlisted::Empty,
        (0, _) => Unlisted::Copies,
        _ => Unlisted::Originals,
    })
}

pub(super) fn scan(
    segments: &[Arc<Segment>],
    manifest: &Manifest,
    visit: &mut Visit<'_>,
) -> Result<Scan> {
    let mut scan = Scan {
        end: Lsn::ZERO,
        last: 0,
        bad: None,
        watermark: manifest.durable,
        records: 0,
        uncovered: VecDeque::new(),
        time: None,
        newest: StoreMillis(0),
    };
    for (index, (segment, listed)) in segments.iter().zip(&manifest.segments).enumerate() {
        if listed.end <= manifest.covered {
            continue;
        }
        let end = manifest.clean.filter(|end| listed.base <= *end && *end < listed.end);
        let limit = end.unwrap_or(listed.end).since(listed.base);
        let start = segment.offset(manifest.covered.max(segment.identity.start()));
        let mut reader = Reader::new(segment, start, limit)?;
        reader.walk(|met| {
            let (record, passed) = match met {
                Met::Record(record, passed) => (record, passed),
                // The log ends there, whatever follows.
                Met::Damage { why, .. } | Met::Gap { why, .. } => {
                    scan.bad = Some(why);
                    return Ok(ControlFlow::Break(()));
                }
            };
            scan.records += 1;
            let bad_at = |what: &dyn Display| {
                Error::corrupt(&segment.path, segment.offset(record.lsn), what)
            };
            if !scan.cover(record.watermark) {
                return Err(bad_at(&SPLIT));
            }
            let earlier = Earlier { segments: segments.split_at(index + 1).0, passed };
            match take_in(&mut scan, &record, segment, manifest, &earlier, visit) {
                Ok(()) => GO_ON,
                Err(Taken::Bad(bad)) => Err(bad_at(&bad)),
                Err(Taken::Refused(e)) => Err(e),
            }
        })?;
        (scan.last, scan.end) = (index, reader.lsn());
        if end.is_some() || scan.bad.is_some() {
            break;
        }
    }
    Ok(scan)
}

pub(super) const SPLIT: &str = "a watermark that splits a record";

enum Taken {
    Bad(Bad),
    Refused(Error),
}

fn take_in(
    scan: &mut Scan,
    record: &Record<'_>,
    segment: &Segment,
    manifest: &Manifest,
    earlier: &Earlier<'_>,
    visit: &mut Visit<'_>,
) -> Result<(), Taken> {
    if record.kind == Kind::Note {
        if let Some(time) = record.time().map_err(Taken::Bad)? {
            scan.newest = scan.newest.max(time.store());
            scan.time = Some(time);
        }
    }
    let is_about_key = record.kind.is_about_key();
    scan.uncovered.push_back(Uncovered { lsn: record.lsn, len: record.len(), is_about_key });
    if !is_about_key {
        return Ok(());
    }
    let body = record.body().map_err(Taken::Bad)?;
    check_token(&body, segment, manifest).map_err(Taken::Refused)?;
    scan.newest = scan.newest.max(body.time);
    visit(record, earlier).map_err(Taken::Refused)
}

/// Whoever placed the record might have issued tokens up to the end of its segment, and no later manifest lets them fall.
fn check_token(body: &Body<'_>, segment: &Segment, manifest: &Manifest) -> Result<()> {
    let end = segment.identity.listed().end.token(body.ahead).get();
    if body.ahead == 0 || end <= manifest.check_tokens()? {
        return Ok(());
    }
    let log_dir = segment.path.parent().unwrap_or(Path::new(""));
    let dir = log_dir.parent().unwrap_or(log_dir);
    Err(Error::corrupt(&manifest::path(dir), 0, OLDER_BY_TOKENS))
}

pub(in crate::log) const OLDER_BY_TOKENS: &str =
    "the manifest is older than the log: records with tokens past those that it knows of";

/// Of a segment in which a clean close ended, or one ahead of it: nothing stands behind the `clean` end.
pub(in crate::log) fn check_nothing_behind(
    segment: &Segment,
    listed_end: Lsn,
    clean: Lsn,
) -> Result<()> {
    let page = limits::PAGE_BYTES as u64;
    if segment.base() >= clean {
        let header = SEGMENT_HEADER_BYTES as u64;
        return check_zeros(segment, header, page - header);
    }
    check_zeros(segment, segment.offset(clean), listed_end.since(clean).min(page))
}

fn check_zeros(segment: &Segment, from: u64, len: u64) -> Result<()> {
    let mut page = vec![0; in_memory(len)];
    storage::read_full_at(&*segment.file()?, &mut page, from)
        .map_err(|e| Error::io("reading", &segment.path, e))?;
    match page.iter().position(|&byte| byte != 0) {
        None => Ok(()),
        Some(at) => Err(Error::corrupt(
            &segment.path,
            from + at as u64,
            "the manifest is older than the log: bytes behind its clean end",
        )),
    }
}
