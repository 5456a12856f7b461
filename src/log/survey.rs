//! What a damaged log still holds, read without trusting the manifest.
//!
//! Promises: `survey` changes nothing, and tells every damage and every loss; a torn tail is neither. Never: decides
//! that a loss is accepted, or writes.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::format::{Identity, SEGMENT_HEADER_BYTES};
use super::reader::{Reader, Step, look_behind};
use super::recovery::{Unlisted, check_nothing_behind, look_at_unlisted, records_in};
use super::segment::{self, Segment};
use crate::manifest::{self, Listed, Manifest, Secrets};
use crate::record::{Bad, Draft, HEADER_BYTES, Kind, Record, TimeField};
use crate::storage::{Access, Storage};
use crate::types::{Lsn, StoreId, StoreMillis};
use crate::{Error, ErrorKind, Result};

/// A log as it was found.
pub(crate) struct Survey {
    /// The manifest, if it is whole.
    pub(crate) manifest: Option<Manifest>,
    pub(crate) store: StoreId,
    pub(crate) secrets: Secrets,
    /// What is damaged or missing, each with file and offset.
    pub(crate) damages: Vec<Error>,
    /// Stretches of the log that were durable once and are gone.
    pub(crate) lost: Vec<std::ops::Range<Lsn>>,
    /// A segment is missing or can't be read, and nothing says which part of the log it was.
    lacks_segment: bool,
    /// Of all segments' files.
    ordinals: BTreeSet<u32>,
    /// Whether the files can stay as they are, once a manifest lists them.
    is_sound: bool,
    pub(super) parts: Vec<Part>,
    pub(super) time: Option<TimeField>,
    pub(super) newest: StoreMillis,
}

/// A segment that can be read, as far as `end`.
pub(super) struct Part {
    pub(super) segment: Segment,
    pub(super) end: Lsn,
    /// Whether header and length are what was written. No torn write changes them.
    is_whole: bool,
}

/// No whole record stands from file offset `from` to `to`.
struct Gap {
    from: u64,
    to: u64,
    why: Bad,
    rest: Rest,
}

/// What follows where a record isn't whole.
enum Rest {
    /// Whole records.
    Records,
    /// Zeros to the segment's end, as they are written ahead of records.
    Zeros,
    /// Nothing: the file is shorter than its segment, and ends with a record or with zeros too few for one.
    Cut,
    /// Something, and then the file is shorter than its segment.
    CutWithin,
    /// Something else, to the segment's end.
    Bytes,
}

impl Rest {
    /// Whether the next record would begin here.
    fn is_free(&self) -> bool {
        matches!(self, Rest::Zeros | Rest::Cut)
    }
}

/// What one segment says.
struct Read {
    gaps: Vec<Gap>,
    is_ended: bool,
    time: Option<TimeField>,
    newest: StoreMillis,
}

/// Raises `durable` to what the segment's records say.
fn read(part: &Part, durable: &mut Lsn) -> Result<Read> {
    let (segment, limit) = (&part.segment, part.end.since(part.segment.base()));
    let mut read = Read { gaps: Vec::new(), is_ended: false, time: None, newest: StoreMillis(0) };
    let mut bad = Vec::new();
    walk(segment, limit, &mut |found| {
        match found {
            Found::Record(record) => {
                *durable = (*durable).max(record.watermark);
                read.is_ended |= record.kind == Kind::SegmentEnd;
                match record.time() {
                    Ok(Some(note)) if record.kind == Kind::Note => {
                        read.newest = read.newest.max(note.store());
                        read.time = Some(note);
                    }
                    _ => {}
                }
                if let (true, Ok(body)) = (record.kind.is_about_key(), record.body()) {
                    read.newest = read.newest.max(body.time);
                }
            }
            Found::Gap { from, to, why } => bad.push((from, to, why)),
        }
        Ok(())
    })?;
    let file_end = segment.file.len().map_err(|e| Error::io("reading", &segment.path, e))?;
    for (from, to, why) in bad {
        let behind = look_behind(segment, from, limit)?;
        *durable = (*durable).max(behind.watermark);
        let is_in_file = to <= file_end;
        let rest = match behind.bytes_end <= from {
            _ if to < limit => Rest::Records,
            true if is_in_file || from.saturating_add(HEADER_BYTES as u64) <= file_end => {
                Rest::Zeros
            }
            true => Rest::Cut,
            false if is_in_file => Rest::Bytes,
            false => Rest::CutWithin,
        };
        read.gaps.push(Gap { from, to, why, rest });
    }
    Ok(read)
}

/// Reads everything in `dir`, which is locked.
pub(crate) fn survey(storage: &dyn Storage, dir: &Path) -> Result<Survey> {
    let log_dir = dir.join("log");
    let mut damages = Vec::new();
    let manifest = match manifest::load(storage, dir) {
        Ok(Some(manifest)) => check_unlisted(storage, &log_dir, manifest, &mut damages)?,
        Ok(None) => {
            let what = "the manifest is missing:";
            damages.push(Error::corrupt(&manifest::path(dir), 0, what));
            None
        }
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            damages.push(e);
            None
        }
        Err(e) => return Err(e),
    };
    let mut lost = Vec::new();
    let (mut is_sound, mut lacks_segment) = (true, false);
    let (store, secrets, parts) = match &manifest {
        Some(manifest) => {
            let mut parts = Vec::new();
            for listed in &manifest.segments {
                match open_listed(storage, &log_dir, listed, manifest.store) {
                    Ok((segment, header)) => {
                        let is_whole = header.is_ok();
                        is_sound &= is_whole;
                        damages.extend(header.err());
                        parts.push(Part { segment, end: listed.end, is_whole });
                    }
                    Err(e) if e.kind() == ErrorKind::Corrupt => {
                        is_sound = false;
                        damages.push(e);
                        lost.push(listed.base..listed.end);
                    }
                    Err(e) => return Err(e),
                }
            }
            (manifest.store, manifest.secrets, parts)
        }
        None => {
            let known = damages.len();
            let found = find_segments(storage, &log_dir, &mut damages)?;
            lacks_segment = damages.len() > known;
            found
        }
    };
    let durable = manifest.as_ref().map_or(Lsn::ZERO, |manifest| manifest.durable);
    let entries = storage.list(&log_dir).map_err(|e| Error::io("listing", &log_dir, e))?;
    let ordinals = entries.iter().filter_map(|entry| segment::ordinal_of(&entry.name)).collect();
    let mut survey = Survey {
        manifest,
        store,
        secrets,
        damages,
        lost,
        lacks_segment,
        ordinals,
        is_sound,
        parts,
        time: None,
        newest: StoreMillis(0),
    };
    survey.look_for_losses(durable)?;
    survey.look_behind_clean_end()?;
    Ok(survey)
}

/// Segments that a manifest doesn't list and that no repair has left: damage, in the way of an opening, and where their
/// records say that the manifest is older than they are, it is worth nothing: `None`.
fn check_unlisted(
    storage: &dyn Storage,
    log_dir: &Path,
    manifest: Manifest,
    damages: &mut Vec<Error>,
) -> Result<Option<Manifest>> {
    let last = manifest.segments.last();
    let (last_base, last_ordinal) = last.map_or((Lsn::ZERO, 0), |last| (last.base, last.ordinal));
    for entry in storage.list(log_dir).map_err(|e| Error::io("listing", log_dir, e))? {
        let path = log_dir.join(&entry.name);
        match segment::ordinal_of(&entry.name) {
            Some(ordinal) if ordinal > last_ordinal => {}
            _ => continue,
        }
        if !entry.is_file {
            damages.push(Error::corrupt(&path, 0, "a directory in place of a segment:"));
            continue;
        }
        match look_at_unlisted(storage, log_dir, &path, &manifest, last_base) {
            Ok(Unlisted::Originals) => {
                let what = "the manifest is older than the log:";
                damages.push(Error::corrupt(
                    &manifest::path(log_dir.parent().unwrap_or(log_dir)),
                    0,
                    what,
                ));
                return Ok(None);
            }
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Corrupt => damages.push(e),
            Err(e) => return Err(e),
        }
    }
    Ok(Some(manifest))
}

/// Opens a listed segment by what the manifest says of it, whatever its header says.
fn open_listed(
    storage: &dyn Storage,
    log_dir: &Path,
    listed: &Listed,
    store: StoreId,
) -> Result<(Segment, Result<()>)> {
    let path = log_dir.join(segment::file_name(listed.ordinal));
    let file = match storage.open(&path, Access::Read) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
            return Err(Error::corrupt(&path, 0, "a listed segment is missing:").because(e));
        }
        Err(e) => return Err(Error::io("opening", &path, e)),
    };
    let header = Segment::open(storage, log_dir, listed, store, Access::Read).map(drop);
    Ok((Segment::unchecked(Identity::of(listed), store, path, file), header))
}

/// Without a manifest the segments' own headers say what there is.
fn find_segments(
    storage: &dyn Storage,
    log_dir: &Path,
    damages: &mut Vec<Error>,
) -> Result<(StoreId, Secrets, Vec<Part>)> {
    let entries = storage.list(log_dir).map_err(|e| Error::io("listing", log_dir, e))?;
    let (mut found, mut parts) = (None, Vec::new());
    for entry in entries.iter().filter(|entry| segment::ordinal_of(&entry.name).is_some()) {
        let path = log_dir.join(&entry.name);
        let opened = storage.open(&path, Access::Read);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
                damages.push(Error::corrupt(&path, 0, "a directory in place of a segment:"));
                continue;
            }
            Err(e) => return Err(Error::io("opening", &path, e)),
        };
        match segment::read_header(&*file, &path) {
            Ok((store, secrets, identity)) => {
                if *found.get_or_insert((store, secrets)) != (store, secrets) {
                    damages.push(Error::corrupt(&path, 0, "a segment of another store"));
                    continue;
                }
                let end = identity.listed().end;
                let segment = Segment::unchecked(identity, store, path, file);
                parts.push(Part { segment, end, is_whole: true });
            }
            Err(e) if e.kind() == ErrorKind::Corrupt => damages.push(e),
            Err(e) => return Err(e),
        }
    }
    parts.sort_by_key(|part| part.segment.base());
    leave_out_copies(&mut parts)?;
    let (store, secrets) = found.ok_or_else(|| {
        Error::corrupt(log_dir, 0, "no segment whose header is whole, and no manifest")
    })?;
    Ok((store, secrets, parts))
}

/// A recovery or a repair that ended before its switch leaves copies, of the first of its records maybe, behind newer
/// ones of the same keys. They are told by this: of each of them the original is there.
fn leave_out_copies(parts: &mut Vec<Part>) -> Result<()> {
    let mut first = parts.len();
    while let Some(part) = first.checked_sub(1).and_then(|last| parts.get(last)) {
        if matches!(records_in(&part.segment)?, Unlisted::Originals) {
            break;
        }
        first -= 1;
    }
    let (rest, copies) = parts.split_at(first);
    let mut missing = BTreeSet::new();
    for_each_content(copies, &mut |content| {
        missing.insert(content);
    })?;
    for_each_content(rest, &mut |content| {
        missing.remove(&content);
    })?;
    if missing.is_empty() && !rest.is_empty() {
        parts.truncate(first);
    }
    Ok(())
}

/// What the records about keys say, hashed, wherever they stand.
fn for_each_content(parts: &[Part], told: &mut dyn FnMut(u128)) -> Result<()> {
    for part in parts {
        let limit = part.end.since(part.segment.base());
        walk(&part.segment, limit, &mut |found| {
            let Found::Record(record) = found else { return Ok(()) };
            if let (true, Ok(body)) = (record.kind.is_about_key(), record.body()) {
                told(Draft::copy(&record, &body).content());
            }
            Ok(())
        })?;
    }
    Ok(())
}

impl Survey {
    /// Whether everything is there, or can be listed as it is.
    pub(crate) fn has_lost_records(&self) -> bool {
        !self.lost.is_empty() || self.lacks_segment
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.damages.is_empty()
    }

    /// A gap is a loss where something durable stood: before a watermark, or in a file that was cut or isn't the store's.
    /// Else it is a torn tail.
    fn look_for_losses(&mut self, mut durable: Lsn) -> Result<()> {
        let mut gaps = Vec::new();
        let was_closed = self.manifest.as_ref().is_some_and(|manifest| manifest.clean.is_some());
        // Segments are filled one after the other.
        let mut may_hold_records = true;
        for part in &self.parts {
            let read = read(part, &mut durable)?;
            self.time = read.time.or(self.time);
            self.newest = self.newest.max(read.newest);
            let is_in_use = part.is_whole && read.gaps.iter().any(|gap| gap.rest.is_free());
            for gap in read.gaps {
                // Of a file that was cut, or that is another's, all is gone that may have stood in it, however far what
                // is left says that it was durable. A clean close says how far.
                let is_from_start = gap.from == SEGMENT_HEADER_BYTES as u64;
                let may_be_another = !part.is_whole && may_hold_records && !was_closed;
                let is_gone = match (&self.manifest, &gap.rest) {
                    (Some(_), Rest::Cut | Rest::CutWithin) => may_be_another,
                    (Some(_), _) => may_be_another && is_from_start,
                    // Nobody knows where a recovery shortened it, but that is where a record ends, and zeros follow.
                    (None, Rest::Zeros | Rest::Cut) => continue,
                    (None, Rest::CutWithin) => true,
                    (None, Rest::Records | Rest::Bytes) => false,
                };
                gaps.push((&part.segment, gap, is_gone));
            }
            may_hold_records = !is_in_use;
            // The next one was there before this one was ended.
            let next = part.segment.identity.ordinal.saturating_add(1);
            if read.is_ended && self.manifest.is_none() && !self.ordinals.contains(&next) {
                let path = part.segment.path.with_file_name(segment::file_name(next));
                self.damages.push(Error::corrupt(&path, 0, "a segment is missing:"));
                self.lacks_segment = true;
            }
        }
        for (segment, gap, is_gone) in gaps {
            let (start, end) = (segment.base().plus(gap.from), segment.base().plus(gap.to));
            if start < durable || is_gone {
                self.damages.push(Error::corrupt(&segment.path, gap.from, gap.why));
                self.lost.push(start..end);
                self.is_sound = false;
            }
        }
        self.lost.sort_by_key(|range| range.start);
        Ok(())
    }

    /// After a clean close nothing stands behind its end, or no opening believes the manifest. Records there are read as
    /// all others are, so nothing is lost.
    fn look_behind_clean_end(&mut self) -> Result<()> {
        let Some(end) = self.manifest.as_ref().and_then(|manifest| manifest.clean) else {
            return Ok(());
        };
        for part in self.parts.iter().filter(|part| part.end > end) {
            match check_nothing_behind(&part.segment, part.end, end) {
                Err(e) if e.kind() == ErrorKind::Corrupt => self.damages.push(e),
                checked => checked?,
            }
        }
        Ok(())
    }

    /// Shows all whole records about keys, in order, up to the torn tail.
    pub(crate) fn records(&self, visit: &mut dyn FnMut(&Record<'_>) -> Result<()>) -> Result<()> {
        for part in &self.parts {
            let limit = part.end.since(part.segment.base());
            let mut is_over = false;
            walk(&part.segment, limit, &mut |found| match found {
                Found::Record(record) if record.kind.is_about_key() && !is_over => visit(&record),
                Found::Gap { from, .. } => {
                    let start = part.segment.base().plus(from);
                    is_over |= !self.lost.iter().any(|lost| lost.contains(&start));
                    Ok(())
                }
                Found::Record(_) => Ok(()),
            })?;
        }
        Ok(())
    }

    /// Whether a new manifest is enough.
    pub(crate) fn can_be_relisted(&self) -> bool {
        self.is_sound
    }

    /// At least the end of every segment that is known of.
    pub(super) fn extent(&self) -> Lsn {
        let ends = self.parts.iter().map(|part| {
            let identity = part.segment.identity;
            identity.base.plus(identity.capacity)
        });
        let known = self.manifest.as_ref().map_or(Lsn::ZERO, |manifest| manifest.extent);
        ends.max().unwrap_or(Lsn::ZERO).max(known)
    }
}

pub(super) enum Found<'a> {
    Record(Record<'a>),
    /// No whole record stands from file offset `from` to `to`.
    Gap {
        from: u64,
        to: u64,
        why: Bad,
    },
}

/// Walks through a segment, and goes on behind damage.
pub(super) fn walk(
    segment: &Segment,
    limit: u64,
    told: &mut dyn FnMut(Found<'_>) -> Result<()>,
) -> Result<()> {
    let mut reader = Reader::new(segment, SEGMENT_HEADER_BYTES as u64, limit);
    let mut gap: Option<(u64, Bad)> = None;
    loop {
        let at = segment.offset(reader.lsn());
        let (record, is_end) = match reader.next()? {
            Step::End => (None, true),
            Step::Record(record, _) => {
                let is_end = record.kind == Kind::SegmentEnd;
                (Some(record), is_end)
            }
            Step::Bad(why) => {
                gap.get_or_insert((at, why));
                reader.skip();
                continue;
            }
        };
        if let Some((from, why)) = gap.take() {
            told(Found::Gap { from, to: at, why })?;
        }
        if let Some(record) = record {
            told(Found::Record(record))?;
        }
        if is_end {
            return Ok(());
        }
    }
}
