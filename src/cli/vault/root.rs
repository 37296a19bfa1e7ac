//! `wrapdisk vault seal` and `vault rotate-root-key`: what the vault's private keys are sealed under.
//!
//! Must never see: the root key itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::context::Context;
use crate::cli::{output, prompt, usage};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::secret::{SecretBytes, random};
use crate::vault::local::{CREDENTIAL, Cost, NewSeal, SealMethod};

/// Seal the vault's root key: under a passphrase, under a credential of systemd, or by its file's mode alone
///
/// The root key stays what it is: copies of an unsealed root.key still open the vault, until `vault rotate-root-key` makes
/// another. Without --method it says how the root key is sealed now.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault seal                                       how it is now
  wrapdisk vault seal --method passphrase
  wrapdisk vault seal --method systemd-credential --credential-file root.cred --encrypt
  wrapdisk vault seal --method file --vault-passphrase-file old.txt

A unit that opens the vault needs one of
  LoadCredentialEncrypted=wrapdisk-root-key:/etc/wrapdisk/root.cred
  LoadCredential=wrapdisk-vault-passphrase:/etc/wrapdisk/passphrase")]
pub(in crate::cli) struct Seal {
    /// How it is sealed from now on
    #[arg(long, value_enum)]
    method: Option<Method>,

    /// With passphrase: the new one, in FILE ("-": standard input); asked for on the terminal otherwise
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,

    /// With systemd-credential: make the credential in FILE, or take it from there if the file exists
    #[arg(long, value_name = "FILE")]
    credential_file: Option<PathBuf>,

    /// FILE is made by systemd-creds, for this machine (its TPM or host key)
    #[arg(long, requires = "credential_file")]
    encrypt: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Method {
    File,
    Passphrase,
    SystemdCredential,
}

/// Make a new root key and seal everything in the vault under it
///
/// Mounts and servers go on. Backups of single keys that were made before still open in this vault; copies of the old
/// root.key open nothing of it any more. Make a new backup of the vault afterwards.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault rotate-root-key
  wrapdisk vault rotate-root-key && wrapdisk vault backup --file vault.backup")]
pub(in crate::cli) struct Rotate {}

pub(super) fn rotate(context: &Context, _: &Rotate) -> Result<()> {
    let vault = context.existing()?.vault;
    let generation = vault.rotate_root_key(&vault.admin("vault rotate-root-key"))?;
    output::line(&format!("{}: root key generation {generation}", context.dirs.state.display()))
}

pub(super) fn seal(context: &Context, args: &Seal) -> Result<()> {
    let vault = context.existing()?.vault;
    let call = vault.admin("vault seal");
    let Some(method) = args.method else {
        let (method, generation) = (vault.seal_method()?, vault.root_generation()?);
        return output::fields(&[
            ("sealed by", method.name().to_owned()),
            ("generation", generation.to_string()),
        ]);
    };
    let before = vault.seal_method()?;
    match method {
        Method::File => vault.reseal_root_key(&NewSeal::File, &call)?,
        Method::Passphrase => {
            let passphrase = match &args.new_passphrase_file {
                Some(file) => prompt::passphrase_file(file)?,
                None => prompt::passphrase("New passphrase of the vault", true)?,
            };
            let seal = NewSeal::Passphrase { passphrase: &passphrase, cost: Cost::default() };
            vault.reseal_root_key(&seal, &call)?;
        }
        Method::SystemdCredential => {
            let Some(file) = &args.credential_file else {
                return Err(usage("--method systemd-credential: give --credential-file FILE"));
            };
            let path = std::path::absolute(file).io_at("resolve", file)?;
            let secret = credential(&path, args.encrypt)?;
            let seal = NewSeal::Credential { secret: &secret, path: &path, encrypted: args.encrypt };
            vault.reseal_root_key(&seal, &call)?;
        }
    }
    output::line(&format!("{}: sealed by {}", context.dirs.state.display(), vault.seal_method()?.name()))?;
    if before == SealMethod::File && method != Method::File {
        output::note("Copies of the unsealed root.key still open this vault: wrapdisk vault rotate-root-key");
    }
    Ok(())
}

/// What is in the file; a new one when there is none.
fn credential(path: &Path, encrypt: bool) -> Result<SecretBytes> {
    use base64::Engine;
    if path.try_exists().io_at("look for", path)? {
        if encrypt {
            return Err(Error::new(ErrorKind::Exists, "--encrypt makes a new credential").at(path));
        }
        return prompt::passphrase_file(path);
    }
    let mut raw = SecretBytes::zeroed(32)?;
    random(raw.expose_mut())?;
    let mut secret = SecretBytes::zeroed(44)?;
    base64::engine::general_purpose::STANDARD
        .encode_slice(raw.expose(), secret.expose_mut())
        .map_err(|e| Error::new(ErrorKind::Other, "encode").caused_by(e))?;
    if encrypt {
        encrypted(path, &secret)?;
    } else {
        plain(path, &secret)?;
    }
    Ok(secret)
}

fn plain(path: &Path, secret: &SecretBytes) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.and_then(|mut file| file.write_all(secret.expose()).and_then(|()| file.sync_all()))
        .io_at("make", path)
}

fn encrypted(path: &Path, secret: &SecretBytes) -> Result<()> {
    use std::io::Write;
    let mut child = Command::new("systemd-creds")
        .arg("encrypt")
        .arg(format!("--name={CREDENTIAL}"))
        .args(["-".as_ref(), path.as_os_str()])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|e| {
            Error::io("run systemd-creds", e)
                .hint("it is part of systemd 250 and later; without --encrypt it is not needed")
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(secret.expose()).io_at("write to systemd-creds", path)?;
    }
    let status = child.wait().io_at("wait for systemd-creds", path)?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Other, format!("systemd-creds: {status}")).at(path))
    }
}
