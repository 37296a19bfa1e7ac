//! `wrapdisk create`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::context::{self, Context};
use super::{output, prompt, size, unlock, usage};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::luks2::{Header, Holes, Kind, NewHeader, keyslot};
use crate::secret::SecretBytes;
use crate::set::Set;
use crate::set::access::Access;
use crate::store::{Access as StoreAccess, BackingStore, FileStore, LatchedStore, sync_parent_dir};
use crate::units::ByteLen;
use crate::xts::VolumeKey;

/// Make an encrypted disk: a LUKS2 container with a new data key, wrapped by the key of a set
///
/// The file is sparse: an empty disk takes a few blocks. On a block device every sector is written, because what lay
/// there before must not read as data.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk create vm.wd --size 20G
  wrapdisk create vm.wd --size 20G --recovery-passphrase   also opens with a passphrase, here and in cryptsetup
  wrapdisk create vm.wd --size 20G --no-discard            hide which sectors are in use from now on
  wrapdisk create /dev/sdx1 --size 100G --force            over a device that holds something else")]
pub(super) struct Args {
    /// The container: a new file, or a block device
    disk: PathBuf,

    /// Size of the plaintext: 512M, 20G, 1.5T, ... (a multiple of 512 bytes)
    #[arg(long, short, value_name = "SIZE", value_parser = size::parse_disk)]
    size: ByteLen,

    #[command(flatten)]
    options: Options,

    /// Replace what is there: a file in one step when the new one is complete, a device in place
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    output: output::OutputArgs,
}

/// What a new disk is like; shared with `mount --create`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Options {
    /// The disk encryption set whose key wraps the data key [default: default]
    #[arg(long, value_name = "SET")]
    pub(super) set: Option<String>,

    /// Also make a keyslot with a passphrase that is asked for: it opens the disk without the vault
    #[arg(long, conflicts_with = "recovery_file")]
    pub(super) recovery_passphrase: bool,

    /// The same, with the passphrase in FILE (one newline at its end is not part of it)
    #[arg(long, value_name = "FILE")]
    pub(super) recovery_file: Option<PathBuf>,

    /// Never free discarded space: holes would show which sectors are in use
    #[arg(long)]
    pub(super) no_discard: bool,

    /// Write every sector now, so that nothing shows which were used, and dm-crypt reads what we read
    #[arg(long)]
    pub(super) full: bool,

    /// A label for blkid and luksDump (47 bytes at most)
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(super) label: String,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let made = create(context, &args.disk, args.size, &args.options, args.force)?;
    if args.output.json() {
        return output::json(&made);
    }
    output::line(&format!(
        "{}: {} disk, uuid {}, set {}, key {}",
        args.disk.display(),
        size::show(args.size.get()),
        made.uuid,
        made.set,
        made.key
    ))
}

/// What was made.
#[derive(Debug, serde::Serialize)]
pub(super) struct Made {
    disk: PathBuf,
    uuid: String,
    size: u64,
    set: String,
    key: String,
    recovery_keyslot: bool,
}

/// Makes the container. A file appears under its name only when it is complete and durable.
pub(super) fn create(
    context: &Context,
    disk: &Path,
    size: ByteLen,
    options: &Options,
    force: bool,
) -> Result<Made> {
    let recovery = recovery_passphrase(options)?;
    let target = Target::choose(disk, force)?;
    let access = context.access()?;
    let set = access.sets.by_name(options.set.as_deref().unwrap_or(crate::set::first_use::DEFAULT_SET))?;

    let (store, pending) = target.open()?;
    let device = store.is_block_device();
    let full = options.full || device;
    let new = NewHeader {
        label: options.label.clone(),
        kind: Kind::Disk,
        size,
        holes: if full { Holes::None } else { Holes::Zeros },
        discards: !options.no_discard && !full,
        uuid: None,
    };
    let (mut header, key, store) =
        write_container(&access, &set, &new, store, &format!("create {}", disk.display()))
            .map_err(|e| e.at(disk))?;
    if let Some(passphrase) = &recovery {
        keyslot::add(&mut header, &*store, &key, passphrase.expose(), &keyslot::default_kdf()?)?;
    }
    if full {
        fill(&store, &header, &key, disk, size)?;
    }
    store.sync()?;
    pending.keep()?;
    let path = context::absolute(disk)?;
    access.record(&header, &path, context::now())?;
    Ok(Made {
        disk: path,
        uuid: header.uuid().to_owned(),
        size: size.get(),
        set: set.name,
        key: set.active.to_string(),
        recovery_keyslot: recovery.is_some(),
    })
}

fn recovery_passphrase(options: &Options) -> Result<Option<SecretBytes>> {
    match (&options.recovery_file, options.recovery_passphrase) {
        (Some(file), _) => prompt::passphrase_file(file).map(Some),
        (None, true) => prompt::passphrase("Recovery passphrase", true).map(Some),
        (None, false) => Ok(None),
    }
}

type Written = (Header, VolumeKey, Arc<LatchedStore<FileStore>>);

fn write_container(
    access: &Access,
    set: &Set,
    new: &NewHeader,
    store: FileStore,
    reason: &str,
) -> Result<Written> {
    let key = VolumeKey::generate()?;
    let mut header = Header::create(new, &key)?;
    access.add_token(&mut header, set, &key, reason)?;
    header.format(&store)?;
    Ok((header, key, Arc::new(LatchedStore::new(store))))
}

/// Encrypted zeros throughout.
fn fill(
    store: &Arc<LatchedStore<FileStore>>,
    header: &Header,
    key: &VolumeKey,
    path: &Path,
    size: ByteLen,
) -> Result<()> {
    let mut progress = output::Progress::new("writing", size.get());
    let disk = unlock::plain_disk(Arc::clone(store) as _, header, key, ByteLen::ZERO, false)?;
    disk.overwrite(|done| progress.at(done.get())).map_err(|e| e.at(path))
}

/// Where the new container is built.
enum Target {
    Device(PathBuf),
    /// Built beside its final name; with `replace`, over what is there.
    File {
        path: PathBuf,
        replace: bool,
    },
}

impl Target {
    fn choose(disk: &Path, force: bool) -> Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        match std::fs::metadata(disk) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::File { path: disk.to_owned(), replace: false })
            }
            Err(e) => Err(Error::io("create", e).at(disk)),
            Ok(meta) if meta.file_type().is_block_device() => {
                if let Some(found) =
                    FileStore::open(disk, StoreAccess::ReadWrite)?.find_signature()?.filter(|_| !force)
                {
                    return Err(Error::new(ErrorKind::Exists, format!("the device holds {found}"))
                        .at(disk)
                        .hint("if it may be overwritten, add --force"));
                }
                Ok(Self::Device(disk.to_owned()))
            }
            Ok(meta) if !meta.is_file() => {
                Err(usage(format!("{}: found neither a file nor a block device", disk.display())))
            }
            Ok(_) if !force => Err(Error::new(ErrorKind::Exists, "exists already")
                .at(disk)
                .hint("choose another name, or replace it with --force (its data is lost)")),
            Ok(_) => {
                // Replacing the file of a mounted disk would leave the mount with a nameless one.
                drop(FileStore::open(disk, StoreAccess::ReadWrite)?);
                Ok(Self::File { path: disk.to_owned(), replace: true })
            }
        }
    }

    fn open(self) -> Result<(FileStore, Pending)> {
        match self {
            Self::Device(path) => Ok((FileStore::open(&path, StoreAccess::ReadWrite)?, Pending::Device)),
            Self::File { path, replace } => {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let name =
                    path.file_name().ok_or_else(|| usage(format!("{}: not a file name", path.display())))?;
                let temporary =
                    folder.join(format!(".{}.{}.new", name.to_string_lossy(), uuid::Uuid::new_v4().simple()));
                let store = FileStore::create_new(&temporary).map_err(|e| e.at(&path))?;
                Ok((store, Pending::File { temporary, path, replace, kept: false }))
            }
        }
    }
}

/// A container under its temporary name; removed again unless kept.
enum Pending {
    Device,
    File { temporary: PathBuf, path: PathBuf, replace: bool, kept: bool },
}

impl Pending {
    fn keep(mut self) -> Result<()> {
        let Self::File { temporary, path, replace, kept } = &mut self else { return Ok(()) };
        if *replace {
            std::fs::rename(&*temporary, &*path).io_at("replace", &*path)?;
        } else {
            // link(2) refuses an existing name, in one step and on every file system that has hard links.
            match std::fs::hard_link(&*temporary, &*path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Err(Error::new(
                        ErrorKind::Exists,
                        "exists already: made by somebody else meanwhile",
                    )
                    .at(&*path));
                }
                Err(_) => std::fs::rename(&*temporary, &*path).io_at("name", &*path)?,
                Ok(()) => std::fs::remove_file(&*temporary).io_at("remove", &*temporary)?,
            }
        }
        *kept = true;
        sync_parent_dir(path)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Self::File { temporary, kept: false, .. } = self {
            let _ = std::fs::remove_file(temporary);
        }
    }
}
