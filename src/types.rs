//! One newtype per unit, so that mixing two of them does not compile. No I/O.

use std::fmt;

/// A place in the log: its segment's base plus the offset in the segment, in bytes.
///
/// Strictly increasing over the store's whole life; gaps are allowed. Records start at multiples of 8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Lsn(u64);

impl Lsn {
    pub(crate) const ZERO: Lsn = Lsn(0);

    pub(crate) const fn new(value: u64) -> Self {
        Lsn(value)
    }

    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    /// The place so many bytes further. It doesn't overflow: a segment lies below `LSN_MAX`, which is checked where one
    /// is listed and where its header is read, and files are shorter than the rest of the range.
    pub(crate) const fn plus(self, bytes: u64) -> Self {
        Lsn(self.0 + bytes)
    }

    /// The token of a record at this place, where tokens run `ahead` of LSNs by so much. It doesn't overflow: manifests
    /// and records in which the sum exceeds `LSN_MAX` are neither written nor read.
    pub(crate) const fn token(self, ahead: u64) -> Token {
        Token(self.0 + ahead)
    }

    /// Bytes from `earlier`, which must not be greater, to `self`.
    pub(crate) const fn since(self, earlier: Lsn) -> u64 {
        self.0 - earlier.0
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({})", self.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Converts a length or an offset in a file to one in memory. Only targets of 64 bits have enough addresses for the
/// maps of a large index, so the library is built for no others.
pub(crate) const fn in_memory(bytes: u64) -> usize {
    bytes as usize
}

const _: () = assert!(usize::BITS == u64::BITS, "onlyonce is built for targets of 64 bits only");

/// The place of a record relative to its segment, as short as sealed tables need it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Spot {
    /// The segment's ordinal: never used again, so it identifies one segment.
    pub(crate) ordinal: u32,
    /// Offset in the segment's file, in bytes.
    pub(crate) offset: u64,
}

/// A fencing token. It grows with every claim over the store's whole life and is never issued twice, neither after a
/// crash nor by a restored copy of the store. For what this requires of the clock, see `docs/durability.md`, "Before
/// the first write".
///
/// Pass the token on to every resource that the work changes: a resource that remembers the greatest token it has seen
/// can refuse a stale owner. A token exceeds 2^53, so write it as a string in JSON.
///
/// ```
/// # use onlyonce::{Claim, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
/// let first = claim.token();
/// claim.abort("not yet")?;
/// let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
/// assert!(claim.token() > first);
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub(crate) u64);

impl Token {
    /// Makes a token from its number, for backends that issue tokens.
    #[cfg(feature = "backend")]
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Token(number)
    }

    /// Returns the token as a number.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("k")? else { unreachable!() };
    /// let fence: u64 = claim.token().get(); // for a column: UPDATE … SET fence = $1 WHERE fence < $1
    /// assert_eq!(fence.to_string(), claim.token().to_string());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Store time in milliseconds, by which leases and expiry are measured. It never runs backwards. See `clock`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct StoreMillis(pub u64);

impl StoreMillis {
    /// Limited to what a `u64` holds: a retention or a lease may be as long as a caller says. Neither comes to its end then,
    /// since store time stands still long before.
    pub(crate) const fn plus(self, millis: u64) -> Self {
        StoreMillis(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to `self`; 0 if `self` is the earlier one. When two threads read the clock, either reading
    /// may be the later one.
    pub(crate) const fn since(self, earlier: StoreMillis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Wall time in milliseconds since the Unix epoch. Only shown, never reasoned with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub(crate) struct WallMillis(pub(crate) u64);

/// One opening of a store by a process that shares it with others. The number lives as long as the opening does: it is a locked
/// byte of the file `sessions`, at that offset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SessionId(u64);

impl SessionId {
    /// Sessions are below it: the last byte that can be locked is below 2^63.
    pub(crate) const END: u64 = 1 << 62;

    /// `None`: no session has that number.
    pub(crate) const fn new(number: u64) -> Option<Self> {
        if number > 0 && number < Self::END { Some(SessionId(number)) } else { None }
    }

    pub(crate) const fn get(self) -> u64 {
        self.0
    }
}

/// Which call made a record: one of another process. Its session numbers its requests, and an item is one call of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Origin {
    pub(crate) session: SessionId,
    pub(crate) request: u64,
    pub(crate) item: u32,
}

/// Names one store for good; every file of it carries it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct StoreId(pub(crate) [u8; 16]);

/// The keyed hash of a key. Two keys may share one: the key itself is always compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct KeyHash {
    /// Chooses shard and bucket.
    pub(crate) high: u64,
    /// Independent of the bucket bits.
    pub(crate) low: u64,
}

/// A store's secret, from which tickets and downstream keys are made. No output shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
