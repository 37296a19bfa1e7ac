//! `wrapdisk volume-key`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::context::Context;
use super::unlock::{self, UnlockArgs};
use super::{output, prompt};
use crate::error::{IoContext, Result};
use crate::luks2::Holes;
use crate::store::sync_parent_dir;
use crate::xts::VolumeKey;

/// Write the 64 bytes that encrypt a disk to a file, to hand it over to cryptsetup
///
/// Whoever has this file reads the disk for ever: no key can be revoked any more. The vault records the use.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk volume-key vm.wd --output vm.key
  cryptsetup open --type luks2 --volume-key-file vm.key --key-size 512 vm.wd vm")]
pub(super) struct Args {
    /// Container, mountpoint or uuid
    disk: PathBuf,

    /// A new file, readable by you alone
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    unlock: UnlockArgs,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let path = context.container(&args.disk)?;
    let question = format!(
        "Write the volume key of {} to {}: it opens the disk for ever",
        path.display(),
        args.output.display()
    );
    prompt::confirm(&question, args.yes)?;
    // The header is enough, so a mounted disk will do.
    let (store, header) = unlock::load_shared(context, &path)?;
    // Made first: a use of the key that ends in nothing would be in the audit all the same.
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&args.output)
        .io_at("create", &args.output)?;
    let reason = format!("volume-key {}", path.display());
    unlock::key(context, &path, (&store, &header), &args.unlock, &reason)
        .and_then(|(key, _)| write(file, &args.output, &key))
        .inspect_err(|_| drop(std::fs::remove_file(&args.output)))?;
    if header.holes() == Holes::Zeros {
        output::note(
            "warning: sectors never written read as zeros here and as garbage in dm-crypt; run wrapdisk seal first \
             if a tool relies on zeros (file systems do not)",
        );
    }
    output::line(&args.output.display().to_string())
}

fn write(mut file: File, path: &Path, key: &VolumeKey) -> Result<()> {
    file.write_all(key.secret().expose()).io_at("write", path)?;
    file.sync_all().io_at("sync", path)?;
    sync_parent_dir(path)
}
