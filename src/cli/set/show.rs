//! `wrapdisk set show`, `wrapdisk set list`.

use super::super::context::{Context, now};
use super::super::output;
use super::{elsewhere, to_json};
use crate::control::json_path;
use crate::error::Result;
use crate::revocation::OnRevoke;
use crate::set::Trouble;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk set show default
  wrapdisk set show default --output json | jq -r '.disks[].path'
  wrapdisk set show default --output json | jq .properties.autoKeyRotationError")]
pub(in super::super) struct Show {
    /// The set
    name: String,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn list(context: &Context, output: output::OutputArgs) -> Result<()> {
    let sets = context.existing()?.sets;
    let all = sets.list()?;
    if output.json() {
        return output::json(&all.iter().map(|set| to_json(&sets, set)).collect::<Result<Vec<_>>>()?);
    }
    let mut rows = Vec::new();
    for set in &all {
        let disks = sets.containers(Some(set.id))?;
        let left = disks.iter().filter(|disk| !set.is_done(&disk.kids)).count();
        let state = match (&set.trouble, left) {
            (Some(trouble), _) if trouble.is_serious() => trouble.code.clone(),
            (_, 0) => "ok".to_owned(),
            (_, left) => format!("rotating, {left} left"),
        };
        rows.push(vec![set.name.clone(), set.active.to_string(), disks.len().to_string(), state]);
    }
    output::table(&["NAME", "ACTIVE KEY", "DISKS", "STATE"], &rows)
}

pub(super) fn run(context: &Context, args: &Show) -> Result<()> {
    let sets = context.existing()?.sets;
    let set = sets.by_name(&args.name)?;
    let disks = sets.containers(Some(set.id))?;
    if args.output.json() {
        let mut value = to_json(&sets, &set)?;
        value["disks"] = disks
            .iter()
            .map(|d| serde_json::json!({ "uuid": d.uuid, "path": json_path::value(&d.path), "kids": d.kids }))
            .collect();
        return output::json(&value);
    }
    let vault = elsewhere(&sets, &set)?;
    let mut fields = vec![
        ("name", set.name.clone()),
        ("id", set.id.to_string()),
        ("vault", vault.as_ref().map_or_else(|| "local".into(), |v| format!("{} at {}", v.name, v.endpoint))),
        ("identity", vault.as_ref().map_or_else(|| set.identity.to_string(), |v| v.credential.to_string())),
        ("key", set.key.clone()),
        ("active version", set.active.version().to_owned()),
        ("follows", if set.pinned { "this version" } else { "the latest version" }.to_owned()),
        (
            "on revoke",
            set.policy.on_revoke.map_or("shutdown with guests, else eio", OnRevoke::name).to_owned(),
        ),
        ("created", output::time(set.created)),
        ("last rotation", set.last_rotation.map_or_else(|| "never".to_owned(), output::time)),
    ];
    let previous: Vec<&str> = set.previous.iter().map(|old| old.kid.version()).collect();
    let left = disks.iter().filter(|disk| !set.is_done(&disk.kids)).count();
    if !previous.is_empty() || left > 0 {
        let due = set.rotation_due.map_or_else(String::new, |due| {
            format!(", {} {}", if now() > due { "late since" } else { "due by" }, output::time(due))
        });
        fields.push(("rotating", format!("{left} of {} left{due}", disks.len())));
        fields.push(("previous versions", previous.join(", ")));
    }
    if let Some(trouble) = set.trouble.as_ref().filter(|trouble| trouble.is_serious()) {
        fields.push(("does not rotate", told(trouble)));
    }
    fields.push(("disks", disks.len().to_string()));
    output::fields(&fields)?;
    for disk in disks {
        let missing = if disk.path.exists() { "" } else { "  (missing)" };
        output::line(&format!("  {}{missing}", disk.path.display()))?;
    }
    Ok(())
}

/// A trouble in one line.
pub(super) fn told(trouble: &Trouble) -> String {
    format!("{} since {}: {}", trouble.code, output::time(trouble.since), trouble.message)
}
