//! Wraps another storage and makes chosen calls fail, fall short, wait, or be the last before a power cut.
//!
//! Promises: counts every call by class, so a test can fail the first, the second, and so on until a run ends without a
//! fault. A call that fails by [`Effect::Fail`] or a power cut has no effect; one that fails by [`Effect::FailAfter`]
//! has its full effect. Without faults it changes nothing.
//! Never: chooses at random, and never undoes a call: what the device keeps after a cut is decided by the inner
//! storage.

#![expect(clippy::disallowed_types, reason = "part of the storage seam")]
#![cfg_attr(not(test), allow(dead_code, reason = "the public simulator needs only part of it"))]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Access, DirEntry, File, Map, Standing, Storage, TakenDir};

/// What kind of call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Class {
    CreateDir,
    Lock,
    Create,
    Open,
    Rename,
    Exchange,
    Link,
    Remove,
    List,
    SyncDir,
    /// `network_fs`, `standing`, `is_locked`.
    Stat,
    Len,
    Read,
    Write,
    Sync,
    Truncate,
    Map,
}

impl Class {
    pub(crate) const ALL: [Class; 17] = [
        Class::CreateDir,
        Class::Lock,
        Class::Create,
        Class::Open,
        Class::Rename,
        Class::Exchange,
        Class::Link,
        Class::Remove,
        Class::List,
        Class::SyncDir,
        Class::Stat,
        Class::Len,
        Class::Read,
        Class::Write,
        Class::Sync,
        Class::Truncate,
        Class::Map,
    ];

    /// Whether such a call opens something.
    pub(crate) const fn opens(self) -> bool {
        matches!(self, Class::Lock | Class::Create | Class::Open | Class::List)
    }

    /// Whether such a call changes the disk.
    pub(crate) const fn changes(self) -> bool {
        use Class::{
            Create, CreateDir, Exchange, Link, Remove, Rename, Sync, SyncDir, Truncate, Write,
        };
        matches!(
            self,
            CreateDir
                | Create
                | Rename
                | Exchange
                | Link
                | Remove
                | SyncDir
                | Write
                | Sync
                | Truncate
        )
    }
}

/// Which calls a fault counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Calls {
    Any,
    Changing,
    /// Those that take a file descriptor.
    Opening,
    /// Those that take memory of the system: descriptors and maps.
    Taking,
    Of(Class),
}

impl Calls {
    fn include(self, class: Class) -> bool {
        match self {
            Calls::Any => true,
            Calls::Changing => class.changes(),
            Calls::Opening => class.opens(),
            Calls::Taking => class.opens() || class == Class::Map,
            Calls::Of(one) => one == class,
        }
    }
}

/// What happens to a call.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// It fails and does nothing.
    Fail(CallFailure),
    /// It has its full effect, and fails nevertheless.
    FailAfter(CallFailure),
    /// A read or write is cut to so many bytes; other calls are unaffected.
    Short(usize),
    /// It fails without effect, and so does every later call. If it is a write, its first `bytes_kept` are written.
    PowerCut { bytes_kept: usize },
    /// It waits until the gate opens.
    Wait(Arc<CallGate>),
    /// It is slow: other threads are scheduled so often before it runs.
    #[cfg(shuttle)]
    Slow(u64),
    /// It waits until it is released, in a schedule of shuttle's.
    #[cfg(shuttle)]
    Held(Arc<Hold>),
    /// It panics without effect, as a bug of ours or of a seam would.
    Panic,
}

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CallFailure {
    Kind(io::ErrorKind),
    Errno(i32),
}

impl CallFailure {
    pub(crate) const IO: CallFailure = CallFailure::Errno(rustix::io::Errno::IO.raw_os_error());
    pub(crate) const FULL: CallFailure =
        CallFailure::Errno(rustix::io::Errno::NOSPC.raw_os_error());
    pub(crate) const TOO_MANY_OPEN: CallFailure =
        CallFailure::Errno(rustix::io::Errno::MFILE.raw_os_error());
    pub(crate) const NO_MEMORY: CallFailure =
        CallFailure::Errno(rustix::io::Errno::NOMEM.raw_os_error());
    pub(crate) const INTERRUPTED: CallFailure =
        CallFailure::Errno(rustix::io::Errno::INTR.raw_os_error());

    fn error(self) -> io::Error {
        match self {
            CallFailure::Kind(kind) => kind.into(),
            CallFailure::Errno(errno) => io::Error::from_raw_os_error(errno),
        }
    }
}

/// One fault, waiting for its call.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) calls: Calls,
    /// Counts only calls whose path ends in this.
    pub(crate) path_end: Option<PathBuf>,
    /// How many such calls succeed first, counted from when the fault is set.
    pub(crate) after: u64,
    /// Whether all later ones are hit as well.
    pub(crate) lasting: bool,
    pub(crate) effect: Effect,
}

impl Fault {
    /// Hits the call number `after`, the first being 0, and no other.
    pub(crate) fn once(calls: Calls, after: u64, effect: Effect) -> Self {
        Fault { calls, path_end: None, after, lasting: false, effect }
    }

    /// Hits the call number `after` and all that follow.
    pub(crate) fn from(calls: Calls, after: u64, effect: Effect) -> Self {
        Fault { lasting: true, ..Fault::once(calls, after, effect) }
    }

    /// Counts only paths that end in these components.
    pub(crate) fn at(self, path_end: impl Into<PathBuf>) -> Self {
        Fault { path_end: Some(path_end.into()), ..self }
    }
}

/// Blocks calls until a test releases them.
#[derive(Default, Debug)]
pub(crate) struct CallGate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default, Debug)]
struct GateState {
    open: bool,
    arrived: u64,
}

impl CallGate {
    /// Lets all waiting and later calls through.
    pub(crate) fn open(&self) {
        self.state.lock().open = true;
        self.changed.notify_all();
    }

    /// Waits until `count` calls in total have reached the gate; `false` if that takes longer than `most`.
    pub(crate) fn wait_arrived(&self, count: u64, most: Duration) -> bool {
        let mut state = self.state.lock();
        !self.changed.wait_while_for(&mut state, |state| state.arrived < count, most).timed_out()
    }

    fn pass(&self) {
        let mut state = self.state.lock();
        state.arrived += 1;
        self.changed.notify_all();
        self.changed.wait_while(&mut state, |state| !state.open);
    }
}

/// A [`Gate`] for one call, whose waits are shuttle's.
#[cfg(shuttle)]
pub(crate) struct Hold {
    has_come: crate::sync::AtomicBool,
    is_open: crate::sync::AtomicBool,
    word: crate::sync::WakeWord,
}

#[cfg(shuttle)]
impl Hold {
    pub(crate) fn new() -> Self {
        let [has_come, is_open] = [false; 2].map(crate::sync::AtomicBool::new);
        Hold { has_come, is_open, word: crate::sync::WakeWord::new() }
    }

    fn wait_until(&self, is_so: &crate::sync::AtomicBool) {
        loop {
            let seen = self.word.read();
            if is_so.load(Ordering::SeqCst) {
                return;
            }
            self.word.wait(seen, None);
        }
    }

    /// Waits until the call has arrived.
    pub(crate) fn wait_arrived(&self) {
        self.wait_until(&self.has_come);
    }

    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
        self.word.wake_all();
    }

    fn pass(&self) {
        self.has_come.store(true, Ordering::SeqCst);
        self.word.wake_all();
        self.wait_until(&self.is_open);
    }
}

#[cfg(shuttle)]
impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}

/// One call, as the log of calls shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Op {
    pub(crate) class: Class,
    pub(crate) path: PathBuf,
    /// The new name of a rename or a link, the second of an exchange.
    pub(crate) to: Option<PathBuf>,
    /// Offset of a read or write, length of a truncation or map.
    pub(crate) offset: u64,
    /// Bytes asked for.
    pub(crate) len: usize,
    /// Whether it succeeded.
    pub(crate) ok: bool,
}

/// Another storage, with faults. Clones share them.
#[derive(Clone)]
pub(crate) struct FaultyStorage {
    inner: Arc<dyn Storage>,
    script: Arc<Script>,
}

#[derive(Default)]
struct Script {
    state: Mutex<FaultyState>,
    /// Power is cut.
    dark: AtomicBool,
    logging: AtomicBool,
}

#[derive(Default)]
struct FaultyState {
    faults: Vec<Fault>,
    counts: BTreeMap<Class, u64>,
    hits: u64,
    log: Vec<Op>,
}

impl FaultyStorage {
    pub(crate) fn new(inner: Arc<dyn Storage>) -> Self {
        FaultyStorage { inner, script: Arc::default() }
    }

    /// Adds a fault; it counts calls from now on.
    pub(crate) fn inject(&self, fault: Fault) {
        self.script.state.lock().faults.push(fault);
    }

    /// Removes all faults. A power cut stays, and so does a call that waits at a gate.
    pub(crate) fn heal(&self) {
        self.script.state.lock().faults.clear();
    }

    /// Cuts the power now.
    pub(crate) fn cut_power(&self) {
        self.script.dark.store(true, Ordering::SeqCst);
    }

    pub(crate) fn power_is_cut(&self) -> bool {
        self.script.dark.load(Ordering::SeqCst)
    }

    /// How many such calls there were, including those that failed, excluding those after a power cut.
    pub(crate) fn count(&self, calls: Calls) -> u64 {
        let state = self.script.state.lock();
        state
            .counts
            .iter()
            .filter(|(class, _)| calls.include(**class))
            .map(|(_, count)| count)
            .sum()
    }

    /// How often a fault took effect. A run without a hit has tried them all.
    pub(crate) fn hits(&self) -> u64 {
        self.script.state.lock().hits
    }

    /// Starts or stops logging calls.
    pub(crate) fn log_calls(&self, on: bool) {
        self.script.logging.store(on, Ordering::SeqCst);
    }

    /// Returns the calls logged since the last time, in the order in which they ended.
    pub(crate) fn take_log(&self) -> Vec<Op> {
        std::mem::take(&mut self.script.state.lock().log)
    }

    fn file(&self, inner: Arc<dyn File>, path: &Path) -> Arc<dyn File> {
        Arc::new(FaultyFile { inner, path: path.to_owned(), script: Arc::clone(&self.script) })
    }
}

impl fmt::Debug for FaultyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStorage").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// A call on its way.
#[derive(Clone, Copy)]
struct CallOf<'a> {
    class: Class,
    path: &'a Path,
    to: Option<&'a Path>,
    offset: u64,
    len: usize,
}

impl<'a> CallOf<'a> {
    fn of(class: Class, path: &'a Path) -> Self {
        CallOf { class, path, to: None, offset: 0, len: 0 }
    }
}

impl Script {
    /// Runs `run(len)`, where `len` is how many bytes a read or write may transfer, unless a fault prevents it.
    fn run<T>(&self, call: CallOf<'_>, run: impl FnOnce(usize) -> io::Result<T>) -> io::Result<T> {
        if self.dark.load(Ordering::SeqCst) {
            return Err(dark());
        }
        let effect = self.effect_on(&call);
        let result = match effect {
            None => run(call.len),
            Some(Effect::Short(len)) => run(call.len.min(len)),
            Some(Effect::Fail(failure)) => Err(failure.error()),
            Some(Effect::FailAfter(failure)) => run(call.len).and_then(|_| Err(failure.error())),
            Some(Effect::PowerCut { bytes_kept }) => {
                self.dark.store(true, Ordering::SeqCst);
                if call.class == Class::Write && bytes_kept > 0 {
                    // The caller doesn't learn the result.
                    drop(run(call.len.min(bytes_kept)));
                }
                Err(dark())
            }
            #[expect(clippy::panic, reason = "a test asked for it")]
            Some(Effect::Panic) => std::panic::panic_any("the simulated disk panics"),
            Some(Effect::Wait(gate)) => {
                gate.pass();
                // The power may have been cut meanwhile.
                if self.dark.load(Ordering::SeqCst) { Err(dark()) } else { run(call.len) }
            }
            #[cfg(shuttle)]
            Some(Effect::Slow(turns)) => {
                (0..turns).for_each(|_| crate::sync::yield_now());
                run(call.len)
            }
            #[cfg(shuttle)]
            Some(Effect::Held(hold)) => {
                hold.pass();
                run(call.len)
            }
        };
        if self.logging.load(Ordering::Relaxed) {
            let CallOf { class, path, to, offset, len } = call;
            let (path, to, ok) = (path.to_owned(), to.map(Path::to_owned), result.is_ok());
            self.state.lock().log.push(Op { class, path, to, offset, len, ok });
        }
        result
    }

    /// Counts the call. The first fault that is due takes effect; the others only count.
    fn effect_on(&self, call: &CallOf<'_>) -> Option<Effect> {
        let mut state = self.state.lock();
        let count = state.counts.entry(call.class).or_default();
        *count += 1;
        let mut effect = None;
        state.faults.retain_mut(|fault| {
            let ends = |end: &PathBuf| {
                call.path.ends_with(end) || call.to.is_some_and(|to| to.ends_with(end))
            };
            if !fault.calls.include(call.class) || !fault.path_end.as_ref().is_none_or(ends) {
                return true;
            }
            if let Some(left) = fault.after.checked_sub(1) {
                fault.after = left;
                return true;
            }
            if effect.is_none() {
                effect = Some(fault.effect.clone());
                return fault.lasting;
            }
            true
        });
        if effect.is_some() {
            state.hits += 1;
        }
        effect
    }
}

fn dark() -> io::Error {
    io::Error::other("the simulated power is cut")
}

impl Storage for FaultyStorage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.script.run(CallOf::of(Class::CreateDir, path), |_| self.inner.create_dir(path))
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<TakenDir> {
        let TakenDir { lock, storage } =
            self.script.run(CallOf::of(Class::Lock, dir), |_| self.inner.lock_dir(dir))?;
        let storage = FaultyStorage { inner: storage, script: Arc::clone(&self.script) };
        Ok(TakenDir { lock, storage: Arc::new(storage) })
    }

    fn hold_dir(&self, dir: &Path) -> io::Result<Arc<dyn Storage>> {
        let inner = self.script.run(CallOf::of(Class::Open, dir), |_| self.inner.hold_dir(dir))?;
        Ok(Arc::new(FaultyStorage { inner, script: Arc::clone(&self.script) }))
    }

    fn is_locked(&self, dir: &Path) -> io::Result<bool> {
        self.script.run(CallOf::of(Class::Stat, dir), |_| self.inner.is_locked(dir))
    }

    fn standing(&self, dir: &Path) -> io::Result<Standing> {
        self.script.run(CallOf::of(Class::Stat, dir), |_| self.inner.standing(dir))
    }

    fn lock_holder(&self, dir: &Path) -> Option<u32> {
        self.inner.lock_holder(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = self.script.run(CallOf::of(Class::Create, path), |_| self.inner.create(path))?;
        Ok(self.file(file, path))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>> {
        let file =
            self.script.run(CallOf::of(Class::Open, path), |_| self.inner.open(path, access))?;
        Ok(self.file(file, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let call = CallOf { to: Some(to), ..CallOf::of(Class::Rename, from) };
        self.script.run(call, |_| self.inner.rename(from, to))
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        let call = CallOf { to: Some(b), ..CallOf::of(Class::Exchange, a) };
        self.script.run(call, |_| self.inner.exchange(a, b))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let call = CallOf { to: Some(to), ..CallOf::of(Class::Link, from) };
        self.script.run(call, |_| self.inner.link(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.script.run(CallOf::of(Class::Remove, path), |_| self.inner.remove(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.script.run(CallOf::of(Class::List, dir), |_| self.inner.list(dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.script.run(CallOf::of(Class::SyncDir, dir), |_| self.inner.sync_dir(dir))
    }

    fn files_max(&self) -> Option<u64> {
        self.inner.files_max()
    }

    fn network_fs(&self, dir: &Path) -> io::Result<Option<&'static str>> {
        self.script.run(CallOf::of(Class::Stat, dir), |_| self.inner.network_fs(dir))
    }
}

struct FaultyFile {
    inner: Arc<dyn File>,
    path: PathBuf,
    script: Arc<Script>,
}

impl fmt::Debug for FaultyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultyFile").field(&self.inner).finish()
    }
}

impl File for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.script.run(CallOf::of(Class::Len, &self.path), |_| self.inner.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let call = CallOf { offset, len: buf.len(), ..CallOf::of(Class::Read, &self.path) };
        self.script.run(call, |len| self.inner.read_at(buf.split_at_mut(len).0, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let call = CallOf { offset, len: buf.len(), ..CallOf::of(Class::Write, &self.path) };
        self.script.run(call, |len| self.inner.write_at(buf.split_at(len).0, offset))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.script.run(CallOf::of(Class::Sync, &self.path), |_| self.inner.sync_data())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let call = CallOf { offset: len, ..CallOf::of(Class::Truncate, &self.path) };
        self.script.run(call, |_| self.inner.truncate(len))
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn Map>> {
        let call = CallOf { offset: len, ..CallOf::of(Class::Map, &self.path) };
        self.script.run(call, |_| self.inner.map(len))
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::{Crash, MemoryStorage};
    use super::super::{read_full_at, write_all_at};
    use super::*;

    const PATH: &str = "/file";

    fn storage() -> (MemoryStorage, FaultyStorage) {
        let memory = MemoryStorage::new();
        (memory.clone(), FaultyStorage::new(Arc::new(memory)))
    }

    fn path() -> &'static Path {
        Path::new(PATH)
    }

    /// Every class of call once.
    fn everything(storage: &dyn Storage) -> io::Result<()> {
        storage.create_dir(Path::new("/dir"))?;
        storage.network_fs(Path::new("/dir"))?;
        let _lock = storage.lock_dir(Path::new("/dir"))?;
        let file = storage.create(path())?;
        file.write_at(b"0123456789", 0)?;
        file.sync_data()?;
        file.len()?;
        let read = storage.open(path(), Access::Read)?;
        read.read_at(&mut [0; 4], 0)?;
        read.map(5)?;
        file.truncate(3)?;
        storage.rename(path(), Path::new("/dir/other"))?;
        // With itself: it is a call like any other.
        storage.exchange(Path::new("/dir/other"), Path::new("/dir/other"))?;
        storage.link(Path::new("/dir/other"), path())?;
        storage.sync_dir(Path::new("/dir"))?;
        storage.list(Path::new("/dir"))?;
        storage.remove(Path::new("/dir/other"))
    }

    #[test]
    fn without_faults_calls_reach_the_inner_storage_unchanged() {
        let (memory, faulty) = storage();
        everything(&faulty).unwrap();
        let alone = MemoryStorage::new();
        everything(&alone).unwrap();
        assert_eq!(memory.trace(), alone.trace());
        for class in Class::ALL {
            assert_eq!(faulty.count(Calls::Of(class)), 1, "{class:?}");
        }
        assert_eq!(faulty.count(Calls::Any), 17);
        assert_eq!(faulty.count(Calls::Changing), memory.changes());
        assert_eq!(faulty.hits(), 0);
    }

    #[test]
    fn every_class_of_call_can_fail_without_effect() {
        for class in Class::ALL {
            let (memory, faulty) = storage();
            faulty.inject(Fault::once(Calls::Of(class), 0, Effect::Fail(CallFailure::IO)));
            let error = everything(&faulty).unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(rustix::io::Errno::IO.raw_os_error()),
                "{class:?}"
            );
            assert_eq!(faulty.hits(), 1);
            let passed = faulty.count(Calls::Changing) - u64::from(class.changes());
            assert_eq!(memory.changes(), passed, "{class:?} reached the disk");
        }
    }

    #[test]
    fn the_nth_call_fails_for_all_n_until_a_run_is_clean() {
        let mut failures = 0;
        for n in 0.. {
            let (_, faulty) = storage();
            faulty.inject(Fault::once(
                Calls::Any,
                n,
                Effect::Fail(CallFailure::Kind(io::ErrorKind::TimedOut)),
            ));
            let result = everything(&faulty);
            if faulty.hits() == 0 {
                result.unwrap();
                break;
            }
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
            failures += 1;
        }
        assert_eq!(failures, 17);
    }

    #[test]
    fn a_fault_hits_one_call_or_all_from_it() {
        let (_, faulty) = storage();
        let file = faulty.create(path()).unwrap();
        faulty.inject(Fault::once(Calls::Of(Class::Write), 1, Effect::Fail(CallFailure::FULL)));
        let outcomes = [(); 3].map(|()| file.write_at(b"x", 0).is_ok());
        assert_eq!(outcomes, [true, false, true]);
        faulty.inject(Fault::from(Calls::Of(Class::Write), 1, Effect::Fail(CallFailure::FULL)));
        let outcomes = [(); 3].map(|()| file.write_at(b"x", 0).is_ok());
        assert_eq!(outcomes, [true, false, false]);
        assert_eq!(file.write_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
        faulty.heal();
        file.write_at(b"x", 0).unwrap();
    }

    #[test]
    fn a_fault_can_be_limited_to_a_path() {
        let (_, faulty) = storage();
        faulty.inject(Fault::from(Calls::Any, 0, Effect::Fail(CallFailure::IO)).at("b"));
        faulty.create(Path::new("/a")).unwrap();
        assert!(faulty.create(Path::new("/b")).is_err());
        assert!(
            faulty.rename(Path::new("/a"), Path::new("/b")).is_err(),
            "the new name counts as well"
        );
        faulty.create(Path::new("/bb")).unwrap();
    }

    #[test]
    fn a_call_that_fails_after_has_its_effect() {
        let (memory, faulty) = storage();
        faulty.create(path()).unwrap();
        faulty.inject(Fault::once(Calls::Of(Class::Rename), 0, Effect::FailAfter(CallFailure::IO)));
        assert!(faulty.rename(path(), Path::new("/new")).is_err());
        assert_eq!(memory.files(), [(PathBuf::from("/new"), 0)]);
    }

    #[test]
    fn short_and_interrupted_calls_are_continued() {
        let (memory, faulty) = storage();
        let file = faulty.create(path()).unwrap();
        faulty.inject(Fault::from(Calls::Of(Class::Write), 0, Effect::Short(3)));
        faulty.inject(Fault::from(Calls::Of(Class::Read), 0, Effect::Short(2)));
        assert_eq!(file.write_at(b"0123456789", 0).unwrap(), 3);
        faulty.heal();
        faulty.inject(Fault::once(
            Calls::Of(Class::Write),
            1,
            Effect::Fail(CallFailure::INTERRUPTED),
        ));
        faulty.inject(Fault::once(
            Calls::Of(Class::Read),
            1,
            Effect::Fail(CallFailure::INTERRUPTED),
        ));
        faulty.inject(Fault::from(Calls::Of(Class::Write), 0, Effect::Short(3)));
        faulty.inject(Fault::from(Calls::Of(Class::Read), 0, Effect::Short(3)));
        write_all_at(&*file, b"0123456789", 0).unwrap();
        assert_eq!(memory.read(path()).unwrap(), b"0123456789");
        let mut bytes = [0; 16];
        assert_eq!(read_full_at(&*file, &mut bytes, 0).unwrap(), 10);
        assert_eq!(&bytes[..10], b"0123456789");
        assert!(faulty.count(Calls::Of(Class::Write)) >= 6);
    }

    #[test]
    fn after_a_power_cut_every_call_fails_without_effect() {
        let (memory, faulty) = storage();
        let file = faulty.create(path()).unwrap();
        faulty.inject(Fault::once(Calls::Changing, 1, Effect::PowerCut { bytes_kept: 4 }));
        file.len().unwrap();
        file.write_at(b"01", 0).unwrap();
        assert!(file.write_at(b"abcdefgh", 2).is_err());
        assert!(faulty.power_is_cut());
        let trace = memory.trace();
        assert!(everything(&faulty).is_err());
        assert!(file.sync_data().is_err());
        assert!(file.len().is_err());
        assert_eq!(memory.trace(), trace);
        let after = memory.crash_clone(Crash::ALL);
        assert_eq!(after.read(path()).unwrap(), b"01abcd");
        assert_eq!(memory.crash_clone(Crash::NONE).files(), []);
    }

    #[test]
    fn a_power_cut_at_a_call_that_writes_nothing_undoes_it() {
        let (memory, faulty) = storage();
        faulty.inject(Fault::once(Calls::Changing, 0, Effect::PowerCut { bytes_kept: 9 }));
        assert!(faulty.create(path()).is_err());
        assert_eq!(memory.changes(), 0);
    }

    #[test]
    fn the_log_lists_calls_in_order() {
        let (_, faulty) = storage();
        let file = faulty.create(path()).unwrap();
        faulty.log_calls(true);
        faulty.inject(Fault::once(Calls::Of(Class::Sync), 0, Effect::Fail(CallFailure::IO)));
        file.write_at(b"abc", 7).unwrap();
        assert!(file.sync_data().is_err());
        faulty.rename(path(), Path::new("/b")).unwrap();
        let log = faulty.take_log();
        let short: Vec<_> = log.iter().map(|op| (op.class, op.offset, op.len, op.ok)).collect();
        let expected =
            [(Class::Write, 7, 3, true), (Class::Sync, 0, 0, false), (Class::Rename, 0, 0, true)];
        assert_eq!(short, expected);
        assert_eq!(log[2].to.as_deref(), Some(Path::new("/b")));
        faulty.log_calls(false);
        file.len().unwrap();
        assert_eq!(faulty.take_log(), []);
    }

    #[test]
    fn a_gate_blocks_calls_until_it_opens() {
        let (memory, faulty) = storage();
        let file = faulty.create(path()).unwrap();
        let gate = Arc::new(CallGate::default());
        faulty.inject(Fault::once(Calls::Of(Class::Sync), 0, Effect::Wait(Arc::clone(&gate))));
        file.write_at(b"abc", 0).unwrap();
        std::thread::scope(|scope| {
            let sync = scope.spawn(|| file.sync_data());
            assert!(gate.wait_arrived(1, Duration::from_secs(60)));
            assert_eq!(memory.read_device(path()).unwrap(), b"");
            gate.open();
            sync.join().unwrap().unwrap();
        });
        assert_eq!(memory.read_device(path()).unwrap(), b"abc");
        assert!(!gate.wait_arrived(2, Duration::from_millis(1)));
    }
}
