//! Is what was synced through a mount on the medium, so that a power cut does not take it?
//!
//! The container lies on a file system of its own. A copy of that file system's device, taken at one moment, is what a
//! power cut would leave: nobody's page cache is in it. The ext4 below is the judge, and it forgets what was not synced.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, Stdio};

use support::{Home, Loop, Mount, Mounted, eventually, finish, noise, run};

const LEN: usize = 300_000;
const AT: u64 = 12_345;

/// A home whose container is `host/vm.wd`, on a device of its own.
struct Rig {
    // Dropped in this order.
    _host: Mounted,
    _medium: Loop,
    home: Home,
}

impl Rig {
    fn new() -> Self {
        let home = Home::ready();
        File::create(home.path("medium")).unwrap().set_len(128 << 20).unwrap();
        run("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", home.text("medium")]);
        let medium = Loop::over(&home.path("medium"), &[]);
        // Nothing is committed that nobody asked for.
        let host = Mounted::new(&medium, &home.path("host"), &["-o", "commit=300"]);
        home.create("host/vm.wd", "32M", &[]);
        Self { _host: host, _medium: medium, home }
    }

    fn mount(&self) -> Mount<'_> {
        let place = self.home.path("disk");
        std::fs::create_dir_all(&place).unwrap();
        self.home.mount_at("host/vm.wd", &place, &[])
    }

    /// The power goes; what the disk is like when it is back.
    #[track_caller]
    fn after_a_power_cut<T>(&self, look: impl FnOnce(&Mount<'_>) -> T) -> T {
        let copy = self.home.path("copy");
        std::fs::copy(self.home.path("medium"), &copy).unwrap();
        let medium = Loop::over(&copy, &[]);
        let host = Mounted::new(&medium, &self.home.path("after"), &[]);
        let place = self.home.path("after.mnt");
        std::fs::create_dir_all(&place).unwrap();
        let mount = self.home.mount_at("after/vm.wd", &place, &[]);
        let found = look(&mount);
        mount.unmount();
        host.unmount();
        found
    }

    /// Is this on the disk, at [`AT`], when the power is back?
    #[track_caller]
    fn survives(&self, bytes: &[u8]) -> bool {
        self.after_a_power_cut(|mount| {
            let mut found = vec![0; bytes.len()];
            File::open(&mount.file).unwrap().read_exact_at(&mut found, AT).unwrap();
            found == bytes
        })
    }
}

fn writable(mount: &Mount<'_>, flags: i32) -> File {
    File::options().write(true).custom_flags(flags).open(&mount.file).unwrap()
}

#[test]
fn a_new_disk_is_there() {
    let rig = Rig::new();
    assert!(rig.survives(&[0; LEN]));
}

#[test]
fn the_judge_sees_a_write_that_nobody_synced_get_lost() {
    let rig = Rig::new();
    let mount = rig.mount();
    let file = writable(&mount, 0);
    // The kernel may write anything back at any time; not every time. Other bytes each time, or what was written back once
    // is what the medium has ever after.
    let mut seeds = 1..;
    eventually("a write that is lost", || {
        let bytes = noise(seeds.next().unwrap(), LEN);
        file.write_all_at(&bytes, AT).unwrap();
        (!rig.survives(&bytes)).then_some(())
    });
}

#[test]
fn fsync_and_fdatasync_are_durable() {
    let rig = Rig::new();
    let mount = rig.mount();
    let file = writable(&mount, 0);
    for (seed, sync) in [(1, File::sync_all as fn(&File) -> _), (2, File::sync_data)] {
        file.write_all_at(&noise(seed, LEN), AT).unwrap();
        sync(&file).unwrap();
        assert!(rig.survives(&noise(seed, LEN)), "{seed}");
    }
}

#[test]
fn a_write_to_a_file_opened_for_synchronous_writing_is_durable_at_once() {
    let rig = Rig::new();
    let mount = rig.mount();
    for (seed, flags) in [(1, libc::O_DSYNC), (2, libc::O_SYNC), (3, libc::O_DSYNC | libc::O_DIRECT)] {
        let file = writable(&mount, flags);
        file.write_all_at(&noise(seed, LEN), AT).unwrap();
        assert!(rig.survives(&noise(seed, LEN)), "{seed}");
    }
}

#[test]
fn one_write_that_asks_for_it_is_durable_at_once() {
    let rig = Rig::new();
    let mount = rig.mount();
    let mut xfs_io = Command::new("stdbuf");
    let mut child = xfs_io
        .args(["-oL", "xfs_io", mount.text()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // RWF_DSYNC. Its input stays open, and so does the file: closing it would sync.
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "pwrite -D -V 1 -b 8k -S 0x5a {AT} 8k").unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let wrote = lines.find(|line| line.as_ref().unwrap().contains("wrote 8192/8192"));
    let survived = rig.survives(&[0x5A; 8192]);
    drop((input, lines));
    assert!(child.wait().unwrap().success());
    assert!(wrote.is_some() && survived, "{wrote:?}");
}

#[test]
fn closing_is_durable() {
    let rig = Rig::new();
    let mount = rig.mount();
    writable(&mount, 0).write_all_at(&noise(1, LEN), AT).unwrap();
    assert!(rig.survives(&noise(1, LEN)));
}

#[test]
fn a_discard_is_durable_with_the_next_sync() {
    let rig = Rig::new();
    let mount = rig.mount();
    let file = writable(&mount, 0);
    file.write_all_at(&noise(1, LEN), AT).unwrap();
    file.sync_all().unwrap();
    let (at, len) = (AT.to_string(), LEN.to_string());
    run("fallocate", ["--punch-hole", "--offset", &at, "--length", &len, mount.text()]);
    file.sync_all().unwrap();
    assert!(rig.survives(&[0; LEN]));
}

/// Through everything: a journal, a loop device, the mount, the file system below.
#[test]
fn a_file_that_ext4_synced_is_durable() {
    let rig = Rig::new();
    let mount = rig.mount();
    let disk = Loop::over(&mount.file, &[]);
    run("mkfs.ext4", ["-q", "-F", &disk.0]);
    let fs = Mounted::new(&disk, &rig.home.path("fs"), &[]);
    for n in 0..20 {
        let mut file = File::create_new(fs.0.join(n.to_string())).unwrap();
        file.write_all(&noise(n, LEN)).unwrap();
        file.sync_all().unwrap();
    }
    rig.after_a_power_cut(|mount| {
        let disk = Loop::over(&mount.file, &[]);
        let done = finish(Command::new("e2fsck").args(["-f", "-y", &disk.0]));
        assert!([0, 1].contains(&done.code()), "{}{}", done.out, done.err);
        let fs = Mounted::new(&disk, &rig.home.path("fs.after"), &[]);
        for n in 0..20 {
            let found = std::fs::read(fs.0.join(n.to_string())).unwrap();
            assert!(found == noise(n, LEN), "file {n}");
        }
        fs.unmount();
    });
}
