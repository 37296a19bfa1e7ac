//! Does a backup of the whole vault bring everything back, refuse what is not whole, and overwrite nothing?

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;
use wrapdisk::envelope::{WrapAlg, WrappedDek};
use wrapdisk::error::{Error, ErrorKind, Result};
use wrapdisk::secret::{Secret, SecretBytes};
use wrapdisk::vault::KeyVault;
use wrapdisk::vault::local::{
    Cost, Fail, IdentityKind, LocalVault, NewKey, NewSeal, Restored, RsaBits, SealMethod, Unlock, WholeBackup,
};

const CHEAP: Cost = Cost { memory: 64, passes: 1, lanes: 1 };

/// Long enough for several chunks.
static SETS: [u8; 200_000] = [b's'; 200_000];

struct Scene {
    dir: TempDir,
    vault: LocalVault,
    dek: Secret<64>,
    wrapped: WrappedDek,
    passphrase: SecretBytes,
}

fn secret(text: &str) -> SecretBytes {
    SecretBytes::take(&mut text.as_bytes().to_vec()).unwrap()
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(&dir.path().join("state"), "production").unwrap();
    let admin = vault.admin("test");
    let key = vault.create_key("k", &NewKey::wrapping(RsaBits::B2048), &admin).unwrap();
    let dek = Secret::random().unwrap();
    let wrapped = vault.wrap(&key.kid, WrapAlg::RsaOaep256, &dek, &admin).unwrap();
    Scene { dir, vault, dek, wrapped, passphrase: secret("correct horse") }
}

impl Scene {
    fn backup(&self, to: &Path) -> std::result::Result<(), Fail> {
        let sets = self.dir.path().join("sets-now");
        std::fs::write(&sets, SETS).unwrap();
        let beside = [("sets.db", sets)];
        let what = WholeBackup { passphrase: &self.passphrase, cost: CHEAP, beside: &beside };
        let mut told = Vec::new();
        let mut progress = |done, total| told.push((done, total));
        self.vault.backup_whole(to, &what, &mut progress, &self.vault.admin("backup"))?;
        assert!(told.last().is_some_and(|(done, total)| done == total), "{told:?}");
        Ok(())
    }
    fn restore(&self, from: &Path, to: &Path) -> Result<Restored> {
        LocalVault::restore_whole(to, from, &self.passphrase, &mut |_, _| {})
    }
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

/// Names in a folder.
fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn everything_comes_back_and_what_happened_since_does_not() {
    let s = scene();
    let file = s.path("vault.backup");
    let head = s.vault.audit_head().unwrap();
    s.backup(&file).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    s.vault.create_identity("later", IdentityKind::User, &s.vault.admin("x")).unwrap();
    let to = s.path("elsewhere");
    let restored = s.restore(&file, &to).unwrap();
    assert_eq!((restored.id, restored.name.as_str()), (s.vault.id(), "production"));
    assert_eq!(restored.files, ["vault.db", "sets.db"]);
    assert!(std::fs::read(to.join("sets.db")).unwrap() == SETS);
    for name in ["vault.db", "root.key", "sets.db"] {
        let mode = std::fs::metadata(to.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let again = LocalVault::open(&to).unwrap();
    assert!(again.unwrap(&s.wrapped, &again.admin("x")).unwrap().ct_eq(&s.dek));
    assert!(again.find_identity("later", &again.admin("x")).is_err());
    again.verify_audit_against(&head).unwrap();
    assert!(
        again
            .audit(&Default::default())
            .unwrap()
            .iter()
            .any(|r| r.json.contains("was restored from a backup"))
    );
    assert!(
        names(&s.path("state")).iter().all(|n| !n.starts_with(".backup")),
        "nothing is left beside the vault"
    );
}

#[test]
fn a_sealed_and_rotated_vault_is_backed_up_as_well_and_comes_back_open() {
    let s = scene();
    let admin = s.vault.admin("x");
    let seal = NewSeal::Passphrase { passphrase: &s.passphrase, cost: CHEAP };
    s.vault.reseal_root_key(&seal, &admin).unwrap();
    s.vault.rotate_root_key(&admin).unwrap();
    s.backup(&s.path("vault.backup")).unwrap();
    let to = s.path("elsewhere");
    s.restore(&s.path("vault.backup"), &to).unwrap();
    let again = LocalVault::open_with(&to, Unlock::unattended()).unwrap();
    assert_eq!((again.seal_method().unwrap(), again.root_generation().unwrap()), (SealMethod::File, 2));
    assert!(again.unwrap(&s.wrapped, &again.admin("x")).unwrap().ct_eq(&s.dek));
}

#[test]
fn a_wrong_passphrase_is_told_from_damage_and_leaves_nothing_behind() {
    let s = scene();
    let (file, to) = (s.path("vault.backup"), s.path("elsewhere"));
    s.backup(&file).unwrap();
    let e = LocalVault::restore_whole(&to, &file, &secret("wrong horse"), &mut |_, _| {}).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::WrongKey, "{e:?}");
    let good = std::fs::read(&file).unwrap();
    let bad_file = s.path("bad");
    let check = |what: &str, bytes: &[u8], allowed: &[ErrorKind]| {
        std::fs::write(&bad_file, bytes).unwrap();
        let e = s.restore(&bad_file, &to).unwrap_err();
        assert!(allowed.contains(&e.kind()), "{what}: {e:?}");
        assert!(names(&to).is_empty(), "{what}: {:?}", names(&to));
    };
    let header = [ErrorKind::InvalidInput, ErrorKind::WrongKey, ErrorKind::Damaged];
    for at in (0..84).chain((84..good.len()).step_by(4999)).chain([good.len() - 1]) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let allowed = if at < 84 { &header[..] } else { &[ErrorKind::Damaged] };
        // A cost of another number of passes is a passphrase that does not fit.
        check(&format!("byte {at}"), &bytes, allowed);
    }
    let chunk = (64 << 10) + 16;
    for cut in [0, 10, 84, 85, 84 + chunk, good.len() - chunk, good.len() - 1] {
        check(&format!("cut at {cut}"), &good[..cut], &[ErrorKind::Damaged]);
    }
    check("one byte more", &[&good[..], &[0]].concat(), &[ErrorKind::Damaged]);
    let swapped =
        [&good[..84], &good[84 + chunk..84 + 2 * chunk], &good[84..84 + chunk], &good[84 + 2 * chunk..]]
            .concat();
    check("two chunks swapped", &swapped, &[ErrorKind::Damaged]);
    check(
        "another file",
        b"SQLite format 3 and a lot more of it, so that it is long enough for a header, and longer than that",
        &[ErrorKind::InvalidInput],
    );
}

#[test]
fn nothing_is_ever_overwritten() {
    let s = scene();
    let (file, to) = (s.path("vault.backup"), s.path("elsewhere"));
    s.backup(&file).unwrap();
    let before = std::fs::read(&file).unwrap();
    assert_eq!(Error::from(s.backup(&file).unwrap_err()).kind(), ErrorKind::Exists);
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(s.restore(&file, &s.path("state")).unwrap_err().kind(), ErrorKind::Exists);
    for (name, left) in [("sets.db", true), ("root.key", true), ("vault.db", true)] {
        std::fs::create_dir_all(&to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(to.join(name), "somebody's").unwrap();
        assert_eq!(s.restore(&file, &to).unwrap_err().kind(), ErrorKind::Exists, "{name}");
        assert_eq!(names(&to), [name]);
        assert_eq!(std::fs::read(to.join(name)).unwrap() == b"somebody's", left);
        std::fs::remove_dir_all(&to).unwrap();
    }
    // A restore that was killed before the end: the next one begins anew.
    std::fs::create_dir_all(&to).unwrap();
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(to.join("vault.db.new"), "half").unwrap();
    std::fs::write(to.join("root.key"), [7; 32]).unwrap();
    s.restore(&file, &to).unwrap();
    assert!(LocalVault::open(&to).is_ok());
}

#[test]
fn neither_a_key_nor_a_name_is_readable_in_it() {
    let s = scene();
    s.vault.create_identity("a-name-to-look-for", IdentityKind::User, &s.vault.admin("x")).unwrap();
    s.backup(&s.path("vault.backup")).unwrap();
    let bytes = std::fs::read(s.path("vault.backup")).unwrap();
    let root = std::fs::read(s.path("state/root.key")).unwrap();
    for (what, secret) in
        [("root key", &root[..]), ("name", b"a-name-to-look-for"), ("schema", b"CREATE TABLE")]
    {
        assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{what}");
    }
}
