//! Background work on the index: which piece is due, which thread does it, and when that thread checks again.
//!
//! Promises: one thread works at a time; a failure is reported by `stats` and retried, and does not stop other work. A
//! call that needs space while the files are too large does this work too.

use std::collections::BTreeSet;

use super::Engine;
use super::checkpoint::{TableChange, as_listed};
use super::compact::{Compacting, Pass, Turns};
use super::merge::{Advanced, Merging, OpenFrom};
use super::sample::LiveEstimate;
use crate::limits;
use crate::log::Due;
use crate::sealed::listed::ListedFile;
use crate::types::Lsn;
use crate::{ErrorKind, Result};

/// State of the background's work on the index. One thread at a time works on it.
#[derive(Default)]
pub(super) struct Work {
    pub(super) merge: Option<Merging>,
    pub(super) compacting: Option<Compacting>,
    /// The target of calls of `compact` that ran out of budget.
    pub(super) compact_until: Option<Lsn>,
    /// Calls of `compact` under way: the background leaves reclaim to them.
    pub(super) compact_calls: u32,
    pub(super) estimate: Option<LiveEstimate>,
    /// The background's pass over the whole log.
    pub(super) pass: Option<Pass>,
    pub(super) turns: Turns,
    /// Numbers of tables that can't be made again, because the log is damaged, too. That is not tried a second time:
    /// each try reads the log of all its keys and writes as much.
    pub(super) unmendable: BTreeSet<u32>,
    has_swept: bool,
}

impl Engine {
    /// The body of the thread that keeps the log.
    pub(crate) fn run_log(&self, stop: &dyn Fn() -> bool) {
        self.log.run_upkeep(stop, &|| {
            if self.is_checkpoint_due() || self.log.is_look_due() {
                self.index_word.wake_one();
            }
        });
    }

    /// The body of the thread that keeps the index: steps until `stop` says so.
    pub(crate) fn run_index(&self, stop: &dyn Fn() -> bool) {
        loop {
            // Read before `stop` is called: the thread that sets `stop` changes the word afterwards.
            let seen = self.index_word.read();
            if stop() {
                return;
            }
            let Ok(inside) = self.enter() else { return };
            // A failed write has poisoned the log. A panic in the middle of a table does, too: without this thread
            // memory would grow without bound.
            let due = self.log.guarded(|| self.step_index());
            self.tell_gauges_at_times(&inside);
            drop(inside);
            let due = due.unwrap_or(Due::In(limits::UNSYNCED_MILLIS_MAX));
            if let Due::In(millis) = due {
                self.index_word.wait(seen, Some(millis));
            }
        }
    }

    /// Wakes the threads so that they check their `stop`.
    pub(crate) fn wake_background(&self) {
        self.log.stop_upkeep();
        self.index_word.wake_all();
        self.waits.tell_all();
    }

    /// Does one piece of background work, the log's first.
    pub(crate) fn step(&self) -> Result<Due> {
        // Those that wait for a key, and whose time is up: they look at it themselves, so not from inside. A fork touches nothing.
        drop(self.enter()?);
        let next = self.waits.fire(self.nanos());
        let inside = self.enter()?;
        let due = self.step_inside().map_err(|e| self.log.explained(e))?;
        self.tell_gauges_at_times(&inside);
        Ok(match (due, next) {
            (Due::In(millis), Some(next)) => Due::In(millis.min(next)),
            (due, _) => due,
        })
    }

    fn step_inside(&self) -> Result<Due> {
        match self.log.step()? {
            Due::Now => Ok(Due::Now),
            Due::In(log) => {
                let was_held = self.log.is_held();
                Ok(match self.step_index()? {
                    Due::In(index) if !was_held || self.log.is_held() => Due::In(log.min(index)),
                    _ => Due::Now,
                })
            }
        }
    }

    /// Does one piece of work on the index, if one is due.
    pub(crate) fn step_index(&self) -> Result<Due> {
        match self.try_step_index() {
            // A close made it leave: not an error of the store.
            Err(e) if self.log.may_go_on().is_err() => Err(e),
            // A full disk, no file descriptor left, a record that can't be read: reported by `stats`, and retried.
            // Damage doesn't mend itself, so its retry comes later.
            Err(e) => {
                let is_damage = e.kind() == ErrorKind::Corrupt;
                self.log.events.background_failed(&e, is_damage);
                *self.trouble.lock() = Some(e);
                Ok(Due::In(match is_damage {
                    true => limits::ESTIMATE_MILLIS,
                    false => limits::UNSYNCED_MILLIS_MAX,
                }))
            }
            done => {
                self.trouble.lock().take();
                done
            }
        }
    }

    fn try_step_index(&self) -> Result<Due> {
        let idle = Due::In(limits::TIME_NOTE_MILLIS);
        let mut work = self.work.lock();
        if self.log.may_go_on().is_err() || !self.log.is_writing() {
            return Ok(idle);
        }
        let is_called = work.compact_calls > 0;
        self.step_work(&mut work, !is_called)
    }

    /// Does the background's work in a call that needs the next segment while the files are too large. So writers are
    /// slowed by as much as reclaim, checkpoints and merges lag, however seldom the background gets a processor.
    pub(super) fn help(&self) -> Result<()> {
        while self.log.is_overgrown() {
            let mut work = self.work.lock();
            if self.log.may_go_on().is_err() || !self.log.is_writing() {
                return Ok(());
            }
            // Another thread may have done it while this one waited.
            if !self.log.is_overgrown() {
                return Ok(());
            }
            match self.step_work(&mut work, true) {
                Err(e) if self.log.is_poisoned() => return Err(e),
                // A close waits for this call.
                Err(_) if self.log.gate().must_leave() => return Ok(()),
                // Reported by `stats`, like an error of the background. The log can continue.
                Err(e) => {
                    self.log.events.background_failed(&e, e.kind() == ErrorKind::Corrupt);
                    *self.trouble.lock() = Some(e);
                    return Ok(());
                }
                Ok(Due::In(_)) if self.compaction().waits_for_sync(&work) => {
                    drop(work);
                    // No record of this call is placed yet.
                    self.log.sync().map_err(|_| self.log.poisoned())?;
                }
                Ok(Due::In(_)) if work.compacting.is_none() => return Ok(()),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Does one piece of each kind of work on the index that is due; of reclaim only if `reclaims`.
    fn step_work(&self, work: &mut Work, reclaims: bool) -> Result<Due> {
        self.log.take_look();
        if !std::mem::replace(&mut work.has_swept, true) {
            self.sweep();
        }
        // A failure here is retried, and does not stop the other work, which may free space.
        let mut failed = None;
        if self.is_checkpoint_due() {
            match self.checkpoint(work) {
                Ok(true) => return Ok(Due::Now),
                Ok(false) => {}
                Err(e) if self.log.may_go_on().is_err() => return Err(e),
                Err(e) => failed = Some(e),
            }
        }
        if work.merge.is_none() && failed.is_none() {
            match self.merges().begin_merge(work) {
                Ok(merge) => work.merge = merge,
                Err(e) => failed = Some(e),
            }
        }
        let compacted =
            match if reclaims { self.compaction().step_compaction(work) } else { Ok(None) } {
                Err(e) if self.mending().names_table(&e) => {
                    self.mending().mend(work, e).map(|()| Some(Due::Now))
                }
                other => other,
            };
        let compacted = compacted.unwrap_or_else(|e| {
            failed.get_or_insert(e);
            None
        });
        let Some(merging) = work.merge.take() else {
            return match (failed, compacted) {
                (_, Some(Due::Now)) => Ok(Due::Now),
                (Some(e), _) => Err(e),
                (None, Some(due)) => Ok(due),
                (None, None) => Ok(Due::In(limits::ESTIMATE_MILLIS)),
            };
        };
        match self.merges().advance_merge(merging, OpenFrom::Memory) {
            Ok(Advanced::Some(merging)) => work.merge = Some(merging),
            Ok(Advanced::Done { table, of }) => {
                let slots = table.listed.slots;
                self.switch_index(&TableChange { replaced: as_listed(&of), by: vec![table] })?;
                self.log.events.merged(of.len(), slots);
            }
            Err(e) if self.mending().names_table(&e) => self.mending().mend(work, e)?,
            Err(e) => return Err(e),
        }
        Ok(Due::Now)
    }

    /// Removes sealed files that no manifest lists: a process that ended before a switch left them.
    fn sweep(&self) {
        let tables = self.tables();
        self.remove_unlisted(&as_listed(&tables.list));
        let expired: Vec<_> = tables.expired.iter().map(|file| file.listed).collect();
        self.remove_unlisted(&expired);
    }

    fn remove_unlisted<L: ListedFile>(&self, listed: &[L]) {
        let (storage, dir) = (&*self.log.seams().storage, self.log.dir().join(L::DIR));
        let is_listed = |number| listed.iter().any(|listed| listed.number() == number);
        // If the directory can't be listed, the next open tries again, too.
        for entry in storage.list(&dir).unwrap_or_default() {
            if L::number_of(&entry.name).is_some_and(|number| !is_listed(number)) {
                // If it stays, the next open tries again.
                let _ = storage.remove(&dir.join(&entry.name));
            }
        }
    }
}
