//! The frames that host and guests send each other, and how a stream of bytes is cut into them: [`Frames`].
//!
//! A frame is the length of the rest in four bytes, its kind in one, and its contents. The first frame of each side begins
//! with [`WIRE_VERSION`]: if the version is another one, nothing else of the frame is read.
//!
//! Promises: a frame is at most [`frame_bytes_max`] long, which a length is compared with as soon as it has arrived; a
//! buffer grows only as bytes arrive. Never: does I/O.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::codec::{Malformed, Taking, Travels, malformed, reserve_fits, tagged, travels};
use crate::Error;
use crate::admin::{
    Estimate, Health, KeyPage, KeyPrefix, ListedKey, Listing, PageAt, Stats, Verification,
};
use crate::backend::{Reply, Request};
use crate::engine::{BackedUp, Compacted};
use crate::limits::{FRAME_LIST_BYTES_MAX, FRAME_WORDS_BYTES_MAX};
use crate::operation::Key;
use crate::types::{Lsn, Origin, Secret, SessionId, StoreMillis, Token, in_memory};

/// What both sides must agree on: the bytes of all frames, and what they mean. It changes with any of that.
pub(crate) const WIRE_VERSION: u32 = 1;

/// Bytes of the length that a frame begins with.
const LENGTH_BYTES: usize = 4;

/// The greatest length of a frame where no result is longer than so many bytes: that of one request or reply, or of a list
/// of shorter ones.
pub(crate) const fn frame_bytes_max(result_bytes_max: u32) -> u32 {
    let contents = match result_bytes_max < FRAME_LIST_BYTES_MAX {
        true => FRAME_LIST_BYTES_MAX,
        false => result_bytes_max,
    };
    FRAME_WORDS_BYTES_MAX + contents
}

/// A frame that is longer than the limit. Nothing of it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TooLong;

/// What a guest sends.
#[derive(Debug)]
pub(crate) enum FromGuest {
    /// The first frame: the guest joins, and says which claims it holds.
    Hello(Versioned<Hello>),
    /// More claims, if one frame doesn't hold all.
    Held {
        held: Vec<HeldClaim>,
        /// Whether still more follow.
        more: bool,
    },
    /// One call, or a batch. The index of a call is its item.
    Call {
        request: u64,
        /// The log's end as the guest last heard it when it first sent this request.
        heard: Lsn,
        /// Whether another host was sent it before.
        again: bool,
        calls: Vec<Request>,
    },
    /// The caller of that request no longer waits for its answer.
    GiveUp { request: u64 },
    /// Something to be done on the whole store.
    Errand { request: u64, again: bool, what: HostErrand },
    /// The guest closes. Nothing follows.
    Leave,
}

/// What the host sends.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every frame is of the largest kind")]
pub(crate) enum FromHost {
    /// The answer to `Hello`.
    Welcome(Versioned<Welcome>),
    /// The other answer to `Hello`: why the guest can't join. Nothing follows.
    Refused(Versioned<Error>),
    /// The answer to one call.
    Told { request: u64, item: u32, end: Lsn, reply: Result<Reply, Error> },
    /// The answer to an errand.
    ErrandTold {
        request: u64,
        end: Lsn,
        /// Whether another such frame continues its lists, which one frame doesn't hold.
        more: bool,
        told: Result<ErrandReply, Error>,
    },
    /// The host closes. A request that it has not answered before the connection ends has to be sent to the next host.
    Going,
}

/// What begins with the version of the side that sends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Versioned<T> {
    /// It is this one.
    Same(T),
    /// The side has another version, and nothing else is known of what it sent.
    Other(u32),
}

/// What a guest says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) session: SessionId,
    pub(crate) pid: u32,
    pub(crate) result_bytes_max: u32,
    pub(crate) held: Vec<HeldClaim>,
    /// Whether [`FromGuest::Held`] follows.
    pub(crate) more: bool,
}

/// A claim that a guest holds when it joins.
#[derive(Clone, Debug)]
pub(crate) struct HeldClaim {
    pub(crate) key: Key<'static>,
    pub(crate) token: Token,
    /// `None`: it has no lease.
    pub(crate) lease_left_millis: Option<u64>,
    /// Bytes of log space that are reserved for its ending.
    pub(crate) reserve: u64,
}

/// What a guest has to know of the host and its store.
#[derive(Clone, Debug)]
pub(crate) struct Welcome {
    pub(crate) pid: u32,
    pub(crate) secret: Secret,
    /// The greatest of all that are joined.
    pub(crate) result_bytes_max: u32,
    pub(crate) compress_over: Option<u32>,
    pub(crate) now: StoreMillis,
    pub(crate) end: Lsn,
}

/// What the host does on the whole store for a guest.
#[derive(Clone, Debug)]
pub(crate) enum HostErrand {
    Sync,
    Stats,
    /// Whether a claim that reserves so many bytes would be accepted.
    Health {
        reserve_bytes: u32,
    },
    Estimate,
    Verify,
    Compact {
        budget: u64,
    },
    /// Into that directory, which is absolute.
    Backup {
        dir: PathBuf,
    },
    RebuildIndex,
    MergeIndex,
    /// The names of the namespaces in that one; `None`: in no namespace.
    Spaces {
        parent: Option<Token>,
    },
    List(Listing),
    /// Withdraws the claim that this call was granted, if it was granted: the answer is lost, so the claim has no owner.
    Disown {
        key: Key<'static>,
        call: Origin,
    },
    /// Opens the store again if it is poisoned.
    Reopen,
}

/// How an errand ended.
#[derive(Debug)]
pub(crate) enum ErrandReply {
    /// The errand is done, and has no result.
    Done,
    Stats(Box<Stats>),
    Health(Health),
    Estimate(Estimate),
    Verified(Verification),
    Compacted(Compacted),
    BackedUp(BackedUp),
    Names(Vec<String>),
    Page(KeyPage),
}

impl ErrandReply {
    /// Cuts the lists that one frame may not hold.
    pub(super) fn into_parts(self) -> VecDeque<ErrandReply> {
        match self {
            ErrandReply::Names(names) => {
                let parts = cut(names, |name| LENGTH_BYTES + name.len());
                parts.into_iter().map(ErrandReply::Names).collect()
            }
            ErrandReply::Verified(mut found) => {
                let (damages, unread) =
                    (std::mem::take(&mut found.damages), std::mem::take(&mut found.unread));
                let first = VecDeque::from([ErrandReply::Verified(found)]);
                let none = || Verification::default();
                let size = |error: &Error| put_bytes(error);
                let damages = cut(damages, size).into_iter();
                let unread = cut(unread, size).into_iter();
                let damages = damages.map(|damages| Verification { damages, ..none() });
                let unread = unread.map(|unread| Verification { unread, ..none() });
                let rest = damages.chain(unread).map(ErrandReply::Verified);
                first.into_iter().chain(rest).collect()
            }
            reply => VecDeque::from([reply]),
        }
    }

    /// Adds the next part.
    pub(super) fn and(self, next: ErrandReply) -> ErrandReply {
        match (self, next) {
            (ErrandReply::Names(mut names), ErrandReply::Names(more)) => {
                names.extend(more);
                ErrandReply::Names(names)
            }
            (ErrandReply::Verified(mut found), ErrandReply::Verified(more)) => {
                found.damages.extend(more.damages);
                found.unread.extend(more.unread);
                ErrandReply::Verified(found)
            }
            (_, next) => next,
        }
    }
}

/// Cuts a list into parts that a frame holds; one part, if it is empty.
fn cut<T>(list: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let (mut parts, mut bytes) = (vec![Vec::new()], 0);
    for one in list {
        let its = size(&one);
        if bytes + its > in_memory(u64::from(FRAME_LIST_BYTES_MAX)) {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += its;
        if let Some(part) = parts.last_mut() {
            part.push(one);
        }
    }
    parts
}

/// How many bytes a value takes in a frame.
pub(super) fn put_bytes<T: Travels>(value: &T) -> usize {
    let mut bytes = Vec::new();
    value.put(&mut bytes);
    bytes.len()
}

tagged!(FromGuest {
    1 => Hello(hello),
    2 => Held { held, more },
    3 => Call { request, heard, again, calls },
    4 => GiveUp { request },
    5 => Errand { request, again, what },
    6 => Leave,
});

// The kinds of the two sides differ, so that a frame that was sent the wrong way is none.
tagged!(FromHost {
    129 => Welcome(welcome),
    130 => Refused(why),
    131 => Told { request, item, end, reply },
    132 => ErrandTold { request, end, more, told },
    133 => Going,
});

impl<T: Travels> Travels for Versioned<T> {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Versioned::Same(value) => {
                WIRE_VERSION.put(out);
                value.put(out);
            }
            Versioned::Other(version) => version.put(out),
        }
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        match u32::take(from)? {
            WIRE_VERSION => T::take(from).map(Versioned::Same),
            version => {
                from.skip_rest();
                Ok(Versioned::Other(version))
            }
        }
    }
}

travels!(Hello { session, pid, result_bytes_max, held, more });

travels!(HeldClaim { key, token, lease_left_millis, reserve } if held_fits, "a reserve exceeds every record");

fn held_fits(held: &HeldClaim) -> bool {
    reserve_fits(held.reserve)
}

travels!(Welcome { pid, secret, result_bytes_max, compress_over, now, end });

tagged!(HostErrand {
    1 => Sync,
    2 => Stats,
    3 => Health { reserve_bytes },
    4 => Estimate,
    5 => Verify,
    6 => Compact { budget },
    7 => Backup { dir },
    8 => RebuildIndex,
    9 => MergeIndex,
    10 => Spaces { parent },
    11 => List(listing),
    12 => Disown { key, call },
    13 => Reopen,
});

travels!(Origin { session, request, item });

travels!(Listing { scope, states, prefix, at, most });

impl Travels for KeyPrefix {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.0.kind());
        self.0.bytes().to_vec().put(out);
    }

    fn take(from: &mut Taking<'_>) -> Result<Self, Malformed> {
        let (kind, bytes) = (from.byte()?, Vec::<u8>::take(from)?);
        let prefix = Key::from_prefix(kind, &bytes).map(KeyPrefix);
        prefix.ok_or(Malformed { what: "bytes that no key begins with" })
    }
}

tagged!(PageAt {
    1 => First,
    2 => AfterHash { high, low },
    3 => Oldest,
    4 => After(cursor),
});

tagged!(ErrandReply {
    1 => Done,
    2 => Stats(stats),
    3 => Health(health),
    4 => Estimate(estimate),
    5 => Verified(found),
    6 => Compacted(done),
    7 => BackedUp(made),
    8 => Names(names),
    9 => Page(page),
});

travels!(KeyPage { keys, next });

travels!(ListedKey { key, view, now, since });

/// Writes a frame, its length included, at the end of `out`. `most`: the greatest length that the other side takes. A list
/// that is too long has to be sent in parts; one request, reply or error fits always.
pub(crate) fn put_frame<T: Travels>(
    frame: &T,
    most: u32,
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    let begin = out.len();
    out.extend([0; LENGTH_BYTES]);
    frame.put(out);
    let len = u32::try_from(out.len() - begin - LENGTH_BYTES).ok().filter(|len| *len <= most);
    let Some((len, place)) = len.zip(out.get_mut(begin..begin + LENGTH_BYTES)) else {
        out.truncate(begin);
        return Err(TooLong);
    };
    place.copy_from_slice(&len.to_le_bytes());
    Ok(())
}

/// Cuts the bytes that arrive into frames.
#[derive(Debug)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
    /// Up to here, frames were taken out.
    begin: usize,
    most: u32,
}

/// A buffer that is longer than this is given back once it is empty.
const BUFFER_KEPT: usize = 64 << 10;

impl Frames {
    /// `most`: the greatest length of a frame that is accepted.
    pub(crate) fn new(most: u32) -> Self {
        Frames { buffer: Vec::new(), begin: 0, most }
    }

    /// From now on, longer frames are accepted.
    pub(crate) fn accept(&mut self, most: u32) {
        self.most = self.most.max(most);
    }

    /// Adds what has arrived.
    pub(crate) fn arrived(&mut self, bytes: &[u8]) {
        // Moves no more than was taken out, so that each byte is moved once on average.
        if self.begin >= self.buffer.len() - self.begin {
            self.buffer.drain(..self.begin);
            self.begin = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes out the next frame; `None`: it has not arrived in whole. After an error the bytes that follow mean nothing.
    pub(crate) fn next<T: Travels>(&mut self) -> Result<Option<T>, Malformed> {
        let left = self.buffer.get(self.begin..).unwrap_or_default();
        let Some((length, rest)) = left.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length);
        if length == 0 || length > self.most {
            return malformed("a frame has an impossible length");
        }
        let length = in_memory(u64::from(length));
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let frame = Taking::whole(frame)?;
        self.begin += LENGTH_BYTES + length;
        Ok(Some(frame))
    }

    /// Bytes that have arrived and are not taken out.
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len() - self.begin
    }

    /// Whether a part of a frame has arrived, so that the rest must follow.
    pub(crate) fn is_within(&self) -> bool {
        self.buffered() > 0
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;
    use crate::admin::Cursor;
    use crate::backend::{Ask, KeyView, Terms};
    use crate::engine::Stored;
    use crate::limits::{
        ANNOUNCED_MAX, ERROR_CAUSES_MAX, ERROR_TEXT_BYTES_MAX, KEY_BYTES_MAX, LABEL_BYTES_MAX,
        META_BYTES_MAX, META_COUNT_MAX, PROGRESS_BYTES_MAX, RESULT_BYTES_MAX, STEP_NAME_BYTES_MAX,
    };
    use crate::operation::Fingerprint;
    use crate::processes::{Drawn, Draws};
    use crate::protocol::{Asker, Call, Extras, KeyState, Lease, OpenStep};

    const MOST: u32 = frame_bytes_max(RESULT_BYTES_MAX);

    fn framed(frame: &impl Travels) -> Vec<u8> {
        let mut out = Vec::new();
        put_frame(frame, MOST, &mut out).unwrap();
        out
    }

    fn shown(frame: &impl Debug) -> String {
        format!("{frame:?}")
    }

    /// All frames of a stream that arrives in these pieces, as they are shown.
    fn received<'p, T: Travels + Debug>(
        pieces: impl Iterator<Item = &'p [u8]>,
    ) -> Result<Vec<String>, Malformed> {
        let (mut frames, mut all) = (Frames::new(MOST), Vec::new());
        for piece in pieces {
            frames.arrived(piece);
            while let Some(frame) = frames.next::<T>()? {
                all.push(shown(&frame));
            }
        }
        Ok(all)
    }

    /// What of a frame was damaged in one byte is an error or a frame that is no longer.
    fn survives_damage<T: Travels + Debug>(frame: &T, by: u8) {
        let sound = framed(frame);
        for place in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[place] ^= by;
            let mut frames = Frames::new(MOST);
            frames.arrived(&bytes);
            if let Ok(Some(read)) = frames.next::<T>() {
                let again = framed(&read);
                assert!(again.len() <= bytes.len(), "{read:?}");
                let mut frames = Frames::new(MOST);
                frames.arrived(&again);
                assert_eq!(shown(&frames.next::<T>().unwrap().unwrap()), shown(&read));
            }
            assert!(frames.buffer.capacity() <= 2 * bytes.len(), "{}", frames.buffer.capacity());
        }
    }

    fn strict_prefixes_are_nothing<T: Travels + Debug>(frame: &T) {
        let bytes = framed(frame);
        let mut frames = Frames::new(MOST);
        for (place, byte) in bytes.iter().enumerate() {
            assert_eq!(frames.next::<T>().map(|frame| frame.is_some()), Ok(false), "{place}");
            assert_eq!(frames.is_within(), place > 0);
            frames.arrived(&[*byte]);
        }
        assert_eq!(frames.next::<T>().unwrap().map(|frame| shown(&frame)), Some(shown(frame)));
        assert!(!frames.is_within());
    }

    proptest! {
        #[test]
        fn frames_arrive_whatever_the_pieces(
            draws in vec(any::<u8>(), 0..1200),
            cuts in vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let draws = &mut Draws(&draws);
            let guest: Vec<FromGuest> = (0..4).map(|_| FromGuest::drawn(draws)).collect();
            let host: Vec<FromHost> = (0..4).map(|_| FromHost::drawn(draws)).collect();
            fn check<T: Travels + Debug>(sent: &[T], cuts: &[prop::sample::Index]) {
                let stream: Vec<u8> = sent.iter().flat_map(framed).collect();
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
                cuts.extend([0, stream.len()]);
                cuts.sort_unstable();
                let pieces = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]);
                let sent: Vec<String> = sent.iter().map(shown).collect();
                assert_eq!(received::<T>(pieces), Ok(sent.clone()));
                assert_eq!(received::<T>(stream.chunks(1)), Ok(sent));
            }
            check(&guest, &cuts);
            check(&host, &cuts);
        }

        #[test]
        fn a_part_of_a_frame_is_nothing_yet(draws in vec(any::<u8>(), 0..400)) {
            strict_prefixes_are_nothing(&FromGuest::drawn(&mut Draws(&draws)));
            strict_prefixes_are_nothing(&FromHost::drawn(&mut Draws(&draws)));
        }

        #[test]
        fn a_damaged_frame_is_an_error_or_a_frame(draws in vec(any::<u8>(), 0..300), by in 1..=255_u8) {
            survives_damage(&FromGuest::drawn(&mut Draws(&draws)), by);
            survives_damage(&FromHost::drawn(&mut Draws(&draws)), by);
        }

        #[test]
        fn a_frame_sent_the_wrong_way_is_none(draws in vec(any::<u8>(), 0..100)) {
            let draws = &mut Draws(&draws);
            let (guest, host) = (framed(&FromGuest::drawn(draws)), framed(&FromHost::drawn(draws)));
            prop_assert!(received::<FromHost>([&guest[..]].into_iter()).is_err());
            prop_assert!(received::<FromGuest>([&host[..]].into_iter()).is_err());
        }
    }

    #[test]
    fn a_length_that_can_not_be_is_an_error_as_soon_as_it_has_arrived() {
        for length in [0, MOST + 1, u32::MAX] {
            let mut frames = Frames::new(MOST);
            let bytes = length.to_le_bytes();
            frames.arrived(&bytes[..3]);
            assert!(frames.next::<FromGuest>().unwrap().is_none());
            frames.arrived(&bytes[3..]);
            assert!(frames.next::<FromGuest>().is_err(), "{length}");
        }
        // One that can be takes no memory before its bytes are there.
        let mut frames = Frames::new(MOST);
        frames.arrived(&MOST.to_le_bytes());
        assert!(frames.next::<FromGuest>().unwrap().is_none());
        assert!(frames.buffer.capacity() < 64);
    }

    #[test]
    fn a_longer_frame_is_accepted_once_it_may_come() {
        let bytes = framed(&FromGuest::GiveUp { request: 7 });
        let mut frames = Frames::new(8);
        frames.arrived(&bytes);
        assert!(frames.next::<FromGuest>().is_err());
        frames.accept(9);
        frames.accept(8);
        assert!(frames.next::<FromGuest>().unwrap().is_some());
    }

    /// A program sends for months: neither what was taken out nor the longest frame stays.
    #[test]
    fn a_buffer_does_not_keep_what_was_taken_out() {
        let (small, mut frames) = (framed(&FromGuest::GiveUp { request: 7 }), Frames::new(MOST));
        // Each time, the begin of the next one has arrived, too.
        frames.arrived(&small[..1]);
        for _ in 0..10_000 {
            frames.arrived(&small[1..]);
            frames.arrived(&small[..1]);
            assert!(frames.next::<FromGuest>().unwrap().is_some());
        }
        assert!(frames.buffer.capacity() < 256, "{}", frames.buffer.capacity());
        let dir = "d".repeat(1 << 20).into();
        let what = HostErrand::Backup { dir };
        let mut frames = Frames::new(MOST);
        frames.arrived(&framed(&FromGuest::Errand { request: 1, again: false, what }));
        assert!(frames.next::<FromGuest>().unwrap().is_some());
        frames.arrived(&small);
        assert!(frames.buffer.capacity() < 256, "{}", frames.buffer.capacity());
    }

    #[test]
    fn of_another_version_nothing_else_is_read() {
        for version in [0, 2, u32::MAX] {
            let contents = [&[1][..], &version.to_le_bytes(), &[0xff; 30]].concat();
            let length = (contents.len() as u32).to_le_bytes();
            let hello = received::<FromGuest>([&length[..], &contents].into_iter()).unwrap();
            assert_eq!(hello, [format!("Hello(Other({version}))")]);
            for kind in [129, 130] {
                let contents = [&[kind][..], &contents[1..]].concat();
                let told = received::<FromHost>([&length[..], &contents].into_iter()).unwrap();
                assert!(told[0].contains(&format!("Other({version})")), "{told:?}");
            }
        }
        let contents = [&[1][..], &WIRE_VERSION.to_le_bytes(), &[0xff; 30]].concat();
        let length = (contents.len() as u32).to_le_bytes();
        assert!(received::<FromGuest>([&length[..], &contents].into_iter()).is_err());
    }

    #[test]
    fn the_bytes_of_a_frame_are_these() {
        let frame = FromGuest::Call {
            request: 0x0102,
            heard: Lsn::new(0x0304),
            again: true,
            calls: vec![Request { key: Key::from("k"), ask: Ask::Ended(Token(5)) }],
        };
        let bytes = b"\x25\0\0\0\x03\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0\x01\x01\0\0\0\x01\x01\0\0\0k\x03\x05\0\0\0\0\0\0\0";
        assert_eq!(framed(&frame), bytes);
    }

    /// One with every field at its limit.
    fn longest(result_bytes_max: u32) -> (FromGuest, FromHost) {
        let label = "l".repeat(LABEL_BYTES_MAX);
        let name = "s".repeat(STEP_NAME_BYTES_MAX);
        let outcome = Stored {
            codec: 1,
            version: 1,
            meta: vec![0; META_BYTES_MAX + 4 * META_COUNT_MAX],
            packed: Some(1),
            bytes: vec![7; result_bytes_max as usize].into(),
        };
        let mut terms = Terms { owner: Some(label.as_str().into()), ..Terms::default() };
        let details = terms.details_mut();
        details.reason = Some(label.clone());
        details.by = Some(label.clone());
        details.progress = Some(vec![0; PROGRESS_BYTES_MAX]);
        details.step = Some(name.clone());
        details.outcome = Some(outcome.clone());
        let key = Key::of_step(&Key::from(vec![b'k'; KEY_BYTES_MAX]), Token(8), &name);
        let ask = Ask::Call(Call::EndStep { token: Token(8), life: Token(8) }, Box::new(terms));
        let calls = vec![Request { key: key.clone(), ask }];
        let request = FromGuest::Call { request: 1, heard: Lsn::ZERO, again: true, calls };

        let now = StoreMillis(1);
        let step = OpenStep { name: name.as_str().into(), input: Some(Fingerprint::of("x")) };
        let label: std::sync::Arc<str> = label.into();
        let extras = Extras {
            detached: Some(Lease { until: now, millis: 1, reserve: 1 }),
            retry_at: Some(now),
            by: Some(label.clone()),
            progress: Some(vec![0; PROGRESS_BYTES_MAX].into()),
            announced: vec![step; ANNOUNCED_MAX],
            before_lapse: Some(now),
        };
        let mut view = KeyView {
            state: KeyState::of_memory(now, now),
            presence: crate::protocol::Presence::Asked,
            lease_until: Some(now),
            asker: Some(Asker { question: 1, owner: Some(label.clone()), since: now }.into()),
            outcome: Some(outcome),
        };
        view.state.owner = Some(label.clone());
        view.state.reason = Some(label);
        view.state.fingerprint = Some(Fingerprint::of("x"));
        view.state.open_fate = Some(Token(8));
        view.state.extras = Some(extras.into());
        // A page has the key, too, and the position of the next page.
        let at = Key::from(vec![b'k'; KEY_BYTES_MAX]);
        let next = Some(PageAt::After(Cursor::new(crate::types::WallMillis(1), at)));
        let page = KeyPage {
            keys: vec![Ok(ListedKey { key, view, now, since: crate::types::WallMillis(1) })],
            next,
        };
        let told = Ok(ErrandReply::Page(page));
        (request, FromHost::ErrandTold { request: 1, end: Lsn::ZERO, more: true, told })
    }

    #[test]
    fn the_longest_request_reply_and_error_fit_in_a_frame() {
        for result_bytes_max in [0, FRAME_LIST_BYTES_MAX, RESULT_BYTES_MAX] {
            let most = frame_bytes_max(result_bytes_max);
            let (request, reply) = longest(result_bytes_max);
            assert_eq!(put_frame(&request, most, &mut Vec::new()), Ok(()));
            assert_eq!(put_frame(&reply, most, &mut Vec::new()), Ok(()));
            let long = "x".repeat(ERROR_TEXT_BYTES_MAX);
            let mut error = Error::new(ErrorKind::Io, &*long);
            for _ in 0..ERROR_CAUSES_MAX {
                error = Error::new(ErrorKind::Io, &*long).because(error);
            }
            let reply = Err(error.at(long.as_ref()));
            let told = FromHost::Told { request: 1, item: 1, end: Lsn::ZERO, reply };
            assert_eq!(put_frame(&told, FRAME_WORDS_BYTES_MAX, &mut Vec::new()), Ok(()));
        }
    }

    #[test]
    fn a_list_that_is_too_long_leaves_nothing() {
        let names = vec!["n".repeat(1 << 20); 5];
        let told = Ok(ErrandReply::Names(names));
        let told = FromHost::ErrandTold { request: 1, end: Lsn::ZERO, more: false, told };
        let mut out = framed(&FromHost::Going);
        assert_eq!(put_frame(&told, frame_bytes_max(0), &mut out), Err(TooLong));
        assert_eq!(out, framed(&FromHost::Going));
        assert_eq!(put_frame(&told, MOST, &mut out), Ok(()));
    }

    #[test]
    fn a_prefix_may_be_what_no_key_is() {
        let prefixes: [Key<'static>; 6] = [
            "".into(),
            Key::from_parts::<[u64; 0]>([]),
            ("a", "").into(),
            vec![b'k'; KEY_BYTES_MAX + 1].into(),
            17.into(),
            Key::from("k").in_space(Token(8)),
        ];
        for prefix in prefixes.map(KeyPrefix) {
            let mut bytes = Vec::new();
            prefix.put(&mut bytes);
            assert_eq!(Taking::whole(&bytes), Ok(prefix));
        }
        for (kind, bytes) in [(2, &b"1"[..]), (3, b"\x03"), (9, b"k")] {
            let mut out = vec![kind];
            bytes.to_vec().put(&mut out);
            assert!(Taking::whole::<KeyPrefix>(&out).is_err(), "{kind}");
        }
    }

    #[test]
    fn no_output_shows_the_secret() {
        let mut welcome = Welcome::drawn(&mut Draws(&[]));
        welcome.secret = Secret([0xab; 32]);
        assert!(!shown(&welcome).contains("171"), "{welcome:?}");
    }
}
