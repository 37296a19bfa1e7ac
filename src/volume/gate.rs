//! The key gate: the only place of a mount where the cipher lives.
//!
//! The cipher is held around crypto only, never across I/O (RULINGS 14). Whoever starts an I/O takes a [`Ticket`]; each
//! crypto section shows it again. [`Gate::close`] refuses new tickets at once, waits for the crypto sections that run
//! (microseconds), and wipes the key; an I/O that returns from the store later finds its ticket void.

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
    cipher: RwLock<Option<XtsCipher>>,
}

const fn is_open(epoch: u64) -> bool {
    epoch % 2 == 1
}

fn closed() -> Error {
    Error::new(ErrorKind::Revoked, "the key of this disk is revoked")
        .hint("enable the key again or restore the grant; I/O resumes without a remount")
}

impl Gate {
    /// Open, with this cipher behind it.
    #[must_use]
    pub fn open(cipher: XtsCipher) -> Self {
        Self { epoch: AtomicU64::new(1), cipher: RwLock::new(Some(cipher)) }
    }

    /// A ticket for a new I/O.
    ///
    /// # Errors
    /// `Revoked` when the gate is closed.
    pub fn enter(&self) -> Result<Ticket> {
        let epoch = self.epoch.load(Ordering::Acquire);
        if is_open(epoch) { Ok(Ticket(epoch)) } else { Err(closed()) }
    }

    /// For an I/O that needs no crypto (a cache hit): was the gate open all the time?
    ///
    /// # Errors
    /// `Revoked`.
    pub fn check(&self, ticket: Ticket) -> Result<()> {
        if self.epoch.load(Ordering::Acquire) == ticket.0 { Ok(()) } else { Err(closed()) }
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

    /// Refuses new I/O, waits for running crypto sections, wipes the key, and runs `wipe` (the caches).
    /// Returns false when it was closed already.
    pub fn close(&self, wipe: impl FnOnce()) -> bool {
        let epoch = self.epoch.load(Ordering::Acquire);
        if !is_open(epoch)
            || self.epoch.compare_exchange(epoch, epoch + 1, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return false;
        }
        let mut cipher = write(&self.cipher);
        // First, because a large cache takes its time.
        *cipher = None;
        wipe();
        true
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

    /// True while I/O is served.
    #[must_use]
    pub fn is_open(&self) -> bool {
        is_open(self.epoch.load(Ordering::Acquire))
    }
}
