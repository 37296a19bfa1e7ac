//! `wrapdisk vault grant|revoke IDENTITY`, and for a set `wrapdisk grant|revoke --set`, which is the emergency stop of all
//! its disks: who may do what with which key.
//!
//! Must never see: keys, credentials.

use super::blast::{BlastRadius, StopArgs};
use super::context::Context;
use super::{output, usage};
use crate::error::{Error, ErrorKind, Result};
use crate::set::Set;
use crate::set::access::Access;
use crate::vault::local::{Grant, Permission, Role};

/// Let an identity do something, with one key or with the whole vault
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault grant backup-agent --role \"crypto service encryption user\" --key disk-kek
  wrapdisk vault grant backup-agent --permissions get,list
  wrapdisk vault grant auditor --role auditor")]
pub(super) struct GrantArgs {
    /// Name, client id or object id
    identity: String,

    #[command(flatten)]
    what: What,
}

/// Take from an identity what it was granted, from its next call on
///
/// An emergency stop: on a terminal it says which disks it hits and asks, in a script it does as it is told.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault revoke backup-agent --permissions list
  wrapdisk vault revoke backup-agent --role \"crypto service encryption user\" --key disk-kek
  wrapdisk vault revoke backup-agent --all --yes")]
pub(super) struct RevokeArgs {
    /// Name, client id or object id
    identity: String,

    #[command(flatten)]
    what: What,

    /// Everything it was ever granted
    #[arg(long, conflicts_with_all = ["permissions", "role", "key"])]
    all: bool,

    #[command(flatten)]
    stop: StopArgs,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
struct What {
    /// Azure's names, separated by commas: get, list, create, ..., wrapKey, unwrapKey; or all
    #[arg(long, value_name = "LIST", value_parser = parse_permissions)]
    permissions: Option<Grant>,

    /// "crypto service encryption user" (what a set's identity needs), "crypto user", "crypto officer" or "auditor"
    #[arg(long, value_parser = parse_role, conflicts_with = "permissions")]
    role: Option<Grant>,

    /// With this key only [default: with every key of the vault]
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
}

fn parse_permissions(text: &str) -> Result<Grant, String> {
    if text.eq_ignore_ascii_case("all") {
        return Ok(Grant::Permissions(Permission::ALL.to_vec()));
    }
    let list = text.split(',').map(|name| Permission::parse(name.trim())).collect::<Result<Vec<_>>>();
    list.map(Grant::Permissions).map_err(|e| e.to_string())
}

fn parse_role(text: &str) -> Result<Grant, String> {
    Role::parse(text).map(Grant::Role).map_err(|e| e.to_string())
}

impl What {
    fn grant(&self) -> Result<&Grant> {
        self.permissions.as_ref().or(self.role.as_ref()).ok_or_else(|| usage("give --permissions or --role"))
    }
}

pub(super) fn grant(context: &Context, args: &GrantArgs) -> Result<()> {
    let vault = context.existing()?.vault;
    let call = vault.admin("vault grant");
    let identity = vault.find_identity(&args.identity, &call)?;
    Ok(vault.grant(identity.oid, args.what.grant()?, args.what.key.as_deref(), &call)?)
}

pub(super) fn revoke(context: &Context, args: &RevokeArgs) -> Result<()> {
    let what = if args.all { None } else { Some(args.what.grant()?) };
    let access = context.existing()?;
    let call = access.vault.admin("vault revoke");
    let identity = access.vault.find_identity(&args.identity, &call)?;
    let radius = BlastRadius::of_identity(context, &access, identity.oid)?;
    let question = format!("Revoke this from {}", identity.name);
    if !args.stop.agreed(&radius, &question, args.output.json())? {
        return Ok(());
    }
    match what {
        Some(what) => Ok(access.vault.revoke(identity.oid, what, args.what.key.as_deref(), &call)?),
        None => Ok(access.vault.revoke_all(identity.oid, &call).map(drop)?),
    }
}

/// Let a set's disks be opened: its identity may wrap and unwrap with its key
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk grant --set default")]
pub(super) struct GrantSet {
    /// The set
    #[arg(long, value_name = "SET")]
    set: String,
}

/// Refuse the key to all disks of a set, at once
///
/// Everything that was granted to the set's identity is taken away; `wrapdisk grant --set` gives it back. An emergency
/// stop: on a terminal it says what stops and asks, in a script it does as it is told.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk revoke --set default --dry-run    which disks, mounts and processes that would stop
  wrapdisk revoke --set default
  wrapdisk revoke --set default --yes")]
pub(super) struct RevokeSet {
    /// The set
    #[arg(long, value_name = "SET")]
    set: String,

    #[command(flatten)]
    stop: StopArgs,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn grant_set(context: &Context, args: &GrantSet) -> Result<()> {
    let access = context.existing()?;
    let set = local_set(&access, &args.set)?;
    let call = access.vault.admin("grant");
    let key = set.active.name();
    access.vault.grant(set.identity, Role::CryptoServiceEncryptionUser, Some(key), &call)?;
    output::line(&format!("{}: may use the key {key}", set.name))
}

pub(super) fn revoke_set(context: &Context, args: &RevokeSet) -> Result<()> {
    let access = context.existing()?;
    let set = local_set(&access, &args.set)?;
    let radius = BlastRadius::of_identity(context, &access, set.identity)?;
    let question = format!("Revoke the key from the set {}", set.name);
    if !args.stop.agreed(&radius, &question, args.output.json())? {
        return Ok(());
    }
    let taken = access.vault.revoke_all(set.identity, &access.vault.admin("revoke"))?;
    if args.output.json() {
        return output::json(&serde_json::json!({ "set": set.name, "grantsTaken": taken.len() }));
    }
    let had = if taken.is_empty() { ", as before" } else { "" };
    output::line(&format!("{}: may use no key{had}", set.name))
}

/// A set whose grants are ours to change.
fn local_set(access: &Access, name: &str) -> Result<Set> {
    let set = access.sets.by_name(name)?;
    if set.vault == access.vault.id() {
        return Ok(set);
    }
    Err(Error::new(ErrorKind::Unsupported, "its key is in another vault, which has its own grants")
        .on(&set.name)
        .hint("use that vault's tools: az role assignment create, or az role assignment delete"))
}

/// A grant as JSON.
pub(super) fn describe(grant: &Grant, key: Option<&str>) -> serde_json::Value {
    match grant {
        Grant::Role(role) => serde_json::json!({ "role": role.name(), "key": key }),
        Grant::Permissions(list) => {
            let names: Vec<_> = list.iter().map(|p| p.name()).collect();
            serde_json::json!({ "permissions": names, "key": key })
        }
    }
}
