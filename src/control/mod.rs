//! The control socket of a mount: how other processes of the same user learn what it does.
//!
//! One line of JSON each way: `{"op":"status"}` -> [`MountStatus`]. The socket is `run/<id>.sock`, 0600; the peer's uid
//! is checked as well (same user or root).
//!
//! Must never see: keys, headers, FUSE requests. Requests are hostile input: bounded in length and time.

use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use crate::cache::CacheStats;
use crate::dirs::Dirs;
use crate::disk::IoStats;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// Longest request or answer in bytes.
const MAX_LINE: u64 = 64 * 1024;

/// A peer that says nothing for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(2);

/// Longest path of a Unix socket (`sun_path` without its NUL, unix(7)).
const MAX_PATH: usize = 107;

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
    /// `ready`, or `revoked` once the key gate is closed.
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
    /// RFC 3339.
    pub mounted_at: String,
    /// False when the kernel refused to lock key memory: it may reach swap.
    pub memory_locked: bool,
    /// Requests served.
    pub io: IoStats,
    /// `None` when the cache is off.
    pub cache: Option<CacheStats>,
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

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
enum Ask {
    Status,
}

/// Answers for one mount until dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Which socket is ours: after a lazy unmount another mount may have taken the place, and the name with it.
    inode: u64,
}

impl Server {
    /// Listens; `status` is called for each request.
    ///
    /// # Errors
    /// `InvalidInput` when the path is too long for a socket, `PermissionDenied`, ...
    pub fn start(
        dirs: &Dirs,
        mountpoint: &Path,
        status: Arc<dyn Fn() -> MountStatus + Send + Sync>,
    ) -> Result<Self> {
        Dirs::ensure(&dirs.run)?;
        let path = socket_path(dirs, mountpoint)?;
        // Made beside its name and moved there: nobody meets a socket that does not listen yet (and takes it for a dead
        // one), and what a killed daemon left under the name is replaced.
        let new = dirs.run.join(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&new);
        let listener = UnixListener::bind(&new).io_at("make the control socket", &new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).io_at("protect", &new)?;
        let inode = std::fs::symlink_metadata(&new).io_at("look at", &new)?.ino();
        std::fs::rename(&new, &path).io_at("name the control socket", &path)?;
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                for peer in listener.incoming().flatten() {
                    if let Err(e) = answer(&peer, &*status) {
                        log::debug!("control: {}", e.chain());
                    }
                }
            })
            .io_at("start a thread", "")?;
        Ok(Self { path, inode })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The thread ends with the process; the name must not outlive the mount.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn answer(peer: &UnixStream, status: &dyn Fn() -> MountStatus) -> Result<()> {
    peer.set_read_timeout(Some(PATIENCE)).io_at("control socket", "")?;
    peer.set_write_timeout(Some(PATIENCE)).io_at("control socket", "")?;
    let uid = getsockopt(peer, PeerCredentials).io_at("control socket", "")?.uid();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(Error::new(ErrorKind::PermissionDenied, format!("refused uid {uid}")));
    }
    let mut line = String::new();
    BufReader::new(peer.take(MAX_LINE)).read_line(&mut line).io_at("control socket", "")?;
    let reply = match serde_json::from_str(&line) {
        Ok(Ask::Status) => serde_json::to_string(&status()),
        Err(e) => serde_json::to_string(&serde_json::json!({ "error": e.to_string() })),
    };
    let mut reply = reply.map_err(|e| Error::new(ErrorKind::Other, "encode").caused_by(e))?;
    reply.push('\n');
    let mut peer = peer;
    peer.write_all(reply.as_bytes()).io_at("control socket", "")
}

/// Named after the mountpoint, short because socket paths are.
fn socket_path(dirs: &Dirs, mountpoint: &Path) -> Result<PathBuf> {
    use sha2::Digest;
    use std::os::unix::ffi::OsStrExt;
    let hash = sha2::Sha256::digest(mountpoint.as_os_str().as_bytes());
    let id: String = hash.iter().take(8).map(|b| format!("{b:02x}")).collect();
    let path = dirs.run.join(id + ".sock");
    if path.as_os_str().len() > MAX_PATH {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("control socket: path longer than {MAX_PATH} bytes"),
        )
        .at(&path)
        .hint("set XDG_RUNTIME_DIR or WRAPDISK_HOME to a shorter path"));
    }
    Ok(path)
}

/// Asks one mount.
fn ask(socket: &Path) -> Result<MountStatus> {
    let mut peer = UnixStream::connect(socket).io_at("connect to the control socket", socket)?;
    peer.set_read_timeout(Some(PATIENCE)).io_at("control socket", socket)?;
    let ask = serde_json::to_string(&Ask::Status)
        .map_err(|e| Error::new(ErrorKind::Other, "encode").caused_by(e))?;
    peer.write_all(format!("{ask}\n").as_bytes()).io_at("control socket", socket)?;
    let mut line = String::new();
    if BufReader::new(peer.take(MAX_LINE)).read_line(&mut line).io_at("control socket", socket)? == 0 {
        return Err(Error::io("control socket", ConnectionReset.into()).at(socket));
    }
    serde_json::from_str(&line)
        .map_err(|e| Error::new(ErrorKind::Other, "control socket: strange answer").at(socket).caused_by(e))
}

/// Every live mount of this user, by mountpoint. Sockets that nobody answers are removed.
///
/// # Errors
/// The run folder cannot be read.
pub fn live_mounts(dirs: &Dirs) -> Result<Vec<MountStatus>> {
    let entries = match std::fs::read_dir(&dirs.run) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", e).at(&dirs.run)),
    };
    let mut found = Vec::new();
    for socket in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == "sock")) {
        match ask(&socket) {
            Ok(status) => found.push(status),
            Err(e) => match io_kind(&e) {
                Some(ConnectionRefused) => drop(std::fs::remove_file(&socket)),
                // It ended while we looked.
                Some(NotFound | ConnectionReset | BrokenPipe) => {}
                _ => log::warn!("{}", e.chain()),
            },
        }
    }
    found.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    Ok(found)
}

fn io_kind(e: &Error) -> Option<std::io::ErrorKind> {
    let io = std::error::Error::source(e)?.downcast_ref::<std::io::Error>()?;
    Some(io.kind())
}
