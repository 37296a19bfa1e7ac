//! The guests of a mount: virtual machines whose monitors (QMP) were told to us, and what is done to them around the fence.
//!
//! Must never see: keys, vaults.
//!
//! Invariants:
//! 1. Nothing here holds up the fence: every conversation has a deadline, guests are spoken to all at once, and no lock is
//!    held meanwhile.
//! 2. Only what we stopped is continued: a guest that its owner paused stays so.
//! 3. What nobody registered is reported and never touched (RULINGS 28).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::processes::{self, Holder};
use super::qmp::{Qmp, RunState};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Mutex, lock};

/// Most guests of one disk; a disk that several write at once needs a cluster's file system anyway.
const MAX_GUESTS: usize = 16;

/// For a look.
const LOOK: Duration = Duration::from_millis(500);

/// For stopping: QEMU waits for I/O on its way.
const STOP: Duration = Duration::from_secs(2);

/// For the end of QEMU.
const QUIT: Duration = Duration::from_secs(10);

/// Between two looks at a guest that shuts down.
const AGAIN: Duration = Duration::from_millis(100);

/// A guest, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Guest {
    qmp: PathBuf,
    /// By us, and not yet continued.
    stopped: bool,
}

/// What `guest list` and `status` say of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestStatus {
    /// Its monitor.
    pub qmp: PathBuf,
    /// `running`, `paused`, `io-error`, `shutdown`, `other`; `gone`: nobody listens; `silent`: no answer.
    pub state: String,
    /// The process, while there is one.
    pub pid: Option<u32>,
    /// Is the presented file among its disks? `None`: not known.
    pub uses_disk: Option<bool>,
    /// We stopped it at the fence.
    pub stopped: bool,
}

/// The guests of a mount, and those that should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestList {
    /// Registered.
    pub guests: Vec<GuestStatus>,
    /// QEMU processes that have the presented file open and are not.
    pub unregistered: Vec<Holder>,
}

/// What was done to a guest, for the journal.
#[derive(Debug)]
pub(super) struct Deed {
    pub(super) qmp: PathBuf,
    pub(super) done: Result<Did>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Did {
    Stopped,
    Powerdown,
    Quit,
    Continued,
    /// It was not in the way.
    Nothing,
}

/// See the module's header.
#[derive(Debug)]
pub struct Guests {
    file: PathBuf,
    list: Mutex<Vec<Guest>>,
}

impl Guests {
    /// Of a mount that presents this file.
    #[must_use]
    pub const fn new(file: PathBuf) -> Self {
        Self { file, list: Mutex::new(Vec::new()) }
    }

    /// The file they use.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Registers the guest with this monitor, which need not be there yet; says what is seen of it. Again is harmless.
    ///
    /// # Errors
    /// `InvalidInput`: the path is relative, or what listens there does not speak QMP; `Exists`: there are too many.
    pub fn add(&self, qmp: &Path) -> Result<GuestStatus> {
        if !qmp.is_absolute() || qmp.to_str().is_none() {
            let message = "QMP socket: found a path that is not, allowed an absolute one in UTF-8";
            return Err(Error::new(ErrorKind::InvalidInput, message).at(qmp));
        }
        let guest = Guest { qmp: qmp.to_owned(), stopped: false };
        let seen = self.look_at(&guest, &processes::qemus(&self.file));
        let status = match seen {
            Err(e) if e.kind() == ErrorKind::InvalidInput => return Err(e),
            Err(e) => unseen(&guest, &e),
            Ok(status) => status,
        };
        let mut list = lock(&self.list);
        if !list.iter().any(|known| known.qmp == guest.qmp) {
            if list.len() >= MAX_GUESTS {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("found {MAX_GUESTS} guests, allowed {MAX_GUESTS} a disk"),
                )
                .hint("those that are gone can be removed: wrapdisk guest remove"));
            }
            list.push(guest);
        }
        Ok(status)
    }

    /// Forgets a guest; nothing happens to it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&self, qmp: &Path) -> Result<()> {
        let mut list = lock(&self.list);
        let before = list.len();
        list.retain(|guest| guest.qmp != qmp);
        if list.len() == before {
            return Err(Error::new(ErrorKind::NotFound, "no guest of this mount has this monitor").at(qmp));
        }
        Ok(())
    }

    /// Is any registered?
    #[must_use]
    pub fn any(&self) -> bool {
        !lock(&self.list).is_empty()
    }

    /// Looks at all of them.
    #[must_use]
    pub fn look(&self) -> GuestList {
        let holders = processes::qemus(&self.file);
        let guests = self.each(|guest| self.look_at(guest, &holders).unwrap_or_else(|e| unseen(guest, &e)));
        let known = |holder: &Holder| guests.iter().any(|guest| guest.pid == Some(holder.pid));
        let unregistered = holders.into_iter().filter(|holder| !known(holder)).collect();
        GuestList { guests, unregistered }
    }

    fn look_at(&self, guest: &Guest, holders: &[Holder]) -> Result<GuestStatus> {
        let mut monitor = Qmp::connect(&guest.qmp, Instant::now() + LOOK)?;
        let pid = monitor.pid();
        let state = monitor.state()?;
        let uses = match pid {
            Some(pid) if holders.iter().any(|holder| holder.pid == pid) => Some(true),
            // As root, and as the guest's owner, /proc would have shown it; so this finds what runs elsewhere.
            _ => monitor.files().ok().map(|files| files.contains(&self.file)),
        };
        Ok(GuestStatus {
            qmp: guest.qmp.clone(),
            state: state.to_string(),
            pid,
            uses_disk: uses,
            stopped: guest.stopped,
        })
    }

    /// Stops every guest that runs.
    pub(super) fn stop(&self) -> Vec<Deed> {
        let deeds = self.deeds(|guest| {
            let mut monitor = Qmp::connect(&guest.qmp, Instant::now() + STOP)?;
            if monitor.state()? != RunState::Running {
                return Ok(Did::Nothing);
            }
            monitor.stop().map(|()| Did::Stopped)
        });
        for deed in deeds.iter().filter(|deed| matches!(deed.done, Ok(Did::Stopped))) {
            self.mark(&deed.qmp, true);
        }
        deeds
    }

    /// Asks every guest to shut down, and waits for it until `window` is over or all are gone.
    pub(super) fn powerdown(&self, window: Duration) -> Vec<Deed> {
        let deadline = Instant::now() + window;
        self.deeds(|guest| {
            let mut monitor = Qmp::connect(&guest.qmp, deadline)?;
            monitor.powerdown()?;
            loop {
                match monitor.state() {
                    // Powered off and kept (-no-shutdown); or gone.
                    Ok(RunState::Shutdown) => return Ok(Did::Powerdown),
                    Err(e) if e.kind() == ErrorKind::Io => return Ok(Did::Powerdown),
                    Ok(_) => std::thread::sleep(AGAIN),
                    Err(e) => return Err(e),
                }
            }
        })
    }

    /// Ends every guest.
    pub(super) fn quit(&self) -> Vec<Deed> {
        let deeds = self.deeds(|guest| {
            let monitor = Qmp::connect(&guest.qmp, Instant::now() + QUIT)?;
            monitor.quit().map(|()| Did::Quit)
        });
        for deed in deeds.iter().filter(|deed| deed.done.is_ok()) {
            self.mark(&deed.qmp, false);
        }
        deeds
    }

    /// Continues the guests that we stopped, and those that met the fence's errors and wait (`werror=stop`).
    pub(super) fn cont(&self) -> Vec<Deed> {
        let deeds = self.deeds(|guest| {
            let mut monitor = Qmp::connect(&guest.qmp, Instant::now() + STOP)?;
            match monitor.state()? {
                RunState::Paused if guest.stopped => {}
                RunState::IoError => {}
                _ => return Ok(Did::Nothing),
            }
            monitor.cont().map(|()| Did::Continued)
        });
        for deed in deeds.iter().filter(|deed| deed.done.is_ok()) {
            self.mark(&deed.qmp, false);
        }
        deeds
    }

    /// QEMU processes that use the file and that nobody registered.
    pub(super) fn unregistered(&self) -> Vec<Holder> {
        self.look().unregistered
    }

    fn mark(&self, qmp: &Path, stopped: bool) {
        for guest in lock(&self.list).iter_mut().filter(|guest| guest.qmp == qmp) {
            guest.stopped = stopped;
        }
    }

    /// What is done to each; who is gone needs nothing done to it.
    fn deeds(&self, act: impl Fn(&Guest) -> Result<Did> + Sync) -> Vec<Deed> {
        self.each(|guest| {
            let done = match act(guest) {
                Err(e) if is_gone(&e) => Ok(Did::Nothing),
                done => done.map_err(|e| e.or_at(&guest.qmp)),
            };
            Deed { qmp: guest.qmp.clone(), done }
        })
    }

    /// All at once: one that hangs keeps no other waiting.
    fn each<T: Send>(&self, act: impl Fn(&Guest) -> T + Sync) -> Vec<T> {
        let guests = lock(&self.list).clone();
        let act = &act;
        std::thread::scope(|scope| {
            let start = |guest| std::thread::Builder::new().spawn_scoped(scope, move || act(guest));
            let threads: Vec<_> = guests.iter().map(start).collect();
            threads.into_iter().filter_map(|thread| thread.ok()?.join().ok()).collect()
        })
    }
}

/// Nobody listens there.
fn is_gone(e: &Error) -> bool {
    let refused = |e: &std::io::Error| e.kind() == std::io::ErrorKind::ConnectionRefused;
    let source = std::error::Error::source(e).and_then(|e| e.downcast_ref::<std::io::Error>());
    e.kind() == ErrorKind::NotFound || source.is_some_and(refused)
}

fn unseen(guest: &Guest, e: &Error) -> GuestStatus {
    let gone = is_gone(e);
    if !gone {
        log::info!("{}", e.chain());
    }
    GuestStatus {
        qmp: guest.qmp.clone(),
        state: if gone { "gone" } else { "silent" }.to_owned(),
        pid: if gone { None } else { Qmp::listener(&guest.qmp, Instant::now()) },
        uses_disk: None,
        stopped: guest.stopped,
    }
}
