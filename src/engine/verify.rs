//! Reads everything: each record, each bucket, and whether the index knows every key.
//!
//! Promises: nothing is changed and nothing is mended; each stretch of damage is reported once, with file and offset,
//! and reading continues after it. Changes made meanwhile are not damage. Neither are bytes that can't be read: in a
//! file that the system refuses to read, or in a record that a failed write left in memory. Records not yet durable
//! are skipped.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::Engine;
use super::compose::opens_as;
use crate::index::table::Table;
use crate::log::Scrubbed;
use crate::log::open::lifecycle::Inside;
use crate::operation::Key;
use crate::record::Record;
use crate::remembered::MemoryFile;
use crate::sealed::listed::{BUCKET_BYTES, ListedFile, ListedTable};
use crate::sealed::{EntryCursor, Stretch};
use crate::types::Lsn;
use crate::{Error, ErrorKind, Result};

/// Receives what is found and the number of bytes read; may end the reading.
pub(crate) trait Inspector {
    fn damage(&mut self, error: Error);
    /// Something could not be read, so whether it is whole is unknown.
    fn unread(&mut self, error: Error);
    fn record(&mut self);
    fn read(&mut self, bytes: u64) -> ControlFlow<()>;
}

/// Sorts the errors of a reading: damage, unreadable bytes, and errors that end it.
struct Sorting<'v> {
    engine: &'v Engine,
    inspector: &'v mut dyn Inspector,
    /// The stay inside the gate. Left while the caller's own code runs: that may take long, or close the store.
    inside: Option<Inside<'v>>,
    /// Set when a close waits for this call, or came while the caller's own code ran.
    ended: Option<Error>,
}

impl Sorting<'_> {
    fn tell(&mut self, error: Error) -> ControlFlow<()> {
        self.go_on()?;
        match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Incompatible => self.inspector.damage(error),
            _ => self.inspector.unread(error),
        }
        ControlFlow::Continue(())
    }

    /// Ends the reading once the store is being closed.
    fn go_on(&mut self) -> ControlFlow<()> {
        self.ended = self.engine.may_stay().err();
        match self.ended {
            None => ControlFlow::Continue(()),
            Some(_) => ControlFlow::Break(()),
        }
    }

    fn read(&mut self, bytes: u64) -> ControlFlow<()> {
        self.inside = None;
        self.inspector.read(bytes)?;
        match self.engine.enter() {
            Ok(inside) => {
                self.inside = Some(inside);
                ControlFlow::Continue(())
            }
            Err(e) => {
                self.ended = Some(e);
                ControlFlow::Break(())
            }
        }
    }
}

impl Engine {
    /// Reads all files of the store and reports to `inspector` what it finds.
    pub(crate) fn verify(&self, inspector: &mut dyn Inspector) -> Result<()> {
        let inside = Some(self.enter()?);
        let mut sorting = Sorting { engine: self, inspector, inside, ended: None };
        let _ = self.verify_all(&mut sorting);
        sorting.ended.map_or(Ok(()), Err)
    }

    fn verify_all(&self, sorting: &mut Sorting<'_>) -> ControlFlow<()> {
        if let Err(e) = self.log.reading().check_manifest() {
            sorting.tell(e)?;
        }
        // Tables first, from one snapshot. Tables that other threads merged or mended meanwhile are not damage.
        let tables = self.tables();
        for table in &tables.list {
            self.verify_table(table, sorting)?;
            sorting.read(table.listed.bytes())?;
        }
        for file in &tables.expired {
            self.verify_expired(file, sorting)?;
            sorting.read(file.listed.bytes())?;
        }
        let mut flow = ControlFlow::Continue(());
        let segments = self.log.reading().listed();
        self.log.reading().scrub(&mut |found| {
            flow = match found {
                Scrubbed::Failed(e) => sorting.tell(e),
                Scrubbed::Bytes(bytes) => sorting.read(bytes),
                Scrubbed::Record(record) => {
                    sorting.inspector.record();
                    // Damage in tables was reported above, and the scrub reports that in the log: a lookup may find a
                    // damaged record once for each older record of its key.
                    let is_told = |e: &Error| {
                        let is_of = |table: &Arc<Table>| e.path() == Some(table.path());
                        e.kind() == ErrorKind::Corrupt
                            && (tables.list.iter().any(is_of)
                                || self.log.reading().scrubs(&segments, e))
                    };
                    match self.verify_record(&record).err().filter(|e| !is_told(e)) {
                        Some(e) => sorting.tell(e),
                        None => sorting.go_on(),
                    }
                }
            };
            flow
        });
        flow
    }

    fn verify_table(&self, table: &Arc<Table>, sorting: &mut Sorting<'_>) -> ControlFlow<()> {
        // The cursor continues after a damaged bucket; a failing device would fail for each of them.
        let mut stretch = Stretch::default();
        let mut tell = |e: Error| {
            let goes_on = e.kind() == ErrorKind::Corrupt;
            if stretch.begins(e.offset(), BUCKET_BYTES) && self.mending().names_table(&e) {
                sorting.tell(e)?;
            } else {
                sorting.go_on()?;
            }
            ControlFlow::<(), bool>::Continue(goes_on)
        };
        if let Err(e) = table.reopened(&*self.log.seams().storage) {
            tell(e)?;
        }
        let mut cursor = EntryCursor::new(Arc::clone(table));
        loop {
            if self.log.gate().must_leave() {
                return sorting.go_on();
            }
            match cursor.peek() {
                Ok(Some(_)) => cursor.advance(),
                Ok(None) => break,
                Err(e) => {
                    if !tell(e)? {
                        return ControlFlow::Continue(());
                    }
                }
            }
        }
        let mut flow = ControlFlow::Continue(());
        table.open_keys(&mut |page| {
            let told = page.err().map_or(ControlFlow::Continue(true), &mut tell);
            match told {
                ControlFlow::Continue(goes_on) => goes_on && !self.log.gate().must_leave(),
                ControlFlow::Break(()) => {
                    flow = ControlFlow::Break(());
                    false
                }
            }
        });
        flow?;
        sorting.go_on()
    }

    fn verify_expired(&self, file: &Arc<MemoryFile>, sorting: &mut Sorting<'_>) -> ControlFlow<()> {
        let (storage, store) = (&*self.log.seams().storage, self.log.store());
        let mut found = Vec::new();
        let may_go_on = || self.may_stay();
        if let Err(e) = file.verify(storage, store, &may_go_on, &mut |e| found.push(e)) {
            found.push(e);
        }
        // A file that was merged or removed meanwhile is not missing.
        if !self.tables().expired.iter().any(|now| Arc::ptr_eq(now, file)) {
            return sorting.go_on();
        }
        found.into_iter().try_for_each(|e| sorting.tell(e))
    }

    /// Checks that the index leads from the record's key to it, or to a newer one.
    fn verify_record(&self, record: &Record<'_>) -> Result<()> {
        let body = self.body_of(record)?;
        let key = self.key_of(&body, record.lsn)?;
        match self.newest_of(&key)? {
            Some(lsn) if lsn > record.lsn => Ok(()),
            Some(lsn) if lsn == record.lsn => self.verify_listed(record, &key),
            // Its segment was removed meanwhile.
            _ if record.lsn < self.log.head_base() => Ok(()),
            _ => {
                let what = format_args!("the index doesn't know the record at lsn {}", record.lsn);
                Err(Error::corrupt(&self.index_path(), 0, what))
            }
        }
    }

    /// Checks that a key is listed as open if its newest record leaves it so.
    fn verify_listed(&self, record: &Record<'_>, key: &Key<'_>) -> Result<()> {
        let Some(open) = opens_as(record, &self.body_of(record)?) else { return Ok(()) };
        let is_listed = self.lists_as_open(self.hash(key), record.lsn, open)?;
        // It may have changed meanwhile.
        if is_listed || self.newest_of(key)? != Some(record.lsn) {
            return Ok(());
        }
        let what = format_args!("the list of open keys lacks the record at lsn {}", record.lsn);
        Err(Error::corrupt(&self.index_path(), 0, what))
    }

    fn index_path(&self) -> std::path::PathBuf {
        Path::join(self.log.dir(), ListedTable::DIR)
    }

    /// Returns the place of the newest record of a key, by the current index.
    pub(super) fn newest_of(&self, key: &Key<'_>) -> Result<Option<Lsn>> {
        let hash = self.hash(key);
        loop {
            let (live, known) = {
                let shard = self.shard(hash)?;
                let is_key = |entry: &&crate::index::recent::Entry| {
                    let live = entry.live.as_ref();
                    live.is_some_and(|live| live.is_key(key.kind(), key.bytes()))
                };
                let live = shard.candidates(hash).find(is_key).map(|entry| entry.place.lsn());
                (live, super::look::Known::of(&shard, hash, self.log.now()))
            };
            if live.is_some() {
                return Ok(live);
            }
            match self.look_without_steps(key, hash, &known) {
                Ok(found) => {
                    return Ok(found.and_then(|found| found.place).map(|place| place.lsn()));
                }
                Err(_) if !self.is_unchanged(hash, &known)? => {}
                Err(e) => return Err(e),
            }
        }
    }
}
