//! Do `mount -t fuse.wrapdisk`, a line in fstab and systemd get what they expect from the mount helper, as
//! `packaging/install.sh` installs it: options, exit codes, silence?
//!
//! Each test has a machine of its own: /usr/sbin and /usr/bin with the installed files laid over them, so that the real
//! mount(8) finds the helpers where it looks for them, and nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::path::Path;
use std::process::Command;

use cli_support::{FUSE_FOR_ALL, give, on_a_machine_of_its_own};
use support::{Done, Home, WRAPDISK, finish};

/// Lays what the installer made over the machine's own folders, and goes to the home. `says` runs a command that may fail
/// and prints what it said, and its exit code; `gone` waits for the last daemon's end, which umount(8) does not.
const INSTALLED: &str = "mount -t overlay overlay -o lowerdir=\"$STAGE/usr/sbin:/usr/sbin\" /usr/sbin
    mount -t overlay overlay -o lowerdir=\"$STAGE/usr/bin:/usr/bin\" /usr/bin
    hash -r; export PATH=\"$PATH:/usr/sbin\" WRAPDISK_HOME=\"$WHERE/home\"; cd \"$WHERE\"; mkdir -p mnt mnt2
    says() { local code=0; \"$@\" 2>&1 || code=$?; echo \"=> $code\"; }
    gone() { for i in {1..600}; do [ -z \"$(wrapdisk status | grep ^disk:)\" ] && break; sleep 0.05; done; wrapdisk status; }\n";

/// A home with the disk `vm.wd`, and the program installed.
struct Machine {
    home: Home,
}

impl Machine {
    fn new() -> Self {
        let home = Home::ready();
        home.create("vm.wd", "1M", &[]);
        let mut install = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/install.sh"));
        for name in ["SBINDIR", "UNITDIR"] {
            install.env_remove(name); // of whoever runs the tests
        }
        install.env("BINARY", WRAPDISK).env("DESTDIR", home.path("stage")).env("PREFIX", "/usr");
        finish(&mut install).ok();
        Self { home }
    }

    #[track_caller]
    fn runs(&self, script: &str) -> Done {
        let env = [("STAGE", &*self.home.path("stage")), ("WHERE", self.home.root())];
        on_a_machine_of_its_own(&(INSTALLED.to_owned() + script), &env)
    }

    /// What a script said, with "~" for the home.
    #[track_caller]
    fn says(&self, script: &str) -> String {
        self.runs(script).ok().replace(self.home.root().to_str().unwrap(), "~")
    }
}

#[test]
fn mount8_mounts_by_both_names_with_options_and_says_nothing() {
    let machine = Machine::new();
    for kind in ["fuse.wrapdisk", "wrapdisk"] {
        let said = machine.says(&format!(
            "says mount -t {kind} vm.wd mnt -o ro,allow_other,cache-size=256M
             findmnt -n -o TARGET,SOURCE,FSTYPE mnt; findmnt -n -o OPTIONS mnt
             wrapdisk status --output json | python3 -c 'import json, sys
m = json.load(sys.stdin)[0]; print(m[\"readOnly\"], m[\"cache\"][\"capacity\"] * 4096, m[\"mountpoint\"])'
             says umount mnt; gone"
        ));
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines[0], "=> 0", "{said}");
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["~/mnt", "~/vm.wd", "fuse.wrapdisk"]);
        let options: Vec<_> = lines[2].split(',').collect();
        for option in ["ro", "allow_other", "default_permissions", "nosuid", "nodev"] {
            assert!(options.contains(&option), "{option}: {options:?}");
        }
        assert_eq!(lines[3..], ["True 268435456 ~/mnt", "=> 0", "nothing is mounted"], "{said}");
    }
}

#[test]
fn what_is_written_through_an_fstab_line_is_there_the_next_time() {
    let machine = Machine::new();
    let said = machine.says(
        "echo \"$WHERE/vm.wd $WHERE/mnt fuse.wrapdisk defaults,nofail,_netdev,x-systemd.automount,cache-size=0 0 0\" > fstab
         says mount -T fstab -a; says mount -T fstab -a; wrapdisk status | grep -c ^disk:
         echo hello | dd of=mnt/disk.img conv=notrunc status=none; says umount mnt
         says mount -T fstab mnt; head -c 5 mnt/disk.img; echo; says mount -T fstab -a
         says umount mnt; gone",
    );
    assert_eq!(said, "=> 0\n=> 0\n1\n=> 0\n=> 0\nhello\n=> 0\n=> 0\nnothing is mounted");
}

#[test]
fn mounting_the_same_again_is_harmless_and_another_is_busy() {
    let machine = Machine::new();
    machine.home.create("other.wd", "1M", &[]);
    let said = machine.says(
        "ln -s vm.wd link.wd; uuid=$(wrapdisk info vm.wd --output json | sed -n 's/.*\"uuid\": \"\\(.*\\)\".*/\\1/p')
         says mount.wrapdisk vm.wd mnt
         for disk in vm.wd link.wd \"$WHERE/vm.wd\" $uuid mnt/disk.img; do says mount.wrapdisk \"$disk\" mnt -o rw; done
         says mount -t fuse.wrapdisk other.wd mnt
         says mount -t fuse.wrapdisk vm.wd mnt2
         says umount mnt; says umount mnt",
    );
    let pid: String =
        said.rsplit("by process ").next().unwrap().chars().take_while(char::is_ascii_digit).collect();
    assert_eq!(
        said,
        format!(
            "=> 0\n=> 0\n=> 0\n=> 0\n=> 0\n=> 0\n\
             wrapdisk: ~/mnt: mountpoint: ~/vm.wd is mounted here\n  choose another place, or umount it first\n=> 32\n\
             wrapdisk: ~/vm.wd: in use: mounted at ~/mnt by process {pid}\n  unmount it first: wrapdisk umount ~/mnt\n=> 32\n\
             => 0\numount: mnt: not mounted.\n=> 32"
        )
    );
}

#[test]
fn failures_have_the_exit_codes_of_mount8() {
    let machine = Machine::new();
    let cases = [
        (
            "mount -t fuse.wrapdisk vm.wd mnt -o chache-size=1M",
            "mount.wrapdisk: option \"chache-size\" is not known; a similar one is \"cache-size\"",
            1,
        ),
        ("mount -t fuse.wrapdisk vm.wd mnt -o xyzzy", "mount.wrapdisk: option \"xyzzy\" is not known", 1),
        (
            "mount -t fuse.wrapdisk vm.wd mnt -o cache-size=lots",
            "mount.wrapdisk: invalid value 'lots' for '--cache-size <SIZE>': found \"lots\", allowed a number of bytes or a size such as 512M, 20G, 1.5T, 20GB",
            1,
        ),
        (
            "mount -t fuse.wrapdisk vm.wd mnt -o set=default",
            "wrapdisk: an option for a new disk: found without --create, which would make one",
            1,
        ),
        (
            "mount -t fuse.wrapdisk missing.wd mnt",
            "wrapdisk: missing.wd: open: No such file or directory (os error 2)\n  make a disk with: wrapdisk create FILE --size SIZE",
            32,
        ),
        (
            "mount.wrapdisk vm.wd missing",
            "wrapdisk: missing: mountpoint: No such file or directory (os error 2)\n  make a folder (or an empty file) there first, for instance with mkdir",
            32,
        ),
        (
            "mount.wrapdisk vm.wd",
            "mount.wrapdisk: found 1 words, allowed SOURCE MOUNTPOINT\nusage: mount.wrapdisk DISK MOUNTPOINT [-fnrsvw] [-o OPTION[=VALUE],...]\nThe options are the long ones of `wrapdisk mount`, and ro; see wrapdisk-mount(1).",
            1,
        ),
        ("mount.wrapdisk vm.wd mnt -o", "mount.wrapdisk: -o: found nothing, allowed a list of options", 1),
        ("mount.wrapdisk vm.wd mnt -o help", "mount.wrapdisk: option \"help\" is not known", 1),
        (
            "mount.wrapdisk vm.wd mnt -o 'foreground;id'",
            "mount.wrapdisk: option \"foreground;id\" is not known",
            1,
        ),
    ];
    let script: String = cases.iter().map(|(command, ..)| format!("says {command}\n")).collect();
    let wanted: Vec<_> = cases.iter().map(|(_, says, code)| format!("{says}\n=> {code}")).collect();
    assert_eq!(machine.says(&script), wanted.join("\n"));
}

#[test]
fn a_denied_key_and_a_bad_container_fail_the_mount() {
    let machine = Machine::new();
    let said = machine.says(
        "echo junk > junk.wd; says mount -t wrapdisk junk.wd mnt
         wrapdisk key disable disk-kek > /dev/null 2>&1; says mount -t wrapdisk vm.wd mnt
         echo \"$WHERE/vm.wd $WHERE/mnt fuse.wrapdisk nofail 0 0\" > fstab; says mount -T fstab -a",
    );
    let codes: Vec<_> = said.lines().filter(|line| line.starts_with("=> ")).collect();
    // With several lines in fstab, mount -a adds its own: 32 is "all failed".
    assert_eq!(codes, ["=> 32", "=> 32", "=> 32"], "{said}");
    assert!(said.starts_with("wrapdisk: ~/junk.wd: not a LUKS2 container: "), "{said}");
    assert!(
        said.contains("wrapdisk: ~/vm.wd: Operation unwrapKey is not allowed on a disabled key "),
        "{said}"
    );
}

#[test]
fn the_flags_of_mount8_and_systemd_are_understood() {
    let machine = Machine::new();
    let said = machine.says(
        "says mount -f -t fuse.wrapdisk vm.wd mnt; says mount.wrapdisk vm.wd mnt -f; wrapdisk status
         says mount.fuse.wrapdisk vm.wd mnt -n -s -t fuse.wrapdisk -o rw,noatime; says umount mnt
         says mount.wrapdisk -ns vm.wd mnt -o ro,nosuid; grep -c ' ro,' <(findmnt -n -o OPTIONS mnt | sed 's/^/ /'); umount mnt
         says mount -r -t fuse.wrapdisk vm.wd mnt; findmnt -n -o OPTIONS mnt | cut -d, -f1; umount mnt
         says mount -v -t fuse.wrapdisk vm.wd mnt; umount mnt",
    );
    let (quiet, verbose) = said.split_at(said.find("~/mnt/disk.img").unwrap());
    assert_eq!(quiet, "=> 0\n=> 0\nnothing is mounted\n=> 0\n=> 0\n=> 0\n1\n=> 0\nro\n");
    assert!(verbose.starts_with("~/mnt/disk.img\n") && verbose.ends_with("=> 0"), "{verbose}");
}

#[test]
fn the_options_of_the_command_line_win_over_those_of_fstab() {
    let machine = Machine::new();
    let said = machine.says(
        "echo \"$WHERE/vm.wd $WHERE/mnt fuse.wrapdisk ro,noauto,cache-size=0 0 0\" > fstab
         show() { findmnt -n -o OPTIONS mnt | cut -d, -f1
                  wrapdisk status mnt --output json | python3 -c 'import json, sys
c = json.load(sys.stdin)[0][\"cache\"]; print(c and c[\"capacity\"] * 4096)'; umount mnt; }
         says mount -T fstab -a; says mount -T fstab mnt; show
         says mount -T fstab mnt -o rw,cache-size=1M; show",
    );
    // noauto: nothing happens by itself.
    assert_eq!(said, "=> 0\n=> 0\nro\nNone\n=> 0\nrw\n1048576");
}

#[test]
fn a_remount_is_refused_in_words_and_changes_nothing() {
    let machine = Machine::new();
    let said = machine.says(
        "mount -t fuse.wrapdisk vm.wd mnt; says mount -o remount,ro mnt; findmnt -n -o OPTIONS mnt | cut -d, -f1; umount mnt",
    );
    let why = "mount.wrapdisk: remount: a mounted disk keeps its options; umount it and mount it again";
    assert_eq!(said, format!("{why}\n=> 1\nrw"));
}

#[test]
fn the_file_is_handed_over_to_the_user_whom_uid_names() {
    let machine = Machine::new();
    let said = machine.says(
        "chmod 755 .; mount -t fuse.wrapdisk vm.wd mnt -o uid=65534,gid=65533; stat -c '%u %g %a' mnt/disk.img
         setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'echo mine | dd of=mnt/disk.img conv=notrunc status=none; head -c 4 mnt/disk.img'
         echo; says setpriv --reuid 65532 --regid 65532 --clear-groups head -c 4 mnt/disk.img; umount mnt",
    );
    let denied = "head: cannot open 'mnt/disk.img' for reading: Permission denied\n=> 1";
    assert_eq!(said, format!("65534 65533 600\nmine\n{denied}"));
}

#[test]
fn root_uses_the_state_that_an_option_names() {
    let machine = Machine::new();
    let said = machine.says(
        "mv home theirs; says mount -t fuse.wrapdisk vm.wd mnt -o nosuid
         says mount -t fuse.wrapdisk vm.wd mnt -o \"state=$WHERE/theirs/state\"; wrapdisk status mnt | head -1; umount mnt
         ls home",
    );
    let none = "wrapdisk: ~/vm.wd: ~/home/state: no vault here\n  \
                the first wrapdisk create makes one; to use another one, give --state DIR";
    assert_eq!(said, format!("{none}\n=> 32\n=> 0\ndisk:      ~/vm.wd\nrun"));
}

#[test]
fn an_ordinary_user_mounts_what_fstab_lets_users_mount() {
    let machine = Machine::new();
    for name in ["", "vm.wd"] {
        give(&machine.home.path(name));
    }
    let script = FUSE_FOR_ALL.to_owned()
        + "chown -R 65534:65534 home mnt; echo \"$WHERE/vm.wd $WHERE/mnt fuse.wrapdisk user,noauto 0 0
$WHERE/vm.wd $WHERE/mnt2 fuse.wrapdisk noauto 0 0\" > fstab; mount --bind fstab /etc/fstab
           user() { setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"; }
           says user mount \"$WHERE/mnt\"; user wrapdisk status | head -1; user stat -c '%u %a' mnt/disk.img
           says user wrapdisk umount \"$WHERE/mnt\"; says user mount \"$WHERE/mnt2\"";
    let said = machine.says(&script);
    let (mine, others) = said.split_once("wrapdisk: ~/mnt2: ").unwrap();
    assert_eq!(mine, "=> 0\ndisk:      ~/vm.wd\n65534 600\n=> 0\n");
    // Root's folder: fusermount3 decides, as for every FUSE file system.
    assert!(
        others.starts_with("mount: fusermount3: user has no write access to mountpoint ~/mnt2"),
        "{said}"
    );
    assert!(others.ends_with("=> 32"), "{said}");
}

/// What the machine of its own is good for.
#[test]
fn nothing_is_left_of_the_helpers() {
    let machine = Machine::new();
    machine.says("test -x /sbin/mount.wrapdisk && mount -t wrapdisk vm.wd mnt");
    assert!(!Path::new("/sbin/mount.wrapdisk").exists() || Path::new("/usr/bin/wrapdisk").exists());
    assert_eq!(machine.home.wrapdisk(["status"]).ok(), "nothing is mounted");
    machine.home.mount("vm.wd", &[]).unmount();
}
