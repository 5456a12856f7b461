//! The clock seam: wall time, the boot clock, and store time made of both.
//!
//! Promises: store time never runs backwards, not even across restarts. Within one boot it follows the clock that
//! counts through suspend; across boots it follows the wall clock's difference, never below 0 and never more than a
//! bound. So a wrong wall clock can't make anything expire early, except by that bound at a reboot. Never: uses wall
//! time otherwise. The tests below prove the rule clause by clause.

#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the clock seam")]

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::{STORE_MILLIS_MAX, TIME_DRIFT_MILLIS};
use crate::types::{StoreMillis, WallMillis};

/// What the store asks of the machine's clocks.
pub(crate) trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since the Unix epoch, by a clock that can be set.
    fn wall(&self) -> WallMillis;

    /// Milliseconds on a clock that can't be set, counts through suspend and starts anew at a boot.
    fn boot_millis(&self) -> u64;

    /// Names the boot that `boot_millis` belongs to, and the time namespace it is read in. `None` if the system has no
    /// such name.
    fn boot_id(&self) -> Option<[u8; 16]>;

    /// Nanoseconds for measuring durations within the process; cheap. Never runs backwards: if the first of two
    /// readings was known before the second was made, their difference is not negative.
    fn monotonic_nanos(&self) -> u64;
}

/// The machine's own clocks. The name of the boot is read once: a child that is forked into another time namespace
/// makes its own clock when it opens the store anew.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemClock {
    boot_id: Option<[u8; 16]>,
}

impl SystemClock {
    /// Fails only if the name can't be read for lack of descriptors or memory: without it the open would take the boot
    /// for another one.
    pub(crate) fn new() -> io::Result<Self> {
        let text = unless_scarce(std::fs::read_to_string("/proc/sys/kernel/random/boot_id"))?;
        let boot_id = match text.and_then(|text| parse_uuid(text.trim())) {
            Some(boot_id) => Some(read_time_namespace()?.name(boot_id)),
            None => None,
        };
        Ok(SystemClock { boot_id })
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> WallMillis {
        WallMillis(millis(rustix::time::clock_gettime(rustix::time::ClockId::Realtime)))
    }

    fn boot_millis(&self) -> u64 {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let id = rustix::time::ClockId::Boottime;
        // macOS counts CLOCK_MONOTONIC through sleep.
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let id = rustix::time::ClockId::Monotonic;
        millis(rustix::time::clock_gettime(id))
    }

    fn boot_id(&self) -> Option<[u8; 16]> {
        self.boot_id
    }

    fn monotonic_nanos(&self) -> u64 {
        nanos()
    }
}

/// Nanoseconds on the machine's clock for durations, for a wait that is in real time whatever a store's clock is.
pub(crate) fn nanos() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // It counts from a boot, and the system keeps its nanoseconds in 63 bits.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// The wall clock's time when [`nanos`] was so much, if it was not set since.
pub(crate) fn wall_when(then: u64) -> WallMillis {
    let wall = millis(rustix::time::clock_gettime(rustix::time::ClockId::Realtime));
    WallMillis(wall.saturating_sub(nanos().saturating_sub(then) / 1_000_000))
}

/// 0 before the epoch: such a wall clock is wrong, and it is only shown.
fn millis(time: rustix::time::Timespec) -> u64 {
    if time.tv_sec < 0 {
        return 0;
    }
    time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000
}

/// The time namespace in which this process reads its clocks. Its boot clock is offset by an amount that was set when
/// the namespace was made and never changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TimeNamespace {
    /// The boot clock is the machine's, or this system has no time namespaces.
    Machine,
    /// The boot clock is offset by this. Two namespaces with the same offset have the same clock.
    Off { seconds: i64, nanos: u32 },
    /// The offset is unknown; the namespace has this number.
    Unknown { inode: u32 },
}

impl TimeNamespace {
    /// Names a boot as seen from this namespace: the machine's name for it, changed by another pattern for each
    /// namespace.
    fn name(self, boot_id: [u8; 16]) -> [u8; 16] {
        let (seconds, nanos, inode) = match self {
            TimeNamespace::Machine => (0, 0, 0),
            TimeNamespace::Off { seconds, nanos } => (seconds, nanos, 0),
            TimeNamespace::Unknown { inode } => (0, 0, inode),
        };
        let pattern = seconds.to_le_bytes().into_iter().chain(nanos.to_le_bytes());
        let mut name = boot_id;
        for (byte, pattern) in name.iter_mut().zip(pattern.chain(inode.to_le_bytes())) {
            *byte ^= pattern;
        }
        name
    }
}

/// The number of the time namespace that a machine boots in (`linux/proc_ns.h`).
const MACHINE_TIME_INODE: u32 = 0xEFFF_FFFA;

fn read_time_namespace() -> io::Result<TimeNamespace> {
    let inode = |name| -> io::Result<Option<u32>> {
        let link = unless_scarce(std::fs::read_link(format!("/proc/self/ns/{name}")))?;
        Ok(link.and_then(|link| parse_inode(link.to_str()?)))
    };
    let Some(own) = inode("time")?.filter(|inode| *inode != MACHINE_TIME_INODE) else {
        return Ok(TimeNamespace::Machine);
    };
    // It describes the namespace of children.
    let is_of_own = inode("time_for_children")? == Some(own);
    let offsets = unless_scarce(std::fs::read_to_string("/proc/self/timens_offsets"))?;
    let offset = offsets.filter(|_| is_of_own).and_then(|offsets| parse_offset(&offsets));
    Ok(match offset {
        Some((0, 0)) => TimeNamespace::Machine,
        Some((seconds, nanos)) => TimeNamespace::Off { seconds, nanos },
        None => TimeNamespace::Unknown { inode: own },
    })
}

/// `None` for a file that is missing or may not be read: a later try changes nothing.
fn unless_scarce<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(e) if crate::error::is_scarce(&e) => Err(e),
        read => Ok(read.ok()),
    }
}

/// `time:[4026531834]`
fn parse_inode(link: &str) -> Option<u32> {
    link.strip_prefix("time:[")?.strip_suffix(']')?.parse().ok()
}

/// Seconds and nanoseconds from lines like `boottime  1000  0`.
fn parse_offset(offsets: &str) -> Option<(i64, u32)> {
    offsets.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let is_boot = words.next() == Some("boottime");
        let offset = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        is_boot.then_some(offset)
    })
}

/// `1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed` as 16 bytes.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut id = [0; 16];
    if digits.len() != 2 * id.len() {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value =
                char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok())?;
            *byte = (*byte << 4) | value;
        }
    }
    Some(id)
}

/// The three clocks at one moment, as the log and the manifest keep them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TimeNote {
    pub(crate) boot_id: Option<[u8; 16]>,
    pub(crate) boot_millis: u64,
    pub(crate) store: StoreMillis,
    pub(crate) wall: WallMillis,
}

/// Store time since one open.
#[derive(Debug)]
pub(crate) struct StoreClock {
    boot_at_open: u64,
    store_at_open: StoreMillis,
    /// The greatest store time returned so far.
    newest: AtomicU64,
}

impl StoreClock {
    /// Continues from `newest_note`, the newest one recovered, and from the largest store time in any record.
    /// `off_millis_max` bounds how far time may advance across a reboot.
    pub(crate) fn open(
        newest_note: Option<&TimeNote>,
        largest_recorded: StoreMillis,
        off_millis_max: u64,
        clock: &dyn Clock,
    ) -> Self {
        let boot_at_open = clock.boot_millis();
        let store_at_open = match newest_note {
            None => StoreMillis(clock.wall().0),
            Some(note) if within_boot(note, clock.boot_id(), boot_at_open) => {
                note.store.plus(boot_at_open - note.boot_millis)
            }
            // A wall clock that was set back meanwhile counts as no time passed.
            Some(note) => {
                note.store.plus(clock.wall().0.saturating_sub(note.wall.0).min(off_millis_max))
            }
        };
        let store_at_open = store_at_open.max(largest_recorded).min(StoreMillis(STORE_MILLIS_MAX));
        StoreClock { boot_at_open, store_at_open, newest: AtomicU64::new(store_at_open.0) }
    }

    /// Store time now. Never less than any time returned before, to any thread.
    pub(crate) fn now(&self, clock: &dyn Clock) -> StoreMillis {
        self.at(clock.boot_millis())
    }

    /// What to record so that a later open continues from here.
    pub(crate) fn note(&self, clock: &dyn Clock) -> TimeNote {
        let boot_millis = clock.boot_millis();
        TimeNote {
            boot_id: clock.boot_id(),
            boot_millis,
            store: self.at(boot_millis),
            wall: clock.wall(),
        }
    }

    /// Whether wall time and store time have diverged since `last` by so much that a new note is due.
    pub(crate) fn drifted(&self, clock: &dyn Clock, last: &TimeNote) -> bool {
        let (store, wall) = (self.now(clock), clock.wall());
        // The advances are wall - last.wall and store - last.store; crosswise, no difference goes below 0.
        let left = u128::from(wall.0) + u128::from(last.store.0);
        let right = u128::from(store.0) + u128::from(last.wall.0);
        left.abs_diff(right) >= u128::from(TIME_DRIFT_MILLIS)
    }

    fn at(&self, boot_millis: u64) -> StoreMillis {
        // A restored machine image may have set the boot clock back; then no time has passed.
        let time = self.store_at_open.plus(boot_millis.saturating_sub(self.boot_at_open)).0;
        let time = time.min(STORE_MILLIS_MAX);
        let before = self.newest.fetch_max(time, Ordering::Relaxed);
        StoreMillis(before.max(time))
    }
}

/// Whether the boot clock continued from `note`. Always false on a system that can't name its boots.
fn within_boot(note: &TimeNote, boot_id: Option<[u8; 16]>, boot_millis: u64) -> bool {
    boot_id.is_some() && boot_id == note.boot_id && boot_millis >= note.boot_millis
}

#[cfg(any(test, feature = "testing"))]
pub(crate) use manual::ManualClock;

#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "the public simulator needs only part of it"))]
mod manual {
    use super::{Clock, WallMillis};

    /// Clocks moved by hand.
    #[derive(Debug)]
    pub(crate) struct ManualClock(parking_lot::Mutex<Hands>);

    /// What each clock shows. A clock stops at the last moment it can show, since a test may let any duration pass.
    #[derive(Clone, Copy, Debug)]
    struct Hands {
        wall: u64,
        boot_millis: u64,
        boot_count: u128,
        boot_named: bool,
        monotonic_millis: u64,
        /// How much time passes between one reading of the boot clock and the next.
        between_readings: u64,
    }

    impl ManualClock {
        /// Starts at `wall`, one minute after a boot.
        pub(crate) fn new(wall: WallMillis) -> Self {
            ManualClock(parking_lot::Mutex::new(Hands {
                wall: wall.0,
                boot_millis: 60_000,
                boot_count: 1,
                boot_named: true,
                monotonic_millis: 60_000,
                between_readings: 0,
            }))
        }

        /// Returns clocks that start with the same times and advance independently.
        pub(crate) fn copy(&self) -> Self {
            ManualClock(parking_lot::Mutex::new(*self.0.lock()))
        }

        /// Time passes: every clock advances.
        pub(crate) fn advance(&self, millis: u64) {
            let mut hands = self.0.lock();
            hands.wall = hands.wall.saturating_add(millis);
            hands.boot_millis = hands.boot_millis.saturating_add(millis);
            hands.monotonic_millis = hands.monotonic_millis.saturating_add(millis);
        }

        /// The machine sleeps: the monotonic clock doesn't advance.
        pub(crate) fn suspend(&self, millis: u64) {
            let mut hands = self.0.lock();
            hands.wall = hands.wall.saturating_add(millis);
            hands.boot_millis = hands.boot_millis.saturating_add(millis);
        }

        /// The wall clock is set; no time passes.
        pub(crate) fn jump_wall(&self, millis: i64) {
            let mut hands = self.0.lock();
            hands.wall = hands.wall.saturating_add_signed(millis);
        }

        /// The machine was off for so long: a new boot, its boot clock starting at a second.
        pub(crate) fn reboot(&self, off_millis: u64) {
            let mut hands = self.0.lock();
            hands.wall = hands.wall.saturating_add(off_millis);
            hands.boot_millis = 1000;
            // The monotonic one continues, because tests still use handles from before the boot.
            hands.boot_count = hands.boot_count.wrapping_add(1);
        }

        /// Only the boot clock falls back, while its boot keeps its name: a restored machine image.
        pub(crate) fn set_boot_millis(&self, millis: u64) {
            self.0.lock().boot_millis = millis;
        }

        /// Lets time pass from one reading of the boot clock to the next.
        pub(crate) fn run_on(&self, millis: u64) {
            self.0.lock().between_readings = millis;
        }

        /// Whether the system has a name for its boot.
        pub(crate) fn name_boot(&self, named: bool) {
            self.0.lock().boot_named = named;
        }
    }

    impl Clock for ManualClock {
        fn wall(&self) -> WallMillis {
            WallMillis(self.0.lock().wall)
        }

        fn boot_millis(&self) -> u64 {
            let mut hands = self.0.lock();
            let now = hands.boot_millis;
            hands.boot_millis = now.saturating_add(hands.between_readings);
            now
        }

        fn boot_id(&self) -> Option<[u8; 16]> {
            let hands = self.0.lock();
            hands.boot_named.then(|| hands.boot_count.to_le_bytes())
        }

        fn monotonic_nanos(&self) -> u64 {
            self.0.lock().monotonic_millis.saturating_mul(1_000_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::TIME_OFF_MILLIS_MAX;
    use std::sync::Arc;

    const START: u64 = 1_700_000_000_000;
    const HOUR: u64 = 3_600_000;
    const DAY: u64 = 24 * HOUR;

    fn manual() -> ManualClock {
        ManualClock::new(WallMillis(START))
    }

    fn first(clock: &dyn Clock) -> StoreClock {
        StoreClock::open(None, StoreMillis(0), TIME_OFF_MILLIS_MAX, clock)
    }

    fn reopened(note: &TimeNote, clock: &dyn Clock) -> StoreClock {
        StoreClock::open(Some(note), StoreMillis(0), TIME_OFF_MILLIS_MAX, clock)
    }

    #[test]
    fn the_first_open_starts_at_the_wall_clock() {
        let clock = manual();
        assert_eq!(first(&clock).now(&clock), StoreMillis(START));
    }

    /// Records have no bytes for a later time.
    #[test]
    fn store_time_stops_at_its_end() {
        let clock = ManualClock::new(WallMillis(STORE_MILLIS_MAX - 5));
        let store = first(&clock);
        clock.advance(4);
        assert_eq!(store.now(&clock), StoreMillis(STORE_MILLIS_MAX - 1));
        clock.advance(HOUR);
        assert_eq!(store.now(&clock), StoreMillis(STORE_MILLIS_MAX));
        assert_eq!(store.note(&clock).store, StoreMillis(STORE_MILLIS_MAX));
        let beyond = ManualClock::new(WallMillis(u64::MAX));
        assert_eq!(first(&beyond).now(&beyond), StoreMillis(STORE_MILLIS_MAX));
    }

    #[test]
    fn while_open_only_the_boot_clock_counts() {
        let clock = manual();
        let store = first(&clock);
        clock.jump_wall(30 * DAY as i64);
        assert_eq!(store.now(&clock), StoreMillis(START));
        clock.jump_wall(-60 * (DAY as i64));
        clock.advance(5);
        assert_eq!(store.now(&clock), StoreMillis(START + 5));
        clock.suspend(HOUR);
        assert_eq!(store.now(&clock), StoreMillis(START + 5 + HOUR));
    }

    #[test]
    fn while_open_a_nameless_boot_counts_as_well() {
        let clock = manual();
        clock.name_boot(false);
        let store = first(&clock);
        clock.jump_wall(DAY as i64);
        clock.advance(7);
        assert_eq!(store.now(&clock), StoreMillis(START + 7));
    }

    #[test]
    fn a_boot_clock_that_falls_back_does_not_turn_store_time_back() {
        let clock = manual();
        let store = first(&clock);
        clock.advance(100);
        assert_eq!(store.now(&clock), StoreMillis(START + 100));
        clock.set_boot_millis(0);
        assert_eq!(store.now(&clock), StoreMillis(START + 100));
        assert_eq!(store.note(&clock).store, StoreMillis(START + 100));
    }

    #[test]
    fn reopening_within_a_boot_ignores_the_wall_clock() {
        for jump in [0, 400 * DAY as i64, -400 * (DAY as i64)] {
            let clock = manual();
            let note = first(&clock).note(&clock);
            clock.advance(HOUR);
            clock.jump_wall(jump);
            assert_eq!(
                reopened(&note, &clock).now(&clock),
                StoreMillis(START + HOUR),
                "jump {jump}"
            );
        }
    }

    #[test]
    fn reopening_within_a_boot_has_no_upper_bound() {
        let clock = manual();
        let note = first(&clock).note(&clock);
        clock.suspend(30 * DAY);
        assert_eq!(reopened(&note, &clock).now(&clock), StoreMillis(START + 30 * DAY));
    }

    #[test]
    fn across_a_reboot_the_difference_of_the_wall_clock_counts() {
        let clock = manual();
        let note = first(&clock).note(&clock);
        clock.reboot(HOUR);
        let store = reopened(&note, &clock);
        assert_eq!(store.now(&clock), StoreMillis(START + HOUR));
        clock.advance(3);
        assert_eq!(store.now(&clock), StoreMillis(START + HOUR + 3));
    }

    #[test]
    fn across_a_reboot_a_wall_clock_set_forward_is_bounded() {
        let clock = manual();
        let note = first(&clock).note(&clock);
        clock.reboot(HOUR);
        clock.jump_wall(400 * DAY as i64);
        assert_eq!(reopened(&note, &clock).now(&clock), StoreMillis(START + TIME_OFF_MILLIS_MAX));
        let strict = StoreClock::open(Some(&note), StoreMillis(0), 10, &clock);
        assert_eq!(strict.now(&clock), StoreMillis(START + 10));
    }

    #[test]
    fn across_a_reboot_a_wall_clock_set_back_counts_as_no_time() {
        let clock = manual();
        let note = first(&clock).note(&clock);
        clock.reboot(HOUR);
        clock.jump_wall(-400 * (DAY as i64));
        let store = reopened(&note, &clock);
        assert_eq!(store.now(&clock), StoreMillis(START));
        clock.advance(9);
        assert_eq!(store.now(&clock), StoreMillis(START + 9));
    }

    #[test]
    fn a_boot_clock_below_that_of_the_note_is_another_boot() {
        let clock = manual();
        clock.advance(HOUR);
        let note = first(&clock).note(&clock);
        clock.set_boot_millis(note.boot_millis - 1);
        clock.jump_wall(42);
        assert_eq!(reopened(&note, &clock).now(&clock), note.store.plus(42));
    }

    #[test]
    fn without_a_boot_id_every_open_is_another_boot() {
        let clock = manual();
        clock.name_boot(false);
        let note = first(&clock).note(&clock);
        assert_eq!(note.boot_id, None);
        clock.advance(HOUR);
        clock.jump_wall(-(HOUR as i64) / 2);
        assert_eq!(reopened(&note, &clock).now(&clock), StoreMillis(START + HOUR / 2));
        clock.name_boot(true);
        assert_eq!(reopened(&note, &clock).now(&clock), StoreMillis(START + HOUR / 2));
    }

    #[test]
    fn a_vanished_boot_id_is_another_boot() {
        let clock = manual();
        let note = first(&clock).note(&clock);
        clock.name_boot(false);
        clock.advance(HOUR);
        clock.jump_wall(-(HOUR as i64));
        assert_eq!(reopened(&note, &clock).now(&clock), StoreMillis(START));
    }

    #[test]
    fn no_record_is_later_than_store_time() {
        let clock = manual();
        let note = first(&clock).note(&clock);
        let recorded = StoreMillis(START + 5000);
        let store = StoreClock::open(Some(&note), recorded, TIME_OFF_MILLIS_MAX, &clock);
        assert_eq!(store.now(&clock), recorded);
        clock.advance(1);
        assert_eq!(store.now(&clock), recorded.plus(1));
        let store = StoreClock::open(None, recorded, TIME_OFF_MILLIS_MAX, &clock);
        assert_eq!(store.now(&clock), recorded);
    }

    #[test]
    fn drift_is_noticed_at_a_second_in_both_directions() {
        let clock = manual();
        let store = first(&clock);
        let note = store.note(&clock);
        clock.advance(HOUR);
        assert!(!store.drifted(&clock, &note));
        clock.jump_wall(999);
        assert!(!store.drifted(&clock, &note));
        clock.jump_wall(1);
        assert!(store.drifted(&clock, &note));
        clock.jump_wall(-2000);
        assert!(store.drifted(&clock, &note));
        clock.jump_wall(1);
        assert!(!store.drifted(&clock, &note));
        let note = store.note(&clock);
        assert!(!store.drifted(&clock, &note));
    }

    #[test]
    fn store_time_adds_up_over_reboots_and_never_turns_back() {
        let clock = manual();
        let mut note = first(&clock).note(&clock);
        for turn in 0..100_i64 {
            clock.reboot(10);
            clock.jump_wall(if turn % 2 == 0 { -5000 } else { 5000 });
            let store = reopened(&note, &clock);
            clock.advance(3);
            let next = store.note(&clock);
            assert!(next.store >= note.store.plus(3));
            note = next;
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        let clock = manual();
        let note = TimeNote {
            boot_id: clock.boot_id(),
            boot_millis: 0,
            store: StoreMillis(STORE_MILLIS_MAX),
            wall: WallMillis(u64::MAX),
        };
        let store = reopened(&note, &clock);
        assert_eq!(store.now(&clock), StoreMillis(STORE_MILLIS_MAX));
        clock.advance(u64::MAX);
        assert_eq!(store.now(&clock), StoreMillis(STORE_MILLIS_MAX));
        assert!(!store.drifted(&clock, &note));
    }

    #[test]
    fn no_thread_sees_store_time_fall() {
        let clock = Arc::new(manual());
        let store = first(&*clock);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..2000).for_each(|_| clock.advance(1)));
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = StoreMillis(0);
                    for _ in 0..2000 {
                        let now = store.now(&*clock);
                        assert!(now >= last);
                        last = now;
                    }
                });
            }
        });
    }

    #[test]
    fn the_system_clocks_advance() {
        let clock = SystemClock::new().unwrap();
        assert!(clock.wall().0 > START);
        assert!(clock.boot_millis() > 0);
        let before = clock.monotonic_nanos();
        assert!(clock.monotonic_nanos() >= before);
        if cfg!(target_os = "linux") {
            assert!(clock.boot_id().is_some());
        }
    }

    #[test]
    fn a_time_namespace_is_another_boot_unless_its_clock_is_the_same() {
        let boot = [0xAB; 16];
        let off = |seconds, nanos| TimeNamespace::Off { seconds, nanos };
        let named = [
            TimeNamespace::Machine,
            off(1000, 0),
            off(-1000, 0),
            off(0, 1000),
            off(1, 999_999_999),
            TimeNamespace::Unknown { inode: 1000 },
            TimeNamespace::Unknown { inode: u32::MAX },
        ]
        .map(|namespace| namespace.name(boot));
        assert_eq!(named[0], boot);
        for (index, name) in named.iter().enumerate() {
            assert!(named.iter().skip(index + 1).all(|other| other != name), "{index}");
        }
        assert_eq!(off(1000, 0).name(boot), off(1000, 0).name(boot));
    }

    #[test]
    fn a_time_namespace_is_parsed_whole_or_not_at_all() {
        assert_eq!(parse_inode("time:[4026531834]"), Some(MACHINE_TIME_INODE));
        for bad in ["", "time:[]", "time:[1", "mnt:[4026531834]", "time:[99999999999]"] {
            assert_eq!(parse_inode(bad), None, "{bad}");
        }
        let offsets = "monotonic           7         0\nboottime        -1000  5\n";
        assert_eq!(parse_offset(offsets), Some((-1000, 5)));
        for bad in ["", "monotonic 7 0", "boottime", "boottime 1", "boottime x 0", "boottime 1 -2"]
        {
            assert_eq!(parse_offset(bad), None, "{bad}");
        }
        assert_eq!(read_time_namespace().unwrap(), read_time_namespace().unwrap());
    }

    #[test]
    fn only_a_whole_uuid_is_a_boot_id() {
        let id = parse_uuid("00ff1020-3040-5060-7080-90a0b0c0d0e0").unwrap();
        assert_eq!(id[..4], [0, 0xff, 0x10, 0x20]);
        assert_eq!(id[15], 0xe0);
        for bad in [
            "",
            "00ff",
            "zzff1020-3040-5060-7080-90a0b0c0d0e0",
            "00ff1020-3040-5060-7080-90a0b0c0d0e0a",
        ] {
            assert_eq!(parse_uuid(bad), None, "{bad}");
        }
    }
}
