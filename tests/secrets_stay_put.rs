//! Question: in the memory of a live mount, is the volume key only where it may be (the cipher's locked, undumped pages),
//! and every other secret that opened it (RSA key, root key, passphrase, what is derived from them) nowhere?
//!
//! Reads the memory of the real program from outside, as root can. tests/secrets_end_at_the_fence.rs looks after the key
//! has been taken away.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod cryptsetup_support;
mod daemon_support;
mod memory_support;
mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use daemon_support::Foreground;
use memory_support::aes::{inverse_round_keys, round_keys};
use memory_support::{Hit, Needle, list, needles, search};
use nix::sys::signal::Signal;
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::PrivateKeyParts;
use sha2::Sha256;
use support::{Home, Mount, finish, noise, run};
use wrapdisk::vault::local::{ImportedKey, LocalVault, NewKey};

const VOLUME_KEY: &str = "the volume key";
const SCHEDULE: &str = "a round key";

/// The key, and what the cipher makes of it.
fn of_volume_key(key: &[u8]) -> Vec<Needle> {
    let mut found = needles(VOLUME_KEY, key);
    for half in key.chunks(32) {
        for round in round_keys(half)[2..].iter().chain(&inverse_round_keys(half)) {
            found.extend(needles(SCHEDULE, round));
        }
    }
    found
}

/// A secret, and as the key of an HMAC: exclusive-or with the two pads of RFC 2104.
fn of_hmac_key(what: &str, key: &[u8]) -> Vec<Needle> {
    let padded = |pad: u8| key.iter().map(|b| b ^ pad).collect::<Vec<_>>();
    [key.to_vec(), padded(0x36), padded(0x5c)].iter().flat_map(|bytes| needles(what, bytes)).collect()
}

/// HKDF-SHA256 (RFC 5869) without salt: what is extracted, and what is expanded for a label.
fn of_hkdf(what: &str, secret: &[u8], labels: &[&str]) -> Vec<Needle> {
    let (extracted, hkdf) = hkdf::Hkdf::<Sha256>::extract(None, secret);
    let mut found = of_hmac_key(what, secret);
    found.extend(of_hmac_key(&format!("{what}, extracted"), &extracted));
    for label in labels {
        let mut key = [0; 32];
        hkdf.expand(label.as_bytes(), &mut key).unwrap();
        found.extend(of_hmac_key(&format!("{what}, for {label}"), &key));
    }
    found
}

/// Every private number, in the order of bytes of a file and of the processor.
fn of_rsa_key(pem: &str) -> Vec<Needle> {
    let key = rsa::PrivateKey::from_pkcs8_pem(pem).unwrap();
    let primes = key.primes().iter().map(|p| ("a prime", p.to_be_bytes()));
    let mut numbers: Vec<(&str, Box<[u8]>)> = primes.collect();
    numbers.push(("the private exponent", key.d().to_be_bytes()));
    numbers.push(("dP", key.dp().unwrap().to_be_bytes()));
    numbers.push(("dQ", key.dq().unwrap().to_be_bytes()));
    let both = |(what, bytes): (&str, Box<[u8]>)| {
        let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
        [needles(what, &bytes), needles(what, &reversed)].concat()
    };
    numbers.into_iter().flat_map(both).collect()
}

/// A home whose vault has a private key that we know; and that key.
fn home_with_a_known_key() -> (Home, String) {
    let home = Home::new();
    let pem = run("openssl", ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]) + "\n";
    let vault = LocalVault::init(&home.path("home/state"), "default").unwrap();
    let material = ImportedKey::from_pem(pem.as_bytes(), None).unwrap();
    vault.import_key("disk-kek", &material, &NewKey::default(), &vault.admin("test")).unwrap();
    (home, pem)
}

/// Makes it work: every path that touches plaintext or keys.
fn exercise(mount: &Mount<'_>) {
    let file = OpenOptions::new().read(true).write(true).open(&mount.file).unwrap();
    for (seed, (at, len)) in (0..).zip([(0, 4096), (100, 300_001), (1 << 20, 512), (4095, 2)]) {
        file.write_all_at(&noise(seed, len), at).unwrap();
        file.read_exact_at(&mut vec![0; len], at).unwrap();
    }
    file.sync_all().unwrap();
    mount.status();
}

fn is_guarded(hit: &&Hit) -> bool {
    hit.mapping.is_undumped() && hit.mapping.is_locked()
}

/// The volume key is in guarded memory, as schedules; nothing else is anywhere.
#[track_caller]
fn stays_put(mount: &Mount<'_>, needles: &[Needle]) {
    let process = mount.pid.to_string();
    let hits = search(&process, needles);
    let is_cipher = |hit: &&Hit| hit.what == VOLUME_KEY || hit.what == SCHEDULE;
    let stray = list(hits.iter().filter(|hit| !is_cipher(hit) || !is_guarded(hit)));
    assert!(stray.is_empty(), "found where it must not be:\n{stray}");
    for what in [VOLUME_KEY, SCHEDULE] {
        assert!(hits.iter().any(|hit| hit.what == what), "the search does not find {what} in the cipher");
    }
    // The two halves never lie side by side: the 64 bytes as the vault gave them are gone.
    let key_at: Vec<usize> = hits.iter().filter(|hit| hit.what == VOLUME_KEY).map(|hit| hit.at).collect();
    let whole = key_at.iter().filter(|at| [16, 32, 48].iter().all(|more| key_at.contains(&(*at + more))));
    assert_eq!(whole.count(), 0, "the whole key");
    // And ordinary memory is searched: what is no secret is found there.
    let known = self::needles("its own path", mount.place.to_str().unwrap().as_bytes());
    assert!(!search(&process, &known).is_empty(), "the search does not find what is certainly there");
}

#[test]
fn a_mount_by_the_vault_keeps_the_volume_key_in_its_cipher_and_no_other_secret() {
    let (home, pem) = home_with_a_known_key();
    home.create("vm.wd", "16M", &[]);
    let volume_key = std::fs::read(cryptsetup_support::volume_key(&home, "vm.wd")).unwrap();
    let root_key = std::fs::read(home.path("home/state/root.key")).unwrap();
    let mut wanted = of_volume_key(&volume_key);
    wanted.extend(of_hkdf("the volume key's", &volume_key, &["wrapdisk luks2 header v1"]));
    wanted.extend(of_rsa_key(&pem));
    wanted.extend(of_hkdf("the root key", &root_key, &["wrapdisk/vault/seal/v1", "wrapdisk/vault/audit/v1"]));
    let mount = home.mount("vm.wd", &["--cache-size", "2M"]);
    stays_put(&mount, &wanted);
    exercise(&mount);
    stays_put(&mount, &wanted);
    mount.unmount();
}

/// The key that a keyslot's area is encrypted with, from the slot's own numbers.
fn area_key(container: &str, passphrase: &[u8]) -> Vec<u8> {
    let kdf = cryptsetup_support::dump_json(container)["keyslots"]["0"]["kdf"].take();
    let number = |name: &str| u32::try_from(kdf[name].as_u64().unwrap()).unwrap();
    let salt = kdf["salt"].as_str().unwrap();
    let salt = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, salt).unwrap();
    let mut key = vec![0; 64];
    if kdf["type"] == "pbkdf2" {
        pbkdf2::pbkdf2_hmac::<Sha256>(passphrase, &salt, number("iterations"), &mut key);
    } else {
        let params = argon2::Params::new(number("memory"), number("time"), number("cpus"), Some(64)).unwrap();
        argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
            .hash_password_into(passphrase, &salt, &mut key)
            .unwrap();
    }
    key
}

#[test]
fn a_mount_by_passphrase_keeps_the_volume_key_in_its_cipher_and_no_other_secret() {
    let argon = ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "65536"];
    let home = Home::new();
    let passphrase: String = noise(77, 24).iter().map(|b| format!("{b:02x}")).collect();
    let file = cryptsetup_support::put(&home, "passphrase", passphrase.as_bytes());
    for (name, kdf) in [("pbkdf2.img", &cryptsetup_support::CHEAP[..]), ("argon2.img", &argon)] {
        let container = cryptsetup_support::luks_format(&home, name, 16 << 20, file, kdf);
        let key = home.text("key");
        let dump =
            ["luksDump", "--dump-volume-key", "-q", "--key-file", file, "--volume-key-file", key, container];
        cryptsetup_support::cryptsetup(dump).ok();
        let mut wanted = of_volume_key(&std::fs::read(key).unwrap());
        std::fs::remove_file(key).unwrap();
        wanted.extend(of_hmac_key("the passphrase", passphrase.as_bytes()));
        wanted.extend(needles("the key of the keyslot's area", &area_key(container, passphrase.as_bytes())));

        let mount = home.mount(name, &["--passphrase-file", file, "--cache-size", "2M"]);
        exercise(&mount);
        stays_put(&mount, &wanted);
        mount.unmount();

        let place = home.path("typed");
        std::fs::create_dir_all(&place).unwrap();
        let mut terminal = cli_support::Terminal::start(&home.command([
            "mount",
            name,
            place.to_str().unwrap(),
            "--passphrase",
            "--cache-size",
            "2M",
        ]));
        terminal.answer("Passphrase", &passphrase);
        assert!(terminal.end().0.status.success());
        let mount = home.adopt(&place);
        exercise(&mount);
        stays_put(&mount, &wanted);
        mount.unmount();
    }
}

#[test]
fn other_processes_of_the_same_user_cannot_look() {
    let home = Home::ready();
    run("chown", ["-R", "65534:65534", home.root().to_str().unwrap()]);
    let script = format!(
        r#"{}
        cd "$DIR"
        u() {{ setpriv --reuid 65534 --regid 65534 --clear-groups env WRAPDISK_HOME="$DIR/home" "$@" 2>&1; }}
        u "$WRAPDISK" create vm.wd --size 4M > /dev/null
        u mkdir folder
        u "$WRAPDISK" mount vm.wd folder > /dev/null
        u sleep 1000 &
        for name in wrapdisk sleep; do
            until process=$(pgrep -x $name); do sleep 0.01; done
            stat -c "$name %U" /proc/$process/mem
            for file in mem environ auxv; do
                u sh -c "exec 3< /proc/$process/$file && echo $file opens" || echo $file does not
            done
        done
        pkill -x sleep
        u "$WRAPDISK" umount folder"#,
        cli_support::FUSE_FOR_ALL
    );
    let env = [("DIR", home.root()), ("WRAPDISK", Path::new(support::WRAPDISK))];
    let said = cli_support::on_a_machine_of_its_own(&script, &env).ok();
    let said: Vec<_> = said.lines().filter(|line| !line.contains("ermission denied")).collect();
    let closed = ["mem does not", "environ does not", "auxv does not"];
    let open = ["mem opens", "environ opens", "auxv opens"];
    assert_eq!(said, [&["wrapdisk root"], &closed[..], &["sleep nobody"], &open].concat());
}

#[test]
fn a_crash_leaves_no_core() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let place = home.path("place");
    std::fs::create_dir(&place).unwrap();
    // As a machine is set up that keeps the core of every crash.
    let with_cores = |program: &mut Command| {
        let mut shell = Command::new("bash");
        shell.args(["-c", "ulimit -c unlimited && exec \"$@\"", "bash"]).arg(program.get_program());
        shell.args(program.get_args()).current_dir(home.root()).env("WRAPDISK_HOME", home.path("home"));
        shell
    };
    let other = finish(&mut with_cores(Command::new("bash").args(["-c", "kill -ABRT $$"])));
    assert!(other.status.core_dumped(), "this machine keeps no cores at all: {}", other.status);

    let mut mount = home.command(["mount", "--foreground", "vm.wd", place.to_str().unwrap()]);
    let mut mount = Foreground::run(&mut with_cores(&mut mount), &place);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", mount.pid())).unwrap();
    let core: Vec<_> =
        limits.lines().find(|l| l.starts_with("Max core")).unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);
    mount.signal(Signal::SIGABRT);
    let status = mount.end();
    assert_eq!((status.signal(), status.core_dumped()), (Some(libc::SIGABRT), false));
}
