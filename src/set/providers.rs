//! From a key identifier to the vault that is asked: the embedded one, or one of those elsewhere that are configured here.
//! No other is ever asked, whatever a container says (ON-DISK section 5 d).
//!
//! Must never see: what is asked.

use std::ops::Deref;
use std::sync::Arc;

use uuid::Uuid;

use crate::envelope::Kid;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Mutex, lock};
use crate::vault::local::LocalVault;
use crate::vault::{KeyVault, VaultEntry};

use super::SetStore;

/// A vault that may be asked.
#[derive(Debug)]
pub enum Provider<'a> {
    /// The embedded one.
    Local(&'a LocalVault),
    /// One elsewhere.
    Elsewhere(Arc<dyn KeyVault>),
}

impl<'a> Deref for Provider<'a> {
    type Target = dyn KeyVault + 'a;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Local(vault) => *vault,
            Self::Elsewhere(vault) => &**vault,
        }
    }
}

/// Vaults elsewhere that were asked before: each keeps its token.
#[derive(Debug, Default)]
pub(super) struct Opened(Mutex<Vec<(VaultEntry, Arc<dyn KeyVault>)>>);

impl Opened {
    /// The vault for a key, in whose set's name the vault is `preferred`.
    pub(super) fn provider<'a>(
        &self,
        kid: &Kid,
        preferred: Uuid,
        local: &'a LocalVault,
        sets: &SetStore,
    ) -> Result<Provider<'a>> {
        if local.is_at(kid.host()) {
            return Ok(Provider::Local(local));
        }
        let mut known: Vec<VaultEntry> =
            sets.vaults()?.into_iter().filter(|entry| entry.knows_host(kid.host())).collect();
        // Two entries may ask one vault in different names.
        if let Some(chosen) = known.iter().position(|entry| entry.id == preferred) {
            known.swap(0, chosen);
        }
        match known.into_iter().next() {
            Some(entry) => self.open(entry).map(Provider::Elsewhere),
            None if sets.is_vault_elsewhere(preferred)? => {
                Err(Error::new(ErrorKind::Denied, "the key is not in the vault of its set")
                    .on(kid.as_str())
                    .hint("if the vault has moved: wrapdisk vault add --alias OLD-HOST"))
            }
            // It says which one it is.
            None => Ok(Provider::Local(local)),
        }
    }

    /// The vault of an entry, as it is configured now.
    pub(super) fn open(&self, entry: VaultEntry) -> Result<Arc<dyn KeyVault>> {
        let mut opened = lock(&self.0);
        opened.retain(|(known, _)| known.id != entry.id || *known == entry);
        if let Some((_, vault)) = opened.iter().find(|(known, _)| known.id == entry.id) {
            return Ok(vault.clone());
        }
        let vault = connect(&entry)?;
        opened.push((entry, vault.clone()));
        Ok(vault)
    }
}

#[cfg(feature = "azure")]
#[allow(clippy::unnecessary_wraps, reason = "the other form fails")]
fn connect(entry: &VaultEntry) -> Result<Arc<dyn KeyVault>> {
    Ok(Arc::new(crate::vault::azure::AzureVault::new(entry.clone())))
}

#[cfg(not(feature = "azure"))]
fn connect(entry: &VaultEntry) -> Result<Arc<dyn KeyVault>> {
    let message = format!("{}: this program was built without vaults elsewhere", entry.endpoint);
    Err(Error::new(ErrorKind::Unsupported, message)
        .on(format!("vault \"{}\"", entry.name))
        .hint("build it with the feature \"azure\""))
}
