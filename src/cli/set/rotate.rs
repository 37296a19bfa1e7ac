//! `wrapdisk set rotate`: also what the timer runs every 15 minutes for all sets.

use std::path::Path;

use super::super::context::{Context, now};
use super::super::output;
use crate::control::{DiskMounts, json_path};
use crate::error::{ErrorKind, Result};
use crate::set::access::Access;
use crate::set::rotation::{self, Report};
use crate::set::{ContainerRecord, Set, Trouble};
use crate::sync::{Mutex, lock};
use crate::vault::local::LocalVault;

#[derive(Debug, clap::Args)]
#[group(id = "which", required = true, multiple = false, args = ["name", "all"])]
#[command(after_long_help = "\
Examples:
  wrapdisk key rotate disk-kek && wrapdisk set rotate prod
  wrapdisk set rotate --all                    what wrapdisk-rotate.timer runs
  wrapdisk set rotate --all --output json | jq -r '.[].left[].path'

Only the header of a container changes: its data key is unwrapped with the old version of the key and wrapped with
the new one. Mounts go on; each does its own. What fails or is missing stays listed and is tried again by the next
run. The exit code is 0 when everything is under the newest version, 3 or 4 when nothing could be done because the
key was denied or its vault could not be reached, 1 otherwise.")]
pub(in super::super) struct Rotate {
    /// The set
    name: Option<String>,

    /// Every set
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    output: output::OutputArgs,
}

/// The mounts that may be asked to rewrap what they hold.
pub(in super::super) fn mounts(context: &Context) -> DiskMounts {
    DiskMounts::new(&context.dirs)
}

pub(super) fn run(context: &Context, args: &Rotate) -> Result<u8> {
    if args.all && !LocalVault::exists(&context.dirs.state) && !context.dirs.state.join("sets.db").exists() {
        // The timer runs before the first disk is made.
        return if args.output.json() { output::json(&[(); 0]) } else { Ok(()) }.map(|()| 0);
    }
    let access = context.existing()?;
    let sets = match &args.name {
        Some(name) => vec![access.sets.by_name(name)?],
        None => access.sets.list()?,
    };
    if let Some(set) = sets.first().filter(|set| args.name.is_some() && set.pinned && !set.is_rotating()) {
        output::note(&format!(
            "{0} stays with one version; to give it another: wrapdisk set update {0} --key NAME/VERSION",
            set.name
        ));
    }
    let mut reports = Vec::new();
    for set in sets {
        reports.push(one(context, &access, &set)?);
    }
    tell(&reports, args.output, args.name.is_some())?;
    Ok(exit_code(&reports))
}

fn one(context: &Context, access: &Access, set: &Set) -> Result<Report> {
    let bar: Mutex<Option<output::Progress>> = Mutex::new(None);
    rotation::run(access, set, &mounts(context), &|done, of| {
        let mut bar = lock(&bar);
        bar.get_or_insert_with(|| output::Progress::new("rotating", of as u64)).at(done as u64);
    })
}

/// The rest of a rotation that was begun here, to another key.
pub(super) fn follow(context: &Context, access: &Access, set: Set) -> Result<Report> {
    let bar: Mutex<Option<output::Progress>> = Mutex::new(None);
    let mut report = Report::begun(set);
    rotation::sweep(access, &mut report, &mounts(context), &|done, of| {
        let mut bar = lock(&bar);
        bar.get_or_insert_with(|| output::Progress::new("rotating", of as u64)).at(done as u64);
    })?;
    rotation::finish(access, &mut report)?;
    Ok(report)
}

pub(super) fn tell(reports: &[Report], output: output::OutputArgs, one: bool) -> Result<()> {
    if output.json() {
        let all: Vec<_> = reports.iter().map(to_json).collect();
        return if one { output::json(&all[0]) } else { output::json(&all) };
    }
    for report in reports {
        show(report)?;
    }
    Ok(())
}

fn show(report: &Report) -> Result<()> {
    let set = &report.set;
    let began = if report.began { ", a newer one than before" } else { "" };
    output::line(&format!(
        "{}: {} rewrapped, {} left, key {}{began}",
        set.name,
        report.rewrapped,
        report.left.len(),
        set.active
    ))?;
    if let Some((kid, from)) = &report.not_yet {
        output::note(&format!("  {kid} will be used when it is valid, from {}", output::time(*from)));
    }
    if let Some((trouble, _)) = &report.trouble {
        output::note(&format!("  {}: {}", trouble.code, trouble.message));
    }
    for (container, trouble, _) in &report.left {
        let late = if set.is_late(&container.kids, now()) { "late, " } else { "" };
        output::note(&format!(
            "  {}: {late}{}: {}",
            container.path.display(),
            trouble.code,
            without_subject(&trouble.message, &container.path)
        ));
    }
    Ok(())
}

/// The path is said already.
fn without_subject<'a>(message: &'a str, path: &Path) -> &'a str {
    message.strip_prefix(&format!("{}: ", path.display())).unwrap_or(message)
}

fn to_json(report: &Report) -> serde_json::Value {
    let set = &report.set;
    let left = |(c, trouble, _): &(ContainerRecord, Trouble, ErrorKind)| {
        serde_json::json!({
            "uuid": c.uuid, "kind": c.kind, "path": json_path::value(&c.path),
            "late": set.is_late(&c.kids, now()), "error": trouble.to_json(),
        })
    };
    serde_json::json!({
        "name": set.name,
        "id": set.id.to_string(),
        "keyUrl": set.active.as_str(),
        "began": report.began,
        "rewrapped": report.rewrapped,
        "left": report.left.iter().map(left).collect::<Vec<_>>(),
        "notYetValid": report.not_yet.as_ref().map(|(kid, from)| {
            serde_json::json!({ "keyUrl": kid.as_str(), "notBefore": output::time(*from) })
        }),
        "error": report.trouble.as_ref().map(|(trouble, _)| trouble.to_json()),
        "previousKeys": set.previous.iter().map(|old| old.kid.as_str()).collect::<Vec<_>>(),
        "complete": report.is_complete(),
    })
}

/// 3 or 4 when everything failed by that; 1 when something did.
pub(super) fn exit_code(reports: &[Report]) -> u8 {
    let failures = || {
        reports.iter().flat_map(|r| {
            r.trouble.iter().map(|(_, kind)| *kind).chain(r.left.iter().map(|(_, _, kind)| *kind))
        })
    };
    let progress = reports.iter().any(|r| r.rewrapped > 0);
    match failures().next() {
        None => 0,
        Some(first) if !progress && failures().all(|kind| kind.exit_code() == first.exit_code()) => {
            first.exit_code()
        }
        Some(_) => 1,
    }
}
