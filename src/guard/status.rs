//! What the guard says of itself.

use serde::{Deserialize, Serialize};

use super::event::Cause;
use crate::revocation::{OnRevoke, Policy};

/// The guard's part of a mount's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardStatus {
    /// `ready`, `degraded`, `revoked` or `resuming`.
    pub state: String,
    /// Of `degraded`.
    pub cause: Option<Cause>,
    /// Of `revoked`: `disabled`, `deleted`, `no-permission`, `outage`, `auth`, ...
    pub why: Option<String>,
    /// What the vault said last, for people; empty when all is well.
    pub reason: String,
    /// RFC 3339: since when it is in this state.
    pub since: String,
    /// RFC 3339: when the vault was asked last.
    pub last_probe: Option<String>,
    /// RFC 3339: when it will be asked next.
    pub next_probe: Option<String>,
    /// RFC 3339: when it said yes last.
    pub last_good: String,
    /// Seconds until the fence, where nothing gets better.
    pub grace_left: Option<u64>,
    /// The key version that is asked for.
    pub kid: String,
    /// The set's name.
    pub set: String,
    /// What I/O meets behind the fence.
    pub on_revoke: OnRevoke,
    /// Everything else that was agreed on.
    pub policy: Policy,
    /// How often the vault was asked since the mount.
    pub probes: u64,
    /// How often the gate was closed since the mount.
    pub fences: u64,
    /// Requests that wait for the key.
    #[serde(default)]
    pub waiting: usize,
}
