//! Reading everything: each record, each bucket, and whether the index knows every key.
//!
//! Promises: nothing is changed and nothing is mended; each stretch of damage is told once, with file and offset, and
//! the reading goes on behind it. What is not yet durable is left out.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::Engine;
use crate::expired::Expired;
use crate::index::table::{self, Cursor, Table};
use crate::log::Scrubbed;
use crate::operation::Key;
use crate::record::Record;
use crate::sealed::Stretch;
use crate::types::Lsn;
use crate::{Error, ErrorKind, Result};

/// Told of each damage, and of so many bytes read; may end it.
pub(crate) trait Inspector {
    fn damage(&mut self, error: Error);
    fn record(&mut self);
    fn read(&mut self, bytes: u64) -> ControlFlow<()>;
}

impl Engine {
    /// Reads all files of the store and tells `inspector` what it finds.
    pub(crate) fn verify(&self, inspector: &mut dyn Inspector) -> Result<()> {
        self.check_usable()?;
        if let Err(e) = self.log.check_manifest() {
            inspector.damage(e);
        }
        // Tables first: those of one moment. What others have merged or mended meanwhile is no damage.
        let tables = self.tables();
        for table in &tables.list {
            self.verify_table(table, inspector);
            if inspector.read(table.listed.bytes()).is_break() {
                return Ok(());
            }
        }
        for file in &tables.expired {
            self.verify_expired(file, inspector);
            if inspector.read(file.listed.bytes()).is_break() {
                return Ok(());
            }
        }
        self.log.scrub(&mut |found| match found {
            Scrubbed::Damage(e) => {
                inspector.damage(e);
                ControlFlow::Continue(())
            }
            Scrubbed::Record(record) => {
                inspector.record();
                // What is damaged in a table was told above.
                let is_told = |e: &Error| {
                    tables
                        .list
                        .iter()
                        .any(|table| e.path().is_some_and(|path| path == table.path()))
                };
                if let Some(e) = self.verify_record(&record).err().filter(|e| !is_told(e)) {
                    inspector.damage(e);
                }
                ControlFlow::Continue(())
            }
            Scrubbed::Bytes(bytes) => inspector.read(bytes),
        })
    }

    fn verify_table(&self, table: &Arc<Table>, inspector: &mut dyn Inspector) {
        // The cursor goes on behind a damaged bucket; a device that fails would do so for each of them.
        let mut stretch = Stretch::default();
        let mut tell = |e: Error| {
            let goes_on = e.kind() == ErrorKind::Corrupt;
            if stretch.begins(e.offset(), table::BUCKET_BYTES) && self.names_table(&e) {
                inspector.damage(e);
            }
            goes_on
        };
        if let Err(e) = table.check_header(&*self.log.seams().storage) {
            tell(e);
        }
        let mut cursor = Cursor::new(Arc::clone(table));
        loop {
            match cursor.peek() {
                Ok(Some(_)) => cursor.advance(),
                Ok(None) => return,
                Err(e) => match tell(e) {
                    true => {}
                    false => return,
                },
            }
        }
    }

    fn verify_expired(&self, file: &Arc<Expired>, inspector: &mut dyn Inspector) {
        // One that others have merged or let go of meanwhile is not missing.
        let is_listed = || self.tables().expired.iter().any(|now| Arc::ptr_eq(now, file));
        let mut tell = |e| {
            if is_listed() {
                inspector.damage(e);
            }
        };
        let (storage, store) = (&*self.log.seams().storage, self.log.store());
        if let Err(e) = file.verify(storage, store, &mut tell) {
            tell(e);
        }
    }

    /// The index leads from the record's key to it, or to a newer one.
    fn verify_record(&self, record: &Record<'_>) -> Result<()> {
        let body = self.body_of(record)?;
        let Some(key) = Key::from_stored(body.key_kind, body.key) else {
            let what = format_args!("an impossible key at lsn {}", record.lsn);
            return Err(Error::corrupt(self.log.dir(), 0, what));
        };
        match self.newest_of(&key)? {
            Some(lsn) if lsn >= record.lsn => Ok(()),
            // Its segment has gone meanwhile.
            _ if record.lsn < self.log.head_base() => Ok(()),
            _ => {
                let what = format_args!("the index doesn't know the record at lsn {}", record.lsn);
                Err(Error::corrupt(&self.index_path(), 0, what))
            }
        }
    }

    fn index_path(&self) -> std::path::PathBuf {
        Path::join(self.log.dir(), "index")
    }

    /// Where the newest record of a key stands, by the index as it is.
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
                (live, super::call::Known::of(&shard, hash, self.log.now()))
            };
            if live.is_some() {
                return Ok(live);
            }
            match self.look_recorded(key, hash, &known) {
                Ok(found) => {
                    return Ok(found.and_then(|found| found.place).map(|place| place.lsn()));
                }
                Err(_) if !self.is_unchanged(hash, &known)? => {}
                Err(e) => return Err(e),
            }
        }
    }
}
