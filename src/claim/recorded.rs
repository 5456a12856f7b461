//! What is recorded about a key, and what is remembered after it expired: [`Recorded`], [`Expired`].

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::date::{Date, wall};
use super::seen::lacking;
use crate::backend::Shared;
use crate::engine::Stored;
use crate::operation::decode_meta;
use crate::protocol::KeyState;
use crate::types::{StoreMillis, Token};
use crate::value::packed::unpack;
use crate::value::{Format, NOT_KEPT};
use crate::{Error, Fingerprint, Key, Payload, Result};

/// A recorded outcome: a result, or a failure that is final.
///
/// ```
/// # use onlyonce::{Claim, Outcome, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
/// claim.record(Outcome::success("paid").meta("status", 201))?;
/// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
/// assert_eq!(done.decode::<String>()?, "paid");
/// assert_eq!((done.meta("status"), done.attempt()), (Some("201"), 1));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Recorded {
    key: Key<'static>,
    payload: Payload,
    meta: Vec<(String, String)>,
    owner: Option<Arc<str>>,
    decided_by: Option<Arc<str>>,
    fingerprint: Option<Fingerprint>,
    attempt: u32,
    token: Token,
    completed_at: SystemTime,
    expires_at: Option<SystemTime>,
    pub(super) time: StoreMillis,
}

impl Recorded {
    #[inline]
    pub(crate) fn read(
        shared: &Shared,
        key: &Key<'_>,
        state: &KeyState,
        stored: Option<Stored>,
    ) -> Result<Self> {
        let (payload, meta) = match stored {
            Some(stored) => {
                let meta = decode_meta(&stored.meta)
                    .ok_or_else(|| Error::undecodable("bad metadata of a recorded outcome"))?;
                let payload = if stored.codec == NOT_KEPT {
                    Payload::not_kept(state.reason.clone().unwrap_or_default())
                } else {
                    let format = Format::from_stored(stored.codec, stored.version);
                    match stored.packed {
                        None => Payload::new(stored.bytes, format),
                        // The key's state is known, whatever became of its result.
                        Some(len) => match unpack(&stored.bytes, len) {
                            Ok(bytes) => Payload::new(bytes, format),
                            Err(e) => Payload::unreadable(e.to_string().into()),
                        },
                    }
                };
                (payload, meta)
            }
            // Another backend has none for a key that was marked.
            None if !shared.is_embedded() => (Payload::empty(), Vec::new()),
            None => return Err(lacking(shared, "the outcome of its key")),
        };
        Ok(Recorded {
            key: key.to_static(),
            payload,
            meta,
            owner: state.owner.clone(),
            decided_by: state.extras.as_ref().and_then(|extras| extras.by.clone()),
            fingerprint: state.fingerprint,
            attempt: state.attempt,
            token: state.token,
            completed_at: wall(state.time, state.wall_offset),
            expires_at: state.expires_at.map(|at| wall(at, state.wall_offset)),
            time: state.time,
        })
    }

    /// Returns the key.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim(("order", 17))? else { unreachable!() };
    /// # claim.complete("paid")?;
    /// let Claim::Completed(done) = store.claim(("order", 17))? else { unreachable!() };
    /// assert_eq!(done.key().to_string(), r#"("order", 17)"#);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn key(&self) -> &Key<'static> {
        self.key.shown()
    }

    /// The key as it is stored: in its namespace.
    pub(super) fn stored_key(&self) -> &Key<'static> {
        &self.key
    }

    /// Returns the name of the owner of the attempt that has the outcome, if the record names one. See
    /// [`owner`](crate::Policy::owner). An outcome that an operator recorded has the owner of the resolved attempt:
    /// [`decided_by`](Self::decided_by) names the operator.
    ///
    /// ```
    /// # use onlyonce::{Claim, Recorded, testing::Sim};
    /// fn words(done: &Recorded) -> String {
    ///     format!("{} was done by {}", done.key(), done.owner().unwrap_or("an unnamed owner"))
    /// }
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// # claim.complete("paid")?;
    /// # let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// # assert_eq!(words(&done), "order-17 was done by an unnamed owner");
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// Returns the label of the operator that recorded the outcome by [`Store::resolve`](crate::Store::resolve): the owner label
    /// of the policy of its handle. `None` if the attempt's owner recorded the outcome, or the operator's handle had no label.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, Policy, Resolution, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("refund-7")? else { unreachable!() };
    /// claim.hold("somebody has to approve it")?;
    /// let ann = store.with_policy(Policy::new().owner("ann"));
    /// let Some(State::Held(held)) = ann.get("refund-7")? else { unreachable!() };
    /// ann.resolve(&held, Resolution::Record(Outcome::success("approved")))?;
    /// let Claim::Completed(done) = store.claim("refund-7")? else { unreachable!() };
    /// assert_eq!(done.decided_by(), Some("ann"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn decided_by(&self) -> Option<&str> {
        self.decided_by.as_deref()
    }

    /// Returns the fingerprint of the request that was done, if its claim gave one.
    ///
    /// ```
    /// # use onlyonce::{Claim, Fingerprint, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let request = Fingerprint::of("amount=17");
    /// # let Claim::Acquired(claim) = store.claim(Operation::new("order-17").fingerprint(request))? else { unreachable!() };
    /// # claim.complete("paid")?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(done.fingerprint(), Some(request));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// Returns why the result was not kept. `None` means that the result was kept, or that there was none, as for a
    /// mark.
    ///
    /// The work was done nevertheless. A later caller has to do without the result, and must not do the work again.
    ///
    /// ```
    /// # use onlyonce::{Claim, Error, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let _ = store.run("export-7", |_claim| Ok::<_, Error>(vec![0; 1 << 20]))?; // more than result_bytes_max
    /// let Claim::Completed(done) = store.claim("export-7")? else { unreachable!() };
    /// assert!(done.missing().is_some_and(|why| why.starts_with("a result of 1048576 bytes")));
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn missing(&self) -> Option<&str> {
        self.payload.missing()
    }

    /// Returns the recorded value, which has no bytes if the result is [`missing`](Self::missing).
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid"))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(&done.result()[..], b"paid");
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn result(&self) -> &Payload {
        &self.payload
    }

    /// Decodes the recorded value into `T`, which must be the type that was recorded.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid"))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(done.decode::<String>()?, "paid");
    /// assert!(done.decode::<()>().is_err()); // recorded as something else
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `Undecodable` if the value was recorded as another type; `NotKept` if the result is [`missing`](Self::missing).
    ///
    /// # Cost
    /// The disk is not read; strings and bytes are copied once.
    pub fn decode<T: crate::Decode>(&self) -> Result<T> {
        self.payload.decode()
    }

    /// Returns the metadata recorded under a name; the first value if the name was given several times. The comparison
    /// is exact: `Status` is another name than `status`. [`metas`](Self::metas) returns all of the metadata.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid").meta("status", 201))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!((done.meta("status"), done.meta("location")), (Some("201"), None));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Cost
    /// Searches at most 64 entries.
    #[must_use]
    pub fn meta(&self, name: &str) -> Option<&str> {
        self.meta.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns all names and values of the metadata, in the order in which they were given. A name that was given
    /// several times comes as often, as a header of HTTP may.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid").meta("set-cookie", "a=1").meta("set-cookie", "b=2"))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// let cookies: Vec<&str> = done.metas().map(|(_name, value)| value).collect();
    /// assert_eq!(cookies, ["a=1", "b=2"]);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Cost
    /// Nothing is read or allocated.
    pub fn metas(&self) -> impl Iterator<Item = (&str, &str)> + '_ {
        self.meta.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the number of the attempt that recorded the outcome.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid"))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(done.attempt(), 1);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the fencing token of the attempt that recorded the outcome.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// let mine = claim.token();
    /// claim.complete("paid")?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(done.token(), mine);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn token(&self) -> Token {
        self.token
    }

    /// Returns the time at which the outcome was recorded, as the wall clock showed it then.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// claim.record(Outcome::success("paid"))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// println!("done {:?} ago", done.completed_at().elapsed());
    /// assert!(done.expires_at().is_none_or(|end| end > done.completed_at()));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn completed_at(&self) -> SystemTime {
        self.completed_at
    }

    /// Returns the time from which the outcome is no longer kept; `None` if it is kept for ever.
    ///
    /// ```
    /// # use onlyonce::{Claim, Outcome, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("order-17")? else { unreachable!() };
    /// let day = std::time::Duration::from_secs(86_400);
    /// claim.record(Outcome::success("paid").retention(day))?;
    /// let Claim::Completed(done) = store.claim("order-17")? else { unreachable!() };
    /// assert_eq!(done.expires_at(), Some(done.completed_at() + day));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }
}

impl fmt::Display for Recorded {
    /// Shows the names of the metadata, and none of the recorded values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attempt {}", self.attempt)?;
        if let Some(owner) = self.owner() {
            write!(f, " by {owner}")?;
        }
        if let Some(by) = self.decided_by() {
            write!(f, ", decided by {by}")?;
        }
        write!(f, ", {}", self.payload)?;
        for (at, (name, _)) in self.meta.iter().enumerate() {
            write!(f, "{}{name:?}", if at == 0 { ", with " } else { " " })?;
        }
        write!(f, ", at {}", Date(self.completed_at))?;
        self.expires_at.map_or(Ok(()), |end| write!(f, ", kept until {}", Date(end)))
    }
}

impl fmt::Debug for Recorded {
    /// As `Display`, with the key and the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorded({}: {self}; token {})", self.key, self.token)
    }
}

/// A key that is remembered although its result is no longer kept, because its outcome was recorded under
/// [`remember_expired`](crate::Policy::remember_expired).
///
/// ```
/// use onlyonce::{Claim, Store};
///
/// fn is_done(store: &Store, key: &str) -> onlyonce::Result<bool> {
///     Ok(match store.claim(key)? {
///         Claim::Completed(_) => true,
///         Claim::Expired(expired) => {
///             println!("done at {:?}; what came of it is no longer kept", expired.completed_at());
///             true
///         }
///         _ => false,
///     })
/// }
/// # assert!(!is_done(&onlyonce::testing::Sim::new(1).open()?, "k")?);
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Expired {
    pub(super) key: Key<'static>,
    completed_at: SystemTime,
    remembered_until: SystemTime,
    pub(super) until: StoreMillis,
}

impl Expired {
    pub(crate) fn new(shared: &Shared, key: &Key<'_>, state: &KeyState) -> Result<Self> {
        let minutes = |time: StoreMillis| StoreMillis(time.0 / 60_000 * 60_000);
        let until = state.memory_until;
        let until = until.ok_or_else(|| lacking(shared, "how long its key is remembered"))?;
        Ok(Expired {
            key: key.to_static(),
            completed_at: wall(minutes(state.time), state.wall_offset),
            remembered_until: wall(until, state.wall_offset),
            until,
        })
    }

    /// Returns the key.
    ///
    /// ```
    /// use onlyonce::Expired;
    ///
    /// fn words(expired: &Expired) -> String {
    ///     format!("{} was done before", expired.key())
    /// }
    /// ```
    #[must_use]
    pub fn key(&self) -> &Key<'static> {
        self.key.shown()
    }

    /// Returns the time at which the key's outcome was recorded, to the minute.
    ///
    /// ```
    /// use onlyonce::Expired;
    ///
    /// fn words(expired: &Expired) -> String {
    ///     format!("done at {:?}", expired.completed_at())
    /// }
    /// ```
    #[must_use]
    pub fn completed_at(&self) -> SystemTime {
        self.completed_at
    }

    /// Returns the time until which the key is remembered. After that the key counts as new.
    ///
    /// ```
    /// use onlyonce::Expired;
    ///
    /// /// How long a late retry is still told so.
    /// fn left(expired: &Expired) -> Option<std::time::Duration> {
    ///     expired.remembered_until().duration_since(std::time::SystemTime::now()).ok()
    /// }
    /// ```
    #[must_use]
    pub fn remembered_until(&self) -> SystemTime {
        self.remembered_until
    }
}

impl fmt::Display for Expired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [at, until] = [self.completed_at, self.remembered_until].map(Date);
        write!(f, "done at {at}, remembered until {until}")
    }
}

impl fmt::Debug for Expired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expired({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::protocol::Phase;
    use crate::testing::Sim;

    /// A writer that is hostile, or has a later version, or a build that lacks a feature: the key's state is known.
    #[test]
    fn a_result_that_can_not_be_read_leaves_its_key_completed() {
        let state = KeyState::of_memory(StoreMillis(1), StoreMillis(2));
        let state = KeyState { phase: Phase::Completed, ..state };
        let store = Sim::new(1).open().unwrap();
        let shared = store.shared();
        let cases = [(0, Some(5), &b""[..]), (0, Some(u32::MAX), b""), (9, None, b"junk")];
        for (codec, packed, shown) in cases {
            let (meta, bytes) = (Vec::new(), b"junk"[..].into());
            let stored = Stored { codec, version: 0, meta, packed, bytes };
            let done = Recorded::read(shared, &Key::from("k"), &state, Some(stored)).unwrap();
            assert_eq!((&done.result()[..], done.missing()), (shown, None));
            assert_eq!(done.decode::<Vec<u8>>().unwrap_err().kind(), ErrorKind::Undecodable);
            assert!(!done.to_string().contains("junk"), "{done}");
        }
    }

    /// An empty result, or a time that is made up, would be taken for what was recorded.
    #[test]
    fn what_an_answer_lacks_is_a_bug_after_which_nothing_is_written() {
        let key = Key::from("k");
        let state = KeyState::of_memory(StoreMillis(1), StoreMillis(2));
        let forgetful = KeyState { memory_until: None, ..state.clone() };
        type Read = fn(&Shared, &Key<'_>, &KeyState, &KeyState) -> Error;
        let read: [Read; 2] = [
            |shared, key, state, _| Recorded::read(shared, key, state, None).unwrap_err(),
            |shared, key, _, forgetful| Expired::new(shared, key, forgetful).unwrap_err(),
        ];
        for read in read {
            let store = Sim::new(1).open().unwrap();
            let error = read(store.shared(), &key, &state, &forgetful);
            assert_eq!(error.kind(), ErrorKind::Bug, "{error}");
            assert_eq!(store.mark("l").unwrap_err().kind(), ErrorKind::Poisoned);
        }
    }
}
