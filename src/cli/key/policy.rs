//! `key rotate`, `key rotation-policy`.

use std::path::PathBuf;

use super::print;
use crate::cli::context::Context;
use crate::cli::{output, prompt};
use crate::error::Result;
use crate::vault::local::{PolicyAction, RotationPolicy};

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key rotate disk-kek     mounts that follow it rewrap at once; for the others: wrapdisk set rotate --all")]
pub(in crate::cli) struct Rotate {
    /// The key
    name: String,

    #[command(flatten)]
    output: output::OutputArgs,
}

/// See or change when a key rotates by itself
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk key rotation-policy show disk-kek
  wrapdisk key rotation-policy update disk-kek --value policy.json")]
pub(in crate::cli) enum PolicyCommand {
    /// Show a key's rotation policy
    #[command(after_long_help = "\
Examples:
  wrapdisk key rotation-policy show disk-kek
  wrapdisk key rotation-policy show disk-kek --output json > policy.json")]
    Show(Show),
    /// Give a key a rotation policy
    ///
    /// What it says is done when it is due: whenever a wrapdisk command opens the vault, and hourly by `vault serve`.
    #[command(after_long_help = "\
Examples:
  wrapdisk key rotation-policy update disk-kek --value policy.json
  echo '{\"lifetimeActions\":[{\"trigger\":{\"timeAfterCreate\":\"P90D\"},\"action\":{\"type\":\"Rotate\"}}]}' |
    wrapdisk key rotation-policy update disk-kek --value -

Rules:
  at most one Rotate and one Notify, each with timeAfterCreate or timeBeforeExpiry (ISO 8601: P90D, P1Y)
  attributes.expiryTime at least P28D; Rotate at least P7D after the creation, P7D before the expiry")]
    Update(Update),
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Show {
    /// The key
    name: String,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Update {
    /// The key
    name: String,

    /// The policy in Azure's JSON ("-": standard input)
    #[arg(long, value_name = "FILE")]
    value: PathBuf,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn rotate(context: &Context, args: &Rotate) -> Result<()> {
    let vault = context.existing()?.vault;
    let key = vault.rotate_key(&args.name, &vault.admin("key rotate"))?;
    // The mounts of sets that follow this key begin at once; the timer does the rest.
    crate::control::poke_all(&context.dirs);
    print::show(&key, &vault.settings()?, args.output.json())
}

pub(super) fn run(context: &Context, command: &PolicyCommand) -> Result<()> {
    let vault = context.existing()?.vault;
    let (name, policy, output) = match command {
        PolicyCommand::Show(args) => {
            let call = vault.admin("key rotation-policy show");
            (&args.name, vault.rotation_policy(&args.name, &call)?, args.output)
        }
        PolicyCommand::Update(args) => {
            let text = prompt::secret_file(&args.value)?; // no secret, but read with a bound
            let policy = RotationPolicy::from_json(text.expose()).map_err(|e| e.at(&args.value))?;
            let call = vault.admin("key rotation-policy update");
            (&args.name, vault.set_rotation_policy(&args.name, &policy, &call)?, args.output)
        }
    };
    if output.json() {
        let mut json = policy.to_json();
        json["id"] = format!("https://{}.vault.localhost/keys/{name}/rotationpolicy", vault.id()).into();
        return output::json(&json);
    }
    let when = |action| match policy.trigger(action).map(|t| t.parts()) {
        Some((trigger, period)) => format!("{trigger} {period}"),
        None => "never".to_owned(),
    };
    output::fields(&[
        ("rotate", when(PolicyAction::Rotate)),
        ("notify", when(PolicyAction::Notify)),
        ("a new version is valid", policy.expiry.as_ref().map_or("for ever".to_owned(), ToString::to_string)),
    ])
}
