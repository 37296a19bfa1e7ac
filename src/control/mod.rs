//! The control socket of a mount: how other processes of the same user learn what it does, and tell it to do something.
//!
//! One line of JSON each way: `{"op":"status"}` -> [`MountStatus`]; see [`protocol`]. The socket is `run/<id>.sock`, 0600;
//! the peer's uid is checked as well (same user or root).
//!
//! Must never see: key bytes, FUSE requests. Requests are hostile input: bounded in length, time and number.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cache::CacheStats;
use crate::disk::IoStats;
use crate::guard::GuardStatus;

pub mod client;
pub mod live;
pub mod probe;
pub mod protocol;
mod rewrap;
pub mod server;
mod tick;

pub use client::{ask, live_mounts, poke_all};
pub use live::LiveMount;
pub use rewrap::DiskMounts;
pub use server::{Mounted, Server};
pub use tick::{Bell, Ticker};

/// What a mount says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountStatus {
    /// The container's uuid.
    pub uuid: String,
    /// The container.
    #[serde(with = "json_path")]
    pub disk: PathBuf,
    /// The folder or file it is mounted on.
    #[serde(with = "json_path")]
    pub mountpoint: PathBuf,
    /// The plaintext.
    #[serde(with = "json_path")]
    pub file: PathBuf,
    /// The daemon.
    pub pid: u32,
    /// `ready`, `degraded`, `revoked` (the key gate is closed) or `resuming`.
    pub state: String,
    /// Bytes of the disk.
    pub size: u64,
    /// No writes.
    pub read_only: bool,
    /// The disk encryption set's label; `None` for a plain LUKS2 container.
    pub set: Option<String>,
    /// The key version that opened it; `None` when a passphrase did.
    pub key: Option<String>,
    /// Opened without the vault: revocation does not reach this mount.
    pub unguarded: bool,
    /// Why its set does not rotate by itself; `None` when nothing is wrong.
    #[serde(default)]
    pub rotation_error: Option<String>,
    /// RFC 3339.
    pub mounted_at: String,
    /// False when the kernel refused to lock key memory: it may reach swap.
    pub memory_locked: bool,
    /// Requests served.
    pub io: IoStats,
    /// `None` when the cache is off.
    pub cache: Option<CacheStats>,
    /// What the key guard says; `None`: there is none.
    #[serde(default)]
    pub guard: Option<GuardStatus>,
    /// RFC 3339: when the policy of its key makes the next version; `None`: not by itself, or not known here.
    #[serde(default)]
    pub next_rotation: Option<String>,
}

/// A path in JSON: text; where it is not UTF-8, its bytes. (serde would refuse it.)
pub mod json_path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => text.serialize(to),
            None => path.as_os_str().as_bytes().serialize(to),
        }
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            Bytes(Vec<u8>),
        }
        Ok(match Either::deserialize(from)? {
            Either::Text(text) => text.into(),
            Either::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }

    /// The same as a value.
    #[must_use]
    pub fn value(path: &Path) -> serde_json::Value {
        match path.to_str() {
            Some(text) => text.into(),
            None => path.as_os_str().as_bytes().into(),
        }
    }
}
