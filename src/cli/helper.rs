//! The mount helper: `mount.wrapdisk` and `mount.fuse.wrapdisk`, as mount(8) calls them.
//!
//! `mount.TYPE SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`. The options become the arguments of
//! `wrapdisk mount` and go through its parser. Exit codes are mount(8)'s own: 0 ok, 1 usage, 2 system, 32 mount failure.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use super::{Cli, Command, mount, output, report};
use crate::error::ErrorKind;

const USAGE: u8 = 1;
const SYSTEM: u8 = 2;
const MOUNT_FAILURE: u8 = 32;

/// Options for mount(8), systemd or the kernel that mean nothing to us.
const IGNORED: &[&str] = &[
    "defaults",
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
    "lazytime",
    "nolazytime",
    "dirsync",
    "nosymfollow",
    "iversion",
    "noiversion",
];

const USAGE_TEXT: &str = "usage: mount.wrapdisk DISK MOUNTPOINT [-fnrsvw] [-o OPTION[=VALUE],...]\n\
    The options are the long ones of `wrapdisk mount`, and ro; see wrapdisk-mount(1).";

/// What the helper was asked for: the arguments of `wrapdisk`, or why they make no sense.
pub(super) type Parsed = Result<Request, String>;

#[derive(Default)]
pub(super) struct Request {
    options: Vec<OsString>,
    read_only: bool,
    verbose: bool,
    fake: bool,
    /// SOURCE MOUNTPOINT
    words: Vec<OsString>,
}

/// `None` when this program was not called as a mount helper.
pub(super) fn parse(args: &[OsString]) -> Option<Parsed> {
    let name = Path::new(args.first()?).file_name()?;
    (name == "mount.wrapdisk" || name == "mount.fuse.wrapdisk").then(|| translate(&args[1..]))
}

fn translate(args: &[OsString]) -> Parsed {
    let mut request = Request::default();
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
            // Bundled or not: sloppy, fake, no-mtab, verbose, read-only, writable.
            Some(flags)
                if flags.len() > 1
                    && flags.starts_with('-')
                    && flags[1..].chars().all(|c| "sfnvrw".contains(c)) =>
            {
                for flag in flags[1..].chars() {
                    match flag {
                        'f' => request.fake = true,
                        'v' => request.verbose = true,
                        'r' => request.read_only = true,
                        'w' => request.read_only = false,
                        _ => {}
                    }
                }
            }
            _ => request.words.push(arg.clone()),
        }
    }
    match request.words.len() {
        2 => Ok(request),
        n => Err(format!("found {n} words, allowed SOURCE MOUNTPOINT\n{USAGE_TEXT}")),
    }
}

impl Request {
    /// One option of the list: `ro`, `allow_other`, `cache-size=256M`, any long option of `wrapdisk mount`. Where two
    /// contradict each other, the last one wins: mount(8) puts those of the command line behind those of fstab.
    fn add(&mut self, option: &str) -> Result<(), String> {
        let (name, value) = option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v)));
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "remount" => {
                return Err(
                    "remount: a mounted disk keeps its options; umount it and mount it again".to_owned()
                );
            }
            _ if IGNORED.contains(&name)
                || ["x-", "X-", "comment"].iter().any(|prefix| name.starts_with(prefix)) => {}
            _ => {
                let name = name.replace('_', "-");
                let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
                if !letters || name == "help" || name == "version" {
                    return Err(unknown(option, None));
                }
                let value = value.map(|v| format!("={v}")).unwrap_or_default();
                self.options.push(format!("--{name}{value}").into());
            }
        }
        Ok(())
    }

    /// The command line of `wrapdisk`. mount(8) says nothing when all is well, and neither do its helpers.
    fn argv(&self) -> Vec<OsString> {
        let mut argv: Vec<OsString> = vec!["wrapdisk".into(), "mount".into()];
        argv.push(if self.verbose { "--verbose" } else { "--quiet" }.into());
        argv.extend(self.read_only.then(|| "--read-only".into()));
        argv.extend(self.options.iter().cloned());
        argv.push("--".into());
        argv.extend(self.words.iter().cloned());
        argv
    }
}

fn unknown(option: &str, similar: Option<&str>) -> String {
    let similar = similar.map(|s| format!("; a similar one is \"{s}\"")).unwrap_or_default();
    format!("option \"{}\" is not known{similar}", option.escape_debug())
}

/// clap's message without the lines and dashes that show another command.
fn explain(e: &clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let context = |kind| match e.get(kind) {
        Some(ContextValue::String(text)) => Some(text.trim_start_matches('-')),
        _ => None,
    };
    if let (ErrorKind::UnknownArgument, Some(option)) = (e.kind(), context(ContextKind::InvalidArg)) {
        return unknown(option, context(ContextKind::SuggestedArg));
    }
    e.to_string().lines().next().unwrap_or("bad options").trim_start_matches("error: ").to_owned()
}

pub(super) fn main(parsed: Parsed) -> ExitCode {
    let refuse = |why: &str| {
        output::note(&format!("mount.wrapdisk: {why}"));
        ExitCode::from(USAGE)
    };
    let request = match parsed {
        Ok(request) => request,
        Err(why) => return refuse(&why),
    };
    let argv = request.argv();
    let cli = match super::parse(&argv) {
        Ok(cli) => cli,
        Err(e) => return refuse(&explain(&e)),
    };
    if request.fake || already_mounted(&cli) {
        return ExitCode::SUCCESS;
    }
    match super::run(cli, &argv) {
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
    super::Context::new(cli.state.clone(), None)
        .is_ok_and(|c| mount::is_mounted(&c, &args.disk, &args.mountpoint))
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
            .map(|r| r.argv().iter().map(|a| a.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn options_of_mount8_become_arguments_of_ours() {
        let options = "rw,nofail,_netdev,x-systemd.automount,X-mount.mkdir,ro,allow_other,cache-size=256M";
        let got = argv(&["/sbin/mount.fuse.wrapdisk", "/x/vm.wd", "/mnt", "-n", "-o", options]).unwrap();
        let wanted = "wrapdisk mount --quiet --read-only --allow-other --cache-size=256M -- /x/vm.wd /mnt";
        assert_eq!(got.join(" "), wanted);
    }

    #[test]
    fn the_last_word_about_writing_wins() {
        for (args, read_only) in
            [("ro,rw", false), ("rw,ro", true), ("defaults", false)].map(|(o, r)| (["-o", o], r))
        {
            let got = argv(&["mount.wrapdisk", "a", "b", args[0], args[1]]).unwrap();
            assert_eq!(got.contains(&"--read-only".to_owned()), read_only, "{args:?}");
        }
        assert!(argv(&["mount.wrapdisk", "-nrs", "a", "b"]).unwrap().contains(&"--read-only".to_owned()));
    }

    #[test]
    fn nonsense_is_refused_and_a_disk_called_like_an_option_is_not_one() {
        assert!(argv(&["mount.wrapdisk", "one"]).is_err());
        assert!(argv(&["mount.wrapdisk", "a", "b", "-o"]).is_err());
        assert!(argv(&["mount.wrapdisk", "a", "b", "-o", "foreground;rm"]).is_err());
        assert!(argv(&["mount.wrapdisk", "a", "b", "-o", "help"]).is_err());
        assert!(argv(&["mount.wrapdisk", "--odd", "b"]).unwrap().ends_with(&[
            "--".into(),
            "--odd".into(),
            "b".into()
        ]));
        assert!(parse(&["wrapdisk".into()]).is_none());
    }
}
