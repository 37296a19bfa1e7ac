//! The command line: one file a subcommand. clap types are parsed into validated types; nothing is decided twice.
//!
//! Must never see: FUSE requests, key bytes outside `Secret`. Secrets are never arguments.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{FromArgMatches, Parser, Subcommand};

use crate::error::{Error, ErrorKind, Result};

mod audit;
mod blast;
mod check;
mod context;
mod create;
mod daemon;
mod disk;
mod drill;
mod generate;
mod grant;
mod guest;
mod header;
mod helper;
mod info;
mod key;
mod mount;
mod output;
mod pending;
mod policy;
mod prompt;
mod seal;
mod set;
mod size;
mod status;
mod umount;
mod unlock;
mod vault;
mod volume_key;
mod watch;

use context::Context;

const EXIT_CODES: &str = "\
Exit codes:
  0 ok                  3 key denied (disabled, deleted, no permission), wrong passphrase
  1 failed              4 vault unreachable, or not there
  2 usage               5 container or vault damaged";

/// Plaintext disks in a mount, ciphertext in a LUKS2 file, the key in a vault.
///
/// A container is a standard LUKS2 file. Its data key is wrapped by an RSA key in a key vault that you control: enable,
/// disable, import, rotate. Mounting it shows the plaintext as one file, disk.img.
#[derive(Debug, Parser)]
#[command(name = "wrapdisk", version, propagate_version = true, max_term_width = 100)]
#[command(after_long_help = "\
Examples:
  wrapdisk create vm.wd --size 20G          make a disk (first use also makes the vault and a key)
  wrapdisk mount vm.wd /mnt/vm              /mnt/vm/disk.img is the plaintext disk
  wrapdisk mount --create 1G demo.wd ./demo make it if it is missing, and mount it
  wrapdisk status                           what is mounted
  wrapdisk umount /mnt/vm
  wrapdisk key disable disk-kek             every disk under this key stops, until it is enabled
  wrapdisk revoke --set default             every disk of this set stops, until it is granted

Files (root; a user):
  /var/lib/wrapdisk; $XDG_STATE_HOME/wrapdisk    vault.db, root.key, sets.db: back these up together
  /run/wrapdisk; $XDG_RUNTIME_DIR/wrapdisk       control sockets of live mounts, mount.log
  WRAPDISK_HOME=DIR puts them under DIR/state and DIR/run.")]
pub struct Cli {
    /// Folder of vault.db, root.key and sets.db [default: per user; see wrapdisk --help]
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,

    /// The passphrase of a vault that is sealed by one, in FILE; asked for on the terminal otherwise
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    vault_passphrase_file: Option<PathBuf>,

    /// Say more; twice: debug
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(create::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    Info(info::Args),
    Check(check::Args),
    Status(status::Args),
    VolumeKey(volume_key::Args),
    Seal(seal::Args),
    #[command(subcommand)]
    Header(header::Command),
    #[command(subcommand)]
    Key(key::Command),
    #[command(subcommand)]
    Set(set::Command),
    #[command(subcommand)]
    Disk(disk::Command),
    #[command(subcommand)]
    Vault(vault::Command),
    #[command(subcommand)]
    Drill(drill::Command),
    #[command(subcommand)]
    Guest(guest::Command),
    Grant(grant::GrantSet),
    Revoke(grant::RevokeSet),
    #[command(subcommand)]
    Audit(audit::Command),
    Completion(generate::CompletionArgs),
    #[command(subcommand, hide = true)]
    Generate(generate::Command),
}

/// Runs the program: parses, runs, prints the error once, and says the exit code.
#[must_use]
pub fn main() -> ExitCode {
    // A limit on file sizes (ulimit -f) is an error of the write (EFBIG), not the end of a mount: unhandled, it would kill.
    let _ = signal_hook::flag::register(libc::SIGXFSZ, std::sync::Arc::default());
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(helper) = helper::parse(&args) {
        return helper::main(helper);
    }
    match parse(&args) {
        Ok(cli) => finish(run(cli, &args)),
        Err(e) => {
            // clap: 0 for --help and --version, 2 for usage.
            let code = u8::try_from(e.exit_code()).unwrap_or(2);
            let _ = e.print();
            ExitCode::from(code)
        }
    }
}

/// The command line, with the exit codes in every long help and man page.
fn command() -> clap::Command {
    fn with_exit_codes(command: clap::Command) -> clap::Command {
        let help = command.get_after_long_help().map(|help| format!("{help}\n\n")).unwrap_or_default();
        command.after_long_help(help + EXIT_CODES).mut_subcommands(with_exit_codes)
    }
    with_exit_codes(<Cli as clap::CommandFactory>::command())
}

fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    command().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches))
}

fn finish(done: Result<u8>) -> ExitCode {
    match done {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            report(&e);
            ExitCode::from(e.kind().exit_code())
        }
    }
}

/// `wrapdisk: SUBJECT: what: cause`, and what to do.
fn report(e: &Error) {
    output::note(&format!("wrapdisk: {}", e.chain()));
    if let Some(hint) = e.advice() {
        output::note(&format!("  {hint}"));
    }
}

/// The exit code; not 0 only where a child of ours failed and has said why.
fn run(cli: Cli, args: &[OsString]) -> Result<u8> {
    crate::secret::harden_process()?;
    start_log(cli.verbose);
    let context = Context::new(cli.state, cli.vault_passphrase_file)?;
    let changes = changes_access(&cli.command);
    let done = match cli.command {
        Command::Mount(mount) => return mount::run(&context, &mount, args),
        Command::Create(args) => create::run(&context, &args),
        Command::Umount(args) => umount::run(&context, &args),
        Command::Info(args) => info::run(&context, &args),
        Command::Check(args) => check::run(&context, &args),
        Command::Status(args) => status::run(&context, &args),
        Command::VolumeKey(args) => volume_key::run(&context, &args),
        Command::Seal(args) => seal::run(&context, &args),
        Command::Header(command) => header::run(&context, &command),
        Command::Key(command) => key::run(&context, &command),
        Command::Set(command) => return set::run(&context, &command),
        Command::Disk(command) => disk::run(&context, &command),
        Command::Vault(command) => vault::run(&context, &command),
        Command::Drill(command) => drill::run(&context, &command),
        Command::Guest(command) => guest::run(&context, &command),
        Command::Grant(args) => grant::grant_set(&context, &args),
        Command::Revoke(args) => grant::revoke_set(&context, &args),
        Command::Audit(command) => audit::run(&context, &command),
        Command::Completion(args) => generate::completion(&args),
        Command::Generate(command) => generate::run(&command),
    };
    if changes && done.is_ok() {
        // Their guards would notice by themselves, a little later.
        crate::control::poke_all(&context.dirs);
    }
    done.map(|()| 0)
}

/// Who may use which key: what the guards of live mounts should look at. (`set` says so itself.)
const fn changes_access(command: &Command) -> bool {
    match command {
        Command::Grant(_) | Command::Revoke(_) => true,
        Command::Key(command) => command.changes_access(),
        Command::Vault(command) => {
            matches!(
                command,
                vault::Command::Identity(_) | vault::Command::Grant(_) | vault::Command::Revoke(_)
            )
        }
        _ => false,
    }
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    // fuser explains every mount at info; it is of interest only when looking for a fault.
    let fuser = if verbose > 1 { level } else { log::LevelFilter::Error };
    let _ = env_logger::Builder::new()
        .filter_level(level)
        .filter_module("fuser", fuser)
        .format(|buf, record| {
            use std::io::Write;
            writeln!(buf, "wrapdisk: {}: {}", record.level().as_str().to_lowercase(), record.args())
        })
        .try_init();
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
