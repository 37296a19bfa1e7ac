//! `wrapdisk set list-associated-resources`: what needs a set's key, and how it stands.

use super::super::context::{Context, now};
use super::super::output;
use crate::control::{MountStatus, json_path};
use crate::error::Result;
use crate::set::{ContainerRecord, Set};

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk set list-associated-resources prod
  wrapdisk set list-associated-resources prod --key-version 1d9aba4cc88ea2e058a6cc04fa7ef82f
  wrapdisk set list-associated-resources prod --output json | jq -r '.[] | select(.late) | .path'

A container counts as late an hour after the version was made that it should be under.")]
pub(in super::super) struct Resources {
    /// The set
    name: String,

    /// Only what needs this version
    #[arg(long, value_name = "VERSION")]
    key_version: Option<String>,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn run(context: &Context, args: &Resources) -> Result<()> {
    let sets = context.existing()?.sets;
    let set = sets.by_name(&args.name)?;
    let mut containers = sets.containers(Some(set.id))?;
    if let Some(version) = &args.key_version {
        containers.retain(|c| {
            c.kids.iter().any(|kid| kid.rsplit('/').next().is_some_and(|v| v.eq_ignore_ascii_case(version)))
        });
    }
    let mounts = context.mounts()?;
    let all: Vec<Resource<'_>> = containers.iter().map(|c| Resource::of(&set, c, &mounts)).collect();
    if args.output.json() {
        return output::json(&all.iter().map(Resource::to_json).collect::<Vec<_>>());
    }
    if all.is_empty() {
        return output::line("nothing needs it");
    }
    let rows: Vec<Vec<String>> = all.iter().map(Resource::row).collect();
    output::table(&["KIND", "STATE", "VERSION", "PATH"], &rows)
}

struct Resource<'a> {
    container: &'a ContainerRecord,
    mountpoints: Vec<&'a std::path::Path>,
    missing: bool,
    done: bool,
    late: bool,
}

impl<'a> Resource<'a> {
    fn of(set: &Set, container: &'a ContainerRecord, mounts: &'a [MountStatus]) -> Self {
        let mounted = mounts.iter().filter(|m| m.uuid == container.uuid && m.disk == container.path);
        let (now, done) = (now(), set.is_done(&container.kids));
        // A read-only mount of a file that nobody may write is behind from the start (RULINGS 10).
        let shut =
            container.trouble.as_ref().is_some_and(|t| matches!(&*t.code, "ReadOnly" | "PermissionDenied"));
        Self {
            container,
            mountpoints: mounted.map(|m| &*m.mountpoint).collect(),
            missing: !container.path.exists(),
            done,
            late: set.is_late(&container.kids, now) || (shut && !done),
        }
    }

    fn to_json(&self) -> serde_json::Value {
        let c = self.container;
        serde_json::json!({
            "uuid": c.uuid, "kind": c.kind, "path": json_path::value(&c.path), "kids": c.kids,
            "mountpoints": self.mountpoints.iter().map(|m| json_path::value(m)).collect::<Vec<_>>(),
            "missing": self.missing, "upToDate": self.done, "late": self.late,
            "lastSeen": output::time(c.last_seen), "lastRewrap": c.last_rewrap.map(output::time),
            "error": c.trouble.as_ref().map(crate::set::Trouble::to_json),
        })
    }

    fn row(&self) -> Vec<String> {
        let c = self.container;
        let mut state = vec![if self.mountpoints.is_empty() { "not mounted" } else { "mounted" }.to_owned()];
        let marks = [(self.missing, "missing"), (self.late, "late"), (!self.done && !self.late, "rotating")];
        state.extend(marks.into_iter().filter(|(is, _)| *is).map(|(_, mark)| mark.to_owned()));
        if let Some(trouble) = &c.trouble {
            state.push(trouble.code.clone());
        }
        let versions: Vec<_> = c.kids.iter().filter_map(|kid| kid.rsplit('/').next()).collect();
        vec![c.kind.clone(), state.join(", "), versions.join(" "), c.path.display().to_string()]
    }
}
