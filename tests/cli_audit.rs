//! Does `wrapdisk audit` show who did what, and say with its exit code whether the records are whole?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;

use cli_support::mode;
use rusqlite::Connection;
use support::Home;

fn rows(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn records_are_listed_and_filtered_for_people_and_programs() {
    let home = Home::ready();
    home.wrapdisk(["key", "show", "disk-kek"]).ok();
    home.wrapdisk(["vault", "identity", "add", "agent"]).ok();
    let list = |more: &[&str]| home.wrapdisk(["audit", "list"].iter().chain(more)).ok();
    let json = rows(&list(&["--output", "json"]));
    assert!(json.len() > 5 && json.iter().all(|r| r["category"] == "AuditEvent"));
    let human = list(&[]);
    assert!(human.starts_with("RECORD  TIME"), "{human}");
    assert_eq!(human.lines().count(), 1 + json.len());
    assert!(human.contains("keys/disk-kek") && human.contains("user identity agent"), "{human}");
    let count = |more: &[&str]| rows(&list(&[more, &["--output", "json"]].concat())).len();
    assert_eq!(count(&["--operation", "keycreate"]), 1);
    assert_eq!(count(&["--last", "2"]), 2);
    assert_eq!(count(&["--result", "refused"]) + count(&["--result", "ok"]), json.len());
    assert!(count(&["--key", "disk-kek"]) > 1 && count(&["--key", "other"]) == 0);
    assert_eq!(count(&["--since", "2200-01-01"]) + count(&["--until", "2001-01-01T00:00:00Z"]), 0);
    let admin = json.last().unwrap()["identity"]["claim"]["oid"].as_str().unwrap().to_owned();
    assert_eq!(count(&["--identity", &admin, "--last", "1"]), 1);
    for wrong in [&["--result", "maybe"][..], &["--since", "yesterday"], &["--last", "x"]] {
        home.wrapdisk(["audit", "list"].iter().chain(wrong)).fails(2);
    }
    home.wrapdisk(["audit", "list", "--identity", "nobody"]).fails(1);
}

#[test]
fn a_kept_head_finds_what_was_changed_and_the_exit_code_says_so() {
    let home = Home::ready();
    let head = home.wrapdisk(["audit", "head"]).ok();
    let (_, hash) = head.split_once(' ').unwrap();
    fs::write(home.path("heads"), format!("{head}\n")).unwrap();
    home.wrapdisk(["key", "list"]).ok();
    for kept in [home.text("heads"), hash] {
        let said = home.wrapdisk(["audit", "verify", "--head", kept]).ok();
        assert!(said.starts_with("the audit is whole up to record"), "{said}");
    }
    let done = home.wrapdisk(["audit", "verify"]);
    assert!(done.err.contains("audit head"), "it says what this does not find: {}", done.err);
    assert!(home.json(["audit", "verify", "--head", hash])["seq"].as_u64() > Some(1));
    home.wrapdisk(["audit", "verify", "--head", &"0".repeat(64)]).fails(5);
    home.wrapdisk(["audit", "verify", "--head", home.text("none")]).fails(1);
    let db = Connection::open(home.path("home/state/vault.db")).unwrap();
    db.execute_batch("DROP TRIGGER audit_no_update; UPDATE audit SET record = record || ' ' WHERE seq = 2")
        .unwrap();
    let said = home.wrapdisk(["audit", "verify"]).fails(5);
    assert!(said.contains("record 2 does not have its hash"), "{said}");
}

#[test]
fn records_are_exported_and_archived_into_files_of_their_own() {
    let home = Home::ready();
    let all = home.wrapdisk(["audit", "list", "--output", "json"]).ok();
    let (out, one) = (home.text("all.jsonl"), home.text("one.audit"));
    home.wrapdisk(["audit", "export", "--file", out]).ok();
    assert_eq!(fs::read_to_string(out).unwrap().trim(), all);
    assert_eq!(mode(&home.path("all.jsonl")), "0600");
    home.wrapdisk(["audit", "export", "--file", out]).fails(1);
    let said = home.wrapdisk(["audit", "archive", "--until-record", "3", "--file", one]).ok();
    assert!(said.ends_with("one.audit: 3 records"), "{said}");
    assert!(home.wrapdisk(["audit", "list"]).ok().lines().nth(1).unwrap().trim_start().starts_with("4 "));
    home.wrapdisk(["audit", "verify", "--archive", one]).ok();
    home.wrapdisk(["audit", "archive", "--until-record", "3", "--file", home.text("two.audit")]).fails(1);
    home.wrapdisk(["audit", "archive", "--until-record", "4", "--file", one]).fails(1);
}
