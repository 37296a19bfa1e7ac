//! The key guard of a mount: asks the vault again and again whether the key may still be used, takes it away when not, and
//! brings it back; and what happens around the mount then: guests, hooks, people.
//!
//! [`machine`] decides, the thread here does what it says. Two more threads make sure that nothing hangs on it: one watches the
//! lease on the key, which only this guard renews, and one calls the [`Responder`], which may take its time.
//!
//! Must never see: FUSE, headers, sets, plaintext. It asks the vault through what its mount gives it ([`Prober`]).
//!
//! Invariants:
//! 1. Whatever becomes of the guard's thread, the gate is closed: at once when the thread ends, at the end of the lease when it
//!    hangs.
//! 2. No [`Responder`] delays the fence, but for the window that the policy grants its guests.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub mod catalog;
mod child;
mod clock;
mod event;
mod fence;
pub mod guests;
pub mod hooks;
pub mod machine;
mod prober;
pub mod processes;
pub mod qmp;
mod respond;
mod run;
mod status;
pub mod tell;

pub use event::{Cause, EventKind, GuardEvent, LogOnly, Responder, Why};
pub use fence::Settle;
pub use prober::{Outcome, Prober, Target};
pub use respond::{Place, Responses};
pub use status::GuardStatus;

use crate::disk::PlainDisk;
use crate::error::{Error, Result};
use crate::revocation::Policy;
use clock::boot_time;
use fence::Fence;
use machine::{Answer, Moment};

/// What a guard is made of.
pub struct Setup {
    /// What was agreed on.
    pub policy: Policy,
    /// The container's uuid.
    pub uuid: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// What is guarded.
    pub disk: Arc<PlainDisk>,
    /// Asks the vault.
    pub prober: Arc<dyn Prober>,
    /// Does something about it.
    pub responder: Arc<dyn Responder>,
    /// After each fence.
    pub settle: Settle,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup")
            .field("uuid", &self.uuid)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// What others want of the guard's thread; taken out by it as a whole.
#[derive(Debug, Default)]
struct Wishes {
    poke: bool,
    header_changed: bool,
    lapsed: bool,
    end: bool,
}

impl Wishes {
    const fn any(&self) -> bool {
        self.poke || self.header_changed || self.lapsed || self.end
    }
}

/// Between the guard's thread and everybody else.
struct Shared {
    wishes: Mutex<Wishes>,
    wanted: Condvar,
    /// A vault's answer as a drill has it, and until when.
    drill: Mutex<Option<(Answer, Moment)>>,
    status: Mutex<Option<GuardStatus>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn wish(&self, wish: impl FnOnce(&mut Wishes)) {
        wish(&mut lock(&self.wishes));
        self.wanted.notify_all();
    }

    /// What a drill has the vault say now.
    fn simulated(&self) -> Option<Answer> {
        lock(&self.drill).filter(|(_, until)| boot_time() < *until).map(|(answer, _)| answer)
    }

    /// What was wished for within `time`.
    fn wait(&self, time: Duration) -> Wishes {
        let wishes = lock(&self.wishes);
        let waited = self.wanted.wait_timeout_while(wishes, time, |wishes| !wishes.any());
        std::mem::take(&mut *waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// A guard at work; dropping it ends it, and leaves the gate as it is.
pub struct Guard {
    shared: Arc<Shared>,
    fence: Arc<Fence>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl Guard {
    /// Starts guarding a disk whose key the vault has just given.
    ///
    /// # Errors
    /// No threads.
    pub fn start(setup: Setup) -> Result<Self> {
        let Setup { policy, uuid, mountpoint, disk, prober, responder, settle } = setup;
        let shared = Arc::new(Shared {
            wishes: Mutex::default(),
            wanted: Condvar::new(),
            drill: Mutex::new(None),
            status: Mutex::new(None),
        });
        let fence = Arc::new(Fence::new(disk, policy, Arc::clone(&responder), settle));
        let calls = start_responder(responder)?;
        let guard = Self { shared: Arc::clone(&shared), fence: Arc::clone(&fence) };
        let watched = Arc::clone(&shared);
        fence.watch(move || watched.wish(|wishes| wishes.lapsed = true))?;
        let runner = run::Runner::new(shared, fence, prober, calls, (policy, uuid, mountpoint));
        let thread = std::thread::Builder::new().name("guard".to_owned());
        thread.spawn(move || runner.run()).map_err(|e| Error::io("start a thread", e))?;
        Ok(guard)
    }

    /// Keys, grants or sets were changed: asks the vault now.
    pub fn poke(&self) {
        self.shared.wish(|wishes| wishes.poke = true);
    }

    /// The header holds another key version.
    pub fn header_changed(&self) {
        self.shared.wish(|wishes| wishes.header_changed = true);
    }

    /// For this long the vault's answers are these, whatever it says; `None`: its own again. A rehearsal: it is noticed as
    /// soon, or as late, as the real thing would be, and is over by itself if nobody renews it.
    pub fn drill(&self, answer: Option<(Answer, Duration)>) {
        *lock(&self.shared.drill) = answer.map(|(answer, time)| (answer, boot_time().saturating_add(time)));
    }

    /// What it says of itself.
    #[must_use]
    pub fn status(&self) -> Option<GuardStatus> {
        let mut status = lock(&self.shared.status).clone()?;
        status.fences = self.fence.fences();
        status.on_revoke = self.fence.on_revoke();
        status.waiting = self.fence.disk().waiting();
        // Closed by the lease, or by the guard's death: it does not say so itself.
        if self.fence.disk().volume().gate().is_closed() && matches!(&*status.state, "ready" | "degraded") {
            status.state = "revoked".to_owned();
            status.why = Some(Why::Unguarded.name().to_owned());
        }
        Some(status)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.wish(|wishes| wishes.end = true);
    }
}

/// What the responder's thread is to call.
enum CallFor {
    BeforeFence(Duration, Sender<()>),
    Fenced(GuardEvent),
    Resumed(GuardEvent),
    Changed(GuardEvent),
}

/// One call after the other; the thread ends when nobody can send any more.
fn start_responder(responder: Arc<dyn Responder>) -> Result<Sender<CallFor>> {
    let (send, calls): (_, Receiver<CallFor>) = channel();
    let serve = move || {
        for call in calls {
            match call {
                CallFor::BeforeFence(window, done) => {
                    responder.before_fence(window);
                    let _ = done.send(());
                }
                CallFor::Fenced(event) => responder.fenced(&event),
                CallFor::Resumed(event) => responder.resumed(&event),
                CallFor::Changed(event) => responder.changed(&event),
            }
        }
    };
    let thread = std::thread::Builder::new().name("respond".to_owned());
    thread.spawn(serve).map_err(|e| Error::io("start a thread", e))?;
    Ok(send)
}
