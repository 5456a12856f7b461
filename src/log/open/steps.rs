//! Turns files on disk into a log that can be read.
//!
//! `scan` reads what is there and `recovery` decides what it means: what is kept, cut or lost. This module calls the two and
//! builds the log. Promises: after a crash at any point the next open reaches the same result. Never: writes before it has decided,
//! and after a clean close not at all before the first write.
//!
//! The steps are numbered as in `docs/durability.md`, "Opening".

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use super::lifecycle::{Gate, disk::GatedStorage};
use super::recovery::{Plan, Report, judge, newest_note, unlisted_originals};
use super::scan::{Leftovers, check_all_prepared, check_secrets, look_for_leftovers, scan};
use crate::clock::{StoreClock, TimeNote};
use crate::events::Events;
use crate::limits;
use crate::log::commit::{CommitQueue, Placed};
use crate::log::pool::Pool;
use crate::log::reader::{GO_ON, Met, Passed, SegmentReader};
use crate::log::room::{Keeper, Reserves};
use crate::log::segment::Segment;
use crate::log::{Log, LogWriter, Seams, Sizes, Tail};
use crate::manifest::{self, Manifest, Switch};
use crate::record::{Record, TimeField};
use crate::storage::Access;
use crate::sync::{AtomicU64, Mutex};
use crate::types::Lsn;
use crate::{Error, Result};

/// Receives every record about a key, in order; may read earlier ones by their LSN.
pub(crate) type Visit<'a> = dyn FnMut(&Record<'_>, &Earlier<'_>) -> Result<()> + 'a;

/// The records before the one that is visited.
pub(crate) struct Earlier<'s> {
    pub(super) segments: &'s [Arc<Segment>],
    /// Most requested records were just passed: the claim before its ending.
    pub(super) passed: Passed<'s>,
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
            Some(segment) => segment.read(lsn, |record, _| use_of(record)),
            None => {
                Err(Error::corrupt(Path::new("log"), 0, format_args!("no segment holds lsn {lsn}")))
            }
        }
    }
}

/// Opens the log in `dir`, which is locked. `visit` receives every record about a key that the index doesn't cover,
/// in order. From here on the disk is changed only through the log's gate.
pub(crate) fn open(
    mut seams: Seams,
    dir: &Path,
    sizes: Sizes,
    manifest: Manifest,
    visit: &mut Visit<'_>,
) -> Result<(Log, Report)> {
    let gate = Arc::new(Gate::new());
    let outside = Arc::clone(&seams.storage);
    seams.storage = Arc::new(GatedStorage::new(seams.storage, Arc::clone(&gate)));
    let storage = &*seams.storage;
    let log_dir = dir.join("log");
    // 1. Listed segments exist, and are what the manifest says they are.
    let pool = Pool::new(Arc::clone(&seams.storage), sizes.map);
    let mut segments = Vec::with_capacity(manifest.segments.len());
    for listed in &manifest.segments {
        let segment = Segment::open(storage, &log_dir, listed, manifest.store, Access::Read)?;
        check_secrets(&segment, &manifest)?;
        segments.push(Arc::new(segment.pooled(&pool, listed.end).unwrap_or(segment)));
    }
    // 2. Unlisted files are leftovers, or proof that the manifest is older than the log.
    let Leftovers { spares, spare_number, originals } =
        look_for_leftovers(storage, &log_dir, &manifest, &sizes)?;
    if let Some(path) = originals {
        return Err(unlisted_originals(&path));
    }
    check_all_prepared(storage, dir)?;
    // 3. Records are read up to the first bad one.
    let mut found = scan(dir, &segments, &manifest, visit)?;
    // 4. Is that the end, or a loss?
    let (plan, report) = judge(dir, &manifest, &mut found)?;
    // 5. Store time continues from the newest note.
    let note = newest_note(manifest.time, found.time);
    let store_clock =
        StoreClock::open(Some(&note), found.newest, limits::TIME_OFF_MILLIS_MAX, &*seams.clock);
    // 6. The log can be read; `begin_writing` makes it writable.
    if let Plan::Continue = plan {
        // These will be written to.
        let ahead = segments.iter_mut().zip(&manifest.segments).skip(found.last).take(2);
        for (segment, listed) in ahead {
            let open = Segment::open(storage, &log_dir, listed, manifest.store, Access::ReadWrite);
            *segment = Arc::new(open?);
        }
    }
    let active = segments.get(found.last).map_or_else(
        || Err(Error::corrupt(&manifest::path(dir), 0, "a manifest without segments")),
        |segment| Ok(Arc::clone(segment)),
    )?;
    let next = match &plan {
        // A segment that is too small for the longest record, made with other sizes, is not used.
        Plan::Continue => segments
            .get(found.last + 1)
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
        events: Events::of(dir),
        gate: Arc::clone(&gate),
        store: manifest.store,
        tail: Mutex::new(Tail {
            at: active.offset(found.end),
            next,
            pieces: VecDeque::new(),
            buffered: 0,
            free: Vec::new(),
            round: 0,
            room: Reserves::default(),
            census: crate::log::Census::default(),
            marked: found.end,
            keyed_end: Lsn::ZERO,
            last: Placed { lsn: Lsn::ZERO, round: 0 },
            records: 0,
            last_time_note: note,
            active: Arc::clone(&active),
        }),
        writer: Mutex::new(LogWriter::of(active)),
        queue: CommitQueue::new(found.end, gate),
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
        outside,
    };
    Ok((log, report))
}

/// Passes every record about a key from `from` to `to` to `visit`. A bad one there is damage: it was durable.
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
        let mut reader = SegmentReader::new(&segment, start, end.since(base))?;
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
            // Zeros on a system that has none.
            boot_id: note.boot_id.unwrap_or_default(),
            boot_millis: note.boot_millis.into(),
            store_millis: note.store.0.into(),
            wall_millis: note.wall.0.into(),
        }
    }
}
