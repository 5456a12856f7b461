//! Segments that are no longer written: they are opened when they are read, and only a limited number at a time.
//!
//! Promises: descriptors and maps are bounded whatever the number of segments, except for the maps that payloads of
//! callers hold; a holder of a segment can read it even after its file is removed. Never: writes, or interprets the bytes of a segment.
//!
//! A clock with one hand (second chance) chooses the segment to close: one that was read since the hand last passed
//! it stays open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use crate::limits;
use crate::storage::{Access, File, Map, Storage};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::types::in_memory;

/// What the segments of one log share.
#[derive(Debug)]
pub(crate) struct Pool {
    storage: Arc<dyn Storage>,
    /// Whether they are read through maps.
    maps: bool,
    /// The most segments that may be open at once, by map or by descriptor.
    most: usize,
    open: Mutex<Open>,
    /// Segments whose files are removed, and which stay open for their readers.
    pinned: AtomicU64,
}

#[derive(Default, Debug)]
struct Open {
    members: Vec<Weak<Member>>,
    hand: usize,
}

/// One segment's place in a pool.
#[derive(Debug)]
pub(crate) struct Pooled {
    pool: Arc<Pool>,
    member: Arc<Member>,
}

#[derive(Debug)]
struct Member {
    path: PathBuf,
    /// Whether it was read since the hand last passed it.
    is_used: AtomicBool,
    /// Set under the lock of `state`.
    is_pinned: AtomicBool,
    state: Mutex<PoolState>,
}

#[derive(Debug)]
struct PoolState {
    /// Length of the part of the file that may be read: nothing is written there any more.
    len: u64,
    bytes: Option<SegmentBytes>,
}

/// An open segment.
#[derive(Clone, Debug)]
pub(crate) enum SegmentBytes {
    Map(Arc<dyn Map>),
    File(Arc<dyn File>),
}

impl Pool {
    pub(crate) fn new(storage: Arc<dyn Storage>, maps: bool) -> Arc<Self> {
        let most = match maps {
            true => limits::OPEN_SEGMENTS_MAX,
            // Most of the process's descriptors are left to other uses.
            false => storage.files_max().map_or(limits::OPEN_SEGMENTS_MAX, |files| {
                in_memory(files / limits::SHARE_OF_FILES)
                    .clamp(limits::OPEN_SEGMENTS_LEAST, limits::OPEN_SEGMENTS_MAX)
            }),
        };
        Pool::of_size(storage, maps, most)
    }

    /// The same for at most `most` open segments.
    fn of_size(storage: Arc<dyn Storage>, maps: bool, most: usize) -> Arc<Self> {
        let (open, pinned) = (Mutex::new(Open::default()), AtomicU64::new(0));
        Arc::new(Pool { storage, maps, most, open, pinned })
    }

    /// Adds the segment at `path`, whose first `len` bytes are never written again. `file` is its open file.
    pub(crate) fn take(self: &Arc<Self>, path: &Path, len: u64, file: Arc<dyn File>) -> Pooled {
        let state = PoolState { len, bytes: None };
        let member = Arc::new(Member {
            path: path.to_owned(),
            is_used: AtomicBool::new(false),
            is_pinned: AtomicBool::new(false),
            state: Mutex::new(state),
        });
        self.make_room();
        member.state.lock().bytes = Some(self.bytes_of(file, len));
        self.open.lock().members.push(Arc::downgrade(&member));
        Pooled { pool: Arc::clone(self), member }
    }

    fn bytes_of(&self, file: Arc<dyn File>, len: u64) -> SegmentBytes {
        // Where mapping fails, plain reads serve: the format is the same.
        match if self.maps { file.map(len).ok() } else { None } {
            Some(map) => SegmentBytes::Map(map),
            None => SegmentBytes::File(file),
        }
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.make_room();
        match self.storage.open(path, Access::Read) {
            Err(e) if crate::error::is_scarce(&e) => {
                // Frees descriptors that the pool holds and may not need.
                self.close_most();
                self.storage.open(path, Access::Read)
            }
            opened => opened,
        }
    }

    /// Closes segments that were not read lately, until one more may be opened.
    fn make_room(&self) {
        let mut open = self.open.lock();
        // Two rounds suffice: the first one clears all marks.
        for _ in 0..2 * open.members.len() {
            if open.members.len() < self.most {
                return;
            }
            open.advance(|member| !member.is_used.swap(false, Ordering::Relaxed));
        }
    }

    /// Closes all unused ones.
    fn close_most(&self) {
        let mut open = self.open.lock();
        for _ in 0..open.members.len() {
            open.advance(|_| true);
        }
    }
}

impl Open {
    /// Moves the hand to the next member, and closes it if it `may`. A member that is locked at that moment stays
    /// open.
    fn advance(&mut self, may: impl FnOnce(&Member) -> bool) {
        if self.hand >= self.members.len() {
            self.hand = 0;
        }
        let Some(member) = self.members.get(self.hand) else { return };
        let is_closed = match member.upgrade() {
            None => true,
            Some(member) => {
                may(&member)
                    && member.state.try_lock().is_some_and(|mut state| {
                        if !member.is_pinned.load(Ordering::SeqCst) {
                            state.bytes = None;
                        }
                        true
                    })
            }
        };
        if is_closed {
            self.members.swap_remove(self.hand);
        } else {
            self.hand += 1;
        }
    }
}

impl Pooled {
    /// Returns the segment's bytes, and opens it if it is closed.
    pub(crate) fn bytes(&self) -> io::Result<SegmentBytes> {
        let member = &self.member;
        if !member.is_used.load(Ordering::Relaxed) {
            member.is_used.store(true, Ordering::Relaxed);
        }
        let mut state = member.state.lock();
        if let Some(bytes) = &state.bytes {
            return Ok(bytes.clone());
        }
        self.open_in(&mut state)
    }

    fn open_in(&self, state: &mut PoolState) -> io::Result<SegmentBytes> {
        let file = self.pool.open(&self.member.path)?;
        let bytes = self.pool.bytes_of(file, state.len);
        state.bytes = Some(bytes.clone());
        self.pool.open.lock().members.push(Arc::downgrade(&self.member));
        Ok(bytes)
    }

    /// Returns the segment's file, for reads by calls: these fail where the device can't read, while a map would end
    /// the process.
    pub(crate) fn file(&self) -> io::Result<Arc<dyn File>> {
        self.pool.open(&self.member.path)
    }

    /// Keeps the segment open: its file is about to be removed while it is read.
    pub(crate) fn pin(&self) -> io::Result<()> {
        let mut state = self.member.state.lock();
        if self.member.is_pinned.load(Ordering::SeqCst) {
            return Ok(());
        }
        if self.pool.pinned.load(Ordering::SeqCst) >= self.pool.most as u64 {
            let message = "too many removed segments are still read: end walks that began long ago";
            return Err(io::Error::other(message));
        }
        if state.bytes.is_none() {
            self.open_in(&mut state)?;
        }
        self.member.is_pinned.store(true, Ordering::SeqCst);
        self.pool.pinned.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Prepares for cutting off the bytes after `len`. Returns `false` if a reader has a map that reaches further:
    /// then they must not be cut, because a read there would end the process.
    pub(crate) fn cut_to(&self, len: u64) -> bool {
        let mut state = self.member.state.lock();
        if len >= state.len {
            return true;
        }
        let is_mapped = match &state.bytes {
            Some(SegmentBytes::Map(map)) => Arc::strong_count(map) > 1,
            _ => false,
        };
        if is_mapped {
            return false;
        }
        state.len = len;
        state.bytes = None;
        true
    }
}

impl Drop for Pooled {
    /// Takes no lock: in a forked child a lock may never be released.
    fn drop(&mut self) {
        if self.member.is_pinned.load(Ordering::SeqCst) {
            self.pool.pinned.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faulty::{CallFailure, Calls, Class, Effect, Fault, FaultyStorage};
    use crate::storage::memory::MemoryStorage;
    use crate::storage::write_all_at;

    fn storage() -> FaultyStorage {
        FaultyStorage::new(Arc::new(MemoryStorage::new()))
    }

    fn path(n: u64) -> PathBuf {
        PathBuf::from(format!("/{n}"))
    }

    fn segments(storage: &FaultyStorage, pool: &Arc<Pool>, count: u64) -> Vec<Pooled> {
        let segment = |n| {
            let file = storage.create(&path(n)).unwrap();
            write_all_at(&*file, &[n as u8; 64], 0).unwrap();
            pool.take(&path(n), 64, file)
        };
        (0..count).map(segment).collect()
    }

    fn read(segment: &Pooled) -> Option<u8> {
        match segment.bytes().unwrap() {
            SegmentBytes::Map(map) => map.bytes(63, 1).map(|bytes| bytes[0]),
            SegmentBytes::File(file) => {
                let mut byte = [0];
                assert_eq!(file.read_at(&mut byte, 63).unwrap(), 1);
                Some(byte[0])
            }
        }
    }

    fn open_now(segments: &[Pooled]) -> usize {
        segments.iter().filter(|segment| segment.member.state.lock().bytes.is_some()).count()
    }

    #[test]
    fn the_number_of_open_segments_is_bounded_and_all_can_be_read() {
        for maps in [true, false] {
            let storage = storage();
            let pool = Pool::of_size(Arc::new(storage.clone()), maps, 4);
            let segments = segments(&storage, &pool, 100);
            for round in 0..3 {
                for (n, segment) in segments.iter().enumerate() {
                    assert_eq!(read(segment), Some(n as u8), "{maps} {round}");
                    assert!(open_now(&segments) <= 4, "{maps} {round} {n}");
                }
            }
            assert!(pool.open.lock().members.len() <= 4);
        }
    }

    #[test]
    fn a_segment_that_is_read_often_stays_open() {
        let storage = storage();
        let pool = Pool::of_size(Arc::new(storage.clone()), true, 4);
        let segments = segments(&storage, &pool, 50);
        read(&segments[7]);
        let before = storage.count(Calls::Of(Class::Open));
        for segment in &segments {
            read(segment);
            read(&segments[7]);
        }
        // Each of the others once, this one never again.
        assert!(storage.count(Calls::Of(Class::Open)) - before <= 50);
        assert!(segments[7].member.state.lock().bytes.is_some());
    }

    #[test]
    fn a_segment_stays_readable_after_its_file_is_removed() {
        let storage = storage();
        let pool = Pool::of_size(Arc::new(storage.clone()), true, 2);
        let mut segments = segments(&storage, &pool, 6);
        for n in [0, 1] {
            segments[n as usize].pin().unwrap();
            segments[n as usize].pin().unwrap();
            storage.remove(&path(n)).unwrap();
        }
        for segment in &segments[2..] {
            read(segment);
        }
        assert_eq!((read(&segments[0]), read(&segments[1])), (Some(0), Some(1)));
        // They are bounded, too: no more may be removed until a reader ends.
        assert_eq!(segments[2].pin().unwrap_err().kind(), io::ErrorKind::Other);
        drop(segments.remove(0));
        segments[1].pin().unwrap();
    }

    #[test]
    fn plain_reads_are_used_where_mapping_fails() {
        let storage = storage();
        let pool = Pool::of_size(Arc::new(storage.clone()), true, 2);
        let no_memory = Effect::Fail(CallFailure::NO_MEMORY);
        storage.inject(Fault::from(Calls::Of(Class::Map), 0, no_memory));
        let segments = segments(&storage, &pool, 6);
        for (n, segment) in segments.iter().enumerate() {
            assert_eq!(read(segment), Some(n as u8));
        }
        assert!(open_now(&segments) <= 2);
    }

    #[test]
    fn opening_without_a_free_descriptor_closes_others_and_is_retried_once() {
        let storage = storage();
        let pool = Pool::of_size(Arc::new(storage.clone()), false, 4);
        let segments = segments(&storage, &pool, 8);
        let none = || Effect::Fail(CallFailure::TOO_MANY_OPEN);
        storage.inject(Fault::once(Calls::Of(Class::Open), 0, none()));
        assert_eq!(read(&segments[0]), Some(0));
        assert_eq!(open_now(&segments), 1);
        storage.inject(Fault::from(Calls::Of(Class::Open), 0, none()));
        let error = segments[1].bytes().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()));
        storage.heal();
        assert_eq!(read(&segments[1]), Some(1));
    }

    #[test]
    fn nothing_is_cut_off_under_a_map() {
        let storage = storage();
        let pool = Pool::of_size(Arc::new(storage.clone()), true, 4);
        let segments = segments(&storage, &pool, 1);
        let held = segments[0].bytes().unwrap();
        assert!(!segments[0].cut_to(32));
        let SegmentBytes::Map(map) = held else { panic!() };
        let part = map.hold(0, 8).unwrap();
        assert!(!segments[0].cut_to(32), "a payload holds it");
        drop(part);
        assert!(segments[0].cut_to(32));
        // The map of the whole segment is closed, too.
        assert_eq!(open_now(&segments), 0);
        storage.open(&path(0), Access::ReadWrite).unwrap().truncate(32).unwrap();
        let SegmentBytes::Map(map) = segments[0].bytes().unwrap() else { panic!() };
        assert!(map.bytes(0, 32).is_some() && map.bytes(32, 1).is_none());
    }
}
