//! What is left of the simulated disk after a kill or a power loss.
//!
//! Promises: everything synced is kept, whatever the [`Crash`]. The rest takes only states that a device and a
//! journaling file system could leave: a sector holds one of the versions it had since the last sync; a change of a
//! file's length by `truncate` is kept only with those before it; a change of a name likewise, among changes of the
//! same names, and a rename or an exchange whole or not at all.
//! Never: draws random values except from the given seed, so every state can be made again.

use std::collections::{BTreeMap, BTreeSet};

use super::MemoryStorage;
use super::content::{Content, FileNode, SECTOR, Unsynced, sectors_of};
use super::disk::{Dir, MemoryDisk, NameChange, Node, ROOT, close_over};
use crate::entropy::SplitMix64;

/// One way to lose power.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Crash {
    pub(crate) data: DataFate,
    pub(crate) names: NameFate,
}

impl Crash {
    /// Nothing unsynced is kept.
    pub(crate) const NONE: Crash = Crash { data: DataFate::None, names: NameFate::None };
    /// Everything is kept.
    pub(crate) const ALL: Crash = Crash { data: DataFate::All, names: NameFate::All };

    /// Any lawful part of everything, chosen by the seed.
    pub(crate) const fn seeded(seed: u64) -> Crash {
        Crash { data: DataFate::Seeded(seed), names: NameFate::Seeded(seed) }
    }
}

/// What happens to unsynced bytes and lengths. Sectors are numbered by file and position, writes in their order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DataFate {
    None,
    All,
    /// All but one sector, which stays as it was synced (zeros where nothing was).
    OneLost(usize),
    /// One sector, and the length only as far as it reaches.
    OneKept(usize),
    /// The first `writes` writes, and `bytes` bytes of the next: cut anywhere, not only between sectors.
    Prefix {
        writes: usize,
        bytes: usize,
    },
    /// The lengths and none of the bytes: zeros where the file has grown.
    Zeros,
    /// Each sector in any of its versions, each length in any of its states.
    Seeded(u64),
}

/// What happens to unsynced names: created, renamed, exchanged and removed ones, numbered in their order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NameFate {
    None,
    All,
    /// All but one, and those of the same names after it.
    OneLost(usize),
    /// One, and those of the same names before it.
    OneKept(usize),
    Prefix(usize),
    Seeded(u64),
}

/// An unsynced write or truncation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UnsyncedWrite {
    pub(crate) offset: u64,
    /// 0 for a truncation.
    pub(crate) len: usize,
    seq: u64,
}

/// Lists at most so many crashes of each kind, evenly spaced if there are more.
const CRASHES_PER_KIND: usize = 64;

impl MemoryStorage {
    /// The disk as the next boot finds it. Handles of this one are not affected.
    pub(crate) fn crash_clone(&self, crash: Crash) -> MemoryStorage {
        MemoryStorage::of(crashed(&self.disk.lock(), crash))
    }

    /// The disk as the next process finds it: everything written is there, synced or not; locks are free and
    /// files that were only open are gone.
    pub(crate) fn kill_clone(&self) -> MemoryStorage {
        let disk = self.disk.lock();
        let mut next =
            MemoryDisk { next_node: disk.next_node, next_seq: disk.next_seq, ..limits_of(&disk) };
        next.nodes = disk.nodes.clone();
        next.names = disk.names.clone();
        for node in next.nodes.values_mut() {
            if let Node::File(file) = node {
                file.opens = 0;
            }
        }
        next.collect();
        MemoryStorage::of(next)
    }

    /// How many sectors have changes that a crash may lose.
    pub(crate) fn unsynced_sectors(&self) -> usize {
        changed_sectors(&self.disk.lock()).len()
    }

    /// The writes that a crash may lose, in their order.
    pub(crate) fn unsynced_writes(&self) -> Vec<UnsyncedWrite> {
        unsynced_writes(&self.disk.lock())
    }

    /// How many changes of names a crash may lose.
    pub(crate) fn unsynced_names(&self) -> usize {
        self.disk.lock().names.len()
    }

    /// The crashes worth trying now: none and all kept, zeros, each sector and each name lost or kept alone, each
    /// prefix of everything, and `seeds` random parts. On a small disk that is all of them except combinations; on a
    /// large one they are evenly spaced. The same state gives the same list.
    pub(crate) fn crashes(&self, seeds: u64) -> Vec<Crash> {
        let disk = self.disk.lock();
        let mut crashes = Vec::new();
        for names in [NameFate::None, NameFate::All] {
            for data in [DataFate::None, DataFate::All, DataFate::Zeros] {
                crashes.push(Crash { data, names });
            }
        }
        for index in spread(changed_sectors(&disk).len()) {
            for data in [DataFate::OneLost(index), DataFate::OneKept(index)] {
                crashes.push(Crash { data, names: NameFate::All });
            }
        }
        for index in spread(disk.names.len()) {
            for names in [NameFate::OneLost(index), NameFate::OneKept(index)] {
                crashes.push(Crash { data: DataFate::All, names });
                crashes.push(Crash { data: DataFate::None, names });
            }
        }
        crashes.extend(prefixes(&disk));
        crashes.extend((0..seeds).map(Crash::seeded));
        if disk.names.is_empty() {
            // Without unsynced names, their fate makes no difference.
            for crash in &mut crashes {
                crash.names = NameFate::All;
            }
        }
        let mut seen = Vec::with_capacity(crashes.len());
        crashes.retain(|crash| {
            let new = !seen.contains(crash);
            seen.push(*crash);
            new
        });
        crashes
    }

    /// One crash for each byte at which the unsynced writes can be cut, all names kept: exhaustive, for small disks.
    pub(crate) fn byte_cuts(&self) -> Vec<Crash> {
        let lens: Vec<usize> = self.unsynced_writes().iter().map(|write| write.len).collect();
        let cuts = lens
            .iter()
            .enumerate()
            .flat_map(|(writes, len)| (0..(*len).max(1)).map(move |bytes| (writes, bytes)));
        cuts.chain([(lens.len(), 0)])
            .map(|(writes, bytes)| Crash {
                data: DataFate::Prefix { writes, bytes },
                names: NameFate::All,
            })
            .collect()
    }
}

/// Each prefix of writes and names in their one order, and some cuts inside each write, names lost and kept.
fn prefixes(disk: &MemoryDisk) -> Vec<Crash> {
    let writes = unsynced_writes(disk);
    let mut order: Vec<(u64, Option<usize>)> =
        writes.iter().map(|write| (write.seq, Some(write.len))).collect();
    order.extend(disk.names.iter().map(|change| (change.seq, None)));
    order.sort_unstable();
    let chosen: BTreeSet<usize> = spread(order.len()).collect();
    let (mut crashes, mut writes, mut names) = (Vec::new(), 0, 0);
    for (index, (_, len)) in order.into_iter().enumerate() {
        if chosen.contains(&index) {
            let cuts =
                len.map_or(vec![0], |len| vec![0, 1, len / 3, len / 2, len.saturating_sub(1)]);
            for bytes in
                cuts.into_iter().filter(|bytes| *bytes == 0 || len.is_some_and(|len| *bytes < len))
            {
                let data = DataFate::Prefix { writes, bytes };
                crashes.push(Crash { data, names: NameFate::Prefix(names) });
                crashes.push(Crash { data, names: NameFate::All });
            }
        }
        if len.is_some() {
            writes += 1;
        } else {
            names += 1;
        }
    }
    crashes
}

/// All of `0..count`, or evenly spaced ones that include both ends.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    let chosen = count.min(CRASHES_PER_KIND);
    let last = count.saturating_sub(1);
    (0..chosen).map(move |index| {
        if chosen == count {
            index
        } else {
            index.saturating_mul(last) / chosen.saturating_sub(1).max(1)
        }
    })
}

fn limits_of(disk: &MemoryDisk) -> MemoryDisk {
    MemoryDisk {
        bytes_max: disk.bytes_max,
        nodes_max: disk.nodes_max,
        network_fs: disk.network_fs,
        no_exchange: disk.no_exchange,
        ..MemoryDisk::new()
    }
}

fn crashed(disk: &MemoryDisk, crash: Crash) -> MemoryDisk {
    let kept = kept_names(&disk.names, crash.names);
    let mut names = disk.device_names();
    for (change, _) in disk.names.iter().zip(kept).filter(|(_, keep)| *keep) {
        change.apply(&mut names);
    }
    let data = DataPlan::new(disk, crash.data);
    let mut next = MemoryDisk { next_node: disk.next_node, ..limits_of(disk) };
    next.nodes.clear();
    let mut queue = vec![ROOT];
    while let Some(id) = queue.pop() {
        if let Some(Node::File(file)) = next.nodes.get_mut(&id) {
            // Another name of it.
            file.names = file.names.saturating_add(1);
            continue;
        }
        let node = match disk.nodes.get(&id) {
            Some(Node::File(file)) => Node::File(FileNode::booted(data.content(id, file))),
            Some(Node::Dir(_)) => {
                let below = names.remove(&id).unwrap_or_default();
                queue.extend(below.values());
                Node::Dir(Dir::booted(below))
            }
            None => continue,
        };
        next.nodes.insert(id, node);
    }
    next
}

fn kept_names(changes: &[NameChange], fate: NameFate) -> Vec<bool> {
    let mut lot = SplitMix64::new(match fate {
        NameFate::Seeded(seed) => seed ^ 0x6e61_6d65,
        _ => 0,
    });
    let mut kept: Vec<bool> = (0..changes.len())
        .map(|index| match fate {
            NameFate::None => false,
            NameFate::All | NameFate::OneLost(_) => true,
            NameFate::OneKept(one) => index == one,
            NameFate::Prefix(count) => index < count,
            NameFate::Seeded(_) => lot.below(2) == 0,
        })
        .collect();
    if let NameFate::OneLost(one) = fate {
        // What depends on the lost one is lost too.
        for index in one..changes.len() {
            let alone: Vec<bool> = (0..changes.len()).map(|other| other == index).collect();
            let mut needs = alone;
            close_over(changes, &mut needs);
            if needs.get(one) == Some(&true) {
                if let Some(keep) = kept.get_mut(index) {
                    *keep = false;
                }
            }
        }
    }
    close_over(changes, &mut kept);
    kept
}

/// Files that may have a name after a crash.
fn files(disk: &MemoryDisk) -> impl Iterator<Item = (u64, &FileNode)> {
    let referenced = disk.referenced();
    disk.nodes.iter().filter_map(move |(id, node)| match node {
        Node::File(file) if referenced.contains(id) => Some((*id, file)),
        _ => None,
    })
}

fn unsynced_writes(disk: &MemoryDisk) -> Vec<UnsyncedWrite> {
    let pending = files(disk).flat_map(|(_, file)| &file.pending);
    let mut writes: Vec<UnsyncedWrite> = pending
        .map(|pending| match &pending.change {
            Unsynced::Write { offset, bytes } => {
                UnsyncedWrite { offset: *offset, len: bytes.len(), seq: pending.seq }
            }
            Unsynced::Resize { len } => UnsyncedWrite { offset: *len, len: 0, seq: pending.seq },
        })
        .collect();
    writes.sort_unstable_by_key(|write| write.seq);
    writes
}

fn changed_sectors(disk: &MemoryDisk) -> Vec<(u64, u64)> {
    files(disk)
        .flat_map(|(id, file)| written_sectors(file).into_iter().map(move |sector| (id, sector)))
        .collect()
}

fn written_sectors(file: &FileNode) -> BTreeSet<u64> {
    let written = file.pending.iter().filter_map(|pending| match &pending.change {
        Unsynced::Write { offset, bytes } => {
            Some(sectors_of(*offset, offset.saturating_add(bytes.len() as u64)))
        }
        Unsynced::Resize { .. } => None,
    });
    written.flatten().collect()
}

/// A [`DataFate`] with its numbers looked up.
#[derive(Clone, Copy)]
enum DataPlan {
    None,
    All,
    OneLost(Option<(u64, u64)>),
    OneKept(Option<(u64, u64)>),
    /// Changes before `seq` are kept, and `bytes` bytes of the one at it.
    Until {
        seq: u64,
        bytes: usize,
    },
    Zeros,
    Seeded(u64),
}

impl DataPlan {
    fn new(disk: &MemoryDisk, fate: DataFate) -> Self {
        match fate {
            DataFate::None => DataPlan::None,
            DataFate::All => DataPlan::All,
            DataFate::OneLost(index) => {
                DataPlan::OneLost(changed_sectors(disk).get(index).copied())
            }
            DataFate::OneKept(index) => {
                DataPlan::OneKept(changed_sectors(disk).get(index).copied())
            }
            DataFate::Prefix { writes, bytes } => {
                let seq = unsynced_writes(disk).get(writes).map_or(u64::MAX, |write| write.seq);
                DataPlan::Until { seq, bytes }
            }
            DataFate::Zeros => DataPlan::Zeros,
            DataFate::Seeded(seed) => DataPlan::Seeded(seed),
        }
    }

    /// What the device holds of `file` after the crash.
    fn content(self, id: u64, file: &FileNode) -> Content {
        let all = file.pending.len();
        match self {
            DataPlan::None => file.device.clone(),
            DataPlan::All => replay(file, all, |_| all),
            DataPlan::Zeros => {
                let mut content = replay(file, all, |_| 0);
                content.resize(full_len(file, all));
                content
            }
            DataPlan::OneLost(lost) => {
                let mut content =
                    replay(file, all, |sector| if lost == Some((id, sector)) { 0 } else { all });
                content.resize(full_len(file, all));
                content
            }
            DataPlan::OneKept(Some((kept_id, kept))) if kept_id == id => {
                replay(file, all, |sector| if sector == kept { all } else { 0 })
            }
            DataPlan::OneKept(_) => file.device.clone(),
            DataPlan::Until { seq, bytes } => cut_at(file, seq, bytes),
            DataPlan::Seeded(seed) => {
                by_lot(file, &mut SplitMix64::new(seed ^ id.wrapping_mul(0x9e37_79b9)))
            }
        }
    }
}

fn cut_at(file: &FileNode, seq: u64, bytes_kept: usize) -> Content {
    let whole = file.pending.iter().take_while(|pending| pending.seq < seq).count();
    let mut content = replay(file, whole, |_| whole);
    let cut = file.pending.get(whole).filter(|pending| pending.seq == seq);
    if let Some(Unsynced::Write { offset, bytes }) = cut.map(|pending| &pending.change) {
        content.write(*offset, bytes.get(..bytes_kept).unwrap_or(bytes));
    }
    content
}

/// Keeps truncations up to a random one; then gives each sector a version, and the length a state, of those until the
/// next truncation.
fn by_lot(file: &FileNode, lot: &mut SplitMix64) -> Content {
    let all = file.pending.len();
    let is_resize = |index: &usize| {
        matches!(
            file.pending.get(*index).map(|pending| &pending.change),
            Some(Unsynced::Resize { .. })
        )
    };
    let resizes: Vec<usize> = (0..all).filter(is_resize).collect();
    let resizes_kept = choose(lot, resizes.len());
    let until = resizes.get(resizes_kept).copied().unwrap_or(all);
    let last_resize = resizes_kept.checked_sub(1).and_then(|index| resizes.get(index));
    let since = last_resize.map_or(0, |index| index.saturating_add(1));
    let versions: BTreeMap<u64, usize> =
        written_sectors(file).into_iter().map(|sector| (sector, choose(lot, until))).collect();
    let mut content = replay(file, until, |sector| versions.get(&sector).copied().unwrap_or(until));
    let len_at = since.saturating_add(choose(lot, until.saturating_sub(since)));
    content.resize(full_len(file, len_at));
    content
}

/// 0, `most`, or anything from 0 to `most`, each a third of the time.
fn choose(lot: &mut SplitMix64, most: usize) -> usize {
    match lot.below(3) {
        0 => 0,
        1 => most,
        _ => usize::try_from(lot.below((most as u64).saturating_add(1))).unwrap_or(most),
    }
}

/// Applies the first `until` changes to what was synced, but of a write only those parts whose sector keeps more
/// changes than precede them: `version(sector)` says how many.
fn replay(file: &FileNode, until: usize, version: impl Fn(u64) -> usize) -> Content {
    let mut content = file.device.clone();
    for (index, pending) in file.pending.iter().take(until).enumerate() {
        match &pending.change {
            Unsynced::Resize { len } => content.resize(*len),
            Unsynced::Write { offset, bytes } => {
                for sector in sectors_of(*offset, offset.saturating_add(bytes.len() as u64)) {
                    if index < version(sector) {
                        write_sector(&mut content, sector, *offset, bytes);
                    }
                }
            }
        }
    }
    content
}

/// The part of a write that lies in `sector`.
fn write_sector(content: &mut Content, sector: u64, offset: u64, bytes: &[u8]) {
    let start = sector.saturating_mul(SECTOR).max(offset);
    let end = sector
        .saturating_add(1)
        .saturating_mul(SECTOR)
        .min(offset.saturating_add(bytes.len() as u64));
    let from = usize::try_from(start.saturating_sub(offset)).unwrap_or(usize::MAX);
    let to = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
    content.write(start, bytes.get(from..to).unwrap_or_default());
}

/// The length after the first `until` changes, all of them kept.
fn full_len(file: &FileNode, until: usize) -> u64 {
    file.pending.iter().take(until).fold(file.device.len(), |len, pending| match &pending.change {
        Unsynced::Write { offset, bytes } => len.max(offset.saturating_add(bytes.len() as u64)),
        Unsynced::Resize { len } => *len,
    })
}
