//! Live records per segment, counted as records are placed.
//!
//! Promises: a segment is spent only when each record about a key in it is dead: the record expired, or a later record
//! that is durable replaced it. So the segment may be removed unread. Only segments begun since the open are counted;
//! compaction reads older ones. Never: reads a record, or guesses.

use std::collections::VecDeque;

use crate::types::{Lsn, StoreMillis};

/// How long a record is needed.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Span {
    /// It is dead from then on in any case. `None`: only another record ends it.
    pub(crate) until: Option<StoreMillis>,
    /// The record that it replaces, if only a replacement ends that one.
    pub(crate) ends: Option<Lsn>,
}

/// The segments begun since the open, the oldest first.
#[derive(Default)]
pub(super) struct Census(VecDeque<Count>);

struct Count {
    base: Lsn,
    /// Records that only another record ends and that none has ended yet.
    endless: u64,
    /// When the last of the other records expires.
    until: StoreMillis,
    /// The newest of the records that ended one here.
    ended_by: Lsn,
    /// More records were ended than there were: a bug of ours. Compaction then reads the segment.
    is_wrong: bool,
}

impl Census {
    /// Begins a new segment.
    pub(super) fn begin(&mut self, base: Lsn) {
        let (until, ended_by) = (StoreMillis(0), Lsn::ZERO);
        self.0.push_back(Count { base, endless: 0, until, ended_by, is_wrong: false });
    }

    /// Counts a record about a key. Returns whether the record that it replaces, if any, was still counted: no record
    /// is ended twice.
    #[must_use]
    // Every record passes here.
    #[inline]
    pub(super) fn place(&mut self, lsn: Lsn, span: Span) -> bool {
        if let Some(count) = self.0.back_mut() {
            match span.until {
                Some(until) => count.until = count.until.max(until),
                None => count.endless += 1,
            }
        }
        let Some(count) = span.ends.and_then(|old| self.of(old)) else { return true };
        count.ended_by = lsn;
        let Some(left) = count.endless.checked_sub(1) else {
            count.is_wrong = true;
            return false;
        };
        count.endless = left;
        true
    }

    /// The count of a record's segment; `None` if the segment was begun before the open.
    fn of(&mut self, lsn: Lsn) -> Option<&mut Count> {
        let is_last = self.0.back().is_some_and(|last| last.base <= lsn);
        let after = match is_last {
            true => self.0.len(),
            false => self.0.partition_point(|count| count.base <= lsn),
        };
        self.0.get_mut(after.checked_sub(1)?)
    }

    /// Whether nothing in the segment that begins at `base`, which is not the active one, is needed any more.
    pub(super) fn is_spent(&self, base: Lsn, now: StoreMillis, durable: Lsn) -> bool {
        self.0.iter().find(|count| count.base == base).is_some_and(|count| {
            !count.is_wrong && count.endless == 0 && count.until <= now && count.ended_by < durable
        })
    }

    /// When the segment that begins at `base` will be spent without any further record, if it will.
    pub(super) fn spent_at(&self, base: Lsn) -> Option<StoreMillis> {
        let count = self.0.iter().find(|count| count.base == base)?;
        (!count.is_wrong && count.endless == 0).then_some(count.until)
    }

    /// Drops the counts of segments before `head`.
    pub(super) fn drop_before(&mut self, head: Lsn) {
        while self.0.front().is_some_and(|count| count.base < head) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDLESS: Span = Span { until: None, ends: None };

    fn lsn(n: u64) -> Lsn {
        Lsn::new(n)
    }

    #[test]
    fn a_segment_is_spent_once_all_its_records_have_ended_durably() {
        let mut census = Census::default();
        // Its record lies before the first counted segment.
        assert!(census.place(lsn(500), Span { until: None, ends: Some(lsn(400)) }));
        census.begin(lsn(1000));
        assert!(census.place(lsn(1128), ENDLESS));
        assert!(
            census.place(lsn(1200), Span { until: Some(StoreMillis(70)), ends: Some(lsn(600)) })
        );
        census.begin(lsn(2000));
        let is_spent = |census: &Census, now, durable| {
            census.is_spent(lsn(1000), StoreMillis(now), lsn(durable))
        };
        assert!(!is_spent(&census, 100, 9000), "one record has not ended");
        assert!(
            census.place(lsn(2128), Span { until: Some(StoreMillis(90)), ends: Some(lsn(1128)) })
        );
        assert!(!is_spent(&census, 100, 2128), "what ended it may be lost");
        assert!(!is_spent(&census, 69, 9000), "another has not passed");
        assert!(is_spent(&census, 70, 2136));
        assert!(!census.is_spent(lsn(0), StoreMillis(100), lsn(9000)), "nothing is known of it");
        census.drop_before(lsn(2000));
        assert!(!is_spent(&census, 100, 9000));
        assert!(census.is_spent(lsn(2000), StoreMillis(90), lsn(9000)));
    }

    #[test]
    fn a_segment_with_a_record_that_ended_twice_is_never_spent() {
        let mut census = Census::default();
        census.begin(lsn(1000));
        assert!(census.place(lsn(1128), ENDLESS));
        let ends = Span { until: Some(StoreMillis(1)), ends: Some(lsn(1128)) };
        assert!(
            census.place(lsn(1200), ends) && census.is_spent(lsn(1000), StoreMillis(1), lsn(9000))
        );
        assert!(!census.place(lsn(1272), ends));
        assert!(!census.is_spent(lsn(1000), StoreMillis(1), lsn(9000)));
    }
}
