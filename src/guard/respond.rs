//! What a mount does about what its guard reports: guests are stopped, shut down, ended or continued; the journal has it at
//! once; then hooks run and people are told, on a thread that nobody waits for.
//!
//! Must never see: keys, vaults, the gate.
//!
//! Invariant: nothing here delays the fence. The guard calls this on a thread of its own, and waits for the shutdown window
//! only; hooks and notifications come after guests and hold none of them up.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::catalog::{self, Entry};
use super::event::{EventKind, GuardEvent, Responder};
use super::guests::{Deed, Did, Guests};
use super::{hooks, tell};
use crate::error::{ErrorKind, IoContext, Result};
use crate::journal::{self, Journal};
use crate::revocation::OnRevoke;

/// Errands that may wait; more than that many events at once are not each worth a hook.
const MAX_WAITING: usize = 64;

/// What stays the same for a mount.
#[derive(Clone, Debug)]
pub struct Place {
    /// The container.
    pub disk: PathBuf,
    /// Its uuid.
    pub uuid: String,
    /// The set's name, where there is one.
    pub set: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The presented file.
    pub file: PathBuf,
    /// The folder of configuration, which has `hooks.d`.
    pub config: PathBuf,
}

/// See the module's header.
#[derive(Debug)]
pub struct Responses {
    place: Place,
    guests: Arc<Guests>,
    journal: Option<Journal>,
    errands: SyncSender<Errand>,
}

/// Hooks and people.
#[derive(Debug)]
struct Errand {
    entry: &'static Entry,
    variables: Vec<(&'static str, OsString)>,
    summary: String,
    body: String,
}

impl Responses {
    /// For this mount and its guests. Without a journal the log has everything.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(place: Place, guests: Arc<Guests>, journal: Option<Journal>) -> Result<Self> {
        let (errands, waiting) = sync_channel(MAX_WAITING);
        let folder = hooks::folder(&place.config);
        std::thread::Builder::new()
            .name("hooks".to_owned())
            .spawn(move || run_errands(&waiting, &folder))
            .io_at("start a thread", "")?;
        Ok(Self { place, guests, journal, errands })
    }

    /// The journal, and the log where that is another place.
    fn record(&self, entry: &Entry, message: &str, more: &[(&str, &str)]) {
        if !self.journal(entry, message, more) || !journal::has_standard_error() {
            log::log!(entry.priority.level(), "{message}");
        }
    }

    /// True: the journal has it.
    fn journal(&self, entry: &Entry, message: &str, more: &[(&str, &str)]) -> bool {
        let Some(journal) = &self.journal else { return false };
        let (disk, mountpoint) = (self.place.disk.display(), self.place.mountpoint.display());
        let (disk, mountpoint) = (disk.to_string(), mountpoint.to_string());
        let mut fields = vec![
            ("WRAPDISK_EVENT", entry.name),
            ("WRAPDISK_DISK", &disk),
            ("WRAPDISK_UUID", &self.place.uuid),
            ("WRAPDISK_SET", &self.place.set),
            ("WRAPDISK_MOUNT", &mountpoint),
        ];
        fields.extend_from_slice(more);
        match journal.send(entry.id, entry.priority, message, &fields) {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => {
                log::info!("{}", e.chain());
                false
            }
        }
    }

    /// An event of the guard's: the journal and the log, hooks, people.
    fn report(&self, event: &GuardEvent) {
        let entry = catalog::of(&event.kind);
        let reason = reason(event);
        self.record(
            entry,
            &event.to_string(),
            &[("WRAPDISK_KID", &event.kid), ("WRAPDISK_REASON", &reason), ("WRAPDISK_WHY", why(&event.kind))],
        );
        let text = |path: &PathBuf| path.as_os_str().to_owned();
        let variables = vec![
            ("WRAPDISK_EVENT", entry.name.into()),
            ("WRAPDISK_WHY", why(&event.kind).into()),
            ("WRAPDISK_REASON", reason.into()),
            ("WRAPDISK_SET", OsString::from(&event.set)),
            ("WRAPDISK_KID", OsString::from(&event.kid)),
            ("WRAPDISK_DISK", text(&self.place.disk)),
            ("WRAPDISK_UUID", OsString::from(&self.place.uuid)),
            ("WRAPDISK_MOUNT", text(&self.place.mountpoint)),
            ("WRAPDISK_FILE", text(&self.place.file)),
            (
                "WRAPDISK_TIME",
                jiff::Timestamp::from_second(event.at)
                    .map_or_else(|_| event.at.to_string(), |t| t.to_string())
                    .into(),
            ),
        ];
        let errand =
            Errand { entry, variables, summary: summary(&event.kind).to_owned(), body: event.to_string() };
        match self.errands.try_send(errand) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => log::error!("hooks do not keep up: none ran for {}", entry.name),
            Err(TrySendError::Disconnected(_)) => log::error!("hooks: their thread is gone"),
        }
    }

    fn record_deeds(&self, deeds: &[Deed]) {
        for deed in deeds {
            let qmp = deed.qmp.display().to_string();
            let (entry, message) = match &deed.done {
                Ok(Did::Nothing) => continue,
                Ok(Did::Stopped) => (&catalog::GUEST_STOPPED, format!("guest {qmp}: stopped")),
                Ok(Did::Powerdown) => {
                    (&catalog::GUEST_POWERDOWN, format!("guest {qmp}: has shut down when asked to"))
                }
                Ok(Did::Quit) => (&catalog::GUEST_QUIT, format!("guest {qmp}: ended")),
                Ok(Did::Continued) => (&catalog::GUEST_CONTINUED, format!("guest {qmp}: runs again")),
                Err(e) => (&catalog::GUEST_SILENT, format!("guest: {}", e.chain())),
            };
            self.record(entry, &message, &[("WRAPDISK_QMP", &qmp)]);
        }
    }

    /// They meet errors from now on, or hang, and nobody can tell them why.
    fn record_unregistered(&self) {
        for holder in self.guests.unregistered() {
            let message = format!(
                "{} has {} open and is not registered (guest add): it is not told, and its I/O ends",
                holder,
                self.place.file.display()
            );
            self.record(&catalog::GUEST_UNKNOWN, &message, &[("WRAPDISK_PID", &holder.pid.to_string())]);
        }
    }
}

impl Responder for Responses {
    fn before_fence(&self, window: Duration) {
        let deeds = if window.is_zero() { self.guests.stop() } else { self.guests.powerdown(window) };
        self.record_deeds(&deeds);
    }

    fn fenced(&self, event: &GuardEvent) {
        if event.on_revoke == OnRevoke::Shutdown {
            // Both at once: a guest that does not end holds up no hook.
            std::thread::scope(|scope| {
                scope.spawn(|| self.report(event));
                self.record_deeds(&self.guests.quit());
            });
        } else {
            self.report(event);
        }
        self.record_unregistered();
    }

    fn resumed(&self, event: &GuardEvent) {
        self.record_deeds(&self.guests.cont());
        self.report(event);
    }

    fn changed(&self, event: &GuardEvent) {
        self.report(event);
    }

    fn has_guests(&self) -> bool {
        self.guests.any()
    }
}

fn run_errands(waiting: &Receiver<Errand>, folder: &std::path::Path) {
    for errand in waiting {
        // People first: that takes no time, and a hook may take half a minute.
        if let Some(urgency) = errand.entry.told {
            tell::people(urgency, &errand.summary, &errand.body);
        }
        if errand.entry.hooks {
            hooks::run_all(folder, &errand.variables);
        }
    }
}

/// What the vault said, or why it was not asked.
fn reason(event: &GuardEvent) -> String {
    match &event.kind {
        EventKind::Fenced { why } if event.reason.is_empty() => why.to_string(),
        _ => event.reason.clone(),
    }
}

/// Of an event: `disabled`, `deleted`, `no-permission`, `outage`, ...; empty where there is nothing to say.
const fn why(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::Fenced { why } => why.name(),
        EventKind::Degraded { cause } | EventKind::Warned { cause, .. } => cause.name(),
        _ => "",
    }
}

const fn summary(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::Fenced { .. } => "Disk revoked: I/O has stopped",
        EventKind::Resumed { .. } => "Disk resumed",
        EventKind::Degraded { .. } => "Disk: trouble with its key vault",
        EventKind::Warned { .. } => "Disk will stop: trouble with its key vault lasts",
        EventKind::Recovered { .. } => "Disk: its key vault answers again",
        EventKind::Expiring { .. } => "Disk: its key expires",
        EventKind::KeyChanged => "Disk: another key",
    }
}
