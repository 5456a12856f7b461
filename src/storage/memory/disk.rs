//! The simulated disk's directories, space and locks.
//!
//! Promises: a name reaches the device only by [`MemoryDisk::sync_dir`] of its directory. A rename is one change, and
//! so is an exchange: both its ends reach the device together. Errors are those of Linux, by number.
//! Never: shows the program anything except the seen plane.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::io;
use std::path::{Component, Path};

use rustix::io::Errno;
use siphasher::sip::SipHasher13;

use super::content::{BLOCK, Content, FILE_BYTES_MAX, FileNode};
use crate::storage::DirEntry;

pub(super) const ROOT: u64 = 0;

pub(super) type Names = BTreeMap<String, u64>;

#[derive(Clone, Debug)]
pub(super) enum Node {
    File(FileNode),
    Dir(Dir),
}

#[derive(Clone, Default, Debug)]
pub(super) struct Dir {
    pub(super) seen: Names,
    pub(super) device: Names,
    linked: bool,
}

impl Dir {
    pub(super) fn booted(names: Names) -> Self {
        Dir { seen: names.clone(), device: names, linked: true }
    }
}

/// A path, and the directory it starts from.
#[derive(Clone, Copy)]
pub(super) struct At<'p> {
    pub(super) from: u64,
    pub(super) path: &'p Path,
}

impl<'p> From<&'p Path> for At<'p> {
    /// Paths start at the root, whether they say so or not.
    fn from(path: &'p Path) -> Self {
        At { from: ROOT, path }
    }
}

/// A place for a name: its directory and the name.
type NamePlace = (u64, String);

/// One unsynced change of names.
#[derive(Clone, Debug)]
pub(super) struct NameChange {
    pub(super) seq: u64,
    from: Option<NamePlace>,
    to: Option<NamePlace>,
    /// What `to` names afterwards, or what is removed from `from`.
    node: u64,
    /// What an exchange moves to `from`.
    back: Option<u64>,
}

impl NameChange {
    fn places(&self) -> impl Iterator<Item = &NamePlace> {
        self.from.iter().chain(&self.to)
    }

    fn nodes(&self) -> impl Iterator<Item = u64> {
        [self.node].into_iter().chain(self.back)
    }

    fn touches(&self, dir: u64) -> bool {
        self.places().any(|place| place.0 == dir)
    }

    fn shares_place(&self, other: &NameChange) -> bool {
        self.places().any(|place| other.places().any(|theirs| theirs == place))
    }

    /// Applies it to the device's names, which `names` finds by directory.
    pub(super) fn apply(&self, dirs: &mut BTreeMap<u64, Names>) {
        if let Some((dir, name)) = &self.from {
            if let Some(names) =
                dirs.get_mut(dir).filter(|names| names.get(name) == Some(&self.node))
            {
                match self.back {
                    Some(back) => names.insert(name.clone(), back),
                    None => names.remove(name),
                };
            }
        }
        if let Some((dir, name)) = &self.to {
            if let Some(names) = dirs.get_mut(dir) {
                names.insert(name.clone(), self.node);
            }
        }
    }
}

/// Keeping a change keeps the earlier ones of the same names, as a journal keeps their order.
pub(super) fn close_over(changes: &[NameChange], kept: &mut [bool]) {
    for late in (0..changes.len()).rev() {
        let (Some(change), Some(true)) = (changes.get(late), kept.get(late).copied()) else {
            continue;
        };
        for (early, keep) in changes.iter().zip(kept.iter_mut()).take(late) {
            *keep |= early.shares_place(change);
        }
    }
}

#[derive(Debug)]
pub(super) struct MemoryDisk {
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) names: Vec<NameChange>,
    pub(super) next_node: u64,
    pub(super) next_seq: u64,
    pub(super) changes: u64,
    pub(super) reads: u64,
    pub(super) trace: u64,
    pub(super) bytes_max: u64,
    pub(super) nodes_max: u64,
    pub(super) locks: BTreeSet<u64>,
    /// How many syncs of files succeed before one lies.
    pub(super) lie_after: Option<u64>,
    pub(super) network_fs: Option<&'static str>,
    pub(super) no_exchange: bool,
}

impl MemoryDisk {
    pub(super) fn new() -> Self {
        MemoryDisk {
            nodes: BTreeMap::from([(ROOT, Node::Dir(Dir::booted(Names::new())))]),
            names: Vec::new(),
            next_node: ROOT + 1,
            next_seq: 0,
            changes: 0,
            reads: 0,
            trace: 0,
            bytes_max: u64::MAX,
            nodes_max: u64::MAX,
            locks: BTreeSet::new(),
            lie_after: None,
            network_fs: None,
            no_exchange: false,
        }
    }

    /// Counts a call that changes something, or tries to, and adds it to the trace.
    pub(super) fn count(&mut self, call: &str, paths: &[&Path], offset: u64, bytes: &[u8]) {
        self.changes = self.changes.saturating_add(1);
        let mut hasher = SipHasher13::new_with_keys(self.trace, self.changes);
        let paths = paths.iter().map(|path| path.as_os_str().as_encoded_bytes());
        for part in [call.as_bytes()].into_iter().chain(paths) {
            hasher.write_u64((part.len() as u64).to_le());
            hasher.write(part);
        }
        // Most of what is hashed, and nobody forges it.
        hasher.write_u32(crc32fast::hash(bytes).to_le());
        hasher.write_u64((bytes.len() as u64).to_le());
        hasher.write_u64(offset.to_le());
        self.trace = hasher.finish();
    }

    pub(super) fn create_dir<'p>(&mut self, path: impl Into<At<'p>>) -> io::Result<()> {
        let place = self.vacant(path)?;
        if self.blocks_free() == 0 {
            return Err(Errno::NOSPC.into());
        }
        let node = self.add(Node::Dir(Dir { linked: true, ..Dir::default() }))?;
        self.rename_names(None, Some(place), node);
        Ok(())
    }

    pub(super) fn create<'p>(&mut self, path: impl Into<At<'p>>) -> io::Result<u64> {
        let place = self.vacant(path)?;
        let node = self.add(Node::File(FileNode::booted(Content::default())))?;
        self.rename_names(None, Some(place), node);
        Ok(node)
    }

    pub(super) fn rename<'p>(
        &mut self,
        from: impl Into<At<'p>>,
        to: impl Into<At<'p>>,
    ) -> io::Result<()> {
        let from = self.place(from)?;
        let to = self.place(to)?;
        let node = self.at(&from).ok_or(Errno::NOENT)?;
        if self.lies_in(to.0, node) {
            return Err(Errno::INVAL.into());
        }
        self.check_linked(to.0)?;
        if let Some(target) = self.at(&to) {
            if target == node {
                return Ok(());
            }
            if self.lies_in(from.0, target) {
                return Err(Errno::NOTEMPTY.into());
            }
            match (self.nodes.get(&node), self.nodes.get(&target)) {
                (Some(Node::Dir(_)), Some(Node::File(_))) => return Err(Errno::NOTDIR.into()),
                (Some(Node::File(_)), Some(Node::Dir(_))) => return Err(Errno::ISDIR.into()),
                (_, Some(Node::Dir(dir))) if !dir.seen.is_empty() => {
                    return Err(Errno::NOTEMPTY.into());
                }
                _ => {}
            }
        }
        self.rename_names(Some(from), Some(to), node);
        Ok(())
    }

    pub(super) fn exchange<'p>(
        &mut self,
        a: impl Into<At<'p>>,
        b: impl Into<At<'p>>,
    ) -> io::Result<()> {
        if self.no_exchange {
            return Err(Errno::INVAL.into());
        }
        let (a, b) = (self.place(a)?, self.place(b)?);
        let node = self.at(&a).ok_or(Errno::NOENT)?;
        let back = self.at(&b).ok_or(Errno::NOENT)?;
        if node == back {
            return Ok(());
        }
        if self.lies_in(b.0, node) || self.lies_in(a.0, back) {
            return Err(Errno::INVAL.into());
        }
        for (place, node) in [(&b, node), (&a, back)] {
            self.seen_names(place.0).map(|names| names.insert(place.1.clone(), node));
        }
        let seq = self.take_seq();
        self.names.push(NameChange { seq, from: Some(a), to: Some(b), node, back: Some(back) });
        Ok(())
    }

    pub(super) fn link<'p>(
        &mut self,
        from: impl Into<At<'p>>,
        to: impl Into<At<'p>>,
    ) -> io::Result<()> {
        let node = self.find(from)?;
        let to = self.vacant(to)?;
        match self.nodes.get_mut(&node) {
            Some(Node::File(file)) => file.names = file.names.saturating_add(1),
            _ => return Err(Errno::PERM.into()),
        }
        self.rename_names(None, Some(to), node);
        Ok(())
    }

    pub(super) fn remove<'p>(&mut self, path: impl Into<At<'p>>) -> io::Result<()> {
        let place = self.place(path)?;
        let node = self.at(&place).ok_or(Errno::NOENT)?;
        if let Some(Node::Dir(_)) = self.nodes.get(&node) {
            return Err(Errno::ISDIR.into());
        }
        self.rename_names(Some(place), None, node);
        Ok(())
    }

    /// Removes what is at `path`, with everything below it: not a program's call.
    pub(super) fn unlink<'p>(&mut self, path: impl Into<At<'p>>) -> io::Result<()> {
        let place = self.place(path)?;
        let top = self.at(&place).ok_or(Errno::NOENT)?;
        self.rename_names(Some(place), None, top);
        let mut queue = vec![top];
        while let Some(id) = queue.pop() {
            let Some(Node::Dir(dir)) = self.nodes.get_mut(&id) else { continue };
            dir.linked = false;
            for below in std::mem::take(&mut dir.seen).into_values() {
                match self.nodes.get_mut(&below) {
                    Some(Node::File(file)) => file.names = file.names.saturating_sub(1),
                    _ => queue.push(below),
                }
            }
        }
        Ok(())
    }

    pub(super) fn list<'p>(&self, dir: impl Into<At<'p>>) -> io::Result<Vec<DirEntry>> {
        let names = self.dir(self.find(dir)?)?.seen.iter();
        Ok(names
            .map(|(name, node)| DirEntry {
                name: name.clone(),
                is_file: matches!(self.nodes.get(node), Some(Node::File(_))),
            })
            .collect())
    }

    /// Every change that touches the directory reaches the device, with the changes it depends on.
    pub(super) fn sync_dir<'p>(&mut self, path: impl Into<At<'p>>) -> io::Result<()> {
        let dir = self.find(path)?;
        self.dir(dir)?;
        let mut kept: Vec<bool> = self.names.iter().map(|change| change.touches(dir)).collect();
        close_over(&self.names, &mut kept);
        let mut dirs = self.device_names();
        let mut waiting = Vec::new();
        for (change, keep) in std::mem::take(&mut self.names).into_iter().zip(kept) {
            if keep {
                change.apply(&mut dirs);
            } else {
                waiting.push(change);
            }
        }
        self.names = waiting;
        for (node, names) in dirs {
            if let Some(Node::Dir(dir)) = self.nodes.get_mut(&node) {
                dir.device = names;
            }
        }
        self.collect();
        Ok(())
    }

    /// The device's names by directory.
    pub(super) fn device_names(&self) -> BTreeMap<u64, Names> {
        let dirs = self.nodes.iter().filter_map(|(id, node)| match node {
            Node::Dir(dir) => Some((*id, dir.device.clone())),
            Node::File(_) => None,
        });
        dirs.collect()
    }

    /// Writes as much as fits: short, or `StorageFull` if that is nothing. Allocated blocks need no new space.
    pub(super) fn write(&mut self, node: u64, offset: u64, data: &[u8]) -> io::Result<usize> {
        let end = offset.saturating_add(data.len() as u64);
        if end > FILE_BYTES_MAX {
            return Err(Errno::FBIG.into());
        }
        let free = usize::try_from(self.blocks_free()).unwrap_or(usize::MAX);
        let missing = self.file(node)?.seen.blocks_missing(offset, end).nth(free);
        let room = missing
            .map_or(end, |block| block.saturating_mul(BLOCK).max(offset))
            .saturating_sub(offset);
        let data = data.get(..usize::try_from(room).unwrap_or(usize::MAX)).unwrap_or(data);
        if data.is_empty() && end > offset {
            return Err(Errno::NOSPC.into());
        }
        if !data.is_empty() {
            let seq = self.take_seq();
            self.file(node)?.write(seq, offset, data);
        }
        Ok(data.len())
    }

    pub(super) fn truncate(&mut self, node: u64, len: u64) -> io::Result<()> {
        if len > FILE_BYTES_MAX {
            return Err(Errno::FBIG.into());
        }
        if self.file(node)?.seen.len() != len {
            let seq = self.take_seq();
            self.file(node)?.resize(seq, len);
        }
        Ok(())
    }

    /// `known` is the number of write-back errors that the open file knows of.
    pub(super) fn sync(&mut self, node: u64, known: &mut u64) -> io::Result<()> {
        let lies = self.lie_after == Some(0);
        self.lie_after = self.lie_after.and_then(|left| left.checked_sub(1));
        let file = self.file(node)?;
        if lies {
            file.fail_writeback();
        } else {
            file.sync();
        }
        file.tell_error(known)
    }

    pub(super) fn file(&mut self, node: u64) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&node) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => Err(Errno::ISDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    fn dir(&self, node: u64) -> io::Result<&Dir> {
        match self.nodes.get(&node) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(Errno::NOTDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    /// The node that the program finds at `path`.
    pub(super) fn find<'p>(&self, path: impl Into<At<'p>>) -> io::Result<u64> {
        let At { from: mut node, path } = path.into();
        for name in names_of(path)? {
            node = *self.dir(node)?.seen.get(name).ok_or(Errno::NOENT)?;
        }
        Ok(node)
    }

    fn place<'p>(&self, path: impl Into<At<'p>>) -> io::Result<NamePlace> {
        let At { from: mut dir, path } = path.into();
        let mut names = names_of(path)?;
        let name = names.pop().ok_or(Errno::BUSY)?;
        for name in names {
            dir = *self.dir(dir)?.seen.get(name).ok_or(Errno::NOENT)?;
        }
        self.dir(dir)?;
        Ok((dir, name.to_owned()))
    }

    fn vacant<'p>(&self, path: impl Into<At<'p>>) -> io::Result<NamePlace> {
        let place = self.place(path)?;
        if self.at(&place).is_some() {
            return Err(Errno::EXIST.into());
        }
        self.check_linked(place.0)?;
        Ok(place)
    }

    /// A removed directory accepts no names, even while it is open.
    fn check_linked(&self, dir: u64) -> io::Result<()> {
        if self.dir(dir)?.linked { Ok(()) } else { Err(Errno::NOENT.into()) }
    }

    fn at(&self, place: &NamePlace) -> Option<u64> {
        self.dir(place.0).ok()?.seen.get(&place.1).copied()
    }

    /// Whether `dir` is `node` or lies below it.
    fn lies_in(&self, dir: u64, node: u64) -> bool {
        let mut queue = vec![node];
        while let Some(next) = queue.pop() {
            if next == dir {
                return true;
            }
            if let Some(Node::Dir(below)) = self.nodes.get(&next) {
                queue.extend(below.seen.values());
            }
        }
        false
    }

    fn add(&mut self, node: Node) -> io::Result<u64> {
        if self.nodes_used() >= self.nodes_max {
            return Err(Errno::NOSPC.into());
        }
        let id = self.next_node;
        self.next_node = id.saturating_add(1);
        self.nodes.insert(id, node);
        Ok(id)
    }

    /// Moves, makes or removes a name, as the program sees it, and keeps the change as unsynced.
    fn rename_names(&mut self, from: Option<NamePlace>, to: Option<NamePlace>, node: u64) {
        if let Some((dir, name)) = &from {
            self.seen_names(*dir).map(|names| names.remove(name));
        }
        let mut gone = if to.is_none() { Some(node) } else { None };
        if let Some((dir, name)) = &to {
            gone = self.seen_names(*dir).and_then(|names| names.insert(name.clone(), node));
        }
        match gone.and_then(|gone| self.nodes.get_mut(&gone)) {
            Some(Node::File(file)) => file.names = file.names.saturating_sub(1),
            Some(Node::Dir(dir)) => dir.linked = false,
            None => {}
        }
        let seq = self.take_seq();
        self.names.push(NameChange { seq, from, to, node, back: None });
    }

    fn seen_names(&mut self, dir: u64) -> Option<&mut Names> {
        match self.nodes.get_mut(&dir) {
            Some(Node::Dir(dir)) => Some(&mut dir.seen),
            _ => None,
        }
    }

    fn take_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq = seq.saturating_add(1);
        seq
    }

    /// Files that have a name or are open take space; directories take a block each.
    pub(super) fn blocks_used(&self) -> u64 {
        let used = self.nodes.iter().filter(|(id, _)| **id != ROOT).map(|(_, node)| match node {
            Node::File(file) if file.names > 0 || file.opens > 0 => file.seen.block_count(),
            Node::Dir(dir) if dir.linked => 1,
            _ => 0,
        });
        used.sum()
    }

    fn blocks_free(&self) -> u64 {
        if self.bytes_max == u64::MAX {
            return u64::MAX;
        }
        (self.bytes_max / BLOCK).saturating_sub(self.blocks_used())
    }

    pub(super) fn nodes_used(&self) -> u64 {
        let used = self.nodes.iter().filter(|(id, node)| match node {
            Node::File(file) => file.names > 0 || file.opens > 0,
            Node::Dir(dir) => **id != ROOT && dir.linked,
        });
        used.count() as u64
    }

    /// Nodes that some name on the device leads to, or may after a crash.
    pub(super) fn referenced(&self) -> BTreeSet<u64> {
        let device = self.nodes.values().filter_map(|node| match node {
            Node::Dir(dir) => Some(dir.device.values().copied()),
            Node::File(_) => None,
        });
        device
            .flatten()
            .chain(self.names.iter().flat_map(NameChange::nodes))
            .chain([ROOT])
            .collect()
    }

    /// Drops nodes that nothing refers to.
    pub(super) fn collect(&mut self) {
        let referenced = self.referenced();
        self.nodes.retain(|id, node| {
            referenced.contains(id)
                || match node {
                    Node::File(file) => file.names > 0 || file.opens > 0,
                    Node::Dir(dir) => dir.linked,
                }
        });
    }
}

fn names_of(path: &Path) -> io::Result<Vec<&str>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str().ok_or(Errno::INVAL)?),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
        }
    }
    Ok(names)
}
