//! `wrapdisk completion`, and man pages and completions for packages (`generate`), all from the one clap definition.

use std::path::{Path, PathBuf};

use clap_complete::Shell;

use super::{command, output};
use crate::error::{Error, ErrorKind, IoContext, Result};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  source <(wrapdisk completion bash)
  wrapdisk completion fish > ~/.config/fish/completions/wrapdisk.fish")]
pub(super) struct CompletionArgs {
    /// For this shell
    shell: Shell,
}

pub(super) fn completion(args: &CompletionArgs) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "wrapdisk", &mut text);
    let text =
        String::from_utf8(text).map_err(|e| Error::new(ErrorKind::Other, "completion").caused_by(e))?;
    output::line(text.trim_end())
}

/// For packages.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Man pages, one per command
    Man {
        /// An existing folder
        dir: PathBuf,
    },
    /// Completion scripts for every shell
    Completions {
        /// An existing folder
        dir: PathBuf,
    },
}

pub(super) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Man { dir } => man(dir),
        Command::Completions { dir } => completions(dir),
    }
}

fn man(dir: &Path) -> Result<()> {
    clap_mangen::generate_to(command().disable_help_subcommand(true), dir).io_at("write man pages to", dir)
}

fn completions(dir: &Path) -> Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish] {
        clap_complete::generate_to(shell, &mut command(), "wrapdisk", dir)
            .io_at("write completions to", dir)?;
    }
    Ok(())
}
