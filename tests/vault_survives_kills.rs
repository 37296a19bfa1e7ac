//! Is a vault whole after kill -9 at any point of any operation with keys, with several processes at work: nothing that was
//! acknowledged is lost, nothing is half done, and the others go on?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use rusqlite::Connection;
use wrapdisk::envelope::KeyRef;
use wrapdisk::vault::Call;
use wrapdisk::vault::local::{ImportedKey, KeyUpdate, LocalVault, NewKey, Page};

/// Made once: import costs no prime numbers.
static KEY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let out = Command::new("openssl").args(["genrsa", "2048"]).output().unwrap();
    assert!(out.status.success());
    out.stdout
});

/// The life of one key, and what is true after each step.
const LIFE: [&str; 8] =
    ["live on 1", "live off 1", "live on 2", "deleted", "live on 2", "deleted", "none", "live on 2"];

fn step(vault: &LocalVault, at: usize, name: &str, blob: &mut Vec<u8>, call: &Call) {
    let key = || ImportedKey::from_pem(std::env::var("KILL_KEY").unwrap().as_bytes(), None).unwrap();
    match at {
        0 | 2 => drop(vault.import_key(name, &key(), &NewKey::default(), call).unwrap()),
        1 => {
            let off = KeyUpdate { enabled: Some(false), ..KeyUpdate::default() };
            vault.update_key(&KeyRef::parse(name).unwrap(), &off, call).unwrap();
        }
        3 | 5 => drop(vault.delete_key(name, call).unwrap()),
        4 => {
            vault.recover_key(name, call).unwrap();
            *blob = vault.backup_key(name, call).unwrap();
        }
        6 => vault.purge_key(name, call).unwrap(),
        _ => drop(vault.restore_key(blob, call).unwrap()),
    }
}

/// What is true of a key now.
fn state(vault: &LocalVault, name: &str, call: &Call) -> String {
    if vault.get_deleted_key(name, call).is_ok() {
        return "deleted".to_owned();
    }
    let versions = vault.list_versions(name, &Page::default(), call).unwrap();
    match versions.last() {
        None => "none".to_owned(),
        Some(latest) => format!("live {} {}", if latest.enabled { "on" } else { "off" }, versions.len()),
    }
}

/// Not a test: what the killed processes run. It acknowledges each step on its output.
#[test]
fn worker() {
    let Ok(dir) = std::env::var("KILL_DIR") else { return };
    let vault = LocalVault::open(Path::new(&dir)).unwrap();
    let call = vault.admin("worker");
    println!(); // the harness may have begun a line
    for life in 0.. {
        let name = format!("w{}-{life}", std::process::id());
        let mut blob = Vec::new();
        for at in 0..LIFE.len() {
            step(&vault, at, &name, &mut blob, &call);
            println!("did {name} {at}");
        }
    }
}

fn start(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "worker"])
        .env("KILL_DIR", dir)
        .env("KILL_KEY", std::str::from_utf8(&KEY).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lets a worker acknowledge so many steps, kills it, and reads what it had said by then: key -> last step.
fn kill_after(mut worker: Child, steps: usize) -> BTreeMap<String, usize> {
    let mut done = BTreeMap::new();
    let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
    let mut take = |line: Option<std::io::Result<String>>| {
        let Some(Ok(line)) = line else { return None };
        if let Some(said) = line.strip_prefix("did ") {
            let (name, at) = said.split_once(' ').unwrap();
            done.insert(name.to_owned(), at.parse().unwrap());
            return Some(true);
        }
        Some(false)
    };
    let mut seen = 0;
    while seen < steps {
        seen += usize::from(take(lines.next()).expect("the worker works"));
    }
    worker.kill().unwrap();
    while take(lines.next()).is_some() {}
    worker.wait().unwrap();
    done
}

#[test]
fn everything_acknowledged_is_there_and_nothing_is_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let call = vault.admin("judge");
    let mut acknowledged = 0;
    for round in 0..8 {
        let workers = [start(dir.path()), start(dir.path())];
        let kills: Vec<BTreeMap<String, usize>> = std::thread::scope(|scope| {
            let threads: Vec<_> = workers
                .into_iter()
                .enumerate()
                .map(|(n, worker)| scope.spawn(move || kill_after(worker, 3 + 5 * round + n)))
                .collect();
            // This process goes on with its own work beside them, and another program looks in.
            for _ in 0..5 {
                vault.list_keys(&Page::default(), &call).unwrap();
            }
            let look = Command::new(env!("CARGO_BIN_EXE_wrapdisk"))
                .args(["key", "list", "--output", "json", "--state"])
                .arg(dir.path())
                .output()
                .unwrap();
            assert!(look.status.success(), "{}", String::from_utf8_lossy(&look.stderr));
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for (name, last) in kills.iter().flatten() {
            acknowledged += last + 1;
            let found = state(&vault, name, &call);
            let next = LIFE.get(last + 1);
            // The step that was on its way is done or not, as a whole.
            assert!(
                found == LIFE[*last] || next.is_some_and(|n| *n == found),
                "{name} after step {last}: {found}"
            );
        }
        whole(dir.path(), &call);
    }
    assert!(acknowledged > 150, "{acknowledged} steps are not enough to mean anything");
}

/// The files as anybody opens them after the crash.
fn whole(dir: &Path, call: &Call) {
    let vault = LocalVault::open(dir).unwrap();
    vault.verify_audit().unwrap();
    let db = Connection::open(dir.join("vault.db")).unwrap();
    let text = |sql: &str| db.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(text("PRAGMA integrity_check"), "ok");
    assert!(db.prepare("PRAGMA foreign_key_check").unwrap().query([]).unwrap().next().unwrap().is_none());
    let empty = "SELECT count(*) FROM key k WHERE wrapping IS NULL
                     OR NOT EXISTS (SELECT 1 FROM key_version v WHERE v.key = k.id)";
    assert_eq!(db.query_row(empty, [], |row| row.get::<_, i64>(0)).unwrap(), 0, "a key without its parts");
    for info in vault.list_keys(&Page::default(), call).unwrap() {
        for version in vault.list_versions(info.kid.name(), &Page::default(), call).unwrap() {
            vault.public_pem(&KeyRef::from(&version.kid), call).unwrap(); // opens the private key
        }
    }
}

#[test]
fn a_killed_process_leaves_no_lock_behind() {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let call = vault.admin("judge");
    kill_after(start(dir.path()), 5);
    let db = Connection::open(dir.path().join("vault.db")).unwrap();
    db.busy_timeout(std::time::Duration::ZERO).unwrap();
    db.execute_batch("BEGIN EXCLUSIVE; ROLLBACK").unwrap();
    vault.list_keys(&Page::default(), &call).unwrap();
}
