//! `wrapdisk volume-key`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::context::Context;
use super::unlock::{self, UnlockArgs};
use super::{output, prompt};
use crate::error::{IoContext, Result};
use crate::luks2::Holes;
use crate::store::Access as StoreAccess;

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
    let opened = unlock::open(
        context,
        &path,
        StoreAccess::ReadOnly,
        &args.unlock,
        &format!("volume-key {}", path.display()),
    )?;
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&args.output)
        .io_at("create", &args.output)?;
    file.write_all(opened.key.secret().expose()).io_at("write", &args.output)?;
    file.sync_all().io_at("sync", &args.output)?;
    if opened.header.holes() == Holes::Zeros {
        output::note(
            "warning: sectors never written read as zeros here and as garbage in dm-crypt; run wrapdisk seal first \
             if a tool relies on zeros (file systems do not)",
        );
    }
    output::line(&args.output.display().to_string())
}
