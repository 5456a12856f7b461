//! From files on disk to a log that can be read.
//!
//! Promises: what was durable is found or its loss reported; only a torn tail that no watermark covers is
//! cut, and every cut is reported; a crash anywhere leaves a state from which the same result is reached.
//! Never: writes before it has decided; and after a clean close nothing at all before the first write.
//!
//! The steps are numbered as in `docs/durability.md`, "Opening".

use std::collections::VecDeque;
use std::fmt::Display;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::gate::{Gate, disk::GatedStorage};
use crate::clock::{StoreClock, TimeNote};
use crate::limits;
use crate::log::commit::{CommitQueue, Placed};
use crate::log::format::SEGMENT_HEADER_BYTES;
use crate::log::pool::Pool;
use crate::log::reader::{GO_ON, Met, Passed, Reader, look_behind};
use crate::log::room::{Keeper, Reserves};
use crate::log::segment::{self, Segment, Spare};
use crate::log::{Log, LogWriter, Seams, Sizes, Tail};
use crate::manifest::{self, Manifest, Switch};
use crate::record::{Bad, Body, Kind, Record, TimeField};
use crate::storage::{self, Access, Storage};
use crate::sync::{AtomicU64, Mutex};
use crate::types::{Lsn, StoreMillis, in_memory};
use crate::{Error, Result};

/// What an opening found. Kept for `stats`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// The last owner closed the store.
    pub(crate) was_clean: bool,
    /// Records read.
    pub(crate) records: u64,
    /// What was cut off: a tail that no watermark covered.
    pub(crate) cut: Option<CutTail>,
    /// Records of the uncovered tail, made durable anew.
    pub(crate) copied: u64,
}

/// A torn tail: bytes behind the last record that were never acknowledged at `Sync`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CutTail {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// Records behind the cut that were whole: devices persist out of order.
    pub(crate) whole_records: u64,
}

/// How the log goes on, once something is to be written.
#[derive(Debug)]
pub(in crate::log) enum Plan {
    /// At the end that a clean close left.
    Continue,
    /// In a new segment; the old list ends at `covered`, and the records of the suffix are copied.
    Fork { covered: Lsn, suffix: Vec<Uncovered> },
}

/// Shown every record about a key, in order; may ask for earlier ones by their LSN.
pub(crate) type Visit<'a> = dyn FnMut(&Record<'_>, &Earlier<'_>) -> Result<()> + 'a;

/// The records before the one that is visited.
pub(crate) struct Earlier<'s> {
    segments: &'s [Arc<Segment>],
    /// Most that are asked for were just passed: the claim before its ending.
    passed: Passed<'s>,
}

impl Earlier<'_> {
    pub(crate) fn read<T>(
        &self,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        if let Some(record) = self.passed.record(lsn) {
            return use_of(record);
        }
        let after = self.segments.partition_point(|segment| segment.base() <= lsn);
        match after.checked_sub(1).and_then(|index| self.segments.get(index)) {
            Some(segment) => segment.read(lsn, use_of),
            None => {
                Err(Error::corrupt(Path::new("log"), 0, format_args!("no segment holds lsn {lsn}")))
            }
        }
    }
}

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
struct Scan {
    /// End of the good records.
    end: Lsn,
    /// Index of the segment that `end` lies in.
    last: usize,
    bad: Option<Bad>,
    /// The greatest watermark met in good records.
    watermark: Lsn,
    records: u64,
    /// Good records that no watermark seen so far covers.
    uncovered: VecDeque<Uncovered>,
    time: Option<TimeField>,
    newest: StoreMillis,
}

/// A record that no watermark seen so far covers.
#[derive(Clone, Copy, Debug)]
pub(in crate::log) struct Uncovered {
    pub(in crate::log) lsn: Lsn,
    pub(in crate::log) len: u64,
    is_about_key: bool,
}

impl Scan {
    /// Takes note of a greater watermark. `false` if it splits a record: no writer made it, and a log that
    /// ended there would end in half a record.
    fn cover(&mut self, watermark: Lsn) -> bool {
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

/// Opens the log in `dir`, which is locked. `visit` is shown every record about a key that the index doesn't cover,
/// in order. From here on the disk is reached through the log's gate alone.
pub(crate) fn open(
    mut seams: Seams,
    dir: &Path,
    sizes: Sizes,
    manifest: Manifest,
    visit: &mut Visit<'_>,
) -> Result<(Log, Report)> {
    let gate = Arc::new(Gate::new());
    seams.storage = Arc::new(GatedStorage::new(seams.storage, Arc::clone(&gate)));
    let storage = &*seams.storage;
    let log_dir = dir.join("log");
    // 1. What is listed is there, and is what the manifest says it is.
    let pool = Pool::new(Arc::clone(&seams.storage), sizes.map);
    let mut segments = Vec::with_capacity(manifest.segments.len());
    for listed in &manifest.segments {
        let segment = Segment::open(storage, &log_dir, listed, manifest.store, Access::Read)?;
        check_secrets(&segment, &manifest)?;
        segments.push(Arc::new(segment.pooled(&pool, listed.end).unwrap_or(segment)));
    }
    // 2. What isn't listed is a leftover, or proof that the manifest is older than the log.
    let (spares, spare_number) = check_unlisted(storage, &log_dir, &manifest, &sizes)?;
    check_all_prepared(storage, dir)?;
    // 3. Records are read up to the first bad one.
    let mut scan = scan(&segments, &manifest, visit)?;
    // 4. Is that the end, or a loss?
    let (plan, mut report) = match manifest.clean {
        Some(end) => (
            check_clean(&segments, &manifest, &scan, end)?,
            Report { was_clean: true, ..Report::default() },
        ),
        None => judge_tail(&segments, &manifest, &mut scan)?,
    };
    report.records = scan.records;
    // 5. Store time goes on from the newest note.
    let note = newest_note(manifest.time, scan.time);
    let store_clock =
        StoreClock::open(Some(&note), scan.newest, limits::TIME_OFF_MILLIS_MAX, &*seams.clock);
    // 6. A log that can be read; to write it, `begin_writing`.
    if let Plan::Continue = plan {
        // In these it will be written.
        let ahead = segments.iter_mut().zip(&manifest.segments).skip(scan.last).take(2);
        for (segment, listed) in ahead {
            let open = Segment::open(storage, &log_dir, listed, manifest.store, Access::ReadWrite);
            *segment = Arc::new(open?);
        }
    }
    let active = segments.get(scan.last).map_or_else(
        || Err(Error::corrupt(&manifest::path(dir), 0, "a manifest without segments")),
        |segment| Ok(Arc::clone(segment)),
    )?;
    let next = match &plan {
        // One that is too small for the longest record, from an opening with other sizes, is not used.
        Plan::Continue => segments
            .get(scan.last + 1)
            .filter(|next| next.identity.capacity >= sizes.segment_bytes_least())
            .cloned(),
        Plan::Fork { .. } => None,
    };
    let mut unsettled_from = Lsn::ZERO;
    if let Plan::Fork { covered, suffix, .. } = &plan {
        if !suffix.is_empty() {
            unsettled_from = *covered;
            gate.leave_unsettled();
        }
    }
    let log = Log {
        dir: dir.to_path_buf(),
        gate: Arc::clone(&gate),
        store: manifest.store,
        tail: Mutex::new(Tail {
            at: active.offset(scan.end),
            next,
            pieces: VecDeque::new(),
            buffered: 0,
            free: Vec::new(),
            round: 0,
            room: Reserves::default(),
            census: crate::log::Census::default(),
            marked: scan.end,
            keyed_end: Lsn::ZERO,
            last: Placed { lsn: Lsn::ZERO, round: 0 },
            records: 0,
            last_time_note: note,
            active: Arc::clone(&active),
        }),
        writer: Mutex::new(LogWriter::of(active)),
        queue: CommitQueue::new(scan.end, gate),
        keeper: Mutex::new(Keeper {
            switch: Switch::new(Arc::clone(&seams.storage), dir),
            spare_number,
            spares,
            leaving: Vec::new(),
            may_lack_leaving: false,
            peak: 0,
            peak_since: 0,
            plan,
            manifest,
        }),
        segments: Mutex::new(Arc::new(segments)),
        pool,
        unsettled_from,
        ahead: AtomicU64::new(0),
        store_clock,
        full: Mutex::new(None),
        upkeep: crate::log::upkeep::Upkeep::new(),
        growth: crate::log::growth::Growth::new(),
        index_bytes: AtomicU64::new(0),
        syncs: Arc::new(AtomicU64::new(0)),
        sync_nanos: AtomicU64::new(0),
        bytes_written: AtomicU64::new(0),
        sizes,
        seams,
    };
    Ok((log, report))
}

fn check_secrets(segment: &Segment, manifest: &Manifest) -> Result<()> {
    let found = segment::read_header(&*segment.file()?, &segment.path)?;
    let said = (found.store, found.secrets, found.identity);
    if said != (manifest.store, manifest.secrets, segment.identity) {
        return Err(Error::corrupt(&segment.path, 0, "a segment header unlike the manifest"));
    }
    Ok(())
}

/// The spares that can be used, oldest first, and the greatest number of any. A file that no list names and
/// that holds originals is Corrupt.
fn check_unlisted(
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

fn scan(segments: &[Arc<Segment>], manifest: &Manifest, visit: &mut Visit<'_>) -> Result<Scan> {
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

/// Shows every record about a key from `from` to `to`. A bad one there is damage: it was durable.
pub(in crate::log) fn walk(
    segments: &[Arc<Segment>],
    listed: &[manifest::Listed],
    from: Lsn,
    to: Lsn,
    reopen: &dyn Fn(&manifest::Listed) -> Result<Segment>,
    visit: &mut Visit<'_>,
) -> Result<()> {
    for (index, segment) in segments.iter().enumerate() {
        let Some(item) = listed.iter().find(|item| item.ordinal == segment.identity.ordinal) else {
            continue;
        };
        let (base, end) = (item.base, item.end.min(to));
        if end <= from || end <= base {
            continue;
        }
        let segment = reopen(item)?;
        let start = segment.offset(from.max(segment.identity.start()));
        let mut reader = Reader::new(&segment, start, end.since(base))?;
        reader.walk(|met| {
            match met {
                Met::Record(record, passed) if record.kind.is_about_key() => {
                    let earlier = Earlier { segments: segments.split_at(index + 1).0, passed };
                    visit(&record, &earlier)?;
                }
                Met::Damage { at, why } => return Err(Error::corrupt(&segment.path, at, why)),
                _ => {}
            }
            GO_ON
        })?;
    }
    Ok(())
}

const SPLIT: &str = "a watermark that splits a record";

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

/// After a clean close: everything up to `end` must be there, and nothing behind it.
fn check_clean(
    segments: &[Arc<Segment>],
    manifest: &Manifest,
    scan: &Scan,
    end: Lsn,
) -> Result<Plan> {
    let path = manifest::path(
        segments.first().and_then(|s| s.path.parent()?.parent()).unwrap_or(Path::new("")),
    );
    let Some(segment) = segments.get(scan.last) else {
        return Err(Error::corrupt(&path, 0, "a manifest without segments"));
    };
    if let Some(bad) = scan.bad {
        return Err(Error::corrupt(&segment.path, segment.offset(scan.end), bad));
    }
    if scan.end != end {
        return Err(Error::corrupt(
            &segment.path,
            segment.offset(scan.end),
            "the log ends before its clean end",
        ));
    }
    // The one ahead is empty; any other would have been listed by a later manifest than this one.
    for (segment, listed) in segments.iter().zip(&manifest.segments).skip(scan.last) {
        check_nothing_behind(segment, listed.end, end)?;
    }
    Ok(Plan::Continue)
}

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

/// After anything but a clean close: is the first bad record a torn tail, or damage to what was durable?
fn judge_tail(
    segments: &[Arc<Segment>],
    manifest: &Manifest,
    scan: &mut Scan,
) -> Result<(Plan, Report)> {
    let Some(segment) = segments.get(scan.last) else {
        return Err(Error::corrupt(Path::new("MANIFEST"), 0, "a manifest without segments"));
    };
    let offset = segment.offset(scan.end);
    let mut watermark = scan.watermark;
    let mut cut = CutTail { path: segment.path.clone(), offset, bytes: 0, whole_records: 0 };
    let behind = segments.iter().zip(&manifest.segments).enumerate().skip(scan.last);
    for (index, (segment, listed)) in behind {
        let from = if index == scan.last { offset } else { SEGMENT_HEADER_BYTES as u64 };
        let found = look_behind(segment, from, listed.end.since(listed.base))?;
        watermark = watermark.max(found.watermark);
        cut.bytes += found.bytes_end - from;
        cut.whole_records += found.records;
    }
    if watermark > scan.end {
        let what = scan.bad.map_or_else(|| "a record missing".to_owned(), |bad| bad.to_string());
        let message = format!("{what} below lsn {watermark}, up to which the log was durable,");
        return Err(Error::corrupt(&segment.path, offset, message));
    }
    if !scan.cover(watermark) {
        return Err(Error::corrupt(&segment.path, offset, SPLIT));
    }
    let suffix: Vec<_> =
        scan.uncovered.iter().filter(|record| record.is_about_key).copied().collect();
    let report = Report {
        copied: suffix.len() as u64,
        cut: Some(cut).filter(|cut| cut.bytes > 0),
        ..Report::default()
    };
    Ok((Plan::Fork { covered: watermark, suffix }, report))
}

/// The newer of the manifest's clocks and the log's.
fn newest_note(manifest: TimeField, log: Option<TimeField>) -> TimeNote {
    match log {
        Some(log) if log.store() > manifest.store() => log.into(),
        _ => manifest.into(),
    }
}

impl From<TimeField> for TimeNote {
    fn from(field: TimeField) -> Self {
        TimeNote {
            boot_id: Some(field.boot_id).filter(|id| *id != [0; 16]),
            boot_millis: field.boot_millis.get(),
            store: field.store(),
            wall: field.wall(),
        }
    }
}

impl From<TimeNote> for TimeField {
    fn from(note: TimeNote) -> Self {
        TimeField {
            // A system that has none says zeros.
            boot_id: note.boot_id.unwrap_or_default(),
            boot_millis: note.boot_millis.into(),
            store_millis: note.store.0.into(),
            wall_millis: note.wall.0.into(),
        }
    }
}
