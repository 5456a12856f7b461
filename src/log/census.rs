//! What each segment still holds, counted as records are placed.
//!
//! Promises: a segment is spent only when each record about a key in it is dead: it has ended by itself, or a later record,
//! durable by now, took its place. So it may go unread. Counted are the segments that this opening began; of older ones
//! nothing is known, and compaction reads them. Never: reads a record, or guesses.

use std::collections::VecDeque;

use crate::types::{Lsn, StoreMillis};

/// How long a record is needed.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Span {
    /// From then on it is dead, whatever follows. `None`: only another record ends it.
    pub(crate) until: Option<StoreMillis>,
    /// The record whose place it takes, if only that ends it.
    pub(crate) ends: Option<Lsn>,
}

/// The segments that were begun since the opening, the oldest first.
#[derive(Default)]
pub(super) struct Census(VecDeque<Count>);

struct Count {
    base: Lsn,
    /// Records that only another record ends, and none has.
    endless: u64,
    /// When the last of the others ends by itself.
    until: StoreMillis,
    /// The newest of the records that ended one here.
    ended_by: Lsn,
    /// More were ended than there were: a bug of ours. Its records are read then.
    is_wrong: bool,
}

impl Census {
    /// The log goes on in a new segment.
    pub(super) fn begin(&mut self, base: Lsn) {
        let (until, ended_by) = (StoreMillis(0), Lsn::ZERO);
        self.0.push_back(Count { base, endless: 0, until, ended_by, is_wrong: false });
    }

    /// A record about a key was placed. Whether the one whose place it takes, if any, was still counted: no record is ended
    /// twice.
    #[must_use]
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

    /// The segment that a record stands in; `None` if this opening didn't begin it.
    fn of(&mut self, lsn: Lsn) -> Option<&mut Count> {
        let is_last = self.0.back().is_some_and(|last| last.base <= lsn);
        let after = match is_last {
            true => self.0.len(),
            false => self.0.partition_point(|count| count.base <= lsn),
        };
        self.0.get_mut(after.checked_sub(1)?)
    }

    /// Whether nothing in the segment that begins at `base` is needed any more. Nothing is placed in it any more.
    pub(super) fn is_spent(&self, base: Lsn, now: StoreMillis, durable: Lsn) -> bool {
        self.0.iter().find(|count| count.base == base).is_some_and(|count| {
            !count.is_wrong && count.endless == 0 && count.until <= now && count.ended_by < durable
        })
    }

    /// When the segment that begins at `base` will be spent without any further record, if that comes by itself.
    pub(super) fn spent_at(&self, base: Lsn) -> Option<StoreMillis> {
        let count = self.0.iter().find(|count| count.base == base)?;
        (!count.is_wrong && count.endless == 0).then_some(count.until)
    }

    /// The segments before `head` are gone.
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
    fn a_segment_is_spent_once_all_in_it_has_ended_and_what_ended_it_is_durable() {
        let mut census = Census::default();
        // What stood before the first segment that is counted.
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
    fn a_segment_in_which_a_record_ended_twice_is_never_spent() {
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
