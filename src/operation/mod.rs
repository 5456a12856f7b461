//! What to claim, and how: [`Operation`], [`Key`], [`Fingerprint`], [`Policy`], and the two ways to end an attempt,
//! [`Outcome`] and [`Abort`].
//!
//! Promises: plain data; making one does nothing and never fails; the call that uses it checks it first.
//! Never: touches a store, a file or a clock.

#[cfg(feature = "json")]
mod canonical;
mod fingerprint;
mod key;
mod key_part;
mod key_text;
mod outcome;
mod policy;
mod step_key;

pub use fingerprint::Fingerprint;
pub use key::Key;
pub(crate) use key::Lies;
pub use key_part::KeyPart;
pub use outcome::{Abort, Outcome};
pub(crate) use outcome::{Keeping, OutcomeParts, cut_label, decode_meta, floor_char_boundary};
pub(crate) use policy::Settings;
pub use policy::{Durability, OnDrop, OnInterrupted, OnUnkept, Policy};
pub(crate) use step_key::StepKey;

/// What to claim: a key, with the settings of this one operation.
///
/// Every call that takes an operation also takes a plain key. The setters are those of [`Policy`]; a setting of the
/// operation overrides that of the store.
///
/// ```
/// use onlyonce::{Fingerprint, OnDrop, OnInterrupted, Operation};
/// use std::time::Duration;
///
/// let (tenant, body) = ("acme", br#"{"amount": 17}"#);
/// let charge = Operation::new((tenant, "POST", "/charges", "client-key-1"))
///     .fingerprint(Fingerprint::of(body))
///     .lease(Duration::from_secs(30))
///     .on_interrupted(OnInterrupted::Hold)
///     .on_drop(OnDrop::Abort);
/// ```
#[must_use = "an operation does nothing until it is claimed"]
#[derive(Clone, Debug)]
pub struct Operation<'k> {
    key: Key<'k>,
    fingerprint: Option<Fingerprint>,
    policy: Policy,
}

impl<'k> Operation<'k> {
    /// Makes an operation with `key`, under the store's policy.
    ///
    /// ```
    /// # use onlyonce::{Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let op = Operation::new(("mail", "receipt", 17));
    /// assert!(store.mark(&op)?.is_first()); // borrowed, so it can be used again
    /// assert!(!store.mark(&op)?.is_first());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn new(key: impl Into<Key<'k>>) -> Self {
        Operation { key: key.into(), fingerprint: None, policy: Policy::new() }
    }

    /// Sets the fingerprint of the request, so that another request under the same key is answered `Mismatch`.
    ///
    /// The store keeps the fingerprint from the claim on. By default there is no fingerprint, and nothing is compared.
    ///
    /// ```
    /// # use onlyonce::{Claim, Fingerprint, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let op = |body: &str| Operation::new("client-key-1").fingerprint(Fingerprint::of(body));
    /// # let Claim::Acquired(claim) = store.claim(op("amount=17"))? else { unreachable!() };
    /// # claim.complete("paid")?;
    /// assert!(matches!(store.claim(op("amount=17"))?, Claim::Completed(_)));
    /// assert!(matches!(store.claim(op("amount=18"))?, Claim::Mismatch(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Returns the same operation without borrowed data.
    ///
    /// ```
    /// use onlyonce::Operation;
    ///
    /// /// Outlives the request it was read from.
    /// fn queued(id: &str) -> Operation<'static> {
    ///     Operation::new(("job", id)).owner("host-3").into_owned()
    /// }
    /// # let store = onlyonce::testing::Sim::new(1).open()?;
    /// assert!(store.mark(queued("17"))?.is_first());
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    ///
    /// # Cost
    /// One allocation if the key borrows text or bytes; otherwise none.
    pub fn into_owned(self) -> Operation<'static> {
        Operation { key: self.key.into_owned(), fingerprint: self.fingerprint, policy: self.policy }
    }

    pub(crate) fn key(&self) -> &Key<'k> {
        &self.key
    }

    /// The same operation on another key.
    pub(crate) fn on(&self, key: Key<'static>) -> Operation<'static> {
        Operation { key, fingerprint: self.fingerprint, policy: self.policy.clone() }
    }

    /// Its key and its fingerprint, once its policy was resolved.
    pub(crate) fn into_parts(self) -> (Key<'k>, Option<Fingerprint>) {
        (self.key, self.fingerprint)
    }

    pub(crate) fn fingerprint_given(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl<'k, K: Into<Key<'k>>> From<K> for Operation<'k> {
    fn from(key: K) -> Self {
        Operation::new(key)
    }
}

impl<'k> From<&'k Operation<'_>> for Operation<'k> {
    /// Returns the same operation with a borrowed key, without an allocation.
    fn from(operation: &'k Operation<'_>) -> Self {
        Operation {
            key: Key::from(&operation.key),
            fingerprint: operation.fingerprint,
            policy: operation.policy.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key as every call of the store takes it.
    fn key_of<'k>(operation: impl Into<Operation<'k>>) -> Key<'static> {
        operation.into().key().to_static()
    }

    #[test]
    fn everything_that_converts_to_a_key_converts_to_an_operation() {
        struct OrderId(u64);
        impl From<&OrderId> for Key<'_> {
            fn from(order: &OrderId) -> Self {
                Key::from(("order", order.0))
            }
        }

        let (tenant, path) = (String::from("acme"), String::from("/charges"));
        let four = ("acme", "POST", "/charges", 17);
        let operation =
            Operation::new((&tenant, "POST", &path, 17u64)).fingerprint(Fingerprint::of("body"));
        assert_eq!(key_of("a"), Key::from("a"));
        assert_eq!(key_of(&tenant), Key::from("acme"));
        assert_eq!(key_of(17), Key::from(17));
        assert_eq!(key_of(&OrderId(17)), Key::from(("order", 17)));
        let key = Key::from("a");
        assert_eq!(key_of(&key), key);
        assert_eq!(key_of(&operation), Key::from(four));
        assert_eq!(Operation::from(&operation).fingerprint_given(), operation.fingerprint_given());
        assert_eq!(key_of(operation), Key::from(four));
    }

    #[test]
    fn all_types_are_send_and_sync() {
        fn check<T: Send + Sync + std::fmt::Debug>() {}
        check::<Key<'_>>();
        check::<KeyPart<'_>>();
        check::<Operation<'_>>();
        check::<Policy>();
        check::<Fingerprint>();
        check::<Outcome>();
        check::<Abort>();
    }
}
