//! From files on disk to a live log, and back to closed files.
//!
//! Promises: what was durable is found or its loss reported; only a torn tail that no watermark covers is
//! cut, and every cut is reported; a crash anywhere leaves a state from which the same result is reached.
//! Never: writes before it has decided; and after a clean close nothing at all before the first write.
//!
//! The steps are numbered as in `docs/durability.md`, "Opening".

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::commit::{CommitQueue, Placed};
use super::format::{Identity, SEGMENT_HEADER_BYTES};
use super::reader::{Reader, Step, look_behind};
use super::room::{Keeper, Reserves, Room};
use super::segment::{self, Segment, Spare};
use super::{Log, Seams, Sizes, Tail, Writer};
use crate::clock::{StoreClock, TimeNote};
use crate::limits;
use crate::manifest::{self, Listed, Manifest, Opener, Secrets, Switch};
use crate::record::{self, Bad, Draft, Kind, Record, TimeField};
use crate::storage::{self, Access, Storage};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::types::{Lsn, StoreId, StoreMillis};
use crate::{Error, ErrorKind, Result};

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
pub(super) enum Plan {
    /// At the end that a clean close left.
    Continue,
    /// In a new segment; the old list ends at `covered`, and the records of the suffix are copied.
    Fork { covered: Lsn, suffix: Vec<Lsn>, suffix_bytes: u64 },
}

/// Shown every record about a key, in order; may ask for earlier ones by their LSN.
pub(crate) type Visit<'a> = dyn FnMut(&Record<'_>, &Earlier<'_>) -> Result<()> + 'a;

/// The records before the one that is visited.
pub(crate) struct Earlier<'s> {
    segments: &'s [Arc<Segment>],
}

impl Earlier<'_> {
    pub(crate) fn read<T>(
        &self,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        let after = self.segments.partition_point(|segment| segment.base() <= lsn);
        match after.checked_sub(1).and_then(|index| self.segments.get(index)) {
            // The one behind it exists, so this one is full.
            Some(segment) => segment.read(lsn, after < self.segments.len(), use_of),
            None => {
                Err(Error::corrupt(Path::new("log"), 0, format_args!("no segment holds lsn {lsn}")))
            }
        }
    }
}

/// Told of a record that a recovery moved: its old place, and the record at its new one.
pub(crate) type Remap<'a> = dyn FnMut(Lsn, &Record<'_>) + 'a;

impl Seams {
    pub(super) fn draw<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes).map_err(|e| {
            Error::new(ErrorKind::Io, "the system gives no random bytes").because(e)
        })?;
        Ok(bytes)
    }

    pub(super) fn draw_u64(&self) -> Result<u64> {
        self.draw().map(u64::from_le_bytes)
    }

    fn opener(&self) -> Opener {
        Opener { pid: std::process::id(), since: self.clock.wall() }
    }
}

/// Makes an empty store in `dir`, which exists, is locked, and holds nothing of value.
///
/// The order is the rule of birth: `log/` and the first segment, then the manifest, whose rename is the birth.
pub(crate) fn create(seams: &Seams, dir: &Path, sizes: &Sizes) -> Result<()> {
    let storage = &*seams.storage;
    let log_dir = dir.join("log");
    match storage.create_dir(&log_dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("creating", &log_dir, e));
        }
        _ => storage.sync_dir(dir).map_err(|e| Error::io("syncing", dir, e))?,
    }
    let store = StoreId(seams.draw()?);
    let secrets = Secrets { hash_key: seams.draw()?, derivation: seams.draw()? };
    let only = |failure| match failure {
        storage::Failure::Before(e) | storage::Failure::Poison(e) => e,
    };
    let spare = Spare::prepare(storage, &log_dir, 0, sizes.first()).map_err(only)?;
    let identity = Identity {
        ordinal: 1,
        base: base_from_clock(seams, Lsn::ZERO),
        capacity: spare.bytes,
        salt: seams.draw_u64()?,
    };
    spare.activate(storage, &log_dir, identity, store, &secrets).map_err(only)?;
    let start = identity.base.plus(SEGMENT_HEADER_BYTES as u64);
    let clock = StoreClock::open(None, StoreMillis(0), limits::TIME_OFF_MILLIS_MAX, &*seams.clock);
    let manifest = Manifest {
        store,
        secrets,
        generation: 1,
        clean: Some(start),
        durable: start,
        extent: identity.listed().end,
        next_ordinal: 2,
        time: clock.note(&*seams.clock).into(),
        opener: Opener::default(),
        segments: vec![identity.listed()],
    };
    Switch::new(Arc::clone(&seams.storage), dir).to(&manifest).map_err(only)
}

/// `max(extent, min(unix_ms * 2^20, 2^62))`, rounded up: so that tokens outrun those of a restored backup too.
fn base_from_clock(seams: &Seams, extent: Lsn) -> Lsn {
    let by_clock = seams.clock.wall().0.saturating_mul(1 << 20).min(1 << 62);
    Lsn::new(extent.get().max(by_clock).next_multiple_of(record::ALIGN as u64))
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
    /// Good records about a key, with their lengths; only those that no watermark seen so far covers.
    uncovered: VecDeque<(Lsn, u64)>,
    time: Option<TimeField>,
    newest: StoreMillis,
}

/// Opens the log in `dir`, which is locked. `visit` is shown every record about a key, in order.
pub(crate) fn open(
    seams: Seams,
    dir: &Path,
    sizes: Sizes,
    manifest: Manifest,
    visit: &mut Visit<'_>,
) -> Result<(Log, Report)> {
    let storage = &*seams.storage;
    let log_dir = dir.join("log");
    // 1. What is listed is there, and is what the manifest says it is.
    let mut segments = Vec::with_capacity(manifest.segments.len());
    for listed in &manifest.segments {
        let segment = Segment::open(storage, &log_dir, listed, manifest.store, Access::ReadWrite)?;
        check_secrets(&segment, &manifest)?;
        if !sizes.map {
            segment.without_map();
        }
        segments.push(Arc::new(segment));
    }
    // 2. What isn't listed is a leftover, or proof that the manifest is older than the log.
    let (spares, spare_number) = check_unlisted(storage, &log_dir, &manifest, &sizes)?;
    // 3. Records are read up to the first bad one.
    let scan = scan(&segments, &manifest, visit)?;
    // 4. Is that the end, or a loss?
    let (plan, mut report) = match manifest.clean {
        Some(end) => (
            check_clean(&segments, &manifest, &scan, end)?,
            Report { was_clean: true, ..Report::default() },
        ),
        None => judge_tail(&segments, &manifest, &scan)?,
    };
    report.records = scan.records;
    // 5. Store time goes on from the newest note.
    let note = newest_note(manifest.time, scan.time);
    let store_clock =
        StoreClock::open(Some(&note), scan.newest, limits::TIME_OFF_MILLIS_MAX, &*seams.clock);
    // 6. A log that can be read; to write it, `begin_writing`.
    let active = segments.get(scan.last).map_or_else(
        || Err(Error::corrupt(&manifest::path(dir), 0, "a manifest without segments")),
        |segment| Ok(Arc::clone(segment)),
    )?;
    let next = match &plan {
        // One that is too small for the longest record, from an opening with other sizes, is not used.
        Plan::Continue => segments
            .get(scan.last.saturating_add(1))
            .filter(|next| next.identity.capacity >= sizes.segment_bytes_least())
            .cloned(),
        Plan::Fork { .. } => None,
    };
    let readable = match &plan {
        Plan::Fork { covered, suffix, .. } if !suffix.is_empty() => covered.get(),
        _ => u64::MAX,
    };
    let log = Log {
        dir: dir.to_path_buf(),
        tail: Mutex::new(Tail {
            at: active.offset(scan.end),
            next,
            pieces: VecDeque::new(),
            buffered: 0,
            free: Vec::new(),
            round: 0,
            room: Reserves::default(),
            marked: scan.end,
            keyed_end: Lsn::ZERO,
            last: Placed { lsn: Lsn::ZERO, round: 0 },
            last_time_note: note,
            active: Arc::clone(&active),
        }),
        writer: Mutex::new(Writer { current: active }),
        queue: CommitQueue::new(scan.end),
        keeper: Mutex::new(Keeper {
            switch: Switch::new(Arc::clone(&seams.storage), dir),
            spare_number,
            spares,
            closed: false,
            plan: Some(plan),
            manifest,
        }),
        segments: Mutex::new(Arc::new(segments)),
        readable: AtomicU64::new(readable),
        is_writing: AtomicBool::new(false),
        store_clock,
        poison: Mutex::new(None),
        upkeep: super::upkeep::Upkeep::new(),
        syncs: AtomicU64::new(0),
        sync_nanos: AtomicU64::new(0),
        bytes_written: AtomicU64::new(0),
        sizes,
        seams,
    };
    Ok((log, report))
}

fn check_secrets(segment: &Segment, manifest: &Manifest) -> Result<()> {
    let expected = segment.identity.encode(manifest.store, &manifest.secrets);
    let mut header = [0; SEGMENT_HEADER_BYTES];
    storage::read_full_at(&*segment.file, &mut header, 0)
        .map_err(|e| Error::io("reading", &segment.path, e))?;
    if header != expected {
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
                spares.push((number, Spare { path, bytes }));
            }
            continue;
        }
        let Some(ordinal) = segment::ordinal_of(&entry.name) else { continue };
        if manifest.segments.iter().any(|listed| listed.ordinal == ordinal) {
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

enum Unlisted {
    Empty,
    /// Copies made by a recovery whose manifest switch did not happen.
    Copies,
    Originals,
}

fn look_at_unlisted(
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
fn records_in(segment: &Segment) -> Result<Unlisted> {
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
        let end = manifest.clean.filter(|end| listed.base <= *end && *end < listed.end);
        let limit = end.unwrap_or(listed.end).since(listed.base);
        let mut reader = Reader::new(segment, SEGMENT_HEADER_BYTES as u64, limit);
        let mut segment_ended = false;
        loop {
            scan.last = index;
            scan.end = reader.lsn();
            match reader.next()? {
                Step::Record(record) => {
                    scan.records = scan.records.saturating_add(1);
                    scan.watermark = scan.watermark.max(record.watermark);
                    let earlier = Earlier { segments: segments.get(..=index).unwrap_or_default() };
                    match take_in(&mut scan, &record, &earlier, visit) {
                        Ok(()) => {}
                        Err(Taken::Bad(bad)) => {
                            return Err(Error::corrupt(
                                &segment.path,
                                segment.offset(record.lsn),
                                bad,
                            ));
                        }
                        Err(Taken::Refused(e)) => return Err(e),
                    }
                    if record.kind == Kind::SegmentEnd {
                        segment_ended = true;
                        break;
                    }
                }
                Step::End => break,
                Step::Bad(bad) => {
                    scan.bad = Some(bad);
                    break;
                }
            }
        }
        scan.end = reader.lsn();
        if end.is_some() || (scan.bad.is_some() && !segment_ended) {
            break;
        }
    }
    Ok(scan)
}

enum Taken {
    Bad(Bad),
    Refused(Error),
}

fn take_in(
    scan: &mut Scan,
    record: &Record<'_>,
    earlier: &Earlier<'_>,
    visit: &mut Visit<'_>,
) -> Result<(), Taken> {
    if record.kind == Kind::Note {
        if let Some(time) = record.time().map_err(Taken::Bad)? {
            scan.newest = scan.newest.max(time.store());
            scan.time = Some(time);
        }
    }
    if !record.kind.is_about_key() {
        return Ok(());
    }
    let body = record.body().map_err(Taken::Bad)?;
    scan.newest = scan.newest.max(body.time);
    while scan.uncovered.front().is_some_and(|(lsn, _)| *lsn < scan.watermark) {
        scan.uncovered.pop_front();
    }
    scan.uncovered.push_back((record.lsn, record.len()));
    visit(record, earlier).map_err(Taken::Refused)
}

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
    let listed_end = manifest.segments.get(scan.last).map_or(Lsn::ZERO, |listed| listed.end);
    let room = listed_end.since(end).min(limits::PAGE_BYTES as u64);
    check_zeros(segment, segment.offset(end), room)?;
    // The one ahead is empty; any other would have been listed by a later manifest than this one.
    for next in segments.get(scan.last.saturating_add(1)..).unwrap_or_default() {
        check_zeros(
            next,
            SEGMENT_HEADER_BYTES as u64,
            (limits::PAGE_BYTES - SEGMENT_HEADER_BYTES) as u64,
        )?;
    }
    Ok(Plan::Continue)
}

fn check_zeros(segment: &Segment, from: u64, len: u64) -> Result<()> {
    let mut page = vec![0; usize::try_from(len).unwrap_or(0)];
    storage::read_full_at(&*segment.file, &mut page, from)
        .map_err(|e| Error::io("reading", &segment.path, e))?;
    match page.iter().position(|&byte| byte != 0) {
        None => Ok(()),
        Some(at) => Err(Error::corrupt(
            &segment.path,
            from.saturating_add(at as u64),
            "the manifest is older than the log: bytes behind its clean end",
        )),
    }
}

/// After anything but a clean close: is the first bad record a torn tail, or damage to what was durable?
fn judge_tail(
    segments: &[Arc<Segment>],
    manifest: &Manifest,
    scan: &Scan,
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
        cut.bytes = cut.bytes.saturating_add(found.bytes_end.saturating_sub(from));
        cut.whole_records = cut.whole_records.saturating_add(found.records);
    }
    if watermark > scan.end {
        let what = scan.bad.map_or_else(|| "a record missing".to_owned(), |bad| bad.to_string());
        let message = format!("{what} below lsn {watermark}, up to which the log was durable,");
        return Err(Error::corrupt(&segment.path, offset, message));
    }
    let uncovered = scan.uncovered.iter().filter(|(lsn, _)| *lsn >= watermark);
    let (mut suffix, mut suffix_bytes) = (Vec::new(), 0_u64);
    for (lsn, len) in uncovered {
        suffix.push(*lsn);
        suffix_bytes = suffix_bytes.saturating_add(*len);
    }
    let report = Report {
        copied: suffix.len() as u64,
        cut: Some(cut).filter(|cut| cut.bytes > 0),
        ..Report::default()
    };
    Ok((Plan::Fork { covered: watermark, suffix, suffix_bytes }, report))
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
            boot_id: note.boot_id.unwrap_or_default(),
            boot_millis: note.boot_millis.into(),
            store_millis: note.store.0.into(),
            wall_millis: note.wall.0.into(),
        }
    }
}

impl Log {
    /// Whether LSNs may be taken.
    pub(crate) fn is_writing(&self) -> bool {
        self.is_writing.load(Ordering::Acquire)
    }

    /// Whether an uncovered tail waits for room to be made durable.
    pub(crate) fn has_unsettled_tail(&self) -> bool {
        self.readable.load(Ordering::SeqCst) != u64::MAX
    }

    /// What must have happened before the first LSN of an opening is taken. Durable on return; a crash
    /// anywhere in it leaves what a crash before it would.
    pub(crate) fn begin_writing(&self, remap: &mut Remap<'_>) -> Result<()> {
        let mut keeper = self.keeper.lock();
        if self.is_poisoned() {
            return Err(self.poisoned());
        }
        if keeper.closed {
            return Err(Error::new(ErrorKind::Closed, "the store was closed"));
        }
        let Some(plan) = keeper.plan.take() else { return Ok(()) };
        let begun = self.guarded(|| match &plan {
            Plan::Continue => self.go_on(&mut keeper),
            Plan::Fork { covered, suffix, suffix_bytes } => {
                self.fork(&mut keeper, *covered, suffix, *suffix_bytes, remap)
            }
        });
        if let Err(e) = begun {
            keeper.plan = Some(plan);
            return Err(e);
        }
        self.readable.store(u64::MAX, Ordering::SeqCst);
        if self.is_poisoned() {
            // The switch is done; what was prepared after it failed.
            return Err(self.poisoned());
        }
        self.set_aside(&keeper);
        self.guarded(|| self.remove_leftovers(&keeper));
        self.is_writing.store(true, Ordering::SeqCst);
        self.note_time();
        Ok(())
    }

    /// Clears the clean flag, durably, before the first LSN. An empty segment that is not to be used leaves
    /// the list: none of its LSNs was ever taken.
    fn go_on(&self, keeper: &mut Keeper) -> Result<()> {
        let last = {
            let tail = self.tail.lock();
            tail.next.as_ref().unwrap_or(&tail.active).base()
        };
        let mut manifest =
            Manifest { clean: None, opener: self.seams.opener(), ..keeper.manifest.clone() };
        manifest.segments.retain(|listed| listed.base <= last);
        self.switch_to(keeper, manifest)?;
        let mut list = self.segments.lock();
        let used = list.iter().filter(|segment| segment.base() <= last).cloned().collect();
        *list = Arc::new(used);
        Ok(())
    }

    /// Copies the suffix that no watermark covers into a new segment, and switches.
    fn fork(
        &self,
        keeper: &mut Keeper,
        covered: Lsn,
        suffix: &[Lsn],
        suffix_bytes: u64,
        remap: &mut Remap<'_>,
    ) -> Result<()> {
        let storage = &*self.seams.storage;
        keeper.manifest.check_room().map_err(|e| e.at(&self.dir))?;
        // A copy spells out token and life: sixteen bytes more.
        let needed = suffix_bytes.saturating_add(16 * suffix.len() as u64);
        let needed = needed.saturating_add(self.sizes.segment_bytes_least());
        self.prepare_switch(keeper)?;
        let index = self.spare_for_fork(keeper, needed)?;
        let salt = self.seams.draw_u64()?;
        let Some(spare) = keeper.spares.get(index) else { return Ok(()) };
        let identity = Identity {
            ordinal: keeper.manifest.next_ordinal,
            base: base_from_clock(&self.seams, keeper.manifest.extent),
            capacity: spare.bytes,
            salt,
        };
        let (store, secrets) = (keeper.manifest.store, keeper.manifest.secrets);
        let segment = spare
            .activate(storage, &self.log_dir(), identity, store, &secrets)
            .map_err(|e| self.failed(e))?;
        keeper.spares.remove(index);
        let (bytes, moved) = self.copies(&segment, covered, suffix)?;
        let start = SEGMENT_HEADER_BYTES as u64;
        storage::write_all_at(&*segment.file, &bytes, start)
            .and_then(|()| segment.file.sync_data())
            .map_err(|e| Error::io("copying to", &segment.path, e))
            .map_err(|e| self.failed(storage::Failure::Poison(e)))?;
        if !self.sizes.map {
            segment.without_map();
        }
        let at = start.saturating_add(bytes.len() as u64);
        let end = segment.base().plus(at);
        let mut manifest = keeper.manifest.clone();
        manifest.clean = None;
        manifest.opener = self.seams.opener();
        manifest.next_ordinal = manifest.next_ordinal.saturating_add(1);
        manifest.segments.retain_mut(|listed| cut_at(listed, covered));
        manifest.segments.push(identity.listed());
        manifest.extent = manifest.extent.max(identity.listed().end);
        manifest.durable = end;
        // The watermark that a switch takes along is this log's, which has not moved here yet.
        self.queue.restart_at(end);
        self.switch_to(keeper, manifest)?;
        let (seal, path) = (segment.seal, segment.path.clone());
        self.move_tail(&keeper.manifest, Arc::new(segment), at);
        // From memory: after the switch nothing may fail that a later call would have to make up for.
        for (from, to) in moved {
            let at = to.since(identity.base);
            let index = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
            match Record::parse(bytes.get(index..).unwrap_or_default(), to, &seal) {
                Ok(record) => remap(from, &record),
                Err(bad) => {
                    let error = Error::corrupt(&path, at, bad);
                    return Err(self.failed(storage::Failure::Poison(error)));
                }
            }
        }
        Ok(())
    }

    /// A spare of `needed` bytes, and not much more: a thousand kills should cost little room. On a full disk
    /// any that is large enough will do; the last one is kept for this.
    fn spare_for_fork(&self, keeper: &mut Keeper, needed: u64) -> Result<usize> {
        let bytes = self.sizes.first().max(needed.next_multiple_of(limits::PAGE_BYTES as u64));
        let of_size = |most: u64| move |spare: &Spare| spare.bytes >= needed && spare.bytes <= most;
        if let Some(index) = keeper.spares.iter().position(of_size(bytes)) {
            return Ok(index);
        }
        keeper.spare_number = keeper.spare_number.wrapping_add(1);
        let (storage, log_dir) = (&*self.seams.storage, self.log_dir());
        match Spare::prepare(storage, &log_dir, keeper.spare_number, bytes) {
            Ok(spare) => {
                keeper.spares.push(spare);
                Ok(keeper.spares.len().saturating_sub(1))
            }
            Err(failure) => {
                let error = self.failed(failure);
                let any = keeper.spares.iter().position(of_size(u64::MAX));
                any.filter(|_| error.kind() == ErrorKind::StorageFull).ok_or(error)
            }
        }
    }

    /// The suffix's records as they stand in the new segment, and where each came from and went.
    #[expect(clippy::type_complexity, reason = "bytes, and pairs of places")]
    fn copies(
        &self,
        segment: &Segment,
        covered: Lsn,
        suffix: &[Lsn],
    ) -> Result<(Vec<u8>, Vec<(Lsn, Lsn)>)> {
        let start = segment.base().plus(SEGMENT_HEADER_BYTES as u64);
        let mut bytes = Vec::new();
        let mut moved = Vec::with_capacity(suffix.len());
        for &from in suffix {
            let to = start.plus(bytes.len() as u64);
            self.read_listed(from, |record| {
                let body = record.body().map_err(|bad| {
                    Error::corrupt(self.dir(), 0, format_args!("{bad} at lsn {from}"))
                })?;
                Draft::copy(&record, &body).seal(&mut bytes, to, covered, &segment.seal);
                Ok(())
            })?;
            moved.push((from, to));
        }
        Ok((bytes, moved))
    }

    /// The log goes on in `segment`, and lists what `manifest` does.
    fn move_tail(&self, manifest: &Manifest, segment: Arc<Segment>, at: u64) {
        let mut list = self.segments.lock();
        let is_listed = |old: &Arc<Segment>| {
            manifest.segments.iter().any(|listed| listed.ordinal == old.identity.ordinal)
        };
        let mut segments: Vec<_> = list.iter().filter(|old| is_listed(old)).cloned().collect();
        segments.push(Arc::clone(&segment));
        *list = Arc::new(segments);
        drop(list);
        self.writer.lock().current = Arc::clone(&segment);
        let mut tail = self.tail.lock();
        tail.marked = segment.base().plus(at);
        tail.keyed_end = Lsn::ZERO;
        tail.active = segment;
        tail.at = at;
        tail.next = None;
    }

    /// Files that no list names go, and what lies behind a listed `end` is given back. All of it may be lost
    /// to a crash, and is then done by the next opening; so a failure changes nothing.
    fn remove_leftovers(&self, keeper: &Keeper) {
        let storage = &*self.seams.storage;
        let log_dir = self.log_dir();
        let listed = |ordinal| keeper.manifest.segments.iter().any(|item| item.ordinal == ordinal);
        for entry in storage.list(&log_dir).unwrap_or_default() {
            let path = log_dir.join(&entry.name);
            let is_unused_spare = Spare::number_of(&entry.name).is_some()
                && !keeper.spares.iter().any(|spare| spare.path == path);
            let is_leftover = segment::ordinal_of(&entry.name)
                .is_some_and(|ordinal| !listed(ordinal))
                || path == Spare::draft_path(&log_dir)
                || is_unused_spare;
            if is_leftover {
                let _ = storage.remove(&path);
            }
        }
        let segments = Arc::clone(&self.segments.lock());
        for (segment, item) in segments.iter().zip(&keeper.manifest.segments) {
            let end = item.end.since(item.base);
            if end < item.capacity && segment.file.len().is_ok_and(|len| len > end) {
                let _ = segment.file.truncate(end);
            }
        }
    }

    /// Places a note with the clocks, if there is room for one; there is at the next segment's start.
    pub(super) fn note_time(&self) -> bool {
        let time = self.store_clock.note(&*self.seams.clock);
        let placed = self.place(Draft::note(Some(&time.into())), Room::Note).is_ok();
        if placed {
            self.tail.lock().last_time_note = time;
        }
        placed
    }

    /// Ends the log: nothing is placed any more, everything placed becomes durable, and the manifest says
    /// where it ended. An opening that wrote nothing leaves everything as it was.
    pub(crate) fn close(&self) -> Result<()> {
        let was_writing = {
            // Under the log lock, so that whatever was placed before is covered by the sync below.
            let _tail = self.tail.lock();
            self.is_writing.swap(false, Ordering::SeqCst)
        };
        if was_writing && !self.is_poisoned() {
            let last = self.tail.lock().last;
            self.commit(last, crate::operation::Durability::Sync)?;
        }
        let mut keeper = self.keeper.lock();
        if keeper.closed {
            return Ok(());
        }
        keeper.closed = true;
        if self.is_poisoned() {
            return Err(self.poisoned());
        }
        if !was_writing {
            return Ok(());
        }
        let end = self.tail.lock().end();
        let manifest = Manifest { clean: Some(end), durable: end, ..keeper.manifest.clone() };
        self.guarded(|| self.switch_to(&mut keeper, manifest))
    }
}

/// Ends an item of the list at `covered`; whether a record is left in it.
fn cut_at(listed: &mut Listed, covered: Lsn) -> bool {
    listed.end = listed.end.min(covered);
    listed.end > listed.base.plus(SEGMENT_HEADER_BYTES as u64)
}
