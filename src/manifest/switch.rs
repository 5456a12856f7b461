//! From one manifest to the next.
//!
//! Promises: the next one is written whole to a file prepared beforehand, whose name is then exchanged with that of the
//! current one. So a switch needs no space, and at every moment a whole manifest exists. The first switch of a process, which
//! has prepared nothing, takes a new file while there is space for one: that costs two syncs less.
//! Never: touches the file of a manifest that a power loss could bring back, or a directory that replaced the locked
//! one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Manifest, path};
use crate::error::is_full;
use crate::limits;
use crate::storage::{self, Access, Failure, File, Standing, Storage};
use crate::types::in_memory;
use crate::{Error, ErrorKind};

/// The next manifest's file, made and synced beforehand so that a full disk can't stop a switch. Its content has no
/// meaning: an older manifest, a part of one that was never switched to, or zeros.
fn next_path(dir: &Path) -> PathBuf {
    dir.join("MANIFEST.next")
}

/// A manifest in a file of its own, until it has the name of the next one's.
fn draft_path(dir: &Path) -> PathBuf {
    dir.join("MANIFEST.new")
}

/// Swaps manifests in.
#[derive(Debug)]
pub(crate) struct Switch {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    /// Whether the device has the names that this process sees.
    is_settled: bool,
    next: Option<Prepared>,
    /// The file of the current manifest, if this process prepared it: the one after the next.
    standing: Option<Prepared>,
}

/// A file of written bytes, so that overwriting them needs no space.
#[derive(Debug)]
struct Prepared {
    file: Arc<dyn File>,
    bytes: usize,
}

impl Switch {
    pub(crate) fn new(storage: Arc<dyn Storage>, dir: &Path) -> Self {
        let dir = dir.to_path_buf();
        Switch { storage, dir, is_settled: false, next: None, standing: None }
    }

    /// Whether the next manifest's file exists.
    pub(crate) fn is_prepared(&self) -> bool {
        self.next.is_some()
    }

    /// Makes the next manifest's file, or lengthens it, so that the switch itself needs no space.
    pub(crate) fn prepare(&mut self, bytes: usize) -> Result<(), Failure> {
        if self.next.as_ref().is_some_and(|next| next.bytes >= bytes) {
            return Ok(());
        }
        self.next = None;
        check_standing(&*self.storage, &self.dir)?;
        self.settle()?;
        let path = next_path(&self.dir);
        let (file, doing) = match self.storage.create(&path) {
            Ok(file) => (Ok(file), "creating"),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                (self.storage.open(&path, Access::ReadWrite), "opening")
            }
            Err(e) => (Err(e), "creating"),
        };
        let file = file.map_err(|e| before(doing, &path, e))?;
        fill_with_zeros(&*file, bytes as u64)
            .map_err(|e| Failure::full_or_poison(e, |e| Error::io("preparing", &path, e)))?;
        self.next = Some(Prepared { file, bytes });
        Ok(())
    }

    /// Called before the next manifest's file is touched: an earlier process may have exchanged the names and ended
    /// before it synced them. On the device that file is then the manifest.
    fn settle(&mut self) -> Result<(), Failure> {
        if !self.is_settled {
            self.sync_dir()?;
            self.is_settled = true;
        }
        Ok(())
    }

    /// Makes `manifest` the first one, where there is none. Durable on return.
    pub(crate) fn first(&mut self, manifest: &Manifest) -> Result<(), Failure> {
        self.write_next(manifest)?;
        self.rename()?;
        self.sync_dir()?;
        self.standing = self.next.take();
        Ok(())
    }

    /// Makes `manifest` the current one, and the former one's file the next one's. Durable on return. Where names can't
    /// be exchanged, the next one's file must be prepared anew.
    pub(crate) fn to(&mut self, manifest: &Manifest) -> Result<(), Failure> {
        let is_new = self.is_untouched() && self.write_new(manifest)?;
        if !is_new {
            self.write_next(manifest)?;
        }
        let (next, path) = (next_path(&self.dir), path(&self.dir));
        let is_exchanged = match self.storage.exchange(&next, &path) {
            Ok(()) => true,
            Err(e) if storage::cannot_exchange(&e) => {
                self.rename()?;
                false
            }
            Err(e) => return Err(scarce_or_poison("exchanging", &next, e)),
        };
        self.sync_dir()?;
        self.is_settled = true;
        let stood = std::mem::replace(&mut self.standing, self.next.take());
        self.next = if is_new { self.former() } else { stood }.filter(|_| is_exchanged);
        Ok(())
    }

    /// Whether this process has touched no file yet.
    fn is_untouched(&self) -> bool {
        !self.is_settled && self.next.is_none()
    }

    /// Writes a manifest to a new file, which then takes the place of the next one's. No file that exists is touched, so it
    /// doesn't matter which of them is the manifest on the device. `false`: there is no space for it.
    fn write_new(&mut self, manifest: &Manifest) -> Result<bool, Failure> {
        let content = self.checked(manifest, manifest.next_file_bytes())?;
        check_standing(&*self.storage, &self.dir)?;
        let (draft, bytes) = (draft_path(&self.dir), content.len());
        let file = match self.create_draft(&draft) {
            Ok(file) => file,
            Err(e) if is_full(&e) => return Ok(false),
            Err(e) => return Err(before("creating", &draft, e)),
        };
        let written = storage::write_all_at(&*file, &content, 0).and_then(|()| file.sync_data());
        if let Err(e) = written {
            // If it stays, the next process removes it.
            let _ = self.storage.remove(&draft);
            return match Failure::full_or_poison(e, |e| Error::io("writing", &draft, e)) {
                Failure::Before(_) => Ok(false),
                poison => Err(poison),
            };
        }
        let renamed = self.storage.rename(&draft, &next_path(&self.dir));
        renamed.map_err(|e| scarce_or_poison("renaming", &draft, e))?;
        self.next = Some(Prepared { file, bytes });
        Ok(true)
    }

    fn create_draft(&self, draft: &Path) -> std::io::Result<Arc<dyn File>> {
        match self.storage.create(draft) {
            // Left by a process that was killed.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                self.storage.remove(draft)?;
                self.storage.create(draft)
            }
            created => created,
        }
    }

    /// The file of the manifest that was current when this process began: its bytes were written and synced before it became
    /// that. `None`: it is prepared anew.
    fn former(&self) -> Option<Prepared> {
        let file = self.storage.open(&next_path(&self.dir), Access::ReadWrite).ok()?;
        let bytes = in_memory(file.len().ok()?);
        Some(Prepared { file, bytes })
    }

    /// The bytes of a manifest, in a file of at least so many. Refuses one that no open would accept.
    fn checked(&self, manifest: &Manifest, least: usize) -> Result<Vec<u8>, Failure> {
        let mut content = manifest.encode();
        let is_readable = Manifest::decode(&content, &path(&self.dir));
        if !is_readable.is_ok_and(|read| read == *manifest) {
            let what = "a manifest that no open would accept was to be written";
            return Err(Failure::Poison(Error::bug(&path(&self.dir), what)));
        }
        content.resize(content.len().max(least), 0);
        Ok(content)
    }

    /// Writes all of the next manifest's file, so that nothing of an older and longer one stays after the end. Refuses
    /// one that no open would accept, before anything is touched.
    fn write_next(&mut self, manifest: &Manifest) -> Result<(), Failure> {
        let mut content = self.checked(manifest, 0)?;
        self.prepare(manifest.file_bytes())?;
        check_standing(&*self.storage, &self.dir)?;
        let Some(Prepared { file, bytes }) = &self.next else {
            let what = "the next manifest's file was prepared and isn't there";
            return Err(Failure::Poison(Error::bug(&self.dir, what)));
        };
        debug_assert!(content.len() <= *bytes);
        content.resize(content.len().max(*bytes), 0);
        let next = next_path(&self.dir);
        // It is still the next one's file: its content doesn't count, and the next try writes all of it.
        // Its space was taken beforehand; but not every file system writes in place.
        let failed = |doing| {
            let next = &next;
            move |e| Failure::full_or_poison(e, |e| Error::io(doing, next, e))
        };
        storage::write_all_at(&**file, &content, 0).map_err(failed("writing"))?;
        file.sync_data().map_err(failed("syncing"))
    }

    fn rename(&self) -> Result<(), Failure> {
        let next = next_path(&self.dir);
        self.storage
            .rename(&next, &path(&self.dir))
            .map_err(|e| scarce_or_poison("renaming", &next, e))
    }

    fn sync_dir(&self) -> Result<(), Failure> {
        self.storage.sync_dir(&self.dir).map_err(|e| poison("syncing", &self.dir, e))
    }
}

/// Whether the locked directory, and its log, are those at their paths. If not, no open will find the log that grows
/// here, and the files that an open finds there belong to another store.
pub(crate) fn check_standing(storage: &dyn Storage, dir: &Path) -> Result<(), Failure> {
    for dir in [dir.to_path_buf(), dir.join("log")] {
        let standing = storage.standing(&dir).map_err(|e| before("looking at", &dir, e))?;
        if let Some(error) = misplaced(&dir, standing) {
            return Err(Failure::Poison(error));
        }
    }
    Ok(())
}

/// Returns the error of a store whose directory, or a part of it, isn't at its path any more.
pub(crate) fn misplaced(path: &Path, standing: Standing) -> Option<Error> {
    let what = match standing {
        Standing::Here => return None,
        Standing::Gone => "was moved or removed while the store had it open",
        Standing::Another => "was replaced by another one while the store had it open",
    };
    let message = format!(
        "{} {what}: nothing is written any more, and what stands there now is left as it is; close this store, put the right directory there, and open it again",
        path.display()
    );
    Some(Error::new(ErrorKind::Poisoned, message).at(path))
}

fn before(doing: &str, path: &Path, e: std::io::Error) -> Failure {
    Failure::Before(Error::io(doing, path, e))
}

fn scarce_or_poison(doing: &str, path: &Path, e: std::io::Error) -> Failure {
    Failure::scarce_or_poison(e, |e| Error::io(doing, path, e))
}

fn poison(doing: &str, path: &Path, e: std::io::Error) -> Failure {
    Failure::Poison(Error::io(doing, path, e))
}

fn fill_with_zeros(file: &dyn File, bytes: u64) -> std::io::Result<()> {
    let zeros = [0; limits::PAGE_BYTES];
    let mut at = 0;
    while at < bytes {
        storage::write_all_at(file, &zeros, at)?;
        at += zeros.len() as u64;
    }
    if file.len()? > at {
        file.truncate(at)?;
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::super::{
        Listed, load,
        tests::{contradictions, sample},
    };
    use super::*;
    use crate::manifest::bytes_for;
    use crate::storage::faulty::{
        CallFailure as Fails, Calls, Class, Effect, Fault, FaultyStorage,
    };
    use crate::storage::memory::{Crash, MemoryStorage};
    use crate::types::Lsn;

    fn dir() -> &'static Path {
        Path::new("/store")
    }

    /// Lists that grow and shrink across the end of a page.
    const COUNTS: [usize; 9] = [1, 2, 150, 3, 300, 299, 1, 2, 120];

    fn segments_of(generation: u64) -> usize {
        COUNTS[generation as usize % COUNTS.len()]
    }

    fn manifest(generation: u64) -> Manifest {
        let count = segments_of(generation);
        let listed = |n: usize| Listed {
            ordinal: n as u32,
            base: Lsn::new((n as u64 + 1) << 20),
            end: Lsn::new(((n as u64 + 1) << 20) + 4096),
            capacity: 4096,
            salt: u64::MAX,
        };
        Manifest {
            generation,
            extent: Lsn::new(1 << 40),
            next_ordinal: 1000,
            segments: (0..count).map(listed).collect(),
            ..sample()
        }
    }

    fn disk() -> MemoryStorage {
        let disk = MemoryStorage::new();
        disk.create_dir(dir()).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        disk
    }

    fn without_exchange() -> MemoryStorage {
        let disk = disk();
        disk.set_no_exchange();
        disk
    }

    fn switch_on(storage: impl Storage + 'static) -> Switch {
        Switch::new(Arc::new(storage), dir())
    }

    fn standing(disk: &MemoryStorage) -> u64 {
        let Some(found) = load(disk, dir()).unwrap() else { return 0 };
        assert_eq!(found, manifest(found.generation));
        found.generation
    }

    /// What is known of the manifest from outside: the last acknowledged one, and the last one tried.
    #[derive(Clone, Copy, Debug)]
    struct Known {
        acknowledged: u64,
        tried: u64,
    }

    impl Known {
        fn check(self, disk: &MemoryStorage, case: &dyn std::fmt::Debug) {
            let found = standing(disk);
            assert!(
                (self.acknowledged..=self.tried).contains(&found),
                "{case:?}: {found} {self:?}"
            );
        }
    }

    /// A process that switches `count` times, until the power is cut.
    fn run(storage: FaultyStorage, count: u64, known: &mut Known) -> Result<(), Failure> {
        let mut switch = switch_on(storage);
        for generation in known.tried + 1..=known.tried + count {
            known.tried = generation;
            let manifest = manifest(generation);
            match generation {
                1 => switch.first(&manifest)?,
                _ => switch.to(&manifest)?,
            }
            known.acknowledged = generation;
            switch.prepare(manifest.next_file_bytes())?;
        }
        Ok(())
    }

    /// Runs with a power cut at the changing call `point`. Returns whether that call was reached.
    fn run_until(
        disk: &MemoryStorage,
        point: u64,
        kept: usize,
        count: u64,
        known: &mut Known,
    ) -> bool {
        let faulty = FaultyStorage::new(Arc::new(disk.clone()));
        let cut = Effect::PowerCut { bytes_kept: kept };
        faulty.inject(Fault::once(Calls::Changing, point, cut));
        let end = run(faulty.clone(), count, known);
        assert_eq!(end.is_err(), faulty.power_is_cut(), "{end:?}");
        end.is_err()
    }

    /// Kills a process at each call, or cuts its power there; the next one continues, and loses power at each of its
    /// own calls.
    fn crash_everywhere(new: fn() -> MemoryStorage) {
        let (mut points, mut crashes) = (0, 0);
        for (first, kept) in (0..).flat_map(|point| [(point, 0), (point, 700)]) {
            let disk = new();
            let mut known = Known { acknowledged: 0, tried: 0 };
            if !run_until(&disk, first, kept, COUNTS.len() as u64 + 2, &mut known) {
                break;
            }
            for crash in disk.crashes(20) {
                known.check(&disk.crash_clone(crash), &(first, kept, crash));
            }
            let killed = disk.kill_clone();
            known.check(&killed, &(first, kept, "killed"));
            for second in 0.. {
                let disk = killed.kill_clone();
                // The next process continues from what it sees, which the device need not hold.
                let mut known = Known { tried: standing(&disk), ..known };
                let was_cut = run_until(&disk, second, kept, 2, &mut known);
                points += 1;
                for crash in disk.crashes(6) {
                    known.check(&disk.crash_clone(crash), &(first, kept, second, crash));
                    crashes += 1;
                }
                known.check(&disk.kill_clone(), &(first, kept, second, "killed"));
                if !was_cut {
                    break;
                }
            }
        }
        println!("{points} points, {crashes} crashes");
        assert!(points > 500 && crashes > 10_000);
    }

    #[test]
    fn a_whole_manifest_exists_at_every_moment_and_after_every_crash() {
        crash_everywhere(disk);
    }

    #[test]
    fn the_same_holds_where_names_cannot_be_exchanged() {
        crash_everywhere(without_exchange);
    }

    /// Other programs take all free space at once.
    #[test]
    fn a_full_disk_allows_any_number_of_switches() {
        let disk = disk();
        let mut switch = switch_on(disk.clone());
        switch.first(&manifest(COUNTS.len() as u64)).unwrap();
        switch.prepare(bytes_for(2, 0, 0)).unwrap();
        let first = COUNTS.len() as u64 * 2;
        for generation in 0..10 {
            disk.set_bytes_max(disk.bytes_used());
            disk.set_nodes_max(disk.nodes_used());
            switch.to(&manifest(first + generation * COUNTS.len() as u64)).unwrap();
            disk.set_bytes_max(disk.bytes_used());
            disk.set_nodes_max(disk.nodes_used());
            switch.prepare(bytes_for(2, 0, 0)).unwrap();
        }
        // The same for the next process, whether it prepares that or not.
        for prepares in [true, false] {
            let disk = disk.kill_clone();
            disk.set_bytes_max(disk.bytes_used());
            disk.set_nodes_max(disk.nodes_used());
            let mut switch = switch_on(disk.clone());
            if prepares {
                switch.prepare(bytes_for(2, 0, 0)).unwrap();
            }
            for generation in 20..22 {
                switch.to(&manifest(generation * COUNTS.len() as u64)).unwrap();
                switch.prepare(bytes_for(2, 0, 0)).unwrap();
            }
            assert_eq!(disk.files().len(), 2, "{:?}", disk.files());
        }
    }

    /// A process that lives shortly switches twice.
    #[test]
    fn a_switch_is_two_syncs_from_the_first_one_on() {
        let disk = disk();
        switch_on(disk.clone()).first(&manifest(1)).unwrap();
        let faulty = FaultyStorage::new(Arc::new(disk.kill_clone()));
        let mut switch = switch_on(faulty.clone());
        for count in 1..5 {
            switch.to(&manifest(1)).unwrap();
            switch.prepare(bytes_for(2, 0, 0)).unwrap();
            let syncs = [Class::Sync, Class::SyncDir].map(|class| faulty.count(Calls::Of(class)));
            assert_eq!(syncs, [count, count]);
        }
    }

    #[test]
    fn where_names_cannot_be_exchanged_the_next_file_may_lack_space() {
        let disk = without_exchange();
        let mut switch = switch_on(disk.clone());
        switch.first(&manifest(1)).unwrap();
        switch.to(&manifest(2)).unwrap();
        switch.to(&manifest(1)).unwrap();
        disk.set_bytes_max(disk.bytes_used());
        let Failure::Before(full) = switch.prepare(bytes_for(2, 0, 0)).unwrap_err() else {
            panic!("poisoned")
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert!(!switch.is_prepared());
        assert_eq!(standing(&disk), 1);
        disk.set_bytes_max(u64::MAX);
        switch.prepare(bytes_for(2, 0, 0)).unwrap();
        assert!(switch.is_prepared());
    }

    #[test]
    fn a_file_that_cannot_grow_is_not_prepared_and_serves_a_shorter_list() {
        let disk = disk();
        let mut switch = switch_on(disk.clone());
        switch.first(&manifest(COUNTS.len() as u64)).unwrap();
        switch.prepare(bytes_for(1, 0, 0)).unwrap();
        disk.set_bytes_max(disk.bytes_used());
        assert!(matches!(switch.prepare(bytes_for(300, 0, 0)), Err(Failure::Before(_))));
        assert!(!switch.is_prepared());
        switch.to(&manifest(COUNTS.len() as u64 * 2)).unwrap();
        assert_eq!(standing(&disk), COUNTS.len() as u64 * 2);
    }

    #[test]
    fn only_a_refusal_to_exchange_leads_to_a_rename() {
        let attempt = |errno: Errno| {
            let disk = disk();
            switch_on(disk.clone()).first(&manifest(1)).unwrap();
            let faulty = FaultyStorage::new(Arc::new(disk.clone()));
            let fails = Effect::Fail(Fails::Errno(errno.raw_os_error()));
            faulty.inject(Fault::from(Calls::Of(Class::Exchange), 0, fails));
            let done = switch_on(faulty.clone()).to(&manifest(2));
            let stands = standing(&disk.crash_clone(Crash::NONE));
            // One of them gives the new file the name of the next one's.
            (done, stands, faulty.count(Calls::Of(Class::Rename)))
        };
        for errno in [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::PERM] {
            assert!(matches!(attempt(errno), (Ok(()), 2, 2)), "{errno}");
        }
        for errno in [Errno::NOMEM, Errno::ACCESS] {
            assert!(matches!(attempt(errno), (Err(Failure::Before(_)), 1, 1)), "{errno}");
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::NOENT, Errno::ROFS] {
            assert!(matches!(attempt(errno), (Err(Failure::Poison(_)), 1, 1)), "{errno}");
        }
    }

    /// Whatever led to such a manifest: the current one is left as it is.
    #[test]
    fn a_manifest_that_no_open_would_accept_is_not_written() {
        for unsound in contradictions() {
            let disk = disk();
            let mut switch = switch_on(disk.clone());
            let Failure::Poison(refused) = switch.first(&unsound).unwrap_err() else {
                panic!("{unsound:?}")
            };
            assert_eq!(refused.kind(), ErrorKind::Bug);
            assert!(refused.to_string().contains("bug"), "{refused}");
            assert!(disk.files().is_empty());
            switch.first(&manifest(1)).unwrap();
            switch.prepare(bytes_for(2, 0, 0)).unwrap();
            let before = disk.files().into_iter().map(|(path, _)| disk.read(&path).unwrap());
            let before: Vec<_> = before.collect();
            assert!(matches!(switch.to(&unsound), Err(Failure::Poison(_))));
            let after = disk.files().into_iter().map(|(path, _)| disk.read(&path).unwrap());
            assert_eq!(after.collect::<Vec<_>>(), before);
            switch.to(&manifest(2)).unwrap();
            assert_eq!(standing(&disk), 2);
        }
    }

    #[test]
    fn the_content_of_the_next_file_does_not_matter() {
        for left in [vec![], vec![0xff; 10], vec![0xff; 3 * 4096 + 1], manifest(5).encode()] {
            let disk = disk();
            switch_on(disk.clone()).first(&manifest(1)).unwrap();
            disk.write_file(&next_path(dir()), &left).unwrap();
            assert_eq!(standing(&disk), 1);
            let mut switch = switch_on(disk.clone());
            for generation in 2..5 {
                switch.to(&manifest(generation)).unwrap();
                assert_eq!(standing(&disk.crash_clone(Crash::NONE)), generation);
            }
        }
    }
}
