//! The segment header, declared once. Format: `docs/format.md`, "Segment".

use std::path::Path;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::header::{FILE_HEADER_BYTES, FileHeader, FileKind, sum_before_last};
use crate::manifest::{Listed, Secrets};
use crate::record::{self, Seal};
use crate::types::{Lsn, StoreId};
use crate::{Error, Result, limits};

/// Records begin here.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 128;

/// The beginning of a segment. It repeats the store's secrets, so that a lost manifest can be rebuilt.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct HeaderBytes {
    file: [u8; FILE_HEADER_BYTES],
    base: U64,
    capacity: U64,
    salt: U64,
    secrets: Secrets,
    ordinal: U32,
    /// A place in the log before it; 0: there is none, or it is unknown.
    follows: U64,
    /// Over all bytes before it.
    sum: U32,
}

const _: () = assert!(size_of::<HeaderBytes>() == SEGMENT_HEADER_BYTES);

/// The contents of a segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) store: StoreId,
    pub(crate) secrets: Secrets,
    pub(crate) identity: Identity,
    /// The log before it when it was listed, so that a missing segment in between is noticed without a manifest: the
    /// end of the segment before, if that was cut there; otherwise the place of its first record.
    pub(crate) follows: Lsn,
}

/// Identifies a segment within its store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) ordinal: u32,
    pub(crate) base: Lsn,
    pub(crate) capacity: u64,
    pub(crate) salt: u64,
}

impl Identity {
    pub(crate) fn of(listed: &Listed) -> Self {
        Identity {
            ordinal: listed.ordinal,
            base: listed.base,
            capacity: listed.capacity,
            salt: listed.salt,
        }
    }

    pub(crate) fn listed(&self) -> Listed {
        Listed {
            ordinal: self.ordinal,
            base: self.base,
            end: self.base.plus(self.capacity),
            capacity: self.capacity,
            salt: self.salt,
        }
    }

    /// Whether a manifest may list it, by its place. Then no place in it overflows.
    fn is_sound(&self) -> bool {
        // The next segment's ordinal is greater.
        self.ordinal < u32::MAX
            && self.base.get() % record::ALIGN as u64 == 0
            && self.base.get() <= limits::LSN_MAX
            && self.capacity <= limits::SEGMENT_BYTES_MOST
    }

    pub(crate) fn seal(&self, store: StoreId) -> Seal {
        Seal { store, salt: self.salt }
    }

    /// Returns the place of its first record.
    pub(crate) fn start(&self) -> Lsn {
        self.base.plus(SEGMENT_HEADER_BYTES as u64)
    }

    pub(crate) fn encode(
        &self,
        store: StoreId,
        secrets: &Secrets,
        follows: Lsn,
    ) -> [u8; SEGMENT_HEADER_BYTES] {
        debug_assert!(self.is_sound(), "{self:?}");
        let mut header = HeaderBytes {
            file: FileHeader::bytes(FileKind::Segment, store),
            base: self.base.get().into(),
            capacity: self.capacity.into(),
            salt: self.salt.into(),
            secrets: *secrets,
            ordinal: self.ordinal.into(),
            follows: follows.get().into(),
            sum: 0.into(),
        };
        header.sum = header.expected_sum().into();
        zerocopy::transmute!(header)
    }

    /// As `decode_all`, but returns only the identity.
    pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<(StoreId, Self)> {
        Identity::decode_all(bytes, path).map(|header| (header.store, header.identity))
    }

    /// Reads and checks the header at the start of `bytes`, the beginning of the file at `path`.
    pub(crate) fn decode_all(bytes: &[u8], path: &Path) -> Result<SegmentHeader> {
        let store = FileHeader::check(bytes, FileKind::Segment, path)?;
        let bad = |what| Error::corrupt(path, FILE_HEADER_BYTES as u64, what);
        let (header, _) =
            HeaderBytes::read_from_prefix(bytes).map_err(|_| bad("a segment header cut short"))?;
        if header.sum.get() != header.expected_sum() {
            return Err(bad("a segment header that fails its checksum"));
        }
        let identity = Identity {
            ordinal: header.ordinal.get(),
            base: Lsn::new(header.base.get()),
            capacity: header.capacity.get(),
            salt: header.salt.get(),
        };
        if !identity.is_sound() {
            return Err(bad("a segment header with impossible fields"));
        }
        let follows = Lsn::new(header.follows.get());
        Ok(SegmentHeader { store, secrets: header.secrets, identity, follows })
    }
}

impl HeaderBytes {
    fn expected_sum(&self) -> u32 {
        sum_before_last(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRETS: Secrets = Secrets { hash_key: [1; 16], derivation: [2; 32] };

    /// Version 1 of the format, as `docs/format.md` draws it. A change here is another version.
    #[test]
    fn the_bytes_of_a_segment_header_never_change() {
        let identity =
            Identity { ordinal: 7, base: Lsn::new(1 << 50), capacity: 1 << 20, salt: 99 };
        let bytes = identity.encode(StoreId([4; 16]), &SECRETS, Lsn::ZERO);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "89316f6e63650d0a01000200000000000000000004040404040404040404040404040404bfbee1ee\
             00000000000004000000100000000000630000000000000001010101010101010101010101010101\
             02020202020202020202020202020202020202020202020202020202020202020700000000000000\
             000000009c4d4148"
        );
        let follows = Lsn::new(0x0102_0304_0506_0708);
        let bytes = identity.encode(StoreId([4; 16]), &SECRETS, follows);
        assert_eq!(bytes[116..124], [8, 7, 6, 5, 4, 3, 2, 1]);
        let header = SegmentHeader { store: StoreId([4; 16]), secrets: SECRETS, identity, follows };
        assert_eq!(Identity::decode_all(&bytes, Path::new("s")).unwrap(), header);
    }

    /// The checksum is correct, but positions would overflow, or a manifest that lists the segment would be refused.
    #[test]
    fn a_segment_that_no_manifest_may_list_is_corrupt() {
        let sound = Identity { ordinal: 7, base: Lsn::new(1 << 50), capacity: 1 << 20, salt: 99 };
        let of = |base, capacity| {
            let mut bytes = sound.encode(StoreId([4; 16]), &SECRETS, Lsn::ZERO);
            let header = HeaderBytes::mut_from_bytes(&mut bytes).unwrap();
            (header.base, header.capacity) = (U64::new(base), U64::new(capacity));
            header.sum = header.expected_sum().into();
            Identity::decode(&bytes, Path::new("s"))
        };
        let (most, longest) = (limits::LSN_MAX, limits::SEGMENT_BYTES_MOST);
        assert!(of(most, longest).is_ok());
        for (base, capacity) in [(most + 8, 128), (u64::MAX - 7, 8), (7, 128), (0, longest + 1)] {
            let error = of(base, capacity).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt, "{base} {capacity}");
        }
    }

    #[test]
    fn every_flipped_bit_is_corrupt() {
        let identity =
            Identity { ordinal: 7, base: Lsn::new(1 << 50), capacity: 1 << 20, salt: 99 };
        let bytes = identity.encode(StoreId([4; 16]), &SECRETS, Lsn::ZERO);
        let path = Path::new("s");
        assert_eq!(Identity::decode(&bytes, path).unwrap(), (StoreId([4; 16]), identity));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = Identity::decode(&bad, path).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt, "bit {bit}");
        }
        assert!(Identity::decode(&bytes[..127], path).is_err());
    }
}
