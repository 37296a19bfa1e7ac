//! The side of the mount: a thread that listens, and one for each peer, at most eight at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;
use serde_json::Value;

use super::MountStatus;
use super::protocol::{Ask, Done, GuestAsk, MAX_LINE, Refusal, Rehearsed, Rewrap, Rewrapped};
use crate::dirs::Dirs;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::guard::guests::GuestList;

/// A peer that says nothing, or takes nothing in, for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(2);

/// Peers that are answered at once; who comes when they are that many is turned away. So that one that takes its time, or
/// an operation that does, holds up no `status`.
const MAX_PEERS: usize = 8;

/// Longest time that a drill goes on by itself: one that is killed must not leave a mount fenced.
const MAX_DRILL: Duration = Duration::from_secs(60);

/// Longest path of a Unix socket (`sun_path` without its NUL, unix(7)).
const MAX_PATH: usize = 107;

/// What a mount does for its peers. Each method is called on a thread of its own peer.
pub trait Mounted: Send + Sync {
    /// What it says of itself.
    fn status(&self) -> MountStatus;

    /// Keys, grants or sets were changed: have the guard look now. Does not wait for it.
    fn poke(&self);

    /// Its guests, after this was done. Takes up to a second a guest that does not answer, all at once.
    ///
    /// # Errors
    /// As [`Guests::add`](crate::guard::guests::Guests::add) and `remove`.
    fn guests(&self, ask: &GuestAsk) -> Result<GuestList>;

    /// Brings the container under its set's active version, or under another set's.
    ///
    /// # Errors
    /// What the vault says; `Conflict`, `Io`, ...
    fn rewrap(&self, how: &Rewrap) -> Result<Rewrapped>;

    /// Has its guard believe that for so long, at most a minute; `None` ends it.
    ///
    /// # Errors
    /// `Unsupported`: it has no guard.
    fn drill(&self, answer: Option<Rehearsed>, time: Duration) -> Result<()>;
}

/// Answers for one mount until dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Which socket is ours: after a lazy unmount another mount may have taken the place, and the name with it.
    inode: u64,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// `InvalidInput` when the path is too long for a socket, `PermissionDenied`, ...
    pub fn start(dirs: &Dirs, mountpoint: &Path, mounted: Arc<dyn Mounted>) -> Result<Self> {
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
            .spawn(move || listen(&listener, &mounted))
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

fn listen(listener: &UnixListener, mounted: &Arc<dyn Mounted>) {
    let seats = Arc::new(());
    for peer in listener.incoming().flatten() {
        // Those of the running threads, and this one's own.
        if Arc::strong_count(&seats) > MAX_PEERS {
            log::debug!("control: more than {MAX_PEERS} peers at once");
            continue;
        }
        let (seat, mounted) = (Arc::clone(&seats), Arc::clone(mounted));
        let started = std::thread::Builder::new().name("peer".to_owned()).spawn(move || {
            if let Err(e) = serve(&peer, &*mounted) {
                log::debug!("control: {}", e.chain());
            }
            drop(seat);
        });
        if let Err(e) = started {
            log::warn!("control: {e}");
        }
    }
}

fn serve(peer: &UnixStream, mounted: &dyn Mounted) -> Result<()> {
    peer.set_read_timeout(Some(PATIENCE)).io_at("control socket", "")?;
    peer.set_write_timeout(Some(PATIENCE)).io_at("control socket", "")?;
    let uid = getsockopt(peer, PeerCredentials).io_at("control socket", "")?.uid();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(Error::new(ErrorKind::PermissionDenied, format!("refused uid {uid}")));
    }
    let mut line = String::new();
    BufReader::new(peer.take(MAX_LINE)).read_line(&mut line).io_at("control socket", "")?;
    let asked = serde_json::from_str(&line)
        .map_err(|e| Error::new(ErrorKind::InvalidInput, format!("control socket: strange request: {e}")));
    let answer = asked.and_then(|ask| obey(ask, mounted)).or_else(|e| json(&Refusal::from(&e)))?;
    let mut peer = peer;
    peer.write_all(format!("{answer}\n").as_bytes()).io_at("control socket", "")
}

fn obey(ask: Ask, mounted: &dyn Mounted) -> Result<Value> {
    match ask {
        Ask::Status => json(&mounted.status()),
        Ask::Guests(ask) => json(&mounted.guests(&ask)?),
        Ask::Drill { answer, seconds } => {
            mounted.drill(answer, Duration::from_secs(seconds).min(MAX_DRILL))?;
            json(&Done {})
        }
        Ask::Poke => {
            mounted.poke();
            json(&Done {})
        }
        Ask::Rewrap(how) => json(&mounted.rewrap(&how)?),
    }
}

fn json(answer: &impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|e| Error::new(ErrorKind::Other, "encode").caused_by(e))
}

/// Named after the mountpoint, short because socket paths are.
pub(super) fn socket_path(dirs: &Dirs, mountpoint: &Path) -> Result<PathBuf> {
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
