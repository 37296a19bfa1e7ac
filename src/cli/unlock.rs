//! Opening a container: lock, header, key, disk. Shared by every command that needs the data or the key.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::{self, Context};
use super::prompt;
use crate::cache::BlockCache;
use crate::control::MountStatus;
use crate::disk::PlainDisk;
use crate::envelope::Kid;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountpoint;
use crate::luks2::{Header, Holes, Kind, keyslot};
use crate::revocation::{Policy, PolicyChange};
use crate::set::SetStore;
use crate::set::access::Access;
use crate::set::container::MountedContainer;
use crate::store::{Access as StoreAccess, BackingStore, FileStore, LatchedStore};
use crate::units::ByteLen;
use crate::vault::local::LocalVault;
use crate::volume::{EncryptedVolume, Gate, Layout};
use crate::xts::{Engine, VolumeKey, XtsCipher};

/// How to get the volume key.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct UnlockArgs {
    /// Open with a passphrase (a recovery keyslot) instead of the vault: asks for it on the terminal
    #[arg(long)]
    pub(super) passphrase: bool,

    /// Read the passphrase from FILE ("-": standard input); a newline at its end need not be part of it
    #[arg(long, value_name = "FILE")]
    pub(super) passphrase_file: Option<PathBuf>,

    /// Most memory that a passphrase's Argon2 may use, up to 4G
    #[arg(long, value_name = "SIZE", value_parser = super::size::parse, hide_short_help = true)]
    pub(super) max_kdf_memory: Option<ByteLen>,
}

impl UnlockArgs {
    pub(super) fn wants_passphrase(&self) -> bool {
        self.passphrase || self.passphrase_file.is_some()
    }
}

/// A locked container whose key passed every check.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) path: PathBuf,
    pub(super) store: Arc<LatchedStore<FileStore>>,
    pub(super) header: Header,
    pub(super) key: VolumeKey,
    /// The key version that opened it; `None`: a passphrase did.
    pub(super) kid: Option<Kid>,
    /// The sets and vaults that were asked.
    access: Option<Access>,
}

/// How long a daemon whose mount is gone may take for its last sync.
const LAST_SYNC: Duration = Duration::from_secs(10);

/// And from there, when it answers no more, to its end.
const LAST_BREATH: Duration = Duration::from_millis(200);

/// Locks a container, or whatever is there. On a busy one, says who has it.
pub(super) fn lock(context: &Context, path: &Path, access: StoreAccess) -> Result<FileStore> {
    let start = Instant::now();
    let mut seen_ending = false;
    loop {
        let busy = match FileStore::open(path, access) {
            Err(e) if e.kind() == ErrorKind::Busy => e,
            done => return done,
        };
        let mount = context.mount_of(path).ok().flatten();
        // umount(8) does not wait for the daemon, so whoever mounts again at once meets its last moments.
        seen_ending |= mount.as_ref().is_some_and(is_ending);
        let still = mount.as_ref().is_none_or(is_ending);
        let patience = if seen_ending { LAST_SYNC } else { LAST_BREATH };
        if !still || start.elapsed() > patience {
            return Err(name_the_holder(path, mount.as_ref(), busy));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Is the mount gone already, and only the daemon is not? One in another mount namespace cannot be seen from here; which one
/// a daemon is in cannot be read of one that is ending, nor by an ordinary user.
fn is_ending(mount: &MountStatus) -> bool {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let elsewhere = namespace(&mount.pid.to_string()).is_some_and(|theirs| namespace("self") != Some(theirs));
    !elsewhere && !is_there(mount)
}

/// Does the kernel have this mount? A daemon still answers for a moment after it was unmounted.
pub(super) fn is_there(mount: &MountStatus) -> bool {
    mountpoint::mounted_at(&mount.mountpoint).ok().flatten().is_some_and(|m| m.fs_type == mountpoint::FS_TYPE)
}

/// Locks a container and reads its header.
pub(super) fn load(context: &Context, path: &Path, access: StoreAccess) -> Result<(FileStore, Header)> {
    read(lock(context, path, access)?, path)
}

fn read(store: FileStore, path: &Path) -> Result<(FileStore, Header)> {
    let header = Header::load(&store).map_err(|e| e.at(path))?;
    for warning in header.warnings() {
        log::warn!("{}: {warning}", path.display());
    }
    if store.access() == StoreAccess::ReadWrite {
        header.repair_copies(&store).map_err(|e| e.at(path))?;
    }
    Ok((store, header))
}

/// Reads a header beside its owner: a live mount of ours holds the lock, and two copies with checksums make reading
/// without it safe (a commit in progress leaves one of them whole at every moment).
pub(super) fn load_shared(context: &Context, path: &Path) -> Result<(FileStore, Header)> {
    match FileStore::open(path, StoreAccess::ReadOnly) {
        Err(busy) if busy.kind() == ErrorKind::Busy => match context.mount_of(path)? {
            Some(_) => read(FileStore::peek(path)?, path),
            None => Err(busy),
        },
        store => read(store?, path),
    }
}

fn name_the_holder(path: &Path, mount: Option<&MountStatus>, busy: Error) -> Error {
    let Some(mount) = mount else { return busy };
    let place = mount.mountpoint.display();
    Error::new(ErrorKind::Busy, format!("in use: mounted at {place} by process {}", mount.pid))
        .at(path)
        .hint(format!("unmount it first: wrapdisk umount {place}"))
}

/// Locks, loads and unlocks.
pub(super) fn open(
    context: &Context,
    path: &Path,
    access: StoreAccess,
    args: &UnlockArgs,
    reason: &str,
) -> Result<Opened> {
    let (store, header) = load(context, path, access)?;
    if access == StoreAccess::ReadWrite && header.kind() != Kind::Disk {
        return Err(Error::new(
            ErrorKind::ReadOnly,
            format!("kind: found {}, allowed disk for a writable mount", header.kind()),
        )
        .at(path)
        .hint("mount it with --read-only"));
    }
    let (key, opener) = unlock(context, path, (&store, &header), args, reason)?;
    let (kid, access) = opener.unzip();
    Ok(Opened { path: path.to_owned(), store: Arc::new(LatchedStore::new(store)), header, key, kid, access })
}

/// The volume key.
pub(super) fn key(
    context: &Context,
    path: &Path,
    container: (&FileStore, &Header),
    args: &UnlockArgs,
    reason: &str,
) -> Result<(VolumeKey, Option<Kid>)> {
    let (key, opener) = unlock(context, path, container, args, reason)?;
    Ok((key, opener.map(|(kid, _)| kid)))
}

/// The volume key, the version of the vault's key that unwrapped it, and who was asked; a passphrase has none.
fn unlock(
    context: &Context,
    path: &Path,
    (store, header): (&FileStore, &Header),
    args: &UnlockArgs,
    reason: &str,
) -> Result<(VolumeKey, Option<(Kid, Access)>)> {
    if args.wants_passphrase() {
        forbidden_by_set(context, path, header)?;
        let key = by_passphrase(path, header, store, args)?;
        audit_recovery(context, header, reason);
        return Ok((key, None));
    }
    if header.is_plain() {
        let message = "tokens: found no wrapdisk-vault token, allowed 1 to 8";
        let e = Error::new(ErrorKind::Unsupported, message).at(path);
        return Err(if header.keyslots().is_empty() {
            e.hint("nothing opens it, there is no keyslot either; put a backup back with: wrapdisk header restore FILE BACKUP")
        } else {
            e.hint("this is a plain LUKS2 container; open it with --passphrase")
        });
    }
    let (vault, unlocked) = context
        .existing()
        .and_then(|vault| vault.unlock(header, &named(reason, header)).map(|unlocked| (vault, unlocked)))
        .map_err(|e| or_by_passphrase(about(path, &e), header))?;
    for warning in &unlocked.warnings {
        log::warn!("{}: {warning}", path.display());
    }
    vault.record(header, path, context::now())?;
    Ok((unlocked.key, Some((unlocked.kid, vault))))
}

/// For the audit: which disk, of which set.
fn named(reason: &str, header: &Header) -> String {
    let set = header.tokens().next().and_then(|(_, token)| token.set().split('/').next()).unwrap_or_default();
    format!("{reason} disk={} set={set}", header.uuid())
}

/// Reminds of the other way in, where there is one and nothing better is known.
fn or_by_passphrase(e: Error, header: &Header) -> Error {
    let useful = matches!(e.kind(), ErrorKind::Denied | ErrorKind::Unreachable) && e.advice().is_none();
    if useful && !header.keyslots().is_empty() {
        return e.hint("it has a recovery passphrase, which opens it without the vault: --passphrase");
    }
    e
}

/// A set may insist on its vault (RULINGS 27). Where the sets are lost, nobody can say so any more.
fn forbidden_by_set(context: &Context, path: &Path, header: &Header) -> Result<()> {
    let state = &context.dirs.state;
    if !state.join("sets.db").exists() {
        return Ok(());
    }
    let Ok(sets) = SetStore::open(state) else { return Ok(()) };
    for id in header.tokens().filter_map(|(_, token)| token.set_id()) {
        let Some(set) = sets.by_id(id)? else { continue };
        if !sets.policy(id)?.recovery_mounts {
            let message = format!("the set \"{}\" forbids opening its disks by passphrase", set.name);
            return Err(Error::new(ErrorKind::Denied, message).at(path).hint(format!(
                "who may change the set: wrapdisk set update {} --recovery-mounts allow",
                set.name
            )));
        }
    }
    Ok(())
}

/// A recovery must work when the vault is gone: what cannot be audited is said, not refused.
fn audit_recovery(context: &Context, header: &Header, reason: &str) {
    if !LocalVault::exists(&context.dirs.state) {
        return;
    }
    let noted = context
        .existing()
        .and_then(|access| Ok(access.vault.note_recovery(header.uuid(), &access.vault.admin(reason))?));
    if let Err(e) = noted {
        log::warn!("the audit does not show that a passphrase opened this disk: {}", e.chain());
    }
}

/// Says which disk it was about, and keeps what it was on: a vault's answer names its key or its file.
fn about(path: &Path, e: &Error) -> Error {
    let about = Error::new(e.kind(), e.chain()).at(path);
    e.advice().map(str::to_owned).into_iter().fold(about, Error::hint)
}

fn by_passphrase(path: &Path, header: &Header, store: &FileStore, args: &UnlockArgs) -> Result<VolumeKey> {
    let mut limits = keyslot::Limits::default();
    if let Some(memory) = args.max_kdf_memory {
        limits.max_memory_kib = u32::try_from(memory.get() / 1024).unwrap_or(u32::MAX);
    }
    let unlock =
        |passphrase: &[u8]| keyslot::unlock(header, store, passphrase, &limits).map_err(|e| about(path, &e));
    let (slot, key) = match &args.passphrase_file {
        // Without a keyslot there is nothing to ask for; its refusal says so.
        _ if header.keyslots().is_empty() => unlock(&[])?,
        Some(file) => by_file(file, unlock)?,
        None => unlock(prompt::passphrase("Passphrase", false)?.expose())?,
    };
    log::info!("keyslot {slot} opened it");
    if header.is_plain() {
        log::warn!("this header carries no MAC of ours: nothing proves that it was not tampered with");
    } else {
        for warning in header.verify(None, &key).map_err(|e| about(path, &e))? {
            log::warn!("{warning}");
        }
    }
    Ok(key)
}

/// The newline at the end of a text file is not meant; cryptsetup takes a key file as it is, and a random one may end so.
fn by_file<T>(file: &Path, unlock: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    let whole = prompt::secret_file(file)?;
    let text = prompt::without_newline(whole.expose(), file)?;
    match unlock(text) {
        Err(e) if e.kind() == ErrorKind::WrongKey && text.len() < whole.len() => unlock(whole.expose()),
        done => done,
    }
}

impl Opened {
    /// The plaintext disk over this container.
    pub(super) fn disk(&self, cache: ByteLen, read_only: bool) -> Result<PlainDisk> {
        plain_disk(Arc::clone(&self.store) as _, &self.header, &self.key, cache, read_only)
    }

    /// What is agreed on for the end of its key: by its set, and by who mounts it.
    pub(super) fn policy(&self, change: &PolicyChange) -> Result<Policy> {
        let set = self.header.tokens().find_map(|(_, token)| token.set_id());
        let policy = match (&self.access, set) {
            (Some(access), Some(set)) => access.sets.policy(set)?,
            _ => Policy::default(),
        };
        policy.with(change)
    }

    /// What is left once the key is in its cipher: this copy of it is wiped.
    pub(super) fn without_key(self, read_only: bool) -> (MountedContainer, Option<Arc<Access>>) {
        let Self { path, store, header, key, kid: _, access } = self;
        drop(key);
        (MountedContainer::new(path, store, header, read_only), access.map(Arc::new))
    }
}

/// A plaintext disk from its parts.
pub(super) fn plain_disk(
    store: Arc<dyn BackingStore>,
    header: &Header,
    key: &VolumeKey,
    cache: ByteLen,
    read_only: bool,
) -> Result<PlainDisk> {
    crate::xts::self_test(Engine::best())?;
    let segment = header.segment();
    let layout = Layout {
        offset: segment.offset,
        sector_size: segment.sector_size,
        size: header.size(),
        zero_holes: header.holes() == Holes::Zeros,
        discards: header.discards(),
    };
    let cipher = XtsCipher::new(key, segment.sector_size, Engine::best())?;
    let volume = EncryptedVolume::new(store, layout, Gate::open(cipher))?;
    Ok(PlainDisk::new(volume, BlockCache::new(cache)?, read_only))
}
