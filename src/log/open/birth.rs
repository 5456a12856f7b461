//! The birth of a store: an id, secrets, one segment, and the manifest, whose rename makes it a store.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::clock::StoreClock;
use crate::limits;
use crate::log::format::{Identity, SEGMENT_HEADER_BYTES};
use crate::log::segment::Spare;
use crate::log::{Seams, Sizes};
use crate::manifest::{Manifest, Opener, Secrets, Switch};
use crate::record;
use crate::storage;
use crate::types::{Lsn, StoreId, StoreMillis};
use crate::{Error, ErrorKind, Result};

impl Seams {
    pub(in crate::log) fn draw<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes).map_err(|e| {
            Error::new(ErrorKind::Io, "the system gives no random bytes").because(e)
        })?;
        Ok(bytes)
    }

    pub(crate) fn draw_u64(&self) -> Result<u64> {
        self.draw().map(u64::from_le_bytes)
    }

    pub(in crate::log) fn opener(&self) -> Opener {
        Opener { pid: std::process::id(), since: self.clock.wall() }
    }
}

/// Makes an empty store in `dir`, which exists, is locked, and holds nothing of value.
///
/// The order matters: `log/` and the first segment, then the manifest, whose rename is the birth.
pub(crate) fn create(seams: &Seams, dir: &Path, sizes: &Sizes) -> Result<()> {
    let storage = &*seams.storage;
    let log_dir = dir.join("log");
    match storage.create_dir(&log_dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("creating", &log_dir, e));
        }
        _ => storage.sync_dir(dir).map_err(|e| Error::io("syncing", dir, e))?,
    }
    let store = StoreId(seams.draw()?);
    let secrets = Secrets { hash_key: seams.draw()?, derivation: seams.draw()? };
    let only = |failure| match failure {
        storage::Failure::Before(e) | storage::Failure::Poison(e) => e,
    };
    let mut spare = Spare::prepare(storage, &log_dir, 0, sizes.first()).map_err(only)?;
    let identity = Identity {
        ordinal: 1,
        base: base_from(seams, 0)?,
        capacity: spare.bytes,
        salt: seams.draw_u64()?,
    };
    spare.activate(storage, &log_dir, identity, store, &secrets, Lsn::ZERO).map_err(only)?;
    let start = identity.base.plus(SEGMENT_HEADER_BYTES as u64);
    let clock = StoreClock::open(None, StoreMillis(0), limits::TIME_OFF_MILLIS_MAX, &*seams.clock);
    let manifest = Manifest {
        store,
        secrets,
        generation: 1,
        clean: Some(start),
        durable: start,
        extent: identity.listed().end,
        ahead: 0,
        next_ordinal: 2,
        time: clock.note(&*seams.clock).into(),
        opener: Opener::default(),
        segments: vec![identity.listed()],
        covered: Lsn::ZERO,
        next_table: 1,
        tables: Vec::new(),
        expired: Vec::new(),
    };
    Switch::new(Arc::clone(&seams.storage), dir).first(&manifest).map_err(only)
}

/// Returns the first token after an open, at or after `floor`. It follows the wall clock, so that it exceeds tokens
/// that the original of a copied store has issued since, plus a random step. If the clock stands still or lies in the
/// past, only that step separates two copies that continue from the same place.
pub(in crate::log) fn tokens_from(seams: &Seams, floor: u64) -> Result<u64> {
    let millis = seams.clock.wall().0.min(limits::TOKENS_BY_CLOCK_MAX / limits::TOKENS_A_MILLI);
    let by_clock = millis * limits::TOKENS_A_MILLI;
    // A clock that is wrong by so much is of no use, so the step may be larger than the clock's advance meanwhile.
    let is_clock_off = floor >= by_clock + limits::TOKENS_CLOCK_OFF;
    let step_most = if is_clock_off { limits::TOKEN_STEP_OFF } else { limits::TOKENS_A_MILLI };
    let start = floor.max(by_clock) + seams.draw_u64()? % step_most;
    // So close to the last LSN that little could be placed.
    if start > limits::LSN_MAX - 8 * limits::SEGMENT_BYTES_MOST {
        let message = "the store has used up its positions or tokens: begin a new one";
        return Err(Error::new(ErrorKind::StorageFull, message));
    }
    Ok(start)
}

/// The base of a segment whose tokens are its LSNs.
pub(in crate::log) fn base_from(seams: &Seams, floor: u64) -> Result<Lsn> {
    Ok(Lsn::new(tokens_from(seams, floor)?.next_multiple_of(record::ALIGN as u64)))
}
