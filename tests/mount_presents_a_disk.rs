//! Is what a mount shows one file of a fixed size, and nothing else: its name, owner, mode, times and blocks, and what of
//! it can be changed?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use support::{Home, Mount, eventually, finish, noise, run};

const MIB: u64 = 1 << 20;

/// The errno of something that must have failed.
#[track_caller]
fn errno<T: std::fmt::Debug>(done: std::io::Result<T>) -> i32 {
    done.expect_err("this must be refused").raw_os_error().expect("from the kernel")
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// `st_blocks` in bytes, by a fresh stat.
fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

fn mounted(home: &Home) -> Mount<'_> {
    home.create("vm.wd", "8M", &[]);
    home.mount("vm.wd", &[])
}

#[test]
fn a_folder_shows_exactly_one_file() {
    let home = Home::ready();
    let mount = mounted(&home);
    let listed = run("ls", [Path::new("-aU"), &mount.place]);
    assert_eq!(listed.lines().collect::<Vec<_>>(), [".", "..", "disk.img"]);
    File::open(&mount.place).unwrap().sync_all().unwrap();
    let names = std::fs::read_dir(&mount.place).unwrap().map(|e| {
        let e = e.unwrap();
        assert!(e.file_type().unwrap().is_file());
        assert_eq!(e.metadata().unwrap().ino(), std::os::unix::fs::DirEntryExt::ino(&e));
        e.file_name()
    });
    assert_eq!(names.collect::<Vec<_>>(), ["disk.img"]);
    for absent in ["disk.im", "disk.img2", "DISK.IMG", ".hidden", &"n".repeat(255)] {
        assert_eq!(errno(std::fs::metadata(mount.place.join(absent))), libc::ENOENT, "{absent}");
    }
    assert_eq!(errno(std::fs::metadata(mount.file.join("below"))), libc::ENOTDIR);
    assert_eq!(
        std::fs::metadata(mount.place.join("..")).unwrap().ino(),
        home.root().metadata().unwrap().ino()
    );
    mount.unmount();
}

#[test]
fn nothing_can_be_added_to_the_folder_or_taken_from_it() {
    let home = Home::ready();
    let mount = mounted(&home);
    let (file, new) = (&mount.file, &mount.place.join("new"));
    // Into the folder, out of it, and within it: whoever tries is told "not permitted", never "not implemented".
    for (what, code) in [
        ("create", errno(File::create_new(new))),
        ("mkdir", errno(std::fs::create_dir(new))),
        ("mkfifo", errno(nix::unistd::mkfifo(new, nix::sys::stat::Mode::S_IRWXU).map_err(Into::into))),
        ("symlink", errno(symlink("/", new))),
        ("link", errno(std::fs::hard_link(file, new))),
        ("unlink", errno(std::fs::remove_file(file))),
        ("rename", errno(std::fs::rename(file, new))),
        ("tmpfile", errno(OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(&mount.place))),
    ] {
        let allowed: &[i32] =
            if what == "tmpfile" { &[libc::EOPNOTSUPP, libc::EPERM] } else { &[libc::EPERM] };
        assert!(allowed.contains(&code), "{what}: {}", std::io::Error::from_raw_os_error(code));
    }
    assert_eq!(errno(std::fs::remove_dir(file)), libc::ENOTDIR);
    assert_eq!(errno(File::create_new(file)), libc::EEXIST);
    assert_eq!(errno(std::fs::rename(file, home.path("out"))), libc::EXDEV);
    assert_eq!(errno(std::fs::set_permissions(&mount.place, Permissions::from_mode(0o777))), libc::EPERM);
    assert_eq!(errno(open(file).set_len(0)), libc::EPERM);
    assert_eq!(std::fs::read(file).unwrap(), vec![0; 8 << 20], "still there, whole and empty");
    mount.unmount();
}

#[test]
fn a_regular_file_as_mountpoint_becomes_the_disk() {
    let home = Home::ready();
    home.create("vm.wd", "8M", &[]);
    let place = home.path("plain.img");
    std::fs::write(&place, "what was here before").unwrap();
    let mount = home.mount_at("vm.wd", &place, &[]);
    assert_eq!(mount.file, place);
    let meta = place.metadata().unwrap();
    assert!(meta.is_file());
    assert_eq!((meta.len(), meta.mode() & 0o7777, meta.nlink()), (8 * MIB, 0o600, 1));
    let data = noise(1, 100_000);
    open(&place).write_all_at(&data, 4 * MIB - 77).unwrap();
    let mut back = vec![0; data.len()];
    open(&place).read_exact_at(&mut back, 4 * MIB - 77).unwrap();
    assert_eq!(back, data);
    assert_eq!(statvfs(&place).unwrap().block_size(), 4096);
    assert_eq!(errno(std::fs::remove_file(&place)), libc::EBUSY);
    assert_eq!(errno(std::fs::read_dir(&place)), libc::ENOTDIR);
    mount.unmount();
    assert_eq!(std::fs::read(&place).unwrap(), b"what was here before");
}

#[test]
fn the_file_is_the_mounting_users_and_private() {
    let home = Home::ready();
    let mount = mounted(&home);
    let (file, folder) = (mount.file.metadata().unwrap(), mount.place.metadata().unwrap());
    let me = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    assert_eq!((file.uid(), file.gid(), file.mode()), (me.0, me.1, libc::S_IFREG | 0o600));
    assert_eq!((folder.uid(), folder.gid(), folder.mode()), (me.0, me.1, libc::S_IFDIR | 0o500));
    assert_eq!((file.len(), file.nlink(), file.blksize()), (8 * MIB, 1, 4096));
    mount.unmount();
    let mount = home.mount("vm.wd", &["--read-only"]);
    assert_eq!(mount.file.metadata().unwrap().mode() & 0o7777, 0o400);
    mount.unmount();
}

#[test]
fn uid_and_gid_hand_the_file_over() {
    let home = Home::ready();
    home.create("vm.wd", "8M", &[]);
    let mount = home.mount("vm.wd", &["--uid", "12345", "--gid", "23456"]);
    for path in [&mount.file, &mount.place] {
        let meta = path.metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12345, 23456), "{}", path.display());
    }
    assert_eq!(mount.file.metadata().unwrap().mode() & 0o7777, 0o600);
    // Everybody may come here; the file's mode still keeps the others out.
    assert_eq!(mount.place.metadata().unwrap().mode() & 0o7777, 0o555);
    std::fs::set_permissions(home.root(), Permissions::from_mode(0o755)).unwrap();
    let read = |uid: &str| {
        let who = ["--reuid", uid, "--regid", "30000", "--clear-groups", "--inh-caps=-all", "head", "-c1"];
        finish(Command::new("setpriv").args(who).arg(&mount.file))
    };
    assert_eq!(read("12345").ok(), "\0");
    assert!(read("12346").fails(1).contains("Permission denied"));
    std::fs::set_permissions(&mount.file, Permissions::from_mode(0o604)).unwrap();
    assert_eq!(read("12346").ok(), "\0");
    mount.unmount();
}

#[test]
fn mode_and_times_can_be_changed_and_the_owner_cannot() {
    let home = Home::ready();
    let mount = mounted(&home);
    let file = &mount.file;
    std::fs::set_permissions(file, Permissions::from_mode(0o4640)).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o640, "no set-user-id bit on a disk");
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    let times = std::fs::FileTimes::new().set_accessed(then).set_modified(then + Duration::from_secs(1));
    let before = file.metadata().unwrap();
    open(file).set_times(times).unwrap();
    let after = file.metadata().unwrap();
    assert_eq!(after.accessed().unwrap(), then);
    assert_eq!(after.modified().unwrap(), then + Duration::from_secs(1));
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()), "the change is now");
    open(file).write_all_at(b"x", 0).unwrap();
    assert!(file.metadata().unwrap().modified().unwrap() > then + Duration::from_secs(1), "a write is news");
    let me = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    std::os::unix::fs::chown(file, Some(me.0), Some(me.1)).unwrap();
    assert_eq!(errno(std::os::unix::fs::chown(file, Some(me.0 + 1), None)), libc::EPERM);
    assert_eq!(errno(std::os::unix::fs::chown(file, None, Some(me.1 + 1))), libc::EPERM);
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o640, "a refused change changes nothing");
    mount.unmount();
}

#[test]
fn a_disk_keeps_its_size_and_its_bytes() {
    let home = Home::ready();
    let mount = mounted(&home);
    let data = noise(2, 8 << 20);
    open(&mount.file).write_all_at(&data, 0).unwrap();
    let file = open(&mount.file);
    file.set_len(8 * MIB).unwrap();
    for size in [0, 1, 8 * MIB - 1, 8 * MIB + 1, 16 * MIB] {
        assert_eq!(errno(file.set_len(size)), libc::EPERM, "{size}");
        let by_name = finish(Command::new("truncate").args(["-s", &size.to_string()]).arg(&mount.file));
        assert!(by_name.fails(1).contains("Operation not permitted"));
    }
    // What shells and copying programs do to a file that is there.
    assert_eq!(errno(File::create(&mount.file)), libc::EPERM);
    let cp = finish(Command::new("cp").arg("/dev/null").arg(&mount.file));
    assert!(cp.fails(1).contains("Operation not permitted"));
    assert_eq!(file.metadata().unwrap().len(), 8 * MIB);
    assert!(std::fs::read(&mount.file).unwrap() == data, "a refused truncation lost data");
    drop(file);
    mount.unmount();
}

#[test]
fn appending_starts_at_the_end_where_there_is_no_room() {
    let home = Home::ready();
    let mount = mounted(&home);
    let mut file = OpenOptions::new().append(true).read(true).open(&mount.file).unwrap();
    assert_eq!(errno(file.write(b"more")), libc::ENOSPC);
    assert_eq!(file.metadata().unwrap().len(), 8 * MIB);
    let mut byte = [1];
    file.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [0], "nothing landed at the front");
    drop(file);
    mount.unmount();
}

#[test]
fn any_multiple_of_512_is_an_exact_size() {
    let home = Home::ready();
    for (i, size) in [512, 4096 - 512, MIB + 512, 3 * MIB - 512].into_iter().enumerate() {
        let name = format!("{i}.wd");
        home.create(&name, &size.to_string(), &[]);
        let mount = home.mount(&name, &[]);
        let data = noise(size, usize::try_from(size).unwrap());
        assert_eq!(mount.file.metadata().unwrap().len(), size);
        open(&mount.file).write_all_at(&data, 0).unwrap();
        assert!(std::fs::read(&mount.file).unwrap() == data, "{size}");
        assert_eq!(errno(open(&mount.file).write_at(b"x", size)), libc::ENOSPC);
        mount.unmount();
        let mount = home.mount(&name, &["--read-only", "--cache-size", "0"]);
        assert!(std::fs::read(&mount.file).unwrap() == data, "{size}, mounted again");
        mount.unmount();
    }
}

#[test]
fn statfs_tells_loop_devices_that_blocks_can_be_freed() {
    let home = Home::ready();
    let mount = mounted(&home);
    for path in [&mount.place, &mount.file] {
        let all = statvfs(path).unwrap();
        assert_eq!((all.block_size(), all.fragment_size(), all.blocks()), (4096, 4096, 2048));
        assert!(all.blocks_free() > 2000, "{} of 2048 free", all.blocks_free());
    }
    open(&mount.file).write_all_at(&noise(3, 6 << 20), 0).unwrap();
    let used = statvfs(&mount.file).unwrap();
    assert!((480..=512).contains(&used.blocks_free()), "{} of 2048 free", used.blocks_free());
    mount.unmount();
}

#[test]
fn blocks_are_counted_as_they_are_used_and_given_back() {
    let home = Home::ready();
    let mount = mounted(&home);
    let (writer, other) = (open(&mount.file), open(&mount.file));
    // A header of ours is a few KiB; where the file system has larger blocks, a few of those.
    assert!(allocated(&mount.file) < 256 << 10, "a new disk takes {}", allocated(&mount.file));
    writer.write_all_at(&noise(4, 4 << 20), 2 * MIB).unwrap();
    let full = allocated(&mount.file);
    assert!((4 * MIB..4 * MIB + (512 << 10)).contains(&full), "after 4 MiB: {full}");
    assert_eq!(full, other.metadata().unwrap().blocks() * 512);
    // The kernel keeps attributes for an hour: a discard through one descriptor must be news to all.
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&other, punch, 2 << 20, 3 << 20).unwrap();
    let less = allocated(&mount.file);
    assert!(less <= full - 3 * MIB, "{full} before, {less} after a discard of 3 MiB");
    assert_eq!(less, writer.metadata().unwrap().blocks() * 512);
    let mut back = vec![1; 4 << 20];
    writer.read_exact_at(&mut back, 2 * MIB).unwrap();
    assert!(back[..3 << 20].iter().all(|b| *b == 0) && back[3 << 20..] == noise(4, 4 << 20)[3 << 20..]);
    // Zeros that are asked to keep their space keep it.
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&other, zero, 2 << 20, 1 << 20).unwrap();
    assert!(allocated(&mount.file) >= less + MIB);
    drop((writer, other));
    mount.unmount();
}

#[test]
fn what_a_disk_has_not_is_said_to_be_unsupported() {
    let home = Home::ready();
    let mount = mounted(&home);
    // Python speaks xattr and ioctl; the names of the errors are what it must print.
    let script = r"
import errno, fcntl, os, sys
path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
def refused(what, call):
    try:
        call()
        print(what, 'done')
    except OSError as e:
        print(what, errno.errorcode[e.errno])
refused('get', lambda: os.getxattr(path, 'user.x'))
refused('set', lambda: os.setxattr(path, 'user.x', b'1'))
refused('list', lambda: os.listxattr(path))
refused('remove', lambda: os.removexattr(path, 'user.x'))
refused('acl', lambda: os.getxattr(path, 'system.posix_acl_access'))
refused('clone', lambda: fcntl.ioctl(fd, 0x40049409, fd))
refused('blkgetsize64', lambda: fcntl.ioctl(fd, 0x80081272, b'12345678'))
";
    let said = run("python3", ["-c", script, mount.text()]);
    let lines: Vec<_> = said.lines().map(|l| l.split(' ').collect::<Vec<_>>()).collect();
    assert_eq!(lines.len(), 7, "{said}");
    for line in lines {
        let expected = match line[0] {
            "blkgetsize64" => "ENOTTY",
            // The kernel answers for a file system that declares no ACLs, in its own way.
            "acl" => line[1],
            _ => "ENOTSUP",
        };
        assert_eq!(line[1], expected, "{said}");
    }
    mount.unmount();
}

#[test]
fn programs_that_lock_the_image_see_each_others_locks() {
    let home = Home::ready();
    let mount = mounted(&home);
    let lock = |file| nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock);
    let held = lock(open(&mount.file)).unwrap();
    let (_, refused) = lock(open(&mount.file)).unwrap_err();
    assert_eq!(refused, nix::Error::EWOULDBLOCK);
    drop(held);
    lock(open(&mount.file)).unwrap();
    mount.unmount();
}

#[test]
fn a_mount_that_was_detached_leaves_alone_what_is_mounted_there_next() {
    let home = Home::ready();
    let mount = mounted(&home);
    let user = open(&mount.file);
    home.wrapdisk(["umount", "--lazy", mount.place.to_str().unwrap()]).ok();
    let next: PathBuf = mount.place.clone();
    run("mount", [Path::new("-t"), Path::new("tmpfs"), Path::new("tmpfs"), &next]);
    std::fs::write(next.join("not ours"), "x").unwrap();
    user.write_all_at(b"last words", 0).unwrap();
    drop(user);
    mount.wait_for_end();
    let kept = std::fs::read(next.join("not ours"));
    run("umount", [&next]);
    assert_eq!(kept.unwrap(), b"x");
    let again = home.mount("vm.wd", &[]);
    let mut words = [0; 10];
    open(&again.file).read_exact_at(&mut words, 0).unwrap();
    assert_eq!(&words, b"last words");
    eventually("the mount to be of use", || again.file.metadata().ok());
    again.unmount();
}

#[test]
fn the_error_of_a_name_in_a_file_mountpoint_is_plain() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let place = home.path("plain.img");
    File::create(&place).unwrap();
    let mount = home.mount_at("vm.wd", &place, &[]);
    assert_eq!(std::fs::read(place.join("disk.img")).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert!(!place.metadata().unwrap().file_type().is_block_device());
    mount.unmount();
}
