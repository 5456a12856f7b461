//! Reads one record, all records in order, or everything that is listed, for `verify`.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::commit::Failed;
use super::open::recovery::Plan;
use super::open::steps;
use super::reader::{self, Scrubbed};
use super::segment::{self, Backing, Segment};
use super::{Log, format};
use crate::manifest::{Manifest, Opener};
use crate::record::{Record, TimeField};
use crate::storage::File;
use crate::types::{Lsn, Spot};
use crate::{Error, ErrorKind, Result, manifest, storage};

/// Reads and walks, as a part of the log.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'l>(&'l Log);

impl std::ops::Deref for Reading<'_> {
    type Target = Log;

    fn deref(&self) -> &Log {
        self.0
    }
}

impl Log {
    pub(crate) fn reading(&self) -> Reading<'_> {
        Reading(self)
    }
}

impl Reading<'_> {
    /// Reads the record at `lsn`.
    pub(crate) fn read<T>(
        &self,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        self.read_to_keep(lsn, |record, _| use_of(record))
    }

    /// The same; what the record lies in can be kept.
    pub(crate) fn read_to_keep<T>(
        &self,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>, &Backing<'_>) -> Result<T>,
    ) -> Result<T> {
        self.prepare_read(lsn)?;
        let segments = Arc::clone(&self.segments.lock());
        self.read_of(&segments, lsn, use_of)
    }

    /// The same, in segments that were listed earlier.
    pub(crate) fn read_in<T>(
        &self,
        segments: &Segments,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        self.prepare_read(lsn)?;
        self.read_of(&segments.0, lsn, |record, _| use_of(record))
    }

    /// Ensures that the record at `lsn` is in its file.
    fn prepare_read(&self, lsn: Lsn) -> Result<()> {
        if self.gate.is_unsettled() && lsn >= self.unsettled_from {
            return Err(Error::new(
                ErrorKind::StorageFull,
                "no space left to make the records durable that the last process left unsynced: free some and call again",
            )
            .at(&self.dir));
        }
        if lsn >= self.queue.written() && self.gate.has_begun() {
            self.write_out().map_err(|Failed| self.indeterminate())?;
        }
        Ok(())
    }

    /// Reads a record that was handed to the system, in the listed segments.
    pub(super) fn read_listed<T>(
        &self,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        let segments = Arc::clone(&self.segments.lock());
        self.read_of(&segments, lsn, |record, _| use_of(record))
    }

    fn read_of<T>(
        &self,
        segments: &[Arc<Segment>],
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>, &Backing<'_>) -> Result<T>,
    ) -> Result<T> {
        let after = segments.partition_point(|segment| segment.base() <= lsn);
        let segment = after.checked_sub(1).and_then(|index| segments.get(index));
        let Some(segment) = segment else {
            return Err(Error::corrupt(&self.dir, 0, format_args!("no segment holds lsn {lsn}")));
        };
        segment.read(lsn, use_of)
    }

    /// Passes every record about a key from `from` to `to` to `visit`, in order. All of that range is durable.
    pub(crate) fn walk(&self, from: Lsn, to: Lsn, visit: &mut steps::Visit<'_>) -> Result<()> {
        let segments = Arc::clone(&self.segments.lock());
        let ends = self.listed();
        let reopen = |item: &_| self.reopened(item);
        steps::walk(&segments, &ends, from, to, &reopen, visit)
    }

    /// Returns the segments that are listed now, to find records by position or by segment.
    pub(crate) fn segments(&self) -> Segments {
        Segments(Arc::clone(&self.segments.lock()))
    }

    /// Passes the records about keys of a segment to `visit`, in order, about `bytes` of them from `at` on, as many
    /// at once as are read at once. Returns the place after them; `None` if that is the segment's end. A bad record
    /// is `Corrupt`: the whole segment was durable. A segment that isn't listed is an error, not an end.
    pub(crate) fn walk_some(
        &self,
        ordinal: u32,
        at: Lsn,
        bytes: u64,
        visit: &mut dyn FnMut(Vec<Record<'_>>) -> Result<()>,
    ) -> Result<Option<Lsn>> {
        let listed = self.listed();
        let Some(item) = listed.iter().find(|item| item.ordinal == ordinal) else {
            return Err(self.bug(format_args!("segment {ordinal} was to be read and isn't listed")));
        };
        reader::walk_some(&self.reopened(item)?, at, item.end, bytes, visit)
    }

    /// Opens a listed segment for reads by calls: these fail where the device can't read, while a map would end the
    /// process.
    fn reopened(&self, item: &manifest::Listed) -> Result<Segment> {
        let (storage, store) = (&*self.seams.storage, self.store());
        Segment::open(storage, &self.rooms().log_dir(), item, store, storage::Access::Read)
    }

    /// Checks that the manifest on disk is the current one, or has the same contents.
    pub(crate) fn check_manifest(&self) -> Result<()> {
        let path = manifest::path(&self.dir);
        let standing = || self.keeper.lock().manifest.generation;
        loop {
            let before = standing();
            let found = manifest::load(&*self.seams.storage, &self.dir);
            // A switch may have changed the file during the read.
            if standing() != before {
                continue;
            }
            return match found? {
                Some(found) if found.generation >= before => Ok(()),
                Some(_) => Err(Error::corrupt(&path, 0, "an older manifest than the one in use")),
                None => Err(Error::corrupt(&path, 0, "the manifest is missing:")),
            };
        }
    }

    /// Returns a listed segment and the end of its durable part; `None` if it isn't listed, or nothing of it is
    /// durable.
    fn durable_part(&self, ordinal: u32) -> Option<(manifest::Listed, Lsn)> {
        // Both under one lock: the first write after a crash cuts segments and moves the durable end.
        let keeper = self.keeper.lock();
        let item = keeper.manifest.segments.iter().find(|item| item.ordinal == ordinal)?;
        let mut durable = self.durable();
        if self.gate.is_unsettled() {
            durable = durable.min(self.unsettled_from);
        }
        let end = item.end.min(durable);
        (end > item.base).then_some((*item, end))
    }

    /// Reads all segments as far as they are durable, and continues after damage.
    pub(crate) fn scrub(&self, told: &mut reader::Told<'_>) {
        for item in self.listed() {
            if self.scrub_segment(item.ordinal, told).is_break() {
                return;
            }
        }
    }

    fn scrub_segment(&self, ordinal: u32, told: &mut reader::Told<'_>) -> ControlFlow<()> {
        let Some((mut item, mut end)) = self.durable_part(ordinal) else {
            return ControlFlow::Continue(());
        };
        let segment = loop {
            let error = match self.reopened(&item) {
                Ok(segment) => break segment,
                Err(error) => error,
            };
            match self.durable_part(ordinal) {
                // Compaction has removed it meanwhile.
                None => return ControlFlow::Continue(()),
                // The first write since the open has cut it meanwhile: it is read as it is listed now.
                Some(now) if now.0 != item => (item, end) = now,
                Some(_) => {
                    let is_damaged = error.kind() == ErrorKind::Corrupt;
                    told(Scrubbed::Failed(error))?;
                    // The part of it that exists is read nevertheless.
                    let path = self.rooms().log_dir().join(segment::file_name(ordinal));
                    match self.seams.storage.open(&path, storage::Access::Read) {
                        Ok(file) if is_damaged => {
                            let identity = format::Identity::of(&item);
                            break Segment::unchecked(identity, self.store, path, file);
                        }
                        _ => return ControlFlow::Continue(()),
                    }
                }
            }
        };
        reader::scrub(&segment, end.since(item.base), &mut |found| match found {
            Scrubbed::Failed(error) if !self.is_in_log(ordinal, &error) => {
                ControlFlow::Continue(())
            }
            found => told(found),
        })
    }

    /// Whether a scrub that began with `listed` reads the place in a segment that an error names.
    pub(crate) fn scrubs(&self, listed: &[manifest::Listed], error: &Error) -> bool {
        let name = error.path().and_then(Path::file_name).and_then(|name| name.to_str());
        let ordinal = name.and_then(segment::ordinal_of);
        ordinal.is_some_and(|ordinal| {
            let is_listed = listed.iter().any(|item| item.ordinal == ordinal);
            is_listed && error.offset().is_some() && self.is_in_log(ordinal, error)
        })
    }

    /// Whether the place that an error names in a segment is still part of the log: not if compaction removed the
    /// segment, or the first write after a crash cut the place off.
    fn is_in_log(&self, ordinal: u32, error: &Error) -> bool {
        self.durable_part(ordinal).is_some_and(|(item, end)| {
            error.offset().is_none_or(|offset| item.base.plus(offset) < end)
        })
    }

    /// Returns the store at one moment, cut off where its durable part ends. Nothing that was durable by then is missing.
    pub(crate) fn moment(&self) -> Result<StoreMoment> {
        // Under its lock nothing leaves the list, and the first write since the open moves no record.
        let keeper = self.keeper.lock();
        let end = match &keeper.plan {
            // What no watermark covers after a crash is not durable yet.
            Plan::Fork { covered, .. } => *covered,
            Plan::Continue => self.durable(),
        };
        if keeper.manifest.durable > end {
            // A failure in the midst of the first write.
            return Err(match self.is_poisoned() {
                true => self.poisoned(),
                false => self.bug("the manifest knows of durable records that the log doesn't"),
            });
        }
        let mut segments = keeper.manifest.segments.clone();
        segments.retain(|item| item.base < end);
        let last = segments.last().and_then(|last| {
            let list = self.segments.lock();
            list.iter().find(|segment| segment.identity.ordinal == last.ordinal).cloned()
        });
        let last = last.ok_or_else(|| self.bug("no segment holds the end of the durable log"))?;
        // No clean end and no boot id: an open continues above the clock with its tokens, and trusts no clock of this
        // boot.
        let time =
            TimeField { boot_id: [0; 16], ..self.store_clock.note(&*self.seams.clock).into() };
        let manifest = Manifest {
            generation: 1,
            clean: None,
            durable: end,
            time,
            opener: Opener::default(),
            segments,
            ..keeper.manifest.clone()
        };
        Ok(StoreMoment { manifest, end, last: last.file()? })
    }

    /// Returns the listed segments, the oldest first.
    pub(crate) fn listed(&self) -> Vec<manifest::Listed> {
        self.keeper.lock().manifest.segments.clone()
    }
}

/// The store at one moment.
pub(crate) struct StoreMoment {
    /// What a store that begins there says. The files it lists are never written again, except the last segment's.
    pub(crate) manifest: Manifest,
    /// Where the durable log ended.
    pub(crate) end: Lsn,
    /// The segment in which it ended.
    pub(crate) last: Arc<dyn File>,
}

/// A snapshot of the listed segments.
pub(crate) struct Segments(Arc<Vec<Arc<Segment>>>);

impl Segments {
    /// Returns the segment and offset of the record at `lsn`; `None` if no segment holds it.
    pub(crate) fn spot_of(&self, lsn: Lsn) -> Option<Spot> {
        let after = self.0.partition_point(|segment| segment.base() <= lsn);
        let segment = after.checked_sub(1).and_then(|index| self.0.get(index))?;
        Some(Spot { ordinal: segment.identity.ordinal, offset: segment.offset(lsn) })
    }

    /// Returns the position of the record at `spot`; `None` if no segment has that ordinal.
    pub(crate) fn lsn_of(&self, spot: Spot) -> Option<Lsn> {
        let index = self.0.partition_point(|segment| segment.identity.ordinal < spot.ordinal);
        let segment = self.0.get(index).filter(|found| found.identity.ordinal == spot.ordinal)?;
        Some(segment.base().plus(spot.offset))
    }
}
