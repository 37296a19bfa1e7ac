//! The crate's error: a small stable [`ErrorKind`], what was tried on what, what to do next, and the cause.
//!
//! kind -> errno and kind -> exit code are decided here, each in one table, and nowhere else.
//! Must never see: anything else of the crate. Never put a key, a passphrase or a token into a message.

use std::fmt;
use std::path::Path;

/// What class of failure this is. Callers branch on it; people read the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The command line makes no sense.
    Usage,
    /// A value is malformed or out of range.
    InvalidInput,
    /// The thing named does not exist.
    NotFound,
    /// It exists already and would be overwritten.
    Exists,
    /// Somebody else holds it: lock, mountpoint, device.
    Busy,
    /// The operating system refuses this user.
    PermissionDenied,
    /// No space left: on the backing file system, or past the end of the disk.
    NoSpace,
    /// The backing store failed to read, write or sync.
    Io,
    /// The disk or its mount is read-only.
    ReadOnly,
    /// Valid, but not something this version does.
    Unsupported,
    /// It changed under us; look again.
    Conflict,
    /// The container is damaged or was tampered with.
    Damaged,
    /// The passphrase or volume key does not open this container.
    WrongKey,
    /// The vault refuses the use of the key (disabled, deleted, no permission, expired).
    Denied,
    /// The vault could not be asked.
    Unreachable,
    /// The mount's key gate is closed.
    Revoked,
    /// Anything else; a bug or an environment we did not foresee.
    Other,
}

impl ErrorKind {
    /// The errno a FUSE caller sees.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Usage | Self::InvalidInput => libc::EINVAL,
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::Busy => libc::EBUSY,
            Self::PermissionDenied => libc::EACCES,
            Self::NoSpace => libc::ENOSPC,
            Self::ReadOnly => libc::EROFS,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::Conflict => libc::EAGAIN,
            Self::Io
            | Self::Damaged
            | Self::WrongKey
            | Self::Denied
            | Self::Unreachable
            | Self::Revoked
            | Self::Other => libc::EIO,
        }
    }

    /// The exit code of the command line: 0 ok, 1 failed, 2 usage, 3 key denied, 4 vault unreachable, 5 damaged.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::WrongKey | Self::Denied | Self::Revoked => 3,
            Self::Unreachable => 4,
            Self::Damaged => 5,
            Self::InvalidInput
            | Self::NotFound
            | Self::Exists
            | Self::Busy
            | Self::PermissionDenied
            | Self::NoSpace
            | Self::Io
            | Self::ReadOnly
            | Self::Unsupported
            | Self::Conflict
            | Self::Other => 1,
        }
    }

    /// The kind of an operating system error.
    #[must_use]
    pub fn of_io(e: &std::io::Error) -> Self {
        match e.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            Some(libc::EROFS) => Self::ReadOnly,
            Some(libc::EACCES | libc::EPERM) => Self::PermissionDenied,
            Some(libc::ENOENT | libc::ENOTDIR) => Self::NotFound,
            Some(libc::EEXIST) => Self::Exists,
            Some(libc::EBUSY | libc::EWOULDBLOCK | libc::ETXTBSY) => Self::Busy,
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY) => Self::Unsupported,
            Some(libc::EINVAL) => Self::InvalidInput,
            _ => Self::Io,
        }
    }
}

/// The error of every fallible function in this crate.
pub struct Error {
    kind: ErrorKind,
    subject: Option<String>,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure of `kind`; the message says what was tried and what was found, in lower case, without a full stop.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, subject: None, message: message.into(), hint: None, source: None }
    }

    /// An operating system call that failed: `what` names it ("read", "open the vault").
    #[must_use]
    pub fn io(what: impl Into<String>, e: std::io::Error) -> Self {
        Self::new(ErrorKind::of_io(&e), what).caused_by(e)
    }

    /// What it happened to: a file, a disk, a key. The outermost caller that knows best wins.
    #[must_use]
    pub fn on(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// [`Error::on`] a path.
    #[must_use]
    pub fn at(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().display().to_string();
        self.on(path)
    }

    /// [`Error::at`], unless somebody below has named a subject.
    #[must_use]
    pub fn or_at(self, path: impl AsRef<Path>) -> Self {
        if self.subject.is_some() { self } else { self.at(path) }
    }

    /// The same failure as another class: a caller may know what it means here.
    #[must_use]
    pub const fn as_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The underlying cause.
    #[must_use]
    pub fn caused_by(mut self, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(e.into());
        self
    }

    /// The class of failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do next, where that is known.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// `subject: message: cause: cause`, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(e) = cause {
            text.push_str(": ");
            text.push_str(&e.to_string());
            cause = e.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(subject) = &self.subject {
            write!(f, "{subject}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

/// `result.at(path)`: the path of a plain I/O failure, said once at the call.
pub trait IoContext<T> {
    /// Turns an I/O error into [`Error`]: `what` was tried on `path`.
    fn io_at(self, what: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn io_at(self, what: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::io(what, e).at(path))
    }
}

impl<T> IoContext<T> for nix::Result<T> {
    fn io_at(self, what: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::io(what, e.into()).at(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_subject_message_and_every_cause_once() {
        let e = Error::io("write", std::io::Error::from_raw_os_error(libc::ENOSPC)).at("/x/vm.wd");
        assert_eq!(e.kind(), ErrorKind::NoSpace);
        assert_eq!(e.kind().errno(), libc::ENOSPC);
        assert_eq!(e.chain(), "/x/vm.wd: write: No space left on device (os error 28)");
    }
}
