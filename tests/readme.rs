//! Do the README's commands do what it says? Every `sh` block is run as it stands, and the first command with the program
//! that the test was built with in the place of `cargo run --release --`.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../README.md");

/// The fenced blocks of one language ("" for none).
fn blocks(language: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut rest = README;
    while let Some((_, after)) = rest.split_once("\n```") {
        let (info, body) = after.split_once('\n').unwrap();
        let (block, next) = body.split_once("\n```").unwrap();
        if info == language {
            found.push(block);
        }
        rest = next;
    }
    found
}

/// Runs a script in a folder of its own with the built program on its PATH; unmounts whatever it left.
fn run(script: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_wrapdisk"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let out = Command::new("timeout")
        .args(["120", "bash", "-euo", "pipefail", "-c", script])
        .current_dir(dir.path())
        .env("PATH", path)
        .env("WRAPDISK_HOME", dir.path().join("home"))
        .output()
        .unwrap();
    for place in ["demo", "vm"] {
        let _ = Command::new("umount").arg("-lq").arg(dir.path().join(place)).status();
    }
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}

#[test]
fn the_first_command_makes_and_shows_a_disk() {
    let first = *blocks("").first().unwrap();
    assert!(first.starts_with("cargo run --release -- mount --create "), "{first}");
    let script = first.replace("cargo run --release --", "wrapdisk");
    let (ok, said) = run(&format!(
        "{script}\n test -f ./demo/disk.img\n test $(stat -c %s ./demo/disk.img) = 1073741824\n wrapdisk umount ./demo"
    ));
    assert!(ok, "{said}");
    assert!(said.contains("demo/disk.img") && said.contains("Back it up"), "{said}");
}

#[test]
fn the_tour_runs_as_it_stands() {
    let tour = blocks("sh");
    assert!(!tour.is_empty());
    for block in tour {
        let (ok, said) = run(block);
        assert!(ok, "{block}\n--- said:\n{said}");
    }
}

#[test]
fn the_test_command_is_there_and_explains_itself() {
    assert!(blocks("").contains(&"tests/run"));
    let out =
        Command::new("tests/run").arg("--help").current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("--long"));
}

/// Azure is not here, and a server would not end: the program only has to understand these. Their work is done by the tests of
/// `vault serve` and of vaults elsewhere.
#[test]
fn the_commands_of_the_consoles_are_understood() {
    let lines: Vec<_> =
        blocks("console").into_iter().flat_map(str::lines).filter(|l| l.starts_with("$ ")).collect();
    assert!(lines.len() >= 7, "{lines:?}");
    let understood = |command: &str| run(&format!("{command} --help")).0;
    for line in lines {
        let command = line.trim_start_matches("$ ").split('#').next().unwrap();
        assert!(command.starts_with("wrapdisk ") && understood(command), "{line}");
    }
    assert!(!understood("wrapdisk vault serve --no-such-option"), "anything is understood");
}

/// The bench takes a quarter of an hour: here it only has to understand what the README tells it.
#[test]
fn the_commands_that_measure_are_understood() {
    let block = blocks("").into_iter().find(|b| b.contains("benches/fio/run")).unwrap();
    let understood = |line: &str, more: &str| {
        let script = format!("{line} {more}");
        let out = Command::new("sh")
            .args(["-c", &script])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    };
    for line in block.lines() {
        match line.split(' ').next().unwrap() {
            "benches/fio/run" => understood(line, "--list"),
            "cargo" => understood(line.split(" -- ").next().unwrap(), "--help"),
            other => panic!("{other}: nobody tests this line"),
        }
    }
}

/// The judge is no rubber stamp.
#[test]
fn a_command_that_fails_fails_the_block() {
    assert!(!run("wrapdisk mount nothing.wd nowhere").0);
    assert!(!run("wrapdisk create x.wd --size 1M | false").0);
}
