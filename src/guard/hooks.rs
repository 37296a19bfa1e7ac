//! `hooks.d`: programs of the administrator's that run when something happens to a mount.
//!
//! One after the other in the order of their names, each with [`LIMIT`]; what they say goes to the log. They learn what
//! happened from variables, all of which are in every call:
//!
//! | Variable | Example |
//! |---|---|
//! | `WRAPDISK_EVENT` | `fenced` (the names of docs/EVENTS.md) |
//! | `WRAPDISK_WHY` | `disabled`, `deleted`, `no-permission`, `outage`, ...; empty where nothing is wrong |
//! | `WRAPDISK_REASON` | what the vault said, for people |
//! | `WRAPDISK_SET`, `WRAPDISK_KID` | `default`, `https://.../keys/disk-kek/<version>` |
//! | `WRAPDISK_DISK`, `WRAPDISK_UUID` | `/srv/vm.wd`, the container's uuid |
//! | `WRAPDISK_MOUNT`, `WRAPDISK_FILE` | `/mnt/vm`, `/mnt/vm/disk.img` |
//! | `WRAPDISK_TIME` | RFC 3339 |
//!
//! Must never see: keys, vaults. A hook is handed no secret.
//!
//! Invariants:
//! 1. Only what nobody but us and root could have written is run.
//! 2. No hook holds up anything but the hooks after it.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::child;
use crate::dirs::Dirs;
use crate::error::{Error, ErrorKind, Result};

/// How long a hook may take; then it is killed, with its process group.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The folder of hooks in a folder of configuration.
#[must_use]
pub fn folder(config: &Path) -> PathBuf {
    config.join("hooks.d")
}

/// Runs the hooks of this folder; what goes wrong goes to the log. No folder is no hooks.
pub fn run_all(folder: &Path, variables: &[(&str, OsString)]) {
    run_all_within(folder, variables, LIMIT);
}

fn run_all_within(folder: &Path, variables: &[(&str, OsString)], limit: Duration) {
    let hooks = match find(folder) {
        Ok(hooks) => hooks,
        Err(e) if e.kind() == ErrorKind::NotFound => return,
        Err(e) => return log::error!("no hook is run: {}", e.chain()),
    };
    for hook in hooks {
        let ran = child::run(Command::new(&hook).envs(variables.iter().map(|(k, v)| (k, v))), limit);
        let hook = hook.display();
        match ran {
            Ok(ended) => {
                for line in ended.said.lines() {
                    log::warn!("hook {hook}: {}", printable(line));
                }
                if !ended.status.success() {
                    log::error!("hook {hook}: {}", ended.status);
                }
            }
            Err(e) => log::error!("hook {hook}: {}", e.chain()),
        }
    }
}

/// The hooks, sorted; those that are refused are said.
///
/// # Errors
/// `NotFound`: no such folder; `PermissionDenied`: others can write in it.
fn find(folder: &Path) -> Result<Vec<PathBuf>> {
    Dirs::check(folder)?;
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", e).at(folder))?;
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| is_meant(p)).collect();
    paths.sort();
    paths.retain(|path| match check(path) {
        Ok(runnable) => runnable,
        Err(e) => {
            log::error!("hook not run: {}", e.at(path).chain());
            false
        }
    });
    Ok(paths)
}

/// Not what an editor or a package manager left.
fn is_meant(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    !name.starts_with('.') && !name.ends_with('~') && !name.contains(".dpkg-")
}

/// False for what is no program at all.
fn check(path: &Path) -> Result<bool> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io("look at", e))?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Ok(false);
    }
    let (mode, owner, me) = (meta.mode() & 0o7777, meta.uid(), nix::unistd::geteuid().as_raw());
    let refused = if mode & 0o022 != 0 {
        format!("found mode {mode:04o}, allowed is nobody but its owner to write it")
    } else if owner != 0 && owner != me {
        format!("found owner uid {owner}, allowed {me} or root")
    } else {
        return Ok(true);
    };
    Err(Error::new(ErrorKind::PermissionDenied, refused))
}

fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn hook(folder: &Path, name: &str, mode: u32, script: &str) {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn hooks_run_in_order_with_what_they_are_told_and_nothing_else_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let hooks = dir.path().join("hooks.d");
        run_all(&hooks, &[]); // none is no trouble
        std::fs::create_dir(&hooks).unwrap();
        std::fs::set_permissions(&hooks, std::fs::Permissions::from_mode(0o755)).unwrap();
        let say = format!(
            "echo \"$(basename $0) $WRAPDISK_EVENT ${{CARGO_PKG_NAME-none}} $(pwd)\" >> {}",
            out.display()
        );
        hook(&hooks, "20-second", 0o755, &say);
        hook(&hooks, "10-first", 0o700, &say);
        hook(&hooks, "15-fails", 0o755, &format!("{say}; exit 3"));
        for (name, mode) in [("30-data", 0o644), (".hidden", 0o755), ("40~", 0o755), ("50.dpkg-old", 0o755)] {
            hook(&hooks, name, mode, &say);
        }
        for (name, mode) in [("60-others", 0o757), ("61-group", 0o775)] {
            hook(&hooks, name, mode, &say);
        }
        run_all(&hooks, &[("WRAPDISK_EVENT", "fenced".into())]);
        let said = std::fs::read_to_string(&out).unwrap();
        assert_eq!(said, "10-first fenced none /\n15-fails fenced none /\n20-second fenced none /\n");
        // A folder that others can write is not looked into at all.
        std::fs::set_permissions(&hooks, std::fs::Permissions::from_mode(0o777)).unwrap();
        std::fs::remove_file(&out).unwrap();
        run_all(&hooks, &[]);
        assert!(!out.exists());
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_all_it_started_and_the_next_one_runs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let pid = dir.path().join("pid");
        hook(dir.path(), "1", 0o700, &format!("sleep 1000 & echo $! > {}; wait", pid.display()));
        hook(dir.path(), "2", 0o700, &format!("touch {}", dir.path().join("ran").display()));
        let start = Instant::now();
        run_all_within(dir.path(), &[], Duration::from_secs(1));
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(dir.path().join("ran").exists());
        let pid = std::fs::read_to_string(&pid).unwrap();
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(state.is_empty() || state.contains(" Z "), "{state}");
    }

    #[test]
    fn a_hook_that_floods_or_keeps_its_output_open_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        hook(dir.path(), "1", 0o700, "head -c 3000000 /dev/zero");
        hook(dir.path(), "2", 0o700, "setsid sleep 5 & exit 0");
        let start = Instant::now();
        run_all(dir.path(), &[]);
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
