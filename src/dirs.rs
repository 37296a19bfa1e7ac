//! Where state lives (RULINGS 1): root under /var/lib, /etc and /run; a user under the XDG folders; everything under
//! one folder when `WRAPDISK_HOME` is set.
//!
//! Must never see: anything of the crate but errors.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

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
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).io_at("create folder", dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(vars: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<PathBuf> + 'a {
        move |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v))
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
