//! Runs the same random calls on real files and on the simulated disk, and compares answers, error numbers, bytes,
//! names, and what maps and unlinked open files show.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::MemoryStorage;
use crate::entropy::SplitMix64;
use crate::storage::{Access, File, Map, OsStorage, Storage};

const PATHS: [&str; 9] = ["a", "b", "c", "d", "d/a", "d/b", "e", "e/a", "d/f"];

struct Side {
    storage: Arc<dyn Storage>,
    root: PathBuf,
    files: Vec<Arc<dyn File>>,
    maps: Vec<Arc<dyn Map>>,
}

/// An answer as the program sees it.
fn seen<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(e) => format!("{:?} {:?}", e.raw_os_error(), e.kind()),
    }
}

impl Side {
    fn step(&mut self, lot: &mut SplitMix64) -> String {
        let path = self.root.join(PATHS[lot.below(9) as usize]);
        let other = self.root.join(PATHS[lot.below(9) as usize]);
        let (offset, len, byte) = (lot.below(9000), lot.below(3000) as usize, lot.next() as u8);
        let pick = lot.next() as usize;
        match lot.below(19) {
            0 => seen(self.storage.create_dir(&path)),
            1 | 2 => {
                let file = self.storage.create(&path);
                self.keep(file, pick)
            }
            3 | 4 => {
                let access = if byte % 2 == 0 { Access::Read } else { Access::ReadWrite };
                let file = self.storage.open(&path, access);
                self.keep(file, pick)
            }
            5 => seen(self.storage.rename(&path, &other)),
            16 => seen(self.storage.exchange(&path, &other)),
            18 => seen(self.storage.link(&path, &other)),
            6 if byte % 3 == 0 => seen(self.storage.remove(&path)),
            7 => seen(self.storage.list(&path)) + &seen(self.storage.list(&self.root)),
            8 => seen(self.storage.sync_dir(&path)),
            9 => seen(self.storage.lock_dir(&path).map(drop)),
            17 => format!("{:?} {}", self.storage.standing(&self.root), self.standing(&path)),
            call => match self.files.get(pick % 8) {
                None => String::new(),
                Some(file) => {
                    // A file may not become shorter under a map.
                    if call == 6 {
                        self.maps.clear();
                    }
                    let answer = on_file(&**file, call, offset, len, byte);
                    if call == 15 {
                        if let Ok(map) = file.map(offset) {
                            self.maps.push(map);
                        }
                    }
                    answer
                }
            },
        }
    }

    /// Asked for directories only.
    fn standing(&self, path: &Path) -> String {
        match self.storage.list(path) {
            Ok(_) => seen(self.storage.standing(path)),
            Err(e) => seen::<()>(Err(e)),
        }
    }

    fn keep(&mut self, file: io::Result<Arc<dyn File>>, pick: usize) -> String {
        let answer = seen(file.as_ref().map(|_| ()).map_err(|e| match e.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => e.kind().into(),
        }));
        if let Ok(file) = file {
            if self.files.len() < 8 {
                self.files.push(file);
            } else {
                self.files[pick % 8] = file;
            }
        }
        answer
    }
}

fn on_file(file: &dyn File, call: u64, offset: u64, len: usize, byte: u8) -> String {
    match call {
        10 => seen(file.len()),
        11 => {
            let mut bytes = vec![0; len];
            seen(file.read_at(&mut bytes, offset)) + &format!("{bytes:?}")
        }
        12 | 13 => seen(file.write_at(&vec![byte; len], offset)),
        14 => seen(file.sync_data()),
        15 => {
            let map = file.map(offset);
            let ends = map.as_ref().map_or(String::new(), |map| {
                format!(
                    "{:?} {:?}",
                    map.bytes(offset / 2, (offset - offset / 2) as usize),
                    map.bytes(offset, 1)
                )
            });
            seen(map.map(drop)) + &ends
        }
        _ if byte % 4 == 0 => seen(file.truncate(offset)),
        _ => String::new(),
    }
}

/// Everything below the root, with bytes.
fn tree(storage: &dyn Storage, dir: &Path, prefix: &str) -> Vec<(String, Option<Vec<u8>>)> {
    let mut all = Vec::new();
    for entry in storage.list(dir).unwrap() {
        let (path, name) = (dir.join(&entry.name), format!("{prefix}/{}", entry.name));
        if entry.is_file {
            let file = storage.open(&path, Access::Read).unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            crate::storage::read_full_at(&*file, &mut bytes, 0).unwrap();
            all.push((name, Some(bytes)));
        } else {
            all.extend(tree(storage, &path, &name));
            all.push((name, None));
        }
    }
    all
}

#[test]
fn a_program_sees_the_same_on_real_files() {
    let mut answers = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let side = |storage: Arc<dyn Storage>, root: PathBuf| Side {
            storage,
            root,
            files: vec![],
            maps: vec![],
        };
        let (disk, mut root) = (MemoryStorage::new(), PathBuf::from("/"));
        let (mut real, mut memory): (Arc<dyn Storage>, Arc<dyn Storage>) =
            (Arc::new(OsStorage::default()), Arc::new(disk.clone()));
        let mut real_root = dir.path().to_owned();
        let mut locks = Vec::new();
        let is_locked = seed % 2 == 1;
        if is_locked {
            // The same below a directory that is locked, and is moved halfway.
            (root, real_root) = (root.join("s"), real_root.join("s"));
            for (storage, root) in [(&mut real, &real_root), (&mut memory, &root)] {
                storage.create_dir(root).unwrap();
                let locked = storage.lock_dir(root).unwrap();
                locks.push(locked.lock);
                *storage = locked.storage;
            }
        }
        let mut real = side(real, real_root);
        let mut memory = side(memory, root);
        for step in 0..300 {
            if is_locked && step == 200 {
                std::fs::rename(&real.root, dir.path().join("t")).unwrap();
                disk.rename(Path::new("/s"), Path::new("/t")).unwrap();
                if seed % 4 == 1 {
                    std::fs::create_dir(&real.root).unwrap();
                    disk.create_dir(Path::new("/s")).unwrap();
                }
            }
            let mut lot = SplitMix64::new(seed * 1_000_003 + step);
            let answer = real.step(&mut lot.clone());
            assert_eq!(memory.step(&mut lot), answer, "seed {seed} step {step}");
            answers.insert(answer.chars().take(24).collect::<String>());
        }
        // By path alone, whatever the locked storages hold open.
        let (root, real_root) = match is_locked {
            true => (PathBuf::from("/t"), dir.path().join("t")),
            false => (memory.root.clone(), real.root.clone()),
        };
        let by_name = OsStorage::default();
        assert_eq!(tree(&disk, &root, ""), tree(&by_name, &real_root, ""), "seed {seed}");
        for (ours, theirs) in memory.files.iter().zip(&real.files) {
            assert_eq!(ours.len().unwrap(), theirs.len().unwrap(), "seed {seed}");
        }
    }
    // Without provoking these errors the test would not compare them.
    for errno in [1, 2, 9, 17, 20, 21, 22, 39] {
        let text = format!("Some({errno})");
        assert!(
            answers.iter().any(|answer| answer.starts_with(&text)),
            "{text} never seen: {answers:?}"
        );
    }
    for standing in ["Here", "Gone", "Another"] {
        let text = format!("Ok({standing})");
        assert!(answers.iter().any(|answer| answer.starts_with(&text)), "{text}: {answers:?}");
    }
}
