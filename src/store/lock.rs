//! The locks on a backing file and who holds them.
//!
//! Two kinds that do not see each other: flock on the whole file for life (the one cryptsetup takes too), and an OFD
//! lock on the bytes of the two header copies for one commit (RULINGS 10). Neither is ever waited for.
//!
//! Must never see: the content of the file; command lines of other processes (they may hold secrets), only their
//! 15-character names.

use std::fs::{File, TryLockError};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, TryLockError as TurnTaken};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};

use super::file::{Access, FileStore};
use crate::error::{Error, ErrorKind, Result};

/// Both copies of the LUKS2 header, as we write it: 2 x 16 KiB.
const HEADER_BYTES: i64 = 32768;

/// udev locks a device (shared) while it probes it, after every close of a writer, for some milliseconds
/// (systemd.io/BLOCK_DEVICE_LOCKING): somebody who mounts what he has just created must not meet it.
const UDEV_TRIES: u32 = 20;
const UDEV_PAUSE: Duration = Duration::from_millis(50);

/// Takes the lock of a whole file: shared to read, exclusive to write.
pub(super) fn take(file: &File, path: &Path, access: Access, is_device: bool) -> Result<()> {
    let tries = if is_device { UDEV_TRIES } else { 1 };
    for left in (0..tries).rev() {
        let taken = match access {
            Access::ReadOnly => file.try_lock_shared(),
            Access::ReadWrite => file.try_lock(),
        };
        match taken {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => {
                return Err(Error::io("lock", e)
                    .at(path)
                    .hint("the file system must support flock; copy the container to a local one"));
            }
            Err(TryLockError::WouldBlock) if left > 0 => std::thread::sleep(UDEV_PAUSE),
            Err(TryLockError::WouldBlock) => {}
        }
    }
    let holders = holders(file);
    let who = if holders == [std::process::id()] { "this process" } else { "another process" };
    let hint = match access {
        Access::ReadOnly => "unmount it or end that process (a mounted disk answers to `status` and `info`)",
        Access::ReadWrite => "unmount it or end that process first",
    };
    Err(Error::new(ErrorKind::Busy, format!("in use by {who}{}", describe(&holders))).at(path).hint(hint))
}

/// The lock of one header commit; given back on drop.
#[derive(Debug)]
pub struct HeaderLock<'a> {
    target: Target<'a>,
    _turn: MutexGuard<'a, ()>,
}

#[derive(Debug)]
enum Target<'a> {
    Own(&'a FileStore),
    Reopened(Box<FileStore>),
}

impl<'a> HeaderLock<'a> {
    /// `ranged`: through a handle of its own also on a store that may be written, whose writes are durable by themselves.
    pub(super) fn take(store: &'a FileStore, turn: &'a Mutex<()>, ranged: bool) -> Result<Self> {
        let busy = || {
            Error::new(ErrorKind::Busy, "another process is changing the header")
                .at(store.path())
                .hint("try again")
        };
        let turn = match turn.try_lock() {
            Ok(turn) => turn,
            Err(TurnTaken::Poisoned(e)) => e.into_inner(),
            Err(TurnTaken::WouldBlock) => return Err(busy()),
        };
        let target = match store.access() {
            Access::ReadWrite if !ranged => Target::Own(store),
            _ => Target::Reopened(Box::new(store.reopen_for_header(ranged)?)),
        };
        match set_ofd(target.store().file(), libc::F_WRLCK) {
            Ok(()) => Ok(Self { target, _turn: turn }),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Err(busy()),
            Err(e) => Err(Error::io("lock the header", e.into()).at(store.path())),
        }
    }

    /// What to write the header through. On a read-only store this is a second handle that may write; it must not
    /// outlive the lock, and cannot.
    #[must_use]
    pub fn store(&self) -> &FileStore {
        self.target.store()
    }
}

impl Target<'_> {
    fn store(&self) -> &FileStore {
        match self {
            Self::Own(store) => store,
            Self::Reopened(store) => store,
        }
    }
}

impl Drop for HeaderLock<'_> {
    fn drop(&mut self) {
        // Unlocking a lock that is held does not fail; were it to, it would end with the open file.
        let _ = set_ofd(self.store().file(), libc::F_UNLCK);
    }
}

fn set_ofd(file: &File, kind: libc::c_int) -> nix::Result<()> {
    let small = |n: libc::c_int| i16::try_from(n).expect("lock constants are 0, 1 and 2");
    let lock = libc::flock {
        l_type: small(kind),
        l_whence: small(libc::SEEK_SET),
        l_start: 0,
        l_len: HEADER_BYTES,
        l_pid: 0, // must be 0 for OFD locks (fcntl(2))
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

/// The name under which this process can open `file` again.
pub(super) fn proc_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn describe(holders: &[u32]) -> String {
    if holders.is_empty() {
        return String::new();
    }
    let named: Vec<_> = holders
        .iter()
        .map(|pid| match name_of(*pid) {
            Some(name) => format!("pid {pid}, {name}"),
            None => format!("pid {pid}"),
        })
        .collect();
    format!(" ({})", named.join("; "))
}

fn name_of(pid: u32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().replace(|c: char| c.is_control(), "?"))
}

/// Who holds the flock: what the kernel's table says; where it names nobody alive (the lock went to a child by fork, or
/// came from another pid namespace), who has the file open. Best effort: this only improves a message.
fn holders(file: &File) -> Vec<u32> {
    let mut found: Vec<u32> = in_lock_table(file).unwrap_or_default();
    found.retain(|pid| name_of(*pid).is_some());
    if found.is_empty() {
        found = with_file_open(file);
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn in_lock_table(file: &File) -> Option<Vec<u32>> {
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    let (major, minor) = superblock_device(file)?;
    let id = format!("{major:02x}:{minor:02x}:{}", file.metadata().ok()?.ino());
    Some(table.lines().filter_map(|line| flock_holder(line, &id)).collect())
}

/// `7: FLOCK  ADVISORY  WRITE 4242 fe:00:1835020 0 EOF`; a waiter has `->` in the second place (proc_locks(5)).
fn flock_holder(line: &str, id: &str) -> Option<u32> {
    let fields: Vec<_> = line.split_whitespace().collect();
    match fields[..] {
        [_, "FLOCK", _, _, pid, on, ..] if on == id => pid.parse().ok(),
        _ => None,
    }
}

/// The device number the lock table uses: that of the superblock, which on btrfs is not `st_dev`.
fn superblock_device(file: &File) -> Option<(u32, u32)> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().to_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(&mount))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn with_file_open(file: &File) -> Vec<u32> {
    let Ok(meta) = file.metadata() else { return Vec::new() };
    let is_it =
        |fd: &Path| std::fs::metadata(fd).is_ok_and(|m| m.dev() == meta.dev() && m.ino() == meta.ino());
    let pids = entries(Path::new("/proc")).filter_map(|p| p.file_name()?.to_str()?.parse::<u32>().ok());
    // We have it open ourselves, to ask.
    pids.filter(|pid| *pid != std::process::id())
        .filter(|pid| entries(Path::new(&format!("/proc/{pid}/fd"))).any(|fd| is_it(&fd)))
        .collect()
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_an_other_file_and_an_other_kind_of_lock_are_not_the_holder() {
        let id = "fe:00:77";
        assert_eq!(flock_holder("7: FLOCK  ADVISORY  WRITE 4242 fe:00:77 0 EOF", id), Some(4242));
        for line in [
            "7: -> FLOCK  ADVISORY  WRITE 4242 fe:00:77 0 EOF",
            "7: FLOCK  ADVISORY  WRITE 4242 fe:00:78 0 EOF",
            "7: POSIX  ADVISORY  WRITE 4242 fe:00:77 0 EOF",
            "",
        ] {
            assert_eq!(flock_holder(line, id), None, "{line}");
        }
    }
}
