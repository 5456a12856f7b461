//! The bytes of one record: encode, decode, checksum. Pure, no I/O.
//!
//! Promises: a record that decodes was sealed for this store, this segment and this very LSN, and passed both
//! checksums; a header's lengths are used only after its own checksum holds. Hostile bytes are an error, never a panic.
//! Never: guesses or repairs. Format: `docs/format.md`, "Record".
//!
//! One record tells the whole state of its key: the newest by position is the state, and a copy needs no other record.

use zerocopy::byteorder::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::limits;
use crate::sync::Lazy;
use crate::types::{Lsn, Origin, SessionId, StoreId, StoreMillis, Token, WallMillis};

/// Records start at multiples of this, and are padded with zeros to it.
pub(crate) const ALIGN: usize = 8;

/// First two bytes of every record: "O1".
const MAGIC: u16 = u16::from_le_bytes(*b"O1");

/// Longest valid body: the longest result, key, labels and metadata, and the fixed fields.
pub(crate) const BODY_BYTES_MAX: usize = limits::RESULT_BYTES_MAX as usize
    + limits::KEY_BYTES_MAX
    + 3 * limits::LABEL_BYTES_MAX
    + limits::PROGRESS_BYTES_MAX
    + limits::META_BYTES_MAX
    + limits::ANNOUNCED_BYTES_MAX
    + 256;

/// First bytes of every record.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct RecordHeader {
    magic: U16,
    kind: u8,
    flags: u8,
    body_bytes: U32,
    watermark: U64,
    body_sum: U32,
    header_sum: U32,
}

/// Length of a record's header.
pub(crate) const HEADER_BYTES: usize = 24;
const _: () = assert!(size_of::<RecordHeader>() == HEADER_BYTES && HEADER_BYTES % ALIGN == 0);
/// Bytes of the header that its own checksum covers: all except the checksum.
const HEADER_SUMMED: usize = HEADER_BYTES - 4;

/// Bits of `RecordHeader::flags` above the detail.
const FLAG_DETAIL: u8 = 0x0f;
/// The token field says how far the token is ahead of the record's own LSN.
const FLAG_AHEAD: u8 = 0x10;
const FLAG_HOLD: u8 = 0x40;
const FLAG_COPY: u8 = 0x80;

/// The fixed part of the body of a record about a key; fields that are present follow in bit order.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct BodyHead {
    /// Low 24 bits: which fields are present. The next four: the kind of the key. The highest four: zero.
    fields: U32,
    key_bytes: U16,
    time: [u8; TIME_BYTES],
}

/// For a record's store time, which ends at `limits::STORE_MILLIS_MAX`.
const TIME_BYTES: usize = 6;
const _: () = assert!(limits::STORE_MILLIS_MAX >> (8 * TIME_BYTES) == 0);

const FIELDS: u32 = (1 << 24) - 1;
const KEY_KIND_SHIFT: u32 = 24;
const KEY_KIND_MAX: u32 = 0x0f;

const HAS_TOKEN: u32 = 1 << 0;
const HAS_LIFE: u32 = 1 << 1;
const HAS_OPEN_FATE: u32 = 1 << 2;
const HAS_ATTEMPT: u32 = 1 << 3;
const HAS_SINCE: u32 = 1 << 4;
const HAS_EXPIRY: u32 = 1 << 5;
const HAS_WALL: u32 = 1 << 6;
const HAS_FINGERPRINT: u32 = 1 << 7;
const HAS_LABELS: u32 = 1 << 8;
const HAS_FORMAT: u32 = 1 << 9;
const HAS_MEMORY: u32 = 1 << 10;
/// No field of its own: the memory is that of this record, not only of an older one.
const REMEMBERS: u32 = 1 << 11;
const HAS_LEASE: u32 = 1 << 12;
const HAS_LEASE_LENGTH: u32 = 1 << 13;
const HAS_RESERVE: u32 = 1 << 14;
const HAS_RETRY: u32 = 1 << 15;
const HAS_PACKED: u32 = 1 << 16;
const HAS_BY: u32 = 1 << 17;
const HAS_ANNOUNCED: u32 = 1 << 18;
const HAS_BEFORE_LAPSE: u32 = 1 << 19;
const HAS_ORIGIN: u32 = 1 << 20;
const HAS_TENURE: u32 = 1 << 21;
/// The fields that this version knows. The rest are for later versions, `docs/format.md`, "Fields to come": zero until
/// then.
const KNOWN: u32 = ((1 << 12) - 1) | RARE;
/// The fields of a [`Rare`].
const RARE: u32 = LEASE
    | HAS_RETRY
    | HAS_PACKED
    | HAS_BY
    | HAS_ANNOUNCED
    | HAS_BEFORE_LAPSE
    | HAS_ORIGIN
    | HAS_TENURE;
const LEASE: u32 = HAS_LEASE | HAS_LEASE_LENGTH | HAS_RESERVE;

/// Lengths of the labels, which follow it in this order.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Labels {
    owner: U16,
    reason: U16,
    progress: U16,
    meta: U16,
}

/// How a result's bytes are read.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct FormatField {
    codec: U16,
    version: U32,
}

/// The clocks at the time a note was written; see `clock`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct TimeField {
    /// All zeros: the system has none.
    pub(crate) boot_id: [u8; 16],
    pub(crate) boot_millis: U64,
    pub(crate) store_millis: U64,
    pub(crate) wall_millis: U64,
}

/// The kind that a record names. 0 is invalid, so zeros are never a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Claim = 1,
    Update = 2,
    End = 3,
    Forget = 4,
    Note = 6,
    SegmentEnd = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Kind::Claim,
            2 => Kind::Update,
            3 => Kind::End,
            4 => Kind::Forget,
            6 => Kind::Note,
            7 => Kind::SegmentEnd,
            _ => return None,
        })
    }

    pub(crate) fn is_about_key(self) -> bool {
        matches!(self, Kind::Claim | Kind::Update | Kind::End | Kind::Forget)
    }
}

/// How an attempt ended, or what was decided about it: the detail of a [`Kind::End`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Ending {
    Completed = 1,
    Failed = 2,
    Aborted = 3,
    Interrupted = 4,
    Held = 5,
}

impl Ending {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Ending::Completed,
            2 => Ending::Failed,
            3 => Ending::Aborted,
            4 => Ending::Interrupted,
            5 => Ending::Held,
            _ => return None,
        })
    }
}

/// What a checksum covers in addition to the bytes: their place. A record moved to another place is damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seal {
    pub(crate) store: StoreId,
    pub(crate) salt: u64,
}

impl Seal {
    fn suffix(&self, lsn: Lsn) -> [u8; 32] {
        let mut out = [0; 32];
        let (a, rest) = out.split_at_mut(8);
        let (b, c) = rest.split_at_mut(8);
        a.copy_from_slice(&lsn.get().to_le_bytes());
        b.copy_from_slice(&self.salt.to_le_bytes());
        c.copy_from_slice(&self.store.0);
        out
    }
}

/// Everything a record says of its key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Body<'a> {
    pub(crate) key_kind: u8,
    pub(crate) key: &'a [u8],
    /// Store time at which the record was made; for an ending, when the attempt ended.
    pub(crate) time: StoreMillis,
    /// The attempt's fencing token. `None`: the record's own LSN and `ahead`, as a claim's first record has it.
    pub(crate) token: Option<Token>,
    /// How far tokens ran ahead of LSNs when the record was placed; 0 where `token` is given.
    pub(crate) ahead: u64,
    /// Token of the key's first claim since it was absent. `None`: the token.
    pub(crate) life: Option<Token>,
    /// Token of the oldest attempt whose fate is open.
    pub(crate) open_fate: Option<Token>,
    pub(crate) attempt: u32,
    /// Attempts up to this one no longer count for `attempts_max`. An outcome has none: its bytes hold the version of
    /// the result there.
    pub(crate) forgiven: u32,
    /// When the attempt was claimed. `None`: `time`.
    pub(crate) since: Option<StoreMillis>,
    pub(crate) expires_at: Option<StoreMillis>,
    /// When the key's memory ends: that of this outcome once it has expired, if it `remembers`; otherwise that of an
    /// older outcome, which this record hides.
    pub(crate) memory_until: Option<StoreMillis>,
    pub(crate) remembers: bool,
    /// Wall time minus store time, where they have diverged by a second or more. Only shown.
    pub(crate) wall_offset: i64,
    pub(crate) fingerprint: Option<[u8; 16]>,
    /// Whether the attempt asked that its interruption be held.
    pub(crate) hold: bool,
    /// Empty if none was given, as the fields below.
    pub(crate) owner: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) progress: &'a [u8],
    /// Metadata of the outcome, as `outcome` encodes it.
    pub(crate) meta: &'a [u8],
    pub(crate) codec: u16,
    pub(crate) version: u32,
    pub(crate) result: &'a [u8],
    /// What few records have; `None`: nothing of it.
    pub(crate) rare: Option<Box<Rare<'a>>>,
}

/// What few records have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rare<'a> {
    /// Of a detached claim: when its lease passes, for how many milliseconds that was given, and how many bytes the claim
    /// reserves for its ending while it is attached.
    pub(crate) lease: Option<(StoreMillis, u64, u64)>,
    /// Until when an aborted key's next attempt has to wait.
    pub(crate) retry_at: Option<StoreMillis>,
    /// The result is compressed, and has this length without.
    pub(crate) packed: Option<u32>,
    /// The label of the claimant or operator whose word the state goes back to; empty: there is none.
    pub(crate) by: &'a str,
    /// The steps that were announced and had not ended.
    pub(crate) announced: Vec<AnnouncedStep<'a>>,
    /// The time of the record before, if this one only notes that a lease had passed.
    pub(crate) before_lapse: Option<StoreMillis>,
    /// The call that made the record, if it was another process's.
    pub(crate) origin: Option<Origin>,
    /// Of a claim that such a process has.
    pub(crate) tenure: Option<Tenure>,
}

/// How a claim is held that belongs to another process than the one that wrote its record: what the next process to write needs
/// to know in order to let the owner keep it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tenure {
    /// For how long its lease was given, in milliseconds; `None`: it has none.
    pub(crate) lease_millis: Option<u64>,
    /// Bytes of log space that it reserves for its ending.
    pub(crate) reserve: u64,
}

/// A step that was announced and had not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AnnouncedStep<'a> {
    pub(crate) name: &'a str,
    /// The fingerprint of its input.
    pub(crate) input: Option<[u8; 16]>,
}

/// Encodes steps: for each the length of its name in one byte, the name, one byte that says whether it has an input, and the
/// fingerprint of that.
fn encode_steps(steps: &[AnnouncedStep<'_>], out: &mut Vec<u8>) {
    for AnnouncedStep { name, input } in steps {
        debug_assert!(name.len() <= limits::STEP_NAME_BYTES_MAX, "{} bytes", name.len());
        out.push(name.len() as u8);
        out.extend_from_slice(name.as_bytes());
        out.push(input.is_some().into());
        out.extend_from_slice(input.as_ref().map_or(&[], |input| input));
    }
}

/// Reads them back; `None` if they are no steps.
fn decode_steps(mut rest: &[u8]) -> Option<Vec<AnnouncedStep<'_>>> {
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let len = take::<u8>(&mut rest)?;
        let name = std::str::from_utf8(slice(&mut rest, len.into())?).ok()?;
        let input = match take::<u8>(&mut rest)? {
            0 => None,
            1 => Some(take::<[u8; 16]>(&mut rest)?),
            _ => return None,
        };
        if name.is_empty() || steps.len() == limits::ANNOUNCED_MAX {
            return None;
        }
        steps.push(AnnouncedStep { name, input });
    }
    Some(steps)
}

impl Rare<'_> {
    fn fields(&self) -> u32 {
        let bit = |is: bool, bits: u32| u32::from(is) * bits;
        bit(self.lease.is_some(), HAS_LEASE | HAS_LEASE_LENGTH | HAS_RESERVE)
            | bit(self.retry_at.is_some(), HAS_RETRY)
            | bit(self.packed.is_some(), HAS_PACKED)
            | bit(!self.by.is_empty(), HAS_BY)
            | bit(!self.announced.is_empty(), HAS_ANNOUNCED)
            | bit(self.before_lapse.is_some(), HAS_BEFORE_LAPSE)
            | bit(self.origin.is_some(), HAS_ORIGIN)
            | bit(self.tenure.is_some(), HAS_TENURE)
    }

    #[cold]
    fn encode(&self, out: &mut Vec<u8>) {
        let lease = self.lease.map(|(until, millis, reserve)| [until.0, millis, reserve]);
        let numbers = lease.into_iter().flatten().chain(self.retry_at.map(|at| at.0));
        for number in numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        if let Some(len) = self.packed {
            out.extend_from_slice(&len.to_le_bytes());
        }
        let bytes_of = |step: &AnnouncedStep<'_>| {
            limits::announced_bytes(step.name.len(), step.input.is_some())
        };
        for len in [self.by.len(), self.announced.iter().map(bytes_of).sum()] {
            if len > 0 {
                out.extend_from_slice(two_bytes(len).as_bytes());
            }
        }
        encode_number(self.before_lapse.map(|time| time.0), out);
        if let Some(Origin { session, request, item }) = self.origin {
            encode_number(Some(session.get()), out);
            encode_number(Some(request), out);
            out.extend_from_slice(&item.to_le_bytes());
        }
        if let Some(Tenure { lease_millis, reserve }) = self.tenure {
            // No lease is that long in store time.
            encode_number(Some(lease_millis.unwrap_or(u64::MAX)), out);
            encode_number(Some(reserve), out);
        }
    }
}

/// Reads the fixed fields of a [`Rare`], and the lengths of its label and of its steps.
#[cold]
fn decode_rare<'a>(fields: u32, rest: &mut &[u8]) -> Option<(Rare<'a>, [u16; 2])> {
    let (mut rare, mut lengths) = (Rare::default(), [0, 0]);
    let number = |rest: &mut &[u8]| take::<U64>(rest).map(|number| number.get());
    match fields & LEASE {
        0 => {}
        LEASE => rare.lease = Some((StoreMillis(number(rest)?), number(rest)?, number(rest)?)),
        // A detached claim has all three, and every other record none.
        _ => return None,
    }
    if fields & HAS_RETRY != 0 {
        rare.retry_at = Some(StoreMillis(number(rest)?));
    }
    if fields & HAS_PACKED != 0 {
        let len = take::<U32>(rest).map(|len| len.get());
        rare.packed = Some(len.filter(|len| *len <= limits::RESULT_BYTES_MAX)?);
    }
    for (bit, length) in [HAS_BY, HAS_ANNOUNCED].into_iter().zip(&mut lengths) {
        if fields & bit != 0 {
            *length = take::<U16>(rest).map(|len| len.get()).filter(|len| *len > 0)?;
        }
    }
    if fields & HAS_BEFORE_LAPSE != 0 {
        rare.before_lapse = Some(StoreMillis(number(rest)?));
    }
    if fields & HAS_ORIGIN != 0 {
        let (session, request) = (SessionId::new(number(rest)?)?, number(rest)?);
        let item = take::<U32>(rest)?.get();
        rare.origin = Some(Origin { session, request, item });
    }
    if fields & HAS_TENURE != 0 {
        let lease_millis = Some(number(rest)?).filter(|millis| *millis < u64::MAX);
        rare.tenure = Some(Tenure { lease_millis, reserve: number(rest)? });
    }
    Some((rare, lengths))
}

impl Body<'_> {
    /// The attempt's fencing token, for a record at `lsn`.
    pub(crate) fn token_at(&self, lsn: Lsn) -> Token {
        self.token.unwrap_or(lsn.token(self.ahead))
    }

    fn says_ahead(&self) -> bool {
        self.token.is_none() && self.ahead > 0
    }
}

/// A record ready to be placed: its body is encoded and summed, so that little is left to do under the log's lock. Its
/// place is added last.
pub(crate) struct Draft {
    kind: Kind,
    flags: u8,
    /// Space for the header, the body, padding.
    bytes: Vec<u8>,
    body_bytes: u32,
    body_sum: crc32fast::Hasher,
}

impl Draft {
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn claim(body: &Body<'_>) -> Self {
        Draft::about_key(Kind::Claim, None, body)
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn update(body: &Body<'_>) -> Self {
        Draft::about_key(Kind::Update, None, body)
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn end(ending: Ending, body: &Body<'_>) -> Self {
        Draft::about_key(Kind::End, Some(ending), body)
    }

    pub(crate) fn forget(body: &Body<'_>) -> Self {
        Draft::about_key(Kind::Forget, None, body)
    }

    /// A note carries the watermark in its header, and the clocks if `time` is given.
    pub(crate) fn note(time: Option<&TimeField>) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        if let Some(time) = time {
            bytes.extend_from_slice(time.as_bytes());
        }
        Draft::finish(Kind::Note, 0, bytes)
    }

    pub(crate) fn segment_end() -> Self {
        Draft::finish(Kind::SegmentEnd, 0, vec![0; HEADER_BYTES])
    }

    /// The same record for another place: `token` and `life` are spelled out, since a copy's LSN is not its token.
    pub(crate) fn copy(record: &Record<'_>, body: &Body<'_>) -> Self {
        let token = body.token_at(record.lsn);
        let life = Some(body.life.unwrap_or(token));
        let body = Body { token: Some(token), ahead: 0, life, ..body.clone() };
        let mut draft = Draft::about_key(record.kind, record.ending(), &body);
        draft.flags |= FLAG_COPY;
        draft
    }

    /// The same, moved by compaction. The original is about to be removed, so this must not be taken for a recovery's
    /// copy.
    pub(crate) fn moved(record: &Record<'_>, body: &Body<'_>) -> Self {
        let mut draft = Draft::copy(record, body);
        draft.flags &= !FLAG_COPY;
        draft
    }

    /// A record of that kind. Inlined, so that a body that is made up for it is never put together in memory.
    #[inline(always)]
    pub(crate) fn about_key(kind: Kind, ending: Option<Ending>, body: &Body<'_>) -> Self {
        let detail = ending.map_or(0, |ending| ending as u8);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 80 + body.key.len() + body.result.len());
        bytes.resize(HEADER_BYTES, 0);
        encode_body(body, &mut bytes);
        let hold = if body.hold { FLAG_HOLD } else { 0 };
        let ahead = if body.says_ahead() { FLAG_AHEAD } else { 0 };
        Draft::finish(kind, detail | hold | ahead, bytes)
    }

    fn finish(kind: Kind, flags: u8, mut bytes: Vec<u8>) -> Self {
        let (_, body) = bytes.split_at(HEADER_BYTES);
        // Readers refuse a longer one.
        debug_assert!(body.len() <= BODY_BYTES_MAX, "{} bytes", body.len());
        let body_bytes = body.len() as u32;
        let mut body_sum = new_sum();
        body_sum.update(body);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        Draft { kind, flags, bytes, body_bytes, body_sum }
    }

    /// A hash of its content, independent of its place.
    pub(crate) fn content(&self) -> u128 {
        use std::hash::Hasher;
        let mut hasher = siphasher::sip128::SipHasher13::new();
        hasher.write_u8(self.kind as u8);
        hasher.write_u8(self.flags);
        hasher.write(self.body());
        siphasher::sip128::Hasher128::finish128(&hasher).as_u128()
    }

    /// Its body with padding: everything except the header, for which there is space before.
    fn body(&self) -> &[u8] {
        self.bytes.split_at(HEADER_BYTES).1
    }

    /// Bytes it takes in the log, padding included.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Appends the finished record to `out`.
    pub(crate) fn seal(self, out: &mut Vec<u8>, lsn: Lsn, watermark: Lsn, seal: &Seal) {
        debug_assert!(watermark <= lsn && lsn.get() % ALIGN as u64 == 0, "{watermark} at {lsn}");
        let suffix = seal.suffix(lsn);
        let mut body_sum = self.body_sum;
        body_sum.update(&suffix);
        let mut header = RecordHeader {
            magic: MAGIC.into(),
            kind: self.kind as u8,
            flags: self.flags,
            body_bytes: self.body_bytes.into(),
            watermark: watermark.get().into(),
            body_sum: body_sum.finalize().into(),
            header_sum: 0.into(),
        };
        header.header_sum = header_sum(new_sum(), &header, &suffix).into();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(self.bytes.split_at(HEADER_BYTES).1);
    }
}

/// The checksum of nothing, to be updated. It is a copy: one that is made anew queries the processor's features.
fn new_sum() -> crc32fast::Hasher {
    static SUM: Lazy<crc32fast::Hasher> = Lazy::new(crc32fast::Hasher::new);
    SUM.get().clone()
}

fn header_sum(mut sum: crc32fast::Hasher, header: &RecordHeader, suffix: &[u8; 32]) -> u32 {
    let mut input = [0; HEADER_SUMMED + 32];
    let (front, back) = input.split_at_mut(HEADER_SUMMED);
    front.copy_from_slice(header.as_bytes().split_at(HEADER_SUMMED).0);
    back.copy_from_slice(suffix);
    sum.update(&input);
    sum.finalize()
}

/// A record as read from the log, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) lsn: Lsn,
    pub(crate) kind: Kind,
    detail: u8,
    hold: bool,
    is_ahead: bool,
    /// Made by a recovery from an original that its own manifest switch removed from the list.
    pub(crate) is_copy: bool,
    pub(crate) watermark: Lsn,
    body: &'a [u8],
}

/// Why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bad {
    /// Fewer bytes than a header, or than its header says.
    Short,
    /// Doesn't begin with the magic bytes.
    NoHeader,
    HeaderSum,
    /// The header's checksum holds, but a field is impossible.
    HeaderFields,
    BodySum,
    /// The checksums hold, but the body does not parse.
    BodyFields,
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Bad::Short => "a record cut short",
            Bad::NoHeader => "no record",
            Bad::HeaderSum => "a record header that fails its checksum",
            Bad::HeaderFields => "a record header with impossible fields",
            Bad::BodySum => "a record body that fails its checksum",
            Bad::BodyFields => "a record body with impossible fields",
        })
    }
}

/// A header whose checksum holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    flags: u8,
    pub(crate) watermark: Lsn,
    body_bytes: usize,
    body_sum: u32,
}

impl Head {
    /// Bytes the whole record takes, padding included.
    pub(crate) fn len(&self) -> usize {
        HEADER_BYTES + self.body_bytes.next_multiple_of(ALIGN)
    }
}

/// Reads the header at the start of `bytes`.
pub(crate) fn parse_head(bytes: &[u8], lsn: Lsn, seal: &Seal) -> Result<Head, Bad> {
    let (header, _) = RecordHeader::read_from_prefix(bytes).map_err(|_| Bad::Short)?;
    if header.magic.get() != MAGIC {
        return Err(Bad::NoHeader);
    }
    if header.header_sum.get() != header_sum(new_sum(), &header, &seal.suffix(lsn)) {
        return Err(Bad::HeaderSum);
    }
    let kind = Kind::from_byte(header.kind).ok_or(Bad::HeaderFields)?;
    let detail = header.flags & FLAG_DETAIL;
    let detail_fits = match kind {
        Kind::End => Ending::from_byte(detail).is_some(),
        _ => detail == 0,
    };
    let flags_known = header.flags & !(FLAG_DETAIL | FLAG_AHEAD | FLAG_HOLD | FLAG_COPY) == 0
        && (header.flags & FLAG_AHEAD == 0 || kind.is_about_key());
    let watermark = Lsn::new(header.watermark.get());
    let body_bytes = header.body_bytes.get() as usize;
    // A watermark covers what was durable before the record was placed; it can't reach past the record.
    if !detail_fits || !flags_known || watermark > lsn || body_bytes > BODY_BYTES_MAX {
        return Err(Bad::HeaderFields);
    }
    Ok(Head { kind, flags: header.flags, watermark, body_bytes, body_sum: header.body_sum.get() })
}

impl<'a> Record<'a> {
    /// Reads the record at the start of `bytes`.
    pub(crate) fn parse(bytes: &'a [u8], lsn: Lsn, seal: &Seal) -> Result<Self, Bad> {
        Record::behind(parse_head(bytes, lsn, seal)?, bytes, lsn, seal)
    }

    /// The same, for bytes whose header is `head`.
    pub(crate) fn behind(head: Head, bytes: &'a [u8], lsn: Lsn, seal: &Seal) -> Result<Self, Bad> {
        let padded = bytes.get(HEADER_BYTES..head.len()).ok_or(Bad::Short)?;
        let (body, padding) = padded.split_at_checked(head.body_bytes).ok_or(Bad::Short)?;
        let mut sum = new_sum();
        sum.update(body);
        sum.update(&seal.suffix(lsn));
        if sum.finalize() != head.body_sum || padding.iter().any(|&byte| byte != 0) {
            return Err(Bad::BodySum);
        }
        Ok(Record {
            lsn,
            kind: head.kind,
            detail: head.flags & FLAG_DETAIL,
            hold: head.flags & FLAG_HOLD != 0,
            is_ahead: head.flags & FLAG_AHEAD != 0,
            is_copy: head.flags & FLAG_COPY != 0,
            watermark: head.watermark,
            body,
        })
    }

    /// Bytes it takes in the log, padding included.
    pub(crate) fn len(&self) -> u64 {
        (HEADER_BYTES + self.body.len().next_multiple_of(ALIGN)) as u64
    }

    /// Where the last `len` bytes of its body begin, counted from its first byte: a result ends the body.
    pub(crate) fn tail_at(&self, len: usize) -> Option<usize> {
        self.body.len().checked_sub(len).map(|before| HEADER_BYTES + before)
    }

    /// How the attempt ended, for a [`Kind::End`].
    pub(crate) fn ending(&self) -> Option<Ending> {
        if self.kind == Kind::End { Ending::from_byte(self.detail) } else { None }
    }

    /// What the record says of its key; an error for a record without a key.
    // Inlined with what it calls: a body is large to move, and every replay reads one.
    #[inline]
    pub(crate) fn body(&self) -> Result<Body<'a>, Bad> {
        if !self.kind.is_about_key() {
            return Err(Bad::BodyFields);
        }
        let mut body = decode_body(self.body).ok_or(Bad::BodyFields)?;
        body.hold = self.hold;
        if !matches!(self.ending(), Some(Ending::Completed | Ending::Failed)) {
            body.forgiven = std::mem::take(&mut body.version);
            // No more than there were attempts, and a codec only with a result.
            if body.forgiven > body.attempt || body.codec != 0 {
                return Err(Bad::BodyFields);
            }
        }
        if let Some(rare) = &body.rare {
            let is_claimed = matches!(self.kind, Kind::Claim | Kind::Update);
            let is_aborted = self.ending() == Some(Ending::Aborted);
            let is_outcome = matches!(self.ending(), Some(Ending::Completed | Ending::Failed));
            if rare.lease.is_some() && !is_claimed
                || !rare.announced.is_empty() && (is_aborted || is_outcome)
                || rare.retry_at.is_some() && !is_aborted
                || rare.packed.is_some() && !is_outcome
                || rare.before_lapse.is_some() && self.ending() != Some(Ending::Interrupted)
                || rare.tenure.is_some() && !(is_claimed && rare.origin.is_some())
            {
                return Err(Bad::BodyFields);
            }
        }
        if self.is_ahead {
            let ahead = body.token.take().filter(|ahead| ahead.0 > 0).ok_or(Bad::BodyFields)?;
            let token = self.lsn.get().checked_add(ahead.0);
            if token.is_none_or(|token| token > limits::LSN_MAX) {
                return Err(Bad::BodyFields);
            }
            body.ahead = ahead.0;
        }
        Ok(body)
    }

    /// The clocks of a note that carries them.
    pub(crate) fn time(&self) -> Result<Option<TimeField>, Bad> {
        match (self.kind, self.body) {
            (Kind::Note, []) => Ok(None),
            (Kind::Note, body) => {
                TimeField::read_from_bytes(body).map(Some).map_err(|_| Bad::BodyFields)
            }
            _ => Err(Bad::BodyFields),
        }
    }
}

/// The length of a key or a label: the limit of each fits two bytes.
fn two_bytes(len: usize) -> U16 {
    debug_assert!(len <= usize::from(u16::MAX), "{len} bytes");
    U16::new(len as u16)
}

#[inline(always)]
fn encode_body(body: &Body<'_>, out: &mut Vec<u8>) {
    let labels = [body.owner.as_bytes(), body.reason.as_bytes(), body.progress, body.meta];
    let has_labels = labels.iter().any(|label| !label.is_empty());
    debug_assert!(body.forgiven == 0 || (body.codec, body.version) == (0, 0), "one or the other");
    let version = if body.forgiven == 0 { body.version } else { body.forgiven };
    let has_format = (body.codec, version) != (0, 0);
    let attempt = body.attempt;
    let token = if body.says_ahead() { Some(Token(body.ahead)) } else { body.token };
    let bit = |is: bool, bit: u32| u32::from(is) * bit;
    let fields = bit(token.is_some(), HAS_TOKEN)
        | bit(body.life.is_some(), HAS_LIFE)
        | bit(body.open_fate.is_some(), HAS_OPEN_FATE)
        | bit(attempt != 1, HAS_ATTEMPT)
        | bit(body.since.is_some(), HAS_SINCE)
        | bit(body.expires_at.is_some(), HAS_EXPIRY)
        | bit(body.wall_offset != 0, HAS_WALL)
        | bit(body.fingerprint.is_some(), HAS_FINGERPRINT)
        | bit(has_labels, HAS_LABELS)
        | bit(has_format, HAS_FORMAT)
        | bit(body.memory_until.is_some(), HAS_MEMORY)
        | bit(body.memory_until.is_some() && body.remembers, REMEMBERS)
        | body.rare.as_ref().map_or(0, |rare| rare.fields());
    let head = BodyHead {
        fields: (fields | u32::from(body.key_kind) << KEY_KIND_SHIFT).into(),
        key_bytes: two_bytes(body.key.len()),
        time: time_bytes(body.time),
    };
    out.extend_from_slice(head.as_bytes());
    for token in [token, body.life, body.open_fate] {
        encode_number(token.map(|token| token.0), out);
    }
    if attempt != 1 {
        out.extend_from_slice(&attempt.to_le_bytes());
    }
    for time in [body.since, body.expires_at] {
        encode_number(time.map(|time| time.0), out);
    }
    if body.wall_offset != 0 {
        out.extend_from_slice(&body.wall_offset.to_le_bytes());
    }
    if let Some(fingerprint) = &body.fingerprint {
        out.extend_from_slice(fingerprint);
    }
    if has_labels {
        let [owner, reason, progress, meta] = labels.map(|label| two_bytes(label.len()));
        out.extend_from_slice(Labels { owner, reason, progress, meta }.as_bytes());
    }
    if has_format {
        let format = FormatField { codec: body.codec.into(), version: version.into() };
        out.extend_from_slice(format.as_bytes());
    }
    if let Some(until) = body.memory_until {
        out.extend_from_slice(&until.0.to_le_bytes());
    }
    if let Some(rare) = &body.rare {
        rare.encode(out);
    }
    out.extend_from_slice(body.key);
    if has_labels {
        for label in labels {
            out.extend_from_slice(label);
        }
    }
    if let Some(rare) = &body.rare {
        out.extend_from_slice(rare.by.as_bytes());
        encode_steps(&rare.announced, out);
    }
    out.extend_from_slice(body.result);
}

#[inline(always)]
fn encode_number(number: Option<u64>, out: &mut Vec<u8>) {
    if let Some(number) = number {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// The clock never returns a later time than these bytes hold.
fn time_bytes(time: StoreMillis) -> [u8; TIME_BYTES] {
    debug_assert!(time.0 <= limits::STORE_MILLIS_MAX, "a time past the end of store time");
    let [a, b, c, d, e, f, ..] = time.0.to_le_bytes();
    [a, b, c, d, e, f]
}

#[inline]
fn decode_body(bytes: &[u8]) -> Option<Body<'_>> {
    let (head, mut rest) = BodyHead::read_from_prefix(bytes).ok()?;
    let (fields, key_kind) = (head.fields.get() & FIELDS, head.fields.get() >> KEY_KIND_SHIFT);
    let has = |bit| fields & bit != 0;
    if fields & !KNOWN != 0 || key_kind > KEY_KIND_MAX || has(REMEMBERS) && !has(HAS_MEMORY) {
        return None;
    }
    let [a, b, c, d, e, f] = head.time;
    let mut body = Body {
        key_kind: u8::try_from(key_kind).ok()?,
        time: StoreMillis(u64::from_le_bytes([a, b, c, d, e, f, 0, 0])),
        attempt: 1,
        ..Body::default()
    };
    if has(HAS_TOKEN) {
        body.token = Some(token(&mut rest)?);
    }
    if has(HAS_LIFE) {
        body.life = Some(token(&mut rest)?);
    }
    if has(HAS_OPEN_FATE) {
        body.open_fate = Some(token(&mut rest)?);
    }
    if has(HAS_ATTEMPT) {
        body.attempt = take::<U32>(&mut rest)?.get();
    }
    if has(HAS_SINCE) {
        body.since = Some(StoreMillis(take::<U64>(&mut rest)?.get()));
    }
    if has(HAS_EXPIRY) {
        body.expires_at = Some(StoreMillis(take::<U64>(&mut rest)?.get()));
    }
    if has(HAS_WALL) {
        body.wall_offset = take::<I64>(&mut rest)?.get();
    }
    if has(HAS_FINGERPRINT) {
        body.fingerprint = Some(take::<[u8; 16]>(&mut rest)?);
    }
    let labels = if has(HAS_LABELS) { Some(take::<Labels>(&mut rest)?) } else { None };
    if has(HAS_FORMAT) {
        let format = take::<FormatField>(&mut rest)?;
        (body.codec, body.version) = (format.codec.get(), format.version.get());
    }
    if has(HAS_MEMORY) {
        body.memory_until = Some(StoreMillis(take::<U64>(&mut rest)?.get()));
        body.remembers = has(REMEMBERS);
    }
    let rare = if has(RARE) { Some(decode_rare(fields, &mut rest)?) } else { None };
    body.key = slice(&mut rest, head.key_bytes.get())?;
    if let Some(labels) = labels {
        body.owner = std::str::from_utf8(slice(&mut rest, labels.owner.get())?).ok()?;
        body.reason = std::str::from_utf8(slice(&mut rest, labels.reason.get())?).ok()?;
        body.progress = slice(&mut rest, labels.progress.get())?;
        body.meta = slice(&mut rest, labels.meta.get())?;
    }
    if let Some((mut rare, [by, announced])) = rare {
        rare.by = std::str::from_utf8(slice(&mut rest, by)?).ok()?;
        rare.announced = decode_steps(slice(&mut rest, announced)?)?;
        body.rare = Some(Box::new(rare));
    }
    body.result = rest;
    Some(body)
}

fn take<T: FromBytes>(rest: &mut &[u8]) -> Option<T> {
    let (value, behind) = T::read_from_prefix(rest).ok()?;
    *rest = behind;
    Some(value)
}

fn token(rest: &mut &[u8]) -> Option<Token> {
    take::<U64>(rest).map(|value| Token(value.get())).filter(|token| token.0 <= limits::LSN_MAX)
}

fn slice<'a>(rest: &mut &'a [u8], len: u16) -> Option<&'a [u8]> {
    let (front, behind) = rest.split_at_checked(len.into())?;
    *rest = behind;
    Some(front)
}

impl TimeField {
    pub(crate) fn store(&self) -> StoreMillis {
        StoreMillis(self.store_millis.get())
    }

    pub(crate) fn wall(&self) -> WallMillis {
        WallMillis(self.wall_millis.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEAL: Seal = Seal { store: StoreId([7; 16]), salt: 0x0123_4567_89ab_cdef };
    const AT: Lsn = Lsn::new(1 << 40);

    fn sealed(draft: Draft) -> Vec<u8> {
        let mut out = Vec::new();
        let len = draft.len();
        draft.seal(&mut out, AT, Lsn::new(8), &SEAL);
        assert_eq!(out.len() as u64, len);
        out
    }

    fn full_body() -> Body<'static> {
        Body {
            key_kind: 3,
            key: b"order-17",
            time: StoreMillis(1_700_000_000_123),
            token: Some(Token(99)),
            ahead: 0,
            life: Some(Token(98)),
            open_fate: Some(Token(97)),
            attempt: 4,
            forgiven: 0,
            since: Some(StoreMillis(1_700_000_000_000)),
            expires_at: Some(StoreMillis(1_800_000_000_000)),
            memory_until: Some(StoreMillis(1_900_000_000_000)),
            remembers: true,
            wall_offset: -5000,
            fingerprint: Some(*b"0123456789abcdef"),
            hold: true,
            owner: "host-3",
            reason: "lease passed",
            progress: b"3 of 9",
            meta: b"\x01",
            codec: 1,
            version: 2,
            result: b"paid",
            rare: None,
        }
    }

    #[test]
    fn a_body_decodes_to_what_was_encoded() {
        let bytes = sealed(Draft::end(Ending::Failed, &full_body()));
        let record = Record::parse(&bytes, AT, &SEAL).unwrap();
        assert_eq!(record.ending(), Some(Ending::Failed));
        assert_eq!(record.body().unwrap(), full_body());
        let held = Body { codec: 0, version: 0, forgiven: 4, ..full_body() };
        let bytes = sealed(Draft::end(Ending::Held, &held));
        let record = Record::parse(&bytes, AT, &SEAL).unwrap();
        assert_eq!(record.ending(), Some(Ending::Held));
        assert_eq!(record.body().unwrap(), held);
        let bytes = sealed(Draft::moved(&record, &held));
        assert_eq!(Record::parse(&bytes, AT, &SEAL).unwrap().body().unwrap(), held);
        let bare = Body { attempt: 1, key: b"k", ..Body::default() };
        let bytes = sealed(Draft::claim(&bare));
        assert_eq!(Record::parse(&bytes, AT, &SEAL).unwrap().body().unwrap(), bare);
    }

    #[test]
    fn the_fields_of_words_delays_and_detached_claims_are_read_back() {
        let none = Body { codec: 0, version: 0, remembers: false, ..full_body() };
        let at = StoreMillis(1_800_000_000_000);
        let rare =
            |lease, retry_at, by| Some(Box::new(Rare { lease, retry_at, by, ..Rare::default() }));
        let detached = Body { rare: rare(Some((at, 60_000, 4500)), None, ""), ..none.clone() };
        let delayed = Body { rare: rare(None, Some(at), "ann"), ..none.clone() };
        let by_ann = rare(None, None, "ann");
        let held = Body { rare: by_ann, owner: "", reason: "", progress: &[], meta: &[], ..none };
        for (draft, body) in [
            (Draft::claim(&detached), &detached),
            (Draft::update(&detached), &detached),
            (Draft::end(Ending::Aborted, &delayed), &delayed),
            (Draft::end(Ending::Held, &held), &held),
        ] {
            let bytes = sealed(draft);
            let record = Record::parse(&bytes, AT, &SEAL).unwrap();
            assert_eq!(record.body().as_ref(), Ok(body));
            let moved = sealed(Draft::moved(&record, body));
            assert_eq!(Record::parse(&moved, AT, &SEAL).unwrap().body().as_ref(), Ok(body));
        }
    }

    /// It comes after the lengths of the word's label and of the names, in bit order.
    #[test]
    fn the_time_of_the_record_before_a_lapse_is_read_back() {
        let send = vec![AnnouncedStep { name: "send", input: None }];
        let lapse = |by, announced| {
            let before_lapse = Some(StoreMillis(0x0102_0304_0506));
            let rare = Some(Box::new(Rare { by, announced, before_lapse, ..Rare::default() }));
            Body { codec: 0, version: 0, remembers: false, rare, ..full_body() }
        };
        for body in [lapse("", Vec::new()), lapse("ann", send.clone())] {
            let bytes = sealed(Draft::end(Ending::Interrupted, &body));
            let record = Record::parse(&bytes, AT, &SEAL).unwrap();
            assert_eq!(record.body().as_ref(), Ok(&body));
            let moved = sealed(Draft::moved(&record, &body));
            assert_eq!(Record::parse(&moved, AT, &SEAL).unwrap().body().as_ref(), Ok(&body));
        }
        let mut bytes = Vec::new();
        encode_body(&Body { key: b"k", ..lapse("ann", send) }, &mut bytes);
        let field = [3, 0, 6, 0, 6, 5, 4, 3, 2, 1, 0, 0, b'k'];
        let found = bytes.windows(field.len()).any(|bytes| bytes == field);
        assert!(found, "{}", hex(&bytes));
        assert_eq!(bytes[2] & 0b1110, 0b1110, "bits 17 to 19");
    }

    /// They come last of the fixed fields, in bit order, and each kind of record may have an origin.
    #[test]
    fn an_origin_and_a_tenure_are_read_back() {
        let origin = Origin { session: SessionId::new(0x0807).unwrap(), request: 6, item: 5 };
        let of = |lease_millis, by| {
            let tenure = Some(Tenure { lease_millis, reserve: 0x0102 });
            let rare = Rare { by, origin: Some(origin), tenure, ..Rare::default() };
            Body { codec: 0, version: 0, remembers: false, rare: Some(rare.into()), ..full_body() }
        };
        let check = |draft: Draft, rare: Result<&Option<Box<Rare<'_>>>, Bad>| {
            let bytes = sealed(draft);
            let body = Record::parse(&bytes, AT, &SEAL).unwrap().body();
            assert_eq!(body.as_ref().map(|body| &body.rare), rare.as_ref().copied());
        };
        for body in [of(None, ""), of(Some(1), "ann"), of(Some(u64::MAX - 1), "")] {
            check(Draft::claim(&body), Ok(&body.rare));
            check(Draft::update(&body), Ok(&body.rare));
            // It has no owner that could keep it.
            check(Draft::end(Ending::Held, &body), Err(Bad::BodyFields));
            let by_host = Rare { origin: None, ..*body.rare.clone().unwrap() };
            let body = Body { rare: Some(by_host.into()), ..body };
            check(Draft::claim(&body), Err(Bad::BodyFields));
        }
        let rare = Some(Box::new(Rare { origin: Some(origin), ..Rare::default() }));
        let body = Body { codec: 0, version: 0, rare, ..full_body() };
        let endings = [Ending::Aborted, Ending::Completed, Ending::Held, Ending::Interrupted];
        let ends = endings.map(|ending| Draft::end(ending, &body));
        for draft in ends.into_iter().chain([Draft::forget(&body)]) {
            check(draft, Ok(&body.rare));
        }
        let mut bytes = Vec::new();
        encode_body(&Body { key: b"k", ..of(Some(4), "ann") }, &mut bytes);
        let fields = [
            &[3, 0][..],
            &[7, 8, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0],
            &[4, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0],
            b"k",
        ]
        .concat();
        let found = bytes.windows(fields.len()).any(|bytes| bytes == fields);
        assert!(found, "{}", hex(&bytes));
        assert_eq!(bytes[2] & 0b11_0010, 0b11_0010, "bits 17, 20 and 21");
        for session in [0, SessionId::END] {
            let mut bad = bytes.clone();
            let at = bad.windows(8).position(|bytes| bytes == [7, 8, 0, 0, 0, 0, 0, 0]).unwrap();
            bad[at..at + 8].copy_from_slice(&session.to_le_bytes());
            assert!(decode_body(&bad).is_none(), "{session}");
        }
    }

    /// They come after the word's label, and only while steps may be open.
    #[test]
    fn announced_steps_are_read_back_and_limited() {
        let input = |name: &str| (name != "send").then_some([name.len() as u8; 16]);
        let of = |names: &[&'static str], by| {
            let step = |name: &&'static str| AnnouncedStep { name, input: input(name) };
            let announced = names.iter().map(step).collect();
            let rare = Some(Box::new(Rare { by, announced, ..Rare::default() }));
            Body { codec: 0, version: 0, remembers: false, rare, ..full_body() }
        };
        let long = &*"n".repeat(limits::STEP_NAME_BYTES_MAX).leak();
        let most = [long; limits::ANNOUNCED_MAX];
        for body in [of(&["send"], ""), of(&["a", "ü", "b"], "ann"), of(&most, "")] {
            let ended = [Ending::Held, Ending::Interrupted].map(|end| Draft::end(end, &body));
            for draft in ended.into_iter().chain([Draft::claim(&body), Draft::update(&body)]) {
                let bytes = sealed(draft);
                let record = Record::parse(&bytes, AT, &SEAL).unwrap();
                assert_eq!(record.body().as_ref(), Ok(&body));
                let moved = sealed(Draft::moved(&record, &body));
                assert_eq!(Record::parse(&moved, AT, &SEAL).unwrap().body().as_ref(), Ok(&body));
            }
        }
        let too_many = of(&[&most[..], &["one more"]].concat(), "");
        let bytes = sealed(Draft::update(&too_many));
        let record = Record::parse(&bytes, AT, &SEAL).unwrap();
        assert_eq!(record.body(), Err(Bad::BodyFields));
        let without_input = [&b"\x01a\x01"[..], &[0; 15]].concat();
        for bad in
            [b"\x05send", &b"\x04send"[..], b"\0\0", b"\x01\xff\0", b"\x01a\x02", &without_input]
        {
            assert_eq!(decode_steps(bad), None, "{bad:?}");
        }
        for ending in [Ending::Completed, Ending::Failed, Ending::Aborted] {
            let bytes = sealed(Draft::end(ending, &of(&["send"], "")));
            let record = Record::parse(&bytes, AT, &SEAL).unwrap();
            assert_eq!(record.body(), Err(Bad::BodyFields), "{ending:?}");
        }
        let mut bytes = Vec::new();
        encode_body(&Body { key: b"k", ..of(&["send"], "ann") }, &mut bytes);
        let lengths = bytes.windows(4).position(|bytes| bytes == [3, 0, 6, 0]);
        let names = bytes.windows(9).position(|bytes| bytes == b"ann\x04send\0");
        assert!(lengths < names && lengths.is_some(), "{}", hex(&bytes));
        assert_eq!(bytes[2] & 0b110, 0b110, "bits 17 and 18");
    }

    /// The length of a result before it was compressed comes before the word's label, in bit order.
    #[test]
    fn the_length_of_a_compressed_result_is_read_back_and_limited() {
        let by = |by, packed| {
            let rare = Some(Box::new(Rare { packed: Some(packed), by, ..Rare::default() }));
            Body { rare, ..full_body() }
        };
        for ending in [Ending::Completed, Ending::Failed] {
            for body in [by("", 0), by("ann", limits::RESULT_BYTES_MAX)] {
                let bytes = sealed(Draft::end(ending, &body));
                let record = Record::parse(&bytes, AT, &SEAL).unwrap();
                assert_eq!(record.body().as_ref(), Ok(&body));
                let moved = sealed(Draft::moved(&record, &body));
                assert_eq!(Record::parse(&moved, AT, &SEAL).unwrap().body().as_ref(), Ok(&body));
            }
            let bytes = sealed(Draft::end(ending, &by("", limits::RESULT_BYTES_MAX + 1)));
            let record = Record::parse(&bytes, AT, &SEAL).unwrap();
            assert_eq!(record.body(), Err(Bad::BodyFields));
        }
        let mut bytes = Vec::new();
        encode_body(&Body { key: b"k", ..by("ann", 0x0102_0304) }, &mut bytes);
        let field = bytes.windows(6).position(|bytes| bytes == [4, 3, 2, 1, 3, 0]);
        assert!(field.is_some(), "{}", hex(&bytes));
        assert_eq!(bytes[2] & 0b11, 0b11, "bits 16 and 17");
    }

    /// More attempts forgiven than there were, a result's codec or length where there is no result, a lease, a delay or a
    /// lapse where no attempt has one, or a part of a lease.
    #[test]
    fn a_body_that_no_attempt_can_leave_is_damage() {
        let held = Body { codec: 0, version: 0, ..full_body() };
        let rare = |lease, retry_at| Some(Box::new(Rare { lease, retry_at, ..Rare::default() }));
        let time = StoreMillis(9);
        let cases = [
            Body { forgiven: 5, ..held.clone() },
            Body { codec: 1, ..held.clone() },
            Body { codec: 1, version: 2, ..held.clone() },
            Body { rare: rare(None, Some(time)), ..held.clone() },
            Body { rare: rare(Some((time, 1, 1)), None), ..held.clone() },
            Body {
                rare: Some(Box::new(Rare { packed: Some(1), ..Rare::default() })),
                ..held.clone()
            },
            Body {
                rare: Some(Box::new(Rare { before_lapse: Some(time), ..Rare::default() })),
                ..held.clone()
            },
        ];
        let rares = [Rare { lease: Some((time, 1, 1)), ..Rare::default() }];
        for rare in rares {
            let mut bytes = Vec::new();
            encode_body(&Body { rare: Some(Box::new(rare)), ..held.clone() }, &mut bytes);
            assert!(decode_body(&bytes).is_some());
            for bit in 12..15 {
                let mut part = bytes.clone();
                part[bit / 8] ^= 1 << (bit % 8);
                assert!(decode_body(&part).is_none(), "without bit {bit}");
            }
        }
        for body in cases {
            let bytes = sealed(Draft::end(Ending::Held, &body));
            let record = Record::parse(&bytes, AT, &SEAL).unwrap();
            assert_eq!(record.body(), Err(Bad::BodyFields), "{body:?}");
        }
    }

    /// A reader that took it for a field of its own, or skipped it, would misread everything after it.
    #[test]
    fn a_bit_of_a_later_version_is_damage() {
        let sealed = sealed(Draft::end(Ending::Completed, &full_body()));
        let body = Record::parse(&sealed, AT, &SEAL).unwrap().body;
        assert!(decode_body(body).is_some());
        for bit in (0..32).filter(|bit| !(24..28).contains(bit)) {
            let mut changed = body.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let is_free = KNOWN >> bit & 1 == 0;
            assert!(!is_free || decode_body(&changed).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_time_is_kept_to_its_last_millisecond() {
        for time in [0, 1, 255, 1 << 40, limits::STORE_MILLIS_MAX] {
            let body = Body { time: StoreMillis(time), ..full_body() };
            let bytes = sealed(Draft::end(Ending::Failed, &body));
            assert_eq!(Record::parse(&bytes, AT, &SEAL).unwrap().body().unwrap(), body);
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Version 1 of the format, as `docs/format.md` draws it. A change here is another version.
    #[test]
    fn the_bytes_of_records_never_change() {
        let example =
            Body { key_kind: 1, key: b"k", time: StoreMillis(5), attempt: 1, ..Body::default() };
        let at = Lsn::new(0x100_0000_0080);
        let mut bytes = Vec::new();
        Draft::claim(&example).seal(&mut bytes, at, at, &SEAL);
        let claim =
            "4f3101000d000000800000000001000076d754070b82c9e60000000101000500000000006b000000";
        assert_eq!(hex(&bytes), claim);
        let record = Record::parse(&bytes, at, &SEAL).unwrap();
        let time = TimeField {
            boot_id: [9; 16],
            boot_millis: 1.into(),
            store_millis: 2.into(),
            wall_millis: 3.into(),
        };
        let cases = [
            (
                Draft::end(Ending::Held, &full_body()),
                "4f3103458b0000000800000000000000c7f8e9ce5ea9cc2fff0f000308007b68e5cf8b0163000000\
             0000000062000000000000006100000000000000040000000068e5cf8b01000000505c18a3010000\
             78ecffffffffffff3031323334353637383961626364656606000c00060001000100020000000038\
             d360ba0100006f726465722d3137686f73742d336c656173652070617373656433206f6620390170\
             6169640000000000",
            ),
            (
                Draft::end(Ending::Completed, &example),
                "4f3103010d00000008000000000000003ea09fed7aab611c0000000101000500000000006b000000",
            ),
            (
                Draft::copy(&record, &example),
                "4f3101801d0000000800000000000000d3d09d74b49ef62503000001010005000000000080000000\
             0001000080000000000100006b000000",
            ),
            (
                Draft::update(&example),
                "4f3102000d00000008000000000000003ea09fed989d08170000000101000500000000006b000000",
            ),
            (
                Draft::forget(&example),
                "4f3104000d00000008000000000000003ea09fed3cc54cb90000000101000500000000006b000000",
            ),
            (Draft::note(None), "4f31060000000000080000000000000097663c5a6fdf02af"),
            (
                Draft::note(Some(&time)),
                "4f31060028000000080000000000000091b12403305a68b909090909090909090909090909090909\
             010000000000000002000000000000000300000000000000",
            ),
            (Draft::segment_end(), "4f31070000000000080000000000000097663c5a9ec6332b"),
        ];
        for (draft, expected) in cases {
            assert_eq!(hex(&sealed(draft)), expected);
        }
    }

    /// What one pair takes on disk, for keys of 36, fingerprints of 16 and results of 256 bytes.
    #[test]
    fn a_pair_of_the_reference_work_takes_440_bytes() {
        let key = [b'k'; 36];
        let claim = Body { key: &key, attempt: 1, fingerprint: Some([1; 16]), ..Body::default() };
        let done = Body { token: Some(Token(1)), result: &[9; 256], ..claim.clone() };
        let total = Draft::claim(&claim).len() + Draft::end(Ending::Completed, &done).len();
        assert_eq!(total, 440);
        // After a clean close the claim says how far its token is ahead of its LSN.
        let ahead = Body { ahead: 1 << 50, ..claim };
        assert_eq!(Draft::claim(&ahead).len() - Draft::claim(&Body { ahead: 0, ..ahead }).len(), 8);
    }

    #[test]
    fn a_copy_of_a_record_with_a_token_distance_spells_out_the_token() {
        let body = Body { key: b"k", attempt: 1, ahead: 1000, ..Body::default() };
        let bytes = sealed(Draft::claim(&body));
        let record = Record::parse(&bytes, AT, &SEAL).unwrap();
        let token = Token(AT.get() + 1000);
        assert_eq!(record.body().unwrap(), body);
        assert_eq!(record.body().unwrap().token_at(AT), token);
        let copy = sealed(Draft::copy(&record, &body));
        let copy = Record::parse(&copy, AT, &SEAL).unwrap();
        assert_eq!(copy.body().unwrap().token_at(AT.plus(8)), token);
        // Only a hostile program writes these: a distance of zero, one past all tokens, a flag without a field.
        for body in [
            Body { token: Some(Token(0)), ..body.clone() },
            Body { token: Some(Token(limits::LSN_MAX)), ..body.clone() },
            Body { ahead: 0, ..body.clone() },
        ] {
            let mut draft = Draft::claim(&body);
            draft.flags |= FLAG_AHEAD;
            let bytes = sealed(draft);
            let record = Record::parse(&bytes, AT, &SEAL).unwrap();
            assert_eq!(record.body().unwrap_err(), Bad::BodyFields);
        }
        let mut note = Draft::note(None);
        note.flags |= FLAG_AHEAD;
        assert_eq!(Record::parse(&sealed(note), AT, &SEAL).unwrap_err(), Bad::HeaderFields);
    }

    #[test]
    fn a_copy_spells_out_its_token_and_is_marked_as_a_copy() {
        let body = Body { key: b"k", attempt: 1, ..Body::default() };
        let bytes = sealed(Draft::claim(&body));
        let record = Record::parse(&bytes, AT, &SEAL).unwrap();
        let bytes = sealed(Draft::copy(&record, &record.body().unwrap()));
        let copy = Record::parse(&bytes, AT, &SEAL).unwrap();
        assert!(copy.is_copy && !record.is_copy);
        assert_eq!(copy.body().unwrap().token, Some(Token(AT.get())));
        assert_eq!(copy.kind, Kind::Claim);
        // A copy by compaction is not marked as one of a recovery, and says the same.
        let bytes = sealed(Draft::moved(&copy, &copy.body().unwrap()));
        let moved = Record::parse(&bytes, AT, &SEAL).unwrap();
        assert!(!moved.is_copy);
        assert_eq!(moved.body().unwrap(), copy.body().unwrap());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_detected() {
        let bytes = sealed(Draft::end(Ending::Completed, &full_body()));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(Record::parse(&bad, AT, &SEAL).is_err(), "byte {at} bit {bit}");
            }
            assert!(Record::parse(&bytes[..at], AT, &SEAL).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_record_at_another_place_is_invalid() {
        let bytes = sealed(Draft::claim(&full_body()));
        assert!(Record::parse(&bytes, AT, &SEAL).is_ok());
        assert_eq!(Record::parse(&bytes, AT.plus(8), &SEAL).unwrap_err(), Bad::HeaderSum);
        let other = Seal { salt: 1, ..SEAL };
        assert_eq!(Record::parse(&bytes, AT, &other).unwrap_err(), Bad::HeaderSum);
        let other = Seal { store: StoreId([8; 16]), ..SEAL };
        assert_eq!(Record::parse(&bytes, AT, &other).unwrap_err(), Bad::HeaderSum);
        assert!(Record::parse(&[0; 4096], Lsn::ZERO, &SEAL).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Record::parse(&bytes, AT, &SEAL).map(|record| record.body());
            let _ = decode_body(&bytes);
        }
    }
}
