//! Entries of the system's journal, in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram, a field a
//! line. A crate would be longer to read than this page, and none takes the socket's place from its caller.
//!
//! Must never see: anything of the crate but errors. No secret is ever a field.
//!
//! Invariants:
//! 1. Sending never blocks: a journal that is full, or not there, costs its entry, and the caller falls back to the log.
//! 2. An entry is bounded: a value is cut at 8 KiB.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, IoContext, Result};

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Names another socket, as a container or a test has it.
const VARIABLE: &str = "WRAPDISK_JOURNAL_SOCKET";

/// Longest value; far under what a datagram takes (`net.core.wmem_default`), so no memfd is ever needed.
const MAX_VALUE: usize = 8 * 1024;

/// Most fields of an entry.
const MAX_FIELDS: usize = 24;

/// How urgent: syslog(3)'s numbers, as PRIORITY has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// I/O has stopped.
    Critical = 2,
    /// It will, unless somebody acts.
    Error = 3,
    /// Something is odd.
    Warning = 4,
    /// Normal, but worth keeping.
    Notice = 5,
    /// For the record.
    Info = 6,
}

impl Priority {
    /// As the log has it.
    #[must_use]
    pub const fn level(self) -> log::Level {
        match self {
            Self::Critical | Self::Error => log::Level::Error,
            Self::Warning | Self::Notice => log::Level::Warn,
            Self::Info => log::Level::Info,
        }
    }
}

/// The way to a journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The system's journal, or the one that `WRAPDISK_JOURNAL_SOCKET` names.
    ///
    /// # Errors
    /// No socket can be made. Whether a journal is there shows when something is sent.
    pub fn system() -> Result<Self> {
        Self::at(std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map_or(SOCKET.into(), PathBuf::from))
    }

    /// The journal that listens at this socket.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn at(path: PathBuf) -> Result<Self> {
        let socket = UnixDatagram::unbound().io_at("make a socket for the journal", &path)?;
        socket.set_nonblocking(true).io_at("make a socket for the journal", &path)?;
        Ok(Self { socket, path })
    }

    /// Sends one entry: `MESSAGE`, `MESSAGE_ID`, `PRIORITY`, `SYSLOG_IDENTIFIER` and these.
    ///
    /// # Errors
    /// `NotFound` where there is no journal, `Busy` when it does not keep up; `InvalidInput`: a name the journal would drop.
    pub fn send(
        &self,
        id: uuid::Uuid,
        priority: Priority,
        message: &str,
        fields: &[(&str, &str)],
    ) -> Result<()> {
        let mut entry = Vec::with_capacity(512);
        field(&mut entry, "MESSAGE", message);
        field(&mut entry, "MESSAGE_ID", &id.simple().to_string());
        field(&mut entry, "PRIORITY", &(priority as u8).to_string());
        field(&mut entry, "SYSLOG_IDENTIFIER", "wrapdisk");
        for (name, value) in fields.iter().take(MAX_FIELDS) {
            if !is_name(name) {
                let message = format!("field of the journal: found {name:?}, allowed A-Z, 0-9 and _");
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            field(&mut entry, name, value);
        }
        self.socket.send_to(&entry, &self.path).map(|_| ()).io_at("send to the journal", &self.path)
    }
}

/// What the journal takes from a client: no underscore in front, that is for what it finds out itself.
fn is_name(name: &str) -> bool {
    let letters = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    (1..=64).contains(&name.len())
        && name.bytes().all(letters)
        && name.as_bytes().first().is_some_and(u8::is_ascii_uppercase)
}

/// `NAME=value`, or with a newline in it: the name alone, the length as eight bytes little endian, the value.
fn field(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = cut(value, MAX_VALUE);
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// At most `len` bytes, in whole characters.
fn cut(text: &str, len: usize) -> &str {
    let end = (0..=len.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// Does standard error end up in the journal anyway (systemd.exec(5), `JOURNAL_STREAM`)? Then the log need not say what was
/// sent.
#[must_use]
pub fn has_standard_error() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    nix::sys::stat::fstat(std::io::stderr())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_cut_in_whole_characters_and_one_with_newlines_has_its_length() {
        assert_eq!(cut("a\u{e9}b", 2), "a");
        assert_eq!(cut("a\u{e9}b", 3), "a\u{e9}");
        assert_eq!(cut("ab", 9), "ab");
        let mut entry = Vec::new();
        field(&mut entry, "A", "x");
        field(&mut entry, "B", "y\nPRIORITY=0");
        assert_eq!(entry, b"A=x\nB\n\x0c\0\0\0\0\0\0\0y\nPRIORITY=0\n");
    }

    #[test]
    fn a_name_that_the_journal_would_drop_is_refused() {
        for (name, good) in [("WRAPDISK_SET", true), ("A1", true), ("", false), ("_PID", false), ("a", false)]
        {
            assert_eq!(is_name(name), good, "{name}");
        }
        for name in ["A=B", "A\nPRIORITY", "1A", "A B"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
