//! `root.key` in its three forms, and how each is opened: 32 bytes as they are (mode 0600), or the same sealed under a
//! passphrase (Argon2id) or under a credential of the service manager. It says itself which it is.
//!
//! Must never see: the database, keys, permissions.
//!
//! Invariants:
//! 1. The file is replaced by a rename of one that is on the medium; what it held is overwritten.
//! 2. The root key itself is read when it is needed and wiped afterwards. Of a passphrase this process keeps, in
//!    [`Secret`] memory until it ends, the stretched key and nothing else: a mount's probes must not stretch it again every
//!    minute. It opens every root.key of the same salt, so rotation by another process goes unnoticed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use serde_json::{Value, json};

use super::passphrase::{Cost, SALT, derive};
use super::seal::{LEN, NONCE, ROOT_KEY, RootKey, TAG, check_private, wrong_length};
use super::unit_credential::{
    CREDENTIAL, LONGEST_FILE, PASSPHRASE_CREDENTIAL, from_credential, from_file, from_unit, read_bounded,
    trim,
};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::secret::{Secret, SecretBytes, random, scrubbed};

/// The next root key, until the database is on it.
pub(super) const NEXT_ROOT_KEY: &str = "root.key.new";
const UNFINISHED: &str = "root.key.tmp";
const AAD: &[u8] = b"wrapdisk root key v1";
/// What a root key is sealed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealMethod {
    /// The mode of the file.
    File,
    /// Something somebody knows.
    Passphrase,
    /// Something the service manager hands over.
    Credential,
}

impl SealMethod {
    /// As the database and the command line have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Passphrase => "passphrase",
            Self::Credential => "systemd-credential",
        }
    }
}

type Ask = dyn Fn(&Path) -> Result<SecretBytes> + Send + Sync;

/// Where the secret comes from that opens a sealed root key.
pub struct Unlock {
    passphrase: Option<Box<Ask>>,
    known: Mutex<Option<Kek>>,
}

/// A key that opens root.key, and for which salt it was made.
struct Kek {
    salt: [u8; SALT],
    key: Secret<LEN>,
}

impl Unlock {
    /// From the credentials of the unit this process runs in, and nowhere else.
    #[must_use]
    pub const fn unattended() -> Self {
        Self { passphrase: None, known: Mutex::new(None) }
    }

    /// And a passphrase as `ask` gives it, which is told the file it is for.
    #[must_use]
    pub fn by_passphrase(ask: impl Fn(&Path) -> Result<SecretBytes> + Send + Sync + 'static) -> Self {
        Self { passphrase: Some(Box::new(ask)), known: Mutex::new(None) }
    }

    /// Reads a root key from a file, unless others could read it too.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied` (mode, owner), `Damaged`, `WrongKey` (passphrase, credential), `Usage` (nobody to ask).
    pub(super) fn load(&self, path: &Path) -> Result<RootKey> {
        let bytes = read(path)?;
        if bytes.len() == LEN {
            let mut bytes = bytes;
            return RootKey::take(bytes.expose_mut())?.ok_or_else(|| wrong_length(path));
        }
        let sealed =
            Sealed::parse(bytes.expose()).ok_or_else(|| wrong_length(path))?.map_err(|e| e.at(path))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let kek = match known.take().filter(|kek| kek.salt == sealed.salt) {
            Some(kek) => kek,
            None => Kek { salt: sealed.salt, key: self.derive(&sealed, path)? },
        };
        let root = sealed.open(&kek.key).map_err(|e| e.at(path))?;
        *known = Some(kek);
        Ok(root)
    }

    fn derive(&self, sealed: &Sealed, path: &Path) -> Result<Secret<LEN>> {
        match &sealed.under {
            Under::Passphrase(cost) => {
                let passphrase = match (from_unit(PASSPHRASE_CREDENTIAL)?, &self.passphrase) {
                    (Some(given), _) => trim(given),
                    (None, Some(ask)) => ask(path)?,
                    (None, None) => {
                        return Err(Error::new(
                            ErrorKind::WrongKey,
                            "the vault's root key is under a passphrase, and none was given",
                        )
                        .at(path)
                        .hint("give --vault-passphrase-file FILE, or the unit a LoadCredential=wrapdisk-vault-passphrase:FILE"));
                    }
                };
                derive(passphrase.expose(), &sealed.salt, *cost)
            }
            Under::Credential { path: stored, encrypted } => {
                let credential = match from_unit(CREDENTIAL)? {
                    Some(given) => given,
                    None => from_file(stored, *encrypted)?,
                };
                from_credential(&trim(credential), &sealed.salt)
            }
        }
    }

    /// What the file is sealed under.
    ///
    /// # Errors
    /// As [`Unlock::load`].
    pub(super) fn method(path: &Path) -> Result<SealMethod> {
        let bytes = read(path)?;
        if bytes.len() == LEN {
            return Ok(SealMethod::File);
        }
        Ok(
            match Sealed::parse(bytes.expose())
                .ok_or_else(|| wrong_length(path))?
                .map_err(|e| e.at(path))?
                .under
            {
                Under::Passphrase(_) => SealMethod::Passphrase,
                Under::Credential { .. } => SealMethod::Credential,
            },
        )
    }

    /// Writes `root` to `to`, sealed in the way that `like` is: the key of that file must be known, so load it before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn save_like(&self, like: &Path, root: &RootKey, to: &Path) -> Result<()> {
        let bytes = read(like)?;
        if bytes.len() == LEN {
            return write_whole(to, root.expose());
        }
        let mut sealed = Sealed::parse(bytes.expose()).ok_or_else(|| wrong_length(like))??;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let kek = known.as_ref().filter(|kek| kek.salt == sealed.salt).ok_or_else(|| {
            Error::new(ErrorKind::Conflict, "the root key's seal changed meanwhile: try again").at(like)
        })?;
        sealed.close(&kek.key, root)?;
        write_whole(to, sealed.to_json().to_string().as_bytes())
    }

    /// Seals `root` in another way, in place of what is there.
    ///
    /// # Errors
    /// The file cannot be written; `InvalidInput` (a credential that is too short).
    pub(super) fn replace(&self, dir: &Path, root: &RootKey, seal: &NewSeal<'_>) -> Result<()> {
        let (path, unfinished) = (dir.join(ROOT_KEY), dir.join(UNFINISHED));
        let mut salt = [0; SALT];
        random(&mut salt)?;
        let sealed = match seal {
            NewSeal::File => None,
            NewSeal::Passphrase { passphrase, cost } => {
                Some((Under::Passphrase(*cost), derive(passphrase.expose(), &salt, *cost)?))
            }
            NewSeal::Credential { secret, path, encrypted } => {
                let under = Under::Credential { path: path.to_path_buf(), encrypted: *encrypted };
                Some((under, from_credential(secret, &salt)?))
            }
        };
        match sealed {
            None => write_whole(&unfinished, root.expose())?,
            Some((under, key)) => {
                let mut sealed = Sealed { under, salt, blob: Vec::new() };
                sealed.close(&key, root)?;
                write_whole(&unfinished, sealed.to_json().to_string().as_bytes())?;
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Kek { salt, key });
            }
        }
        install(&unfinished, &path)
    }
}

impl std::fmt::Debug for Unlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unlock")
    }
}

/// How a root key is to be sealed from now on.
#[derive(Debug)]
pub enum NewSeal<'a> {
    /// By the mode of its file alone.
    File,
    /// Under a passphrase.
    Passphrase {
        /// It.
        passphrase: &'a SecretBytes,
        /// What stretching it costs, at every start.
        cost: Cost,
    },
    /// Under a credential of the service manager.
    Credential {
        /// 32 bytes or more that nobody can guess.
        secret: &'a SecretBytes,
        /// Where it is for a command that no unit gives it to.
        path: &'a Path,
        /// That file was made by `systemd-creds encrypt`.
        encrypted: bool,
    },
}

enum Under {
    Passphrase(Cost),
    Credential { path: PathBuf, encrypted: bool },
}

struct Sealed {
    under: Under,
    salt: [u8; SALT],
    /// Nonce, ciphertext, tag.
    blob: Vec<u8>,
}

impl Sealed {
    /// `None`: it is no such file at all.
    fn parse(bytes: &[u8]) -> Option<Result<Self>> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        if value["wrapdisk"] != "root key" {
            return None;
        }
        if value["format"] != 1 {
            let found = value["format"].to_string().chars().take(16).collect::<String>();
            let message = format!("the vault's root key: found format {found}, allowed 1");
            return Some(Err(Error::new(ErrorKind::Unsupported, message)));
        }
        let base64 = |name: &str| BASE64.decode(value[name].as_str()?).ok();
        let under = match value["method"].as_str()? {
            "passphrase" => match cost(&value["kdf"]) {
                Some(cost) => Under::Passphrase(cost),
                None => return Some(Err(unpayable())),
            },
            "systemd-credential" => Under::Credential {
                path: value["path"].as_str()?.into(),
                encrypted: value["encrypted"].as_bool()?,
            },
            _ => return None,
        };
        let blob = base64("sealed").filter(|blob| blob.len() == NONCE + LEN + TAG)?;
        Some(Ok(Self { under, salt: base64("salt")?.try_into().ok()?, blob }))
    }

    fn to_json(&self) -> Value {
        let mut value = json!({ "wrapdisk": "root key", "format": 1 });
        match &self.under {
            Under::Passphrase(Cost { memory, passes, lanes }) => {
                value["method"] = SealMethod::Passphrase.name().into();
                value["kdf"] =
                    json!({ "type": "argon2id", "memory": memory, "passes": passes, "lanes": lanes });
            }
            Under::Credential { path, encrypted } => {
                value["method"] = SealMethod::Credential.name().into();
                value["path"] = path.to_string_lossy().into();
                value["encrypted"] = (*encrypted).into();
            }
        }
        value["salt"] = BASE64.encode(self.salt).into();
        value["sealed"] = BASE64.encode(&self.blob).into();
        value
    }

    fn close(&mut self, key: &Secret<LEN>, root: &RootKey) -> Result<()> {
        let mut nonce = [0; NONCE];
        random(&mut nonce)?;
        let mut body = Secret::<LEN>::try_from_fn(|out| {
            out.copy_from_slice(root.expose());
            Ok(())
        })?;
        let tag = scrubbed(|| {
            XChaCha20Poly1305::new(key.expose().into()).encrypt_inout_detached(
                &XNonce::from(nonce),
                &self.aad(),
                body.expose_mut().as_mut_slice().into(),
            )
        })
        .map_err(|_| Error::new(ErrorKind::Other, "seal the root key"))?;
        self.blob = [&nonce[..], &body.expose()[..], &tag[..]].concat();
        Ok(())
    }

    fn open(&self, key: &Secret<LEN>) -> Result<RootKey> {
        let (nonce, rest) = self.blob.split_first_chunk::<NONCE>().expect("parse checked the length");
        let (body, tag) = rest.split_last_chunk::<TAG>().expect("parse checked the length");
        let mut plain = Secret::<LEN>::try_from_fn(|out| {
            out.copy_from_slice(body);
            Ok(())
        })?;
        scrubbed(|| {
            XChaCha20Poly1305::new(key.expose().into()).decrypt_inout_detached(
                &XNonce::from(*nonce),
                &self.aad(),
                plain.expose_mut().as_mut_slice().into(),
                &Tag::from(*tag),
            )
        })
        .map_err(|_| {
            let what = match self.under {
                Under::Passphrase(_) => "passphrase",
                Under::Credential { .. } => "credential",
            };
            Error::new(ErrorKind::WrongKey, format!("the {what} does not open the vault's root key"))
        })?;
        RootKey::take(plain.expose_mut())?.ok_or_else(|| Error::new(ErrorKind::Other, "root key"))
    }

    fn aad(&self) -> Vec<u8> {
        let mut aad = AAD.to_vec();
        if let Under::Passphrase(cost) = self.under {
            aad.extend_from_slice(&cost.to_bytes());
        }
        aad.extend_from_slice(&self.salt);
        aad
    }
}

/// The cost in a file, if it can be paid.
fn cost(value: &Value) -> Option<Cost> {
    let number = |name: &str| value[name].as_u64().and_then(|n| u32::try_from(n).ok());
    let cost = Cost { memory: number("memory")?, passes: number("passes")?, lanes: number("lanes")? };
    Cost::from_bytes(cost.to_bytes()).filter(|_| value["type"] == "argon2id")
}

fn unpayable() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the vault's root key: found another cost of its passphrase, allowed argon2id with up to 1 GiB, 16 passes, 16 lanes",
    )
}

/// A file of ours, straight into secret memory.
fn read(path: &Path) -> Result<SecretBytes> {
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(
            |e| {
                Error::io("open the vault's root key", e)
                    .at(path)
                    .hint("restore root.key from your backup: without it no private key of this vault opens")
            },
        )?;
    check_private(&file, path)?;
    read_bounded(file).io_at("read the vault's root key", path)?
}

/// A new file with this in it, 0600, on the medium when this returns.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).io_at("remove", path),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .io_at("create the vault's root key", path)?;
    file.write_all(bytes).io_at("write the vault's root key", path)?;
    file.sync_all().io_at("sync the vault's root key", path)?;
    sync_folder(path)
}

/// Puts a whole file in the place of another, and overwrites what that held: as far as the medium lets one.
pub(super) fn install(from: &Path, to: &Path) -> Result<()> {
    let old = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(to);
    std::fs::rename(from, to).io_at("replace the vault's root key", to)?;
    sync_folder(to)?;
    if let Ok(old) = old {
        let len = old.metadata().map_or(0, |m| m.len()).min(LONGEST_FILE as u64);
        let zeros = vec![0; usize::try_from(len).unwrap_or(0)];
        let _ = old.write_all_at(&zeros, 0).and_then(|()| old.sync_all());
    }
    Ok(())
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).io_at("sync folder", folder)
}
