//! File systems and loop devices that really exist, made for one test and gone after it. Needs root.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod suite;

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use wrapdisk::error::ErrorKind;
use wrapdisk::store::{Access, FileStore};

/// Runs a program; a missing one or a failure is a failed test, with what it said. Returns its output, trimmed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output();
    let done = done.unwrap_or_else(|e| panic!("{program} must be installed: {e}"));
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{program} {args:?}: {}\n{out}{err}", done.status);
    out.trim().to_owned()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// Asks again for a while. A program that another test starts holds copies of our open files, and so our locks, between
/// its fork and its exec: what we gave back just now may be busy for a moment.
pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    (0..200).find_map(|_| {
        let done = attempt();
        if done.is_none() {
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        done
    })
}

/// Opens what nobody holds.
pub(crate) fn open(path: &Path, access: Access) -> FileStore {
    let opened = eventually(|| match FileStore::open(path, access) {
        Err(e) if e.kind() == ErrorKind::Busy => None,
        other => Some(other.expect("open")),
    });
    opened.unwrap_or_else(|| panic!("{} stays busy", path.display()))
}

/// Runs a program that may find its object busy for a moment.
pub(crate) fn undo(program: &str, args: &[&str]) {
    let succeeds = || Command::new(program).args(args).output().is_ok_and(|done| done.status.success());
    let done = eventually(|| succeeds().then_some(()));
    assert!(done.is_some() || std::thread::panicking(), "{program} {args:?} fails");
}

/// An empty (sparse) file of `len` bytes.
pub(crate) fn sparse(path: &Path, len: u64) {
    std::fs::File::create(path).and_then(|f| f.set_len(len)).expect("make a sparse file");
}

/// A mounted file system; unmounted on drop.
#[derive(Debug)]
pub(crate) struct Mounted {
    dir: TempDir,
}

impl Mounted {
    /// A file system of its own in an image file on a loop device.
    pub(crate) fn image(mkfs: &str, mib: u64) -> Self {
        let mounted = Self::folders();
        let image = mounted.dir.path().join("image");
        sparse(&image, mib << 20);
        run(mkfs, &["-q", text(&image)]);
        run("mount", &["-o", "loop", text(&image), text(&mounted.path())]);
        mounted
    }

    /// A file system without a device: tmpfs, ramfs.
    pub(crate) fn virtual_fs(kind: &str, options: &str) -> Self {
        let mounted = Self::folders();
        run("mount", &["-t", kind, "-o", options, "store-test", text(&mounted.path())]);
        mounted
    }

    /// A device mounted by its path.
    pub(crate) fn device(device: &Path) -> Self {
        let mounted = Self::folders();
        run("mount", &[text(device), text(&mounted.path())]);
        mounted
    }

    fn folders() -> Self {
        let dir = tempfile::tempdir().expect("make a temporary folder");
        std::fs::create_dir(dir.path().join("mnt")).expect("make a mountpoint");
        Self { dir }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        undo("umount", &[text(&self.path())]);
    }
}

/// A loop device over a file; detached on drop.
#[derive(Debug)]
pub(crate) struct LoopDevice(PathBuf);

impl LoopDevice {
    pub(crate) fn over(file: &Path) -> Self {
        Self(run("losetup", &["--find", "--show", text(file)]).into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        undo("losetup", &["-d", text(&self.0)]);
    }
}
