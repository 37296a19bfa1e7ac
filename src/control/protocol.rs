//! What is asked of a mount, and how it refuses.
//!
//! Must never see: sockets. An answer is the JSON of what was asked for, or a [`Refusal`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// Longest request or answer in bytes.
pub const MAX_LINE: u64 = 64 * 1024;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Ask {
    /// -> [`super::MountStatus`].
    Status,
    /// -> [`GuestList`](crate::guard::guests::GuestList) after what is asked for was done.
    Guests(GuestAsk),
    /// Have the guard believe this for so long. -> [`Done`].
    Drill {
        /// `None`: what the vault really says.
        answer: Option<Rehearsed>,
        /// How long, unless it is renewed.
        seconds: u64,
    },
    /// Keys, grants or sets were changed: look now. -> [`Done`], before it has looked.
    Poke,
    /// Bring the container under its set's active version now. -> [`Rewrapped`].
    Rewrap(Rewrap),
}

/// How a container is to be rewrapped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rewrap {
    /// The uuid of a set that the container is assigned; `None`: the one it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// The data key under that set's active version, in base64, from somebody who had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrapped: Option<String>,
}

/// What a container is under now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rewrapped {
    /// The key versions of its tokens.
    pub kids: Vec<String>,
}

/// What a drill has a vault say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rehearsed {
    /// The key is disabled.
    Denied,
    /// Nothing.
    Outage,
}

/// What is asked about guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "guests", rename_all = "kebab-case")]
pub enum GuestAsk {
    /// Which there are, and what they do.
    List,
    /// One more, by its monitor.
    Add {
        /// The monitor's socket.
        qmp: PathBuf,
    },
    /// One less.
    Remove {
        /// The monitor's socket.
        qmp: PathBuf,
    },
}

/// The answer where there is nothing to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// The answer of a mount that does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What went wrong, with its causes.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The exit code of a command that fails so: what of its kind goes over the wire.
    #[serde(default = "failed")]
    pub exit: u8,
}

const fn failed() -> u8 {
    1
}

impl From<&Error> for Refusal {
    fn from(e: &Error) -> Self {
        Self { error: e.chain(), hint: e.advice().map(str::to_owned), exit: e.kind().exit_code() }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.exit {
            2 => ErrorKind::InvalidInput,
            3 => ErrorKind::Denied,
            4 => ErrorKind::Unreachable,
            5 => ErrorKind::Damaged,
            _ => ErrorKind::Other,
        };
        let e = Self::new(kind, refusal.error);
        match refusal.hint {
            Some(hint) => e.hint(hint),
            None => e,
        }
    }
}
