//! Does the first use of wrapdisk make a vault, one key and the set "default", tell so and what to back up, once, and put
//! its files where they belong, for their owner alone?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cli_support::{FUSE_FOR_ALL, USER, as_user, give, mode, names, on_a_machine_of_its_own};
use support::{Home, WRAPDISK, finish};

/// What is said once. `{state}` is the folder.
fn announcement(state: &Path) -> String {
    let state = state.display();
    format!(
        "First use: made a key vault, the RSA-3072 key \"disk-kek\", and the set \"default\" whose identity may use it.\n\
         Back it up now (wrapdisk vault backup --file FILE): without {state} no disk of this vault opens again.\n\
         A disk opens without the vault only if it has a recovery passphrase (wrapdisk create --recovery-passphrase).\n\
         The vault lies on this machine: who can read {state} and a disk's file can read the disk.\n"
    )
}

/// The rows of a query for one text on the vault of this home.
fn rows(home: &Home, query: &str) -> Vec<String> {
    let db = rusqlite::Connection::open(home.path("home/state/vault.db")).unwrap();
    let mut statement = db.prepare(query).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// One key of one version, one set, one identity beside the administrator, and its grant.
#[track_caller]
fn one_of_each(home: &Home) {
    let keys = home.json(["key", "list-versions", "disk-kek"]);
    assert_eq!(keys.as_array().unwrap().len(), 1, "{keys}");
    let all = home.json(["key", "list"]);
    assert_eq!(all, keys);
    assert_eq!(
        (&keys[0]["kty"], &keys[0]["size"], &keys[0]["attributes"]["enabled"]),
        (&"RSA".into(), &3072.into(), &true.into())
    );

    let sets = home.json(["set", "list"]);
    assert_eq!(sets.as_array().unwrap().len(), 1, "{sets}");
    assert_eq!(sets[0]["name"], "default");
    assert_eq!(sets[0]["properties"]["activeKey"]["keyUrl"], keys[0]["kid"]);
    assert_eq!(sets[0]["properties"]["rotationToLatestKeyVersionEnabled"], true);

    let identity = sets[0]["identity"]["principalId"].as_str().unwrap();
    assert_eq!(rows(home, "SELECT oid FROM identity WHERE kind <> 'admin'"), [identity]);
    assert_eq!(
        rows(
            home,
            "SELECT p.identity || '|' || k.name || '|' || p.role FROM access_policy p JOIN key k ON k.id = p.key"
        ),
        [format!("{identity}|disk-kek|crypto service encryption user")]
    );
}

#[test]
fn the_first_disk_makes_everything_and_says_so_on_standard_error() {
    let home = Home::new();
    let done = home.wrapdisk(["create", "vm.wd", "--size", "1M"]);
    assert_eq!(done.err, announcement(&home.path("home/state")));
    let said = done.ok();
    let kid = home.json(["key", "list"])[0]["kid"].as_str().unwrap().to_owned();
    let uuid = home.json(["info", "vm.wd"])["uuid"].as_str().unwrap().to_owned();
    assert_eq!(said, format!("vm.wd: 1 MiB disk, uuid {uuid}, set default, key {kid}"));
    one_of_each(&home);
    assert_eq!(names(&home.path("home/state")), ["root.key", "sets.db", "vault.db"]);
}

#[test]
fn it_is_told_once() {
    let home = Home::new();
    let first = home.wrapdisk(["mount", "--create", "1M", "vm.wd", "m"]);
    assert_eq!(first.err, announcement(&home.path("home/state")));
    assert_eq!(first.ok(), home.text("m/disk.img"));
    let second = home.wrapdisk(["create", "other.wd", "--size", "1M", "--output", "json"]);
    assert_eq!(second.err, "");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&second.ok()).unwrap()["set"], "default");
    home.wrapdisk(["umount", "m"]).ok();
    one_of_each(&home);
}

#[test]
fn a_command_that_only_looks_makes_nothing() {
    let home = Home::new();
    let no_vault = format!(
        "wrapdisk: {}: no vault here\n  the first wrapdisk create makes one; to use another one, give --state DIR",
        home.path("home/state").display()
    );
    for look in
        [&["key", "list"][..], &["key", "show", "disk-kek"], &["set", "list"], &["set", "show", "default"]]
    {
        assert_eq!(home.wrapdisk(look).fails(4), no_vault, "{look:?}");
    }
    assert_eq!(home.wrapdisk(["status"]).ok(), "nothing is mounted");
    home.wrapdisk(["info", "missing.wd"]).fails(1);
    // A refused command line makes nothing either.
    home.wrapdisk(["create", "vm.wd", "--size", "0"]).fails(2);
    home.wrapdisk(["create", "no/such/folder/vm.wd", "--size", "1M"]).fails(1);
    assert_eq!(names(home.root()), [""; 0]);
}

#[test]
fn who_has_a_vault_of_his_own_gets_the_default_set_only_when_he_uses_it() {
    let home = Home::new();
    home.wrapdisk(["vault", "init", "mine"]).ok();
    assert_eq!(home.wrapdisk(["key", "create", "kek", "--size", "2048"]).err, "");
    let refused =
        home.wrapdisk(["set", "create", "prod", "--key", "kek", "--grant", "--shutdown-window", "31s"]);
    assert!(refused.fails(1).contains("allowed"));
    assert_eq!(home.json(["set", "list"]), serde_json::json!([]), "nothing is left of it");
    assert_eq!(home.wrapdisk(["set", "create", "prod", "--key", "kek", "--grant"]).err, "");
    home.create("vm.wd", "1M", &["--set", "prod"]);
    assert_eq!(home.json(["set", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(home.json(["key", "list"]).as_array().unwrap().len(), 1);
    assert!(home.wrapdisk(["create", "other.wd", "--size", "1M"]).err.contains("the set \"default\""));
}

fn start(home: &Home, disk: &str) -> Child {
    let mut command = home.command(["create", disk, "--size", "1M"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn several_first_uses_at_once_make_one_key_and_tell_it_once() {
    let home = Home::new();
    let disks = ["a.wd", "b.wd", "c.wd", "d.wd"];
    let started: Vec<Child> = disks.iter().map(|disk| start(&home, disk)).collect();
    let ended: Vec<_> = started.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let mut told = Vec::new();
    for end in ended {
        let err = String::from_utf8(end.stderr).unwrap();
        assert!(end.status.success(), "{err}");
        told.extend((!err.is_empty()).then_some(err));
    }
    assert_eq!(told, [announcement(&home.path("home/state"))]);
    one_of_each(&home);
    for disk in disks {
        home.wrapdisk(["check", disk]).ok();
    }
}

#[test]
fn a_first_use_that_is_killed_is_finished_by_the_next() {
    for after in [5, 40, 120, 250, 450] {
        let home = Home::new();
        let mut victim = start(&home, "vm.wd");
        std::thread::sleep(Duration::from_millis(after));
        victim.kill().unwrap();
        victim.wait().unwrap();
        // Nothing of a disk is left, or a whole one.
        let left: Vec<_> = names(home.root()).into_iter().filter(|n| n != "home").collect();
        assert!(left.is_empty() || left == ["vm.wd"], "after {after} ms: {left:?}");
        home.create("next.wd", "1M", &[]);
        home.wrapdisk(["check", "next.wd"]).ok();
        assert_eq!(home.json(["key", "list-versions", "disk-kek"]).as_array().unwrap().len(), 1);
        assert_eq!(home.json(["set", "list"]).as_array().unwrap().len(), 1);
    }
}

#[test]
fn every_file_is_for_its_owner_alone_whatever_the_umask() {
    let home = Home::new();
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0 && exec \"$0\" mount --create 1M vm.wd m", WRAPDISK]);
    finish(command.env("WRAPDISK_HOME", home.path("home")).current_dir(home.root())).ok();
    let mut found = Vec::new();
    for folder in ["home", "home/state", "home/run"] {
        found.push((folder.to_owned(), mode(&home.path(folder))));
        for name in names(&home.path(folder)).into_iter().filter(|n| n != "state" && n != "run") {
            let shown = if name.ends_with(".sock") { "*.sock".to_owned() } else { name.clone() };
            found.push((format!("{folder}/{shown}"), mode(&home.path(folder).join(name))));
        }
    }
    found.push(("vm.wd".to_owned(), mode(&home.path("vm.wd"))));
    // The daemon has both databases open.
    let with_companions =
        |name: &str| ["", "-shm", "-wal"].map(|end| (format!("home/state/{name}{end}"), "0600"));
    let mut wanted: Vec<(String, &str)> =
        ["home", "home/state", "home/run"].map(|folder| (folder.to_owned(), "0700")).into();
    wanted.extend(
        ["home/state/root.key", "home/run/*.sock", "home/run/mount.log", "vm.wd"]
            .map(|f| (f.to_owned(), "0600")),
    );
    wanted.extend(["sets.db", "vault.db"].into_iter().flat_map(with_companions));
    let found: Vec<_> = found.iter().map(|(name, mode)| (name.clone(), mode.as_str())).collect();
    for file in &found {
        assert!(wanted.contains(file), "{file:?} in {found:#?}");
    }
    home.wrapdisk(["umount", "m"]).ok();
}

/// What an ordinary user's first mount makes, with nothing but this in his environment: owner and name of each database,
/// key and socket below the home.
fn made_by_a_user(home: &Home, env: &str, options: &str) -> Vec<String> {
    let script = FUSE_FOR_ALL.to_owned()
        + "cd \"$WHERE\"; wrapdisk() {
               setpriv --reuid 65534 --regid 65534 --clear-groups env -i PATH=\"$PATH\" $ENV \"$WRAPDISK\" $OPTIONS \"$@\"; }
           wrapdisk mount --create 1M vm.wd m >&2; wrapdisk status | grep -q vm.wd
           { find . -path ./m -prune -o \\( -type s -o -name '*.db' -o -name '*.key' \\) -printf '%U %P\\n' \\
               2> /dev/null || true; } | sed -E 's/[0-9a-f]{16}.sock/socket/' | sort
           wrapdisk umount m";
    let env = [("ENV", env), ("OPTIONS", options), ("WRAPDISK", WRAPDISK)].map(|(n, v)| (n, Path::new(v)));
    let said = on_a_machine_of_its_own(&script, &[&env[..], &[("WHERE", home.root())]].concat()).ok();
    said.lines().map(str::to_owned).collect()
}

#[test]
fn a_user_s_files_are_where_the_environment_says() {
    // Environment ("~" is the home), options, state folder, run folder.
    for (env, options, state, run) in [
        ("HOME=~/u", "", "u/.local/state/wrapdisk", "u/.local/state/wrapdisk/run"),
        ("HOME=~/u XDG_STATE_HOME=~/s", "", "s/wrapdisk", "s/wrapdisk/run"),
        ("HOME=~/u XDG_STATE_HOME=~/s XDG_RUNTIME_DIR=~/r", "", "s/wrapdisk", "r/wrapdisk"),
        ("HOME=~/u XDG_STATE_HOME=s", "", "u/.local/state/wrapdisk", "u/.local/state/wrapdisk/run"),
        ("HOME=~/u XDG_STATE_HOME=~/s WRAPDISK_HOME=~/w", "", "w/state", "w/run"),
        ("WRAPDISK_HOME=w", "", "w/state", "w/run"),
        ("WRAPDISK_HOME=~/w", "--state mine", "mine", "w/run"),
    ] {
        let home = Home::new();
        give(home.root());
        let env = env.replace('~', home.root().to_str().unwrap());
        let mut wanted =
            ["root.key", "sets.db", "vault.db"].map(|name| format!("{USER} {state}/{name}")).to_vec();
        wanted.push(format!("{USER} {run}/socket"));
        wanted.sort();
        assert_eq!(made_by_a_user(&home, &env, options), wanted, "{env} {options}");
    }
}

#[test]
fn without_a_home_folder_a_user_is_told_what_to_set() {
    let home = Home::new();
    give(home.root());
    let mut command = Command::new(WRAPDISK);
    command.args(["create", "vm.wd", "--size", "1M"]).current_dir(home.root());
    let err = finish(&mut as_user(&command)).fails(1);
    assert_eq!(err, "wrapdisk: no home folder is known\n  set HOME or WRAPDISK_HOME");
}

#[test]
fn roots_files_are_the_machine_s() {
    let home = Home::new();
    let script = "mount -t tmpfs none /var/lib; mount -t tmpfs none /run; cd \"$WHERE\"
        export HOME=/nowhere XDG_STATE_HOME=/nowhere XDG_RUNTIME_DIR=/nowhere
        \"$WRAPDISK\" mount --create 1M vm.wd m >&2
        find /var/lib /run -printf '%m %p\\n' | sed -E 's/[0-9a-f]{16}/ID/' | sort -k 2
        \"$WRAPDISK\" umount m";
    let done = on_a_machine_of_its_own(script, &[("WRAPDISK", Path::new(WRAPDISK)), ("WHERE", home.root())]);
    assert!(done.err.starts_with(&announcement(Path::new("/var/lib/wrapdisk"))), "{}", done.err);
    let found = done.ok();
    for wanted in [
        "700 /run/wrapdisk",
        "600 /run/wrapdisk/ID.sock",
        "700 /var/lib/wrapdisk",
        "600 /var/lib/wrapdisk/root.key",
        "600 /var/lib/wrapdisk/sets.db",
        "600 /var/lib/wrapdisk/vault.db",
    ] {
        assert!(found.lines().any(|line| line == wanted), "{wanted}: {found}");
    }
}
