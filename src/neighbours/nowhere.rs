//! Systems on which processes don't share a store: nobody else lives, and nobody listens.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Connection, Listener, Neighbours, Notifier, Session};
use crate::storage::Standing;
use crate::types::SessionId;

/// The neighbours of a process that has none.
#[derive(Debug)]
pub(crate) struct NoNeighbours;

impl NoNeighbours {
    pub(crate) fn new(_dir: &Path) -> io::Result<Self> {
        Ok(NoNeighbours)
    }
}

impl Neighbours for NoNeighbours {
    fn standing(&self) -> io::Result<Standing> {
        Ok(Standing::Here)
    }

    fn may_host(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn begin(&self, _id: SessionId) -> io::Result<Option<Box<dyn Session>>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn lives(&self, _id: SessionId) -> io::Result<bool> {
        Ok(false)
    }

    fn living(&self) -> io::Result<Vec<SessionId>> {
        Ok(Vec::new())
    }

    fn listen(&self) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn connect(&self) -> io::Result<Option<Box<dyn Connection>>> {
        Ok(None)
    }

    fn notifier(&self) -> io::Result<Arc<dyn Notifier>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
