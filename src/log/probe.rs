//! Passes one segment's bytes through all code that reads segments, for the fuzz target.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::format::SEGMENT_HEADER_BYTES;
use super::pool::Pool;
use super::reader::{GO_ON, Met, SegmentReader, look_behind};
use super::segment::{self, Segment};
use crate::storage::memory::MemoryStorage;
use crate::storage::{self, Access, Storage};

/// Opens `bytes` as the segment that their header claims, reads its records, and checks the bytes after the last.
pub(crate) fn probe_segment(bytes: &[u8]) {
    let storage = MemoryStorage::new();
    let dir = Path::new("/");
    // A segment is named by its ordinal, which follows its secrets.
    let ordinal = bytes.get(112..116).and_then(|bytes| bytes.try_into().ok());
    let path = dir.join(segment::file_name(ordinal.map_or(0, u32::from_le_bytes)));
    let Ok(file) = storage.create(&path) else { return };
    if storage::write_all_at(&*file, bytes, 0).is_err() {
        return;
    }
    let Ok((store, identity)) = segment::read_identity(&*file, &path) else { return };
    let listed = identity.listed();
    let Ok(segment) = Segment::open(&storage, dir, &listed, store, Access::Read) else { return };
    let limit = listed.end.since(listed.base);
    let reader = SegmentReader::new(&segment, SEGMENT_HEADER_BYTES as u64, limit);
    let Ok(mut reader) = reader else { return };
    let mut places = Vec::new();
    let walked = reader.walk(|met| {
        let Met::Record(record, _) = met else { return Ok(ControlFlow::Break(())) };
        let _ = (record.body(), record.time());
        places.push(record.lsn);
        GO_ON
    });
    assert!(walked.is_ok());
    let end = segment.offset(reader.lsn());
    assert!(look_behind(&segment, end, limit).is_ok());
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let pooled = segment.pooled(&Pool::new(storage, true), listed.end);
    for segment in [Some(segment), pooled].into_iter().flatten() {
        for lsn in &places {
            assert!(segment.read(*lsn, |record, _| Ok(record.lsn == *lsn)).is_ok_and(|is| is));
        }
    }
}
