//! Finds what a damaged log still contains, without trusting the manifest.
//!
//! Promises: `survey` changes nothing, and reports all damage and every loss; a torn tail is neither. Only one
//! segment is open at a time. Never: decides that a loss is accepted, or writes.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::format::{Identity, SEGMENT_HEADER_BYTES};
use super::open::recovery::OLDER_BY_TOKENS;
use super::open::scan::{
    Unlisted, check_all_prepared, check_nothing_behind, look_at_unlisted, records_in,
};
use super::reader::{Flow, GO_ON, Met, SegmentReader, look_behind};
use super::segment::{self, Segment};
use crate::limits;
use crate::manifest::{self, Listed, Manifest, Secrets};
use crate::record::{self, Bad, Draft, HEADER_BYTES, Kind, Record, TimeField};
use crate::storage::{Access, Storage};
use crate::types::{Lsn, StoreId, StoreMillis};
use crate::{Error, ErrorKind, Result};

/// A log as it was found.
pub(crate) struct Survey<'s> {
    /// The manifest, if it is whole.
    pub(crate) manifest: Option<Manifest>,
    pub(crate) store: StoreId,
    pub(crate) secrets: Secrets,
    /// Damaged or missing parts, each with file and offset.
    pub(crate) damages: Vec<Error>,
    /// Stretches of the log that were durable once and are lost.
    pub(crate) lost: Vec<std::ops::Range<Lsn>>,
    /// A segment is missing or can't be read, and it is unknown which part of the log it was.
    lacks_segment: bool,
    /// The ordinals of all segment files.
    pub(super) ordinals: BTreeSet<u32>,
    /// Whether the files can stay as they are, once a manifest lists them.
    is_sound: bool,
    pub(super) parts: Vec<Part<'s>>,
    pub(super) time: Option<TimeField>,
    pub(super) newest: StoreMillis,
    /// After every token in the records read so far, and all tokens issued in addition to them.
    tokens_end: u64,
}

/// A segment that can be read, as far as `end`.
pub(super) struct Part<'s> {
    storage: &'s dyn Storage,
    store: StoreId,
    path: PathBuf,
    pub(super) identity: Identity,
    pub(super) end: Lsn,
    /// Whether header and length are as they were written. No torn write changes them.
    is_whole: bool,
    /// The place before it by its header, where nothing more is known.
    follows: Lsn,
}

impl Part<'_> {
    /// Opens its segment, to be read by calls and then dropped: a log has more segments than a process may have open
    /// files.
    pub(super) fn open(&self) -> Result<Segment> {
        let file = self.storage.open(&self.path, Access::Read);
        let file = file.map_err(|e| Error::io("opening", &self.path, e))?;
        Ok(Segment::unchecked(self.identity, self.store, self.path.clone(), file))
    }

    pub(super) fn base(&self) -> Lsn {
        self.identity.base
    }

    /// Walks through all of it; see [`SegmentReader::walk`].
    pub(super) fn walk(&self, told: impl FnMut(Met<'_>) -> Flow) -> Result<()> {
        let segment = self.open()?;
        SegmentReader::new(&segment, SEGMENT_HEADER_BYTES as u64, self.limit())?.walk(told)
    }

    /// Returns the file offset at which it ends.
    fn limit(&self) -> u64 {
        self.end.since(self.base())
    }
}

/// No whole record stands from file offset `from` to `to`.
struct Gap {
    from: u64,
    to: u64,
    why: Bad,
    rest: Rest,
}

/// What follows a place without a whole record.
enum Rest {
    /// Whole records.
    Records,
    /// Zeros to the segment's end, as they are written ahead of records.
    Zeros,
    /// Nothing: the file is shorter than its segment, and ends with a record or with zeros too few for one.
    Cut,
    /// Other bytes, and the file is shorter than its segment.
    CutWithin,
    /// Other bytes, to the segment's end.
    Bytes,
}

impl Rest {
    /// Whether the next record would begin here.
    fn is_free(&self) -> bool {
        matches!(self, Rest::Zeros | Rest::Cut)
    }
}

/// How far the log was durable, segment by segment, by the watermarks in its records.
struct Watermarks {
    /// Where each segment begins and ends.
    bounds: Vec<(Lsn, Lsn)>,
    /// The greatest one in each.
    durable: Vec<Lsn>,
    /// Segments after which another one is missing.
    missing: BTreeSet<usize>,
}

impl Watermarks {
    fn of(parts: &[Part<'_>]) -> Self {
        let bounds: Vec<_> = parts.iter().map(|part| (part.base(), part.end)).collect();
        let durable = bounds.iter().map(|(base, _)| *base).collect();
        Watermarks { bounds, durable, missing: BTreeSet::new() }
    }

    /// Adds the place before a segment by its header, and whether the segment `has_records`. A place before the first
    /// segment means nothing: those segments were reclaimed.
    fn follow(&mut self, index: usize, follows: Lsn, has_records: bool, ended: &[bool]) {
        let before = self.bounds.partition_point(|(base, _)| *base < follows);
        let Some(before) = before.checked_sub(1).filter(|before| *before < index) else { return };
        let Some((base, end)) = self.bounds.get(before).copied() else { return };
        let is_ended = ended.get(before) == Some(&true);
        if follows > end {
            self.missing.insert(before);
        } else if follows > base.plus(SEGMENT_HEADER_BYTES as u64) {
            // A recovery cut the log there, and everything before it was durable.
            self.place(follows);
        } else if has_records && !is_ended {
            // The log continued in it, so the segment before was ended, and synced as a whole.
            self.place(end);
        }
    }

    fn place(&mut self, watermark: Lsn) {
        let before = self.bounds.partition_point(|(base, _)| *base < watermark);
        // Before the first segment: reclaimed.
        let Some(index) = before.checked_sub(1) else { return };
        let Some((_, end)) = self.bounds.get(index) else { return };
        // The next segment's header follows its end, and may have been dropped unused.
        if watermark > end.plus(SEGMENT_HEADER_BYTES as u64) {
            self.missing.insert(index);
        } else if let (true, Some(durable)) = (watermark <= *end, self.durable.get_mut(index)) {
            *durable = watermark.max(*durable);
        }
    }
}

/// The result of reading one segment.
#[derive(Default)]
struct Read {
    gaps: Vec<Gap>,
    is_ended: bool,
    /// Whether the file is shorter than its segment.
    is_short: bool,
    time: Option<TimeField>,
    newest: StoreMillis,
    /// After every token in its records, and all tokens issued in addition to them.
    tokens_end: u64,
}

/// Reads a segment, and reports each record's watermark, before which everything was durable.
fn read(part: &Part<'_>, told: &mut dyn FnMut(Lsn)) -> Result<Read> {
    let (segment, limit) = (&part.open()?, part.limit());
    let mut read = Read::default();
    let mut bad = Vec::new();
    let mut reader = SegmentReader::new(segment, SEGMENT_HEADER_BYTES as u64, limit)?;
    reader.walk(|met| {
        match met {
            Met::Record(record, _) => {
                told(record.watermark);
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
                    // Includes the tokens that the same open issued in addition, of which no record may be left.
                    let end = match body.token {
                        // Only a hostile program writes a greater token than is ever issued; the extent is limited to
                        // issued ones.
                        Some(token) => token.get().saturating_add(1),
                        None => segment.identity.listed().end.token(body.ahead).get(),
                    };
                    read.tokens_end = read.tokens_end.max(end);
                }
            }
            Met::Damage { .. } => {}
            Met::Gap { from, to, why } => bad.push((from, to, why)),
        }
        GO_ON
    })?;
    let file_end = segment.file()?.len().map_err(|e| Error::io("reading", &segment.path, e))?;
    read.is_short = file_end < segment.identity.capacity;
    let Some((first, _, _)) = bad.first() else { return Ok(read) };
    let behind = look_behind(segment, *first, limit)?;
    told(behind.watermark);
    for (from, to, why) in bad {
        let is_in_file = to <= file_end;
        let rest = match behind.bytes_end <= from {
            _ if to < limit => Rest::Records,
            true if is_in_file || from + HEADER_BYTES as u64 <= file_end => Rest::Zeros,
            true => Rest::Cut,
            false if is_in_file => Rest::Bytes,
            false => Rest::CutWithin,
        };
        read.gaps.push(Gap { from, to, why, rest });
    }
    Ok(read)
}

/// Reads everything in `dir`, which is locked.
pub(crate) fn survey<'s>(storage: &'s dyn Storage, dir: &Path) -> Result<Survey<'s>> {
    let log_dir = dir.join("log");
    check_all_prepared(storage, dir)?;
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
    let (mut is_sound, mut lacks_segment, mut left_out) = (true, false, None);
    let (store, secrets, parts) = match &manifest {
        Some(manifest) => {
            let mut parts = Vec::new();
            for listed in &manifest.segments {
                match look_at_listed(storage, &log_dir, listed, manifest.store) {
                    Ok((part, header)) => {
                        is_sound &= part.is_whole;
                        damages.extend(header.err());
                        parts.push(part);
                    }
                    Err(e) if e.kind() == ErrorKind::Corrupt => {
                        is_sound = false;
                        damages.push(e);
                        // Nothing was ever written after a clean end.
                        let end = manifest.clean.map_or(listed.end, |end| end.min(listed.end));
                        if listed.base.plus(SEGMENT_HEADER_BYTES as u64) < end {
                            lost.push(listed.base..end);
                        }
                    }
                    Err(e) => return Err(e),
                }
            }
            (manifest.store, manifest.secrets, parts)
        }
        None => {
            let found = find_segments(storage, &log_dir, &mut damages)?;
            (lacks_segment, left_out) = (found.lacks_segment, found.left_out);
            is_sound = !found.lacks_segment && !found.is_misnamed;
            (found.store, found.secrets, found.parts)
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
        tokens_end: 0,
    };
    match survey.manifest {
        Some(_) => survey.look_for_losses(durable)?,
        None => survey.look_for_losses_unlisted(left_out.as_ref())?,
    }
    survey.look_behind_clean_end()?;
    survey.look_for_newer_tokens(dir)?;
    Ok(survey)
}

/// Checks segments that a manifest doesn't list and that no repair left. They are damage, because an open refuses
/// them. If their records show that the manifest is older than they are, it can't be used: `None`.
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

/// Reads a listed segment by its item in the manifest, whatever its header says.
fn look_at_listed<'s>(
    storage: &'s dyn Storage,
    log_dir: &Path,
    listed: &Listed,
    store: StoreId,
) -> Result<(Part<'s>, Result<()>)> {
    let path = log_dir.join(segment::file_name(listed.ordinal));
    match storage.open(&path, Access::Read) {
        Ok(_) => {}
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
            return Err(Error::corrupt(&path, 0, "a listed segment is missing:").because(e));
        }
        Err(e) => return Err(Error::io("opening", &path, e)),
    }
    let header = Segment::open(storage, log_dir, listed, store, Access::Read).map(drop);
    let (identity, is_whole) = (Identity::of(listed), header.is_ok());
    let (end, follows) = (listed.end, Lsn::ZERO);
    Ok((Part { storage, store, path, identity, end, is_whole, follows }, header))
}

/// The segments by their own headers, without a manifest.
struct Headers<'s> {
    store: StoreId,
    secrets: Secrets,
    /// In the order of the log.
    parts: Vec<Part<'s>>,
    /// A file can't be read as a segment, or replaced another one.
    lacks_segment: bool,
    /// All exist, but not each under its own name.
    is_misnamed: bool,
    left_out: Option<LeftOut>,
}

/// Segments at the end that hold nothing but copies, or nothing.
struct LeftOut {
    /// How far the log was durable, by their records.
    watermark: Lsn,
    /// The base of the last one.
    base: Lsn,
}

fn find_segments<'s>(
    storage: &'s dyn Storage,
    log_dir: &Path,
    damages: &mut Vec<Error>,
) -> Result<Headers<'s>> {
    let entries = storage.list(log_dir).map_err(|e| Error::io("listing", log_dir, e))?;
    let (mut found, mut parts) = (None, Vec::new());
    let (known, mut misnamed) = (damages.len(), Vec::new());
    for entry in entries {
        let Some(ordinal) = segment::ordinal_of(&entry.name) else { continue };
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
            Ok(segment::SegmentHeader { store, secrets, identity, follows }) => {
                if *found.get_or_insert((store, secrets)) != (store, secrets) {
                    damages.push(Error::corrupt(&path, 0, "a segment of another store"));
                    continue;
                }
                if identity.ordinal != ordinal {
                    misnamed.push(Error::corrupt(&path, 0, "a segment under another's name"));
                }
                let end = identity.listed().end;
                parts.push(Part { storage, store, path, identity, end, is_whole: true, follows });
            }
            Err(e) if e.kind() == ErrorKind::Corrupt => damages.push(e),
            Err(e) => return Err(e),
        }
    }
    let (store, secrets) = found.ok_or_else(|| {
        Error::corrupt(log_dir, 0, "no segment whose header is whole, and no manifest")
    })?;
    parts.sort_by_key(Part::base);
    parts.dedup_by(|part, before| {
        let is_twice = part.base() == before.base();
        if is_twice {
            damages.push(Error::corrupt(&part.path, 0, "a segment that is there twice"));
        }
        is_twice
    });
    let lacks_segment = damages.len() > known;
    let is_misnamed = !misnamed.is_empty();
    damages.append(&mut misnamed);
    let left_out = leave_out_copies(&mut parts)?;
    Ok(Headers { store, secrets, parts, lacks_segment, is_misnamed, left_out })
}

/// Leaves out segments of copies. A recovery or a repair that ended before its switch leaves copies, perhaps of the
/// oldest records, after newer records of the same keys. They are recognized by their originals, all of which exist.
fn leave_out_copies(parts: &mut Vec<Part<'_>>) -> Result<Option<LeftOut>> {
    let mut first = parts.len();
    while let Some(part) = first.checked_sub(1).and_then(|last| parts.get(last)) {
        if matches!(records_in(&part.open()?)?, Unlisted::Originals) {
            break;
        }
        first -= 1;
    }
    let (rest, copies) = parts.split_at(first);
    let Some(last) = copies.last().filter(|_| !rest.is_empty()) else { return Ok(None) };
    let base = last.base();
    let first_base = copies.first().map_or(base, |first| first.base());
    let (mut missing, mut watermark) = (BTreeSet::new(), Lsn::ZERO);
    for_each_content(copies, &mut |content, covered| {
        missing.insert(content);
        // The watermarks of a repair's copies refer to the copies.
        if covered < first_base {
            watermark = watermark.max(covered);
        }
    })?;
    for_each_content(rest, &mut |content, _| {
        missing.remove(&content);
    })?;
    if !missing.is_empty() {
        return Ok(None);
    }
    parts.truncate(first);
    Ok(Some(LeftOut { watermark, base }))
}

/// Reports a hash of the contents of each record about a key, independent of its place, and its watermark.
fn for_each_content(parts: &[Part<'_>], told: &mut dyn FnMut(u128, Lsn)) -> Result<()> {
    for part in parts {
        part.walk(|met| {
            let Met::Record(record, _) = met else { return GO_ON };
            if let (true, Ok(body)) = (record.kind.is_about_key(), record.body()) {
                told(Draft::copy(&record, &body).content(), record.watermark);
            }
            GO_ON
        })?;
    }
    Ok(())
}

impl Survey<'_> {
    /// Whether records or a segment are lost.
    pub(crate) fn has_lost_records(&self) -> bool {
        !self.lost.is_empty() || self.lacks_segment
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.damages.is_empty()
    }

    /// Finds losses. A gap is a loss where something durable was: before a watermark, or in a file that was cut or
    /// isn't the store's. Otherwise it is a torn tail.
    fn look_for_losses(&mut self, mut durable: Lsn) -> Result<()> {
        let mut gaps = Vec::new();
        let was_closed = self.manifest.as_ref().is_some_and(|manifest| manifest.clean.is_some());
        // Segments are filled one after the other.
        let mut may_hold_records = true;
        for index in 0..self.parts.len() {
            let read = self.read(index, &mut |watermark| durable = durable.max(watermark))?;
            let is_whole = self.parts.get(index).is_some_and(|part| part.is_whole);
            let is_in_use = is_whole && read.gaps.iter().any(|gap| gap.rest.is_free());
            // In a file that was cut or replaced, everything that it may have held is lost, whatever the remaining
            // watermarks say. A clean close says how far it was filled.
            let may_be_another = !is_whole && may_hold_records && !was_closed;
            for gap in read.gaps {
                let is_from_start = gap.from == SEGMENT_HEADER_BYTES as u64;
                let is_cut = matches!(gap.rest, Rest::Cut | Rest::CutWithin);
                gaps.push((index, gap, may_be_another && (is_from_start || is_cut)));
            }
            may_hold_records = !is_in_use;
        }
        for (index, gap, is_gone) in gaps {
            self.judge(index, &gap, durable, is_gone)?;
        }
        self.lost.sort_by_key(|range| range.start);
        Ok(())
    }

    /// The same without a manifest. It is unknown where a recovery cut a segment and continued in another, so each
    /// watermark concerns the segment in which it lies, and the log before it: that must exist up to the watermark.
    fn look_for_losses_unlisted(&mut self, left_out: Option<&LeftOut>) -> Result<()> {
        let mut watermarks = Watermarks::of(&self.parts);
        left_out.iter().for_each(|left_out| watermarks.place(left_out.watermark));
        let mut gaps = Vec::new();
        let (mut is_followed, mut is_short) = (false, false);
        // The end of the segment before, if that was ended.
        let mut ended_before = None;
        let (mut ended, mut used) = (Vec::new(), Vec::new());
        for (index, (base, end)) in watermarks.bounds.clone().into_iter().enumerate() {
            let mut has_records = false;
            let read = self.read(index, &mut |watermark| {
                has_records |= watermark > Lsn::ZERO;
                watermarks.place(watermark);
            })?;
            // The segment before was synced as a whole before anything was written after it.
            if has_records && ended_before == Some(base) {
                watermarks.place(base);
            }
            ended_before = read.is_ended.then_some(end);
            ended.push(read.is_ended);
            used.push(has_records);
            // After a recovery cut a segment, the log continues further on than the next prepared segment would
            // begin. After an ended one it continues there.
            let is_cut = read.gaps.iter().any(|gap| matches!(gap.rest, Rest::Cut));
            let is_there = left_out.is_some_and(|left_out| !is_cut || left_out.base > end);
            is_followed = (read.is_ended || is_cut) && !is_there;
            is_short = read.is_short;
            gaps.extend(read.gaps.into_iter().map(|gap| (index, gap)));
        }
        let follows: Vec<_> = self.parts.iter().map(|part| part.follows).collect();
        for (index, (part, has_records)) in self.parts.iter().zip(used).enumerate() {
            // A segment that a recovery left out of the log, and whose file still exists, says nothing about the log.
            let mut rest = follows.iter().skip(index + 1);
            if rest.all(|next| *next == Lsn::ZERO || *next > part.base()) {
                watermarks.follow(index, part.follows, has_records, &ended);
            }
        }
        let Watermarks { durable, mut missing, .. } = watermarks;
        missing.extend(self.parts.len().checked_sub(1).filter(|_| is_followed));
        // The log continues in the last one: that must have its full length.
        self.is_sound &= missing.is_empty() && !is_short;
        self.lacks_segment |= !missing.is_empty();
        for (index, gap) in gaps {
            // It cuts after the last record, never within one.
            let is_gone = matches!(gap.rest, Rest::CutWithin);
            let durable = durable.get(index).copied().ok_or_else(not_found)?;
            self.judge(index, &gap, durable, is_gone)?;
        }
        for part in missing.iter().filter_map(|index| self.parts.get(*index)) {
            let next = part.identity.ordinal + 1;
            let path = part.path.with_file_name(segment::file_name(next));
            self.damages.push(Error::corrupt(&path, 0, "a segment is missing:"));
        }
        Ok(())
    }

    /// Reads a segment, and reports its watermarks.
    fn read(&mut self, index: usize, told: &mut dyn FnMut(Lsn)) -> Result<Read> {
        let read = read(self.parts.get(index).ok_or_else(not_found)?, told)?;
        self.time = read.time.or(self.time);
        self.newest = self.newest.max(read.newest);
        self.tokens_end = self.tokens_end.max(read.tokens_end);
        Ok(read)
    }

    fn judge(&mut self, index: usize, gap: &Gap, durable: Lsn, is_gone: bool) -> Result<()> {
        let part = self.parts.get(index).ok_or_else(not_found)?;
        let (start, end) = (part.base().plus(gap.from), part.base().plus(gap.to));
        if start < durable || is_gone {
            self.damages.push(Error::corrupt(&part.path, gap.from, gap.why));
            self.lost.push(start..end);
            self.is_sound = false;
        }
        Ok(())
    }

    /// Checks the bytes after a clean end: an open accepts the manifest only if there are none. Records there are
    /// read like all others, so nothing is lost.
    fn look_behind_clean_end(&mut self) -> Result<()> {
        let Some(end) = self.manifest.as_ref().and_then(|manifest| manifest.clean) else {
            return Ok(());
        };
        for part in self.parts.iter().filter(|part| part.end > end) {
            match check_nothing_behind(&part.open()?, part.end, end) {
                Err(e) if e.kind() == ErrorKind::Corrupt => self.damages.push(e),
                checked => checked?,
            }
        }
        Ok(())
    }

    /// Checks for an older manifest that lists the same segments: an open would refuse it, and a newer one suffices.
    fn look_for_newer_tokens(&mut self, dir: &Path) -> Result<()> {
        let Some(manifest) = &self.manifest else { return Ok(()) };
        if self.tokens_end > manifest.check_tokens()? {
            self.damages.push(Error::corrupt(&manifest::path(dir), 0, OLDER_BY_TOKENS));
        }
        Ok(())
    }

    /// Passes all whole records about keys to `visit`, in order, up to the torn tail.
    pub(crate) fn records(&self, visit: &mut dyn FnMut(&Record<'_>) -> Result<()>) -> Result<()> {
        for part in &self.parts {
            let mut is_over = false;
            part.walk(|met| {
                match met {
                    Met::Record(record, _) if record.kind.is_about_key() && !is_over => {
                        visit(&record)?;
                    }
                    Met::Gap { from, .. } => {
                        let start = part.base().plus(from);
                        is_over |= !self.lost.iter().any(|lost| lost.contains(&start));
                    }
                    _ => {}
                }
                GO_ON
            })?;
        }
        Ok(())
    }

    /// Whether a new manifest suffices.
    pub(crate) fn can_be_relisted(&self) -> bool {
        self.is_sound
    }

    /// Returns a position after every known LSN and token, and after the tokens that their opens may have issued in
    /// addition.
    pub(super) fn extent(&self) -> Lsn {
        let ends = self.parts.iter().map(|part| part.identity.listed().end);
        let end = ends.fold(Lsn::ZERO, Lsn::max);
        let known = self.manifest.as_ref().map(|known| known.extent.token(known.ahead).get());
        let tokens = known.map_or(self.tokens_end, |known| known.max(self.tokens_end));
        let tokens = tokens.min(limits::LSN_MAX);
        end.max(Lsn::new(tokens.next_multiple_of(record::ALIGN as u64)))
    }
}

/// The error of a segment without a survey result, which is a bug: each segment has one.
#[cold]
fn not_found() -> Error {
    Error::bug(Path::new("log"), "a segment was to be judged that was not surveyed")
}
