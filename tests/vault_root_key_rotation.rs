//! Does a rotation of the root key leave every key usable, whoever is at work meanwhile and wherever it is killed?

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use wrapdisk::envelope::{WrapAlg, WrappedDek};
use wrapdisk::error::ErrorKind;
use wrapdisk::secret::Secret;
use wrapdisk::vault::KeyVault;
use wrapdisk::vault::Origin;
use wrapdisk::vault::local::{CredentialKind, IdentityKind, LocalVault, NewKey, RsaBits, SignIn};

const DIR: &str = "WRAPDISK_TEST_ROTATION_DIR";

/// A vault with a key, a credential, and a data key wrapped.
fn vault() -> (TempDir, LocalVault, Secret<64>, WrappedDek) {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let admin = vault.admin("test");
    let new = NewKey { bits: RsaBits::B2048, ..NewKey::wrapping(RsaBits::B2048) };
    let key = vault.create_key("k", &new, &admin).unwrap();
    let dek = Secret::random().unwrap();
    let wrapped = vault.wrap(&key.kid, WrapAlg::RsaOaep256, &dek, &admin).unwrap();
    (dir, vault, dek, wrapped)
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}

/// Opens what is there, and everything in it.
#[track_caller]
fn whole(dir: &Path, dek: &Secret<64>, wrapped: &WrappedDek) -> LocalVault {
    let vault = LocalVault::open(dir).unwrap();
    assert!(vault.unwrap(wrapped, &vault.admin("check")).unwrap().ct_eq(dek));
    vault.verify_audit().unwrap();
    vault
}

#[test]
fn after_it_everything_opens_under_the_new_key_and_nothing_under_the_old() {
    let (dir, vault, dek, wrapped) = vault();
    let admin = vault.admin("test");
    let oid = vault.create_identity("app", IdentityKind::User, &admin).unwrap();
    let secret = vault.add_credential(oid, CredentialKind::ClientSecret, None, None, &admin).unwrap();
    let other = LocalVault::open(dir.path()).unwrap(); // a mount that was there before
    let kept = tempfile::tempdir().unwrap();
    copy(&dir.path().join("root.key"), &kept.path().join("root.key"));
    let head = vault.verify_audit().unwrap();
    for generation in 2..5 {
        assert_eq!(vault.rotate_root_key(&admin).unwrap(), generation);
        assert!(other.unwrap(&wrapped, &other.admin("probe")).unwrap().ct_eq(&dek), "a mount goes on");
        assert_eq!(other.verify_audit_against(&head).unwrap().seq, other.verify_audit().unwrap().seq);
    }
    let who = SignIn::ClientSecret { client: "app", secret: secret.expose() };
    let hour = Duration::from_secs(3600);
    vault.sign_in(who, "https://vault.azure.net", hour, &Origin::Process).unwrap();
    assert!(!dir.path().join("root.key.new").exists());
    whole(dir.path(), &dek, &wrapped);
    // Negative: the retired key.
    copy(&kept.path().join("root.key"), &dir.path().join("root.key"));
    let e = LocalVault::open(dir.path()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e:?}");
}

#[test]
fn killed_before_the_commit_the_old_key_counts_and_after_it_the_new_one() {
    let (dir, vault, dek, wrapped) = vault();
    let path = |name: &str| dir.path().join(name);
    copy(&path("root.key"), &path("old.key"));
    // Killed after it wrote the next key: some key, whole or cut, and the database as it was.
    for next in [vec![7; 32], vec![7; 9], Vec::new()] {
        std::fs::write(path("root.key.new"), next).unwrap();
        let done = Command::new("chmod").arg("600").arg(path("root.key.new")).status().unwrap();
        assert!(done.success());
        let vault = whole(dir.path(), &dek, &wrapped);
        assert_eq!(vault.root_generation().unwrap(), 1);
    }
    assert_eq!(vault.rotate_root_key(&vault.admin("test")).unwrap(), 2, "what lies there is no obstacle");
    // Killed between commit and rename.
    copy(&path("root.key"), &path("root.key.new"));
    copy(&path("old.key"), &path("root.key"));
    assert!(vault.unwrap(&wrapped, &vault.admin("probe")).unwrap().ct_eq(&dek), "whoever is at work goes on");
    whole(dir.path(), &dek, &wrapped);
    assert!(!path("root.key.new").exists(), "and whoever comes next ends it");
    assert_ne!(std::fs::read(path("root.key")).unwrap(), std::fs::read(path("old.key")).unwrap());
}

/// Not a question: the process that the next test kills.
#[test]
fn worker() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let vault = LocalVault::open(Path::new(&dir)).unwrap();
    loop {
        vault.rotate_root_key(&vault.admin("worker")).unwrap();
    }
}

#[test]
fn killed_anywhere_it_leaves_a_whole_vault() {
    let (dir, vault, dek, wrapped) = vault();
    drop(vault);
    let mut seen = 1;
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Each round waits for one more rotation, and then a little longer: at another point of the next one.
        let vault = LocalVault::open(dir.path()).unwrap();
        while vault.root_generation().unwrap() <= seen {
            assert!(child.try_wait().unwrap().is_none(), "the worker ended by itself");
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(round * 700));
        child.kill().unwrap();
        child.wait().unwrap();
        let vault = whole(dir.path(), &dek, &wrapped);
        seen = vault.root_generation().unwrap();
    }
    assert!(seen > 12, "{seen} rotations");
}
