//! Does every command explain itself: long help with examples and exit codes, a man page, completions; and does the program
//! take a closed pipe, a wrong word and a question for its version as every other program does?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Home, WRAPDISK, finish, run};

const EXIT_CODES: &str = "\
Exit codes:
  0 ok                  3 key denied (disabled, deleted, no permission), wrong passphrase
  1 failed              4 vault unreachable, or not there
  2 usage               5 container or vault damaged";

fn help(command: &[String]) -> String {
    let done = finish(Command::new(WRAPDISK).args(command).arg("--help").env("COLUMNS", "100"));
    assert_eq!(done.err, "");
    done.ok()
}

/// The words of the "Commands:" part of a help text.
fn children(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let entries = list.lines().take_while(|line| !line.is_empty());
    // A description that goes on in the next line is further to the right.
    let words = entries.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    words
        .filter_map(|line| line.split_whitespace().next())
        .filter(|w| *w != "help")
        .map(str::to_owned)
        .collect()
}

/// Every command there is, as its words, found as a user finds them.
fn commands() -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(command) = open.pop() {
        for child in children(&help(&command)) {
            open.push([&command[..], &[child]].concat());
        }
        found.push(command);
    }
    found.sort();
    found
}

/// Every verb, sorted, one a line.
const PROMISED: &str = "\
audit
audit archive
audit export
audit head
audit list
audit verify
check
completion
create
disk
disk update
drill
drill outage
drill revoke
drill rotate
grant
guest
guest add
guest list
guest remove
header
header backup
header dump
header erase
header restore
info
key
key backup
key create
key delete
key disable
key download
key enable
key import
key list
key list-deleted
key list-versions
key purge
key recover
key restore
key rotate
key rotation-policy
key rotation-policy show
key rotation-policy update
key set-attributes
key show
key show-deleted
mount
revoke
seal
set
set create
set delete
set forget
set list
set list-associated-resources
set rotate
set scan
set show
set update
set wait
status
umount
vault
vault add
vault backup
vault env
vault grant
vault identity
vault identity add
vault identity credential
vault identity credential add
vault identity credential remove
vault identity disable
vault identity enable
vault identity list
vault identity remove
vault identity show
vault init
vault list
vault remove
vault restore
vault revoke
vault rotate-root-key
vault seal
vault serve
vault test
vault update
volume-key";

#[test]
fn the_commands_are_those_that_were_promised() {
    let found: Vec<_> = commands().iter().map(|c| c.join(" ")).filter(|c| !c.is_empty()).collect();
    assert_eq!(found.join("\n"), PROMISED);
}

#[test]
fn every_long_help_has_examples_exit_codes_and_a_line_for_each_word() {
    for command in commands() {
        let (name, text) = (command.join(" "), help(&command));
        let program = format!("wrapdisk {name}");
        let (_, examples) =
            text.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{name}: no examples: {text}"));
        let examples: Vec<_> = examples.lines().take_while(|line| line.starts_with("  ")).collect();
        assert!(examples.iter().any(|line| line.contains(program.trim())), "{name}: {examples:?}");
        assert!(examples.iter().all(|line| line.len() <= 100), "{name}: {examples:?}");
        assert!(text.contains(EXIT_CODES), "{name}: {text}");
        assert!(text.lines().all(|line| line.len() <= 120), "{name}: a line is too long: {text}");
        assert!(!text.lines().next().unwrap().is_empty(), "{name}");
        for (at, line) in text.lines().enumerate() {
            // "<DISK>" or "--force" with nothing below it or behind it explains nothing.
            let is_word = line.starts_with("  ") && line.trim_start().starts_with(['<', '[', '-']);
            let is_note =
                line.trim_start().starts_with("[default") || line.trim_start().starts_with("[possible");
            if is_word && !is_note && !line.trim().contains("  ") {
                let next = text.lines().nth(at + 1).unwrap_or_default();
                assert!(next.starts_with("          "), "{name}: not explained: {line}");
            }
        }
    }
}

/// The commands that a line names, as the user would type them.
fn named(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, word) in line.match_indices("wrapdisk ") {
        if line[..at].ends_with(['.', '/', '$']) {
            continue; // a file system type, a folder
        }
        let rest = &line[at + word.len()..];
        let word =
            |text: &str| text.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect::<String>();
        let first = word(rest);
        let second = rest[first.len()..].strip_prefix(' ').map(word).unwrap_or_default();
        let group = ["header", "key", "set"].contains(&first.as_str()) && !second.is_empty();
        found.push(if group { format!("{first} {second}") } else { first });
    }
    found.retain(|name| !name.is_empty() && !name.starts_with('-'));
    found
}

#[test]
fn every_command_that_an_example_or_a_hint_names_is_there() {
    let known: BTreeSet<_> = commands().iter().map(|c| c.join(" ")).collect();
    let mut seen = 0;
    for command in commands() {
        let text = help(&command);
        let (_, examples) = text.split_once("\nExamples:\n").unwrap();
        for line in examples.lines().take_while(|line| line.starts_with("  ")) {
            for name in named(line) {
                assert!(known.contains(&name), "{command:?}: {line}");
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "{seen} in examples");
    // In the source, advice stands behind a colon or in backquotes.
    let (mut seen, mut folders) = (0, vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")]);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for line in text.lines().filter(|l| l.contains(": wrapdisk ") || l.contains("`wrapdisk ")) {
                for name in named(line) {
                    assert!(known.contains(&name), "{}: {line}", path.display());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 15, "{seen} in the source");
    assert_eq!(named("make it: wrapdisk set frob NAME, or `wrapdisk nosuch`"), ["set frob", "nosuch"]);
}

#[test]
fn the_short_help_is_short_and_help_is_a_command_too() {
    for command in commands() {
        let short = finish(Command::new(WRAPDISK).args(&command).arg("-h")).ok();
        assert!(short.len() < help(&command).len(), "{command:?}");
        let group = command.is_empty()
            || ["header", "key", "set"].contains(&command[0].as_str()) && command.len() == 1;
        if !group && command.len() == 1 {
            let asked = finish(Command::new(WRAPDISK).arg("help").args(&command).env("COLUMNS", "100")).ok();
            assert_eq!(asked, help(&command));
        }
    }
}

#[test]
fn every_command_has_a_man_page_with_the_same_in_it() {
    let dir = tempfile::tempdir().unwrap();
    run(WRAPDISK, ["generate", "man", dir.path().to_str().unwrap()]);
    let mut pages: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    let page = |c: &Vec<String>| format!("{}.1", [&["wrapdisk".to_owned()], &c[..]].concat().join("-"));
    let mut wanted: Vec<_> = commands().iter().map(page).collect();
    wanted.sort();
    assert_eq!(pages, wanted);
    for command in commands() {
        let path = dir.path().join(page(&command));
        let shown = finish(
            Command::new("man").args(["--local-file", "--warnings"]).arg(&path).env("MANWIDTH", "120"),
        );
        assert_eq!(shown.err, "", "{command:?}");
        let text = shown.ok();
        for part in ["NAME", "SYNOPSIS", "DESCRIPTION", "Examples:", "Exit codes:", "wrong passphrase"] {
            assert!(text.contains(part), "{command:?}: no {part}: {text}");
        }
    }
}

#[test]
fn every_command_is_completed_in_every_shell() {
    let dir = tempfile::tempdir().unwrap();
    run(WRAPDISK, ["generate", "completions", dir.path().to_str().unwrap()]);
    for (shell, file) in [
        ("bash", "wrapdisk.bash"),
        ("zsh", "_wrapdisk"),
        ("fish", "wrapdisk.fish"),
        ("elvish", "wrapdisk.elv"),
    ] {
        let text = fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(run(WRAPDISK, ["completion", shell]), text.trim(), "{shell}");
        for word in commands().iter().flatten() {
            assert!(text.contains(word.as_str()), "{shell} does not know {word}");
        }
    }
    // Bash itself: what comes after these words?
    let complete = |words: &[&str]| {
        let script = "source \"$0\"; COMP_WORDS=(wrapdisk \"$@\"); COMP_CWORD=$(($# )); _wrapdisk wrapdisk \"${@: -1}\" \"${COMP_WORDS[-2]}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
        let file = dir.path().join("wrapdisk.bash");
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", script]).arg(file).args(words);
        finish(&mut bash).out
    };
    assert!(complete(&["um"]).lines().any(|line| line == "umount"));
    assert!(complete(&["key", "list"]).lines().any(|line| line == "list-versions"));
    assert!(complete(&["mount", "--cache"]).lines().any(|line| line == "--cache-size"));
    assert_eq!(complete(&["frobnicate-"]).trim(), "");
}

#[test]
fn wrong_words_are_usage_and_name_what_is_close() {
    let home = Home::new();
    for (words, says) in [
        (&["frobnicate"][..], "error: unrecognized subcommand 'frobnicate'"),
        (
            &["moutn", "a", "b"],
            "error: unrecognized subcommand 'moutn'\n\n  tip: some similar subcommands exist: 'umount', 'mount'",
        ),
        (
            &["mount", "a", "b", "--cachesize", "1"],
            "error: unexpected argument '--cachesize' found\n\n  tip: a similar argument exists: '--cache-size'",
        ),
        (&["create", "a"], "error: the following required arguments were not provided:\n  --size <SIZE>"),
        (&["info", "a", "b"], "error: unexpected argument 'b' found"),
        (
            &["info", "a", "--output", "xml"],
            "error: invalid value 'xml' for '--output <FORMAT>'\n  [possible values: human, json]",
        ),
        (&["mount", ""], "error: a value is required for '<DISK>' but none was supplied"),
    ] {
        let said = home.wrapdisk(words).fails(2);
        assert!(said.starts_with(says), "{words:?}: {said}");
    }
    for group in [&[][..], &["key"], &["set"], &["header"]] {
        let done = home.wrapdisk(group);
        assert_eq!((done.code(), done.out.as_str()), (2, ""), "{group:?}");
        assert!(done.err.contains("Usage: wrapdisk"), "{group:?}: {}", done.err);
    }
}

#[test]
fn the_version_is_the_package_s() {
    let wanted = format!("wrapdisk {}", env!("CARGO_PKG_VERSION"));
    for arguments in [&["--version"][..], &["-V"]] {
        assert_eq!(run(WRAPDISK, arguments), wanted);
    }
    assert!(run(WRAPDISK, ["mount", "--version"]).ends_with(env!("CARGO_PKG_VERSION")));
}

/// Runs a command with one of its outputs going to a pipe that nobody reads.
fn into_a_closed_pipe(home: &Home, words: &str, which: &str) -> (i32, String) {
    let script = format!("{{ \"$0\" {words} {which}; echo $? > code; }} | head -c 0");
    let mut shell = Command::new("bash");
    shell.args(["-c", &script, WRAPDISK]).env("WRAPDISK_HOME", home.path("home")).current_dir(home.root());
    let done = shell.stdin(Stdio::null()).output().unwrap();
    let code = fs::read_to_string(home.path("code")).unwrap().trim().parse().unwrap();
    (code, String::from_utf8_lossy(&done.stderr).into_owned())
}

#[test]
fn a_closed_pipe_is_no_failure_and_no_panic() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    // So much that no pipe's buffer takes it.
    for n in 0..40 {
        let (source, copy) = (home.path("vm.wd"), home.path(&format!("{n}.wd")));
        fs::copy(source, copy).unwrap();
    }
    for words in [
        "key list",
        "set show default",
        "info vm.wd",
        "check vm.wd --output json",
        "status",
        "--help",
        "mount --help",
        "completion bash",
        "header dump vm.wd",
    ] {
        let (code, said) = into_a_closed_pipe(&home, words, "");
        assert_eq!((code, said.as_str()), (0, ""), "{words}");
    }
    // Messages, too: they are lost, the exit code is not.
    for (words, wanted) in [
        ("info missing.wd", 1),
        ("frobnicate", 2),
        ("key disable disk-kek --yes", 0),
        ("check vm.wd", 3),
        ("-vv key list", 0),
    ] {
        let (code, said) = into_a_closed_pipe(&home, words, "2>&1 1>/dev/null");
        assert_eq!((code, said.as_str()), (wanted, ""), "{words}");
    }
    let mut closed = Command::new("sh");
    closed
        .args(["-c", "exec \"$0\" key list 0<&- 1>&- 2>&-", WRAPDISK])
        .env("WRAPDISK_HOME", home.path("home"));
    assert!(closed.status().unwrap().code().is_some_and(|code| code <= 1));
}
