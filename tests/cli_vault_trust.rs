//! Does the command line let an administrator say who may use the vault, stop a set at once, change what the root key is
//! sealed by, and get everything back from a backup: for people and for programs?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cli_support::{Terminal, mode};
use support::{Home, finish, run};

/// A file in this home that only its owner reads.
fn file(home: &Home, name: &str, text: &str) -> &'static str {
    fs::write(home.path(name), text).unwrap();
    fs::set_permissions(home.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    home.text(name)
}

#[test]
fn a_vault_is_made_with_a_name_and_not_twice() {
    let home = Home::new();
    let made = home.json(["vault", "init", "production"]);
    assert_eq!(made["name"], "production");
    assert!(home.wrapdisk(["vault", "init"]).fails(1).contains("there is a vault already"));

    let strict = Home::new();
    strict.wrapdisk(["vault", "init", "--retention-days", "6"]).fails(2);
    strict.wrapdisk(["vault", "init", "--retention-days", "30", "--enable-purge-protection"]).ok();
    strict.wrapdisk(["vault", "update", "--retention-days", "29"]).fails(1); // a way around the protection
    let settings = strict.json(["vault", "update", "--retention-days", "30"]);
    assert_eq!(settings["enablePurgeProtection"], true);
    assert!(home.wrapdisk(["key", "list"]).ok().starts_with("NAME"), "no key was made");
}

#[test]
fn an_identity_is_added_shown_disabled_and_removed() {
    let home = Home::ready();
    let made = home.json(["vault", "identity", "add", "agent", "--generate-secret", "--expires-days", "90"]);
    let secret = made["clientSecret"].as_str().unwrap();
    assert_eq!((secret.len(), &made["enabled"], &made["kind"]), (43, &true.into(), &"user".into()));
    home.wrapdisk(["vault", "grant", "agent", "--permissions", "get,wrapKey", "--key", "disk-kek"]).ok();
    home.wrapdisk(["vault", "grant", "agent", "--role", "auditor"]).ok();
    let shown = home.json(["vault", "identity", "show", "agent"]);
    assert!(!shown.to_string().contains(secret), "once");
    assert_eq!(shown["grants"][0]["role"], "auditor");
    assert_eq!(shown["grants"][1]["permissions"], serde_json::json!(["get", "wrapKey"]));
    assert_eq!(
        (&shown["grants"][1]["key"], &shown["credentials"][0]["kind"]),
        (&"disk-kek".into(), &"client-secret".into())
    );
    assert!(shown["credentials"][0]["expires"].is_string());
    let human = home.wrapdisk(["vault", "identity", "show", "agent"]).ok();
    assert!(human.contains("granted: permissions get,wrapKey on key disk-kek"), "{human}");

    let given = file(&home, "secret", "a-secret-of-my-own-making\n");
    home.wrapdisk(["vault", "identity", "credential", "add", "agent", "--secret-file", given]).ok();
    let second = home.json(["vault", "identity", "show", "agent"])["credentials"][1]["id"].to_string();
    home.wrapdisk(["vault", "identity", "credential", "remove", "agent", &second]).ok();
    home.wrapdisk(["vault", "identity", "credential", "remove", "agent", &second]).fails(1);
    home.wrapdisk(["vault", "revoke", "agent", "--role", "auditor"]).ok();
    home.wrapdisk(["vault", "revoke", "agent", "--all"]).ok();
    assert_eq!(home.json(["vault", "identity", "show", "agent"])["grants"], serde_json::json!([]));

    home.wrapdisk(["vault", "identity", "disable", "agent"]).ok();
    let list = home.json(["vault", "identity", "list"]);
    let agent = list.as_array().unwrap().iter().find(|i| i["name"] == "agent").unwrap();
    assert_eq!(agent["enabled"], false);
    home.wrapdisk(["vault", "identity", "enable", "agent"]).ok();
    home.wrapdisk(["vault", "identity", "remove", "agent"]).fails(2); // not without --yes in a script
    home.wrapdisk(["vault", "identity", "remove", "agent", "--yes"]).ok();
    home.wrapdisk(["vault", "identity", "show", "agent"]).fails(1);
    for wrong in [
        &["vault", "grant", "admin", "--permissions", "manage"][..],
        &["vault", "grant", "admin", "--role", "owner"],
        &["vault", "grant", "admin"],
        &["vault", "identity", "add", "x", "--expires-days", "3"],
    ] {
        home.wrapdisk(wrong).fails(2);
    }
}

#[test]
fn a_set_that_is_revoked_mounts_no_disk_until_it_is_granted_again() {
    let home = Home::ready();
    home.create("vm.wd", "16M", &[]);
    let identity = home.json(["set", "show", "default"])["identity"].clone();
    let oid = identity["principalId"].as_str().or(identity.as_str()).unwrap().to_owned();
    let done = home.wrapdisk(["revoke", "--set", "default"]);
    assert!(done.err.contains("vm.wd will not mount any more"), "{}", done.err);
    assert!(done.ok().contains("may use no key"));
    home.wrapdisk(["mount", home.text("vm.wd"), home.text("at"), "--create", "16M"]).fails(3);
    assert!(
        home.wrapdisk(["vault", "identity", "remove", &oid, "--yes"])
            .fails(1)
            .contains("the set \"default\"'s")
    );
    home.wrapdisk(["grant", "--set", "default"]).ok();
    fs::create_dir_all(home.path("at")).unwrap();
    home.mount_at("vm.wd", &home.path("at"), &[]).unmount();
    home.wrapdisk(["revoke", "--set", "other"]).fails(1);

    // At a terminal it asks.
    let mut terminal = Terminal::start(&home.command(["revoke", "--set", "default"]));
    terminal.answer("set(s) need", "no");
    let (done, _) = terminal.end();
    assert!(!done.status.success() && done.out.contains("nothing was done"), "{}", done.out);
    let mounted = home.wrapdisk(["info", home.text("vm.wd")]);
    assert!(mounted.status.success());
}

#[test]
fn the_environment_of_a_client_is_written_once_and_for_its_owner_alone() {
    let home = Home::ready();
    home.wrapdisk(["vault", "identity", "add", "agent"]).ok();
    let ca = file(&home, "ca.pem", "certificate");
    let out = home.text("agent.env");
    let env = ["vault", "env", "--identity", "agent", "--ca", ca, "--out", out];
    assert_eq!(home.wrapdisk(env).ok(), "");
    assert_eq!(mode(&home.path("agent.env")), "0600");
    let text = fs::read_to_string(out).unwrap();
    for line in [
        "KV_URL='https://127.0.0.1:8443'",
        "IDENTITY_ENDPOINT='http://127.0.0.1:8444/msi/token'",
        &format!("SSL_CERT_FILE='{ca}'"),
        &format!("NODE_EXTRA_CA_CERTS='{ca}'"),
    ] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    let header = text.lines().find_map(|l| l.strip_prefix("IDENTITY_HEADER='")).unwrap();
    assert_eq!(header.len(), 44, "43 and the quote");
    home.wrapdisk(env).fails(1); // never over a file
    assert_eq!(home.json(["vault", "identity", "show", "agent"])["credentials"].as_array().unwrap().len(), 1);
    home.wrapdisk([
        "vault",
        "env",
        "--identity",
        "agent",
        "--url",
        "https://x/'; rm",
        "--out",
        home.text("e2"),
    ])
    .fails(2);
}

#[test]
fn a_vault_under_a_passphrase_asks_for_it_or_takes_it_from_a_file() {
    let home = Home::ready();
    home.create("vm.wd", "16M", &[]);
    let pass = file(&home, "pass", "correct horse\n");
    let wrong = file(&home, "wrong", "wrong horse\n");
    let done = home.wrapdisk(["vault", "seal", "--method", "passphrase", "--new-passphrase-file", pass]);
    assert!(done.err.contains("vault rotate-root-key"), "{}", done.err);
    done.ok();
    let with = |pass: &'static str, words: &[&'static str]| {
        let all: Vec<_> = words.iter().copied().chain(["--vault-passphrase-file", pass]).collect();
        home.wrapdisk(all)
    };
    assert!(with(pass, &["vault", "seal"]).ok().contains("passphrase"));
    with(pass, &["vault", "rotate-root-key"]).ok();
    assert!(with(wrong, &["key", "list"]).fails(3).contains("does not open the vault's root key"));
    let said = home.wrapdisk(["key", "list"]).fails(3);
    assert!(said.contains("--vault-passphrase-file"), "{said}");
    // At a terminal it asks, and a mount in the background is the same command.
    fs::create_dir_all(home.path("at")).unwrap();
    let mut terminal = Terminal::start(&home.command(["mount", home.text("vm.wd"), home.text("at")]));
    terminal.answer("root.key:", "correct horse");
    let (done, _) = terminal.end();
    assert!(done.status.success(), "{}", done.out);
    home.adopt(&home.path("at")).unmount();
    with(pass, &["vault", "seal", "--method", "file"]).ok();
    home.wrapdisk(["key", "list"]).ok();
}

#[test]
fn a_unit_s_credential_opens_the_vault() {
    let home = Home::ready();
    let cred = home.text("root.cred");
    home.wrapdisk(["vault", "seal", "--method", "systemd-credential"]).fails(2);
    home.wrapdisk(["vault", "seal", "--method", "systemd-credential", "--credential-file", cred]).ok();
    assert_eq!(mode(&home.path("root.cred")), "0600");
    home.wrapdisk(["key", "list"]).ok(); // for a command, from where it was put
    fs::create_dir(home.path("unit")).unwrap();
    fs::rename(cred, home.path("unit/wrapdisk-root-key")).unwrap();
    home.wrapdisk(["key", "list"]).fails(4);
    let mut in_a_unit = home.command(["key", "list"]);
    finish(in_a_unit.env("CREDENTIALS_DIRECTORY", home.path("unit"))).ok();
}

#[test]
fn a_backup_brings_disks_back_on_another_machine() {
    let home = Home::ready();
    home.create("vm.wd", "16M", &[]);
    let pass = file(&home, "pass", "a passphrase for the backup\n");
    let wrong = file(&home, "wrong", "another\n");
    let backup = home.text("vault.backup");
    home.wrapdisk(["vault", "backup", "--file", backup, "--passphrase-file", pass]).ok();
    assert_eq!(mode(&home.path("vault.backup")), "0600");
    assert!(
        home.wrapdisk(["vault", "backup", "--file", backup, "--passphrase-file", pass])
            .fails(1)
            .contains("never")
    );
    assert!(
        home.wrapdisk(["vault", "restore", "--file", backup, "--passphrase-file", pass])
            .fails(1)
            .contains("already")
    );
    let other = Home::new();
    fs::copy(home.path("vm.wd"), other.path("vm.wd")).unwrap();
    other.wrapdisk(["vault", "restore", "--file", backup, "--passphrase-file", wrong]).fails(3);
    let restored = other.json(["vault", "restore", "--file", backup, "--passphrase-file", pass]);
    assert_eq!(restored["files"], serde_json::json!(["vault.db", "sets.db"]));
    fs::create_dir_all(other.path("at")).unwrap();
    other.mount_at("vm.wd", &other.path("at"), &[]).unmount();
    let text = fs::read(home.path("vault.backup")).unwrap();
    fs::write(other.path("cut"), &text[..text.len() - 100]).unwrap();
    let third = Home::new();
    third.wrapdisk(["vault", "restore", "--file", other.text("cut"), "--passphrase-file", pass]).fails(5);
}

#[test]
fn a_credential_that_systemd_encrypted_for_this_machine_opens_the_vault() {
    let home = Home::ready();
    let cred = home.text("root.cred");
    let seal = ["vault", "seal", "--method", "systemd-credential", "--credential-file", cred, "--encrypt"];
    home.wrapdisk(seal).ok();
    let secret = run("systemd-creds", ["decrypt", "--name=wrapdisk-root-key", cred, "-"]);
    assert_eq!(secret.len(), 44, "32 bytes in Base64");
    assert!(!fs::read_to_string(cred).unwrap().contains(&secret));
    // No unit hands it over: systemd-creds is asked.
    home.wrapdisk(["key", "create", "k", "--size", "2048"]).ok();
    // A unit does: what it hands over is the plaintext, and the file is not looked at.
    fs::rename(cred, home.path("away.cred")).unwrap();
    let unit = home.path("credentials");
    fs::create_dir(&unit).unwrap();
    fs::write(unit.join("wrapdisk-root-key"), &secret).unwrap();
    finish(home.command(["key", "show", "k"]).env("CREDENTIALS_DIRECTORY", &unit)).ok();
    let done = home.wrapdisk(["key", "show", "k"]);
    assert_eq!(done.code(), 4, "{}", done.err);
    assert!(done.err.contains("LoadCredentialEncrypted="), "{}", done.err);
    fs::rename(home.path("away.cred"), cred).unwrap();
    home.wrapdisk(["key", "show", "k"]).ok();
    home.wrapdisk(seal).fails(1); // it does not write over a credential
}
