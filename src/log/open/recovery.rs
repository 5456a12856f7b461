//! Decides, from what a scan found, where the log ends and what is cut, kept or refused.
//!
//! Promises: a loss is reported, never guessed away; only a torn tail that no watermark covers is cut, and every cut is
//! reported. Never: reads or writes a file.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use crate::clock::TimeNote;
use crate::log::format::SEGMENT_HEADER_BYTES;
use crate::log::reader::Behind;
use crate::log::segment;
use crate::manifest::{self, Manifest};
use crate::record::{Bad, TimeField};
use crate::types::{Lsn, StoreMillis};
use crate::{Error, Result};

/// What an open found. Kept for `stats`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// The last owner closed the store.
    pub(crate) was_clean: bool,
    /// Records read.
    pub(crate) records: u64,
    /// The tail that was cut off, which no watermark covered.
    pub(crate) cut: Option<CutTail>,
    /// Records of the uncovered tail, made durable again.
    pub(crate) copied: u64,
}

/// A torn tail: bytes after the last record that were never acknowledged at `Sync`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CutTail {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// Whole records after the cut: devices persist out of order.
    pub(crate) whole_records: u64,
}

/// How the log continues at the first write.
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

/// What a scan of the listed segments found.
pub(super) struct Scanned {
    /// End of the good records.
    pub(super) end: Lsn,
    /// Index of the listed segment that `end` lies in.
    pub(super) last: usize,
    /// What is there, if anything is.
    pub(super) bad: Option<Bad>,
    pub(super) coverage: Coverage,
    /// Good records.
    pub(super) records: u64,
    /// The newest note of the clocks.
    pub(super) time: Option<TimeField>,
    /// The greatest time of any record.
    pub(super) newest: StoreMillis,
    pub(super) rest: Remainder,
}

/// What follows the end of the good records, in the segment where they end and in those listed after it.
pub(super) enum Remainder {
    /// After a clean close, if the records end where it says: the first byte that isn't zero, by the segment's index
    /// and the offset in its file, as far as a close leaves zeros.
    Clean(Option<(usize, u64)>),
    /// After anything else: for each segment the file offset from which it was checked, and what was found.
    Unclean(Vec<(u64, Behind)>),
}

/// How far the log is known to be durable, by the watermarks in its records.
pub(super) struct Coverage {
    /// The greatest one.
    watermark: Lsn,
    /// Good records that it doesn't cover.
    uncovered: VecDeque<Uncovered>,
}

impl Coverage {
    pub(super) fn new(durable: Lsn) -> Self {
        Coverage { watermark: durable, uncovered: VecDeque::new() }
    }

    pub(super) fn add(&mut self, record: Uncovered) {
        self.uncovered.push_back(record);
    }

    /// Notes a watermark. Returns `false` if it splits a record: no writer made it, and a log that ended there would
    /// end in half a record.
    #[must_use]
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

/// Judges whether the scan reached the end of the log in `dir`, or found a loss. Returns how the log continues, and
/// the report.
pub(super) fn judge(
    dir: &Path,
    manifest: &Manifest,
    found: &mut Scanned,
) -> Result<(Plan, Report)> {
    let path_of = |index| {
        let listed = manifest.segments.get(index);
        let path =
            |listed: &manifest::Listed| dir.join("log").join(segment::file_name(listed.ordinal));
        listed
            .map(path)
            .ok_or_else(|| Error::corrupt(&manifest::path(dir), 0, "a manifest without segments"))
    };
    let path = path_of(found.last)?;
    let base = manifest.segments.get(found.last).map_or(Lsn::ZERO, |listed| listed.base);
    let offset = found.end.since(base);
    let report = Report { records: found.records, ..Report::default() };
    match (manifest.clean, &found.rest) {
        (Some(clean), Remainder::Clean(behind)) => {
            if let Some(bad) = found.bad {
                return Err(Error::corrupt(&path, offset, bad));
            }
            if found.end != clean {
                return Err(Error::corrupt(&path, offset, "the log ends before its clean end"));
            }
            if let Some((index, at)) = behind {
                return Err(behind_clean_end(&path_of(*index)?, *at));
            }
            Ok((Plan::Continue, Report { was_clean: true, ..report }))
        }
        (None, Remainder::Unclean(rest)) => {
            let mut watermark = found.coverage.watermark;
            let mut cut = CutTail { path: path.clone(), offset, bytes: 0, whole_records: 0 };
            for (from, behind) in rest {
                watermark = watermark.max(behind.watermark);
                cut.bytes += behind.bytes_end - from;
                cut.whole_records += behind.records;
            }
            if watermark > found.end {
                let what =
                    found.bad.map_or_else(|| "a record missing".to_owned(), |bad| bad.to_string());
                let message =
                    format!("{what} below lsn {watermark}, up to which the log was durable,");
                return Err(Error::corrupt(&path, offset, message));
            }
            if !found.coverage.cover(watermark) {
                return Err(split(&path, offset));
            }
            let suffix = found.coverage.uncovered.iter().filter(|record| record.is_about_key);
            let suffix: Vec<_> = suffix.copied().collect();
            let (copied, cut) = (suffix.len() as u64, Some(cut).filter(|cut| cut.bytes > 0));
            Ok((Plan::Fork { covered: watermark, suffix }, Report { copied, cut, ..report }))
        }
        _ => Err(Error::bug(dir, "a scan that looked after another end than the manifest's")),
    }
}

/// Returns the error for a watermark that splits the record at a place.
pub(super) fn split(path: &Path, offset: u64) -> Error {
    Error::corrupt(path, offset, "a watermark that splits a record")
}

/// Returns the error for a byte where a clean close left zeros.
pub(super) fn behind_clean_end(path: &Path, offset: u64) -> Error {
    let what = "the manifest is older than the log: bytes after its clean end";
    Error::corrupt(path, offset, what)
}

/// Returns the error for an unlisted segment that holds records which are nowhere else.
pub(super) fn unlisted_originals(path: &Path) -> Error {
    let what = "the manifest is older than the log: records in an unlisted segment";
    Error::corrupt(path, SEGMENT_HEADER_BYTES as u64, what)
}

pub(in crate::log) const OLDER_BY_TOKENS: &str =
    "the manifest is older than the log: records with tokens past those that it knows of";

/// Checks the tokens that a record implies: the process that placed it so far `ahead`, in a segment that ends at
/// `end`, may have issued tokens up to that end, and no later manifest has lower ones.
pub(super) fn check_token(dir: &Path, manifest: &Manifest, end: Lsn, ahead: u64) -> Result<()> {
    if ahead == 0 || end.token(ahead).get() <= manifest.check_tokens()? {
        return Ok(());
    }
    Err(Error::corrupt(&manifest::path(dir), 0, OLDER_BY_TOKENS))
}

/// Returns the newer of the manifest's clocks and the log's.
pub(super) fn newest_note(manifest: TimeField, log: Option<TimeField>) -> TimeNote {
    match log {
        Some(log) if log.store() > manifest.store() => log.into(),
        _ => manifest.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::manifest::Listed;
    use crate::manifest::tests::sample;

    /// Where the first and the second listed segment begin.
    const FIRST: u64 = 1 << 20;
    const SECOND: u64 = 1 << 21;

    fn manifest(clean: Option<u64>) -> Manifest {
        let listed = |ordinal, base, len| Listed {
            ordinal,
            base: Lsn::new(base),
            end: Lsn::new(base + len),
            capacity: 1 << 16,
            salt: 1,
        };
        let segments = vec![listed(3, FIRST, 4096), listed(7, SECOND, 1 << 16)];
        let durable = Lsn::new(FIRST);
        Manifest { clean: clean.map(Lsn::new), durable, segments, ..sample() }
    }

    /// A scan that ended in the second segment, at file offset `at`, after records of 64 bytes each, none of which is
    /// covered.
    fn found(at: u64, records: u64, rest: Remainder) -> Scanned {
        let mut coverage = Coverage::new(Lsn::new(SECOND + at - 64 * records));
        for n in 0..records {
            let lsn = Lsn::new(SECOND + at - 64 * (records - n));
            // The last one is a note.
            coverage.add(Uncovered { lsn, len: 64, is_about_key: n + 1 < records });
        }
        Scanned {
            end: Lsn::new(SECOND + at),
            last: 1,
            bad: Some(Bad::BodySum),
            coverage,
            records,
            time: None,
            newest: StoreMillis(0),
            rest,
        }
    }

    fn behind(watermark: u64, records: u64, bytes_end: u64) -> Remainder {
        let watermark = Lsn::new(watermark);
        let behind = Behind { watermark, records, originals: records, bytes_end };
        Remainder::Unclean(vec![(1024, behind)])
    }

    fn judged(clean: Option<u64>, mut found: Scanned) -> Result<(Plan, Report)> {
        judge(Path::new("/store"), &manifest(clean), &mut found)
    }

    /// The file that it names, and the offset in it.
    fn place(judged: Result<(Plan, Report)>) -> (String, u64) {
        let error = judged.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        (error.path().unwrap().display().to_string(), error.offset().unwrap())
    }

    fn named(ordinal: u32, offset: u64) -> (String, u64) {
        (format!("/store/log/{}", segment::file_name(ordinal)), offset)
    }

    #[test]
    fn a_tail_that_no_watermark_covers_is_cut_and_its_whole_records_are_kept() {
        let rest = behind(SECOND + 1024 - 192, 2, 1500);
        let (plan, report) = judged(None, found(1024, 4, rest)).unwrap();
        let Plan::Fork { covered, suffix } = plan else { panic!("{plan:?}") };
        assert_eq!(covered, Lsn::new(SECOND + 1024 - 192));
        let kept: Vec<_> = suffix.iter().map(|record| record.lsn.get() - SECOND).collect();
        // The first of the four is covered, and the last is a note.
        assert_eq!(kept, [1024 - 192, 1024 - 128]);
        let path = PathBuf::from(named(7, 0).0);
        let cut = CutTail { path, offset: 1024, bytes: 1500 - 1024, whole_records: 2 };
        assert_eq!(report.cut, Some(cut));
        assert_eq!((report.copied, report.records, report.was_clean), (2, 4, false));
    }

    #[test]
    fn a_log_without_bytes_after_its_end_is_not_cut() {
        let (plan, report) = judged(None, found(1024, 1, behind(0, 0, 1024))).unwrap();
        assert!(matches!(plan, Plan::Fork { suffix, .. } if suffix.is_empty()));
        assert_eq!((report.cut, report.copied), (None, 0));
    }

    #[test]
    fn a_watermark_past_the_first_bad_place_is_a_loss() {
        let at_end = judged(None, found(1024, 2, behind(SECOND + 1024, 0, 1500)));
        assert!(
            at_end.is_ok_and(
                |(plan, _)| matches!(plan, Plan::Fork { suffix, .. } if suffix.is_empty())
            )
        );
        let past = judged(None, found(1024, 2, behind(SECOND + 1032, 0, 1500)));
        assert_eq!(place(past), named(7, 1024));
        // The manifest's own counts as well.
        let mut found = found(1024, 0, behind(0, 0, 1024));
        found.coverage = Coverage::new(Lsn::new(SECOND + 2048));
        assert_eq!(place(judged(None, found)), named(7, 1024));
    }

    #[test]
    fn a_watermark_within_a_record_is_corrupt() {
        let split = judged(None, found(1024, 2, behind(SECOND + 1024 - 32, 0, 1500)));
        assert_eq!(place(split), named(7, 1024));
        let mut coverage = found(1024, 2, behind(0, 0, 0)).coverage;
        assert!(coverage.cover(Lsn::new(SECOND + 1024 - 64)));
        assert!(!coverage.cover(Lsn::new(SECOND + 1024 - 8)));
    }

    #[test]
    fn a_clean_close_leaves_all_records_and_nothing_after_them() {
        let end = Some(SECOND + 1024);
        let whole = |stray| Scanned { bad: None, ..found(1024, 2, Remainder::Clean(stray)) };
        let (plan, report) = judged(end, whole(None)).unwrap();
        assert!(matches!(plan, Plan::Continue));
        assert_eq!((report.was_clean, report.records, report.cut), (true, 2, None));
        let torn = found(1024, 2, Remainder::Clean(None));
        assert_eq!(place(judged(end, torn)), named(7, 1024), "no record where one was");
        let short = Scanned { bad: None, ..found(960, 2, Remainder::Clean(None)) };
        assert_eq!(place(judged(end, short)), named(7, 960), "it ends too early");
        let stray = whole(Some((1, 2000)));
        assert_eq!(place(judged(end, stray)), named(7, 2000), "something behind it");
    }

    #[test]
    fn a_scan_that_checked_another_end_is_a_bug() {
        let error = judged(None, found(1024, 2, Remainder::Clean(None))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bug);
    }

    #[test]
    fn a_record_with_a_token_past_those_of_the_manifest_is_refused() {
        let manifest = manifest(None);
        let most = manifest.check_tokens().unwrap();
        let check = |end, ahead| check_token(Path::new("/store"), &manifest, Lsn::new(end), ahead);
        check(SECOND, 0).unwrap();
        check(SECOND, most - SECOND).unwrap();
        let error = check(SECOND, most - SECOND + 1).unwrap_err();
        assert_eq!(error.path(), Some(Path::new("/store/MANIFEST")));
        check(u64::MAX >> 1, 0).unwrap();
    }

    #[test]
    fn store_time_continues_from_the_newer_note() {
        let note = |store: u64| TimeField { store_millis: store.into(), ..sample().time };
        for (manifest, log, newest) in
            [(7, None, 7), (7, Some(6), 7), (7, Some(7), 7), (7, Some(8), 8)]
        {
            let note = newest_note(note(manifest), log.map(note));
            assert_eq!(note.store, StoreMillis(newest));
        }
    }
}
