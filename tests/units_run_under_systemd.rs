//! Do our units do under a real systemd what they promise: start inside their whole sandbox, be `active` when they serve and
//! not before, end cleanly, open a vault with a credential, rotate, mount, and not try again what cannot succeed?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;
mod systemd_support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use support::{eventually, noise};
use systemd_support::Machine;
use wrapdisk::guard::{EventKind, Why, catalog};
use wrapdisk::vault::Denial;

const VAULT: &str = "wrapdisk-vault.service";
const ROTATE: &str = "wrapdisk-rotate.service";
/// systemd's message: a unit is active now.
const STARTED: &str = "39f53479d3a045ac8e11786248231fbf";
const TIMER: &str = "wrapdisk-rotate.timer";
const MOUNT: &str = "wrapdisk@vm.service";

/// A unit that ended by itself for good: not one that waits for its next start.
#[track_caller]
fn has_given_up(machine: &Machine, unit: &str, code: &str) {
    machine.systemctl("start", unit).fails(1);
    assert_eq!(machine.outcome(unit), ["failed", "exit-code", code], "{unit}");
    assert_eq!(machine.show(unit, "NRestarts"), "0", "{unit}");
}

#[track_caller]
fn stops_cleanly(machine: &Machine, unit: &str) {
    machine.systemctl("stop", unit).ok();
    assert_eq!(machine.outcome(unit), ["inactive", "success", "0"], "{unit}");
}

/// A vault with a key that an identity may use.
#[track_caller]
fn make_vault(machine: &Machine) {
    machine.write("/root/far.secret", "a-secret-of-the-client");
    machine
        .sh("wrapdisk vault init served
            wrapdisk key create k --size 2048
            wrapdisk vault identity add far --secret-file /root/far.secret
            wrapdisk vault grant far --permissions get,wrapKey,unwrapKey --key k")
        .ok();
}

/// What systemd says is active answers, without a second look: a client that trusts the certificate which the unit wrote
/// and nothing else uses the key.
#[track_caller]
fn serves(machine: &Machine) {
    assert_eq!(machine.outcome(VAULT)[0], "active");
    machine
        .sh("export WRAPDISK_HOME=/root/client
            [ -e /root/client ] || {
                wrapdisk vault init client
                wrapdisk vault add office https://127.0.0.1:8443 --local-server \
                    --ca-file /run/wrapdisk-vault/ca.pem \
                    --credential client-secret --client-id far --secret-file /root/far.secret
            }
            wrapdisk vault test office --key k")
        .ok();
}

/// A disk, as first use makes it, and the configuration of its mount.
#[track_caller]
fn make_disk(machine: &Machine) {
    machine.sh("mkdir /srv/disks /mnt/vm; wrapdisk create /srv/disks/vm.wd --size 8M").ok();
    machine.write("/etc/wrapdisk/mounts/vm.conf", "DISK=/srv/disks/vm.wd\nMOUNTPOINT=/mnt/vm\n");
}

#[test]
fn the_vault_serves_inside_its_sandbox_from_the_moment_it_is_active() {
    let machine = Machine::boot();
    make_vault(&machine);
    machine.systemctl("start", VAULT).ok();
    serves(&machine);
    let status =
        std::fs::read_to_string(machine.path(&format!("/proc/{}/status", machine.show(VAULT, "MainPID"))))
            .unwrap();
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.lines().any(|l| l == line), "{line}: {status}");
    }
    stops_cleanly(&machine, VAULT);
    assert!(!machine.path("/run/wrapdisk-vault").exists(), "its runtime directory is gone");

    // It has not been active where it cannot listen; that may pass, so it is tried again.
    machine.add(VAULT, "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=200ms\n");
    machine.write("/etc/wrapdisk/vault.conf", "OPTIONS=\"--listen 192.0.2.1:8443 --rate-limit 9\"\n");
    machine.systemctl("start", VAULT).fails(1);
    assert_eq!(machine.journal(&[&format!("UNIT={VAULT}"), &format!("MESSAGE_ID={STARTED}")]).len(), 1);
    machine.write("/etc/wrapdisk/vault.conf", "OPTIONS=\"--listen 127.0.0.1:8443 --rate-limit 9\"\n");
    eventually("a start by itself", || (machine.outcome(VAULT)[0] == "active").then_some(()));
    serves(&machine);
    stops_cleanly(&machine, VAULT);

    // What is damaged stays so.
    machine.write("/var/lib/wrapdisk/vault.db", &"no database".repeat(1000));
    has_given_up(&machine, VAULT, "5");
    machine.write("/etc/wrapdisk/vault.conf", "OPTIONS=--no-such-option\n");
    has_given_up(&machine, VAULT, "2");
}

#[test]
fn a_sealed_vault_opens_with_the_credential_that_its_unit_is_given() {
    let machine = Machine::boot();
    make_vault(&machine);
    make_disk(&machine);
    machine.write("/etc/wrapdisk/vault.passphrase", "correct horse battery\n");
    machine
        .sh("wrapdisk vault seal --method passphrase --new-passphrase-file /etc/wrapdisk/vault.passphrase")
        .ok();
    for unit in [VAULT, ROTATE, MOUNT] {
        // Nobody is there to be asked.
        has_given_up(&machine, unit, "3");
        // The line is in the unit, commented out.
        let installed = machine.path("/usr/local/lib/systemd/system").join(unit.replace("@vm", "@"));
        let text = std::fs::read_to_string(installed).unwrap();
        let line = text.lines().find(|line| line.starts_with("#LoadCredential=")).unwrap();
        machine.add(unit, &format!("[Service]\n{}\n", &line[1..]));
        machine.systemctl("start", unit).ok();
    }
    assert!(machine.path("/mnt/vm/disk.img").exists());
    stops_cleanly(&machine, MOUNT);
    serves(&machine);
    stops_cleanly(&machine, VAULT);

    // One that only this machine can decrypt, from where nobody but the unit's manager knows it to be.
    machine
        .sh("wrapdisk vault seal --method systemd-credential --credential-file /etc/wrapdisk/root.cred --encrypt \
            --vault-passphrase-file /etc/wrapdisk/vault.passphrase
            mv /etc/wrapdisk/root.cred /root/moved.cred")
        .ok();
    machine.add(VAULT, "[Service]\nLoadCredentialEncrypted=wrapdisk-root-key:/root/moved.cred\n");
    machine.systemctl("start", VAULT).ok();
    serves(&machine);
    stops_cleanly(&machine, VAULT);
}

#[test]
fn the_timer_brings_disks_under_a_new_version_of_their_key() {
    let machine = Machine::boot();
    make_disk(&machine);
    machine.sh("wrapdisk create /srv/disks/apart.wd --size 1M").ok();
    machine.systemctl("start", MOUNT).ok();
    let newest = || machine.json("key rotate disk-kek")["kid"].as_str().unwrap().to_owned();
    let is_under = |disk: &str, kid: &str| {
        let info = machine.json(&format!("info /srv/disks/{disk}.wd"));
        let tokens = info["tokens"].as_array().unwrap();
        tokens.len() == 1 && tokens[0]["kid"] == kid
    };
    let kid = newest();
    assert!(!is_under("apart", &kid));
    machine.systemctl("start", ROTATE).ok();
    assert_eq!(machine.outcome(ROTATE), ["inactive", "success", "0"]);
    assert!(is_under("apart", &kid));
    eventually("the mount's own rotation", || is_under("vm", &kid).then_some(()));

    // A run that was missed comes when the timer starts; here without the delay that it has.
    let kid = newest();
    let run = || machine.show(ROTATE, "InvocationID");
    let former = run();
    machine
        .sh("mkdir -p /var/lib/systemd/timers
            touch --date=yesterday /var/lib/systemd/timers/stamp-wrapdisk-rotate.timer")
        .ok();
    machine.add(TIMER, "[Timer]\nRandomizedDelaySec=0\nAccuracySec=1ms\n");
    machine.systemctl("start", TIMER).ok();
    eventually("the timer's run", || {
        let started = !run().is_empty() && run() != former;
        (started && machine.outcome(ROTATE)[0] == "inactive").then_some(())
    });
    assert!(is_under("apart", &kid));
    assert_eq!(machine.show(TIMER, "ActiveState"), "active");
    stops_cleanly(&machine, MOUNT);
}

#[test]
fn a_mount_is_there_when_its_unit_is_active_and_gone_when_it_is_stopped() {
    let machine = Machine::boot();
    make_disk(&machine);
    let content = noise(5, 100_000);
    let open = || {
        machine.systemctl("start", MOUNT).ok();
        OpenOptions::new().read(true).write(true).open(machine.path("/mnt/vm/disk.img")).unwrap()
    };
    let file = open();
    file.write_all_at(&content, 4096).unwrap();
    drop(file);
    stops_cleanly(&machine, MOUNT);
    assert!(!machine.path("/mnt/vm/disk.img").exists());
    let mut found = vec![0; content.len()];
    open().read_exact_at(&mut found, 4096).unwrap();
    assert!(found == content, "what was written is there");

    // Its process dies, and leaves a mount that answers nothing: the next one takes its place.
    machine.add(MOUNT, "[Service]\nRestartSec=200ms\n");
    machine.run(["systemctl", "kill", "--signal=KILL", MOUNT]).ok();
    eventually("another process", || {
        let again = machine.show(MOUNT, "NRestarts") == "1" && machine.outcome(MOUNT)[0] == "active";
        again.then_some(())
    });
    found.fill(0);
    open().read_exact_at(&mut found, 4096).unwrap();
    assert!(found == content);

    // What its guard says is in the journal once: not by its standard error as well.
    machine.sh("wrapdisk key disable disk-kek --yes").ok();
    let why = Why::Denied(Denial::Disabled);
    is_said_once(&machine, catalog::of(&EventKind::Fenced { why }).id, "REVOKED");
    machine.sh("wrapdisk key enable disk-kek").ok();
    let after = std::time::Duration::ZERO;
    is_said_once(&machine, catalog::of(&EventKind::Resumed { after }).id, "resumed");
    stops_cleanly(&machine, MOUNT);

    // A denial is meant.
    machine.sh("wrapdisk key disable disk-kek --yes").ok();
    has_given_up(&machine, MOUNT, "3");
}

/// An event and everything that holds this word, of the mount's unit.
#[track_caller]
fn is_said_once(machine: &Machine, id: uuid::Uuid, word: &str) {
    let unit = format!("_SYSTEMD_UNIT={MOUNT}");
    let event = format!("MESSAGE_ID={}", id.simple());
    let found =
        eventually(word, || Some(machine.journal(&[&unit, &event])).filter(|found| !found.is_empty()));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["_TRANSPORT"], "journal");
    let all = machine.journal(&[&unit]);
    let said = all.iter().filter(|entry| entry["MESSAGE"].as_str().unwrap_or_default().contains(word));
    assert_eq!(said.count(), 1, "{all:?}");
}
