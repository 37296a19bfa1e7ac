//! The key gate: the only place of a mount where the cipher lives.
//!
//! The cipher is held around crypto only, never across I/O (RULINGS 14). Whoever starts an I/O takes a [`Ticket`]; each
//! crypto section shows it again. [`Gate::close`] refuses new tickets at once, waits for the crypto sections that run
//! (microseconds), and wipes the key; an I/O that returns from the store later finds its ticket void.
//!
//! The key is on lease (RULINGS 21): whoever guards it says until when, and says so again and again. A ticket is worth nothing
//! after that, whether or not the guard still lives. The clock is that of the kernel's last tick, a few nanoseconds to read,
//! and stands still while the machine sleeps.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::{AtomicU64, Ordering, RwLock, read, write};
use crate::xts::XtsCipher;

/// Proof that the gate was open when an I/O began, and in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ticket(u64);

/// See the module's header.
#[derive(Debug)]
pub struct Gate {
    // Odd: open. Even: closed. Changes by one, under the write lock or before it (close).
    epoch: AtomicU64,
    // Milliseconds of the clock below; UNTIL_TOLD: no end.
    lease: AtomicU64,
    cipher: RwLock<Option<XtsCipher>>,
}

const UNTIL_TOLD: u64 = u64::MAX;

const fn is_open(epoch: u64) -> bool {
    epoch % 2 == 1
}

/// Milliseconds since some start.
fn clock() -> u64 {
    // It cannot fail on Linux; a clock that does would end every lease.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .ok()
        .and_then(|time| u64::try_from(Duration::from(time).as_millis()).ok())
        .unwrap_or(UNTIL_TOLD - 1)
}

fn closed() -> Error {
    Error::new(ErrorKind::Revoked, "the key of this disk is revoked")
        .hint("enable the key again or restore the grant; I/O resumes without a remount")
}

impl Gate {
    /// Open, with this cipher behind it.
    #[must_use]
    pub fn open(cipher: XtsCipher) -> Self {
        Self {
            epoch: AtomicU64::new(1),
            lease: AtomicU64::new(UNTIL_TOLD),
            cipher: RwLock::new(Some(cipher)),
        }
    }

    /// A ticket for a new I/O.
    ///
    /// # Errors
    /// `Revoked` when the gate is closed.
    pub fn enter(&self) -> Result<Ticket> {
        let epoch = self.epoch.load(Ordering::Acquire);
        if is_open(epoch) && !self.has_lapsed() { Ok(Ticket(epoch)) } else { Err(closed()) }
    }

    /// For an I/O that needs no crypto (a cache hit): was the gate open all the time?
    ///
    /// # Errors
    /// `Revoked`.
    pub fn check(&self, ticket: Ticket) -> Result<()> {
        if self.epoch.load(Ordering::Acquire) == ticket.0 && !self.has_lapsed() {
            Ok(())
        } else {
            Err(closed())
        }
    }

    /// Lends the key for this long from now on; `None`: until told otherwise.
    pub fn lend(&self, time: Option<Duration>) {
        let end = time.map_or(UNTIL_TOLD, |time| {
            let millis = u64::try_from(time.as_millis()).unwrap_or(UNTIL_TOLD);
            clock().saturating_add(millis).min(UNTIL_TOLD - 1)
        });
        self.lease.store(end, Ordering::Release);
    }

    /// How much is left of the lease; `None`: it has no end.
    #[must_use]
    pub fn lease_left(&self) -> Option<Duration> {
        let end = self.lease.load(Ordering::Acquire);
        (end != UNTIL_TOLD).then(|| Duration::from_millis(end.saturating_sub(clock())))
    }

    /// Has the lease run out? Then the gate is as good as closed, but the key is still behind it: close it.
    #[must_use]
    pub fn has_lapsed(&self) -> bool {
        let end = self.lease.load(Ordering::Acquire);
        end != UNTIL_TOLD && clock() >= end
    }

    /// Runs one crypto section. Keep it short: no I/O inside.
    ///
    /// # Errors
    /// `Revoked` when the gate closed since the ticket was taken.
    pub fn with_cipher<R>(&self, ticket: Ticket, section: impl FnOnce(&XtsCipher) -> R) -> Result<R> {
        let cipher = read(&self.cipher);
        self.check(ticket)?;
        cipher.as_ref().map(section).ok_or_else(closed)
    }

    /// Refuses new I/O, waits for running crypto sections, wipes the key, and runs `wipe` (the caches). Returns false when it
    /// was closed already; then what that closing had to wipe is wiped, too.
    pub fn close(&self, wipe: impl FnOnce()) -> bool {
        let epoch = self.epoch.load(Ordering::Acquire);
        let closed = is_open(epoch)
            && self.epoch.compare_exchange(epoch, epoch + 1, Ordering::AcqRel, Ordering::Acquire).is_ok();
        let mut cipher = write(&self.cipher);
        // Whoever gets here first after a closing wipes, and the others find it done. Open again: that was another's closing,
        // and a resume has followed it.
        if !is_open(self.epoch.load(Ordering::Acquire)) && cipher.is_some() {
            // First, because a large cache takes its time.
            *cipher = None;
            wipe();
        }
        closed
    }

    /// Opens a closed gate with a cipher derived anew. Returns false when it is open.
    pub fn reopen(&self, cipher: XtsCipher) -> bool {
        let mut slot = write(&self.cipher);
        if slot.is_some() {
            return false;
        }
        *slot = Some(cipher);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// Closed, whatever the lease says: there is no key behind it, or it is being wiped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !is_open(self.epoch.load(Ordering::Acquire))
    }

    /// True while I/O is served.
    #[must_use]
    pub fn is_open(&self) -> bool {
        is_open(self.epoch.load(Ordering::Acquire)) && !self.has_lapsed()
    }
}
