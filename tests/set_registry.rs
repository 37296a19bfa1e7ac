//! Does the registry know every copy of every container, and notice one that came back with another key?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use uuid::Uuid;
use wrapdisk::error::ErrorKind;
use wrapdisk::set::{ContainerRecord, SetStore};

const VM: &str = "6f2d1c84-9a3b-4e57-8c10-5d7e9b2a4f31";
const KID: &str = "https://demo.vault.example/keys/disk-kek/11111111111111111111111111111111";

fn store() -> (TempDir, SetStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SetStore::open(dir.path()).unwrap();
    (dir, store)
}

fn at(path: impl Into<PathBuf>) -> ContainerRecord {
    ContainerRecord {
        uuid: VM.into(),
        path: path.into(),
        kind: "disk".into(),
        set: Some(Uuid::from_u128(7)),
        kids: vec![KID.into()],
        last_seen: 1_700_000_000,
        last_rewrap: None,
        trouble: None,
    }
}

#[test]
fn copies_share_a_uuid_and_every_path_is_kept() {
    let (dir, store) = store();
    let copy = ContainerRecord { kind: "snapshot".into(), set: None, kids: vec![], ..at("/disks/a copy.wd") };
    store.record(&at("/disks/vm.wd")).unwrap();
    store.record(&copy).unwrap();
    drop(store);

    let store = SetStore::open(dir.path()).unwrap();
    assert_eq!(store.find(VM).unwrap(), [copy, at("/disks/vm.wd")]);
    assert_eq!(store.find(&VM.to_uppercase()).unwrap().len(), 2);
    assert_eq!(store.find(&Uuid::new_v4().to_string()).unwrap(), []);
}

#[test]
fn recording_again_updates_the_row_and_keeps_a_known_rewrap() {
    let (_dir, store) = store();
    let rewrapped = ContainerRecord { last_rewrap: Some(1_700_000_100), ..at("/vm.wd") };
    store.record(&rewrapped).unwrap();
    let seen = ContainerRecord {
        kind: "image".into(),
        set: Some(Uuid::from_u128(8)),
        kids: vec![KID.replace('1', "2"), KID.into()],
        last_seen: 1_700_000_200,
        ..at("/vm.wd")
    };
    store.record(&seen).unwrap();
    let expected = ContainerRecord { last_rewrap: Some(1_700_000_100), ..seen };
    assert_eq!(store.find(VM).unwrap(), std::slice::from_ref(&expected));

    let later = ContainerRecord { last_rewrap: Some(1_700_000_300), ..expected };
    store.record(&later).unwrap();
    assert_eq!(store.find(VM).unwrap(), [later]);
}

#[test]
fn containers_of_one_set_are_told_from_the_others() {
    let (_dir, store) = store();
    let other = ContainerRecord {
        uuid: Uuid::from_u128(1).to_string(),
        set: Some(Uuid::from_u128(8)),
        ..at("/disks/other.wd")
    };
    let foreign = ContainerRecord { uuid: Uuid::from_u128(2).to_string(), set: None, ..at("/plain.luks") };
    for c in [&at("/disks/vm.wd"), &foreign, &other] {
        store.record(c).unwrap();
    }
    assert_eq!(store.containers(Some(Uuid::from_u128(7))).unwrap(), [at("/disks/vm.wd")]);
    assert_eq!(store.containers(Some(Uuid::from_u128(8))).unwrap(), std::slice::from_ref(&other));
    assert_eq!(store.containers(Some(Uuid::from_u128(9))).unwrap(), []);
    assert_eq!(store.containers(None).unwrap(), [other, at("/disks/vm.wd"), foreign]);
}

#[test]
fn a_path_of_any_bytes_comes_back_unchanged() {
    let (_dir, store) = store();
    let odd = Path::new(OsStr::from_bytes(b"/disks/\xff'\"\n.wd"));
    store.record(&at(odd)).unwrap();
    assert_eq!(store.find(VM).unwrap(), [at(odd)]);
    store.forget(VM, odd).unwrap();
    assert_eq!(store.find(VM).unwrap(), []);
}

#[test]
fn a_record_that_means_nothing_to_the_next_process_is_refused() {
    let (_dir, store) = store();
    let relative = store.record(&at("vm.wd")).unwrap_err();
    assert_eq!(relative.chain(), "container path: found \"vm.wd\", allowed an absolute path");
    let kind = store.record(&ContainerRecord { kind: "tape".into(), ..at("/vm.wd") }).unwrap_err();
    assert_eq!(kind.chain(), "container kind: found \"tape\", allowed disk, snapshot, image");
    let uuid = store.record(&ContainerRecord { uuid: "vm\n".into(), ..at("/vm.wd") }).unwrap_err();
    assert!(uuid.chain().starts_with("container uuid: found \"vm\\n\", allowed a uuid"), "{uuid:?}");
    for e in [relative, kind, uuid] {
        assert_eq!(e.kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(store.containers(None).unwrap(), []);
}

#[test]
fn forgetting_drops_one_path_only_and_says_when_there_is_none() {
    let (_dir, store) = store();
    store.record(&at("/a.wd")).unwrap();
    store.record(&at("/b.wd")).unwrap();
    store.forget(VM, Path::new("/a.wd")).unwrap();
    assert_eq!(store.find(VM).unwrap(), [at("/b.wd")]);
    let e = store.forget(VM, Path::new("/a.wd")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert_eq!(e.chain(), format!("container {VM}: not registered at /a.wd"));
}

#[test]
fn the_first_fingerprint_stays_and_another_one_is_refused() {
    let (dir, store) = store();
    assert_eq!(store.pinned_fingerprint(VM).unwrap(), None);
    store.pin(VM, [1; 16]).unwrap();
    store.pin(VM, [1; 16]).unwrap();
    let replaced = store.pin(VM, [2; 16]).unwrap_err();
    assert_eq!((replaced.kind(), replaced.kind().exit_code()), (ErrorKind::Damaged, 5));
    assert_eq!(
        replaced.chain(),
        format!(
            "container {VM}: key fingerprint: found another one than this container had before, so it was replaced as a whole"
        )
    );
    drop(store);

    let store = SetStore::open(dir.path()).unwrap();
    assert_eq!(store.pinned_fingerprint(VM).unwrap(), Some([1; 16]));
    let other = Uuid::from_u128(1).to_string();
    store.pin(&other, [2; 16]).unwrap();
    assert_eq!(store.pinned_fingerprint(&other).unwrap(), Some([2; 16]));
}

#[test]
fn forgetting_a_path_does_not_forget_the_key() {
    let (_dir, store) = store();
    store.record(&at("/a.wd")).unwrap();
    store.pin(VM, [1; 16]).unwrap();
    store.forget(VM, Path::new("/a.wd")).unwrap();
    assert_eq!(store.pinned_fingerprint(VM).unwrap(), Some([1; 16]));
}
