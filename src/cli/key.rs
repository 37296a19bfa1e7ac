//! `wrapdisk key ...`: the keys of the embedded vault, in the manner of `az keyvault key`.

use std::path::{Path, PathBuf};

use super::context::Context;
use super::{output, prompt};
use crate::envelope::KeyRef;
use crate::error::{Error, ErrorKind, Result};
use crate::vault::local::{ImportedKey, NewKey, Page, RsaBits};
use crate::vault::{Denial, KeyInfo, KeyVault, VaultError};

/// Manage the RSA keys that wrap the data keys
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk key create disk-kek2 --size 4096
  wrapdisk key import disk-kek3 --pem-file key.pem
  wrapdisk key list
  wrapdisk key disable disk-kek        no new mount of any disk under it
  wrapdisk key enable disk-kek")]
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
    /// Show one key; the latest version unless NAME/VERSION is given
    Show(Show),
    /// Let a key version be used (again)
    #[command(after_long_help = "\
Examples:
  wrapdisk key enable disk-kek
  wrapdisk key enable disk-kek --version 1d9aba4cc88ea2e058a6cc04fa7ef82f")]
    Enable(Switch),
    /// Refuse every use of a key version: no disk under it can be mounted any more
    ///
    /// An emergency stop: on a terminal it says which disks it hits and asks, in a script it does as it is told.
    #[command(after_long_help = "\
Examples:
  wrapdisk key disable disk-kek
  wrapdisk key disable disk-kek/1d9aba4cc88ea2e058a6cc04fa7ef82f --yes")]
    Disable(Switch),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key create disk-kek2 --size 4096
  wrapdisk key create disk-kek               a new version; disks keep theirs until they are rewrapped")]
pub(super) struct Create {
    /// 1 to 127 letters, digits and dashes
    name: String,

    /// Bits: 2048, 3072 or 4096
    #[arg(long, default_value = "3072", value_parser = parse_bits)]
    size: RsaBits,

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
  wrapdisk key show disk-kek --pem > disk-kek.pub.pem")]
pub(super) struct Show {
    /// NAME or NAME/VERSION
    #[arg(value_parser = parse_key)]
    key: KeyRef,

    /// Print the public half as PEM
    #[arg(long)]
    pem: bool,

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

    /// Do not ask
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn parse_key(text: &str) -> Result<KeyRef, String> {
    KeyRef::parse(text).map_err(|e| e.to_string())
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    match command {
        Command::Create(args) => {
            let vault = context.access()?.vault;
            show(
                &vault.create_key(&args.name, &NewKey::wrapping(args.size), &vault.admin("key create"))?,
                args.output.json(),
            )
        }
        Command::Import(args) => import(context, args),
        Command::List(output) => {
            let vault = context.existing()?.vault;
            list(&vault.list_keys(&Page::default(), &vault.admin("key list"))?, output.json())
        }
        Command::ListVersions(args) => {
            let vault = context.existing()?.vault;
            let call = vault.admin("key list-versions");
            let versions = vault.list_versions(&args.name, &Page::default(), &call)?;
            if versions.is_empty() {
                // To a program none is an answer, as at Azure; a person has mistyped the name.
                vault.get_key(&KeyRef { name: args.name.clone(), version: None }, &call)?;
            }
            list(&versions, args.output.json())
        }
        Command::Show(args) => {
            let vault = context.existing()?.vault;
            let call = vault.admin("key show");
            if args.pem {
                return output::line(vault.public_pem(&args.key, &call).map_err(mistyped)?.trim_end());
            }
            show(&vault.describe(&args.key, &call).map_err(mistyped)?, args.output.json())
        }
        Command::Enable(args) => switch(context, args, true),
        Command::Disable(args) => switch(context, args, false),
    }
}

fn import(context: &Context, args: &Import) -> Result<()> {
    let material = match (&args.pem_file, &args.jwk_file) {
        (Some(file), _) => from_pem(file, args.passphrase_file.as_deref()),
        (None, Some(file)) => prompt::secret_file(file).and_then(|jwk| ImportedKey::from_jwk(jwk.expose())),
        (None, None) => return Err(super::usage("key import: give --pem-file or --jwk-file")),
    };
    let file = args.pem_file.as_ref().or(args.jwk_file.as_ref());
    let material = material.map_err(|e| file.into_iter().fold(e, |e, file| e.at(file)))?;
    let vault = context.access()?.vault;
    show(
        &vault.import_key(&args.name, &material, &NewKey::default(), &vault.admin("key import"))?,
        args.output.json(),
    )
}

fn from_pem(file: &Path, passphrase: Option<&Path>) -> Result<ImportedKey> {
    if Some(file) == passphrase {
        return Err(super::usage("found one file for key and passphrase, allowed two"));
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

fn switch(context: &Context, args: &Switch, enabled: bool) -> Result<()> {
    let mut key = args.key.clone();
    if let Some(version) = &args.version {
        if key.version.is_some() {
            return Err(super::usage("version: given twice"));
        }
        key = KeyRef::parse(&format!("{}/{version}", key.name))?;
    }
    let access = context.existing()?;
    let call = access.vault.admin(if enabled { "key enable" } else { "key disable" });
    let info = access.vault.describe(&key, &call).map_err(mistyped)?;
    if !enabled {
        warn_of_disabling(context, &access, &info, args.yes)?;
    }
    show(&access.vault.set_enabled(&KeyRef::from(&info.kid), enabled, &call)?, args.output.json())
}

/// Says what stops before it asks. Mounts go on until the sets issue brings the guard (RULINGS 19).
fn warn_of_disabling(
    context: &Context,
    access: &crate::set::access::Access,
    info: &KeyInfo,
    yes: bool,
) -> Result<()> {
    let kid = info.kid.as_str();
    let disks = access.sets.containers(None)?;
    let under: Vec<_> = disks.iter().filter(|c| c.kids.iter().any(|k| k == kid)).collect();
    for disk in &under {
        output::note(&format!("  {} will not mount any more", disk.path.display()));
    }
    for mount in context.mounts()?.iter().filter(|m| m.key.as_deref() == Some(kid)) {
        output::note(&format!(
            "  {} stays mounted until it is unmounted: this version does not yet revoke live mounts",
            mount.mountpoint.display()
        ));
    }
    if under.is_empty() || !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        // An emergency stop is never refused in a script (RULINGS 29); a person at a terminal is asked.
        return Ok(());
    }
    prompt::confirm(&format!("Disable {kid}, which {} disk(s) need", under.len()), yes)
}

fn to_json(info: &KeyInfo) -> serde_json::Value {
    serde_json::json!({
        "name": info.kid.name(),
        "kid": info.kid.as_str(),
        "version": info.kid.version(),
        "kty": "RSA",
        "size": info.bits,
        "attributes": {
            "enabled": info.enabled,
            "created": output::time(info.created),
            "updated": output::time(info.updated),
            "notBefore": info.not_before.map(output::time),
            "expires": info.expires.map(output::time),
        },
    })
}

fn show(info: &KeyInfo, json: bool) -> Result<()> {
    if json {
        return output::json(&to_json(info));
    }
    output::fields(&[
        ("name", info.kid.name().to_owned()),
        ("version", info.kid.version().to_owned()),
        ("kid", info.kid.to_string()),
        ("type", format!("RSA-{}", info.bits)),
        ("enabled", if info.enabled { "yes" } else { "no" }.to_owned()),
        ("created", output::time(info.created)),
        ("updated", output::time(info.updated)),
    ])
}

fn list(infos: &[KeyInfo], json: bool) -> Result<()> {
    if json {
        return output::json(&infos.iter().map(to_json).collect::<Vec<_>>());
    }
    let row = |i: &KeyInfo| {
        vec![
            i.kid.name().to_owned(),
            i.kid.version().to_owned(),
            format!("RSA-{}", i.bits),
            if i.enabled { "enabled" } else { "disabled" }.to_owned(),
            output::time(i.created),
        ]
    };
    output::table(
        &["NAME", "VERSION", "TYPE", "STATE", "CREATED"],
        &infos.iter().map(row).collect::<Vec<_>>(),
    )
}
