//! Which processes have a file open, as far as /proc shows: all of them to root, to others their own.
//!
//! Must never see: the file itself. Names of open files are read, never the files: this may be asked by the very process
//! that serves them.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// A process that has the file open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name, as ps(1) has it.
    pub name: String,
}

impl Holder {
    /// Is it a QEMU?
    #[must_use]
    pub fn is_qemu(&self) -> bool {
        is_qemu(&self.name)
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// Everything that has this file open, by its name in our mount namespace. A loop device has no process.
#[must_use]
pub fn holders(file: &Path) -> Vec<Holder> {
    find(file, |_| true)
}

/// The QEMU processes among them: few processes are looked into, so this is cheap.
#[must_use]
pub fn qemus(file: &Path) -> Vec<Holder> {
    find(file, is_qemu)
}

/// `qemu-system-x86_64`, `qemu-kvm`, `kvm` (RHEL, Proxmox); the kernel keeps 15 letters of it.
fn is_qemu(name: &str) -> bool {
    name.starts_with("qemu") || name == "kvm"
}

fn find(file: &Path, wanted: impl Fn(&str) -> bool) -> Vec<Holder> {
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<_> = numbers
        .filter_map(|pid| Some(Holder { pid, name: name_of(pid)? }))
        .filter(|process| wanted(&process.name) && has_open(process.pid, file))
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// A name is what its process says it is: printable here.
fn name_of(pid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = String::from_utf8_lossy(name.trim_ascii_end()).into_owned();
    Some(name.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
}

fn has_open(pid: u32, file: &Path) -> bool {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|path| path == file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_file_open_is_found_while_it_does() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let me = std::process::id();
        let path = file.path().canonicalize().unwrap();
        let found = holders(&path);
        assert!(found.iter().any(|h| h.pid == me && !h.is_qemu()), "{found:?}");
        assert_eq!(qemus(&path), []);
        drop(file);
        assert!(!holders(&path).iter().any(|h| h.pid == me));
    }

    #[test]
    fn a_qemu_is_known_by_its_name() {
        for (name, is) in [
            ("qemu-system-x86", true),
            ("qemu-kvm", true),
            ("kvm", true),
            ("kvm-nx-lpage-re", false),
            ("cat", false),
        ] {
            assert_eq!(Holder { pid: 1, name: name.to_owned() }.is_qemu(), is, "{name}");
        }
    }
}
