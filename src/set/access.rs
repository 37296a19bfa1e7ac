//! What a set allows: which tokens of a container may be tried, in which vault, in whose name.

use std::sync::Arc;

use crate::envelope::Kid;
use crate::error::{Error, ErrorKind, Result};
use crate::keyring::{self, Attempt, Unlocked};
use crate::luks2::{Header, VaultToken};
use crate::vault::local::LocalVault;
use crate::vault::{Call, KeyVault, VaultEntry};
use crate::xts::VolumeKey;

use super::providers::{Opened, Provider};
use super::{ContainerRecord, Set, SetStore};

/// The sets and the vaults this machine is configured for.
#[derive(Debug)]
pub struct Access {
    /// The registry.
    pub sets: SetStore,
    /// The embedded vault; only vaults named here are ever asked (ON-DISK section 5 d).
    pub vault: LocalVault,
    opened: Opened,
}

impl Access {
    /// With the vaults elsewhere that `sets` names.
    #[must_use]
    pub fn new(sets: SetStore, vault: LocalVault) -> Self {
        Self { sets, vault, opened: Opened::default() }
    }

    /// The vault that holds a set's active key.
    ///
    /// # Errors
    /// `Denied` when the set's vault does not hold it; `Damaged`, `Busy`, `Io`.
    pub fn provider(&self, set: &Set) -> Result<Provider<'_>> {
        self.opened.provider(&set.active, set.vault, &self.vault, &self.sets)
    }

    /// A vault elsewhere.
    ///
    /// # Errors
    /// `Unsupported` in a build without them.
    pub fn elsewhere(&self, entry: VaultEntry) -> Result<Arc<dyn KeyVault>> {
        self.opened.open(entry)
    }

    /// Unlocks a container through its tokens: those of the set's active version first, then by number. A container that
    /// claims a known uuid with another key is refused.
    ///
    /// # Errors
    /// As [`keyring::unlock`]; `Damaged` for a replaced container.
    pub fn unlock(&self, header: &Header, reason: &str) -> Result<Unlocked> {
        let mut attempts = Vec::new();
        for (token, vault_token) in header.tokens() {
            let route = self.route(vault_token, reason);
            let active = matches!(&route, Ok((set, ..)) if set.active == vault_token.wrapped().kid);
            let route = route.map(|(_, vault, call)| (vault, call));
            attempts.push((!active, token, Attempt { token, wrapped: vault_token.wrapped(), route }));
        }
        attempts.sort_by_key(|(inactive, token, _)| (*inactive, *token));
        let unlocked = keyring::unlock(header, attempts.into_iter().map(|(_, _, attempt)| attempt))?;
        self.check_fingerprint(header, &unlocked.key)?;
        Ok(unlocked)
    }

    /// Unlocks through one token only, to check it.
    ///
    /// # Errors
    /// As [`Access::unlock`].
    pub fn unlock_token(&self, header: &Header, token: u32, reason: &str) -> Result<Unlocked> {
        let chosen = header.tokens().filter(|(id, _)| *id == token);
        let attempts = chosen.map(|(token, vault_token)| {
            let route = self.route(vault_token, reason).map(|(_, vault, call)| (vault, call));
            Attempt { token, wrapped: vault_token.wrapped(), route }
        });
        let unlocked = keyring::unlock(header, attempts)?;
        self.known_fingerprint(header, &unlocked.key)?;
        Ok(unlocked)
    }

    fn route(&self, token: &VaultToken, reason: &str) -> Result<(Set, Provider<'_>, Call)> {
        let kid = &token.wrapped().kid;
        let policy = |message: String| Error::new(ErrorKind::Denied, message).on(kid.as_str());
        let set = match token.set_id().map(|id| self.sets.by_id(id)).transpose()?.flatten() {
            Some(set) => set,
            None => {
                return Err(policy(format!("the set \"{}\" is not known here", token.set()))
                    .hint("use the state folder it was made with (--state DIR), or a recovery passphrase"));
            }
        };
        if kid.versionless() != set.key {
            return Err(policy(format!(
                "key: found one that the set \"{}\" does not use, allowed {}",
                set.name, set.key
            )));
        }
        let vault = self.opened.provider(kid, set.vault, &self.vault, &self.sets)?;
        let call = self.call(&set, reason);
        Ok((set, vault, call))
    }

    /// A call in the name of a set's identity.
    #[must_use]
    pub fn call(&self, set: &Set, reason: &str) -> Call {
        Call::new(set.identity, reason)
    }

    /// Against a container replaced by one whose key somebody else knows (ON-DISK section 5 c).
    fn check_fingerprint(&self, header: &Header, key: &VolumeKey) -> Result<()> {
        if self.known_fingerprint(header, key)? {
            return Ok(());
        }
        self.sets.pin(header.uuid(), Header::fingerprint(key))
    }

    /// Whether this container was seen before; an error when it had another key then.
    fn known_fingerprint(&self, header: &Header, key: &VolumeKey) -> Result<bool> {
        let pinned = self.sets.pinned_fingerprint(header.uuid())?;
        if pinned.is_none_or(|pinned| pinned == Header::fingerprint(key)) {
            return Ok(pinned.is_some());
        }
        let message = format!("uuid {}: found another data key than at the last mount", header.uuid());
        Err(Error::new(ErrorKind::Damaged, message).hint(
            "somebody may have replaced the container: get it back from a copy or backup that you trust",
        ))
    }

    /// Wraps a new key for a set and adds the token.
    ///
    /// # Errors
    /// As [`keyring::wrap`].
    pub fn add_token(&self, header: &mut Header, set: &Set, key: &VolumeKey, reason: &str) -> Result<Kid> {
        let wrapped = keyring::wrap(&*self.provider(set)?, &set.active, key, &self.call(set, reason))?;
        let kid = wrapped.kid.clone();
        header.add_token(&set.token_label(), wrapped, key)?;
        self.check_fingerprint(header, key)?;
        Ok(kid)
    }

    /// Notes where a container is and what opens it.
    ///
    /// # Errors
    /// `Busy`, `NoSpace`, `Io`.
    pub fn record(&self, header: &Header, path: &std::path::Path, now: i64) -> Result<()> {
        let set = header.tokens().find_map(|(_, token)| token.set_id());
        let kids = header.tokens().map(|(_, token)| token.wrapped().kid.to_string()).collect();
        self.sets.record(&ContainerRecord {
            uuid: header.uuid().to_owned(),
            path: path.to_owned(),
            kind: header.kind().to_string(),
            set,
            kids,
            last_seen: now,
            last_rewrap: None,
            trouble: None,
        })
    }
}
