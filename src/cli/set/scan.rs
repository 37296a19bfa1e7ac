//! `wrapdisk set scan`.

use std::path::PathBuf;

use super::super::context::Context;
use super::super::output;
use crate::control::json_path;
use crate::error::Result;
use crate::set::find::{self, Scanned};

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk set scan /srv/disks
  wrapdisk set scan /srv/disks --output json | jq -r '.missing[].path'

Headers are the truth: what the registry says of a container is taken from its header. Links are not followed, and
other file systems below the folder are not looked at.")]
pub(in super::super) struct Scan {
    /// A folder
    dir: PathBuf,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn run(context: &Context, args: &Scan) -> Result<()> {
    let access = context.existing()?;
    let scan = find::scan(&access, &args.dir)?;
    if args.output.json() {
        return output::json(&serde_json::json!({
            "found": scan.found.iter().map(to_json).collect::<Vec<_>>(),
            "missing": scan.missing.iter().map(|c| serde_json::json!({ "uuid": c.uuid, "path": json_path::value(&c.path) })).collect::<Vec<_>>(),
            "unreadable": scan.unreadable.iter().map(|(path, why)| serde_json::json!({ "path": json_path::value(path), "error": why })).collect::<Vec<_>>(),
        }));
    }
    for found in &scan.found {
        let path = found.container.path.display();
        if found.new {
            output::line(&format!("{path}: {}, was not known", found.container.kind))?;
        }
        for old in &found.moved_from {
            output::line(&format!("{path}: moved, was {}", old.display()))?;
        }
        for copy in &found.copies {
            output::line(&format!(
                "{path}: the same disk as {}: each copy is kept and rotated",
                copy.display()
            ))?;
        }
    }
    for gone in &scan.missing {
        output::line(&format!("{}: missing", gone.path.display()))?;
    }
    for (path, why) in &scan.unreadable {
        output::note(&format!("{}: {why}", path.display()));
    }
    output::line(&format!("{} container(s), {} missing", scan.found.len(), scan.missing.len()))
}

fn to_json(found: &Scanned) -> serde_json::Value {
    let c = &found.container;
    let paths = |all: &[PathBuf]| all.iter().map(|p| json_path::value(p)).collect::<Vec<_>>();
    serde_json::json!({
        "uuid": c.uuid, "kind": c.kind, "path": json_path::value(&c.path), "kids": c.kids,
        "set": c.set.map(|id| id.to_string()), "new": found.new,
        "movedFrom": paths(&found.moved_from), "copies": paths(&found.copies),
    })
}
