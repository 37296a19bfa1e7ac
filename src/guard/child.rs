//! A program that is run on an occasion: bounded in time, in what it says, and in what it learns.
//!
//! Must never see: keys. A program gets the few variables of the environment that programs need, and what it is told on
//! purpose: what else is in ours may be a secret of somebody's.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::sync::{Mutex, lock};

/// What a program inherits.
const INHERITED: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
];

/// Where programs are when nothing says so.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is kept of what a program says.
const MAX_OUTPUT: usize = 4096;

/// Between two looks at whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

/// For what it said at its end to come through.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How a program ended, and the beginning of what it said.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) said: String,
}

/// Runs it to its end, or to `limit`, and then ends it with all it started.
pub(super) fn run(command: &mut Command, limit: Duration) -> Result<Ended> {
    let name = command.get_program().to_owned();
    let told: Vec<_> = command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
    let inherited = INHERITED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    let (mut reader, writer) = std::io::pipe().io_at("make a pipe", "")?;
    let second = writer.try_clone().io_at("make a pipe", "")?;
    command
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .envs(inherited)
        .envs(told)
        .current_dir("/")
        .process_group(0);
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let child = command.spawn();
    // Ours must go, or the pipe never ends; a Command keeps what it was given.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.io_at("start", &name)?;
    let said = Arc::new(Mutex::new(Vec::new()));
    let ears = std::thread::Builder::new().name("hook-output".to_owned()).spawn({
        let said = Arc::clone(&said);
        move || listen(&mut reader, &said)
    });
    let status = wait(&mut child, limit);
    // Also of one that ended by itself: what it left in its group would keep the pipe, and hooks are not a way to start
    // daemons (systemd-run is).
    let _ = i32::try_from(child.id()).map(|pid| killpg(Pid::from_raw(pid), Signal::SIGKILL));
    let _ = child.wait();
    let until = Instant::now() + LAST_WORDS;
    while ears.as_ref().is_ok_and(|ears| !ears.is_finished()) && Instant::now() < until {
        std::thread::sleep(LOOK);
    }
    let said = String::from_utf8_lossy(&lock(&said)).trim_end().to_owned();
    match status.io_at("wait for", &name)? {
        Some(status) => Ok(Ended { status, said }),
        None => {
            let message = format!("killed after {} s", limit.as_secs());
            Err(Error::new(ErrorKind::Busy, message).at(&name))
        }
    }
}

fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Reads to the end, so that the writer is never held up, and keeps the beginning.
fn listen(from: &mut impl Read, said: &Mutex<Vec<u8>>) {
    let mut chunk = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut chunk) {
        let mut said = lock(said);
        let room = MAX_OUTPUT.saturating_sub(said.len()).min(len);
        said.extend_from_slice(&chunk[..room]);
    }
}
