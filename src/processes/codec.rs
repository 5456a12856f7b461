//! How plain data becomes the bytes of a frame, and is read back: [`Travels`].
//!
//! Numbers are little-endian. A text, bytes or a list begin with their length in four bytes, a variant with its tag in one.
//! Fields follow each other in the order of their declaration here.
//!
//! Promises: what was put is taken back the same, and a type that gets a field or a variant doesn't compile until it is
//! named here. A length is compared with what is left of the frame before anything is allocated for it; the fields whose
//! lengths a record limits are within those limits. Never: knows which frames there are.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::admin::{
    Cursor, Cut, Estimate, Health, Hosting, Opening, Scope, StateKind, Stats, Verification,
};
use crate::backend::{Ask, Details, KeyView, Reply, Request, Terms};
use crate::engine::{BackedUp, Claimed, Compacted, Stored};
use crate::error::{ErrorCause, ErrorParts};
use crate::limits::{
    ERROR_CAUSES_MAX, ERROR_TEXT_BYTES_MAX, LABEL_BYTES_MAX, LSN_MAX, META_BYTES_MAX,
    META_COUNT_MAX, PROGRESS_BYTES_MAX, RESULT_BYTES_MAX, STEP_NAME_BYTES_MAX,
};
use crate::operation::{Durability, Fingerprint, Key, OnInterrupted, floor_char_boundary};
use crate::protocol::{
    Answer, Asker, Call, Extras, KeyState, Lease, OpenStep, Phase, Presence, Sight, Wants,
};
use crate::record::BODY_BYTES_MAX;
use crate::types::{Lsn, Secret, SessionId, StoreMillis, Token, WallMillis};
use crate::value::bytes::ValueBytes;
use crate::{Error, ErrorKind};

/// Plain data that another process can be sent.
pub(crate) trait Travels: Sized {
    /// Appends the bytes of this value.
    fn put(&self, out: &mut Vec<u8>);

    /// Takes a value off the front.
    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed>;
}

/// Bytes that are no frame, or none that this version sends. The connection that they came by can't be used further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed {
    /// What is wrong with them.
    pub(crate) what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

pub(super) const fn malformed<T>(what: &'static str) -> Result<T, Malformed> {
    Err(Malformed { what })
}

/// What is left of a frame that is being read.
pub(crate) struct Taking<'f> {
    rest: &'f [u8],
}

impl<'f> Taking<'f> {
    /// Reads the one value that the bytes are.
    pub(crate) fn whole<T: Travels>(bytes: &'f [u8]) -> Result<T, Malformed> {
        let mut from = Taking { rest: bytes };
        let value = T::take(&mut from)?;
        match from.rest {
            [] => Ok(value),
            _ => malformed("bytes follow the end of a frame's contents"),
        }
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((array, rest)) = self.rest.split_first_chunk() else {
            return malformed("a frame ends within a field");
        };
        self.rest = rest;
        Ok(*array)
    }

    /// Takes a length and as many bytes, which are there: what is allocated for them is no longer than the frame.
    fn bytes(&mut self) -> Result<&'f [u8], Malformed> {
        let len = u32::from_le_bytes(self.array()?) as usize;
        let Some((bytes, rest)) = self.rest.split_at_checked(len) else {
            return malformed("a length exceeds the frame");
        };
        self.rest = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'f str, Malformed> {
        match std::str::from_utf8(self.bytes()?) {
            Ok(text) => Ok(text),
            Err(_) => malformed("a text isn't UTF-8"),
        }
    }

    pub(super) fn skip_rest(&mut self) {
        self.rest = &[];
    }
}

/// A length that four bytes don't hold leaves a body that is longer than any frame, which is never sent.
fn put_bytes(out: &mut Vec<u8>, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

/// Types that are their fields, one after the other. A field after `;` stays here, and is unset on the other side. With `if`, a
/// function that says whether what arrived is within the limits.
macro_rules! travels {
    ($type:ident { $($field:ident),* $(,)? $(; $stays:ident)? } $(if $fits:path, $what:literal)?) => {
        impl $crate::processes::codec::Travels for $type {
            fn put(&self, out: &mut Vec<u8>) {
                let $type { $($field,)* $($stays: _)? } = self;
                $($field.put(out);)*
            }

            fn take(
                from: &mut $crate::processes::codec::Taking<'_>,
            ) -> Result<Self, $crate::processes::codec::Malformed> {
                let taken = $type {
                    $($field: $crate::processes::codec::Travels::take(from)?,)*
                    $($stays: Default::default())?
                };
                $(if !$fits(&taken) {
                    return $crate::processes::codec::malformed($what);
                })?
                Ok(taken)
            }
        }

        #[cfg(any(test, feature = "testing"))]
        impl $crate::processes::Drawn for $type {
            fn drawn(from: &mut $crate::processes::Draws<'_>) -> Self {
                let made = $type {
                    $($field: $crate::processes::Drawn::drawn(from),)*
                    $($stays: Default::default())?
                };
                // The value of zeros fits.
                $(if !$fits(&made) {
                    return Self::drawn(from);
                })?
                made
            }
        }
    };
}
pub(super) use travels;

/// Types of several variants, each with its tag.
macro_rules! tagged {
    ($type:ident {
        $($tag:literal => $variant:ident
            $(($($inner:ident),*))? $({ $($field:ident),* $(,)? })?,)*
    }) => {
        impl $crate::processes::codec::Travels for $type {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($type::$variant $(($($inner),*))? $({ $($field),* })? => {
                        out.push($tag);
                        $($($inner.put(out);)*)?
                        $($($field.put(out);)*)?
                    })*
                }
            }

            fn take(
                from: &mut $crate::processes::codec::Taking<'_>,
            ) -> Result<Self, $crate::processes::codec::Malformed> {
                Ok(match from.byte()? {
                    $($tag => $type::$variant
                        $(($({
                            let $inner = $crate::processes::codec::Travels::take(from)?;
                            $inner
                        }),*))?
                        $({ $($field: $crate::processes::codec::Travels::take(from)?),* })?,)*
                    _ => {
                        let what = concat!("a tag that isn't one of ", stringify!($type));
                        return $crate::processes::codec::malformed(what);
                    }
                })
            }
        }

        #[cfg(any(test, feature = "testing"))]
        impl $crate::processes::Drawn for $type {
            fn drawn(from: &mut $crate::processes::Draws<'_>) -> Self {
                let tags = [$($tag),*];
                match from.one_of(&tags) {
                    $($tag => $type::$variant
                        $(($({
                            let $inner = $crate::processes::Drawn::drawn(from);
                            $inner
                        }),*))?
                        $({ $($field: $crate::processes::Drawn::drawn(from)),* })?,)*
                    _ => unreachable!("drawn from these tags"),
                }
            }
        }
    };
}
pub(super) use tagged;

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Travels for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }

            fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
                from.array().map(<$type>::from_le_bytes)
            }
        }
    )*};
}

// Not of one byte: a list of those is bytes.
numbers!(u16, u32, u64, i32, i64);

impl Travels for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        match from.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => malformed("a byte that is neither true nor false"),
        }
    }
}

impl<T: Travels> Travels for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        self.iter().for_each(|value| value.put(out));
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        Ok(match bool::take(from)? {
            true => Some(T::take(from)?),
            false => None,
        })
    }
}

impl<T: Travels> Travels for Result<T, Error> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_ok().put(out);
        match self {
            Ok(value) => value.put(out),
            Err(e) => e.put(out),
        }
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        Ok(match bool::take(from)? {
            true => Ok(T::take(from)?),
            false => Err(Error::take(from)?),
        })
    }
}

impl<T: Travels> Travels for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend((self.len() as u32).to_le_bytes());
        self.iter().for_each(|value| value.put(out));
    }

    /// Grows as its elements are read, each of which has at least one byte: a count that lies fails first.
    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        let count = u32::take(from)? as usize;
        if count > from.rest.len() {
            return malformed("a count exceeds the frame");
        }
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(T::take(from)?);
        }
        Ok(list)
    }
}

macro_rules! behind_pointers {
    ($($pointer:ident),*) => {$(
        impl<T: Travels> Travels for $pointer<T> {
            fn put(&self, out: &mut Vec<u8>) {
                (**self).put(out);
            }

            fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
                T::take(from).map($pointer::new)
            }
        }
    )*};
}

behind_pointers!(Box, Arc);

macro_rules! texts_and_bytes {
    ($($type:ty, $taken:ident;)*) => {$(
        impl Travels for $type {
            fn put(&self, out: &mut Vec<u8>) {
                put_bytes(out, &**self);
            }

            fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
                from.$taken().map(Self::from)
            }
        }
    )*};
}

texts_and_bytes! {
    String, text;
    Box<str>, text;
    Arc<str>, text;
    Vec<u8>, bytes;
    Box<[u8]>, bytes;
    Arc<[u8]>, bytes;
}

impl Travels for ValueBytes {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(out, &**self);
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        from.bytes().map(ValueBytes::from)
    }
}

impl Travels for PathBuf {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.as_os_str().as_bytes());
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        from.bytes().map(|bytes| PathBuf::from(OsString::from_vec(bytes.to_vec())))
    }
}

impl Travels for Duration {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_secs().put(out);
        self.subsec_nanos().put(out);
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        let (secs, nanos) = (u64::take(from)?, u32::take(from)?);
        match nanos < 1_000_000_000 {
            true => Ok(Duration::new(secs, nanos)),
            false => malformed("a second has too many nanoseconds"),
        }
    }
}

impl Travels for SystemTime {
    fn put(&self, out: &mut Vec<u8>) {
        let since = self.duration_since(SystemTime::UNIX_EPOCH);
        since.is_ok().put(out);
        since.unwrap_or_else(|before| before.duration()).put(out);
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        let (is_after, distance) = (bool::take(from)?, Duration::take(from)?);
        let time = match is_after {
            true => SystemTime::UNIX_EPOCH.checked_add(distance),
            false => SystemTime::UNIX_EPOCH.checked_sub(distance),
        };
        time.ok_or(Malformed { what: "a time that the system can't show" })
    }
}

macro_rules! wrapped_numbers {
    ($($type:ident),*) => {$(
        impl Travels for $type {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }

            fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
                Travels::take(from).map($type)
            }
        }
    )*};
}

wrapped_numbers!(Token, StoreMillis, WallMillis);

impl Travels for Lsn {
    fn put(&self, out: &mut Vec<u8>) {
        self.get().put(out);
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        match u64::take(from)? {
            lsn if lsn <= LSN_MAX => Ok(Lsn::new(lsn)),
            _ => malformed("a place that no log reaches"),
        }
    }
}

impl Travels for SessionId {
    fn put(&self, out: &mut Vec<u8>) {
        self.get().put(out);
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        SessionId::new(u64::take(from)?).ok_or(Malformed { what: "a number that no session has" })
    }
}

impl Travels for Secret {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.0);
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        from.array().map(Secret)
    }
}

impl Travels for Fingerprint {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.to_bytes());
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        from.array().map(Fingerprint::from_bytes)
    }
}

impl Travels for Key<'static> {
    /// As in a record.
    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.kind());
        put_bytes(out, self.bytes());
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        let (kind, bytes) = (from.byte()?, from.bytes()?);
        let key = Key::from_stored(kind, bytes).map(Key::into_owned);
        key.ok_or(Malformed { what: "bytes that are no key" })
    }
}

impl Travels for Cursor {
    fn put(&self, out: &mut Vec<u8>) {
        self.since().put(out);
        self.key().put(out);
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        Ok(Cursor::new(WallMillis::take(from)?, Key::take(from)?))
    }
}

tagged!(Durability {
    1 => Lazy,
    2 => Flush,
    3 => Sync,
});

tagged!(OnInterrupted {
    1 => Retry,
    2 => Hold,
});

tagged!(Phase {
    1 => Claimed,
    2 => Interrupted,
    3 => Held,
    4 => Aborted,
    5 => Completed,
    6 => Failed,
});

tagged!(Presence {
    1 => Nobody,
    2 => Owner,
    3 => Asked,
    4 => Detached,
});

tagged!(Sight {
    1 => Record { token, phase, time },
    2 => Expired { until },
});

travels!(Wants { fingerprint, on_interrupted, attempts_max, reconciles });

tagged!(Call {
    1 => Claim(wants),
    2 => Record { fingerprint, failure },
    3 => TakeOver(token),
    4 => NotApplied(token),
    5 => Hold(token),
    6 => RenewQuestion(question),
    7 => DropQuestion(question),
    8 => Complete(token),
    9 => Fail(token),
    10 => Abort(token),
    11 => Withdraw(token),
    12 => Park(token),
    13 => Interrupt(token),
    14 => Renew { token, attached },
    15 => Progress(token),
    16 => BeginStep(token),
    17 => Announce(token),
    18 => EndStep { token, life },
    19 => Detach(token),
    20 => Attach(token),
    21 => ResolveComplete(sight),
    22 => ResolveFail(sight),
    23 => ResolveRetry(sight),
    24 => Revoke(token),
    25 => Replace(token),
    26 => Forget,
    27 => ForgetSeen(sight),
    28 => ForgetClaimed(token),
});

tagged!(Answer {
    1 => Granted,
    2 => Asked,
    3 => InProgress,
    4 => Held,
    5 => TooManyAttempts,
    6 => Completed,
    7 => Failed,
    8 => Mismatch,
    9 => Expired,
    10 => Interrupted,
    11 => Delayed,
    12 => TooManySteps,
    13 => OtherInput,
    14 => Done,
    15 => Unchanged,
    16 => Lost,
});

travels!(Lease { until, millis, reserve });

travels!(OpenStep { name, input });

travels!(Extras { detached, retry_at, by, progress, announced, before_lapse });

travels!(KeyState {
    phase,
    token,
    life,
    open_fate,
    attempt,
    forgiven,
    since,
    time,
    expires_at,
    memory_until,
    remembers,
    wall_offset,
    fingerprint,
    hold,
    owner,
    reason,
    extras,
});

travels!(Asker { question, owner, since });

travels!(Stored { codec, version, meta, packed, bytes } if stored_fits, "an outcome exceeds its limits");

travels!(Claimed { token, life, attempt });

travels!(KeyView { state, presence, lease_until, asker, outcome });

travels!(Reply { answer, found, claimed, now, question });

travels!(Terms {
    durability,
    reserve,
    lease_millis,
    retention_millis,
    remember_millis,
    fingerprint,
    hold,
    wait_millis,
    owner,
    details,
} if terms_fit, "an owner's name or a reserve exceeds its limit");

travels!(Details {
    reason,
    by,
    progress,
    step,
    retry_millis,
    outcome;
    // The host knows whose call it is, and takes nobody's word for it.
    sending
} if details_fit, "the values of a call exceed their limits");

tagged!(Ask {
    1 => Look,
    2 => Step { life, name },
    3 => Ended(token),
    4 => Call(call, terms),
});

travels!(Request { key, ask } if request_fits, "the name of a step is empty or too long");

/// The lengths in a record have two bytes, and the log makes space for as much: what doesn't fit must not get there.
fn terms_fit(terms: &Terms) -> bool {
    terms.owner.as_deref().is_none_or(is_label) && reserve_fits(terms.reserve)
}

fn details_fit(details: &Details) -> bool {
    details.reason.as_deref().is_none_or(is_label)
        && details.by.as_deref().is_none_or(is_label)
        && details.step.as_deref().is_none_or(is_step_name)
        && details.progress.as_ref().is_none_or(|bytes| bytes.len() <= PROGRESS_BYTES_MAX)
}

fn is_label(text: &str) -> bool {
    text.len() <= LABEL_BYTES_MAX
}

/// No record is longer.
pub(super) fn reserve_fits(bytes: u64) -> bool {
    bytes <= BODY_BYTES_MAX as u64
}

fn stored_fits(stored: &Stored) -> bool {
    // Each name and each value has two bytes for its length.
    stored.meta.len() <= META_BYTES_MAX + 4 * META_COUNT_MAX
        && stored.bytes.len() <= RESULT_BYTES_MAX as usize
}

fn request_fits(request: &Request) -> bool {
    match &request.ask {
        Ask::Step { name, .. } => is_step_name(name),
        Ask::Look | Ask::Ended(_) | Ask::Call(..) => true,
    }
}

fn is_step_name(name: &str) -> bool {
    (1..=STEP_NAME_BYTES_MAX).contains(&name.len())
}

tagged!(ErrorKind {
    1 => ClaimLost,
    2 => Superseded,
    3 => Held,
    4 => InProgress,
    5 => Indeterminate,
    6 => Poisoned,
    7 => Closed,
    8 => Forked,
    9 => StorageFull,
    10 => Locked,
    11 => NotFound,
    12 => Corrupt,
    13 => Incompatible,
    14 => Invalid,
    15 => TooLarge,
    16 => Undecodable,
    17 => NotKept,
    18 => Io,
    19 => Bug,
});

tagged!(ErrorCause {
    1 => System(errno),
    2 => Text(text),
});

travels!(ErrorParts {
    kind,
    message,
    path,
    offset,
    is_listed,
    is_not_decodable_again,
    causes,
} if error_fits, "an error is too long");

/// What the claim or its value is given back with stays here: the guest has it.
impl Travels for Error {
    fn put(&self, out: &mut Vec<u8>) {
        let mut parts = self.to_parts();
        parts.causes.truncate(ERROR_CAUSES_MAX);
        cut(&mut parts.message);
        for cause in &mut parts.causes {
            if let ErrorCause::Text(text) = cause {
                cut(text);
            }
        }
        // A path so long leads nowhere, and the message names it.
        parts.path = parts.path.filter(|path| path_fits(path));
        parts.put(out);
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        ErrorParts::take(from).map(Error::from_parts)
    }
}

fn cut(text: &mut String) {
    text.truncate(floor_char_boundary(text, ERROR_TEXT_BYTES_MAX));
}

fn path_fits(path: &Path) -> bool {
    path.as_os_str().len() <= ERROR_TEXT_BYTES_MAX
}

fn error_fits(parts: &ErrorParts) -> bool {
    let is_short = |cause: &ErrorCause| match cause {
        ErrorCause::System(_) => true,
        ErrorCause::Text(text) => text.len() <= ERROR_TEXT_BYTES_MAX,
    };
    parts.message.len() <= ERROR_TEXT_BYTES_MAX
        && parts.path.as_deref().is_none_or(path_fits)
        && parts.causes.len() <= ERROR_CAUSES_MAX
        && parts.causes.iter().all(is_short)
}

tagged!(StateKind {
    1 => InProgress,
    2 => Detached,
    3 => Interrupted,
    4 => Held,
    5 => Aborted,
    6 => Delayed,
    7 => Completed,
    8 => Failed,
});

tagged!(Scope {
    1 => Root,
    2 => Space(id),
    3 => Nothing,
});

tagged!(Health {
    1 => Writable,
    2 => Poisoned { cause },
    3 => WaitsForSpace,
    4 => Full { since, cause },
    5 => Closed,
    6 => Forked,
    7 => Refused { cause },
    8 => Silent { process, since },
    9 => Alone { cause },
});

travels!(Estimate { live_bytes, dead_bytes, open, held, aborted, completed, failed });

travels!(Cut { path, offset, bytes, whole_records });

travels!(Opening { was_clean, records_read, records_resynced, cut });

travels!(Hosting { process, is_here, guests, result_bytes_max, silent_since });

travels!(Stats {
    keys,
    in_flight,
    interrupted,
    held,
    detached,
    delayed,
    segments,
    log_bytes,
    oldest_claim,
    log_bytes_since_checkpoint,
    last_checkpoint,
    estimate_at_checkpoint,
    disk_bytes,
    disk_bytes_max,
    bytes_moved,
    bytes_reclaimed,
    expired_files,
    expired_keys,
    tables,
    index_bytes,
    keys_in_memory,
    background_error,
    tables_mended,
    syncs,
    sync_time,
    records,
    bytes_written,
    hosting,
    opening,
});

travels!(Verification { records, bytes, damages, unread });

travels!(Compacted { moved, reclaimed, is_complete });

travels!(BackedUp { linked, copied });

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::limits::KEY_BYTES_MAX;
    use crate::processes::{Drawn, Draws};

    fn bytes_of(value: &impl Travels) -> Vec<u8> {
        let mut out = Vec::new();
        value.put(&mut out);
        out
    }

    /// What isn't shown, a result's bytes for example, is in the bytes.
    fn comes_back<T: Travels + fmt::Debug>(value: &T) {
        let bytes = bytes_of(value);
        let back: T = Taking::whole(&bytes).unwrap_or_else(|e| panic!("{e}: {value:?}"));
        assert_eq!(format!("{back:?}"), format!("{value:?}"));
        assert_eq!(bytes_of(&back), bytes, "{value:?}");
        let longer = [&bytes[..], &[0]].concat();
        assert!(Taking::whole::<T>(&longer).is_err(), "more follows: {value:?}");
        if let Some((_, shorter)) = bytes.split_last() {
            assert!(Taking::whole::<T>(shorter).is_err(), "the last byte lacks: {value:?}");
        }
    }

    macro_rules! come_back {
        ($draws:expr, $($type:ty),* $(,)?) => {$(
            comes_back(&<$type>::drawn(&mut Draws($draws)));
        )*};
    }

    proptest! {
        #[test]
        fn everything_comes_back(draws in vec(any::<u8>(), 0..400)) {
            let draws = &draws;
            come_back!(
                draws, bool, u16, u32, u64, i32, i64, String, Box<str>, Arc<str>, Vec<u8>, Box<[u8]>, Arc<[u8]>,
                ValueBytes, PathBuf, Duration, SystemTime, Option<u64>, Vec<u64>, Vec<String>, Box<u64>, Arc<u64>,
                Result<u64, Error>,
            );
            come_back!(draws, Token, StoreMillis, WallMillis, Lsn, SessionId, Secret, Fingerprint, Key<'static>, Cursor);
            come_back!(
                draws, Durability, OnInterrupted, Phase, Presence, Sight, Wants, Call, Answer, Lease, OpenStep, Extras,
                KeyState, Asker, Stored, Claimed, KeyView, Reply, Terms, Details, Ask, Request,
            );
            come_back!(draws, ErrorKind, ErrorCause, ErrorParts, Error, StateKind, Scope, Health, Estimate, Cut, Opening, Hosting);
            come_back!(draws, Stats, Verification, Compacted, BackedUp);
        }

        #[test]
        fn hostile_bytes_are_an_error_or_a_value(bytes in vec(any::<u8>(), 0..200), tag in 0..40_u8) {
            let bytes = [&[tag][..], &bytes].concat();
            macro_rules! one {
                ($($type:ty),*) => {$(
                    if let Ok(value) = Taking::whole::<$type>(&bytes) {
                        comes_back(&value);
                    }
                )*};
            }
            one!(Call, Reply, Request, Error, Stats, Health, Key<'static>, KeyView, Vec<u64>, SystemTime, Duration);
        }
    }

    /// Debug shows only how many bytes there are.
    #[test]
    fn a_result_comes_back_whole() {
        for len in [0, 1, 4096, 4097, 1 << 20] {
            let bytes: Vec<u8> = (0..len).map(|at: u32| at as u8).collect();
            let value = ValueBytes::from(bytes);
            assert_eq!(Taking::whole::<ValueBytes>(&bytes_of(&value)).unwrap(), value);
        }
    }

    #[test]
    fn every_kind_of_key_comes_back_as_it_was() {
        let plain: [Key<'static>; 6] = [
            Key::from(vec![b'k'; KEY_BYTES_MAX]),
            17.into(),
            (-17).into(),
            (u128::MAX).into(),
            ("a", 17, "b").into(),
            Key::from(&b"\xff\0"[..]),
        ];
        let short = Key::from("k");
        let id = Token(0x0102);
        let others = [
            short.in_space(id),
            Key::of_step(&short, Token(8), "plan"),
            Key::of_step(&short.in_space(id), Token(8), "plan"),
            Key::of_space(None, "tenant"),
            Key::of_space(Some(id), "tenant"),
        ];
        for key in plain.into_iter().chain(others) {
            let back: Key<'static> = Taking::whole(&bytes_of(&key)).unwrap();
            assert_eq!(back, key);
            assert_eq!((back.lies(), back.is_step()), (key.lies(), key.is_step()));
        }
    }

    #[test]
    fn what_a_recovery_refuses_as_a_key_is_refused() {
        let long = vec![b'k'; KEY_BYTES_MAX + 1];
        let cases: [(u8, &[u8]); 7] =
            [(0, b"k"), (9, b"k"), (1, b""), (1, &long), (2, b"1"), (3, b"\x01\x00"), (8, &[0; 8])];
        for (kind, bytes) in cases {
            let mut out = vec![kind];
            put_bytes(&mut out, bytes);
            assert!(Taking::whole::<Key<'static>>(&out).is_err(), "{kind} {bytes:?}");
        }
    }

    /// A length or a count costs nothing before its bytes are there.
    #[test]
    fn a_length_that_lies_is_refused() {
        for len in [9, 1 << 20, u32::MAX] {
            let lies = [&len.to_le_bytes()[..], &[1; 8]].concat();
            assert!(Taking::whole::<String>(&lies).is_err());
            assert!(Taking::whole::<Vec<u8>>(&lies).is_err());
            assert!(Taking::whole::<ValueBytes>(&lies).is_err());
            assert!(Taking::whole::<Vec<bool>>(&lies).is_err());
            assert!(Taking::whole::<Vec<Error>>(&lies).is_err());
        }
        // A count below the number of bytes, and elements that are longer.
        let lies = [&8_u32.to_le_bytes()[..], &[1; 8]].concat();
        assert!(Taking::whole::<Vec<u64>>(&lies).is_err());
        let list: Vec<u64> = (0..1000).collect();
        let back: Vec<u64> = Taking::whole(&bytes_of(&list)).unwrap();
        assert!(back.capacity() < 2 * list.len());
    }

    #[test]
    fn values_that_no_field_has_are_refused() {
        assert!(Taking::whole::<bool>(&[2]).is_err());
        assert!(Taking::whole::<String>(b"\x01\0\0\0\xff").is_err());
        assert!(Taking::whole::<Phase>(&[0]).is_err() && Taking::whole::<Phase>(&[7]).is_err());
        assert!(Taking::whole::<Lsn>(&(LSN_MAX + 1).to_le_bytes()).is_err());
        for session in [0, 1 << 62, u64::MAX] {
            assert!(Taking::whole::<SessionId>(&session.to_le_bytes()).is_err());
        }
        for session in [1, (1 << 62) - 1] {
            assert!(Taking::whole::<SessionId>(&u64::to_le_bytes(session)).is_ok());
        }
        let nanos = [&0_u64.to_le_bytes()[..], &1_000_000_000_u32.to_le_bytes()].concat();
        assert!(Taking::whole::<Duration>(&nanos).is_err());
        let late = [&[1][..], &u64::MAX.to_le_bytes(), &0_u32.to_le_bytes()].concat();
        assert!(Taking::whole::<SystemTime>(&late).is_err());
    }

    fn terms(change: impl FnOnce(&mut Terms)) -> Terms {
        let mut terms = Terms::default();
        change(&mut terms);
        terms
    }

    fn stored(meta: usize, result: usize) -> Stored {
        let bytes = ValueBytes::from(vec![7; result]);
        Stored { codec: 1, version: 2, meta: vec![0; meta], packed: None, bytes }
    }

    /// A record has two bytes for each of these lengths.
    #[test]
    fn what_no_record_holds_is_refused() {
        let (meta, result) = (META_BYTES_MAX + 4 * META_COUNT_MAX, RESULT_BYTES_MAX as usize);
        for over in [0, 1] {
            let label = "n".repeat(LABEL_BYTES_MAX + over);
            let cases = [
                terms(|terms| terms.owner = Some(label.as_str().into())),
                terms(|terms| terms.reserve = (BODY_BYTES_MAX + over) as u64),
                terms(|terms| terms.details_mut().reason = Some(label.clone())),
                terms(|terms| terms.details_mut().by = Some(label.clone())),
                terms(|terms| {
                    terms.details_mut().step = Some("s".repeat(STEP_NAME_BYTES_MAX + over));
                }),
                terms(|terms| {
                    terms.details_mut().progress = Some(vec![0; PROGRESS_BYTES_MAX + over]);
                }),
                terms(|terms| terms.details_mut().outcome = Some(stored(meta + over, 0))),
                terms(|terms| terms.details_mut().outcome = Some(stored(0, result + over))),
            ];
            for terms in cases {
                let is_taken = Taking::whole::<Terms>(&bytes_of(&terms)).is_ok();
                assert_eq!(is_taken, over == 0, "{terms:?}");
            }
        }
        for (name, fits) in [(0, false), (1, true), (255, true), (256, false)] {
            let ask = Ask::Step { life: Token(8), name: "s".repeat(name) };
            let request = Request { key: Key::from("k"), ask };
            assert_eq!(Taking::whole::<Request>(&bytes_of(&request)).is_ok(), fits, "{name}");
        }
        let unnamed = terms(|terms| terms.details_mut().step = Some(String::new()));
        assert!(Taking::whole::<Terms>(&bytes_of(&unnamed)).is_err());
    }

    fn sent(error: &Error) -> Error {
        Taking::whole(&bytes_of(error)).unwrap()
    }

    #[test]
    fn an_error_shows_the_same_on_the_other_side() {
        let (path, io) = (Path::new("/keys/MANIFEST"), |errno| io::Error::from_raw_os_error(errno));
        let errors = [
            Error::invalid("an empty key"),
            Error::corrupt(path, 100, "a wrong checksum"),
            Error::corrupt(path, 100, "a wrong checksum").listed(),
            Error::bug(path, "two owners"),
            Error::io("writing", path, io(28)),
            Error::io("writing", path, io(5)),
            Error::io("writing", path, io(0)),
            Error::io("reading", path, io::Error::other(Error::io("opening", path, io(2)))),
            Error::not_decodable_again("a value"),
            Error::new(ErrorKind::Poisoned, "poisoned").because(Error::io("syncing", path, io(5))),
        ];
        for error in errors {
            let other = sent(&error);
            assert_eq!(other.kind(), error.kind());
            assert_eq!((other.path(), other.offset()), (error.path(), error.offset()));
            assert_eq!(other.to_string(), error.to_string());
            assert_eq!(format!("{other:?}"), format!("{error:?}"));
            assert_eq!(other.in_full(), error.in_full());
            assert_eq!(other.is_by_device(), error.is_by_device());
            assert_eq!(other.is_not_decodable_again(), error.is_not_decodable_again());
            let (mut one, mut two) = (error.source(), other.source());
            while let Some(cause) = one {
                assert_eq!(two.unwrap().to_string(), cause.to_string());
                (one, two) = (cause.source(), two.unwrap().source());
            }
            assert!(two.is_none());
        }
        let full = sent(&Error::io("writing", path, io(28)));
        let source = full.source().unwrap().downcast_ref::<io::Error>();
        assert_eq!(source.and_then(io::Error::raw_os_error), Some(28));
    }

    #[test]
    fn an_error_gives_nothing_back_to_another_process() {
        let error = Error::invalid("a receipt over NaN").giving_back(17_u64);
        assert_eq!(sent(&error).into_back::<u64>(), None);
    }

    #[test]
    fn an_error_that_is_too_long_is_cut() {
        let long = "ü".repeat(ERROR_TEXT_BYTES_MAX);
        let mut error = Error::new(ErrorKind::Io, format!("x{long}")).at(Path::new(&long));
        for _ in 0..ERROR_CAUSES_MAX + 2 {
            error = Error::new(ErrorKind::Io, format!("x{long}")).because(error);
        }
        let other = sent(&error);
        assert_eq!(other.to_string().len(), ERROR_TEXT_BYTES_MAX - 1);
        assert_eq!(other.to_parts().causes.len(), ERROR_CAUSES_MAX);
        assert_eq!(sent(&Error::new(ErrorKind::Io, "x").at(Path::new(&long))).path(), None);

        let parts = |message: &str, path: &str, causes: Vec<ErrorCause>| ErrorParts {
            message: message.to_owned(),
            path: Some(path.into()),
            causes,
            ..Error::invalid("").to_parts()
        };
        let text = |text: &str| ErrorCause::Text(text.to_owned());
        let many = || (0..=ERROR_CAUSES_MAX).map(|_| text("")).collect();
        for hostile in [
            parts(&long, "", vec![]),
            parts("", &long, vec![]),
            parts("", "", vec![text(&long)]),
            parts("", "", many()),
        ] {
            assert!(Taking::whole::<Error>(&bytes_of(&hostile)).is_err());
        }
    }
}
