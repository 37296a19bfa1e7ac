//! What only block devices have: a block size, loop devices over a file, and mounts that claim them.
//!
//! Must never see: the content of a device.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::file::StoreId;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// The smallest unit a device can write or discard, in bytes.
pub(super) fn logical_block_size(device: &File) -> io::Result<u64> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int; the reference is valid for the call and the descriptor is open.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::BLKSSZGET, &mut size) };
    nix::errno::Errno::result(done)?;
    // The kernel allows powers of two up to 64 KiB (BLK_MAX_BLOCK_SIZE).
    u64::try_from(size)
        .ok()
        .filter(|s| s.is_power_of_two() && (512..=65536).contains(s))
        .ok_or_else(|| io::Error::other(format!("the logical block size is {size}, allowed are 512..=65536")))
}

/// True when the kernel can zero ranges of the device without writing them (WRITE ZEROES). False where sysfs does not
/// tell: the caller then writes.
pub(super) fn can_write_zeroes(rdev: u64) -> bool {
    let device = format!("/sys/dev/block/{}:{}", libc::major(rdev), libc::minor(rdev));
    // A partition has no queue of its own; the folder above it is the disk's.
    ["queue", "../queue"].iter().any(|queue| {
        std::fs::read_to_string(format!("{device}/{queue}/write_zeroes_max_bytes"))
            .is_ok_and(|max| max.trim().parse::<u64>().is_ok_and(|max| max > 0))
    })
}

/// EBUSY from an exclusive open says that the kernel itself uses the device; says for what, where that is known.
pub(super) fn explain_busy(e: io::Error, meta: &Metadata, exclusive: bool) -> Error {
    if !exclusive || e.raw_os_error() != Some(libc::EBUSY) || !meta.file_type().is_block_device() {
        return Error::io("open", e);
    }
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    match mounted_at(major, minor) {
        Some(place) => Error::new(ErrorKind::Busy, format!("the device is mounted at {place}"))
            .hint(format!("umount {place}")),
        None => Error::new(ErrorKind::Busy, "the device is in use by the system").hint(
            "a file system, device mapper, RAID, swap or another process has claimed it or a partition of it \
             (see lsblk)",
        ),
    }
    .caused_by(e)
}

/// The first mountpoint of a device, from lines such as `36 35 98:0 / /mnt rw - ext4 /dev/sda1 rw`
/// (proc_pid_mountinfo(5)). File systems with anonymous device numbers (btrfs) are not found.
fn mounted_at(major: u32, minor: u32) -> Option<String> {
    let id = format!("{major}:{minor}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == id).then(|| fields.nth(1).map(str::to_owned))?
    })
}

/// The loop device whose backing file is `id`. A loop device takes no lock on its file, so this is the only way to see
/// that the kernel writes to it.
pub(super) fn loop_over(id: StoreId) -> Result<Option<String>> {
    let sys = Path::new("/sys/block");
    for entry in std::fs::read_dir(sys).io_at("list", sys)? {
        let name = entry.io_at("list", sys)?.file_name();
        let Some(name) = name.to_str().filter(|n| n.starts_with("loop")) else { continue };
        // Only a configured loop device has this file.
        let Ok(backing) = std::fs::read_to_string(sys.join(name).join("loop/backing_file")) else { continue };
        let device = format!("/dev/{name}");
        // Everybody may read the path, but it is of no use when the file was deleted or belongs to another mount
        // namespace. The device itself knows, but not everybody may open it.
        let by_path = std::fs::metadata(backing.trim_end_matches('\n')).map(|m| StoreId::of(&m)).ok();
        if by_path == Some(id) || loop_backing(Path::new(&device)).is_ok_and(|found| found == id) {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// `struct loop_info64` of linux/loop.h; only the first two fields concern us.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    _rest: [u64; 27],
}
/// linux/loop.h; not in libc.
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;

fn loop_backing(device: &Path) -> io::Result<StoreId> {
    let device = File::open(device)?;
    let mut info = LoopInfo64 { device: 0, inode: 0, _rest: [0; 27] };
    // SAFETY: LOOP_GET_STATUS64 writes one struct loop_info64, 232 bytes of integers, which is what `info` is.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &mut info) };
    nix::errno::Errno::result(done)?;
    // The kernel's 32-bit encoding (huge_encode_dev) equals the C library's for majors below 4096: all there are.
    Ok(StoreId { device: info.device, inode: info.inode })
}

const _: () = assert!(size_of::<LoopInfo64>() == 232);
