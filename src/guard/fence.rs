//! Closing the gate, by whoever has to: the guard, or, when that is dead or stuck, the watch over its lease (RULINGS 21).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::event::Responder;
use crate::disk::PlainDisk;
use crate::error::Result;
use crate::revocation::{OnRevoke, Policy};

/// What is done after the wipe, on a thread nobody waits for: sync the store, drop the kernel's pages.
pub type Settle = Arc<dyn Fn() + Send + Sync>;

/// How long the watch sleeps at most. A lease that is shortened wakes it; this is for a clock that jumps.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

pub(super) struct Fence {
    disk: Arc<PlainDisk>,
    policy: Policy,
    responder: Arc<dyn Responder>,
    settle: Settle,
    fences: AtomicU64,
    ended: AtomicBool,
    changed: (Mutex<()>, Condvar),
}

impl Fence {
    pub(super) fn new(
        disk: Arc<PlainDisk>,
        policy: Policy,
        responder: Arc<dyn Responder>,
        settle: Settle,
    ) -> Self {
        Self {
            disk,
            policy,
            responder,
            settle,
            fences: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            changed: (Mutex::new(()), Condvar::new()),
        }
    }

    pub(super) fn disk(&self) -> &PlainDisk {
        &self.disk
    }

    pub(super) fn on_revoke(&self) -> OnRevoke {
        self.policy.on_revoke(self.responder.has_guests())
    }

    pub(super) fn has_guests(&self) -> bool {
        self.responder.has_guests()
    }

    pub(super) fn fences(&self) -> u64 {
        self.fences.load(Ordering::Relaxed)
    }

    /// Closes the gate and wipes. Returns false when that was done.
    pub(super) fn fall(&self) -> bool {
        if !self.disk.volume().gate().is_closed() && self.on_revoke() == OnRevoke::Freeze {
            // Before the gate closes: nobody is to be refused in between.
            if let Err(e) = self.disk.freeze(self.policy.freeze_max) {
                log::error!("requests are refused instead of frozen: {}", e.chain());
            }
        }
        let fell = self.disk.fence();
        if fell {
            self.fences.fetch_add(1, Ordering::Relaxed);
            let settle = Arc::clone(&self.settle);
            let thread = std::thread::Builder::new().name("settle".to_owned()).spawn(move || settle());
            if let Err(e) = thread {
                log::error!("the store is not synced after the fence: {e}");
            }
        }
        fell
    }

    /// Lends the key for so long from now on.
    pub(super) fn lend(&self, time: Option<Duration>) {
        self.disk.volume().gate().lend(time);
        // Under its lock, so that the watch is either before its look or in its sleep.
        drop(self.changed.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.1.notify_all();
    }

    /// The watch ends.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.lend(None);
    }

    /// Watches the lease on a thread of its own, and tells `lapsed` after it has closed the gate.
    pub(super) fn watch(self: &Arc<Self>, lapsed: impl Fn() + Send + 'static) -> Result<()> {
        let fence = Arc::clone(self);
        let thread = std::thread::Builder::new().name("lease".to_owned());
        thread
            .spawn(move || {
                while !fence.ended.load(Ordering::Acquire) {
                    let gate = fence.disk.volume().gate();
                    if gate.has_lapsed() && !gate.is_closed() {
                        fence.fall();
                        lapsed();
                    }
                    fence.sleep();
                }
            })
            .map(drop)
            .map_err(|e| crate::error::Error::io("start a thread", e))
    }

    fn sleep(&self) {
        let guard = self.changed.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        let gate = self.disk.volume().gate();
        let left = gate.lease_left().filter(|_| !gate.is_closed());
        let left = left.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP);
        // The clock of the lease has ticks of some milliseconds.
        let left = left.max(Duration::from_millis(1));
        drop(self.changed.1.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner));
    }
}
