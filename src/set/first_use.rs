//! First use: the embedded vault, one key, and the set "default" with its identity and grant, made together.

use std::path::PathBuf;

use super::access::Access;
use super::{NewSet, Set, SetStore, provision};
use crate::dirs::Dirs;
use crate::envelope::KeyRef;
use crate::error::{ErrorKind, Result};
use crate::vault::local::{LocalVault, NewKey, Role, RsaBits, Unlock};
use crate::vault::{Denial, KeyInfo, KeyVault, VaultError};

/// The set that is used when none is named.
pub const DEFAULT_SET: &str = "default";
/// The key of that set.
pub const DEFAULT_KEY: &str = "disk-kek";

/// What first use made, to be told to the user once.
#[derive(Debug)]
pub struct FirstUse {
    /// `vault.db`, `root.key`, `sets.db`: what to back up.
    pub state: PathBuf,
    /// The new key.
    pub key: KeyInfo,
    /// The new set.
    pub set: Set,
}

/// Opens what is there, or makes it. Safe to run twice at once and after a kill in the middle: each step looks first.
///
/// # Errors
/// `PermissionDenied`, `NoSpace`, `Busy`, ...
pub fn ensure(dirs: &Dirs) -> Result<(Access, Option<FirstUse>)> {
    ensure_with(dirs, Unlock::unattended)
}

/// The same, with a way to open a root key that is sealed.
///
/// # Errors
/// As [`ensure`]; `WrongKey`.
pub fn ensure_with(dirs: &Dirs, unlock: impl Fn() -> Unlock) -> Result<(Access, Option<FirstUse>)> {
    Dirs::ensure(&dirs.state)?;
    let vault = match LocalVault::open_with(&dirs.state, unlock()) {
        // Not asked once more whether it is there: another process may be finishing it.
        Err(e) if e.kind() == ErrorKind::NotFound => {
            match LocalVault::init(&dirs.state, DEFAULT_SET) {
                // Another process was faster; or a root key lies here alone, which only the first error says.
                Err(e) if e.kind() == ErrorKind::Exists && LocalVault::exists(&dirs.state) => {
                    LocalVault::open_with(&dirs.state, unlock())?
                }
                made => made?,
            }
        }
        opened => opened?,
    };
    let access = Access::new(SetStore::open(&dirs.state)?, vault);
    if has_default(&access)? {
        return Ok((access, None));
    }
    // One at a time: two first uses at once must not end with two keys.
    let _turn = Dirs::lock(&dirs.state)?;
    if has_default(&access)? {
        return Ok((access, None));
    }
    let (key, set) = make_default(&access)?;
    let report = FirstUse { state: dirs.state.clone(), key, set };
    Ok((access, Some(report)))
}

fn has_default(access: &Access) -> Result<bool> {
    Ok(access.sets.list()?.iter().any(|s| s.name.eq_ignore_ascii_case(DEFAULT_SET)))
}

fn make_default(access: &Access) -> Result<(KeyInfo, Set)> {
    let vault = &access.vault;
    let call = vault.admin("first use");
    let wanted = KeyRef { name: DEFAULT_KEY.to_owned(), version: None };
    let key = match vault.describe(&wanted, &call) {
        Ok(key) => key,
        Err(VaultError::Denied(Denial::Deleted, _)) => {
            vault.create_key(DEFAULT_KEY, &NewKey::wrapping(RsaBits::B3072), &call)?
        }
        Err(e) => return Err(e.into()),
    };
    let identity = provision::identity(vault, &call)?;
    vault.grant(identity, Role::CryptoServiceEncryptionUser, Some(DEFAULT_KEY), &call)?;
    let set = access.sets.create(&NewSet {
        name: DEFAULT_SET.to_owned(),
        vault: vault.id(),
        key: key.kid.versionless().to_owned(),
        active: key.kid.clone(),
        pinned: false,
        identity,
    })?;
    Ok((key, set))
}
