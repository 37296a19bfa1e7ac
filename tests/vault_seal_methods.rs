//! Does a sealed root key open with its passphrase or credential and with nothing else, and does the vault go on working?

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use wrapdisk::error::{ErrorKind, Result};
use wrapdisk::secret::SecretBytes;
use wrapdisk::vault::local::{Cost, IdentityKind, LocalVault, NewSeal, SealMethod, Unlock};

const CHEAP: Cost = Cost { memory: 64, passes: 1, lanes: 1 };

fn secret(text: &str) -> SecretBytes {
    SecretBytes::take(&mut text.as_bytes().to_vec()).unwrap()
}

/// Opens with a passphrase, and counts how often it was asked for.
fn open(dir: &Path, passphrase: &'static str, asked: &Arc<AtomicU32>) -> Result<LocalVault> {
    let asked = Arc::clone(asked);
    LocalVault::open_with(
        dir,
        Unlock::by_passphrase(move |file| {
            assert!(file.ends_with("root.key"), "{}", file.display());
            asked.fetch_add(1, Ordering::Relaxed);
            Ok(secret(passphrase))
        }),
    )
}

#[test]
fn under_a_passphrase_the_root_key_opens_with_it_and_is_asked_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let path = dir.path().join("root.key");
    let plain = std::fs::read(&path).unwrap();
    let passphrase = secret("correct horse");
    let seal = NewSeal::Passphrase { passphrase: &passphrase, cost: CHEAP };
    vault.reseal_root_key(&seal, &vault.admin("test")).unwrap();
    assert_eq!(vault.seal_method().unwrap(), SealMethod::Passphrase);
    // The one that did it goes on without being asked.
    vault.create_identity("before", IdentityKind::User, &vault.admin("test")).unwrap();
    let sealed = std::fs::read(&path).unwrap();
    assert!(!sealed.windows(plain.len()).any(|w| w == plain));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let asked = Arc::new(AtomicU32::new(0));
    let again = open(dir.path(), "correct horse", &asked).unwrap();
    for i in 0..20 {
        again.create_identity(&format!("user-{i}"), IdentityKind::User, &again.admin("test")).unwrap();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1, "stretched once a process");
    again.verify_audit().unwrap();

    let e = open(dir.path(), "wrong horse", &asked).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::WrongKey, "{e:?}");
    let e = LocalVault::open(dir.path()).unwrap_err();
    assert!(
        e.kind() == ErrorKind::WrongKey && e.advice().unwrap().contains("--vault-passphrase-file"),
        "{e:?}"
    );

    // And back.
    again.reseal_root_key(&NewSeal::File, &again.admin("test")).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), plain, "the key is the same");
    LocalVault::open(dir.path()).unwrap().verify_audit().unwrap();
}

#[test]
fn rotation_by_another_process_under_the_same_passphrase_needs_no_second_answer() {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let passphrase = secret("correct horse");
    let seal = NewSeal::Passphrase { passphrase: &passphrase, cost: CHEAP };
    vault.reseal_root_key(&seal, &vault.admin("test")).unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let mount = open(dir.path(), "correct horse", &asked).unwrap();
    assert_eq!(vault.rotate_root_key(&vault.admin("test")).unwrap(), 2);
    mount.create_identity("still", IdentityKind::User, &mount.admin("test")).unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert_eq!(mount.root_generation().unwrap(), 2);
}

#[test]
fn every_changed_or_missing_byte_of_a_sealed_root_key_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let passphrase = secret("correct horse");
    let seal = NewSeal::Passphrase { passphrase: &passphrase, cost: CHEAP };
    vault.reseal_root_key(&seal, &vault.admin("test")).unwrap();
    let path = dir.path().join("root.key");
    let good = std::fs::read(&path).unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let outcome = open(dir.path(), "correct horse", &asked);
        assert!(outcome.is_err(), "byte {at}: {:?}", String::from_utf8_lossy(&bad));
        std::fs::write(&path, &good[..at]).unwrap();
        let e = open(dir.path(), "correct horse", &asked).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Damaged, "cut at {at}: {e:?}");
    }
    // Costs that nobody can pay are refused before they are paid.
    let text = String::from_utf8(good).unwrap();
    std::fs::write(&path, text.replace("\"memory\":64", "\"memory\":4294967295")).unwrap();
    let e = open(dir.path(), "correct horse", &asked).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e:?}");
}

#[test]
fn under_a_credential_the_root_key_opens_with_its_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let admin = vault.admin("test");
    let file = dir.path().join("cred");
    std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (short, long) = (secret("too short"), secret("0123456789abcdef0123456789abcdef"));
    let by = |secret| NewSeal::Credential { secret, path: &file, encrypted: false };
    assert!(vault.reseal_root_key(&by(&short), &admin).is_err());
    LocalVault::open(dir.path()).unwrap();
    vault.reseal_root_key(&by(&long), &admin).unwrap();
    assert_eq!(vault.seal_method().unwrap(), SealMethod::Credential);
    let again = LocalVault::open(dir.path()).unwrap();
    assert_eq!(again.rotate_root_key(&again.admin("test")).unwrap(), 2);
    LocalVault::open(dir.path()).unwrap().verify_audit().unwrap();

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(LocalVault::open(dir.path()).unwrap_err().kind(), ErrorKind::PermissionDenied);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&file, "another one of the right length..........\n").unwrap();
    assert_eq!(LocalVault::open(dir.path()).unwrap_err().kind(), ErrorKind::WrongKey);
    std::fs::remove_file(&file).unwrap();
    let e = LocalVault::open(dir.path()).unwrap_err();
    assert!(e.advice().unwrap().contains("LoadCredential=wrapdisk-root-key"), "{e:?}");
}
