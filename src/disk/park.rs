//! Where requests wait for the key (`--on-revoke freeze`): the request itself is set aside, not the thread that serves it, so
//! that everything that needs no key is still answered (RULINGS 15).
//!
//! Invariants:
//! 1. A request that was set aside is done again or refused, within the time that was said when the waiting began, whatever
//!    becomes of whoever guards the key.
//! 2. What is set aside is bounded; who comes then is refused at once.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Job;
use crate::error::Result;
use crate::secret::SecretBytes;

/// What becomes of a request that was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The key is back: try again.
    Retry,
    /// It took too long.
    Refuse,
}

/// What a request that may have to wait is to write: in locked memory, wiped afterwards.
#[derive(Debug)]
pub struct Kept(SecretBytes);

impl Kept {
    /// A copy.
    ///
    /// # Errors
    /// No memory.
    pub fn copy_of(bytes: &[u8]) -> Result<Self> {
        let mut kept = SecretBytes::zeroed(bytes.len())?;
        kept.expose_mut().copy_from_slice(bytes);
        Ok(Self(kept))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.expose()
    }
}

/// Most that is set aside: requests, and bytes that are to be written.
const MAX_JOBS: usize = 4096;
const MAX_BYTES: usize = 32 << 20;

#[derive(Default)]
struct Lot {
    /// Until when requests are taken in; `None`: they are refused.
    until: Option<Instant>,
    jobs: Vec<Job>,
    bytes: usize,
    /// The last waiting ended with the key: who was on his way here meanwhile need not have been refused.
    thawed: bool,
    /// Distinguishes one freeze from the next.
    round: u64,
}

/// See the module's header.
#[derive(Clone, Default)]
pub(super) struct Parking(Arc<(Mutex<Lot>, Condvar)>);

impl std::fmt::Debug for Parking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parking").field("waiting", &self.waiting()).finish()
    }
}

impl Parking {
    // Not crate::sync: a job is never run under the lock, so there is no schedule to explore.
    fn lot(&self) -> MutexGuard<'_, Lot> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.lot().jobs.len()
    }

    /// From now on requests are set aside, at most until `max` is over.
    pub(super) fn freeze(&self, max: Duration) -> std::io::Result<()> {
        let until = Instant::now() + max;
        let round = {
            let mut lot = self.lot();
            lot.until = Some(until);
            lot.thawed = false;
            lot.round += 1;
            lot.round
        };
        let parking = self.clone();
        let keeper = std::thread::Builder::new().name("frozen".to_owned());
        // Without a keeper nobody would ever be let go.
        keeper.spawn(move || parking.keep(round, until)).map(drop).inspect_err(|_| drop(self.end()))
    }

    fn keep(&self, round: u64, until: Instant) {
        let mut lot = self.lot();
        while lot.round == round && lot.until.is_some() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lot);
                return self.end().into_iter().for_each(|job| job(Verdict::Refuse));
            }
            lot = self.0.1.wait_timeout(lot, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes everything out and takes nothing in any more.
    fn end(&self) -> Vec<Job> {
        let mut lot = self.lot();
        lot.until = None;
        lot.bytes = 0;
        self.0.1.notify_all();
        std::mem::take(&mut lot.jobs)
    }

    /// The key is back: what waits is done again, on a thread of its own.
    pub(super) fn thaw(&self) {
        let frozen = self.lot().until.is_some();
        let jobs = self.end();
        self.lot().thawed |= frozen;
        if jobs.is_empty() {
            return;
        }
        let worker = std::thread::Builder::new().name("thawed".to_owned());
        // Jobs that are dropped are refused by what they hold.
        if let Err(e) = worker.spawn(move || jobs.into_iter().for_each(|job| job(Verdict::Retry))) {
            log::error!("requests that waited for the key are refused: {e}");
        }
    }

    /// Sets a request of `bytes` aside, or says what becomes of it while the gate is `open` or not.
    pub(super) fn park(&self, bytes: usize, job: Job, open: bool) {
        let mut lot = self.lot();
        let taking = lot.until.is_some_and(|until| Instant::now() < until);
        if taking && lot.jobs.len() < MAX_JOBS && lot.bytes.saturating_add(bytes) <= MAX_BYTES {
            lot.bytes += bytes;
            lot.jobs.push(job);
            return;
        }
        let verdict = if lot.thawed && open { Verdict::Retry } else { Verdict::Refuse };
        drop(lot);
        job(verdict);
    }
}
