//! `wrapdisk set forget`, `wrapdisk set delete`.

use std::path::{Path, PathBuf};

use super::super::context::Context;
use super::super::{output, prompt};
use crate::error::{Error, ErrorKind, Result};
use crate::set::{ContainerRecord, SetStore};

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk set forget /srv/old/vm.wd
  wrapdisk set forget 6f2d1c84-9a3b-4e57-8c10-5d7e9b2a4f31    wherever it is missing
  wrapdisk set forget /srv/vm.wd --yes                        although it is there

A rotation waits for what is missing; this says that it never comes back. A copy that does come back opens as long as
the version of the key that it is under is enabled.")]
pub(in super::super) struct Forget {
    /// The container: its path, or its uuid for every path at which it is missing
    disk: PathBuf,

    /// Do not ask, where it is still there
    #[arg(long)]
    yes: bool,
}

pub(super) fn forget(context: &Context, args: &Forget) -> Result<()> {
    let sets = context.existing()?.sets;
    let known = known(&sets, &args.disk)?;
    for container in &known {
        let path = container.path.display();
        if container.path.exists() {
            prompt::confirm(
                &format!("{path} is there. Forget it, so that no rotation reaches it"),
                args.yes,
            )?;
        }
        sets.forget(&container.uuid, &container.path)?;
        if let Some(set) = container.set {
            sets.end_rotation(set, super::super::context::now()).or_else(|e| match e.kind() {
                ErrorKind::NotFound => Ok(false), // a set of another machine
                _ => Err(e),
            })?;
        }
        output::line(&format!("{path}: forgotten"))?;
    }
    Ok(())
}

/// By path, also of what is not there any more; by uuid only where it is missing.
fn known(sets: &SetStore, disk: &Path) -> Result<Vec<ContainerRecord>> {
    let path = std::path::absolute(disk).map_err(|e| Error::io("resolve", e).at(disk))?;
    let real = disk.canonicalize().ok();
    let mut found = sets.containers(None)?;
    found.retain(|c| c.path == path || Some(&c.path) == real.as_ref());
    if let (true, Some(uuid)) = (found.is_empty(), disk.to_str().filter(|t| uuid::Uuid::try_parse(t).is_ok()))
    {
        found = sets.find(uuid)?;
        found.retain(|c| !c.path.exists());
    }
    if found.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "no such container in the registry")
            .at(disk)
            .hint("see what there is: wrapdisk set list-associated-resources SET"));
    }
    Ok(found)
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk set delete old
  wrapdisk set delete old --yes")]
pub(in super::super) struct Delete {
    /// The set
    name: String,

    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn delete(context: &Context, args: &Delete) -> Result<()> {
    let access = context.existing()?;
    let set = access.sets.by_name(&args.name)?;
    let needed = access.sets.containers(Some(set.id))?;
    if needed.is_empty() {
        prompt::confirm(&format!("Delete the set {}, with its identity", set.name), args.yes)?;
    }
    access.sets.delete(&set)?;
    let vault = &access.vault;
    let here = std::iter::once((set.vault, set.identity))
        .chain(set.previous.iter().map(|old| (old.vault, old.identity)));
    let mut gone = Vec::new();
    for (_, identity) in here.filter(|(id, _)| *id == vault.id()) {
        if gone.contains(&identity) {
            continue;
        }
        gone.push(identity);
        let call = vault.admin(&format!("set delete {}", set.name));
        vault.remove_identity(identity, &call).map_err(|e| {
            Error::from(crate::vault::VaultError::from(e)).hint(format!(
                "the set is gone; take its identity out with: wrapdisk vault identity remove {identity}"
            ))
        })?;
    }
    output::line(&format!("{}: deleted", set.name))
}
