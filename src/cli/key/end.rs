//! `key delete`, `recover`, `purge`, and what shows deleted keys. Also: what hangs on a key.

use super::print;
use crate::cli::context::Context;
use crate::cli::{output, prompt};
use crate::envelope::KeyRef;
use crate::error::{Error, ErrorKind, Result};
use crate::set::access::Access;
use crate::vault::local::Page;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key delete disk-kek2          no disk under it mounts any more, until it is recovered
  wrapdisk key delete disk-kek2 --yes    without being asked")]
pub(in crate::cli) struct Delete {
    /// The key, with all its versions
    name: String,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key recover disk-kek2")]
pub(in crate::cli) struct Recover {
    /// A deleted key
    name: String,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key show-deleted disk-kek2
  wrapdisk key show-deleted disk-kek2 --output json | jq -r .scheduledPurgeDate")]
pub(in crate::cli) struct ShowDeleted {
    /// A deleted key
    name: String,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key purge disk-kek2             asks; refused while a disk or a set needs the key
  wrapdisk key purge disk-kek2 --yes       in a script
  wrapdisk key purge disk-kek2 --force     the disks under it are lost")]
pub(in crate::cli) struct Purge {
    /// A deleted key
    name: String,

    /// Even if disks or sets need it: they are lost, unless they have a recovery passphrase
    #[arg(long)]
    force: bool,

    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn delete(context: &Context, args: &Delete) -> Result<()> {
    let access = context.existing()?;
    let call = access.vault.admin("key delete");
    let key = access.vault.get_key(&latest(&args.name), &call)?;
    let needed = Needs::of(context, &access, key.kid.versionless(), true)?;
    needed.tell();
    if !needed.is_empty() && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        // An emergency stop is never refused in a script (RULINGS 29); a person at a terminal is asked.
        prompt::confirm(&format!("Delete {}, which {}", args.name, needed.count()), args.yes)?;
    }
    let deleted = access.vault.delete_key(&args.name, &call)?;
    print::show_deleted(&deleted, &access.vault.settings()?, args.output.json())
}

pub(super) fn recover(context: &Context, args: &Recover) -> Result<()> {
    let vault = context.existing()?.vault;
    let key = vault.recover_key(&args.name, &vault.admin("key recover"))?;
    print::show(&key, &vault.settings()?, args.output.json())
}

pub(super) fn show_deleted(context: &Context, args: &ShowDeleted) -> Result<()> {
    let vault = context.existing()?.vault;
    let deleted = vault.get_deleted_key(&args.name, &vault.admin("key show-deleted"))?;
    print::show_deleted(&deleted, &vault.settings()?, args.output.json())
}

pub(super) fn list_deleted(context: &Context, output: output::OutputArgs) -> Result<()> {
    let vault = context.existing()?.vault;
    let deleted = vault.list_deleted_keys(&Page::default(), &vault.admin("key list-deleted"))?;
    print::list_deleted(&deleted, &vault.settings()?, output.json())
}

pub(super) fn purge(context: &Context, args: &Purge) -> Result<()> {
    let access = context.existing()?;
    let call = access.vault.admin("key purge");
    let deleted = access.vault.get_deleted_key(&args.name, &call)?;
    let needed = Needs::of(context, &access, deleted.key.kid.versionless(), true)?;
    needed.tell();
    if !needed.is_empty() && !args.force {
        let message = format!("purge: found a key which {}, allowed one that nothing needs", needed.count());
        return Err(Error::new(ErrorKind::Busy, message)
            .on(&args.name)
            .hint("assign the disks another key first; --force purges all the same, and they are lost"));
    }
    let question = format!(
        "Purge {} for good. What it wrapped never opens again, except where a backup of the vault or of the key is",
        args.name
    );
    prompt::confirm(&question, args.yes)?;
    access.vault.purge_key(&args.name, &call)?;
    output::note(&format!(
        "{} is gone from vault.db. Backups, copies, and snapshots of the file system may still hold it.",
        args.name
    ));
    Ok(())
}

pub(super) fn latest(name: &str) -> KeyRef {
    KeyRef { name: name.to_owned(), version: None }
}

/// What hangs on a key, or on one version of it: the blast radius.
pub(super) struct Needs {
    disks: Vec<String>,
    mounts: Vec<String>,
    sets: Vec<String>,
}

impl Needs {
    /// `kid` without version: of the whole key, sets included.
    pub(super) fn of(context: &Context, access: &Access, kid: &str, whole: bool) -> Result<Self> {
        let hit = |found: &str| {
            found == kid || whole && found.strip_prefix(kid).is_some_and(|rest| rest.starts_with('/'))
        };
        let disks = access.sets.containers(None)?;
        let disks = disks.iter().filter(|c| c.kids.iter().any(|k| hit(k)));
        let mounts = context.mounts()?;
        let mounts = mounts.iter().filter(|m| m.key.as_deref().is_some_and(hit));
        let sets = if whole { access.sets.list()? } else { Vec::new() };
        let sets = sets.iter().filter(|s| s.key == kid);
        Ok(Self {
            disks: disks.map(|c| c.path.display().to_string()).collect(),
            mounts: mounts.map(|m| m.mountpoint.display().to_string()).collect(),
            sets: sets.map(|s| s.name.clone()).collect(),
        })
    }

    /// Mounts go on until the guard is here (RULINGS 19).
    pub(super) fn tell(&self) {
        for disk in &self.disks {
            output::note(&format!("  {disk} will not mount any more"));
        }
        for mount in &self.mounts {
            output::note(&format!(
                "  {mount} stays mounted until it is unmounted: this version does not yet revoke live mounts"
            ));
        }
        for set in &self.sets {
            output::note(&format!("  set {set} makes no disks any more"));
        }
    }

    /// Nothing that would be lost: a set alone holds no data, but it names the key.
    pub(super) fn is_empty(&self) -> bool {
        self.disks.is_empty() && self.mounts.is_empty() && self.sets.is_empty()
    }

    /// "2 disks and 1 set need".
    pub(super) fn count(&self) -> String {
        format!("{} disk(s) and {} set(s) need", self.disks.len(), self.sets.len())
    }

    pub(super) fn disks(&self) -> usize {
        self.disks.len()
    }
}
