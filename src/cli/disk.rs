//! `wrapdisk disk update`: another set for a disk, mounted or not.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::context::{self, Context};
use super::unlock::{self, UnlockArgs};
use super::{output, set};
use crate::control::json_path;
use crate::control::protocol::Rewrap;
use crate::error::{Error, ErrorKind, Result};
use crate::luks2::Header;
use crate::set::Set;
use crate::set::access::Access;
use crate::set::rewrap::{self, Order, Source};
use crate::store::{Access as StoreAccess, FileStore};

/// Change which set a disk belongs to
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk disk update vm.wd --set prod")]
pub(super) enum Command {
    /// Give a disk another set, and so another key; it may be mounted
    Update(Update),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk disk update vm.wd --set prod
  wrapdisk disk update /mnt/vm --set prod                  while it is mounted
  wrapdisk disk update vm.wd --set prod --passphrase       the old key is denied; a recovery passphrase opens it

The data key stays: it is unwrapped with the old key and wrapped with the new one. Where the old set is denied its
key, another set's identity that is granted it, another token of the disk, or the recovery passphrase will do. A mount
that was stopped because its key was revoked goes on under the new one.")]
pub(super) struct Update {
    /// The container, the mountpoint, or the uuid
    disk: PathBuf,

    /// The set it is to belong to
    #[arg(long, value_name = "SET")]
    set: String,

    #[command(flatten)]
    unlock: UnlockArgs,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    let Command::Update(args) = command;
    let access = context.existing()?;
    let set = access.sets.by_name(&args.set)?;
    let path = context.container(&args.disk)?;
    let kids = match context.mount_of(&args.disk)? {
        Some(mount) => mounted(context, &access, &set, args, (&mount.uuid, &path))?,
        None => unmounted(context, &access, &set, args, &path)?,
    };
    if args.output.json() {
        return output::json(&serde_json::json!({
            "disk": json_path::value(&path), "set": set.name, "setId": set.id.to_string(), "kids": kids,
        }));
    }
    output::line(&format!("{}: set {}, key {}", path.display(), set.name, set.active))
}

fn unmounted(
    context: &Context,
    access: &Access,
    set: &Set,
    args: &Update,
    path: &Path,
) -> Result<Vec<String>> {
    let (store, header) = unlock::load(context, path, StoreAccess::ReadWrite)?;
    let reason = format!("disk update {} --set {}", path.display(), set.name);
    let key = if args.unlock.wants_passphrase() {
        unlock::key(context, path, (&store, &header), &args.unlock, &reason)?.0
    } else {
        access.unlock_by_anyone(&header, &reason).map_err(|e| three_ways(e.at(path)))?.key
    };
    let order = Order { set, source: Source::Known(&key), sole: true, reason: &reason };
    let header = rewrap::rewrap(access, order, &header, &store)
        .map_err(|refused| new_key(refused.error.at(path), set))?;
    access.record_rewrap(&header, path, context::now())?;
    Ok(kids(&header))
}

/// Its daemon changes the header. A passphrase is used here, and what the daemon gets is wrapped for the new set.
fn mounted(
    context: &Context,
    access: &Access,
    set: &Set,
    args: &Update,
    (uuid, path): (&str, &Path),
) -> Result<Vec<String>> {
    let wrapped = if args.unlock.wants_passphrase() {
        let store = FileStore::peek(path)?;
        let header = Header::load(&store).map_err(|e| e.at(path))?;
        let reason = format!("disk update {} --set {}", path.display(), set.name);
        let (key, _) = unlock::key(context, path, (&store, &header), &args.unlock, &reason)?;
        let wrapped = rewrap::wrap_for(access, set, &key, &reason).map_err(|e| new_key(e, set))?;
        Some(STANDARD.encode(wrapped.bytes))
    } else {
        None
    };
    let has_key = wrapped.is_some();
    let how = Rewrap { set: Some(set.id.to_string()), wrapped };
    let done = set::mounts(context).ask(uuid, path, &how).unwrap_or_else(|| {
        Err(Error::new(ErrorKind::Conflict, "was unmounted meanwhile").at(path).hint("run the command again"))
    });
    Ok(done.map_err(|e| if has_key { e } else { three_ways(e) })?.kids)
}

fn kids(header: &Header) -> Vec<String> {
    header.tokens().map(|(_, token)| token.wrapped().kid.to_string()).collect()
}

/// RULINGS 26.
fn three_ways(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Denied | ErrorKind::Unreachable | ErrorKind::Revoked => e.hint(
            "the data key must be had once more: through an identity that is granted the old key (wrapdisk key enable, \
             wrapdisk grant --set), another token of the disk, or its recovery passphrase (--passphrase)",
        ),
        _ => e,
    }
}

fn new_key(e: Error, set: &Set) -> Error {
    match e.kind() {
        ErrorKind::Denied => {
            e.hint(format!("the set must be able to use its own key: wrapdisk grant --set {}", set.name))
        }
        _ => e,
    }
}
