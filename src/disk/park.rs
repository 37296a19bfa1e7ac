//! Where requests wait for the key (`--on-revoke freeze`): the request itself is set aside, not the thread that serves it, so
//! that everything that needs no key is still answered (RULINGS 15).
//!
//! Invariants:
//! 1. A request that was set aside is done again or refused, within the time that was said when the waiting began, whatever
//!    becomes of whoever guards the key.
//! 2. What is set aside is bounded; who comes then is refused at once.
//! 3. Whoever is killed while he waits is let go soon: fuser 0.18 answers the kernel's INTERRUPT with ENOSYS, whereupon the
//!    kernel sends no other, so we look ourselves.

use std::collections::BTreeSet;
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

/// The thread that waits for an answer, as the kernel names it in a request; 0: there is none, or it is in another pid
/// namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asker(pub u32);

/// `PF_EXITING` of the kernel's sched.h, in the flags of proc_pid_stat(5).
const EXITING: u64 = 0x4;

impl Asker {
    /// Is it about to end, and only waits for us? A fatal signal of any kind makes the kernel send SIGKILL to each thread.
    fn is_dying(self) -> bool {
        if self.0 == 0 {
            return false;
        }
        std::fs::read_to_string(format!("/proc/{}/stat", self.0))
            .map_or_else(|_| self.is_gone(), |stat| is_ending(&stat))
    }

    /// There is no such thread: /proc may also hide those of other users (`hidepid`).
    fn is_gone(self) -> bool {
        let pid = i32::try_from(self.0).map(nix::unistd::Pid::from_raw);
        pid.is_ok_and(|pid| nix::sys::signal::kill(pid, None) == Err(nix::Error::ESRCH))
    }
}

/// Fields 9 (flags) and 31 (pending signals) of proc_pid_stat(5), which begin with the third behind the name.
fn is_ending(stat: &str) -> bool {
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let number = |n: usize| fields.get(n - 3).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    number(9) & EXITING != 0 || number(31) & (1 << (libc::SIGKILL - 1)) != 0
}

/// Most that is set aside: requests, and bytes that are to be written.
const MAX_JOBS: usize = 4096;
const MAX_BYTES: usize = 32 << 20;

/// How often it is looked who was killed.
const ROUND: Duration = Duration::from_millis(250);

struct Parked {
    asker: Asker,
    bytes: usize,
    job: Job,
}

#[derive(Default)]
struct Lot {
    /// Until when requests are taken in; `None`: they are refused.
    until: Option<Instant>,
    jobs: Vec<Parked>,
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
            lot = self.0.1.wait_timeout(lot, left.min(ROUND)).unwrap_or_else(PoisonError::into_inner).0;
            let askers: BTreeSet<Asker> = lot.jobs.iter().map(|parked| parked.asker).collect();
            drop(lot);
            let dying: BTreeSet<Asker> = askers.into_iter().filter(|asker| asker.is_dying()).collect();
            self.take(&dying).into_iter().for_each(|parked| (parked.job)(Verdict::Refuse));
            lot = self.lot();
        }
    }

    /// What these wait for.
    fn take(&self, askers: &BTreeSet<Asker>) -> Vec<Parked> {
        let mut lot = self.lot();
        let (theirs, others) =
            std::mem::take(&mut lot.jobs).into_iter().partition(|parked| askers.contains(&parked.asker));
        lot.jobs = others;
        lot.bytes = lot.jobs.iter().map(|parked| parked.bytes).sum();
        theirs
    }

    /// Takes everything out and takes nothing in any more.
    fn end(&self) -> Vec<Job> {
        let mut lot = self.lot();
        lot.until = None;
        lot.bytes = 0;
        self.0.1.notify_all();
        std::mem::take(&mut lot.jobs).into_iter().map(|parked| parked.job).collect()
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
    pub(super) fn park(&self, asker: Asker, bytes: usize, job: Job, open: bool) {
        let mut lot = self.lot();
        let taking = lot.until.is_some_and(|until| Instant::now() < until);
        if taking && lot.jobs.len() < MAX_JOBS && lot.bytes.saturating_add(bytes) <= MAX_BYTES {
            lot.bytes += bytes;
            lot.jobs.push(Parked { asker, bytes, job });
            return;
        }
        let verdict = if lot.thawed && open { Verdict::Retry } else { Verdict::Refuse };
        drop(lot);
        job(verdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_gone_is_dying_and_this_one_is_not() {
        assert!(!Asker(std::process::id()).is_dying());
        assert!(!Asker(0).is_dying());
        assert!(Asker(i32::MAX.cast_unsigned()).is_dying());
        // A name may hold anything.
        let stat = |flags: u64, pending: u64| {
            format!("7 (a) 1 4 (b) D 1 1 1 0 -1 {flags} {} {pending} 0", "0 ".repeat(21))
        };
        assert!(
            !is_ending(&stat(0, 0)) && is_ending(&stat(0x40_0004, 0)) && is_ending(&stat(0x40_0000, 256))
        );
        assert!(!is_ending(""));
    }
}
