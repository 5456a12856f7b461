//! Writes a log anew from what a survey found.
//!
//! Promises: `relist` writes a manifest for a log that has lost nothing else; `salvage` writes all whole records into
//! new segments, in order, and then a manifest that lists only those. A crash before that changes nothing; neither
//! does a log that would not open. Never: decides that a loss is accepted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{Identity, SEGMENT_HEADER_BYTES};
use super::open::birth::base_from;
use super::open::steps::{self, Visit};
use super::reader::{GO_ON, Met};
use super::segment::{self, Segment, Spare};
use super::survey::Survey;
use super::{Seams, Sizes};
use crate::clock::StoreClock;
use crate::limits;
use crate::manifest::{Listed, Manifest, Opener, Switch};
use crate::record::{Draft, HEADER_BYTES, Record};
use crate::sealed::listed::ListedMemories;
use crate::storage::{self, Failure};
use crate::types::Lsn;
use crate::{Error, ErrorKind, Result};

impl Survey<'_> {
    /// Returns the manifest of a log that keeps its segments, or gets others.
    fn manifest_of(
        &self,
        seams: &Seams,
        segments: Vec<Listed>,
        durable: Lsn,
        expired: Vec<ListedMemories>,
        next_table: u32,
    ) -> Manifest {
        let old = self.manifest.as_ref();
        let time = match (self.time, old.map(|manifest| manifest.time)) {
            (Some(log), Some(listed)) if listed.store() > log.store() => Some(listed),
            (log, listed) => log.or(listed),
        };
        let note = time.map(Into::into);
        let clock = StoreClock::open(
            note.as_ref(),
            self.newest,
            limits::TIME_OFF_MILLIS_MAX,
            &*seams.clock,
        );
        let ordinals = segments.iter().map(|listed| listed.ordinal);
        let own = self.parts.iter().map(|part| part.identity.ordinal);
        let next = ordinals.chain(own).max().map_or(1, |ordinal| ordinal + 1);
        let extent = segments.last().map_or(Lsn::ZERO, |listed| listed.base.plus(listed.capacity));
        Manifest {
            store: self.store,
            secrets: self.secrets,
            generation: old.map_or(1, |manifest| manifest.generation) + 1,
            clean: None,
            durable,
            // Not clean: the log continues in a segment that begins at or after it.
            extent: extent.max(self.extent()),
            ahead: 0,
            next_ordinal: old.map_or(next, |manifest| manifest.next_ordinal.max(next)),
            time: clock.note(&*seams.clock).into(),
            opener: Opener::default(),
            segments,
            covered: Lsn::ZERO,
            next_table,
            tables: Vec::new(),
            expired,
        }
    }

    /// Lists the log anew, if only its manifest is lost. Where a header is damaged, see `salvage`. Returns whether an
    /// open accepts the list; if not, nothing was changed.
    pub(crate) fn relist(
        &self,
        seams: &Seams,
        dir: &Path,
        expired: Vec<ListedMemories>,
        next_table: u32,
    ) -> Result<bool> {
        let mut segments = Vec::with_capacity(self.parts.len());
        let mut rest = self.parts.iter().peekable();
        while let Some(part) = rest.next() {
            let mut listed = part.identity.listed();
            listed.end = part.end.min(listed.end);
            let mut stop = None;
            part.walk(|met| {
                if let Met::Gap { from, .. } = met {
                    stop = stop.or(Some(part.base().plus(from)));
                }
                GO_ON
            })?;
            // Only the last one may end in a torn tail; a recovery cut the others there.
            if let (Some(stop), true) = (stop, rest.peek().is_some()) {
                listed.end = stop.max(listed.base.plus(SEGMENT_HEADER_BYTES as u64));
            }
            segments.push(listed);
        }
        let manifest = self.manifest_of(seams, segments, Lsn::ZERO, expired, next_table);
        if !manifest.is_sound() {
            return Ok(false);
        }
        switch(seams, dir, &manifest)?;
        Ok(true)
    }

    /// Writes all whole records into new segments, and a manifest that lists only those, after `prove` has shown that
    /// it opens.
    pub(crate) fn salvage(
        &self,
        seams: &Seams,
        dir: &Path,
        sizes: &Sizes,
        expired: Vec<ListedMemories>,
        next_table: u32,
        visit: &mut Visit<'_>,
    ) -> Result<u64> {
        // New files take ordinals after those of all names: they must not replace a file that is being read.
        let next = match self.ordinals.last().map(|ordinal| ordinal.checked_add(1)) {
            Some(Some(next)) => next,
            Some(None) => {
                let path = dir.join("log").join(segment::file_name(u32::MAX));
                let what = "a file with the last number, which leaves none for a new segment: give it the next free number:";
                return Err(Error::corrupt(&path, 0, what));
            }
            None => 1,
        };
        let known = self.manifest.as_ref().map_or(0, |manifest| manifest.next_ordinal);
        let mut writer = Salvage {
            survey: self,
            seams,
            log_dir: dir.join("log"),
            bytes: sizes.first().max(sizes.segment_bytes_max),
            ordinal: known.max(next),
            base: base_from(seams, self.extent().get())?,
            segments: Vec::new(),
            open: None,
            buffer: Vec::new(),
            records: 0,
        };
        self.records(&mut |record| writer.push(record))?;
        let (segments, durable, records) = writer.finish()?;
        let manifest = self.manifest_of(seams, segments, durable, expired, next_table);
        prove(seams, dir, sizes, manifest.clone(), visit)?;
        switch(seams, dir, &manifest)?;
        Ok(records)
    }
}

/// Opens the log that a manifest lists as any open would, passes its records to `visit`, and changes nothing.
pub(crate) fn prove(
    seams: &Seams,
    dir: &Path,
    sizes: &Sizes,
    manifest: Manifest,
    visit: &mut Visit<'_>,
) -> Result<()> {
    steps::open(seams.clone(), dir, *sizes, manifest, visit).map(drop)
}

fn switch(seams: &Seams, dir: &Path, manifest: &Manifest) -> Result<()> {
    let (storage, log_dir) = (&*seams.storage, dir.join("log"));
    // A rename, which replaces any existing manifest.
    let switched = Switch::new(Arc::clone(&seams.storage), dir).first(manifest);
    switched.map_err(|failure| match failure {
        Failure::Before(e) | Failure::Poison(e) => e,
    })?;
    // Unlisted files are removed: an open would take a damaged file for part of a newer log.
    let is_listed = |ordinal| manifest.segments.iter().any(|listed| listed.ordinal == ordinal);
    for entry in storage.list(&log_dir).map_err(|e| Error::io("listing", &log_dir, e))? {
        if segment::ordinal_of(&entry.name).is_none_or(is_listed) {
            continue;
        }
        let path = log_dir.join(&entry.name);
        if entry.is_file {
            storage.remove(&path).map_err(|e| Error::io("removing", &path, e))?;
        } else {
            // Not a segment file of ours: it is kept under another name.
            let aside = log_dir.join(format!("{}.damaged", entry.name));
            storage.rename(&path, &aside).map_err(|e| Error::io("renaming", &path, e))?;
        }
    }
    storage.sync_dir(&log_dir).map_err(|e| Error::io("syncing", &log_dir, e))
}

/// Writes new segments, one after the other.
struct Salvage<'s> {
    survey: &'s Survey<'s>,
    seams: &'s Seams,
    log_dir: PathBuf,
    bytes: u64,
    ordinal: u32,
    base: Lsn,
    segments: Vec<Listed>,
    open: Option<Segment>,
    buffer: Vec<u8>,
    records: u64,
}

impl Salvage<'_> {
    fn at(&self) -> u64 {
        (SEGMENT_HEADER_BYTES + self.buffer.len()) as u64
    }

    fn push(&mut self, record: &Record<'_>) -> Result<()> {
        let Ok(body) = record.body() else { return Ok(()) };
        // Like a recovery's copy: its original is listed until the switch.
        let draft = Draft::copy(record, &body);
        let needed = self.at() + draft.len() + HEADER_BYTES as u64;
        if self.open.as_ref().is_some_and(|open| needed > open.identity.capacity) {
            self.end_segment(true)?;
        }
        if self.open.is_none() {
            self.begin_segment(draft.len())?;
        }
        let at = self.at();
        if let Some(open) = &self.open {
            let lsn = open.base().plus(at);
            draft.seal(&mut self.buffer, lsn, open.base(), &open.seal);
            self.records += 1;
        }
        Ok(())
    }

    fn begin_segment(&mut self, least: u64) -> Result<()> {
        let storage = &*self.seams.storage;
        let Some(next) = self.ordinal.checked_add(1) else {
            let message = "the log has as many segments as it may: begin a new store";
            return Err(Error::new(ErrorKind::StorageFull, message).at(&self.log_dir));
        };
        let only = |failure| match failure {
            Failure::Before(e) | Failure::Poison(e) => e,
        };
        let page = limits::PAGE_BYTES as u64;
        let bytes = self.bytes.max((least + 2 * page).next_multiple_of(page));
        let number = u32::MAX - self.ordinal;
        let mut spare = Spare::prepare(storage, &self.log_dir, number, bytes).map_err(only)?;
        let identity = Identity {
            ordinal: self.ordinal,
            base: self.base,
            capacity: bytes,
            salt: self.seams.draw_u64()?,
        };
        let (store, secrets) = (self.survey.store, &self.survey.secrets);
        let follows = self.segments.last().map_or(Lsn::ZERO, |before| Identity::of(before).start());
        let segment = spare
            .activate(storage, &self.log_dir, identity, store, secrets, follows)
            .map_err(only)?;
        self.ordinal = next;
        self.base = identity.listed().end;
        self.segments.push(identity.listed());
        self.open = Some(segment);
        Ok(())
    }

    fn end_segment(&mut self, goes_on: bool) -> Result<Lsn> {
        let Some(open) = self.open.take() else { return Ok(self.base) };
        let end = open.base().plus((SEGMENT_HEADER_BYTES + self.buffer.len()) as u64);
        if goes_on {
            Draft::segment_end().seal(&mut self.buffer, end, open.base(), &open.seal);
        }
        let file = open.file()?;
        storage::write_all_at(&*file, &self.buffer, SEGMENT_HEADER_BYTES as u64)
            .and_then(|()| file.sync_data())
            .map_err(|e| Error::io("writing", &open.path, e))?;
        self.buffer.clear();
        Ok(end)
    }

    fn finish(mut self) -> Result<(Vec<Listed>, Lsn, u64)> {
        if self.segments.is_empty() {
            self.begin_segment(0)?;
        }
        let durable = self.end_segment(false)?;
        Ok((self.segments, durable, self.records))
    }
}
