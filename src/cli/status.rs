//! `wrapdisk status`.

use std::path::{Path, PathBuf};

use super::context::Context;
use super::{guest, output, size, watch};
use crate::cache::CacheStats;
use crate::control::MountStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::guard::GuardStatus;
use crate::guard::guests::GuestList;
use crate::revocation::show_duration;

/// Show what is mounted: disk, key version, cache and I/O counters
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk status
  wrapdisk status /mnt/vm
  wrapdisk status --watch                            state, key version, probes, rotation, grace
  wrapdisk status --watch --output json | while read -r change; do ...; done
  wrapdisk status --output json | jq '.[].cache'")]
pub(super) struct Args {
    /// Only this one: container, mountpoint or uuid
    disk: Option<PathBuf>,

    /// Show it again and again: a table each second on a terminal, otherwise a line for each change
    #[arg(long, short)]
    watch: bool,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let mounts = look(context, args.disk.as_deref())?;
    if args.watch {
        // The one that was named may be unmounted meanwhile; that is news, not an error.
        let only =
            args.disk.as_ref().map(|_| mounts.iter().map(|m| m.mountpoint.clone()).collect::<Vec<_>>());
        return watch::run(context, args.output.json(), |context| {
            let mut mounts = context.mounts()?;
            mounts.retain(|mount| only.as_ref().is_none_or(|only| only.contains(&mount.mountpoint)));
            Ok(mounts)
        });
    }
    let guests: Vec<_> = mounts.iter().map(|mount| guests_of(context, mount)).collect();
    if args.output.json() {
        return output::json(&mounts.iter().zip(&guests).map(document).collect::<Result<Vec<_>>>()?);
    }
    if mounts.is_empty() {
        return output::line("nothing is mounted");
    }
    for (i, (mount, guests)) in mounts.iter().zip(&guests).enumerate() {
        if i > 0 {
            output::line("")?;
        }
        show(mount, guests)?;
    }
    Ok(())
}

fn look(context: &Context, disk: Option<&Path>) -> Result<Vec<MountStatus>> {
    match disk {
        None => context.mounts(),
        Some(disk) => Ok(vec![context.mounted(disk)?]),
    }
}

/// None where the mount does not say; its status is worth having all the same.
fn guests_of(context: &Context, mount: &MountStatus) -> GuestList {
    guest::of(context, mount).unwrap_or_else(|e| {
        log::warn!("{}", e.or_at(&mount.mountpoint).chain());
        GuestList::default()
    })
}

fn document((mount, guests): (&MountStatus, &GuestList)) -> Result<serde_json::Value> {
    let encode = |e| Error::new(ErrorKind::Other, "encode").caused_by(e);
    let mut value = serde_json::to_value(mount).map_err(encode)?;
    value["guests"] = serde_json::to_value(&guests.guests).map_err(encode)?;
    value["unregistered"] = serde_json::to_value(&guests.unregistered).map_err(encode)?;
    Ok(value)
}

fn show(m: &MountStatus, guests: &GuestList) -> Result<()> {
    let mut state = m.state.clone();
    if m.read_only {
        state.push_str(", read-only");
    }
    if m.unguarded {
        state.push_str(", unguarded (opened without the vault)");
    }
    if !m.memory_locked {
        state.push_str(", key memory may reach swap (raise RLIMIT_MEMLOCK)");
    }
    let io = &m.io;
    let mut fields = vec![
        ("disk", m.disk.display().to_string()),
        ("file", m.file.display().to_string()),
        ("state", state),
        ("size", size::show(m.size)),
        ("uuid", m.uuid.clone()),
        ("set", m.set.clone().unwrap_or_else(|| "none".to_owned())),
        ("key", m.key.clone().unwrap_or_else(|| "none (passphrase)".to_owned())),
        ("process", format!("{} since {}", m.pid, m.mounted_at)),
        (
            "I/O",
            format!(
                "{} reads ({}), {} writes ({}), {} discards, {} syncs, {} errors",
                io.reads,
                size::show(io.read_bytes),
                io.writes,
                size::show(io.written_bytes),
                io.discards,
                io.flushes,
                io.errors
            ),
        ),
    ];
    if let Some(guard) = &m.guard {
        fields.push(("guard", watch(guard)));
        fields.push(("on revoke", on_revoke(guard)));
        if !guard.reason.is_empty() {
            fields.push(("vault", guard.reason.clone()));
        }
    }
    if let Some(e) = &m.rotation_error {
        fields.push(("rotation", format!("stopped: {e}")));
    }
    fields.push(("cache", m.cache.as_ref().map_or_else(|| "off".to_owned(), cache)));
    for guest in &guests.guests {
        fields.push(("guest", format!("{} ({})", guest.qmp.display(), guest::describe(guest))));
    }
    for holder in &guests.unregistered {
        fields.push(("guest", format!("{holder}, not registered: see wrapdisk guest add --help")));
    }
    output::fields(&fields)
}

/// `degraded (outage) since ..., asked at ..., next at ..., I/O ends in ...`
fn watch(g: &GuardStatus) -> String {
    let why = g.cause.map(|cause| cause.name().to_owned()).or_else(|| g.why.clone());
    let mut text = g.state.clone();
    text.push_str(&why.map(|why| format!(" ({why})")).unwrap_or_default());
    text.push_str(&format!(" since {}, the vault said yes at {}", g.since, g.last_good));
    if let Some(next) = &g.next_probe {
        text.push_str(&format!(", next asked at {next}"));
    }
    if let Some(left) = g.grace_left {
        let left = std::time::Duration::from_secs(left);
        text.push_str(&format!("; I/O ends in {} unless it says yes", show_duration(left)));
    }
    if g.waiting > 0 {
        text.push_str(&format!("; {} requests wait", g.waiting));
    }
    text
}

fn on_revoke(g: &GuardStatus) -> String {
    let (interval, grace) = (show_duration(g.policy.probe_interval), g.policy.outage_grace);
    format!("{}; asked every {interval} at least, an outage is forgiven for {grace}", g.on_revoke)
}

fn cache(c: &CacheStats) -> String {
    let asked = c.hits + c.misses;
    let rate = (c.hits * 100)
        .checked_div(asked)
        .map_or_else(|| "unused".to_owned(), |rate| format!("{rate} % hits"));
    let bytes = |blocks: u64| size::show(blocks * crate::cache::BLOCK as u64);
    format!(
        "{rate} ({} hits, {} misses, {} evictions), {} of {}",
        c.hits,
        c.misses,
        c.evictions,
        bytes(c.blocks),
        bytes(c.capacity)
    )
}
