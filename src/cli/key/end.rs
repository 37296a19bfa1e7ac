//! `key delete`, `recover`, `purge`, and what shows deleted keys.

use super::print;
use crate::cli::blast::{BlastRadius, StopArgs};
use crate::cli::context::Context;
use crate::cli::{output, prompt};
use crate::envelope::KeyRef;
use crate::error::{Error, ErrorKind, Result};
use crate::vault::local::Page;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key delete disk-kek2 --dry-run    which disks, mounts and processes that would stop
  wrapdisk key delete disk-kek2              every disk under it stops, until it is recovered
  wrapdisk key delete disk-kek2 --yes        without being asked")]
pub(in crate::cli) struct Delete {
    /// The key, with all its versions
    name: String,

    #[command(flatten)]
    stop: StopArgs,

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

    #[command(flatten)]
    stop: StopArgs,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn delete(context: &Context, args: &Delete) -> Result<()> {
    let access = context.existing()?;
    let call = access.vault.admin("key delete");
    let key = access.vault.get_key(&latest(&args.name), &call)?;
    let radius = BlastRadius::of_key(context, &access, key.kid.versionless())?;
    if !args.stop.agreed(&radius, &format!("Delete {}", args.name), args.output.json())? {
        return Ok(());
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
    let radius = BlastRadius::of_key(context, &access, deleted.key.kid.versionless())?;
    if args.stop.dry_run {
        return radius.show(args.output.json());
    }
    radius.tell();
    if !radius.is_empty() && !args.force {
        let message = format!("purge: found a key which {}, allowed one that nothing needs", radius.count());
        return Err(Error::new(ErrorKind::Busy, message)
            .on(&args.name)
            .hint("assign the disks another key first; --force purges all the same, and they are lost"));
    }
    let question = format!(
        "Purge {} for good. What it wrapped never opens again, except where a backup of the vault or of the key is",
        args.name
    );
    prompt::confirm(&question, args.stop.yes)?;
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
