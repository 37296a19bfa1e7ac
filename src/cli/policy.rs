//! What is to happen when a key is taken away, as options: of `mount`, `set create` and `set update`.

use std::time::Duration;

use crate::error::Result;
use crate::revocation::{Grace, OnRevoke, Policy, PolicyChange, parse_duration};
use crate::set::{Set, SetStore};

/// Each overrides what the set has, or the default.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[command(next_help_heading = "When the key is taken away")]
pub(super) struct PolicyArgs {
    /// What I/O meets then: eio (an error), freeze (it waits for the key) or shutdown (an error, and registered guests are
    /// quit) [default: the set's; shutdown with guests, else eio]
    #[arg(long, value_name = "ACTION", value_parser = |text: &str| OnRevoke::parse(text))]
    on_revoke: Option<OnRevoke>,

    /// Ask the vault at least this often, 5s to 1h; I/O ends within twice this time of a revocation [default: the set's;
    /// 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    probe_interval: Option<Duration>,

    /// How long a vault that cannot be asked is forgiven: a time, 0 or never [default: the set's; 24h]
    #[arg(long, value_name = "TIME", value_parser = Grace::parse)]
    outage_grace: Option<Grace>,

    /// How long a vault is forgiven that does not believe who asks [default: the set's; 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    auth_grace: Option<Duration>,

    /// How long a vault is forgiven that refuses this machine's address [default: the set's; 15m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    firewall_grace: Option<Duration>,

    /// Longest wait of a frozen request; then it fails [default: the set's; 10m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    freeze_max: Option<Duration>,

    /// Let guests power down for this long before I/O ends, at most half the probe interval [default: the set's; 0]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    shutdown_window: Option<Duration>,
}

impl PolicyArgs {
    /// What was given.
    pub(super) const fn change(&self) -> PolicyChange {
        PolicyChange {
            probe_interval: self.probe_interval,
            on_revoke: self.on_revoke,
            outage_grace: self.outage_grace,
            auth_grace: self.auth_grace,
            firewall_grace: self.firewall_grace,
            freeze_max: self.freeze_max,
            shutdown_window: self.shutdown_window,
            recovery_mounts: None,
        }
    }
}

/// What a set says for all its mounts.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct SetPolicyArgs {
    #[command(flatten)]
    policy: PolicyArgs,

    /// Whether a recovery passphrase may open the set's disks without the vault, which no revocation reaches [default:
    /// allow]
    #[arg(long, value_name = "allow|deny", value_parser = parse_allowed)]
    recovery_mounts: Option<bool>,
}

fn parse_allowed(text: &str) -> Result<bool, String> {
    match text {
        "allow" => Ok(true),
        "deny" => Ok(false),
        _ => Err("allowed allow or deny".to_owned()),
    }
}

impl SetPolicyArgs {
    fn change(&self) -> PolicyChange {
        PolicyChange { recovery_mounts: self.recovery_mounts, ..self.policy.change() }
    }

    /// Whether anything was given.
    pub(super) fn any(&self) -> bool {
        self.change() != PolicyChange::default()
    }

    /// Before a set is made for it.
    pub(super) fn check(&self) -> Result<()> {
        Policy::default().with(&self.change()).map(drop)
    }

    /// Changes the set's policy, for mounts from now on.
    pub(super) fn apply(&self, sets: &SetStore, set: &Set) -> Result<()> {
        if !self.any() {
            return Ok(());
        }
        sets.set_policy(set.id, &sets.policy(set.id)?.with(&self.change())?)
    }
}
