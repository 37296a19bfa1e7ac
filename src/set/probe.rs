//! What the key guard of a mount asks: whether the key that its container is wrapped by may still be used, in the set's name.
//!
//! Must never see: the gate, what a denial means. Whatever keeps the vault from being asked is an outage (RULINGS 20), also
//! what is wrong here: a set that is being given another key, or is not known any more.

use std::time::{Duration, Instant};

use super::access::Access;
use super::{Set, container::MountedContainer};
use crate::envelope::{KeyRef, Kid, WrappedDek};
use crate::error::{Error, ErrorKind};
use crate::luks2::Header;
use crate::vault::{Call, VaultError};
use crate::xts::VolumeKey;

/// The token that a guard follows, and who asks for it.
#[derive(Debug)]
pub struct Followed {
    /// Its number in the header.
    pub token: u32,
    /// What it holds.
    pub wrapped: WrappedDek,
    /// Its set; `None`: not known here (any more).
    pub set: Option<Set>,
    /// The set's name as the token has it.
    pub label: String,
}

impl Followed {
    /// The set's name.
    #[must_use]
    pub fn set_name(&self) -> &str {
        self.set.as_ref().map_or(&self.label, |set| &set.name)
    }
}

fn outage(e: &Error) -> VaultError {
    VaultError::Transient { message: e.chain(), retry_after: None }
}

impl Access {
    /// The token that the guard of this container follows (RULINGS 25): that of its set's active key version, or, while it is
    /// not rewrapped yet, the one it has.
    ///
    /// # Errors
    /// `Unsupported` without tokens; `Busy`, `Damaged`, `Io` of `sets.db`.
    pub fn followed(&self, header: &Header) -> Result<Followed, Error> {
        let mut first = None;
        for (token, vault_token) in header.tokens() {
            let set = vault_token.set_id().map(|id| self.sets.by_id(id)).transpose()?.flatten();
            let wrapped = vault_token.wrapped().clone();
            let active = set.as_ref().is_some_and(|set| set.active == wrapped.kid);
            let label = vault_token.set().split('/').next().unwrap_or_default().to_owned();
            let followed = Followed { token, wrapped, set, label };
            if active {
                return Ok(followed);
            }
            first.get_or_insert(followed);
        }
        first.ok_or_else(|| Error::new(ErrorKind::Unsupported, "tokens: found none, allowed 1 to 8"))
    }

    /// Is this key in the embedded vault?
    #[must_use]
    pub fn is_local(&self, kid: &Kid) -> bool {
        self.vault.is_at(kid.host())
    }

    /// Unwraps what the token holds; nothing is checked yet.
    ///
    /// # Errors
    /// What the vault says; `Transient` for whatever is in the way of asking it.
    pub fn ask(&self, followed: &Followed, reason: &str, within: Duration) -> Result<VolumeKey, VaultError> {
        let (vault, call) = self.route_of(followed, reason, within).map_err(|e| outage(&e))?;
        let key = vault.unwrap(&followed.wrapped, &call)?;
        VolumeKey::new(key).map_err(|e| VaultError::Corrupt(e.chain()))
    }

    /// Seconds since 1970 at which the key version expires, if it does.
    ///
    /// # Errors
    /// As [`Access::ask`].
    pub fn expiry(
        &self,
        followed: &Followed,
        reason: &str,
        within: Duration,
    ) -> Result<Option<i64>, VaultError> {
        let (vault, call) = self.route_of(followed, reason, within).map_err(|e| outage(&e))?;
        Ok(vault.describe(&KeyRef::from(&followed.wrapped.kid), &call)?.expires)
    }

    /// In whose name, and where. A container that waits to be rewrapped is asked for as it was before.
    fn route_of(
        &self,
        followed: &Followed,
        reason: &str,
        within: Duration,
    ) -> Result<(super::Provider<'_>, Call), Error> {
        let kid = &followed.wrapped.kid;
        let Some(set) = &followed.set else {
            let message = format!("the set \"{}\" is not known here any more", followed.label);
            return Err(Error::new(ErrorKind::NotFound, message).on(kid.as_str()));
        };
        let previous = set.previous.iter().find(|old| old.kid == *kid).map(|old| (old.vault, old.identity));
        let current = (kid.versionless() == set.key).then_some((set.vault, set.identity));
        let Some((vault, identity)) = previous.or(current) else {
            let message = format!("the set \"{}\" has another key now, and this disk waits for it", set.name);
            return Err(Error::new(ErrorKind::Conflict, message).on(kid.as_str()));
        };
        let call = Call { deadline: Some(Instant::now() + within), ..Call::new(identity, reason) };
        Ok((self.provider_of(kid, vault)?, call))
    }

    /// After a revocation: is it the key of this container, by digest, MAC and pinned fingerprint?
    ///
    /// # Errors
    /// `Damaged` when it is not; `Busy`, `Io` of `sets.db`.
    pub fn check_resumed(&self, header: &Header, followed: &Followed, key: &VolumeKey) -> Result<(), Error> {
        for warning in header.verify(Some(followed.token), key)? {
            log::warn!("{warning}");
        }
        self.known_fingerprint(header, key).map(drop)
    }
}

/// Why the vault is asked, for its audit: which disk, of which set, mounted where.
#[must_use]
pub fn reason(
    what: &str,
    container: &MountedContainer,
    followed: &Followed,
    mountpoint: &std::path::Path,
) -> String {
    let (uuid, set) = (container.uuid(), followed.set_name());
    format!("{what} disk={uuid} set={set} mount={}", mountpoint.display())
}
