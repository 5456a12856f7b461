//! Reads records from one segment, in LSN order, and reports where they stop.
//!
//! Promises: every record that a walk reports passed its checksums. All walks through a log are [`SegmentReader::walk`]: an
//! open ends at damage, a verification and a repair continue at the next whole record. Never: writes, repairs or
//! decides; `recovery` cuts a torn tail.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::format::SEGMENT_HEADER_BYTES;
use super::segment::Segment;
use crate::record::{self, ALIGN, Bad, HEADER_BYTES, Kind, Record};
use crate::storage::{self, File};
use crate::types::{Lsn, in_memory};
use crate::{Error, Result};

/// Bytes read at a time; longer records are read whole.
const WINDOW_BYTES: usize = 1 << 18;

/// The cursor of a walk through the records of one segment.
pub(crate) struct SegmentReader<'s> {
    segment: &'s Segment,
    file: Arc<dyn File>,
    /// File offset at which the log in this segment ends.
    limit: u64,
    at: u64,
    window: Vec<u8>,
    window_at: u64,
    /// Bytes of bodies that may still be read in vain. Records don't overlap, so they stay within this; headers that
    /// claim the same bytes repeatedly don't.
    budget: u64,
}

/// An item that a walk reports.
pub(crate) enum Met<'a> {
    Record(Record<'a>, Passed<'a>),
    /// There is no record at file offset `at`: damage, or a tail that was never finished. A walk that continues looks
    /// for the next whole record.
    Damage {
        at: u64,
        why: Bad,
    },
    /// The gap that began with damage at `from` ends at `to`: a whole record follows, or the limit is reached.
    Gap {
        from: u64,
        to: u64,
        why: Bad,
    },
}

/// Whether a walk continues.
pub(crate) type Flow = Result<ControlFlow<()>>;

pub(crate) const GO_ON: Flow = Ok(ControlFlow::Continue(()));

/// What is at the reader's place.
enum ReadStep<'a> {
    Record(Record<'a>, Passed<'a>),
    /// The limit is reached: all of it was records.
    End,
    /// No record: damage, or a tail that was never finished.
    Bad(Bad),
}

/// The records before the current one that a reader still holds.
pub(crate) struct Passed<'a> {
    segment: &'a Segment,
    /// File offset of the first of the bytes.
    at: u64,
    bytes: &'a [u8],
}

impl Passed<'_> {
    /// Returns the record at `lsn`, if it is whole and among them.
    pub(crate) fn record(&self, lsn: Lsn) -> Option<Record<'_>> {
        if lsn < self.segment.base() {
            return None;
        }
        let start = self.segment.offset(lsn).checked_sub(self.at)?;
        let bytes = self.bytes.get(in_memory(start)..)?;
        Record::parse(bytes, lsn, &self.segment.seal).ok()
    }
}

impl<'s> SegmentReader<'s> {
    /// Reads from file offset `at` up to `limit`, by calls.
    pub(crate) fn new(segment: &'s Segment, at: u64, limit: u64) -> Result<Self> {
        // A segment may be listed up to a place within its header: then it is empty.
        let limit = limit.max(at);
        let (file, budget) = (segment.file()?, limit - at);
        Ok(SegmentReader { segment, file, limit, at, window: Vec::new(), window_at: at, budget })
    }

    /// Returns the place of the next record.
    pub(crate) fn lsn(&self) -> Lsn {
        self.segment.base().plus(self.at)
    }

    /// Reports everything from the reader's place on to `told`, until that ends the walk, or up to the limit or the
    /// end-of-segment record. If `told` ends the walk at damage, the reader stays where that begins.
    pub(crate) fn walk(&mut self, mut told: impl FnMut(Met<'_>) -> Flow) -> Result<()> {
        let mut damage = None;
        loop {
            let at = self.at;
            let step = self.next()?;
            if let ReadStep::Bad(why) = step {
                if damage.is_none() {
                    damage = Some((at, why));
                    if told(Met::Damage { at, why })?.is_break() {
                        return Ok(());
                    }
                }
                // The next place where a record could begin.
                self.at = at + ALIGN as u64;
                continue;
            }
            if let Some((from, why)) = damage.take() {
                if told(Met::Gap { from, to: at, why })?.is_break() {
                    return Ok(());
                }
            }
            let ReadStep::Record(record, passed) = step else { return Ok(()) };
            let is_end = record.kind == Kind::SegmentEnd;
            if told(Met::Record(record, passed))?.is_break() || is_end {
                return Ok(());
            }
        }
    }

    fn next(&mut self) -> Result<ReadStep<'_>> {
        if self.at >= self.limit {
            return Ok(ReadStep::End);
        }
        let (lsn, seal) = (self.lsn(), self.segment.seal);
        let head = match record::parse_head(self.bytes(HEADER_BYTES)?, lsn, &seal) {
            Ok(head) => head,
            Err(bad) => return Ok(ReadStep::Bad(bad)),
        };
        let len = head.len();
        let claimed = (len as u64).min(self.limit - self.at);
        if claimed > self.budget {
            return Ok(ReadStep::Bad(Bad::BodySum));
        }
        self.bytes(len)?;
        let (passed, bytes) = self.window.split_at(in_memory(self.at - self.window_at));
        Ok(match Record::behind(head, bytes, lsn, &seal) {
            Ok(record) => {
                self.at += len as u64;
                let (segment, at) = (self.segment, self.window_at);
                ReadStep::Record(record, Passed { segment, at, bytes: passed })
            }
            Err(bad) => {
                self.budget -= claimed;
                ReadStep::Bad(bad)
            }
        })
    }

    /// Returns the record at the reader's place and those that follow, as far as they are whole and buffered: within
    /// about `most` bytes, and before an end-of-segment record. None: a walk reports what is there.
    fn run(&mut self, most: u64) -> Result<Vec<Record<'_>>> {
        let (segment, start, lsn) = (self.segment, self.at, self.lsn());
        if start >= self.limit {
            return Ok(Vec::new());
        }
        if let Ok(head) = record::parse_head(self.bytes(HEADER_BYTES)?, lsn, &segment.seal) {
            self.bytes(head.len())?;
        }
        let (_, window) = self.window.split_at(in_memory(start - self.window_at));
        let (mut records, mut len) = (Vec::new(), 0_usize);
        while (len as u64) < most {
            let lsn = segment.base().plus(start + len as u64);
            let (_, rest) = window.split_at(len);
            match Record::parse(rest, lsn, &segment.seal) {
                Ok(record) if record.kind != Kind::SegmentEnd => {
                    len += in_memory(record.len());
                    records.push(record);
                }
                _ => break,
            }
        }
        self.at = start + len as u64;
        Ok(records)
    }

    /// Returns at least `len` bytes from the reader's place, which is before the limit, or as many as there are up to
    /// the limit.
    fn bytes(&mut self, len: usize) -> Result<&[u8]> {
        let end = self.window_at + self.window.len() as u64;
        let wanted = (self.at + len as u64).min(self.limit);
        if self.at < self.window_at || wanted > end {
            let room = self.limit - self.at;
            let size = (len.max(WINDOW_BYTES) as u64).min(room);
            self.window.clear();
            self.window.resize(in_memory(size), 0);
            let read = storage::read_full_at(&*self.file, &mut self.window, self.at);
            let read =
                read.map_err(|e| Error::io("reading", &self.segment.path, e).offset_at(self.at))?;
            self.window.truncate(read);
            self.window_at = self.at;
        }
        Ok(self.window.split_at(in_memory(self.at - self.window_at)).1)
    }
}

/// See `Reading::walk_some`.
pub(crate) fn walk_some(
    segment: &Segment,
    at: Lsn,
    end: Lsn,
    bytes: u64,
    visit: &mut dyn FnMut(Vec<Record<'_>>) -> Result<()>,
) -> Result<Option<Lsn>> {
    let start = segment.offset(at).max(SEGMENT_HEADER_BYTES as u64);
    // `bytes` may be as large as `u64::MAX`.
    let stop = start.saturating_add(bytes);
    let mut reader = SegmentReader::new(segment, start, segment.offset(end))?;
    while reader.at < stop {
        let mut run = reader.run(stop - reader.at)?;
        if run.is_empty() {
            reader.walk(|met| match met {
                Met::Damage { at, why } => Err(Error::corrupt(&segment.path, at, why)),
                Met::Record(record, _) if record.kind != Kind::SegmentEnd => {
                    let what = format_args!("the record at lsn {} is in no run", record.lsn);
                    Err(Error::bug(&segment.path, what))
                }
                _ => GO_ON,
            })?;
            return Ok(None);
        }
        run.retain(|record| record.kind.is_about_key());
        visit(run)?;
    }
    Ok(Some(reader.lsn()))
}

/// An item that a scrub reports.
pub(crate) enum Scrubbed<'a> {
    /// A whole record about a key.
    Record(Record<'a>),
    /// Damage, or bytes that can't be read.
    Failed(Error),
    /// So many more bytes were read.
    Bytes(u64),
}

/// Receives what a scrub reports; may end it.
pub(crate) type Told<'t> = dyn FnMut(Scrubbed<'_>) -> ControlFlow<()> + 't;

/// Reads one segment up to file offset `limit`, all of which was durable once. It continues after damage at the next
/// whole record, and ends where the system can't read.
pub(crate) fn scrub(segment: &Segment, limit: u64, told: &mut Told<'_>) -> ControlFlow<()> {
    let mut reader = match SegmentReader::new(segment, SEGMENT_HEADER_BYTES as u64, limit) {
        Ok(reader) => reader,
        Err(e) => return told(Scrubbed::Failed(e)),
    };
    let mut flow = ControlFlow::Continue(());
    let walked = reader.walk(|met| {
        flow = match met {
            Met::Record(record, _) if record.kind.is_about_key() => told(Scrubbed::Record(record)),
            Met::Damage { at, why } => {
                told(Scrubbed::Failed(Error::corrupt(&segment.path, at, why)))
            }
            _ => ControlFlow::Continue(()),
        };
        Ok(flow)
    });
    flow?;
    told(match walked {
        Ok(()) => Scrubbed::Bytes(limit),
        Err(e) => Scrubbed::Failed(e),
    })
}

/// The contents of a segment after a bad record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Behind {
    /// The greatest watermark in any valid header.
    pub(crate) watermark: Lsn,
    /// Whole records that are cut off nevertheless.
    pub(crate) records: u64,
    /// Those among them that are neither a recovery's copies nor a segment's end.
    pub(crate) originals: u64,
    /// File offset after the last byte that is not zero.
    pub(crate) bytes_end: u64,
}

/// Checks every place where a header could begin, from file offset `from` to `limit`.
///
/// A header has a checksum of 32 bits and more than 48 zero bits, so that none is found by chance.
pub(crate) fn look_behind(segment: &Segment, from: u64, limit: u64) -> Result<Behind> {
    let mut behind = Behind { bytes_end: from, ..Behind::default() };
    // Records don't overlap, so reading each of them once stays within this. Headers that claim the same bytes
    // repeatedly don't. A segment may be listed up to a place within its header.
    let mut budget = limit.max(from) - from;
    // A window's last header may reach past it, so a bit more is read than is checked.
    let mut window = vec![0; WINDOW_BYTES + HEADER_BYTES];
    let file = segment.file()?;
    let mut at = from;
    while at < limit {
        let size = in_memory(limit - at).min(window.len());
        let have = storage::read_full_at(&*file, window.split_at_mut(size).0, at)
            .map_err(|e| Error::io("reading", &segment.path, e).offset_at(at))?;
        let (bytes, _) = window.split_at(have);
        let used = without_zeros(bytes);
        if used > 0 {
            behind.bytes_end = behind.bytes_end.max(at + used as u64);
            look_in_window(segment, &*file, (at, bytes), &mut behind, &mut budget);
        }
        at += WINDOW_BYTES as u64;
    }
    Ok(behind)
}

/// Returns the length of `bytes` without the zeros at their end. By blocks, of which the compiler compares many bytes
/// at a time: prepared segments are mostly zeros, and an open after a crash reads all of them.
fn without_zeros(bytes: &[u8]) -> usize {
    let is_used = |block: &&[u8]| block.iter().fold(0, |any, byte| any | byte) != 0;
    let zeros: usize =
        bytes.rchunks(256).take_while(|block| !is_used(block)).map(<[u8]>::len).sum();
    let (rest, _) = bytes.split_at(bytes.len() - zeros);
    rest.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

fn look_in_window(
    segment: &Segment,
    file: &dyn File,
    (at, bytes): (u64, &[u8]),
    behind: &mut Behind,
    budget: &mut u64,
) {
    for start in (0..bytes.len().min(WINDOW_BYTES)).step_by(ALIGN) {
        let (_, rest) = bytes.split_at(start);
        if !rest.starts_with(b"O1") {
            continue;
        }
        let lsn = segment.base().plus(at + start as u64);
        let Ok(head) = record::parse_head(rest, lsn, &segment.seal) else { continue };
        behind.watermark = behind.watermark.max(head.watermark);
        let Some(left) = budget.checked_sub(head.len() as u64) else { continue };
        *budget = left;
        // An end-of-segment record holds nothing that could be lost.
        let is_copy = |record: Record<'_>| record.is_copy || record.kind == Kind::SegmentEnd;
        let is_copy = match Record::behind(head, rest, lsn, &segment.seal) {
            Err(Bad::Short) => {
                segment.read_by_calls(file, lsn, |record, _| Ok(is_copy(record))).ok()
            }
            whole => whole.ok().map(is_copy),
        };
        behind.records += u64::from(is_copy.is_some());
        behind.originals += u64::from(is_copy == Some(false));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::log::format::Identity;
    use crate::log::segment::Spare;
    use crate::manifest::Secrets;
    use crate::record::{Body, Draft};
    use crate::storage::Storage;
    use crate::storage::memory::MemoryStorage;
    use crate::types::StoreId;

    #[test]
    fn zeros_at_the_end_are_found_wherever_they_begin() {
        for len in [0, 1, 255, 256, 257, 511, 512, 1000] {
            assert_eq!(without_zeros(&vec![0; len]), 0, "{len}");
            for used in 1..=len {
                let mut bytes = vec![0; len];
                bytes[used - 1] = 1;
                assert_eq!(without_zeros(&bytes), used, "{used} of {len}");
            }
        }
    }

    fn segment_on(storage: &MemoryStorage) -> Segment {
        let dir = Path::new("/log");
        storage.create_dir(dir).unwrap();
        let secrets = Secrets { hash_key: [1; 16], derivation: [2; 32] };
        let mut spare = Spare::prepare(storage, dir, 1, 1 << 20).unwrap();
        let identity = Identity { ordinal: 1, base: Lsn::new(1 << 30), capacity: 1 << 20, salt: 3 };
        let activated =
            spare.activate(storage, dir, identity, StoreId([4; 16]), &secrets, Lsn::ZERO);
        activated.unwrap()
    }

    #[test]
    fn a_walk_reports_damage_once_and_continues_after_it_up_to_the_end_record() {
        let storage = MemoryStorage::new();
        let segment = segment_on(&storage);
        let start = SEGMENT_HEADER_BYTES as u64;
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        let claim = || Draft::claim(&Body { key: b"k", result: &[7; 100], ..Body::default() });
        for draft in [claim(), claim(), claim(), claim(), Draft::segment_end(), claim()] {
            let at = start + bytes.len() as u64;
            places.push(at);
            let lsn = segment.base().plus(at);
            draft.seal(&mut bytes, lsn, segment.base(), &segment.seal);
        }
        // The second and the third are damaged.
        for at in &places[1..3] {
            bytes[usize::try_from(at - start).unwrap() + HEADER_BYTES + 40] ^= 1;
        }
        storage::write_all_at(&*segment.file().unwrap(), &bytes, start).unwrap();
        let walk = |stops_at_damage: bool| {
            let mut met = Vec::new();
            let mut reader = SegmentReader::new(&segment, start, 1 << 20).unwrap();
            let walked = reader.walk(|what| {
                let is_damage = matches!(what, Met::Damage { .. });
                met.push(match what {
                    Met::Record(record, _) => ("record", segment.offset(record.lsn), 0),
                    Met::Damage { at, .. } => ("damage", at, 0),
                    Met::Gap { from, to, .. } => ("gap", from, to),
                });
                if is_damage && stops_at_damage { Ok(ControlFlow::Break(())) } else { GO_ON }
            });
            walked.unwrap();
            (met, segment.offset(reader.lsn()))
        };
        let [first, bad, _, next, end, behind] = places[..] else { panic!("{places:?}") };
        let all = [
            ("record", first, 0),
            ("damage", bad, 0),
            ("gap", bad, next),
            ("record", next, 0),
            ("record", end, 0),
        ];
        assert_eq!(walk(false), (all.to_vec(), behind));
        assert_eq!(walk(true), (all[..2].to_vec(), bad));
    }

    /// Each header used to be read to its body's end: a file of 64 MiB could keep an open busy for days.
    #[test]
    fn headers_that_all_claim_the_same_bytes_are_checked_in_bounded_time() {
        let storage = MemoryStorage::new();
        let segment = segment_on(&storage);
        let (start, headers) = (128, 200);
        let mut bytes = Vec::new();
        let body = Body { key: b"k", result: &[0; 400 << 10], ..Body::default() };
        for n in 0..headers {
            let lsn = segment.base().plus(start + n * HEADER_BYTES as u64);
            let mut record = Vec::new();
            Draft::claim(&body).seal(&mut record, lsn, lsn, &segment.seal);
            bytes.extend_from_slice(&record[..HEADER_BYTES]);
        }
        storage::write_all_at(&*segment.file().unwrap(), &bytes, start).unwrap();
        let before = storage.reads();
        let told = &mut |_: Scrubbed<'_>| ControlFlow::Continue(());
        assert!(scrub(&segment, 1 << 20, told).is_continue());
        assert!(storage.reads() - before < 50, "{} reads", storage.reads() - before);
        let before = storage.reads();
        let behind = look_behind(&segment, start, 1 << 20).unwrap();
        let last = segment.base().plus(start + (headers - 1) * HEADER_BYTES as u64);
        assert_eq!((behind.watermark, behind.records), (last, 0));
        assert!(storage.reads() - before < 50, "{} reads", storage.reads() - before);
    }
}
