//! One mount from its first to its last request: mount, worker threads, signals, end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use fuser::{Config, SessionACL};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::adapter::Adapter;
use super::attach::{self, Attached, Wanted};
use super::look::{FILE_NAME, Layout, Presented};
use crate::disk::Image;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// Requests up to this size: the largest that kernels send by default (fs.fuse.max_pages_limit). Smaller ones let two
/// threads share a read of 1 MiB, but cost wake-ups: 256 KiB measured 0.75 to 0.86 of this for one reader, and no more for
/// many.
const MAX_REQUEST: u32 = 1024 * 1024;

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
    signals: Signals,
    attached: Attached,
    file: fuser::INodeNo,
}

/// What happens to a session that serves.
enum Event {
    /// SIGTERM, SIGINT or SIGHUP.
    Signal,
    /// The last user is gone, and so is the mount.
    Served(Result<()>),
}

impl<I: Image> std::fmt::Debug for Session<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<I: Image> Session<I> {
    /// Mounts. Requests are answered once [`Session::run`] is called.
    ///
    /// # Errors
    /// `NotFound` without /dev/fuse, `PermissionDenied`, `Busy`.
    pub fn mount(image: Arc<I>, config: MountConfig) -> Result<Self> {
        let look =
            Presented { layout: config.layout, uid: config.uid, gid: config.gid, shared: config.allow_other };
        let mut fuse = Config::default();
        fuse.n_threads = Some(config.threads.unwrap_or_else(default_threads));
        // Before there is a mount: a signal between mounting and serving would leave a dead one behind.
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).io_at("watch signals", "")?;
        let (attached, device) = attach::attach(&Wanted {
            source: config.source.clone(),
            mountpoint: config.mountpoint.clone(),
            read_only: image.is_read_only(),
            allow_other: config.allow_other,
        })?;
        let adapter = Adapter::new(Arc::clone(&image), look, config.max_request.unwrap_or(MAX_REQUEST));
        // Who may come here is the kernel's to decide, by allow_other: fuser's own check would also refuse requests on files
        // that were opened by who may and then handed on.
        let session = fuser::Session::from_fd(adapter, device, SessionACL::All, fuse)
            .io_at("greet the kernel at", &config.mountpoint)?;
        Ok(Self { session, image, config, signals, attached, file: look.file() })
    }

    /// The file that holds the plaintext.
    #[must_use]
    pub fn presented(&self) -> PathBuf {
        presented(&self.config.mountpoint, self.config.layout)
    }

    /// Has the kernel forget the pages of the plaintext that it keeps for those who map it. May wait for requests under way.
    pub fn forget_pages(&self) -> impl Fn() + Send + Sync + use<I> {
        let (notifier, file) = (self.session.notifier(), self.file);
        move || {
            // Nobody has mapped it: the kernel knows no such inode.
            if let Err(e) = notifier
                .inval_inode(file, 0, 0)
                .or_else(|e| if e.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(e) })
            {
                log::warn!("the kernel may keep pages of the plaintext: {e}");
            }
        }
    }

    /// Serves until somebody unmounts. SIGTERM, SIGINT and SIGHUP sync, detach, and end at the last close or after ten
    /// seconds: those who still use it then are left behind, and get errors once the process ends. Everything written is
    /// synced before this returns.
    ///
    /// # Errors
    /// `Io` when the last sync failed, or FUSE did.
    pub fn run(self) -> Result<()> {
        let Self { session, image, config, signals, mut attached, file: _ } = self;
        let (tell, events) = channel();
        let watch = signals.handle();
        let watcher = start("signals", tell.clone(), move |tell| watch_signals(signals, tell))?;
        // Not on this thread: fuser blocks in read(2) until the last user is gone, and nothing else ends that.
        start("serve", tell, move |tell| {
            attach::serve_writeback();
            let served = session.run().io_at("serve", &config.mountpoint);
            let _ = tell.send(Event::Served(served));
        })?;
        let served = wait(&events, &attached, &*image);
        if served.is_ok() {
            attached.let_go();
        }
        watch.close();
        let _ = watcher.join();
        image.sync()?;
        served
    }
}

fn start(
    name: &str,
    tell: Sender<Event>,
    work: impl FnOnce(&Sender<Event>) + Send + 'static,
) -> Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&tell)).io_at("start a thread", "")
}

fn watch_signals(mut signals: Signals, tell: &Sender<Event>) {
    for _ in signals.forever() {
        if tell.send(Event::Signal).is_err() {
            return;
        }
    }
}

/// Until the session has ended, or too long after a signal.
fn wait(events: &Receiver<Event>, attached: &Attached, image: &dyn Image) -> Result<()> {
    let mut deadline: Option<Instant> = None;
    loop {
        let left = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
        match events.recv_timeout(left) {
            Ok(Event::Served(served)) => return served,
            Ok(Event::Signal) if deadline.is_some() => {}
            Ok(Event::Signal) => {
                stop(attached, image);
                deadline = Some(Instant::now() + LAST_USER);
            }
            Err(RecvTimeoutError::Timeout) => {
                log::warn!("still in use after {} s; leaving its users behind", LAST_USER.as_secs());
                return Ok(());
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(ErrorKind::Other, "the threads that serve the mount are gone"));
            }
        }
    }
}

fn stop(attached: &Attached, image: &dyn Image) {
    if let Err(e) = image.sync() {
        log::error!("sync before the end: {}", e.chain());
    }
    if let Err(e) = attached.detach() {
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
