//! The bytes of a recorded value, which clones share: [`ValueBytes`].
//!
//! Promises: the bytes never change, and whatever they lie in lives as long. A small value is copied, so that it keeps
//! no file open; a large one is not, and does. Never: shows contents.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::limits::RESULT_COPIED_MAX;
use crate::storage::HeldBytes;

/// The bytes of a recorded value, which clones share.
#[derive(Clone)]
pub struct ValueBytes(BytesSource);

#[derive(Clone)]
enum BytesSource {
    Own(Arc<[u8]>),
    /// In a file's map, or in the memory that a record was read into.
    Held(HeldBytes),
}

impl ValueBytes {
    /// The bytes of a result in a record. `hold` keeps them where they are; it is asked only if copying them costs more
    /// than holding a whole segment may. `None` if it can't.
    #[inline]
    pub(crate) fn of_record(
        result: &[u8],
        hold: impl FnOnce() -> Option<HeldBytes>,
    ) -> Option<Self> {
        let source = match result.len() <= RESULT_COPIED_MAX {
            true => BytesSource::Own(Arc::from(result)),
            false => BytesSource::Held(hold()?),
        };
        Some(ValueBytes(source))
    }
}

impl Default for ValueBytes {
    fn default() -> Self {
        ValueBytes(BytesSource::Own(Arc::default()))
    }
}

impl From<Vec<u8>> for ValueBytes {
    /// Copies nothing.
    fn from(bytes: Vec<u8>) -> Self {
        ValueBytes(BytesSource::Held(Arc::new(bytes)))
    }
}

impl From<&[u8]> for ValueBytes {
    fn from(bytes: &[u8]) -> Self {
        ValueBytes(BytesSource::Own(Arc::from(bytes)))
    }
}

impl Deref for ValueBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            BytesSource::Own(bytes) => bytes,
            BytesSource::Held(bytes) => (**bytes).as_ref(),
        }
    }
}

impl PartialEq for ValueBytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for ValueBytes {}

impl fmt::Debug for ValueBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
