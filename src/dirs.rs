//! Where state lives (RULINGS 1): root under /var/lib, /etc and /run; a user under the XDG folders; everything under
//! one folder when `WRAPDISK_HOME` is set.
//!
//! Must never see: anything of the crate but errors.

use std::fs::{File, Metadata};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, ErrorKind, IoContext, Result};

/// The three folders of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// `vault.db`, `root.key`, `sets.db`.
    pub state: PathBuf,
    /// Configuration.
    pub config: PathBuf,
    /// Control sockets of live mounts.
    pub run: PathBuf,
}

impl Dirs {
    /// For the invoking user, from the environment.
    ///
    /// # Errors
    /// `InvalidInput` when neither `WRAPDISK_HOME` nor a home folder is known.
    pub fn from_env() -> Result<Self> {
        Self::resolve(
            |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from),
            nix::unistd::geteuid().is_root(),
        )
    }

    /// All three under one folder.
    #[must_use]
    pub fn under(home: &Path) -> Self {
        Self { state: home.join("state"), config: home.join("config"), run: home.join("run") }
    }

    fn resolve(var: impl Fn(&str) -> Option<PathBuf>, root: bool) -> Result<Self> {
        // XDG: a relative path in these variables is invalid and is ignored. WRAPDISK_HOME is ours: resolve it now, since
        // a mount changes its working directory.
        if let Some(home) = var("WRAPDISK_HOME") {
            return Ok(Self::under(&std::path::absolute(&home).io_at("resolve", &home)?));
        }
        if root {
            return Ok(Self {
                state: "/var/lib/wrapdisk".into(),
                config: "/etc/wrapdisk".into(),
                run: "/run/wrapdisk".into(),
            });
        }
        let xdg = |name: &str| var(name).filter(|p| p.is_absolute()).map(|p| p.join("wrapdisk"));
        let home = |below: &str| {
            var("HOME").filter(|p| p.is_absolute()).map(|h| h.join(below).join("wrapdisk")).ok_or_else(|| {
                Error::new(ErrorKind::InvalidInput, "no home folder is known")
                    .hint("set HOME or WRAPDISK_HOME")
            })
        };
        let state = xdg("XDG_STATE_HOME").map_or_else(|| home(".local/state"), Ok)?;
        let config = xdg("XDG_CONFIG_HOME").map_or_else(|| home(".config"), Ok)?;
        let run = xdg("XDG_RUNTIME_DIR").unwrap_or_else(|| state.join("run"));
        Ok(Self { state, config, run })
    }

    /// Makes a folder of ours, private to its owner.
    ///
    /// # Errors
    /// `PermissionDenied`, `NoSpace`, ...
    pub fn ensure(dir: &Path) -> Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).io_at("create folder", dir)?;
        Self::check(dir)
    }

    /// Refuses a folder that somebody else can write, or owns.
    ///
    /// # Errors
    /// `PermissionDenied`, `NotFound`.
    pub fn check(dir: &Path) -> Result<()> {
        let meta = std::fs::metadata(dir).io_at("look at folder", dir)?;
        check_private(&meta, nix::unistd::geteuid().as_raw()).map_err(|e| e.at(dir))
    }

    /// The lock of a folder, which whoever makes or replaces files in it holds; given back on drop.
    ///
    /// # Errors
    /// `Busy`: somebody else holds it for longer than that takes. `Io`.
    pub fn lock(dir: &Path) -> Result<Flock<File>> {
        let mut file = File::open(dir).io_at("open folder", dir)?;
        let patience = Instant::now() + LOCK_PATIENCE;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < patience => file = back,
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!("another process has held this folder for {} s", LOCK_PATIENCE.as_secs()),
                    )
                    .at(dir)
                    .hint("it makes the vault or changes its root key: wait for it, or look for one that hangs (fuser DIR)"));
                }
                Err((_, e)) => return Err(Error::io("lock folder", e.into()).at(dir)),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The same, if nobody holds it now.
    ///
    /// # Errors
    /// `Io`.
    pub fn try_lock(dir: &Path) -> Result<Option<Flock<File>>> {
        let file = File::open(dir).io_at("open folder", dir)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => Ok(None),
            Err((_, e)) => Err(Error::io("lock folder", e.into()).at(dir)),
        }
    }
}

/// Making an RSA-4096 key on a slow machine under load takes this long.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// Who can write in the folder can put another vault, or other sets, in the place of ours.
fn check_private(meta: &Metadata, me: u32) -> Result<()> {
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 != 0 {
        let message = format!("found mode {mode:04o}, allowed is nobody but its owner to write here");
        return Err(Error::new(ErrorKind::PermissionDenied, message)
            .hint("check what is in it, then: chmod go-w on the folder"));
    }
    // Root may use another user's state (RULINGS 1), and what root made is root's to guard.
    if me != 0 && meta.uid() != me && meta.uid() != 0 {
        let message = format!("found owner uid {}, allowed {me}", meta.uid());
        return Err(
            Error::new(ErrorKind::PermissionDenied, message).hint("use a folder of your own: --state DIR")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(vars: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<PathBuf> + 'a {
        move |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v))
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused_and_a_held_one_is_not_waited_for() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        for (mode, good) in [(0o700, true), (0o755, true), (0o770, false), (0o702, false), (0o1777, false)] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Dirs::ensure(dir.path()).is_ok(), good, "{mode:o}");
        }
        let held = Dirs::lock(dir.path()).unwrap();
        assert!(Dirs::try_lock(dir.path()).unwrap().is_none());
        drop(held);
        assert!(Dirs::try_lock(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_user_gets_xdg_folders_and_root_the_system_ones() {
        let user = Dirs::resolve(
            env(&[("HOME", "/home/a"), ("XDG_STATE_HOME", "/s"), ("XDG_CONFIG_HOME", "rel")]),
            false,
        );
        let user = user.unwrap();
        assert_eq!(user.state, Path::new("/s/wrapdisk"));
        assert_eq!(user.config, Path::new("/home/a/.config/wrapdisk"));
        assert_eq!(user.run, Path::new("/s/wrapdisk/run"));
        assert_eq!(Dirs::resolve(env(&[]), true).unwrap().state, Path::new("/var/lib/wrapdisk"));
        assert_eq!(
            Dirs::resolve(env(&[("WRAPDISK_HOME", "/w")]), true).unwrap(),
            Dirs::under(Path::new("/w"))
        );
        assert!(Dirs::resolve(env(&[]), false).is_err());
    }
}
