//! Who may ask how much, and in which lane (RULINGS 33).
//!
//! Must never see: requests, keys.
//!
//! Invariants:
//! 1. Each identity has an allowance of its own, so that one cannot use up another's.
//! 2. A probe (a disk encryption set's identity that unwraps) has its own allowance and its own lane: neither its own
//!    identity's other requests nor those of everybody else stand before it.
//! 3. What is held is bounded: by the identities that the vault knows, which alone get here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

/// Requests of one identity that wait or are served at the same time.
const MOST_AT_ONCE: u32 = 64;

/// Where a request waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Looking a token up, signing in.
    Door,
    /// A set's identity unwraps: nothing else goes here.
    Probe,
    /// Everything else.
    Common,
    /// Making a key takes seconds of one processor.
    Making,
}

/// Threads that work for a lane at the same time.
const WIDTHS: [(Lane, usize); 4] = [(Lane::Door, 2), (Lane::Probe, 2), (Lane::Common, 3), (Lane::Making, 1)];

/// Threads for all lanes, and one for the hourly work.
pub(super) const THREADS: usize = 9;

#[derive(Debug)]
pub(super) struct Limits {
    lanes: HashMap<Lane, Arc<Semaphore>>,
    /// A second; `None`: as many as can be served.
    rate: Option<u32>,
    allowances: Mutex<HashMap<(Uuid, bool), Allowance>>,
}

#[derive(Debug)]
struct Allowance {
    left: f64,
    since: Instant,
    at_once: u32,
}

/// Too many.
#[derive(Debug)]
pub(super) struct Throttled;

impl Limits {
    pub(super) fn new(rate: Option<u32>) -> Self {
        let lanes = WIDTHS.map(|(lane, width)| (lane, Arc::new(Semaphore::new(width))));
        Self { lanes: lanes.into(), rate, allowances: Mutex::default() }
    }

    /// Waits for a place in the lane.
    pub(super) async fn place(&self, lane: Lane) -> Option<OwnedSemaphorePermit> {
        // Never closed, so always Some.
        Arc::clone(self.lanes.get(&lane)?).acquire_owned().await.ok()
    }

    /// One more request of this identity; it counts until the guard is dropped.
    pub(super) fn admit(self: &Arc<Self>, identity: Uuid, lane: Lane) -> Result<Admitted, Throttled> {
        self.admit_at(identity, lane, Instant::now())
    }

    fn admit_at(self: &Arc<Self>, identity: Uuid, lane: Lane, now: Instant) -> Result<Admitted, Throttled> {
        let whose = (identity, lane == Lane::Probe);
        let most = self.rate.map_or(f64::INFINITY, f64::from);
        let mut allowances = self.allowances.lock().unwrap_or_else(PoisonError::into_inner);
        let allowance = allowances.entry(whose).or_insert(Allowance { left: most, since: now, at_once: 0 });
        let gained = now.saturating_duration_since(allowance.since).as_secs_f64() * most;
        (allowance.left, allowance.since) = ((allowance.left + gained).min(most), now);
        if allowance.left < 1.0 || allowance.at_once >= MOST_AT_ONCE {
            return Err(Throttled);
        }
        allowance.left -= 1.0;
        allowance.at_once += 1;
        Ok(Admitted { limits: Arc::clone(self), whose })
    }
}

/// See [`Limits::admit`].
#[derive(Debug)]
pub(super) struct Admitted {
    limits: Arc<Limits>,
    whose: (Uuid, bool),
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut allowances = self.limits.allowances.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(allowance) = allowances.get_mut(&self.whose) {
            allowance.at_once = allowance.at_once.saturating_sub(1);
        }
    }
}

/// When a throttled client may come back: by then the allowance is there again.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_runs_out_and_comes_back_and_is_nobody_elses() {
        let limits = Arc::new(Limits::new(Some(3)));
        let (a, b, start) = (Uuid::new_v4(), Uuid::new_v4(), Instant::now());
        let ask = |who, lane, after| limits.admit_at(who, lane, start + Duration::from_millis(after)).is_ok();
        assert_eq!([0; 4].map(|t| ask(a, Lane::Common, t)), [true, true, true, false]);
        assert!(ask(b, Lane::Common, 0), "another identity");
        assert!(ask(a, Lane::Probe, 0), "its probes");
        assert!(!ask(a, Lane::Making, 300), "its other requests");
        assert_eq!([350, 351].map(|t| ask(a, Lane::Common, t)), [true, false]);
        assert_eq!([9000; 4].map(|t| ask(a, Lane::Common, t)), [true, true, true, false]);
    }

    #[test]
    fn what_is_served_at_once_is_bounded_without_a_rate_too() {
        let limits = Arc::new(Limits::new(None));
        let who = Uuid::new_v4();
        let mut held: Vec<_> = (0..64).map(|_| limits.admit(who, Lane::Common).unwrap()).collect();
        assert!(limits.admit(who, Lane::Common).is_err());
        held.pop();
        assert!(limits.admit(who, Lane::Common).is_ok());
    }
}
