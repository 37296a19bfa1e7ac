//! Is nothing lost, and nothing left, when `create --full` or `seal` is ended in the middle: by Ctrl-C, by a signal, by
//! kill -9? And can each be run again?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use cli_support::{Terminal, names, overwrite};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Done, Home, finish, noise, run};

/// Takes seconds to write, which nobody waits for here.
const LARGE: &str = "2G";

/// On a terminal, with every signal as it is by default: who runs the tests under nohup makes all of them ignore SIGHUP.
fn start(command: &Command) -> Terminal {
    let mut plain = Command::new("env");
    plain.arg("--default-signal").arg(command.get_program()).args(command.get_args());
    plain.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    plain.current_dir(command.get_current_dir().unwrap());
    Terminal::start(&plain)
}

/// Ends a program once it has shown some progress: by its terminal, or by a signal.
#[track_caller]
fn end_by(mut terminal: Terminal, progress: &str, signal: Signal) -> Done {
    terminal.wait_for(progress);
    match signal {
        Signal::SIGINT => terminal.types("\u{3}"),
        signal => kill(Pid::from_raw(i32::try_from(terminal.pid()).unwrap()), signal).unwrap(),
    }
    let (done, _) = terminal.end();
    assert_eq!(done.status.signal(), Some(signal as i32), "it was not in the middle: {:?}", done.out);
    done
}

#[test]
fn a_creation_that_is_ended_leaves_no_file_of_any_name() {
    let home = Home::ready();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
        let arguments = ["create", "vm.wd", "--size", LARGE, "--full"];
        end_by(start(&home.command(arguments)), "writing:", signal);
        assert_eq!(names(home.root()), ["home"], "{signal}");
    }
    home.create("vm.wd", "1M", &["--full"]);
    home.wrapdisk(["check", "vm.wd"]).ok();
}

#[test]
fn a_replacement_that_is_ended_leaves_the_old_disk() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let before = home.json(["info", "vm.wd"]);
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let arguments = ["create", "vm.wd", "--size", LARGE, "--full", "--force"];
        let terminal = start(&home.command(arguments));
        terminal.wait_for("writing:");
        // Nobody mounts what is about to be replaced.
        let err = home.wrapdisk(["check", "vm.wd"]).fails(1);
        assert!(err.contains("in use by another process"), "{err}");
        end_by(terminal, "writing:", signal);
        assert_eq!(names(home.root()), ["home", "vm.wd"], "{signal}");
        assert_eq!(home.json(["info", "vm.wd"]), before);
    }
    home.wrapdisk(["check", "vm.wd"]).ok();
}

/// A file system without unnamed files: bindfs, over FUSE.
struct NoUnnamed<'a>(&'a Home);

impl<'a> NoUnnamed<'a> {
    fn new(home: &'a Home) -> Self {
        fs::create_dir(home.path("below")).unwrap();
        fs::create_dir(home.path("odd")).unwrap();
        run("bindfs", [home.text("below"), home.text("odd")]);
        let unnamed = Command::new("python3")
            .args(["-c", "import os, sys; os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR)"])
            .arg(home.path("odd"))
            .output();
        let said = String::from_utf8(unnamed.unwrap().stderr).unwrap();
        assert!(said.contains("Operation not supported"), "this file system has unnamed files: {said}");
        Self(home)
    }
}

impl Drop for NoUnnamed<'_> {
    fn drop(&mut self) {
        let _ = finish(Command::new("umount").arg("-l").arg(self.0.path("odd")));
    }
}

#[test]
fn where_files_must_have_a_name_a_signal_takes_it_away() {
    let home = Home::ready();
    let odd = NoUnnamed::new(&home);
    let place = home.path("odd");
    home.create("odd/vm.wd", "1M", &[]);
    home.create("odd/vm.wd", "1M", &["--force"]);
    assert!(home.wrapdisk(["create", "odd/vm.wd", "--size", "1M"]).fails(1).contains("exists already"));
    let uuid = home.json(["info", "odd/vm.wd"])["uuid"].clone();
    for (signal, force) in
        [(Signal::SIGINT, &["odd/new.wd"][..]), (Signal::SIGTERM, &["odd/vm.wd", "--force"])]
    {
        let arguments = [&["create", "--size", LARGE, "--full"], force].concat();
        let terminal = start(&home.command(arguments));
        terminal.wait_for("writing:");
        let now = names(&place);
        assert!(now[0].starts_with('.') && now[0].ends_with(".new"), "{now:?}");
        end_by(terminal, "writing:", signal);
        assert_eq!(names(&place), ["vm.wd"], "{signal}");
    }
    assert_eq!(home.json(["info", "odd/vm.wd"])["uuid"], uuid);
    home.wrapdisk(["check", "odd/vm.wd"]).ok();
    drop(odd);
}

/// Data at both ends and in the middle of a disk of 512 MiB, holes between.
fn fill(file: &Path) {
    use std::os::unix::fs::FileExt;
    let disk = fs::File::options().write(true).open(file).unwrap();
    for (seed, at) in [(1, 0), (2, 256 << 20), (3, 511 << 20)] {
        disk.write_all_at(&noise(seed, 1 << 20), at).unwrap();
    }
    disk.sync_all().unwrap();
}

/// What a reader sees, by a program that nobody here wrote.
fn digest(file: &str) -> String {
    run("sha256sum", [file]).split(' ').next().unwrap().to_owned()
}

#[test]
fn a_seal_that_is_ended_loses_nothing_and_can_be_run_again() {
    let home = Home::ready();
    home.create("vm.wd", "512M", &[]);
    let mount = home.mount("vm.wd", &[]);
    fill(&mount.file);
    let before = digest(mount.text());
    mount.unmount();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        end_by(start(&home.command(["seal", "vm.wd"])), "sealing:", signal);
        assert_eq!(home.json(["info", "vm.wd"])["holes"], "zeros");
        home.wrapdisk(["check", "vm.wd"]).ok();
    }
    let mount = home.mount("vm.wd", &[]);
    assert_eq!(digest(mount.text()), before);
    // The judge sees a changed byte.
    overwrite(&mount.file, b"x");
    assert_ne!(digest(mount.text()), before);
    overwrite(&mount.file, &noise(1, 1));
    mount.unmount();

    let said = home.wrapdisk(["seal", "vm.wd"]).ok();
    assert_eq!(said, format!("{}: sealed, 512 MiB", home.text("vm.wd")));
    let info = home.json(["info", "vm.wd"]);
    assert_eq!((&info["holes"], &info["discards"]), (&"none".into(), &false.into()));
    assert_eq!(home.wrapdisk(["seal", "vm.wd"]).ok(), format!("{}: sealed already", home.text("vm.wd")));
    let mount = home.mount("vm.wd", &["--read-only"]);
    assert_eq!(digest(mount.text()), before);
    mount.unmount();
}

#[test]
fn a_seal_of_a_mounted_disk_is_refused() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let disk = home.text("vm.wd");
    let place = mount.place.display();
    for name in ["vm.wd", "vm.wd.mnt", "vm.wd.mnt/disk.img"] {
        assert_eq!(
            home.wrapdisk(["seal", name]).fails(1),
            format!(
                "wrapdisk: {disk}: in use: mounted at {place} by process {}\n  unmount it first: wrapdisk umount {place}",
                mount.pid
            )
        );
    }
    mount.unmount();
}
