//! `wrapdisk vault ...`: the embedded key vault itself, who may use it, and the vaults elsewhere that disks may use.
//! One file a group of subcommands; what is short stands here.
//!
//! Must never see: a key's private part, a root key.

#[cfg(feature = "azure")]
mod elsewhere;
mod identity;
mod root;
#[cfg(feature = "serve")]
mod serve;
mod update;
mod whole;

use super::context::Context;
use super::{grant, output};
use crate::error::Result;
use crate::vault::local::LocalVault;

/// Manage the key vault: make it, say who may use it, keep a backup
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault init production
  wrapdisk vault add cloud https://demo.vault.azure.net
  wrapdisk vault test cloud --key disk-kek
  wrapdisk vault identity add backup-agent --generate-secret
  wrapdisk vault grant backup-agent --permissions get,unwrapKey --key disk-kek")]
pub(super) enum Command {
    /// Make an empty key vault; without it, the first `create` makes one named "default"
    Init(Init),
    #[cfg(feature = "serve")]
    Serve(serve::Serve),
    #[cfg(feature = "azure")]
    #[command(flatten)]
    Elsewhere(elsewhere::Command),
    #[command(subcommand)]
    Identity(identity::Command),
    Grant(grant::GrantArgs),
    Revoke(grant::RevokeArgs),
    Env(identity::Env),
    Seal(root::Seal),
    RotateRootKey(root::Rotate),
    Update(update::Update),
    Backup(whole::Backup),
    Restore(whole::Restore),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault init
  wrapdisk --state /srv/keys vault init production
  wrapdisk vault init production --retention-days 30 --enable-purge-protection")]
pub(super) struct Init {
    /// 1 to 127 letters, digits and dashes
    #[arg(default_value = "default")]
    name: String,

    /// How long a deleted key can be had back, 7 to 90 [default: 90]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(7..=90))]
    retention_days: Option<u32>,

    /// Deleted keys stay until their time has come; this cannot be taken back
    #[arg(long)]
    enable_purge_protection: bool,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    match command {
        Command::Init(args) => init(context, args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(context, args),
        #[cfg(feature = "azure")]
        Command::Elsewhere(command) => elsewhere::run(context, command),
        Command::Identity(command) => identity::run(context, command),
        Command::Grant(args) => grant::grant(context, args),
        Command::Revoke(args) => grant::revoke(context, args),
        Command::Env(args) => identity::env(context, args),
        Command::Seal(args) => root::seal(context, args),
        Command::RotateRootKey(args) => root::rotate(context, args),
        Command::Update(args) => update::run(context, args),
        Command::Backup(args) => whole::backup(context, args),
        Command::Restore(args) => whole::restore(context, args),
    }
}

fn init(context: &Context, args: &Init) -> Result<()> {
    let state = &context.dirs.state;
    let vault = LocalVault::init(state, &args.name)?;
    if args.retention_days.is_some() || args.enable_purge_protection {
        let protect = args.enable_purge_protection.then_some(true);
        vault.set_retention(args.retention_days, protect, &vault.admin("vault init"))?;
    }
    if args.output.json() {
        return output::json(&serde_json::json!({ "name": vault.name(), "id": vault.id().to_string() }));
    }
    output::line(&format!("{}: made the vault \"{}\", {}", state.display(), vault.name(), vault.id()))
}
