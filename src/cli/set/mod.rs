//! `wrapdisk set ...`: disk encryption sets. The set "default" is made by first use.

use super::context::Context;
use super::output;
use crate::error::Result;
use crate::set::{Set, SetStore};
use crate::vault::VaultEntry;

mod create;
mod end;
mod key;
mod resources;
mod rotate;
mod scan;
mod show;
mod update;
mod wait;

pub(super) use rotate::mounts;

/// Disk encryption sets: which key wraps the data keys, and in whose name
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk set list
  wrapdisk set create prod --key disk-kek --grant
  wrapdisk set show prod --output json
  wrapdisk key rotate disk-kek && wrapdisk set rotate prod
  wrapdisk set list-associated-resources prod
  wrapdisk set scan /srv/disks")]
pub(super) enum Command {
    /// Make a set over a key; when its identity may use it, the key is used once before it succeeds
    Create(create::Create),
    /// List all sets
    #[command(after_long_help = "\
Examples:
  wrapdisk set list
  wrapdisk set list --output json | jq -r '.[].name'")]
    List(output::OutputArgs),
    /// Show one set and the disks that belong to it
    Show(show::Show),
    /// Give a set another key or version, or have it follow the latest one
    Update(update::Update),
    /// Bring all disks, snapshots and images of a set under its key's newest version
    Rotate(rotate::Rotate),
    /// Wait until a set's rotation is finished
    Wait(wait::Wait),
    /// List the disks, snapshots and images that need a set's key
    ListAssociatedResources(resources::Resources),
    /// Look for containers in a folder and below, and note where they are
    Scan(scan::Scan),
    /// Take a container that is gone for good out of the registry
    Forget(end::Forget),
    /// Take a set out, with its identity; refused while a container needs it
    Delete(end::Delete),
}

pub(super) fn run(context: &Context, command: &Command) -> Result<u8> {
    match command {
        Command::Create(args) => create::run(context, args)?,
        Command::List(output) => show::list(context, *output)?,
        Command::Show(args) => show::run(context, args)?,
        Command::Update(args) => return update::run(context, args),
        Command::Rotate(args) => return rotate::run(context, args),
        Command::Wait(args) => wait::run(context, args)?,
        Command::ListAssociatedResources(args) => resources::run(context, args)?,
        Command::Scan(args) => scan::run(context, args)?,
        Command::Forget(args) => end::forget(context, args)?,
        Command::Delete(args) => end::delete(context, args)?,
    }
    Ok(0)
}

/// The vault of a set whose key is not in the embedded one.
fn elsewhere(sets: &SetStore, set: &Set) -> Result<Option<VaultEntry>> {
    Ok(sets.vaults()?.into_iter().find(|entry| entry.id == set.vault))
}

/// As the set has it; an identity elsewhere was not made for the set, and its id may be known to its vault only.
fn to_json(sets: &SetStore, set: &Set) -> Result<serde_json::Value> {
    let mut value = set.to_json();
    let entries = sets.vaults()?;
    let url = |id: uuid::Uuid| entries.iter().find(|entry| entry.id == id).map(|entry| entry.endpoint.url());
    if let Some(url) = url(set.vault) {
        value["properties"]["activeKey"]["sourceVault"]["id"] = url.into();
        value["identity"]["type"] = "UserAssigned".into();
        if set.identity.is_nil() {
            value["identity"]["principalId"] = serde_json::Value::Null;
        }
    }
    for (at, old) in set.previous.iter().enumerate() {
        if let Some(url) = url(old.vault) {
            value["properties"]["previousKeys"][at]["sourceVault"]["id"] = url.into();
        }
    }
    Ok(value)
}
