//! The blast radius: which disks, mounts, guests and sets stop when a key, one version of it, or an identity is taken away;
//! and which move when a set gets another key.
//!
//! Must never see: keys, headers. The registry and the control sockets say what there is; a container that this machine
//! never saw is not counted.

use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use super::context::Context;
use super::{output, prompt};
use crate::control::{MountStatus, json_path};
use crate::error::Result;
use crate::guard::guests::GuestList;
use crate::guard::processes::{self, Holder};
use crate::revocation::OnRevoke;
use crate::set::access::Access;
use crate::set::{ContainerRecord, Set};

/// What becomes of what is in the radius.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Effect {
    #[default]
    Stops,
    Moves,
}

/// What would stop, or move.
#[derive(Debug, Default, Serialize)]
pub(super) struct BlastRadius {
    #[serde(skip)]
    effect: Effect,
    disks: Vec<Disk>,
    mounts: Vec<Mount>,
    /// They hold no data, but make no disks any more.
    sets: Vec<String>,
}

/// A container: a disk, a snapshot or an image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Disk {
    kind: String,
    uuid: String,
    #[serde(with = "json_path")]
    path: PathBuf,
    /// It is not at its path any more; it stops all the same, wherever it is.
    missing: bool,
    /// Key versions that open it and stay.
    still_opens_under: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    #[serde(with = "json_path")]
    mountpoint: PathBuf,
    uuid: String,
    pid: u32,
    /// Who has the plaintext open.
    users: Vec<Holder>,
    /// Loop devices over the plaintext.
    loops: Vec<String>,
    /// What reads and writes meet when the key is gone; `None`: nobody asks the vault for this mount.
    on_revoke: Option<OnRevoke>,
    /// Registered virtual machines, and processes of QEMU that are not.
    #[serde(flatten)]
    guests: GuestList,
}

/// The options of every command that stops disks.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct StopArgs {
    /// Show what would stop, and do nothing
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

impl StopArgs {
    /// Shows what stops; on a terminal asks. An emergency stop is never refused in a script (RULINGS 29).
    ///
    /// True: go on. False: it was a dry run.
    pub(super) fn agreed(self, radius: &BlastRadius, question: &str, json: bool) -> Result<bool> {
        if self.dry_run {
            return radius.show(json).map(|()| false);
        }
        radius.tell();
        if !radius.is_empty() && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
            prompt::confirm(&format!("{question}, which {}", radius.count()), self.yes)?;
        }
        Ok(true)
    }
}

impl BlastRadius {
    /// Of one version of a key.
    pub(super) fn of_version(context: &Context, access: &Access, kid: &str) -> Result<Self> {
        Self::of(context, access, |found| found == kid, |_| false)
    }

    /// Of a key with all its versions; `key` is its identifier without version.
    pub(super) fn of_key(context: &Context, access: &Access, key: &str) -> Result<Self> {
        let hit = |found: &str| found.strip_prefix(key).is_some_and(|rest| rest.starts_with('/'));
        Self::of(context, access, hit, |set| set.key == key)
    }

    fn of(
        context: &Context,
        access: &Access,
        hit: impl Fn(&str) -> bool,
        takes: impl Fn(&Set) -> bool,
    ) -> Result<Self> {
        let disks = access.sets.containers(None)?;
        let disks = disks.iter().filter(|c| c.kids.iter().any(|kid| hit(kid)));
        let mounts = context.mounts()?;
        let mounts = mounts.iter().filter(|m| m.key.as_deref().is_some_and(&hit));
        let sets = access.sets.list()?.into_iter().filter(takes);
        Ok(Self {
            effect: Effect::Stops,
            disks: disks.map(|c| Disk::new(c, &hit)).collect(),
            mounts: mounts.map(|m| Mount::new(context, m)).collect(),
            sets: sets.map(|set| set.name).collect(),
        })
    }

    /// Of what is agreed on for the future only.
    pub(super) fn of_the_future() -> Self {
        Self { effect: Effect::Moves, ..Self::default() }
    }

    /// Of another key for a set.
    pub(super) fn of_another_key(context: &Context, access: &Access, set: &Set) -> Result<Self> {
        let disks = access.sets.containers(Some(set.id))?;
        let mounts = context.mounts()?;
        let theirs = mounts.iter().filter(|m| disks.iter().any(|disk| disk.uuid == m.uuid));
        Ok(Self {
            effect: Effect::Moves,
            mounts: theirs.map(|m| Mount::new(context, m)).collect(),
            disks: disks.iter().map(|c| Disk::new(c, |_| true)).collect(),
            sets: vec![set.name.clone()],
        })
    }

    /// Of an identity in whose name sets ask for their keys.
    pub(super) fn of_identity(context: &Context, access: &Access, identity: Uuid) -> Result<Self> {
        let sets: Vec<Set> = access.sets.list()?.into_iter().filter(|s| s.identity == identity).collect();
        let theirs = |id: Option<Uuid>| sets.iter().any(|set| Some(set.id) == id);
        let disks = access.sets.containers(None)?;
        let mounts = context.mounts()?;
        // A mount names its set as a token does: NAME/UUID.
        let set_of = |m: &MountStatus| Uuid::parse_str(m.set.as_deref()?.rsplit('/').next()?).ok();
        let guarded = mounts.iter().filter(|m| !m.unguarded && theirs(set_of(m)));
        Ok(Self {
            effect: Effect::Stops,
            disks: disks.iter().filter(|c| theirs(c.set)).map(|c| Disk::new(c, |_| true)).collect(),
            mounts: guarded.map(|m| Mount::new(context, m)).collect(),
            sets: sets.iter().map(|set| set.name.clone()).collect(),
        })
    }

    /// Nothing hangs on it.
    pub(super) fn is_empty(&self) -> bool {
        self.disks.is_empty() && self.mounts.is_empty() && self.sets.is_empty()
    }

    /// "2 disk(s) and 1 set(s) need".
    pub(super) fn count(&self) -> String {
        format!("{} disk(s) and {} set(s) need", self.disks.len(), self.sets.len())
    }

    /// To the person who asked for it.
    pub(super) fn tell(&self) {
        for line in self.lines() {
            output::note(&format!("  {line}"));
        }
    }

    /// As a command's result.
    pub(super) fn show(&self, json: bool) -> Result<()> {
        if json {
            return output::json(self);
        }
        if self.is_empty() {
            return output::line(match self.effect {
                Effect::Stops => "nothing needs it",
                Effect::Moves => "no disk is concerned",
            });
        }
        self.lines().iter().try_for_each(|line| output::line(line))
    }

    fn lines(&self) -> Vec<String> {
        let disks = self.disks.iter().map(|disk| disk.line(self.effect));
        let mounts = self.mounts.iter().map(|mount| mount.line(self.effect));
        let sets = self.sets.iter().map(|set| match self.effect {
            Effect::Stops => format!("set {set} makes no disks any more"),
            Effect::Moves => format!("set {set} makes disks under the new key"),
        });
        disks.chain(mounts).chain(sets).collect()
    }
}

impl Disk {
    fn new(c: &ContainerRecord, hit: impl Fn(&str) -> bool) -> Self {
        Self {
            kind: c.kind.clone(),
            uuid: c.uuid.clone(),
            path: c.path.clone(),
            missing: !c.path.exists(),
            still_opens_under: c.kids.iter().filter(|kid| !hit(kid)).cloned().collect(),
        }
    }

    fn line(&self, effect: Effect) -> String {
        let what = if self.kind == "disk" { String::new() } else { format!("{} ", self.kind) };
        let missing = if self.missing { " (not there now)" } else { "" };
        let name = format!("{what}{}{missing}", self.path.display());
        if effect == Effect::Moves {
            return if self.missing {
                format!("{name} stays under the key it has until it is found again (wrapdisk set scan)")
            } else {
                format!("{name} is rewrapped with the new key")
            };
        }
        match &self.still_opens_under[..] {
            [] => format!("{name} will not mount any more"),
            others => format!("{name} will open under {} only", others.join(", ")),
        }
    }
}

impl Mount {
    fn new(context: &Context, m: &MountStatus) -> Self {
        Self {
            mountpoint: m.mountpoint.clone(),
            uuid: m.uuid.clone(),
            pid: m.pid,
            users: processes::holders(&m.file),
            loops: loops_over(&m.file),
            on_revoke: m.guard.as_ref().map(|guard| guard.on_revoke),
            // One that hangs must not keep the others from being shown.
            guests: super::guest::of(context, m).unwrap_or_default(),
        }
    }

    fn line(&self, effect: Effect) -> String {
        let users = self.users.iter().map(|user| format!("{} {}", user.name, user.pid));
        let guests = self.guests.guests.iter().map(|g| format!("guest {} ({})", g.qmp.display(), g.state));
        let users: Vec<String> = users.chain(self.loops.iter().cloned()).chain(guests).collect();
        let users =
            if users.is_empty() { String::new() } else { format!(", in use by {}", users.join(", ")) };
        format!("{} (process {}{users}) {}", self.mountpoint.display(), self.pid, self.outcome(effect))
    }

    fn outcome(&self, effect: Effect) -> &'static str {
        match (effect, self.on_revoke) {
            (Effect::Moves, _) => "goes on meanwhile",
            (Effect::Stops, Some(OnRevoke::Freeze)) => {
                "stops: its reads and writes wait for the key, and fail when it stays away"
            }
            (Effect::Stops, Some(OnRevoke::Shutdown)) if !self.guests.guests.is_empty() => {
                "stops: its guests are shut down, and its reads and writes fail until the key is back"
            }
            (Effect::Stops, _) => "stops: its reads and writes fail until the key is back",
        }
    }
}

/// Loop devices whose backing file it is (sysfs, `loop/backing_file`).
fn loops_over(file: &Path) -> Vec<String> {
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let over = devices.filter(|device| {
        let backing = std::fs::read_to_string(device.path().join("loop/backing_file"));
        backing.is_ok_and(|backing| Path::new(backing.trim_end_matches('\n')) == file)
    });
    over.map(|device| format!("/dev/{}", device.file_name().to_string_lossy())).collect()
}
