//! Estimates the live part of the log from a sample of the index.

use super::Engine;
use super::compose::state_of;
use crate::Result;
use crate::limits;
use crate::operation::Key;
use crate::protocol::{self, Phase};
use crate::types::{Lsn, in_memory};

/// An estimate of the log's live bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct LiveEstimate {
    pub(super) live: u64,
    pub(super) log_bytes: u64,
    pub(super) at_millis: u64,
    /// The segment written to then; `None`: any.
    pub(super) newest: Option<u32>,
    /// From a few keys: enough to leave the log alone, not to move any of it.
    pub(super) is_rough: bool,
}

/// The live records of the whole index, by a sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Alive {
    /// Bytes of records that are their keys' newest and have not expired.
    pub(crate) bytes: u64,
    /// Their number by the state of their keys: claimed, interrupted, held, aborted, completed, failed.
    pub(crate) keys: [u64; 6],
}

/// The state of a live record's key, and the record's length. `None` for a step, which is not counted as a key.
type LiveRecord = (Option<Phase>, u64);

/// Some keys of the index, and their live records; or, scaled, those of all keys.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct KeySample {
    pub(super) alive: Alive,
    /// Sampled keys, alive or not; the bytes of the live ones among them, and the sum of their squares.
    seen: u64,
    bytes: u64,
    squares: u128,
}

impl Alive {
    /// Adds a live record; `phase` is `None` for a step, which is not counted as a key.
    fn add(&mut self, phase: Option<Phase>, bytes: u64) {
        self.bytes += bytes;
        if let Some(keys) = phase.and_then(|phase| self.keys.get_mut(phase as usize)) {
            *keys += 1;
        }
    }

    fn set(&mut self, phase: Phase, keys: u64) {
        if let Some(sampled) = self.keys.get_mut(phase as usize) {
            *sampled = keys;
        }
    }
}

impl KeySample {
    /// Adds a sampled key with its newest record, if that is alive.
    fn add(&mut self, alive: Option<LiveRecord>) {
        self.seen += 1;
        if let Some((phase, bytes)) = alive {
            self.alive.add(phase, bytes);
            self.bytes += bytes;
            self.squares += u128::from(bytes) * u128::from(bytes);
        }
    }

    /// Adds another sample, scaled to the `keys` from which it was taken.
    fn add_scaled(&mut self, sample: KeySample, keys: u64) {
        if sample.seen == 0 {
            // An empty sample says nothing: the table is empty, or has few keys and none in the sampled buckets.
            return;
        }
        // `value * keys / seen`, whose product alone would not fit. Records are shorter than 2^26 bytes, and fewer
        // than 2^35 keys are listed.
        let scaled =
            |value: u64| value / sample.seen * keys + value % sample.seen * keys / sample.seen;
        self.alive.bytes += scaled(sample.alive.bytes);
        for (keys, more) in self.alive.keys.iter_mut().zip(sample.alive.keys) {
            *keys += scaled(more);
        }
        self.seen += sample.seen;
        self.bytes += sample.bytes;
        self.squares += sample.squares;
    }

    /// Whether the sum's standard error is at most a thirty-second of it: the variance of the keys, scaled to mean 1,
    /// divided by their number.
    pub(super) fn is_even(&self) -> bool {
        if self.bytes == 0 {
            return false;
        }
        let (seen, square) =
            (u128::from(self.seen), u128::from(self.bytes) * u128::from(self.bytes));
        // The sum of squares times their number is never less than the square of the sum.
        let excess = self.squares * seen - square;
        excess * (32 * 32) <= square * seen
    }
}

/// Samples of live records, a part of the engine.
#[derive(Clone, Copy)]
pub(crate) struct Sampling<'e>(&'e Engine);

impl std::ops::Deref for Sampling<'_> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.0
    }
}

impl Engine {
    pub(crate) fn sampling(&self) -> Sampling<'_> {
        Sampling(self)
    }
}

impl Sampling<'_> {
    /// Estimates the live records from a sample of the index: about a thousand keys suffice for an error of a few
    /// percent, whatever the store's size, expiry included. The error is larger where few results are far larger than
    /// the rest.
    ///
    /// Open keys are counted: a sample misses the few that matter.
    pub(crate) fn estimate(&self) -> Result<Alive> {
        let mut alive = self.sample_of(limits::ESTIMATE_SAMPLES)?.alive;
        let open = self.count_open_keys();
        alive.set(Phase::Claimed, open.in_progress);
        alive.set(Phase::Interrupted, open.interrupted);
        alive.set(Phase::Held, open.held);
        Ok(alive)
    }

    /// Samples about so many keys of the index, and scales the result to all of them.
    pub(super) fn sample_of(&self, samples: u64) -> Result<KeySample> {
        let (tables, segments) = (self.tables(), self.log.reading().segments());
        let mut all = KeySample::default();
        let keys: u64 = tables.list.iter().map(|table| table.listed.slots).sum();
        // Each table and memory separately: the keys of one say nothing about another's.
        for table in &tables.list {
            let mut sample = KeySample::default();
            let stride = keys.div_ceil(samples).max(1);
            // Whole buckets at even distances: hashes have no order that could bias this, but of one key's two slots
            // the first is the newer.
            for bucket in (0..table.listed.buckets).step_by(in_memory(stride)) {
                for slot in table.slots_in(bucket)? {
                    let is_listed = slot.spot.ordinal >= tables.head;
                    let lsn = segments.lsn_of(slot.spot).filter(|_| is_listed);
                    sample.add(lsn.map_or(Ok(None), |lsn| self.alive_if_newest(lsn))?);
                }
            }
            all.add_scaled(sample, table.listed.slots);
        }
        let mut sample = KeySample::default();
        for lsn in self.recent.sample(samples) {
            // Memory has only the newest record of a key. Where a table has it too, the table's sample counts it.
            let alive = match lsn < tables.covered {
                true => None,
                false => self.alive_at(lsn, |_| false)?,
            };
            sample.add(alive.map(|(_, alive)| alive));
        }
        all.add_scaled(sample, self.recent.len() as u64);
        Ok(all)
    }

    /// Returns state and length of the record at `lsn`, if it is its key's newest and has not expired.
    fn alive_if_newest(&self, lsn: Lsn) -> Result<Option<LiveRecord>> {
        let Some((Some(key), alive)) = self.alive_at(lsn, |_| true)? else { return Ok(None) };
        let is_newest = self.newest_of(&key)? == Some(lsn);
        Ok(is_newest.then_some(alive))
    }

    /// The same whether or not it is the newest, and its key if it is a step's or `wants_key` says so. `None` also if it was
    /// removed meanwhile, or is a step that no attempt needs.
    fn alive_at(
        &self,
        lsn: Lsn,
        wants_key: impl Fn(&Key<'_>) -> bool,
    ) -> Result<Option<(Option<Key<'static>>, LiveRecord)>> {
        self.may_stay()?;
        let now = self.log.now();
        let read = self.log.reading().read(lsn, |record| {
            let body = self.body_of(&record)?;
            let state = state_of(&record, &body).filter(|state| !protocol::is_expired(state, now));
            let state = state.filter(|_| !self.lies_in_dropped(&body));
            let key = self.key_of(&body, lsn)?;
            Ok(state.map(|state| {
                let kept = (key.is_step() || wants_key(&key)).then(|| key.into_owned());
                (kept, state.phase, record.len())
            }))
        });
        let Some((key, phase, len)) = read.ok().flatten() else { return Ok(None) };
        match key.as_ref().filter(|key| key.is_step()) {
            None => Ok(Some((key, (Some(phase), len)))),
            Some(step) if self.needs_step(step)? => Ok(Some((key, (None, len)))),
            Some(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_keys_are_a_sample_of_all_only_if_they_are_alike() {
        let sample = |lens: &[Option<u64>]| {
            let mut sample = KeySample::default();
            for len in lens.iter().cycle().take(128) {
                sample.add(len.map(|len| (Some(Phase::Completed), len)));
            }
            let mut all = KeySample::default();
            all.add_scaled(sample, 128_000);
            all
        };
        let alike = sample(&[Some(400), Some(360), Some(440), Some(400)]);
        assert!(alike.is_even());
        assert_eq!((alike.alive.bytes, alike.alive.keys), (51_200_000, [0, 0, 0, 0, 128_000, 0]));
        // A standard error of a sixteenth.
        assert!(!sample(&[Some(400), Some(400), None]).is_even());
        let mut large = [Some(100); 128];
        large[5] = Some(100_000);
        assert!(!sample(&large).is_even());
        assert!(!sample(&[None]).is_even(), "they may have missed all live records");
    }
}
