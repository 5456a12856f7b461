//! The suite on three backends.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::Duration;

use conformance::Elsewhere;
use onlyonce::testing::Sim;
use onlyonce::testing::conformance::{Model, Subject, check};
use onlyonce::{Policy, Store};

/// The engine on a simulated disk.
struct Embedded(Sim);

impl Subject for Embedded {
    fn open(&mut self) -> Store {
        self.0.open().unwrap()
    }

    fn wait(&mut self, time: Duration) {
        self.0.advance(time);
    }

    fn die(&mut self) {
        self.0.kill();
    }
}

/// The rules in memory.
struct InMemory(Model);

impl Subject for InMemory {
    fn open(&mut self) -> Store {
        Store::with_backend(self.0.open(), Policy::new())
    }

    fn wait(&mut self, time: Duration) {
        self.0.wait(time);
    }

    fn die(&mut self) {
        self.0.die();
    }
}

/// The engine, behind requests to another thread.
struct Remote(Sim);

impl Subject for Remote {
    fn open(&mut self) -> Store {
        Store::with_backend(Elsewhere::new(self.0.open().unwrap()), Policy::new())
    }

    fn wait(&mut self, time: Duration) {
        self.0.advance(time);
    }

    fn die(&mut self) {
        self.0.kill();
    }
}

#[test]
fn the_embedded_engine_conforms() {
    println!("{} cases", check(|| Embedded(Sim::small(1))));
}

#[test]
fn the_model_in_memory_conforms() {
    println!("{} cases", check(|| InMemory(Model::default())));
}

#[test]
fn a_custom_backend_conforms() {
    println!("{} cases", check(|| Remote(Sim::small(1))));
}
