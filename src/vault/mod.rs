//! The key vault: who may wrap and unwrap a data key, with which version of which RSA key.
//!
//! Must never see: stores, disks, FUSE. A vault call may block for seconds; a FUSE thread never makes one.
//!
//! Invariants:
//! 1. `unwrap` uses exactly the version that wrapped, never "latest".
//! 2. Only a row (or answer) that was read says [`Denial`]; busy, full or unreadable storage is
//!    [`VaultError::Transient`] (RULINGS 20).
//! 3. Every use leaves an audit record before its answer leaves.

use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::secret::Secret;

#[cfg(feature = "azure")]
pub mod azure;
mod entry;
mod key;
pub mod local;
#[cfg(feature = "serve")]
pub mod server;
pub mod wire;

pub use self::entry::{Credential, Endpoint, SecretSource, VaultEntry, checked_host};
pub use self::key::{KeyInfo, KeyOperation};
pub use crate::envelope::{KeyRef, Kid, WrapAlg, WrappedDek};

/// In whose name a call is made, why, from where, and until when: all but the last goes into the audit record.
#[derive(Clone, Debug)]
pub struct Call {
    /// Object id of the identity (a set's, or the administrator's).
    pub identity: uuid::Uuid,
    /// Ties the record to what was going on.
    pub correlation: uuid::Uuid,
    /// For people: "mount /mnt/vm", "create vm.wd".
    pub reason: String,
    /// Who is at the other end.
    pub origin: Origin,
    /// A vault that is asked over the network gives up then; without one, after its own limit.
    pub deadline: Option<std::time::Instant>,
}

/// Where a call came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This process.
    Process,
    /// A client of `vault serve`.
    Network {
        /// Its address.
        address: std::net::IpAddr,
        /// `TLS1_2` or `TLS1_3`.
        tls: &'static str,
        /// Its `User-Agent`, a hostile text.
        agent: String,
    },
}

impl Call {
    /// A call of this process.
    #[must_use]
    pub fn new(identity: uuid::Uuid, reason: impl Into<String>) -> Self {
        Self {
            identity,
            correlation: uuid::Uuid::new_v4(),
            reason: reason.into(),
            origin: Origin::Process,
            deadline: None,
        }
    }
}

/// Why a vault refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// `enabled=false`.
    Disabled,
    /// No such key or version (any more).
    Deleted,
    /// The identity has no grant.
    NoPermission,
    /// Outside the validity window (wrap only).
    Expired,
    /// The caller's address.
    Firewall,
}

/// The outcome of a call that did not work.
#[derive(Debug)]
pub enum VaultError {
    /// The vault was asked and says no.
    Denied(Denial, String),
    /// It could not be asked, or could not answer now.
    Transient {
        /// What happened.
        message: String,
        /// When to ask again, if it said so.
        retry_after: Option<std::time::Duration>,
    },
    /// The identity could not be proven.
    Auth(String),
    /// The ciphertext or the answer is not what it must be.
    Corrupt(String),
    /// Administration: conflict, bad parameter, no such key.
    Rejected {
        /// A stable word: `Conflict`, `BadParameter`, `KeyNotFound`, `WrongVault`.
        code: &'static str,
        /// For people.
        message: String,
    },
}

/// What every key provider can do with a data key.
pub trait KeyVault: Send + Sync + fmt::Debug {
    /// One version of a key; the latest where the reference has none.
    ///
    /// # Errors
    /// See [`VaultError`].
    fn describe(&self, key: &KeyRef, call: &Call) -> Result<KeyInfo, VaultError>;

    /// Wraps a data key under exactly this version.
    ///
    /// # Errors
    /// See [`VaultError`].
    fn wrap(&self, kid: &Kid, alg: WrapAlg, dek: &Secret<64>, call: &Call) -> Result<WrappedDek, VaultError>;

    /// Unwraps under exactly the version that wrapped.
    ///
    /// # Errors
    /// See [`VaultError`].
    fn unwrap(&self, wrapped: &WrappedDek, call: &Call) -> Result<Secret<64>, VaultError>;
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "disabled",
            Self::Deleted => "not found or deleted",
            Self::NoPermission => "no permission",
            Self::Expired => "outside its validity period",
            Self::Firewall => "address not allowed",
        })
    }
}

impl fmt::Display for VaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(_, message)
            | Self::Transient { message, .. }
            | Self::Auth(message)
            | Self::Corrupt(message)
            | Self::Rejected { message, .. } => f.write_str(message),
        }
    }
}

impl std::error::Error for VaultError {}

impl From<VaultError> for Error {
    fn from(e: VaultError) -> Self {
        let kind = match &e {
            // A key in another vault is a matter of policy (ON-DISK section 8, row 10), not of a typing error.
            VaultError::Denied(..)
            | VaultError::Auth(_)
            | VaultError::Rejected { code: "WrongVault", .. } => ErrorKind::Denied,
            VaultError::Transient { .. } => ErrorKind::Unreachable,
            VaultError::Corrupt(_) => ErrorKind::Damaged,
            VaultError::Rejected { code: "Conflict", .. } => ErrorKind::Exists,
            VaultError::Rejected { code: "KeyNotFound" | "IdentityNotFound", .. } => ErrorKind::NotFound,
            VaultError::Rejected { .. } => ErrorKind::InvalidInput,
        };
        Self::new(kind, e.to_string())
    }
}
