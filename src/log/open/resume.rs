//! Turns a log that can be read into one that can be written, and closes it.
//!
//! Promises: nothing is written before the first write, except an uncovered tail; one manifest switch decides, and a
//! crash before or after it loses nothing. The next open repeats a step that was cut short. Explained in
//! `docs/durability.md`, "Before the first write" and "Closing".

use std::sync::Arc;

use super::birth::{base_from, tokens_from};
use super::recovery::{Plan, Uncovered};
use super::scan::check_nothing_behind;
use crate::limits;
use crate::log::Log;
use crate::log::format::{Identity, SEGMENT_HEADER_BYTES};
use crate::log::room::{KEPT_FREE, Keeper, Leaving, Room};
use crate::log::segment::{self, Segment, Spare};
use crate::manifest::{Listed, Manifest};
use crate::record::{Draft, Record};
use crate::storage;
use crate::sync::Ordering;
use crate::types::{Lsn, in_memory};
use crate::{Error, ErrorKind, Result};

/// Called for each record that a recovery moved, with its old place and the record at its new one.
pub(crate) type Remap<'a> = dyn FnMut(Lsn, &Record<'_>) -> Result<()> + 'a;

impl Log {
    /// Whether LSNs may be taken.
    pub(crate) fn is_writing(&self) -> bool {
        self.gate.has_begun()
    }

    /// How far tokens run ahead of LSNs, once LSNs may be taken. It doesn't change while they may.
    pub(crate) fn ahead(&self) -> Option<u64> {
        self.is_writing().then(|| self.ahead.load(Ordering::Relaxed))
    }

    /// Whether an uncovered tail waits for space to be made durable.
    pub(crate) fn has_unsettled_tail(&self) -> bool {
        self.gate.is_unsettled()
    }

    /// Before the first write: the end up to which records are durable in place. Records after it are moved.
    pub(crate) fn settled_end(&self) -> Lsn {
        match &self.keeper.lock().plan {
            Plan::Fork { covered, .. } => *covered,
            Plan::Continue => self.end(),
        }
    }
}

/// The beginning and the end of writing, as a part of the log.
#[derive(Clone, Copy)]
pub(crate) struct Resuming<'l>(&'l Log);

impl std::ops::Deref for Resuming<'_> {
    type Target = Log;

    fn deref(&self) -> &Log {
        self.0
    }
}

impl Log {
    pub(crate) fn resuming(&self) -> Resuming<'_> {
        Resuming(self)
    }
}

impl Resuming<'_> {
    /// Does what must precede the first LSN taken after an open. Durable on return; a crash during it leaves the same
    /// log as a crash before it. `keeps_spares`: claims of other processes may rely on all of them.
    pub(crate) fn begin_writing(&self, keeps_spares: bool, remap: &mut Remap<'_>) -> Result<()> {
        let mut keeper = self.keeper.lock();
        self.may_go_on()?;
        if self.gate.has_begun() {
            return Ok(());
        }
        let plan = std::mem::replace(&mut keeper.plan, Plan::Continue);
        let begun = self.guarded(|| match &plan {
            Plan::Continue => self.go_on(&mut keeper),
            Plan::Fork { covered, suffix } => self.fork(&mut keeper, *covered, suffix, remap),
        });
        if let Err(e) = begun {
            keeper.plan = plan;
            return Err(e);
        }
        self.gate.settle();
        if self.is_poisoned() {
            // The switch succeeded, but a preparation after it failed.
            return Err(self.poisoned());
        }
        if !keeps_spares {
            // Their files are now leftovers.
            let _ = self.rooms().take_excess(&mut keeper);
        }
        self.rooms().set_aside(&keeper);
        self.guarded(|| self.remove_leftovers(&mut keeper));
        self.ahead.store(keeper.manifest.ahead, Ordering::SeqCst);
        self.allow_first(&keeper);
        if matches!(plan, Plan::Fork { .. }) {
            self.growth.note();
        }
        self.gate.begin();
        self.note_time();
        Ok(())
    }

    /// Clears the clean flag, durably, before the first LSN, and starts a new range of tokens: a copy of this store
    /// may have continued at the same LSNs. Removes empty segments from the list: none of their LSNs was ever taken.
    fn go_on(&self, keeper: &mut Keeper) -> Result<()> {
        let (last, at) = {
            let tail = self.tail.lock();
            (tail.next.as_ref().unwrap_or(&tail.active).base(), tail.end())
        };
        let start = tokens_from(&self.seams, at.token(keeper.manifest.ahead).get());
        let ahead = start.map_err(|e| e.at(&self.dir))?.checked_sub(at.get());
        let Some(ahead) = ahead.filter(|ahead| *ahead >= keeper.manifest.ahead) else {
            return Err(self.bug("tokens would be given out a second time"));
        };
        let mut manifest =
            Manifest { clean: None, opener: self.seams.opener(), ahead, ..keeper.manifest.clone() };
        manifest.check_tokens().map_err(|e| e.at(&self.dir))?;
        manifest.segments.retain(|listed| listed.base <= last);
        self.rooms().switch_to(keeper, manifest)?;
        let mut list = self.segments.lock();
        let used = list.iter().filter(|segment| segment.base() <= last).cloned().collect();
        *list = Arc::new(used);
        Ok(())
    }

    /// Copies the suffix that no watermark covers into new segments, usually one, and switches.
    fn fork(
        &self,
        keeper: &mut Keeper,
        covered: Lsn,
        suffix: &[Uncovered],
        remap: &mut Remap<'_>,
    ) -> Result<()> {
        let parts = split(suffix, self.sizes.copies_bytes_most());
        keeper.manifest.check_room(parts.len()).map_err(|e| e.at(&self.dir))?;
        self.rooms().prepare_switch(keeper)?;
        // After all tokens, so that LSNs are tokens again.
        let base = base_from(&self.seams, keeper.manifest.check_tokens()?);
        let mut base = base.map_err(|e| e.at(&self.dir))?;
        let spares = self.spares_for_fork(keeper, &parts)?;
        let mut manifest = keeper.manifest.clone();
        manifest.clean = None;
        manifest.opener = self.seams.opener();
        manifest.segments.retain_mut(|listed| cut_at(listed, covered));
        manifest.ahead = 0;
        let mut copied: Vec<Copied> = Vec::with_capacity(parts.len());
        let mut spares = spares.into_iter();
        for (index, part) in parts.iter().enumerate() {
            let Some(mut spare) = spares.next() else {
                return Err(self.bug("a fork with fewer spares than parts"));
            };
            let goes_on = index + 1 < parts.len();
            match self.copy_to(&mut spare, &mut manifest, base, covered, part, goes_on) {
                Ok(made) => {
                    base = made.segment.identity.listed().end;
                    copied.push(made);
                }
                Err(e) => {
                    // A spare that became a segment is no spare any more.
                    keeper.spares.extend(Some(spare).filter(Spare::is_spare));
                    keeper.spares.extend(spares);
                    return Err(e);
                }
            }
        }
        let Some(last) = copied.last() else {
            return Err(self.bug("a fork without a segment"));
        };
        let at = (SEGMENT_HEADER_BYTES + last.bytes.len()) as u64;
        let end = last.segment.base().plus(at);
        manifest.durable = end;
        self.rooms().switch_to(keeper, manifest)?;
        // Only after the switch: before it the log ends where the crash left it, and a later try uses another place.
        self.queue.restart_at(end);
        let segments = copied.iter().map(|copied| Arc::clone(&copied.segment)).collect();
        self.move_tail(&keeper.manifest, segments, at);
        // From memory: after the switch nothing may fail that a later call would have to repeat.
        for Copied { segment, bytes, moved } in copied {
            for (from, to) in moved {
                let copy = bytes.get(in_memory(to.since(segment.identity.start()))..);
                let Some(Ok(record)) = copy.map(|copy| Record::parse(copy, to, &segment.seal))
                else {
                    return Err(self.bug(format_args!("there is no copy at lsn {to}")));
                };
                // The index would still point to the key's old place.
                remap(from, &record).map_err(|e| self.failed(storage::Failure::Poison(e)))?;
            }
        }
        Ok(())
    }

    /// Makes a spare the segment of `manifest` at `base` and copies a part of the suffix into it. Durable on return,
    /// but the manifest is not written.
    fn copy_to(
        &self,
        spare: &mut Spare,
        manifest: &mut Manifest,
        base: Lsn,
        covered: Lsn,
        part: &[Uncovered],
        goes_on: bool,
    ) -> Result<Copied> {
        let before = manifest.segments.last();
        let follows = before.map_or(Lsn::ZERO, |before| match before.base < covered {
            true => before.end,
            // Another part of the suffix.
            false => Identity::of(before).start(),
        });
        let segment = self.rooms().add_segment(spare, manifest, base, follows)?;
        let (mut bytes, moved) = self.copies(&segment, covered, part)?;
        let start = SEGMENT_HEADER_BYTES as u64;
        if goes_on {
            let end = segment.base().plus(start).plus(bytes.len() as u64);
            Draft::segment_end().seal(&mut bytes, end, covered, &segment.seal);
        }
        // The segment is not listed yet, and the originals of the copies are unchanged.
        let file = segment.file()?;
        storage::write_all_at(&*file, &bytes, start).and_then(|()| file.sync_data()).map_err(
            |e| {
                let copying = |e| Error::io("copying to", &segment.path, e);
                self.failed(storage::Failure::scarce_or_poison(e, copying))
            },
        )?;
        // Only the last segment is written to again.
        let pooled =
            if goes_on { segment.pooled(&self.pool, segment.identity.listed().end) } else { None };
        let segment = pooled.unwrap_or(segment);
        Ok(Copied { segment: Arc::new(segment), bytes, moved })
    }

    /// Takes a spare for each part of the suffix. All of them or none: a later try needs the ones that are left.
    fn spares_for_fork(&self, keeper: &mut Keeper, parts: &[&[Uncovered]]) -> Result<Vec<Spare>> {
        let mut taken = Vec::with_capacity(parts.len());
        for part in parts {
            let copies: u64 = part.iter().map(copy_len).sum();
            let needed = SEGMENT_HEADER_BYTES as u64 + copies + KEPT_FREE;
            match self.spare_for_fork(keeper, needed) {
                Ok(index) => {
                    let mut spare = keeper.spares.remove(index);
                    if taken.len() >= limits::OPEN_SPARES {
                        spare.file = None;
                    }
                    taken.push(spare);
                }
                Err(e) => {
                    keeper.spares.append(&mut taken);
                    return Err(e);
                }
            }
        }
        Ok(taken)
    }

    /// Finds or prepares a spare for `needed` bytes and some more to continue in, but not much: a thousand kills
    /// should cost little. On a full disk any spare that holds `needed` will do; the kept one is there for this.
    fn spare_for_fork(&self, keeper: &mut Keeper, needed: u64) -> Result<usize> {
        let had = keeper.spares.len();
        let paged = |bytes: u64| {
            bytes.next_multiple_of(limits::PAGE_BYTES as u64).min(limits::SEGMENT_BYTES_MOST)
        };
        let roomy = needed + self.sizes.segment_bytes_least();
        let bytes = self.sizes.first().max(paged(roomy));
        let roomy = roomy.min(bytes);
        let of_size =
            |least: u64, most: u64| move |spare: &Spare| (least..=most).contains(&spare.bytes);
        while let Some(index) = keeper.spares.iter().position(of_size(roomy, bytes)) {
            if self.rooms().is_usable(keeper, index)? {
                return Ok(index);
            }
        }
        let error = match self.prepare_for_fork(keeper, bytes) {
            Err(e) if e.kind() == ErrorKind::StorageFull => e,
            prepared => return prepared,
        };
        while let Some(index) = keeper.spares.iter().position(of_size(needed, u64::MAX)) {
            if self.rooms().is_usable(keeper, index)? {
                return Ok(index);
            }
        }
        // Segments that an earlier try made of spares are removed, because a segment is never recycled. Their space
        // and that of unusable spares serves for a new spare of any sufficient size.
        self.add_unlisted(keeper)?;
        if keeper.leaving.is_empty() && keeper.spares.len() == had {
            return Err(error);
        }
        self.rooms().check_standing()?;
        self.remove_leaving(keeper)?;
        let least = needed.max(self.sizes.segment_bytes_least());
        for bytes in [bytes, paged(roomy), paged(least)] {
            match self.prepare_for_fork(keeper, bytes) {
                Err(e) if e.kind() == ErrorKind::StorageFull => {}
                prepared => return prepared,
            }
        }
        Err(error)
    }

    fn prepare_for_fork(&self, keeper: &mut Keeper, bytes: u64) -> Result<usize> {
        keeper.spare_number = keeper.spare_number.wrapping_add(1);
        let (storage, log_dir) = (&*self.seams.storage, self.rooms().log_dir());
        let spare = Spare::prepare(storage, &log_dir, keeper.spare_number, bytes);
        let index = keeper.spares.len();
        keeper.spares.push(spare.map_err(|e| self.failed(e))?);
        Ok(index)
    }

    /// Returns the bytes of the suffix's records in a new segment, and the old and new place of each.
    #[expect(clippy::type_complexity, reason = "bytes, and pairs of places")]
    fn copies(
        &self,
        segment: &Segment,
        covered: Lsn,
        suffix: &[Uncovered],
    ) -> Result<(Vec<u8>, Vec<(Lsn, Lsn)>)> {
        let start = segment.base().plus(SEGMENT_HEADER_BYTES as u64);
        let mut bytes = Vec::new();
        let mut moved = Vec::with_capacity(suffix.len());
        for &Uncovered { lsn: from, .. } in suffix {
            let to = start.plus(bytes.len() as u64);
            self.reading().read_listed(from, |record| {
                let body = record.body().map_err(|bad| {
                    Error::corrupt(self.dir(), 0, format_args!("{bad} at lsn {from}"))
                })?;
                Draft::copy(&record, &body).seal(&mut bytes, to, covered, &segment.seal);
                Ok(())
            })?;
            moved.push((from, to));
        }
        Ok((bytes, moved))
    }

    /// Continues the log in the last of `new`, with the segments that `manifest` lists.
    fn move_tail(&self, manifest: &Manifest, new: Vec<Arc<Segment>>, at: u64) {
        let Some(segment) = new.last().cloned() else { return };
        let mut list = self.segments.lock();
        let is_listed = |old: &Arc<Segment>| {
            manifest.segments.iter().any(|listed| listed.ordinal == old.identity.ordinal)
        };
        let mut segments: Vec<_> = list.iter().filter(|old| is_listed(old)).cloned().collect();
        segments.extend(new);
        *list = Arc::new(segments);
        drop(list);
        self.writer.lock().current = Arc::clone(&segment);
        let mut tail = self.tail.lock();
        tail.marked = segment.base().plus(at);
        tail.keyed_end = Lsn::ZERO;
        tail.active = segment;
        tail.at = at;
        tail.next = None;
    }

    /// Removes unlisted files and cuts off the bytes after a listed `end`. The next open repeats what a crash undoes,
    /// so failures are ignored, except that of a sync, which poisons the log.
    fn remove_leftovers(&self, keeper: &mut Keeper) {
        let storage = &*self.seams.storage;
        let log_dir = self.rooms().log_dir();
        // Spares that can't be listed stay until the next open.
        for entry in storage.list(&log_dir).unwrap_or_default() {
            let path = log_dir.join(&entry.name);
            let is_unused_spare = Spare::number_of(&entry.name).is_some()
                && !keeper.spares.iter().any(|spare| spare.path == path);
            if path == Spare::draft_path(&log_dir) || is_unused_spare {
                let _ = storage.remove(&path);
            }
        }
        // A segment that is cut off at the end of another one would lose records.
        let Ok(listed) = self.listed_segments(keeper) else { return };
        for (segment, item) in listed {
            let end = item.end.since(item.base);
            if end < item.capacity && segment.cut_to(end) {
                let file = storage.open(&segment.path, storage::Access::ReadWrite);
                let _ = file.and_then(|file| match file.len()? > end {
                    true => file.truncate(end),
                    false => Ok(()),
                });
            }
        }
        // A removal that failed is tried again when the next segment is dropped.
        keeper.may_lack_leaving = true;
        let _ = self.remove_leaving(keeper);
    }

    /// Returns the segments for readers with their items in the manifest: both change together, under the keeper's
    /// lock.
    fn listed_segments(&self, keeper: &Keeper) -> Result<Vec<(Arc<Segment>, Listed)>> {
        let segments = Arc::clone(&self.segments.lock());
        let listed = &keeper.manifest.segments;
        let is_same =
            |(segment, item): (&Arc<Segment>, &Listed)| segment.identity == Identity::of(item);
        if segments.len() != listed.len() || !segments.iter().zip(listed).all(is_same) {
            return Err(self.bug("readers have other segments than the manifest lists"));
        }
        Ok(segments.iter().cloned().zip(listed.iter().copied()).collect())
    }

    /// Adds to `leaving` the segments that the current manifest, whose names are all durable, doesn't list.
    pub(in crate::log) fn add_unlisted(&self, keeper: &mut Keeper) -> Result<()> {
        let dir = self.rooms().log_dir();
        let entries = self.seams.storage.list(&dir).map_err(|e| Error::io("listing", &dir, e))?;
        let Keeper { leaving, manifest, .. } = keeper;
        for entry in entries.iter().filter(|entry| entry.is_file) {
            let Some(ordinal) = segment::ordinal_of(&entry.name) else { continue };
            let is_listed = manifest.segments.iter().any(|item| item.ordinal == ordinal);
            if !is_listed && leaving.iter().all(|left| left.ordinal != ordinal) {
                leaving.push(Leaving { ordinal, segment: None });
            }
        }
        keeper.may_lack_leaving = false;
        Ok(())
    }

    /// Places a note with the clocks, if it fits; at the start of the next segment it does.
    pub(in crate::log) fn note_time(&self) -> bool {
        let time = self.store_clock.note(&*self.seams.clock);
        let placed = self.place(Draft::note(Some(&time.into())), Room::Note).is_ok();
        if placed {
            self.tail.lock().last_time_note = time;
        }
        placed
    }

    /// Ends the log: everything placed becomes durable, and the manifest says where the log ended. If nothing was
    /// written since the open, everything stays as it was.
    ///
    /// Called by the close alone: nothing else is inside the gate, so nothing is placed any more.
    ///
    /// `change` updates the list of tables in the same manifest.
    pub(crate) fn close(&self, change: impl FnOnce(&mut Manifest)) -> Result<()> {
        let mut keeper = self.keeper.lock();
        if self.is_poisoned() {
            return Err(self.poisoned());
        }
        if !self.gate.has_begun() {
            return Ok(());
        }
        let last = self.tail.lock().last;
        self.commit(last, crate::operation::Durability::Sync)?;
        let end = self.tail.lock().end();
        // Bytes that rot left in the space after the end would look as if the manifest were older than the log. So
        // the close isn't marked as clean, and the next open cuts them off like a torn tail.
        let is_clean = self.listed_segments(&keeper)?.iter().all(|(segment, listed)| {
            listed.end <= end || check_nothing_behind(segment, listed.end, end).is_ok()
        });
        let clean = is_clean.then_some(end);
        let mut manifest = Manifest { clean, durable: end, ..keeper.manifest.clone() };
        change(&mut manifest);
        self.guarded(|| self.rooms().switch_to(&mut keeper, manifest))?;
        for spare in self.rooms().take_excess(&mut keeper) {
            // If it stays, the next open that writes removes it.
            let _ = self.seams.storage.remove(&spare.path);
        }
        Ok(())
    }
}

/// A new segment with a part of the suffix: its bytes, and the old and new place of each record.
struct Copied {
    segment: Arc<Segment>,
    bytes: Vec<u8>,
    moved: Vec<(Lsn, Lsn)>,
}

/// A copy contains token and life explicitly: sixteen bytes more.
fn copy_len(record: &Uncovered) -> u64 {
    record.len + 16
}

/// Splits the suffix into parts whose copies take at most `most` bytes each, or hold a single longer record. At least
/// one part.
fn split(suffix: &[Uncovered], most: u64) -> Vec<&[Uncovered]> {
    let (mut parts, mut rest) = (Vec::new(), suffix);
    loop {
        let mut bytes = 0;
        let fits = |record: &&Uncovered| {
            bytes += copy_len(record);
            bytes <= most
        };
        let count = rest.iter().take_while(fits).count().max(1);
        match rest.split_at_checked(count) {
            Some((part, after)) if !after.is_empty() => {
                parts.push(part);
                rest = after;
            }
            _ => {
                parts.push(rest);
                return parts;
            }
        }
    }
}

/// Ends an item of the list at `covered`. Returns whether a record is left in it.
fn cut_at(listed: &mut Listed, covered: Lsn) -> bool {
    listed.end = listed.end.min(covered);
    listed.end > listed.base.plus(SEGMENT_HEADER_BYTES as u64)
}
