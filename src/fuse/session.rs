//! One mount from its first to its last request: mount, worker threads, signals, end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, MountOption, SessionACL};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::adapter::{Adapter, FILE_NAME};
use super::mountpoint;
use super::{Layout, Presented};
use crate::disk::Image;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// Requests up to this size. The kernel splits larger ones and keeps several in flight, so that two cores copy and decrypt
/// at once; see the README for what other sizes measured.
const MAX_REQUEST: u32 = 256 * 1024;

/// How long a stop waits for the last user after the mount has been detached (RULINGS 5).
const LAST_USER: Duration = Duration::from_secs(10);

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The container, for the kernel's books.
    pub source: PathBuf,
    /// A folder or regular file, as `mountpoint::prepare` returned it.
    pub mountpoint: PathBuf,
    /// Folder or file.
    pub layout: Layout,
    /// Who owns the presented file.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Others may reach the mount (the file's mode still decides).
    pub allow_other: bool,
    /// Worker threads; `None` chooses.
    pub threads: Option<usize>,
    /// Largest request in bytes; `None` chooses.
    pub max_request: Option<u32>,
}

/// A mount that answers.
pub struct Session<I: Image> {
    session: fuser::Session<Adapter<I>>,
    image: Arc<I>,
    config: MountConfig,
}

impl<I: Image> std::fmt::Debug for Session<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Ends a session from another thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    mountpoint: PathBuf,
}

impl Stopper {
    /// Detaches the mount; the session ends when the last user is gone.
    ///
    /// # Errors
    /// As [`mountpoint::unmount`].
    pub fn detach(&self) -> Result<()> {
        mountpoint::unmount(&self.mountpoint, true)
    }
}

impl<I: Image> Session<I> {
    /// Mounts. Requests are answered once [`Session::run`] is called.
    ///
    /// # Errors
    /// `NotFound` without /dev/fuse, `PermissionDenied`, `Busy`.
    pub fn mount(image: Arc<I>, config: MountConfig) -> Result<Self> {
        check_device()?;
        let look = Presented {
            layout: config.layout,
            uid: config.uid,
            gid: config.gid,
            max_request: config.max_request.unwrap_or(MAX_REQUEST),
        };
        let mut fuse = Config::default();
        fuse.mount_options = vec![
            MountOption::FSName(option_value(&config.source)),
            MountOption::CUSTOM("subtype=wrapdisk".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
        ];
        if image.is_read_only() {
            fuse.mount_options.push(MountOption::RO);
        }
        fuse.acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
        fuse.n_threads = Some(config.threads.unwrap_or_else(default_threads));
        let session = fuser::Session::new(Adapter::new(Arc::clone(&image), look), &config.mountpoint, &fuse)
            .map_err(|e| mount_failed(e, &config))?;
        Ok(Self { session, image, config })
    }

    /// The file that holds the plaintext.
    #[must_use]
    pub fn presented(&self) -> PathBuf {
        presented(&self.config.mountpoint, self.config.layout)
    }

    /// Serves until somebody unmounts. SIGTERM, SIGINT and SIGHUP sync, detach, and end at the last close or after ten
    /// seconds. Everything written is synced before this returns.
    ///
    /// # Errors
    /// `Io` when the last sync failed, or FUSE did.
    pub fn run(self) -> Result<()> {
        let stopper = Stopper { mountpoint: self.config.mountpoint.clone() };
        let image = Arc::clone(&self.image);
        let mut signals =
            signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).io_at("watch signals", "")?;
        let handle = signals.handle();
        let (ended, last) = std::sync::mpsc::channel::<()>();
        let watcher = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            if signals.forever().next().is_none() {
                return;
            }
            stop(&stopper, &*image);
            if last.recv_timeout(LAST_USER) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                log::warn!("still in use after {} s; leaving its users behind", LAST_USER.as_secs());
                let _ = image.sync();
                // The only way out: fuser's threads block in read(2) until the last user is gone.
                terminate();
            }
        });
        let watcher = watcher.io_at("start a thread", "")?;
        let served = self.session.run().io_at("serve", &self.config.mountpoint);
        drop(ended);
        handle.close();
        let _ = watcher.join();
        self.image.sync()?;
        served
    }
}

/// Ends the process at once with code 0; the data has been synced.
#[allow(clippy::exit)]
fn terminate() -> ! {
    std::process::exit(0)
}

fn stop(stopper: &Stopper, image: &dyn Image) {
    if let Err(e) = image.sync() {
        log::error!("sync before the end: {}", e.chain());
    }
    if let Err(e) = stopper.detach() {
        log::error!("{}", e.chain());
    }
}

/// Where the plaintext is to be found.
#[must_use]
pub(crate) fn presented(mountpoint: &Path, layout: Layout) -> PathBuf {
    match layout {
        Layout::Directory => mountpoint.join(FILE_NAME),
        Layout::File => mountpoint.to_owned(),
    }
}

/// Two at least, so that one request's copy overlaps another's crypto; more than four gained nothing on small machines.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4)
}

/// Commas end an option and backslashes escape in fusermount's reading.
fn option_value(path: &Path) -> String {
    path.to_string_lossy().replace(['\\', ','], "_")
}

fn check_device() -> Result<()> {
    let device = Path::new("/dev/fuse");
    match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::new(ErrorKind::NotFound, "not found")
                .at(device)
                .hint("load the kernel module with: modprobe fuse; in a container, pass --device /dev/fuse"))
        }
        Err(e) => {
            Err(Error::io("open", e).at(device).hint("the user needs read and write permission on /dev/fuse"))
        }
    }
}

fn mount_failed(e: std::io::Error, config: &MountConfig) -> Error {
    let said = e.to_string();
    let error = Error::io("mount", e).at(&config.mountpoint);
    if said.contains("user_allow_other") {
        return error.hint("--allow-other needs the line user_allow_other in /etc/fuse.conf");
    }
    if said.contains("No such file") {
        return error.hint("an ordinary user mounts through fusermount3: install the package fuse3");
    }
    error
}
