//! What a mount does when its key is taken away: how often the vault is asked, what is forgiven for how long, and what
//! happens to I/O and guests then. A set has one [`Policy`]; a mount may override parts of it ([`PolicyChange`]).
//!
//! Must never see: a clock, I/O, anything of the crate but `error`. Plain data: parsed, checked, printed.
//!
//! Invariant: every [`Policy`] there is lies within the ranges of [`Policy::with`], also one that was read from a database.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// What I/O meets behind the fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRevoke {
    /// An error (EIO), at once.
    Eio,
    /// It waits until the key is back, at most [`Policy::freeze_max`]; then an error.
    Freeze,
    /// An error, and the guests that use the disk are quit.
    Shutdown,
}

impl OnRevoke {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Eio, Self::Freeze, Self::Shutdown];

    /// `eio`, `freeze` or `shutdown`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eio => "eio",
            Self::Freeze => "freeze",
            Self::Shutdown => "shutdown",
        }
    }

    /// By its name.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|on| on.name() == text)
            .ok_or_else(|| refused("on-revoke", text, "eio, freeze or shutdown"))
    }
}

impl fmt::Display for OnRevoke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How long a vault that cannot be asked is forgiven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Grace {
    /// That long since it last said yes; zero: not at all.
    For(Duration),
    /// For ever.
    Never,
}

impl Grace {
    /// `never`, or a duration.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "never" { Ok(Self::Never) } else { parse_duration(text).map(Self::For) }
    }
}

impl fmt::Display for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(time) => f.write_str(&show_duration(*time)),
            Self::Never => f.write_str("never"),
        }
    }
}

impl TryFrom<String> for Grace {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Grace> for String {
    fn from(grace: Grace) -> Self {
        grace.to_string()
    }
}

/// See the module's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PolicyChange", into = "PolicyChange")]
pub struct Policy {
    /// P: the vault is asked at least this often; I/O ends within 2 P of a revocation.
    pub probe_interval: Duration,
    /// `None`: shutdown where guests are registered, else eio.
    pub on_revoke: Option<OnRevoke>,
    /// For a vault that cannot be asked.
    pub outage_grace: Grace,
    /// For a vault that does not believe who asks.
    pub auth_grace: Duration,
    /// For a vault that refuses this machine's address: it may have changed (RULINGS 22).
    pub firewall_grace: Duration,
    /// Longest wait of a frozen request, from the fence on.
    pub freeze_max: Duration,
    /// How long guests may take to power down before the fence, inside the 2 P.
    pub shutdown_window: Duration,
    /// Whether a recovery passphrase may mount a disk without its vault (RULINGS 27).
    pub recovery_mounts: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_secs(60),
            on_revoke: None,
            outage_grace: Grace::For(Duration::from_secs(24 * 3600)),
            auth_grace: Duration::from_secs(3600),
            firewall_grace: Duration::from_secs(15 * 60),
            freeze_max: Duration::from_secs(10 * 60),
            shutdown_window: Duration::ZERO,
            recovery_mounts: true,
        }
    }
}

/// What is to be different: of a set by `set update`, of one mount by its options. `None`: as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "each is the field of Policy")]
pub struct PolicyChange {
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub probe_interval: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_revoke: Option<OnRevoke>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage_grace: Option<Grace>,
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub auth_grace: Option<Duration>,
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub firewall_grace: Option<Duration>,
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub freeze_max: Option<Duration>,
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub shutdown_window: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_mounts: Option<bool>,
}

const SHORTEST_PROBE: Duration = Duration::from_secs(5);
const LONGEST_PROBE: Duration = Duration::from_secs(3600);
/// Of every other time: a year, so that no sum of two overflows anything.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

impl Policy {
    /// With a change applied.
    ///
    /// # Errors
    /// `InvalidInput` for what lies outside its range.
    pub fn with(&self, change: &PolicyChange) -> Result<Self> {
        let policy = Self {
            probe_interval: change.probe_interval.unwrap_or(self.probe_interval),
            on_revoke: change.on_revoke.or(self.on_revoke),
            outage_grace: change.outage_grace.unwrap_or(self.outage_grace),
            auth_grace: change.auth_grace.unwrap_or(self.auth_grace),
            firewall_grace: change.firewall_grace.unwrap_or(self.firewall_grace),
            freeze_max: change.freeze_max.unwrap_or(self.freeze_max),
            shutdown_window: change.shutdown_window.unwrap_or(self.shutdown_window),
            recovery_mounts: change.recovery_mounts.unwrap_or(self.recovery_mounts),
        };
        within("probe interval", policy.probe_interval, SHORTEST_PROBE, LONGEST_PROBE)?;
        if let Grace::For(time) = policy.outage_grace {
            within("outage grace", time, Duration::ZERO, LONGEST)?;
        }
        within("auth grace", policy.auth_grace, Duration::ZERO, LONGEST)?;
        within("firewall grace", policy.firewall_grace, Duration::ZERO, LONGEST)?;
        within("freeze-max", policy.freeze_max, Duration::ZERO, LONGEST)?;
        // Inside the promise of 2 P: finding out takes up to 1.25 of it.
        within("shutdown window", policy.shutdown_window, Duration::ZERO, policy.probe_interval / 2)?;
        Ok(policy)
    }

    /// What I/O meets behind the fence of a mount with or without registered guests.
    #[must_use]
    pub fn on_revoke(&self, has_guests: bool) -> OnRevoke {
        self.on_revoke.unwrap_or(if has_guests { OnRevoke::Shutdown } else { OnRevoke::Eio })
    }
}

fn within(what: &str, found: Duration, least: Duration, most: Duration) -> Result<()> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    let allowed = format!("{} to {}", show_duration(least), show_duration(most));
    Err(refused(what, &show_duration(found), &allowed))
}

fn refused(what: &str, found: &str, allowed: &str) -> Error {
    let shown: String = found.chars().take(32).flat_map(char::escape_debug).collect();
    Error::new(ErrorKind::InvalidInput, format!("{what}: found {shown}, allowed {allowed}"))
}

impl TryFrom<PolicyChange> for Policy {
    type Error = Error;

    fn try_from(change: PolicyChange) -> Result<Self> {
        Self::default().with(&change)
    }
}

impl From<Policy> for PolicyChange {
    fn from(policy: Policy) -> Self {
        Self {
            probe_interval: Some(policy.probe_interval),
            on_revoke: policy.on_revoke,
            outage_grace: Some(policy.outage_grace),
            auth_grace: Some(policy.auth_grace),
            firewall_grace: Some(policy.firewall_grace),
            freeze_max: Some(policy.freeze_max),
            shutdown_window: Some(policy.shutdown_window),
            recovery_mounts: Some(policy.recovery_mounts),
        }
    }
}

/// A duration: a whole number and `ms`, `s`, `m`, `h` or `d`; zero needs no unit.
///
/// # Errors
/// `InvalidInput`.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let wrong = || refused("duration", text, "a whole number with ms, s, m, h or d, such as 60s or 24h");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "" if number == 0 => 0,
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// As [`parse_duration`] reads it, in the largest unit up to hours that leaves no rest; below a millisecond it is cut.
#[must_use]
pub fn show_duration(time: Duration) -> String {
    match (time.as_secs(), time.subsec_millis()) {
        (0, 0) => "0".to_owned(),
        (_, millis) if millis > 0 => format!("{}ms", time.as_millis()),
        (secs, _) if secs % 3600 == 0 => format!("{}h", secs / 3600),
        (secs, _) if secs % 60 == 0 && secs > 60 => format!("{}m", secs / 60),
        (secs, _) => format!("{secs}s"),
    }
}

/// `60s` instead of serde's seconds and nanoseconds.
mod text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        time.map(super::show_duration).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let text: Option<String> = Option::deserialize(from)?;
        text.map(|text| super::parse_duration(&text).map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn durations_are_read_as_they_are_shown() {
        for (text, time, shown) in [
            ("0", secs(0), "0"),
            ("0s", secs(0), "0"),
            ("500ms", Duration::from_millis(500), "500ms"),
            ("1500ms", Duration::from_millis(1500), "1500ms"),
            ("60s", secs(60), "60s"),
            ("1m", secs(60), "60s"),
            ("90s", secs(90), "90s"),
            ("15m", secs(900), "15m"),
            ("24h", secs(86400), "24h"),
            ("1d", secs(86400), "24h"),
        ] {
            assert_eq!(parse_duration(text).unwrap(), time, "{text}");
            assert_eq!(show_duration(time), shown);
            assert_eq!(parse_duration(shown).unwrap(), time);
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1.5h",
            "1 h",
            "1H",
            "never",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert_eq!(parse_duration(text).unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
        }
        assert_eq!(Grace::parse("never").unwrap(), Grace::Never);
    }

    #[test]
    fn a_policy_outlives_its_text_and_absent_fields_are_the_defaults() {
        let change = PolicyChange {
            probe_interval: Some(secs(5)),
            on_revoke: Some(OnRevoke::Freeze),
            outage_grace: Some(Grace::Never),
            shutdown_window: Some(Duration::from_millis(2500)),
            ..PolicyChange::default()
        };
        let policy = Policy::default().with(&change).unwrap();
        let text = serde_json::to_string(&policy).unwrap();
        assert!(text.contains(r#""probeInterval":"5s","onRevoke":"freeze","outageGrace":"never""#), "{text}");
        assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
        assert_eq!(serde_json::from_str::<Policy>("{}").unwrap(), Policy::default());
    }

    #[test]
    fn what_is_out_of_range_is_refused_also_from_a_database() {
        for text in [
            r#"{"probeInterval":"4s"}"#,
            r#"{"probeInterval":"2h"}"#,
            r#"{"probeInterval":"10s","shutdownWindow":"6s"}"#,
            r#"{"authGrace":"366d"}"#,
            r#"{"outageGrace":"soon"}"#,
            r#"{"onRevoke":"explode"}"#,
        ] {
            assert!(serde_json::from_str::<Policy>(text).is_err(), "{text}");
        }
    }
}
