//! What the guard reports: to the log, to whoever looks after guests and hooks, to `status`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::revocation::OnRevoke;
use crate::vault::Denial;

/// Why a mount that serves is in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The vault said no once; it is asked again before that is believed.
    Suspect,
    /// The vault cannot be asked.
    Outage,
    /// The vault does not believe who asks.
    Auth,
    /// The vault refuses this machine's address.
    Firewall,
    /// The vault answers with another key, or cannot read the wrapped one.
    Corrupt,
}

impl Cause {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Suspect, Self::Outage, Self::Auth, Self::Firewall, Self::Corrupt];

    /// A stable word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Suspect => "suspect",
            Self::Outage => "outage",
            Self::Auth => "auth",
            Self::Firewall => "firewall",
            Self::Corrupt => "corrupt",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why the gate was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The vault says no.
    Denied(Denial),
    /// It said no once, and could not be asked again in time.
    Unconfirmed(Denial),
    /// The grace of a trouble is over.
    Expired(Cause),
    /// The guard itself is dead or stuck: its lease on the key ran out.
    Unguarded,
}

impl Why {
    /// A stable word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Denied(denial) | Self::Unconfirmed(denial) => match denial {
                Denial::Disabled => "disabled",
                Denial::Deleted => "deleted",
                Denial::NoPermission => "no-permission",
                Denial::Expired => "expired",
                Denial::Firewall => "firewall",
            },
            Self::Expired(cause) => cause.name(),
            Self::Unguarded => "unguarded",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(denial) => write!(f, "the vault refuses the key: {denial}"),
            Self::Unconfirmed(denial) => {
                write!(f, "the vault refused the key ({denial}) and could not be asked again")
            }
            Self::Expired(cause) => write!(f, "the grace for trouble with the vault ({cause}) is over"),
            Self::Unguarded => f.write_str("the guard of the key does not answer"),
        }
    }
}

/// What happened to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It serves, but the vault gives trouble.
    Degraded {
        /// Which.
        cause: Cause,
    },
    /// The trouble is over; nothing had been stopped.
    Recovered {
        /// How long it was.
        after: Duration,
    },
    /// The trouble lasts.
    Warned {
        /// Which.
        cause: Cause,
        /// How much of the grace is gone: 50, 80, 95.
        percent: u8,
        /// Until the fence.
        left: Duration,
    },
    /// The key version that wraps the disk's key is about to expire, or did (negative).
    Expiring {
        /// Whole days.
        days: i64,
    },
    /// I/O has ended, the key is gone from memory.
    Fenced {
        /// Why.
        why: Why,
    },
    /// I/O goes on.
    Resumed {
        /// How long it was stopped.
        after: Duration,
    },
    /// The key in the header is another one now: a rotation, or a new set.
    KeyChanged,
}

impl EventKind {
    /// A stable word: `degraded`, `recovered`, `warned`, `expiring`, `fenced`, `resumed`, `key-changed`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Degraded { .. } => "degraded",
            Self::Recovered { .. } => "recovered",
            Self::Warned { .. } => "warned",
            Self::Expiring { .. } => "expiring",
            Self::Fenced { .. } => "fenced",
            Self::Resumed { .. } => "resumed",
            Self::KeyChanged => "key-changed",
        }
    }
}

/// See the module's header. Holds no secret.
#[derive(Clone, Debug)]
pub struct GuardEvent {
    /// Unix seconds.
    pub at: i64,
    /// What.
    pub kind: EventKind,
    /// The container's uuid.
    pub disk: String,
    /// The set's name.
    pub set: String,
    /// The key version.
    pub kid: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// For people: what the vault said.
    pub reason: String,
    /// What the policy says now, with its default resolved: [`OnRevoke::Shutdown`] ends guests.
    pub on_revoke: OnRevoke,
}

impl fmt::Display for GuardEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.mountpoint.display();
        match &self.kind {
            EventKind::Degraded { cause } => write!(f, "{place}: degraded ({cause})")?,
            EventKind::Recovered { after } => {
                write!(f, "{place}: the vault answers again after {} s", after.as_secs())?;
            }
            EventKind::Warned { cause, percent, left } => {
                let left = left.as_secs();
                write!(
                    f,
                    "{place}: degraded ({cause}): {percent} % of the grace is gone, I/O ends in {left} s"
                )?;
            }
            EventKind::Expiring { days } if *days < 0 => write!(f, "{place}: the key has expired")?,
            EventKind::Expiring { days } => write!(f, "{place}: the key expires in {days} days")?,
            EventKind::Fenced { why } => write!(f, "{place}: REVOKED, I/O has ended: {why}")?,
            EventKind::Resumed { after } => {
                write!(f, "{place}: resumed, I/O goes on after {} s", after.as_secs())?;
            }
            EventKind::KeyChanged => write!(f, "{place}: the key is another one now")?,
        }
        write!(f, " (key {}, set {})", self.kid, self.set)?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, ": {}", self.reason) }
    }
}

/// Who does something about it: guests, hooks, notifications. The guard calls it on a thread of its own, one call after the
/// other, and waits for none but [`Responder::before_fence`], and for that no longer than `window`.
pub trait Responder: Send + Sync {
    /// The gate will be closed in `window`, or as soon as this returns: guests may power down. With a window of zero they
    /// are only stopped, for which the fence waits half a second at most, and not at all when they will be ended.
    fn before_fence(&self, window: Duration);

    /// I/O has ended.
    fn fenced(&self, event: &GuardEvent);

    /// I/O goes on.
    fn resumed(&self, event: &GuardEvent);

    /// Anything else.
    fn changed(&self, event: &GuardEvent);

    /// Whether guests are registered: it decides the default of `--on-revoke`.
    fn has_guests(&self) -> bool {
        false
    }
}

/// Only logs.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOnly;

impl Responder for LogOnly {
    fn before_fence(&self, _window: Duration) {}
    fn fenced(&self, event: &GuardEvent) {
        log::error!("{event}");
    }
    fn resumed(&self, event: &GuardEvent) {
        log::warn!("{event}");
    }
    fn changed(&self, event: &GuardEvent) {
        log::warn!("{event}");
    }
}
