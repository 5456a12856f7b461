//! The contents of a request in 128 bits: [`Fingerprint`].
//!
//! Promises: the same bytes give the same fingerprint on every machine and in every version, for ever.
//! Never: keeps the input. Proof: the golden values in the tests, which must not change.

use std::fmt;

use blake2b_simd::{Params, State};

/// Separates `of_parts` from `of`, whatever bytes the parts hold.
const PARTS: &[u8; 14] = b"onlyonce-parts";

/// A 128-bit digest of a request, by which the store notices that one key is used for two different requests.
///
/// The record of a claim keeps the fingerprint given with the claim. A later call for the key with another fingerprint
/// is answered `Mismatch`, and the recorded result is not replayed. A call without a fingerprint is not compared.
///
/// # What it is
/// A fingerprint is BLAKE2b with a digest of 16 bytes and no key (RFC 7693), so another program can compute it too, for
/// example in Python: `hashlib.blake2b(data, digest_size=16)`. No secret is needed, because finding other bytes with a
/// given fingerprint takes about 2^128 attempts. Finding any two requests that share a fingerprint takes about 2^64
/// attempts. If your clients can do that, compare the requests themselves.
///
/// # Example
/// ```
/// use onlyonce::Fingerprint;
///
/// let body = r#"{"amount": 17}"#;
/// assert_eq!(Fingerprint::of(body), Fingerprint::of(body.as_bytes()));
/// assert_ne!(Fingerprint::of_parts(["ab", "c"]), Fingerprint::of_parts(["a", "bc"]));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// Returns the fingerprint of `bytes`. It takes about a nanosecond per byte, and allocates nothing.
    ///
    /// ```
    /// # use onlyonce::{Claim, Fingerprint, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let request = |body: &str| Operation::new("client-key-1").fingerprint(Fingerprint::of(body));
    /// let mine = store.claim(request(r#"{"amount": 17}"#))?;
    /// let other = store.claim(request(r#"{"amount": 18}"#))?; // the same key for something else
    /// assert!(matches!(other, Claim::Mismatch(_)));
    /// # drop(mine);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    #[must_use]
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Fingerprint::finish(params().to_state().update(bytes.as_ref()))
    }

    /// Returns the fingerprint of a list of parts. The boundaries between the parts count: `["ab", "c"]` and `["a",
    /// "bc"]` differ, and neither equals the fingerprint [`of`](Fingerprint::of) any bytes.
    ///
    /// The fingerprint is BLAKE2b as for `of`, personalized with `onlyonce-parts` (and two zero bytes). Its input is,
    /// for each part, the part's length as eight little-endian bytes, followed by the part.
    ///
    /// The call is as cheap as `of`, and allocates nothing either.
    ///
    /// ```
    /// use onlyonce::Fingerprint;
    ///
    /// let (path, body) = ("/charges", "amount=17");
    /// let fingerprint = Fingerprint::of_parts([path, body]);
    /// assert_ne!(fingerprint, Fingerprint::of([path, body].concat()));
    /// ```
    #[must_use]
    pub fn of_parts<I>(parts: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let mut hash = params().personal(PARTS).to_state();
        for part in parts {
            let part = part.as_ref();
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Fingerprint::finish(&hash)
    }

    /// Returns the fingerprint of a JSON text in its canonical form, so that spaces, the order of an object's members, and
    /// different ways to write a string or a number don't count. Needs the feature `json`.
    ///
    /// The form is that of RFC 8785 (JCS), and the fingerprint is the one [`of`](Fingerprint::of) it, so another program
    /// can compute it too. The RFC leaves these to the program, which here refuses them:
    ///
    /// - a name given twice in one object, because readers differ in which one counts;
    /// - an integer that no double holds, such as 9007199254740993: rounded to a double, as the RFC does with numbers,
    ///   two ids of 64 bits would be the same request. Send such ids as strings.
    ///
    /// Numbers with a point or an exponent are rounded to the nearest double. Strings are not normalised, as they aren't
    /// in the RFC.
    ///
    /// ```
    /// use onlyonce::Fingerprint;
    ///
    /// let mine = Fingerprint::of_json(r#"{"amount": 17.0, "to": "Zo\u00eb"}"#)?;
    /// assert_eq!(mine, Fingerprint::of_json(r#"{"to":"Zoë","amount":17}"#)?);
    /// assert_eq!(mine, Fingerprint::of(r#"{"amount":17,"to":"Zoë"}"#)); // the canonical form
    /// assert!(Fingerprint::of_json(r#"{"amount": 17, "amount": 18}"#).is_err());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// `Invalid` for a text that is not JSON in UTF-8, or has one of the above, half of a character (a lone surrogate), a
    /// number beyond the range of a double, or more than 127 levels of arrays and objects. The message names the byte,
    /// and nothing of the contents.
    ///
    /// # Cost
    /// The text is read once, into memory of a few times its length.
    #[cfg(feature = "json")]
    pub fn of_json(text: impl AsRef<[u8]>) -> crate::Result<Self> {
        super::canonical::canonical(text.as_ref()).map(Fingerprint::of)
    }

    fn finish(hash: &State) -> Self {
        let mut fingerprint = [0; 16];
        // The parameters set this length.
        fingerprint.copy_from_slice(hash.finalize().as_bytes());
        Fingerprint(fingerprint)
    }

    /// Makes a fingerprint from bytes computed by other means, such as the first half of a SHA-256 that you already
    /// have, or an entity tag.
    ///
    /// The bytes must depend on the request alone. If a client can influence them, collisions must be hard to find.
    ///
    /// ```
    /// use onlyonce::Fingerprint;
    ///
    /// let sha256 = [7_u8; 32]; // computed for other reasons
    /// let (half, _) = sha256.split_first_chunk().unwrap();
    /// assert_eq!(Fingerprint::from_bytes(*half).to_bytes(), [7; 16]);
    /// ```
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Fingerprint(bytes)
    }

    /// Returns the 16 bytes of the fingerprint, which [`from_bytes`](Fingerprint::from_bytes) accepts.
    ///
    /// ```
    /// use onlyonce::Fingerprint;
    ///
    /// let bytes = Fingerprint::of("abc").to_bytes(); // BLAKE2b-128, as others compute it too
    /// assert_eq!(bytes[..4], [0xcf, 0x4a, 0xb7, 0x91]);
    /// ```
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

fn params() -> Params {
    let mut params = Params::new();
    params.hash_length(size_of::<Fingerprint>());
    params
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(fingerprint: Fingerprint) -> String {
        let shown = format!("{fingerprint:?}");
        shown.trim_start_matches("Fingerprint(").trim_end_matches(')').to_owned()
    }

    /// `hashlib.blake2b(data, digest_size=16).hexdigest()`: around one block, at two, and many.
    #[test]
    fn fingerprints_of_bytes_never_change() {
        let long: Vec<u8> = (0..1000u32).map(|i| (i % 251) as u8).collect();
        let cases: [(&[u8], &str); 7] = [
            (b"", "cae66941d9efbd404e4d88758ea67670"),
            (b"abc", "cf4ab791c62b8d2b2109c90275287816"),
            (&[b'x'; 127], "faeac286ccce46d5273182d599dd943b"),
            (&[b'x'; 128], "874acca82a22239ec64a3e70c3ae494e"),
            (&[b'x'; 129], "b9ee96f69e8210c624fee55d71d5a54f"),
            (&[b'x'; 256], "0b2c2b0de02938ad7a728b51e8da3357"),
            (&long, "bca120dfd89cd95d82898473a5b01c90"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(hex(Fingerprint::of(bytes)), expected, "{} bytes", bytes.len());
        }
    }

    /// The same with `person=b"onlyonce-parts"`, over lengths and parts.
    #[test]
    fn fingerprints_of_parts_never_change() {
        let cases: [(&[&str], &str); 4] = [
            (&[], "e866b1a7aedfc264bf06b6d423127c1a"),
            (&["ab", "c"], "7dd902bbbbf9391291ba0b6fba46dcc8"),
            (&["a", "bc"], "8ebd029b8ffce0edd1743d9d87a12ec9"),
            (&[""], "94dd09363f9dae1bda3cdcd17b1f8009"),
        ];
        for (parts, expected) in cases {
            assert_eq!(hex(Fingerprint::of_parts(parts)), expected, "{parts:?}");
        }
    }

    /// `hashlib.blake2b(b'{"a":1,"b":[0.000001,"\xe2\x82\xac"]}', digest_size=16)`
    #[cfg(feature = "json")]
    #[test]
    fn fingerprints_of_json_never_change() {
        let text = r#" { "b" : [ 1E-6 , "\u20ac" ] , "a" : 1.0 } "#;
        assert_eq!(hex(Fingerprint::of_json(text).unwrap()), "d634e1c2efb6e668cfa84eddbc691c8d");
    }

    #[test]
    fn a_fingerprint_made_elsewhere_keeps_its_bytes() {
        let bytes = *b"0123456789abcdef";
        assert_eq!(Fingerprint::from_bytes(bytes).to_bytes(), bytes);
    }
}
