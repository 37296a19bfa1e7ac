//! `wrapdisk drill`: rehearses on live mounts what happens when a key is revoked, a vault cannot be reached, or a key is
//! rotated, and measures how long I/O stops and when it goes on.
//!
//! Must never see: keys. The vault's answer is simulated in each mount's guard, and lent for a few seconds at a time: a drill
//! that is killed leaves no mount fenced.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::context::Context;
use super::{guest, output, prompt};
use crate::control::protocol::{Ask, Done, Rehearsed};
use crate::control::{MountStatus, client, json_path};
use crate::error::{Error, ErrorKind, Result};
use crate::guard::GuardStatus;
use crate::revocation::{Grace, OnRevoke};

mod reader;
mod rotate;

use reader::Reader;

/// How long a mount believes a simulated answer that nobody renews.
const LENT: Duration = Duration::from_secs(10);

/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(2);

/// Between two looks at the mounts.
const LOOK: Duration = Duration::from_millis(50);

/// How long the state that was rehearsed is kept.
const HOLD: Duration = Duration::from_secs(2);

/// What comes on top of twice the probe interval before a drill gives up: the shutdown window is inside, guests are not.
const SLACK: Duration = Duration::from_secs(15);

/// Rehearse on live mounts: revocation, an outage of the vault, rotation; and measure
///
/// No key is touched by revoke and outage: the guards of the mounts are given a simulated answer of their vault, and do
/// what they would do. So I/O really stops, and guests are really stopped or ended, as the policy of each mount says.
/// A drill that is interrupted is over for the mounts after ten seconds at most, and their next probe.
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk drill revoke prod
  wrapdisk drill outage prod --yes --output json
  wrapdisk drill rotate prod")]
pub(super) enum Command {
    Revoke(Revoke),
    Outage(Outage),
    Rotate(Rotate),
}

/// Have all mounts of a set believe that their key is disabled, and then that it is enabled again
///
/// Measures, for each mount: from the vault's answer to the last read that was served, and from its end to the first one
/// that is served again. Where the vault is elsewhere, the time until the next probe is part of it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk drill revoke prod
  wrapdisk drill revoke prod --yes --output json | jq -r '.mounts[].stopSeconds'")]
pub(super) struct Revoke {
    #[command(flatten)]
    common: Common,
}

/// Have all mounts of a set believe that their vault cannot be reached, and then that it can
///
/// I/O goes on inside the grace of an outage, and this measures the longest pause; with --outage-grace 0 it stops.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk drill outage prod
  wrapdisk drill outage prod --yes --output json | jq -r '.mounts[].longestPauseSeconds'")]
pub(super) struct Outage {
    #[command(flatten)]
    common: Common,
}

/// Rotate the key of a set for real, while its mounts are read, and show that nobody notices
///
/// The key gets a new version, which stays, and every container of the set is brought under it. The longest pause of
/// each mount is shown beside the longest one of the two seconds before.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk drill rotate prod
  wrapdisk drill rotate prod --yes --output json | jq -r '.mounts[].longestPauseSeconds'")]
pub(super) struct Rotate {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The disk encryption set
    set: String,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    output: output::OutputArgs,
}

/// A mount that takes part.
struct Actor {
    status: MountStatus,
    guard: GuardStatus,
    reader: Reader,
    /// When it was first seen in the state that is rehearsed.
    reached: Option<Instant>,
    /// When it was first seen to serve again.
    back: Option<Instant>,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    match command {
        Command::Revoke(args) => rehearse(context, &args.common, Rehearsed::Denied),
        Command::Outage(args) => rehearse(context, &args.common, Rehearsed::Outage),
        Command::Rotate(args) => rotate::run(context, &args.common),
    }
}

fn rehearse(context: &Context, args: &Common, what: Rehearsed) -> Result<()> {
    let mounts = mounts_of(context, &args.set)?;
    announce(context, &mounts, what);
    prompt::confirm(&format!("{} {} mounts of the set {}", name(what), mounts.len(), args.set), args.yes)?;
    let mut actors = Vec::new();
    for (status, guard) in mounts {
        let reader = Reader::start(&status.file)?;
        actors.push(Actor { status, guard, reader, reached: None, back: None });
    }
    std::thread::sleep(LOOK);
    let patience = actors.iter().map(|a| a.guard.policy.probe_interval).max().unwrap_or_default() * 2 + SLACK;
    for actor in &actors {
        actor.reader.begin();
    }
    let began = Instant::now();
    watch(context, &mut actors, Some(what), patience, |actor, state| {
        let there = if stops(&actor.guard, what) { state == "revoked" } else { state == "degraded" };
        if there {
            actor.reached.get_or_insert_with(Instant::now);
        }
        actor.reached.is_some_and(|at| at.elapsed() >= HOLD)
    })?;
    let ended = Instant::now();
    watch(context, &mut actors, None, patience, |actor, state| {
        if state == "ready" && actor.reader.seen().last > ended {
            actor.back.get_or_insert_with(Instant::now);
        }
        actor.back.is_some()
    })?;
    report(args, what, &actors, (began, ended))
}

const fn name(what: Rehearsed) -> &'static str {
    match what {
        Rehearsed::Denied => "revoke",
        Rehearsed::Outage => "outage",
    }
}

/// Does I/O stop?
fn stops(guard: &GuardStatus, what: Rehearsed) -> bool {
    what == Rehearsed::Denied || guard.policy.outage_grace == Grace::For(Duration::ZERO)
}

fn mounts_of(context: &Context, set: &str) -> Result<Vec<(MountStatus, GuardStatus)>> {
    let all = context.mounts()?;
    let of_set = |m: &MountStatus| m.guard.clone().filter(|guard| guard.set == set && !m.unguarded);
    let mounts: Vec<_> = all.into_iter().filter_map(|m| of_set(&m).map(|guard| (m, guard))).collect();
    if mounts.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "no mount of this set is guarded now")
            .on(set)
            .hint("wrapdisk status lists what is mounted, and its set"));
    }
    for (mount, guard) in &mounts {
        if guard.state != "ready" {
            let message = format!("found the mount {}, allowed ready: nothing can be measured", guard.state);
            return Err(Error::new(ErrorKind::Busy, message).at(&mount.mountpoint));
        }
    }
    Ok(mounts)
}

/// Says what will happen to whom.
fn announce(context: &Context, mounts: &[(MountStatus, GuardStatus)], what: Rehearsed) {
    for (mount, guard) in mounts {
        let place = mount.mountpoint.display();
        if !stops(guard, what) {
            output::note(&format!("{place}: I/O goes on; the mount is shown as degraded for some seconds"));
            continue;
        }
        let io = match guard.on_revoke {
            OnRevoke::Freeze => "I/O waits",
            OnRevoke::Eio | OnRevoke::Shutdown => "I/O ends with errors",
        };
        output::note(&format!("{place}: {io} for some seconds; hooks run, people are told"));
        let guests = guest::of(context, mount).unwrap_or_default();
        for machine in &guests.guests {
            let fate = if guard.on_revoke == OnRevoke::Shutdown { "ENDED" } else { "stopped and continued" };
            output::note(&format!("  guest {} ({}) is {fate}", machine.qmp.display(), machine.state));
        }
        for holder in &guests.unregistered {
            output::note(&format!("  {holder} is not registered and meets the errors"));
        }
    }
}

/// Has the guards believe this, until all actors are where they should be.
fn watch(
    context: &Context,
    actors: &mut [Actor],
    answer: Option<Rehearsed>,
    patience: Duration,
    mut arrived: impl FnMut(&mut Actor, &str) -> bool,
) -> Result<()> {
    let start = Instant::now();
    let mut renewed: Option<Instant> = None;
    loop {
        if renewed.is_none_or(|at| at.elapsed() >= RENEW) && (answer.is_some() || renewed.is_none()) {
            let ask = Ask::Drill { answer, seconds: LENT.as_secs() };
            for actor in actors.iter() {
                let asked: Result<Done> =
                    client::ask(&context.dirs, &actor.status.mountpoint, &ask, client::PATIENCE);
                asked.map_err(|e| e.or_at(&actor.status.mountpoint))?;
            }
            renewed = Some(Instant::now());
        }
        let now = context.mounts()?;
        let mut all = true;
        for actor in actors.iter_mut() {
            let status = now.iter().find(|m| m.mountpoint == actor.status.mountpoint);
            all &= status.is_some_and(|status| arrived(actor, &status.state));
        }
        // Who has not arrived by then is reported so.
        if all || start.elapsed() > patience {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// Figures of one mount.
struct Figures {
    /// From the answer to the last read that was served; where I/O stops.
    stop: Option<Duration>,
    /// From the end of the answer to the first read that was served.
    resume: Option<Duration>,
    /// The longest time without a read.
    pause: Duration,
    promise: Duration,
    kept: bool,
}

fn figures(actor: &Actor, what: Rehearsed, (began, ended): (Instant, Instant)) -> Figures {
    let seen = actor.reader.seen();
    let promise = actor.guard.policy.probe_interval * 2;
    let (from, to) = seen.gap.unwrap_or((seen.last, seen.last));
    if !stops(&actor.guard, what) {
        let kept = actor.reached.is_some() && actor.back.is_some() && seen.failed == 0;
        return Figures { stop: None, resume: None, pause: to - from, promise, kept };
    }
    let stop = actor.reached.map(|_| from.saturating_duration_since(began));
    let resume = actor.back.map(|_| to.saturating_duration_since(ended));
    let kept = stop.is_some_and(|t| t <= promise) && resume.is_some_and(|t| t <= promise);
    Figures { stop, resume, pause: to - from, promise, kept }
}

fn report(args: &Common, what: Rehearsed, actors: &[Actor], span: (Instant, Instant)) -> Result<()> {
    let all: Vec<_> = actors.iter().map(|actor| (actor, figures(actor, what, span))).collect();
    let kept = all.iter().all(|(_, figures)| figures.kept);
    if args.output.json() {
        let mounts: Vec<Value> = all.iter().map(|(actor, figures)| document(actor, figures)).collect();
        output::json(&json!({ "drill": name(what), "set": args.set, "kept": kept, "mounts": mounts }))?;
    } else {
        let rows: Vec<_> = all.iter().map(|(actor, figures)| row(actor, figures)).collect();
        output::table(&["MOUNT", "STOPPED AFTER", "RESUMED AFTER", "LONGEST PAUSE", "ALLOWED", ""], &rows)?;
    }
    if kept {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Other, "drill: a mount did not do what it should in time")
        .on(&args.set)
        .hint("wrapdisk status shows where it is now"))
}

fn document(actor: &Actor, figures: &Figures) -> Value {
    let seconds = |time: Option<Duration>| time.map(|t| (t.as_secs_f64() * 1000.0).round() / 1000.0);
    let seen = actor.reader.seen();
    json!({
        "mountpoint": json_path::value(&actor.status.mountpoint),
        "uuid": actor.status.uuid,
        "stopSeconds": seconds(figures.stop),
        "resumeSeconds": seconds(figures.resume),
        "longestPauseSeconds": seconds(Some(figures.pause)),
        "promiseSeconds": seconds(Some(figures.promise)),
        "reads": seen.served,
        "failedReads": seen.failed,
        "kept": figures.kept,
    })
}

fn row(actor: &Actor, figures: &Figures) -> Vec<String> {
    let seconds = |time: Duration| format!("{:.3} s", time.as_secs_f64());
    let stopped = figures.stop.map_or_else(|| "did not stop".to_owned(), seconds);
    let resumed = figures.resume.map_or_else(|| "-".to_owned(), seconds);
    vec![
        actor.status.mountpoint.display().to_string(),
        stopped,
        resumed,
        seconds(figures.pause),
        seconds(figures.promise),
        if figures.kept { "ok" } else { "FAILED" }.to_owned(),
    ]
}
