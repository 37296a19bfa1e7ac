//! `wrapdisk drill rotate`: a real rotation, watched. Nothing else shows that nobody notices.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::reader::{Reader, Seen};
use super::{Common, mounts_of};
use crate::cli::context::Context;
use crate::cli::{output, prompt, set};
use crate::control::{MountStatus, json_path};
use crate::error::{Error, ErrorKind, Result};
use crate::set::Set;
use crate::set::access::Access;
use crate::set::rotation::{self, Report};

/// How long mounts are watched before, for comparison.
const BEFORE: Duration = Duration::from_secs(2);

/// For a mount's guard to follow its header to the new version.
const FOLLOW: Duration = Duration::from_secs(30);

const LOOK: Duration = Duration::from_millis(50);

/// What a mount met.
struct Met {
    status: MountStatus,
    before: Seen,
    during: Seen,
    /// Its header is under the new version.
    follows: bool,
}

pub(super) fn run(context: &Context, args: &Common) -> Result<()> {
    let mounts = mounts_of(context, &args.set)?;
    let access = context.existing()?;
    let of = access.sets.by_name(&args.set)?;
    let name = own_key(&access, &of)?;
    let containers = access.sets.containers(Some(of.id))?.len();
    output::note(&format!("the key {name} gets a new version, which stays; the old one stays enabled"));
    output::note(&format!(
        "{containers} containers of {0} are rewrapped, {1} of them mounted; I/O goes on",
        of.name,
        mounts.len()
    ));
    prompt::confirm(&format!("rotate the set {}", of.name), args.yes)?;
    let mut readers = Vec::new();
    for (status, _) in mounts {
        let reader = Reader::start(&status.file)?;
        readers.push((status, reader));
    }
    std::thread::sleep(LOOK);
    readers.iter().for_each(|(_, reader)| reader.begin());
    std::thread::sleep(BEFORE);
    let before: Vec<_> = readers.iter().map(|(_, reader)| reader.seen()).collect();
    readers.iter().for_each(|(_, reader)| reader.begin());
    let start = Instant::now();
    access.vault.rotate_key(&name, &access.vault.admin(&format!("drill rotate {}", of.name)))?;
    let report = rotation::run(&access, &of, &set::mounts(context), &|_, _| ())?;
    let took = start.elapsed();
    let follows = follow(context, &readers, &report)?;
    let seen = readers.into_iter().zip(before).zip(follows);
    let met: Vec<_> = seen
        .map(|(((status, reader), before), follows)| Met { status, before, during: reader.seen(), follows })
        .collect();
    tell(args, &report, took, &met)
}

/// The key of a set that this machine's vault can rotate.
fn own_key(access: &Access, set: &Set) -> Result<String> {
    let refused = |message: &str| Err(Error::new(ErrorKind::Unsupported, message).on(&set.name));
    if set.pinned {
        return refused("found a set that stays with one version, allowed one that follows the latest");
    }
    if !access.is_local(&set.active) {
        return refused("found a key in a vault elsewhere, allowed one in the vault of this machine")
            .map_err(|e: Error| e.hint("make a new version there, then: wrapdisk set rotate"));
    }
    Ok(set.active.name().to_owned())
}

/// Waits until the mounts are under the new version; which are.
fn follow(context: &Context, readers: &[(MountStatus, Reader)], report: &Report) -> Result<Vec<bool>> {
    let start = Instant::now();
    loop {
        let now = context.mounts()?;
        let under = |of: &MountStatus| {
            let mount = now.iter().find(|mount| mount.mountpoint == of.mountpoint);
            mount.is_some_and(|mount| mount.key.as_deref() == Some(report.set.active.as_str()))
        };
        let follows: Vec<_> = readers.iter().map(|(status, _)| under(status)).collect();
        if follows.iter().all(|follows| *follows) || start.elapsed() > FOLLOW {
            return Ok(follows);
        }
        std::thread::sleep(LOOK);
    }
}

fn pause(seen: &Seen) -> f64 {
    let gap = seen.gap.map_or(Duration::ZERO, |(from, to)| to - from);
    (gap.as_secs_f64() * 10_000.0).round() / 10_000.0
}

fn tell(args: &Common, report: &Report, took: Duration, met: &[Met]) -> Result<()> {
    let good = |met: &Met| met.follows && met.during.failed == 0;
    let kept = report.is_complete() && met.iter().all(good);
    let seconds = (took.as_secs_f64() * 1000.0).round() / 1000.0;
    if args.output.json() {
        let mount = |met: &Met| {
            json!({
                "mountpoint": json_path::value(&met.status.mountpoint),
                "uuid": met.status.uuid,
                "longestPauseBeforeSeconds": pause(&met.before),
                "longestPauseSeconds": pause(&met.during),
                "failedReads": met.during.failed,
                "reads": met.during.served,
                "follows": met.follows,
                "kept": good(met),
            })
        };
        let mounts: Vec<Value> = met.iter().map(mount).collect();
        output::json(&json!({
            "drill": "rotate", "set": args.set, "kept": kept, "seconds": seconds, "keyUrl": report.set.active.as_str(),
            "rewrapped": report.rewrapped, "left": report.left.len(), "mounts": mounts,
        }))?;
    } else {
        output::line(&format!(
            "{} in {seconds:.3} s, {} left, now {}",
            args.set,
            report.left.len(),
            report.set.active
        ))?;
        let row = |met: &Met| {
            vec![
                met.status.mountpoint.display().to_string(),
                format!("{:.4} s", pause(&met.before)),
                format!("{:.4} s", pause(&met.during)),
                met.during.failed.to_string(),
                if good(met) { "ok" } else { "FAILED" }.to_owned(),
            ]
        };
        let rows: Vec<_> = met.iter().map(row).collect();
        output::table(&["MOUNT", "PAUSE BEFORE", "PAUSE DURING", "FAILED READS", ""], &rows)?;
    }
    if kept {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Other, "drill: the rotation is not complete, or a mount noticed it")
        .on(&args.set)
        .hint("wrapdisk set show says what is left, and why"))
}
