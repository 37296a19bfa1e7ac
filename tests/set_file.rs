//! Is `sets.db` private, durable and shared safely, and is a file that we do not understand left alone?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rusqlite::Connection;
use uuid::Uuid;
use wrapdisk::envelope::Kid;
use wrapdisk::error::ErrorKind;
use wrapdisk::set::{ContainerRecord, NewSet, SetStore};

fn new_set(name: &str) -> NewSet {
    let vault = Uuid::new_v4();
    let active = Kid::local(&vault, "k", "1").unwrap();
    let key = active.versionless().to_owned();
    NewSet { name: name.into(), vault, key, active, pinned: false, identity: Uuid::new_v4() }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn pragma(path: &Path, name: &str) -> String {
    let db = Connection::open(path).unwrap();
    db.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
        .map(|v| format!("{v:?}"))
        .unwrap()
}

#[test]
fn folder_and_files_are_private_to_their_owner() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("a/state");
    let store = SetStore::open(&state).unwrap();
    store.create(&new_set("default")).unwrap();
    assert_eq!(mode(&state), 0o700);
    let mut files: Vec<_> = std::fs::read_dir(&state).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let names: Vec<_> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["sets.db", "sets.db-shm", "sets.db-wal"]);
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
}

#[test]
fn the_file_says_whose_it_is_and_logs_ahead() {
    let dir = tempfile::tempdir().unwrap();
    drop(SetStore::open(dir.path()).unwrap());
    let file = dir.path().join("sets.db");
    assert_eq!(pragma(&file, "application_id"), format!("Integer({})", 0x7764_7374));
    assert_eq!(pragma(&file, "user_version"), "Integer(3)");
    assert_eq!(pragma(&file, "journal_mode"), "Text(\"wal\")");
    assert_eq!(pragma(&file, "integrity_check"), "Text(\"ok\")");
    // A column type that SQLite would not enforce by itself.
    let db = Connection::open(&file).unwrap();
    let e = db.execute("INSERT INTO fingerprint VALUES ('x', 'sixteen letters!')", []).unwrap_err();
    assert!(e.to_string().contains("cannot store TEXT value in BLOB column"), "{e}");
}

#[test]
fn a_file_that_others_can_reach_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sets.db");
    drop(SetStore::open(dir.path()).unwrap());
    for loose in [0o640, 0o604, 0o620, 0o666] {
        std::fs::set_permissions(&file, PermissionsExt::from_mode(loose)).unwrap();
        let e = SetStore::open(dir.path()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::PermissionDenied);
        assert_eq!(e.chain(), format!("{}: mode: found {loose:04o}, allowed 0600", file.display()));
        assert!(e.advice().unwrap().ends_with(&format!("chmod 600 '{}'", file.display())));
    }
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    SetStore::open(dir.path()).unwrap();
}

/// What opening says of a database that `change` was done to; the file must come out byte for byte as it went in.
fn refusal_after(change: &str) -> wrapdisk::error::Error {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sets.db");
    std::fs::File::create(&file).unwrap().set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
    Connection::open(&file).unwrap().execute_batch(change).unwrap();
    let before = std::fs::read(&file).unwrap();
    let e = SetStore::open(dir.path()).unwrap_err();
    assert_eq!(std::fs::read(&file).unwrap(), before, "a refused file was changed");
    e
}

#[test]
fn a_newer_schema_is_refused_not_guessed() {
    let e = refusal_after("PRAGMA application_id = 0x77647374; PRAGMA user_version = 4; CREATE TABLE t (a)");
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.chain().ends_with("sets.db: schema: found 4, allowed 1 to 3"), "{e:?}");
    assert_eq!(e.advice(), Some("a newer wrapdisk wrote it: use that one"));
    let e = refusal_after("PRAGMA application_id = 0x77647374; PRAGMA user_version = -1");
    assert!(e.chain().ends_with("schema: found -1, allowed 1 to 3"), "{e:?}");
}

#[test]
fn somebody_elses_database_is_refused() {
    for theirs in [
        "CREATE TABLE t (a)",
        "PRAGMA user_version = 1",
        "PRAGMA application_id = 5",
        "PRAGMA application_id = 5; PRAGMA user_version = 1; CREATE TABLE t (a)",
    ] {
        let e = refusal_after(theirs);
        assert_eq!(e.kind(), ErrorKind::InvalidInput, "{theirs}: {e:?}");
        assert!(e.chain().contains("sets.db: application_id: found 0x"), "{theirs}: {e:?}");
    }
}

#[test]
fn a_file_that_is_no_database_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sets.db");
    std::fs::write(&file, [0x55; 8192]).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let e = SetStore::open(dir.path()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged);
    assert_eq!(e.chain(), format!("{}: open: file is not a database", file.display()));
    assert_eq!(std::fs::read(&file).unwrap(), [0x55; 8192]);
}

#[test]
fn a_row_that_somebody_edited_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sets.db");
    let store = SetStore::open(dir.path()).unwrap();
    store.create(&new_set("prod")).unwrap();
    let edit = |sql: &str| Connection::open(&file).unwrap().execute_batch(sql).unwrap();

    edit("UPDATE disk_set SET active = 'https://evil.example/keys/k/1'");
    let e = store.by_name("prod").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged);
    assert!(e.chain().contains("set \"prod\": active: found \"https://evil.example/keys/k/1\""), "{e:?}");

    edit("INSERT INTO container VALUES ('u', x'2f61', 'disk', 'no uuid', '[]', 0, NULL, NULL)");
    let e = store.containers(None).unwrap_err();
    assert!(e.chain().contains("container u: set_id: found \"no uuid\", allowed a uuid"), "{e:?}");
    edit("UPDATE container SET set_id = NULL, kids = '[1]'");
    let e = store.containers(None).unwrap_err();
    assert!(e.chain().contains("container u: kids: found \"[1]\", allowed a JSON array"), "{e:?}");
}

#[test]
fn a_lock_that_does_not_end_is_busy_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = SetStore::open(dir.path()).unwrap();
    let other = Connection::open(dir.path().join("sets.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let e = store.create(&new_set("prod")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.chain().ends_with("sets.db: add a set to: database is locked"), "{e:?}");
    assert_eq!(store.list().unwrap(), [], "readers go on, and see nothing of it");
    other.execute_batch("ROLLBACK").unwrap();
    store.create(&new_set("prod")).unwrap();
}

const WORKER: &str = "WRAPDISK_TEST_SET_WORKER";
const PROCESSES: usize = 6;
const CHANGES: usize = 20;

/// The same test in another role: a process that opens the (perhaps missing) store and writes.
fn work(state: &Path, id: &str) {
    let store = SetStore::open(state).unwrap();
    store.create(&new_set(&format!("p{id}"))).unwrap();
    for n in 0..CHANGES {
        let path = format!("/disks/{id}-{n}").into();
        let uuid = Uuid::from_u128(1).to_string();
        let record = ContainerRecord {
            uuid,
            path,
            kind: "disk".into(),
            set: None,
            kids: vec![],
            last_seen: 0,
            last_rewrap: None,
            trouble: None,
        };
        store.record(&record).unwrap();
    }
}

#[test]
fn processes_that_start_at_once_lose_nothing() {
    if let Some(role) = std::env::var_os(WORKER) {
        let role = role.into_string().unwrap();
        let (id, state) = role.split_once(':').unwrap();
        return work(Path::new(state), id);
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let spawn = |id: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes_that_start_at_once_lose_nothing"])
            .env(WORKER, format!("{id}:{}", state.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let workers: Vec<_> = (0..PROCESSES).map(spawn).collect();
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let store = SetStore::open(&state).unwrap();
    assert_eq!(store.list().unwrap().len(), PROCESSES);
    assert_eq!(store.containers(None).unwrap().len(), PROCESSES * CHANGES);
    let left: Vec<_> = std::fs::read_dir(&state).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(left.iter().all(|f| f.to_str().unwrap().starts_with("sets.db")), "left behind: {left:?}");
}
