//! What the system reports about this process and the machine. Linux; on other systems all figures are 0.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes of private memory: pages mapped from a file are not counted, since they can be read again.
pub fn own_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    (field(&status, "RssAnon:") + field(&status, "RssShmem:")) << 10
}

/// Bytes that the system keeps for this process's maps.
pub fn page_tables() -> u64 {
    field(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmPTE:") << 10
}

/// Bytes read from devices, and written or to be written to them.
#[derive(Clone, Copy)]
pub struct Io {
    /// Requested by calls, from the cache or the device.
    pub asked: u64,
    pub read: u64,
    pub written: u64,
}

impl Io {
    pub fn now() -> Self {
        let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
        Io {
            asked: field(&io, "rchar:"),
            read: field(&io, "\nread_bytes:"),
            written: field(&io, "\nwrite_bytes:"),
        }
    }

    pub fn since(self, earlier: Io) -> Io {
        Io {
            asked: self.asked - earlier.asked,
            read: self.read - earlier.read,
            written: self.written - earlier.written,
        }
    }
}

/// Reads of mapped files that had to wait for the device.
pub fn major_faults() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    behind_name.split_ascii_whitespace().nth(9).and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("unknown", |line| line.trim_start_matches([' ', '\t', ':'])).to_owned()
}

fn field(text: &str, name: &str) -> u64 {
    let value = text.split(name).nth(1).and_then(|rest| rest.split_ascii_whitespace().next());
    value.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Samples this process's memory every 5 ms.
pub struct Watch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn begin() -> Self {
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (its_peak, its_stop) = (Arc::clone(&peak), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !its_stop.load(Ordering::Relaxed) {
                its_peak.fetch_max(own_memory(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        Watch { peak, stop, thread: Some(thread) }
    }

    /// The greatest sample since the last call.
    pub fn take_peak(&self) -> u64 {
        self.peak.swap(0, Ordering::Relaxed).max(own_memory())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Drops the cached pages of the files below `dir`. All of them must be synced.
pub fn forget_cached(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            forget_cached(&path);
        } else {
            let file = fs::File::open(&path).unwrap();
            file.sync_all().unwrap();
            #[cfg(target_os = "linux")]
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
}

/// Bytes of the files of a store.
#[derive(Clone, Copy, Default)]
pub struct Sizes {
    pub all: u64,
    pub segments: u64,
    pub spares: u64,
    pub index: u64,
    /// Files of remembered keys.
    pub expired: u64,
    /// The largest segment, or spare: the size of the next one.
    pub segment: u64,
}

impl Sizes {
    pub fn of(dir: &Path) -> Self {
        let mut sizes = Sizes::default();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                let part = Sizes::of(&path);
                sizes.all += part.all;
                sizes.segments += part.segments;
                sizes.spares += part.spares;
                sizes.segment = sizes.segment.max(part.segment);
                sizes.index += if path.ends_with("index") { part.all } else { part.index };
                sizes.expired += if path.ends_with("expired") { part.all } else { part.expired };
                continue;
            }
            // It may have been removed since it was listed.
            let len = fs::metadata(&path).map_or(0, |meta| meta.len());
            sizes.all += len;
            if path.parent().is_some_and(|dir| dir.ends_with("log")) {
                let is_segment = path.extension().is_some_and(|end| end == "log");
                *(if is_segment { &mut sizes.segments } else { &mut sizes.spares }) += len;
                sizes.segment = sizes.segment.max(len);
            }
        }
        sizes
    }
}

/// Copies a store that is closed. Durable on return, so that no later write-back disturbs a measurement.
pub fn copy_synced(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_synced(&path, &copy);
        } else {
            fs::copy(&path, &copy).unwrap();
            fs::File::open(&copy).unwrap().sync_all().unwrap();
        }
    }
}

/// A group of processes that share so much memory, the cached pages of files they read included.
pub struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Version 1 of control groups if it has memory, else 2. `Err`: the system has none, or refuses it.
    pub fn create(bytes: u64) -> std::io::Result<Self> {
        let name = format!("onlyonce-keys-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/memory");
        let (path, limit) = match first.exists() {
            true => (first.join(name), "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup").join(name), "memory.max"),
        };
        fs::create_dir(&path)?;
        let group = MemoryGroup(path);
        fs::write(group.0.join(limit), bytes.to_string())?;
        Ok(group)
    }

    /// The file to which a process writes 0 to join the group.
    pub fn door(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
