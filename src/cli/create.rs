//! `wrapdisk create`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::context::{self, Context};
use super::pending::Target;
use super::{output, prompt, size, unlock};
use crate::control::json_path;
use crate::envelope::Kid;
use crate::error::{Error, ErrorKind, Result};
use crate::luks2::{Header, Holes, Kind, NewHeader, keyslot};
use crate::secret::SecretBytes;
use crate::set::Set;
use crate::set::access::Access;
use crate::set::first_use::DEFAULT_SET;
use crate::set::rewrap::{self, Order, Source};
use crate::store::{BackingStore, FileStore, LatchedStore};
use crate::units::{ByteLen, ByteOffset};
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

impl Options {
    /// Was anything said?
    pub(super) fn any(&self) -> bool {
        let Self { set, recovery_passphrase, recovery_file, no_discard, full, label } = self;
        let said = set.is_some() || recovery_file.is_some() || !label.is_empty();
        said || *recovery_passphrase || *no_discard || *full
    }
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
#[serde(rename_all = "camelCase")]
pub(super) struct Made {
    #[serde(with = "json_path")]
    disk: PathBuf,
    uuid: String,
    size: u64,
    set: String,
    key: String,
    recovery_keyslot: bool,
}

/// Makes the container. A file appears under its name only when it is complete and durable, a device has no header
/// before that.
pub(super) fn create(
    context: &Context,
    disk: &Path,
    size: ByteLen,
    options: &Options,
    force: bool,
) -> Result<Made> {
    // What can be refused without asking or making anything comes first.
    let (store, pending) = Target::choose(context, disk, force)?.open()?;
    let recovery = recovery_passphrase(options)?;
    let name = options.set.as_deref().unwrap_or(DEFAULT_SET);
    let access = if name == DEFAULT_SET { context.with_default_set()? } else { context.access()? };
    let set = access.sets.by_name(name)?;

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
    let key = VolumeKey::generate()?;
    let mut header = Header::create(&new, &key).map_err(|e| e.at(disk))?;
    header.reserve(&store).map_err(|e| too_large(e.at(disk)))?;
    // Absolute: who reads the audit does not know where this command was run.
    let named = std::path::absolute(disk).unwrap_or_else(|_| disk.to_owned());
    access.add_token(&mut header, &set, &key, &format!("create {}", named.display()))?;

    let store = Arc::new(LatchedStore::new(store));
    if device {
        blank(&*store, &header).map_err(|e| e.at(disk))?;
    }
    if full {
        fill(&store, &header, &key, size).map_err(|e| too_large(e.at(disk)))?;
    }
    header.format(&*store).map_err(|e| too_large(e.at(disk)))?;
    if let Some(passphrase) = &recovery {
        keyslot::add(&mut header, &*store, &key, passphrase.expose(), &keyslot::default_kdf()?)
            .map_err(|e| e.at(disk))?;
    }
    store.sync()?;
    pending.keep(store.inner())?;
    let path = context::absolute(disk)?;
    access.record(&header, &path, context::now())?;
    let active = follow(&access, &set, &key, &header, store.inner(), &path)?;
    Ok(Made {
        disk: path,
        uuid: header.uuid().to_owned(),
        size: size.get(),
        set: set.name,
        key: active.to_string(),
        recovery_keyslot: recovery.is_some(),
    })
}

/// The set may have been given another key while its disk was made, and whoever rewraps the disks of a set knew nothing of
/// this one. He does from now on, since it is on record. The key that it is under.
fn follow(
    access: &Access,
    began: &Set,
    key: &VolumeKey,
    header: &Header,
    store: &FileStore,
    path: &Path,
) -> Result<Kid> {
    let Some(set) = access.sets.by_id(began.id)?.filter(|set| set.active != began.active) else {
        return Ok(began.active.clone());
    };
    let reason = format!("create {}: the set's key changed meanwhile", path.display());
    let order = Order { set: &set, source: Source::Known(key), sole: false, reason: &reason };
    match rewrap::rewrap(access, order, header, store) {
        Ok(header) => {
            access.record_rewrap(&header, path, context::now())?;
            Ok(set.active)
        }
        Err(refused) => {
            log::warn!(
                "{}",
                refused.error.at(path).hint("wrapdisk set rotate brings it under the set's key").chain()
            );
            Ok(began.active.clone())
        }
    }
}

/// EFBIG is `NoSpace` as well, and what helps is the same.
fn too_large(e: Error) -> Error {
    match e.kind() {
        ErrorKind::NoSpace => e.hint("choose a smaller size, or another place"),
        _ => e,
    }
}

/// An interrupted creation must not leave yesterday's header in front of today's data.
fn blank(store: &dyn BackingStore, header: &Header) -> Result<()> {
    let zeros = vec![0; header.area_len().to_usize().unwrap_or_default()];
    store.write_at(ByteOffset::ZERO, &zeros)?;
    store.sync()
}

fn recovery_passphrase(options: &Options) -> Result<Option<SecretBytes>> {
    match (&options.recovery_file, options.recovery_passphrase) {
        (Some(file), _) => prompt::passphrase_file(file).map(Some),
        (None, true) => prompt::passphrase("Recovery passphrase", true).map(Some),
        (None, false) => Ok(None),
    }
}

/// Encrypted zeros throughout.
fn fill(store: &Arc<LatchedStore<FileStore>>, header: &Header, key: &VolumeKey, size: ByteLen) -> Result<()> {
    let mut progress = output::Progress::new("writing", size.get());
    let disk = unlock::plain_disk(Arc::clone(store) as _, header, key, ByteLen::ZERO, false)?;
    disk.overwrite(|done| progress.at(done.get()))
}
