//! QMP, the control protocol of QEMU (its docs/interop/qmp-spec.rst): what a guard says to a guest.
//!
//! Six commands and two answers that are looked into; the crates that speak QMP bring the whole schema and none bounds what
//! it reads. A monitor serves one client at a time, so a connection is made for each conversation and closed after it: give a
//! guest a monitor of its own.
//!
//! Must never see: disks, keys, policies. What comes from the socket is hostile input.
//!
//! Invariants:
//! 1. Every conversation ends by its deadline, whatever the other side does or does not do.
//! 2. At most 256 KiB and a chunk of the other side's are held at a time, and they are parsed only when they are whole.

use std::io::{ErrorKind::WouldBlock, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use serde::Deserialize;

use crate::error::{Error, ErrorKind, IoContext, Result};

/// Longest line. The longest answer we ask for, `query-block`, takes about a kilobyte a disk.
const MAX_LINE: usize = 256 * 1024;

/// Between two tries to reach a monitor that another client keeps busy.
const AGAIN: Duration = Duration::from_millis(10);

/// Most of an error's text that is shown.
const MAX_TEXT: usize = 200;

/// A conversation with a monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    /// Came in, and not yet consumed.
    buffer: Vec<u8>,
    deadline: Instant,
    pid: Option<u32>,
}

/// What a guest does (`RunState` of QEMU's schema, as far as it matters here).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// It runs.
    Running,
    /// Somebody stopped it.
    Paused,
    /// It met an I/O error and waits (`werror=stop`, `rerror=stop`).
    IoError,
    /// It has powered itself off (`-no-shutdown`).
    Shutdown,
    /// Anything else: migration, a watchdog, a panic.
    #[serde(other)]
    Other,
}

impl std::fmt::Display for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::IoError => "io-error",
            Self::Shutdown => "shutdown",
            Self::Other => "other",
        })
    }
}

/// What we read of the lines of a monitor: the greeting, answers, errors; events and what is new are passed over.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
    #[serde(rename = "return")]
    answer: Option<Box<serde_json::value::RawValue>>,
    error: Option<Refused>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct Refused {
    desc: String,
}

impl Qmp {
    /// Connects, reads the greeting and enters command mode; everything up to the end of the conversation is over by
    /// `deadline`.
    ///
    /// # Errors
    /// `NotFound` or `Io` when nobody listens there, `Busy`: another client has the monitor; `Unreachable`: no answer in
    /// time; `InvalidInput`: it does not speak QMP.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Self> {
        let stream = reach(path, deadline)?;
        let pid = peer(&stream);
        let mut qmp = Self { stream, buffer: Vec::new(), deadline, pid };
        let hello = qmp.hello();
        hello.map_err(|e| e.or_at(path))?;
        Ok(qmp)
    }

    fn hello(&mut self) -> Result<()> {
        let first = self.line()?;
        if parse(&first)?.greeting.is_none() {
            return Err(strange("no greeting"));
        }
        self.ask("qmp_capabilities", 0).map(drop)
    }

    /// The process that listens at a path, whether it says something or not.
    #[must_use]
    pub fn listener(path: &Path, deadline: Instant) -> Option<u32> {
        peer(&reach(path, deadline).ok()?)
    }

    /// The process that listens there; `None` where the kernel does not say.
    #[must_use]
    pub const fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Stops the virtual CPUs and waits for the I/O that is on its way.
    ///
    /// # Errors
    /// As [`Qmp::connect`]; `Other`: the monitor refused.
    pub fn stop(&mut self) -> Result<()> {
        self.ask("stop", 1).map(drop)
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// As [`Qmp::stop`].
    pub fn cont(&mut self) -> Result<()> {
        self.ask("cont", 2).map(drop)
    }

    /// Presses the power button: the guest's system shuts itself down, if it listens.
    ///
    /// # Errors
    /// As [`Qmp::stop`].
    pub fn powerdown(&mut self) -> Result<()> {
        self.ask("system_powerdown", 3).map(drop)
    }

    /// Ends QEMU, and waits until it is gone.
    ///
    /// # Errors
    /// As [`Qmp::stop`]; `Unreachable`: it still held its monitor at the deadline.
    pub fn quit(mut self) -> Result<()> {
        match self.ask("quit", 4) {
            // It may be gone before its answer is.
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Io => return Ok(()),
            Err(e) => return Err(e),
        }
        self.wait_for_end()
    }

    /// Waits until QEMU closes its end, which it does when it ends.
    ///
    /// # Errors
    /// `Unreachable`: not by the deadline.
    pub fn wait_for_end(mut self) -> Result<()> {
        loop {
            match self.line() {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Io => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    /// What the guest does.
    ///
    /// # Errors
    /// As [`Qmp::stop`].
    pub fn state(&mut self) -> Result<RunState> {
        #[derive(Deserialize)]
        struct Status {
            status: RunState,
        }
        let answer = self.ask("query-status", 5)?;
        Ok(serde_json::from_str::<Status>(&answer).map_err(|e| strange("query-status").caused_by(e))?.status)
    }

    /// The files behind its disks, as it names them.
    ///
    /// # Errors
    /// As [`Qmp::stop`].
    pub fn files(&mut self) -> Result<Vec<PathBuf>> {
        #[derive(Deserialize)]
        struct Device {
            inserted: Option<Inserted>,
        }
        #[derive(Deserialize)]
        struct Inserted {
            file: PathBuf,
            image: Option<Image>,
        }
        #[derive(Deserialize)]
        struct Image {
            filename: PathBuf,
        }
        let answer = self.ask("query-block", 6)?;
        let devices: Vec<Device> =
            serde_json::from_str(&answer).map_err(|e| strange("query-block").caused_by(e))?;
        let media = devices.into_iter().filter_map(|device| device.inserted);
        Ok(media.flat_map(|m| std::iter::once(m.file).chain(m.image.map(|i| i.filename))).collect())
    }

    /// Sends a command without arguments; the text of what it returns.
    fn ask(&mut self, command: &str, id: u64) -> Result<String> {
        let text = format!("{{\"execute\":\"{command}\",\"id\":{id}}}\n");
        let left = self.left()?;
        self.stream.set_write_timeout(Some(left)).io_at("QMP", "")?;
        self.stream.write_all(text.as_bytes()).map_err(|e| broken(command, e))?;
        loop {
            let line = self.line()?;
            let line = parse(&line)?;
            if line.id != Some(id) {
                continue; // an event, or the answer to nobody
            }
            if let Some(refused) = line.error {
                let why: String = refused.desc.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
                return Err(Error::new(ErrorKind::Other, format!("QMP {command}: refused: {why}")));
            }
            return match line.answer {
                Some(answer) => Ok(answer.get().to_owned()),
                None => Err(strange("neither an answer nor an error")),
            };
        }
    }

    /// The next line.
    fn line(&mut self) -> Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(searched + end + 1);
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                return Err(strange(&format!("a line longer than {MAX_LINE} bytes")));
            }
            let left = self.left()?;
            self.stream.set_read_timeout(Some(left)).io_at("QMP", "")?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    return Err(broken("the other side hung up", std::io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(len) => self.buffer.extend_from_slice(&chunk[..len]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken("read", e)),
            }
        }
    }

    /// Time that is left; never zero, which would mean for ever to the socket.
    fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(broken("wait", WouldBlock.into())) } else { Ok(left) }
    }
}

fn peer(stream: &UnixStream) -> Option<u32> {
    let pid = getsockopt(stream, PeerCredentials).ok()?.pid();
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

/// A connection whose making does not block: a monitor that is busy has a full queue, and connect(2) would wait for ever.
fn reach(path: &Path, deadline: Instant) -> Result<UnixStream> {
    let address = UnixAddr::new(path)
        .map_err(|e| Error::io("name of a QMP socket", e.into()).as_kind(ErrorKind::InvalidInput).at(path))?;
    loop {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).io_at("make a socket", path)?;
        match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address) {
            Ok(()) => {
                let stream = UnixStream::from(fd);
                stream.set_nonblocking(false).io_at("QMP", path)?;
                return Ok(stream);
            }
            Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => std::thread::sleep(AGAIN),
            Err(Errno::EAGAIN) => {
                return Err(Error::new(ErrorKind::Busy, "QMP: another client has this monitor")
                    .at(path)
                    .hint("give the guest a second one: -qmp unix:PATH,server=on,wait=off"));
            }
            Err(e) => return Err(Error::io("connect to the QMP socket", e.into()).at(path)),
        }
    }
}

fn parse(line: &[u8]) -> Result<Line> {
    serde_json::from_slice(line).map_err(|e| strange("a line that is no object of QMP").caused_by(e))
}

fn strange(what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("QMP: found {what}"))
}

/// `Unreachable` when time is up, `Io` when the other side is gone.
fn broken(what: &str, e: std::io::Error) -> Error {
    match e.kind() {
        WouldBlock | std::io::ErrorKind::TimedOut => {
            Error::new(ErrorKind::Unreachable, format!("QMP: {what}: no answer in time"))
        }
        _ => Error::io(format!("QMP: {what}"), e).as_kind(ErrorKind::Io),
    }
}
