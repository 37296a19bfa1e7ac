//! Who may do what in the vault, and does every change count from the next call on?

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;
use wrapdisk::envelope::KeyRef;
use wrapdisk::vault::Call;
use wrapdisk::vault::local::{
    AuditFilter, Fail, Grant, IdentityKind, LocalVault, NewKey, Permission, Role, RsaBits,
};

struct Scene {
    dir: TempDir,
    vault: LocalVault,
    admin: Call,
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let admin = vault.admin("test");
    Scene { dir, vault, admin }
}

impl Scene {
    fn user(&self, name: &str) -> Uuid {
        self.vault.create_identity(name, IdentityKind::User, &self.admin).unwrap()
    }
    fn key(&self, name: &str) {
        let new = NewKey { bits: RsaBits::B2048, ..NewKey::default() };
        self.vault.create_key(name, &new, &self.admin).unwrap();
    }
}

/// Status and outer code of a refusal.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Fail>) -> (u16, &'static str, String) {
    match answer {
        Err(Fail::Refused(refusal)) => (refusal.status, refusal.signature, refusal.description),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_identity_is_found_by_name_client_id_and_object_id() {
    let s = scene();
    let oid = s.user("Backup-Agent");
    let by_name = s.vault.find_identity("backup-agent", &s.admin).unwrap();
    assert_eq!((by_name.oid, by_name.name.as_str(), by_name.kind), (oid, "Backup-Agent", IdentityKind::User));
    assert!(by_name.enabled && by_name.created > 0);
    for text in [oid.to_string(), oid.to_string().to_uppercase(), by_name.client_id.to_string()] {
        assert_eq!(s.vault.find_identity(&text, &s.admin).unwrap(), by_name);
    }
    assert_eq!(refused(s.vault.find_identity("nobody", &s.admin)).0, 404);
    // Two sets may be named alike: then only the id is clear.
    for _ in 0..2 {
        s.vault.create_identity("twin", IdentityKind::System, &s.admin).unwrap();
    }
    let (status, _, said) = refused(s.vault.find_identity("twin", &s.admin));
    assert!(status == 400 && said.contains("Several"), "{said}");
    let names: Vec<_> = s.vault.identities(&s.admin).unwrap().into_iter().map(|i| i.name).collect();
    assert_eq!(names, ["admin", "Backup-Agent", "twin", "twin"]);
    assert_eq!(refused(s.vault.create_identity("backup-AGENT", IdentityKind::User, &s.admin)).0, 409);
    assert_eq!(refused(s.vault.create_identity("a b", IdentityKind::User, &s.admin)).0, 400);
    assert_eq!(refused(s.vault.create_identity("second", IdentityKind::Admin, &s.admin)).0, 400);
}

#[test]
fn every_permission_opens_its_own_door_and_no_other() {
    let s = scene();
    s.key("k");
    let oid = s.user("app");
    let call = Call::new(oid, "test");
    let key = KeyRef::parse("k").unwrap();
    for permission in Permission::ALL {
        s.vault.grant(oid, Grant::Permissions(vec![permission]), Some("k"), &s.admin).unwrap();
        let get = s.vault.get_key(&key, &call).is_ok();
        let versions = s.vault.list_versions("k", &Default::default(), &call).is_ok();
        let update = s.vault.set_enabled(&key, true, &call).is_ok();
        let expected = [Permission::Get, Permission::List, Permission::Update].map(|p| p == permission);
        assert_eq!([get, versions, update], expected, "{permission:?}");
        s.vault.revoke(oid, Grant::Permissions(vec![permission]), Some("k"), &s.admin).unwrap();
    }
    assert!(s.vault.grants(oid, &s.admin).unwrap().is_empty());
    for internal in [Permission::Manage, Permission::Audit, Permission::SignIn] {
        let grant = Grant::Permissions(vec![Permission::Get, internal]);
        assert_eq!(refused(s.vault.grant(oid, grant, None, &s.admin)).0, 400, "{internal:?}");
        assert!(Permission::parse(internal.name()).is_err());
    }
    assert!(s.vault.grants(oid, &s.admin).unwrap().is_empty(), "all or nothing");
}

#[test]
fn a_grant_has_a_scope_and_is_listed_as_it_was_given() {
    let s = scene();
    s.key("k");
    let oid = s.user("app");
    let some = Grant::Permissions(vec![Permission::UnwrapKey, Permission::Get]);
    s.vault.grant(oid, &some, Some("K"), &s.admin).unwrap();
    s.vault.grant(oid, &some, Some("k"), &s.admin).unwrap(); // twice is harmless
    s.vault.grant(oid, Role::Auditor, None, &s.admin).unwrap();
    let grants = s.vault.grants(oid, &s.admin).unwrap();
    let k = Some("k".to_owned());
    assert_eq!(
        grants,
        [
            (Grant::Role(Role::Auditor), None),
            (Grant::Permissions(vec![Permission::Get, Permission::UnwrapKey]), k.clone())
        ]
    );
    assert_eq!(refused(s.vault.grant(oid, Role::Auditor, Some("other"), &s.admin)).0, 404);
    assert_eq!(refused(s.vault.grant(Uuid::new_v4(), Role::Auditor, None, &s.admin)).0, 404);
    s.vault
        .revoke(oid, Grant::Permissions(vec![Permission::Get, Permission::Purge]), Some("k"), &s.admin)
        .unwrap();
    assert_eq!(
        s.vault.grants(oid, &s.admin).unwrap()[1],
        (Grant::Permissions(vec![Permission::UnwrapKey]), k)
    );
    assert_eq!(s.vault.revoke_all(oid, &s.admin).unwrap().len(), 2);
    assert!(s.vault.grants(oid, &s.admin).unwrap().is_empty());
}

#[test]
fn disabling_and_removing_count_from_the_next_call_on_and_move_the_policy_generation() {
    let s = scene();
    s.key("k");
    let oid = s.user("app");
    let (call, key) = (Call::new(oid, "test"), KeyRef::parse("k").unwrap());
    s.vault.grant(oid, Role::CryptoUser, None, &s.admin).unwrap();
    assert!(s.vault.get_key(&key, &call).is_ok());
    let mut generation = s.vault.policy_generation().unwrap();
    let mut moved = || {
        let before = std::mem::replace(&mut generation, s.vault.policy_generation().unwrap());
        generation - before
    };
    s.vault.set_identity_enabled(oid, false, &s.admin).unwrap();
    assert_eq!(refused(s.vault.get_key(&key, &call)).0, 403);
    s.vault.set_identity_enabled(oid, false, &s.admin).unwrap();
    assert_eq!(moved(), 1, "once: the second changed nothing");
    s.vault.set_identity_enabled(oid, true, &s.admin).unwrap();
    assert!(s.vault.get_key(&key, &call).is_ok());
    assert_eq!(moved(), 1);
    s.vault.remove_identity(oid, &s.admin).unwrap();
    assert_eq!(moved(), 1);
    assert_eq!(refused(s.vault.get_key(&key, &call)).0, 403);
    assert_eq!(refused(s.vault.remove_identity(oid, &s.admin)).0, 404);
    let db = Connection::open(s.dir.path().join("vault.db")).unwrap();
    let left: u32 = db.query_row("SELECT count(*) FROM access_policy", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0, "its grants went with it");
}

#[test]
fn only_the_owner_of_the_files_administers_and_he_cannot_lock_himself_out() {
    let s = scene();
    let oid = s.user("officer");
    s.vault.grant(oid, Role::CryptoOfficer, None, &s.admin).unwrap();
    s.vault.grant(oid, Grant::Permissions(Permission::ALL.to_vec()), None, &s.admin).unwrap();
    let call = Call::new(oid, "test");
    assert_eq!(refused(s.vault.create_identity("x", IdentityKind::User, &call)).0, 403);
    assert_eq!(refused(s.vault.grant(oid, Role::Auditor, None, &call)).0, 403);
    assert_eq!(refused(s.vault.identities(&call)).0, 403);
    assert_eq!(refused(s.vault.rotate_root_key(&call)).0, 403);
    assert_eq!(refused(s.vault.set_identity_enabled(s.admin.identity, false, &s.admin)).0, 400);
    assert_eq!(refused(s.vault.remove_identity(s.admin.identity, &s.admin)).0, 400);
    // Each refusal is a record under its own name.
    let filter = AuditFilter { identity: Some(oid), ..AuditFilter::default() };
    assert_eq!(s.vault.audit(&filter).unwrap().len(), 4);
}
