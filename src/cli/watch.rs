//! `wrapdisk status --watch`: the same every second, until it is interrupted or nobody reads any more.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use super::context::{self, Context};
use super::output;
use crate::control::{MountStatus, json_path};
use crate::error::Result;

const EVERY: Duration = Duration::from_secs(1);

/// Cursor home, and what is there cleared to the end.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// A line of what matters.
struct Row {
    place: String,
    state: String,
    key: String,
    probed: String,
    rotation: String,
    grace: String,
}

/// Shows the mounts that `look` gives. On a terminal: a table that is drawn again; otherwise a line for each change.
pub(super) fn run(
    context: &Context,
    json: bool,
    look: impl Fn(&Context) -> Result<Vec<MountStatus>>,
) -> Result<()> {
    let table = std::io::stdout().is_terminal() && !json;
    let mut before: BTreeMap<PathBuf, String> = BTreeMap::new();
    loop {
        let mounts = look(context)?;
        if table {
            draw(&mounts)?;
        } else {
            changes(&mounts, &mut before, json)?;
        }
        std::thread::sleep(EVERY);
    }
}

fn draw(mounts: &[MountStatus]) -> Result<()> {
    output::line(&format!("{CLEAR}{}   every second; Ctrl-C ends it\n", output::time(context::now())))?;
    if mounts.is_empty() {
        return output::line("nothing is mounted");
    }
    let row = |mount: &MountStatus| {
        let row = row(mount);
        vec![row.place, row.state, row.key, row.probed, row.rotation, row.grace]
    };
    let head = ["MOUNT", "STATE", "KEY VERSION", "LAST PROBE", "NEXT ROTATION", "GRACE LEFT"];
    output::table(&head, &mounts.iter().map(row).collect::<Vec<_>>())
}

/// Says what is not as it was: a mount that is new, changed, or gone.
fn changes(mounts: &[MountStatus], before: &mut BTreeMap<PathBuf, String>, json: bool) -> Result<()> {
    let mut now = BTreeMap::new();
    for mount in mounts {
        let essence = essence(mount);
        if before.get(&mount.mountpoint) != Some(&essence) {
            say(mount, json)?;
        }
        now.insert(mount.mountpoint.clone(), essence);
    }
    for place in before.keys().filter(|place| !now.contains_key(*place)) {
        let at = output::time(context::now());
        output::line(&if json {
            serde_json::json!({ "time": at, "mountpoint": json_path::value(place), "state": "unmounted" })
                .to_string()
        } else {
            format!("{at}  {}  unmounted", place.display())
        })?;
    }
    *before = now;
    Ok(())
}

/// What makes a change: not the time of the last probe, nor counters.
fn essence(mount: &MountStatus) -> String {
    let guard = mount.guard.as_ref();
    let why = guard.map(|guard| (guard.cause, guard.why.clone(), guard.kid.clone(), guard.on_revoke));
    format!("{} {:?} {:?}", mount.state, why, mount.next_rotation)
}

fn say(mount: &MountStatus, json: bool) -> Result<()> {
    let at = output::time(context::now());
    if json {
        let guard = mount.guard.as_ref();
        let value = serde_json::json!({
            "time": at,
            "mountpoint": json_path::value(&mount.mountpoint),
            "uuid": mount.uuid,
            "state": mount.state,
            "cause": guard.and_then(|guard| guard.cause),
            "why": guard.and_then(|guard| guard.why.as_ref()),
            "reason": guard.map(|guard| &guard.reason),
            "key": guard.map_or(mount.key.as_ref(), |guard| Some(&guard.kid)),
            "lastProbe": guard.and_then(|guard| guard.last_probe.as_ref()),
            "nextRotation": mount.next_rotation,
            "graceLeft": guard.and_then(|guard| guard.grace_left),
        });
        return output::line(&value.to_string());
    }
    let row = row(mount);
    output::line(&format!("{at}  {}  {}  key {}", row.place, row.state, row.key))
}

fn row(mount: &MountStatus) -> Row {
    let none = || "-".to_owned();
    let guard = mount.guard.as_ref();
    let detail = guard.and_then(|guard| guard.why.clone().or_else(|| guard.cause.map(|c| c.to_string())));
    let state = match detail {
        Some(detail) => format!("{} ({detail})", mount.state),
        None if mount.unguarded => format!("{}, unguarded", mount.state),
        None => mount.state.clone(),
    };
    let kid = guard.map(|guard| guard.kid.clone()).or_else(|| mount.key.clone());
    Row {
        place: mount.mountpoint.display().to_string(),
        state,
        key: kid.map_or_else(none, |kid| version(&kid)),
        // Before the first probe: the mount itself, which asked as well.
        probed: guard.map_or_else(none, |guard| ago(guard.last_probe.as_deref().unwrap_or(&guard.last_good))),
        rotation: mount.next_rotation.clone().unwrap_or_else(none),
        grace: guard.and_then(|guard| guard.grace_left).map_or_else(none, seconds),
    }
}

/// `disk-kek/0123abcd`: the name, and as much of the version as tells it from others.
fn version(kid: &str) -> String {
    let mut parts = kid.rsplit('/');
    let (version, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{name}/{}", version.get(..8).unwrap_or(version))
}

fn ago(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(then) => format!("{} s ago", (context::now() - then.as_second()).max(0)),
        Err(_) => time.to_owned(),
    }
}

/// `1h02m`, `3m20s`, `45s`.
pub(super) fn seconds(n: u64) -> String {
    match (n / 3600, n / 60 % 60, n % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_and_times_are_short() {
        assert_eq!(
            super::version("https://v.vault.localhost/keys/disk-kek/0123456789abcdef"),
            "disk-kek/01234567"
        );
        assert_eq!(super::version("odd"), "/odd");
        assert_eq!([0, 59, 61, 3600 * 24 + 60].map(super::seconds), ["0s", "59s", "1m01s", "24h01m"]);
    }
}
