//! Reading everything: each record, each bucket, and whether the index knows every key.
//!
//! Promises: nothing is changed and nothing is mended; each damage met is told with file and offset, and the reading
//! goes on behind it. What is not yet durable is left out.

use std::ops::ControlFlow;
use std::path::Path;

use super::Engine;
use crate::index::table::Cursor;
use crate::log::Scrubbed;
use crate::manifest;
use crate::operation::Key;
use crate::record::Record;
use crate::types::Lsn;
use crate::{Error, Result};

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
        if let Err(e) = self.verify_manifest() {
            inspector.damage(e);
        }
        // Tables first: those of one moment, while the log only grows.
        let tables = self.tables();
        for table in &tables.list {
            let mut cursor = Cursor::new(std::sync::Arc::clone(table));
            if let Err(e) = table.check_header(&*self.log.seams().storage) {
                inspector.damage(e);
            }
            let walked = loop {
                match cursor.peek() {
                    Ok(Some(_)) => cursor.advance(),
                    Ok(None) => break Ok(()),
                    Err(e) => break Err(e),
                }
            };
            if let Err(e) = walked {
                inspector.damage(e);
            }
            if inspector.read(table.listed.bytes()).is_break() {
                return Ok(());
            }
        }
        for file in &tables.expired {
            if let Err(e) = file.verify(&*self.log.seams().storage, self.log.store()) {
                inspector.damage(e);
            }
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
                if let Err(e) = self.verify_record(&record) {
                    inspector.damage(e);
                }
                ControlFlow::Continue(())
            }
            Scrubbed::Bytes(bytes) => inspector.read(bytes),
        })
    }

    /// The manifest on disk says what is listed.
    fn verify_manifest(&self) -> Result<()> {
        let path = manifest::path(self.log.dir());
        let listed = self.log.manifest();
        let found = manifest::load(&*self.log.seams().storage, self.log.dir())?;
        // Another switch may have come in between; then it is a later one.
        match found {
            Some(found) if found.generation >= listed.generation => Ok(()),
            Some(_) => Err(Error::corrupt(&path, 0, "an older manifest than the one in use")),
            None => Err(Error::corrupt(&path, 0, "the manifest is missing:")),
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
                (live, super::call::Known::of(&shard, hash))
            };
            if live.is_some() {
                return Ok(live);
            }
            match self.look_recorded(key, hash, &known) {
                Ok(found) => return Ok(found.place.map(|place| place.lsn())),
                Err(_) if !self.is_unchanged(hash, &known)? => {}
                Err(e) => return Err(e),
            }
        }
    }
}
