//! `wrapdisk set ...`: disk encryption sets. The set "default" is made by first use; others need a key in a vault elsewhere.

use super::context::Context;
use super::output;
use crate::control::json_path;
use crate::error::Result;
use crate::set::{Set, SetStore};
use crate::vault::VaultEntry;

#[cfg(feature = "azure")]
mod create;

/// Disk encryption sets: which key wraps the data keys, and in whose name
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk set list
  wrapdisk set create prod --key-url https://demo.vault.azure.net/keys/disk-kek
  wrapdisk set show default --output json")]
pub(super) enum Command {
    /// Make a set over a key in a vault elsewhere; the key is used once before it succeeds
    #[cfg(feature = "azure")]
    Create(create::Create),
    /// List all sets
    #[command(after_long_help = "\
Examples:
  wrapdisk set list
  wrapdisk set list --output json | jq -r '.[].name'")]
    List(output::OutputArgs),
    /// Show one set and the disks that belong to it
    Show(Show),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk set show default
  wrapdisk set show default --output json | jq -r '.disks[].path'")]
pub(super) struct Show {
    /// The set
    name: String,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    let sets = || Ok::<_, crate::error::Error>(context.existing()?.sets);
    match command {
        #[cfg(feature = "azure")]
        Command::Create(args) => create::run(context, args),
        Command::List(output) => {
            let sets = sets()?;
            let all = sets.list()?;
            if output.json() {
                return output::json(&all.iter().map(|set| to_json(&sets, set)).collect::<Result<Vec<_>>>()?);
            }
            let mut rows = Vec::new();
            for set in &all {
                let disks = sets.containers(Some(set.id))?.len();
                rows.push(vec![set.name.clone(), set.active.to_string(), disks.to_string()]);
            }
            output::table(&["NAME", "ACTIVE KEY", "DISKS"], &rows)
        }
        Command::Show(args) => {
            let sets = sets()?;
            let set = sets.by_name(&args.name)?;
            let disks = sets.containers(Some(set.id))?;
            let vault = elsewhere(&sets, &set)?;
            if args.output.json() {
                let mut value = to_json(&sets, &set)?;
                value["disks"] = disks
                    .iter()
                    .map(|d| serde_json::json!({ "uuid": d.uuid, "path": json_path::value(&d.path), "kids": d.kids }))
                    .collect();
                return output::json(&value);
            }
            output::fields(&[
                ("name", set.name.clone()),
                ("id", set.id.to_string()),
                (
                    "vault",
                    vault
                        .as_ref()
                        .map_or_else(|| "local".into(), |v| format!("{} at {}", v.name, v.endpoint)),
                ),
                (
                    "identity",
                    vault.as_ref().map_or_else(|| set.identity.to_string(), |v| v.credential.to_string()),
                ),
                ("key", set.key.clone()),
                ("active version", set.active.version().to_owned()),
                ("follows", if set.pinned { "this version" } else { "the latest version" }.to_owned()),
                ("created", output::time(set.created)),
                ("disks", disks.len().to_string()),
            ])?;
            for disk in disks {
                let missing = if disk.path.exists() { "" } else { "  (missing)" };
                output::line(&format!("  {}{missing}", disk.path.display()))?;
            }
            Ok(())
        }
    }
}

/// The vault of a set whose key is not in the embedded one.
fn elsewhere(sets: &SetStore, set: &Set) -> Result<Option<VaultEntry>> {
    Ok(sets.vaults()?.into_iter().find(|entry| entry.id == set.vault))
}

/// As the set has it; an identity elsewhere was not made for the set, and its id may be known to its vault only.
fn to_json(sets: &SetStore, set: &Set) -> Result<serde_json::Value> {
    let mut value = set.to_json();
    if let Some(entry) = elsewhere(sets, set)? {
        value["properties"]["activeKey"]["sourceVault"]["id"] = entry.endpoint.url().into();
        value["identity"]["type"] = "UserAssigned".into();
        if set.identity.is_nil() {
            value["identity"]["principalId"] = serde_json::Value::Null;
        }
    }
    Ok(value)
}
