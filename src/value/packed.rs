//! Results that a record holds compressed, as one LZ4 block, by the feature `lz4`.
//!
//! Promises: a claimed length is compared with the limits before memory is taken for it; what decompresses has that
//! length. Never: panics or reads past the end on hostile bytes (the decoder is safe Rust).

use crate::limits::RESULT_BYTES_MAX;
use crate::{Error, Result};

/// Fills a buffer of the length of the value; returns the number of bytes.
type Decoder = fn(&[u8], &mut [u8]) -> Option<usize>;

/// `None`: this build has none.
const DECODER: Option<Decoder> = {
    #[cfg(feature = "lz4")]
    let decoder: Option<Decoder> =
        Some(|packed, value| lz4_flex::block::decompress_into(packed, value).ok());
    #[cfg(not(feature = "lz4"))]
    let decoder: Option<Decoder> = None;
    decoder
};

/// No byte of an LZ4 block stands for more.
const EXPANSION_MAX: usize = 255;

/// Bytes of the field that says the length.
const FIELD_BYTES: usize = 4;

/// Returns the bytes compressed; `None` if a record would not be shorter, or this build can't.
pub(crate) fn pack(value: &[u8]) -> Option<Vec<u8>> {
    #[cfg(feature = "lz4")]
    let packed = Some(lz4_flex::block::compress(value));
    #[cfg(not(feature = "lz4"))]
    let packed: Option<Vec<u8>> = None;
    packed.filter(|packed| packed.len() + FIELD_BYTES < value.len())
}

/// Returns the value of `len` bytes that `packed` holds.
pub(crate) fn unpack(packed: &[u8], len: u32) -> Result<Vec<u8>> {
    unpack_by(DECODER, packed, len)
}

fn unpack_by(decoder: Option<Decoder>, packed: &[u8], len: u32) -> Result<Vec<u8>> {
    let Some(decode) = decoder else {
        let message = "recorded compressed by LZ4, which this build can't read: build onlyonce with the feature `lz4`";
        return Err(Error::undecodable(message));
    };
    let bytes = len as usize;
    let most = packed.len().saturating_mul(EXPANSION_MAX).min(RESULT_BYTES_MAX as usize);
    if bytes > most {
        return Err(Error::undecodable(format!(
            "a compressed result claims {bytes} bytes, and {} can't be more than {most}",
            packed.len()
        )));
    }
    let mut value = vec![0; bytes];
    match decode(packed, &mut value) {
        Some(filled) if filled == bytes => Ok(value),
        _ => Err(Error::undecodable(format!(
            "a compressed result of {} bytes is not the LZ4 of {bytes}",
            packed.len()
        ))),
    }
}

#[cfg(all(test, feature = "lz4"))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn what_does_not_get_shorter_is_not_packed() {
        let next =
            |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        let noise = std::iter::successors(Some(1), next).map(|state| (state >> 56) as u8);
        let noise: Vec<u8> = noise.take(4096).collect();
        for value in [&b""[..], b"x", &[7; 12], &noise] {
            assert_eq!(pack(value), None, "{} bytes", value.len());
        }
        let packed = pack(&[7; 4096]).unwrap();
        assert!(packed.len() < 64);
        assert_eq!(unpack(&packed, 4096).unwrap(), [7; 4096]);
    }

    /// The densest value reaches the limit on expansion, and stays below it.
    #[test]
    fn the_longest_result_is_unpacked() {
        let longest = vec![0; RESULT_BYTES_MAX as usize];
        let packed = pack(&longest).unwrap();
        assert!(packed.len() * EXPANSION_MAX >= longest.len());
        assert!(unpack(&packed, RESULT_BYTES_MAX).unwrap() == longest);
    }

    /// No memory is taken for these lengths.
    #[test]
    fn a_length_that_can_not_be_is_refused() {
        let packed = pack(&[7; 4096]).unwrap();
        for len in [0, 1, 4095, 4097, packed.len() as u32 * 255 + 1, RESULT_BYTES_MAX + 1, u32::MAX]
        {
            assert_eq!(unpack(&packed, len).unwrap_err().kind(), ErrorKind::Undecodable, "{len}");
        }
        // By the words, before there is a buffer: the decoder refuses them too, and only then.
        let claims = packed.len() as u32 * EXPANSION_MAX as u32 + 1;
        for (block, len) in [(&packed[..], claims), (&packed, u32::MAX), (b"", 1)] {
            let error = unpack(block, len).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Undecodable);
            assert!(error.to_string().contains("can't be more than"), "{error}");
        }
    }

    #[test]
    fn a_build_without_the_feature_says_which_it_lacks() {
        let error = unpack_by(None, &pack(&[7; 4096]).unwrap(), 4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Undecodable);
        assert!(error.to_string().contains("feature `lz4`"), "{error}");
    }

    proptest! {
        #[test]
        fn a_packed_value_is_unpacked_to_itself(parts in proptest::collection::vec((any::<u8>(), 0..300_usize), 0..30)) {
            let value: Vec<u8> = parts.iter().flat_map(|(byte, times)| vec![*byte; *times]).collect();
            if let Some(packed) = pack(&value) {
                prop_assert!(packed.len() < value.len());
                prop_assert_eq!(unpack(&packed, value.len() as u32).unwrap(), value);
            }
        }

        #[test]
        fn hostile_bytes_are_an_error_or_have_their_length(bytes in proptest::collection::vec(any::<u8>(), 0..200), len in 0..60_000_u32) {
            match unpack(&bytes, len) {
                Ok(value) => prop_assert_eq!(value.len(), len as usize),
                Err(e) => prop_assert_eq!(e.kind(), ErrorKind::Undecodable),
            }
        }
    }
}
