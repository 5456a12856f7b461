//! What the log of an opening is: where it ends, and what is to be cut, kept or refused.
//!
//! Promises: a loss is reported, never guessed away; only a torn tail that no watermark covers is cut.
//! Never: writes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scan::{SPLIT, Scan, check_nothing_behind};
use crate::clock::TimeNote;
use crate::log::format::SEGMENT_HEADER_BYTES;
use crate::log::reader::look_behind;
use crate::log::segment::Segment;
use crate::manifest::{self, Manifest};
use crate::record::TimeField;
use crate::types::Lsn;
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

/// A record that no watermark seen so far covers.
#[derive(Clone, Copy, Debug)]
pub(in crate::log) struct Uncovered {
    pub(in crate::log) lsn: Lsn,
    pub(in crate::log) len: u64,
    pub(super) is_about_key: bool,
}

/// After a clean close: everything up to `end` must be there, and nothing behind it.
pub(super) fn check_clean(
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

/// After anything but a clean close: is the first bad record a torn tail, or damage to what was durable?
pub(super) fn judge_tail(
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
pub(super) fn newest_note(manifest: TimeField, log: Option<TimeField>) -> TimeNote {
    match log {
        Some(log) if log.store() > manifest.store() => log.into(),
        _ => manifest.into(),
    }
}
