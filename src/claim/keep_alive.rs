//! A claim that is renewed in the background: see [`ClaimHandle::keep_alive`].
//!
//! Promises: no thread for each claim, and no I/O in the thread that keeps the time; nothing is renewed beyond the ceiling, or
//! once the claim has ended. Never: keeps a claim or a store alive by itself: it knows the claim weakly.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use super::handle::ClaimInner;
use super::{ClaimHandle, Pending};
use crate::engine::Alarm;
use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering};
use crate::{ErrorKind, Result};

const MILLI: u64 = 1_000_000;

/// What renews a claim. Its alarm wakes it; whichever thread that is carries it on.
pub(super) struct Renewer {
    claim: Weak<ClaimInner>,
    lease_ms: u64,
    /// Nanoseconds, like all times here: the ceiling.
    until: u64,
    is_over: AtomicBool,
    /// Wake-ups since it was carried on: one thread carries it on at a time, again for each that came meanwhile.
    knocks: AtomicU32,
    state: Mutex<RenewerState>,
}

struct RenewerState {
    /// `None`: it is over.
    alarm: Option<Alarm>,
    /// When it is renewed next, and when the lease passes.
    due: u64,
    lapses: u64,
    renewal: Option<Pending<()>>,
}

/// Ends the renewals when it is dropped.
pub(super) struct KeptAlive(Arc<Renewer>);

impl Drop for KeptAlive {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
        Renewer::knock(&self.0);
    }
}

impl Renewer {
    /// Renews the claim at once, and again whenever half of the lease has passed. `lease_ms`: `None` if it has none.
    pub(super) fn begin(
        handle: &ClaimHandle,
        lease_ms: Option<u64>,
        ceiling_ms: u64,
    ) -> Result<KeptAlive> {
        let shared = &handle.0.shared;
        let (alarm, now) = (shared.alarm()?, shared.nanos());
        let renewer = Arc::new(Renewer {
            claim: Arc::downgrade(&handle.0),
            // Without a lease of its own it gets one that lasts until the ceiling.
            lease_ms: lease_ms.unwrap_or(ceiling_ms),
            until: now.saturating_add(ceiling_ms.saturating_mul(MILLI)),
            is_over: AtomicBool::new(false),
            knocks: AtomicU32::new(0),
            state: Mutex::new(RenewerState {
                alarm: Some(alarm),
                due: now,
                lapses: now,
                renewal: None,
            }),
        });
        Renewer::knock(&renewer);
        Ok(KeptAlive(renewer))
    }

    /// Carries it on, unless a thread does: then that one goes on.
    fn knock(this: &Arc<Self>) {
        if this.knocks.fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        loop {
            let heard = this.knocks.load(Ordering::SeqCst);
            Renewer::carry_on(this);
            if this.knocks.fetch_sub(heard, Ordering::SeqCst) == heard {
                return;
            }
        }
    }

    fn carry_on(this: &Arc<Self>) {
        // Dropped after the lock is: it may be the last that holds the claim.
        let inner = this.claim.upgrade();
        let mut state = this.state.lock();
        let inner = inner
            .as_ref()
            .filter(|inner| inner.liveness.is_live() && !this.is_over.load(Ordering::SeqCst));
        let goes_on = inner.is_some_and(|inner| this.renew(inner, &mut state));
        if !goes_on {
            state.renewal = None;
            state.alarm = None;
        }
    }

    /// Goes on as far as that takes no waiting. Returns false once nothing is left to renew.
    fn renew(self: &Arc<Self>, inner: &Arc<ClaimInner>, state: &mut RenewerState) -> bool {
        let waker = Waker::from(Arc::clone(self));
        let shared = &inner.shared;
        loop {
            if let Some(renewal) = &mut state.renewal {
                match Pin::new(renewal).poll(&mut Context::from_waker(&waker)) {
                    Poll::Pending => return true,
                    Poll::Ready(Ok(())) => {}
                    // Space may come back, or the store be reopened, as long as the lease runs.
                    Poll::Ready(Err(e)) if may_pass(e.kind()) => {
                        let left = state.lapses.saturating_sub(shared.nanos());
                        if left < MILLI {
                            return false;
                        }
                        state.due = state.lapses - left / 2;
                    }
                    Poll::Ready(Err(_)) => return false,
                }
                state.renewal = None;
            }
            let now = shared.nanos();
            if now < state.due {
                let Some(alarm) = &mut state.alarm else { return false };
                if !shared.times(alarm) {
                    // The store was reopened.
                    let Ok(new) = shared.alarm() else { return false };
                    *alarm = new;
                }
                alarm.set_waker(&waker);
                if alarm.set_due(Some(state.due)) {
                    shared.keep_time();
                }
                if !shared.times(alarm) {
                    // Before it was set: nobody sets that one off.
                    continue;
                }
                return true;
            }
            // Rounded down: the last renewal must not reach beyond the ceiling.
            let lease_ms = self.lease_ms.min(self.until.saturating_sub(now) / MILLI);
            if lease_ms == 0 || self.until <= state.lapses {
                return false;
            }
            state.lapses = now.saturating_add(lease_ms.saturating_mul(MILLI));
            state.due = now + (state.lapses - now) / 2;
            if lease_ms < self.lease_ms || state.lapses >= self.until {
                state.lapses = self.until;
            }
            state.renewal = Some(ClaimHandle(Arc::clone(inner)).renew_for(lease_ms));
        }
    }
}

/// Whether a renewal that fails so is tried again.
fn may_pass(kind: ErrorKind) -> bool {
    use ErrorKind::{Indeterminate, Io, Poisoned, StorageFull};
    matches!(kind, StorageFull | Io | Poisoned | Indeterminate)
}

impl Wake for Renewer {
    fn wake(self: Arc<Self>) {
        Renewer::knock(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        Renewer::knock(self);
    }
}
