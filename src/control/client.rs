//! The other side: commands that ask mounts.

use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::MountStatus;
use super::protocol::{Ask, Done, MAX_LINE, Refusal};
use super::server::socket_path;
use crate::dirs::Dirs;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// For answers that need no work.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the mount at `mountpoint` (as its status has it), which may take `patience` for its answer.
///
/// # Errors
/// What the mount says; `NotFound` and the like when there is none, `Busy` when it takes longer.
pub fn ask<T: DeserializeOwned>(dirs: &Dirs, mountpoint: &Path, what: &Ask, patience: Duration) -> Result<T> {
    ask_at(&socket_path(dirs, mountpoint)?, what, patience)
}

fn ask_at<T: DeserializeOwned>(socket: &Path, what: &Ask, patience: Duration) -> Result<T> {
    let mut peer = UnixStream::connect(socket).io_at("connect to the control socket", socket)?;
    peer.set_read_timeout(Some(patience)).io_at("control socket", socket)?;
    peer.set_write_timeout(Some(PATIENCE)).io_at("control socket", socket)?;
    let ask = serde_json::to_string(what).map_err(|e| Error::new(ErrorKind::Other, "encode").caused_by(e))?;
    peer.write_all(format!("{ask}\n").as_bytes()).io_at("control socket", socket)?;
    let mut line = String::new();
    if BufReader::new(peer.take(MAX_LINE)).read_line(&mut line).io_at("control socket", socket)? == 0 {
        return Err(Error::io("control socket", ConnectionReset.into()).at(socket));
    }
    let strange = |e| Error::new(ErrorKind::Other, "control socket: strange answer").at(socket).caused_by(e);
    let answer: Value = serde_json::from_str(&line).map_err(strange)?;
    if answer.get("error").is_some() {
        return Err(serde_json::from_value::<Refusal>(answer).map_err(strange)?.into());
    }
    serde_json::from_value(answer).map_err(strange)
}

/// Every live mount of this user, by mountpoint. Sockets that nobody answers are removed.
///
/// # Errors
/// The run folder cannot be read.
pub fn live_mounts(dirs: &Dirs) -> Result<Vec<MountStatus>> {
    let mut found: Vec<MountStatus> = ask_all(dirs, &Ask::Status)?;
    found.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    Ok(found)
}

/// Tells every live mount that keys, grants or sets were changed. Nothing depends on it: their guards look anyway, a little
/// later. Does not wait until they have looked.
pub fn poke_all(dirs: &Dirs) {
    if let Err(e) = ask_all::<Done>(dirs, &Ask::Poke) {
        log::warn!("{}", e.chain());
    }
}

/// The answers of all mounts that give one.
fn ask_all<T: DeserializeOwned>(dirs: &Dirs, what: &Ask) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for socket in sockets(dirs)? {
        match ask_at(&socket, what, PATIENCE) {
            Ok(answer) => found.push(answer),
            Err(e) => match io_kind(&e) {
                Some(ConnectionRefused) => drop(std::fs::remove_file(&socket)),
                // It ended while we looked.
                Some(NotFound | ConnectionReset | BrokenPipe) => {}
                _ => log::warn!("{}", e.chain()),
            },
        }
    }
    Ok(found)
}

fn sockets(dirs: &Dirs) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(&dirs.run) {
        Ok(entries) => entries,
        Err(e) if e.kind() == NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", e).at(&dirs.run)),
    };
    let paths = entries.flatten().map(|e| e.path());
    Ok(paths.filter(|p| p.extension().is_some_and(|x| x == "sock")).collect())
}

fn io_kind(e: &Error) -> Option<std::io::ErrorKind> {
    let io = std::error::Error::source(e)?.downcast_ref::<std::io::Error>()?;
    Some(io.kind())
}
