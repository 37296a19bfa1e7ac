//! One container under another key version: the data key and the data stay as they are.
//!
//! Unwrap old -> wrap new -> unwrap new and compare -> commit the header with both tokens -> commit it with the new one only.
//! One unwrap, one wrap and one unwrap to verify an attempt. A kill at any point leaves a header that opens; one with both
//! tokens is finished with a single unwrap of the new one.
//!
//! Must never see: which containers there are, who is mounted.
//!
//! Invariants:
//! 1. Nothing is wrapped before the container's own key was unwrapped, and passed digest and MAC, in the same call
//!    (rotation never outruns revocation), unless the caller had the key from elsewhere and says so.
//! 2. No token is removed before another one of the same commit sequence was unwrapped and compared.

use crate::envelope::{Kid, WrappedDek};
use crate::error::{Error, ErrorKind, Result};
use crate::keyring;
use crate::luks2::{Header, VaultToken};
use crate::store::{BackingStore, FileStore};
use crate::xts::VolumeKey;

use super::Set;
use super::access::Access;

/// Where a header is committed: whoever holds the container knows how (RULINGS 10).
pub trait Place {
    /// Runs `commit` under the header lock, over the store that may be written.
    ///
    /// # Errors
    /// `Busy` when another process is committing, `ReadOnly`, `PermissionDenied`; what `commit` says.
    fn locked(&self, commit: &mut dyn FnMut(&dyn BackingStore) -> Result<()>) -> Result<()>;
}

impl Place for FileStore {
    fn locked(&self, commit: &mut dyn FnMut(&dyn BackingStore) -> Result<()>) -> Result<()> {
        let lock = self.lock_header()?;
        commit(lock.store())
    }
}

/// What a header needs to be under a set's active version only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It is.
    Nothing,
    /// It has the new token; older ones of the set go.
    Finish,
    /// It has none of the set's tokens under the active version.
    Rewrap,
}

/// What a header needs.
#[must_use]
pub fn need(header: &Header, set: &Set) -> Need {
    let mut found = (false, false);
    for (_, token) in of_set(header, set) {
        if token.wrapped().kid == set.active { found.0 = true } else { found.1 = true }
    }
    match found {
        (true, false) => Need::Nothing,
        (true, true) => Need::Finish,
        (false, _) => Need::Rewrap,
    }
}

fn of_set<'a>(header: &'a Header, set: &Set) -> impl Iterator<Item = (u32, &'a VaultToken)> {
    let id = set.id;
    header.tokens().filter(move |(_, token)| token.set_id() == Some(id))
}

/// Where the data key comes from.
#[derive(Debug)]
pub enum Source<'a> {
    /// The container's own tokens.
    Tokens,
    /// The caller has it: a passphrase opened it, the owner of the set asked the mount that serves it, or another identity
    /// was let in.
    Known(&'a VolumeKey),
    /// Wrapped under the set's active version already, by somebody who had it.
    Wrapped(WrappedDek),
}

/// Why a container stays as it was, and which key version stood in the way.
#[derive(Debug)]
pub struct Refused {
    /// Of the step that failed, where it was one with the vault.
    pub kid: Option<String>,
    /// Why.
    pub error: Error,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { kid: None, error }
    }
}

/// What is to be done to a container.
#[derive(Debug)]
pub struct Order<'a> {
    /// Under its active version.
    pub set: &'a Set,
    /// By which way.
    pub source: Source<'a>,
    /// Tokens of other sets go as well: the container is assigned this one.
    pub sole: bool,
    /// For the audit.
    pub reason: &'a str,
}

/// Brings a container under a set's active version. The header as it is now comes back, also when there was nothing to do.
///
/// # Errors
/// What the vault says; `Conflict` when another process changed the header meanwhile; `Damaged`, `Io`, `NoSpace`.
pub fn rewrap(
    access: &Access,
    order: Order<'_>,
    header: &Header,
    place: &dyn Place,
) -> Result<Header, Refused> {
    let Order { set, source, sole, reason } = order;
    let mut header = header.clone();
    let others = |header: &Header| -> Vec<u32> {
        let other = |token: &VaultToken| token.set_id() != Some(set.id);
        let goes = |token: &VaultToken| {
            if other(token) { sole } else { token.wrapped().kid != set.active }
        };
        header.tokens().filter(|(_, token)| goes(token)).map(|(id, _)| id).collect()
    };
    if let Some(active) = active_token(&header, set) {
        if !others(&header).is_empty() {
            access
                .unlock_token(&header, active, reason)
                .map_err(|error| Refused { kid: Some(set.active.to_string()), error })?;
        }
    } else {
        add(access, set, &mut header, source, reason)?;
        commit(&mut header, place)?;
    }
    let others = others(&header);
    if !others.is_empty() {
        for id in others {
            header.remove_token(id)?;
        }
        commit(&mut header, place)?;
    }
    Ok(header)
}

fn active_token(header: &Header, set: &Set) -> Option<u32> {
    of_set(header, set).find(|(_, token)| token.wrapped().kid == set.active).map(|(id, _)| id)
}

/// The new token, verified.
fn add(
    access: &Access,
    set: &Set,
    header: &mut Header,
    source: Source<'_>,
    reason: &str,
) -> Result<(), Refused> {
    let denied = |kid: &Kid| {
        let kid = kid.to_string();
        move |error: Error| Refused { kid: Some(kid), error }
    };
    match source {
        Source::Known(key) => {
            access.add_token(header, set, key, reason).map_err(denied(&set.active))?;
        }
        Source::Tokens => {
            let oldest = of_set(header, set).next().map(|(_, token)| token.wrapped().kid.to_string());
            let unlocked = access
                .unlock_of_set(header, set, reason)
                .map_err(|error| Refused { kid: oldest.clone(), error })?;
            access.add_token(header, set, &unlocked.key, reason).map_err(denied(&set.active))?;
        }
        Source::Wrapped(wrapped) => {
            if wrapped.kid != set.active {
                let found = format!("wrap: found one under {}, allowed {}", wrapped.kid, set.active);
                return Err(Error::new(ErrorKind::Conflict, found).hint("run the command again").into());
            }
            let call = access.call(set, reason);
            let provider = access.provider(set)?;
            let secret = provider.unwrap(&wrapped, &call).map_err(|e| denied(&set.active)(e.into()))?;
            let key = VolumeKey::new(secret)?;
            header.verify(None, &key).map_err(|e| match e.kind() {
                ErrorKind::WrongKey => {
                    Error::new(ErrorKind::Damaged, "wrap: found that of another disk's key")
                }
                _ => e,
            })?;
            access.trust(header, &key)?;
            header.add_token(&set.token_label(), wrapped, &key)?;
        }
    }
    Ok(())
}

fn commit(header: &mut Header, place: &dyn Place) -> Result<()> {
    place.locked(&mut |store| header.commit(store).map(drop))
}

/// A wrap of a key that somebody else has, for [`Source::Wrapped`].
///
/// # Errors
/// As [`keyring::wrap`].
pub fn wrap_for(access: &Access, set: &Set, key: &VolumeKey, reason: &str) -> Result<WrappedDek> {
    keyring::wrap(&*access.provider(set)?, &set.active, key, &access.call(set, reason))
}
