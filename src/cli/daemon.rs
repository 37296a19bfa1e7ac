//! A mount in the background: the same command runs again as a child, which says on its standard output when it is
//! usable. The parent waits for that, so errors and exit codes are the user's; no process ever forks with threads.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, IoContext, Result};

/// Set in the child, which detaches from the terminal once it is usable: the files it inherited and then closes.
const CHILD: &str = "WRAPDISK_BACKGROUND";

/// True in the child that `spawn` started.
pub(super) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// How the child ended before it was usable.
pub(super) enum Spawned {
    /// It is usable; this is the line it said.
    Ready(String),
    /// It failed, said why on standard error, and this was its exit code.
    Failed(u8),
}

/// Runs `args` (without the program) as a child in the background.
pub(super) fn spawn(args: &[OsString]) -> Result<Spawned> {
    let program = std::env::current_exe().io_at("find this program", "/proc/self/exe")?;
    let mut child = Command::new(&program)
        .args(args)
        .env(CHILD, inherited())
        .stdout(Stdio::piped())
        .spawn()
        .io_at("start the mount's process", &program)?;
    let stdout =
        child.stdout.take().ok_or_else(|| Error::new(ErrorKind::Other, "the child has no output"))?;
    let mut ready = String::new();
    BufReader::new(stdout).read_line(&mut ready).io_at("wait for the mount", "")?;
    if ready.ends_with('\n') {
        return Ok(Spawned::Ready(ready));
    }
    let status = child.wait().io_at("wait for the mount", "")?;
    let code = status.code().and_then(|c| u8::try_from(c).ok());
    match code {
        Some(0) | None => {
            Err(Error::new(ErrorKind::Other, format!("the mount's process ended early: {status}")))
        }
        Some(code) => Ok(Spawned::Failed(code)),
    }
}

/// Open files that came from whoever started us and that the child will have, too (all of ours are closed on exec): a
/// lock or a pipe of a script must not live as long as the mount.
fn inherited() -> String {
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = open.filter_map(|e| e.file_name().into_string().ok());
    numbers.filter(|number| survives_exec(number)).collect::<Vec<_>>().join(",")
}

fn survives_exec(number: &str) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC == 0)
}

/// In the child, once usable: leaves the terminal's session, so that a terminal that is closed from now on does not end
/// the mount, and then says so to the parent. Messages go to `log` from here on.
pub(super) fn detach(log: &Path, said: &str) -> Result<()> {
    let null =
        std::fs::File::options().read(true).write(true).open("/dev/null").io_at("open", "/dev/null")?;
    let log_file = std::fs::File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)
        .or_else(|_| null.try_clone())
        .io_at("open", log)?;
    // EPERM: it leads a session already.
    let _ = nix::unistd::setsid();
    nix::unistd::dup2_stdin(null.as_fd()).io_at("redirect", "standard input")?;
    nix::unistd::dup2_stderr(log_file.as_fd()).io_at("redirect", "standard error")?;
    close_inherited();
    std::env::set_current_dir("/").io_at("change to", "/")?;
    // The parent may be gone; then nobody wants this mount.
    let mut parent = std::io::stdout().lock();
    writeln!(parent, "{said}").and_then(|()| parent.flush()).io_at("tell who started the mount", "")?;
    nix::unistd::dup2_stdout(null.as_fd()).io_at("redirect", "standard output")
}

/// Only now: a passphrase may have come through one of them (`--passphrase-file <(...)`).
fn close_inherited() {
    let list = std::env::var(CHILD).unwrap_or_default();
    for fd in list.split(',').filter_map(|n| n.parse::<RawFd>().ok()).filter(|n| *n > 2) {
        let _ = nix::unistd::close(fd);
    }
}
