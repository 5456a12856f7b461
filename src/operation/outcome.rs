//! How an attempt ended: [`Outcome`] for a result or a final failure, [`Abort`] for "nothing happened".
//!
//! Promises: building one never fails; [`Outcome::into_parts`] reports what is wrong with it (a value that won't encode, too
//! much metadata) when it is recorded, before anything is written.
//! Never: prints a result.

use std::fmt;
use std::time::Duration;

use super::policy::{check_retention, millis_up};
use crate::limits::{LABEL_BYTES_MAX, META_BYTES_MAX, META_COUNT_MAX};
use crate::value::packed::pack;
use crate::value::{Format, NOT_KEPT, encode};
use crate::{Decode, Encode, Error, ErrorKind, Payload, Result};

/// How an operation ended: a result or a final failure, with metadata.
///
/// `claim.complete(&v)` and `claim.fail(&v)` are the short forms. Every later claimant gets the recorded result or
/// failure, and a failure is never returned as a result.
///
/// Making an outcome only encodes the value. The call that records the outcome fails with `Invalid` if the value
/// doesn't encode, and with `TooLarge` if the result or the metadata exceeds a limit. The error then contains the claim
/// ([`Error::into_claim`]).
///
/// ```
/// use onlyonce::Outcome;
/// use std::time::Duration;
///
/// let created = Outcome::success("order 17 created")
///     .meta("status", 201)
///     .meta("content-type", "text/plain")
///     .retention(Duration::from_secs(86_400));
/// let declined = Outcome::failure("card expired").meta("status", 402);
/// ```
#[must_use = "an outcome is recorded only when a claim is given it"]
#[derive(Clone)]
pub struct Outcome {
    failure: bool,
    value: OutcomeValue,
    meta: Vec<(String, String)>,
    retention: Option<Duration>,
}

enum OutcomeValue {
    /// Encoded, or why it can't be.
    Encoded(Result<(Format, Vec<u8>)>),
    /// Not kept, for that reason.
    NotKept(String),
}

impl Clone for OutcomeValue {
    fn clone(&self) -> Self {
        match self {
            OutcomeValue::Encoded(Ok(encoded)) => OutcomeValue::Encoded(Ok(encoded.clone())),
            OutcomeValue::Encoded(Err(why)) => OutcomeValue::Encoded(Err(why.again())),
            OutcomeValue::NotKept(reason) => OutcomeValue::NotKept(reason.clone()),
        }
    }
}

/// An outcome that was checked: all that goes into its record.
#[derive(Debug)]
pub(crate) struct OutcomeParts {
    pub(crate) failure: bool,
    /// As stored: see [`Format`].
    pub(crate) codec: u16,
    pub(crate) version: u32,
    pub(crate) bytes: Vec<u8>,
    /// The bytes are compressed, and are this many without.
    pub(crate) packed: Option<u32>,
    /// Why no value is kept.
    pub(crate) missing: Option<String>,
    /// In the order given, encoded; a name may come several times.
    pub(crate) meta: Vec<u8>,
    /// `None`: as the policy says.
    pub(crate) retention_ms: Option<u64>,
}

/// How a store keeps results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keeping {
    /// The longest, before compression.
    pub(crate) result_bytes_max: u32,
    /// Longer ones are compressed; `None`: none is.
    pub(crate) compress_over: Option<u32>,
}

impl Outcome {
    /// Makes the outcome of work that was done, with `value` as its result.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid").meta("status", 201))?;
    /// assert!(matches!(store.claim("order-17")?, Claim::Completed(done) if &done.result()[..] == b"paid"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Cost
    /// Encodes the value into one growing allocation.
    pub fn success<V: Encode + ?Sized>(value: &V) -> Self {
        Outcome {
            failure: false,
            value: OutcomeValue::Encoded(encode(value)),
            meta: Vec::new(),
            retention: None,
        }
    }

    /// Makes the outcome of work that was done, without its result, because the result is too large, of no later use,
    /// or must not be written down.
    ///
    /// A later claim is answered `Completed`, and [`Recorded::missing`](crate::Recorded::missing) returns the reason
    /// why there is no result; a reason of more than 512 bytes is cut. Such an outcome always fits into the space that
    /// a claim reserves for its ending, so it can be recorded on a full disk, whatever the value of
    /// [`reserve_bytes`](crate::Policy::reserve_bytes).
    ///
    /// ```
    /// # use onlyonce::{Claim, ErrorKind, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("export-7")? else { unreachable!() };
    /// let rows = vec![0; 1 << 20];
    /// if let Some(claim) = claim.complete(&rows).unwrap_err().into_claim() {
    ///     claim.record(Outcome::without_result("a million rows").meta("rows", 1 << 20))?;
    /// }
    /// let Claim::Completed(done) = store.claim("export-7")? else { unreachable!() };
    /// assert_eq!(done.missing(), Some("a million rows"));
    /// assert_eq!(done.decode::<Vec<u8>>().unwrap_err().kind(), ErrorKind::NotKept);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn without_result(reason: impl Into<String>) -> Self {
        let value = OutcomeValue::NotKept(cut_label(reason.into()));
        Outcome { failure: false, value, meta: Vec::new(), retention: None }
    }

    /// Makes the outcome of work that failed for good, with `value` as the failure. A retry gets the failure and does
    /// not run.
    ///
    /// If the failure may be temporary, abort instead; but if the attempt may have had an effect, leave the attempt
    /// interrupted.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::failure("card expired").meta("status", 402))?;
    /// assert!(matches!(store.claim("order-17")?, Claim::Failed(failed) if failed.meta("status") == Some("402")));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Cost
    /// The cost of [`success`](Self::success).
    pub fn failure<V: Encode + ?Sized>(value: &V) -> Self {
        Outcome { failure: true, ..Outcome::success(value) }
    }

    /// Adds metadata under a name, such as a status or a header. A name may be given several times, as some headers of
    /// HTTP are: all its values are kept, in this order.
    ///
    /// [`Recorded::meta`](crate::Recorded::meta) returns the first value of a name, and
    /// [`Recorded::metas`](crate::Recorded::metas) all of them. An outcome has at most 64 entries, and at most 8 KiB of
    /// names and values together.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("created").meta("status", 201).meta("link", "/a").meta("link", "/b"))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!((done.meta("status"), done.meta("link")), (Some("201"), Some("/a")));
    /// assert!(done.metas().eq([("status", "201"), ("link", "/a"), ("link", "/b")]));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn meta(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.meta.push((name.into(), value.to_string()));
        self
    }

    /// Sets how long this outcome is kept, instead of the policy's [`retention`](crate::Policy::retention).
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # let Claim::Acquired(claim) = store.claim("quote")? else { unreachable!() };
    /// claim.record(Outcome::success("17.50").retention(Duration::from_secs(60)))?;
    /// assert!(matches!(store.claim("quote")?, Claim::Completed(_)));
    /// # sim.advance(Duration::from_secs(61));
    /// assert!(matches!(store.claim("quote")?, Claim::Acquired(_))); // a minute later
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// Whether it is recorded as a failure.
    pub(crate) fn is_failure(&self) -> bool {
        self.failure
    }

    /// The same outcome, whose result later runs will decode as `T`: refused if that fails. Checked in debug builds
    /// only, as a type of serde checks itself; this includes codecs of a program's own.
    pub(crate) fn replayed_as<T: Decode>(mut self) -> Self {
        if !cfg!(debug_assertions) || self.failure {
            return self;
        }
        if let OutcomeValue::Encoded(Ok((format, bytes))) = &self.value {
            if let Err(why) = Payload::new(bytes.clone(), *format).decode::<T>() {
                let name = std::any::type_name::<T>();
                let message = format!(
                    "the result does not decode as {name}, so it would never be replayed: {why}"
                );
                self.value = OutcomeValue::Encoded(Err(Error::not_decodable_again(message)));
            }
        }
        self
    }

    /// The same outcome, recorded as a failure whatever it was built as.
    pub(crate) fn into_failure(self) -> Self {
        Outcome { failure: true, ..self }
    }

    /// The reason why it can't be recorded, if there is one.
    pub(crate) fn refusal(&self, result_bytes_max: u32) -> Option<Error> {
        let kept = match &self.value {
            OutcomeValue::Encoded(Ok((_, bytes))) => check_size(bytes.len(), result_bytes_max),
            OutcomeValue::Encoded(Err(e)) => Err(e.again()),
            OutcomeValue::NotKept(_) => Ok(()),
        };
        let checked = kept.and_then(|()| check_meta(&self.meta));
        checked.and_then(|()| check_retention(self.retention.map(millis_up))).err()
    }

    /// Returns everything to record, or the reason why it can't be recorded.
    pub(crate) fn into_parts(self, keeping: Keeping) -> Result<OutcomeParts> {
        if let Some(e) = self.refusal(keeping.result_bytes_max) {
            return Err(e);
        }
        let ((codec, version), bytes, missing) = match self.value {
            OutcomeValue::Encoded(value) => {
                let (format, bytes) = value?;
                (format.to_stored()?, bytes, None)
            }
            OutcomeValue::NotKept(reason) => ((NOT_KEPT, 0), Vec::new(), Some(reason)),
        };
        let retention_ms = self.retention.map(millis_up);
        let (bytes, packed) = packed_over(keeping.compress_over, bytes);
        let meta = encode_meta(&self.meta);
        Ok(OutcomeParts {
            failure: self.failure,
            codec,
            version,
            bytes,
            packed,
            missing,
            meta,
            retention_ms,
        })
    }
}

/// The bytes to record, and the length of the value if they are compressed.
fn packed_over(compress_over: Option<u32>, bytes: Vec<u8>) -> (Vec<u8>, Option<u32>) {
    // Below the limit on results, which fits.
    let len = bytes.len() as u32;
    match compress_over {
        Some(over) if len > over => match pack(&bytes) {
            Some(packed) => (packed, Some(len)),
            None => (bytes, None),
        },
        _ => (bytes, None),
    }
}

fn check_size(bytes: usize, result_bytes_max: u32) -> Result<()> {
    if bytes > result_bytes_max as usize {
        let message = format!(
            "a result of {bytes} bytes, at most {result_bytes_max}: keep it elsewhere and record where, \
             or raise result_bytes_max"
        );
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    Ok(())
}

fn check_meta(meta: &[(String, String)]) -> Result<()> {
    if meta.len() > META_COUNT_MAX {
        let message = format!(
            "{} entries of metadata, at most {META_COUNT_MAX}: put them into the value",
            meta.len()
        );
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    let bytes: usize = meta.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > META_BYTES_MAX {
        let message =
            format!("{bytes} bytes of metadata, at most {META_BYTES_MAX}: put them into the value");
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    Ok(())
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of headers may be secrets.
        let names: Vec<&str> = self.meta.iter().map(|(name, _)| name.as_str()).collect();
        let mut out = f.debug_struct("Outcome");
        out.field("failure", &self.failure);
        match &self.value {
            OutcomeValue::Encoded(Ok((format, bytes))) => {
                out.field("format", format).field("bytes", &bytes.len())
            }
            OutcomeValue::Encoded(Err(error)) => out.field("error", error),
            OutcomeValue::NotKept(reason) => out.field("not kept", reason),
        };
        out.field("meta", &names).field("retention", &self.retention).finish()
    }
}

/// The ending of an attempt that had no effect, with the reason. The next claimant is granted the key, even with another
/// [`fingerprint`](crate::Operation::fingerprint): a request that had no effect may be corrected. If it must be the same
/// request, compare [`Attempt::fingerprint`](crate::Attempt::fingerprint) of the aborted attempt before the claim is made.
///
/// Text converts into an `Abort`: `claim.abort("busy")`. The reason is for people. A reason longer than 512 bytes is
/// cut, so that a long error message never prevents an abort.
///
/// ```
/// use onlyonce::Abort;
///
/// let why = Abort::new("the other side answered 503");
/// # let _ = why;
/// ```
#[must_use = "an abort does nothing until a claim is ended with it"]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Abort {
    reason: String,
    retry: Option<Duration>,
}

impl Abort {
    /// Makes an abort with this reason.
    ///
    /// ```
    /// # use onlyonce::{Abort, Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// claim.abort(Abort::new(format!("status {}", 503)))?;
    /// assert!(matches!(store.claim("mail-1")?, Claim::Acquired(again) if again.attempt() == 2));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn new(reason: impl Into<String>) -> Self {
        Abort { reason: cut_label(reason.into()), retry: None }
    }

    /// Makes the next attempt wait for so long: until then a claim is answered [`Delayed`](crate::Claim::Delayed). The delay
    /// is recorded with the abort, so it also holds after a restart.
    ///
    /// If an earlier attempt's fate is still open, the abort leads back to interrupted, and the delay has no effect: the next
    /// claimant decides.
    ///
    /// ```
    /// # use onlyonce::{Abort, Claim, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// # let Claim::Acquired(claim) = store.claim("mail-1")? else { unreachable!() };
    /// claim.abort(Abort::new("the server is busy").retry_in(Duration::from_secs(30)))?;
    /// assert!(matches!(store.claim("mail-1")?, Claim::Delayed(_)));
    /// # sim.advance(Duration::from_secs(30));
    /// assert!(matches!(store.claim("mail-1")?, Claim::Acquired(_))); // 30 s later
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn retry_in(mut self, delay: Duration) -> Self {
        self.retry = Some(delay);
        self
    }

    pub(crate) fn retry_ms(&self) -> Option<u64> {
        self.retry.map(millis_up)
    }

    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }
}

/// Cuts a label that is too long: labels are for people, so none is refused.
pub(crate) fn cut_label(mut label: String) -> String {
    label.truncate(floor_char_boundary(&label, LABEL_BYTES_MAX));
    label
}

/// The greatest index up to `bytes` that is a character boundary.
pub(crate) fn floor_char_boundary(text: &str, bytes: usize) -> usize {
    let mut place = bytes.min(text.len());
    // Index 0 is one.
    while !text.is_char_boundary(place) {
        place -= 1;
    }
    place
}

impl From<&str> for Abort {
    fn from(reason: &str) -> Self {
        Abort::new(reason)
    }
}

impl From<String> for Abort {
    fn from(reason: String) -> Self {
        Abort::new(reason)
    }
}

/// Metadata as a record carries it: for each name and value, a length in two bytes and the text.
fn encode_meta(meta: &[(String, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    for text in meta.iter().flat_map(|(name, value)| [name, value]) {
        // Checked together against a limit that fits two bytes.
        debug_assert!(text.len() <= META_BYTES_MAX);
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

/// Reads it back; `None` if the bytes are not such a list.
pub(crate) fn decode_meta(mut bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let mut meta = Vec::new();
    while !bytes.is_empty() {
        let name = take_text(&mut bytes)?;
        let value = take_text(&mut bytes)?;
        meta.push((name, value));
    }
    Some(meta)
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEPING: Keeping = Keeping { result_bytes_max: 1000, compress_over: None };

    fn kind(outcome: Outcome) -> Option<ErrorKind> {
        outcome.into_parts(KEEPING).err().map(|error| error.kind())
    }

    #[test]
    fn an_outcome_keeps_what_it_was_given() {
        let parts = Outcome::failure("declined")
            .meta("status", 402)
            .meta("a", "x")
            .meta("status", 403)
            .retention(Duration::from_micros(1500))
            .into_parts(KEEPING)
            .unwrap();
        let meta = [("status", "402"), ("a", "x"), ("status", "403")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(parts.failure);
        assert_eq!((parts.codec, parts.version, parts.bytes.as_slice()), (0, 0, &b"declined"[..]));
        assert_eq!(parts.missing, None);
        assert_eq!(decode_meta(&parts.meta).unwrap(), meta);
        assert_eq!(parts.retention_ms, Some(2));
        assert!(
            !Outcome::success(&())
                .into_parts(Keeping { result_bytes_max: 0, ..KEEPING })
                .unwrap()
                .failure
        );
        let parts = Outcome::without_result("r".repeat(600))
            .into_parts(Keeping { result_bytes_max: 0, ..KEEPING })
            .unwrap();
        assert_eq!((parts.codec, parts.bytes.len()), (NOT_KEPT, 0));
        assert_eq!(parts.missing, Some("r".repeat(LABEL_BYTES_MAX)));
    }

    /// For a second try, after the first was refused for want of space.
    #[test]
    fn a_clone_is_recorded_like_the_outcome() {
        struct Broken;
        impl Encode for Broken {
            fn encode(&self, _: &mut Vec<u8>) -> Result<Format> {
                Err(Error::invalid("on purpose"))
            }
        }
        let outcome = Outcome::success("paid").meta("status", 201);
        let [one, other] = [outcome.clone(), outcome].map(|it| it.into_parts(KEEPING).unwrap());
        assert_eq!((one.bytes, one.meta), (other.bytes, other.meta));
        let broken = Outcome::success(&Broken);
        let [one, other] = [broken.clone(), broken].map(|it| it.into_parts(KEEPING).unwrap_err());
        assert_eq!((one.kind(), one.to_string()), (ErrorKind::Invalid, other.to_string()));
    }

    #[test]
    fn an_outcome_over_a_limit_is_refused_when_recorded() {
        use ErrorKind::{Invalid, TooLarge};
        let many = |count: usize| {
            (0..count)
                .fold(Outcome::success(""), |outcome, name| outcome.meta(name.to_string(), ""))
        };
        let cases = [
            (Outcome::success(&[0; 1000]), None),
            (Outcome::success(&[0; 1001]), Some(TooLarge)),
            (many(META_COUNT_MAX), None),
            (many(META_COUNT_MAX + 1), Some(TooLarge)),
            (Outcome::success("").meta("n", "v".repeat(META_BYTES_MAX - 1)), None),
            (Outcome::success("").meta("n", "v".repeat(META_BYTES_MAX)), Some(TooLarge)),
            (Outcome::success("").retention(Duration::ZERO), Some(Invalid)),
        ];
        for (outcome, expected) in cases {
            let shown = format!("{outcome:?}");
            assert_eq!(kind(outcome), expected, "{shown}");
        }
    }

    #[test]
    fn a_value_that_does_not_encode_is_refused_when_recorded() {
        struct Broken;
        impl Encode for Broken {
            fn encode(&self, _out: &mut Vec<u8>) -> Result<Format> {
                Err(Error::invalid("broken"))
            }
        }
        struct NoRoom;
        impl Encode for NoRoom {
            fn encode(&self, _out: &mut Vec<u8>) -> Result<Format> {
                Ok(Format { codec: crate::value::Codec::Custom(u16::MAX), version: 0 })
            }
        }
        assert_eq!(kind(Outcome::success(&Broken).meta("a", 1)), Some(ErrorKind::Invalid));
        assert_eq!(kind(Outcome::success(&NoRoom)), Some(ErrorKind::Invalid));
    }

    #[test]
    fn debug_shows_no_contents() {
        let shown = format!("{:?}", Outcome::success("secret").meta("name", "hidden"));
        assert!(
            shown.contains("name") && !shown.contains("secret") && !shown.contains("hidden"),
            "{shown}"
        );
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "ü".repeat(LABEL_BYTES_MAX);
        assert_eq!(Abort::new(&reason).reason(), "ü".repeat(LABEL_BYTES_MAX / 2));
        assert_eq!(Abort::new(format!("x{reason}")).reason().len(), LABEL_BYTES_MAX - 1);
        assert_eq!(Abort::from("busy").reason(), "busy");
    }
}
