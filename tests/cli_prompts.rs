//! Does the program ask on a real terminal for what it must not read from its command line, without showing it, take the
//! answers as given, and say what to do instead where there is nobody to ask?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;

use cli_support::{Terminal, names};
use support::{Done, Home, finish, run};

const SECRET: &str = "correct horse battery staple";

fn start(home: &Home, arguments: &[&str]) -> Terminal {
    Terminal::start(&home.command(arguments))
}

/// Ends a program on a terminal that never showed the secret and is as it was before.
#[track_caller]
fn end(terminal: Terminal) -> Done {
    let (done, echoes) = terminal.end();
    assert!(!done.out.contains(SECRET), "{}", done.out);
    assert!(echoes, "the terminal was left without its echo");
    done
}

/// A container whose passphrase costs next to nothing.
fn recoverable(home: &Home) {
    fs::write(home.path("secret"), SECRET).unwrap();
    run("truncate", ["-s", "20M", home.text("old.img")]);
    let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let format =
        ["luksFormat", "-q", "--type", "luks2", "--key-file", home.text("secret"), home.text("old.img")];
    run("cryptsetup", [&format[..], &cheap].concat());
}

#[track_caller]
fn cryptsetup_opens(home: &Home, passphrase: &str) -> bool {
    fs::write(home.path("key"), passphrase).unwrap();
    let mut judge = std::process::Command::new("cryptsetup");
    judge.args(["open", "--test-passphrase", "--key-file", home.text("key"), home.text("vm.wd")]);
    finish(&mut judge).status.success()
}

#[test]
fn a_recovery_passphrase_is_asked_for_twice_and_never_shown() {
    let home = Home::ready();
    let mut terminal = start(&home, &["create", "vm.wd", "--size", "1M", "--recovery-passphrase"]);
    terminal.wait_for("Recovery passphrase: ");
    assert!(!terminal.echoes());
    terminal.types(&format!("{SECRET}\n"));
    terminal.answer("Recovery passphrase (again): ", SECRET);
    let done = end(terminal);
    assert!(done.status.success(), "{}", done.out);
    assert!(done.out.contains("vm.wd: 1 MiB disk, uuid "), "{}", done.out);
    assert_eq!(home.json(["info", "vm.wd"])["keyslots"].as_array().unwrap().len(), 1);
    assert!(cryptsetup_opens(&home, SECRET));
    assert!(!cryptsetup_opens(&home, "correct horse battery stable"));

    // And back, through the mount that asks for it.
    let mut terminal = start(&home, &["mount", "--passphrase", "vm.wd", "vm.wd.mnt"]);
    fs::create_dir(home.path("vm.wd.mnt")).unwrap();
    terminal.answer("Passphrase: ", SECRET);
    let done = end(terminal);
    assert!(done.status.success() && done.out.contains("vm.wd.mnt/disk.img"), "{}", done.out);
    assert_eq!(home.json(["status"])[0]["unguarded"], true);
    home.wrapdisk(["umount", "vm.wd"]).ok();
}

#[test]
fn answers_that_make_no_passphrase_are_refused_and_nothing_is_made() {
    let home = Home::ready();
    let differ = "wrapdisk: passphrase: the two answers differ\n";
    let nothing = "wrapdisk: passphrase: found nothing, allowed at least one character\n";
    for (answers, why) in [(&[SECRET, "another"][..], differ), (&[""], nothing), (&["\u{4}"], nothing)] {
        let mut terminal = start(&home, &["create", "vm.wd", "--size", "1M", "--recovery-passphrase"]);
        for (question, answer) in
            ["Recovery passphrase: ", "Recovery passphrase (again): "].iter().zip(answers)
        {
            terminal.answer(question, answer);
        }
        let done = end(terminal);
        assert_eq!(done.code(), 1, "{}", done.out);
        assert!(done.out.ends_with(why), "{}", done.out);
        assert_eq!(names(home.root()), ["home"]);
    }
}

#[test]
fn what_can_be_refused_is_refused_before_anything_is_asked() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    for (disk, why) in [("vm.wd", "exists already"), ("no/vm.wd", "No such file or directory")] {
        let done = end(start(&home, &["create", disk, "--size", "1M", "--recovery-passphrase"]));
        assert_eq!(done.code(), 1);
        assert!(done.out.contains(why) && !done.out.contains("Recovery"), "{}", done.out);
    }
    fs::create_dir(home.path("m")).unwrap();
    let done = end(start(&home, &["mount", "--passphrase", "vm.wd", "m"]));
    assert_eq!(done.code(), 3);
    assert!(done.out.contains("keyslots: found none") && !done.out.contains("Passphrase"), "{}", done.out);
}

#[test]
fn ctrl_c_at_a_question_ends_the_program_and_gives_the_terminal_back() {
    let home = Home::ready();
    recoverable(&home);
    home.create("vm.wd", "1M", &[]);
    fs::create_dir(home.path("m")).unwrap();
    for (arguments, question) in [
        (&["create", "new.wd", "--size", "1M", "--recovery-passphrase"][..], "Recovery passphrase: "),
        (&["mount", "--foreground", "--passphrase", "old.img", "m"], "Passphrase: "),
        (&["header", "erase", "vm.wd"], "Type yes to go on: "),
    ] {
        let mut terminal = start(&home, arguments);
        terminal.wait_for(question);
        terminal.types("\u{3}");
        let done = end(terminal);
        assert_eq!(done.status.signal(), Some(nix::sys::signal::Signal::SIGINT as i32), "{arguments:?}");
    }
    assert_eq!(names(home.root()), ["home", "m", "old.img", "secret", "vm.wd"]);
    home.wrapdisk(["check", "vm.wd"]).ok();
}

#[test]
fn only_the_word_yes_confirms() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    run("cp", [home.text("vm.wd"), home.text("before")]);
    let kid = home.json(["key", "list"])[0]["kid"].as_str().unwrap().to_owned();
    home.wrapdisk(["header", "backup", "vm.wd", "backup"]).ok();
    let disk = home.text("vm.wd");
    for (arguments, question) in [
        (&["header", "erase", "vm.wd"][..], format!("Erase every key of {disk}: its data is lost for ever")),
        (&["header", "restore", "vm.wd", "backup"], format!("Replace the header of {disk} by backup")),
        (
            &["volume-key", "vm.wd", "--output", "vm.key"],
            format!("Write the volume key of {disk} to vm.key: it opens the disk for ever"),
        ),
        (&["key", "disable", "disk-kek"], format!("Disable {kid}, which 2 disk(s) and 0 set(s) need")),
    ] {
        for answer in ["no", "y", "YES", "", "\u{4}"] {
            let mut terminal = start(&home, arguments);
            terminal.answer(&format!("{question}. Type yes to go on: "), answer);
            let done = end(terminal);
            assert_eq!(done.code(), 1, "{arguments:?} {answer:?}");
            assert!(done.out.ends_with("wrapdisk: not confirmed; nothing was done\n"), "{}", done.out);
        }
    }
    run("cmp", [home.text("vm.wd"), home.text("before")]);
    assert_eq!(home.json(["key", "list"])[0]["attributes"]["enabled"], true);
    assert_eq!(names(home.root()), ["backup", "before", "home", "vm.wd"]);

    let mut terminal = start(&home, &["volume-key", "vm.wd", "--output", "vm.key"]);
    terminal.answer("Type yes to go on: ", "yes");
    assert!(end(terminal).status.success());
    assert_eq!(fs::read(home.path("vm.key")).unwrap().len(), 64);
    let mut terminal = start(&home, &["key", "disable", "disk-kek"]);
    terminal.answer("Type yes to go on: ", "yes");
    let done = end(terminal);
    assert!(done.out.contains(&format!("  {disk} will not mount any more\n")), "{}", done.out);
    assert_eq!(home.json(["key", "list"])[0]["attributes"]["enabled"], false);
}

#[test]
fn without_a_terminal_each_question_says_what_to_give_instead() {
    let home = Home::ready();
    recoverable(&home);
    home.create("vm.wd", "1M", &[]);
    fs::create_dir(home.path("m")).unwrap();
    run("openssl", ["genrsa", "-aes256", "-passout", "pass:x", "-out", home.text("key.pem"), "2048"]);
    let file = "give it in a file: --passphrase-file FILE (--recovery-file for a new disk)";
    let yes = "add --yes to do it without being asked";
    let none = "no terminal to ask on: No such device or address (os error 6)";
    let disk = home.text("vm.wd");
    for (arguments, why, hint) in [
        (
            &["create", "new.wd", "--size", "1M", "--recovery-passphrase"][..],
            format!("passphrase: {none}"),
            file,
        ),
        (&["mount", "--passphrase", "old.img", "m"], format!("passphrase: {none}"), file),
        (&["key", "import", "k", "--pem-file", "key.pem"], format!("key.pem: passphrase: {none}"), file),
        (
            &["header", "erase", "vm.wd"],
            format!("Erase every key of {disk}: its data is lost for ever: not confirmed"),
            yes,
        ),
        (
            &["header", "restore", "vm.wd", "b"],
            format!("Replace the header of {disk} by b: not confirmed"),
            yes,
        ),
        (
            &["volume-key", "vm.wd", "--output", "k"],
            format!("Write the volume key of {disk} to k: it opens the disk for ever: not confirmed"),
            yes,
        ),
    ] {
        // setsid: this test may run on a terminal, the program must not.
        let mut command = std::process::Command::new("setsid");
        let program = home.command(arguments);
        command.arg("--wait").arg(program.get_program()).args(program.get_args());
        command.env("WRAPDISK_HOME", home.path("home")).current_dir(home.root());
        let err = finish(&mut command).fails(2);
        assert_eq!(err, format!("wrapdisk: {why}\n  {hint}"), "{arguments:?}");
    }
    assert_eq!(names(home.root()), ["home", "key.pem", "m", "old.img", "secret", "vm.wd"]);
    // An emergency stop is not refused in a script.
    home.wrapdisk(["key", "disable", "disk-kek"]).ok();
}

#[test]
fn the_passphrase_of_a_key_file_is_asked_for_only_if_it_needs_one() {
    let home = Home::ready();
    run(
        "openssl",
        ["genrsa", "-aes256", "-passout", &format!("pass:{SECRET}"), "-out", home.text("key.pem"), "2048"],
    );
    let import = ["key", "import", "mine", "--pem-file", "key.pem"];
    let mut terminal = start(&home, &import);
    terminal.answer("Passphrase of key.pem: ", "wrong");
    let done = end(terminal);
    assert_eq!(done.code(), 3, "{}", done.out);
    assert!(
        done.out
            .contains("wrapdisk: key.pem: read an encrypted private key: the passphrase does not open it")
    );
    let mut terminal = start(&home, &import);
    terminal.answer("Passphrase of key.pem: ", SECRET);
    assert!(end(terminal).status.success());
    assert_eq!(home.json(["key", "show", "mine"])["size"], 2048);

    run("openssl", ["genrsa", "-out", home.text("plain.pem"), "2048"]);
    let done = end(start(&home, &["key", "import", "other", "--pem-file", "plain.pem"]));
    assert!(done.status.success() && !done.out.contains("Passphrase"), "{}", done.out);
}

#[test]
fn progress_is_shown_on_a_terminal_and_nowhere_else() {
    let home = Home::ready();
    let done = end(start(&home, &["create", "vm.wd", "--size", "128M", "--full"]));
    assert!(done.out.starts_with("\rwriting:  50 %\rwriting: 100 %\nvm.wd: 128 MiB disk"), "{:?}", done.out);
    home.create("other.wd", "8M", &[]);
    let done = end(start(&home, &["seal", "other.wd"]));
    assert!(done.out.contains("sealing: 100 %\n"), "{:?}", done.out);
    let done = home.wrapdisk(["create", "third.wd", "--size", "128M", "--full"]);
    assert_eq!(done.err, "");
    assert!(done.ok().starts_with("third.wd: 128 MiB disk"));
}
