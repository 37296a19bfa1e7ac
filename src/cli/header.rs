//! `wrapdisk header ...`.

use std::path::PathBuf;

use super::context::Context;
use super::{output, prompt, unlock};
use crate::error::Result;
use crate::luks2::backup;
use crate::store::Access as StoreAccess;

/// Back up, restore, erase or dump the header of a container
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk header backup vm.wd vm.header       interchangeable with cryptsetup luksHeaderBackup
  wrapdisk header restore vm.wd vm.header
  wrapdisk header erase vm.wd                  destroys every way in, for ever")]
pub(super) enum Command {
    /// Copy the header, with its wrapped keys and keyslots, to a new file
    #[command(after_long_help = "\
Examples:
  wrapdisk header backup vm.wd vm.header          also while it is mounted")]
    Backup {
        /// Container, mountpoint or uuid
        disk: PathBuf,
        /// A new file
        file: PathBuf,
    },
    /// Put a header back; the present one is saved beside the container first
    ///
    /// The backup brings its old wrapped keys and keyslots back with it.
    #[command(after_long_help = "\
Examples:
  wrapdisk header restore vm.wd vm.header
  wrapdisk header restore vm.wd vm.header --yes && wrapdisk check vm.wd")]
    Restore {
        /// Container, not mounted
        disk: PathBuf,
        /// A backup by this command or by cryptsetup
        file: PathBuf,
        /// Also when it belongs to another container or another data key
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Destroy every wrapped key and keyslot: without a header backup, the data is lost for ever
    #[command(after_long_help = "\
Examples:
  wrapdisk header erase old.wd --yes && rm old.wd")]
    Erase {
        /// Container, not mounted
        disk: PathBuf,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Print the header's JSON
    #[command(after_long_help = "\
Examples:
  wrapdisk header dump vm.wd | jq .tokens")]
    Dump {
        /// Container, mountpoint or uuid
        disk: PathBuf,
    },
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    match command {
        Command::Backup { disk, file } => {
            let path = context.container(disk)?;
            let (store, _) = unlock::load_shared(context, &path)?;
            backup::backup(&store, file)?;
            output::note(
                "note: this file opens the disk to whoever may use the keys in it; old keys come back with it",
            );
            output::line(&file.display().to_string())
        }
        Command::Restore { disk, file, force, yes } => {
            let path = context.container(disk)?;
            // Locked before the question, so that the answer is about what is there, and no mount comes between.
            let store = unlock::lock(context, &path, StoreAccess::ReadWrite)?;
            prompt::confirm(
                &format!("Replace the header of {} by {}", path.display(), file.display()),
                *yes,
            )?;
            let mut saved = path.clone().into_os_string();
            saved.push(".header-before-restore");
            let saved = PathBuf::from(saved);
            backup::restore(&store, file, *force, &saved).map_err(|e| e.or_at(&path))?;
            output::line(&format!(
                "{}: restored; the header before is in {}",
                path.display(),
                saved.display()
            ))
        }
        Command::Erase { disk, yes } => {
            let path = context.container(disk)?;
            let store = unlock::lock(context, &path, StoreAccess::ReadWrite)?;
            prompt::confirm(
                &format!("Erase every key of {}: its data is lost for ever", path.display()),
                *yes,
            )?;
            backup::erase(&store).map_err(|e| e.at(&path))?;
            output::note(
                "note: copies of the header in snapshots, backups and SSD cells live on; disable the key to end those too",
            );
            output::line(&format!("{}: erased", path.display()))
        }
        Command::Dump { disk } => {
            let path = context.container(disk)?;
            let (_store, header) = unlock::load_shared(context, &path)?;
            output::line(&header.dump_json())
        }
    }
}
