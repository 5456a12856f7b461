//! Opens a store that several processes share: as its host, or as a guest of the process that hosts it.
//!
//! Promises: the directory's lock comes first, then the socket, then the recovery, and only then a guest is let in. Where a process
//! can't listen, it opens the store alone.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Store;
use crate::backend::{Elsewhere, Embedded, Shared};
use crate::builder::StoreBuilder;
use crate::clock::nanos;
use crate::engine::KeptClaim;
use crate::error::is_scarce;
use crate::hosting::{Guest, Guests, Joiner};
use crate::limits;
use crate::log::Seams;
use crate::log::open::directory;
use crate::manifest;
use crate::neighbours::{Connection, Listener, Neighbours, OsNeighbours, Session, Unseen};
use crate::storage::DirLock;
use crate::sync::WakeWord;
use crate::types::SessionId;
use crate::{Error, ErrorKind, Policy, Result};

/// Opens the store as its host or as a guest. While another process is about to host it, tries again until `open_timeout`.
pub(super) fn open(builder: StoreBuilder, seams: Seams, dir: &Path, create: bool) -> Result<Store> {
    let nanos_most = u64::try_from(builder.open_timeout.as_nanos()).unwrap_or(u64::MAX);
    let began = nanos();
    let pause = WakeWord::new();
    loop {
        let refused = match host(&builder, &seams, dir, create, None) {
            Ok(embedded) => {
                return Ok(Store::new(Shared::Embedded(embedded), builder.policy));
            }
            Err(e) if e.kind() == ErrorKind::Locked => e,
            Err(e) => return Err(e),
        };
        let neighbours = neighbours(dir)?;
        let refused = match neighbours.connect() {
            Ok(Some(connection)) => match join(&builder, &seams, dir, neighbours, connection) {
                Err(e) if e.kind() == ErrorKind::Locked => e.at(dir),
                joined => return joined,
            },
            Err(e) if is_own_lack(&e) => {
                return Err(Error::io("connecting to the process that hosts", dir, e));
            }
            Ok(None) | Err(_) => refused,
        };
        if nanos() - began >= nanos_most {
            return Err(given_up(builder.open_timeout, dir, refused));
        }
        pause.wait(pause.read(), Some(1 + seams.draw_u64()? % limits::LOCK_TRY_MILLIS_MAX));
    }
}

/// Returns the error of an opening whose time is up.
fn given_up(timeout: Duration, dir: &Path, refused: Error) -> Error {
    let waited = timeout.as_millis();
    let message = format!("{refused}; this opening has waited for {waited} ms (open_timeout)");
    Error::new(ErrorKind::Locked, message).at(dir).because(refused)
}

/// Refuses a store that was opened for this process alone if another process shares it: an open between two hosts would interrupt the
/// claims of living processes.
pub(super) fn alone(store: Store, dir: &Path) -> Result<Store> {
    let (neighbours, pause) = (neighbours(dir)?, WakeWord::new());
    let living = || neighbours.living().map_err(|e| Error::io("finding the sessions of", dir, e));
    // A process that is about to run another program keeps the sessions of its parent a moment longer.
    for _ in 0..limits::SESSION_END_TRIES {
        if living()?.is_empty() {
            return Ok(store);
        }
        pause.wait(pause.read(), Some(limits::LOCK_TRY_MILLIS_MAX));
    }
    let living = living()?;
    let message = format!(
        "{} is shared by {} openings that wait for a host: open it with `shared(true)`, too, or close them first",
        dir.display(),
        living.len()
    );
    Err(Error::new(ErrorKind::Locked, message).at(dir))
}

fn neighbours(dir: &Path) -> Result<Arc<dyn Neighbours>> {
    let neighbours = OsNeighbours::new(dir);
    Ok(Arc::new(neighbours.map_err(|e| Error::io("finding the other processes of", dir, e))?))
}

/// Opens the store as its host, and serves guests.
fn host(
    builder: &StoreBuilder,
    seams: &Seams,
    dir: &Path,
    create: bool,
    known: Option<Arc<dyn Neighbours>>,
) -> Result<Embedded> {
    serve(builder, seams, dir, open_as_host(builder, seams, dir, create, known)?)
}

/// Serves guests of a store that this process has opened.
fn serve(builder: &StoreBuilder, seams: &Seams, dir: &Path, store: HostStore) -> Result<Embedded> {
    let HostStore { embedded, neighbours, listener, kept, are_alone } = store;
    embedded.start_upkeep()?;
    let files_max = seams.storage.files_max();
    reopened(&embedded, builder, seams, dir, &neighbours);
    let view = Arc::new(Shared::Embedded(embedded.view()));
    let listener = listener.map_err(|e| Error::io("listening at the socket in", dir, e));
    match listener.and_then(|listener| Guests::serve(view, neighbours, listener, kept, files_max)) {
        Ok(guests) => embedded.at_close(move || guests.stop()),
        Err(e) if are_alone => embedded.serve_nobody(&e),
        // They live, and could never join.
        Err(e) => {
            let message = format!(
                "{} is shared by other openings that wait for a host, and this process can't be theirs: {e}",
                dir.display()
            );
            return Err(Error::new(ErrorKind::Locked, message).at(dir).because(e));
        }
    }
    Ok(embedded)
}

/// Sets how `Store::reopen` opens a store that this process hosts.
fn reopened(
    embedded: &Embedded,
    builder: &StoreBuilder,
    seams: &Seams,
    dir: &Path,
    neighbours: &Arc<dyn Neighbours>,
) {
    let (builder, dir, neighbours) = (builder.clone(), dir.to_owned(), Arc::clone(neighbours));
    let seams = seams.clone();
    embedded.reopened_by(move |before, legacy| {
        let lock = LockedDir { seams: seams.clone(), lock: legacy.share_lock() };
        let inherit = |embedded: &Embedded| embedded.inherit(before, legacy);
        let began = seams.clock.monotonic_nanos();
        check_standing(&*neighbours, &dir)?;
        let known = Arc::clone(&neighbours);
        let opened = open_held(&builder, lock, &dir, false, began, known, &inherit)
            .and_then(|store| serve(&builder, &seams, &dir, store));
        if opened.is_err() {
            // Serves guests with the poisoned store, so that they get its error. Without a listener they wait, as for a stopped host.
            let view = Arc::new(Shared::Embedded(before.view()));
            let (files_max, known) = (seams.storage.files_max(), Arc::clone(&neighbours));
            let guests = neighbours.listen().map_err(|e| Error::io("listening in", &dir, e));
            let guests =
                guests.and_then(|on| Guests::serve(view, known, on, Vec::new(), files_max));
            if let Ok(guests) = guests {
                before.at_close(move || guests.stop());
            }
        }
        opened
    });
}

/// The directory's lock, and the seams inside it.
struct LockedDir {
    seams: Seams,
    lock: Box<dyn DirLock>,
}

/// A store that was opened by the process that hosts it, before its first guest.
pub(crate) struct HostStore {
    pub(crate) embedded: Embedded,
    pub(crate) neighbours: Arc<dyn Neighbours>,
    pub(crate) listener: io::Result<Box<dyn Listener>>,
    /// The claims of living sessions.
    pub(crate) kept: Vec<KeptClaim>,
    /// No session lived.
    are_alone: bool,
}

/// Opens the store as its host, without threads. `Locked`: another process has the store open, or this process may not host it.
/// `known`: the neighbours by which this process is a guest already.
pub(crate) fn open_as_host(
    builder: &StoreBuilder,
    seams: &Seams,
    dir: &Path,
    create: bool,
    known: Option<Arc<dyn Neighbours>>,
) -> Result<HostStore> {
    let began = seams.clock.monotonic_nanos();
    // `None`: the directory doesn't exist yet, or taking its lock returns what is wrong with it.
    let known = known.or_else(|| neighbours(dir).ok());
    if let Some(known) = &known {
        check_standing(&**known, dir)?;
        check_may_host(&**known, dir)?;
    }
    let why = "it takes no guests: it was opened without `shared(true)`, can't listen here, which its `Store::health` says, or is \
               about to close";
    let (seams, lock) = directory::lock_or(seams.clone(), dir, create, Duration::ZERO, why)?;
    let neighbours = known.map_or_else(|| neighbours(dir), Ok)?;
    // The directory that was locked has to be the one that is at the path now.
    check_standing(&*neighbours, dir)?;
    open_held(builder, LockedDir { seams, lock }, dir, create, began, neighbours, &|_| Ok(()))
}

/// Opens the store of a locked directory, and keeps the claims of living sessions. `inherit`: takes over what an earlier open of this
/// process has left.
fn open_held(
    builder: &StoreBuilder,
    LockedDir { seams, lock }: LockedDir,
    dir: &Path,
    create: bool,
    began: u64,
    neighbours: Arc<dyn Neighbours>,
    inherit: &dyn Fn(&Embedded) -> Result<()>,
) -> Result<HostStore> {
    let listener = neighbours.listen();
    let embedded = builder.open_locked(seams, lock, dir, create, began)?;
    inherit(&embedded)?;
    let living = neighbours.living().map_err(|e| Error::io("finding the sessions of", dir, e))?;
    let lives = |session: SessionId| Ok(living.contains(&session));
    let kept = match living.is_empty() {
        true => Vec::new(),
        false => embedded.keep_tenures(&lives)?,
    };
    let are_alone = living.is_empty();
    Ok(HostStore { embedded, neighbours, listener, kept, are_alone })
}

/// Refuses to host in a directory of another user: its owner could not open the files that this process makes.
fn check_may_host(neighbours: &dyn Neighbours, dir: &Path) -> Result<()> {
    if neighbours.may_host().map_err(|e| Error::io("looking at", dir, e))? {
        return Ok(());
    }
    let message = format!(
        "{} belongs to another user: only processes of that user, or of root, host the store, and none does; once one has it open \
         with `shared(true)`, this process joins it",
        dir.display()
    );
    Err(Error::new(ErrorKind::Locked, message).at(dir))
}

/// Whether connecting failed because of this process, so that the failure says nothing about the host.
fn is_own_lack(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::PermissionDenied || is_scarce(e)
}

/// Fails if the directory at the path is no longer the one that was opened: it may hold another store.
fn check_standing(neighbours: &dyn Neighbours, dir: &Path) -> Result<()> {
    let standing = neighbours.standing().map_err(|e| Error::io("looking at", dir, e))?;
    manifest::misplaced(dir, standing).map_or(Ok(()), Err)
}

/// Joins the host at the other end of a connection.
fn join(
    builder: &StoreBuilder,
    seams: &Seams,
    dir: &Path,
    neighbours: Arc<dyn Neighbours>,
    connection: Box<dyn Connection>,
) -> Result<Store> {
    let (settings, theirs, at) = (builder.clone(), seams.clone(), dir.to_owned());
    let known = Arc::clone(&neighbours);
    let hosting = move || match host(&settings, &theirs, &at, false, Some(Arc::clone(&known))) {
        Ok(embedded) => Ok(Some(Arc::new(Shared::Embedded(embedded)))),
        Err(e) if e.kind() == ErrorKind::Locked => Ok(None),
        Err(e) => Err(e),
    };
    let joiner = Joiner {
        dir: dir.to_owned(),
        session: begin_session(seams, &*neighbours, dir)?,
        neighbours,
        host: Box::new(hosting),
        draw: drawn_of(seams),
        result_bytes_max: builder.result_bytes_max,
    };
    joined(joiner, connection, builder.policy.clone())
}

/// Joins the process that hosts the store, for calls that change nothing. `None`: no process that can be reached hosts it.
///
/// Such a guest owns nothing, so other processes don't see its session. It writes nothing, so it never hosts the store.
pub(super) fn join_to_read(seams: &Seams, dir: &Path) -> Result<Option<Store>> {
    let neighbours = neighbours(dir)?;
    let Ok(Some(connection)) = neighbours.connect() else { return Ok(None) };
    let (storage, at) = (Arc::clone(&seams.storage), dir.to_owned());
    let never_hosting = move || match storage.is_locked(&at) {
        Ok(false) => {
            let message = format!(
                "the process that hosted {} has gone, and no other has taken its place: open another reader",
                at.display()
            );
            Err(Error::new(ErrorKind::Superseded, message).at(&at))
        }
        // Another is about to host.
        Ok(true) => Ok(None),
        Err(e) => Err(Error::io("determining whether a process has locked", &at, e)),
    };
    let joiner = Joiner {
        dir: dir.to_owned(),
        session: Box::new(Unseen(draw_session(seams)?)),
        neighbours,
        host: Box::new(never_hosting),
        draw: drawn_of(seams),
        result_bytes_max: 1,
    };
    joined(joiner, connection, Policy::new()).map(Some)
}

fn joined(joiner: Joiner, connection: Box<dyn Connection>, policy: Policy) -> Result<Store> {
    let guest = Guest::join(joiner, connection)?;
    let operator = guest.operator();
    Ok(Store::hosted(Shared::Other(Elsewhere::new(Box::new(guest))), policy, operator))
}

fn drawn_of(seams: &Seams) -> Box<dyn Fn() -> u64 + Send + Sync> {
    let seams = seams.clone();
    Box::new(move || seams.draw_u64().unwrap_or(0))
}

fn draw_session(seams: &Seams) -> Result<SessionId> {
    loop {
        if let Some(id) = SessionId::new(seams.draw_u64()? % SessionId::END) {
            return Ok(id);
        }
    }
}

/// Draws a number that no session has, and begins a session of it.
fn begin_session(
    seams: &Seams,
    neighbours: &dyn Neighbours,
    dir: &Path,
) -> Result<Box<dyn Session>> {
    loop {
        let begun = neighbours.begin(draw_session(seams)?);
        let begun = begun.map_err(|e| Error::io("beginning a session at", dir, e))?;
        if let Some(session) = begun {
            return Ok(session);
        }
    }
}
