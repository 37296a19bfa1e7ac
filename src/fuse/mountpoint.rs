//! The place of a mount: is it free, is it ours and dead, and how to take it off.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::mount::{MntFlags, umount2};

use super::Layout;
use super::attach::fusermount;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// The file system type in the kernel's books.
pub const FS_TYPE: &str = "fuse.wrapdisk";

/// A line of `/proc/self/mountinfo` (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Where.
    pub mountpoint: PathBuf,
    /// `fuse.wrapdisk`, `ext4`, ...
    pub fs_type: String,
    /// The device, or our container.
    pub source: String,
    /// `MAJOR:MINOR` of the file system: two mounts of one differ in nothing else that is listed.
    pub device: String,
}

/// Everything that is mounted here, bottom first.
///
/// # Errors
/// `/proc` cannot be read.
pub fn mounts() -> Result<Vec<MountEntry>> {
    let text = std::fs::read("/proc/self/mountinfo").io_at("read", "/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    use std::os::unix::ffi::OsStringExt;
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let text = |i: usize| fields.get(i).map(|f| unescape(f));
    Some(MountEntry {
        mountpoint: std::ffi::OsString::from_vec(text(4)?).into(),
        fs_type: String::from_utf8_lossy(&text(dash + 1)?).into_owned(),
        source: String::from_utf8_lossy(&text(dash + 2)?).into_owned(),
        device: String::from_utf8_lossy(&text(2)?).into_owned(),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.first_chunk::<3>().filter(|_| *first == b'\\');
        let code =
            octal.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// The topmost mount at exactly this path.
///
/// # Errors
/// `/proc` cannot be read.
pub fn mounted_at(path: &Path) -> Result<Option<MountEntry>> {
    Ok(mounts()?.into_iter().rev().find(|m| m.mountpoint == path))
}

/// The absolute path without links, also when a dead FUSE mount lies on it (then only its parent can be resolved).
///
/// # Errors
/// `NotFound`, ...
pub fn resolve(path: &Path) -> Result<PathBuf> {
    match path.canonicalize() {
        Ok(real) => Ok(real),
        Err(e) if is_dead(&e) => {
            let absolute = std::path::absolute(path).io_at("resolve", path)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(parent.canonicalize().io_at("resolve", parent)?.join(name)),
                _ => Ok(absolute),
            }
        }
        Err(e) => Err(Error::io("mountpoint", e).at(path)),
    }
}

/// "Transport endpoint is not connected": the daemon of this mount is gone.
fn is_dead(e: &std::io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Makes `path` ready to be mounted on: takes off a dead mount of ours, refuses a live one and a folder with files in it.
/// Returns the resolved path and how the disk will look there.
///
/// # Errors
/// `NotFound`, `Busy`, `InvalidInput`.
pub fn prepare(path: &Path, allow_nonempty: bool) -> Result<(PathBuf, Layout)> {
    let real = resolve(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            e.hint("make a folder (or an empty file) there first, for instance with mkdir")
        }
        _ => e,
    })?;
    if real.as_os_str().as_encoded_bytes().contains(&b'\n') {
        let what = "mountpoint: found a newline in the path, which ends what mount prints";
        return Err(Error::new(ErrorKind::InvalidInput, what).at(path));
    }
    while let Some(found) = mounted_at(&real)? {
        // statfs always asks the daemon; stat may be answered from the kernel's cache of a dead one. Only of ours: another
        // may hang on a server that is away.
        let is_ours = found.fs_type == FS_TYPE;
        if is_ours && nix::sys::statfs::statfs(&real).is_err_and(|e| is_dead(&e.into())) {
            log::warn!("{}: a wrapdisk mount whose daemon is gone; taking it off", real.display());
            unmount(&real, true)?;
            continue;
        }
        let what = if is_ours {
            format!("{} is mounted here", found.source)
        } else {
            format!("a {} file system is mounted here", found.fs_type)
        };
        return Err(Error::new(ErrorKind::Busy, format!("mountpoint: {what}"))
            .at(path)
            .hint("choose another place, or umount it first"));
    }
    if let Some(around) = mounts()?.into_iter().rev().find(|m| real.starts_with(&m.mountpoint))
        && around.fs_type == FS_TYPE
    {
        let what = format!("mountpoint: this is the plaintext of {}, which is mounted", around.source);
        return Err(Error::new(ErrorKind::Busy, what).at(path).hint("choose another place"));
    }
    let meta = std::fs::metadata(&real).io_at("mountpoint", path)?;
    if meta.is_file() {
        return Ok((real, Layout::File));
    }
    if !meta.is_dir() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "mountpoint: found neither a folder nor a regular file",
        )
        .at(path));
    }
    let occupied = std::fs::read_dir(&real).io_at("mountpoint", path)?.next().is_some();
    if occupied && !allow_nonempty {
        return Err(Error::new(
            ErrorKind::Busy,
            "mountpoint: the folder is not empty; its files would be hidden",
        )
        .at(path)
        .hint("choose an empty folder, or allow it with --nonempty"));
    }
    Ok((real, Layout::Directory))
}

/// Unmounts; `lazy` detaches now and ends when the last user is gone. As root through the system call, else fusermount3.
///
/// # Errors
/// `Busy` when in use, `PermissionDenied`, `NotFound` when nothing is mounted there.
pub fn unmount(path: &Path, lazy: bool) -> Result<()> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(path, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(nix::Error::EPERM) => unmount_by_helper(path, lazy),
        Err(nix::Error::EBUSY) => Err(busy(path)),
        Err(nix::Error::EINVAL) => {
            Err(Error::new(ErrorKind::NotFound, "umount: nothing is mounted here").at(path))
        }
        Err(e) => Err(Error::io("umount", e.into()).at(path)),
    }
}

fn busy(path: &Path) -> Error {
    Error::new(ErrorKind::Busy, "umount: still in use").at(path).hint(format!(
        "close what uses it (fuser -vm {}; losetup -j), or detach it with wrapdisk umount --lazy",
        path.display()
    ))
}

fn unmount_by_helper(path: &Path, lazy: bool) -> Result<()> {
    let mut command = fusermount();
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(path).stdin(Stdio::null());
    let out = command.output().map_err(|e| {
        Error::io("run fusermount3", e)
            .at(path)
            .hint("install the package fuse3; without it only root can unmount")
    })?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    if said.contains("busy") {
        return Err(busy(path));
    }
    let kind = if said.contains("not found") { ErrorKind::NotFound } else { ErrorKind::PermissionDenied };
    Err(Error::new(kind, format!("umount: {}", said.trim())).at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_with_odd_names_are_read() {
        let line =
            b"42 25 0:39 / /mnt/a\\040b\\134c rw,nosuid shared:1 - fuse.wrapdisk /x/vm\\0111.wd rw,user_id=0";
        let m = parse_line(line).unwrap();
        assert_eq!(m.mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!((m.fs_type.as_str(), m.source.as_str()), (FS_TYPE, "/x/vm\t1.wd"));
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"42 25 0:39 / /mnt - "), None);
        assert_eq!(unescape(b"\\09"), b"\\09");
    }
}
