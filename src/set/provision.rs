//! A new set over a key: the key is used once before anything depends on it.
//!
//! Must never see: the command line. The words of errors are those that Azure's users know (KEY-VAULT section 6).

use crate::envelope::{KeyRef, Kid};
use crate::error::{Error, ErrorKind, Result};
use crate::keyring;
use crate::vault::local::{Fail, IdentityKind, LocalVault};
use crate::vault::{Call, Denial, KeyInfo, KeyVault, VaultError};

/// `https://HOST[:PORT]/keys/NAME[/VERSION]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUrl {
    /// Host and port.
    pub host: String,
    /// With a version: the set stays with it.
    pub key: KeyRef,
}

impl KeyUrl {
    /// Parses exactly the form above.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        let with_version = Kid::parse(text).map(|kid| Self {
            host: kid.host().to_ascii_lowercase(),
            key: KeyRef { name: kid.name().to_owned(), version: Some(kid.version().to_owned()) },
        });
        // A name that looks like a version would make the two forms one; there is always a version to try last.
        let without = || {
            let kid = Kid::parse(&format!("{text}/0")).ok()?;
            let key = KeyRef { name: kid.name().to_owned(), version: None };
            Some(Self { host: kid.host().to_ascii_lowercase(), key })
        };
        with_version.or_else(|_| {
            without().ok_or_else(|| {
                let shown: String = text.chars().take(96).flat_map(char::escape_debug).collect();
                Error::new(
                    ErrorKind::InvalidInput,
                    format!("key URL: found \"{shown}\", allowed https://HOST[:PORT]/keys/NAME[/VERSION]"),
                )
            })
        })
    }
}

/// A new identity for a set over the embedded vault; it may do nothing yet.
///
/// # Errors
/// 403; broken.
pub fn identity(vault: &LocalVault, call: &Call) -> Result<uuid::Uuid, Fail> {
    vault.create_identity(&format!("set-{}", uuid::Uuid::new_v4()), IdentityKind::System, call)
}

/// Asks for the key, looks whether it may be used, and uses it once: a random value must come back as it was.
///
/// # Errors
/// What is missing, in Azure's words; `Denied`, `Unreachable`, `Damaged`.
pub fn check(vault: &dyn KeyVault, set: &str, key: &KeyRef, now: i64, call: &Call) -> Result<KeyInfo> {
    let info = vault.describe(key, call).map_err(|e| named(set, e))?;
    usable(set, &info, now)?;
    prove(vault, set, &info.kid, call)?;
    Ok(info)
}

/// Uses a key version once: a random value must come back as it was.
///
/// # Errors
/// As [`check`].
pub fn prove(vault: &dyn KeyVault, set: &str, kid: &Kid, call: &Call) -> Result<()> {
    keyring::prove(vault, kid, call).map_err(|(_, e)| named(set, e))
}

/// Whether a key version is switched on and within its time.
///
/// # Errors
/// `Denied`, in Azure's words.
pub fn usable(set: &str, info: &KeyInfo, now: i64) -> Result<()> {
    let kid = &info.kid;
    let refused = |message: String, hint: &str| Err(Error::new(ErrorKind::Denied, message).hint(hint));
    if !info.enabled {
        let message = format!(
            "KeyVaultKeyNotEnabled: The key vault key '{kid}' used for disk encryption set '{set}' must be enabled state"
        );
        return refused(message, "enable it, or name another version");
    }
    if info.expires.is_some_and(|end| now >= end) {
        return refused(
            format!("Unable to access key '{kid}'. Key is expired"),
            "make a new version of the key",
        );
    }
    if info.not_before.is_some_and(|from| now < from) {
        let message = format!("Unable to access key '{kid}'. Key is not valid yet");
        return refused(message, "wait, or name another version");
    }
    Ok(())
}

fn named(set: &str, e: VaultError) -> Error {
    let forbidden = matches!(e, VaultError::Denied(Denial::NoPermission | Denial::Firewall, _));
    let error = Error::from(e);
    if !forbidden {
        return error.on(format!("set \"{set}\""));
    }
    let message = format!("KeyVaultAccessForbidden: {error}");
    Error::new(error.kind(), message).on(format!("set \"{set}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_url_has_a_version_or_none() {
        let parse = |text: &str| KeyUrl::parse(text).ok().map(|u| (u.host, u.key.name, u.key.version));
        let some = |host: &str, name: &str, version: Option<&str>| {
            Some((host.to_owned(), name.to_owned(), version.map(str::to_owned)))
        };
        assert_eq!(parse("https://Demo.vault.azure.net/keys/kek"), some("demo.vault.azure.net", "kek", None));
        assert_eq!(parse("https://h:8443/keys/kek/0a"), some("h:8443", "kek", Some("0a")));
        for bad in
            ["", "kek", "https://h/keys/", "https://h/keys/kek/", "https://h/keys/a/b/c", "http://h/keys/a"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
