//! `wrapdisk mount`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::{self, Context};
use super::daemon::{self, Spawned};
use super::policy::PolicyArgs;
use super::unlock::{self, Opened, UnlockArgs};
use super::{create, output, size, usage};
use crate::control::live::Facts;
use crate::control::probe::SetProber;
use crate::control::{Bell, LiveMount, MountStatus, Server, Ticker, json_path};
use crate::disk::PlainDisk;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::fuse::{MountConfig, Session, mountpoint};
use crate::guard::guests::Guests;
use crate::guard::{Guard, Place, Responses, Setup};
use crate::journal::Journal;
use crate::revocation::Policy;
use crate::set::container::MountedContainer;
use crate::store::Access as StoreAccess;
use crate::units::ByteLen;

/// Cache when nothing is said (RULINGS 5).
const DEFAULT_CACHE: ByteLen = match ByteLen::new(64 << 20) {
    Some(len) => len,
    None => ByteLen::ZERO,
};

/// Show the plaintext of a disk at a mountpoint
///
/// On a folder, the plaintext is the file disk.img in it; on a regular file, it is that file. The command prints the
/// path of the plaintext and returns when it is usable; the mount stays in the background until it is unmounted.
#[derive(Debug, clap::Args)]
// The last one wins, as in mount(8), where the options of fstab and of the command line come together.
#[command(args_override_self = true)]
#[command(after_long_help = "\
Examples:
  wrapdisk mount vm.wd /mnt/vm                       /mnt/vm/disk.img is the plaintext
  wrapdisk mount --create 1G demo.wd ./demo          make the disk (and the folder) if it is missing
  wrapdisk mount vm.wd /mnt/vm --read-only
  wrapdisk mount vm.wd /mnt/vm --qmp /run/vm.qmp     the guest ends when the key is revoked
  wrapdisk mount old-luks2.img /mnt/old --passphrase a container made by cryptsetup
  mount -t fuse.wrapdisk vm.wd /mnt/vm -o ro,allow_other,cache-size=256M
  /srv/vm.wd /mnt/vm fuse.wrapdisk defaults,nofail 0 0        the same in /etc/fstab

The long options are options of mount(8) as well, which answers with its own exit codes.")]
pub(super) struct Args {
    /// The container: a path, or the uuid of one that was seen before
    pub(super) disk: PathBuf,

    /// An empty folder, or a regular file
    pub(super) mountpoint: PathBuf,

    /// Make a disk of SIZE first if there is none (and the folder, if that is missing)
    #[arg(long, value_name = "SIZE", value_parser = size::parse_disk)]
    pub(super) create: Option<ByteLen>,

    #[command(flatten)]
    pub(super) new: create::Options,

    /// Refuse writes; several read-only mounts may share a disk
    #[arg(long, short)]
    pub(super) read_only: bool,

    /// Let other users reach the mount; the file's owner and mode still decide who may open it
    #[arg(long)]
    pub(super) allow_other: bool,

    /// Owner of the presented file (implies --allow-other) [default: who mounts]
    #[arg(long)]
    pub(super) uid: Option<u32>,

    /// Group of the presented file [default: of who mounts]
    #[arg(long)]
    pub(super) gid: Option<u32>,

    /// Memory for plaintext blocks that were read; 0: none [default: 64M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(super) cache_size: Option<ByteLen>,

    /// Stay in the foreground; messages go to standard error
    #[arg(long, short)]
    pub(super) foreground: bool,

    /// Mount over a folder that is not empty
    #[arg(long)]
    pub(super) nonempty: bool,

    /// The QMP socket of a virtual machine that uses this disk, or will: what happens to it when the key is revoked is
    /// the mount's to say; may be given several times
    #[arg(long, value_name = "SOCKET")]
    pub(super) qmp: Vec<PathBuf>,

    #[command(flatten)]
    policy: PolicyArgs,

    /// Keep trying for this long while the vault cannot be asked, for instance at boot: 5m
    #[arg(long, value_name = "TIME", value_parser = crate::revocation::parse_duration)]
    wait_for_vault: Option<Duration>,

    #[command(flatten)]
    pub(super) unlock: UnlockArgs,

    #[command(flatten)]
    output: output::OutputArgs,

    /// Do not print the path of the plaintext
    #[arg(long, short)]
    quiet: bool,

    /// Threads that serve requests [default: 2 to 4, by processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64), hide_short_help = true)]
    pub(super) threads: Option<u8>,

    /// Largest request, 64K to 1M [default: 1M]
    #[arg(long, value_name = "SIZE", value_parser = parse_request, hide_short_help = true)]
    pub(super) max_request: Option<u32>,
}

fn parse_request(text: &str) -> Result<u32, String> {
    let size = size::parse(text)?.get();
    u32::try_from(size)
        .ok()
        .filter(|n| (64 << 10..=1 << 20).contains(n) && n % 4096 == 0)
        .ok_or_else(|| format!("found {size} bytes, allowed 64K to 1M in steps of 4K"))
}

pub(super) fn run(context: &Context, args: &Args, argv: &[OsString]) -> Result<u8> {
    check(args)?;
    if args.foreground || daemon::is_child() {
        return serve(context, args).map(|()| 0);
    }
    match daemon::spawn(argv.get(1..).unwrap_or_default())? {
        Spawned::Ready(_) if args.quiet => Ok(0),
        Spawned::Ready(said) => output::line(said.trim_end()).map(|()| 0),
        // The child has said why.
        Spawned::Failed(code) => Ok(code),
    }
}

fn serve(context: &Context, args: &Args) -> Result<()> {
    let made_folder = args.create.is_some() && make_missing_folder(&args.mountpoint)?;
    let (mountpoint, layout) = mountpoint::prepare(&args.mountpoint, args.nonempty)?;
    keep_in_sight(context, &mountpoint)?;
    if let Some(size) = args.create.filter(|_| !args.disk.exists())
        && let Err(e) = create::create(context, &args.disk, size, &args.new, false)
    {
        if made_folder {
            let _ = std::fs::remove_dir(&args.mountpoint);
        }
        return Err(e);
    }
    let path = context.container(&args.disk)?;
    let access = if args.read_only { StoreAccess::ReadOnly } else { StoreAccess::ReadWrite };
    let opened = open_in_time(
        context,
        &path,
        access,
        args,
        &format!("mount {} on {}", path.display(), mountpoint.display()),
    )?;
    let policy = opened.policy(&args.policy.change())?;
    let disk = Arc::new(opened.disk(args.cache_size.unwrap_or(DEFAULT_CACHE), args.read_only)?);
    let config = MountConfig {
        source: path,
        mountpoint: mountpoint.clone(),
        layout,
        uid: args.uid.unwrap_or_else(|| nix::unistd::getuid().as_raw()),
        gid: args.gid.unwrap_or_else(|| nix::unistd::getgid().as_raw()),
        allow_other: args.allow_other || args.uid.is_some(),
        threads: args.threads.map(usize::from),
        max_request: args.max_request,
    };
    let session = Session::mount(Arc::clone(&disk), config)?;
    let file = session.presented();
    let facts = Facts {
        mountpoint: mountpoint.clone(),
        file: file.clone(),
        mounted_at: output::time(context::now()),
        key: opened.kid.as_ref().map(ToString::to_string),
    };
    // The key is in the cipher behind the gate now; this copy, and what its way left on the stack, must not outlive the
    // start.
    let path = opened.path.clone();
    let (container, access) = opened.without_key(args.read_only);
    let container = Arc::new(container);
    let (guests, responses) = surroundings(context, args, &facts, &container)?;
    let guard = match &access {
        Some(access) => {
            let prober = SetProber::new(Arc::clone(access), Arc::clone(&container), facts.mountpoint.clone());
            Some(start_guard(&session, &disk, prober, policy, responses)?)
        }
        None => None,
    };
    let state = context.dirs.state.clone();
    let mount =
        Arc::new(LiveMount { facts, disk, container, access, guests, state, bell: Bell::default(), guard });
    let server = Server::start(&context.dirs, &mountpoint, Arc::clone(&mount) as _)?;
    ready(context, args, &file, &mount)?;
    let ticker = Ticker::start(&mount)?;
    crate::secret::scrub_deep_stack();
    let served = session.run().map_err(|e| e.at(&path));
    drop(ticker);
    drop(server);
    served
}

/// The guests of this mount, and what is done about what its guard reports.
fn surroundings(
    context: &Context,
    args: &Args,
    facts: &Facts,
    container: &MountedContainer,
) -> Result<(Arc<Guests>, Arc<Responses>)> {
    let guests = Arc::new(Guests::new(facts.file.clone()));
    for qmp in &args.qmp {
        // Now: a mount in the background leaves this folder.
        guests.add(&std::path::absolute(qmp).io_at("resolve", qmp)?)?;
    }
    let header = container.header();
    let place = Place {
        disk: container.path().to_owned(),
        uuid: header.uuid().to_owned(),
        set: header.tokens().next().map(|(_, token)| token.set().to_owned()).unwrap_or_default(),
        mountpoint: facts.mountpoint.clone(),
        file: facts.file.clone(),
        config: context.dirs.config.clone(),
    };
    let responses = Arc::new(Responses::start(place, Arc::clone(&guests), Journal::system().ok())?);
    Ok((guests, responses))
}

/// From now on the vault has a say in this mount.
fn start_guard(
    session: &Session<PlainDisk>,
    disk: &Arc<PlainDisk>,
    prober: SetProber,
    policy: Policy,
    responses: Arc<Responses>,
) -> Result<Guard> {
    let (forget_pages, settled) = (session.forget_pages(), Arc::clone(disk));
    let settle = move || {
        if let Err(e) = settled.sync() {
            log::error!("sync after the fence: {}", e.chain());
        }
        forget_pages();
    };
    Guard::start(Setup {
        policy,
        uuid: prober.container().uuid(),
        mountpoint: prober.mountpoint().to_owned(),
        disk: Arc::clone(disk),
        prober: Arc::new(prober),
        responder: responses,
        settle: Arc::new(settle),
    })
}

/// Opens it, trying again while the vault cannot be asked and there is time. The lock is not held in between.
fn open_in_time(
    context: &Context,
    path: &Path,
    access: StoreAccess,
    args: &Args,
    reason: &str,
) -> Result<Opened> {
    let until = args.wait_for_vault.map(|time| Instant::now() + time);
    let mut wait = Duration::from_secs(1);
    loop {
        let e = match unlock::open(context, path, access, &args.unlock, reason) {
            Err(e) if e.kind() == ErrorKind::Unreachable => e,
            done => return done,
        };
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let Some(left) = left.filter(|left| !left.is_zero()) else { return Err(e) };
        log::warn!("{}; trying again", e.chain());
        std::thread::sleep(wait.min(left));
        wait = (wait * 2).min(Duration::from_secs(15));
    }
}

/// Says that the mount is usable, to the user or to the parent and to systemd, and leaves the terminal.
fn ready(context: &Context, args: &Args, file: &Path, mount: &LiveMount) -> Result<()> {
    let said = if args.output.json() {
        let container = &mount.container;
        let (disk, uuid) = (json_path::value(container.path()), container.header().uuid().to_owned());
        let value = serde_json::json!({ "file": json_path::value(file), "disk": disk, "uuid": uuid, "pid": std::process::id() });
        value.to_string()
    } else {
        file.display().to_string()
    };
    notify_systemd()?;
    if daemon::is_child() {
        return daemon::detach(&context.dirs.run.join("mount.log"), &said);
    }
    if args.quiet { Ok(()) } else { output::line(&said) }
}

/// `READY=1` to the service manager, when there is one (`sd_notify(3)`: one datagram to the socket in NOTIFY_SOCKET).
pub(super) fn notify_systemd() -> Result<()> {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let sender = std::os::unix::net::UnixDatagram::unbound().io_at("notify systemd", "")?;
    let name = std::os::unix::ffi::OsStrExt::as_bytes(socket.as_os_str());
    let address = match name.strip_prefix(b"@") {
        Some(name) => {
            <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)
        }
        None => std::os::unix::net::SocketAddr::from_pathname(&socket),
    };
    let sent = address.and_then(|address| sender.send_to_addr(b"READY=1\n", &address));
    sent.map(|_| ()).io_at("notify systemd at", Path::new(&socket))
}

/// True when it was missing.
fn make_missing_folder(place: &Path) -> Result<bool> {
    // exists() follows the dead mount's error too: only a name that is free is made.
    match std::fs::symlink_metadata(place) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir(place).io_at("make the mountpoint", place).map(|()| true)
        }
        _ => Ok(false),
    }
}

/// A mount over our own folders would hide its control socket; making that would even wait for the mount to answer.
fn keep_in_sight(context: &Context, mountpoint: &Path) -> Result<()> {
    for dir in [&context.dirs.run, &context.dirs.state] {
        let real = dir.ancestors().find_map(|dir| dir.canonicalize().ok());
        if real.is_some_and(|real| real.starts_with(mountpoint)) {
            let what = format!("mountpoint: a mount here would hide {}, which wrapdisk needs", dir.display());
            return Err(Error::new(ErrorKind::InvalidInput, what)
                .at(mountpoint)
                .hint("choose another place"));
        }
    }
    Ok(())
}

/// For the mount helper: is exactly this mounted already?
pub(super) fn is_mounted(context: &Context, disk: &Path, place: &Path) -> bool {
    let (Ok(disk), Ok(place)) = (context.container(disk), mountpoint::resolve(place)) else { return false };
    let same = |m: &MountStatus| m.disk == disk && m.mountpoint == place && unlock::is_there(m);
    context.mounts().is_ok_and(|mounts| mounts.iter().any(same))
}

/// The error of options that contradict each other.
fn check(args: &Args) -> Result<()> {
    if args.read_only && args.create.is_some() {
        return Err(usage("--create makes a writable disk; it does not go with --read-only"));
    }
    if args.create.is_none() && args.new.any() {
        return Err(usage("an option for a new disk: found without --create, which would make one"));
    }
    Ok(())
}
