//! Reading: one record, all of them in order, and everything that is listed, for `verify`.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::commit::Failed;
use super::open::recovery;
use super::reader::{self, Scrubbed};
use super::segment::{self, Segment};
use super::{Log, format};
use crate::record::Record;
use crate::types::{Lsn, Spot};
use crate::{Error, ErrorKind, Result, manifest, storage};

impl Log {
    /// Reads the record at `lsn`.
    pub(crate) fn read<T>(
        &self,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        self.prepare_read(lsn)?;
        self.read_listed(lsn, use_of)
    }

    /// The same, in segments that were listed at an earlier moment.
    pub(crate) fn read_in<T>(
        &self,
        segments: &Segments,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        self.prepare_read(lsn)?;
        self.read_of(&segments.0, lsn, use_of)
    }

    /// Makes sure that the record at `lsn` is in its file.
    fn prepare_read(&self, lsn: Lsn) -> Result<()> {
        if self.gate.is_unsettled() && lsn >= self.unsettled_from {
            return Err(Error::new(
                ErrorKind::StorageFull,
                "what the last opening left unsynced has no room to be made durable: free some space and call again",
            )
            .at(&self.dir));
        }
        if lsn >= self.queue.written() && self.gate.has_begun() {
            self.write_out().map_err(|Failed| self.indeterminate())?;
        }
        Ok(())
    }

    /// Reads a record that was handed to the system, in whatever is listed.
    pub(super) fn read_listed<T>(
        &self,
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        let segments = Arc::clone(&self.segments.lock());
        self.read_of(&segments, lsn, use_of)
    }

    fn read_of<T>(
        &self,
        segments: &[Arc<Segment>],
        lsn: Lsn,
        use_of: impl FnOnce(Record<'_>) -> Result<T>,
    ) -> Result<T> {
        let after = segments.partition_point(|segment| segment.base() <= lsn);
        let segment = after.checked_sub(1).and_then(|index| segments.get(index));
        let Some(segment) = segment else {
            return Err(Error::corrupt(&self.dir, 0, format_args!("no segment holds lsn {lsn}")));
        };
        segment.read(lsn, use_of)
    }

    /// Shows every record about a key from `from` to `to`, in order, all of which is durable.
    pub(crate) fn walk(&self, from: Lsn, to: Lsn, visit: &mut recovery::Visit<'_>) -> Result<()> {
        let segments = Arc::clone(&self.segments.lock());
        let ends = self.listed();
        let reopen = |item: &_| self.reopened(item);
        recovery::walk(&segments, &ends, from, to, &reopen, visit)
    }

    /// The segments as they are listed now, to find records in by position or by segment.
    pub(crate) fn segments(&self) -> Segments {
        Segments(Arc::clone(&self.segments.lock()))
    }

    /// Shows the records about keys of a segment, in order, from `at` on and about `bytes` of them, as many at once as are
    /// read at once. Gives the place behind them; `None` if that is the segment's end. A bad record is `Corrupt`: all of it
    /// was durable. That the segment isn't listed is no end of it.
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

    /// A listed segment, to be read by calls: where the device can't give something, they fail, while a map would end
    /// the process.
    fn reopened(&self, item: &manifest::Listed) -> Result<Segment> {
        let (storage, store) = (&*self.seams.storage, self.store());
        Segment::open(storage, &self.log_dir(), item, store, storage::Access::Read)
    }

    /// Whether the manifest on disk is the one that stands, or says the same.
    pub(crate) fn check_manifest(&self) -> Result<()> {
        let path = manifest::path(&self.dir);
        let standing = || self.keeper.lock().manifest.generation;
        loop {
            let before = standing();
            let found = manifest::load(&*self.seams.storage, &self.dir);
            // A switch changes the file under whoever reads it.
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

    /// A listed segment, and where what is durable of it ends; `None` if it isn't listed, or nothing of it is.
    fn durable_part(&self, ordinal: u32) -> Option<(manifest::Listed, Lsn)> {
        // Of one moment: the first write after a crash cuts segments and moves on how far the log is durable.
        let keeper = self.keeper.lock();
        let item = keeper.manifest.segments.iter().find(|item| item.ordinal == ordinal)?;
        let mut durable = self.durable();
        if self.gate.is_unsettled() {
            durable = durable.min(self.unsettled_from);
        }
        let end = item.end.min(durable);
        (end > item.base).then_some((*item, end))
    }

    /// Reads all segments as far as they are durable, and goes on behind damage.
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
                // Compaction has taken it away meanwhile.
                None => return ControlFlow::Continue(()),
                // The first write of this opening has cut it meanwhile: it is read as it is listed now.
                Some(now) if now.0 != item => (item, end) = now,
                Some(_) => {
                    let is_damaged = error.kind() == ErrorKind::Corrupt;
                    told(Scrubbed::Failed(error))?;
                    // What there is of it is read all the same.
                    let path = self.log_dir().join(segment::file_name(ordinal));
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

    /// Whether a scrub that begins now, and met `listed`, comes to the place in a segment that an error names.
    pub(crate) fn scrubs(&self, listed: &[manifest::Listed], error: &Error) -> bool {
        let name = error.path().and_then(Path::file_name).and_then(|name| name.to_str());
        let ordinal = name.and_then(segment::ordinal_of);
        ordinal.is_some_and(|ordinal| {
            let is_listed = listed.iter().any(|item| item.ordinal == ordinal);
            is_listed && error.offset().is_some() && self.is_in_log(ordinal, error)
        })
    }

    /// Whether the place that an error names in a segment is a part of the log still: what compaction takes away, and
    /// what the first write after a crash cuts off, is none.
    fn is_in_log(&self, ordinal: u32, error: &Error) -> bool {
        self.durable_part(ordinal).is_some_and(|(item, end)| {
            error.offset().is_none_or(|offset| item.base.plus(offset) < end)
        })
    }

    /// The segments listed, oldest first.
    pub(crate) fn listed(&self) -> Vec<manifest::Listed> {
        self.keeper.lock().manifest.segments.clone()
    }
}

/// The listed segments of one moment.
pub(crate) struct Segments(Arc<Vec<Arc<Segment>>>);

impl Segments {
    /// Where the record at `lsn` stands; `None` if no segment holds it.
    pub(crate) fn spot_of(&self, lsn: Lsn) -> Option<Spot> {
        let after = self.0.partition_point(|segment| segment.base() <= lsn);
        let segment = after.checked_sub(1).and_then(|index| self.0.get(index))?;
        Some(Spot { ordinal: segment.identity.ordinal, offset: segment.offset(lsn) })
    }

    /// The position of what stands at `spot`; `None` if no segment has that ordinal.
    pub(crate) fn lsn_of(&self, spot: Spot) -> Option<Lsn> {
        let index = self.0.partition_point(|segment| segment.identity.ordinal < spot.ordinal);
        let segment = self.0.get(index).filter(|found| found.identity.ordinal == spot.ordinal)?;
        Some(segment.base().plus(spot.offset))
    }
}
