//! A mount of this process: everything that whoever asks it needs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::protocol::{GuestAsk, Rehearsed, Rewrap, Rewrapped};
use super::rewrap::set_of;
use super::server::Mounted;
use super::{Bell, MountStatus};
use crate::disk::PlainDisk;
use crate::error::{Error, ErrorKind, Result};
use crate::guard::guests::{GuestList, Guests};
use crate::guard::machine::Answer;
use crate::guard::{Guard, GuardStatus};
use crate::luks2::Header;
use crate::set::Trouble;
use crate::set::access::Access;
use crate::set::container::MountedContainer;
use crate::vault::Denial;

/// What does not change while it is mounted.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The folder or file it is mounted on.
    pub mountpoint: PathBuf,
    /// The plaintext.
    pub file: PathBuf,
    /// RFC 3339.
    pub mounted_at: String,
    /// The key version that opened it; `None` when a passphrase did.
    pub key: Option<String>,
}

/// See the module's header.
#[derive(Debug)]
pub struct LiveMount {
    /// What does not change.
    pub facts: Facts,
    /// The plaintext disk, with its gate.
    pub disk: Arc<PlainDisk>,
    /// The container, with its header.
    pub container: Arc<MountedContainer>,
    /// The sets and vaults; `None` when it was opened by passphrase.
    pub access: Option<Arc<Access>>,
    /// The virtual machines that use it.
    pub guests: Arc<Guests>,
    /// `vault.db` and `sets.db`, for who opened it by passphrase and is asked to rewrap.
    pub state: PathBuf,
    /// Wakes the rotation.
    pub bell: Bell,
    /// `None` when it was opened by passphrase: no vault has a say in it.
    pub guard: Option<Guard>,
}

impl LiveMount {
    fn rotation_error(&self, header: &Header) -> Option<String> {
        let set = set_of(self.access.as_deref()?, header).ok().flatten()?;
        let trouble = set.trouble.filter(Trouble::is_serious)?;
        Some(format!("{}: {}", trouble.code, trouble.message))
    }

    /// Known of keys in the embedded vault only; looking costs no trace there, and one that is in trouble is not news here.
    fn next_rotation(&self, header: &Header) -> Option<String> {
        let access = self.access.as_ref()?;
        let kid = &header.tokens().next()?.1.wrapped().kid;
        if !access.is_local(kid) {
            return None;
        }
        let at = access.vault.next_rotation(kid.name(), &access.vault.admin("status")).ok()??;
        jiff::Timestamp::from_second(at).ok().map(|at| at.to_string())
    }

    fn guard_status(&self) -> Option<GuardStatus> {
        self.guard.as_ref()?.status()
    }
}

impl Mounted for LiveMount {
    fn status(&self) -> MountStatus {
        let header = self.container.header();
        let state = if self.disk.volume().gate().is_open() { "ready" } else { "revoked" };
        let guard = self.guard_status();
        MountStatus {
            uuid: header.uuid().to_owned(),
            disk: self.container.path().to_owned(),
            mountpoint: self.facts.mountpoint.clone(),
            file: self.facts.file.clone(),
            pid: std::process::id(),
            state: guard.as_ref().map_or_else(|| state.to_owned(), |guard| guard.state.clone()),
            size: self.disk.len().get(),
            read_only: self.container.is_read_only(),
            set: header.tokens().next().map(|(_, token)| token.set().to_owned()),
            key: self.facts.key.as_ref().map(|opened| current(&header, opened)),
            unguarded: self.guard.is_none(),
            rotation_error: self.rotation_error(&header),
            mounted_at: self.facts.mounted_at.clone(),
            memory_locked: crate::secret::all_locked(),
            io: self.disk.io_stats(),
            cache: self.disk.cache_stats(),
            guard,
            next_rotation: self.next_rotation(&header),
        }
    }

    fn poke(&self) {
        self.bell.ring();
        if let Some(guard) = &self.guard {
            guard.poke();
        }
    }

    fn guests(&self, ask: &GuestAsk) -> Result<GuestList> {
        match ask {
            GuestAsk::List => {}
            GuestAsk::Add { qmp } => drop(self.guests.add(qmp)?),
            GuestAsk::Remove { qmp } => self.guests.remove(qmp)?,
        }
        Ok(self.guests.look())
    }

    fn rewrap(&self, how: &Rewrap) -> Result<Rewrapped> {
        super::rewrap::on_request(self, how)
    }

    fn drill(&self, answer: Option<Rehearsed>, time: Duration) -> Result<()> {
        let Some(guard) = &self.guard else {
            let message = "found a mount that was opened without the vault, allowed one with a guard";
            return Err(Error::new(ErrorKind::Unsupported, message).at(&self.facts.mountpoint));
        };
        let simulated = answer.map(|answer| match answer {
            Rehearsed::Denied => Answer::Denied(Denial::Disabled),
            Rehearsed::Outage => Answer::Transient { retry_after: None },
        });
        guard.drill(simulated.map(|answer| (answer, time)));
        Ok(())
    }
}

/// The version that the disk is under now: the one that opened it, until a rotation has replaced that.
fn current(header: &Header, opened: &str) -> String {
    let kids: Vec<_> = header.tokens().map(|(_, token)| token.wrapped().kid.as_str()).collect();
    let current = kids.iter().find(|kid| **kid == opened).or(kids.first());
    current.map_or(opened, |kid| kid).to_owned()
}
