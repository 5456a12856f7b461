//! A guest of a store on simulated seams, over real sockets: the suite of all backends.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::{Guest, Guests, Joiner};
use crate::backend::{Elsewhere, Shared};
use crate::neighbours::{Neighbours, OsNeighbours};
use crate::testing::Sim;
use crate::testing::conformance::{Subject, check};
use crate::types::SessionId;
use crate::{Error, ErrorKind, Policy, Store};

/// The engine in a host, asked by a guest.
struct Asked {
    sim: Sim,
    dir: TempDir,
    session: u64,
    host: Option<(Store, Guests)>,
}

impl Asked {
    fn new() -> Self {
        Asked { sim: Sim::small(1), dir: tempfile::tempdir().unwrap(), session: 0, host: None }
    }
}

impl Subject for Asked {
    fn open(&mut self) -> Store {
        self.host = None;
        let store = self.sim.open().unwrap();
        let neighbours = || Arc::new(OsNeighbours::new(self.dir.path()).unwrap());
        let listener = neighbours().listen().unwrap();
        let view = Arc::new(Shared::Embedded(store.shared().embedded().unwrap().view()));
        let guests = Guests::serve(view, neighbours(), listener, Vec::new(), None).unwrap();
        self.host = Some((store, guests));
        self.session += 1;
        let neighbours = neighbours();
        let connection = neighbours.connect().unwrap().unwrap();
        let joiner = Joiner {
            dir: self.dir.path().to_owned(),
            session: neighbours.begin(SessionId::new(self.session).unwrap()).unwrap().unwrap(),
            neighbours,
            // What its own handles left is not to be waited for once the host has died.
            host: Box::new(|| Err(Error::new(ErrorKind::Incompatible, "nobody hosts it again"))),
            draw: Box::new(|| 0),
            result_bytes_max: 1 << 10,
        };
        let guest = Guest::join(joiner, connection).unwrap();
        Store::new(Shared::Other(Elsewhere::new(Box::new(guest))), Policy::new())
    }

    fn wait(&mut self, time: Duration) {
        self.sim.advance(time);
    }

    fn die(&mut self) {
        self.sim.kill();
        if let Some((_, guests)) = self.host.take() {
            guests.stop();
        }
    }
}

#[test]
fn a_guest_conforms() {
    println!("{} cases", check(Asked::new));
}
