//! What an attempt saved of its progress, as a record carries it: the format of the value in six bytes, then its bytes.
//!
//! Never: knows what progress means; `protocol` decides which attempt is shown whose. Format: `docs/format.md`, "Key body".

use crate::limits::PROGRESS_BYTES_MAX;
use crate::value::{self, Format};
use crate::{Encode, Error, ErrorKind, Payload, Result};

/// Bytes of the format: codec and version.
const FORMAT_BYTES: usize = 6;

/// Encodes what is to be saved. `most`: the longest result, which no progress exceeds.
pub(super) fn encode<V: Encode + ?Sized>(value: &V, most: u32) -> Result<Vec<u8>> {
    let (format, bytes) = value::encode(value)?;
    let (codec, version) = format.to_stored()?;
    let most = (PROGRESS_BYTES_MAX - FORMAT_BYTES).min(most as usize);
    if bytes.len() > most {
        let message = format!(
            "progress of {} bytes, at most {most}: keep it elsewhere and save where",
            bytes.len()
        );
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    let mut out = Vec::with_capacity(FORMAT_BYTES + bytes.len());
    out.extend_from_slice(&codec.to_le_bytes());
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&bytes);
    Ok(out)
}

/// Reads it back. If this version doesn't know its format, the payload doesn't decode.
pub(super) fn decode(saved: &[u8]) -> Payload {
    let read = || {
        let (codec, rest) = saved.split_first_chunk::<2>()?;
        let (version, bytes) = rest.split_first_chunk::<4>()?;
        let format = Format::from_stored(u16::from_le_bytes(*codec), u32::from_le_bytes(*version));
        Some(Payload::new(bytes, format))
    };
    read().unwrap_or_else(|| Payload::unreadable("the saved progress has no format".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_back_as_it_was_saved() {
        for text in ["", "3 of 9"] {
            let saved = encode(text, 100).unwrap();
            assert_eq!(decode(&saved).decode::<String>().unwrap(), text);
        }
        let bytes = vec![7; PROGRESS_BYTES_MAX - FORMAT_BYTES];
        assert_eq!(&decode(&encode(&bytes, u32::MAX).unwrap())[..], bytes);
    }

    #[test]
    fn progress_over_a_limit_is_refused() {
        for (bytes, most) in [(101, 100), (PROGRESS_BYTES_MAX - FORMAT_BYTES + 1, u32::MAX)] {
            let error = encode(&vec![0; bytes], most).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooLarge, "{bytes} bytes");
        }
    }

    /// Hostile bytes, or those of a later version. The next attempt must not take it that nothing was saved.
    #[test]
    fn progress_that_no_format_explains_does_not_decode() {
        for saved in [&b""[..], b"\0", b"\0\0\0\0\0", &[9, 0, 0, 0, 0, 0, 1]] {
            let error = decode(saved).decode::<Vec<u8>>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Undecodable, "{saved:?}");
        }
    }
}
