//! Fills the index from the log, record by record, as an open reads it.

use std::path::Path;

use super::compose::opens_as;
use crate::index::Hasher;
use crate::index::recent::{Entry, Place, Recent};
use crate::log::open::steps::Earlier;
use crate::operation::{Durability, Key};
use crate::record::Record;
use crate::{Error, Result};

/// Puts one record of the log into the index, as an open reads it. Returns whether its key is new there.
pub(super) fn take_in(
    recent: &Recent,
    hasher: &Hasher,
    dir: &Path,
    record: &Record<'_>,
    earlier: &Earlier<'_>,
) -> Result<bool> {
    let corrupt = |what| Error::corrupt(dir, 0, format_args!("{what} at lsn {}", record.lsn));
    let body = record.body().map_err(|_| corrupt("a record body with impossible fields"))?;
    let key =
        Key::from_stored(body.key_kind, body.key).ok_or_else(|| corrupt("an impossible key"))?;
    let hash = hasher.hash(&key);
    let mut shard =
        recent.shard(hash).ok_or_else(|| Error::bug(dir, "the index has no shard for a key"))?;
    let candidates: Vec<Place> = shard.candidates(hash).map(|entry| entry.place).collect();
    let mut older = None;
    for place in candidates {
        let is_key = earlier.read(place.lsn(), |old| {
            let old = old.body().map_err(|_| corrupt("a record body with impossible fields"))?;
            Ok((old.key_kind, old.key) == (body.key_kind, body.key))
        })?;
        if is_key {
            older = Some(place.lsn());
        }
    }
    let place = Place::new(record.lsn, Durability::Sync, opens_as(record, &body));
    // A forget stays: a table may have an older record of its key.
    shard.put(older, Entry { hash, place, live: None });
    Ok(older.is_none())
}
