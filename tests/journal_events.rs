//! Does the journal, a real systemd-journald, get every event under the message id that docs/EVENTS.md promises, with fields
//! that say what it is about? And do hooks and people hear of it?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guest_support;
mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use guest_support::responses::{FENCED, event, every_kind, responses};
use serde_json::Value;
use support::{eventually, finish};
use wrapdisk::error::ErrorKind;
use wrapdisk::guard::guests::Guests;
use wrapdisk::guard::{EventKind, Responder, catalog};
use wrapdisk::journal::{Journal, Priority};
use wrapdisk::revocation::OnRevoke;

/// systemd-journald on a /run of its own, gone when dropped.
struct Journald {
    child: Child,
    root: PathBuf,
}

impl Journald {
    fn start() -> Self {
        let script =
            "mount -t tmpfs none /run && mkdir -p /run/log/journal && exec /lib/systemd/systemd-journald";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let root = PathBuf::from(format!("/proc/{}/root", child.id()));
        let journald = Self { child, root };
        eventually("a journal", || {
            Journal::at(journald.socket()).ok()?.send(uuid::Uuid::nil(), Priority::Info, "there?", &[]).ok()
        });
        journald
    }

    fn socket(&self) -> PathBuf {
        self.root.join("run/systemd/journal/socket")
    }

    /// The entries with this message id.
    fn entries(&self, id: uuid::Uuid) -> Vec<Value> {
        let folder = self.root.join("run/log/journal");
        let id = format!("MESSAGE_ID={}", id.simple());
        let mut command = Command::new("journalctl");
        let done = finish(command.arg("--directory").arg(folder).args(["--output", "json", "--quiet", &id]));
        done.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn guests(dir: &Path) -> Arc<Guests> {
    Arc::new(Guests::new(dir.join("disk.img")))
}

#[test]
fn a_real_journal_has_every_event_under_its_id_with_its_fields() {
    let journald = Journald::start();
    let dir = tempfile::tempdir().unwrap();
    let responses = responses(dir.path(), &guests(dir.path()), Journal::at(journald.socket()).ok());
    for kind in every_kind() {
        let event = event(dir.path(), kind, OnRevoke::Eio);
        match kind {
            EventKind::Fenced { .. } => responses.fenced(&event),
            EventKind::Resumed { .. } => responses.resumed(&event),
            _ => responses.changed(&event),
        }
        let entry = catalog::of(&kind);
        let found =
            eventually(entry.name, || Some(journald.entries(entry.id)).filter(|found| !found.is_empty()));
        let [entry_read] = found.as_slice() else { panic!("{found:?}") };
        let text = |name: &str| entry_read[name].as_str().unwrap_or_default().to_owned();
        assert_eq!(text("PRIORITY"), (entry.priority as u8).to_string());
        assert_eq!(text("SYSLOG_IDENTIFIER"), "wrapdisk");
        assert_eq!(text("WRAPDISK_EVENT"), entry.name);
        assert_eq!(text("WRAPDISK_SET"), "prod");
        assert_eq!(text("WRAPDISK_KID"), event.kid);
        assert_eq!(text("WRAPDISK_UUID"), event.disk);
        assert_eq!(text("WRAPDISK_MOUNT"), dir.path().to_str().unwrap());
        assert_eq!(text("WRAPDISK_DISK"), dir.path().join("vm.wd").to_str().unwrap());
        assert_eq!(text("WRAPDISK_REASON"), event.reason, "with its newline");
        assert_eq!(text("MESSAGE"), event.to_string());
    }
}

#[test]
fn no_journal_or_one_that_does_not_keep_up_costs_the_entry_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let send = || {
        Journal::at(path.clone()).unwrap().send(catalog::FENCED.id, Priority::Info, &"x".repeat(100_000), &[])
    };
    assert_eq!(send().unwrap_err().kind(), ErrorKind::NotFound);
    let full = UnixDatagram::bind(&path).unwrap();
    let refused = eventually("a full queue", || send().err());
    assert_eq!(refused.kind(), ErrorKind::Busy, "{}", refused.chain());
    let mut bytes = vec![0; 200_000];
    let len = full.recv(&mut bytes).unwrap();
    assert!(len < 9000, "{len}: a value is bounded");
    let bad = Journal::at(path).unwrap().send(catalog::FENCED.id, Priority::Info, "", &[("_PID", "1")]);
    assert_eq!(bad.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn the_page_of_events_is_what_the_program_says() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/EVENTS.md")).unwrap();
    let rows: Vec<_> =
        page.lines().filter(|line| line.starts_with("| `") && line.matches('|').count() == 7).collect();
    let people = |entry: &catalog::Entry| match entry.told {
        Some(urgency) => format!("{urgency:?}").to_lowercase(),
        None => "no".to_owned(),
    };
    let row = |entry: &&catalog::Entry| {
        format!(
            "| `{}` | `{}` | {} | {} | {} | {} |",
            entry.name,
            entry.id.simple(),
            entry.priority as u8,
            people(entry),
            if entry.hooks { "yes" } else { "no" },
            entry.meaning
        )
    };
    assert_eq!(rows, catalog::ALL.iter().map(row).collect::<Vec<_>>());
    let ids: BTreeSet<_> = catalog::ALL.iter().map(|entry| entry.id).collect();
    assert_eq!(ids.len(), catalog::ALL.len());
    for kind in every_kind() {
        assert_eq!(catalog::of(&kind).name, kind.name());
    }
}

#[test]
fn hooks_hear_of_an_event_with_all_that_is_promised() {
    let dir = tempfile::tempdir().unwrap();
    let hooks = dir.path().join("config/hooks.d");
    std::fs::create_dir_all(&hooks).unwrap();
    let out = dir.path().join("out");
    let script =
        format!("#!/bin/sh\nenv | grep ^WRAPDISK_ | sort > {0}.new; mv {0}.new {0}\n", out.display());
    std::fs::write(hooks.join("10-env"), script).unwrap();
    for path in [hooks.clone(), hooks.join("10-env")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let responses = responses(dir.path(), &guests(dir.path()), None);
    responses.fenced(&event(dir.path(), FENCED, OnRevoke::Shutdown));
    let said = eventually("the hook", || std::fs::read_to_string(&out).ok());
    let place = dir.path().display();
    for line in [
        "WRAPDISK_EVENT=fenced".to_owned(),
        "WRAPDISK_WHY=disabled".to_owned(),
        "WRAPDISK_SET=prod".to_owned(),
        "WRAPDISK_KID=https://v.vault.localhost/keys/k/1".to_owned(),
        "WRAPDISK_REASON=the key is disabled".to_owned(),
        format!("WRAPDISK_DISK={place}/vm.wd"),
        format!("WRAPDISK_MOUNT={place}"),
        format!("WRAPDISK_FILE={place}/disk.img"),
        "WRAPDISK_TIME=2026-11-18T11:06:40Z".to_owned(),
    ] {
        assert!(said.lines().any(|l| l == line), "{line}: {said}");
    }
}
