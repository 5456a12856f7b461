//! What a command printed: as it is recorded, and replayed.
//!
//! The bytes are pieces, each with its stream (1: standard output, 2: standard error), its length as four bytes, the
//! lowest first, and its bytes. They come in the order in which they were read. The outcome's metadata say the rest.

use std::io::Write;

use onlyonce::value::{Codec, Format};
use onlyonce::{Decode, Encode, Error, Outcome, Payload, Recorded};
use serde::Serialize;

use crate::exit::{NO, Result};

/// Ours among the numbers that programs choose: "ro".
const CODEC: Codec = Codec::Custom(0x726f);
/// Names of metadata.
pub(crate) const EXIT_CODE: &str = "exit-code";
const DROPPED: &str = "dropped-bytes";
const HEADER_BYTES: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn number(self) -> u8 {
        match self {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        }
    }
}

/// What a command printed, up to a limit.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Recording {
    pieces: Vec<(Stream, Vec<u8>)>,
    /// Recorded so.
    bytes: usize,
    /// Beyond the limit.
    pub(crate) dropped: u64,
}

impl Recording {
    /// Appends what the command printed, as far as the limit allows. Once something was dropped nothing is appended any
    /// more: what is recorded has no gaps.
    pub(crate) fn push(&mut self, stream: Stream, bytes: &[u8], bytes_max: usize) {
        let is_new = self.pieces.last().is_none_or(|(last, _)| *last != stream);
        let header = if is_new { HEADER_BYTES } else { 0 };
        let space = bytes_max.saturating_sub(self.bytes + header);
        let space = if self.dropped > 0 { 0 } else { space };
        let (kept, dropped) = bytes.split_at(space.min(bytes.len()));
        self.dropped += dropped.len() as u64;
        if kept.is_empty() {
            return;
        }
        self.bytes += header + kept.len();
        match self.pieces.last_mut() {
            Some((last, piece)) if *last == stream => piece.extend_from_slice(kept),
            _ => self.pieces.push((stream, kept.to_vec())),
        }
    }

    pub(crate) fn of_output(bytes: Vec<u8>) -> Self {
        let mut recording = Recording::default();
        recording.push(Stream::Stdout, &bytes, usize::MAX);
        recording
    }

    pub(crate) fn pieces(&self) -> &[(Stream, Vec<u8>)] {
        &self.pieces
    }

    /// Without its bytes, all of which count as dropped: so it can be recorded on a full disk.
    pub(crate) fn emptied(&self) -> Recording {
        let printed: u64 = self.pieces.iter().map(|(_, piece)| piece.len() as u64).sum();
        Recording { pieces: Vec::new(), bytes: 0, dropped: self.dropped + printed }
    }

    /// The outcome of a command that ended with this exit code.
    pub(crate) fn outcome(&self, exit_code: u8) -> Outcome {
        let outcome = if exit_code == 0 { Outcome::success(self) } else { Outcome::failure(self) };
        let outcome = outcome.meta(EXIT_CODE, exit_code);
        if self.dropped > 0 { outcome.meta(DROPPED, self.dropped) } else { outcome }
    }
}

impl Encode for Recording {
    fn encode(&self, out: &mut Vec<u8>) -> onlyonce::Result<Format> {
        for (stream, piece) in &self.pieces {
            let length =
                u32::try_from(piece.len()).map_err(|_| Error::invalid("a piece over 4 GiB"))?;
            out.push(stream.number());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(piece);
        }
        Ok(Format { codec: CODEC, version: 0 })
    }
}

impl Decode for Recording {
    fn decode(payload: &Payload, format: Format) -> onlyonce::Result<Self> {
        if format != (Format { codec: CODEC, version: 0 }) {
            return Err(Error::undecodable("no output of a command"));
        }
        let mut recording = Recording::default();
        let mut rest: &[u8] = payload;
        while !rest.is_empty() {
            let (stream, piece, after) =
                piece(rest).ok_or_else(|| Error::undecodable("output of a command, cut"))?;
            recording.push(stream, piece, usize::MAX);
            rest = after;
        }
        Ok(recording)
    }
}

/// The first piece, and what follows it.
fn piece(bytes: &[u8]) -> Option<(Stream, &[u8], &[u8])> {
    let (stream, rest) = bytes.split_first()?;
    let stream = match stream {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        _ => return None,
    };
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (piece, rest) =
        rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    Some((stream, piece, rest))
}

/// A result of any type, as it is stored.
pub(crate) struct Raw {
    pub(crate) format: Format,
    pub(crate) bytes: Vec<u8>,
}

impl Decode for Raw {
    fn decode(payload: &Payload, format: Format) -> onlyonce::Result<Self> {
        Ok(Raw { format, bytes: payload.to_vec() })
    }
}

impl Encode for Raw {
    fn encode(&self, out: &mut Vec<u8>) -> onlyonce::Result<Format> {
        out.extend_from_slice(&self.bytes);
        Ok(self.format)
    }
}

/// What to replay of an outcome: what a command printed, or whatever else a program recorded, as the standard output.
pub(crate) fn replayed(done: &Recorded) -> Recording {
    let recording = done.decode::<Recording>();
    let mut recording = recording.unwrap_or_else(|_| Recording::of_output(done.result().to_vec()));
    recording.dropped = done.meta(DROPPED).and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    recording
}

/// The exit code to replay. What was recorded by another program has none: 0 if it was a success, otherwise 1.
pub(crate) fn exit_code(done: &Recorded, is_failure: bool) -> u8 {
    let recorded = done.meta(EXIT_CODE).and_then(|code| code.parse().ok());
    recorded.unwrap_or(if is_failure { NO } else { 0 })
}

/// Writes it to both streams, in the order as recorded.
pub(crate) fn replay(recording: &Recording) -> Result<()> {
    for (stream, piece) in &recording.pieces {
        match stream {
            Stream::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(piece)?;
                out.flush()?;
            }
            Stream::Stderr => std::io::stderr().lock().write_all(piece)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_recorded_up_to_its_limit_without_gaps() {
        let mut recording = Recording::default();
        recording.push(Stream::Stdout, b"abc", 18);
        recording.push(Stream::Stdout, b"d", 18);
        recording.push(Stream::Stderr, b"efghij", 18);
        recording.push(Stream::Stdout, b"kl", 18);
        assert_eq!(
            recording.pieces,
            [(Stream::Stdout, b"abcd".to_vec()), (Stream::Stderr, b"efgh".to_vec())]
        );
        let mut bytes = Vec::new();
        recording.encode(&mut bytes).unwrap();
        assert_eq!((bytes.len(), recording.dropped), (18, 4));
        assert_eq!(recording.emptied().dropped, 12);
    }
}
