//! The ticket of a detached claim: [`Ticket`].
//!
//! Promises: only the store that made a ticket, or a copy of it, accepts the ticket; its text is the same in every process.
//! Never: says whether the claim is still there; `protocol` decides that when the ticket is attached.

use std::fmt;
use std::str::FromStr;

use crate::types::{Secret, Token};
use crate::{Error, Key, Result};

/// The first byte of every ticket; another one is of another version.
const VERSION: u8 = 1;

/// Bytes of a ticket's MAC: 128 bits, which nobody guesses.
const MAC_BYTES: usize = 16;

/// Bytes before the key: version, kind of the key, token, MAC.
const HEAD_BYTES: usize = 2 + 8 + MAC_BYTES;

/// A detached claim, as text that any task, process or request of the same store can attach again.
///
/// A ticket names the key and the fencing token, and carries a MAC by a secret of the store. So a client can keep it and
/// send it back, but can't make one. Whoever has the ticket can end the claim: treat it like a password, and note that it
/// shows the key. A ticket has 52 characters, two for each byte of the key, and 18 more in a namespace.
///
/// With the feature `bincode` or `json`, it is a serde type, which serializes as its text.
///
/// ```
/// # use onlyonce::{Claim, Ticket, testing::Sim};
/// # use std::time::Duration;
/// # let store = Sim::new(1).open()?;
/// # let Claim::Acquired(claim) = store.claim("job-7")? else { unreachable!() };
/// let text = claim.detach(Duration::from_secs(900))?.to_string(); // sent along with the job
/// let ticket: Ticket = text.parse()?; // an hour later, in the webhook that answers the job
/// store.attach(&ticket)?.complete("done")?;
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) key: Key<'static>,
    pub(super) token: Token,
    mac: [u8; MAC_BYTES],
}

impl Ticket {
    /// Makes the ticket of a claim. `secret`: the store's.
    pub(super) fn new(secret: Secret, key: &Key<'_>, token: Token) -> Self {
        Ticket { key: key.to_static(), token, mac: mac_of(secret, key, token) }
    }

    /// Whether it was made with that secret.
    pub(crate) fn is_of(&self, secret: Secret) -> bool {
        let expected = mac_of(secret, &self.key, self.token);
        // Every byte is compared, so that the time tells nothing about where they differ.
        let differs = expected.iter().zip(&self.mac).fold(0, |differs, (a, b)| differs | (a ^ b));
        differs == 0
    }

    /// Returns the key of the claim. Before the ticket is attached, this is only what the text says.
    ///
    /// ```
    /// # use onlyonce::{Claim, Key, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("job-7")? else { unreachable!() };
    /// let ticket = claim.detach(Duration::from_secs(900))?;
    /// assert_eq!(ticket.key(), &Key::from("job-7"));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn key(&self) -> &Key<'static> {
        self.key.shown()
    }

    /// The key as it is stored: in its namespace.
    pub(crate) fn stored_key(&self) -> &Key<'static> {
        &self.key
    }

    /// Returns the fencing token of the claim.
    ///
    /// ```
    /// # use onlyonce::{Claim, testing::Sim};
    /// # use std::time::Duration;
    /// # let store = Sim::new(1).open()?;
    /// # let Claim::Acquired(claim) = store.claim("job-7")? else { unreachable!() };
    /// let token = claim.token();
    /// assert_eq!(claim.detach(Duration::from_secs(900))?.token(), token);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn token(&self) -> Token {
        self.token
    }
}

/// BLAKE2b (RFC 7693), keyed, with a personalization of its own.
fn mac_of(secret: Secret, key: &Key<'_>, token: Token) -> [u8; MAC_BYTES] {
    let mut params = blake2b_simd::Params::new();
    params.hash_length(MAC_BYTES).key(&secret.0).personal(b"onlyonce ticket");
    let mut state = params.to_state();
    state.update(&[VERSION, key.kind()]).update(&token.0.to_le_bytes()).update(key.bytes());
    let mut mac = [0; MAC_BYTES];
    for (to, from) in mac.iter_mut().zip(state.finalize().as_bytes()) {
        *to = *from;
    }
    mac
}

/// The text: two hexadecimal digits for each byte.
impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.0.to_le_bytes();
        let head = [VERSION, self.key.kind()];
        let bytes = head.iter().chain(&token).chain(&self.mac).chain(self.key.bytes());
        for byte in bytes {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Shows neither the MAC nor the text: a ticket in a log would let its reader end the claim.
impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({}; token {})", self.key, self.token)
    }
}

impl FromStr for Ticket {
    type Err = Error;

    /// Reads the text of a ticket. Only [`Store::attach`](crate::Store::attach) checks its MAC.
    fn from_str(text: &str) -> Result<Self> {
        read(text).ok_or_else(|| Error::invalid("this is not a ticket: pass on its text unchanged"))
    }
}

fn read(text: &str) -> Option<Ticket> {
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() || pairs.len() > HEAD_BYTES + crate::limits::KEY_BYTES_MAX {
        return None;
    }
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    let bytes: Vec<u8> = pairs.map(byte).collect::<Option<_>>()?;
    let ([version, kind], rest) = bytes.split_first_chunk::<2>()?;
    let (token, rest) = rest.split_first_chunk::<8>()?;
    let (mac, key) = rest.split_first_chunk::<MAC_BYTES>()?;
    if *version != VERSION {
        return None;
    }
    let key = Key::from_stored(*kind, key)?.into_owned();
    key.check().ok()?;
    Some(Ticket { key, token: Token(u64::from_le_bytes(*token)), mac: *mac })
}

#[cfg(any(feature = "bincode", feature = "json"))]
impl serde::Serialize for Ticket {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(any(feature = "bincode", feature = "json"))]
impl<'de> serde::Deserialize<'de> for Ticket {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const SECRET: Secret = Secret([5; 32]);

    fn ticket() -> Ticket {
        Ticket::new(SECRET, &Key::from(("job", 7)), Token(1 << 40))
    }

    #[test]
    fn a_ticket_is_read_back_from_its_text() {
        let text = ticket().to_string();
        assert_eq!(text.parse::<Ticket>().unwrap(), ticket());
        assert!(text.parse::<Ticket>().unwrap().is_of(SECRET));
        assert!(!format!("{:?}", ticket()).contains(&text[20..52]), "the MAC is shown");
    }

    /// Whatever byte of it is changed, it is another ticket, or none.
    #[test]
    fn a_changed_ticket_is_not_of_the_store() {
        let text = ticket().to_string();
        for at in 0..text.len() {
            for digit in "0123456789abcdef".chars() {
                let mut changed: Vec<char> = text.chars().collect();
                changed[at] = digit;
                let changed: String = changed.into_iter().collect();
                let Ok(read) = changed.parse::<Ticket>() else { continue };
                assert_eq!(read.is_of(SECRET), changed == text, "{changed}");
            }
        }
        assert!(!ticket().is_of(Secret([6; 32])), "of another store");
    }

    #[test]
    fn what_is_not_a_ticket_is_invalid() {
        let text = ticket().to_string();
        let long = format!("{text}{}", "61".repeat(5000));
        let upper = text.to_uppercase();
        for bad in ["", "01", "hello", &text[1..], &text[..51], &upper, &long, &format!("ü{text}")]
        {
            let error = bad.parse::<Ticket>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
        }
    }

    #[cfg(feature = "bincode")]
    #[test]
    fn a_ticket_serializes_as_its_text() {
        let config = bincode::config::standard();
        let bytes = bincode::serde::encode_to_vec(ticket(), config).unwrap();
        let text = bincode::serde::encode_to_vec(ticket().to_string(), config).unwrap();
        assert_eq!(bytes, text);
        let (read, _) = bincode::serde::decode_from_slice::<Ticket, _>(&bytes, config).unwrap();
        assert_eq!(read, ticket());
    }
}
