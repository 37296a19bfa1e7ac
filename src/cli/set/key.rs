//! The key that a set is to be under: how it is named on the command line, in which vault it is, and whether it can be used.

use crate::cli::context::now;
use crate::cli::usage;
use crate::envelope::KeyRef;
use crate::error::{Error, ErrorKind, Result};
use crate::set::access::Access;
use crate::set::provision::{self, KeyUrl};
use crate::set::{LOCAL, SetStore};
use crate::vault::{Call, Denial, KeyInfo, KeyVault, VaultEntry, VaultError};

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct KeyArgs {
    /// A key of the embedded vault: NAME (its latest version) or NAME/VERSION
    #[arg(long, value_name = "KEY", value_parser = super::super::key::parse_key, conflicts_with = "key_url")]
    pub(super) key: Option<KeyRef>,

    /// https://HOST/keys/NAME[/VERSION]
    #[arg(long, value_name = "URL", value_parser = parse_key_url)]
    pub(super) key_url: Option<KeyUrl>,

    /// The vault that holds it: "local", or the name, id or URL of one elsewhere; needed where several ask the same host
    #[arg(long, alias = "vault", value_name = "VAULT")]
    pub(super) source_vault: Option<String>,

    /// Follow the key's latest version (true), or stay with one (false) [default: by whether a version is named]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(super) enable_auto_key_rotation: Option<bool>,
}

fn parse_key_url(text: &str) -> Result<KeyUrl, String> {
    KeyUrl::parse(text).map_err(|e| e.to_string())
}

/// Where a key is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In the embedded vault.
    Local,
    /// In one elsewhere.
    Elsewhere(Box<VaultEntry>),
}

/// A key that was named.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) place: Place,
    /// Without version where the latest is meant.
    pub(super) key: KeyRef,
    /// Stay with this version.
    pub(super) pinned: bool,
}

impl KeyArgs {
    /// Was a key named?
    pub(super) const fn is_named(&self) -> bool {
        self.key.is_some() || self.key_url.is_some()
    }

    /// Which key in which vault.
    pub(super) fn resolve(&self, access: &Access) -> Result<Choice> {
        let (place, mut key) = match (&self.key, &self.key_url) {
            (Some(key), _) => match &self.source_vault {
                Some(vault) if !is_local(access, vault) => {
                    (Place::Elsewhere(Box::new(entry(&access.sets, vault)?)), key.clone())
                }
                _ => (Place::Local, key.clone()),
            },
            (None, Some(url)) => (self.place_of(access, &url.host)?, url.key.clone()),
            (None, None) => return Err(usage("give --key or --key-url")),
        };
        let pinned = self.enable_auto_key_rotation.map_or(key.version.is_some(), |auto| !auto);
        if !pinned {
            key.version = None;
        }
        Ok(Choice { place, key, pinned })
    }

    fn place_of(&self, access: &Access, host: &str) -> Result<Place> {
        if access.vault.is_at(host) {
            return Ok(Place::Local);
        }
        if let Some(name) = &self.source_vault {
            let entry = entry(&access.sets, name)?;
            if entry.knows_host(host) {
                return Ok(Place::Elsewhere(Box::new(entry)));
            }
            let message =
                format!("key URL: found the host {host}, allowed {} or an alias", entry.endpoint.host());
            return Err(Error::new(ErrorKind::InvalidInput, message).on(format!("vault \"{}\"", entry.name)));
        }
        let all = access.sets.vaults()?;
        let mut known = all.into_iter().filter(|entry| entry.knows_host(host));
        match (known.next(), known.next()) {
            (Some(entry), None) => Ok(Place::Elsewhere(Box::new(entry))),
            (Some(one), Some(other)) => Err(usage(format!(
                "{host} is both \"{}\" and \"{}\": say which with --source-vault",
                one.name, other.name
            ))),
            (None, _) => Err(Error::new(ErrorKind::NotFound, format!("no vault at {host} is known here"))
                .hint(format!("add it: wrapdisk vault add NAME https://{host}"))),
        }
    }
}

fn is_local(access: &Access, vault: &str) -> bool {
    vault.eq_ignore_ascii_case(LOCAL) || vault == access.vault.id().to_string()
}

/// By name, id or URL.
fn entry(sets: &SetStore, named: &str) -> Result<VaultEntry> {
    let by_other = sets.vaults()?.into_iter().find(|entry| {
        entry.id.to_string() == named
            || entry.endpoint.url().trim_end_matches('/') == named.trim_end_matches('/')
    });
    by_other.map_or_else(|| sets.vault_by_name(named), Ok)
}

/// The version that is meant, looked at as the owner of the embedded vault; whether a set may use it is another question.
pub(super) fn look(access: &Access, set: &str, key: &KeyRef, call: &Call) -> Result<KeyInfo> {
    let info = access.vault.describe(key, call).map_err(|e| match e {
        e @ VaultError::Denied(Denial::Deleted, _) => Error::from(e).as_kind(ErrorKind::NotFound),
        e => e.into(),
    })?;
    provision::usable(set, &info, now())?;
    Ok(info)
}

/// In whose name a vault elsewhere is asked, as its token says; our own servers' tokens do not say it.
#[cfg(feature = "azure")]
pub(super) fn check_elsewhere(
    entry: VaultEntry,
    set: &str,
    key: &KeyRef,
    call: &Call,
) -> Result<(KeyInfo, uuid::Uuid)> {
    let vault = crate::vault::azure::AzureVault::new(entry);
    let info = provision::check(&vault, set, key, now(), call)?;
    let known = vault.claims().and_then(|claims| uuid::Uuid::parse_str(&claims.oid).ok());
    Ok((info, known.unwrap_or_default()))
}

#[cfg(not(feature = "azure"))]
#[allow(clippy::needless_pass_by_value, reason = "the other form keeps it")]
pub(super) fn check_elsewhere(
    entry: VaultEntry,
    _: &str,
    _: &KeyRef,
    _: &Call,
) -> Result<(KeyInfo, uuid::Uuid)> {
    let message = format!("{}: this program was built without vaults elsewhere", entry.endpoint);
    Err(Error::new(ErrorKind::Unsupported, message).hint("build it with the feature \"azure\""))
}
