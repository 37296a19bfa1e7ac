//! Does a backing file have one writer, does a refusal name who is in the way, and is nothing opened that somebody else
//! writes to? Every opponent is a real process, device or mount.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod store_support;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use store_support::{LoopDevice, Mounted, open, run, sparse, text, undo};
use wrapdisk::error::{Error, ErrorKind};
use wrapdisk::store::{Access, BackingStore, FileStore, StoreId, sync_parent_dir};
use wrapdisk::units::{ByteLen, ByteOffset, Extent};

const ACCESSES: [Access; 2] = [Access::ReadOnly, Access::ReadWrite];

/// A file of 1 MiB in a folder of its own.
fn backing() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.wd");
    sparse(&path, 1 << 20);
    (dir, path)
}

fn refused(path: &Path, access: Access) -> Error {
    FileStore::open(path, access).map(drop).expect_err("must be refused")
}

/// A process that holds something until it is dropped. It says "held" when it does.
struct Holder(Child);

impl Holder {
    fn start(program: &str, args: &[&str]) -> Self {
        let child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|e| panic!("{program} must be installed: {e}"));
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "held\n", "{program} {args:?}");
        Self(child)
    }

    /// util-linux' flock(1), as other programs take it.
    fn flock(path: &Path, kind: &str) -> Self {
        Self::start("flock", &["--nonblock", kind, text(path), "sh", "-c", "echo held; read x"])
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take()); // ends its `read`
        self.0.wait().expect("wait for the holder");
    }
}

// ---- the lock of the whole file

#[test]
fn there_is_one_writer_or_there_are_many_readers() {
    let (_dir, path) = backing();
    let writer = open(&path, Access::ReadWrite);
    for access in ACCESSES {
        assert_eq!(refused(&path, access).kind(), ErrorKind::Busy);
    }
    drop(writer);

    let readers = [open(&path, Access::ReadOnly), open(&path, Access::ReadOnly)];
    assert_eq!(refused(&path, Access::ReadWrite).kind(), ErrorKind::Busy);
    drop(readers);

    open(&path, Access::ReadWrite);
}

#[test]
fn a_file_is_locked_from_its_creation_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.wd");
    let created = FileStore::create_new(&path).unwrap();
    sync_parent_dir(&path).unwrap();
    assert_eq!(refused(&path, Access::ReadOnly).kind(), ErrorKind::Busy);
    drop(created);
    open(&path, Access::ReadOnly);
}

#[test]
fn other_programs_see_the_lock() {
    let (_dir, path) = backing();
    let flock = |kind| {
        Command::new("flock").args(["--nonblock", kind, text(&path), "true"]).status().unwrap().success()
    };
    let store = open(&path, Access::ReadWrite);
    assert!(!flock("--shared") && !flock("--exclusive"));
    drop(store);
    let _store = open(&path, Access::ReadOnly);
    assert!(flock("--shared") && !flock("--exclusive"));
}

#[test]
fn a_refusal_names_the_holder() {
    let (_dir, path) = backing();
    for (kind, access) in [("--exclusive", Access::ReadOnly), ("--shared", Access::ReadWrite)] {
        let holder = Holder::flock(&path, kind);
        let e = refused(&path, access);
        assert_eq!(
            e.chain(),
            format!("{}: in use by another process (pid {}, flock)", path.display(), holder.pid())
        );
        assert!(e.advice().is_some_and(|hint| hint.contains("unmount")), "{:?}", e.advice());
    }
    open(&path, Access::ReadWrite);
}

/// On btrfs the lock table and stat(2) use different device numbers.
#[test]
fn a_refusal_names_the_holder_on_btrfs() {
    let mounted = Mounted::image("mkfs.btrfs", 256);
    let path = mounted.path().join("vm.wd");
    sparse(&path, 4096);
    let holder = Holder::flock(&path, "--exclusive");
    let e = refused(&path, Access::ReadWrite);
    assert!(e.to_string().ends_with(&format!("(pid {}, flock)", holder.pid())), "{e}");
}

/// A lock outlives the process that took it when a child inherited the open file: the kernel's table names the dead.
#[test]
fn a_refusal_names_the_heir_of_a_lock() {
    let (_dir, path) = backing();
    let script = "exec 9<>\"$1\"; flock --nonblock 9 && echo held; read x";
    let heir = Holder::start("sh", &["-c", script, "sh", text(&path)]);
    let e = refused(&path, Access::ReadOnly);
    assert!(e.to_string().contains(&format!("(pid {}, sh)", heir.pid())), "{e}");
}

#[test]
fn a_refusal_tells_this_process_from_another() {
    let (_dir, path) = backing();
    let _store = open(&path, Access::ReadWrite);
    let e = refused(&path, Access::ReadWrite);
    assert!(e.to_string().contains(&format!("in use by this process (pid {}", std::process::id())), "{e}");
}

// ---- the lock of the header

/// What another program is told that wants bytes `start..start + len` for itself.
fn foreign_lock(path: &Path, start: u64, len: u64) -> String {
    let script = "import fcntl, sys\n\
                  f = open(sys.argv[1], 'r+b')\n\
                  try:\n    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, int(sys.argv[3]), int(sys.argv[2]))\n    print('taken')\n\
                  except BlockingIOError:\n    print('refused')\n";
    run("python3", &["-c", script, text(path), &start.to_string(), &len.to_string()])
}

#[test]
fn the_header_lock_excludes_another_process_while_it_lives() {
    let (_dir, path) = backing();
    for access in ACCESSES {
        let store = open(&path, access);
        let lock = store.lock_header().unwrap();
        assert_eq!(foreign_lock(&path, 0, 1), "refused");
        assert_eq!(foreign_lock(&path, 32767, 1), "refused");
        assert_eq!(foreign_lock(&path, 32768, 0), "taken", "the data is not locked");
        drop(lock);
        assert_eq!(foreign_lock(&path, 0, 0), "taken", "given back with the guard, not with the store");
    }
}

/// The flags of this process's open descriptions of a file (proc_pid_fdinfo(5)).
fn open_flags(path: &Path) -> Vec<i32> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let ours = fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == path));
    let flags = ours.map(|fd| {
        let info = format!("/proc/self/fdinfo/{}", fd.file_name().to_str().unwrap());
        let info = std::fs::read_to_string(info).unwrap();
        let octal = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        i32::from_str_radix(octal.trim(), 8).unwrap()
    });
    flags.collect()
}

#[test]
fn a_commit_beside_data_that_is_being_written_makes_its_own_bytes_durable_and_waits_for_no_others() {
    let (_dir, path) = backing();
    let path = path.canonicalize().unwrap();
    let store = open(&path, Access::ReadWrite);
    let lock = store.lock_header_in_use().unwrap();
    assert_eq!(foreign_lock(&path, 0, 1), "refused");
    assert_eq!(store.lock_header().map(drop).unwrap_err().kind(), ErrorKind::Busy);
    // O_DSYNC: "as though followed by a call to fdatasync" of what was written (open(2)).
    assert!(open_flags(&path).iter().any(|flags| flags & libc::O_DSYNC != 0));
    lock.store().write_at(ByteOffset::ZERO, b"new header").unwrap();
    lock.store().sync().unwrap();
    drop(lock);
    assert!(open_flags(&path).iter().all(|flags| flags & libc::O_DSYNC == 0), "it does not outlive the lock");
    let mut seen = [0; 10];
    store.read_at(ByteOffset::ZERO, &mut seen).unwrap();
    assert_eq!(&seen, b"new header");
}

#[test]
fn the_header_lock_is_refused_while_another_process_holds_it() {
    let (_dir, path) = backing();
    let script = "import fcntl, sys\n\
                  f = open(sys.argv[1], 'r+b')\n\
                  fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 32768, 0)\n\
                  print('held', flush=True)\nsys.stdin.read()\n";
    let store = open(&path, Access::ReadOnly);
    {
        let _holder = Holder::start("python3", &["-c", script, text(&path)]);
        let e = store.lock_header().map(drop).expect_err("somebody else commits");
        assert_eq!(e.kind(), ErrorKind::Busy);
        assert!(e.to_string().contains("another process is changing the header"), "{e}");
    }
    store.lock_header().expect("free again");
}

/// RULINGS 10: two daemons serve one disk read-only, and both want to rewrap it.
#[test]
fn two_readers_commit_one_after_the_other() {
    let (_dir, path) = backing();
    let (one, two) = (open(&path, Access::ReadOnly), open(&path, Access::ReadOnly));
    let lock = one.lock_header().unwrap();
    assert_eq!(two.lock_header().map(drop).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(
        one.lock_header().map(drop).unwrap_err().kind(),
        ErrorKind::Busy,
        "a second thread waits its turn"
    );

    lock.store().write_at(ByteOffset::ZERO, b"new header").unwrap();
    lock.store().sync().unwrap();
    drop(lock);
    let mut seen = [0; 10];
    let lock = two.lock_header().unwrap();
    lock.store().read_at(ByteOffset::ZERO, &mut seen).unwrap();
    assert_eq!(&seen, b"new header");
}

#[test]
fn the_header_of_a_file_that_cannot_be_written_cannot_be_locked() {
    let mounted = Mounted::virtual_fs("tmpfs", "size=1m");
    let path = mounted.path().join("vm.wd");
    sparse(&path, 4096);
    undo("mount", &["-o", "remount,ro", text(&mounted.path())]);
    let store = open(&path, Access::ReadOnly);
    assert_eq!(store.lock_header().map(drop).unwrap_err().kind(), ErrorKind::ReadOnly);
}

// ---- what somebody else writes to

#[test]
fn the_backing_file_of_a_loop_device_is_refused_for_writing_by_any_of_its_names() {
    let (dir, path) = backing();
    let other_name = dir.path().join("hard-link");
    std::fs::hard_link(&path, &other_name).unwrap();
    let innocent = dir.path().join("innocent");
    sparse(&innocent, 4096);
    {
        let device = LoopDevice::over(&path);
        for name in [&path, &other_name] {
            let e = refused(name, Access::ReadWrite);
            assert_eq!(e.kind(), ErrorKind::Busy);
            assert_eq!(
                e.to_string(),
                format!("{}: is the backing file of {}", name.display(), device.path().display())
            );
            assert!(e.advice().is_some_and(|hint| hint.contains("losetup -d")), "{:?}", e.advice());
            open(name, Access::ReadOnly);
        }
        open(&innocent, Access::ReadWrite);

        // The name that sysfs knows is gone; only the device still knows its file.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(refused(&other_name, Access::ReadWrite).kind(), ErrorKind::Busy);
        let reader = open(&other_name, Access::ReadOnly);
        assert_eq!(reader.backs_loop_device().unwrap().as_deref(), device.path().to_str());
    }
    let store = open(&other_name, Access::ReadWrite);
    assert_eq!(store.backs_loop_device().unwrap(), None);
}

#[test]
fn a_mounted_device_is_refused_for_writing_and_the_mountpoint_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    sparse(&image, 16 << 20);
    run("mkfs.ext4", &["-q", text(&image)]);
    let device = LoopDevice::over(&image);
    {
        let mounted = Mounted::device(device.path());
        let e = refused(device.path(), Access::ReadWrite);
        assert_eq!(e.kind(), ErrorKind::Busy);
        assert!(e.to_string().contains(&format!("mounted at {}", mounted.path().display())), "{e}");
        assert!(e.advice().is_some_and(|hint| hint.starts_with("umount ")), "{:?}", e.advice());
    }
    open(device.path(), Access::ReadWrite);
}

#[test]
fn a_device_open_for_writing_cannot_be_mounted_or_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    sparse(&image, 16 << 20);
    run("mkfs.ext4", &["-q", text(&image)]);
    let device = LoopDevice::over(&image);
    let store = open(device.path(), Access::ReadWrite);
    let mount = Command::new("mount").args([device.path(), dir.path()]).output().unwrap();
    if mount.status.success() {
        undo("umount", &[text(dir.path())]); // leave nothing behind, whatever the verdict
    }
    assert!(!mount.status.success(), "the kernel must refuse to mount what we write to");
    for access in ACCESSES {
        assert_eq!(refused(device.path(), access).kind(), ErrorKind::Busy);
    }
    drop(store);
    let _reader = open(device.path(), Access::ReadOnly);
    open(device.path(), Access::ReadOnly);
}

// ---- what is no backing file at all

#[test]
fn only_regular_files_and_block_devices_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
    run("mkfifo", &[text(&pipe)]);
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, kind) in [
        (dir.path(), "a folder"),
        (&pipe, "a named pipe"),
        (&socket, "a socket"),
        (Path::new("/dev/null"), "a character device"),
    ] {
        for access in ACCESSES {
            let e = refused(path, access);
            assert_eq!(e.kind(), ErrorKind::InvalidInput, "{e:?}");
            assert_eq!(
                e.to_string(),
                format!("{}: is {kind}, not a regular file or a block device", path.display())
            );
        }
    }
    let missing = refused(&dir.path().join("missing"), Access::ReadOnly);
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn a_new_file_is_private_and_never_replaces_an_old_one() {
    let (dir, path) = backing();
    std::fs::write(&path, "precious").unwrap();
    let dangling = dir.path().join("dangling");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &dangling).unwrap();
    for taken in [&path, &dangling] {
        let e = FileStore::create_new(taken).map(drop).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Exists, "{e:?}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(!dir.path().join("elsewhere").exists());

    let fresh = dir.path().join("fresh");
    let store = FileStore::create_new(&fresh).unwrap();
    let meta = std::fs::metadata(&fresh).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    assert_eq!(store.id(), StoreId { device: meta.dev(), inode: meta.ino() });
    assert_eq!(
        (store.len().unwrap(), store.access(), store.path()),
        (ByteLen::ZERO, Access::ReadWrite, &*fresh)
    );
}

#[test]
fn a_read_only_store_changes_nothing() {
    let (_dir, path) = backing();
    std::fs::write(&path, vec![7; 8192]).unwrap();
    let store = open(&path, Access::ReadOnly);
    for result in [
        store.write_at(ByteOffset::ZERO, b"x"),
        store.set_len(ByteLen::ZERO),
        store.punch(Extent::from_raw(0, 4096).unwrap()),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    store.sync().unwrap();
    let mut content = Vec::new();
    std::fs::File::open(&path).unwrap().read_to_end(&mut content).unwrap();
    assert_eq!(content, vec![7; 8192]);
}
