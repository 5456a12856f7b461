//! The gate under loom: calls, syncs, failures and a close in every order.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --profile explore --lib loom_`

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool as Flag, AtomicU32 as Count};
use loom::thread;

use super::*;

/// A store of one word: which open owns the directory, and what changes it.
struct Model {
    gate: Gate,
    /// Another open may own the directory.
    is_released: Flag,
    acknowledged: Count,
}

impl Model {
    fn new() -> Arc<Self> {
        let is_released = Flag::new(false);
        Arc::new(Model { gate: Gate::new(), is_released, acknowledged: Count::new(0) })
    }

    fn touches_the_directory(&self) {
        assert!(!self.is_released.load(Ordering::SeqCst), "another open owns the directory");
    }

    /// A call that writes, syncs, and acknowledges.
    fn call(&self) -> bool {
        let Ok(_inside) = self.gate.enter() else { return false };
        if !self.gate.may_change() {
            return false;
        }
        self.touches_the_directory();
        // The sync itself may last beyond a close.
        if self.gate.outside(|| ()).is_err() || self.gate.is_poisoned() {
            return false;
        }
        self.touches_the_directory();
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// A walk or a lookup, which reads on after a failure.
    fn reads(&self) -> bool {
        let Ok(_inside) = self.gate.enter() else { return false };
        self.touches_the_directory();
        true
    }

    fn fails(&self) -> bool {
        let Ok(_inside) = self.gate.enter() else { return false };
        self.gate.poison(None);
        self.touches_the_directory();
        true
    }

    fn wait(&self) {
        loop {
            let seen = self.gate.left().read();
            if self.gate.is_quiet() {
                return;
            }
            self.gate.left().wait(seen, None);
        }
    }

    fn close(&self) -> bool {
        self.gate.begin_closing();
        self.wait();
        let before = self.acknowledged.load(Ordering::SeqCst);
        let was_sound = !self.gate.is_poisoned();
        self.gate.finish();
        self.gate.end();
        self.wait();
        if was_sound {
            let after = self.acknowledged.load(Ordering::SeqCst);
            assert_eq!(before, after, "acknowledged after the last sync");
        }
        self.is_released.store(true, Ordering::SeqCst);
        true
    }
}

fn spawn(model: &Arc<Model>, body: fn(&Model) -> bool) -> thread::JoinHandle<bool> {
    let model = Arc::clone(model);
    thread::spawn(move || body(&model))
}

/// Explores a close together with `others`. A lost wake-up shows as a deadlock.
fn explore(preemptions: usize, others: &'static [fn(&Model) -> bool]) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.check(move || {
        let model = Model::new();
        let others: Vec<_> = others.iter().map(|other| spawn(&model, *other)).collect();
        model.close();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(model.gate.counts(), (0, 0));
        assert!(model.gate.enter().is_err());
    });
}

#[test]
fn loom_a_close_waits_for_a_call() {
    explore(4, &[Model::call]);
}

#[test]
fn loom_a_close_waits_for_two_calls() {
    explore(2, &[Model::call, Model::call]);
}

#[test]
fn loom_a_close_waits_for_reads_after_a_failure() {
    explore(2, &[Model::fails, Model::reads]);
}

#[test]
fn loom_a_sync_that_outlasts_a_poisoned_store_is_not_acknowledged() {
    explore(2, &[Model::call, Model::fails]);
}
