//! Question: however a mount is ended in good order (a signal, an unmount by anybody), is everything on the backing file,
//! the exit code 0, and nothing left behind: no mount, no process, no socket, no lock? And does a mount start wholly or
//! not at all?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod daemon_support;
mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use daemon_support::{Foreground, errno, is_mounted, processes_naming, send, sockets};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use support::{Home, eventually, finish, is_alive, noise, run};

fn open(file: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(file).unwrap()
}

/// Writes what the next mount must find.
fn fill(file: &Path, seed: u64) {
    open(file).write_all_at(&noise(seed, 300_000), 12_345).unwrap();
}

#[track_caller]
fn finds(file: &Path, seed: u64) {
    let mut found = vec![0; 300_000];
    open(file).read_exact_at(&mut found, 12_345).unwrap();
    assert!(found == noise(seed, 300_000), "what was written is not there");
}

/// Does anybody hold the lock of the backing file? Looked up, not tried: a program that another test starts would keep
/// what we try, between its fork and its exec.
fn is_locked(disk: &Path) -> bool {
    let meta = std::fs::metadata(disk).unwrap();
    let (device, inode) = (meta.dev(), meta.ino());
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let id = format!(" {major:02x}:{minor:02x}:{inode} ");
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| line.contains(" FLOCK ") && line.contains(&id))
}

#[track_caller]
fn nothing_is_left(home: &Home, place: &Path, disk: &str) {
    assert!(!is_mounted(place));
    assert_eq!(sockets(home), Vec::<std::path::PathBuf>::new());
    assert_eq!(processes_naming(home.text(disk)), Vec::<i32>::new());
    assert!(!is_locked(&home.path(disk)));
}

#[test]
fn each_signal_that_ends_a_program_unmounts_and_exits_with_0() {
    for (seed, signal) in [(1, Signal::SIGTERM), (2, Signal::SIGINT), (3, Signal::SIGHUP)] {
        let home = Home::ready();
        home.create("vm.wd", "4M", &[]);
        let mut mount = Foreground::start(&home, home.text("vm.wd"), &[]);
        fill(&mount.file, seed);
        mount.signal(signal);
        mount.ends_with(0);
        nothing_is_left(&home, &mount.place, "vm.wd");

        let again = home.mount("vm.wd", &[]);
        finds(&again.file, seed);
        send(again.pid, signal);
        again.wait_for_end();
        assert!(!is_mounted(&again.place), "in the background as well");
    }
}

#[test]
fn a_stop_lets_the_last_user_finish() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mut mount = Foreground::start(&home, "vm.wd", &[]);
    let user = open(&mount.file);
    mount.signal(Signal::SIGTERM);
    eventually("the mount is detached", || (!is_mounted(&mount.place)).then_some(()));
    user.write_all_at(&noise(4, 300_000), 12_345).unwrap();
    user.sync_all().unwrap();
    assert!(!mount.has_ended(), "there is a user");
    drop(user);
    mount.ends_with(0);
    nothing_is_left(&home, &mount.place, "vm.wd");
    finds(&home.mount("vm.wd", &[]).file, 4);
}

#[test]
fn a_user_who_stays_is_left_behind_after_ten_seconds() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mut mount = Foreground::start(&home, "vm.wd", &[]);
    let user = open(&mount.file);
    user.write_all_at(&noise(5, 300_000), 12_345).unwrap();
    let start = Instant::now();
    mount.signal(Signal::SIGTERM);
    mount.ends_with(0);
    assert!(start.elapsed() >= Duration::from_secs(10), "the user had ten seconds");
    assert_eq!(errno(user.write_at(b"late", 0)), libc::ENOTCONN);
    nothing_is_left(&home, &mount.place, "vm.wd");
    finds(&home.mount("vm.wd", &[]).file, 5);
}

#[test]
fn an_unmount_by_anybody_ends_the_process_with_0() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let place = home.text("vm.wd.mnt");
    let ours = |args: &[&str]| home.command(args);
    let theirs = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args);
        command
    };
    let ways = [
        theirs("umount", &[place]),
        theirs("umount", &["-l", place]),
        theirs("fusermount3", &["-u", place]),
        theirs("fusermount3", &["-u", "-z", place]),
        ours(&["umount", "vm.wd"]),
        ours(&["umount", "--lazy", place]),
    ];
    for (seed, mut way) in (10..).zip(ways) {
        let mut mount = Foreground::start(&home, "vm.wd", &[]);
        fill(&mount.file, seed);
        // Another test's program may hold a copy of our file between its fork and its exec.
        eventually("unmount", || finish(&mut way).status.success().then_some(()));
        mount.ends_with(0);
        nothing_is_left(&home, &mount.place, "vm.wd");
        let again = home.mount("vm.wd", &[]);
        finds(&again.file, seed);
        again.unmount();
    }
}

#[test]
fn a_lazy_unmount_waits_for_its_users_and_takes_nothing_from_its_successor() {
    let home = Home::ready();
    home.create("old.wd", "4M", &[]);
    home.create("new.wd", "4M", &[]);
    let place = home.path("place");
    std::fs::create_dir(&place).unwrap();
    let old = home.mount_at("old.wd", &place, &[]);
    let user = open(&old.file);
    run("umount", ["-l", home.text("place")]);
    assert!(is_alive(old.pid));

    let new = home.mount_at("new.wd", &place, &[]);
    let refused = home.wrapdisk(["mount", "old.wd", home.text("elsewhere")]).fails(1);
    assert!(refused.contains("elsewhere"), "{refused}");
    std::fs::create_dir(home.path("elsewhere")).unwrap();
    let refused = home.wrapdisk(["mount", "old.wd", home.text("elsewhere")]).fails(1);
    assert!(refused.contains(&format!("in use by another process (pid {}, wrapdisk)", old.pid)), "{refused}");

    user.write_all_at(b"to the old one", 0).unwrap();
    drop(user);
    old.wait_for_end();
    assert_eq!(new.status()["pid"], new.pid, "the old process took the socket of the new one with it");
    new.unmount();
    assert!(sockets(&home).is_empty());
}

#[test]
fn an_unmounted_disk_can_be_mounted_again_at_once() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    for round in 0..20 {
        let mount = home.mount("vm.wd", &[]);
        if round > 0 {
            finds(&mount.file, round - 1);
        }
        fill(&mount.file, round);
        assert!(is_locked(&home.path("vm.wd")), "the judge sees the lock");
        mount.unmount();
        assert!(!is_locked(&home.path("vm.wd")));
    }
}

#[test]
fn an_unmount_does_not_wait_for_a_parent_that_asks_no_exit_code() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mut mount = Foreground::start(&home, "vm.wd", &[]);
    home.wrapdisk(["umount", "vm.wd"]).ok();
    assert!(!is_locked(&home.path("vm.wd")));
    mount.ends_with(0);
}

/// Whole or not at all: within a while it is either usable, or nothing of it is left. Returns whether it is usable.
#[track_caller]
fn settles(home: &Home, disk: &str, place: &Path) -> bool {
    let file = place.join("disk.img");
    let usable = eventually("a start that was disturbed settles", || {
        if processes_naming(home.text(disk)).is_empty() {
            return Some(false);
        }
        let listed = home.json(["status"]).as_array().is_some_and(|all| !all.is_empty());
        // A second look: it may be on its way out.
        (listed && File::open(&file).is_ok()).then_some(true)
    });
    if usable {
        fill(&file, 30);
        finds(&file, 30);
        eventually("unmount", || home.wrapdisk(["umount", disk]).status.success().then_some(()));
    }
    // A process that is killed has no name any more, but its lock for a moment.
    eventually("the end of the lock", || (!is_locked(&home.path(disk))).then_some(()));
    nothing_is_left(home, place, disk);
    usable
}

/// Starts a mount in the background and does something to it after each of these delays, spread over a start's time.
fn disturb(disturb: impl Fn(&mut std::process::Child)) {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let start = Instant::now();
    home.mount("vm.wd", &[]).unmount();
    let usual = start.elapsed();
    let mut usable = 0;
    let rounds = 16;
    for round in 0..rounds {
        let place = home.text("vm.wd.mnt");
        let mut command = home.command(["mount", home.text("vm.wd"), place]);
        let mut parent =
            command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(usual * round / (rounds - 4));
        disturb(&mut parent);
        parent.wait().unwrap();
        usable += u32::from(settles(&home, "vm.wd", Path::new(place)));
    }
    assert!(usable < rounds, "no delay disturbed it");
}

#[test]
fn a_start_whose_parent_is_killed_ends_whole_or_not_at_all() {
    disturb(|parent| drop(parent.kill()));
}

#[test]
fn a_start_that_is_interrupted_at_the_terminal_ends_whole_or_not_at_all() {
    // Ctrl-C reaches the whole group.
    disturb(|parent| {
        let _ = killpg(Pid::from_raw(i32::try_from(parent.id()).unwrap()), Signal::SIGINT);
    });
}

#[test]
fn a_mount_outlives_its_terminal() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let place = home.path("vm.wd.mnt");
    std::fs::create_dir(&place).unwrap();
    // script(1) gives it a terminal of its own, which hangs up when the shell ends.
    let shell = format!("{} mount vm.wd {}", support::WRAPDISK, place.display());
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &shell, "/dev/null"]).current_dir(home.root());
    finish(script.env("WRAPDISK_HOME", home.path("home"))).ok();
    let status = home.json(["status"]);
    let pid = i32::try_from(status[0]["pid"].as_i64().unwrap()).unwrap();
    fill(&place.join("disk.img"), 40);
    finds(&place.join("disk.img"), 40);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(fields[3], pid.to_string(), "a session of its own");
    assert_eq!(fields[4], "0", "no terminal");
    eventually("unmount", || home.wrapdisk(["umount", "vm.wd"]).status.success().then_some(()));
}

/// Of a mount that nobody is asking anything: the control socket, the pair through which signals come, and the way to the
/// journal.
const SOCKETS: usize = 4;

/// Of such a mount: main, two to four that serve, signals, control, rotation, guard, its lease and what it calls, hooks.
const MOST_THREADS: usize = 14;

/// What the process has open, by name.
fn open_files(pid: i32) -> Vec<String> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut names: Vec<_> = links
        .filter_map(|l| Some(std::fs::read_link(l.path()).ok()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

#[test]
fn a_mount_keeps_open_what_it_needs_and_nothing_more() {
    let home = Home::ready();
    let disk = home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let before = eventually("nobody is connected any more", || {
        let open = open_files(mount.pid);
        (open.iter().filter(|name| name.starts_with("socket:")).count() == SOCKETS).then_some(open)
    });
    let needed = |name: &str| {
        let (disk, log) = (disk.to_str().unwrap(), home.text("home/run/mount.log"));
        // The key guard asks the vault in the set's name, for as long as the disk is mounted.
        let guard = [home.text("home/state/vault.db"), home.text("home/state/sets.db")];
        [disk, log, "/dev/null", "/dev/fuse"].contains(&name)
            || name.starts_with("socket:")
            || guard.iter().any(|db| name.starts_with(db))
    };
    let odd: Vec<_> = before.iter().filter(|name| !needed(name)).collect();
    assert!(odd.is_empty(), "{odd:?} of {before:#?}");
    let threads = || std::fs::read_dir(format!("/proc/{}/task", mount.pid)).unwrap().count();
    let few = threads();
    assert!(few <= MOST_THREADS, "{few} threads");
    for seed in 0..50 {
        fill(&mount.file, seed);
        finds(&mount.file, seed);
        mount.status();
    }
    // The last answer's connection may still be on its way out.
    eventually("no file more than before", || (open_files(mount.pid) == before).then_some(()));
    eventually("no thread more than before, but for one that is ending", || {
        (threads() <= few + 1).then_some(())
    });
    mount.unmount();
}

#[test]
fn a_lock_or_pipe_of_the_script_that_mounts_does_not_live_as_long_as_the_mount() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    std::fs::create_dir(home.path("vm.wd.mnt")).unwrap();
    let script = format!(
        "exec 9>lock; flock 9; {} mount vm.wd vm.wd.mnt; {{ {} status 9>&-; }} 2>&1",
        support::WRAPDISK,
        support::WRAPDISK
    );
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).current_dir(home.root()).env("WRAPDISK_HOME", home.path("home"));
    // Reads the script's output to its end: it would hang here if the mount had kept that pipe.
    let said = finish(&mut bash).ok();
    assert!(said.contains("ready"), "{said}");
    File::open(home.path("lock")).unwrap().try_lock().expect("nobody holds the script's lock");
    eventually("unmount", || home.wrapdisk(["umount", "vm.wd"]).status.success().then_some(()));
}

#[test]
fn an_ordinary_users_mount_ends_as_well() {
    let home = Home::ready();
    run("chown", ["-R", "65534:65534", home.root().to_str().unwrap()]);
    let script = format!(
        r#"{}
        cd "$DIR"
        u() {{ setpriv --reuid 65534 --regid 65534 --clear-groups env WRAPDISK_HOME="$DIR/home" "$@"; }}
        end() {{ while pgrep -x wrapdisk > /dev/null; do sleep 0.01; done
            ! mountpoint -q folder; ls home/run; }}
        u "$WRAPDISK" create vm.wd --size 4M > /dev/null
        u mkdir folder
        for way in "fusermount3 -u folder" "fusermount3 -u -z folder" "$WRAPDISK umount folder" \
            "$WRAPDISK umount --lazy vm.wd" "pkill -TERM -x wrapdisk" "pkill -INT -x wrapdisk"; do
            u "$WRAPDISK" mount vm.wd folder > /dev/null
            u $way
            end
        done
        u "$WRAPDISK" mount vm.wd folder > /dev/null
        u bash -c "exec 9< folder/disk.img; touch opened; exec sleep 1000" &
        while [ ! -e opened ]; do sleep 0.01; done
        pkill -TERM -x wrapdisk
        while mountpoint -q folder; do sleep 0.01; done
        pgrep -x wrapdisk > /dev/null && echo serves its last user
        pkill -x sleep
        end"#,
        cli_support::FUSE_FOR_ALL
    );
    let env = [("DIR", home.root()), ("WRAPDISK", Path::new(support::WRAPDISK))];
    let said = cli_support::on_a_machine_of_its_own(&script, &env).ok();
    let expected = ["mount.log"; 6].into_iter().chain(["serves its last user", "mount.log"]);
    assert_eq!(said, expected.collect::<Vec<_>>().join("\n"));
}
