//! A real guest: Debian's kernel and a busybox, whose disk is what a mount presents. It writes and syncs file after file,
//! says so on its console, and shuts itself down when its power button is pressed.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::Qemu;
use crate::support::{eventually, finish, run};

/// Modules that a disk and a power button need, in the order of their dependencies; ext4 is in the kernel.
const MODULES: [&str; 8] = [
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
    "acpi/button",
    "input/evdev",
];

/// What the guest does. "kept N" are the files of earlier boots that hold what they should; "synced N" is the last one that
/// is safe now.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
for button in /dev/input/event*; do
    (dd if=$button of=/dev/null bs=24 count=1 2>/dev/null; touch /off) &
done
mount -t ext4 /dev/vda /disk || { echo "guest: no file system"; poweroff -f; }
n=0
for file in /disk/*.txt; do
    [ "$(tail -c 3 $file)" = ok ] && n=$((n+1))
done
echo "guest: kept $n"
while [ ! -e /off ]; do
    n=$((n+1))
    { dd if=/dev/zero bs=4k count=1 2>/dev/null; echo ok; } > /disk/$n.txt && sync /disk/$n.txt && sync /disk \
        && echo "guest: synced $n" || { echo "guest: i/o error"; sleep 1; }
    usleep 50000
done
umount /disk && echo "guest: clean"
poweroff -f
"#;

/// The kernel and the first file system, made once by whoever comes first in a test program.
pub(crate) struct Machine {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl Machine {
    /// The kernel is where tests/run unpacks it.
    #[track_caller]
    pub(crate) fn new(dir: &Path) -> Self {
        let shelf = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest");
        let kernel = find(&shelf.join("boot"), "vmlinuz-").expect("tests/run --setup-only fetches a kernel");
        let release = kernel.file_name().unwrap().to_str().unwrap().trim_start_matches("vmlinuz-").to_owned();
        let drivers = shelf.join("lib/modules").join(release).join("kernel/drivers");
        let root = dir.join("initramfs");
        for folder in ["bin", "dev", "proc", "sys", "disk", "modules"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::copy(which("busybox"), root.join("bin/busybox")).unwrap();
        for module in MODULES {
            let name = module.rsplit('/').next().unwrap();
            let to = root.join("modules").join(name).with_extension("ko");
            std::fs::copy(drivers.join(module).with_extension("ko"), to).unwrap();
        }
        let order: Vec<_> = MODULES.iter().filter_map(|module| module.rsplit('/').next()).collect();
        std::fs::write(root.join("modules/order"), order.join("\n")).unwrap();
        std::fs::write(root.join("init"), INIT).unwrap();
        run("chmod", ["755", root.join("init").to_str().unwrap()]);
        let initramfs = dir.join("initramfs.cpio");
        let script = format!(
            "cd '{}' && find . | cpio -o -H newc --quiet > '{}'",
            root.display(),
            initramfs.display()
        );
        run("sh", ["-c", &script]);
        Self { kernel, initramfs }
    }

    /// Boots it on this disk, with a monitor at `qmp`; what it says is in the returned console.
    #[track_caller]
    pub(crate) fn boot(&self, disk: &Path, qmp: &Path) -> Booted {
        let drive =
            format!("file={},format=raw,if=virtio,cache=none,werror=stop,rerror=stop", disk.display());
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg",
            "-M",
            "pc",
            "-m",
            "192",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ]);
        command.args(["-no-reboot", "-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs).arg("-drive").arg(drive);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut qemu = Qemu::run(&mut command, qmp);
        let said = Arc::new(Mutex::new(Vec::new()));
        let out = qemu.child.stdout.take().unwrap();
        let reader = std::thread::spawn({
            let said = Arc::clone(&said);
            move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    let _ = writeln!(std::io::stderr(), "  guest| {line}");
                    said.lock().unwrap().push(line);
                }
            }
        });
        Booted { qemu, said, reader: Some(reader) }
    }
}

/// A guest that was booted.
pub(crate) struct Booted {
    pub(crate) qemu: Qemu,
    said: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Booted {
    /// The number in the last line that begins so.
    pub(crate) fn last(&self, what: &str) -> Option<u32> {
        let said = self.said.lock().unwrap();
        said.iter().rev().find_map(|line| line.split_once(what)?.1.trim().parse().ok())
    }

    pub(crate) fn said(&self, what: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(what))
    }

    /// Waits until it has synced `more` files after the ones it has by now.
    #[track_caller]
    pub(crate) fn writes(&mut self, more: u32) {
        let from = self.last("guest: synced").unwrap_or(0);
        let kept = eventually("the guest's file system", || {
            assert!(!self.qemu.has_ended(), "the guest ended");
            self.last("guest: kept")
        });
        eventually("the guest's writes", || {
            assert!(!self.qemu.has_ended(), "the guest ended");
            self.last("guest: synced").filter(|n| *n >= from.max(kept) + more)
        });
    }

    /// Waits for its end; all it said is read then. The last file that was safe.
    #[track_caller]
    pub(crate) fn ended(mut self) -> (u32, bool) {
        self.qemu.ends();
        self.reader.take().unwrap().join().unwrap();
        (self.last("guest: synced").unwrap_or(0), self.said("guest: clean"))
    }
}

/// What e2fsck says of a copy of this file system: its exit code (0 clean, 1 mended), and whether the journal had anything
/// to replay.
#[track_caller]
pub(crate) fn check(disk: &Path, scratch: &Path) -> (i32, bool) {
    run("cp", ["--sparse=always", disk.to_str().unwrap(), scratch.to_str().unwrap()]);
    let header = finish(Command::new("dumpe2fs").arg("-h").arg(scratch)).ok();
    let replay =
        header.lines().any(|line| line.starts_with("Filesystem features") && line.contains("needs_recovery"));
    let done = finish(Command::new("e2fsck").args(["-f", "-y"]).arg(scratch));
    let _ = writeln!(std::io::stderr(), "{}{}", done.out, done.err);
    (done.code(), replay)
}

fn find(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut found: Vec<_> = entries
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    found.pop()
}

fn which(program: &str) -> PathBuf {
    let path = run("sh", ["-c", &format!("command -v {program}")]);
    PathBuf::from(path)
}
