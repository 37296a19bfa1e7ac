//! `wrapdisk key ...`: the keys of the embedded vault, in the manner of `az keyvault key`.

use std::path::{Path, PathBuf};

mod attributes;
mod end;
mod files;
mod policy;
mod print;

use super::blast::{BlastRadius, StopArgs};
use super::context::Context;
use super::{output, prompt, usage};
use crate::envelope::KeyRef;
use crate::error::{Error, ErrorKind, Result};
use crate::vault::local::{ImportedKey, KeyUpdate, Page, RsaBits};
use crate::vault::{Denial, KeyOperation, KeyVault, VaultError};

/// Manage the RSA keys that wrap the data keys
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk key create disk-kek2 --size 4096
  wrapdisk key import disk-kek3 --pem-file key.pem
  wrapdisk key list
  wrapdisk key rotate disk-kek         a new version of it
  wrapdisk key disable disk-kek        every disk under it stops, until it is enabled
  wrapdisk key enable disk-kek
  wrapdisk key delete disk-kek2        it can be had back: key recover")]
pub(super) enum Command {
    /// Generate an RSA key; under an existing name, a new version of it
    Create(Create),
    /// Import an RSA key from a PEM, DER or JWK file; under an existing name, as a new version
    Import(Import),
    /// List all keys, with their latest version
    #[command(after_long_help = "\
Examples:
  wrapdisk key list
  wrapdisk key list --output json | jq -r '.[] | select(.attributes.enabled) | .kid'")]
    List(output::OutputArgs),
    /// List every version of a key
    ListVersions(Named),
    /// List the deleted keys that can be had back
    #[command(after_long_help = "\
Examples:
  wrapdisk key list-deleted
  wrapdisk key list-deleted --output json | jq -r '.[].recoveryId'")]
    ListDeleted(output::OutputArgs),
    /// Show one key; the latest version unless NAME/VERSION is given
    Show(Show),
    /// Show a deleted key, and when it goes for good
    ShowDeleted(end::ShowDeleted),
    /// Change what can be changed of a key version: enabled, validity, operations, tags
    SetAttributes(SetAttributes),
    /// Let a key version be used (again)
    #[command(after_long_help = "\
Examples:
  wrapdisk key enable disk-kek
  wrapdisk key enable disk-kek --version 1d9aba4cc88ea2e058a6cc04fa7ef82f")]
    Enable(Switch),
    /// Refuse every use of a key version: every disk under it stops
    ///
    /// Mounts that are up refuse their reads and writes within seconds, forget the key, and go on when it is enabled again.
    ///
    /// An emergency stop: on a terminal it says which disks it hits and asks, in a script it does as it is told.
    #[command(after_long_help = "\
Examples:
  wrapdisk key disable disk-kek --dry-run    which disks, mounts and processes that would stop
  wrapdisk key disable disk-kek
  wrapdisk key disable disk-kek/1d9aba4cc88ea2e058a6cc04fa7ef82f --yes")]
    Disable(Disable),
    /// Make the next version of a key: same size, operations and tags
    Rotate(policy::Rotate),
    #[command(subcommand)]
    RotationPolicy(policy::PolicyCommand),
    /// Delete a key with all its versions; it can be had back for the vault's retention (90 days by default)
    ///
    /// An emergency stop: on a terminal it says what it hits and asks, in a script it does as it is told.
    Delete(end::Delete),
    /// Bring a deleted key back
    Recover(end::Recover),
    /// Destroy a deleted key for good
    ///
    /// Refused while a disk or a set needs the key, and under the vault's purge protection. In a script: --yes.
    Purge(end::Purge),
    /// Write a key with all its versions to a file, sealed for this vault or under a passphrase
    Backup(files::Backup),
    /// Bring a key back from its backup, under its name and with its versions
    Restore(files::Restore),
    /// Write the public half of a key to a file
    Download(files::Download),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key create disk-kek2 --size 4096
  wrapdisk key create disk-kek               a new version; disks keep theirs until they are rewrapped
  wrapdisk key create app-key --ops sign,verify --expires 2027-12-31 --tags team=blue env=test")]
pub(super) struct Create {
    /// 1 to 127 letters, digits and dashes
    name: String,

    /// Bits: 2048, 3072 or 4096
    #[arg(long, default_value = "3072", value_parser = parse_bits)]
    size: RsaBits,

    #[command(flatten)]
    attributes: attributes::NewArgs,

    #[command(flatten)]
    output: output::OutputArgs,
}

fn parse_bits(text: &str) -> Result<RsaBits, String> {
    text.parse::<u32>()
        .ok()
        .and_then(|n| RsaBits::try_from(n).ok())
        .ok_or_else(|| "allowed 2048, 3072 or 4096".to_owned())
}

#[derive(Debug, clap::Args)]
#[group(id = "source", required = true, multiple = false, args = ["pem_file", "jwk_file"])]
#[command(after_long_help = "\
Examples:
  openssl genrsa 3072 | wrapdisk key import disk-kek3 --pem-file -
  wrapdisk key import disk-kek3 --pem-file key.pem --passphrase-file key.pass
  wrapdisk key import disk-kek3 --jwk-file key.jwk")]
pub(super) struct Import {
    /// 1 to 127 letters, digits and dashes
    name: String,

    /// PKCS#1 or PKCS#8, PEM or DER ("-": standard input)
    #[arg(long, value_name = "FILE")]
    pem_file: Option<PathBuf>,

    /// A JSON Web Key with its private part
    #[arg(long, value_name = "FILE")]
    jwk_file: Option<PathBuf>,

    /// The passphrase of an encrypted PKCS#8 file, in FILE; asked for on the terminal otherwise
    #[arg(long, value_name = "FILE", conflicts_with = "jwk_file")]
    passphrase_file: Option<PathBuf>,

    #[command(flatten)]
    attributes: attributes::NewArgs,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key list-versions disk-kek
  wrapdisk key list-versions disk-kek --output json | jq -r '.[].kid'")]
pub(super) struct Named {
    /// The key
    name: String,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key show disk-kek
  wrapdisk key show disk-kek --used-by
  wrapdisk key show disk-kek --pem > disk-kek.pub.pem")]
pub(super) struct Show {
    /// NAME or NAME/VERSION
    #[arg(value_parser = parse_key)]
    key: KeyRef,

    /// Print the public half as PEM
    #[arg(long)]
    pem: bool,

    /// Show the disks, mounts and sets that need it; of NAME, those of all its versions
    #[arg(long, conflicts_with = "pem")]
    used_by: bool,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)]
pub(super) struct Switch {
    /// NAME (its latest version) or NAME/VERSION
    #[arg(value_parser = parse_key)]
    key: KeyRef,

    /// The version, where NAME has none
    #[arg(long = "version", id = "key-version", value_name = "VERSION")]
    version: Option<String>,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)]
pub(super) struct Disable {
    #[command(flatten)]
    switch: Switch,

    #[command(flatten)]
    stop: StopArgs,
}

#[derive(Debug, clap::Args)]
#[command(
    disable_version_flag = true,
    after_long_help = "\
Examples:
  wrapdisk key set-attributes disk-kek --expires 2027-12-31
  wrapdisk key set-attributes disk-kek --enabled false
  wrapdisk key set-attributes app-key --ops sign verify --tags team=blue"
)]
pub(super) struct SetAttributes {
    /// NAME (its latest version) or NAME/VERSION
    #[arg(value_parser = parse_key)]
    key: KeyRef,

    /// The version, where NAME has none
    #[arg(long = "version", id = "key-version", value_name = "VERSION")]
    version: Option<String>,

    /// Switch it on or off
    #[arg(long, value_name = "BOOL")]
    enabled: Option<bool>,

    #[command(flatten)]
    attributes: attributes::Attributes,

    #[command(flatten)]
    stop: StopArgs,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn parse_key(text: &str) -> Result<KeyRef, String> {
    KeyRef::parse(text).map_err(|e| e.to_string())
}

impl Command {
    /// Whether a key can be used afterwards that could not be before, or the other way round.
    pub(super) const fn changes_access(&self) -> bool {
        matches!(
            self,
            Self::SetAttributes(_)
                | Self::Enable(_)
                | Self::Disable(_)
                | Self::Delete(_)
                | Self::Recover(_)
                | Self::Purge(_)
                | Self::Restore(_)
        )
    }
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    match command {
        Command::Create(args) => {
            let vault = context.access()?.vault;
            let new =
                args.attributes.to_new(args.size, Some(&[KeyOperation::WrapKey, KeyOperation::UnwrapKey]));
            let key = vault.create_key(&args.name, &new, &vault.admin("key create"))?;
            crate::control::poke_all(&context.dirs); // it may be a new version
            print::show(&key, &vault.settings()?, args.output.json())
        }
        Command::Import(args) => import(context, args),
        Command::List(output) => {
            let vault = context.existing()?.vault;
            let keys = vault.list_keys(&Page::default(), &vault.admin("key list"))?;
            print::list(&keys, &vault.settings()?, output.json())
        }
        Command::ListVersions(args) => list_versions(context, args),
        Command::ListDeleted(output) => end::list_deleted(context, *output),
        Command::Show(args) => show(context, args),
        Command::ShowDeleted(args) => end::show_deleted(context, args),
        Command::SetAttributes(args) => set_attributes(context, args),
        Command::Enable(args) => switch(context, args, None),
        Command::Disable(args) => switch(context, &args.switch, Some(args.stop)),
        Command::Rotate(args) => policy::rotate(context, args),
        Command::RotationPolicy(command) => policy::run(context, command),
        Command::Delete(args) => end::delete(context, args),
        Command::Recover(args) => end::recover(context, args),
        Command::Purge(args) => end::purge(context, args),
        Command::Backup(args) => files::backup(context, args),
        Command::Restore(args) => files::restore(context, args),
        Command::Download(args) => files::download(context, args),
    }
}

fn show(context: &Context, args: &Show) -> Result<()> {
    let access = context.existing()?;
    let vault = &access.vault;
    let call = vault.admin("key show");
    if args.pem {
        return output::line(vault.public_pem(&args.key, &call).map_err(mistyped)?.trim_end());
    }
    let key = vault.describe(&args.key, &call).map_err(mistyped)?;
    if !args.used_by {
        return print::show(&key, &vault.settings()?, args.output.json());
    }
    let radius = match args.key.version {
        Some(_) => BlastRadius::of_version(context, &access, key.kid.as_str())?,
        None => BlastRadius::of_key(context, &access, key.kid.versionless())?,
    };
    radius.show(args.output.json())
}

fn list_versions(context: &Context, args: &Named) -> Result<()> {
    let vault = context.existing()?.vault;
    let call = vault.admin("key list-versions");
    let versions = vault.list_versions(&args.name, &Page::default(), &call)?;
    if versions.is_empty() {
        // To a program none is an answer, as at Azure; a person has mistyped the name.
        vault.get_key(&end::latest(&args.name), &call)?;
    }
    print::list(&versions, &vault.settings()?, args.output.json())
}

fn import(context: &Context, args: &Import) -> Result<()> {
    let material = match (&args.pem_file, &args.jwk_file) {
        (Some(file), _) => from_pem(file, args.passphrase_file.as_deref()),
        (None, Some(file)) => prompt::secret_file(file).and_then(|jwk| ImportedKey::from_jwk(jwk.expose())),
        (None, None) => return Err(usage("key import: give --pem-file or --jwk-file")),
    };
    let file = args.pem_file.as_ref().or(args.jwk_file.as_ref());
    let material = material.map_err(|e| file.into_iter().fold(e, |e, file| e.at(file)))?;
    let vault = context.access()?.vault;
    let new = args.attributes.to_new(RsaBits::default(), None);
    let key = vault.import_key(&args.name, &material, &new, &vault.admin("key import"))?;
    crate::control::poke_all(&context.dirs); // it may be a new version
    print::show(&key, &vault.settings()?, args.output.json())
}

fn from_pem(file: &Path, passphrase: Option<&Path>) -> Result<ImportedKey> {
    if Some(file) == passphrase {
        return Err(usage("found one file for key and passphrase, allowed two"));
    }
    let pem = prompt::secret_file(file)?;
    let Some(passphrase) = passphrase else {
        return match ImportedKey::from_pem(pem.expose(), None) {
            // It is encrypted: only then is anything asked.
            Err(e) if e.kind() == ErrorKind::WrongKey => {
                let typed = prompt::passphrase(&format!("Passphrase of {}", file.display()), false)?;
                ImportedKey::from_pem(pem.expose(), Some(typed.expose()))
            }
            done => done,
        };
    };
    let passphrase = prompt::passphrase_file(passphrase)?;
    ImportedKey::from_pem(pem.expose(), Some(passphrase.expose()))
}

/// A name that was mistyped is no denial, as it would be for a disk that needs the key.
fn mistyped(e: impl Into<VaultError>) -> Error {
    match e.into() {
        e @ VaultError::Denied(Denial::Deleted, _) => Error::from(e).as_kind(ErrorKind::NotFound),
        e => e.into(),
    }
}

/// On, or off with these options.
fn switch(context: &Context, args: &Switch, off: Option<StopArgs>) -> Result<()> {
    let reason = if off.is_none() { "key enable" } else { "key disable" };
    let change = KeyUpdate { enabled: Some(off.is_none()), ..KeyUpdate::default() };
    update(context, &with_version(&args.key, args.version.as_deref())?, &change, off, reason, args.output)
}

fn set_attributes(context: &Context, args: &SetAttributes) -> Result<()> {
    let change = args.attributes.to_update(args.enabled);
    if change == KeyUpdate::default() {
        return Err(usage("key set-attributes: found nothing to change")
            .hint("give --enabled, --not-before, --expires, --ops or --tags"));
    }
    let key = with_version(&args.key, args.version.as_deref())?;
    if args.stop.dry_run && args.enabled != Some(false) {
        return Err(usage("--dry-run shows what would stop: found without --enabled false"));
    }
    update(context, &key, &change, Some(args.stop), "key set-attributes", args.output)
}

fn with_version(key: &KeyRef, version: Option<&str>) -> Result<KeyRef> {
    match (version, &key.version) {
        (None, _) => Ok(key.clone()),
        (Some(_), Some(_)) => Err(usage("version: given twice")),
        (Some(version), None) => KeyRef::parse(&format!("{}/{version}", key.name)),
    }
}

fn update(
    context: &Context,
    key: &KeyRef,
    change: &KeyUpdate,
    stop: Option<StopArgs>,
    reason: &str,
    output: output::OutputArgs,
) -> Result<()> {
    let access = context.existing()?;
    let call = access.vault.admin(reason);
    let info = access.vault.describe(key, &call).map_err(mistyped)?;
    if let Some(stop) = stop.filter(|_| change.enabled == Some(false)) {
        let radius = BlastRadius::of_version(context, &access, info.kid.as_str())?;
        if !stop.agreed(&radius, &format!("Disable {}", info.kid), output.json())? {
            return Ok(());
        }
    }
    let key = access.vault.update_key(&KeyRef::from(&info.kid), change, &call)?;
    print::show(&key, &access.vault.settings()?, output.json())
}
