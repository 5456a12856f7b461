//! The one public error type: opaque, with a kind that says what the caller does next.

use std::any::Any;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a call failed, where, and what can be done.
///
/// Programs decide by `kind()`; the message is for people. The message names the file and offset or the key where that
/// helps, the system's own error, and what to do next. `Debug` prints the same text. Answers like "in progress" are
/// never errors; they are variants of [`Claim`](crate::Claim).
///
/// ```
/// use onlyonce::{ErrorKind, Store};
///
/// let dir = tempfile::tempdir().unwrap();
/// let error = Store::open(dir.path().join("keys")).unwrap_err();
/// match error.kind() {
///     ErrorKind::NotFound => println!("{error}"), // "there is no store at ...: open_or_create makes one"
///     _ => panic!("{error}"),
/// }
/// ```
#[derive(thiserror::Error)]
#[error("{message}{}", self.next_step())]
pub struct Error {
    message: String,
    #[source]
    source: Option<Cause>,
    detail: Box<Detail>,
}

/// `source()` returns the error inside, not the `Arc`: an `Arc` is an error type of its own, in which a caller that
/// looks for an `io::Error` would not find it.
#[derive(Clone)]
struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl std::ops::Deref for Cause {
    type Target = dyn std::error::Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

#[derive(Default)]
struct Detail {
    kind: Option<ErrorKind>,
    path: Option<PathBuf>,
    offset: Option<u64>,
    /// What is returned to the caller with the error, whose type the call that set it knows.
    back: Option<Box<dyn Any + Send + Sync>>,
    /// One entry of a list of damage: the caller that asked for the list has already taken the next step.
    is_listed: bool,
    /// It says that a value doesn't decode again.
    is_not_decodable_again: bool,
}

/// An error as plain data, by which another process is told of it.
#[derive(Debug)]
pub(crate) struct ErrorParts {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) path: Option<PathBuf>,
    pub(crate) offset: Option<u64>,
    pub(crate) is_listed: bool,
    pub(crate) is_not_decodable_again: bool,
    /// The nearest first.
    pub(crate) causes: Vec<ErrorCause>,
}

/// What an error was caused by.
#[derive(Debug)]
pub(crate) enum ErrorCause {
    /// The system's own error, by its number. It has no cause of its own.
    System(i32),
    /// Any other, as it shows itself.
    Text(String),
}

/// The cause of an error of another process.
#[derive(thiserror::Error)]
#[error("{text}")]
struct CauseElsewhere {
    text: String,
    #[source]
    source: Option<Cause>,
}

impl fmt::Debug for CauseElsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The kind of an error, which tells the caller what to do next.
///
/// ```
/// # use onlyonce::{Claim, ErrorKind, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
/// match claim.complete("paid") {
///     Ok(()) => println!("recorded"),
///     Err(e) => match e.kind() {
///         ErrorKind::ClaimLost => println!("too late, another attempt took over"),
///         ErrorKind::TooLarge | ErrorKind::StorageFull => println!("not recorded: into_claim() gives it back"),
///         ErrorKind::Indeterminate => println!("reopen, and ask get()"),
///         _ => return Err(e),
///     },
/// }
/// # Ok::<(), onlyonce::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Another attempt took the key over, or the claim has ended. Stop, and change nothing more.
    ClaimLost,
    /// The namespace of this handle has passed to another version (`Store::version`): stop using this handle. Or it was
    /// dropped while the call was made: make the call again. Or the store was written to since a `Reader` of it was opened: open
    /// another one.
    Superseded,
    /// No claim on the key is granted until `Store::resolve` resolves the key.
    Held,
    /// Something in flight blocks this call: a live claim (wait for it, or name its token), a guard that is attached by the
    /// same ticket, a step that runs in another thread or task, or calls that a close has to wait for.
    InProgress,
    /// The record may or may not be on disk. Reopen the store and ask `Store::get`; never treat it as "failed".
    Indeterminate,
    /// An earlier write or sync failed; nothing is written until the store is reopened. Results are still replayed.
    Poisoned,
    /// The store was closed.
    Closed,
    /// This process is a fork of the one that opened the store. Use the store in the parent, or open it in this process
    /// once the parent has closed it or exited.
    Forked,
    /// There is no space. Nothing was done; free some space and call again, without reopening.
    StorageFull,
    /// Another process has the store open, and still had it when [`open_timeout`](crate::StoreBuilder::open_timeout) had passed.
    /// A `Reader` doesn't wait, and gets this from every call while a process has the store open, this process included.
    Locked,
    /// There is no store at that path. `Store::open_or_create` makes one.
    NotFound,
    /// Bytes that were once durable are damaged or missing. `Store::verify` lists all damage of a store that opens.
    /// Restore a backup, or let `admin::repair` save the undamaged records; the repair first reports what would be
    /// lost.
    Corrupt,
    /// The store was written in a version of the format that this library doesn't know.
    Incompatible,
    /// The call itself is wrong, and repeating it won't help.
    Invalid,
    /// A value exceeds a limit, which the message names.
    TooLarge,
    /// The stored bytes don't decode as the requested type.
    Undecodable,
    /// The work was done, but its result was not kept: `Recorded::missing` says why. Don't do the work again.
    NotKept,
    /// The operating system reported an error.
    Io,
    /// The store found its own state inconsistent, which is a bug in onlyonce. Nothing more is written: reopen the store, ask
    /// `Store::get` what became of the key, and report the message. On a store that another backend answers, a reply breaks the
    /// rules: only this call fails.
    Bug,
}

impl Error {
    /// Makes an error of the given kind, for backends that reply with an error.
    #[cfg(feature = "backend")]
    pub fn with_kind(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error::new(kind, message)
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let detail = Detail { kind: Some(kind), ..Detail::default() };
        Error { message: message.into(), source: None, detail: Box::new(detail) }
    }

    /// Whether the device failed (`EIO`).
    pub(crate) fn is_by_device(&self) -> bool {
        let source = std::error::Error::source(self);
        let source = source.and_then(|source| source.downcast_ref::<io::Error>());
        source.and_then(rustix::io::Errno::from_io_error) == Some(rustix::io::Errno::IO)
    }

    /// An operating system error at `path`: a full disk is `StorageFull`, everything else `Io`. Adds a hint about what
    /// helps.
    pub(crate) fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        let full = is_full(&source);
        let kind = if full { ErrorKind::StorageFull } else { ErrorKind::Io };
        let errno = rustix::io::Errno::from_io_error(&source);
        let hint = match source.kind() {
            _ if full => ": no space left; free some and call again",
            io::ErrorKind::ReadOnlyFilesystem => {
                ": the file system is read-only: mount it for writing, or keep the store elsewhere"
            }
            io::ErrorKind::PermissionDenied => {
                ": no permission: the store's directory and files must be readable and, except for a Reader, \
                 writable for the user of this process"
            }
            io::ErrorKind::IsADirectory => {
                ": a directory has the name of one of the store's files: remove it"
            }
            _ if errno == Some(rustix::io::Errno::MFILE) => {
                ": too many open files: close some or raise the limit (ulimit -n), and call again"
            }
            _ if errno == Some(rustix::io::Errno::NFILE) => {
                ": too many open files in the whole system: close some and call again"
            }
            _ if errno == Some(rustix::io::Errno::NOMEM) => {
                ": no memory left: free some and call again"
            }
            _ if errno == Some(rustix::io::Errno::AGAIN) => {
                ": no thread or memory left: end some or raise the limit (ulimit -u), and call again"
            }
            _ => "",
        };
        let path_shown = path.display();
        let message = match source.raw_os_error() {
            Some(errno) if !hint.is_empty() => {
                format!("{doing} {path_shown} (os error {errno}){hint}")
            }
            _ => format!("{doing} {path_shown}: {source}{hint}"),
        };
        Error::new(kind, message).at(path).because(source)
    }

    pub(crate) fn corrupt(path: &Path, offset: u64, what: impl fmt::Display) -> Self {
        let message = format!("{what} in {} at byte {offset}", path.display());
        Error::new(ErrorKind::Corrupt, message).at(path).offset_at(offset)
    }

    /// An invariant of ours doesn't hold.
    pub(crate) fn bug(path: &Path, what: impl fmt::Display) -> Self {
        let message =
            format!("{what} at {}: this is a bug of onlyonce, please report it", path.display());
        Error::new(ErrorKind::Bug, message).at(path)
    }

    /// Makes an error of kind `Invalid`, with which a hand-written [`Encode`](crate::Encode) refuses a value.
    ///
    /// ```
    /// use onlyonce::value::{Codec, Format};
    /// use onlyonce::{Encode, Error, Result};
    ///
    /// struct Receipt(f64);
    ///
    /// impl Encode for Receipt {
    ///     fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
    ///         if self.0.is_nan() {
    ///             return Err(Error::invalid("a receipt over NaN"));
    ///         }
    ///         out.extend_from_slice(&self.0.to_le_bytes());
    ///         Ok(Format { codec: Codec::Custom(1), version: 0 })
    ///     }
    /// }
    /// # assert!(Receipt(f64::NAN).encode(&mut Vec::new()).is_err());
    /// ```
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, message)
    }

    /// Makes an error of kind `Undecodable`, with which a hand-written [`Decode`](crate::Decode) refuses bytes of
    /// another type.
    ///
    /// ```
    /// use onlyonce::value::Format;
    /// use onlyonce::{Decode, Error, Payload, Result};
    ///
    /// struct Receipt(u64);
    ///
    /// impl Decode for Receipt {
    ///     fn decode(payload: &Payload, _format: Format) -> Result<Self> {
    ///         let bytes = payload[..].try_into().map_err(|_| Error::undecodable("no receipt"))?;
    ///         Ok(Receipt(u64::from_le_bytes(bytes)))
    ///     }
    /// }
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// # let onlyonce::Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// # claim.complete("three")?;
    /// # let onlyonce::Claim::Completed(done) = store.claim("k")? else { unreachable!() };
    /// # assert!(done.decode::<Receipt>().map(|receipt| receipt.0).is_err());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn undecodable(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Undecodable, message)
    }

    /// A value that encodes and does not decode again. Only builds with debug assertions look.
    pub(crate) fn not_decodable_again(message: impl Into<String>) -> Self {
        let mut error = Error::invalid(message);
        error.detail.is_not_decodable_again = true;
        error
    }

    pub(crate) fn is_not_decodable_again(&self) -> bool {
        self.detail.is_not_decodable_again
    }

    pub(crate) fn at(mut self, path: &Path) -> Self {
        self.detail.path = Some(path.to_path_buf());
        self
    }

    pub(crate) fn offset_at(mut self, offset: u64) -> Self {
        self.detail.offset = Some(offset);
        self
    }

    pub(crate) fn because(
        mut self,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        self.source = Some(Cause(Arc::new(source)));
        self
    }

    /// Returns something to the caller: see [`into_back`](Self::into_back).
    pub(crate) fn giving_back<T: Any + Send + Sync>(mut self, back: T) -> Self {
        self.detail.back = Some(Box::new(back));
        self
    }

    /// What was returned with the error, if it has that type.
    pub(crate) fn into_back<T: Any>(self) -> Option<T> {
        self.detail.back.and_then(|back| back.downcast().ok()).map(|back| *back)
    }

    /// The same error for another caller that it concerns; without the claim.
    pub(crate) fn again(&self) -> Self {
        let detail = Detail {
            kind: self.detail.kind,
            path: self.detail.path.clone(),
            offset: self.detail.offset,
            back: None,
            is_listed: self.detail.is_listed,
            is_not_decodable_again: self.detail.is_not_decodable_again,
        };
        Error {
            message: self.message.clone(),
            source: self.source.clone(),
            detail: Box::new(detail),
        }
    }

    /// What another process is told of it: all but what is returned with it.
    pub(crate) fn to_parts(&self) -> ErrorParts {
        let mut causes = Vec::new();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let errno = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            causes.push(
                errno.map_or_else(|| ErrorCause::Text(cause.to_string()), ErrorCause::System),
            );
            source = cause.source();
        }
        ErrorParts {
            kind: self.kind(),
            message: self.message.clone(),
            path: self.detail.path.clone(),
            offset: self.detail.offset,
            is_listed: self.detail.is_listed,
            is_not_decodable_again: self.detail.is_not_decodable_again,
            causes,
        }
    }

    pub(crate) fn from_parts(parts: ErrorParts) -> Self {
        let ErrorParts { kind, message, path, offset, .. } = parts;
        let ErrorParts { is_listed, is_not_decodable_again, causes, .. } = parts;
        let kind = Some(kind);
        let detail = Detail { kind, path, offset, back: None, is_listed, is_not_decodable_again };
        let source = causes.into_iter().rev().fold(None, |source, cause| {
            Some(Cause(match cause {
                ErrorCause::System(errno) => Arc::new(io::Error::from_raw_os_error(errno)),
                ErrorCause::Text(text) => Arc::new(CauseElsewhere { text, source }),
            }))
        });
        Error { message, source, detail: Box::new(detail) }
    }

    /// Marks one entry of a list of damage, which repeats no advice.
    pub(crate) fn listed(mut self) -> Self {
        self.detail.is_listed = true;
        self
    }

    fn next_step(&self) -> &'static str {
        if self.kind() == ErrorKind::Corrupt && !self.detail.is_listed {
            "; restore a backup, or let admin::repair save what is whole, which says first what would be lost; verify lists all damage where the store opens"
        } else {
            ""
        }
    }

    /// The message, followed by the messages of its causes that it doesn't include.
    pub(crate) fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let said = cause.to_string();
            if !text.contains(&said) && !has_errno(&text, cause) {
                text = format!("{text}: {said}");
            }
            source = cause.source();
        }
        text
    }

    /// Returns the kind, which says what to do next.
    ///
    /// ```
    /// # use onlyonce::{ErrorKind, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// assert_eq!(store.claim("").unwrap_err().kind(), ErrorKind::Invalid); // an empty key
    /// assert_eq!(store.claim("k".repeat(5000)).unwrap_err().kind(), ErrorKind::TooLarge);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.detail.kind.unwrap_or(ErrorKind::Io)
    }

    /// Returns the file or directory that the error is about.
    ///
    /// ```
    /// # use onlyonce::{Error, ErrorKind, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let _ = sim.open()?.mark("k")?;
    /// # sim.flip_byte("/store/MANIFEST", 100, 1).unwrap();
    /// let e = sim.open().unwrap_err(); // bit rot
    /// assert_eq!(e.kind(), ErrorKind::Corrupt);
    /// assert!(e.path().is_some_and(|path| path.ends_with("MANIFEST")));
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.detail.path.as_deref()
    }

    /// Returns the offset in that file, if the error is about one position.
    ///
    /// ```
    /// # use onlyonce::{Error, ErrorKind, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let _ = sim.open()?.mark("k")?;
    /// # sim.flip_byte("/store/MANIFEST", 100, 1).unwrap();
    /// let e = sim.open().unwrap_err(); // bit rot
    /// assert_eq!(e.kind(), ErrorKind::Corrupt);
    /// println!("look at byte {:?} of {:?}, or restore a backup", e.offset(), e.path());
    /// assert!(e.offset().is_some());
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.detail.offset
    }
}

/// Whether a message includes the number of the system's error already.
fn has_errno(text: &str, cause: &(dyn std::error::Error + 'static)) -> bool {
    let errno = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    errno.is_some_and(|errno| text.contains(&format!("(os error {errno})")))
}

/// Whether the system reported a lack of space: blocks, quota, or inodes.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether the system was short of descriptors, memory or processes: nothing was done, and a later try may succeed.
pub(crate) fn is_scarce(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let scarce = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    Errno::from_io_error(error).is_some_and(|errno| scarce.contains(&errno))
}

impl fmt::Debug for Error {
    /// As readable as `Display`, since `unwrap` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind(), self.in_full())?;
        if self.detail.back.is_some() { f.write_str(" (the claim is given back)") } else { Ok(()) }
    }
}
