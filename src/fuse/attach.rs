//! Making a mount and taking it off again: mount(2) as root, fusermount3 as anybody else.
//!
//! Not by fuser: when a session of 0.18 ends, it takes the mount that is gone for one that lives (`is_mounted` reads
//! POLLERR the wrong way round) and unmounts whatever else lies at the place by then.
//!
//! Must never see: requests, images. Two `unsafe`: the descriptor that fusermount3 sends, and a prctl.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::MsFlags;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::mountpoint;
use crate::error::{Error, ErrorKind, IoContext, Result};

const DEVICE: &str = "/dev/fuse";

/// misc, fuse: in the kernel's list of device numbers.
const DEVICE_NUMBER: (u64, u64) = (10, 229);

/// What the kernel is told of a mount.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The container, for the kernel's books.
    pub(super) source: PathBuf,
    pub(super) mountpoint: PathBuf,
    pub(super) read_only: bool,
    pub(super) allow_other: bool,
}

/// A mount of ours; detached when dropped, unless it was let go of.
#[derive(Debug)]
pub(super) struct Attached {
    mountpoint: PathBuf,
    /// `MAJOR:MINOR` of its file system: somebody else's mount may come to lie at the same place.
    device: String,
    owned: bool,
}

/// Mounts. Every request waits until the returned descriptor is served.
///
/// # Errors
/// `NotFound` without /dev/fuse or fusermount3, `PermissionDenied`, `Busy`.
pub(super) fn attach(wanted: &Wanted) -> Result<(Attached, OwnedFd)> {
    let device = open_device()?;
    let fuse = match by_system_call(wanted, &device) {
        Ok(()) => device.into(),
        Err(nix::Error::EPERM) => by_helper(wanted)?,
        Err(e) => return Err(Error::io("mount", e.into()).at(&wanted.mountpoint)),
    };
    let mountpoint = wanted.mountpoint.clone();
    let found = mountpoint::mounted_at(&mountpoint)?;
    let device = found.map(|entry| entry.device).unwrap_or_default();
    Ok((Attached { mountpoint, device, owned: true }, fuse))
}

impl Attached {
    /// Takes it off now; it ends when its last user is gone. Nothing happens when it is off already.
    ///
    /// # Errors
    /// As [`mountpoint::unmount`].
    pub(super) fn detach(&self) -> Result<()> {
        match mountpoint::mounted_at(&self.mountpoint)? {
            Some(entry) if entry.device == self.device => mountpoint::unmount(&self.mountpoint, true),
            _ => Ok(()),
        }
    }

    /// From here on it ends by itself.
    pub(super) fn let_go(&mut self) {
        self.owned = false;
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.owned
            && let Err(e) = self.detach()
        {
            log::error!("{}", e.chain());
        }
    }
}

fn open_device() -> Result<File> {
    let missing = |found: &str| {
        Error::new(ErrorKind::NotFound, found)
            .at(DEVICE)
            .hint("load the kernel module with: modprobe fuse; in a container, pass --device /dev/fuse")
    };
    let file = match File::options().read(true).write(true).open(DEVICE) {
        Ok(file) => file,
        Err(e) => match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => return Err(missing("not found")),
            Some(libc::EACCES) => {
                let error = Error::io("open", e).at(DEVICE);
                return Err(error.hint("the user needs read and write permission on /dev/fuse"));
            }
            _ => {
                let error = Error::io("open", e).at(DEVICE);
                return Err(error.hint("in a container, pass --device /dev/fuse"));
            }
        },
    };
    let meta = file.metadata().io_at("look at", DEVICE)?;
    let number = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    if meta.file_type().is_char_device() && number == DEVICE_NUMBER {
        Ok(file)
    } else {
        Err(missing("found something else, allowed the character device 10:229"))
    }
}

fn by_system_call(wanted: &Wanted, device: &File) -> nix::Result<()> {
    let kind = std::fs::metadata(&wanted.mountpoint).map_or(0, |meta| meta.mode());
    let mut data = format!(
        "fd={},rootmode={kind:o},user_id={},group_id={},default_permissions,subtype=wrapdisk",
        device.as_raw_fd(),
        nix::unistd::getuid(),
        nix::unistd::getgid(),
    );
    if wanted.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    flags.set(MsFlags::MS_RDONLY, wanted.read_only);
    nix::mount::mount(
        Some(wanted.source.as_path()),
        &wanted.mountpoint,
        Some("fuse"),
        flags,
        Some(data.as_str()),
    )
}

/// fusermount3 mounts in the user's name and sends the descriptor back over a socket.
fn by_helper(wanted: &Wanted) -> Result<OwnedFd> {
    let mut options = format!(
        "fsname={},subtype=wrapdisk,default_permissions,nodev,nosuid,noexec",
        option_value(&wanted.source)
    );
    for (option, on) in [("ro", wanted.read_only), ("allow_other", wanted.allow_other)] {
        if on {
            options.push(',');
            options.push_str(option);
        }
    }
    let (ours, theirs) = UnixStream::pair().io_at("make a socket", "")?;
    let mut command = fusermount();
    // Its standard input, because that needs nothing to be kept open over exec.
    command.env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs));
    command.args(["-o", &options, "--"]).arg(&wanted.mountpoint);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(|e| {
        Error::io("run fusermount3", e)
            .at(&wanted.mountpoint)
            .hint("an ordinary user mounts through fusermount3: install the package fuse3")
    })?;
    drop(command); // it holds the other end of the socket
    let received = receive(&ours);
    let done = child.wait_with_output().io_at("wait for fusermount3", "")?;
    let said = String::from_utf8_lossy(&done.stderr);
    match received {
        Ok(Some(fuse)) if done.status.success() => Ok(fuse),
        Err(e) => Err(Error::io("mount", e.into()).at(&wanted.mountpoint)),
        _ => Err(refused(&wanted.mountpoint, said.trim())),
    }
}

/// `None` when the other side closed without sending.
fn receive(socket: &UnixStream) -> nix::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut room = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags) {
            Err(nix::Error::EINTR) => {}
            other => break other?,
        }
    };
    let fds = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows of it.
    Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn refused(mountpoint: &Path, said: &str) -> Error {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let kind = if has(&["in use", "busy"]) {
        ErrorKind::Busy
    } else if has(&["only allowed", "ermission denied", "not permitted", "no write access", "not owned"]) {
        ErrorKind::PermissionDenied
    } else {
        ErrorKind::Other
    };
    let error = Error::new(kind, format!("mount: {said}")).at(mountpoint);
    if has(&["user_allow_other"]) {
        error.hint("--allow-other needs the line user_allow_other in /etc/fuse.conf")
    } else if has(&["no write access", "not owned"]) {
        error.hint("an ordinary user can mount only on a folder or file that is theirs to write")
    } else if has(&["not permitted"]) {
        error.hint("mounting needs the right CAP_SYS_ADMIN: in a container, pass --cap-add SYS_ADMIN")
    } else {
        error
    }
}

/// Commas end an option and backslashes escape in fusermount3's reading.
fn option_value(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,")
}

/// fusermount3 from the PATH, or from where packages put it: the PATH of a service may be short.
pub(super) fn fusermount() -> Command {
    let name = Path::new("fusermount3");
    let usual = Path::new("/usr/bin/fusermount3");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    Command::new(if found || !usual.exists() { name } else { usual })
}

/// For a loop device over the mount: memory that this thread, and those it starts from here on, ask for while they serve
/// never waits for a write-back to that device, which would wait for them (PR_SET_IO_FLUSHER(2const)).
pub(super) fn serve_writeback() {
    // include/uapi/linux/prctl.h; libc has no name for it.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: sets two flags of the calling thread and takes no pointer.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } != 0 {
        // It needs CAP_SYS_RESOURCE. Who has not may not set up loop devices either.
        log::debug!("PR_SET_IO_FLUSHER: {}", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_survive_the_options_of_fusermount() {
        assert_eq!(option_value(Path::new("/a,b\\c d")), "/a\\,b\\\\c d");
    }
}
