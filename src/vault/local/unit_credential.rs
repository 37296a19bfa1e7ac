//! Secrets that the service manager hands over: `LoadCredential=`, `LoadCredentialEncrypted=`, and for a command that no unit
//! started, the file itself or what `systemd-creds decrypt` makes of it.
//!
//! Must never see: what the secrets are for.
//! Invariant: they go straight into secret memory, and no more than 4 KiB of them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use hkdf::Hkdf;
use sha2::Sha256;

use super::seal::{LEN, check_private};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::secret::{Secret, SecretBytes, scrubbed};

/// The most that is read.
pub(super) const LONGEST_FILE: usize = 4096;
const CREDENTIAL_LABEL: &[u8] = b"wrapdisk/vault/credential/v1";
/// Shorter ones could be guessed, and nothing stretches them.
const SHORTEST_CREDENTIAL: usize = 32;

/// The name of the credential that a unit gives: `LoadCredential=wrapdisk-root-key:FILE`.
pub const CREDENTIAL: &str = "wrapdisk-root-key";
/// Of a passphrase, likewise: for a vault under a passphrase that a unit must open.
pub const PASSPHRASE_CREDENTIAL: &str = "wrapdisk-vault-passphrase";

pub(super) fn from_credential(secret: &SecretBytes, salt: &[u8]) -> Result<Secret<LEN>> {
    if secret.len() < SHORTEST_CREDENTIAL {
        let found = secret.len();
        let message = format!("credential: found {found} bytes, allowed {SHORTEST_CREDENTIAL} or more");
        return Err(
            Error::new(ErrorKind::InvalidInput, message).hint("head -c 32 /dev/urandom | base64 makes one")
        );
    }
    Secret::try_from_fn(|out| {
        scrubbed(|| Hkdf::<Sha256>::new(Some(salt), secret.expose()).expand(CREDENTIAL_LABEL, out))
            .map_err(|_| Error::new(ErrorKind::Other, "derive a key from the credential"))
    })
}

/// A credential that the service manager put into this unit's folder.
pub(super) fn from_unit(name: &str) -> Result<Option<SecretBytes>> {
    let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|f| !f.is_empty()) else {
        return Ok(None);
    };
    match File::open(Path::new(&folder).join(name)) {
        Ok(file) => read_bounded(file)
            .io_at("read the credential", Path::new(&folder).join(name))
            .and_then(|r| r)
            .map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).io_at("open the credential", Path::new(&folder).join(name)),
    }
}

pub(super) fn from_file(path: &Path, encrypted: bool) -> Result<SecretBytes> {
    let hint = "run it in a unit with LoadCredential=wrapdisk-root-key:FILE (LoadCredentialEncrypted= for an encrypted one)";
    let file =
        File::open(path).map_err(|e| Error::io("open the root key's credential", e).at(path).hint(hint))?;
    if !encrypted {
        check_private(&file, path)?;
        return read_bounded(file).io_at("read the credential", path)?;
    }
    let mut child = std::process::Command::new("systemd-creds")
        .arg("decrypt")
        .arg(format!("--name={CREDENTIAL}"))
        .arg(path)
        .arg("-")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .map_err(|e| Error::io("run systemd-creds", e).at(path).hint(hint))?;
    let out =
        child.stdout.take().ok_or_else(|| Error::new(ErrorKind::Other, "systemd-creds has no output"))?;
    let secret = read_bounded(out).io_at("read from systemd-creds", path)?;
    let status = child.wait().io_at("wait for systemd-creds", path)?;
    match status.success() {
        true => secret,
        // It has said why. Another machine's, a TPM that is busy, no host key: whichever it is, nobody was denied anything.
        false => Err(Error::new(ErrorKind::Unreachable, format!("systemd-creds decrypt: {status}"))
            .at(path)
            .hint(hint)),
    }
}

/// One newline at the end is not part of it.
pub(super) fn trim(mut secret: SecretBytes) -> SecretBytes {
    if secret.expose().last() == Some(&b'\n') {
        secret.truncate(secret.len() - 1);
    }
    secret
}

/// The outer result is the reading's, the inner one the memory's.
pub(super) fn read_bounded(mut from: impl Read) -> std::io::Result<Result<SecretBytes>> {
    let mut secret = match SecretBytes::zeroed(LONGEST_FILE) {
        Ok(secret) => secret,
        Err(e) => return Ok(Err(e)),
    };
    let mut filled = 0;
    while filled < secret.len() {
        match from.read(&mut secret.expose_mut()[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    secret.truncate(filled);
    Ok(Ok(secret))
}
