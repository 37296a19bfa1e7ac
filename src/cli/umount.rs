//! `wrapdisk umount`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::context::{self, Context};
use crate::control::MountStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountpoint::{self, MountEntry};

/// How long to wait for the daemon's last sync before giving the prompt back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Unmount a disk and wait until everything is on its backing file
///
/// umount(8) and fusermount3 -u do as well; this also waits for the mount's process to end, so that the disk can be
/// mounted again at once.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk umount /mnt/vm
  wrapdisk umount vm.wd
  wrapdisk umount --lazy /mnt/vm      detach now; the mount ends when its last user is gone")]
pub(super) struct Args {
    /// Mountpoint, container or uuid
    disk: PathBuf,

    /// Detach even while in use
    #[arg(long, short)]
    lazy: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let mount = context.mount_of(&args.disk)?;
    let place = match &mount {
        Some(mount) => mount.mountpoint.clone(),
        None => not_of_this_user(&args.disk)?,
    };
    mountpoint::unmount(&place, args.lazy)?;
    match mount {
        Some(mount) if !args.lazy => wait_for_end(&mount),
        _ => Ok(()),
    }
}

/// A mount without an answering daemon: dead, or another user's.
fn not_of_this_user(disk: &Path) -> Result<PathBuf> {
    let not_mounted = || context::not_mounted(disk);
    // A uuid is no path, and a container may have been moved away.
    let real = mountpoint::resolve(disk).map_err(|e| match e.kind() {
        ErrorKind::NotFound => not_mounted(),
        _ => e,
    })?;
    if let Some(found) = mountpoint::mounted_at(&real)? {
        return if found.fs_type == mountpoint::FS_TYPE { Ok(real) } else { Err(not_mounted()) };
    }
    let is_of_disk =
        |m: &MountEntry| m.fs_type == mountpoint::FS_TYPE && real.to_str() == Some(m.source.as_str());
    let found = mountpoint::mounts()?.into_iter().rev().find(is_of_disk);
    found.map(|m| m.mountpoint).ok_or_else(not_mounted)
}

fn wait_for_end(mount: &MountStatus) -> Result<()> {
    let start = Instant::now();
    while !has_ended(mount.pid) {
        if start.elapsed() > PATIENCE {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("unmounted, but process {} still serves it", mount.pid),
            )
            .at(&mount.disk)
            .hint("it may still be writing, or be mounted in another mount namespace (a container); wait until it ends"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Nothing of the process is left that could hold the disk's lock. One whose parent has not asked for its exit code (a
/// mount in the foreground) stays in the table, and its first thread may be through before the others are.
fn has_ended(pid: u32) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let threads = std::fs::read_dir(process.join("task")).map_or(0, Iterator::count);
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    threads == 0 || (threads == 1 && state.starts_with(['Z', 'X']))
}
