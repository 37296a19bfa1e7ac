//! Tells people: a notification on the desktop of the user whose mount it is, wall(1) to everybody logged in when it is
//! root's.
//!
//! `notify-send` knows the session bus and its ways better than a page of D-Bus here would, and where it is missing there is
//! no desktop either. An ordinary user does not write to other people's terminals.
//!
//! Must never see: keys.
//!
//! Invariant: what is told is text; nothing in it is an option, markup, or a control sequence of a terminal.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::child;
use crate::error::Result;

/// A message that takes longer does not arrive.
const LIMIT: Duration = Duration::from_secs(5);

/// Longest text.
const MAX_TEXT: usize = 500;

/// How loudly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It passes by.
    Normal,
    /// It stays until it was seen.
    Critical,
}

/// Tells whoever should know; blocks for as long as that takes, five seconds a way at most. That nobody could be told goes to
/// the log, where the event is anyway.
pub fn people(urgency: Urgency, summary: &str, body: &str) {
    if has_session() {
        tried("notify-send", desktop(urgency, summary, body));
    }
    if nix::unistd::geteuid().is_root() {
        tried("wall", wall(summary, body));
    }
}

fn tried(what: &str, done: Result<child::Ended>) {
    match done {
        Ok(ended) if ended.status.success() => {}
        Ok(ended) => log::info!("{what}: {}: {}", ended.status, ended.said),
        Err(e) => log::info!("{}", e.chain()),
    }
}

/// Is there a session bus that a notification could go to?
fn has_session() -> bool {
    std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some()
        || std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|dir| Path::new(&dir).join("bus").exists())
}

fn desktop(urgency: Urgency, summary: &str, body: &str) -> Result<child::Ended> {
    let urgency = if urgency == Urgency::Critical { "critical" } else { "normal" };
    let mut command = Command::new("notify-send");
    command.args(["--app-name=wrapdisk", "--category=device", "--icon=drive-harddisk", "--urgency", urgency]);
    // The body is a kind of HTML to a notification server.
    let body = plain(body).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    child::run(command.arg("--").arg(plain(summary)).arg(body), LIMIT)
}

fn wall(summary: &str, body: &str) -> Result<child::Ended> {
    // Two arguments: a single one could be taken for the name of a file.
    child::run(Command::new("wall").arg("--").arg(format!("{}:", plain(summary))).arg(plain(body)), LIMIT)
}

/// Without what a terminal or a bus would take for more than text.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}
