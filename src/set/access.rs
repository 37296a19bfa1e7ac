//! What a set allows: which tokens of a container may be tried, in which vault, in whose name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::envelope::{KeyRef, Kid};
use crate::error::{Error, ErrorKind, Result};
use crate::keyring::{self, Attempt, Unlocked};
use crate::luks2::{Header, VaultToken};
use crate::vault::local::LocalVault;
use crate::vault::{Call, KeyInfo, KeyVault, VaultEntry, VaultError};
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

    /// As [`Access::unlock`], through the tokens of one set only: that of the version before first, then older ones.
    ///
    /// # Errors
    /// As [`Access::unlock`].
    pub(super) fn unlock_of_set(&self, header: &Header, set: &Set, reason: &str) -> Result<Unlocked> {
        let mut attempts = Vec::new();
        for (token, vault_token) in header.tokens().filter(|(_, token)| token.set_id() == Some(set.id)) {
            let wrapped = vault_token.wrapped();
            let route = self.route(vault_token, reason).map(|(_, vault, call)| (vault, call));
            let age = set.previous.iter().rev().position(|old| old.kid == wrapped.kid);
            attempts.push((age.unwrap_or(usize::MAX), Attempt { token, wrapped, route }));
        }
        attempts.sort_by_key(|(age, attempt)| (*age, attempt.token));
        let unlocked = keyring::unlock(header, attempts.into_iter().map(|(_, attempt)| attempt))?;
        self.check_fingerprint(header, &unlocked.key)?;
        Ok(unlocked)
    }

    /// As [`Access::unlock`], and where a token's own set is refused, in the name of any other set here whose vault holds the
    /// key: its owner assigns a disk another set when the one it has was shut out (RULINGS 26).
    ///
    /// # Errors
    /// As [`Access::unlock`].
    pub fn unlock_by_anyone(&self, header: &Header, reason: &str) -> Result<Unlocked> {
        let own = match self.unlock(header, reason) {
            Err(e) if matches!(e.kind(), ErrorKind::Denied | ErrorKind::Unreachable) => e,
            done => return done,
        };
        let sets = self.sets.list()?;
        let mut attempts = Vec::new();
        for (token, vault_token) in header.tokens() {
            let kid = &vault_token.wrapped().kid;
            let others = sets.iter().filter(|set| Some(set.id) != vault_token.set_id());
            for other in others.filter(|set| set.active.host().eq_ignore_ascii_case(kid.host())) {
                let vault = self.opened.provider(kid, other.vault, &self.vault, &self.sets);
                let route = vault.map(|vault| (vault, self.call(other, reason)));
                attempts.push(Attempt { token, wrapped: vault_token.wrapped(), route });
            }
        }
        if attempts.is_empty() {
            return Err(own);
        }
        let unlocked = keyring::unlock(header, attempts).map_err(|_| own)?;
        self.check_fingerprint(header, &unlocked.key)?;
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
        let Some((vault, identity)) = set.way_to(kid) else {
            return Err(policy(format!(
                "key: found one that the set \"{}\" does not use, allowed {}",
                set.name, set.key
            )));
        };
        let vault = self.opened.provider(kid, vault, &self.vault, &self.sets)?;
        Ok((set, vault, Call::new(identity, reason)))
    }

    /// Asks for the latest version of a set's key, in the set's name.
    ///
    /// # Errors
    /// Whether the vault could be chosen; what it said.
    pub fn describe_latest(&self, set: &Set, reason: &str) -> Result<Result<KeyInfo, VaultError>> {
        let latest = KeyRef { name: set.active.name().to_owned(), version: None };
        Ok(self.provider(set)?.describe(&latest, &self.call(set, reason)))
    }

    /// The vault for a key; of several that know it, the one of this id.
    pub(super) fn provider_of(&self, kid: &Kid, preferred: uuid::Uuid) -> Result<Provider<'_>> {
        self.opened.provider(kid, preferred, &self.vault, &self.sets)
    }

    /// A call in the name of a set's identity.
    #[must_use]
    pub fn call(&self, set: &Set, reason: &str) -> Call {
        Call::new(set.identity, reason)
    }

    /// A key that came by another way than the tokens.
    pub(super) fn trust(&self, header: &Header, key: &VolumeKey) -> Result<()> {
        self.check_fingerprint(header, key)
    }

    /// Against a container replaced by one whose key somebody else knows (ON-DISK section 5 c).
    fn check_fingerprint(&self, header: &Header, key: &VolumeKey) -> Result<()> {
        if self.known_fingerprint(header, key)? {
            return Ok(());
        }
        self.sets.pin(header.uuid(), Header::fingerprint(key))
    }

    /// Whether this container was seen before; an error when it had another key then.
    pub(super) fn known_fingerprint(&self, header: &Header, key: &VolumeKey) -> Result<bool> {
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

    /// Notes where a container is and what opens it. Where it was before it moved, it is not any more; those paths come back.
    ///
    /// # Errors
    /// `Busy`, `NoSpace`, `Io`.
    pub fn record(&self, header: &Header, path: &Path, now: i64) -> Result<Vec<PathBuf>> {
        self.note(header, path, now, None)
    }

    /// The same after a rewrap.
    ///
    /// # Errors
    /// As [`Access::record`].
    pub fn record_rewrap(&self, header: &Header, path: &Path, now: i64) -> Result<()> {
        self.note(header, path, now, Some(now)).map(drop)
    }

    fn note(&self, header: &Header, path: &Path, now: i64, last_rewrap: Option<i64>) -> Result<Vec<PathBuf>> {
        self.sets.record(&ContainerRecord {
            uuid: header.uuid().to_owned(),
            path: path.to_owned(),
            kind: header.kind().to_string(),
            set: header.tokens().find_map(|(_, token)| token.set_id()),
            kids: header.tokens().map(|(_, token)| token.wrapped().kid.to_string()).collect(),
            last_seen: now,
            last_rewrap,
            trouble: None,
        })?;
        self.sets.drop_moved(header.uuid(), path)
    }
}
