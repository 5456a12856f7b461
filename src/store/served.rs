//! A store on another backend, and a store as the backend of others.

use std::task::{Context, Poll};
use std::time::Duration;

use super::Store;
use crate::admin::Health;
use crate::backend::{Backend, Elsewhere, InFlight, Reply, Request, Sent, Shared, send};
use crate::{Error, Policy, Result};

impl Store {
    /// Makes a store that sends its calls to `backend`. `policy` supplies the settings that an operation leaves unset.
    ///
    /// All calls on keys work as on an embedded store: claims and their endings, steps, tickets, marks, batches, `run`,
    /// `get`, `resolve`, `interrupt`, `forget`, each also in a namespace. `sync`, `drain`, `close` and `health` work, too.
    /// `stats` counts nothing. Calls that read or change the files of an embedded store (`iter`, `namespaces`, `verify`,
    /// `compact`, `estimate`, `rebuild_index`, `step`) are refused as `Invalid`: make them on the store that has the files.
    ///
    /// See [`backend`](crate::backend) for an example program.
    ///
    /// # Cost
    /// Each call copies its key and its result into a request.
    pub fn with_backend(backend: impl Backend + 'static, policy: Policy) -> Store {
        Store::new(Shared::Other(Elsewhere::new(Box::new(backend))), policy)
    }
}

/// Makes a store usable as a backend, for example from another thread or for another process.
///
/// A request says all that counts for it, so the policy of the handle is not used. A handle to a
/// [namespace](Store::namespace) refuses every request as `Invalid`: a request names its namespace by itself. Make the store
/// the backend, and call `namespace` on the store that it answers.
impl Backend for Store {
    fn send(&self, request: Request) -> Box<dyn Sent> {
        if self.space.is_some() {
            return Box::new(RefusedRequest(Some(is_namespace())));
        }
        match self.shared.current() {
            Shared::Embedded(_) => send(&self.shared, request),
            Shared::Other(backend) => backend.send(request),
        }
    }

    fn result_bytes_max(&self) -> u32 {
        self.shared.result_bytes_max()
    }

    fn secret(&self) -> [u8; 32] {
        self.shared.secret().0
    }

    fn check(&self) -> Result<()> {
        if self.space.is_some() {
            return Err(is_namespace());
        }
        match self.shared.current() {
            Shared::Embedded(engine) => {
                Health::of(engine, self.policy.reserved()).as_result(&engine.dir())
            }
            Shared::Other(backend) => backend.check(),
        }
    }

    fn sync(&self) -> Result<()> {
        self.shared.sync()
    }

    fn drain(&self) {
        self.shared.drain();
    }

    fn close(&self, deadline: Duration) -> Result<Vec<InFlight>> {
        self.shared.close(deadline)
    }

    fn reopen(&self) -> Result<()> {
        self.shared.reopen()
    }
}

fn is_namespace() -> Error {
    Error::invalid(
        "a namespace answers no requests: make the store the backend, and call namespace on the store that it answers",
    )
}

/// A request that is answered by an error, which is taken once.
struct RefusedRequest(Option<Error>);

impl RefusedRequest {
    fn take(&mut self) -> Error {
        let twice = || Error::invalid("the reply to this request was taken already");
        self.0.take().unwrap_or_else(twice)
    }
}

impl Sent for RefusedRequest {
    fn wait(mut self: Box<Self>) -> Result<Reply> {
        Err(self.take())
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<Result<Reply>> {
        Poll::Ready(Err(self.take()))
    }
}
