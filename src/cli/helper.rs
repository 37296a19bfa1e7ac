//! The mount helper: `mount.wrapdisk` and `mount.fuse.wrapdisk`, as mount(8) calls them.
//!
//! `mount.TYPE SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`. The options become the arguments of
//! `wrapdisk mount` and go through its parser. Exit codes are mount(8)'s own: 0 ok, 1 usage, 2 system, 32 mount failure.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use super::{Cli, Command, mount, report};
use crate::error::ErrorKind;

const USAGE: u8 = 1;
const SYSTEM: u8 = 2;
const MOUNT_FAILURE: u8 = 32;

/// Options for mount(8), systemd or the kernel that mean nothing to us.
const IGNORED: &[&str] = &[
    "defaults",
    "rw",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "async",
    "sync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "default_permissions",
    "loud",
    "silent",
];

/// What the helper was asked for: the arguments of `wrapdisk`, or why they make no sense.
pub(super) type Parsed = Result<Request, String>;

pub(super) struct Request {
    argv: Vec<OsString>,
    fake: bool,
}

/// `None` when this program was not called as a mount helper.
pub(super) fn parse(args: &[OsString]) -> Option<Parsed> {
    let name = Path::new(args.first()?).file_name()?;
    (name == "mount.wrapdisk" || name == "mount.fuse.wrapdisk").then(|| translate(&args[1..]))
}

fn translate(args: &[OsString]) -> Parsed {
    let mut words: Vec<OsString> = Vec::new();
    let mut request = Request { argv: vec!["wrapdisk".into(), "mount".into()], fake: false };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-o") => {
                let options = args.next().ok_or("-o: found nothing, allowed a list of options")?;
                let options = options.to_str().ok_or("-o: found bytes that are not UTF-8")?;
                for option in options.split(',').filter(|o| !o.is_empty()) {
                    request.add(option)?;
                }
            }
            Some("-t" | "-N") => drop(args.next()),
            // Bundled or not: sloppy, fake, no-mtab, verbose.
            Some(flags)
                if flags.len() > 1
                    && flags.starts_with('-')
                    && flags[1..].chars().all(|c| "sfnvrw".contains(c)) =>
            {
                request.fake |= flags.contains('f');
                if flags.contains('r') {
                    request.argv.push("--read-only".into());
                }
            }
            _ => words.push(arg.clone()),
        }
    }
    let [disk, place] = words
        .try_into()
        .map_err(|w: Vec<_>| format!("found {} words, allowed SOURCE MOUNTPOINT", w.len()))?;
    request.argv.extend(["--".into(), disk, place]);
    Ok(request)
}

impl Request {
    /// One option of the list: `ro`, `allow_other`, `cache-size=256M`, any long option of `wrapdisk mount`.
    fn add(&mut self, option: &str) -> Result<(), String> {
        let (name, value) = option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v)));
        if IGNORED.contains(&name) || name.starts_with("x-") || name.starts_with("comment") {
            return Ok(());
        }
        let name = match name {
            "ro" => "read-only".to_owned(),
            other => other.replace('_', "-"),
        };
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') || name == "help" || name == "version" {
            return Err(format!("option \"{}\" is not known", option.escape_debug()));
        }
        self.argv.push(
            format!("--{name}{}{}", if value.is_some() { "=" } else { "" }, value.unwrap_or_default()).into(),
        );
        Ok(())
    }
}

pub(super) fn main(parsed: Parsed) -> ExitCode {
    let request = match parsed {
        Ok(request) => request,
        Err(why) => {
            eprintln!("mount.wrapdisk: {why}");
            return ExitCode::from(USAGE);
        }
    };
    let cli = match Cli::try_parse_from(&request.argv) {
        Ok(cli) => cli,
        Err(e) => {
            // The message without clap's usage lines, which show the other command.
            let text = e.to_string();
            eprintln!(
                "mount.wrapdisk: {}",
                text.lines().next().unwrap_or("bad options").trim_start_matches("error: ")
            );
            return ExitCode::from(USAGE);
        }
    };
    if request.fake || already_mounted(&cli) {
        return ExitCode::SUCCESS;
    }
    match super::run(cli, &request.argv) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(code) => ExitCode::from(code_of_child(code)),
        Err(e) => {
            report(&e);
            ExitCode::from(code(e.kind()))
        }
    }
}

/// `mount -a` a second time is harmless (RULINGS 4).
fn already_mounted(cli: &Cli) -> bool {
    let Command::Mount(args) = &cli.command else { return false };
    super::Context::new(cli.state.clone()).is_ok_and(|c| mount::is_mounted(&c, &args.disk, &args.mountpoint))
}

fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Usage | ErrorKind::InvalidInput | ErrorKind::PermissionDenied => USAGE,
        ErrorKind::Other => SYSTEM,
        _ => MOUNT_FAILURE,
    }
}

/// The code for mount(8) of a child that ended with one of ours.
fn code_of_child(code: u8) -> u8 {
    if code == ErrorKind::Usage.exit_code() { USAGE } else { MOUNT_FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(args: &[&str]) -> Result<Vec<String>, String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        parse(&args)
            .expect("a helper's name")
            .map(|r| r.argv.iter().map(|a| a.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn options_of_mount8_become_arguments_of_ours() {
        let got = argv(&[
            "/sbin/mount.fuse.wrapdisk",
            "/x/vm.wd",
            "/mnt",
            "-n",
            "-o",
            "rw,nofail,_netdev,x-systemd.automount,ro,allow_other,cache-size=256M",
        ]);
        assert_eq!(
            got.unwrap(),
            [
                "wrapdisk",
                "mount",
                "--read-only",
                "--allow-other",
                "--cache-size=256M",
                "--",
                "/x/vm.wd",
                "/mnt"
            ]
        );
    }

    #[test]
    fn nonsense_is_refused_and_a_disk_called_like_an_option_is_not_one() {
        assert!(argv(&["mount.wrapdisk", "one"]).is_err());
        assert!(argv(&["mount.wrapdisk", "a", "b", "-o"]).is_err());
        assert!(argv(&["mount.wrapdisk", "a", "b", "-o", "foreground;rm"]).is_err());
        assert!(argv(&["mount.wrapdisk", "--odd", "b"]).unwrap().ends_with(&[
            "--".into(),
            "--odd".into(),
            "b".into()
        ]));
        assert!(parse(&["wrapdisk".into()]).is_none());
    }
}
