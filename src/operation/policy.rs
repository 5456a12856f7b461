//! How an operation is treated: [`Policy`], and [`Settings`], which it resolves to with the defaults.
//!
//! Promises: the operation's own setting comes first, then the handle's, then the builder's, then the default in
//! [`Policy::resolve`], which refuses a combination that can't keep its promise before anything is written. Never:
//! reads a clock or a record.

use std::sync::Arc;
use std::time::Duration;

use super::Operation;
use crate::limits::{LABEL_BYTES_MAX, RESERVE_BYTES_DEFAULT, RESULT_BYTES_MAX};
use crate::{Error, ErrorKind, Result};

/// What happens after an attempt without an ending, because its process died, its lease lapsed, or its guard was
/// dropped.
///
/// If this is unset, you decide: `claim` answers `Interrupted`, and `run` is refused with a message that names the
/// choices.
///
/// ```
/// # use onlyonce::{Claim, Error, OnInterrupted, Operation, Run, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// let mail = |key| Operation::new(key).on_interrupted(OnInterrupted::Hold); // never twice
/// let sync = |key| Operation::new(key).on_interrupted(OnInterrupted::Retry); // twice does no harm
/// # drop((store.claim(mail("mail-1"))?, store.claim(sync("sync-1"))?));
/// // After a crash in the midst of both:
/// assert!(matches!(store.claim(mail("mail-1"))?, Claim::Held(_)));
/// assert!(matches!(store.run(sync("sync-1"), |_| Ok::<_, Error>(()))?, Run::Done(())));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum OnInterrupted {
    /// `run` takes the key over and does the work again, also after an error of its closure, so the work is done **at
    /// least once**. Choose it if a second execution does no harm, or if the called service notices the repetition by
    /// the key or the fencing token. `claim` still answers `Interrupted`, so that you take over explicitly.
    Retry,
    /// No claim of the key is granted until the key is resolved, so the work is done at most once. Every claim is
    /// answered `Held`.
    ///
    /// `Hold` applies if the interrupted attempt or the claimant asks for it, so all claimants of a key should use the
    /// same setting. It needs claims at [`Durability::Sync`], because the store can't hold an attempt that a power cut
    /// made it forget. With a weaker `claim_durability` the call is refused as `Invalid`.
    Hold,
}

/// What dropping a guard (by a `?`, a panic or a cancelled future) means for its attempt. An error of the closure in
/// [`run`](crate::Store::run) means the same, unless a hook judges it.
///
/// ```
/// # use onlyonce::{Claim, OnDrop, Operation, State, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// let op = Operation::new("charge-7").on_drop(OnDrop::Abort);
/// drop(store.claim(&op)?); // a `?` before anything was done
/// let Claim::Acquired(claim) = store.claim(&op)? else { unreachable!() };
/// claim.on_drop(OnDrop::Interrupt);
/// drop(claim); // a `?` after the request was sent
/// assert!(matches!(store.get("charge-7")?, Some(State::Interrupted(_))));
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum OnDrop {
    /// The attempt is interrupted, as after a crash at that point. The drop doesn't wait.
    #[default]
    Interrupt,
    /// The attempt had no effect: it is aborted, and the next claimant is granted the key. If an announced step has not
    /// ended, the attempt is interrupted instead. The drop waits for no sync, but it may wait for the disk where the log
    /// has to continue in another segment: in a task, end the claim with [`abort_async`](crate::ClaimGuard::abort_async).
    ///
    /// This is right only until the first effect. Just before that effect, call `claim.on_drop(OnDrop::Interrupt)`. A
    /// crash of the process is an interruption, whatever is set here.
    Abort,
}

/// What happens to a key when [`run`](crate::Store::run) has done the work and can't keep the result, because the
/// result is too large, doesn't encode, or doesn't fit on the disk.
///
/// The work is not done again, and the caller of `run` gets the value.
///
/// ```
/// # use onlyonce::{Claim, Error, OnUnkept, Operation, Run, testing::Sim};
/// # let store = Sim::new(1).open()?;
/// let rows = || Ok::<_, Error>(vec![0; 1 << 20]);
/// let run = store.run("export-7", |_claim| rows())?;
/// assert!(matches!(run, Run::Done(rows) if rows.len() == 1 << 20));
/// let Claim::Completed(done) = store.claim("export-7")? else { unreachable!() };
/// println!("done before; {:?}", done.missing()); // why there is nothing to replay
///
/// let op = Operation::new("export-8").on_unkept(OnUnkept::Hold); // a person is to see to it
/// let _ = store.run(&op, |_claim| rows())?;
/// assert!(matches!(store.claim(&op)?, Claim::Held(_)));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum OnUnkept {
    /// The key is completed without a result; [`Recorded::missing`](crate::Recorded::missing) of a replay returns the
    /// reason.
    #[default]
    Complete,
    /// The key is held until it is resolved, with the cause as the reason. Choose this if a later caller can't do
    /// without the result.
    Hold,
}

/// What a record survives once the call that wrote it has returned. Each level includes the guarantees of the levels
/// before it.
///
/// Every answer except `InProgress` is based on a record, and waits until that record is durable at its own level. Each
/// record has a level: one key may be claimed at `Flush` and completed at `Sync`.
///
/// ```
/// # use onlyonce::{Durability, Operation, testing::Sim};
/// # let sim = Sim::new(1);
/// # let store = sim.open()?;
/// let _ = store.mark(Operation::new("a").durability(Durability::Flush))?;
/// let _ = store.mark(Operation::new("b").durability(Durability::Lazy))?;
/// sim.kill();
/// let store = sim.open()?;
/// assert!(store.get("a")?.is_some());
/// assert!(store.get("b")?.is_none()); // it was still in memory
/// # onlyonce::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Durability {
    /// The record is in memory when the call returns, and is written within a second. It survives nothing with
    /// certainty: even a killed process may lose the last second. It costs no write of its own.
    Lazy,
    /// The operating system has the record when the call returns. The record survives the death of the process (`kill
    /// -9`, a panic, an abort), but not a power cut or a crash of the system, which may lose the last second or 4 MiB.
    /// It costs one write, shared by all waiting calls.
    Flush,
    /// The record is on stable storage when the call returns, provided that the disk reports syncs truthfully. The
    /// record survives power loss. It costs one write and one sync, shared by all waiting calls. This is the default
    /// for claims and outcomes.
    Sync,
}

/// How operations are treated: durability, lease, retention, and what an interruption means.
///
/// A setting is taken from the first of these that has it: the operation's own policy, the policy of the handle
/// (`with_policy`), the policy of the builder, and the built-in default that each setter names. An [`Operation`] has
/// the same setters.
///
/// Setters accept any value. The call that uses a policy refuses settings that are invalid or conflict, as `Invalid` or
/// `TooLarge`, before anything is written.
///
/// ```
/// use onlyonce::{Durability, OnInterrupted, Policy};
/// use std::time::Duration;
///
/// let charges = Policy::new()
///     .owner("host-3")
///     .lease(Duration::from_secs(30))
///     .retention(Duration::from_secs(7 * 86_400))
///     .on_interrupted(OnInterrupted::Hold);
/// let mails = Policy::new().durability(Durability::Flush);
/// ```
#[must_use = "a policy does nothing until a store or an operation is given it"]
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    owner: Option<Arc<str>>,
    lease: Option<Duration>,
    retention: Option<Duration>,
    remember_expired: Option<Duration>,
    on_interrupted: Option<OnInterrupted>,
    on_drop: Option<OnDrop>,
    on_unkept: Option<OnUnkept>,
    attempts_max: Option<u32>,
    reserve_bytes: Option<u32>,
    durability: Option<Durability>,
    claim_durability: Option<Durability>,
}

/// A policy with every setting resolved, except those that may stay unset. Times are rounded up to milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Settings {
    pub(crate) owner: Option<Arc<str>>,
    /// `None`: the claim lives as long as its guard.
    pub(crate) lease_ms: Option<u64>,
    /// `None`: for ever.
    pub(crate) retention_ms: Option<u64>,
    /// `None`: an expired key is as good as new.
    pub(crate) remember_ms: Option<u64>,
    /// `None`: the claimant is asked.
    pub(crate) on_interrupted: Option<OnInterrupted>,
    pub(crate) on_drop: OnDrop,
    pub(crate) on_unkept: OnUnkept,
    pub(crate) attempts_max: Option<u32>,
    pub(crate) reserve_bytes: u32,
    pub(crate) durability: Durability,
    pub(crate) claim_durability: Durability,
}

impl Policy {
    /// Makes a policy without any setting.
    ///
    /// ```
    /// use onlyonce::Policy;
    ///
    /// let hourly = Policy::new().retention(std::time::Duration::from_secs(3600));
    /// assert_ne!(hourly, Policy::new());
    /// ```
    pub fn new() -> Self {
        Policy::default()
    }

    /// This policy, with `fallback` for each unset setting.
    #[inline]
    pub(crate) fn or(&self, fallback: &Policy) -> Policy {
        Policy {
            owner: self.owner.clone().or_else(|| fallback.owner.clone()),
            lease: self.lease.or(fallback.lease),
            retention: self.retention.or(fallback.retention),
            remember_expired: self.remember_expired.or(fallback.remember_expired),
            on_interrupted: self.on_interrupted.or(fallback.on_interrupted),
            on_drop: self.on_drop.or(fallback.on_drop),
            on_unkept: self.on_unkept.or(fallback.on_unkept),
            attempts_max: self.attempts_max.or(fallback.attempts_max),
            reserve_bytes: self.reserve_bytes.or(fallback.reserve_bytes),
            durability: self.durability.or(fallback.durability),
            claim_durability: self.claim_durability.or(fallback.claim_durability),
        }
    }

    /// Space reserved for the result of a claim that sets nothing else.
    pub(crate) fn reserved(&self) -> u32 {
        self.reserve_bytes.unwrap_or(RESERVE_BYTES_DEFAULT)
    }

    /// Fills in the defaults, and refuses what can't keep its promise.
    pub(crate) fn resolve(&self) -> Result<Settings> {
        self.resolve_over(&Policy::new())
    }

    /// The same, where `fallback` counts for what is unset.
    pub(crate) fn resolve_over(&self, fallback: &Policy) -> Result<Settings> {
        self.or(fallback).into_settings()
    }

    // Inlined, as `or` is: every claim and mark passes here, and no policy is to be put together in memory for it.
    #[inline]
    fn into_settings(self) -> Result<Settings> {
        let settings = Settings {
            reserve_bytes: self.reserved(),
            owner: self.owner,
            lease_ms: self.lease.map(millis_up),
            retention_ms: self.retention.map(millis_up),
            remember_ms: self.remember_expired.map(millis_up).filter(|millis| *millis > 0),
            on_interrupted: self.on_interrupted,
            on_drop: self.on_drop.unwrap_or_default(),
            on_unkept: self.on_unkept.unwrap_or_default(),
            attempts_max: self.attempts_max,
            durability: self.durability.unwrap_or(Durability::Sync),
            claim_durability: self.claim_durability.unwrap_or(Durability::Sync),
        };
        settings.check()?;
        Ok(settings)
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        let owner_bytes = self.owner.as_ref().map_or(0, |owner| owner.len());
        if owner_bytes > LABEL_BYTES_MAX {
            let message = format!(
                "an owner label of {owner_bytes} bytes, at most {LABEL_BYTES_MAX}: name the host and the process"
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        if self.reserve_bytes > RESULT_BYTES_MAX {
            let message = format!(
                "reserve_bytes of {}, at most {RESULT_BYTES_MAX}: no result is larger",
                self.reserve_bytes
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        if self.lease_ms == Some(0) {
            return Err(Error::invalid(
                "a lease of zero lapses before the work begins: set a longer one, or none",
            ));
        }
        check_retention(self.retention_ms)?;
        if self.attempts_max == Some(0) {
            return Err(Error::invalid(
                "attempts_max is 0, so no attempt is ever granted: set at least 1, or leave it unset",
            ));
        }
        if self.on_interrupted == Some(OnInterrupted::Hold)
            && self.claim_durability < Durability::Sync
        {
            return Err(Error::invalid(format!(
                "OnInterrupted::Hold with claims at {:?}: a claim that a power cut forgets can't be held; \
                 set claim_durability to Sync, or choose Retry",
                self.claim_durability
            )));
        }
        Ok(())
    }
}

/// A result kept for zero time is not kept: each retry would do the work again.
pub(super) fn check_retention(retention_ms: Option<u64>) -> Result<()> {
    if retention_ms == Some(0) {
        return Err(Error::invalid(
            "a retention of zero forgets the result at once, and a retry runs again: set a longer one",
        ));
    }
    Ok(())
}

/// Whole milliseconds, rounded up: never shorter than requested, and zero only if zero was requested.
pub(super) fn millis_up(duration: Duration) -> u64 {
    // Limited to a `u64`, which store time never reaches.
    let part = u128::from(duration.subsec_nanos() % 1_000_000 != 0);
    u64::try_from(duration.as_millis() + part).unwrap_or(u64::MAX)
}

/// One list for [`Policy`] and [`Operation`]: an operation passes each setting to its own policy.
macro_rules! policy_setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        impl Policy {
            $($(#[$doc])*
            pub fn $name(mut self, $name: $type) -> Self {
                self.$name = Some($name.into());
                self
            })*
        }

        impl Operation<'_> {
            $($(#[$doc])*
            pub fn $name(mut self, $name: $type) -> Self {
                self.policy = self.policy.$name($name);
                self
            })*
        }
    };
}

policy_setters! {
    /// Sets the owner's label, for people to read, such as a host, a process or a worker. Other claimants see it in the
    /// answer `InProgress`.
    ///
    /// A label of more than 512 bytes is refused as `TooLarge`. By default there is no label.
    ///
    /// ```
    /// # use onlyonce::{Operation, Policy, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let store = store.with_policy(Policy::new().owner("host-3"));
    /// let mine = store.claim("nightly")?;
    /// assert!(store.claim("nightly")?.to_string().contains("by host-3"));
    /// let other = store.claim(Operation::new("weekly").owner("cron"))?; // for this one alone
    /// # drop((mine, other));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    owner: &str;

    /// Sets how long a claim lasts without a renewal. After that the next claimant finds the attempt interrupted.
    ///
    /// The lease also runs while the machine is suspended. A late owner may still end its claim until another attempt
    /// takes over. Zero is `Invalid`. By default there is no lease, and the claim lasts as long as its guard and its
    /// process.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// let op = Operation::new("report").lease(Duration::from_secs(30)); // a Policy has it too
    /// let stuck = store.claim(&op)?;
    /// assert!(matches!(store.claim(&op)?, Claim::InProgress(_)));
    /// # sim.advance(Duration::from_secs(31));
    /// assert!(matches!(store.claim(&op)?, Claim::Interrupted(_))); // 31 s later
    /// # drop(stuck);
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    lease: Duration;

    /// Sets how long a result is kept and replayed after it is recorded. After that the key is free again.
    ///
    /// Zero is `Invalid`. By default, results are kept for ever. Choose a time longer than any retry can take.
    ///
    /// ```
    /// # use onlyonce::{Policy, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// let day = Duration::from_secs(86_400);
    /// let store = sim.open()?.with_policy(Policy::new().retention(day)); // an Operation has it too
    /// assert!(store.mark("message-7")?.is_first());
    /// assert!(!store.mark("message-7")?.is_first());
    /// # sim.advance(day + day);
    /// assert!(store.mark("message-7")?.is_first()); // two days later
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    retention: Duration;

    /// Sets how long a key is remembered after its result's [`retention`](Self::retention) has passed. During that time
    /// a late retry is answered `Expired`, with the time of the work, instead of being granted the key as if it were
    /// new.
    ///
    /// The time is counted from the end of the retention, to the minute. The setting of the call that records the
    /// outcome counts. If a key is forgotten while an earlier outcome of the key was to be remembered, the later of the
    /// two times counts. Without a retention there is nothing to remember, because the result itself is kept. By
    /// default no key is remembered, and a retry after the retention does the work again.
    ///
    /// A remembered key takes 20 to 24 bytes on disk. It takes no memory, except 32 bytes or more while its segment is
    /// being reclaimed.
    ///
    /// ```
    /// # use onlyonce::{Claim, Policy, testing::Sim};
    /// # use std::time::Duration;
    /// # let sim = Sim::new(1);
    /// let day = Duration::from_secs(86_400);
    /// let policy = Policy::new().retention(day).remember_expired(365 * day); // an Operation has it too
    /// let store = sim.open()?.with_policy(policy);
    /// assert!(store.mark("message-7")?.is_first());
    /// # sim.advance(2 * day);
    /// // Two days later:
    /// assert!(matches!(store.claim("message-7")?, Claim::Expired(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    remember_expired: Duration;

    /// Sets what an interrupted attempt means for the next claim. See [`OnInterrupted`].
    ///
    /// `Hold` with a [`claim_durability`](Self::claim_durability) below `Sync` is `Invalid`. By default nothing is set,
    /// and the claimant decides.
    ///
    /// ```
    /// # use onlyonce::{Claim, OnInterrupted, Policy, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let store = store.with_policy(Policy::new().on_interrupted(OnInterrupted::Hold)); // an Operation has it too
    /// drop(store.claim("charge-7")?); // as a crash in the midst of it
    /// assert!(matches!(store.claim("charge-7")?, Claim::Held(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    on_interrupted: OnInterrupted;

    /// Sets what dropping the guard means. See [`OnDrop`]. Default: [`OnDrop::Interrupt`].
    ///
    /// ```
    /// # use onlyonce::{Claim, OnDrop, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let op = Operation::new("charge-7").on_drop(OnDrop::Abort); // a Policy has it too
    /// drop(store.claim(&op)?); // a `?` before anything was done
    /// assert!(matches!(store.claim(&op)?, Claim::Acquired(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    on_drop: OnDrop;

    /// Sets what happens to a key whose result can't be kept. See [`OnUnkept`]. Default: [`OnUnkept::Complete`].
    ///
    /// This applies to [`run`](crate::Store::run). With a [`ClaimGuard`](crate::ClaimGuard) you decide, because the
    /// error returns the guard.
    ///
    /// ```
    /// # use onlyonce::{Error, OnUnkept, Operation, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let op = Operation::new("export-8").on_unkept(OnUnkept::Hold); // a Policy has it too
    /// let _ = store.run(op, |_claim| Ok::<_, Error>(vec![0; 1 << 20]))?;
    /// assert!(matches!(store.get("export-8")?, Some(State::Held(_))));
    /// # Ok::<(), Error>(())
    /// ```
    on_unkept: OnUnkept;

    /// Sets how many attempts a key is granted. After that, claims are answered `Held`, with this limit as the reason,
    /// until the key is resolved. [`Resolution::Retry`](crate::Resolution::Retry) allows as many attempts again.
    ///
    /// The limit is the claimant's, and no part of the key: another operation may have another one, or none. So
    /// [`Store::get`](crate::Store::get) and [`Store::iter`](crate::Store::iter) show such a key as its last attempt left it,
    /// `Aborted` or `Interrupted`. Either can be resolved, by the attempt that a claim showed as `Held`, too. `docs/operations.md`
    /// says how to find such keys.
    ///
    /// Zero is `Invalid`. Default: no limit.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, Resolution, State, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let op = Operation::new("mail-1").attempts_max(2); // a Policy has it too
    /// for _ in 0..2 {
    ///     let Claim::Acquired(claim) = store.claim(&op)? else { unreachable!() };
    ///     claim.abort("the server is down")?;
    /// }
    /// let Claim::Held(attempt) = store.claim(&op)? else { unreachable!() };
    /// assert!(matches!(store.get("mail-1")?, Some(State::Aborted(_))));
    /// assert!(store.resolve(&attempt, Resolution::retry("the server is up again"))?); // the server is up again
    /// assert!(matches!(store.claim(&op)?, Claim::Acquired(claim) if claim.attempt() == 3));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    attempts_max: u32;

    /// Sets the disk space that each claim reserves for its result, so that the result can be recorded when the disk is
    /// full. A larger result is recorded if there is space for it.
    ///
    /// More than 48 MiB is refused as `TooLarge`. Default: 4 KiB.
    ///
    /// ```
    /// # use onlyonce::{Claim, Operation, testing::Sim};
    /// # let store = Sim::new(1).open()?;
    /// let op = Operation::new("page-1").reserve_bytes(10_000); // a Policy has it too
    /// let Claim::Acquired(claim) = store.claim(&op)? else { unreachable!() };
    /// claim.complete(&[b'x'; 10_000])?; // finds its room, even if the disk got full meanwhile
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    reserve_bytes: u32;

    /// Sets what the end of an attempt survives once it is acknowledged. See [`Durability`]. Default:
    /// [`Durability::Sync`].
    ///
    /// ```
    /// # use onlyonce::{Claim, Durability, Operation, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// let op = Operation::new("thumbnail-17").durability(Durability::Flush); // a Policy has it too
    /// let Claim::Acquired(claim) = store.claim(&op)? else { unreachable!() };
    /// claim.complete("thumbs/17.png")?;
    /// sim.kill();
    /// assert!(matches!(sim.open()?.claim(&op)?, Claim::Completed(_)));
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    durability: Durability;

    /// Sets what a claim survives once it is granted. See [`Durability`]. Default: [`Durability::Sync`].
    ///
    /// Weaker claims are cheaper, but an interruption may be forgotten: after a crash that the level doesn't survive,
    /// the key is new to the next claim.
    ///
    /// ```
    /// # use onlyonce::{Claim, Durability, Operation, testing::Sim};
    /// # let sim = Sim::new(1);
    /// # let store = sim.open()?;
    /// let op = Operation::new("thumbnail-17").claim_durability(Durability::Lazy); // a Policy has it too
    /// let claim = store.claim(&op)?; // no write, no sync
    /// # drop(claim);
    /// sim.power_loss();
    /// assert!(matches!(sim.open()?.claim(&op)?, Claim::Acquired(_))); // as if it had never begun
    /// # onlyonce::Result::<()>::Ok(())
    /// ```
    claim_durability: Durability;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Every setting, each with a value derived from `mark`.
    fn full(mark: u32) -> Policy {
        Policy::new()
            .owner(&format!("host-{mark}"))
            .lease(seconds(mark.into()))
            .retention(seconds((mark + 10).into()))
            .remember_expired(seconds((mark + 20).into()))
            .on_interrupted(if mark % 2 == 0 { OnInterrupted::Hold } else { OnInterrupted::Retry })
            .on_drop(if mark % 2 == 0 { OnDrop::Interrupt } else { OnDrop::Abort })
            .on_unkept(if mark % 2 == 0 { OnUnkept::Complete } else { OnUnkept::Hold })
            .attempts_max(mark)
            .reserve_bytes(mark)
            .durability(if mark % 2 == 0 { Durability::Lazy } else { Durability::Flush })
            .claim_durability(Durability::Sync)
    }

    #[test]
    fn unset_is_the_built_in_default() {
        let expected = Settings {
            owner: None,
            lease_ms: None,
            retention_ms: None,
            remember_ms: None,
            on_interrupted: None,
            on_drop: OnDrop::Interrupt,
            on_unkept: OnUnkept::Complete,
            attempts_max: None,
            reserve_bytes: 4096,
            durability: Durability::Sync,
            claim_durability: Durability::Sync,
        };
        assert_eq!(Policy::new().resolve().unwrap(), expected);
    }

    #[test]
    fn the_nearest_policy_counts_for_each_setting_separately() {
        let (operation, builder) = (full(1), full(2));
        assert_eq!(operation.or(&builder), operation);
        assert_eq!(Policy::new().or(&builder), builder);
        assert_eq!(operation.or(&Policy::new()), operation);

        type Set = fn(Policy, &Policy) -> Policy;
        let single: [Set; 11] = [
            |to, from| Policy { owner: from.owner.clone(), ..to },
            |to, from| Policy { lease: from.lease, ..to },
            |to, from| Policy { retention: from.retention, ..to },
            |to, from| Policy { remember_expired: from.remember_expired, ..to },
            |to, from| Policy { on_interrupted: from.on_interrupted, ..to },
            |to, from| Policy { on_drop: from.on_drop, ..to },
            |to, from| Policy { on_unkept: from.on_unkept, ..to },
            |to, from| Policy { attempts_max: from.attempts_max, ..to },
            |to, from| Policy { reserve_bytes: from.reserve_bytes, ..to },
            |to, from| Policy { durability: from.durability, ..to },
            |to, from| Policy { claim_durability: from.claim_durability, ..to },
        ];
        for set in single {
            let near = set(Policy::new(), &operation);
            assert_eq!(near.or(&builder), set(builder.clone(), &operation));
        }
    }

    #[test]
    fn an_operation_has_the_same_setters() {
        let operation = Operation::new("k")
            .owner("host-1")
            .lease(seconds(1))
            .retention(seconds(11))
            .remember_expired(seconds(21))
            .on_interrupted(OnInterrupted::Retry)
            .on_drop(OnDrop::Abort)
            .on_unkept(OnUnkept::Hold)
            .attempts_max(1)
            .reserve_bytes(1)
            .durability(Durability::Flush)
            .claim_durability(Durability::Sync);
        assert_eq!(operation.policy(), &full(1));
    }

    #[test]
    fn a_policy_that_cannot_keep_its_promise_is_refused() {
        use ErrorKind::{Invalid, TooLarge};
        let hold = || Policy::new().on_interrupted(OnInterrupted::Hold);
        let cases = [
            (Policy::new().lease(Duration::ZERO), Some(Invalid)),
            (Policy::new().lease(Duration::from_nanos(1)), None),
            (Policy::new().lease(Duration::MAX), None),
            (Policy::new().retention(Duration::ZERO), Some(Invalid)),
            (Policy::new().attempts_max(0), Some(Invalid)),
            (Policy::new().owner(&"o".repeat(LABEL_BYTES_MAX)), None),
            (Policy::new().owner(&"o".repeat(LABEL_BYTES_MAX + 1)), Some(TooLarge)),
            (Policy::new().reserve_bytes(RESULT_BYTES_MAX), None),
            (Policy::new().reserve_bytes(RESULT_BYTES_MAX + 1), Some(TooLarge)),
            (hold(), None),
            (hold().durability(Durability::Lazy), None),
            (hold().claim_durability(Durability::Flush), Some(Invalid)),
            (hold().claim_durability(Durability::Lazy), Some(Invalid)),
            // A nearer setting replaces a weaker default of the builder.
            (
                hold()
                    .claim_durability(Durability::Sync)
                    .or(&Policy::new().claim_durability(Durability::Lazy)),
                None,
            ),
            (hold().or(&Policy::new().claim_durability(Durability::Flush)), Some(Invalid)),
        ];
        for (policy, expected) in cases {
            assert_eq!(policy.resolve().err().map(|error| error.kind()), expected, "{policy:?}");
        }
    }

    #[test]
    fn times_are_never_shorter_than_requested() {
        let cases = [
            (Duration::ZERO, 0),
            (Duration::from_nanos(1), 1),
            (Duration::from_millis(5), 5),
            (Duration::from_micros(5001), 6),
            (Duration::MAX, u64::MAX),
        ];
        for (asked, millis) in cases {
            assert_eq!(millis_up(asked), millis, "{asked:?}");
        }
    }
}
