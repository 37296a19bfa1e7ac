//! Commits of operations, made durable several at a time.
//!
//! With `synchronous=FULL` SQLite waits for the medium inside each commit, one commit after the other: a vault then does as
//! many operations a second as its medium does syncs (71 unwraps a second where this does 150, on a busy machine). So
//! operations commit with `synchronous=NORMAL`, which leaves their frames in the WAL's page cache, and wait for the medium
//! afterwards, without the lock. Whoever comes first syncs for everybody that has committed by then.
//!
//! Must never see: what is committed.
//!
//! Invariants:
//! 1. No answer leaves before its record is on the medium: [`Durable::wait`] comes between commit and answer.
//! 2. A checkpoint (ours or another process's) syncs WAL and database itself, also with NORMAL, before a frame's place is
//!    used again. So a frame is always in a synced database or in the WAL that is synced here.
//! 3. Everything but operations (making a vault, migrations, changing the root key) commits with FULL.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

use super::refusal::transient;
use crate::vault::VaultError;

/// How far the commits of this process are on the medium.
#[derive(Debug, Default)]
pub(super) struct Durable {
    committed: AtomicU64,
    synced: Mutex<u64>,
}

/// One commit that is not on the medium yet.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket(u64);

impl Durable {
    /// Just after a commit, with the connection still locked.
    pub(super) fn committed(&self) -> Ticket {
        Ticket(self.committed.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Until it is on the medium.
    ///
    /// # Errors
    /// `Transient`: the medium did not take it.
    pub(super) fn wait(&self, ticket: Ticket, database: &Path) -> Result<(), VaultError> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced >= ticket.0 {
            return Ok(());
        }
        let covered = self.committed.load(Ordering::SeqCst);
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        // Locks are on the database and its -shm, never on the WAL: closing this descriptor drops nobody's.
        File::open(&wal)
            .and_then(|wal| wal.sync_data())
            .map_err(|e| transient(format!("sync {}: {e}", Path::new(&wal).display())))?;
        *synced = covered;
        Ok(())
    }
}

/// A connection that goes back to FULL, also when the work panics: a lock that was poisoned is used again.
struct Relaxed<'a>(&'a mut Connection);

impl Relaxed<'_> {
    fn end(&mut self) -> rusqlite::Result<()> {
        self.0.pragma_update(None, "synchronous", "FULL")
    }
}

impl Drop for Relaxed<'_> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Runs `work`, whose commits are made durable by [`Durable::wait`].
pub(super) fn relaxed<T, E: From<rusqlite::Error>>(
    conn: &mut Connection,
    work: impl FnOnce(&mut Connection) -> Result<T, E>,
) -> Result<T, E> {
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    let mut relaxed = Relaxed(conn);
    let done = work(relaxed.0);
    relaxed.end()?;
    done
}
