//! Times as people read them.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::types::{StoreMillis, WallMillis};

/// A time for people: `2026-01-01T00:00:00Z`.
pub(super) struct Date(pub(super) SystemTime);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never before the epoch: times are stored as milliseconds since then.
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (days, second) = (since / 86_400, since % 86_400);
        let (year, month, day) = date_of(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Year, month and day of the Gregorian calendar, so many days after 1970-01-01. Years are counted from March, so that
/// the leap day is the last.
fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097); // of 400 years
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, is_next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + is_next, month, day)
}

/// A store time as the wall clock showed it.
pub(crate) fn wall(time: StoreMillis, offset: i64) -> SystemTime {
    shown(wall_millis(time, offset))
}

/// The same in milliseconds.
pub(crate) fn wall_millis(time: StoreMillis, offset: i64) -> WallMillis {
    // Only shown: a time that no clock can show is shown as the nearest that one can.
    let millis = i128::from(time.0) + i128::from(offset);
    WallMillis(u64::try_from(millis.max(0)).unwrap_or(u64::MAX))
}

pub(crate) fn shown(time: WallMillis) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_millis(time.0))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ];
        for (seconds, text) in cases {
            let date = Date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(date.to_string(), text);
        }
    }
}
