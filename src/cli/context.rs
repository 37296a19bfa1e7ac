//! What every command starts from: the folders, the output format, the vault and the sets.

use std::path::{Path, PathBuf};

use super::{output, prompt};
use crate::control::{self, MountStatus};
use crate::dirs::Dirs;
use crate::error::{Error, ErrorKind, Result};
use crate::set::SetStore;
use crate::set::access::Access;
use crate::set::first_use::{self, FirstUse};
use crate::vault::local::{LocalVault, Unlock};

#[derive(Debug)]
pub(super) struct Context {
    pub(super) dirs: Dirs,
    vault_passphrase: Option<PathBuf>,
}

impl Context {
    pub(super) fn new(state: Option<PathBuf>, vault_passphrase: Option<PathBuf>) -> Result<Self> {
        let mut dirs = Dirs::from_env()?;
        if let Some(state) = state {
            dirs.state = std::path::absolute(&state).map_err(|e| Error::io("resolve", e).at(&state))?;
        }
        Ok(Self { dirs, vault_passphrase })
    }

    /// How a root key under a passphrase is opened: with what the file says, or what is typed.
    fn unlock(&self) -> Unlock {
        let file = self.vault_passphrase.clone();
        Unlock::by_passphrase(move |root_key| {
            match &file {
            Some(file) => prompt::passphrase_file(file),
            None => prompt::passphrase(&format!("Passphrase of {}", root_key.display()), false).map_err(|e| {
                // Nobody at a terminal: the vault is shut, the command line was right.
                let kind = if e.kind() == ErrorKind::Usage { ErrorKind::WrongKey } else { e.kind() };
                e.as_kind(kind).hint(
                    "give --vault-passphrase-file FILE; a unit: LoadCredential=wrapdisk-vault-passphrase:FILE",
                )
            }),
        }
        })
    }

    /// The vault and the sets; on a machine that has none, made with the default set.
    pub(super) fn access(&self) -> Result<Access> {
        if LocalVault::exists(&self.dirs.state) { self.existing() } else { self.with_default_set() }
    }

    /// The vault and the sets with the default set, made where they are missing; what was made is told once.
    pub(super) fn with_default_set(&self) -> Result<Access> {
        let (access, made) = first_use::ensure_with(&self.dirs, || self.unlock()).map_err(vault_trouble)?;
        if let Some(made) = made {
            announce(&made);
        }
        Ok(access)
    }

    /// The vault and the sets, only if they are there: a command that looks must not make them.
    pub(super) fn existing(&self) -> Result<Access> {
        let state = &self.dirs.state;
        if LocalVault::exists(state) {
            Dirs::check(state).map_err(vault_trouble)?;
        }
        let vault = LocalVault::open_with(state, self.unlock()).map_err(|e| match e.kind() {
            ErrorKind::NotFound if !LocalVault::exists(state) => {
                Error::new(ErrorKind::Unreachable, "no vault here")
                    .at(state)
                    .hint("the first wrapdisk create makes one; to use another one, give --state DIR")
            }
            _ => vault_trouble(e),
        })?;
        Ok(Access::new(SetStore::open(state).map_err(vault_trouble)?, vault))
    }

    /// The live mounts of this user.
    pub(super) fn mounts(&self) -> Result<Vec<MountStatus>> {
        control::live_mounts(&self.dirs)
    }

    /// The live mount that `disk` names: a container, a mountpoint, the presented file, or a uuid (RULINGS 2).
    pub(super) fn mount_of(&self, disk: &Path) -> Result<Option<MountStatus>> {
        let real = crate::fuse::mountpoint::resolve(disk).ok();
        let names = |m: &MountStatus| {
            disk.to_str() == Some(m.uuid.as_str())
                || real.as_ref().is_some_and(|r| *r == m.mountpoint || *r == m.disk || *r == m.file)
        };
        Ok(self.mounts()?.into_iter().find(names))
    }

    /// The same; the error of one that is not mounted.
    pub(super) fn mounted(&self, disk: &Path) -> Result<MountStatus> {
        self.mount_of(disk)?.ok_or_else(|| not_mounted(disk))
    }

    /// The container that `disk` names: by a live mount, as a uuid in the registry, or as a path.
    pub(super) fn container(&self, disk: &Path) -> Result<PathBuf> {
        if let Some(mount) = self.mount_of(disk)? {
            return Ok(mount.disk);
        }
        if let Some(uuid) = disk.to_str().filter(|t| uuid::Uuid::try_parse(t).is_ok() && !disk.exists())
            && LocalVault::exists(&self.dirs.state)
        {
            let known = self.existing()?.sets.find(uuid)?;
            let mut present = known.iter().filter(|c| c.path.exists());
            return match (present.next(), present.next()) {
                (Some(one), None) => Ok(one.path.clone()),
                (Some(one), Some(other)) => Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "found several copies ({}, {}, ...), allowed one",
                        one.path.display(),
                        other.path.display()
                    ),
                )
                .on(uuid)
                .hint("name the one you mean by its path")),
                (None, _) => {
                    Err(Error::new(ErrorKind::NotFound, "no container with this uuid is known here").on(uuid))
                }
            };
        }
        absolute(disk)
    }
}

pub(super) fn not_mounted(disk: &Path) -> Error {
    Error::new(ErrorKind::NotFound, "not mounted").at(disk).hint("wrapdisk status lists what is")
}

/// Without links, absolute; the error of a path that is not there.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| {
        let missing = e.kind() == std::io::ErrorKind::NotFound;
        let error = Error::io("open", e).at(path);
        if missing { error.hint("make a disk with: wrapdisk create FILE --size SIZE") } else { error }
    })
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Whatever keeps the vault from being asked says nothing about the right to use a key, and may pass (RULINGS 20).
fn vault_trouble(e: Error) -> Error {
    match e.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::Io | ErrorKind::Busy => {
            e.as_kind(ErrorKind::Unreachable)
        }
        _ => e,
    }
}

fn announce(made: &FirstUse) {
    output::note(&format!(
        "First use: made a key vault, the RSA-{bits} key \"{key}\", and the set \"{set}\" whose identity may use it.\n\
         Back it up now (wrapdisk vault backup --file FILE): without {state} no disk of this vault opens again.\n\
         A disk opens without the vault only if it has a recovery passphrase (wrapdisk create --recovery-passphrase).\n\
         The vault lies on this machine: who can read {state} and a disk's file can read the disk.",
        bits = made.key.bits,
        key = made.key.kid.name(),
        set = made.set.name,
        state = made.state.display(),
    ));
}
