//! A mount's own rotation: every 15 minutes, and when somebody rings, it looks whether its set's key has a newer version,
//! begins the set's rotation, and rewraps its own container (KEY-VAULT section 8). The rest is the timer's.
//!
//! Must never see: keys, FUSE requests.
//!
//! A mount that a passphrase opened does not look: it rewraps when it is asked to.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::live::LiveMount;
use super::rewrap;
use crate::error::{IoContext, Result};
use crate::set::rotation;
use crate::sync::{Condvar, Mutex, lock};
use crate::vault::VaultError;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(15 * 60);

/// What wakes the thread.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<(Mutex<Rung>, Condvar)>);

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Rung {
    #[default]
    No,
    Look,
    End,
}

impl Bell {
    /// Something was changed: look now.
    pub fn ring(&self) {
        self.set(Rung::Look);
    }

    fn set(&self, rung: Rung) {
        let mut state = lock(&self.0.0);
        if *state != Rung::End {
            *state = rung;
        }
        self.0.1.notify_all();
    }

    fn wait(&self, patience: Duration) -> Rung {
        let state = lock(&self.0.0);
        let waited = self.0.1.wait_timeout_while(state, patience, |rung| *rung == Rung::No);
        let (mut state, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        match *state {
            Rung::End => Rung::End,
            rung => {
                *state = Rung::No;
                rung
            }
        }
    }
}

/// The thread; ends when dropped.
#[derive(Debug)]
pub struct Ticker {
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(mount: &Arc<LiveMount>) -> Result<Self> {
        let bell = mount.bell.clone();
        let (weak, waits) = (Arc::downgrade(mount), bell.clone());
        let thread = std::thread::Builder::new()
            .name("rotation".to_owned())
            .spawn(move || work(&weak, &waits))
            .io_at("start a thread", "")?;
        Ok(Self { bell, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.bell.set(Rung::End);
        // It may be waiting for a vault: the end of a mount does not wait for that.
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }
}

fn work(mount: &Weak<LiveMount>, bell: &Bell) {
    if let Some(mount) = mount.upgrade() {
        catch_up(&mount);
    }
    loop {
        let rung = bell.wait(EVERY);
        let Some(mount) = mount.upgrade().filter(|_| rung != Rung::End) else { return };
        tell(&mount, look(&mount));
    }
}

/// A container that comes from a shelf, or whose rotation a kill interrupted, is rewrapped on the way.
fn catch_up(mount: &LiveMount) {
    let done = || -> Result<()> {
        let Some(access) = &mount.access else { return Ok(()) };
        let Some(set) = mount.set(access)? else { return Ok(()) };
        if crate::set::rewrap::need(&mount.container.header(), &set) == crate::set::rewrap::Need::Nothing {
            return Ok(());
        }
        rewrap::rotate(mount, access, &set)?;
        access.sets.end_rotation(set.id, jiff::Timestamp::now().as_second()).map(drop)
    };
    tell(mount, done());
}

fn tell(mount: &LiveMount, done: Result<()>) {
    if let Err(e) = done {
        log::warn!("{}: rotation: {}", mount.facts.mountpoint.display(), e.chain());
    }
}

fn look(mount: &LiveMount) -> Result<()> {
    let Some(access) = &mount.access else { return Ok(()) };
    if mount.container.reload()?
        && let Some(guard) = &mount.guard
    {
        guard.header_changed(); // another read-only mount of the same container was faster
    }
    if let Err(e) = access.vault.rotate_due(&access.vault.admin("rotation: the keys' policies")) {
        log::warn!("rotation: {}", VaultError::from(e));
    }
    let Some(set) = mount.set(access)? else { return Ok(()) };
    let mut report = rotation::begin(access, &set, jiff::Timestamp::now().as_second())?;
    let set = report.set.clone();
    if crate::set::rewrap::need(&mount.container.header(), &set) != crate::set::rewrap::Need::Nothing {
        match rewrap::rotate(mount, access, &set) {
            Ok(_) => log::info!("{}: under {}", mount.container.path().display(), set.active),
            Err(e) => {
                rotation::note(access, &mut report, &mount.container.header(), mount.container.path(), &e)?;
            }
        }
    }
    rotation::finish_own(access, &mut report)
}
