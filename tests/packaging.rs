//! Does `packaging/install.sh` put every file where mount(8), man, the shells and systemd look for it?
//!
//! The program under test writes its own manual pages and completions, so what is judged here is the real thing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const WRAPDISK: &str = env!("CARGO_BIN_EXE_wrapdisk");

/// Commands that the first issue promises; each has a manual page.
const COMMANDS: [&str; 11] =
    ["check", "create", "header", "info", "key", "mount", "seal", "set", "status", "umount", "volume-key"];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn install(variables: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(repository("packaging/install.sh"));
    for name in ["DESTDIR", "PREFIX", "SBINDIR", "UNITDIR", "USERUNITDIR"] {
        command.env_remove(name); // of whoever runs the tests
    }
    command.env("BINARY", WRAPDISK).envs(variables.iter().copied()).output().unwrap()
}

#[track_caller]
fn installed(variables: &[(&str, &Path)]) {
    let output = install(variables);
    assert!(output.status.success(), "install.sh: {}", String::from_utf8_lossy(&output.stderr));
}

/// Path -> mode, or -> the target of a link.
fn tree(top: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_symlink() {
                files.insert(name, fs::read_link(&path).unwrap().to_str().unwrap().to_owned());
            } else if metadata.is_dir() {
                folders.push(path);
            } else {
                files.insert(name, format!("{:o}", metadata.permissions().mode() & 0o7777));
            }
        }
    }
    files
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|e| panic!("{program} is needed for this test (tests/run installs it): {e}"))
}

#[test]
fn a_staged_tree_is_complete_and_holds_nothing_else() {
    let stage = tempfile::tempdir().unwrap();
    installed(&[("DESTDIR", stage.path()), ("PREFIX", Path::new("/usr"))]);
    let mut files = tree(stage.path());

    let man = "usr/share/man/man1/";
    let pages: Vec<_> = files.keys().filter(|f| f.starts_with(man)).cloned().collect();
    for page in &pages {
        assert_eq!(files.remove(page).unwrap(), "644", "{page}");
        let text = fs::read_to_string(stage.path().join(page)).unwrap();
        assert!(text.lines().any(|line| line.starts_with(".TH wrapdisk")), "{page} is no manual page");
    }
    let has = |page: String| pages.contains(&format!("{man}{page}"));
    assert!(has("wrapdisk.1".into()), "{pages:?}");
    for command in COMMANDS {
        assert!(has(format!("wrapdisk-{command}.1")), "no page for {command}: {pages:?}");
    }
    assert!(!pages.iter().any(|p| p.contains("generate")), "a hidden command has a page: {pages:?}");

    let expected = [
        ("usr/bin/wrapdisk", "755"),
        ("usr/lib/systemd/system/wrapdisk-rotate.service", "644"),
        ("usr/lib/systemd/system/wrapdisk-rotate.timer", "644"),
        ("usr/lib/systemd/system/wrapdisk-vault.service", "644"),
        ("usr/lib/systemd/system/wrapdisk@.service", "644"),
        ("usr/lib/systemd/user/wrapdisk-rotate.service", "644"),
        ("usr/lib/systemd/user/wrapdisk-rotate.timer", "644"),
        ("usr/sbin/mount.fuse.wrapdisk", "../bin/wrapdisk"),
        ("usr/sbin/mount.wrapdisk", "../bin/wrapdisk"),
        ("usr/share/bash-completion/completions/wrapdisk", "644"),
        ("usr/share/doc/wrapdisk/CHANGELOG.md", "644"),
        ("usr/share/doc/wrapdisk/LICENSE-APACHE", "644"),
        ("usr/share/doc/wrapdisk/LICENSE-MIT", "644"),
        ("usr/share/doc/wrapdisk/examples/fstab", "644"),
        ("usr/share/doc/wrapdisk/examples/mount.conf", "644"),
        ("usr/share/doc/wrapdisk/examples/vault.conf", "644"),
        ("usr/share/fish/vendor_completions.d/wrapdisk.fish", "644"),
        ("usr/share/zsh/site-functions/_wrapdisk", "644"),
    ];
    assert_eq!(files, expected.map(|(file, mode)| (file.to_owned(), mode.to_owned())).into());
    assert_eq!(fs::read(stage.path().join("usr/bin/wrapdisk")).unwrap(), fs::read(WRAPDISK).unwrap());
}

#[test]
fn the_helpers_and_the_units_reach_the_installed_program() {
    let top = tempfile::tempdir().unwrap();
    let (prefix, sbin) = (top.path().join("usr"), top.path().join("sbin"));
    let variables = [("PREFIX", &*prefix), ("SBINDIR", &*sbin)];
    installed(&variables);
    installed(&variables); // over itself
    let program = prefix.join("bin/wrapdisk");
    for name in ["mount.wrapdisk", "mount.fuse.wrapdisk"] {
        assert_eq!(fs::canonicalize(sbin.join(name)).unwrap(), fs::canonicalize(&program).unwrap());
    }

    for (unit, command) in
        [("wrapdisk@.service", "mount --foreground"), ("wrapdisk-vault.service", "vault serve")]
    {
        let unit = prefix.join("lib/systemd/system").join(unit);
        let text = fs::read_to_string(&unit).unwrap();
        assert!(text.contains(&format!("\nExecStart={} {command} ", program.display())), "{text}");
        let judge = |unit: &Path| {
            let output = run("systemd-analyze", &["verify", "--man=no", unit.to_str().unwrap()]);
            (output.status.success(), String::from_utf8(output.stderr).unwrap())
        };
        assert_eq!(judge(&unit), (true, String::new()), "{command}");
        // The judge looks at the words, and at the program.
        fs::write(&unit, text.replace("Type=notify", "Type=notfy")).unwrap();
        assert!(judge(&unit).1.contains("Failed to parse service type"));
        fs::write(&unit, text.replace("bin/wrapdisk", "bin/other")).unwrap();
        assert!(!judge(&unit).0);
    }
}

#[test]
fn the_rotation_runs_every_15_minutes_for_root_and_for_a_user() {
    let top = tempfile::tempdir().unwrap();
    let prefix = top.path().join("usr");
    installed(&[("PREFIX", &*prefix), ("SBINDIR", &*top.path().join("sbin"))]);
    for manager in ["system", "user"] {
        let units = prefix.join("lib/systemd").join(manager);
        let (service, timer) = (units.join("wrapdisk-rotate.service"), units.join("wrapdisk-rotate.timer"));
        let text = fs::read_to_string(&service).unwrap();
        let start = format!("\nExecStart={} set rotate --all\n", prefix.join("bin/wrapdisk").display());
        assert!(text.contains(&start), "{text}");
        let judge = || {
            let (service, timer) = (service.to_str().unwrap(), timer.to_str().unwrap());
            let mut judge = Command::new("systemd-analyze");
            judge.args(["verify", "--man=no", &format!("--{manager}"), service, timer]);
            let output = judge.env("XDG_RUNTIME_DIR", top.path()).output().unwrap();
            (output.status.success(), String::from_utf8(output.stderr).unwrap())
        };
        assert_eq!(judge(), (true, String::new()), "{manager}");
        let text = fs::read_to_string(&timer).unwrap();
        assert!(text.contains("\nPersistent=true\n"));
        let when = text.lines().find_map(|line| line.strip_prefix("OnCalendar=")).unwrap();
        let shown = run("systemd-analyze", &["calendar", when]);
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("Normalized form: *-*-* *:00/15:00"), "{shown}");
        fs::write(&timer, text.replace("OnCalendar=", "OnCalender=")).unwrap();
        assert!(judge().1.contains("OnCalender"), "the judge reads the timer");
    }
}

#[test]
fn the_vaults_unit_exposes_little() {
    let unit = repository("packaging/wrapdisk-vault.service");
    let stage = tempfile::tempdir().unwrap();
    let copy = stage.path().join("wrapdisk-vault.service");
    fs::write(&copy, fs::read_to_string(unit).unwrap().replace("@BINDIR@", "/usr/bin")).unwrap();
    // 0 is shut in, 100 is a plain service of root. It had 18 when this was written.
    let output =
        run("systemd-analyze", &["security", "--offline=yes", "--threshold=30", copy.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn bash_completes_the_command() {
    let stage = tempfile::tempdir().unwrap();
    installed(&[("DESTDIR", stage.path()), ("PREFIX", Path::new("/usr"))]);
    let file = stage.path().join("usr/share/bash-completion/completions/wrapdisk");
    let ask = |name: &str| {
        let script = format!("source '{}' && complete -p {name}", file.display());
        run("bash", &["-ec", &script]).status.success()
    };
    assert!(ask("wrapdisk"));
    assert!(!ask("another-command"));
}

#[test]
fn the_fstab_example_means_what_it_says() {
    let example = repository("packaging/examples/fstab");
    let columns = ["--noheadings", "--raw", "--output", "SOURCE,TARGET,FSTYPE,OPTIONS"];
    let output = run("findmnt", &[&["--tab-file", example.to_str().unwrap()], &columns[..]].concat());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "/srv/disks/vm.wd /mnt/vm fuse.wrapdisk nofail,cache-size=256M\n\
         /srv/disks/archive.wd /mnt/arch fuse.wrapdisk ro,allow_other,noauto,x-systemd.automount\n"
    );
}

#[test]
fn a_missing_or_foreign_program_is_refused_before_anything_is_installed() {
    let stage = tempfile::tempdir().unwrap();
    let missing = stage.path().join("no-such-program");
    for (binary, complaint) in
        [(&*missing, "no such program"), (Path::new("/bin/true"), "wrote no manual pages")]
    {
        let output = install(&[("DESTDIR", stage.path()), ("BINARY", binary)]);
        assert_eq!(output.status.code(), Some(1));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.starts_with(&format!("install.sh: {}: {complaint}", binary.display())), "{message}");
        assert_eq!(tree(stage.path()), BTreeMap::new());
    }
}
