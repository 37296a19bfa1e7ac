//! `wrapdisk guest`: the virtual machines of a mount.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::context::Context;
use super::output;
use crate::control::MountStatus;
use crate::control::client;
use crate::control::protocol::{Ask, GuestAsk};
use crate::error::{IoContext, Result};
use crate::guard::guests::GuestList;

/// A mount looks at all its guests at once, and gives each half a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// Virtual machines that use a mounted disk: what the mount tells them when its key is revoked
///
/// QEMU offers a monitor (QMP) on a socket: start it with -qmp unix:SOCKET,server=on,wait=off, and give the mount one of
/// its own, since a monitor serves one client at a time. Before I/O ends a guest is stopped; with --on-revoke shutdown,
/// which is the default once a guest is registered, it is ended; one that was only stopped goes on when the key is back.
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk guest add /mnt/vm --qmp /run/vm.qmp
  wrapdisk guest list
  wrapdisk guest remove /mnt/vm --qmp /run/vm.qmp")]
pub(super) enum Command {
    Add(Add),
    List(List),
    Remove(Remove),
}

/// Tell a mount of a virtual machine that uses it
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk guest add /mnt/vm --qmp /run/vm.qmp
  wrapdisk mount vm.wd /mnt/vm --qmp /run/vm.qmp      the same from the start

The machine need not run yet. The mount remembers it until it is unmounted.")]
pub(super) struct Add {
    /// The mount: mountpoint, container or uuid
    disk: PathBuf,

    /// The socket of its monitor
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,
}

/// Show the virtual machines of one mount, or of all
///
/// QEMU processes that have the plaintext open and were not registered are shown as well; they are never touched.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk guest list
  wrapdisk guest list /mnt/vm --output json | jq -r '.[].guests[].state'")]
pub(super) struct List {
    /// Only those of this mount: mountpoint, container or uuid
    disk: Option<PathBuf>,

    #[command(flatten)]
    output: output::OutputArgs,
}

/// Have a mount forget a virtual machine; nothing happens to it
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk guest remove /mnt/vm --qmp /run/vm.qmp")]
pub(super) struct Remove {
    /// The mount: mountpoint, container or uuid
    disk: PathBuf,

    /// The socket of its monitor
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    match command {
        Command::Add(args) => add(context, args),
        Command::List(args) => list(context, args),
        Command::Remove(args) => {
            let mount = context.mounted(&args.disk)?;
            ask(context, &mount, GuestAsk::Remove { qmp: absolute(&args.qmp)? }).map(drop)
        }
    }
}

fn add(context: &Context, args: &Add) -> Result<()> {
    let mount = context.mounted(&args.disk)?;
    let qmp = absolute(&args.qmp)?;
    let list = ask(context, &mount, GuestAsk::Add { qmp: qmp.clone() })?;
    let Some(guest) = list.guests.iter().find(|guest| guest.qmp == qmp) else { return Ok(()) };
    let qmp = qmp.display();
    match (guest.state.as_str(), guest.uses_disk) {
        ("gone", _) => {
            output::note(&format!("{qmp}: nobody listens there yet; it is registered all the same"));
        }
        ("silent", _) => output::note(&format!(
            "{qmp}: no answer; a monitor serves one client at a time, so give the mount one of its own"
        )),
        (_, Some(false)) => {
            output::note(&format!("{qmp}: {} is not among its disks", mount.file.display()));
        }
        _ => {}
    }
    Ok(())
}

fn list(context: &Context, args: &List) -> Result<()> {
    let mounts = match &args.disk {
        Some(disk) => vec![context.mounted(disk)?],
        None => context.mounts()?,
    };
    let mut lists = Vec::new();
    for mount in mounts {
        match of(context, &mount) {
            Ok(list) => lists.push((mount, list)),
            // One that has just ended, or hangs, hides no other.
            Err(e) if args.disk.is_none() => log::warn!("{}", e.or_at(&mount.mountpoint).chain()),
            Err(e) => return Err(e),
        }
    }
    if args.output.json() {
        let value = |(mount, list): &(MountStatus, GuestList)| {
            let mut value = serde_json::json!({ "uuid": mount.uuid, "mountpoint": crate::control::json_path::value(&mount.mountpoint) });
            value["guests"] = serde_json::json!(list.guests);
            value["unregistered"] = serde_json::json!(list.unregistered);
            value
        };
        return output::json(&lists.iter().map(value).collect::<Vec<_>>());
    }
    let rows: Vec<_> = lists.iter().flat_map(|(mount, list)| rows(mount, list)).collect();
    if rows.is_empty() {
        return output::line("no guests");
    }
    output::table(&["MOUNT", "GUEST", "STATE", "PROCESS"], &rows)
}

fn rows(mount: &MountStatus, list: &GuestList) -> Vec<Vec<String>> {
    let place = mount.mountpoint.display().to_string();
    let mut rows = Vec::new();
    for guest in &list.guests {
        let pid = guest.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        rows.push(vec![place.clone(), guest.qmp.display().to_string(), describe(guest), pid]);
    }
    for holder in &list.unregistered {
        let name = format!("{} (not registered)", holder.name);
        rows.push(vec![place.clone(), name, "unknown".to_owned(), holder.pid.to_string()]);
    }
    rows
}

/// The state of a guest in words.
pub(super) fn describe(guest: &crate::guard::guests::GuestStatus) -> String {
    let mut state = guest.state.clone();
    if guest.stopped {
        state.push_str(", stopped at the fence");
    }
    if guest.uses_disk == Some(false) {
        state.push_str(", does not use this disk");
    }
    state
}

/// What a mount says of its guests.
pub(super) fn of(context: &Context, mount: &MountStatus) -> Result<GuestList> {
    ask(context, mount, GuestAsk::List)
}

fn ask(context: &Context, mount: &MountStatus, what: GuestAsk) -> Result<GuestList> {
    client::ask(&context.dirs, &mount.mountpoint, &Ask::Guests(what), PATIENCE)
}

fn absolute(qmp: &Path) -> Result<PathBuf> {
    std::path::absolute(qmp).io_at("resolve", qmp)
}
