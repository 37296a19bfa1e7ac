//! Does `status --watch` tell a program of every change of a mount, a line each, and show a person a table that is drawn
//! again?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::Duration;

use cli_support::Terminal;
use serde_json::Value;
use support::{Home, eventually};

#[test]
fn a_program_reads_a_line_for_each_change() {
    let home = Home::ready();
    home.create("a.wd", "1M", &[]);
    let mount = home.mount("a.wd", &[]);
    let mut command = home.command(["status", "--watch", "--output", "json"]);
    let mut watch = command.stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(watch.stdout.take().unwrap());
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            let _ = send.send(serde_json::from_str::<Value>(&line).unwrap());
        }
    });
    let next = || lines.recv_timeout(Duration::from_secs(60)).unwrap();
    // States in between are changes as well.
    let until = |state: &str| {
        loop {
            let line = next();
            assert_eq!(line["mountpoint"], home.path("a.wd.mnt").to_str().unwrap());
            assert!(line["time"].as_str().unwrap().ends_with('Z'));
            if line["state"] == state {
                break line;
            }
        }
    };
    let ready = until("ready");
    assert!(ready["key"].as_str().unwrap().contains("/keys/disk-kek/"), "{ready}");
    assert_eq!(ready["nextRotation"], Value::Null);
    let policy = r#"{"lifetimeActions":[{"trigger":{"timeAfterCreate":"P90D"},"action":{"type":"Rotate"}}]}"#;
    std::fs::write(home.path("policy.json"), policy).unwrap();
    home.wrapdisk(["key", "rotation-policy", "update", "disk-kek", "--value", "policy.json"]).ok();
    let planned = until("ready");
    assert!(planned["nextRotation"].as_str().unwrap().ends_with('Z'), "{planned}");
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    assert_eq!(until("revoked")["why"], "disabled");
    home.wrapdisk(["key", "enable", "disk-kek"]).ok();
    until("ready");
    mount.unmount();
    until("unmounted");
    // Nobody reads any more: it ends by itself, or by its user.
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn a_person_sees_a_table() {
    let home = Home::ready();
    home.create("a.wd", "1M", &[]);
    let mount = home.mount("a.wd", &[]);
    let terminal = Terminal::start(&home.command(["status", "--watch"]));
    eventually("a second look", || {
        let said = terminal.screen();
        (said.matches("NEXT ROTATION").count() >= 2 && said.contains("disk-kek/") && said.contains("s ago"))
            .then_some(())
    });
    drop(terminal);
    mount.unmount();
}
