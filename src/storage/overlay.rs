//! A storage over another one, which it only reads: what is changed stays in memory.
//!
//! Promises: below it nothing is created, written, renamed, removed, synced, locked or mapped, so the store there may lie on
//! a read-only mount, and no file that another process cuts short ends this one. Its user sees its own changes as those of a
//! disk, except that a file must be opened for writing before another handle of it is read: handles that were opened earlier
//! don't show the writes. Never: writes back, or keeps a descriptor of a file that is only read by others.
//!
//! Memory: the changed pages of each file; a page of zeros in a new file takes none.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::{Access, DirEntry, DirLock, File, Map, Standing, Storage, TakenDir};
use crate::limits;
use crate::sync::Mutex;
use crate::types::in_memory;

/// See the module.
pub(crate) struct Overlay {
    below: Arc<dyn Storage>,
    /// Paths at which something else is now than below.
    changed: Mutex<BTreeMap<PathBuf, Instead>>,
}

/// What is at a path instead of what lies below.
#[derive(Clone)]
enum Instead {
    Nothing,
    Dir,
    File(Arc<LayeredFile>),
}

/// The lock of a directory that is only read: none.
#[derive(Debug)]
pub(crate) struct NoLock;

impl DirLock for NoLock {}

impl Overlay {
    pub(crate) fn new(below: Arc<dyn Storage>) -> Self {
        Overlay { below, changed: Mutex::new(BTreeMap::new()) }
    }

    fn instead(&self, path: &Path) -> Option<Instead> {
        self.changed.lock().get(path).cloned()
    }

    fn put(&self, path: &Path, instead: Instead) {
        self.changed.lock().insert(path.to_owned(), instead);
    }

    /// Whether something has the name.
    fn has(&self, path: &Path) -> io::Result<bool> {
        if let Some(instead) = self.instead(path) {
            return Ok(!matches!(instead, Instead::Nothing));
        }
        match self.below.open(path, Access::Read) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) if e.kind() != io::ErrorKind::IsADirectory => Err(e),
            _ => Ok(true),
        }
    }

    /// The file at a path, as one that can be changed.
    fn file(&self, path: &Path) -> io::Result<Arc<LayeredFile>> {
        match self.instead(path) {
            Some(Instead::File(file)) => Ok(file),
            Some(Instead::Dir) => Err(Errno::ISDIR.into()),
            Some(Instead::Nothing) => Err(Errno::NOENT.into()),
            None => LayeredFile::over(self.below.open(path, Access::Read)?).map(Arc::new),
        }
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay").field("below", &self.below).finish_non_exhaustive()
    }
}

impl Storage for Overlay {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if self.has(path)? {
            return Err(Errno::EXIST.into());
        }
        self.put(path, Instead::Dir);
        Ok(())
    }

    fn lock_dir(&self, _dir: &Path) -> io::Result<TakenDir> {
        Err(Errno::ROFS.into())
    }

    fn hold_dir(&self, dir: &Path) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(Overlay::new(self.below.hold_dir(dir)?)))
    }

    fn is_locked(&self, dir: &Path) -> io::Result<bool> {
        self.below.is_locked(dir)
    }

    fn standing(&self, dir: &Path) -> io::Result<Standing> {
        self.below.standing(dir)
    }

    fn lock_holder(&self, dir: &Path) -> Option<u32> {
        self.below.lock_holder(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        if self.has(path)? {
            return Err(Errno::EXIST.into());
        }
        let file = Arc::new(LayeredFile::empty());
        self.put(path, Instead::File(Arc::clone(&file)));
        Ok(file)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>> {
        if access == Access::Read && self.instead(path).is_none() {
            return Ok(Arc::new(ReadFile(self.below.open(path, Access::Read)?)));
        }
        let file = self.file(path)?;
        self.put(path, Instead::File(Arc::clone(&file)));
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.file(from)?;
        self.put(from, Instead::Nothing);
        self.put(to, Instead::File(file));
        Ok(())
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        let (of_a, of_b) = (self.file(a)?, self.file(b)?);
        self.put(a, Instead::File(of_b));
        self.put(b, Instead::File(of_a));
        Ok(())
    }

    fn link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(Errno::NOTSUP.into())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if !self.has(path)? {
            return Err(Errno::NOENT.into());
        }
        self.put(path, Instead::Nothing);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let is_made = matches!(self.instead(dir), Some(Instead::Dir));
        let mut entries = match self.below.list(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && is_made => Vec::new(),
            listed => listed?,
        };
        for (path, instead) in &*self.changed.lock() {
            let name = path.file_name().filter(|_| path.parent() == Some(dir));
            let Some(name) = name.map(|name| name.to_string_lossy().into_owned()) else { continue };
            entries.retain(|entry| entry.name != name);
            if !matches!(instead, Instead::Nothing) {
                let is_file = matches!(instead, Instead::File(_));
                entries.push(DirEntry { name, is_file });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn files_max(&self) -> Option<u64> {
        self.below.files_max()
    }

    fn network_fs(&self, dir: &Path) -> io::Result<Option<&'static str>> {
        self.below.network_fs(dir)
    }
}

/// A file below, to be read by calls alone.
#[derive(Debug)]
struct ReadFile(Arc<dyn File>);

impl File for ReadFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> io::Result<usize> {
        Err(Errno::BADF.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, _len: u64) -> io::Result<()> {
        Err(Errno::INVAL.into())
    }

    fn map(&self, _len: u64) -> io::Result<Arc<dyn Map>> {
        Err(Errno::NOTSUP.into())
    }
}

/// A file that may be changed: pages in memory, over a file below or over zeros.
struct LayeredFile {
    below: Option<Arc<dyn File>>,
    layer: Mutex<Layer>,
}

struct Layer {
    len: u64,
    /// Bytes of the file below that still show.
    below_len: u64,
    /// The changed pages, by number. A page that is neither here nor below is zeros.
    pages: BTreeMap<u64, Box<[u8]>>,
}

const PAGE: u64 = limits::PAGE_BYTES as u64;

impl LayeredFile {
    fn empty() -> Self {
        let layer = Layer { len: 0, below_len: 0, pages: BTreeMap::new() };
        LayeredFile { below: None, layer: Mutex::new(layer) }
    }

    fn over(below: Arc<dyn File>) -> io::Result<Self> {
        let len = below.len()?;
        let layer = Layer { len, below_len: len, pages: BTreeMap::new() };
        Ok(LayeredFile { below: Some(below), layer: Mutex::new(layer) })
    }

    /// Reads from the file below as far as it shows; the rest of `buf` becomes zeros.
    fn read_below(&self, layer: &Layer, buf: &mut [u8], offset: u64) -> io::Result<()> {
        buf.fill(0);
        let shown = in_memory(layer.below_len.saturating_sub(offset)).min(buf.len());
        match (&self.below, buf.split_at_mut(shown).0) {
            (Some(below), shown) if !shown.is_empty() => {
                let have = super::read_full_at(&**below, shown, offset)?;
                // Cut short since it was opened: what a read of that file would return, too.
                if have < shown.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for LayeredFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayeredFile").field("below", &self.below).finish_non_exhaustive()
    }
}

impl File for LayeredFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.layer.lock().len)
    }

    /// Ends at the next page that has another source.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let layer = self.layer.lock();
        let left = in_memory(layer.len.saturating_sub(offset));
        let (buf, _) = buf.split_at_mut(left.min(buf.len()));
        let number = offset / PAGE;
        if let Some(page) = layer.pages.get(&number) {
            let (_, from) = page.split_at(in_memory(offset % PAGE));
            let len = from.len().min(buf.len());
            buf.split_at_mut(len).0.copy_from_slice(from.split_at(len).0);
            return Ok(len);
        }
        let next = layer.pages.range(number..).next().map(|(number, _)| number * PAGE - offset);
        let (buf, _) =
            buf.split_at_mut(next.map_or(buf.len(), |next| in_memory(next).min(buf.len())));
        self.read_below(&layer, buf, offset)?;
        Ok(buf.len())
    }

    /// Writes to one page.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let mut layer = self.layer.lock();
        let (number, at) = (offset / PAGE, in_memory(offset % PAGE));
        let len = buf.len().min(limits::PAGE_BYTES - at);
        let (buf, _) = buf.split_at(len);
        let is_new = !layer.pages.contains_key(&number);
        let is_zero = number * PAGE >= layer.below_len && buf.iter().all(|byte| *byte == 0);
        if is_new && !is_zero {
            let mut page = vec![0; limits::PAGE_BYTES].into_boxed_slice();
            self.read_below(&layer, &mut page, number * PAGE)?;
            layer.pages.insert(number, page);
        }
        if let Some(page) = layer.pages.get_mut(&number) {
            page.split_at_mut(at).1.split_at_mut(len).0.copy_from_slice(buf);
        }
        layer.len = layer.len.max(offset + len as u64);
        Ok(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut layer = self.layer.lock();
        layer.len = len;
        layer.below_len = layer.below_len.min(len);
        layer.pages.split_off(&len.div_ceil(PAGE));
        if let Some(page) = layer.pages.get_mut(&(len / PAGE)) {
            page.split_at_mut(in_memory(len % PAGE)).1.fill(0);
        }
        Ok(())
    }

    fn map(&self, _len: u64) -> io::Result<Arc<dyn Map>> {
        Err(Errno::NOTSUP.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::faulty::{Calls, Class, FaultyStorage};
    use super::super::memory::MemoryStorage;
    use super::super::{read_full_at, write_all_at};
    use super::*;

    fn path(name: &str) -> PathBuf {
        Path::new("/").join(name)
    }

    fn whole(storage: &dyn Storage, name: &str) -> io::Result<Vec<u8>> {
        let file = storage.open(&path(name), Access::Read)?;
        let mut bytes = vec![0; in_memory(file.len()?) + 1];
        let have = read_full_at(&*file, &mut bytes, 0)?;
        bytes.truncate(have);
        Ok(bytes)
    }

    /// Random calls on an overlay show the same as on a disk of its own, and never change what lies below.
    #[test]
    fn an_overlay_shows_what_a_disk_would_and_changes_nothing_below() {
        let mut state = 1_u64;
        let mut draw = move |most: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % most
        };
        for _ in 0..60 {
            let (below, alone) = (MemoryStorage::new(), MemoryStorage::new());
            for storage in [&below, &alone] {
                for name in ["a", "b", "c"] {
                    let file = storage.create(&path(name)).unwrap();
                    write_all_at(&*file, &[name.as_bytes()[0]; 9000], 0).unwrap();
                }
            }
            let calls = FaultyStorage::new(Arc::new(below.clone()));
            let overlay = Overlay::new(Arc::new(calls.clone()));
            let both: [&dyn Storage; 2] = [&overlay, &alone];
            for step in 0..60 {
                let names = ["a", "b", "c", "d", "e"];
                let [one, other] = [(); 2].map(|()| path(names[draw(5) as usize]));
                let (kind, offset, len) = (draw(7), draw(14_000), draw(6000));
                let fill = [0, step as u8][draw(2) as usize];
                let done = both.map(|storage| match kind {
                    0 => storage.create(&one).map(drop),
                    1 => storage.remove(&one),
                    // The same name twice is a case of its own, which no user has.
                    2 if one != other => storage.rename(&one, &other),
                    3 if one != other => storage.exchange(&one, &other),
                    4 => {
                        storage.open(&one, Access::ReadWrite).and_then(|file| file.truncate(offset))
                    }
                    _ => storage
                        .open(&one, Access::ReadWrite)
                        .and_then(|file| write_all_at(&*file, &vec![fill; len as usize], offset)),
                });
                let [ours, theirs] = done.map(|done| done.map_err(|e| e.kind()));
                assert_eq!(ours, theirs, "{step} {kind} {one:?} {other:?}");
                for name in names {
                    let [ours, theirs] = both.map(|s| whole(s, name).map_err(|e| e.kind()));
                    assert_eq!(ours, theirs, "{step} {kind} {name}");
                }
                assert_eq!(
                    overlay.list(Path::new("/")).unwrap(),
                    alone.list(Path::new("/")).unwrap()
                );
            }
            assert_eq!(calls.count(Calls::Changing), 0);
            assert_eq!(calls.count(Calls::Of(Class::Map)) + calls.count(Calls::Of(Class::Lock)), 0);
            assert_eq!(whole(&below, "b").unwrap(), [b'b'; 9000]);
        }
    }

    #[test]
    fn a_new_directory_is_listed_and_nothing_is_locked_or_mapped() {
        let below = MemoryStorage::new();
        below.create(&path("a")).unwrap();
        let overlay = Overlay::new(Arc::new(below));
        assert_eq!(
            overlay.create_dir(&path("a")).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(overlay.list(&path("dir")).unwrap_err().kind(), io::ErrorKind::NotFound);
        overlay.create_dir(&path("dir")).unwrap();
        overlay.create(&path("dir/x")).unwrap();
        let shown = overlay.list(&path("dir")).unwrap();
        assert_eq!(shown, [DirEntry { name: "x".to_owned(), is_file: true }]);
        assert!(overlay.list(Path::new("/")).unwrap().iter().any(|entry| !entry.is_file));
        assert_eq!(
            overlay.open(&path("dir"), Access::Read).unwrap_err().kind(),
            io::ErrorKind::IsADirectory
        );
        assert!(overlay.lock_dir(Path::new("/")).is_err());
        for access in [Access::Read, Access::ReadWrite] {
            assert!(overlay.open(&path("a"), access).unwrap().map(0).is_err());
        }
    }

    #[test]
    fn zeros_in_a_new_file_take_no_memory() {
        let overlay = Overlay::new(Arc::new(MemoryStorage::new()));
        let file = LayeredFile::empty();
        write_all_at(&file, &vec![0; 1 << 20], 0).unwrap();
        assert_eq!((file.len().unwrap(), file.layer.lock().pages.len()), (1 << 20, 0));
        write_all_at(&file, b"x", 5000).unwrap();
        assert_eq!(file.layer.lock().pages.len(), 1);
        drop(overlay);
    }
}
