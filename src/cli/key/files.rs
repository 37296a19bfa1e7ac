//! `key backup`, `restore`, `download`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{mistyped, parse_key, print};
use crate::cli::context::Context;
use crate::cli::{output, prompt};
use crate::envelope::KeyRef;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::vault::local::LocalVault;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key backup disk-kek --file disk-kek.backup              for this vault
  wrapdisk key backup disk-kek --file disk-kek.backup --portable   for any vault, under a passphrase")]
pub(in crate::cli) struct Backup {
    /// The key, with all its versions and its policy
    name: String,

    /// Where to; it must not exist
    #[arg(long, value_name = "FILE")]
    file: PathBuf,

    /// Under a passphrase, for another vault
    #[arg(long)]
    portable: bool,

    /// The passphrase, in FILE; asked for on the terminal otherwise
    #[arg(long, value_name = "FILE", requires = "portable")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key restore --file disk-kek.backup")]
pub(in crate::cli) struct Restore {
    /// A backup of a key
    #[arg(long, value_name = "FILE")]
    file: PathBuf,

    /// The passphrase of a portable backup, in FILE; asked for on the terminal otherwise
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk key download disk-kek --file disk-kek.pub.pem
  wrapdisk key download disk-kek --file disk-kek.pub.der --encoding DER")]
pub(in crate::cli) struct Download {
    /// NAME or NAME/VERSION
    #[arg(value_parser = parse_key)]
    key: KeyRef,

    /// Where to; it must not exist
    #[arg(long, value_name = "FILE")]
    file: PathBuf,

    /// PEM (text) or DER
    #[arg(long, value_enum, ignore_case = true, default_value = "PEM")]
    encoding: Encoding,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Encoding {
    #[value(name = "PEM")]
    Pem,
    #[value(name = "DER")]
    Der,
}

pub(super) fn backup(context: &Context, args: &Backup) -> Result<()> {
    let vault = context.existing()?.vault;
    let call = vault.admin("key backup");
    let blob = if args.portable {
        let passphrase = match &args.passphrase_file {
            Some(file) => prompt::passphrase_file(file)?,
            None => prompt::passphrase("Passphrase of the backup", true)?,
        };
        vault.backup_key_portable(&args.name, passphrase.expose(), &call)?
    } else {
        vault.backup_key(&args.name, &call)?
    };
    write(&args.file, &blob, 0o600)
}

pub(super) fn restore(context: &Context, args: &Restore) -> Result<()> {
    let blob = prompt::secret_file(&args.file)?;
    let blob = blob.expose();
    let vault = context.access()?.vault;
    let call = vault.admin("key restore");
    let key = if LocalVault::backup_is_portable(blob) {
        let passphrase = match &args.passphrase_file {
            Some(file) => prompt::passphrase_file(file)?,
            None => prompt::passphrase(&format!("Passphrase of {}", args.file.display()), false)?,
        };
        vault.restore_key_portable(blob, passphrase.expose(), &call)
    } else {
        vault.restore_key(blob, &call)
    };
    let key = key.map_err(|e| Error::from(e).or_at(&args.file))?;
    print::show(&key, &vault.settings()?, args.output.json())
}

pub(super) fn download(context: &Context, args: &Download) -> Result<()> {
    let vault = context.existing()?.vault;
    let pem = vault.public_pem(&args.key, &vault.admin("key download")).map_err(mistyped)?;
    match args.encoding {
        Encoding::Pem => write(&args.file, pem.as_bytes(), 0o644),
        Encoding::Der => write(&args.file, &der(&pem)?, 0o644),
    }
}

/// PEM is DER in Base64 between two lines.
fn der(pem: &str) -> Result<Vec<u8>> {
    use base64::Engine;
    let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|e| Error::new(ErrorKind::Other, "encode a public key").caused_by(e))
}

/// Never over something that is there; on the medium when this returns.
fn write(file: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut to = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(file)
        .io_at("create", file)?;
    to.write_all(bytes).and_then(|()| to.sync_all()).io_at("write", file)
}
