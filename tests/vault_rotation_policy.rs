//! Does a rotation policy do what it says when it is due, once, and never what it does not say; and does it keep Azure's
//! rules?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use rusqlite::Connection;
use tempfile::TempDir;
use wrapdisk::envelope::KeyRef;
use wrapdisk::vault::local::{
    AuditFilter, Fail, IdentityKind, KeyAttributes, LocalVault, NewKey, Page, RotationPolicy, RsaBits,
};
use wrapdisk::vault::{Call, KeyInfo, KeyOperation};

const DAY: i64 = 86400;

struct Scene {
    dir: TempDir,
    vault: LocalVault,
    call: Call,
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let call = vault.admin("test");
    Scene { dir, vault, call }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

impl Scene {
    fn make(&self, name: &str) -> KeyInfo {
        let new = NewKey {
            operations: Some(vec![KeyOperation::WrapKey, KeyOperation::UnwrapKey]),
            tags: BTreeMap::from([("env".into(), "prod".into())]),
            bits: RsaBits::B2048,
            ..NewKey::default()
        };
        self.vault.create_key(name, &new, &self.call).unwrap()
    }

    fn set(&self, name: &str, policy: &str) -> Result<RotationPolicy, Fail> {
        let policy = RotationPolicy::from_json(policy.as_bytes()).unwrap();
        self.vault.set_rotation_policy(name, &policy, &self.call)
    }

    /// Time goes by: the rows become older.
    fn age(&self, name: &str, days: i64) {
        let db = Connection::open(self.dir.path().join("vault.db")).unwrap();
        let aged = "UPDATE key_version SET created = created - ?1, exp = exp - ?1
                     WHERE key = (SELECT id FROM key WHERE name = ?2)";
        assert!(db.execute(aged, (days * DAY, name)).unwrap() > 0);
    }

    fn versions(&self, name: &str) -> usize {
        self.vault.list_versions(name, &Page::default(), &self.call).unwrap().len()
    }

    fn records(&self, operation: &str) -> usize {
        let filter = AuditFilter { operation: Some(operation.to_owned()), ..Default::default() };
        self.vault.audit(&filter).unwrap().len()
    }
}

fn rotate_after(days: u32) -> String {
    format!(
        r#"{{"lifetimeActions":[{{"trigger":{{"timeAfterCreate":"P{days}D"}},"action":{{"type":"rotate"}}}}]}}"#
    )
}

#[test]
fn a_key_without_a_policy_has_the_default_one_and_one_without_a_notice_gets_it() {
    let s = scene();
    s.make("kek");
    let policy = s.vault.rotation_policy("kek", &s.call).unwrap();
    assert_eq!(
        policy.to_json().to_string(),
        r#"{"lifetimeActions":[{"trigger":{"timeBeforeExpiry":"P30D"},"action":{"type":"Notify"}}],"attributes":{}}"#
    );
    assert_eq!((policy.created, policy.updated), (None, None));
    let set = s.set("kek", &rotate_after(30)).unwrap();
    let json = set.to_json();
    assert_eq!(json["lifetimeActions"][0]["action"]["type"], "Rotate");
    assert_eq!(json["lifetimeActions"][1]["trigger"]["timeBeforeExpiry"], "P30D");
    assert_eq!(json["attributes"].get("expiryTime"), None);
    assert!(set.created.is_some() && set.updated.is_some());
    assert_eq!(s.vault.rotation_policy("KEK", &s.call).unwrap(), set);
    let again = s.set("kek", &rotate_after(40)).unwrap();
    assert_eq!(again.created, set.created, "it was created once");
    // Another key is not touched.
    s.make("other");
    assert_eq!(s.vault.rotation_policy("other", &s.call).unwrap(), RotationPolicy::default());
}

#[test]
fn a_due_rotation_makes_one_version_with_the_same_size_operations_and_tags() {
    let s = scene();
    let old = s.make("kek");
    s.set(
        "kek",
        r#"{"lifetimeActions":[{"trigger":{"timeAfterCreate":"P30D"},"action":{"type":"Rotate"}}],
            "attributes":{"expiryTime":"P90D"}}"#,
    )
    .unwrap();
    assert!(s.vault.rotate_due(&s.call).unwrap().is_empty(), "not yet");
    s.age("kek", 29);
    assert!(s.vault.rotate_due(&s.call).unwrap().is_empty(), "not yet");
    s.age("kek", 1);
    let made = s.vault.rotate_due(&s.call).unwrap();
    let [new] = &made[..] else { panic!("{made:?}") };
    assert_ne!(new.kid, old.kid);
    assert_eq!((new.bits, &new.operations, &new.tags), (old.bits, &old.operations, &old.tags));
    assert_ne!(new.n, old.n);
    let expires = new.expires.unwrap();
    assert!((expires - now() - 90 * DAY).abs() < DAY, "{expires}");
    assert!(s.vault.rotate_due(&s.call).unwrap().is_empty(), "once");
    assert_eq!((s.versions("kek"), s.records("KeyRotateIfDue")), (2, 1));
}

#[test]
fn a_rotation_before_the_expiry_is_due_when_a_version_has_one() {
    let s = scene();
    s.make("kek");
    s.set(
        "kek",
        r#"{"lifetimeActions":[{"trigger":{"timeBeforeExpiry":"P10D"},"action":{"type":"Rotate"}}],
            "attributes":{"expiryTime":"P1Y"}}"#,
    )
    .unwrap();
    s.age("kek", 5000);
    assert!(s.vault.rotate_due(&s.call).unwrap().is_empty(), "a version without expiry never is");
    let by_hand = s.vault.rotate_key("kek", &s.call).unwrap();
    let year = by_hand.expires.unwrap() - now();
    assert!((365 * DAY - 5..=366 * DAY).contains(&year), "{year}");
    s.age("kek", 354);
    assert!(s.vault.rotate_due(&s.call).unwrap().is_empty());
    s.age("kek", 3);
    assert_eq!(s.vault.rotate_due(&s.call).unwrap().len(), 1);
    assert_eq!(s.versions("kek"), 3);
}

#[test]
fn opening_the_vault_carries_out_what_is_due() {
    let s = scene();
    s.make("kek");
    s.set("kek", &rotate_after(7)).unwrap();
    s.age("kek", 8);
    let again = LocalVault::open(s.dir.path()).unwrap();
    assert_eq!(again.list_versions("kek", &Page::default(), &s.call).unwrap().len(), 2);
}

#[test]
fn many_at_once_make_one_version() {
    let s = scene();
    s.make("kek");
    s.set("kek", &rotate_after(7)).unwrap();
    let handles: Vec<_> = (0..4).map(|_| LocalVault::open(s.dir.path()).unwrap()).collect();
    s.age("kek", 8);
    let made: usize = std::thread::scope(|scope| {
        let threads: Vec<_> =
            handles.iter().map(|vault| scope.spawn(|| vault.rotate_due(&s.call).unwrap().len())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!((made, s.versions("kek")), (1, 2));
}

#[test]
fn a_disabled_or_deleted_key_does_not_rotate_by_itself() {
    let s = scene();
    for name in ["off", "gone", "on"] {
        s.make(name);
        s.set(name, &rotate_after(7)).unwrap();
        s.age(name, 8);
    }
    s.vault.set_enabled(&KeyRef::parse("off").unwrap(), false, &s.call).unwrap();
    s.vault.delete_key("gone", &s.call).unwrap();
    let made = s.vault.rotate_due(&s.call).unwrap();
    assert_eq!(made.iter().map(|k| k.kid.name()).collect::<Vec<_>>(), ["on"]);
    // By hand it does, and the new version is enabled.
    assert!(s.vault.rotate_key("off", &s.call).unwrap().enabled);
}

#[test]
fn a_notice_is_given_once_for_a_version() {
    let s = scene();
    let attributes = KeyAttributes { expires: Some(now() + 31 * DAY), ..KeyAttributes::default() };
    let new = NewKey { bits: RsaBits::B2048, attributes, ..NewKey::default() };
    let info = s.vault.create_key("kek", &new, &s.call).unwrap();
    s.vault.rotate_due(&s.call).unwrap();
    assert_eq!(s.records("KeyNearExpiry"), 0, "not yet");
    s.age("kek", 2);
    s.vault.rotate_due(&s.call).unwrap();
    s.vault.rotate_due(&s.call).unwrap();
    LocalVault::open(s.dir.path()).unwrap();
    let filter = AuditFilter { operation: Some("KeyNearExpiry".into()), ..Default::default() };
    let records = s.vault.audit(&filter).unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].value()["properties"]["id"], info.kid.as_str());
    let change = records[0].value()["properties"]["change"].as_str().unwrap().to_owned();
    assert!(change.starts_with("notice: the version expires at 20"), "{change}");
    assert_eq!(s.versions("kek"), 1, "a notice is no rotation");
}

#[test]
fn policies_that_break_a_rule_are_refused_and_change_nothing() {
    let s = scene();
    s.make("kek");
    let policy = |actions: &[(&str, &str, &str)], expiry: Option<&str>| {
        let actions: Vec<_> = actions
            .iter()
            .map(|(trigger, period, action)| {
                serde_json::json!({ "trigger": { (*trigger): period }, "action": { "type": action } })
            })
            .collect();
        serde_json::json!({ "lifetimeActions": actions, "attributes": { "expiryTime": expiry } }).to_string()
    };
    let (after, before) = ("timeAfterCreate", "timeBeforeExpiry");
    for (actions, expiry) in [
        (&[(after, "P6D", "Rotate")][..], None),
        (&[(after, "P30D", "Rotate"), (after, "P40D", "Rotate")], None),
        (&[(before, "P30D", "Notify"), (before, "P40D", "Notify")], None),
        (&[(before, "P30D", "Rotate")], None),
        (&[], Some("P27D")),
        (&[(before, "P22D", "Rotate")], Some("P28D")),
        (&[(after, "P25D", "Rotate")], Some("P28D")),
        (&[(before, "P40D", "Notify")], Some("P28D")),
    ] {
        let text = policy(actions, expiry);
        match s.set("kek", &text) {
            Err(Fail::Refused(refusal)) => {
                assert_eq!((refusal.status, refusal.signature), (400, "BadParameter"), "{text}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    assert_eq!(s.vault.rotation_policy("kek", &s.call).unwrap(), RotationPolicy::default());
    for (actions, expiry) in [
        (&[(after, "P7D", "Rotate")][..], None),
        (&[(after, "P21D", "Rotate"), (before, "P28D", "Notify")], Some("P28D")),
        (&[(before, "P1M", "ROTATE"), (before, "P1M", "notify")], Some("P2Y")),
    ] {
        s.set("kek", &policy(actions, expiry)).unwrap();
    }
    for text in [
        "",
        "[]x",
        r#"{"lifetimeActions":7}"#,
        r#"{"lifetimeActions":[{}]}"#,
        r#"{"lifetimeActions":[{"trigger":{},"action":{"type":"Rotate"}}]}"#,
        r#"{"lifetimeActions":[{"trigger":{"timeAfterCreate":"P9D","timeBeforeExpiry":"P9D"},"action":{"type":"Rotate"}}]}"#,
        r#"{"lifetimeActions":[{"trigger":{"timeAfterCreate":"9 days"},"action":{"type":"Rotate"}}]}"#,
        r#"{"lifetimeActions":[{"trigger":{"timeAfterCreate":"P9D"},"action":{"type":"Explode"}}]}"#,
        r#"{"attributes":{"expiryTime":90}}"#,
    ] {
        assert!(RotationPolicy::from_json(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn who_may_get_and_update_may_see_and_set_a_policy() {
    let s = scene();
    s.make("kek");
    let oid = s.vault.create_identity("ann", IdentityKind::User, &s.call).unwrap();
    let ann = Call::new(oid, "test");
    let may = |permission: &str| {
        use wrapdisk::vault::local::{Grant, Permission};
        let permission = Permission::ALL.into_iter().find(|p| p.name() == permission).unwrap();
        s.vault.grant(oid, Grant::Permissions(vec![permission]), Some("kek"), &s.call).unwrap();
    };
    assert!(s.vault.rotation_policy("kek", &ann).is_err());
    may("get");
    assert!(s.vault.rotation_policy("kek", &ann).is_ok());
    let policy = RotationPolicy::default();
    assert!(s.vault.set_rotation_policy("kek", &policy, &ann).is_err());
    may("setrotationpolicy");
    assert!(s.vault.set_rotation_policy("kek", &policy, &ann).is_ok());
}
