//! What is left on the disk, and what do others find there? Crashes, several processes, trouble with the files, and what a
//! thief of the database alone can read.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use rusqlite::Connection;
use tempfile::TempDir;
use wrapdisk::envelope::{KeyRef, Kid, WrapAlg, WrappedDek};
use wrapdisk::error::{Error, ErrorKind};
use wrapdisk::secret::Secret;
use wrapdisk::vault::local::{IdentityKind, ImportedKey, LocalVault, NewKey, Page, Role, RsaBits};
use wrapdisk::vault::{Denial, KeyVault, VaultError};

/// One RSA key for all tests: making one is slow.
static KEY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let key = rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    key.to_pkcs8_der().unwrap().as_bytes().to_vec()
});

/// A vault with the key "k", and a data key wrapped under it.
fn vault() -> (TempDir, LocalVault, WrappedDek) {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let admin = vault.admin("test");
    let info = vault
        .import_key("k", &ImportedKey::from_pem(&KEY, None).unwrap(), &NewKey::default(), &admin)
        .unwrap();
    let wrapped = vault.wrap(&info.kid, WrapAlg::RsaOaep256, &Secret::random().unwrap(), &admin).unwrap();
    (dir, vault, wrapped)
}

fn transient<T: std::fmt::Debug>(answer: Result<T, VaultError>) -> String {
    match answer {
        Err(VaultError::Transient { message, .. }) => message,
        other => panic!("not transient: {other:?}"),
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|w| w == needle)
}

// --- files ---

#[test]
fn the_files_are_private_to_their_owner() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state");
    assert!(!LocalVault::exists(&dir));
    let vault = LocalVault::init(&dir, "default").unwrap();
    vault.list_keys(&Page::default(), &vault.admin("x")).unwrap();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.path());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["root.key", "vault.db", "vault.db-shm", "vault.db-wal"]);
    assert_eq!(std::fs::metadata(dir.join("root.key")).unwrap().len(), 32);
    assert!(LocalVault::exists(&dir));
}

#[test]
fn a_vault_is_never_made_twice_and_a_missing_one_is_said_to_be_missing() {
    let (dir, vault, _) = vault();
    let e = LocalVault::init(dir.path(), "again").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Exists);
    assert_eq!(LocalVault::open(dir.path()).unwrap().id(), vault.id(), "untouched");
    assert_eq!(format!("{vault:?}"), format!("LocalVault(\"default\", {})", vault.id()));
    let e = LocalVault::open(&dir.path().join("none")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    for bad in ["", "a b", "a/b", &"x".repeat(128)] {
        assert_eq!(
            LocalVault::init(&dir.path().join("new"), bad).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
}

#[test]
fn a_root_key_that_others_could_read_is_refused() {
    let (dir, vault, wrapped) = vault();
    let root = dir.path().join("root.key");
    for mode in [0o644, 0o640, 0o604, 0o660, 0o602] {
        std::fs::set_permissions(&root, PermissionsExt::from_mode(mode)).unwrap();
        let e = LocalVault::open(dir.path()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::PermissionDenied);
        assert!(e.to_string().contains(&format!("found mode {mode:04o}, allowed 0600")), "{e:?}");
        assert!(e.advice().unwrap().starts_with("chmod 600 "), "{e:?}");
        // A vault that was open before: trouble, but not a denial.
        transient(vault.unwrap(&wrapped, &vault.admin("x")));
    }
    std::fs::set_permissions(&root, PermissionsExt::from_mode(0o400)).unwrap();
    assert!(LocalVault::open(dir.path()).is_ok());
    assert!(vault.unwrap(&wrapped, &vault.admin("x")).is_ok());
}

#[test]
fn a_database_that_others_can_reach_is_refused() {
    let (dir, vault, wrapped) = vault();
    let path = dir.path().join("vault.db");
    for mode in [0o644, 0o620, 0o602, 0o666] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let e = LocalVault::open(dir.path()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::PermissionDenied);
        assert!(e.to_string().ends_with(&format!("the vault: found mode {mode:04o}, allowed 0600")), "{e:?}");
        assert!(e.advice().unwrap().ends_with(&format!("chmod 600 '{}'", path.display())), "{e:?}");
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    assert!(LocalVault::open(dir.path()).unwrap().unwrap(&wrapped, &vault.admin("x")).is_ok());
}

#[test]
fn a_root_key_that_is_not_the_one_of_the_database_is_refused() {
    let (dir, vault, wrapped) = vault();
    let root = dir.path().join("root.key");
    let good = std::fs::read(&root).unwrap();
    for (bad, found) in [
        (&good[..31], "allowed 32 bytes"),
        (&[&good[..], &[0]].concat(), "allowed 32 bytes"),
        (&[], "allowed 32 bytes"),
        (&[7; 32], "root.key does not belong to vault.db"),
    ] {
        std::fs::write(&root, bad).unwrap();
        let e = LocalVault::open(dir.path()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Damaged);
        assert!(e.chain().contains(found), "{e:?}");
        let e = vault.unwrap(&wrapped, &vault.admin("x")).unwrap_err();
        assert!(!matches!(e, VaultError::Denied(..)), "{e:?}");
    }
    std::fs::remove_file(&root).unwrap();
    std::os::unix::fs::symlink("elsewhere", &root).unwrap();
    assert!(LocalVault::open(dir.path()).is_err(), "a link is not followed");
    std::fs::remove_file(&root).unwrap();
    std::fs::write(&root, &good).unwrap();
    std::fs::set_permissions(&root, PermissionsExt::from_mode(0o600)).unwrap();
    assert!(vault.unwrap(&wrapped, &vault.admin("x")).is_ok());
}

#[test]
fn another_database_or_a_newer_schema_is_refused() {
    let (dir, vault, _) = vault();
    drop(vault);
    let path = dir.path().join("vault.db");
    let set = |pragma: &str| Connection::open(&path).unwrap().execute_batch(pragma).unwrap();
    set("PRAGMA user_version = 99");
    let e = LocalVault::open(dir.path()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.to_string().contains("found schema 99, allowed 1 to "), "{e:?}");
    set("PRAGMA user_version = 1; PRAGMA application_id = 1");
    let e = LocalVault::open(dir.path()).unwrap_err();
    assert!(e.kind() == ErrorKind::Damaged && e.to_string().contains("application id"), "{e:?}");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    assert_eq!(LocalVault::open(dir.path()).unwrap_err().kind(), ErrorKind::Damaged);
    std::fs::write(&path, b"").unwrap();
    assert_eq!(LocalVault::open(dir.path()).unwrap_err().kind(), ErrorKind::Damaged);
}

// --- trouble is not a denial (RULINGS 20) ---

#[test]
fn a_missing_database_is_trouble_and_its_return_ends_it() {
    let (dir, vault, wrapped) = vault();
    let admin = vault.admin("x");
    let (path, away) = (dir.path().join("vault.db"), dir.path().join("away"));
    // Fold the WAL in, so that the file alone is the vault.
    Connection::open(&path).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    std::fs::copy(&path, &away).unwrap();
    std::fs::remove_file(&path).unwrap();
    let message = transient(vault.unwrap(&wrapped, &admin));
    assert!(message.contains("vault.db"), "{message}");
    transient(vault.describe(&KeyRef::parse("k").unwrap(), &admin));
    transient(vault.policy_generation());
    // Another vault in its place is not ours.
    let (other, other_vault, _) = self::vault();
    drop(other_vault);
    std::fs::copy(other.path().join("vault.db"), &path).unwrap();
    let message = transient(vault.unwrap(&wrapped, &admin));
    assert!(message.contains("another vault"), "{message}");
    for name in ["vault.db", "vault.db-wal", "vault.db-shm"] {
        let _ = std::fs::remove_file(dir.path().join(name));
    }
    std::fs::rename(&away, &path).unwrap();
    assert!(vault.unwrap(&wrapped, &admin).is_ok());
}

#[test]
fn a_busy_database_is_trouble() {
    let (dir, vault, wrapped) = vault();
    let other = Connection::open(dir.path().join("vault.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let message = transient(vault.unwrap(&wrapped, &vault.admin("x"))); // after the busy timeout of 5 s
    assert!(message.contains("locked"), "{message}");
    other.execute_batch("ROLLBACK").unwrap();
    assert!(vault.unwrap(&wrapped, &vault.admin("x")).is_ok());
}

#[test]
fn a_full_disk_is_trouble_and_gives_no_answer_without_a_record() {
    let (dir, vault, wrapped) = vault();
    let before = vault.verify_audit().unwrap();
    let wal = std::fs::metadata(dir.path().join("vault.db-wal")).unwrap().len();
    // The limit of a shell's `ulimit -f` (in KiB) stands in for a full disk: writes past it fail.
    let blocks = wal.div_ceil(1024) + 40;
    let exe = std::env::current_exe().unwrap();
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" --exact --nocapture worker");
    let out = Command::new("bash")
        .arg("-c")
        .arg(script)
        .arg(exe)
        .env("VAULT_DIR", dir.path())
        .env("VAULT_JOB", "fill")
        .env("VAULT_KID", wrapped.kid.as_str())
        .env("VAULT_WRAPPED", hex(&wrapped.bytes))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&out.stderr));
    let answers = said.lines().filter(|l| *l == "answer").count() as u64;
    assert!(answers > 0 && said.contains("transient"), "{said}");
    let after = vault.verify_audit().unwrap();
    assert_eq!(after.seq, before.seq + answers, "one record an answer, none without");
    assert!(vault.unwrap(&wrapped, &vault.admin("x")).is_ok(), "and it goes on");
}

// --- crashes and company ---

/// Another process with the vault of `dir`; it says on its output what was done.
fn spawn(dir: &Path, job: &str, wrapped: &WrappedDek) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "worker"])
        .env("VAULT_DIR", dir)
        .env("VAULT_JOB", job)
        .env("VAULT_KID", wrapped.kid.as_str())
        .env("VAULT_WRAPPED", hex(&wrapped.bytes))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Not a test: what the processes above run.
#[test]
fn worker() {
    let Ok(dir) = std::env::var("VAULT_DIR") else { return };
    let text = std::env::var("VAULT_WRAPPED").unwrap();
    let wrapped = WrappedDek {
        kid: Kid::parse(&std::env::var("VAULT_KID").unwrap()).unwrap(),
        alg: WrapAlg::RsaOaep256,
        bytes: (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect(),
    };
    let vault = LocalVault::open(Path::new(&dir)).unwrap();
    let admin = vault.admin("worker");
    println!(); // the harness may have begun a line
    match std::env::var("VAULT_JOB").unwrap().as_str() {
        "until killed" => loop {
            let oid = vault.create_identity("i", IdentityKind::System, &admin).unwrap();
            println!("identity {oid}");
            vault.grant(oid, Role::CryptoUser, Some("k"), &admin).unwrap();
            println!("grant {oid}");
            vault.unwrap(&wrapped, &admin).unwrap();
            println!("unwrap");
        },
        "fifty" => {
            for _ in 0..50 {
                vault.create_identity("i", IdentityKind::System, &admin).unwrap();
                vault.unwrap(&wrapped, &admin).unwrap();
            }
        }
        "fill" => loop {
            match vault.unwrap(&wrapped, &admin) {
                Ok(_) => println!("answer"),
                Err(VaultError::Transient { message, .. }) => break println!("transient: {message}"),
                Err(e) => panic!("{e:?}"),
            }
        },
        job => panic!("{job}"),
    }
}

#[test]
fn kill_at_any_point_leaves_a_whole_vault_with_everything_that_was_acknowledged() {
    let (dir, vault, wrapped) = vault();
    let mut acknowledged = Vec::new();
    for round in 0..12 {
        let mut child = spawn(dir.path(), "until killed", &wrapped);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut lines = lines.filter(|l| ["identity ", "grant ", "unwrap"].iter().any(|p| l.starts_with(p)));
        // After the n-th acknowledgement it is in the middle of the next operation, wherever that may be.
        acknowledged.extend(lines.by_ref().take(3 + round * 5 % 13));
        let mut byte = [0u8; 1];
        getrandom::fill(&mut byte).unwrap();
        (0..u32::from(byte[0]) * 2000).for_each(|n| {
            std::hint::black_box(n);
        });
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines);

        let db = Connection::open(dir.path().join("vault.db")).unwrap();
        let check: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
        assert_eq!(check, "ok");
        let count = |sql: &str| db.query_row(sql, [], |r| r.get::<_, usize>(0)).unwrap();
        let of = |kind: &str| acknowledged.iter().filter(|l| l.starts_with(kind)).count();
        let identities = count("SELECT count(*) FROM identity WHERE kind = 'system'");
        let grants = count("SELECT count(*) FROM access_policy");
        let unwraps = count("SELECT count(*) FROM audit WHERE record ->> '$.operationName' = 'KeyUnwrap'");
        // At most one operation a round was committed without being acknowledged.
        for (found, said) in [(identities, of("identity ")), (grants, of("grant ")), (unwraps, of("unwrap"))]
        {
            assert!((said..=said + round + 1).contains(&found), "round {round}: {found} {said}");
        }
        // Change and record come together: 3 records for init, import and wrap.
        assert_eq!(count("SELECT count(*) FROM audit"), 3 + identities + grants + unwraps);
        drop(db);
        let head = LocalVault::open(dir.path()).unwrap().verify_audit().unwrap();
        assert_eq!(usize::try_from(head.seq).unwrap(), 3 + identities + grants + unwraps);
    }
    assert!(acknowledged.len() > 60, "{}", acknowledged.len());
    assert!(vault.unwrap(&wrapped, &vault.admin("x")).is_ok());
}

#[test]
fn processes_and_threads_share_a_vault_without_losing_a_record() {
    let (dir, vault, wrapped) = vault();
    let before = vault.verify_audit().unwrap().seq;
    let generation = vault.policy_generation().unwrap();
    let children: Vec<Child> = (0..2).map(|_| spawn(dir.path(), "fifty", &wrapped)).collect();
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                for _ in 0..25 {
                    vault.unwrap(&wrapped, &vault.admin("thread")).unwrap();
                }
            });
        }
    });
    for mut child in children {
        // Its output is short; it never fills the pipe.
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(vault.verify_audit().unwrap().seq, before + 2 * 100 + 2 * 25);
    assert_eq!(vault.policy_generation().unwrap(), generation + 2 * 50);
}

#[test]
fn what_one_handle_disables_another_refuses_at_once() {
    let (dir, vault, wrapped) = vault();
    let other = LocalVault::open(dir.path()).unwrap();
    let key = KeyRef::from(&wrapped.kid);
    let generation = other.policy_generation().unwrap();
    vault.set_enabled(&key, false, &vault.admin("x")).unwrap();
    assert_eq!(other.policy_generation().unwrap(), generation + 1);
    let answer = other.unwrap(&wrapped, &other.admin("x"));
    assert!(matches!(answer, Err(VaultError::Denied(Denial::Disabled, _))), "{answer:?}");
    vault.set_enabled(&key, false, &vault.admin("x")).unwrap(); // no change
    vault.list_keys(&Page::default(), &vault.admin("x")).unwrap();
    assert_eq!(other.policy_generation().unwrap(), generation + 1, "audit rows do not count");
}

#[test]
fn of_many_first_uses_at_once_one_makes_the_vault_and_the_others_find_it() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state");
    let ids: Vec<_> = std::thread::scope(|s| {
        let first_use = || match LocalVault::init(&dir, "default") {
            Ok(vault) => (vault.id(), 1),
            Err(e) if e.kind() == ErrorKind::Exists => (LocalVault::open(&dir).unwrap().id(), 0),
            Err(e) => panic!("{e:?}"),
        };
        let threads: Vec<_> = (0..6).map(|_| s.spawn(first_use)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(ids.iter().map(|(_, made)| made).sum::<u32>(), 1);
    assert!(ids.iter().all(|(id, _)| *id == ids[0].0));
}

#[test]
fn a_vault_whose_making_was_interrupted_is_made_anew_but_a_lone_root_key_is_kept() {
    let (whole, vault, _) = vault();
    drop(vault);
    let database = std::fs::read(whole.path().join("vault.db")).unwrap();
    for leftovers in [
        &[("vault.db.new", &b""[..])][..],
        &[("vault.db.new", b""), ("root.key", b"half")],
        &[("vault.db.new", &database[..5000]), ("root.key", &[1; 32]), ("vault.db.new-wal", b"wal")],
        &[("vault.db.new", &database), ("root.key", &[1; 32])],
    ] {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in leftovers {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        assert!(!LocalVault::exists(dir.path()));
        let vault = LocalVault::init(dir.path(), "default").unwrap();
        assert!(vault.list_keys(&Page::default(), &vault.admin("x")).unwrap().is_empty());
        assert!(!dir.path().join("vault.db.new").exists());
    }
    std::fs::remove_file(whole.path().join("vault.db")).unwrap();
    let root = std::fs::read(whole.path().join("root.key")).unwrap();
    let e = LocalVault::init(whole.path(), "default").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Exists);
    assert!(e.advice().unwrap().contains("backup"), "{e:?}");
    assert_eq!(std::fs::read(whole.path().join("root.key")).unwrap(), root);
}

// --- what a thief of the database reads ---

#[test]
fn nothing_secret_is_in_the_database_or_its_log() {
    let (dir, vault, wrapped) = vault();
    let admin = vault.admin("x");
    let made = vault.create_key("made", &NewKey::wrapping(RsaBits::B2048), &admin).unwrap();
    let dek = Secret::random().unwrap();
    vault.wrap(&made.kid, WrapAlg::RsaOaep256, &dek, &admin).unwrap();
    vault.unwrap(&wrapped, &admin).unwrap();

    let key = rsa::PrivateKey::from_pkcs8_der(&KEY).unwrap();
    let mut secrets = vec![
        ("the data key", dek.expose().to_vec()),
        ("d", key.d().to_be_bytes_trimmed_vartime().into_vec()),
        ("the root key", std::fs::read(dir.path().join("root.key")).unwrap()),
        ("the end of the PKCS#8", KEY[KEY.len() - 64..].to_vec()),
    ];
    secrets.extend(
        key.primes().iter().map(|p| ("a prime", p.as_ref().to_be_bytes_trimmed_vartime().into_vec())),
    );
    let modulus = key.n().to_be_bytes_trimmed_vartime().into_vec();

    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap_or_default();
    let with_log = [read("vault.db"), read("vault.db-wal")].concat();
    assert!(!read("vault.db-wal").is_empty());
    drop(vault);
    for (when, files) in [("with its log", with_log), ("at rest", read("vault.db"))] {
        for (what, secret) in &secrets {
            for part in secret.chunks_exact(16) {
                assert!(!contains(&files, part), "{what} in the database {when}");
                assert!(!contains(&files, hex(part).as_bytes()), "{what} in hex in the database {when}");
            }
        }
        // Negative: what is public is there, so the search finds what there is (a page may cut it).
        assert!(modulus.chunks_exact(16).any(|part| contains(&files, part)), "{when}");
    }
}

#[test]
fn a_sealed_key_that_was_moved_or_swapped_does_not_open_and_cannot_redirect_a_wrap() {
    let (dir, vault, wrapped) = vault();
    let admin = vault.admin("x");
    let other = vault.create_key("other", &NewKey::wrapping(RsaBits::B2048), &admin).unwrap();
    let dek = Secret::random().unwrap();
    let sql = |change: &str| {
        let db = Connection::open(dir.path().join("vault.db")).unwrap();
        assert_eq!(db.execute(change, [wrapped.kid.version(), other.kid.version()]).unwrap(), 1);
    };
    // The attacker's public key in the row: the wrap still uses the sealed one, so it opens here.
    sql(
        "UPDATE key_version SET (n, e) = (SELECT n, e FROM key_version WHERE version = ?2) WHERE version = ?1",
    );
    let again = vault.wrap(&wrapped.kid, WrapAlg::RsaOaep256, &dek, &admin).unwrap();
    assert!(vault.unwrap(&again, &admin).unwrap().ct_eq(&dek));
    // A whole other private key in the row: refused as damage, for wrap and unwrap, and recorded.
    sql(
        "UPDATE key_version SET private = (SELECT private FROM key_version WHERE version = ?2) WHERE version = ?1",
    );
    for answer in [
        vault.unwrap(&again, &admin).map(|_| ()),
        vault.wrap(&wrapped.kid, WrapAlg::RsaOaep256, &dek, &admin).map(|_| ()),
    ] {
        let e = answer.unwrap_err();
        assert!(matches!(e, VaultError::Corrupt(_)), "{e:?}");
        assert_eq!(Error::from(e).kind(), ErrorKind::Damaged);
        let last = vault.audit(&Default::default()).unwrap().pop().unwrap();
        assert_eq!(last.value()["properties"]["httpStatusCode"], 500);
    }
    assert!(vault.wrap(&other.kid, WrapAlg::RsaOaep256, &dek, &admin).is_ok());
}
