//! Values of everything that travels, made from bytes: for random tests, and for the fuzz target.
//!
//! Promises: the same bytes make the same value, and few bytes a small one, so that a test that fails can be made smaller.
//! What is made is within the limits.

#![expect(clippy::indexing_slicing, reason = "for tests; no choice is empty")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::frame::Versioned;
use crate::Error;
use crate::admin::{Cursor, KeyPrefix};
use crate::error::ErrorParts;
use crate::limits::LSN_MAX;
use crate::operation::{Fingerprint, Key};
use crate::types::{Lsn, Secret, SessionId, StoreMillis, Token, WallMillis};
use crate::value::bytes::ValueBytes;

/// What can be made from bytes.
pub(crate) trait Drawn {
    fn drawn(from: &mut Draws<'_>) -> Self;
}

/// Bytes to make values from. Once they are used up, zeros follow.
pub(crate) struct Draws<'d>(pub(crate) &'d [u8]);

impl Draws<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// The first, if there are no more bytes.
    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    fn several<T>(&mut self, most: u8, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.byte() % (most + 1)).map(|_| one(self)).collect()
    }

    fn text(&mut self) -> String {
        self.several(9, |from| from.one_of(&['a', 'b', '/', '"', '\n', '\0', 'ü', '🦀']))
            .into_iter()
            .collect()
    }
}

macro_rules! drawn_numbers {
    ($($type:ty),*) => {$(
        impl Drawn for $type {
            /// Every other one is small or great.
            fn drawn(from: &mut Draws<'_>) -> Self {
                match from.byte() % 4 {
                    0 => <$type>::from_le_bytes([0; size_of::<$type>()]) + from.byte() as $type % 100,
                    1 => <$type>::MAX - from.byte() as $type % 100,
                    _ => <$type>::from_le_bytes(from.array()),
                }
            }
        }
    )*};
}

drawn_numbers!(u16, u32, u64, i32, i64);

impl Drawn for bool {
    fn drawn(from: &mut Draws<'_>) -> Self {
        from.byte() % 2 == 1
    }
}

impl<T: Drawn> Drawn for Option<T> {
    fn drawn(from: &mut Draws<'_>) -> Self {
        bool::drawn(from).then(|| T::drawn(from))
    }
}

impl<T: Drawn> Drawn for Result<T, Error> {
    fn drawn(from: &mut Draws<'_>) -> Self {
        match bool::drawn(from) {
            true => Err(Error::drawn(from)),
            false => Ok(T::drawn(from)),
        }
    }
}

impl<T: Drawn> Drawn for Vec<T> {
    fn drawn(from: &mut Draws<'_>) -> Self {
        from.several(3, T::drawn)
    }
}

impl<T: Drawn> Drawn for Box<T> {
    fn drawn(from: &mut Draws<'_>) -> Self {
        Box::new(T::drawn(from))
    }
}

impl<T: Drawn> Drawn for Arc<T> {
    fn drawn(from: &mut Draws<'_>) -> Self {
        Arc::new(T::drawn(from))
    }
}

macro_rules! drawn_from {
    ($($type:ty: $from:ident => $made:expr;)*) => {$(
        impl Drawn for $type {
            fn drawn($from: &mut Draws<'_>) -> Self {
                $made
            }
        }
    )*};
}

drawn_from! {
    String: from => from.text();
    Box<str>: from => from.text().into();
    Arc<str>: from => from.text().into();
    Vec<u8>: from => from.several(20, Draws::byte);
    Box<[u8]>: from => from.several(20, Draws::byte).into();
    Arc<[u8]>: from => from.several(20, Draws::byte).into();
    ValueBytes: from => from.several(200, Draws::byte).into();
    PathBuf: from => from.text().into();
    Duration: from => Duration::new(u64::drawn(from), u32::drawn(from) % 1_000_000_000);
    Token: from => Token(u64::drawn(from));
    StoreMillis: from => StoreMillis(u64::drawn(from));
    WallMillis: from => WallMillis(u64::drawn(from));
    Lsn: from => Lsn::new(u64::drawn(from) % (LSN_MAX + 1));
    SessionId: from => match SessionId::new(u64::drawn(from) >> 2) {
        Some(session) => session,
        None => SessionId::drawn(&mut Draws(&[0, 99])),
    };
    Secret: from => Secret(from.array());
    Fingerprint: from => Fingerprint::from_bytes(from.array());
    SystemTime: from => {
        let distance = Duration::from_millis(u64::drawn(from) >> 8);
        match bool::drawn(from) {
            true => SystemTime::UNIX_EPOCH - distance,
            false => SystemTime::UNIX_EPOCH + distance,
        }
    };
    Key<'static>: from => match from.byte() % 4 {
        0 => plain_key(from),
        1 => plain_key(from).in_space(Token(u64::drawn(from).max(1))),
        2 => {
            let name = from.text() + "s";
            Key::of_step(&plain_key(from), Token(u64::drawn(from)), &name)
        }
        _ => {
            let name = from.text() + "n";
            Key::of_space(Option::drawn(from), &name)
        }
    };
    Cursor: from => Cursor::new(WallMillis::drawn(from), Key::drawn(from));
    KeyPrefix: from => KeyPrefix(match from.byte() % 3 {
        0 => Key::from(from.several(20, Draws::byte)),
        1 => Key::from_parts(from.several(3, Draws::text)),
        _ => plain_key(from),
    });
    Error: from => Error::from_parts(ErrorParts::drawn(from));
}

impl<T: Drawn> Drawn for Versioned<T> {
    fn drawn(from: &mut Draws<'_>) -> Self {
        match from.byte() % 8 {
            7 => Versioned::Other(super::frame::WIRE_VERSION + 1 + u32::from(from.byte())),
            _ => Versioned::Same(T::drawn(from)),
        }
    }
}

fn plain_key(from: &mut Draws<'_>) -> Key<'static> {
    match from.byte() % 5 {
        0 => Key::from(from.text() + "k"),
        1 => Key::from(u64::drawn(from)),
        2 => Key::from(i64::drawn(from)),
        3 => Key::from(u128::from(u64::drawn(from)) << 64 | 1),
        _ => Key::from((from.text() + "p", i64::drawn(from), u64::drawn(from))),
    }
}
