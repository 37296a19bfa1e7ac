//! `wrapdisk vault backup` and `vault restore`: the whole vault and the sets, under a passphrase.
//!
//! Must never see: what is in them.

use std::path::PathBuf;

use crate::cli::context::Context;
use crate::cli::{output, prompt};
use crate::error::Result;
use crate::vault::local::{Cost, LocalVault, WholeBackup};

const SETS: &str = "sets.db";

/// Back up the whole vault and the sets into one file, under a passphrase
///
/// Consistent while disks are mounted and keys are used. Who has the file and the passphrase has every key in it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault backup --file vault.backup
  wrapdisk vault backup --file /mnt/usb/vault.backup --passphrase-file backup.pass
  wrapdisk vault restore --file vault.backup            on another machine, or after a loss")]
pub(in crate::cli) struct Backup {
    /// The file, which must not exist
    #[arg(long, value_name = "FILE")]
    file: PathBuf,

    /// The passphrase, in FILE ("-": standard input); asked for on the terminal otherwise
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Bring a vault and its sets back from a backup, into a state folder that has none
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault restore --file vault.backup
  wrapdisk --state /srv/keys vault restore --file vault.backup --passphrase-file backup.pass")]
pub(in crate::cli) struct Restore {
    /// The backup
    #[arg(long, value_name = "FILE")]
    file: PathBuf,

    /// The passphrase, in FILE ("-": standard input); asked for on the terminal otherwise
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn backup(context: &Context, args: &Backup) -> Result<()> {
    let access = context.existing()?;
    let passphrase = match &args.passphrase_file {
        Some(file) => prompt::passphrase_file(file)?,
        None => prompt::passphrase(&format!("Passphrase for {}", args.file.display()), true)?,
    };
    let scratch = access.sets.snapshot()?;
    let beside = [(SETS, scratch.path().join(SETS))];
    let what = WholeBackup { passphrase: &passphrase, cost: Cost::default(), beside: &beside };
    let mut bar: Option<output::Progress> = None;
    let mut progress =
        |done, total| bar.get_or_insert_with(|| output::Progress::new("writing", total)).at(done);
    access.vault.backup_whole(&args.file, &what, &mut progress, &access.vault.admin("vault backup"))?;
    output::line(&format!("{}: the vault \"{}\" and its sets", args.file.display(), access.vault.name()))
}

pub(super) fn restore(context: &Context, args: &Restore) -> Result<()> {
    let passphrase = match &args.passphrase_file {
        Some(file) => prompt::passphrase_file(file)?,
        None => prompt::passphrase(&format!("Passphrase of {}", args.file.display()), false)?,
    };
    let mut bar: Option<output::Progress> = None;
    let mut progress =
        |done, total| bar.get_or_insert_with(|| output::Progress::new("reading", total)).at(done);
    let state = &context.dirs.state;
    let restored = LocalVault::restore_whole(state, &args.file, &passphrase, &mut progress)?;
    if args.output.json() {
        return output::json(&serde_json::json!({
            "name": restored.name,
            "id": restored.id.to_string(),
            "made": output::time(restored.made),
            "files": restored.files,
        }));
    }
    output::line(&format!(
        "{}: the vault \"{}\" as of {}",
        state.display(),
        restored.name,
        output::time(restored.made)
    ))?;
    output::note("Its root key lies open in root.key now: wrapdisk vault seal, if it was sealed before.");
    Ok(())
}
