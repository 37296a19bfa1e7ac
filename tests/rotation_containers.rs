//! Does a rotation reach every disk, snapshot and image of a set, say what it cannot reach and why, and take that up again
//! by itself; with one unwrap, one wrap and one check each; and can the old version go then?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod rotation_support;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

use rotation_support::{KEY, Scene, header, kids, opens};
use wrapdisk::envelope::KeyRef;
use wrapdisk::error::ErrorKind;
use wrapdisk::luks2::Kind;
use wrapdisk::set::find;
use wrapdisk::store::{Access, FileStore};
use wrapdisk::vault::local::{KeyUpdate, Role};

#[test]
fn all_kinds_are_rewrapped_with_three_calls_each_and_the_old_version_can_go() {
    let s = Scene::new();
    let all = s.fill(5, 3, 2);
    let old = s.set().active;
    let before: Vec<_> = all.iter().map(|path| header(path).uuid().to_owned()).collect();
    let new = s.new_version();
    let head = s.audit_head();
    let report = s.rotate();

    assert!(report.is_complete() && report.began, "{report:?}");
    assert_eq!(report.rewrapped, 10);
    assert_eq!(
        (s.records("KeyUnwrap", head), s.records("KeyWrap", head), s.records("KeyGet", head)),
        (20, 10, 1)
    );
    let set = s.set();
    assert_eq!((&set.active, set.previous.len(), &set.trouble), (&new, 0, &None));
    assert!(set.last_rotation.is_some());
    s.switch(&old, false);
    for (path, uuid) in all.iter().zip(before) {
        assert_eq!(kids(path), [new.to_string()], "{}", path.display());
        assert_eq!(header(path).uuid(), uuid);
        assert!(opens(&s, path).unwrap());
    }
    // The registry says the same, and a second run has nothing to do but to look for a newer version.
    let rows = s.access.sets.containers(Some(set.id)).unwrap();
    assert!(rows.iter().all(|row| row.kids == [new.to_string()] && row.last_rewrap.is_some()), "{rows:?}");
    let head = s.audit_head();
    assert!(s.rotate().is_complete());
    assert_eq!(s.audit_head(), head + 1);
}

#[test]
fn every_use_of_the_key_names_the_disk_the_set_and_the_reason() {
    let s = Scene::new();
    let path = s.fill(1, 0, 0).remove(0);
    s.new_version();
    let head = s.audit_head();
    s.rotate();
    let filter = wrapdisk::vault::local::AuditFilter { after: head, ..Default::default() };
    let text: Vec<String> = s.vault().audit(&filter).unwrap().iter().map(|r| format!("{r:?}")).collect();
    let uses: Vec<_> = text.iter().filter(|r| r.contains("KeyWrap") || r.contains("KeyUnwrap")).collect();
    assert_eq!(uses.len(), 3);
    for record in uses {
        assert!(record.contains("rotation of prod"), "{record}");
        assert!(record.contains(path.to_str().unwrap()), "{record}");
        assert!(record.contains(&s.set().identity.to_string()), "{record}");
    }
}

#[test]
fn a_missing_file_blocks_the_end_and_the_others_go_on_until_it_is_back() {
    let s = Scene::new();
    let all = s.fill(3, 1, 0);
    let old = s.set().active;
    let away = s.dir.path().join("away.wd");
    fs::rename(&all[1], &away).unwrap();
    let new = s.new_version();
    let report = s.rotate();
    assert_eq!((report.rewrapped, report.left.len()), (3, 1));
    let (container, trouble, kind) = &report.left[0];
    assert_eq!((&container.path, &*trouble.code, *kind), (&all[1], "Missing", ErrorKind::NotFound));
    let set = s.set();
    assert_eq!(set.previous.iter().map(|p| &p.kid).collect::<Vec<_>>(), [&old], "still needed");
    assert_eq!(set.trouble, None, "it has an hour");
    let row = &s.access.sets.find(&container.uuid).unwrap()[0];
    assert_eq!(row.trouble.as_ref().unwrap().code, "Missing");

    // Back under another name beside the others: found by uuid, without a scan.
    fs::rename(&away, s.path("renamed.wd")).unwrap();
    let report = s.rotate();
    assert!(report.is_complete() && report.rewrapped == 1, "{report:?}");
    assert_eq!(kids(&s.path("renamed.wd")), [new.to_string()]);
    let rows = s.access.sets.find(&container.uuid).unwrap();
    assert_eq!(rows.iter().map(|r| &r.path).collect::<Vec<_>>(), [&s.path("renamed.wd")]);
    assert!(rows[0].trouble.is_none());
    assert!(s.set().previous.is_empty());
}

#[test]
fn an_hour_later_what_is_missing_is_late_and_the_set_says_so() {
    let s = Scene::new();
    let all = s.fill(2, 0, 0);
    fs::remove_file(&all[0]).unwrap();
    s.new_version();
    s.rotate();
    let db = rusqlite::Connection::open(s.state().join("sets.db")).unwrap();
    db.execute("UPDATE disk_set SET rotation_due = rotation_due - 3601", []).unwrap();
    let report = s.rotate();
    let trouble = report.set.trouble.clone().unwrap();
    assert_eq!(trouble.code, "Late");
    assert!(report.set.is_late(&report.left[0].0.kids, jiff::Timestamp::now().as_second()));
    assert!(report.set.to_json()["properties"]["autoKeyRotationError"]["message"].is_string());
    s.access.sets.forget(&report.left[0].0.uuid, &all[0]).unwrap();
    let report = s.rotate();
    assert_eq!((&report.set.trouble, report.set.previous.len()), (&None, 0), "mended by itself");
}

#[test]
fn each_copy_is_rewrapped_and_a_scan_finds_what_nobody_recorded() {
    let s = Scene::new();
    let all = s.fill(1, 1, 1);
    let inner = s.path("deeper");
    fs::create_dir(&inner).unwrap();
    fs::copy(&all[0], inner.join("copy.wd")).unwrap();
    fs::rename(&all[1], inner.join("moved.wd")).unwrap();
    fs::write(inner.join("no-container"), [7; 5000]).unwrap();
    fs::remove_file(&all[2]).unwrap();
    let scan = find::scan(&s.access, &s.path("")).unwrap();
    let found: Vec<_> = scan.found.iter().map(|f| f.container.path.clone()).collect();
    let real = inner.canonicalize().unwrap();
    assert_eq!(found, [real.join("copy.wd"), real.join("moved.wd"), all[0].canonicalize().unwrap()]);
    assert_eq!(scan.found[0].copies, [all[0].canonicalize().unwrap()]);
    assert_eq!(scan.found[1].moved_from, [all[1].clone()]);
    assert!(scan.found.iter().all(|f| !f.new));
    assert_eq!(scan.missing.iter().map(|c| &c.path).collect::<Vec<_>>(), [&all[2]]);

    // From nothing but headers.
    let db = rusqlite::Connection::open(s.state().join("sets.db")).unwrap();
    db.execute("DELETE FROM container", []).unwrap();
    let scan = find::scan(&s.access, &s.path("")).unwrap();
    assert!(scan.found.len() == 3 && scan.found[1].new, "{scan:?}");
    let new = s.new_version();
    assert_eq!(s.rotate().rewrapped, 3);
    for path in [&all[0], &inner.join("copy.wd"), &inner.join("moved.wd")] {
        assert_eq!(kids(path), [new.to_string()]);
    }
}

#[test]
fn a_copy_on_a_disk_that_is_not_plugged_in_is_not_taken_for_moved() {
    let s = Scene::new();
    let all = s.fill(1, 0, 0);
    let stick = s.dir.path().join("stick");
    fs::create_dir(&stick).unwrap();
    fs::copy(&all[0], stick.join("copy.wd")).unwrap();
    find::scan(&s.access, &stick).unwrap();
    fs::rename(&stick, s.dir.path().join("unplugged")).unwrap();
    s.new_version();
    let report = s.rotate();
    assert_eq!((report.rewrapped, report.left.len()), (1, 1), "{report:?}");
    assert_eq!(report.left[0].1.code, "Missing");
    fs::rename(s.dir.path().join("unplugged"), &stick).unwrap();
    assert!(s.rotate().is_complete());
}

#[test]
fn what_is_damaged_read_only_or_in_use_keeps_its_error_and_the_others_are_done() {
    let s = Scene::new();
    let all = s.fill(4, 0, 0);
    fs::File::options().write(true).open(&all[0]).unwrap().write_all_at(&[0xff; 32768], 300).unwrap();
    let held = FileStore::open(&all[1], Access::ReadWrite).unwrap();
    fs::set_permissions(&all[2], PermissionsExt::from_mode(0o444)).unwrap();
    let new = s.new_version();
    let report = s.rotate();
    let mut codes: Vec<_> = report.left.iter().map(|(c, t, _)| (c.path.clone(), t.code.clone())).collect();
    codes.retain(|(path, _)| *path != all[2]); // root writes it all the same
    assert_eq!(codes, [(all[0].clone(), "Damaged".to_owned()), (all[1].clone(), "InUse".to_owned())]);
    assert_eq!(kids(&all[3]), [new.to_string()]);
    drop(held);
    let report = s.rotate();
    assert_eq!((report.rewrapped, report.left.len()), (report.rewrapped.max(1), 1), "{report:?}");
}

#[test]
fn a_denied_old_version_stops_it_visibly_and_it_goes_on_when_that_is_mended() {
    let s = Scene::new();
    let all = s.fill(6, 0, 0);
    let old = s.set().active;
    let new = s.new_version();
    s.switch(&old, false);
    let head = s.audit_head();
    let report = s.rotate();
    assert_eq!((report.rewrapped, report.left.len()), (0, 6));
    assert!(report.left.iter().all(|(.., kind)| *kind == ErrorKind::Denied), "{report:?}");
    assert!(s.records("KeyUnwrap", head) <= 4, "after the first denial only what was on its way is asked");
    assert_eq!(s.records("KeyWrap", head), 0, "never from memory");
    let trouble = s.set().trouble.unwrap();
    assert_eq!((&*trouble.code, trouble.kid.as_deref()), ("KeyDenied", Some(old.as_str())));
    let shown = s.set().to_json();
    assert_eq!(shown["properties"]["autoKeyRotationError"]["code"], "KeyDenied");
    assert_eq!(shown["properties"]["provisioningState"], "Updating");

    s.switch(&old, true);
    let report = s.rotate();
    assert!(report.is_complete() && report.rewrapped == 6, "{report:?}");
    assert_eq!((s.set().trouble, kids(&all[0])), (None, vec![new.to_string()]));
}

#[test]
fn the_newest_version_is_used_only_when_it_may_be() {
    let s = Scene::new();
    let path = s.fill(1, 0, 0).remove(0);
    let old = s.set().active;
    let call = s.vault().admin("test");
    let now = jiff::Timestamp::now().as_second();
    let new = s.new_version();
    let change = |update: KeyUpdate| s.vault().update_key(&KeyRef::from(&new), &update, &call).unwrap();

    change(KeyUpdate { enabled: Some(false), ..KeyUpdate::default() });
    let report = s.rotate();
    assert!(!report.began && report.trouble.is_some(), "{report:?}");
    let trouble = s.set().trouble.unwrap();
    assert_eq!((&*trouble.code, trouble.kid.as_deref()), ("KeyVaultKeyNotEnabled", Some(new.as_str())));
    assert!(trouble.message.contains("must be enabled state"), "{}", trouble.message);

    change(KeyUpdate { enabled: Some(true), not_before: Some(now + 1000), ..KeyUpdate::default() });
    let report = s.rotate();
    assert_eq!(report.not_yet, Some((new.clone(), now + 1000)), "pending");
    assert!(report.is_complete() && s.set().trouble.is_none(), "and no error: {report:?}");
    assert_eq!(kids(&path), [old.to_string()]);

    change(KeyUpdate { not_before: Some(now - 1000), expires: Some(now - 10), ..KeyUpdate::default() });
    s.rotate();
    assert_eq!(s.set().trouble.unwrap().code, "KeyExpired");
    assert_eq!(s.set().active, old);

    change(KeyUpdate { expires: Some(now + 1000), ..KeyUpdate::default() });
    assert!(s.rotate().is_complete());
    assert_eq!((s.set().trouble, kids(&path)), (None, vec![new.to_string()]));
}

#[test]
fn a_revoked_grant_a_deleted_key_and_an_outage_are_told_apart() {
    let s = Scene::new();
    s.fill(1, 0, 0);
    let (call, identity) = (s.vault().admin("test"), s.set().identity);
    s.vault().revoke_all(identity, &call).unwrap();
    let (trouble, kind) = s.rotate().trouble.unwrap();
    assert_eq!((&*trouble.code, kind), ("KeyVaultAccessForbidden", ErrorKind::Denied));
    s.vault().grant(identity, Role::CryptoServiceEncryptionUser, Some(KEY), &call).unwrap();
    s.vault().delete_key(KEY, &call).unwrap();
    assert_eq!(s.rotate().trouble.unwrap().0.code, "KeyNotFound");
    s.vault().recover_key(KEY, &call).unwrap();
    assert!(s.rotate().is_complete() && s.set().trouble.is_none());

    // Nobody can be asked: pending for an hour, then an error.
    let root = s.state().join("root.key");
    fs::rename(&root, root.with_extension("away")).unwrap();
    let (trouble, kind) = s.rotate().trouble.unwrap();
    assert_eq!((&*trouble.code, kind, trouble.transient), ("VaultUnreachable", ErrorKind::Unreachable, true));
    assert_eq!(s.set().to_json()["properties"]["autoKeyRotationError"], serde_json::Value::Null);
    let db = rusqlite::Connection::open(s.state().join("sets.db")).unwrap();
    let longer =
        "UPDATE disk_set SET trouble = json_set(trouble, '$.since', json_extract(trouble, '$.since') - 3600)";
    db.execute(longer, []).unwrap();
    s.rotate();
    assert_eq!(s.set().to_json()["properties"]["autoKeyRotationError"]["code"], "VaultUnreachable");
    fs::rename(root.with_extension("away"), &root).unwrap();
    assert!(s.rotate().is_complete() && s.set().trouble.is_none());
}

#[test]
fn a_container_from_a_shelf_is_brought_up_to_date_over_several_versions() {
    let s = Scene::new();
    let all = s.fill(2, 0, 0);
    let shelf = s.dir.path().join("shelf.wd");
    fs::copy(&all[0], &shelf).unwrap();
    for _ in 0..3 {
        s.new_version();
        assert!(s.rotate().is_complete());
    }
    assert!(opens(&s, &shelf).unwrap(), "a version of the set's key, still enabled");
    fs::rename(&shelf, s.path("back.wd")).unwrap();
    find::scan(&s.access, &s.path("")).unwrap();
    let report = s.rotate();
    assert_eq!((report.rewrapped, report.began), (1, false));
    assert_eq!(kids(&s.path("back.wd")), [s.set().active.to_string()]);
}

#[test]
fn a_pinned_set_stays_and_another_set_s_containers_are_not_touched() {
    let s = Scene::new();
    let path = s.fill(1, 0, 0).remove(0);
    let old = s.set().active;
    s.access.sets.set_pinned(s.set().id, true).unwrap();
    let new = s.new_version();
    let report = s.rotate();
    assert!(report.is_complete() && !report.began);
    assert_eq!(kids(&path), [old.to_string()]);
    s.access.sets.set_pinned(s.set().id, false).unwrap();
    let other = s.add("other.wd", Kind::Disk, &s.wrapped());
    let db = rusqlite::Connection::open(s.state().join("sets.db")).unwrap();
    db.execute(
        "UPDATE container SET set_id = 'b56f9ee5-0000-4000-8000-000000000000' WHERE path LIKE '%other.wd'",
        [],
    )
    .unwrap_or_else(|_| {
        // The path is a blob.
        let blob = other.to_str().unwrap().as_bytes();
        db.execute(
            "UPDATE container SET set_id = 'b56f9ee5-0000-4000-8000-000000000000' WHERE path = ?1",
            [blob],
        )
        .unwrap()
    });
    s.rotate();
    assert_eq!(kids(&path), [new.to_string()]);
}
