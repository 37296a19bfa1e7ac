//! `wrapdisk seal`.

use std::path::PathBuf;
use std::sync::Arc;

use super::context::Context;
use super::unlock::{self, UnlockArgs};
use super::{output, size};
use crate::error::Result;
use crate::luks2::Holes;
use crate::store::{Access as StoreAccess, BackingStore};
use crate::units::ByteLen;

/// Write encrypted zeros into every hole, so that dm-crypt reads what we read and nothing shows which sectors are in use
///
/// The file grows to its full size, and discards free nothing from then on. There is no way back. If it is interrupted,
/// run it again.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk seal vm.wd")]
pub(super) struct Args {
    /// Container or uuid; not mounted
    disk: PathBuf,

    #[command(flatten)]
    unlock: UnlockArgs,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let path = context.container(&args.disk)?;
    let mut opened = unlock::open(
        context,
        &path,
        StoreAccess::ReadWrite,
        &args.unlock,
        &format!("seal {}", path.display()),
    )?;
    if opened.header.holes() == Holes::None {
        return output::line(&format!("{}: sealed already", path.display()));
    }
    let disk = opened.disk(ByteLen::ZERO, false)?;
    let mut progress = output::Progress::new("sealing", disk.len().get());
    disk.volume().fill_holes(|done| progress.at(done.get())).map_err(|e| e.at(&path))?;
    // The zeros must be there before the header says that there are no holes.
    disk.sync()?;
    opened.header.seal(&opened.key)?;
    let store: Arc<dyn BackingStore> = Arc::clone(&opened.store) as _;
    opened.header.commit(&*store).map_err(|e| e.at(&path))?;
    output::line(&format!("{}: sealed, {}", path.display(), size::show(disk.len().get())))
}
